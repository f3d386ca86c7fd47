"""One chunk of the search: some designs of the space, every recipe, plan and batch of each, reduced to the rows worth keeping.

A chunk depends on the study and its range of designs alone, so that it may run anywhere and be kept under the name of its content.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.errors import InfeasibleError
from fabless.core.sources import table
from fabless.cost.system import S_PER_YEAR
from fabless.explore.frontier import losses, non_dominated
from fabless.explore.hardware import CHEAPEST, DEAREST, HARDWARE_LIMITS, MIDDLE, Hardware, hardware_of
from fabless.explore.points import serve, steps_of
from fabless.explore.space import chip_of
from fabless.explore.study import OBJECTIVES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from fabless.explore.points import Served
    from fabless.explore.study import Study, Workload

Columns = dict[str, "NDArray[Any]"]

#: Every limit that a point can miss, in the order of the bits of a row's `missed`.
LIMITS = (*HARDWARE_LIMITS, "rack_w", "site_w", "memory", "ttft_s", "tpot_s")
#: What a row is kept for: it met all limits; it is the best if one limit were lifted (FIRST_RELAXED + its place in LIMITS); it came nearest.
_HOPELESS = 1e3  # a queue without bound misses its limit infinitely; sums of misses must stay comparable
MET, FIRST_RELAXED, NEAREST = 0, 1, 1 + len(LIMITS)


def evaluate(study: Study, start: int, stop: int) -> Columns:
    """Return the kept rows of designs `start` to `stop` (columns, one element a row) and the counts `n_timed`, `n_met`, `n_only` `[len(LIMITS)]`.

    Kept are the chunk's own non-dominated rows and the best row of each design; for each limit the best row if that limit alone were lifted;
    and the row that comes nearest to meeting them all.
    """
    hardware, excess = hardware_of(study, [chip_of(study.space, number) for number in range(start, stop)])
    hopeful = np.flatnonzero((excess > 0).sum(axis=1) <= 1)
    if not len(hopeful):
        hopeful = np.argsort(excess.sum(axis=1), kind="stable")[:1]
    hardware, excess = hardware.take(hopeful), excess[hopeful]
    services = [_service(study, workload, hardware) for workload in study.workloads]
    n_timed = sum(len(s["chip"]) for s in services)
    points = services[0] if len(services) == 1 else _together(services, len(hopeful))
    points = _finish(study, points, hardware, excess)
    kept = _reduce(study, points)
    _add_ends(study, kept, hardware)
    kept["design"] = np.arange(start, stop)[hopeful][kept.pop("chip")]
    return kept | {"n_timed": np.array(n_timed)}


def pack(columns: Mapping[str, NDArray[Any]]) -> bytes:
    """Return columns as the bytes of an .npz file; the same columns give the same bytes."""
    file = BytesIO()
    np.savez(file, allow_pickle=False, **{name: columns[name] for name in sorted(columns)})
    return file.getvalue()


def unpack(content: bytes) -> Columns:
    """Read columns back; raises `ValueError` or `zipfile.BadZipFile` for bytes that `pack` did not write."""
    with np.load(BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def evaluate_packed(study: Study, start: int, stop: int) -> bytes:
    """Evaluate a chunk and pack it: what a worker process or a cluster node runs."""
    return pack(evaluate(study, start, stop))


def _service(study: Study, workload: Workload, hardware: Hardware) -> Columns:
    """Return every (recipe, plan, batch, chip) point of one model as columns, those that a chip cannot run left out."""
    realised = table("study_defaults").fact("realised_ratio").known
    rate = study.demand.requests_per_s * workload.share
    parts = []
    for r, recipe in enumerate(workload.recipes):
        for p, plan in enumerate(study.plans):
            steps = steps_of(study, workload, recipe.recipe, plan)
            if steps is not None:
                served = serve(study, steps, plan, hardware.energies, realised)
                columns = _columns(study, rate, served, plan.n_chips, hardware)
                parts.append(columns | {"recipe_0": np.full(len(columns["chip"]), r), "plan_0": np.full(len(columns["chip"]), p)})
    if not parts:
        raise InfeasibleError(
            f"study '{study.name}': no batch divides over any plan for {workload.model}: batches must be multiples of plan.pipeline "
            f"and at least plan.pipeline x plan.data"
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _columns(study: Study, rate_per_s: float, served: Served, plan_chips: int, hardware: Hardware) -> Columns:
    demand, slo, limits = study.demand, study.slo, study.limits
    with np.errstate(divide="ignore", invalid="ignore"):
        n_chips = np.ceil(rate_per_s * demand.peak_ratio / served.requests_per_s) * plan_chips
        energy_w = served.j_per_request * rate_per_s + n_chips * hardware.idle_w
        miss = {
            "memory": _excess(served.memory_bytes / np.array([c.memory_capacity_bytes for c in hardware.chips])),
            "ttft_s": _excess(served.ttft_s / slo.ttft_s),
            "tpot_s": _excess(served.tpot_s / slo.tpot_s),
        }
        if limits.rack_w is not None:
            miss["rack_w"] = _excess(hardware.provisioned_w * plan_chips / limits.rack_w) + np.zeros_like(n_chips)
    b, c = np.nonzero(np.isfinite(served.tpot_s) & np.isfinite(n_chips))
    missed = np.zeros(len(b), dtype=np.int64)
    total = np.zeros(len(b))
    for name, value in miss.items():
        missed |= (value[b, c] > 0).astype(np.int64) << LIMITS.index(name)
        total += np.minimum(value[b, c], _HOPELESS)
    chips, watts = n_chips[b, c], energy_w[b, c]
    return {
        "chip": c,
        "batch_0": served.steps.batches[b],
        "usd_per_year": chips * hardware.fixed_usd_per_year[MIDDLE][c] + watts * hardware.usd_per_average_w_year[MIDDLE][c],
        "power_w": chips * hardware.provisioned_w[c],
        "tokens_per_s_per_user": 1 / served.tpot_s[b, c],
        "ttft_s": served.ttft_s[b, c],
        "tpot_s": served.tpot_s[b, c],
        "n_chips": chips,
        "chips_average_w": watts,
        "missed": missed,
        "miss": total,
    }


def _excess(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how much a limit is missed, as the logarithm of value over limit; 0 where it is met."""
    return np.asarray(np.log(np.maximum(ratio, 1.0)))


def _together(services: list[Columns], n_chips: int) -> Columns:
    """Serve several models on one kind of chip: sums of money, power and chips, the slowest speed.

    Exact: sums and minima are monotone, so that of the points of one model on one chip that miss the same limits only the non-dominated
    can be part of a non-dominated whole. The point that misses least is kept too, for the nearest miss.
    """
    parts = []
    for chip in range(n_chips):
        whole: Columns | None = None
        for k, service in enumerate(services):
            mine = _pruned({name: column[service["chip"] == chip] for name, column in service.items()})
            mine = {(f"{name[:-1]}{k}" if name.endswith("_0") else name): column for name, column in mine.items()}
            whole = mine if whole is None else _pruned(_pairs(whole, mine))
        if whole is not None:
            parts.append(whole)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pruned(points: Columns) -> Columns:
    keep = np.zeros(len(points["chip"]), dtype=bool)
    if len(keep):
        keep[np.argmin(points["miss"])] = True
    for missed in np.unique(points["missed"]):
        if int(missed).bit_count() > 1:
            continue
        group = np.flatnonzero(points["missed"] == missed)
        loss = np.stack([points["usd_per_year"][group], -points["tokens_per_s_per_user"][group], points["power_w"][group]], axis=1)
        keep[group[non_dominated(loss)]] = True
    return {name: column[keep] for name, column in points.items()}


def _pairs(a: Columns, b: Columns) -> Columns:
    i, j = (x.ravel() for x in np.meshgrid(np.arange(len(a["chip"])), np.arange(len(b["chip"])), indexing="ij"))
    joined = {name: a[name][i] for name in a} | {name: b[name][j] for name in b if name not in a}
    for name in ("usd_per_year", "power_w", "n_chips", "chips_average_w", "miss"):
        joined[name] = a[name][i] + b[name][j]
    for name in ("ttft_s", "tpot_s"):
        joined[name] = np.maximum(a[name][i], b[name][j])
    joined["tokens_per_s_per_user"] = np.minimum(a["tokens_per_s_per_user"][i], b["tokens_per_s_per_user"][j])
    joined["missed"] = a["missed"][i] | b["missed"][j]
    return joined


def _finish(study: Study, points: Columns, hardware: Hardware, excess: NDArray[np.float64]) -> Columns:
    """Add what concerns the whole fleet: NRE, the site's power, the chip's own limits, and the score."""
    chip = points["chip"]
    tokens = study.demand.requests_per_s * study.demand.tokens_per_request * S_PER_YEAR
    points["nre_usd"] = hardware.nre_usd[MIDDLE][chip]
    points["usd_per_mtok"] = (points.pop("usd_per_year") + hardware.nre_usd_per_year[MIDDLE][chip]) / tokens * 1e6
    for k, name in enumerate(HARDWARE_LIMITS):
        points["missed"] |= (excess[chip, k] > 0).astype(np.int64) << LIMITS.index(name)
    points["miss"] = points["miss"] + excess[chip].sum(axis=1)
    if study.limits.site_w is not None:
        site = _excess(points["power_w"] / study.limits.site_w)
        points["missed"] |= (site > 0).astype(np.int64) << LIMITS.index("site_w")
        points["miss"] += site
    for name, column in (
        ("chip_tdp_w", hardware.tdp_w),
        ("die_area_mm2", hardware.die_area_mm2),
        ("package_usd", hardware.package_usd[MIDDLE]),
    ):
        points[name] = column[chip]
    points["score"] = score(study, points)
    return points


def _add_ends(study: Study, rows: Columns, hardware: Hardware) -> None:
    """Add the money of kept rows with every cost input at its cheapest and its dearest end."""
    chip = rows["chip"]
    tokens = study.demand.requests_per_s * study.demand.tokens_per_request * S_PER_YEAR
    for name, end in (("usd_per_mtok_low", CHEAPEST), ("usd_per_mtok_high", DEAREST)):
        running = (
            rows["n_chips"] * hardware.fixed_usd_per_year[end][chip] + rows["chips_average_w"] * hardware.usd_per_average_w_year[end][chip]
        )
        rows[name] = (running + hardware.nre_usd_per_year[end][chip]) / tokens * 1e6


def score(study: Study, points: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Return the weighted sum of the logarithms of the objectives, signs such that less is better."""
    values = np.stack([points[name] for name in OBJECTIVES], axis=1)
    weights = np.array([getattr(study.weights, name) for name in OBJECTIVES])
    # A free NRE is possible (a study may set it so): its logarithm must stay finite. Summed by hand: a BLAS adds in an order of its own.
    logs = losses(np.log(np.maximum(values, np.finfo(np.float64).tiny)))
    return np.asarray((logs * weights).sum(axis=1))


def _reduce(study: Study, points: Columns) -> Columns:
    met = np.flatnonzero(points["missed"] == 0)
    loss = losses(np.stack([points[name][met] for name in OBJECTIVES], axis=1))
    front = met[non_dominated(loss)]
    kept = [(np.union1d(front, met[_best_of_each(points["chip"][met], points["score"][met])]), MET)]
    only = np.zeros(len(LIMITS), dtype=np.int64)
    for k in range(len(LIMITS)):
        within = np.flatnonzero((points["missed"] & ~(1 << k)) == 0)
        only[k] = len(within) - len(met)
        if len(within):
            kept.append((within[[np.argmin(points["score"][within])]], FIRST_RELAXED + k))
    if len(points["miss"]):
        kept.append((np.array([np.argmin(points["miss"])]), NEAREST))
    rows = np.concatenate([index for index, _ in kept])
    roles = np.concatenate([np.full(len(index), role) for index, role in kept])
    return {name: column[rows] for name, column in points.items()} | {"role": roles, "n_met": np.array(len(met)), "n_only": only}


def _best_of_each(design: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the position of the least value of each design; the first among equals."""
    order = np.lexsort((np.arange(len(design)), values, design))
    first = np.ones(len(order), dtype=bool)
    first[1:] = design[order][1:] != design[order][:-1]
    return order[first]
