"""A session whose launches run on the RTL in Verilator: the same host, programs and memory, the text is what the gates wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import FablessError
from fabless.fleet.session import Session, open_session
from fabless.program.sequence import parameter_words
from fabless.rtl.bench.build import FAST, QUICK
from fabless.rtl.bench.run import Simulation
from fabless.sim.cycles import time_ring
from fabless.sim.dram import IDEAL, MemoryModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from fabless.compiler.launch import Segment
    from fabless.compiler.partition import Shape
    from fabless.model.weights import Weights
    from fabless.program.program import Program
    from fabless.program.tile import Tile


@dataclass
class RtlSession(Session):
    """Hold a session, the ring of simulated tiles, and the cycles of each launch: of the tile that takes longest; a context manager.

    Every launch is held against the cycle simulator, tile by tile, and, with `check`, against the machine's memories; a difference raises
    `FablessError`. `progress` hears of a long launch: which, its cycles so far and in all.
    """

    simulation: Simulation | None = None
    memory_model: MemoryModel = IDEAL
    link_latency_cycles: int = 1
    check: bool = False
    cycles: list[int] = field(default_factory=list)
    progress: Callable[[int, int, int], None] | None = None

    def __enter__(self) -> RtlSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.simulation is not None:
            self.simulation.__exit__(kind, value, trace)

    @property
    def seconds(self) -> float:
        """Return the seconds of processor time that the simulation took."""
        return self.simulation.seconds if self.simulation is not None else 0.0

    def step(self, shape: Shape, segments: Sequence[Segment], *, logits: bool = True) -> NDArray[np.float32]:
        """Run one launch on the RTL; returns logits `[segments, V]` as `Session.step` does."""
        programs = self.compiled.programs[shape]
        parameters = self.compiled.parameters(shape, segments, logits=logits)
        words = [parameter_words(program, parameters) for program in programs]
        simulation = self._simulation(programs)
        timings = time_ring(programs, words, self.memory_model, link_latency_cycles=self.link_latency_cycles)
        expected = tuple(t.cycles for t in timings)
        number, tell = len(self.cycles) + 1, self.progress
        cycles = simulation.launch(words, progress=(lambda at: tell(number, at, max(expected))) if tell else None)
        self.cycles.append(max(cycles))
        if expected != cycles:
            took, says = (", ".join(map(str, n)) for n in (cycles, expected))
            raise FablessError(f"launch {number}: the RTL took {took} cycles, the cycle simulator says {says}; report this")
        if self.check:
            super().step(shape, segments, logits=logits)
            for i, (memory, seen) in enumerate(zip(self.memories, simulation.memories, strict=True)):
                different = np.flatnonzero(memory != seen)
                if len(different):
                    raise FablessError(
                        f"launch {number}: the RTL and the machine differ in {len(different)} bytes of tile {i}, first at {different[0]}; report this"
                    )
        if not logits:
            return np.zeros((0, self.decoder.n_vocab), np.float32)
        return self.logits(simulation.memories, len(segments))

    def _simulation(self, programs: tuple[Program, ...]) -> Simulation:
        """Return the running simulation with these programs loaded; the first time, put the memories into it."""
        if self.simulation is None:
            sizes = [layout.memory_bytes for layout in self.compiled.layouts]
            self.simulation = Simulation(
                programs, sizes, memory_model=self.memory_model.numbers, link_latency_cycles=self.link_latency_cycles,
                optimise=_optimise(programs[0].tile),
            )  # fmt: skip
            for i, seen in enumerate(self.simulation.memories):
                seen[:] = self.memories[i]
                if not self.check:
                    self.memories[i] = seen
        if self.simulation.programs is not programs:
            self.simulation.load(programs)
        return self.simulation


def open_rtl_session(
    weights: Weights, tile: Tile, *, n_tiles: int = 1, memory_model: MemoryModel = IDEAL, link_latency_cycles: int = 1, check: bool = False,
    partition: str = "tensor", context_tokens: int | None = None, prompt_tokens: int = -1, chunk: int | None = None,
    format: str = "int8_block32", head_format: str | None = None,
    say: Callable[[str], None] | None = None, progress: Callable[[int, int, int], None] | None = None,
) -> RtlSession:  # fmt: skip
    """Compile a model for a ring of tiles and put its weights into the memories of simulated ones; arguments as of `open_session` and `RtlSession`."""
    from fabless.rtl.bench.build import build, require_tools

    require_tools()
    opened = open_session(
        weights,
        tile,
        n_tiles=n_tiles,
        partition=partition,
        context_tokens=context_tokens,
        prompt_tokens=prompt_tokens,
        chunk=chunk,
        format=format,
        head_format=head_format,
        say=say,
    )
    if say is not None:
        say(f"building the simulator of a tile of {tile.rows} rows, once")
    build(tile, optimise=_optimise(tile))
    return RtlSession(
        opened.compiled, opened.memories, warming=opened.warming, memory_model=memory_model,
        link_latency_cycles=link_latency_cycles, check=check, progress=progress,
    )  # fmt: skip


def _optimise(tile: Tile) -> str:
    return FAST if tile.rows > 4 else QUICK
