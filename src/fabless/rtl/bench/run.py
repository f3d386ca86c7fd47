"""Run programs on the simulated tile: memory and parameters in, memory, buffers and cycles out."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import FablessError, InputError, UnsupportedError
from fabless.rtl.bench.build import QUICK, build

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from fabless.program.program import Program
    from fabless.program.tile import Tile

#: latency, beats, cycles, refresh period, refresh: see `sim.dram.MemoryModel.numbers`.
Numbers = tuple[int, int, int, int, int]
IDEAL: Numbers = (1, 1, 1, 0, 0)
#: Verilator's flags of a build that counts lines, branches and toggles; a database of each is `Simulation.coverage`'s.
COVERAGE = ("--coverage-line", "--coverage-toggle")


@dataclass(frozen=True)
class RtlState:
    """Hold what a run left, shaped as `sim.machine.State` holds it: float arrays as their binary32 codes (uint32)."""

    memory: NDArray[np.uint8]
    weights: NDArray[np.int8]
    weight_scales: NDArray[np.uint32]
    activations: NDArray[np.int8]
    activation_scales: NDArray[np.uint32]
    accumulators: NDArray[np.uint32]
    vector: NDArray[np.uint32]
    cycles: tuple[int, ...] = ()
    seconds: float = 0.0
    starts: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((0, 2), np.uint64))

    def parts(self) -> dict[str, np.ndarray]:
        """Return every array by the name that `sim.machine.State.parts` gives it."""
        names = ("memory", "weights", "weight_scales", "activations", "activation_scales", "accumulators", "vector")
        return {n: getattr(self, n) for n in names}


class Simulation:
    """Keep one simulated tile running: write its memory through `memory` (a shared map), launch, read results; a context manager."""

    def __init__(self, program: Program, memory_bytes: int, *, memory_model: Numbers = IDEAL, optimise: str = QUICK, flags: tuple[str, ...] = ()) -> None:
        check(program)
        self.program = program
        self.directory = tempfile.TemporaryDirectory(prefix="fabless-run-")
        self.path = Path(self.directory.name)
        with (self.path / "memory").open("wb") as f:
            f.truncate(max(1, memory_bytes))
        self.memory: NDArray[np.uint8] = np.memmap(self.path / "memory", np.uint8, "r+")
        self.process = subprocess.Popen(
            [build(program.tile, optimise=optimise, flags=flags), self.path / "memory", f"+dump={self.path}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, bufsize=1,
        )  # fmt: skip
        self.load(program)
        self._say("memory " + " ".join(map(str, memory_model)))
        self.seconds = 0.0

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        self.directory.cleanup()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def load(self, program: Program) -> None:
        """Put another program of the same tile into program memory."""
        if program.tile != self.program.tile:
            raise UnsupportedError(f"program '{program.name}' was made for another tile; compile it for tile {self.program.tile.digest}")
        check(program)
        self.program = program
        program.words.tofile(self.path / "program")
        self._say(f"program {self.path / 'program'}")
        self._say("sync")
        self._answer("program")

    def _answer(self, of: str) -> list[str]:
        """Return the words of the next answer; a simulation that ended instead is an error that says so."""
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        if not words:
            raise FablessError(f"the simulation ended with code {self.process.wait()} at '{of}'; build it again")
        return words

    def trace(self) -> None:
        """Keep from now on in which cycle each queue starts an instruction."""
        self._say(f"trace {self.path / 'trace'}")

    def coverage(self, path: Path) -> None:
        """Write what was covered so far, as Verilator's database; only in a build with `COVERAGE` among its flags."""
        self._say(f"coverage {path}")
        self._say("sync")
        self._answer("coverage")

    def launch(self, parameters: NDArray[np.int32], *, limit: int = 1 << 40, progress: Callable[[int], None] | None = None) -> int:
        """Run the program once and return its cycles; `progress` hears now and then how many are over.

        Raises `FablessError` if it has not halted after `limit`.
        """
        np.ascontiguousarray(parameters, np.int32).tofile(self.path / "parameters")
        self._say(f"parameters {self.path / 'parameters'}")
        self._say(f"run {limit}")
        while (answer := self._answer("run"))[0] == "at":
            if progress:
                progress(int(answer[1]))
        self.seconds += float(answer[2])
        if answer[0] != "done":
            raise FablessError(
                f"program '{self.program.name}' has not halted after {limit} cycles; raise the limit, or look for a semaphore nobody signals"
            )
        return int(answer[1])

    def finish(self, cycles: Sequence[int] = ()) -> RtlState:
        """End the simulation and return what it left."""
        self._say("quit")
        if self.process.wait():
            raise FablessError(f"the simulation ended with code {self.process.returncode}")
        t = self.program.tile
        rows = [f"mxu.row{i}" for i in range(t.rows)]
        trace = self.path / "trace"
        return RtlState(
            memory=np.array(self.memory),
            weights=np.stack([self._ram(f"{r}.weights", 256).view(np.int8) for r in rows], axis=1),
            weight_scales=np.stack([self._ram(f"{r}.weight_scales", 19).view(np.uint32)[:, 0] << np.uint32(13) for r in rows], axis=1),
            activations=self._ram("activations", 256).view(np.int8),
            activation_scales=self._ram("activation_scales", 16).view(np.uint32)[:, 0] << np.uint32(16),
            accumulators=np.stack([self._ram(f"{r}.accumulators", 32).view(np.uint32)[:, 0] for r in rows], axis=1).reshape(-1),
            vector=np.stack([self._ram(f"vectors{i}", 32).view(np.uint32)[:, 0] for i in range(t.vector_lanes)], axis=1).reshape(-1),
            cycles=tuple(cycles), seconds=self.seconds, starts=np.fromfile(trace, np.uint64).reshape(-1, 2) if trace.exists() else np.zeros((0, 2), np.uint64),
        )  # fmt: skip

    def _ram(self, name: str, bits: int) -> NDArray[np.uint8]:
        """Return the words of a memory as little-endian bytes, 4 at least."""
        text = (self.path / f"TOP.fl_tile.{name}.hex").read_text()
        digits = max(8, -(-bits // 4))
        words = "".join(line.strip().rjust(digits, "0") for line in text.split() if not line.startswith(("//", "@")))
        return np.frombuffer(bytes.fromhex(words), np.uint8).reshape(-1, digits // 2)[:, ::-1].copy()


def check(program: Program) -> None:
    """Return if the tile of a program can be built and every instruction is; raise `UnsupportedError` if not."""
    if any(i.mnemonic in {"send", "recv"} for i in program.instructions):
        raise UnsupportedError(f"program '{program.name}' sends between tiles, the RTL is of one tile; compile it for a chip with one core")
    if len(program) > program.tile.instruction_words:
        raise InputError(
            f"program '{program.name}' has {len(program)} instructions, the tile holds {program.tile.instruction_words}; raise instruction_words"
        )


def run_rtl(
    program: Program,
    memory: NDArray[np.uint8],
    parameters: NDArray[np.int32],
    tile: Tile | None = None,
    *,
    memory_model: Numbers = IDEAL,
    limit: int = 1 << 32,
    trace: bool = False,
) -> tuple[RtlState, int]:
    """Run a program once in Verilator and return what it left, and its cycles. `memory` `[bytes]` uint8 is not changed.

    Raises `UnsupportedError` for a program of another tile, `MissingToolError` without the tools.
    """
    if tile is not None and tile != program.tile:
        raise UnsupportedError(
            f"program '{program.name}' was made for tile {program.tile.digest}, this one is {tile.digest}; compile it for this chip"
        )
    with Simulation(program, len(memory), memory_model=memory_model) as simulation:
        simulation.memory[: len(memory)] = memory
        if trace:
            simulation.trace()
        cycles = simulation.launch(parameters, limit=limit)
        return simulation.finish([cycles]), cycles
