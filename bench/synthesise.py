"""Synthesise a row for every process and write its figures as the rows of data/netlists.toml: PDK_ROOT=... python bench/synthesise.py > rows.toml"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fabless.program.tile import DEMO
from fabless.rtl.synthesis.kit import kits
from fabless.rtl.synthesis.report import Report, report


def rows(r: Report, date: str) -> str:
    dot, accumulate = r.blocks
    assert r.row is not None
    assert dot.operation_j is not None
    assert accumulate.operation_j is not None
    title = f"fabless' own netlist of a 32-lane int8 row: {r.library}, {r.corner}, {r.stage}; {', '.join(r.tools)}"
    figures = (
        ("dot_um2", dot.area_um2 / 32, "um2", "dot product, cell area per multiply-accumulate"),
        ("accumulate_um2", accumulate.area_um2 / 32, "um2", "block accumulator of a row, per multiply-accumulate; memories apart"),
        ("row_clock", r.row.fmax_hz, "Hz", "lower of the two parts by static timing"),
        ("dot_j", dot.operation_j, "J", f"per multiply-accumulate on {r.activity_source}; low: without glitches"),
        (
            "accumulate_j",
            accumulate.operation_j,
            "J",
            "block accumulator, per multiply-accumulate, on the same operands; low: without glitches",
        ),
        ("row_leakage", dot.leakage_w + accumulate.leakage_w, "W", "one row"),
    )
    text = f'[sources.{r.process}]\ntitle = "{title}"\npublisher = "fabless"\ndate = "{date}"\nurl = "docs/synthesis.md"\n\n'
    settled = {"dot_j": dot.settled_j, "accumulate_j": accumulate.settled_j}
    for id, value, unit, note in figures:
        low = f"low = {settled[id]:.4g}\nhigh = {value:.4g}\n" if id in settled else ""
        text += f'[[rows]]\nid = "{r.process}_{id}"\nvalue = {value:.4g}\nunit = "{unit}"\n'
        text += f'kind = "measured"\nsource = "{r.process}"\n{low}note = "{note}"\nkit = "{r.process}"\n\n'
    return text


def main() -> None:
    root = Path(os.environ["PDK_ROOT"])
    for process in sys.argv[1:] or list(kits()):
        print(rows(report(process, tile=DEMO, liberties=(), pdk_root=root), "2026-11"), end="", flush=True)


if __name__ == "__main__":
    main()
