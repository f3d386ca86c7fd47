"""The space of chips: every combination of the study's axes, numbered, each a `Chip` of fabless' own family."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from fabless.chip.chip import Chip, Core, Dram, Link, Mxu, Sram
from fabless.core.errors import InputError, nearest
from fabless.core.sources import table
from fabless.core.units import binary, si
from fabless.explore.study import AXES, LinkChoice, MemoryChoice, Space
from fabless.silicon.interfaces import interface_bits_per_s

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Banks of a core's scratchpad, each as wide as a row's lanes: reads and writes of activations beside the weight stream do not collide.
_BANKS = 16
#: Activation rows whose sums a core holds at a time: each weight fetched from the scratchpad is used that often.
_HELD = 64


def choices(space: Space, index: int) -> dict[str, Any]:
    """Return the value of each axis for the design of a number; the last axis varies fastest."""
    chosen: dict[str, Any] = {}
    for axis in reversed(AXES):
        values: Sequence[Any] = getattr(space, axis)
        index, position = divmod(index, len(values))
        chosen[axis] = values[position]
    return {axis: chosen[axis] for axis in AXES}


def chip_of(space: Space, index: int) -> Chip:
    """Build the chip of a number, `0 <= index < space.n_designs`."""
    c = choices(space, index)
    return Chip(
        name=f"design-{index}",
        family="fabless",
        process=c["process"],
        clock_hz=c["clock_hz"],
        n_cores=c["cores"],
        core=Core(
            matrix=Mxu(c["rows"], c["lanes"], tuple(rate_of(f) for f in c["formats"])),
            vector_lanes=c["vector_lanes"],
            scratchpad=Sram(c["scratchpad_bytes"], banks=_BANKS, width_bytes=c["lanes"]),
            accumulator=Sram(c["rows"] * _HELD * 4.0, banks=1, width_bytes=4 * c["rows"]),
        ),
        dram=dram_of(c["memory"], c["process"]),
        link=link_of(c["link"]),
        shared=Sram(c["shared_bytes"], banks=c["cores"], width_bytes=64) if c["shared_bytes"] else None,
        n_dies=c["dies"],
        package="interposer" if c["memory"].standard.startswith("hbm") else "organic",
        spare_cores=ceil(c["cores"] * space.spare_ratio),
    )


def rate_of(text: str) -> tuple[str, float]:
    """Read a format and its rate: `"int8"` -> `("int8", 1.0)`, `"bf16/8"` -> `("bf16", 0.125)`, multiplied at an eighth of the array's rate."""
    name, _, divisor = text.partition("/")
    return name, 1.0 / int(divisor or 1)


def dram_of(choice: MemoryChoice, process: str) -> Dram:
    """Return the off-chip memory of a choice: so many stacks or devices of the largest kind in `data/memory_standards.toml`.

    Pins run as fast as both the standard and an interface on the process do; where none is known (the search refuses such chips), as the standard.
    """
    if choice.standard == "none":
        return Dram("none", 0, 0.0, 0.0)
    facts = table("memory_standards")
    known = list(dict.fromkeys(str(f.attributes["standard"]) for f in facts))
    if choice.standard not in known:
        raise InputError(f"space.memory: no standard '{choice.standard}'{nearest(choice.standard, known)}; known: {', '.join(known)}")
    width, rate, capacity, latency = (
        facts.fact(f"{choice.standard}_{what}").known for what in ("width_bits", "pin_bits_per_s", "unit_capacity_bytes", "latency_s")
    )
    rate = min(rate, interface_bits_per_s(choice.standard, process) or rate)
    return Dram(choice.standard, choice.stacks, choice.stacks * capacity, choice.stacks * width * rate / 8, latency)


def link_of(choice: LinkChoice) -> Link:
    """Return the chip-to-chip network of a choice."""
    return Link(
        topology=choice.topology,  # type: ignore[arg-type]  # the study file checks it against Link's own list
        ports=choice.ports,
        bandwidth_bytes_per_s=choice.bandwidth_bytes_per_s,
        latency_s=choice.latency_s,
        domain_chips=choice.domain_chips,
        network_bandwidth_bytes_per_s=choice.network_bandwidth_bytes_per_s,
    )


def axis_text(axis: str, value: Any) -> str:
    """Write a value of an axis for people: `axis_text("clock_hz", 1.2e9)` -> `"1.2 GHz"`."""
    if isinstance(value, MemoryChoice):
        return "none" if value.standard == "none" else f"{value.standard} x{value.stacks}"
    if isinstance(value, LinkChoice):
        rate = si(value.bandwidth_bytes_per_s, "B/s")
        return "none" if value.topology == "none" else f"{value.topology} {rate} x{value.domain_chips}"
    if axis == "clock_hz":
        return si(value, "Hz")
    if axis.endswith("_bytes"):
        return binary(value)
    return "+".join(value) if isinstance(value, tuple) else str(value)


def design_text(space: Space, index: int) -> str:
    """Write a design in one line: process, array, memory, links."""
    c = choices(space, index)
    return (
        f"{c['process']}, {c['cores']} cores of {c['rows']}x{c['lanes']} {axis_text('formats', c['formats'])} at {si(c['clock_hz'], 'Hz')}, "
        f"{binary(c['scratchpad_bytes'])} a core, {'' if c['dies'] == 1 else str(c['dies']) + ' dies, '}"
        f"{axis_text('memory', c['memory'])}, link {axis_text('link', c['link'])}"
    )
