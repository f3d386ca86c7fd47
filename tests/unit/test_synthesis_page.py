"""The page of a synthesised tile: rectangles to scale, figures that add up, nothing from the network."""

import re

import pytest

from fabless.report.synthesis_page import Box, synthesis_page, treemap
from fabless.rtl.synthesis.report import BlockFigures, MemoryFigures, PathStep, Report, RowFigures, TileFigures


def block(name, kind, count, um2, n, per_cycle=1, operation="value"):
    return BlockFigures(
        name, f"{name} of a tile", kind, count, operation, per_cycle, um2, 1e9 + um2, 1e-11, 2e-12, 1e-12, 5e-13, 1e-6, 10, 100, 1000, n, 0.5, 1.5, 0.2,
        "a launch", "lean", (PathStep("", "a", 2e-11), PathStep("INV<x>", "b", 4e-11)), "end",
    )  # fmt: skip


BLOCKS = (
    block("dot", "matrix", 4, 1500.0, None, 32), block("lane", "vector", 4, 900.0, 700), block("mxu", "matrix", 1, 200.0, 600),
    block("tile", "control", 1, 300.0, 1000, operation="cycle"),
)  # fmt: skip
MEMORIES = (MemoryFigures("weights", 4, 256, 64, 1, 5000.0, "bit cells"), MemoryFigures("program", 1, 128, 64, 1, None, "no macro"))
REPORT = Report(
    "toy", "Toy <library>", 1.2e9, 4, 4, "toy.lib", "1 V", "pre-layout", ("yosys",), BLOCKS, RowFigures(50, 40, 10, 1e9, 1e-13),
    TileFigures(sum(b.all_um2 for b in BLOCKS), None, 1e9, "mxu", 1e-5), MEMORIES, "operands", "wires",
)  # fmt: skip


def test_rectangles_fill_the_box_each_with_its_share():
    areas = [16.0, 9.0, 9.0, 4.0, 1.0, 1.0]
    box = Box(2.0, 3.0, 8.0, 5.0)
    boxes = treemap(areas, box)
    assert [b.width * b.height for b in boxes] == pytest.approx(areas)  # 40 in all: the box's own area
    for i, a in enumerate(boxes):
        assert box.x - 1e-9 <= a.x <= a.x + a.width <= box.x + box.width + 1e-9
        assert box.y - 1e-9 <= a.y <= a.y + a.height <= box.y + box.height + 1e-9
        for b in boxes[:i]:
            assert min(a.x + a.width, b.x + b.width) - max(a.x, b.x) < 1e-9 or min(a.y + a.height, b.y + b.height) - max(a.y, b.y) < 1e-9


def test_the_floorplan_is_to_scale_and_says_what_is_missing():
    page = synthesis_page(REPORT, "fabless synth --process toy")
    drawn = {}
    for group in re.findall(r"<g><title>([^:]+): .*?</g>", page):
        drawn[group] = 0.0
    for name, body in re.findall(r"<g><title>([^:]+): .*?</title>(.*?)</g>", page):
        drawn[name] = sum(float(w) * float(h) for w, h in re.findall(r'width="([\d.]+)" height="([\d.]+)"', body))
    total = sum(b.all_um2 for b in BLOCKS) + 4 * 5000.0
    wanted = {b.name: b.all_um2 / total for b in BLOCKS} | {"weights memory": 20000.0 / total}
    assert drawn.keys() == wanted.keys()
    for name, share in wanted.items():
        assert drawn[name] / 1e6 == pytest.approx(share, rel=0.01)  # coordinates have two decimals
    assert "Left out, area unknown in this process: program" in page


def test_the_page_escapes_sums_and_stays_offline():
    page = synthesis_page(REPORT, "fabless synth <x>")
    assert "Toy &lt;library&gt;" in page
    assert "INV&lt;x&gt;" in page
    assert "fabless synth &lt;x&gt;" in page
    # dot: 4 x (2 pJ x 600 x 32 + 400 idle cycles x 0.5 pJ); lane: 4 x (2 pJ x 700 + 300 x 0.5 pJ); mxu 1,400; tile 2,000 pJ
    assert "One launch of 1,000 cycles takes 164 nJ" in page
    assert not re.search(r'(?:src|href)="https?://', page)
