"""Expect: cycles and events of a launch, from the ISA's timing table and the program's own semaphores.

Every queue takes its instructions in order; each begins when its queue is free, the sequencer has issued it, and its semaphores allow. Memory is
taken as always ready, the port's width as the only limit: fidelity "schedule", between a roofline and the cycle simulator.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fabless.program.access import transfer_bytes
from fabless.program.isa import FUNCTIONS, N_SEMAPHORES, Instruction, Queue
from fabless.program.sequence import issue, parameter_words
from fabless.program.timing import cycles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fabless.compiler.driver import Compiled
    from fabless.program.program import Program
    from fabless.program.sequence import Issued
    from fabless.program.tile import Tile

FIDELITY = "schedule"


@dataclass(frozen=True, slots=True)
class Expected:
    """Hold what one launch takes on one tile: cycles, busy cycles by queue, and counted events."""

    cycles: int
    busy: tuple[tuple[str, int], ...]
    macs: int = 0
    vector_ops: int = 0
    dram_bytes: int = 0
    scratchpad_bytes: int = 0
    link_bytes: int = 0
    instructions: int = 0

    def __add__(self, other: Expected) -> Expected:
        busy = dict(self.busy)
        for name, n in other.busy:
            busy[name] = busy.get(name, 0) + n
        sums = (
            getattr(self, f) + getattr(other, f)
            for f in ("macs", "vector_ops", "dram_bytes", "scratchpad_bytes", "link_bytes", "instructions")
        )
        return Expected(self.cycles + other.cycles, tuple(busy.items()), *sums)


NOTHING = Expected(0, tuple((q.name.lower(), 0) for q in Queue))


@dataclass(frozen=True, slots=True)
class Timed:
    """Hold one issued instruction: the cycle in which its unit begins it, and how many it takes."""

    item: Issued
    begin: int
    cycles: int


def timeline(program: Program, parameters: dict[str, object]) -> list[Timed]:
    """Return every issued instruction with its time, in program order; `read`s are taken as 0."""
    return list(_timed(program, parameters))


def expect(program: Program, parameters: dict[str, object]) -> Expected:
    """Return what a launch takes; depends on parameters only through trip counts (and `read`s, taken as 0)."""
    counts: dict[int, tuple[int, int, int, int, int]] = {}
    busy, totals, end, n = [0] * len(Queue), [0, 0, 0, 0, 0], 0, 0
    for timed in _timed(program, parameters):
        item, n = timed.item, n + 1
        if item.mnemonic != "sync":
            busy[item.queue] += timed.cycles
        end = max(end, timed.begin + timed.cycles)
        if item.pc not in counts:
            counts[item.pc] = events(program.instructions[item.pc], program.tile)
        for i, value in enumerate(counts[item.pc]):
            totals[i] += value
    return Expected(end, tuple((q.name.lower(), busy[q]) for q in Queue), *totals, n)  # type: ignore[call-arg]  # five totals


def _timed(program: Program, parameters: dict[str, object]) -> Iterator[Timed]:
    tile = program.tile
    costs: dict[int, int] = {}
    free, clock = [0] * len(Queue), 0
    tokens: list[deque[int]] = [deque() for _ in range(N_SEMAPHORES)]
    waiting: list[deque[int]] = [deque(maxlen=tile.queue_depth) for _ in Queue]
    for item in issue(program, parameter_words(program, parameters)):
        queue, pc = item.queue, item.pc
        clock += 1
        if pc not in costs:
            costs[pc] = cycles(program.instructions[pc], tile, item.operands.get("address", 0))
        if len(waiting[queue]) == tile.queue_depth:  # the queue is full until its oldest instruction has begun
            clock = max(clock, waiting[queue][0])
        begin = max(free[queue], clock)
        if item.mnemonic == "sync":
            for s in range(N_SEMAPHORES):
                if item["wait"] >> s & 1:
                    begin = max(begin, tokens[s].popleft())
            for s in range(N_SEMAPHORES):
                if item["signal"] >> s & 1:
                    tokens[s].append(begin + costs[pc])
        if item.mnemonic == "halt":
            begin = max(begin, *free)
        waiting[queue].append(begin)
        free[queue] = begin + costs[pc]
        if queue == Queue.CTRL:
            clock = max(clock, free[queue])
        yield Timed(item, begin, costs[pc])


def perfetto_text(program: Program, timed: Iterable[Timed]) -> str:
    """Return a trace in the JSON that ui.perfetto.dev opens: one track a queue, one microsecond a cycle."""
    import json

    tracks = [{"ph": "M", "pid": 0, "tid": int(q), "name": "thread_name", "args": {"name": q.name.lower()}} for q in Queue]
    slices = [
        {"ph": "X", "pid": 0, "tid": int(t.item.queue), "ts": t.begin, "dur": t.cycles, "name": t.item.mnemonic, "args": {"pc": t.item.pc}}
        for t in timed
    ]
    whole = {"traceEvents": [*tracks, *slices], "otherData": {"program": program.name, "digest": program.digest, "fidelity": FIDELITY}}
    return json.dumps(whole, separators=(",", ":"))


def events(item: Instruction, tile: Tile) -> tuple[int, int, int, int, int]:
    """Return (multiply-accumulates, vector operations, DRAM bytes, scratchpad bytes, link bytes) of one instruction."""
    match item.mnemonic:
        case "gemm":
            m, n, k, r = item["m"], item["n"], item["k"], tile.rows
            return m * n * k * r * 32, 0, 0, k * n * r * 34 + k * n * m * 34 + 8 * k * n * m * r, 0
        case "load" | "store":
            moved = transfer_bytes_of(item, tile)
            return 0, 0, moved, moved, 0
        case "vec" | "quant" | "mask" | "rotate":
            elements: int = item["rows"] * item["len"]
            steps = 1 + (item.mnemonic in {"quant", "rotate"}) + (item.mnemonic == "vec" and item["reduce"] > 0)
            if item.mnemonic in {"vec", "quant"} and item.choice("fn") != FUNCTIONS[0]:
                steps += 4  # two table products and sums of the quadratic
            return 0, steps * elements, 0, 12 * elements, 0
        case "send" | "recv":
            moved = item["count"] * (34 if item["space"] else 4)
            return 0, 0, 0, moved, moved if item.mnemonic == "send" else 0
    return 0, 0, 0, 0, 0


def transfer_bytes_of(item: Instruction, tile: Tile) -> int:
    """Return the bytes of memory that a `load` or `store` moves."""
    rows: int = item["rows"]
    return rows * transfer_bytes(item, tile)  # type: ignore[arg-type]  # reads the same fields of an instruction as of an issued one


def explain(compiled: Compiled) -> list[dict[str, Any]]:
    """Return per matrix of a layer, and the head: tiling, bytes, and cycles of mesh and memory port for one row."""
    layout, tile = compiled.layouts[0], compiled.tile
    from fabless.compiler.tiles import cycles as mesh_cycles

    out = []
    for name, m in layout.matrices.items():
        pieces = " + ".join(map(str, m.parts))
        mesh, port = mesh_cycles(m.n, m.n_tiles, m.depths, 1), -(-m.bytes // tile.memory_bytes_per_cycle)
        out.append({
            "op": name, "times": 1 if name == "head" else layout.decoder.n_layers, "tiles": f"{m.n_tiles} x ({m.outputs} outputs, k {pieces} blocks)",
            "bytes": m.bytes, "mesh_cycles": mesh, "memory_cycles": port, "bound": "mesh" if mesh > port else "memory",
        })  # fmt: skip
    return out
