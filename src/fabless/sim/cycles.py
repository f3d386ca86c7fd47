"""The cycle simulator: how long a program takes on a tile, exactly as the RTL takes it, without computing any data.

Timing does not depend on data: the sequencer is run for its registers, each unit instruction takes what the timing column of the ISA states, `load`
and `store` what memory lets them take, beat by beat, and semaphores and queues make units wait. `read`, the one way from data to an address, brings
`reads`: only the alignment of later addresses can depend on them.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import IllegalProgramError, UnsupportedError
from fabless.program.events import KINDS, LINK, MACS, VECTOR_OPS, events
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
#: The resources of an `Event`, and whose queues they are.
_BOUNDS = ("compute", "vector", "memory", "link", "overhead")
_RESOURCES = ((Queue.MXU,), (Queue.VPU,), (Queue.LOAD, Queue.STORE), (Queue.NET,), (Queue.CTRL,))
_BUFFERS = tuple(KINDS.index(name) for name in ("weights", "activations", "accumulators", "vectors"))
_DRAM = tuple(KINDS.index(name) for name in ("dram_read", "dram_written"))


@dataclass(frozen=True)
class Timing:
    """Hold the cycles of a launch and where they went.

    `ops` names the parts of the program between its labels. `account [op, 6 queues, 4 causes]`: cycles in which a queue was busy, waited for a
    semaphore, had to wait for memory, or (ctrl) found a queue full. `own [op]`: the cycles that an op adds to the end of what precedes it in program
    order; they sum to `cycles`. `counts [instruction]`: how often each was issued. `banks [reads or writes, bank, hits or misses]`: beats that found
    their row open, or not; no bank where the memory model has none.
    `pcs`, `starts`, `ends`: for each issued instruction, in program order, where it stands, in which cycle it starts and when its unit is free
    again; empty when not asked for.
    """

    cycles: int
    instructions: int
    ops: tuple[str, ...]
    account: NDArray[np.int64]
    own: NDArray[np.int64]
    counts: NDArray[np.int64]
    banks: NDArray[np.int64]
    pcs: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def stalls(self, op: int | None = None) -> tuple[tuple[str, float], ...]:
        """Return cycles by queue and cause, of one op or all, those that are none left out."""
        table = self.account.sum(axis=0) if op is None else self.account[op]
        return tuple(
            (f"{queue.name.lower()}.{cause}", float(table[queue, i]))
            for queue in Queue
            for i, cause in enumerate(CAUSES)
            if cause != "busy" and table[queue, i]
        )

    def busy(self) -> tuple[tuple[str, float], ...]:
        """Return the cycles that each queue worked."""
        return tuple((queue.name.lower(), float(self.account[:, queue, 0].sum())) for queue in Queue)


def simulate(
    program: Program,
    tile: Tile | None = None,
    parameters: NDArray[np.int32] | Mapping[str, object] | None = None,
    memory_model: MemoryModel = IDEAL,
    *,
    reads: Sequence[int] = (),
    clock_hz: float = 1e9,
    macs_as: str = "int8",
) -> Trace:
    """Return the cycles of one launch, by unit and by op, with stalls by cause; equal to the RTL's cycle count with the same memory model.

    `parameters`: words, or values by name (see `program.sequence.parameter_words`). Events of the trace are the program's labels in order; `cycles`
    of one is what it adds to the end of what precedes it, so that they sum to the launch. `macs_as`: the element format that counters name.
    Raises `UnsupportedError` for a program of another tile, `IllegalProgramError` for one that does not run to its halt.
    """
    timing = time(program, tile, parameters, memory_model, reads=reads)
    owner = owners(program)[1]
    counted = _events_by_op(program, timing.counts)
    total, found = Counters(), []
    for i, name in enumerate(timing.ops):
        if not timing.account[i].any():
            continue
        busy = timing.account[i, :, 0]
        spent = [float(sum(busy[q] for q in queues)) for queues in _RESOURCES]
        counters = _counters(counted[i], macs_as)
        total = total + counters
        times = int(timing.counts[program.labels.get(name, owner.index(i))])
        bound = _BOUNDS[spent.index(max(spent))]
        compute, vector, memory, link, overhead = spent
        found.append(
            Event(
                name, "op", times, float(timing.own[i]), compute, vector, memory, link, overhead, bound, counters, stalls=timing.stalls(i)
            )
        )
    return Trace(
        clock_hz=clock_hz, cycles=float(timing.cycles), stage_cycles=float(timing.cycles), emitted_tokens=1.0, n_chips=1, events=tuple(found),
        counters=total, fidelity="cycle", stalls=timing.stalls(), units=timing.busy(),
        banks=tuple((int(hits), int(misses)) for hits, misses in timing.banks.sum(axis=0)),
    )  # fmt: skip


def _events_by_op(program: Program, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the events of a launch `[op, KINDS]`."""
    ops, owner = owners(program)
    out = np.zeros((len(ops), len(KINDS)), np.int64)
    for pc in np.flatnonzero(counts):
        out[owner[pc]] += counts[pc] * np.array(events(program.instructions[pc], program.tile), np.int64)
    return out


def _counters(counted: NDArray[np.int64], macs_as: str) -> Counters:
    macs = ((macs_as, float(counted[MACS])),) if counted[MACS] else ()
    levels = tuple((KINDS[i], float(counted[i])) for i in (*_DRAM, *_BUFFERS) if counted[i])
    dram, buffers = float(counted[list(_DRAM)].sum()), float(counted[list(_BUFFERS)].sum())
    return Counters(macs, float(counted[VECTOR_OPS]), dram, 0.0, buffers, float(counted[LINK]), levels=levels)


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
    ops, _ = owners(program)
    account, own = np.zeros((len(ops), len(Queue), len(CAUSES)), np.int64), np.zeros(len(ops), np.int64)
    counts = np.zeros(len(table), np.int64)
    banks = np.zeros((2, memory_model.banks + 1, 4), np.int64)
    banks[:, -1, 1] = -1
    pcs, starts, ends = (np.zeros(keep, np.int64) for _ in range(3))
    total, count = kernel.simulate(
        table, static, words.astype(np.int64), np.asarray(reads, np.int64), program.tile.queue_depth, program.tile.read_queue_beats,
        program.tile.memory_bytes_per_cycle, np.array(memory_model.numbers, np.int64), limit, account, own, counts, banks, pcs, starts, ends,
    )  # fmt: skip
    if total < 0:
        raise IllegalProgramError(f"instruction {count}: {_reason(total)}")
    used = min(keep, count)
    return Timing(int(total), int(count), ops, account, own, counts, banks[:, :-1, 2:], pcs[:used], starts[:used], ends[:used])


def _reason(code: int) -> str:
    from fabless.sim import cycles_kernel as kernel

    return {
        kernel.BAD_PC: "runs past the program; end it with halt",
        kernel.BAD_LOOP: "loops do not nest, or deeper than 4; close each, unroll one level",
        kernel.BAD_PARAMETER: "param reads outside parameter memory; keep inside",
        kernel.BAD_WAIT: "waits for a semaphore that nothing before it in program order signals; signal it earlier",
        kernel.TOO_MANY: "is one too many; check the trip counts",
    }[code]


def owners(program: Program) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of a program's ops (its labels in order; one without labels is one op) and the op of each instruction.

    What a label has behind a dot names a part of the op: `qkv.ahead` is loads for `qkv` that stand elsewhere in the program.
    """
    labels = sorted(program.labels.items(), key=lambda item: item[1])
    if not labels or labels[0][1] > 0:
        labels = [("program", 0), *labels]
    firsts, names = [at for _, at in labels], [name.split(".")[0] for name, _ in labels]
    ops = tuple(dict.fromkeys([name for name, _ in labels if "." not in name] + names))
    return ops, [ops.index(names[bisect_right(firsts, pc) - 1]) for pc in range(len(program))]


def _tables(program: Program) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the decoded program, and what the kernel needs beside it: queue, cycles, bytes of a row, bytes of a step, op."""
    from fabless.sim.machine_fast import decoded

    table = decoded(program)
    static = np.zeros((len(table), 5), np.int64)
    static[:, 4] = owners(program)[1]
    known: dict[tuple[str, tuple[int, ...]], tuple[int, int, int, int]] = {}
    for row, item in enumerate(program.instructions):
        key = (item.mnemonic, item.values)
        if key not in known:
            known[key] = _static(item, program.tile)
        static[row, :4] = known[key]
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
