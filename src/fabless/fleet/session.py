"""A session: a real model, compiled for a chip's tiles, running on the bit-exact machine and writing text.

    session = open_session("smollm2-135m", chip)
    for token in session.generate(ids, 64):
        ...

The host's part is what a driver would do: pages, positions, parameters before each launch, and the choice of the next token from the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fabless.compiler.driver import Compiled
from fabless.compiler.driver import compile as compile_model
from fabless.compiler.launch import Segment
from fabless.compiler.partition import PAGE_KEYS, Shape, ceil
from fabless.core.errors import IllegalProgramError, InfeasibleError, InputError
from fabless.fleet.warming import start

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from fabless.model.decoder import Decoder
    from fabless.model.integer_reference import IntegerWeights
    from fabless.model.weights import Weights
    from fabless.program.tile import Tile
    from fabless.sim.machine_fast import Runner

    Floats = NDArray[np.float32]

#: Prompt tokens computed at once: the first of these whose buffers fit the tile.
_CHUNKS = (64, 32, 16, 8, 4, 2)
_DECODE = Shape(1, 1)
_UNKNOWN = -1
_EMPTY = "the prompt has no tokens; write at least one character"
#: Parameters up to which the readable machine writes faster than one waits for the compiled one.
_SMALL = 5_000_000


@dataclass(frozen=True, slots=True)
class Sampling:
    """Say how the next token is chosen: greedily at `temperature` 0, else from the least set of tokens that holds `top_p` of the probability."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InputError(f"temperature must be 0 (greedy) or above, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p must lie in (0, 1], not {self.top_p}")

    def choose(self, logits: Floats, rng: np.random.Generator) -> int:
        """Return the id of the next token."""
        if self.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")
        scaled = (logits[order].astype(np.float64) - float(logits[order[0]])) / self.temperature
        p = np.exp(scaled)
        p /= p.sum()
        kept = int(np.searchsorted(np.cumsum(p), self.top_p)) + 1
        p = p[:kept] / p[:kept].sum()
        return int(order[rng.choice(len(p), p=p)])


@dataclass(frozen=True, slots=True)
class Launched:
    """Name a launch by what its time depends on: shape, spans of each sequence and window, logits or not; and how often it ran."""

    shape: Shape
    spans: tuple[int, ...]
    logits: bool


@dataclass
class Session:
    """Hold compiled programs, the tiles' memories and one runner per program; `launches` counts what ran."""

    compiled: Compiled
    memories: list[NDArray[np.uint8]] = field(repr=False)
    launches: dict[Launched, int] = field(default_factory=dict)
    examples: dict[Launched, dict[str, object]] = field(default_factory=dict, repr=False)
    warming: subprocess.Popen[bytes] | None = field(default=None, repr=False)  # compiles the machine; None: it is ready
    _runners: dict[Shape, list[Runner]] = field(default_factory=dict, repr=False)

    @property
    def decoder(self) -> Decoder:
        """Return the model that runs."""
        return self.compiled.decoder

    @property
    def context_tokens(self) -> int:
        """Return the longest sequence."""
        return self.compiled.layouts[0].context_tokens

    def step(self, shape: Shape, segments: Sequence[Segment], *, logits: bool = True) -> Floats:
        """Run one launch on all tiles; returns logits `[segments, V]` of each sequence's last token (empty without `logits`)."""
        from fabless.program.sequence import parameter_words
        from fabless.sim.machine import launch, run_ring

        parameters = self.compiled.parameters(shape, segments, logits=logits)
        spans = sum(np.asarray(parameters[name]).reshape(-1) for name in ("kept_count", "again_count") if name in parameters)
        key = Launched(shape, tuple(int(n) for n in np.atleast_1d(spans)), logits)
        self.launches[key] = self.launches.get(key, 0) + 1
        self.examples.setdefault(key, parameters)
        if self._readable():
            programs = self.compiled.programs[shape]
            run_ring([(p, launch(p, m, parameters=parameters)) for p, m in zip(programs, self.memories, strict=True)], fast=False)
        else:
            runners = self._ring(shape)
            for program, runner in zip(self.compiled.programs[shape], runners, strict=True):
                runner.state.parameters[:] = parameter_words(program, parameters)
                runner.state.semaphores[:] = 0
                runner.restart()
            _drive(runners)
        if not logits:
            return np.zeros((0, self.decoder.n_vocab), np.float32)
        return self.logits(self.memories, len(segments))

    def logits(self, memories: Sequence[NDArray[np.uint8]], n_segments: int) -> Floats:
        """Return the logits `[segments, V]` that the last launch left in the tiles' memories."""
        parts = []
        for layout, memory in zip(self.compiled.layouts, memories, strict=True):
            if not layout.has_head:
                continue
            buffer = next(b for b in layout.buffers if b.name == "logits")
            whole = memory[buffer.address : buffer.end].view(np.float32).reshape(buffer.shape)
            parts.append(whole[:n_segments, : layout.share.vocabulary])
        return np.concatenate(parts, axis=1)[:, : self.decoder.n_vocab]

    def _readable(self) -> bool:
        """Tell whether this launch runs on the readable machine: the compiled one is not ready, and the model small enough not to wait for it."""
        if self.warming is not None and (self.decoder.n_parameters > _SMALL or self.warming.poll() is not None):
            self.warming.wait()
            self.warming = None
        return self.warming is not None

    def _ring(self, shape: Shape) -> list[Runner]:
        from fabless.sim.machine import State
        from fabless.sim.machine_fast import Link, Runner

        if shape not in self._runners:
            programs = self.compiled.programs[shape]
            links = [Link() for _ in programs]
            self._runners[shape] = [
                Runner(p, State(p.tile, memory, np.zeros(p.tile.parameter_words, np.int32)), links[i - 1], links[i])
                for i, (p, memory) in enumerate(zip(programs, self.memories, strict=True))
            ]
        return self._runners[shape]

    def prefill(
        self, ids: Sequence[int], pages: Sequence[int], *, position: int = 0, progress: Callable[[int, int], None] | None = None
    ) -> Floats:
        """Run a prompt in chunks, largest first; returns the logits `[V]` after its last token."""
        self.require_room(len(ids), position)
        sizes = sorted((s.tokens for s in self.compiled.shapes if s.segments == 1), reverse=True)
        done, logits = 0, np.zeros((0, 0), np.float32)
        while done < len(ids):
            size = next((n for n in reversed(sizes) if n >= len(ids) - done), sizes[0])  # sizes double: less than half is padding
            chunk = ids[done : done + size]
            last = done + len(chunk) == len(ids)
            logits = self.step(Shape(1, size), [Segment(chunk, position + done, pages)], logits=last)
            done += len(chunk)
            if progress:
                progress(done, len(ids))
        after: Floats = logits[0]
        return after

    def require_room(self, n_tokens: int, position: int = 0) -> None:
        """Raise `InputError` when a prompt is empty or does not fit the context."""
        if n_tokens < 1:
            raise InputError(_EMPTY)
        if position + n_tokens > self.context_tokens:
            raise InputError(too_long(self.decoder, position + n_tokens, self.context_tokens))

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling | None = None, *, end_ids: frozenset[int] = frozenset(),
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[int]:  # fmt: skip
        """Yield up to `max_tokens` ids after the prompt `ids`, until one of `end_ids` (not yielded) or the context is full."""
        if max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, not {max_tokens}")
        sampling = sampling or Sampling()
        rng = np.random.default_rng(sampling.seed)
        pages = range(ceil(self.context_tokens, PAGE_KEYS))
        logits = self.prefill(ids, pages, progress=progress)
        for position in range(len(ids), min(self.context_tokens, len(ids) + max_tokens) + 1):
            token = sampling.choose(logits, rng)
            if token in end_ids:
                return
            yield token
            if position >= min(self.context_tokens, len(ids) + max_tokens - 1):
                return
            logits = self.step(_DECODE, [Segment([token], position, pages)])[0]


def too_long(decoder: Decoder, n_tokens: int, context_tokens: int) -> str:
    """Return the message for a prompt beyond the context."""
    longer = f", or raise --context up to {decoder.context_tokens:,}" if decoder.context_tokens > context_tokens else ""
    return f"the prompt has {n_tokens:,} tokens, {decoder.name} runs with a context of {context_tokens:,}; shorten it{longer}"


def _drive(runners: Sequence[Runner]) -> None:
    """Run a ring of tiles until all have halted."""
    waiting = list(runners)
    while waiting:
        before = sum(r.state.retired for r in runners)
        waiting = [r for r in waiting if r.advance()]
        if waiting and sum(r.state.retired for r in runners) == before:
            raise IllegalProgramError(f"{len(waiting)} tiles wait for data that their neighbours never send; match every recv with a send")


def open_session(
    weights: Weights, tile: Tile, *, n_tiles: int = 1, partition: str = "tensor", context_tokens: int | None = None, chunk: int | None = None,
    prompt_tokens: int = _UNKNOWN, format: str = "int8_block32", head_format: str | None = None, say: Callable[[str], None] | None = None,
) -> Session:  # fmt: skip
    """Compile a model for `n_tiles` tiles, quantise its weights and write them into the tiles' memories.

    `partition`: how the tiles share the model, one of `compiler.partition.PARTITIONS`.
    `context_tokens`: default the model's, at most 2,048. `chunk`: prompt tokens at once (default: as many as fit, up to 64).
    `format`: of the weights, one of `compiler.tiles.STORED`; `head_format`: of the head and the token table (default: the same).
    `prompt_tokens`: of a prompt that is to follow: one that does not fit is refused before any work.
    Raises `InfeasibleError`, before any weight is read, when the model does not fit the tiles' buffers or memory, or the host's.
    """
    from fabless.compiler.pack import pack
    from fabless.model.integer_reference import IntegerWeights
    from fabless.number.formats import format_named
    from fabless.sim.machine import cleared

    tell = say or (lambda text: None)
    decoder = weights.decoder
    context = min(decoder.context_tokens, 2048) if context_tokens is None else context_tokens
    if prompt_tokens > context:
        raise InputError(too_long(decoder, prompt_tokens, context))
    if prompt_tokens < 1 and prompt_tokens != _UNKNOWN:
        raise InputError(_EMPTY)
    tell(f"compiling {decoder.name} for {n_tiles} tile{'s' * (n_tiles > 1)} of {tile.rows} rows")
    compiled = compiled_for(
        decoder, tile, n_tiles=n_tiles, partition=partition, context_tokens=context, chunk=chunk, format=format, head_format=head_format
    )
    total = sum(layout.memory_bytes for layout in compiled.layouts)
    weights.require_memory(total + 0.3 * weights.float_bytes + 4 * decoder.n_vocab * decoder.d_model)
    warming = start()
    tell(f"quantising {decoder.n_parameters:,} weights into blocks of 32")
    integers: IntegerWeights = IntegerWeights.load(weights, format_named(format), format_named(head_format or format))
    memories = []
    for layout in compiled.layouts:
        memory = cleared((layout.memory_bytes,))
        pack(layout, integers, memory[: layout.image_bytes])
        memories.append(memory)
    if warming is not None and decoder.n_parameters > _SMALL:
        tell("compiling the machine, once")
    return Session(compiled, memories, warming=warming)


def compiled_for(
    decoder: Decoder, tile: Tile, *, n_tiles: int = 1, context_tokens: int, chunk: int | None = None, format: str = "int8_block32",
    head_format: str | None = None, partition: str = "tensor",
) -> Compiled:  # fmt: skip
    """Compile decode and the largest prefill chunk that fits the tile's buffers, with its halves down to one for what remains of a prompt."""
    for size in (chunk,) if chunk is not None else (*_CHUNKS, 1):
        sizes = sorted({size >> i for i in range(size.bit_length())})
        shapes = [Shape(1, n) for n in sizes]
        try:
            return compile_model(
                decoder,
                tile,
                shapes,
                context_tokens=context_tokens,
                n_tiles=n_tiles,
                partition=partition,
                format=format,
                head_format=head_format,
            )
        except InfeasibleError:
            if size == 1 or chunk is not None:
                raise
    raise AssertionError("the last size raises")
