"""Dies on a wafer, the share that works, and what a good die costs.

Counting is exact: the largest number of equal dies, on one grid of pitch die + scribe, whose four corners lie inside the usable radius and
above the notch's chord, over all positions of the grid. Yield is the negative binomial of Stapper (IBM J. Res. Dev. 27(6), 1983),
`Y = (1 + A D0 / alpha)^-alpha`, i.e. Poisson defects whose density is gamma distributed over dies; harvesting keeps that mixture.
Every function but the counting works on floats and on arrays of one shape.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.errors import InfeasibleError, InputError
from fabless.core.sources import table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = float | NDArray[np.float64]

_SLACK = 1e-9  # pitches: a corner that touches the circle is inside, whatever the rounding
_FINEST = 1e-7  # pitches: smaller boxes of grid positions are not divided further
_LARGEST = 700.0  # exponents beyond it overflow, where all dies are bad anyway
_NODES = 48  # quadrature nodes over the gamma distribution of defect density: within 1e-7 on a full reticle with 0.6 defects per cm2


def _wafer(id: str) -> float:
    return table("wafer").fact(id).known


def dies_per_wafer(
    die_width_mm: float,
    die_height_mm: float,
    *,
    scribe_mm: float | None = None,
    edge_mm: float | None = None,
    notch_mm: float | None = None,
    diameter_mm: float | None = None,
) -> int:
    """Return the largest number of whole dies on a wafer, over all positions of the grid; defaults are the rows of wafer.toml.

    Raises `InputError` for a side that is not above 0. A die that does not fit returns 0.
    """
    if not (die_width_mm > 0 and die_height_mm > 0):
        raise InputError(f"a die of {die_width_mm} mm x {die_height_mm} mm: both sides must be above 0")
    return _count(
        float(die_width_mm),
        float(die_height_mm),
        scribe=_wafer("scribe_mm") if scribe_mm is None else scribe_mm,
        edge=_wafer("edge_mm") if edge_mm is None else edge_mm,
        notch=_wafer("notch_mm") if notch_mm is None else notch_mm,
        diameter=_wafer("wafer_diameter_mm") if diameter_mm is None else diameter_mm,
    )


@lru_cache(maxsize=1 << 16)
def _count(width: float, height: float, *, scribe: float, edge: float, notch: float, diameter: float) -> int:
    """Maximise over the grid's position by branch and bound.

    With the lattice's phase (s, t) in pitches, a row at |y| = v holds the dies t + i <= u(v) to the right and i - t <= u(v), i >= 1, to
    the left, u falling with v. Rows above lie at v = s + k, below at v = k + 1 - s. So each of the four families of dies grows or shrinks
    monotonically with s and with t, and over a box of phases each family's largest count is at one corner: their sum is an upper bound
    that is exact in the limit, and the count at any point is a lower bound. By symmetry t needs only [0, 1/2], and s too unless the
    notch cuts rows.
    """
    radius = diameter / 2 - edge
    lowest = diameter / 2 - notch  # a die below the centre must end above this
    if np.hypot(width, height) > 2 * radius:
        return 0
    pitch_x, pitch_y = width + scribe, height + scribe
    rows = np.arange(int(radius / pitch_y) + 2, dtype=float)

    def reach(v: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
        top = v * pitch_y + height / 2
        chord = np.sqrt(np.maximum(radius * radius - top * top, 0.0))
        return np.where((top <= radius) & (top <= limit), (chord - width / 2) / pitch_x, -2.0) + _SLACK

    def right(u: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.maximum(np.floor(u - t) + 1, 0.0).sum(-1))

    def left(u: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.maximum(np.floor(u + t), 0.0).sum(-1))

    s_end = 0.5 if lowest >= radius else 1.0
    divide = 4
    s = np.repeat(np.arange(divide) * s_end / divide, divide)
    t = np.tile(np.arange(divide) * 0.5 / divide, divide)
    ds, dt = s_end / divide, 0.5 / divide
    best = 0.0
    while True:
        at = np.stack([s, s + ds / 2, s + ds])[..., None]  # [3, box, 1]
        above, below = reach(at + rows, np.inf), reach(rows + 1 - at, lowest)
        rim = [t[:, None], t[:, None] + dt / 2, t[:, None] + dt]
        rights = [(right(above, x), right(below, x)) for x in rim]
        lefts = [(left(above, x), left(below, x)) for x in rim]
        exact = [a + b + c + d for (a, b), (c, d) in zip(rights, lefts, strict=True)]
        best = max(best, float(np.max(exact)))
        bound = rights[0][0][0] + rights[0][1][2] + lefts[2][0][0] + lefts[2][1][2]
        keep = bound > best
        if not keep.any() or max(ds, dt) < _FINEST:
            return int(best)
        ds, dt = ds / 2, dt / 2
        s, t = s[keep], t[keep]
        s, t = np.concatenate([s, s + ds, s, s + ds]), np.concatenate([t, t, t + dt, t + dt])


def stepped_side_mm(side_mm: Values) -> Values:
    """Return a side rounded up to the step of wafer.toml, so that nearly equal dies share one count and prices are never too low."""
    step = _wafer("side_step_mm")
    stepped: Values = np.ceil(np.asarray(side_mm) / step - 1e-6) * step
    return stepped


def dies_of(die_width_mm: Values, die_height_mm: Values) -> Values:
    """Return `dies_per_wafer` of stepped sides, elementwise; each distinct outline is counted once.

    Raises `InfeasibleError` for a die that does not fit on a wafer.
    """
    step = _wafer("side_step_mm")
    w = np.asarray(np.rint(np.asarray(stepped_side_mm(die_width_mm)) / step), dtype=np.int64)
    h = np.asarray(np.rint(np.asarray(stepped_side_mm(die_height_mm)) / step), dtype=np.int64)
    w, h = np.broadcast_arrays(w, h)
    code, inverse = np.unique(w * 100_000 + h, return_inverse=True)
    counts = np.array([dies_per_wafer(int(c) // 100_000 * step, int(c) % 100_000 * step) for c in code], dtype=float)
    if np.any(counts == 0):
        worst = int(code[np.argmin(counts)])
        raise InfeasibleError(
            f"a die of {worst // 100_000 * step:.2f} mm x {worst % 100_000 * step:.2f} mm does not fit on a wafer; make it smaller"
        )
    found = counts[inverse].reshape(w.shape)
    return float(found) if found.ndim == 0 else found


def yield_ratio(area_mm2: Values, d0_per_cm2: Values, alpha: Values) -> Values:
    """Return the share of dies without a killer defect, (1 + A D0 / alpha)^-alpha; alpha infinite is Poisson."""
    faults = np.asarray(area_mm2) / 100.0 * np.asarray(d0_per_cm2)
    a = np.asarray(alpha, dtype=float)
    finite = np.where(np.isinf(a), 1.0, a)
    result: Values = np.where(np.isinf(a), np.exp(-faults), (1 + faults / finite) ** -finite)
    return result


def harvested_yield_ratio(
    die_area_mm2: Values, core_area_mm2: Values, *, n_cores: Values, n_spare: Values, d0_per_cm2: Values, alpha: Values
) -> Values:
    """Return the probability that at most `n_spare` of the `n_cores + n_spare` cores on a die are bad and the rest of it is good.

    Given a defect density the cores fail independently (Poisson), so the number of bad ones is binomial; the density is gamma distributed
    with shape alpha, integrated by Gauss-Laguerre quadrature. Cores together must not exceed the die: raises `InputError`.
    Without spares this is `yield_ratio` of the whole die, by construction.
    """
    values = (die_area_mm2, core_area_mm2, n_cores, n_spare, d0_per_cm2, alpha)
    die, core, cores, spare, d0, a = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in values))
    n = cores + spare
    if np.any(core * n > die * (1 + 1e-9)):
        raise InputError("harvesting: the cores take more area than the die; give the area of one core in mm2")
    result = np.array(yield_ratio(die, d0, a), dtype=float)
    for shape in np.unique(a):
        pick = (spare > 0) & (core > 0) & (d0 > 0) & (a == shape)
        if pick.any():
            nodes, weights = _gamma_nodes(float(shape))
            density = d0[pick][:, None] / 100.0 * nodes  # defects per mm2 at each node, d0 on average
            all_good, odds = np.exp(-die[pick][:, None] * density), np.expm1(np.minimum(core[pick][:, None] * density, _LARGEST))
            result[pick] = _at_most(spare[pick], n[pick], odds, all_good) @ weights
    return float(result) if result.ndim == 0 else result


def _at_most(k: NDArray[np.float64], n: NDArray[np.float64], odds: NDArray[np.float64], none: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return P(at most k of n are bad), `[design, node]`: the binomial's terms by recurrence from `none`, the probability that none is.

    `odds` are those of one core being bad.
    """
    term, total = none, none.copy()
    for i in range(int(k.max())):
        more = np.where(i < k, np.maximum(n - i, 0.0) / (i + 1), 0.0)
        term = term * odds * more[:, None]
        total += term
    return total


@lru_cache(maxsize=1024)
def _gamma_nodes(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return nodes and weights of the mean over a gamma distribution of mean 1 and shape alpha (Golub and Welsch 1969)."""
    if np.isinf(alpha):
        return np.array([1.0]), np.array([1.0])
    i = np.arange(_NODES, dtype=float)
    off = np.sqrt(i[1:] * (i[1:] + alpha - 1))
    jacobi: Any = np.diag(2 * i + alpha) + np.diag(off, 1) + np.diag(off, -1)
    nodes, vectors = np.linalg.eigh(jacobi)
    return nodes / alpha, vectors[0] ** 2


def good_die_usd(wafer_usd: Values, dies: Values, good_ratio: Values) -> Values:
    """Return what one working die costs: the wafer's price over the dies that work."""
    return wafer_usd / (dies * good_ratio)
