"""Tile: how each weight matrix is cut into pieces that fit half of the weight buffer, chosen exactly by counting cycles.

A matrix of `words` x `blocks` (words of R outputs, blocks of 32 along k) becomes `n_tiles` columns of n words, each cut along k into `parts`.
Memory holds the pieces in the order of use: per column, per part, elements `[k][n][R][32]` then scales `[k][n][R]`, each padded to 32 bytes.
Blocks of 16 (NVFP4) take two weight words along k where others take one: elements `[2k][n][R][16]`, scales `[2k][n][R]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.compiler.partition import ceil, up
from fabless.core.errors import InfeasibleError
from fabless.program.isa import FORMAT_BITS, LATENCY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fabless.program.tile import Tile

#: How a weight format lies in memory: elements and scales as `load` names them.
STORED: Mapping[str, tuple[str, str]] = {
    "int8_block32": ("int8", "fp16"),
    "int4_block32": ("int4", "fp16"),
    "mxint8": ("int8", "e8m0"),
    "mxfp4": ("e2m1", "e8m0_half"),
    "nvfp4": ("e2m1_split", "e4m3_half"),
}


@dataclass(frozen=True, slots=True)
class Matrix:
    """Describe a tiled matrix: `n_tiles` columns of `n` words, k cut into `parts` of so many blocks; formats as `load` names them."""

    name: str
    n: int
    n_tiles: int
    parts: tuple[int, ...]
    rows: int
    elements: str
    scales: str

    @property
    def outputs(self) -> int:
        """Return the outputs of one column."""
        return self.n * self.rows

    @property
    def blocks(self) -> int:
        """Return the blocks along k."""
        return sum(self.parts)

    @property
    def split(self) -> bool:
        """Tell whether blocks have 16 values (NVFP4), and a scale of the tensor multiplies finished products."""
        return self.elements == "e2m1_split"

    @property
    def depths(self) -> tuple[int, ...]:
        """Return the weight words along k of every part: one a block of 32, two where blocks have 16."""
        return tuple(k * (1 + self.split) for k in self.parts)

    def element_bytes(self, part: int) -> int:
        """Return the bytes of the elements of a piece, padded to 32."""
        return up(self.depths[part] * self.outputs * 32 * FORMAT_BITS[self.elements] // 8, 32)

    def part_bytes(self, part: int) -> int:
        """Return the bytes of a piece: elements, then scales."""
        return self.element_bytes(part) + up(self.depths[part] * self.outputs * FORMAT_BITS[self.scales] // 8, 32)

    @property
    def column_bytes(self) -> int:
        """Return the bytes of one column."""
        return sum(self.part_bytes(p) for p in range(len(self.parts)))

    @property
    def bytes(self) -> int:
        """Return the bytes of the matrix in memory."""
        return self.n_tiles * self.column_bytes


def cycles(n: int, n_tiles: int, depths: tuple[int, ...], m: int) -> int:
    """Return the cycles of the mesh for all pieces of a matrix and m activation rows: the ISA's timing of `gemm`."""
    return n_tiles * sum(k * max(n * m, LATENCY["ACC"]) + LATENCY["GEMM_FILL"] for k in depths)


#: What starting a piece costs: two loads and a sync, taken in turn behind what comes before them.
PIECE_CYCLES = 8


def last_column(n: int, tile: Tile) -> int:
    """Return the cycles of vector work that overlaps no product: two passes at least over the outputs of the last column."""
    return 2 * ceil(n * tile.rows, tile.vector_lanes)


def choose(
    name: str,
    words: int,
    blocks: int,
    tile: Tile,
    *,
    slot_words: int,
    column_words: int,
    granule: int,
    exact: bool,
    formats: tuple[str, str],
) -> Matrix:
    """Return the tiling of a matrix with the fewest cycles for one row: of the mesh, of the last column's vector work, and of starting pieces.

    n is a multiple of `granule` of at most `column_words`; n * k of a piece is at most `slot_words`; `exact`: n divides `words`.
    Raises `InfeasibleError` when no piece fits.
    """
    best: tuple[int, Matrix] | None = None
    words_a_block = 1 + (formats[0] == "e2m1_split")
    for n in range(granule, min(column_words, 256, slot_words // words_a_block, up(words, granule)) + 1, granule):
        if exact and words % n:
            continue
        depth = min(slot_words // n, 1024) // words_a_block
        n_parts = ceil(blocks, depth)
        k = ceil(blocks, n_parts)
        parts = (*[k] * (n_parts - 1), blocks - k * (n_parts - 1))
        if parts[-1] < 1:
            continue
        count = ceil(words, n)
        matrix = Matrix(name, n, count, parts, tile.rows, *formats)
        key = cycles(n, count, matrix.depths, 1) + last_column(n, tile) + PIECE_CYCLES * count * n_parts
        if best is None or key < best[0]:
            best = (key, matrix)
    if best is None:
        raise InfeasibleError(
            f"{name}: no piece of {granule} words fits {slot_words} weight words and {column_words} accumulator words of this tile; "
            f"compile for fewer rows at a time, or give the tile larger buffers"
        )
    return best[1]
