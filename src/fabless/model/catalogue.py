"""The built-in models: rows of configuration facts with their sources, in `data/models/catalogue.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fabless.core.errors import InputError, SourceError, nearest
from fabless.core.sources import Source
from fabless.model.huggingface import from_config
from fabless.model.names import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fabless.model.model import Model

_OURS = ("name", "aliases", "source", "note")


@cache
def _content() -> dict[str, Any]:
    return tomllib.loads(files("fabless.data").joinpath("models/catalogue.toml").read_text("utf-8"))


def _merged(row: dict[str, Any], rows: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a row with the fields of the earlier or later row that it is `like`."""
    like = row.get("like")
    if like is None:
        return row
    base = rows.get(like) or next((r for r in _content()["models"] if r["name"] == like), None)
    if base is None or "like" in base:
        raise SourceError(f"models/catalogue: row '{row['name']}' is like '{like}', which is no row of its own")
    return {**{k: v for k, v in base.items() if k not in _OURS}, **{k: v for k, v in row.items() if k != "like"}}


@cache
def _rows() -> Mapping[str, Mapping[str, Any]]:
    """Return each row by its name; a row `like` another inherits its fields."""
    rows: dict[str, dict[str, Any]] = {}
    for row in _content()["models"]:
        name = row["name"]
        if name in rows:
            raise SourceError(f"models/catalogue: two rows are named '{name}'")
        rows[name] = _merged(row, rows)
    return rows


@cache
def _by_canonical() -> Mapping[str, str]:
    names: dict[str, str] = {}
    for row in _rows().values():
        for alias in (row["name"], *row.get("aliases", ())):
            key = canonical(alias)
            if names.setdefault(key, row["name"]) != row["name"]:
                raise SourceError(f"models/catalogue: '{alias}' names both {names[key]} and {row['name']}")
    return names


def model_names() -> tuple[str, ...]:
    """Return the names of the built-in models, in catalogue order."""
    return tuple(_rows())


def find_name(name: str) -> str | None:
    """Return the catalogue's name for a model however it is written (organisation, format and tuning suffixes ignored), or None."""
    return _by_canonical().get(canonical(name))


def find_model(name: str) -> Model | None:
    """Return the built-in model of that name however it is written, or None."""
    found = find_name(name)
    return _model(found) if found else None


def built_in(name: str) -> Model:
    """Return the built-in model of that name; raises `InputError` naming the nearest."""
    model = find_model(name)
    if model is None:
        raise InputError(f"no built-in model '{name}'{nearest(name, _rows())}; `fabless models` lists them, or give a config.json")
    return model


def source_of(name: str) -> Source:
    """Return where a built-in model's row comes from."""
    id = _rows()[name]["source"]
    s = _content()["sources"].get(id)
    if s is None:
        raise SourceError(f"models/catalogue: row '{name}' names source '{id}', which the file does not list")
    return Source(id, s["title"], s["publisher"], s["date"], s["url"])


@cache
def _model(name: str) -> Model:
    row = _rows()[name]
    content = {k: v for k, v in row.items() if k not in _OURS}
    source = source_of(name)
    return replace(from_config(content, name), source=f"{source.title} ({source.publisher}, {source.date}), {source.url}")
