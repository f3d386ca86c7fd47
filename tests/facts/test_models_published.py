"""Models against what their makers publish: exact parameter counts, totals, active parameters, cache bytes, names in measurements."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from fabless.core.errors import UnsupportedError
from fabless.model.catalogue import source_of
from fabless.model.huggingface import from_config
from fabless.model.load import find_model, find_name, load, model_names
from fabless.model.lower import lower
from fabless.model.step import Recipe, Step

SHARED = Path(__file__).parents[2] / "../shared/data"
CONFIGS = SHARED / "models/configs"
COUNTS = SHARED / "models/param_counts_transformers_5.23.json"
needs_shared = pytest.mark.skipif(not COUNTS.is_file(), reason="../shared/data, the collected configs, is not beside this repository")

BF16 = Recipe.named("bf16")


def counts():
    return json.loads(COUNTS.read_text()) if COUNTS.is_file() else {}


@needs_shared
@pytest.mark.parametrize("name", [n for n, count in counts().items() if count is not None])
def test_parameters_equal_what_transformers_instantiates(name):
    model = from_config(CONFIGS / f"{name}.json")
    assert model.n_params == counts()[name]
    assert sum(n for n, _ in model.kinds) == model.n_layers
    step = Step.prefill(2, 64) if model.encoder else Step.decode(2, 64)
    assert lower(model, BF16, step).macs > 0


@needs_shared
def test_configs_that_transformers_does_not_know_are_counted_or_refused_by_name():
    assert from_config(CONFIGS / "moonshotai--Kimi-K2-Instruct.json").n_params == 1_026_408_209_408  # 1 T, as published
    # the safetensors total of the release
    assert from_config(CONFIGS / "nvidia--Llama-3_3-Nemotron-Super-49B-v1.json").n_params == 49_867_145_216
    with pytest.raises(UnsupportedError, match=r"unknown architecture 'kimi_k3'; did you mean 'kimi_k2'\?; known: albert, bert, "):
        from_config(CONFIGS / "moonshotai--Kimi-K3.json")


# Parameter counts as the model cards and Hugging Face's safetensors index state them: the built-in rows are written by us, these are not.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "codellama-34b": 33_743_970_304,
    "mistral-7b": 7_241_732_096,
    "mistral-small-24b": 23_572_403_200,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-14b": 14_768_307_200,
    "deepseek-v2": 235_741_434_880,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "phi-4": 14_659_507_200,
    "bloom-176b": 176_247_271_424,
    "gpt-j-6b": 6_050_882_784,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "tinyshakes-205k": 205_376,
    "falcon-7b": 6_921_720_704,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_built_in_rows_give_the_published_parameters(name):
    assert load(name).n_params == PUBLISHED[name]


# Rounded totals and active parameters (billions) of the papers and model cards; the tolerance is half of the last digit given, or as stated.
ROUNDED = {
    "gpt-3-175b": (175, None, 0.5),
    "palm-540b": (540, None, 0.5),
    "megatron-22b": (22, None, 0.5),
    "megatron-530b": (530, None, 0.5),
    "megatron-1t": (1008, None, 0.5),
    "opt-66b": (66, None, 0.5),
    "falcon-40b": (41.3, None, 0.05),
    "qwen3-30b-a3b": (30.5, 3.3, 0.06),
    "qwen3-235b-a22b": (235, 22, 0.5),
    "deepseek-v3": (671, 37, 0.5),
    "deepseek-v2": (236, 21, 0.5),
    "mixtral-8x7b": (46.7, 12.9, 0.05),
    "mixtral-8x22b": (141, 39, 0.5),
    "gpt-oss-120b": (116.8, 5.1, 0.05),
    "gpt-oss-20b": (20.9, 3.6, 0.05),
    "glm-5": (744, 40, 1),
    "glm-4.5": (355, 32, 2.5),  # the published total counts the multi-token-prediction layer
    "glm-4.5-air": (106, 12, 1),
    "nemotron-3-super-120b-a12b": (120.6, 12.7, 0.1),
    "nemotron-3-nano-30b-a3b": (31.6, 3.6, 0.05),
    "llama-4-scout": (109, 17, 1.5),  # the published total counts the vision tower
    "llama-4-maverick": (400, 17, 1),
    "bert-base": (0.110, None, 0.0005),
    "bert-large": (0.335, None, 0.0005),
    "albert-base": (0.012, None, 0.001),
    "roberta-large": (0.355, None, 0.0005),
    "distilbert-base": (0.066, None, 0.001),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_totals_and_active_parameters_are_as_published(name):
    total, active, tolerance = ROUNDED[name]
    model = load(name)
    assert model.n_params / 1e9 == pytest.approx(total, abs=tolerance)
    if active is not None:  # makers differ in whether the token table, and the head, count as active
        tables = (0, model.embedding_params, model.embedding_params + model.head_params)
        assert any(abs((model.active_params - t) / 1e9 - active) <= tolerance for t in tables)


# Hand computed: layers x KV heads x (key + value widths) x 2 bytes; MLA: layers x (latent 512 + rotary 64) x 2 bytes (DeepSeek-V3: 70 KB).
KV_BYTES_PER_TOKEN = {
    "llama-2-7b": 32 * 32 * 2 * 128 * 2,
    "llama-3.1-8b": 128 * 1024,
    "llama-3.1-70b": 80 * 8 * 2 * 128 * 2,
    "llama-3.1-405b": 126 * 8 * 2 * 128 * 2,
    "falcon-7b": 32 * 1 * 2 * 64 * 2,
    "gpt-3-175b": 96 * 2 * 12288 * 2,
    "deepseek-v3": 61 * 576 * 2,
    "deepseek-v3.2": 61 * (576 + 128) * 2,
    "kimi-k2": 61 * 576 * 2,
    "qwen3.5-397b-a17b": 15 * 2 * 2 * 256 * 2,
    "mamba2-7b": 0,
}


@pytest.mark.parametrize("name", KV_BYTES_PER_TOKEN)
def test_cache_bytes_per_token(name):
    assert load(name).kv_bytes_per_token(BF16) == KV_BYTES_PER_TOKEN[name]


ISSUE_MODELS = [
    "smollm2-135m", "llama-2-7b", "llama-2-70b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "llama-4-scout",
    "llama-4-maverick", "mistral-7b", "mixtral-8x7b", "qwen3-8b", "qwen3-32b", "qwen3-30b-a3b", "qwen3-235b-a22b",
    "qwen3.5-397b-a17b", "deepseek-v3", "deepseek-r1", "kimi-k2", "gpt-oss-20b", "gpt-oss-120b", "gemma-3-27b", "glm-5",
    "minimax-m2.5", "gpt-3-175b", "bloom-176b", "palm-540b", "bert-base",
]  # fmt: skip


def test_every_promised_model_is_built_in():
    assert [n for n in ISSUE_MODELS if find_name(n) != n] == []


@pytest.mark.parametrize("name", model_names())
def test_every_row_builds_has_a_source_and_lowers(name):
    source, model = source_of(name), load(name)
    assert source.title
    assert source.url.startswith("https://")
    assert source.date
    assert source.title in model.source
    graph = lower(model, BF16, Step.prefill(1, 16))
    assert graph.macs > 0
    assert graph.weight_bytes == 2 * model.n_params


def test_every_source_is_used():
    import tomllib
    from importlib.resources import files

    content = tomllib.loads(files("fabless.data").joinpath("models/catalogue.toml").read_text("utf-8"))
    assert {row["source"] for row in content["models"]} == set(content["sources"])


@needs_shared
def test_built_in_rows_equal_the_collected_configs():
    same = {
        "llama-3.1-8b": "meta-llama--Meta-Llama-3.1-8B",
        "deepseek-r1": "deepseek-ai--DeepSeek-R1",
        "gpt-oss-120b": "openai--gpt-oss-120b",
        "qwen3.5-397b-a17b": "Qwen--Qwen3.5-397B-A17B",
        "glm-5": "zai-org--GLM-5",
        "minimax-m2.5": "MiniMaxAI--MiniMax-M2.5",
        "gemma-3-27b": "google--gemma-3-27b",
        "deepseek-v4-flash": "deepseek-ai--DeepSeek-V4-Flash",
    }
    for name, file in same.items():
        assert load(name).layers == from_config(CONFIGS / f"{file}.json").layers, name


# The models of the measurements whose architecture is not one of decoder or encoder: encoder-decoders and a diffusion model.
OUTSIDE = {"google/flan-t5-xl", "t5-3b", "stable-diffusion-xl"}


@needs_shared
def test_every_measured_model_is_found():
    with (SHARED / "silicon/measured.csv").open(newline="") as file:
        names = {row["model"] for row in csv.DictReader(file)}
    assert {n for n in names if find_model(n) is None} == OUTSIDE & names
