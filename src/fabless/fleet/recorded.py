"""A launch of the embedded model to measure a chip's blocks on: the step that writes one token after a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fabless.fleet.session import Session, open_session
from fabless.program.sequence import parameter_words
from fabless.rtl.synthesis.recording import Stimulus

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from fabless.compiler.launch import Segment
    from fabless.compiler.partition import Shape
    from fabless.program.tile import Tile

MODEL = "tinyshakes"
PROMPT = "ROMEO:\nIf I profane"


@dataclass
class _Watched(Session):
    """Keep what the last launch began with."""

    last: list[tuple[Shape, NDArray[np.int32], NDArray[np.uint8]]] = field(default_factory=list)

    def step(self, shape: Shape, segments: Sequence[Segment], *, logits: bool = True) -> NDArray[np.float32]:
        words = parameter_words(self.compiled.program(shape), self.compiled.parameters(shape, segments, logits=logits))
        self.last[:] = [(shape, words, self.memories[0].copy())]
        return super().step(shape, segments, logits=logits)


def decode_stimulus(tile: Tile) -> Stimulus:
    """Return the launch in which the embedded model decodes one token behind a prompt of 19 characters, on a tile.

    Raises `InfeasibleError` for a tile whose buffers are too small for the model.
    """
    from fabless.model.tokenizer import open_tokenizer
    from fabless.model.weights import open_weights

    weights = open_weights(MODEL)
    ids = open_tokenizer(weights).encode(PROMPT)
    opened = open_session(weights, tile, context_tokens=128, prompt_tokens=len(ids))
    session = _Watched(opened.compiled, opened.memories, warming=opened.warming)
    for _ in session.generate(ids, 2):
        pass
    shape, words, memory = session.last[0]
    return Stimulus(session.compiled.program(shape), memory, words, stimulus_source())


def stimulus_source() -> str:
    """Return what the launch is, in words."""
    return f"{MODEL} decoding one token behind a prompt of {len(PROMPT)} characters, every cycle of the launch, memory that answers at once"
