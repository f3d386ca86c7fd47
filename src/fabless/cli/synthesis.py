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
    place: Annotated[bool, Parameter(negative="")] = False,
    report: Path | None = None,
    fresh: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Synthesise the blocks of a chip of dot-product rows for a process: area, clock and energy of each, pre-layout or placed.

    Each block of a tile is mapped once and multiplied; energies come from the gates switching on what the blocks meet while the embedded model runs.
    Library files are looked for under PDK_ROOT, or given. Finished blocks are kept: a run that was cut off goes on where it was.

    Args:
        chip: a chip.toml whose tile is synthesised, or tiny; the demonstration tile when not given.
        process: asap7, gt2n, sky130 or ihp.
        liberty: Liberty files (.lib, .lib.gz) of one corner that together are the library; instead of those under PDK_ROOT.
        block: blocks to synthesise, such as dot, accumulate, lane or sequencer; all of the tile when not given.
        place: place the cells of every block, make gates stronger where wires slow them, and count wires (pip install 'fabless[place]').
        report: write a page with floorplan, breakdown and critical path to this HTML file.
        fresh: do not use blocks kept from earlier runs.
        json: print JSON instead of text.
    """
    from fabless.cli.execute import clear, note
    from fabless.core.errors import InputError
    from fabless.fleet.recorded import decode_stimulus, stimulus_source
    from fabless.rtl.synthesis.cache import user_cache
    from fabless.rtl.synthesis.report import report as synthesised

    if report is not None and not report.parent.is_dir():
        raise InputError(f"--report {report}: there is no folder {report.parent}; make it first")
    if report is not None and block:
        raise InputError("--report shows a whole tile; leave out --block")
    root = os.environ.get("PDK_ROOT")
    tile = _tile(chip)
    try:
        result = synthesised(
            process, tile=tile, liberties=liberty, pdk_root=Path(root) if root else None, blocks=block,
            stimulus=(stimulus_source(), lambda: decode_stimulus(tile)), kept=None if fresh else user_cache(), say=note,
            place=place,
        )  # fmt: skip
    finally:
        clear()
    if report is not None:
        from fabless.report.synthesis_page import synthesis_page

        command = " ".join(
            ["fabless synth", *([str(chip)] if chip else []), f"--process {process}", *(["--place"] if place else []), f"--report {report}"]
        )
        report.write_text(synthesis_page(result, command), "utf-8")
    if json:
        say_json(result)
        return
    _say(result)
    if report is not None:
        say()
        say(f"{report}: the same with floorplan and breakdown")


def _tile(chip: Path | None) -> Tile:
    from fabless.program.tile import DEMO, TINY, Tile

    if chip is None:
        return DEMO
    if str(chip) == "tiny":
        return TINY
    from fabless.chip.catalogue import load_chip

    return Tile.of(load_chip(str(chip)))


def _say(result: Report) -> None:
    say(f"{result.title}: library {result.library}, {result.corner}, {result.stage}, {', '.join(result.tools)}")
    say()
    say_table(
        (
            "block",
            "count",
            "µm²",
            "core µm²",
            "MHz",
            "pJ per",
            "operation",
            "without glitches",
            "pJ idle cycle",
            "busy",
            "leakage",
            "gates",
            "recipe",
        ),
        [_row(b) for b in result.blocks],
        right=(1, 2, 3, 4, 5, 7, 8, 9, 10, 11),
    )
    say()
    pairs = []
    if result.tile is not None:
        t = result.tile
        memory = f"memories {t.memory_um2:,.0f} µm²" if t.memory_um2 is not None else "memories unknown"
        pairs += [
            (
                f"tile of {result.rows} rows, {result.vector_lanes} lanes",
                f"logic {t.logic_um2:,.0f} µm², {memory}, leakage {si(t.leakage_w, 'W')}",
            ),
            ("clock of the tile", f"{si(t.fmax_hz, 'Hz')}, set by {t.slowest} (aim: {si(result.clock_hz, 'Hz')})"),
        ]
        short = [b.name for b in result.blocks if b.fmax_hz < result.clock_hz]
        pairs += [("below the aim", ", ".join(short))] if short else []
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
    slow = min(result.blocks, key=lambda b: b.fmax_hz)
    pairs += [
        (
            f"critical path: {slow.name}",
            " → ".join([*(f"{s.cell or 'port'} {s.arrival_s * 1e12:.0f} ps" for s in slow.path), f"setup {slow.setup_s * 1e12:.0f} ps"]),
        ),
        *(
            (
                f"memory {m.name}",
                f"{m.count} of {m.width} x {m.depth}, {m.reads} read ports: {f'{m.area_um2:,.0f} µm² each' if m.area_um2 is not None else 'unknown'} ({m.basis})",
            )
            for m in result.memories
        ),
        *((f"activity {i + 1}" if i else "activity", text) for i, text in enumerate(dict.fromkeys(b.activity for b in result.blocks))),
        ("not counted", result.limits),
    ]
    say_pairs(pairs)


def _row(b: BlockFigures) -> tuple[str, ...]:
    return (
        b.name, str(b.count), f"{b.area_um2:,.1f}", "-" if b.core_um2 is None else f"{b.core_um2:,.0f}", f"{b.fmax_hz / 1e6:,.0f}", "-" if b.operation_j is None else f"{b.operation_j * 1e12:.4g}", b.operation,
        "-" if b.settled_j is None else f"{b.settled_j * 1e12:.4g}", "-" if b.idle_j is None else f"{b.idle_j * 1e12:.4g}",
        "-" if b.busy_ratio is None else f"{b.busy_ratio:.0%}", si(b.leakage_w, "W"), f"{b.n_gates:,}", b.recipe,
    )  # fmt: skip
