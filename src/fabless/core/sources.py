"""Tables of facts about the world: every number is a row with unit, source, date, kind and range.

A table is a TOML file in `fabless/data/`:

    [sources.jouppi2021]
    title = "Ten Lessons From Three Generations Shaped Google's TPUv4i"
    publisher = "ISCA 2021"
    date = "2021-06"
    url = "https://doi.org/10.1109/ISCA52012.2021.00010"

    [[rows]]
    id = "mul_int8_7nm"
    value = 0.07e-12          # a number, or "unknown"
    unit = "J"
    kind = "paper"            # standard | datasheet | measured | paper | press | estimate | derived | assumption
    source = "jouppi2021"
    low = 0.05e-12            # needed for kinds press, estimate and assumption
    high = 0.09e-12
    process = "7nm"           # any further key is an attribute to select by
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fabless.core.errors import SourceError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KINDS = ("standard", "datasheet", "measured", "paper", "press", "estimate", "derived", "assumption")
RANGED_KINDS = ("press", "estimate", "assumption")
_FIELDS = ("id", "value", "unit", "kind", "source", "low", "high", "date", "note")


@dataclass(frozen=True, slots=True)
class Source:
    """Name where a fact comes from."""

    id: str
    title: str
    publisher: str
    date: str
    url: str


@dataclass(frozen=True, slots=True)
class Fact:
    """Hold one number about the world with its range and origin; `value` is None when unknown."""

    id: str
    value: float | None
    unit: str
    kind: str
    source: Source
    low: float | None = None
    high: float | None = None
    date: str = ""
    note: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> float:
        """Return the value, or raise `SourceError` when it is unknown."""
        if self.value is None:
            raise SourceError(f"{self.id}: the value is unknown ({self.source.title}); give it in the study")
        return self.value

    @property
    def range(self) -> tuple[float, float, float]:
        """Return (low, mid, high); a value without a stated range has low = mid = high."""
        mid = self.known
        return (mid if self.low is None else self.low, mid, mid if self.high is None else self.high)


@dataclass(frozen=True, slots=True)
class Table:
    """Hold the rows and sources of one file of facts."""

    name: str
    facts: Mapping[str, Fact]
    sources: Mapping[str, Source]

    def __iter__(self) -> Iterator[Fact]:
        return iter(self.facts.values())

    def fact(self, id: str) -> Fact:
        """Return one row by its id; raises `SourceError` naming the nearest id."""
        try:
            return self.facts[id]
        except KeyError:
            raise SourceError(f"{self.name}: no row '{id}'{nearest(id, self.facts)}") from None

    def select(self, **attributes: Any) -> tuple[Fact, ...]:
        """Return the rows whose attributes equal all those given, in file order."""
        return tuple(f for f in self.facts.values() if all(f.attributes.get(k) == v for k, v in attributes.items()))


@cache
def table(name: str) -> Table:
    """Read `fabless/data/<name>.toml`, checked: every row has a known source, unit and kind, every soft kind a range."""
    text = files("fabless.data").joinpath(f"{name}.toml").read_text("utf-8")
    return parse_table(name, tomllib.loads(text))


def parse_table(name: str, content: Mapping[str, Any]) -> Table:
    """Turn the content of a fact file into a `Table`; raises `SourceError` naming file, row and rule."""
    sources = {id: Source(id, s["title"], s["publisher"], s["date"], s["url"]) for id, s in content.get("sources", {}).items()}
    facts: dict[str, Fact] = {}
    for row in content.get("rows", []):
        fact = _fact(name, row, sources)
        if fact.id in facts:
            raise SourceError(f"{name}: two rows have the id '{fact.id}'")
        facts[fact.id] = fact
    return Table(name, facts, sources)


def _fact(name: str, row: Mapping[str, Any], sources: Mapping[str, Source]) -> Fact:
    id = str(row.get("id", "(no id)"))
    missing = [key for key in ("id", "value", "unit", "kind", "source") if key not in row]
    if missing:
        raise SourceError(f"{name}: row '{id}' lacks {', '.join(missing)}")
    if row["kind"] not in KINDS:
        raise SourceError(f"{name}: row '{id}' has kind '{row['kind']}'; use one of {', '.join(KINDS)}")
    if row["source"] not in sources:
        raise SourceError(f"{name}: row '{id}' names source '{row['source']}', which the file does not list")
    value = None if row["value"] == "unknown" else float(row["value"])
    if row["kind"] in RANGED_KINDS and value is not None and not ("low" in row and "high" in row):
        raise SourceError(f"{name}: row '{id}' is of kind '{row['kind']}' and needs low and high")
    low, high = row.get("low"), row.get("high")
    if value is not None and not ((low is None or low <= value) and (high is None or value <= high)):
        raise SourceError(f"{name}: row '{id}' has {value} outside its range {low} to {high}")
    attributes = {k: v for k, v in row.items() if k not in _FIELDS}
    return Fact(
        id, value, row["unit"], row["kind"], sources[row["source"]], low, high, str(row.get("date", "")), row.get("note", ""), attributes
    )
