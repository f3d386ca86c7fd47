"""How a block declares its ports, and how a repeated block is emitted once and instantiated many times.

Amaranth elaborates each submodule anew, so that sixteen equal rows would become sixteen Verilog modules. A `Block` that is `place`d becomes one
Verilog module, which `emit` converts on its own, and an instance of it in each place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from amaranth.hdl import ClockSignal, Elaboratable, Instance, Module, ResetSignal, Signal

if TYPE_CHECKING:
    from fabless.program.tile import Tile

Unit = TypeVar("Unit", bound=Elaboratable)
_UNNAMED = "$signal"


class Block(Elaboratable):
    """Hold named ports; a subclass declares them in `__init__` by `input` and `output` and drives the outputs in `elaborate`.

    `module`: the name of the Verilog module. `shared` holds the tile that sizes the block, and places the blocks inside it.
    """

    module = ""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.inputs: dict[str, Signal] = {}
        self.outputs: dict[str, Signal] = {}

    def input(self, name: str, width: int) -> Signal:
        """Declare an input port of `width` bits."""
        self.inputs[name] = Signal(width, name=name)
        return self.inputs[name]

    def output(self, name: str, width: int) -> Signal:
        """Declare an output port of `width` bits."""
        self.outputs[name] = Signal(width, name=name)
        return self.outputs[name]

    @property
    def ports(self) -> list[Signal]:
        """Return all ports, inputs first."""
        return [*self.inputs.values(), *self.outputs.values()]


def named(unit: Unit) -> Unit:
    """Name a unit's ports after its attributes, where several declared in one line have no name of their own; returns the unit."""
    for name, value in vars(unit).items():
        if isinstance(value, Signal) and value.name == _UNNAMED:
            value.name = name
    return unit


class Placed:
    """Hold the wires of one instance of a block, by port name."""

    def __init__(self, wires: dict[str, Signal]) -> None:
        self.wires = wires

    def __getitem__(self, port: str) -> Signal:
        return self.wires[port]


class Shared:
    """Collect the kinds of block that were placed, each built once: what `emit` converts besides the top. `tile` sizes them.

    `frugal`: less logic over longer paths, for an FPGA; no bit and no cycle differs.
    """

    def __init__(self, tile: Tile, *, frugal: bool = False) -> None:
        self.tile, self.frugal = tile, frugal
        self.blocks: dict[type[Block], Block] = {}

    def place(self, m: Module, kind: type[Block], name: str, *, domain: str = "sync", **inputs: Any) -> Placed:
        """Instantiate a kind of block in `m` as `name`, clocked by `domain`; inputs that are given are driven, all wires come back by port name."""
        if kind not in self.blocks:
            self.blocks[kind] = kind(self)
        block = self.blocks[kind]
        wires = {port: Signal(len(s), name=f"{name}_{port}") for port, s in {**block.inputs, **block.outputs}.items()}
        connections: dict[str, Any] = {"i_clk": ClockSignal(domain), "i_rst": ResetSignal(domain)}
        connections |= {f"i_{port}": wires[port] for port in block.inputs}
        connections |= {f"o_{port}": wires[port] for port in block.outputs}
        m.submodules[name] = Instance(block.module, **connections)
        m.d.comb += [wires[port].eq(value) for port, value in inputs.items()]
        return Placed(wires)
