"""Liberty, timing, gates and energy on a library small enough to work out by hand; what is refused, and in which words."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from fabless.cli import run
from fabless.core.errors import InputError, MissingToolError, UnsupportedError
from fabless.rtl.synthesis import yosys
from fabless.rtl.synthesis.cache import Cache
from fabless.rtl.synthesis.hierarchy import read_hierarchy
from fabless.rtl.synthesis.kit import find_liberties, kit_named, kits, pick
from fabless.rtl.synthesis.liberty import Library, Lookup
from fabless.rtl.synthesis.netlist import read_netlist
from fabless.rtl.synthesis.power import cycle_energy
from fabless.rtl.synthesis.settled import settled_run
from fabless.rtl.synthesis.simulation import Simulator, function, integers, number_bits, words
from fabless.rtl.synthesis.timing import port_model, static_timing


def table(name, value):
    return f'{name} (t) {{ values ("{value}, {value}", "{value}, {value}"); }}'


def gate(name, area, pins, formula, delay, sense):
    inputs = "".join(f"pin ({p}) {{ direction : input; capacitance : 2; }}" for p in pins)
    arcs = "".join(
        f'timing () {{ related_pin : "{p}"; timing_sense : {sense}; {table("cell_rise", delay)} {table("cell_fall", delay + 1)} '
        f"{table('rise_transition', 3)} {table('fall_transition', 3)} }} "
        f'internal_power () {{ related_pin : "{p}"; {table("rise_power", 4)} {table("fall_power", 6)} }}'
        for p in pins
    )
    return f'cell ({name}) {{ area : {area}; cell_leakage_power : 5; {inputs} pin (Y) {{ direction : output; function : "{formula}"; {arcs} }} }}'


FLOP = (
    'cell (DFF) { area : 9; cell_leakage_power : 10; ff (IQ, IQN) { next_state : "D"; clocked_on : "CK"; clear : "!R"; }'
    "pin (CK) { direction : input; capacitance : 1; clock : true; } pin (R) { direction : input; capacitance : 1; }"
    "pin (D) { direction : input; capacitance : 3; timing () { related_pin : CK; timing_type : setup_rising; "
    f"{table('rise_constraint', 7)} {table('fall_constraint', 8)} }} }}"
    'pin (Q) { direction : output; function : "IQ"; timing () { related_pin : CK; timing_type : rising_edge; timing_sense : non_unate; '
    f"{table('cell_rise', 20)} {table('cell_fall', 21)} {table('rise_transition', 2)} {table('fall_transition', 2)} }} }} }}"
)
HEAD = (
    'library (toy) { time_unit : "1ps"; capacitive_load_unit (1, ff); voltage_unit : "1V"; leakage_power_unit : "1nW"; nom_voltage : 2; nom_temperature : 25;\n'
    '/* axes */ lu_table_template (t) { variable_1 : input_net_transition; variable_2 : total_output_net_capacitance; index_1 ("1, 9"); index_2 ("1, 9"); }\n'
)
GATES = (
    gate("INV", 1, "A", "!A", 10, "negative_unate")
    + gate("BUF", 2, "A", "A", 15, "positive_unate")
    + gate("NAND2", 3, "AB", "(A B)'", 12, "negative_unate")
)


def toy(tmp_path, cells=GATES + FLOP):
    path = tmp_path / "toy.lib.gz"
    path.write_bytes(gzip.compress((HEAD + cells + "}").encode()))
    return Library((path,))


def netlist(library):
    """q = flop(nand(a, inv(q)))."""
    cells = {
        "n": {"type": "NAND2", "connections": {"A": [2], "B": [5], "Y": [6]}},
        "i": {"type": "INV", "connections": {"A": [4], "Y": [5]}},
        "f": {"type": "DFF", "connections": {"CK": [3], "R": ["1"], "D": [6], "Q": [4]}},
    }
    ports = {
        "a": {"direction": "input", "bits": [2]},
        "clk": {"direction": "input", "bits": [3]},
        "q": {"direction": "output", "bits": [4]},
    }
    return read_netlist(json.dumps({"modules": {"top": {"ports": ports, "cells": cells, "netnames": {}}}}), "top", library)


def test_the_toy_is_timed_as_by_hand(tmp_path):
    library = toy(tmp_path)
    n = netlist(library)
    t = static_timing(n, library.cell("DFF"))
    # Q falls at 21, the inverter's rise takes 10, the NAND's fall 13, and a falling D must be there 8 before the edge.
    assert t.period_s == pytest.approx((21 + 10 + 13 + 8) * 1e-12, rel=1e-12)
    assert [s.cell for s in t.path] == ["DFF", "INV", "NAND2"]
    assert n.area_um2 == 13
    assert n.leakage_w == pytest.approx(20e-9)


def test_the_toy_counts_as_by_hand(tmp_path):
    n = netlist(toy(tmp_path))
    s = Simulator(n, 1)
    rng = np.random.default_rng(1)
    q = np.zeros(64, np.int64)  # the flip-flop holds 0 before the first edge, and a is 0
    a = np.zeros(64, np.int64)
    toggles = 0
    for _ in range(50):
        following = 1 - (a & (1 - q))
        toggles += int((following != q).sum())
        q, a = following, rng.integers(0, 2, 64)
        s.step({"a": words(number_bits(a, 1))})
        assert (integers(s.output("q")) == q).all()
    assert s.activity().settled[n.outputs["q"][0]] == toggles


def test_the_energy_of_the_toy_is_as_by_hand(tmp_path):
    library = toy(tmp_path)
    n = netlist(library)
    e = cycle_energy(n, static_timing(n, library.cell("DFF")), [1.0] * n.n_nets)
    # Loads in fF: a 2; q 2 + a port of 3; the inverter's output 2; D 3. At 2 V a toggle of C takes 2 C. The clock's pin has 1 and toggles twice.
    # The tie-off counts the reset pin's 1: it never toggles in use, but was said to here.
    assert e.switching_j == pytest.approx(2.0 * (2 + 5 + 2 + 3 + 1) * 1e-15)
    assert e.clock_j == pytest.approx(2.0 * 1 * 2 * 1e-15)
    assert e.internal_j == pytest.approx((5 + 5) * 1e-15)  # mean of 4 and 6 for each of two gates, in fF V^2


def test_the_charge_that_leaves_by_ground_is_not_counted_again(tmp_path):
    supply = "pg_pin (VDD) { pg_type : primary_power; } pg_pin (VSS) { pg_type : primary_ground; }"
    once = gate("INV", 1, "A", "!A", 10, "negative_unate")
    group = once[once.index("internal_power () {") : -4].rstrip("} ") + " }"
    rails = "".join(group.replace("internal_power () {", f"internal_power () {{ related_pg_pin : {rail};") for rail in ("VDD", "VSS"))
    both = once.replace(group, rails).replace("area : 1;", f"area : 1; {supply}")
    assert both.count("internal_power") == 2
    energies = []
    for cell in (once, both):
        library = toy(tmp_path, cell + GATES[GATES.index("cell (BUF)") :] + FLOP)
        n = netlist(library)
        energies.append(cycle_energy(n, static_timing(n, library.cell("DFF")), [1.0] * n.n_nets))
    assert energies[0] == energies[1]
    assert energies[0].internal_j == pytest.approx((5 + 5) * 1e-15)


def test_glitches_shorter_than_a_gate_are_swallowed(tmp_path):
    library = toy(tmp_path)
    # y = nand(a, inv(a)): always 1 once settled, but for a pulse of the inverter's delay when a rises.
    cells = {
        "i": {"type": "INV", "connections": {"A": [2], "Y": [3]}},
        "n": {"type": "NAND2", "connections": {"A": [2], "B": [3], "Y": [4]}},
    }
    ports = {"a": {"direction": "input", "bits": [2]}, "y": {"direction": "output", "bits": [4]}}
    n = read_netlist(json.dumps({"modules": {"top": {"ports": ports, "cells": cells, "netnames": {}}}}), "top", library)
    for delays, pulses in (({"i": 8e-12, "n": 1e-12}, 2), ({"i": 1e-12, "n": 8e-12}, 0)):
        timing = static_timing(n, library.cell("DFF"))
        object.__setattr__(timing, "delays_s", delays)
        s = Simulator(n, 1, timing)
        s.step({"a": words(np.ones((64, 1), bool))})
        assert s.activity().toggles[n.outputs["y"][0]] == 64 * pulses
        assert s.activity().settled[n.outputs["y"][0]] == 0


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("!(A B) + C'", lambda a, b, c: (not (a and b)) or not c),
        ("A^B&C", lambda a, b, c: a ^ (b and c)),
        ("(A|B)*!C", lambda a, b, c: (a or b) and not c),
        ("(A' B)' C", lambda a, b, c: (not (not a and b)) and c),
    ],
)
def test_functions_are_read_as_liberty_means_them(text, formula):
    f = function(text, ("A", "B", "C"))
    for bits in range(8):
        a, b, c = (bool(bits >> i & 1) for i in range(3))
        full = np.uint64(0xFFFFFFFFFFFFFFFF)
        assert f([np.array([full * x], np.uint64) for x in (a, b, c)])[0] == (full if formula(a, b, c) else 0)


def test_lookup_is_exact_on_planes_inside_and_out():
    axis = (1.0, 2.0, 5.0)
    plane = Lookup(axis, axis, tuple(tuple(3 * x - 2 * y for y in axis) for x in axis))
    for x, y in ((1.0, 5.0), (1.5, 4.0), (0.0, 0.0), (7.0, 9.0)):
        assert plane(x, y) == pytest.approx(3 * x - 2 * y)


def test_what_a_library_lacks_is_named(tmp_path):
    for cells, message in (
        (GATES, "lacks a rising-edge flip-flop; add the file of its sequential cells with --liberty"),
        (FLOP + gate("BUF", 2, "A", "A", 1, "positive_unate"), "lacks an inverter; add the file of its combinational cells with --liberty"),
        (FLOP, "lacks a buffer; add the file"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            pick(toy(tmp_path, cells), ())


def test_files_that_are_no_library_are_named(tmp_path):
    path = tmp_path / "x.lib"
    with pytest.raises(InputError, match="cannot read the Liberty file"):
        Library((path,))
    path.write_text("library (empty) { }")
    with pytest.raises(InputError, match="holds no cells; give a Liberty file"):
        Library((path,))


def test_processes_and_their_files_are_looked_up(tmp_path):
    with pytest.raises(InputError, match="unknown process 'sky13' for synthesis; did you mean 'sky130'"):
        kit_named("sky13")
    for kit in kits().values():
        with pytest.raises(InputError, match="set PDK_ROOT to the folder"):
            find_liberties(kit, None)
        with pytest.raises(InputError, match="point PDK_ROOT at an installed PDK"):
            find_liberties(kit, tmp_path)
        deep = tmp_path / kit.name / "libs.ref" / "lib"
        deep.mkdir(parents=True)
        for name in kit.files[0]:
            (deep / f"{name}.gz").touch()
        assert [p.parent for p in find_liberties(kit, tmp_path)] == [deep] * len(kit.files[0])


def test_a_missing_tool_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(yosys, "find_spec", lambda name: None)
    yosys.yosys_package.cache_clear()
    with pytest.raises(MissingToolError, match=r"install it with: pip install 'fabless\[rtl\]'"):
        yosys.yosys_package()
    yosys.yosys_package.cache_clear()


def test_the_command_leaves_with_2(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("PDK_ROOT", raising=False)
    lacking = tmp_path / "toy.lib"
    lacking.write_text(HEAD + GATES + "}")
    for arguments, said in (
        (["synth", "--process", "tsmc5"], "unknown process 'tsmc5'"),
        (["synth", "--process", "ihp"], "or set PDK_ROOT"),
        (["synth", "--process", "ihp", "--liberty", str(lacking)], "lacks a rising-edge flip-flop"),
    ):
        assert run(arguments) == 2
        assert said in capsys.readouterr().err


def test_the_settled_run_toggles_as_the_delayed_one_settles(tmp_path):
    cells = {
        "n": {"type": "NAND2", "connections": {"A": [2], "B": [4], "Y": [6]}},
        "f": {"type": "DFF", "connections": {"CK": [3], "R": ["1"], "D": [6], "Q": [4]}},
    }
    ports = {p: {"direction": d, "bits": [b]} for p, d, b in (("a", "input", 2), ("clk", "input", 3), ("q", "output", 4))}
    n = read_netlist(json.dumps({"modules": {"top": {"ports": ports, "cells": cells, "netnames": {}}}}), "top", toy(tmp_path))
    bits = np.random.default_rng(2).integers(0, 2, (200, 1), np.uint8)
    q = np.zeros((200, 1), np.uint8)
    q[0] = 1  # the first edge takes what stood before any input: nand(0, 0)
    for t in range(1, 200):
        q[t] = 1 - (bits[t - 1] & q[t - 1])
    driven, expected = (np.array(n.inputs["a"]), bits), (np.array(n.outputs["q"]), q)
    run = settled_run(n, driven, expected, np.array([9, 150]), skip=1)
    assert run.wrong is None
    assert run.n_cycles == 199
    assert run.toggles[n.outputs["q"][0]] == (q[1:] != q[:-1]).sum()
    assert run.states[:, n.outputs["q"][0]].tolist() == [q[9, 0], q[150, 0]]
    s = Simulator(n, 1)
    s.resume(words(np.repeat(run.states[:1], 64, axis=0).astype(bool)))
    s.drive(driven[0], words(np.repeat(bits[10:11], 64, axis=0).astype(bool)))
    assert (integers(s.output("q")) == q[10, 0]).all()
    q[120] ^= 1
    assert settled_run(n, driven, expected, np.zeros(0, np.int64), skip=1).wrong == (120, 0)


def test_a_child_is_timed_by_its_ports_as_by_hand(tmp_path):
    library = toy(tmp_path)
    # child: q = flop(inv(a)), y = inv(b): an input that is needed before the edge, one that goes straight through, an output from the clock.
    inside = {
        "i": {"type": "INV", "connections": {"A": [2], "Y": [5]}},
        "f": {"type": "DFF", "connections": {"CK": [3], "R": ["1"], "D": [5], "Q": [4]}},
        "j": {"type": "INV", "connections": {"A": [6], "Y": [7]}},
    }
    ports = {
        p: {"direction": d, "bits": [b]}
        for p, d, b in (("a", "input", 2), ("clk", "input", 3), ("q", "output", 4), ("b", "input", 6), ("y", "output", 7))
    }
    child = read_netlist(json.dumps({"modules": {"c": {"ports": ports, "cells": inside, "netnames": {}}}}), "c", library)
    model = port_model(child, library.cell("DFF"))
    assert model.arrives_s == pytest.approx({"q": 21e-12})
    assert model.needs_s["a"] == pytest.approx((11 + 8) * 1e-12)  # the inverter's fall and the setup of a fall; a rise takes 10 + 7
    assert model.through_s == (("b", "y", pytest.approx(11e-12)),)
    # parent: flop -> child.b, child.y -> inv -> flop.
    around = {
        "c": {"type": "child", "connections": {"a": ["0"], "clk": [3], "q": [9], "b": [10], "y": [11]}},
        "k": {"type": "INV", "connections": {"A": [11], "Y": [12]}},
        "f": {"type": "DFF", "connections": {"CK": [3], "R": ["1"], "D": [12], "Q": [10]}},
    }
    ports = {"clk": {"direction": "input", "bits": [3]}}
    text = json.dumps({"modules": {"p": {"ports": ports, "cells": around, "netnames": {}}}})
    parent = read_netlist(text, "p", library, {"child": frozenset({"q", "y"})})
    assert set(parent.inputs) == {"clk", "c.q", "c.y"}
    timing = static_timing(parent, library.cell("DFF"), {"child": model})
    # The flip-flop falls at 21, the child takes 11, the inverter's fall 11, and a falling D must be there 8 before the edge.
    assert timing.period_s == pytest.approx((21 + 11 + 11 + 8) * 1e-12)
    assert [s.cell for s in timing.path] == ["DFF", "through", "INV"]


def test_what_is_kept_comes_back_and_what_is_torn_does_not(tmp_path):
    kept = Cache(tmp_path / "deep" / "cache")
    assert kept.get("a") is None
    kept.put("a", "µm²")
    assert kept.get("a") == "µm²"
    path = next((tmp_path / "deep" / "cache").iterdir())
    path.write_bytes(path.read_bytes()[:8])
    assert kept.get("a") is None


def test_a_hierarchy_counts_what_is_placed():
    text = (
        "module \\top\n  wire width 4 input 0 \\a\n  wire width 2 output 1  signed \\y\n"
        "  cell \\low \\x\n    connect \\a \\a\n  end\n  cell \\low \\z\n  end\nend\n"
        "module \\low\n  cell \\fl_ram_1w2r \\words\n    parameter \\WIDTH 8\n    parameter \\DEPTH 32\n    connect \\rd0 \\q\n  end\n"
        "  cell $add \\$1\n  end\nend\n"
    )
    h = read_hierarchy({"all": text}, "top")
    assert (h.modules["top"].inputs, h.modules["top"].outputs) == ({"a": 4}, {"y": 2})
    assert h.paths(whole=frozenset()) == {"top": ("",), "low": ("x", "z")}
    assert h.modules["low"].memories[0].bits == 8 * 32 * 2
    assert list(h.closure("top")) == ["top", "low"]
