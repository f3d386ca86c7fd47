"""Predicted against measured, row by row and by chip family: the check that everything else rests on."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.errors import InputError
from fabless.validate.checked import Checked, Summary
from fabless.validate.kernels import check_kernels, table_kind
from fabless.validate.meaning import SkipError, case_of
from fabless.validate.predict import Predictor
from fabless.validate.rows import read_rows, read_table
from fabless.validate.transfer import without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fabless.validate.rows import Row


@dataclass(frozen=True, slots=True)
class Validation:
    """Hold every checked row and, by reason, how many rows of the table have no prediction."""

    rows: tuple[Checked, ...]
    skipped: tuple[tuple[str, int], ...]

    @property
    def overall(self) -> Summary:
        """Return the summary of all rows."""
        return Summary.of("all", self.rows)

    def by(self, key: Callable[[Checked], str]) -> tuple[Summary, ...]:
        """Return one summary per value of `key`, by name."""
        groups: dict[str, list[Checked]] = defaultdict(list)
        for row in self.rows:
            groups[key(row)].append(row)
        return tuple(Summary.of(name, groups[name]) for name in sorted(groups))

    @property
    def families(self) -> tuple[Summary, ...]:
        """Return one summary per architecture family."""
        return self.by(lambda r: r.family)

    @property
    def kinds(self) -> tuple[Summary, ...]:
        """Return one summary per kind of number."""
        return self.by(lambda r: r.kind)

    def worst(self, n: int) -> tuple[Checked, ...]:
        """Return the `n` rows furthest off by ratio, worst first."""
        return tuple(sorted(self.rows, key=lambda r: -abs(np.log(max(r.predicted, 1e-30) / r.measured)))[:n])

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain values for `--json`; errors are ratios, null where no row was predicted."""
        families = [{"family": s.name, **_numbers(s)} for s in self.families]
        kinds = [{"kind": s.name, **_numbers(s)} for s in self.kinds]
        skipped = [{"reason": reason, "n": n} for reason, n in self.skipped]
        return _numbers(self.overall) | {"families": families, "kinds": kinds, "skipped": skipped}


def _numbers(summary: Summary) -> dict[str, Any]:
    def plain(value: float) -> float | None:
        return None if isnan(value) else round(value, 6)

    return {"n": summary.n, "median_ape": plain(summary.median_ape), "p90_ape": plain(summary.p90_ape), "bias": plain(summary.bias)}


def validate(path: Path | str, *, lenient: bool = False, leave_out: str | None = None) -> Validation:
    """Predict every row of a table of measurements that a small model exists for, and name the others with the reason.

    `path`: a serving table (columns of `rows.SERVING_COLUMNS`), a table of matrix products (`chip,dtype,m,n,k,latency_s`, or
    `gemm_dtype,m,n,k,latency_ms` with the chip in the file's name), of attention or of collectives; a directory stands for all its CSV files.
    `lenient` skips and counts wrong rows instead of raising. `leave_out` ("chip" or "model") predicts each row with software parameters fitted
    on the rows of other chips (other models), and kernels of a chip with the calibration for families without measurements: see `transfer.without`.
    Raises `InputError` naming file, line and column.
    """
    path = Path(path)
    if leave_out not in (None, "chip", "model"):
        raise InputError(f"leave_out must be 'chip' or 'model', not '{leave_out}'")
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: holds no CSV file; give a table of measurements")
    predictor = Predictor()
    checked: list[Checked] = []
    skipped: list[str] = []
    for file in files:
        columns, _ = read_table(file)
        if table_kind(columns) is not None:
            rows, reasons = check_kernels(file, lenient=lenient, leave_out=leave_out)
        else:
            table = read_rows(file, lenient=lenient)
            rows, reasons = check_rows(table.rows, predictor, leave_out)
            reasons += [reason for reason, n in table.refused.items() for _ in range(n)]
        checked += rows
        skipped += reasons
    return Validation(tuple(checked), counted(skipped))


def counted(reasons: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Return (reason, count), most frequent first, ties by name."""
    return tuple(sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0])))


def check_rows(rows: Iterable[Row], predictor: Predictor, leave_out: str | None = None) -> tuple[list[Checked], list[str]]:
    """Return the checked rows and the reasons of those without a prediction."""
    checked: list[Checked] = []
    skipped: list[str] = []
    for row in rows:
        try:
            case = case_of(row)
            predicted = predictor.predict(case if leave_out is None else without(case, leave_out))
        except SkipError as reason:
            skipped.append(str(reason))
            continue
        chip = case.deployment.chip
        d = case.deployment
        checked.append(
            Checked(
                id=row.id,
                chip=chip.name,
                family=chip.family,
                model=d.model.name,
                software=d.software.name,
                phase=row.phase,
                metric=row.metric,
                kind=kind_of(row),
                batch=float(row.concurrency or 0),
                input_tokens=row.input_tokens or 0.0,
                output_tokens=row.output_tokens or 0.0,
                precision=row.precision,
                measured=row.value,
                predicted=predicted,
                unit=row.unit,
                source=row.source,
            )
        )
    return checked, skipped


def kind_of(row: Row) -> str:
    """Return the kind of number that a row states, in which the bars of accuracy are given."""
    if "power" in row.metric:
        return "power"
    if row.phase == "encoder_forward":
        return "encoder"
    open_loop = row.phase in ("mlperf_server", "mlperf_interactive") or "poisson" in row.load
    if row.metric.startswith(("tpot", "itl")) or row.unit == "tokens/s/user":
        return "tpot_open" if open_loop else "tpot"
    if row.metric.startswith("ttft"):
        queued = row.phase == "serving" or open_loop
        return "ttft_queued" if queued else "ttft"
    if row.metric.startswith("e2e"):
        return "e2e"
    if "offline" in row.phase:
        return "offline"
    return "server" if open_loop else "throughput"
