"""Turn the output of `fit_serving.py --leave-out=...` into data/software_left_out.toml and the residual bands of data/transfer.toml.

python bench/left_out_rows.py ../shared/data/silicon/measured.csv fits.jsonl ...
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from fabless.core.sources import table

DATA = Path(__file__).parents[1] / "src/fabless/data"
SOURCE = [
    "[sources.left_out]",
    'title = "Serving measurements with one chip or model left out; parameters and residuals by bench/fit_serving.py and left_out_rows.py"',
    'publisher = "fabless, on measurements of aiconfigurator, InferenceX, Splitwise, AWS Neuron, TensorRT-LLM, MLPerf, tt-metal, tpu-recipes"',
    'date = "2026-11"',
    'url = "https://github.com/ai-dynamo/aiconfigurator"',
    "",
]
#: A band over fewer rows says little about the family: it gets the transfer row.
FEWEST_ROWS = 8


def parameters(files):
    """Write the parameters of all files over those stored: fits that a run did not repeat stay, of two fits of one thing the later counts."""
    rows = defaultdict(dict)
    for f in table("software_left_out"):
        kind = "chip" if "chip" in f.attributes else "model"
        rows[f.attributes["generation"], kind, f.attributes[kind]][f.attributes["parameter"]] = f.known
    for file in files:
        for line in Path(file).read_text().splitlines():
            if line.startswith("{"):
                entry = json.loads(line)
                kind = "chip" if "chip" in entry else "model"
                rows[entry["generation"], kind, entry[kind]] = entry["values"]
    lines = [
        "# Software parameters fitted without one chip or one model (bench/fit_serving.py --leave-out): for cross-validation alone.",
        "",
        *SOURCE,
    ]
    for (generation, kind, name), values in sorted(rows.items()):
        for parameter, value in values.items():
            unit = "s" if parameter.endswith("_s") else "ratio"
            lines += [
                "[[rows]]", f'id = "{generation}.{kind}.{name}.{parameter}"', f"value = {value:.6g}", f'unit = "{unit}"', 'kind = "derived"',
                'source = "left_out"', f'generation = "{generation}"', f'{kind} = "{name}"', f'parameter = "{parameter}"', "",
            ]  # fmt: skip
    (DATA / "software_left_out.toml").write_text("\n".join(lines))


def bands(measured):
    from fabless.fleet.error_band import KINDS
    from fabless.validate.validation import validate

    groups = defaultdict(list)
    for row in validate(measured, leave_out="chip").rows:
        if row.kind in KINDS:
            groups[row.family, row.kind].append(abs(row.error))
            groups["transfer", row.kind].append(abs(row.error))
    lines = [
        "# Half-width of the 80% band of a prediction on a chip whose rows the fit has not seen, by family and kind of number.",
        "",
        *SOURCE,
    ]
    for (family, kind), errors in sorted(groups.items()):
        if len(errors) >= FEWEST_ROWS:
            lines += [
                "[[rows]]", f'id = "{family}.{kind}"', f"value = {np.quantile(errors, 0.8):.4g}", 'unit = "ratio"', 'kind = "derived"',
                'source = "left_out"', f'note = "80th percentile of {len(errors)} rows, median {np.median(errors):.3g}"', f'family = "{family}"',
                f'metric = "{kind}"', "",
            ]  # fmt: skip
    (DATA / "transfer.toml").write_text("\n".join(lines))


if __name__ == "__main__":
    parameters(sys.argv[2:])
    bands(Path(sys.argv[1]))
