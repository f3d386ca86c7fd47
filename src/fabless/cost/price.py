"""The verb `price`: what a fleet of own or bought chips costs a year and a million tokens; rent for the same service; where they break even.

Every figure is computed three times at once, with all inputs at their cheapest end, in the middle and at their dearest end, by formulas
that work elementwise; so a range here is an envelope, and its lines add up exactly at each of the three. `uncertainty` samples instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import InputError
from fabless.core.ranges import Range
from fabless.cost.bill import Bill, Line
from fabless.cost.inputs import CostInputs, cost_inputs
from fabless.cost.nre import NOTE, nre_lines
from fabless.cost.package import Part, alpha_ends, packaged
from fabless.cost.rent import rental_row
from fabless.cost.system import (
    HOURS_PER_YEAR,
    S_PER_YEAR,
    capital_recovery_factor,
    energy_usd_per_year,
    facility_usd,
    grid_w,
    nre_yearly_ratio,
    server_usd,
    switch_usd,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.chip.chip import Chip
    from fabless.cost.inputs import Inputs
    from fabless.silicon.silicon import Silicon

    Corners = NDArray[np.float64]
    Values = float | NDArray[np.float64]


UPKEEP = "upkeep"  # the group of yearly costs that a design has whatever its volume


@dataclass(frozen=True, slots=True)
class ChipCost:
    """Hold what one packaged, tested chip costs its user: lines per chip (group, label, USD, sources) and the NRE of the design.

    `n_good_per_wafer` and `die_yield_ratio` are for one die. A bought chip has one line and no NRE.
    """

    name: str
    lines: tuple[Line, ...]
    cost_usd: Range
    price_usd: Range
    nre: tuple[Line, ...]
    dies_per_wafer: int | None = None
    die_yield_ratio: Range | None = None
    notes: tuple[str, ...] = ()

    @property
    def nre_usd(self) -> Range:
        """Return the sum of the one-time costs."""
        return sum((line.usd for line in self.nre), Range.exact(0.0))


@dataclass(frozen=True, slots=True)
class FleetDemand:
    """Describe what is bought and what it does in a year.

    `average_w` and `provisioned_w` are per chip: the mean over a year and what power and cooling must be built for. `prefill_time_ratio`
    is the share of chip time spent on prefill, which divides the money. NRE is shared among `n_built` chips of the design (None: this
    fleet carries it all). Raises `InputError` for a fleet without chips or tokens.
    """

    n_chips: float
    average_w: float
    provisioned_w: float
    prefill_tokens_per_year: float
    decode_tokens_per_year: float
    prefill_time_ratio: float
    n_built: float | None = None

    def __post_init__(self) -> None:
        if not self.n_chips > 0:
            raise InputError(f"fleet: n_chips must be above 0, not {self.n_chips}")
        if not self.tokens_per_year > 0:
            raise InputError("fleet: prefill and decode tokens per year are both 0; a price per token needs tokens")
        if not 0 <= self.prefill_time_ratio <= 1:
            raise InputError(f"fleet: prefill_time_ratio must lie in [0, 1], not {self.prefill_time_ratio}")
        if self.n_built is not None and self.n_built < self.n_chips:
            raise InputError(
                f"fleet: n_built {self.n_built:g} is below n_chips {self.n_chips:g}; NRE is shared among all chips of the design"
            )

    @property
    def tokens_per_year(self) -> float:
        """Return prefill and decode tokens together."""
        return self.prefill_tokens_per_year + self.decode_tokens_per_year


def inputs_for(chip: Chip, *, region: str = "us", place: str = "rack", partner: bool = True) -> CostInputs:
    """Return the default inputs of a chip's process, memory and package."""
    return cost_inputs(chip.process, chip.dram.standard, chip.package, region=region, place=place, partner=partner)


def part_of(silicon: Silicon, chip: Chip) -> Part:
    """Return what of a hardened chip has a price: outline, dies, memory, and the cores that may be harvested.

    A block that comes once per core (its count a multiple of the cores on the chip, spares included) is part of a core.
    """
    units = chip.n_cores + chip.spare_cores
    per_core = sum(
        b.area_mm2
        for b in silicon.blocks
        if b.kind in ("matrix", "vector", "sram", "control") and b.count >= units and b.count % units == 0
    )
    on_chip = silicon.die_area_mm2 * silicon.n_dies
    area = min(per_core, on_chip) / units
    return Part(
        die_width_mm=silicon.die_width_mm,
        die_height_mm=silicon.die_height_mm,
        n_dies=float(silicon.n_dies),
        memory_gb=chip.dram.capacity_bytes / 1e9 if chip.dram.standard != "none" else 0.0,
        memory_stacks=float(chip.dram.stacks) if chip.dram.standard.startswith("hbm") else 0.0,
        n_cores=chip.n_cores / silicon.n_dies,
        n_spare=float(chip.spare_cores // silicon.n_dies),
        core_area_mm2=area if chip.spare_cores >= silicon.n_dies else 0.0,
        switched_gb_per_s=chip.link.bandwidth_bytes_per_s / 1e9 if chip.link.topology == "switch" else 0.0,
    )


def chip_cost(silicon: Silicon, chip: Chip, inputs: CostInputs | None = None) -> ChipCost:
    """Price one packaged, tested chip that is to be designed: `inputs` default to the tables' rows for its process, memory and package."""
    return part_cost(chip.name, part_of(silicon, chip), inputs or inputs_for(chip))


def part_cost(name: str, part: Part, inputs: CostInputs) -> ChipCost:
    """Price one packaged, tested chip from its outline, memory and cores."""
    x = corners_for(part, inputs)
    made = packaged(part, x, inputs.package)
    silicon_sources = inputs.source("wafer_usd", "d0_per_cm2", "alpha")
    rows: tuple[tuple[str, str, Values, tuple[str, ...]], ...] = (
        ("silicon", "working dies", made.die_usd, silicon_sources),
        ("memory", "memory", made.memory_usd, inputs.source("memory_usd_per_gb")),
        (
            "package",
            "carrier, substrate, assembly",
            made.package_usd,
            inputs.source("carrier_wafer_usd", "substrate_usd_per_mm2", "die_bond_yield_ratio", "stack_bond_yield_ratio"),
        ),
        ("test", "test", made.test_usd, inputs.source("test_usd")),
        ("margin", "implementation partner's margin", made.margin_usd, inputs.source("partner_margin_ratio")),
    )
    if part.switched_gb_per_s:
        switches = switch_usd(part.switched_gb_per_s, x)
        rows += (("network", "switches between chips", switches, inputs.source("switch_usd_per_gb_per_s")),)
    lines = tuple(Line(label, group, _range(usd), "capex", sources) for group, label, usd, sources in rows)
    nre = tuple(Line(label, "nre", _range(usd), "once", inputs.source(*names)) for label, usd, names in nre_lines(x))
    good = np.asarray(made.die_yield_ratio)
    return ChipCost(
        name,
        lines,
        _range(made.cost_usd),
        _range(made.price_usd),
        nre,
        int(np.max(made.dies_per_wafer)),
        Range(float(good.min()), float(np.broadcast_to(good, 3)[1]), float(good.max())),
        (NOTE,),
    )


def corners_for(part: Part, inputs: CostInputs) -> Inputs[Values]:
    """Return `inputs.corners()` with the clustering of defects at the ends that serve and hurt this die."""
    return replace(inputs.corners(), alpha=alpha_ends(part, inputs.ranges.alpha, inputs.ranges.d0_per_cm2))


def bought_chip(name: str) -> ChipCost | None:
    """Return a chip at the price its vendor asks, or None when no purchase price is known."""
    row = rental_row(name, "purchase")
    if row is None or row.value is None:
        return None
    usd = Range(*row.range)
    return ChipCost(name, (Line(f"{name}, bought", "silicon", usd, "capex", (f"price_list:{row.source.id}",)),), usd, usd, ())


def price(fleet: FleetDemand, chip: ChipCost, inputs: CostInputs) -> Bill:
    """Return the yearly bill of a fleet of own or bought chips: chips, NRE, servers, network, building, energy, operations.

    What is paid at once is spread over its life by capital recovery at `interest_ratio`; NRE bears interest from before that, too.
    """
    x = inputs.corners()
    n, chip_w = fleet.n_chips, fleet.provisioned_w
    server_life, facility_life = (
        (years.mid, np.asarray(capital_recovery_factor(x.interest_ratio, at)))
        for years, at in (
            (inputs.ranges.server_life_years, x.server_life_years),
            (inputs.ranges.facility_life_years, x.facility_life_years),
        )
    )
    nre_life = (inputs.ranges.nre_life_years.mid, np.asarray(nre_yearly_ratio(x)))
    share = n / (fleet.n_built or n)
    lines = [_spread(one.label, "nre", _corners(one.usd) * share, when="once", life=nre_life, sources=one.sources) for one in chip.nre]
    around = (
        ("server", server_usd(chip_w, x), server_life, inputs.source("host_usd", "nic_usd", "power_usd_per_w")),
        ("network", x.network_usd, server_life, inputs.source("network_usd")),
        ("facility", facility_usd(chip_w, x), facility_life, inputs.source("facility_usd_per_w", "host_power_ratio")),
    )
    lines += [_spread(c.label, c.group, _corners(c.usd) * n, when="capex", life=server_life, sources=c.sources) for c in chip.lines]
    lines += [_spread(g, g, np.asarray(usd) * n, when="capex", life=life, sources=sources) for g, usd, life, sources in around]
    capex = sum((line.usd for line in lines if line.when == "capex"), Range.exact(0.0))
    yearly: tuple[tuple[str, str, Values, tuple[str, ...]], ...] = (
        ("energy", "electricity", energy_usd_per_year(fleet.average_w, x) * n, inputs.source("electricity_usd_per_kwh", "pue")),
        ("operations", "operations", x.operations_ratio * _corners(capex), inputs.source("operations_ratio")),
    )
    if chip.nre:  # of a chip of one's own: a vendor replaces what fails, and keeps its software
        failed = x.replacement_ratio * _corners(chip.price_usd) * n
        upkeep = x.software_usd * x.software_upkeep_ratio * share
        yearly += (
            ("spares", "replaced chips", failed, inputs.source("replacement_ratio")),
            (UPKEEP, "software upkeep", upkeep, inputs.source("software_upkeep_ratio")),
        )
    lines += [Line(label, group, _range(usd), "yearly", src, 1.0, _range(usd)) for group, label, usd, src in yearly]
    power_w = np.asarray(grid_w(fleet.average_w, x)) * n
    built_w = np.asarray(grid_w(chip_w, x)) * n
    return _bill(tuple(lines), fleet, power_w, built_w, chip.notes)


def rent_bill(chip_name: str, n_chips: float, fleet: FleetDemand, inputs: CostInputs, *, tier: str = "on_demand") -> Bill | None:
    """Return the yearly bill of serving `fleet`'s tokens on `n_chips` rented chips, or None when that price is unknown.

    Rent includes server, network, building and energy. `fleet` gives the tokens, the share of chip time of prefill on those chips and
    their watts; `inputs` the host's and the building's share of power, so that J/token compares with that of own chips.
    """
    row = rental_row(chip_name, tier)
    if row is None or row.value is None:
        return None
    label = f"{chip_name}, {tier.replace('_', ' ')}"
    return quoted_rent_bill(label, Range(*row.range), n_chips, fleet, inputs, sources=(f"price_list:{row.source.id}",))


def quoted_rent_bill(
    label: str, usd_per_chip_hour: Range, n_chips: float, fleet: FleetDemand, inputs: CostInputs, *, sources: tuple[str, ...] = ("study",)
) -> Bill:
    """Return the bill of `rent_bill` at a quoted price in place of the price list's."""
    x = inputs.corners()
    usd = usd_per_chip_hour * (n_chips * HOURS_PER_YEAR)
    line = Line(label, "rent", usd, "yearly", sources, 1.0, usd)
    drawn, built = (np.asarray(grid_w(w, x)) * n_chips for w in (fleet.average_w, fleet.provisioned_w))
    return _bill((line,), fleet, drawn, built, ())


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Hold from which volume on own chips cost no more than rented ones: tokens per year and chips; infinite where they never do.

    `low` pairs the cheapest own with the dearest rent, `high` the dearest own with the cheapest rent. The curve gives USD per million
    tokens over `curve_tokens_per_year`: own (low, mid, high) falls with volume as the NRE is shared, rent (low, mid, high) does not.
    """

    tokens_per_year: Range
    n_chips: Range
    curve_tokens_per_year: tuple[float, ...]
    own_usd_per_mtok: tuple[tuple[float, float, float], ...]
    rent_usd_per_mtok: tuple[float, float, float]


def break_even(own: Bill, rent: Bill, n_chips: float, *, points: int = 60) -> BreakEven:
    """Return the yearly volume at which `own` costs no more than `rent`.

    Everything but NRE and the upkeep of software is taken to grow in proportion to tokens, which holds above a few servers. `n_chips` is
    the fleet of `own`.
    """
    fixed = _corners(sum((line.usd_per_year for line in own.lines if line.when == "once" or line.group == UPKEEP), Range.exact(0.0)))
    running = (_corners(own.usd_per_year) - fixed) / own.tokens_per_year
    rented = _corners(rent.usd_per_year) / rent.tokens_per_year
    saved = rented[::-1] - running  # cheapest own against dearest rent, and the reverse
    volume = np.where(saved > 0, fixed / np.where(saved > 0, saved, 1.0), np.inf)
    tokens = Range(*(float(v) for v in volume))
    chips = tokens * (n_chips / own.tokens_per_year)
    known = [v for v in volume if np.isfinite(v) and v > 0] or [own.tokens_per_year]
    axis = np.geomspace(min(*known, own.tokens_per_year) / 10, max(*known, own.tokens_per_year) * 10, points)
    curve = (fixed[None] / axis[:, None] + running[None]) * 1e6
    return BreakEven(
        tokens,
        chips,
        tuple(float(v) for v in axis),
        tuple((float(a), float(b), float(c)) for a, b, c in curve),
        (float(rented[0] * 1e6), float(rented[1] * 1e6), float(rented[2] * 1e6)),
    )


def _bill(lines: tuple[Line, ...], fleet: FleetDemand, power_w: Corners, built_w: Corners, notes: tuple[str, ...]) -> Bill:
    per_year = sum((line.usd_per_year for line in lines), Range.exact(0.0))
    usd = _corners(per_year)
    time = fleet.prefill_time_ratio
    return Bill(
        lines,
        fleet.tokens_per_year,
        per_year,
        _range(usd / fleet.tokens_per_year * 1e6),
        _per_mtok(usd * time, fleet.prefill_tokens_per_year),
        _per_mtok(usd * (1 - time), fleet.decode_tokens_per_year),
        _range(power_w * S_PER_YEAR / fleet.tokens_per_year),
        _range((fleet.tokens_per_year / S_PER_YEAR / (built_w / 1e6))[::-1]),
        sum((line.usd for line in lines if line.when == "once"), Range.exact(0.0)),
        sum((line.usd for line in lines if line.when == "capex"), Range.exact(0.0)),
        notes,
    )


def _per_mtok(usd: Corners, tokens: float) -> Range:
    """Return USD per million tokens; a phase without tokens costs nothing per token."""
    return _range(usd / tokens * 1e6) if tokens > 0 else Range.exact(0.0)


def _spread(label: str, group: str, usd: Corners, *, when: str, life: tuple[float, Corners], sources: tuple[str, ...]) -> Line:
    """Return a line whose dollars are repaid over `life`, (years, yearly payment per dollar at the three corners)."""
    years, crf = life
    return Line(label, group, _range(usd), when, sources, years, _range(usd * crf))


def _corners(value: Range) -> Corners:
    return np.array([value.low, value.mid, value.high])


def _range(corners: object) -> Range:
    """Return the range of (cheapest, middle, dearest); rounding may not turn its order."""
    low, mid, high = (float(v) for v in np.broadcast_to(np.asarray(corners, dtype=float), 3))
    return Range(min(low, mid), mid, max(mid, high))
