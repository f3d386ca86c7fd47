"""Models from the metadata of a GGUF file, without its tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fabless.core.errors import InputError, UnsupportedError, nearest
from fabless.model.architectures import build
from fabless.model.containers import read_gguf
from fabless.model.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fabless.model.containers import TensorFile
    from fabless.model.model import Model

    Keys = Callable[["_Gguf"], dict[str, Any]]

# GGUF key (after the architecture's name and a dot) -> Hugging Face key. Source: gguf specification, section "LLM".
_SHARED = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


class _Gguf:
    """Look up a file's metadata under its architecture, and its tensors."""

    def __init__(self, file: TensorFile) -> None:
        self.file = file
        self.kind = str(file.metadata.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.metadata.get(f"{self.kind}.{key}", default)

    def has(self, tensor: str) -> bool:
        return tensor in self.file.entries

    def shared(self) -> dict[str, Any]:
        content = {theirs: self.get(ours) for ours, theirs in _SHARED.items()}
        heads = content["num_key_value_heads"]
        if isinstance(heads, list) and heads and heads.count(heads[0]) == len(heads):
            content["num_key_value_heads"] = heads[0]
        content["vocab_size"] = self.vocabulary()
        content["tie_word_embeddings"] = not self.has("output.weight")
        if (width := self.get("attention.key_length")) is not None:
            content["head_dim"] = width
        return {k: v for k, v in content.items() if v is not None}

    def vocabulary(self) -> int:
        table = self.file.entries.get("token_embd.weight")
        if table is None or len(table.shape) != 2:
            raise InputError(f"{self.file.path}: has no two-dimensional tensor 'token_embd.weight'; it is no whole model")
        return table.shape[0]


def _llama(g: _Gguf) -> dict[str, Any]:
    biased = {"attention_bias": g.has("blk.0.attn_q.bias"), "mlp_bias": g.has("blk.0.ffn_down.bias")}
    if g.get("expert_count"):
        return {"model_type": "mixtral", "num_local_experts": g.get("expert_count")}
    return {"model_type": "llama", **biased}


def _deepseek(g: _Gguf) -> dict[str, Any]:
    d_rope = g.get("rope.dimension_count", 0)
    d_qk = g.get("attention.key_length_mla", g.get("attention.key_length", 0))
    return {
        "model_type": "deepseek_v3" if g.get("attention.q_lora_rank") else "deepseek_v2",
        "q_lora_rank": g.get("attention.q_lora_rank"),
        "kv_lora_rank": g.get("attention.kv_lora_rank"),
        "qk_rope_head_dim": d_rope,
        "qk_nope_head_dim": d_qk - d_rope,
        "v_head_dim": g.get("attention.value_length_mla", g.get("attention.value_length")),
        "n_routed_experts": g.get("expert_count"),
        "n_shared_experts": g.get("expert_shared_count"),
        "first_k_dense_replace": g.get("leading_dense_block_count"),
    }


def _gpt2(g: _Gguf) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_positions": g.get("context_length"), "n_inner": g.get("feed_forward_length")}


_KINDS: Mapping[str, Keys] = {
    "llama": _llama,
    "qwen2": lambda _: {"model_type": "qwen2"},
    "qwen3": lambda _: {"model_type": "qwen3"},
    "qwen3moe": lambda g: {"model_type": "qwen3_moe", "num_experts": g.get("expert_count")},
    "gemma2": lambda _: {"model_type": "gemma2"},
    "gemma3": lambda _: {"model_type": "gemma3_text"},
    "phi3": lambda _: {"model_type": "phi3"},
    "gpt-oss": lambda g: {"model_type": "gpt_oss", "num_local_experts": g.get("expert_count"), "attention_bias": True},
    "minimax-m2": lambda g: {"model_type": "minimax_m2", "num_local_experts": g.get("expert_count")},
    "deepseek2": _deepseek,
    "gpt2": _gpt2,
}


def from_gguf(path: Path) -> Model:
    """Build a model from a GGUF file's metadata and tensor directory; no tensor is read and no claimed length is allocated.

    Raises `InputError` for a damaged or hostile file (naming key or tensor and rule) and `UnsupportedError` naming an architecture
    without a builder and those known.
    """
    g = _Gguf(read_gguf(path))
    if g.kind not in _KINDS:
        raise UnsupportedError(f"{path}: unknown GGUF architecture '{g.kind}'{nearest(g.kind, _KINDS)}; known: {', '.join(_KINDS)}")
    content = {**g.shared(), **{k: v for k, v in _KINDS[g.kind](g).items() if v is not None}}
    model = build(str(g.file.metadata.get("general.name", path.stem)), Fields(content, str(path)))
    _check_tensors(g, model)
    return replace(model, source=str(path))


def _check_tensors(g: _Gguf, model: Model) -> None:
    """Raise `InputError` when the tensors contradict the metadata: width of the table, or a layer that is not there."""
    width = g.file.entries["token_embd.weight"].shape[1]
    if width != model.d_model:
        raise InputError(f"{g.file.path}: embedding_length is {model.d_model} but the token table has rows of {width}; the file is damaged")
    last = f"blk.{model.n_layers - 1}."
    if not any(name.startswith(last) for name in g.file.entries):
        raise InputError(f"{g.file.path}: block_count is {model.n_layers} but no tensor is named '{last}*'; the file is damaged")
