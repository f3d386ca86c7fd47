"""What no study has to ask for: interfaces that a process has, room on a carrier, heat that leaves a die, clocks that our rows reach."""

from __future__ import annotations

from dataclasses import replace
from math import exp
from pathlib import Path

import pytest

from fabless.chip.catalogue import load_chip, sheet_names
from fabless.core.errors import FablessError
from fabless.core.sources import table
from fabless.explore.hardware import HARDWARE_LIMITS, hardware_of
from fabless.explore.space import chip_of, dram_of
from fabless.explore.study import MemoryChoice, read_study
from fabless.silicon.harden import harden
from fabless.silicon.process import max_clock_hz, own_clock_hz

STUDY = read_study(Path(__file__).parents[2] / "examples/chat.toml")


def chip(process="3nm", *, cores=128, dies=1, stacks=6, clock_hz=1e9, standard="hbm3e"):
    memory = (MemoryChoice(standard, stacks),)
    space = replace(
        STUDY.space, process=(process,), clock_hz=(clock_hz,), cores=(cores,), dies=(dies,), memory=memory, rows=(128,), vector_lanes=(32,)
    )
    return chip_of(space, 0)


def missed(*chips):
    """Return, for each chip, the ratio by which it exceeds each limit that it exceeds."""
    _, misses = hardware_of(STUDY, chips)
    return [{name: exp(m) for name, m in zip(HARDWARE_LIMITS, row, strict=True) if m > 0} for row in misses]


def test_a_process_without_the_interface_is_refused():
    (old,) = missed(chip("7nm", standard="hbm4"))
    assert old["interface"] > 1
    assert "interface" not in missed(chip("3nm", standard="hbm4"))[0]


def test_pins_run_as_fast_as_standard_and_interface():
    slow, fast = (dram_of(MemoryChoice("hbm3", 1), p).bandwidth_bytes_per_s for p in ("7nm", "3nm"))
    assert slow == fast == pytest.approx(1024 * 6.4e9 / 8)
    standard = table("memory_standards").fact("hbm3e_pin_bits_per_s").known
    assert dram_of(MemoryChoice("hbm3e", 1), "3nm").bandwidth_bytes_per_s <= 1024 * standard / 8


def test_eight_stacks_need_two_dies():
    one, two = missed(chip(stacks=8), chip(stacks=8, dies=2))
    assert one["carrier"] == pytest.approx(8 / table("packaging").fact("stacks_per_die").known)
    assert "carrier" not in two


def test_heat_is_power_over_area_of_the_dies():
    hot = chip("3nm", cores=192)
    silicon = harden(hot)
    density = silicon.tdp_w / (silicon.die_area_mm2 * silicon.n_dies)
    limit = table("packaging").fact("cooled_w_per_mm2").known
    assert missed(hot)[0].get("heat", 1.0) == pytest.approx(max(1.0, density / limit))
    assert density > limit  # else this test shows nothing


def test_no_single_die_that_is_sold_draws_more_than_the_range_of_what_is_cooled():
    fact = table("packaging").fact("cooled_w_per_mm2")
    _, mid, high = fact.range
    densities = {}
    for name in sheet_names():
        try:
            c = load_chip(name)
        except FablessError:
            continue  # no description
        if c.tdp_w is not None and c.die_area_mm2 is not None:
            densities[name] = c.tdp_w / (c.die_area_mm2 * c.n_dies)
    assert max(densities.values()) <= high
    without_hosts = [d for name, d in densities.items() if "gh200" not in name]  # its figure holds a CPU, too
    assert 0.9 * mid <= max(without_hosts) <= mid


def test_clocks_are_those_of_our_own_netlists():
    netlists = table("netlists")
    assert own_clock_hz("7nm") == pytest.approx(netlists.fact("asap7_row_clock").known)
    assert (
        own_clock_hz("7nm")
        < own_clock_hz("5nm")
        < own_clock_hz("3nm")
        <= min(netlists.fact("gt2n_row_clock").known, max_clock_hz("3nm").mid)
    )
    over = 1.1 * own_clock_hz("5nm")
    assert missed(chip("5nm", clock_hz=over))[0]["clock"] == pytest.approx(1.1)
