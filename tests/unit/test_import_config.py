"""What a config.json must hold, and what is said when it does not."""

from __future__ import annotations

import json

import pytest

from fabless.core.errors import InputError, UnsupportedError
from fabless.model.huggingface import from_config
from fabless.model.load import load

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 192, "vocab_size": 128, "max_position_embeddings": 256, "tie_word_embeddings": True, "head_dim": 16,
}  # fmt: skip


def message(changes):
    with pytest.raises((InputError, UnsupportedError)) as error:
        from_config({**LLAMA, **changes})
    return str(error.value)


def test_paths_directories_and_contents_are_the_same_model(tmp_path):
    (tmp_path / "tiny").mkdir()
    path = tmp_path / "tiny" / "config.json"
    path.write_text(json.dumps(LLAMA))
    expected = from_config(LLAMA)
    for source in (path, str(path), path.parent):
        model = from_config(source)
        assert model.layers == expected.layers
        assert (model.name, model.source) == ("tiny", str(path))
        assert load(source).n_params == 205_376


def test_names_come_from_the_place(tmp_path):
    path = tmp_path / "org--My-Model.json"
    path.write_text(json.dumps(LLAMA))
    assert from_config(path).name == "My-Model"
    assert from_config(path, name="mine").name == "mine"


def test_an_unknown_architecture_is_named_with_those_known():
    text = message({"model_type": "lama"})
    assert text.startswith("config: unknown architecture 'lama'; did you mean 'llama'?; known: albert, bert, bitnet, bloom, ")
    assert text.endswith("roberta, xlm-roberta")


def test_a_file_without_architecture_is_refused():
    assert message({"model_type": None}).startswith("config: lacks 'model_type'; known: albert")


CASES = {
    "missing": ({"hidden_size": None}, "config: lacks 'hidden_size', which architecture 'llama' needs"),
    "text": ({"num_hidden_layers": "32"}, "config: 'num_hidden_layers' must be a whole number from 1 to 1099511627776, not '32'"),
    "truth": ({"vocab_size": True}, "config: 'vocab_size' must be a whole number from 1 to 1099511627776, not True"),
    "negative": ({"intermediate_size": -1}, "config: 'intermediate_size' must be a whole number from 0 to 1099511627776, not -1"),
    "fraction": ({"hidden_size": 64.5}, "config: 'hidden_size' must be a whole number from 1 to 1099511627776, not 64.5"),
    "huge": ({"hidden_size": 1 << 80}, f"config: 'hidden_size' must be a whole number from 1 to 1099511627776, not {1 << 80}"),
    "layers": ({"num_hidden_layers": 10**9}, "config: 'num_hidden_layers' is 1000000000; no model has more than 65536 layers"),
    "heads": ({"num_key_value_heads": 3}, "config: 4 attention heads do not divide among 3 key-value heads"),
    "flag": ({"tie_word_embeddings": 1}, "config: 'tie_word_embeddings' must be true or false, not 1"),
    "types": (
        {"sliding_window": 8, "layer_types": ["full_attention"]},
        "config: 'layer_types' has 1 items for 4 layers",
    ),
    "experts": (
        {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 8},
        "config: a token visits 8 experts, but there are only 4",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_fields_are_named_with_rule_and_value(case):
    changes, expected = CASES[case]
    assert message(changes) == expected


def test_a_multimodal_file_names_its_section():
    with pytest.raises(InputError, match=r"^config: 'text_config' must be a table of fields, not None$"):
        from_config({"model_type": "llama4"})
    with pytest.raises(InputError, match=r"^config: text_config: lacks 'num_hidden_layers', which architecture 'llama4_text' needs$"):
        from_config({"model_type": "llama4", "text_config": {"hidden_size": 8}})


def test_files_that_are_no_config_are_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[1]")
    with pytest.raises(InputError, match="holds a list, not a JSON object"):
        from_config(path)
    path.write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        from_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not a JSON file"):
        from_config(path)
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="not a JSON file"):
        from_config(path)
    path.write_bytes(b" " * (17 << 20))
    with pytest.raises(InputError, match=r"is 17825792 bytes; a config\.json has a few thousand"):
        from_config(path)
    with pytest.raises(InputError, match=r"cannot read \(No such file or directory\)"):
        from_config(tmp_path / "nowhere")
    path.unlink()
    with pytest.raises(InputError, match=r"holds no config\.json; give a Hugging Face model directory, or the path of a \.gguf file"):
        load(tmp_path)


def test_windows_follow_types_pattern_or_family():
    def shown(**more):
        return [m.window for n, layer in from_config({**LLAMA, "sliding_window": 8, **more}).layers for m in layer.mixers for _ in range(n)]

    assert shown(model_type="mistral") == [8] * 4
    assert shown(model_type="gemma2") == [8, None, 8, None]
    assert shown(model_type="gemma3_text", sliding_window_pattern=3) == [8, 8, None, 8]
    assert shown(model_type="qwen2", max_window_layers=3, use_sliding_window=True) == [None, None, None, 8]
    assert shown(model_type="qwen2", max_window_layers=3) == [None] * 4  # off unless asked for
    types = ["full_attention", "sliding_attention"] * 2
    assert shown(model_type="olmo3", layer_types=types) == [None, 8, None, 8]
