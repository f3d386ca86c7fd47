"""Name a value by its content, the same on every machine and in every process."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass
from typing import Any


def digest(value: Any) -> str:
    """Return 16 hex digits that name a value made of dataclasses, mappings, sequences, numbers, text and bytes.

    Floats enter by their shortest round-trip text, mappings by sorted key, types by class name, so that equal values have equal digests
    on any machine. Raises `TypeError` for anything else: a digest of an object's address would be a lie.
    """
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__} | {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(_plain(v), sort_keys=True) for v in value)
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return {"array": hashlib.sha256(value.tobytes()).hexdigest(), "dtype": str(value.dtype), "shape": list(value.shape)}
    raise TypeError(f"cannot name a {type(value).__name__} by its content")
