"""Simulate a netlist gate by gate: 64 independent streams to a machine word, inertial delays from static timing, every toggle counted.

A gate's output follows its function after the gate's delay and only once the function has been still for that long, so that pulses shorter than a
gate's delay are swallowed (the inertial rule of Verilog gate delays). What the nets settle to is exact; how often they toggle before is as exact as
one delay per gate, rounded to a tick.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import UnsupportedError
from fabless.rtl.synthesis.netlist import ONE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from fabless.rtl.synthesis.liberty import Cell
    from fabless.rtl.synthesis.netlist import Netlist
    from fabless.rtl.synthesis.timing import Timing

    Words = NDArray[np.uint64]

#: Ticks of a clock period: about two for each gate of a critical path.
TICKS = 64
_FULL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_TOKEN = re.compile(r"\s*([A-Za-z_][\w\[\]]*|[01]|[()!'&*|+^])")
_BITS = np.array([bin(i).count("1") for i in range(256)], np.uint8)


@cache
def function(text: str, inputs: tuple[str, ...]) -> Callable[[Sequence[Words]], Words]:
    """Return a Liberty boolean function over words, operands in the order of `inputs`.

    Operators by rising precedence: `|` or `+`, `^`, `&` or `*` or juxtaposition, `!` before or `'` after. Raises `UnsupportedError` for anything else.
    """
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != re.sub(r"\s", "", text) or not tokens:
        raise UnsupportedError(f"Liberty function '{text}' cannot be read; expected names, ! ' & * | + ^ and brackets")
    python, rest = _or(tokens)
    if rest:
        raise UnsupportedError(f"Liberty function '{text}' cannot be read after '{rest[0]}'")
    names = {name: f"x[{i}]" for i, name in enumerate(inputs)}
    try:
        body = "".join(names[t] if t in names else _LITERAL[t] for t in python)
    except KeyError as error:
        raise UnsupportedError(f"Liberty function '{text}' names {error}, which is no input pin") from None
    return eval(f"lambda x: {body}", {"ones": _FULL, "zero": np.uint64(0)})  # type: ignore[no-any-return]  # built from the tokens above alone


_LITERAL = {"0": "zero", "1": "ones", "(": "(", ")": ")", "&": "&", "|": "|", "^": "^", "~": "~"}


def _or(tokens: list[str]) -> tuple[list[str], list[str]]:
    return _chain(tokens, _xor, ("|", "+"), "|")


def _xor(tokens: list[str]) -> tuple[list[str], list[str]]:
    return _chain(tokens, _and, ("^",), "^")


def _chain(
    tokens: list[str], inner: Callable[[list[str]], tuple[list[str], list[str]]], signs: tuple[str, ...], to: str
) -> tuple[list[str], list[str]]:
    left, rest = inner(tokens)
    while rest and rest[0] in signs:
        right, rest = inner(rest[1:])
        left = ["(", *left, to, *right, ")"]
    return left, rest


def _and(tokens: list[str]) -> tuple[list[str], list[str]]:
    left, rest = _not(tokens)
    while rest and rest[0] not in {"|", "+", "^", ")"}:
        right, rest = _not(rest[1:] if rest[0] in {"&", "*"} else rest)
        left = ["(", *left, "&", *right, ")"]
    return left, rest


def _not(tokens: list[str]) -> tuple[list[str], list[str]]:
    if not tokens:
        raise UnsupportedError("a Liberty function ends where an operand was expected")
    if tokens[0] == "!":
        value, rest = _not(tokens[1:])
        return ["(", "~", *value, ")"], rest
    if tokens[0] == "(":
        value, rest = _or(tokens[1:])
        rest = rest[1:]
    else:
        value, rest = [tokens[0]], tokens[1:]
    while rest and rest[0] == "'":
        value, rest = ["(", "~", *value, ")"], rest[1:]
    return value, rest


@dataclass(frozen=True, slots=True)
class Activity:
    """Hold toggles by net over a simulation: `toggles` all of them, `settled` those that remain when a cycle's glitches are left out."""

    toggles: NDArray[np.int64]
    settled: NDArray[np.int64]
    n_cycles: int  # cycles times streams

    @property
    def glitch_ratio(self) -> float:
        """Return toggles over those of settled values."""
        return float(self.toggles.sum() / max(1, self.settled.sum()))


@dataclass(frozen=True, slots=True)
class _Kind:
    """Hold all gates of one cell type: input nets `[pins, gates]` and, by output pin, function, place in the element arrays and nets."""

    inputs: NDArray[np.intp]
    outputs: tuple[tuple[Callable[[Sequence[Words]], Words], slice], ...]


class Simulator:
    """Simulate a netlist on `n_words` x 64 streams, one clock cycle a `step`.

    Without `timing` every gate takes one tick. Values of ports are `[bits, n_words]` words, stream s in bit s % 64 of word s // 64.
    """

    def __init__(self, netlist: Netlist, n_words: int, timing: Timing | None = None) -> None:
        self.netlist, self.n_words = netlist, n_words
        by_type: dict[str, list[int]] = {}
        for n, g in enumerate(netlist.gates):
            by_type.setdefault(g.cell.name, []).append(n)
        nets: list[int] = []
        ticks: list[int] = []
        self._kinds: list[_Kind] = []
        for members in by_type.values():
            gates = [netlist.gates[n] for n in members]
            cell = gates[0].cell
            pins = cell.inputs
            outputs = []
            for pin in cell.outputs:
                used = cell.pins[pin].function
                if used and pin in gates[0].pins:
                    start = len(nets)
                    nets += [g.pins[pin] for g in gates]
                    ticks += [1 if timing is None else max(1, round(timing.delays_s[g.name] / timing.period_s * TICKS)) for g in gates]
                    outputs.append((function(used, pins), slice(start, len(nets))))
            self._kinds.append(_Kind(np.array([[g.pins[p] for g in gates] for p in pins], np.intp).reshape(len(pins), -1), tuple(outputs)))
        self._nets, self._ticks = np.array(nets, np.intp), np.array(ticks, np.intp)
        self._by_delay = [(int(d), np.flatnonzero(self._ticks == d)) for d in np.unique(self._ticks)]
        self._flops = [
            (np.array(out, np.intp), np.array(d, np.intp), inverts, enable) for (inverts, enable), (out, d) in _flop_groups(netlist).items()
        ]
        self.values: Words = np.zeros((netlist.n_nets, n_words), np.uint64)
        self.values[ONE] = _FULL
        self.toggles = np.zeros(netlist.n_nets, np.int64)
        self.settled = np.zeros(netlist.n_nets, np.int64)
        self.n_cycles = 0
        self._still = self._evaluate()
        self._settle()
        self.toggles[:] = 0

    def resume(self, values: Words) -> None:
        """Go on from the settled values of every net, `[nets, n_words]`."""
        self.values = values.copy()
        self._still = self._evaluate()

    def step(self, inputs: Mapping[str, Words]) -> None:
        """Clock once: flip-flops take what stood at their inputs, ports take `inputs`, and the gates settle."""
        nets = [net for name in inputs for net in self.netlist.inputs[name]]
        self.drive(np.array(nets, np.intp), np.concatenate(list(inputs.values())) if inputs else np.zeros((0, self.n_words), np.uint64))

    def drive(self, nets: NDArray[np.intp], driven: Words, is_open: Words | None = None) -> None:
        """Clock once, as `step` does, with words `[nets, n_words]` for the nets of ports; where `is_open` `[n_words]` is 0 the clock stands still."""
        before = self.values.copy()
        taken = []
        for out, d, inverted, enable in self._flops:
            new, passes = (~self.values[d] if inverted else self.values[d]), self.values[enable] if enable >= 0 else is_open
            taken.append((out, new if passes is None else (new & passes) | (self.values[out] & ~passes)))
        for out, moved in taken:
            self.values[out] = moved
        self.values[nets] = driven
        self.toggles += _popcount(self.values ^ before)
        self._settle()
        self.settled += _popcount(self.values ^ before)
        self.n_cycles += 64 * self.n_words

    def output(self, name: str) -> Words:
        """Return the settled words of an output port, `[bits, n_words]`."""
        return self.values[list(self.netlist.outputs[name])]

    def activity(self) -> Activity:
        """Return the toggles counted so far."""
        return Activity(self.toggles.copy(), self.settled.copy(), self.n_cycles)

    def _evaluate(self) -> Words:
        """Return what every gate's function says of the nets as they are."""
        said = np.empty((len(self._nets), self.n_words), np.uint64)
        for kind in self._kinds:
            pins = list(self.values[kind.inputs])
            for f, where in kind.outputs:
                said[where] = f(pins)
        return said

    def _settle(self) -> None:
        """Run ticks until no net and no gate moves."""
        longest = int(self._ticks.max(initial=1))
        moved = [np.zeros_like(self._still)] * longest  # which streams of which gate's function moved in the last ticks, newest first
        driven = self.values[self._nets]
        for _ in range((len(self._nets) + 2) * (longest + 1)):
            said = self._evaluate()
            moved = [said ^ self._still, *moved[:-1]]
            self._still = said
            new = driven.copy()
            for d, which in self._by_delay:
                unsettled = moved[0][which]
                for k in range(1, d):
                    unsettled = unsettled | moved[k][which]
                new[which] = (driven[which] & unsettled) | (said[which] & ~unsettled)
            change = new ^ driven
            if not change.any() and not any(m.any() for m in moved):
                return
            self.toggles[self._nets] += _popcount(change)
            driven = new
            self.values[self._nets] = driven
        raise UnsupportedError(f"{self.netlist.name}: gates do not settle; the netlist has a loop")


def _popcount(words: Words) -> NDArray[np.int64]:
    """Return the ones in each row of words."""
    ones: NDArray[np.int64] = _BITS[np.ascontiguousarray(words).view(np.uint8)].sum(axis=1, dtype=np.int64)
    return ones


def _flop_groups(netlist: Netlist) -> dict[tuple[bool, int], tuple[list[int], list[int]]]:
    """Return (output nets, data nets) by whether the output is the inverse of what was sampled, and the net that opens the clock's gate (-1: none)."""
    groups: dict[tuple[bool, int], tuple[list[int], list[int]]] = {}
    enables = netlist.enables
    for f in netlist.flops:
        data = data_pin(f.cell)
        clock = next(f.pins[p] for p in f.pins if f.cell.pins[p].clock)
        for pin in f.cell.outputs:
            if pin in f.pins:
                out, d = groups.setdefault((inverts(f.cell, pin), enables.get(clock, -1)), ([], []))
                out.append(f.pins[pin])
                d.append(f.pins[data])
    return groups


def data_pin(cell: Cell) -> str:
    """Return the input that a plain flip-flop samples. Raises `UnsupportedError` for one with an enable, a scan port or two inputs."""
    if cell.flop is None:
        raise UnsupportedError(f"cell {cell.name} is no flip-flop")
    named: list[str] = [t for t in _TOKEN.findall(cell.flop.next_state) if t in cell.pins]
    if len(set(named)) != 1:
        raise UnsupportedError(f"cell {cell.name}: samples '{cell.flop.next_state}', not one pin; use plain flip-flops")
    return named[0]


def inverts(cell: Cell, output: str) -> bool:
    """Return whether an output of a flip-flop is the inverse of its data pin."""
    assert cell.flop is not None
    data = data_pin(cell)
    state = function(cell.flop.next_state, (data,))([np.uint64(0)])  # type: ignore[list-item]
    shown = function(cell.pins[output].function, (cell.flop.state, cell.flop.inverse))
    return bool(shown([state, ~state]) & np.uint64(1))


def words(bits: NDArray[np.bool_]) -> Words:
    """Return streams as words: `[streams, bits]` booleans -> `[bits, streams / 64]`; streams must fill whole words."""
    packed = np.packbits(bits.T.astype(np.uint8), axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view(np.uint64)


def integers(port: Words, *, signed: bool = False) -> NDArray[np.int64]:
    """Return the number that each stream shows on a port of at most 63 bits."""
    bits = np.unpackbits(np.ascontiguousarray(port).view(np.uint8), axis=1, bitorder="little").astype(np.int64)  # [bits, streams]
    value: NDArray[np.int64] = (bits << np.arange(len(bits))[:, None]).sum(axis=0)
    return value - (bits[-1] << len(bits)) if signed else value


def number_bits(values: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    """Return two's complement bits `[streams, width]` of `[streams]`, or `[streams, n * width]` of `[streams, n]`, lowest first."""
    wide = values.reshape(len(values), -1, 1) >> np.arange(width)
    bits: NDArray[np.bool_] = (wide & 1).astype(bool).reshape(len(values), -1)
    return bits
