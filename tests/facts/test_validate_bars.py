"""The accuracy that the product states, held on every published measurement beside this checkout: no bar may slip unseen."""

from pathlib import Path

import pytest

from fabless.validate.validation import Validation, validate

MEASURED = Path(__file__).parents[2] / "../shared/data/silicon/measured.csv"
pytestmark = pytest.mark.skipif(not MEASURED.exists(), reason="the measured rows are not beside this checkout")


@pytest.fixture(scope="module")
def result():
    return validate(MEASURED)


def median(result, *kinds):
    return Validation(tuple(r for r in result.rows if r.kind in kinds), ()).overall.median_ape


MISSED = pytest.mark.xfail(
    reason="30.9% when last fitted: engines started with defaults, whose logs are not published; see docs/accuracy.md"
)


@pytest.mark.parametrize(
    ("kinds", "bar"),
    [
        pytest.param(("tpot",), 0.12, id="decode TPOT"),
        pytest.param(("ttft",), 0.20, id="TTFT without queueing"),
        pytest.param(("ttft_queued",), 0.30, id="TTFT with queueing", marks=MISSED),
        pytest.param(("offline",), 0.15, id="offline throughput"),
        pytest.param(("power",), 0.15, id="power"),
    ],
)
def test_the_median_error_stays_under_its_bar(result, kinds, bar):
    assert median(result, *kinds) <= bar


def test_no_family_with_more_than_a_few_rows_is_far_off_in_decode(result):
    decode = Validation(tuple(r for r in result.rows if r.kind == "tpot"), ())
    assert {s.name: s.median_ape for s in decode.families if s.n >= 20 and s.median_ape > 0.20} == {}


def test_few_rows_of_language_models_are_skipped(result):
    # rows that are no measurement of a language model: other statistics (peak power), power not measured (0), image models
    beside = ("peak_power", "value 0", "stable-diffusion")
    skipped = sum(n for reason, n in result.skipped if not any(word in reason for word in beside))
    assert skipped <= 0.15 * (skipped + result.overall.n)


def test_the_summary_has_the_promised_keys(result):
    summary = result.as_dict()
    assert {"n", "median_ape", "p90_ape", "bias", "families", "skipped"} <= set(summary)
    assert set(summary["families"][0]) == {"family", "n", "median_ape", "p90_ape", "bias"}
    assert set(summary["skipped"][0]) == {"reason", "n"}
    assert sum(f["n"] for f in summary["families"]) == summary["n"]
