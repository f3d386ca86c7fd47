"""What each kind of token mixer computes in a step, as ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.model import pairs
from fabless.model.graph import Attention, Gemm, Op, Scan, Shard, Span, Vector
from fabless.model.layers import Compressed, GroupedQuery, Latent, LinearAttention, StateSpace

if TYPE_CHECKING:
    from fabless.model.layers import Indexer, Mixer
    from fabless.model.step import Recipe, Sequences, Step
    from fabless.number.formats import NumberFormat

# Vector-lane operations per element, counted from each formula; exp, rsqrt and reciprocal count as one.
RMS_NORM = 4  # square, accumulate, scale by rsqrt, weight
LAYER_NORM = 7  # accumulate, subtract mean, square, accumulate, scale, weight, bias
ROTARY = 3  # two products and a sum
SOFTMAX = 4  # subtract maximum, exp, accumulate, scale
SIGMOID = 4  # negate, exp, add one, reciprocal
GATED_NORM = RMS_NORM + SIGMOID + 2  # norm, SiLU of the gate, product
DECAY_AND_WRITE = 3  # decay the state, subtract what it predicts, add the update's outer product to it


@dataclass(frozen=True, slots=True)
class Site:
    """Hold what every op of a step shares: sizes, formats, and how latent attention is to be computed."""

    tokens: int
    d_model: int
    step: Step
    recipe: Recipe
    latent: str = "auto"  # auto | absorbed | expanded

    def gemm(self, name: str, count: int, n: int, k: int, *, shard: Shard = Shard.REPLICATED, m: float = -1, batch: float = 1) -> Gemm:
        """Return a projection of the step's tokens (or `m` rows) by stored weights."""
        r = self.recipe
        return Gemm(name, count, self.tokens if m < 0 else m, n, k, batch, True, r.activations, r.weights, r.residual, shard)

    def small_gemm(self, name: str, count: int, n: int, k: int) -> Gemm:
        """Return a projection that engines keep at the residual's precision: routers, stream mixers."""
        r = self.recipe.residual
        return Gemm(name, count, self.tokens, n, k, 1.0, True, r, r, r)

    def vector(
        self, name: str, count: int, elements: float, ops: float, *, function: str, shard: Shard = Shard.REPLICATED,
        reads: float = 1, writes: float = 1,
    ) -> Vector:  # fmt: skip
        """Return elementwise work that reads and writes its tensor `reads` and `writes` times, as an unfused engine does."""
        size = elements * self.recipe.residual.bytes_per_value
        return Vector(name, count, elements, ops, reads * size, writes * size, shard, function)

    def attention(
        self, name: str, count: int, heads: tuple[int, int], *, widths: tuple[int, int], store: tuple[int, int], spans: tuple[Span, ...],
        shard: Shard = Shard.HEADS,
    ) -> Attention:  # fmt: skip
        """Return an attention op of `heads` (queries, keys), `widths` (q.k, v) and `store`d widths per KV head."""
        r = self.recipe
        return Attention(name, count, *heads, *widths, spans, *store, r.kv_cache, r.attention, r.residual, shard)


def mixer_ops(site: Site, label: str, count: int, mixer: Mixer) -> list[Op]:
    """Return the ops of `count` layers' mixer, from the norm's output to the output projection."""
    match mixer:
        case GroupedQuery():
            return _grouped_query(site, label, count, mixer)
        case Latent():
            return _latent(site, label, count, mixer)
        case Compressed():
            return _compressed(site, label, count, mixer)
        case LinearAttention():
            return _linear(site, label, count, mixer)
        case StateSpace():
            return _state_space(site, label, count, mixer)


def span(group: Sequences, mixer: GroupedQuery) -> Span:
    """Return the keys that one group's queries see under the mixer's mask."""
    new, context = group.new_tokens, group.context_tokens
    if mixer.bidirectional:
        return Span(group.count, new, new + context, float(new * (new + context)))
    if mixer.window is None:
        return Span(group.count, new, new + context, float(pairs.causal(new, context)))
    if mixer.chunked:
        first = context // mixer.window * mixer.window
        return Span(group.count, new, new + context - first, float(pairs.chunked(new, context, mixer.window)))
    return Span(group.count, new, min(new + context, new + mixer.window - 1), float(pairs.clipped(new, context, mixer.window)))


def _grouped_query(s: Site, label: str, count: int, a: GroupedQuery) -> list[Op]:
    ops: list[Op] = [s.gemm(f"{label}qkv", count, a.q_width + a.kv_width, s.d_model, shard=Shard.COLUMN)]
    heads = a.n_heads + (0 if a.shared_cache else a.n_kv_heads)
    per_element = (ROTARY if a.rotary else 0) + (RMS_NORM if a.qk_norm != "none" else 0)
    if per_element:
        ops.append(s.vector(f"{label}rotary", count, s.tokens * heads * a.d_qk, per_element, function="rotary", shard=Shard.HEADS))
    spans = tuple(span(g, a) for g in s.step.groups)
    ops.append(
        s.attention(f"{label}attention", count, (a.n_heads, a.n_kv_heads), widths=(a.d_qk, a.d_v), store=(a.d_qk, a.d_v), spans=spans)
    )
    width = a.n_heads * a.d_v
    if a.output_gate:
        ops.append(s.vector(f"{label}output_gate", count, s.tokens * width, SIGMOID + 1, function="activation", shard=Shard.HEADS, reads=2))
    if a.output_norm:
        ops.append(s.vector(f"{label}output_norm", count, s.tokens * width, RMS_NORM, function="norm"))
    ops.append(s.gemm(f"{label}o", count, s.d_model, width, shard=Shard.ROW))
    n_biases = (a.q_width + a.kv_width if a.qkv_bias else 0) + (s.d_model if a.output_bias else 0)
    if n_biases:
        ops.append(s.vector(f"{label}bias", count, s.tokens * n_biases, 1, function="residual", reads=0, writes=0))
    return ops


def _latent(s: Site, label: str, count: int, a: Latent) -> list[Op]:
    d_qk = a.d_nope + a.d_rope
    ops: list[Op] = []
    if a.q_rank:
        ops.append(s.gemm(f"{label}q_kv_a", count, a.q_rank + a.kv_rank + a.d_rope, s.d_model))
        ops.append(s.gemm(f"{label}q_b", count, a.n_heads * d_qk, a.q_rank, shard=Shard.COLUMN))
    else:
        ops.append(s.gemm(f"{label}kv_a", count, a.kv_rank + a.d_rope, s.d_model))
        ops.append(s.gemm(f"{label}q", count, a.n_heads * d_qk, s.d_model, shard=Shard.COLUMN))
    ops.append(s.vector(f"{label}latent_norm", count, s.tokens * (a.q_rank + a.kv_rank), RMS_NORM, function="norm"))
    ops.append(s.vector(f"{label}rotary", count, s.tokens * (a.n_heads + 1) * a.d_rope, ROTARY, function="rotary", shard=Shard.HEADS))
    if a.indexer and not a.indexer.shared:
        ops += _index(s, label, count, a.indexer, a.q_rank)
    absorbed = [g for g in s.step.groups if _absorbs(s, a, g)]
    expanded = [g for g in s.step.groups if not _absorbs(s, a, g)]
    if expanded:
        ops += _latent_expanded(s, label, count, a, expanded)
    if absorbed:
        ops += _latent_absorbed(s, label, count, a, absorbed)
    ops.append(s.gemm(f"{label}o", count, s.d_model, a.n_heads * a.d_v, shard=Shard.ROW))
    return ops


def _absorbs(s: Site, a: Latent, g: Sequences) -> bool:
    """Tell whether a group is cheaper absorbed: queries projected into the latent, against every token's latent expanded per head."""
    if s.latent != "auto":
        return s.latent == "absorbed"
    new, context = g.new_tokens, g.context_tokens
    up = a.kv_rank * (a.d_nope + a.d_v)
    in_latent = _latent_pairs(a, new, context) * (2 * a.kv_rank + a.d_rope) + new * up
    in_heads = pairs.causal(new, context) * (a.d_nope + a.d_rope + a.d_v) + (new + context) * up
    return in_latent <= in_heads


def _latent_pairs(a: Latent, new: int, context: int) -> int:
    return pairs.clipped(new, context, a.indexer.top_k) if a.indexer else pairs.causal(new, context)


def _latent_expanded(s: Site, label: str, count: int, a: Latent, groups: list[Sequences]) -> list[Op]:
    tokens = sum(g.count * (g.new_tokens + g.context_tokens) for g in groups)
    spans = tuple(
        Span(g.count, g.new_tokens, g.new_tokens + g.context_tokens, float(pairs.causal(g.new_tokens, g.context_tokens))) for g in groups
    )
    d_qk = a.d_nope + a.d_rope
    return [
        s.gemm(f"{label}kv_b", count, a.n_heads * (a.d_nope + a.d_v), a.kv_rank, shard=Shard.COLUMN, m=tokens),
        s.vector(f"{label}key_concat", count, tokens * a.n_heads * d_qk, 1, function="residual", shard=Shard.HEADS),
        s.attention(f"{label}attention", count, (a.n_heads, 1), widths=(d_qk, a.d_v), store=(a.kv_rank + a.d_rope, 0), spans=spans),
    ]


def _latent_absorbed(s: Site, label: str, count: int, a: Latent, groups: list[Sequences]) -> list[Op]:
    tokens = sum(g.count * g.new_tokens for g in groups)
    spans = tuple(_latent_span(a, g) for g in groups)
    widths = (a.kv_rank + a.d_rope, a.kv_rank)
    return [
        s.gemm(f"{label}k_absorb", count, a.kv_rank, a.d_nope, shard=Shard.HEADS, m=tokens, batch=a.n_heads),
        s.attention(f"{label}attention_absorbed", count, (a.n_heads, 1), widths=widths, store=(a.kv_rank + a.d_rope, 0), spans=spans),
        s.gemm(f"{label}v_absorb", count, a.d_v, a.kv_rank, shard=Shard.HEADS, m=tokens, batch=a.n_heads),
    ]


def _latent_span(a: Latent, g: Sequences) -> Span:
    keys = g.new_tokens + g.context_tokens
    if a.indexer:  # each query picks its own keys: together at most top_k times as many
        keys = min(keys, g.new_tokens * a.indexer.top_k)
    return Span(g.count, g.new_tokens, keys, float(_latent_pairs(a, g.new_tokens, g.context_tokens)))


def _index(s: Site, label: str, count: int, i: Indexer, q_rank: int) -> list[Op]:
    spans = tuple(
        Span(g.count, g.new_tokens, g.new_tokens + g.context_tokens, float(pairs.causal(g.new_tokens, g.context_tokens)))
        for g in s.step.groups
    )
    ops: list[Op] = [
        s.gemm(f"{label}index_q", count, i.n_heads * i.d_head, q_rank),
        s.gemm(f"{label}index_k", count, i.d_head + i.n_heads, s.d_model),
        s.vector(f"{label}index_rotary", count, s.tokens * (i.n_heads + 1) * i.d_head, ROTARY, function="rotary"),
    ]
    return ops + _index_scores(s, label, count, i, spans)


def _index_scores(s: Site, label: str, count: int, i: Indexer, spans: tuple[Span, ...]) -> list[Op]:
    scores = sum(x.count * x.pairs for x in spans)
    score_format: NumberFormat = s.recipe.residual
    size = scores * score_format.bytes_per_value
    return [
        s.attention(
            f"{label}index_scores", count, (i.n_heads, 1), widths=(i.d_head, 0), store=(i.d_head, 0), spans=spans, shard=Shard.REPLICATED
        ),
        # per head: rectify, weigh, add; then one comparison per score to select
        Vector(f"{label}index_select", count, scores, 3 * i.n_heads + 1, size, 0.0, Shard.REPLICATED, "router"),
    ]


def _compressed(s: Site, label: str, count: int, a: Compressed) -> list[Op]:
    i, pool = a.indexer, 2 * a.series * a.d_head if a.ratio else 0
    index = 4 * i.d_head + i.n_heads if i else 0
    spans = tuple(_compressed_span(a, g) for g in s.step.groups)
    ops: list[Op] = [
        s.gemm(f"{label}q_kv_a", count, a.q_rank + a.d_head + pool + index, s.d_model),
        s.gemm(f"{label}q_b", count, a.n_heads * a.d_head, a.q_rank, shard=Shard.COLUMN),
        s.vector(f"{label}latent_norm", count, s.tokens * (a.q_rank + a.d_head), RMS_NORM, function="norm"),
        s.vector(f"{label}rotary", count, s.tokens * (a.n_heads + 1) * a.d_rope, ROTARY, function="rotary", shard=Shard.HEADS),
    ]
    if a.ratio:
        ops.append(s.vector(f"{label}pool", count, s.tokens * (pool // 2), SOFTMAX + 2, function="softmax", reads=2, writes=1 / a.ratio))
    if i:
        ops.append(s.gemm(f"{label}index_q", count, i.n_heads * i.d_head, a.q_rank))
        ops += _index_scores(s, label, count, i, tuple(_pooled_span(a, g) for g in s.step.groups))
    per_group = a.n_heads * a.d_head // a.o_groups
    return [
        *ops,
        s.attention(f"{label}attention", count, (a.n_heads, 1), widths=(a.d_head, a.d_head), store=(a.d_head, 0), spans=spans),
        s.gemm(f"{label}o_a", count, a.o_rank, per_group, shard=Shard.HEADS, batch=a.o_groups),
        s.gemm(f"{label}o_b", count, s.d_model, a.o_groups * a.o_rank, shard=Shard.ROW),
    ]


def _pooled_span(a: Compressed, g: Sequences) -> Span:
    entries = (g.new_tokens + g.context_tokens) // a.ratio
    return Span(g.count, g.new_tokens, entries, float(pairs.pooled(g.new_tokens, g.context_tokens, a.ratio)))


def _compressed_span(a: Compressed, g: Sequences) -> Span:
    new, context = g.new_tokens, g.context_tokens
    keys, seen = min(new + context, new + a.window - 1), pairs.clipped(new, context, a.window)
    if a.ratio:
        limit = a.indexer.top_k if a.indexer else None
        entries = (new + context) // a.ratio
        keys += entries if limit is None else min(entries, new * limit)
        seen += pairs.pooled(new, context, a.ratio, limit)
    return Span(g.count, new, keys, float(seen))


def _linear(s: Site, label: str, count: int, a: LinearAttention) -> list[Op]:
    width = a.n_value_heads * a.d_value
    state = a.n_value_heads * a.d_key * a.d_value
    macs = sum(g.count * g.new_tokens * a.n_value_heads * _delta_macs(a, min(g.new_tokens, a.chunk_tokens)) for g in s.step.groups)
    vector_ops = DECAY_AND_WRITE * s.tokens * a.n_value_heads * (a.d_key + a.d_value)
    return [
        s.gemm(f"{label}in", count, a.in_width, s.d_model, shard=Shard.COLUMN),
        _convolution(s, label, count, a.conv_channels, a.conv_width),
        _scan(s, label, count, macs=macs, vector_ops=vector_ops, state=state),
        s.vector(f"{label}gated_norm", count, s.tokens * width, GATED_NORM, function="norm", shard=Shard.HEADS, reads=2),
        s.gemm(f"{label}o", count, s.d_model, width, shard=Shard.ROW),
    ]


def _delta_macs(a: LinearAttention, chunk: int) -> float:
    """Return macs per token and head: predict, correct, read a `d_key x d_value` state; in chunks also products inside the chunk.

    The chunk's share, causal half taken: K.K and its triangular solve applied to keys and values, Q.K, and its product with values.
    Source: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", NeurIPS 2024, section 3.
    """
    inside = (chunk - 1) / 2 * (3 * a.d_key + 2 * a.d_value)
    return 3 * a.d_key * a.d_value + inside


def _state_space(s: Site, label: str, count: int, a: StateSpace) -> list[Op]:
    state = a.d_inner * a.d_state
    ops: list[Op] = [
        s.gemm(f"{label}in", count, a.in_width, s.d_model, shard=Shard.COLUMN),
        _convolution(s, label, count, a.conv_channels, a.conv_width),
    ]
    if a.version == 1:
        ops.append(s.gemm(f"{label}x", count, a.dt_rank + 2 * a.d_state, a.d_inner, shard=Shard.ROW))
        ops.append(s.gemm(f"{label}dt", count, a.d_inner, a.dt_rank, shard=Shard.COLUMN))
        # per state value: step x decay, exp, step x input x B (two products), state x decay + that, and C x state summed: no matrix form
        ops.append(_scan(s, label, count, macs=0.0, vector_ops=8.0 * s.tokens * state, state=state))
        gate, gate_ops = "gate", SIGMOID + 2
    else:
        macs = sum(g.count * g.new_tokens * _dual_macs(a, min(g.new_tokens, a.chunk_tokens)) for g in s.step.groups)
        ops.append(_scan(s, label, count, macs=macs, vector_ops=DECAY_AND_WRITE * s.tokens * a.d_inner, state=state))
        gate, gate_ops = ("gated_norm", GATED_NORM) if a.gated_norm else ("gate", SIGMOID + 2)
    ops.append(s.vector(f"{label}{gate}", count, s.tokens * a.d_inner, gate_ops, function="norm", shard=Shard.HEADS, reads=2))
    ops.append(s.gemm(f"{label}o", count, s.d_model, a.d_inner, shard=Shard.ROW))
    return ops


def _dual_macs(a: StateSpace, chunk: int) -> float:
    """Return macs per token of the state-space dual: write and read the state; in chunks also C.B and its product with the inputs, causal half.

    Source: Dao and Gu, arXiv 2405.21060, section 6.
    """
    return 2 * a.d_inner * a.d_state + (chunk - 1) / 2 * (a.n_groups * a.d_state + a.d_inner)


def _convolution(s: Site, label: str, count: int, channels: int, width: int) -> Vector:
    return s.vector(f"{label}convolution", count, s.tokens * channels, 2 * width + SIGMOID + 1, function="convolution", shard=Shard.HEADS)


def _scan(s: Site, label: str, count: int, *, macs: float, vector_ops: float, state: int) -> Scan:
    size = state * s.recipe.accumulator.bytes_per_value
    resumed = sum(g.count for g in s.step.groups if g.context_tokens)
    return Scan(f"{label}scan", count, macs, vector_ops, resumed * size, s.step.n_sequences * size, s.recipe.attention, Shard.HEADS)
