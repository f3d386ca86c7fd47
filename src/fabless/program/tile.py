"""What a program must know of the tile that it runs on: sizes of its memories, rows, vector lanes, and the widths of its ports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.core.digest import digest
from fabless.core.errors import InfeasibleError, UnsupportedError

if TYPE_CHECKING:
    from fabless.chip.chip import Chip

#: Elements of one activation or weight block: the length of an integer dot product. Architectural, the same on every tile.
BLOCK = 32
#: Keys of one page of the cache, and of one span of the softmax sum (docs/decisions/integer-forward-pass.md).
SPAN_KEYS = 128
ROWS = (4, 8, 16, 32, 64, 128)
VECTOR_LANES = (4, 8, 16, 32, 64)
MEMORY_WIDTHS = (16, 32, 64, 128, 256)
#: Bytes of the weight buffer a row and word: 32 elements and a scale of 19 bits in 4.
_WEIGHT_WORD_BYTES = 36
_FEW_WORDS = 16
_CARRIED = 0.9
#: 0: a tile without a link, which runs alone: it has no unit that sends and receives.
LINK_WIDTHS = (0, 4, 8, 16, 32, 64, 128, 256)
READ_QUEUES = tuple(1 << i for i in range(2, 13))


@dataclass(frozen=True, slots=True)
class Tile:
    """Describe one tile: `rows` dot-product rows of 32 lanes, `vector_lanes` binary32 lanes, five memories, a memory port, and a link to the next tile.

    `weight_words`: words of the weight buffer, each `rows` blocks of 32 int8 and `rows` scales (one bank a row).
    `activation_words`: words of the activation buffer, each one block of 32 int8 and one bf16 scale.
    `accumulator_words`: words of the accumulators, each `rows` binary32.
    `vector_elements`: binary32 elements of the vector buffer. `parameter_words`: 32-bit words that the host writes before a launch.
    `instruction_words`: 128-bit words of program memory. `memory_bytes`: this tile's share of DRAM.
    `link_bytes_per_cycle`: 0 for a tile without a link, whose programs neither send nor receive.
    `queue_depth`: instructions that each queue holds: how far the sequencer, and loads, run ahead of the work.
    `read_queue_beats`: beats that `load` has asked for and not yet used, at most; as many as the cycles of memory latency that it hides.
    """

    rows: int
    vector_lanes: int
    weight_words: int
    activation_words: int
    accumulator_words: int
    vector_elements: int
    parameter_words: int
    instruction_words: int
    memory_bytes: int
    memory_bytes_per_cycle: int
    link_bytes_per_cycle: int = 16
    n_tiles: int = 1
    queue_depth: int = 8
    read_queue_beats: int = 64

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("rows", self.rows, ROWS),
            ("vector_lanes", self.vector_lanes, VECTOR_LANES),
            ("memory_bytes_per_cycle", self.memory_bytes_per_cycle, MEMORY_WIDTHS),
            ("link_bytes_per_cycle", self.link_bytes_per_cycle, LINK_WIDTHS),
            ("read_queue_beats", self.read_queue_beats, READ_QUEUES),
        ):
            if value not in allowed:
                raise UnsupportedError(f"tile: {name} = {value} cannot be built; use one of {', '.join(map(str, allowed))}")
        if self.vector_lanes > self.rows:
            raise UnsupportedError(
                f"tile: {self.vector_lanes} vector lanes read accumulator words of {self.rows} rows; use at most {self.rows} vector lanes"
            )
        align = self.vector_align
        for name, value, unit in (
            ("weight_words", self.weight_words, 1),
            ("activation_words", self.activation_words, 1),
            ("accumulator_words", self.accumulator_words, max(1, align // self.rows)),
            ("vector_elements", self.vector_elements, align),
            ("parameter_words", self.parameter_words, 1),
            ("instruction_words", self.instruction_words, 1),
            ("memory_bytes", self.memory_bytes, 256),
            ("n_tiles", self.n_tiles, 1),
            ("queue_depth", self.queue_depth, 1),
        ):
            if value < unit or value % unit:
                raise UnsupportedError(f"tile: {name} = {value} must be a positive multiple of {unit}")

    @property
    def has_link(self) -> bool:
        """Return whether the tile can send and receive."""
        return self.link_bytes_per_cycle > 0

    @property
    def link_port_bytes(self) -> int:
        """Return the bytes of the link's ports; those of a tile without one never move."""
        return self.link_bytes_per_cycle or LINK_WIDTHS[1]

    @property
    def vector_align(self) -> int:
        """Return the elements that a vector operand's address is a multiple of: 32, or the lanes when these are more."""
        return max(BLOCK, self.vector_lanes)

    @property
    def accumulator_elements(self) -> int:
        """Return the binary32 accumulators of the tile."""
        return self.accumulator_words * self.rows

    @property
    def scratchpad_bytes(self) -> int:
        """Return the bytes of weight, activation, vector and accumulator memories (tf32 scales stored in 19 bits count as 19/8 bytes)."""
        weight_bits = self.weight_words * self.rows * (BLOCK * 8 + 19)
        return (weight_bits + 7) // 8 + self.activation_words * 34 + self.vector_elements * 4 + self.accumulator_elements * 4

    @property
    def digest(self) -> str:
        """Return 16 hex digits that name this tile by its content; a program carries them."""
        return digest(self)

    @classmethod
    def of(cls, chip: Chip) -> Tile:
        """Derive the tile of a `Chip` of dot-product rows: scratchpad split 1/2 weights, 1/8 activations, 3/8 vectors; words to powers of two.

        Where half of it holds less than 16 weight words, weights take up to 5/8. The memory port is the narrowest that carries nine tenths of the
        core's share of DRAM. The read queue takes the beats that memory sends in one latency, and the two cycles that a beat spends in the unit.

        Raises `UnsupportedError` for a chip whose matrix unit is not 32-lane dot-product rows of int8, `InfeasibleError` for too small a scratchpad.
        """
        from fabless.chip.chip import Mxu

        matrix = chip.core.matrix
        if not isinstance(matrix, Mxu):
            raise UnsupportedError(
                f"chip '{chip.name}': programs run on dot-product rows (chip.core.matrix of kind Mxu), not {type(matrix).__name__}"
            )
        if matrix.lanes != BLOCK:
            raise UnsupportedError(f"chip '{chip.name}': rows have {matrix.lanes} lanes; programs need {BLOCK}")
        if not any(name.startswith("int8") for name, _ in matrix.rates):
            raise UnsupportedError(
                f"chip '{chip.name}': its rows multiply {', '.join(name for name, _ in matrix.rates)}; programs compute int8 blocks: "
                "add int8 to the formats of the matrix unit"
            )
        capacity = int(chip.core.scratchpad.capacity_bytes)
        accumulators = int(chip.core.accumulator.capacity_bytes) if chip.core.accumulator else capacity // 8
        share = chip.dram.bandwidth_bytes_per_s / chip.clock_hz / chip.n_cores
        word = matrix.rows * _WEIGHT_WORD_BYTES
        weight_words = _power_of_two(capacity // 2 // word)
        if weight_words < _FEW_WORDS:  # many rows, little memory: what a page of keys needs comes first
            weight_words = min(_FEW_WORDS, capacity * 5 // 8 // word)
        rest = capacity - max(capacity // 2, weight_words * word)
        width = memory_width(share)
        tile = {
            "weight_words": weight_words,
            "activation_words": _power_of_two(rest // 4 // 34),
            "accumulator_words": _power_of_two(accumulators // (4 * matrix.rows)),
            "vector_elements": _power_of_two(rest * 3 // 4 // 4),
        }
        for name, least in (("weight_words", 8), ("activation_words", 64), ("accumulator_words", 32), ("vector_elements", 2048)):
            if tile[name] < least:
                raise InfeasibleError(
                    f"chip '{chip.name}': a scratchpad of {capacity:,} bytes and accumulators of {accumulators:,} a core leave {name} = {tile[name]}, "
                    f"programs need {least} at least; enlarge them, or use fewer rows than {matrix.rows}"
                )
        return cls(
            rows=matrix.rows,
            vector_lanes=min(chip.core.vector_lanes, matrix.rows),
            parameter_words=65536 if matrix.rows > 4 else 4096,
            instruction_words=16384 if matrix.rows > 4 else 4096,
            memory_bytes=int(chip.memory_capacity_bytes) // chip.n_cores // 256 * 256,
            memory_bytes_per_cycle=width,
            n_tiles=chip.n_cores,
            queue_depth=16 if matrix.rows > 4 else 8,
            read_queue_beats=_read_queue(chip.dram.latency_s * chip.clock_hz, share / width),
            **tile,
        )


def _read_queue(latency_cycles: float, beats_per_cycle: float) -> int:
    needed = (latency_cycles + 2) * min(1.0, beats_per_cycle)
    return next((n for n in READ_QUEUES if n >= needed), READ_QUEUES[-1])


def memory_width(share_bytes: float) -> int:
    """Return the port's bytes a cycle for a tile's share of bandwidth, in bytes a cycle."""
    return next((w for w in MEMORY_WIDTHS if w >= _CARRIED * share_bytes), MEMORY_WIDTHS[-1])


def _power_of_two(value: int) -> int:
    return 1 << (value.bit_length() - 1) if value > 0 else 0


#: The teaching core: four rows, four lanes, a 16-byte memory port.
TINY = Tile(4, 4, 2048, 512, 512, 8192, 4096, 4096, 1 << 26, 16)
#: The core that fits an LFE5U-85F as a whole: the teaching core with memories of its block RAMs and short queues; it runs the embedded model.
ECP5 = Tile(4, 4, 256, 256, 256, 2048, 1024, 512, 1 << 26, 16, link_bytes_per_cycle=0, queue_depth=4)
#: The core that synthesis and demonstration use.
DEMO = Tile(16, 16, 1024, 4096, 8192, 65536, 16384, 8192, 1 << 30, 64, queue_depth=16, read_queue_beats=512)
#: One core of the reticle-size die.
DIE = Tile(128, 64, 512, 8192, 4096, 131072, 65536, 16384, 1 << 31, 256, link_bytes_per_cycle=64, queue_depth=16, read_queue_beats=1024)
