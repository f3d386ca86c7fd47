"""What hardening promises: every square millimetre is in a block, limits are refused with a remedy, energy adds up."""

from __future__ import annotations

from dataclasses import replace
from math import isclose

import pytest

from fabless.chip.catalogue import load_chip
from fabless.chip.chip import Chip, Core, Dram, Link, Mesh, Mxu, Sram, TensorCore
from fabless.core.errors import InfeasibleError, InputError, UnsupportedError
from fabless.core.ranges import Range
from fabless.core.sources import table
from fabless.silicon.area import block_areas, element_area_mm2, matrix_area_mm2, sram_area_mm2
from fabless.silicon.energy import event_energies, mac_j, sram_byte_j
from fabless.silicon.harden import average_power_w, harden
from fabless.silicon.process import max_clock_hz, process_named, process_names
from fabless.sim.trace import Counters

OWN = Chip(
    name="mine",
    family="fabless",
    process="7nm",
    clock_hz=1e9,
    n_cores=64,
    core=Core(Mxu(128, 32, (("int8", 1.0),)), 64, Sram(2**20, 16)),
    dram=Dram("hbm3", 4, 96e9, 3.2e12),
    link=Link("switch", 4, 400e9, 1e-6, 8),
)


def test_blocks_add_up_to_the_die():
    silicon = harden(OWN)
    assert isclose(sum(b.area_mm2 for b in silicon.blocks), silicon.die_area_mm2)
    assert isclose(sum(b.leakage_w for b in silicon.blocks), silicon.leakage_w)
    assert isclose(silicon.die_width_mm * silicon.die_height_mm, silicon.die_area_mm2)
    assert len({b.name for b in silicon.blocks}) == len(silicon.blocks)
    assert all(b.basis for b in silicon.blocks)


def test_blocks_of_all_dies_add_up():
    silicon = harden(replace(OWN, n_dies=2))
    assert isclose(sum(b.area_mm2 for b in silicon.blocks), 2 * silicon.die_area_mm2)
    assert "die to die" in {b.name for b in silicon.blocks}


def test_a_row_is_its_measured_cell_area_placed():
    # the row's own netlist on ASAP7 (docs/synthesis.md), dot product and block accumulator, and the layout ratio
    blocks = table("process_blocks")
    placed = (48.68e-6 + 21.47e-6) * blocks.fact("layout_ratio").known
    assert isclose(matrix_area_mm2(Mxu(128, 32, (("int8", 1.0),)), "7nm"), 128 * 32 * placed)
    bf16 = 1e-6 * (48.68 * blocks.fact("row_bf16_ratio").known + 21.47) * blocks.fact("layout_ratio").known  # the accumulator does not grow
    assert isclose(matrix_area_mm2(Mxu(1, 1, (("int8", 1.0), ("bf16", 1.0))), "7nm"), bf16)
    # a tensor core: the prototype row and its plain binary32 accumulator
    core = 53.1e-6 * blocks.fact("accumulator_ratio").known * blocks.fact("layout_ratio").known
    assert isclose(matrix_area_mm2(TensorCore((("int8", 2.0),)), "7nm"), 2 * core)


def test_a_core_of_rows_has_the_lanes_and_the_control_of_its_own_netlists():
    # ASAP7 (docs/synthesis.md): a lane with its share of the vector unit; sequencer, queues and semaphores; load and store by row
    placed = table("process_blocks").fact("layout_ratio").known * 1e-6
    own = replace(OWN, process="7nm")
    assert isinstance(own.core.matrix, Mxu)
    areas = {b.name: b.area_mm2 for b in harden(own).blocks}
    n_cores = own.n_cores + own.spare_cores
    assert isclose(areas["vector lanes"], n_cores * own.core.vector_lanes * 2351 * placed)
    assert isclose(areas["control"], n_cores * (9357 + own.core.n_matrix * own.core.matrix.rows * 551.4) * placed)
    assert areas["registers"] == 0.0


def test_a_second_product_of_an_element_costs_a_row_and_not_an_element():
    one, two = element_area_mm2("int8", 1.0, "7nm"), element_area_mm2("int8", 2.0, "7nm")
    assert one < two < 2 * one


def test_memory_is_bit_cells_over_the_density_of_tpu_floorplans():
    areas = block_areas("7nm")
    plain = sram_area_mm2(Sram(128 * 2**20, 1, 1), areas)
    assert plain == pytest.approx(128 * 2**20 * 8 * 0.027e-6 / 0.26, rel=1e-4)
    assert sram_area_mm2(Sram(128 * 2**20, 64, 64), areas) > plain


def test_formats_without_a_row_are_refused_by_name():
    with pytest.raises(UnsupportedError, match="no area is known for multipliers of int32; known: fp32, tf32"):
        matrix_area_mm2(Mxu(1, 1, (("int32", 1.0),)), "7nm")
    with pytest.raises(UnsupportedError, match="no area is known for multipliers of int32"):
        matrix_area_mm2(Mesh(1, 1, (("int32", 1.0),)), "7nm")
    with pytest.raises(UnsupportedError, match="no energy is known for multipliers of int32"):
        mac_j("int32", "7nm", "row")


def test_an_unknown_process_is_refused_with_the_nearest():
    with pytest.raises(InputError) as error:
        harden(replace(OWN, process="5n"))
    assert str(error.value).startswith("unknown process '5n'; did you mean '5nm'?; known: 28nm, 22nm, 20nm, ")


@pytest.mark.parametrize(("name", "process"), [("N3E", "3nm"), ("TSMC N7", "7nm"), ("4N", "4nm"), (" 5nm ", "5nm"), ("SF2", "samsung_2nm")])
def test_processes_answer_to_the_names_of_their_foundries(name, process):
    assert process_named(name).name == process


def test_an_unknown_memory_is_refused():
    with pytest.raises(InputError, match="no energy is known for memory 'hbm9'"):
        event_energies("7nm", "hbm9")


def test_a_die_beyond_the_reticle_names_the_smallest_change():
    big = replace(OWN, n_cores=1200)
    with pytest.raises(InfeasibleError) as error:
        harden(big)
    message = str(error.value)
    assert message.startswith("chip 'mine': a die of ")
    assert "exceeds the reticle of 26 x 33 mm (858 mm2); lower n_cores from 1200 to " in message
    fits = int(message.split("from 1200 to ")[1].split(",", maxsplit=1)[0])
    dies = int(message.rsplit(" to ", 1)[1])
    assert harden(replace(big, n_cores=fits)).die_area_mm2 <= 858
    with pytest.raises(InfeasibleError):
        harden(replace(big, n_cores=fits + 2))
    with pytest.raises(InfeasibleError):
        harden(replace(big, n_dies=dies - 1))


def test_a_tall_die_keeps_to_both_sides_of_the_reticle():
    silicon = harden(load_chip("A100"))
    assert silicon.die_width_mm == 26
    assert 26 < silicon.die_height_mm <= 33


def test_a_clock_beyond_the_process_is_refused_with_the_highest_sold():
    with pytest.raises(InfeasibleError) as error:
        harden(replace(OWN, process="28nm", clock_hz=2e9))
    assert (
        str(error.value)
        == "chip 'mine': clock_hz is 2 GHz, but nothing on 28nm runs above 1.4 GHz; lower it to 700 MHz, the highest clock sold"
    )


def test_clock_limits_are_ordered():
    for process in process_names():
        for style in ("gpu", "asic"):
            limit = max_clock_hz(process, style)
            assert 0 < limit.low <= limit.mid <= limit.high


def test_energies_are_the_published_ones_at_the_reference():
    # Jouppi 2021 Table 2 at 7 nm, pJ: 8 KB, 32 KB and 1 MB reads of 8 bytes are 7.5, 8.5 and 14
    assert sram_byte_j(8192, "7nm").mid == pytest.approx(7.5e-12 / 8)
    assert sram_byte_j(32768, "7nm").mid == pytest.approx(8.5e-12 / 8)
    assert sram_byte_j(2**20, "7nm").mid == pytest.approx(14e-12 / 8)
    assert sram_byte_j(2**30, "7nm") == sram_byte_j(2**20, "7nm")
    # int8: (0.07 + 0.03) pJ with operand delivery of 1.8
    assert mac_j("int8", "7nm", "array").mid == pytest.approx(0.18e-12)
    # our own row: 0.119 pJ with layout of 1.5
    assert mac_j("int8", "7nm", "row").mid == pytest.approx(0.1785e-12)
    assert event_energies("7nm", "hbm2").dram_byte_j.mid == pytest.approx(3.9e-12 * 8)
    assert event_energies("7nm", "hbm3").dram_byte_j.mid == pytest.approx(24e-12)


def test_average_power_is_idle_and_dynamic():
    silicon = harden(OWN)
    nothing = average_power_w(silicon, Counters(), 1.0)
    assert nothing == Range(silicon.idle_w, silicon.idle_w, silicon.idle_w)
    events = Counters(macs=(("int8", 1e14),), vector_ops=1e12, dram_bytes=1e12)
    busy = average_power_w(silicon, events, 1.0)
    by_hand = (
        silicon.idle_w
        + 1e14 * dict(silicon.energy.mac_j)["int8"].mid
        + 1e12 * (silicon.energy.vector_op_j.mid + silicon.energy.dram_byte_j.mid)
    )
    assert isclose(busy.mid, by_hand)
    assert busy.low < busy.mid < busy.high
    assert isclose(average_power_w(silicon, events, 2.0).mid, (by_hand + silicon.idle_w) / 2)


def test_sram_only_chips_have_no_memory_interface():
    none = replace(OWN, dram=Dram("none", 0, 0.0, 0.0))
    silicon = harden(none)
    assert "memory interfaces" not in {b.name for b in silicon.blocks}
    assert silicon.idle_w < harden(OWN).idle_w


def test_a_published_power_is_kept_and_an_unknown_one_estimated():
    silicon = harden(OWN)
    assert silicon.idle_w < silicon.tdp_w < silicon.peak_w
    assert silicon.notes[1] == "tdp_w is estimated from peak power"
    assert harden(replace(OWN, tdp_w=123.0)).tdp_w == 123.0
