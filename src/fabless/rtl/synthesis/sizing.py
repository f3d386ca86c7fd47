"""Exchange gates of a placed block for stronger ones of the same function, where wires made its paths slow."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING

from fabless.rtl.synthesis.netlist import Instance
from fabless.rtl.synthesis.timing import static_timing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fabless.rtl.synthesis.liberty import Cell, Library
    from fabless.rtl.synthesis.netlist import Netlist
    from fabless.rtl.synthesis.placement import Placement
    from fabless.rtl.synthesis.timing import Model, Timing

#: Rounds of exchanges at most, and how many in a row may pass without a faster clock.
_ROUNDS, _PATIENCE = 200, 8
#: What an exchange must gain, as a share of the gate's delay.
_GAIN_RATIO = 0.02

Variants = dict[str, tuple["Cell", ...]]


def resized(
    netlist: Netlist, flop: Cell, placed: Placement, *, avoid: tuple[str, ...], models: Mapping[str, Model], target_s: float
) -> Netlist:
    """Return the netlist with stronger gates on its slowest paths, until it meets `target_s` or no exchange makes the clock faster.

    A gate is exchanged where it gains more, behind its load of pins and wire, than its larger inputs cost the gate before it.
    """
    variants = _variants(netlist.library, avoid)
    cells = {g.name: g for g in netlist.gates}
    timing = static_timing(netlist, flop, models, placed)
    best, period_s, patience = netlist, timing.period_s, _PATIENCE
    for _ in range(_ROUNDS):
        if period_s <= target_s or not patience:
            break
        changed = False
        for before, step in pairwise(timing.path):
            if (gate := cells.get(step.instance)) is not None:
                stronger = _stronger(gate, cells.get(before.instance), variants, timing)
                changed |= stronger is not None
                cells[gate.name] = stronger or gate
        if not changed:
            break
        tried = replace(netlist, gates=tuple(cells[g.name] for g in netlist.gates))
        timing = static_timing(tried, flop, models, placed)
        patience -= 1
        if timing.period_s < period_s:
            best, period_s, patience = tried, timing.period_s, _PATIENCE
    return best


def _variants(library: Library, avoid: tuple[str, ...]) -> Variants:
    """Return, for each cell without state, all cells with the same pins and functions."""
    kinds: dict[tuple[object, ...], list[Cell]] = {}
    for name in library.cell_names:
        if any(fnmatchcase(name, pattern) for pattern in avoid):
            continue
        cell = library.cell(name)
        if cell.flop is None and cell.outputs:
            key = (tuple(sorted(cell.inputs)), tuple(sorted((o, cell.pins[o].function) for o in cell.outputs)))
            kinds.setdefault(key, []).append(cell)
    return {cell.name: tuple(group) for group in kinds.values() for cell in group}


def _stronger(gate: Instance, before: Instance | None, variants: Variants, timing: Timing) -> Instance | None:
    """Return the gate as the variant that makes it and the one before it fastest, if that gains enough."""
    now = _delay_s(gate, gate.cell, timing)
    best, least = None, now * (1 - _GAIN_RATIO)
    for cell in variants.get(gate.cell.name, ()):
        more_f = max(cell.pins[p].capacitance_f - gate.cell.pins[p].capacitance_f for p in cell.inputs)
        cost = 0.0 if before is None else _delay_s(before, before.cell, timing, more_f) - _delay_s(before, before.cell, timing)
        total = _delay_s(gate, cell, timing) + cost
        if total < least:
            best, least = cell, total
    return None if best is None else Instance(gate.name, best, gate.pins)


def _delay_s(gate: Instance, cell: Cell, timing: Timing, more_f: float = 0.0) -> float:
    """Return the slowest delay of a gate as another cell, behind the slews that come in and the load that stands there, and some more."""
    slowest = 0.0
    for pin, net in gate.pins.items():
        if cell.pins[pin].direction != "output":
            continue
        for arc in cell.pins[pin].arcs:
            slew = max(timing.slews_s[gate.pins.get(arc.related, 0)])
            for edge in ("cell_rise", "cell_fall"):
                if edge in arc.tables and arc.type.startswith("combinational"):
                    slowest = max(slowest, arc.tables[edge](slew, timing.loads_f[net] + more_f))
    return slowest
