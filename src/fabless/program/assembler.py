"""Programs as text and back: `assemble(disassemble(p))` is `p`, word for word.

    .tile rows=16 vector_lanes=16 ...
    .buffer weights address=0 bytes=4096 kind=weights
    .parameter context index=0 count=1 low=1 high=2048
    start:
        madd x=3 imm=4096                ; comment to the end of the line
        load target=w format=int8 count=8 dst=0 address=0+x3
        gemm m=1 n=8 k=1 w=0 a=0 c=0 clear=1

An operand that is left out has the least value of its field; `dst=16+x3` writes `dst` and `dst_reg` at once; masks are lists of numbers (`0,3`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from fabless.core.errors import FablessError, IllegalProgramError, InputError
from fabless.program.isa import Instruction, instruction
from fabless.program.program import Buffer, Parameter, Program
from fabless.program.tile import Tile

if TYPE_CHECKING:
    from fabless.program.isa import Field

_ADDRESS = re.compile(r"(-?\w+)(?:\+x(\d+))?$")


def line(item: Instruction) -> str:
    """Write one instruction: mnemonic and every operand that is not at its least value."""
    spec, words = item.spec, [item.mnemonic]
    values = dict(zip((f.name for f in spec.fields), item.values, strict=True))
    for f in spec.fields:
        register = f"{f.name}_reg"
        if f.name.endswith("_reg") and f.name.removesuffix("_reg") in spec.by_name:
            continue
        if register in spec.by_name:
            if values[f.name] or values[register]:
                words.append(f"{f.name}={values[f.name]}" + (f"+x{values[register]}" if values[register] else ""))
        elif values[f.name] != f.low:
            words.append(f"{f.name}={_written(f, values[f.name])}")
    return " ".join(words)


def _written(f: Field, value: int) -> str:
    if f.kind == "choice":
        return f.choices[value]
    if f.kind == "mask":
        return ",".join(str(i) for i in range(f.bits) if value >> i & 1)
    return f"x{value}" if f.kind == "register" else str(value)


def disassemble(program: Program) -> str:
    """Write a program as text that `assemble` reads back to the same words, tile, buffers, parameters, labels and constants."""
    out = [f".program {program.name}"] if program.name else []
    out.append(".tile " + " ".join(f"{f.name}={getattr(program.tile, f.name)}" for f in fields(Tile)))
    if program.read_high:
        out.append(f".read_high {program.read_high}")
    for b in program.buffers:
        shape = f" format={b.format}" * bool(b.format) + f" shape={'x'.join(map(str, b.shape))}" * bool(b.shape)
        out.append(f".buffer {b.name} address={b.address} bytes={b.bytes} kind={b.kind}{shape}")
    out += [f".parameter {p.name} index={p.index} count={p.count} low={p.low} high={p.high}" for p in program.parameters]
    out += [f".constant {name} {content.hex()}" for name, content in sorted(program.constants.items())]
    by_index: dict[int, list[str]] = {}
    for name, index in program.labels.items():
        by_index.setdefault(index, []).append(name)
    depth = 0
    for index, item in enumerate(program.instructions):
        out += [f"{name}:" for name in by_index.get(index, [])]
        depth = max(0, depth - (item.mnemonic == "end"))
        out.append("    " + "  " * depth + line(item))
        depth += item.mnemonic == "loop"
    out += [f"{name}:" for name in by_index.get(len(program), [])]
    return "\n".join(out) + "\n"


@dataclass
class _Parts:
    """Collect what the lines of a program say."""

    tile: Tile | None
    items: list[Instruction] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)
    constants: dict[str, bytes] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    name: str = ""
    read_high: int = 0

    def take(self, head: str, rest: list[str]) -> None:
        """Take one line in."""
        if head.endswith(":") and not rest:
            self.labels[head[:-1]] = len(self.items)
        elif head.startswith("."):
            self.direct(head, rest)
        else:
            self.items.append(instruction(head, **_operands(rest)))

    def direct(self, head: str, rest: list[str]) -> None:
        """Take one directive in."""
        match head:
            case ".program":
                self.name = " ".join(rest)
            case ".read_high":
                self.read_high = int(rest[0])
            case ".tile":
                self.tile = Tile(**{k: int(v) for k, v in _pairs(rest).items()})
            case ".buffer":
                self.buffers.append(_buffer(rest[0], _pairs(rest[1:])))
            case ".parameter":
                self.parameters.append(Parameter(rest[0], **{k: int(v) for k, v in _pairs(rest[1:]).items()}))
            case ".constant":
                self.constants[rest[0]] = bytes.fromhex("".join(rest[1:]))
            case _:
                raise InputError(f"unknown directive '{head}'; known: .program, .tile, .read_high, .buffer, .parameter, .constant")


def assemble(text: str, *, tile: Tile | None = None) -> Program:
    """Read a program's text. The tile comes from `.tile` or the argument.

    Raises `InputError` naming the line, what was read, and what would be right.
    """
    parts = _Parts(tile)
    for number, raw in enumerate(text.splitlines(), 1):
        words = raw.split(";")[0].split()
        if not words:
            continue
        try:
            parts.take(words[0], words[1:])
        except (FablessError, ValueError, IndexError, TypeError, KeyError) as error:
            raise InputError(f"line {number}: {error} in '{raw.strip()}'") from None
    if parts.tile is None:
        raise InputError("no tile: start the text with '.tile rows=... ' or name a chip")
    return Program.of(
        parts.items,
        parts.tile,
        buffers=tuple(parts.buffers),
        parameters=tuple(parts.parameters),
        constants=parts.constants,
        labels=parts.labels,
        name=parts.name,
        read_high=parts.read_high,
    )


def _buffer(name: str, given: dict[str, str]) -> Buffer:
    shape = tuple(int(n) for n in given["shape"].split("x")) if "shape" in given else ()
    return Buffer(name, int(given["address"]), int(given["bytes"]), given["kind"], given.get("format", ""), shape)


def _pairs(words: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise InputError(f"'{word}' is not of the form name=value")
        if key in pairs:
            raise InputError(f"'{key}' is given twice")
        pairs[key] = value
    return pairs


def _operands(words: list[str]) -> dict[str, int | str]:
    operands: dict[str, int | str] = {}
    for key, value in _pairs(words).items():
        if key in {"wait", "signal"}:
            operands[key] = sum(1 << bit for bit in {int(n) for n in value.split(",")})
        elif re.fullmatch(r"x\d+", value):
            operands[key] = int(value[1:])
        elif (match := _ADDRESS.match(value)) and match[2]:
            operands[key], operands[f"{key}_reg"] = int(match[1], 0), int(match[2])
        else:
            operands[key] = int(value, 0) if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", value) else value
    return operands


def listing(program: Program, *, first: int = 0, last: int | None = None) -> str:
    """Write instructions with their index and hexadecimal word, one a line, for a debugger."""
    from fabless.program.program import unpack

    chosen = range(first, len(program) if last is None else min(last, len(program)))
    if not chosen:
        raise IllegalProgramError(f"program '{program.name}' has {len(program)} instructions; {first} to {last} selects none")
    words = unpack(program.words)
    return "\n".join(f"{i:6d}  {words[i]:032x}  {line(program.instructions[i])}" for i in chosen) + "\n"
