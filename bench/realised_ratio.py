"""Print what chips that exist reach of their own roofline with a perfect schedule, serving the example studies: python bench/realised_ratio.py

A chip is timed twice, with its family's calibration and with none (`realised_ratio` = 1); the ratio of the fewest chips that serve the study's traffic
is the row `realised_ratio` of `data/study_defaults.toml`.
"""

from __future__ import annotations

from dataclasses import replace

from fabless.chip.catalogue import load_chip
from fabless.explore.comparison import fit
from fabless.explore.study import read_study

CHIPS = ("nvidia_h100_sxm", "nvidia_h200_sxm", "nvidia_b200_sxm", "amd_mi300x", "amd_mi355x", "google_tpu_v7")


def main() -> None:
    for name in ("chat", "frontier"):
        study = read_study(f"examples/{name}.toml")
        for chip in map(load_chip, CHIPS):
            measured, ideal = (fit(study, [c])[0] for c in (chip, replace(chip, family="fabless")))
            if isinstance(measured, str) or isinstance(ideal, str):
                print(f"{name:10} {chip.name:30} {measured if isinstance(measured, str) else ideal}")
                continue
            n_measured, n_ideal = (sum(f.service.n_chips for f in fits) for fits in (measured, ideal))
            print(f"{name:10} {chip.name:30} {n_ideal:9,} chips by the roofline, {n_measured:9,} calibrated: {n_ideal / n_measured:.2f}")


if __name__ == "__main__":
    main()
