"""core: units at the boundary, error wording, sourced tables, digests, atomic files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabless.core.digest import digest
from fabless.core.errors import FablessError, InputError, SourceError, UnitError, nearest
from fabless.core.files import atomic, write_text
from fabless.core.ranges import Range
from fabless.core.sources import parse_table
from fabless.core.units import binary, quantity, si, unit_of


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("8 TB/s", "byte / second", 8e12),
        ("192 MiB", "byte", 192 * 2**20),
        ("192 MB", "byte", 192e6),
        ("3.9 pJ/bit", "joule / byte", 8 * 3.9e-12),
        ("1.2 GHz", "hertz", 1.2e9),
        ("0.08 usd/kWh", "usd / kilowatt_hour", 0.08),
        (25, "watt", 25.0),
    ],
)
def test_a_quantity_is_read_in_the_unit_of_its_field(text, unit, value):
    assert quantity(text, unit, where="study.toml: x") == pytest.approx(value, rel=1e-12)


def test_a_quantity_of_the_wrong_dimension_names_place_value_and_need():
    with pytest.raises(UnitError) as error:
        quantity("8 TB", "byte / second", where="chat.toml: space.dram.bandwidth")
    assert str(error.value).startswith("chat.toml: space.dram.bandwidth: '8 TB' has dimension")
    assert "byte / second is needed" in str(error.value)


@pytest.mark.parametrize("text", ["fast", "8 florps", "8 TB/", "", "12"])
def test_text_that_is_no_quantity_is_refused(text):
    with pytest.raises(UnitError, match="x: "):
        quantity(text, "byte / second", where="x")


def test_the_suffix_of_a_name_states_its_unit():
    assert unit_of("dram_bandwidth_bytes_per_s") == "byte / second"
    assert unit_of("clock_hz") == "hertz"
    assert unit_of("rows") is None


def test_numbers_are_written_for_people():
    assert si(3.35e12, "B/s") == "3.35 TB/s"
    assert si(0, "W") == "0 W"
    assert si(0.00031, "s") == "310 µs"
    assert binary(192 * 2**20) == "192 MiB"


def test_the_nearest_name_is_offered():
    assert nearest("h100_sxn", ["h100_sxm", "a100_sxm"]) == "; did you mean 'h100_sxm'?"
    assert nearest("zzz", ["h100"]) == ""


ROW = {"id": "a", "value": 1.0, "unit": "J", "kind": "paper", "source": "s"}
SOURCES = {"s": {"title": "T", "publisher": "P", "date": "2024", "url": "https://example.org"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "nobody"}, "t: row 'a' names source 'nobody', which the file does not list"),
        ({"kind": "hearsay"}, "t: row 'a' has kind 'hearsay'"),
        ({"kind": "estimate"}, "t: row 'a' is of kind 'estimate' and needs low and high"),
        ({"low": 2.0, "high": 3.0}, "t: row 'a' has 1.0 outside its range 2.0 to 3.0"),
    ],
)
def test_a_fact_without_source_or_range_is_refused(change, message):
    with pytest.raises(SourceError) as error:
        parse_table("t", {"sources": SOURCES, "rows": [ROW | change]})
    assert str(error.value).startswith(message)


def test_unknown_is_a_value_that_cannot_be_computed_with():
    fact = parse_table("t", {"sources": SOURCES, "rows": [ROW | {"value": "unknown", "kind": "estimate"}]}).fact("a")
    assert fact.value is None
    with pytest.raises(SourceError, match="a: the value is unknown"):
        _ = fact.known


def test_a_missing_row_names_the_nearest():
    with pytest.raises(SourceError, match="no row 'aa'; did you mean 'a'"):
        parse_table("t", {"sources": SOURCES, "rows": [ROW]}).fact("aa")


@dataclass(frozen=True)
class _Point:
    x: float
    tags: tuple[str, ...]


def test_equal_values_have_equal_digests_and_a_change_changes_it():
    assert digest(_Point(1.0, ("a",))) == digest(_Point(1.0, ("a",)))
    assert digest(_Point(1.0, ("a",))) != digest(_Point(1.0, ("b",)))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    with pytest.raises(TypeError):
        digest(object())


def test_a_digest_is_the_same_in_another_process():
    code = "from fabless.core.digest import digest; print(digest({'k': [1, 2.5, 'x']}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert out.stdout.strip() == digest({"k": [1, 2.5, "x"]})


def test_an_interrupted_write_leaves_the_old_file_and_no_trace(tmp_path: Path):
    path = tmp_path / "bill.csv"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as file:  # noqa: PT012  # the error must come between the write and the end
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["bill.csv"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "x")


def test_a_full_disk_leaves_nothing_half_written():
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is a Linux device")
    with pytest.raises(FablessError, match="cannot write"):
        write_text(Path("/dev/full/x"), "x")


_positive = st.floats(1e-6, 1e6)


@given(*[st.tuples(_positive, _positive, _positive).map(lambda t: Range(*sorted(t)))] * 2)
def test_ranges_stay_ordered_under_arithmetic(a: Range, b: Range):
    for r in (a + b, a * b, a / b, a - b, 2.0 * a):
        assert r.low <= r.mid <= r.high


def test_import_is_light():
    """`import fabless` loads none of the heavy libraries: that, not a stopwatch, is what keeps it quick."""
    code = "import sys, fabless; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("numpy", "numba", "scipy", "pydantic", "pint", "pyarrow", "altair", "torch", "gguf", "rich"):
        assert f"'{heavy}'" not in loaded


def test_the_public_face_is_what_it_says():
    import fabless

    assert sorted(fabless._HOME) == sorted(fabless.__all__) == fabless.__dir__()
    for name in fabless.__all__:
        assert getattr(fabless, name).__name__.lower() in (name.lower(), "load")
    with pytest.raises(AttributeError, match="no attribute 'tape_out'"):
        _ = fabless.tape_out
