"""A model as numbers: its layers by kind, and from them parameters and cache bytes, exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fabless.model.layers import Count, GroupedQuery, Latent, State

if TYPE_CHECKING:
    from fabless.model.layers import Mixer, Mlp
    from fabless.model.step import Recipe


@dataclass(frozen=True, slots=True)
class Layer:
    """Combine mixers (several run in parallel on the same input) and an MLP with `n_norms` norms of d_model.

    `parallel`: mixer and MLP run side by side and add to the same residual. `streams`: residual streams mixed by hyper-connections (0: one plain
    stream; source: Zhu et al., arXiv 2409.19606). `d_side`: width of a per-layer token embedding that is gated and projected in (0: none).
    """

    mixers: tuple[Mixer, ...]
    mlp: Mlp | None
    n_norms: int = 2
    norm_bias: bool = False
    parallel: bool = False
    streams: int = 0
    d_side: int = 0

    def count(self, d_model: int) -> Count:
        """Return the parameters of one such layer."""
        parts = [m.count(d_model) for m in self.mixers]
        if self.mlp:
            parts.append(self.mlp.count(d_model))
        small = self.n_norms * d_model * (2 if self.norm_bias else 1)
        if self.streams:
            mixes = (2 + self.streams) * self.streams
            n_sites = bool(self.mixers) + bool(self.mlp)
            small += n_sites * (mixes * self.streams * d_model + mixes + 3)
        matrices = 0
        if self.d_side:
            matrices, small = 2 * self.d_side * d_model, small + d_model
        return Count(
            matrices + sum(p.matrices for p in parts),
            small + sum(p.small for p in parts),
            sum(p.experts for p in parts),
            sum(p.active_experts for p in parts),
        )

    def state(self, context_tokens: int) -> State:
        """Return the values that one sequence keeps in one such layer."""
        states = [m.state(context_tokens) for m in self.mixers]
        return State(sum(s.cached for s in states), sum(s.recurrent for s in states), sum(s.activations for s in states))


@dataclass(frozen=True, slots=True)
class Component:
    """Name parameters that are loaded with the model but take no part in a text step: a vision tower, a projector."""

    name: str
    n_params: int


@dataclass(frozen=True, slots=True)
class Model:
    """Describe a model: `layers` in order as (repeats, layer) runs; `kinds` are the distinct layers with their total repeats.

    `n_positions`: learned absolute positions (0: rotary or none); `d_embedding`: width of the token table when it differs from d_model (0: same);
    `d_side`: per-layer token embedding width; `shared_layers`: all layers use the same parameters; `components`: towers outside a text step.
    `encoder`: bidirectional, no cache, no decode step. `source` says where the description came from.
    """

    name: str
    architecture: str
    n_vocab: int
    d_model: int
    layers: tuple[tuple[int, Layer], ...]
    context_tokens: int
    tied_embeddings: bool = False
    norm_bias: bool = False
    final_norm: bool = True
    embedding_norm: bool = False
    n_positions: int = 0
    n_token_types: int = 0
    d_embedding: int = 0
    d_side: int = 0
    head: bool = True
    head_bias: bool = False
    head_transform: bool = False
    pooler: bool = False
    encoder: bool = False
    shared_layers: bool = False
    streams: int = 0
    components: tuple[Component, ...] = ()
    norm_epsilon: float = 1e-5
    rope_theta: float = 0.0
    source: str = ""
    kinds: tuple[tuple[int, Layer], ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        kinds: dict[Layer, int] = {}
        for repeats, layer in self.layers:
            kinds[layer] = kinds.get(layer, 0) + repeats
        object.__setattr__(self, "kinds", tuple((n, layer) for layer, n in kinds.items()))

    @property
    def n_layers(self) -> int:
        """Return the layers."""
        return sum(n for n, _ in self.layers)

    @property
    def embedding_width(self) -> int:
        """Return the width of a row of the token table."""
        return self.d_embedding or self.d_model

    @property
    def embedding_params(self) -> int:
        """Return the parameters of the tables that are looked up: tokens, positions, types, per-layer tokens."""
        side = self.n_vocab * self.n_layers * self.d_side
        return (self.n_vocab + self.n_positions + self.n_token_types) * self.embedding_width + side

    @property
    def head_params(self) -> int:
        """Return the parameters of the language head that are stored apart from the token table."""
        return self.n_vocab * self.embedding_width if self.head and not self.tied_embeddings else 0

    @property
    def body(self) -> Count:
        """Return the parameters of layers, norms and small projections: everything but tables, head and components."""
        counts = [(1 if self.shared_layers else n, layer.count(self.d_model)) for n, layer in self.kinds]
        norm = self.d_model * (2 if self.norm_bias else 1)
        width = self.embedding_width
        small = (norm if self.final_norm else 0) + (width * (2 if self.norm_bias else 1) if self.embedding_norm else 0)
        matrices = 0
        if self.d_embedding:
            matrices, small = matrices + width * self.d_model, small + self.d_model
        if self.d_side:
            matrices, small = matrices + self.d_model * self.n_layers * self.d_side, small + self.d_side
        if self.head and self.head_transform:
            matrices, small = matrices + self.d_model * width, small + 3 * width  # dense bias and a norm with bias
        if self.head and self.head_bias:
            small += self.n_vocab
        if self.pooler:
            matrices, small = matrices + self.d_model**2, small + self.d_model
        if self.streams:
            small += self.streams * self.streams * self.d_model + self.streams + 1
        return Count(
            matrices + sum(n * c.matrices for n, c in counts),
            small + sum(n * c.small for n, c in counts),
            sum(n * c.experts for n, c in counts),
            sum(n * c.active_experts for n, c in counts),
        )

    @property
    def n_params(self) -> int:
        """Return every parameter, components included; equals what transformers instantiates."""
        return self.body.total + self.embedding_params + self.head_params + sum(c.n_params for c in self.components)

    @property
    def active_params(self) -> int:
        """Return the parameters of which one token makes use: all but components and the experts it does not visit."""
        return self.body.active + self.embedding_params + self.head_params

    @property
    def expert_params(self) -> int:
        """Return the parameters of routed experts, all of them."""
        return self.body.experts

    @property
    def n_kv_heads(self) -> int:
        """Return the most KV heads of any layer: caches divide by at most this many chips (MLA: 1; no cached attention: 0)."""
        heads = [_kv_heads(mixer) for _, layer in self.kinds for mixer in layer.mixers]
        return max(heads, default=0)

    def weight_bytes(self, recipe: Recipe) -> float:
        """Return the bytes of all stored parameters, each class in its format of `recipe`."""
        body, small = self.body, recipe.residual.bytes_per_value
        table = recipe.head_weights if self.tied_embeddings else recipe.embedding_weights
        return (
            body.matrices * recipe.weights.bytes_per_value
            + body.experts * recipe.expert_weights.bytes_per_value
            + (body.small + sum(c.n_params for c in self.components)) * small
            + self.embedding_params * table.bytes_per_value
            + self.head_params * recipe.head_weights.bytes_per_value
        )

    def kv_bytes(self, context_tokens: int, recipe: Recipe) -> float:
        """Return the bytes that one sequence of `context_tokens` keeps: KV caches (windows cut them) and recurrent states."""
        if self.encoder:
            return 0.0
        cached = recurrent = activations = 0
        for n, layer in self.kinds:
            state = layer.state(context_tokens)
            cached += n * state.cached
            recurrent += n * state.recurrent
            activations += n * state.activations
        return (
            cached * recipe.kv_cache.bytes_per_value
            + recurrent * recipe.accumulator.bytes_per_value
            + activations * recipe.residual.bytes_per_value
        )

    def kv_bytes_per_token(self, recipe: Recipe, context_tokens: int = 0) -> float:
        """Return the bytes that the next token adds after `context_tokens`: all layers' keys and values until a window is full."""
        return self.kv_bytes(context_tokens + 1, recipe) - self.kv_bytes(context_tokens, recipe)


def _kv_heads(mixer: Mixer) -> int:
    if isinstance(mixer, GroupedQuery):
        return mixer.n_kv_heads
    return 1 if isinstance(mixer, Latent) or hasattr(mixer, "window") else 0


def runs(layers: list[Layer]) -> tuple[tuple[int, Layer], ...]:
    """Run-length encode a list of layers in order."""
    out: list[tuple[int, Layer]] = []
    for layer in layers:
        if out and out[-1][1] == layer:
            out[-1] = (out[-1][0] + 1, layer)
        else:
            out.append((1, layer))
    return tuple(out)
