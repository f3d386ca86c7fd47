"""The event-jumping run against a step-by-step one, and against the closed form of saturation."""

import numpy as np
import pytest

from fabless.fleet.capacity import token_period_s
from fabless.fleet.steady import Policy, Requests, serve

BASE, SLOPE, PER_TOKEN = 2e-3, 3e-8, 2e-5


class Linear:
    def decode_lines(self, most, low_tokens, high_tokens):
        return [BASE] * (most + 1), [SLOPE] * (most + 1)

    def prefill_s(self, tokens, decodes):
        return BASE + PER_TOKEN * (tokens + decodes)

    def prompt_attention_s(self, tokens):
        return 0.0


def step_by_step(inputs, outputs, concurrency, policy):
    """Serve one step at a time, every sequence a counter: the plain statement of what `serve` jumps over."""
    n, clock, sent = len(inputs), 0.0, min(concurrency, len(inputs))
    waiting, running, first, end, arrival = list(range(sent)), {}, np.zeros(n), np.zeros(n), np.zeros(n)
    while waiting or running:
        budget = policy.step_tokens - (len(running) if policy.mixes else 0)
        taken = []
        while waiting and inputs[waiting[0]] <= budget and len(running) + len(taken) < policy.max_sequences:
            taken.append(waiting.pop(0))
            budget -= inputs[taken[-1]]
        context = sum(running[r][1] for r in running)
        if taken:
            clock += BASE + PER_TOKEN * (sum(inputs[r] for r in taken) + (len(running) if policy.mixes else 0))
            clock += SLOPE * context if policy.mixes else 0.0
        else:
            clock += BASE + SLOPE * context
        if policy.mixes or not taken:
            for r in running:
                running[r] = [running[r][0] - 1, running[r][1] + 1]
        for r in taken:
            first[r] = clock
            running[r] = [outputs[r] - 1, inputs[r]]
        for r in sorted(r for r in running if running[r][0] <= 0):
            end[r] = clock
            del running[r]
            if sent < n:
                arrival[sent] = clock
                waiting.append(sent)
                sent += 1
    return arrival, first, end


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize("concurrency", [1, 3, 9])
def test_jumping_equals_stepping(mixes, concurrency):
    rng = np.random.default_rng(3)
    inputs, outputs = rng.integers(50, 900, 30).astype(float), rng.integers(1, 120, 30).astype(float)
    policy = Policy(1024, 6, 1e12, mixes)
    served = serve(Requests(inputs, outputs), concurrency, Linear(), policy)
    _, _, end = step_by_step(inputs, outputs, concurrency, policy)
    # a prompt that does not fit the rest of a step is cut there, which stepping does not do: ends differ by less than one prompt a slot
    assert np.abs(served.end_s - end).max() < (PER_TOKEN * 900 + BASE) * policy.max_sequences
    assert served.end_s.max() == pytest.approx(end.max(), rel=0.03)


def test_one_prompt_at_a_time_is_stepped_exactly():
    inputs, outputs = np.full(12, 300.0), np.arange(2.0, 14.0)
    policy = Policy(300, 4, 1e12, mixes=False)
    served = serve(Requests(inputs, outputs), 3, Linear(), policy)
    _, first, end = step_by_step(inputs, outputs, 3, policy)
    assert np.allclose(served.first_s, first, rtol=1e-12)
    assert np.allclose(served.end_s, end, rtol=1e-12)


def test_saturation_agrees_with_the_closed_form():
    rng = np.random.default_rng(5)
    n, b = 4000, 16
    outputs = rng.integers(60, 180, n).astype(float)
    policy = Policy(200, b, 1e12, mixes=False)
    served = serve(Requests(np.full(n, 200.0), outputs), b, Linear(), policy)
    mean_context = 200 + (outputs**2).mean() / outputs.mean() / 2
    step_s = BASE + SLOPE * b * mean_context
    period = float(token_period_s(step_s, BASE + PER_TOKEN * 200, b, outputs.mean()))
    rate = outputs.sum() / served.end_s.max()
    # the closed form keeps b sequences decoding at all times; the run has them wait for their own prefill, a share b p / (n t) of it
    assert rate == pytest.approx(b / period, rel=0.05)
