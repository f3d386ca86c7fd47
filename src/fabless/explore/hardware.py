"""Many chips as columns: area, power, energy per event and price of each, so that points are computed on whole arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import log
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.errors import InfeasibleError
from fabless.core.sources import table
from fabless.cost.inputs import ends
from fabless.cost.package import Part
from fabless.cost.price import part_of
from fabless.cost.system import energy_usd_per_year
from fabless.cost.yearly import chip_year
from fabless.explore.pricing import inputs_of
from fabless.silicon.harden import harden
from fabless.silicon.interfaces import interface_excess
from fabless.silicon.process import max_clock_hz, own_clock_hz

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fabless.chip.chip import Chip
    from fabless.cost.inputs import Inputs
    from fabless.explore.study import Study
    from fabless.silicon.silicon import Silicon
    from fabless.sim.roofline import Estimates

    Array = NDArray[np.float64]
    Values = float | Array

#: Limits on the chip itself, in the order of the columns that `hardware_of` returns.
HARDWARE_LIMITS = ("reticle", "clock", "interface", "carrier", "heat", "chip_w", "package_usd", "nre_usd")
_MOST_DIES = 16  # a chip that would need more is no chip: the study's space is refused by name
CHEAPEST, MIDDLE, DEAREST = range(3)
_EVENTS = ("vector_op_j", "dram_byte_j", "shared_byte_j", "scratchpad_byte_j", "link_byte_j")


@dataclass(frozen=True, slots=True)
class Energies:
    """Hold joules per event of `n` chips at the middle of every range, `[n]` each; `mac_j` by element format, 0 where a chip lacks it."""

    chips: tuple[Chip, ...]
    mac_j: dict[str, Array]
    events: dict[str, Array]

    @classmethod
    def of(cls, chips: Sequence[Chip], silicon: Sequence[Silicon]) -> Energies:
        """Gather the energy tables of hardened chips."""
        tables = [{name: joules.mid for name, joules in s.energy.mac_j} for s in silicon]
        names = sorted({name for row in tables for name in row})
        macs = {name: np.array([row.get(name, 0.0) for row in tables]) for name in names}
        return cls(tuple(chips), macs, {e: np.array([getattr(s.energy, e).mid for s in silicon]) for e in _EVENTS})

    def take(self, index: NDArray[np.int64]) -> Energies:
        """Return the chips of some positions."""
        chips = tuple(self.chips[i] for i in index)
        return Energies(chips, {k: v[index] for k, v in self.mac_j.items()}, {k: v[index] for k, v in self.events.items()})

    def dynamic_j(self, estimates: Estimates) -> Array:
        """Return the dynamic energy of one step on all chips of the plan, `[n_graphs, n_chips]`."""
        counted = (estimates.vector_ops, estimates.dram_bytes, estimates.shared_bytes, estimates.scratchpad_bytes, estimates.link_bytes)
        total = np.zeros_like(estimates.latency_s)
        for name, count in zip(_EVENTS, counted, strict=True):
            total += count * self.events[name]
        for name, macs in estimates.macs.items():
            total += macs * self.mac_j.get(name, np.zeros(len(self.chips)))
        return total * estimates.n_chips


@dataclass(frozen=True, slots=True)
class Hardware:
    """Hold what the service's cost needs of `n` chips: figures `[n]`; prices `[3, n]`, with every input at its cheapest, middle and dearest end.

    `fixed_usd_per_year` is everything about one installed chip that is paid whether or not it works: its price, server, network, building and
    upkeep; `usd_per_average_w_year` a year's electricity per watt of the chip's average power; `provisioned_w` the facility power reserved.
    """

    energies: Energies
    idle_w: Array
    tdp_w: Array
    die_area_mm2: Array
    provisioned_w: Array
    package_usd: Array
    nre_usd: Array
    nre_usd_per_year: Array
    fixed_usd_per_year: Array
    usd_per_average_w_year: Array

    @property
    def chips(self) -> tuple[Chip, ...]:
        """Return the chips themselves."""
        return self.energies.chips

    def take(self, index: NDArray[np.int64]) -> Hardware:
        """Return the chips of some positions."""
        columns = {f.name: getattr(self, f.name)[..., index] for f in fields(Hardware) if f.name != "energies"}
        return Hardware(self.energies.take(index), **columns)


def hardware_of(study: Study, chips: Sequence[Chip]) -> tuple[Hardware, Array]:
    """Harden and price chips; also return by how much each misses the study's limits on a chip, `[n, len(HARDWARE_LIMITS)]`.

    A miss is the logarithm of value over limit, 0 where the limit is met.
    """
    hardened = [_silicon(chip) for chip in chips]
    silicon = [s for s, _, _ in hardened]
    columns: dict[str, Any] = {name: np.array([getattr(s, name) for s in silicon]) for name in ("idle_w", "tdp_w", "die_area_mm2")}
    hardware = Hardware(Energies.of(chips, silicon), **columns, **_prices(study, chips, silicon))
    limits = study.limits
    bounded = (
        (hardware.tdp_w, limits.chip_w),
        (hardware.package_usd[MIDDLE], limits.package_usd),
        (hardware.nre_usd[MIDDLE], limits.nre_usd),
    )
    missed = np.zeros((len(chips), len(HARDWARE_LIMITS)))
    missed[:, 0] = [reticle for _, reticle, _ in hardened]
    missed[:, 1] = [clock for _, _, clock in hardened]
    missed[:, 2] = [interface_excess(chip.dram.standard, chip.process) for chip in chips]
    missed[:, 3:5] = [_package_excess(chip, s) for chip, s in zip(chips, silicon, strict=True)]
    for k, (value, limit) in enumerate(bounded, start=5):
        if limit is not None:
            missed[:, k] = np.log(np.maximum(value / limit, 1.0))
    return hardware, missed


def _package_excess(chip: Chip, silicon: Silicon) -> tuple[float, float]:
    """Return the logarithms of what a package lacks: room for stacks around its dies and on its carrier, and cooling."""
    rows = table("packaging")
    dies_mm2 = silicon.die_area_mm2 * silicon.n_dies
    carrier = 0.0
    if chip.package == "interposer":
        around = chip.dram.stacks / (rows.fact("stacks_per_die").known * silicon.n_dies)
        area_mm2 = (dies_mm2 + chip.dram.stacks * rows.fact("stack_area_mm2").known) * rows.fact("carrier_area_ratio").known
        carrier = log(max(1.0, around, area_mm2 / rows.fact("largest_carrier_mm2").known))
    return carrier, log(max(1.0, silicon.tdp_w / dies_mm2 / rows.fact("cooled_w_per_mm2").known))


def _silicon(chip: Chip) -> tuple[Silicon, float, float]:
    """Harden a chip, with the logarithms of what it lacks: area beyond the reticle and clock beyond what our cores reach.

    A die that the reticle refuses is hardened as the fewest dies that fit, a clock that nothing on the process reaches at that limit: so that the search
    can tell what these limits cost. Such chips never count as meeting them.
    """
    limit_hz = own_clock_hz(chip.process)
    clock = log(chip.clock_hz / limit_hz) if chip.clock_hz > limit_hz else 0.0
    runs = replace(chip, clock_hz=min(chip.clock_hz, max_clock_hz(chip.process).high))
    for n_dies in (chip.n_dies * k for k in range(1, _MOST_DIES + 1)):
        try:
            return harden(replace(runs, n_dies=n_dies)), log(n_dies / chip.n_dies), clock
        except InfeasibleError:
            if n_dies == chip.n_dies * _MOST_DIES:
                raise
    raise AssertionError


def _prices(study: Study, chips: Sequence[Chip], silicon: Sequence[Silicon]) -> dict[str, Array]:
    """Price chips at the three ends of the inputs; chips that share tables are priced in one go."""
    names = ("package_usd", "nre_usd", "nre_usd_per_year", "fixed_usd_per_year", "usd_per_average_w_year", "provisioned_w")
    columns = {name: np.zeros((3, len(chips))) for name in names}
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, chip in enumerate(chips):
        groups.setdefault((chip.process, chip.dram.standard, chip.package), []).append(i)
    for (process, memory, package), members in groups.items():
        inputs = inputs_of(study, process, memory, package)
        part = _stacked([part_of(silicon[i], chips[i]) for i in members])
        tdp = np.array([silicon[i].tdp_w for i in members])
        for end in (CHEAPEST, MIDDLE, DEAREST):
            x: Inputs[Values] = inputs.ranges.map(lambda name, r, end=end: ends(name, r)[end])  # type: ignore[misc]
            year = chip_year(part, tdp, 0.0, x, inputs.package)
            values = (year.price_usd, year.nre_usd, year.nre_usd_per_year, year.usd_per_year, energy_usd_per_year(1.0, x), year.built_w)
            for name, value in zip(names, values, strict=True):
                columns[name][end, members] = value
    columns["provisioned_w"] = columns["provisioned_w"][MIDDLE]
    return columns


def _stacked(parts: Sequence[Part]) -> Part:
    return Part(**{f.name: np.array([getattr(p, f.name) for p in parts], dtype=np.float64) for f in fields(Part)})
