"""What a decoder-only transformer computes, complete enough to run it: shapes, norms, rotary bases, windows, experts.

`Model` (model.model) describes enough to count operations of any architecture; a `Decoder` describes one of the families that fabless executes,
exactly. `Decoder.tensors()` is the canonical list of weights: every file format is mapped to these names and shapes.

    embedding [V, D]            head [V, D] (absent when tied)            final_norm [D]
    layers.{i}.attention_norm [D]   .q [N*H, D]  .k [K*H, D]  .v [K*H, D]  .o [D, N*H]   (+ .q_bias ... .o_bias)
              .q_norm [H]  .k_norm [H]  .sinks [N]  .attention_post_norm [D]
              .mlp_norm [D]  .mlp_post_norm [D]  .gate [F, D]  .up [F, D]  .down [D, F]  (+ biases)
              .router [E, D]  .router_bias [E]  .experts.{e}.gate [F, D]  .up [F, D]  .down [D, F]  (+ biases)

Norm weights are the multiplier itself (Gemma's stored offset from one is already added). Q and K rows are in the half-split rotary order:
element j of a head turns with element j + H/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fabless.core.errors import InputError, UnsupportedError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

Activation = Literal["silu", "gelu_tanh", "swiglu_clamped"]

#: Hugging Face model_type -> family of fabless.
FAMILIES = {
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "gemma3_text": "gemma3",
    "gemma3": "gemma3",
    "gpt_oss": "gpt_oss",
}
#: GGUF general.architecture -> family of fabless (llama with experts is mixtral).
GGUF_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe", "gemma3": "gemma3", "gpt-oss": "gpt_oss"}


@dataclass(frozen=True, slots=True)
class Rope:
    """Describe rotary positions: angle of pair j at position p is `p * inverse_frequencies[j]`, cosine and sine times `amplitude`.

    `kind` "linear" divides frequencies by `factor`; "llama3" and "yarn" do so for long wavelengths only; `divisors` (one per pair, as GGUF
    stores them) divide frequencies directly. Source: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071); Llama 3.1 reference code.
    """

    theta: float
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_context_tokens: int = 0
    low_factor: float = 1.0  # llama3: wavelengths above original context / low_factor are divided by factor
    high_factor: float = 4.0  # llama3: wavelengths below original context / high_factor are kept
    beta_fast: float = 32.0  # yarn: rotations in the original context above which a pair is kept
    beta_slow: float = 1.0  # yarn: rotations below which a pair is divided by factor
    truncated: bool = True  # yarn: the ramp starts and ends at whole pairs
    amplitude: float = 1.0
    divisors: tuple[float, ...] = ()

    def inverse_frequencies(self, d_head: int) -> npt.NDArray[np.float32]:
        """Return the `[H/2]` float32 angles in radians per position."""
        import numpy as np

        inverse = np.float32(1) / np.float32(self.theta) ** (np.arange(0, d_head, 2, dtype=np.float32) / np.float32(d_head))
        if self.divisors:
            return np.asarray(inverse / np.asarray(self.divisors, np.float32), np.float32)
        if self.kind == "linear":
            inverse = inverse / np.float32(self.factor)
        elif self.kind == "llama3":
            inverse = self._llama3(inverse)
        elif self.kind == "yarn":
            inverse = self._yarn(inverse, d_head)
        return np.asarray(inverse, np.float32)

    def _llama3(self, inverse: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        import numpy as np

        rotations = self.original_context_tokens * inverse / (2 * math.pi)  # [H/2] turns within the original context
        kept = np.clip((rotations - self.low_factor) / (self.high_factor - self.low_factor), 0, 1)
        return np.asarray((1 - kept) * inverse / self.factor + kept * inverse, np.float32)

    def _yarn(self, inverse: npt.NDArray[np.float32], d_head: int) -> npt.NDArray[np.float32]:
        import numpy as np

        def pair_turning(rotations: float) -> float:
            return d_head * math.log(self.original_context_tokens / (rotations * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = pair_turning(self.beta_fast), pair_turning(self.beta_slow)
        if self.truncated:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, d_head - 1)
        width = high - low if high != low else 0.001  # a ramp of no width would divide by zero
        kept = 1 - np.clip((np.arange(d_head // 2, dtype=np.float32) - low) / width, 0, 1)
        return np.asarray((1 - kept) * inverse / self.factor + kept * inverse, np.float32)


@dataclass(frozen=True, slots=True)
class Routing:
    """Describe a mixture of experts: `n_routed` of `n_experts` per token, gates a softmax over router logits.

    `normalised` gates sum to one over the chosen experts (softmax over the chosen logits); else they keep their share of the softmax over all.
    """

    n_experts: int
    n_routed: int
    normalised: bool = True


@dataclass(frozen=True, slots=True)
class Decoder:
    """Describe a decoder-only transformer of an executed family. D d_model, F d_ff, N n_heads, K n_kv_heads, H d_head, V n_vocab."""

    family: str
    name: str
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    n_vocab: int
    context_tokens: int
    norm_epsilon: float
    windows: tuple[int, ...]  # keys that a query sees, itself included, per layer; 0: all
    ropes: tuple[Rope, ...]  # per layer
    attention_scale: float
    activation: Activation = "silu"
    tied_embeddings: bool = False
    embedding_scale: float = 1.0
    qk_norm: bool = False
    post_norms: bool = False
    sinks: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    routing: Routing | None = None
    swiglu_limit: float = 7.0  # swiglu_clamped only
    swiglu_alpha: float = 1.702  # swiglu_clamped only

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the canonical name and shape of every weight, in the order in which a forward pass meets them."""
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.n_vocab, self.d_model)}
        for i in range(self.n_layers):
            shapes |= {f"layers.{i}.{name}": shape for name, shape in self._layer().items()}
        shapes["final_norm"] = (self.d_model,)
        if not self.tied_embeddings:
            shapes["head"] = (self.n_vocab, self.d_model)
        return shapes

    def _layer(self) -> dict[str, tuple[int, ...]]:
        d, h, q, kv = self.d_model, self.d_head, self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        shapes: dict[str, tuple[int, ...]] = {"attention_norm": (d,), "q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}
        if self.qkv_bias:
            shapes |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
        if self.o_bias:
            shapes["o_bias"] = (d,)
        if self.qk_norm:
            shapes |= {"q_norm": (h,), "k_norm": (h,)}
        if self.sinks:
            shapes["sinks"] = (self.n_heads,)
        if self.post_norms:
            shapes["attention_post_norm"] = (d,)
        shapes["mlp_norm"] = (d,)
        shapes |= self._mlp()
        if self.post_norms:
            shapes["mlp_post_norm"] = (d,)
        return shapes

    def _mlp(self) -> dict[str, tuple[int, ...]]:
        one: dict[str, tuple[int, ...]] = {
            "gate": (self.d_ff, self.d_model),
            "up": (self.d_ff, self.d_model),
            "down": (self.d_model, self.d_ff),
        }
        if self.mlp_bias:
            one |= {"gate_bias": (self.d_ff,), "up_bias": (self.d_ff,), "down_bias": (self.d_model,)}
        if self.routing is None:
            return one
        router: dict[str, tuple[int, ...]] = {"router": (self.routing.n_experts, self.d_model)}
        if self.mlp_bias:
            router["router_bias"] = (self.routing.n_experts,)
        return router | {f"experts.{e}.{name}": shape for e in range(self.routing.n_experts) for name, shape in one.items()}

    @property
    def n_parameters(self) -> int:
        """Return the number of weights."""
        return sum(math.prod(shape) for shape in self.tensors().values())


class _Keys:
    """Read typed, bounded values of a config, naming file and key in every complaint."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def whole(self, key: str, default: int | None = None, *, low: int = 1, high: int = 1 << 24) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise InputError(f"{self.where}: no '{key}'; add it, an integer of at least {low}")
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(f"{self.where}: '{key}' must be an integer from {low} to {high}, not {value!r}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise InputError(f"{self.where}: '{key}' must be a positive number, not {value!r}")
        return float(value)

    def claim(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise InputError(f"{self.where}: '{key}' must be true or false, not {value!r}")
        return value


def decoder_from_config(config: Mapping[str, Any], where: str, name: str = "") -> Decoder:
    """Read a Hugging Face config.json of an executed family into a `Decoder`.

    Raises `UnsupportedError` for another model_type or for a feature that changes the arithmetic and is not executed, `InputError` naming
    file, key, value and rule for a value that cannot be.
    """
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UnsupportedError(f"{where}: model_type {kind!r} is not executed{nearest(str(kind), FAMILIES)}; known: {', '.join(FAMILIES)}")
    family, keys = FAMILIES[kind], _Keys(config, where)
    for key in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention", "partial_rotary_factor"):
        if config.get(key) not in (None, False, 1.0):
            raise UnsupportedError(f"{where}: '{key}' = {config[key]!r} is not executed; only models without it are")
    n_heads = keys.whole("num_attention_heads")
    d_model = keys.whole("hidden_size")
    d_head = keys.whole("head_dim", max(1, d_model // n_heads))
    n_layers = keys.whole("num_hidden_layers", high=10_000)
    windows = _config_windows(keys, family, n_layers)
    routing = _config_routing(keys, family)
    attention_bias = keys.claim("attention_bias", family == "gpt_oss")
    gemma = family == "gemma3"
    return _checked(
        Decoder(
            family=family,
            name=name or str(config.get("_name_or_path") or family),
            n_layers=n_layers,
            d_model=d_model,
            d_ff=keys.whole("moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size"),
            n_heads=n_heads,
            n_kv_heads=keys.whole("num_key_value_heads", n_heads),
            d_head=d_head,
            n_vocab=keys.whole("vocab_size"),
            context_tokens=keys.whole("max_position_embeddings", high=1 << 31),
            norm_epsilon=keys.real("rms_norm_eps", 1e-6),
            windows=windows,
            ropes=_config_ropes(keys, family, windows),
            attention_scale=(keys.real("query_pre_attn_scalar", 256) if gemma else d_head) ** -0.5,
            activation=_config_activation(keys, family),
            tied_embeddings=keys.claim("tie_word_embeddings", gemma),
            embedding_scale=math.sqrt(d_model) if gemma else 1.0,
            qk_norm=family in ("qwen3", "qwen3_moe", "gemma3"),
            post_norms=gemma,
            sinks=family == "gpt_oss",
            qkv_bias=attention_bias or family == "qwen2",
            o_bias=attention_bias,
            mlp_bias=keys.claim("mlp_bias", False) if family == "llama" else family == "gpt_oss",
            routing=routing,
            swiglu_limit=keys.real("swiglu_limit", 7.0),
            swiglu_alpha=keys.real("swiglu_alpha", 1.702),
        ),
        where,
    )


def _config_activation(keys: _Keys, family: str) -> Activation:
    if family == "gpt_oss":
        return "swiglu_clamped"
    named = keys.values.get("hidden_activation") or keys.values.get("hidden_act") or ("gelu_pytorch_tanh" if family == "gemma3" else "silu")
    known: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
    if named not in known:
        raise UnsupportedError(f"{keys.where}: activation {named!r} is not executed; known: {', '.join(known)}")
    return known[named]


def _config_routing(keys: _Keys, family: str) -> Routing | None:
    if family not in ("mixtral", "qwen3_moe", "gpt_oss"):
        return None
    if family == "qwen3_moe" and (keys.values.get("mlp_only_layers") or keys.values.get("decoder_sparse_step") not in (None, 1)):
        raise UnsupportedError(f"{keys.where}: dense layers between expert layers are not executed; only uniform mixtures are")
    n_experts = keys.whole("num_experts" if family == "qwen3_moe" else "num_local_experts", high=65_536)
    n_routed = keys.whole("num_experts_per_tok", high=n_experts)
    return Routing(n_experts, n_routed, keys.claim("norm_topk_prob", False) if family == "qwen3_moe" else True)


def _config_windows(keys: _Keys, family: str, n_layers: int) -> tuple[int, ...]:
    window = keys.values.get("sliding_window")
    if window is None or keys.values.get("use_sliding_window") is False or family in ("llama",):
        return (0,) * n_layers
    window = keys.whole("sliding_window", high=1 << 31)
    types = keys.values.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != n_layers or set(types) - {"sliding_attention", "full_attention"}:
            raise InputError(f"{keys.where}: 'layer_types' must list {n_layers} of 'sliding_attention' and 'full_attention'")
        return tuple(window if kind == "sliding_attention" else 0 for kind in types)
    if family == "gemma3":
        pattern = keys.whole("sliding_window_pattern", 6)
        return tuple(window if (i + 1) % pattern else 0 for i in range(n_layers))
    if family == "gpt_oss":
        return tuple(0 if i % 2 else window for i in range(n_layers))
    if family in ("qwen2", "qwen3", "qwen3_moe"):
        if not keys.claim("use_sliding_window", False):
            return (0,) * n_layers
        first = keys.whole("max_window_layers", 28, low=0)
        return tuple(window if i >= first else 0 for i in range(n_layers))
    return (window,) * n_layers


def _config_ropes(keys: _Keys, family: str, windows: tuple[int, ...]) -> tuple[Rope, ...]:
    given = keys.values.get("rope_parameters")
    old = keys.values.get("rope_scaling") or {}
    if not isinstance(old, dict) or not isinstance(given, (dict, type(None))):
        raise InputError(f"{keys.where}: 'rope_parameters' and 'rope_scaling' must be tables")
    if family == "gemma3":
        by_kind = given or {}
        whole = {"rope_theta": keys.values.get("rope_theta") or 1e6} | old | (by_kind.get("full_attention") or {})
        local = {"rope_theta": keys.values.get("rope_local_base_freq") or 1e4} | (by_kind.get("sliding_attention") or {})
        ropes = {0: _rope(whole, keys), 1: _rope(local, keys)}
        return tuple(ropes[bool(w)] for w in windows)
    merged = {"rope_theta": keys.values.get("rope_theta") or 1e4} | old | (given or {})
    return (_rope(merged, keys),) * len(windows)


def _rope(values: Mapping[str, Any], outer: _Keys) -> Rope:
    keys = _Keys(values, f"{outer.where}: rope_parameters")
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise UnsupportedError(f"{keys.where}: rope_type {kind!r} is not executed; known: default, linear, llama3, yarn")
    if values.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UnsupportedError(f"{keys.where}: partial rotary embeddings are not executed")
    theta = keys.real("rope_theta")
    if kind == "default":
        return Rope(theta)
    factor = keys.real("factor")
    if kind == "linear":
        return Rope(theta, "linear", factor)
    original = keys.whole("original_max_position_embeddings", outer.values.get("max_position_embeddings"), high=1 << 31)
    if kind == "llama3":
        return Rope(theta, "llama3", factor, original, keys.real("low_freq_factor"), keys.real("high_freq_factor"))
    amplitude = keys.real("attention_factor", 0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
    return Rope(
        theta, "yarn", factor, original,
        beta_fast=keys.real("beta_fast", 32), beta_slow=keys.real("beta_slow", 1), truncated=keys.claim("truncate", True), amplitude=amplitude,
    )  # fmt: skip


def decoder_from_gguf(metadata: Mapping[str, Any], where: str, *, tied_embeddings: bool, rope_divisors: tuple[float, ...] = ()) -> Decoder:
    """Read the metadata of a GGUF file of an executed family into a `Decoder`; raises like `decoder_from_config`.

    `tied_embeddings`: the file has no output.weight; `rope_divisors`: the content of rope_freqs.weight, if any. What the format leaves to the
    reader is as in llama.cpp: Gemma-3 windows on five of six layers with local base 10,000, gpt-oss windows on even layers.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in GGUF_FAMILIES:
        raise UnsupportedError(
            f"{where}: architecture {arch!r} is not executed{nearest(str(arch), GGUF_FAMILIES)}; known: {', '.join(GGUF_FAMILIES)}"
        )
    prefix = f"{arch}."
    keys = _Keys({k[len(prefix) :]: v for k, v in metadata.items() if k.startswith(prefix)}, f"{where}: {arch}")
    n_experts = keys.whole("expert_count", 0, low=0, high=65_536)
    family = "mixtral" if arch == "llama" and n_experts else GGUF_FAMILIES[arch]
    n_heads, d_model = keys.whole("attention.head_count"), keys.whole("embedding_length")
    d_head = keys.whole("attention.key_length", max(1, d_model // n_heads))
    if keys.whole("attention.value_length", d_head) != d_head or keys.whole("rope.dimension_count", d_head) != d_head:
        raise UnsupportedError(f"{where}: heads whose keys, values and rotary part differ in width are not executed")
    n_layers = keys.whole("block_count", high=10_000)
    windows = _gguf_windows(keys, family, n_layers)
    whole = _gguf_rope(keys, rope_divisors)
    local = Rope(keys.real("rope.freq_base_swa", 1e4)) if family == "gemma3" else whole
    tokens = metadata.get("tokenizer.ggml.tokens")
    return _checked(
        Decoder(
            family=family,
            name=str(metadata.get("general.name") or family),
            n_layers=n_layers,
            d_model=d_model,
            d_ff=keys.whole("expert_feed_forward_length" if family in ("qwen3_moe", "gpt_oss") else "feed_forward_length"),
            n_heads=n_heads,
            n_kv_heads=keys.whole("attention.head_count_kv", n_heads),
            d_head=d_head,
            n_vocab=keys.whole("vocab_size", len(tokens) if isinstance(tokens, list) else None),
            context_tokens=keys.whole("context_length", high=1 << 31),
            norm_epsilon=keys.real("attention.layer_norm_rms_epsilon", 1e-6),
            windows=windows,
            ropes=tuple(local if w else whole for w in windows),
            # Gemma-3 27B scales by d_model / n_heads = 168 where every other size scales by d_head; GGUF does not say, llama.cpp knows by depth.
            attention_scale=(d_model / n_heads if family == "gemma3" and n_layers == 62 else d_head) ** -0.5,
            activation={"gemma3": "gelu_tanh", "gpt_oss": "swiglu_clamped"}.get(family, "silu"),  # type: ignore[arg-type]
            tied_embeddings=tied_embeddings,
            embedding_scale=math.sqrt(d_model) if family == "gemma3" else 1.0,
            qk_norm=family in ("qwen3", "qwen3_moe", "gemma3"),
            post_norms=family == "gemma3",
            sinks=family == "gpt_oss",
            qkv_bias=family in ("qwen2", "gpt_oss"),
            o_bias=family == "gpt_oss",
            mlp_bias=family == "gpt_oss",
            routing=Routing(n_experts, keys.whole("expert_used_count", high=n_experts)) if n_experts else None,
        ),
        where,
    )


def _gguf_windows(keys: _Keys, family: str, n_layers: int) -> tuple[int, ...]:
    if family not in ("gemma3", "gpt_oss"):
        if keys.values.get("attention.sliding_window"):
            return (keys.whole("attention.sliding_window", high=1 << 31),) * n_layers
        return (0,) * n_layers
    window = keys.whole("attention.sliding_window", high=1 << 31)
    if family == "gemma3":
        return tuple(window if (i + 1) % 6 else 0 for i in range(n_layers))
    return tuple(0 if i % 2 else window for i in range(n_layers))


def _gguf_rope(keys: _Keys, divisors: tuple[float, ...]) -> Rope:
    theta = keys.real("rope.freq_base", 1e4)
    kind = keys.values.get("rope.scaling.type") or "none"
    if kind == "none" or divisors:
        return Rope(theta, divisors=divisors)
    factor = keys.real("rope.scaling.factor", 1.0)
    if kind == "linear":
        return Rope(theta, "linear", factor)
    if kind != "yarn":
        raise UnsupportedError(f"{keys.where}.rope.scaling.type {kind!r} is not executed; known: none, linear, yarn")
    original = keys.whole("rope.scaling.original_context_length", high=1 << 31)
    amplitude = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return Rope(theta, "yarn", factor, original, truncated="gpt-oss" not in keys.where, amplitude=amplitude)


def _checked(decoder: Decoder, where: str) -> Decoder:
    if decoder.n_heads % decoder.n_kv_heads:
        raise InputError(
            f"{where}: {decoder.n_heads} attention heads cannot share {decoder.n_kv_heads} KV heads evenly; make one divide the other"
        )
    if decoder.d_head % 2:
        raise InputError(f"{where}: head dimension {decoder.d_head} is odd; rotary positions turn pairs, make it even")
    if any(r.divisors and len(r.divisors) != decoder.d_head // 2 for r in decoder.ropes):
        raise InputError(f"{where}: rope_freqs.weight must hold {decoder.d_head // 2} values, one per pair of a head")
    return decoder
