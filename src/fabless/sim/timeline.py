"""Every instruction of one launch with its cycles: for listings, and as a trace that ui.perfetto.dev opens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fabless.program.isa import Queue
from fabless.program.sequence import issue, parameter_words
from fabless.sim.cycles import owners, time_ring
from fabless.sim.dram import IDEAL, MemoryModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fabless.program.program import Program
    from fabless.program.sequence import Issued

#: Instructions that one timeline holds at most; a decode step of a 135M model issues some 60,000.
LIMIT = 4_000_000
_NO_QUEUE = frozenset({"loop", "end", "madd", "param"})


@dataclass(frozen=True, slots=True)
class Timed:
    """Hold one issued instruction: the cycle in which its unit begins it, how many it takes, and the op that it belongs to."""

    item: Issued
    begin: int
    cycles: int
    op: str


def timeline(
    program: Program, parameters: Mapping[str, object] | None = None, memory_model: MemoryModel = IDEAL, *, ring: Sequence[Program] = (),
    link_latency_cycles: int = 1,
) -> list[Timed]:  # fmt: skip
    """Return every instruction that a queue receives, with its time, in program order; `read`s bring 0.

    A `load` begins where the one before it is written: that the unit asks for its beats before is told by when they are there.
    `ring`: the programs of all tiles, this one among them; without, the tile is its own neighbour.
    """
    programs = tuple(ring) or (program,)
    timings = time_ring(programs, [parameters] * len(programs), memory_model, link_latency_cycles=link_latency_cycles, keep=LIMIT)
    timing = timings[next(i for i, p in enumerate(programs) if p is program)]
    names, owner = owners(program)
    loads = np.array([i.queue == Queue.LOAD for i in program.instructions])[timing.pcs]
    begins, ends = timing.starts.copy(), timing.ends.copy()
    ends[loads] = np.maximum.accumulate(ends[loads])
    begins[loads] = np.maximum(begins[loads], np.concatenate([[0], ends[loads][:-1]]))
    times = (
        (int(begin), int(end - begin), int(pc))
        for pc, begin, end in zip(timing.pcs, begins, ends, strict=True)
        if program.instructions[pc].mnemonic not in _NO_QUEUE
    )
    issued: Iterator[Issued] = issue(program, parameter_words(program, parameters))
    return [Timed(item, begin, cycles, names[owner[pc]]) for item, (begin, cycles, pc) in zip(issued, times, strict=False)]


def perfetto_text(program: Program, timed: list[Timed]) -> str:
    """Return a trace in the JSON that ui.perfetto.dev opens: one track a queue, one microsecond a cycle; slices carry op and instruction."""
    tracks = [{"ph": "M", "pid": 0, "tid": int(q), "name": "thread_name", "args": {"name": q.name.lower()}} for q in Queue]
    slices = [
        {
            "ph": "X",
            "pid": 0,
            "tid": int(t.item.queue),
            "ts": t.begin,
            "dur": t.cycles,
            "name": t.item.mnemonic,
            "args": {"op": t.op, "pc": t.item.pc},
        }
        for t in timed
    ]
    whole = {"traceEvents": [*tracks, *slices], "otherData": {"program": program.name, "digest": program.digest, "fidelity": "cycle"}}
    return json.dumps(whole, separators=(",", ":"))
