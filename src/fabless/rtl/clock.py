"""Clock gates: a unit that has nothing to do does not toggle, in silicon and in the work of a simulator.

A gate never changes what a unit computes: with the gate always open every bit and every cycle is the same, and so a flow without such a cell (an FPGA,
a proof) puts a wire in its place. In a library it is the integrated clock-gating cell: the enable has until the clock rises.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import ClockDomain, ClockSignal, Instance, Module, Mux, ResetSignal, Signal, Value

GATE = "fl_clock_gate"
GATE_VERILOG = f"""module {GATE}(input clk, input enable, output gated);
  reg held;
  always_latch if (!clk) held = enable;
  assign gated = clk & held;
endmodule
"""
#: The gate that is always open.
WIRE_VERILOG = f"module {GATE}(input clk, input enable, output gated);\n  assign gated = clk;\nendmodule\n"


def gated(m: Module, domain: str, enable: Any) -> None:
    """Add a clock domain whose clock ticks at the end of each cycle in which `enable` is high, and in reset."""
    m.domains += ClockDomain(domain, local=True)
    m.submodules[f"gate_{domain}"] = Instance(
        GATE, i_clk=ClockSignal(), i_enable=Value.cast(enable) | ResetSignal(), o_gated=ClockSignal(domain)
    )
    m.d.comb += ResetSignal(domain).eq(ResetSignal())


def lingering(m: Module, active: Value, cycles: int, name: str) -> Value:
    """Return `active`, held for so many cycles more."""
    recent = Signal(cycles, name=f"{name}_recent")
    m.d.sync += recent.eq(Mux(active, (1 << cycles) - 1, recent >> 1))
    return active | recent[0]
