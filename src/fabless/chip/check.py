"""Read and write chip.toml: quantities with units accepted, unknown keys refused with the nearest known, exact round trip."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fabless.chip.chip import Chip, MatrixUnit, Mesh, Mxu
from fabless.core.errors import InputError, nearest
from fabless.core.units import quantity, unit_of

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails


def read_chip(path: Path) -> Chip:
    """Return the chip that a TOML file describes.

    Raises `InputError` naming file, key, rule, value and remedy; `UnitError` for a quantity of the wrong dimension.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the chip description ({error.strerror or error}); give the path of a chip.toml") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save the chip description as UTF-8") from None
    return parse_chip(text, where=str(path))


def parse_chip(text: str, *, where: str = "chip.toml") -> Chip:
    """Return the chip that TOML text describes; `where` names the text in messages. Errors as `read_chip`."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: not TOML: {error}") from None
    return chip_of(content, where=where)


def chip_of(content: dict[str, Any], *, where: str) -> Chip:
    """Return the chip that a nested mapping describes (part of a study file, say). Errors as `read_chip`."""
    from pydantic import ValidationError

    from fabless.chip.description import ChipDescription

    plain = _si(content, where, "")
    try:
        return ChipDescription.model_validate(plain).chip()
    except ValidationError as error:
        raise InputError(_message(error, where)) from None


def write_chip(chip: Chip) -> str:
    """Return the TOML text of a chip; `parse_chip(write_chip(chip)) == chip`."""
    head = {f.name: getattr(chip, f.name) for f in fields(Chip) if f.name not in ("core", "shared", "dram", "link")}
    core = {"vector_lanes": chip.core.vector_lanes, "n_matrix": chip.core.n_matrix}
    parts: list[tuple[str, dict[str, Any]]] = [
        ("", head),
        ("core", core),
        ("core.matrix", _matrix(chip.core.matrix)),
        ("core.scratchpad", _plain(chip.core.scratchpad)),
    ]
    if chip.core.accumulator is not None:
        parts.append(("core.accumulator", _plain(chip.core.accumulator)))
    if chip.shared is not None:
        parts.append(("shared", _plain(chip.shared)))
    parts += [("dram", _plain(chip.dram)), ("link", _plain(chip.link))]
    return "\n".join(_section(name, content) for name, content in parts)


def chip_schema() -> dict[str, Any]:
    """Return the JSON Schema of chip.toml, for editors."""
    from fabless.chip.description import ChipDescription

    schema = ChipDescription.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fabless chip"} | {
        k: v for k, v in schema.items() if k != "title"
    }


def _si(value: Any, where: str, path: str) -> Any:
    if isinstance(value, dict):
        return {k: _si(v, where, f"{path}.{k}" if path else k) for k, v in value.items()}
    unit = unit_of(path.rpartition(".")[2])
    return quantity(value, unit, where=f"{where}: {path}") if unit is not None and isinstance(value, str) else value


def _plain(part: Any) -> dict[str, Any]:
    return {f.name: getattr(part, f.name) for f in fields(part)}


def _matrix(matrix: MatrixUnit) -> dict[str, Any]:
    kind = "mxu" if isinstance(matrix, Mxu) else "mesh" if isinstance(matrix, Mesh) else "tensor_core"
    content = _plain(matrix)
    for key in ("rates", "macs_per_cycle"):
        if key in content:
            content[key] = dict(content[key])
    return {"kind": kind, **content}


def _section(name: str, content: dict[str, Any]) -> str:
    lines = [f"[{name}]"] if name else []
    lines += [f"{key} = {_toml(value)}" for key, value in content.items() if value is not None]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    return "[" + ", ".join(_toml(v) for v in value) + "]"


def _message(error: ValidationError, where: str) -> str:
    problems = error.errors(include_url=False)
    lines = [_problem(problem, where) for problem in problems]
    return lines[0] if len(lines) == 1 else f"{where}: {len(lines)} problems\n" + "\n".join(f"  {line}" for line in lines)


def _problem(problem: ErrorDetails, where: str) -> str:
    # pydantic puts the tag of a union's member into the path; it is no key of the file
    steps = [str(step) for step in problem["loc"] if step not in ("mxu", "mesh", "tensor_core")]
    key = ".".join(steps) or "chip"
    value = problem.get("input")
    match problem["type"]:
        case "extra_forbidden":
            known = _keys_beside(steps[:-1], problem["loc"])
            return f"{where}: unknown key '{key}'{nearest(steps[-1], known)}; known here: {', '.join(known)}"
        case "missing":
            return f"{where}: '{key}' is missing; add it"
        case "union_tag_not_found":
            return f"{where}: '{key}.kind' is missing; set it to mxu, mesh or tensor_core"
        case "union_tag_invalid":
            tag = value.get("kind") if isinstance(value, dict) else value
            return f"{where}: {key}.kind is {tag!r}{nearest(str(tag), ('mxu', 'mesh', 'tensor_core'))}; use mxu, mesh or tensor_core"
        case "value_error":
            return f"{where}: {key}: {problem['msg'].removeprefix('Value error, ')}"
        case _:
            rule = problem["msg"].removeprefix("Input should be ").removesuffix(" and not infinite")
            return f"{where}: {key} is {value!r}, but must be {rule}; change it"


def _keys_beside(steps: list[str], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the model at a path knows."""
    from fabless.chip import description

    model: type[BaseModel] = description.ChipDescription
    models: dict[str, type[BaseModel]] = {
        "core": description.CoreDescription,
        "scratchpad": description.SramDescription,
        "accumulator": description.SramDescription,
        "shared": description.SramDescription,
        "dram": description.DramDescription,
        "link": description.LinkDescription,
    }
    kinds: dict[str, type[BaseModel]] = {
        "mxu": description.MxuDescription,
        "mesh": description.MeshDescription,
        "tensor_core": description.TensorCoreDescription,
    }
    for step in steps:
        kind = next((str(part) for part in loc if part in kinds), "mxu")
        model = kinds[kind] if step == "matrix" else models.get(step, model)
    return list(model.model_fields)
