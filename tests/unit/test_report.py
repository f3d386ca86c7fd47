"""The report in a real browser: offline, quiet, drawn, usable by keyboard, in the dark, on a phone and on paper."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fabless.explore.conclusion import conclude
from fabless.explore.search import design
from fabless.explore.study import read_study
from fabless.report.charts import shown_front, specs
from fabless.report.page import page

ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = 'Chat </script><script>document.title="owned"</script> & <b>"more"</b>'
SECTIONS = ["answer", "chip", "front", "today", "even", "where", "sure", "why", "basis"]
VOID = {"meta", "link", "br", "hr", "img", "input", "rect", "path"}


@pytest.fixture(scope="module")
def answer():
    study = read_study(ROOT / "examples/chat.toml")
    space = replace(study.space, process=study.space.process[-2:], clock_hz=(1e9,), cores=(64, 96), rows=(64, 128), vector_lanes=(64,))
    space = replace(space, scratchpad_bytes=(2.0**20,), memory=space.memory[:3])
    small = replace(study, title=HOSTILE, space=space, batches=(32, 64, 128))
    with ThreadPoolExecutor(1) as executor:
        return conclude(design(small, executor=executor))


@pytest.fixture(scope="module")
def html(answer):
    return page(answer, "fabless design examples/chat.toml")


@pytest.fixture(scope="module")
def url(html, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html, "utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's chromium package")
    sync = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
    with sync.sync_playwright() as play:
        launched = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def desk(opened_for_all):
    """Return one tab on a desk, for tests that leave it as it was or do not mind how they find it."""
    return opened_for_all()


@pytest.fixture
def opened(visits):
    yield from visits()


@pytest.fixture(scope="module")
def opened_for_all(visits):
    yield from visits()


@pytest.fixture(scope="module")
def visits(browser, url):
    """Open the report as a visitor with a given screen; what the page asks of the network and says on the console is kept."""
    return lambda: _visits(browser, url)


def _visits(browser, url):
    contexts = []

    def visit(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        tab = context.new_page()
        tab.said, tab.asked = [], []
        tab.on("console", lambda message: tab.said.append(message.text))
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto(url)
        tab.wait_for_function("document.documentElement.dataset.drawn === 'yes'")
        return tab

    yield visit
    for context in contexts:
        context.close()


class Outline(HTMLParser):
    """Check that every element is closed in order, and keep elements with their attributes and text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.faults = [], [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open[-1][0] != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data):
        for _, index in self.open:
            self.elements[index][2].append(data)


@pytest.fixture(scope="module")
def outline(html):
    read = Outline()
    read.feed(html)
    read.close()
    return read


def found(outline, tag):
    return [(attributes, "".join(text).strip()) for name, attributes, text in outline.elements if name == tag]


def test_the_page_is_well_formed(html, outline):
    assert html.startswith("<!doctype html>\n<html lang=")
    assert outline.faults == []
    assert outline.open == []
    ids = [attributes["id"] for _, attributes, _ in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [attributes["id"] for attributes, _ in found(outline, "section")] == SECTIONS


def test_tables_name_their_headers_and_controls_their_purpose(outline):
    headers = found(outline, "th")
    assert len(headers) > 50
    assert {attributes.get("scope") for attributes, _ in headers} == {"col", "row"}
    labelled = {attributes["for"] for attributes, _ in found(outline, "label")}
    assert {attributes["id"] for attributes, _ in found(outline, "select")} <= labelled
    assert all(text for _, text in found(outline, "button"))
    for attributes, _ in found(outline, "div"):
        if "chart" in attributes.get("class", "").split():
            assert attributes["role"] == "img"
            assert attributes["aria-label"]


def test_headings_descend_one_level_at_a_time(outline):
    levels = [int(tag[1]) for tag, _, _ in outline.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_text_of_the_study_cannot_leave_its_place(html, answer):
    assert "</script><script>document" not in html
    assert "&lt;/script&gt;&lt;script&gt;document" in html
    embedded = re.search(r'<script type="application/json" id="specs">(.*?)</script>', html, re.S)
    assert json.loads(embedded[1]).keys() == specs(answer).keys()


def test_the_page_holds_every_chart_of_the_answer(outline, answer):
    places = {attributes["id"] for attributes, _ in found(outline, "div") if "chart" in attributes.get("class", "").split()}
    assert places == set(specs(answer))
    assert {"frontier", "comparison", "roofline", "tornado", "breakdown-time", "breakdown-energy", "breakdown-money"} <= places


def test_the_answer_and_the_command_that_made_it_are_text(html, answer):
    assert escape(answer.headline) in html
    assert "fabless design examples/chat.toml" in html
    assert answer.frontier.study.digest in html
    assert "which chip should we build?" in html
    for source in answer.sources:
        assert escape(source.title) in html


def test_same_answer_same_bytes(html, answer):
    assert page(answer, "fabless design examples/chat.toml") == html


def test_offline_and_quiet(opened, url):
    tab = opened(offline=True)
    assert [address for address in tab.asked if not address.startswith("data:")] == [url]
    assert tab.said == []
    assert tab.title().startswith(HOSTILE)  # the script in it would have changed it


def test_all_charts_are_drawn(desk, answer):
    tab = desk
    for id in specs(answer):
        assert tab.locator(f"#{id} svg").count() == 1, id
        marks = tab.locator(f"#{id} svg .mark-symbol path, #{id} svg .mark-rect path, #{id} svg .mark-line path, #{id} svg .mark-rule line")
        assert marks.count() > 1, id
    assert tab.locator("svg.floorplan rect").count() > 10


def test_the_answer_is_picked_first(desk, answer):
    tab = desk
    best = shown_front(answer.frontier).index(answer.frontier.best)
    assert tab.locator("#pick").input_value() == str(best)
    assert tab.locator("#picked dd").count() >= 10


def test_a_click_on_a_frontier_point_shows_its_sheet(desk, answer):
    tab = desk
    columns = answer.frontier.columns
    shown = shown_front(answer.frontier)
    tab.locator("#frontier").scroll_into_view_if_needed()
    points = tab.locator("#frontier svg .mark-symbol.role-mark").first.locator("path")
    assert points.count() == len(shown)
    for index in (int(np.argmax(columns["tokens_per_s_per_user"][shown])), int(np.argmin(columns["usd_per_mtok"][shown]))):
        box = points.nth(index).bounding_box()
        tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        # Points may lie over each other; what is on top is picked, and it stands where the click was.
        picked = shown[int(tab.locator("#pick").input_value())]
        assert columns["tokens_per_s_per_user"][picked] == pytest.approx(columns["tokens_per_s_per_user"][shown[index]], rel=0.05)
        assert tab.locator("#picked h3").inner_text() == tab.locator("#pick option:checked").inner_text()
        assert tab.locator("#picked dd").count() >= 10


def test_choosing_in_the_list_shows_the_sheet(desk, answer):
    tab = desk
    options = tab.locator("#pick option").all_inner_texts()
    assert len(options) == len(shown_front(answer.frontier))
    for index in (0, len(options) - 1):
        tab.locator("#pick").select_option(str(index))
        assert tab.locator("#picked h3").inner_text() == options[index]
        terms = tab.locator("#picked dt").all_inner_texts()
        assert {"process", "peak", "memory", "die", "chips", "first token"} <= set(terms)


def focused(tab):
    return tab.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.getAttribute('href')")


def test_the_keyboard_reaches_everything(opened):
    tab = opened()
    tab.keyboard.press("Tab")
    assert focused(tab) == "skip"
    assert tab.locator(".skip").bounding_box()["x"] >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("location.hash") == "#answer"
    tab.evaluate("history.replaceState(null, '', location.pathname); document.querySelector('.skip').focus()")
    order = []
    for _ in range(40):
        tab.keyboard.press("Tab")
        order.append(focused(tab))
        if order[-1] == "pick":
            break
    assert [place for place in order if place in {f"#{id}" for id in SECTIONS}] == [f"#{id}" for id in SECTIONS]
    assert order.index("theme") < order.index("pick")
    before = tab.locator("#picked h3").inner_text()
    at_end = tab.locator("#pick").input_value() == str(tab.locator("#pick option").count() - 1)
    tab.keyboard.press("ArrowUp" if at_end else "ArrowDown")
    assert tab.locator("#picked h3").inner_text() != before


def test_the_theme_button_overrides_the_system_both_ways(opened):
    for scheme in ("light", "dark"):
        tab = opened(color_scheme=scheme)
        ground = "getComputedStyle(document.body).backgroundColor"
        first = tab.evaluate(ground)
        tab.locator("#theme").click()
        second = tab.evaluate(ground)
        tab.locator("#theme").click()
        assert first != second
        assert tab.evaluate(ground) == first


def luminance(colour):
    """Return the relative luminance of `rgb(r, g, b)`: WCAG 2.2, definition of relative luminance."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_contrast_rule_itself():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(118, 118, 118)", "rgb(255, 255, 255)") == pytest.approx(4.54, abs=0.005)  # the published borderline grey #767676


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_themes(opened, scheme):
    tab = opened(color_scheme=scheme)
    colour = """name => { const probe = document.createElement("i"); probe.style.color = `var(${name})`; document.body.append(probe);
        const found = getComputedStyle(probe).color; probe.remove(); return found; }"""
    grounds = [tab.evaluate(colour, name) for name in ("--bg", "--panel")]
    for name in ("--ink", "--soft", "--accent", "--good", "--bad"):
        for ground in grounds:
            assert contrast(tab.evaluate(colour, name), ground) >= 4.5, (name, ground)  # WCAG 2.2, 1.4.3 level AA
    labels = tab.evaluate("[...document.querySelectorAll('.chart svg text')].map(t => getComputedStyle(t).fill)")
    assert len(labels) > 50
    assert min(contrast(fill, grounds[0]) for fill in set(labels)) >= 4.5


def test_a_phone_never_scrolls_sideways(opened):
    tab = opened(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.evaluate("getComputedStyle(document.body).fontSize") == "16px"
    button, links = tab.locator("#theme").bounding_box(), tab.locator("nav .links").bounding_box()
    assert links["x"] + links["width"] <= button["x"]
    assert button["x"] + button["width"] <= 360


def test_on_paper_there_is_no_navigation_and_ink_is_dark(opened):
    tab = opened(color_scheme="dark")
    tab.locator("#theme").click()
    tab.locator("#theme").click()  # dark, by choice
    tab.emulate_media(media="print")
    for place in ("nav", ".skip", "#theme"):
        assert tab.locator(place).is_hidden()
    assert luminance(tab.evaluate("getComputedStyle(document.body).color")) < 0.05
    assert luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.95
    assert tab.locator("h1").is_visible()
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")


def test_the_frontier_says_what_it_shows(desk, answer):
    drawn = desk.locator("#frontier svg")
    for text in ("the answer", "$ per million tokens", "tokens/s for one user", "process"):
        assert drawn.get_by_text(text, exact=True).count() == 1, text
    if answer.break_even:
        assert desk.locator("#breakeven svg").get_by_text("this study", exact=True).count() == 1
