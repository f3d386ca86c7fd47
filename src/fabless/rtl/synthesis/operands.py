"""Real operands for a row: blocks of weights and activations of the embedded model, in the order in which the tile multiplies them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fabless.program.isa import LATENCY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.model.block_weights import BlockMatrix

MODEL = "tinyshakes"
PROMPT = "ROMEO:\nIf I profane with my unworthiest hand\nThis holy shrine, the gentle sin is this:"
SOURCE = f"int8 blocks of {MODEL}: every layer's weights against the activations of an {len(PROMPT)}-character prompt, decode order, one row"


class _Recording:
    """Stand in for a `BlockMatrix` and keep the quantised rows that were multiplied by it."""

    def __init__(self, matrix: BlockMatrix) -> None:
        self.matrix, self.codes = matrix, np.zeros((0, matrix.codes.shape[0], matrix.codes.shape[2]), np.int8)
        self.rows = matrix.rows

    def product(self, codes: NDArray[np.int8], scales: NDArray[np.float32], *, compiled: bool = True) -> NDArray[np.float32]:
        self.codes = np.concatenate([self.codes, codes.reshape(-1, *codes.shape[-2:])])
        return self.matrix.product(codes, scales, compiled=compiled)


@cache
def _recorded() -> tuple[tuple[NDArray[np.int8], NDArray[np.int8]], ...]:
    """Return (weight codes [B, n, 32], activation codes [tokens, B, 32]) of every matrix that a forward pass multiplies by."""
    from fabless.model.integer_reference import IntegerReference, IntegerWeights
    from fabless.model.tokenizer import open_tokenizer
    from fabless.model.weights import open_weights

    opened = open_weights(MODEL)
    weights = IntegerWeights.load(opened)
    recordings = {name: _Recording(matrix) for name, matrix in weights.matrices.items()}
    reference = IntegerReference(replace(weights, matrices=recordings), compiled=False)  # type: ignore[arg-type]
    reference.forward(open_tokenizer(opened).encode(PROMPT))
    return tuple((r.matrix.codes, r.codes) for r in recordings.values() if len(r.codes))


def row_operands(n_streams: int, n_steps: int, seed: int = 0) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return weights and activations `[steps, streams, 32]` int8 as a row of the tile meets them.

    Each stream is one row multiplying for one token: k outermost, and for each block of k as many outputs as an accumulator's latency asks for, so
    that activations stand for ACC steps while weights change. A stream that reaches the end of its matrix goes on with another.
    """
    rng = np.random.default_rng(seed)
    held = LATENCY["ACC"]
    w = np.zeros((n_steps, n_streams, 32), np.int8)
    a = np.zeros_like(w)
    matrices = _recorded()
    sizes = np.array([codes.shape[0] * codes.shape[1] for codes, _ in matrices], float)
    for stream in range(n_streams):
        step = 0
        while step < n_steps:
            weights, activations = matrices[rng.choice(len(matrices), p=sizes / sizes.sum())]
            token = rng.integers(len(activations))
            first = int(rng.integers(0, max(1, weights.shape[1] - held + 1)))
            for k in range(weights.shape[0]):
                n = min(held, n_steps - step, weights.shape[1] - first)
                w[step : step + n, stream], a[step : step + n, stream] = weights[k, first : first + n], activations[token, k]
                step += n
    return w, a
