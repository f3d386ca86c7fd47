"""Model names as people write them, brought to one form."""

from __future__ import annotations

import re

_FORMATS = r"fp8|fp4|nvfp4|mxfp4|mxfp8|int8|int4|w8a8|w4a16|w4a8|bf16|fp16|bfloat16|float16|awq|gptq|gguf|dynamic|kv|q[2-8](?:_[0-9k])?(?:_[a-z0-9]+)?|block"
_VARIANTS = (
    r"instruct|chat|it|hf|base|pt|uncased|cased|preview|thinking|turbo|99(?:\.9)?|0[1-9][0-3][0-9]|2[0-9][01][0-9]|v0\.[1-9]|v1|original"
)
_SUFFIX = re.compile(rf"[-_ ](?:{_FORMATS}|{_VARIANTS})$")
_SEPARATORS = re.compile(r"[-_ ]+")
_REMARK = re.compile(r"[(\[][^)\]]*[)\]]?")
_VERSION = re.compile(r"v(?=\d)")


def canonical(name: str) -> str:
    """Return the form by which names are compared: no organisation, remarks, number format, tuning or release date, no separators.

    `meta-llama/Meta-Llama-3.1-8B-Instruct`, `LLaMA v3.1 8B` and `nvidia/Llama-3.1-8B-Instruct-FP8` are all `llama3.18b`.
    """
    text = _REMARK.sub("", name.lower()).strip()
    text = text.rpartition("/")[2].rpartition("--")[2]
    while (shorter := _SUFFIX.sub("", text)) != text:
        text = shorter
    text = _VERSION.sub("", _SEPARATORS.sub("", text))
    return text.removeprefix("meta") if text.startswith("metallama") else text
