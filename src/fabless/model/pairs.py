"""How many (query, key) pairs a mask leaves, in closed form. Positions are counted from 1; `new` queries follow `context` cached tokens."""

from __future__ import annotations


def causal(new: int, context: int) -> int:
    """Return the pairs when query p sees keys 1..p: `new * context + new (new + 1) / 2`."""
    return new * context + new * (new + 1) // 2


def clipped(new: int, context: int, limit: int) -> int:
    """Return the pairs when query p sees `min(p, limit)` keys: a sliding window, or the `limit` best by an indexer."""
    whole = max(0, min(new, limit - context))
    return causal(whole, context) + (new - whole) * limit


def chunked(new: int, context: int, chunk: int) -> int:
    """Return the pairs when query p sees the keys from the start of its chunk: `(p - 1) mod chunk + 1` of them."""
    return _chunks(context + new, chunk) - _chunks(context, chunk)


def pooled(new: int, context: int, ratio: int, limit: int | None = None) -> int:
    """Return the pairs when query p sees one entry per `ratio` whole tokens up to itself, at most `limit`: `min(p // ratio, limit)`."""
    if limit is None:
        return _floors(context + new, ratio) - _floors(context, ratio)
    last = limit * ratio  # from here on every query sees `limit` entries
    below = max(0, min(new, last - context))
    return _floors(context + below, ratio) - _floors(context, ratio) + (new - below) * limit


def _chunks(n: int, chunk: int) -> int:
    whole, rest = divmod(n, chunk)
    return whole * (chunk * (chunk + 1) // 2) + rest * (rest + 1) // 2


def _floors(n: int, ratio: int) -> int:
    whole, rest = divmod(n, ratio)
    return ratio * (whole * (whole - 1) // 2) + whole * (rest + 1)
