"""Continuous batching on one replica: what each request gets, by hand-computed cases."""

from dataclasses import dataclass

import numpy as np
import pytest

from fabless.core.errors import InfeasibleError
from fabless.fleet.steady import Policy, Requests, serve


@dataclass
class Simple:
    """Steps that take a fixed time, plus one per token taken in."""

    decode: float = 1.0
    per_token: float = 0.0
    per_context: float = 0.0

    def decode_lines(self, most, low_tokens, high_tokens):
        return [self.decode] * (most + 1), [self.per_context] * (most + 1)

    def prefill_s(self, tokens, decodes):
        return self.decode + self.per_token * tokens

    def prompt_attention_s(self, tokens):
        return 0.0


def requests(n, inputs, outputs, arrivals=None):
    return Requests(np.full(n, float(inputs)), np.full(n, float(outputs)), None if arrivals is None else np.array(arrivals, float))


ROOM = Policy(8192, 1024, 1e9)


def test_one_request_is_a_prefill_and_its_decodes():
    served = serve(requests(1, 10, 5), 1, Simple(per_token=0.1), ROOM)
    assert served.ttft_s[0] == pytest.approx(2.0)
    assert served.tpot_s(np.array([5.0]))[0] == pytest.approx(1.0)


def test_a_decode_step_costs_its_context():
    served = serve(requests(1, 10, 4), 1, Simple(decode=0.0, per_context=1.0), ROOM)
    assert served.end_s[0] == pytest.approx(10 + 11 + 12)


def test_prompts_are_taken_in_by_chunks():
    served = serve(requests(1, 100, 1), 1, Simple(), Policy(40, 8, 1e9))
    assert served.first_s[0] == pytest.approx(3.0)


def test_closed_loop_keeps_its_requests_in_flight():
    served = serve(requests(40, 10, 20), 4, Simple(), ROOM)
    order = np.sort(served.end_s)
    assert np.allclose(np.sort(served.arrival_s)[4:], order[:36])


def test_the_cache_bounds_the_batch():
    one = Policy(8192, 1024, 31.0, reserves_output=True)
    served = serve(requests(2, 10, 20), 2, Simple(), one)
    assert served.first_s[1] == pytest.approx(served.end_s[0] + 1.0)


def test_a_request_larger_than_the_cache_is_refused():
    with pytest.raises(InfeasibleError, match="a request of 30 tokens does not fit the KV cache of 20 tokens"):
        serve(requests(1, 10, 20), 1, Simple(), Policy(8192, 1024, 20.0))


def test_mixing_lets_decodes_go_on_during_a_prefill():
    arrivals = [0.0, 2.5]
    mixed = serve(requests(2, 10, 8, arrivals), 8, Simple(), ROOM)
    alone = serve(requests(2, 10, 8, arrivals), 8, Simple(), Policy(8192, 1024, 1e9, mixes=False))
    assert mixed.end_s[0] == pytest.approx(8.0)
    assert alone.end_s[0] == pytest.approx(9.0)


def test_open_loop_waits_for_arrivals():
    served = serve(requests(2, 10, 2, [0.0, 100.0]), 8, Simple(), ROOM)
    assert served.first_s[1] == pytest.approx(101.0)
