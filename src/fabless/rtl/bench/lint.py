"""Lint of the emitted Verilog: Verilator -Wall, and every warning that we let stand with its reason."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fabless.rtl.bench.build import require_tools, verilator


@dataclass(frozen=True, slots=True)
class Warning:
    """Hold one warning: Verilator's rule, what it says, and the line of Verilog that it is about."""

    rule: str
    says: str
    line: str


@dataclass(frozen=True, slots=True)
class Waiver:
    """Let warnings of a rule stand where their text and line match, for a reason."""

    rule: str
    says: str
    line: str
    reason: str

    def covers(self, warning: Warning) -> bool:
        """Return whether the waiver is about a warning."""
        return warning.rule == self.rule and bool(re.search(self.says, warning.says) and re.search(self.line, warning.line))


#: The text is what Amaranth and its Yosys write; what they do by design, for every expression of a kind, is waived by kind, the rest one by one.
WAIVERS = (
    Waiver("DECLFILENAME", "", "", "one file holds all modules"),
    Waiver("PROCASSINIT", "", "", "registers have a power-on value beside their reset, which FPGAs and simulation load"),
    Waiver("CASEINCOMPLETE", "", r"^casez ", "Amaranth assigns the default before each case: a latch would be LATCH, which is not waived"),
    Waiver(
        "WIDTHEXPAND", r"^Operator (LTES?|LTS?|GTES?|GTS?|EQ|NEQ|ADD|SUB|NEGATE|SHIFTL|SHIFTR) ", "",
        "operands of an operator are extended as Amaranth defines and IEEE 1800 does; assignments and ports are not waived",
    ),
    Waiver("WIDTHTRUNC", r"^Logical operator LOGNOT ", r"= ! ", "Yosys writes 'is zero' as ! of many bits"),
    Waiver("WIDTHTRUNC", r"^Operator ASSIGNW expects", r">> ", "word_select: the word is what the shift brings to the low bits"),
    Waiver("UNUSEDSIGNAL", r"'\\?\$", r"^wire ", "an intermediate result of an expression, of which a slice is used or an alias"),
    Waiver("UNUSEDSIGNAL", "^Signal is not used", r"^wire ", "a name that Amaranth keeps for waveforms; logic reads what drives it"),
    Waiver("UNUSEDSIGNAL", r"'rounded'\[23\]", r"^wire ", "the leading one of a rounded significand is not stored"),
    Waiver("UNUSEDSIGNAL", r"'small'\[31\]", r"^wire ", "of the smaller summand's sign only whether it differs from the other's is asked"),
    Waiver("UNUSEDSIGNAL", "'rst'", r"^input ", "every placed block has a reset port; a leaf of data registers needs none"),
    Waiver("UNUSEDSIGNAL", r"'(rise|square)'\[18:0\]", r"^reg ", "bits below the fixed point: floor drops them, synthesis too"),
    Waiver("UNUSEDSIGNAL", r"'tags5'\[43\]", r"^reg ", "what travels beside a function keeps one width; the last stage needs not know which"),
    Waiver("UNUSEDSIGNAL", r"'index_shift0'\[13\]", r"^reg ", "the leading one of a normalised integer is not stored"),
    Waiver("UNUSEDSIGNAL", r"'flags'\[4\]", r"^reg ", "the sign of a block's scale: a scale is positive"),
    Waiver("UNUSEDSIGNAL", r"'c10'\[19:\d+\]", r"^reg ", "addresses have 20 bits everywhere; the accumulators of this tile need fewer"),
    Waiver("UNUSEDSIGNAL", r"'\w*address(\$\d+)?'\[(19|31):\d+\]", r"^(wire|input) ", "addresses have one width; this tile's buffers need less"),
    Waiver("UNUSEDSIGNAL", r"'push(\$\d+)?'\[0\]", r"^wire ", "one bit a queue: the sequencer pushes no instruction to itself"),
    Waiver("UNUSEDSIGNAL", r"'recv_sub1'", r"^reg ", "what travels beside a beat keeps one width; a wide link asks for less of it"),
    Waiver("UNUSEDSIGNAL", r"'stays'", r"^reg ", "a queue tells whether its head stays; the one of the link alone is asked"),
    Waiver("CMPCONST", "", r"> (2'h3|3'h7|4'hf|5'h1f|6'h3f) ?;", "no remainder is above the last lane's number, the others' comparisons are live"),
)  # fmt: skip


def warnings_of(verilog: str, top: str) -> list[Warning]:
    """Return what Verilator -Wall says of a text with top module `top`; raise `MissingToolError` without Verilator."""
    require_tools()
    program = verilator()
    assert program is not None  # require_tools was called
    with tempfile.TemporaryDirectory(prefix="fabless-lint-") as directory:
        (Path(directory) / "top.v").write_text(verilog)
        run = subprocess.run(
            [program, "--lint-only", "-Wall", "-Wno-fatal", "--top-module", top, "top.v"], cwd=directory, capture_output=True, text=True, check=False,
            env={**os.environ, "VERILATOR_ROOT": str(program.parent.parent)},
        )  # fmt: skip
    parts = re.split(r"^%(?=Warning|Error)", run.stderr, flags=re.MULTILINE)[1:]
    return [_parsed(part) for part in parts if not part.startswith("Error: Exiting")]


def _parsed(part: str) -> Warning:
    head, *rest = part.splitlines()
    rule, says = re.match(r"(?:Warning-|Error-?)(\w*): (?:\S+:\d+:\d+: )?(.*)", head).groups()  # type: ignore[union-attr] # always matches
    line = next((found[1].strip() for r in rest if (found := re.match(r"\s*\d+ \|(.*)", r))), "")
    return Warning(rule or "ERROR", says, line)


def lint(verilog: str, top: str) -> tuple[list[Warning], Counter[Waiver]]:
    """Return the warnings that no waiver covers, and how many each waiver let stand."""
    left, waived = [], Counter[Waiver]()
    for warning in warnings_of(verilog, top):
        waiver = next((w for w in WAIVERS if w.covers(warning)), None)
        if waiver is None:
            left.append(warning)
        else:
            waived[waiver] += 1
    return left, waived
