"""Cell-level mutants of a block's RTL, all in one simulator, each run against what a Python model says.

Yosys draws the mutants (a cell's input or output bit inverted, stuck at 0 or 1, or replaced by another); an input `mutsel` chooses one, 0 none.
A mutant is killed when an output differs from the model in a cycle in which the model says anything. Survivors that `equivalence` proves equal to the
block do not count.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from equivalence import Contract, Prover

from fabless.rtl.bench.build import compile_verilog, require_tools
from fabless.rtl.bench.leaf import place

if TYPE_CHECKING:
    from pathlib import Path

HARNESS = """#include "VTOP.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>
static std::vector<uint32_t> words(const char *path) {
  FILE *f = fopen(path, "rb"); std::vector<uint32_t> v; uint32_t block[16384];
  for (size_t n; (n = fread(block, 4, 16384, f)) > 0;) v.insert(v.end(), block, block + n);
  fclose(f); return v;
}
int main(int argc, char **argv) {
  auto in = words(argv[1]), expected = words(argv[2]);  // expected: for each output 1 and its words, or 0 and anything, a cycle
  size_t cycles = expected.size() / N_EXPECTED;
  for (int mutant = 0; mutant <= atoi(argv[3]); mutant++) {
    VTOP top;
    top.mutsel = mutant;
    top.clk = 0;
    const uint32_t *i = in.data(), *e = expected.data();
    bool same = true;
    size_t t = 0;
    for (; t < cycles; t++) {
      SETS
      top.eval();
      CHECKS
      if (!same) break;
      top.clk = 1; top.eval();
      top.clk = 0;
    }
    printf("%d %lld\\n", mutant, same ? -1LL : (long long)t);
  }
}
"""


@dataclass(frozen=True)
class Vectors:
    """Inputs by port, `[cycles, words]` uint32, and by output (known, codes): `[cycles]` bool and `[cycles, words]` uint32 of what the model says."""

    inputs: dict[str, np.ndarray]
    expected: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Subject:
    """A block whose mutants are drawn: its Verilog, its module, `vectors(cycles, seed)`, what its inputs may be, and a command of Yosys before the rest."""

    name: str
    verilog: object
    top: str
    vectors: object
    contract: Contract = field(default_factory=Contract)
    prepare: str = ""


@dataclass(frozen=True)
class Score:
    """What became of the mutants: how many were killed, and the lines of those that were not, proven equivalent or not."""

    killed: tuple[str, ...]
    equivalent: tuple[str, ...]
    survivors: tuple[str, ...]

    @property
    def share(self) -> float:
        return len(self.killed) / (len(self.killed) + len(self.survivors))

    def said(self) -> str:
        """Return the score in words, and every survivor."""
        return "\n".join(
            [
                f"{len(self.killed)} killed, {len(self.equivalent)} equivalent, {len(self.survivors)} survive: {self.share:.1%}",
                *self.survivors,
            ]
        )


def columns(values: list[int], width: int) -> np.ndarray:
    """Return integers as `[n, words]` uint32."""
    words = -(-width // 32)
    return np.frombuffer(b"".join(v.to_bytes(4 * words, "little") for v in values), np.uint32).reshape(-1, words)


def yosys(script: str, directory: Path) -> None:
    """Run a script of Yosys's commands, one a line."""
    code = "import sys; from pyosys import libyosys as y; d = y.Design(); [y.run_pass(l, d) for l in sys.argv[1].splitlines() if l]"
    run = subprocess.run([sys.executable, "-c", code, script], cwd=directory, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-1000:]


def simulator(subject: Subject, vectors: Vectors, mutants: int, seed: int, directory: Path) -> tuple[Path, dict[int, str]]:
    """Build the simulator of a block with so many mutants; return it and the line of each mutant. Writes base.il: what they were drawn from."""
    require_tools()
    (directory / "block.v").write_text(subject.verilog())
    # opt first: no mutant shall sit in logic that any synthesis throws away
    yosys(
        f"""read_verilog -sv block.v
hierarchy -top {subject.top}
proc
flatten
{subject.prepare}
opt -full
memory -nomap
wreduce
peepopt
opt -full
opt_clean
write_rtlil base.il
mutate -list {mutants} -seed {seed} -ctrl mutsel 16 1 -o mutants.ys
script mutants.ys
opt_clean
write_verilog -noattr mutated.v""",
        directory,
    )
    sets = "".join(place(name, 32 * v.shape[1], "{} = *i++; ") for name, v in vectors.inputs.items())
    checks = "".join(
        f"if (*e++) {{ {place(name, 32 * v.shape[1], 'same &= {} == *e++; ')}}} else e += {v.shape[1]};\n      "
        for name, (_, v) in vectors.expected.items()
    )
    n_expected = str(sum(1 + v.shape[1] for _, v in vectors.expected.values()))
    harness = HARNESS.replace("SETS", sets).replace("CHECKS", checks).replace("N_EXPECTED", n_expected).replace("VTOP", f"V{subject.top}")
    program = compile_verilog((directory / "mutated.v").read_text(), harness, top=subject.top, defines={}, optimise="-O1", more_flags=())
    lines = (directory / "mutants.ys").read_text().splitlines()
    return program, {int(line.split("-ctrl mutsel 16 ")[1].split()[0]): line for line in lines if "-ctrl mutsel" in line}


def run(subject: Subject, *, mutants: int, cycles: int, seed: int, directory: Path, prove: bool = True, seconds: float = 60) -> Score:
    """Draw mutants, run all of them, look into those that survive; the block itself must show what the model says, in every cycle.

    `seconds`: what the solver has for each question; a mutant that is not decided survives.
    """
    vectors = subject.vectors(cycles, seed)
    program, drawn = simulator(subject, vectors, mutants, seed, directory)
    n = len(next(iter(vectors.inputs.values())))
    np.concatenate(list(vectors.inputs.values()), axis=1).astype(np.uint32).tofile(directory / "stimulus")
    columns = [part for known, codes in vectors.expected.values() for part in (known.reshape(n, 1), codes)]
    np.concatenate(columns, axis=1).astype(np.uint32).tofile(directory / "expected")
    command = [str(program), str(directory / "stimulus"), str(directory / "expected"), str(mutants)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first = dict(map(int, line.split()) for line in said.splitlines())
    assert first[0] == -1, f"{subject.name} itself differs from the model in cycle {first[0]}"
    alive = [line for i, line in drawn.items() if first[i] == -1]
    prover = Prover(directory / "base.il", subject.top, subject.contract) if prove and alive else None
    verdicts = {line: prover.equivalent(line, seconds) if prover else "not looked into" for line in alive}
    return Score(
        tuple(line for i, line in drawn.items() if first[i] != -1),
        tuple(line for line in alive if not verdicts[line]),
        tuple(f"{verdicts[line]}: {short(line)}" for line in alive if verdicts[line]),
    )


def short(line: str) -> str:
    """Return what matters of a mutant's line."""
    return re.sub(r"mutate -ctrl \S+ \d+ (\d+)", r"\1", line).replace("-module ", "").split(" -src")[0]
