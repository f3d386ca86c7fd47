"""Synthesise one block for one library: map it, time it, and hold what came out."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fabless.core.digest import digest
from fabless.core.errors import MissingToolError
from fabless.core.sources import table
from fabless.number.dot import BLOCK
from fabless.rtl.synthesis.hierarchy import Memory
from fabless.rtl.synthesis.kit import pick
from fabless.rtl.synthesis.liberty import Library, liberty_text
from fabless.rtl.synthesis.netlist import read_netlist
from fabless.rtl.synthesis.placement import placed, wires_of
from fabless.rtl.synthesis.sizing import resized
from fabless.rtl.synthesis.timing import static_timing
from fabless.rtl.synthesis.yosys import RECIPES, mapping_script, run_yosys, yosys_version

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from fabless.program.tile import Tile
    from fabless.rtl.synthesis.blocks import Subject
    from fabless.rtl.synthesis.cache import Cache
    from fabless.rtl.synthesis.hierarchy import Hierarchy
    from fabless.rtl.synthesis.kit import Kit, Picked
    from fabless.rtl.synthesis.liberty import Cell
    from fabless.rtl.synthesis.netlist import Netlist
    from fabless.rtl.synthesis.placement import Placement
    from fabless.rtl.synthesis.timing import Model, Timing

#: Bits of a weight block's scale as stored: sign, exponent and the upper 10 fraction bits.
WEIGHT_SCALE_BITS = 19
#: A port's load in flip-flop inputs, as given to ABC.
_PORT_LOADS = 2
#: Share of the clock period that ABC is given for gates: the rest is clock to output and setup.
_GATES_RATIO = 0.8
#: Seconds for one recipe: blocks of up to some ten thousand gates take under half a minute.
TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Synthesis:
    """Hold a mapped block: netlist, timing, the recipe that was kept, and, where it was placed, where its cells stand."""

    block: str
    kit: str
    recipe: str
    netlist: Netlist
    timing: Timing
    flop: Cell
    placed: Placement | None = None

    @property
    def area_um2(self) -> float:
        """Return the cell area without memories."""
        return self.netlist.area_um2


def synthesise(
    block: str | Subject, kit: Kit, library: Library, *, models: Mapping[str, Model] | None = None, kept: Cache | None = None,
    place: bool = False,
) -> Synthesis:  # fmt: skip
    """Return a block mapped to a library: of the recipes, in order, the first that meets the kit's clock, else the fastest.

    `models`: the ports of children by module, for timing; `kept`: where mapped netlists are kept by the digest of what they are made from.
    `place`: place its cells, make gates stronger where wires slow them, place them again, and time it with its wires.
    Raises `MissingToolError` without Amaranth or Yosys, `UnsupportedError` for a library without the needed cells, `InputError` for an unknown block.
    """
    what = subject(block) if isinstance(block, str) else block
    picked = pick(library, kit.avoid)
    best: Synthesis | None = None
    for recipe in what.recipes:
        text = _mapped(what, kit, library, picked, recipe, kept)
        netlist = read_netlist(text, what.module, library, what.drives)
        found = Synthesis(what.name, kit.name, recipe, netlist, static_timing(netlist, picked.flop, models), picked.flop)
        if best is None or found.timing.period_s < best.timing.period_s:
            best = found
        if best.timing.fmax_hz >= kit.clock_hz:
            break
    assert best is not None
    return _placed(best, kit, models or {}) if place else best


def _placed(s: Synthesis, kit: Kit, models: Mapping[str, Model]) -> Synthesis:
    wires = wires_of(kit.name)
    netlist = resized(s.netlist, s.flop, placed(s.netlist, wires), avoid=kit.avoid, models=models, target_s=1 / kit.clock_hz)
    final = placed(netlist, wires)
    return replace(s, netlist=netlist, timing=static_timing(netlist, s.flop, models, final), placed=final)


def _blocks() -> ModuleType:
    """Return the module of blocks. Raises `MissingToolError` without Amaranth."""
    try:
        from fabless.rtl.synthesis import blocks
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "amaranth":
            raise
        raise MissingToolError("synthesis needs Amaranth; install it with: pip install 'fabless[rtl]'") from error
    return blocks


def subject(block: str) -> Subject:
    """Return a block alone. Raises `InputError` for an unknown one, `MissingToolError` without Amaranth."""
    return _blocks().subject_named(block)  # type: ignore[no-any-return]


def hierarchy(tile: Tile) -> Hierarchy:
    """Return the modules of a tile. Raises `MissingToolError` without Amaranth, `UnsupportedError` for a tile that cannot be built."""
    return _blocks().tile_hierarchy(tile)  # type: ignore[no-any-return]


def subjects(modules: Hierarchy, tile: Tile) -> dict[str, Subject]:
    """Return the blocks that together are a tile, by name, children before what places them."""
    return _blocks().tile_subjects(modules, tile)  # type: ignore[no-any-return]


def _mapped(what: Subject, kit: Kit, library: Library, picked: Picked, recipe: str, kept: Cache | None) -> str:
    """Return the netlist that Yosys writes, from the cache where it is there."""
    load_ff = picked.flop.pins[picked.data].capacitance_f * _PORT_LOADS * 1e15
    period_ps = _GATES_RATIO / kit.clock_hz * 1e12
    liberties = [f"library{i}.lib" for i in range(len(library.paths))]
    files = {f"m{i}.il": text for i, text in enumerate(what.sources.values())}
    files |= {
        "flop.v": picked.flop_map,
        "ports.constr": f"set_driving_cell {picked.driver.name}\nset_load {load_ff:.4f}\n",
        "recipe.abc": RECIPES[recipe].replace("{D}", f"-D {period_ps:.0f}").replace("; ", "\n") + "\n",
    }
    script = mapping_script(
        top=what.module, sources=[n for n in files if n.endswith(".il")], liberties=liberties, avoid=list(kit.avoid), flop_map="flop.v",
        recipe="recipe", period_ps=period_ps,
    )  # fmt: skip
    texts = {name: liberty_text(path) for name, path in zip(liberties, library.paths, strict=True)}
    key = f"netlist-{digest((script, files, texts, yosys_version()))}"
    if kept is not None and (found := kept.get(key)) is not None:
        return found
    with tempfile.TemporaryDirectory(prefix="fabless-synthesis-") as name:
        directory = Path(name)
        for file, text in (files | texts).items():
            (directory / file).write_text(text)
        run_yosys(script, directory, TIMEOUT_S)
        netlist = (directory / "netlist.json").read_text()
    if kept is not None:
        kept.put(key, netlist)
    return netlist


def row_memories(tile: Tile) -> tuple[Memory, ...]:
    """Return the memories of one row of a tile: weights, their scales, accumulators (read by the row and by the vector unit)."""
    return (
        Memory("weights", 8 * BLOCK, tile.weight_words, 1),
        Memory("weight_scales", WEIGHT_SCALE_BITS, tile.weight_words, 1),
        Memory("accumulators", 32, tile.accumulator_words, 2),
    )


def memory_um2(memory: Memory, kit: Kit, macros: tuple[tuple[int, int, Path], ...]) -> tuple[float | None, str]:
    """Return the area of a memory and how it was found: the macros that hold it most closely, else bit cells over `sram_efficiency`.

    None where there are neither macros nor a bit-cell row. One copy for each read port: macros have a single port.
    """
    choices = []
    for words, bits, path in macros:
        head = Library((path,))
        um2 = head.cell(head.cell_names[0]).area_um2
        n = -(-memory.width // bits) * -(-memory.depth // words) * memory.reads
        choices.append((n * um2, f"{n} macros {words}x{bits}"))
    if choices:
        return min(choices)
    facts = table("process").facts
    row = facts.get(f"{kit.process}_bitcell")
    if row is None:
        return None, "no macro and no bit-cell row"
    efficiency = table("process_blocks").fact("sram_efficiency").known
    return memory.bits * row.known / efficiency, "bit cells / sram_efficiency"
