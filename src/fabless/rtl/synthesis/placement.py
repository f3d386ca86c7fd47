"""Place a mapped block's cells in rows (Coloquinte), and say what its wires then add: capacitance and delay of every net.

The core is a square at a given use of its area. Ports have no place of their own: each stands on the nearest edge of the core. A net's wire is as
long as half the perimeter of its pins' box times the factor by which a Steiner tree of so many pins is longer (Cheng 1994); it is one lump:
all pins of a net see the whole capacitance, and the delay of the whole wire into half of it and the pins behind it (Elmore 1948). No routing, no
clock tree; gates stay as they were mapped, before wires were known: what a flow that resizes and buffers reaches lies between these figures and those
without wires.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil, sqrt
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import MissingToolError
from fabless.core.sources import table
from fabless.rtl.synthesis.netlist import ONE, ZERO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fabless.rtl.synthesis.netlist import Netlist

#: How much of the core cells cover, and Coloquinte's effort (1 to 9).
USE_RATIO, EFFORT = 0.7, 3
#: Pins of a net -> length of its Steiner tree over half the perimeter of its box. Source: C. E. Cheng, RISA: accurate and efficient placement
#: routability modeling, ICCAD 1994, table 1; beyond 30 pins by the slope of its last entries.
_TREE = ((3, 1.0), (4, 1.0828), (5, 1.1536), (6, 1.2206), (7, 1.2823), (8, 1.3385), (9, 1.3991), (10, 1.4493), (15, 1.6899), (20, 1.8924), (25, 2.0743),
         (30, 2.2334))  # fmt: skip
_NM = 1000.0  # coordinates are whole nanometres


@dataclass(frozen=True, slots=True)
class Wires:
    """Hold a kit's placement site and its signal wire: `site_um` x `row_um`, farads and ohms a micrometre."""

    site_um: float
    row_um: float
    f_per_um: float
    ohm_per_um: float


@dataclass(frozen=True, slots=True)
class Placement:
    """Hold a placed block: the core's sides, cells' lower left corners, and by net the length, capacitance and delay of its wire."""

    width_um: float
    height_um: float
    x_um: NDArray[np.float64]
    y_um: NDArray[np.float64]
    length_um: NDArray[np.float64]
    wires_f: tuple[float, ...]
    delays_s: tuple[float, ...]

    @property
    def area_um2(self) -> float:
        """Return the area of the core."""
        return self.width_um * self.height_um


def wires_of(kit: str) -> Wires:
    """Return site and wire of a kit: rows of `data/wires.toml`."""
    facts = table("wires")
    site, row, capacitance, resistance = (facts.fact(f"{kit}_{n}").known for n in ("site", "row", "wire_capacitance", "wire_resistance"))
    return Wires(site, row, capacitance * 1e-6, resistance * 1e-6)


def check_placer() -> None:
    """Raise `MissingToolError` without Coloquinte."""
    if find_spec("coloquinte") is None:
        raise MissingToolError("placement needs Coloquinte; install it with: pip install 'fabless[place]'")


def placed(netlist: Netlist, wires: Wires, *, use_ratio: float = USE_RATIO, effort: int = EFFORT) -> Placement:
    """Return a netlist placed. The same netlist gives the same places. Raises `MissingToolError` without Coloquinte."""
    check_placer()
    import coloquinte

    instances = netlist.instances
    site, row = round(wires.site_um * _NM), round(wires.row_um * _NM)
    widths = [max(1, ceil(i.cell.area_um2 / wires.row_um / wires.site_um - 1e-6)) * site for i in instances]
    n_rows = max(1, round(sqrt(sum(widths) / use_ratio / row)))
    side = ceil(sum(widths) / use_ratio / n_rows / site) * site
    side = max(side, max(widths, default=site))
    members = _members(netlist)
    circuit = coloquinte.Circuit(len(instances))
    circuit.cell_width, circuit.cell_height = widths, [row] * len(instances)
    circuit.cell_row_polarity = [coloquinte.CellRowPolarity.SAME] * len(instances)
    for cells in members.values():
        if len(cells) > 1:
            circuit.add_net(cells, [widths[c] // 2 for c in cells], [row // 2] * len(cells))
    circuit.setup_rows(coloquinte.Rectangle(0, side, 0, n_rows * row), row, True, True)
    with _silent():
        circuit.place_global(effort)
        circuit.place_detailed(effort)
    x, y = np.array(circuit.cell_x) / _NM, np.array(circuit.cell_y) / _NM
    width, height = side / _NM, n_rows * row / _NM
    at = np.stack([x + np.array(widths) / 2 / _NM, y + row / 2 / _NM], axis=1)
    length = _lengths(netlist, members, at, (width, height))
    return Placement(width, height, x, y, length, *_loads(netlist, length, wires))


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what the placer says of its progress from standard output."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def _members(netlist: Netlist) -> dict[int, list[int]]:
    """Return the cells on each signal net, each once: not on constants, nor on clocks."""
    members: dict[int, list[int]] = {}
    for i, instance in enumerate(netlist.instances):
        for net in dict.fromkeys(instance.pins.values()):
            if net not in (ZERO, ONE) and net not in netlist.clocks:
                members.setdefault(net, []).append(i)
    return members


def _lengths(netlist: Netlist, members: dict[int, list[int]], at: NDArray[np.float64], core: tuple[float, float]) -> NDArray[np.float64]:
    """Return the length of each net's wire, to a port on the nearest edge where it has one."""
    ports = {net for side in (netlist.inputs, netlist.outputs) for nets in side.values() for net in nets}
    length = np.zeros(netlist.n_nets)
    for net, cells in members.items():
        low, high = at[cells].min(axis=0), at[cells].max(axis=0)
        to_port = min(low[0], core[0] - high[0], low[1], core[1] - high[1]) if net in ports else 0.0
        pins = len(cells) + (net in ports)
        length[net] = (float((high - low).sum()) + max(0.0, to_port)) * _tree(pins)
    return length


def _tree(pins: int) -> float:
    """Return by how much a tree of so many pins is longer than half the perimeter of their box."""
    if pins > _TREE[-1][0]:
        (a, fa), (b, fb) = _TREE[-2:]
        return fb + (fb - fa) / (b - a) * (pins - b)
    return float(np.interp(pins, [n for n, _ in _TREE], [f for _, f in _TREE]))


def _loads(netlist: Netlist, length: NDArray[np.float64], wires: Wires) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return capacitance and Elmore delay of each net's wire, the pins at its far end."""
    pins = np.array(netlist.loads_f(0.0))
    capacitance = length * wires.f_per_um
    delay = length * wires.ohm_per_um * (capacitance / 2 + pins)
    return tuple(capacitance.tolist()), tuple(delay.tolist())
