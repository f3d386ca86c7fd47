"""What measured silicon says about an architecture family: at most six physical parameters, each a sourced row with its error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fabless.core.sources import table

#: The parameters that are fitted; everything else is derived from the chip's description.
PARAMETERS = ("matrix_efficiency", "memory_efficiency", "launch_overhead_s", "link_efficiency", "link_latency_s")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Hold how a family's silicon and libraries fall short of the published peaks.

    `matrix_efficiency`, `memory_efficiency`, `link_efficiency`: sustained share of the published rate, in (0, 1].
    `launch_overhead_s`: from one kernel's end to the next one's first useful cycle.
    `link_latency_s`: what a collective takes before its first hop, launch and synchronisation.
    `prefetches`: the next ops' operands stream in while one computes, activations stay on chip where they fit (static schedules).
    `contract`: the chip is one of our own tiles, whose timing contract is known (`sim.tile_times`), not only its rates.
    `error_ratio`: half-width of the 80% band of |predicted / measured - 1| on silicon that the fit has not seen; None where underivable.
    """

    family: str
    matrix_efficiency: float = 1.0
    memory_efficiency: float = 1.0
    launch_overhead_s: float = 0.0
    link_efficiency: float = 1.0
    link_latency_s: float = 0.0
    prefetches: bool = False
    contract: bool = False
    error_ratio: float | None = None


#: A chip whose schedule is static and whose every cycle is derived: nothing to calibrate.
IDEAL = Calibration("fabless", prefetches=True)
#: As well the timing contract of a tile that is built: what its simulated cycles are held against.
CONTRACT = Calibration("fabless", prefetches=True, contract=True)


@cache
def calibration_for(family: str) -> Calibration:
    """Return the calibration of an architecture family; one without measurements gets the transfer row and its wider band.

    Source: rows of data/calibration.toml, written by bench/fit_kernels.py.
    """
    if family == "fabless":
        return IDEAL
    rows = {fact.attributes["parameter"]: fact for fact in table("calibration").select(family=family)}
    transfer = {fact.attributes["parameter"]: fact for fact in table("calibration").select(family="transfer")}
    values: dict[str, Any] = {name: rows.get(name, transfer[name]).known for name in PARAMETERS}
    error = rows if all(name in rows for name in PARAMETERS[:3]) else transfer
    return Calibration(family, **values, error_ratio=error["error_ratio"].known)
