"""Kernel tables of five GPUs through `validate`: chips named by their files, every row predicted."""

from pathlib import Path

import numpy as np
import pytest

from fabless.validate.validation import validate

KERNELS = Path(__file__).parents[2] / "../shared/data/silicon/kernels"
pytestmark = pytest.mark.skipif(not KERNELS.exists(), reason="the kernel tables are not beside this checkout")


@pytest.mark.parametrize(("pattern", "bar"), [("*_gemm_*", 0.08), ("*_attention_*", 0.10)])
def test_kernels_of_all_chips_are_predicted_within_the_bar(pattern, bar):
    errors, chips = [], set()
    for path in sorted(KERNELS.glob(f"{pattern}.csv")):
        result = validate(path)
        assert result.skipped == ()
        errors += [abs(r.error) for r in result.rows]
        chips |= {r.chip for r in result.rows}
    assert len(chips) == 5
    assert float(np.median(errors)) <= bar
