"""Charts of an answer as Vega-Lite specifications: each states its units, each point its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabless.core.units import si
from fabless.report.figures import count, percent, seconds, usd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fabless.chip.chip import Chip
    from fabless.explore.answer import Answer, BreakEven, Option, Share, Swing
    from fabless.explore.frontier import Frontier
    from fabless.sim.trace import Trace

Spec = dict[str, Any]
#: The front is drawn whole up to this many points; a longer one is thinned evenly along its cost order, its ends kept.
_FRONT_POINTS = 400
_HEIGHT = 340
#: Smaller parts of a breakdown would be drawn as "0.0%".
_SHOWN_SHARE = 0.0005
#: Chips in the comparison chart; the table below it has all.
_COMPARED = 24
#: Colour-blind-safe categories (Okabe and Ito, 2008), readable on white and on near-black.
_PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8c8c8c", "#b8a400"]


def specs(answer: Answer) -> dict[str, Spec]:
    """Return the charts of an answer by the id of their place in the page."""
    charts: dict[str, Spec] = {
        "frontier": frontier(answer.frontier),
        "comparison": comparison(answer.own, answer.comparison),
        **breakdown(answer.breakdown),
        "tornado": tornado(answer.tornado, answer.own.usd_per_mtok.mid if answer.own.usd_per_mtok else 0.0),
    }
    service = answer.own.services[0]
    charts["roofline"] = roofline(answer.chip, {"decode": service.decode, "prefill": service.prefill})
    if answer.break_even:
        charts["breakeven"] = break_even(answer.break_even)
    return charts


def shown_front(frontier: Frontier) -> list[int]:
    """Return the rows of the front that the page shows, cheapest first, the best among them."""
    front = [int(r) for r in frontier.front]
    if len(front) > _FRONT_POINTS:
        front = [front[round(i * (len(front) - 1) / (_FRONT_POINTS - 1))] for i in range(_FRONT_POINTS)]
    return front if frontier.best in front else sorted([*front, frontier.best], key=lambda r: float(frontier.columns["usd_per_mtok"][r]))


def _base(**spec: Any) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": _HEIGHT,
        "autosize": {"type": "fit-x", "contains": "padding"},
    } | spec


def _labels(limit_px: int) -> Spec:
    """Give names beside bars up to `limit_px`, and no more than half of a phone's width."""
    return {"labelLimit": {"expr": f"min({limit_px}, windowSize()[0] * 0.46)"}}


def _color(field: str, title: str, order: Sequence[str]) -> Spec:
    return {
        "field": field,
        "type": "nominal",
        "title": title,
        "sort": list(order),
        "scale": {"domain": list(order), "range": _PALETTE[: len(order)]},
        "legend": {"orient": "bottom", "columns": {"expr": "windowSize()[0] < 600 ? 1 : 4"}, "labelLimit": 400},
    }


def frontier(found: Frontier) -> Spec:
    """Draw the Pareto front: cost against speed for one user, coloured by process, sized by power; the best is a ring."""
    c = found.columns
    rows: list[dict[str, Any]] = [
        {
            "point": i, "speed": _round(c["tokens_per_s_per_user"][r]), "cost": _round(c["usd_per_mtok"][r]), "power": _round(c["power_w"][r] / 1e3),
            "process": str(c["process"][r]), "nre": usd(float(c["nre_usd"][r])), "chips": count(float(c["n_chips"][r])), "best": bool(r == found.best),
            "memory": str(c["memory"][r]) if "memory" in c else "",
        }
        for i, r in enumerate(shown_front(found))
    ]  # fmt: skip
    processes = sorted({row["process"] for row in rows})
    point: Spec = {
        "x": {
            "field": "speed",
            "type": "quantitative",
            "title": "tokens/s for one user",
            "scale": {"type": "log", "nice": False, "padding": 12},
        },
        "y": {
            "field": "cost",
            "type": "quantitative",
            "title": "$ per million tokens",
            "scale": {"type": "log", "nice": False, "padding": 12},
            "axis": {"format": "$~g"},
        },
        "tooltip": [
            {"field": "cost", "title": "$/Mtok", "format": "$.3~f"},
            {"field": "speed", "title": "tokens/s/user", "format": ".3~g"},
            {"field": "power", "title": "fleet kW", "format": ",.3~g"},
            {"field": "nre", "title": "NRE"},
            {"field": "chips", "title": "chips"},
            {"field": "process", "title": "process"},
            {"field": "memory", "title": "memory"},
        ],
    }
    dots = {
        "mark": {"type": "circle", "opacity": 0.8, "cursor": "pointer"},
        "encoding": point
        | {
            "color": _color("process", "process", processes),
            "size": {
                "field": "power",
                "type": "quantitative",
                "title": "fleet power, kW",
                "scale": {"range": [25, 260]},
                "legend": {"orient": "bottom", "tickCount": 3},
            },
        },
    }
    best = {
        "transform": [{"filter": "datum.best"}],
        "mark": {"type": "point", "size": 420, "strokeWidth": 2.5, "filled": False, "color": "#D55E00"},
        "encoding": point,
    }
    label = {
        "transform": [{"filter": "datum.best"}],
        "mark": {"type": "text", "dx": 14, "align": "left", "fontWeight": 600, "text": "the answer"},
        "encoding": {k: point[k] for k in ("x", "y")},
    }
    return _base(data={"values": rows}, layer=[dots, best, label])


def comparison(own: Option, others: Sequence[Option]) -> Spec:
    """Draw $/Mtok of the whole service on the cheapest chips that can serve it, with low-to-high ranges; ours is the star."""
    rows: list[dict[str, Any]] = []
    for option in (own, *others):
        if option.serves and option.usd_per_mtok:
            price = option.usd_per_mtok
            rows.append(
                {
                    "label": f"★ this design ({option.how})" if option is own else f"{option.chip.name} ({option.how})",
                    "how": option.how,
                    "low": _round(price.low),
                    "mid": _round(price.mid),
                    "high": _round(price.high),
                    "chips": count(option.n_chips),
                    "energy": _round(option.j_per_token.mid) if option.j_per_token else None,
                }
            )
    rows.sort(key=lambda r: r["mid"])
    rows = [r for i, r in enumerate(rows) if i < _COMPARED or r["how"] == "build"]
    y = {"field": "label", "type": "nominal", "sort": [r["label"] for r in rows], "title": None, "axis": _labels(280)}
    scale = {"type": "log", "nice": False, "padding": 10}
    tooltip = [
        {"field": "mid", "title": "$/Mtok", "format": "$.3~g"},
        {"field": "low", "title": "low", "format": "$.3~g"},
        {"field": "high", "title": "high", "format": "$.3~g"},
        {"field": "chips", "title": "chips"},
        {"field": "energy", "title": "J/token", "format": ".3~g"},
    ]
    title = "$ per million tokens"
    color = _color("how", "", list(dict.fromkeys(["build", *(r["how"] for r in rows)])))
    x = {"field": "mid", "type": "quantitative", "title": title, "scale": scale, "axis": {"format": "$~g"}}
    rule = {
        "mark": {"type": "rule", "strokeWidth": 5, "opacity": 0.45},
        "encoding": {"y": y, "x": x | {"field": "low"}, "x2": {"field": "high"}, "color": color, "tooltip": tooltip},
    }
    dot = {
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
        "encoding": {"y": y, "x": x, "color": color, "tooltip": tooltip},
    }
    return _base(data={"values": rows}, layer=[rule, dot]) | {"height": 24 * len(rows)}


def break_even(curve: BreakEven) -> Spec:
    """Draw cost per million tokens against yearly volume: building falls as NRE spreads, renting stays; the study's volume is marked."""
    rows = [
        {"volume": _round(v), "low": _round(lo), "mid": _round(mid), "high": _round(hi), "rival": _round(rival)}
        for v, lo, mid, hi, rival in zip(
            curve.volumes_tokens_per_year, curve.build_low, curve.build_mid, curve.build_high, curve.rival_usd_per_mtok, strict=True
        )
    ]
    log = {"type": "log", "nice": False, "padding": 6}
    x = {
        "field": "volume",
        "type": "quantitative",
        "title": "trillion tokens a year",
        "scale": log,
        "axis": {"labelExpr": "format(datum.value / 1e12, ',~r')"},
    }
    tooltip = [
        {"field": "volume", "title": "tokens/year", "format": ".3~s"},
        {"field": "mid", "title": "build, $/Mtok", "format": "$.3~f"},
        {"field": "rival", "title": f"{curve.rival}, $/Mtok", "format": "$.3~f"},
    ]
    area = {
        "mark": {"type": "area", "opacity": 0.22, "color": _PALETTE[0]},
        "encoding": {
            "x": x,
            "y": {"field": "low", "type": "quantitative", "scale": log, "title": "$ per million tokens"},
            "y2": {"field": "high"},
        },
    }
    fold = [
        {"fold": ["mid", "rival"], "as": ["which", "cost"]},
        {"calculate": f"datum.which == 'mid' ? 'build our own' : {_quoted(f'{curve.rival} ({curve.rival_how})')}", "as": "who"},
    ]
    lines = {
        "transform": fold,
        "mark": {"type": "line", "strokeWidth": 2.5},
        "encoding": {
            "x": x,
            "y": {"field": "cost", "type": "quantitative", "scale": log, "title": "$ per million tokens", "axis": {"format": "$~g"}},
            "color": _color("who", "", ["build our own", f"{curve.rival} ({curve.rival_how})"]),
            "tooltip": tooltip,
        },
    }
    marks: list[dict[str, Any]] = [{"at": _round(curve.study_tokens_per_year), "label": "this study", "line": 8}]
    if curve.tokens_per_year:
        marks.append({"at": _round(curve.tokens_per_year), "label": "break-even", "line": 26})  # a line lower: the two often lie close
    at = {"field": "at", "type": "quantitative"}
    rules = {"data": {"values": marks}, "mark": {"type": "rule", "strokeDash": [4, 4]}, "encoding": {"x": at}}
    texts = {
        "data": {"values": marks},
        "mark": {"type": "text", "align": "left", "dx": 5, "dy": -4, "baseline": "top"},
        "encoding": {"x": at, "y": {"field": "line", "type": "quantitative", "scale": None}, "text": {"field": "label"}},
    }
    return _base(data={"values": rows}, layer=[area, lines, rules, texts])


def breakdown(shares: Sequence[Share]) -> dict[str, Spec]:
    """Draw where time, energy and money go, each as parts of one whole; one chart a group, by the id of its place."""
    charts: dict[str, Spec] = {}
    for index, group in enumerate(dict.fromkeys(s.group for s in shares)):
        members = [s for s in shares if s.group == group and s.ratio >= _SHOWN_SHARE]
        rows = [
            {"label": s.label, "ratio": _round(s.ratio), "text": percent(s.ratio, 1), "value": f"{s.value:.3g} {s.unit}"} for s in members
        ]
        y = {"field": "label", "type": "nominal", "sort": [s.label for s in members], "title": None, "axis": _labels(240)}
        room = {"domain": [0, max(s.ratio for s in members) * 1.3]}  # for the figures behind the bars
        x = {"field": "ratio", "type": "quantitative", "title": None, "scale": room, "axis": {"format": "%", "tickCount": 4}}
        tooltip = [{"field": "label", "title": group}, {"field": "text", "title": "share"}, {"field": "value", "title": "value"}]
        bar = {"mark": {"type": "bar"}, "encoding": {"y": y, "x": x, "color": {"value": _PALETTE[index]}, "tooltip": tooltip}}
        text = {"mark": {"type": "text", "align": "left", "dx": 4}, "encoding": {"y": y, "x": x, "text": {"field": "text"}}}
        charts[f"breakdown-{group}"] = _base(data={"values": rows}, layer=[bar, text]) | {"height": 22 * len(rows)}
    return charts


def tornado(swings: Sequence[Swing], usd_per_mtok: float) -> Spec:
    """Draw how far each input alone moves the answer's $/Mtok between its low and its high end, widest first."""
    rows = []
    for s in swings:
        for end, value, cost in (("low", s.low, s.usd_per_mtok_at_low), ("high", s.high, s.usd_per_mtok_at_high)):
            rows.append(
                {
                    "label": s.label,
                    "end": f"input at its {end}",
                    "cost": _round(cost),
                    "input": f"{value:.4g} {s.unit}".strip(),
                    "source": s.source,
                }
            )
    base = _round(usd_per_mtok)
    order = [s.label for s in swings]
    return _base(
        data={"values": rows},
        layer=[
            {
                "mark": {"type": "bar", "height": {"band": 0.66}},
                "encoding": {
                    "y": {"field": "label", "type": "nominal", "sort": order, "title": None, "axis": _labels(300)},
                    "x": {
                        "field": "cost",
                        "type": "quantitative",
                        "title": "$ per million tokens",
                        "scale": {"zero": False},
                        "axis": {"format": "$~g", "tickCount": 6},
                    },
                    "x2": {"datum": base},
                    "color": _color("end", "", ["input at its low", "input at its high"]),
                    "tooltip": [
                        {"field": "label"},
                        {"field": "input", "title": "at"},
                        {"field": "cost", "title": "$/Mtok", "format": "$.3~f"},
                        {"field": "source"},
                    ],
                },
            },
            {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": {"x": {"datum": base}}},
        ],
    ) | {"height": 24 * len(swings)}


def roofline(chip: Chip, traces: Mapping[str, Trace]) -> Spec:
    """Draw each op of each step under the chip's roof: operations per second reached against operations per byte of memory traffic."""
    points: list[dict[str, Any]] = []
    for name, trace in traces.items():
        for e in trace.events:
            macs = e.counters.total_macs
            if macs and e.cycles and e.counters.dram_bytes:
                points.append({
                    "step": name, "op": e.name, "intensity": _round(2 * macs / e.counters.dram_bytes), "rate": _round(2 * macs / (e.cycles / trace.clock_hz) / 1e12),
                    "bound": e.bound, "time": seconds(e.cycles / trace.clock_hz), "share": percent(e.cycles / trace.cycles, 1),
                })  # fmt: skip
    formats = {f for t in traces.values() for f, _ in t.counters.macs}
    bandwidth = chip.dram.bandwidth_bytes_per_s
    roofs = []
    low = min([p["intensity"] for p in points], default=1.0) / 2
    high = max([p["intensity"] for p in points], default=1e3) * 2
    for name, rate in _format_peaks(chip, formats):
        knee = 2 * rate / bandwidth if bandwidth else low
        roofs += [
            {
                "intensity": _round(x),
                "rate": _round(min(2 * rate, x * bandwidth if bandwidth else 2 * rate) / 1e12),
                "roof": f"{name}, {si(2 * rate, 'op/s')}, {si(bandwidth, 'B/s')}",
            }
            for x in sorted({low, max(low, min(knee, high)), high})
        ]
    across = {
        "field": "intensity",
        "type": "quantitative",
        "title": "operations per byte from memory",
        "scale": {"type": "log", "nice": False},
        "axis": {"format": "~s"},
    }
    up = {
        "field": "rate",
        "type": "quantitative",
        "title": "tera-operations per second, one chip",
        "scale": {"type": "log", "nice": False, "padding": 14},
        "axis": {"format": "~g"},
    }
    line = {
        "data": {"values": roofs},
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {
            "x": across,
            "y": up,
            "strokeDash": {
                "field": "roof",
                "type": "nominal",
                "title": "roof",
                "legend": {"orient": "bottom", "columns": 1, "labelLimit": 500},
            },
            "color": {"value": "#8c8c8c"},
        },
    }
    dots = {
        "data": {"values": points},
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.9},
        "encoding": {"x": across, "y": up, "color": _color("step", "step", list(traces)), "shape": {"field": "bound", "type": "nominal", "title": "bound by", "legend": {"orient": "bottom"}}, "tooltip": [{"field": "op"}, {"field": "step"}, {"field": "bound", "title": "bound by"}, {"field": "time"}, {"field": "share", "title": "of the step"}, {"field": "rate", "title": "Top/s", "format": ".3~g"}, {"field": "intensity", "title": "op/B", "format": ".3~g"}]},
    }  # fmt: skip
    return _base(layer=[line, dots], resolve={"scale": {"color": "independent"}})


def _format_peaks(chip: Chip, used: set[str]) -> list[tuple[str, float]]:
    from fabless.chip.chip import matrix_rates

    scale = chip.core.n_matrix * chip.n_cores * chip.clock_hz
    return [(name, rate * scale) for name, rate in matrix_rates(chip.core.matrix) if name in used]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _round(value: Any) -> float:
    return float(f"{float(value):.5g}")
