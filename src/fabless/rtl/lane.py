"""One lane of the vector unit: one binary32 multiplication, one addition, and the choices between them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value

from fabless.number.round import NAN_BITS
from fabless.program.isa import LOWEST_BITS, PRE
from fabless.rtl.block import Block, Shared
from fabless.rtl.convert import from_index
from fabless.rtl.floating import FloatAdd, FloatMultiply, state

INDEX_BITS = 14
COPY, ADD, SUB, MUL, MAX, MIN, EXCLUDE = range(len(PRE))


def order_key(code: Value) -> Value:
    """Return a number that orders codes as values, the NaN above all."""
    return Cat(Mux(code[31], ~code[:31], code[:31]), ~code[31])


def is_nan(code: Value) -> Value:
    """Return whether a code is the NaN."""
    return (code[23:31] == 255) & (code[0:23] != 0)


class Lane(Block):
    """Compute pre(x, y), a masked x, or half of a rotary pair.

    Ports: `x`, `y` from registers, `index` (of the element), `pre`, `mask` (keep x where `low` <= index < `high`, else +0, or LOWEST if `lowest`),
    `rotate` (two cycles: x*y of the first, then `result` = first -+ second, minus if `minus`). `result` is registered, LATENCY cycles after x and y
    (after the second pair for rotate). One a cycle. All controls stand still from the cycle before the
    first operation on, as long as any is in flight.
    """

    module = "fl_lane"
    LATENCY = 6

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.x, self.y, self.index = self.input("x", 32), self.input("y", 32), self.input("index", INDEX_BITS)
        self.pre, self.mask, self.rotate, self.minus = (self.input(n, w) for n, w in (("pre", 3), ("mask", 1), ("rotate", 1), ("minus", 1)))
        self.low, self.high, self.lowest = self.input("low", INDEX_BITS + 1), self.input("high", INDEX_BITS + 1), self.input("lowest", 1)
        self.result = self.output("result", 32)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        x, y = self.x, self.y
        pre = state(3, "pre_kept")  # it drives much in here, and its register outside drives every lane
        m.d.sync += pre.eq(self.pre)
        greater = order_key(x) >= order_key(y)
        chosen = Signal(32)
        m.d.comb += chosen.eq(x)
        with m.If(self.mask):
            inside = (self.low <= self.index) & (self.index < self.high)
            m.d.comb += chosen.eq(Mux(inside, x, Mux(self.lowest, LOWEST_BITS, 0)))
        with m.Elif(pre == MAX):
            m.d.comb += chosen.eq(Mux(greater, x, y))
        with m.Elif(pre == MIN):
            m.d.comb += chosen.eq(Mux(is_nan(x) | is_nan(y), NAN_BITS, Mux(greater, y, x)))
        with m.Elif(pre == EXCLUDE):
            m.d.comb += chosen.eq(Mux(from_index(m, self.index, "index") == y, LOWEST_BITS, x))

        xs, ys = [state(32, f"x{i}") for i in range(2)], [state(32, f"y{i}") for i in range(2)]
        m.d.sync += [xs[0].eq(chosen), ys[0].eq(Cat(y[:31], y[31] ^ (pre == SUB)))]
        for regs in (xs, ys):
            m.d.sync += [b.eq(a) for a, b in pairwise(regs)]
        multiplier = self.shared.place(m, FloatMultiply, "multiplier", a=x, b=y)
        # The adder has its operands in registers: those of both pairs of a rotation stand there at once, product of the first and of the second.
        product, left, right = state(32, "product"), state(32, "left"), state(32, "right")
        second = Cat(multiplier["y"][:31], multiplier["y"][31] ^ self.minus)
        m.d.sync += [
            product.eq(multiplier["y"]), left.eq(Mux(self.rotate, product, xs[1])), right.eq(Mux(self.rotate, second, ys[1])),
        ]  # fmt: skip
        adder = self.shared.place(m, FloatAdd, "adder", a=left, b=right)
        passed = [state(32, f"passed{i}") for i in range(2)]
        m.d.sync += [passed[0].eq(Mux(pre == MUL, product, left)), passed[1].eq(passed[0])]
        added = self.rotate | (~self.mask & ((pre == ADD) | (pre == SUB)))
        result = state(32, "result_out")
        m.d.sync += result.eq(Mux(added, adder["y"], passed[1]))
        m.d.comb += self.result.eq(result)
        return m
