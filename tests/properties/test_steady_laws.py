"""Laws of the batching run that hold for any requests."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fabless.fleet.steady import Policy, Requests, serve


class Linear:
    def decode_lines(self, most, low_tokens, high_tokens):
        return [1e-3 + 1e-5 * b for b in range(most + 1)], [1e-8] * (most + 1)

    def prefill_s(self, tokens, decodes):
        return 1e-3 + 1e-5 * (tokens + decodes)

    def prompt_attention_s(self, tokens):
        return 1e-9 * tokens**2


LENGTHS = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 400)), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 20), st.booleans(), st.booleans(), st.integers(64, 8192))
@settings(max_examples=60, deadline=None)
def test_every_request_is_served_once_and_in_order(lengths, concurrency, mixes, reserves, step_tokens):
    i, o = (np.array(x, float) for x in zip(*lengths, strict=True))
    policy = Policy(step_tokens, 16, float((i + o).max() * 2), mixes, reserves)
    served = serve(Requests(i, o), concurrency, Linear(), policy)
    assert (served.first_s > served.arrival_s).all()
    assert (served.end_s >= served.first_s).all()
    assert (served.end_s - served.first_s >= (o - 1) * 1e-3 - 1e-9).all()
    assert served.mean_batch <= min(concurrency, 16) + 1e-9
    # never more in flight than asked for: each arrival after the first `concurrency` is another request's end
    starts, ends = np.sort(served.arrival_s), np.sort(served.end_s)
    assert np.allclose(starts[concurrency:], ends[: max(len(i) - concurrency, 0)])


@given(LENGTHS, st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_same_requests_same_times(lengths, concurrency):
    i, o = (np.array(x, float) for x in zip(*lengths, strict=True))
    runs = [serve(Requests(i, o), concurrency, Linear(), Policy(2048, 64, 1e9)) for _ in range(2)]
    assert (runs[0].end_s == runs[1].end_s).all()
