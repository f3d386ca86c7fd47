"""A mapped dot product against three judges: integer arithmetic, OpenSTA's timing of the same netlist, and the bars of the design."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from fabless.core.errors import FablessError
from fabless.core.sources import table
from fabless.program.tile import TINY
from fabless.rtl.synthesis.activity import launch_energy
from fabless.rtl.synthesis.kit import find_liberties, find_macros, kit_named
from fabless.rtl.synthesis.liberty import Library
from fabless.rtl.synthesis.measure import activity_energy
from fabless.rtl.synthesis.netlist import ONE, ZERO
from fabless.rtl.synthesis.recording import Ports, Recording
from fabless.rtl.synthesis.synthesise import hierarchy, memory_um2, row_memories, subjects, synthesise
from fabless.rtl.synthesis.yosys import run_yosys

PDK = Path(__file__).parents[2] / "../shared/data/pdk"
pytest.importorskip("amaranth", reason="blocks are Amaranth: pip install 'fabless[rtl]'")
pytest.importorskip("pyosys", reason="mapping needs Yosys: pip install 'fabless[rtl]'")
if not PDK.exists():
    pytest.skip(f"{PDK} is not beside this checkout: no library to map to", allow_module_level=True)


@pytest.fixture(scope="module")
def dot():
    kit = kit_named("gt2n")
    return synthesise("dot", kit, Library(find_liberties(kit, PDK)))


def test_the_gates_give_the_sums_and_the_recorded_figures(dot):
    activity = activity_energy(dot, n_steps=16)
    assert activity.n_results == 64 * 12
    recorded = table("netlists")
    assert dot.area_um2 / 32 == pytest.approx(recorded.fact("gt2n_dot_um2").known, rel=5e-4)  # printed to four digits
    assert dot.timing.fmax_hz >= recorded.fact("gt2n_row_clock").known * 0.9995
    assert activity.settled.dynamic_j < activity.cycle.dynamic_j


def test_a_wrong_gate_is_noticed(dot):
    gate = next(g for g in dot.netlist.gates if "xor" in g.cell.name)
    a, b = gate.cell.inputs
    kept = dict(gate.pins)
    gate.pins[a] = gate.pins[b]
    try:
        with pytest.raises(FablessError, match=r"gates give .* where the arithmetic gives"):
            activity_energy(dot, n_steps=16)
    finally:
        gate.pins.update(kept)


@pytest.mark.skipif(shutil.which("sta") is None, reason="OpenSTA is not installed (Debian: apt install opensta); it is only an oracle")
def test_open_sta_finds_the_same_period(dot, tmp_path):
    n = dot.netlist
    nets = [f"n{i}" for i in range(n.n_nets)]
    nets[ZERO], nets[ONE] = "1'b0", "1'b1"
    lines = [f"module top ({', '.join(nets[c] for c in n.clocks)});", *(f"input {nets[c]};" for c in n.clocks)]
    lines += [f"wire {name};" for i, name in enumerate(nets) if i > ONE and i not in n.clocks]
    lines += [f"{g.cell.name} u{i} ({', '.join(f'.{p}({nets[net]})' for p, net in g.pins.items())});" for i, g in enumerate(n.instances)]
    (tmp_path / "top.v").write_text("\n".join([*lines, "endmodule\n"]))
    library = n.library.paths[0]
    (tmp_path / "sta.tcl").write_text(
        f"read_liberty {library}\nread_verilog top.v\nlink_design top\ncreate_clock -name c -period 100000 [get_ports {nets[min(n.clocks)]}]\n"
        "report_checks -path_delay max -digits 5\nexit\n"
    )
    said = subprocess.run(["sta", "-exit", "sta.tcl"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120).stdout
    arrival = float(re.search(r"([\d.]+)\s+data arrival time", said).group(1))
    setup = -float(re.search(r"([-\d.]+)\s+\S+\s+library setup time", said).group(1))
    # OpenSTA leaves the output ports without a flip-flop's load; it prints 5 digits and keeps tables in single precision.
    assert (arrival + setup) * 1e-12 == pytest.approx(dot.timing.period_s, rel=2e-3)


@pytest.mark.parametrize(
    ("process", "um2_per_mac", "clock_hz"), [("asap7", 56, 1.15e9), ("gt2n", 18.5, 1.5e9), ("sky130", 3300, 200e6), ("ihp", 6000, 220e6)]
)
def test_recorded_rows_meet_the_bars(process, um2_per_mac, clock_hz):
    recorded = table("netlists")
    assert recorded.fact(f"{process}_dot_um2").known <= um2_per_mac
    assert recorded.fact(f"{process}_row_clock").known >= clock_hz


def test_parts_and_row_hold_the_same_flip_flops():
    """The cut of a row into dot product and accumulator loses no register and adds none."""
    from fabless.rtl.synthesis.blocks import SUBJECTS, block_rtlil

    def flops(name):
        sources = block_rtlil(SUBJECTS[name].block)
        with tempfile.TemporaryDirectory() as place:
            for module, text in sources.items():
                (Path(place) / f"{module}.il").write_text(text)
            reads = "\n".join(f"read_rtlil {module}.il" for module in sources)
            top = next(iter(sources))
            run_yosys(f"{reads}\nhierarchy -top {top}\nproc\nflatten\nopt_clean\nsimplemap\nwrite_json n.json\n", Path(place), 60)
            cells = json.loads((Path(place) / "n.json").read_text())["modules"][top]["cells"].values()
        return sum("FF" in c["type"] for c in cells)

    assert flops("row") == flops("dot") + flops("accumulate")


@pytest.fixture(scope="module")
def semaphores():
    """The semaphores of a tile, mapped, and a recording of them made by counting."""
    rng, n = np.random.default_rng(5), 300
    counts = np.zeros(32, np.int64)
    columns = {name: np.zeros((n, 32), np.uint8) for name in ("take", "give", "below", "above")}
    for t in range(n):
        columns["below"][t], columns["above"][t] = counts == 0, counts == 15
        give, take = rng.random(32) < 0.4, rng.random(32) < 0.3
        take &= counts > 0
        give &= (counts < 15) | take
        columns["take"][t], columns["give"][t] = take, give
        counts = counts + give - take
    packed = np.packbits(np.concatenate(list(columns.values()), axis=1), axis=1, bitorder="little")
    places = {f"semaphores.{name}": (32 * i, 32) for i, name in enumerate(columns)}
    ports = Ports(packed, places)
    modules = hierarchy(TINY)
    found = subjects(modules, TINY)
    kit = kit_named("gt2n")
    mapped = synthesise(found["semaphores"], kit, Library(find_liberties(kit, PDK)))
    recording = Recording({"semaphores": ports, "counted": ports}, n, "counted")
    return found, mapped, recording, int(columns["give"].sum())


def test_a_block_of_the_tile_is_checked_in_every_cycle(semaphores):
    found, mapped, recording, tokens = semaphores
    energy = launch_energy(mapped, found["semaphores"], recording)
    assert energy.n_operations == tokens
    assert energy.n_results == 300 * 64
    assert 0 < energy.settled_j <= energy.operation_j
    gate = next(g for g in mapped.netlist.gates if "xor" in g.cell.name.lower() or "xnr" in g.cell.name.lower())
    a, b = gate.cell.inputs[:2]
    kept = dict(gate.pins)
    gate.pins[a] = gate.pins[b]
    try:
        with pytest.raises(FablessError, match=r"gates and RTL differ in cycle \d+ at (below|above)\["):
            launch_energy(mapped, found["semaphores"], recording)
    finally:
        gate.pins.update(kept)


def test_a_tile_is_its_blocks_once_each(semaphores):
    found, *_ = semaphores
    assert {n: len(s.places) for n, s in found.items() if len(s.places) > 1} == {
        "dot": 4,
        "accumulate": 4,
        "lane": 4,
        "add": 12,
        "multiply": 5,
    }
    assert {"sequencer", "load", "store", "mxu", "vector", "reduce", "quantise", "function", "semaphores", "queue_net", "tile"} <= set(
        found
    )
    order = list(found)
    assert all(order.index(child) < order.index("vector") for child in ("lane", "function", "reduce", "quantise"))
    assert order[-1] == "tile"


def test_memories_come_from_macros_or_bit_cells():
    from fabless.program.tile import DEMO

    weights = row_memories(DEMO)[0]
    ihp, asap7, sky130 = (kit_named(name) for name in ("ihp", "asap7", "sky130"))
    um2, basis = memory_um2(weights, ihp, find_macros(ihp, PDK))
    assert basis == "4 macros 1024x64"  # 1,024 words of 256 bits
    assert um2 == pytest.approx(4 * 263_946, rel=1e-4)  # the area that SOURCES.md gives for the macro
    um2, basis = memory_um2(weights, asap7, ())
    assert basis == "bit cells / sram_efficiency"
    assert um2 > 256 * 1024 * 0.027  # more than the bit cells alone
    assert memory_um2(weights, sky130, ()) == (None, "no macro and no bit-cell row")
