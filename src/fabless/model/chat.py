"""Turn a conversation into the prompt text that a model family was trained on.

Templates inside model files are programs (Jinja); fabless does not run programs from downloaded files. It recognises the family's markers in the
template and renders the plain conversation itself: roles, contents, and the opening of the answer. Tools and images are not rendered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fabless.core.errors import InputError, UnsupportedError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """Hold what one party of a conversation said."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Style:
    """Describe how a family writes a conversation: text around each message, how the answer opens, and what ends a turn.

    `merged_system`: the family has no system turn, its text leads the first user message. `default_system` is said when nobody says another.
    """

    name: str
    marker: str  # text in a template that tells the family
    opening: str  # before a turn; {role} is replaced
    closing: str  # after a turn
    answer: str  # opens the assistant's turn
    stops: tuple[str, ...]  # tokens that end the answer
    assistant: str = "assistant"
    merged_system: bool = False
    default_system: str = ""
    closes_assistant_with: str | None = None


#: Source: the chat templates that the families' tokenizer_config.json files carry.
STYLES = (
    Style("llama3", "<|start_header_id|>", "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>",
          "<|start_header_id|>assistant<|end_header_id|>\n\n", ("<|eot_id|>", "<|end_of_text|>")),
    Style("chatml", "<|im_start|>", "<|im_start|>{role}\n", "<|im_end|>\n", "<|im_start|>assistant\n", ("<|im_end|>", "<|endoftext|>")),
    Style("gemma", "<start_of_turn>", "<start_of_turn>{role}\n", "<end_of_turn>\n", "<start_of_turn>model\n", ("<end_of_turn>", "<eos>"),
          assistant="model", merged_system=True),
    Style("harmony", "<|channel|>", "<|start|>{role}<|message|>", "<|end|>", "<|start|>assistant", ("<|return|>", "<|call|>"),
          closes_assistant_with="<|end|>"),
    Style("mistral", "[INST]", "[INST] ", " [/INST]", "", ("</s>",), merged_system=True),
)  # fmt: skip


def style_of(template: str | None) -> Style | None:
    """Return the style that a template's markers tell, with its default system message; None without a template.

    Raises `UnsupportedError` for a template of no known family.
    """
    if not template:
        return None
    for style in STYLES:
        if style.marker in template:
            return _with_default_system(style, template)
    raise UnsupportedError(
        f"the model's chat template is of no known family ({', '.join(s.name for s in STYLES)}); give the prompt as plain text"
    )


def _with_default_system(style: Style, template: str) -> Style:
    from dataclasses import replace

    said = re.search(r"<\|im_start\|>system(?:\\n|\n)([^<{}'\"]+)<\|im_end\|>", template) if style.name == "chatml" else None
    return replace(style, default_system=said.group(1)) if said else style


def style_named(name: str) -> Style:
    """Return a style by name; raises `InputError` naming the nearest."""
    for style in STYLES:
        if style.name == name:
            return style
    raise InputError(f"no chat style '{name}'{nearest(name, [s.name for s in STYLES])}; known: {', '.join(s.name for s in STYLES)}")


def render(messages: Sequence[Message], style: Style) -> str:
    """Return the prompt text of a conversation, up to and including the opening of the assistant's answer.

    Raises `InputError` for an empty conversation or one whose last message is not the user's.
    """
    if not messages or messages[-1].role != "user":
        raise InputError("a conversation must end with a message of the user; add one")
    turns = list(messages)
    if style.default_system and turns[0].role != "system":
        turns.insert(0, Message("system", style.default_system))
    if style.merged_system and turns[0].role == "system":
        system, first, *rest = turns
        turns = [Message(first.role, f"{system.content}\n\n{first.content}"), *rest]
    return "".join(_turn(m, style) for m in turns) + style.answer


def _turn(message: Message, style: Style) -> str:
    if style.name == "mistral" and message.role == "assistant":
        return f" {message.content}</s>"
    role = style.assistant if message.role == "assistant" else message.role
    channel = "<|channel|>final" if style.name == "harmony" and message.role == "assistant" else ""
    return style.opening.replace("{role}", role + channel) + message.content + style.closing
