"""The page of a night says what the tests said."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.mark.parametrize("n", [1, 2])
def test_that_counts(n, record_property):
    record_property("vectors", 20_000_000)

def test_that_fails():
    assert False

@pytest.mark.xfail
def test_that_falls_short():
    assert False

@pytest.mark.skip(reason="not tonight")
def test_that_waits():
    pass
"""


def test_a_page_has_commit_machine_outcomes_and_figures_and_a_failure_its_code(tmp_path):
    (tmp_path / "test_night.py").write_text(TESTS)
    page = tmp_path / "page.md"
    command = [sys.executable, ROOT / "bench/nightly.py", "--page", page, "-n0", "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    done = subprocess.run([*command, tmp_path / "test_night.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    text = page.read_text()
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    assert f"commit {head or 'not known'}" in text
    assert " cores, " in text
    assert "1 failed, 1 failed as expected, 2 passed, 1 skipped" in text
    assert "| test that counts | 2 passed |" in text
    assert "vectors: 20,000,000 |" in text
    assert "| test that fails | 1 failed |" in text
