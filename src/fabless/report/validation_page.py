"""Predicted against measured as one page that works offline: by family, by batch, context and precision, and the worst rows with what they share."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import fabless
from fabless.report.page import document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fabless.validate.checked import Checked, Summary
    from fabless.validate.validation import Validation

#: Points in the scatter plot; a larger table is thinned evenly within each family and kind.
_POINTS = 3000
_WORST = 20


def validation_page(validation: Validation, command: str) -> str:
    """Return the page as HTML; `command` is what the reader can type to get it again."""
    overall = validation.overall
    skipped = sum(n for _, n in validation.skipped)
    head = (
        f'<section id="answer"><h1>Predicted against measured</h1><p class="verdict">{overall.n:,} measurements on {len({r.chip for r in validation.rows})} chips: '
        f"median error {overall.median_ape:.1%}, nine in ten within {overall.p90_ape:.1%}. {skipped:,} rows could not be predicted; the reasons are below.</p></section>"
    )
    sections = [
        ("scatter", "Every row", _place("scatter", "predicted against measured, by chip family")),
        ("families", "By chip family", _summaries("family", validation.families)),
        ("kinds", "By kind of number", _summaries("kind", validation.kinds) + _place("errors", "error by batch, context and precision")),
        ("worst", "Worst rows", _worst(validation)),
        ("skipped", "Rows without a prediction", _skipped(validation)),
    ]
    body = head + "".join(f'<section id="{id}"><h2>{name}</h2>{html}</section>' for id, name, html in sections)
    footer = f"<p>Made by <code>{escape(command)}</code> with fabless {fabless.__version__}. Errors are predicted / measured − 1; fidelity: calibrated roofline.</p>"
    specs = {"scatter-chart": _scatter(validation.rows), "errors-chart": _errors(validation.rows)}
    return document(
        "fabless: predicted against measured", nav=[(id, name) for id, name, _ in sections], body=body, footer=footer, specs=specs
    )


def _place(id: str, label: str) -> str:
    return f'<div class="chart" id="{id}-chart" role="img" aria-label="{escape(label)}"></div>'


def _summaries(head: str, summaries: Iterable[Summary]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(s.name)}</th><td class="r">{s.n:,}</td><td class="r">{s.bias:+.1%}</td><td class="r">{s.median_ape:.1%}</td><td class="r">{s.p90_ape:.1%}</td></tr>'
        for s in summaries
    )
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">{head}</th><th scope="col" class="r">rows</th><th scope="col" class="r">bias</th><th scope="col" class="r">median error</th>'
        f'<th scope="col" class="r">90th percentile</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _worst(validation: Validation) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(r.id)}</th><td>{escape(r.chip)}</td><td>{escape(r.model)}</td><td>{escape(r.software)}</td><td>{escape(r.kind)}</td><td class="r">{r.batch:g}</td>'
        f'<td class="r">{r.input_tokens:g} / {r.output_tokens:g}</td><td class="r">{r.measured:.4g}</td><td class="r">{r.predicted:.4g}</td><td class="r">{r.error:+.0%}</td><td>{escape(_explained(r, validation))}</td></tr>'
        for r in validation.worst(_WORST)
    )
    heads = "".join(
        f'<th scope="col">{h}</th>'
        for h in (
            "row",
            "chip",
            "model",
            "software",
            "kind",
            "batch",
            "tokens in / out",
            "measured",
            "predicted",
            "error",
            "in its company",
        )
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _explained(row: Checked, validation: Validation) -> str:
    """Say whether a row stands alone or shares its error with the rows most like it: the first question to ask of an outlier."""
    for what, key in (
        ("model and software", lambda r: (r.chip, r.model, r.software, r.kind)),
        ("software", lambda r: (r.chip, r.software, r.kind)),
        ("kind", lambda r: (r.family, r.kind)),
    ):
        like = sorted(r.error for r in validation.rows if key(r) == key(row) and r is not row)
        if len(like) >= 4:
            median = like[len(like) // 2]
            share = (
                "its company is off alike: a cause they share"
                if median * row.error > 0 and abs(median) > abs(row.error) / 3
                else "its company is not: this row differs in something the table does not state"
            )
            return f"{len(like)} rows of the same chip, {what}: median {median:+.0%}; {share}"
    return "no other row like it"


def _skipped(validation: Validation) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(reason)}</th><td class="r">{n:,}</td></tr>' for reason, n in validation.skipped)
    return f'<div class="scroll"><table><thead><tr><th scope="col">reason</th><th scope="col" class="r">rows</th></tr></thead><tbody>{rows}</tbody></table></div>'


def _thinned(rows: tuple[Checked, ...]) -> list[Checked]:
    step = max(1, -(-len(rows) // _POINTS))
    return sorted(rows, key=lambda r: (r.family, r.kind, r.id))[::step]


def _scatter(rows: tuple[Checked, ...]) -> dict[str, Any]:
    points = [
        {
            "measured": _digits(r.measured),
            "predicted": _digits(r.predicted),
            "family": r.family,
            "kind": f"{r.kind} ({r.unit})",
            "chip": r.chip,
            "model": r.model,
            "error": f"{r.error:+.0%}",
        }
        for r in _thinned(rows)
    ]
    axis = {"type": "quantitative", "scale": {"type": "log", "nice": False}, "axis": {"format": "~e"}}
    dots = {
        "mark": {"type": "circle", "size": 18, "opacity": 0.55},
        "encoding": {
            "x": axis | {"field": "measured", "title": "measured"},
            "y": axis | {"field": "predicted", "title": "predicted"},
            "color": {"field": "family", "type": "nominal", "legend": {"orient": "bottom", "columns": 5}},
            "tooltip": [{"field": f} for f in ("chip", "model", "kind", "measured", "predicted", "error")],
        },
    }
    line = {
        "mark": {"type": "line", "strokeDash": [4, 4], "color": "#8c8c8c"},
        "encoding": {"x": axis | {"field": "measured"}, "y": axis | {"field": "measured"}},
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": points},
        "facet": {"field": "kind", "type": "nominal", "title": None},
        "columns": 3,
        "spec": {"width": 290, "height": 230, "layer": [line, dots]},
        "resolve": {"scale": {"x": "independent", "y": "independent"}},
    }


def _errors(rows: tuple[Checked, ...]) -> dict[str, Any]:
    groups: dict[str, Callable[[Checked], str]] = {
        "batch": lambda r: _decade(r.batch),
        "context": lambda r: _decade(r.input_tokens + r.output_tokens),
        "precision": lambda r: r.precision.lower()[:16] or "unstated",
    }
    values = []
    for group, key in groups.items():
        buckets: dict[str, list[float]] = {}
        for r in rows:
            if r.kind in ("tpot", "ttft", "ttft_queued", "offline", "throughput"):
                buckets.setdefault(key(r), []).append(abs(r.error))
        values += [
            {"group": group, "bucket": b, "median": _digits(sorted(e)[len(e) // 2]), "n": len(e)}
            for b, e in sorted(buckets.items(), key=lambda item: (len(item[0]), item[0]))
            if len(e) >= 5
        ]
    order = [v["bucket"] for v in values]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": values},
        "facet": {"field": "group", "type": "nominal", "title": None},
        "columns": 3,
        "spec": {
            "width": 290,
            "height": 200,
            "mark": "bar",
            "encoding": {
                "x": {"field": "bucket", "type": "nominal", "sort": order, "title": None},
                "y": {"field": "median", "type": "quantitative", "title": "median error", "axis": {"format": "%"}},
                "tooltip": [{"field": "bucket"}, {"field": "median", "format": ".1%"}, {"field": "n", "title": "rows"}],
            },
        },
        "resolve": {"scale": {"x": "independent"}},
    }


def _decade(value: float) -> str:
    """Return the power of two that a count lies at or below: `"<=64"`."""
    if value <= 0:
        return "unstated"
    limit = 1
    while limit < value:
        limit *= 2 if limit < 64 else 4
    return f"<={limit}"


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
