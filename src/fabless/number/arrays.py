"""The fast twin of `number.round`: whole arrays of machine arithmetic, bit-identical to the scalar definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TINY = np.float32(2.0**-126)
_NAN = np.uint32(0x7FC00000).view(np.float32)


def canonical(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 values as the machine keeps them: magnitudes below 2^-126 as +0, every NaN as 0x7FC00000. Always a new array."""
    x = np.where(np.abs(x) < _TINY, np.float32(0), x)
    return np.where(np.isnan(x), _NAN, x)


def add(a: NDArray[np.float32] | np.float32, b: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    """Return a + b as the machine adds: binary32 to nearest even, then `canonical`. Operands are canonical."""
    with np.errstate(all="ignore"):
        return canonical(np.add(a, b, dtype=np.float32))


def sub(a: NDArray[np.float32] | np.float32, b: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    """Return a - b as the machine subtracts. Operands are canonical."""
    with np.errstate(all="ignore"):
        return canonical(np.subtract(a, b, dtype=np.float32))


def mul(a: NDArray[np.float32] | np.float32, b: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    """Return a * b as the machine multiplies. Operands are canonical."""
    with np.errstate(all="ignore"):
        return canonical(np.multiply(a, b, dtype=np.float32))


def row_sum(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum along the last axis in the machine's one order (see `number.round.fp32_sum`): `[..., n]` to `[...]`."""
    n = x.shape[-1]
    groups = -(-n // 128)
    padded = np.zeros((*x.shape[:-1], groups * 128), np.float32)
    padded[..., :n] = x
    level = padded.reshape(*x.shape[:-1], groups, 4, 32)
    while level.shape[-1] > 1:
        level = add(level[..., 0::2], level[..., 1::2])
    partial = np.zeros((*x.shape[:-1], 4), np.float32)
    for group in range(groups):
        partial = add(partial, level[..., group, :, 0])
    return add(add(partial[..., 0], partial[..., 1]), add(partial[..., 2], partial[..., 3]))


def maximum(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the greater of each pair, NaN if either is NaN."""
    return canonical(np.maximum(a, b))


def minimum(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the lesser of each pair, NaN if either is NaN."""
    return canonical(np.minimum(a, b))


def row_max(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the greatest element along the last axis, NaN if any is NaN."""
    return canonical(x.max(axis=-1))


def row_argmax(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the index of the first greatest element along the last axis as float32; a NaN counts as greatest."""
    index: NDArray[np.float32] = x.argmax(axis=-1).astype(np.float32)
    return index


def bf16_codes(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bf16 codes nearest to canonical values, ties to even, overflow to infinity, NaN to 0x7FC0."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)
