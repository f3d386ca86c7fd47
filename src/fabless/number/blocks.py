"""Tensors at rest: whole arrays to codes and back, and block formats with their scales. The fast twin of `number.round.encode`/`decode`.

MXINT8 elements count 1 (not 2^-6 as OCP writes them), so that the scale carries the 2^-6.
A block format cuts the last axis into blocks that share a scale: MX (e8m0 scale of 32), NVFP4 (e4m3 scale of 16 and one fp32 scale a tensor),
integers in groups of any size with fp32, fp16 or bf16 scale, per channel or per token (one group a row).
Source: OCP Microscaling Formats 1.0 section 6.3 (floor rule); Mishra et al. 2025, arXiv:2506.08027 (scale rounded up); NVIDIA NVFP4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from fabless.core.errors import InputError, UnsupportedError
from fabless.number.formats import BF16, E4M3, E8M0, FP16, FP32, Format, Scaled, integer_groups
from fabless.number.round import decode, encode, max_finite_code

__all__ = ["Blocks", "decode_array", "encode_array", "greatest", "integer_groups", "quantise_blocks", "rounded"]

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Choice = Literal["absmax", "percentile", "mse"]
Rule = Literal["floor", "ceil"]

#: Share of a block's (or row's) magnitudes that the percentile choice keeps unclipped.
PERCENTILE = 99.5
#: Fractions of the absmax scale that the mean-squared-error choice tries, best first error wins, ties to the larger scale.
MSE_STEPS = tuple(1 - i / 32 for i in range(17))


def encode_array(values: ArrayLike, format: Format, *, saturate: bool = True) -> NDArray[np.uint32]:
    """Return the code of every value, equal to `round.encode` of each; values are binary64 or narrower, so that every step below is exact."""
    x = np.asarray(values, dtype=np.float64)
    if format.kind == "int":
        high = float((1 << format.bits - 1) - 1)
        rounded = np.clip(np.rint(np.nan_to_num(x, nan=0.0, posinf=high, neginf=-high - 1)), -high - 1, high).astype(np.int64)
        return (rounded & (1 << format.bits) - 1).astype(np.uint32)
    with np.errstate(all="ignore"):
        exponent = np.frexp(np.abs(x))[1].astype(np.int64) - 1
    if format.kind == "scale":
        codes = np.where(x > 0, np.clip(exponent + format.bias, 0, 254), 0)
        return np.where(np.isnan(x), 255, np.where(np.isposinf(x), 254, codes)).astype(np.uint32)
    least, limit = 1 - format.bias, max_finite_code(format)
    finite = np.isfinite(x)
    exponent = np.where(finite & (x != 0), np.maximum(exponent, least), least)
    steps = np.rint(np.ldexp(np.where(finite, np.abs(x), 0), format.mantissa_bits - exponent)).astype(np.int64)
    codes = np.where(finite, (exponent - least << format.mantissa_bits) + steps, limit + 1)
    if saturate or limit == (1 << format.bits - 1) - 1:
        codes = np.minimum(codes, limit)
    codes = np.minimum(codes, limit + 1) | np.signbit(x).astype(np.int64) << format.bits - 1
    return np.where(np.isnan(x), encode(np.nan, format), codes).astype(np.uint32)


def decode_array(codes: NDArray[np.integer], format: Format) -> NDArray[np.float32]:
    """Return the value of every code as float32, which holds every value of every format here exactly."""
    codes = np.asarray(codes)
    if format.bits <= 8:
        narrow: NDArray[np.float32] = _values(format)[codes.astype(np.int64) & (1 << format.bits) - 1]
        return narrow
    if format == FP16:
        return codes.astype(np.uint16).view(np.float16).astype(np.float32)
    if format == BF16:
        return (codes.astype(np.uint32) << 16).view(np.float32)
    if format.name == "tf32":
        return (codes.astype(np.uint32) << 13).view(np.float32)
    if format == FP32:
        return codes.astype(np.uint32).view(np.float32)
    raise UnsupportedError(f"{format.name} values do not fit float32; decode them one by one with number.round.decode")


@cache
def _values(format: Format) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return np.array([decode(code, format) for code in range(1 << format.bits)], np.float64).astype(np.float32)


def rounded(values: ArrayLike, format: Format) -> NDArray[np.float32]:
    """Return every value rounded to a format, saturating."""
    if format.name == "tf32":
        return decode_array(encode_array(values, format) & 0x7FFFF, format)
    return decode_array(encode_array(values, format), format)


@dataclass(frozen=True)
class Blocks:
    """Hold a quantised tensor: `elements [..., n_blocks, block]` float32 (element values), `scales [..., n_blocks]` float32, both exact.

    value = element * scale * tensor_scale. The last block of a row is padded with zeros; `length` is the row's true length.
    """

    format: Scaled
    elements: NDArray[np.float32]
    scales: NDArray[np.float32]
    length: int
    tensor_scale: float = 1.0

    @property
    def codes(self) -> NDArray[np.uint8]:
        """Return the element codes (two's complement for integers)."""
        return encode_array(self.elements, self.format.element).astype(np.uint8)

    @property
    def scale_codes(self) -> NDArray[np.uint32]:
        """Return the scale codes."""
        return encode_array(self.scales, self.format.scale)

    def values(self) -> NDArray[np.float32]:
        """Return what the tensor stands for, `[..., length]`, rounded once to float32."""
        full = self.elements.astype(np.float64) * self.scales[..., None] * self.tensor_scale
        return full.reshape(*full.shape[:-2], -1)[..., : self.length].astype(np.float32)


def greatest(element: Format) -> float:
    """Return the magnitude that a scale maps the block's greatest value to: 127, 7, 6, 448..."""
    return float((1 << element.bits - 1) - 1) if element.kind == "int" else decode(max_finite_code(element), element)


def quantise_blocks(
    values: ArrayLike, format: Scaled, *, choice: Choice = "absmax", rule: Rule = "floor", block_values: int | None = None
) -> Blocks:
    """Quantise the last axis of `[..., n]` in blocks; `block_values` overrides the format's (n: per channel or per token).

    choice: which magnitude the scale serves - the greatest (absmax), the 99.5th percentile of the block, or the fraction of the greatest with the
    least squared error (mse). rule: how a power-of-two scale is found - OCP's floor, which clips up to half of the top binade, or rounded up so that
    nothing clips. Other scales are rounded to nearest in their own format. Raises `InputError` for NaN or infinite values.
    """
    x = np.asarray(values, dtype=np.float64)
    if not np.isfinite(x).all():
        raise InputError(f"{format.name}: {int((~np.isfinite(x)).sum())} values are NaN or infinite; clean the tensor before quantising")
    length, block = x.shape[-1], block_values or format.block_values
    padded = np.zeros((*x.shape[:-1], -(-length // block) * block))
    padded[..., :length] = x
    padded = padded.reshape(*x.shape[:-1], -1, block)
    tensor_scale = 1.0
    if format.scale == E4M3:
        top = float(np.abs(padded).max(initial=0.0))
        tensor_scale = float(np.float32(top / (448.0 * greatest(format.element)))) or 1.0
        padded = padded / tensor_scale
    magnitude = np.abs(padded).max(axis=-1, initial=0.0)
    if choice == "percentile":
        magnitude = np.percentile(np.abs(padded), PERCENTILE, axis=-1, method="higher")
    scales = _scales(magnitude, format, rule)
    elements = _elements(padded, scales, format)
    if choice == "mse":
        scales, elements = _least_squares(padded, magnitude, format, rule)
    return Blocks(format, elements, scales, length, tensor_scale)


def _scales(magnitude: NDArray[np.float64], format: Scaled, rule: Rule) -> NDArray[np.float32]:
    top = greatest(format.element)
    if format.scale == E8M0:
        mantissa, exponent = np.frexp(magnitude)  # magnitude = mantissa * 2^exponent, mantissa in [1/2, 1)
        top_mantissa, top_exponent = np.frexp(top)
        shift = exponent - top_exponent + ((mantissa > top_mantissa) if rule == "ceil" else 0)
        return np.where(magnitude > 0, np.ldexp(1.0, np.clip(shift, -126, 127)), 1.0).astype(np.float32)
    scales = rounded(magnitude / top, format.scale)
    least = np.float32(decode(1, format.scale)) if format.scale.bits <= 16 else np.float32(2.0**-126)
    return np.where(magnitude > 0, np.maximum(scales, least), np.float32(0))


def _elements(x: NDArray[np.float64], scales: NDArray[np.float32], format: Scaled) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        ratio = np.where(scales[..., None] > 0, x / scales[..., None].astype(np.float64), 0.0)
    if format.element.kind == "int":
        top = greatest(format.element)
        return (np.clip(np.rint(ratio), -top, top) + 0.0).astype(np.float32)  # integers have no -0
    return rounded(ratio, format.element)


def _least_squares(
    x: NDArray[np.float64], magnitude: NDArray[np.float64], format: Scaled, rule: Rule
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    steps = (2.0, 1.0, 0.5) if format.scale == E8M0 else MSE_STEPS
    best_error = np.full(magnitude.shape, np.inf)
    best_scales = np.zeros(magnitude.shape, np.float32)
    best_elements = np.zeros(x.shape, np.float32)
    for step in steps:
        scales = _scales(magnitude * step, format, rule)
        elements = _elements(x, scales, format)
        error = ((elements * scales[..., None].astype(np.float64) - x) ** 2).sum(axis=-1)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scales = np.where(better, scales, best_scales)
        best_elements = np.where(better[..., None], elements, best_elements)
    return best_scales, best_elements
