"""Write an answer as files that other programs read: each appears whole or not at all, and the same answer gives the same bytes."""

from __future__ import annotations

import csv
import json
from hashlib import sha256
from importlib.resources import files
from io import BytesIO, StringIO
from typing import TYPE_CHECKING

import fabless
from fabless.chip.check import write_chip
from fabless.core.files import write_bytes, write_text
from fabless.explore.dispatch import code_digest

if TYPE_CHECKING:
    from pathlib import Path

    from fabless.cost.bill import Bill
    from fabless.explore.answer import Answer
    from fabless.explore.frontier import Frontier
    from fabless.explore.study import Study


def write_outputs(answer: Answer, directory: Path) -> tuple[Path, ...]:
    """Write frontier.parquet, chip.toml, bill.csv and study.lock into a directory and return their paths.

    Raises `InputError` naming the path when the disk is full or the directory not writable.
    """
    paths = tuple(directory / name for name in ("frontier.parquet", "chip.toml", "bill.csv", "study.lock"))
    write_bytes(paths[0], frontier_bytes(answer.frontier))
    write_text(paths[1], write_chip(answer.chip))
    write_text(paths[2], bill_csv(answer.bill))
    write_text(paths[3], study_lock(answer.frontier.study))
    return paths


def frontier_bytes(frontier: Frontier) -> bytes:
    """Return a frontier's rows as a Parquet file; study, digest and seed are in its metadata."""
    import pyarrow.parquet as pq

    study = frontier.study
    facts = {
        "fabless": fabless.__version__,
        "study": study.name,
        "digest": study.digest,
        "seed": str(study.seed),
        "best_row": str(frontier.best),
    }
    file = BytesIO()
    pq.write_table(frontier.table().replace_schema_metadata(facts), file, compression="zstd")
    return file.getvalue()


def bill_csv(bill: Bill) -> str:
    """Return a bill's lines as CSV: dollars as they fall due and per year, low, middle and high, with the ids of their sources."""
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    ends = ("low", "mid", "high")
    rows.writerow(("group", "label", "when", "life_years", *(f"usd_{e}" for e in ends), *(f"usd_per_year_{e}" for e in ends), "sources"))
    for line in bill.lines:
        due, yearly = ((r.low, r.mid, r.high) for r in (line.usd, line.usd_per_year))
        figures = (f"{value:.2f}" for value in (*due, *yearly))
        rows.writerow((line.group, line.label, line.when, f"{line.life_years:g}", *figures, " ".join(line.sources)))
    return text.getvalue()


def study_lock(study: Study) -> str:
    """Return what an answer depends on, as TOML: version, study, seed, the code's digest and that of every table of facts."""
    entries = {
        entry.name.removesuffix(".toml"): sha256(entry.read_bytes()).hexdigest()[:16]
        for entry in files("fabless.data").iterdir()
        if entry.name.endswith(".toml")
    }
    lines = [
        f"fabless = {json.dumps(fabless.__version__)}",
        f"study = {json.dumps(study.name)}",
        f"study_digest = {json.dumps(study.digest)}",
        f"seed = {study.seed}",
        f"code_digest = {json.dumps(code_digest())}",
        "",
        "[tables]",
        *(f"{name} = {json.dumps(entries[name])}" for name in sorted(entries)),
    ]
    return "\n".join(lines) + "\n"
