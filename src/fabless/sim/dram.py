"""The memory behind a tile, as the RTL bench and the cycle simulator both see it."""

from __future__ import annotations

from dataclasses import dataclass

from fabless.core.errors import InputError


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
