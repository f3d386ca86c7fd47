"""Every table of facts: each row has a source that exists, each soft row a range, no source stands unused."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from math import isfinite
from pathlib import Path

import pytest

from fabless.chip.catalogue import sheet, sheet_names
from fabless.core.errors import SourceError
from fabless.core.sources import KINDS, RANGED_KINDS, parse_table

DATA = Path(str(files("fabless.data")))
#: Files under data/ that are no tables of rows, and the test that reads each.
NOT_TABLES = {"chip_names", "demo_chip", "models/catalogue"}
TABLES = sorted(
    name
    for path in DATA.rglob("*.toml")
    if (name := str(path.relative_to(DATA).with_suffix(""))) not in NOT_TABLES and path.parent.name != "chips"
)


def read(name: str):
    return parse_table(name, tomllib.loads((DATA / f"{name}.toml").read_text("utf-8")))


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_sourced_and_every_source_used(name):
    content = tomllib.loads((DATA / f"{name}.toml").read_text("utf-8"))
    assert content.get("rows"), f"{name}.toml holds no rows: name it in NOT_TABLES with the test that reads it"
    table = parse_table(name, content)
    assert {fact.source.id for fact in table} == set(table.sources)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_a_range_that_holds_it(name):
    for fact in read(name):
        assert fact.kind in KINDS
        if fact.value is None:
            continue
        assert isfinite(fact.value), fact.id
        if fact.kind in RANGED_KINDS:
            assert fact.low is not None, fact.id
            assert fact.high is not None, fact.id
        low, mid, high = fact.range
        assert low <= mid <= high, fact.id


@pytest.mark.parametrize("name", TABLES)
def test_every_source_says_who_and_when(name):
    for source in read(name).sources.values():
        assert source.title, source.id
        assert source.publisher, source.id
        assert source.url, source.id
        assert source.date[:2] in ("19", "20"), source.id


@pytest.mark.parametrize("id", sheet_names())
def test_every_cell_of_a_chip_is_sourced_and_ranged(id):
    s = sheet(id)
    assert s.cells
    for cell in s.cells.values():
        assert cell.kind in KINDS
        assert cell.source.title
        assert cell.source.date[:2] in ("19", "20")
        if isinstance(cell.value, float):
            assert isfinite(cell.value)
            if cell.kind in RANGED_KINDS:
                assert cell.low is not None
                assert cell.high is not None
                assert cell.low <= cell.value <= cell.high
        if cell.kind == "assumption":
            assert cell.note, f"{id}: {cell.id} is assumed without saying why"


@pytest.mark.parametrize("id", sheet_names())
def test_every_source_of_a_chip_is_used(id):
    content = tomllib.loads((DATA / "chips" / f"{id}.toml").read_text("utf-8"))
    assert {row["source"] for row in content["cells"].values()} == set(content["sources"])


def test_the_index_lists_exactly_the_sheets():
    assert set(sheet_names()) == {path.stem for path in (DATA / "chips").glob("*.toml")}


ROW = {"id": "x", "value": 1.0, "unit": "J", "kind": "paper", "source": "s"}
SOURCE = {"s": {"title": "T", "publisher": "P", "date": "2020", "url": "u"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "other"}, "names source 'other', which the file does not list"),
        ({"kind": "rumour"}, "has kind 'rumour'"),
        ({"kind": "estimate"}, "is of kind 'estimate' and needs low and high"),
        ({"low": 2.0, "high": 3.0}, "has 1.0 outside its range 2.0 to 3.0"),
    ],
)
def test_the_reader_objects_to_a_bad_row(change, message):
    with pytest.raises(SourceError, match=message.replace(".", r"\.")):
        parse_table("t", {"sources": SOURCE, "rows": [ROW | change]})
