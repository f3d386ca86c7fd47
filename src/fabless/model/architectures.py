"""Every architecture that fabless knows, by its Hugging Face model_type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fabless.core.errors import UnsupportedError, nearest
from fabless.model import classics, families, hybrids, towers
from fabless.model.families import Traits
from fabless.model.fields import Fields
from fabless.model.model import Component, Model

if TYPE_CHECKING:
    from collections.abc import Mapping

Builder = Callable[[str, Fields], Model]
Towers = Callable[[Fields, int], tuple[Component, ...]]


def build(name: str, c: Fields) -> Model:
    """Return the model of one configuration; raises `UnsupportedError` naming an unknown architecture and those known."""
    kind = c.text("model_type")
    builder = ARCHITECTURES.get(kind)
    if builder is None:
        named = f"unknown architecture '{kind}'" if kind else "lacks 'model_type'"
        raise UnsupportedError(f"{c.where}: {named}{nearest(kind, ARCHITECTURES)}; known: {', '.join(sorted(ARCHITECTURES))}")
    return builder(name, c)


def _decoder(**traits: Any) -> Builder:
    return partial(families.decoder, Traits(**traits))


def _multimodal(text_type: str, size_towers: Towers | None, name: str, c: Fields) -> Model:
    """Build the text model inside a multimodal configuration, its towers beside it."""
    inner = c.section("text_config")
    content: Mapping[str, Any] = {"model_type": text_type, **inner.content}
    if c.has("tie_word_embeddings"):
        content = {**content, "tie_word_embeddings": c.flag("tie_word_embeddings")}
    text = build(name, Fields(content, inner.where))
    return replace(text, architecture=c.text("model_type"), components=size_towers(c, text.d_model) if size_towers else ())


ARCHITECTURES: Mapping[str, Builder] = {
    "llama": _decoder(),
    "mistral": _decoder(qkv_bias=False, output_bias=False),
    "mixtral": _decoder(qkv_bias=False, output_bias=False, routed="num_local_experts"),
    "qwen2": _decoder(qkv_bias=True, output_bias=False),
    "qwen3": _decoder(qk_norm="head"),
    "qwen3_moe": _decoder(qk_norm="head", routed="num_experts"),
    "phi3": _decoder(qkv_bias=False, output_bias=False),
    "gemma2": _decoder(n_norms=4, tied=True, full_every=2),
    "gemma3_text": _decoder(n_norms=4, tied=True, qk_norm="head", full_every=6),
    "olmo3": _decoder(qk_norm="width", full_every=4),
    "bitnet": _decoder(output_norm=True, mlp_norm=True),
    "minimax_m2": _decoder(qk_norm="width", routed="num_local_experts", qkv_bias=False, output_bias=False),
    "gpt_oss": _decoder(sinks=True, routed="num_local_experts", expert_bias=True, full_every=2),
    "glm4_moe": _decoder(qk_norm="head", qk_norm_key="use_qk_norm", output_bias=False, routed="n_routed_experts"),
    "mimo_v2_flash": families.mimo,
    "deepseek_v2": families.latent,
    "deepseek_v3": families.latent,
    "deepseek_v32": families.latent,
    "deepseek_v4": hybrids.deepseek_v4,
    "kimi_k2": families.latent,
    "glm_moe_dsa": families.latent,
    "qwen3_next": partial(families.gated_delta, True),
    "qwen3_5_text": partial(families.gated_delta, False),
    "qwen3_5_moe_text": partial(families.gated_delta, True),
    "llama4_text": families.llama4,
    "gemma4_text": hybrids.gemma4,
    "nemotron_h": hybrids.nemotron_h,
    "nemotron-nas": hybrids.nemotron_nas,
    "falcon_h1": hybrids.falcon_h1,
    "jamba": hybrids.jamba,
    "mamba": partial(hybrids.mamba, 1),
    "mamba2": partial(hybrids.mamba, 2),
    "gpt2": classics.gpt2,
    "gptj": classics.gptj,
    "bloom": classics.bloom,
    "opt": classics.opt,
    "falcon": classics.falcon,
    "palm": classics.palm,
    "bert": classics.bert,
    "roberta": classics.bert,
    "xlm-roberta": classics.bert,
    "distilbert": classics.bert,
    "albert": classics.albert,
    # multimodal: transformers instantiates these without towers (text only) ...
    "llama4": partial(_multimodal, "llama4_text", None),
    "qwen3_5": partial(_multimodal, "qwen3_5_text", None),
    "qwen3_5_moe": partial(_multimodal, "qwen3_5_moe_text", None),
    # ... and these with them
    "gemma3": partial(_multimodal, "gemma3_text", towers.gemma3),
    "gemma4": partial(_multimodal, "gemma4_text", towers.gemma4),
    "kimi_k25": partial(_multimodal, "kimi_k2", towers.kimi),
}
