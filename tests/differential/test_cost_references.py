"""Costs against published worked examples and other tools' outputs, none of which fabless wrote."""

from __future__ import annotations

import csv
from math import inf, isclose, pi, sqrt
from pathlib import Path

import numpy as np
import pytest

from fabless.chip.catalogue import load_chip
from fabless.core.ranges import Range
from fabless.cost.die import dies_per_wafer, good_die_usd, harvested_yield_ratio, yield_ratio
from fabless.cost.inputs import cost_inputs
from fabless.cost.package import Assembly, Part
from fabless.cost.price import ChipCost, FleetDemand, bought_chip, chip_cost, part_cost, price, quoted_rent_bill
from fabless.cost.rent import rental
from fabless.cost.system import capital_recovery_factor
from fabless.silicon.harden import harden

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data" / "cost"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the reference tables lie beside the repository, not in it")
HYPER = cost_inputs("4nm", "hbm3", "interposer", partner=False)


def rows(name: str) -> list[dict[str, str]]:
    with (SHARED / name).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def raster_count(width: float, height: float, x0: float, y0: float, *, scribe: float = 0.1, radius: float = 147.0) -> int:
    """Count dies of a grid with a corner at (x0, y0), by looking at every die."""
    i = np.arange(-int(300 / width) - 1, int(300 / width) + 2)
    j = np.arange(-int(300 / height) - 1, int(300 / height) + 2)
    x, y = x0 + i * (width + scribe), y0 + j * (height + scribe)
    far_x, far_y = np.maximum(abs(x), abs(x + width)), np.maximum(abs(y), abs(y + height))
    return int(((far_x[:, None] ** 2 + far_y[None] ** 2) <= radius**2).sum())


# ---- dies per wafer


@shared
def test_dies_per_wafer_equal_the_exact_grid_column():
    for row in rows("ref/dies_per_wafer_compare.csv"):
        width, height = float(row["die_w_mm"]), float(row["die_h_mm"])
        mine, raster = dies_per_wafer(width, height, scribe_mm=0.1, edge_mm=3.0, notch_mm=0.0), int(row["exact_grid_max_edge3_scribe0.1"])
        if (width, height) == (10.0, 10.0):
            # That column is the best of 240 x 240 grid positions and misses the scribe cross at the wafer's centre, which holds 616 (next test).
            assert (mine, raster) == (616, 613)
        else:
            assert mine == raster
        assert mine <= float(row["rows_free_upper_bound_edge3_scribe0.1"])
        assert mine >= float(row["CATCH_grid_edge3_scribe0.1"])
        assert mine >= float(row["siliconcompiler_0.38.11_edge3_scribe0.1"])


def test_616_dies_of_10_mm_exist():
    assert raster_count(10.0, 10.0, 0.05, 0.05) == 616


def test_no_raster_of_positions_beats_the_exact_count():
    rng = np.random.default_rng(5)
    for _ in range(12):
        width, height = rng.uniform(6, 33, 2)
        best = max(raster_count(width, height, x, y) for x in np.linspace(0, width + 0.1, 31) for y in np.linspace(0, height + 0.1, 31))
        assert dies_per_wafer(width, height, scribe_mm=0.1, edge_mm=3.0, notch_mm=0.0) >= best


def test_the_exact_count_is_reached_by_a_fine_raster():
    for width, height in ((26.0, 33.0), (25.0, 32.56), (20.0, 20.0)):
        fine = max(raster_count(width, height, x, y) for x in np.linspace(0, width + 0.1, 120) for y in np.linspace(0, height + 0.1, 120))
        assert dies_per_wafer(width, height, scribe_mm=0.1, edge_mm=3.0, notch_mm=0.0) == fine


@shared
def test_semianalysis_calculator_yields_and_centred_counts():
    """Its Poisson model is alpha infinite, its Seeds model alpha 1; a grid centred on the wafer never holds more than the best grid."""
    for row in rows("ref/semianalysis_die_yield_calculator.csv"):
        width, height, d0 = float(row["die_w_mm"]), float(row["die_h_mm"]), float(row["d0_per_cm2"])
        alpha = {"poisson": inf, "seeds": 1.0}.get(row["model"])
        if alpha is not None:
            assert isclose(yield_ratio(width * height, d0, alpha), float(row["fab_yield"]), rel_tol=1e-12)
        assert dies_per_wafer(width, height) >= int(row["good"]) + int(row["defective"])


@shared
def test_chiplet_cloud_die():
    golden = {r["quantity"]: float(r["value"]) for r in rows("ref/chiplet_cloud_gpt3_golden.csv") if r["quantity"]}
    good = yield_ratio(140.0, 0.1, 26.0)
    assert isclose(good, golden["die_yield_negbin_D0_0.001_alpha26"], rel_tol=1e-9)
    count = golden["dies_per_wafer_300mm_0.1mm_gap"]
    # Its 462 dies shift each row by itself, which no stepper does: one grid without an edge holds 454. The count is taken as given here.
    die_usd = good_die_usd(10000.0, count, good) * 1.01  # its test overhead of 1% of the die
    assert any(isclose(die_usd, v, rel_tol=1e-9) for v in golden.values())


# ---- Chiplet Actuary


def actuary_dies(area: float) -> float:
    """Return its count: de Vries on a 290 mm wafer with 0.2 mm added to a square die's side."""
    cell = (sqrt(area) + 0.2) ** 2
    return pi * 145**2 / cell - pi * 290 / sqrt(2 * cell)


ACTUARY_PROCESS = {  # wafer USD, defects per cm2 (parameter.ini); alpha 10
    "3": (30000, 0.20),
    "5": (16988, 0.11),
    "7": (9346, 0.09),
    "10": (5992, 0.08),
    "14": (3984, 0.08),
    "28": (2891, 0.07),
}


@shared
def test_chiplet_actuary_recurring_costs():
    """All 210 designs: raw and good dies, carrier, substrate and losses, from its inputs through our yield and assembly formulas.

    Its geometry is set here: substrate 4 times what it carries at 0.005 USD/mm2 times a layer factor, carrier 1.1 (interposer) or 1.2
    (fan-out) times the dies, bumps 0.005 USD/mm2; on carriers it counts the bumps of two dies, whatever their number.
    """
    seen = 0
    for row in rows("ref/chiplet_actuary_outputs.csv"):
        if row["node"] not in ACTUARY_PROCESS:
            continue
        wafer_usd, d0 = ACTUARY_PROCESS[row["node"]]
        n, area, kind = int(row["n_chiplets"]), float(row["chip_area_mm2"]), row["kind"][-2:]
        good = yield_ratio(area, d0, 10.0)
        kgd = float(good_die_usd(wafer_usd, actuary_dies(area), good))
        total = n * area
        if kind == "OS":
            side = total * 4
            factor = 1.0 if n == 1 else 2.0 if side > 900 else 1.75 if side > 289 else 1.0
            bumps, carrier, substrate = total * 0.005, 0.0, side * 0.005 * factor
            ratios = (1.0, 1.0, 0.99**n)
        else:
            scale, price_usd, defects, alpha, bond = (1.2, 1200, 0.05, 3.0, 0.98) if kind == "FO" else (1.1, 1937, 0.06, 6.0, 0.95)
            body = total * scale
            bumps = area * 2 * 0.005
            carrier, substrate = price_usd / actuary_dies(body) + body * 0.005, body * 4 * 0.005
            ratios = (yield_ratio(body, defects, alpha), bond**n, 0.99)
        assert isclose(kgd, float(row["kgd"]), rel_tol=1e-12)
        assert isclose(good, float(row["die_yield"]), rel_tol=1e-12)
        assert isclose(carrier + substrate, float(row["re_raw_package"]), rel_tol=1e-9)
        made = Assembly(n * kgd, 0.0, bumps, carrier, substrate, *ratios)
        assert isclose(made.good_dies_usd + made.good_package_usd, float(row["re_total"]), rel_tol=1e-9), row
        seen += 1
    assert seen == 210


# ---- services, R01 to R10, R42: dollars over tokens


def service(prefill: float, decode: float, n: float, time: float = 0.5) -> FleetDemand:
    return FleetDemand(n, 500.0, 700.0, prefill, decode, time)


def test_deepseek_day():
    n = 226.75 * 8
    fleet = service(608e9 * 365, 168e9 * 365, n, 95.5 / (95.5 + 131.4))
    bill = quoted_rent_bill("H800", Range.exact(2.0), n, fleet, HYPER)
    assert isclose(bill.usd_per_year.mid / 365, 87072, rel_tol=1e-12)
    assert isclose(bill.usd_per_mtok.mid, 0.112, rel_tol=0.01)
    assert isclose(bill.decode_usd_per_mtok.mid, 0.300, rel_tol=0.01)
    assert isclose(bill.prefill_usd_per_mtok.mid, 0.0603, rel_tol=0.01)


@pytest.mark.parametrize(
    ("name", "usd_per_hour", "tokens_per_s_per_chip", "expected", "tolerance"),
    [
        ("R07 A100, GPT-3 at 18 tokens/s", 1.10, 18.0, 16.98, 1e-3),
        ("R08 64 TPU v4, PaLM-540B, 64 x 512 tokens in 6.0 s", 1.45, 512 / 6.0, 4.72, 1e-3),
        ("R42 GB200 at 60% of 5 PFLOP/s, 1T active", 3.2, 0.6 * 5e15 / 2e12, 0.59, 2e-2),
    ],
)
def test_usd_per_mtok_of_published_services(name, usd_per_hour, tokens_per_s_per_chip, expected, tolerance):
    fleet = service(0.0, tokens_per_s_per_chip * 3600 * 8760 * 64, 64, 0.0)
    bill = quoted_rent_bill(name, Range.exact(usd_per_hour), 64, fleet, HYPER)
    assert isclose(bill.usd_per_mtok.mid, expected, rel_tol=tolerance)


def test_chatgpt_2023_per_day():
    bill = quoted_rent_bill("A100", Range.exact(1.0), 28936, service(1.0, 1.0, 28936), HYPER)
    assert isclose(bill.usd_per_year.mid / 365, 694444, rel_tol=0.005)


# ---- capital, R17 to R21


@pytest.mark.parametrize(("it_life", "expected"), [(3, 12.0), (5, 8.5), (7, 7.0)])
def test_epoch_gigawatt(it_life, expected):
    """25.1 BUSD of IT over its life and the rest of 38 over 14 years at 7%, with 0.9 a year to run: 8.5, 12 and 7 BUSD a year."""
    yearly = 25.1 * capital_recovery_factor(0.07, it_life) + (38 - 25.1) * capital_recovery_factor(0.07, 14) + 0.9
    assert isclose(yearly, expected, rel_tol=0.02)


def test_bernstein_gigawatt_of_racks():
    """5.9 MUSD a rack of 168.6 kW, 3.4 compute and 2.5 infrastructure, is 35 BUSD a GW."""
    chips, rack_w = 72, 168.6e3
    inputs = HYPER.replace(
        host_usd=3.4e6 / chips, nic_usd=0, power_usd_per_w=0, network_usd=0, host_power_ratio=0, facility_usd_per_w=2.5e6 / rack_w
    )
    fleet = FleetDemand(chips, 1.0, rack_w / chips, 1.0, 1.0, 0.5)
    free = part_free_chip()
    assert isclose(price(fleet, free, inputs).capex_usd.mid * 1e9 / rack_w, 35e9, rel_tol=0.01)


def part_free_chip():
    return ChipCost("priced inside the server", (), Range.exact(0.0), Range.exact(0.0), ())


def test_bernstein_partner_margin():
    """A GPU of 39% of 5.9 MUSD with 0.59 of cost, made as an ASIC at 50% margin, saves 19% of the rack."""
    made = part_cost("asic", Part(20.0, 20.0, 1.0, 0.0, 0.0), cost_inputs("3nm", "none", "organic").replace(partner_margin_ratio=0.5))
    asic = 0.59 * made.price_usd.mid / made.cost_usd.mid
    assert isclose((0.39 * 5.9 - asic) / 5.9, 0.19, abs_tol=0.002)


def test_colossus_1():
    """100,000 H100 with servers, network and building: 4.7 BUSD and 181 MW (Epoch), from the tables alone."""
    chip = bought_chip("H100")
    assert chip is not None
    bill = price(FleetDemand(100_000, 500.0, 700.0, 1.0, 1.0, 0.5), chip, HYPER)
    assert isclose(bill.capex_usd.mid, 4.7e9, rel_tol=0.10)


@pytest.mark.parametrize(("chip", "tdp_w"), [("H100", 700), ("H200", 700), ("B200", 1000), ("GB200", 1200), ("MI300X", 750)])
def test_owning_a_bought_chip_costs_what_semianalysis_says(chip, tdp_w):
    """A second opinion, not a reproduction: the hourly cost of a hyperscaler must lie inside our envelope and within 25% of its middle."""
    cost, theirs = bought_chip(chip), rental(chip, "own_hyperscaler")
    assert cost is not None
    assert theirs is not None
    ours = price(FleetDemand(1, 0.7 * tdp_w, tdp_w, 1.0, 1.0, 0.5), cost, HYPER).usd_per_year
    assert ours.low / 8760 < theirs.mid < ours.high / 8760
    assert isclose(ours.mid / 8760, theirs.mid, rel_tol=0.25)


# ---- chips, R22, R23, R26


@pytest.mark.parametrize("core_share", [0.4, 0.55, 0.7])  # no part of either die's area is published; both bars hold over this span
def test_h100_bill_of_materials(core_share):
    """814 mm2 on 4N, 132 of 144 SMs enabled, 80 GB on five of six sites: 3,320 USD (siliconanalysts)."""
    part = Part(25.0, 32.56, 1.0, 80.0, 6.0, 132.0, 12.0, 814 * core_share / 144)
    cost = part_cost("H100", part, cost_inputs("TSMC 4N", "hbm3", "interposer"))
    assert isclose(cost.cost_usd.mid, 3320, rel_tol=0.15)


def test_h100_bill_by_part():
    """At the middle of that span every published part lies in our envelope."""
    part = Part(25.0, 32.56, 1.0, 80.0, 6.0, 132.0, 12.0, 814 * 0.55 / 144)
    by_group = {line.group: line.usd for line in part_cost("H100", part, cost_inputs("TSMC 4N", "hbm3", "interposer")).lines}
    for group, published in (("silicon", 300), ("memory", 1350), ("package", 750), ("test", 920)):
        assert by_group[group].low <= published <= by_group[group].high


@pytest.mark.parametrize("core_share", [0.4, 0.55, 0.7])
def test_b200_bill_of_materials(core_share):
    """Two dies of 800 mm2 on 4NP, 148 of 160 SMs, 192 GB in eight stacks: 6,400 USD (siliconanalysts)."""
    part = Part(25.0, 32.0, 2.0, 192.0, 8.0, 74.0, 6.0, 800 * core_share / 80)
    cost = part_cost("B200", part, cost_inputs("TSMC 4NP", "hbm3e", "interposer"))
    assert isclose(cost.cost_usd.mid, 6400, rel_tol=0.15)


def test_shares_of_chip_cost_in_late_2025():
    """Epoch: memory 63, packaging 15, logic 13, the rest 10% of what chips made in 4Q25 cost; three in four were B300 or B200 class.

    NVIDIA's units of that quarter (Epoch): 743,725 B300, 417,621 B200, 23,384 H100. Bar: 4 points (memory itself is given as 60 to 67).
    """
    parts = (
        (743_725, "hbm3e", Part(25.0, 32.0, 2.0, 288.0, 8.0, 74.0, 6.0, 5.5)),
        (417_621, "hbm3e", Part(25.0, 32.0, 2.0, 192.0, 8.0, 74.0, 6.0, 5.5)),
        (23_384, "hbm3", Part(25.0, 32.56, 1.0, 80.0, 6.0, 132.0, 12.0, 3.1)),
    )
    spent: dict[str, float] = {}
    for units, memory, part in parts:
        for line in part_cost("chip", part, cost_inputs("4nm", memory, "interposer")).lines:
            spent[line.group] = spent.get(line.group, 0.0) + units * line.usd.mid
    total = sum(usd for group, usd in spent.items() if group != "margin")
    for group, percent in (("memory", 63), ("package", 15), ("silicon", 13), ("test", 10)):
        assert abs(100 * spent[group] / total - percent) < 4, (group, spent[group] / total)


def test_good_dies_of_an_h200_wafer():
    assert isclose(dies_per_wafer(25.0, 32.56) * 0.85, 55, rel_tol=0.02)  # 66 x 0.85 = 56.1; 64 on the squarer grid gives 54.4


@pytest.mark.parametrize(
    ("area_bound", "memory_gb", "stacks", "interval"), [(400, 8, 1, (700, 1100)), (600, 32, 4, (1100, 1500))], ids=("v4i", "v4")
)
def test_tpu_cost_overlaps_epochs_interval(area_bound, memory_gb, stacks, interval):
    """Only bounds of the areas are published (ISCA 2021 and 2023: below 400 and 600 mm2), so the envelope at the bound must meet the 90% interval."""
    part = Part(sqrt(area_bound), sqrt(area_bound), 1.0, memory_gb, stacks)
    cost = part_cost("tpu", part, cost_inputs("7nm", "hbm2", "interposer")).cost_usd
    assert cost.low <= interval[1]
    assert cost.high >= interval[0]


@pytest.mark.parametrize(
    ("chip", "interval"), [("TPU v5e", (950, 1400)), ("TPU v5p", (2300, 2900)), ("TPU v6e", (1600, 1900)), ("TPU v7", (4600, 5500))]
)
def test_tpu_v5e_to_v7_cost_overlaps_epochs_interval(chip, interval):
    """No area of these dies is published, so `harden` supplies it; the envelope must bracket the middle of Epoch's 90% interval."""
    described = load_chip(chip)
    cost = chip_cost(harden(described), described).cost_usd
    assert cost.low <= sum(interval) / 2 <= cost.high


def test_llmcompass_ga100():
    """Its die at 9,346 USD a wafer by de Vries' count and 80 GB at 7 USD/GB: 709.97 USD."""
    area = 826.76
    count = pi * 150**2 / area - pi * 300 / sqrt(2 * area)
    assert isclose(good_die_usd(9346.0, count, 1.0) + 80 * 7, 709.97, abs_tol=0.02)


# ---- harvesting against chance itself


@pytest.mark.parametrize(
    "die", [(132, 12, 3.3, 814.0, 0.1, 3.0), (15, 1, 20.0, 500.0, 0.3, 2.0), (60, 4, 5.0, 400.0, 0.2, 10.0)], ids=("H100", "coarse", "fine")
)
def test_harvested_yield_against_monte_carlo(die):
    """A million dies: draw the defect density from its gamma distribution, defects per core from Poisson, count."""
    n, spare, core, area, d0, alpha = die
    rng, dies = np.random.default_rng(11), 1_000_000
    density = rng.gamma(alpha, d0 / 100 / alpha, dies)
    bad = rng.binomial(n + spare, -np.expm1(-density * core))
    other_good = rng.random(dies) < np.exp(-density * (area - core * (n + spare)))
    share = float(np.mean((bad <= spare) & other_good))
    exact = harvested_yield_ratio(area, core, n_cores=n, n_spare=spare, d0_per_cm2=d0, alpha=alpha)
    error = sqrt(exact * (1 - exact) / dies)
    assert abs(share - exact) < 5 * error  # five standard errors of the sample


def test_harvested_yield_against_the_alternating_sum():
    """With few spares the mixture has a closed form, an alternating sum of yields of the areas that must be good."""
    from math import comb

    die, core, n, spare, d0, alpha = 500.0, 6.0, 40, 2, 0.15, 2.5
    total, other = n + spare, 500.0 - 6.0 * 42
    closed = sum(
        comb(total, k) * sum((-1) ** i * comb(k, i) * yield_ratio(other + core * (total - k + i), d0, alpha) for i in range(k + 1))
        for k in range(spare + 1)
    )
    assert isclose(harvested_yield_ratio(die, core, n_cores=n, n_spare=spare, d0_per_cm2=d0, alpha=alpha), closed, rel_tol=1e-9)
