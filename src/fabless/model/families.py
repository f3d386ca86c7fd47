"""Decoders of grouped-query or latent attention: how a config.json becomes layers.

Most families are one builder with a few traits. The parameter shapes are those that transformers 5.23.0 instantiates,
checked to the last parameter by tests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fabless.core.errors import InputError
from fabless.model.layers import Dense, Experts, GroupedQuery, Indexer, Latent, LinearAttention
from fabless.model.model import Layer, Model, runs

if TYPE_CHECKING:
    from fabless.model.fields import Fields
    from fabless.model.layers import Mlp


@dataclass(frozen=True, slots=True)
class Traits:
    """Say what a decoder family fixes in code rather than in its config.json; None leaves it to the config's key."""

    qkv_bias: bool | None = None  # None: attention_bias
    output_bias: bool | None = None  # None: attention_bias
    qk_norm: str = "none"
    n_norms: int = 2
    tied: bool = False  # when tie_word_embeddings is absent
    output_gate: bool = False
    sinks: bool = False
    output_norm: bool = False  # a norm before the output projection
    mlp_norm: bool = False
    full_every: int = 0  # without layer_types, a sliding_window spares every n-th layer (0: none)
    routed: str = ""  # key of the routed experts' number; "" for dense
    shared_gate: bool = False
    expert_bias: bool = False
    qk_norm_key: str = ""  # a key that switches the QK-norm


def decoder(traits: Traits, name: str, c: Fields) -> Model:
    """Build a decoder of grouped-query layers, with dense or routed MLPs and windows per layer."""
    n_layers = c.layers("num_hidden_layers", "n_layer")
    mixers = attentions(traits, c, n_layers)
    each = mlps(traits, c, n_layers)
    layers = [Layer((a,), m, traits.n_norms) for a, m in zip(mixers, each, strict=True)]
    return model(name, c, layers, tied=traits.tied)


def model(name: str, c: Fields, layers: list[Layer], *, tied: bool = False, **more: Any) -> Model:
    """Build the model around its layers from the keys that all decoders share."""
    rope = c.get("rope_parameters", default={})
    theta = c.get("rope_theta", default=rope.get("rope_theta", 0.0) if isinstance(rope, dict) else 0.0)
    return Model(
        name=name,
        architecture=c.text("model_type"),
        n_vocab=c.integer("vocab_size"),
        d_model=c.integer("hidden_size", "n_embd", "n_embed", "d_model", "dim"),
        layers=runs(layers),
        context_tokens=c.integer("max_position_embeddings", "n_positions", "seq_length", default=more.pop("context", None)),
        tied_embeddings=c.flag("tie_word_embeddings", default=tied),
        norm_epsilon=c.number("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", default=1e-5),
        rope_theta=float(theta) if isinstance(theta, int | float) else 0.0,
        **more,
    )


def attention(traits: Traits, c: Fields) -> GroupedQuery:
    """Return the grouped-query attention of a layer that sees everything."""
    n_heads = c.integer("num_attention_heads", "n_head")
    d_head = c.integer("head_dim", default=max(1, c.integer("hidden_size") // n_heads))
    bias = c.flag("attention_bias")
    qk_norm = traits.qk_norm if not traits.qk_norm_key or c.flag(traits.qk_norm_key) else "none"
    return GroupedQuery(
        n_heads=n_heads,
        n_kv_heads=grouped_heads(c, n_heads),
        d_qk=d_head,
        d_v=d_head,
        qkv_bias=bias if traits.qkv_bias is None else traits.qkv_bias,
        output_bias=bias if traits.output_bias is None else traits.output_bias,
        qk_norm=qk_norm,
        output_gate=traits.output_gate,
        sinks=traits.sinks,
        output_norm=traits.output_norm,
    )


def attentions(traits: Traits, c: Fields, n_layers: int) -> list[GroupedQuery]:
    """Return each layer's grouped-query attention, windowed where the config says."""
    full = attention(traits, c)
    return [full if w is None else replace(full, window=w) for w in windows(traits.full_every, c, n_layers)]


def grouped_heads(c: Fields, n_heads: int) -> int:
    """Return the KV heads; raises `InputError` when the heads do not divide among them."""
    n_kv_heads = c.integer("num_key_value_heads", default=n_heads)
    if n_heads % n_kv_heads:
        raise InputError(f"{c.where}: {n_heads} attention heads do not divide among {n_kv_heads} key-value heads")
    return n_kv_heads


def windows(full_every: int, c: Fields, n_layers: int) -> list[int | None]:
    """Return each layer's sliding window, None where it sees everything, by `layer_types`, a pattern key, or the family's rule."""
    width = c.integer("sliding_window", default=0, least=0)
    if not width or not c.flag("use_sliding_window", default=not c.has("max_window_layers")):
        return [None] * n_layers
    if types := c.items("layer_types", n_layers):
        return [width if t == "sliding_attention" else None for t in types[:n_layers]]
    period = c.integer("sliding_window_pattern", "_sliding_window_pattern", default=full_every, least=0)
    if period:
        return [width if (i + 1) % period else None for i in range(n_layers)]
    first = c.integer("max_window_layers", default=0, least=0)
    return [None if i < first else width for i in range(n_layers)]


def mlps(traits: Traits, c: Fields, n_layers: int) -> list[Mlp]:
    """Return each layer's MLP, dense or routed."""
    activation = c.text("hidden_act", c.text("hidden_activation", "silu"))
    width = c.integer("intermediate_size", default=None if not traits.routed else 0, least=0)
    dense = Dense(width, bias=c.flag("mlp_bias"), norm=traits.mlp_norm, activation=activation)
    if not traits.routed:
        return [dense] * n_layers
    routed = Experts(
        n_experts=c.integer(traits.routed),
        top_k=c.integer("num_experts_per_tok", "experts_per_token"),
        d_ff=c.integer("moe_intermediate_size", "intermediate_size"),
        bias=traits.expert_bias,
        router_bias=traits.expert_bias,
        shared=shared_experts(c, activation),
        shared_gate=traits.shared_gate,
        activation=activation,
    )
    check_experts(c, routed)
    return [routed if r else dense for r in routed_layers(c, n_layers)]


def shared_experts(c: Fields, activation: str) -> Dense | None:
    """Return the shared experts as one MLP, from either way of stating them."""
    width = c.integer("shared_expert_intermediate_size", default=0, least=0)
    width = width or c.integer("n_shared_experts", default=0, least=0) * c.integer("moe_intermediate_size", "intermediate_size")
    return Dense(width, activation=activation) if width else None


def routed_layers(c: Fields, n_layers: int) -> list[bool]:
    """Return which layers route to experts, by whichever of the keys in use the config has."""
    first = c.integer("first_k_dense_replace", default=0, least=0)
    if isinstance(c.get("moe_layer_freq"), list):
        chosen = c.items("moe_layer_freq", n_layers) or [1] * n_layers
        return [bool(x) and i >= first for i, x in enumerate(chosen[:n_layers])]
    step = c.integer("decoder_sparse_step", "moe_layer_freq", default=1)
    dense = set(c.items("mlp_only_layers"))
    offset = 1 if c.has("decoder_sparse_step") else 0
    return [i >= first and (i + offset) % step == 0 and i not in dense for i in range(n_layers)]


def check_experts(c: Fields, routed: Experts) -> None:
    """Raise `InputError` when a token would visit more experts than there are."""
    if routed.top_k > routed.n_experts:
        raise InputError(f"{c.where}: a token visits {routed.top_k} experts, but there are only {routed.n_experts}")


def latent(name: str, c: Fields) -> Model:
    """Build a DeepSeek-style decoder: MLA, optional indexer, dense first layers, then shared and routed experts."""
    n_layers = c.layers("num_hidden_layers")
    indexer = None
    if c.has("index_topk"):
        indexer = Indexer(c.integer("index_n_heads"), c.integer("index_head_dim"), c.integer("index_topk"))
    own = Latent(
        n_heads=c.integer("num_attention_heads"),
        q_rank=c.integer("q_lora_rank", default=0, least=0),
        kv_rank=c.integer("kv_lora_rank"),
        d_nope=c.integer("qk_nope_head_dim"),
        d_rope=c.integer("qk_rope_head_dim"),
        d_v=c.integer("v_head_dim"),
        indexer=indexer,
    )
    follower = replace(own, indexer=replace(indexer, shared=True)) if indexer else own
    types = c.items("indexer_types", n_layers) or ["full"] * n_layers
    attention = [follower if kind == "shared" else own for kind in types[:n_layers]]
    each = mlps(Traits(routed="n_routed_experts"), c, n_layers)
    return model(name, c, [Layer((a,), m) for a, m in zip(attention, each, strict=True)])


def gated_delta(routed: bool, name: str, c: Fields) -> Model:
    """Build a Qwen3-Next-style hybrid: gated delta-rule layers with gated full attention every few layers."""
    n_layers = c.layers("num_hidden_layers")
    traits = Traits(qk_norm="head", output_gate=True, routed="num_experts" if routed else "", shared_gate=True)
    linear = LinearAttention(
        n_key_heads=c.integer("linear_num_key_heads"),
        n_value_heads=c.integer("linear_num_value_heads"),
        d_key=c.integer("linear_key_head_dim"),
        d_value=c.integer("linear_value_head_dim"),
        conv_width=c.integer("linear_conv_kernel_dim"),
    )
    period = c.integer("full_attention_interval", default=4)
    kinds = c.items("layer_types", n_layers) or ["linear_attention" if (i + 1) % period else "full_attention" for i in range(n_layers)]
    full = attention(traits, c)
    mixers = [linear if kind == "linear_attention" else full for kind in kinds[:n_layers]]
    return model(name, c, [Layer((x,), m) for x, m in zip(mixers, mlps(traits, c, n_layers), strict=True)])


def llama4(name: str, c: Fields) -> Model:
    """Build Llama 4: chunked attention but in every fourth layer, routed experts with one shared every few layers."""
    n_layers = c.layers("num_hidden_layers")
    full = attention(Traits(), c)
    chunk = c.integer("attention_chunk_size", default=8192)
    local = replace(full, window=chunk, chunked=True)
    global_period = c.integer("no_rope_layer_interval", default=4)
    step = c.integer("interleave_moe_layer_step", default=1)
    width = c.integer("intermediate_size")
    routed = Experts(c.integer("num_local_experts"), c.integer("num_experts_per_tok"), width, shared=Dense(width))
    check_experts(c, routed)
    dense = Dense(c.integer("intermediate_size_mlp"))
    layers = [Layer((local if (i + 1) % global_period else full,), dense if (i + 1) % step else routed) for i in range(n_layers)]
    return model(name, c, layers)


def mimo(name: str, c: Fields) -> Model:
    """Build MiMo-V2: window layers with their own head shapes and attention sinks, full layers without."""
    n_layers = c.layers("num_hidden_layers")
    n_heads, d_head = c.integer("num_attention_heads"), c.integer("head_dim")
    full = GroupedQuery(
        n_heads, grouped_heads(c, n_heads), d_head, c.integer("v_head_dim", default=d_head), sinks=c.flag("add_full_attention_sink_bias")
    )
    local = GroupedQuery(
        c.integer("swa_num_attention_heads", default=n_heads),
        c.integer("swa_num_key_value_heads", default=full.n_kv_heads),
        c.integer("swa_head_dim", default=full.d_qk),
        c.integer("swa_v_head_dim", default=full.d_v),
        window=c.integer("sliding_window"),
        sinks=c.flag("add_swa_attention_sink_bias"),
    )
    pattern = c.items("hybrid_layer_pattern", n_layers) or [0] * n_layers
    each = mlps(Traits(routed="n_routed_experts"), c, n_layers)
    return model(name, c, [Layer((local if p else full,), m) for p, m in zip(pattern, each, strict=False)])
