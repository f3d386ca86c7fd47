"""One full bill, line by line, as last reviewed. After a change that is meant: `python tests/golden/test_cost_bill.py`, and read the diff."""

from __future__ import annotations

from pathlib import Path

from fabless.cost.inputs import cost_inputs
from fabless.cost.package import Part
from fabless.cost.price import FleetDemand, part_cost, price

GOLDEN = Path(__file__).with_name("cost_bill.txt")


def bill_text() -> str:
    """A 3 nm die of 720 mm2 with four spare cores and four HBM3E stacks, 20,000 of them in Texas."""
    inputs = cost_inputs("3nm", "hbm3e", "interposer", region="texas")
    cost = part_cost("chip", Part(24.0, 30.0, 1.0, 144.0, 4.0, 60.0, 4.0, 7.0), inputs)
    bill = price(FleetDemand(20_000, 450.0, 700.0, 1e14, 2e13, 0.4), cost, inputs)
    rows = [("per chip", line.group, line.usd) for line in cost.lines]
    rows += [(line.when, line.label, line.usd) for line in bill.lines]
    rows += [("per year", line.label, line.usd_per_year) for line in bill.lines]
    names = (
        "usd_per_year",
        "usd_per_mtok",
        "prefill_usd_per_mtok",
        "decode_usd_per_mtok",
        "j_per_token",
        "tokens_per_s_per_mw",
        "nre_usd",
        "capex_usd",
    )
    rows += [("total", name, getattr(bill, name)) for name in names]
    return "".join(f"{when:9} {label:34} {r.low:13.6g} {r.mid:13.6g} {r.high:13.6g}\n" for when, label, r in rows)


def test_the_bill_has_not_moved():
    assert bill_text() == GOLDEN.read_text("utf-8")


if __name__ == "__main__":
    GOLDEN.write_text(bill_text(), "utf-8")
