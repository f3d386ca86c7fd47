"""Models from a Hugging Face config.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabless.core.errors import InputError
from fabless.model.architectures import build
from fabless.model.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fabless.model.model import Model

LARGEST_CONFIG_BYTES = 16 << 20  # real ones are a few kilobytes, the largest (one entry per tensor) a few megabytes


def from_config(source: str | Path | Mapping[str, Any], name: str = "") -> Model:
    """Build a model from a config.json: a path to it, its directory, or its content.

    Raises `InputError` for a file that cannot be read or a field that is missing or absurd, and `UnsupportedError`
    for an architecture without a builder, naming it and those that are known.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            if not (path / "config.json").exists():
                raise InputError(f"{path}: holds no config.json; give a Hugging Face model directory, or the path of a .gguf file")
            path = path / "config.json"
        return _build(read_config(path), str(path), name or _name_of(path))
    return _build(source, "config", name or str(source.get("_name_or_path") or source.get("model_type") or "model"))


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a config.json; raises `InputError` when it is missing, huge, or no JSON object."""
    try:
        size = path.stat().st_size
        if size > LARGEST_CONFIG_BYTES:
            raise InputError(f"{path}: is {size} bytes; a config.json has a few thousand. Is it another file?")
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a JSON object of fields")
    return content


def _build(content: Mapping[str, Any], where: str, name: str) -> Model:
    return replace(build(name, Fields(content, where)), source=where)


def _name_of(path: Path) -> str:
    """Return a model's name from its place: `org--model.json` and `model/config.json` are in use."""
    stem = path.parent.name if path.name == "config.json" else path.stem
    return stem.rpartition("--")[2] or "model"
