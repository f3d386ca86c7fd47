"""From a decoder that runs to the model whose operations are counted: so that an estimate and a simulation speak of the same step."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from fabless.model.layers import Dense, Experts, GroupedQuery
from fabless.model.model import Layer, Model

if TYPE_CHECKING:
    from fabless.model.decoder import Decoder


def counted(decoder: Decoder) -> Model:
    """Return the `Model` of a decoder: same layers, widths, windows, experts and biases."""
    activation = "gelu" if decoder.activation == "gelu_tanh" else "silu"
    mlp = (
        Dense(decoder.d_ff, bias=decoder.mlp_bias, activation=activation)
        if decoder.routing is None
        else Experts(decoder.routing.n_experts, decoder.routing.n_routed, decoder.d_ff, bias=decoder.mlp_bias, router_bias=decoder.mlp_bias)
    )
    layers = []
    for window, same in groupby(decoder.windows):
        mixer = GroupedQuery(
            decoder.n_heads, decoder.n_kv_heads, decoder.d_head, decoder.d_head, window=window or None, qkv_bias=decoder.qkv_bias,
            output_bias=decoder.o_bias, qk_norm="head" if decoder.qk_norm else "none", sinks=decoder.sinks,
        )  # fmt: skip
        layers.append((len(list(same)), Layer((mixer,), mlp, n_norms=4 if decoder.post_norms else 2)))
    return Model(
        decoder.name, decoder.family, decoder.n_vocab, decoder.d_model, tuple(layers), decoder.context_tokens,
        tied_embeddings=decoder.tied_embeddings, norm_epsilon=decoder.norm_epsilon,
    )  # fmt: skip
