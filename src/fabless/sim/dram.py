"""The memory behind a tile, as the RTL bench and the cycle simulator both see it, in whole cycles.

Three fidelities share one type. *ideal*: always ready, answers in the next cycle: what the timing column of the ISA assumes. *latency*: a fixed latency,
a share of the port's beats, and refresh that takes no beats. *banks*: rows of banks that must be open, one state for reads and one for writes.
`Banks` is the readable statement of the last; the compiled simulator and the C++ bench implement the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from fabless.core.errors import InputError, SourceError, UnsupportedError

if TYPE_CHECKING:
    from fabless.chip.chip import Chip
    from fabless.program.tile import Tile

KINDS = ("ideal", "latency", "banks")
#: The least row in bytes: that of the widest port.
_LEAST_ROW = 256


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """State when memory takes a beat and when it answers.

    Without banks, by the number of the cycle since launch alone: a beat may be taken in cycle t if t is outside refresh (the first `refresh_cycles` of
    every `refresh_period_cycles`; a period of 0 means never) and t is a slot: floor((t + 1) * beats / cycles) > floor(t * beats / cycles), `beats`
    slots in every `cycles` cycles, evenly. A read is answered `latency_cycles` later. Reads and writes have a channel each, of the same rate.

    With `banks` above 0 also by address (see `Banks`): row = address // row_bytes, bank = row modulo banks. `latency_cycles` then counts from an open row.
    """

    latency_cycles: int = 1
    beats: int = 1
    cycles: int = 1
    refresh_period_cycles: int = 0
    refresh_cycles: int = 0
    banks: int = 0
    row_bytes: int = _LEAST_ROW
    activate_cycles: int = 0
    precharge_cycles: int = 0
    row_cycles: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.latency_cycles <= 4000 and 1 <= self.beats <= self.cycles):
            raise InputError(
                f"memory model: latency {self.latency_cycles} must be 1 to 4000 cycles and beats {self.beats} at most cycles {self.cycles}"
            )
        if self.refresh_cycles and not self.refresh_cycles < self.refresh_period_cycles:
            raise InputError(
                f"memory model: refresh of {self.refresh_cycles} cycles fills its period of {self.refresh_period_cycles}; lengthen it"
            )
        if not 0 <= self.banks <= 1024 or self.row_bytes < _LEAST_ROW or self.row_bytes % _LEAST_ROW:
            raise InputError(
                f"memory model: {self.banks} banks must be 0 to 1024, and rows of {self.row_bytes} bytes whole multiples of {_LEAST_ROW}"
            )
        if min(self.activate_cycles, self.precharge_cycles, self.row_cycles) < 0:
            raise InputError("memory model: activate, precharge and row cycles must not be below 0")

    def outside_refresh(self, t: int) -> int:
        """Return the first cycle from t on outside refresh."""
        into = t % self.refresh_period_cycles if self.refresh_period_cycles else self.refresh_cycles
        return t + max(0, self.refresh_cycles - into)

    def is_slot(self, t: int) -> bool:
        """Return whether the rate has a slot in cycle t."""
        return (t + 1) * self.beats // self.cycles != t * self.beats // self.cycles

    def ready(self, t: int) -> bool:
        """Return whether memory without banks takes a beat in cycle t."""
        return self.outside_refresh(t) == t and self.is_slot(t)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Return every field in order: as the bench and the compiled simulator take them."""
        return (
            self.latency_cycles, self.beats, self.cycles, self.refresh_period_cycles, self.refresh_cycles,
            self.banks, self.row_bytes, self.activate_cycles, self.precharge_cycles, self.row_cycles,
        )  # fmt: skip


@dataclass
class Banks:
    """Hold the banks of one channel (reads or writes) and time beats that come in order; the statement of the bank model.

    A beat that is offered in cycle t looks at its row in cycle c, the first from t on outside refresh. The row is open if it was the bank's last and no
    refresh began since. Else the bank opens it: after `precharge_cycles` if another row is open, no sooner than `row_cycles` after the bank's
    last activation, outside refresh; the row may be used `activate_cycles` later. Reads are taken in the cycle in which they are offered and answered in
    order, at the first slot at least `latency_cycles` after their row may be used. Writes are taken in the first slot outside refresh in which their row may.
    """

    model: MemoryModel
    row: dict[int, int] = field(default_factory=dict)
    activated: dict[int, int] = field(default_factory=dict)
    last_answer: int = -1
    hits: int = 0
    misses: int = 0

    def usable(self, t: int, address: int) -> int:
        """Return the cycle in which the row of a beat offered in cycle t may be used, and open it."""
        m = self.model
        row = address // m.row_bytes
        bank, c = row % m.banks, m.outside_refresh(t)
        is_open = bank in self.row and self._period(c) == self._period(self.activated[bank])
        if is_open and self.row[bank] == row:
            self.hits += 1
            return max(c, self.activated[bank] + m.activate_cycles)
        self.misses += 1
        first = self.activated[bank] + m.row_cycles if bank in self.row else 0
        at = m.outside_refresh(max(c + (m.precharge_cycles if is_open else 0), first))
        self.row[bank], self.activated[bank] = row, at
        return at + m.activate_cycles

    def _period(self, t: int) -> int:
        return t // self.model.refresh_period_cycles if self.model.refresh_period_cycles else 0

    def read(self, t: int, address: int) -> int:
        """Return the cycle in which a read offered (and taken) in cycle t is answered."""
        at = max(self.usable(t, address) + self.model.latency_cycles, self.last_answer + 1)
        while not self.model.is_slot(at):
            at += 1
        self.last_answer = at
        return at

    def write(self, t: int, address: int) -> int:
        """Return the cycle in which a write offered in cycle t is taken."""
        at = self.usable(t, address)
        while not self.model.ready(at):
            at += 1
        return at


#: Memory that always takes a beat and answers in the next cycle: what the timing column of the ISA assumes.
IDEAL = MemoryModel()


def memory_model_of(chip: Chip, tile: Tile, kind: str = "latency") -> MemoryModel:
    """Return how a chip's DRAM answers one tile, at one of the `KINDS` of fidelity.

    latency: the chip's latency, and the share of the port's beats that the tile's share of bandwidth fills. banks: as well rows, banks and refresh of the
    chip's standard (`data/memory_timing.toml`), as many channels side by side as fall to the tile; the chip's latency then includes one activation.
    Raises `InputError` for another kind, `UnsupportedError` where the standard's row timing is not known.
    """
    if kind not in KINDS:
        raise InputError(f"--memory {kind}: not one of {', '.join(KINDS)}")
    if kind == "ideal":
        return IDEAL
    share = chip.dram.bandwidth_bytes_per_s / chip.clock_hz / chip.n_cores / tile.memory_bytes_per_cycle
    rate = Fraction(min(1.0, share)).limit_denominator(1000) if chip.dram.standard != "none" else Fraction(1)
    latency = min(4000, max(1, round(chip.dram.latency_s * chip.clock_hz)))
    beats, cycles = max(1, rate.numerator), max(1, rate.denominator)
    if kind == "latency":
        return MemoryModel(latency, beats, cycles)
    from fabless.core.sources import table

    standard, timing, widths = chip.dram.standard, table("memory_timing"), table("memory_standards")
    try:
        rcd, rp, rc, period, refresh, banks, row_bytes, bits = (
            timing.fact(f"{standard}_{name}").known
            for name in ("trcd_s", "trp_s", "trc_s", "trefi_s", "trfc_s", "banks", "row_bytes", "channel_bits")
        )
    except SourceError:
        known = sorted({str(f.attributes["standard"]) for f in timing if f.value is not None})
        raise UnsupportedError(
            f"chip '{chip.name}': row timing of {standard} is not known (known: {', '.join(known)}); use --memory latency"
        ) from None
    channels = max(1, round(chip.dram.stacks * widths.fact(f"{standard}_width_bits").known / bits / chip.n_cores))
    to_cycles = (max(1, round(s * chip.clock_hz)) for s in (rcd, rp, rc, period, refresh))
    activate, precharge, row, every, busy = to_cycles
    return MemoryModel(
        max(1, latency - activate),
        beats,
        cycles,
        every,
        busy,
        int(banks),
        max(_LEAST_ROW, int(row_bytes) * channels),
        activate,
        precharge,
        row,
    )
