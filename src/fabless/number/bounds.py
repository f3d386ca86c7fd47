"""How far the chip's numbers can be from what they stand for: bounds derived from formats, roundings and lengths, elementwise, in binary64.

Nothing here is measured. A bound holds for every input whose values stay clear of overflow; below 2^-126 the machine has only +0, which `LEAST` covers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Reals = NDArray[np.float64]

#: One rounding of binary32 to nearest, relative.
U = 2.0**-24
#: exp2, rcp and rsqrt are within 0.95 units in the last place (`number.functions`), a unit being at most 2^-23 of the value.
FUNCTION = 0.95 * 2.0**-23
#: What becomes +0 is at most this.
LEAST = 2.0**-126
BLOCK = 32


def block_amax(x: Reals) -> Reals:
    """Return for each element the greatest magnitude of its block of 32 along the last axis."""
    k = x.shape[-1]
    padded = np.zeros((*x.shape[:-1], -(-k // BLOCK) * BLOCK))
    padded[..., :k] = np.abs(x)
    return np.repeat(padded.reshape(*x.shape[:-1], -1, BLOCK).max(-1), BLOCK, axis=-1)[..., :k]


def weight_error(weight: Reals) -> Reals:
    """Return how far an int8 block with an fp16 scale nearest to amax / 127 can be from a weight.

    Half a step, the scale being at most (1 + 2^-11) amax / 127, and what clipping at 127 steps takes off: at most 2^-11 amax. Below fp16's least normal
    the scale is off by half of 2^-24 instead, times 127 steps.
    """
    amax = block_amax(weight)
    return amax / 254 * (1 + 2.0**-11) + np.maximum(amax * 2.0**-11, 127 * 2.0**-25)


def activation_error(x: Reals, *, scope: str = "block") -> Reals:
    """Return how far int8 with a bf16 scale rounded up from amax / 127 can be from x: half a step, and the inverse's error.

    The scale is at most (1 + 2^-7) amax / 127; x * inverse is off by rcp's error and two roundings, of at most 127 steps. `scope` "row": one scale a row.
    """
    amax = block_amax(x) if scope == "block" else np.broadcast_to(np.abs(x).max(-1, keepdims=True), x.shape)
    step = amax / 127 * (1 + 2.0**-7)
    return step / 2 + 127 * step * (FUNCTION + 3 * U) + LEAST


def product_error(x: Reals, x_error: Reals, w: Reals, w_error: Reals) -> Reals:
    """Return the bound of a block product of rows `[M, k]` and `[n, k]` whose factors are off by so much: `[M, n]`.

    Errors of both factors, and of each block's product with its scale and addition: two roundings a block, of at most the sum of magnitudes.
    """
    factors = np.abs(x) @ w_error.T + x_error @ (np.abs(w) + w_error).T
    terms = (np.abs(x) + x_error) @ (np.abs(w) + w_error).T
    bound: Reals = factors + terms * (2 * -(-x.shape[-1] // BLOCK) + 2) * U + LEAST
    return bound


def sum_error(n: int) -> float:
    """Return the relative error of `row_sum` of n elements of one sign: five levels of a tree, a chain of n / 128, two more additions."""
    return (8 + n / 128) * U
