"""What a step cost: the result type that the roofline, the cycle simulator and the RTL share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Counters:
    """Count the events of a step on one chip; energies and utilisations are derived from these, never stored.

    `macs` by element format of the multiplier; bytes at each level; `vector_ops` lane operations. `levels`: where a simulation knows them apart,
    bytes by name of memory and direction ("dram_read", "weights", ...); already part of the sums above.
    """

    macs: tuple[tuple[str, float], ...] = ()
    vector_ops: float = 0.0
    dram_bytes: float = 0.0
    shared_bytes: float = 0.0
    scratchpad_bytes: float = 0.0
    link_bytes: float = 0.0
    levels: tuple[tuple[str, float], ...] = field(default=(), kw_only=True)

    @property
    def total_macs(self) -> float:
        """Return the multiply-accumulates of all formats."""
        return sum(n for _, n in self.macs)

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            tuple(sorted(_joined(self.macs, other.macs).items())),
            self.vector_ops + other.vector_ops,
            self.dram_bytes + other.dram_bytes,
            self.shared_bytes + other.shared_bytes,
            self.scratchpad_bytes + other.scratchpad_bytes,
            self.link_bytes + other.link_bytes,
            levels=tuple(_joined(self.levels, other.levels).items()),
        )

    def scaled(self, times: float) -> Counters:
        """Return the events of so many equal steps."""
        macs, levels = (tuple((name, n * times) for name, n in pairs) for pairs in (self.macs, self.levels))
        sums = (self.vector_ops, self.dram_bytes, self.shared_bytes, self.scratchpad_bytes, self.link_bytes)
        return Counters(macs, *(n * times for n in sums), levels=levels)


def _joined(one: tuple[tuple[str, float], ...], other: tuple[tuple[str, float], ...]) -> dict[str, float]:
    out = dict(one)
    for name, n in other:
        out[name] = out.get(name, 0.0) + n
    return out


@dataclass(frozen=True, slots=True)
class Event:
    """Time one op (all its `count` repeats): what each resource needed, and which of them bound it."""

    name: str
    kind: str
    count: int
    cycles: float
    compute_cycles: float
    vector_cycles: float
    memory_cycles: float
    link_cycles: float
    overhead_cycles: float
    bound: str  # compute | vector | memory | link | overhead
    counters: Counters
    tile: str = ""
    stalls: tuple[tuple[str, float], ...] = ()  # cycles by queue and cause, where a simulation knows them


@dataclass(frozen=True, slots=True)
class Trace:
    """Hold the time of one step on one chip of the plan, op by op.

    `cycles` of `clock_hz` for the whole step (pipeline stages in sequence for one token: latency); `stage_cycles` the slowest pipeline stage,
    which sets throughput when the pipeline is full. `emitted_tokens` is for the whole replica. `fidelity`: roofline | cycle | rtl.
    `error_ratio`: half-width of the calibrated 80% band around `latency_s`, None where no measurement of the family exists to derive one.
    """

    clock_hz: float
    cycles: float
    stage_cycles: float
    emitted_tokens: float
    n_chips: int
    events: tuple[Event, ...]
    counters: Counters
    memory_bytes: float = 0.0  # resident per chip: weights, caches, activations
    fidelity: str = "roofline"
    error_ratio: float | None = None
    stalls: tuple[tuple[str, float], ...] = ()
    slowest_tile: int = 0  # of a ring: whose cycles and events these are
    units: tuple[tuple[str, float], ...] = ()  # busy cycles by queue, where a simulation knows them
    banks: tuple[tuple[int, int], ...] = ()  # beats that found their DRAM row open, or not, by bank, where a simulation knows them

    @property
    def latency_s(self) -> float:
        """Return the seconds that the step takes."""
        return self.cycles / self.clock_hz

    @property
    def stage_s(self) -> float:
        """Return the seconds between two steps of a full pipeline."""
        return self.stage_cycles / self.clock_hz

    @property
    def tokens_per_s(self) -> float:
        """Return tokens emitted per second by the replica with the pipeline full."""
        return self.emitted_tokens / self.stage_s


def one_after_the_other(traces: Sequence[Trace]) -> Trace:
    """Return the trace of several launches of one program in turn: all of it added up, ops by name."""
    first, *rest = traces
    if not rest:
        return first
    events: dict[str, Event] = {}
    for event in (e for t in traces for e in t.events):
        events[event.name] = _both(events[event.name], event) if event.name in events else event
    counters = first.counters
    for trace in rest:
        counters = counters + trace.counters
    cycles = sum(t.cycles for t in traces)
    stalls: dict[str, float] = {}
    units: dict[str, float] = {}
    for trace in traces:
        stalls, units = _joined(tuple(stalls.items()), trace.stalls), _joined(tuple(units.items()), trace.units)
    banks = tuple((sum(h for h, _ in bank), sum(m for _, m in bank)) for bank in zip(*(t.banks for t in traces), strict=True))
    return replace(
        first, cycles=cycles, stage_cycles=cycles, events=tuple(events.values()), counters=counters, stalls=tuple(stalls.items()),
        units=tuple(units.items()), banks=banks,
    )  # fmt: skip


def _both(one: Event, other: Event) -> Event:
    sums = {
        name: getattr(one, name) + getattr(other, name)
        for name in ("count", "cycles", "compute_cycles", "vector_cycles", "memory_cycles", "link_cycles", "overhead_cycles", "counters")
    }
    return replace(one, **sums, stalls=tuple(_joined(one.stalls, other.stalls).items()))
