"""Number formats by name: what a tensor's values look like and how many bits each takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fabless.core.errors import InputError, nearest


@dataclass(frozen=True, slots=True)
class Format:
    """Describe an element format: sign, exponent and mantissa fields, or a two's complement integer.

    `bias` is the exponent bias; `infinities` tells whether the top exponent codes hold infinities and NaNs as in IEEE 754
    (e4m3 keeps them for finite values but for one NaN code, e2m1 has neither).
    Source: IEEE 754-2019; OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats 1.0.
    """

    name: str
    kind: Literal["int", "float", "scale"]
    bits: int
    exponent_bits: int = 0
    mantissa_bits: int = 0
    bias: int = 0
    infinities: bool = False

    @property
    def bits_per_value(self) -> float:
        """Return the bits that one value takes."""
        return float(self.bits)

    @property
    def bytes_per_value(self) -> float:
        """Return the bytes that one value takes."""
        return self.bits / 8


@dataclass(frozen=True, slots=True)
class Scaled:
    """Describe a block format: `block_values` elements share one scale (and NVFP4 one fp32 scale per tensor, not counted)."""

    name: str
    element: Format
    scale: Format
    block_values: int

    @property
    def bits_per_value(self) -> float:
        """Return the bits that one value takes with its share of the scale: 4.25 for mxfp4."""
        return self.element.bits + self.scale.bits / self.block_values

    @property
    def bytes_per_value(self) -> float:
        """Return the bytes that one value takes with its share of the scale."""
        return self.bits_per_value / 8


NumberFormat = Format | Scaled

FP32 = Format("fp32", "float", 32, 8, 23, 127, infinities=True)
TF32 = Format("tf32", "float", 32, 8, 10, 127, infinities=True)
BF16 = Format("bf16", "float", 16, 8, 7, 127, infinities=True)
FP16 = Format("fp16", "float", 16, 5, 10, 15, infinities=True)
E4M3 = Format("fp8_e4m3", "float", 8, 4, 3, 7)
E5M2 = Format("fp8_e5m2", "float", 8, 5, 2, 15, infinities=True)
E2M3 = Format("fp6_e2m3", "float", 6, 2, 3, 1)
E2M1 = Format("fp4_e2m1", "float", 4, 2, 1, 1)
E8M0 = Format("e8m0", "scale", 8, 8, 0, 127)
INT32 = Format("int32", "int", 32)
INT8 = Format("int8", "int", 8)
INT4 = Format("int4", "int", 4)

MXFP8 = Scaled("mxfp8", E4M3, E8M0, 32)
MXFP6 = Scaled("mxfp6", E2M3, E8M0, 32)
MXFP4 = Scaled("mxfp4", E2M1, E8M0, 32)
MXINT8 = Scaled("mxint8", INT8, E8M0, 32)
NVFP4 = Scaled("nvfp4", E2M1, E4M3, 16)
INT8_BLOCK32 = Scaled("int8_block32", INT8, FP16, 32)
INT4_BLOCK32 = Scaled("int4_block32", INT4, FP16, 32)


def integer_groups(element: Format = INT8, group: int = 32, scale: Format = FP16) -> Scaled:
    """Return the block format of integers in groups: `integer_groups(INT4, 128)` is int4_block128, with a bf16 scale int4_block128_bf16."""
    suffix = "" if scale == FP16 else f"_{scale.name}"
    return Scaled(f"{element.name}_block{group}{suffix}", element, scale, group)


_NAMED: tuple[NumberFormat, ...] = (
    FP32, TF32, BF16, FP16, E4M3, E5M2, E2M3, E2M1, INT32, INT8, INT4,
    MXFP8, MXFP6, MXFP4, MXINT8, NVFP4, INT8_BLOCK32, INT4_BLOCK32,
    *(integer_groups(element, group, scale) for element in (INT8, INT4) for group in (32, 64, 128) for scale in (FP16, BF16, FP32)),
)  # fmt: skip
FORMATS: dict[str, NumberFormat] = {f.name: f for f in _NAMED}
ALIASES = {
    "float32": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16",
    "fp8": "fp8_e4m3", "e4m3": "fp8_e4m3", "float8_e4m3fn": "fp8_e4m3", "e5m2": "fp8_e5m2", "float8_e5m2": "fp8_e5m2",
    "fp8_block": "fp8_e4m3", "fp6": "mxfp6", "fp4": "nvfp4", "e2m1": "fp4_e2m1", "i8": "int8", "i4": "int4",
}  # fmt: skip


def format_named(name: str) -> NumberFormat:
    """Return a format by name or common alias ("fp8", "bfloat16"); raises `InputError` naming the nearest."""
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key not in FORMATS:
        raise InputError(f"unknown number format '{name}'{nearest(key, [*FORMATS, *ALIASES])}; known: {', '.join(FORMATS)}")
    return FORMATS[key]


def element_of(format: NumberFormat) -> Format:
    """Return the element format that a multiplier sees: the block's element, or the format itself."""
    return format.element if isinstance(format, Scaled) else format
