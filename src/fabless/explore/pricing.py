"""What chips of a study cost to make, to house and to run: the cost layer's formulas on arrays of designs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabless.core.errors import InputError, nearest
from fabless.core.ranges import Range
from fabless.core.sources import table
from fabless.cost.inputs import NAMES, CostInputs, cost_inputs

if TYPE_CHECKING:
    from fabless.explore.study import Study

#: Unit of a cost input by the end of its name; what matches none is a ratio or a count.
_UNITS = (
    ("_usd_per_kwh", "usd / kilowatt_hour"),
    ("_usd_per_mm2", "usd / millimeter ** 2"),
    ("_usd_per_gb", "usd / gigabyte"),
    ("_usd_per_gb_per_s", "usd * second / gigabyte"),
    ("_usd_per_w", "usd / watt"),
    ("_per_cm2", "1 / centimeter ** 2"),
    ("_usd", "usd"),
    ("_years", "year"),
)
_PREMIUM_FOUNDRY = "arizona"
FOUNDRIES = ("taiwan", _PREMIUM_FOUNDRY)


def cost_unit(name: str, where: str) -> str:
    """Return the unit of a cost input ("" for ratios and counts); raises `InputError` naming the nearest known input."""
    if name not in NAMES:
        raise InputError(f"{where}: no such cost input{nearest(name, NAMES)}; known: {', '.join(NAMES)}")
    return next((unit for ending, unit in _UNITS if name.endswith(ending)), "")


def inputs_of(study: Study, process: str, memory: str, package: str, *, build: bool = True) -> CostInputs:
    """Return the cost inputs of a chip in a study: tables, then the premium of the foundries allowed, then the study's own figures.

    `build` tells a chip of one's own from one that is bought or rented, for which wafers, masks and margins play no part.
    """
    inputs = cost_inputs(process, memory, package, region=study.region, place=study.system)
    if build and study.limits.foundries == (_PREMIUM_FOUNDRY,):
        low, mid, high = table("wafer").fact("arizona_premium").range
        wafer = inputs.ranges.wafer_usd
        inputs = inputs.replace(wafer_usd=Range(wafer.low * (1 + low), wafer.mid * (1 + mid), wafer.high * (1 + high)))
    return inputs.replace(**dict(study.costs)) if study.costs else inputs
