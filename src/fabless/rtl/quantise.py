"""Blocks of int8 with a bf16 scale, from groups of codes: the operations of `number.quantise`."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from amaranth.hdl import C, Cat, Elaboratable, Module, Mux, Signal, Value, unsigned
from amaranth.lib.memory import Memory

from fabless.number.dot import BLOCK
from fabless.number.functions import INDEX_BITS as ROM_INDEX_BITS
from fabless.number.functions import rcp
from fabless.number.quantise import C127_BITS
from fabless.number.round import NAN_BITS
from fabless.rtl.floating import FloatMultiply, state
from fabless.rtl.lane import is_nan
from fabless.rtl.load import log2
from fabless.rtl.memory import Ram

if TYPE_CHECKING:
    from fabless.rtl.block import Shared

QUEUE_GROUPS = 32
#: Cycles from the last group of a block until its first group leaves the queue: greatest (3), times 1/127 (3), round up and table (1).
EMIT_AFTER = 7


def inverse_fractions() -> list[int]:
    """Return the 23 fraction bits of rcp(1 + i / 128); at 0 the reciprocal is a power of two, its exponent one more."""
    return [rcp(127 << 23 | i << 16) & 0x7FFFFF for i in range(1 << ROM_INDEX_BITS)]


class Quantise(Elaboratable):
    """Quantise blocks that come in groups of `lanes` codes, at most one a cycle, in order.

    Ports: `valid`, `data`, `measures` (the group counts for the greatest magnitude), `opens` (first group that counts), `closes` (last one: the scale
    follows from here), `emits` (the group is to be written), `ends` (last group of its block) in; `write`, `block`, `scale` out for one cycle a block.
    The word of a block is written EMIT_AFTER + 4 + BLOCK / lanes cycles after its last group.
    """

    def __init__(self, *, lanes: int, shared: Shared) -> None:
        self.lanes, self.shared = lanes, shared
        self.valid, self.measures, self.opens, self.closes, self.emits, self.ends = (
            Signal(name=n) for n in ("valid", "measures", "opens", "closes", "emits", "ends")
        )
        self.data = Signal(32 * lanes)
        self.write, self.block, self.scale = Signal(), Signal(8 * BLOCK), Signal(16)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        scale, inverse = self._scale(m)
        groups, lanes = BLOCK // self.lanes, self.lanes
        queue = Ram(width=32 * lanes, depth=QUEUE_GROUPS, name="groups")
        queue.place(m)
        write, read = Signal(log2(QUEUE_GROUPS)), Signal(log2(QUEUE_GROUPS))
        pushed = self.valid & self.emits
        m.d.comb += [queue.write[0].enable.eq(pushed), queue.write[0].address.eq(write), queue.write[0].data.eq(self.data)]
        m.d.sync += write.eq(write + pushed)

        events = Signal(EMIT_AFTER)
        m.d.sync += events.eq(Cat(pushed & self.ends, events[:-1]))
        left, reading = Signal(range(groups + 1)), Signal()
        m.d.comb += [reading.eq(events[-1] | (left != 0)), queue.read[0].enable.eq(reading), queue.read[0].address.eq(read)]
        m.d.sync += read.eq(read + reading)
        with m.If(events[-1]):
            m.d.sync += left.eq(groups - 1)
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        final = Mux(events[-1], groups == 1, left == 1)

        # Behind the queue: multiply (3), round to int8 (1), gather.
        flags = Signal(5)
        ends = Signal(5)
        m.d.sync += [flags.eq(Cat(reading, flags[:-1])), ends.eq(Cat(reading & final, ends[:-1]))]
        codes = []
        for i in range(lanes):
            multiplier = self.shared.place(m, FloatMultiply, f"multiplier{i}", a=queue.read[0].data[32 * i : 32 * i + 32], b=inverse)
            product = state(32, f"product{i}")
            m.d.sync += product.eq(multiplier["y"])
            codes.append(self.to_int8(m, product, f"lane{i}"))
        gathered, whole = state(8 * BLOCK, "gathered"), Cat(codes)
        with m.If(flags[3]):
            m.d.sync += gathered.eq(Cat(gathered[8 * lanes :], whole))
        scales = [state(16, f"scale{i}") for i in range(4)]
        m.d.sync += [scales[0].eq(scale[16:]), *(b.eq(a) for a, b in pairwise(scales))]
        m.d.comb += [self.write.eq(ends[4]), self.block.eq(gathered), self.scale.eq(scales[3])]
        return m

    def _scale(self, m: Module) -> tuple[Signal, Signal]:
        """Return the registers of the current scale and its inverse."""
        magnitudes = [self.data[32 * i : 32 * i + 31] for i in range(self.lanes)]
        level = 0
        while len(magnitudes) > 1:
            merged = []
            for i in range(len(magnitudes) // 2):
                a, b = magnitudes[2 * i], magnitudes[2 * i + 1]
                greater = Signal(31, name=f"greater{level}_{i}")
                m.d.comb += greater.eq(Mux(b > a, b, a))
                merged.append(greater)
            magnitudes, level = merged, level + 1
            if level == (log2(self.lanes) + 1) // 2:  # half of the tree a cycle
                registers = [state(31, f"magnitude{i}") for i in range(len(magnitudes))]
                m.d.sync += [r.eq(v) for r, v in zip(registers, magnitudes, strict=True)]
                magnitudes = list(registers)
        begins, counted, ends = state(1, "begins"), Signal(name="counted"), Signal(name="ends_block")
        m.d.sync += [begins.eq(self.opens), counted.eq(self.valid & self.measures), ends.eq(self.valid & self.closes)]
        group, opens, closes, counts = state(31, "group"), state(1, "opens1"), Signal(name="closes1"), Signal(name="counts1")
        m.d.sync += [
            group.eq(magnitudes[0]), opens.eq(begins), counts.eq(counted), closes.eq(ends),
        ]  # fmt: skip
        greatest = state(31, "greatest")
        with m.If(counts):
            m.d.sync += greatest.eq(Mux(opens | (group > greatest), group, greatest))
        multiplier = self.shared.place(m, FloatMultiply, "scale_multiplier", a=greatest, b=C(C127_BITS, 32))
        t, rounded = state(32, "t"), Signal(32)
        m.d.sync += t.eq(multiplier["y"])
        m.d.comb += rounded.eq(Cat(C(0, 16), (t + 0xFFFF)[16:32]))
        m.submodules.inverses = table = Memory(shape=unsigned(23), depth=128, init=inverse_fractions())
        port = table.read_port()
        m.d.comb += port.addr.eq(rounded[16:23])
        new_scale = state(32, "new_scale")
        m.d.sync += new_scale.eq(rounded)
        events = Signal(5)
        m.d.sync += events.eq(Cat(closes, events[:-1]))
        scale, inverse = state(32, "scale_now"), state(32, "inverse_now")
        with m.If(events[4]):
            m.d.sync += [scale.eq(new_scale), inverse.eq(self._inverse(new_scale, port.data))]
        return scale, inverse

    @staticmethod
    def _inverse(scale: Value, fraction: Value) -> Value:
        """Return rcp(scale), or +0 where scale is 0: biased exponent 253 - e, one more for a power of two."""
        exponent = scale[23:31]
        power = scale[16:23] == 0
        result = 253 - exponent + power
        code = Mux(exponent > 252 + power, 0, Cat(fraction, result[0:8], C(0, 1)))
        return Mux(is_nan(scale), NAN_BITS, Mux((exponent == 0) | (exponent == 255), 0, code))[0:32]

    @staticmethod
    def to_int8(m: Module, code: Value, name: str) -> Value:
        """Return a code rounded to the nearest integer, ties to even, within -127..127, NaN as 0."""
        exponent, fraction, sign = code[23:31], code[0:23], code[31]
        distance, fixed = Signal(8, name=f"{name}_distance"), Signal(31, name=f"{name}_fixed")
        m.d.comb += [
            distance.eq(133 - exponent), fixed.eq(Cat(C(0, 7), fraction, C(1, 1)) >> Mux(distance[3:] != 0, 8, distance[0:3])),
        ]  # fmt: skip
        rounded, size = Signal(8, name=f"{name}_rounded"), Signal(7, name=f"{name}_size")
        m.d.comb += [
            rounded.eq(fixed[24:31] + (fixed[23] & (fixed[24] | (fixed[0:23] != 0)))),
            size.eq(Mux(is_nan(code) | (exponent < 126), 0, Mux((exponent > 133) | rounded[7], 127, rounded))),
        ]  # fmt: skip
        return Mux(sign, -size, size)[0:8]
