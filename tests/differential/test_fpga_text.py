"""The Verilog that is mapped for the FPGA writes what the machine writes: its memories of one write port, its multipliers of LUTs."""

import pytest

pytest.importorskip("amaranth", reason="the RTL needs the extra 'rtl'")

from fabless.fleet.on_fpga import run_mapped
from fabless.fleet.on_rtl import open_rtl_session
from fabless.fleet.session import open_session
from fabless.model.tokenizer import open_tokenizer
from fabless.model.weights import open_weights
from fabless.program.tile import ECP5
from fabless.rtl.bench.build import HARNESS, compile_verilog, tools
from fabless.rtl.bench.run import Simulation
from fabless.rtl.fpga import ECP5_FABRIC_LANES, mapped_core, tile_part_verilog
from fabless.rtl.fpga_cells import plain_verilog

pytestmark = pytest.mark.skipif(
    not all(t.found for t in tools()), reason=f"not installed: {', '.join(t.name for t in tools() if not t.found)}; see 'fabless doctor'"
)


@pytest.mark.nightly
def test_the_embedded_model_writes_on_the_tile_that_fits_the_fpga():
    weights = open_weights("tinyshakes")
    ids = open_tokenizer(weights).encode("ROMEO:\n")
    verilog = tile_part_verilog(ECP5, ECP5_FABRIC_LANES)
    assert "fl_times8 fabric7" in verilog
    assert "reg [39:0] now" in verilog
    program = compile_verilog(verilog, HARNESS.read_text(), top="fl_tile", defines={"FL_WIDTH": 16, "FL_LINK": 16}, optimise="-O0")
    with open_rtl_session(weights, ECP5, check=True, context_tokens=32) as session:
        shape = session.compiled.shapes[0]
        session.simulation = Simulation(session.compiled.programs[shape], (session.compiled.layouts[0].memory_bytes,), executable=program)
        session.simulation.memories[0][:] = session.memories[0]
        written = list(session.generate(ids[:2], 2))  # memory and cycles are compared after each of three launches
    assert written == list(open_session(weights, ECP5, context_tokens=32).generate(ids[:2], 2))
    assert len(session.cycles) == 3


@pytest.mark.nightly
def test_the_mapped_cells_decode_a_token():
    """Some ten minutes: Yosys maps the tile, Verilator builds 50,000 cells; memory and cycles are compared after every launch."""
    pytest.importorskip("pyosys", reason="mapping needs Yosys: pip install 'fabless[rtl]'")
    run = run_mapped(plain_verilog(mapped_core(ECP5, ECP5_FABRIC_LANES), "fl_tile"), ECP5)
    assert len(run.tokens) == 1
    assert sum(run.cycles) > 10_000


LUT = {"type": "LUT4", "parameters": {"INIT": "0110100110010110"}, "connections": {"A": [2], "B": [3], "C": [4], "D": ["0"], "Z": [5]}}


def test_cells_become_statements_and_unknown_ones_are_refused():
    from fabless.core.errors import UnsupportedError

    ports = {"a": {"direction": "input", "bits": [2, 3, 4]}, "z": {"direction": "output", "bits": [5]}}
    text = plain_verilog({"ports": ports, "cells": {"x": LUT}}, "odd")
    assert "assign n5 = {16'b0110100110010110} >> {1'b0, n4, n3, n2};" in text
    with pytest.raises(UnsupportedError, match=r"a cell DCUA, which no model here describes"):
        plain_verilog({"ports": ports, "cells": {"x": LUT | {"type": "DCUA"}}}, "odd")
