"""One measured number beside its prediction, and what a group of them says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Checked:
    """Hold one measured number beside its prediction, both in SI (`unit`), with what the error may be grouped by."""

    id: str
    chip: str
    family: str
    model: str
    software: str
    phase: str
    metric: str
    kind: str  # tpot | ttft | ttft_queued | offline | throughput | server | power | encoder | gemm | attention | comm
    batch: float
    input_tokens: float
    output_tokens: float
    precision: str
    measured: float
    predicted: float
    unit: str
    source: str = ""

    @property
    def error(self) -> float:
        """Return predicted / measured - 1."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True, slots=True)
class Summary:
    """Summarise a group of rows: count, median signed error, median and 90th percentile of the absolute error, all as ratios."""

    name: str
    n: int
    bias: float
    median_ape: float
    p90_ape: float

    @classmethod
    def of(cls, name: str, rows: Sequence[Checked]) -> Summary:
        """Summarise rows; an empty group has NaN errors."""
        if not rows:
            return cls(name, 0, float("nan"), float("nan"), float("nan"))
        errors = np.array([r.error for r in rows])
        size = np.abs(errors)
        return cls(name, len(rows), float(np.median(errors)), float(np.median(size)), float(np.quantile(size, 0.9)))
