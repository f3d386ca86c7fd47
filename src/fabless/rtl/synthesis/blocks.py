"""The blocks that are synthesised, each once, and what each does in one cycle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amaranth.back import rtlil
from amaranth.hdl import Const, Module, Mux, Signal, signed

from fabless.core.errors import InputError, nearest
from fabless.number.dot import BLOCK
from fabless.program.tile import TINY, Tile
from fabless.rtl.block import Block, Shared
from fabless.rtl.floating import FloatAdd, FloatMultiply, state
from fabless.rtl.functions import FunctionUnit
from fabless.rtl.lane import Lane
from fabless.rtl.row import ACTIVATION_SCALE_BITS, WEIGHT_SCALE_BITS, Row

if TYPE_CHECKING:
    from collections.abc import Mapping


class DotProduct(Block):
    """Multiply and sum one block of 32: `w`, `a` in (registered), `y` = the exact sum, from a register `LATENCY` cycles later. One a cycle."""

    module = "fl_dot"
    LATENCY = 4

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.w, self.a = self.input("w", 8 * BLOCK), self.input("a", 8 * BLOCK)
        self.y = self.output("y", 21)

    def elaborate(self, platform: Any) -> Module:
        """Return the circuit."""
        m = Module()
        weight, activation = state(8 * BLOCK, "weight"), state(8 * BLOCK, "activation")
        m.d.comb += self.y.eq(Row.dot(m, weight, activation))
        m.d.sync += [weight.eq(self.w), activation.eq(self.a)]
        return m


class Accumulate(Block):
    """Scale one exact sum and add it to an accumulator: what a row has besides its dot product and memories. One a cycle.

    Ports: `weight_scale`, `activation_scale`, `unit` (registered, 3 cycles ahead of `isum`); `isum` from a register; `acc` and `clear` from a memory
    and a register, 4 cycles after `isum`; `y` the new accumulator, 2 cycles after those.
    """

    module = "fl_accumulate"
    SCALE_AHEAD, ACC_BEHIND, Y_BEHIND = 3, 4, 2

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.isum, self.acc = self.input("isum", 21), self.input("acc", 32)
        self.weight_scale, self.activation_scale = (
            self.input("weight_scale", WEIGHT_SCALE_BITS),
            self.input("activation_scale", ACTIVATION_SCALE_BITS),
        )
        self.unit, self.clear = self.input("unit", 1), self.input("clear", 1)
        self.y = self.output("y", 32)

    def elaborate(self, platform: Any) -> Module:
        """Return the circuit."""
        m = Module()
        weight_scale, activation_scale = state(WEIGHT_SCALE_BITS, "weight_scale_in"), state(ACTIVATION_SCALE_BITS, "activation_scale_in")
        isum = Signal(signed(21))
        significand, flags = Row.scale(m, weight_scale, activation_scale)
        adder = self.shared.place(m, FloatAdd, "adder", a=Mux(self.clear, 0, self.acc), b=Row.scaled(m, isum, significand, flags))
        one = Const(0x3F800000 >> 32 - WEIGHT_SCALE_BITS, WEIGHT_SCALE_BITS)
        m.d.comb += [isum.eq(self.isum), self.y.eq(adder["y"])]
        m.d.sync += [weight_scale.eq(Mux(self.unit, one, self.weight_scale)), activation_scale.eq(self.activation_scale)]
        return m


@dataclass(frozen=True, slots=True)
class Subject:
    """Name a block to synthesise: its class, what it is, operations a cycle and their name, how many a tile has of it."""

    name: str
    kind: type[Block]
    title: str
    operation: str
    per_cycle: int

    def count(self, tile: Tile) -> int:
        """Return how many of it a tile has."""
        return {"dot": tile.rows, "accumulate": tile.rows, "lane": tile.vector_lanes, "function": tile.vector_lanes}.get(self.name, 0)


SUBJECTS: Mapping[str, Subject] = {
    s.name: s
    for s in (
        Subject("dot", DotProduct, "dot product of 32 int8: operand registers, multipliers, sum", "MAC", BLOCK),
        Subject("accumulate", Accumulate, "block accumulator of a row: scales, product, binary32 addition", "MAC", BLOCK),
        Subject("row", Row, "whole row in one piece, memories apart", "MAC", BLOCK),
        Subject("lane", Lane, "vector lane: binary32 multiply, add, select", "operation", 1),
        Subject("function", FunctionUnit, "exp2, reciprocal, reciprocal root: table and two multiplies", "operation", 1),
        Subject("add", FloatAdd, "binary32 adder", "addition", 1),
        Subject("multiply", FloatMultiply, "binary32 multiplier", "product", 1),
    )
}


def subject_named(name: str) -> Subject:
    """Return a block. Raises `InputError` naming the nearest."""
    if name not in SUBJECTS:
        raise InputError(f"unknown block '{name}'{nearest(name, SUBJECTS)}; known: {', '.join(SUBJECTS)}")
    return SUBJECTS[name]


def block_rtlil(kind: type[Block], tile: Tile = TINY) -> dict[str, str]:
    """Return RTLIL by module name: the block and every block that it places, the block itself first."""
    shared = Shared(tile)
    top = kind(shared)
    texts: dict[str, str] = {}
    pending: list[Block] = [top]
    while pending:
        block = pending.pop()
        texts[block.module] = rtlil.convert(block, name=block.module, ports=block.ports, emit_src=False)
        pending = sorted((b for b in shared.blocks.values() if b.module not in texts), key=lambda b: b.module)
    return texts
