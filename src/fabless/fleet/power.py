"""Average power of a chip while it serves: what it burns when active, and what arithmetic and memory traffic add."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from fabless.core.sources import table
from fabless.mapping.parallel import partition
from fabless.model.graph import Attention, Gemm, Scan
from fabless.model.step import Step
from fabless.number.formats import BF16

if TYPE_CHECKING:
    from fabless.fleet.experiment import StaticBatch
    from fabless.fleet.step_times import SteppedDeployment


def utilisations(steps: SteppedDeployment, step: Step, seconds: float) -> tuple[float, float]:
    """Return (multiply-accumulates, bytes of weights and caches) per second of one chip over its peaks, for a step that takes `seconds`."""
    d = steps.deployment
    share = partition(steps.surface.lower(step), d.plan)
    macs = sum(op.macs for op in share.ops if isinstance(op, (Gemm, Attention, Scan))) / d.plan.pipeline
    moved = sum(op.weight_bytes for op in share.ops if isinstance(op, Gemm))
    moved += sum(op.kv_read_bytes + op.kv_write_bytes for op in share.ops if isinstance(op, Attention))
    wide = d.recipe.activations if d.recipe.activations.bits_per_value >= 8 else BF16
    peak = d.chip.peak_macs_per_s(wide), d.chip.dram.bandwidth_bytes_per_s
    return macs / seconds / peak[0], moved / d.plan.pipeline / seconds / peak[1]


def average_power_ratio(steps: SteppedDeployment, experiment: StaticBatch) -> float:
    """Return the mean power of a chip over a static batch's prefill and decode, as a share of its TDP.

    power / TDP = active + matrix x (share of peak arithmetic) + memory x (share of peak bandwidth), at most 1; both shares are averages over the
    run. Active: clocks, leakage and launches of a chip that has work. Source: rows of data/power_calibration.toml.
    """
    lengths, d = experiment.lengths, steps.deployment
    batch = max(1, ceil(experiment.batch / d.n_replicas))
    prompt, answer = int(lengths.input_tokens), max(int(lengths.output_tokens), 1)
    prefill_s = steps.prompt_s(batch, prompt)
    token_s = steps.decode_s(batch, prompt + answer / 2)
    total_s = prefill_s + (answer - 1) * token_s
    of_prefill = utilisations(steps, Step.prefill(batch, prompt), prefill_s)
    of_decode = utilisations(steps, Step.decode(batch, prompt + answer // 2), token_s)
    share = prefill_s / total_s
    matrix, memory = (share * p + (1 - share) * d_ for p, d_ in zip(of_prefill, of_decode, strict=True))
    facts = table("power_calibration")
    active, per_matrix, per_memory = (facts.fact(id).known for id in ("active_ratio", "matrix_ratio", "memory_ratio"))
    return min(1.0, active + per_matrix * matrix + per_memory * memory)
