"""One model on many chips under one plan, for every batch: times, capacity, energy and money as arrays `[n_batches, n_chips]`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fabless.explore.traffic import normal_score
from fabless.fleet import capacity
from fabless.mapping.parallel import partition
from fabless.model.step import Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.explore.hardware import Energies
    from fabless.explore.study import Study, Workload
    from fabless.mapping.plan import Plan
    from fabless.model.graph import Graph
    from fabless.model.step import Recipe

    Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Steps:
    """Hold the graphs that describe a service on a plan: decode at the mean and at the high context for each batch, prefill of a mean and a long prompt.

    `batches` are sequences in flight over all pipeline stages; `memory_bytes` `[n_batches]` is resident on the fullest chip.
    """

    batches: NDArray[np.int64]
    passes: NDArray[np.int64]
    mean: tuple[Graph, ...]
    high: tuple[Graph, ...]
    prefill: tuple[Graph, Graph]
    prompt_tokens: tuple[float, float]
    memory_bytes: Array


@dataclass(frozen=True, slots=True)
class Served:
    """Hold how a service runs, all arrays `[n_batches, n_chips]`; `memory_bytes` `[n_batches, 1]`.

    `requests_per_s` is one replica's; `j_per_request` dynamic energy; `period_s` the mean time between tokens, `tpot_s` and `ttft_s` at the SLO's quantile.
    """

    steps: Steps
    requests_per_s: Array
    period_s: Array
    tpot_s: Array
    ttft_s: Array
    prefill_share: Array
    j_per_request: Array
    memory_bytes: Array


@lru_cache(maxsize=4096)
def graph_of(model: str, recipe: Recipe, step: Step) -> Graph:
    """Lower one step of a catalogue model (or the path of one); the arguments are values, so that the cache cannot go stale within a run."""
    from fabless.model.load import load
    from fabless.model.lower import lower

    return lower(load(model), recipe, step)


@lru_cache(maxsize=512)
def steps_of(study: Study, workload: Workload, recipe: Recipe, plan: Plan) -> Steps | None:
    """Lower the steps of a service on a plan; None when no batch divides over its pipeline stages and data replicas."""
    lengths, model = study.demand.lengths, workload.model
    batches = [b for b in study.batches if b % plan.pipeline == 0 and b >= plan.pipeline * plan.data]
    if not batches:
        return None
    contexts = capacity.batch_context(lengths, batches, normal_score(study.slo.quantile))
    mean = tuple(graph_of(model, recipe, Step.decode(b // plan.pipeline, round(lengths.in_flight_mean))) for b in batches)
    high = tuple(
        graph_of(model, recipe, Step.decode(b // plan.pipeline, max(1, round(float(c))))) for b, c in zip(batches, contexts, strict=True)
    )
    prompts = (lengths.input_mean, max(lengths.input_quantile, lengths.input_mean))
    prefill = tuple(graph_of(model, recipe, _prefill(tokens, plan.data, study.demand.prefix_hit_ratio)) for tokens in prompts)
    shares = [partition(g, plan) for g in high]
    working = max(partition(g, plan).activation_bytes for g in prefill)
    memory = [s.weight_bytes + plan.pipeline * s.kv_bytes + max(s.activation_bytes, working) for s in shares]
    passes = np.array(batches) // plan.pipeline
    return Steps(np.array(batches), passes, mean, high, (prefill[0], prefill[1]), prompts, np.array(memory))


def _prefill(tokens: float, prompts: int, hit_ratio: float) -> Step:
    """Read one prompt per data replica, the cached part of each prefix left out."""
    new = max(1, round(tokens * (1 - hit_ratio)))
    return Step.prefill(prompts, new, cached_tokens=max(0, round(tokens) - new))


def serve(study: Study, steps: Steps, plan: Plan, energies: Energies, realised_ratio: float) -> Served:
    """Time a service on many chips; seconds are the roofline's over `realised_ratio`, infinite where a chip lacks a format."""
    from fabless.sim.roofline import estimate_many

    n, lengths = len(steps.batches), study.demand.lengths
    estimates = estimate_many((*steps.mean, *steps.high, *steps.prefill), energies.chips, plan)
    latency, stage = estimates.latency_s / realised_ratio, estimates.stage_s / realised_ratio
    round_trip = np.maximum(latency, plan.pipeline * stage)
    joules = energies.dynamic_j(estimates)
    decode_steps = max(lengths.output_mean - 1.0, 1.0)
    batch = steps.batches[:, None].astype(np.float64)
    prefill = capacity.mean_prefill_s(
        stage[2 * n] / plan.data,
        stage[2 * n + 1] / plan.data,
        steps.prompt_tokens,
        mean=lengths.input_mean,
        mean_square=lengths.input_mean_square,
    )[None, :]
    with np.errstate(invalid="ignore"):
        rate = capacity.request_rate_per_s(round_trip[:n], prefill, batch, decode_steps)
        period = capacity.token_period_s(round_trip[:n], prefill, batch, decode_steps)
        high_period = capacity.token_period_s(round_trip[n : 2 * n], prefill, batch, decode_steps)
        ttft = capacity.ttft_s(
            rate,
            prefill,
            lengths.input_mean_square / lengths.input_mean**2,
            step_s=round_trip[n : 2 * n],
            long_prefill_s=latency[2 * n + 1],
            quantile=study.slo.quantile,
        )
        share = rate * prefill
    decode_j = joules[:n] / steps.passes[:, None] * decode_steps
    prefill_j = joules[2 * n] / plan.data
    return Served(steps, rate, period, high_period, ttft, share, decode_j + prefill_j, steps.memory_bytes[:, None])
