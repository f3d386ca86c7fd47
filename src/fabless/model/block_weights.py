"""Weights as the chip stores them: integer elements in blocks of 32 along k (NVFP4: 16), one scale a block.

Elements are what a multiplier sees. e2m1 values are held doubled (0, 1, 2, 3, 4, 6, 8, 12 and their negatives), their scales halved: both exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import UnsupportedError
from fabless.number.arrays import canonical, mul
from fabless.number.dot import BLOCK, gemm, gemm_fast
from fabless.number.formats import INT4_BLOCK32, INT8_BLOCK32, MXFP4, MXINT8, NVFP4, NumberFormat

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Codes = npt.NDArray[np.int8]

EXECUTED = (INT8_BLOCK32, INT4_BLOCK32, MXINT8, MXFP4, NVFP4)
_ROWS = 256
_FP16_MAX, _E4M3_MAX, _E2M1_MAX = np.float32(65504), np.float32(448), np.float32(6)


@dataclass(frozen=True)
class BlockMatrix:
    """Hold `codes [B, n, 32]` int8 and `scales [B, n]` float32 of a matrix `[n, k]`, blocks along k first; the last block is padded with zeros.

    `split`: blocks of 16 (NVFP4): block pairs 2b and 2b + 1 hold the lower and upper half of activation block b, the other lanes zero.
    `post_scale` multiplies a finished product (NVFP4's scale of the whole tensor); 1 elsewhere.
    """

    format: NumberFormat
    codes: Codes = field(repr=False)
    scales: Floats = field(repr=False)
    n_columns: int
    split: bool = False
    post_scale: float = 1.0

    def rows(self, indices: npt.NDArray[np.int64]) -> Floats:
        """Return the values of some rows `[R, k]`: each element times its block's scale, then the post-scale where it is not 1."""
        values = mul(self.codes[:, indices].astype(np.float32), self.scales[:, indices, None])  # [B, R, 32]
        if self.split:
            values = values[0::2] + values[1::2]  # one of each pair is zero: no rounding
        rows = values.swapaxes(0, 1).reshape(len(indices), -1)[:, : self.n_columns]
        return rows if self.post_scale == 1 else mul(rows, np.float32(self.post_scale))

    def product(self, codes: Codes, scales: Floats, *, compiled: bool = True) -> Floats:
        """Return `[R, n]`: quantised rows `[R, B, 32]` with scales `[R, B]` times this matrix, blocks in ascending k."""
        if self.split:
            codes, scales = np.repeat(codes, 2, 1), np.repeat(scales, 2, 1)
        y = (gemm_fast if compiled else gemm)(self.codes, self.scales, codes, scales)
        return y if self.post_scale == 1 else mul(y, np.float32(self.post_scale))


def block_matrix(array: Floats, format: NumberFormat = INT8_BLOCK32) -> BlockMatrix:
    """Quantise a matrix `[n, k]` into blocks along k, round to nearest, ties to even. Scales by absmax:

    int8, int4: fp16 nearest to amax / 127 (7). MXINT8: the least power of two that clips nothing. MXFP4: 2^(floor(log2 amax) - 2), OCP's rule.
    NVFP4: e4m3 nearest to amax / 6 over a scale of the whole tensor that puts the greatest block at 448.
    Raises `UnsupportedError` for a format that the block product does not execute.
    """
    if format not in EXECUTED:
        raise UnsupportedError(f"{format.name} weights are not executed; choose one of {', '.join(f.name for f in EXECUTED)}")
    n, k = array.shape
    split = format == NVFP4
    n_blocks = -(-k // BLOCK) * (1 + split)
    post = float(np.abs(array).max(initial=0) / (_E2M1_MAX * _E4M3_MAX)) or 1.0 if split else 1.0
    codes, scales = np.zeros((n_blocks, n, BLOCK), np.int8), np.empty((n_blocks, n), np.float32)
    for first in range(0, n, _ROWS):  # a piece that stays in the processor's cache
        rows = slice(first, min(n, first + _ROWS))
        padded = np.zeros((rows.stop - first, -(-k // BLOCK) * BLOCK), np.float32)
        padded[:, :k] = array[rows]
        blocks = padded.reshape(len(padded), n_blocks, -1)
        scale = canonical(_scales(format, _amax(blocks), np.float32(post)))  # [rows, B]
        piece = _codes(format, blocks, (scale * np.float32(post))[..., None]).swapaxes(0, 1)
        scales[:, rows] = scale.T
        if split:
            codes[0::2, rows, :16], codes[1::2, rows, 16:] = piece[0::2], piece[1::2]
        else:
            codes[:, rows] = piece
    return BlockMatrix(format, codes, scales, k, split, post)


def _amax(blocks: Floats) -> Floats:
    """Return the greatest magnitude over the last axis, a power of two long, by halving: several times faster than reducing short rows."""
    level = np.abs(blocks)
    while level.shape[-1] > 1:
        half = level.shape[-1] // 2
        level = np.maximum(level[..., :half], level[..., half:])
    return level[..., 0]


def _scales(format: NumberFormat, amax: Floats, post: np.float32) -> Floats:
    """Return the scale by which an element code is multiplied: for e2m1 half of the stored one."""
    import ml_dtypes

    if format in (INT8_BLOCK32, INT4_BLOCK32):
        top = np.float32(127 if format == INT8_BLOCK32 else 7)
        return np.asarray(np.minimum(amax / top, _FP16_MAX).astype(np.float16), np.float32)
    if format == NVFP4:
        stored = np.minimum(amax / _E2M1_MAX / post, _E4M3_MAX).astype(ml_dtypes.float8_e4m3fn)
        return np.asarray(stored, np.float32) / np.float32(2)
    _, exponent = np.frexp(amax)  # amax = f 2^exponent, f in [1/2, 1)
    rounded_up = amax > np.ldexp(np.float32(127 / 128), exponent)
    power = exponent - 1 - 2 - 1 if format == MXFP4 else exponent - 7 + rounded_up  # MXFP4: floor(log2 amax), less e2m1's 2, halved
    return np.asarray(np.where(amax > 0, np.ldexp(np.float32(1), np.clip(power, -126, 126)), 0), np.float32)


def _codes(format: NumberFormat, blocks: Floats, scales: Floats) -> Codes:
    ratio = blocks / np.where(scales > 0, scales, np.float32(1))  # a scale of 0 stands for values that all round to 0
    if format in (MXFP4, NVFP4):
        import ml_dtypes

        values = np.clip(ratio / np.float32(2), -_E2M1_MAX, _E2M1_MAX).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
        return (values * 2).astype(np.int8)
    top = np.float32(7 if format == INT4_BLOCK32 else 127)
    np.rint(ratio, out=ratio)
    return np.asarray(np.clip(ratio, -top, top, out=ratio), np.int8)


def paired(array: Floats, d_head: int) -> Floats:
    """Reorder the rows of each head from half-split to paired: row 2j was row j, row 2j + 1 was row j + H/2."""
    shape = array.shape
    return array.reshape(-1, 2, d_head // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
