"""Real operands for a row: blocks of weights and activations of the embedded model, in the order in which the tile multiplies them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fabless.number.arrays import add, mul
from fabless.program.isa import LATENCY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.model.block_weights import BlockMatrix

MODEL = "tinyshakes"
PROMPT = "ROMEO:\nIf I profane with my unworthiest hand\nThis holy shrine, the gentle sin is this:"
SOURCE = (
    f"int8 blocks of {MODEL}: every layer's weights against the activations of an {len(PROMPT)}-character prompt, decode order, one row"
)


class _Recording:
    """Stand in for a `BlockMatrix` and keep the quantised rows that were multiplied by it."""

    def __init__(self, matrix: BlockMatrix) -> None:
        self.matrix, self.rows = matrix, matrix.rows
        self.codes: list[NDArray[np.int8]] = []
        self.scales: list[NDArray[np.float32]] = []

    def product(self, codes: NDArray[np.int8], scales: NDArray[np.float32], *, compiled: bool = True) -> NDArray[np.float32]:
        self.codes.append(codes.reshape(-1, *codes.shape[-2:]))
        self.scales.append(scales.reshape(-1, scales.shape[-1]))
        return self.matrix.product(codes, scales, compiled=compiled)


@dataclass(frozen=True)
class Operands:
    """Hold what one row meets, `[steps, streams]`: int8 blocks `[..., 32]`, scales, exact sums, and the accumulator before and after each step."""

    weights: NDArray[np.int8]
    activations: NDArray[np.int8]
    weight_scales: NDArray[np.float32]
    activation_scales: NDArray[np.float32]
    isum: NDArray[np.int64]
    before: NDArray[np.float32]
    after: NDArray[np.float32]


@cache
def _recorded() -> tuple[tuple[BlockMatrix, NDArray[np.int8], NDArray[np.float32]], ...]:
    """Return (weights, activation codes [rows, B, 32], their scales [rows, B]) of every matrix that a forward pass multiplies by."""
    from fabless.model.integer_reference import IntegerReference, IntegerWeights
    from fabless.model.tokenizer import open_tokenizer
    from fabless.model.weights import open_weights

    opened = open_weights(MODEL)
    weights = IntegerWeights.load(opened)
    recordings = {name: _Recording(matrix) for name, matrix in weights.matrices.items()}
    reference = IntegerReference(replace(weights, matrices=recordings), compiled=False)  # type: ignore[arg-type]
    reference.forward(open_tokenizer(opened).encode(PROMPT))
    return tuple((r.matrix, np.concatenate(r.codes), np.concatenate(r.scales)) for r in recordings.values() if r.codes)


def row_operands(n_streams: int, n_steps: int, seed: int = 0) -> Operands:
    """Return what a row of the tile meets in `n_steps` cycles, on independent streams.

    Each stream is one row multiplying for one token: k outermost, and for each block of k as many outputs as an accumulator's latency asks for, so
    that activations stand for ACC steps while weights change. A stream that reaches the end of its matrix goes on with another.
    """
    rng = np.random.default_rng(seed)
    held = LATENCY["ACC"]
    matrices = _recorded()
    sizes = np.array([matrix.scales.size for matrix, _, _ in matrices], float)
    w, a = (np.zeros((n_steps, n_streams, 32), np.int8) for _ in range(2))
    ws, xs, before, after = (np.zeros((n_steps, n_streams), np.float32) for _ in range(4))
    for stream in range(n_streams):
        step = 0
        while step < n_steps:
            matrix, codes, scales = matrices[rng.choice(len(matrices), p=sizes / sizes.sum())]
            token = int(rng.integers(len(codes)))
            first = int(rng.integers(0, max(1, matrix.scales.shape[1] - held + 1)))
            n = min(held, matrix.scales.shape[1] - first)
            total = np.zeros(n, np.float32)
            for k in range(matrix.scales.shape[0]):
                at, m = slice(step, step + n), min(n, n_steps - step)
                w[at, stream], a[at, stream] = matrix.codes[k, first : first + m], codes[token, k]
                ws[at, stream], xs[at, stream] = matrix.scales[k, first : first + m], scales[token, k]
                before[at, stream] = total[:m]
                isum = (matrix.codes[k, first : first + n].astype(np.int64) * codes[token, k]).sum(-1).astype(np.float32)
                total = add(total, mul(isum, mul(matrix.scales[k, first : first + n], scales[token, k])))
                after[at, stream] = total[:m]
                step += m
                if step == n_steps:
                    break
    return Operands(w, a, ws, xs, (w.astype(np.int64) * a).sum(-1), before, after)
