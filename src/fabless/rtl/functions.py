"""exp2, reciprocal and reciprocal square root: the tables and integer steps of `number.functions`, pipelined."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from amaranth.hdl import C, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib.memory import Memory

from fabless.number.functions import (
    EXP2_OFFSET_BITS,
    INDEX_BITS,
    RCP_OFFSET_BITS,
    TABLE_BITS,
    Rom,
    exp2_rom,
    rcp_rom,
    rsqrt_rom,
)
from fabless.number.round import INFINITY_BITS, NAN_BITS
from fabless.program.isa import FUNCTIONS
from fabless.rtl.block import Block
from fabless.rtl.floating import state

if TYPE_CHECKING:
    from fabless.rtl.block import Shared

C0_BITS, C1_BITS, C2_BITS = TABLE_BITS + 1, 23, 15
EXP2, RCP, RSQRT = (FUNCTIONS.index(name) for name in ("exp2", "rcp", "rsqrt"))


def rom_words() -> list[int]:
    """Return the 512 words of the table: exp2, rcp, rsqrt of [1, 2), rsqrt of [2, 4); c0, c1, c2 from the low bits up."""
    return [word for rom in (exp2_rom(), rcp_rom(), rsqrt_rom()) for word in _words(rom)]


def _words(rom: Rom) -> list[int]:
    words = []
    for c0, c1, c2 in zip(*(column.tolist() for column in rom), strict=True):
        for value, bits, low in ((c0, C0_BITS, 0), (c1, C1_BITS, -(1 << C1_BITS - 1)), (c2, C2_BITS, 0)):
            assert low <= value < low + (1 << bits), (value, bits)
        words.append(c0 | (c1 & (1 << C1_BITS) - 1) << C0_BITS | c2 << C0_BITS + C1_BITS)
    return words


class FunctionUnit(Block):
    """Compute one function of one code.

    Ports: `x` (a code), `fn` (index in `FUNCTIONS`) in; `y` out, valid `LATENCY` cycles later, registered. One a cycle.
    Stages: unpack and shift | table | c2 * d | + c1 | * d | + c0, round | pack.
    """

    module = "fl_function_unit"
    LATENCY = 7

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.x, self.fn = self.input("x", 32), self.input("fn", 2)
        self.y = self.output("y", 32)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        m.submodules.table = table = Memory(shape=unsigned(C0_BITS + C1_BITS + C2_BITS), depth=512, init=rom_words())
        port = table.read_port()
        exponent, fraction, sign = self.x[23:31], self.x[0:23], self.x[31]
        is_exp2 = self.fn == EXP2

        # Stage 1: the argument of exp2 in units of 2^-26 (floor); row and offset for all three.
        magnitude = Signal(34)
        m.d.comb += magnitude.eq(Mux(exponent == 0, 0, Cat(C(0, 9), fraction, C(1, 1))))
        distance, amount, scaled = Signal(9), Signal(6), Signal(signed(35))
        m.d.comb += [distance.eq(133 - exponent), amount.eq(Mux(distance[8], 0, Mux(distance > 63, 63, distance[0:6])))]
        m.d.comb += scaled.eq(Mux(sign, -magnitude, magnitude))
        fixed = Signal(signed(35))
        m.d.comb += fixed.eq(scaled >> amount)
        odd = ~exponent[0]
        row, offset = state(9, "row"), state(EXP2_OFFSET_BITS, "offset")
        base_value = Signal(signed(12))  # what stands above the 23 fraction bits of the code, before the significand is added
        m.d.comb += base_value.eq(
            Mux(is_exp2, fixed[26:].as_signed() + 126, Mux(self.fn == RCP, 252 - exponent, 125 - half(exponent, odd)))
        )
        top = exponent == 255
        special, value = Signal(), Signal(32)
        m.d.comb += special_case(
            special, value, fn=self.fn, sign=sign, exponent=exponent, is_nan=top & (fraction != 0), whole=fixed[26:].as_signed()
        )
        m.d.sync += [
            row.eq(Mux(is_exp2, fixed[EXP2_OFFSET_BITS : EXP2_OFFSET_BITS + INDEX_BITS],
                       Cat(fraction[16:23], Mux(self.fn == RCP, C(1, 2), Cat(odd, C(1, 1)))))),
            # rcp and rsqrt have 16 bits of offset: as 19 bits with zeros below, products and shifts are the same
            offset.eq(Mux(is_exp2, fixed[0:EXP2_OFFSET_BITS], Cat(C(0, EXP2_OFFSET_BITS - RCP_OFFSET_BITS), fraction[0:16]))),
        ]  # fmt: skip
        carried = Cat(special, value, base_value[0:10], is_exp2, sign & (self.fn == RCP))
        tags = [state(len(carried), f"tags{i}") for i in range(6)]
        m.d.sync += [tags[0].eq(carried), *(b.eq(a) for a, b in pairwise(tags))]

        # Stage 2: the table.
        m.d.comb += port.addr.eq(row)
        offsets = [offset, *(state(EXP2_OFFSET_BITS, f"offset{i}") for i in range(1, 4))]
        m.d.sync += [b.eq(a) for a, b in pairwise(offsets)]
        c0, c1, c2 = port.data[0:C0_BITS], port.data[C0_BITS : C0_BITS + C1_BITS].as_signed(), port.data[C0_BITS + C1_BITS :]
        # Stages 3 to 6: y = c0 + ((c1 + (c2 * d >> D)) * d >> D).
        c0s = [state(C0_BITS, f"c0_{i}") for i in range(3)]
        m.d.sync += [c0s[0].eq(c0), *(b.eq(a) for a, b in pairwise(c0s))]
        square, slope1 = state(C2_BITS + EXP2_OFFSET_BITS, "square"), Signal(signed(C1_BITS), name="slope1", reset_less=True)
        m.d.sync += [square.eq(c2 * offsets[1]), slope1.eq(c1)]
        slope2 = Signal(signed(C1_BITS + 1), name="slope2", reset_less=True)
        m.d.sync += slope2.eq(slope1 + square[EXP2_OFFSET_BITS:])
        rise = Signal(signed(C1_BITS + 1 + EXP2_OFFSET_BITS + 1), name="rise", reset_less=True)
        m.d.sync += rise.eq(slope2 * offsets[3])
        y = Signal(signed(C0_BITS + 2))
        m.d.comb += y.eq(c0s[2] + (rise >> EXP2_OFFSET_BITS))
        rounded = state(25, "rounded")
        m.d.sync += rounded.eq(Mux(tags[4][43], (y + 16) >> 5, (y + 8) >> 4))

        # Stage 7: pack.
        last = tags[5]
        code = Signal(signed(34))
        m.d.comb += code.eq(Cat(C(0, 23), last[33:43]).as_signed() + rounded)
        result = state(32, "result")
        m.d.sync += result.eq(Mux(last[0], last[1:33], Mux(code >= 1 << 23, Cat(code[0:31], last[44]), 0)))
        m.d.comb += self.y.eq(result)
        return m


def half(exponent: Value, odd: Value) -> Value:
    """Return floor((exponent - 127 - odd) / 2), signed."""
    return (exponent - 127 - odd) >> 1


def special_case(special: Signal, value: Signal, *, fn: Value, sign: Value, exponent: Value, is_nan: Value, whole: Value) -> list[Any]:
    """Return assignments of whether the result is a special one, and which."""
    zero, top, far = exponent == 0, exponent == 255, exponent >= 134
    infinity, nan = Const(INFINITY_BITS, 32), Const(NAN_BITS, 32)
    exp2_special = is_nan | far | (whole < -126)
    exp2_value = Mux(is_nan, nan, Mux(far & ~sign, infinity, 0))
    other_nan = is_nan | ((fn == RSQRT) & sign)
    other_value = Mux(other_nan, nan, Mux(zero, infinity, 0))
    return [
        special.eq(Mux(fn == EXP2, exp2_special, other_nan | zero | top)),
        value.eq(Mux(fn == EXP2, exp2_value, other_value)),
    ]
