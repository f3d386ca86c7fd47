"""Predict what a case measured: each kind of experiment by its own small model, on steps that the estimate has timed."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import FablessError
from fabless.fleet.experiment import ClosedLoop, OpenLoop, Outcome, Saturated, StaticBatch
from fabless.fleet.steady import Policy, Requests, serve
from fabless.fleet.step_times import SteppedDeployment, Surface
from fabless.validate.meaning import SkipError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.fleet.experiment import Deployment, Experiment, Lengths
    from fabless.fleet.steady import Served
    from fabless.validate.meaning import Case

    Floats = NDArray[np.float64]

_SEED = 20261122
_MOST_REQUESTS = 800  # of one closed-loop run; more waves are weighted, not run
_OPEN_REQUESTS = 400
_MOST_OPEN = 2400
_BISECTIONS = 5


class Predictor:
    """Predict cases, keeping the timed steps of each deployment and the outcome of each experiment for the rows that share them."""

    def __init__(self) -> None:
        self._surfaces: dict[tuple[object, ...], Surface] = {}
        self._steps: dict[Deployment, SteppedDeployment] = {}
        self._outcomes: dict[tuple[Deployment, Experiment], Outcome | SkipError] = {}

    def steps_of(self, deployment: Deployment) -> SteppedDeployment:
        """Return the timed steps of a deployment."""
        if deployment not in self._steps:
            d = deployment
            key = d.model.name, d.recipe, d.chip, d.plan, d.speculation
            if key not in self._surfaces:
                self._surfaces[key] = Surface(d.model, d.recipe, d.chip, d.plan, d.speculation)
            self._steps[deployment] = SteppedDeployment(deployment, self._surfaces[key])
        return self._steps[deployment]

    def predict(self, case: Case) -> float:
        """Return the predicted number of a row in SI; raises `SkipError` with the reason where the deployment cannot run."""
        if case.outcome == "average_power_ratio":
            return self._power(case)
        outcome = self.outcome(case.deployment, case.experiment)
        value = _read(outcome, case)
        if not value > 0:
            raise SkipError("answers of one token have no time per further token")
        return value / case.n_chips if case.per_chip else value

    def outcome(self, deployment: Deployment, experiment: Experiment) -> Outcome:
        """Return the outcome of an experiment on a deployment."""
        key = deployment, experiment
        if key not in self._outcomes:
            try:
                self._outcomes[key] = self._run(experiment, deployment)
            except FablessError as error:
                self._outcomes[key] = SkipError(f"cannot run: {_short(error)}")
        found = self._outcomes[key]
        if isinstance(found, SkipError):
            raise found
        return found

    def _power(self, case: Case) -> float:
        from fabless.fleet.power import average_power_ratio

        if not isinstance(case.experiment, StaticBatch):
            raise SkipError("no power model for this kind of experiment")
        try:
            return average_power_ratio(self.steps_of(case.deployment), case.experiment)
        except FablessError as error:
            raise SkipError(f"cannot run: {_short(error)}") from None

    def _run(self, experiment: Experiment, deployment: Deployment) -> Outcome:
        match experiment:
            case StaticBatch():
                return self._static(experiment, deployment)
            case ClosedLoop():
                return self._closed(experiment, deployment)
            case Saturated():
                return saturated(self.steps_of(deployment), experiment.lengths)
            case OpenLoop():
                return self._open(experiment, deployment)

    def _static(self, experiment: StaticBatch, deployment: Deployment) -> Outcome:
        steps = self.steps_of(deployment)
        lengths, host = experiment.lengths, deployment.software
        batch = ceil(experiment.batch / deployment.n_replicas)
        together = batch if host.prefills_together else 1
        first_s = steps.prompt_s(together, lengths.input_tokens) + host.request_overhead_s
        if deployment.model.encoder:
            rate = experiment.batch / first_s
            return Outcome(first_s, first_s, first_s, first_s, first_s, first_s, rate, rate, batch)
        middle = lengths.input_tokens + lengths.output_tokens / 2
        token_s = steps.decode_s(batch, middle)
        whole_s = first_s + (lengths.output_tokens - 1) * token_s
        if lengths.output_tokens <= 1:  # a rate of decode steps alone: the source counts no prefill
            whole_s = token_s
        rate = experiment.batch / whole_s
        return Outcome(
            first_s, first_s, first_s, token_s, token_s, token_s, rate * lengths.output_tokens, rate, batch,
            first_s, first_s, token_s, token_s, whole_s, whole_s, whole_s, whole_s, whole_s,
        )  # fmt: skip

    def _closed(self, experiment: ClosedLoop, deployment: Deployment) -> Outcome:
        steps = self.steps_of(deployment)
        concurrency = max(1, ceil(experiment.concurrency / deployment.n_replicas))
        n = max(min(round(experiment.waves * concurrency), _MOST_REQUESTS), 3 * concurrency)
        inputs, outputs = _draw(experiment.lengths, n)
        think_s = deployment.software.request_overhead_s
        served = serve(Requests(inputs, outputs), concurrency, steps, _policy(steps, experiment.lengths), think_s=think_s)
        weights = np.full(n, (experiment.waves - 1) * concurrency / max(n - concurrency, 1))
        weights[:concurrency] = 1.0
        rate = _steady_rate(served) * deployment.n_replicas
        return _outcome(served, outputs, weights, rate, deployment)

    def _open(self, experiment: OpenLoop, deployment: Deployment) -> Outcome:
        steps = self.steps_of(deployment)
        if experiment.rate_per_s is not None:
            served, outputs = _poisson(steps, experiment, experiment.rate_per_s / deployment.n_replicas, experiment.n_requests)
            return _outcome(served, outputs, np.ones(len(outputs)), experiment.rate_per_s, deployment)
        return self._open_at_limit(steps, experiment, deployment)

    def _open_at_limit(self, steps: SteppedDeployment, experiment: OpenLoop, deployment: Deployment) -> Outcome:
        """Bisect for the highest arrival rate that keeps both limits at the 99th percentile."""
        full = saturated(steps, experiment.lengths)
        if experiment.lengths.beams > 1:
            return full  # beams end together and the limit of the one benchmark that has them never binds
        most, in_flight = full.requests_per_s / deployment.n_replicas, full.batch
        n, warm = round(min(_OPEN_REQUESTS + 3 * in_flight, _MOST_OPEN)), round(min(2 * in_flight, _MOST_OPEN / 2))
        low, high = 0.02 * most, most
        best: tuple[Served, Floats] | None = None
        for _ in range(_BISECTIONS):
            rate = (low + high) / 2
            served, outputs = _poisson(steps, experiment, rate, n)
            late = served.ttft_s[warm:] + deployment.software.request_overhead_s, served.tpot_s(outputs)[warm:]
            ttft, tpot = (np.quantile(x, 0.99) for x in late)
            if ttft <= experiment.ttft_limit_s and tpot <= experiment.tpot_limit_s:
                low, best = rate, (served, outputs)
            else:
                high = rate
        if best is None:
            raise SkipError("cannot run: no arrival rate keeps the benchmark's latency limits")
        served, outputs = best
        weights = np.where(np.arange(n) < warm, 0.0, 1.0)
        return _outcome(served, outputs, weights, low * deployment.n_replicas, deployment)


def saturated(steps: SteppedDeployment, lengths: Lengths) -> Outcome:
    """Return the steady state of a deployment with requests always waiting, by the fixed point of batch, step time and prompt intake.

    A step emits a token of each of `b` sequences; meanwhile `b / n` requests end and as many prompts are taken in. Where prompts mix with
    decodes, every step carries `b (1 + input / n)` rows, which `step_tokens` bounds; else prompts run alone between decode steps. The cache
    bounds `b` by whole requests where the software reserves answers, by mean contexts otherwise. A pipeline keeps one batch per stage.
    """
    d = steps.deployment
    host, n = d.software, lengths.output_tokens
    beams = lengths.beams
    held = lengths.input_tokens + beams * (n if host.reserves_output else n * (1 + lengths.output_cv**2) / 2)
    middle = lengths.input_tokens + n * (1 + lengths.output_cv**2) / 2
    cached = steps.cache_tokens(middle)
    stages = d.plan.pipeline
    batch = max(1.0, min(cached / held, host.max_sequences * d.plan.data)) / stages
    per_step = beams + lengths.input_tokens / n
    if host.mixes:
        batch = min(batch, host.step_tokens * d.plan.data / per_step)
        intake = batch * lengths.input_tokens / n
        decode_s = steps.decode_s(batch * beams, middle)
        attention_s = decode_s - steps.decode_s(batch * beams, 0)
        token_s = steps.prefill_s(intake, round(batch * beams)) + attention_s + batch / n * steps.prompt_attention_s(lengths.input_tokens)
        token_s = max(token_s, decode_s)
        rate = batch / token_s
    else:
        decode_s = steps.decode_s(batch * beams, middle)
        token_s = decode_s + batch / n * steps.prompt_s(1, lengths.input_tokens)
        rate = batch / token_s
    rate *= d.n_replicas * stages
    return Outcome(0, 0, 0, token_s, token_s, token_s, rate, rate / n, batch * stages)


def _policy(steps: SteppedDeployment, lengths: Lengths) -> Policy:
    d = steps.deployment
    host = d.software
    cached = steps.cache_tokens(lengths.input_tokens + lengths.output_tokens / 2)
    return Policy(host.step_tokens * d.plan.data, host.max_sequences * d.plan.data, cached, host.mixes, host.reserves_output)


def _draw(lengths: Lengths, n: int) -> tuple[Floats, Floats]:
    """Return whole-numbered prompt and answer lengths of `n` requests."""
    rng = np.random.default_rng(_SEED)
    return _gamma(rng, lengths.input_tokens, lengths.input_cv, n), _gamma(rng, lengths.output_tokens, lengths.output_cv, n)


def _gamma(rng: np.random.Generator, mean: float, cv: float, n: int) -> Floats:
    values = np.full(n, mean) if cv == 0 else rng.gamma(1 / cv**2, mean * cv**2, n)
    return np.maximum(np.round(values), 1.0)


def _poisson(steps: SteppedDeployment, experiment: OpenLoop, rate_per_s: float, n: int) -> tuple[Served, Floats]:
    rng = np.random.default_rng(_SEED + 1)
    arrivals = np.cumsum(rng.exponential(1 / rate_per_s, n))
    inputs, outputs = _draw(experiment.lengths, n)
    policy = _policy(steps, experiment.lengths)
    most = policy.cache_tokens
    inputs = np.minimum(inputs, most / 2)
    outputs = np.minimum(outputs, most / 2 - 1)
    return serve(Requests(inputs, outputs, arrivals), policy.max_sequences, steps, policy), outputs


def _steady_rate(served: Served) -> float:
    """Return requests ended per second over the whole run, as load generators report it."""
    return len(served.end_s) / float(served.end_s.max() - served.arrival_s.min())


def _outcome(served: Served, outputs: Floats, weights: Floats, rate: float, deployment: Deployment) -> Outcome:
    ttft = served.ttft_s + deployment.software.request_overhead_s
    tpot = served.tpot_s(outputs)
    e2e = served.end_s - served.arrival_s + deployment.software.request_overhead_s
    q = _quantiles
    t, p, w = q(ttft, weights), q(tpot, weights), q(e2e, weights)
    return Outcome(
        _mean(ttft, weights), t[0], t[3], _mean(tpot, weights), p[0], p[3], rate * float(outputs.mean()), rate, served.mean_batch,
        t[1], t[2], p[1], p[2], _mean(e2e, weights), *w,
    )  # fmt: skip


def _mean(values: Floats, weights: Floats) -> float:
    return float(np.average(values, weights=weights))


def _quantiles(values: Floats, weights: Floats) -> tuple[float, ...]:
    order = np.argsort(values, kind="stable")
    share = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    return tuple(float(x) for x in np.interp((0.5, 0.9, 0.95, 0.99), share, values[order]))


def _read(outcome: Outcome, case: Case) -> float:
    name = case.outcome
    if name == "user_tokens_per_s":
        return 1 / outcome.tpot_p50_s if outcome.tpot_p50_s else 0.0
    if name == "peak_tokens_per_s":
        return max(outcome.output_tokens_per_s, outcome.batch / outcome.tpot_p50_s if outcome.tpot_p50_s else 0.0)
    if name.endswith("_typical_s"):
        name = name.replace("typical", typical(case))
    return float(getattr(outcome, name))


def typical(case: Case) -> str:
    """Return the statistic that a source means which does not say: load generators' headline is the mean of a run."""
    return "mean"


def _short(error: FablessError) -> str:
    text = str(error)
    return "memory too small for weights and cache" if "memory" in text or "cache" in text else text.partition(":")[0][:60]
