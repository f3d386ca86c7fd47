"""Machine arithmetic: scalar definitions against exact fractions and NumPy, array twins against the scalars, functions over every significand."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabless.number import arrays, functions
from fabless.number import round as scalar
from fabless.number.dot import block_dot, gemm, gemm_fast
from fabless.number.kernels import accumulate_blocks, make_accumulate
from fabless.number.quantise import quantise, quantise_block

CODES = st.integers(0, (1 << 32) - 1)
EDGES = [
    0, 0x80000000, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x00800001, 0x80800000, 0x3F800000, 0x3F7FFFFF, 0x3F800001, 0xBF800000, 0x7F7FFFFF,
    0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0x43000000, 0x42FFFFFF, 0xC2FC0000, 0xC2FC0001, 0xC2FBFFFF,
    0x7E800000, 0x7E800001, 0x7F000000, 0x33000000, 0xB3000000, 0x2F000000, 0xAF000000,
]  # fmt: skip


def values(codes):
    return np.array(codes, np.uint32).view(np.float32)


def bits(x):
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def sample(rng, n):
    """Codes of every kind: any bits, and numbers near each other in magnitude so that sums cancel."""
    near = (rng.standard_normal(n) * 2.0 ** rng.integers(-130, 5, n)).astype(np.float32).view(np.uint32)
    return np.concatenate([rng.integers(0, 1 << 32, n, dtype=np.uint32), near, np.array(EDGES, np.uint32)])


@pytest.mark.parametrize("name", ["add", "sub", "mul", "max", "min"])
def test_array_operations_equal_the_scalar_definitions(name):
    rng = np.random.default_rng(1)
    a = arrays.canonical(values(sample(rng, 4000)))
    b = arrays.canonical(values(rng.permutation(sample(rng, 4000))))
    b[:500] = -np.nextafter(a[:500], np.float32(1))  # sums of a few last places
    b = arrays.canonical(b)
    array = getattr(arrays, {"max": "maximum", "min": "minimum"}.get(name, name))
    one = getattr(scalar, f"fp32_{name}")
    assert bits(array(a, b)).tolist() == [one(int(p), int(q)) for p, q in zip(bits(a), bits(b), strict=True)]


@settings(deadline=None)  # a shared machine may pause
@given(CODES, CODES)
def test_sums_and_products_are_the_nearest_machine_values(a, b):
    x, y = scalar.fp32_value(a), scalar.fp32_value(b)
    if not (math.isfinite(x) and math.isfinite(y)):
        return
    for code, exact in ((scalar.fp32_add(a, b), Fraction(x) + Fraction(y)), (scalar.fp32_mul(a, b), Fraction(x) * Fraction(y))):
        assert code == scalar.flush(code)
        got = scalar.fp32_value(code)
        if abs(exact) >= Fraction(2) ** 128 * (1 - Fraction(1, 1 << 25)):
            assert math.isinf(got)
        elif code == 0:
            assert abs(exact) < Fraction(2) ** -126
        else:
            step = Fraction(2) ** (max(scalar.floor_log2(abs(exact)), -126) - 23)
            assert abs(Fraction(got) - exact) <= step / 2


def test_products_are_flushed_after_gradual_rounding():
    """(1 - 2^-24) * 2^-126 becomes 2^-126, the next product below it +0: what the hardware's AND of 24 ones decides."""
    one_less, half_least = 0x3F7FFFFF, 0x00800000
    assert scalar.fp32_mul(one_less, half_least) == 0x00800000
    assert scalar.fp32_mul(0x3F7FFFFE, half_least) == 0
    assert scalar.fp32_mul(0xBF7FFFFE, half_least) == 0  # and never -0
    assert scalar.fp32_add(0x00800001, 0x80800000) == 0  # a subnormal difference


@pytest.mark.parametrize("n", [1, 31, 32, 33, 128, 129, 576, 1000])
def test_row_sum_equals_the_scalar_tree(n):
    rng = np.random.default_rng(n)
    x = arrays.canonical((rng.standard_normal((2, n)) * 2.0 ** rng.integers(-30, 30, (2, n))).astype(np.float32))
    assert bits(arrays.row_sum(x)).tolist() == [scalar.fp32_sum(row) for row in bits(x).tolist()]


def test_row_sum_pads_without_changing_bits():
    x = arrays.canonical(np.random.default_rng(0).standard_normal((3, 70)).astype(np.float32))
    assert np.array_equal(bits(arrays.row_sum(x)), bits(arrays.row_sum(np.pad(x, ((0, 0), (0, 500))))))


def test_row_max_and_argmax():
    x = values([0x3F800000, 0x40000000, 0x40000000, 0xFF800000])[None]
    assert (float(arrays.row_max(x)[0]), float(arrays.row_argmax(x)[0])) == (2.0, 1.0)
    x[0, 3] = np.nan
    assert bits(arrays.row_max(x))[0] == 0x7FC00000
    assert arrays.row_argmax(x)[0] == 3


def test_bf16_codes_equal_the_scalar():
    x = arrays.canonical(values(sample(np.random.default_rng(3), 3000)))
    assert arrays.bf16_codes(x).tolist() == [scalar.bf16_of_fp32(int(c)) for c in bits(x)]


@pytest.mark.parametrize(
    ("code", "integer"),
    [(0x3F000000, 0), (0x3FC00000, 2), (0xC0200000, -2), (0x7FC00000, 0), (0x7F800000, 2**31 - 1), (0xFF800000, -(2**31))],
)
def test_fp32_to_int(code, integer):
    assert scalar.fp32_to_int(code) == integer


# Functions.


@pytest.mark.parametrize("name", ["exp2", "rcp", "rsqrt", "sigmoid"])
def test_function_arrays_equal_the_scalars(name):
    codes = sample(np.random.default_rng(4), 3000)
    codes = np.concatenate([codes, np.random.default_rng(5).uniform(-130, 130, 3000).astype(np.float32).view(np.uint32)])
    got = getattr(functions, f"{name}_array")(arrays.canonical(values(codes)))
    assert bits(got).tolist() == [getattr(functions, name)(int(c)) for c in codes]


def ulps(got, exact):
    return float((np.abs(got.astype(np.float64) - exact) / 2.0 ** (np.floor(np.log2(exact)) - 23)).max())


SIGNIFICANDS = (np.arange(1 << 23, dtype=np.uint32) | 0x3F800000).view(np.float32)


def test_errors_over_every_significand_are_as_stated():
    """The bounds of the docstring; binary64 references are themselves within 2^-29 of a unit, far below the third digit."""
    m = SIGNIFICANDS
    assert ulps(functions.rcp_array(m), 1 / m.astype(np.float64)) <= 0.95
    for x in (m, 2 * m):
        assert ulps(functions.rsqrt_array(x), 1 / np.sqrt(x.astype(np.float64))) <= 0.70
    for x in (m - 1, 1 - m, (m - 1) * np.float32(-125)):
        assert ulps(functions.exp2_array(x), np.exp2(x.astype(np.float64))) <= 0.57


def test_functions_are_monotonic_over_every_significand():
    m = SIGNIFICANDS
    assert np.all(np.diff(functions.rcp_array(m)) <= 0)
    assert np.all(np.diff(functions.rsqrt_array(np.concatenate([m, 2 * m]))) <= 0)
    assert np.all(np.diff(functions.exp2_array(m - 1)) >= 0)


def test_every_bfloat16_argument_of_each_function():
    """All 2^16: the exhaustive domain that activations in bf16 would have."""
    codes = np.arange(1 << 16, dtype=np.uint32) << 16
    x = arrays.canonical(values(codes))
    with np.errstate(all="ignore"):
        references = {"exp2": np.exp2(x.astype(np.float64)), "rcp": 1 / x.astype(np.float64), "rsqrt": 1 / np.sqrt(x.astype(np.float64))}
    for name, exact in references.items():
        got = getattr(functions, f"{name}_array")(x)
        inside = np.isfinite(exact) & (np.abs(exact) >= 2.0**-126) & (np.abs(exact) < 2.0**128)
        assert ulps(np.abs(got[inside]), np.abs(exact[inside])) <= 0.95, name
        assert np.all(got[np.abs(exact) < 2.0**-127] == 0), name
        assert np.array_equal(np.isnan(got), np.isnan(exact)), name


@pytest.mark.parametrize(("name", "x", "y"), [
    ("exp2", 0.0, 1.0), ("exp2", -126.0, 2.0**-126), ("exp2", 127.0, 2.0**127), ("exp2", 128.0, math.inf), ("exp2", -math.inf, 0.0),
    ("exp2", -(2.0**100), 0.0), ("rcp", 4.0, 0.25), ("rcp", 0.0, math.inf), ("rcp", -math.inf, 0.0), ("rcp", 2.0**127, 0.0),
    ("rsqrt", 16.0, 0.25), ("rsqrt", 0.0, math.inf), ("rsqrt", math.inf, 0.0), ("sigmoid", 0.0, 0.5), ("sigmoid", -1000.0, 0.0),
    ("sigmoid", 1000.0, 1.0),
])  # fmt: skip
def test_exact_points(name, x, y):
    assert getattr(functions, name)(scalar.fp32_bits(x)) == scalar.fp32_bits(y)


def test_tables_are_these():
    """The ROM contents are part of the contract: a change of one bit changes results."""
    from fabless.core.digest import digest

    roms = {name: list(getattr(functions, f"{name}_rom")()) for name in ("exp2", "rcp", "rsqrt")}
    assert digest(roms) == "cc3b9822e303954c"
    assert [int(functions.exp2_rom().c0[i]) for i in (0, 64)] == [1 << 28, round(2**28.5)]


# Quantising and the block dot product.


def test_quantise_equals_the_scalar():
    rng = np.random.default_rng(6)
    for case in range(60):
        x = arrays.canonical((rng.standard_normal(32) * 2.0 ** rng.integers(-140, 120)).astype(np.float32))
        if case % 10 == 3:
            x[5] = np.inf
        if case % 10 == 7:
            x[9] = np.nan
        q, scale = quantise(x[None])
        assert (q[0, 0].tolist(), int(bits(scale)[0, 0])) == quantise_block(bits(x).tolist())
        assert int(bits(scale)[0, 0]) & 0xFFFF == 0


def test_quantising_never_clips_and_errs_by_half_a_step():
    x = arrays.canonical(np.random.default_rng(7).standard_normal((50, 64)).astype(np.float32))
    for scope in ("block", "row"):
        q, scale = quantise(x, scope=scope)
        error = np.abs(q * scale[..., None].astype(np.float64) - x.reshape(50, 2, 32))
        assert np.all(
            error <= scale[..., None] * (0.5 + 127 * 2.0**-23)
        )  # the product with the reciprocal adds at most two last places of 127
        assert scope == "block" or np.all(scale[:, 0] == scale[:, 1])


def operands(rng, m, n, k, spread):
    w = rng.integers(-128, 128, (k, n, 32)).astype(np.int8)
    a = rng.integers(-127, 128, (m, k, 32)).astype(np.int8)
    sw = (bits(rng.standard_normal((k, n)) * 2.0 ** rng.integers(-spread, spread + 1, (k, n))) & 0xFFFFE000).view(np.float32)
    sa = (bits(rng.random((m, k)) * 2.0 ** rng.integers(-spread, spread + 1, (m, k))) & 0xFFFF0000).view(np.float32)
    return w, arrays.canonical(sw), a, arrays.canonical(sa)


@settings(deadline=None)  # the first call compiles
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 6), st.sampled_from([0, 8, 40, 70]), st.integers(0, 1 << 32))
def test_gemm_twins_equal_the_scalar_contract(m, n, k, spread, seed):
    rng = np.random.default_rng(seed)
    w, sw, a, sa = operands(rng, m, n, k, spread)
    out = gemm(w, sw, a, sa)
    assert np.array_equal(bits(out), bits(gemm_fast(w, sw, a, sa)))
    i, o = int(rng.integers(m)), int(rng.integers(n))
    assert int(bits(out)[i, o]) == block_dot(w[:, o].tolist(), bits(sw[:, o]).tolist(), a[i].tolist(), bits(sa[i]).tolist())


def test_every_code_path_of_the_kernel_agrees():
    rng = np.random.default_rng(9)
    w, sw, a, sa = operands(rng, 3, 44, 7, 40)
    w[0], a[:, 0] = -128, 127
    for vnni in (False, True) if has_vnni() else (False,):
        out = np.zeros((3, 44), np.float32)
        accumulate_blocks(w, sw, a, sa, out, make_accumulate(vnni=vnni))
        assert np.array_equal(bits(arrays.canonical(out)), bits(gemm(w, sw, a, sa))), vnni


def has_vnni():
    from fabless.number.kernels import has_vnni

    return has_vnni()


def test_cutting_k_into_chunks_changes_no_bit():
    w, sw, a, sa = operands(np.random.default_rng(10), 2, 12, 9, 8)
    whole, parts = gemm(w, sw, a, sa), None
    for first, last in ((0, 2), (2, 3), (3, 9)):
        parts = gemm(w[first:last], sw[first:last], a[:, first:last], sa[:, first:last], parts)
    assert np.array_equal(bits(whole), bits(parts))


def test_contraction_or_reordering_would_be_noticed():
    """A case where fused multiply-add, float64 accumulation or another order of k gives another bit: the oracle can fail."""
    w, sw, a, sa = operands(np.random.default_rng(11), 1, 64, 16, 6)
    exact = gemm(w, sw, a, sa)
    isum = np.einsum("knj,kj->kn", w.astype(np.int64), a[0].astype(np.int64))
    scale = sw.astype(np.float64) * sa[0][:, None]
    assert not np.array_equal(exact[0], (isum * scale).sum(axis=0).astype(np.float32))
    assert not np.array_equal(exact, gemm(w[::-1], sw[::-1], a[:, ::-1], sa[:, ::-1]))
    fused = np.zeros(64, np.float32)
    for k in range(16):
        fused = (fused + isum[k] * scale[k]).astype(np.float32)  # exact in binary64 but for the last rounding
    assert not np.array_equal(exact[0], fused)
