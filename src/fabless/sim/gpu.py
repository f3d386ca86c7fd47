"""Kernels on GPUs: tiles in waves over cores, caches, latency, launches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fabless.chip.chip import TensorCore, runs_as

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fabless.chip.chip import Chip
    from fabless.sim.calibration import Calibration
    from fabless.sim.columns import Columns

    Floats = NDArray[np.float64]


def gpu_times(cols: Columns, chips: Sequence[Chip], calibration: Calibration) -> tuple[Floats, ...]:
    """Return (compute_s, vector_s, memory_s, overhead_s, dram_bytes, scratchpad_bytes) of one repeat of each op, `[n_ops, n_chips]`."""
    return tuple(np.stack(columns, axis=1) for columns in zip(*(_gpu_times(cols, chip, calibration) for chip in chips), strict=True))


def _gpu_times(cols: Columns, chip: Chip, calibration: Calibration) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
    """Return (compute_s, vector_s, memory_s, overhead_s, dram_bytes, scratchpad_bytes) of one repeat of each op."""
    matrix = chip.core.matrix
    assert isinstance(matrix, TensorCore)
    rates = dict(matrix.macs_per_cycle)
    served = [runs_as(rates, f) for f in cols.formats]
    rate = np.array([np.nan if name is None else rates[name] for name in served]) * chip.core.n_matrix
    p = cols.products
    units = chip.n_cores
    launch = calibration.launch_overhead_s if chip.launch_overhead_s is None else chip.launch_overhead_s
    macs_per_core_s = rate[cols.format_index] * chip.clock_hz
    best = np.full_like(p.m, np.inf)
    for tm, tn in matrix.tiles:
        tiles = np.ceil(p.m / tm) * np.ceil(p.n / tn) * p.batch
        waves = np.maximum(np.ceil(tiles / units), tiles / units)
        best = np.minimum(best, waves * tm * tn * p.k / macs_per_core_s)
    seconds = np.where(cols.gemm, best, p.macs / (macs_per_core_s * units)) / calibration.matrix_efficiency
    compute = cols.sum_products(np.where(np.isnan(seconds), np.inf, seconds))
    moved = np.where(cols.gemm, p.batch * (p.m * p.k * p.a_bytes + p.k * p.n * p.b_bytes + p.m * p.n * p.c_bytes), 0.0)
    dram = cols.sum_products(moved) + cols.stored_bytes + cols.activation_bytes
    memory = dram / (chip.dram.bandwidth_bytes_per_s * calibration.memory_efficiency)
    vector = cols.vector_ops / (chip.n_cores * chip.core.vector_lanes * chip.clock_hz)
    element = np.array([f.bytes_per_value for f in cols.formats])[cols.format_index]
    scratchpad = cols.sum_products(p.macs * element * (1 / 128 + 1 / np.clip(p.m, 1, 128)))
    return compute, vector, memory, cols.kernels * launch, dram, scratchpad
