"""Is a program legal? Every rule of the ISA checked before anything runs, each with a message that names the instruction and the remedy.

The sequencer is run with every parameter at its low end and at its high end (and `read` bringing 0 and `read_high`); addresses are sums of
multiples of these, all of one sign, so that what stays in bounds at both ends stays so between. A `param` keeps to one parameter, so that an index that
a parameter brings is as bounded. Each issued instruction is checked for bounds, alignment, formats and overlap; a vector
clock per queue follows the semaphores and finds accesses that conflict without being ordered.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from fabless.core.errors import IllegalProgramError
from fabless.program.access import SPACE_NAMES, Access, accesses, scalar_fields, sizes
from fabless.program.isa import (
    FORMAT_BITS,
    LOAD_FORMATS,
    LOOP_DEPTH,
    MEMORY_FORMATS,
    N_SEMAPHORES,
    SEMAPHORE_MAX,
    STORE_FORMATS,
    TARGETS,
    Queue,
)
from fabless.program.program import KINDS
from fabless.program.sequence import issue, parameter_words, wrap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.program.program import Buffer, Program
    from fabless.program.sequence import Issued
    from fabless.program.tile import Tile

_READABLE = frozenset(KINDS)
_WRITABLE = frozenset({"output", "cache", "workspace"})
_N_QUEUES = len(Queue)
_GRANULE_BYTES = 32


def verify(program: Program, tile: Tile | None = None, *, limit: int = 1 << 24) -> None:
    """Return if the program is legal on `tile` (default: its own); raise `IllegalProgramError` with instruction, rule, value and remedy otherwise."""
    if tile is not None and tile != program.tile:
        raise IllegalProgramError(
            f"program '{program.name}': made for tile {program.tile.digest}, this one is {tile.digest}; compile it for this chip"
        )
    _check_layout(program)
    _check_loops(program)
    _check_queues(program)
    parameters = _Parameters(program)
    ends = [("low", 0), ("high", program.read_high)]
    for which, read in ends if program.parameters or program.read_high else ends[:1]:
        words = np.zeros(program.tile.parameter_words, np.int32)
        for p in program.parameters:
            words[p.index : p.index + p.count] = p.low if which == "low" else p.high
        run = _Run(program)
        for item in issue(program, words, lambda at, read=read: read, limit=limit, watch=parameters):  # type: ignore[misc]  # a default argument binds the loop's value
            run.check(item)
        run.finish()


def _refuse(item: Issued, rule: str, value: str, remedy: str) -> NoReturn:
    raise IllegalProgramError(f"instruction {item.pc} ({item.mnemonic}): {rule}: {value}; {remedy}")


def _set_bits(mask: int) -> list[int]:
    return [s for s in range(N_SEMAPHORES) if mask >> s & 1] if mask else []


def _check_layout(program: Program) -> None:
    tile, name = program.tile, program.name
    if len(program) > tile.instruction_words:
        raise IllegalProgramError(
            f"program '{name}': capacity: {len(program)} instructions, the tile holds {tile.instruction_words}; use loops or another tile"
        )
    previous: Buffer | None = None
    for b in sorted(program.buffers, key=lambda b: b.address):
        if b.kind not in KINDS:
            raise IllegalProgramError(f"buffer '{b.name}': kind '{b.kind}' is not one of {', '.join(KINDS)}")
        if b.address % _GRANULE_BYTES or b.bytes < 1:
            raise IllegalProgramError(
                f"buffer '{b.name}': alignment: starts at {b.address}, has {b.bytes} bytes; start at a multiple of 32, not empty"
            )
        if b.end > tile.memory_bytes:
            raise IllegalProgramError(f"buffer '{b.name}': capacity: ends at {b.end}, memory has {tile.memory_bytes} bytes; use more tiles")
        if previous and b.address < previous.end:
            raise IllegalProgramError(
                f"buffer '{b.name}': overlap: starts at {b.address} inside '{previous.name}'; move it to {previous.end} or behind"
            )
        previous = b
    for name_, content in program.constants.items():
        if len(content) > program.buffer(name_).bytes:
            raise IllegalProgramError(
                f"constant '{name_}': capacity: {len(content)} bytes for a buffer of {program.buffer(name_).bytes}; enlarge it"
            )
    at = 0
    for p in sorted(program.parameters, key=lambda p: p.index):
        if p.index < at or p.count < 1 or p.index + p.count > tile.parameter_words:
            raise IllegalProgramError(
                f"parameter '{p.name}': words {p.index} to {p.index + p.count} overlap another or pass {tile.parameter_words}; move it"
            )
        if not -(2**31) <= p.low <= p.high < 2**31:
            raise IllegalProgramError(f"parameter '{p.name}': range {p.low} to {p.high} is not one of 32-bit words; give low <= high")
        at = p.index + p.count


def _check_queues(program: Program) -> None:
    for index, item in enumerate(program.instructions):
        if item.queue == Queue.NET and not program.tile.has_link:
            raise IllegalProgramError(
                f"instruction {index} ({item.mnemonic}): queue: this tile has no link (link_bytes_per_cycle = 0), nothing executes queue net; "
                "compile for one tile, or use a tile with a link"
            )


def _check_loops(program: Program) -> None:
    open_loops: list[int] = []
    for index, item in enumerate(program.instructions):
        if item.mnemonic == "loop":
            open_loops.append(index)
            if len(open_loops) > LOOP_DEPTH:
                raise IllegalProgramError(
                    f"instruction {index} (loop): depth: {len(open_loops)} loops nest, the sequencer has {LOOP_DEPTH}; unroll one"
                )
        elif item.mnemonic == "end":
            if not open_loops:
                raise IllegalProgramError(f"instruction {index} (end): structure: no loop is open; remove it")
            first = open_loops.pop()
            length = program.instructions[first]["length"]
            if length != index - first - 1:
                raise IllegalProgramError(
                    f"instruction {first} (loop): structure: length {length} does not lead to its end at {index}; set it to {index - first - 1}"
                )
        elif item.mnemonic == "halt" and open_loops:
            raise IllegalProgramError(f"instruction {index} (halt): structure: {len(open_loops)} loops are open; close them first")
    if open_loops:
        raise IllegalProgramError(f"instruction {open_loops[-1]} (loop): structure: it has no end; add one")


class _Parameters:
    """Hold every `param` to one declared parameter: where an index comes from a parameter, too, both ends of it then bound all that it can bring."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.declared = sorted(program.parameters, key=lambda p: p.index)
        self.starts = [p.index for p in self.declared]
        self.read: dict[int, str] = {}

    def __call__(self, pc: int, registers: list[int], _: list[list[int]]) -> None:
        item = self.program.instructions[pc]
        if item.mnemonic != "param":
            return
        at = wrap(item["at"] + registers[item["at_reg"]])
        place = bisect_right(self.starts, at) - 1
        name = self.declared[place].name if place >= 0 and at < self.declared[place].index + self.declared[place].count else ""
        if not name:
            raise IllegalProgramError(
                f"instruction {pc} (param): parameters: reads word {at}, which is of none; declare one, or keep inside"
            )
        if self.read.setdefault(pc, name) != name:
            raise IllegalProgramError(
                f"instruction {pc} (param): parameters: reads words of '{self.read[pc]}' and of '{name}'; keep its index inside one"
            )


@dataclass
class _Space:
    """Remember, per word, which queue wrote it when, and when each queue read it last."""

    size: int
    unit: int = 1
    writer: NDArray[np.int8] = field(init=False)
    written: NDArray[np.int64] = field(init=False)
    read: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        words = -(-self.size // self.unit)
        self.writer = np.zeros(words, np.int8)
        self.written = np.zeros(words, np.int64)
        self.read = np.zeros((_N_QUEUES, words), np.int64)

    def index(self, access: Access, base: int) -> slice | NDArray[np.int64]:
        """Return the words of an access whose space starts at `base`."""
        first, unit = access.first - base, self.unit
        if access.contiguous:
            return slice(first // unit, (access.end - base - 1) // unit + 1)
        rows = first + np.arange(access.rows, dtype=np.int64)[:, None] * access.stride
        if unit == 1:
            return (rows + np.arange(access.count)).reshape(-1)
        within = np.minimum(np.arange(-(-access.count // unit) + 1) * unit, access.count - 1)
        return np.unique((rows + within) // unit)


class _Run:
    """Check one run of the sequencer."""

    def __init__(self, program: Program) -> None:
        self.program, self.tile = program, program.tile
        self.sizes = sizes(program.tile)
        self.spaces = {name: _Space(size) for name, size in self.sizes.items() if name != "m"}
        self.buffers = sorted(program.buffers, key=lambda b: b.address)
        self.starts = np.array([b.address for b in self.buffers], np.int64)
        self.memory = {b.name: _Space(b.bytes, _GRANULE_BYTES) for b in self.buffers if b.kind in _WRITABLE}
        self.clock = np.zeros((_N_QUEUES, _N_QUEUES), np.int64)
        self.tokens: list[deque[NDArray[np.int64]]] = [deque() for _ in range(N_SEMAPHORES)]
        self.ends: dict[tuple[int, str], Queue] = {}
        self.signals = [0] * N_SEMAPHORES
        self.waits: list[list[int]] = [[] for _ in range(N_SEMAPHORES)]
        self.known_waits = [0] * N_SEMAPHORES
        self.last: Issued | None = None

    def check(self, item: Issued) -> None:
        """Check one issued instruction and remember what it did."""
        self.last = item
        queue = item.queue
        if queue != Queue.CTRL:  # issued only after ctrl's own waits and reads are over
            np.maximum(self.clock[queue], self.clock[Queue.CTRL], out=self.clock[queue])
        self.clock[queue, queue] += 1
        if item.mnemonic == "sync":
            self._sync(item)
        elif item.mnemonic != "halt":
            self._formats(item)
            touched = accesses(item, self.tile)
            for access in touched:
                self._bounds(item, access)
            self._alignment(item, touched)
            self._overlap(item, touched)
            for access in sorted(touched, key=lambda a: a.is_write):
                self._order(item, access)

    def finish(self) -> None:
        """Check what must hold at halt."""
        left = [s for s in range(N_SEMAPHORES) if self.tokens[s]]
        if left and self.last:
            _refuse(
                self.last,
                "semaphores",
                f"semaphore {left[0]} still holds {len(self.tokens[left[0]])} at halt",
                "wait as often as signalled",
            )

    def _sync(self, item: Issued) -> None:
        queue = item.queue
        for role in ("wait", "signal"):
            for s in _set_bits(item[role]):
                if self.ends.setdefault((s, role), queue) != queue:
                    _refuse(
                        item, "semaphores", f"{role} on semaphore {s} from queue {queue.name.lower()}, before from {self.ends[s, role].name.lower()}",
                        f"give each semaphore one queue that {role}s",
                    )  # fmt: skip
        for s in _set_bits(item["wait"]):
            if not self.tokens[s]:
                _refuse(item, "deadlock", f"waits for semaphore {s}, which nothing before it signals", "signal it earlier in program order")
            np.maximum(self.clock[queue], self.tokens[s].popleft(), out=self.clock[queue])
            self.waits[s].append(int(self.clock[queue, queue]))
        for s in _set_bits(item["signal"]):
            self._count(item, s)
            self.tokens[s].append(self.clock[queue].copy())

    def _count(self, item: Issued, s: int) -> None:
        """The semaphore may hold every signal but those whose wait this queue knows to be over."""
        self.signals[s] += 1
        consumer = self.ends.get((s, "wait"))
        if consumer is not None:
            known = self.clock[item.queue, consumer]
            while self.known_waits[s] < len(self.waits[s]) and self.waits[s][self.known_waits[s]] <= known:
                self.known_waits[s] += 1
        if self.signals[s] - self.known_waits[s] > SEMAPHORE_MAX:
            _refuse(
                item, "semaphores", f"semaphore {s} may count to {self.signals[s] - self.known_waits[s]}, it holds {SEMAPHORE_MAX}",
                "let the consumer signal back, and wait for it",
            )  # fmt: skip

    def _formats(self, item: Issued) -> None:
        if item.mnemonic not in {"load", "store"}:
            return
        target, format = TARGETS[item["target"]], MEMORY_FORMATS[item["format"]]
        table = LOAD_FORMATS if item.mnemonic == "load" else STORE_FORMATS
        if target not in table:
            _refuse(item, "format", f"a {item.mnemonic} cannot have target {target}", f"use one of {', '.join(table)}")
        if format not in table[target]:
            _refuse(item, "format", f"{target} in {format}", f"use one of {', '.join(table[target])}")
        if target == "ab" and item["count"] != 1:
            _refuse(item, "format", f"ab scatters single bytes, count is {item['count']}", "set count to 1 and rows to the number of bytes")

    def _bounds(self, item: Issued, access: Access) -> None:
        size = self.sizes[access.space]
        if access.first < 0 or access.end > size:
            _refuse(
                item, "bounds", f"{access.field} covers {access.first} to {access.end} of the {SPACE_NAMES[access.space]}, which has {size}",
                "move or shorten it",
            )  # fmt: skip
        if access.space == "m":
            b = self._buffer(access)
            if b is None:
                _refuse(
                    item,
                    "bounds",
                    f"{access.field} covers bytes {access.first} to {access.end}, inside no single buffer",
                    "declare or enlarge one",
                )
            if b.kind not in (_WRITABLE if access.is_write else _READABLE):
                _refuse(item, "bounds", f"writes buffer '{b.name}' of kind {b.kind}", f"write only {', '.join(sorted(_WRITABLE))}")

    def _buffer(self, access: Access) -> Buffer | None:
        at = int(np.searchsorted(self.starts, access.first, side="right")) - 1
        return self.buffers[at] if at >= 0 and access.end <= self.buffers[at].end else None

    def _alignment(self, item: Issued, touched: tuple[Access, ...]) -> None:
        align, free = self.tile.vector_align, scalar_fields(item)
        for access in touched:
            if access.space in {"v", "c"} and item.mnemonic != "gemm" and access.field not in free:
                stride = access.stride if access.rows > 1 else 0
                if access.first % align or stride % align:
                    _refuse(
                        item, "alignment", f"{access.field} starts at element {access.first}, rows {stride} apart",
                        f"make both multiples of {align}",
                    )  # fmt: skip
            if access.space == "m":
                self._memory_alignment(item, access)
        if item.mnemonic == "rotate" and item["len"] % 2:
            _refuse(item, "alignment", f"rotates pairs, len is {item['len']}", "make it even")

    @staticmethod
    def _memory_alignment(item: Issued, access: Access) -> None:
        stride = access.stride if access.rows > 1 else 0
        target = TARGETS[item["target"]]
        single = item["count"] == 1 and target in {"v", "as", "ab"}
        unit = max(1, FORMAT_BITS[MEMORY_FORMATS[item["format"]]] // 8) if single else _GRANULE_BYTES
        if access.first % unit or stride % unit:
            _refuse(item, "alignment", f"address {access.first}, rows {stride} apart", f"make both multiples of {unit} bytes")

    @staticmethod
    def _overlap(item: Issued, touched: tuple[Access, ...]) -> None:
        for w in touched:
            if not w.is_write:
                continue
            if w.rows > 1 and w.stride < w.count:
                _refuse(item, "overlap", f"rows of {w.count} are written {w.stride} apart", "space them by at least their length")
            for r in touched:
                same = (w.first, w.count, w.rows) == (r.first, r.count, r.rows) and (w.rows == 1 or w.stride == r.stride)
                if not r.is_write and r.space == w.space and r.space != "m" and w.first < r.end and r.first < w.end and not same:
                    _refuse(
                        item, "overlap", f"{w.field} ({w.first} to {w.end}) overlaps {r.field} ({r.first} to {r.end}) that it is made of",
                        "keep them apart, or exactly in place",
                    )  # fmt: skip

    def _order(self, item: Issued, access: Access) -> None:
        space, base, what = self._tracked(access)
        if space is None:
            return
        words, queue = space.index(access, base), item.queue
        clock = self.clock[queue]
        writer, written = space.writer[words], space.written[words]
        if not access.is_write and what != "cache" and not written.all():
            _refuse(
                item,
                "read before write",
                f"{access.field} reads {SPACE_NAMES[access.space]} that nothing has written",
                "write or load it first",
            )
        late = written > clock[writer]
        if late.any():
            other = Queue(int(writer[late][0])).name.lower()
            verb = "writes" if access.is_write else "reads"
            _refuse(
                item, "race", f"{access.field} {verb} {SPACE_NAMES[access.space]} that queue {other} writes, in no fixed order",
                f"let {other} signal and {queue.name.lower()} wait",
            )  # fmt: skip
        if access.is_write:
            reads = space.read[:, words] > clock[:, None]
            if reads.any():
                other = Queue(int(np.nonzero(reads.any(axis=1))[0][0])).name.lower()
                _refuse(
                    item, "race", f"{access.field} overwrites {SPACE_NAMES[access.space]} that queue {other} may still read",
                    f"let {other} signal when done and {queue.name.lower()} wait",
                )  # fmt: skip
            space.writer[words], space.written[words] = int(queue), clock[queue]
        else:
            space.read[queue, words] = clock[queue]

    def _tracked(self, access: Access) -> tuple[_Space | None, int, str]:
        if access.space != "m":
            return self.spaces[access.space], 0, ""
        b = self._buffer(access)
        return (self.memory.get(b.name), b.address, b.kind) if b else (None, 0, "")


def verify_launch(program: Program, parameters: dict[str, object]) -> None:
    """Check the parameters of one launch against their ranges; raises `IllegalProgramError` naming the first that is outside."""
    parameter_words(program, parameters)
