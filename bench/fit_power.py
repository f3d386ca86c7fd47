"""Fit the three power ratios of data/power_calibration.toml to average power as a share of TDP.

python bench/fit_power.py ../shared/data/silicon/measured.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from fabless.fleet.power import utilisations
from fabless.model.step import Step
from fabless.validate.meaning import SkipError, case_of
from fabless.validate.predict import Predictor
from fabless.validate.rows import read_rows


def samples(path: Path):
    predictor = Predictor()
    for row in read_rows(path, lenient=True).rows:
        if row.metric != "average_power_fraction_of_tdp" or row.value == 0:
            continue
        try:
            case = case_of(row)
        except SkipError:
            continue
        steps, lengths = predictor.steps_of(case.deployment), case.experiment.lengths
        b, i, o = case.experiment.batch, int(lengths.input_tokens), int(lengths.output_tokens)
        first, token = steps.prompt_s(b, i), steps.decode_s(b, i + o / 2)
        total = first + (o - 1) * token
        of_prefill = np.array(utilisations(steps, Step.prefill(b, i), first))
        of_decode = np.array(utilisations(steps, Step.decode(b, i + o // 2), token))
        yield row, (of_prefill * first + of_decode * (o - 1) * token) / total


if __name__ == "__main__":
    pairs = list(samples(Path(sys.argv[1])))
    use = np.array([[1.0, *u] for _, u in pairs])
    measured = np.array([row.value for row, _ in pairs])

    def loss(x):
        error = np.abs(use @ x / measured - 1)
        return np.median(error) + 0.2 * np.mean(np.minimum(error, 0.5)) + 10 * np.sum(np.minimum(x, 0) ** 2)

    best = min((minimize(loss, start, method="Nelder-Mead") for start in ([0.28, 0.6, 0.7], [0.2, 0.3, 0.8])), key=lambda r: r.fun)
    for (row, u), p in zip(pairs, use @ best.x, strict=True):
        print(row.id, row.chips, row.concurrency, row.input_tokens, row.value, round(float(p), 3), np.round(u, 3))
    print("active, matrix, memory =", np.round(best.x, 3), "median error", np.median(np.abs(use @ best.x / measured - 1)).round(4))
