"""The fields of a config.json, read with their type and range checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabless.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGEST = 1 << 40  # no width, count or context of a model comes near; larger is a damaged file
MOST_LAYERS = 1 << 16


class Fields:
    """Read typed fields of one configuration, by any of several names; every failure names file, key, rule and value."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content = content
        self.where = where

    def has(self, *keys: str) -> bool:
        """Tell whether any of `keys` is present and not null."""
        return any(self.content.get(k) is not None for k in keys)

    def get(self, *keys: str, default: Any = None) -> Any:
        """Return the first of `keys` that is present and not null, unchecked."""
        return next((self.content[k] for k in keys if self.content.get(k) is not None), default)

    def integer(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number of at least `least`; raises `InputError` when missing without default, or out of range."""
        value = self.get(*keys, default=default)
        if value is None:
            raise InputError(f"{self.where}: lacks '{keys[0]}', which architecture '{self.content.get('model_type')}' needs")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
            raise InputError(f"{self.where}: '{keys[0]}' must be a whole number from {least} to {LARGEST}, not {_short(value)}")
        return value

    def layers(self, *keys: str) -> int:
        """Return a number of layers; raises `InputError` when it is beyond any real model's."""
        n = self.integer(*keys)
        if n > MOST_LAYERS:
            raise InputError(f"{self.where}: '{keys[0]}' is {n}; no model has more than {MOST_LAYERS} layers")
        return n

    def number(self, *keys: str, default: float = 0.0) -> float:
        """Return a number; raises `InputError` when it is not one."""
        value = self.get(*keys, default=default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{self.where}: '{keys[0]}' must be a number, not {_short(value)}")
        return float(value)

    def flag(self, *keys: str, default: bool = False) -> bool:
        """Return a truth value; raises `InputError` when it is not one."""
        value = self.get(*keys, default=default)
        if not isinstance(value, bool):
            raise InputError(f"{self.where}: '{keys[0]}' must be true or false, not {_short(value)}")
        return value

    def text(self, key: str, default: str = "") -> str:
        """Return a string; raises `InputError` when it is not one."""
        value = self.get(key, default=default)
        if not isinstance(value, str):
            raise InputError(f"{self.where}: '{key}' must be a string, not {_short(value)}")
        return value

    def items(self, key: str, length: int | None = None) -> list[Any]:
        """Return a list, checked to have at least `length` items (one per layer); empty when absent."""
        value = self.get(key, default=[])
        if not isinstance(value, list):
            raise InputError(f"{self.where}: '{key}' must be a list, not {_short(value)}")
        if value and length is not None and len(value) < length:
            raise InputError(f"{self.where}: '{key}' has {len(value)} items for {length} layers")
        return value

    def section(self, key: str) -> Fields:
        """Return a nested configuration; raises `InputError` when it is absent or not a table."""
        value = self.get(key)
        if not isinstance(value, dict):
            raise InputError(f"{self.where}: '{key}' must be a table of fields, not {_short(value)}")
        return Fields(value, f"{self.where}: {key}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
