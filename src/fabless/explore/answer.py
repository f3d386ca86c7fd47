"""The answer to a study: the chip to build, how many, what tokens cost on it and on today's chips, and how sure all that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabless.chip.chip import Chip
    from fabless.core.ranges import Range
    from fabless.core.sources import Source
    from fabless.cost.bill import Bill
    from fabless.cost.price import ChipCost
    from fabless.explore.frontier import Binding, Frontier, RunnerUp
    from fabless.mapping.plan import Plan
    from fabless.silicon.silicon import Silicon
    from fabless.sim.trace import Trace


@dataclass(frozen=True, slots=True)
class Service:
    """Tell how one model is served on a chip: plan, batch and what a user feels; traces of one decode step and of one mean prompt's prefill.

    `requests_per_s` is one replica's; `prefill_share` the part of its time that prefills take.
    """

    model: str
    recipe: str
    plan: Plan
    batch: int
    n_replicas: int
    n_chips: int
    requests_per_s: float
    tokens_per_s_per_user: float
    ttft_s: float
    tpot_s: float
    prefill_share: float
    memory_bytes: float
    decode: Trace
    prefill: Trace


@dataclass(frozen=True, slots=True)
class Option:
    """Tell what the whole service takes on one chip: `how` is "build", "rent", "buy", or "maker".

    "maker" is what the chip costs a vendor that sells none to others: shown, but no alternative. `reason` says why a chip cannot serve, and is
    empty when it can. `tier` is the row of the price list behind the price. `usd_per_mtok` counts prompt and answer tokens; None where the price is unknown.
    `power_w` is facility power at the traffic's peak, `average_w` what one chip draws on average.
    """

    chip: Chip
    how: str
    services: tuple[Service, ...] = ()
    n_chips: int = 0
    usd_per_mtok: Range | None = None
    usd_per_year: Range | None = None
    usd_per_chip_hour: Range | None = None
    j_per_token: Range | None = None
    power_w: float = 0.0
    error_ratio: float | None = None
    sources: tuple[str, ...] = ()
    reason: str = ""
    tier: str = ""
    bill: Bill | None = None
    average_w: float = 0.0

    @property
    def serves(self) -> bool:
        """Tell whether the chip meets the study's targets and has a price."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Tell from which volume on building is cheaper than the cheapest rival: `tokens_per_year` (None: never in the curve's range) and both curves.

    Columns over `volumes_tokens_per_year`: building at low, mid and high cost (NRE spread over the chip's life), and the rival at its price.
    """

    rival: str
    rival_how: str
    tokens_per_year: float | None
    tokens_per_year_low: float | None
    tokens_per_year_high: float | None
    volumes_tokens_per_year: tuple[float, ...]
    build_low: tuple[float, ...]
    build_mid: tuple[float, ...]
    build_high: tuple[float, ...]
    rival_usd_per_mtok: tuple[float, ...]
    study_tokens_per_year: float


@dataclass(frozen=True, slots=True)
class Swing:
    """Tell what the answer's $/Mtok becomes when one input alone goes to its low and its high end."""

    name: str
    label: str
    unit: str
    low: float
    mid: float
    high: float
    usd_per_mtok_at_low: float
    usd_per_mtok_at_high: float
    source: str

    @property
    def width(self) -> float:
        """Return how far the answer moves between the ends."""
        return abs(self.usd_per_mtok_at_high - self.usd_per_mtok_at_low)


@dataclass(frozen=True, slots=True)
class Share:
    """Tell one part of a whole in a breakdown of "time", "energy" or "money"."""

    group: str
    label: str
    value: float
    unit: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold everything that the report shows; `headline` is the answer in a few sentences.

    `rival` is the cheapest of `comparison` that serves, against which `break_even` is drawn (None: no priced chip meets the targets).
    `cheaper_ratio` is the share of draws of everything uncertain in which building is cheaper than the rival.
    `chip_cost` is the own chip's price by part, its yield and its NRE; `own.chip` repeats `chip`.
    """

    frontier: Frontier
    headline: str
    chip: Chip
    silicon: Silicon
    bill: Bill
    own: Option
    comparison: tuple[Option, ...]
    break_even: BreakEven | None
    tornado: tuple[Swing, ...]
    runners_up: tuple[RunnerUp, ...]
    binding: tuple[Binding, ...]
    breakdown: tuple[Share, ...]
    assumptions: tuple[str, ...]
    sources: tuple[Source, ...]
    error_ratio: float | None
    fidelity: str
    package_usd: Range
    nre_usd: Range
    yield_ratio: float
    chip_cost: ChipCost | None = None
    rival: Option | None = None
    cheaper_ratio: float | None = None


def answer(frontier: Frontier) -> Answer:
    """Conclude from a frontier: price the best chip exactly, compare it with today's chips, and say how sure all that is."""
    from fabless.explore.conclusion import conclude

    return conclude(frontier)
