"""Models and counts from safetensors headers, indexes and GGUF files; the files are written by the formats' own libraries."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from fabless.core.errors import InputError, UnsupportedError
from fabless.model.huggingface import from_config
from fabless.model.load import load
from fabless.model.safetensors_header import read_headers

CONFIG = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 40, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip


def tensors(n_layers=2):
    shapes = {"model.embed_tokens.weight": (40, 32), "model.norm.weight": (32,), "lm_head.weight": (40, 32)}
    for i in range(n_layers):
        p = f"model.layers.{i}."
        shapes |= {
            p + "self_attn.q_proj.weight": (32, 32), p + "self_attn.k_proj.weight": (16, 32), p + "self_attn.v_proj.weight": (16, 32),
            p + "self_attn.o_proj.weight": (32, 32), p + "mlp.gate_proj.weight": (48, 32), p + "mlp.up_proj.weight": (48, 32),
            p + "mlp.down_proj.weight": (32, 48), p + "input_layernorm.weight": (32,), p + "post_attention_layernorm.weight": (32,),
        }  # fmt: skip
    return {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}


@pytest.fixture
def checkpoint(tmp_path):
    from safetensors.numpy import save_file

    save_file(tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    from safetensors.numpy import save_file

    everything = tensors()
    names = sorted(everything)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, mine in halves.items():
        save_file({n: everything[n] for n in mine}, tmp_path / shard)
    places = {name: shard for shard, mine in halves.items() for name in mine}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_headers_count_parameters_and_give_shapes(checkpoint):
    headers = read_headers(checkpoint / "model.safetensors")
    assert headers.n_params == from_config(CONFIG).n_params
    assert headers.n_bytes == 2 * headers.n_params
    assert headers.tensors["model.layers.1.mlp.down_proj.weight"].shape == (32, 48)
    assert load(checkpoint / "model.safetensors").n_params == headers.n_params


def test_an_index_adds_its_shards(sharded):
    index = sharded / "model.safetensors.index.json"
    assert read_headers(index).n_params == from_config(CONFIG).n_params
    assert load(index).n_params == from_config(CONFIG).n_params


def test_a_lone_file_says_what_it_needs(checkpoint):
    (checkpoint / "config.json").unlink()
    with pytest.raises(InputError, match=r"holds \d+ parameters but not how many heads share them; put the model's config\.json beside it"):
        load(checkpoint / "model.safetensors")


def test_a_file_of_another_model_is_refused(checkpoint):
    (checkpoint / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 3}))
    with pytest.raises(
        InputError, match=r"holds \d+ parameters but config\.json describes \d+; they are of different models, or shards are m"
    ):
        load(checkpoint / "model.safetensors")


def rewrite(sharded, change):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        read_headers(index)
    return str(error.value)


def test_lying_indexes_are_refused(sharded):
    def move(c):
        c["weight_map"]["lm_head.weight"] = next(s for s in c["weight_map"].values() if s != c["weight_map"]["lm_head.weight"])

    assert "which the index places in" in rewrite(sharded, move)


def test_an_index_that_leaves_its_directory_is_refused(sharded):
    assert "an index may only name files beside it" in rewrite(sharded, lambda c: c["weight_map"].update(x="../../etc/passwd"))


def test_an_index_with_a_missing_shard_is_refused(sharded):
    assert "which is not there; download it" in rewrite(sharded, lambda c: c["weight_map"].update(x="model-00003-of-00002.safetensors"))


def test_an_index_with_an_absent_tensor_is_refused(sharded):
    shard = "model-00001-of-00002.safetensors"
    assert f"places tensor 'x' in {shard}, which does not hold it" in rewrite(sharded, lambda c: c["weight_map"].update(x=shard))


def test_an_index_without_places_is_refused(sharded):
    assert "lacks 'weight_map'" in rewrite(sharded, lambda c: c.pop("weight_map"))


def test_huge_claims_are_refused_before_anything_is_allocated(tmp_path):
    import tracemalloc

    path = tmp_path / "model.safetensors"
    tracemalloc.start()
    for claim in (1 << 62, (1 << 64) - 1, 1 << 33):
        path.write_bytes(struct.pack("<Q", claim) + b"{}" * 50)
        with pytest.raises(InputError, match="truncated or hostile"):
            read_headers(path)
    gguf = tmp_path / "model.gguf"
    for n_tensors, n_keys in ((1 << 60, 0), (0, 1 << 60), (1 << 40, 1 << 40)):
        gguf.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + bytes(200))
        with pytest.raises(InputError, match="truncated or hostile"):
            load(gguf)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def write_gguf(path, kind="llama", drop=(), **metadata):
    from gguf import GGUFWriter

    writer = GGUFWriter(path, kind)
    writer.add_block_count(2)
    writer.add_embedding_length(metadata.pop("embedding_length", 32))
    writer.add_feed_forward_length(48)
    writer.add_context_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    for key, value in metadata.items():
        writer.add_uint32(f"{kind}.{key.replace('__', '.')}", value)
    rename = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, array in tensors().items():
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, i, rest = stem.split(".", 3)
            stem = f"blk.{i}.{parts[rest]}"
        else:
            stem = rename[stem]
        if stem not in drop:
            writer.add_tensor(f"{stem}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_metadata_gives_the_same_model_as_its_config(tmp_path):
    model = load(write_gguf(tmp_path / "tiny.gguf"))
    expected = from_config(CONFIG)
    assert model.layers == expected.layers
    assert model.n_params == expected.n_params
    assert (model.n_vocab, model.context_tokens, model.tied_embeddings) == (40, 64, False)


def test_gguf_without_output_is_tied(tmp_path):
    assert load(write_gguf(tmp_path / "tied.gguf", drop={"output"})).tied_embeddings


def test_gguf_experts_make_a_mixtral(tmp_path):
    model = load(write_gguf(tmp_path / "moe.gguf", expert_count=4, expert_used_count=2))
    assert model.architecture == "mixtral"
    assert model.kinds[0][1].mlp.n_experts == 4


def test_gguf_metadata_that_its_tensors_contradict_is_refused(tmp_path):
    with pytest.raises(InputError, match="embedding_length is 64 but the token table has rows of 32; the file is damaged"):
        load(write_gguf(tmp_path / "wide.gguf", embedding_length=64))
    path = write_gguf(tmp_path / "deep.gguf")
    content = path.read_bytes()
    key = b"llama.block_count"
    at = content.index(key) + len(key) + 4
    path.write_bytes(content[:at] + struct.pack("<I", 3) + content[at + 4 :])
    with pytest.raises(InputError, match=r"block_count is 3 but no tensor is named 'blk\.2\.\*'"):
        load(path)


def test_an_unknown_gguf_architecture_is_named(tmp_path):
    with pytest.raises(UnsupportedError, match=r"unknown GGUF architecture 'rwkv7'; known: llama, qwen2,"):
        load(write_gguf(tmp_path / "other.gguf", kind="rwkv7"))


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="does not begin with 'GGUF'"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="the file is empty"):
        load(path)
