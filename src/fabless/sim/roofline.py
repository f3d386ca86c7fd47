"""The estimate: what a step costs on a chip, from its best mapping, its memory traffic and its exchanges."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from fabless.core.errors import FablessError, InfeasibleError
from fabless.core.units import binary
from fabless.mapping.parallel import partition
from fabless.mapping.plan import Plan
from fabless.model.graph import Collective, Gemm
from fabless.sim.calibration import Calibration, calibration_for
from fabless.sim.columns import columns, one_repeat, operand_format
from fabless.sim.many import Estimates, OpTimes, estimate_many, op_times, step_times, unique_ops
from fabless.sim.trace import Counters, Event, Trace

if TYPE_CHECKING:
    from fabless.chip.chip import Chip
    from fabless.mapping.parallel import Share
    from fabless.model.graph import Graph, Op

__all__ = ["Estimates", "estimate", "estimate_many"]


def estimate(graph: Graph, chip: Chip, plan: Plan | None = None, *, calibration: Calibration | None = None) -> Trace:
    """Estimate one step of a model on one chip of a plan: time and events of every op.

    Each op takes its best mapping's slowest resource (matrix units, vector lanes, memory, links) plus launch overhead; on a chip that
    prefetches, ops overlap (see `step_times`) and `cycles` is less than the sum over events.
    Raises `InfeasibleError` when weights, caches and activations exceed a chip's memory, and `UnsupportedError` for a format that the chip
    cannot multiply.
    """
    plan = plan or Plan()
    calibration = calibration or calibration_for(chip.family)
    share = partition(graph, plan)
    check_memory(graph, chip, plan, share)
    unique, counts = unique_ops([share])
    check_formats(unique, chip)
    times = op_times(columns(unique), [chip], [calibration])
    latency, stage = step_times(times, counts, [graph], plan, np.array([calibration.prefetches]))
    index = {op: i for i, op in enumerate(unique)}
    if not np.isfinite(latency[0, 0]):
        _refuse(graph, chip, plan, share, times=times, index=index)
    events = tuple(_event(op, index[one_repeat(op)], times, chip.clock_hz) for op in share.ops)
    total = Counters()
    for event in events:
        total = total + event.counters
    return Trace(
        clock_hz=chip.clock_hz,
        cycles=float(latency[0, 0]) * chip.clock_hz,
        stage_cycles=float(stage[0, 0]) * chip.clock_hz,
        emitted_tokens=graph.step.emitted_tokens,
        n_chips=plan.n_chips,
        events=events,
        counters=total,
        memory_bytes=share.memory_bytes,
        error_ratio=calibration.error_ratio,
    )


def _refuse(graph: Graph, chip: Chip, plan: Plan, share: Share, *, times: OpTimes, index: dict[Op, int]) -> NoReturn:
    """Raise `InfeasibleError` for the first op that a chip cannot run at all: no link that far, or no room for its smallest tiles."""
    op = next(op for op in share.ops if not np.isfinite(times.busy_s[index[one_repeat(op)], 0]))
    where = f"{graph.model_name} on {plan.n_chips} x {chip.name} ({plan}): {op.name}"
    if isinstance(op, Collective):
        raise InfeasibleError(
            f"{where} exchanges data among {op.n_chips} chips, but links join {chip.link.domain_chips} and there is no network beyond; "
            f"lower the plan's degrees to {chip.link.domain_chips} or set link.network_bandwidth_bytes_per_s"
        )
    raise InfeasibleError(
        f"{where} finds no room for its smallest tiles in {binary(chip.sram_bytes)} of on-chip memory; raise core.scratchpad.capacity_bytes "
        "or lower the array's rows and lanes"
    )


def _event(op: Op, i: int, times: OpTimes, clock_hz: float) -> Event:
    compute, vector, memory, link, overhead, busy = (
        float(x[i, 0]) * op.count * clock_hz
        for x in (times.compute_s, times.vector_s, times.memory_s, times.link_s, times.overhead_s, times.busy_s)
    )
    parts = {"compute": compute, "vector": vector, "memory": memory, "link": link, "overhead": overhead}
    macs = float(times.macs[i, 0]) * op.count
    counters = Counters(
        ((times.formats[times.macs_as[i, 0]], macs),) if macs else (),
        *(
            float(x[i, 0]) * op.count
            for x in (times.vector_ops, times.dram_bytes, times.shared_bytes, times.scratchpad_bytes, times.link_bytes)
        ),
    )
    bound = max(parts, key=lambda name: parts[name])
    return Event(op.name, type(op).__name__.lower(), op.count, busy, compute, vector, memory, link, overhead, bound, counters)


def check_formats(ops: list[Op], chip: Chip) -> None:
    """Raise `UnsupportedError` for the first op whose operands the chip cannot multiply."""
    for op in ops:
        if isinstance(op, Gemm):
            chip.macs_per_cycle(operand_format(op.activations, op.weights))


def check_memory(graph: Graph, chip: Chip, plan: Plan, share: Share) -> None:
    """Raise `InfeasibleError` when a chip's memory cannot hold its share, saying what is missing and what would fit."""
    capacity = chip.memory_capacity_bytes
    if share.memory_bytes <= capacity:
        return
    missing = share.memory_bytes - capacity
    raise InfeasibleError(
        f"{graph.model_name} on {plan.n_chips} x {chip.name} ({plan}): a chip needs {binary(share.memory_bytes)} "
        f"(weights {binary(share.weight_bytes)}, KV cache {binary(share.kv_bytes)}, activations {binary(share.activation_bytes)}), "
        f"but its memory holds {binary(capacity)}: {missing:.0f} bytes ({binary(missing)}) are missing; {_remedy(graph, plan, share, capacity)}"
    )


def _remedy(graph: Graph, plan: Plan, share: Share, capacity: float) -> str:
    remedies = []
    for tensor in (2**i for i in range(1, 13)):
        if tensor > plan.tensor:
            try:
                wider = partition(graph, replace(plan, tensor=tensor))
            except FablessError:
                continue
            if wider.memory_bytes <= capacity:
                remedies.append(f"tensor parallelism {tensor} fits")
                break
    room = capacity - share.weight_bytes - share.activation_bytes
    sequences = graph.step.n_sequences
    if room > 0 and share.kv_bytes > 0 and int(sequences * room / share.kv_bytes) >= 1:
        remedies.append(f"{int(sequences * room / share.kv_bytes)} sequences instead of {sequences} fit")
    bits = graph.recipe.weights.bits_per_value
    for narrower in (8, 4):
        if bits > narrower and share.memory_bytes - share.weight_bytes * (1 - narrower / bits) <= capacity:
            remedies.append(f"{narrower}-bit weights fit")
            break
    return " or ".join(remedies) if remedies else "no tensor parallelism up to 4096 fits: shorten the context or add pipeline stages"
