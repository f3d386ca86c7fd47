"""What chips rent and sell for: the price list, by chip and tier. An unknown price is a value, not a guess."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from fabless.core.errors import InputError, nearest
from fabless.core.ranges import Range
from fabless.core.sources import table

if TYPE_CHECKING:
    from fabless.core.sources import Fact

#: on_demand to spot: USD per chip and hour asked by clouds; own_*: an owner's whole cost per hour; purchase: USD per chip.
TIERS = ("on_demand", "reserved_1y", "reserved_3y", "spot", "own_hyperscaler", "own_neocloud", "purchase")


def rental(chip_name: str, tier: str = "on_demand") -> Range | None:
    """Return USD per chip and hour (per chip for "purchase"), or None when nobody has published it.

    Names are those of the catalogue, without regard to case, signs and vendor ("H100 SXM", "h100", "nvidia_h100_sxm"). Raises `InputError` for an unknown tier.
    """
    row = rental_row(chip_name, tier)
    return None if row is None or row.value is None else Range(*row.range)


def rental_row(chip_name: str, tier: str) -> Fact | None:
    """Return the row behind `rental`, for its source and note."""
    if tier not in TIERS:
        raise InputError(f"no price tier '{tier}'{nearest(tier, TIERS)}; known: {', '.join(TIERS)}")
    return _rows().get((_ids().get(_plain(chip_name), chip_name), tier))


def cheapest_tier(chip_name: str, *tiers: str) -> str | None:
    """Return the tier with the lowest middle price among those given (default: on demand and reserved) that has one."""
    known = [(r.mid, t) for t in (tiers or ("on_demand", "reserved_1y", "reserved_3y")) if (r := rental(chip_name, t)) is not None]
    return min(known)[1] if known else None


def priced_chips() -> tuple[str, ...]:
    """Return the ids (file names of data/chips) of the chips in the price list, in its order."""
    return tuple(dict.fromkeys(str(f.attributes["chip"]) for f in table("price_list")))


@cache
def _rows() -> dict[tuple[str, str], Fact]:
    return {(str(f.attributes["chip"]), str(f.attributes["tier"])): f for f in table("price_list")}


@cache
def _ids() -> dict[str, str]:
    """Return the id of every name of data/chip_names.toml."""
    names = tomllib.loads(files("fabless.data").joinpath("chip_names.toml").read_text("utf-8"))["names"]
    return {_plain(name): id for id, known in names.items() for name in (id, *known)}


def _plain(name: str) -> str:
    """Return a name without case, signs and vendor."""
    words = re.sub(r"\b(nvidia|amd|google|aws|microsoft|meta|openai|intel|instinct|geforce)\b", " ", re.sub(r"[_\W]+", " ", name.lower()))
    return words.replace(" ", "")
