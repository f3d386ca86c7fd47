"""Lengths of requests: from public traces by name, or from the quantiles that a person knows of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import InputError, nearest
from fabless.core.sources import table
from fabless.fleet.capacity import Lengths

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GRID = 2000  # midpoints of the quantile function: means of the fitted curve to better than 1%


def named_lengths(name: str, quantile: float, *, where: str = "lengths") -> Lengths:
    """Return the lengths of a trace in `data/traffic.toml`; raises `InputError` naming the nearest."""
    facts = table("traffic").select(lengths=name)
    known = sorted({str(f.attributes["lengths"]) for f in table("traffic")})
    if not facts:
        raise InputError(f"{where}: no trace is called '{name}'{nearest(name, known)}; known: {', '.join(known)}")
    row = {f.id.removeprefix(f"{name}."): f.known for f in facts}
    quantiles = ((0.5, row["input_p50"]), (0.9, row["input_p90"]), (0.95, row["input_p95"]), (0.99, row["input_p99"]))
    return Lengths(
        name,
        row["input_mean"],
        row["input_mean_square"],
        _quantile(quantiles, quantile),
        row["output_mean"],
        row["in_flight_mean"],
        row["in_flight_deviation"],
        facts[0].source.title,
    )


Quantiles = tuple[float, float, float, float | None]


def quantile_lengths(input: Quantiles, output: Quantiles, quantile: float, *, where: str) -> Lengths:
    """Return lengths from (p50, p90, p99, mean or None) of prompts and answers, taken as independent of each other.

    Between the quantiles the logarithm of the length is linear in the normal score (log-normal pieces); below p50 and beyond p99 the first and last pieces go
    on, up to the normal score of one in 2,000. A stated mean replaces that of the curve, and scales its higher moments with it.
    """
    prompt, answer = _curve(input, f"{where}.input"), _curve(output, f"{where}.output")
    answer_mean, answer_square, answer_cube = (float(np.mean(answer**k)) for k in (1, 2, 3))
    prompt_mean, prompt_square = float(np.mean(prompt)), float(np.mean(prompt**2))
    # A sequence met at a random moment is chosen in proportion to its answer and seen at a uniform position u of it: context = prompt + u * answer.
    generated, generated_square = answer_square / answer_mean / 2, answer_cube / answer_mean / 3
    variance = prompt_square - prompt_mean**2 + generated_square - generated**2
    return Lengths(
        "quantiles",
        prompt_mean,
        prompt_square,
        _quantile(((0.5, input[0]), (0.9, input[1]), (0.99, input[2])), quantile),
        answer_mean,
        prompt_mean + generated,
        float(np.sqrt(max(variance, 0.0))),
        "quantiles given in the study",
    )


def normal_score(quantile: float) -> float:
    """Return the normal score of a quantile: 1.2816 for 0.9."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(quantile)


def _curve(quantiles: Quantiles, where: str) -> NDArray[np.float64]:
    p50, p90, p99, mean = quantiles
    if not p50 <= p90 <= p99:
        raise InputError(f"{where}: quantiles must rise, p50 <= p90 <= p99, not {p50:g}, {p90:g}, {p99:g}")
    scores = np.array([normal_score((i + 0.5) / _GRID) for i in range(_GRID)])
    knots, logs = np.array([0.0, normal_score(0.9), normal_score(0.99)]), np.log([p50, p90, p99])
    slopes = np.diff(logs) / np.diff(knots)
    piece = np.where(scores <= knots[1], logs[0] + slopes[0] * scores, logs[1] + slopes[1] * (scores - knots[1]))
    lengths = np.maximum(np.exp(piece), 1.0)
    return np.asarray(lengths if mean is None else lengths * (mean / lengths.mean()))


def _quantile(known: tuple[tuple[float, float], ...], quantile: float) -> float:
    """Interpolate the logarithm of a quantile linearly in the normal score, the outermost pieces extended."""
    scores = [normal_score(q) for q, _ in known]
    logs = [float(np.log(v)) for _, v in known]
    z = normal_score(quantile)
    i = min(max(int(np.searchsorted(scores, z)) - 1, 0), len(scores) - 2)
    return float(np.exp(logs[i] + (logs[i + 1] - logs[i]) * (z - scores[i]) / (scores[i + 1] - scores[i])))
