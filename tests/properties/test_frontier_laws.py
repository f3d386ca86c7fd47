"""Laws of the search that hold for any study: a wider choice is never worse, a tighter limit never better."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabless.core.errors import InfeasibleError
from fabless.core.ranges import Range
from fabless.explore.search import design
from fabless.explore.study import OBJECTIVES, Weights, read_study

ROOT = Path(__file__).parents[2]
WHOLE = {"process": ("16nm", "7nm"), "clock_hz": (6e8, 1e9), "cores": (4, 8), "rows": (32, 64, 128)}


def small():
    study = read_study(ROOT / "examples/edge.toml")
    space = replace(study.space, **WHOLE, scratchpad_bytes=(2.0**17,), vector_lanes=(16,))
    return replace(study, space=space, batches=(1, 4, 16), compare=())


def found(study):
    with ThreadPoolExecutor(1) as executor:
        return design(study, executor=executor)


@pytest.fixture(scope="module")
def whole():
    return found(small())


subsets = st.fixed_dictionaries({axis: st.sets(st.sampled_from(values), min_size=1) for axis, values in WHOLE.items()})


@settings(max_examples=12, deadline=None)
@given(subsets)
def test_a_smaller_space_is_never_better_and_its_front_is_covered(whole, subset):
    study = small()
    space = replace(study.space, **{axis: tuple(v for v in WHOLE[axis] if v in chosen) for axis, chosen in subset.items()})
    try:
        part = found(replace(study, space=space))
    except InfeasibleError:
        return
    assert part.columns["score"][part.best] >= whole.columns["score"][whole.best]
    for row in part.front:
        ours = np.array([part.columns[name][row] for name in OBJECTIVES])
        signs = np.array([1, -1, 1, 1])
        front = np.stack([whole.columns[name][whole.front] for name in OBJECTIVES], axis=1)
        assert (front * signs <= ours * signs).all(axis=1).any()  # some point of the whole front is nowhere worse


@settings(max_examples=12, deadline=None)
@given(st.floats(0.5, 1.0), st.floats(0.5, 1.0), st.floats(0.5, 1.0))
def test_tighter_limits_are_never_better(whole, tpot, power, price):
    study = small()
    limits = replace(study.limits, chip_w=study.limits.chip_w * power, package_usd=study.limits.package_usd * price)
    try:
        tight = found(replace(study, slo=replace(study.slo, tpot_s=study.slo.tpot_s * tpot), limits=limits))
    except InfeasibleError:
        return
    assert tight.columns["score"][tight.best] >= whole.columns["score"][whole.best]
    assert tight.counts.feasible_points <= whole.counts.feasible_points


@settings(max_examples=6, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_the_front_does_not_depend_on_the_weights_and_the_best_is_on_it(whole, weights):
    other = found(replace(small(), weights=Weights(1.0, *weights[1:])))
    for name in OBJECTIVES:
        np.testing.assert_array_equal(
            np.sort(other.columns[name][other.columns["on_front"]]), np.sort(whole.columns[name][whole.columns["on_front"]])
        )
    assert other.columns["on_front"][other.best]


def test_dearer_inputs_are_never_cheaper(whole):
    study = small()
    dearer = found(replace(study, costs=(("electricity_usd_per_kwh", Range.exact(5.0)), ("host_usd", Range.exact(1000.0)))))
    assert dearer.columns["usd_per_mtok"].min() > whole.columns["usd_per_mtok"].min()


def test_a_design_whose_nre_is_free_is_searched_too():
    free = {name: Range.exact(0.0) for name in ("design_usd", "software_usd", "masks_usd", "ip_usd")}
    result = found(replace(small(), costs=tuple(sorted(free.items()))))
    assert (result.columns["nre_usd"] == 0).all()
    assert np.isfinite(result.columns["score"]).all()
    assert all(np.isfinite(ratio) for r in result.runners_up for _, ratio in r.ratios)
