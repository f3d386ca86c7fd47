"""Placed blocks: cells in rows that do not overlap, wires as long as their pins are apart, a netlist that computes what it did, and a slower clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fabless.rtl.synthesis.kit import find_liberties, kit_named, kits
from fabless.rtl.synthesis.liberty import Library
from fabless.rtl.synthesis.measure import activity_energy
from fabless.rtl.synthesis.netlist import ONE, ZERO
from fabless.rtl.synthesis.placement import placed, wires_of
from fabless.rtl.synthesis.sizing import resized
from fabless.rtl.synthesis.synthesise import synthesise
from fabless.rtl.synthesis.timing import static_timing

PDK = Path(__file__).parents[2] / "../shared/data/pdk"
for module, extra in (("amaranth", "rtl"), ("pyosys", "rtl"), ("coloquinte", "place")):
    pytest.importorskip(module, reason=f"placement needs {module}: pip install 'fabless[{extra}]'")
if not PDK.exists():
    pytest.skip(f"{PDK} is not beside this checkout: no library to map to", allow_module_level=True)


@pytest.fixture(scope="module")
def block():
    kit = kit_named("gt2n")
    return synthesise("accumulate", kit, Library(find_liberties(kit, PDK)))


@pytest.fixture(scope="module")
def where(block):
    return placed(block.netlist, wires_of("gt2n"))


def test_cells_stand_in_rows_inside_the_core_and_do_not_overlap(block, where):
    wires = wires_of("gt2n")
    row = np.rint(where.y_um / wires.row_um).astype(int)
    assert where.y_um == pytest.approx(row * wires.row_um)
    width = np.array([i.cell.area_um2 for i in block.netlist.instances]) / wires.row_um
    assert where.x_um.min() >= 0
    assert (where.x_um + width).max() <= where.width_um + 1e-6
    assert 0 <= row.min() <= row.max() < round(where.height_um / wires.row_um)
    for r in range(row.max() + 1):
        here = np.flatnonzero(row == r)
        here = here[np.argsort(where.x_um[here])]
        assert (where.x_um[here][1:] >= (where.x_um + width)[here][:-1] - 1e-6).all()
    assert where.area_um2 == pytest.approx(block.area_um2 / 0.7, rel=0.03)


def test_a_wire_is_as_long_as_its_pins_are_apart(block, where):
    """Nets of two cells and no port: half the perimeter of the box between the cells' middles, which a wire cannot undercut."""
    n, seen = block.netlist, 0
    ports = {net for side in (n.inputs, n.outputs) for nets in side.values() for net in nets}
    on: dict[int, set[int]] = {}
    for i, instance in enumerate(n.instances):
        for net in instance.pins.values():
            on.setdefault(net, set()).add(i)
    width = np.ceil([i.cell.area_um2 / 0.144 / 0.042 - 1e-6 for i in n.instances]) * 0.042
    for net, cells in on.items():
        if len(cells) == 2 and net not in ports | n.clocks | {ZERO, ONE}:
            a, b = cells
            apart = abs(where.x_um[a] + width[a] / 2 - where.x_um[b] - width[b] / 2) + abs(where.y_um[a] - where.y_um[b])
            assert where.length_um[net] == pytest.approx(apart, abs=1e-6)
            assert where.wires_f[net] == pytest.approx(apart * 0.15e-15, rel=1e-6)
            seen += 1
    assert seen > 1000
    scattered = np.random.default_rng(1).permutation(len(n.instances))
    drawn = [abs(where.x_um[scattered[i]] - where.x_um[scattered[i + 1]]) for i in range(1000)]
    assert np.mean([where.length_um[net] for net in on if len(on[net]) == 2]) < np.mean(drawn) / 2  # the placer did something


def test_the_same_netlist_gives_the_same_places(block, where):
    again = placed(block.netlist, wires_of("gt2n"))
    assert (again.x_um.tobytes(), again.y_um.tobytes()) == (where.x_um.tobytes(), where.y_um.tobytes())


def test_wires_slow_a_block_and_none_leave_it_as_it_was(block, where):
    none = replace(where, wires_f=(0.0,) * block.netlist.n_nets, delays_s=(0.0,) * block.netlist.n_nets)
    assert static_timing(block.netlist, block.flop, None, none).period_s == block.timing.period_s
    assert static_timing(block.netlist, block.flop, None, where).period_s > 1.05 * block.timing.period_s


def test_stronger_gates_win_time_back_and_compute_the_same(block, where):
    before = static_timing(block.netlist, block.flop, None, where)
    stronger = resized(block.netlist, block.flop, where, avoid=kits()["gt2n"].avoid, models={}, target_s=0.0)
    after = static_timing(stronger, block.flop, None, where)
    assert after.period_s < before.period_s
    changed = [(a.cell, b.cell) for a, b in zip(block.netlist.gates, stronger.gates, strict=True) if a.cell is not b.cell]
    assert changed
    assert all(a.pins[o].function == b.pins[o].function for a, b in changed for o in a.outputs)
    assert activity_energy(replace(block, netlist=stronger, timing=after), n_steps=16).n_results > 0  # raises at a wrong sum
