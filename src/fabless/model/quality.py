"""How much text quality a number format costs: perplexity, divergence and agreement against float32, on a text.

    report = quality("smollm2-135m", "int8_block32", text)      # formats simulated in float32 (products in float, operands rounded)
    report = quality("smollm2-135m", "exact", text)               # the chip's own integers, `integer_reference`

The recipes of the study are rows of `RECIPES`. Round to nearest, no calibration, norms and softmax in float32 but where a recipe says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fabless.core.errors import InputError, nearest
from fabless.model.float_reference import Arithmetic, FloatReference, softmax
from fabless.number.formats import BF16, E2M1, E4M3, INT4, INT4_BLOCK32, INT8, INT8_BLOCK32, MXFP4, MXINT8, NVFP4, Format, Scaled

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from fabless.model.integer_reference import IntegerReference
    from fabless.model.weights import Weights

    Floats = npt.NDArray[np.float32]

ScaleRule = Literal["fp32", "fp16", "bf16_up", "e8m0_floor", "e8m0_up", "e4m3", "searched", "none"]
_MAX = {"int8": 127.0, "int4": 7.0, "fp8_e4m3": 448.0, "fp4_e2m1": 6.0}  # greatest magnitude used; integers stay symmetric
_EMAX = {
    "fp8_e4m3": 8,
    "fp4_e2m1": 2,
    "int8": 6,
}  # exponent of the greatest power of two; MXINT8 elements are code / 64. Source: OCP Microscaling 1.0


@dataclass(frozen=True, slots=True)
class Scheme:
    """Say how values are rounded: element format, how many along k share a scale (0: a row), and how the scale is chosen and kept.

    Scale rules: "fp32", "fp16" absmax over the greatest element; "bf16_up" the same, rounded up (what the chip does for activations);
    "e8m0_floor" the OCP rule; "e8m0_up" the least power of two that clips nothing; "e4m3" the two-level rule of NVFP4; "searched" the fp32 scale
    of 40 between 0.6 and 1.0 of absmax with the least squared error; "none" a plain cast.
    """

    element: Format
    group: int = 0
    scale: ScaleRule = "fp32"

    def round(self, x: Floats) -> Floats:
        """Return `x [..., k]` with every value replaced by the one that the scheme would give back."""
        if self.scale == "none":
            return round_elements(x, self.element)
        k = x.shape[-1]
        group = self.group or k
        n = -(-k // group)
        blocks = np.zeros((*x.shape[:-1], n * group), np.float32)
        blocks[..., :k] = x
        blocks = blocks.reshape(*x.shape[:-1], n, group)
        scale = self._scales(blocks)[..., None]
        ratio = np.asarray(
            blocks / np.where(scale > 0, scale, np.float32(1)), np.float32
        )  # a scale of 0 stands for values that all round to 0
        return (round_elements(ratio, self.element) * scale).reshape(*x.shape[:-1], n * group)[..., :k]

    def _scales(self, blocks: Floats) -> Floats:
        amax: Floats = np.abs(blocks).max(-1)
        top = np.float32(_MAX[self.element.name])
        if self.scale in ("e8m0_floor", "e8m0_up"):
            safe = np.where(amax > 0, amax, 1)
            exponent = np.floor(np.log2(safe)) - _EMAX[self.element.name] if self.scale == "e8m0_floor" else np.ceil(np.log2(safe / top))
            return np.asarray(np.where(amax > 0, np.exp2(exponent), 0), np.float32)
        if self.scale == "e4m3":
            whole = amax.max() / (top * np.float32(_MAX["fp8_e4m3"]))
            return round_elements(amax / top / whole, E4M3) * whole if whole > 0 else amax
        if self.scale == "searched":
            return self._searched(blocks, amax / top)
        scale: Floats = amax / top
        if self.scale == "fp16":
            return np.asarray(scale.astype(np.float16), np.float32)
        if self.scale == "bf16_up":
            codes: npt.NDArray[np.uint32] = (scale.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
            return codes.view(np.float32)
        return scale

    def _searched(self, blocks: Floats, start: Floats) -> Floats:
        best, best_error = start, np.full(start.shape, np.inf, np.float32)
        for ratio in np.linspace(0.6, 1.0, 40, dtype=np.float32):
            scale = np.asarray(np.where(start > 0, start * ratio, 1), np.float32)[..., None]
            error = np.square(round_elements(blocks / scale, self.element) * scale - blocks).sum(-1)
            better = error < best_error
            best, best_error = np.where(better, start * ratio, best), np.where(better, error, best_error)
        return np.asarray(best, np.float32)


def round_elements(x: Floats, element: Format) -> Floats:
    """Return the nearest element value of every `x`, ties to even, saturating."""
    import ml_dtypes

    if element.kind == "int":
        top = np.float32(_MAX[element.name])
        return np.clip(np.rint(x), -top, top)
    dtypes: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp4_e2m1": ml_dtypes.float4_e2m1fn}
    limit = np.float32(_MAX.get(element.name, np.inf))
    return np.clip(x, -limit, limit).astype(dtypes[element.name]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class QualityRecipe:
    """Name the schemes of weights, activations of weight products, cached keys and values, and whether attention products are int8 too.

    None leaves float32. `executed`: run `integer_reference` with weights of this format instead, and head and token table of `executed_head`.
    """

    name: str
    label: str
    weights: Scheme | None = None
    activations: Scheme | None = None
    kv_cache: Scheme | None = None
    integer_attention: bool = False
    head_weights: Scheme | None = None  # of the language head, when it differs
    executed: Scaled | None = None
    executed_head: Scaled | None = None


_INT8_CHANNEL, _INT8_BLOCK, _E4M3 = Scheme(INT8), Scheme(INT8, 32, "fp16"), Scheme(E4M3)
_INT8_ACTIVATIONS, _MXFP4, _NVFP4 = Scheme(INT8, 32, "bf16_up"), Scheme(E2M1, 32, "e8m0_floor"), Scheme(E2M1, 16, "e4m3")

#: The study. Names follow weights x activations.
RECIPES: dict[str, QualityRecipe] = {
    r.name: r
    for r in (
        QualityRecipe("fp32", "float32"),
        QualityRecipe("bf16", "bf16 weights and activations", Scheme(BF16, 0, "none"), Scheme(BF16, 0, "none")),
        QualityRecipe("int8_block32", "int8 in blocks of 32, weights (fp16 scale) and activations (bf16 scale)", _INT8_BLOCK, _INT8_ACTIVATIONS),
        QualityRecipe("int8_block32_attention", "the same, attention products and KV cache int8 too", _INT8_BLOCK, _INT8_ACTIVATIONS, integer_attention=True),
        QualityRecipe("exact", "the chip's integers, every operation as executed", executed=INT8_BLOCK32),
        *(QualityRecipe(f"exact_{f.name}", f"the same with {f.name} weights", executed=f) for f in (MXINT8, INT4_BLOCK32, MXFP4, NVFP4)),
        *(QualityRecipe(f"exact_{f.name}_head8", f"the same with {f.name} weights, head and token table int8_block32", executed=f,
                        executed_head=INT8_BLOCK32) for f in (INT4_BLOCK32, MXFP4, NVFP4)),
        QualityRecipe("int8", "int8 per channel, activations int8 per token", _INT8_CHANNEL, _INT8_CHANNEL),
        QualityRecipe("int8_a64", "int8 per channel, activations int8 in groups of 64", _INT8_CHANNEL, Scheme(INT8, 64)),
        QualityRecipe("int8_weights", "int8 per channel, activations float32", _INT8_CHANNEL),
        QualityRecipe("int8_kv8", "int8 per channel and token, KV cache int8 per token and head", _INT8_CHANNEL, _INT8_CHANNEL, _INT8_CHANNEL),
        QualityRecipe("int8_kv4", "int8 per channel and token, KV cache int4 per token and head", _INT8_CHANNEL, _INT8_CHANNEL, Scheme(INT4)),
        QualityRecipe("fp8_e4m3", "e4m3 per channel, activations e4m3 per token", _E4M3, _E4M3),
        QualityRecipe("fp8_e4m3_unscaled", "e4m3 per channel, activations cast to e4m3", _E4M3, Scheme(E4M3, 0, "none")),
        QualityRecipe("mxfp8", "MXFP8, OCP floor rule", Scheme(E4M3, 32, "e8m0_floor"), Scheme(E4M3, 32, "e8m0_floor")),
        QualityRecipe("mxfp8_up", "MXFP8, scale rounded up", Scheme(E4M3, 32, "e8m0_up"), Scheme(E4M3, 32, "e8m0_up")),
        QualityRecipe("mxfp4_fp8", "MXFP4 weights (OCP floor), e4m3 activations per token", _MXFP4, _E4M3),
        QualityRecipe("mxfp4", "MXFP4 weights and activations", _MXFP4, _MXFP4),
        QualityRecipe("nvfp4_fp8", "NVFP4 weights, e4m3 activations per token", _NVFP4, _E4M3),
        QualityRecipe("nvfp4", "NVFP4 weights and activations", _NVFP4, _NVFP4),
        QualityRecipe("int4_block32", "int4 in blocks of 32, int8 activations in groups of 64", Scheme(INT4, 32), Scheme(INT8, 64)),
        QualityRecipe("int4_searched_head8", "int4 in blocks of 32, scale searched, head int8", Scheme(INT4, 32, "searched"), Scheme(INT8, 64),
                      head_weights=_INT8_CHANNEL),
    )
}  # fmt: skip


@dataclass(frozen=True)
class RoundedArithmetic(Arithmetic):
    """Multiply in float32 what a recipe leaves of the operands; `tensors` hold weights already rounded."""

    recipe: QualityRecipe = RECIPES["fp32"]

    def linear(self, name: str, x: Floats) -> Floats:
        """Round activations, then multiply. The router stays float32 in the study (it decides, it hardly costs)."""
        scheme = None if name.endswith("router") else self.recipe.activations
        return super().linear(name, x if scheme is None else scheme.round(x))

    def cached(self, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Round keys and values as the cache keeps them, one scale a token and head."""
        if self.recipe.integer_attention:
            return _INT8_ACTIVATIONS.round(keys), Scheme(INT8, 0, "bf16_up").round(values)
        scheme = self.recipe.kv_cache
        return (keys, values) if scheme is None else (scheme.round(keys), scheme.round(values))

    def attend(self, q: Floats, k: Floats, v: Floats, visible: npt.NDArray[np.bool_], *, scale: float, sinks: Floats | None) -> Floats:
        """Attend with int8 queries, and probabilities times value scales in int8 blocks of 32 keys, when the recipe says so."""
        if not self.recipe.integer_attention:
            return super().attend(q, k, v, visible, scale=scale, sinks=sinks)
        p = softmax(np.where(visible, self.scores(_INT8_ACTIVATIONS.round(q), k, scale), -np.inf), sinks)  # [N, T, S]
        v_scale = np.repeat(np.abs(v).max(-1), q.shape[1] // v.shape[1], 1).T[:, None, :]  # [N, 1, S]
        w = _INT8_ACTIVATIONS.round(p * v_scale)
        return self.mix(np.divide(w, v_scale, out=np.zeros_like(w), where=v_scale > 0), v)


def reference_of(weights: Weights, recipe: QualityRecipe) -> FloatReference | IntegerReference:
    """Load `weights` as a recipe rounds them."""
    if recipe.executed is not None:
        from fabless.model.integer_reference import IntegerReference

        return IntegerReference.load(weights, recipe.executed, recipe.executed_head)
    weights.require_memory()
    tensors = {name: _rounded(name, weights[name], recipe) for name in weights}
    if weights.decoder.tied_embeddings:  # looked up as it is, multiplied as rounded
        tensors["head"] = _rounded("head", tensors["embedding"], recipe)
    return FloatReference(replace(weights.decoder, tied_embeddings=False), RoundedArithmetic(tensors, recipe))


def _rounded(name: str, array: Floats, recipe: QualityRecipe) -> Floats:
    scheme = recipe.head_weights if name == "head" and recipe.head_weights else recipe.weights
    multiplied = array.ndim == 2 and name != "embedding" and not name.endswith("router")
    return scheme.round(array) if scheme is not None and multiplied else array


@dataclass(frozen=True, slots=True)
class Quality:
    """Report what a recipe does to a text: `perplexity` against `float_perplexity`, mean divergence in nats a token, share of equal arg-maxes."""

    model: str
    recipe: str
    n_tokens: int
    perplexity: float
    float_perplexity: float
    kl_nats: float
    top1_ratio: float
    negative_log_likelihood: tuple[float, ...] = field(repr=False, default=())

    @property
    def perplexity_change_ratio(self) -> float:
        """Return how much greater the perplexity is than float's: 0.02 for +2%."""
        return self.perplexity / self.float_perplexity - 1


def quality(
    model: str | Path | Weights, recipe: str | QualityRecipe, text: str, *, chunk_tokens: int = 512, max_chunks: int = 0
) -> Quality:
    """Score `text`, cut into chunks of `chunk_tokens` (each begun anew, the first-token id before it where the vocabulary has one), under a recipe.

    `max_chunks` limits the chunks (0: all; a last one shorter than half is left out). Raises `InputError` for an unknown recipe or too short a text.
    """
    from fabless.model.tokenizer import open_tokenizer
    from fabless.model.weights import Weights, open_weights

    weights = model if isinstance(model, Weights) else open_weights(model)
    chosen = recipe if isinstance(recipe, QualityRecipe) else recipe_named(recipe)
    tokenizer = open_tokenizer(weights)
    chunks = _chunks(tokenizer.encode(text), tokenizer.first_id, min(chunk_tokens, weights.decoder.context_tokens), max_chunks)
    return score(weights, chosen, chunks)


def recipe_named(name: str) -> QualityRecipe:
    """Return a recipe of the study; raises `InputError` naming the nearest."""
    if name not in RECIPES:
        raise InputError(f"no quality recipe '{name}'{nearest(name, RECIPES)}; known: {', '.join(RECIPES)}")
    return RECIPES[name]


def _chunks(ids: Sequence[int], first: int | None, n: int, limit: int) -> list[list[int]]:
    lead = [] if first is None else [first]
    body = list(ids[len(lead) :])
    step = n - len(lead)
    chunks = [lead + body[i : i + step] for i in range(0, len(body), step)]
    chunks = [c for c in chunks if len(c) > n // 2]
    if not chunks:
        raise InputError(f"a text of {len(ids)} tokens is too short to score; give at least {n // 2 + 1}")
    return chunks[:limit] if limit else chunks


def score(weights: Weights, recipe: QualityRecipe, chunks: Sequence[Sequence[int]], truth: Sequence[Floats] | None = None) -> Quality:
    """Return the quality of a recipe over chunks of token ids, each scored from its second token on.

    `truth`: float32 logits `[T, V]` per chunk (`float_logits`), so that many recipes need the float pass once.
    """
    truth = float_logits(weights, chunks) if truth is None else truth
    rounded = reference_of(weights, recipe)
    own: list[Floats] = []
    theirs: list[Floats] = []
    kl: list[Floats] = []
    agree: list[npt.NDArray[np.bool_]] = []
    for chunk, logits in zip(chunks, truth, strict=True):
        p, q = log_softmax(logits[:-1]), log_softmax(rounded.forward(chunk)[:-1])  # [T - 1, V]
        at = (np.arange(len(chunk) - 1), np.asarray(chunk[1:]))
        theirs.append(-p[at])
        own.append(-q[at])
        kl.append(np.einsum("tv,tv->t", np.exp(p), p - q))
        agree.append(p.argmax(-1) == q.argmax(-1))
    nll = np.concatenate(own)
    return Quality(
        weights.decoder.name, recipe.name, len(nll), math.exp(float(nll.mean())), math.exp(float(np.concatenate(theirs).mean())),
        float(np.concatenate(kl).mean()), float(np.concatenate(agree).mean()), tuple(nll.tolist()),
    )  # fmt: skip


def float_logits(weights: Weights, chunks: Sequence[Sequence[int]]) -> list[Floats]:
    """Return the float32 logits `[T, V]` of every chunk, each begun anew."""
    reference = reference_of(weights, RECIPES["fp32"])
    return [reference.forward(chunk) for chunk in chunks]


def log_softmax(logits: Floats) -> Floats:
    """Return natural log-probabilities over the last axis in float64."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))
