"""The blocks that are synthesised, each once, and what each does in one cycle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from amaranth.back import rtlil
from amaranth.hdl import Const, Module, Mux, Signal, signed

from fabless.core.errors import InputError, nearest
from fabless.number.dot import BLOCK
from fabless.program.tile import TINY
from fabless.rtl.block import Block, Shared
from fabless.rtl.floating import FloatAdd, FloatMultiply, state
from fabless.rtl.functions import FunctionUnit
from fabless.rtl.lane import Lane
from fabless.rtl.row import ACTIVATION_SCALE_BITS, WEIGHT_SCALE_BITS, Row
from fabless.rtl.synthesis.hierarchy import read_hierarchy
from fabless.rtl.synthesis.yosys import LEAN, THOROUGH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fabless.program.tile import Tile
    from fabless.rtl.synthesis.hierarchy import Hierarchy


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
class Alone:
    """Name a block that can be synthesised without a tile around it: its class, what it is, operations a cycle and their name, its kind on the die."""

    name: str
    block: type[Block]
    title: str
    operation: str
    per_cycle: int
    kind: str


SUBJECTS: Mapping[str, Alone] = {
    s.name: s
    for s in (
        Alone("dot", DotProduct, "dot product of 32 int8: operand registers, multipliers, sum", "MAC", BLOCK, "matrix"),
        Alone("accumulate", Accumulate, "block accumulator of a row: scales, product, binary32 addition", "MAC", BLOCK, "matrix"),
        Alone("row", Row, "whole row in one piece, memories apart", "MAC", BLOCK, "matrix"),
        Alone("lane", Lane, "vector lane: binary32 multiply, add, select", "element", 1, "vector"),
        Alone("function", FunctionUnit, "exp2, reciprocal, reciprocal root: table and two multiplies", "value", 1, "vector"),
        Alone("add", FloatAdd, "binary32 adder of the reduction", "addition", 1, "vector"),
        Alone("multiply", FloatMultiply, "binary32 multiplier of the quantiser", "product", 1, "vector"),
    )
}

#: Modules of a tile: name of the block, what it is, its operation, and its kind on the die. A module that is not listed is a block too.
_MODULES: Mapping[str, tuple[str, str, str, str]] = {
    "fl_lane": ("lane", SUBJECTS["lane"].title, "element", "vector"),
    "fl_function_unit": ("function", SUBJECTS["function"].title, "value", "vector"),
    "fl_float_add": ("add", SUBJECTS["add"].title, "addition", "vector"),
    "fl_float_multiply": ("multiply", SUBJECTS["multiply"].title, "product", "vector"),
    "fl_tile": ("tile", "between the units: waiting for semaphores, choice of a vector bank, cycle counter", "cycle", "control"),
    "fl_tile.sequencer": ("sequencer", "fetch, registers, loops, issue", "instruction", "control"),
    "fl_tile.semaphores": ("semaphores", "32 counters between the queues", "token", "control"),
    "fl_tile.load": ("load", "reads memory, decodes formats, fills buffers", "byte", "noc"),
    "fl_tile.store": ("store", "encodes formats, writes memory", "byte", "noc"),
    "fl_tile.counters": ("counters", "performance counters: where cycles go", "cycle", "control"),
    "fl_tile.net": ("net", "sends to and receives from other tiles", "cycle", "noc"),
    "fl_tile.mxu": ("mxu", "addresses and order of the matrix unit's steps, operand broadcast", "step", "matrix"),
    "fl_tile.vector": ("vector", "operands, order and results of the vector unit; its parts are listed apart", "element", "vector"),
    "fl_tile.vector.reducer": ("reduce", "sum, maximum and first maximum of a row; its adders apart", "element", "vector"),
    "fl_tile.vector.quantiser": ("quantise", "blocks of int8 with a scale; its multipliers apart", "element", "vector"),
}
#: These hold what they place; all other modules place blocks that are counted apart.
_WHOLE = frozenset({"fl_lane", "fl_row"})


@dataclass(frozen=True, slots=True)
class Subject:
    """Hold a block to synthesise: RTLIL by module, the block's own first; where its children stand (instance: module) and what they drive.

    `places`: paths of its instances in the tile, empty for a block alone. `gate`: path of the enable of its clock's gate, where it has one.
    """

    name: str
    title: str
    operation: str
    per_cycle: int
    kind: str
    sources: dict[str, str]
    recipes: tuple[str, ...] = LEAN
    places: tuple[str, ...] = ()
    children: dict[str, str] = field(default_factory=dict)
    drives: dict[str, frozenset[str]] = field(default_factory=dict)
    gate: str | None = None

    @property
    def module(self) -> str:
        """Return the name of the block's module."""
        return next(iter(self.sources))


def subject_named(name: str) -> Subject:
    """Return a block alone. Raises `InputError` naming the nearest."""
    if name not in SUBJECTS:
        raise InputError(f"unknown block '{name}'{nearest(name, SUBJECTS)}; known: {', '.join(SUBJECTS)}")
    s = SUBJECTS[name]
    recipes = THOROUGH if s.name in {"dot", "accumulate", "row", "add"} else LEAN
    return Subject(s.name, s.title, s.operation, s.per_cycle, s.kind, block_rtlil(s.block), recipes)


def tile_subjects(hierarchy: Hierarchy, tile: Tile) -> dict[str, Subject]:
    """Return the blocks that together are a tile, by name: children before what places them; a row as dot product and accumulator."""
    places = hierarchy.paths(whole=_WHOLE)
    found = {}
    rows = places["fl_row"]
    for name in ("dot", "accumulate"):
        found[name] = replace(subject_named(name), places=rows)
    for module in sorted(places, key=lambda m: (-max(p.count(".") + bool(p) for p in places[m]), m)):
        if module == "fl_row":
            continue
        hardware = hierarchy.modules[module]
        name, title, operation, kind = _MODULES.get(module, (module.rpartition(".")[2], "", "cycle", "control"))
        if name.startswith("queue_"):
            title, operation = "waits for its unit: entries in order, sync", "instruction"
        whole = module in _WHOLE
        children = {} if whole else dict(hierarchy.below(module))
        found[name] = Subject(
            name, title, operation, _rate(name, tile), kind, hierarchy.closure(module) if whole else {module: hardware.text},
            THOROUGH if name == "add" else LEAN, places[module], children,
            {m: frozenset(hierarchy.modules[m].outputs) for m in children.values()}, _gate(hierarchy, places[module]),
        )  # fmt: skip
    return found


def _gate(hierarchy: Hierarchy, places: tuple[str, ...]) -> str | None:
    """Return the enable of the clock gate at the top in whose domain the last of the instances, the one within its own unit, stands."""
    unit = places[-1].partition(".")[0]
    gate = f"gate_{unit}"
    return f"{gate}.enable" if unit and gate in hierarchy.modules[hierarchy.top].instances else None


def _rate(name: str, tile: Tile) -> int:
    """Return the operations that a block does at most in a cycle."""
    if name in {"vector", "reduce", "quantise"}:
        return tile.vector_lanes
    return tile.memory_bytes_per_cycle if name in {"load", "store"} else 1


def tile_hierarchy(tile: Tile) -> Hierarchy:
    """Return the modules of a whole tile. Raises `UnsupportedError` for one that cannot be built."""
    from fabless.rtl.tile import TileTop

    return read_hierarchy(block_rtlil(TileTop, tile), TileTop.module)


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
