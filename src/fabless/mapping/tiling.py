"""One product's best tiling spelled out: tile sizes, loop order, what stays on chip, for those who must act on it or show it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import InfeasibleError
from fabless.core.units import binary
from fabless.mapping.gemm import PARTIAL_SUM_BYTES, distinct_parts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tiling:
    """State how a product moves through on-chip memory: loops from outermost to innermost, tile sizes, residents and the bytes that DRAM moves."""

    order: str
    m: int
    n: int
    k: int
    resident_inputs: bool
    resident_outputs: bool
    dram_bytes: float

    def __str__(self) -> str:
        kept = "".join(name for name, here in ((" A", self.resident_inputs), (" C", self.resident_outputs)) if here)
        return f"{self.m}x{self.n}x{self.k} {'>'.join(self.order)}" + (f" keeps{kept}" if kept else "")


def best_tiling(
    shape: tuple[int, int, int], bytes_per_value: tuple[float, float, float], capacity_bytes: float, granules: tuple[int, int], *,
    resident: bool = False,
) -> Tiling:  # fmt: skip
    """Return the tiling of `[m, k] x [k, n]` that moves the fewest bytes, the same that `least_traffic` prices.

    `shape` is (m, n, k), `bytes_per_value` those of inputs, weights and outputs, `granules` those of n and k. Every tile of n and k that changes
    a trip count is tried with the largest tile of m that fits, in all six loop orders. Raises `InfeasibleError` when the smallest
    tiles do not fit.
    """
    choices = ((False, False), (True, False), (False, True), (True, True)) if resident else ((False, False),)
    found = [t for kept in choices if (t := _best(shape, bytes_per_value, capacity_bytes, granules, kept)) is not None]
    if not found:
        m, n, k = shape
        raise InfeasibleError(
            f"product {m} x {n} x {k}: its smallest tiles (1 x {min(granules[0], n)} x {min(granules[1], k)}, double-buffered) exceed "
            f"{binary(capacity_bytes)} of on-chip memory; raise core.scratchpad.capacity_bytes or lower the array's rows and lanes"
        )
    return min(found, key=lambda t: t.dram_bytes)


def _best(
    shape: tuple[int, int, int], sizes: tuple[float, float, float], capacity: float, granules: tuple[int, int], kept: tuple[bool, bool]
) -> Tiling | None:
    m, n, k = shape
    a, b, c = (0.0 if kept[0] else sizes[0]), sizes[1], (0.0 if kept[1] else sizes[2])
    room = capacity - (m * k * sizes[0] if kept[0] else 0.0) - (m * n * sizes[2] if kept[1] else 0.0)
    tn, tk = (np.minimum(np.array(distinct_parts(ceil(x / g)), dtype=float) * g, x) for x, g in zip((n, k), granules, strict=True))
    tn, tk = (x.ravel() for x in np.meshgrid(tn, tk, indexing="ij"))
    b_bytes = np.where((tn < n) | (tk < k), 2, 1) * tn * tk * b
    part = np.minimum(np.floor((room - b_bytes) / (2 * tk * a + PARTIAL_SUM_BYTES * tn)), m)
    whole = b_bytes + np.where(tk < k, 2, 1) * m * tk * a + PARTIAL_SUM_BYTES * m * tn <= room
    tm = np.where(whole, m, part)
    fits = tm >= 1
    if not fits.any():
        return None
    tm, tn, tk = tm[fits], tn[fits], tk[fits]
    trips = {"m": np.ceil(m / tm), "n": np.ceil(n / tn), "k": np.ceil(k / tk)}
    best: Tiling | None = None
    for order in permutations("mnk"):
        spills = 2 * PARTIAL_SUM_BYTES * m * n * (_visits(order, trips, "mn") - 1)
        spills = np.where(spills > 0, np.inf, 0.0) if kept[1] else spills
        moved = m * k * a * _visits(order, trips, "mk") + n * k * b * _visits(order, trips, "nk") + m * n * c + spills
        i = int(np.argmin(moved))
        if best is None or moved[i] < best.dram_bytes:
            best = Tiling("".join(order), int(tm[i]), int(tn[i]), int(tk[i]), *kept, float(moved[i]))
    return best


def _visits(order: tuple[str, ...], trips: dict[str, Floats], axes: str) -> Floats:
    """Return how often an operand passes: the trips of a loop over its missing axis, when a loop over its own axes turns inside."""
    (missing,) = set("mnk") - set(axes)
    inner = order[order.index(missing) + 1 :]
    turns = np.logical_or.reduce([trips[x] > 1 for x in inner]) if inner else np.zeros_like(trips["m"], dtype=bool)
    return np.where(turns, trips[missing], 1.0)
