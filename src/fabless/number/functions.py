"""exp2, reciprocal and reciprocal square root as the hardware computes them: integers, one table look-up, one quadratic step.

The tables are the ROM contents. An interval of 2^-7 is one row (c0, c1, c2): the parabola through its ends and middle, in units of 2^-28.
With the offset d in the interval of `D` bits,

    y = c0 + ((c1 + (c2 * d >> D)) * d >> D)        (`>>` floors, on two's complement)

and the 24-bit significand is y rounded half up. `sigmoid`, `tanh`, `silu`, `gelu` are stated sequences of these and of binary32 operations.
Scalars are binary32 codes; array twins (suffix `_array`) take and return float32 arrays and agree on every code.

Greatest errors, in units in the last place of the result, measured over all significands and stated here as the contract that tests hold:
exp2 0.57, rcp 0.95, rsqrt 0.70 (rounding alone is 0.5); exp2 of integers, rcp of powers of two and rsqrt of powers of four are exact.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache
from math import isqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fabless.number.round import INFINITY_BITS, NAN_BITS, flush, fp32_add, fp32_mul

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Fractional bits of table entries and of y.
TABLE_BITS = 28
#: Leading fraction bits that select a table row.
INDEX_BITS = 7
#: Bits of the offset d: exp2 keeps 26 fraction bits of its argument, rcp and rsqrt have 23.
EXP2_OFFSET_BITS = 19
RCP_OFFSET_BITS = 16
RSQRT_OFFSET_BITS = 16

#: fp32 code of -log2(e), the constant of `sigmoid`: -1.4426950216293335.
MINUS_LOG2E_BITS = 0xBFB8AA3B
ONE_BITS = 0x3F800000


class Rom(NamedTuple):
    """Hold the three columns of a table, each int64: `[128]` (exp2, rcp) or `[256]` (rsqrt: exponents even, then odd)."""

    c0: NDArray[np.int64]
    c1: NDArray[np.int64]
    c2: NDArray[np.int64]


def _parabola(ends: list[int], middles: list[int]) -> Rom:
    """Return the rows through f(0), f(1/2), f(1) of each interval; inputs carry 32 bits below the table's unit."""
    rows = []
    for f0, f1, fh in zip(ends, ends[1:], middles, strict=False):
        rows.append(tuple(v + (1 << 31) >> 32 for v in (f0, -3 * f0 + 4 * fh - f1, 2 * f0 - 4 * fh + 2 * f1)))
    columns = np.array(rows, dtype=np.int64).T
    return Rom(*(np.ascontiguousarray(c) for c in columns))


@cache
def exp2_rom() -> Rom:
    """Return the table of 2^f, f in [0, 1), from 50-digit decimals: the same on every machine."""
    with localcontext() as context:
        context.prec = 50
        ln2, unit = Decimal(2).ln(), Decimal(1 << TABLE_BITS + 32)
        points = [int(((ln2 * i / 256).exp() * unit).to_integral_value()) for i in range(257)]
    points[0], points[256] = 1 << TABLE_BITS + 32, 1 << TABLE_BITS + 33
    return _parabola(points[0::2], points[1::2])


@cache
def rcp_rom() -> Rom:
    """Return the table of 1 / m, m in [1, 2)."""
    points = [((256 << TABLE_BITS + 32) * 2 // (256 + i) + 1) // 2 for i in range(257)]
    return _parabola(points[0::2], points[1::2])


@cache
def rsqrt_rom() -> Rom:
    """Return the table of m^-1/2: 128 rows for m in [1, 2), then 128 for m in [2, 4)."""
    halves = []
    for factor in (1, 2):
        points = [isqrt((256 << 2 * (TABLE_BITS + 32)) // (factor * (256 + i))) for i in range(257)]
        halves.append(_parabola(points[0::2], points[1::2]))
    return Rom(*(np.concatenate(pair) for pair in zip(*halves, strict=True)))


def _quadratic(rom: Rom, row: int, d: int, offset_bits: int) -> int:
    return int(rom.c0[row]) + ((int(rom.c1[row]) + (int(rom.c2[row]) * d >> offset_bits)) * d >> offset_bits)


def exp2(x: int) -> int:
    """Return the code of 2^x: +inf from 128 on, +0 below -126; x is cut (floor) to 26 fraction bits."""
    x = flush(x)
    if x == NAN_BITS:
        return NAN_BITS
    exponent, significand = (x >> 23 & 255) - 127, x & 0x7FFFFF | 0x800000
    if x == 0:
        return ONE_BITS
    if exponent >= 7:  # |x| >= 128
        return 0 if x >> 31 else INFINITY_BITS
    magnitude = significand << exponent + 3 if exponent >= -3 else significand  # in units of 2^-26, below: of 2^(exponent - 23)
    signed = -magnitude if x >> 31 else magnitude
    fixed = signed if exponent >= -3 else signed >> min(-3 - exponent, 40)
    whole, fraction = fixed >> 26, fixed & (1 << 26) - 1
    if whole < -126:
        return 0
    y = _quadratic(exp2_rom(), fraction >> EXP2_OFFSET_BITS, fraction & (1 << EXP2_OFFSET_BITS) - 1, EXP2_OFFSET_BITS)
    return (whole + 126 << 23) + (y + 16 >> 5)  # the significand's leading one adds 1 to the exponent; a carry adds another


def rcp(x: int) -> int:
    """Return the code of 1 / x: +inf for 0 (there is no -0), +0 for infinities and where 1 / x is below 2^-126."""
    x = flush(x)
    if x == NAN_BITS:
        return NAN_BITS
    sign, exponent, fraction = x & 0x80000000, x >> 23 & 255, x & 0x7FFFFF
    if exponent in {0, 255}:
        return 0 if exponent else INFINITY_BITS
    y = _quadratic(rcp_rom(), fraction >> RCP_OFFSET_BITS, fraction & (1 << RCP_OFFSET_BITS) - 1, RCP_OFFSET_BITS)
    code = (252 - exponent << 23) + (y + 8 >> 4)  # y in (1/2, 1]: biased exponent 127 - (exponent - 127) - 1, less the leading one
    return sign | code if code >= 1 << 23 else 0


def rsqrt(x: int) -> int:
    """Return the code of x^-1/2: +inf for 0, NaN below 0, +0 for +inf."""
    x = flush(x)
    if x == NAN_BITS or x >> 31:
        return NAN_BITS
    exponent, fraction = x >> 23, x & 0x7FFFFF
    if exponent in {0, 255}:
        return 0 if exponent else INFINITY_BITS
    odd = exponent + 1 & 1  # the bias is odd: an even biased exponent means m in [2, 4)
    half = exponent - 127 - odd >> 1
    row = odd << INDEX_BITS | fraction >> RSQRT_OFFSET_BITS
    y = _quadratic(rsqrt_rom(), row, fraction & (1 << RSQRT_OFFSET_BITS) - 1, RSQRT_OFFSET_BITS)
    return (125 - half << 23) + (y + 8 >> 4)


def sigmoid(x: int) -> int:
    """Return the code of 1 / (1 + e^-x) as the compiler emits it: rcp(1 + exp2(x * -log2(e)))."""
    return rcp(fp32_add(exp2(fp32_mul(x, MINUS_LOG2E_BITS)), ONE_BITS))


# Array twins.


def exp2_array(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `exp2` of every element; bit-identical to the scalar."""
    x = x.astype(np.float32, copy=False)
    clipped = np.clip(np.nan_to_num(x.astype(np.float64)), -127.0, 128.0)
    fixed = np.floor(clipped * (1 << 26)).astype(np.int64)
    fraction = fixed & (1 << 26) - 1
    y = _quadratic_array(exp2_rom(), fraction >> EXP2_OFFSET_BITS, fraction & (1 << EXP2_OFFSET_BITS) - 1, EXP2_OFFSET_BITS)
    code = ((fixed >> 26) + 126 << 23) + (y + 16 >> 5)
    code = np.where(x < -126, 0, np.where(x >= 128, INFINITY_BITS, code))
    return _from_codes(np.where(np.isnan(x), NAN_BITS, code))


def rcp_array(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `rcp` of every element; bit-identical to the scalar."""
    bits = _codes(x)
    exponent, fraction = bits >> 23 & 255, bits & 0x7FFFFF
    y = _quadratic_array(rcp_rom(), fraction >> RCP_OFFSET_BITS, fraction & (1 << RCP_OFFSET_BITS) - 1, RCP_OFFSET_BITS)
    code = (252 - exponent << 23) + (y + 8 >> 4)
    code = np.where(code >= 1 << 23, code | bits & 0x80000000, 0)
    code = np.where(exponent == 0, INFINITY_BITS, np.where(exponent == 255, 0, code))
    return _from_codes(np.where(np.isnan(x), NAN_BITS, code))


def rsqrt_array(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `rsqrt` of every element; bit-identical to the scalar."""
    bits = _codes(x)
    exponent, fraction = bits >> 23 & 255, bits & 0x7FFFFF
    odd = exponent + 1 & 1
    row = odd << INDEX_BITS | fraction >> RSQRT_OFFSET_BITS
    y = _quadratic_array(rsqrt_rom(), row, fraction & (1 << RSQRT_OFFSET_BITS) - 1, RSQRT_OFFSET_BITS)
    code = (125 - (exponent - 127 - odd >> 1) << 23) + (y + 8 >> 4)
    code = np.where(exponent == 0, INFINITY_BITS, np.where(exponent == 255, 0, code))
    negative = (bits >> 31 != 0) & (exponent != 0)
    return _from_codes(np.where(np.isnan(x) | negative, NAN_BITS, code))


def sigmoid_array(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `sigmoid` of every element; bit-identical to the scalar."""
    from fabless.number.arrays import add, mul

    minus_log2e = np.uint32(MINUS_LOG2E_BITS).view(np.float32)
    return rcp_array(add(exp2_array(mul(x, minus_log2e)), np.float32(1)))


def _quadratic_array(rom: Rom, row: NDArray[np.int64], d: NDArray[np.int64], offset_bits: int) -> NDArray[np.int64]:
    y: NDArray[np.int64] = rom.c0[row] + ((rom.c1[row] + (rom.c2[row] * d >> offset_bits)) * d >> offset_bits)
    return y


def _codes(x: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.int64)


def _from_codes(codes: NDArray[np.int64]) -> NDArray[np.float32]:
    return codes.astype(np.uint32).view(np.float32)
