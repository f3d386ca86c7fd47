"""Small models with random weights, one or more of every executed family, for tests that need shapes and features rather than sense.

directory = write_random(Path("somewhere"), "gemma3", seed=1)   # config.json and model.safetensors, as Hugging Face lays them out
weights = random_weights("gpt_oss", seed=1)                       # the same, in memory
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.errors import InputError, nearest
from fabless.core.files import atomic, write_text
from fabless.model.decoder import Decoder, decoder_from_config
from fabless.model.weights import Weights, weights_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

_SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "vocab_size": 160, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
_ALTERNATE = ["sliding_attention", "full_attention"]

#: Config of each small model: every feature of its family is in at least one of them.
RANDOM_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _SHAPE | {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "llama31": _SHAPE
    | {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": _LLAMA3 | {"original_max_position_embeddings": 32},
    },
    "mistral": _SHAPE | {"model_type": "mistral", "sliding_window": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "qwen2": _SHAPE | {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3": _SHAPE | {"model_type": "qwen3", "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "gemma3": _SHAPE
    | {
        "model_type": "gemma3_text",
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "sliding_window": 8,
        "layer_types": _ALTERNATE,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "mixtral": _SHAPE
    | {
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "qwen3_moe": _SHAPE
    | {
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 64,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "gpt_oss": _SHAPE
    | {
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "attention_bias": True,
        "sliding_window": 8,
        "layer_types": _ALTERNATE,
        "swiglu_limit": 1.0,
        "rope_parameters": _YARN | {"original_max_position_embeddings": 32},
    },
}


def random_config(kind: str) -> dict[str, Any]:
    """Return the config.json content of a small model; raises `InputError` naming the nearest kind."""
    if kind not in RANDOM_CONFIGS:
        raise InputError(f"no random model '{kind}'{nearest(kind, RANDOM_CONFIGS)}; known: {', '.join(RANDOM_CONFIGS)}")
    return dict(RANDOM_CONFIGS[kind])


def random_decoder(kind: str) -> Decoder:
    """Return the `Decoder` of a small model."""
    return decoder_from_config(random_config(kind), kind, kind)


def random_arrays(decoder: Decoder, seed: int = 0) -> dict[str, Floats]:
    """Draw every tensor of a decoder: projections with variance 1 / inputs, norms about one, biases and sinks of order a tenth to one."""
    rng = np.random.default_rng(seed)
    return {name: _draw(rng, name, shape) for name, shape in decoder.tensors().items()}


def random_weights(kind: str, seed: int = 0) -> Weights:
    """Return the weights of a small model in memory."""
    decoder = random_decoder(kind)
    return weights_of(decoder, random_arrays(decoder, seed))


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Floats:
    values = rng.standard_normal(shape, np.float32)
    if name.endswith("norm"):
        return 1 + values * np.float32(0.2)
    if name.endswith("bias"):
        return values * np.float32(0.2)
    if name.endswith("sinks") or name == "embedding":
        return values
    return values * np.float32(shape[-1] ** -0.5 * 1.5)


def write_random(directory: Path, kind: str, seed: int = 0, type: str = "F32") -> Path:
    """Write config.json and model.safetensors of a small model into `directory` in Hugging Face's own names; returns the directory.

    `type`: "F32", "F16" or "BF16"; the narrower types round the weights.
    """
    decoder = random_decoder(kind)
    arrays = to_huggingface(decoder, random_arrays(decoder, seed))
    write_text(directory / "config.json", json.dumps(random_config(kind), indent=1, sort_keys=True) + "\n")
    write_safetensors(directory / "model.safetensors", arrays, type)
    return directory


def to_huggingface(decoder: Decoder, arrays: dict[str, Floats]) -> dict[str, Floats]:
    """Rename canonical tensors to those of a Hugging Face checkpoint: the inverse of what `open_weights` reads."""
    from fabless.model.weights import _HF_EXPERT, _HF_FAMILY, _HF_LAYER, _HF_TOP, _MIXTRAL

    layer_names = _HF_LAYER | _HF_FAMILY.get(decoder.family, {})
    out: dict[str, Floats] = {}
    for name, array in arrays.items():
        value = array - np.float32(1) if decoder.family == "gemma3" and name.endswith("norm") else array
        if name == "head":
            out["lm_head.weight"] = value
        elif name in _HF_TOP:
            out[f"model.{_HF_TOP[name]}"] = value
        else:
            _, i, rest = name.split(".", 2)
            if not rest.startswith("experts."):
                out[f"model.layers.{i}.{layer_names[rest]}"] = value
            elif decoder.family != "gpt_oss":
                _, e, x = rest.split(".")
                out[f"model.layers.{i}.{_HF_EXPERT[decoder.family].format(e=e, x=x, w=_MIXTRAL[x])}"] = value
    if decoder.family == "gpt_oss":
        for layer in range(decoder.n_layers):
            out |= _gpt_oss_experts(decoder, arrays, layer)
    return out


def _gpt_oss_experts(decoder: Decoder, arrays: dict[str, Floats], i: int) -> dict[str, Floats]:
    assert decoder.routing is not None

    def stack(x: str) -> Floats:
        assert decoder.routing is not None
        return np.stack([arrays[f"layers.{i}.experts.{e}.{x}"] for e in range(decoder.routing.n_experts)])

    def interleave(x: str) -> Floats:  # [E, F, ...] twice -> [E, 2F, ...]: gate row, up row, gate row, ...
        both = np.stack([stack(f"gate{x}"), stack(f"up{x}")], 2)
        return both.reshape(both.shape[0], -1, *both.shape[3:])

    prefix = f"model.layers.{i}.mlp.experts."
    return {
        f"{prefix}gate_up_proj": np.ascontiguousarray(interleave("").swapaxes(1, 2)),
        f"{prefix}gate_up_proj_bias": interleave("_bias"),
        f"{prefix}down_proj": np.ascontiguousarray(stack("down").swapaxes(1, 2)),
        f"{prefix}down_proj_bias": stack("down_bias"),
    }


def write_safetensors(path: Path, arrays: dict[str, Floats], type: str = "F32") -> None:
    """Write arrays as a safetensors file of one type, names sorted, so that equal arrays give equal bytes."""
    import ml_dtypes

    dtypes: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    stored = {name: np.ascontiguousarray(arrays[name].astype(dtypes[type])) for name in sorted(arrays)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in stored.items():
        header[name] = {"dtype": type, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for array in stored.values():
            out.write(array.tobytes())
