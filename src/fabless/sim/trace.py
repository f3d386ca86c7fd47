"""What a step cost: the result type that the roofline, the cycle simulator and the RTL share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counters:
    """Count the events of a step on one chip; energies and utilisations are derived from these, never stored.

    `macs` by element format of the multiplier; bytes at each level; `vector_ops` lane operations.
    """

    macs: tuple[tuple[str, float], ...] = ()
    vector_ops: float = 0.0
    dram_bytes: float = 0.0
    shared_bytes: float = 0.0
    scratchpad_bytes: float = 0.0
    link_bytes: float = 0.0

    @property
    def total_macs(self) -> float:
        """Return the multiply-accumulates of all formats."""
        return sum(n for _, n in self.macs)

    def __add__(self, other: Counters) -> Counters:
        macs = dict(self.macs)
        for name, n in other.macs:
            macs[name] = macs.get(name, 0.0) + n
        return Counters(
            tuple(sorted(macs.items())),
            self.vector_ops + other.vector_ops,
            self.dram_bytes + other.dram_bytes,
            self.shared_bytes + other.shared_bytes,
            self.scratchpad_bytes + other.scratchpad_bytes,
            self.link_bytes + other.link_bytes,
        )


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
