"""The debugger: what it shows at an instruction is what an independent run of the machine holds there, and programs part where they were changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fabless.compiler.driver import Shape
from fabless.compiler.driver import compile as compile_model
from fabless.compiler.launch import Segment
from fabless.compiler.pack import pack
from fabless.core.errors import InputError
from fabless.model.integer_reference import IntegerWeights
from fabless.model.random_weights import random_weights
from fabless.number import arrays
from fabless.number.quantise import quantise
from fabless.program.assembler import assemble
from fabless.program.isa import Queue
from fabless.program.sequence import issue
from fabless.program.tile import TINY
from fabless.sim.cycles import time
from fabless.sim.debugger import look, part, queues
from fabless.sim.dram import IDEAL, MemoryModel
from fabless.sim.machine import execute, launch


@pytest.fixture(scope="module")
def decode():
    """A small model's decode: program, memory, parameters."""
    weights = IntegerWeights.load(random_weights("qwen3_moe", seed=1))
    compiled = compile_model(weights.decoder, TINY, context_tokens=128)
    layout = compiled.layouts[0]
    memory = np.zeros(layout.memory_bytes, np.uint8)
    pack(layout, weights, memory[: layout.image_bytes])
    return compiled.program(), memory, compiled.parameters(Shape(1, 1), [Segment([5], 3, [0])])


def looked(decode, pc: int, visit: int = 1):
    program, memory, parameters = decode
    return look([(program, launch(program, memory.copy(), None, parameters))], pc, visit=visit)


def test_operands_and_result_of_a_quantisation(decode):
    program = decode[0]
    pc = next(i for i, x in enumerate(program) if x.mnemonic == "quant" and x.choice("pre") == "mul" and x.choice("b_kind") == "vector")
    m = looked(decode, pc)
    a, b = (v.content for v in m.reads)
    codes, scales = (v.content for v in m.written)
    want, want_scales = quantise(arrays.mul(a, b))
    assert [v.operand for v in m.reads] == ["a", "b"]
    assert np.array_equal(codes, want)
    assert np.array_equal(scales, want_scales)
    assert (m.operands["len"], m.operands["dst"]) == (program.instructions[pc]["len"], m.written[0].first)
    assert {n for n in m.before if m.before[n] != m.after[n]} <= {"tile.activations", "tile.activation_scales"}


def test_every_visit_has_the_registers_that_the_sequencer_has(decode):
    program, _, parameters = decode
    pc = next(i for i, x in enumerate(program) if x.mnemonic == "load" and x.choice("target") == "w" and x["address_reg"])
    m1, m2 = looked(decode, pc, 1), looked(decode, pc, 2)
    addresses = [i["address"] for i in issue(program, launch(program, decode[1].copy(), None, parameters).parameters) if i.pc == pc]
    assert [m.operands["address"] for m in (m1, m2)] == addresses[:2]
    register = program.instructions[pc]["address_reg"]
    assert m1.operands["address"] == program.instructions[pc]["address"] + m1.registers[register]


def test_the_sequencers_own_instructions_are_shown(decode):
    program = decode[0]
    pc = next(i for i, x in enumerate(program) if x.mnemonic == "madd" and x["p"] and x["x"] and x["mul"] > 1)
    m, item = looked(decode, pc), program.instructions[pc]
    want = m.registers[item["p"]] * item["mul"] + m.registers[item["q"]] + item["imm"]
    assert dict(m.changed) == ({item["x"]: want} if want != m.registers[item["x"]] else {})
    assert m.before == m.after


def test_read_and_sync_say_what_they_change(decode):
    program = decode[0]
    m = looked(decode, next(i for i, x in enumerate(program) if x.mnemonic == "read"))
    assert m.changed.get(program.instructions[m.pc]["x"], 0) == int(m.reads[0].content[0, 0])
    m = looked(decode, next(i for i, x in enumerate(program) if x.mnemonic == "sync" and x["signal"]))
    signals = {s for s in range(32) if program.instructions[m.pc]["signal"] >> s & 1}
    waits = {s for s in range(32) if program.instructions[m.pc]["wait"] >> s & 1}
    assert all(m.semaphores_after[s] - m.semaphores[s] == (s in signals) - (s in waits) for s in range(32))


def test_loops_count_down():
    program = assemble("loop count=3 length=4\nloop count=2 length=1\nmadd x=1 q=1 imm=1\nend\nend\nhalt", tile=TINY)
    program = replace(program, words=program.words.copy())
    found = [look([(program, launch(program))], 2, visit=v) for v in (1, 2, 3, 6)]
    assert [m.loops for m in found] == [((0, 3), (1, 2)), ((0, 3), (1, 1)), ((0, 2), (1, 2)), ((0, 1), (1, 1))]
    assert [m.registers[1] for m in found] == [0, 1, 2, 5]
    assert look([(program, launch(program))], 5).visit == 1  # halt


def test_what_is_not_reached_is_refused(decode):
    with pytest.raises(InputError, match=r"instruction 0: this launch reaches it 1 time; visit 2 is not among them"):
        looked(decode, 0, 2)
    with pytest.raises(InputError, match="the program has instructions 0 to"):
        looked(decode, len(decode[0]))


@pytest.mark.parametrize("memory_model", [IDEAL, MemoryModel(20, 3, 4)], ids=["ideal", "slow"])
def test_queues_hold_what_the_cycle_simulator_has_not_started(decode, memory_model):
    """Every instruction is in one place only: each queue's running and waiting ones follow those that are over, and at most the depth wait."""
    program, _, parameters = decode
    m = looked(decode, next(i for i, x in enumerate(program) if x.mnemonic == "gemm"), 2)
    begin, end, held = queues(m, parameters, memory_model)
    timing = time(program, None, parameters, memory_model, keep=1 << 20)
    rows = list(zip(timing.pcs.tolist(), timing.starts.tolist(), timing.ends.tolist(), strict=True))
    assert rows[m.index] == (m.pc, begin, end)
    assert {q.queue: q.executes for q in held}[Queue.MXU] == m.pc
    for q in held:
        mine = [(pc, s, e) for pc, s, e in rows if program.instructions[pc].queue == q.queue]
        over = sum(e <= begin for _, _, e in mine)
        running = [pc for pc, s, e in mine if s <= begin < e]
        assert ([] if q.executes is None else [q.executes]) == running
        assert list(q.waits) == [pc for pc, _, _ in mine[over + len(running) :]][: len(q.waits)]
        assert len(q.waits) <= program.tile.queue_depth


def test_one_changed_operand_is_where_programs_part(decode):
    program, memory, parameters = decode
    pc = next(i for i, x in enumerate(program) if x.mnemonic == "vec" and x.choice("pre") == "mul" and x["len"] > 32)
    words = program.words.copy()
    f = program.instructions[pc].spec.by_name["len"]
    words[pc, f.lsb // 64] ^= np.uint64(1 << f.lsb % 64)
    found = part(program, replace(program, words=words), memory, (parameters, parameters))
    assert found is not None
    assert found.first is not None
    assert (found.first.pc, found.spaces) == (pc, ("v",))
    assert part(program, program, memory, (parameters, parameters)) is None


def test_programs_whose_syncs_were_merged_do_not_part():
    """Other counts of `sync`, the same states."""
    weights = IntegerWeights.load(random_weights("llama", seed=2))
    programs = []
    for skip in ((), ("merge_syncs",)):
        compiled = compile_model(weights.decoder, TINY, context_tokens=128, skip=skip)
        programs.append(compiled.program())
    layout = compiled.layouts[0]
    memory = np.zeros(layout.memory_bytes, np.uint8)
    pack(layout, weights, memory[: layout.image_bytes])
    parameters = compiled.parameters(Shape(1, 1), [Segment([5], 0, [0])])
    assert Counter(i.mnemonic for i in programs[0])["sync"] < Counter(i.mnemonic for i in programs[1])["sync"]
    assert part(*programs, memory, (parameters, parameters)) is None


def test_looking_changes_nothing(decode):
    program, memory, parameters = decode
    state = launch(program, memory.copy(), None, parameters)
    look([(program, state)], len(program) - 1)
    assert state.digest() == execute(program, memory.copy(), None, parameters, fast=False).digest()
