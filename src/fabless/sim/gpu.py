"""Ops on GPUs: each op is a library kernel, one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fabless.chip.chip import TensorCore
from fabless.mapping.gemm import Products
from fabless.sim.kernels import (
    CoreRates,
    core_macs_per_s,
    decode_path,
    decode_times,
    decodes,
    gemm_path,
    gemm_times,
    kernel_set,
    path_name,
    prefill_path,
    prefill_times,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fabless.chip.chip import Chip
    from fabless.sim.calibration import Calibration
    from fabless.sim.columns import Columns

    Floats = NDArray[np.float64]

#: Side of the register tile over which a GPU's matrix instruction reuses operands read from the scratchpad (Hopper wgmma: 64 x 256).
#: Source: NVIDIA PTX ISA 8.5, section 9.7.14.
OPERAND_REUSE = 128.0


class ArrayTimes(NamedTuple):
    """Seconds and bytes of one repeat of each op, `[n_ops, n_chips]`; `busy_s` where a kernel is more than its slowest resource, else zero."""

    compute_s: Floats
    vector_s: Floats
    memory_s: Floats
    overhead_s: Floats
    dram_bytes: Floats
    scratchpad_bytes: Floats
    busy_s: Floats


def gpu_times(cols: Columns, chips: Sequence[Chip], calibration: Calibration) -> ArrayTimes:
    """Price ops as kernels: products and attention by their library paths, everything else by its bytes and lanes."""
    per_chip = [_one_chip(cols, chip, calibration) for chip in chips]
    return ArrayTimes(*(np.stack(columns, axis=1) for columns in zip(*per_chip, strict=True)))


def _one_chip(cols: Columns, chip: Chip, calibration: Calibration) -> ArrayTimes:
    rates = CoreRates.of(chip, calibration)
    dram = _dram_bytes(cols)
    compute, memory, busy, extra = _products(cols, chip, calibration, rates) + _attentions(cols, chip, calibration, rates)
    whole = busy > 0  # priced as kernels; the rest by bytes
    lanes_per_s = chip.n_cores * chip.core.vector_lanes * chip.clock_hz
    vector = np.where(whole, 0.0, cols.vector_ops / lanes_per_s)
    compute = np.where(whole, compute, _plain_compute(cols, chip, calibration))
    memory = np.where(whole, memory, dram / rates.bandwidth_bytes_per_s)
    overhead = cols.kernels * rates.launch_s + extra
    return ArrayTimes(compute, vector, memory, overhead, dram, _scratchpad_bytes(cols), busy)


def _dram_bytes(cols: Columns) -> Floats:
    p = cols.products
    moved = np.where(cols.gemm, p.batch * (p.m * p.k * p.a_bytes + p.k * p.n * p.b_bytes + p.m * p.n * p.c_bytes), 0.0)
    return cols.sum_products(moved) + cols.stored_bytes + cols.activation_bytes


def _products(cols: Columns, chip: Chip, calibration: Calibration, rates: CoreRates) -> Floats:
    """Return (compute, memory, busy, extra launches) of GEMMs, `[4, n_ops]`; infinite where the format cannot be multiplied."""
    matrix = chip.core.matrix
    assert isinstance(matrix, TensorCore)
    sums = np.zeros((4, len(cols.ops)))
    for i, format in enumerate(cols.formats):
        chosen = np.flatnonzero(cols.gemm & (cols.format_index == i))
        if not len(chosen):
            continue
        p = Products(*(column[chosen] for column in cols.products))
        rate = core_macs_per_s(chip, calibration, format)
        times = gemm_times(p, 1.0 if np.isnan(rate) else rate, gemm_path(path_name(format)), rates, matrix.tiles)
        values = np.stack((times.compute_s, times.memory_s, times.busy_s)) + (np.inf if np.isnan(rate) else 0.0)
        sums[:3, cols.owner[chosen]] = values
    return sums


def _attentions(cols: Columns, chip: Chip, calibration: Calibration, rates: CoreRates) -> Floats:
    """Return (compute, memory, busy, extra launches) of attention ops, `[4, n_ops]`, their spans one after another."""
    n_ops = len(cols.ops)
    a = cols.attentions
    if not len(cols.attention_owner):
        return np.zeros((4, n_ops))
    rate = np.array([core_macs_per_s(chip, calibration, f) for f in cols.attention_formats])
    usable = np.where(np.isnan(rate), 1.0, rate)
    prefill, decode = prefill_path(kernel_set(chip)), decode_path(kernel_set(chip))
    prompt, cache = prefill_times(a, usable, prefill, rates), decode_times(a, usable, decode, rates)
    values = np.where(
        decodes(a),
        (cache.compute_s, cache.memory_s, cache.busy_s, np.full(len(a.keys), decode.extra_launch_s)),
        (prompt.compute_s, prompt.memory_s, prompt.busy_s, np.full(len(a.keys), prefill.extra_launch_s)),
    ) + np.where(np.isnan(rate), np.inf, 0.0)
    return np.stack([np.bincount(cols.attention_owner, weights=row, minlength=n_ops) for row in values])


def _plain_compute(cols: Columns, chip: Chip, calibration: Calibration) -> Floats:
    """Return matrix time at the sustained rate, for ops without a library kernel of their own (scans)."""
    rate = np.array([core_macs_per_s(chip, calibration, f) for f in cols.formats])
    if not len(cols.owner):
        return np.zeros(len(cols.ops))
    seconds = cols.products.macs / (rate[cols.format_index] * chip.n_cores)
    return cols.sum_products(np.where(np.isnan(seconds), np.inf, seconds))


def _scratchpad_bytes(cols: Columns) -> Floats:
    if not len(cols.owner):
        return np.zeros(len(cols.ops))
    p = cols.products
    element = np.array([f.bytes_per_value for f in cols.formats])[cols.format_index]
    return cols.sum_products(p.macs * element * (1 / OPERAND_REUSE + 1 / np.clip(p.m, 1, OPERAND_REUSE)))
