"""Weights in blocks: every code is the nearest, every scale follows its rule, by brute force over all codes."""

import math

import numpy as np
import pytest

from fabless.core.errors import UnsupportedError
from fabless.model.block_weights import EXECUTED, block_matrix, paired
from fabless.number.formats import BF16, E2M1, E4M3, FP16, INT4_BLOCK32, INT8_BLOCK32, MXFP4, MXINT8, NVFP4
from fabless.number.round import decode, encode

E2M1_DOUBLED = sorted({int(2 * decode(c, E2M1)) for c in range(16)})


def _weights(rows=7, columns=70):
    rng = np.random.default_rng(2)
    return (rng.standard_normal((rows, columns)) * 10.0 ** rng.uniform(-5, 1, (rows, 1))).astype(np.float32)


def _scale(format, amax, post):
    if format in (INT8_BLOCK32, INT4_BLOCK32):
        return decode(encode(float(np.float32(amax) / np.float32(127 if format == INT8_BLOCK32 else 7)), FP16), FP16)
    if amax == 0:
        return 0.0
    if format == MXINT8:
        return 2.0 ** math.ceil(math.log2(amax / 127))
    if format == MXFP4:
        return 2.0 ** (math.floor(math.log2(amax)) - 2) / 2
    return decode(encode(float(np.float32(amax) / np.float32(6) / np.float32(post)), E4M3), E4M3) / 2


@pytest.mark.parametrize("format", EXECUTED, ids=lambda f: f.name)
def test_scales_and_codes_by_brute_force(format):
    array = _weights()
    matrix = block_matrix(array, format)
    allowed = E2M1_DOUBLED if format in (MXFP4, NVFP4) else range(-7, 8) if format == INT4_BLOCK32 else range(-127, 128)
    size = 16 if format == NVFP4 else 32
    for row in range(len(array)):
        for b in range(matrix.scales.shape[0]):
            block = array[row, b * size : (b + 1) * size]
            scale = _scale(format, np.abs(block).max(initial=0), matrix.post_scale)
            assert matrix.scales[b, row] == scale
            lanes = matrix.codes[b, row]
            used = lanes[16 * (b % 2) :][:16] if matrix.split else lanes
            assert set(used.tolist()) <= set(allowed)
            if scale:
                step = scale * matrix.post_scale
                for value, code in zip(block, used, strict=False):
                    nearest = min(abs(float(value) / step - c) for c in allowed)
                    # division in binary32 may move a ratio by half a unit in the last place, 2^-17 of the greatest code
                    assert abs(float(value) / step - code) <= nearest + 2.0**-16
            if matrix.split:
                assert not lanes[16 * (1 - b % 2) :][:16].any()


@pytest.mark.parametrize("format", EXECUTED, ids=lambda f: f.name)
def test_rows_and_product_are_of_the_same_matrix(format):
    array = _weights(rows=5, columns=64)
    matrix = block_matrix(array, format)
    identity = np.eye(64, dtype=np.int8).reshape(64, 2, 32)
    ones = np.ones((64, 2), np.float32)
    np.testing.assert_array_equal(matrix.product(identity, ones).T, matrix.rows(np.arange(5)))
    np.testing.assert_array_equal(matrix.product(identity, ones, compiled=False).T, matrix.rows(np.arange(5)))


def test_zero_and_padding_stay_zero():
    matrix = block_matrix(np.zeros((3, 40), np.float32))
    assert not matrix.codes.any()
    assert not matrix.scales.any()
    padded = block_matrix(np.ones((1, 33), np.float32))
    assert padded.codes[1, 0].tolist() == [127] + [0] * 31
    assert padded.rows(np.array([0])).shape == (1, 33)


def test_paired_rows_are_rotary_partners():
    assert paired(np.arange(8, dtype=np.float32), 8).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    rows = paired(np.arange(16, dtype=np.float32).reshape(8, 2), 4)
    assert rows[:, 0].tolist() == [0, 4, 2, 6, 8, 12, 10, 14]


def test_format_that_is_not_executed_is_named():
    with pytest.raises(UnsupportedError, match="bf16 weights are not executed; choose one of int8_block32"):
        block_matrix(np.ones((1, 32), np.float32), BF16)
