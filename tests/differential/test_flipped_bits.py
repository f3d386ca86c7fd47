"""Flip bits of compiled programs, any bit of any instruction: the decoder or `verify` refuses, or the state that launches leave differs, or nothing is meant.

Every flip changes the program's digest. What remains silent (legal, other work, the same state) is rare: masks of what is masked already, loads of
more than is used, rows that another instruction overwrites, waits in another queue that order as much, an epsilon that rounds away. No other opcode is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fabless.compiler.driver import Shape
from fabless.compiler.driver import compile as compile_model
from fabless.compiler.launch import Segment
from fabless.compiler.pack import pack
from fabless.core.errors import IllegalProgramError
from fabless.fleet.session import Session
from fabless.model.integer_reference import IntegerWeights
from fabless.model.random_weights import random_weights
from fabless.number.formats import format_named
from fabless.program.isa import OPERAND_B, PRE, WORD_BITS, Instruction, decode
from fabless.program.program import Program, unpack
from fabless.program.sequence import Issued, issue, parameter_words
from fabless.program.tile import DEMO
from fabless.program.verify import verify
from fabless.sim.machine import State
from fabless.sim.machine_fast import Link, Runner

_LIMIT = 1 << 12  # instructions of a launch; the programs here issue less than a quarter
#: The greatest share of silent flips; 22 of 3,000 in the first sample (llama, 2x3).
SILENT_RATIO = 0.02


@dataclass
class Subject:
    """Hold a program, the memory that it starts from, two launches far apart, and what they leave and issue."""

    program: Program
    memory: np.ndarray
    launches: list[np.ndarray]

    def __post_init__(self) -> None:
        self.ends = []
        for which in ("low", "high"):
            words = np.zeros(self.program.tile.parameter_words, np.int32)
            for p in self.program.parameters:
                words[p.index : p.index + p.count] = getattr(p, which)
            self.ends.append(words)
        self.clean = [self.left(self.program, words) for words in self.launches]
        self.work = self.issued(self.program)

    def left(self, program: Program, words: np.ndarray) -> State:
        """Run a launch on buffers full of what no program wrote."""
        state = State(program.tile, self.memory.copy(), words.copy())
        for part in (state.weights, state.activations, state.weight_scales, state.activation_scales, state.accumulators, state.vector):
            part[:] = 77
        runner = Runner(program, state, Link(), Link())
        if runner.advance():
            raise IllegalProgramError("waits for a neighbour")
        runner.settle()
        return state

    def issued(self, program: Program) -> list[list[tuple[object, ...]]]:
        """Return what the queues receive, with what has no meaning left out, in both launches and at both ends of every parameter."""
        return [[meaning(item) for item in issue(program, words, limit=_LIMIT)] for words in (*self.launches, *self.ends)]

    def outcome(self, at: int, bit: int) -> tuple[str, Instruction | None]:
        """Return how the flip of a bit is noticed: decoder, verify, launch (the machine refuses), state; "idle": it means nothing; "silent": not at all."""
        words = self.program.words.copy()
        words[at, bit // 64] ^= np.uint64(1 << bit % 64)
        try:
            item = decode(unpack(words[at : at + 1])[0])
        except IllegalProgramError:
            return "decoder", None
        flipped = replace(self.program, words=words)
        items = list(self.program.instructions)
        items[at] = item
        flipped.__dict__["instructions"] = tuple(items)  # decoding all of them again for every bit would take minutes
        assert flipped.digest != self.program.digest
        if {item.mnemonic, self.program.instructions[at].mnemonic} & {"loop", "end"} and refused(flipped):  # before it runs for ever
            return "verify", item
        try:
            states = [self.left(flipped, launch) for launch in self.launches]
        except IllegalProgramError:
            return ("verify" if refused(flipped) else "launch"), item  # verify runs both ends of parameters, and trusts what is read
        if not all(same(*pair) for pair in zip(states, self.clean, strict=True)):
            return "state", item
        if refused(flipped):
            return "verify", item
        return ("idle" if self.issued(flipped) == self.work else "silent"), item


def refused(program: Program) -> bool:
    try:
        verify(program, limit=_LIMIT)
    except IllegalProgramError:
        return True
    return False


def same(a: State, b: State) -> bool:
    return a.retired == b.retired and all(np.array_equal(x, y) for x, y in zip(a.parts().values(), b.parts().values(), strict=True))


def meaning(item: Issued) -> tuple[object, ...]:
    """Return an issued instruction without the operands that the ISA gives no meaning: strides of one row, operand b where none is read."""
    o, idle = item.operands, set()
    if o.get("rows", o.get("m", 2)) == 1:
        idle |= {"stride", "a_stride", "b_stride", "c_stride", "dst_stride", "step"}
    if item.mnemonic == "gemm" and o["k"] == 1:
        idle.add("split")
    if item.mnemonic in {"vec", "quant"}:
        kind = "none" if PRE[o["pre"]] == "copy" else OPERAND_B[o["b_kind"]]
        idle |= {"none": {"b", "b_stride", "b_kind"}, "self": {"b", "b_stride"}, "register": {"b_stride"}}.get(kind, set())
    if item.mnemonic == "quant" and o["len"] <= 32:
        idle.add("scope")
    return (item.mnemonic, *((name, x) for name, x in o.items() if name not in idle))


def subject(family: str, shape: Shape, format: str) -> Subject:
    """Compile a small model, fill its cache, and choose one launch near the start of the context and one near its end."""
    weights = IntegerWeights.load(random_weights(family, seed=1), format_named(format))
    rng, d = np.random.default_rng(0), weights.decoder
    compiled = compile_model(d, DEMO, [shape, Shape(1, 16)], context_tokens=128, n_pages=2 * shape.segments, format=format)
    layout = compiled.layouts[0]
    memory = np.zeros(layout.memory_bytes, np.uint8)
    pack(layout, weights, memory[: layout.image_bytes])
    session = Session(compiled, [memory])
    for segment in range(shape.segments):
        for at in range(0, 112, 16):
            session.step(Shape(1, 16), [Segment(rng.integers(0, d.n_vocab, 16).tolist(), at, [2 * segment + 1])])
    launches = []
    for position in (5, 100):
        segments = [
            Segment(rng.integers(0, d.n_vocab, shape.tokens).tolist(), position + 7 * i, [2 * i + 1]) for i in range(shape.segments)
        ]
        launches.append(parameter_words(compiled.program(shape), compiled.parameters(shape, segments)))
    return Subject(compiled.program(shape), memory, launches)


def count(held: Subject, flips: list[tuple[int, int]]) -> Counter[str]:
    """Count outcomes; another opcode must not be silent."""
    counts: Counter[str] = Counter()
    for at, bit in flips:
        outcome, item = held.outcome(at, bit)
        counts[outcome] += 1
        if outcome == "silent":
            assert item is not None
            before = held.program.instructions[at]
            assert before.mnemonic == item.mnemonic, f"instruction {at}, bit {bit}: {before} became {item}"
    return counts


def noticed(counts: Counter[str]) -> None:
    total = sum(counts.values())
    assert {"decoder", "verify", "state"} <= set(counts)
    assert counts["silent"] <= SILENT_RATIO * total, counts


@pytest.mark.parametrize(
    ("family", "shape", "format"), [("llama", Shape(2, 3), "int8_block32"), ("gpt_oss", Shape(1, 1), "nvfp4")], ids=str
)
def test_a_sample_of_all_bits_is_noticed(family, shape, format):
    held = subject(family, shape, format)
    rng = np.random.default_rng(3)
    n = len(held.program)
    flips = [(int(rng.integers(n)), int(rng.integers(WORD_BITS))) for _ in range(200)]
    noticed(count(held, flips))


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_moe"])
def test_a_thirtieth_of_all_bits_is_noticed(family):
    held = subject(family, Shape(2, 3), "int8_block32")
    rng = np.random.default_rng(4)
    every = [(at, bit) for at in range(len(held.program)) for bit in range(WORD_BITS)]
    noticed(count(held, [every[i] for i in rng.choice(len(every), len(every) // 30, replace=False)]))
