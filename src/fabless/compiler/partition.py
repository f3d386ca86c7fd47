"""Partition: which heads, neurons, outputs and vocabulary rows each tile of the ring computes.

Every tile computes whole dot products (all of k) for its share of the outputs and the shares are gathered, never summed: the order of every sum
is that of one tile, so results are the same bits for any number of tiles. Shares are equal; what does not divide is padded at the end with heads,
neurons and rows of zeros, whose blocks add +0 to an accumulator and so leave its bits alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.core.errors import UnsupportedError

if TYPE_CHECKING:
    from fabless.model.decoder import Decoder
    from fabless.program.tile import Tile

BLOCK = 32
#: Keys of one page of the cache, and of one span of the softmax sum: the decision page's 128.
PAGE_KEYS = 128


def ceil(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


def up(a: int, unit: int) -> int:
    """Return the least multiple of `unit` that is not below a."""
    return ceil(a, unit) * unit


@dataclass(frozen=True, slots=True)
class Shape:
    """Say how many rows one launch computes: `segments` sequences, `tokens` consecutive new tokens of each (fewer are padded)."""

    segments: int
    tokens: int

    @property
    def rows(self) -> int:
        """Return the rows of a launch."""
        return self.segments * self.tokens

    def __str__(self) -> str:
        return f"{self.segments}x{self.tokens}"


@dataclass(frozen=True, slots=True)
class Share:
    """Hold the sizes of one tile's share; elements, unless the name says otherwise.

    `head` elements of a stored q or k head (d_head padded to the vector alignment), `value` of a stored v head (padded to whole weight words too),
    `model` of the residual stream that this tile computes, `width` of the whole residual stream as tiles hold it.
    """

    index: int
    n_tiles: int
    n_heads: int
    n_kv_heads: int
    group: int
    head: int
    value: int
    head_blocks: int
    model: int
    width: int
    hidden: int
    vocabulary: int

    @property
    def first_kv_head(self) -> int:
        """Return the first KV head of this tile."""
        return self.index * self.n_kv_heads


def _whole_blocks(decoder: Decoder, n_tiles: int) -> bool:
    """Tell whether a tile's share of the attention output is whole blocks, so that gathered shares are the blocks that one tile would have."""
    heads = ceil(decoder.n_kv_heads, n_tiles) * (decoder.n_heads // decoder.n_kv_heads)
    return n_tiles == 1 or heads * decoder.d_head % BLOCK == 0


def share(decoder: Decoder, tile: Tile, index: int, n_tiles: int) -> Share:
    """Return the share of tile `index` of `n_tiles`; raises `UnsupportedError` where blocks of 32 would straddle tiles."""
    align, unit = tile.vector_align, max(tile.vector_align, tile.rows)
    group = decoder.n_heads // decoder.n_kv_heads
    kv = ceil(decoder.n_kv_heads, n_tiles)
    if not _whole_blocks(decoder, n_tiles):
        fits = next(n for n in range(n_tiles - 1, 0, -1) if _whole_blocks(decoder, n))
        raise UnsupportedError(
            f"{decoder.name}: {kv * group} heads of {decoder.d_head} a tile do not fill blocks of {BLOCK}; use {fits} tile{'s' * (fits > 1)}"
        )
    model = up(ceil(decoder.d_model, n_tiles), unit)
    return Share(
        index, n_tiles, kv * group, kv, group, up(decoder.d_head, align), up(decoder.d_head, unit), ceil(decoder.d_head, BLOCK),
        model, model * n_tiles, up(ceil(decoder.d_ff, n_tiles), BLOCK), ceil(decoder.n_vocab, n_tiles),
    )  # fmt: skip
