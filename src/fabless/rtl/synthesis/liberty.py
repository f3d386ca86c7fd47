"""Read what synthesis needs of a Liberty file: cells, pins, functions, delay, setup, leakage and internal energy tables, in SI units.

Source: Liberty User Guide, volumes 1 and 2 (Open Source Liberty, 2017.06). Composite current source data and noise are passed over.
"""

from __future__ import annotations

import gzip
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fabless.core.errors import InputError, UnsupportedError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CELL = re.compile(r"\bcell\s*\(\s*\"?([\w.\[\]$-]+)\"?\s*\)\s*\{")
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*|\\\r?\n", re.DOTALL)
_STATEMENT = re.compile(r"(\w+)\s*\(([^()]*)\)\s*(\{|;?)|(\w+)\s*:\s*(\"[^\"]*\"|[^;\n}]*)\s*;?|(\})")
_NUMBER = re.compile(r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*([a-zA-Z]*)")
_SI = {"f": 1e-15, "p": 1e-12, "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3}


@dataclass(slots=True)
class Group:
    """Hold one group of a Liberty file as written: `kind (arguments) { attributes and groups }`."""

    kind: str
    arguments: tuple[str, ...]
    attributes: dict[str, str] = field(default_factory=dict)
    lists: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)

    def of(self, kind: str) -> Iterator[Group]:
        """Yield the groups of a kind."""
        return (g for g in self.groups if g.kind == kind)


def parse(text: str) -> list[Group]:
    """Return the groups of Liberty text; what is left open at the end is closed there."""
    root = Group("", ())
    stack = [root]
    for name, arguments, opening, attribute, value, closing in _STATEMENT.findall(_COMMENT.sub(" ", text)):
        if attribute:
            stack[-1].attributes[attribute] = value.strip().strip('"')
        elif closing:
            if len(stack) > 1:
                stack.pop()
        else:
            items = tuple(re.findall(r'"([^"]*)"|([^\s,"]+)', arguments))
            parts = tuple(a or b for a, b in items)
            if opening == "{":
                group = Group(name, parts)
                stack[-1].groups.append(group)
                stack.append(group)
            else:
                stack[-1].lists.setdefault(name, []).append(parts)
    return root.groups


@dataclass(frozen=True, slots=True)
class Lookup:
    """Hold a table over one or two axes (SI units); outside its range the nearest cell is continued, as timing tools do."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]

    def __call__(self, x: float, y: float) -> float:
        """Return the bilinear interpolation."""
        i, u = _place(self.x, x)
        j, v = _place(self.y, y)
        rows, last = self.values, len(self.y) - 1
        top, bottom = rows[i], rows[min(i + 1, len(rows) - 1)]
        k = min(j + 1, last)
        return (1 - u) * ((1 - v) * top[j] + v * top[k]) + u * ((1 - v) * bottom[j] + v * bottom[k])


def _place(axis: tuple[float, ...], at: float) -> tuple[int, float]:
    if len(axis) < 2:
        return 0, 0.0
    i = min(max(bisect_right(axis, at) - 1, 0), len(axis) - 2)
    return i, (at - axis[i]) / (axis[i + 1] - axis[i])


@dataclass(frozen=True, slots=True)
class Arc:
    """Hold one timing group: tables by name (`cell_rise`, `rise_transition`, `rise_constraint`, ...) over (input slew, load)."""

    related: str
    type: str
    sense: str
    tables: dict[str, Lookup]


@dataclass(frozen=True, slots=True)
class Internal:
    """Hold one internal energy group: joules of a rise and of a fall over (input slew, load); `related` is empty for an input pin's own."""

    related: str
    rail: str
    rise: Lookup | None
    fall: Lookup | None


@dataclass(frozen=True, slots=True)
class Pin:
    """Hold one pin: direction, capacitance, function of an output, whether it is a clock, its arcs and energies."""

    name: str
    direction: str
    capacitance_f: float
    function: str
    clock: bool
    arcs: tuple[Arc, ...]
    internals: tuple[Internal, ...]


@dataclass(frozen=True, slots=True)
class Flop:
    """Hold a flip-flop's state: `state` and `inverse` names, next state, clock, and the pins that set or clear it."""

    state: str
    inverse: str
    next_state: str
    clocked_on: str
    clear: str
    preset: str


@dataclass(frozen=True, slots=True)
class Cell:
    """Hold one cell of a library."""

    name: str
    area_um2: float
    leakage_w: float
    pins: dict[str, Pin]
    flop: Flop | None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of the input pins, in file order."""
        return tuple(p.name for p in self.pins.values() if p.direction == "input")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the output pins, in file order."""
        return tuple(p.name for p in self.pins.values() if p.direction == "output")


class Library:
    """Hold one library read from one or more Liberty files of the same corner; cells are read when first asked for.

    Raises `InputError` naming the file that cannot be read or holds no cells.
    """

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.paths = paths
        self._texts: dict[str, tuple[str, _Units]] = {}
        self._cells: dict[str, Cell] = {}
        names, corners = [], []
        for path in paths:
            text = liberty_text(path)
            starts = [(m.group(1), m.start()) for m in _CELL.finditer(text)]
            if not starts:
                raise InputError(f"{path}: holds no cells; give a Liberty file (.lib or .lib.gz) of standard cells")
            head = next((g for g in parse(text[: starts[0][1]]) if g.kind == "library"), None)
            if head is None:
                raise InputError(f"{path}: does not begin with library (...); give a Liberty file (.lib or .lib.gz)")
            units = _Units.of(head)
            names.append(head.arguments[0] if head.arguments else path.stem)
            corners.append(f"{units.voltage_v:g} V {units.temperature:g} °C")
            ends = [at for _, at in starts[1:]] + [len(text)]
            for (name, start), end in zip(starts, ends, strict=True):
                self._texts[name] = (text[start:end], units)
            self.voltage_v = units.voltage_v
        self.name, self.corner = ", ".join(dict.fromkeys(names)), ", ".join(dict.fromkeys(corners))

    @property
    def cell_names(self) -> tuple[str, ...]:
        """Return the names of all cells."""
        return tuple(self._texts)

    def __contains__(self, name: str) -> bool:
        return name in self._texts

    def cell(self, name: str) -> Cell:
        """Return a cell. Raises `UnsupportedError` naming the nearest cell."""
        if name not in self._cells:
            if name not in self._texts:
                raise UnsupportedError(f"library {self.name} has no cell '{name}'{nearest(name, self._texts)}; add its file with --liberty")
            text, units = self._texts[name]
            self._cells[name] = _cell(parse(text)[0], units)
        return self._cells[name]


def liberty_text(path: Path) -> str:
    """Return the text of a .lib or .lib.gz file. Raises `InputError` when it cannot be read."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8", "replace")
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: cannot read the Liberty file ({error}); give another with --liberty") from error


@dataclass(frozen=True, slots=True)
class _Units:
    time_s: float
    capacitance_f: float
    power_w: float
    energy_j: float
    voltage_v: float
    temperature: float
    templates: dict[str, Group]

    @classmethod
    def of(cls, head: Group) -> _Units:
        a = head.attributes
        number, unit = head.lists.get("capacitive_load_unit", [("1", "pf")])[0][:2]
        capacitance = float(number) * _SI[unit.lower()[0]]
        volts = _scaled(a.get("voltage_unit", "1V"))
        return cls(
            _scaled(a.get("time_unit", "1ns")), capacitance, _scaled(a.get("leakage_power_unit", "1nW")), capacitance * volts * volts,
            float(a.get("nom_voltage", "nan")) * volts, float(a.get("nom_temperature", "nan")), {g.arguments[0]: g for g in head.groups if g.arguments},
        )  # fmt: skip


def _scaled(text: str) -> float:
    match = _NUMBER.match(text.strip())
    if match is None:
        raise InputError(f"Liberty unit '{text}' cannot be read; expected a number and a unit such as 1ns")
    prefix = match.group(2)[:-1] if len(match.group(2)) > 1 else ""
    return float(match.group(1)) * _SI[prefix]


def _cell(group: Group, units: _Units) -> Cell:
    pins = {}
    grounds = frozenset(g.arguments[0] for g in group.of("pg_pin") if g.attributes.get("pg_type", "").endswith("_ground"))
    for g in [*group.of("pin"), *(p for b in group.of("bus") for p in b.of("pin"))]:
        for name in g.arguments:
            pins[name] = _pin(name, g, units, grounds)
    ff = next(group.of("ff"), None)
    flop = None
    if ff is not None:
        a = ff.attributes
        state, inverse = (*ff.arguments, "", "")[:2]
        flop = Flop(state, inverse, a.get("next_state", ""), a.get("clocked_on", ""), a.get("clear", ""), a.get("preset", ""))
    return Cell(group.arguments[0], float(group.attributes.get("area", 0.0)), _leakage(group) * units.power_w, pins, flop)


def _leakage(group: Group) -> float:
    """Return the stated leakage of a cell, or the mean over its states, added over its supplies."""
    if "cell_leakage_power" in group.attributes:
        return float(group.attributes["cell_leakage_power"])
    rails: dict[str, list[float]] = {}
    for g in group.of("leakage_power"):
        rails.setdefault(g.attributes.get("related_pg_pin", ""), []).append(float(g.attributes["value"]))
    return sum(sum(values) / len(values) for values in rails.values())


def _pin(name: str, g: Group, units: _Units, grounds: frozenset[str]) -> Pin:
    """Read a pin. Internal energy on a ground rail is left out where supply rails have theirs: the same charge, on its way out."""
    a = g.attributes
    arcs = tuple(
        Arc(
            related,
            t.attributes.get("timing_type", "combinational"),
            t.attributes.get("timing_sense", "non_unate"),
            {x.kind: _lookup(x, units, units.time_s) for x in t.groups if x.kind in _TABLES},
        )
        for t in g.of("timing")
        for related in t.attributes.get("related_pin", "").split()
    )
    internals = []
    groups = list(g.of("internal_power"))
    supplied = [p for p in groups if p.attributes.get("related_pg_pin", "") not in grounds]
    for p in supplied or groups:
        tables = {x.kind: _lookup(x, units, units.energy_j) for x in p.groups if "values" in x.lists}
        both = tables.get("power")
        for related in p.attributes.get("related_pin", "").split() or [""]:
            rail = p.attributes.get("related_pg_pin", "")
            internals.append(Internal(related, rail, tables.get("rise_power", both), tables.get("fall_power", both)))
    return Pin(
        name, a.get("direction", "input"), float(a.get("capacitance", 0.0)) * units.capacitance_f, a.get("function", ""),
        a.get("clock") == "true", arcs, tuple(internals),
    )  # fmt: skip


_TABLES = ("cell_rise", "cell_fall", "rise_transition", "fall_transition", "rise_constraint", "fall_constraint")
#: What the first axis of every `Lookup` is: a slew. Templates may name their axes in either order.
_FIRST = ("input_net_transition", "input_transition_time", "constrained_pin_transition")


def _lookup(g: Group, units: _Units, scale: float) -> Lookup:
    template = units.templates.get(g.arguments[0]) if g.arguments else None
    named = template.attributes if template else {}
    axes, kinds = [], []
    for i in ("1", "2"):
        found = g.lists.get(f"index_{i}") or (template.lists.get(f"index_{i}") if template else None)
        numbers = [float(n) for part in found[0] for n in part.replace(",", " ").split()] if found else [0.0]
        kind = named.get(f"variable_{i}", "")
        axes.append(tuple(n * (units.capacitance_f if "capacitance" in kind else units.time_s) for n in numbers))
        kinds.append(kind)
    flat = [float(n) * scale for part in g.lists["values"][0] for n in part.replace(",", " ").split()]
    if len(flat) != len(axes[0]) * len(axes[1]):
        axes = [axes[0], (0.0,)] if len(flat) == len(axes[0]) else [(0.0,), (0.0,)]
        flat = flat[: len(axes[0])]
    rows = tuple(tuple(flat[i * len(axes[1]) : (i + 1) * len(axes[1])]) for i in range(len(axes[0])))
    if kinds[0] and kinds[0] not in _FIRST:  # (load, slew) or (clock slew, data slew): turn it round
        return Lookup(axes[1], axes[0], tuple(zip(*rows, strict=True)))
    return Lookup(axes[0], axes[1], rows)
