"""Collectives: closed forms against a step-by-step simulation of the algorithms they stand for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabless.chip.chip import Link
from fabless.sim.calibration import IDEAL
from fabless.sim.collectives import bisection_ratio, collective_s, hops, wire_bytes

RING = Link("ring", 2, 100e9, 2e-6, 1024)


def ring_reduce_scatter(values):
    """Run the ring on lists of chunks; return (chunks sent by one chip, steps, result)."""
    p = len(values)
    data = [list(v) for v in values]
    sent = 0
    for step in range(p - 1):
        moving = [(i, (i - step) % p, data[i][(i - step) % p]) for i in range(p)]
        for i, chunk, value in moving:
            data[(i + 1) % p][chunk] += value
        sent += 1
    return sent, p - 1, [data[i][(i + 1) % p] for i in range(p)]


@given(st.integers(2, 16))
def test_ring_reduce_scatter_moves_what_the_closed_form_says(p):
    sent, steps, result = ring_reduce_scatter([[10**i * (j + 1) for j in range(p)] for i in range(p)])
    assert result == [sum(10**i for i in range(p)) * ((c + 1) % p + 1) for c in range(p)]
    assert sent / p == wire_bytes("reduce_scatter", 1.0, p)
    assert steps == hops("reduce_scatter", p, "ring")
    assert collective_s("reduce_scatter", 8e6, p, RING, IDEAL) == pytest.approx(steps * 2e-6 + 8e6 * sent / p / 100e9)


@given(st.integers(2, 64), st.sampled_from(["ring", "switch", "mesh", "torus2d", "torus3d"]))
def test_all_reduce_is_reduce_scatter_then_all_gather(p, topology):
    link = replace(RING, topology=topology)
    both = collective_s("reduce_scatter", 1e6, p, link, IDEAL) + collective_s("all_gather", 1e6, p, link, IDEAL)
    assert collective_s("all_reduce", 1e6, p, link, IDEAL) == pytest.approx(both, rel=1e-12)


@given(st.integers(2, 12))
def test_all_to_all_on_a_ring_is_bound_by_its_busiest_link(p):
    """Route every pair the shorter way (both ways when they tie) and count what the busiest directed link carries."""
    load = {}
    for source in range(p):
        for step in range(1, p):
            ways = [1] if step < p - step else [-1] if step > p - step else [1, -1]
            for way in ways:
                for hop in range(min(step, p - step)):
                    link = ((source + way * hop) % p, way)
                    load[link] = load.get(link, 0.0) + 1 / p / len(ways)
    per_link = 0.5  # half of a chip's bandwidth in each direction
    busiest = max(load.values()) / per_link
    modelled = wire_bytes("all_to_all", 1.0, p) * bisection_ratio("all_to_all", p, "ring")
    assert modelled <= busiest * (1 + 1e-9)
    assert busiest <= modelled * 1.35 + 1 / p


def test_one_chip_exchanges_nothing_and_a_lone_link_cannot_leave_its_domain():
    assert collective_s("all_reduce", 1e6, 1, RING, IDEAL) == 0
    alone = replace(RING, domain_chips=4)
    assert collective_s("all_reduce", 1e6, 8, alone, IDEAL) == float("inf")
    wide = replace(alone, network_bandwidth_bytes_per_s=50e9)
    assert collective_s("all_reduce", 1e6, 8, wide, IDEAL) > collective_s("all_reduce", 1e6, 4, wide, IDEAL)
