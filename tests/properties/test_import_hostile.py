"""Damaged and hostile model files end in one clear error, whatever is in them, and never in much memory."""

from __future__ import annotations

import json
import struct
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabless.core.errors import FablessError
from fabless.model.architectures import ARCHITECTURES
from fabless.model.huggingface import from_config
from fabless.model.load import load
from fabless.model.lower import lower
from fabless.model.safetensors_header import read_headers
from fabless.model.step import Recipe, Step

MOST_BYTES = 8 << 20  # the files here are under 4 KiB; their headers, parsed, need far less
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

KEYS = [
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "max_position_embeddings", "sliding_window", "layer_types", "num_experts", "num_local_experts",
    "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts", "first_k_dense_replace",
    "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_topk", "index_n_heads",
    "index_head_dim", "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim",
    "linear_conv_kernel_dim", "state_size", "num_heads", "n_groups", "conv_kernel", "hybrid_override_pattern", "mamba_num_heads",
    "mamba_head_dim", "ssm_state_size", "block_configs", "compress_ratios", "hc_mult", "o_groups", "o_lora_rank", "n_layer",
    "n_embd", "n_head", "n_positions", "text_config", "vision_config", "rope_parameters", "tie_word_embeddings", "hidden_act",
    "attn_layer_period", "attn_layer_offset", "expert_layer_period", "expert_layer_offset", "mamba_d_state", "mamba_d_conv",
    "mamba_dt_rank", "n_layers", "dim", "n_heads", "hidden_dim", "ffn_dim", "embedding_size", "attention_chunk_size",
    "intermediate_size_mlp", "hybrid_layer_pattern", "moe_layer_freq", "per_layer_config", "sliding_window_pattern",
    "full_attention_interval", "indexer_types", "mamba_n_heads", "mamba_d_ssm",
]  # fmt: skip
NOT_NUMBERS = {
    "layer_types", "hybrid_override_pattern", "block_configs", "compress_ratios", "text_config", "vision_config", "rope_parameters",
    "tie_word_embeddings", "hidden_act", "hybrid_layer_pattern", "moe_layer_freq", "per_layer_config", "indexer_types", "mamba_n_heads", "mamba_d_ssm",
}  # fmt: skip
values = st.one_of(
    st.integers(-2, 40), st.integers(), st.none(), st.booleans(), st.floats(), st.text(max_size=4), st.lists(st.integers(0, 4), max_size=6),
    st.lists(st.sampled_from(["full_attention", "sliding_attention", "shared"]), max_size=6),
    st.dictionaries(st.sampled_from(["head_dim", "no_op", "01", "model_type", "hidden_size"]), st.integers(0, 9), max_size=3),
)  # fmt: skip


@given(st.sampled_from(sorted(ARCHITECTURES)), st.dictionaries(st.sampled_from(KEYS), values, max_size=4))
@settings(max_examples=500, deadline=None)
def test_any_configuration_is_a_model_or_a_clear_error(kind, changes):
    inner = {**dict.fromkeys((k for k in KEYS if k not in NOT_NUMBERS), 4), "hybrid_override_pattern": "M*-E", **changes}
    content = {"model_type": kind, **inner, **({"text_config": inner, "vision_config": inner} if "text_config" not in changes else {})}
    model, said = built(content)
    if model is None:
        assert said.startswith("config")
        return
    assert model.n_params > 0
    graph = lower(model, Recipe(), replace(Step.prefill(1, 3), logits="all"))
    assert graph.weight_bytes >= 2 * model.n_params - 1e-6 * model.n_params


def built(content):
    """Return the model, or None and the message of its refusal; any other exception is a defect."""
    try:
        return from_config(content), ""
    except FablessError as error:
        return None, str(error)


def held(read, path):
    """Return the peak bytes of reading a file that must end well or in an error that names it."""
    said = str(path)
    tracemalloc.start()
    try:
        read(path)
    except FablessError as error:
        said = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert str(path) in said
    return peak


@given(st.binary(max_size=400))
@quick
def test_random_bytes_after_a_gguf_magic(tmp_path, content):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + content)
    assert held(load, path) < MOST_BYTES


@given(st.integers(0, 2**64 - 1), st.binary(max_size=200))
@quick
def test_random_safetensors_lengths(tmp_path, length, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + content)
    assert held(read_headers, path) < MOST_BYTES


entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "nonsense", 3]),
        "shape": st.lists(st.integers(-1, 2**60), max_size=3) | st.none(),
        "data_offsets": st.lists(st.integers(-5, 2**62), max_size=3) | st.text(max_size=2),
    }
)


@given(st.dictionaries(st.text(max_size=5), entries | st.integers(), max_size=3), st.binary(max_size=50))
@quick
def test_random_safetensors_directories(tmp_path, directory, data):
    path = tmp_path / "x.safetensors"
    header = json.dumps(directory).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert held(read_headers, path) < MOST_BYTES


@given(st.dictionaries(st.text(max_size=4), st.text(max_size=12) | st.integers(), max_size=4))
@quick
def test_random_indexes(tmp_path, places):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": places}))
    assert held(read_headers, path) < MOST_BYTES


@pytest.mark.parametrize("cut", range(0, 180, 7))
def test_a_truncated_gguf_is_refused(tmp_path, cut):
    text = b"general.architecture"
    whole = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", len(text)) + text + struct.pack("<IQ", 8, 5) + b"llama"
    whole += struct.pack("<Q", 17) + b"token_embd.weight" + struct.pack("<IQQIQ", 2, 8, 4, 0, 0) + bytes(200)
    path = tmp_path / "x.gguf"
    path.write_bytes(whole[:cut])
    with pytest.raises(FablessError, match=r"x\.gguf"):
        load(path)
