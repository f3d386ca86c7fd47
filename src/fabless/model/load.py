"""Models by name or by file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fabless.core.errors import InputError, nearest
from fabless.model.catalogue import find_model, find_name, model_names
from fabless.model.huggingface import from_config

if TYPE_CHECKING:
    from fabless.model.model import Model

__all__ = ["find_model", "find_name", "load", "model_names"]


def load(name_or_path: str | Path) -> Model:
    """Return a model by built-in name, or from a config.json, its directory, a .safetensors, its index, or a .gguf file.

    A file or directory of that name wins over a built-in. Raises `InputError` naming the nearest built-in when neither exists.
    """
    path = Path(name_or_path)
    text = str(name_or_path)
    if not path.exists():
        found = find_model(text)
        if found is not None and not text.endswith((".json", ".safetensors", ".gguf")):
            return found
        raise InputError(
            f"no model '{text}'{nearest(text, model_names())}; give one of the built-in names (`fabless models` lists them) "
            f"or a path to a config.json, its directory, a .safetensors or a .gguf file"
        )
    return from_config(path)
