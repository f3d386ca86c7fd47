"""Activations as the vector unit quantises them: int8 blocks of 32 with one bf16 scale, in stated operations.

For a block (or a whole row, `scope="row"`), all in machine arithmetic (`number.round`):

    amax  = greatest magnitude, NaN if any element is NaN
    t     = fp32(amax * C127)                    C127 = binary32 of 1/127
    scale = t rounded up to bf16                 (code + 0xFFFF) & 0xFFFF0000
    inv   = rcp(scale), or 0 where scale is 0    the table value itself: a bf16 has no offset bits
    q     = fp32(x * inv) to nearest, ties to even, within -127..127, NaN to 0

A scale has 8 significant bits and a weight scale at most 11, so that their product is exact in binary32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fabless.number.arrays import mul
from fabless.number.functions import rcp, rcp_array
from fabless.number.round import NAN_BITS, flush, fp32_bits, fp32_max, fp32_mul, fp32_to_int

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 32
C127_BITS = fp32_bits(1 / 127)


def scale_of(amax: int) -> int:
    """Return the binary32 code (low half zero) of the scale of a block whose greatest magnitude has code `amax`."""
    t = fp32_mul(amax, C127_BITS)
    return NAN_BITS if t == NAN_BITS else t + 0xFFFF & 0xFFFF0000


def quantise_block(codes: list[int]) -> tuple[list[int], int]:
    """Return the int8 values and the scale's binary32 code for one block of machine codes."""
    amax = 0
    for code in codes:
        amax = fp32_max(amax, flush(code & 0x7FFFFFFF))
    scale = scale_of(amax)
    inverse = 0 if scale == 0 else rcp(scale)
    return [max(-127, min(127, fp32_to_int(fp32_mul(code, inverse)))) for code in codes], scale


def quantise(x: NDArray[np.float32], *, scope: str = "block") -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise rows `[..., n]` of canonical float32 into int8 `[..., blocks, 32]` and scales `[..., blocks]` (float32, bf16 values).

    The last block is padded with 0. `scope="row"` gives all blocks of a row one scale. The array twin of `quantise_block`.
    """
    n = x.shape[-1]
    blocks = -(-n // BLOCK)
    padded = np.zeros((*x.shape[:-1], blocks * BLOCK), np.float32)
    padded[..., :n] = x
    padded = padded.reshape(*x.shape[:-1], blocks, BLOCK)
    amax = np.abs(padded).max(axis=-1)
    if scope == "row":
        amax = np.broadcast_to(amax.max(axis=-1, keepdims=True), amax.shape)
    t = mul(amax, np.uint32(C127_BITS).view(np.float32))
    codes = t.view(np.uint32).astype(np.uint64) + 0xFFFF & 0xFFFF0000
    scale = np.where(np.isnan(t), np.uint32(NAN_BITS), codes.astype(np.uint32)).view(np.float32)
    inverse = np.where(scale == 0, np.float32(0), rcp_array(scale))
    product = mul(padded, inverse[..., None])
    with np.errstate(invalid="ignore"):
        q = np.clip(np.nan_to_num(np.rint(product), nan=0.0, posinf=127.0, neginf=-127.0), -127, 127).astype(np.int8)
    return q, scale
