"""One table for a process: every block once, what a row comes to, the memories beside it, and what was measured how."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from fabless.rtl.synthesis.kit import find_liberties, find_macros, kit_named
from fabless.rtl.synthesis.liberty import Library
from fabless.rtl.synthesis.measure import activity_energy
from fabless.rtl.synthesis.operands import SOURCE
from fabless.rtl.synthesis.synthesise import memory_um2, row_memories, subject, synthesise
from fabless.rtl.synthesis.yosys import yosys_version

if TYPE_CHECKING:
    from pathlib import Path

    from fabless.program.tile import Tile
    from fabless.rtl.synthesis.kit import Kit

DEFAULT_BLOCKS = ("dot", "accumulate")
STAGE = "pre-layout"
LIMITS = "wires, clock tree, scan and tie cells: the netlist is not placed"


@dataclass(frozen=True, slots=True)
class BlockFigures:
    """Hold the figures of one block: area of one, clock, joules of an operation with (`operation_j`) and without glitches, without leakage."""

    name: str
    title: str
    count: int
    operation: str
    per_cycle: int
    area_um2: float
    fmax_hz: float
    setup_s: float
    operation_j: float | None
    settled_j: float | None
    leakage_w: float
    n_flops: int
    n_gates: int
    n_results: int
    glitch_ratio: float | None
    toggles_per_net: float | None
    recipe: str
    path: tuple[str, ...]
    path_end: str


@dataclass(frozen=True, slots=True)
class RowFigures:
    """Hold what a row of 32 lanes comes to: dot product and block accumulator; `mac_j` includes leakage at the kit's clock."""

    um2_per_mac: float
    dot_um2_per_mac: float
    accumulator_um2_per_mac: float
    fmax_hz: float
    mac_j: float

    @property
    def accumulator_ratio(self) -> float:
        """Return the accumulator's area over that of the dot product."""
        return self.accumulator_um2_per_mac / self.dot_um2_per_mac


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """Hold one memory of a row: its shape, area (None: unknown) and how that was found."""

    name: str
    width: int
    depth: int
    reads: int
    area_um2: float | None
    basis: str


@dataclass(frozen=True, slots=True)
class Report:
    """Hold all figures for one process with library, corner, tools, and what they leave out."""

    process: str
    title: str
    library: str
    corner: str
    stage: str
    tools: tuple[str, ...]
    blocks: tuple[BlockFigures, ...]
    row: RowFigures | None
    memories: tuple[MemoryFigures, ...]
    activity_source: str
    limits: str


def report(
    process: str, *, tile: Tile, liberties: tuple[Path, ...], pdk_root: Path | None, blocks: tuple[str, ...] = DEFAULT_BLOCKS
) -> Report:
    """Synthesise blocks for a process and return their figures; `liberties` stand in for those found below `pdk_root`.

    Raises `InputError` for an unknown process, block or file, `UnsupportedError` for a library that lacks cells, `MissingToolError` for tools.
    """
    kit = kit_named(process)
    library = Library(liberties or find_liberties(kit, pdk_root))
    figures = tuple(_figures(name, kit, library, tile) for name in blocks)
    memories = tuple(
        MemoryFigures(m.name, m.width, m.depth, m.reads, *memory_um2(m, kit, find_macros(kit, pdk_root))) for m in row_memories(tile)
    )
    tools = (yosys_version(), f"amaranth {version('amaranth')}", "static timing and power by fabless")
    return Report(kit.name, kit.title, library.name, library.corner, STAGE, tools, figures, _row(figures, kit), memories, SOURCE, LIMITS)


def _figures(name: str, kit: Kit, library: Library, tile: Tile) -> BlockFigures:
    what = subject(name)
    s = synthesise(name, kit, library)
    activity = activity_energy(s)
    return BlockFigures(
        name, what.title, what.count(tile), what.operation, what.per_cycle, s.area_um2, s.timing.fmax_hz, s.timing.setup_s,
        activity.cycle.dynamic_j / what.per_cycle if activity else None,
        activity.settled.dynamic_j / what.per_cycle if activity else None,
        s.netlist.leakage_w, len(s.netlist.flops), len(s.netlist.gates), activity.n_results if activity else 0,
        activity.glitch_ratio if activity else None, activity.toggles_per_net if activity else None, s.recipe,
        tuple(f"{step.cell or 'port'} {step.arrival_s * 1e12:.0f} ps" for step in s.timing.path), f"setup {s.timing.setup_s * 1e12:.0f} ps",
    )  # fmt: skip


def _row(figures: tuple[BlockFigures, ...], kit: Kit) -> RowFigures | None:
    """Return a row from its two parts, or None unless both were synthesised."""
    by_name = {f.name: f for f in figures}
    if not {"dot", "accumulate"} <= by_name.keys():
        return None
    parts = [by_name["dot"], by_name["accumulate"]]
    dot, accumulator = (p.area_um2 / p.per_cycle for p in parts)
    joules = sum((p.operation_j or 0.0) + p.leakage_w / kit.clock_hz / p.per_cycle for p in parts)
    return RowFigures(dot + accumulator, dot, accumulator, min(p.fmax_hz for p in parts), joules)
