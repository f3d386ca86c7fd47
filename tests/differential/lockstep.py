"""The RTL in lock step with the machine: every value that a word of a buffer takes, in order, and every start of an instruction.

The machine executes in program order; accesses that conflict are ordered by semaphores, so that each word sees its writes in that order in the RTL
too, whatever the queues do. Values are compared as they change: a write of what stands there already is no event. Of a `gemm` every partial sum counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fabless.core.errors import FablessError
from fabless.number.dot import gemm
from fabless.program.isa import Queue, instruction
from fabless.program.program import Program
from fabless.program.verify import verify
from fabless.rtl.bench.run import LOG, Simulation
from fabless.sim.cycles import time
from fabless.sim.machine import State, interpret, launch

Place = tuple  # buffer, then row or lane, word, half: what is written at once


@dataclass(frozen=True)
class Job:
    """A program with memory and parameters, and the memory model it runs with."""

    program: Program
    memory: np.ndarray
    words: np.ndarray
    model: object


def codes(state: State) -> dict[str, np.ndarray]:
    """Return the buffers as codes, by place: weights and activations `[..., half, 16]` uint8, the others uint32."""
    t = state.tile
    return {
        "weights": state.weights.view(np.uint8).reshape(t.weight_words, t.rows, 2, 16),
        "weight_scales": state.weight_scales.view(np.uint32),
        "activations": state.activations.view(np.uint8).reshape(t.activation_words, 2, 16),
        "activation_scales": state.activation_scales.view(np.uint32),
        "accumulators": state.accumulators.view(np.uint32).reshape(-1, t.rows),
        "vector": state.vector.view(np.uint32),
    }


class Machine:
    """Run a launch on the machine and keep what each place takes: (value, number of the instruction, its place and name in the program)."""

    def __init__(self, job: Job):
        self.state = launch(job.program, job.memory.copy())
        self.state.parameters[:] = job.words
        self.taken: dict[Place, list] = {}
        self.before = {name: part.copy() for name, part in codes(self.state).items()}
        self.executed = 0
        messages: list = []
        for _ in interpret(job.program, self.state, messages, messages, observe=self.observe):
            raise FablessError("a recv waits for what this tile never sends")

    def observe(self, item, state: State) -> None:
        self.executed += 1
        by = self.executed, f"instruction {item.pc} ({item.mnemonic})"
        if item.mnemonic == "gemm":
            self.partial_sums(item, state, by)
        for name, part in codes(state).items():
            old = self.before[name]
            changed = (part != old).any(axis=-1) if name in {"weights", "activations"} else part != old
            for at in np.argwhere(changed):
                value = part[tuple(at)]
                self.take((name, *map(int, at)), value.tobytes() if value.ndim else int(value), by)
            old[changed] = part[changed]

    def take(self, place: Place, value, by) -> None:
        values = self.taken.setdefault(place, [])
        if value != (values[-1][0] if values else initial(place)):
            values.append((value, *by))

    def partial_sums(self, item, state: State, by) -> None:
        m, n, k, rows = item["m"], item["n"], item["k"], state.tile.rows
        w, a = item["w"], item["a"] + np.arange(m) * item["a_stride"]
        word = item["c"] + np.arange(m)[:, None] * item["c_stride"] + np.arange(n)
        acc = np.zeros((m, n * rows), np.float32) if item["clear"] else self.before["accumulators"][word].view(np.float32).reshape(m, -1)
        for step in range(k):
            at = a + step // (1 + item["split"])
            these = slice(w + step * n, w + step * n + n)
            scales = state.weight_scales[these].reshape(1, -1)
            acc = gemm(
                state.weights[these].reshape(1, n * rows, 32), np.ones_like(scales) if item["unit"] else scales,
                state.activations[at][:, None], state.activation_scales[at][:, None], acc,
            )  # fmt: skip
            for i, j in np.ndindex(m, n):
                for row in range(rows):
                    self.take(("accumulators", int(word[i, j]), row), int(acc[i, j * rows + row].view(np.uint32)), by)


def initial(place: Place):
    return bytes(16) if place[0] in {"weights", "activations"} else 0


def taken_by_rtl(simulation: Simulation, tile) -> dict[Place, list]:
    """Return what each place takes in the RTL, from the logs of its memories."""
    taken: dict[Place, list] = {}

    def take(place: Place, value) -> None:
        values = taken.setdefault(place, [])
        if value != (values[-1] if values else initial(place)):
            values.append(value)

    def halves(memory: str, name: str, *row: int) -> None:
        for enables, address, data in simulation.written(0, memory):
            for half in range(2):
                if enables >> half & 1:
                    take((name, address, *row, half), (data >> 128 * half & (1 << 128) - 1).to_bytes(16, "little"))

    for row in range(tile.rows):
        halves(f"mxu.row{row}.weights", "weights", row)
        for _, address, data in simulation.written(0, f"mxu.row{row}.weight_scales"):
            take(("weight_scales", address, row), data << 13)
        for _, address, data in simulation.written(0, f"mxu.row{row}.accumulators"):
            take(("accumulators", address, row), data)
    halves("activations", "activations")
    for _, address, data in simulation.written(0, "activation_scales"):
        take(("activation_scales", address), data << 16)
    for lane in range(tile.vector_lanes):
        for _, address, data in simulation.written(0, f"vectors{lane}"):
            take(("vector", address * tile.vector_lanes + lane), data)
    return taken


def parting(machine: dict[Place, list], rtl: dict[Place, list]) -> str:
    """Return where the two part first, in the machine's order, by name; nothing if nowhere."""
    found = []
    for place in sorted(machine.keys() | rtl.keys()):
        want, got = machine.get(place, []), rtl.get(place, [])
        if [value for value, *_ in want] == got:
            continue
        i = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a[0] != b), min(len(want), len(got)))
        order, by = (want[i][1], want[i][2]) if i < len(want) else (1 << 60, "no instruction")
        name = f"{place[0]}{list(place[1:])}"
        shown = [_shown(values[i]) if i < len(values) else "nothing" for values in ([v for v, *_ in want], got)]
        found.append((order, f"{name} takes {shown[1]} as its value {i}, {shown[0]} in the machine from {by}"))
    return min(found)[1] if found else ""


def _shown(value) -> str:
    return value.hex() if isinstance(value, bytes) else f"0x{value:08x}"


def starts_parting(program: Program, timing, starts: np.ndarray) -> str:
    """Return the first start of a queue that is not in the simulator's cycle; nothing if there is none."""
    queues = np.array([int(i.queue) for i in program.instructions])[timing.pcs]
    for queue in (Queue.LOAD, Queue.STORE, Queue.MXU, Queue.VPU, Queue.NET):
        seen = starts[(starts[:, 1] >> np.uint64(queue)) & np.uint64(1) == 1, 0].astype(np.int64)
        want, pcs = timing.starts[queues == queue], timing.pcs[queues == queue]
        for i in range(max(len(seen), len(want))):
            if i >= len(seen) or i >= len(want) or seen[i] != want[i]:
                a, b = (str(x[i]) if i < len(x) else "never" for x in (seen, want))
                pc = f"instruction {pcs[i]}" if i < len(want) else "no instruction"
                return f"{queue.name}: start {i} in cycle {a}, {b} in the simulator ({pc})"
    return ""


def run(job: Job, *, executed: Program | None = None, executable=None, limit: int = 10_000_000) -> str:
    """Return where RTL and machine part first, by name, or where an instruction starts in another cycle; nothing if they agree in all.

    `executed`: what the RTL runs in place of the program, `executable`: another simulator, so that tests plant faults.
    """
    program = job.program
    options = {"memory_model": job.model.numbers, "flags": LOG, "executable": executable}
    with Simulation([executed or program], [len(job.memory)], **options) as simulation:
        simulation.memories[0][: len(job.memory)] = job.memory
        simulation.trace()
        try:
            cycles = simulation.launch([job.words], limit=limit)
        except FablessError as error:
            return str(error)
        (left,) = simulation.finish(cycles)
        rtl = taken_by_rtl(simulation, program.tile)
    machine = Machine(job)
    if where := parting(machine.taken, rtl):
        return where
    if len(at := np.flatnonzero(machine.state.memory != left.memory)):
        return f"memory[{at[0]}] is {left.memory[at[0]]}, {machine.state.memory[at[0]]} in the machine"
    timing = time(program, None, job.words, job.model, keep=1 << 22)
    if where := starts_parting(program, timing, left.starts):
        return where
    return "" if timing.cycles == cycles[0] else f"{cycles[0]} cycles, {timing.cycles} in the simulator"


def shrunk(job: Job, fails) -> Job:
    """Return the job with as few instructions as it still fails with: halves, quarters and at last single ones are left out where the rest verifies."""
    size = len(job.program) // 2
    while size:
        at = 0
        while at < len(job.program):
            smaller = _without(job, at, size)
            if smaller and fails(smaller):
                job = smaller
            else:
                at += size
        size //= 2
    return job


def _without(job: Job, first: int, count: int) -> Job | None:
    """Return the job without the instructions of units in a range, or None where the rest is no legal program. Order and loops stay."""
    items = list(job.program.instructions)
    kept = [i for n, i in enumerate(items) if not first <= n < first + count or i.mnemonic in {"sync", "loop", "end", "halt"}]
    if len(kept) == len(items):
        return None
    open_loops: list[int] = []
    for n, item in enumerate(kept):
        if item.mnemonic == "loop":
            open_loops.append(n)
        elif item.mnemonic == "end":
            begin = open_loops.pop()
            kept[begin] = instruction("loop", count=kept[begin]["count"], count_reg=kept[begin]["count_reg"], length=n - begin - 1)
    p = job.program
    program = Program.of(kept, p.tile, buffers=p.buffers, parameters=p.parameters, name=p.name)
    smaller = replace(job, program=program)
    try:
        verify(program)
        Machine(smaller)
    except FablessError:
        return None
    return smaller
