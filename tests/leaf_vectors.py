"""Directed-random vectors of the RTL's blocks, and what their NumPy twins in `fabless.number` say of them; for leaf tests and for mutants."""

from __future__ import annotations

import numpy as np
from amaranth.hdl import Module

from fabless.number import arrays
from fabless.number.dot import BLOCK
from fabless.number.quantise import quantise
from fabless.program.isa import LATENCY, REDUCE
from fabless.rtl import convert
from fabless.rtl.block import Block, named
from fabless.rtl.lane import INDEX_BITS
from fabless.rtl.quantise import Quantise
from fabless.rtl.reduce import Reduce

CORNERS = np.array(
    [0, 0x00800000, 0x00800001, 0x00FFFFFF, 0x3F7FFFFF, 0x3F800000, 0x3F800001, 0x7F7FFFFF, 0x7F800000, 0x7FC00000], np.uint32
)


class Wrapped(Block):
    """A unit that is no block, with its signals as ports; `unit(shared)` makes it, `drives` names its outputs."""

    drives: tuple[str, ...] = ()

    def __init__(self, shared):
        super().__init__(shared)
        self.inside = named(self.unit(shared))
        signals = {n: s for n, s in vars(self.inside).items() if hasattr(s, "shape") and hasattr(s, "name")}
        self.inputs = {n: s for n, s in signals.items() if n not in self.drives}
        self.outputs = {n: signals[n] for n in self.drives}

    def elaborate(self, platform):
        m = Module()
        m.submodules.inside = self.inside
        return m


class Reducer(Wrapped):
    module, drives = "fl_reducer_alone", ("done", "code")

    def unit(self, shared):
        return Reduce(lanes=shared.tile.vector_lanes, shared=shared)


class Quantiser(Wrapped):
    module, drives = "fl_quantiser_alone", ("write", "block", "scale")

    def unit(self, shared):
        return Quantise(lanes=shared.tile.vector_lanes, shared=shared)


class Conversions(Block):
    """Every conversion of `rtl.convert` of one code; `option` is `is_e2m1` or `halved`. One cycle."""

    module, LATENCY = "fl_conversions", 1

    def __init__(self, shared):
        super().__init__(shared)
        self.code, self.option = self.input("code", 32), self.input("option", 1)
        widths = {"nibble": 8, "bf16_flushed": 16, "fp16": 19, "e4m3": 19, "e8m0": 19, "from_int8": 32, "from_index": 32, "to_bf16": 16}
        self.results = {name: self.output(name, width) for name, width in widths.items()}

    def elaborate(self, platform):
        m = Module()
        code, option, r = self.code, self.option, self.results
        m.d.sync += [
            r["nibble"].eq(convert.nibble(code[:4], is_e2m1=option)), r["bf16_flushed"].eq(convert.bf16_flushed(code[:16])),
            r["fp16"].eq(convert.fp16(m, code[:16], "fp16")), r["e4m3"].eq(convert.e4m3(code[:8], halved=option)),
            r["e8m0"].eq(convert.e8m0(code[:8], halved=option)), r["from_int8"].eq(convert.from_int8(m, code[:8], "int8")),
            r["from_index"].eq(convert.from_index(m, code[:14], "index")), r["to_bf16"].eq(convert.to_bf16(code)),
        ]  # fmt: skip
        return m


def canonical(codes):
    """Return any codes as canonical ones."""
    return arrays.canonical(codes.astype(np.uint32).view(np.float32)).view(np.uint32)


def any_codes(rng, shape):
    """Return codes of any bits."""
    return rng.integers(0, 1 << 32, shape, dtype=np.uint64).astype(np.uint32)


def pairs(rng, n):
    """Return pairs of codes: any bits; near exponents; all but equal magnitudes; products at the edge of underflow; every pair of corners.

    And products of 24 leading ones at exponent 0, which round up to 2^-126 whatever follows, or at one beside it; and products of about 25 bits: ties.
    """
    a, b = any_codes(rng, n), any_codes(rng, n)
    quarter = n // 4
    near = slice(0, quarter)
    b[near] = a[near] & 0x7F800000 ^ (b[near] & 0x80FFFFFF)
    close = slice(quarter, 2 * quarter)
    b[close] = a[close] ^ 0x80000000 ^ (b[close] & 7)
    edge = slice(2 * quarter, 3 * quarter)
    b[edge] = b[edge] & 0x807FFFFF | (
        ((127 + 126 - (a[edge] >> 23 & 255).astype(np.int64) - rng.integers(-2, 26, quarter)) & 255) << 23
    ).astype(np.uint32)
    ones = slice(3 * quarter, 3 * quarter + quarter // 2)
    significand = rng.integers(1 << 23, 1 << 24, quarter // 2)
    exponent = rng.integers(2, 126, quarter // 2)
    a[ones] = a[ones] & 0x80000000 | (exponent << 23 | significand & 0x7FFFFF).astype(np.uint32)
    exponent = 127 - exponent + rng.choice([-1, 0, 0, 0, 1], quarter // 2)
    b[ones] = b[ones] & 0x80000000 | (exponent << 23 | ((1 << 47) - 1) // significand & 0x7FFFFF).astype(np.uint32)
    ties = slice(ones.stop, ones.stop + quarter // 4)
    zeros = rng.integers(6, 18, quarter // 4)
    for codes, n_zeros in ((a, zeros), (b, 23 - zeros + rng.integers(-1, 2, quarter // 4))):
        exponent = rng.integers(64, 190, quarter // 4).astype(np.uint32)
        codes[ties] = (codes[ties] & 0x807FFFFF | exponent << np.uint32(23)) >> n_zeros.astype(np.uint32) << n_zeros.astype(np.uint32)
    signed = np.concatenate([CORNERS, CORNERS | np.uint32(0x80000000)])
    x, y = (g.reshape(-1) for g in np.meshgrid(signed, signed))
    return canonical(np.concatenate([a, x])), canonical(np.concatenate([b, y]))


def row_codes(rng, rows, n):
    """Return rows `[rows, n]` of codes for reductions and quantisation, each of one kind: see the comments."""
    x = rng.standard_normal((rows, n)).astype(np.float32) * np.float32(2.0) ** rng.integers(-20, 20, (rows, 1)).astype(np.float32)
    codes = np.ascontiguousarray(x).view(np.uint32)
    kind = rng.integers(0, 13, (rows, 1))  # 0 and 11 up: numbers of one size

    def put(number, values, share=1.0):
        nonlocal codes
        codes = np.where((kind == number) & (rng.random((rows, n)) < share), np.asarray(values, np.uint32), codes)

    def exponents(low, high):
        return (codes & 0x807FFFFF) | (rng.integers(low, high, (rows, n)).astype(np.uint32) << np.uint32(23))

    every = np.concatenate([CORNERS, CORNERS | np.uint32(0x80000000)])
    put(1, any_codes(rng, (rows, n)))
    put(
        2, np.where(np.arange(n) % 2, np.roll(codes, 1, axis=1) ^ 0x80000000 ^ rng.integers(0, 3, (rows, n)).astype(np.uint32), codes)
    )  # cancelling
    put(3, rng.choice(np.array([-1, 1, 1.5, 2, -2], np.float32), (rows, n)).view(np.uint32))  # few values
    put(4, 0, share=0.5)
    put(5, exponents(1, 255))
    put(6, rng.choice(every, (rows, n)), share=2 / n)  # a corner or two
    put(7, codes[:, :1] ^ (np.uint32(1) << rng.integers(0, 32, (rows, n)).astype(np.uint32)))  # one bit apart
    put(8, exponents(250, 255))  # sums that overflow
    put(9, exponents(1, 6))  # sums that underflow
    put(10, rng.choice(np.array([0x7F800000, 0xFF800000], np.uint32), (rows, 1)), share=0.3)  # infinities of one sign
    return canonical(codes)


def tied_codes(rng, rows, n):
    """Return rows `[rows, n]` of codes that quantise to about halves: (k + 1/2) of the scale, a few last places beside."""
    scale = (rng.integers(1, 255, (rows, 1)).astype(np.uint32) << 23 | rng.integers(0, 128, (rows, 1)).astype(np.uint32) << 16).view(
        np.float32
    )
    with np.errstate(all="ignore"):
        half = (rng.integers(-128, 128, (rows, n)).astype(np.float32) + np.float32(0.5)) * scale
        half[:, ::BLOCK] = np.float32(127) * scale  # makes `scale` the scale of its block, or all but
    return canonical(half.view(np.uint32) + rng.integers(-2, 3, (rows, n)).astype(np.uint32))


def streamed(rng, batches, lanes, gap):
    """Put rows into one stream of groups; return its cycles, and per batch (codes, order of its rows in the stream, cycle of each row's groups).

    Rows of all batches are shuffled; a row's groups come in every cycle, or in every fourth as behind a function unit, `gap` idle cycles after the last.
    """
    sizes = np.concatenate([np.full(len(b), -(-b.shape[1] // lanes)) for b in batches])
    pace = rng.choice([1, 1, 1, 4], len(sizes))
    order = rng.permutation(len(sizes))
    ends = np.cumsum((sizes * pace + gap)[order])
    begins = np.empty(len(sizes), np.int64)
    begins[order] = ends - (sizes * pace + gap)[order]
    place = np.empty(len(sizes), np.int64)
    place[order] = np.arange(len(sizes))
    out, at = [], 0
    for b in batches:
        mine = slice(at, at + len(b))
        out.append((b, place[mine], begins[mine, None] + pace[mine, None] * np.arange(-(-b.shape[1] // lanes))))
        at += len(b)
    return int(ends[-1]) + 200, out  # the last rows come out in fewer than 200 cycles


def reductions(rng, kind, cycles, lanes):
    """Return inputs of the reducer for about so many cycles, and the codes that come out in order."""
    lengths = np.unique(np.concatenate([rng.integers(1, 40, 12), rng.integers(40, 300, 8), [1, 32, 33, 128, 129]]))
    per_cycle = np.mean([(-(-n // lanes)) * 1.75 + LATENCY["REDUCE_DRAIN"] for n in lengths])
    rows = max(1, int(cycles / per_cycle / len(lengths)))
    longest = row_codes(rng, 1, 1 << INDEX_BITS)
    longest[0, rng.integers(0, 1 << INDEX_BITS)] = 0x7F000000  # the greatest stands anywhere
    batches = [longest, *(row_codes(rng, rows, n) for n in lengths)]
    total, batches = streamed(rng, batches, lanes, LATENCY["REDUCE_DRAIN"])
    inputs = {
        "valid": np.zeros(total, np.uint32), "last": rng.integers(0, 2, total).astype(np.uint32), "kind": np.full(total, REDUCE.index(kind), np.uint32),
        "data": any_codes(rng, (total, lanes)), "present": rng.integers(0, 1 << lanes, total).astype(np.uint32),
        "group": rng.integers(0, 1 << 10, total).astype(np.uint32),
    }  # fmt: skip
    want = np.zeros(sum(len(b) for b, _, _ in batches), np.uint32)
    twin = {"sum": arrays.row_sum, "max": arrays.row_max, "argmax": arrays.row_argmax}[kind]
    for codes, place, at in batches:
        n, groups = codes.shape[1], at.shape[1]
        inputs["valid"][at], inputs["last"][at] = 1, np.arange(groups) == groups - 1
        inputs["group"][at] = np.arange(groups)
        present = np.arange(groups * lanes).reshape(groups, lanes) < n
        inputs["present"][at] = (present << np.arange(lanes)).sum(axis=1)
        data = any_codes(rng, (len(codes), groups * lanes))  # lanes that are not present hold anything
        data[:, :n] = codes
        inputs["data"][at] = data.reshape(len(codes), groups, lanes)
        want[place] = twin(codes.view(np.float32)).view(np.uint32)
    shown = (inputs["present"][:, None] >> np.arange(lanes) & 1) * inputs["valid"][:, None] if kind == "sum" else 0
    inputs["addends"] = inputs["data"] * np.asarray(shown, np.uint32)
    return inputs, want


def quantisations(rng, scope, cycles, lanes):
    """Return inputs of the quantiser for about so many cycles, and the blocks `[n, 32]` int8 and scales (bf16 codes) that come out in order."""
    passes, groups = (2 if scope == "row" else 1), BLOCK // lanes
    blocks = [1, 2, 3, 4, 5]
    rows = max(1, int(cycles / (1.75 * groups * passes * sum(blocks))))
    batches = []
    for n in blocks:
        tied = rng.random((rows, 1)) < 0.4
        codes = np.where(tied, tied_codes(rng, rows, BLOCK * n), row_codes(rng, rows, BLOCK * n))
        codes[:, BLOCK * n - int(rng.integers(0, BLOCK)) :] = 0  # a block that ends early is filled with +0
        batches.append(codes)
    total, placed = streamed(rng, [np.tile(codes, passes) for codes in batches], lanes, 0)
    flags = ("measures", "opens", "closes", "emits", "ends")  # anything where no group is
    inputs = {name: rng.integers(0, 2, total).astype(np.uint32) for name in flags}
    inputs |= {"valid": np.zeros(total, np.uint32), "data": any_codes(rng, (total, lanes))}
    q_of, scale_of = {}, {}
    for codes, (tiled, place, at) in zip(batches, placed, strict=True):
        n = codes.shape[1] // lanes  # groups of a pass
        in_block = np.arange(n) % groups
        first, second = at[:, :n], at[:, n * (passes - 1) :]
        inputs["valid"][at], inputs["data"][at] = 1, tiled.reshape(len(codes), -1, lanes)
        inputs["measures"][at], inputs["closes"][at], inputs["emits"][at] = 0, 0, 0
        inputs["measures"][first] = 1
        inputs["opens"][first] = np.arange(n) == 0 if scope == "row" else in_block == 0
        inputs["closes"][first] = np.arange(n) == n - 1 if scope == "row" else in_block == groups - 1
        inputs["emits"][second], inputs["ends"][at] = 1, np.tile(in_block == groups - 1, passes)
        q, scale = quantise(codes.view(np.float32), scope=scope)
        for i, p in enumerate(place.tolist()):
            q_of[p], scale_of[p] = q[i], scale[i].view(np.uint32) >> 16
    ordered = sorted(q_of)
    return inputs, np.concatenate([q_of[p] for p in ordered]), np.concatenate([scale_of[p] for p in ordered])


def dots(rng, cycles, accumulators, words):
    """Return inputs of a row for a stream of steps, one a cycle, and in each cycle what `vector_data` shows (known from `begin` on).

    Accumulators take turns. Weights are loaded a word a cycle and used up to `words` cycles later. A fifth of the steps undo the last one of their
    accumulator, all but a small change at times, so that sums cancel.
    """
    from fabless.rtl.row import Row

    lead = words  # loads only, at first
    n = lead + cycles + 40
    t = np.arange(n)
    weights = _elements(rng, n)
    w_scale = canonical(_scales(rng, n, 10)) >> 13
    back = rng.integers(1, words - accumulators, n)
    activation, a_scale = _elements(rng, n), canonical(_scales(rng, n, 7)) >> 16
    unit, clear = rng.random(n) < 0.1, rng.random(n) < 0.25
    undo = (rng.random(n) < 0.2) & (t >= lead + accumulators)
    for i in np.flatnonzero(undo):  # in order: a step may undo one that undid another
        if back[i - accumulators] + accumulators < words:
            back[i] = back[i - accumulators] + accumulators
            activation[i], unit[i], clear[i] = activation[i - accumulators], unit[i - accumulators], False
            a_scale[i] = a_scale[i - accumulators] ^ 0x8000 if a_scale[i - accumulators] not in {0, 0x7FC0} else 0
            if i % 3 == 0:
                activation[i, i % BLOCK] ^= 1
    step = (t >= lead) & (t < lead + cycles)
    used = t - back
    isum = np.zeros(n, np.float32)
    isum[step] = np.einsum("ij,ij->i", weights[used[step]].astype(np.float32), activation[step].astype(np.float32))
    w_code = np.where(unit, np.uint32(0x3F800000), w_scale[used] << 13)
    term = arrays.mul(isum, arrays.mul(w_code.view(np.float32), (a_scale.astype(np.uint32) << 16).view(np.float32)))
    total, acc = np.zeros(n, np.float32), np.zeros(accumulators, np.float32)
    for at in range(lead, lead + cycles, accumulators):
        these = slice(at, min(at + accumulators, lead + cycles))
        size = these.stop - at
        acc[:size] = total[these] = arrays.add(np.where(clear[these], np.float32(0), acc[:size]), term[these])

    def later(values, by):
        return np.concatenate([np.zeros((by, *values.shape[1:]), values.dtype), values[:-by]]) if by else values

    address = ((t - lead) % accumulators).astype(np.uint32)
    inputs = {
        "step": step, "weight_address": used % words, "activation": later(activation, 1).view(np.uint32), "activation_scale": later(a_scale, 1),
        "unit": later(unit, 1), "acc_read": later(step, Row.READ_AT), "acc_address": later(address, Row.READ_AT), "clear": later(clear, Row.READ_AT + 1),
        "acc_write": later(step, Row.WRITE_AT), "acc_write_address": later(address, Row.WRITE_AT), "load_enable": np.full(n, 3), "load_address": t % words,
        "load_data": weights.view(np.uint32), "load_scale_enable": np.ones(n), "load_scale": w_scale,
        "vector_read": later(step, Row.WRITE_AT + 1), "vector_address": later(address, Row.WRITE_AT + 1),
    }  # fmt: skip
    shown = later(total, Row.WRITE_AT + 2).view(np.uint32)
    known = later(step, Row.WRITE_AT + 2)
    return {name: values.astype(np.uint32) for name, values in inputs.items()}, known, shown


def _elements(rng, n):
    """Return `[n, 32]` int8: any; small; extreme; mostly zero."""
    x = rng.integers(-128, 128, (n, BLOCK))
    kind = rng.integers(0, 6, n)[:, None]
    x = np.where(kind == 1, x >> 6, x)
    x = np.where(kind == 2, rng.choice([-128, 127], (n, BLOCK)), x)
    x = np.where((kind == 3) & (rng.random((n, BLOCK)) < 0.9), 0, x)
    return np.where(kind == 4, x[:, :1], x).astype(np.int8)


def _scales(rng, n, fraction_bits):
    """Return binary32 codes with so many fraction bits: of middling size, of any, and specials."""
    exponent = np.where(rng.random(n) < 0.8, rng.integers(115, 140, n), rng.integers(0, 256, n))
    exponent = np.where(rng.random(n) < 0.01, rng.choice([0, 255], n), exponent)
    fraction = rng.integers(0, 1 << fraction_bits, n) << 23 - fraction_bits
    fraction = np.where(rng.random(n) < 0.1, 0, fraction)
    return (rng.integers(0, 2, n) << 31 | exponent << 23 | fraction).astype(np.uint32)
