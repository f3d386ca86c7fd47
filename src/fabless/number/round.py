"""The readable definition of rounding: one value at a time, in integers and fractions. `number.arrays` is the fast twin.

Two rounding worlds live here. `encode`/`decode` are the formats of tensors at rest, as their standards state them, subnormals included.
`fp32_add`, `fp32_mul` are the arithmetic of the vector unit and the accumulators: binary32, ties to even, one NaN, no subnormals, no -0.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from fabless.core.errors import InputError
from fabless.number.formats import BF16, FP32

if TYPE_CHECKING:
    from fabless.number.formats import Format

Value = int | float | Fraction

NAN_BITS = 0x7FC00000
INFINITY_BITS = 0x7F800000
MIN_NORMAL = Fraction(1, 1 << 126)


def max_finite_code(format: Format) -> int:
    """Return the code of the largest finite value of a float format: one below infinity, one below e4m3's NaN, or all ones."""
    top = (1 << format.bits - 1) - 1
    if format.infinities:
        return ((1 << format.exponent_bits) - 1 << format.mantissa_bits) - 1
    return top - 1 if format.exponent_bits == 4 and format.mantissa_bits == 3 else top


def decode(code: int, format: Format) -> float:
    """Return the value of a code; exact, since every format of 32 bits or fewer fits a Python float.

    Integers are two's complement; e8m0 is 2^(code - 127), 255 NaN. Raises `InputError` for a code wider than the format.
    """
    if not 0 <= code < 1 << format.bits:
        raise InputError(f"{format.name}: code {code} does not fit {format.bits} bits")
    if format.kind == "int":
        return float(code - (1 << format.bits) if code >> format.bits - 1 else code)
    if format.kind == "scale":
        return math.nan if code == 255 else math.ldexp(1.0, code - format.bias)
    sign = -1.0 if code >> format.bits - 1 else 1.0
    magnitude = code & (1 << format.bits - 1) - 1
    exponent, fraction = magnitude >> format.mantissa_bits, magnitude & (1 << format.mantissa_bits) - 1
    if magnitude > max_finite_code(format):
        return sign * math.inf if format.infinities and fraction == 0 else math.nan
    if exponent == 0:
        return sign * math.ldexp(fraction, 1 - format.bias - format.mantissa_bits)
    return sign * math.ldexp((1 << format.mantissa_bits) + fraction, exponent - format.bias - format.mantissa_bits)


def encode(value: Value, format: Format, *, saturate: bool = True) -> int:
    """Return the code nearest to `value`, ties to even.

    Too large a magnitude becomes the largest finite value (`saturate`), or infinity, or NaN where the format has no infinity; e2m1 and e2m3
    have neither and always saturate. NaN stays NaN; in formats without one it becomes 0. e8m0 takes the power of two at or below `value`
    (the OCP floor rule), clamped to its range. Source: IEEE 754-2019 section 4.3.1; OCP Microscaling Formats 1.0 section 6.3.
    """
    if isinstance(value, float) and math.isnan(value):
        return _nan_code(format)
    if format.kind == "int":
        return _encode_int(value, format)
    if format.kind == "scale":
        return _encode_scale(value, format)
    sign_bit = 1 << format.bits - 1 if (value < 0 or (isinstance(value, float) and math.copysign(1, value) < 0)) else 0
    limit = max_finite_code(format)
    magnitude = limit + 1 if isinstance(value, float) and math.isinf(value) else _magnitude(abs(Fraction(value)), format)
    if magnitude <= limit:
        return sign_bit | magnitude
    if saturate or not _has_nan(format):
        if isinstance(value, float) and math.isinf(value) and format.infinities and not saturate:
            return sign_bit | limit + 1
        return sign_bit | limit
    return sign_bit | limit + 1


def _magnitude(value: Fraction, format: Format) -> int:
    """Return exponent and fraction bits of a non-negative value; counting in steps of the last place makes carries run into the exponent."""
    if value == 0:
        return 0
    least = 1 - format.bias
    exponent = max(floor_log2(value), least)
    return (exponent - least << format.mantissa_bits) + round_half_even(value / Fraction(2) ** (exponent - format.mantissa_bits))


def _has_nan(format: Format) -> bool:
    return format.kind == "scale" or max_finite_code(format) < (1 << format.bits - 1) - 1


def _nan_code(format: Format) -> int:
    if format.kind == "int":
        return 0
    if format.kind == "scale":
        return 255
    if not _has_nan(format):
        return 0
    top = max_finite_code(format) + 1
    return top | (1 << format.mantissa_bits - 1) if format.infinities else top


def _encode_int(value: Value, format: Format) -> int:
    high = (1 << format.bits - 1) - 1
    if isinstance(value, float) and math.isinf(value):
        rounded = high if value > 0 else -high - 1
    else:
        rounded = max(-high - 1, min(high, round_half_even(Fraction(value))))
    return rounded & (1 << format.bits) - 1


def _encode_scale(value: Value, format: Format) -> int:
    if value <= 0:
        return 0
    if isinstance(value, float) and math.isinf(value):
        return 254
    return max(0, min(254, floor_log2(Fraction(value)) + format.bias))


def floor_log2(value: Fraction) -> int:
    """Return the largest e with 2^e <= value, for a positive value."""
    e = value.numerator.bit_length() - value.denominator.bit_length()
    return e if Fraction(2) ** e <= value else e - 1


def round_half_even(value: Fraction) -> int:
    """Return the nearest integer, the even one when two are equally near."""
    return round(value)


# Arithmetic of the machine: binary32 codes in, binary32 codes out.


def fp32_bits(value: Value) -> int:
    """Return the machine's code of a value: binary32 to nearest even, then +0 for any magnitude below 2^-126, one NaN."""
    if isinstance(value, float) and math.isnan(value):
        return NAN_BITS
    return flush(encode(value, FP32, saturate=False))


def fp32_value(bits: int) -> float:
    """Return the value of a binary32 code as the machine reads it (subnormals and -0 as +0)."""
    return decode(flush(bits), FP32)


def flush(bits: int) -> int:
    """Return the code that the machine keeps for a binary32 code: +0 for zero and subnormals of either sign, 0x7FC00000 for any NaN."""
    exponent = bits >> 23 & 255
    if exponent == 0:
        return 0
    return NAN_BITS if exponent == 255 and bits & 0x7FFFFF else bits


def fp32_add(a: int, b: int) -> int:
    """Return the machine's code of a + b: one rounding of the exact sum; opposite infinities make NaN.

    The order of rounding and flushing cannot matter here: a sum below 2^-126 is exact (Hauser 1996, theorem 3.4.1).
    """
    x, y = fp32_value(a), fp32_value(b)
    if not (math.isfinite(x) and math.isfinite(y)):
        return fp32_bits(x + y)
    return fp32_bits(Fraction(x) + Fraction(y))


def fp32_mul(a: int, b: int) -> int:
    """Return the machine's code of a * b: the exact product rounded as IEEE 754 with gradual underflow, then +0 if subnormal.

    Hence a product of at least (1 - 2^-24) * 2^-126 becomes 2^-126: in hardware, all 24 leading product bits ones at exponent -127.
    """
    x, y = fp32_value(a), fp32_value(b)
    if not (math.isfinite(x) and math.isfinite(y)):
        return fp32_bits(x * y)
    return fp32_bits(Fraction(x) * Fraction(y))


def fp32_sub(a: int, b: int) -> int:
    """Return the machine's code of a - b: `fp32_add` of a and b with its sign turned."""
    return fp32_add(a, flush(b ^ 0x80000000))


def fp32_max(a: int, b: int) -> int:
    """Return the greater code, NaN if either is NaN."""
    x, y = fp32_value(a), fp32_value(b)
    if math.isnan(x) or math.isnan(y):
        return NAN_BITS
    return flush(a if x >= y else b)


def fp32_min(a: int, b: int) -> int:
    """Return the lesser code, NaN if either is NaN."""
    x, y = fp32_value(a), fp32_value(b)
    if math.isnan(x) or math.isnan(y):
        return NAN_BITS
    return flush(a if x <= y else b)


def fp32_sum(codes: list[int]) -> int:
    """Return the sum of a row in the machine's one order, whatever its number of lanes.

    Blocks of 32 by element index (the last one filled up with +0): adjacent pairs are added, then pairs of pairs, five levels.
    Block j's sum is added to the partial sum j modulo 4, ascending, all starting at +0; the result is (s0 + s1) + (s2 + s3).
    """
    partial = [0, 0, 0, 0]
    for j in range(0, len(codes), 32):
        block = [flush(code) for code in codes[j : j + 32]]
        level = block + [0] * (32 - len(block))
        while len(level) > 1:
            level = [fp32_add(level[i], level[i + 1]) for i in range(0, len(level), 2)]
        partial[j // 32 % 4] = fp32_add(partial[j // 32 % 4], level[0])
    return fp32_add(fp32_add(partial[0], partial[1]), fp32_add(partial[2], partial[3]))


def fp32_to_int(bits: int) -> int:
    """Return a code rounded to the nearest integer, ties to even, saturated to 32 bits signed; NaN gives 0."""
    value = fp32_value(bits)
    if math.isnan(value):
        return 0
    if math.isinf(value):
        return 2**31 - 1 if value > 0 else -(2**31)
    return max(-(2**31), min(2**31 - 1, round_half_even(Fraction(value))))


def bf16_of_fp32(bits: int) -> int:
    """Return the bf16 code nearest to a machine value, ties to even, overflow to infinity, NaN to 0x7FC0."""
    value = fp32_value(bits)
    return _nan_code(BF16) if math.isnan(value) else encode(value, BF16, saturate=False)
