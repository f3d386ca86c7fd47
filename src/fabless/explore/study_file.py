"""The study file as a person writes it: TOML with units, checked key by key, turned into a `Study`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fabless.core.errors import InputError, nearest
from fabless.core.ranges import Range
from fabless.core.sources import table
from fabless.core.units import quantity
from fabless.explore.study import (
    Demand,
    Limits,
    LinkChoice,
    MemoryChoice,
    NamedRecipe,
    Space,
    Study,
    Weights,
    Workload,
)
from fabless.explore.traffic import named_lengths, quantile_lengths
from fabless.fleet.capacity import Lengths, Slo
from fabless.mapping.plan import Plan
from fabless.model.step import Recipe
from fabless.number.formats import format_named

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema


@dataclass(frozen=True, slots=True)
class In:
    """Mark a key as a quantity: a plain number is in `unit`, text such as "8 TB/s" is converted to it."""

    unit: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        plain = handler(schema)
        text: JsonSchemaValue = {"type": "string", "description": f'a quantity with its unit, converted to {self.unit}, such as "8 TB/s"'}
        return (
            {"anyOf": [plain, text, {"type": "array", "items": {"anyOf": [{"type": "number"}, text]}}]}
            if _is_array(plain)
            else {"anyOf": [plain, text]}
        )


@dataclass(frozen=True, slots=True)
class OneOrMore:
    """Mark a list that may be written as its only member."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        plain = handler(schema)
        return {"anyOf": [plain, plain["items"]]} if _is_array(plain) else plain


def _is_array(schema: JsonSchemaValue) -> bool:
    return schema.get("type") == "array"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class StudySection(_Section):
    """Name the study (its results go to out/<name>); `seed` is the only source of chance; `system` is what chips are mounted in,
    `region` the row of electricity prices where they run.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """What results are called: they go to out/<name>."""
    title: str = ""
    """The service in words, as the answer and the report quote it; the name when left out."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The only source of chance: same study, same seed, same bytes."""
    system: Literal["rack", "appliance"] = "rack"
    """What chips are mounted in: shared servers of a rack, or one appliance each."""
    region: str = "us"
    """Where the chips run, a row of electricity prices."""


class ModelSection(_Section):
    """Name a model of the catalogue (or the path of a config.json) and the recipes that quality allows."""

    name: str
    """A model that `fabless models` lists, or the path of a config.json, safetensors or GGUF file."""
    share: Annotated[float, Field(gt=0)] = 1.0
    """This model's part of the requests, relative to the other models'."""
    recipes: Annotated[list[str], OneOrMore(), Field(min_length=1)]
    """Formats that its quality allows, of which each chip takes its best: a [recipes.<name>] of this file, or a short name ("fp8", "int4/bf16")."""


class RecipeSection(_Section):
    """Choose a number format per tensor class; what is left out follows `weights` for the head and bf16 for the rest."""

    weights: str
    """Projections and experts."""
    activations: str | None = None
    """Operands of products with weights; as `weights` when left out."""
    kv_cache: str = "bf16"
    """Stored keys and values."""
    attention: str = "bf16"
    """Operands of queries times keys and of probabilities times values."""
    residual: str = "bf16"
    """The stream between blocks."""
    experts: str | None = None
    """Routed experts, when they differ from `weights`."""
    head: str | None = None
    """The language head; as `weights` when left out."""
    embedding: str | None = None
    """The token table; as `head` when left out."""


class QuantilesSection(_Section):
    """State lengths in tokens by their quantiles, and by their mean if it is known."""

    p50: Annotated[float, Field(gt=0)]
    """Half of all requests are no longer."""
    p90: Annotated[float, Field(gt=0)]
    """Nine in ten are no longer."""
    p99: Annotated[float, Field(gt=0)]
    """Ninety-nine in a hundred are no longer."""
    mean: Annotated[float, Field(gt=0)] | None = None
    """The mean, if known; otherwise that of the curve through the quantiles."""


class TrafficSection(_Section):
    """State how much is asked for: `requests_per_s` or `tokens_per_day` (prompt and answer), and how long requests are."""

    requests_per_s: Annotated[float, Field(gt=0)] | None = None
    """Requests a second, averaged over the year."""
    tokens_per_day: Annotated[float, Field(gt=0)] | None = None
    """Prompt and answer tokens a day, instead of requests_per_s."""
    peak_ratio: Annotated[float, Field(ge=1)] | None = None
    """Requests at the peak over those on average; the fleet is sized for the peak. A published figure when left out."""
    prefix_hit_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of prompt tokens that a prefix cache serves."""
    lengths: str | None = None
    """A trace whose lengths of prompts and answers to use, instead of input and output."""
    input: QuantilesSection | None = None
    """Prompt lengths by their quantiles."""
    output: QuantilesSection | None = None
    """Answer lengths by their quantiles."""


class SloSection(_Section):
    """Promise time to first token and time per output token to the share `quantile` of requests."""

    ttft_s: Annotated[float, In("second"), Field(gt=0)]
    """Longest time to the first token."""
    tpot_s: Annotated[float, In("second"), Field(gt=0)]
    """Longest time per further token."""
    quantile: Annotated[float, Field(ge=0.5, lt=1)] = 0.9
    """Share of requests that must meet both."""


class LimitsSection(_Section):
    """Bound the answer; a key left out does not bind."""

    chip_w: Annotated[float, In("watt"), Field(gt=0)] | None = None
    """Power that a packaged chip may be cooled for."""
    rack_w: Annotated[float, In("watt"), Field(gt=0)] | None = None
    """Power of the chips of one replica, with their servers."""
    site_w: Annotated[float, In("watt"), Field(gt=0)] | None = None
    """Power of the whole fleet, servers included."""
    nre_usd: Annotated[float, In("usd"), Field(gt=0)] | None = None
    """Money to spend before the first chip."""
    package_usd: Annotated[float, In("usd"), Field(gt=0)] | None = None
    """Price of one packaged, tested chip."""
    chips_per_replica: Annotated[int, Field(gt=0)] | None = None
    """Chips that one copy of a model may take."""
    processes: list[str] = []
    """Processes that may be used; empty: all of the space."""
    foundries: Annotated[list[Literal["taiwan", "arizona"]], OneOrMore(), Field(min_length=1)] = ["taiwan", "arizona"]
    """Where dies may be made."""


class WeightsSection(_Section):
    """Weigh the objectives: exponents of a product, so that only their ratios matter."""

    usd_per_mtok: Annotated[float, Field(ge=0)] = 1.0
    """Weight of cost per million tokens."""
    tokens_per_s_per_user: Annotated[float, Field(ge=0)] = 0.0
    """Weight of speed: 0.2 says that 5% more speed is worth 1% more money."""
    power_w: Annotated[float, Field(ge=0)] = 0.0
    """Weight of fleet power."""
    nre_usd: Annotated[float, Field(ge=0)] = 0.0
    """Weight of NRE."""


class MemorySection(_Section):
    """Offer a memory standard with one or more numbers of stacks (HBM) or devices (GDDR, LPDDR)."""

    standard: str
    """A memory standard such as "hbm3e", "gddr7" or "lpddr5x"; "none" for chips that live in SRAM."""
    stacks: Annotated[list[int], OneOrMore(), Field(min_length=1)]
    """Stacks (HBM) or devices (GDDR, LPDDR) beside the chip."""


class LinkSection(_Section):
    """Offer a way to join chips; several bandwidths make several choices."""

    topology: Literal["none", "ring", "switch", "mesh", "torus2d", "torus3d"] = "none"
    """How chips are joined."""
    ports: Annotated[int, Field(ge=0)] = 0
    """Links of a chip."""
    bandwidth_bytes_per_s: Annotated[list[float], In("byte / second"), OneOrMore(), Field(min_length=1)] = [0.0]
    """One way out of a chip over all its ports."""
    domain_chips: Annotated[int, Field(ge=1)] = 1
    """Chips that reach each other at that rate."""
    latency_s: Annotated[float, In("second"), Field(ge=0)] = 1e-6
    """From one chip to the next."""
    network_bandwidth_bytes_per_s: Annotated[float, In("byte / second"), Field(ge=0)] = 0.0
    """One way per chip beyond the domain; 0: no network beyond."""


class SpaceSection(_Section):
    """List what each part of the chip may be: one value or several."""

    process: Annotated[list[str], OneOrMore(), Field(min_length=1)]
    """Manufacturing processes such as "5nm"."""
    clock_hz: Annotated[list[float], In("hertz"), OneOrMore(), Field(min_length=1)]
    """Clock."""
    cores: Annotated[list[int], OneOrMore(), Field(min_length=1)]
    """Cores of a chip."""
    rows: Annotated[list[int], OneOrMore(), Field(min_length=1)]
    """Dot-product rows of a core's matrix unit: 4, 8, 16, 32, 64 or 128."""
    lanes: Annotated[list[int], OneOrMore(), Field(min_length=1)] = [32]
    """Products that a row sums each cycle."""
    formats: Annotated[list[list[str]], Field(min_length=1)]
    """Element formats that the matrix unit multiplies, one list per variant; "bf16/8" runs at an eighth of the rate."""
    scratchpad_bytes: Annotated[list[float], In("byte"), OneOrMore(), Field(min_length=1)]
    """Scratchpad of a core."""
    vector_lanes: Annotated[list[int], OneOrMore(), Field(min_length=1)]
    """Vector lanes of a core."""
    shared_bytes: Annotated[list[float], In("byte"), OneOrMore(), Field(min_length=1)] = [0.0]
    """SRAM shared by all cores; 0: none."""
    dies: Annotated[list[int], OneOrMore(), Field(min_length=1)] = [1]
    """Dies in a package."""
    spare_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Spare cores per core, to be harvested for yield."""
    memory: Annotated[list[MemorySection], Field(min_length=1)]
    """Off-chip memory."""
    link: Annotated[list[LinkSection], Field(min_length=1)] = [LinkSection()]
    """Links between chips."""


class PlansSection(_Section):
    """List degrees of parallelism and sequences in flight on a replica (`batch`); every legal combination is tried."""

    tensor: Annotated[list[int], OneOrMore(), Field(min_length=1)] = [1]
    """Tensor parallelism."""
    pipeline: Annotated[list[int], OneOrMore(), Field(min_length=1)] = [1]
    """Pipeline stages."""
    expert: Annotated[list[int], OneOrMore(), Field(min_length=1)] = [1]
    """Chips over which routed experts are spread; divides tensor x data."""
    data: Annotated[list[int], OneOrMore(), Field(min_length=1)] = [1]
    """Attention replicas inside an expert-parallel group."""
    batch: Annotated[list[int], OneOrMore(), Field(min_length=1)]
    """Sequences in flight on a replica."""


class CompareSection(_Section):
    """Name the catalogue's chips to compare with; none named means all."""

    chips: list[str] = []
    """Catalogue names; empty: the whole catalogue."""


class StudyFile(_Section):
    """Describe a service, what may be built for it, and what matters; `fabless design FILE` answers which chip to build."""

    study: StudySection
    """Name, title, seed and place."""
    models: Annotated[list[ModelSection], Field(min_length=1)]
    """The models served."""
    recipes: dict[str, RecipeSection] = {}
    """Number formats by name."""
    traffic: TrafficSection
    """How much is asked for."""
    slo: SloSection
    """What is promised."""
    limits: LimitsSection = LimitsSection()
    """What the answer may not exceed."""
    weights: WeightsSection = WeightsSection()
    """What matters how much."""
    space: SpaceSection
    """What chips may be built."""
    plans: PlansSection
    """How models may be spread over chips."""
    costs: dict[str, float | str | list[float | str]] = {}
    """Inputs of the cost model to override: a number, a quantity with a unit, or [low, mid, high]; docs/cost.md tells what they mean."""
    compare: CompareSection = CompareSection()
    """Which of today's chips to compare with."""


def read(path: str | Path) -> Study:
    """Read and check a study file; see `explore.study.read_study`."""
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the study ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file ({error})") from None
    return parse(content, str(path))


def parse(content: Mapping[str, Any], path: str) -> Study:
    """Turn the content of a study file into a `Study`; `path` names it in messages."""
    plain = _plain(StudyFile, content, path, "")
    try:
        file = StudyFile.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "missing" else f", not {first['input']!r}"
        raise InputError(f"{path}: {place}: {first['msg'][0].lower()}{first['msg'][1:]}{given}") from None
    return _study(file, path)


def _plain(section: type[BaseModel], content: Any, path: str, place: str) -> dict[str, Any]:
    """Return a section with quantities in plain numbers and single values as lists, refusing keys that it does not have."""
    if not isinstance(content, dict):
        raise InputError(f"{path}: {place} must be a table of keys ([{place}]), not {content!r}")
    known = section.model_fields
    plain: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            where = f"[{place}]" if place else "the file"
            raise InputError(f"{path}: {where} has no key '{key}'{nearest(key, known)}; known: {', '.join(known)}")
        plain[key] = _value(known[key], value, path, f"{place}.{key}" if place else key)
    return plain


def _value(field: Any, value: Any, path: str, place: str) -> Any:
    nested, kind = _nested(field.annotation)
    if nested is not None and kind is list:
        members = value if isinstance(value, list) else [value]
        return [_plain(nested, member, path, f"{place}[{i}]" if len(members) > 1 else place) for i, member in enumerate(members)]
    if nested is not None and kind is dict and isinstance(value, dict):
        return {name: _plain(nested, member, path, f"{place}.{name}") for name, member in value.items()}
    if nested is not None:
        return _plain(nested, value, path, place)
    markers = _markers(field)
    if any(isinstance(m, OneOrMore) for m in markers) and not isinstance(value, list):
        value = [value]
    unit = next((m.unit for m in markers if isinstance(m, In)), None)
    if unit is None:
        return value
    where = f"{path}: {place}"
    return [_number(v, unit, where) for v in value] if isinstance(value, list) else _number(value, unit, where)


def _number(value: Any, unit: str, where: str) -> Any:
    return quantity(value, unit, where=where) if isinstance(value, str) else value


def _markers(field: Any) -> tuple[Any, ...]:
    """Return what annotates a field, also inside `Annotated[...] | None`."""
    inner = [m for option in get_args(field.annotation) if get_origin(option) is Annotated for m in get_args(option)[1:]]
    return (*field.metadata, *inner)


def _nested(annotation: Any) -> tuple[type[BaseModel] | None, Any]:
    """Return the section that a field holds, and whether in a list or a dict."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, None
    origin = get_origin(annotation)
    for option in get_args(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option, origin if origin in (list, dict) else None
    return None, None


def _study(file: StudyFile, path: str) -> Study:
    total = sum(m.share for m in file.models)
    slo = Slo(file.slo.ttft_s, file.slo.tpot_s, file.slo.quantile)
    return Study(
        name=file.study.name,
        title=file.study.title or file.study.name,
        seed=file.study.seed,
        system=file.study.system,
        region=file.study.region,
        workloads=tuple(Workload(m.name, m.share / total, tuple(_recipe(n, file, path) for n in m.recipes)) for m in file.models),
        demand=_demand(file.traffic, slo.quantile, path),
        slo=slo,
        limits=Limits(
            **{**file.limits.model_dump(), "processes": tuple(file.limits.processes), "foundries": tuple(sorted(file.limits.foundries))}
        ),
        weights=Weights(**file.weights.model_dump()),
        space=_space(file.space, file.limits.processes, path),
        plans=_plans(file.plans, file.limits.chips_per_replica, path),
        batches=_batches(file.plans.batch, path),
        costs=tuple(_cost(name, value, path) for name, value in sorted(file.costs.items())),
        compare=tuple(file.compare.chips),
    )


def _recipe(name: str, file: StudyFile, path: str) -> NamedRecipe:
    section = file.recipes.get(name)
    if section is None:
        try:
            return NamedRecipe(name, Recipe.named(name))
        except InputError:
            raise InputError(
                f"{path}: models.recipes: '{name}' is neither a [recipes.{name}] of this file nor a number format{nearest(name, file.recipes)}"
            ) from None
    formats = {key: format_named(value) for key, value in section.model_dump().items() if value is not None}
    formats.setdefault("activations", formats["weights"])
    return NamedRecipe(name, Recipe(**formats))


def _demand(traffic: TrafficSection, quantile: float, path: str) -> Demand:
    lengths = _lengths(traffic, quantile, path)
    if (traffic.requests_per_s is None) == (traffic.tokens_per_day is None):
        raise InputError(f"{path}: [traffic] needs requests_per_s or tokens_per_day, and not both")
    rate = traffic.requests_per_s
    if traffic.tokens_per_day is not None:
        rate = traffic.tokens_per_day / 86400 / (lengths.input_mean + lengths.output_mean)
    assert rate is not None
    peak_ratio = table("study_defaults").fact("peak_ratio").known if traffic.peak_ratio is None else traffic.peak_ratio
    return Demand(rate, peak_ratio, traffic.prefix_hit_ratio, lengths)


def _lengths(traffic: TrafficSection, quantile: float, path: str) -> Lengths:
    if traffic.lengths is not None:
        if traffic.input is not None or traffic.output is not None:
            raise InputError(f"{path}: [traffic] has lengths = '{traffic.lengths}' and quantiles too; keep one")
        return named_lengths(traffic.lengths, quantile, where=f"{path}: traffic.lengths")
    if traffic.input is None or traffic.output is None:
        raise InputError(
            f"{path}: [traffic] needs lengths = 'azure_2023_conversation' (or another), or both [traffic.input] and [traffic.output]"
        )
    return quantile_lengths(
        (traffic.input.p50, traffic.input.p90, traffic.input.p99, traffic.input.mean),
        (traffic.output.p50, traffic.output.p90, traffic.output.p99, traffic.output.mean),
        quantile,
        where=f"{path}: traffic",
    )


def _space(space: SpaceSection, processes: list[str], path: str) -> Space:
    allowed = [p for p in space.process if not processes or p in processes]
    if not allowed:
        raise InputError(f"{path}: space.process ({', '.join(space.process)}) has none of limits.processes ({', '.join(processes)})")
    memory = tuple(MemoryChoice(m.standard.lower(), n) for m in space.memory for n in m.stacks)
    link = tuple(
        LinkChoice(x.topology, x.ports, bandwidth, x.domain_chips, x.latency_s, x.network_bandwidth_bytes_per_s)
        for x in space.link
        for bandwidth in x.bandwidth_bytes_per_s
    )
    return Space(
        process=tuple(allowed),
        clock_hz=tuple(space.clock_hz),
        cores=tuple(space.cores),
        rows=tuple(space.rows),
        lanes=tuple(space.lanes),
        formats=tuple(tuple(_rated(f, f"{path}: space.formats") for f in choice) for choice in space.formats),
        scratchpad_bytes=tuple(space.scratchpad_bytes),
        vector_lanes=tuple(space.vector_lanes),
        shared_bytes=tuple(space.shared_bytes),
        memory=memory,
        link=link,
        dies=tuple(space.dies),
        spare_ratio=space.spare_ratio,
    )


def _rated(text: str, where: str) -> str:
    """Return a format with the divisor of its rate, both checked: `"bfloat16/8"` -> `"bf16/8"`."""
    name, slash, divisor = text.partition("/")
    if slash and not (divisor.isdecimal() and int(divisor) > 0):
        raise InputError(f"{where}: '{text}' must be a format, or a format and the divisor of its rate, such as 'bf16/8'")
    return format_named(name).name + (f"/{int(divisor)}" if slash else "")


def _plans(plans: PlansSection, limit: int | None, path: str) -> tuple[Plan, ...]:
    degrees = product(plans.tensor, plans.pipeline, plans.expert, plans.data)
    legal = {Plan(t, p, e, d) for t, p, e, d in degrees if min(t, p, e, d) >= 1 and (t * d) % e == 0}
    kept = sorted(p for p in legal if limit is None or p.n_chips <= limit)
    if not kept:
        raise InputError(
            f"{path}: [plans] has no legal combination: expert must divide tensor x data, and chips per replica stay within the limit"
        )
    return tuple(kept)


def _batches(batches: list[int], path: str) -> tuple[int, ...]:
    if min(batches) < 1:
        raise InputError(f"{path}: plans.batch must be at least 1, not {min(batches)}")
    return tuple(sorted(set(batches)))


def _cost(name: str, value: float | str | list[float | str], path: str) -> tuple[str, Range]:
    from fabless.explore.pricing import cost_unit

    where = f"{path}: costs.{name}"
    unit = cost_unit(name, where)
    values = [quantity(v, unit, where=where) if isinstance(v, str) else float(v) for v in (value if isinstance(value, list) else [value])]
    if len(values) not in {1, 3} or values != sorted(values):
        raise InputError(f"{where}: give one number or [low, mid, high] in rising order, not {value!r}")
    return name, Range(values[0], values[len(values) // 2], values[-1])
