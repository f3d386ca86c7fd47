"""A study: one service, its limits, and the space of chips, plans and batches in which to look for the best chip.

The file that a person writes is described by `explore.study_file`; here is what it becomes: plain SI numbers in frozen dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fabless.core.digest import digest

if TYPE_CHECKING:
    from pathlib import Path

    from fabless.core.ranges import Range
    from fabless.fleet.capacity import Lengths, Slo
    from fabless.mapping.plan import Plan
    from fabless.model.step import Recipe

OBJECTIVES = ("usd_per_mtok", "tokens_per_s_per_user", "power_w", "nre_usd")


@dataclass(frozen=True, slots=True)
class NamedRecipe:
    """Give a choice of number formats the name by which answers quote it."""

    name: str
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Workload:
    """Serve one model with `share` of the requests, in whichever of `recipes` is best on a chip."""

    model: str
    share: float
    recipes: tuple[NamedRecipe, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """State the traffic: `requests_per_s` averaged over the year, `peak_ratio` times as many at the peak for which the fleet is sized.

    A prefix cache serves `prefix_hit_ratio` of the prompt tokens.
    """

    requests_per_s: float
    peak_ratio: float
    prefix_hit_ratio: float
    lengths: Lengths

    @property
    def tokens_per_request(self) -> float:
        """Return prompt and answer tokens of a mean request."""
        return self.lengths.input_mean + self.lengths.output_mean


@dataclass(frozen=True, slots=True)
class Limits:
    """Bound the answer; None leaves a quantity free. `processes` empty: all of the space; `foundries`: where dies may be made."""

    chip_w: float | None = None
    rack_w: float | None = None
    site_w: float | None = None
    nre_usd: float | None = None
    package_usd: float | None = None
    chips_per_replica: int | None = None
    processes: tuple[str, ...] = ()
    foundries: tuple[str, ...] = ("taiwan", "arizona")


@dataclass(frozen=True, slots=True)
class Weights:
    """Weigh the objectives: the score is the weighted sum of their logarithms, so that a weight is dollars-per-cent for cents-per-cent.

    With `usd_per_mtok = 1` and `tokens_per_s_per_user = 0.2`, five per cent more speed is worth one per cent more money.
    """

    usd_per_mtok: float = 1.0
    tokens_per_s_per_user: float = 0.0
    power_w: float = 0.0
    nre_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class MemoryChoice:
    """Choose `stacks` devices of a memory standard ("none": SRAM only)."""

    standard: str
    stacks: int


@dataclass(frozen=True, slots=True)
class LinkChoice:
    """Choose how chips reach each other: rate one way per chip over all ports, chips in a domain, and the network beyond it."""

    topology: str = "none"
    ports: int = 0
    bandwidth_bytes_per_s: float = 0.0
    domain_chips: int = 1
    latency_s: float = 1e-6
    network_bandwidth_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Space:
    """List the values that each part of the chip may take; the space is their product."""

    process: tuple[str, ...]
    clock_hz: tuple[float, ...]
    cores: tuple[int, ...]
    rows: tuple[int, ...]
    lanes: tuple[int, ...]
    formats: tuple[tuple[str, ...], ...]
    scratchpad_bytes: tuple[float, ...]
    vector_lanes: tuple[int, ...]
    shared_bytes: tuple[float, ...]
    memory: tuple[MemoryChoice, ...]
    link: tuple[LinkChoice, ...]
    dies: tuple[int, ...] = (1,)
    spare_ratio: float = 0.0

    @property
    def n_designs(self) -> int:
        """Return the number of chips in the space."""
        n = 1
        for axis in AXES:
            n *= len(getattr(self, axis))
        return n


#: The order in which designs are numbered: the last axis varies fastest.
AXES = (
    "process",
    "clock_hz",
    "cores",
    "rows",
    "lanes",
    "formats",
    "scratchpad_bytes",
    "vector_lanes",
    "shared_bytes",
    "memory",
    "link",
    "dies",
)


@dataclass(frozen=True, slots=True)
class Study:
    """Hold a whole study, checked.

    `system` is what chips are mounted in ("rack" or "appliance"), `region` the row of electricity prices where they run; `costs` override
    fields of the cost inputs with ranges; `compare` names catalogue chips (empty: all).
    """

    name: str
    title: str
    seed: int
    system: str
    region: str
    workloads: tuple[Workload, ...]
    demand: Demand
    slo: Slo
    limits: Limits
    weights: Weights
    space: Space
    plans: tuple[Plan, ...]
    batches: tuple[int, ...]
    costs: tuple[tuple[str, Range], ...] = ()
    compare: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Return 16 hex digits that name the study by its content."""
        return digest(self)

    @property
    def n_points(self) -> int:
        """Return the number of (chip, model, recipe, plan, batch) points."""
        recipes = sum(len(w.recipes) for w in self.workloads)
        return self.space.n_designs * recipes * len(self.plans) * len(self.batches)


def read_study(path: str | Path) -> Study:
    """Read a study file (TOML); raises `InputError` naming file, section, key and the nearest known key, `UnitError` for a wrong dimension."""
    from fabless.explore.study_file import read

    return read(path)


def study_schema() -> dict[str, Any]:
    """Return the JSON Schema of a study file, for editors that complete and check TOML."""
    from fabless.explore.study_file import StudyFile

    schema = StudyFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
