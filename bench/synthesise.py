"""Synthesise a tile for every process and write its figures as the rows of data/netlists.toml: PDK_ROOT=... python bench/synthesise.py > rows.toml"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fabless.fleet.recorded import decode_stimulus, stimulus_source
from fabless.program.tile import DEMO
from fabless.rtl.synthesis.cache import user_cache
from fabless.rtl.synthesis.kit import kits
from fabless.rtl.synthesis.report import report

if TYPE_CHECKING:
    from fabless.rtl.synthesis.report import BlockFigures, Report

#: id, value, unit, note, and for an energy its figure without glitches.
Row = tuple[str, float, str, str, float | None]


def rows(r: Report, date: str) -> str:
    by_name = {b.name: b for b in r.blocks}
    dot, accumulate = by_name["dot"], by_name["accumulate"]
    assert r.row is not None
    assert dot.operation_j is not None
    assert accumulate.operation_j is not None
    figures: list[Row] = [
        ("dot_um2", dot.area_um2 / 32, "um2", "dot product, cell area per multiply-accumulate", None),
        ("accumulate_um2", accumulate.area_um2 / 32, "um2", "block accumulator of a row, per multiply-accumulate; memories apart", None),
        ("row_clock", r.row.fmax_hz, "Hz", "lower of the two parts by static timing", None),
        ("dot_j", dot.operation_j, "J", f"per multiply-accumulate on {r.activity_source}; low: without glitches", dot.settled_j),
        (
            "accumulate_j",
            accumulate.operation_j,
            "J",
            "block accumulator, per multiply-accumulate, on the same operands; low: without glitches",
            accumulate.settled_j,
        ),
        ("row_leakage", dot.leakage_w + accumulate.leakage_w, "W", "one row", None),
    ]
    title = f"fabless' own netlist of a 32-lane int8 row: {r.library}, {r.corner}, {r.stage}; {', '.join(r.tools)}"
    text = source(r.process, title, date) + "".join(row(r.process, r.process, f) for f in figures)
    if r.tile is None:
        return text
    title = f"fabless' own netlists of a tile of {r.rows} rows and {r.vector_lanes} vector lanes: {r.library}, {r.corner}, {r.stage}; {', '.join(r.tools)}"
    text += source(f"{r.process}_tile", title, date)
    return text + "".join(row(r.process, f"{r.process}_tile", f) for f in [*whole(r, by_name), *(f for b in r.blocks for f in block(b))])


def whole(r: Report, by_name: dict[str, BlockFigures]) -> list[Row]:
    """Return what `harden` takes: blocks of a kind together, by what they grow with."""
    assert r.tile is not None
    um2 = {kind: sum(b.all_um2 for b in r.blocks if b.kind == kind) for kind in ("vector", "noc", "control", "matrix")}
    queues = "sequencer, queues, semaphores and the wires between units, of one tile"
    found: list[Row] = [
        ("tile_clock", r.tile.fmax_hz, "Hz", f"slowest block by static timing: {r.tile.slowest}", None),
        (
            "vector_lane_um2",
            um2["vector"] / r.vector_lanes,
            "um2",
            "per lane: lane, and its share of functions, reduction, quantisation and operand registers",
            None,
        ),
        ("transfer_um2", um2["noc"] / r.rows, "um2", "per row: load and store; their registers grow with the rows that they fill", None),
        ("control_um2", um2["control"], "um2", queues, None),
    ]
    lane, vector = by_name["lane"], by_name["vector"]
    if lane.operation_j is not None and vector.operation_j is not None and lane.settled_j is not None and vector.settled_j is not None:
        note = f"per element: lane and operand registers; {lane.activity}; low: without glitches"
        found.append(("vector_j", lane.operation_j + vector.operation_j, "J", note, lane.settled_j + vector.settled_j))
    return found


def block(b: BlockFigures) -> list[Row]:
    if b.name in {"dot", "accumulate"}:
        return []
    name = f"tile_{b.name}"
    found: list[Row] = [
        (f"{name}_um2", b.area_um2, "um2", f"{b.count} of them a tile: {b.title}", None),
        (f"{name}_clock", b.fmax_hz, "Hz", "alone, by static timing", None),
    ]
    if b.operation_j is not None:
        found.append((f"{name}_j", b.operation_j, "J", f"per {b.operation}; low: without glitches", b.settled_j))
    return found


def source(id: str, title: str, date: str) -> str:
    return f'[sources.{id}]\ntitle = "{title}"\npublisher = "fabless"\ndate = "{date}"\nurl = "docs/synthesis.md"\n\n'


def row(process: str, source: str, figure: Row) -> str:
    id, value, unit, note, settled = figure
    low = f"low = {settled:.4g}\nhigh = {value:.4g}\n" if settled is not None else ""
    text = f'[[rows]]\nid = "{process}_{id}"\nvalue = {value:.4g}\nunit = "{unit}"\n'
    return text + f'kind = "measured"\nsource = "{source}"\n{low}note = "{note}"\nkit = "{process}"\n\n'


def main() -> None:
    root = Path(os.environ["PDK_ROOT"])
    stimulus = (stimulus_source(), lambda: decode_stimulus(DEMO))
    for process in sys.argv[1:] or list(kits()):
        r = report(
            process,
            tile=DEMO,
            liberties=(),
            pdk_root=root,
            stimulus=stimulus,
            kept=user_cache(),
            say=lambda text: print(text, file=sys.stderr),
        )
        print(rows(r, "2026-11"), end="", flush=True)


if __name__ == "__main__":
    main()
