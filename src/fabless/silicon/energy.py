"""Energy of each kind of event by process, from published tables and our own synthesis, low to high."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import log2
from typing import Literal

from fabless.core.errors import InputError, UnsupportedError, nearest
from fabless.core.ranges import Range
from fabless.core.sources import table
from fabless.silicon.process import fact_range, process_named

_MULTIPLIER = {
    "fp32": "mul_fp32",
    "tf32": "mul_fp16",
    "fp16": "mul_fp16",
    "bf16": "mul_bf16",
    "fp8_e4m3": "mul_fp8",
    "fp8_e5m2": "mul_fp8",
    "fp6_e2m3": "mul_fp6",
    "fp4_e2m1": "mul_fp4",
    "int8": "mul_int8",
    "int4": "mul_int4",
}
#: How products of a format are summed; formats not listed as 16-bit floats are.
_NARROW = ("fp8_e4m3", "fp8_e5m2", "fp6_e2m3", "fp4_e2m1")
_SRAM_ROWS = ("sram_8kib", "sram_32kib", "sram_1mib")


@dataclass(frozen=True, slots=True)
class EventEnergies:
    """Hold what does not depend on the size of the chip: operations, links, wires and off-chip bytes, in joules."""

    vector_op_j: Range
    dram_byte_j: Range
    link_byte_j: Range
    wire_byte_mm_j: Range
    die_to_die_byte_j: Range


def _energy(id: str) -> Range:
    return fact_range(table("energy").fact(id))


@cache
def event_energies(process: str, dram_standard: str) -> EventEnergies:
    """Return the energies of a process with a memory standard. Raises `InputError` for an unknown standard."""
    rows = {str(f.attributes["standard"]): f.id for f in table("energy") if "standard" in f.attributes}
    if dram_standard not in rows:
        raise InputError(f"no energy is known for memory '{dram_standard}'{nearest(dram_standard, rows)}; known: {', '.join(rows)}")
    ratio = process_named(process).energy_ratio
    return EventEnergies(
        vector_op_j=(_energy("mul_fp32_7nm") + _energy("add_fp32_7nm")) * _energy("vector_ratio") * ratio,
        dram_byte_j=_energy(rows[dram_standard]),
        link_byte_j=_energy("link"),
        wire_byte_mm_j=_energy("wire"),
        die_to_die_byte_j=_energy("die_to_die"),
    )


@cache
def mac_j(format: str, process: str, style: Literal["row", "array"]) -> Range:
    """Return joules per multiply-accumulate of an element format.

    row: our own netlist of a row on ASAP7 switching on real operands (`data/netlists.toml`): dot product x the format's area against int8, and block
    accumulator; x layout; array (systolic, tensor core): Jouppi 2021 operation energies x
    operand delivery. Raises `UnsupportedError` for a format without a row.
    """
    if format not in _MULTIPLIER:
        raise UnsupportedError(f"no energy is known for multipliers of {format}; known: {', '.join(_MULTIPLIER)}")
    ratio = process_named(process).energy_ratio
    if style == "row":
        blocks = table("process_blocks")
        area_ratio = Range.exact(1.0) if format == "int8" else fact_range(blocks.fact(f"row_{format}_ratio"))
        netlists = table("netlists")
        dot, accumulate = (fact_range(netlists.fact(f"asap7_{part}_j")) for part in ("dot", "accumulate"))
        return (dot * area_ratio + accumulate) * _energy("layout_ratio") * ratio
    return (_energy(f"{_MULTIPLIER[format]}_7nm") + _sum_j(format)) * _energy("local_ratio") * ratio


def _sum_j(format: str) -> Range:
    if format.startswith("int"):
        return _energy("add_int32_7nm")
    if format in _NARROW:
        return _energy("narrow_add_7nm")
    return _energy("add_fp32_7nm") if format == "fp32" else _energy("add_fp32_7nm") * _energy("tree_add_ratio")


@cache
def sram_byte_j(bank_bytes: float, process: str) -> Range:
    """Return joules per byte read from a bank: linear in log2 of its capacity between the three published sizes, level outside.

    Source: Jouppi 2021 Table 2 (8 KB, 32 KB and 1 MB at 7 nm).
    """
    points = [(log2(float(f.attributes["capacity_bytes"])), f.known) for f in (table("energy").fact(id) for id in _SRAM_ROWS)]
    x = min(max(log2(max(bank_bytes, 1.0)), points[0][0]), points[-1][0])
    (x0, y0), (x1, y1) = (points[0], points[1]) if x <= points[1][0] else (points[1], points[2])
    return process_named(process).energy_ratio * (y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def idle_memory_w(standard: str) -> float:
    """Return the power at rest of one stack, device, package or channel."""
    kind = next((k for k in ("hbm", "gddr", "lpddr", "ddr") if standard.startswith(k)), None)
    return table("energy").fact(f"idle_{kind}").known if kind else 0.0
