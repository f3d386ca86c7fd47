"""One table for a process: every block of a tile once, what a row and the tile come to, the memories, and what was measured how."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fabless.core.digest import digest
from fabless.core.errors import FablessError, InputError, MissingToolError, nearest
from fabless.rtl.synthesis.activity import COUNTED, counted_ports, launch_energy, recorded_ports
from fabless.rtl.synthesis.hierarchy import Hierarchy, Memory
from fabless.rtl.synthesis.kit import find_liberties, find_macros, kit_named
from fabless.rtl.synthesis.liberty import Library, liberty_text
from fabless.rtl.synthesis.measure import activity_energy
from fabless.rtl.synthesis.operands import SOURCE
from fabless.rtl.synthesis.placement import check_placer
from fabless.rtl.synthesis.recording import Recording, Stimulus, record
from fabless.rtl.synthesis.synthesise import Synthesis, hierarchy, memory_um2, subject, subjects, synthesise
from fabless.rtl.synthesis.timing import Model, port_model
from fabless.rtl.synthesis.yosys import yosys_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fabless.program.tile import Tile
    from fabless.rtl.synthesis.blocks import Subject
    from fabless.rtl.synthesis.cache import Cache
    from fabless.rtl.synthesis.kit import Kit

STAGE, PLACED = "pre-layout", "placed"
LIMITS = "wires, clock tree, scan and tie cells: the netlist is not placed; access time and energy of memories"
PLACED_LIMITS = (
    "routing (wires are trees over their pins' boxes), wires between blocks, clock tree, buffers, scan and tie cells; "
    "access time and energy of memories"
)
#: Parts of a row; their operands are recorded without a simulator.
_ROW = ("dot", "accumulate")


@dataclass(frozen=True, slots=True)
class PathStep:
    """Hold one step of a critical path: cell (empty: a port), net that it drives, when it arrives."""

    cell: str
    net: str
    arrival_s: float


@dataclass(frozen=True, slots=True)
class BlockFigures:
    """Hold the figures of one block: area of one, clock, joules of an operation with (`operation_j`) and without glitches, without leakage.

    `idle_j`: what its clock pins take in a cycle without an operation. `busy_ratio`: operations over what all cycles had room for.
    `core_um2`: area of the rows that its cells stand in, where it is placed.
    """

    name: str
    title: str
    kind: str
    count: int
    operation: str
    per_cycle: int
    area_um2: float
    fmax_hz: float
    setup_s: float
    operation_j: float | None
    settled_j: float | None
    idle_j: float | None
    leakage_w: float
    n_flops: int
    n_gates: int
    n_results: int
    n_operations: int | None
    busy_ratio: float | None
    glitch_ratio: float | None
    toggles_per_net: float | None
    activity: str
    recipe: str
    path: tuple[PathStep, ...]
    path_end: str
    core_um2: float | None = None

    @property
    def all_um2(self) -> float:
        """Return the area of all that a tile has."""
        return self.count * self.area_um2


@dataclass(frozen=True, slots=True)
class RowFigures:
    """Hold what a row of 32 lanes comes to: dot product and block accumulator; `mac_j` includes leakage at the kit's clock."""

    um2_per_mac: float
    dot_um2_per_mac: float
    accumulator_um2_per_mac: float
    fmax_hz: float
    mac_j: float

    @property
    def accumulator_ratio(self) -> float:
        """Return the accumulator's area over that of the dot product."""
        return self.accumulator_um2_per_mac / self.dot_um2_per_mac


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """Hold one kind of memory of a tile: its shape, how many, area of one (None: unknown) and how that was found."""

    name: str
    count: int
    width: int
    depth: int
    reads: int
    area_um2: float | None
    basis: str

    @property
    def all_um2(self) -> float | None:
        """Return the area of all that a tile has, if known."""
        return None if self.area_um2 is None else self.count * self.area_um2


@dataclass(frozen=True, slots=True)
class TileFigures:
    """Hold what a tile comes to: logic and memory (None: unknown), its clock and the block that sets it."""

    logic_um2: float
    memory_um2: float | None
    fmax_hz: float
    slowest: str
    leakage_w: float


@dataclass(frozen=True, slots=True)
class Report:
    """Hold all figures for one process with library, corner, tools, and what they leave out."""

    process: str
    title: str
    clock_hz: float
    rows: int
    vector_lanes: int
    library: str
    corner: str
    stage: str
    tools: tuple[str, ...]
    blocks: tuple[BlockFigures, ...]
    row: RowFigures | None
    tile: TileFigures | None
    memories: tuple[MemoryFigures, ...]
    activity_source: str
    limits: str


@dataclass(frozen=True)
class _Work:
    """Hold what the steps of a report share."""

    kit: Kit
    library: Library
    subjects: Mapping[str, Subject]
    modules: Hierarchy
    models: dict[str, Model]
    kept: Cache | None
    say: Callable[[str], None]
    place: bool


def report(
    process: str, *, tile: Tile, liberties: tuple[Path, ...], pdk_root: Path | None, blocks: tuple[str, ...] = (),
    stimulus: tuple[str, Callable[[], Stimulus]] | None = None, kept: Cache | None = None, say: Callable[[str], None] = lambda text: None,
    place: bool = False,
) -> Report:  # fmt: skip
    """Synthesise the blocks of a tile, or some of them, for a process and return their figures; `liberties` stand in for those below `pdk_root`.

    `stimulus`: the launch that blocks are measured on, by name and made when first asked for; without it only rows have energies. `kept`: finished blocks
    by the digest of what they are made of. `place`: place each block's cells, and count its wires. Raises `InputError` for an unknown process, block or
    file, `UnsupportedError` for a library that lacks cells or a tile that cannot be built, `MissingToolError` for tools.
    """
    kit = kit_named(process)
    library = Library(liberties or find_liberties(kit, pdk_root))
    yosys_version()  # refuses before minutes of work
    if place:
        check_placer()
    if set(blocks) and set(blocks) <= {*_ROW, "row"}:
        modules, found = Hierarchy("", {}), {name: subject(name) for name in blocks}
    else:
        say("elaborating the tile")
        modules = hierarchy(tile)
        found = subjects(modules, tile)
    for name in blocks:
        if name not in found:
            raise InputError(f"unknown block '{name}'{nearest(name, found)}; known: {', '.join(found)}")
    wanted = blocks or tuple(found)
    work = _Work(kit, library, found, modules, {}, kept, say, place)
    figures = _all_figures(work, wanted, stimulus, tile)
    memories = _memories(work, tile, pdk_root) if modules.modules else ()
    whole = _tile(figures, memories) if modules.modules and set(wanted) == set(found) else None
    tools = (yosys_version(), f"amaranth {version('amaranth')}", "static timing and power by fabless")
    return Report(
        kit.name, kit.title, kit.clock_hz, tile.rows, tile.vector_lanes, library.name, library.corner, PLACED if place else STAGE, tools, figures,
        _row(figures, kit), whole, memories, SOURCE, PLACED_LIMITS if place else LIMITS,
    )  # fmt: skip


def _all_figures(
    work: _Work, wanted: tuple[str, ...], stimulus: tuple[str, Callable[[], Stimulus]] | None, tile: Tile
) -> tuple[BlockFigures, ...]:
    """Return the figures of blocks: kept ones as they are, the others mapped, then recorded together, then measured."""
    source = "" if stimulus is None else stimulus[0]
    keys = {name: f"block-{digest((_basis(work, name), source if name not in _ROW else '', tile))}" for name in wanted}
    done: dict[str, BlockFigures] = {}
    mapped: dict[str, Synthesis] = {}
    for n, name in enumerate(wanted):
        text = work.kept.get(keys[name]) if work.kept else None
        if text is not None:
            done[name], model = _from_text(text)
            if model is not None:
                work.models[work.subjects[name].module] = model
            continue
        work.say(f"{'mapping and placing' if work.place else 'mapping'} {name} ({n + 1} of {len(wanted)})")
        what = work.subjects[name]
        mapped[name] = s = synthesise(what, work.kit, work.library, models=work.models, kept=work.kept, place=work.place)
        if name not in _ROW:
            work.models[what.module] = port_model(s.netlist, s.flop, work.models, s.placed)
    recording = None
    if stimulus is not None and set(mapped) - {*_ROW, "row"}:
        work.say("recording the blocks' operands: the tile runs in Verilator")
        recording = _recorded(work, mapped, stimulus[1])
    for name, s in mapped.items():
        work.say(f"measuring {name}")
        what = work.subjects[name]
        done[name] = replace(_figures(what, s, recording), core_um2=s.placed.area_um2 if s.placed else None)
        if work.kept:
            work.kept.put(keys[name], _to_text(done[name], work.models.get(what.module)))
    return tuple(done[name] for name in wanted)


def _recorded(work: _Work, mapped: Mapping[str, Synthesis], launch: Callable[[], Stimulus]) -> Recording | None:
    """Return the recording of the mapped blocks, or None without a Verilog simulator."""
    ports = {name: recorded_ports(work.subjects[name], s.netlist) for name, s in mapped.items() if name not in {*_ROW, "row"}}
    widths = {}
    for path in COUNTED:
        place, _, port = path.rpartition(".")
        module = next((m for m, places in work.modules.paths(whole=frozenset({"fl_row", "fl_lane"})).items() if place in places), None)
        if module is not None:
            hardware = work.modules.modules[module]
            width = {**hardware.inputs, **hardware.outputs}.get(port)
            if width is not None:
                widths[path] = width
    try:
        return record(launch(), ports | counted_ports(widths))
    except MissingToolError as error:
        work.say(str(error))
        return None


def _basis(work: _Work, name: str) -> tuple[object, ...]:
    """Return all that a block's figures follow from, besides its stimulus."""
    what = work.subjects[name]
    below = work.modules.closure(what.module) if what.children else {}
    return what, below, _library_digest(work.library.paths), work.kit, yosys_version(), _source_digest(), work.place


@cache
def _library_digest(paths: tuple[Path, ...]) -> str:
    return digest([liberty_text(p) for p in paths])


@cache
def _source_digest() -> str:
    """Return the digest of this package: kept figures do not outlive the code that made them."""
    return digest([p.read_text("utf-8") for p in sorted(Path(__file__).parent.glob("*.py"))])


def _to_text(figures: BlockFigures, model: Model | None) -> str:
    return json.dumps({"figures": asdict(figures), "model": None if model is None else asdict(model)})


def _from_text(text: str) -> tuple[BlockFigures, Model | None]:
    content = json.loads(text)
    f = content["figures"]
    f["path"] = tuple(PathStep(**step) for step in f["path"])
    m = content["model"]
    model = None if m is None else Model(m["arrives_s"], m["needs_s"], tuple((a, b, s) for a, b, s in m["through_s"]))
    return BlockFigures(**f), model


def _figures(what: Subject, s: Synthesis, recording: Recording | None) -> BlockFigures:
    path = tuple(PathStep(step.cell, step.net, step.arrival_s) for step in s.timing.path)
    fixed = (
        what.name, what.title, what.kind, max(1, len(what.places)), what.operation, what.per_cycle, s.area_um2, s.timing.fmax_hz, s.timing.setup_s,
    )  # fmt: skip
    last = (s.recipe, path, s.timing.end)
    size = (s.netlist.leakage_w, len(s.netlist.flops), len(s.netlist.gates))
    if (row := activity_energy(s)) is not None:
        dynamic, settled = row.cycle.dynamic_j / what.per_cycle, row.settled.dynamic_j / what.per_cycle
        return BlockFigures(
            *fixed,
            dynamic,
            settled,
            row.cycle.clock_j,
            *size,
            row.n_results,
            None,
            None,
            row.glitch_ratio,
            row.toggles_per_net,
            row.source,
            *last,
        )
    if recording is None:
        return BlockFigures(*fixed, None, None, None, *size, 0, None, None, None, None, "not measured", *last)
    try:
        e = launch_energy(s, what, recording)
    except FablessError as error:  # area and clock stand; that the energy does not is said where its source would be
        return BlockFigures(*fixed, None, None, None, *size, 0, None, None, None, None, f"NOT MEASURED: {error}", *last)
    return BlockFigures(
        *fixed, e.operation_j, e.settled_j, e.clock_j, *size, e.n_results, e.n_operations, e.busy_ratio, e.glitch_ratio, e.toggles_per_net,
        recording.source, *last,
    )  # fmt: skip


def _row(figures: tuple[BlockFigures, ...], kit: Kit) -> RowFigures | None:
    """Return a row from its two parts, or None unless both were synthesised."""
    by_name = {f.name: f for f in figures}
    if not {"dot", "accumulate"} <= by_name.keys():
        return None
    parts = [by_name["dot"], by_name["accumulate"]]
    dot, accumulator = (p.area_um2 / p.per_cycle for p in parts)
    joules = sum((p.operation_j or 0.0) + p.leakage_w / kit.clock_hz / p.per_cycle for p in parts)
    return RowFigures(dot + accumulator, dot, accumulator, min(p.fmax_hz for p in parts), joules)


def _memories(work: _Work, tile: Tile, pdk_root: Path | None) -> tuple[MemoryFigures, ...]:
    """Return the memories of a tile, those of one shape and name together."""
    macros = find_macros(work.kit, pdk_root)
    places = work.modules.paths(whole=frozenset({"fl_lane"}))
    counts: dict[tuple[str, int, int, int], int] = {}
    for module, where in places.items():
        for m in work.modules.modules[module].memories:
            key = (m.name.rstrip("0123456789"), m.width, m.depth, m.reads)
            counts[key] = counts.get(key, 0) + len(where)
    return tuple(
        MemoryFigures(name, n, width, depth, reads, *memory_um2(Memory(name, width, depth, reads), work.kit, macros))
        for (name, width, depth, reads), n in sorted(counts.items(), key=lambda c: -c[1] * c[0][1] * c[0][2])
    )


def _tile(figures: tuple[BlockFigures, ...], memories: tuple[MemoryFigures, ...]) -> TileFigures:
    slowest = min(figures, key=lambda f: f.fmax_hz)
    areas = [m.all_um2 for m in memories]
    known = [a for a in areas if a is not None]
    return TileFigures(
        sum(f.all_um2 for f in figures), sum(known) if len(known) == len(areas) else None, slowest.fmax_hz, slowest.name,
        sum(f.count * f.leakage_w for f in figures),
    )  # fmt: skip
