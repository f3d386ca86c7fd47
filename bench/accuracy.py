"""Write the accuracy table of README.md and docs/accuracy.md from one run over the published measurements.

    python bench/accuracy.py ../shared/data/silicon

The directory holds measured.csv and kernels/; docs/accuracy.md names where the rows were published.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fabless.validate.checked import Checked, Summary
from fabless.validate.validation import Validation, validate

ROOT = Path(__file__).parents[1]
START, END = "<!--accuracy-->", "<!--/accuracy-->"
#: What a reader asks about -> the kinds of number that answer it.
QUESTIONS = {
    "matrix products, five GPUs": ("gemm",),
    "attention kernels, five GPUs": ("attention_prefill", "attention_decode"),
    "collectives, five GPUs": ("comm",),
    "time per output token (static and closed loop)": ("tpot",),
    "time to first token without queueing": ("ttft",),
    "time to first token in closed loops": ("ttft_queued",),
    "offline throughput": ("offline",),
    "average power": ("power",),
}


def line(name: str, s: Summary) -> str:
    return f"| {name} | {s.n:,} | {s.median_ape:.1%} | {s.p90_ape:.0%} | {s.bias:+.1%} |"


def table(head: str, summaries: list[tuple[str, Summary]]) -> str:
    return "\n".join(
        [
            f"| {head} | rows | median error | 90th percentile | bias |",
            "| --- | ---: | ---: | ---: | ---: |",
            *(line(n, s) for n, s in summaries),
        ]
    )


def main() -> None:
    data = Path(sys.argv[1])
    serving, kernels = validate(data / "measured.csv"), validate(data / "kernels")
    rows = (*kernels.rows, *serving.rows)
    left_out = validate(data / "measured.csv", leave_out="chip")

    def of(kinds: tuple[str, ...], among: tuple[Checked, ...] = rows) -> Summary:
        return Summary.of("", [r for r in among if r.kind in kinds])

    questions = [(name, of(kinds)) for name, kinds in QUESTIONS.items()]
    questions.append(("time per output token, the chip left out of the fit", of(("tpot",), left_out.rows)))
    short = table("what", questions)
    readme = ROOT / "README.md"
    before, rest = readme.read_text("utf-8").split(START)
    after = rest.split(END)[1]
    skipped = sum(n for _, n in serving.skipped)
    said = (
        f"\n{len(rows):,} measurements on {len({r.chip for r in rows})} chips. Parameters are fitted per chip family and software generation on these rows,\n"
        f"but for the last line. {skipped} of {len(serving.rows) + skipped:,} serving rows have no prediction, each with its reason.\n"
    )
    readme.write_text(f"{before}{START}\n{short}\n{said}{END}{after}", "utf-8")
    (ROOT / "docs" / "accuracy.md").write_text(page(short + "\n" + said, serving, left_out), "utf-8")


def page(short: str, serving: Validation, left_out: Validation) -> str:
    families = [(s.name, Summary.of("", [r for r in serving.rows if r.family == s.name and r.kind == "tpot"])) for s in serving.families]
    left = [(s.name, Summary.of("", [r for r in left_out.rows if r.family == s.name and r.kind == "tpot"])) for s in left_out.families]
    kinds = [(s.name, s) for s in serving.kinds]
    skipped = "\n".join(["| reason | rows |", "| --- | ---: |", *(f"| {reason} | {n} |" for reason, n in serving.skipped)])
    return "\n".join([
        "# Accuracy", "",
        "Written by `python bench/accuracy.py DIRECTORY`; `fabless validate FILE.csv --report page.html` draws the same for any table. Errors are",
        "predicted / measured - 1. Parameters are fitted per architecture family and per software generation on these rows (`bench/fit_kernels.py`,",
        "`bench/fit_serving.py`), none per row or per model; rows marked left out are predicted with parameters fitted without that chip.", "",
        short, "", "## Time per output token by family", "", table("family", [f for f in families if f[1].n]), "",
        "## The same, the chip left out of the fit", "", table("family", [f for f in left if f[1].n]), "",
        "## Every kind of number", "", table("kind", kinds), "", "## Rows without a prediction", "", skipped, "",
        "## Where the measurements come from", "",
        "Serving and static batches: InferenceMAX / InferenceX (SemiAnalysis), ai-dynamo/aiconfigurator, NVIDIA TensorRT-LLM performance overview,",
        "MLPerf Inference v4.1 to v6.1, Splitwise (Microsoft), AWS Neuron benchmarks, LLMServingSim, Tenstorrent tt-metal, Google tpu-recipes.",
        "Kernels: aiconfigurator-core 0.12.0 (A100, H100, H200, B200, RTX PRO 6000).", "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
