"""The same service on other chips: the best recipe, plan and batch on each chip of the catalogue, and what it costs to rent or own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.errors import FablessError, UnsupportedError
from fabless.core.units import binary, si
from fabless.cost.price import FleetDemand, bought_chip, price, rent_bill
from fabless.cost.rent import cheapest_tier
from fabless.cost.system import HOURS_PER_YEAR, S_PER_YEAR
from fabless.explore.answer import Option, Service
from fabless.explore.hardware import Energies
from fabless.explore.points import serve, steps_of
from fabless.explore.pricing import inputs_of
from fabless.mapping.plan import Plan
from fabless.silicon.harden import harden
from fabless.sim.roofline import estimate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fabless.chip.chip import Chip
    from fabless.cost.bill import Bill
    from fabless.explore.points import Served, Steps
    from fabless.explore.study import Study, Workload
    from fabless.silicon.silicon import Silicon

#: Tensor parallelism that is tried on any chip besides the study's own plans: what a server or a small slice holds.
_SERVER_PLANS = (1, 2, 4, 8, 16)
_RENT_TIERS = ("on_demand", "reserved_1y", "reserved_3y")
#: Vendors that rent their chips out or keep them; a published purchase price is then what the vendor itself pays its supplier.
_SELL_NONE = frozenset({"Google", "AWS", "Microsoft", "Meta", "OpenAI"})
_NO_ROOM = 1e6  # ranks a plan that does not fit behind every plan that fits and misses a target
_OWN_TIERS = ("own_neocloud", "own_hyperscaler")


@dataclass(frozen=True, slots=True)
class Fit:
    """Hold how one model is served on one chip, and the watts of dynamic power that its mean traffic draws on the whole fleet."""

    service: Service
    dynamic_w: float


def compare(study: Study) -> tuple[Option, ...]:
    """Return every chip of the comparison, rented and owned where priced, cheapest first; chips that cannot serve or have no price say why."""
    from fabless.chip.catalogue import load_chip, sheet_names

    chips = []
    for name in study.compare or sheet_names():
        try:
            chips.append(load_chip(name))
        except UnsupportedError:
            if study.compare:
                raise  # asked for by name: the reader wants to know why it cannot be compared
    options = [option for chip, fits in zip(chips, fit(study, chips), strict=True) for option in _options(study, chip, fits)]
    order = sorted(options, key=lambda o: (not o.serves, o.usd_per_mtok.mid if o.usd_per_mtok else np.inf, o.chip.name, o.how))
    return tuple(order)


def fit(study: Study, chips: Sequence[Chip]) -> list[tuple[Fit, ...] | str]:
    """Return for each chip how it best serves every model of the study with the fewest chips, or why it cannot."""
    silicon = [_silicon(chip) for chip in chips]
    found: list[list[Fit] | str] = [[] for _ in chips]
    for workload in study.workloads:
        best = _fewest_chips(study, workload, chips, _energies(chips, silicon))
        for i, choice in enumerate(best):
            mine = found[i]
            if isinstance(choice, str):
                found[i] = choice
            elif not isinstance(mine, str):
                mine.append(_fit(study, workload, chips[i], choice))
    return [f if isinstance(f, str) else tuple(f) for f in found]


def _plans(study: Study) -> list[Plan]:
    most = study.limits.chips_per_replica
    plans = {*study.plans, *(Plan(tensor=t) for t in _SERVER_PLANS)}
    return sorted(p for p in plans if most is None or p.n_chips <= most)


def _silicon(chip: Chip) -> Silicon | None:
    """Harden a chip for its energy table; None where too little of it is known."""
    try:
        return harden(chip)
    except FablessError:
        return None


def _energies(chips: Sequence[Chip], silicon: Sequence[Silicon | None]) -> Energies:
    """Return energy tables with NaN for a chip that cannot be hardened: unknown stays unknown through every sum."""
    known = [s for s in silicon if s is not None]
    table = Energies.of([c for c, s in zip(chips, silicon, strict=True) if s is not None], known)
    at = np.array([s is not None for s in silicon], dtype=bool)

    def spread(column: NDArray[np.float64]) -> NDArray[np.float64]:
        full = np.full(len(chips), np.nan)
        full[at] = column
        return full

    return Energies(tuple(chips), {k: spread(v) for k, v in table.mac_j.items()}, {k: spread(v) for k, v in table.events.items()})


@dataclass(frozen=True, slots=True)
class Choice:
    """Name one point of a chip: recipe, plan, and the batch's place in what was served."""

    recipe: str
    plan: Plan
    steps: Steps
    served: Served
    batch: int
    chip: int
    n_chips: float


def _fewest_chips(study: Study, workload: Workload, chips: Sequence[Chip], energies: Energies) -> list[Choice | str]:
    """Return for each chip the point that serves a model with the fewest chips, or by how much the nearest point misses."""
    capacity = np.array([c.memory_capacity_bytes for c in chips])
    chosen: list[Choice | str] = [f"multiplies none of the formats of {workload.model}'s recipes" for _ in chips]
    nearest = np.full(len(chips), np.inf)
    for named in workload.recipes:
        for plan in _plans(study):
            steps = steps_of(study, workload, named.recipe, plan)
            if steps is None:
                continue
            least_bytes = steps.memory_bytes.min()
            for i in np.flatnonzero(least_bytes > capacity):
                rank = _NO_ROOM * least_bytes / capacity[i]
                if isinstance(chosen[i], str) and rank < nearest[i]:
                    nearest[i] = rank
                    need, have = binary(least_bytes), binary(capacity[i])
                    chosen[i] = (
                        f"too little memory: at best ({named.name}, {plan}, batch {steps.batches[0]}) a chip needs {need} and holds {have}"
                    )
            roomy = np.flatnonzero(least_bytes <= capacity)
            if len(roomy):
                # Calibration holds what these chips reach, so that nothing is taken off.
                served = serve(study, steps, plan, energies.take(roomy), 1.0)
                _consider(study, workload, Candidate(named.name, plan, steps, served, roomy, capacity[roomy]), chosen, nearest)
    return chosen


@dataclass(frozen=True, slots=True)
class Candidate:
    """Hold one recipe and plan served on the chips at positions `chips`, with the memory of each."""

    recipe: str
    plan: Plan
    steps: Steps
    served: Served
    chips: NDArray[np.int64]
    capacity_bytes: NDArray[np.float64]


def _consider(study: Study, workload: Workload, c: Candidate, chosen: list[Choice | str], nearest: NDArray[np.float64]) -> None:
    """Replace in `chosen` what a candidate beats: a point with more chips, or a miss by more."""
    peak = study.demand.requests_per_s * study.demand.peak_ratio * workload.share
    with np.errstate(divide="ignore", invalid="ignore"):
        n_chips = np.ceil(peak / c.served.requests_per_s) * c.plan.n_chips
        ratios = {
            "memory": np.broadcast_to(c.served.memory_bytes / c.capacity_bytes, n_chips.shape),
            "time to first token": c.served.ttft_s / study.slo.ttft_s,
            "time per output token": c.served.tpot_s / study.slo.tpot_s,
        }
    runs = np.isfinite(c.served.tpot_s) & np.isfinite(n_chips)
    worst = np.where(runs, np.max(list(ratios.values()), axis=0), np.inf)
    meets = np.where(worst <= 1, n_chips, np.inf)
    for column, i in enumerate(c.chips):
        b, near, so_far = int(np.argmin(meets[:, column])), int(np.argmin(worst[:, column])), chosen[i]
        if np.isfinite(meets[b, column]):
            if isinstance(so_far, str) or meets[b, column] < so_far.n_chips:
                chosen[i] = Choice(c.recipe, c.plan, c.steps, c.served, b, column, float(meets[b, column]))
        elif isinstance(so_far, str) and worst[near, column] < nearest[i]:
            nearest[i] = worst[near, column]
            missed = max(ratios, key=lambda name: float(ratios[name][near, column]))
            chosen[i] = (
                f"misses the targets: at best ({c.recipe}, {c.plan}, batch {c.steps.batches[near]}) "
                f"{missed} is {ratios[missed][near, column]:.3g} times its limit"
            )


def _fit(study: Study, workload: Workload, chip: Chip, choice: Choice) -> Fit:
    served, at = choice.served, (choice.batch, choice.chip)
    rate = study.demand.requests_per_s * workload.share
    service = Service(
        model=workload.model,
        recipe=choice.recipe,
        plan=choice.plan,
        batch=int(choice.steps.batches[choice.batch]),
        n_replicas=round(choice.n_chips / choice.plan.n_chips),
        n_chips=round(choice.n_chips),
        requests_per_s=float(served.requests_per_s[at]),
        tokens_per_s_per_user=float(1 / served.tpot_s[at]),
        ttft_s=float(served.ttft_s[at]),
        tpot_s=float(served.tpot_s[at]),
        prefill_share=float(served.prefill_share[at]),
        memory_bytes=float(served.memory_bytes[choice.batch, 0]),
        decode=estimate(choice.steps.mean[choice.batch], chip, choice.plan),
        prefill=estimate(choice.steps.prefill[0], chip, choice.plan),
    )
    return Fit(service, float(served.j_per_request[at]) * rate)


def fit_at(study: Study, chip: Chip, silicon: Silicon, row: Mapping[str, Any], realised_ratio: float) -> tuple[Fit, ...]:
    """Return how a row of a frontier serves every model: the plan, recipe and batch that the search chose, with traces."""
    energies = Energies.of([chip], [silicon])
    fits = []
    for k, workload in enumerate(study.workloads):
        plan = study.plans[row[f"plan_number_{k}"]]
        named = next(r for r in workload.recipes if r.name == row[f"recipe_{k}"])
        steps = steps_of(study, workload, named.recipe, plan)
        assert steps is not None  # the search timed it
        served = serve(study, steps, plan, energies, realised_ratio)
        batch = int(np.flatnonzero(steps.batches == row[f"batch_{k}"])[0])
        peak = study.demand.requests_per_s * study.demand.peak_ratio * workload.share
        n_chips = float(np.ceil(peak / served.requests_per_s[batch, 0]) * plan.n_chips)
        fits.append(_fit(study, workload, chip, Choice(named.name, plan, steps, served, batch, 0, n_chips)))
    return tuple(fits)


def fleet_of(study: Study, chip: Chip, fits: Sequence[Fit], idle_w: float, tdp_w: float) -> FleetDemand:
    """Return the fleet that a fit needs: chips for the peak, power at the mean; a chip of unknown energy is taken to draw its TDP."""
    n_chips = sum(f.service.n_chips for f in fits)
    average_w = idle_w + sum(f.dynamic_w for f in fits) / n_chips
    busy = sum(f.service.n_chips * f.service.prefill_share for f in fits) / n_chips
    requests = study.demand.requests_per_s * S_PER_YEAR
    return FleetDemand(
        n_chips=n_chips,
        average_w=average_w if np.isfinite(average_w) else tdp_w,
        provisioned_w=tdp_w,
        prefill_tokens_per_year=requests * study.demand.lengths.input_mean,
        decode_tokens_per_year=requests * study.demand.lengths.output_mean,
        prefill_time_ratio=busy,
    )


def _options(study: Study, chip: Chip, fits: tuple[Fit, ...] | str) -> list[Option]:
    if isinstance(fits, str):
        return [Option(chip, "rent", reason=fits)]
    services = tuple(f.service for f in fits)
    n_chips = sum(s.n_chips for s in services)
    silicon = _silicon(chip)
    tdp_w = chip.tdp_w or (silicon.tdp_w if silicon else None)
    if tdp_w is None:
        return [Option(chip, "rent", services, n_chips, reason="its power is unknown, so that owning it has no price")]
    fleet = fleet_of(study, chip, fits, silicon.idle_w if silicon else tdp_w, tdp_w)
    # Bought and rented chips are priced per chip: process and package play no part, so that any row of the tables serves.
    inputs = inputs_of(study, "7nm", "none", "organic", build=False)
    error_ratio = services[0].decode.error_ratio
    options = []
    rent_tier, own_tier = cheapest_tier(chip.name, *_RENT_TIERS), cheapest_tier(chip.name, *_OWN_TIERS)
    if rent_tier:
        bill = rent_bill(chip.name, n_chips, fleet, inputs, tier=rent_tier)
        options.append(_priced(chip, ("rent", rent_tier), services, fleet, bill))
    bought = bought_chip(chip.name)
    if bought is not None:
        how = "maker" if chip.vendor in _SELL_NONE else "buy"
        options.append(_priced(chip, (how, "purchase"), services, fleet, price(fleet, bought, inputs)))
    elif own_tier:
        bill = rent_bill(chip.name, n_chips, fleet, inputs, tier=own_tier)
        options.append(_priced(chip, ("buy", own_tier), services, fleet, bill))
    if not options:
        options = [Option(chip, "rent", services, n_chips, error_ratio=error_ratio, reason="nobody has published a price")]
    most_w = study.limits.chip_w
    if most_w is not None and tdp_w > most_w:  # priced all the same: it tells what the limit costs
        options = [replace(o, reason=f"draws {si(tdp_w, 'W')}, the study allows {si(most_w, 'W')}") for o in options]
    return [replace(o, error_ratio=error_ratio) for o in options]


def _priced(chip: Chip, how: tuple[str, str], services: tuple[Service, ...], fleet: FleetDemand, bill: Bill | None) -> Option:
    assert bill is not None  # the tier came from the price list's own rows
    return Option(
        chip=chip,
        how=how[0],
        services=services,
        n_chips=round(fleet.n_chips),
        usd_per_mtok=bill.usd_per_mtok,
        usd_per_year=bill.usd_per_year,
        usd_per_chip_hour=bill.usd_per_year * (1 / (fleet.n_chips * HOURS_PER_YEAR)),
        j_per_token=bill.j_per_token,
        power_w=fleet.tokens_per_year / S_PER_YEAR / bill.tokens_per_s_per_mw.mid * 1e6,
        sources=tuple(dict.fromkeys(id for line in bill.lines for id in line.sources)),
        tier=how[1],
        bill=bill,
        average_w=fleet.average_w,
    )


def own_option(chip: Chip, fits: Sequence[Fit], fleet: FleetDemand, bill: Bill, error_ratio: float) -> Option:
    """Return the option of building a chip, from its bill."""
    option = _priced(chip, ("build", ""), tuple(f.service for f in fits), fleet, bill)
    return replace(option, error_ratio=error_ratio)
