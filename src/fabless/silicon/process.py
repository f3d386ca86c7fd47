"""Processes by name: densities, energy, leakage and clock limits, each from a sourced row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import exp, log
from typing import Literal

from fabless.core.errors import InputError, nearest
from fabless.core.ranges import Range
from fabless.core.sources import Fact, table

#: How a chip's clock was reached: a GPU vendor's custom flow, or an accelerator in standard cells.
Style = Literal["gpu", "asic"]

REFERENCE = "7nm"

#: Names that foundries use, and the process of the table each one is.
ALIASES = {
    "n28": "28nm", "n22": "22nm", "n20": "20nm", "n16": "16nm", "14nm": "16nm", "n12": "12nm", "n10": "10nm", "n7": "7nm", "n6": "6nm", "n5": "5nm",
    "n4": "4nm", "4n": "4nm", "n3": "3nm", "n3e": "3nm", "n3p": "3nm", "n2": "2nm",
    "18a": "intel_18a", "intel_3": "intel_4", "sf8": "samsung_8nm", "sf5": "samsung_5nm", "sf4": "samsung_4nm", "sf2": "samsung_2nm",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Process:
    """Hold what silicon needs to know of a process; ratios are against 7 nm.

    `logic_ratio`: area of the same logic; `phy_ratio`: area of analogue interfaces; `sram_mm2_per_byte`: bit cells alone;
    `energy_ratio`: energy of the same switching. Clock limits as (highest sold, beyond anything sold).
    """

    name: str
    logic_mtr_per_mm2: float
    logic_ratio: float
    phy_ratio: float
    sram_mm2_per_byte: float
    energy_ratio: Range
    leakage_w_per_mm2: float
    clocks_hz: tuple[tuple[Style, float, float], ...]


def process_names() -> tuple[str, ...]:
    """Return all processes, in the order of the table."""
    return tuple(dict.fromkeys(str(f.attributes["process"]) for f in table("process")))


@cache
def process_named(name: str) -> Process:
    """Return a process by name ("5nm", "samsung_8nm", "N3E"). Raises `InputError` naming the nearest."""
    key = name.strip().lower().replace(" ", "_").removeprefix("tsmc_")
    key = ALIASES.get(key, key)
    known = process_names()
    if key not in known:
        raise InputError(f"unknown process '{name}'{nearest(key, [*known, *ALIASES])}; known: {', '.join(known)}")
    facts = table("process")
    density = facts.fact(f"{key}_logic").known
    density_ratio = facts.fact(f"{REFERENCE}_logic").known / density
    blocks = table("process_blocks")
    return Process(
        name=key,
        logic_mtr_per_mm2=density,
        logic_ratio=density_ratio ** blocks.fact("logic_shrink").known,
        phy_ratio=density_ratio ** blocks.fact("phy_shrink").known,
        sram_mm2_per_byte=8.0 * facts.fact(f"{key}_bitcell").known * 1e-6,
        energy_ratio=fact_range(facts.fact(f"{key}_energy_ratio")),
        leakage_w_per_mm2=facts.fact(f"{key}_leakage").known,
        clocks_hz=(_clock(key, "gpu"), _clock(key, "asic")),
    )


def max_clock_hz(process: str, style: Style = "asic") -> Range:
    """Return the clock limits of a process: low is safe, mid the highest sold, high what nothing sold reaches.

    Source: boost clocks of GPUs and clocks of accelerators by process (`data/process.toml`); interpolated where none was sold.
    """
    return fact_range(table("process").fact(f"{process_named(process).name}_{style}_clock"))


@cache
def own_clock_hz(process: str) -> float:
    """Return the highest clock of fabless' own cores on a process: what static timing of our rows' netlists says, or the highest clock of an accelerator
    sold there, whichever is lower.

    Netlists exist at 7 nm and 2 nm (`data/netlists.toml`, pre-layout): interpolated between them by the logarithm of logic density, level outside.
    """
    netlists = table("netlists")
    (x0, y0), (x1, y1) = (
        (log(process_named(at).logic_mtr_per_mm2), log(netlists.fact(f"{kit}_row_clock").known))
        for at, kit in (("7nm", "asap7"), ("2nm", "gt2n"))
    )
    x = min(max(log(process_named(process).logic_mtr_per_mm2), x0), x1)
    return min(exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0)), max_clock_hz(process).mid)


def fact_range(fact: Fact) -> Range:
    """Return a row as a range."""
    return Range(*fact.range)


def _clock(process: str, style: Style) -> tuple[Style, float, float]:
    _, mid, high = table("process").fact(f"{process}_{style}_clock").range
    return style, mid, high
