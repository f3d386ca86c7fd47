"""The debugger: what the machine holds at one instruction of a launch, and where two programs part.

`look` runs a launch on the readable machine up to the k-th visit of an instruction and returns what stands before and behind it: registers, loops,
semaphores, operands with their values, results, and a digest of every buffer. `part` runs two programs in lock step on copies of one memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import IllegalProgramError, InputError
from fabless.program.access import Access, accesses
from fabless.program.isa import Queue
from fabless.program.sequence import Issued, resolve
from fabless.sim.machine import State, interpret, launch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from fabless.program.program import Program
    from fabless.sim.dram import MemoryModel
    from fabless.sim.machine import Message

_IN_PLACE = {
    "v": "vector",
    "c": "accumulators",
    "m": "memory",
    "w": "weights",
    "ws": "weight_scales",
    "a": "activations",
    "as": "activation_scales",
}


@dataclass(frozen=True)
class Value:
    """Hold what an instruction reads or writes: `rows` of `count` words, `stride` apart, from `first` of a space; `content` `[rows, count, ...]`."""

    operand: str
    space: str
    first: int
    count: int
    rows: int
    stride: int
    content: np.ndarray = field(repr=False)

    @property
    def digest(self) -> str:
        """Return 16 hex digits that name the content."""
        return _digest(self.content)


@dataclass(frozen=True)
class Moment:
    """Hold one moment of a launch. `operands` are those of the issued instruction, every `+ X[reg]` added up; `before`, `after` digests by buffer.

    `loops`: (instruction of the `loop`, trips left, this one included), outermost first. `changed`: registers that the instruction wrote.
    """

    program: Program
    pc: int
    visit: int
    registers: tuple[int, ...]
    loops: tuple[tuple[int, int], ...]
    semaphores: tuple[int, ...]
    operands: Mapping[str, int]
    reads: tuple[Value, ...]
    overwritten: tuple[Value, ...]
    written: tuple[Value, ...]
    changed: Mapping[int, int]
    semaphores_after: tuple[int, ...]
    before: Mapping[str, str]
    after: Mapping[str, str]
    index: int  # instructions that the sequencer took before
    read_values: tuple[int, ...] = ()


class _FoundError(Exception):
    """Leave the interpreter: the moment is complete."""


class _Watch:
    """Count visits of an instruction; at the one asked for, take down the machine before it and behind it."""

    def __init__(self, program: Program, state: State, pc: int, visit: int) -> None:
        self.program, self.state, self.pc, self.visit = program, state, pc, visit
        self.visits = self.index = 0
        self.moment: Moment | None = None
        self._item: Issued | None = None
        self.reads: list[int] = []
        self._registers: list[int] = []

    def __call__(self, pc: int, registers: list[int], loops: list[list[int]]) -> None:
        self._registers = registers
        if self.moment is not None:
            self.finish()
            raise _FoundError
        if pc == self.pc:
            self.visits += 1
            if self.visits == self.visit:
                self._take(registers, loops)
        self.index += 1

    def observe(self, item: Issued, state: State) -> None:
        """Note what `read` brings."""
        if item.mnemonic == "read":
            self.reads.append(integer_at(state, item["at"]))

    def _take(self, registers: list[int], loops: list[list[int]]) -> None:
        item = resolve(self.pc, self.program.instructions[self.pc], registers)
        touched = accesses(item, self.program.tile) if item.mnemonic not in _CONTROL else ()
        self._item = item
        self.moment = Moment(
            self.program, self.pc, self.visit, tuple(registers), tuple((first, left) for first, left in loops),
            tuple(int(n) for n in self.state.semaphores), item.operands, tuple(value(a, self.state) for a in touched if not a.is_write),
            tuple(value(a, self.state) for a in touched if a.is_write), (), {}, (), digests(self.program, self.state), {}, self.index,
            tuple(self.reads),
        )  # fmt: skip

    def finish(self) -> None:
        """Complete the moment with what stands behind its instruction."""
        from dataclasses import replace

        assert self.moment is not None
        assert self._item is not None
        m, item = self.moment, self._item
        touched = accesses(item, self.program.tile) if item.mnemonic not in _CONTROL else ()
        self.moment = replace(
            m, written=tuple(value(a, self.state) for a in touched if a.is_write),
            changed={i: x for i, x in enumerate(self._registers) if x != m.registers[i]},
            semaphores_after=tuple(int(n) for n in self.state.semaphores), after=digests(self.program, self.state),
        )  # fmt: skip


_CONTROL = frozenset({"halt", "loop", "end", "madd", "param", "sync"})


def integer_at(state: State, at: int) -> int:
    """Return what `read` brings of a vector element."""
    x = float(state.vector[at])
    return 0 if np.isnan(x) else max(-(2**31), min(2**31 - 1, int(np.rint(max(-3e9, min(3e9, x))))))


def value(access: Access, state: State) -> Value:
    """Return the content of a range of words, without those outside the space."""
    array = getattr(state, _IN_PLACE[access.space])
    at = access.first + np.arange(access.rows, dtype=np.int64)[:, None] * access.stride + np.arange(access.count)
    content = array[np.clip(at, 0, len(array) - 1)].copy()
    return Value(access.field, access.space, access.first, access.count, access.rows, access.stride, content)


def digests(program: Program, state: State) -> dict[str, str]:
    """Return 16 hex digits per buffer of memory and of the tile."""
    out = {b.name: _digest(state.memory[b.address : b.end]) for b in program.buffers}
    return out | {f"tile.{name}": _digest(part) for name, part in state.parts().items() if name != "memory"}


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def look(tiles: Sequence[tuple[Program, State]], pc: int, *, visit: int = 1, index: int = 0) -> Moment:
    """Return the `visit`-th time that tile `index` of a ring reaches instruction `pc`; states are changed in place and left there.

    Raises `InputError` for an instruction that the launch does not reach so often.
    """
    program, state = tiles[index]
    if not 0 <= pc < len(program):
        raise InputError(f"instruction {pc}: the program has instructions 0 to {len(program) - 1}")
    if visit < 1:
        raise InputError(f"visit {visit}: the first is 1")
    watch = _Watch(program, state, pc, visit)
    links: list[list[Message]] = [[] for _ in tiles]
    runs = {
        i: interpret(p, s, links[i - 1], links[i], watch.observe if i == index else None, watch if i == index else None)
        for i, (p, s) in enumerate(tiles)
    }
    try:
        _drive(runs, tiles)
    except _FoundError:
        assert watch.moment is not None
        return watch.moment
    if watch.moment is not None:  # the last instruction
        watch.finish()
        return watch.moment
    times = f"{watch.visits} time{'s' * (watch.visits != 1)}"
    raise InputError(f"instruction {pc}: this launch reaches it {times}; visit {visit} is not among them")


def _drive(runs: dict[int, Iterator[str]], tiles: Sequence[tuple[Program, State]]) -> None:
    while runs:
        before = sum(state.retired for _, state in tiles)
        for i in list(runs):
            if next(runs[i], "halted") == "halted":
                del runs[i]
        if runs and sum(state.retired for _, state in tiles) == before:
            raise IllegalProgramError(
                f"tiles {sorted(runs)} wait for data that their neighbours never send; look at a ring with all its tiles"
            )


@dataclass(frozen=True)
class Queued:
    """Hold what a queue has in the cycle in which an instruction starts: what its unit executes, and what waits behind it, as instruction indices."""

    queue: Queue
    executes: int | None
    waits: tuple[int, ...]


def queues(
    moment: Moment, parameters: Mapping[str, object] | NDArray[np.int32], memory_model: MemoryModel, ring: Sequence[Program] = ()
) -> tuple[int, int, tuple[Queued, ...]]:
    """Return the cycles in which a moment's instruction starts and ends, and all queues in the first: the cycle simulator's schedule.

    `ring`: the programs of all tiles, this one among them; without, the tile is its own neighbour.
    """
    from fabless.sim.cycles import time_ring

    program, n = moment.program, moment.index
    programs = tuple(ring) or (program,)
    own = next(i for i, p in enumerate(programs) if p is program)
    given = [parameters] * len(programs)
    reads = [moment.read_values if i == own else () for i in range(len(programs))]
    count = time_ring(programs, given, memory_model, reads=reads)[own].instructions
    timing = time_ring(programs, given, memory_model, reads=reads, keep=count)[own]
    begin = int(timing.starts[n])
    held: dict[Queue, list[int]] = {q: [] for q in Queue}
    running: dict[Queue, int] = {}
    started: dict[Queue, list[int]] = {q: [] for q in Queue}
    clock = 0  # of the sequencer
    for pc, start, end in zip(timing.pcs.tolist(), timing.starts.tolist(), timing.ends.tolist(), strict=True):
        queue = program.instructions[pc].queue
        handed = clock
        if queue == Queue.CTRL:
            clock = end
        else:
            starts = started[queue]
            if len(starts) >= program.tile.queue_depth:
                handed = max(handed, starts[-program.tile.queue_depth] + 1)
            starts.append(start)
            clock = handed + 1
        if handed > begin:
            break
        if start <= begin < end:
            running[queue] = pc
        elif start > begin:
            held[queue].append(pc)
    found = tuple(Queued(q, running.get(q), tuple(held[q])) for q in Queue)
    return begin, int(timing.ends[n]), found


@dataclass(frozen=True)
class Parting:
    """Hold where two programs part: how many executed instructions left the same state, the two that did not, and which spaces then differ."""

    agreed: int
    first: Issued | None
    second: Issued | None
    spaces: tuple[str, ...]


def part(
    first: Program, second: Program, memory: NDArray[np.uint8] | None = None, parameters: Sequence[Mapping[str, object]] = ({}, {})
) -> Parting | None:
    """Return the first executed instruction behind which two programs' states differ, or None; `sync` is not compared, `send` leaves no state.

    Both run on copies of `memory` (default: zeros and each program's constants). Only what either instruction wrote is compared: the rest was equal.
    """
    if first.tile != second.tile:
        raise InputError(
            f"programs of two tiles ({first.tile.digest}, {second.tile.digest}) have no state in common; compile both for one chip"
        )
    states = [launch(p, None if memory is None else memory.copy(), None, q) for p, q in zip((first, second), parameters, strict=True)]
    if memory is None and not np.array_equal(states[0].memory, states[1].memory):
        raise InputError("the programs start from different memories (buffers or constants differ); name a memory for both")
    runs = [_steps(p, s) for p, s in zip((first, second), states, strict=True)]
    agreed = 0
    while True:
        a, b = (next(run, None) for run in runs)
        if a is None and b is None:
            return None
        differ = () if a is None or b is None else _differences((a, b), states)
        if a is None or b is None or differ:
            return Parting(agreed, a, b, differ)
        agreed += 1


def _steps(program: Program, state: State) -> Iterator[Issued]:
    """Yield every executed instruction but `sync` and `halt`, the state being the one behind it."""
    done: list[Issued] = []
    run = interpret(program, state, [], [], lambda item, _: done.append(item), pause=True)
    for word in run:
        if word == "waiting":
            raise InputError(f"program '{program.name}' waits for a neighbour; programs of a ring cannot be compared one by one")
        item = done.pop()
        if item.mnemonic not in {"sync", "halt"}:
            yield item


def _differences(items: tuple[Issued, Issued], states: Sequence[State]) -> tuple[str, ...]:
    tile = states[0].tile
    touched = [a for item in items for a in accesses(item, tile) if a.is_write]
    return tuple(sorted({a.space for a in touched if _digest(value(a, states[0]).content) != _digest(value(a, states[1]).content)}))


__all__ = ["Moment", "Parting", "Queued", "Value", "look", "part", "queues"]
