"""The die drawn to scale as SVG: every rectangle's area is its block's share of the die."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import ceil, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fabless.silicon.silicon import Block, Silicon

#: Blocks of these kinds sit at the die's edge, where their bumps and wires are.
_EDGE_WEST_EAST = "dram_phy"
_EDGE_NORTH_SOUTH = "link_phy"
#: More repeats than this are drawn as one field: single rectangles would be thinner than a pixel.
_DRAWN_REPEATS = 1024


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Place one block (or one copy of it) on the die, in millimetres from the upper left corner."""

    name: str
    kind: str
    x_mm: float
    y_mm: float
    width_mm: float
    height_mm: float
    title: str

    @property
    def area_mm2(self) -> float:
        """Return the area drawn."""
        return self.width_mm * self.height_mm


def floorplan(silicon: Silicon) -> tuple[Rectangle, ...]:
    """Return the rectangles of one die; their areas sum to the die's, each block's copies to the block's share.

    Memory interfaces take the left and right edges, links the upper and lower ones, blocks that repeat (cores) a grid in the middle, and what
    there is one of (shared memory, network, control) bands beside it.
    """
    blocks = [b for b in silicon.blocks if b.area_mm2 > 0]
    scale = silicon.die_area_mm2 / sum(b.area_mm2 for b in blocks)
    x, y, w, h = 0.0, 0.0, silicon.die_width_mm, silicon.die_height_mm
    drawn: list[Rectangle] = []
    for kind, vertical in ((_EDGE_WEST_EAST, True), (_EDGE_NORTH_SOUTH, False)):
        edge = [b for b in blocks if b.kind == kind]
        area = sum(b.area_mm2 for b in edge) * scale
        if not area:
            continue
        sides = 2 if any(b.count > 1 for b in edge) else 1
        for side in range(sides):
            share = area / sides
            depth = share / (h if vertical else w)
            if vertical:
                strip = (x if side == 0 else x + w - depth, y, depth, h)
                x, w = (x + depth, w - depth) if side == 0 else (x, w - depth)
            else:
                strip = (x, y if side == 0 else y + h - depth, w, depth)
                y, h = (y + depth, h - depth) if side == 0 else (y, h - depth)
            drawn += _slices(edge, strip, along_y=vertical)
    inner = [b for b in blocks if b.kind not in (_EDGE_WEST_EAST, _EDGE_NORTH_SOUTH)]
    return (*drawn, *_middle(inner, (x, y, w, h)))


def _middle(blocks: Sequence[Block], area: tuple[float, float, float, float]) -> list[Rectangle]:
    repeats = max((b.count for b in blocks), default=1)
    cores = [b for b in blocks if b.count == repeats > 1]
    single = [b for b in blocks if b not in cores]
    total = sum(b.area_mm2 for b in blocks)
    x, y, w, h = area
    core_share = sum(b.area_mm2 for b in cores) / total if total else 0.0
    if not cores:
        return _slices(single, area, along_y=w < h)
    # Cores above and below, single blocks as a band between them: the shortest wires to all.
    columns, rows = _grid(repeats, w, h * core_share)
    upper_rows = ceil(rows / 2)
    upper = h * core_share * upper_rows / rows
    drawn = _slices(single, (x, y + upper, w, h * (1 - core_share)), along_y=False) if single else []
    if repeats > _DRAWN_REPEATS:
        return (
            drawn
            + _slices(cores, (x, y, w, upper), along_y=True)
            + _slices(cores, (x, y + h - (h * core_share - upper), w, h * core_share - upper), along_y=True)
        )
    cell_w, cell_h = w / columns, h * core_share / rows
    for index in range(repeats):
        row, column = divmod(index, columns)
        n_in_row = min(columns, repeats - row * columns)
        width = w / n_in_row if n_in_row < columns else cell_w
        top = y + row * cell_h + (0 if row < upper_rows else h * (1 - core_share))
        drawn += _slices(cores, (x + column * width, top, width, cell_h), along_y=width < cell_h)
    return drawn


def _grid(n: int, width: float, height: float) -> tuple[int, int]:
    """Return (columns, rows) that fill a width x height field with n cells as square as can be, full rows preferred."""
    ideal = max(1, round(sqrt(n * width / height)))
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    columns = min(divisors, key=lambda d: abs(d - ideal) / ideal)
    if not 0.5 <= columns / ideal <= 2:
        columns = ideal
    return columns, ceil(n / columns)


def _slices(blocks: Iterable[Block], area: tuple[float, float, float, float], *, along_y: bool) -> list[Rectangle]:
    blocks = list(blocks)
    total = sum(b.area_mm2 for b in blocks)
    x, y, w, h = area
    drawn, at = [], 0.0
    for b in blocks:
        share = b.area_mm2 / total
        box = (x, y + at * h, w, share * h) if along_y else (x + at * w, y, share * w, h)
        each = f"{b.count} × {b.area_mm2 / b.count:.3g} mm²" if b.count > 1 else f"{b.area_mm2:.3g} mm²"
        drawn.append(Rectangle(b.name, b.kind, *box, title=f"{b.name}: {each}, {b.area_mm2:.1f} mm² in all"))
        at += share
    return drawn


def draw(silicon: Silicon) -> str:
    """Return the floorplan as an SVG element with a scale bar; colours come from the page's CSS classes `fp-<kind>`."""
    w, h = silicon.die_width_mm, silicon.die_height_mm
    rectangles = floorplan(silicon)
    labelled: dict[str, Rectangle] = {}
    for r in rectangles:
        if r.name not in labelled or r.area_mm2 > labelled[r.name].area_mm2:
            labelled[r.name] = r
    shapes = "".join(
        f'<rect class="fp-{escape(r.kind)}" x="{r.x_mm:.4f}" y="{r.y_mm:.4f}" width="{r.width_mm:.4f}" height="{r.height_mm:.4f}">'
        f"<title>{escape(r.title)}</title></rect>"
        for r in rectangles
    )
    size = max(w, h) / 42
    labels = "".join(_label(r, size) for r in labelled.values())
    bar = 5.0 if max(w, h) > 12 else 1.0
    return (
        f'<svg class="floorplan" role="img" viewBox="{-w * 0.01:.3f} {-h * 0.01:.3f} {w * 1.02:.3f} {h * 1.02 + size * 2.6:.3f}" '
        f'aria-label="Floorplan of {escape(silicon.chip_name)}, {w:.1f} by {h:.1f} millimetres">'
        f'<rect class="fp-die" width="{w:.4f}" height="{h:.4f}"/>{shapes}{labels}'
        f'<g class="fp-scale"><path d="M0 {h + size:.3f}v{size * 0.5:.3f}h{bar}v{-size * 0.5:.3f}" style="stroke-width:{size * 0.12:.3f}"/>'
        f'<text x="{bar + size * 0.4:.3f}" y="{h + size * 1.5:.3f}" style="font-size:{size:.3f}px">{bar:g} mm · die {w:.1f} × {h:.1f} mm</text></g></svg>'
    )


def _label(r: Rectangle, size: float) -> str:
    text = r.name.replace("_", " ")
    long_side, short_side = max(r.width_mm, r.height_mm), min(r.width_mm, r.height_mm)
    if short_side < size * 1.1 or long_side < len(text) * size * 0.52:
        return ""
    x, y = r.x_mm + r.width_mm / 2, r.y_mm + r.height_mm / 2
    turn = f' transform="rotate(-90 {x:.3f} {y:.3f})"' if r.width_mm < r.height_mm and r.width_mm < len(text) * size * 0.52 else ""
    return f'<text class="fp-label" x="{x:.3f}" y="{y:.3f}"{turn} style="font-size:{size:.3f}px;stroke-width:{size * 0.18:.3f}px">{escape(text)}</text>'
