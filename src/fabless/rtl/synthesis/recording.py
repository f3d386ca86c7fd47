"""What every block of a tile meets while a real program runs: its ports in each cycle, written down by Verilator beside the RTL."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import FablessError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fabless.program.program import Program

#: Cycles of reset before the recorded ones: more than any pipeline of a block is long.
RESET_CYCLES = 32


@dataclass(frozen=True, slots=True)
class Stimulus:
    """Hold one launch: the program, memory before it, parameter words, and what it is in words."""

    program: Program
    memory: NDArray[np.uint8]
    parameters: NDArray[np.int32]
    source: str


@dataclass(frozen=True, slots=True)
class Ports:
    """Hold the ports of one block over all cycles of a launch: bits `[cycles, bytes]`, lowest first, and (first bit, bits) of each port."""

    packed: NDArray[np.uint8]
    places: dict[str, tuple[int, int]]

    def bits(self, port: str) -> NDArray[np.uint8]:
        """Return one port's bits, `[cycles, width]`."""
        first, width = self.places[port]
        part = np.unpackbits(self.packed[:, first // 8 : -(-(first + width) // 8)], axis=1, bitorder="little")
        return part[:, first % 8 : first % 8 + width]

    def is_set(self, port: str) -> NDArray[np.bool_]:
        """Return whether any bit of a port is set, by cycle; no cycle for a port that is not there."""
        if port not in self.places:
            return np.zeros(len(self.packed), bool)
        high: NDArray[np.bool_] = self.bits(port).max(axis=1).astype(bool)
        return high


@dataclass(frozen=True, slots=True)
class Recording:
    """Hold the ports of blocks by name, over the same cycles."""

    blocks: dict[str, Ports]
    n_cycles: int
    source: str


def record(stimulus: Stimulus, wanted: Mapping[str, Sequence[tuple[str, int]]]) -> Recording:
    """Run a launch in Verilator and return the ports of blocks; `wanted`: (path of a port below the top, bits) by block, the path being its name.

    Raises `MissingToolError` without the tools.
    """
    from fabless.rtl.bench.build import HARNESS, compile_verilog, require_tools
    from fabless.rtl.bench.run import Simulation
    from fabless.rtl.emit import tile_verilog

    require_tools()
    tile = stimulus.program.tile
    text = _instrumented(tile_verilog(tile), wanted)
    defines = {"FL_WIDTH": tile.memory_bytes_per_cycle, "FL_LINK": tile.link_port_bytes}
    # compiling costs more than some ten thousand cycles
    program = compile_verilog(text, HARNESS.read_text(), top="fl_tile", defines=defines, optimise="-O0")
    with tempfile.TemporaryDirectory(prefix="fabless-recording-") as name:
        with Simulation((stimulus.program,), (len(stimulus.memory),), executable=program, arguments=(f"+record={name}",)) as simulation:
            simulation.memories[0][:] = stimulus.memory
            simulation.finish(simulation.launch((stimulus.parameters,)))
        blocks = {}
        for block, ports in wanted.items():
            blocks[block] = _read(Path(name) / f"{block}.hex", ports)
    return Recording(blocks, min(len(p.packed) for p in blocks.values()), stimulus.source)


def _instrumented(verilog: str, wanted: Mapping[str, Sequence[tuple[str, int]]]) -> str:
    """Return the tile with a process that writes, from `start` until `done`, one line of digits a cycle for each block."""
    start = verilog.rindex("module fl_tile(")
    at = verilog.index("endmodule", start)
    files = "".join(f"  integer file_{i};\n" for i in range(len(wanted)))
    opens = "".join(f'      file_{i} = $fopen({{directory, "/{b}.hex"}}, "w");\n' for i, b in enumerate(wanted))
    writes = "".join(
        f'      $fdisplay(file_{i}, "%h", {{{", ".join(_reference(p) for p, _ in reversed(ports))}}});\n'
        for i, ports in enumerate(wanted.values())
    )
    closes = "".join(f"      $fclose(file_{i});\n" for i in range(len(wanted)))
    process = (
        f'  string directory;\n{files}  reg recording = 0;\n  initial if ($value$plusargs("record=%s", directory)) begin\n{opens}  end\n'
        f"  always @(posedge clk) if ((start | recording) & ~(done & recording)) begin\n      recording <= 1;\n{writes}  end\n"
        f"  final begin\n{closes}  end\n"
    )
    return verilog[:at] + process + verilog[at:]


def _reference(path: str) -> str:
    return ".".join(f"\\{part} " for part in path.split("."))  # escaped: a part may be a keyword, or hold a dollar sign


def _read(path: Path, ports: Sequence[tuple[str, int]]) -> Ports:
    lines = path.read_bytes().split()
    if not lines:
        raise FablessError(f"{path.name}: the launch was not recorded; report this")
    n_digits = len(lines[0])
    digits = b"".join(line.rjust(n_digits + n_digits % 2, b"0") for line in lines)
    packed = np.frombuffer(bytes.fromhex(digits.decode()), np.uint8).reshape(len(lines), -1)[:, ::-1]
    places, at = {}, 0
    for name, width in ports:
        places[name] = (at, width)
        at += width
    return Ports(packed, places)
