"""Run what was mapped for the FPGA: its cells, simulated in Verilator, decode a token of the embedded model as the machine and the cycle simulator say.

Look-up tables, carries and flip-flops are Yosys' own models. Block RAMs and multipliers are ours, from the part's data sheet and no more than mapping
uses; a block RAM gives rubbish for a word that its other port writes in the same cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
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
    """Return what a mapped tile did with the first tokens of the embedded model, as Verilog of cells: module `fl_tile`.

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
    executable = compile_verilog(mapped + cell_models(), HARNESS.read_text(), top="fl_tile", defines=defines, optimise="-O0")
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


def cell_models() -> str:
    """Return Verilog of every kind of cell that mapping uses."""
    spec = find_spec("pyosys")
    assert spec is not None
    assert spec.origin is not None
    share = Path(spec.origin).parent / "share" / "lattice"
    lines = [line for name in ("common_sim.vh", "ccu2c_sim.vh") for line in (share / name).read_text().splitlines()]
    return "\n".join(line for line in lines if not line.startswith("`include")) + _block_ram() + _multiplier()


def _bus(name: str, bits: int) -> str:
    """Return a concatenation of single-bit ports, the highest first."""
    return "{" + ", ".join(f"{name}{i}" for i in reversed(range(bits))) + "}"


def _block_ram() -> str:
    """Return DP16KD: both ports of one width of 18 or 9 bits (of 1 to 4 without initial content), no output register, writes that leave the output."""
    sides = {"A": "B", "B": "A"}
    ports = [
        f"input {', '.join([f'DI{s}{i}' for i in range(18)] + [f'AD{s}{i}' for i in range(14)])}, CE{s}, OCE{s}, CLK{s}, WE{s}, RST{s}, "
        f"CS{s}0, CS{s}1, CS{s}2, output {', '.join(f'DO{s}{i}' for i in range(18))}"
        for s in sides
    ]
    strings = ("REGMODE_A", "REGMODE_B", "RESETMODE", "ASYNC_RESET_RELEASE", "CSDECODE_A", "CSDECODE_B", "CLKAMUX", "CLKBMUX", "WRITEMODE_A",
               "WRITEMODE_B", "GSR")  # fmt: skip
    parameters = [*(f"{name} = 0" for name in strings), *(f"[319:0] INITVAL_{i:02X} = 0" for i in range(64))]
    body = []
    for s, other in sides.items():
        body.append(f"""
  wire [13:0] ad{s} = {_bus(f"AD{s}", 14)};
  wire [17:0] di{s} = {_bus(f"DI{s}", 18)};
  reg [17:0] do{s} = 0;
  assign {_bus(f"DO{s}", 18)} = do{s};
  wire [13:0] at{s} = ad{s} >> SHIFT;
  wire write{s} = CE{s} & WE{s};
  wire [17:0] enable{s} = W == 18 ? {{{{9{{ad{s}[1]}}}}, {{9{{ad{s}[0]}}}}}} : 18'h3ffff;
  always @(posedge CLK{s}) begin
    if (write{s}) for (i = 0; i < W; i = i + 1) if (enable{s}[i]) mem[at{s}][i] <= di{s}[i];
    if (RST{s} & CE{s}) do{s} <= 0;
    else if (CE{s} & ~WE{s}) do{s} <= write{other} & (at{other} == at{s}) ? ~{{18'd0, mem[at{s}]}} : {{18'd0, mem[at{s}]}};
  end""")
    initial = "".join(
        f"    for (i = 0; i < 16; i = i + 1) begin if (W == 18) mem[{16 * n} + i] = INITVAL_{n:02X}[20 * i +: 18];\n"
        f"      if (W == 9) begin mem[{32 * n} + 2 * i] = INITVAL_{n:02X}[20 * i +: 9]; mem[{32 * n} + 2 * i + 1] = INITVAL_{n:02X}[20 * i + 9 +: 9]; end end\n"
        for n in range(64)
    )
    return f"""
module DP16KD #(parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18, parameter {", parameter ".join(parameters)}) (
  {", ".join(ports)});
  localparam W = DATA_WIDTH_A;
  localparam SHIFT = W == 18 ? 4 : W == 9 ? 3 : W == 4 ? 2 : W == 2 ? 1 : 0;
  localparam DEPTH = 16384 >> SHIFT;
  reg [W-1:0] mem [0:DEPTH-1];
  integer i;
  initial begin
    if (DATA_WIDTH_B != W || (W < 9 && INITVAL_00 != 0)) $fatal(1, "a block RAM is used as no model says");
    for (i = 0; i < DEPTH; i = i + 1) mem[i] = 0;
{initial}  end
{"".join(body)}
endmodule
"""


def _multiplier() -> str:
    """Return MULT18X18D without registers."""
    signed = [f"$signed({{SIGNED{s} & {s}17, {_bus(s, 18)}}})" for s in "AB"]
    inputs = [f"{s}{i}" for s in "ABC" for i in range(18)]
    return f"""
module MULT18X18D (input {", ".join(inputs)}, SIGNEDA, SIGNEDB, SOURCEA, SOURCEB, output {", ".join(f"P{i}" for i in range(36))});
  wire signed [37:0] product = {" * ".join(signed)};
  assign {_bus("P", 36)} = product[35:0];
endmodule
"""
