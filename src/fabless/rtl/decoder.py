"""The decoder, generated from the ISA table: where each field of each instruction stands in the word, and what it means as a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amaranth.hdl import Const, Value

from fabless.program.isa import BY_MNEMONIC, OPCODE_BITS

if TYPE_CHECKING:
    from fabless.program.isa import Field


def is_a(word: Value, mnemonic: str) -> Value:
    """Return whether the word is this instruction."""
    return word[:OPCODE_BITS] == BY_MNEMONIC[mnemonic].code


def bits(word: Value, mnemonic: str, name: str) -> Value:
    """Return the raw bits of a field."""
    f = BY_MNEMONIC[mnemonic].by_name[name]
    return word[f.lsb : f.lsb + f.bits]


def value(word: Value, mnemonic: str, name: str) -> Value:
    """Return the number that a field means: sign extended, or one more for `minus_one`."""
    raw, f = bits(word, mnemonic, name), BY_MNEMONIC[mnemonic].by_name[name]
    if f.kind == "signed":
        return raw.as_signed()
    return raw + 1 if f.kind == "minus_one" else raw


def choice(word: Value, mnemonic: str, name: str, wanted: str) -> Value:
    """Return whether a choice field holds the given word."""
    f = BY_MNEMONIC[mnemonic].by_name[name]
    return bits(word, mnemonic, name) == Const(f.choices.index(wanted), f.bits)


def addends(mnemonic: str) -> tuple[tuple[str, Field | None, Field], ...]:
    """Return (name, immediate or None, register field) of every operand that the sequencer adds up, in table order."""
    spec = BY_MNEMONIC[mnemonic]
    return tuple(
        (name := f.name.removesuffix("_reg"), spec.by_name.get(name), f)
        for f in spec.fields
        if f.kind == "register" and f.name.endswith("_reg")
    )
