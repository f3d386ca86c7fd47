"""Laws of lowering: pair counts equal a brute-force mask, batches add up, experts touched equal a simulation."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fabless.model import pairs
from fabless.model.graph import Attention, Gemm, Scan
from fabless.model.layers import Experts
from fabless.model.load import load, model_names
from fabless.model.lower import lower
from fabless.model.step import Recipe, Sequences, Step

small = st.integers(0, 60)
new = st.integers(1, 60)
BF16, FP8 = Recipe.named("bf16"), Recipe.named("fp8")


def mask(new_tokens, context):
    """Return query positions and key positions, both from 0, of which the causal mask leaves key <= query."""
    queries = np.arange(context, context + new_tokens)[:, None]
    keys = np.arange(context + new_tokens)[None, :]
    return queries, keys


@given(new, small)
def test_causal_pairs_equal_a_mask(new_tokens, context):
    q, k = mask(new_tokens, context)
    assert pairs.causal(new_tokens, context) == (k <= q).sum()


@given(new, small, st.integers(1, 80))
def test_window_pairs_equal_a_mask(new_tokens, context, window):
    q, k = mask(new_tokens, context)
    assert pairs.clipped(new_tokens, context, window) == ((k <= q) & (k > q - window)).sum()


@given(new, small, st.integers(1, 80))
def test_chunk_pairs_equal_a_mask(new_tokens, context, chunk):
    q, k = mask(new_tokens, context)
    assert pairs.chunked(new_tokens, context, chunk) == ((k <= q) & (k // chunk == q // chunk)).sum()


@given(new, small, st.integers(1, 20), st.none() | st.integers(1, 12))
def test_pooled_pairs_equal_a_mask(new_tokens, context, ratio, limit):
    q, _ = mask(new_tokens, context)
    entries = np.arange((context + new_tokens) // ratio + 1)[None, :]
    seen = ((entries + 1) * ratio - 1 <= q).sum(axis=1)  # an entry is seen once its last token is
    assert pairs.pooled(new_tokens, context, ratio, limit) == np.minimum(seen, math.inf if limit is None else limit).sum()


@given(new, small, st.sampled_from(["gemma-3-270m", "gpt-oss-20b", "llama-4-scout", "mistral-7b"]))
@settings(max_examples=40, deadline=None)
def test_spans_cover_their_pairs(new_tokens, context, name):
    for op in lower(load(name), BF16, Step((Sequences(3, new_tokens, context),))).ops:
        if isinstance(op, Attention):
            (span,) = op.spans
            assert span.queries <= span.pairs <= span.queries * span.keys
            assert span.keys <= new_tokens + context


groups = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 300), st.integers(0, 5000)), min_size=1, max_size=4)
decoders = st.sampled_from([n for n in model_names() if not load(n).encoder])


@given(decoders, groups)
@settings(max_examples=150, deadline=None)
def test_macs_of_a_batch_are_the_sum_of_its_sequences(name, parts):
    model = load(name)
    whole = lower(model, BF16, Step.mixed(*parts))
    alone = [lower(model, BF16, Step.mixed((1, n, c))) for _, n, c in parts]
    expected = sum(count * graph.macs for (count, _, _), graph in zip(parts, alone, strict=True))
    # sums of products of floats in another order, and T k / touched x touched: a few roundings of 2^-53 per op, a few hundred ops
    assert math.isclose(whole.macs, expected, rel_tol=1e-12)
    assert math.isclose(whole.kv_bytes, sum(c * g.kv_bytes for (c, _, _), g in zip(parts, alone, strict=True)), rel_tol=1e-12)


@given(decoders, groups)
@settings(max_examples=150, deadline=None)
def test_every_figure_is_finite_and_no_weight_is_read_twice_its_size(name, parts):
    model = load(name)
    graph = lower(model, FP8, Step.mixed(*parts))
    streamed = 0.0
    for op in graph.ops:
        if isinstance(op, Gemm):
            assert op.m > 0
            assert op.n > 0
            assert op.k > 0
            assert op.batch > 0
            streamed += op.weight_bytes
            assert 0 < op.batch <= max(op.n_experts, op.batch if not op.n_experts else 0)
        if isinstance(op, Scan):
            assert op.state_write_bytes > 0
    assert all(math.isfinite(x) and x >= 0 for x in (graph.macs, graph.weight_bytes, graph.kv_bytes, graph.activation_bytes))
    # a step reads each weight at most once; a latent up-projection twice where groups differ in how they are computed, and a tied table never
    tied = model.n_vocab * model.d_model if model.tied_embeddings else 0
    up = sum(n * m.n_heads * m.kv_rank * (m.d_nope + m.d_v) for n, k in model.kinds for m in k.mixers if type(m).__name__ == "Latent")
    assert streamed <= graph.weight_bytes + up + tied


@given(st.integers(2, 64), st.data(), st.integers(1, 400))
@settings(max_examples=25, deadline=None)
def test_experts_touched_equal_a_simulation(n_experts, data, tokens):
    top_k = data.draw(st.integers(1, n_experts))
    rng = np.random.default_rng(n_experts * 1000 + top_k)
    trials = 400
    hits = np.zeros((trials, n_experts), bool)
    for _ in range(tokens):  # each token visits top_k distinct experts, uniformly
        ranks = rng.random((trials, n_experts))
        hits[np.arange(trials)[:, None], np.argpartition(ranks, top_k - 1, axis=1)[:, :top_k]] = True
    touched = hits.sum(axis=1)
    # standard error of the mean of `trials` counts; 6 of them are exceeded once in 5e8
    error = max(touched.std() / math.sqrt(trials), 1 / trials)
    assert abs(Experts(n_experts, top_k, 8).touched(tokens) - touched.mean()) <= 6 * error


@given(st.sampled_from(["mixtral-8x7b", "deepseek-v3", "gpt-oss-120b", "qwen3-next-80b-a3b"]), st.integers(1, 5000))
def test_experts_touched_are_bounded_by_visits_and_experts(name, tokens):
    for _, layer in load(name).kinds:
        if isinstance(layer.mlp, Experts):
            touched = layer.mlp.touched(tokens)
            assert layer.mlp.top_k * (1 - 1e-12) <= touched <= min(layer.mlp.n_experts, tokens * layer.mlp.top_k) * (1 + 1e-12)


@given(decoders, st.integers(0, 20000), st.integers(1, 500))
@settings(max_examples=150, deadline=None)
def test_a_longer_context_never_keeps_or_computes_less(name, context, more):
    model = load(name)
    assert model.kv_bytes(context + more, BF16) >= model.kv_bytes(context, BF16)
    assert lower(model, BF16, Step.decode(1, context + more)).macs >= lower(model, BF16, Step.decode(1, context)).macs
