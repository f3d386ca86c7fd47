"""`design(study) -> Frontier`: go through the whole space, keep the exact front, say which is best and what stood in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.errors import InfeasibleError, InputError
from fabless.core.units import si
from fabless.explore.chunk import FIRST_RELAXED, LIMITS, MET, NEAREST
from fabless.explore.dispatch import run_chunks
from fabless.explore.frontier import DIRECTIONS, Binding, Counts, Frontier, RunnerUp, losses, non_dominated
from fabless.explore.pricing import inputs_of
from fabless.explore.space import axis_text, choices, design_text, dram_of
from fabless.explore.study import AXES, OBJECTIVES

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from numpy.typing import NDArray

    from fabless.explore.chunk import Columns
    from fabless.explore.dispatch import Progress
    from fabless.explore.study import Study

_RUNNERS_UP = 5
_WORTH_SAYING = 0.001  # a gain below this prints as 0.0%
_MEASURES = (
    *("usd_per_mtok_low", "usd_per_mtok_high", "score", "ttft_s", "tpot_s", "n_chips", "chips_average_w"),
    *("chip_tdp_w", "die_area_mm2", "package_usd"),
)
#: How each limit is named in sentences, with the unit of its value.
_LIMIT_WORDS = {
    "reticle": "the reticle",
    "clock": "the clock that our cores reach on the process",
    "interface": "the process's memory interfaces",
    "carrier": "the room around the die and on the carrier",
    "heat": "the heat that leaves a die",
    "chip_w": "the chip's power",
    "package_usd": "the package's price",
    "nre_usd": "the NRE budget",
    "rack_w": "the rack's power",
    "site_w": "the site's power",
    "memory": "memory capacity",
    "ttft_s": "time to first token",
    "tpot_s": "time per output token",
}
_OBJECTIVE_WORDS = {
    "usd_per_mtok": "money per token",
    "tokens_per_s_per_user": "speed per user",
    "power_w": "power",
    "nre_usd": "NRE",
}


def design(study: Study, *, executor: Executor | None = None, progress: Progress | None = None, out: Path | None = None) -> Frontier:
    """Search a study's space and return its frontier: the same rows whoever computes them and however often it was interrupted.

    `executor` (any `concurrent.futures.Executor`, such as `distributed.Client(...).get_executor()`) runs the chunks, this machine's cores
    where it is None; `progress(points_done, points)` is called as chunks end; `out` keeps finished chunks in `out/chunks`.
    Raises `InfeasibleError` with the nearest miss when no point meets every limit.
    """
    check(study)
    results = run_chunks(study, executor, progress, None if out is None else out / "chunks")
    scalars = {"n_timed", "n_met", "n_only"}
    rows = {name: np.concatenate([r[name] for r in results]) for name in results[0] if name not in scalars}
    role = rows.pop("role")
    only = np.sum([r["n_only"] for r in results], axis=0)
    n_met = int(sum(int(r["n_met"]) for r in results))
    if n_met == 0:
        raise InfeasibleError(_nearest_miss(study, _take(rows, np.flatnonzero(role == NEAREST))))
    relaxed = {name: _best(_take(rows, np.flatnonzero(role == FIRST_RELAXED + k))) for k, name in enumerate(LIMITS)}
    columns = _sorted(study, _take(rows, np.flatnonzero(role == MET)))
    best = int(np.argmin(columns["score"]))
    counts = Counts(
        designs=study.space.n_designs,
        points=study.n_points,
        timed_points=int(sum(int(r["n_timed"]) for r in results)),
        feasible_points=n_met,
        feasible_designs=len(np.unique(columns["design"])),
        front=int(columns["on_front"].sum()),
    )
    binding = tuple(_binding(study, name, _row(columns, best), relaxed[name], int(only[k])) for k, name in enumerate(LIMITS))
    ordered = tuple(sorted(binding, key=lambda b: -b.gain_ratio))
    return Frontier(study, columns, best, counts, ordered, _runners_up(study, columns, best))


def check(study: Study) -> None:
    """Look up every name that a study gives, so that a typo is answered before the search; raises `InputError` naming the nearest."""
    from fabless.chip.catalogue import load_chip
    from fabless.model.load import load

    for workload in study.workloads:
        load(workload.model)
    for name in study.compare:
        load_chip(name)
    _check_cores(study)
    for memory in study.space.memory:
        for process in study.space.process:
            dram_of(memory, process)
            inputs_of(study, process, memory.standard, "organic")


def _check_cores(study: Study) -> None:
    """Return if every core of the space is one that programs run on and RTL is generated for; raise `InputError` naming the value that is not."""
    from fabless.program.tile import BLOCK, ROWS, VECTOR_LANES

    for name, values, allowed in (
        ("rows", study.space.rows, ROWS), ("lanes", study.space.lanes, (BLOCK,)), ("vector_lanes", study.space.vector_lanes, VECTOR_LANES),
    ):  # fmt: skip
        for value in values:
            if value not in allowed:
                raise InputError(
                    f"space.{name} = {value}: the generator builds {', '.join(map(str, allowed))}; "
                    f"use {min(allowed, key=lambda a: abs(a - value))}, and more cores for a larger chip"
                )


def _take(rows: Columns, index: NDArray[np.int64]) -> Columns:
    return {name: column[index] for name, column in rows.items()}


def _sorted(study: Study, rows: Columns) -> Columns:
    """Keep the rows of the front of the whole space and each design's best, order them by design, and name what the numbers stand for."""
    loss = losses(np.stack([rows[name] for name in OBJECTIVES], axis=1))
    on_front = non_dominated(loss)
    order = np.lexsort((*(rows[f"{what}_0"] for what in ("batch", "plan", "recipe")), rows["score"], rows["design"]))
    first = np.ones(len(order), dtype=bool)
    first[1:] = rows["design"][order][1:] != rows["design"][order][:-1]
    keep = order[on_front[order] | first]
    rows, on_front = _take(rows, keep), on_front[keep]
    columns: Columns = {"design": rows["design"], "on_front": on_front}
    measures = (
        *OBJECTIVES,
        "usd_per_mtok_low",
        "usd_per_mtok_high",
        "score",
        "ttft_s",
        "tpot_s",
        "n_chips",
        "chips_average_w",
        "chip_tdp_w",
        "die_area_mm2",
        "package_usd",
    )
    columns |= {name: rows[name] for name in measures}
    for k, workload in enumerate(study.workloads):
        columns[f"recipe_{k}"] = np.array([workload.recipes[i].name for i in rows[f"recipe_{k}"]])
        columns[f"plan_{k}"] = np.array([str(study.plans[i]) for i in rows[f"plan_{k}"]])
        columns[f"plan_number_{k}"] = rows[f"plan_{k}"]
        columns[f"batch_{k}"] = rows[f"batch_{k}"]
    chosen = [choices(study.space, int(d)) for d in rows["design"]]
    for axis in AXES:
        values = [c[axis] for c in chosen]
        plain = isinstance(values[0], (int, float))
        columns[axis] = np.array(values if plain else [axis_text(axis, v) for v in values])
    return columns


def _best(rows: Columns) -> dict[str, Any] | None:
    """Return the row of least score as plain values, None without rows."""
    if not len(rows["score"]):
        return None
    return _row(rows, int(np.argmin(rows["score"])))


def _row(rows: Columns, i: int) -> dict[str, Any]:
    return {name: column[i].item() for name, column in rows.items()}


def limit_of(study: Study, name: str) -> float | None:
    """Return the value of a limit, None where the study leaves it free or each chip has its own (reticle, memory)."""
    if name in {"ttft_s", "tpot_s"}:
        return float(getattr(study.slo, name))
    return None if name in {"reticle", "clock", "interface", "carrier", "heat", "memory"} else getattr(study.limits, name)


def value_text(name: str, value: float) -> str:
    """Write the value of a limit or an objective with its unit."""
    if name.endswith("_s"):
        return si(value, "s")
    if name.endswith("_w"):
        return si(value, "W")
    if name == "usd_per_mtok":
        return f"${value:.3g} per million tokens"
    if name == "tokens_per_s_per_user":
        return f"{value:.3g} tokens/s per user"
    return f"${value:,.0f}"


def _binding(study: Study, name: str, best: dict[str, Any], without: dict[str, Any] | None, only: int) -> Binding:
    limit = limit_of(study, name)
    text = "" if limit is None else value_text(name, limit)
    usd, score = float(best["usd_per_mtok"]), float(best["score"])
    gain = 0.0 if without is None else max(0.0, -float(np.expm1(without["score"] - score)))
    words = _LIMIT_WORDS[name] + (f" of {text}" if text else "")
    if without is None or gain == 0.0:
        return Binding(name, text, 0.0, usd, usd, 0.0, only, f"{words} does not bind: nothing better lies beyond it")
    value = float(without[_VALUE_COLUMNS[name]]) if name in _VALUE_COLUMNS else 0.0
    reached = f" with {value_text(name, value)}" if name in _VALUE_COLUMNS else ""
    money = without["usd_per_mtok"]
    description = (
        f"{words} binds: without it {design_text(study.space, without['design'])}{reached} would be {gain:.0%} better by the study's weights, "
        f"at {value_text('usd_per_mtok', money)} instead of {value_text('usd_per_mtok', usd)}"
    )
    return Binding(name, text, gain, usd, float(money), value, only, description)


_VALUE_COLUMNS = {
    "chip_w": "chip_tdp_w",
    "package_usd": "package_usd",
    "nre_usd": "nre_usd",
    "site_w": "power_w",
    "ttft_s": "ttft_s",
    "tpot_s": "tpot_s",
}


def _runners_up(study: Study, columns: Columns, best: int) -> tuple[RunnerUp, ...]:
    """Return the next best designs, then for each axis the best design with another value there, each once."""
    order = np.argsort(columns["score"], kind="stable")
    chosen: list[int] = []
    seen = {int(columns["design"][best])}

    def take(row: int) -> None:
        if int(columns["design"][row]) not in seen:
            seen.add(int(columns["design"][row]))
            chosen.append(row)

    for row in order:
        if len(chosen) == _RUNNERS_UP:
            break
        take(int(row))
    for axis in AXES:
        for value in np.unique(columns[axis]):
            if value != columns[axis][best]:
                take(int(order[np.argmax(columns[axis][order] == value)]))
    return tuple(_runner_up(study, columns, best, row) for row in chosen)


def _runner_up(study: Study, columns: Columns, best: int, row: int) -> RunnerUp:
    ours, theirs = (choices(study.space, int(columns["design"][i])) for i in (best, row))
    differs = tuple((axis, axis_text(axis, ours[axis]), axis_text(axis, theirs[axis])) for axis in AXES if ours[axis] != theirs[axis])
    ratios = tuple((name, _worse(columns[name][row], columns[name][best], name)) for name in OBJECTIVES)
    weighed = [(float(np.log(ratio)) * getattr(study.weights, name), name, ratio) for name, ratio in ratios]
    cost, name, ratio = max(weighed)
    _, better, saved = min(weighed)
    change = ", ".join(f"{axis} {b} instead of {a}" for axis, a, b in differs)
    if cost <= 0:
        reason = "equal to the best under the study's weights"
    else:
        reason = f"{ratio - 1:.1%} worse in {_OBJECTIVE_WORDS[name]}"
        if 1 - saved >= _WORTH_SAYING:
            reason += f", which its {1 - saved:.1%} better {_OBJECTIVE_WORDS[better]} does not outweigh"
    return RunnerUp(row, change, differs, ratios, reason)


def _worse(theirs: float, best: float, objective: str) -> float:
    """Return how many times worse an objective is than the best's; 1 where both are the same, zero included."""
    return 1.0 if theirs == best else float((theirs / best) ** DIRECTIONS[objective])


def _nearest_miss(study: Study, rows: Columns) -> str:
    """Write the message of a study that nothing meets: the point that misses least, and which limits by how much."""
    row = _row(rows, int(np.argmin(rows["miss"])))
    misses = []
    for k, name in enumerate(LIMITS):
        if row["missed"] >> k & 1:
            limit = limit_of(study, name)
            if limit is not None and name in _VALUE_COLUMNS:
                value = row[_VALUE_COLUMNS[name]]
                misses.append(
                    f"{_LIMIT_WORDS[name]} is {value_text(name, value)}, {value / limit:.2f} times the limit of {value_text(name, limit)}"
                )
            else:
                misses.append(f"{_LIMIT_WORDS[name]} is exceeded")
    plans = "; ".join(
        f"{w.model} as {w.recipes[row[f'recipe_{k}']].name} on {study.plans[row[f'plan_{k}']]}, batch {row[f'batch_{k}']}"
        for k, w in enumerate(study.workloads)
    )
    return (
        f"study '{study.name}': none of {study.n_points:,} points meets every limit. Nearest miss: {design_text(study.space, row['design'])}; "
        f"{plans}: {'; '.join(misses)}. Loosen that limit, or widen [space], [plans] or the batches"
    )
