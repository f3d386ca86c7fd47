"""Many chips as columns: area, power, energy per event and price of each, so that points are computed on whole arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.cost.nre import nre_usd
from fabless.cost.package import Part, packaged
from fabless.cost.price import part_of
from fabless.cost.system import capital_recovery_factor, energy_usd_per_year, facility_usd, grid_w, server_usd
from fabless.explore.pricing import inputs_of
from fabless.silicon.harden import harden, reticle_excess

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


@dataclass(frozen=True, slots=True)
class Hardware:
    """Hold what the service's cost needs of `n` chips, one element each; `mac_j` by element format, 0 where a chip lacks it.

    `fixed_usd_per_year` is everything about one installed chip that is paid whether or not it works: its price, server, network, building and upkeep;
    `usd_per_average_w_year` a year's electricity per watt of the chip's average power; `provisioned_w` the facility power to be reserved for it.
    """

    chips: tuple[Chip, ...]
    idle_w: Array
    tdp_w: Array
    die_area_mm2: Array
    package_usd: Array
    nre_usd: Array
    nre_usd_per_year: Array
    fixed_usd_per_year: Array
    usd_per_average_w_year: Array
    provisioned_w: Array
    mac_j: dict[str, Array]
    vector_op_j: Array
    dram_byte_j: Array
    shared_byte_j: Array
    scratchpad_byte_j: Array
    link_byte_j: Array

    def take(self, index: NDArray[np.int64]) -> Hardware:
        """Return the chips of some positions."""
        columns = {name: getattr(self, name)[index] for name in Hardware.__dataclass_fields__ if name not in {"chips", "mac_j"}}
        chips = tuple(self.chips[i] for i in index)
        return Hardware(chips=chips, mac_j={k: v[index] for k, v in self.mac_j.items()}, **columns)

    def dynamic_j(self, estimates: Estimates) -> Array:
        """Return the dynamic energy of one step on all chips of the plan, `[n_graphs, n_chips]`, at the middle of every range."""
        total = (
            estimates.vector_ops * self.vector_op_j
            + estimates.dram_bytes * self.dram_byte_j
            + estimates.shared_bytes * self.shared_byte_j
            + estimates.scratchpad_bytes * self.scratchpad_byte_j
            + estimates.link_bytes * self.link_byte_j
        )
        for name, macs in estimates.macs.items():
            total = total + macs * self.mac_j.get(name, np.zeros(len(self.chips)))
        return np.asarray(total * estimates.n_chips)


def energy_columns(silicon: Sequence[Silicon]) -> dict[str, Array | dict[str, Array]]:
    """Return the energy tables of many chips as the columns of `Hardware`, at the middle of every range."""
    events = ("vector_op_j", "dram_byte_j", "shared_byte_j", "scratchpad_byte_j", "link_byte_j")
    columns: dict[str, Array | dict[str, Array]] = {e: np.array([getattr(s.energy, e).mid for s in silicon]) for e in events}
    tables = [{name: joules.mid for name, joules in s.energy.mac_j} for s in silicon]
    names = sorted({name for row in tables for name in row})
    columns["mac_j"] = {name: np.array([row.get(name, 0.0) for row in tables]) for name in names}
    return columns


#: Limits on the chip itself, in the order of the columns that `hardware_of` returns.
HARDWARE_LIMITS = ("reticle", "chip_w", "package_usd", "nre_usd")


def hardware_of(study: Study, chips: Sequence[Chip]) -> tuple[Hardware, Array]:
    """Harden and price chips; also return by how much each misses the study's limits on a chip, `[n, len(HARDWARE_LIMITS)]`.

    A miss is the logarithm of value over limit, 0 where the limit is met.
    """
    silicon = [harden(chip) for chip in chips]
    columns: dict[str, Any] = _price_columns(study, chips, silicon) | energy_columns(silicon)
    columns |= {name: np.array([getattr(s, name) for s in silicon]) for name in ("idle_w", "tdp_w", "die_area_mm2")}
    hardware = Hardware(chips=tuple(chips), **columns)
    missed = np.zeros((len(chips), len(HARDWARE_LIMITS)))
    limits = study.limits
    missed[:, 0] = [reticle_excess(s) for s in silicon]
    for k, (value, limit) in enumerate(
        ((hardware.tdp_w, limits.chip_w), (hardware.package_usd, limits.package_usd), (hardware.nre_usd, limits.nre_usd)), start=1
    ):
        if limit is not None:
            missed[:, k] = np.log(np.maximum(value / limit, 1.0))
    return hardware, missed


def _price_columns(study: Study, chips: Sequence[Chip], silicon: Sequence[Silicon]) -> dict[str, Array]:
    """Price chips at the middle of every range, by `cost.price`'s formulas on arrays; chips that share tables are priced in one go."""
    names = ("package_usd", "nre_usd", "nre_usd_per_year", "fixed_usd_per_year", "usd_per_average_w_year", "provisioned_w")
    columns = {name: np.zeros(len(chips)) for name in names}
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, chip in enumerate(chips):
        groups.setdefault((chip.process, chip.dram.standard, chip.package), []).append(i)
    for (process, memory, package), members in groups.items():
        inputs = inputs_of(study, process, memory, package)
        part = _stacked([part_of(silicon[i], chips[i]) for i in members])
        price_usd = packaged(part, inputs.mid(), inputs.package).price_usd
        tdp = np.array([silicon[i].tdp_w for i in members])
        for name, values in zip(names, running_costs(price_usd, tdp, inputs.mid()), strict=True):
            columns[name][members] = values
    return columns


def running_costs(price_usd: Values, tdp_w: Values, x: Inputs[Values]) -> tuple[Values, Values, Values, Values, Values, Values]:
    """Return (price, NRE, NRE per year, fixed USD per chip and year, USD per average W and year, facility W) of installed chips.

    The same sums as `cost.price.price` makes line by line, which a test holds.
    """
    server_crf = capital_recovery_factor(x.interest_ratio, x.server_life_years)
    facility_crf = capital_recovery_factor(x.interest_ratio, x.facility_life_years)
    movable = price_usd + server_usd(tdp_w, x) + x.network_usd
    building = facility_usd(tdp_w, x)
    fixed = movable * server_crf + building * facility_crf + x.operations_ratio * (movable + building)
    once = nre_usd(x)
    once_per_year = once * capital_recovery_factor(x.interest_ratio, x.nre_life_years)
    return price_usd, once, once_per_year, fixed, energy_usd_per_year(1.0, x), grid_w(tdp_w, x)


def _stacked(parts: Sequence[Part]) -> Part:
    return Part(**{f.name: np.array([getattr(p, f.name) for p in parts], dtype=np.float64) for f in fields(Part)})
