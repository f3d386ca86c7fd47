"""Decoders from before the Llama shape, and encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabless.core.errors import InputError, UnsupportedError
from fabless.model.families import model
from fabless.model.layers import Dense, GroupedQuery
from fabless.model.model import Layer

if TYPE_CHECKING:
    from fabless.model.fields import Fields
    from fabless.model.model import Model


def _heads(c: Fields, d_model: int, **more: Any) -> GroupedQuery:
    n_heads = c.integer("num_attention_heads", "n_head", "n_heads")
    if d_model % n_heads:
        raise InputError(f"{c.where}: a width of {d_model} does not divide among {n_heads} attention heads")
    d_head = d_model // n_heads
    return GroupedQuery(n_heads, more.pop("n_kv_heads", n_heads), d_head, d_head, **more)


def _repeat(c: Fields, layer: Layer) -> list[Layer]:
    return [layer] * c.layers("num_hidden_layers", "n_layer", "n_layers")


def gpt2(name: str, c: Fields) -> Model:
    """Build a GPT-2 or GPT-3 decoder: learned positions, biases everywhere, tied head."""
    d_model = c.integer("n_embd", "hidden_size")
    mlp = Dense(c.integer("n_inner", default=4 * d_model), gated=False, bias=True, activation="gelu")
    layer = Layer((_heads(c, d_model, qkv_bias=True, output_bias=True, rotary=False),), mlp, norm_bias=True)
    return model(name, c, _repeat(c, layer), tied=True, norm_bias=True, n_positions=c.integer("n_positions"))


def gptj(name: str, c: Fields) -> Model:
    """Build GPT-J: attention and MLP in parallel from one norm, rotary positions, a head with bias."""
    d_model = c.integer("n_embd", "hidden_size")
    mlp = Dense(c.integer("n_inner", default=4 * d_model), gated=False, bias=True, activation="gelu")
    layer = Layer((_heads(c, d_model),), mlp, n_norms=1, norm_bias=True, parallel=True)
    return model(name, c, _repeat(c, layer), norm_bias=True, head_bias=True)


def bloom(name: str, c: Fields) -> Model:
    """Build BLOOM: linear position biases (no table), a norm after the embedding, biases everywhere, tied head."""
    d_model = c.integer("hidden_size", "n_embed")
    layer = Layer(
        (_heads(c, d_model, qkv_bias=True, output_bias=True, rotary=False),),
        Dense(4 * d_model, gated=False, bias=True, activation="gelu"),
        norm_bias=True,
    )
    return model(name, c, _repeat(c, layer), tied=True, norm_bias=True, embedding_norm=True, context=2048)


def opt(name: str, c: Fields) -> Model:
    """Build OPT: learned positions with an offset of two, ReLU, biases everywhere, tied head."""
    d_model = c.integer("hidden_size")
    if c.integer("word_embed_proj_dim", default=d_model) != d_model or not c.flag("do_layer_norm_before", default=True):
        raise UnsupportedError(f"{c.where}: OPT with projected embeddings or norms after (opt-350m) is not known")
    mlp = Dense(c.integer("ffn_dim"), gated=False, bias=True, activation="relu")
    layer = Layer((_heads(c, d_model, qkv_bias=True, output_bias=True, rotary=False),), mlp, norm_bias=True)
    positions = c.integer("max_position_embeddings") + 2
    return model(name, c, _repeat(c, layer), tied=True, norm_bias=True, n_positions=positions)


def falcon(name: str, c: Fields) -> Model:
    """Build Falcon: parallel attention and MLP, one KV head (7B) or a few with two norms (40B, 180B)."""
    d_model = c.integer("hidden_size")
    grouped = c.flag("new_decoder_architecture")
    if c.flag("alibi") or not (grouped or c.flag("parallel_attn", default=True)):
        raise UnsupportedError(f"{c.where}: Falcon with ALiBi or sequential blocks (falcon-rw) is not known")
    n_heads = c.integer("num_attention_heads")
    n_kv_heads = c.integer("num_kv_heads", default=n_heads) if grouped else 1 if c.flag("multi_query", default=True) else n_heads
    bias = c.flag("bias")
    mlp = Dense(c.integer("ffn_hidden_size", default=4 * d_model), gated=False, bias=bias, activation="gelu")
    attention = _heads(c, d_model, n_kv_heads=n_kv_heads, qkv_bias=bias, output_bias=bias)
    layer = Layer((attention,), mlp, n_norms=2 if grouped else 1, norm_bias=True, parallel=True)
    return model(name, c, _repeat(c, layer), tied=True, norm_bias=True, context=2048)


def palm(name: str, c: Fields) -> Model:
    """Build PaLM: one KV head, parallel attention and gated MLP, no biases, tied head. Source: arXiv 2204.02311, section 2."""
    n_heads, d_head = c.integer("num_attention_heads"), c.integer("head_dim")
    layer = Layer((GroupedQuery(n_heads, 1, d_head, d_head),), Dense(c.integer("intermediate_size")), n_norms=1, parallel=True)
    return model(name, c, _repeat(c, layer), tied=True)


def bert(name: str, c: Fields) -> Model:
    """Build a BERT, RoBERTa or DistilBERT encoder with its masked-language head, tied to the token table."""
    d_model = c.integer("hidden_size", "dim")
    return _encoder(name, c, Dense(c.integer("intermediate_size", "hidden_dim"), gated=False, bias=True, activation="gelu"), d_model)


def albert(name: str, c: Fields) -> Model:
    """Build ALBERT: one layer's parameters used by all, a narrow token table projected up."""
    if c.integer("num_hidden_groups", default=1) != 1 or c.integer("inner_group_num", default=1) != 1:
        raise UnsupportedError(f"{c.where}: ALBERT with several layer groups is not known")
    mlp = Dense(c.integer("intermediate_size"), gated=False, bias=True, activation="gelu")
    d_model = c.integer("hidden_size")
    return _encoder(name, c, mlp, d_model, d_embedding=c.integer("embedding_size"), shared_layers=True)


def _encoder(name: str, c: Fields, mlp: Dense, d_model: int, **more: Any) -> Model:
    attention = _heads(c, d_model, qkv_bias=True, output_bias=True, rotary=False, bidirectional=True)
    return model(
        name,
        c,
        _repeat(c, Layer((attention,), mlp, norm_bias=True)),
        tied=True,
        norm_bias=True,
        final_norm=False,
        embedding_norm=True,
        n_positions=c.integer("max_position_embeddings"),
        n_token_types=c.integer("type_vocab_size", default=0, least=0),
        head_bias=True,
        head_transform=True,
        encoder=True,
        **more,
    )
