"""How sure a price is: which inputs move it most, and how often owning beats renting when all vary at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import InputError
from fabless.core.ranges import Range
from fabless.cost.inputs import NAMES, CostInputs, ends
from fabless.cost.system import HOURS_PER_YEAR
from fabless.cost.yearly import chip_year

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.cost.inputs import Inputs
    from fabless.cost.package import Part
    from fabless.cost.price import FleetDemand

    Values = float | NDArray[np.float64]

#: Inputs of a case beyond prices: how much traffic comes, how fast the chip turns out, what rent is asked.
DEMAND, SPEED, RENT = "demand_ratio", "speed_ratio", "rent_usd_per_chip_hour"
_ALPHA_LEVELS = 32  # samples of the clustering parameter are snapped to this many steps: each needs quadrature nodes of its own
_ONE = Range.exact(1.0)


@dataclass(frozen=True, slots=True)
class Case:
    """Hold one service on own chips, and optionally on rented ones, as a function of everything uncertain.

    `fleet` is the fleet at the middle of all inputs. `demand_ratio` scales its traffic (and chips with it), `speed_ratio` the tokens that
    a chip really yields. `rent_usd_per_chip_hour` with `rent_chips` is the same service rented.
    """

    part: Part
    fleet: FleetDemand
    inputs: CostInputs
    rent_usd_per_chip_hour: Range | None = None
    rent_chips: float = 0.0
    demand_ratio: Range = _ONE
    speed_ratio: Range = _ONE


@dataclass(frozen=True, slots=True)
class Swing:
    """State how far one input moves the price: USD per million tokens at the input's low and high, all others in the middle."""

    name: str
    input: Range
    at_low_usd_per_mtok: float
    at_mid_usd_per_mtok: float
    at_high_usd_per_mtok: float
    sources: tuple[str, ...] = ()

    @property
    def width_usd_per_mtok(self) -> float:
        """Return the distance between the two ends."""
        return abs(self.at_high_usd_per_mtok - self.at_low_usd_per_mtok)


@dataclass(frozen=True, slots=True)
class Spread:
    """Hold a sampled price: quantiles of owning and renting (USD per million tokens), and how often owning is the cheaper.

    `own_is_cheaper_ratio` is None without a rent to compare with.
    """

    quantiles: tuple[float, ...]
    own_usd_per_mtok: tuple[float, ...]
    rent_usd_per_mtok: tuple[float, ...]
    own_is_cheaper_ratio: float | None
    n_samples: int
    seed: int


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def own_usd_per_mtok(case: Case, x: Inputs[Values], *, demand_ratio: Values = 1.0, speed_ratio: Values = 1.0) -> Values:
    """Return the price of a million tokens on own chips, elementwise over inputs; at the middle it equals `price.price`."""
    fleet = case.fleet
    year = chip_year(case.part, fleet.provisioned_w, fleet.average_w, x, case.inputs.package)
    scale = demand_ratio / speed_ratio
    n_built = None if fleet.n_built is None else fleet.n_built * scale
    return year.fleet_usd_per_year(fleet.n_chips * scale, n_built) / (fleet.tokens_per_year * demand_ratio) * 1e6


def rent_usd_per_mtok(case: Case, usd_per_chip_hour: Values) -> Values:
    """Return the price of a million tokens on rented chips; it does not depend on the volume."""
    return usd_per_chip_hour * (HOURS_PER_YEAR * case.rent_chips / case.fleet.tokens_per_year * 1e6)


def tornado(case: Case, *, count: int = 10) -> tuple[Swing, ...]:
    """Return the inputs that move the own price most, widest first: each at its low and high, all others in the middle."""
    ranges = {name: getattr(case.inputs.ranges, name) for name in NAMES} | {DEMAND: case.demand_ratio, SPEED: case.speed_ratio}
    moved = [name for name, r in ranges.items() if r.high > r.low]
    at = {name: np.full(2 * len(moved) + 1, r.mid) for name, r in ranges.items()}
    for i, name in enumerate(moved):
        at[name][2 * i], at[name][2 * i + 1] = ranges[name].low, ranges[name].high
    x = case.inputs.ranges.map(lambda name, _: at[name])
    usd = np.asarray(own_usd_per_mtok(case, x, demand_ratio=at[DEMAND], speed_ratio=at[SPEED]))
    swings = [
        Swing(name, ranges[name], float(usd[2 * i]), float(usd[-1]), float(usd[2 * i + 1]), case.inputs.source(name))
        for i, name in enumerate(moved)
    ]
    return tuple(sorted(swings, key=lambda s: (-s.width_usd_per_mtok, s.name))[:count])


def spread(case: Case, *, n_samples: int = 4096, seed: int = 0) -> Spread:
    """Sample all inputs at once and independently, on a scrambled Sobol sequence; same seed, same numbers.

    Each input has half its probability evenly between low and middle and half between middle and high: its ends are limits, not
    quantiles. Limits: inputs that move together in the world (memory and carrier prices, say) are drawn apart.
    Raises `InputError` unless `n_samples` is a power of two, which the sequence's balance needs.
    """
    if n_samples < 1 or n_samples & (n_samples - 1):
        raise InputError(f"n_samples must be a power of two, not {n_samples}; take {1 << max(n_samples, 1).bit_length()}")
    from scipy.stats import qmc

    extra = {DEMAND: case.demand_ratio, SPEED: case.speed_ratio, RENT: case.rent_usd_per_chip_hour or Range.exact(0.0)}
    ranges = {name: getattr(case.inputs.ranges, name) for name in NAMES} | extra
    moved = [name for name, r in ranges.items() if r.high > r.low]
    points = qmc.Sobol(max(len(moved), 1), scramble=True, rng=np.random.default_rng(seed)).random(n_samples)
    share = {name: points[:, i] for i, name in enumerate(moved)}
    for name in ("alpha", "carrier_alpha"):
        if name in share:
            share[name] = np.rint(share[name] * _ALPHA_LEVELS) / _ALPHA_LEVELS
    of = {
        name: np.interp(share[name], (0.0, 0.5, 1.0), ends(name, r)) if name in share else np.full(n_samples, r.mid)
        for name, r in extra.items()
    }
    own = np.asarray(own_usd_per_mtok(case, case.inputs.at(share), demand_ratio=of[DEMAND], speed_ratio=of[SPEED]))
    own = np.broadcast_to(own, n_samples)
    rented = np.asarray(rent_usd_per_mtok(case, of[RENT]))
    has_rent = case.rent_usd_per_chip_hour is not None
    return Spread(
        QUANTILES,
        tuple(float(v) for v in np.quantile(own, QUANTILES)),
        tuple(float(v) for v in np.quantile(rented, QUANTILES)) if has_rent else (),
        float(np.mean(own <= rented)) if has_rent else None,
        n_samples,
        seed,
    )


def with_inputs(case: Case, **changes: Range | float) -> Case:
    """Return a case with some of its cost inputs overridden."""
    return replace(case, inputs=case.inputs.replace(**changes))
