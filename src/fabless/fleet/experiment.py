"""What a published serving number measured: static batch, closed loop, saturation and open loop are different experiments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from fabless.core.errors import InputError
from fabless.core.sources import table

if TYPE_CHECKING:
    from fabless.chip.chip import Chip
    from fabless.mapping.plan import Plan
    from fabless.model.model import Model
    from fabless.model.step import Recipe, Speculation


@dataclass(frozen=True, slots=True)
class Software:
    """Describe a generation of serving software by a few physically named parameters (rows of data/software.toml).

    `step_overhead_s`: host time per engine step that the accelerator waits for (scheduling, sampling, input preparation).
    `layer_overhead_s`: accelerator time per layer outside the modelled kernels (launch gaps, unfused small kernels, synchronisation).
    `host_layer_s`: host time to launch one layer's kernels one by one; a step cannot be shorter (0 where graphs are captured).
    `prompt_kernel_s`: host time per kernel of steps that take in prompts, whose varying shapes graphs do not capture; a floor as well.
    `sequence_overhead_s`: host time per running sequence and step (sampling, detokenisation).
    `request_overhead_s`: time of a request outside the engine until its first token (HTTP, tokenisation, first schedule).
    `launch_time_ratio`: gap between two kernels over that of separate calls (captured graphs and programmatic launches hide most of it).
    `dense_time_ratio`: time of all products and elementwise work outside attention and experts over the modelled kernels (compilers that
    stream weights less well than the libraries that the chip's calibration stands for). `expert_time_ratio`: the same of routed experts that
    stream their weights (tokens crowd on fewer experts than a uniform router would touch). `expert_product_ratio`: least time of grouped
    expert products over the chip's peak rate (imbalance, permutation, untuned kernels); `dequantised_product_ratio`: the same where the chip
    must widen the weights first. `routed_passes`: passes over the routed tokens' values that sort, copy and merge them around grouped kernels.
    `exchange_time_ratio`: collectives (overlap, other algorithms). `attention_time_ratio`: attention (static
    buckets, replicated heads). `prefill_time_ratio`: prompt steps on top of these (eager launches, block scales).
    `memory_ratio`: share of a chip's memory that weights, caches and activations may fill.
    `step_tokens`: most tokens that one step takes in. `max_sequences`: most sequences that run together.
    `mixes`: prefill chunks and decodes share a step; else prefills run alone and decodes wait.
    `prefills_together`: a static batch's prompts are one pass (else one by one, and the first is what TTFT states).
    `cache_tokens`: tokens of KV cache of a replica where a run's log states them (None: what memory leaves).
    `reserves_output`: a request is admitted only when its whole answer fits the cache.
    """

    name: str
    step_overhead_s: float = 0.0
    layer_overhead_s: float = 0.0
    host_layer_s: float = 0.0
    prompt_kernel_s: float = 0.0
    sequence_overhead_s: float = 0.0
    request_overhead_s: float = 0.0
    launch_time_ratio: float = 1.0
    dense_time_ratio: float = 1.0
    expert_time_ratio: float = 1.0
    expert_product_ratio: float = 1.0
    routed_passes: float = 0.0
    dequantised_product_ratio: float = 1.0
    exchange_time_ratio: float = 1.0
    attention_time_ratio: float = 1.0
    prefill_time_ratio: float = 1.0
    memory_ratio: float = 0.9
    step_tokens: int = 8192
    max_sequences: int = 1024
    mixes: bool = True
    reserves_output: bool = False
    prefills_together: bool = True
    cache_tokens: int | None = None


_PARAMETERS = {
    "step_overhead_s": float, "layer_overhead_s": float, "host_layer_s": float, "prompt_kernel_s": float, "sequence_overhead_s": float,
    "request_overhead_s": float, "launch_time_ratio": float, "dense_time_ratio": float, "expert_time_ratio": float,
    "expert_product_ratio": float, "routed_passes": float, "dequantised_product_ratio": float, "exchange_time_ratio": float, "attention_time_ratio": float,
    "prefill_time_ratio": float, "memory_ratio": float, "step_tokens": int, "max_sequences": int, "mixes": bool, "reserves_output": bool,
    "prefills_together": bool,
}  # fmt: skip


def software_parameters() -> tuple[str, ...]:
    """Return the parameters that are fitted on measurements: overheads and ratios of time, not limits."""
    return tuple(
        name for name in _PARAMETERS if name.endswith(("overhead_s", "_layer_s", "_kernel_s", "time_ratio", "product_ratio", "_passes"))
    )


@cache
def software_named(generation: str) -> Software:
    """Return a software generation by its id in data/software.toml; parameters that it does not state are those of "transfer"."""
    facts = table("software")
    rows = {str(f.attributes["parameter"]): f for f in facts.select(generation="transfer")}
    own = facts.select(generation=generation)
    if not own:
        known = sorted({str(f.attributes["generation"]) for f in facts if "generation" in f.attributes})
        raise InputError(f"no software generation '{generation}' in data/software.toml; known: {', '.join(known)}")
    rows |= {str(f.attributes["parameter"]): f for f in own}
    return Software(generation, **{name: kind(rows[name].known) for name, kind in _PARAMETERS.items() if name in rows})


@dataclass(frozen=True, slots=True)
class Deployment:
    """Say what serves: a model in a recipe on `n_replicas` replicas of `plan` on a chip under a software generation.

    `speculation` applies to every decode step; `power_capped` tells that a power cap slows compute-bound phases.
    """

    model: Model
    recipe: Recipe
    chip: Chip
    plan: Plan
    software: Software
    n_replicas: int = 1
    speculation: Speculation | None = None
    power_capped: bool = False


@dataclass(frozen=True, slots=True)
class Lengths:
    """Hold mean prompt and answer length in tokens and their coefficients of variation (0: all alike); lengths are gamma distributed."""

    input_tokens: float
    output_tokens: float
    input_cv: float = 0.0
    output_cv: float = 0.0
    beams: int = 1  # sequences that beam search decodes per request


@dataclass(frozen=True, slots=True)
class StaticBatch:
    """Run `batch` sequences together: all prefilled at once, then decoded in lockstep."""

    batch: int
    lengths: Lengths


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Keep `concurrency` requests in flight over the whole deployment, `waves` times that many in all; each end starts the next."""

    concurrency: int
    lengths: Lengths
    waves: float = 10.0


@dataclass(frozen=True, slots=True)
class Saturated:
    """Queue all requests at once and count output tokens per second (offline)."""

    lengths: Lengths


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Let requests arrive at random at `rate_per_s`; None: at the highest rate that keeps the 99th percentiles under the limits."""

    lengths: Lengths
    rate_per_s: float | None = None
    ttft_limit_s: float = float("inf")
    tpot_limit_s: float = float("inf")
    n_requests: int = 1000


Experiment = StaticBatch | ClosedLoop | Saturated | OpenLoop


@dataclass(frozen=True, slots=True)
class Outcome:
    """Hold what an experiment yields for the whole deployment: latencies of a request in seconds, and sustained rates."""

    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_mean_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    output_tokens_per_s: float
    requests_per_s: float
    batch: float = 0.0
    ttft_p90_s: float = 0.0
    ttft_p95_s: float = 0.0
    tpot_p90_s: float = 0.0
    tpot_p95_s: float = 0.0
    e2e_mean_s: float = 0.0
    e2e_p50_s: float = 0.0
    e2e_p90_s: float = 0.0
    e2e_p95_s: float = 0.0
    e2e_p99_s: float = 0.0
