"""Run nightly tests and write what came of them as a page: python bench/nightly.py [--page FILE] [arguments of pytest]

Without arguments for pytest: every nightly test. The page says which commit, which machine, and of each test the outcome, the seconds and the figures
that it recorded (`record_property`). The exit code is pytest's.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "nightly.md"
EVERY = ("-m", "nightly", "tests")


@dataclass
class Line:
    """A test function of the page: outcomes and seconds of its cases, and what they recorded."""

    outcomes: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    figures: list[str] = field(default_factory=list)


def lines(report: Path) -> dict[tuple[str, str], Line]:
    """Return the lines of a JUnit report by (file, test)."""
    found: dict[tuple[str, str], Line] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        place = case.get("classname", "").replace(".", "/")
        line = found.setdefault((place, case.get("name", "").partition("[")[0]), Line())
        line.outcomes[_outcome(case)] += 1
        line.seconds += float(case.get("time", 0))
        line.figures += [f"{p.get('name')}: {_figure(p.get('value', ''))}" for p in case.iter("property")]
    return found


def _outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    skipped = case.find("skipped")
    if skipped is None:
        return "passed"
    return "failed as expected" if skipped.get("type") == "pytest.xfail" else "skipped"


def _figure(value: str) -> str:
    return f"{int(value):,}" if value.isdigit() else value.replace("|", "\\|")


def commit() -> str:
    """Return the commit that is checked out, and whether files differ from it; "not known" outside a repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "tests", "bench", "pyproject.toml")
    return (git("rev-parse", "--short=12", "HEAD") or "not known") + (" with changes that are not committed" if changed else "")


def machine() -> str:
    """Return cores and model of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {models[0] if models else 'processor not known'}"


def page(found: dict[tuple[str, str], Line], arguments: list[str], of: str) -> str:
    """Return the page, Markdown."""
    outcomes: Counter = sum((line.outcomes for line in found.values()), Counter())
    rows = [
        f"| {place} | {test.replace('_', ' ')} | {', '.join(f'{n} {outcome}' for outcome, n in sorted(line.outcomes.items()))} | {line.seconds:,.1f} "
        f"| {'; '.join(dict.fromkeys(line.figures))} |"
        for (place, test), line in sorted(found.items(), key=lambda item: item[0][0])
    ]
    return "\n".join(
        [
            "# The last recorded night",
            "",
            f"`python bench/nightly.py {shlex.join(arguments)}`".replace(" `", "`"),
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, commit {of}, {machine()}: {', '.join(f'{n} {o}' for o, n in sorted(outcomes.items()))} in "
            f"{sum(line.seconds for line in found.values()):,.0f} seconds of tests.",
            "",
            "| file | test | cases | seconds | recorded |",
            "| --- | --- | --- | ---: | --- |",
            *rows,
            "",
        ]
    )


def main(arguments: list[str]) -> int:
    target = PAGE
    if arguments[:1] == ["--page"]:
        target, arguments = Path(arguments[1]), arguments[2:]
    of = commit()  # before the tests, which take hours
    with tempfile.TemporaryDirectory(prefix="fabless-nightly-") as name:
        report = Path(name) / "report.xml"
        command = [sys.executable, "-m", "pytest", "--timeout", "7200", f"--junitxml={report}", *(arguments or EVERY)]
        done = subprocess.run(command, cwd=ROOT, check=False)
        if not report.exists():
            return done.returncode
        target.write_text(page(lines(report), arguments, of))
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
