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

#: latency, beats, cycles, refresh period, refresh, banks, bytes of a row, activate, precharge, row cycles: see `sim.dram.MemoryModel.numbers`.
Numbers = tuple[int, ...]
IDEAL: Numbers = (1, 1, 1, 0, 0, 0, 256, 0, 0, 0)
#: Verilator's flags of a build that counts lines, branches and toggles; a database of each is `Simulation.coverage`'s.
COVERAGE = ("--coverage-line", "--coverage-toggle")
#: Verilator's flag of a build whose memories log what is written to them, in order: `Simulation.written` reads it.
LOG = ("-DFL_LOG",)


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
    """Keep a ring of simulated tiles running, one program a tile: write memories through `memories` (shared maps), launch, read results.

    A context manager. `link_latency_cycles`: from a tile to the next, for what is sent and for the room that comes back.
    """

    def __init__(
        self, programs: Sequence[Program], memory_bytes: Sequence[int], *, memory_model: Numbers = IDEAL, link_latency_cycles: int = 1,
        optimise: str = QUICK, executable: Path | None = None, arguments: Sequence[str] = (),
        flags: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """Start the tiles of `programs`; `executable` in place of the one that is built for them, with more arguments."""
        if link_latency_cycles < 1:
            raise InputError(f"link latency of {link_latency_cycles} cycles: a link is a register at least; give 1 or more")
        self.programs = tuple(programs)
        self._check()
        self.directory = tempfile.TemporaryDirectory(prefix="fabless-run-")
        self.path = Path(self.directory.name)
        files = [self.path / f"memory{i}" for i in range(len(self.programs))]
        for file, size in zip(files, memory_bytes, strict=True):
            with file.open("wb") as f:
                f.truncate(max(1, size))
        self.memories: list[NDArray[np.uint8]] = [np.memmap(file, np.uint8, "r+") for file in files]
        self.process = subprocess.Popen(
            [executable or build(self.programs[0].tile, optimise=optimise, flags=flags), *files, f"+dump={self.path}", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.load(programs)
        self._say_each(lambda i: "memory " + " ".join(map(str, memory_model)))
        self._say(f"link {link_latency_cycles}")
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

    def _say_each(self, line: Callable[[int], str]) -> None:
        for i in range(len(self.programs)):
            self._say(f"tile {i}")
            self._say(line(i))

    def _check(self) -> None:
        for program in self.programs:
            if program.tile != self.programs[0].tile:
                raise UnsupportedError(
                    f"program '{program.name}' was made for another tile; compile it for tile {self.programs[0].tile.digest}"
                )
            check(program)

    def load(self, programs: Sequence[Program]) -> None:
        """Put other programs of the same tile into program memories."""
        if len(programs) != len(self.programs):
            raise InputError(f"a ring of {len(self.programs)} tiles runs as many programs, not {len(programs)}")
        if programs[0].tile != self.programs[0].tile:
            raise UnsupportedError(
                f"program '{programs[0].name}' was made for another tile; compile it for tile {self.programs[0].tile.digest}"
            )
        self.programs = tuple(programs)
        self._check()
        for i, program in enumerate(programs):
            program.words.tofile(self.path / f"program{i}")
        self._say_each(lambda i: f"program {self.path / f'program{i}'}")
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
        self._say_each(lambda i: f"trace {self.path / f'trace{i}'}")

    def coverage(self, path: Path) -> None:
        """Write what was covered so far, as Verilator's database; only in a build with `COVERAGE` among its flags."""
        self._say(f"coverage {path}")
        self._say("sync")
        self._answer("coverage")

    def launch(
        self, parameters: Sequence[NDArray[np.int32]], *, limit: int = 1 << 40, progress: Callable[[int], None] | None = None
    ) -> tuple[int, ...]:
        """Run the programs once and return each tile's cycles; `progress` hears now and then how many are over.

        Raises `FablessError` if one has not halted after `limit`.
        """
        for i, words in enumerate(parameters):
            np.ascontiguousarray(words, np.int32).tofile(self.path / f"parameters{i}")
        self._say_each(lambda i: f"parameters {self.path / f'parameters{i}'}")
        self._say(f"run {limit}")
        while (answer := self._answer("run"))[0] == "at":
            if progress:
                progress(int(answer[1]))
        self.seconds += float(answer[1])
        if answer[0] != "done":
            raise FablessError(
                f"program '{self.programs[0].name}' has not halted after {limit} cycles; raise the limit, or look for a semaphore nobody signals, "
                "or a recv that no send matches"
            )
        return tuple(int(n) for n in answer[2:])

    def counters(self, tile: int = 0) -> dict[tuple[str, str], int]:
        """Return a tile's counters of the last launch, by (event, queue); see `rtl.counters`."""
        from fabless.program.isa import Queue
        from fabless.rtl.counters import EVENTS, address

        self._say(f"tile {tile}")
        self._say("counters")
        values = [int(n) for n in self._answer("counters")[1:]]
        return {(event, queue.name.lower()): values[address(event, queue)] for event in EVENTS for queue in Queue}

    def finish(self, cycles: Sequence[int] = ()) -> tuple[RtlState, ...]:
        """End the simulation and return what it left, tile by tile."""
        self._say("quit")
        if self.process.wait():
            raise FablessError(f"the simulation ended with code {self.process.returncode}")
        return tuple(self._left(i, cycles) for i in range(len(self.programs)))

    def written(self, tile: int, memory: str) -> list[tuple[int, int, int]]:
        """Return every write to a memory of a tile, such as "mxu.row0.weights", as (enables, address, data); after `finish`, in a build with `LOG`."""
        rows = (line.split() for line in (self.path / f"tile{tile}.fl_tile.{memory}.log").read_text().splitlines())
        return [(int(enables, 16), int(address, 16), int(data, 16)) for _, enables, address, data in rows]

    def _left(self, i: int, cycles: Sequence[int]) -> RtlState:
        t = self.programs[i].tile
        rows = [f"mxu.row{r}" for r in range(t.rows)]
        trace = self.path / f"trace{i}"

        def ram(name: str, bits: int) -> NDArray[np.uint8]:
            return _words((self.path / f"tile{i}.fl_tile.{name}.hex").read_text(), bits)

        return RtlState(
            memory=np.array(self.memories[i]),
            weights=np.stack([ram(f"{r}.weights", 256).view(np.int8) for r in rows], axis=1),
            weight_scales=np.stack([ram(f"{r}.weight_scales", 19).view(np.uint32)[:, 0] << np.uint32(13) for r in rows], axis=1),
            activations=ram("activations", 256).view(np.int8),
            activation_scales=ram("activation_scales", 16).view(np.uint32)[:, 0] << np.uint32(16),
            accumulators=np.stack([ram(f"{r}.accumulators", 32).view(np.uint32)[:, 0] for r in rows], axis=1).reshape(-1),
            vector=np.stack([ram(f"vectors{lane}", 32).view(np.uint32)[:, 0] for lane in range(t.vector_lanes)], axis=1).reshape(-1),
            cycles=tuple(cycles[i : i + 1]), seconds=self.seconds,
            starts=np.fromfile(trace, np.uint64).reshape(-1, 2) if trace.exists() else np.zeros((0, 2), np.uint64),
        )  # fmt: skip


def _words(text: str, bits: int) -> NDArray[np.uint8]:
    """Return the words of a memory as little-endian bytes, 4 at least."""
    digits = max(8, -(-bits // 4))
    words = "".join(line.strip().rjust(digits, "0") for line in text.split() if not line.startswith(("//", "@")))
    return np.frombuffer(bytes.fromhex(words), np.uint8).reshape(-1, digits // 2)[:, ::-1].copy()


def check(program: Program) -> None:
    """Return if the tile can hold the program; raise `InputError` if not."""
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
    """Run a program once in Verilator, its link leading back to itself, and return what it left, and its cycles. `memory` `[bytes]` uint8 is not changed.

    Raises `UnsupportedError` for a program of another tile, `MissingToolError` without the tools.
    """
    if tile is not None and tile != program.tile:
        raise UnsupportedError(
            f"program '{program.name}' was made for tile {program.tile.digest}, this one is {tile.digest}; compile it for this chip"
        )
    state = run_ring_rtl([(program, memory, parameters)], memory_model=memory_model, limit=limit, trace=trace)[0]
    return state, state.cycles[0]


def run_ring_rtl(
    tiles: Sequence[tuple[Program, NDArray[np.uint8], NDArray[np.int32]]],
    *,
    memory_model: Numbers = IDEAL,
    link_latency_cycles: int = 1,
    limit: int = 1 << 32,
    trace: bool = False,
) -> tuple[RtlState, ...]:
    """Run (program, memory, parameters) of each tile of a ring once in Verilator and return what each left, its cycles among it."""
    programs, memories, parameters = zip(*tiles, strict=True)
    with Simulation(programs, [len(m) for m in memories], memory_model=memory_model, link_latency_cycles=link_latency_cycles) as simulation:
        for seen, memory in zip(simulation.memories, memories, strict=True):
            seen[: len(memory)] = memory
        if trace:
            simulation.trace()
        return simulation.finish(simulation.launch(parameters, limit=limit))
