"""Fit the overheads of each software generation over all of its rows by random search; writes data/software.toml.

    python bench/fit_serving.py ../shared/data/silicon/measured.csv [generation ...]

Objective: per kind of number (TPOT, TTFT, throughput...), the mean over deployments of the median |ln(predicted / measured)|, so that a
source with many rows does not outweigh one with few. No parameter is per row or per model.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from fabless.fleet.experiment import Outcome, software_named
from fabless.validate import predict
from fabless.validate.meaning import SkipError, case_of
from fabless.validate.predict import Predictor
from fabless.validate.rows import read_rows
from fabless.validate.validation import kind_of

#: Weight of a kind in the objective; kinds that are not listed do not take part.
WEIGHTS = {"tpot": 2.0, "ttft": 1.0, "ttft_queued": 0.7, "offline": 1.0, "server": 0.3, "throughput": 0.5, "tpot_open": 0.3}
#: What a first token's time depends on beyond decode steps: fitted last, on runs (`--runs`).
FIRST_TOKEN = ["request_overhead_s", "prompt_kernel_s", "prefill_time_ratio"]
#: Kinds that the quick prediction serves; queued first tokens are fitted afterwards on runs.
QUICK = ("tpot", "ttft", "ttft_queued", "offline", "throughput")
BOUNDS = {
    "step_overhead_s": (0.0, 2e-2),
    "layer_overhead_s": (0.0, 3e-4),
    "sequence_overhead_s": (0.0, 3e-4),
    "request_overhead_s": (0.0, 1e-1),
    "host_layer_s": (0.0, 6e-4),
    "launch_time_ratio": (0.0, 1.5),
    "prompt_kernel_s": (0.0, 3e-4),
    "dense_time_ratio": (0.8, 2.5),
    "expert_time_ratio": (0.5, 4.0),
    "routed_passes": (0.0, 20.0),
    "expert_product_ratio": (1.0, 8.0),
    "dequantised_product_ratio": (1.0, 12.0),
    "exchange_time_ratio": (0.2, 3.0),
    "attention_time_ratio": (0.8, 4.0),
    "prefill_time_ratio": (0.85, 4.0),
}


def load(path: Path):
    cases = defaultdict(list)
    for row in read_rows(path, lenient=True).rows:
        try:
            case = case_of(row)
        except SkipError:
            continue
        if kind_of(row) in WEIGHTS and case.outcome != "average_power_ratio":
            cases[case.deployment.software.name].append((row, case))
    return cases


def thinned(pairs, most=120):
    """Return the rows of an even choice of experiments: a search needs no more, the check afterwards takes all."""
    keys = {row.id: (str(case.deployment.plan), case.deployment.model.name, repr(case.experiment)) for row, case in pairs}
    distinct = sorted(set(keys.values()), key=lambda key: zlib.crc32(repr(key).encode()))
    kept = set(distinct[:most])
    return [(row, case) for row, case in pairs if keys[row.id] in kept]


def score(pairs, software, predictor):
    groups = defaultdict(list)
    for row, case in pairs:
        changed = replace(case, deployment=replace(case.deployment, software=software))
        try:
            value = predictor.predict(changed)
        except SkipError:
            groups[kind_of(row), "skip"].append(1.5)
            continue
        groups[kind_of(row), (case.deployment.model.name, case.deployment.chip.name, row.precision)].append(abs(np.log(value / row.value)))
    by_kind = defaultdict(list)
    for (kind, _), errors in groups.items():
        by_kind[kind].append((np.median(errors) * 0.7 + 0.3 * min(np.mean(errors), 1.0), len(errors) ** 0.5))
    total = weight = 0.0
    for kind, parts in by_kind.items():
        values, sizes = zip(*parts, strict=True)
        total += WEIGHTS[kind] * np.average(np.minimum(values, 0.8), weights=sizes)
        weight += WEIGHTS[kind]
    return total / weight


class Quick(Predictor):
    """Predict closed loops without running them: a step of `b` decodes, and one step in which each prompt comes in, per answer."""

    def _closed(self, experiment, deployment):
        steps, lengths = self.steps_of(deployment), experiment.lengths
        host, n = deployment.software, lengths.output_tokens
        policy = predict._policy(steps, lengths)
        held = lengths.input_tokens + (n if host.reserves_output else n / 2)
        b = max(1.0, min(np.ceil(experiment.concurrency / deployment.n_replicas), policy.cache_tokens / held, policy.max_sequences))
        decode = steps.decode_s(b, lengths.input_tokens + n / 2)
        whole = lengths.input_tokens
        prompt = steps.prompt_s(1, whole)
        if host.mixes:
            attention = decode - steps.decode_s(b, 0)
            parts = max(1.0, np.ceil(whole / max(policy.step_tokens - b, 1)))
            mixed = parts * (steps.prefill_s(whole / parts, round(b)) + attention) + steps.prompt_attention_s(whole)
            token = decode + (b - 1) / n * max(mixed - parts * decode, 0.0)
        else:
            token = decode + (b - 1) / n * prompt
        own = steps.prefill_s(whole, round(b) if host.mixes else 0) + steps.prompt_attention_s(whole)
        load = min(b * prompt / (n * token + prompt), 0.95)
        burst = prompt * (np.ceil(experiment.concurrency / deployment.n_replicas) - 1) / 2 / experiment.waves
        first = max(own, prompt) * (1 + load / 2 / (1 - load)) + decode / 2 + burst + host.request_overhead_s
        rate = b / (n * token + first)
        first += max(experiment.concurrency / deployment.n_replicas - b, 0.0) / rate
        return Outcome(first, first, first, token, token, token, rate * n, rate, b)

    def _open(self, experiment, deployment):
        raise SkipError("not in a search")


def distance(software, other, names):
    """Return the squared distance of two sets of parameters, in e-folds; values below 2% of a bound count as that."""
    least = {name: 0.02 * BOUNDS[name][1] for name in names}
    return sum(np.log((getattr(software, name) + least[name]) / (getattr(other, name) + least[name])) ** 2 for name in names)


def fit(pairs, generation, names, trials, *, say=True, runs=False, pooling=0.0):
    """Search at random around the best so far, one to three parameters at a time: overheads and rates trade against each other.

    `runs` predicts closed loops by running them, on a thinned choice of experiments: for the parameters that first tokens depend on.
    `pooling` starts at the parameters of software that nobody measured and charges this much per squared e-fold away from them (partial
    pooling): what the rows do not tell stays there.
    """
    rng = np.random.default_rng(7)
    software = software_named(generation)
    general = software_named("transfer")
    if pooling:
        software = replace(software, **{name: getattr(general, name) for name in names})
    predictor = Predictor() if runs else Quick()
    pairs = (
        thinned([(row, case) for row, case in pairs if kind_of(row) in QUICK])
        if runs
        else [(r, c) for r, c in pairs if kind_of(r) in QUICK]
    )

    def loss(candidate):
        return score(pairs, candidate, predictor) + (pooling * distance(candidate, general, names) if pooling else 0.0)

    best = start = loss(software)
    width = 0.5
    for trial in range(trials):
        changed = {}
        for name in rng.choice(names, size=rng.integers(1, 4), replace=False):
            low, high = BOUNDS[name]
            now = getattr(software, name)
            drawn = now * np.exp(rng.normal(0, width)) if now > 0 and rng.random() > 0.1 else rng.uniform(low, high) * rng.random()
            changed[str(name)] = float(np.clip(drawn, low, high))
        candidate = replace(software, **changed)
        found = loss(candidate)
        if found < best - 1e-6:
            best, software = found, candidate
        predictor._steps.clear()
        predictor._outcomes.clear()
        width = 0.5 * 0.2 ** (trial / trials)
    if say:
        print(
            f"{generation}: {len(pairs)} rows, {start:.4f} -> {best:.4f} " + " ".join(f"{n}={getattr(software, n):.3g}" for n in names),
            flush=True,
        )
    return software, best


DEFAULT = (
    "launch_time_ratio", "layer_overhead_s", "step_overhead_s", "dense_time_ratio", "expert_time_ratio", "expert_product_ratio",
    "routed_passes", "dequantised_product_ratio", "exchange_time_ratio", "attention_time_ratio", "prefill_time_ratio",
    "sequence_overhead_s", "request_overhead_s", "prompt_kernel_s",
)  # fmt: skip

#: Parameters that a generation's rows cannot tell, left at the transfer value or 1.
FIXED = {
    "vllm_2023": (
        "prompt_kernel_s",
        "expert_product_ratio",
        "dequantised_product_ratio",
        "launch_time_ratio",
        "expert_time_ratio",
        "dense_time_ratio",
    ),
    "neuron_2": (
        "prompt_kernel_s",
        "expert_time_ratio",
        "routed_passes",
        "expert_product_ratio",
        "dequantised_product_ratio",
        "launch_time_ratio",
    ),
    "tt_metal": (
        "prompt_kernel_s",
        "expert_product_ratio",
        "dequantised_product_ratio",
        "launch_time_ratio",
    ),
}


def names_of(generation):
    return [n for n in DEFAULT if n not in FIXED.get(generation, ())] + (["host_layer_s"] if generation == "vllm_2023" else [])


#: Charge per squared e-fold from the pooled parameters when a chip or model is left out (see `fit`).
POOLING = 0.02


def leave_out(table, kind, trials, generations):
    """Yield (generation, chip or model, parameters) fitted on the rows of all others."""
    for generation in generations:
        pairs = table[generation]

        def key(case):
            return case.deployment.chip.name if kind == "chip" else case.deployment.model.name

        for name in sorted({key(case) for _, case in pairs}):
            rest = [(row, case) for row, case in pairs if key(case) != name]
            if len(rest) < 8:
                continue
            names = names_of(generation)
            pooling = 0.0 if "host_layer_s" in names else POOLING  # the pool captures graphs: no prior for software that does not
            software, best = fit(rest, generation, names, trials, say=False, pooling=pooling)
            print(f"# {generation} without {name}: {len(rest)} rows, {best:.4f}", flush=True)
            yield generation, name, {n: getattr(software, n) for n in names}


if __name__ == "__main__":
    predict._MOST_REQUESTS, predict._MOST_OPEN = 200, 800  # a coarser run serves a search
    table = load(Path(sys.argv[1]))
    trials = int(sys.argv[2])
    chosen = [g for g in sys.argv[3:] if not g.startswith("--")] or sorted(table)
    for kind in ("chip", "model"):
        if f"--leave-out={kind}" in sys.argv:
            for generation, name, values in leave_out(table, kind, trials, chosen):
                print(json.dumps({"generation": generation, kind: name, "values": values}), flush=True)
            sys.exit()
    runs = "--runs" in sys.argv
    for generation in chosen:
        names = FIRST_TOKEN if runs else names_of(generation)
        software, _ = fit(table[generation], generation, names, trials, runs=runs)
        print(json.dumps({generation: {name: getattr(software, name) for name in names}}), flush=True)
