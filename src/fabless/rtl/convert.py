"""Formats in memory to what the buffers hold, and back: small combinational functions on slices."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value

from fabless.rtl.floating import normalised

#: The upper 19 bits of the one NaN: what a weight scale holds of it.
NAN19 = 0x7FC00000 >> 13
NAN16 = 0x7FC0


def nibble(code: Value, *, is_e2m1: Value) -> Value:
    """Return the int8 of a 4-bit code: two's complement, or e2m1 as twice its value."""
    low = code[0:3]
    magnitude = Mux(low < 4, low, Mux(low == 4, 4, Mux(low == 5, 6, Mux(low == 6, 8, 12))))
    sign = code[3]
    return Cat(Mux(is_e2m1, Mux(sign, -magnitude, magnitude)[0:4], code), (sign & (~is_e2m1 | (low != 0))).replicate(4))


def bf16_flushed(code: Value) -> Value:
    """Return the canonical bf16 code."""
    return Mux(code[7:15] == 0, 0, Mux((code[7:15] == 255) & (code[0:7] != 0), NAN16, code))[0:16]


def fp16(m: Module, code: Value, name: str) -> Value:
    """Return an fp16 code as the upper 19 bits of binary32; every fp16 but 0 is normal there."""
    exponent, fraction, sign = code[10:15], code[0:10], code[15]
    norm, count = normalised(m, fraction, name)
    small = Mux(fraction == 0, 0, Cat(C(0, 1), norm[0:9], (112 - count)[0:8], sign))
    large = Mux(fraction == 0, Cat(C(255 << 10, 18), sign), NAN19)
    normal = Cat(fraction, (exponent + 112)[0:8], sign)
    return Mux(exponent == 0, small, Mux(exponent == 31, large, normal))[0:19]


def e4m3(code: Value, *, halved: Value) -> Value:
    """Return an e4m3 code, or half its value, as the upper 19 bits of binary32."""
    exponent, fraction, sign = code[3:7], code[0:3], code[7]
    zeros = C(0, 7)
    up = 120 - halved
    small = Mux(
        fraction[2], Cat(C(0, 8), fraction[0:2], up[0:8], sign),
        Mux(fraction[1], Cat(C(0, 9), fraction[0], (up - 1)[0:8], sign), Mux(fraction[0], Cat(C(0, 10), (up - 2)[0:8], sign), 0)),
    )  # fmt: skip
    nan = code[0:7] == 0x7F
    return Mux(nan, NAN19, Mux(exponent == 0, small, Cat(zeros, fraction, (exponent + up)[0:8], sign)))[0:19]


def e8m0(code: Value, *, halved: Value) -> Value:
    """Return an e8m0 code, or half its value, as the upper 19 bits of binary32: 2^(code - 127), 255 NaN, below 2^-126 zero."""
    return Mux(code == 255, NAN19, Mux(code <= halved, 0, Cat(C(0, 10), (code - halved)[0:8])))[0:19]


def from_int8(m: Module, code: Value, name: str) -> Value:
    """Return the binary32 code of an int8."""
    magnitude = Signal(8, name=f"{name}_magnitude")
    m.d.comb += magnitude.eq(Mux(code[7], -code.as_signed(), code))
    norm, count = normalised(m, magnitude, name)
    return Mux(code == 0, 0, Cat(C(0, 16), norm[0:7], (134 - count)[0:8], code[7]))[0:32]


def from_index(m: Module, index: Value, name: str) -> Value:
    """Return the binary32 code of a small unsigned integer (at most 24 bits)."""
    width = len(index)
    norm, count = normalised(m, index, name)
    return Mux(index == 0, 0, Cat(C(0, 24 - width), norm[0 : width - 1], (126 + width - count)[0:8], C(0, 1)))[0:32]


def to_bf16(code: Value) -> Value:
    """Return the nearest bf16 of a canonical code, ties to even, overflow to infinity."""
    nan = (code[23:31] == 255) & (code[0:23] != 0)
    return Mux(nan, NAN16, (code[16:32] + (code[15] & (code[16] | (code[0:15] != 0))))[0:16])
