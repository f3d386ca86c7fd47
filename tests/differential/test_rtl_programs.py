"""The RTL against the machine, bit for bit, and against the cycle simulator, cycle for cycle, on random and directed programs."""

import numpy as np
import pytest

from fabless.core.errors import IllegalProgramError, UnsupportedError
from fabless.program.assembler import assemble
from fabless.program.isa import Queue
from fabless.program.random_program import random_memory, random_program, random_ring
from fabless.program.sequence import parameter_words
from fabless.program.tile import DEMO, DIE, TINY
from fabless.sim.cycles import time, time_ring
from fabless.sim.dram import IDEAL, MemoryModel
from fabless.sim.machine import launch, run_ring

pytest.importorskip("amaranth", reason="the RTL needs the extra 'rtl'")

from fabless.rtl.bench.build import tools
from fabless.rtl.bench.run import run_ring_rtl, run_rtl

pytestmark = pytest.mark.skipif(
    not all(t.found for t in tools()), reason=f"not installed: {', '.join(t.name for t in tools() if not t.found)}; see 'fabless doctor'"
)

MODELS = (
    IDEAL, MemoryModel(37), MemoryModel(20, 1, 3), MemoryModel(9, 2, 3, 200, 30), MemoryModel(100),
    MemoryModel(15, 2, 3, 300, 40, banks=4, row_bytes=256, activate_cycles=9, precharge_cycles=7, row_cycles=31),
    MemoryModel(30, banks=2, row_bytes=512, activate_cycles=14, precharge_cycles=14, row_cycles=48),
)  # fmt: skip


def left_by_machine(program, memory, words):
    state = launch(program, memory.copy())
    state.parameters[:] = words
    run_ring([(program, state)], fast=False)
    return state


def differences(state, rtl):
    """Return the names of the parts that differ in any bit."""
    out = []
    for name, got in rtl.parts().items():
        want = state.parts()[name]
        want = want.view(np.uint32) if want.dtype == np.float32 else want
        if not np.array_equal(want.reshape(-1), got.reshape(-1)):
            out.append(name)
    return out


def drawn(seed, tile=TINY, length=40):
    rng = np.random.default_rng(seed)
    program = random_program(tile, rng, length)
    return program, *filled(program, rng)


def filled(program, rng):
    """Return memory and parameters of a random program."""
    memory = np.zeros(max(b.end for b in program.buffers), np.uint8)
    content = np.frombuffer(random_memory(rng), np.uint8)
    memory[: len(content)] = content
    return memory, parameter_words(program, {"anything": rng.integers(-100, 300, 8)})


@pytest.mark.parametrize("seed", range(40))
def test_random_program_leaves_the_machines_bits_in_the_simulators_cycles(seed):
    program, memory, words = drawn(1000 + seed)
    model = MODELS[seed % len(MODELS)]
    rtl, cycles = run_rtl(program, memory, words, memory_model=model.numbers, limit=1_000_000)
    assert differences(left_by_machine(program, memory, words), rtl) == []
    assert time(program, None, words, model).cycles == cycles


@pytest.mark.parametrize("model", [MODELS[3], MODELS[5]], ids=["refresh", "banks"])
def test_every_instruction_starts_in_the_cycle_that_the_simulator_says(model):
    program, memory, words = drawn(7)
    rtl, _ = run_rtl(program, memory, words, memory_model=model.numbers, trace=True)
    timing = time(program, None, words, model, keep=1 << 20)
    queues = np.array([int(i.queue) for i in program.instructions])[timing.pcs]
    for queue in (Queue.LOAD, Queue.STORE, Queue.MXU, Queue.VPU, Queue.NET):
        seen = rtl.starts[(rtl.starts[:, 1] >> np.uint64(queue)) & np.uint64(1) == 1, 0].astype(np.int64)
        assert seen.tolist() == timing.starts[queues == queue].tolist(), queue.name


@pytest.mark.parametrize("latency", [1, 2, 7, 30])
@pytest.mark.parametrize("n_tiles", [2, 3, 4])
def test_a_ring_leaves_the_machines_bits_in_the_simulators_cycles(n_tiles, latency):
    rng = np.random.default_rng(100 * n_tiles + latency)
    programs = random_ring(TINY, rng, n_tiles)
    given = [filled(program, rng) for program in programs]
    model = MODELS[(n_tiles + latency) % len(MODELS)]
    tiles = [(p, memory, words) for p, (memory, words) in zip(programs, given, strict=True)]
    rtl = run_ring_rtl(tiles, memory_model=model.numbers, link_latency_cycles=latency, limit=1_000_000, trace=True)
    states = [launch(p, memory.copy()) for p, memory, _ in tiles]
    for state, (_, words) in zip(states, given, strict=True):
        state.parameters[:] = words
    run_ring(list(zip(programs, states, strict=True)), fast=False)
    assert [differences(state, left) for state, left in zip(states, rtl, strict=True)] == [[]] * n_tiles
    timings = time_ring(programs, [words for _, words in given], model, link_latency_cycles=latency, keep=1 << 20)
    assert [t.cycles for t in timings] == [left.cycles[0] for left in rtl]
    for program, left, timing in zip(programs, rtl, timings, strict=True):
        net = np.array([i.queue == Queue.NET for i in program.instructions])[timing.pcs]
        seen = left.starts[(left.starts[:, 1] >> np.uint64(Queue.NET)) & np.uint64(1) == 1, 0].astype(np.int64)
        assert seen.tolist() == timing.starts[net].tolist()


def test_a_flipped_instruction_bit_is_seen():
    program, memory, words = drawn(4)
    state = left_by_machine(program, memory, words)
    at = next(n for n, i in enumerate(program.instructions) if i.mnemonic == "vec" and i.choice("reduce") == "none")
    lsb = program.instructions[at].spec.by_name["dst"].lsb
    changed = program.words.copy()
    changed[at, lsb // 64] ^= np.uint64(1 << (lsb % 64 + 5))
    from dataclasses import replace

    rtl, _ = run_rtl(replace(program, words=changed), memory, words, limit=1_000_000)
    assert "vector" in differences(state, rtl)


REGISTERS = """
madd x=1 imm=-5
madd x=2 p=1 mul=7 q=1 imm=100
param x=3 at=1
madd x=4 p=3 mul=-3 q=2
load target=v format=fp32 count=8 dst=0
sync queue=load signal=3
sync queue=ctrl wait=3
read x=5 at=1
loop count=0+x5 length=6
    loop count=2 length=2
        madd x=6 q=6 imm=32
        vec pre=add len=3 dst=32+x6 a=0 b=0 b_kind=self
    end
    madd x=7 q=7 imm=1
    mask len=40 dst=640 a=0 start_reg=1 low_reg=2 high_reg=4 step=1 fill=lowest
end
loop count=0 length=1
    madd x=6 imm=7
end
sync queue=vpu signal=4
sync queue=store wait=4
store target=v format=bf16 count=17 rows=3 src=64 address=256 stride=64
halt
"""


def test_registers_loops_parameters_and_reads():
    program = assemble(REGISTERS, tile=TINY)
    memory = np.zeros(1024, np.uint8)
    memory[:32] = np.array([0.5, 2.5, -1, 3, np.inf, 5, -6, 7], np.float32).view(np.uint8)
    words = np.array([3, -9, 4], np.int32)
    words = np.concatenate([words, np.zeros(TINY.parameter_words - 3, np.int32)])
    rtl, cycles = run_rtl(program, memory, words, limit=100_000)
    assert differences(left_by_machine(program, memory, words), rtl) == []
    assert time(program, None, words, reads=[2]).cycles == cycles


def test_what_cannot_run_is_refused_by_name():
    with pytest.raises(UnsupportedError, match=r"was made for tile \w+, this one is \w+; compile it for this chip"):
        run_rtl(assemble("halt", tile=TINY), np.zeros(64, np.uint8), np.zeros(4, np.int32), DEMO)
    with pytest.raises(UnsupportedError, match=r"64 vector lanes cannot be built in RTL.*use at most 32"):
        run_rtl(assemble("halt", tile=DIE), np.zeros(64, np.uint8), np.zeros(4, np.int32))


def test_the_same_tile_gives_the_same_verilog_and_each_row_is_emitted_once():
    from fabless.rtl.block import Shared
    from fabless.rtl.emit import tile_verilog, verilog_of
    from fabless.rtl.tile import TileTop

    text = tile_verilog(TINY)
    assert text == verilog_of(TileTop(Shared(TINY)))
    assert text.count("module fl_row(") == 1
    assert text.count("  fl_row row") == TINY.rows


def test_waiting_for_nobody_is_refused():
    with pytest.raises(IllegalProgramError, match="instruction 0: waits for a semaphore that nothing before it in program order signals"):
        time(assemble("sync queue=mxu wait=3\nhalt", tile=TINY))
