"""The cycle simulator: how long a program takes on a tile, exactly as the RTL takes it, without computing any data.

Timing does not depend on data: the sequencer is run for its registers, each unit instruction takes what the timing column of the ISA states, `load`
and `store` what memory lets them take, beat by beat, and semaphores and queues make units wait. `read`, the one way from data to an address, brings
`reads`: only the alignment of later addresses can depend on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import IllegalProgramError, UnsupportedError
from fabless.program.isa import FORMAT_BITS, Instruction, Queue
from fabless.program.timing import ceil, cycles, row_bytes
from fabless.sim.dram import IDEAL, MemoryModel
from fabless.sim.trace import Counters, Event, Trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fabless.program.program import Program
    from fabless.program.tile import Tile

CAUSES = ("busy", "semaphore", "memory", "full")
_BOUND = {Queue.MXU: "compute", Queue.VPU: "vector", Queue.LOAD: "memory", Queue.STORE: "memory", Queue.NET: "link", Queue.CTRL: "overhead"}


@dataclass(frozen=True)
class Timing:
    """Hold the cycles of a launch and where they went.

    `account [6 queues, 4 causes]`: cycles in which a queue was busy, waited for a semaphore, had to wait for memory, or (ctrl) found a queue full.
    `pcs`, `starts`, `ends`: for each issued instruction, in program order, where it stands, in which cycle it starts and when its unit is free
    again; empty when not asked for.
    """

    cycles: int
    instructions: int
    account: NDArray[np.int64]
    pcs: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def stalls(self) -> tuple[tuple[str, float], ...]:
        """Return cycles by queue and cause, those that are none left out."""
        return tuple(
            (f"{queue.name.lower()}.{cause}", float(self.account[queue, i]))
            for queue in Queue
            for i, cause in enumerate(CAUSES)
            if cause != "busy" and self.account[queue, i]
        )


def simulate(
    program: Program,
    tile: Tile | None = None,
    parameters: NDArray[np.int32] | Mapping[str, object] | None = None,
    memory_model: MemoryModel = IDEAL,
    *,
    reads: Sequence[int] = (),
    clock_hz: float = 1e9,
) -> Trace:
    """Return the cycles of one launch, by unit, with stalls by cause; equal to the RTL's cycle count with the same memory model.

    `parameters`: words, or values by name (see `program.sequence.parameter_words`). Raises `UnsupportedError` for a program of another tile,
    `IllegalProgramError` for one that does not run to its halt.
    """
    timing = time(program, tile, parameters, memory_model, reads=reads)
    events = tuple(
        Event(
            name=queue.name.lower(), kind="unit", count=1, cycles=float(timing.account[queue, 0]), compute_cycles=0.0, vector_cycles=0.0,
            memory_cycles=float(timing.account[queue, 2]), link_cycles=0.0, overhead_cycles=float(timing.account[queue, 1]), bound=_BOUND[queue],
            counters=Counters(),
        )
        for queue in Queue
        if timing.account[queue].any()
    )  # fmt: skip
    return Trace(
        clock_hz=clock_hz, cycles=float(timing.cycles), stage_cycles=float(timing.cycles), emitted_tokens=1.0, n_chips=1, events=events,
        counters=Counters(), fidelity="cycle", stalls=timing.stalls(),
    )  # fmt: skip


def time(
    program: Program,
    tile: Tile | None = None,
    parameters: NDArray[np.int32] | Mapping[str, object] | None = None,
    memory_model: MemoryModel = IDEAL,
    *,
    reads: Sequence[int] = (),
    keep: int = 0,
    limit: int = 1 << 40,
) -> Timing:
    """Return the cycles of one launch, and of the first `keep` issued instructions each start and end."""
    from fabless.program.sequence import parameter_words
    from fabless.sim import cycles_kernel as kernel

    if tile is not None and tile != program.tile:
        raise UnsupportedError(
            f"program '{program.name}' was made for tile {program.tile.digest}, this one is {tile.digest}; compile it for this chip"
        )
    words = parameters if isinstance(parameters, np.ndarray) else parameter_words(program, parameters)
    table, static = _tables(program)
    account = np.zeros((len(Queue), len(CAUSES)), np.int64)
    pcs, starts, ends = (np.zeros(keep, np.int64) for _ in range(3))
    total, count = kernel.simulate(
        table, static, words.astype(np.int64), np.asarray(reads, np.int64), program.tile.queue_depth, program.tile.read_queue_beats,
        program.tile.memory_bytes_per_cycle, np.array(memory_model.numbers, np.int64), limit, account, pcs, starts, ends,
    )  # fmt: skip
    if total < 0:
        raise IllegalProgramError(f"instruction {count}: {_reason(total)}")
    used = min(keep, count)
    return Timing(int(total), int(count), account, pcs[:used], starts[:used], ends[:used])


def _reason(code: int) -> str:
    from fabless.sim import cycles_kernel as kernel

    return {
        kernel.BAD_PC: "runs past the program; end it with halt",
        kernel.BAD_LOOP: "loops do not nest, or deeper than 4; close each, unroll one level",
        kernel.BAD_PARAMETER: "param reads outside parameter memory; keep inside",
        kernel.BAD_WAIT: "waits for a semaphore that nothing before it in program order signals; signal it earlier",
        kernel.TOO_MANY: "is one too many; check the trip counts",
    }[code]


def _tables(program: Program) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the decoded program, and what the kernel needs beside it: queue, cycles, bytes of a row, bytes of a step."""
    from fabless.sim.machine_fast import decoded

    table = decoded(program)
    static = np.zeros((len(table), 4), np.int64)
    known: dict[tuple[str, tuple[int, ...]], tuple[int, int, int, int]] = {}
    for row, item in enumerate(program.instructions):
        key = (item.mnemonic, item.values)
        if key not in known:
            known[key] = _static(item, program.tile)
        static[row] = known[key]
    return table, static


def _static(item: Instruction, tile: Tile) -> tuple[int, int, int, int]:
    if item.mnemonic not in {"load", "store"}:
        unit = item.mnemonic != "sync" and item.queue != Queue.CTRL
        return int(item.queue), cycles(item, tile) if unit else 1, 0, 0
    step = unit_bytes(item, tile)
    return int(item.queue), 0, row_bytes(item, tile), min(step, tile.memory_bytes_per_cycle)


def unit_bytes(item: Instruction, tile: Tile) -> int:
    """Return the bytes in memory of what one buffer cycle of a `load` or `store` takes: a word, or `vector_lanes` elements."""
    elements = {"w": 32 * tile.rows, "ws": tile.rows, "a": 32, "v": tile.vector_lanes}.get(item.choice("target"), 1)
    return ceil(elements * FORMAT_BITS[item.choice("format")], 8)
