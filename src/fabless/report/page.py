"""The report of a study: one HTML file that needs no network, readable on a phone, by keyboard, in the dark and on paper."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import fabless
from fabless.core.units import binary, si
from fabless.report import charts
from fabless.report.figures import count, percent, seconds, usd
from fabless.report.floorplan import draw
from fabless.report.tables import chip_sheet, front_sheets, service_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fabless.core.ranges import Range
    from fabless.explore.answer import Answer, Option

_WAYS = (
    ("build", "make the chip of this study"), ("rent", "by the hour in a cloud"), ("buy", "as servers of one's own"),
    ("maker", "what it costs its maker, who does not sell it: shown for scale, not on offer"),
)  # fmt: skip
_BLOCK_KINDS = (
    ("matrix", "matrix units"), ("vector", "vector units"), ("sram", "on-chip memory"), ("dram_phy", "memory interface"),
    ("link_phy", "links"), ("noc", "on-chip network"), ("control", "control"), ("other", "other"),
)  # fmt: skip


def page(answer: Answer, command: str) -> str:
    """Return the report as HTML; `command` is what the reader can type to get it again."""
    study = answer.frontier.study
    sections = [
        ("answer", "Answer", "", _answer(answer)),
        ("chip", "Chip", "The chip", _chip(answer)),
        ("front", "Trade-offs", "Every best trade-off", _front(answer)),
        ("today", "Today's chips", "Against today's chips", _today(answer)),
        ("even", "Break-even", "When building pays", _even(answer)),
        ("where", "Where it goes", "Where time, energy and money go", _where(answer)),
        ("sure", "Certainty", "How sure this is", _sure(answer)),
        ("why", "Runners-up", "Why the others lost", _why(answer)),
        ("basis", "Sources", "Assumptions and sources", _basis(answer)),
    ]
    title = f"{study.title or study.name}: which chip should we build?"
    body = f"<h1>{escape(title)}</h1>" + "".join(_section(id, heading, html) for id, _, heading, html in sections)
    footer = (
        f"<p>Made by <code>{escape(command)}</code> with fabless {fabless.__version__}, seed {study.seed}, study {study.digest}. "
        f"Fidelity of all timings: {escape(answer.fidelity)}. {count(answer.frontier.counts.points)} points of {count(answer.frontier.counts.designs)} chips searched, "
        f"{count(answer.frontier.counts.feasible_points)} met every limit.</p>"
    )
    return document(
        title,
        nav=[(id, name) for id, name, _, _ in sections],
        body=body,
        footer=footer,
        specs=charts.specs(answer),
        sheets=front_sheets(answer.frontier, charts.shown_front(answer.frontier)),
    )


def document(
    title: str,
    *,
    nav: Sequence[tuple[str, str]],
    body: str,
    footer: str,
    specs: Mapping[str, Any],
    sheets: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Assemble a self-contained page: styles, charts' library, specifications and script in one file."""
    links = "".join(f'<a href="#{id}">{escape(name)}</a>' for id, name in nav)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{_asset("page.css")}</style>\n</head>\n<body>\n<a class="skip" href="#answer">Skip to the answer</a>\n'
        f'<nav aria-label="Sections"><strong>fabless</strong><div class="links">{links}</div><button id="theme" type="button">Dark / light</button></nav>\n'
        f"<main>{body}<footer>{footer}</footer></main>\n"
        f'<script type="application/json" id="specs">{_json(specs)}</script>\n<script type="application/json" id="sheets">{_json(list(sheets))}</script>\n'
        f"<script>{_chart_library()}</script>\n<script>{_asset('page.js')}</script>\n</body>\n</html>\n"
    )


def _section(id: str, name: str, html: str) -> str:
    heading = f"<h2>{escape(name)}</h2>" if name else ""
    return f'<section id="{id}">{heading}{html}</section>'


def _answer(a: Answer) -> str:
    own = a.own
    first = own.services[0]
    cards = [
        (*_split(own.usd_per_mtok), "per million tokens"),
        (count(own.n_chips), "", f"chips, {si(own.power_w, 'W')} at the peak of the traffic"),
        (
            f"{first.tokens_per_s_per_user:.3g} tok/s",
            "",
            f"for one user; first token in {seconds(first.ttft_s)}; timing {_band(a.error_ratio)}",
        ),
        (f"{own.j_per_token.mid:.3g} J" if own.j_per_token else "unknown", "", "per token, facility included"),
        (*_split(a.nre_usd), "once, before the first chip (NRE)"),
    ]
    if a.cheaper_ratio is not None:
        cards.append((f"{100 * a.cheaper_ratio:.0f} of 100", "", "draws of everything uncertain in which building is cheaper"))
    items = "".join(
        f'<li><span class="n">{escape(n)}</span><span class="of">{f"{escape(ends)} " if ends else ""}{escape(of)}</span></li>'
        for n, ends, of in cards
    )
    return f'<p class="verdict">{escape(a.headline)}</p><ul class="cards">{items}</ul>'


def _split(value: Range | None) -> tuple[str, str]:
    """Return a range's mid figure and, apart, its ends if they differ."""
    if value is None:
        return "unknown", ""
    ends = usd(value.low), usd(value.high)
    return usd(value.mid), f"({ends[0]} to {ends[1]})" if ends[0] != ends[1] else ""


def _band(error_ratio: float | None) -> str:
    return "not measured" if error_ratio is None else f"± {percent(error_ratio)}"


def _chip(a: Answer) -> str:
    kinds = {b.kind for b in a.silicon.blocks}
    legend = "".join(f'<li><i style="background:var(--{k.removesuffix("_phy")})"></i>{name}</li>' for k, name in _BLOCK_KINDS if k in kinds)
    rows = "".join(
        f'<tr><th scope="row">{escape(b.name)}</th><td class="r">{b.count:,}</td><td class="r">{b.area_mm2:.2f}</td>'
        f'<td class="r">{percent(b.area_mm2 / sum(x.area_mm2 for x in a.silicon.blocks), 1)}</td><td class="r">{si(b.leakage_w, "W")}</td><td class="soft">{escape(b.basis)}</td></tr>'
        for b in sorted(a.silicon.blocks, key=lambda b: -b.area_mm2)
    )
    head = (
        '<table><thead><tr><th scope="col">block</th><th scope="col" class="r">count</th><th scope="col" class="r">mm²</th><th scope="col" class="r">share</th>'
        '<th scope="col" class="r">leakage</th><th scope="col">from</th></tr></thead><tbody>'
    )
    services = _table(
        "How each model is served",
        ("model", "formats", "plan", "batch", "replicas", "tok/s/user", "first token", "per token", "prefill share", "memory per chip"),
        service_rows(a.own),
    )
    return (
        f'<div class="two"><div>{_sheet(chip_sheet(a))}</div><figure>{draw(a.silicon)}<ul class="legend">{legend}</ul>'
        f"<figcaption>One die to scale, ± {percent(a.silicon.area_error_ratio)} on its area. Point at a block for its figures.</figcaption></figure></div>{services}"
        f"<details><summary>Area of every block</summary>{_scroll('Area of every block', head + rows + '</tbody></table>')}</details>"
    )


def _front(a: Answer) -> str:
    shown = charts.shown_front(a.frontier)
    sheets = front_sheets(a.frontier, shown)
    best = shown.index(a.frontier.best)
    options = "".join(f'<option value="{i}"{" selected" if i == best else ""}>{escape(s["title"])}</option>' for i, s in enumerate(sheets))
    n = len(a.frontier.front)
    thinned = f" {len(shown)} of them are drawn." if n > len(shown) else ""
    return (
        f"<p>No chip in the space is better than any of these {n:,} on cost, speed for one user, power and NRE at once.{thinned} Choose one to see its sheet.</p>"
        f'<div class="chart" id="frontier" role="img" aria-label="Pareto front: dollars per million tokens against tokens per second for one user"></div>'
        f'<p><label for="pick">Chip </label><select id="pick">{options}</select></p><div id="picked" aria-live="polite"></div>'
    )


def _today(a: Answer) -> str:
    rows = [
        _option_row(a.own, us=True),
        *(
            _option_row(o)
            for o in sorted((o for o in a.comparison if o.serves), key=lambda o: o.usd_per_mtok.mid if o.usd_per_mtok else 0.0)
        ),
    ]
    refused = "".join(f"<li><b>{escape(o.chip.name)}</b> ({o.how}): {escape(o.reason)}</li>" for o in a.comparison if not o.serves)
    table = (
        "<table><caption>Mid figures, low to high below them; the error band is that of the timing on the chip's family.</caption><thead><tr>"
        '<th scope="col">chip</th><th scope="col">how</th><th scope="col" class="r">chips</th><th scope="col" class="r">$ per Mtok</th>'
        '<th scope="col" class="r">$ per year</th><th scope="col" class="r">J/token</th><th scope="col" class="r">tok/s/user</th>'
        f'<th scope="col">plan, batch</th><th scope="col" class="r">timing</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
    return (
        "<p>The same service, under the same targets, with the best plan and batch on each chip.</p>"
        '<div class="chart" id="comparison" role="img" aria-label="Dollars per million tokens by chip"></div>'
        f'<p class="caption">Dots are mid figures, lines run from low to high. {_ways({"build", *(o.how for o in a.comparison if o.serves)})}</p>'
        + _scroll("Today's chips", table)
        + (
            f'<details><summary>Chips that cannot serve this study or have no known price</summary><ul class="plain">{refused}</ul></details>'
            if refused
            else ""
        )
    )


def _ways(ways: set[str]) -> str:
    """Explain the ways to have a chip that are shown."""
    return "; ".join(f"<b>{how}</b>: {meaning}" for how, meaning in _WAYS if how in ways) + "."


def _option_row(o: Option, *, us: bool = False) -> str:
    s = o.services[0]
    cells = [
        f'<th scope="row">{escape(("this design: " if us else "") + o.chip.name)}</th><td>{o.how}</td><td class="r">{count(o.n_chips)}</td>',
        f'<td class="r">{_stacked(o.usd_per_mtok)}</td><td class="r">{usd(o.usd_per_year.mid) if o.usd_per_year else "unknown"}</td>',
        f'<td class="r">{o.j_per_token.mid:.3g}</td>' if o.j_per_token else '<td class="r">unknown</td>',
        f'<td class="r">{s.tokens_per_s_per_user:.3g}</td><td>{escape(str(s.plan))}, {s.batch}</td><td class="r">{_band(o.error_ratio)}</td>',
    ]
    return f"<tr{' class=us' if us else ''}>{''.join(cells)}</tr>"


def _stacked(value: Range | None) -> str:
    """Write a range's mid figure with its ends on a line below."""
    mid, ends = _split(value)
    return f"{mid}<small>{ends.strip('()')}</small>" if ends else mid


def _even(a: Answer) -> str:
    b = a.break_even
    if b is None:
        return "<p>No chip that can be rented or bought serves this study at a known price, so there is nothing to break even with.</p>"
    if b.tokens_per_year is None:
        verdict = f"Within the range drawn, building never becomes cheaper than {escape(b.rival)} ({b.rival_how}) at the mid prices."
    else:
        ends = [f"{count(x)}" if x else "never" for x in (b.tokens_per_year_low, b.tokens_per_year_high)]
        verdict = (
            f"Building is cheaper than {escape(b.rival)} ({b.rival_how}) from {count(b.tokens_per_year)} tokens a year on "
            f"(if costs turn out low: {ends[0]}; high: {ends[1]}). This study: {count(b.study_tokens_per_year)} a year."
        )
    return f'<p>{verdict}</p><div class="chart" id="breakeven" role="img" aria-label="Cost per million tokens against yearly volume, building and renting"></div>'


def _where(a: Answer) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escape(x.label)}</th><td>{x.group}</td><td class="r">{_stacked(x.usd)}</td><td>{x.when}</td><td class="soft">{escape(", ".join(x.sources))}</td></tr>'
        for x in a.bill.lines
    )
    groups = list(dict.fromkeys(s.group for s in a.breakdown))
    parts = "".join(
        f'<div><h3>{g.capitalize()}</h3><div class="chart" id="breakdown-{g}" role="img" aria-label="Shares of {g}"></div></div>'
        for g in groups
    )
    charts_html = f'<div class="three">{parts}</div><p class="caption">Time: in brackets what bounds the operations. Energy: at the chips, averaged over the year. Money: per year.</p>'
    roof = (
        '<h3>Roofline</h3><div class="chart" id="roofline" role="img" aria-label="Roofline with every op of a decode step and of a prefill"></div>'
        '<p class="caption">Each point is one op of the first model, all its layers together, on one chip; it cannot lie above the roof.</p>'
    )
    table = (
        '<table><thead><tr><th scope="col">line</th><th scope="col">group</th><th scope="col" class="r">USD</th><th scope="col">when</th>'
        f'<th scope="col">sources</th></tr></thead><tbody>{lines}</tbody></table>'
    )
    bill = f"<details><summary>The whole bill</summary>{_scroll('The whole bill', table)}</details>"
    return charts_html + roof + bill


def _sure(a: Answer) -> str:
    return (
        "<p>Each input alone is moved from its low to its high end; the ten that move the cost most are shown. Ranges come from the sources listed below.</p>"
        '<div class="chart" id="tornado" role="img" aria-label="How far each input moves the cost per million tokens"></div>'
    )


def _why(a: Answer) -> str:
    binding = "".join(f"<li>{escape(_sentence(b.description))}</li>" for b in a.binding if b.gain_ratio > 0)
    loose = ", ".join(escape(b.description.partition(" does not bind")[0]) for b in a.binding if b.gain_ratio <= 0)
    lost = "".join(f"<tr><th scope='row'>{escape(r.label)}</th><td>{escape(r.reason)}</td></tr>" for r in a.runners_up)
    return (
        f'<h3>Which limit binds</h3><ul class="plain">{binding or "<li>None: lifting any single limit finds nothing better.</li>"}</ul>'
        + (f'<p class="soft">Not binding: {loose}.</p>' if loose else "")
        + '<h3>Runners-up</h3><p class="soft">The next best chips, then the best chip with each single choice made otherwise.</p>'
        + _scroll(
            "Runners-up",
            f'<table><thead><tr><th scope="col">instead of the answer</th><th scope="col">why it lost</th></tr></thead><tbody>{lost}</tbody></table>',
        )
    )


def _basis(a: Answer) -> str:
    assumptions = "".join(f"<li>{escape(_sentence(x))}</li>" for x in a.assumptions)
    sources = "".join(
        f"<li>{escape(s.title)}. {escape(s.publisher)}, {escape(s.date)}. {_link(s.url)}</li>"
        for s in sorted(a.sources, key=lambda s: s.title)
    )
    return f'<h3>Assumed</h3><ul class="plain">{assumptions}</ul><details><summary>{len(a.sources)} sources of the figures used</summary><ul class="plain">{sources}</ul></details>'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _link(url: str) -> str:
    return f'<a href="{escape(url)}">{escape(url)}</a>' if url.startswith(("http://", "https://")) else escape(url)


def _scroll(what: str, table: str) -> str:
    """Let a wide table scroll by touch and by keyboard, so that the page itself never does."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(what)}">{table}</div>'


def _sheet(rows: Iterable[tuple[str, str]]) -> str:
    return f'<dl class="sheet">{"".join(f"<dt>{escape(t)}</dt><dd>{escape(v)}</dd>" for t, v in rows)}</dl>'


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f'<tr><th scope="row">{escape(r[0])}</th>{"".join(f"<td>{escape(c)}</td>" for c in r[1:])}</tr>' for r in rows)
    heads = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    return _scroll(caption, f"<table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table>")


def _asset(name: str) -> str:
    return files("fabless.report").joinpath(name).read_text("utf-8")


@cache
def _chart_library() -> str:
    import vl_convert

    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the stub forgets the default
    return bundle.replace("</script", "<\\/script")


def _json(value: Any) -> str:
    """Return JSON that can stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("</", "<\\/")


def memory_text(chip_bytes: float) -> str:
    """Write a memory size: binary below a gigabyte (on-chip), decimal above (as memories are sold)."""
    return binary(chip_bytes) if chip_bytes < 1e9 else si(chip_bytes, "B")
