"""What one replica can serve at steady state, in closed form: prefill and decode share the same chips.

The serving discipline is that of continuous batching with prefill first: a request that arrives is prefilled as soon as the prefills before it
are done, between two decode steps; then its sequence joins the batch. All functions are pure and take arrays (any shapes that broadcast).

Derivation. Let `b` sequences decode together, a decode step take `t(b)` seconds, a request's prefill `p` seconds of the replica, and a request
need `n` decode steps on average (its first token comes from its prefill). A step emits `b` tokens, so `b / n` requests end in it, and as many must be
prefilled meanwhile. The time between two tokens of a sequence is therefore, on average, `c = t(b) + p b / n`, and by Little's law the request rate is
`b / (n c) = b / (n t(b) + b p)`: each request costs `p + n t(b) / b` seconds of the replica. At saturation with `b` slots this is exact for any
distribution of lengths (renewal reward), which the tests hold against a discrete-event simulation.

A pipeline of `s` stages keeps `s` groups of `b / s` sequences in flight: with `t` the latency of one group through all stages (or `s` times the slowest
stage, if longer) and `p` the time that a prefill holds a stage, every stage is a server as above and the same formulas hold.

Source: Little 1961; Pollaczek-Khinchine mean wait of the M/G/1 queue (Kleinrock, Queueing Systems I, 1975, 5.6); Kingman 1962 for the exponential
tail in heavy traffic; Agrawal et al., Sarathi-Serve, OSDI 2024, for prefill and decode sharing a replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Slo:
    """Bound time to first token and time per output token for the share `quantile` of requests."""

    ttft_s: float
    tpot_s: float
    quantile: float = 0.9


@dataclass(frozen=True, slots=True)
class Lengths:
    """Hold the moments and quantiles of a service's prompts and answers that steady state needs, in tokens.

    `in_flight_mean` and `in_flight_deviation` are of the context of a sequence met decoding at a random moment; `input_quantile` is the prompt at
    the SLO's quantile. `source` says where they come from.
    """

    name: str
    input_mean: float
    input_mean_square: float
    input_quantile: float
    output_mean: float
    in_flight_mean: float
    in_flight_deviation: float
    source: str = ""


def batch_context(lengths: Lengths, batch: ArrayLike, z: float) -> Array:
    """Return the mean context of `batch` sequences in flight that is not exceeded with the normal score `z`.

    The mean of `batch` independent contexts has deviation `in_flight_deviation / sqrt(batch)` (central limit). It sizes the KV cache and times
    the decode step at the SLO's quantile.
    """
    return np.asarray(lengths.in_flight_mean + z * lengths.in_flight_deviation / np.sqrt(np.asarray(batch, dtype=np.float64)))


def mean_prefill_s(short_s: ArrayLike, long_s: ArrayLike, tokens: tuple[float, float], *, mean: float, mean_square: float) -> Array:
    """Return the expected prefill time over prompts with the given first two moments, from the times of a short and a long prompt of `tokens`.

    Through both points goes `a n + d n^2` (weights and attention); its expectation is `a mean + d mean_square`. Where rounding up to tiles makes
    the curvature negative, the time is taken as linear through the short point.
    """
    short_tokens, long_tokens = tokens
    per_short = np.asarray(short_s, dtype=np.float64) / short_tokens
    if long_tokens == short_tokens:
        return np.asarray(per_short * mean)
    with np.errstate(invalid="ignore"):  # a chip that cannot run the step has infinite times, and an infinite mean
        curvature = np.maximum((np.asarray(long_s, dtype=np.float64) / long_tokens - per_short) / (long_tokens - short_tokens), 0.0)
        slope = np.maximum(per_short - curvature * short_tokens, 0.0)
        expected = slope * mean + curvature * mean_square
    return np.asarray(np.where(np.isfinite(per_short), expected, np.inf))


def token_period_s(step_s: ArrayLike, prefill_s: ArrayLike, batch: ArrayLike, decode_steps: float) -> Array:
    """Return the average time between two tokens of a sequence, `t + p b / n`: a decode step and its share of prefills."""
    return np.asarray(np.asarray(step_s) + np.asarray(prefill_s) * np.asarray(batch) / decode_steps)


def request_rate_per_s(step_s: ArrayLike, prefill_s: ArrayLike, batch: ArrayLike, decode_steps: float) -> Array:
    """Return the requests per second of a replica that decodes `batch` sequences at a time, `b / (n t + b p)`."""
    b = np.asarray(batch, dtype=np.float64)
    return np.asarray(b / (decode_steps * np.asarray(step_s) + b * np.asarray(prefill_s)))


def prefill_wait_s(rate_per_s: ArrayLike, prefill_s: ArrayLike, square_ratio: float, quantile: float) -> Array:
    """Return the wait before a prefill starts that the share `quantile` of requests does not exceed.

    Requests arrive at random (Poisson) and prefills come first, so they queue as M/G/1 with load `r = rate * p`: the mean wait is
    `r p square_ratio / (2 (1 - r))` with `square_ratio = E[p^2] / E[p]^2`; a share `r` waits at all, those exponentially with mean `mean / r`
    (exact for exponential service, Kingman's limit in heavy traffic), so that the quantile is `(mean / r) ln(r / (1 - quantile))`.
    Infinite at `r >= 1`.
    """
    load = np.asarray(rate_per_s, dtype=np.float64) * np.asarray(prefill_s)
    with np.errstate(divide="ignore", invalid="ignore"):
        if_waiting_s = np.asarray(prefill_s) * square_ratio / (2 * (1 - load))
        wait_s = if_waiting_s * np.log(np.maximum(load / (1 - quantile), 1.0))
    return np.asarray(np.where(load < 1, wait_s, np.inf))


def ttft_s(
    rate_per_s: ArrayLike, prefill_s: ArrayLike, square_ratio: float, *, step_s: ArrayLike, long_prefill_s: ArrayLike, quantile: float
) -> Array:
    """Return a bound on time to first token at a quantile: wait for earlier prefills, the decode step under way, and a long prompt's own prefill.

    Limits: adding quantiles of wait and of prompt length overstates that of their sum (both are rarely long at once), never understates it
    by more than the exponential tail of `prefill_wait_s` does.
    """
    return np.asarray(prefill_wait_s(rate_per_s, prefill_s, square_ratio, quantile) + np.asarray(step_s) + np.asarray(long_prefill_s))
