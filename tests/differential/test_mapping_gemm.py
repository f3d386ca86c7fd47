"""The exact mapper against brute force that walks every loop nest of every tiling."""

from __future__ import annotations

from itertools import pairwise, permutations, product
from math import ceil, inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabless.chip.chip import Mesh, Mxu
from fabless.core.errors import InfeasibleError
from fabless.mapping.gemm import Products, compute_cycles, distinct_parts, least_traffic
from fabless.mapping.tiling import best_tiling


def tile_sizes(total, granule):
    return sorted({min(i * granule, total) for i in range(1, ceil(total / granule) + 1)})


def walk(order, trips, bytes_of, spill_bytes):
    """Move one operand tile at a time through the loops; return the bytes of inputs and weights, and those of spilled partial sums."""
    axes = {"a": "mk", "b": "nk", "c": "mn"}
    held = dict.fromkeys(axes)
    moved, spilled, done = 0.0, 0.0, {}
    for point in product(*(range(trips[x]) for x in order)):
        at = dict(zip(order, point, strict=True))
        for operand in "ab":
            tile = tuple(at[x] for x in axes[operand])
            if tile != held[operand]:
                moved += bytes_of(operand, tile)
                held[operand] = tile
        tile = tuple(at[x] for x in axes["c"])
        if tile != held["c"]:
            if held["c"] is not None and done[held["c"]] < trips["k"]:
                spilled += spill_bytes(held["c"])
            if 0 < done.get(tile, 0) < trips["k"]:
                spilled += spill_bytes(tile)
            held["c"] = tile
        done[tile] = done.get(tile, 0) + 1
    return moved, spilled


def brute_force(shape, sizes, capacity, granules, *, resident):
    m, n, k = shape
    a, b, c = sizes
    best = inf
    choices = product((False, True), repeat=2) if resident else [(False, False)]
    for free_a, free_c in choices:
        room = capacity - free_a * m * k * a - free_c * m * n * c
        for tm, tn, tk in product(tile_sizes(m, 1), tile_sizes(n, granules[0]), tile_sizes(k, granules[1])):
            trips = {"m": ceil(m / tm), "n": ceil(n / tn), "k": ceil(k / tk)}
            a_buffers = 0 if free_a else 1 + (trips["m"] * trips["k"] > 1)
            b_buffers = 1 + (trips["n"] * trips["k"] > 1)
            if a_buffers * tm * tk * a + b_buffers * tn * tk * b + 4 * tm * tn > room:
                continue
            tile = {"m": tm, "n": tn, "k": tk}
            whole = {"m": m, "n": n, "k": k}

            def extent(axis, i, tile=tile, whole=whole):
                return min(tile[axis], whole[axis] - i * tile[axis])

            def operand_bytes(operand, at, extent=extent, free_a=free_a):
                first, second = ("m", "k") if operand == "a" else ("n", "k")
                size = (0 if free_a else a) if operand == "a" else b
                return extent(first, at[0]) * extent(second, at[1]) * size

            def sums_bytes(at, extent=extent):
                return 4 * extent("m", at[0]) * extent("n", at[1])

            for order in permutations("mnk"):
                moved, spilled = walk(order, trips, operand_bytes, sums_bytes)
                if free_c and spilled:
                    continue
                best = min(best, moved + spilled + (0 if free_c else m * n * c))
    return best


def one(m, n, k, sizes, batch=1.0):
    return Products(*(np.array([float(x)]) for x in (m, n, k, batch, *sizes)))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7)), st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 0.5, 4), (1, 4, 2)]),
    st.integers(6, 260), st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2), (3, 2)]), st.booleans(),
)  # fmt: skip
def test_least_traffic_equals_brute_force(shape, sizes, capacity, granules, resident):
    found = least_traffic(one(*shape, sizes), capacity, *granules, resident=resident)[0]
    assert found == brute_force(shape, sizes, capacity, granules, resident=resident)


def partitions(n_units):
    return [(b, m, n) for b, m, n in product(range(1, n_units + 1), repeat=3) if b * m * n <= n_units]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 13), st.integers(1, 400), st.integers(1, 500), st.integers(1, 300), st.integers(1, 9))
def test_rows_of_dot_products_share_a_product_as_the_best_rectangles_would(n_units, m, n, k, batch):
    mxu = Mxu(16, 32, (("int8", 1.0),))
    blocks_n, blocks_k = ceil(n / 16), ceil(k / 32)
    best = min(ceil(batch / b) * ceil(m / pm) * ceil(blocks_n / pn) for b, pm, pn in partitions(n_units)) * blocks_k
    assert compute_cycles(mxu, n_units, one(m, n, k, (1, 1, 1), batch))[0] == best


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 400), st.integers(1, 500), st.integers(1, 300))
def test_systolic_arrays_share_weight_tiles_as_the_best_split_would(n_units, m, n, k):
    mesh = Mesh(8, 16, (("int8", 1.0),))
    tiles = ceil(k / 8) * ceil(n / 16)
    best = min(ceil(tiles / (n_units // pm)) * max(ceil(m / pm), 8) for pm in range(1, n_units + 1)) + 8 + 16 - 2
    assert compute_cycles(mesh, n_units, one(m, n, k, (1, 1, 1)))[0] == best


@given(st.integers(1, 500))
def test_distinct_parts_reach_every_number_of_parts_with_the_smallest_size(n):
    sizes = distinct_parts(n)
    every = {ceil(n / s): s for s in range(n, 0, -1)}  # the smallest size of each number of parts wins
    assert {ceil(n / s): s for s in sizes} == every


def test_more_memory_never_moves_more():
    p = one(96, 640, 384, (1, 1, 2))
    moved = [least_traffic(p, c, 32, 32, resident=False)[0] for c in np.geomspace(8e3, 1e6, 60)]
    assert all(b <= a for a, b in pairwise(moved))
    assert moved[-1] == 96 * 384 + 640 * 384 + 96 * 640 * 2


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 700), st.integers(1, 700)), st.sampled_from([(1, 1, 1), (2, 2, 2), (2, 0.5, 4)]),
    st.floats(2.5, 6.5), st.sampled_from([(1, 1), (32, 32), (128, 64)]), st.booleans(),
)  # fmt: skip
def test_the_tiling_that_is_spelled_out_is_the_one_that_is_priced(shape, sizes, magnitude, granules, resident):
    capacity = float(int(10**magnitude))
    priced = least_traffic(one(*shape, sizes), capacity, *granules, resident=resident)[0]
    if not np.isfinite(priced):
        with pytest.raises(InfeasibleError, match="its smallest tiles"):
            best_tiling(shape, sizes, capacity, granules, resident=resident)
        return
    assert best_tiling(shape, sizes, capacity, granules, resident=resident).dram_bytes == pytest.approx(priced, rel=1e-12)


def test_a_tiling_reads_as_one_line():
    tiling = best_tiling((512, 14336, 4096), (2, 2, 2), 16e6, (128, 128), resident=True)
    assert str(tiling) == f"{tiling.m}x{tiling.n}x{tiling.k} {'>'.join(tiling.order)} keeps A"
