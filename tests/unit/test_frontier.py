"""The exact front: equal to brute force, ties kept."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fabless.explore.frontier import non_dominated


def brute_force(loss):
    return np.array([not any((other <= row).all() and (other < row).any() for other in loss) for row in loss], dtype=bool)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 60), st.integers(1, 4), st.integers(2, 8), st.integers(1, 16), st.integers(0, 2**32 - 1))
def test_front_equals_brute_force(n, k, levels, block, seed):
    loss = np.random.default_rng(seed).integers(0, levels, (n, k)).astype(float)  # few levels: ties and duplicates abound
    np.testing.assert_array_equal(non_dominated(loss, block), brute_force(loss))


def test_equal_points_are_both_kept_and_order_does_not_matter():
    loss = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [2.0, 2.0]])
    assert non_dominated(loss).tolist() == [True, True, True, False]
    order = [3, 1, 0, 2]
    assert non_dominated(loss[order]).tolist() == [False, True, True, True]


def test_a_large_front_is_found_over_many_blocks():
    rng = np.random.default_rng(0)
    loss = rng.random((3000, 3))
    mask = non_dominated(loss, block=64)
    front = loss[mask]
    for row in loss[~mask]:
        assert ((front <= row).all(axis=1) & (front < row).any(axis=1)).any()
    assert not any(((front <= row).all(axis=1) & (front < row).any(axis=1)).any() for row in front)
