"""Verilator -Wall over the emitted Verilog: nothing but what is waived with a reason, and a planted mistake is found."""

import pytest

pytest.importorskip("amaranth", reason="the RTL needs the extra 'rtl'")

from fabless.program.tile import DEMO, TINY
from fabless.rtl.bench.build import tools
from fabless.rtl.bench.lint import WAIVERS, lint
from fabless.rtl.emit import tile_verilog

pytestmark = pytest.mark.skipif(
    not all(t.found for t in tools()), reason=f"not installed: {', '.join(t.name for t in tools() if not t.found)}; see 'fabless doctor'"
)


@pytest.fixture(scope="module")
def linted():
    return {name: lint(tile_verilog(tile), "fl_tile") for name, tile in (("tiny", TINY), ("demo", DEMO))}


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_no_warning_without_a_waiver(linted, name):
    left, _ = linted[name]
    assert left == []


def test_no_waiver_without_a_warning(linted):
    used = {w for _, waived in linted.values() for w in waived}
    assert [w for w in WAIVERS if w not in used] == []


PLANTED = {
    "an unused register": ("reg [3:0] stray;\n  always @(posedge clk) stray <= 4'h3;", "UNUSEDSIGNAL"),
    "a wire nobody drives": ("wire stray;\n  reg kept;\n  always @(posedge clk) kept <= stray;", "UNDRIVEN"),
    "a narrow assignment": ("wire [3:0] stray = {clk, clk};\n  reg kept;\n  always @(posedge clk) kept <= ^stray;", "WIDTHEXPAND"),
    "a latch": ("reg stray;\n  always @* if (clk) stray = rst;\n  reg kept;\n  always @(posedge clk) kept <= stray;", "LATCH"),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found(mistake):
    from fabless.rtl.block import Shared
    from fabless.rtl.emit import verilog_of
    from fabless.rtl.floating import FloatMultiply

    text, rule = PLANTED[mistake]
    verilog = verilog_of(FloatMultiply(Shared(TINY)))
    assert lint(verilog, "fl_float_multiply")[0] == []
    left, _ = lint(verilog.replace("endmodule", f"  {text}\nendmodule", 1), "fl_float_multiply")
    assert rule in {w.rule for w in left}
