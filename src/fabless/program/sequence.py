"""The sequencer: from a program and its parameters to the stream of instructions that the queues receive, in program order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import IllegalProgramError
from fabless.program.isa import BY_MNEMONIC, LOOP_DEPTH, N_REGISTERS, REGISTER_BITS, Queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from fabless.program.isa import Instruction
    from fabless.program.program import Program


@dataclass(frozen=True, slots=True)
class Issued:
    """Hold one instruction as its unit receives it: plain numbers, every `+ X[reg]` added up.

    Register fields are gone from `operands`, but for what they brought: `start`, `low`, `high` of `mask`, `b` (binary32 code) of a register operand.
    """

    pc: int
    mnemonic: str
    queue: Queue
    operands: Mapping[str, int]

    def __getitem__(self, name: str) -> int:
        return self.operands[name]

    def __str__(self) -> str:
        return f"{self.pc}: {self.mnemonic} " + " ".join(f"{k}={v}" for k, v in self.operands.items())


def wrap(value: int) -> int:
    """Return a register's value: modulo 2^40, two's complement."""
    value &= (1 << REGISTER_BITS) - 1
    return value - (1 << REGISTER_BITS) if value >> REGISTER_BITS - 1 else value


def parameter_words(program: Program, given: Mapping[str, object] | None = None) -> NDArray[np.int32]:
    """Return parameter memory for a launch: named values (a number or a sequence) where given, else each parameter's `low`.

    Raises `IllegalProgramError` for an unknown name, too many values, or a value outside the parameter's range.
    """
    words = np.zeros(program.tile.parameter_words, np.int32)
    for p in program.parameters:
        words[p.index : p.index + p.count] = p.low
    for name, value in (given or {}).items():
        p = program.parameter(name)
        values = np.atleast_1d(np.asarray(value, dtype=np.int64)).reshape(-1)
        if len(values) > p.count:
            raise IllegalProgramError(f"parameter '{name}': {len(values)} values given, it has {p.count} words; give at most that many")
        if len(values) and not (p.low <= values.min() and values.max() <= p.high):
            raise IllegalProgramError(
                f"parameter '{name}': values {values.min()} to {values.max()} are outside its range {p.low} to {p.high}; "
                "keep within it, or compile for a larger bound"
            )
        words[p.index : p.index + len(values)] = values
    return words


def issue(  # noqa: PLR0912  one branch an instruction of the sequencer
    program: Program,
    parameters: NDArray[np.int32],
    read: Callable[[int], int] = lambda at: 0,
    *,
    limit: int = 1 << 34,
    watch: Callable[[int, list[int], list[list[int]]], None] | None = None,
) -> Iterator[Issued]:
    """Yield every instruction that a queue receives, `halt` last, and `read`s before their value is asked for.

    `watch(pc, registers, loops)` sees every instruction before it is taken, the sequencer's own too; loops are [instruction, trips left].

    `read(at)` returns the integer in vector element `at`; it is called after the consumer has taken the `read`, so that a machine that executes
    what it is handed has it ready. Raises `IllegalProgramError` for a program counter outside the program, loops nested too deep, an `end` without
    `loop`, a parameter index outside the memory, and more than `limit` instructions.
    """
    registers = [0] * N_REGISTERS
    loops: list[list[int]] = []
    items, pc, n = program.instructions, 0, 0
    while True:
        if not 0 <= pc < len(items):
            raise IllegalProgramError(f"instruction {pc}: runs past the program's {len(items)} instructions; end it with halt")
        if (n := n + 1) > limit:
            raise IllegalProgramError(f"instruction {pc}: more than {limit} instructions were issued; check the trip counts")
        if watch is not None:
            watch(pc, registers, loops)
        item = items[pc]
        issued = resolve(pc, item, registers)
        match item.mnemonic:
            case "halt":
                yield issued
                return
            case "loop":
                if len(loops) == LOOP_DEPTH:
                    raise IllegalProgramError(f"instruction {pc}: loop nests deeper than {LOOP_DEPTH}; unroll one level")
                if issued["count"] > 0:
                    loops.append([pc, issued["count"]])
                else:
                    pc += item["length"] + 1
            case "end":
                if not loops:
                    raise IllegalProgramError(f"instruction {pc}: end without loop; remove it")
                loops[-1][1] -= 1
                if loops[-1][1]:
                    pc = loops[-1][0]
                else:
                    loops.pop()
            case "madd":
                _write(registers, item, registers[item["p"]] * item["mul"] + registers[item["q"]] + item["imm"])
            case "param":
                at = issued["at"]
                if not 0 <= at < len(parameters):
                    raise IllegalProgramError(f"instruction {pc}: param reads word {at} of {len(parameters)}; keep inside parameter memory")
                _write(registers, item, int(parameters[at]))
            case "read":
                yield issued
                _write(registers, item, read(issued["at"]))
            case _:
                yield issued
        pc += 1


def _write(registers: list[int], item: Instruction, value: int) -> None:
    if item["x"]:
        registers[item["x"]] = wrap(value)


@cache
def _plan(mnemonic: str) -> tuple[tuple[str, int, int], ...]:
    """Return (operand, column of its immediate or -1, column of its register or -1) for every operand of an issued instruction."""
    names = [f.name for f in BY_MNEMONIC[mnemonic].fields]
    plan = []
    for column, name in enumerate(names):
        base = name.removesuffix("_reg")
        if name.endswith("_reg"):
            if base not in names:  # start, low, high of mask
                plan.append((base, -1, column))
        else:
            register = f"{name}_reg"
            plan.append((name, column, names.index(register) if register in names else -1))
    return tuple(plan)


def resolve(pc: int, item: Instruction, registers: list[int]) -> Issued:
    """Return an instruction with its register fields added up."""
    values = item.values
    out = {
        name: (
            values[immediate]
            if register < 0
            else registers[values[register]]
            if immediate < 0
            else wrap(values[immediate] + registers[values[register]])
        )
        for name, immediate, register in _plan(item.mnemonic)
    }
    if item.mnemonic in {"vec", "quant"} and item.choice("b_kind") == "register":
        out["b"] = registers[item["b_reg"]] & 0xFFFFFFFF
    return Issued(pc, item.mnemonic, item.queue, out)
