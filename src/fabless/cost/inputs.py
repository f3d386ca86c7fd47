"""Everything that has a price or a rate, by name: ranges with sources to read, override and swing; plain values to compute with."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from fabless.core.errors import InputError, nearest
from fabless.core.ranges import Range
from fabless.core.sources import table
from fabless.cost.process import package_key, process_key

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from fabless.core.sources import Fact

    Values = float | NDArray[np.float64]

T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")

#: Inputs whose higher value makes the service cheaper; every other one makes it dearer, but for `alpha` with spare cores: see `package.alpha_ends`.
CHEAPER_WHEN_HIGH = frozenset(
    {
        "die_bond_yield_ratio",
        "stack_bond_yield_ratio",
        "substrate_bond_yield_ratio",
        "nre_life_years",
        "server_life_years",
        "facility_life_years",
    }
)


@dataclass(frozen=True, slots=True)
class Inputs(Generic[T_co]):
    """Hold the money side of a study by name. `Inputs[Range]` is what a study reads and overrides, `Inputs[Values]` what formulas take.

    Units: `_usd` per wafer, chip, package, mask set or design; `_usd_per_gb` per 1e9 bytes, `_usd_per_gb_per_s` per 1e9 bytes
    a second; ratios as shares or per year.
    """

    wafer_usd: T_co
    d0_per_cm2: T_co
    alpha: T_co
    memory_usd_per_gb: T_co
    carrier_wafer_usd: T_co
    carrier_area_ratio: T_co
    carrier_d0_per_cm2: T_co
    carrier_alpha: T_co
    bump_usd_per_mm2: T_co
    substrate_usd_per_mm2: T_co
    die_bond_yield_ratio: T_co
    stack_bond_yield_ratio: T_co
    substrate_bond_yield_ratio: T_co
    test_usd: T_co
    partner_margin_ratio: T_co
    design_usd: T_co
    software_usd: T_co
    masks_usd: T_co
    mask_sets: T_co
    ip_usd: T_co
    nre_life_years: T_co
    nre_lead_years: T_co
    software_upkeep_ratio: T_co
    host_usd: T_co
    nic_usd: T_co
    power_usd_per_w: T_co
    network_usd: T_co
    switch_usd_per_gb_per_s: T_co
    host_power_ratio: T_co
    facility_usd_per_w: T_co
    facility_life_years: T_co
    server_life_years: T_co
    pue: T_co
    operations_ratio: T_co
    replacement_ratio: T_co
    interest_ratio: T_co
    electricity_usd_per_kwh: T_co

    def map(self, change: Callable[[str, T_co], U]) -> Inputs[U]:
        """Return inputs of another kind: `change(name, value)` for each."""
        return Inputs(**{f.name: change(f.name, getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class CostInputs:
    """Hold the ranges of a study, the source of each, and what kind of package they price."""

    ranges: Inputs[Range]
    sources: tuple[tuple[str, tuple[str, ...]], ...]
    package: str

    def replace(self, **changes: Range | float) -> CostInputs:
        """Return the inputs with some overridden; a plain number is exact. Raises `InputError` for an unknown name or a disordered range."""
        for name, value in changes.items():
            if name not in NAMES:
                raise InputError(f"no cost input '{name}'{nearest(name, NAMES)}; known: {', '.join(NAMES)}")
            if isinstance(value, Range) and not value.low <= value.mid <= value.high:
                raise InputError(f"cost input '{name}': low {value.low}, mid {value.mid}, high {value.high} are not in order")
        new = {k: v if isinstance(v, Range) else Range.exact(float(v)) for k, v in changes.items()}
        kept = tuple((name, ids) for name, ids in self.sources if name not in new)
        return replace(self, ranges=replace(self.ranges, **new), sources=(*kept, *((name, ("study",)) for name in new)))

    def source(self, *names: str) -> tuple[str, ...]:
        """Return the ids ("table:source") behind some inputs, each once, in order."""
        known = dict(self.sources)
        return tuple(dict.fromkeys(id for name in names for id in known.get(name, ())))

    def mid(self) -> Inputs[Values]:
        """Return the middle of every range, for the search."""
        return self.ranges.map(lambda _, r: r.mid)

    def corners(self) -> Inputs[Values]:
        """Return arrays of three, (cheapest, middle, dearest), each input at the end that makes the service so."""
        import numpy as np

        return self.ranges.map(lambda name, r: np.array(ends(name, r)))

    def at(self, share: dict[str, NDArray[np.float64]]) -> Inputs[Values]:
        """Return arrays of samples: each named input where `share` in [0, 1] lies between its cheapest (0), middle (0.5) and dearest (1) end.

        Inputs not named stay at their middle.
        """
        import numpy as np

        return self.ranges.map(lambda name, r: np.interp(share[name], (0.0, 0.5, 1.0), ends(name, r)) if name in share else r.mid)


#: Rows of packaging.toml that hold for every kind of package.
_ALL_PACKAGES = ("carrier_area_ratio", "carrier_alpha", "bump_usd_per_mm2", "stack_bond_yield_ratio", "substrate_bond_yield_ratio")
NAMES: tuple[str, ...] = tuple(f.name for f in fields(Inputs))


def ends(name: str, value: Range) -> tuple[float, float, float]:
    """Return (cheapest, middle, dearest) of an input."""
    return (value.high, value.mid, value.low) if name in CHEAPER_WHEN_HIGH else (value.low, value.mid, value.high)


def cost_inputs(process: str, memory: str, package: str, *, region: str = "us", place: str = "rack", partner: bool = True) -> CostInputs:
    """Load the inputs of a chip by its process, memory standard ("none" for SRAM only) and package, and of the place where it runs.

    `region` is a row of electricity.toml, `place` "rack" or "appliance"; `partner` adds an implementation partner's gross margin.
    Raises `UnsupportedError` for a process, package or memory without prices and `SourceError` for an unknown region.
    """
    key, kind = process_key(process), package_key(package, memory)
    rows: dict[str, list[tuple[str, Fact]]] = {
        "wafer_usd": [("wafer", table("wafer").fact(f"wafer_usd_{key}"))],
        "d0_per_cm2": [("defects", table("defects").fact(f"d0_{key}"))],
        "alpha": [("defects", table("defects").fact("alpha"))],
        "masks_usd": [("nre", table("nre").fact(f"masks_usd_{key}"))],
        "mask_sets": [("nre", table("nre").fact("mask_sets"))],
        "ip_usd": [("nre", table("nre").fact("ip_usd"))],
        "nre_life_years": [("nre", table("nre").fact("nre_life_years"))],
        "nre_lead_years": [("nre", table("nre").fact("nre_lead_years"))],
        "software_upkeep_ratio": [("nre", table("nre").fact("software_upkeep_ratio"))],
        "partner_margin_ratio": [("nre", table("nre").fact("partner_margin_ratio" if partner else "no_partner_margin_ratio"))],
        "electricity_usd_per_kwh": [("electricity", table("electricity").fact(region))],
    }
    rows |= {name: [("packaging", table("packaging").fact(name))] for name in _ALL_PACKAGES}
    rows |= {f.attributes["field"]: [("packaging", f)] for f in table("packaging").select(package=kind)}
    rows |= {f.attributes["field"]: [("datacenter", f)] for f in table("datacenter").select(place=_place(place))}
    if memory != "none":
        rows["memory_usd_per_gb"] = [("memory_price", table("memory_price").fact(memory))]
    ranges = {name: Range(*found[0][1].range) for name, found in rows.items()}
    ranges.setdefault("memory_usd_per_gb", Range.exact(0.0))
    design, share = table("nre").fact(f"design_usd_{key}"), table("nre").fact("software_share")
    rows["design_usd"] = rows["software_usd"] = [("nre", design), ("nre", share)]
    ranges["design_usd"], ranges["software_usd"] = _split(Range(*design.range), share.known)
    named = tuple((name, tuple(f"{file}:{fact.source.id}" for file, fact in found)) for name, found in rows.items())
    return CostInputs(Inputs(**{name: ranges[name] for name in NAMES}), named, kind)


def _split(design: Range, software_share: float) -> tuple[Range, Range]:
    """Divide a headline design figure into hardware and software, the sum unchanged."""
    return design * (1 - software_share), design * software_share


def _place(place: str) -> str:
    places = ("rack", "appliance")
    if place not in places:
        raise InputError(f"no place '{place}'{nearest(place, places)}; known: {', '.join(places)}")
    return place
