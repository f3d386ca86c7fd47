"""Run what was mapped for the FPGA: its cells, simulated in Verilator, decode a token of the embedded model as the machine and the cycle simulator say.

What the cells do is stated in `rtl.fpga_cells`; a block RAM gives rubbish for a word that its other port writes in the same cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.core.errors import FablessError

if TYPE_CHECKING:
    from fabless.program.tile import Tile


@dataclass(frozen=True, slots=True)
class Run:
    """Hold the launches of a check: cycles of each, equal to the simulator's, and the tokens written, equal to the machine's; seconds of simulation."""

    cycles: tuple[int, ...]
    tokens: tuple[int, ...]
    seconds: float


def run_mapped(mapped: str, tile: Tile, *, n_tokens: int = 1) -> Run:
    """Return what a mapped tile, as plain Verilog of its cells (module `fl_tile`), did with the first tokens of the embedded model.

    After every launch its memory is compared with the machine's, byte for byte, and its cycles with the simulator's: raises `FablessError` where they differ.
    """
    from fabless.fleet.on_rtl import open_rtl_session
    from fabless.fleet.session import open_session
    from fabless.model.tokenizer import open_tokenizer
    from fabless.model.weights import open_weights
    from fabless.rtl.bench.build import HARNESS, compile_verilog, require_tools
    from fabless.rtl.bench.run import Simulation

    require_tools()
    weights = open_weights("tinyshakes")
    ids = open_tokenizer(weights).encode("ROMEO:\n")[:1]
    defines: dict[str, int | str] = {"FL_WIDTH": tile.memory_bytes_per_cycle, "FL_LINK": tile.link_port_bytes}
    executable = compile_verilog(mapped, HARNESS.read_text(), top="fl_tile", defines=defines, optimise="-O0")
    with open_rtl_session(weights, tile, check=True, context_tokens=32) as session:
        shape = session.compiled.shapes[0]
        memory_bytes = session.compiled.layouts[0].memory_bytes
        session.simulation = Simulation(session.compiled.programs[shape], (memory_bytes,), executable=executable)
        session.simulation.memories[0][:] = session.memories[0]
        tokens = tuple(session.generate(ids, n_tokens))
        cycles, seconds = tuple(session.cycles), session.simulation.seconds
    wanted = tuple(open_session(weights, tile, context_tokens=32).generate(ids, n_tokens))
    if tokens != wanted:
        raise FablessError(f"the mapped cells write {tokens}, the machine {wanted}: report it with the Yosys version")
    return Run(cycles, tokens, seconds)
