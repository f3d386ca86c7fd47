"""How long chips take to exchange data: closed forms of latency and bandwidth per topology."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, log2
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.chip.chip import Link
    from fabless.sim.calibration import Calibration

    Floats = NDArray[np.float64]

#: Bytes that cross a chip's links per payload byte, as a multiple of (p - 1) / p.
_PASSES = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0}


def wire_bytes(kind: str, payload_bytes: Floats | float, n_chips: int) -> Floats:
    """Return the bytes that one chip sends: the bandwidth-optimal volume of each collective.

    all_reduce moves 2 V (p - 1) / p; all_gather (V: the gathered result), reduce_scatter and all_to_all (V: what a chip holds) move
    V (p - 1) / p; a send moves V. Source: Thakur, Rabenseifner, Gropp, IJHPCA 19(1), 2005; NCCL tests, PERFORMANCE.md (bus bandwidth).
    """
    share = 1.0 if kind == "send" else _PASSES[kind] * (n_chips - 1) / n_chips
    return np.asarray(payload_bytes, dtype=np.float64) * share


def hops(kind: str, n_chips: int, topology: str) -> float:
    """Return the latency steps of a collective.

    A ring takes p - 1 steps, twice for all_reduce; behind a switch libraries choose between that ring and a tree of depth log2 p up and
    down; all_to_all sends directly behind a switch, through ceil(log2 p) rounds elsewhere; a torus takes its radius per dimension.
    Source: Thakur et al. 2005 (ring, recursive doubling); Bruck et al., IEEE TPDS 1997 (all_to_all); Sanders et al. 2009 (two trees).
    """
    if kind == "send" or n_chips == 1:
        return 1.0
    rounds = 2.0 if kind == "all_reduce" else 1.0
    if topology in {"torus2d", "torus3d", "mesh"}:
        dims = 3 if topology == "torus3d" else 2
        side = n_chips ** (1 / dims)
        reach = side - 1 if topology == "mesh" else side / 2
        return float(rounds * max(1.0, dims * reach))
    if kind == "all_to_all":
        return 1.0 if topology == "switch" else float(n_chips - 1)
    if topology == "switch":
        return rounds * min(n_chips - 1, 2 * ceil(log2(n_chips)))
    return rounds * (n_chips - 1)


def bisection_ratio(kind: str, n_chips: int, topology: str) -> float:
    """Return how many times longer all_to_all takes than on a full crossbar of equal bandwidth per chip (1 for other collectives).

    On a bidirectional ring the mean distance is p / 4 links and a chip feeds 2 of them, each with half its bandwidth; a torus has
    p ** (1 / d) / 4 per dimension. Source: Dally and Towles, Principles and Practices of Interconnection Networks, 2004, section 5.
    """
    if kind != "all_to_all" or topology in {"switch", "none"}:
        return 1.0
    dims = {"ring": 1, "torus2d": 2, "mesh": 2, "torus3d": 3}[topology]
    distance: float = n_chips ** (1 / dims) / 4 * dims
    return max(1.0, distance * (2.0 if topology == "mesh" else 1.0))


def collective_s(kind: str, payload_bytes: Floats | float, n_chips: int, link: Link, calibration: Calibration) -> Floats:
    """Return the seconds of a collective among `n_chips`; beyond `link.domain_chips` the scale-out network carries the inter-domain part.

    time = software + steps x link latency + wire bytes / (bandwidth x efficiency). Hierarchical beyond a domain: the slower of the two parts
    bounds, their latencies add.
    """
    if n_chips <= 1:
        return np.zeros_like(np.asarray(payload_bytes, dtype=np.float64))
    inside = max(1, min(n_chips, link.domain_chips))
    time = np.full_like(np.asarray(payload_bytes, dtype=np.float64), calibration.link_latency_s)
    if inside > 1 and link.bandwidth_bytes_per_s > 0:
        time = time + _level_s(kind, payload_bytes, inside, link, calibration)
    domains = -(-n_chips // inside)
    if domains > 1:
        if link.network_bandwidth_bytes_per_s <= 0:
            return np.full_like(time, np.inf)
        payload = np.asarray(payload_bytes, dtype=np.float64) / (inside if kind != "all_to_all" else 1)
        network = replace(
            link, topology="switch", bandwidth_bytes_per_s=link.network_bandwidth_bytes_per_s, latency_s=link.network_latency_s
        )
        outside = _level_s(kind, payload, domains, network, calibration)
        time = time + outside
    return time


def _level_s(kind: str, payload_bytes: Floats | float, n: int, link: Link, calibration: Calibration) -> Floats:
    transfer_s = wire_bytes(kind, payload_bytes, n) / (link.bandwidth_bytes_per_s * calibration.link_efficiency)
    return np.asarray(hops(kind, n, link.topology) * link.latency_s + transfer_s * bisection_ratio(kind, n, link.topology))
