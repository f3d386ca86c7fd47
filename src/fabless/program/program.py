"""A program: encoded words and what the host must know to launch them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.digest import digest
from fabless.core.errors import IllegalProgramError, nearest
from fabless.program.isa import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from fabless.program.isa import Instruction
    from fabless.program.tile import Tile

#: What a buffer may hold and who writes it.
KINDS = ("weights", "constants", "input", "output", "cache", "workspace")


@dataclass(frozen=True, slots=True)
class Buffer:
    """Name a range of memory: `[address, address + bytes)` of this tile's DRAM.

    kind: weights and constants are written once by the host and never by the program; input by the host before each launch; output by the
    program; cache is read and written and survives launches; workspace is read after it is written, within one launch.
    `format` and `shape` say what the host finds there ("fp32", (49152,)); empty when the layout is the compiler's own.
    """

    name: str
    address: int
    bytes: int
    kind: str
    format: str = ""
    shape: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Return the first byte behind the buffer."""
        return self.address + self.bytes


@dataclass(frozen=True, slots=True)
class Parameter:
    """Name words of parameter memory that the host writes before a launch: `count` signed 32-bit words from `index`, each in [low, high].

    `verify` proves the program legal for every value in range.
    """

    name: str
    index: int
    count: int = 1
    low: int = 0
    high: int = 0


@dataclass(frozen=True)
class Program:
    """Hold one tile's instructions as encoded words `[n, 2]` uint64 (low half first), with its buffers, parameters, constants and labels.

    `constants`: initial bytes of buffers by name (weights usually arrive apart, because they are large and shared).
    `labels`: instruction index by name, for people.
    `read_high`: the greatest integer that `read` may bring, 0 the least (an expert's index); `verify` proves legality for both ends.
    """

    words: NDArray[np.uint64]
    tile: Tile
    buffers: tuple[Buffer, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    constants: Mapping[str, bytes] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    name: str = ""
    read_high: int = 0

    def __post_init__(self) -> None:
        if self.words.dtype != np.uint64 or self.words.ndim != 2 or self.words.shape[1] != 2:
            raise IllegalProgramError(
                f"program '{self.name}': words are {self.words.dtype} {list(self.words.shape)}; give uint64 [n, 2], low half first"
            )

    @classmethod
    def of(
        cls,
        instructions: Iterable[Instruction],
        tile: Tile,
        *,
        buffers: tuple[Buffer, ...] = (),
        parameters: tuple[Parameter, ...] = (),
        constants: Mapping[str, bytes] | None = None,
        labels: Mapping[str, int] | None = None,
        name: str = "",
        read_high: int = 0,
    ) -> Program:
        """Encode instructions into a program."""
        return cls(pack([encode(i) for i in instructions]), tile, buffers, parameters, constants or {}, labels or {}, name, read_high)

    def __len__(self) -> int:
        return len(self.words)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions)

    @cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """Return the decoded instructions; raises `IllegalProgramError` naming the index of a word that is none."""
        decoded = []
        for index, word in enumerate(unpack(self.words)):
            try:
                decoded.append(decode(word))
            except IllegalProgramError as error:
                raise IllegalProgramError(f"instruction {index}: {error}") from None
        return tuple(decoded)

    @cached_property
    def digest(self) -> str:
        """Return 16 hex digits that name the program: words, tile, buffers, parameters and constants."""
        return digest(
            {
                "words": self.words,
                "tile": self.tile,
                "buffers": self.buffers,
                "parameters": self.parameters,
                "constants": dict(self.constants),
                "read_high": self.read_high,
            }
        )

    def buffer(self, name: str) -> Buffer:
        """Return a buffer by name; raises `IllegalProgramError` naming the nearest."""
        for b in self.buffers:
            if b.name == name:
                return b
        raise IllegalProgramError(f"program '{self.name}' has no buffer '{name}'{nearest(name, [b.name for b in self.buffers])}")

    def parameter(self, name: str) -> Parameter:
        """Return a parameter by name; raises `IllegalProgramError` naming the nearest."""
        for p in self.parameters:
            if p.name == name:
                return p
        raise IllegalProgramError(f"program '{self.name}' has no parameter '{name}'{nearest(name, [p.name for p in self.parameters])}")


def pack(words: Iterable[int]) -> NDArray[np.uint64]:
    """Return 128-bit integers as uint64 `[n, 2]`, low half first."""
    halves = [(w & (1 << 64) - 1, w >> 64) for w in words]
    return np.array(halves, dtype=np.uint64).reshape(-1, 2)


def unpack(words: NDArray[np.uint64]) -> list[int]:
    """Return uint64 `[n, 2]` as 128-bit integers."""
    return [int(low) | int(high) << 64 for low, high in words.tolist()]
