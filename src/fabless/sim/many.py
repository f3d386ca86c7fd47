"""Estimate many steps on many chips in one call: the roofline's arithmetic, vectorised.

An op's cycles depend on the core array alone, its traffic on the on-chip memory alone, its seconds on clock and bandwidth: each unique op is
priced once per unique array and once per unique memory, and only maxima and sums run over all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fabless.chip.chip import Mesh, Mxu, TensorCore, matrix_rates, runs_as
from fabless.mapping.gemm import Products, compute_cycles, least_traffic
from fabless.mapping.parallel import partition
from fabless.mapping.plan import Plan
from fabless.sim.calibration import Calibration, calibration_for
from fabless.sim.collectives import collective_s, wire_bytes
from fabless.sim.columns import columns, one_repeat
from fabless.sim.gpu import ArrayTimes, gpu_times
from fabless.sim.tile_times import has_tiles, tile_times

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from numpy.typing import NDArray

    from fabless.chip.chip import Chip
    from fabless.mapping.parallel import Share
    from fabless.model.graph import Graph, Op
    from fabless.sim.columns import Columns

    Floats = NDArray[np.float64]

K = TypeVar("K", bound="Hashable")


@dataclass(frozen=True, slots=True)
class OpTimes:
    """Hold seconds and events of one repeat of each unique op on each chip, all `[n_ops, n_chips]`; infinite where a chip cannot run it.

    `busy_s` is how long the op takes by itself: the slowest of its resources, plus overhead. `macs_as` is the element format that its macs run
    in, an index into `formats` (-1: no macs). `serial_s`: what on our own tiles runs beside nothing; `ahead_s [n_chips]`: how far their memory runs ahead.
    """

    compute_s: Floats
    vector_s: Floats
    memory_s: Floats
    link_s: Floats
    overhead_s: Floats
    busy_s: Floats
    macs: Floats
    vector_ops: Floats
    dram_bytes: Floats
    shared_bytes: Floats
    scratchpad_bytes: Floats
    link_bytes: Floats
    formats: tuple[str, ...]
    macs_as: NDArray[np.intp]
    serial_s: Floats
    ahead_s: Floats


@dataclass(frozen=True, slots=True)
class Estimates:
    """Hold what many steps take on many chips under one plan; arrays `[n_graphs, n_chips]`.

    `memory_bytes` is resident per chip and `feasible` says that it fits and that the chip multiplies every format of the step; times are
    those that an unlimited memory would see, so that the nearest miss can be shown. Counters are per chip of the plan;
    `macs` by element format.
    """

    latency_s: Floats
    stage_s: Floats
    emitted_tokens: Floats
    memory_bytes: Floats
    feasible: NDArray[np.bool_]
    macs: dict[str, Floats]
    vector_ops: Floats
    dram_bytes: Floats
    shared_bytes: Floats
    scratchpad_bytes: Floats
    link_bytes: Floats
    n_chips: int

    @property
    def tokens_per_s(self) -> Floats:
        """Return tokens per second of one replica with its pipeline full."""
        return self.emitted_tokens / self.stage_s


def estimate_many(graphs: Sequence[Graph], chips: Sequence[Chip], plan: Plan | None = None) -> Estimates:
    """Estimate every graph on every chip under one plan; equals `estimate` pair for pair."""
    plan = plan or Plan()
    shares = [partition(graph, plan) for graph in graphs]
    unique, counts = unique_ops(shares)
    calibrations = [calibration_for(chip.family) for chip in chips]
    times = op_times(columns(unique), chips, calibrations)
    latency, stage = step_times(times, counts, graphs, plan, np.array([c.prefetches for c in calibrations]))
    memory = np.array([s.memory_bytes for s in shares])[:, None] + np.zeros(len(chips))
    capacity = np.array([chip.memory_capacity_bytes for chip in chips])
    emitted = np.array([g.step.emitted_tokens for g in graphs])[:, None] + np.zeros(len(chips))
    return Estimates(
        latency,
        stage,
        emitted,
        memory,
        (memory <= capacity) & np.isfinite(latency),
        {name: _weigh(counts, np.where(times.macs_as == i, times.macs, 0.0)) for i, name in enumerate(times.formats)},
        _weigh(counts, times.vector_ops),
        _weigh(counts, times.dram_bytes),
        _weigh(counts, times.shared_bytes),
        _weigh(counts, times.scratchpad_bytes),
        _weigh(counts, times.link_bytes),
        plan.n_chips,
    )


def unique_ops(shares: Sequence[Share]) -> tuple[list[Op], Floats]:
    """Return the distinct ops of many shares and how often each occurs `[n_shares, n_ops]`."""
    found = {(one_repeat(op)): None for share in shares for op in share.ops}
    index = {op: i for i, op in enumerate(sorted(found, key=repr))}  # one order for any company, so that sums round alike
    counts = np.zeros((len(shares), len(index)))
    for row, share in zip(counts, shares, strict=True):
        for op in share.ops:
            row[index[one_repeat(op)]] += op.count
    return list(index), counts


def step_times(times: OpTimes, counts: Floats, graphs: Sequence[Graph], plan: Plan, prefetches: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return (latency, slowest pipeline stage) in seconds, `[n_graphs, n_chips]`.

    Kernels run one after another: the sum of their times. A chip that prefetches streams memory beside everything else and its matrix
    and vector queues run side by side; only exchanges between chips wait: the largest of the three sums. Under a tile's timing contract what is
    serial adds to the queues, and the layers and what comes once (the language head) take a largest sum each, between which memory runs ahead by a
    weight buffer at most.
    """
    layers = np.array([-(-g.n_layers // plan.pipeline) / g.n_layers for g in graphs])[:, None]
    stage_counts = np.where(counts > 1, counts * layers, counts) if plan.pipeline > 1 else counts

    def total(n: Floats) -> Floats:
        serial = _weigh(n, times.busy_s)
        if not prefetches.any():
            return serial
        layered, once = (np.where(n > 1, n, 0.0), np.where(n > 1, 0.0, n))
        both = np.atleast_1d((layered > 0).any(axis=1) & (once > 0).any(axis=1))[:, None] & (times.ahead_s > 0)
        apart = _prefetched(times, layered) + _prefetched(times, once) - times.ahead_s
        return np.where(prefetches, np.maximum(_prefetched(times, n), np.where(both, apart, 0.0)), serial)

    latency = total(counts)
    return latency, (total(stage_counts) if plan.pipeline > 1 else latency)


def _prefetched(times: OpTimes, n: Floats) -> Floats:
    """Return the time of ops on a chip that prefetches: the largest of memory, and matrix or vector beside what is serial and exchanges."""
    beside = times.serial_s < np.maximum(times.compute_s, times.vector_s)
    queues = np.maximum(_weigh(n, np.where(beside, times.compute_s, 0.0)), _weigh(n, np.where(beside, times.vector_s, 0.0)))
    return np.maximum(queues + _weigh(n, times.serial_s + times.link_s + times.overhead_s), _weigh(n, times.memory_s))


def _weigh(counts: Floats, values: Floats) -> Floats:
    """Return counts @ values over the ops that occur, so that one that does not may be infinite.

    Each sum runs op by op in order, never through a BLAS: that would spin threads for microseconds of work, and add in an order that depends on
    their number and on the processor.
    """
    graphs, ops = np.nonzero(counts)
    occurring = values[ops] * counts[graphs, ops][:, None]
    if not len(occurring):
        return np.zeros((len(counts), values.shape[1]))
    sums = np.add.reduceat(occurring, np.minimum(np.searchsorted(graphs, np.arange(len(counts))), len(occurring) - 1), axis=0)
    return np.asarray(np.where((counts != 0).any(axis=1)[:, None], sums, 0.0))


def op_times(cols: Columns, chips: Sequence[Chip], calibrations: Sequence[Calibration]) -> OpTimes:
    """Price one repeat of each op on each chip."""
    n_ops, n_chips = len(cols.ops), len(chips)
    zeros = [np.zeros((n_ops, n_chips)) for _ in range(8)]
    compute, vector, memory, overhead, dram, scratchpad, kernel, serial = zeros
    ahead = np.zeros(n_chips)
    link, link_bytes = _link_times(cols, chips, calibrations)
    names: dict[str, int] = {}
    macs_as = np.full((n_ops, n_chips), -1, dtype=np.intp)
    for (is_gpu, calibration), group in _by(
        (isinstance(c.core.matrix, TensorCore), k) for c, k in zip(chips, calibrations, strict=True)
    ).items():
        chosen = [chips[j] for j in group]
        part = gpu_times(cols, chosen, calibration) if is_gpu else _array_times(cols, chosen, calibration)
        for target, values in zip(zeros, part, strict=False):
            target[:, group] = values
        tiles = [j for j in group if calibration.contract and has_tiles(chips[j])]
        if tiles:
            bandwidth = np.array([_bandwidth(chips[j]) for j in tiles])
            own = tile_times(cols, [chips[j] for j in tiles], compute[:, tiles], dram[:, tiles], bandwidth)
            compute[:, tiles], vector[:, tiles], memory[:, tiles], serial[:, tiles], ahead[tiles] = own
    for rates, group in _by(matrix_rates(chip.core.matrix) for chip in chips).items():
        served = [runs_as(dict(rates), f) for f in cols.formats]
        ids = np.array([-1 if name is None else names.setdefault(name, len(names)) for name in served], dtype=np.intp)
        per_op = np.full(n_ops, -1, dtype=np.intp)
        per_op[cols.owner] = ids[cols.format_index] if len(ids) else -1
        macs_as[:, group] = per_op[:, None]
    busy = np.maximum(np.maximum(compute, vector), np.maximum(np.maximum(memory, link), kernel)) + overhead
    ones = np.ones(n_chips)
    macs = cols.sum_products(cols.products.macs)[:, None] * ones
    shared = np.where([chip.shared is not None for chip in chips], dram, 0.0)
    return OpTimes(
        compute, vector, memory, link, overhead, busy, macs, cols.vector_ops[:, None] * ones,
        dram, shared, scratchpad, link_bytes, tuple(names), macs_as, serial, ahead,
    )  # fmt: skip


def _by(keys: Iterable[K]) -> dict[K, list[int]]:
    """Return the positions of each distinct key, in order of appearance."""
    groups: dict[K, list[int]] = {}
    for j, key in enumerate(keys):
        groups.setdefault(key, []).append(j)
    return groups


def _link_times(cols: Columns, chips: Sequence[Chip], calibrations: Sequence[Calibration]) -> tuple[Floats, Floats]:
    seconds = np.zeros((len(cols.ops), len(chips)))
    sent = np.zeros_like(seconds)
    if not cols.collectives:
        return seconds, sent
    groups = _by((chip.link, calibration) for chip, calibration in zip(chips, calibrations, strict=True))
    for i, op in cols.collectives:
        sent[i] = wire_bytes(op.kind, op.payload_bytes, op.n_chips)
        for (link, calibration), group in groups.items():
            seconds[i, group] = collective_s(op.kind, op.payload_bytes, op.n_chips, link, calibration)
    return seconds, sent


def _array_times(cols: Columns, chips: Sequence[Chip], calibration: Calibration) -> ArrayTimes:
    """Price ops on chips of dot-product rows or systolic arrays that share one calibration."""
    n_ops, n_chips = len(cols.ops), len(chips)
    cycles, scratch = np.zeros((n_ops, n_chips)), np.zeros((n_ops, n_chips))
    for (matrix, units, _), group in _by((c.core.matrix, c.n_cores * c.core.n_matrix, c.core.accumulator) for c in chips).items():
        assert not isinstance(matrix, TensorCore)
        cycles[:, group] = _cycles(cols, matrix, units)[:, None]
        scratch[:, group] = _scratchpad_bytes(cols, chips[group[0]])[:, None]
    dram = np.zeros((n_ops, n_chips))
    for (capacity, gn, gk), group in _by(_memory_key(c) for c in chips).items():
        dram[:, group] = _dram_bytes(cols, capacity, gn, gk, resident=calibration.prefetches)[:, None]
    clock = np.array([c.clock_hz for c in chips])
    lanes = np.array([c.n_cores * c.core.vector_lanes for c in chips], dtype=np.float64)
    bandwidth = np.array([_bandwidth(c) for c in chips])
    launch = np.array([calibration.launch_overhead_s if c.launch_overhead_s is None else c.launch_overhead_s for c in chips])
    compute = cycles / (clock * calibration.matrix_efficiency)
    with np.errstate(divide="ignore", invalid="ignore"):
        vector = np.where(cols.vector_ops[:, None] > 0, cols.vector_ops[:, None] / (lanes * clock), 0.0)
    memory = dram / (bandwidth * calibration.memory_efficiency)
    return ArrayTimes(compute, vector, memory, cols.kernels[:, None] * launch, dram, scratch, np.zeros((n_ops, n_chips)))


def _bandwidth(chip: Chip) -> float:
    """Return the bytes per second at which weights stream: DRAM's, or on a chip without DRAM that of all its SRAM banks."""
    if chip.dram.standard != "none":
        return chip.dram.bandwidth_bytes_per_s
    return chip.dram.bandwidth_bytes_per_s or chip.n_cores * chip.core.scratchpad.bytes_per_cycle * chip.clock_hz


def _memory_key(chip: Chip) -> tuple[float, int, int]:
    matrix = chip.core.matrix
    capacity = chip.sram_bytes if chip.dram.standard != "none" else np.inf
    if isinstance(matrix, Mxu):
        return capacity, matrix.rows, matrix.lanes
    return (capacity, matrix.columns, matrix.rows) if isinstance(matrix, Mesh) else (capacity, 1, 1)


def _cycles(cols: Columns, matrix: Mxu | Mesh, units: int) -> Floats:
    rates = dict(matrix.rates)
    served = [runs_as(rates, f) for f in cols.formats]
    rate = np.array([np.nan if name is None else rates[name] for name in served])
    if not len(cols.owner):
        return np.zeros(len(cols.ops))
    per_product = compute_cycles(matrix, units, cols.products, rate[cols.format_index])
    return cols.sum_products(np.where(np.isnan(per_product), np.inf, per_product))


def _dram_bytes(cols: Columns, capacity: float, granule_n: int, granule_k: int, *, resident: bool) -> Floats:
    """Return DRAM bytes of one repeat of each op: best tiling for GEMMs; caches, states and tables always; other activations if not kept."""
    total = cols.stored_bytes + (0.0 if resident else cols.activation_bytes)
    chosen = np.flatnonzero(cols.gemm)
    if not len(chosen):
        return total
    p = Products(*(column[chosen] for column in cols.products))
    traffic = (
        least_traffic(p, capacity, granule_n, granule_k, resident=resident) if np.isfinite(capacity) else p.batch * p.k * p.n * p.b_bytes
    )
    return total + np.bincount(cols.owner[chosen], weights=traffic, minlength=len(cols.ops))


def _scratchpad_bytes(cols: Columns, chip: Chip) -> Floats:
    """Return bytes that the matrix units read from scratchpads: an activation slice serves all rows, a weight all activations of a pass.

    A pass is as many rows of activations as the accumulators hold (one without accumulators of their own).
    """
    if not len(cols.owner):
        return np.zeros(len(cols.ops))
    matrix, p = chip.core.matrix, cols.products
    across = float(matrix.rows if isinstance(matrix, Mxu) else getattr(matrix, "columns", 1))
    acc = chip.core.accumulator
    held = max(1.0, acc.capacity_bytes / (4.0 * across)) if acc else (1.0 if isinstance(matrix, Mxu) else np.inf)
    one_byte = np.where(p.a_bytes > 0, 0.0, 1.0)  # attention and scan products state no operand bytes; count their format's
    element = np.array([f.bytes_per_value for f in cols.formats])[cols.format_index]
    a, b = p.a_bytes + one_byte * element, p.b_bytes + one_byte * element
    return cols.sum_products(p.macs * (a / across + b / np.clip(p.m, 1.0, held)))
