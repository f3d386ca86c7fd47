"""One forward pass over a batch: which sequences take part, how many tokens each brings and has behind it."""

from __future__ import annotations

from dataclasses import dataclass

from fabless.core.errors import InputError
from fabless.number.formats import BF16, FP32, NumberFormat, format_named


@dataclass(frozen=True, slots=True)
class Sequences:
    """Group `count` sequences that each bring `new_tokens` and attend to `context_tokens` tokens already cached."""

    count: int
    new_tokens: int
    context_tokens: int

    def __post_init__(self) -> None:
        if self.count < 1 or self.new_tokens < 1 or self.context_tokens < 0:
            raise InputError(
                f"sequences need count >= 1, new_tokens >= 1 and context_tokens >= 0, "
                f"not {self.count}, {self.new_tokens}, {self.context_tokens}"
            )


@dataclass(frozen=True, slots=True)
class Speculation:
    """Verify `draft_tokens` guessed tokens a step, each accepted with probability `acceptance_ratio` given its predecessors were."""

    draft_tokens: int
    acceptance_ratio: float

    @property
    def tokens_per_step(self) -> float:
        """Return the expected tokens emitted a step, `(1 - a^(k+1)) / (1 - a)`. Source: Leviathan et al., ICML 2023, eq. 1."""
        a, k = self.acceptance_ratio, self.draft_tokens
        return float(k + 1) if a == 1 else (1 - a ** (k + 1)) / (1 - a)


@dataclass(frozen=True, slots=True)
class Step:
    """Describe one forward pass: prefill, decode, chunked mixes and speculative verification are one type.

    `logits` tells how many positions per sequence go through the language head: "last" (serving) or "all" (training, scoring).
    """

    groups: tuple[Sequences, ...]
    speculation: Speculation | None = None
    logits: str = "last"

    def __post_init__(self) -> None:
        if not self.groups:
            raise InputError("a step needs at least one group of sequences")

    @classmethod
    def prefill(cls, batch: int, tokens: int, *, cached_tokens: int = 0) -> Step:
        """Build the pass that reads `tokens` prompt tokens of each of `batch` sequences (`cached_tokens` already in the KV cache)."""
        return cls((Sequences(batch, tokens, cached_tokens),))

    @classmethod
    def decode(cls, batch: int, context_tokens: int, speculation: Speculation | None = None) -> Step:
        """Build the pass that yields the next token of `batch` sequences, each with `context_tokens` tokens cached."""
        new_tokens = 1 + (speculation.draft_tokens if speculation else 0)
        return cls((Sequences(batch, new_tokens, context_tokens),), speculation)

    @classmethod
    def mixed(cls, *groups: tuple[int, int, int]) -> Step:
        """Build a chunked-prefill pass from (count, new_tokens, context_tokens) groups."""
        return cls(tuple(Sequences(*g) for g in groups))

    @property
    def n_sequences(self) -> int:
        """Return the sequences in the pass."""
        return sum(g.count for g in self.groups)

    @property
    def new_tokens(self) -> int:
        """Return the tokens that go through the layers in this pass."""
        return sum(g.count * g.new_tokens for g in self.groups)

    @property
    def emitted_tokens(self) -> float:
        """Return the expected tokens that the pass emits: one a sequence, more with speculation."""
        return self.n_sequences * (self.speculation.tokens_per_step if self.speculation else 1.0)

    @property
    def logit_rows(self) -> int:
        """Return the rows that go through the language head."""
        verified = 1 + (self.speculation.draft_tokens if self.speculation else 0)
        return self.new_tokens if self.logits == "all" else sum(g.count * min(verified, g.new_tokens) for g in self.groups)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Choose a number format per tensor class; `head` and `embedding` default to those of the weights of the name they carry.

    `weights`: projections and experts; `experts`: routed experts when they differ; `activations`: operands of weight GEMMs;
    `kv_cache`: stored keys and values; `attention`: operands of Q.K and P.V; `head`: language head; `embedding`: token table;
    `accumulator`: sums of products; `residual`: the stream between blocks.
    """

    weights: NumberFormat = BF16
    activations: NumberFormat = BF16
    kv_cache: NumberFormat = BF16
    attention: NumberFormat = BF16
    accumulator: NumberFormat = FP32
    residual: NumberFormat = BF16
    experts: NumberFormat | None = None
    head: NumberFormat | None = None
    embedding: NumberFormat | None = None

    @classmethod
    def named(cls, name: str) -> Recipe:
        """Return a recipe by short name: a format ("bf16", "fp8", "int8", "nvfp4", ...), or `weights/activations` such as "int4/bf16" (weight-only).

        A 16- or 32-bit name sets every class. A narrower one sets weights and activations (4-bit weights keep at least 8-bit activations unless
        the format is nvfp4 or mxfp4, whose tensor units take 4-bit operands on both sides) and leaves head, embedding, attention and KV at bf16.
        """
        weights_name, _, activations_name = name.partition("/")
        weights = format_named(weights_name)
        activations = format_named(activations_name) if activations_name else weights
        if weights.bits_per_value >= 16:
            return cls(weights, activations, weights, weights, FP32, weights, head=weights, embedding=weights)
        return cls(weights=weights, activations=activations, head=BF16, embedding=BF16)

    @property
    def expert_weights(self) -> NumberFormat:
        """Return the format of routed experts."""
        return self.experts or self.weights

    @property
    def head_weights(self) -> NumberFormat:
        """Return the format of the language head."""
        return self.head or self.weights

    @property
    def embedding_weights(self) -> NumberFormat:
        """Return the format of the token table."""
        return self.embedding or self.head_weights
