"""The ISA table is consistent: fields do not overlap, encodings round-trip, errors name what is wrong, the page is up to date."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabless.core.errors import IllegalProgramError, InfeasibleError, InputError, UnsupportedError
from fabless.program import isa
from fabless.program.assembler import assemble, disassemble, listing
from fabless.program.document import page
from fabless.program.isa import ISA, Instruction, decode, encode, instruction
from fabless.program.random_program import random_program
from fabless.program.tile import DEMO, DIE, TINY, Tile
from fabless.program.timing import beats, cycles


@pytest.mark.parametrize("spec", ISA, ids=lambda s: s.mnemonic)
def test_fields_fill_the_word_without_overlap(spec):
    at = isa.OPCODE_BITS
    for f in spec.fields:
        assert f.lsb == at
        assert f.text
        at += f.bits
        assert not f.choices or len(f.choices) <= 1 << f.bits
    assert at <= isa.WORD_BITS
    assert 0 < spec.code < 1 << isa.OPCODE_BITS


@pytest.mark.parametrize("spec", ISA, ids=lambda s: s.mnemonic)
@settings(deadline=None)  # a shared machine may pause
@given(data=st.data())
def test_every_field_value_round_trips_through_word_and_text(spec, data):
    values = tuple(data.draw(st.integers(f.low, f.high), label=f.name) for f in spec.fields)
    item = Instruction(spec.mnemonic, values)
    assert decode(encode(item)) == item
    assert assemble(str(item), tile=TINY).instructions == (item,)


def test_the_stream_instructions_share_their_layout():
    shared = [[(f.name, f.lsb, f.bits) for f in isa.BY_MNEMONIC[m].fields[:9]] for m in ("vec", "quant", "mask", "rotate")]
    assert all(s == shared[0] for s in shared)


@pytest.mark.parametrize("tile", [TINY, DEMO, DIE], ids=["tiny", "demo", "die"])
def test_programs_round_trip_through_text(tile):
    p = random_program(tile, np.random.default_rng(5))
    assert assemble(disassemble(p)).digest == p.digest
    assert listing(p, first=0, last=2).count("\n") == 2


def test_messages_of_bad_words_and_operands():
    with pytest.raises(IllegalProgramError, match="opcode 0 is not assigned; assigned are 1 to 16"):
        decode(0)
    with pytest.raises(IllegalProgramError, match=r"halt: unused bits 0x10000 are set; clear them"):
        decode(encode(instruction("halt")) | 1 << 16)
    with pytest.raises(IllegalProgramError, match=r"load.target: code 7 is not assigned, the field holds 0 to 5"):
        decode(8 | 7 << 5)
    with pytest.raises(IllegalProgramError, match=r"unknown instruction 'gem'; did you mean 'gemm'\?"):
        instruction("gem")
    with pytest.raises(IllegalProgramError, match=r"gemm: unknown operand 'ms'; did you mean"):
        instruction("gemm", ms=1)
    with pytest.raises(IllegalProgramError, match=r"gemm.m: 257 does not fit, the field holds 1 to 256"):
        instruction("gemm", m=257)
    with pytest.raises(IllegalProgramError, match=r"vec.fn: 'exp' is not one of none, exp2, rcp, rsqrt"):
        instruction("vec", fn="exp")


def test_messages_of_bad_text():
    for text, message in {
        "gemm m": "line 1: 'm' is not of the form name=value in 'gemm m'",
        ".tyle rows=4": r"line 1: unknown directive '.tyle'; known: .program",
        "vec a=1 a=2": "line 1: 'a' is given twice",
        "\nvec fn=sin": r"line 2: vec.fn: 'sin' is not one of",
    }.items():
        with pytest.raises(InputError, match=message):
            assemble(text, tile=TINY)
    with pytest.raises(InputError, match="no tile"):
        assemble("halt")


def test_tiles_that_cannot_be_built_are_refused():
    with pytest.raises(UnsupportedError, match=r"tile: rows = 5 cannot be built; use one of 4, 8, 16, 32, 64, 128"):
        Tile(5, 4, 64, 64, 64, 1024, 64, 64, 1 << 16, 16)
    with pytest.raises(UnsupportedError, match=r"8 vector lanes read accumulator words of 4 rows; use at most 4"):
        Tile(4, 8, 64, 64, 64, 1024, 64, 64, 1 << 16, 16)
    with pytest.raises(UnsupportedError, match=r"tile: vector_elements = 100 must be a positive multiple of 32"):
        Tile(4, 4, 64, 64, 64, 100, 64, 64, 1 << 16, 16)
    with pytest.raises(UnsupportedError, match=r"tile: read_queue_beats = 48 cannot be built; use one of 4, 8, 16, 32, 64, 128"):
        Tile(4, 4, 64, 64, 64, 1024, 64, 64, 1 << 16, 16, read_queue_beats=48)


def test_a_tile_comes_from_a_chip():
    from fabless.chip.chip import Chip, Core, Dram, Link, Mesh, Mxu, Sram

    chip = Chip(
        "demo", "fabless", "asap7", 1e9, 2, Core(Mxu(16, 32, (("int8", 1.0),)), 16, Sram(1 << 20), Sram(1 << 18)),
        Dram("lpddr5x", 1, 2**31, 128e9), Link("none", 0, 0.0, 0.0, 1),
    )  # fmt: skip
    tile = Tile.of(chip)
    assert (tile.rows, tile.vector_lanes, tile.memory_bytes_per_cycle, tile.memory_bytes, tile.n_tiles) == (16, 16, 64, 2**30, 2)
    assert tile.scratchpad_bytes <= (1 << 20) + (1 << 18)
    from dataclasses import replace

    assert tile.read_queue_beats == 512  # 500 ns at 1 GHz, a beat a cycle
    assert Tile.of(replace(chip, dram=replace(chip.dram, latency_s=1e-6))).read_queue_beats == 1024
    assert Tile.of(replace(chip, dram=replace(chip.dram, latency_s=1e-9))).read_queue_beats == 4

    with pytest.raises(UnsupportedError, match="not Mesh"):
        Tile.of(replace(chip, core=replace(chip.core, matrix=Mesh(16, 16, ()))))
    with pytest.raises(UnsupportedError, match="rows have 16 lanes; programs need 32"):
        Tile.of(replace(chip, core=replace(chip.core, matrix=Mxu(16, 16, ()))))
    with pytest.raises(UnsupportedError, match="its rows multiply fp8_e4m3; programs compute int8 blocks"):
        Tile.of(replace(chip, core=replace(chip.core, matrix=Mxu(16, 32, (("fp8_e4m3", 1.0),)))))
    with pytest.raises(InfeasibleError, match="leave weight_words = 4, programs need 8"):
        Tile.of(replace(chip, core=replace(chip.core, scratchpad=Sram(1 << 12))))


def test_cycles_by_hand():
    def of(mnemonic, tile=DEMO, address=0, **operands):
        return cycles(instruction(mnemonic, **operands), tile, address)

    fill = isa.LATENCY
    assert of("gemm", m=1, n=1, k=10) == 10 * fill["ACC"] + fill["GEMM_FILL"]  # one accumulator waits for itself
    assert of("gemm", m=8, n=4, k=10) == 10 * 32 + fill["GEMM_FILL"]
    assert of("vec", rows=3, len=40) == 3 * 3 + fill["VEC_FILL"]  # ceil(40 / 16) = 3
    assert of("vec", rows=3, len=40, fn="exp2") == 3 * 3 * 4 + fill["VEC_FILL"] + fill["FUNCTION_FILL"]
    assert of("quant", len=64) == 2 * 2 + fill["QUANT_FILL"]
    assert of("quant", len=64, scope="row") == 2 * (2 * 2) + fill["QUANT_FILL"]
    assert of("load", target="w", format="int8", count=2) == 2 * 16 * 32 // 64 + fill["LOAD_FILL"]
    assert of("load", target="v", format="bf16", count=64) == 4 + fill["LOAD_FILL"]  # 2 beats, but 16 lanes a cycle
    assert of("store", target="ab", format="int8", rows=64, stride=32) == 64 + fill["STORE_FILL"]
    assert beats(60, 8, 64) == 2
    assert of("send", space="a", count=5) == 5 * 3 + fill["SEND_FILL"]  # a word and its scale: 34 bytes in beats of 16
    assert of("recv", count=33) == 9 + fill["RECV_FILL"]  # 4 elements a beat
    assert of("recv", tile=TINY, count=33) == 9 + fill["RECV_FILL"]


def test_a_read_queue_as_long_as_the_latency_hides_it_after_the_first_beat():
    from dataclasses import replace

    from fabless.sim.cycles import time
    from fabless.sim.dram import MemoryModel

    def of(read_queue_beats, latency_cycles):
        program = assemble("load target=w format=int8 count=200\nhalt", tile=replace(DEMO, read_queue_beats=read_queue_beats))
        return time(program, None, {}, MemoryModel(latency_cycles)).cycles

    near = of(512, 1)
    assert of(512, 400) == near + 399  # 1,600 beats, a beat a cycle once the first is there
    assert of(64, 400) > 1600 / 64 * 400  # 64 beats a round trip


def test_loads_pay_the_latency_once_but_nothing_behind_a_wait_is_asked_for_before():
    """Seven loads in a row, their signals among them, hide each other's latency; the load behind a wait for the vector unit starts a round trip."""

    from fabless.sim.cycles import time
    from fabless.sim.dram import MemoryModel

    def of(text, latency_cycles):
        return time(assemble(text, tile=DEMO), None, {}, MemoryModel(latency_cycles)).cycles

    load = "load target=v format=fp32 count=64 dst={}\n"
    signals = "".join(load.format(64 * i) + f"sync queue=load signal={i}\n" for i in range(7))
    waits = "".join(f"sync queue=vpu wait={i}\n" for i in range(7))
    apart = signals + waits + "sync queue=vpu signal=12\nsync queue=load wait=12\n" + load.format(0)
    assert of(signals + waits + "halt", 400) == of(signals + waits + "halt", 1) + 399
    assert of(apart + "halt", 400) == of(apart + "halt", 1) + 2 * 399


def test_the_page_is_up_to_date():
    path = Path(__file__).parents[2] / "docs" / "isa.md"
    assert path.read_text("utf-8") == page(), "run: python -m fabless.program.document docs/isa.md"


def test_random_programs_reach_the_whole_table():
    """Every instruction, every choice that a legal program may make, and every register operand is drawn within some programs."""
    drawn: dict[tuple[str, str], set[int]] = {}
    for seed in range(40):
        for item in random_program(DEMO, np.random.default_rng(seed), 60):
            for f, value in zip(item.spec.fields, item.values, strict=True):
                drawn.setdefault((item.mnemonic, f.name), set()).add(value)
    legal = {
        ("load", "target"): {isa.TARGETS.index(t) for t in isa.LOAD_FORMATS}, ("store", "target"): {isa.TARGETS.index(t) for t in isa.STORE_FORMATS},
        ("load", "format"): {isa.MEMORY_FORMATS.index(f) for formats in isa.LOAD_FORMATS.values() for f in formats},
        ("store", "format"): {isa.MEMORY_FORMATS.index(f) for formats in isa.STORE_FORMATS.values() for f in formats},
    }  # fmt: skip
    for spec in ISA:
        assert not spec.fields or any(m == spec.mnemonic for m, _ in drawn), spec.mnemonic
        for f in spec.fields:
            seen = drawn[spec.mnemonic, f.name]
            if f.kind == "choice":
                expected = legal.get((spec.mnemonic, f.name), set(range(len(f.choices))))
                assert seen == expected or (spec.mnemonic, f.name) == ("rotate", "b_kind"), (spec.mnemonic, f.name)
            elif f.bits == 1:
                assert seen == {0, 1}, (spec.mnemonic, f.name)
