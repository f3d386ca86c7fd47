"""Static timing of a netlist: the slowest path from flip-flop to flip-flop by the library's delay, slew and setup tables. No wires.

Graph-based: at every net the latest arrival and, apart from it, the slowest slew go on, for rise and fall; all conditional arcs count. The clock
is ideal (no tree, zero slew). Ports are driven by, and end in, a flip-flop of the library, so that a block's clock is that of the block in its
place. Source: nonlinear delay model of the Liberty User Guide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fabless.rtl.synthesis.liberty import Arc, Cell, Lookup
    from fabless.rtl.synthesis.netlist import Instance, Netlist

_EDGES = ("rise", "fall")
_CAUSES = {"positive_unate": ((0,), (1,)), "negative_unate": ((1,), (0,)), "non_unate": ((0, 1), (0, 1))}
_NONE = -1.0


@dataclass(frozen=True, slots=True)
class Step:
    """Hold one step of a path: the cell, the edge and net that it drives, the load there and when it arrives."""

    instance: str
    cell: str
    net: str
    edge: str
    load_f: float
    arrival_s: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Hold the critical path: `period_s` = launch to end of path + setup; `slews_s[net]` (rise, fall) for energy tables."""

    period_s: float
    setup_s: float
    end: str
    path: tuple[Step, ...]
    slews_s: tuple[tuple[float, float], ...]
    loads_f: tuple[float, ...]
    delays_s: dict[str, float]

    @property
    def fmax_hz(self) -> float:
        """Return the highest clock, pre-layout."""
        return 1.0 / self.period_s


class _Arrivals:
    """Hold the latest arrival, the slowest slew and the arc that caused it, at every net for both edges."""

    def __init__(self, n_nets: int) -> None:
        self.at = [[_NONE, _NONE] for _ in range(n_nets)]
        self.slew = [[0.0, 0.0] for _ in range(n_nets)]
        self.cause: list[list[tuple[int, int, Instance | None] | None]] = [[None, None] for _ in range(n_nets)]

    def launch(self, net: int, arcs: Iterable[Arc], load: float, instance: Instance | None) -> None:
        """Start at a flip-flop's output, clocked by an ideal edge."""
        for arc in arcs:
            for edge, name in enumerate(_EDGES):
                if f"cell_{name}" in arc.tables:
                    at = arc.tables[f"cell_{name}"](0.0, load)
                    self.slew[net][edge] = max(self.slew[net][edge], arc.tables[f"{name}_transition"](0.0, load))
                    if at > self.at[net][edge]:
                        self.at[net][edge], self.cause[net][edge] = at, (_launch, edge, instance)

    def pass_through(self, instance: Instance, loads: list[float]) -> float:
        """Move on through one gate; return its slowest delay."""
        slowest = 0.0
        for pin, net in instance.pins.items():
            p = instance.cell.pins[pin]
            if p.direction != "output":
                continue
            for arc in p.arcs:
                source = instance.pins.get(arc.related, 0)
                if self.at[source][0] == _NONE or not arc.type.startswith("combinational"):
                    continue
                for edge, name in enumerate(_EDGES):
                    if f"cell_{name}" not in arc.tables:
                        continue
                    delay, slew = arc.tables[f"cell_{name}"], arc.tables[f"{name}_transition"]
                    for cause in _CAUSES[arc.sense][edge]:
                        slowest = max(slowest, self._step(net, edge, source, cause, delay, slew, loads[net], instance))
        return slowest

    def _step(self, net: int, edge: int, source: int, cause: int, delay: Lookup, slew: Lookup, load: float, instance: Instance) -> float:
        entering = self.slew[source][cause]
        d = delay(entering, load)
        at = self.at[source][cause] + d
        self.slew[net][edge] = max(self.slew[net][edge], slew(entering, load))
        if at > self.at[net][edge]:
            self.at[net][edge], self.cause[net][edge] = at, (source, cause, instance)
        return d


_launch = -1


def static_timing(netlist: Netlist, port_flop: Cell) -> Timing:
    """Return the critical path of a netlist whose ports are driven by and end in `port_flop`.

    Raises `UnsupportedError` when nothing is timed: no path leads from a start to an end.
    """
    data, clock_to_q = flop_data_pin(port_flop), launch_arcs(port_flop)
    loads = netlist.loads_f(port_flop.pins[data].capacitance_f)
    arrivals = _Arrivals(netlist.n_nets)
    for nets in netlist.inputs.values():
        for net in nets:
            if net not in netlist.clocks:
                arrivals.launch(net, clock_to_q, loads[net], None)
    for f in netlist.flops:
        for pin in f.cell.outputs:
            if pin in f.pins:
                arrivals.launch(f.pins[pin], launch_arcs(f.cell, pin), loads[f.pins[pin]], f)
    delays = {g.name: arrivals.pass_through(g, loads) for g in netlist.gates}
    ends = [(f.pins[p], f.cell, p, f.name) for f in netlist.flops for p in f.cell.inputs if p in f.pins and not f.cell.pins[p].clock]
    ends += [(net, port_flop, data, f"{name}[{i}]") for name, nets in netlist.outputs.items() for i, net in enumerate(nets)]
    worst = max(((*_needed(arrivals, net, cell, pin), net, name) for net, cell, pin, name in ends), default=(0.0, 0.0, 0, 0, ""))
    period, setup, edge, net, end = worst
    if period <= 0.0:
        raise UnsupportedError(f"{netlist.name}: no path is timed; a block needs flip-flops or gates between its ports")
    path = tuple(_walk(arrivals, netlist, net, edge, loads))
    return Timing(period, setup, end, path, tuple((s[0], s[1]) for s in arrivals.slew), tuple(loads), delays)


def flop_data_pin(cell: Cell) -> str:
    """Return the pin that a flip-flop samples."""
    return next(
        p.name for p in cell.pins.values() if p.direction == "input" and not p.clock and any(a.type.startswith("setup") for a in p.arcs)
    )


def launch_arcs(cell: Cell, pin: str | None = None) -> tuple[Arc, ...]:
    """Return the clock-to-output arcs of a flip-flop's pin, its first output if none is named."""
    output = cell.pins[pin or cell.outputs[0]]
    return tuple(a for a in output.arcs if a.type in {"rising_edge", "falling_edge"})


def _needed(arrivals: _Arrivals, net: int, cell: Cell, pin: str) -> tuple[float, float, int]:
    """Return (arrival + setup, setup, edge) of the edge that needs the longer period."""
    best = (0.0, 0.0, 0)
    for edge, name in enumerate(_EDGES):
        if arrivals.at[net][edge] == _NONE:
            continue
        slew = arrivals.slew[net][edge]
        tables = [
            a.tables[f"{name}_constraint"] for a in cell.pins[pin].arcs if a.type.startswith("setup") and f"{name}_constraint" in a.tables
        ]
        setup = max((t(slew, 0.0) for t in tables), default=0.0)
        best = max(best, (arrivals.at[net][edge] + setup, setup, edge))
    return best


def _walk(arrivals: _Arrivals, netlist: Netlist, net: int, edge: int, loads: list[float]) -> list[Step]:
    steps = []
    while (cause := arrivals.cause[net][edge]) is not None:
        source, source_edge, instance = cause
        name, cell = (instance.name, instance.cell.name) if instance else ("port", "")
        steps.append(Step(name, cell, netlist.net_names.get(net, str(net)), _EDGES[edge], loads[net], arrivals.at[net][edge]))
        if source == _launch:
            break
        net, edge = source, source_edge
    return steps[::-1]
