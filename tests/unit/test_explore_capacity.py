"""The closed forms of fleet.capacity against a discrete-event simulation written the other way round."""

import heapq
from collections import deque

import numpy as np
import pytest

from fabless.fleet import capacity


def step_s(batch):
    return 0.010 + 0.0002 * batch


def simulate_closed(slots, prefill_s, outputs, rng, requests):
    """Serve with `slots` sequences always present: a leaver's successor is prefilled at once, then all decode. Returns time and token gaps."""
    left = list(rng.choice(outputs, slots))
    clock, done, gaps, tokens = 0.0, 0, 0.0, 0
    while done < requests:
        clock += step_s(slots)
        tokens += slots
        gap = step_s(slots)
        for i in range(slots):
            left[i] -= 1
            if left[i] == 0:
                done += 1
                left[i] = rng.choice(outputs)
                clock += prefill_s
                gap += prefill_s
        gaps += gap * slots
    return done / clock, gaps / tokens


def test_rate_and_token_period_equal_the_simulation_at_saturation():
    rng = np.random.default_rng(1)
    outputs = np.array([20, 40, 60, 200, 400])
    rate, period = simulate_closed(16, 0.030, outputs, rng, 4000)
    n = outputs.mean()
    # Renewal reward: the only error is sampling of 4,000 answer lengths, whose mean has a relative standard error of sd/mean/sqrt(4000).
    bound = 4 * outputs.std() / n / np.sqrt(4000)
    assert rate == pytest.approx(float(capacity.request_rate_per_s(step_s(16), 0.030, 16, n)), rel=bound)
    assert period == pytest.approx(float(capacity.token_period_s(step_s(16), 0.030, 16, n)), rel=bound)


def test_littles_law_ties_rate_period_and_batch():
    batch = np.array([1.0, 8.0, 64.0])
    rate = capacity.request_rate_per_s(0.02, 0.1, batch, 200.0)
    period = capacity.token_period_s(0.02, 0.1, batch, 200.0)
    np.testing.assert_allclose(rate * period * 200.0, batch, rtol=1e-12)


def simulate_prefill_waits(rate, services, rng, requests):
    clock_free, now, waits = 0.0, 0.0, []
    for service in rng.choice(services, requests):
        now += rng.exponential(1 / rate)
        start = max(now, clock_free)
        waits.append(start - now)
        clock_free = start + service
    return np.array(waits)


def test_prefill_wait_equals_the_queue_for_exponential_service_and_bounds_a_fixed_one():
    rng = np.random.default_rng(2)
    services = rng.exponential(0.1, 20000)
    for load in (0.3, 0.7):
        waits = simulate_prefill_waits(load / 0.1, services, rng, 200_000)
        closed = float(capacity.prefill_wait_s(load / 0.1, 0.1, 2.0, 0.9))
        # Successive waits are correlated: the quantile of 200,000 is good to about 5% at these loads (batch means of the simulation itself).
        spread = np.std([np.quantile(part, 0.9) for part in np.split(waits, 20)]) / np.sqrt(20)
        assert np.quantile(waits, 0.9) == pytest.approx(closed, abs=4 * spread + 0.02 * closed)


def test_a_saturated_prefill_queue_has_no_bound_and_an_idle_one_no_wait():
    assert np.isinf(capacity.prefill_wait_s(10.0, 0.1, 2.0, 0.9))
    assert capacity.prefill_wait_s(0.5, 0.1, 2.0, 0.9) == 0.0  # 5% of requests wait at all, so the 90th percentile does not


def simulate_open(rate, prefill_s, outputs, rng, requests):
    """Serve Poisson arrivals, prefill first, unlimited slots; returns time to first token and mean number decoding, seen at steps."""
    arrivals = np.cumsum(rng.exponential(1 / rate, requests))
    waiting, heap, i, clock, ttft, weighted, decoding_time = deque(), [], 0, 0.0, [], 0.0, 0.0
    steps = 0
    while len(ttft) < requests:
        while i < requests and arrivals[i] <= clock:
            waiting.append(arrivals[i])
            i += 1
        if waiting:
            clock += prefill_s
            ttft.append(clock - waiting.popleft())
            heapq.heappush(heap, steps + int(rng.choice(outputs)))
        elif heap:
            clock += step_s(len(heap))
            steps += 1
            weighted += len(heap) * step_s(len(heap))
            decoding_time += step_s(len(heap))
            while heap and heap[0] <= steps:
                heapq.heappop(heap)
        else:
            clock = arrivals[i]
    return np.array(ttft), weighted / decoding_time


def test_open_arrivals_meet_the_closed_form_and_its_ttft_bound():
    rng = np.random.default_rng(3)
    outputs = np.array([50, 100, 150, 300])
    batch, prefill = 24.0, 0.030
    rate = float(capacity.request_rate_per_s(step_s(batch), prefill, batch, outputs.mean()))
    ttft, decoding = simulate_open(rate, prefill, outputs, rng, 6000)
    # The number in flight fluctuates about the fixed point as in an infinite-server queue: deviation about sqrt(batch), correlated over one
    # residence time; 6,000 requests are about 250 residences, so four standard errors are 4 sqrt(24 / 250).
    assert decoding == pytest.approx(batch, abs=4 * np.sqrt(batch / 250) + 1.0)
    bound = float(capacity.ttft_s(rate, prefill, 1.0, step_s=step_s(batch + 4 * np.sqrt(batch)), long_prefill_s=prefill, quantile=0.9))
    assert np.quantile(ttft, 0.9) <= bound


def test_mean_prefill_is_exact_for_a_quadratic_and_linear_where_curvature_is_negative():
    lengths = np.array([100.0, 1000.0, 3000.0])
    time = 1e-5 * lengths + 2e-9 * lengths**2
    ends = (1e-5 * 1000 + 2e-9 * 1000**2, 1e-5 * 4000 + 2e-9 * 4000**2)
    mean = capacity.mean_prefill_s(*ends, (1000.0, 4000.0), mean=lengths.mean(), mean_square=(lengths**2).mean())
    assert float(mean) == pytest.approx(time.mean(), rel=1e-12)
    assert float(capacity.mean_prefill_s(1.0, 1.5, (10.0, 20.0), mean=5.0, mean_square=30.0)) == pytest.approx(0.5)


def test_batch_context_narrows_with_the_batch():
    lengths = capacity.Lengths("x", 1000.0, 2e6, 2000.0, 200.0, 1200.0, 700.0)
    contexts = capacity.batch_context(lengths, [1, 100], 1.2816)
    np.testing.assert_allclose(contexts, [1200 + 1.2816 * 700, 1200 + 1.2816 * 70])
