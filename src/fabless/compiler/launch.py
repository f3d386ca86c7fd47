"""Launch: what the host writes to parameter memory before a step, from sequences and their pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fabless.compiler.partition import PAGE_KEYS, ceil
from fabless.core.errors import InputError
from fabless.program.program import Parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabless.compiler.partition import Shape
    from fabless.compiler.place import Layout

#: The first key that a row without a window sees.
_ALL_KEYS = -(1 << 30)


@dataclass(frozen=True, slots=True)
class Segment:
    """Ask for the next tokens of one sequence: `tokens` from `position` on; `pages[j]` holds its keys 128 j to 128 j + 127."""

    tokens: Sequence[int]
    position: int
    pages: Sequence[int]


def parameters(layout: Layout, shape: Shape, kept_spans: int) -> tuple[Parameter, ...]:
    """Declare the parameters of a shape of launch: names, places and ranges. `kept_spans`: as many spans of scores are kept, more computed twice."""
    head, s, n = layout.matrices["head"], shape.segments, shape.rows
    kinds, spans, pages = len(layout.kinds), layout.spans, layout.n_pages
    table = (
        [("token_column", n, 0, head.n_tiles - 1), ("token_row", n, 0, head.outputs - 1)]
        if layout.table == "head"
        else [("token", n, 0, layout.decoder.n_vocab - 1)]
    )
    rows = [
        *table,
        ("slot_page", n, 0, pages), ("slot_key", n, 0, PAGE_KEYS - 1), ("slot_value", n, 0, layout.pages.value_offset(PAGE_KEYS - 1)),
        ("position", s, 0, layout.context_tokens - 1), ("last", s, 0, shape.tokens - 1), ("head_columns", 1, 0, head.n_tiles),
        ("low", kinds * s, _ALL_KEYS, layout.context_tokens), ("high", kinds * s, 1, layout.context_tokens),
        ("span_start", kinds * s, 0, (spans - 1) * PAGE_KEYS), ("kept_count", kinds * s, 0, kept_spans),
        ("again_count", kinds * s * (kept_spans < spans), 0, spans), ("pages", kinds * s * spans, 0, pages),
        ("kind", layout.decoder.n_layers if kinds > 1 else 0, 0, kinds - 1),
    ]  # fmt: skip
    out, at = [], 0
    for name, count, low, high in rows:
        if count:
            out.append(Parameter(name, at, count, low, high))
            at += count
    return tuple(out)


def values(layout: Layout, shape: Shape, segments: Sequence[Segment], *, logits: bool = True, kept_spans: int = 0) -> dict[str, object]:
    """Return the parameters of one launch by name; segments and tokens that are not there are padded and write to the scratch page.

    Raises `InputError` for more than the shape holds, a token outside the vocabulary, a position beyond the context, or too few pages.
    """
    _check(layout, shape, segments)
    head, kinds, spans, scratch = layout.matrices["head"], len(layout.kinds), layout.spans, layout.n_pages
    tokens, page, key = np.zeros(shape.rows, np.int64), np.full(shape.rows, scratch), np.zeros(shape.rows, np.int64)
    position, last = np.zeros(shape.segments, np.int64), np.zeros(shape.segments, np.int64)
    low, high = np.full((kinds, shape.segments), _ALL_KEYS), np.ones((kinds, shape.segments), np.int64)
    start, count = np.zeros((kinds, shape.segments), np.int64), np.ones((kinds, shape.segments), np.int64)
    table = np.full((kinds, shape.segments, spans), scratch)
    for i, segment in enumerate(segments):
        n, first = len(segment.tokens), i * shape.tokens
        at = segment.position + np.arange(n)
        tokens[first : first + n] = segment.tokens
        page[first : first + n], key[first : first + n] = np.asarray(segment.pages)[at // PAGE_KEYS], at % PAGE_KEYS
        position[i], last[i] = segment.position, n - 1
        for kind, (window, _) in enumerate(layout.kinds):
            low[kind, i] = segment.position - window + 1 if window else _ALL_KEYS
            high[kind, i] = segment.position + 1
            begin = max(0, segment.position - window + 1) // PAGE_KEYS if window else 0
            held = segment.pages[begin : ceil(segment.position + n, PAGE_KEYS)]
            start[kind, i], count[kind, i] = begin * PAGE_KEYS, len(held)
            table[kind, i, : len(held)] = held
    kept = np.where(count <= kept_spans, count, 0)
    out: dict[str, object] = {
        "slot_page": page, "slot_key": key, "slot_value": [layout.pages.value_offset(int(k)) for k in key], "position": position, "last": last,
        "head_columns": head.n_tiles if logits else 0, "low": low, "high": high, "span_start": start, "kept_count": kept, "pages": table,
    }  # fmt: skip
    if kept_spans < spans:
        out["again_count"] = count - kept
    if layout.table == "head":
        out |= {"token_column": tokens // head.outputs, "token_row": tokens % head.outputs}
    else:
        out["token"] = tokens
    if kinds > 1:
        out["kind"] = layout.kind_of_layer
    return out


def _check(layout: Layout, shape: Shape, segments: Sequence[Segment]) -> None:
    d = layout.decoder
    if not 0 < len(segments) <= shape.segments:
        raise InputError(f"{len(segments)} sequences for a program of {shape.segments}; give 1 to {shape.segments}")
    for segment in segments:
        n, end = len(segment.tokens), segment.position + len(segment.tokens)
        if not 0 < n <= shape.tokens:
            raise InputError(f"{n} tokens of a sequence for a program of {shape.tokens} at a time; give 1 to {shape.tokens}")
        if segment.position < 0 or end > layout.context_tokens:
            raise InputError(
                f"tokens {segment.position} to {end} of a sequence exceed the context of {layout.context_tokens}; compile for more"
            )
        if min(segment.tokens) < 0 or max(segment.tokens) >= d.n_vocab:
            raise InputError(
                f"token ids must be 0 to {d.n_vocab - 1}, not {min(segment.tokens)} to {max(segment.tokens)}; use the model's tokenizer"
            )
        if len(segment.pages) < ceil(end, PAGE_KEYS) or min(segment.pages) < 0 or max(segment.pages) >= layout.n_pages:
            raise InputError(
                f"{end} tokens need {ceil(end, PAGE_KEYS)} pages from 0 to {layout.n_pages - 1}, {len(segment.pages)} were given"
            )
