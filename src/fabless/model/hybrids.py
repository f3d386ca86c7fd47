"""Architectures with state-space layers, pooled caches, or a different shape per layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fabless.core.errors import InputError, UnsupportedError
from fabless.model.families import Traits, attention, check_experts, grouped_heads, mlps, model, shared_experts, windows
from fabless.model.layers import Compressed, Dense, Experts, GroupedQuery, Indexer, StateSpace
from fabless.model.model import Layer

if TYPE_CHECKING:
    from typing import Any

    from fabless.model.fields import Fields
    from fabless.model.layers import Mlp
    from fabless.model.model import Model

_FULL_EVERY = 6  # Gemma 4: one layer in six sees everything, unless layer_types says otherwise
_UNLIMITED_CONTEXT = 1 << 20  # a recurrent state has no length limit; the million tokens are a bound for reports
_BLOCKS = {"mamba": "M", "attention": "*", "mlp": "-", "moe": "E"}  # Nemotron-H: newer files spell its pattern out
_POOLED_WITH_INDEXER, _POOLED = 4, 128  # the compress_ratios that DeepSeek V4 defines, 0 being none


def deepseek_v4(name: str, c: Fields) -> Model:
    """Build DeepSeek V4: windows plus pooled keys, indexed where pooled finely, hyper-connections, experts in every layer."""
    n_layers = c.layers("num_hidden_layers")
    ratios = c.items("compress_ratios", n_layers) or [_POOLED] * 2 + [
        (_POOLED, _POOLED_WITH_INDEXER)[i % 2 == 0] for i in range(2, n_layers)
    ]
    unknown = set(ratios[:n_layers]) - {0, _POOLED_WITH_INDEXER, _POOLED}
    if unknown:
        raise UnsupportedError(f"{c.where}: compress_ratios {sorted(unknown)} are not known; 0, 4 and 128 are")
    indexer = Indexer(c.integer("index_n_heads"), c.integer("index_head_dim"), c.integer("index_topk"))
    plain = Compressed(
        n_heads=c.integer("num_attention_heads"),
        d_head=c.integer("head_dim"),
        d_rope=c.integer("qk_rope_head_dim"),
        q_rank=c.integer("q_lora_rank"),
        o_groups=c.integer("o_groups"),
        o_rank=c.integer("o_lora_rank"),
        window=c.integer("sliding_window"),
    )
    if plain.n_heads * plain.d_head % plain.o_groups:
        raise InputError(f"{c.where}: heads of {plain.n_heads * plain.d_head} in all do not divide into o_groups = {plain.o_groups}")
    kinds = {
        0: plain,
        _POOLED_WITH_INDEXER: replace(plain, ratio=_POOLED_WITH_INDEXER, indexer=indexer),
        _POOLED: replace(plain, ratio=_POOLED),
    }
    streams = c.integer("hc_mult")
    experts = mlps(Traits(routed="n_routed_experts"), c, 1)[0]
    layers = {ratio: Layer((mixer,), experts, streams=streams) for ratio, mixer in kinds.items()}
    return model(name, c, [layers[r] for r in ratios[:n_layers]], streams=streams)


def gemma4(name: str, c: Fields) -> Model:
    """Build Gemma 4: wider heads in full layers, keys serving as values, shared caches, side embeddings, experts beside a dense MLP."""
    n_layers = c.layers("num_hidden_layers")
    plain = attention(Traits(qk_norm="head"), c)
    shown = windows(_FULL_EVERY, c, n_layers)
    key_is_value = c.flag("attention_k_eq_v")
    heads = c.integer("num_global_key_value_heads", default=plain.n_kv_heads) if key_is_value else plain.n_kv_heads
    first_shared = n_layers - c.integer("num_kv_shared_layers", default=0, least=0)
    default_head = c.integer("global_head_dim", default=512)
    overrides = c.get("per_layer_config", default={})
    narrow = _gemma4_mlp(c, c.integer("intermediate_size"))
    wide = _gemma4_mlp(c, 2 * c.integer("intermediate_size")) if c.flag("use_double_wide_mlp") else narrow
    d_side = c.integer("hidden_size_per_layer_input", default=0, least=0)
    layers = []
    for i, window in enumerate(shown):
        shared = i >= first_shared
        if window is None:
            d_head = _override(overrides, i, default_head)
            mixer = replace(plain, n_kv_heads=heads, d_qk=d_head, d_v=d_head, value_from_key=key_is_value, shared_cache=shared)
        else:
            mixer = replace(plain, window=window, shared_cache=shared)
        layers.append(Layer((mixer,), wide if shared else narrow, n_norms=4, d_side=d_side))
    return model(name, c, layers, tied=True, d_side=d_side)


def _override(overrides: Any, layer: int, default: int) -> int:
    entry = overrides.get(f"{layer:02d}", overrides.get(str(layer), {})) if isinstance(overrides, dict) else {}
    value = entry.get("head_dim", default) if isinstance(entry, dict) else default
    return value if isinstance(value, int) and value > 0 else default


def _gemma4_mlp(c: Fields, d_ff: int) -> Mlp:
    dense = Dense(d_ff, activation="gelu")
    if not c.flag("enable_moe_block"):
        return dense
    routed = Experts(
        n_experts=c.integer("num_experts"),
        top_k=c.integer("top_k_experts"),
        d_ff=c.integer("moe_intermediate_size"),
        shared=dense,
        router_scales=True,
        branch_norms=3,
        activation="gelu",
    )
    check_experts(c, routed)
    return routed


def nemotron_h(name: str, c: Fields) -> Model:
    """Build Nemotron-H: one block per layer by a pattern of M (Mamba-2), * (attention), - (MLP) and E (experts)."""
    pattern = list(c.text("hybrid_override_pattern")) or c.items("layers_block_type")
    pattern = [_BLOCKS.get(block, block) for block in pattern]
    unknown = {str(block) for block in pattern} - {*"M*-E"}
    if unknown or not pattern:
        raise UnsupportedError(f"{c.where}: hybrid_override_pattern has blocks {sorted(unknown)}; M, *, - and E are known")
    if c.integer("num_hidden_layers", default=len(pattern)) != len(pattern):
        raise InputError(f"{c.where}: num_hidden_layers is {c.get('num_hidden_layers')} but the block pattern has {len(pattern)} blocks")
    n_heads = c.integer("num_attention_heads")
    d_head = c.integer("head_dim", "attention_head_dim")
    blocks = {
        "*": lambda: Layer((GroupedQuery(n_heads, grouped_heads(c, n_heads), d_head, d_head, rotary=False),), None, 1),
        "M": lambda: Layer((_mamba2_hybrid(c),), None, 1),
        "-": lambda: Layer((), Dense(c.integer("intermediate_size"), gated=False, activation="relu2"), 1),
        "E": lambda: Layer((), _nemotron_experts(c), 1),
    }
    built = {symbol: blocks[symbol]() for symbol in dict.fromkeys(pattern)}
    return model(name, c, [built[symbol] for symbol in pattern])


def _mamba2_hybrid(c: Fields) -> StateSpace:
    n_heads = c.integer("mamba_num_heads")
    return StateSpace(
        version=2,
        d_inner=n_heads * c.integer("mamba_head_dim"),
        d_state=c.integer("ssm_state_size"),
        conv_width=c.integer("conv_kernel"),
        n_heads=n_heads,
        n_groups=c.integer("n_groups"),
        conv_bias=c.flag("use_conv_bias", default=True),
        proj_bias=c.flag("mamba_proj_bias"),
        chunk_tokens=c.integer("chunk_size", default=128),
    )


def _nemotron_experts(c: Fields) -> Experts:
    shared = c.integer("moe_shared_expert_intermediate_size", default=0, least=0) * c.integer("n_shared_experts", default=1, least=0)
    routed = Experts(
        n_experts=c.integer("n_routed_experts"),
        top_k=c.integer("num_experts_per_tok"),
        d_ff=c.integer("moe_intermediate_size"),
        gated=False,
        shared=Dense(shared, gated=False, activation="relu2") if shared else None,
        d_latent=c.integer("moe_latent_size", default=0, least=0),
        activation="relu2",
    )
    check_experts(c, routed)
    return routed


def nemotron_nas(name: str, c: Fields) -> Model:
    """Build a Nemotron-NAS (DeciLM) decoder: each block has its own KV heads and MLP width, or lacks one of them."""
    d_model, n_heads = c.integer("hidden_size"), c.integer("num_attention_heads")
    layers = []
    for i, block in enumerate(c.items("block_configs", c.layers("num_hidden_layers"))):
        mix, ffn = _block(c, i, block, "attention"), _block(c, i, block, "ffn")
        mixers: tuple[GroupedQuery, ...] = ()
        if not mix.flag("no_op"):
            group, d_head = mix.integer("n_heads_in_group"), d_model // n_heads
            if n_heads % group or d_model % n_heads:
                raise InputError(f"{mix.where}: width {d_model}, {n_heads} heads and {group} heads in a group do not divide")
            mixers = (GroupedQuery(n_heads, n_heads // group, d_head, d_head),)
        mlp = None
        if not ffn.flag("no_op"):
            # width rule of the release's modeling_decilm.py: two thirds of the multiple, rounded up to 256
            mlp = Dense(-(-int(2 * ffn.number("ffn_mult") * d_model / 3) // 256) * 256)
        layers.append(Layer(mixers, mlp, n_norms=bool(mixers) + bool(mlp)))
    return model(name, c, layers)


def _block(c: Fields, i: int, block: object, part: str) -> Fields:
    if not isinstance(block, dict) or not isinstance(block.get(part), dict):
        raise InputError(f"{c.where}: block_configs[{i}] lacks its '{part}' table")
    fields = type(c)(block[part], f"{c.where}: block_configs[{i}].{part}")
    for key in ("replace_with_linear", "sparsify", "window_length", "num_sink_tokens"):
        if fields.get(key):
            raise UnsupportedError(f"{fields.where}: '{key}' is not known")
    return fields


def falcon_h1(name: str, c: Fields) -> Model:
    """Build Falcon-H1: attention and Mamba-2 side by side in every layer."""
    n_layers = c.layers("num_hidden_layers")
    heads = attention(Traits(), c)
    ssm = StateSpace(
        version=2,
        d_inner=c.integer("mamba_d_ssm", default=c.integer("mamba_expand", default=2) * c.integer("hidden_size")),
        d_state=c.integer("mamba_d_state"),
        conv_width=c.integer("mamba_d_conv"),
        n_heads=c.integer("mamba_n_heads"),
        n_groups=c.integer("mamba_n_groups", default=1),
        conv_bias=c.flag("mamba_conv_bias", default=True),
        proj_bias=c.flag("mamba_proj_bias"),
        gated_norm=c.flag("mamba_rms_norm"),
        chunk_tokens=c.integer("mamba_chunk_size", default=256),
    )
    mlp = mlps(Traits(), c, 1)[0]
    return model(name, c, [Layer((heads, ssm), mlp)] * n_layers)


def jamba(name: str, c: Fields) -> Model:
    """Build Jamba: Mamba-1 with attention every few layers, experts every other layer."""
    n_layers = c.layers("num_hidden_layers")
    heads = replace(attention(Traits(), c), rotary=False)
    ssm = StateSpace(
        version=1,
        d_inner=c.integer("mamba_expand", default=2) * c.integer("hidden_size"),
        d_state=c.integer("mamba_d_state"),
        conv_width=c.integer("mamba_d_conv"),
        dt_rank=c.integer("mamba_dt_rank"),
        conv_bias=c.flag("mamba_conv_bias", default=True),
        proj_bias=c.flag("mamba_proj_bias"),
        inner_norms=True,
    )
    width = c.integer("intermediate_size")
    routed = Experts(c.integer("num_experts"), c.integer("num_experts_per_tok"), width, shared=shared_experts(c, "silu"))
    check_experts(c, routed)
    period, offset = c.integer("attn_layer_period"), c.integer("attn_layer_offset", least=0)
    expert_period, expert_offset = c.integer("expert_layer_period"), c.integer("expert_layer_offset", least=0)
    layers = []
    for i in range(n_layers):
        mlp: Mlp = routed if i % expert_period == expert_offset and routed.n_experts > 1 else Dense(width)
        layers.append(Layer((heads if i % period == offset else ssm,), mlp))
    return model(name, c, layers)


def mamba(version: int, name: str, c: Fields) -> Model:
    """Build a pure Mamba decoder: one mixer and one norm per layer, no positions, unlimited context."""
    d_model = c.integer("hidden_size", "d_model")
    d_inner = c.integer("intermediate_size", default=c.integer("expand", default=2) * d_model)
    rank = c.get("time_step_rank", default="auto")
    ssm = StateSpace(
        version=version,
        d_inner=d_inner,
        d_state=c.integer("state_size"),
        conv_width=c.integer("conv_kernel", default=4),
        n_heads=c.integer("num_heads") if version == 2 else 0,
        n_groups=c.integer("n_groups", default=1),
        dt_rank=-(-d_model // 16) if rank == "auto" else c.integer("time_step_rank"),
        conv_bias=c.flag("use_conv_bias", default=True),
        proj_bias=c.flag("use_bias"),
        chunk_tokens=c.integer("chunk_size", default=256),
    )
    layers = [Layer((ssm,), None, 1)] * c.layers("num_hidden_layers", "n_layer")
    return model(name, c, layers, tied=version == 1, context=_UNLIMITED_CONTEXT)
