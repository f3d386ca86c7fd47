"""Laws of money: prices scale, lines add up, more defects are never cheaper, ranges keep their order."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from math import inf, isclose
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabless.core.ranges import Range
from fabless.cost.die import dies_of, dies_per_wafer, harvested_yield_ratio, yield_ratio
from fabless.cost.inputs import CHEAPER_WHEN_HIGH, NAMES, CostInputs, cost_inputs
from fabless.cost.package import Part
from fabless.cost.price import FleetDemand, break_even, part_cost, price, quoted_rent_bill
from fabless.cost.process import PACKAGES, PROCESSES
from fabless.cost.system import HOURS_PER_YEAR, capital_recovery_factor
from fabless.cost.uncertainty import Case, own_usd_per_mtok, spread, tornado
from fabless.cost.yearly import chip_year

if TYPE_CHECKING:
    from fabless.cost.bill import Bill

parts = st.builds(
    lambda side, aspect, n, gb, stacks, spare, share: Part(
        side, side * aspect, float(n), gb, float(stacks), 16.0 - spare, float(spare), side * side * aspect * share / 16
    ),
    st.floats(2.0, 24.0),
    st.floats(1.0, 1.3),
    st.integers(1, 4),
    st.floats(1.0, 300.0),
    st.integers(0, 8),
    st.integers(0, 4),
    st.floats(0.0, 0.9),
)
fleets = st.builds(
    lambda n, w, idle, prefill, decode, time: FleetDemand(n, w * idle, w, prefill, decode, time),
    st.floats(1.0, 1e6),
    st.floats(10.0, 2000.0),
    st.floats(0.2, 1.0),
    st.floats(1e6, 1e15),
    st.floats(1e6, 1e15),
    st.floats(0.0, 1.0),
)
inputs = st.builds(
    lambda process, memory, package, place, partner: cost_inputs(process, memory, package, place=place, partner=partner),
    st.sampled_from(PROCESSES),
    st.sampled_from(["none", "hbm3e", "hbm4", "lpddr5x", "gddr7"]),
    st.sampled_from(PACKAGES),
    st.sampled_from(["rack", "appliance"]),
    st.booleans(),
)


def bill_of(part: Part, fleet: FleetDemand, x: CostInputs) -> Bill:
    return price(fleet, part_cost("chip", part, x), x)


def ordered(r: Range) -> bool:
    return 0 <= r.low <= r.mid <= r.high


@settings(max_examples=60, deadline=None)
@given(parts, fleets, inputs)
def test_ranges_keep_their_order_and_lines_add_up(part, fleet, x):
    bill = bill_of(part, fleet, x)
    assert all(ordered(line.usd) and ordered(line.usd_per_year) for line in bill.lines)
    assert all(ordered(getattr(bill, f.name)) for f in fields(bill) if isinstance(getattr(bill, f.name), Range))
    for end in ("low", "mid", "high"):
        total = sum(getattr(line.usd_per_year, end) for line in bill.lines)
        assert isclose(total, getattr(bill.usd_per_year, end), rel_tol=1e-12)
        assert isclose(sum(getattr(r, end) for r in bill.group_usd_per_year().values()), total, rel_tol=1e-12)
        once = sum(getattr(line.usd, end) for line in bill.lines if line.when == "once")
        assert isclose(once, getattr(bill.nre_usd, end), rel_tol=1e-12)


@settings(max_examples=60, deadline=None)
@given(parts, fleets, inputs)
def test_dollars_are_conserved(part, fleet, x):
    """What prefill and decode tokens pay together is the bill."""
    bill = bill_of(part, fleet, x)
    paid = bill.prefill_usd_per_mtok.mid * fleet.prefill_tokens_per_year + bill.decode_usd_per_mtok.mid * fleet.decode_tokens_per_year
    assert isclose(paid / 1e6, bill.usd_per_year.mid, rel_tol=1e-9)
    assert isclose(bill.usd_per_mtok.mid * bill.tokens_per_year / 1e6, bill.usd_per_year.mid, rel_tol=1e-9)


@settings(max_examples=40, deadline=None)
@given(parts, fleets, inputs)
def test_doubling_every_price_doubles_the_bill(part, fleet, x):
    dearer = x.replace(**{name: getattr(x.ranges, name) * 2 for name in NAMES if "_usd" in name})
    one, two = bill_of(part, fleet, x), bill_of(part, fleet, dearer)
    for end in ("low", "mid", "high"):
        assert isclose(getattr(two.usd_per_year, end), 2 * getattr(one.usd_per_year, end), rel_tol=1e-12)


@settings(max_examples=40, deadline=None)
@given(parts, fleets, inputs)
def test_every_input_moves_the_price_the_way_it_says(part, fleet, x):
    case = Case(part, fleet, x)
    bill = bill_of(part, fleet, x)
    for swing in tornado(case, count=100):
        low, high = swing.at_low_usd_per_mtok, swing.at_high_usd_per_mtok
        cheap, dear = (high, low) if swing.name in CHEAPER_WHEN_HIGH else (low, high)
        assert cheap <= dear * (1 + 1e-12) or swing.name == "alpha", swing.name  # clustering helps or hurts, by the die
        assert bill.usd_per_mtok.low * (1 - 1e-9) <= min(cheap, dear), swing.name
        assert max(cheap, dear) <= bill.usd_per_mtok.high * (1 + 1e-9), swing.name


@settings(max_examples=60, deadline=None)
@given(parts, fleets, inputs)
def test_the_short_way_equals_the_bill(part, fleet, x):
    year = chip_year(part, fleet.provisioned_w, fleet.average_w, x.mid(), x.package)
    bill = bill_of(part, fleet, x)
    assert isclose(float(year.fleet_usd_per_year(fleet.n_chips)), bill.usd_per_year.mid, rel_tol=1e-9)
    assert isclose(float(year.nre_usd), bill.nre_usd.mid, rel_tol=1e-9)
    assert isclose(float(year.capex_usd) * fleet.n_chips, bill.capex_usd.mid, rel_tol=1e-9)
    assert isclose(float(own_usd_per_mtok(Case(part, fleet, x), x.mid())), bill.usd_per_mtok.mid, rel_tol=1e-9)


def test_arrays_of_designs_equal_one_design_at_a_time():
    rng, n = np.random.default_rng(3), 300
    x = cost_inputs("3nm", "hbm3e", "interposer")
    width, height, spare = rng.uniform(3, 26, n), rng.uniform(3, 33, n), rng.integers(0, 5, n).astype(float)
    columns = (width, height, rng.integers(1, 3, n).astype(float), rng.uniform(20, 300, n), rng.integers(1, 8, n).astype(float))
    cores = (32 - spare, spare, width * height * 0.7 / 32)
    watts = rng.uniform(100, 1500, n)
    many = chip_year(Part(*columns, *cores), watts, watts * 0.6, x.mid(), x.package)
    for i in range(n):
        fleet = FleetDemand(1.0, float(watts[i] * 0.6), float(watts[i]), 1e9, 1e9, 0.5)
        part = Part(*(float(c[i]) for c in (*columns, *cores)))
        assert isclose(float(np.asarray(many.fleet_usd_per_year(1.0))[i]), bill_of(part, fleet, x).usd_per_year.mid, rel_tol=1e-9)
        assert isclose(float(np.asarray(many.price_usd)[i]), part_cost("chip", part, x).price_usd.mid, rel_tol=1e-9)


# ---- dies and yield

sides = st.floats(1.5, 33.0)


@settings(max_examples=80, deadline=None)
@given(sides, sides, st.floats(1.0, 1.2))
def test_a_larger_die_never_gives_more(width, height, grow):
    assert dies_per_wafer(width * grow, height * grow) <= dies_per_wafer(width, height)
    assert dies_per_wafer(width * grow, height) <= dies_per_wafer(width, height)


@settings(max_examples=60, deadline=None)
@given(sides, sides)
def test_turning_the_wafer_changes_nothing_and_dies_fit_by_area(width, height):
    count = dies_per_wafer(width, height)
    assert count == dies_per_wafer(height, width)
    assert count * (width * height) <= np.pi * 147.0**2


@settings(max_examples=40, deadline=None)
@given(sides, sides, st.floats(0.0, 30.0))
def test_a_deeper_notch_never_gives_more(width, height, notch):
    count = dies_per_wafer(width, height, notch_mm=notch)
    assert count <= dies_per_wafer(width, height, notch_mm=0.0)
    if notch <= 3.0:
        assert count == dies_per_wafer(width, height, notch_mm=0.0)


@settings(max_examples=60, deadline=None)
@given(st.floats(1.0, 900.0), st.floats(0.0, 1.0), st.floats(0.3, 30.0), st.floats(1.01, 2.0))
def test_yield_falls_with_area_and_defects_and_never_below_poisson(area, d0, alpha, more):
    y = yield_ratio(area, d0, alpha)
    assert 0 < y <= 1
    assert yield_ratio(area * more, d0, alpha) <= y
    assert yield_ratio(area, d0 * more, alpha) <= y
    assert yield_ratio(area, d0, inf) <= y * (1 + 1e-12)
    assert isclose(yield_ratio(area, d0, 1e9), yield_ratio(area, d0, inf), rel_tol=1e-5)


@settings(max_examples=80, deadline=None)
@given(st.floats(10.0, 850.0), st.floats(0.05, 0.95), st.integers(1, 160), st.integers(0, 12), st.floats(0.0, 0.6), st.floats(0.5, 20.0))
def test_harvesting_never_lowers_yield(die, share, n, spare, d0, alpha):
    """On one die, tolerating more bad cores is never worse; tolerating none is the plain yield; tolerating all leaves the uncore's."""
    total = n + spare
    core = die * share / total

    def tolerate(k: int) -> float:
        return float(harvested_yield_ratio(die, core, n_cores=total - k, n_spare=k, d0_per_cm2=d0, alpha=alpha))

    some = [tolerate(k) for k in range(spare + 1)]
    assert all(b >= a * (1 - 1e-9) for a, b in pairwise(some))
    assert isclose(some[0], yield_ratio(die, d0, alpha), rel_tol=1e-12)
    assert isclose(tolerate(total), yield_ratio(die * (1 - share), d0, alpha), rel_tol=1e-6)


def test_counts_of_arrays_equal_counts_one_by_one():
    rng = np.random.default_rng(2)
    width, height = rng.uniform(2, 30, 200), rng.uniform(2, 30, 200)
    counts = np.asarray(dies_of(width, height))
    assert [int(c) for c in counts] == [int(dies_of(float(w), float(h))) for w, h in zip(width, height, strict=True)]
    assert all(c <= dies_per_wafer(float(w), float(h)) for c, w, h in zip(counts, width, height, strict=True))  # sides are rounded up


# ---- money over time, break-even, chance


@settings(max_examples=60, deadline=None)
@given(st.floats(0.0, 0.3), st.floats(1.0, 30.0))
def test_capital_recovery_repays_the_loan(interest, life):
    years = int(life)
    payment = float(capital_recovery_factor(interest, years))
    owed = 1.0
    for _ in range(years):
        owed = owed * (1 + interest) - payment
    assert abs(owed) < 1e-9 * (1 + interest) ** years


@settings(max_examples=40, deadline=None)
@given(parts, fleets, inputs, st.floats(0.1, 20.0))
def test_at_break_even_both_bills_are_equal(part, fleet, x, usd_per_hour):
    own = bill_of(part, fleet, x)
    rent = quoted_rent_bill("rented", Range(usd_per_hour * 0.9, usd_per_hour, usd_per_hour * 1.1), fleet.n_chips, fleet, x)
    even = break_even(own, rent, fleet.n_chips)
    assert even.tokens_per_year.low <= even.tokens_per_year.mid <= even.tokens_per_year.high
    if np.isfinite(even.tokens_per_year.mid):
        scale = even.tokens_per_year.mid / own.tokens_per_year
        again = bill_of(part, replace_volume(fleet, scale), x)
        assert isclose(again.usd_per_mtok.mid, rent.usd_per_mtok.mid, rel_tol=1e-6)
        assert isclose(even.n_chips.mid, fleet.n_chips * scale, rel_tol=1e-9)
    else:
        assert own.usd_per_year.mid - nre_per_year(own) >= rent.usd_per_year.mid * (1 - 1e-9)


def replace_volume(fleet: FleetDemand, scale: float) -> FleetDemand:
    return replace(
        fleet,
        n_chips=fleet.n_chips * scale,
        prefill_tokens_per_year=fleet.prefill_tokens_per_year * scale,
        decode_tokens_per_year=fleet.decode_tokens_per_year * scale,
    )


def nre_per_year(bill: Bill) -> float:
    return sum(line.usd_per_year.mid for line in bill.lines if line.when == "once")


@pytest.fixture(scope="module")
def case() -> Case:
    fleet = FleetDemand(20_000, 450.0, 700.0, 1e14, 2e13, 0.4)
    part = Part(24.0, 30.0, 1.0, 144.0, 4.0, 60.0, 4.0, 7.0)
    return Case(part, fleet, cost_inputs("3nm", "hbm3e", "interposer"), Range(1.0, 2.0, 4.0), 30_000, speed_ratio=Range(0.8, 1.0, 1.1))


def test_same_seed_same_numbers(case):
    assert spread(case, n_samples=256, seed=7) == spread(case, n_samples=256, seed=7)
    assert spread(case, n_samples=256, seed=7) != spread(case, n_samples=256, seed=8)


def test_samples_lie_inside_the_envelope_and_chance_follows_rent(case):
    sampled = spread(case, n_samples=1024)
    bill = bill_of(case.part, case.fleet, case.inputs)
    assert bill.usd_per_mtok.low < sampled.own_usd_per_mtok[0] < sampled.own_usd_per_mtok[-1] < bill.usd_per_mtok.high / 0.8
    chances = [
        spread(replace(case, rent_usd_per_chip_hour=Range.exact(usd)), n_samples=512).own_is_cheaper_ratio
        for usd in (0.01, 1.0, 2.0, 100.0)
    ]
    assert chances == sorted(chances)
    assert (chances[0], chances[-1]) == (0.0, 1.0)
    assert spread(replace(case, rent_usd_per_chip_hour=None), n_samples=64).own_is_cheaper_ratio is None


def test_sampling_agrees_with_plain_random_numbers(case):
    """The mean of one price under the two-piece distribution has a closed form: (low + 2 mid + high) / 4."""
    only = replace(case, speed_ratio=Range.exact(1.0), inputs=case.inputs.replace(**{n: getattr(case.inputs.ranges, n).mid for n in NAMES}))
    only = replace(only, inputs=only.inputs.replace(network_usd=Range(1000.0, 2000.0, 9000.0)))
    swing = {s.name: s for s in tornado(only)}["network_usd"]
    middle = spread(only, n_samples=1024).own_usd_per_mtok[2]
    assert isclose(middle, swing.at_mid_usd_per_mtok, rel_tol=1e-3)  # the median of the two-piece distribution is the middle
    assert [s.name for s in tornado(only)] == ["network_usd"]
    assert HOURS_PER_YEAR == 8760
