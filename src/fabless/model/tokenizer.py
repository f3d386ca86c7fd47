"""Text to token ids and back: tokenizer.json, GGUF vocabularies, and the character vocabulary of the embedded model.

    tokenizer = open_tokenizer(weights)
    ids = tokenizer.encode("Why is the sky blue?")
    stream = tokenizer.stream(); stream.push(id) -> text that is complete so far; stream.end() -> what is left

Text leaves only as whole characters: a token may end inside a UTF-8 sequence.
"""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from fabless.core.errors import InputError, UnsupportedError, nearest
from fabless.model.chat import Style, style_of
from fabless.model.containers import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import tokenizers

    from fabless.model.decoder import Decoder
    from fabless.model.weights import Weights

_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
#: GGUF `tokenizer.ggml.pre` -> how text is split before merging. Source: the tokenizer.json files of the families that use each name.
_SPLITS = {
    "llama-bpe": _WORD + r"\p{N}{1,3}" + _REST,
    "qwen2": _WORD + r"\p{N}" + _REST,
    "gpt-4o": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "smollm": "digits",
    "gpt-2": "",
    "default": "",
}
_NORMAL, _CONTROL, _USER, _BYTE = 1, 3, 4, 6  # GGUF token types


@dataclass(frozen=True)
class Tokenizer:
    """Encode text and decode ids of one vocabulary; `n_vocab` is the greatest id plus one."""

    name: str
    n_vocab: int
    first_id: int | None  # begins every prompt when the vocabulary says so
    end_ids: frozenset[int]  # tokens that end a text
    style: Style | None  # how the family writes conversations
    special_ids: frozenset[int] = field(repr=False, default=frozenset())

    def encode(self, text: str, *, markers: bool = False) -> list[int]:
        """Return the ids of `text`, the first-token id before them where the vocabulary says so.

        `markers`: recognise special tokens written out in `text` (a rendered conversation); else they are plain text, so that a user's text
        cannot pose as the system's. Raises `InputError` for a character that a character vocabulary lacks.
        """
        ids = self._ids(text, markers)
        return [self.first_id, *ids] if self.first_id is not None and ids[:1] != [self.first_id] else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` without special tokens; bytes that are no UTF-8 become U+FFFD."""
        stream = self.stream()
        return "".join([*(stream.push(i) for i in ids), stream.end()])

    def stream(self) -> Stream:
        """Return a decoder that is fed token by token."""
        return Stream(self)

    def bytes_of(self, id: int) -> bytes:
        """Return the bytes that one token stands for, none for a special one; raises `InputError` for an id outside the vocabulary."""
        raise NotImplementedError

    def _ids(self, text: str, markers: bool) -> list[int]:
        raise NotImplementedError


class Stream:
    """Decode token by token, holding back bytes of an unfinished character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Return the text that token `id` completes, possibly none."""
        return self._decoder.decode(self._tokenizer.bytes_of(int(id)))

    def end(self) -> str:
        """Return what is left: U+FFFD for a character that never finished."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True)
class Characters(Tokenizer):
    """Encode one character as one token: the vocabulary of tinyshakes."""

    characters: str = field(repr=False, default="")

    def _ids(self, text: str, markers: bool) -> list[int]:
        lacking = sorted(set(text) - set(self.characters))
        if lacking:
            raise InputError(
                f"{self.name} does not know {lacking[0]!r}; its characters are {''.join(self.characters)!r}, write the prompt with those"
            )
        return [self.characters.index(c) for c in text]

    def bytes_of(self, id: int) -> bytes:
        """Return the character's UTF-8; ids beyond the characters are padding of the vocabulary and stand for nothing."""
        if id < 0:
            raise InputError(f"{self.name}: token id {id} is negative")
        return self.characters[id].encode() if id < len(self.characters) else b""


@dataclass(frozen=True)
class Merged(Tokenizer):
    """Encode by a `tokenizers.Tokenizer`: byte-level BPE, or SentencePiece with byte fallback."""

    backend: tokenizers.Tokenizer = field(repr=False, default=None)  # type: ignore[assignment]
    spelling: Literal["byte_level", "sentencepiece"] = "byte_level"

    def _ids(self, text: str, markers: bool) -> list[int]:
        self.backend.encode_special_tokens = not markers  # the library's name for "as ordinary text"
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def bytes_of(self, id: int) -> bytes:
        """Return the bytes of a token: spelled in the byte-level alphabet, or as SentencePiece text with U+2581 for a space."""
        if id in self.special_ids:
            return b""
        token = self.backend.id_to_token(id)
        if token is None:
            if 0 <= id < self.n_vocab:
                return b""  # padding of the vocabulary
            raise InputError(
                f"{self.name}: token id {id} is outside its vocabulary of {self.n_vocab}; does the tokenizer belong to the model?"
            )
        if self.spelling == "sentencepiece":
            is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
            return bytes([int(token[3:5], 16)]) if is_byte else token.replace("\u2581", " ").encode()
        alphabet = _byte_alphabet()
        return bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else token.encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """Map the printable characters of byte-level BPE to bytes. Source: GPT-2's released encoder (printable Latin-1 as itself, the rest from U+0100)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


def open_tokenizer(weights: Weights) -> Tokenizer:
    """Return the tokenizer that belongs to `weights`: GGUF metadata, tokenizer.json, or vocab.json with "chars" beside the model.

    Raises `InputError` when it does not match the model's vocabulary, `UnsupportedError` for a tokenizer of an unknown kind.
    """
    path = weights.path
    if path.is_dir():
        tokenizer = _of_directory(path, weights.metadata)
    elif "tokenizer.ggml.tokens" in weights.metadata:
        tokenizer = tokenizer_of_gguf(weights.metadata, str(path))
    else:
        raise InputError(f"{path}: holds no tokenizer; give a directory with tokenizer.json or a GGUF file with a vocabulary")
    require_match(tokenizer, weights.decoder)
    return tokenizer


def require_match(tokenizer: Tokenizer, decoder: Decoder) -> None:
    """Raise `InputError` when ids exceed the model's vocabulary, or cover less than half of it (padding is smaller in every known model)."""
    known = len(tokenizer.characters) if isinstance(tokenizer, Characters) else tokenizer.n_vocab
    if tokenizer.n_vocab > decoder.n_vocab or 2 * known < decoder.n_vocab:
        raise InputError(
            f"{tokenizer.name}: a tokenizer of {known} tokens does not match {decoder.name} with a vocabulary of {decoder.n_vocab}; "
            f"use the tokenizer that came with the model"
        )


def _of_directory(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    ends = _end_ids(path, config)
    if (path / "tokenizer.json").is_file():
        return _of_json(path, config, ends)
    vocabulary = read_json(path / "vocab.json") if (path / "vocab.json").is_file() else {}
    if isinstance(vocabulary.get("chars"), str):
        return Characters(path.name, len(vocabulary["chars"]), None, frozenset(), None, characters=vocabulary["chars"])
    raise InputError(f"{path}: neither tokenizer.json nor vocab.json with 'chars'; copy the tokenizer beside the weights")


def _end_ids(path: Path, config: Mapping[str, Any]) -> frozenset[int]:
    generation = read_json(path / "generation_config.json") if (path / "generation_config.json").is_file() else {}
    ends: set[int] = set()
    for value in (config.get("eos_token_id"), generation.get("eos_token_id")):
        ends |= {v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)}
    return frozenset(ends)


def _of_json(path: Path, config: Mapping[str, Any], ends: frozenset[int]) -> Tokenizer:
    where = path / "tokenizer.json"
    content = read_json(where)
    settings = read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
    template = settings.get("chat_template")
    if (path / "chat_template.jinja").is_file():
        template = (path / "chat_template.jinja").read_text("utf-8")
    backend = _backend(content, str(where))
    first = config.get("bos_token_id") if _adds_first(content, settings) else None
    first_id = first if isinstance(first, int) else None
    return _merged(path.name, content, backend, first=first_id, ends=ends, template=template if isinstance(template, str) else None)


def _adds_first(content: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    if isinstance(settings.get("add_bos_token"), bool):
        return bool(settings["add_bos_token"])
    return "SpecialToken" in json.dumps(content.get("post_processor") or {})  # a template post-processor that adds one


def _backend(content: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise InputError(f"{where}: not a tokenizer ({error}); download it again") from None


def _merged(
    name: str, content: Mapping[str, Any], backend: tokenizers.Tokenizer, *, first: int | None, ends: frozenset[int], template: str | None
) -> Tokenizer:
    added = [t for t in content.get("added_tokens") or [] if isinstance(t, dict)]
    special = frozenset(t["id"] for t in added if t.get("special"))
    style = style_of(template)
    stops = {i for s in style.stops if (i := backend.token_to_id(s)) is not None} if style else set()
    spelling: Literal["byte_level", "sentencepiece"] = (
        "byte_level" if '"ByteLevel"' in json.dumps(content.get("decoder") or {}) else "sentencepiece"
    )
    n_vocab = max(backend.get_vocab().values(), default=-1) + 1
    return Merged(name, n_vocab, first, ends | stops, style, special, backend, spelling)


def tokenizer_of_gguf(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    """Build the tokenizer that GGUF metadata describes; raises `InputError` for lists that disagree, `UnsupportedError` for other kinds."""
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        raise InputError(f"{where}: tokenizer.ggml.tokens must list the vocabulary")
    types = types if isinstance(types, list) else [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise InputError(f"{where}: {len(types)} token types for {len(tokens)} tokens; the file is damaged")
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        model, rest = _byte_pairs(metadata, tokens, where)
    elif kind == "llama":
        model, rest = _sentence_pieces(metadata, tokens, types, where)
    else:
        raise UnsupportedError(f"{where}: tokenizer model {kind!r} is not read; known: gpt2 (byte-level BPE), llama (SentencePiece)")
    added = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": kind == _CONTROL}
        for i, (t, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER)
    ]
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None, "model": model, **rest}
    bos, eos, template = (metadata.get(f"tokenizer.{k}") for k in ("ggml.bos_token_id", "ggml.eos_token_id", "chat_template"))
    first = bos if metadata.get("tokenizer.ggml.add_bos_token", kind == "llama") and isinstance(bos, int) else None
    ends = frozenset({eos} if isinstance(eos, int) else ())
    name = str(metadata.get("general.name") or where)
    return _merged(
        name, content, _backend(content, where), first=first, ends=ends, template=template if isinstance(template, str) else None
    )


def _byte_pairs(metadata: Mapping[str, Any], tokens: list[str], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in _SPLITS:
        raise UnsupportedError(f"{where}: pre-tokenizer {pre!r} is not known{nearest(str(pre), _SPLITS)}; known: {', '.join(_SPLITS)}")
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise InputError(f"{where}: tokenizer.ggml.merges is missing; a byte-level vocabulary needs it")
    pairs = [tuple(m.split(" ")) for m in merges if isinstance(m, str)]
    vocabulary = {t: i for i, t in enumerate(tokens)}
    for pair in pairs:
        if len(pair) != 2 or pair[0] not in vocabulary or pair[1] not in vocabulary or pair[0] + pair[1] not in vocabulary:
            raise InputError(f"{where}: merge {' '.join(pair)[:80]!r} is not of two tokens into a third; the file is damaged")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": _SPLITS[pre] in ("", "digits")}
    steps: list[dict[str, Any]] = [byte_level]
    if _SPLITS[pre] == "digits":
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    elif _SPLITS[pre]:
        steps.insert(0, {"type": "Split", "pattern": {"Regex": _SPLITS[pre]}, "behavior": "Isolated", "invert": False})
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
        "byte_fallback": False, "ignore_merges": pre == "llama-bpe", "vocab": vocabulary, "merges": pairs,
    }  # fmt: skip
    return model, {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    }


def _sentence_pieces(metadata: Mapping[str, Any], tokens: list[str], types: list[int], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Order merges by the score of what they make: SentencePiece's own rule, best score first."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise InputError(f"{where}: tokenizer.ggml.scores must give one score per token; a SentencePiece vocabulary needs it")
    vocabulary = {t: i for i, t in enumerate(tokens)}
    normal = {t: i for t, i in vocabulary.items() if types[i] == _NORMAL}
    found = [
        (-scores[i], normal[t[:cut]], normal[t[cut:]], (t[:cut], t[cut:]))
        for t, i in normal.items()
        for cut in range(1, len(t))
        if t[:cut] in normal and t[cut:] in normal
    ]
    found.sort(key=lambda m: m[:3])
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, space]} if prefixed else space
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    model = {
        "type": "BPE", "dropout": None, "unk_token": tokens[unknown] if isinstance(unknown, int) and unknown < len(tokens) else None,
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
        "vocab": vocabulary, "merges": [m[3] for m in found],
    }  # fmt: skip
    decoders = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return model, {"normalizer": normalizer, "pre_tokenizer": None, "decoder": {"type": "Sequence", "decoders": decoders}}
