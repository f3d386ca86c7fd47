"""The study's fast rounding and the executed weight blocks equal `number.blocks`, which is written apart from both."""

import numpy as np
import pytest

from fabless.model.block_weights import block_matrix
from fabless.model.quality import Scheme
from fabless.number.blocks import integer_groups, quantise_blocks
from fabless.number.formats import E2M1, E4M3, FP32, INT4, INT4_BLOCK32, INT8, INT8_BLOCK32, MXFP4, MXFP8, MXINT8, NVFP4

CASES = {
    "int8 fp16": (Scheme(INT8, 32, "fp16"), INT8_BLOCK32, {}),
    "int4 fp32": (Scheme(INT4, 32, "fp32"), integer_groups(INT4, 32, FP32), {}),
    "int8 channel": (Scheme(INT8), integer_groups(INT8, 96, FP32), {}),
    "mxfp8 floor": (Scheme(E4M3, 32, "e8m0_floor"), MXFP8, {}),
    "mxfp8 up": (Scheme(E4M3, 32, "e8m0_up"), MXFP8, {"rule": "ceil"}),
    "mxfp4": (Scheme(E2M1, 32, "e8m0_floor"), MXFP4, {}),
    "nvfp4": (Scheme(E2M1, 16, "e4m3"), NVFP4, {}),
}


def _weights():
    rng = np.random.default_rng(4)
    return (rng.standard_normal((60, 96)) * 2.0 ** rng.integers(-9, 3, (60, 1))).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_schemes_round_as_the_block_formats(case):
    scheme, format, options = CASES[case]
    x = _weights()
    blocks = quantise_blocks(x, format, **options)
    ours = scheme.round(x)
    theirs = blocks.values()
    # binary32 here, binary64 there: three roundings of 2^-24 each; a quotient that near a tie may go either way, then one step apart
    equal = np.isclose(ours, theirs, rtol=3 * 2.0**-24, atol=0)
    step = (
        np.diff(np.unique(blocks.elements)).max() * np.repeat(blocks.scales, x.shape[1] // blocks.scales.shape[1], 1) * blocks.tensor_scale
    )
    assert equal.mean() > 0.999
    assert (np.abs(ours - theirs) <= step).all()


@pytest.mark.parametrize(
    ("format", "rule"), [(INT8_BLOCK32, "floor"), (INT4_BLOCK32, "floor"), (MXINT8, "ceil"), (MXFP4, "floor"), (NVFP4, "floor")]
)
def test_executed_blocks_equal_the_block_formats(format, rule):
    x = _weights()
    ours, theirs = block_matrix(x, format).rows(np.arange(60)), quantise_blocks(x, format, rule=rule).values()
    assert (ours == theirs).mean() > 0.99 if format == NVFP4 else (ours == theirs).all()
