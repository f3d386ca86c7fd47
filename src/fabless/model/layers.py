"""The parts of a layer: token mixers and MLPs, each knowing its parameters and what it keeps per sequence.

Letters: D d_model, F d_ff, N heads, K KV heads, H head width. Every count is derived from shapes; nothing is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Count(NamedTuple):
    """Split a part's parameters by how they are stored and used."""

    matrices: int = 0  # multiplied by every token; stored in the recipe's weight format
    small: int = 0  # norms, biases, routers, convolutions; stored like the residual stream
    experts: int = 0  # routed experts, all of them
    active_experts: int = 0  # the routed experts that one token visits

    @property
    def total(self) -> int:
        """Return every parameter."""
        return self.matrices + self.small + self.experts

    @property
    def active(self) -> int:
        """Return the parameters that one token uses."""
        return self.matrices + self.small + self.active_experts


class State(NamedTuple):
    """Split what one sequence keeps in one layer: values in the KV format, recurrent values at accumulator width, the rest as activations."""

    cached: int = 0
    recurrent: int = 0
    activations: int = 0


@dataclass(frozen=True, slots=True)
class GroupedQuery:
    """Attend with `n_heads` queries over `n_kv_heads` keys and values (multi-head when equal, multi-query when 1).

    `window`: keys visible to a query, itself included (None: all before it); `chunked`: the window starts anew every `window` tokens.
    `qk_norm`: "head" (one weight vector per head width), "width" (across all heads) or "none". `shared_cache`: no keys and values of its own,
    it reads an earlier layer's. `value_from_key`: the value projection is the key's.
    """

    n_heads: int
    n_kv_heads: int
    d_qk: int
    d_v: int
    window: int | None = None
    chunked: bool = False
    bidirectional: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: str = "none"
    output_gate: bool = False
    sinks: bool = False
    shared_cache: bool = False
    value_from_key: bool = False
    output_norm: bool = False
    rotary: bool = True

    @property
    def q_width(self) -> int:
        """Return the outputs of the query projection, the output gate included."""
        return self.n_heads * self.d_qk * (2 if self.output_gate else 1)

    @property
    def kv_width(self) -> int:
        """Return the outputs of the key and value projections."""
        if self.shared_cache:
            return 0
        return self.n_kv_heads * (self.d_qk + (0 if self.value_from_key else self.d_v))

    def count(self, d_model: int) -> Count:
        """Return the parameters: q, k, v `[D, (N + K) H]`, output `[N H, D]`, biases, norms, sinks."""
        norms = {
            "none": 0,
            "head": self.d_qk * (1 if self.shared_cache else 2),
            "width": self.d_qk * (self.n_heads + (0 if self.shared_cache else self.n_kv_heads)),
        }[self.qk_norm]
        small = (
            norms
            + (self.q_width + self.kv_width if self.qkv_bias else 0)
            + (d_model if self.output_bias else 0)
            + (self.n_heads if self.sinks else 0)
            + (d_model if self.output_norm else 0)
        )
        return Count(d_model * (self.q_width + self.kv_width + self.n_heads * self.d_v), small)

    def state(self, context_tokens: int) -> State:
        """Return the values that a sequence of `context_tokens` keeps: keys and values of the window."""
        if self.shared_cache:
            return State()
        tokens = context_tokens if self.window is None else min(context_tokens, self.window)
        return State(tokens * self.n_kv_heads * (self.d_qk + self.d_v))


@dataclass(frozen=True, slots=True)
class Indexer:
    """Choose the `top_k` keys that a query attends to by a cheap score over all keys. Source: DeepSeek-V3.2 report, 2025, section 2.1.

    `shared`: this layer uses the choice of an earlier layer, and has no indexer of its own.
    """

    n_heads: int
    d_head: int
    top_k: int
    shared: bool = False

    @property
    def key_width(self) -> int:
        """Return the values that a token keeps for the indexer."""
        return 0 if self.shared else self.d_head


@dataclass(frozen=True, slots=True)
class Latent:
    """Attend through a shared latent of `kv_rank` plus `d_rope` values per token (MLA). Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.

    `q_rank` 0: queries are projected directly. Absorbed, the latent itself serves as one key and value head; unabsorbed it is expanded per head.
    """

    n_heads: int
    q_rank: int
    kv_rank: int
    d_nope: int
    d_rope: int
    d_v: int
    indexer: Indexer | None = None

    def count(self, d_model: int) -> Count:
        """Return the parameters of the down and up projections, their norms and the indexer."""
        heads, rank = self.n_heads, self.kv_rank
        d_qk = self.d_nope + self.d_rope
        queries = d_model * self.q_rank + self.q_rank * heads * d_qk if self.q_rank else d_model * heads * d_qk
        matrices = queries + d_model * (rank + self.d_rope) + rank * heads * (self.d_nope + self.d_v) + heads * self.d_v * d_model
        small = self.q_rank + rank
        if self.indexer and not self.indexer.shared:
            i = self.indexer
            matrices += self.q_rank * i.n_heads * i.d_head + d_model * (i.d_head + i.n_heads)
            small += 2 * i.d_head
        return Count(matrices, small)

    def state(self, context_tokens: int) -> State:
        """Return the cached values: the latent, the rotary key, and the indexer's key."""
        return State(context_tokens * (self.kv_rank + self.d_rope + (self.indexer.key_width if self.indexer else 0)))


@dataclass(frozen=True, slots=True)
class Compressed:
    """Attend to a sliding window plus one pooled key-value per `ratio` tokens (0: window only), one key-value head shared as both.

    With an `indexer` the pooled entries overlap (two series) and a query attends to its `top_k` best. Outputs go through `o_groups` block-diagonal
    projections of rank `o_rank`. Source: DeepSeek-V4 as implemented in transformers 5.23 (`models/deepseek_v4`).
    """

    n_heads: int
    d_head: int
    d_rope: int
    q_rank: int
    o_groups: int
    o_rank: int
    window: int
    ratio: int = 0
    indexer: Indexer | None = None

    @property
    def series(self) -> int:
        """Return the pooled series: two where windows overlap."""
        return 2 if self.indexer else 1

    def count(self, d_model: int) -> Count:
        """Return the parameters of projections, pooling and indexer."""
        heads_width = self.n_heads * self.d_head
        matrices = d_model * (self.q_rank + self.d_head) + self.q_rank * heads_width + heads_width * self.o_rank
        matrices += self.o_groups * self.o_rank * d_model
        small = self.n_heads + self.q_rank + self.d_head
        if self.ratio:
            matrices += 2 * d_model * self.series * self.d_head
            small += self.ratio * self.series * self.d_head + self.d_head
        if self.indexer:
            i = self.indexer
            matrices += 2 * d_model * 2 * i.d_head + self.q_rank * i.n_heads * i.d_head + d_model * i.n_heads
            small += self.ratio * 2 * i.d_head + i.d_head
        return Count(matrices, small)

    def state(self, context_tokens: int) -> State:
        """Return the cached values: the window, the pooled entries, and the indexer's pooled keys."""
        pooled = context_tokens // self.ratio if self.ratio else 0
        return State(min(context_tokens, self.window) * self.d_head + pooled * (self.d_head + (self.indexer.d_head if self.indexer else 0)))


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Keep one `d_key x d_value` matrix per value head, decayed and corrected by each token (gated delta rule).

    Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks", ICLR 2025. `chunk_tokens` is the block of the parallel form used on prompts.
    """

    n_key_heads: int
    n_value_heads: int
    d_key: int
    d_value: int
    conv_width: int
    chunk_tokens: int = 64

    @property
    def conv_channels(self) -> int:
        """Return the channels of the short convolution over q, k and v."""
        return 2 * self.n_key_heads * self.d_key + self.n_value_heads * self.d_value

    @property
    def in_width(self) -> int:
        """Return the outputs of the input projection: q, k, v, output gate, and two scalars per value head."""
        return self.conv_channels + self.n_value_heads * self.d_value + 2 * self.n_value_heads

    def count(self, d_model: int) -> Count:
        """Return the parameters of projections, convolution, decay, step bias and output norm."""
        matrices = d_model * (self.in_width + self.n_value_heads * self.d_value)
        return Count(matrices, self.conv_channels * self.conv_width + 2 * self.n_value_heads + self.d_value)

    def state(self, context_tokens: int) -> State:
        """Return the state, whatever the context."""
        return State(0, self.n_value_heads * self.d_key * self.d_value, self.conv_channels * (self.conv_width - 1))


@dataclass(frozen=True, slots=True)
class StateSpace:
    """Keep `d_state` values per inner channel (Mamba). Sources: Gu and Dao, arXiv 2312.00752 (version 1); Dao and Gu, arXiv 2405.21060 (2).

    Version 1 derives step, B and C from the channels by `x_proj` and `dt_proj` of rank `dt_rank`; version 2 takes them from the input projection,
    in `n_groups` groups, with one decay per head of `d_inner / n_heads` channels.
    """

    version: int
    d_inner: int
    d_state: int
    conv_width: int
    n_heads: int = 0
    n_groups: int = 1
    dt_rank: int = 0
    conv_bias: bool = True
    proj_bias: bool = False
    gated_norm: bool = True
    inner_norms: bool = False
    chunk_tokens: int = 256

    @property
    def conv_channels(self) -> int:
        """Return the channels of the short convolution."""
        return self.d_inner + (2 * self.n_groups * self.d_state if self.version == 2 else 0)

    @property
    def in_width(self) -> int:
        """Return the outputs of the input projection."""
        return self.d_inner + self.conv_channels + self.n_heads if self.version == 2 else 2 * self.d_inner

    def count(self, d_model: int) -> Count:
        """Return the parameters of projections, convolution, decay, skip and norms."""
        matrices = d_model * (self.in_width + self.d_inner)
        small = self.conv_channels * (self.conv_width + self.conv_bias)
        if self.proj_bias:
            small += self.in_width + d_model
        if self.version == 2:
            small += 3 * self.n_heads + (self.d_inner if self.gated_norm else 0)
        else:
            matrices += self.d_inner * (self.dt_rank + 2 * self.d_state) + self.dt_rank * self.d_inner
            small += self.d_inner * (self.d_state + 2)  # decay, skip, step bias
            small += self.dt_rank + 2 * self.d_state if self.inner_norms else 0
        return Count(matrices, small)

    def state(self, context_tokens: int) -> State:
        """Return the state, whatever the context."""
        return State(0, self.d_inner * self.d_state, self.conv_channels * (self.conv_width - 1))


Mixer = GroupedQuery | Latent | Compressed | LinearAttention | StateSpace


@dataclass(frozen=True, slots=True)
class Dense:
    """Apply one MLP to every token: `[D, F]` twice when gated, `[F, D]` once."""

    d_ff: int
    gated: bool = True
    bias: bool = False
    norm: bool = False  # a norm of d_ff before the down projection
    activation: str = "silu"

    @property
    def in_width(self) -> int:
        """Return the outputs of the first projection, gate and up together."""
        return self.d_ff * (2 if self.gated else 1)

    def count(self, d_model: int) -> Count:
        """Return the parameters."""
        small = (self.in_width + d_model if self.bias else 0) + (self.d_ff if self.norm else 0)
        return Count(d_model * (self.in_width + self.d_ff), small)


@dataclass(frozen=True, slots=True)
class Experts:
    """Send each token to `top_k` of `n_experts` MLPs of width `d_ff`, plus one dense MLP for all: shared experts or a parallel branch.

    `shared`: the shared experts as one MLP; `shared_gate`: a sigmoid scalar weighs it. `router_scales`: learned scales of the router's input and of
    each expert. `branch_norms`: d_model-wide norms around the two branches. `d_latent`: width of a latent in which the experts work (0: d_model).
    """

    n_experts: int
    top_k: int
    d_ff: int
    gated: bool = True
    bias: bool = False
    shared: Dense | None = None
    shared_gate: bool = False
    router_bias: bool = False
    router_scales: bool = False
    branch_norms: int = 0
    d_latent: int = 0
    activation: str = "silu"

    @property
    def in_width(self) -> int:
        """Return the outputs of one expert's first projection, gate and up together."""
        return self.d_ff * (2 if self.gated else 1)

    def count(self, d_model: int) -> Count:
        """Return the parameters of router, routed experts and shared experts."""
        width = self.d_latent or d_model
        expert = width * (self.in_width + self.d_ff) + (self.in_width + width if self.bias else 0)
        small = d_model * self.n_experts + (self.n_experts if self.router_bias else 0) + self.branch_norms * d_model
        small += (d_model if self.shared_gate else 0) + (d_model + self.n_experts if self.router_scales else 0)
        shared = self.shared.count(d_model) if self.shared else Count()
        return Count(shared.matrices + 2 * d_model * self.d_latent, small + shared.small, expert * self.n_experts, expert * self.top_k)

    def touched(self, tokens: float) -> float:
        """Return the expected distinct experts that `tokens` tokens visit, `E (1 - (1 - k/E)^T)`, routed uniformly and independently."""
        return self.n_experts * (1.0 - float((1.0 - self.top_k / self.n_experts) ** tokens))


Mlp = Dense | Experts
