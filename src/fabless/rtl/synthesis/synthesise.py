"""Synthesise one block for one library: map it, time it, and hold what came out."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fabless.core.errors import MissingToolError
from fabless.core.sources import table
from fabless.number.dot import BLOCK
from fabless.rtl.synthesis.kit import pick
from fabless.rtl.synthesis.liberty import Library, liberty_text
from fabless.rtl.synthesis.netlist import read_netlist
from fabless.rtl.synthesis.timing import static_timing
from fabless.rtl.synthesis.yosys import RECIPES, mapping_script, run_yosys

if TYPE_CHECKING:
    from types import ModuleType

    from fabless.program.tile import Tile
    from fabless.rtl.synthesis.blocks import Subject
    from fabless.rtl.synthesis.kit import Kit, Picked
    from fabless.rtl.synthesis.netlist import Netlist
    from fabless.rtl.synthesis.timing import Timing

#: Bits of a weight block's scale as stored: sign, exponent and the upper 10 fraction bits.
WEIGHT_SCALE_BITS = 19
#: A port's load in flip-flop inputs, as given to ABC.
_PORT_LOADS = 2
#: Share of the clock period that ABC is given for gates: the rest is clock to output and setup.
_GATES_RATIO = 0.8
#: Seconds for one recipe: blocks of up to some ten thousand gates take under half a minute.
TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Hold one memory of a block as it stands in the netlist: width, depth and read ports."""

    name: str
    width: int
    depth: int
    reads: int

    @property
    def bits(self) -> int:
        """Return the bits of all copies: one for each read port."""
        return self.width * self.depth * self.reads


@dataclass(frozen=True, slots=True)
class Synthesis:
    """Hold a mapped block: netlist, timing, the recipe that was kept, memories that are not part of its area."""

    block: str
    kit: str
    recipe: str
    netlist: Netlist
    timing: Timing
    memories: tuple[Memory, ...]

    @property
    def area_um2(self) -> float:
        """Return the cell area without memories."""
        return self.netlist.area_um2


def synthesise(block: str, kit: Kit, library: Library, *, recipes: tuple[str, ...] = tuple(RECIPES)) -> Synthesis:
    """Return a block mapped to a library: of the recipes, in order, the first that meets the kit's clock, else the fastest.

    Raises `MissingToolError` without Amaranth or Yosys, `UnsupportedError` for a library without the needed cells, `InputError` for an unknown block.
    """
    sources = _sources(block)
    top = next(iter(sources))
    picked = pick(library, kit.avoid)
    best: Synthesis | None = None
    for recipe in recipes:
        text = _mapped(sources, top, kit, library, picked, recipe)
        netlist = read_netlist(text, top, library)
        found = Synthesis(block, kit.name, recipe, netlist, static_timing(netlist, picked.flop), _memories(text, top))
        if best is None or found.timing.period_s < best.timing.period_s:
            best = found
        if best.timing.fmax_hz >= kit.clock_hz:
            break
    assert best is not None
    return best


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
    """Return what a block is. Raises `InputError` for an unknown one, `MissingToolError` without Amaranth."""
    return _blocks().subject_named(block)  # type: ignore[no-any-return]


def _sources(block: str) -> dict[str, str]:
    return _blocks().block_rtlil(subject(block).kind)  # type: ignore[no-any-return]


def _mapped(sources: dict[str, str], top: str, kit: Kit, library: Library, picked: Picked, recipe: str) -> str:
    """Return the netlist that Yosys writes."""
    load_ff = picked.flop.pins[picked.data].capacitance_f * _PORT_LOADS * 1e15
    with tempfile.TemporaryDirectory(prefix="fabless-synthesis-") as name:
        directory = Path(name)
        for module, text in sources.items():
            (directory / f"{module}.il").write_text(text)
        liberties = [f"library{i}.lib" for i in range(len(library.paths))]
        for file, path in zip(liberties, library.paths, strict=True):
            (directory / file).write_text(liberty_text(path))
        (directory / "flop.v").write_text(picked.flop_map)
        (directory / "ports.constr").write_text(f"set_driving_cell {picked.driver.name}\nset_load {load_ff:.4f}\n")
        period_ps = _GATES_RATIO / kit.clock_hz * 1e12
        (directory / f"{recipe}.abc").write_text(RECIPES[recipe].replace("{D}", f"-D {period_ps:.0f}").replace("; ", "\n") + "\n")
        script = mapping_script(
            top=top, sources=[f"{m}.il" for m in sources], liberties=liberties, avoid=list(kit.avoid), flop_map="flop.v", recipe=recipe, period_ps=period_ps,
        )  # fmt: skip
        run_yosys(script, directory, TIMEOUT_S)
        return (directory / "netlist.json").read_text()


def _memories(text: str, top: str) -> tuple[Memory, ...]:
    found = []
    for name, cell in json.loads(text)["modules"][top]["cells"].items():
        if "DEPTH" in cell.get("parameters", {}):
            p = {k: int(v, 2) if isinstance(v, str) else int(v) for k, v in cell["parameters"].items()}
            reads = sum(port.startswith("rd") for port in cell["connections"])
            found.append(Memory(name, p["WIDTH"], p["DEPTH"], reads))
    return tuple(found)


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
