"""Which memory a process has an interface for, and how fast its pins run: rows of `data/memory_interfaces.toml`."""

from __future__ import annotations

from functools import cache
from math import inf, log

from fabless.core.sources import table
from fabless.silicon.process import process_named


@cache
def interface_bits_per_s(standard: str, process: str) -> float | None:
    """Return the fastest pins that a memory standard has on a process, in bit/s; None where no interface is known, infinite where no row limits it.

    What an older process has, a newer one has, too; newer is what holds more transistors per mm2.
    """
    rows = [(process_named(str(f.attributes["process"])), f.known) for f in table("memory_interfaces").select(standard=standard)]
    if not rows:
        return inf
    density = process_named(process).logic_mtr_per_mm2
    return max((rate for found, rate in rows if found.logic_mtr_per_mm2 <= density), default=None)


@cache
def interface_excess(standard: str, process: str) -> float:
    """Return by how much a process is too old for a memory standard: the logarithm of the density of the oldest that has it over its own; 0 if it has it."""
    if interface_bits_per_s(standard, process) is not None:
        return 0.0
    facts = table("memory_interfaces").select(standard=standard)
    oldest = min(process_named(str(f.attributes["process"])).logic_mtr_per_mm2 for f in facts)
    return log(oldest / process_named(process).logic_mtr_per_mm2)
