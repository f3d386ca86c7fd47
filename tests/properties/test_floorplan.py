"""The floorplan is to scale: whatever the blocks, their rectangles fill the die without overlap and each block has its share."""

from math import isclose

from hypothesis import given, settings
from hypothesis import strategies as st

from fabless.core.ranges import Range
from fabless.report.floorplan import draw, floorplan
from fabless.silicon.silicon import Block, EnergyTable, Silicon

KINDS = ("matrix", "vector", "sram", "noc", "dram_phy", "link_phy", "control", "other")
NONE = Range.exact(0.0)


def silicon(blocks, width_mm, height_mm, n_dies=1):
    area = width_mm * height_mm
    total = sum(b[2] for b in blocks)
    return Silicon(
        chip_name="x<y>&",
        process="5nm",
        clock_hz=1e9,
        blocks=tuple(
            Block(f"{kind}-{i}", count, share / total * area * n_dies, 0.0, kind) for i, (kind, count, share) in enumerate(blocks)
        ),
        die_area_mm2=area,
        die_width_mm=width_mm,
        die_height_mm=height_mm,
        n_dies=n_dies,
        area_error_ratio=0.2,
        leakage_w=0.0,
        idle_w=0.0,
        peak_w=0.0,
        tdp_w=0.0,
        energy=EnergyTable((), NONE, NONE, NONE, NONE, NONE),
    )


@st.composite
def silicons(draw):
    """Draw dies of any shape with blocks as chips have them: cores repeat, all by the same count or each by its own."""
    cores = draw(st.integers(1, 300))
    counts = st.one_of(st.just(1), st.just(cores), st.integers(1, 40))
    block = st.tuples(st.sampled_from(KINDS), counts, st.floats(0.01, 10.0))
    blocks = draw(st.lists(block, min_size=1, max_size=9))
    return silicon(blocks, draw(st.floats(1.0, 33.0)), draw(st.floats(1.0, 33.0)), draw(st.integers(1, 2)))


@settings(max_examples=150, deadline=None)
@given(silicons())
def test_areas_are_shares_of_the_die(s):
    drawn = floorplan(s)
    assert isclose(sum(r.area_mm2 for r in drawn), s.die_area_mm2, rel_tol=1e-9)  # some hundred roundings of 2^-53 each
    for block in s.blocks:
        area = sum(r.area_mm2 for r in drawn if r.name == block.name)
        assert isclose(area, block.area_mm2 / s.n_dies, rel_tol=1e-9), block


@settings(max_examples=150, deadline=None)
@given(silicons())
def test_rectangles_lie_inside_the_die_and_apart(s):
    drawn = floorplan(s)
    slack = 1e-9 * max(s.die_width_mm, s.die_height_mm)  # corners are sums of some hundred rounded widths
    for r in drawn:
        assert -slack <= r.x_mm
        assert r.x_mm + r.width_mm <= s.die_width_mm + slack
        assert -slack <= r.y_mm
        assert r.y_mm + r.height_mm <= s.die_height_mm + slack
    # Sweep from left to right: those that share a column of the die must not share a row.
    active = []
    for r in sorted(drawn, key=lambda r: r.x_mm):
        active = [a for a in active if a.x_mm + a.width_mm > r.x_mm + slack]
        for a in active:
            assert a.y_mm + a.height_mm <= r.y_mm + slack or r.y_mm + r.height_mm <= a.y_mm + slack, (a, r)
        active.append(r)


@settings(max_examples=50, deadline=None)
@given(silicons())
def test_the_same_silicon_is_drawn_the_same_and_escaped(s):
    svg = draw(s)
    assert svg == draw(s)
    assert "x&lt;y&gt;&amp;" in svg
    assert svg.count("<rect") == len(floorplan(s)) + 1


def test_many_copies_are_one_field():
    s = silicon([("matrix", 5000, 3.0), ("sram", 5000, 1.0), ("noc", 1, 1.0)], 20.0, 20.0)
    drawn = floorplan(s)
    assert len(drawn) < 10
    assert isclose(sum(r.area_mm2 for r in drawn if r.kind == "matrix"), 240.0, rel_tol=1e-9)
