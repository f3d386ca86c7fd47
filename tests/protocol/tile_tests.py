"""cocotb tests of the tile's ports; `test_protocol.py` builds the simulation and runs them. Each rule has a test that breaks it and must be noticed."""

from __future__ import annotations

import cocotb
import numpy as np
import pytest
from partners import Host, Link, ProtocolError, Reads, Writes, must

from fabless.program.assembler import assemble
from fabless.program.isa import Queue
from fabless.program.random_program import random_memory, random_program
from fabless.program.sequence import parameter_words
from fabless.program.tile import TINY
from fabless.sim.cycles import time
from fabless.sim.dram import IDEAL
from fabless.sim.machine import launch, run_ring

READ_READY, WRITE_READY, CREDIT = 1, 2, 4
#: A message longer than a link holds, beside a recv that starts late: what is sent must wait for credits.
LONG = """
load target=v format=fp32 count=400 dst=0
sync queue=load signal=1
sync queue=net wait=1
send space=v count=400 src=0
recv space=v count=400 dst=512
sync queue=net signal=2
sync queue=store wait=2
store target=v format=fp32 count=400 src=512 address=4096
halt
"""
#: More vector instructions than a queue holds wait behind a load; the last one's result is stored.
WAITING = f"""
load target=v format=fp32 count=64 dst=0
sync queue=load signal=1
sync queue=vpu wait=1
vec pre=add len=64 dst=64 a=0 b=0 b_kind=vector
{chr(10).join("vec pre=add len=64 dst=64 a=64 b=0 b_kind=vector" for _ in range(2 * TINY.queue_depth))}
sync queue=vpu signal=2
sync queue=store wait=2
store target=v format=fp32 count=64 src=64 address=1024
halt
"""


def floats(n_bytes, seed=1):
    memory = np.zeros(n_bytes, np.uint8)
    memory[:2048] = np.random.default_rng(seed).standard_normal(512).astype(np.float32).view(np.uint8)
    return memory


def drawn(seed, *, net=False):
    """Return a random program, its memory and parameters."""
    rng = np.random.default_rng(seed)
    program = random_program(TINY, rng, 12, net=net)
    memory = np.zeros(max(b.end for b in program.buffers), np.uint8)
    content = np.frombuffer(random_memory(rng), np.uint8)
    memory[: len(content)] = content
    return program, memory, parameter_words(program, {"anything": rng.integers(-100, 300, 8)})[:9]


def left_by_machine(program, memory, words):
    state = launch(program, memory.copy())
    state.parameters[: len(words)] = words
    run_ring([(program, state)], fast=False)
    return state.memory


async def launched(dut, program, memory, words, *, cut=0, host=None, seed=1, reads=None, writes=None, link=None, limit=60_000):
    """Run a program with partners that stall at random, hold memory against the machine's, and return (host, partners, cycles)."""
    rng = np.random.default_rng(seed)
    host = host or Host(dut)
    await host.reset()
    dut.cut.value = cut
    await host.write(program, words)
    seen = memory.copy()
    partners = Reads(dut, seen, rng, TINY, **(reads or {})), Writes(dut, seen, rng, TINY, **(writes or {})), Link(dut, rng, **(link or {}))
    cycles = await host.run(*partners, limit=limit)
    must(np.array_equal(seen, left_by_machine(program, memory, words)), "memory is not as the machine leaves it")
    return host, partners, cycles


@cocotb.test()
@cocotb.parametrize(seed=[1, 2, 3], ready=[0.2, 0.9])
async def reads_and_writes_stall_at_random(dut, seed, ready):
    _, (reads, writes, _), _ = await launched(dut, *drawn(seed), reads={"ready": ready}, writes={"ready": ready}, seed=seed)
    assert reads.taken > 100
    assert writes.taken > 0


@cocotb.test()
async def a_tile_that_ignores_read_ready_is_noticed(dut):
    with pytest.raises(ProtocolError, match="a read request changed before it was taken"):
        await launched(dut, *drawn(1), cut=READ_READY)


@cocotb.test()
async def a_memory_that_answers_out_of_order_is_noticed(dut):
    with pytest.raises(ProtocolError, match="memory is not as the machine leaves it"):
        await launched(dut, *drawn(1), reads={"swaps": True})


@cocotb.test()
async def a_tile_that_ignores_write_ready_is_noticed(dut):
    with pytest.raises(ProtocolError, match="a write changed before it was taken"):
        await launched(dut, *drawn(1), cut=WRITE_READY, writes={"ready": 0.1})


@cocotb.test()
async def a_memory_that_ignores_the_strobe_is_noticed(dut):
    program = assemble("load target=v format=fp32 count=4 dst=0\nsync queue=load signal=1\nsync queue=store wait=1\n"
                       "store target=v format=bf16 count=1 src=0 address=260\nhalt", tile=TINY)  # fmt: skip
    memory = floats(2048)
    await launched(dut, program, memory, np.zeros(4, np.int32))
    with pytest.raises(ProtocolError, match="memory is not as the machine leaves it"):
        await launched(dut, program, memory, np.zeros(4, np.int32), writes={"whole": True})


@cocotb.test()
@cocotb.parametrize(latency=[1, 100])
async def beats_leave_on_credits_alone(dut, latency):
    _, (_, _, link), _ = await launched(dut, assemble(LONG, tile=TINY), floats(8192), np.zeros(4, np.int32), link={"latency": latency})
    assert link.sent == link.arrived == link.returned == 400 * 4 // TINY.link_bytes_per_cycle


@cocotb.test()
async def random_messages_cross_the_link(dut):
    for seed in (5, 6):
        _, (_, _, link), _ = await launched(dut, *drawn(seed, net=True), seed=seed)
        assert link.sent == link.returned


@cocotb.test()
async def a_tile_that_sends_without_credits_is_noticed(dut):
    with pytest.raises(ProtocolError, match="a beat left without a credit"):
        await launched(dut, assemble(LONG, tile=TINY), floats(8192), np.zeros(4, np.int32), cut=CREDIT, link={"latency": 100})


@cocotb.test()
async def a_link_that_loses_a_beat_is_noticed(dut):
    with pytest.raises(ProtocolError, match="not done after 5000 cycles"):
        await launched(dut, assemble(LONG, tile=TINY), floats(8192), np.zeros(4, np.int32), link={"loses": True}, limit=5000)


@cocotb.test()
async def a_launch_takes_the_simulators_cycles_and_the_next_one_too(dut):
    always = {"reads": {"ready": 1, "latency": 1}, "writes": {"ready": 1}}
    for seed in (7, 8):
        program, memory, words = drawn(seed)
        want = time(program, None, np.pad(words, (0, TINY.parameter_words - len(words))), IDEAL).cycles
        host, _, cycles = await launched(dut, program, memory, words, **always)
        assert cycles == want
        rng, seen = np.random.default_rng(1), memory.copy()
        again = await host.run(Reads(dut, seen, rng, TINY, **always["reads"]), Writes(dut, seen, rng, TINY, **always["writes"]))
        assert again == want
        assert np.array_equal(seen, left_by_machine(program, memory, words))


@cocotb.test()
async def a_host_that_forgets_a_parameter_is_noticed(dut):
    program = assemble("param x=1 at=3\nload target=v format=fp32 count=4 address=0+x1 dst=0\nsync queue=load signal=1\nsync queue=store wait=1\n"
                       "store target=v format=fp32 count=4 src=0 address=256\nhalt", tile=TINY)  # fmt: skip
    words = np.array([0, 0, 0, 64], np.int32)
    await launched(dut, program, floats(2048), words)
    words[3] = 128
    with pytest.raises(ProtocolError, match="memory is not as the machine leaves it"):
        await launched(dut, program, floats(2048), words, host=Host(dut, forgets=True))


@cocotb.test()
async def full_queues_hold_the_sequencer_and_nothing_starts_before_its_semaphore(dut):
    program, memory, words = assemble(WAITING, tile=TINY), floats(2048), np.zeros(4, np.int32)
    silence = 1500  # memory takes nothing until then
    host, _, _ = await launched(dut, program, memory, words, reads={"ready": lambda t: t >= silence, "latency": 5})
    starts = {q: [t for t, popped in host.pops if popped >> q & 1] for q in Queue}
    assert min(starts[Queue.VPU]) > silence
    for queue in (Queue.LOAD, Queue.VPU, Queue.STORE):  # each instruction and each sync of a queue leaves it once
        of = [i for i in program.instructions if i.queue == queue or (i.mnemonic == "sync" and i["queue"] == queue)]
        assert len(starts[queue]) == len(of), queue.name


@cocotb.test()
async def a_program_without_its_semaphore_is_noticed(dut):
    text = WAITING.replace("sync queue=load signal=1\nsync queue=vpu wait=1\n", "")
    assert text != WAITING
    with pytest.raises(ProtocolError, match="memory is not as the machine leaves it"):
        await launched(dut, assemble(text, tile=TINY), floats(2048, 2), np.zeros(4, np.int32), reads={"ready": lambda t: t >= 1500})
