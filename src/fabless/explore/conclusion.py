"""From a frontier to an answer: price the best chip exactly, compare, and say how sure all that is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.ranges import Range
from fabless.core.sources import Source, table
from fabless.cost.price import break_even, chip_cost, part_of, price
from fabless.cost.system import HOURS_PER_YEAR
from fabless.cost.uncertainty import Case, spread, tornado
from fabless.explore.answer import Answer, BreakEven, Option, Share, Swing
from fabless.explore.comparison import Fit, compare, fit_at, fleet_of, own_option
from fabless.explore.pricing import cost_unit, inputs_of
from fabless.explore.space import axis_text, design_text
from fabless.explore.study import AXES
from fabless.silicon.harden import harden

if TYPE_CHECKING:
    from fabless.cost.bill import Bill
    from fabless.cost.price import FleetDemand
    from fabless.explore.frontier import Frontier
    from fabless.explore.study import Study
    from fabless.silicon.silicon import Silicon
    from fabless.sim.trace import Counters

_SWINGS = 10
#: How far from even the odds must lie before the headline says "build it" or "don't": three to one.
_SURE = 0.25
_EXTRA_LABELS = {"demand_ratio": "traffic against the study's", "speed_ratio": "speed against the estimate"}
#: What ops are called where people read where the time goes.
_KIND_WORDS = {"gemm": "matrix products", "gather": "embedding", "vector": "vector operations", "collective": "exchange between chips"}
#: Words of cost inputs that are abbreviations or say too little.
_NAME_WORDS = {"pue": "PUE", "nre": "NRE", "ip": "licensed IP", "nic": "network adapter", "design": "chip design"}


def conclude(frontier: Frontier) -> Answer:
    """Return the answer to the study of a frontier."""
    study, row = frontier.study, frontier.row(frontier.best)
    chip = replace(frontier.chip(frontier.best), name=study.name)
    silicon = harden(chip)
    inputs = inputs_of(study, chip.process, chip.dram.standard, chip.package)
    cost = chip_cost(silicon, chip, inputs)
    realised = table("study_defaults").fact("realised_ratio")
    fits = fit_at(study, chip, silicon, row, realised.known)
    fleet = fleet_of(study, chip, fits, silicon.idle_w, silicon.tdp_w)
    bill = price(fleet, cost, inputs)
    low, mid, high = realised.range
    error_ratio = max(mid / low - 1, 1 - mid / high)
    own = own_option(chip, fits, fleet, bill, error_ratio)
    comparison = compare(study)
    rival = next((o for o in comparison if o.serves and o.how != "maker"), None)
    case = Case(part_of(silicon, chip), fleet, inputs, speed_ratio=Range(low / mid, 1.0, high / mid))
    swings = _tornado(case, realised.source)
    curve = None if rival is None or rival.bill is None else _break_even(bill, rival, fleet)
    cheaper_ratio = _cheaper_ratio(case, rival, study.seed)
    return Answer(
        frontier=frontier,
        headline=_headline(frontier, own, rival, curve, cheaper_ratio),
        chip=chip,
        silicon=silicon,
        bill=bill,
        own=own,
        comparison=comparison,
        break_even=curve,
        tornado=swings,
        runners_up=frontier.runners_up,
        binding=frontier.binding,
        breakdown=(*_time(fits), *_energy(fits, silicon, fleet, study), *_money(bill)),
        assumptions=(*_edges(frontier), *_assumptions(study, chip.assumptions, silicon, bill)),
        sources=_sources(study, own, comparison, swings),
        error_ratio=error_ratio,
        fidelity=fits[0].service.decode.fidelity,
        package_usd=cost.price_usd,
        nre_usd=cost.nre_usd,
        yield_ratio=cost.die_yield_ratio.mid if cost.die_yield_ratio else 1.0,
        chip_cost=cost,
        rival=rival,
        cheaper_ratio=cheaper_ratio,
    )


def _cheaper_ratio(case: Case, rival: Option | None, seed: int) -> float | None:
    """Return the share of draws of everything uncertain in which building is cheaper than the rival, its price and timing drawn, too."""
    if rival is None or rival.usd_per_year is None:
        return None
    error = 1 + (rival.error_ratio or 0.0)
    hours = rival.n_chips * HOURS_PER_YEAR
    year = rival.usd_per_year
    rate = Range(year.low / error / hours, year.mid / hours, year.high * error / hours)
    return spread(replace(case, rent_usd_per_chip_hour=rate, rent_chips=float(rival.n_chips)), seed=seed).own_is_cheaper_ratio


def _headline(frontier: Frontier, own: Option, rival: Option | None, curve: BreakEven | None, cheaper_ratio: float | None) -> str:
    study, row = frontier.study, frontier.row(frontier.best)
    assert own.usd_per_mtok is not None
    usd = own.usd_per_mtok
    best = (
        f"The best chip to build is {design_text(study.space, row['design'])}: {own.n_chips:,} of them serve {study.title} at "
        f"${usd.mid:.3g} (${usd.low:.2g} to ${usd.high:.2g}) per million tokens and {row['tokens_per_s_per_user']:.0f} tokens/s per user."
    )
    if rival is None or rival.usd_per_mtok is None or curve is None:
        return f"{best} No chip with a known price meets the study's targets and limits, so that there is nothing to compare it with."
    theirs = rival.usd_per_mtok.mid
    against = f"{rival.chip.name} ({'rented' if rival.how == 'rent' else 'bought'}) at ${theirs:.3g}"
    draws = "" if cheaper_ratio is None else f" In {100 * cheaper_ratio:.0f} of 100 draws of everything uncertain, building is the cheaper."
    sure = cheaper_ratio is None or abs(cheaper_ratio - 0.5) >= _SURE
    if curve.tokens_per_year is None:
        lead = "Don't build it" if sure else "Too close to call, with buying ahead"
        return f"{best} {lead}: {against} is cheaper at any volume.{draws}"
    times = curve.tokens_per_year / curve.study_tokens_per_year
    if usd.mid <= theirs:
        lead = "Build it" if sure else "Too close to call, with building ahead"
        saved = f"it takes {1 - usd.mid / theirs:.0%} off the best alternative, {against}, and pays from {times:.2g} times this traffic on."
        return f"{best} {lead}: {saved}{draws}"
    lead = "Don't build it for this traffic" if sure else "Too close to call, with buying ahead"
    return f"{best} {lead}: {against} is cheaper until the volume is {times:.2g} times as large.{draws}"


def _break_even(bill: Bill, rival: Option, fleet: FleetDemand) -> BreakEven:
    assert rival.bill is not None
    found = break_even(bill, rival.bill, fleet.n_chips)

    def known(volume: float) -> float | None:
        return volume if np.isfinite(volume) else None

    low, mid, high = (tuple(point[k] for point in found.own_usd_per_mtok) for k in range(3))
    volumes = found.curve_tokens_per_year
    return BreakEven(
        rival=rival.chip.name,
        rival_how=rival.how,
        tokens_per_year=known(found.tokens_per_year.mid),
        tokens_per_year_low=known(found.tokens_per_year.low),
        tokens_per_year_high=known(found.tokens_per_year.high),
        volumes_tokens_per_year=volumes,
        build_low=low,
        build_mid=mid,
        build_high=high,
        rival_usd_per_mtok=(found.rent_usd_per_mtok[1],) * len(volumes),
        study_tokens_per_year=fleet.tokens_per_year,
    )


def _tornado(case: Case, realised: Source) -> tuple[Swing, ...]:
    return tuple(
        Swing(
            name=s.name,
            label=_EXTRA_LABELS.get(s.name, _label(s.name)),
            unit="" if s.name in _EXTRA_LABELS else cost_unit(s.name, s.name),
            low=s.input.low,
            mid=s.input.mid,
            high=s.input.high,
            usd_per_mtok_at_low=s.at_low_usd_per_mtok,
            usd_per_mtok_at_high=s.at_high_usd_per_mtok,
            source=", ".join(s.sources) or f"study_defaults:{realised.id}",
        )
        for s in tornado(case, count=_SWINGS)
    )


def _label(name: str) -> str:
    """Write an input's name in words: `"facility_usd_per_w"` -> `"facility, USD per W"`."""
    head, found, tail = name.partition("_usd")
    words = " ".join(_NAME_WORDS.get(word, word) for word in head.removesuffix("_ratio").split("_"))
    return f"{words}, USD{tail.replace('_', ' ').replace(' w', ' W').replace('kWh', 'kWh')}" if found else words


def _shares(group: str, unit: str, parts: dict[str, float]) -> tuple[Share, ...]:
    total = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return tuple(Share(group, label, value, unit, value / total) for label, value in ordered if value > 0)


def _time(fits: tuple[Fit, ...]) -> tuple[Share, ...]:
    """Divide the chips' time: prefill and decode as the plan shares it, each by what bounds its ops."""
    parts: dict[str, float] = {}
    for f in fits:
        s = f.service
        for phase, trace, share in (("prefill", s.prefill, s.prefill_share), ("decode", s.decode, 1 - s.prefill_share)):
            total = sum(e.cycles for e in trace.events)
            for event in trace.events:
                label = f"{phase}: {_KIND_WORDS.get(event.kind, event.kind)} ({event.bound})"
                parts[label] = parts.get(label, 0.0) + s.n_chips * share * event.cycles / total
    return _shares("time", "chips", parts)


def _energy(fits: tuple[Fit, ...], silicon: Silicon, fleet: FleetDemand, study: Study) -> tuple[Share, ...]:
    """Divide the fleet's average watts at the chips: leakage and idle, then dynamic energy by what is switched."""
    parts = {"idle and leakage": silicon.idle_w * fleet.n_chips}
    steps = max(study.demand.lengths.output_mean - 1, 1.0)
    for f, workload in zip(fits, study.workloads, strict=True):
        rate = study.demand.requests_per_s * workload.share
        s = f.service
        for trace, times in ((s.decode, steps / s.decode.emitted_tokens), (s.prefill, 1 / s.plan.data)):
            for label, joules in _events(trace.counters, silicon).items():
                parts[label] = parts.get(label, 0.0) + joules * trace.n_chips * times * rate
    return _shares("energy", "W", parts)


def _events(c: Counters, silicon: Silicon) -> dict[str, float]:
    e = silicon.energy
    mac = dict(e.mac_j)
    return {
        "multiply-accumulates": sum(n * mac[name].mid for name, n in c.macs if name in mac),
        "vector operations": c.vector_ops * e.vector_op_j.mid,
        "off-chip memory": c.dram_bytes * e.dram_byte_j.mid,
        "shared memory": c.shared_bytes * e.shared_byte_j.mid,
        "scratchpads": c.scratchpad_bytes * e.scratchpad_byte_j.mid,
        "links": c.link_bytes * e.link_byte_j.mid,
    }


def _money(bill: Bill) -> tuple[Share, ...]:
    parts: dict[str, float] = {}
    for line in bill.lines:
        group = line.group.replace("nre", "NRE")
        parts[group] = parts.get(group, 0.0) + line.usd_per_year.mid
    return _shares("money", "USD/year", parts)


def _edges(frontier: Frontier) -> tuple[str, ...]:
    """Warn where the best chip takes the least or the most of an axis: a better one may lie beyond what the study lists."""
    found = []
    for axis in AXES:
        values, best = getattr(frontier.study.space, axis), frontier.columns[axis][frontier.best]
        if len(values) > 1 and isinstance(values[0], (int, float)) and best in {min(values), max(values)}:
            name = axis.removesuffix("_hz").removesuffix("_bytes").replace("_", " ")
            found.append(f"{name} {axis_text(axis, best)} is the {'most' if best == max(values) else 'least'} listed")
    return (f"The best chip lies at an edge of the space: {'; '.join(found)}. A wider space may hold a better one.",) if found else ()


def _assumptions(study: Study, chip: tuple[str, ...], silicon: Silicon, bill: Bill) -> tuple[str, ...]:
    realised, peak = (table("study_defaults").fact(id) for id in ("realised_ratio", "peak_ratio"))
    d = study.demand
    own = (
        f"Our own chip reaches {realised.known:g} ({realised.low:g} to {realised.high:g}) of its roofline with a perfect schedule; "
        f"chips that exist are timed with their family's measured calibration.",
        f"The fleet is sized for a peak of {d.peak_ratio:g} times the mean traffic"
        + (" (a default of data/study_defaults.toml)." if d.peak_ratio == peak.known else "."),
        f"Request lengths: {d.lengths.source}; mean prompt {d.lengths.input_mean:.0f}, mean answer {d.lengths.output_mean:.0f} tokens; "
        f"{d.prefix_hit_ratio:.0%} of prompt tokens come from a prefix cache.",
        "Prefill and decode share each replica, prefill first; arrivals are Poisson at the replica (see fabless.fleet.capacity).",
        "Prices per million tokens count prompt and answer tokens; NRE is carried by this fleet alone over the design's life.",
        "Timings are roofline estimates; the cycle simulator and RTL bound them from above.",
    )
    return tuple(dict.fromkeys((*own, *chip, *silicon.notes, *bill.notes)))


def _sources(study: Study, own: Option, comparison: tuple[Option, ...], swings: tuple[Swing, ...]) -> tuple[Source, ...]:
    """Gather every source behind a figure shown, each once, by "table:source" ids."""
    ids: list[str] = [*own.sources, *(id for o in comparison for id in o.sources), *(id for s in swings for id in s.source.split(", "))]
    found: dict[tuple[str, str], Source] = {}
    for id in ids:
        file, _, name = id.partition(":")
        if name:
            source = table(file).sources[name]
            found.setdefault((source.title, source.url), source)
    traffic = table("traffic").select(lengths=study.demand.lengths.name)
    defaults = [table("study_defaults").fact(id) for id in ("realised_ratio", "peak_ratio")]
    memory = [f for m in study.space.memory for f in table("memory_standards").select(standard=m.standard)]
    for fact in (*traffic, *defaults, *memory):
        found.setdefault((fact.source.title, fact.source.url), fact.source)
    return tuple(found.values())
