"""Every value that every word of the buffers takes in the RTL, in order, and every start of every queue: random programs and the embedded model."""

from dataclasses import replace

import numpy as np
import pytest

from fabless.program.assembler import disassemble
from fabless.program.random_program import random_memory, random_program
from fabless.program.sequence import parameter_words
from fabless.program.tile import TINY
from fabless.sim.dram import IDEAL, MemoryModel

pytest.importorskip("amaranth", reason="the RTL needs the extra 'rtl'")

from lockstep import Job, run, shrunk

from fabless.rtl.bench.build import HARNESS, QUICK, compile_verilog, tools
from fabless.rtl.bench.run import LOG
from fabless.rtl.emit import tile_verilog

pytestmark = pytest.mark.skipif(
    not all(t.found for t in tools()), reason=f"not installed: {', '.join(t.name for t in tools() if not t.found)}; see 'fabless doctor'"
)

MODELS = (
    IDEAL, MemoryModel(37), MemoryModel(9, 2, 3, 200, 30),
    MemoryModel(15, 2, 3, 300, 40, banks=4, row_bytes=256, activate_cycles=9, precharge_cycles=7, row_cycles=31),
)  # fmt: skip


def drawn(seed, length=40):
    rng = np.random.default_rng(seed)
    program = random_program(TINY, rng, length)
    memory = np.zeros(max(b.end for b in program.buffers), np.uint8)
    content = np.frombuffer(random_memory(rng), np.uint8)
    memory[: len(content)] = content
    return Job(program, memory, parameter_words(program, {"anything": rng.integers(-100, 300, 8)}), MODELS[seed % len(MODELS)])


def agree(seed, length=40):
    """Run a random program; where it fails, say so with its seed and the shortest program that fails the same way."""
    job = drawn(seed, length)
    if where := run(job):
        short = shrunk(job, lambda one: bool(run(one)))
        pytest.fail(f"seed {seed}, length {length}: {where}\n{run(short)}, of\n{disassemble(short.program)}")


@pytest.mark.parametrize("seed", range(12))
def test_every_value_of_every_word_and_every_start_is_the_machines_and_the_simulators(seed):
    agree(5000 + seed)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_many_random_programs_agree_word_by_word(record_property):
    for seed in range(300):
        agree(6000 + seed, 60)
    record_property("random programs in lock step", 300)


def test_the_embedded_model_decodes_a_token_word_by_word():
    from fabless.compiler.driver import compile as compile_model
    from fabless.compiler.launch import Segment
    from fabless.compiler.pack import pack
    from fabless.compiler.partition import Shape
    from fabless.model.integer_reference import IntegerWeights
    from fabless.model.weights import open_weights

    weights = open_weights("tinyshakes")
    compiled = compile_model(weights.decoder, TINY, [Shape(1, 1)], context_tokens=64)
    layout, program = compiled.layouts[0], compiled.program()
    memory = np.zeros(layout.memory_bytes, np.uint8)
    pack(layout, IntegerWeights.load(weights), memory[: layout.image_bytes])
    words = parameter_words(program, compiled.parameters(Shape(1, 1), [Segment([7], 0, range(1))]))
    assert run(Job(program, memory, words, MemoryModel(20, 3, 4))) == ""


def flipped(program, mnemonic, field, bit=0):
    """Return a program with one bit of one instruction flipped, and which instruction that is: the last of its kind."""
    at = max(n for n, i in enumerate(program.instructions) if i.mnemonic == mnemonic)
    lsb = program.instructions[at].spec.by_name[field].lsb + bit
    words = program.words.copy()
    words[at, lsb // 64] ^= np.uint64(1 << lsb % 64)
    return replace(program, words=words), at


def test_a_planted_fault_is_located_by_buffer_word_and_instruction():
    job = drawn(5003)
    wrong, at = flipped(job.program, "gemm", "unit")
    where = run(job, executed=wrong)
    assert where.startswith("accumulators[")
    assert where.endswith(f"in the machine from instruction {at} (gemm)")


def test_a_failing_program_is_shrunk_to_what_fails():
    def fails(one):
        at = [n for n, i in enumerate(one.program.instructions) if i.mnemonic == "quant"]
        return bool(at) and bool(run(one, executed=flipped(one.program, "quant", "scope")[0]))

    job = drawn(5100, length=12)
    assert fails(job)
    small = shrunk(job, fails)
    units = [[i.mnemonic for i in one.program.instructions if i.mnemonic not in {"sync", "loop", "end", "halt"}] for one in (job, small)]
    assert "quant" in units[1]
    assert len(units[1]) <= 4 < len(units[0]), units


@pytest.mark.nightly
def test_a_fault_in_the_rtl_is_located_by_the_instruction_that_meets_it():
    # The vector unit reads accumulators with their lowest bit inverted.
    head, _, tail = tile_verilog(TINY).partition("module fl_ram_1w2r")
    assert "rd1 <= mem[ra1];" in tail
    faulty = head + "module fl_ram_1w2r" + tail.replace("rd1 <= mem[ra1];", "rd1 <= mem[ra1] ^ 1;", 1)
    defines = {"FL_WIDTH": TINY.memory_bytes_per_cycle, "FL_LINK": TINY.link_bytes_per_cycle}
    executable = compile_verilog(faulty, HARNESS.read_text(), top="fl_tile", defines=defines, optimise=QUICK, more_flags=LOG)
    job = drawn(5001)
    reads = [n for n, i in enumerate(job.program.instructions) if "a_space" in i.spec.by_name and i.choice("a_space") == "c"]
    where = run(job, executable=executable)
    assert any(f"from instruction {n} (" in where for n in reads), where
