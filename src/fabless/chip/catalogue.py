"""Chips that exist or were announced: each a sheet of sourced cells, and the description that fabless runs.

A sheet is `data/chips/<id>.toml`: every cell has a value, a kind and a source; "unknown" stays unknown. Where the description needs a cell
that nobody published, the sheet holds a row of kind "assumption" with a range, and `Chip.assumptions` says so in words.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fabless.chip.chip import Chip, Core, Dram, Link, MatrixUnit, Mesh, Sram, TensorCore
from fabless.core.errors import InputError, SourceError, UnsupportedError, nearest
from fabless.core.sources import Source, table
from fabless.core.units import binary, si

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What a kind of source is worth, in words, best first.
GRADES = {
    "standard": "standard",
    "datasheet": "vendor document",
    "measured": "measured",
    "paper": "published paper",
    "derived": "derived from published cells",
    "press": "press",
    "estimate": "estimate",
    "assumption": "assumed by fabless",
}

#: Suffix of a cell's name -> unit of its value; the first that fits.
_UNITS = (
    ("_flop_per_s", "FLOP/s"),
    ("_bytes_per_s", "B/s"),
    ("_width_bytes", "B/cycle"),
    ("_bytes", "B"),
    ("_hz", "Hz"),
    ("_mm2", "mm2"),
    ("_w", "W"),
)

#: A published peak and the product of array and clock differ by the rounding of the printed figure; within this they are the same number.
_ROUNDING = 0.003

_FORMATS = ("fp32", "tf32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2", "fp6_e2m3", "fp4_e2m1", "int8", "int4")

#: Words of a system's name that say nothing about which chip it is.
_NOISE = re.compile(
    r"^(nvidia|geforce|amd|instinct|google|cloud|aws|amazon|microsoft|azure|meta|tenstorrent|intel|habana|openai|\d+gb?|hbm\d\w*|gddr\d\w*"
    r"|\d+w|nps\d|spx|cts|pcap|per|gpu|chip|accelerator|card|tensor|core)$"
)
_SEVERAL = re.compile(r"\(x\d+\)|\bx\d+\b.*\bx\d+\b")


@dataclass(frozen=True, slots=True)
class Cell:
    """Hold one cell of a chip's sheet; `value` is None when unknown, text for names (process, memory standard, ...)."""

    id: str
    value: float | str | None
    unit: str
    kind: str
    source: Source
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def grade(self) -> str:
        """Return what the source is worth, in words."""
        return "unknown" if self.value is None else GRADES[self.kind]

    @property
    def text(self) -> str:
        """Return the value with its unit, for people."""
        if self.value is None:
            return "unknown"
        return self.value if isinstance(self.value, str) else _written(self.value, self.unit)


@dataclass(frozen=True, slots=True)
class Sheet:
    """Hold all cells of one chip by name."""

    id: str
    name: str
    family: str
    matrix: str  # tensor_core | mesh | none
    cells: Mapping[str, Cell]
    note: str = ""

    def number(self, id: str, default: float | None = None) -> float:
        """Return a numeric cell; `default` where the sheet has none. Raises `UnsupportedError` for an unknown without default."""
        cell = self.cells.get(id)
        if cell is not None and isinstance(cell.value, float):
            return cell.value
        if default is None:
            raise UnsupportedError(
                f"{self.name}: {id} is not published, so there is no description to run; {self.note or 'give a chip file'}"
            )
        return default

    def text(self, id: str) -> str:
        """Return a text cell. Raises `UnsupportedError` when it is unknown."""
        cell = self.cells.get(id)
        if cell is None or not isinstance(cell.value, str):
            raise UnsupportedError(
                f"{self.name}: {id} is not published, so there is no description to run; {self.note or 'give a chip file'}"
            )
        return cell.value


def chip_names() -> tuple[str, ...]:
    """Return the ids of all chips that can be loaded and run, sorted."""
    return tuple(id for id in sheet_names() if sheet(id).matrix != "none")


def sheet_names() -> tuple[str, ...]:
    """Return the ids of all chips with a sheet, also of those without a description to run."""
    return tuple(sorted(_names()))


def chip_title(id: str) -> str:
    """Return the display name of a chip by its id, without reading its sheet."""
    return _names()[id][0]


def load_chip(name_or_path: str | Path) -> Chip:
    """Return a chip by catalogue name ("h100", "Google TPU v6e") or from a description file (*.toml).

    Raises `InputError` for a name that nothing matches (nearest named), `UnsupportedError` for a chip too little of which is published.
    """
    if isinstance(name_or_path, Path) or name_or_path.endswith(".toml"):
        from fabless.chip.check import read_chip

        return read_chip(Path(name_or_path))
    id = _find(name_or_path)
    if id is None:
        raise InputError(
            f"unknown chip '{name_or_path}'{nearest(name_or_path, spellings())}; see `fabless chips`, or give the path of a chip.toml"
        )
    return _chip(id)


def find_chip(name: str) -> Chip | None:
    """Return the chip that a name means, or None: nothing matches, several chips are named, or too little is published."""
    id = _find(name)
    return None if id is None or sheet(id).matrix == "none" else _chip(id)


def spellings() -> tuple[str, ...]:
    """Return every name by which the catalogue finds a chip: ids, titles and short forms."""
    return (*_names(), *(title for names in _names().values() for title in names))


def find_name(name: str) -> str | None:
    """Return the catalogue id that a name means, or None."""
    return _find(name)


def chip_facts(name: str) -> tuple[Cell, ...]:
    """Return every cell of a chip's sheet with source and grade. Raises `InputError` for an unknown name."""
    id = _find(name)
    if id is None:
        raise InputError(f"unknown chip '{name}'{nearest(name, _names())}; see `fabless chips`")
    return tuple(sheet(id).cells.values())


@cache
def sheet(id: str) -> Sheet:
    """Return the sheet of a chip by its exact id. Raises `InputError` when there is none."""
    if id not in _names():
        raise InputError(f"no chip sheet '{id}'{nearest(id, _names())}")
    text = files("fabless.data").joinpath(f"chips/{id}.toml").read_text("utf-8")
    return parse_sheet(id, tomllib.loads(text))


def parse_sheet(id: str, content: Mapping[str, Any]) -> Sheet:
    """Turn the content of a sheet's file into a `Sheet`. Raises `SourceError` naming file, cell and rule."""
    sources = {key: Source(key, s["title"], s["publisher"], s["date"], s["url"]) for key, s in content["sources"].items()}
    cells = {key: _cell(id, key, row, sources) for key, row in content["cells"].items()}
    return Sheet(id, content["name"], content["family"], content["matrix"], cells, content.get("note", ""))


def _cell(sheet_id: str, key: str, row: Mapping[str, Any], sources: Mapping[str, Source]) -> Cell:
    where = f"chips/{sheet_id}: cell '{key}'"
    if row["kind"] not in GRADES:
        raise SourceError(f"{where} has kind '{row['kind']}'; use one of {', '.join(GRADES)}")
    if row["source"] not in sources:
        raise SourceError(f"{where} names source '{row['source']}', which the file does not list")
    value, low, high = row["value"], row.get("low"), row.get("high")
    if value == "unknown":
        value = None
    elif not isinstance(value, str):
        value = float(value)
        if row["kind"] in ("press", "estimate", "assumption") and (low is None or high is None):
            raise SourceError(f"{where} is of kind '{row['kind']}' and needs low and high")
        if (low is not None and low > value) or (high is not None and high < value):
            raise SourceError(f"{where} has {value:g} outside its range {low} to {high}")
    unit = next((u for suffix, u in _UNITS if key.endswith(suffix)), "")
    return Cell(key, value, unit, row["kind"], sources[row["source"]], low, high, row.get("note", ""))


@cache
def _names() -> dict[str, tuple[str, ...]]:
    text = files("fabless.data").joinpath("chip_names.toml").read_text("utf-8")
    return {id: tuple(names) for id, names in tomllib.loads(text)["names"].items()}


def _words(name: str) -> tuple[str, ...]:
    plain = name.lower().replace("ñ", "n")
    plain = re.sub(r"\b(tpu|gaudi|trainium|inferentia|maia|mtia|lpu)[ _-]*v?(\d)", r"\1\2", plain)
    return tuple(re.findall(r"[a-z0-9]+", plain))


def _spellings(words: tuple[str, ...]) -> tuple[str, str, str]:
    """Return a name as written, without vendor words, and with only the words that tell chips apart."""
    essential = tuple(w for w in words if not _NOISE.match(w))
    without_vendor = tuple(w for w in words if w in essential or w[0].isdigit() or w[-1].isdigit())
    return "".join(words), "".join(without_vendor), "".join(essential)


@cache
def _by_spelling() -> tuple[dict[str, str], ...]:
    """Return what each spelling means, strictest first; the first chip of the index wins a loose one."""
    found: tuple[dict[str, str], ...] = ({}, {}, {})
    for id, names in _names().items():
        for name in (id, *names):
            for spelling, known in zip(_spellings(_words(name)), found, strict=True):
                known.setdefault(spelling, id)
    return found


@cache
def _find(name: str) -> str | None:
    if _SEVERAL.search(name):
        return None
    spellings, known = _spellings(_words(name)), _by_spelling()
    strict = next((k[s] for s, k in zip(spellings, known, strict=True) if s and s in k), None)
    # a name with too much said ("... 80GB HBM3") may still be an alias once its noise is gone
    return strict or known[0].get(spellings[2]) or None


@cache
def _chip(id: str) -> Chip:
    s = sheet(id)
    if s.matrix == "none":
        raise UnsupportedError(f"{s.name} has no description to run: {s.note}")
    published = s.cells.get
    tdp, area, transistors = (c.value if (c := published(key)) else None for key in ("tdp_w", "die_area_mm2", "transistors"))
    return Chip(
        name=s.name,
        family=s.family,
        process=s.text("process"),
        clock_hz=s.number("clock_hz"),
        n_cores=int(s.number("n_cores")),
        core=_core(s),
        dram=_dram(s),
        link=_link(s),
        shared=_sram(s, "shared"),
        n_dies=int(s.number("n_dies", 1)),
        vendor=s.text("vendor"),
        year=int(s.number("year")),
        tdp_w=cast("float | None", tdp),
        die_area_mm2=cast("float | None", area),
        transistors=cast("float | None", transistors),
        package=s.text("package"),
        spare_cores=int(s.number("spare_cores", 0)),
        assumptions=tuple(_sentence(c) for c in s.cells.values() if c.kind == "assumption"),
        spare_dram_sites=int(s.number("spare_stacks", 0)),
    )


def _core(s: Sheet) -> Core:
    scratchpad = _sram(s, "scratchpad")
    if scratchpad is None:
        raise UnsupportedError(f"{s.name}: scratchpad_bytes is not published, so there is no description to run")
    # vector operations are counted in cycles of the chip's clock, also where the vector units run at their own
    lanes = s.number("vector_lanes") * s.number("vector_clock_hz", s.number("clock_hz")) / s.number("clock_hz")
    accumulator = s.number("accumulator_bytes", 0.0)
    return Core(
        matrix=_matrix(s),
        vector_lanes=max(1, round(lanes)),
        scratchpad=scratchpad,
        # one binary32 sum per column and cycle
        accumulator=Sram(accumulator, int(s.number("matrix_columns", 16)), 4) if accumulator else None,
        n_matrix=int(s.number("n_matrix")),
    )


def _matrix(s: Sheet) -> MatrixUnit:
    per_unit = s.number("n_cores") * s.number("n_matrix") * s.number("clock_hz") * 2.0
    macs = {f: cell.value / per_unit for f in _FORMATS if (cell := s.cells.get(f"peak_{f}_flop_per_s")) and isinstance(cell.value, float)}
    if s.matrix == "tensor_core":
        return TensorCore(tuple((f, _whole(n)) for f, n in macs.items()))
    rows, columns = int(s.number("matrix_rows")), int(s.number("matrix_columns"))
    return Mesh(rows, columns, tuple((f, _whole(n / (rows * columns))) for f, n in macs.items()))


def _whole(macs: float) -> float:
    """Undo the rounding of a printed peak: what is within it of a power of two, or three of them, is meant as that (1024.4 is 1024)."""
    candidates = (k * 2.0 ** round(log2(macs / k)) for k in (1, 3))
    return next((c for c in candidates if abs(macs / c - 1) <= _ROUNDING), macs)


def _sram(s: Sheet, level: str) -> Sram | None:
    capacity = s.number(f"{level}_bytes", 0.0)
    if not capacity:
        return None
    return Sram(capacity, int(s.number(f"{level}_banks", 1)), int(s.number(f"{level}_width_bytes", 64)))


def _dram(s: Sheet) -> Dram:
    standard = s.text("dram_standard")
    latency_s = table("memory_standards").fact(f"{standard}_latency_s").known
    return Dram(standard, int(s.number("dram_stacks")), s.number("dram_bytes"), s.number("dram_bytes_per_s"), latency_s)


def _link(s: Sheet) -> Link:
    links = table("links")
    topology = cast('Literal["none", "ring", "switch", "mesh", "torus2d", "torus3d"]', s.text("link_topology"))
    return Link(
        topology=topology,
        ports=int(s.number("link_ports")),
        bandwidth_bytes_per_s=s.number("link_bytes_per_s"),
        latency_s=links.fact(f"{s.text('link_standard')}_latency_s").known,
        domain_chips=int(s.number("link_domain_chips")),
        network_bandwidth_bytes_per_s=s.number("network_bytes_per_s"),
        network_latency_s=links.fact("network_latency_s").known,
    )


def _sentence(cell: Cell) -> str:
    between = ""
    if cell.low is not None and cell.high is not None and cell.low < cell.high:
        between = f" (between {_written(cell.low, cell.unit)} and {_written(cell.high, cell.unit)})"
    return f"{cell.id} = {cell.text}{between}: {cell.note}"


def _written(value: float, unit: str) -> str:
    if unit == "B" and 0 < value < 2**33 and value % 1024 == 0:
        return binary(value, digits=4)
    return si(value, unit, digits=4) if unit else f"{value:.6g}"
