"""What one chip costs a year, for many designs at once: the search's short way to the figures of `price.price`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fabless.cost.nre import nre_usd
from fabless.cost.package import packaged
from fabless.cost.system import (
    HOURS_PER_YEAR,
    capital_recovery_factor,
    energy_usd_per_year,
    facility_usd,
    grid_w,
    nre_yearly_ratio,
    server_usd,
    switch_usd,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fabless.cost.inputs import Inputs
    from fabless.cost.package import Part

    Values = float | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ChipYear:
    """Hold, per design: the chip's price, what it costs a year to own and run without NRE, the design's NRE and what it costs a year.

    `usd_per_year` is per chip and takes in server, network, building, energy and operations; `nre_usd_per_year` is for the whole design,
    the upkeep of its software included.
    `built_w` is the grid power to be provisioned, `grid_w` the power drawn on average, both per chip.
    """

    price_usd: Values
    capex_usd: Values
    usd_per_year: Values
    nre_usd: Values
    nre_usd_per_year: Values
    built_w: Values
    grid_w: Values

    @property
    def usd_per_chip_hour(self) -> Values:
        """Return the running cost per chip and hour, without NRE."""
        return self.usd_per_year / HOURS_PER_YEAR

    def fleet_usd_per_year(self, n_chips: Values, n_built: Values | None = None) -> Values:
        """Return what a fleet costs a year, with its share of the NRE among `n_built` chips (None: the fleet bears it all)."""
        share: Values = 1.0 if n_built is None else n_chips / n_built
        return self.usd_per_year * n_chips + self.nre_usd_per_year * share


def chip_year(part: Part, provisioned_w: Values, average_w: Values, x: Inputs[Values], kind: str) -> ChipYear:
    """Return the yearly cost of chips of one process, memory and package `kind`, elementwise over designs.

    `x` is `CostInputs.mid()` for a search, `corners()` or `at(...)` for ranges and samples; all arrays broadcast.
    """
    price = packaged(part, x, kind).price_usd
    owned = _owned(price, provisioned_w, average_w, x, switch_usd(part.switched_gb_per_s, x))
    nre = nre_usd(x)
    return replace(
        owned,
        usd_per_year=owned.usd_per_year + price * x.replacement_ratio,
        nre_usd=nre,
        nre_usd_per_year=nre * nre_yearly_ratio(x) + x.software_usd * x.software_upkeep_ratio,
    )


def bought_chip_year(price_usd: Values, provisioned_w: Values, average_w: Values, x: Inputs[Values]) -> ChipYear:
    """Return the yearly cost of chips bought at a price, which carry no NRE and are replaced under warranty."""
    return _owned(price_usd, provisioned_w, average_w, x, 0.0)


def _owned(price_usd: Values, provisioned_w: Values, average_w: Values, x: Inputs[Values], switches_usd: Values) -> ChipYear:
    it_usd = price_usd + server_usd(provisioned_w, x) + x.network_usd + switches_usd
    building_usd = facility_usd(provisioned_w, x)
    capex_usd = it_usd + building_usd
    per_year = (
        it_usd * capital_recovery_factor(x.interest_ratio, x.server_life_years)
        + building_usd * capital_recovery_factor(x.interest_ratio, x.facility_life_years)
        + energy_usd_per_year(average_w, x)
        + x.operations_ratio * capex_usd
    )
    return ChipYear(price_usd, capex_usd, per_year, 0.0, 0.0, grid_w(provisioned_w, x), grid_w(average_w, x))
