"""Each rule of `verify` has a program that breaks it, and the message names instruction, rule, value and remedy."""

# ruff: noqa: E501  a table of messages
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fabless.core.errors import IllegalProgramError
from fabless.program.assembler import assemble
from fabless.program.program import Program, pack, unpack
from fabless.program.random_program import random_program
from fabless.program.tile import DEMO, TINY
from fabless.program.verify import verify

TILE = replace(TINY, memory_bytes=1 << 16)
HEAD = """
.buffer weights address=0 bytes=8192 kind=weights
.buffer input address=8192 bytes=4096 kind=input
.buffer cache address=12288 bytes=4096 kind=cache
.buffer output address=16384 bytes=4096 kind=output
.parameter position index=0 count=1 low=0 high=31
"""
LEGAL = """
    param x=1 at=0
    madd x=2 p=1 mul=32 imm=8192
    load target=w format=int8 count=8 address=0
    load target=ws format=bf16 count=8 address=4096
    load target=v format=fp32 count=64 address=0+x2
    sync queue=load signal=0
    sync queue=vpu wait=0
    quant rows=1 len=64 a=0 dst=0
    sync queue=vpu signal=1
    sync queue=mxu wait=1
    gemm n=4 k=2 w=0 a=0 c=0 c_stride=4 clear=1
    sync queue=mxu signal=2
    sync queue=vpu wait=2
    vec len=16 a_space=c a=0 dst=64
    sync queue=vpu signal=3
    sync queue=store wait=3
    store target=v format=fp32 count=16 src=64 address=16384
    halt
"""


def program(text: str = LEGAL, head: str = HEAD) -> Program:
    return assemble(head + text, tile=TILE)


def test_the_legal_program_is_legal():
    verify(program())
    verify(program(), TILE)


BREAKS = {
    "bounds of a buffer in sram": ("gemm n=4 k=2 w=0", "gemm n=4 k=2 w=2045", r"instruction 10 \(gemm\): bounds: w covers 2045 to 2053 of the weight elements, which has 2048; move or shorten it"),
    "bounds for the highest parameter": ("mul=32 imm=8192", "mul=128 imm=8192", r"instruction 4 \(load\): bounds: address covers bytes 12160 to 12416, inside no single buffer"),
    "no buffer there": ("address=16384", "address=40960", r"instruction 16 \(store\): bounds: address covers bytes 40960 to 41024, inside no single buffer; declare or enlarge one"),
    "kind of buffer": ("address=16384", "address=8192", r"instruction 16 \(store\): bounds: writes buffer 'input' of kind input; write only cache, output, workspace"),
    "alignment of a vector": ("a=0 dst=0", "a=16 dst=0", r"instruction 7 \(quant\): alignment: a starts at element 16, rows 0 apart; make both multiples of 32"),
    "alignment in memory": ("mul=32 imm=8192", "mul=32 imm=8200", r"instruction 4 \(load\): alignment: address 8200, rows 0 apart; make both multiples of 32 bytes"),
    "rows that overlap": ("vec len=16 a_space=c a=0 dst=64", "vec rows=2 len=64 a=0 dst=64 dst_stride=1", r"instruction 13 \(vec\): overlap: rows of 64 are written 32 apart; space them by at least their length"),
    "result over operand": ("vec len=16 a_space=c a=0 dst=64", "vec len=64 a=0 dst=32", r"instruction 13 \(vec\): overlap: dst \(32 to 96\) overlaps a \(0 to 64\) that it is made of; keep them apart, or exactly in place"),
    "read before write": ("quant rows=1 len=64 a=0", "quant rows=1 len=64 a=128", r"instruction 7 \(quant\): read before write: a reads vector buffer that nothing has written; write or load it first"),
    "race on a read": ("sync queue=mxu wait=1\n", "", r"instruction 9 \(gemm\): race: w reads weight elements that queue load writes, in no fixed order; let load signal and mxu wait"),
    "race on a write": ("halt", "vec len=64 a=0 dst=64\nhalt", r"instruction 17 \(vec\): race: dst overwrites vector buffer that queue store may still read; let store signal when done and vpu wait"),
    "deadlock": ("sync queue=load signal=0", "sync queue=load signal=9", r"instruction 6 \(sync\): deadlock: waits for semaphore 0, which nothing before it signals; signal it earlier in program order"),
    "two waiting queues": ("sync queue=store wait=3", "sync queue=store wait=2", r"instruction 15 \(sync\): semaphores: wait on semaphore 2 from queue store, before from vpu; give each semaphore one queue that waits"),
    "two signalling queues": ("sync queue=vpu signal=1", "sync queue=vpu signal=0", r"instruction 8 \(sync\): semaphores: signal on semaphore 0 from queue vpu, before from load"),
    "left over": ("halt", "sync queue=net signal=7\nhalt", r"instruction 18 \(halt\): semaphores: semaphore 7 still holds 1 at halt; wait as often as signalled"),
    "count": ("halt", "loop count=16 length=1\nsync queue=net signal=7\nend\nloop count=16 length=1\nsync queue=vpu wait=7\nend\nhalt", r"semaphore 7 may count to 16, it holds 15; let the consumer signal back, and wait for it"),
    "format": ("target=ws format=bf16", "target=ws format=fp32", r"instruction 3 \(load\): format: ws in fp32; use one of bf16, fp16, e8m0"),
    "target": ("store target=v format=fp32", "store target=w format=int8", r"instruction 16 \(store\): format: a store cannot have target w; use one of a, as, ab, v"),
    "scatter": ("store target=v format=fp32 count=16 src=64", "store target=ab format=int8 count=2 src=0", r"ab scatters single bytes, count is 2; set count to 1 and rows"),
    "pairs": ("vec len=16 a_space=c a=0 dst=64", "rotate len=15 a_space=c a=0 b=0 dst=64", r"instruction 13 \(rotate\): alignment: rotates pairs, len is 15; make it even"),
    "no halt": ("    halt", "", r"instruction 17: runs past the program's 17 instructions; end it with halt"),
    "loop length": ("halt", "loop count=2 length=2\nmadd x=3\nend\nhalt", r"instruction 17 \(loop\): structure: length 2 does not lead to its end at 19; set it to 1"),
    "loop without end": ("halt", "loop count=2 length=1\nmadd x=3", r"instruction 17 \(loop\): structure: it has no end; add one"),
    "end without loop": ("halt", "end\nhalt", r"instruction 17 \(end\): structure: no loop is open; remove it"),
    "halt in a loop": ("halt", "loop count=2 length=1\nhalt\nend", r"instruction 18 \(halt\): structure: 1 loops are open; close them first"),
    "depth": ("halt", "loop\n" * 5 + "end\n" * 5 + "halt", r"instruction 21 \(loop\): depth: 5 loops nest, the sequencer has 4; unroll one"),
    "parameter index": ("param x=1 at=0", "param x=1 at=9999", r"instruction 0 \(param\): parameters: reads word 9999, which is of none; declare one, or keep inside"),
    "parameter of none": ("param x=1 at=0", "param x=1 at=1", r"instruction 0 \(param\): parameters: reads word 1, which is of none"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_each_rule_objects(name):
    old, new, message = BREAKS[name]
    assert old in LEGAL
    with pytest.raises(IllegalProgramError, match=message):
        verify(program(LEGAL.replace(old, new, 1)))


HEAD_BREAKS = {
    "buffers overlap": (
        "address=8192",
        "address=8160",
        r"buffer 'input': overlap: starts at 8160 inside 'weights'; move it to 8192 or behind",
    ),
    "buffer beyond memory": (
        "address=16384 bytes=4096",
        "address=16384 bytes=65536",
        r"buffer 'output': capacity: ends at 81920, memory has 65536 bytes",
    ),
    "buffer alignment": ("address=8192", "address=8200", r"buffer 'input': alignment: starts at 8200, has 4096 bytes"),
    "buffer kind": ("kind=cache", "kind=cash", r"buffer 'cache': kind 'cash' is not one of weights, constants, input"),
    "parameter range": ("low=0 high=31", "low=5 high=1", r"parameter 'position': range 5 to 1 is not one of 32-bit words"),
    "parameter place": ("index=0 count=1", "index=4096 count=1", r"parameter 'position': words 4096 to 4097 overlap another or pass 4096"),
}


@pytest.mark.parametrize("name", HEAD_BREAKS)
def test_each_rule_of_layout_objects(name):
    old, new, message = HEAD_BREAKS[name]
    with pytest.raises(IllegalProgramError, match=message):
        verify(program(head=HEAD.replace(old, new, 1)))


def test_another_chip_objects():
    with pytest.raises(IllegalProgramError, match=rf"made for tile {TILE.digest}, this one is {DEMO.digest}; compile it for this chip"):
        verify(program(), DEMO)


def test_too_many_instructions_object():
    with pytest.raises(IllegalProgramError, match=r"capacity: 18 instructions, the tile holds 4; use loops or another tile"):
        verify(replace(program(), tile=replace(TILE, instruction_words=4)))


def test_an_index_that_reaches_another_parameter_objects():
    """Both ends are in bounds, what lies between them is not: parameter `choice` 1 brings `far` with 5,000 where the ends bring 0 and 31."""
    head = HEAD + ".parameter choice index=1 count=1 low=0 high=2\n.parameter far index=2 count=1 low=5000 high=5000\n"
    head += ".parameter near index=3 count=1 low=0 high=31\n"
    text = LEGAL.replace("    param x=1 at=0\n", "    param x=3 at=1\n    param x=1 at=1+x3\n")
    with pytest.raises(
        IllegalProgramError, match=r"instruction 1 \(param\): parameters: reads words of 'choice' and of 'near'; keep its index"
    ):
        verify(program(text, head))
    verify(program(text.replace("at=1+x3", "at=0"), head))


def test_constants_that_do_not_fit_object():
    with pytest.raises(IllegalProgramError, match=r"constant 'cache': capacity: 5000 bytes for a buffer of 4096; enlarge it"):
        verify(replace(program(), constants={"cache": bytes(5000)}))


def test_flipped_bits_are_caught_or_change_the_digest():
    p = program()
    caught = 0
    rng = np.random.default_rng(0)
    for _ in range(300):
        words = unpack(p.words)
        at = int(rng.integers(len(words)))
        words[at] ^= 1 << int(rng.integers(128))
        flipped = replace(p, words=pack(words))
        assert flipped.digest != p.digest
        try:
            verify(flipped)
        except IllegalProgramError:
            caught += 1
    assert caught > 150  # most bits of a word are unused or decide what is touched; the rest change the digest


@pytest.mark.parametrize("seed", range(6))
def test_random_programs_are_legal(seed):
    tile = (TILE, replace(DEMO, memory_bytes=1 << 16))[seed % 2]
    verify(random_program(tile, np.random.default_rng(seed)))
