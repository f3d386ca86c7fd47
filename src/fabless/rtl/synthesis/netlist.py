"""A mapped netlist: cells of a library between nets, in the order in which values move."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fabless.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fabless.rtl.synthesis.liberty import Cell, Library

#: Nets 0 and 1 are the constants.
ZERO, ONE = 0, 1
#: A gate of the clock stands apart, as a memory does: what computes is the same with the gate open.
_CLOCK_GATE = {"fl_clock_gate": frozenset({"gated"})}


@dataclass(frozen=True, slots=True)
class Instance:
    """Hold one cell of a netlist: its name, its library cell, and the net on each of its pins."""

    name: str
    cell: Cell
    pins: dict[str, int]


@dataclass(frozen=True, slots=True)
class Netlist:
    """Hold a block after mapping: `flops` and `gates` (in an order in which inputs come before use), ports as nets from bit 0 up.

    Ports of an instance that is no library cell (a memory, a block that is counted apart) are ports of the netlist, named `instance.port`.
    """

    name: str
    library: Library
    n_nets: int
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    clocks: frozenset[int]
    flops: tuple[Instance, ...]
    gates: tuple[Instance, ...]
    net_names: dict[int, str]
    children: dict[str, str] = field(default_factory=dict)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Return all cells."""
        return (*self.flops, *self.gates)

    @property
    def resets(self) -> tuple[int, ...]:
        """Return the nets of reset ports."""
        return tuple(n for name, nets in self.inputs.items() if name == "rst" or (name.endswith("_rst") and "." not in name) for n in nets)

    @property
    def enables(self) -> dict[int, int]:
        """Return the net that opens the gate of each gated clock net."""
        gated = ((name.removesuffix(".gated"), nets) for name, nets in self.inputs.items() if name.endswith(".gated"))
        return {nets[0]: self.outputs[f"{gate}.enable"][0] for gate, nets in gated}

    def data(self, ports: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return ports without clocks and resets."""
        return {
            name: nets
            for name, nets in ports.items()
            if not name.endswith((".rst", "_rst")) and name != "rst" and not self.clocks & set(nets)
        }

    @property
    def area_um2(self) -> float:
        """Return the sum of cell areas."""
        return sum(i.cell.area_um2 for i in self.instances)

    @property
    def leakage_w(self) -> float:
        """Return the sum of cell leakages."""
        return sum(i.cell.leakage_w for i in self.instances)

    def loads_f(self, port_f: float) -> list[float]:
        """Return the capacitance on each net: the pins on it, and `port_f` for each output port. No wires: the netlist is not placed."""
        loads = [0.0] * self.n_nets
        for i in self.instances:
            for pin, net in i.pins.items():
                p = i.cell.pins[pin]
                if p.direction == "input":
                    loads[net] += p.capacitance_f
        for nets in self.outputs.values():
            for net in nets:
                loads[net] += port_f
        return loads


def read_netlist(text: str, top: str, library: Library, drives: Mapping[str, frozenset[str]] | None = None) -> Netlist:
    """Return the netlist of module `top` in JSON as Yosys writes it; `drives`: output ports of the modules in it that are no library cells.

    A module that is not listed is a memory: what it drives are its `rd` ports.
    Raises `UnsupportedError` where a generic cell is left: the library lacks what it takes to build it.
    """
    module = json.loads(text)["modules"][top]
    numbers: dict[Any, int] = {"0": ZERO, "1": ONE, "x": ZERO, "z": ZERO}

    def net(bit: Any) -> int:
        return numbers.setdefault(bit, len(numbers) - 2)

    def nets(bits: list[Any]) -> tuple[int, ...]:
        return tuple(net(b) for b in bits)

    ports: dict[str, dict[str, tuple[int, ...]]] = {"input": {}, "output": {}}
    for name, port in module["ports"].items():
        ports[port["direction"]][name] = nets(port["bits"])
    flops: list[Instance] = []
    gates: list[Instance] = []
    children: dict[str, str] = {}
    for name, c in module["cells"].items():
        kind = c["type"]
        if kind in library:
            cell = library.cell(kind)
            instance = Instance(name, cell, {pin: net(bits[0]) for pin, bits in c["connections"].items() if bits})
            (flops if cell.flop else gates).append(instance)
        elif kind.startswith("$"):
            raise UnsupportedError(
                f"library {library.name} has no cell to build {kind.strip('$_')} of {top}; add a Liberty file that has, with --liberty"
            )
        else:
            children[name] = kind
            driven = (drives or {}).get(kind, _CLOCK_GATE.get(kind))
            for port, bits in c["connections"].items():
                comes_in = port.startswith("rd") if driven is None else port in driven
                ports["input" if comes_in else "output"][f"{name}.{port}"] = nets(bits)
    clocks = frozenset(f.pins[pin] for f in flops for pin in f.pins if f.cell.pins[pin].clock)
    clocks |= {n for port, bits in ports["input"].items() if port.endswith((".gated", "clk")) for n in bits}
    names = {
        net(b): f"{n}[{i}]" if len(v["bits"]) > 1 else n
        for n, v in module["netnames"].items()
        if not v.get("hide_name")
        for i, b in enumerate(v["bits"])
    }
    names.update({net(b): f"{n}[{i}]" for n, v in module["ports"].items() for i, b in enumerate(v["bits"])})
    n_nets = len(numbers) - 2
    sides = [gate_nets(g) for g in gates]
    in_order = tuple(gates[n] for n in ordered(sides, n_nets, lambda n: gates[n].name))
    return Netlist(top, library, n_nets, ports["input"], ports["output"], clocks, tuple(flops), in_order, names, children)


def gate_nets(gate: Instance) -> tuple[list[int], list[int]]:
    """Return the nets that a gate reads and those that it drives."""
    reads: list[int] = []
    drives: list[int] = []
    for pin, net in gate.pins.items():
        (reads if gate.cell.pins[pin].direction == "input" else drives).append(net)
    return reads, drives


def ordered(sides: Sequence[tuple[Sequence[int], Sequence[int]]], n_nets: int, name: Callable[[int], str]) -> list[int]:
    """Return an order of (nets read, nets driven) in which every net is driven before it is read.

    Raises `UnsupportedError` for a loop, through the gate that `name` names.
    """
    readers: list[list[int]] = [[] for _ in range(n_nets)]
    driven = [False] * n_nets
    for _, drives in sides:
        for net in drives:
            driven[net] = True
    waiting = [0] * len(sides)
    for n, (reads, _) in enumerate(sides):
        for net in reads:
            if driven[net]:
                readers[net].append(n)
                waiting[n] += 1
    ready = [n for n, w in enumerate(waiting) if w == 0]
    for n in ready:  # grows while it is walked
        for net in sides[n][1]:
            for reader in readers[net]:
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    ready.append(reader)
    if len(ready) < len(sides):
        loop = next(name(n) for n, w in enumerate(waiting) if w > 0)
        raise UnsupportedError(f"gates form a loop through {loop}; blocks must be synchronous")
    return ready
