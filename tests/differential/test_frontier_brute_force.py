"""The search against a second, slow way to the same numbers: one point at a time, by the scalar verbs of each layer."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fabless.core.errors import InfeasibleError, UnsupportedError
from fabless.core.sources import table
from fabless.cost.price import FleetDemand, chip_cost, price
from fabless.cost.system import S_PER_YEAR
from fabless.explore.chunk import _service
from fabless.explore.frontier import losses, non_dominated
from fabless.explore.hardware import hardware_of
from fabless.explore.pricing import inputs_of
from fabless.explore.search import design
from fabless.explore.space import chip_of
from fabless.explore.study import OBJECTIVES
from fabless.explore.study_file import parse
from fabless.explore.traffic import normal_score
from fabless.model.load import load
from fabless.model.lower import lower
from fabless.model.step import Step
from fabless.silicon.harden import harden
from fabless.sim.roofline import estimate

ROOT = Path(__file__).parents[2]


def small_study(**limits):
    content = tomllib.loads((ROOT / "examples/chat.toml").read_text("utf-8"))
    content["space"] |= {
        "process": ["7nm", "5nm"],
        "clock_hz": ["1 GHz"],
        "cores": [32, 96],
        "rows": [128],
        "formats": [["int8", "fp8_e4m3"]],
        "scratchpad_bytes": ["1 MiB"],
        "vector_lanes": [32],
        "memory": [{"standard": "hbm3e", "stacks": [4, 6]}],
        "link": [{"topology": "switch", "ports": 8, "bandwidth_bytes_per_s": "400 GB/s", "domain_chips": 16, "latency_s": "500 ns"}],
    }
    content["plans"] = {"tensor": [1, 2, 4], "pipeline": [1, 2], "batch": [8, 32, 64, 128]}
    content["limits"] |= limits
    content["weights"] |= {"power_w": 0.1}
    return parse(content, "small.toml")


def scalar_point(study, number, named, plan, batch):
    """Return (objectives, meets) of one point, or None where the chip cannot run it; formulas written out anew from their sources."""
    chip, d, q = chip_of(study.space, number), study.demand, study.slo.quantile
    if batch % plan.pipeline:
        return None
    model, lengths = load(study.workloads[0].model), d.lengths
    at_once, speed = batch // plan.pipeline, table("study_defaults").fact("realised_ratio").known
    high = round(lengths.in_flight_mean + normal_score(q) * lengths.in_flight_deviation / batch**0.5)
    try:
        silicon = harden(chip)
        # A memory without end: capacity is checked by hand below, for all groups in flight.
        roomy = type(chip)(**{f: getattr(chip, f) for f in chip.__dataclass_fields__} | {"dram": _roomy(chip.dram)})
        decode, decode_high, short, long = (
            estimate(lower(model, named.recipe, step), roomy, plan)
            for step in (
                Step.decode(at_once, round(lengths.in_flight_mean)),
                Step.decode(at_once, high),
                Step.prefill(1, round(lengths.input_mean)),
                Step.prefill(1, round(lengths.input_quantile)),
            )
        )
    except UnsupportedError:
        return None
    except InfeasibleError:
        return None
    step_s = max(decode.latency_s, plan.pipeline * decode.stage_s) / speed
    high_s = max(decode_high.latency_s, plan.pipeline * decode_high.stage_s) / speed
    a, b = short.stage_s / speed / lengths.input_mean, long.stage_s / speed / lengths.input_quantile
    curve = max((b - a) / (lengths.input_quantile - lengths.input_mean), 0.0)
    prefill_s = max(a - curve * lengths.input_mean, 0.0) * lengths.input_mean + curve * lengths.input_mean_square
    n = lengths.output_mean - 1
    rate = batch / (n * step_s + batch * prefill_s)
    tpot_s = high_s + prefill_s * batch / n
    load_ratio = rate * prefill_s
    wait_s = prefill_s * lengths.input_mean_square / lengths.input_mean**2 / (2 * (1 - load_ratio)) * np.log(max(load_ratio / (1 - q), 1.0))
    ttft_s = wait_s + high_s + long.latency_s / speed
    replicas = np.ceil(d.requests_per_s * d.peak_ratio / rate)
    n_chips = replicas * plan.n_chips
    joules = _joules(silicon, decode) * plan.n_chips / at_once * n + _joules(silicon, short) * plan.n_chips
    fleet = FleetDemand(
        n_chips=n_chips,
        average_w=silicon.idle_w + joules * d.requests_per_s / n_chips,
        provisioned_w=silicon.tdp_w,
        prefill_tokens_per_year=d.requests_per_s * lengths.input_mean * S_PER_YEAR,
        decode_tokens_per_year=d.requests_per_s * lengths.output_mean * S_PER_YEAR,
        prefill_time_ratio=rate * prefill_s,
    )
    inputs = inputs_of(study, chip.process, chip.dram.standard, chip.package)
    cost = chip_cost(silicon, chip, inputs)
    bill = price(fleet, cost, inputs)
    built_w = fleet.tokens_per_year / S_PER_YEAR / bill.tokens_per_s_per_mw.mid * 1e6
    graph, prompt = (lower(model, named.recipe, s) for s in (Step.decode(at_once, high), Step.prefill(1, round(lengths.input_quantile))))
    working = max(0.0, prompt.activation_bytes - graph.activation_bytes) / plan.data
    resident = decode_high.memory_bytes + (plan.pipeline - 1) * _kv_share(graph, plan) + working
    meets = (
        ttft_s <= study.slo.ttft_s
        and tpot_s <= study.slo.tpot_s
        and resident <= chip.memory_capacity_bytes
        and silicon.tdp_w <= study.limits.chip_w
        and cost.nre_usd.mid <= study.limits.nre_usd
    )
    return (bill.usd_per_mtok, 1 / tpot_s, built_w, cost.nre_usd.mid), meets


def _roomy(dram):
    return type(dram)(dram.standard, dram.stacks, 1e18, dram.bandwidth_bytes_per_s, dram.latency_s)


def _joules(silicon, trace):
    return silicon.energy.dynamic_j(trace.counters).mid


def _kv_share(graph, plan):
    return graph.kv_bytes / (plan.pipeline * plan.data * min(plan.tensor, graph.n_kv_heads or plan.tensor))


@pytest.fixture(scope="module")
def searched():
    study = small_study()
    slow = {}
    for number in range(study.space.n_designs):
        for named in study.workloads[0].recipes:
            for plan in study.plans:
                for batch in study.batches:
                    point = scalar_point(study, number, named, plan, batch)
                    if point is not None:
                        slow[number, named.name, str(plan), batch] = point
    return study, design(study), slow


def test_front_equals_brute_force_point_for_point(searched):
    _, found, slow = searched
    met = {key: objectives for key, (objectives, meets) in slow.items() if meets}
    values = np.array([[o[0].mid, *o[1:]] for o in met.values()])
    front = {key for key, kept in zip(met, non_dominated(losses(values)), strict=True) if kept}
    c = found.columns
    ours = {(int(c["design"][r]), str(c["recipe_0"][r]), str(c["plan_0"][r]), int(c["batch_0"][r])) for r in found.front}
    assert ours == front
    assert len(front) > 3
    assert found.counts.feasible_points == len(met)


def test_objectives_and_ranges_equal_the_scalar_path(searched):
    _, found, slow = searched
    c = found.columns
    for r in range(found.n_rows):
        key = (int(c["design"][r]), str(c["recipe_0"][r]), str(c["plan_0"][r]), int(c["batch_0"][r]))
        (usd, *rest), meets = slow[key]
        assert meets
        # Both paths do the same double arithmetic in another order: a few hundred operations of relative error 2^-53 each.
        assert [c[name][r] for name in OBJECTIVES] == pytest.approx([usd.mid, *rest], rel=1e-11)
        assert (c["usd_per_mtok_low"][r], c["usd_per_mtok_high"][r]) == pytest.approx((usd.low, usd.high), rel=1e-11)


def test_the_best_row_has_the_least_weighted_score(searched):
    study, found, slow = searched
    w = study.weights
    scores = [
        w.usd_per_mtok * np.log(o[0].mid) - w.tokens_per_s_per_user * np.log(o[1]) + w.power_w * np.log(o[2]) + w.nre_usd * np.log(o[3])
        for o, meets in slow.values()
        if meets
    ]
    assert found.columns["score"][found.best] == pytest.approx(min(scores), rel=1e-11)
    assert found.columns["on_front"][found.best]


def test_two_models_on_a_chip_equal_every_pair_of_points():
    study = small_study(site_w="90 MW")
    (first,) = study.workloads
    pair = (replace(first, share=0.25), replace(first, model="llama-3.1-8b", share=0.75))
    study = replace(study, slo=replace(study.slo, ttft_s=3.0), workloads=pair, plans=study.plans[:3], batches=(8, 32, 64, 128))
    found = design(study)
    hardware, missed = hardware_of(study, [chip_of(study.space, i) for i in range(study.space.n_designs)])
    services = [_service(study, w, hardware) for w in study.workloads]
    tokens = study.demand.requests_per_s * study.demand.tokens_per_request * S_PER_YEAR
    objectives = []
    for chip in np.flatnonzero((missed == 0).all(axis=1)):
        for i in np.flatnonzero((services[0]["chip"] == chip) & (services[0]["missed"] == 0)):
            for j in np.flatnonzero((services[1]["chip"] == chip) & (services[1]["missed"] == 0)):
                a, b = ({name: column[k] for name, column in s.items()} for s, k in ((services[0], i), (services[1], j)))
                usd = (a["usd_per_year"] + b["usd_per_year"] + hardware.nre_usd_per_year[1][chip]) / tokens * 1e6
                speed = min(a["tokens_per_s_per_user"], b["tokens_per_s_per_user"])
                if a["power_w"] + b["power_w"] <= 90e6:
                    objectives.append((usd, speed, a["power_w"] + b["power_w"], hardware.nre_usd[1][chip]))
    values = np.array(objectives)
    front = np.unique(values[non_dominated(losses(values))], axis=0)
    ours = np.unique(np.stack([found.columns[name][found.front] for name in OBJECTIVES], axis=1), axis=0)
    np.testing.assert_allclose(ours, front, rtol=1e-12)
    assert len(front) > 3
    assert (values[:, 2] > 0).all()
    assert len(values) < len(services[0]["chip"]) * len(services[1]["chip"])
