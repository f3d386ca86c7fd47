"""Energy of a netlist from counted toggles: internal and switching energy by the library's tables, leakage, and the clock's own pins. No wires.

Switching: C V^2 / 2 for each toggle of a net. Internal: the library's energy for each rise and fall of an output, weighted over the related inputs
by how often they toggle, and an input pin's own energy for each of its toggles. Clock pins rise and fall in every cycle. Groups of several supply
rails add up; those of ground rails count the same charge again, as it leaves (over a rise and a fall the two agree within 0.1% in ASAP7), and are left
out. OpenSTA adds them. Source: power modelling of the Liberty User Guide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabless.rtl.synthesis.liberty import Internal
    from fabless.rtl.synthesis.netlist import Instance, Netlist
    from fabless.rtl.synthesis.simulation import Activity
    from fabless.rtl.synthesis.timing import Timing


@dataclass(frozen=True, slots=True)
class Energy:
    """Hold joules of one cycle of one block by part, and its leakage in watts."""

    switching_j: float
    internal_j: float
    clock_j: float
    leakage_w: float

    @property
    def dynamic_j(self) -> float:
        """Return joules a cycle without leakage."""
        return self.switching_j + self.internal_j + self.clock_j


def cycle_energy(netlist: Netlist, timing: Timing, toggles_per_cycle: Sequence[float]) -> Energy:
    """Return the energy of one cycle in which net n toggles `toggles_per_cycle[n]` times; clock nets count two whatever is given."""
    rate = list(toggles_per_cycle)
    for net in netlist.clocks:
        rate[net] = 2.0
    half = 0.5 * netlist.library.voltage_v**2
    switching = clock = internal = 0.0
    for net, load in enumerate(timing.loads_f):
        if net in netlist.clocks:
            clock += half * load * 2.0
        else:
            switching += half * load * rate[net]
    for instance in netlist.instances:
        own, clocked = _instance_j(instance, timing, rate)
        internal += own
        clock += clocked
    return Energy(switching, internal, clock, netlist.leakage_w)


def _instance_j(instance: Instance, timing: Timing, rate: Sequence[float]) -> tuple[float, float]:
    """Return (internal joules of outputs and data pins, of clock pins) a cycle."""
    own = clocked = 0.0
    for name, net in instance.pins.items():
        pin = instance.cell.pins[name]
        if not pin.internals or rate[net] <= 0.0:
            continue
        slew = timing.slews_s[net]
        if pin.direction == "input":
            joules = rate[net] * _mean_j([i for i in pin.internals if not i.related], slew, 0.0)
            if pin.clock:
                clocked += joules
            else:
                own += joules
        else:
            own += rate[net] * _output_j(instance, pin.internals, timing, rate, timing.loads_f[net])
    return own, clocked


def _output_j(instance: Instance, internals: Sequence[Internal], timing: Timing, rate: Sequence[float], load: float) -> float:
    """Return joules of one toggle of an output, over its related inputs by their toggles."""
    total = weights = 0.0
    for related in dict.fromkeys(i.related for i in internals):
        net = instance.pins.get(related)
        if net is None:
            continue
        weight = rate[net]
        weights += weight
        total += weight * _mean_j([i for i in internals if i.related == related], timing.slews_s[net], load)
    return total / weights if weights else 0.0


def _mean_j(internals: Sequence[Internal], slews: tuple[float, float], load: float) -> float:
    """Return joules of a toggle: mean of rise and fall and of the states they are given for, added over supply rails."""
    rails: dict[str, list[float]] = {}
    slew = max(slews)
    for i in internals:
        edges = [t(slew, load) for t in (i.rise, i.fall) if t is not None]
        if edges:
            rails.setdefault(i.rail, []).append(sum(edges) / len(edges))
    return sum(sum(values) / len(values) for values in rails.values())


def activity_rates(activity: Activity, *, glitches: bool) -> list[float]:
    """Return toggles per net and cycle, with or without glitches."""
    return [float(t) / activity.n_cycles for t in (activity.toggles if glitches else activity.settled)]
