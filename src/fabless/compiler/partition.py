"""Partition: what each tile of the ring computes, in one of three ways that leave every bit of the results alone.

- tensor: heads, neurons, outputs and vocabulary rows. Every tile computes whole dot products (all of k) for its share of the outputs and the shares
  are gathered, never summed: the order of every sum is that of one tile. Shares are equal; what does not divide is padded at the end with heads,
  neurons and rows of zeros, whose blocks add +0 to an accumulator and so leave its bits alone.
- pipeline: a range of layers each; the residual stream is sent to the next tile. The first has the token table, the last the head.
- expert: attention and head as tensor, and whole experts of a mixture spread over the tiles. Timing never depends on data, so every tile computes
  as many experts as a token is routed to; what it does not own it computes with one of its own and clears. The outputs of each choice are
  summed round the ring, where all but one are +0, and added in order of choice: one tile's bits again. It is memory that this divides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.core.errors import InfeasibleError, InputError, UnsupportedError, nearest
from fabless.program.tile import SPAN_KEYS

if TYPE_CHECKING:
    from fabless.model.decoder import Decoder
    from fabless.program.tile import Tile

BLOCK = 32
#: Keys of one page of the cache, and of one span of the softmax sum.
PAGE_KEYS = SPAN_KEYS


#: How a ring of tiles shares a model: what each way divides.
PARTITIONS = {
    "tensor": "every matrix, by outputs; activations are gathered round the ring twice a layer",
    "pipeline": "layers; the residual stream goes to the next tile",
    "expert": "experts of a mixture, whole; attention and head by outputs",
}


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


@dataclass(frozen=True, slots=True)
class Part:
    """Say what tile `index` of a ring of `n_tiles` has of the model's layers and, where it is a mixture, of its experts."""

    partition: str
    index: int
    n_tiles: int
    layers: range
    experts: range

    @property
    def has_table(self) -> bool:
        """Tell whether this tile reads the token table: not behind the first stage of a pipeline."""
        return self.layers.start == 0

    def has_head(self, decoder: Decoder) -> bool:
        """Tell whether this tile computes logits: not before the last stage of a pipeline."""
        return self.layers.stop == decoder.n_layers

    def __str__(self) -> str:
        held = f" (layers {self.layers.start} to {self.layers.stop - 1})" if self.partition == "pipeline" else ""
        return f"tile {self.index} of {self.n_tiles}{held}"


def part_of(decoder: Decoder, partition: str, index: int, n_tiles: int) -> Part:
    """Return what tile `index` of a ring has; raises `InputError`, `InfeasibleError` or `UnsupportedError` where a model cannot be cut so."""
    if partition not in PARTITIONS:
        raise InputError(f"no partition '{partition}'{nearest(partition, PARTITIONS)}; known: {', '.join(PARTITIONS)}")
    n_experts = decoder.routing.n_experts if decoder.routing else 0
    layers, experts = range(decoder.n_layers), range(n_experts)
    if partition == "pipeline":
        layers = _cut(decoder, "layers", decoder.n_layers, index, n_tiles)
    if partition == "expert":
        if not n_experts:
            raise UnsupportedError(f"{decoder.name}: has no experts to spread over tiles; use the partition tensor or pipeline")
        experts = _cut(decoder, "experts", n_experts, index, n_tiles)
    return Part(partition, index, n_tiles, layers, experts)


def _cut(decoder: Decoder, what: str, count: int, index: int, n_tiles: int) -> range:
    """Return the index-th of n_tiles ranges of a count, as equal as they can be, longer ones first."""
    if n_tiles > count:
        raise InfeasibleError(
            f"{decoder.name}: {count} {what} for {n_tiles} tiles leave tile {count} without any; use at most {count} tiles"
        )
    each, more = divmod(count, n_tiles)
    first = index * each + min(index, more)
    return range(first, first + each + (index < more))


def _whole_blocks(decoder: Decoder, n_tiles: int) -> bool:
    """Tell whether a tile's share of the attention output is whole blocks, so that gathered shares are the blocks that one tile would have."""
    heads = ceil(decoder.n_kv_heads, n_tiles) * (decoder.n_heads // decoder.n_kv_heads)
    return n_tiles == 1 or heads * decoder.d_head % BLOCK == 0


def share(decoder: Decoder, tile: Tile, part: Part) -> Share:
    """Return a tile's share of every matrix that it has; raises `UnsupportedError` where blocks of 32 would straddle tiles."""
    index, n_tiles = (0, 1) if part.partition == "pipeline" else (part.index, part.n_tiles)
    n_neuron_tiles = 1 if part.partition == "expert" else n_tiles
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
        model, model * n_tiles, up(ceil(decoder.d_ff, n_neuron_tiles), BLOCK), ceil(decoder.n_vocab, n_tiles),
    )  # fmt: skip
