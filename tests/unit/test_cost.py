"""What each cost function promises, on numbers small enough to check by hand."""

from __future__ import annotations

from dataclasses import replace
from math import isclose

import pytest

from fabless.chip.chip import Chip, Core, Dram, Link, Mxu, Sram
from fabless.core.errors import InfeasibleError, InputError
from fabless.core.ranges import Range
from fabless.cost.die import dies_of, dies_per_wafer, good_die_usd, harvested_yield_ratio, yield_ratio
from fabless.cost.inputs import cost_inputs
from fabless.cost.package import Assembly, Part
from fabless.cost.price import FleetDemand, bought_chip, break_even, chip_cost, inputs_for, part_cost, part_of, price, rent_bill
from fabless.cost.uncertainty import Case, spread, tornado
from fabless.silicon.silicon import Block, EnergyTable, Silicon

EXACT = Range.exact
#: Every input that a check by hand needs, exact; the rest nothing.
PLAIN = {
    "wafer_usd": 10_000,
    "d0_per_cm2": 0.1,
    "alpha": 1.0,
    "memory_usd_per_gb": 10,
    "carrier_wafer_usd": 0,
    "carrier_area_ratio": 1,
    "carrier_d0_per_cm2": 0,
    "carrier_alpha": 1,
    "bump_usd_per_mm2": 0,
    "substrate_usd_per_mm2": 0,
    "die_bond_yield_ratio": 1,
    "stack_bond_yield_ratio": 1,
    "substrate_bond_yield_ratio": 1,
    "test_usd": 20,
    "partner_margin_ratio": 0.5,
    "design_usd": 3e6,
    "software_usd": 2e6,
    "masks_usd": 1e6,
    "mask_sets": 2,
    "ip_usd": 1e6,
    "nre_life_years": 4,
    "nre_lead_years": 0,
    "software_upkeep_ratio": 0,
    "host_usd": 100,
    "nic_usd": 50,
    "power_usd_per_w": 0.5,
    "network_usd": 200,
    "switch_usd_per_gb_per_s": 0,
    "host_power_ratio": 1.0,
    "facility_usd_per_w": 10,
    "facility_life_years": 20,
    "server_life_years": 5,
    "pue": 1.25,
    "operations_ratio": 0.0,
    "replacement_ratio": 0.0,
    "interest_ratio": 0.0,
    "electricity_usd_per_kwh": 0.1,
}
INPUTS = cost_inputs("7nm", "lpddr5x", "organic").replace(**PLAIN)
PART = Part(10.0, 10.0, 1.0, 16.0, 0.0)


def chip(spare: int = 4) -> Chip:
    core = Core(Mxu(32, 32, (("int8", 1.0),)), 32, Sram(2**20))
    return Chip("test", "fabless", "7nm", 1e9, 60, core, Dram("hbm3e", 4, 144e9, 4e12), Link("ring", 2, 1e11, 1e-6, 8), spare_cores=spare)


def silicon(n_dies: int = 1) -> Silicon:
    blocks = (
        Block("matrix", 64, 192.0, 1.0, "matrix"),
        Block("vector", 64, 64.0, 1.0, "vector"),
        Block("shared", 1, 64.0, 1.0, "sram"),
        Block("phy", 4, 60.0, 1.0, "dram_phy"),
    )
    energy = EnergyTable((), EXACT(0), EXACT(0), EXACT(0), EXACT(0), EXACT(0))
    return Silicon("test", "7nm", 1e9, blocks, 400.0 / n_dies, 20.0 / n_dies, 20.0, n_dies, 0.1, 10.0, 20.0, 300.0, 250.0, energy)


def test_a_bill_by_hand():
    """Every input exact and without interest, so each line is a product of two or three of them."""
    cost = part_cost("chip", PART, INPUTS)
    die_usd = 10_000 / 616 * 1.1  # 1 cm2 at 0.1/cm2 with alpha 1: 1 in 1.1 works
    assert isclose(cost.cost_usd.mid, die_usd + 160 + 20, rel_tol=1e-12)
    assert isclose(cost.price_usd.mid, 2 * cost.cost_usd.mid, rel_tol=1e-12)
    assert cost.nre_usd == EXACT(3e6 + 2e6 + 2e6 + 1e6)
    bill = price(FleetDemand(1000, 50.0, 100.0, 6e12, 2e12, 0.25), cost, INPUTS)
    yearly = {line.label: line.usd_per_year.mid for line in bill.lines}
    assert isclose(yearly["mask sets"], 2e6 / 4)
    assert isclose(yearly["memory"], 160 * 1000 / 5)
    assert isclose(yearly["server"], (100 + 50 + 0.5 * 200) * 1000 / 5)
    assert isclose(yearly["network"], 200 * 1000 / 5)
    assert isclose(yearly["facility"], 10 * 200 * 1000 / 20)
    assert isclose(yearly["electricity"], 50 * 2 * 1.25 / 1000 * 8760 * 0.1 * 1000)
    assert isclose(bill.usd_per_year.mid, sum(yearly.values()))
    assert isclose(bill.prefill_usd_per_mtok.mid, bill.usd_per_year.mid * 0.25 / 6e6)
    assert isclose(bill.decode_usd_per_mtok.mid, bill.usd_per_year.mid * 0.75 / 2e6)
    assert isclose(bill.j_per_token.mid, 50 * 2 * 1.25 * 1000 * 8760 * 3600 / 8e12)
    assert isclose(bill.tokens_per_s_per_mw.mid, 8e12 / (8760 * 3600) / (100 * 2 * 1.25 * 1000 / 1e6))


def test_what_only_ones_own_chip_costs_by_hand():
    """Interest before the first chip, software upkeep, failed chips and switches: a bought chip of the same price pays none of them."""
    change = {
        "interest_ratio": 0.1,
        "nre_lead_years": 2,
        "software_upkeep_ratio": 0.25,
        "replacement_ratio": 0.03,
        "switch_usd_per_gb_per_s": 4,
    }
    inputs = INPUTS.replace(**change)
    cost = part_cost("chip", replace(PART, switched_gb_per_s=100.0), inputs)
    fleet = FleetDemand(1000, 50.0, 100.0, 6e12, 2e12, 0.25)
    own = {line.label: line.usd_per_year.mid for line in price(fleet, cost, inputs).lines}
    recovery = 0.1 / (1 - 1.1**-4)
    assert isclose(own["mask sets"], 2e6 * 1.21 * recovery)
    assert isclose(own["software upkeep"], 0.25 * 2e6)
    assert isclose(own["replaced chips"], 0.03 * cost.price_usd.mid * 1000)
    assert isclose(own["switches between chips"], 400 * 1000 * 0.1 / (1 - 1.1**-5))
    assert isclose(cost.price_usd.mid, part_cost("chip", PART, inputs).price_usd.mid)  # switches are no part of the chip
    bought = bought_chip("H100 SXM")
    assert bought is not None
    assert not {"replaced chips", "software upkeep", "switches between chips"} & {x.label for x in price(fleet, bought, inputs).lines}


def test_nre_is_shared_among_all_chips_of_the_design():
    cost = part_cost("chip", PART, INPUTS)
    alone = price(FleetDemand(100, 50.0, 100.0, 1e12, 1e12, 0.5), cost, INPUTS)
    among = price(FleetDemand(100, 50.0, 100.0, 1e12, 1e12, 0.5, n_built=1000), cost, INPUTS)
    assert isclose(among.nre_usd.mid, alone.nre_usd.mid / 10)


def test_break_even_by_hand():
    """NRE of 8 MUSD over 4 years against the difference per token."""
    fleet = FleetDemand(1000, 50.0, 100.0, 6e12, 2e12, 0.25)
    own = price(fleet, part_cost("chip", PART, INPUTS), INPUTS)
    rent = rent_bill("TPU v5e", 1000, fleet, INPUTS)
    assert rent is not None
    even = break_even(own, rent, 1000)
    running = (own.usd_per_year.mid - 2e6) / 8e12
    assert isclose(even.tokens_per_year.mid, 2e6 / (1.20 * 8760 * 1000 / 8e12 - running), rel_tol=1e-9)
    assert even.rent_usd_per_mtok[0] <= even.rent_usd_per_mtok[1] <= even.rent_usd_per_mtok[2]
    assert [c[1] for c in even.own_usd_per_mtok] == sorted((c[1] for c in even.own_usd_per_mtok), reverse=True)


def test_unknown_prices_are_none_not_guesses():
    fleet = FleetDemand(1, 1.0, 1.0, 1.0, 1.0, 0.5)
    assert rent_bill("TPU v7", 1, fleet, INPUTS) is None
    assert bought_chip("Maia 200") is None
    assert rent_bill("no such chip", 1, fleet, INPUTS) is None


def test_a_hardened_chip_becomes_a_part():
    part = part_of(silicon(), chip())
    assert (part.die_area_mm2, part.memory_gb, part.memory_stacks) == (400.0, 144.0, 4.0)
    assert (part.n_cores, part.n_spare, part.core_area_mm2) == (60.0, 4.0, 4.0)  # (192 + 64) / 64; the shared SRAM is no core's
    halves = part_of(silicon(2), chip())
    assert (halves.n_dies, halves.n_cores, halves.n_spare) == (2.0, 30.0, 2.0)
    assert part_of(silicon(), chip(spare=0)).core_area_mm2 == 0.0


def test_spare_cores_make_a_chip_cheaper_and_more_defects_dearer():
    inputs = inputs_for(chip())
    with_spares = chip_cost(silicon(), chip(), inputs).cost_usd.mid
    without = chip_cost(silicon(), chip(spare=0), inputs).cost_usd.mid
    dirty = chip_cost(silicon(), chip(), inputs.replace(d0_per_cm2=0.5)).cost_usd.mid
    assert with_spares < without
    assert with_spares < dirty


def test_yield_by_hand():
    assert yield_ratio(100.0, 0.1, 1.0) == 1 / 1.1
    assert isclose(harvested_yield_ratio(100.0, 100.0, n_cores=0, n_spare=1, d0_per_cm2=0.5, alpha=2.0), 1.0, rel_tol=1e-9)
    assert 0 <= harvested_yield_ratio(850.0, 400.0, n_cores=1, n_spare=1, d0_per_cm2=5.0, alpha=0.5) <= 1  # nothing overflows
    assert good_die_usd(1000.0, 100, 0.5) == 20.0


def test_a_part_is_lost_with_what_it_is_bonded_to():
    organic = Assembly(100.0, 0.0, 1.0, 0.0, 10.0, 1.0, 1.0, 0.5)
    assert (organic.good_dies_usd, organic.good_package_usd) == (200.0, 22.0)
    carried = Assembly(100.0, 40.0, 0.0, 50.0, 10.0, 0.5, 0.5, 1.0)
    assert (carried.good_dies_usd, carried.good_stacks_usd, carried.good_package_usd) == (200.0, 80.0, 200.0 + 10.0)


def test_wafers_that_hold_nothing():
    assert dies_per_wafer(250.0, 250.0) == 0
    assert dies_per_wafer(207.0, 207.0) == 1
    with pytest.raises(InfeasibleError, match=r"a die of 250.00 mm x 250.00 mm does not fit on a wafer; make it smaller"):
        dies_of(250.0, 250.0)
    with pytest.raises(InputError, match=r"a die of 0.0 mm x 5.0 mm: both sides must be above 0"):
        dies_per_wafer(0.0, 5.0)
    with pytest.raises(InputError, match="the cores take more area than the die"):
        harvested_yield_ratio(100.0, 30.0, n_cores=4, n_spare=1, d0_per_cm2=0.1, alpha=3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_chips": 0.0}, r"fleet: n_chips must be above 0, not 0.0"),
        ({"prefill_tokens_per_year": 0.0, "decode_tokens_per_year": 0.0}, r"fleet: prefill and decode tokens per year are both 0"),
        ({"prefill_time_ratio": 1.2}, r"fleet: prefill_time_ratio must lie in \[0, 1\], not 1.2"),
        ({"n_built": 0.5}, r"fleet: n_built 0.5 is below n_chips 1; NRE is shared among all chips of the design"),
    ],
)
def test_a_fleet_that_makes_no_sense(change, message):
    good = {"n_chips": 1.0, "average_w": 1.0, "provisioned_w": 1.0, "prefill_tokens_per_year": 1.0, "decode_tokens_per_year": 1.0}
    with pytest.raises(InputError, match=message):
        FleetDemand(**({**good, "prefill_time_ratio": 0.5} | change))


def test_tornado_by_hand():
    """One uncertain input, network cards from 0 to 100 USD: 1,000 cards over 5 years and 8e12 tokens."""
    case = Case(PART, FleetDemand(1000, 50.0, 100.0, 6e12, 2e12, 0.25), INPUTS.replace(nic_usd=Range(0, 50, 100)))
    (swing,) = tornado(case)
    assert swing.name == "nic_usd"
    assert isclose(swing.width_usd_per_mtok, 100 * 1000 / 5 / 8e6, rel_tol=1e-9)
    assert isclose(swing.at_high_usd_per_mtok - swing.at_mid_usd_per_mtok, 50 * 1000 / 5 / 8e6, rel_tol=1e-9)
    with pytest.raises(InputError, match="n_samples must be a power of two, not 1000; take 1024"):
        spread(case, n_samples=1000)


def test_overrides_carry_the_study_as_their_source():
    inputs = INPUTS.replace(wafer_usd=Range(1, 2, 3))
    assert inputs.source("wafer_usd") == ("study",)
    assert cost_inputs("7nm", "hbm2", "interposer").source("wafer_usd") == ("wafer:cset2020",)
