"""What the chip computes, tensor by tensor, in NumPy: block products of int8 and machine arithmetic in one stated order.

`execute` must equal this bit for bit, whatever the tiles, cores, batch and chunks. The order of every operation is that of
docs/decisions/integer-forward-pass.md; the steps below carry its words. Letters of the shapes are those of `float_reference`; B are blocks of 32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import InputError
from fabless.model.block_weights import BlockMatrix, block_matrix, paired
from fabless.model.float_reference import visible
from fabless.number.arrays import add, canonical, mul, row_sum, sub
from fabless.number.dot import gemm, gemm_fast
from fabless.number.formats import INT8_BLOCK32
from fabless.number.functions import exp2_array, rcp_array, rsqrt_array, sigmoid_array
from fabless.number.quantise import quantise

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from fabless.model.decoder import Decoder, Rope
    from fabless.model.weights import Weights
    from fabless.number.formats import NumberFormat

    Floats = npt.NDArray[np.float32]
    Codes = npt.NDArray[np.int8]
    Integers = npt.NDArray[np.int64]

LOG2E = np.float32(math.log2(math.e))
#: What a masked score holds: below any score, with an exact binary32 code (program.isa.LOWEST).
LOWEST = np.float32(-(2.0**100))
#: Keys whose probabilities one reduction adds; spans are then added in ascending order.
SPAN = 128
_GELU_LINEAR = np.float32(2 * math.sqrt(2 / math.pi))
_GELU_CUBIC = np.float32(2 * math.sqrt(2 / math.pi) * 0.044715)  # Source: Hendrycks and Gimpel, arXiv 1606.08415


@dataclass(slots=True)
class IntegerCache:
    """Hold one sequence's keys `[S, K, B, 32]` int8 with scales `[S, K, B]`, and values `[S, K, H]` int8 with scales `[S, K]`, per layer."""

    keys: list[Codes]
    key_scales: list[Floats]
    values: list[Codes]
    value_scales: list[Floats]

    @classmethod
    def empty(cls, decoder: Decoder) -> IntegerCache:
        """Return a cache of no tokens."""
        n, k, h = decoder.n_layers, decoder.n_kv_heads, decoder.d_head
        b = -(-h // 32)
        return cls(
            [np.zeros((0, k, b, 32), np.int8)] * n, [np.zeros((0, k, b), np.float32)] * n,
            [np.zeros((0, k, h), np.int8)] * n, [np.zeros((0, k), np.float32)] * n,
        )  # fmt: skip

    @property
    def n_tokens(self) -> int:
        """Return the tokens cached in every layer."""
        return len(self.keys[-1])

    def extend(self, i: int, keys: Codes, key_scales: Floats, values: Codes, value_scales: Floats) -> None:
        """Append T tokens to layer i."""
        self.keys[i] = np.concatenate([self.keys[i], keys])
        self.key_scales[i] = np.concatenate([self.key_scales[i], key_scales])
        self.values[i] = np.concatenate([self.values[i], values])
        self.value_scales[i] = np.concatenate([self.value_scales[i], value_scales])


@dataclass(frozen=True)
class IntegerWeights:
    """Hold weights as the chip stores them: `matrices` in blocks of 32 along k, `vectors` (norms, biases, sinks) in binary32.

    Q and K rows, their biases and QK-norm weights are in paired order: rotary pairs side by side.
    """

    decoder: Decoder
    matrices: Mapping[str, BlockMatrix] = field(repr=False)
    vectors: Mapping[str, Floats] = field(repr=False)

    @classmethod
    def load(cls, weights: Weights, format: NumberFormat = INT8_BLOCK32, head_format: NumberFormat | None = None) -> IntegerWeights:
        """Quantise every matrix of `weights` into blocks of `format`, one tensor at a time; head and token table in `head_format` if given."""
        weights.require_memory(weights.float_bytes * 0.3 + 4 * max(math.prod(t.shape) for t in weights.tensors.values()))
        matrices: dict[str, BlockMatrix] = {}
        vectors: dict[str, Floats] = {}
        for name in weights:
            array = weights[name]
            if name.rsplit(".", 1)[-1] in ("q", "k", "q_bias", "k_bias", "q_norm", "k_norm"):
                array = paired(array, weights.decoder.d_head)
            if array.ndim == 2:
                matrices[name] = block_matrix(array, (head_format or format) if name in ("embedding", "head") else format)
            else:
                vectors[name] = canonical(array)
        return cls(weights.decoder, matrices, vectors)


def rotary_table(rope: Rope, d_head: int, positions: Integers) -> Floats:
    """Return `[T, H]`: cosine and sine of pair j at 2j and 2j + 1, computed in binary64 and rounded once to binary32."""
    angles = positions.astype(np.float64)[:, None] * rope.inverse_frequencies(d_head).astype(np.float64)  # [T, H/2]
    table = np.stack([np.cos(angles), np.sin(angles)], -1) * rope.amplitude
    return canonical(table.reshape(len(positions), d_head).astype(np.float32))


def rotate_pairs(x: Floats, table: Floats) -> Floats:
    """Turn neighbouring pairs of `x [T, heads, H]` by `table [T, H]`: the instruction `rotate`."""
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = table[:, None, 0::2], table[:, None, 1::2]
    return np.stack([sub(mul(a, c), mul(b, s)), add(mul(b, c), mul(a, s))], -1).reshape(x.shape)


def norm_rows(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """Return the norm over the last axis of `x`."""
    mean_square = mul(row_sum(mul(x, x)), np.float32(1 / x.shape[-1]))
    r = rsqrt_array(add(mean_square, np.float32(epsilon)))
    return mul(mul(x, r[..., None]), weight)


def span_sum(p: Floats) -> Floats:
    """Return `[...]` sums of probabilities `[..., S]`: spans of 128 by `row_sum`, added in ascending order from +0."""
    total = np.zeros(p.shape[:-1], np.float32)
    for start in range(0, p.shape[-1], SPAN):
        total = add(total, row_sum(p[..., start : start + SPAN]))
    return total


class IntegerReference:
    """Run a decoder as the chip does, on batches of sequences of any lengths; same interface as `FloatReference`."""

    def __init__(self, weights: IntegerWeights, *, compiled: bool = True) -> None:
        """`compiled`: block products by `number.dot.gemm_fast`, else by its readable twin."""
        self.decoder, self.matrices, self.vectors, self.compiled = weights.decoder, weights.matrices, weights.vectors, compiled

    @classmethod
    def load(cls, weights: Weights, format: NumberFormat = INT8_BLOCK32, head_format: NumberFormat | None = None) -> IntegerReference:
        """Quantise `weights` (see `IntegerWeights.load`) and return their reference."""
        return cls(IntegerWeights.load(weights, format, head_format))

    def start(self) -> IntegerCache:
        """Return the cache of a new sequence."""
        return IntegerCache.empty(self.decoder)

    def forward(self, tokens: Sequence[int] | Integers, cache: IntegerCache | None = None) -> Floats:
        """Return logits `[T, V]` of one sequence whose earlier tokens are in `cache`, which grows by T."""
        return self.step([(tokens, self.start() if cache is None else cache)])[0]

    def step(self, sequences: Sequence[tuple[Sequence[int] | Integers, IntegerCache]]) -> list[Floats]:
        """Return logits `[T, V]` per sequence of a batch; every cache grows by its sequence's T."""
        rows = [self._ids(tokens, cache) for tokens, cache in sequences]
        x = self.hidden(rows, [cache for _, cache in sequences])  # [R, D]
        (logits,) = self._project(x, "embedding" if self.decoder.tied_embeddings else "head")  # [R, V]
        return np.split(logits, np.cumsum([len(r) for r in rows])[:-1])

    def hidden(self, rows: Sequence[Integers], caches: Sequence[IntegerCache]) -> Floats:
        """Return the normed hidden states `[R, D]` that the head reads."""
        d = self.decoder
        starts = [cache.n_tokens for cache in caches]
        x = self._embed(np.concatenate(rows))
        for i in range(d.n_layers):
            h = self._attention(i, self._norm(f"layers.{i}.attention_norm", x), rows, caches, starts)
            x = add(x, self._norm(f"layers.{i}.attention_post_norm", h) if d.post_norms else h)
            h = self._mlp(f"layers.{i}.", self._norm(f"layers.{i}.mlp_norm", x))
            x = add(x, self._norm(f"layers.{i}.mlp_post_norm", h) if d.post_norms else h)
        return self._norm("final_norm", x)

    def _ids(self, tokens: Sequence[int] | Integers, cache: IntegerCache) -> Integers:
        ids = np.asarray(tokens, np.int64).reshape(-1)
        d = self.decoder
        if not len(ids) or ids.min() < 0 or ids.max() >= d.n_vocab or cache.n_tokens + len(ids) > d.context_tokens:
            raise InputError(
                f"a sequence needs 1 to {d.context_tokens - cache.n_tokens} further tokens with ids from 0 to {d.n_vocab - 1}, "
                f"not {len(ids)} from {ids.min(initial=0)} to {ids.max(initial=0)}; shorten the prompt or use the model's own tokenizer"
            )
        return ids

    def _embed(self, ids: Integers) -> Floats:
        x = self.matrices["embedding"].rows(ids)  # [R, D]
        return x if self.decoder.embedding_scale == 1 else mul(x, np.float32(self.decoder.embedding_scale))

    def _norm(self, name: str, x: Floats) -> Floats:
        return norm_rows(x, self.vectors[name], self.decoder.norm_epsilon)

    def _project(self, x: Floats, *names: str) -> list[Floats]:
        """Quantise rows `[R, k]` once and multiply by each named matrix: `[R, n]` each, with its bias where there is one."""
        codes, scales = quantise(x)
        products = [self.matrices[name].product(codes, scales, compiled=self.compiled) for name in names]
        biases = [self.vectors.get(f"{name}_bias") for name in names]
        return [y if bias is None else add(y, bias) for y, bias in zip(products, biases, strict=True)]

    def _attention(self, i: int, x: Floats, rows: Sequence[Integers], caches: Sequence[IntegerCache], starts: Sequence[int]) -> Floats:
        d, prefix = self.decoder, f"layers.{i}."
        q, k, v = (y.reshape(len(x), -1, d.d_head) for y in self._project(x, prefix + "q", prefix + "k", prefix + "v"))  # [R, N or K, H]
        if d.qk_norm:
            q, k = self._norm(prefix + "q_norm", q), self._norm(prefix + "k_norm", k)
        mixed, at = [], 0
        for ids, cache, start in zip(rows, caches, starts, strict=True):
            part = slice(at, at + len(ids))
            table = rotary_table(d.ropes[i], d.d_head, np.arange(start, start + len(ids)))  # [T, H]
            v_codes, v_scales = quantise(v[part], scope="row")
            cache.extend(
                i, *quantise(rotate_pairs(k[part], table)), v_codes.reshape(*v_codes.shape[:2], -1)[..., : d.d_head], v_scales[..., 0]
            )
            mixed.append(self._attend(i, rotate_pairs(q[part], table), cache, visible(len(ids), start, d.windows[i])))
            at += len(ids)
        return self._project(np.concatenate(mixed).reshape(-1, d.n_heads * d.d_head), prefix + "o")[0]  # [R, D]

    def _attend(self, i: int, q: Floats, cache: IntegerCache, seen: npt.NDArray[np.bool_]) -> Floats:
        """Return softmax(q.k)v of one sequence: `q [T, N, H]`, `seen [T, S]` -> `[T, N, H]`. Rows are (KV head, query head of it, token)."""
        d, dot = self.decoder, gemm_fast if self.compiled else gemm
        (n_new, n_keys), n_kv = seen.shape, d.n_kv_heads
        scaled = mul(q, np.float32(np.float64(d.attention_scale) * math.log2(math.e)))
        codes, scales = quantise(scaled.swapaxes(0, 1).reshape(n_kv, -1, d.d_head))  # [K, G * T, B, 32], [K, G * T, B]
        keys, key_scales = cache.keys[i].transpose(1, 2, 0, 3), cache.key_scales[i].transpose(1, 2, 0)  # [K, B, S, 32], [K, B, S]
        scores = np.stack([dot(keys[h], key_scales[h], codes[h], scales[h]) for h in range(n_kv)])  # [K, G * T, S]
        rows = np.tile(seen, (d.n_heads // n_kv, 1))  # [G * T, S]
        sinks = self.vectors.get(f"layers.{i}.sinks")
        sink = None if sinks is None else np.repeat(mul(sinks, LOG2E), n_new).reshape(n_kv, -1)  # [K, G * T]
        p, divisor = _softmax(np.where(rows, scores, LOWEST), rows, sink)
        w, w_scales = quantise(np.where(rows, mul(p, cache.value_scales[i].T[:, None, :]), np.float32(0)))  # [K, G * T, S / 32, 32]
        values = np.zeros((n_kv, -(-n_keys // 32), d.d_head, 32), np.int8)
        for block in range(values.shape[1]):
            part = cache.values[i][block * 32 : block * 32 + 32]  # [up to 32, K, H]
            values[:, block, :, : len(part)] = part.transpose(1, 2, 0)
        ones = np.ones(values.shape[1:3], np.float32)
        o = np.stack([dot(values[h], ones, w[h], w_scales[h]) for h in range(n_kv)])  # [K, G * T, H]
        return mul(o, rcp_array(divisor)[..., None]).reshape(d.n_heads, n_new, d.d_head).swapaxes(0, 1)

    def _mlp(self, prefix: str, x: Floats) -> Floats:
        if self.decoder.routing is None:
            return self._gated(prefix, x)
        y = np.zeros_like(x)
        for choice, e, rows, gates in self._routed(prefix, x):
            part = mul(self._gated(f"{prefix}experts.{e}.", x[rows]), gates[:, None])
            y[rows] = part if choice == 0 else add(y[rows], part)
        return y

    def _gated(self, prefix: str, x: Floats) -> Floats:
        g, u = self._project(x, prefix + "gate", prefix + "up")  # [R, F]
        return self._project(self._activate(g, u), prefix + "down")[0]  # [R, D]

    def _activate(self, g: Floats, u: Floats) -> Floats:
        d = self.decoder
        if d.activation == "silu":
            return mul(mul(g, sigmoid_array(g)), u)
        if d.activation == "gelu_tanh":
            z = mul(g, add(mul(mul(g, g), _GELU_CUBIC), _GELU_LINEAR))
            return mul(mul(g, sigmoid_array(z)), u)
        limit = np.float32(d.swiglu_limit)
        g, u = np.minimum(g, limit), np.minimum(np.maximum(u, -limit), limit)
        return mul(mul(g, sigmoid_array(mul(g, np.float32(d.swiglu_alpha)))), add(u, np.float32(1)))

    def _routed(self, prefix: str, x: Floats) -> Iterator[tuple[int, int, Integers, Floats]]:
        """Yield (order of choice, expert, its rows, their gates), in order of choice."""
        routing = self.decoder.routing
        assert routing is not None
        (logits,) = self._project(x, prefix + "router")  # [R, E]
        chosen = np.argsort(-logits, -1, kind="stable")[:, : routing.n_routed]  # [R, n_routed]
        first = np.take_along_axis(logits, chosen[:, :1], -1)
        weights = exp2_array(mul(sub(logits, first), LOG2E))  # [R, E]
        top = np.take_along_axis(weights, chosen, -1)
        gates = mul(top, rcp_array(row_sum(top if routing.normalised else weights))[:, None])
        for choice in range(routing.n_routed):
            for e in range(routing.n_experts):
                rows = np.nonzero(chosen[:, choice] == e)[0]
                if len(rows):
                    yield choice, e, rows, gates[rows, choice]


def _softmax(scores: Floats, seen: npt.NDArray[np.bool_], sink: Floats | None) -> tuple[Floats, Floats]:
    """Return powers of two `[..., S]` of masked scores less their maximum, and their sum `[...]`; a sink takes part in both and mixes nothing."""
    m = scores.max(-1)
    m = m if sink is None else np.maximum(m, sink)
    p = np.where(seen, exp2_array(sub(scores, m[..., None])), np.float32(0))
    total = span_sum(p)
    return p, total if sink is None else add(total, exp2_array(sub(sink, m)))
