"""Simulate a netlist cycle by cycle on one stream, without delays: what every net settles to, how often it toggles, the state at chosen cycles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from fabless.rtl.synthesis.netlist import ONE
from fabless.rtl.synthesis.simulation import data_pin, function, inverts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fabless.rtl.synthesis.netlist import Netlist


@dataclass(frozen=True, slots=True)
class Settled:
    """Hold toggles by net over `n_cycles`; settled values `[chosen, nets]`; the first (cycle, output bit) that was not as expected, or None."""

    toggles: NDArray[np.int64]
    n_cycles: int
    states: NDArray[np.uint8]
    wrong: tuple[int, int] | None


def settled_run(
    netlist: Netlist, inputs: tuple[NDArray[np.intp], NDArray[np.uint8]], expected: tuple[NDArray[np.intp], NDArray[np.uint8]],
    chosen: NDArray[np.int64], *, skip: int, open_bits: NDArray[np.uint8] | None = None, compare_from: int = 0,
) -> Settled:  # fmt: skip
    """Run a netlist from flip-flops that hold 0: `inputs`: nets and their bits `[cycles, nets]`; `expected`: nets and what they settle to in each cycle.

    `open_bits` `[cycles]`: whether the gate of the netlist's own clock is open, where it has one; gates inside follow their enables.
    Toggles count from cycle `skip` on, and expectations hold from there, or from `compare_from` if that is later; `chosen`: cycles, rising,
    after which the state is kept.
    """
    pins, offsets, tables, outs = _gates(netlist)
    flops = list(flop_pins(netlist))
    d, q, inverted, enable = (np.array([f[i] for f in flops], np.int64) for i in range(4))
    clock = np.ones(len(inputs[1]), np.uint8) if open_bits is None else open_bits
    values = np.zeros(netlist.n_nets, np.uint8)
    values[ONE] = 1
    values[q[inverted.astype(bool)]] = 1  # every flip-flop holds 0, whatever its output shows
    toggles = np.zeros(netlist.n_nets, np.int64)
    states = np.zeros((len(chosen), netlist.n_nets), np.uint8)
    wrong = _run(
        values, pins, offsets, tables, outs, d, q, inverted.astype(np.uint8), enable, clock, inputs[0].astype(np.int64), inputs[1],
        expected[0].astype(np.int64), expected[1], chosen, states, toggles, skip, max(skip, compare_from),
    )  # fmt: skip
    return Settled(toggles, len(inputs[1]) - skip, states, None if wrong[0] < 0 else (int(wrong[0]), int(wrong[1])))


def flop_pins(netlist: Netlist) -> Iterator[tuple[int, int, bool, int]]:
    """Yield (data net, output net, whether the output is the inverse, net that opens its clock's gate or -1) of every flip-flop's outputs."""
    enables = netlist.enables
    for f in netlist.flops:
        clock = next(f.pins[p] for p in f.pins if f.cell.pins[p].clock)
        for pin in f.cell.outputs:
            if pin in f.pins:
                yield f.pins[data_pin(f.cell)], f.pins[pin], inverts(f.cell, pin), enables.get(clock, -1)


def _gates(netlist: Netlist) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Return, by gate output in order: nets of its inputs (-1: none), place of its truth table, all tables, net that it drives."""
    rows, places, outs = [], [], []
    tables: dict[tuple[str, tuple[str, ...]], int] = {}
    content: list[NDArray[np.uint8]] = []
    size = 0
    for gate in netlist.gates:
        names = gate.cell.inputs
        for pin in gate.cell.outputs:
            text = gate.cell.pins[pin].function
            if not text or pin not in gate.pins:
                continue
            key = (text, names)
            if key not in tables:
                tables[key] = size
                content.append(_truth(text, names))
                size += len(content[-1])
            rows.append([gate.pins[n] for n in names])
            places.append(tables[key])
            outs.append(gate.pins[pin])
    width = max((len(r) for r in rows), default=1)
    pins = np.array([r + [-1] * (width - len(r)) for r in rows], np.int64).reshape(len(rows), width)
    return pins, np.array(places, np.int64), np.concatenate(content) if content else np.zeros(1, np.uint8), np.array(outs, np.int64)


@cache
def _truth(text: str, names: tuple[str, ...]) -> NDArray[np.uint8]:
    index = np.arange(1 << len(names), dtype=np.uint64)
    full = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
    said = function(text, names)([(index >> np.uint64(i) & np.uint64(1)) * full for i in range(len(names))])
    truth: NDArray[np.uint8] = (np.broadcast_to(said, index.shape) & np.uint64(1)).astype(np.uint8)
    return truth


@njit(cache=True)  # 20,000 gates in turn, some thousand times: seconds here, an hour in Python
def _settle(values: Any, pins: Any, offsets: Any, tables: Any, outs: Any, toggles: Any, counts: bool) -> None:
    """Evaluate every gate once, in order."""
    for g in range(len(outs)):
        index = 0
        for k in range(pins.shape[1]):
            if pins[g, k] >= 0:
                index |= values[pins[g, k]] << k
        new = tables[offsets[g] + index]
        if values[outs[g]] != new:
            values[outs[g]] = new
            if counts:
                toggles[outs[g]] += 1


@njit(cache=True)
def _run(
    values: Any, pins: Any, offsets: Any, tables: Any, outs: Any, d: Any, q: Any, inverted: Any, enable: Any, clock: Any, in_nets: Any,
    in_bits: Any, out_nets: Any, out_bits: Any, chosen: Any, states: Any, toggles: Any, skip: int, compare_from: int,
) -> tuple[int, int]:  # fmt: skip
    """Run all cycles; return the first (cycle, output) that differs, or (-1, -1)."""
    taken = np.zeros(len(q), np.uint8)
    wrong = (-1, -1)
    at = 0
    _settle(values, pins, offsets, tables, outs, toggles, False)
    for t in range(len(in_bits)):
        for i in range(len(q)):
            is_open = values[enable[i]] if enable[i] >= 0 else (clock[t - 1] if t else 1)
            taken[i] = values[d[i]] ^ inverted[i] if is_open else values[q[i]]
        for i in range(len(q)):
            if values[q[i]] != taken[i]:
                values[q[i]] = taken[i]
                if t >= skip:
                    toggles[q[i]] += 1
        for i in range(len(in_nets)):
            if values[in_nets[i]] != in_bits[t, i]:
                values[in_nets[i]] = in_bits[t, i]
                if t >= skip:
                    toggles[in_nets[i]] += 1
        _settle(values, pins, offsets, tables, outs, toggles, t >= skip)
        if t >= compare_from and wrong[0] < 0:
            for i in range(len(out_nets)):
                if values[out_nets[i]] != out_bits[t, i]:
                    wrong = (t, i)
                    break
        while at < len(chosen) and chosen[at] == t:
            states[at] = values
            at += 1
    return wrong
