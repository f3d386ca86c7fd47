"""What a tile costs in silicon as one page that works offline: floorplan to scale, area and energy by block, the slowest path, sources."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import ceil, sqrt
from typing import TYPE_CHECKING

import fabless
from fabless.core.units import si
from fabless.number.dot import BLOCK
from fabless.report.page import document

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fabless.rtl.synthesis.report import BlockFigures, Report

_KINDS = (("matrix", "matrix unit"), ("vector", "vector unit"), ("sram", "memories"), ("noc", "load and store"), ("control", "control"))
#: More copies than this are drawn as one field.
_COPIES = 64
#: The floorplan's width in units of the drawing.
_WIDTH = 1000.0


def synthesis_page(report: Report, command: str) -> str:
    """Return the page as HTML; `command` is what the reader can type to get it again. `report` must be of a whole tile."""
    t = report.tile
    assert t is not None  # the command refuses a part
    launch = _launch_energies(report)
    total_um2 = t.logic_um2 + (t.memory_um2 or 0.0)
    slow = min(report.blocks, key=lambda b: b.fmax_hz)
    cards = [
        (
            f"{total_um2 / 1e6:.3g} mm²" if t.memory_um2 is not None else "unknown",
            f"cells and memories; {t.logic_um2 / 1e6:.3g} mm² of it logic",
        ),
        (si(t.fmax_hz, "Hz"), f"clock of the tile, set by {slow.name}; aim {si(report.clock_hz, 'Hz')}"),
        (f"{report.row.mac_j * 1e12:.3g} pJ" if report.row else "unknown", "a multiply-accumulate of a row, leakage included"),
        (si(t.leakage_w, "W"), "leakage of the logic"),
    ]
    items = "".join(f'<li><span class="n">{escape(n)}</span><span class="of">{escape(of)}</span></li>' for n, of in cards)
    verdict = (
        f"A tile of {report.rows} rows of {BLOCK} lanes and {report.vector_lanes} vector lanes in {report.title}: every block mapped once, {report.stage}, "
        f"{report.corner}."
    )
    sections = [
        ("floor", "Floorplan", _floorplan(report)),
        ("area", "Where the area goes", _bars(_areas(report), "µm²")),
        ("energy", "Where the energy goes", _energy(report, launch)),
        ("path", f"Slowest path: {slow.name}", _path(report, slow)),
        ("blocks", "Every block", _table(report)),
        ("memories", "Memories", _memories(report)),
        ("sources", "Sources", _sources(report)),
    ]
    body = f'<section id="answer"><h1>What a tile costs in {escape(report.process)}</h1><p class="verdict">{escape(verdict)}</p><ul class="cards">{items}</ul></section>'
    body += "".join(f'<section id="{id}"><h2>{escape(name)}</h2>{html}</section>' for id, name, html in sections)
    footer = (
        f"<p>Made by <code>{escape(command)}</code> with fabless {fabless.__version__}. Fidelity: synthesis, {escape(report.stage)}.</p>"
    )
    return document(
        f"fabless: a tile in {report.process}",
        nav=[(id, name.partition(":")[0]) for id, name, _ in sections],
        body=body,
        footer=footer,
        specs={},
    )


def _areas(report: Report) -> list[tuple[str, str, float]]:
    """Return (name, kind, µm²) of blocks and memories whose area is known, the largest first."""
    parts = [(b.name, b.kind, b.all_um2) for b in report.blocks]
    parts += [(f"{m.name} memory", "sram", m.all_um2) for m in report.memories if m.all_um2 is not None]
    return sorted(parts, key=lambda p: -p[2])


@dataclass(frozen=True, slots=True)
class Box:
    """Place a rectangle, from the upper left corner."""

    x: float
    y: float
    width: float
    height: float


def treemap(areas: Sequence[float], box: Box) -> list[Box]:
    """Return rectangles that fill a box in the given order, each with its share of the area, as square as slicing in strips allows.

    Source: Bruls, Huizing, van Wijk, Squarified Treemaps (2000).
    """
    if not areas:
        return []
    scale = box.width * box.height / sum(areas)
    left, out, rest = [a * scale for a in areas], [], box
    while left:
        short = min(rest.width, rest.height)
        n = 1
        while n < len(left) and _worst(left[: n + 1], short) <= _worst(left[:n], short):
            n += 1
        strip, left = left[:n], left[n:]
        depth = sum(strip) / short
        at = 0.0
        for area in strip:
            side = area / depth
            wide = rest.width >= rest.height
            out.append(Box(rest.x, rest.y + at, depth, side) if wide else Box(rest.x + at, rest.y, side, depth))
            at += side
        if rest.width >= rest.height:
            rest = Box(rest.x + depth, rest.y, max(rest.width - depth, 0.0), rest.height)
        else:
            rest = Box(rest.x, rest.y + depth, rest.width, max(rest.height - depth, 0.0))
    return out


def _worst(strip: Sequence[float], short: float) -> float:
    """Return the largest ratio of sides in a strip along a side."""
    total = sum(strip)
    return max(max(short**2 * a / total**2, total**2 / (short**2 * a)) for a in strip)


def _floorplan(report: Report) -> str:
    counts = {b.name: b.count for b in report.blocks} | {f"{m.name} memory": m.count for m in report.memories}
    areas = [a for a in _areas(report) if a[2] > 0]
    side_um = sqrt(sum(a[2] for a in areas))
    groups = sorted(
        ((k, [a for a in areas if a[1] == k]) for k in dict.fromkeys(a[1] for a in areas)), key=lambda g: -sum(a[2] for a in g[1])
    )
    boxes = treemap([sum(a[2] for a in g) for _, g in groups], Box(0, 0, _WIDTH, _WIDTH))
    shapes, labels = [], []
    for (kind, parts), box in zip(groups, boxes, strict=True):
        for (name, _, um2), place in zip(parts, treemap([p[2] for p in parts], box), strict=True):
            title = f"{name}: {counts[name]} × {um2 / counts[name]:,.0f} µm²" if counts[name] > 1 else f"{name}: {um2:,.0f} µm²"
            cells = _cells(place, counts[name])
            shapes.append(
                f"<g><title>{escape(title)}</title>"
                + "".join(
                    f'<rect class="fp-{kind}" x="{c.x:.2f}" y="{c.y:.2f}" width="{c.width:.2f}" height="{c.height:.2f}" style="stroke-width:1"/>'
                    for c in cells
                )
                + "</g>"
            )
            labels.append(_label(name, place))
    bar_um = 10 ** int(f"{side_um / 4:e}".partition("e")[2])
    bar = bar_um / side_um * _WIDTH
    legend = "".join(f'<li><i style="background:var(--{k})"></i>{escape(text)}</li>' for k, text in _KINDS if any(a[1] == k for a in areas))
    missing = [m.name for m in report.memories if m.all_um2 is None]
    note = f" Left out, area unknown in this process: {', '.join(missing)}." if missing else ""
    return (
        f'<figure><svg class="floorplan" role="img" viewBox="-4 -4 {_WIDTH + 8:.0f} {_WIDTH + 48:.0f}" aria-label="Floorplan of the tile, {side_um:,.0f} micrometres square">'
        f'{"".join(shapes)}{"".join(labels)}<g class="fp-scale"><path d="M0 {_WIDTH + 14}v8h{bar:.1f}v-8" style="stroke-width:2"/>'
        f'<text x="{bar + 12:.1f}" y="{_WIDTH + 26}" style="font-size:20px">{bar_um:,} µm · {side_um:,.0f} µm square</text></g></svg>'
        f'<figcaption>Areas to scale, positions not from a layout: cell area of every copy, memories as stated below.{escape(note)}</figcaption><ul class="legend">{legend}</ul></figure>'
    )


def _cells(box: Box, n: int) -> list[Box]:
    """Return a box cut into n equal cells, or whole where they would be too many."""
    if n == 1 or n > _COPIES:
        return [box]
    columns = min((c for c in range(1, n + 1) if n % c == 0), key=lambda c: abs(box.width / c - box.height / (n / c)))
    rows = ceil(n / columns)
    w, h = box.width / columns, box.height / rows
    return [Box(box.x + w * (i % columns), box.y + h * (i // columns), w, h) for i in range(n)]


def _label(name: str, box: Box) -> str:
    size = min(22.0, 1.7 * max(box.width, box.height) / len(name), 0.7 * min(box.width, box.height))
    if size < 14:
        return ""
    x, y = box.x + box.width / 2, box.y + box.height / 2
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if box.height > box.width and len(name) * size * 0.6 > box.width else ""
    if not turn:
        size = min(size, 1.7 * box.width / len(name))
        if size < 14:
            return ""
    return f'<text class="fp-label" x="{x:.1f}" y="{y:.1f}"{turn} style="font-size:{size:.1f}px;stroke-width:{size * 0.18:.1f}px">{escape(name)}</text>'


def _bars(parts: Iterable[tuple[str, str, float]], unit: str) -> str:
    """Return one bar a part, the longest across the whole width."""
    parts = [p for p in parts if p[2] > 0]
    top, total = max(p[2] for p in parts), sum(p[2] for p in parts)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="r">{si(value, unit) if unit == "J" else f"{value:,.0f} {unit}"}</td><td class="r">{value / total:.1%}</td>'
        f'<td style="width:45%"><svg width="100%" height="14" aria-hidden="true"><rect width="{100 * value / top:.2f}%" height="14" style="fill:var(--{kind})"/></svg></td></tr>'
        for name, kind, value in parts
    )
    return f'<div class="scroll"><table><thead><tr><th scope="col">block</th><th scope="col" class="r">all of them</th><th scope="col" class="r">share</th><th scope="col"></th></tr></thead><tbody>{rows}</tbody></table></div>'


def _launch_energies(report: Report) -> list[tuple[str, str, float]]:
    """Return (name, kind, J) of each block's logic in the recorded launch: operations, and the clock of cycles without one."""
    by_name = {b.name: b for b in report.blocks}
    mxu, tile = by_name.get("mxu"), by_name.get("tile")
    if mxu is None or tile is None or mxu.n_operations is None or tile.n_operations is None:
        return []
    cycles = tile.n_operations
    out = []
    for b in report.blocks:
        n = mxu.n_operations * b.per_cycle if b.name in {"dot", "accumulate"} else b.n_operations
        if n is None or b.idle_j is None:
            continue
        idle = max(0.0, cycles - n / b.per_cycle) * b.idle_j
        out.append((b.name, b.kind, b.count * ((b.operation_j or 0.0) * n + idle)))
    return sorted(out, key=lambda p: -p[2])


def _energy(report: Report, launch: list[tuple[str, str, float]]) -> str:
    if not launch:
        return "<p>Not measured: recording the operands needs Verilator and a C++ compiler (<code>fabless doctor</code>).</p>"
    cycles = next(b.n_operations for b in report.blocks if b.name == "tile")
    total = sum(p[2] for p in launch)
    source = next(b.activity for b in report.blocks if b.name == "tile")
    return (
        f"<p>One launch of {cycles:,} cycles takes {si(total, 'J')} in the logic, without wires, memories and leakage: {escape(source)}. "
        "Clock pins are counted as switching in every cycle: what clock gates save is not subtracted.</p>" + _bars(launch, "J")
    )


def _path(report: Report, slow: BlockFigures) -> str:
    before, rows = 0.0, []
    for s in slow.path:
        rows.append(
            f'<tr><th scope="row">{escape(s.cell or "port")}</th><td>{escape(s.net)}</td><td class="r">{(s.arrival_s - before) * 1e12:,.0f} ps</td><td class="r">{s.arrival_s * 1e12:,.0f} ps</td></tr>'
        )
        before = s.arrival_s
    rows.append(
        f'<tr><th scope="row">setup or rest of the period</th><td>{escape(slow.path_end)}</td><td class="r">{slow.setup_s * 1e12:,.0f} ps</td><td class="r">{1e12 / slow.fmax_hz:,.0f} ps</td></tr>'
    )
    aim = f"aim {1e12 / report.clock_hz:,.0f} ps" + ("" if slow.fmax_hz >= report.clock_hz else ": missed")
    return (
        f"<p>{escape(slow.title)}. {len(slow.path)} steps, {1e12 / slow.fmax_hz:,.0f} ps, {aim}; static timing by the library's tables, ideal clock, no wires.</p>"
        f'<details><summary>Cells and delays</summary><div class="scroll"><table><thead><tr><th scope="col">cell</th><th scope="col">net</th><th scope="col" class="r">delay</th><th scope="col" class="r">arrives</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div></details>'
    )


def _table(report: Report) -> str:
    head = (
        "block",
        "count",
        "µm² each",
        "MHz",
        "pJ",
        "per",
        "without glitches",
        "pJ idle cycle",
        "busy",
        "leakage",
        "gates",
        "checked bits or results",
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(b.name)}<br><small>{escape(b.title)}</small></th>'
        + "".join(
            f'<td class="r">{escape(x)}</td>' for x in (
                str(b.count), f"{b.area_um2:,.1f}", f"{b.fmax_hz / 1e6:,.0f}", _pj(b.operation_j), b.operation, _pj(b.settled_j), _pj(b.idle_j),
                "–" if b.busy_ratio is None else f"{b.busy_ratio:.0%}", si(b.leakage_w, "W"), f"{b.n_gates:,}", f"{b.n_results:,}",
            )
        ) + "</tr>"
        for b in report.blocks
    )  # fmt: skip
    columns = "".join(f'<th scope="col"{" class=r" if i else ""}>{escape(h)}</th>' for i, h in enumerate(head))
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>'


def _pj(joules: float | None) -> str:
    return "–" if joules is None else f"{joules * 1e12:.3g}"


def _memories(report: Report) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(m.name)}</th><td class="r">{m.count}</td><td class="r">{m.width} × {m.depth}</td><td class="r">{m.reads}</td>'
        f'<td class="r">{f"{m.area_um2:,.0f} µm²" if m.area_um2 is not None else "unknown"}</td><td>{escape(m.basis)}</td></tr>'
        for m in report.memories
    )
    head = "".join(
        f'<th scope="col"{" class=r" if 0 < i < 5 else ""}>{h}</th>'
        for i, h in enumerate(("memory", "count", "bits × words", "read ports", "each", "basis"))
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div><p class="soft">One copy for each read port; a second writer is not counted.</p>'


def _sources(report: Report) -> str:
    rows = [
        ("library", f"{report.library}, {report.corner}"), ("stage", report.stage), ("tools", ", ".join(report.tools)), ("not counted", report.limits),
        *(("activity" if i == 0 else "", text) for i, text in enumerate(dict.fromkeys(b.activity for b in report.blocks))),
    ]  # fmt: skip
    return '<dl class="sheet">' + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows) + "</dl>"
