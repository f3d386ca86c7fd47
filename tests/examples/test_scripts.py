"""Every script of examples/ runs as a reader would run it, says something, and stays short."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("[0-9]*.py"))
# What each must say: words that only a working run prints.
SAYS = {
    "01_estimate_a_step": ["1 chips: ", "4 chips: ", "bound by memory"],
    "02_your_own_chip": ["mm²", "matrix units", "W to cool for"],
    "03_price_a_chip": ["dies on a wafer", "once, for the design"],
    "04_a_small_study": ["The best chip to build is", "on the front"],
    "05_sweep_batch_and_context": ["NVIDIA H100", "16384"],
    "06_compare_chips": ["tokens/s a chip", "NVIDIA H100 SXM"],
    # 17.5 G multiply-accumulates and 86.5 M parameters: ViT-B/16 as published (less its class token).
    "07_from_pytorch": ["34.9 GFLOP an image, 173 MB of weights", "images/s on NVIDIA H100 SXM"],
}
# What a script needs beyond the core, and the extra that brings it.
NEEDS = {"07_from_pytorch": ("torch", "torch")}


def test_every_script_is_expected():
    assert {path.stem for path in SCRIPTS} == set(SAYS)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs_anywhere(path, tmp_path):
    if path.stem in NEEDS:
        package, extra = NEEDS[path.stem]
        pytest.importorskip(package, reason=f"an optional extra: pip install 'fabless[{extra}]'")
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in SAYS[path.stem]:
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_is_short_and_says_what_for(path):
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= 30
    assert lines[0].startswith('"""')
