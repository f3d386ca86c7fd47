"""Check tables of kernel times: matrix products, attention and collectives, each as a library call on one chip."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import FablessError, InputError
from fabless.sim.calibration import calibration_for
from fabless.validate.checked import Checked
from fabless.validate.meaning import SkipError, chip_of
from fabless.validate.rows import need_columns, number, read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from fabless.chip.chip import Chip
    from fabless.sim.calibration import Calibration

    Floats = NDArray[np.float64]
    Group = tuple[str, ...]
    Predict = Callable[[Chip, Group, Floats, Calibration | None], Floats]

_PORTABLE = ("chip", "dtype", "m", "n", "k", "latency_s")
_GEMM = ("gemm_dtype", "m", "n", "k", "latency_ms")
_ATTENTION = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "attn_dtype", "kv_cache_dtype", "latency_ms")
_COMM = ("op_name", "nccl_dtype", "num_gpus", "message_size", "latency")

#: Collective names of NCCL's tests -> those of `model.graph.Collective`; bytes per element of their data types.
_COLLECTIVES = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter", "alltoall": "all_to_all"}
_ELEMENT_BYTES = {"half": 2, "bfloat16": 2, "float": 4, "int8": 1}


def table_kind(columns: list[str]) -> str | None:
    """Return which kernel table has these columns: gemm, attention or comm; None for a serving table."""
    names = set(columns)
    if {"m", "n", "k"} & names and {"latency_s", "latency_ms"} & names:
        return "gemm"
    if {"num_heads", "head_dim"} <= names:
        return "attention"
    return "comm" if {"op_name", "message_size"} & names else None


def check_kernels(path: Path, *, lenient: bool = False, leave_out: str | None = None) -> tuple[list[Checked], list[str]]:
    """Return the checked rows of a kernel table and the reasons of those without a prediction.

    The chip is in column `chip`, or, in tables without one, the start of the file's name (`h100_sxm_gemm_trtllm_1.3.0rc20.csv`).
    `leave_out` "chip" prices kernels with the calibration that serves families without measurements.
    Raises `InputError` naming file, line and column for a missing column, text in a number and a latency that is not above zero.
    """
    columns, records = read_table(path)
    kind = table_kind(columns)
    needed = {"gemm": _PORTABLE if "latency_s" in columns or "chip" in columns else _GEMM, "attention": _ATTENTION, "comm": _COMM}[
        str(kind)
    ]
    need_columns(path, columns, needed)
    reasons: Counter[str] = Counter()
    groups: dict[Group, list[tuple[int, list[float], float]]] = defaultdict(list)
    numeric, text_columns, time_column, factor = _layout(str(kind), columns)
    for line, cells in records:
        try:
            values = [_positive(path, line, name, cells[name], zero=name in ("step", "isl")) for name in numeric]
            seconds = _positive(path, line, time_column, cells[time_column]) * factor
        except InputError as error:
            if not lenient:
                raise InputError(str(error)) from None
            reasons[getattr(error, "reason", "value not above zero")] += 1
            continue
        chip = cells.get("chip") or _chip_in_name(path)
        groups[(chip, *(cells[name] for name in text_columns))].append((line, values, seconds))
    checked: list[Checked] = []
    for group, rows in groups.items():
        try:
            checked += _check_group(path, str(kind), group, rows, calibration_for("transfer") if leave_out == "chip" else None)
        except SkipError as reason:
            reasons[str(reason)] += len(rows)
        except FablessError as error:
            reasons[str(error).split(";")[0]] += len(rows)
    return checked, [reason for reason, n in reasons.items() for _ in range(n)]


def _positive(path: Path, line: int, column: str, text: str, *, zero: bool = False) -> float:
    value = number(path, line, column, text)
    if value < 0 or (value == 0 and not zero):
        raise InputError(f"{path}: line {line}, column '{column}': {text} is not above zero")
    return value


def _layout(kind: str, columns: list[str]) -> tuple[tuple[str, ...], tuple[str, ...], str, float]:
    """Return (numeric columns, columns that make a group, column of the latency, seconds of its unit)."""
    if kind == "gemm":
        dtype = "dtype" if "dtype" in columns else "gemm_dtype"
        return ("m", "n", "k"), (dtype,), *(("latency_s", 1.0) if "latency_s" in columns else ("latency_ms", 1e-3))
    if kind == "attention":
        return (
            ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim"),
            ("attn_dtype", "kv_cache_dtype"),
            "latency_ms",
            1e-3,
        )
    return ("num_gpus", "message_size"), ("op_name", "nccl_dtype"), "latency", 1e-3


def _chip_in_name(path: Path) -> str:
    found = re.match(r"(.+?)_(?:context_attention|generation_attention|gemm|comm)", path.stem)
    return (found[1] if found else path.stem).replace("_", " ")


def _check_group(
    path: Path, kind: str, group: Group, rows: list[tuple[int, list[float], float]], calibration: Calibration | None
) -> list[Checked]:
    chip = chip_of(group[0])
    values = np.array([v for _, v, _ in rows])
    predicted = _PREDICT[kind](chip, group[1:], values, calibration)
    name = path.stem
    batch, tokens = (values[:, 0], values[:, 1]) if kind == "attention" else (np.zeros(len(rows)), np.zeros(len(rows)))
    return [
        Checked(
            f"{name}:{line}", chip.name, chip.family, "", "kernel library", kind, "latency", _kind(kind, path, v), float(b), float(t), 0.0,
            "/".join(group[1:]), seconds, float(p), "s", name,
        )
        for (line, v, seconds), p, b, t in zip(rows, predicted, batch, tokens, strict=True)
    ]  # fmt: skip


def _kind(kind: str, path: Path, values: list[float]) -> str:
    if kind != "attention":
        return kind
    return "attention_decode" if "generation" in path.stem or values[1] <= 1 else "attention_prefill"


def _gemm(chip: Chip, group: Group, values: Floats, calibration: Calibration | None) -> Floats:
    from fabless.sim.kernels import predict_gemm

    return predict_gemm(chip, group[0].lower(), *values.T, calibration=calibration)


def _attention(chip: Chip, group: Group, values: Floats, calibration: Calibration | None) -> Floats:
    from fabless.sim.kernels import predict_attention

    batch, queries, context, heads, kv_heads, d_head = values.T
    out = np.zeros(len(values))
    for d in np.unique(d_head):
        at = d_head == d
        out[at] = predict_attention(
            chip, batch[at], np.maximum(queries[at], 1), context[at], n_heads=heads[at], n_kv_heads=kv_heads[at], d_head=int(d),
            dtype=group[0], kv_dtype=group[1], calibration=calibration,
        )  # fmt: skip
    return out


def _comm(chip: Chip, group: Group, values: Floats, calibration: Calibration | None) -> Floats:
    from fabless.sim.kernels import predict_collective

    if group[0] not in _COLLECTIVES or group[1] not in _ELEMENT_BYTES:
        raise SkipError(f"unknown collective or data type: {group[0]} of {group[1]}")
    out = np.zeros(len(values))
    for n in np.unique(values[:, 0]):
        at = values[:, 0] == n
        out[at] = predict_collective(
            chip, _COLLECTIVES[group[0]], values[at, 1] * _ELEMENT_BYTES[group[1]], int(n), calibration=calibration
        )
    return out


_PREDICT: Mapping[str, Predict] = {"gemm": _gemm, "attention": _attention, "comm": _comm}
