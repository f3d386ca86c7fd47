"""Where a module's tensors lie: every element's address, as NumPy arrays of addresses; rows that instructions can walk; nests of copies.

Addresses count binary32 elements of memory. A view (slice, transpose, reshape of what allows it) is arithmetic on the array of addresses, and only an
operation that needs rows where there are none copies.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.compiler.partition import ceil, up
from fabless.core.errors import InfeasibleError
from fabless.core.units import si
from fabless.program.program import Buffer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fabless.program.tile import Tile

    Addresses = NDArray[np.int64]

#: Elements of a memory granule: rows of `load` and `store` start at multiples of it.
GRANULE = 8


@dataclass(frozen=True, slots=True)
class Rows:
    """Hold `m` rows of `n` neighbouring elements, `stride` elements apart, the first at `base`; base and stride are whole granules."""

    base: int
    stride: int
    m: int
    n: int

    def part(self, first: int, m: int) -> Rows:
        """Return m of the rows."""
        return Rows(self.base + first * self.stride, self.stride, m, self.n)


@dataclass(frozen=True, slots=True)
class Block:
    """Remember one buffer's rows: `pitch` elements from row to row, of which `n` mean something and the rest may be read."""

    first: int
    end: int
    pitch: int
    n: int


@dataclass
class Places:
    """Give out memory; `unit`: elements that every row of a buffer is a multiple of (vector alignment and the rows of a weight word)."""

    tile: Tile
    buffers: list[Buffer] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    end_bytes: int = 0

    @property
    def unit(self) -> int:
        """Return the elements that rows are padded to a multiple of."""
        return max(self.tile.vector_align, self.tile.rows)

    def take(self, name: str, n_bytes: int, kind: str) -> int:
        """Return the address in bytes of a new buffer; raises `InfeasibleError` when the tile's memory is full."""
        address = up(self.end_bytes, 64)
        self.end_bytes = address + max(64, n_bytes)
        if self.end_bytes > self.tile.memory_bytes:
            raise InfeasibleError(
                f"{name}: memory is full at {si(self.end_bytes, 'B')} of {si(self.tile.memory_bytes, 'B')}; use a tile with more memory, or smaller inputs"
            )
        self.buffers.append(Buffer(name, address, max(64, n_bytes), kind))
        return address

    def rows(self, name: str, m: int, n: int, kind: str, pitch: int = 0) -> Rows:
        """Return a new buffer of m rows of n elements."""
        pitch = pitch or up(n, self.unit)
        first = self.take(name, 4 * m * pitch, kind) // 4
        self.blocks.append(Block(first, first + m * pitch, pitch, n))
        return Rows(first, pitch, m, n)

    def loadable(self, rows: Rows) -> bool:
        """Tell whether rows can be loaded up to a whole unit of elements: what lies behind them belongs to the same buffer."""
        if rows.n % self.unit == 0:
            return True
        block = next((b for b in self.blocks if b.first <= rows.base < b.end), None)
        return (
            block is not None
            and block.n == rows.n
            and block.pitch % self.unit == 0
            and (rows.base - block.first) % block.pitch == 0
            and (rows.m == 1 or rows.stride % block.pitch == 0)
        )


def addresses(rows: Rows, shape: Sequence[int]) -> Addresses:
    """Return the addresses of a tensor that lies in rows, its last axis along them."""
    array = rows.base + rows.stride * np.arange(rows.m)[:, None] + np.arange(rows.n)
    return array.reshape(tuple(shape))


def as_rows(at: Addresses) -> Rows | None:
    """Return the rows in which a tensor's last axis lies, None where it lies otherwise."""
    n = at.shape[-1] if at.ndim else 1
    flat = at.reshape(-1, n)
    starts = flat[:, 0]
    stride = int(starts[1] - starts[0]) if len(starts) > 1 else 0
    if starts[0] % GRANULE or stride % GRANULE or stride < 0:
        return None
    if not (flat == starts[:, None] + np.arange(n)).all() or not (starts == starts[0] + stride * np.arange(len(starts))).all():
        return None
    return Rows(int(starts[0]), stride, len(starts), n)


def natural_order(at: Addresses) -> tuple[int, ...]:
    """Return the axes of a tensor from the longest step in memory to the shortest: the order in which it lies."""
    steps = [int(np.take(at, 1, axis).flat[0] - at.flat[0]) if at.shape[axis] > 1 else 0 for axis in range(at.ndim)]
    return tuple(sorted(range(at.ndim), key=lambda axis: (-abs(steps[axis]) if steps[axis] else -(1 << 60), axis)))


@dataclass(frozen=True, slots=True)
class Level:
    """Hold one level of a nest: how often, and how far each sequence moves from one time to the next."""

    n: int
    steps: tuple[int, ...]


def nest(*sequences: Addresses) -> tuple[Level, ...] | None:
    """Return the loops, innermost first, that walk several sequences of addresses at once; None where none do."""
    current = np.stack([s.reshape(-1) for s in sequences])
    levels: list[Level] = []
    while current.shape[1] > 1:
        n = current.shape[1]
        steps = current[:, 1] - current[:, 0]
        length = _run(current, steps)
        while length > 1 and not (n % length == 0 and _repeats(current, length, steps)):
            length -= 1
        if length == 1:
            return None
        levels.append(Level(length, tuple(int(s) for s in steps)))
        current = current[:, ::length]
    return tuple(levels)


def _run(current: Any, steps: Any) -> int:
    same = (np.diff(current, axis=1) == steps[:, None]).all(axis=0)
    return int(np.argmin(same)) + 1 if not same.all() else current.shape[1]


def _repeats(current: Any, length: int, steps: Any) -> bool:
    grouped = current.reshape(len(current), -1, length)
    return bool((grouped == grouped[:, :, :1] + steps[:, None, None] * np.arange(length)).all())


def split_levels(levels: Sequence[Level], position: int, most: int) -> tuple[tuple[Level, ...], Level | None]:
    """Cut the level at `position` into pieces of at most `most`: the levels of the whole pieces, and what remains (None: nothing)."""
    level = levels[position]
    if level.n <= most:
        return tuple(levels), None
    whole, rest = divmod(level.n, most)
    outer = Level(whole, tuple(s * most for s in level.steps))
    cut = (*levels[:position], Level(most, level.steps), *levels[position + 1 :], outer)
    return tuple(x for x in cut if x.n > 1 or x is cut[position]), Level(rest, level.steps) if rest else None


def size(levels: Sequence[Level]) -> int:
    """Return how often the innermost of a nest is reached."""
    return prod(level.n for level in levels)


__all__ = [
    "GRANULE",
    "Block",
    "Level",
    "Places",
    "Rows",
    "addresses",
    "as_rows",
    "ceil",
    "natural_order",
    "nest",
    "size",
    "split_levels",
    "up",
]
