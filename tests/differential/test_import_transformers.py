"""Small configurations of every architecture: our count equals the parameters that transformers instantiates, whatever the shape."""

from __future__ import annotations

import random
import warnings

import pytest

from fabless.model.architectures import ARCHITECTURES
from fabless.model.huggingface import from_config

torch = pytest.importorskip("torch", reason="transformers' own models are the oracle here; they need torch")
transformers = pytest.importorskip("transformers", reason="transformers' own models are the oracle here")

SEEDS = range(4)
GATED_DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 16}


def decoder(r, **more):
    heads = r.choice([4, 8])
    return {
        "vocab_size": r.randint(50, 200),
        "hidden_size": 8 * r.randint(4, 12),
        "num_hidden_layers": r.randint(2, 7),
        "num_attention_heads": heads,
        "num_key_value_heads": r.choice([1, 2, heads]),
        "head_dim": r.choice([8, 16]),
        "intermediate_size": r.randint(20, 90),
        "max_position_embeddings": 128,
        "tie_word_embeddings": r.random() < 0.5,
        "pad_token_id": 0,
        **more,
    }


def experts(r, key, **more):
    n = r.randint(2, 9)
    return decoder(r, **{key: n}, num_experts_per_tok=r.randint(1, n), **more)


def without_head_dim(content):
    return {k: v for k, v in content.items() if k != "head_dim"}


def latent(r, **more):
    return experts(
        r, "n_routed_experts", n_shared_experts=r.randint(1, 2), moe_intermediate_size=r.randint(8, 40), first_k_dense_replace=r.randint(0, 2),
        kv_lora_rank=16, qk_nope_head_dim=r.choice([8, 16]), qk_rope_head_dim=8, v_head_dim=r.choice([8, 12]), n_group=1, topk_group=1,
        **more,
    )  # fmt: skip


def encoder(r, **more):
    return {
        "vocab_size": r.randint(50, 200), "hidden_size": 32, "num_hidden_layers": r.randint(1, 4), "num_attention_heads": 4,
        "intermediate_size": r.randint(20, 90), "max_position_embeddings": 64, "type_vocab_size": r.randint(1, 3), "pad_token_id": 0, **more,
    }  # fmt: skip


def hybrid(r, **more):
    return decoder(r, num_hidden_layers=r.choice([4, 8]), linear_conv_kernel_dim=r.randint(2, 5), **GATED_DELTA, **more)


CONFIGS = {
    "llama": lambda r: decoder(r, attention_bias=r.random() < 0.5, mlp_bias=r.random() < 0.5),
    "mistral": decoder,
    "mixtral": lambda r: experts(r, "num_local_experts"),
    "qwen2": lambda r: without_head_dim(decoder(r)),
    "qwen3": lambda r: decoder(r, attention_bias=r.random() < 0.5),
    "qwen3_moe": lambda r: experts(r, "num_experts", moe_intermediate_size=24, decoder_sparse_step=r.randint(1, 3), mlp_only_layers=[1]),
    "phi3": lambda r: without_head_dim(decoder(r)),
    "gemma2": lambda r: decoder(r, sliding_window=16),
    "gemma3_text": lambda r: decoder(r, sliding_window=16),
    "olmo3": lambda r: without_head_dim(decoder(r, sliding_window=16)),
    "bitnet": lambda r: without_head_dim(decoder(r)),
    "minimax_m2": lambda r: experts(r, "num_local_experts"),
    "gpt_oss": lambda r: experts(r, "num_local_experts", attention_bias=r.random() < 0.7),
    "glm4_moe": lambda r: latent(r, use_qk_norm=r.random() < 0.5, attention_bias=r.random() < 0.5),
    "deepseek_v2": lambda r: latent(r, q_lora_rank=r.choice([None, 24])),
    "deepseek_v3": lambda r: latent(r, q_lora_rank=r.choice([None, 24])),
    "glm_moe_dsa": lambda r: latent(r, q_lora_rank=24, index_n_heads=2, index_head_dim=16, index_topk=8),
    "qwen3_next": lambda r: hybrid(r, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, shared_expert_intermediate_size=20),
    "qwen3_5_text": hybrid,
    "qwen3_5_moe_text": lambda r: hybrid(r, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, shared_expert_intermediate_size=20),
    "falcon_h1": lambda r: decoder(
        r, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=r.choice([1, 2]), mamba_d_state=r.choice([8, 16]), mamba_d_conv=4,
        mamba_rms_norm=r.random() < 0.5, mamba_expand=2,
    ),
    "jamba": lambda r: {
        **without_head_dim(experts(r, "num_experts", mamba_d_state=4, mamba_d_conv=3, mamba_dt_rank=5, num_hidden_layers=8)),
        "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False,
    },
    "mamba": lambda r: {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": r.randint(1, 4), "state_size": r.randint(2, 9), "pad_token_id": 0},
    "mamba2": lambda r: {
        "vocab_size": 90, "hidden_size": 32, "num_heads": 8, "head_dim": 8, "state_size": r.choice([8, 16]), "n_groups": r.choice([1, 2]),
        "num_hidden_layers": r.randint(1, 4), "tie_word_embeddings": r.random() < 0.5, "pad_token_id": 0, "expand": 2,
    },
    "gpt2": lambda r: {
        "vocab_size": 90, "n_embd": 32, "n_head": 4, "n_layer": r.randint(1, 4), "n_positions": r.randint(20, 60),
        "n_inner": r.choice([None, 50]), "bos_token_id": 0, "eos_token_id": 0,
    },
    "gptj": lambda r: {
        "vocab_size": 90, "n_embd": 32, "n_head": 4, "n_layer": r.randint(1, 4), "n_positions": 60, "rotary_dim": 4, "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "bloom": lambda r: {"vocab_size": 90, "hidden_size": 32, "n_head": 4, "n_layer": r.randint(1, 4), "pad_token_id": 0},
    "opt": lambda r: {
        "vocab_size": 90, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": r.randint(1, 4), "ffn_dim": 70,
        "max_position_embeddings": 60, "word_embed_proj_dim": 32, "pad_token_id": 1,
    },
    "falcon": lambda r: {
        "vocab_size": 90, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": r.randint(1, 4), "bias": r.random() < 0.5,
        **r.choice([{"multi_query": True}, {"multi_query": False}, {"new_decoder_architecture": True, "num_kv_heads": 2}]),
    },
    "bert": encoder,
    "roberta": encoder,
    "xlm-roberta": encoder,
    "distilbert": lambda r: {
        "vocab_size": 90, "dim": 32, "n_heads": 4, "n_layers": r.randint(1, 4), "hidden_dim": 50, "max_position_embeddings": 60, "pad_token_id": 0,
    },
    "albert": lambda r: encoder(r, embedding_size=r.choice([8, 16])),
}  # fmt: skip
# Instantiated with the large configs of ../shared in tests/facts instead: their small shapes need dozens of keys, or are a wrapper of one above.
ELSEWHERE = {
    "mimo_v2_flash", "deepseek_v32", "deepseek_v4", "kimi_k2", "llama4_text", "llama4", "gemma4_text", "gemma4", "gemma3", "nemotron_h",
    "nemotron-nas", "palm", "qwen3_5", "qwen3_5_moe", "kimi_k25",
}  # fmt: skip


def test_every_architecture_is_compared_somewhere():
    assert set(CONFIGS) | ELSEWHERE == set(ARCHITECTURES)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_counts_equal_transformers(kind, seed):
    content = CONFIGS[kind](random.Random(f"{kind}{seed}"))
    encoders = {"bert", "roberta", "xlm-roberta", "distilbert", "albert"}
    factory = transformers.AutoModelForMaskedLM if kind in encoders else transformers.AutoModelForCausalLM
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        reference = factory.from_config(transformers.AutoConfig.for_model(kind, **content))
    ours = from_config({"model_type": kind, **content})
    assert ours.n_params == sum(p.numel() for p in reference.parameters())
