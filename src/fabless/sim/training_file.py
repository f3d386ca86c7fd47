"""Read a training description: which model, in which formats, on which chip, divided how."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabless.chip.catalogue import load_chip
from fabless.core.errors import InputError, nearest
from fabless.model.huggingface import from_config
from fabless.model.load import load
from fabless.model.step import Recipe
from fabless.sim.training import Training, TrainingStep, training_step

if TYPE_CHECKING:
    from fabless.chip.chip import Chip
    from fabless.model.model import Model

_TOP = ("name", "model", "precision", "chip", "training")


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Hold one training description, its names resolved."""

    name: str
    model: Model
    recipe: Recipe
    chip: Chip
    training: Training

    def step(self) -> TrainingStep:
        """Return what one step takes."""
        return training_step(self.model, self.recipe, self.chip, self.training)


def read_training(path: Path | str) -> TrainingRun:
    """Read a TOML file such as examples/train.toml.

    `model`: a name or path that `fabless.model.load.load` knows, or a table with the content of a config.json; `precision`: a recipe's
    name; `chip`: a chip's name or file; `[training]`: the fields of `Training`. Raises `InputError` naming the file and the key that is
    missing, unknown or of the wrong type.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error}); give the path of a training TOML") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML ({error})") from None
    _refuse_unknown(path, content, _TOP, "")
    for key in ("model", "chip", "training"):
        if key not in content:
            raise InputError(f"{path}: lacks '{key}'; needed: model, chip, training")
    model = content["model"]
    found = from_config(model, str(content.get("name", "model"))) if isinstance(model, dict) else load(str(model))
    recipe = Recipe.named(str(content.get("precision", "bf16")))
    return TrainingRun(
        str(content.get("name", path.stem)), found, recipe, load_chip(str(content["chip"])), _training(path, content["training"])
    )


def _training(path: Path, values: Any) -> Training:
    if not isinstance(values, dict):
        raise InputError(f"{path}: training must be a table of fields, not {values!r}")
    known = {f.name: f for f in fields(Training)}
    _refuse_unknown(path, values, tuple(known), "training.")
    missing = [name for name in ("global_batch", "micro_batch", "sequence_tokens") if name not in values]
    if missing:
        raise InputError(f"{path}: lacks training.{missing[0]}; needed: global_batch, micro_batch, sequence_tokens")
    for name, value in values.items():
        _check_value(path, name, str(known[name].type), value)
    return Training(**values)


def _check_value(path: Path, name: str, kind: str, value: Any) -> None:
    if kind == "int":
        least = 0 if name == "zero_stage" else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"{path}: training.{name} must be a count of at least {least}, not {value!r}")
    elif not isinstance(value, bool if kind == "bool" else str):
        raise InputError(f"{path}: training.{name} must be {'true or false' if kind == 'bool' else 'text'}, not {value!r}")


def _refuse_unknown(path: Path, values: dict[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in values:
        if key not in known:
            raise InputError(f"{path}: unknown key '{prefix}{key}'{nearest(key, known)}; known: {', '.join(known)}")
