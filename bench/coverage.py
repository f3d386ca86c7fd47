"""Line and toggle coverage of the tile's RTL, block by block: python bench/coverage.py [programs]

Verilator counts while random programs and one decoded token of the embedded model run on the tiny tile; every run is held against the machine first.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from fabless.program.tile import TINY
from fabless.rtl.bench.run import COVERAGE, Simulation
from fabless.rtl.emit import tile_verilog

#: Lines that are no logic: what Yosys writes so that a process is evaluated once at time 0, and the dump of memories at the end of a simulation.
_ARTEFACT = re.compile(r"if \(\\\$auto\$verilog_backend|final if \(\$value\$plusargs")
_POINT = re.compile(r"^C '(?P<where>.*)' (?P<count>\d+)$")


def points(database: Path):
    """Yield (kind, module, place, count) of every coverage point."""
    for line in database.read_text(errors="replace").splitlines():
        match = _POINT.match(line)
        if match:
            fields = dict(part.split("\x02", 1) for part in match["where"].split("\x01") if "\x02" in part)
            kind, _, module = fields.get("page", "").partition("/")
            yield kind.removeprefix("v_"), module, (fields.get("l"), fields.get("o", "")), int(match["count"])


def table(totals: dict[tuple[str, str], list[int]]) -> None:
    print("| block | lines | toggles |\n| --- | ---: | ---: |")
    for module in sorted({m for _, m in totals}):
        cells = []
        for kind in ("line", "toggle"):
            hit, of = totals.get((kind, module), [0, 0])
            cells.append(f"{hit:,} of {of:,} ({hit / of:.1%})" if of else "-")
        print(f"| {module} | {cells[0]} | {cells[1]} |")


def run(programs: int, database: Path) -> None:
    """Run everything in one simulator and write what it covered."""
    from fabless.compiler.driver import compile as compile_model
    from fabless.compiler.launch import Segment
    from fabless.compiler.pack import pack
    from fabless.compiler.partition import Shape
    from fabless.model.integer_reference import IntegerWeights
    from fabless.model.weights import open_weights
    from fabless.program.random_program import random_memory, random_program
    from fabless.program.sequence import parameter_words
    from fabless.sim.dram import MemoryModel
    from fabless.sim.machine import execute

    weights = open_weights("tinyshakes")
    compiled = compile_model(weights.decoder, TINY, [Shape(1, 1)], context_tokens=128)
    layout, program = compiled.layouts[0], compiled.program()
    image = np.zeros(layout.memory_bytes, np.uint8)
    pack(layout, IntegerWeights.load(weights), image[: layout.image_bytes])
    jobs = [(program, image, parameter_words(program, compiled.parameters(Shape(1, 1), [Segment([7], 0, range(1))])))]
    for seed in range(programs):
        rng = np.random.default_rng(seed)
        drawn = random_program(TINY, rng, 60)
        memory = np.zeros(max(b.end for b in drawn.buffers), np.uint8)
        content = np.frombuffer(random_memory(rng), np.uint8)
        memory[: len(content)] = content
        values = {p.name: rng.integers(p.low, p.high, p.count, endpoint=True) for p in drawn.parameters}
        jobs.append((drawn, memory, parameter_words(drawn, values)))
    size = max(len(memory) for _, memory, _ in jobs)
    model = MemoryModel(9, 2, 3, 200, 30)
    with Simulation([program], [size], memory_model=model.numbers, flags=COVERAGE) as simulation:
        for one, memory, words in jobs:
            simulation.load([one])
            simulation.memories[0][:] = 0
            simulation.memories[0][: len(memory)] = memory
            simulation.launch([words], limit=10_000_000)
            expected = memory.copy()
            execute(one, expected, parameters={p.name: words[p.index : p.index + p.count] for p in one.parameters}, fast=False)
            left = np.array(simulation.memories[0][: len(memory)])
            if not np.array_equal(left, expected):
                raise SystemExit(f"'{one.name}': the RTL left other bytes than the machine")
        simulation.counters()
        simulation.coverage(database)


def main() -> None:
    programs = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    with tempfile.TemporaryDirectory(prefix="fabless-coverage-") as name:
        database = Path(name) / "coverage.dat"
        run(programs, database)
        totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
        source = tile_verilog(TINY).splitlines()
        missed: Counter[str] = Counter()
        for kind, module, (line, _), count in points(database):
            group, block = ("toggle" if kind == "toggle" else "line"), module.partition("__")[0]
            if group == "line" and _ARTEFACT.search(source[int(line) - 1]):
                continue
            totals[group, block][0] += count > 0
            totals[group, block][1] += 1
            if group == "line" and not count:
                missed[f"{block}: {source[int(line) - 1].strip()[:90]}"] += 1
        table(totals)
        whole = [sum(v[i] for (group, _), v in totals.items() if group == kind) for kind in ("line", "toggle") for i in (0, 1)]
        print(f"\nall: {whole[0] / whole[1]:.1%} of lines, {whole[2] / whole[3]:.1%} of toggles; lines not reached, most often:")
        for text, n in missed.most_common(25):
            print(f"{n:5} {text}")


if __name__ == "__main__":
    main()
