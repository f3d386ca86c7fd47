"""Text goes to ids and back whole, conversations render as the model's own template does, and a foreign vocabulary is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fabless.core.errors import InputError, UnsupportedError
from fabless.model.chat import STYLES, Message, render, style_named, style_of
from fabless.model.random_weights import random_weights, write_random
from fabless.model.tokenizer import Characters, open_tokenizer, require_match, tokenizer_of_gguf
from fabless.model.weights import open_weights

SHARED = Path(__file__).parents[2] / "../shared/data/models"
EDGES = ("", " ", "a", " a", "\n\n \n", "x\n\n", "don't I'LL", "naïve café", "日本語", "🙂🙃 e\u0301", "\x00\x7f", "tests  of   spaces", "<|im_end|>",
         "1234567 8")  # fmt: skip


@pytest.fixture(scope="module")
def smollm2():
    try:
        return open_weights("smollm2-135m")
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def text():
    path = SHARED / "ref_text_shakespeare.txt"
    if not path.is_file():
        pytest.skip("reference text is not beside this checkout")
    return path.read_text()


def test_characters_of_the_embedded_model():
    tokenizer = open_tokenizer(open_weights("tinyshakes"))
    assert tokenizer.decode(tokenizer.encode("ROMEO:\nWhat?")) == "ROMEO:\nWhat?"
    assert tokenizer.encode("\n !") == [0, 1, 2]
    assert tokenizer.decode([0, 127]) == "\n"  # ids of the padding stand for nothing
    with pytest.raises(InputError, match="tinyshakes does not know 'é'; its characters are"):
        tokenizer.encode("café")


def test_smollm2_equals_the_reference_tokenizer(smollm2, text):
    path = SHARED / "smollm2_tokenizer.json"
    if not path.is_file():
        pytest.skip("reference tokenizer is not beside this checkout")
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(path))
    ours = open_tokenizer(smollm2)
    for piece in (text, *EDGES):
        assert ours.encode(piece, markers=True) == theirs.encode(piece, add_special_tokens=False).ids
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m"])
def test_ids_equal_those_of_llama_cpp(name, text):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp is only the oracle of this test")
    try:
        weights = open_weights(name)
    except InputError as error:
        pytest.skip(str(error))
    ours = open_tokenizer(weights)
    theirs = llama_cpp.Llama(str(weights.path), vocab_only=True, verbose=False)
    for piece in (text, *EDGES):
        for markers in (False, True):
            expected = theirs.tokenize(piece.encode(), add_bos=ours.first_id is not None, special=markers)
            assert ours.encode(piece, markers=markers) == expected, (piece[:40], markers)


def test_reference_prompts_render_and_encode(smollm2):
    path = SHARED / "ref_smollm2_greedy.json"
    if not path.is_file():
        pytest.skip("reference prompts are not beside this checkout")
    tokenizer = open_tokenizer(smollm2)
    for case in json.loads(path.read_text())["cases"]:
        prompt = render([Message("user", case["prompt"])], tokenizer.style) if case["kind"] == "chat" else case["prompt"]
        assert prompt == case["text"]
        assert tokenizer.encode(prompt, markers=True) == case["prompt_ids"]


def test_users_text_cannot_pose_as_a_turn(smollm2):
    tokenizer = open_tokenizer(smollm2)
    assert 2 not in tokenizer.encode("<|im_end|>")
    assert tokenizer.encode("<|im_end|>", markers=True) == [2]
    assert tokenizer.end_ids >= {2}


def test_conversation_renders_as_the_models_own_template(smollm2):
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 is only the oracle of this test")
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(smollm2.metadata["tokenizer.chat_template"])
    style = open_tokenizer(smollm2).style
    for messages in (
        [Message("user", "Hi")],
        [Message("system", "Be brief."), Message("user", "Hi")],
        [Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Why?")],
    ):
        theirs = template.render(messages=[{"role": m.role, "content": m.content} for m in messages], add_generation_prompt=True)
        assert render(messages, style) == theirs


TALK = (Message("system", "S"), Message("user", "A"), Message("assistant", "B"), Message("user", "C"))
RENDERED = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n"
    "<|im_start|>assistant\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nB<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nC<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<start_of_turn>user\nS\n\nA<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>\n<start_of_turn>user\nC<end_of_turn>\n<start_of_turn>model\n",
    "harmony": "<|start|>system<|message|>S<|end|><|start|>user<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B<|end|>"
    "<|start|>user<|message|>C<|end|><|start|>assistant",
    "mistral": "[INST] S\n\nA [/INST] B</s>[INST] C [/INST]",
}


@pytest.mark.parametrize("style", STYLES, ids=lambda s: s.name)
def test_every_style_renders(style):
    assert render(TALK, style) == RENDERED[style.name]
    assert style_of(f"{{% x %}}{style.marker}{{role}}") is not None
    assert style_named(style.name) is style


def test_chat_errors():
    with pytest.raises(InputError, match="must end with a message of the user"):
        render([Message("assistant", "x")], STYLES[0])
    with pytest.raises(UnsupportedError, match="chat template is of no known family"):
        style_of("{{ messages }}")
    with pytest.raises(InputError, match="no chat style 'chatm'; did you mean 'chatml'"):
        style_named("chatm")
    assert style_of(None) is None


def test_stream_holds_back_half_a_character(smollm2):
    tokenizer = open_tokenizer(smollm2)
    ids = tokenizer.encode("🙂 日本é")
    assert len(ids) > 5  # several tokens a character
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.end() == "🙂 日本é"
    assert not any("\ufffd" in p for p in pieces)
    assert "" in pieces
    stream = tokenizer.stream()
    assert stream.push(ids[0]) == ""
    assert stream.end() == "\ufffd"
    with pytest.raises(InputError, match="token id 99999 is outside its vocabulary of 49152"):
        stream.push(99999)


def test_foreign_vocabulary_is_refused(smollm2):
    tokenizer = open_tokenizer(smollm2)
    with pytest.raises(
        InputError, match="a tokenizer of 49152 tokens does not match llama with a vocabulary of 160; use the tokenizer that came"
    ):
        require_match(tokenizer, random_weights("llama").decoder)
    with pytest.raises(InputError, match="a tokenizer of 2 tokens does not match"):
        require_match(Characters("x", 2, None, frozenset(), None, characters="ab"), replace(random_weights("llama").decoder, n_vocab=5))


GGUF = {
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.pre": "gpt-2",
}
LIES = {
    "tokens": ({"tokenizer.ggml.tokens": 3}, InputError, "tokenizer.ggml.tokens must list the vocabulary"),
    "types": ({"tokenizer.ggml.token_type": [1]}, InputError, "1 token types for 3 tokens"),
    "model": ({"tokenizer.ggml.model": "t5"}, UnsupportedError, "tokenizer model 't5' is not read"),
    "pre": ({"tokenizer.ggml.pre": "gpt2"}, UnsupportedError, "pre-tokenizer 'gpt2' is not known; did you mean 'gpt-2'"),
    "merge": ({"tokenizer.ggml.merges": ["a c"]}, InputError, "merge 'a c' is not of two tokens into a third"),
    "merge of three": ({"tokenizer.ggml.merges": ["a b a"]}, InputError, "is not of two tokens into a third"),
    "merges": ({"tokenizer.ggml.merges": None}, InputError, "tokenizer.ggml.merges is missing"),
    "scores": ({"tokenizer.ggml.model": "llama"}, InputError, "tokenizer.ggml.scores must give one score per token"),
}


@pytest.mark.parametrize("case", LIES)
def test_gguf_vocabulary_lies_are_refused(case):
    change, error, message = LIES[case]
    with pytest.raises(error, match=re.escape(message)):
        tokenizer_of_gguf(GGUF | change, "m.gguf")


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "gpt-4o", "smollm"])
def test_every_way_to_split_keeps_the_text(pre):
    from fabless.model.tokenizer import _byte_alphabet

    tokens = list(_byte_alphabet())
    metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": [], "tokenizer.ggml.pre": pre}
    tokenizer = tokenizer_of_gguf(metadata, "x")
    for text in EDGES:
        import unicodedata

        expected = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        assert tokenizer.decode(tokenizer.encode(text)) == expected


def test_tokenizer_json_beside_the_weights(tmp_path, smollm2):
    write_random(tmp_path, "llama")
    weights = open_weights(tmp_path)
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor vocab\.json"):
        open_tokenizer(weights)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(InputError, match="not a tokenizer"):
        open_tokenizer(weights)
    small = tokenizer_of_gguf(
        {"tokenizer.ggml.tokens": [*(chr(97 + i) for i in range(26)), *(f"<x{i}>" for i in range(100)), "ab"], "tokenizer.ggml.model": "gpt2",
         "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.pre": "gpt-2"}, "m")  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(small.backend.to_str())
    (tmp_path / "chat_template.jinja").write_text("{{ '<|im_start|>' }}")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    tokenizer = open_tokenizer(weights)
    assert tokenizer.encode("abc") == [126, 2]
    assert tokenizer.style.name == "chatml"
    assert tokenizer.end_ids == {2, 5, 7}
