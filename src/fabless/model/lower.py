"""Lower a model and a step to a graph of ops: what is multiplied, read and written, per kind of layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fabless.core.errors import InputError, UnsupportedError
from fabless.model.graph import Gather, Gemm, Graph, Op, Shard
from fabless.model.layers import Compressed, Dense, Experts, GroupedQuery, LinearAttention, StateSpace
from fabless.model.lower_mixers import LAYER_NORM, RMS_NORM, SIGMOID, SOFTMAX, Site, mixer_ops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabless.model.model import Layer, Model
    from fabless.model.step import Recipe, Step

_ACTIVATION_OPS = {"silu": SIGMOID + 1, "relu": 1, "relu2": 2}  # lane operations per element
_GELU_OPS = 8  # x, x^3, scale, add, tanh as exp-add-reciprocal, product: the tanh form that engines use
_ROUTER_OPS = SOFTMAX + 1  # normalise the scores, and one comparison each to select
LATENT_MODES = ("auto", "absorbed", "expanded")


def lower(model: Model, recipe: Recipe, step: Step, *, latent: str = "auto") -> Graph:
    """Return the ops of one step of `model` in the formats of `recipe`; layers of one kind are one op with a count.

    Embeddings are gathers; q, k, v and gate, up are single products, as engines run them. Routed experts are a batch of the expected
    distinct experts that the step's tokens visit. `latent` chooses how MLA is computed: "absorbed" (in the latent), "expanded" (per head) or
    "auto": whichever takes fewer multiply-accumulates for each group of sequences. Softmax belongs to its attention op.
    Raises `UnsupportedError` for a step that the model cannot take (a decode step of an encoder).

    Limits: experts are routed uniformly; adding biases rides on the product before; draft models of speculation are not included.
    """
    _check(model, step, latent)
    site = Site(step.new_tokens, model.d_model, step, recipe, latent)
    ops = _embedding(site, model)
    for label, (count, layer) in zip(_labels(model), model.kinds, strict=True):
        ops += _layer(site, label, count, layer)
    ops += _head(site, model)
    return Graph(
        model_name=model.name,
        recipe=recipe,
        step=step,
        ops=tuple(ops),
        weight_bytes=model.weight_bytes(recipe),
        kv_bytes=sum(g.count * model.kv_bytes(g.context_tokens + g.new_tokens, recipe) for g in step.groups),
        activation_bytes=_activation_bytes(site, ops),
        n_layers=model.n_layers,
        d_model=model.d_model,
        expert_weight_bytes=model.expert_params * recipe.expert_weights.bytes_per_value,
        n_kv_heads=model.n_kv_heads,
    )


def _check(model: Model, step: Step, latent: str) -> None:
    if latent not in LATENT_MODES:
        raise InputError(f"latent must be one of {', '.join(LATENT_MODES)}, not '{latent}'")
    if model.encoder and any(g.context_tokens for g in step.groups):
        raise UnsupportedError(f"{model.name} is an encoder: it keeps no cache and has no decode step; use Step.prefill")


def _embedding(s: Site, model: Model) -> list[Op]:
    table = s.recipe.head_weights if model.tied_embeddings else s.recipe.embedding_weights
    row = model.embedding_width * table.bytes_per_value
    ops: list[Op] = [Gather("embedding", 1, s.tokens, row)]
    n_more = bool(model.n_positions) + bool(model.n_token_types)
    if n_more:
        ops.append(Gather("positions", n_more, s.tokens, row))
    if model.embedding_norm:
        per_element = LAYER_NORM if model.norm_bias else RMS_NORM
        ops.append(s.vector("embedding_norm", 1, s.tokens * model.embedding_width, per_element, function="norm"))
    if model.d_embedding:
        ops.append(s.gemm("embedding_up", 1, model.d_model, model.d_embedding))
    if model.d_side:
        width = model.n_layers * model.d_side
        ops.append(Gather("side_embedding", 1, s.tokens, width * table.bytes_per_value))
        ops.append(s.gemm("side_in", 1, width, model.d_model))
        ops.append(s.vector("side_norm", 1, s.tokens * width, RMS_NORM + 2, function="norm", reads=2))
    return ops


def _layer(s: Site, label: str, count: int, layer: Layer) -> list[Op]:
    wide = s.tokens * s.d_model
    n_sites = bool(layer.mixers) + bool(layer.mlp)
    ops: list[Op] = []
    if layer.n_norms:
        per_element = LAYER_NORM if layer.norm_bias else RMS_NORM
        ops.append(s.vector(f"{label}norm", count * layer.n_norms, wide, per_element, function="norm"))
    inner: list[Op] = []
    for i, mixer in enumerate(layer.mixers):
        inner += mixer_ops(s, label if i == 0 else f"{label}{_mixer_word(mixer)}.", count, mixer)
    match layer.mlp:
        case Dense():
            inner += _dense(s, label, count, layer.mlp)
        case Experts():
            inner += _experts(s, label, count, layer.mlp)
    ops += _joined(inner, label, one_input=layer.n_norms == 1) if layer.parallel else inner
    ops.append(s.vector(f"{label}residual", count * max(len(layer.mixers) + bool(layer.mlp), 1), wide, 1, function="residual", reads=2))
    if layer.streams:
        ops += _streams(s, label, count * n_sites, layer.streams)
    if layer.d_side:
        ops += [
            s.gemm(f"{label}side_gate", count, layer.d_side, s.d_model),
            s.vector(f"{label}side_activation", count, s.tokens * layer.d_side, _GELU_OPS + 1, function="activation", reads=2),
            s.gemm(f"{label}side_out", count, s.d_model, layer.d_side),
            s.vector(f"{label}side_norm", count, wide, RMS_NORM + 1, function="norm", reads=2),
        ]
    return ops


def _joined(ops: list[Op], label: str, *, one_input: bool) -> list[Op]:
    """Join the products of a parallel block: outputs of attention and MLP add up, so they are one product (and one all-reduce) over both inputs.

    Where both read one norm, their first products are one as well. Source: PaLM, arXiv 2204.02311, section 2, "Parallel Layers".
    """
    gemms = {op.name.removeprefix(label): op for op in ops if isinstance(op, Gemm)}
    first, last = gemms["qkv"], gemms["down"]
    up = next(gemms[name] for name in ("gate_up", "up") if name in gemms)
    joined: dict[int, Op | None] = {id(last): replace(last, name=f"{label}o_down", k=gemms["o"].k + last.k), id(gemms["o"]): None}
    if one_input:
        joined |= {id(first): replace(first, name=f"{label}qkv_{up.name.removeprefix(label)}", n=first.n + up.n), id(up): None}
    return [new for op in ops if (new := joined.get(id(op), op)) is not None]


def _streams(s: Site, label: str, count: int, streams: int) -> list[Op]:
    width = streams * s.d_model
    mixes = (2 + streams) * streams
    return [
        s.small_gemm(f"{label}stream_mix", count, mixes, width),
        s.vector(f"{label}streams", count, s.tokens * width, 2 * (streams + 2), function="residual"),
    ]


def _dense(s: Site, label: str, count: int, m: Dense) -> list[Op]:
    ops: list[Op] = [s.gemm(f"{label}{'gate_up' if m.gated else 'up'}", count, m.in_width, s.d_model, shard=Shard.COLUMN)]
    ops.append(_activation(s, f"{label}activation", count, s.tokens * m.d_ff, m))
    ops.append(s.gemm(f"{label}down", count, s.d_model, m.d_ff, shard=Shard.ROW))
    if m.bias:
        ops.append(s.vector(f"{label}mlp_bias", count, s.tokens * (m.in_width + s.d_model), 1, function="residual", reads=0, writes=0))
    return ops


def _activation(s: Site, name: str, count: int, elements: float, m: Dense | Experts) -> Op:
    per_element = _ACTIVATION_OPS.get(m.activation, _GELU_OPS) + m.gated + (RMS_NORM if isinstance(m, Dense) and m.norm else 0)
    shard = Shard.COLUMN if isinstance(m, Dense) else Shard.EXPERT
    return s.vector(name, count, elements, per_element, function="activation", shard=shard, reads=2 if m.gated else 1)


def _experts(s: Site, label: str, count: int, m: Experts) -> list[Op]:
    touched = m.touched(s.tokens)
    visits = s.tokens * m.top_k
    width = m.d_latent or s.d_model
    r = s.recipe

    def routed(name: str, n: int, k: int, *, combine: bool = False) -> Gemm:
        return Gemm(
            f"{label}{name}", count, visits / touched, n, k, touched, True, r.activations, r.expert_weights, r.residual,
            Shard.EXPERT, m.n_experts, m.top_k, combine,
        )  # fmt: skip

    ops: list[Op] = [
        s.small_gemm(f"{label}router", count, m.n_experts, s.d_model),
        s.vector(f"{label}route", count, s.tokens * m.n_experts, _ROUTER_OPS, function="router"),
        routed("experts_gate_up" if m.gated else "experts_up", m.in_width, width),
        _activation(s, f"{label}experts_activation", count, visits * m.d_ff, m),
        routed("experts_down", width, m.d_ff, combine=True),
        s.vector(f"{label}experts_combine", count, visits * width, 2, function="residual", writes=1 / m.top_k),
    ]
    if m.d_latent:
        ops += [s.gemm(f"{label}latent_in", count, width, s.d_model), s.gemm(f"{label}latent_out", count, s.d_model, width)]
    if m.branch_norms:
        ops.append(s.vector(f"{label}branch_norm", count * m.branch_norms, s.tokens * s.d_model, RMS_NORM, function="norm"))
    if m.shared:
        ops += _dense(s, f"{label}shared_", count, m.shared)
    if m.shared_gate:
        ops.append(s.vector(f"{label}shared_gate", count, s.tokens * s.d_model, 3, function="router"))
    return ops


def _head(s: Site, model: Model) -> list[Op]:
    ops: list[Op] = []
    if model.final_norm:
        ops.append(s.vector("final_norm", 1, s.tokens * s.d_model, LAYER_NORM if model.norm_bias else RMS_NORM, function="norm"))
    if model.pooler:
        ops.append(s.gemm("pooler", 1, s.d_model, s.d_model, m=s.step.n_sequences))
    rows = _logit_rows(model, s.step)
    if not rows:
        return ops
    width = model.embedding_width
    if model.head_transform:
        ops.append(s.gemm("head_transform", 1, width, s.d_model, m=rows))
    weights = s.recipe.head_weights
    operands = s.recipe.residual if weights.bits_per_value >= s.recipe.residual.bits_per_value else s.recipe.activations
    ops.append(Gemm("head", 1, rows, model.n_vocab, width, 1.0, True, operands, weights, s.recipe.residual, Shard.COLUMN))
    return ops


def _logit_rows(model: Model, step: Step) -> int:
    """Return the rows through the head: an encoder serves hidden states unless all logits are asked for."""
    if not model.head or (model.encoder and step.logits != "all"):
        return 0
    return step.logit_rows


def _activation_bytes(s: Site, ops: Sequence[Op]) -> float:
    widest = max(
        op.batch * op.m * (op.k * op.activations.bytes_per_value + op.n * op.outputs.bytes_per_value) for op in ops if isinstance(op, Gemm)
    )
    return widest + 2 * s.tokens * s.d_model * s.recipe.residual.bytes_per_value


def _labels(model: Model) -> list[str]:
    """Return a prefix per kind of layer that tells them apart in reports: empty when there is one kind."""
    if len(model.kinds) == 1:
        return [""]
    words = [_layer_word(layer) for _, layer in model.kinds]
    return [f"{w}{words[:i].count(w) + 1 if words.count(w) > 1 else ''}." for i, w in enumerate(words)]


def _layer_word(layer: Layer) -> str:
    mixer = "+".join(_mixer_word(m) for m in layer.mixers)
    mlp = {Dense: "dense", Experts: "moe"}.get(type(layer.mlp), "")
    return "_".join(w for w in (mixer, mlp) if w) or "empty"


def _mixer_word(mixer: object) -> str:
    if isinstance(mixer, GroupedQuery):
        return "full" if mixer.window is None else "window"
    if isinstance(mixer, Compressed):
        return "indexed" if mixer.indexer else "pooled" if mixer.ratio else "window"
    return {LinearAttention: "linear", StateSpace: "ssm"}.get(type(mixer), "latent")
