"""The RTL's arithmetic in Verilator: additions and multiplications against NumPy on directed-random vectors, functions on every bf16 code."""

import numpy as np
import pytest

from fabless.number import arrays, functions

pytest.importorskip("amaranth", reason="the RTL needs the extra 'rtl'")

from fabless.rtl.bench.build import tools
from fabless.rtl.bench.leaf import run_leaf
from fabless.rtl.floating import FloatAdd, FloatMultiply
from fabless.rtl.functions import EXP2, RCP, RSQRT, FunctionUnit

pytestmark = pytest.mark.skipif(
    not all(t.found for t in tools()), reason=f"not installed: {', '.join(t.name for t in tools() if not t.found)}; see 'fabless doctor'"
)

N = 1 << 21
CORNERS = np.array(
    [0, 0x00800000, 0x00800001, 0x00FFFFFF, 0x3F7FFFFF, 0x3F800000, 0x3F800001, 0x7F7FFFFF, 0x7F800000, 0x7FC00000], np.uint32
)


def canonical(codes):
    return arrays.canonical(codes.astype(np.uint32).view(np.float32)).view(np.uint32)


def pairs(seed):
    """Return pairs of codes: any bits; near exponents; all but equal magnitudes; products at the edge of underflow; every pair of corners."""
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 1 << 32, N, dtype=np.uint64).astype(np.uint32) for _ in range(2))
    quarter = N // 4
    near = slice(0, quarter)
    b[near] = a[near] & 0x7F800000 ^ (b[near] & 0x80FFFFFF)
    close = slice(quarter, 2 * quarter)
    b[close] = a[close] ^ 0x80000000 ^ (b[close] & 7)
    edge = slice(2 * quarter, 3 * quarter)
    b[edge] = b[edge] & 0x807FFFFF | (
        ((127 + 126 - (a[edge] >> 23 & 255).astype(np.int64) - rng.integers(-2, 26, quarter)) & 255) << 23
    ).astype(np.uint32)
    signed = np.concatenate([CORNERS, CORNERS | np.uint32(0x80000000)])
    x, y = (g.reshape(-1) for g in np.meshgrid(signed, signed))
    return canonical(np.concatenate([a, x])), canonical(np.concatenate([b, y]))


@pytest.mark.parametrize(("kind", "operation"), [(FloatAdd, arrays.add), (FloatMultiply, arrays.mul)], ids=["add", "multiply"])
def test_two_million_pairs_round_as_numpy_does(kind, operation):
    a, b = pairs(11)
    got = run_leaf(kind, kind.LATENCY, a, b)
    want = operation(a.view(np.float32), b.view(np.float32)).view(np.uint32)
    wrong = np.flatnonzero(got != want)
    assert len(wrong) == 0, [(hex(a[i]), hex(b[i]), hex(got[i]), hex(want[i])) for i in wrong[:4]]


@pytest.mark.parametrize(
    ("index", "twin"),
    [(EXP2, functions.exp2_array), (RCP, functions.rcp_array), (RSQRT, functions.rsqrt_array)],
    ids=["exp2", "rcp", "rsqrt"],
)
def test_functions_on_every_upper_half_and_random_lower_ones(index, twin):
    high = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    low = np.random.default_rng(5).integers(0, 1 << 16, (8, 1 << 16), dtype=np.uint32)
    x = canonical(np.concatenate([high, *(high | row for row in low)]))
    got = run_leaf(FunctionUnit, FunctionUnit.LATENCY, x, np.full(len(x), index, np.uint32))
    want = twin(x.view(np.float32)).view(np.uint32)
    wrong = np.flatnonzero(got != want)
    assert len(wrong) == 0, [(hex(x[i]), hex(got[i]), hex(want[i])) for i in wrong[:4]]
