"""What a packaged, tested chip costs: dies, memory, carrier, substrate, bonding losses, test and the partner's margin.

Elementwise on floats and arrays. Known good dies and memory are bonded to a carrier (silicon interposer or fan-out redistribution layer,
none for organic) on a substrate; whatever a failed bond spoils is paid for by the packages that work, and so is the test of all of them.
The formulas follow Chiplet Actuary (Feng and Ma, DAC 2022, arXiv 2203.12268) with the bonding of memory stacks added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.sources import table
from fabless.cost.die import dies_of, good_die_usd, harvested_yield_ratio, yield_ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.core.ranges import Range
    from fabless.cost.inputs import Inputs

    Values = float | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """Describe what is priced: one die of `n_dies`, its memory and its heat; floats, or arrays of many designs.

    `core_area_mm2` is one of the `n_cores + n_spare` cores on one die, of which `n_spare` may be bad. `memory_gb` is 1e9 bytes a package,
    `switched_gb_per_s` what of its links, one way, runs into switches that stand between chips.
    """

    die_width_mm: Values
    die_height_mm: Values
    n_dies: Values
    memory_gb: Values
    memory_stacks: Values
    n_cores: Values = 1.0
    n_spare: Values = 0.0
    core_area_mm2: Values = 0.0
    switched_gb_per_s: Values = 0.0

    @property
    def die_area_mm2(self) -> Values:
        """Return the area of one die."""
        return self.die_width_mm * self.die_height_mm


@dataclass(frozen=True, slots=True)
class Package:
    """Hold what one good package costs to make, by part (USD), with the counts and yields that led there."""

    die_usd: Values
    memory_usd: Values
    package_usd: Values
    test_usd: Values
    margin_usd: Values
    dies_per_wafer: Values
    die_yield_ratio: Values
    bond_yield_ratio: Values

    @property
    def cost_usd(self) -> Values:
        """Return the manufacturing cost of a good package."""
        return self.die_usd + self.memory_usd + self.package_usd + self.test_usd

    @property
    def price_usd(self) -> Values:
        """Return what its buyer pays: the cost and the partner's margin."""
        return self.cost_usd + self.margin_usd


def packaged(part: Part, x: Inputs[Values], kind: str) -> Package:
    """Price one package of a kind ("organic", "interposer", "fanout").

    What assembly loses is booked under the part lost. Raises `InfeasibleError` for a die or carrier larger than a wafer.
    """
    dies = dies_of(part.die_width_mm, part.die_height_mm)
    good = harvested_yield_ratio(
        part.die_area_mm2, part.core_area_mm2, n_cores=part.n_cores, n_spare=part.n_spare, d0_per_cm2=x.d0_per_cm2, alpha=x.alpha
    )
    die_usd = part.n_dies * good_die_usd(x.wafer_usd, dies, good)
    memory_usd = part.memory_gb * x.memory_usd_per_gb
    carrier, substrate = carrier_usd(part, x, kind), substrate_usd(part, x, kind)
    bumps = part.n_dies * part.die_area_mm2 * x.bump_usd_per_mm2
    carried = kind != "organic"
    stacked = kind == "interposer"
    each = x.die_bond_yield_ratio**part.n_dies * x.stack_bond_yield_ratio ** (part.memory_stacks if stacked else 0.0)
    carrier_good = yield_ratio(carrier_area_mm2(part, x, kind), x.carrier_d0_per_cm2, x.carrier_alpha) if carried else 1.0
    bond, mount = (each, x.substrate_bond_yield_ratio) if carried else (1.0, each)
    made = Assembly(die_usd, memory_usd if stacked else 0.0, bumps, carrier, substrate, carrier_good, bond, mount)
    memory_usd = made.good_stacks_usd if stacked else memory_usd
    test_usd = x.test_usd / (bond * mount)
    cost = made.good_dies_usd + memory_usd + made.good_package_usd + test_usd
    margin_usd = cost * (1 / (1 - x.partner_margin_ratio) - 1)
    return Package(made.good_dies_usd, memory_usd, made.good_package_usd, test_usd, margin_usd, dies, good, bond * mount)


@dataclass(frozen=True, slots=True)
class Assembly:
    """Hold what goes into one package, USD, and the shares of carriers, of bonding and of mounting on the substrate that succeed.

    Parts are bonded last, onto carriers that are good: dies, stacks and bumps are lost with any bond or with the mounting; a carrier also
    with its own defects; the substrate with the mounting. Without a carrier the dies are mounted at once: `bond_ratio` is 1.
    """

    dies_usd: Values
    stacks_usd: Values
    bumps_usd: Values
    carrier_usd: Values
    substrate_usd: Values
    carrier_ratio: Values
    bond_ratio: Values
    mount_ratio: Values

    @property
    def good_dies_usd(self) -> Values:
        """Return the dies per good package, those lost in assembly included."""
        return self.dies_usd / (self.bond_ratio * self.mount_ratio)

    @property
    def good_stacks_usd(self) -> Values:
        """Return the memory stacks per good package, those lost in assembly included."""
        return self.stacks_usd / (self.bond_ratio * self.mount_ratio)

    @property
    def good_package_usd(self) -> Values:
        """Return bumps, carrier and substrate per good package, those lost included."""
        carriers = self.carrier_usd / self.carrier_ratio
        return (self.bumps_usd + carriers) / (self.bond_ratio * self.mount_ratio) + self.substrate_usd / self.mount_ratio


def alpha_ends(part: Part, alpha: Range, d0_per_cm2: Range) -> NDArray[np.float64]:
    """Return the clustering parameter `[3, ...]` that serves each die best, in the middle, and hurts it most.

    Clustered defects spare more dies, but where spare cores absorb single defects anyway they kill more: the dear end depends on the die.
    """
    three = np.array([alpha.low, alpha.mid, alpha.high])

    def good(d0: float) -> NDArray[np.float64]:
        ratios = [
            harvested_yield_ratio(part.die_area_mm2, part.core_area_mm2, n_cores=part.n_cores, n_spare=part.n_spare, d0_per_cm2=d0, alpha=a)
            for a in three
        ]
        return np.asarray(ratios)

    best, worst = three[np.argmax(good(d0_per_cm2.low), axis=0)], three[np.argmin(good(d0_per_cm2.high), axis=0)]
    return np.array([best, np.full_like(best, alpha.mid), worst])


def carrier_usd(part: Part, x: Inputs[Values], kind: str) -> Values:
    """Return the price of the silicon or redistribution layer under the dies: its share of a carrier wafer on the exact grid, and bumps.

    A carrier as large as this one leaves few to a wafer, so the count matters: 28 for an H100.
    """
    if kind == "organic":
        return 0.0
    area = carrier_area_mm2(part, x, kind)
    side = np.sqrt(area)
    return x.carrier_wafer_usd / dies_of(side, side) + area * x.bump_usd_per_mm2


def carrier_area_mm2(part: Part, x: Inputs[Values], kind: str) -> Values:
    """Return the area of a carrier that holds the dies and, on an interposer, the memory stacks."""
    stacks = part.memory_stacks if kind == "interposer" else 0.0
    return (part.n_dies * part.die_area_mm2 + stacks * table("packaging").fact("stack_area_mm2").known) * x.carrier_area_ratio


def substrate_usd(part: Part, x: Inputs[Values], kind: str) -> Values:
    """Return the price of the laminate under dies or carrier."""
    rows = table("packaging")
    if kind == "interposer":
        return carrier_area_mm2(part, x, kind) * rows.fact("substrate_per_carrier_ratio").known * x.substrate_usd_per_mm2
    return part.n_dies * part.die_area_mm2 * rows.fact("substrate_area_ratio").known * x.substrate_usd_per_mm2
