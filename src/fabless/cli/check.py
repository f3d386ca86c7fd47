"""Commands that hold predictions against the world: validate against measured silicon, time a training step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from fabless.cli.say import say, say_json, say_pairs, say_table
from fabless.core.units import si

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fabless.validate.checked import Summary

Json = Annotated[bool, Parameter(name="--json", negative="")]


def validate(
    table: Path,
    *,
    leave_out: Literal["chip", "model"] | None = None,
    lenient: Annotated[bool, Parameter(negative="")] = False,
    rows: Path | None = None,
    report: Path | None = None,
    json: Json = False,
) -> None:
    """Predict every row of a table of measurements and print the errors by chip family and by kind of number.

    Args:
        table: a CSV file, or a directory of them: serving measurements, matrix products, attention or collectives.
        leave_out: cross-validate: predict each row with software parameters fitted on the rows of other chips (or models), never on its own.
        lenient: skip and count wrong rows instead of stopping at the first.
        rows: write every checked row to this CSV file.
        report: write a page with predicted against measured to this HTML file.
        json: print JSON instead of tables.
    """
    from fabless.validate.validation import validate as run

    result = run(table, lenient=lenient, leave_out=leave_out)
    if rows is not None:
        from fabless.core.files import write_text
        from fabless.validate.table import rows_csv

        write_text(rows, rows_csv(result))
    if report is not None:
        from fabless.core.files import write_text
        from fabless.report.validation_page import validation_page

        write_text(report, validation_page(result, f"fabless validate {table}"))
    if json:
        say_json(result.as_dict())
        return
    _say_summaries("family", [*result.families, result.overall])
    say()
    _say_summaries("kind of number", result.kinds)
    if result.skipped:
        say()
        say_table(("not predicted, because", "rows"), [(reason, f"{n:,}") for reason, n in result.skipped], right=(1,))


def _say_summaries(head: str, summaries: Iterable[Summary]) -> None:
    rows = [(s.name, f"{s.n:,}", _percent(s.bias, "+"), _percent(s.median_ape), _percent(s.p90_ape)) for s in summaries]
    say_table((head, "rows", "bias", "median error", "90th percentile"), rows, right=(1, 2, 3, 4))


def _percent(ratio: float, sign: str = "") -> str:
    return "-" if ratio != ratio else f"{100 * ratio:{sign}.1f}%"  # noqa: PLR0124  # NaN alone differs from itself


def train(description: Path, *, json: Json = False) -> None:
    """Time one training step: forward, backward, recomputation, pipeline bubble, exchanges, optimizer, and the memory it needs.

    Args:
        description: a TOML file such as examples/train.toml: model, chip, precision, parallelism, batch.
        json: print JSON instead of text.
    """
    from fabless.sim.training_file import read_training

    run = read_training(description)
    step = run.step()
    if json:
        say_json(
            {
                "name": run.name,
                "model": run.model.name,
                "chip": run.chip.name,
                "seconds": step.seconds,
                "mfu_ratio": step.mfu_ratio,
                "step": step,
            }
        )
        return
    say(f"{run.name}: {run.model.name} on {run.training.n_chips:,} × {run.chip.name}")
    say_pairs([
        ("step", f"{si(step.seconds, 's')}, {step.mfu_ratio:.1%} of peak"),
        *((name.removesuffix("_s").replace("_", " "), f"{si(getattr(step, name), 's')} ({getattr(step, name) / step.seconds:.0%})")
          for name in ("forward_s", "backward_s", "recompute_s", "bubble_s", "send_s", "gradient_exchange_s", "optimizer_s")),
        ("memory", f"{si(step.memory_bytes, 'B')} of {si(run.chip.memory_capacity_bytes, 'B')} on the fullest chip"),
    ])  # fmt: skip
