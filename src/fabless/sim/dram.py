"""The memory behind a tile, as the RTL bench and the cycle simulator both see it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from fabless.core.errors import InputError

if TYPE_CHECKING:
    from fabless.chip.chip import Chip
    from fabless.program.tile import Tile


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """State when memory takes a beat and when it answers, by the number of the cycle since launch alone.

    A beat may be taken in cycle t if t is outside refresh (the first `refresh_cycles` of every `refresh_period_cycles`; a period of 0 means never)
    and floor((t + 1) * beats / cycles) > floor(t * beats / cycles): `beats` beats in every `cycles` cycles, evenly. A read is answered
    `latency_cycles` later. Reads and writes have a channel each, of the same rate.
    """

    latency_cycles: int = 1
    beats: int = 1
    cycles: int = 1
    refresh_period_cycles: int = 0
    refresh_cycles: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.latency_cycles <= 4000 and 1 <= self.beats <= self.cycles):
            raise InputError(
                f"memory model: latency {self.latency_cycles} must be 1 to 4000 cycles and beats {self.beats} at most cycles {self.cycles}"
            )
        if self.refresh_cycles and not self.refresh_cycles < self.refresh_period_cycles:
            raise InputError(
                f"memory model: refresh of {self.refresh_cycles} cycles fills its period of {self.refresh_period_cycles}; lengthen it"
            )

    def ready(self, t: int) -> bool:
        """Return whether memory takes a beat in cycle t."""
        if self.refresh_period_cycles and t % self.refresh_period_cycles < self.refresh_cycles:
            return False
        return (t + 1) * self.beats // self.cycles != t * self.beats // self.cycles

    @property
    def numbers(self) -> tuple[int, int, int, int, int]:
        """Return latency, beats, cycles, refresh period, refresh: as the bench and the compiled simulator take them."""
        return self.latency_cycles, self.beats, self.cycles, self.refresh_period_cycles, self.refresh_cycles


#: Memory that always takes a beat and answers in the next cycle: what the timing column of the ISA assumes.
IDEAL = MemoryModel()


def memory_model_of(chip: Chip, tile: Tile) -> MemoryModel:
    """Return how a chip's DRAM answers one tile: its latency, and the share of the port's beats that the tile's share of bandwidth fills."""
    share = chip.dram.bandwidth_bytes_per_s / chip.clock_hz / chip.n_cores / tile.memory_bytes_per_cycle
    rate = Fraction(min(1.0, share)).limit_denominator(1000) if chip.dram.standard != "none" else Fraction(1)
    latency = min(4000, max(1, round(chip.dram.latency_s * chip.clock_hz)))
    return MemoryModel(latency_cycles=latency, beats=max(1, rate.numerator), cycles=max(1, rate.denominator))
