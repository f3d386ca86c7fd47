"""Read what a measured row means: which deployment ran which experiment, and which of its outcomes the number is."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from math import sqrt
from typing import TYPE_CHECKING

from fabless.core.errors import FablessError, InputError
from fabless.core.sources import table
from fabless.fleet.experiment import (
    ClosedLoop,
    Deployment,
    Lengths,
    OpenLoop,
    Saturated,
    Software,
    StaticBatch,
    software_named,
)
from fabless.mapping.plan import Plan
from fabless.model.step import Recipe
from fabless.number.formats import BF16, E4M3, FP16, MXFP4, MXFP6, NVFP4

if TYPE_CHECKING:
    from fabless.chip.chip import Chip
    from fabless.fleet.experiment import Experiment
    from fabless.model.model import Model
    from fabless.validate.rows import Row


class SkipError(Exception):
    """Say why a row has no prediction."""


@dataclass(frozen=True, slots=True)
class Case:
    """Hold the deployment and experiment behind a row, and the outcome that its number states (`per_chip`: divided by the chips)."""

    deployment: Deployment
    experiment: Experiment
    outcome: str
    n_chips: int
    metric: str
    per_chip: bool = False


# -- names ------------------------------------------------------------------------------------------------------------------------------


@cache
def chip_of(name: str) -> Chip:
    """Return the chip that a source's name means; raises `SkipError`."""
    from fabless.chip.catalogue import find_chip

    plain = re.sub(r"\(.*?\)", " ", name)
    plain = re.sub(r"(?i)\b(amd instinct|nvidia geforce|jetson)\b", lambda m: m.group(0).split()[-1], plain)
    for candidate in (name, re.sub(r"(?i)-?p(ower-?)?cap(ped)?$", "", name), plain.strip(), *_shortened(plain)):
        try:
            found = find_chip(candidate)
        except FablessError:
            continue
        if found is not None:
            return found
    raise SkipError(f"unknown chip: {name or '(empty)'}")


def _shortened(name: str) -> list[str]:
    """Return a chip's name with trailing memory sizes, board forms and bracketed remarks taken off one by one."""
    words = [w for w in re.split(r"[\s\-_]+", name.strip()) if w]
    return [" ".join(words[:n]) for n in range(len(words) - 1, 0, -1)]


@cache
def model_of(name: str) -> Model:
    """Return the model that a source's name means; raises `SkipError`."""
    from fabless.model.load import find_model

    plain = re.sub(r"\(.*?\)", " ", name).strip()
    without_target = re.sub(r"-99(\.9)?$", "", plain)  # MLPerf's accuracy target is no part of the model
    quantised = re.sub(r"(?i)[-_](nv)?(fp8|fp4|bf16|int8|w4a16|awq|gptq)(-kv)?$", "", without_target)
    for candidate in (
        name,
        plain,
        without_target,
        quantised,
        quantised.split("/")[-1],
        re.sub(r"(?i)-(chat|instruct|hf|it)$", "", quantised),
    ):
        try:
            found = find_model(candidate)
        except FablessError:
            continue
        if found is not None:
            return found
    raise SkipError(f"unknown model: {name or '(empty)'}")


# -- software ---------------------------------------------------------------------------------------------------------------------------

#: (pattern on the software text, generation in data/software.toml), first match wins.
_GENERATIONS: tuple[tuple[str, str], ...] = (
    (r"^(?-i:vLLM)$", "vllm_default"),  # InferenceX's sweeps of long inputs state no version: models served with default, untuned kernels
    (r"splitwise|vllm 2023|vllm v?0\.[0-3]\b", "vllm_2023"),
    (r"vllm.*tpu|tpu.*vllm", "vllm_tpu"),
    (r"vllm.*rocm|rocm.*vllm", "vllm_rocm"),
    (r"sglang", "sglang_2025"),
    (r"vllm v?0\.(1[3-9]|[2-9]\d)|vllm v?[1-9]\.", "vllm_2026"),
    (r"vllm", "vllm_2025"),
    (r"(tensorrt-llm|trtllm|trt-llm)[ -]?v?(0\.|1\.0|gpt-oss-dev)", "trtllm_1"),
    (r"tensorrt-llm|trtllm|trt-llm", "trtllm_2026"),
    (r"jetpack|tensorrt 1", "trtllm_mlperf"),
    (r"pytorch.*neuron|neuron 2\.2\d|torch-neuron", "neuron_encoder"),
    (r"neuron", "neuron_2"),
    (r"metalium|tt-metal|ttnn", "tt_metal"),
    (r"jetstream|maxtext|saxml", "jetstream"),
)


@cache
def generation_of(software: str, chip_family: str, phase: str) -> str:
    """Return the software generation of a row; MLPerf latency logs, which name none, ran their vendor's submission software."""
    for pattern, generation in _GENERATIONS:
        if re.search(f"(?i){pattern}" if "(?-i" not in pattern else pattern.replace("(?-i:", "(?:"), software):
            return generation
    if phase.startswith("mlperf"):
        return "vllm_rocm" if chip_family.startswith("amd") else "trtllm_mlperf" if chip_family.startswith("nvidia") else "transfer"
    return "transfer"


# -- parallelism ------------------------------------------------------------------------------------------------------------------------


def plan_of(row: Row, model: Model, chips: int | None) -> Plan | None:
    """Return the plan of one replica that the notes state, or None where they state none.

    Read: `tp=2 pp=1 attn_dp=1 moe_tp=1 moe_ep=2`, `TP8`, `TEP8` (tensor-parallel attention, expert-parallel experts), `DEP4` (data-parallel
    attention, expert-parallel experts), `PP2`, `tensor parallel 8`, `TP=24 NeuronCores` (cores, not chips: all chips of the instance).
    """
    text = f"{row.notes} {row.model}"
    stated = {key: int(value) for key, value in re.findall(r"\b(attn_dp|moe_tp|moe_ep|tp|pp)=(\d+)\b", text)}
    if "attn_dp" in stated or "pp" in stated:
        return _stated_plan(stated, model, chips)
    if re.search(r"TP=\d+ NeuronCores", text) or "uses TP" in text:
        return Plan(tensor=chips or 1)
    stages = re.search(r"\bPP(\d+)", text)
    pipeline = int(stages[1]) if stages else 1
    if found := re.search(r"\bDEP(\d+)", text):
        n = int(found[1])
        return Plan(tensor=1, data=n, expert=n if _is_moe(model) else 1, pipeline=pipeline)
    if found := re.search(r"\bTEP(\d+)", text):
        n = int(found[1])
        return Plan(tensor=n, expert=n if _is_moe(model) else 1, pipeline=pipeline)
    if found := re.search(r"\bTP=?(\d+)|tensor parallel (\d+)", text):
        return Plan(tensor=int(found[1] or found[2]), pipeline=pipeline)
    if re.search(r"\bDP=?(\d+)", text):
        return Plan()
    return None


def _stated_plan(stated: dict[str, int], model: Model, chips: int | None) -> Plan:
    tensor, data = max(stated.get("tp", 1), 1), max(stated.get("attn_dp", 1), 1)
    expert = max(stated.get("moe_ep", 1), 1) if _is_moe(model) else 1
    heads = max(model.n_query_heads, 1) if hasattr(model, "n_query_heads") else tensor
    if tensor > 8 and (heads % tensor or tensor > 16):  # wide expert parallelism: attention is replicated, experts are spread
        tensor, data, expert = 1, tensor, tensor
    if (tensor * data) % expert:
        expert = 1
    plan = Plan(tensor=tensor, data=data, expert=expert, pipeline=max(stated.get("pp", 1), 1))
    return plan if chips is None or plan.n_chips <= chips else replace(plan, data=1, expert=1)


def _is_moe(model: Model) -> bool:
    return model.expert_params > 0


# -- number formats ---------------------------------------------------------------------------------------------------------------------


def recipe_of(row: Row, model: Model, chip: Chip, cache_bits: int) -> Recipe:
    """Return the number formats behind a row's precision text.

    4-bit: NVFP4 weights and activations, but MXFP4 experts alone where that is how the model is published (gpt-oss), and experts alone where
    the published checkpoint leaves attention in bf16 (DeepSeek: latent attention). MLPerf rows that state fp16 name the reference weights:
    TensorRT submissions quantise to FP8, on Blackwell to NVFP4 (submitters' descriptions in the results repositories).
    `cache_bits`: KV cache of the software generation when weights are narrower than 16 bits.
    """
    text = row.precision.lower()
    mlperf = row.phase.startswith("mlperf")
    if mlperf and (text in ("", "fp16") or "fp16" in text):
        text = _submitted(chip)
    if model.architecture.lower().startswith("gptoss") or "gpt-oss" in model.name.lower() or "gpt_oss" in model.name.lower():
        return Recipe(experts=MXFP4, kv_cache=E4M3 if cache_bits == 8 else BF16)
    recipe = _named(text, model)
    if recipe.expert_weights.bits_per_value < 16 and cache_bits == 8:
        recipe = replace(recipe, kv_cache=E4M3)
    return recipe


def _named(text: str, model: Model) -> Recipe:
    if "int8" in text:
        return Recipe.named("int8/bf16")
    if "bfp8" in text or "bfp4" in text:
        return replace(Recipe.named("int8/bf16"), weights=MXFP6)  # 8.5 and 4.5 bits in unstated shares: 6.25 lies between
    if "fp4" in text:
        if _is_moe(model) and _is_latent(model):
            return Recipe(experts=NVFP4)
        return Recipe.named("nvfp4")
    if "fp8" in text:
        return Recipe.named("fp8")
    if "3-bit" in text:
        return Recipe.named("int4/bf16")
    return Recipe.named("fp16") if "fp16" in text else Recipe()


def _is_latent(model: Model) -> bool:
    from fabless.model.layers import Latent

    return any(isinstance(mixer, Latent) for _, layer in model.kinds for mixer in layer.mixers)


def _submitted(chip: Chip) -> str:
    """Return the format that MLPerf submissions on a chip use: the narrowest floating point that it multiplies, 8 bits at most on older parts."""
    for name in ("fp4", "fp8"):
        try:
            wide = chip.peak_macs_per_s(FP16)
            narrow = chip.peak_macs_per_s(NVFP4 if name == "fp4" else E4M3)
        except FablessError:
            continue
        if narrow > (3 if name == "fp4" else 1.5) * wide:
            return name
    return "fp16"


# -- experiments ------------------------------------------------------------------------------------------------------------------------

_QUANTILES = ("p50", "p90", "p95", "p99", "mean")


def experiment_of(row: Row, model: Model) -> Experiment:
    """Return the experiment behind a row; raises `SkipError` with the reason where none of the small models matches."""
    if row.phase.startswith("mlperf"):
        return _mlperf(row, model)
    lengths = _lengths(row)
    if row.phase == "serving" and row.concurrency is not None and row.load == "":
        low, waves = _client(row)
        mean = (1 + low) / 2  # lengths are uniform in [low * nominal, nominal]
        cv = (1 - low) / 2 / sqrt(3) / mean
        apart = max(cv, table("benchmarks").fact("client.fixed_output_cv").known)
        return ClosedLoop(row.concurrency, Lengths(lengths.input_tokens * mean, lengths.output_tokens * mean, cv, apart), waves)
    if row.phase in ("prefill", "decode", "prefill+decode", "encoder_forward", "decode at 128 context", "static"):
        if row.concurrency is None:
            raise SkipError("no batch size stated")
        return StaticBatch(row.concurrency, lengths)
    if row.phase.startswith("offline") or row.load == "max":
        return Saturated(lengths)
    if found := re.search(r"poisson ([\d.]+) req/s, (\d+) ", row.load):
        sharegpt = benchmark("sharegpt")
        return OpenLoop(sharegpt.lengths, float(found[1]), n_requests=int(found[2]))
    raise SkipError(f"no model for phase '{row.phase}' with load '{row.load or row.concurrency}'")


def _lengths(row: Row) -> Lengths:
    if row.input_tokens is None and "Poisson" not in row.load and "poisson" not in row.load:
        raise SkipError("no input length stated")
    if row.output_tokens is None and row.phase == "serving" and "poisson" not in row.load:
        raise SkipError("no output length stated")
    return Lengths(row.input_tokens or 1.0, row.output_tokens or 1.0)


def _client(row: Row) -> tuple[float, float]:
    """Return (shortest length as a share of the nominal, requests per concurrent slot) of a load generator.

    InferenceMAX draws lengths from [0.8, 1] times the nominal and sends 10 requests per slot (its README: RANDOM_RANGE_RATIO 0.8,
    num-prompts = 10 x concurrency); other sources send fixed lengths. Answers of one length would end in lockstep for ever, which no served
    engine does: they are spread a little (data/benchmarks.toml, client.fixed_output_cv).
    """
    inferencemax = re.search(r"source_file=\d{4}-\d\d-\d\d\.csv|db-dump", row.notes)
    if inferencemax:
        return 0.8, 10.0
    found = re.search(r"(\d+) prompts", row.notes)
    return 1.0, int(found[1]) / row.concurrency if found and row.concurrency else 10.0


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Hold the data set of a benchmark and its latency limits (99th percentiles) by scenario."""

    lengths: Lengths
    server: tuple[float, float]
    interactive: tuple[float, float]


@cache
def benchmark(name: str) -> Benchmark:
    """Return a benchmark's data set by id; raises `SkipError` for one that data/benchmarks.toml does not describe."""
    rows = {str(f.attributes["parameter"]): f.value for f in table("benchmarks").select(benchmark=name)}
    if not rows:
        raise SkipError(f"no data set lengths known for benchmark '{name}'")

    def value(key: str, absent: float = float("inf")) -> float:
        found = rows.get(key)
        return absent if found is None else found

    return Benchmark(
        Lengths(value("input_tokens"), value("output_tokens"), value("input_cv", 0.0), value("output_cv", 0.0), round(value("beams", 1))),
        (value("server_ttft_s"), value("server_tpot_s")),
        (value("interactive_ttft_s"), value("interactive_tpot_s")),
    )


def _mlperf(row: Row, model: Model) -> Experiment:
    name = re.sub(r"-99(\.9)?$", "", row.model.lower())
    data_set = benchmark(name)
    if row.phase == "mlperf_offline":
        return Saturated(data_set.lengths)
    if row.phase == "mlperf_singlestream":
        return StaticBatch(1, replace(data_set.lengths, input_cv=0.0, output_cv=0.0))
    limits = data_set.interactive if row.phase == "mlperf_interactive" else data_set.server
    return OpenLoop(data_set.lengths, None, *limits)


# -- the whole row ----------------------------------------------------------------------------------------------------------------------


def outcome_of(row: Row) -> str:
    """Return the name of the outcome that a metric states: a field of `Outcome`, a rate, or a power ratio."""
    metric = row.metric
    if found := re.fullmatch(r"(ttft|tpot|itl|e2e)(?:_(p50|p90|p95|p99|mean))?", metric):
        kind, statistic = found[1].replace("itl", "tpot"), found[2] or "typical"
        return f"{kind}_{statistic}_s"
    known = {
        "output_throughput": "output_tokens_per_s",
        "output_throughput_per_chip": "output_tokens_per_s",
        "output_throughput_per_user": "user_tokens_per_s",
        "peak_output_throughput": "peak_tokens_per_s",
        "request_rate": "requests_per_s",
        "inference_throughput": "requests_per_s",
        "rate": "requests_per_s",
        "average_power_fraction_of_tdp": "average_power_ratio",
        "latency": "e2e_mean_s",
    }
    if metric not in known:
        raise SkipError(f"no model for metric '{metric}'")
    return known[metric]


def case_of(row: Row) -> Case:
    """Return the case behind a row, names, formats, plan, software and experiment resolved; raises `SkipError` with a reason."""
    outcome = outcome_of(row)
    if row.value == 0:
        raise SkipError("value 0: not measured")
    chip = chip_of(row.chip)
    model = model_of(row.model)
    generation = generation_of(row.software, chip.family, row.phase)
    software = _stated_limits(software_named(generation), row.notes)
    recipe = recipe_of(row, model, chip, cache_bits(generation))
    experiment = experiment_of(row, model)
    try:
        plan = plan_of(row, model, row.chips)
        if plan is None and isinstance(experiment, StaticBatch):
            plan = Plan(tensor=row.chips or 1)  # one stream of requests is all there is
        plan = plan or smallest_plan(model, recipe, chip, row.chips or 1, software.memory_ratio)
    except InputError as error:
        raise SkipError(str(error)) from None
    chips = row.chips or plan.n_chips
    deployment = Deployment(
        model, recipe, chip, plan, software, max(1, chips // plan.n_chips), power_capped=bool(re.search(r"(?i)p(ower-?)?cap", row.chip))
    )
    return Case(deployment, experiment, outcome, max(chips, plan.n_chips), row.metric, row.unit.endswith("/chip"))


def _stated_limits(software: Software, notes: str) -> Software:
    """Return the software with the limits that a row's notes state in place of the generation's."""

    def stated(pattern: str) -> int | None:
        found = re.search(pattern, notes)
        return int(found[1]) if found else None

    return replace(
        software,
        max_sequences=stated(r"max_num_seqs=(\d+)") or software.max_sequences,
        step_tokens=stated(r"max_num_batched_tokens=(\d+)") or software.step_tokens,
        cache_tokens=stated(r"KV (\d+) tokens"),
    )


@cache
def cache_bits(generation: str) -> int:
    """Return the bits of a KV cache value when weights are narrower than 16 bits."""
    rows = table("software").select(generation=generation, parameter="cache_bits")
    return int(rows[0].known) if rows else 16


def smallest_plan(model: Model, recipe: Recipe, chip: Chip, chips: int, memory_ratio: float) -> Plan:
    """Return the narrowest tensor-parallel plan whose weights leave 30% of the usable memory to the cache (replicas fill the rest)."""
    usable = chip.memory_capacity_bytes * memory_ratio
    tensor = 1
    while tensor < chips and model.weight_bytes(recipe) / tensor > 0.7 * usable:
        tensor *= 2
    return Plan(tensor=min(tensor, chips))
