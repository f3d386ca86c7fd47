"""The cycle simulator: how long a program takes on a tile, exactly as the RTL takes it, without computing any data.

Timing does not depend on data: the sequencer is run for its registers, each unit instruction takes what the timing column of the ISA states, `load`
and `store` what memory lets them take, beat by beat, and semaphores and queues make units wait. In a ring all tiles start in one cycle, and `send` and
`recv` wait for each other, beat by beat: tiles are looked at in turn, each as far as its neighbours' beats are known. `read`, the one way from data to
an address, brings `reads`: only the alignment of later addresses can depend on them.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import IllegalProgramError, InputError, UnsupportedError
from fabless.program.events import KINDS, LINK, MACS, VECTOR_OPS, events
from fabless.program.isa import FORMAT_BITS, Instruction, Queue
from fabless.program.program import Program
from fabless.program.timing import LINK_QUEUE_BEATS, ceil, cycles, row_bytes
from fabless.sim.dram import IDEAL, MemoryModel
from fabless.sim.trace import Counters, Event, Trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fabless.program.tile import Tile

CAUSES = ("busy", "semaphore", "memory", "full", "link")
#: The resources of an `Event`, and whose queues they are.
_BOUNDS = ("compute", "vector", "memory", "link", "overhead")
_RESOURCES = ((Queue.MXU,), (Queue.VPU,), (Queue.LOAD, Queue.STORE), (Queue.NET,), (Queue.CTRL,))
_BUFFERS = tuple(KINDS.index(name) for name in ("weights", "activations", "accumulators", "vectors"))
_DRAM = tuple(KINDS.index(name) for name in ("dram_read", "dram_written"))


@dataclass(frozen=True)
class Timing:
    """Hold the cycles of a launch and where they went.

    `ops` names the parts of the program between its labels. `account [op, 6 queues, 5 causes]`: cycles in which a queue was busy, waited for a
    semaphore, had to wait for memory, (ctrl) found a queue full, or (net) waited for a neighbour. `own [op]`: the cycles that an op adds to the end of
    what precedes it in program order; they sum to `cycles`. `counts [instruction]`: how often each was issued. `banks [reads or writes, bank, hits or
    misses]`: beats that found their row open, or not; no bank where the memory model has none.
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
    program: Program | Sequence[Program],
    tile: Tile | None = None,
    parameters: NDArray[np.int32] | Mapping[str, object] | None = None,
    memory_model: MemoryModel = IDEAL,
    *,
    link_latency_cycles: int = 1,
    reads: Sequence[int] = (),
    clock_hz: float = 1e9,
    macs_as: str = "int8",
    shown: int | None = None,
) -> Trace:
    """Return the cycles of one launch, by unit and by op, with stalls by cause; equal to the RTL's cycle count with the same memory model.

    `parameters`: words, or values by name (see `program.sequence.parameter_words`). Several programs: a ring of as many tiles, all launched with the
    same parameters; the trace is of the tile that takes longest (or `shown`), its counters are of all. Events of the trace are the program's labels in order;
    `cycles` of one is what it adds to the end of what precedes it, so that they sum to the launch. `macs_as`: the element format that counters name.
    Raises `UnsupportedError` for a program of another tile, `IllegalProgramError` for one that does not run to its halt.
    """
    programs = (program,) if isinstance(program, Program) else tuple(program)
    for one in programs:
        _check_tile(one, tile)
    ring = time_ring(
        programs, [parameters] * len(programs), memory_model, link_latency_cycles=link_latency_cycles, reads=[reads] * len(programs)
    )
    slowest = max(range(len(ring)), key=lambda i: ring[i].cycles) if shown is None else shown
    timing, program = ring[slowest], programs[slowest]
    others = [
        _counters(_events_by_op(p, t.counts).sum(axis=0), macs_as)
        for i, (p, t) in enumerate(zip(programs, ring, strict=True))
        if i != slowest
    ]
    owner = owners(program)[1]
    counted = _events_by_op(program, timing.counts)
    total, found = sum(others, Counters()), []
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
        counters=total, fidelity="cycle", stalls=timing.stalls(), units=timing.busy(), slowest_tile=slowest,
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
    """Return the cycles of one launch, and of the first `keep` issued instructions each start and end; its link leads back to itself."""
    _check_tile(program, tile)
    return time_ring([program], [parameters], memory_model, reads=[reads], keep=keep, limit=limit)[0]


def _check_tile(program: Program, tile: Tile | None) -> None:
    if tile is not None and tile != program.tile:
        raise UnsupportedError(
            f"program '{program.name}' was made for tile {program.tile.digest}, this one is {tile.digest}; compile it for this chip"
        )


def time_ring(
    programs: Sequence[Program],
    parameters: Sequence[NDArray[np.int32] | Mapping[str, object] | None],
    memory_model: MemoryModel = IDEAL,
    *,
    link_latency_cycles: int = 1,
    reads: Sequence[Sequence[int]] = (),
    keep: int = 0,
    limit: int = 1 << 40,
) -> tuple[Timing, ...]:
    """Return the cycles of one launch of each tile of a ring; tile i sends to tile i + 1, the last to the first.

    `link_latency_cycles`: from a tile to the next, for what is sent and for the room that comes back. `reads`, `keep`: as in `time`, `reads` by tile.
    Raises `IllegalProgramError` when all tiles wait for each other.
    """
    from fabless.sim import cycles_kernel as kernel
    from fabless.sim.cycles_link import LINK_SHAPE

    if link_latency_cycles < 1:
        raise InputError(f"link latency of {link_latency_cycles} cycles: a link is a register at least; give 1 or more")
    links = [np.zeros(LINK_SHAPE, np.int64) for _ in programs]
    tiles = [
        _Pass(program, words, memory_model, (links[i - 1], links[i], link_latency_cycles), reads[i] if reads else (), keep, limit)
        for i, (program, words) in enumerate(zip(programs, parameters, strict=True))
    ]
    waiting = list(range(len(tiles)))
    while waiting:
        before = _known(tiles, links)
        waiting = [i for i in waiting if tiles[i].advance() == kernel.WAITING]
        if waiting and _known(tiles, links) == before:
            raise IllegalProgramError(_stuck(tiles, waiting, links))
    return tuple(one.timing() for one in tiles)


def _known(tiles: Sequence[_Pass], links: Sequence[NDArray[np.int64]]) -> int:
    return sum(one.instructions for one in tiles) + sum(int(link[:, -1].sum()) for link in links)


def _stuck(tiles: Sequence[_Pass], waiting: Sequence[int], links: Sequence[NDArray[np.int64]]) -> str:
    where = ", ".join(f"tile {i} at instruction {int(tiles[i].kept[0][1])}" for i in waiting)
    full = any(link[0, -1] - link[1, -1] >= LINK_QUEUE_BEATS for link in links)
    why = (
        f"a link holds {LINK_QUEUE_BEATS} beats; send less before the recv that makes room"
        if full
        else "match every recv with a send of the tile before"
    )
    return f"the ring stands still: {where} wait for each other; {why}"


class _Pass:
    """Hold the pass over one tile's launch: `advance` goes as far as its neighbours' beats are known."""

    def __init__(
        self, program: Program, parameters: NDArray[np.int32] | Mapping[str, object] | None, memory_model: MemoryModel,
        links: tuple[NDArray[np.int64], NDArray[np.int64], int], reads: Sequence[int], keep: int, limit: int,
    ) -> None:  # fmt: skip
        from fabless.program.sequence import parameter_words
        from fabless.sim import cycles_kernel as kernel

        words = parameters if isinstance(parameters, np.ndarray) else parameter_words(program, parameters)
        t, (table, static) = program.tile, _tables(program)
        self.ops = owners(program)[0]
        self.account, self.own = np.zeros((len(self.ops), len(Queue), len(CAUSES)), np.int64), np.zeros(len(self.ops), np.int64)
        self.counts = np.zeros(len(table), np.int64)
        self.banks = np.zeros((2, memory_model.banks + 1, 4), np.int64)
        self.banks[:, -1, 1] = -1
        self.record = tuple(np.zeros(keep, np.int64) for _ in range(3))
        self.kept = kernel.fresh(t.queue_depth, t.read_queue_beats)
        self.cycles, self.instructions = 0, 0
        self._given = (
            table, static, words.astype(np.int64), np.asarray(reads, np.int64), t.queue_depth, t.read_queue_beats, t.memory_bytes_per_cycle,
            np.array(memory_model.numbers, np.int64), limit, self.account, self.own, self.counts, self.banks, *self.record, self.kept, *links,
        )  # fmt: skip

    def advance(self) -> int:
        """Go on; returns `cycles_kernel.WAITING` or the cycles of the launch."""
        from fabless.sim import cycles_kernel as kernel

        total, count = kernel.simulate(*self._given)
        if total == kernel.WAITING:
            self.instructions = int(self.kept[0][3])
        elif total < 0:
            raise IllegalProgramError(f"instruction {count}: {_reason(total)}")
        else:
            self.cycles, self.instructions = int(total), int(count)
        return int(total)

    def timing(self) -> Timing:
        """Return what the pass found."""
        pcs, starts, ends = (r[: self.instructions] for r in self.record)
        return Timing(
            self.cycles, self.instructions, self.ops, self.account, self.own, self.counts, self.banks[:, :-1, 2:], pcs, starts, ends
        )


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
