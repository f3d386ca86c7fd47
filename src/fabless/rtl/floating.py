"""Binary32 as the chip computes it: round to nearest even, +0 below 2^-126, one NaN. Leaves, verified on their own against `number.round`.

Operands and results are canonical codes (no subnormal, no -0, NaN only as 0x7FC00000).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amaranth.hdl import C, Cat, Const, Module, Mux, Signal, Value

from fabless.number.round import INFINITY_BITS, NAN_BITS
from fabless.rtl.block import Block

if TYPE_CHECKING:
    from fabless.rtl.block import Shared


def state(width: int, name: str) -> Signal:
    """Return a data register: not reset, because only valid bits and control state need to be."""
    return Signal(width, name=name, reset_less=True)


def normalised(m: Module, value: Value, name: str) -> tuple[Signal, Signal]:
    """Return `value` shifted left until its top bit is set, and by how much; a zero comes back as zero."""
    width = len(value)
    levels = (width - 1).bit_length()
    counts = []
    for level in reversed(range(levels)):
        step = 1 << level
        if step >= width:
            counts.append(C(0, 1))
            continue
        empty = Signal(name=f"{name}_empty{level}")
        shifted = Signal(width, name=f"{name}_shift{level}")
        m.d.comb += [empty.eq(value[width - step :] == 0), shifted.eq(Mux(empty, value << step, value))]
        counts.append(empty)
        value = shifted
    count = Signal(levels, name=f"{name}_count")
    m.d.comb += count.eq(Cat(*reversed(counts)))
    return value, count


def flushed(code: Value) -> Value:
    """Return the canonical code of any binary32 code."""
    exponent, fraction = code[23:31], code[0:23]
    return Mux(exponent == 0, 0, Mux((exponent == 255) & (fraction != 0), NAN_BITS, code))[0:32]


def packed(*, sign: Value, exponent: Value, fraction: Value, zero: Value, infinite: Value, nan: Value) -> Value:
    """Return the code of a rounded result; `exponent` is signed and biased, at most 0 meaning too small and at least 255 too large."""
    too_large = (exponent >= 255) | infinite
    finite = Mux(zero | (exponent <= 0), 0, Cat(fraction, exponent[0:8], sign))
    return Mux(nan, NAN_BITS, Mux(too_large & (~zero | infinite), Cat(Const(INFINITY_BITS & 0x7FFFFFFF, 31), sign), finite))[0:32]


class FloatAdd(Block):
    """Add two codes.

    Ports: `a`, `b` in; `y` out, valid 2 cycles later as a combinational output of the third stage (the caller registers it). One a cycle.
    Stages: order and align | add and normalise | round.
    """

    module = "fl_float_add"
    LATENCY = 2

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.a, self.b = self.input("a", 32), self.input("b", 32)
        self.y = self.output("y", 32)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        a, b = self.a, self.b
        swap, big, small = Signal(), Signal(32), Signal(32)
        m.d.comb += [swap.eq(b[0:31] > a[0:31]), big.eq(Mux(swap, b, a)), small.eq(Mux(swap, a, b))]
        distance, amount = Signal(8), Signal(5)
        m.d.comb += [distance.eq(big[23:31] - small[23:31]), amount.eq(Mux(distance > 27, 27, distance[0:5]))]
        wide, moved = Signal(27), Signal(27)
        m.d.comb += [wide.eq(Cat(C(0, 3), small[0:23], small[23:31] != 0)), moved.eq(wide >> amount)]
        lost = Signal()
        m.d.comb += lost.eq((moved << amount)[0:27] != wide)

        significand, aligned = state(24, "significand"), state(27, "aligned")
        exponent, sign, subtract = state(8, "exponent"), state(1, "sign"), state(1, "subtract")
        nan1, infinite1 = state(1, "nan1"), state(1, "infinite1")
        top = big[23:31] == 255
        m.d.sync += [
            significand.eq(Cat(big[0:23], big[23:31] != 0)), aligned.eq(Cat(moved[0] | lost, moved[1:])), exponent.eq(big[23:31]),
            sign.eq(big[31]), subtract.eq(a[31] ^ b[31]), infinite1.eq(top),
            nan1.eq((top & (big[0:23] != 0)) | (top & (small[23:31] == 255) & ((a[31] ^ b[31]) | (small[0:23] != 0)))),
        ]  # fmt: skip

        total = Signal(28)
        extended = Cat(C(0, 3), significand)
        m.d.comb += total.eq(Mux(subtract, extended - aligned, extended + aligned))
        norm, count = normalised(m, total, "total")
        norm2, exponent2 = state(28, "norm2"), Signal(range(-64, 512), name="exponent2", reset_less=True)
        sign2, zero2, nan2, infinite2 = (state(1, f"{n}2") for n in ("sign", "zero", "nan", "infinite"))
        m.d.sync += [
            norm2.eq(norm), exponent2.eq(exponent + 1 - count), sign2.eq(sign), zero2.eq(total == 0), nan2.eq(nan1), infinite2.eq(infinite1),
        ]  # fmt: skip

        rounded = Signal(25)
        m.d.comb += rounded.eq(norm2[4:28] + (norm2[3] & (norm2[4] | (norm2[0:3] != 0))))
        carried = Signal(range(-64, 513))
        m.d.comb += carried.eq(exponent2 + rounded[24])
        m.d.comb += self.y.eq(
            packed(sign=sign2, exponent=carried, fraction=rounded[0:23], zero=zero2 & ~infinite2, infinite=infinite2, nan=nan2)
        )
        return m


class FloatMultiply(Block):
    """Multiply two codes.

    Ports: `a`, `b` in, from registers; `y` out, valid 2 cycles later as a combinational output of the third stage. One a cycle.
    Stages: multiply significands | normalise and round | pack.
    """

    module = "fl_float_multiply"
    LATENCY = 2

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.a, self.b = self.input("a", 32), self.input("b", 32)
        self.y = self.output("y", 32)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        a, b = self.a, self.b
        product, exponent = state(48, "product"), Signal(range(-128, 512), name="exponent", reset_less=True)
        sign, zero, nan, infinite = (state(1, n) for n in ("sign", "zero", "nan", "infinite"))
        zeros = [x[23:31] == 0 for x in (a, b)]
        tops = [x[23:31] == 255 for x in (a, b)]
        nans = [top & (x[0:23] != 0) for top, x in zip(tops, (a, b), strict=True)]
        m.d.sync += [
            product.eq(Cat(a[0:23], C(1, 1)) * Cat(b[0:23], C(1, 1))), exponent.eq(a[23:31] + b[23:31] - 127), sign.eq(a[31] ^ b[31]),
            zero.eq((zeros[0] | zeros[1]) & ~(tops[0] | tops[1])), infinite.eq(tops[0] | tops[1]),
            nan.eq(nans[0] | nans[1] | (tops[0] & zeros[1]) | (tops[1] & zeros[0])),
        ]  # fmt: skip

        norm = Signal(48)
        m.d.comb += norm.eq(Mux(product[47], product, product << 1))
        rounded2, exponent2 = rounding(m, norm, exponent + product[47])
        sign2, zero2, nan2, infinite2 = (state(1, f"{n}2") for n in ("sign", "zero", "nan", "infinite"))
        m.d.sync += [sign2.eq(sign), zero2.eq(zero), nan2.eq(nan), infinite2.eq(infinite)]
        m.d.comb += self.y.eq(packed(sign=sign2, exponent=exponent2, fraction=rounded2, zero=zero2, infinite=infinite2, nan=nan2))
        return m


def rounding(m: Module, norm: Value, exponent: Value) -> tuple[Signal, Signal]:
    """Return registers of fraction (23 bits) and exponent of a product whose leading one is the top bit of `norm`.

    Gradual underflow decides what rounds up to 2^-126: at exponent 0, 24 leading ones do, whatever follows them (see `fp32_mul`).
    """
    width = len(norm)
    kept, guard, rest = norm[width - 24 :], norm[width - 25], norm[: width - 25]
    rounded = Signal(25)
    all_ones = kept == 0xFFFFFF
    least = (exponent == 0) & all_ones
    m.d.comb += rounded.eq(kept + (least | (guard & (kept[0] | (rest != 0)))))
    fraction, result = state(23, "fraction_rounded"), Signal(range(-256, 513), name="exponent_rounded", reset_less=True)
    m.d.sync += [fraction.eq(rounded[0:23]), result.eq(exponent + rounded[24])]
    return fraction, result
