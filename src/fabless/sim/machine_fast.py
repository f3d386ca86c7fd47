"""The machine compiled: whole programs interpreted in one native loop, leaving the same state digest as `sim.machine`.

Why it is exact. Matrix products come from `number.kernels`, whose docstring argues its case. Vector operations are single binary32 instructions
without fast-math, each followed by flushing; functions are the integer definitions of `number.functions` with the same tables; sums follow the
stated tree. NaN codes are made canonical whenever a result is written; inside a chain a NaN stays one.

Why it is fast. Weights are not copied: a `load` of int8 weights notes where in memory each word lives, `gemm` multiplies from there, and a
`store` that would change such bytes first copies the words that still refer to them. So buffers hold what they held when they were loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.errors import IllegalProgramError
from fabless.number import functions
from fabless.program.isa import ISA
from fabless.sim import machine_words
from fabless.sim.machine_kernels import run
from fabless.sim.machine_transfer import settle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fabless.program.program import Program
    from fabless.sim.machine import State

_ERRORS = {
    machine_words.BAD_PC: "runs past the end of the program; end it with halt",
    machine_words.BAD_LOOP: "loops nest too deep, or an end has no loop",
    machine_words.BAD_PARAMETER: "reads outside parameter memory",
    machine_words.BAD_WAIT: "waits for a semaphore that nothing before it in program order signals; signal it earlier",
    machine_words.BAD_SIGNAL: "signals a semaphore beyond its maximum; let its consumer wait more often",
    machine_words.BAD_MEMORY: "touches bytes outside memory; move or shorten the transfer",
    machine_words.BAD_WEIGHTS: "touches words outside the weight buffer; move or shorten it",
    machine_words.BAD_ACTIVATIONS: "touches words outside the activation buffer; move or shorten it",
    machine_words.BAD_ACCUMULATORS: "touches words outside the accumulators, or its rows overlap there; move or shorten it",
    machine_words.BAD_VECTOR: "touches elements outside the vector buffer; move or shorten it",
    machine_words.BAD_MESSAGE: "receives another space or count than the neighbour sent; pair send and recv alike",
    machine_words.BAD_PAIR: "rotates pairs, and its len is odd; make it even",
    machine_words.BAD_FORMAT: "names a format that its target cannot hold; see LOAD_FORMATS and STORE_FORMATS",
}

_COLUMNS = 1 + max(len(spec.fields) for spec in ISA)
_LINK_WORDS = 1 << 18


def decoded(program: Program) -> NDArray[np.int64]:
    """Return the program as a table `[n, columns]`: opcode, then the values of its fields in table order."""
    table = np.zeros((len(program), _COLUMNS), np.int64)
    for row, item in enumerate(program.instructions):
        table[row, 0] = item.spec.code
        table[row, 1 : 1 + len(item.values)] = item.values
    return table


def roms() -> tuple[NDArray[np.int64], ...]:
    """Return the nine table columns in the order that the kernels take."""
    return (*functions.exp2_rom(), *functions.rcp_rom(), *functions.rsqrt_rom())


class Runner:
    """Run one tile's program; `advance` returns when it has halted or waits for its neighbours.

    Keeps the decoded table, so that launching a program again costs no decoding: `Runner(program, state)` once, `restart()` a launch.
    """

    def __init__(self, program: Program, state: State, link_in: Link, link_out: Link) -> None:
        self.program, self.state = program, state
        self._table = decoded(program)
        self._control = np.zeros(4, np.int64)
        self._loops = np.zeros((4, 2), np.int64)
        self._registers = np.zeros(32, np.int64)
        self._where = np.full(program.tile.weight_words, -1, np.int64)
        self._scratch = np.zeros((2, 1 << 15), np.float32)
        self._ones = np.ones(256 * program.tile.rows, np.float32)
        self._link_in, self._link_out = link_in, link_out
        self._roms = roms()

    def restart(self) -> None:
        """Prepare for another launch on the same state."""
        self.settle()
        self._control[:] = 0
        self._registers[:] = 0

    def advance(self) -> int:
        """Execute until halt (0) or until the neighbours must act first (1); raises `IllegalProgramError` for an illegal access."""
        s = self.state
        before = int(self._control[2])
        status = int(
            run(
                self._control, self._loops, self._registers, self._table, s.parameters, s.memory, s.weights.reshape(-1), s.weight_scales,
                self._where, s.activations, s.activation_scales, s.accumulators, s.vector, s.semaphores, self._scratch, self._ones,
                self._link_in.words, self._link_in.ends, self._link_out.words, self._link_out.ends, *self._roms,
            )
        )  # fmt: skip
        s.retired += int(self._control[2]) - before
        if status < 0:
            pc = int(self._control[0])
            name = self.program.instructions[pc].mnemonic if 0 <= pc < len(self.program) else "none"
            raise IllegalProgramError(f"instruction {pc} ({name}): {_ERRORS[status]}")
        return status

    def settle(self) -> None:
        """Copy into the weight buffer every word that still refers to memory, so that the state's arrays show what the buffer holds."""
        settle(self.state.memory, self.state.weights.reshape(-1), self._where, self.program.tile.rows * 32, 0, len(self.state.memory))


class Link:
    """Hold what one tile has sent and the next has not yet received, as 32-bit words in a ring buffer."""

    def __init__(self) -> None:
        self.words: NDArray[np.int32] = np.zeros(_LINK_WORDS, np.int32)
        self.ends: NDArray[np.int64] = np.zeros(2, np.int64)


def run_ring_fast(tiles: Sequence[tuple[Program, State]]) -> None:
    """Run one program per tile until all have halted; the compiled twin of `machine.run_ring`."""
    links = [Link() for _ in tiles]
    runners = [Runner(program, state, links[i - 1], links[i]) for i, (program, state) in enumerate(tiles)]
    waiting = dict(enumerate(runners))
    while waiting:
        before = progress(runners)
        for i, runner in list(waiting.items()):
            if runner.advance() == 0:
                del waiting[i]
        if waiting and progress(runners) == before:
            raise IllegalProgramError(
                f"tiles {sorted(waiting)} wait for data that their neighbours never send; match every recv with a send"
            )
    for runner in runners:
        runner.settle()


def progress(runners: Sequence[Any]) -> int:
    """Return a number that grows whenever any tile executes an instruction."""
    return sum(runner.state.retired for runner in runners)


def warm() -> None:
    """Compile the native loop, or load it from numba's cache: seconds at first, to be spent in another process while weights load."""
    from dataclasses import replace

    from fabless.program.assembler import assemble
    from fabless.program.tile import TINY
    from fabless.sim.machine import execute

    execute(assemble("halt", tile=replace(TINY, memory_bytes=256)), fast=True)
