"""The RTL's arithmetic in Verilator against its NumPy twins: directed-random vectors, small domains whole."""

import numpy as np
import pytest

from fabless.number import arrays, functions

pytest.importorskip("amaranth", reason="the RTL needs the extra 'rtl'")

from leaf_vectors import Conversions, Quantiser, Reducer, any_codes, canonical, dots, pairs, quantisations, reductions

from fabless.program.tile import TINY
from fabless.rtl.bench.build import tools
from fabless.rtl.bench.leaf import computed, run_leaf
from fabless.rtl.floating import FloatAdd, FloatMultiply
from fabless.rtl.functions import EXP2, RCP, RSQRT, FunctionUnit
from fabless.rtl.row import Row
from fabless.sim.machine import decode_elements

pytestmark = pytest.mark.skipif(
    not all(t.found for t in tools()), reason=f"not installed: {', '.join(t.name for t in tools() if not t.found)}; see 'fabless doctor'"
)

#: Vectors of a nightly run, in runs of MOST.
MANY, MOST = 20_000_000, 2_000_000
ARITHMETIC = pytest.mark.parametrize(("kind", "operation"), [(FloatAdd, arrays.add), (FloatMultiply, arrays.mul)], ids=["add", "multiply"])
SUMS = pytest.mark.parametrize("kind", ["sum", "max", "argmax"])
SCOPES = pytest.mark.parametrize("scope", ["block", "row"])


def same(got, want, *operands):
    """Hold codes against those of the twin; the message names the first that differ, with their operands."""
    assert len(got) == len(want)
    wrong = np.flatnonzero((got != want).reshape(len(want), -1).any(axis=1))
    assert len(wrong) == 0, f"{len(wrong)} differ: {[(i, *(x[i] for x in operands), got[i], want[i]) for i in wrong[:4]]}"


def check_arithmetic(kind, operation, n, seed):
    a, b = pairs(np.random.default_rng(seed), n)
    got = computed(kind, kind.LATENCY, {"a": a, "b": b})
    same(got, operation(a.view(np.float32), b.view(np.float32)).view(np.uint32), a, b)


def check_dots(n, seed):
    inputs, known, shown = dots(np.random.default_rng(seed), n, 64, TINY.weight_words)
    got = run_leaf(Row, inputs)["vector_data"][:, 0]
    assert known.sum() == n
    same(got[known], shown[known])


def check_reductions(kind, n, seed):
    inputs, want = reductions(np.random.default_rng(seed), kind, n, TINY.vector_lanes)
    got = run_leaf(Reducer, inputs)
    same(got["code"][got["done"][:, 0] == 1, 0], want)
    return int(inputs["valid"].sum()) * TINY.vector_lanes


def check_quantisations(scope, n, seed):
    inputs, q, scale = quantisations(np.random.default_rng(seed), scope, n, TINY.vector_lanes)
    got = run_leaf(Quantiser, inputs)
    written = got["write"][:, 0] == 1
    same(got["scale"][written, 0], scale)
    same(np.ascontiguousarray(got["block"][written]).view(np.int8), q)
    return q.size


@ARITHMETIC
def test_half_a_million_pairs_round_as_numpy_does(kind, operation):
    check_arithmetic(kind, operation, 1 << 19, 11)


@pytest.mark.parametrize(
    ("index", "twin"),
    [(EXP2, functions.exp2_array), (RCP, functions.rcp_array), (RSQRT, functions.rsqrt_array)],
    ids=["exp2", "rcp", "rsqrt"],
)
def test_functions_on_every_upper_half_and_random_lower_ones(index, twin):
    high = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    low = np.random.default_rng(5).integers(0, 1 << 16, (8, 1 << 16), dtype=np.uint32)
    x = canonical(np.concatenate([high, *(high | row for row in low)]))
    got = computed(FunctionUnit, FunctionUnit.LATENCY, {"x": x, "fn": np.full(len(x), index, np.uint32)})
    same(got, twin(x.view(np.float32)).view(np.uint32), x)


def test_every_code_of_every_format_is_converted():
    """All codes of up to 16 bits, and for bf16 every upper half with the lower halves at and beside ties: nothing else of a lower half matters."""
    small = np.arange(1 << 16, dtype=np.uint32)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    wide = canonical((small[:, None] << np.uint32(16) | lower).reshape(-1))
    code = np.concatenate([small, small, wide])
    option = np.repeat(np.array([0, 1, 0], np.uint32), [len(small), len(small), len(wide)])
    latency = Conversions.LATENCY
    got = run_leaf(Conversions, {"code": np.append(code, 0), "option": np.append(option, 0)})
    plain, other, tail = ({n: v[latency:, 0][part] for n, v in got.items()} for part in np.split(np.arange(len(code)), [1 << 16, 1 << 17]))

    def upper(format, bits, codes):
        raw = codes.astype(np.uint16 if bits == 16 else np.uint8)[None].view(np.uint8)
        return decode_elements(raw, format)[0].view(np.uint32) >> (16 if format == "bf16" else 13)

    bytes_ = small[:256]
    for part, suffix, four in ((plain, "", "int4"), (other, "_half", "e2m1")):
        same(part["fp16"], upper("fp16", 16, small), small)
        same(part["bf16_flushed"], upper("bf16", 16, small), small)
        same(part["e4m3"][:256], upper(f"e4m3{suffix}", 8, bytes_), bytes_)
        same(part["e8m0"][:256], upper(f"e8m0{suffix}", 8, bytes_), bytes_)
        same(part["nibble"][:16].astype(np.uint8).view(np.int8), decode_elements(bytes_[:16].astype(np.uint8)[None], four)[0][0::2], bytes_)
        same(part["from_int8"][:256], bytes_.astype(np.uint8).view(np.int8).astype(np.float32).view(np.uint32), bytes_)
        same(part["from_index"][: 1 << 14], small[: 1 << 14].astype(np.float32).view(np.uint32), small)
    same(tail["to_bf16"], arrays.bf16_codes(wide.view(np.float32)), wide)


def test_a_row_accumulates_as_the_block_dot_product_does():
    check_dots(200_000, 1)


@SUMS
def test_rows_reduce_in_the_machines_order(kind):
    check_reductions(kind, 60_000, 2)


@SCOPES
def test_blocks_quantise_as_numpy_does(scope):
    check_quantisations(scope, 60_000, 3)


def test_a_wrong_twin_is_noticed():
    with pytest.raises(AssertionError, match=r"differ: \[\("):
        check_arithmetic(FloatAdd, arrays.sub, 1000, 1)


nightly = [pytest.mark.nightly, pytest.mark.timeout(3600)]


class TestTwentyMillionVectors:
    pytestmark = nightly

    @ARITHMETIC
    def test_arithmetic(self, kind, operation, record_property):
        for seed in range(MANY // MOST):
            check_arithmetic(kind, operation, MOST, 100 + seed)
        record_property(f"pairs through {kind.module}", MANY)

    def test_dots(self, record_property):
        for seed in range(2 * MANY // MOST):
            check_dots(MOST // 2, 200 + seed)
        record_property("steps of a row", MANY)

    @SUMS
    def test_reductions(self, kind, record_property):
        done, seed = 0, 300
        while done < MANY:
            done, seed = done + check_reductions(kind, MOST, seed), seed + 1
        record_property(f"elements reduced to {kind}", done)

    @SCOPES
    def test_quantisations(self, scope, record_property):
        done, seed = 0, 400
        while done < MANY:
            done, seed = done + check_quantisations(scope, MOST, seed), seed + 1
        record_property(f"elements quantised by {scope}", done)

    def test_to_bf16_of_any_codes(self, record_property):
        for seed in range(MANY // MOST):
            code = canonical(any_codes(np.random.default_rng(500 + seed), MOST))
            same(computed(Conversions, Conversions.LATENCY, {"code": code}, "to_bf16"), arrays.bf16_codes(code.view(np.float32)), code)
        record_property("codes rounded to bf16", MANY)
