"""Cross-validation: rows predicted with software parameters that were fitted without their chip or model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fabless.core.sources import table
from fabless.fleet.error_band import error_band
from fabless.fleet.experiment import software_named, software_parameters

if TYPE_CHECKING:
    from fabless.fleet.experiment import Software
    from fabless.validate.meaning import Case

__all__ = ["error_band", "without"]


def without(case: Case, left_out: str) -> Case:
    """Return a case whose software was fitted on the rows of other chips (`left_out` "chip") or other models ("model").

    Source: rows of data/software_left_out.toml, written by `bench/fit_serving.py --leave-out`. A generation that was measured on that chip or
    model alone falls back to "transfer", the parameters that serve software nobody measured; stated settings (limits, cache formats) stay.
    Fits of software that captures graphs are pooled towards "transfer".
    Limits: the kernels' calibration of the chip's family stays; its own error on chips left out is in data/calibration.toml. The round values
    of "transfer" and the strength of the pooling were chosen with all rows in view.
    """
    d = case.deployment
    name = d.chip.name if left_out == "chip" else d.model.name
    rows = table("software_left_out").select(generation=d.software.name, **{left_out: name})
    values: dict[str, Any] = {str(f.attributes["parameter"]): f.known for f in rows}
    if not values:
        return case if _elsewhere(d.software, left_out) else replace(case, deployment=replace(d, software=_transferred(d.software)))
    return replace(case, deployment=replace(d, software=replace(d.software, **values)))


def _elsewhere(software: Software, left_out: str) -> bool:
    """Return whether the generation's fit never saw this chip or model, so that its parameters are already those of others."""
    return any(left_out in f.attributes for f in table("software_left_out").select(generation=software.name))


def _transferred(software: Software) -> Software:
    general = software_named("transfer")
    return replace(software, **{name: getattr(general, name) for name in software_parameters()})
