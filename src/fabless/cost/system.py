"""Server, network, building and power around a chip, and the yearly price of money spent at once. Elementwise on floats and arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.cost.inputs import Inputs

    Values = float | NDArray[np.float64]

HOURS_PER_YEAR = 8760.0
S_PER_YEAR = HOURS_PER_YEAR * 3600.0


def capital_recovery_factor(interest_ratio: Values, life_years: Values) -> Values:
    """Return the yearly payment per dollar that repays it with interest over its life, i / (1 - (1+i)^-n); 1/n without interest."""
    i, n = np.asarray(interest_ratio, dtype=float), np.asarray(life_years, dtype=float)
    rate = np.where(i == 0, 1.0, i)
    factor: Values = np.where(i == 0, 1 / n, rate / -np.expm1(-n * np.log1p(rate)))
    return factor


def provisioned_it_w(chip_w: Values, x: Inputs[Values]) -> Values:
    """Return the IT power that a building must offer per chip: the chip and its share of host, fans and network."""
    return chip_w * (1 + x.host_power_ratio)


def server_usd(chip_w: Values, x: Inputs[Values]) -> Values:
    """Return the server around one chip: host, network card, power supply."""
    return x.host_usd + x.nic_usd + x.power_usd_per_w * provisioned_it_w(chip_w, x)


def facility_usd(chip_w: Values, x: Inputs[Values]) -> Values:
    """Return the building, cooling and power distribution per chip, priced per W of IT."""
    return x.facility_usd_per_w * provisioned_it_w(chip_w, x)


def switch_usd(switched_gb_per_s: Values, x: Inputs[Values]) -> Values:
    """Return the switches between chips that one chip's links take their share of, by bandwidth one way."""
    return switched_gb_per_s * x.switch_usd_per_gb_per_s


def nre_yearly_ratio(x: Inputs[Values]) -> Values:
    """Return what a dollar of NRE costs a year: interest from when it is spent to when chips earn, then repaid over the design's life."""
    interest = np.asarray(x.interest_ratio, dtype=float)
    ratio: Values = (1 + interest) ** np.asarray(x.nre_lead_years) * capital_recovery_factor(interest, x.nre_life_years)
    return ratio


def grid_w(chip_average_w: Values, x: Inputs[Values]) -> Values:
    """Return what a chip draws from the grid on average, with its host's share and the building's."""
    return provisioned_it_w(chip_average_w, x) * x.pue


def energy_usd_per_year(chip_average_w: Values, x: Inputs[Values]) -> Values:
    """Return a year's electricity for one chip."""
    return grid_w(chip_average_w, x) / 1000.0 * HOURS_PER_YEAR * x.electricity_usd_per_kwh
