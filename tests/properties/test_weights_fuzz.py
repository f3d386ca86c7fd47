"""No bytes, however damaged, make a loader do anything but succeed or refuse by name: no crash, no huge allocation, no endless loop."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fabless.core.errors import FablessError
from fabless.model.containers import read_gguf, read_safetensors
from fabless.model.decoder import decoder_from_config, decoder_from_gguf
from fabless.model.random_weights import RANDOM_CONFIGS, random_config, write_random
from fabless.model.tokenizer import tokenizer_of_gguf
from fabless.model.weights import decode, open_weights

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=5,
)


def _text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _small_gguf():
    """A well-formed file: two keys, an array, one tensor of two Q8_0 blocks."""
    keys = _text("general.architecture") + struct.pack("<I", 8) + _text("llama")
    keys += _text("list") + struct.pack("<IIQ", 9, 8, 2) + _text("a") + _text("bc")
    tensors = _text("t") + struct.pack("<IQQIQ", 2, 32, 2, 8, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + keys + tensors
    return head + bytes(-len(head) % 32) + bytes(range(68))


def _attempt(read, *args):
    """Run a loader; any exception but FablessError is a defect."""
    try:
        return read(*args)
    except FablessError:
        return None


@QUICK
@given(st.data())
def test_damaged_gguf_is_refused_or_read(tmp_path, data):
    content = bytearray(_small_gguf())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        width = data.draw(st.sampled_from([1, 4, 8]))
        content[at : at + width] = data.draw(st.binary(min_size=width, max_size=width))
    path = tmp_path / "m.gguf"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    file = _attempt(read_gguf, path)
    if file is not None:
        for name, entry in file.entries.items():
            assert len(file.bytes_of(name)) == entry.n_bytes
            if entry.n_bytes:
                _attempt(decode, file.bytes_of(name), entry.type, entry.shape)


def test_the_undamaged_file_is_read(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(_small_gguf())
    file = read_gguf(path)
    assert file.metadata == {"general.architecture": "llama", "list": ["a", "bc"]}
    assert file.entries["t"].shape == (2, 32)
    for n in range(1, len(_small_gguf())):
        path.write_bytes(_small_gguf()[:n])
        with pytest.raises(FablessError):
            read_gguf(path)


@QUICK
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused(tmp_path, content, marked):
    path = tmp_path / "m"
    path.write_bytes((b"GGUF\x03\x00\x00\x00" if marked else b"") + content)
    _attempt(read_gguf, path)
    _attempt(read_safetensors, path)


@QUICK
@given(
    st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "more"]), JSON, max_size=4),
    st.dictionaries(st.text(max_size=3), JSON, max_size=2),
)
def test_any_safetensors_header_is_refused_or_read(tmp_path, entry, others):
    text = json.dumps({**others, "t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    file = _attempt(read_safetensors, path)
    if file is not None and "t" in file.entries:
        assert len(file.bytes_of("t")) == file.entries["t"].n_bytes <= 8


@QUICK
@given(st.sampled_from(sorted(RANDOM_CONFIGS)), st.data())
def test_any_config_is_refused_or_read(kind, data):
    config = random_config(kind)
    for key in data.draw(
        st.lists(st.sampled_from(sorted([*config, "sliding_window", "rope_scaling", "layer_types"])), min_size=1, max_size=3)
    ):
        config[key] = data.draw(
            JSON | st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta", "full_attention"]), JSON, max_size=3)
        )
    decoder = _attempt(decoder_from_config, config, "config.json")
    if decoder is not None:
        assert decoder.n_heads % decoder.n_kv_heads == 0
        assert len(decoder.windows) == len(decoder.ropes) == decoder.n_layers


@QUICK
@given(st.data())
def test_any_gguf_metadata_is_refused_or_read(data):
    metadata = {
        "general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 32, "llama.feed_forward_length": 32, "llama.context_length": 9,
        "llama.attention.head_count": 2, "tokenizer.ggml.tokens": ["a", "b", "ab"], "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.scores": [0.0, 1.0, 2.0], "tokenizer.ggml.token_type": [1, 1, 1], "llama.rope.freq_base": 1e4,
    }  # fmt: skip
    for key in data.draw(
        st.lists(st.sampled_from([*sorted(metadata), "llama.rope.scaling.type", "llama.expert_count"]), min_size=1, max_size=3)
    ):
        metadata[key] = data.draw(JSON | st.sampled_from(["llama", "gemma3", "gpt-oss", "linear", "yarn"]))
    _attempt(lambda: decoder_from_gguf(metadata, "m.gguf", tied_embeddings=True))
    tokenizer = _attempt(tokenizer_of_gguf, metadata, "m.gguf")
    if tokenizer is not None:
        tokenizer.decode(tokenizer.encode("ab"))


@QUICK
@given(st.data())
def test_a_flipped_byte_of_a_checkpoint_is_refused_or_finite(tmp_path, data):
    path = tmp_path / "model.safetensors"
    if not path.exists():
        write_random(tmp_path, "llama", seed=1)
        (tmp_path / "whole").write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "whole").read_bytes())
    content[data.draw(st.integers(0, 4000))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    weights = _attempt(open_weights, tmp_path)
    if weights is not None:
        array = _attempt(weights.__getitem__, "final_norm")
        assert array is None or np.isfinite(array).all()
