"""A closed loop counts all of a request's time, that outside the engine included: Little's law between rate and latency holds."""

from dataclasses import replace

import pytest

from fabless.validate.meaning import case_of
from fabless.validate.predict import Predictor
from fabless.validate.rows import Row

ROW = Row(
    id="x", line=2, chip="NVIDIA H200 SXM", chips=8, model="meta-llama/Llama-3.1-70B", precision="fp8", phase="serving", input_tokens=1024.0,
    output_tokens=128.0, concurrency=1, load="", metric="ttft", value=0.1, unit="s", software="vLLM 0.14", notes="tp=8 pp=1",
)  # fmt: skip


def outcome(overhead_s, concurrency=1):
    case = case_of(replace(ROW, concurrency=concurrency))
    d = case.deployment
    return Predictor().outcome(replace(d, software=replace(d.software, request_overhead_s=overhead_s)), case.experiment)


@pytest.mark.parametrize("overhead_s", [0.0, 0.05, 1.0])
def test_one_request_at_a_time_is_sent_when_the_last_has_ended(overhead_s):
    found = outcome(overhead_s)
    assert 1 / found.requests_per_s == pytest.approx(found.e2e_mean_s, rel=0.05)  # the last request's end closes the run, no pause follows


def test_time_outside_the_engine_lowers_the_rate():
    assert outcome(1.0, 8).requests_per_s < 0.9 * outcome(0.0, 8).requests_per_s
