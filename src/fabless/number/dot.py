"""The block dot product: the one arithmetic contract between model reference, machine, compiler and RTL.

For every output, blocks of 32 values in ascending k:

    isum  = exact integer sum of 32 products of int8          |isum| <= 2^19: exact in binary32
    scale = fp32(weight scale * activation scale)             11 + 8 significant bits: exact, but for overflow and underflow
    acc   = fp32(acc + fp32(isum * scale))                    two roundings, to nearest even; below 2^-126 becomes +0 (see `number.round`)

The order inside a block cannot matter because integers are exact; the order of blocks is fixed. Hence the bits of a result do not depend on
tile sizes, number of rows, cores, chips, batch or chunks. With blocks of 16 (NVFP4) a block of 32 is taken as two: lanes 0-15, then 16-31.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fabless.number.arrays import add, canonical, mul
from fabless.number.round import fp32_add, fp32_bits, fp32_mul

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 32


def block_dot(
    weights: list[list[int]], weight_scales: list[int], activations: list[list[int]], activation_scales: list[int], *, acc: int = 0
) -> int:
    """Return the accumulator's binary32 code after the blocks of one output, in order; scales are binary32 codes.

    The readable definition: `weights[b][j]`, `activations[b][j]` are int8 values.
    """
    for w, sw, a, sa in zip(weights, weight_scales, activations, activation_scales, strict=True):
        isum = sum(p * q for p, q in zip(w, a, strict=True))
        acc = fp32_add(acc, fp32_mul(fp32_bits(isum), fp32_mul(sw, sa)))
    return acc


def gemm(
    weights: NDArray[np.int8],
    weight_scales: NDArray[np.float32],
    activations: NDArray[np.int8],
    activation_scales: NDArray[np.float32],
    acc: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return accumulators `[M, N]` for weights `[K, N, 32]`, scales `[K, N]`, activations `[M, K, 32]`, scales `[M, K]` (K in blocks).

    The array twin of `block_dot`. One block's integer products are summed by BLAS in binary32: 32 products below 2^14 sum to at most 2^19,
    so that every partial sum in any order is an integer below 2^24 and exact.
    """
    k_blocks, n = weight_scales.shape
    m = activation_scales.shape[0]
    out = np.zeros((m, n), np.float32) if acc is None else acc.astype(np.float32)
    for k in range(k_blocks):
        isum = activations[:, k].astype(np.float32) @ weights[k].astype(np.float32).T
        out = add(out, mul(isum, mul(activation_scales[:, k, None], weight_scales[None, k])))
    return out


def gemm_fast(
    weights: NDArray[np.int8],
    weight_scales: NDArray[np.float32],
    activations: NDArray[np.int8],
    activation_scales: NDArray[np.float32],
    acc: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return what `gemm` returns, from the compiled kernel (numba; compiled at first use, then cached)."""
    from fabless.number.kernels import accumulate, accumulate_blocks

    n = weight_scales.shape[1]
    m = activation_scales.shape[0]
    padding = -n % 4
    out = np.zeros((m, n + padding), np.float32)
    if acc is not None:
        out[:, :n] = acc
    accumulate_blocks(
        np.ascontiguousarray(np.pad(weights, ((0, 0), (0, padding), (0, 0)))),
        np.ascontiguousarray(np.pad(weight_scales, ((0, 0), (0, padding)))),
        np.ascontiguousarray(activations),
        np.ascontiguousarray(activation_scales),
        out,
        accumulate,
    )
    return canonical(out[:, :n])
