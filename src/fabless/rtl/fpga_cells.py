"""What the part's cells do, as Verilog: a mapped netlist becomes plain assignments and registers that a simulator takes in a minute.

One statement a look-up table, multiplexer, carry or flip-flop; block RAMs and multipliers are modules. No more than mapping uses: anything else is
refused by name. Source: Lattice FPGA-TN-02035 (sysMEM), FPGA-TN-02205 (sysDSP), FPGA-DS-02012 (slices), and the port names of Project Trellis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabless.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Pins = Callable[..., str]

ZERO = "1'b0"


def plain_verilog(module: Mapping[str, Any], name: str) -> str:
    """Return a module of cells, in JSON as Yosys writes it, as Verilog without cells. Raises `UnsupportedError` for a cell that has no model here."""
    ports = module["ports"]
    listed = ", ".join(f"{p['direction']} [{len(p['bits']) - 1}:0] {port}" for port, p in ports.items())
    nets = {bit for c in module["cells"].values() for bits in c["connections"].values() for bit in bits}
    nets |= {bit for p in ports.values() for bit in p["bits"]}
    lines = [f"module {name} ({listed});"]
    lines += [f"  wire n{bit};" for bit in sorted(b for b in nets if isinstance(b, int))]
    for port, p in ports.items():
        for i, bit in enumerate(p["bits"]):
            lines.append(f"  assign n{bit} = {port}[{i}];" if p["direction"] == "input" else f"  assign {port}[{i}] = {_net(bit)};")
    for i, c in enumerate(module["cells"].values()):
        lines.append(_statement(i, c["type"], c["parameters"], c["connections"]))
    used = {c["type"] for c in module["cells"].values()}
    models = [text for kind, text in (("DP16KD", block_ram()), ("MULT18X18D", multiplier())) if kind in used]
    return "\n".join([*lines, "endmodule", *models])


def _net(bit: int | str) -> str:
    return f"n{bit}" if isinstance(bit, int) else f"1'b{'1' if bit == '1' else '0'}"


def _statement(i: int, kind: str, parameters: Mapping[str, str], connections: Mapping[str, list[int | str]]) -> str:
    """Return what cell number i does."""

    def pin(name: str, otherwise: str = ZERO) -> str:
        bits = connections.get(name) or []
        return _net(bits[0]) if bits else otherwise

    if kind == "$scopeinfo":
        return ""
    if kind == "LUT4":
        return f"  assign {pin('Z')} = {_table(parameters['INIT'], *(pin(p) for p in 'ABCD'))};"
    if kind == "PFUMX":
        return f"  assign {pin('Z')} = {pin('C0')} ? {pin('ALUT')} : {pin('BLUT')};"
    if kind == "L6MUX21":
        return f"  assign {pin('Z')} = {pin('SD')} ? {pin('D1')} : {pin('D0')};"
    if kind == "CCU2C":
        return _carry(i, parameters, pin)
    if kind == "TRELLIS_FF":
        return _flip_flop(i, parameters, pin)
    if kind == "TRELLIS_DPR16X4":
        return _small_ram(i, parameters, connections, pin)
    if kind in {"DP16KD", "MULT18X18D"}:
        given = {n: v for n, v in parameters.items() if n.startswith(("INITVAL", "DATA_WIDTH"))}
        values = ", ".join(f".{n}({len(v)}'b{v})" if set(v) <= {"0", "1"} else f".{n}({v})" for n, v in given.items())
        wires = ", ".join(f".{n}({_net(bits[0])})" for n, bits in connections.items() if bits)
        return f"  {kind} {f'#({values}) ' if values else ''}c{i}({wires});"
    raise UnsupportedError(f"the netlist has a cell {kind}, which no model here describes: report it with the Yosys version")


def _table(init: str, *inputs: str) -> str:
    """Return the look-up of a table of 16 bits, given highest first, by four inputs, the lowest first."""
    return f"{{16'b{init}}} >> {{{', '.join(reversed(inputs))}}}"


def _carry(i: int, parameters: Mapping[str, str], pin: Pins) -> str:
    """Return both halves of a carry cell: a sum that is the table against the carry, and a carry that is passed on where the table gives 1."""
    if {parameters["INJECT1_0"], parameters["INJECT1_1"]} != {"NO"}:
        raise UnsupportedError(
            "the netlist has a CCU2C that injects a carry, which no model here describes: report it with the Yosys version"
        )
    lines, carry = [], pin("CIN")
    for half in "01":
        init, operands = parameters[f"INIT{half}"], [pin(f"{p}{half}") for p in "ABCD"]
        table, made, after = (f"{n}{i}_{half}" for n in ("t", "g", "k"))
        lines += [
            f"  wire {table} = {_table(init, *operands)};", f"  wire {made} = {_table(init, *operands[:2], ZERO, ZERO)};",
            f"  wire {after} = {table} ? {carry} : {made};",
        ]  # fmt: skip
        if pin(f"S{half}", ""):
            lines.append(f"  assign {pin(f'S{half}')} = {table} ^ {carry};")
        carry = after
    if pin("COUT", ""):
        lines.append(f"  assign {pin('COUT')} = {carry};")
    return "\n".join(lines)


def _flip_flop(i: int, parameters: Mapping[str, str], pin: Pins) -> str:
    fixed = {"CLKMUX": "CLK", "LSRMUX": "LSR", "SRMODE": "LSR_OVER_CE", "LSRMODE": "LSR"}
    if any(parameters.get(name, value) != value for name, value in fixed.items()):
        raise UnsupportedError("the netlist has a TRELLIS_FF of a mode that no model here describes: report it with the Yosys version")
    level = "1'b1" if parameters["REGSET"] == "SET" else ZERO
    enable = {"1": "1'b1", "0": ZERO, "INV": f"!{pin('CE')}"}.get(parameters["CEMUX"].strip(), pin("CE"))
    return (
        f"  reg q{i} = {level}; assign {pin('Q')} = q{i};\n"
        f"  always @(posedge {pin('CLK')}) if ({pin('LSR')}) q{i} <= {level}; else if ({enable}) q{i} <= {pin('DI')};"
    )


def _small_ram(i: int, parameters: Mapping[str, str], connections: Mapping[str, list[int | str]], pin: Pins) -> str:
    if (parameters["WCKMUX"], parameters["WREMUX"]) != ("WCK", "WRE") or "1" in parameters.get("INITVAL", ""):
        raise UnsupportedError("the netlist has a TRELLIS_DPR16X4 of a mode that no model here describes: report it with the Yosys version")

    def bus(name: str) -> str:
        return "{" + ", ".join(_net(bit) for bit in reversed(connections[name])) + "}"

    outputs = "".join(f" assign {_net(bit)} = r{i}[{bus('RAD')}][{j}];" for j, bit in enumerate(connections["DO"]) if isinstance(bit, int))
    return (
        f"  reg [3:0] r{i} [0:15]; initial for (integer w = 0; w < 16; w = w + 1) r{i}[w] = 0;{outputs}\n"
        f"  always @(posedge {pin('WCK')}) if ({pin('WRE')}) r{i}[{bus('WAD')}] <= {bus('DI')};"
    )


def _bus(name: str, bits: int) -> str:
    """Return a concatenation of single-bit ports, the highest first."""
    return "{" + ", ".join(f"{name}{i}" for i in reversed(range(bits))) + "}"


def block_ram() -> str:
    """Return DP16KD as two kinds of use: 36 bits, written at A and read at B; 18 bits at either port, where a write gives the old word.

    A word that the other port writes in the cycle of its read is given inverted.
    """
    sides = {"A": "B", "B": "A"}
    ports = [
        f"input {', '.join([f'DI{s}{i}' for i in range(18)] + [f'AD{s}{i}' for i in range(14)])}, CE{s}, OCE{s}, CLK{s}, WE{s}, RST{s}, "
        f"CS{s}0, CS{s}1, CS{s}2, output {', '.join(f'DO{s}{i}' for i in range(18))}"
        for s in sides
    ]
    parameters = [f"[319:0] INITVAL_{i:02X} = 0" for i in range(64)]
    body = [f"  wire [13:0] ad{s} = {_bus(f'AD{s}', 14)}; wire [17:0] di{s} = {_bus(f'DI{s}', 18)};" for s in sides]
    narrow = "\n".join(
        f"    always @(posedge CLK{s}) begin\n"
        f"      if (CE{s} & WE{s}) for (i = 0; i < 18; i = i + 1) if (ad{s}[i / 9]) mem[ad{s}[13:4]][i] <= di{s}[i];\n"
        f"      if (CE{s}) do{s} <= CE{other} & WE{other} & ad{other}[13:4] == ad{s}[13:4] ? ~mem[ad{s}[13:4]] : mem[ad{s}[13:4]];\n"
        f"    end"
        for s, other in sides.items()
    )
    initial = "".join(f"    for (i = 0; i < 16; i = i + 1) mem[{16 * n} + i] = INITVAL_{n:02X}[20 * i +: 18];\n" for n in range(64))
    both = "{mem[{adB[13:5], 1'b1}], mem[{adB[13:5], 1'b0}]}"
    return f"""
module DP16KD #(parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18, parameter {", parameter ".join(parameters)}) (
  {", ".join(ports)});
  reg [17:0] mem [0:1023];
  reg [17:0] doA = 0, doB = 0;
  integer i;
  initial begin
    if (DATA_WIDTH_A != DATA_WIDTH_B || (DATA_WIDTH_A != 36 && DATA_WIDTH_A != 18)) $fatal(1, "a block RAM of a width that no model describes");
{initial}  end
{chr(10).join(body)}
  assign {_bus("DOA", 18)} = doA;
  assign {_bus("DOB", 18)} = doB;
  generate if (DATA_WIDTH_A == 36) begin : wide
    wire [35:0] di = {{diB, diA}};
    always @(posedge CLKA) if (CEA & WEA) for (i = 0; i < 36; i = i + 1) if (adA[i / 9]) mem[{{adA[13:5], i >= 18}}][i % 18] <= di[i];
    always @(posedge CLKB) if (CEB) {{doB, doA}} <= CEA & WEA & (|adA[3:0]) & adA[13:5] == adB[13:5] ? ~{both} : {both};
  end else begin : narrow
{narrow}
  end endgenerate
endmodule
"""


def multiplier() -> str:
    """Return MULT18X18D without registers."""
    signed = [f"$signed({{SIGNED{s} & {s}17, {_bus(s, 18)}}})" for s in "AB"]
    inputs = [f"{s}{i}" for s in "ABC" for i in range(18)]
    return f"""
module MULT18X18D (input {", ".join(inputs)}, SIGNEDA, SIGNEDB, SOURCEA, SOURCEB, output {", ".join(f"P{i}" for i in range(36))});
  wire signed [37:0] product = {" * ".join(signed)};
  assign {_bus("P", 36)} = product[35:0];
endmodule
"""
