"""A session whose launches run on the RTL in Verilator: the same host, programs and memory, the text is what the gates wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import FablessError, UnsupportedError
from fabless.fleet.session import Session, open_session
from fabless.program.sequence import parameter_words
from fabless.rtl.bench.build import FAST, QUICK
from fabless.rtl.bench.run import Simulation
from fabless.sim.cycles import time
from fabless.sim.dram import IDEAL, MemoryModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from fabless.compiler.launch import Segment
    from fabless.compiler.partition import Shape
    from fabless.model.weights import Weights
    from fabless.program.tile import Tile


@dataclass
class RtlSession(Session):
    """Hold a session, the simulated tile, and the cycles of each launch: the RTL's and the cycle simulator's; a context manager.

    Every launch is held against the cycle simulator and, with `check`, against the machine's memory; a difference raises `FablessError`.
    `progress` hears of a long launch: which, its cycles so far and in all.
    """

    simulation: Simulation | None = None
    memory_model: MemoryModel = IDEAL
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
        program = self.compiled.program(shape)
        parameters = self.compiled.parameters(shape, segments, logits=logits)
        words = parameter_words(program, parameters)
        layout = self.compiled.layouts[0]
        if self.simulation is None:
            self.simulation = Simulation(
                program, layout.memory_bytes, memory_model=self.memory_model.numbers, optimise=_optimise(program.tile)
            )
            self.simulation.memory[:] = self.memories[0]
            if not self.check:
                self.memories[0] = self.simulation.memory
        if self.simulation.program is not program:
            self.simulation.load(program)
        expected = time(program, None, words, self.memory_model).cycles
        number, tell = len(self.cycles) + 1, self.progress
        self.cycles.append(self.simulation.launch(words, progress=(lambda at: tell(number, at, expected)) if tell else None))
        if expected != self.cycles[-1]:
            raise FablessError(
                f"launch {len(self.cycles)}: the RTL took {self.cycles[-1]} cycles, the cycle simulator says {expected}; report this"
            )
        if self.check:
            super().step(shape, segments, logits=logits)
            different = np.flatnonzero(self.memories[0] != self.simulation.memory)
            if len(different):
                raise FablessError(
                    f"launch {len(self.cycles)}: the RTL and the machine differ in {len(different)} bytes, first at {different[0]}; report this"
                )
        if not logits:
            return np.zeros((0, self.decoder.n_vocab), np.float32)
        buffer = next(b for b in layout.buffers if b.name == "logits")
        whole: NDArray[np.float32] = self.simulation.memory[buffer.address : buffer.end].view(np.float32).reshape(buffer.shape)
        return np.array(whole[: len(segments), : self.decoder.n_vocab])


def open_rtl_session(
    weights: Weights, tile: Tile, *, memory_model: MemoryModel = IDEAL, check: bool = False, context_tokens: int | None = None,
    prompt_tokens: int = -1, chunk: int | None = None, format: str = "int8_block32", head_format: str | None = None,
    say: Callable[[str], None] | None = None, progress: Callable[[int, int, int], None] | None = None,
) -> RtlSession:  # fmt: skip
    """Compile a model for one tile and put its weights into the memory of a simulated one; arguments as of `open_session` and `RtlSession`."""
    from fabless.rtl.bench.build import build, require_tools

    require_tools()
    opened = open_session(
        weights,
        tile,
        context_tokens=context_tokens,
        prompt_tokens=prompt_tokens,
        chunk=chunk,
        format=format,
        head_format=head_format,
        say=say,
    )
    if opened.compiled.n_tiles != 1:
        raise UnsupportedError("the RTL is of one tile; run with --tiles 1")
    if say is not None:
        say(f"building the simulator of a tile of {tile.rows} rows, once")
    build(tile, optimise=_optimise(tile))
    return RtlSession(opened.compiled, opened.memories, warming=opened.warming, memory_model=memory_model, check=check, progress=progress)


def _optimise(tile: Tile) -> str:
    return FAST if tile.rows > 4 else QUICK
