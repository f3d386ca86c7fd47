import pytest

from fabless.core.errors import InputError
from fabless.model.load import find_model, find_name, load
from fabless.model.names import canonical

SPELLINGS = {
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "Meta-Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "LLaMA v3.3 70B": "llama-3.3-70b",
    "llama2-70b-99.9": "llama-2-70b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "Llama-3.1-8B (3/6-bit, hardwired)": "llama-3.1-8b",
    "zai-org/GLM-5-FP8": "glm-5",
    "Deepseek R1 0528": "deepseek-r1",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-v3",
    "GPT-OSS 120B": "gpt-oss-120b",
    "bloom-176b": "bloom-176b",
    "CodeLlama-13b-hf": "codellama-13b",
    "gptj-99": "gpt-j-6b",
    "Qwen 2.5 7B": "qwen2.5-7b",
    "Qwen/Qwen3-235B-A22B-Instruct-2507": "qwen3-235b-a22b",
    "Mistral-7B-Instruct-v0.2": "mistral-7b",
    "TheBloke/Llama-2-70B-Chat-AWQ": "llama-2-70b",
    "google/gemma-3-27b-it": "gemma-3-27b",
    "LLaMA v4 Maverick": "llama-4-maverick",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": "llama-4-maverick",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": "deepseek-r1-distill-llama-70b",
    "bert-large-uncased": "bert-large",
    "Kimi K2 Instruct": "kimi-k2",
    "moonshotai/Kimi-K2-Instruct-0905": "kimi-k2",
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "nemotron-3-nano-30b-a3b",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_find_the_row(spelling):
    assert find_name(spelling) == SPELLINGS[spelling]


def test_a_name_is_not_found_by_likeness():
    assert find_model("llama-3.1-9b") is None
    assert find_name("qwen3") is None
    assert find_name("") is None
    assert find_name("google/flan-t5-xl") is None


def test_canonical_form_is_idempotent():
    for spelling in SPELLINGS:
        assert canonical(canonical(spelling)) == canonical(spelling)


def test_unknown_names_get_the_nearest():
    with pytest.raises(InputError, match=r"^no model 'llama-3.1-9b'; did you mean 'llama-3\.1-8b'\?; give one of the built-in names"):
        load("llama-3.1-9b")


def test_a_missing_file_is_not_taken_for_a_name():
    with pytest.raises(InputError, match=r"no model 'nowhere/llama-3\.1-8b\.gguf'"):
        load("nowhere/llama-3.1-8b.gguf")
