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

_FILES = (".json", ".safetensors", ".gguf")


def load(name_or_path: str | Path) -> Model:
    """Return a model by built-in name, or from a config.json, its directory, a .safetensors, its index, or a .gguf file.

    A file or directory of that name wins over a built-in. Headers of safetensors give no heads or windows: their directory must hold the
    config.json, and the count of their values must not fall short of it. Raises `InputError` naming the nearest built-in when neither exists.
    """
    path, text = Path(name_or_path), str(name_or_path)
    if not path.exists():
        return _built_in(text)
    if path.suffix == ".gguf":
        from fabless.model.gguf import from_gguf

        return from_gguf(path)
    if path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json"):
        return _from_headers(path)
    return from_config(path)


def _built_in(text: str) -> Model:
    found = None if text.endswith(_FILES) else find_model(text)
    if found is None:
        raise InputError(
            f"no model '{text}'{nearest(text, model_names())}; give one of the built-in names (`fabless models` lists them) "
            "or a path to a config.json, its directory, a .safetensors or a .gguf file"
        )
    return found


def _from_headers(path: Path) -> Model:
    from fabless.model.safetensors_header import read_headers

    config = path.parent / "config.json"
    headers = read_headers(path)
    if not config.is_file():
        raise InputError(
            f"{path}: its header holds {headers.n_params} parameters but not how many heads share them; put the model's config.json beside it"
        )
    model = from_config(config)
    if path.suffix == ".safetensors" and _is_shard(path):
        return model
    packed = any(t.type in {"U8", "I8", "I32"} for t in headers.tensors.values())
    if not packed and headers.n_params < model.n_params - sum(c.n_params for c in model.components):
        raise InputError(
            f"{path}: holds {headers.n_params} parameters but {config.name} describes {model.n_params}; "
            "they are of different models, or shards are missing"
        )
    return model


def _is_shard(path: Path) -> bool:
    return "-of-" in path.stem
