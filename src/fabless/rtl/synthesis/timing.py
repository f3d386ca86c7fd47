"""Static timing of a netlist: the slowest path from flip-flop to flip-flop by the library's delay, slew and setup tables. Wires only
where the block is placed (`placement`).

Graph-based: at every net the latest arrival and, apart from it, the slowest slew go on, for rise and fall; all conditional arcs count. The clock
is ideal (no tree, zero slew). Ports are driven by, and end in, a flip-flop of the library, so that a block's clock is that of the block in its
place. A child that is counted apart enters its parent by a `Model` of its ports: when its outputs are there, how much of the period its inputs
need, and how long what goes straight through takes. Source: nonlinear delay model of the Liberty User Guide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.core.errors import UnsupportedError
from fabless.rtl.synthesis.netlist import gate_nets, ordered

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fabless.rtl.synthesis.liberty import Arc, Cell, Lookup
    from fabless.rtl.synthesis.netlist import Instance, Netlist
    from fabless.rtl.synthesis.placement import Placement

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


@dataclass(frozen=True, slots=True)
class Model:
    """Hold a block's ports as its parent sees them, seconds by port: from the clock to outputs, from inputs to the clock, from inputs to outputs."""

    arrives_s: dict[str, float]
    needs_s: dict[str, float]
    through_s: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True, slots=True)
class _Through:
    """Hold what goes straight through a child: every bit of one port to every bit of another, in one time."""

    name: str
    reads: tuple[int, ...]
    drives: tuple[int, ...]
    delay_s: float


class _Arrivals:
    """Hold the latest arrival, the slowest slew and the arc that caused it, at every net for both edges."""

    def __init__(self, n_nets: int, wires_s: Sequence[float] = ()) -> None:
        self.wires_s = wires_s or [0.0] * n_nets
        self.at = [[_NONE, _NONE] for _ in range(n_nets)]
        self.slew = [[0.0, 0.0] for _ in range(n_nets)]
        self.cause: list[list[tuple[int, int, Instance | _Through | None] | None]] = [[None, None] for _ in range(n_nets)]

    def launch(self, net: int, arcs: Iterable[Arc], load: float, instance: Instance | None) -> None:
        """Start at a flip-flop's output, clocked by an ideal edge."""
        for arc in arcs:
            for edge, name in enumerate(_EDGES):
                if f"cell_{name}" in arc.tables:
                    at = arc.tables[f"cell_{name}"](0.0, load) + self.wires_s[net]
                    self.slew[net][edge] = max(self.slew[net][edge], arc.tables[f"{name}_transition"](0.0, load))
                    if at > self.at[net][edge]:
                        self.at[net][edge], self.cause[net][edge] = at, (_launch, edge, instance)

    def start(self, net: int, at_s: float, slew_s: float) -> None:
        """Start at a port at a time."""
        for edge in (0, 1):
            self.slew[net][edge] = max(self.slew[net][edge], slew_s)
            if at_s > self.at[net][edge]:
                self.at[net][edge], self.cause[net][edge] = at_s, (_launch, edge, None)

    def pass_child(self, through: _Through, slew_s: float) -> None:
        """Move on through a child, from the latest of its bits."""
        latest = max(((max(self.at[n]), n) for n in through.reads), default=(_NONE, 0))
        if latest[0] == _NONE:
            return
        edge = int(self.at[latest[1]][1] > self.at[latest[1]][0])
        for net in through.drives:
            for out in (0, 1):
                self.slew[net][out] = max(self.slew[net][out], slew_s)
                if latest[0] + through.delay_s > self.at[net][out]:
                    self.at[net][out], self.cause[net][out] = latest[0] + through.delay_s, (latest[1], edge, through)

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
        at = self.at[source][cause] + d + self.wires_s[net]
        self.slew[net][edge] = max(self.slew[net][edge], slew(entering, load))
        if at > self.at[net][edge]:
            self.at[net][edge], self.cause[net][edge] = at, (source, cause, instance)
        return d


_launch = -1


def static_timing(netlist: Netlist, port_flop: Cell, models: Mapping[str, Model] | None = None, placed: Placement | None = None) -> Timing:
    """Return the critical path of a netlist whose ports are driven by and end in `port_flop`, but for those of children with a model.

    `placed`: wires, whose capacitance loads what drives them and whose delay comes behind it.
    Raises `UnsupportedError` when nothing is timed: no path leads from a start to an end.
    """
    run = _Run(netlist, port_flop, models or {}, placed)
    arrivals = _Arrivals(netlist.n_nets, run.wires_s)
    run.launch_ports(arrivals)
    run.launch_flops(arrivals)
    delays = run.move(arrivals)
    worst = max(((*run.needed(arrivals, e), e.net, e.name) for e in run.ends), default=(0.0, 0.0, 0, 0, ""))
    period, setup, edge, net, end = worst
    if period <= 0.0:
        raise UnsupportedError(f"{netlist.name}: no path is timed; a block needs flip-flops or gates between its ports")
    path = tuple(_walk(arrivals, netlist, net, edge, run.loads))
    return Timing(period, setup, end, path, tuple((s[0], s[1]) for s in arrivals.slew), tuple(run.loads), delays)


def port_model(netlist: Netlist, port_flop: Cell, models: Mapping[str, Model] | None = None, placed: Placement | None = None) -> Model:
    """Return a block's ports as its parent sees them: each input on its own, arriving with the slew of a flip-flop. `placed`: see `static_timing`."""
    run = _Run(netlist, port_flop, models or {}, placed)
    arrivals = _Arrivals(netlist.n_nets, run.wires_s)
    run.launch_flops(arrivals)
    run.move(arrivals)
    outputs = {name: nets for name, nets in netlist.outputs.items() if "." not in name}
    arrives = {name: max((max(arrivals.at[n]) for n in nets), default=_NONE) for name, nets in outputs.items()}
    needs: dict[str, float] = {}
    through: list[tuple[str, str, float]] = []
    for name, nets in netlist.inputs.items():
        if "." in name or netlist.clocks & set(nets):
            continue
        arrivals = _Arrivals(netlist.n_nets, run.wires_s)
        for net in nets:
            arrivals.start(net, 0.0, run.slew_s)
        run.move(arrivals)
        needs[name] = max((run.needed(arrivals, e)[0] for e in run.ends if e.is_inside), default=0.0)
        for output, out in outputs.items():
            latest = max((max(arrivals.at[n]) for n in out), default=_NONE)
            if latest > 0.0 or (latest == 0.0 and set(out) & set(nets)):
                through.append((name, output, latest))
    return Model({k: v for k, v in arrives.items() if v != _NONE}, needs, tuple(through))


@dataclass(frozen=True, slots=True)
class _End:
    """Hold where paths end: a net, the flip-flop and pin whose setup counts (None: `need_s` does), and whether that lies inside the block."""

    net: int
    name: str
    cell: Cell | None
    pin: str
    need_s: float
    is_inside: bool


class _Run:
    """Hold what every walk through one netlist shares: loads, ends, and gates and children in the order in which values move."""

    def __init__(self, netlist: Netlist, port_flop: Cell, models: Mapping[str, Model], placed: Placement | None = None) -> None:
        self.netlist, self.port_flop = netlist, port_flop
        self.models = {i: models[m] for i, m in netlist.children.items() if m in models}
        data = flop_data_pin(port_flop)
        self.loads = netlist.loads_f(port_flop.pins[data].capacitance_f)
        self.wires_s: Sequence[float] = ()
        if placed is not None:
            self.loads = [pins + wire for pins, wire in zip(self.loads, placed.wires_f, strict=True)]
            self.wires_s = placed.delays_s
        arcs = launch_arcs(port_flop)
        self.slew_s = max(a.tables[f"{e}_transition"](0.0, 2e-15) for a in arcs for e in _EDGES if f"{e}_transition" in a.tables)
        self.ends = [
            _End(f.pins[p], f.name, f.cell, p, 0.0, True)
            for f in netlist.flops
            for p in f.cell.inputs
            if p in f.pins and not f.cell.pins[p].clock
        ]
        for name, nets in netlist.outputs.items():
            child, _, port = name.rpartition(".")
            model = self.models.get(child)
            need = model.needs_s.get(port, 0.0) if model else 0.0
            self.ends += [_End(net, f"{name}[{i}]", None if model else port_flop, data, need, bool(child)) for i, net in enumerate(nets)]
        self.steps = self._steps()

    def _steps(self) -> list[Instance | _Through]:
        n = self.netlist
        through = [
            _Through(child, n.outputs.get(f"{child}.{a}", ()), n.inputs.get(f"{child}.{b}", ()), s)
            for child, model in self.models.items()
            for a, b, s in model.through_s
        ]
        if not through:
            return list(n.gates)
        steps: list[Instance | _Through] = [*n.gates, *through]
        sides = [gate_nets(g) for g in n.gates] + [(list(t.reads), list(t.drives)) for t in through]
        return [steps[i] for i in ordered(sides, n.n_nets, lambda i: steps[i].name)]

    def launch_ports(self, arrivals: _Arrivals) -> None:
        """Start at the inputs, as from flip-flops, and at what children drive."""
        clock_to_q = launch_arcs(self.port_flop)
        for name, nets in self.netlist.inputs.items():
            model = self.models.get(name.rpartition(".")[0])
            for net in nets:
                if model is None and net not in self.netlist.clocks:
                    arrivals.launch(net, clock_to_q, self.loads[net], None)
        self._launch_children(arrivals)

    def _launch_children(self, arrivals: _Arrivals) -> None:
        for name, nets in self.netlist.inputs.items():
            child, _, port = name.rpartition(".")
            if child in self.models and port in self.models[child].arrives_s:
                for net in nets:
                    arrivals.start(net, self.models[child].arrives_s[port], self.slew_s)

    def launch_flops(self, arrivals: _Arrivals) -> None:
        """Start at the block's own flip-flops and those of its children."""
        for f in self.netlist.flops:
            for pin in f.cell.outputs:
                if pin in f.pins:
                    arrivals.launch(f.pins[pin], launch_arcs(f.cell, pin), self.loads[f.pins[pin]], f)
        self._launch_children(arrivals)

    def move(self, arrivals: _Arrivals) -> dict[str, float]:
        """Move on through all gates and children; return the slowest delay of each gate."""
        delays = {}
        for step in self.steps:
            if isinstance(step, _Through):
                arrivals.pass_child(step, self.slew_s)
            else:
                delays[step.name] = arrivals.pass_through(step, self.loads)
        return delays

    def needed(self, arrivals: _Arrivals, end: _End) -> tuple[float, float, int]:
        """Return (arrival + setup, setup, edge) of the edge that needs the longer period."""
        if end.cell is not None:
            return _needed(arrivals, end.net, end.cell, end.pin)
        at = arrivals.at[end.net]
        edge = int(at[1] > at[0])
        return (at[edge] + end.need_s, end.need_s, edge) if at[edge] != _NONE else (0.0, 0.0, 0)


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
        name, cell = (
            ("port", "") if instance is None else (instance.name, "through" if isinstance(instance, _Through) else instance.cell.name)
        )
        steps.append(Step(name, cell, netlist.net_names.get(net, str(net)), _EDGES[edge], loads[net], arrivals.at[net][edge]))
        if source == _launch:
            break
        net, edge = source, source_edge
    return steps[::-1]
