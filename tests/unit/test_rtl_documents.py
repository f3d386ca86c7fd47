"""What is written beside the Verilog of a tile says everything that the Verilog has."""

import re

import pytest

pytest.importorskip("amaranth", reason="the RTL needs the extra 'rtl'")

from fabless.program.tile import TINY
from fabless.rtl.block import Shared
from fabless.rtl.documents import diagram, registers
from fabless.rtl.tile import UNITS, TileTop


@pytest.mark.filterwarnings("ignore:.*created but never used")  # only its ports are looked at
def test_the_register_map_names_every_port_with_its_width_and_direction():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in registers(TINY, "tiny").splitlines() if line.startswith("|")]
    told = {}
    for names, widths, directions, _ in (row for row in rows if len(row) == 4):
        each = [re.split(", ", cell) for cell in (names, widths, directions)]
        for i, name in enumerate(each[0]):
            told[name] = tuple(cells[i] if len(cells) > 1 else cells[0] for cells in each[1:])
    top = TileTop(Shared(TINY))
    ports = {n: (str(len(s)), "in") for n, s in top.inputs.items()} | {n: (str(len(s)), "out") for n, s in top.outputs.items()}
    assert {n: told.get(n) for n in ports} == ports


def test_the_diagram_has_every_unit():
    titles = {"MXU": "matrix unit", "VPU": "vector unit"}
    for unit in UNITS:
        assert f">{titles.get(unit.name, unit.name.lower())}<" in diagram(TINY, "tiny")
