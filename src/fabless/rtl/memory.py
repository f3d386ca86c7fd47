"""Memories as instances of one behavioural Verilog model, so that synthesis can put a macro in their place.

`fl_ram_{W}w{R}r`: W write ports with one enable per `grain` bits, R read ports with enable; a read takes one cycle and, in the cycle of a write
to the same word, returns what stood there before. Where two ports write one bit in one cycle the higher port wins; no program that verifies
does that. Content is zero at power-up. A multi-ported memory stands for as many banks or copies as the process needs.
"""

from __future__ import annotations

from amaranth.hdl import ClockSignal, Instance, Module, Signal


def index_bits(depth: int) -> int:
    """Return the bits that address `depth` words, at least one."""
    return max(1, (depth - 1).bit_length())


class Ram:
    """Hold the wires of one memory: `write[i]` and `read[i]` are its ports."""

    def __init__(self, *, width: int, depth: int, grain: int | None = None, writes: int = 1, reads: int = 1, name: str) -> None:
        self.width, self.depth, self.grain, self.name = width, depth, grain or width, name
        bits = index_bits(depth)
        self.write = [WritePort(width // self.grain, bits, width, f"{name}_w{i}") for i in range(writes)]
        self.read = [ReadPort(bits, width, f"{name}_r{i}") for i in range(reads)]

    def place(self, m: Module, domain: str = "sync") -> None:
        """Instantiate the memory in `m`, clocked by `domain`."""
        ports: dict[str, object] = {
            "p_WIDTH": self.width, "p_DEPTH": self.depth, "p_GRAIN": self.grain, "p_BITS": index_bits(self.depth), "i_clk": ClockSignal(domain),
        }  # fmt: skip
        for i, w in enumerate(self.write):
            ports |= {f"i_we{i}": w.enable, f"i_wa{i}": w.address, f"i_wd{i}": w.data}
        for i, r in enumerate(self.read):
            ports |= {f"i_re{i}": r.enable, f"i_ra{i}": r.address, f"o_rd{i}": r.data}
        m.submodules[self.name] = Instance(ram_module(len(self.write), len(self.read)), **ports)


class WritePort:
    """Hold a write port: `enable` (one bit per grain), `address`, `data`."""

    def __init__(self, enables: int, bits: int, width: int, name: str) -> None:
        self.enable = Signal(enables, name=f"{name}_enable")
        self.address = Signal(bits, name=f"{name}_address")
        self.data = Signal(width, name=f"{name}_data")


class ReadPort:
    """Hold a read port: `enable`, `address`, and `data`, valid one cycle later and held until the next read."""

    def __init__(self, bits: int, width: int, name: str) -> None:
        self.enable = Signal(name=f"{name}_enable")
        self.address = Signal(bits, name=f"{name}_address")
        self.data = Signal(width, name=f"{name}_data")


def ram_module(writes: int, reads: int) -> str:
    """Return the name of the Verilog module with so many ports."""
    return f"fl_ram_{writes}w{reads}r"


def ram_verilog(writes: int, reads: int) -> str:
    """Return the behavioural model; with +dump=DIRECTORY a simulation writes its content there at the end, one file per instance.

    Built with FL_LOG it also writes there, as it happens, every write in order: port, enables, address, data, in hexadecimal.
    """
    ports = ["input clk"]
    body = []
    for i in range(writes):
        ports += [f"input [WIDTH/GRAIN-1:0] we{i}", f"input [BITS-1:0] wa{i}", f"input [WIDTH-1:0] wd{i}"]
        body.append(
            f"    for (i = 0; i < WIDTH / GRAIN; i = i + 1) if (we{i}[i]) mem[wa{i}][i * GRAIN +: GRAIN] <= wd{i}[i * GRAIN +: GRAIN];"
        )
    for i in range(reads):
        ports += [f"input re{i}", f"input [BITS-1:0] ra{i}", f"output reg [WIDTH-1:0] rd{i}"]
        body.append(f"    if (re{i}) rd{i} <= mem[ra{i}];")
    logged = "\n".join(f'    if (log != 0 && |we{i}) $fdisplay(log, "{i} %h %h %h", we{i}, wa{i}, wd{i});' for i in range(writes))
    listed = ",\n  ".join(ports)
    clocked = "\n".join(body)
    return f"""module {ram_module(writes, reads)} #(parameter WIDTH = 8, DEPTH = 2, GRAIN = 8, BITS = 1) (
  {listed}
);
  reg [WIDTH-1:0] mem [0:DEPTH-1];
  integer i;
  initial for (i = 0; i < DEPTH; i = i + 1) mem[i] = 0;
  always @(posedge clk) begin
{clocked}
  end
`ifdef VERILATOR
  string directory;
  final if ($value$plusargs("dump=%s", directory)) $writememh($sformatf("%s/%m.hex", directory), mem);
`ifdef FL_LOG
  int log;
  initial if ($value$plusargs("dump=%s", directory)) log = $fopen($sformatf("%s/%m.log", directory), "w");
  always @(posedge clk) begin
{logged}
  end
  final if (log != 0) $fclose(log);
`endif
`endif
endmodule
"""
