"""The command that says what a chip's blocks cost in a process: area, clock and energy of their own netlists."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fabless.cli.say import say, say_json, say_pairs, say_table
from fabless.core.units import si

if TYPE_CHECKING:
    from fabless.program.tile import Tile
    from fabless.rtl.synthesis.report import BlockFigures, Report

Json = Annotated[bool, Parameter(name="--json", negative="")]


def synth(
    chip: Path | None = None,
    *,
    process: str,
    liberty: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    block: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    json: Json = False,
) -> None:
    """Synthesise the blocks of a chip of dot-product rows for a process: area, clock and energy of each, pre-layout.

    Each block is mapped once and multiplied. Library files are looked for under PDK_ROOT, or given.

    Args:
        chip: a chip.toml whose blocks are counted; the demonstration tile when not given.
        process: asap7, gt2n, sky130 or ihp.
        liberty: Liberty files (.lib, .lib.gz) of one corner that together are the library; instead of those under PDK_ROOT.
        block: blocks to synthesise: dot, accumulate, lane, add, multiply, function, row; dot and accumulate, which make a row, when not given.
        json: print JSON instead of text.
    """
    from fabless.rtl.synthesis.report import DEFAULT_BLOCKS, report

    root = os.environ.get("PDK_ROOT")
    result = report(process, tile=_tile(chip), liberties=liberty, pdk_root=Path(root) if root else None, blocks=block or DEFAULT_BLOCKS)
    if json:
        say_json(result)
        return
    _say(result)


def _tile(chip: Path | None) -> Tile:
    from fabless.program.tile import DEMO, Tile

    if chip is None:
        return DEMO
    from fabless.chip.catalogue import load_chip

    return Tile.of(load_chip(str(chip)))


def _say(result: Report) -> None:
    say(f"{result.title}: library {result.library}, {result.corner}, {result.stage}, {', '.join(result.tools)}")
    say()
    say_table(
        ("block", "count", "µm²", "µm² per op", "MHz", "pJ per op", "without glitches", "leakage", "gates", "recipe"),
        [_row(b) for b in result.blocks],
        right=tuple(range(1, 9)),
    )
    say()
    pairs = []
    if result.row is not None:
        r = result.row
        pairs += [
            (
                "one row",
                f"{r.um2_per_mac:,.4g} µm² a MAC: dot product {r.dot_um2_per_mac:,.4g}, block accumulator {r.accumulator_um2_per_mac:,.4g} ({r.accumulator_ratio:+.0%})",
            ),
            ("clock of a row", si(r.fmax_hz, "Hz")),
            ("energy of a row", f"{si(r.mac_j, 'J')} a MAC, leakage included"),
        ]
    pairs += [(f"{b.name}: critical path", " → ".join([*b.path, b.path_end])) for b in result.blocks]
    pairs += [
        (
            f"memory {m.name}",
            f"{m.width} x {m.depth}, {m.reads} read ports, one row: {f'{m.area_um2:,.0f} µm²' if m.area_um2 is not None else 'unknown'} ({m.basis})",
        )
        for m in result.memories
    ]
    pairs += [("activity", result.activity_source), ("not counted", result.limits)]
    say_pairs(pairs)


def _row(b: BlockFigures) -> tuple[str, ...]:
    return (
        b.name, str(b.count), f"{b.area_um2:,.1f}", f"{b.area_um2 / b.per_cycle:,.2f}", f"{b.fmax_hz / 1e6:,.0f}",
        "-" if b.operation_j is None else f"{b.operation_j * 1e12:.4g}", "-" if b.settled_j is None else f"{b.settled_j * 1e12:.4g}",
        si(b.leakage_w, "W"), f"{b.n_gates:,}", b.recipe,
    )  # fmt: skip
