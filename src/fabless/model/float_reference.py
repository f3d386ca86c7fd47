"""What a decoder computes in float32, written to be read: the reference that the chip's integers are held against.

Letters of the shapes: T tokens of one sequence in this step, S tokens cached after it, R rows (all tokens of all sequences of the step),
D d_model, F d_ff, N n_heads, K n_kv_heads, G = N / K, H d_head, V n_vocab, E n_experts.

Where number formats enter is gathered in `Arithmetic`: `linear` for products with stored weights, `attend` for products between activations.
The class here is plain float32; `model.quality` replaces it by formats under study.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from fabless.model.decoder import Decoder, Rope
    from fabless.model.weights import Weights

    Floats = npt.NDArray[np.float32]
    Integers = npt.NDArray[np.int64]


@dataclass(slots=True)
class Cache:
    """Hold the keys and values of one sequence, per layer `[S, K, H]` float32, and how many tokens they are."""

    keys: list[Floats]
    values: list[Floats]

    @classmethod
    def empty(cls, decoder: Decoder) -> Cache:
        """Return a cache of no tokens."""
        none = np.zeros((0, decoder.n_kv_heads, decoder.d_head), np.float32)
        return cls([none] * decoder.n_layers, [none] * decoder.n_layers)

    @property
    def n_tokens(self) -> int:
        """Return the tokens cached in every layer."""
        return len(self.keys[-1])

    def extend(self, layer: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Append `[T, K, H]` keys and values of one layer; return all `[S, K, H]`."""
        self.keys[layer] = np.concatenate([self.keys[layer], keys])
        self.values[layer] = np.concatenate([self.values[layer], values])
        return self.keys[layer], self.values[layer]


@dataclass(frozen=True)
class Arithmetic:
    """Multiply in float32; a study of formats overrides `linear`, `attend` and `cached`."""

    tensors: Mapping[str, Floats] = field(repr=False)

    def linear(self, name: str, x: Floats) -> Floats:
        """Return `x @ tensors[name].T`: `[R, k] -> [R, n]`."""
        return x @ self.tensors[name].T

    def cached(self, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Return keys and values `[T, K, H]` as the cache will hold them."""
        return keys, values

    def attend(self, q: Floats, k: Floats, v: Floats, visible: npt.NDArray[np.bool_], *, scale: float, sinks: Floats | None) -> Floats:
        """Return softmax(q.k)v of one sequence: `q [T, N, H]`, `k, v [S, K, H]`, `visible [T, S]` -> `[T, N, H]`."""
        scores = self.scores(q, k, scale)  # [N, T, S]
        return self.mix(softmax(np.where(visible, scores, -np.inf), sinks), v)

    def scores(self, q: Floats, k: Floats, scale: float) -> Floats:
        """Return `[N, T, S]` scaled products of queries `[T, N, H]` and keys `[S, K, H]`, each KV head serving N / K query heads."""
        n_groups = q.shape[1] // k.shape[1]
        return (q.swapaxes(0, 1) @ np.repeat(k, n_groups, 1).transpose(1, 2, 0)) * np.float32(scale)

    def mix(self, p: Floats, v: Floats) -> Floats:
        """Return `[T, N, H]` values `[S, K, H]` mixed by probabilities `[N, T, S]`."""
        n_groups = p.shape[0] // v.shape[1]
        return (p @ np.repeat(v, n_groups, 1).swapaxes(0, 1)).swapaxes(0, 1)


def softmax(scores: Floats, sinks: Floats | None = None) -> Floats:
    """Return probabilities over the last axis of `[N, T, S]`; `sinks [N]` are logits that take probability and mix nothing."""
    peak = scores.max(-1, keepdims=True)
    if sinks is not None:
        peak = np.maximum(peak, sinks[:, None, None])
    weights = np.exp(scores - peak)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - peak)
    return np.asarray(weights / total, np.float32)


def rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """Return `x / sqrt(mean(x^2) + epsilon) * weight` over the last axis."""
    mean_square = np.mean(x * x, -1, keepdims=True, dtype=np.float32)
    return np.asarray(x / np.sqrt(mean_square + np.float32(epsilon)) * weight, np.float32)


def rotate(x: Floats, positions: Integers, rope: Rope) -> Floats:
    """Turn pairs (j, j + H/2) of every head of `x [T, heads, H]` by position times frequency. Angles in float32, as trained."""
    half = x.shape[-1] // 2
    angles = positions.astype(np.float32)[:, None] * rope.inverse_frequencies(x.shape[-1])  # [T, H/2]
    cos = (np.cos(angles) * np.float32(rope.amplitude))[:, None, :]
    sin = (np.sin(angles) * np.float32(rope.amplitude))[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def visible(n_new: int, n_cached: int, window: int) -> npt.NDArray[np.bool_]:
    """Return `[T, S]`: new token t sees keys up to its own position, the last `window` of them when window is not 0."""
    query, key = np.arange(n_cached, n_cached + n_new)[:, None], np.arange(n_cached + n_new)[None, :]
    seen = key <= query
    return seen & (query - key < window) if window else seen


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + e), e / (1 + e)), np.float32)


def gelu_tanh(x: Floats) -> Floats:
    """Return the tanh form of GELU. Source: Hendrycks and Gimpel, arXiv 1606.08415."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)), np.float32)


class FloatReference:
    """Run a decoder in float32 on batches of sequences of any lengths, each with its own cache."""

    def __init__(self, decoder: Decoder, arithmetic: Arithmetic) -> None:
        self.decoder, self.arithmetic = decoder, arithmetic
        self.tensors = arithmetic.tensors

    @classmethod
    def load(cls, weights: Weights) -> FloatReference:
        """Read every tensor of `weights` as float32; raises `InfeasibleError` before the first read when memory will not do."""
        weights.require_memory()
        return cls(weights.decoder, Arithmetic({name: weights[name] for name in weights}))

    def start(self) -> Cache:
        """Return the cache of a new sequence."""
        return Cache.empty(self.decoder)

    def forward(self, tokens: Sequence[int] | Integers, cache: Cache | None = None) -> Floats:
        """Return logits `[T, V]` of one sequence whose earlier tokens are in `cache`, which grows by T."""
        return self.step([(tokens, self.start() if cache is None else cache)])[0]

    def step(self, sequences: Sequence[tuple[Sequence[int] | Integers, Cache]]) -> list[Floats]:
        """Return logits `[T, V]` per sequence of a batch; every cache grows by its sequence's T."""
        rows = [self._ids(tokens, cache) for tokens, cache in sequences]
        x = self.hidden(rows, [cache for _, cache in sequences])  # [R, D]
        logits = self.arithmetic.linear("embedding" if self.decoder.tied_embeddings else "head", x)  # [R, V]
        return np.split(logits, np.cumsum([len(r) for r in rows])[:-1])

    def hidden(self, rows: Sequence[Integers], caches: Sequence[Cache]) -> Floats:
        """Return the normed hidden states `[R, D]` that the head reads."""
        d = self.decoder
        starts = [cache.n_tokens for cache in caches]
        x = self.tensors["embedding"][np.concatenate(rows)] * np.float32(d.embedding_scale)  # [R, D]
        for i in range(d.n_layers):
            h = self._attention(i, self._norm(f"layers.{i}.attention_norm", x), rows, caches, starts)
            x = x + (self._norm(f"layers.{i}.attention_post_norm", h) if d.post_norms else h)
            h = self._mlp(f"layers.{i}.", self._norm(f"layers.{i}.mlp_norm", x))
            x = x + (self._norm(f"layers.{i}.mlp_post_norm", h) if d.post_norms else h)
        return self._norm("final_norm", x)

    def _ids(self, tokens: Sequence[int] | Integers, cache: Cache) -> Integers:
        ids = np.asarray(tokens, np.int64).reshape(-1)
        if not len(ids):
            raise InputError("a sequence needs at least one token; begin with the tokenizer's first-token id")
        if ids.min() < 0 or ids.max() >= self.decoder.n_vocab:
            raise InputError(
                f"token ids must lie in 0 to {self.decoder.n_vocab - 1}, not {ids.min()} to {ids.max()}; does the tokenizer belong to the model?"
            )
        if cache.n_tokens + len(ids) > self.decoder.context_tokens:
            raise InputError(
                f"{cache.n_tokens + len(ids)} tokens exceed the model's context of {self.decoder.context_tokens}; shorten the prompt"
            )
        return ids

    def _norm(self, name: str, x: Floats) -> Floats:
        return rms_norm(x, self.tensors[name], self.decoder.norm_epsilon)

    def _biased(self, name: str, x: Floats) -> Floats:
        y = self.arithmetic.linear(name, x)
        bias = self.tensors.get(f"{name}_bias")
        return y if bias is None else y + bias

    def _attention(self, i: int, x: Floats, rows: Sequence[Integers], caches: Sequence[Cache], starts: Sequence[int]) -> Floats:
        d, prefix = self.decoder, f"layers.{i}."
        q = self._biased(prefix + "q", x).reshape(-1, d.n_heads, d.d_head)  # [R, N, H]
        k = self._biased(prefix + "k", x).reshape(-1, d.n_kv_heads, d.d_head)  # [R, K, H]
        v = self._biased(prefix + "v", x).reshape(-1, d.n_kv_heads, d.d_head)  # [R, K, H]
        if d.qk_norm:
            q, k = self._norm(prefix + "q_norm", q), self._norm(prefix + "k_norm", k)
        mixed, at = [], 0
        for ids, cache, start in zip(rows, caches, starts, strict=True):
            part = slice(at, at + len(ids))
            positions = np.arange(start, start + len(ids))  # [T]
            new_k, new_v = self.arithmetic.cached(rotate(k[part], positions, d.ropes[i]), v[part])
            all_k, all_v = cache.extend(i, new_k, new_v)  # [S, K, H]
            seen = visible(len(ids), start, d.windows[i])  # [T, S]
            mixed.append(
                self.arithmetic.attend(
                    rotate(q[part], positions, d.ropes[i]),
                    all_k,
                    all_v,
                    seen,
                    scale=d.attention_scale,
                    sinks=self.tensors.get(prefix + "sinks"),
                )
            )
            at += len(ids)
        return self._biased(prefix + "o", np.concatenate(mixed).reshape(-1, d.n_heads * d.d_head))  # [R, D]

    def _mlp(self, prefix: str, x: Floats) -> Floats:
        if self.decoder.routing is None:
            return self._gated(prefix, x)
        y = np.zeros_like(x)  # [R, D]
        for e, rows, gates in self.routed(prefix, x):
            y[rows] += self._gated(f"{prefix}experts.{e}.", x[rows]) * gates[:, None]
        return y

    def _gated(self, prefix: str, x: Floats) -> Floats:
        gate, up = self._biased(prefix + "gate", x), self._biased(prefix + "up", x)  # [R, F]
        return self._biased(prefix + "down", self._activate(gate, up))  # [R, D]

    def _activate(self, gate: Floats, up: Floats) -> Floats:
        d = self.decoder
        if d.activation == "silu":
            return gate * sigmoid(gate) * up
        if d.activation == "gelu_tanh":
            return gelu_tanh(gate) * up
        gate, up = np.minimum(gate, np.float32(d.swiglu_limit)), np.clip(up, np.float32(-d.swiglu_limit), np.float32(d.swiglu_limit))
        return gate * sigmoid(gate * np.float32(d.swiglu_alpha)) * (up + 1)

    def routed(self, prefix: str, x: Floats) -> Iterator[tuple[int, Integers, Floats]]:
        """Yield (expert, its rows of `x [R, D]`, their gates) for each expert that a row chooses; ties go to the lower index."""
        routing = self.decoder.routing
        assert routing is not None
        logits = self._biased(prefix + "router", x)  # [R, E]
        chosen = np.argsort(-logits, -1, kind="stable")[:, : routing.n_routed]  # [R, n_routed]
        top = np.take_along_axis(logits, chosen, -1)
        weights = np.exp(top - top[:, :1])
        total = weights if routing.normalised else np.exp(logits - top[:, :1])
        gates = weights / total.sum(-1, keepdims=True)
        for e in range(routing.n_experts):
            rows, slots = np.nonzero(chosen == e)
            if len(rows):
                yield e, rows, gates[rows, slots]
