"""What the FPGA's tile is made of: no link, shared register reads, and memories that give rubbish where a word is read while it is written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="the RTL needs the extra 'rtl'")

from fabless.core.errors import IllegalProgramError
from fabless.program.assembler import assemble
from fabless.program.random_program import random_memory, random_program
from fabless.program.tile import TINY
from fabless.program.verify import verify
from fabless.rtl.bench.build import HARNESS, compile_verilog, tools
from fabless.rtl.bench.run import Simulation
from fabless.rtl.block import Shared
from fabless.rtl.emit import verilog_of
from fabless.rtl.tile import TileTop
from fabless.sim.cycles import time
from fabless.sim.dram import IDEAL, MemoryModel
from fabless.sim.machine import launch, run_ring

pytestmark = pytest.mark.skipif(
    not all(t.found for t in tools()), reason=f"not installed: {', '.join(t.name for t in tools() if not t.found)}; see 'fabless doctor'"
)
ALONE = replace(TINY, link_bytes_per_cycle=0)
MODELS = (IDEAL, MemoryModel(37), MemoryModel(20, 1, 3), MemoryModel(9, 2, 3, 200, 30))


def rubbish(verilog: str, *, late: bool = False) -> str:
    """Return Verilog whose memories invert what is read from a word in the cycle of its write, or (late) in the cycle behind."""
    lines: list[str] = []
    n_writes, prefix = 0, "p" if late else ""
    for line in verilog.splitlines():
        words = line.split()
        if line.startswith("module fl_ram_"):
            n_writes = int(line.split("fl_ram_")[1].split("w")[0])
        if line == "  integer i;":
            lines += [f"  reg [WIDTH/GRAIN-1:0] pwe{w}; reg [BITS-1:0] pwa{w};" for w in range(n_writes)]
            lines += [f"  always @(posedge clk) begin pwe{w} <= we{w}; pwa{w} <= wa{w}; end" for w in range(n_writes)]
        if words[3:4] == ["<="] and words[-1].startswith("mem["):  # if (re0) rd0 <= mem[ra0];
            at = words[4][4:-2]
            hit = " | ".join(f"((|{prefix}we{w}) & {prefix}wa{w} == {at})" for w in range(n_writes))
            lines.append(f"    if {words[1]} {words[2]} <= ({hit}) ? ~mem[{at}] : mem[{at}];")
        else:
            lines.append(line)
    return "\n".join(lines)


def drawn(seed):
    rng = np.random.default_rng(seed)
    program = random_program(ALONE, rng, 40)
    memory = np.zeros(max(b.end for b in program.buffers), np.uint8)
    content = np.frombuffer(random_memory(rng), np.uint8)
    memory[: len(content)] = content
    words = np.zeros(ALONE.parameter_words, np.int32)
    for p in program.parameters:
        words[p.index : p.index + p.count] = rng.integers(p.low, p.high + 1, p.count)
    return program, memory, words


def runs(verilog, seeds):
    """Yield (parts that differ from the machine's, cycles, simulated cycles) of drawn programs on a tile of that Verilog."""
    executable = compile_verilog(
        verilog, HARNESS.read_text(), top="fl_tile", defines={"FL_WIDTH": 16, "FL_LINK": ALONE.link_port_bytes}, optimise="-O0"
    )
    for seed in seeds:
        program, memory, words = drawn(seed)
        model = MODELS[seed % len(MODELS)]
        with Simulation([program], [len(memory)], memory_model=model.numbers, executable=executable) as simulation:
            simulation.memories[0][:] = memory
            left = simulation.finish(simulation.launch([words], limit=1_000_000))[0]
        state = launch(program, memory.copy())
        state.parameters[:] = words
        run_ring([(program, state)], fast=False)
        want = {n: v.view(np.uint32) if v.dtype == np.float32 else v for n, v in state.parts().items()}
        different = [n for n, got in left.parts().items() if not np.array_equal(want[n].reshape(-1), got.reshape(-1))]
        yield different, left.cycles[0], time(program, None, words, model).cycles


@pytest.fixture(scope="module")
def verilog():
    return verilog_of(TileTop(Shared(ALONE, frugal=True)))


def test_no_program_relies_on_what_a_word_reads_while_it_is_written(verilog):
    assert rubbish(verilog).count("? ~mem") == verilog.count("<= mem[ra") > 0
    for different, cycles, simulated in runs(rubbish(verilog), range(8)):
        assert different == []
        assert cycles == simulated


def test_rubbish_a_cycle_later_is_noticed(verilog):
    assert any(different for different, _, _ in runs(rubbish(verilog, late=True), range(4)))


def test_a_tile_without_a_link_refuses_to_send():
    assert "fl_tile.net" not in verilog_of(TileTop(Shared(ALONE)))
    with pytest.raises(IllegalProgramError, match=r"instruction 0 \(send\): queue: this tile has no link.*compile for one tile"):
        verify(assemble("send space=v count=1 src=0\nhalt", tile=ALONE))
