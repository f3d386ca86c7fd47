"""Every code of every format of 8 bits or fewer, and every binary16 value rounded into each, against ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fabless.core.errors import InputError
from fabless.number.blocks import PERCENTILE, decode_array, encode_array, greatest, integer_groups, quantise_blocks, rounded
from fabless.number.formats import (
    BF16,
    E2M1,
    E2M3,
    E4M3,
    E5M2,
    E8M0,
    FP16,
    FP32,
    INT4,
    INT8,
    MXFP4,
    MXFP8,
    MXINT8,
    NVFP4,
    format_named,
)  # fmt: skip
from fabless.number.round import decode, encode

NARROW = [
    (E4M3, ml_dtypes.float8_e4m3fn), (E5M2, ml_dtypes.float8_e5m2), (E2M3, ml_dtypes.float6_e2m3fn), (E2M1, ml_dtypes.float4_e2m1fn),
    (E8M0, ml_dtypes.float8_e8m0fnu), (INT8, np.int8), (INT4, ml_dtypes.int4),
]  # fmt: skip
HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal values, NaN equal to NaN, zeros by sign."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return bool(np.all((np.isnan(a) & np.isnan(b)) | ((a == b) & (np.signbit(a) == np.signbit(b)))))


@pytest.mark.parametrize(("format", "oracle"), NARROW, ids=lambda x: getattr(x, "name", None))
def test_every_code_decodes_as_ml_dtypes(format, oracle):
    codes = np.arange(1 << format.bits, dtype=np.uint8)
    expected = codes.view(oracle).astype(np.float64) if format.bits == 8 else _narrow(codes, format, oracle)
    assert same(np.array([decode(int(c), format) for c in codes]), expected)
    assert same(decode_array(codes, format), expected.astype(np.float32))


def _narrow(codes, format, oracle):
    if format is INT4:
        return np.where(codes > 7, codes.astype(int) - 16, codes).astype(np.float64)
    return codes.view(oracle).astype(np.float64)


@pytest.mark.parametrize(("format", "oracle"), NARROW[:4], ids=lambda x: getattr(x, "name", None))
def test_every_binary16_value_rounds_as_ml_dtypes(format, oracle):
    finite = HALVES[np.isfinite(HALVES)]
    top = decode_array(np.array([encode(1e9, format)]), format)[0]
    inside = finite[np.abs(finite) <= top]
    got = decode_array(encode_array(inside, format), format)
    assert same(got, inside.astype(oracle).astype(np.float32))
    beyond = finite[np.abs(finite) > top]
    assert np.all(np.abs(decode_array(encode_array(beyond, format), format)) == top)  # ml_dtypes overflows to NaN here; OCP saturates


def test_binary16_and_bfloat16_round_as_numpy_and_ml_dtypes():
    rng = np.random.default_rng(1)
    bits = np.concatenate([rng.integers(0, 1 << 32, 200_000, dtype=np.uint32), np.arange(0, 1 << 32, 99_991, dtype=np.uint32)])
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        assert np.array_equal(encode_array(x, FP16, saturate=False), x.astype(np.float16).view(np.uint16))
    assert np.array_equal(encode_array(x, BF16, saturate=False), x.astype(ml_dtypes.bfloat16).view(np.uint16))
    assert np.array_equal(encode_array(x, FP32), x.view(np.uint32))


@pytest.mark.parametrize("format", [E4M3, E5M2, E2M3, E2M1, E8M0, INT8, INT4, FP16, BF16, FP32], ids=lambda f: f.name)
@pytest.mark.parametrize("saturate", [True, False])
def test_array_encoder_equals_the_scalar_definition(format, saturate):
    rng = np.random.default_rng(2)
    x = np.concatenate([
        rng.standard_normal(300) * 2.0 ** rng.integers(-140, 130, 300), rng.integers(-300, 300, 100) / 2,
        [0.0, -0.0, np.inf, -np.inf, np.nan, 448, 464, 465, 480, -464, 57344, 61440, 6, 7, 2.0**-126, 2.0**-149, 2.0**-150, 1e300],
    ])  # fmt: skip
    scalar = [encode(float(v), format, saturate=saturate) for v in x]
    assert encode_array(x, format, saturate=saturate).tolist() == scalar


@pytest.mark.parametrize("format", [E4M3, E5M2, E2M3, E2M1, INT8, INT4, FP16, BF16], ids=lambda f: f.name)
def test_encode_inverts_decode(format):
    codes = np.arange(1 << format.bits)
    values = decode_array(codes, format)
    known = np.isfinite(values)
    assert np.array_equal(encode_array(values[known], format), codes[known])


def test_mx_floor_rule_clips_and_ceil_rule_does_not():
    x = np.zeros((1, 32))
    x[0, 0] = 500.0  # floor(log2(500)) = 8 = emax of e4m3: scale 1, clipped to 448
    floor, ceil = (quantise_blocks(x, MXFP8, rule=rule) for rule in ("floor", "ceil"))
    assert (floor.scales[0, 0], floor.values()[0, 0]) == (1.0, 448.0)
    assert (ceil.scales[0, 0], ceil.values()[0, 0]) == (2.0, 512.0 if abs(512 - 500) < abs(480 - 500) else 480.0)


@pytest.mark.parametrize(
    "format", [MXFP8, MXFP4, MXINT8, NVFP4, integer_groups(INT8, 64), integer_groups(INT4, 128, FP32)], ids=lambda f: f.name
)
@pytest.mark.parametrize("choice", ["absmax", "percentile", "mse"])
def test_block_error_is_within_half_a_step_of_what_is_not_clipped(format, choice):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 200)) * 2.0 ** rng.integers(-8, 8, (5, 1))
    blocks = quantise_blocks(x, format, choice=choice, rule="ceil")
    assert blocks.values().shape == x.shape
    assert same(decode_array(blocks.codes, format.element), blocks.elements)
    assert same(decode_array(blocks.scale_codes, format.scale), blocks.scales)
    unit = np.repeat(blocks.scales * blocks.tensor_scale, blocks.elements.shape[-1], -1)[:, :200].astype(np.float64)
    top = greatest(format.element) * unit
    kept = np.abs(x) <= top
    if choice == "absmax":
        assert np.abs(x[~kept] / top[~kept]).max(initial=1) <= 1 + 1 / 16  # only a scale rounded down can clip: half a last place of e4m3
    element_step = 2.0 ** (
        np.floor(np.log2(np.maximum(np.abs(x) / np.maximum(unit, 1e-300), 2.0 ** (1 - format.element.bias)))) - format.element.mantissa_bits
    )
    step = np.ones_like(x) if format.element.kind == "int" else element_step
    assert np.all(np.abs(blocks.values() - x)[kept] <= (step * unit)[kept] * 0.5 * (1 + 1e-6))  # 1e-6: values() rounds once to float32


def test_mse_never_loses_to_absmax():
    x = np.random.default_rng(4).standard_t(3, (8, 256))
    for format in (integer_groups(INT4, 32), MXFP4, NVFP4):
        error = {c: float(((quantise_blocks(x, format, choice=c).values() - x) ** 2).sum()) for c in ("absmax", "mse")}
        assert error["mse"] <= error["absmax"] * (1 + 1e-9)  # the candidates contain absmax; values() rounds to float32
    assert 0 < PERCENTILE < 100


def test_per_channel_is_one_block_a_row():
    blocks = quantise_blocks(np.ones((3, 100)), integer_groups(INT8, 32), block_values=100)
    assert blocks.scales.shape == (3, 1)
    assert np.abs(blocks.values() - 1).max() <= 2.0**-11  # one rounding of the fp16 scale


def test_formats_are_known_by_name():
    assert format_named("int4_block128").block_values == 128
    assert format_named("int8_block64_bf16").scale is BF16


def test_nan_is_refused_by_name():
    with pytest.raises(InputError, match=r"mxfp4: 1 values are NaN or infinite; clean the tensor before quantising"):
        quantise_blocks(np.array([1.0, np.nan]), MXFP4)


def test_codes_too_wide_are_refused():
    with pytest.raises(InputError, match="int4: code 16 does not fit 4 bits"):
        decode(16, INT4)


def test_rounding_saturates():
    assert rounded([1000.0], E4M3)[0] == 448
