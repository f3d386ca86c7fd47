"""The blocks whose mutants are drawn: Verilog, vectors, and what their inputs may be."""

from __future__ import annotations

from functools import partial

import leaf_vectors as leaf
import numpy as np
import row_vectors
from equivalence import Contract, canonical
from mutation import Subject, Vectors, columns

from fabless.number import arrays, functions
from fabless.program.isa import FUNCTIONS, LOWEST_BITS, PRE
from fabless.program.tile import TINY
from fabless.rtl.bench.leaf import run_leaf
from fabless.rtl.block import Shared
from fabless.rtl.emit import verilog_of
from fabless.rtl.functions import FunctionUnit
from fabless.rtl.lane import INDEX_BITS, Lane
from fabless.rtl.row import Row

CODE = 32, canonical


def _verilog(kind, tile=TINY) -> str:
    return verilog_of(kind(Shared(tile)))


def _behind(known: np.ndarray, codes: np.ndarray, latency: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what is known, and the codes `[cycles]`, so many cycles later."""
    codes = np.concatenate([np.zeros(latency, np.uint32), codes[:-latency]])
    return np.concatenate([np.zeros(latency, bool), known[:-latency]]), codes.reshape(-1, 1)


def _one_word(inputs: dict) -> dict:
    return {name: np.asarray(v, np.uint32).reshape(len(v), -1) for name, v in inputs.items()}


def _row(cycles: int, seed: int) -> Vectors:
    drawn = row_vectors.Vectors(cycles, seed)
    shown = drawn.expected()
    known = np.array([code is not None for code in shown])
    return Vectors(
        {name: columns(drawn.rows[name], width) for name, width in drawn.inputs.items()},
        {"vector_data": (known, columns([code or 0 for code in shown], 32))},
    )


def _lane(cycles: int, seed: int) -> Vectors:
    """Draw operands and index anew in each cycle, controls for 64 cycles at a time; nothing is known while controls of two times are in flight."""
    rng, each = np.random.default_rng(seed), 64
    n, limit = cycles // each * each, 1 << INDEX_BITS
    x, y = leaf.pairs(rng, n)
    order = rng.permutation(len(x))[:n]
    x, y = x[order], y[order]
    index = rng.integers(0, limit, n)

    def control(values):
        return np.repeat(values, each)

    times = n // each
    kind = rng.integers(0, 9, times)  # seven values of pre, mask, rotate
    pre = control(np.where(kind < len(PRE), kind, 0))
    mask, rotate = control(kind == 7), control(kind == 8)
    minus, lowest = control(rng.integers(0, 2, times)), control(rng.integers(0, 2, times))
    low, high = (control(rng.choice([0, 1, limit // 2, limit - 1, limit, *rng.integers(0, limit, 8)], times)) for _ in range(2))
    index = np.where(rng.random(n) < 0.4, (np.where(rng.random(n) < 0.5, low, high) + rng.integers(-1, 2, n)) % limit, index)
    as_code = index.astype(np.float32).view(np.uint32)
    one_off = as_code ^ (np.uint32(1) << rng.integers(0, 32, n).astype(np.uint32))
    y = np.where(pre == PRE.index("exclude"), np.where(rng.random(n) < 0.5, as_code, leaf.canonical(one_off)), y)
    # equal operands, and those that differ in one bit or in their last places
    close = np.where(rng.random(n) < 0.5, np.uint32(1) << rng.integers(0, 32, n).astype(np.uint32), rng.integers(0, 4, n).astype(np.uint32))
    y = np.where((rng.random(n) < 0.2) & (pre != PRE.index("exclude")), leaf.canonical(x ^ close), y)
    a, b = x.view(np.float32), y.view(np.float32)
    results = {
        "copy": a, "add": arrays.add(a, b), "sub": arrays.sub(a, b), "mul": arrays.mul(a, b), "max": arrays.maximum(a, b),
        "min": arrays.minimum(a, b), "exclude": np.where(as_code == y, np.uint32(LOWEST_BITS).view(np.float32), a),
    }  # fmt: skip
    want = np.select([pre == i for i in range(len(PRE))], [results[name] for name in PRE])
    inside = (low <= index) & (index < high)
    want = np.where(mask, np.where(inside, a, np.where(lowest, np.uint32(LOWEST_BITS).view(np.float32), np.float32(0))), want)
    products = arrays.mul(a, b)
    before = np.concatenate([np.zeros(1, np.float32), products[:-1]])
    want = np.where(rotate, np.where(minus, arrays.sub(before, products), arrays.add(before, products)), want).astype(np.float32)
    at = np.arange(n) % each
    known = (at > Lane.LATENCY) & (at < each - Lane.LATENCY)
    inputs = {
        "x": x, "y": y, "index": index, "pre": pre, "mask": mask, "rotate": rotate, "minus": minus, "low": low, "high": high, "lowest": lowest,
    }  # fmt: skip
    return Vectors(_one_word(inputs), {"result": _behind(known, want.view(np.uint32), Lane.LATENCY)})


def _functions(cycles: int, seed: int) -> Vectors:
    rng = np.random.default_rng(seed)
    x = leaf.any_codes(rng, cycles)
    fn = rng.integers(1, len(FUNCTIONS), cycles)
    middling = (x & 0x807FFFFF) | (rng.integers(100, 140, cycles).astype(np.uint32) << np.uint32(23))
    kind = rng.integers(0, 8, cycles)
    x = np.where(kind < 4, middling, x)
    x = np.where(kind == 4, x & np.uint32(0xFFFF0000), x)
    x = np.where(kind == 5, rng.choice(np.concatenate([leaf.CORNERS, leaf.CORNERS | np.uint32(0x80000000)]), cycles), x)
    # about the ends of exp2's range: 128 and -126, and whole numbers with their neighbours
    whole = rng.integers(-130, 132, cycles).astype(np.float32).view(np.uint32) + rng.integers(-1, 2, cycles).astype(np.uint32)
    x = leaf.canonical(np.where(kind == 6, whole, x))
    a = x.view(np.float32)
    twins = {"exp2": functions.exp2_array, "rcp": functions.rcp_array, "rsqrt": functions.rsqrt_array}
    want = np.select([fn == FUNCTIONS.index(name) for name in twins], [twin(a).view(np.uint32) for twin in twins.values()])
    return Vectors(_one_word({"x": x, "fn": fn}), {"y": _behind(np.ones(cycles, bool), want.astype(np.uint32), FunctionUnit.LATENCY)})


def _streams(kind, draw, valid: str, cycles: int, seed: int) -> Vectors:
    """Run streams through the block itself, hold what comes out against the twin, and expect of mutants just that, in the same cycles."""
    inputs, check = draw(np.random.default_rng(seed), cycles)
    got = run_leaf(kind, inputs)
    flags = got[valid][:, 0] == 1
    check(got, flags)
    every = np.ones(len(flags), bool)
    return Vectors(_one_word(inputs), {name: (every if name == valid else flags, values) for name, values in got.items()})


def _joined(parts: list[dict]) -> dict:
    return {name: np.concatenate([_one_word(part)[name] for part in parts]) for name in parts[0]}


def _reductions(rng, cycles: int):
    drawn = [leaf.reductions(rng, kind, cycles // 3, TINY.vector_lanes) for kind in ("sum", "max", "argmax")]

    def check(got, done):
        assert np.array_equal(got["code"][done, 0], np.concatenate([want for _, want in drawn]))

    return _joined([inputs for inputs, _ in drawn]), check


def _quantisations(rng, cycles: int):
    drawn = [leaf.quantisations(rng, scope, cycles // 2, TINY.vector_lanes) for scope in ("block", "row")]

    def check(got, written):
        assert np.array_equal(got["scale"][written, 0], np.concatenate([scale for _, _, scale in drawn]))
        assert np.array_equal(np.ascontiguousarray(got["block"][written]).view(np.int8), np.concatenate([q for _, q, _ in drawn]))

    return _joined([inputs for inputs, _, _ in drawn]), check


def _canonical_lanes(graph, bits: list[int]) -> int:
    return graph.every(canonical(graph, bits[i : i + 32]) for i in range(0, len(bits), 32))


LANES = 32 * TINY.vector_lanes, _canonical_lanes

ROW = Subject(
    "row",
    partial(_verilog, Row, row_vectors.SMALL),
    Row.module,
    _row,
    Contract(
        assumed={"load_scale": (19, canonical), "activation_scale": (16, canonical)},
        kept={
            "weight_scales.mem.RD0": ("weight_scales.mem.WR0", 19, canonical),
            "accumulators.mem.RD0": ("accumulators.mem.WR0", 32, canonical),
        },
        when={"weights.mem.RD0": "step", "weight_scales.mem.RD0": "step", "accumulators.mem.RD0": "acc_read"},
    ),
)
LANE = Subject(
    "lane", partial(_verilog, Lane), Lane.module, _lane,
    Contract(assumed={"x": CODE, "y": CODE, "pre": (3, lambda graph, bits: graph.every(bits) ^ 1)}),
)  # fmt: skip
FUNCTION = Subject(
    "function unit", partial(_verilog, FunctionUnit), FunctionUnit.module, _functions,
    Contract(assumed={"x": CODE, "fn": (2, lambda graph, bits: graph.some(bits))}),
)  # fmt: skip
REDUCER = Subject(
    "reducer", partial(_verilog, leaf.Reducer), leaf.Reducer.module,
    partial(_streams, leaf.Reducer, _reductions, "done"), Contract(assumed={"data": LANES, "addends": LANES}),
)  # fmt: skip
QUANTISER = Subject(
    "quantiser", partial(_verilog, leaf.Quantiser), leaf.Quantiser.module,
    partial(_streams, leaf.Quantiser, _quantisations, "write"), Contract(assumed={"data": LANES}),
    prepare="setattr -unset init w:*",  # Yosys refuses to merge a bit that is x with one that is 0 at power-up
)  # fmt: skip
