"""What a search found: the exact Pareto front, the best point under the study's weights, and what stood in the way of a better one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.explore.study import OBJECTIVES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from numpy.typing import NDArray

    from fabless.chip.chip import Chip
    from fabless.explore.study import Study

#: +1 where less is better, -1 where more is.
DIRECTIONS = {"usd_per_mtok": 1.0, "tokens_per_s_per_user": -1.0, "power_w": 1.0, "nre_usd": 1.0}


@dataclass(frozen=True, slots=True)
class Counts:
    """Count what the search went through: chips in the space, (chip, model, recipe, plan, batch) points in it, those timed, those that met every limit."""

    designs: int
    points: int
    timed_points: int
    feasible_points: int
    feasible_designs: int
    front: int


@dataclass(frozen=True, slots=True)
class Binding:
    """Tell what one limit costs: the best point if it alone were lifted. `gain_ratio` is how much of the score's product that saves (0: it does not bind)."""

    limit: str
    limit_text: str
    gain_ratio: float
    usd_per_mtok: float
    usd_per_mtok_without: float
    value_without: float
    points_only_it_refused: int
    description: str


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """Tell how a chip that lost differs from the best, and by how much it is worse (ratio above 1) or better (below 1) on each objective."""

    row: int
    label: str
    differs: tuple[tuple[str, str, str], ...]  # axis, best's value, this one's value
    ratios: tuple[tuple[str, float], ...]  # objective, worse-than-best ratio
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """Hold kept points as columns, one row each: the whole front, and the best point of every chip that meets the limits.

    `columns`: arrays of equal length. `design` numbers the chip in the space; `on_front` marks the non-dominated rows; `score` is what the
    weights make of the objectives (less is better); the objectives `usd_per_mtok`, `tokens_per_s_per_user`, `power_w` (facility power at the
    traffic's peak), `nre_usd`; `ttft_s`, `tpot_s`, `n_chips`, `chip_tdp_w`, `die_area_mm2`, `package_usd`; one column per axis of the space; and
    for the k-th model `recipe_k`, `plan_k`, `batch_k`.
    """

    study: Study
    columns: Mapping[str, NDArray[Any]]
    best: int
    counts: Counts
    binding: tuple[Binding, ...]
    runners_up: tuple[RunnerUp, ...]

    @property
    def n_rows(self) -> int:
        """Return the number of kept points."""
        return len(self.columns["design"])

    @property
    def front(self) -> NDArray[np.int64]:
        """Return the rows of the Pareto front, cheapest first."""
        rows = np.flatnonzero(self.columns["on_front"])
        return rows[np.argsort(self.columns["usd_per_mtok"][rows], kind="stable")]

    def chip(self, row: int) -> Chip:
        """Build the chip of a row."""
        from fabless.explore.space import chip_of

        return chip_of(self.study.space, int(self.columns["design"][row]))

    def row(self, row: int) -> dict[str, Any]:
        """Return one row as plain Python values."""
        return {name: column[row].item() if hasattr(column[row], "item") else column[row] for name, column in self.columns.items()}

    def table(self) -> pa.Table:
        """Return all rows as an Arrow table."""
        import pyarrow as pa

        return pa.table({name: pa.array(column) for name, column in self.columns.items()})


def losses(objectives: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn objectives `[n, 4]` in the order of `OBJECTIVES` into losses: less is better in every column."""
    return np.asarray(objectives * np.array([DIRECTIONS[name] for name in OBJECTIVES]))


def non_dominated(loss: NDArray[np.float64], block: int = 512) -> NDArray[np.bool_]:
    """Mark the rows of `loss` `[n, k]` that no other row dominates (nowhere worse, somewhere better); equal rows are all kept.

    Exact: rows are sorted lexicographically, so that only earlier rows can dominate later ones; each block is held against the front so far, then against
    itself. Transitivity makes it enough to compare with the front.
    """
    n = len(loss)
    order = np.lexsort(loss.T[::-1])
    ordered = loss[order]
    kept = np.zeros(n, dtype=bool)
    front = np.empty((0, loss.shape[1]))
    for start in range(0, n, block):
        rows = ordered[start : start + block]
        alive = ~_dominated(rows, front)
        candidates = np.flatnonzero(alive)
        inside = ~_dominated(rows[candidates], rows[candidates])
        survivors = candidates[inside]
        kept[start + survivors] = True
        front = np.concatenate([front, rows[survivors]])
    mask = np.zeros(n, dtype=bool)
    mask[order[kept]] = True
    return mask


def _dominated(rows: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.bool_]:
    if not len(rows) or not len(by):
        return np.zeros(len(rows), dtype=bool)
    nowhere_worse = np.ones((len(rows), len(by)), dtype=bool)
    somewhere_better = np.zeros((len(rows), len(by)), dtype=bool)
    for column in range(rows.shape[1]):
        theirs, ours = by[None, :, column], rows[:, None, column]
        nowhere_worse &= theirs <= ours
        somewhere_better |= theirs < ours
    return np.asarray((nowhere_worse & somewhere_better).any(axis=1))
