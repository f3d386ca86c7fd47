"""Read quantities at the boundary, write them for people; inside, plain SI numbers."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from fabless.core.errors import UnitError

if TYPE_CHECKING:
    import pint

#: Suffix of a name -> the unit that the plain number has. Bits are never a suffix: bytes are.
SUFFIX_UNITS = {
    "_bytes_per_s": "byte / second",
    "_usd_per_kwh": "usd / kilowatt_hour",
    "_usd_per_hour": "usd / hour",
    "_usd_per_mm2": "usd / millimeter ** 2",
    "_bytes": "byte",
    "_hz": "hertz",
    "_mm2": "millimeter ** 2",
    "_mm": "millimeter",
    "_usd": "usd",
    "_j": "joule",
    "_w": "watt",
    "_s": "second",
}

_DECIMAL = (
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
    (1e-12, "p"),
    (1e-15, "f"),
)
_BINARY = ((2**50, "Pi"), (2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"), (1, ""))


@cache
def _registry() -> pint.UnitRegistry[float]:
    import pint

    registry: pint.UnitRegistry[float] = pint.UnitRegistry()
    registry.define("usd = [money] = dollar")
    registry.define("token = [token] = tokens")
    return registry


def unit_of(name: str) -> str | None:
    """Return the unit that a name's suffix states (`'clock_hz'` -> `'hertz'`), or None without one."""
    return next((unit for suffix, unit in SUFFIX_UNITS.items() if name.endswith(suffix)), None)


def quantity(value: str | float, unit: str, *, where: str) -> float:
    """Return `value` ("8 TB/s", "192 MiB", or a plain SI number) in `unit`, checking its dimension.

    `where` names the place for the message (`"study.toml: chip.clock_hz"`). MB and MiB differ.
    Raises `UnitError` for text that is no quantity and for a unit of another dimension.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    import pint

    registry = _registry()
    try:
        read = registry.Quantity(value)
    except Exception as error:  # pint raises tokenizer, attribute and its own errors alike
        raise UnitError(f"{where}: cannot read {value!r} as a quantity ({error}); write a number or text such as '8 TB/s'") from None
    if not isinstance(read, pint.Quantity) or (read.unitless and unit != ""):
        raise UnitError(f"{where}: {value!r} has no unit; write a plain number for {unit}, or text such as '8 TB/s'")
    if _data_power(read) != _data_power(registry.Quantity(1, unit)):
        raise UnitError(f"{where}: {value!r} is in {read.units:~}, but {unit} is needed; give a value in {unit}")
    try:
        return float(read.to(unit).magnitude)
    except pint.DimensionalityError:
        raise UnitError(f"{where}: {value!r} has dimension {read.dimensionality}, but {unit} is needed; give a value in {unit}") from None


def _data_power(read: pint.Quantity[Any]) -> float:
    """Return the power of bits in a quantity: pint holds them to be dimensionless, so that '8 TB/s' would pass for hertz."""
    return next((float(str(power)) for name, power in read.to_root_units().unit_items() if name == "bit"), 0.0)


def si(value: float, unit: str, digits: int = 3) -> str:
    """Write a number with its SI prefix: `si(3.35e12, 'B/s')` -> `'3.35 TB/s'`."""
    return _prefixed(value, unit, digits, _DECIMAL)


def binary(value: float, digits: int = 3) -> str:
    """Write bytes with a binary prefix: `binary(192 * 2**20)` -> `'192 MiB'`."""
    return _prefixed(value, "B", digits, _BINARY)


def _prefixed(value: float, unit: str, digits: int, table: tuple[tuple[float, str], ...]) -> str:
    scale, prefix = next(((s, p) for s, p in table if abs(value) >= s), table[-1] if value else (1.0, ""))
    return (
        f"{value / scale:.{digits}g} {prefix}{unit}".replace("e+03", "000")
        if abs(value / scale) < 1000
        else f"{value / scale:,.0f} {prefix}{unit}"
    )
