"""The best mapping of a matrix product onto cores and on-chip memory, found exactly.

A product is cut twice. Over cores, into equal rectangles of the output (`compute_cycles`): what padding to rows, lanes and columns and the
slowest core cost. In time, into tiles that the on-chip memory holds (`least_traffic`): what DRAM must move. The scratchpads of a chip are
one store joined by its network, so that neither cut limits the other and the best product is the best of each: max(compute, traffic).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fabless.chip.chip import Mesh, Mxu

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

#: Bytes of one on-chip partial sum, binary32 (mathematics of the accumulator format, DESIGN.md section 4).
PARTIAL_SUM_BYTES = 4.0


class Products(NamedTuple):
    """Hold matrix products `[batch, m, k] x [batch, k, n]` as equal-length arrays, with the bytes per value of each operand."""

    m: Floats
    n: Floats
    k: Floats
    batch: Floats
    a_bytes: Floats
    b_bytes: Floats
    c_bytes: Floats

    @property
    def macs(self) -> Floats:
        """Return the multiply-accumulates of each."""
        return self.batch * self.m * self.n * self.k


@lru_cache(maxsize=4096)
def distinct_parts(n: int) -> tuple[int, ...]:
    """Return the part sizes of 1..n that give distinct numbers of parts ceil(n / size), each the smallest size of its number."""
    sizes = []
    size = n
    while size >= 1:
        parts = -(-n // size)
        size = -(-n // parts)  # the smallest size that still makes this number of parts
        sizes.append(size)
        size -= 1
    return tuple(sizes)


@lru_cache(maxsize=1024)
def _divisions(n_units: int) -> NDArray[np.float64]:
    """Return rows (batch parts, m parts, n parts), none of which another dominates, with product at most n_units."""
    rows: list[tuple[int, int, int]] = []
    for pb in _reaches(n_units):
        rest = n_units // pb
        rows.extend((pb, pm, rest // pm) for pm in _reaches(rest))
    return np.array(rows, dtype=np.float64)


def _reaches(n: int) -> list[int]:
    """Return for each distinct quotient n // p the largest such p."""
    out, p = [], 1
    while p <= n:
        p = n // (n // p)
        out.append(p)
        p += 1
    return out


def compute_cycles(matrix: Mxu | Mesh, n_units: int, p: Products, rate: Floats | float = 1.0) -> Floats:
    """Return the fewest cycles in which `n_units` matrix units can multiply each product, without waiting for memory.

    `rate` scales multiply-accumulates per lane or PE and cycle for the products' format. The units share one product as equal rectangles
    (batch x m x n parts); the largest part sets the time.
    Mxu: an activation slice meets `rows` weight rows of `lanes` each cycle, so n pads to rows and k to lanes and m does not pad; k is never
    divided over cores, because sums are taken in ascending k. Mesh: `scale_sim_cycles`.
    """
    if isinstance(matrix, Mxu):
        return np.asarray(_mxu_cycles(matrix, n_units, p) / rate)
    return np.asarray(_mesh_cycles(matrix, n_units, p) / rate)


def _share(total: Floats, parts: Floats | float) -> Floats:
    """Return the largest part of a dimension; an undivided dimension may be an expectation and stays fractional."""
    return np.where(parts == 1, total, np.ceil(total / parts))


def _mxu_cycles(matrix: Mxu, n_units: int, p: Products) -> Floats:
    blocks_n = np.ceil(p.n / matrix.rows)
    blocks_k = np.ceil(p.k / matrix.lanes)
    if n_units == 1:
        return p.batch * p.m * blocks_n * blocks_k
    pb, pm, pn = (column[:, None] for column in _divisions(n_units).T)
    parts = _share(p.batch, pb) * _share(p.m, pm) * np.ceil(blocks_n / pn)
    return np.asarray(parts.min(axis=0) * blocks_k)


def _mesh_cycles(matrix: Mesh, n_units: int, p: Products) -> Floats:
    """Return cycles of systolic arrays: each pass moves a stationary tile's worth of work, plus one fill and drain.

    Weight stationary: a [rows, columns] weight tile serves m activations, and loading the next tile takes `rows` cycles behind it.
    Output stationary: a [rows, columns] output tile takes k cycles. Fill and drain: rows + columns - 2.
    Source: Samajdar et al., SCALE-Sim, ISPASS 2020, section III; double-buffered weights as in TPU v1 (Jouppi et al., ISCA 2017).
    """
    fill_drain = matrix.rows + matrix.columns - 2
    if matrix.dataflow == "output_stationary":
        tiles = np.ceil(p.m / matrix.rows) * np.ceil(p.n / matrix.columns) * p.batch
        return _share(tiles, float(n_units)) * p.k + fill_drain
    tiles = np.ceil(p.k / matrix.rows) * np.ceil(p.n / matrix.columns) * p.batch
    pm = np.array(_reaches(n_units), dtype=np.float64)[:, None]
    passes = _share(tiles, np.floor(n_units / pm)) * np.maximum(_share(p.m, pm), matrix.rows)
    return np.asarray(passes.min(axis=0) + fill_drain)


def least_traffic(p: Products, capacity_bytes: float, granule_n: int, granule_k: int, *, resident: bool) -> Floats:
    """Return the fewest DRAM bytes that any tiling and loop order of each product moves through `capacity_bytes` of on-chip memory.

    Tiles are any m, multiples of `granule_n` and `granule_k` (or the whole dimension); operands with more than one tile are double-buffered;
    an output tile is held in binary32, and an order that leaves it early spills and refetches it. With `resident`, inputs and outputs
    may also live on chip as a whole, when what they leave still holds a tile of each operand: then they move nothing.
    Infinite where not even the smallest tiles fit.
    """
    best = _tiled_traffic(p, capacity_bytes, granule_n, granule_k, free_a=False, free_c=False)
    if not resident:
        return best
    a_whole = p.batch * p.m * p.k * p.a_bytes
    c_whole = p.batch * p.m * p.n * p.c_bytes
    for free_a, free_c in ((True, True), (True, False), (False, True)):
        room = capacity_bytes - free_a * a_whole - free_c * c_whole
        best = np.minimum(best, _tiled_traffic(p, room, granule_n, granule_k, free_a=free_a, free_c=free_c))
    return best


@dataclass(frozen=True, slots=True)
class _Tiling:
    """State one tiling problem per row: sizes, bytes per value on chip, bytes that one pass over each operand moves, and the room."""

    m: Floats
    n: Floats
    k: Floats
    a: Floats
    b: Floats
    move_a: Floats
    move_b: Floats
    move_c: Floats
    room: Floats
    granule_n: int
    granule_k: int

    def rows(self, index: NDArray[np.intp]) -> _Tiling:
        """Return the problem with its rows repeated as an index says."""
        arrays = {f.name: getattr(self, f.name)[index] for f in fields(self) if not f.name.startswith("granule")}
        return replace(self, **arrays)


def _tiled_traffic(p: Products, room: Floats | float, granule_n: int, granule_k: int, *, free_a: bool, free_c: bool) -> Floats:
    """Return least traffic with inputs or outputs resident (free); the six loop orders reduce to three and a few whole-operand cases.

    k innermost (outputs stationary), n innermost (inputs stationary) and m innermost (weights stationary); each other order moves as
    much as one of these. In each, one dimension's tile is as small as allowed, one is enumerated and the third is the largest that fits.
    """
    m = np.maximum(np.ceil(p.m), 1.0)
    a = np.zeros_like(m) if free_a else p.a_bytes
    c = np.zeros_like(m) if free_c else p.c_bytes
    t = _Tiling(
        m, p.n, p.k, a, p.b_bytes, m * p.k * a, p.k * p.n * p.b_bytes, m * p.n * c, np.zeros_like(m) + room, granule_n, granule_k
    )  # fmt: skip
    best = np.minimum(_whole_k(t), _outputs_stationary(t))
    if not free_c:
        best = np.minimum(best, np.minimum(_inputs_stationary(t), _weights_stationary(t)))
    return np.asarray((best + t.move_c) * p.batch)


def _fit(room: Floats, per_unit: Floats) -> Floats:
    """Return how many units of a given size fit; below zero for no room at all."""
    return np.asarray(np.floor(room / per_unit))


def _passes(total: Floats, tile: Floats, move: Floats) -> Floats:
    """Return the bytes of moving an operand once per tile of another dimension, infinite where the tile is empty."""
    return np.where(tile >= 1, np.ceil(total / np.maximum(tile, 1.0)) * move, np.inf)


def _double(several: NDArray[np.bool_]) -> Floats:
    """Return 2 buffers for an operand that arrives in several tiles, 1 for one that is loaded once."""
    return np.asarray(np.where(several, 2.0, 1.0))


def _whole_k(t: _Tiling) -> Floats:
    """Return traffic of inputs and weights with undivided k: a strip of inputs or of weights stays while the other streams."""
    gn = np.minimum(t.granule_n, t.n)
    acc = PARTIAL_SUM_BYTES
    once = t.move_a + t.move_b
    in_stays = t.m * t.k * t.a + _double(gn < t.n) * gn * t.k * t.b + acc * t.m * gn <= t.room
    w_stays = t.n * t.k * t.b + _double(t.m > 1) * t.k * t.a + acc * t.n <= t.room
    tm = np.minimum(_fit(t.room - _double(gn < t.n) * gn * t.k * t.b, 2 * t.k * t.a + acc * gn), t.m)
    strips_m = t.move_a + _passes(t.m, tm, t.move_b)
    tn = np.floor(_fit(t.room - _double(t.m > 1) * t.k * t.a, 2 * t.k * t.b + acc) / t.granule_n) * t.granule_n
    strips_n = t.move_b + _passes(t.n, np.minimum(tn, t.n), t.move_a)
    return np.minimum(np.where(in_stays | w_stays, once, np.inf), np.minimum(strips_m, strips_n))


def _ragged(counts: Floats) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
    """Return the distinct part sizes of each count, end to end, with each one's row and each row's start."""
    lists = [distinct_parts(int(c)) for c in counts]
    lengths = np.array([len(x) for x in lists])
    sizes = np.array([v for x in lists for v in x], dtype=np.float64)
    return sizes, np.repeat(np.arange(len(lists)), lengths), np.concatenate(([0], np.cumsum(lengths)[:-1]))


def _outputs_stationary(t: _Tiling) -> Floats:
    """Return traffic with k innermost and divided: inputs move once per n tile, weights once per m tile."""
    size, row, start = _ragged(np.ceil(t.n / t.granule_n))
    t = t.rows(row)
    tn, tk = np.minimum(size * t.granule_n, t.n), np.minimum(t.granule_k, t.k)
    tm = np.minimum(_fit(t.room - 2 * tn * tk * t.b, 2 * tk * t.a + PARTIAL_SUM_BYTES * tn), t.m)
    total = np.ceil(t.n / tn) * t.move_a + _passes(t.m, tm, t.move_b)
    return np.asarray(np.minimum.reduceat(total, start))


def _spill_bytes(t: _Tiling, tk: Floats) -> Floats:
    """Return the bytes of writing and reading back partial sums between k tiles."""
    return np.asarray(2 * PARTIAL_SUM_BYTES * t.m * t.n * (np.ceil(t.k / tk) - 1))


def _inputs_stationary(t: _Tiling) -> Floats:
    """Return traffic with n innermost: inputs move once, weights once per m tile, partial sums spill once per k tile."""
    size, row, start = _ragged(np.ceil(t.k / t.granule_k))
    t = t.rows(row)
    tk, tn = np.minimum(size * t.granule_k, t.k), np.minimum(t.granule_n, t.n)
    tm = np.minimum(_fit(t.room - 2 * tk * tn * t.b, 2 * tk * t.a + PARTIAL_SUM_BYTES * tn), t.m)
    total = t.move_a + _passes(t.m, tm, t.move_b) + _spill_bytes(t, tk)
    return np.asarray(np.minimum.reduceat(total, start))


def _weights_stationary(t: _Tiling) -> Floats:
    """Return traffic with m innermost: weights move once, inputs once per n tile, partial sums spill once per k tile."""
    size, row, start = _ragged(np.ceil(t.k / t.granule_k))
    t = t.rows(row)
    tk = np.minimum(size * t.granule_k, t.k)
    fit = _fit(t.room - 2 * tk * t.a, 2 * tk * t.b + PARTIAL_SUM_BYTES)
    tn = np.where(fit >= t.n, t.n, np.floor(fit / t.granule_n) * t.granule_n)
    total = t.move_b + _passes(t.n, np.minimum(tn, t.n), t.move_a) + _spill_bytes(t, tk)
    return np.asarray(np.minimum.reduceat(total, start))
