"""How far the chip's logits can be from the model's: a bound derived operation by operation, for given tokens.

Three tracks run side by side (`Tracked`): what the machine computes (`integer_reference`, bit for bit), what the model says in binary64 with the weights
as they came, and a bound on the difference. The bound follows from number formats, roundings and lengths (`number.bounds`) and from how operations pass
errors on; the machine's own values scale it, the difference itself is never used. Norms, probabilities and mixed values are bounded whatever comes in, so
that the bound stays finite through any number of layers.

A bound for the worst case: signs that all conspire, through every layer. It says that nothing is wrong by more, and is hundreds of times what is seen. Each
operation is therefore also bounded on its own, its inputs as the machine has them taken as exact (`operations`): there the bound is a few times what is seen.

Limits: weights in int8 blocks of 32, one sequence; routed experts have no bound, since a choice may flip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import UnsupportedError
from fabless.model.block_weights import paired
from fabless.model.float_reference import visible
from fabless.model.integer_reference import IntegerReference, IntegerWeights, rotary_table, rotate_pairs
from fabless.number.arrays import add, mul
from fabless.number.bounds import FUNCTION, LEAST, U, activation_error, product_error, sum_error, weight_error
from fabless.number.dot import gemm
from fabless.number.quantise import quantise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from fabless.model.decoder import Decoder
    from fabless.model.integer_reference import IntegerCache
    from fabless.model.weights import Weights

    Floats = npt.NDArray[np.float32]
    Reals = npt.NDArray[np.float64]

#: Greatest slopes: of x sigmoid(a x) for any a, and of GELU's tanh form.
_SLOPES = {"silu": 1.0999, "swiglu_clamped": 1.0999, "gelu_tanh": 1.1290}
_MOST = 600.0  # powers of e beyond this are as good as infinite here


@dataclass(frozen=True)
class Tracked:
    """Hold a tensor three times: `machine` float32, `exact` float64, and `bound` float64 on |machine - exact|."""

    machine: Floats = field(repr=False)
    exact: Reals = field(repr=False)
    bound: Reals = field(repr=False)

    @property
    def seen(self) -> Reals:
        """Return the magnitudes of what the machine has, in binary64."""
        return np.abs(self.machine.astype(np.float64))

    def reshape(self, *shape: int) -> Tracked:
        """Return the same in another shape."""
        return Tracked(self.machine.reshape(*shape), self.exact.reshape(*shape), self.bound.reshape(*shape))

    @classmethod
    def anchor(cls, machine: Floats) -> Tracked:
        """Return the machine's own values as exact."""
        return cls(machine, machine.astype(np.float64), np.zeros(machine.shape))


@dataclass(frozen=True, slots=True)
class Distance:
    """Hold the greatest difference seen, the greatest bound, and the greatest ratio of both at one element: at most 1 where the bound holds."""

    name: str
    seen: float
    bound: float
    ratio: float

    @classmethod
    def of(cls, name: str, x: Tracked) -> Distance:
        """Measure a tensor."""
        difference = np.abs(x.machine - x.exact)
        return cls(name, float(difference.max()), float(x.bound.max()), float((difference / np.maximum(x.bound, LEAST)).max()))


@dataclass(frozen=True)
class ErrorBound:
    """Hold the logits `[T, V]` of a run with their bound, and the distance of each operation's result, its inputs taken as exact."""

    logits: Tracked
    operations: tuple[Distance, ...]

    @property
    def whole(self) -> Distance:
        """Return the distance of the logits through the whole model."""
        return Distance.of("logits", self.logits)


def error_bound(weights: Weights, tokens: Sequence[int]) -> ErrorBound:
    """Return bounds for one sequence from its first token on. Raises `UnsupportedError` for models with routed experts."""
    d = weights.decoder
    if d.routing is not None:
        raise UnsupportedError(f"{d.name}: it routes tokens to experts, and a choice that flips has no bound; bound a dense model")
    ids, run = np.asarray(tokens, np.int64), _Run(weights)
    run.local = True
    run.logits(ids)
    run.local = False
    return ErrorBound(run.logits(ids), tuple(run.operations))


class _Run:
    """Carry the tracks through a decoder; `local`: every operation takes its inputs as exact, and is noted."""

    def __init__(self, weights: Weights) -> None:
        self.decoder: Decoder = weights.decoder
        self.reference = IntegerReference(IntegerWeights.load(weights))
        self.tensors: Mapping[str, Reals] = {name: self._real(name, weights[name]) for name in weights}
        self.errors: dict[str, Reals] = {}
        self.local = False
        self.operations: list[Distance] = []

    def _taken(self, x: Tracked) -> Tracked:
        return Tracked.anchor(x.machine) if self.local else x

    def _noted(self, name: str, x: Tracked) -> Tracked:
        if self.local:
            self.operations.append(Distance.of(name, x))
        return x

    def _real(self, name: str, array: Floats) -> Reals:
        if name.rsplit(".", 1)[-1] in ("q", "k", "q_bias", "k_bias", "q_norm", "k_norm"):
            array = paired(array, self.decoder.d_head)
        return array.astype(np.float64)

    def logits(self, ids: npt.NDArray[np.int64]) -> Tracked:
        """Return the logits `[T, V]` of a sequence."""
        d, cache = self.decoder, self.reference.start()
        x = self._embedded(ids)
        for i in range(d.n_layers):
            x = self._layer(i, x, cache)
        return self._linear("embedding" if d.tied_embeddings else "head", self._norm("final_norm", x))

    def _embedded(self, ids: npt.NDArray[np.int64]) -> Tracked:
        rows, scale = self.tensors["embedding"][ids], self.decoder.embedding_scale
        bound = weight_error(rows) * scale
        x = Tracked(self.reference._embed(ids), rows * scale, bound + 2 * U * (np.abs(rows) * scale + bound) + LEAST)
        return self._noted("tokens", x)

    def _layer(self, i: int, x: Tracked, cache: IntegerCache) -> Tracked:
        d, prefix = self.decoder, f"layers.{i}."
        h = self._attention(i, self._norm(prefix + "attention_norm", x), cache)
        x = self._sum(x, self._norm(prefix + "attention_post_norm", h) if d.post_norms else h)
        h = self._mlp(prefix, self._norm(prefix + "mlp_norm", x))
        return self._sum(x, self._norm(prefix + "mlp_post_norm", h) if d.post_norms else h)

    @staticmethod
    def _sum(a: Tracked, b: Tracked) -> Tracked:
        machine = add(a.machine, b.machine)
        return Tracked(machine, a.exact + b.exact, (a.bound + b.bound) + 2 * U * np.abs(machine.astype(np.float64)) + LEAST)

    def _norm(self, name: str, x: Tracked) -> Tracked:
        """The root of the mean square moves at most by that of the error; a normed element is never beyond sqrt(D) times its weight."""
        x = self._taken(x)
        weight, epsilon, n = self.tensors[name], self.decoder.norm_epsilon, x.machine.shape[-1]
        machine = self.reference._norm(name, x.machine)
        exact = x.exact / np.sqrt((x.exact**2).mean(-1, keepdims=True) + epsilon) * weight
        root = np.sqrt((x.seen**2).mean(-1, keepdims=True) + epsilon)
        moved = np.sqrt((x.bound**2).mean(-1, keepdims=True))
        least = np.maximum(root - moved, math.sqrt(epsilon))
        passed = np.abs(weight) * (x.seen * moved / (root * least) + x.bound / least)
        whole = np.abs(weight) * (x.seen / root + math.sqrt(n))
        roundings = (sum_error(n) + 5 * U) / 2 + FUNCTION + 4 * U
        bound = np.minimum(passed, whole) + 1.01 * roundings * np.abs(weight) * x.seen / root + LEAST
        return self._noted(name, Tracked(machine, exact, bound))

    def _weight_error(self, name: str) -> Reals:
        if name not in self.errors:
            self.errors[name] = weight_error(self.tensors[name])
        return self.errors[name]

    def _linear(self, name: str, x: Tracked) -> Tracked:
        x = self._taken(x)
        w, bias = self.tensors[name], self.tensors.get(f"{name}_bias")
        (machine,) = self.reference._project(x.machine, name)
        bound = x.bound @ np.abs(w).T + product_error(x.seen, activation_error(x.seen), w, self._weight_error(name))
        exact = x.exact @ w.T
        if bias is not None:
            exact, bound = exact + bias, bound + 2 * U * (np.abs(machine.astype(np.float64)) + np.abs(bias))
        return self._noted(name, Tracked(machine, exact, bound))

    # ------------------------------------------------------------ attention

    def _attention(self, i: int, x: Tracked, cache: IntegerCache) -> Tracked:
        d, prefix, n = self.decoder, f"layers.{i}.", len(x.machine)
        q, k, v = (self._linear(prefix + name, x).reshape(n, -1, d.d_head) for name in ("q", "k", "v"))
        if d.qk_norm:
            q, k = self._norm(prefix + "q_norm", q), self._norm(prefix + "k_norm", k)
        q, k, v = (self._taken(t) for t in (self._rotated(i, q), self._rotated(i, k), v))
        v_codes, v_scales = quantise(v.machine, scope="row")
        keys, key_scales = quantise(k.machine)
        cache.extend(i, keys, key_scales, v_codes.reshape(*v_codes.shape[:2], -1)[..., : d.d_head], v_scales[..., 0])
        seen = visible(n, 0, d.windows[i])
        machine = self.reference._attend(i, q.machine, cache, seen)  # [T, N, H]
        exact, bound = np.empty(machine.shape), np.empty(machine.shape)
        group = d.n_heads // d.n_kv_heads
        for head in range(d.n_heads):
            own = head // group
            parts = [Tracked(t.machine[:, at], t.exact[:, at], t.bound[:, at]) for t, at in ((q, head), (k, own), (v, own))]
            exact[:, head], bound[:, head] = self._head(i, head, parts, v_scales[:, own, 0].astype(np.float64), seen)
        return self._linear(prefix + "o", self._noted(prefix + "mixed", Tracked(machine, exact, bound)).reshape(n, -1))

    def _rotated(self, i: int, x: Tracked) -> Tracked:
        x = self._taken(x)
        rope, h = self.decoder.ropes[i], self.decoder.d_head
        positions = np.arange(len(x.machine))
        table = rotary_table(rope, h, positions)  # [T, H]
        angles = positions[:, None] * rope.inverse_frequencies(h).astype(np.float64)
        c, s = (f(angles)[:, None] * rope.amplitude for f in (np.cos, np.sin))

        def turned(a: Reals, b: Reals) -> Reals:
            return np.stack([a, b], -1).reshape(x.machine.shape)

        (a, b), (ea, eb), (ma, mb) = ((t[..., 0::2], t[..., 1::2]) for t in (x.exact, x.bound, x.seen))
        passed = turned(np.abs(c) * ea + np.abs(s) * eb, np.abs(s) * ea + np.abs(c) * eb)
        size = turned(np.abs(c) * ma + np.abs(s) * mb, np.abs(s) * ma + np.abs(c) * mb)
        y = Tracked(rotate_pairs(x.machine, table), turned(a * c - b * s, b * c + a * s), passed + 4 * U * size + LEAST)
        return self._noted(f"layers.{i}.rotated", y)

    def _head(self, i: int, head: int, parts: Sequence[Tracked], v_scales: Reals, seen: npt.NDArray[np.bool_]) -> tuple[Reals, Reals]:
        """Return what one head mixes exactly, and the bound: `[T, H]` each."""
        q, k, v = parts
        factor = self.decoder.attention_scale * math.log2(math.e)
        scaled = mul(q.machine, np.float32(factor))
        q = Tracked(scaled, q.exact * factor, (q.bound + 2 * U * q.seen) * factor)
        codes, scales = quantise(scaled)
        key_codes, key_scales = quantise(k.machine)
        scores = gemm(key_codes.swapaxes(0, 1), key_scales.T, codes, scales).astype(np.float64)  # [T, S], powers of two
        off = q.bound @ (k.seen + k.bound).T + q.seen @ k.bound.T
        off = off + product_error(q.seen, activation_error(q.seen), k.seen, activation_error(k.seen))
        sinks = self.tensors.get(f"layers.{i}.sinks")
        sink = None if sinks is None else float(sinks[head]) * math.log2(math.e)
        p, p_off = _probabilities(scores, off, seen, sink)
        exact_p, _ = _probabilities(q.exact @ k.exact.T, np.zeros(scores.shape), seen, sink)
        return exact_p @ v.exact, _mixed(p, p_off, v, v_scales, scores, seen, sink)

    # ------------------------------------------------------------ MLP

    def _mlp(self, prefix: str, x: Tracked) -> Tracked:
        d = self.decoder
        gate, up = (self._taken(self._linear(prefix + name, x)) for name in ("gate", "up"))
        machine = self.reference._activate(gate.machine, up.machine)
        if d.activation == "swiglu_clamped":
            limit = d.swiglu_limit
            gate = Tracked(np.minimum(gate.machine, np.float32(limit)), np.minimum(gate.exact, limit), gate.bound)
            up = Tracked(
                add(np.clip(up.machine, np.float32(-limit), np.float32(limit)), np.float32(1)),
                np.clip(up.exact, -limit, limit) + 1, up.bound + U * (up.seen + 1),
            )  # fmt: skip
        slope = _SLOPES[d.activation]
        own, z = _activated(d, gate.machine.astype(np.float64))
        exact, _ = _activated(d, gate.exact)
        passed = up.seen * slope * gate.bound + (np.abs(own) + slope * gate.bound) * up.bound
        # sigmoid(z): the exponent is off by 8 roundings of z and exp2's error; then an addition, rcp, two products
        roundings = np.abs(z) * 8 * U + 2 * FUNCTION + 6 * U
        hidden = Tracked(machine, exact * up.exact, passed + 1.01 * np.abs(own) * up.seen * roundings + LEAST)
        return self._linear(prefix + "down", self._noted(prefix + "hidden", hidden))


def _activated(d: Decoder, g: Reals) -> tuple[Reals, Reals]:
    """Return g sigmoid(z) and z."""
    if d.activation == "gelu_tanh":
        z = 2 * math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)
    else:
        z = g * (d.swiglu_alpha if d.activation == "swiglu_clamped" else 1.0)
    with np.errstate(over="ignore"):
        return g / (1 + np.exp(-z)), z


def _probabilities(scores: Reals, off: Reals, seen: npt.NDArray[np.bool_], sink: float | None) -> tuple[Reals, Reals]:
    """Return softmax of powers of two `[T, S]`, and how far it can be off where scores are off by `off`: never by more than 1."""
    t = np.where(seen, scores, -np.inf)
    peak = t.max(-1, keepdims=True) if sink is None else np.maximum(t.max(-1, keepdims=True), sink)
    raw = np.exp2(t - peak)
    rest = 0.0 if sink is None else np.exp2(sink - peak)
    total = raw.sum(-1, keepdims=True) + rest
    p = raw / total
    a = np.minimum(off * math.log(2), _MOST)
    with np.errstate(over="ignore"):  # an overflow is capped below
        high = p * np.exp(a) / ((p * np.exp(-a)).sum(-1, keepdims=True) + rest / total)
    low = p * np.exp(-a) / ((p * np.exp(a)).sum(-1, keepdims=True) + rest / total)
    return p, np.maximum(np.minimum(high, 1.0) - p, p - low) * (1 + 1e-9)


def _mixed(p: Reals, p_off: Reals, v: Tracked, v_scales: Reals, scores: Reals, seen: npt.NDArray[np.bool_], sink: float | None) -> Reals:
    """Return the bound of mixed values `[T, H]`: errors of probabilities and values, quantised values and weights, roundings."""
    n_keys = p.shape[1]
    passed = np.minimum(p @ v.bound + p_off @ (v.seen + v.bound), p @ v.seen + (v.seen + v.bound).max(0))
    held = v.seen + activation_error(v.seen, scope="row")  # quantised values
    stored = p @ activation_error(v.seen, scope="row")
    # weights p v_scale, quantised in blocks of 32 keys: of the unnormalised p, so that the divisor scales both alike
    peak = np.where(seen, scores, -np.inf).max(-1, keepdims=True)
    peak = peak if sink is None else np.maximum(peak, sink)
    raw = np.where(seen, np.exp2(scores - peak), 0.0)
    total = raw.sum(-1, keepdims=True) + (0.0 if sink is None else np.exp2(sink - peak))
    codes = np.ceil(np.minimum(127.0, v.seen / np.maximum(v_scales, LEAST)[:, None] + 1))  # magnitudes of int8 values
    weights = activation_error(raw * v_scales * (1 + 2 * FUNCTION)) / total @ codes
    distance = np.where(seen, peak - scores, 0.0)
    one = distance * U * math.log(2) + FUNCTION + U  # of p: the rounded difference, exp2
    relative = 2 * (one.max(-1, keepdims=True) + sum_error(n_keys) + n_keys / 128 * U) + FUNCTION + (2 * -(-n_keys // 32) + 6) * U
    bound: Reals = passed + stored + weights + 1.01 * relative * (p @ held + weights) + n_keys * LEAST
    return bound


__all__ = ["Distance", "ErrorBound", "Tracked", "error_bound"]
