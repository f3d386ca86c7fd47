"""What lowering puts into a graph, by hand-computed shapes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fabless.core.errors import InputError, UnsupportedError
from fabless.model.graph import Attention, Gather, Gemm, Scan, Shard, Vector
from fabless.model.layers import Dense
from fabless.model.load import load
from fabless.model.lower import lower
from fabless.model.step import Recipe, Speculation, Step
from fabless.number.formats import BF16 as BF16_FORMAT
from fabless.number.formats import E4M3, NVFP4

BF16 = Recipe.named("bf16")


def ops(graph, kind=Gemm):
    return {op.name: op for op in graph.ops if isinstance(op, kind)}


def test_a_dense_decode_step_multiplies_every_matrix_once():
    graph = lower(load("llama-3.1-8b"), BF16, Step.decode(32, 1023))
    gemms = ops(graph)
    assert {n: (g.count, g.m, g.n, g.k) for n, g in gemms.items()} == {
        "qkv": (32, 32, (32 + 2 * 8) * 128, 4096),
        "o": (32, 32, 4096, 4096),
        "gate_up": (32, 32, 2 * 14336, 4096),
        "down": (32, 32, 4096, 14336),
        "head": (1, 32, 128256, 4096),
    }
    attention = ops(graph, Attention)["attention"]
    assert attention.macs == 32 * 32 * (32 * 1024) * (128 + 128)  # layers, heads, sequences x keys, widths
    assert attention.kv_read_bytes == 32 * 1024 * 131072  # sequences x keys x 128 KiB
    assert attention.kv_write_bytes == 32 * 131072
    assert graph.kv_bytes == 32 * 1024 * 131072


@pytest.mark.parametrize(
    "name", ["llama-2-7b", "llama-3.1-70b", "qwen3-32b", "qwen2.5-7b", "falcon-7b", "gpt-3-175b", "palm-540b", "phi-4"]
)
def test_dense_projections_are_the_matrices_of_the_model_per_token(name):
    model = load(name)
    graph = lower(model, BF16, Step.decode(7, 100))
    head = model.n_vocab * model.d_model
    assert sum(g.macs for g in ops(graph).values()) == 7 * (model.body.matrices + head)
    # what is left of the parameters is looked up, added or scaled, never multiplied
    assert model.n_params == model.body.matrices + model.body.small + model.embedding_params + model.head_params


@pytest.mark.parametrize("name", ["mixtral-8x7b", "gpt-oss-120b", "qwen3-235b-a22b", "llama-4-maverick", "nemotron-3-super-120b-a12b"])
def test_routed_projections_are_the_active_matrices(name):
    model = load(name)
    graph = lower(model, BF16, Step.decode(7, 100))
    routers = sum(n * layer.mlp.n_experts * model.d_model for n, layer in model.kinds if hasattr(layer.mlp, "n_experts"))
    biases = sum(  # experts' biases are added, not multiplied
        n * layer.mlp.top_k * (layer.mlp.in_width + model.d_model) for n, layer in model.kinds if getattr(layer.mlp, "bias", False)
    )
    expected = 7 * (model.body.matrices + model.body.active_experts - biases + routers + model.n_vocab * model.d_model)
    assert math.isclose(sum(g.macs for g in ops(graph).values()), expected, rel_tol=1e-12)  # T k / touched x touched rounds


def test_experts_are_a_batch_of_those_touched():
    graph = lower(load("mixtral-8x7b"), BF16, Step.decode(4, 10))
    op = ops(graph)["experts_gate_up"]
    touched = 8 * (1 - (6 / 8) ** 4)
    assert op.batch == touched
    assert op.m == 4 * 2 / touched
    assert (op.n, op.k, op.shard, op.n_experts, op.n_routed) == (2 * 14336, 4096, Shard.EXPERT, 8, 2)
    assert op.weight_bytes == 32 * touched * 2 * 14336 * 4096 * 2


@pytest.mark.parametrize("name", ["mixtral-8x7b", "minimax-m2.5", "nemotron-3-super-120b-a12b"])
def test_only_the_last_product_of_experts_goes_back_to_the_tokens(name):  # MiniMax: both products are d_model wide; Nemotron: neither
    gemms = ops(lower(load(name), BF16, Step.decode(4, 10))).values()
    assert {g.name.rpartition(".")[2] for g in gemms if g.combine} == {"experts_down"}


def test_experts_in_a_latent_are_as_wide_as_it():
    gemms = ops(lower(load("nemotron-3-super-120b-a12b"), BF16, Step.decode(4, 10)))
    assert (gemms["moe.latent_in"].n, gemms["moe.experts_up"].k, gemms["moe.experts_down"].n, gemms["moe.latent_out"].k) == (1024,) * 4


def test_shared_experts_are_dense():
    gemms = ops(lower(load("deepseek-v3"), BF16, Step.decode(4, 10)))
    assert (gemms["latent_moe.shared_gate_up"].batch, gemms["latent_moe.shared_gate_up"].n) == (1, 2 * 2048)
    assert gemms["latent_moe.shared_down"].shard is Shard.ROW


def test_prefill_exploits_causality_and_sends_one_row_to_the_head():
    graph = lower(load("llama-3.1-8b"), BF16, Step.prefill(2, 512))
    assert ops(graph, Attention)["attention"].macs == 32 * 32 * 2 * (512 * 513 // 2) * 256
    assert ops(graph)["head"].m == 2
    assert ops(graph)["qkv"].m == 1024
    assert ops(lower(load("llama-3.1-8b"), BF16, replace(Step.prefill(2, 512), logits="all")))["head"].m == 1024


def test_windows_cut_keys_and_cache():
    model = load("gpt-oss-20b")
    attention = ops(lower(model, BF16, Step.decode(1, 1000)), Attention)
    assert attention["window_moe.attention"].spans[0].keys == 128
    assert attention["full_moe.attention"].spans[0].keys == 1001
    assert model.kv_bytes(1000, BF16) == 12 * (128 + 1000) * 8 * 128 * 2


def test_chunked_attention_starts_anew():
    attention = ops(lower(load("llama-4-scout"), BF16, Step.decode(1, 8192)), Attention)
    assert attention["window_moe.attention"].spans[0].keys == 1
    assert attention["full_moe.attention"].spans[0].keys == 8193


def test_latent_attention_is_absorbed_in_decode_and_expanded_in_prefill():
    decode = lower(load("deepseek-v3"), BF16, Step.decode(8, 4095))
    op = ops(decode, Attention)["latent_moe.attention_absorbed"]
    assert (op.n_heads, op.n_kv_heads, op.d_qk, op.d_v) == (128, 1, 576, 512)
    assert op.kv_read_bytes == 58 * 8 * 4096 * 576 * 2
    gemms = ops(decode)
    assert gemms["latent_moe.k_absorb"].macs + gemms["latent_moe.v_absorb"].macs == 58 * 8 * 128 * 512 * (128 + 128)
    assert "latent_moe.kv_b" not in gemms

    prefill = lower(load("deepseek-v3"), BF16, Step.prefill(1, 4096))
    op = ops(prefill, Attention)["latent_moe.attention"]
    assert (op.d_qk, op.d_v) == (192, 128)
    assert op.macs == 58 * 128 * (4096 * 4097 // 2) * (192 + 128)
    assert ops(prefill)["latent_moe.kv_b"].m == 4096


def test_a_mixed_step_computes_latent_attention_both_ways():
    attention = ops(lower(load("deepseek-v3"), BF16, Step.mixed((1, 2048, 0), (16, 1, 3000))), Attention)
    assert [s.count for s in attention["latent_moe.attention"].spans] == [1]
    assert [s.count for s in attention["latent_moe.attention_absorbed"].spans] == [16]


@pytest.mark.parametrize("step", [Step.decode(4, 2000), Step.prefill(1, 3000), Step.prefill(1, 200, cached_tokens=9000)])
def test_the_automatic_choice_takes_the_fewest_operations(step):
    model = load("deepseek-v3")
    macs = {mode: lower(model, BF16, step, latent=mode).macs for mode in ("auto", "absorbed", "expanded")}
    assert macs["auto"] == min(macs["absorbed"], macs["expanded"])


def test_an_indexer_scores_all_keys_and_attends_to_its_best():
    attention = ops(lower(load("deepseek-v3.2"), BF16, Step.decode(1, 9999)), Attention)
    scores, chosen = attention["latent_moe.index_scores"], attention["latent_moe.attention_absorbed"]
    assert (scores.n_heads, scores.spans[0].keys, scores.macs) == (64, 10000, 58 * 64 * 10000 * 128)
    assert (chosen.spans[0].keys, chosen.pairs) == (2048, 2048)


def test_linear_attention_is_a_scan_over_a_fixed_state():
    model = load("qwen3-next-80b-a3b")
    short, long = (ops(lower(model, BF16, Step.decode(4, n)), Scan)["linear_moe.scan"] for n in (10, 10000))
    assert short == long
    assert short.state_write_bytes == 4 * 32 * 128 * 128 * 4  # sequences x heads x key x value x fp32
    assert short.macs == 36 * 4 * 32 * 3 * 128 * 128
    assert ops(lower(model, BF16, Step.prefill(4, 100)), Scan)["linear_moe.scan"].state_read_bytes == 0


def test_mamba_scans():
    op = ops(lower(load("mamba2-7b"), BF16, Step.decode(2, 5)), Scan)["scan"]
    assert op.macs == 64 * 2 * (2 * 8192 * 128)
    op = ops(lower(load("jamba-52b"), BF16, Step.decode(2, 5)), Scan)["ssm_moe.scan"]
    assert op.macs == 0  # version 1 has no matrix form
    assert op.vector_ops_per_repeat == 8 * 2 * 8192 * 16


def test_embeddings_are_gathered_not_multiplied():
    graph = lower(load("llama-3.1-8b"), Recipe.named("fp8"), Step.decode(3, 10))
    gather = ops(graph, Gather)["embedding"]
    assert (gather.rows, gather.row_bytes) == (3, 4096 * 2)
    assert not any(g.n == 128256 and g.name != "head" for g in graph.ops if isinstance(g, Gemm))


def test_formats_follow_the_recipe_per_class():
    recipe = replace(Recipe.named("fp8"), experts=NVFP4)
    gemms = ops(lower(load("mixtral-8x7b"), recipe, Step.decode(4, 10)))
    assert (gemms["qkv"].weights, gemms["qkv"].activations, gemms["qkv"].outputs) == (E4M3, E4M3, BF16_FORMAT)
    assert gemms["experts_down"].weights == NVFP4
    assert (gemms["head"].weights, gemms["head"].activations) == (BF16_FORMAT, BF16_FORMAT)
    assert gemms["router"].weights == BF16_FORMAT


def test_weight_bytes_are_by_class():
    model = load("mixtral-8x7b")
    graph = lower(model, replace(Recipe.named("fp8"), experts=NVFP4), Step.decode(1, 1))
    body = model.body
    assert graph.expert_weight_bytes == body.experts * 4.5 / 8
    assert graph.weight_bytes == graph.expert_weight_bytes + body.matrices + 2 * (body.small + model.embedding_params + model.head_params)


def test_speculation_verifies_its_draft():
    step = Step.decode(4, 100, Speculation(3, 0.8))
    graph = lower(load("llama-3.1-8b"), BF16, step)
    assert ops(graph)["qkv"].m == 16
    assert ops(graph)["head"].m == 16
    assert ops(graph, Attention)["attention"].pairs == 4 * (101 + 102 + 103 + 104)


def test_an_encoder_sees_both_ways_and_has_no_decode_step():
    model = load("bert-base")
    graph = lower(model, BF16, Step.prefill(2, 128))
    assert ops(graph, Attention)["attention"].pairs == 2 * 128 * 128
    assert "head" not in ops(graph)
    assert graph.kv_bytes == 0
    assert "head" in ops(lower(model, BF16, replace(Step.prefill(2, 128), logits="all")))
    with pytest.raises(UnsupportedError, match=r"^bert-base is an encoder: it keeps no cache and has no decode step; use Step\.prefill$"):
        lower(model, BF16, Step.decode(1, 10))


def test_a_shared_cache_is_read_but_not_kept():
    model = load("gemma-4-e2b")
    full = [m for _, layer in model.kinds for m in layer.mixers if m.window is None]
    assert {m.shared_cache for m in full} == {True, False}
    assert model.kv_bytes_per_token(BF16) == (12 * 256 + 3 * 512) * 2 * 2  # 15 of 35 layers keep keys and values


def test_hyper_connections_and_pooled_caches_are_lowered():
    graph = lower(load("deepseek-v4-flash"), BF16, Step.decode(1, 100_000))
    attention = ops(graph, Attention)
    keys = {name: op.spans[0].keys for name, op in attention.items()}
    assert sorted(keys.values()) == [128, 128 + 512, 128 + 100_001 // 128, 100_001 // 4]
    assert any("stream_mix" in name for name in ops(graph))


def test_shards_say_how_to_divide():
    gemms = ops(lower(load("llama-3.1-8b"), BF16, Step.decode(1, 1)))
    assert {n: g.shard for n, g in gemms.items()} == {
        "qkv": Shard.COLUMN, "o": Shard.ROW, "gate_up": Shard.COLUMN, "down": Shard.ROW, "head": Shard.COLUMN,
    }  # fmt: skip


def test_a_parallel_block_is_two_products_and_one_all_reduce():
    palm = ops(lower(load("palm-540b"), BF16, Step.decode(1, 1)))
    assert {n: (g.n, g.k) for n, g in palm.items() if n != "head"} == {
        "qkv_gate_up": (48 * 256 + 2 * 256 + 2 * 73728, 18432),
        "o_down": (18432, 48 * 256 + 73728),
    }
    falcon = ops(lower(load("falcon-40b"), BF16, Step.decode(1, 1)))  # two norms: the inputs differ, the outputs still add up
    assert set(falcon) == {"qkv", "up", "o_down", "head"}


def test_norms_and_residuals_move_their_tensors():
    vectors = ops(lower(load("llama-3.1-8b"), BF16, Step.decode(3, 10)), Vector)
    assert (vectors["norm"].count, vectors["norm"].read_bytes, vectors["norm"].write_bytes) == (64, 3 * 4096 * 2, 3 * 4096 * 2)
    assert (vectors["residual"].count, vectors["residual"].read_bytes) == (64, 2 * 3 * 4096 * 2)


def test_activation_bytes_hold_the_widest_product():
    graph = lower(load("llama-3.1-8b"), BF16, Step.prefill(1, 100))
    assert graph.activation_bytes == 100 * (4096 + 2 * 14336) * 2 + 2 * 100 * 4096 * 2


def test_an_unknown_latent_mode_is_refused():
    with pytest.raises(InputError, match="latent must be one of auto, absorbed, expanded, not 'fast'"):
        lower(load("deepseek-v3"), BF16, Step.decode(1, 1), latent="fast")


def test_kinds_merge_equal_layers():
    model = load("gemma-3-27b")
    assert [n for n, _ in model.kinds] == [52, 10]
    assert model.n_layers == 62
    assert isinstance(model.kinds[0][1].mlp, Dense)
