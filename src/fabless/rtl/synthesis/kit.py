"""Which files and cells make a process: found under PDK_ROOT or given, and what mapping needs picked from them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.errors import InputError, UnsupportedError, nearest
from fabless.rtl.synthesis.simulation import data_pin, function, inverts

if TYPE_CHECKING:
    from pathlib import Path

    from fabless.rtl.synthesis.liberty import Cell, Library


@dataclass(frozen=True, slots=True)
class Kit:
    """Describe a process that blocks are synthesised for: its library files by name, cells to avoid, clock to aim at, memory macros."""

    name: str
    title: str
    process: str
    clock_hz: float
    files: tuple[tuple[str, ...], ...]
    avoid: tuple[str, ...]
    macros: tuple[tuple[int, int, str], ...] = ()


@cache
def kits() -> dict[str, Kit]:
    """Return the known kits by name: `[kits.*]` of `data/netlists.toml`."""
    content: dict[str, Any] = tomllib.loads(files("fabless.data").joinpath("netlists.toml").read_text("utf-8"))["kits"]
    return {
        name: Kit(
            name, k["title"], k["process"], k["clock_hz"], tuple(map(tuple, k["files"])), tuple(k["avoid"]),
            tuple((words, bits, file) for words, bits, file in k.get("macros", ())),
        )
        for name, k in content.items()
    }  # fmt: skip


def kit_named(name: str) -> Kit:
    """Return a kit. Raises `InputError` naming the nearest."""
    if name not in kits():
        raise InputError(f"unknown process '{name}' for synthesis{nearest(name, kits())}; known: {', '.join(kits())}")
    return kits()[name]


def find_liberties(kit: Kit, pdk_root: Path | None) -> tuple[Path, ...]:
    """Return the library's files, plain or gzipped, anywhere below `pdk_root` (open_pdks, ciel and OpenROAD layouts alike).

    Raises `InputError` naming the files when they are not there, or no root is given.
    """
    wanted = " or ".join(" + ".join(group) for group in kit.files)
    if pdk_root is None:
        raise InputError(
            f"synthesis for {kit.name} needs {wanted}; give the files with --liberty, or set PDK_ROOT to the folder that holds them"
        )
    for group in kit.files:
        found = [_below(pdk_root, name) for name in group]
        if all(found):
            return tuple(p for p in found if p)
    raise InputError(
        f"{pdk_root}: holds no {wanted}; point PDK_ROOT at an installed PDK (ciel, open_pdks), or give the files with --liberty"
    )


def find_macros(kit: Kit, pdk_root: Path | None) -> tuple[tuple[int, int, Path], ...]:
    """Return (words, bits, file) of the memory macros that are below `pdk_root`."""
    if pdk_root is None:
        return ()
    found = ((words, bits, _below(pdk_root, name)) for words, bits, name in kit.macros)
    return tuple((words, bits, path) for words, bits, path in found if path)


def _below(root: Path, name: str) -> Path | None:
    """Return the first file of a name below a folder, by path."""
    return next((p for n in (name, f"{name}.gz") for p in sorted(root.rglob(n))), None)


@dataclass(frozen=True, slots=True)
class Picked:
    """Hold the cells that a flow builds on: flip-flop, its data and output pins, pins to tie, and the buffer that drives ports."""

    flop: Cell
    data: str
    clock: str
    output: str
    inverted: bool
    ties: tuple[tuple[str, int], ...]
    driver: Cell

    @property
    def flop_map(self) -> str:
        """Return Verilog that makes the generic flip-flop from this one."""
        ties = "".join(f", .{pin}(1'b{level})" for pin, level in self.ties)
        invert = "wire n; \\$_NOT_ invert (.A(n), .Y(Q));" if self.inverted else "wire n; assign Q = n;"
        return (
            f"module \\$_DFF_P_ (input D, input C, output Q);\n  {invert}\n"
            f"  {self.flop.name} cell_ (.{self.data}(D), .{self.clock}(C), .{self.output}(n){ties});\nendmodule\n"
        )


def pick(library: Library, avoid: tuple[str, ...]) -> Picked:
    """Return the smallest plain rising-edge flip-flop (set and clear tied off) and the second smallest buffer of a library.

    Raises `UnsupportedError` naming what the library lacks.
    """
    cells = [library.cell(name) for name in library.cell_names if not any(fnmatchcase(name, pattern) for pattern in avoid)]
    flops = [p for c in cells if (p := _plain_flop(c)) is not None]
    if not flops:
        raise UnsupportedError(f"library {library.name} lacks a rising-edge flip-flop; add the file of its sequential cells with --liberty")
    singles = [
        (c, _follows(c)) for c in cells if len(c.inputs) == 1 and len(c.outputs) == 1 and c.pins[c.outputs[0]].function and not c.flop
    ]
    buffers = sorted((c for c, follows in singles if follows), key=lambda c: (c.area_um2, c.name))
    inverters = [c for c, follows in singles if not follows]
    two = [c for c in cells if len(c.inputs) == 2 and len(c.outputs) == 1 and not c.flop]
    for what, found in (("a buffer", buffers), ("an inverter", inverters), ("gates of two inputs", two)):
        if not found:
            raise UnsupportedError(f"library {library.name} lacks {what}; add the file of its combinational cells with --liberty")
    inverter_um2 = min(c.area_um2 for c in inverters)
    flop, data, clock, output, ties = min(flops, key=lambda p: (p[0].area_um2 + inverter_um2 * inverts(p[0], p[3]), p[0].name))
    return Picked(flop, data, clock, output, inverts(flop, output), ties, buffers[min(1, len(buffers) - 1)])


def _follows(cell: Cell) -> bool:
    """Return whether a cell of one input and one output is a buffer, not an inverter."""
    return not bool(function(cell.pins[cell.outputs[0]].function, cell.inputs)([np.zeros(1, np.uint64)])[0])


def _plain_flop(cell: Cell) -> tuple[Cell, str, str, str, tuple[tuple[str, int], ...]] | None:
    """Return (cell, data, clock, output, ties) of a flip-flop that samples one pin on the rising edge of another, else None."""
    if cell.flop is None or not cell.outputs:
        return None
    try:
        data = data_pin(cell)
    except UnsupportedError:
        return None
    clock = cell.flop.clocked_on.strip("() ")
    ties = []
    for condition in (cell.flop.clear, cell.flop.preset):
        bare = condition.replace("(", "").replace(")", "").strip()
        if bare:
            low_active = bare.startswith("!") or bare.endswith("'")
            ties.append((bare.strip("!' "), int(low_active)))
    if clock not in cell.pins or set(cell.inputs) != {data, clock, *(pin for pin, _ in ties)}:
        return None
    plain = [pin for pin in cell.outputs if not inverts(cell, pin)]
    return cell, data, clock, (plain or list(cell.outputs))[0], tuple(ties)
