"""The estimate: floors, best mappings, capacity, agreement of one with many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fabless.chip.chip import Chip, Core, Dram, Link, Mesh, Mxu, Sram, TensorCore
from fabless.core.errors import InfeasibleError, UnsupportedError
from fabless.mapping.plan import Plan
from fabless.model.graph import Attention, Gemm, Graph, Shard, Span, Vector
from fabless.model.step import Recipe, Step
from fabless.number.formats import BF16, E2M1
from fabless.sim.roofline import estimate, estimate_many

NO_LINK = Link("none", 0, 0.0, 0.0, 1)
RING = Link("ring", 2, 100e9, 1e-6, 64)
MESH = Chip(
    "mesh", "fabless", "7nm", 1e9, 1, Core(Mesh(128, 128, (("bf16", 1.0),)), 128, Sram(16e6)), Dram("hbm2e", 1, 80e9, 128e9), NO_LINK
)
MXU = Chip(
    "mxu", "fabless", "7nm", 1e9, 16, Core(Mxu(32, 32, (("bf16", 1.0), ("int8", 2.0))), 32, Sram(2e6)), Dram("hbm3", 2, 48e9, 1.6e12), RING
)
GPU = Chip(
    "gpu", "nvidia_test", "7nm", 1.4e9, 108, Core(TensorCore((("bf16", 1024.0),)), 128, Sram(192e3)), Dram("hbm2e", 5, 80e9, 2e12),
    Link("switch", 12, 300e9, 1e-6, 8),
)  # fmt: skip


def llama_layer(step, *, causal=False, layers=1):
    """One Llama-3-8B layer: d_model 4096, 32 query and 8 KV heads of 128, d_ff 14336 (config.json of meta-llama/Meta-Llama-3-8B)."""
    (group,) = step.groups
    rows = float(step.new_tokens)
    keys = group.context_tokens + (group.new_tokens if group.new_tokens > 1 else 0)
    pairs = group.new_tokens * keys - (group.new_tokens * (group.new_tokens - 1) / 2 if causal else 0)
    span = Span(group.count, group.new_tokens, keys, pairs)
    ops = (
        Vector("norm", layers, rows * 4096, 4),
        Gemm("qkv", layers, rows, 6144, 4096, shard=Shard.COLUMN),
        Attention("attention", layers, 32, 8, 128, 128, (span,), 128, 128),
        Gemm("o", layers, rows, 4096, 4096, shard=Shard.ROW),
        Gemm("gate_up", layers, rows, 28672, 4096, shard=Shard.COLUMN),
        Gemm("down", layers, rows, 4096, 14336, shard=Shard.ROW),
    )
    kv = layers * 2.0 * 8 * 128 * 2 * group.count * keys
    return Graph("llama layer", Recipe(), step, ops, layers * 436_207_616.0, kv, rows * 28672 * 2, layers, 4096, n_kv_heads=8)


def test_prefill_layer_stays_above_its_floor_and_close_to_it():
    full = estimate(llama_layer(Step.prefill(1, 512)), MESH)
    causal = estimate(llama_layer(Step.prefill(1, 512), causal=True), MESH)
    floor = (512 * 218_103_808 + 2 * 512 * 512 * 4096) / 128**2
    assert floor == pytest.approx(6.947e6, rel=1e-4)
    assert floor <= full.cycles <= 1.01 * floor
    assert 512 * 218_103_808 / 128**2 + 65_664 <= causal.cycles < full.cycles


def test_decode_layer_stays_above_its_floor_and_close_to_it():
    trace = estimate(llama_layer(Step.decode(8, 512)), MESH)
    floor = (218_103_808 * 2 + 8 * 512 * 2 * 1024 * 2) / 128
    assert floor == pytest.approx(3.539e6, rel=1e-4)
    assert floor <= trace.cycles <= 1.01 * floor


def test_estimate_many_equals_estimate_pair_for_pair():
    graphs = [llama_layer(step, layers=4) for step in (Step.prefill(2, 100), Step.decode(8, 512), Step.decode(3, 77))]
    chips = [MXU, MESH, GPU, replace(MXU, clock_hz=2e9), replace(MXU, n_cores=3)]
    for plan in (Plan(), Plan(tensor=2), Plan(tensor=2, pipeline=2)):
        chosen = [c for c in chips if plan.tensor == 1 or c is not MESH]
        many = estimate_many(graphs, chosen, plan)
        for i, graph in enumerate(graphs):
            for j, chip in enumerate(chosen):
                one = estimate(graph, chip, plan)
                assert one.cycles == many.latency_s[i, j] * chip.clock_hz
                assert one.stage_cycles == many.stage_s[i, j] * chip.clock_hz
                assert one.memory_bytes == many.memory_bytes[i, j]
                assert one.counters.dram_bytes == pytest.approx(many.dram_bytes[i, j], rel=1e-12)  # summed event by event
                assert dict(one.counters.macs)["bf16"] == pytest.approx(many.macs["bf16"][i, j], rel=1e-12)
                assert many.feasible[i, j]


def test_never_faster_than_peak_or_bandwidth():
    for step in (Step.prefill(1, 333), Step.decode(5, 900)):
        graph = llama_layer(step)
        for chip in (MXU, MESH, GPU):
            trace = estimate(graph, chip)
            assert trace.latency_s >= graph.macs / chip.peak_macs_per_s(BF16)
            assert trace.latency_s >= graph.weight_bytes / chip.dram.bandwidth_bytes_per_s


def test_memory_that_does_not_fit_names_what_is_missing_and_what_fits():
    graph = llama_layer(Step.decode(8, 512), layers=400)
    with pytest.raises(InfeasibleError, match=r"bytes .* are missing; tensor parallelism 4 fits"):
        estimate(graph, MXU)
    assert not estimate_many([graph], [MXU]).feasible[0, 0]


def test_a_format_that_nothing_multiplies_is_refused_by_name():
    graph = llama_layer(Step.decode(1, 8))
    only_fp4 = replace(MXU, core=replace(MXU.core, matrix=Mxu(32, 32, ((E2M1.name, 1.0),))))
    with pytest.raises(UnsupportedError, match="none of these holds bf16"):
        estimate(graph, only_fp4)
    assert np.isinf(estimate_many([graph], [only_fp4]).latency_s[0, 0])


def test_a_plan_beyond_the_links_is_refused_with_the_reach_of_the_links():
    with pytest.raises(InfeasibleError) as error:
        estimate(llama_layer(Step.decode(1, 8)), MESH, Plan(tensor=2))
    assert str(error.value) == (
        "llama layer on 2 x mesh (tp2): o.all_reduce exchanges data among 2 chips, but links join 1 and there is no network beyond; "
        "lower the plan's degrees to 1 or set link.network_bandwidth_bytes_per_s"
    )


def test_a_scratchpad_below_the_smallest_tiles_is_refused():
    tiny = replace(MXU, core=replace(MXU.core, scratchpad=Sram(100)))
    with pytest.raises(InfeasibleError, match=r"qkv finds no room for its smallest tiles in 1.56 KiB of on-chip memory"):
        estimate(llama_layer(Step.decode(1, 8)), tiny)


def test_events_add_up_where_kernels_run_one_after_another():
    trace = estimate(llama_layer(Step.decode(4, 100), layers=3), GPU, Plan(tensor=2))
    assert trace.cycles == pytest.approx(sum(e.cycles for e in trace.events), rel=1e-12)
    for event in trace.events:
        parts = (event.compute_cycles, event.vector_cycles, event.memory_cycles, event.link_cycles)
        assert event.cycles >= max(parts) + event.overhead_cycles - 1e-6


def test_fewer_sequences_and_narrower_weights_are_offered_when_they_fit():
    graph = llama_layer(Step.decode(64, 200_000), layers=1)
    with pytest.raises(InfeasibleError, match=r"tensor parallelism 2 fits or 57 sequences instead of 64 fit"):
        estimate(replace(graph, kv_bytes=53e9), MXU)
