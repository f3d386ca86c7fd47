"""Partition: work and bytes are conserved, exchanges are those of the textbook."""

from __future__ import annotations

import pytest

from fabless.core.errors import InputError
from fabless.mapping.parallel import partition
from fabless.mapping.plan import Plan
from fabless.model.graph import Attention, Collective, Gemm, Scan
from fabless.model.load import load
from fabless.model.lower import lower
from fabless.model.step import Recipe, Step


def graph(name, step=None):
    return lower(load(name), Recipe.named("bf16"), step or Step.decode(64, 1024))


def local_macs(ops):
    return sum(op.macs for op in ops if isinstance(op, (Gemm, Attention, Scan)))


def exchanges(share):
    return [(op.name, op.kind, op.count, op.n_chips) for op in share.ops if isinstance(op, Collective)]


@pytest.mark.parametrize("plan", [Plan(tensor=2), Plan(tensor=8), Plan(tensor=4, pipeline=2)])
def test_a_dense_model_divides_without_loss(plan):
    whole = graph("llama-3.1-70b")
    share = partition(whole, plan)
    assert local_macs(share.ops) * plan.tensor == pytest.approx(whole.macs, rel=1e-12)
    assert share.weight_bytes * plan.n_chips == pytest.approx(whole.weight_bytes)
    assert share.kv_bytes * plan.n_chips == pytest.approx(whole.kv_bytes)


def test_two_all_reduces_a_layer_of_the_residual_stream():
    whole = graph("llama-3.1-8b")
    share = partition(whole, Plan(tensor=4))
    assert exchanges(share) == [("o.all_reduce", "all_reduce", 32, 4), ("down.all_reduce", "all_reduce", 32, 4)]
    payload = next(op for op in share.ops if isinstance(op, Collective)).payload_bytes
    assert payload == 64 * 4096 * 2


def test_more_chips_than_kv_heads_replicate_the_cache():
    whole = graph("llama-3.1-8b")
    assert partition(whole, Plan(tensor=16)).kv_bytes == partition(whole, Plan(tensor=8)).kv_bytes


def test_routed_and_shared_experts_are_reduced_once():
    share = partition(graph("deepseek-v3"), Plan(tensor=8))
    names = [name for name, *_ in exchanges(share)]
    assert len(names) == len(set(names))
    assert not any("shared" in name for name in names)
    assert sum("experts" in name for name in names) == 1


def test_expert_parallel_replicas_exchange_all_to_all_and_keep_all_experts_once():
    whole = graph("deepseek-v3")
    plan = Plan(tensor=1, data=8, expert=8)
    share = partition(whole, plan)
    kinds = {kind for _, kind, *_ in exchanges(share)}
    assert kinds == {"all_to_all"}
    assert share.weight_bytes == pytest.approx(whole.weight_bytes - whole.expert_weight_bytes + whole.expert_weight_bytes / 8)
    assert share.kv_bytes == pytest.approx(whole.kv_bytes / 8)


def test_experts_spread_or_divided_stream_the_same_weights():
    whole = graph("mixtral-8x7b", Step.prefill(1, 4096))  # enough tokens to touch every expert

    def streamed(plan):
        return sum(op.weight_bytes for op in partition(whole, plan).ops if isinstance(op, Gemm) and op.n_experts)

    assert streamed(Plan(tensor=8, expert=8)) == pytest.approx(streamed(Plan(tensor=8)), rel=1e-9)


def test_a_pipeline_longer_than_the_model_is_refused():
    with pytest.raises(InputError, match=r"plan pp64: 64 pipeline stages, but .* has 32 layers"):
        partition(graph("llama-3.1-8b"), Plan(pipeline=64))


def test_pipeline_stages_send_the_stream_between_them():
    share = partition(graph("llama-3.1-8b"), Plan(pipeline=4))
    assert exchanges(share) == [("pipeline_send", "send", 3, 2)]
