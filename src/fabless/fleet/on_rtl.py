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
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from fabless.chip.chip import Chip
    from fabless.compiler.launch import Segment
    from fabless.compiler.partition import Shape
    from fabless.model.weights import Weights
    from fabless.program.tile import Tile


@dataclass
class RtlSession(Session):
    """Hold a session, the simulated tile, and the cycles of each launch: the RTL's and the cycle simulator's; a context manager.

    Every launch is held against the cycle simulator and, with `check`, against the machine's memory; a difference raises `FablessError`.
    """

    simulation: Simulation | None = None
    memory_model: MemoryModel = IDEAL
    check: bool = False
    cycles: list[int] = field(default_factory=list)

    def __enter__(self) -> RtlSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.simulation is not None:
            self.simulation.__exit__(kind, value, trace)

    @property
    def seconds(self) -> float:
        """Return the host seconds that the simulation ran."""
        return self.simulation.seconds if self.simulation is not None else 0.0

    def step(self, shape: Shape, segments: Sequence[Segment], *, logits: bool = True) -> NDArray[np.float32]:
        """Run one launch on the RTL; returns logits `[segments, V]` as `Session.step` does."""
        program = self.compiled.program(shape)
        parameters = self.compiled.parameters(shape, segments, logits=logits)
        words = parameter_words(program, parameters)
        layout = self.compiled.layouts[0]
        if self.simulation is None:
            self.simulation = Simulation(
                [program], [layout.memory_bytes], memory_model=self.memory_model.numbers, optimise=FAST if program.tile.rows > 4 else QUICK
            )
            self.simulation.memories[0][:] = self.memories[0]
            if not self.check:
                self.memories[0] = self.simulation.memories[0]
        if self.simulation.programs[0] is not program:
            self.simulation.load([program])
        self.cycles.append(self.simulation.launch([words])[0])
        expected = time(program, None, words, self.memory_model).cycles
        if expected != self.cycles[-1]:
            raise FablessError(
                f"launch {len(self.cycles)}: the RTL took {self.cycles[-1]} cycles, the cycle simulator says {expected}; report this"
            )
        if self.check:
            super().step(shape, segments, logits=logits)
            different = np.flatnonzero(self.memories[0] != self.simulation.memories[0])
            if len(different):
                raise FablessError(
                    f"launch {len(self.cycles)}: the RTL and the machine differ in {len(different)} bytes, first at {different[0]}; report this"
                )
        if not logits:
            return np.zeros((0, self.decoder.n_vocab), np.float32)
        buffer = next(b for b in layout.buffers if b.name == "logits")
        whole: NDArray[np.float32] = self.simulation.memories[0][buffer.address : buffer.end].view(np.float32).reshape(buffer.shape)
        return np.array(whole[: len(segments), : self.decoder.n_vocab])


def open_rtl_session(
    weights: Weights, tile: Tile, *, memory_model: MemoryModel = IDEAL, check: bool = False, context_tokens: int | None = None,
    prompt_tokens: int = -1, chunk: int | None = None, format: str = "int8_block32",
) -> RtlSession:  # fmt: skip
    """Compile a model for one tile and put its weights into the memory of a simulated one; the same arguments as `open_session`."""
    from fabless.rtl.bench.build import require_tools

    require_tools()
    opened = open_session(weights, tile, context_tokens=context_tokens, prompt_tokens=prompt_tokens, chunk=chunk, format=format)
    if opened.compiled.n_tiles != 1:
        raise UnsupportedError("the RTL is of one tile; run with --tiles 1")
    return RtlSession(opened.compiled, opened.memories, warming=opened.warming, memory_model=memory_model, check=check)


def memory_model_of(chip: Chip, tile: Tile) -> MemoryModel:
    """Return the memory model of a chip's DRAM seen from one of its tiles: latency and share of bandwidth in cycles of its clock."""
    share = chip.dram.bandwidth_bytes_per_s / chip.clock_hz / chip.n_cores / tile.memory_bytes_per_cycle
    latency = max(1, round((chip.dram.latency_s or 0.0) * chip.clock_hz))
    return MemoryModel(latency_cycles=latency, beats=max(1, min(64, int(share * 64))), cycles=64)
