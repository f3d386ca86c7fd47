"""Read published measurements: one CSV row is one measured number of a system, and nothing wrong passes silently."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fabless.core.errors import InputError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Columns that a serving table must have; `date`, `source_repo`, `source_path` and `notes` may be absent.
SERVING_COLUMNS = (
    "id", "chip", "chips", "model", "precision", "phase", "input_len", "output_len", "concurrency", "metric", "value", "unit", "software",
)  # fmt: skip

#: Unit of a measured value -> (quantity, factor to SI). Quantities: s, 1/s (tokens, requests or inferences), ratio.
UNITS: dict[str, tuple[str, float]] = {
    "ms": ("s", 1e-3),
    "s": ("s", 1.0),
    "us": ("s", 1e-6),
    "latency (ms)": ("s", 1e-3),
    "fraction": ("ratio", 1.0),
    "tokens/s": ("tokens/s", 1.0),
    "tokens/s/chip": ("tokens/s/chip", 1.0),
    "tokens/s/user": ("tokens/s/user", 1.0),
    "inferences/s": ("inferences/s", 1.0),
    "req/s": ("requests/s", 1.0),
    "samples/s": ("inferences/s", 1.0),
    "queries/s": ("inferences/s", 1.0),
}


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one measured number of one system as its source states it.

    `value` is in SI (`unit`: s, ratio, tokens/s, tokens/s/chip, tokens/s/user, requests/s, inferences/s). `chips`, `input_tokens` and
    `output_tokens` are None where the source does not state them; `concurrency` is a number of requests, or None when the text in
    `load` ("max", "poisson", ...) says how requests arrive.
    """

    id: str
    line: int
    chip: str
    chips: int | None
    model: str
    precision: str
    phase: str
    input_tokens: float | None
    output_tokens: float | None
    concurrency: int | None
    load: str
    metric: str
    value: float
    unit: str
    software: str
    date: str = ""
    source: str = ""
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """Hold the rows of a table that could be read, and why others could not (`lenient` only)."""

    rows: tuple[Row, ...]
    refused: Mapping[str, int] = field(default_factory=dict)


class _RefusedError(InputError):
    """Carry the place of a wrong cell and, apart from it, the reason that a lenient reading counts."""

    def __init__(self, place: str, reason: str, detail: str) -> None:
        super().__init__(f"{place}: {detail}")
        self.reason = reason


def read_table(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Return the column names of a CSV file and its (line, cells) records.

    Raises `InputError` for a file that cannot be read, is empty, is not UTF-8, or has a line with too many or too few cells.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error}); give the path of a CSV file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save the table as UTF-8 CSV") from None
    reader = csv.reader(text.splitlines(keepends=True))
    columns = [name.strip() for name in next(reader, [])]
    if not columns:
        raise InputError(f"{path}: line 1: the file is empty; a table starts with its column names")
    repeated = [name for name, n in Counter(columns).items() if n > 1]
    if repeated:
        raise InputError(f"{path}: line 1: column '{repeated[0]}' appears twice; name each column once")

    def records() -> Iterator[tuple[int, dict[str, str]]]:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                raise InputError(
                    f"{path}: line {reader.line_num}: {len(cells)} cells where the header names {len(columns)} columns; "
                    "quote cells that contain commas"
                )
            yield reader.line_num, {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}

    return columns, records()


def need_columns(path: Path, columns: list[str], needed: tuple[str, ...]) -> None:
    """Raise `InputError` naming the first needed column that a table lacks."""
    for name in needed:
        if name not in columns:
            raise InputError(f"{path}: line 1: no column '{name}'{nearest(name, columns)}; needed: {', '.join(needed)}")


def read_rows(path: Path, *, lenient: bool = False) -> Rows:
    """Read a serving table (columns of `SERVING_COLUMNS`) strictly, or skip and count wrong rows when `lenient`.

    Raises `InputError` naming file, line and column for a missing column, an unknown unit, text in a number, a latency or rate that is
    negative or zero, a count below one, and a repeated id.
    """
    columns, records = read_table(path)
    need_columns(path, columns, SERVING_COLUMNS)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    refused: Counter[str] = Counter()
    for line, cells in records:
        try:
            row = _row(path, line, cells)
            if row.id in seen:
                raise _RefusedError(
                    f"{path}: line {line}, column 'id'",
                    "id repeated",
                    f"'{row.id}' is already the id of line {seen[row.id]}; make ids unique",
                )
        except _RefusedError as error:
            if not lenient:
                raise InputError(str(error)) from None
            refused[error.reason] += 1
            continue
        seen[row.id] = line
        rows.append(row)
    return Rows(tuple(rows), dict(refused))


def _row(path: Path, line: int, cells: dict[str, str]) -> Row:
    unit_name = cells["unit"].lower()
    if unit_name not in UNITS:
        raise _RefusedError(
            f"{path}: line {line}, column 'unit'",
            "unknown unit",
            f"unknown unit '{cells['unit']}'{nearest(unit_name, UNITS)}; known: {', '.join(UNITS)}",
        )
    unit, factor = UNITS[unit_name]
    value = number(path, line, "value", cells["value"])
    if value < 0 or (value == 0 and unit != "ratio"):
        raise _RefusedError(
            f"{path}: line {line}, column 'value'",
            "value not above zero",
            f"{cells['metric']} of {cells['value']} {cells['unit']} is not above zero; a measurement of nothing is left out of the table",
        )
    if not cells["id"]:
        raise _RefusedError(f"{path}: line {line}, column 'id'", "no id", "empty; every row needs an id of its own")
    concurrency, load = _load(path, line, cells["concurrency"])
    return Row(
        id=cells["id"],
        line=line,
        chip=cells["chip"],
        chips=_count(path, line, "chips", cells["chips"]),
        model=cells["model"],
        precision=cells["precision"],
        phase=cells["phase"],
        input_tokens=_length(path, line, "input_len", cells["input_len"]),
        output_tokens=_length(path, line, "output_len", cells["output_len"]),
        concurrency=concurrency,
        load=load,
        metric=cells["metric"],
        value=value * factor,
        unit=unit,
        software=cells["software"],
        date=cells.get("date", ""),
        source=cells.get("source_repo", ""),
        notes=cells.get("notes", ""),
    )


def number(path: Path, line: int, column: str, text: str) -> float:
    """Return a cell as a finite number; raises `InputError` naming file, line, column and text."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not value - value == 0:  # text, nan and infinities alike
        raise _RefusedError(
            f"{path}: line {line}, column '{column}'", "text in a number", f"'{text}' is not a number; write digits, no unit"
        )
    return value


def _count(path: Path, line: int, column: str, text: str) -> int | None:
    """Return a count, or None for an empty cell or 0, with which some sources say "not stated"."""
    if not text:
        return None
    value = number(path, line, column, text)
    if value < 0 or value != int(value):
        raise _RefusedError(
            f"{path}: line {line}, column '{column}'", "count not a whole number", f"'{text}' is not a whole number of {column}"
        )
    return int(value) or None


def _length(path: Path, line: int, column: str, text: str) -> float | None:
    """Return a mean length in tokens, or None where the source names none ("trace", empty)."""
    if not text or text == "trace":
        return None
    value = number(path, line, column, text)
    if not value > 0:
        raise _RefusedError(f"{path}: line {line}, column '{column}'", "length not above zero", f"'{text}' tokens is not above zero")
    return value


def _load(path: Path, line: int, text: str) -> tuple[int | None, str]:
    if not text or not text.lstrip("+-")[:1].isdigit():
        return None, text.lower()
    return _count(path, line, "concurrency", text), ""
