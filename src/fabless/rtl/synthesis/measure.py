"""Figures of a synthesised block: area, clock, and the energy of an operation on real operands, checked against the arithmetic that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import FablessError
from fabless.rtl.synthesis.operands import SOURCE, Operands, row_operands
from fabless.rtl.synthesis.power import Energy, activity_rates, cycle_energy
from fabless.rtl.synthesis.simulation import Simulator, integers, number_bits, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from fabless.rtl.synthesis.synthesise import Synthesis

    Ports = dict[str, NDArray[np.uint64]]
    #: Ports of a cycle, the output to look at after it, and what should stand there (None: nothing yet).
    Driven = Iterator[tuple[Ports, str, NDArray[np.int64] | None]]

#: Streams that are simulated side by side, and cycles of each.
STREAMS, STEPS = 64, 48


@dataclass(frozen=True, slots=True)
class Activity:
    """Hold the energy of one cycle, with glitches by inertial delays and without any, and what was checked on the way."""

    cycle: Energy
    settled: Energy
    toggles_per_net: float
    glitch_ratio: float
    n_results: int
    source: str


def activity_energy(synthesis: Synthesis, *, n_steps: int = STEPS, seed: int = 0) -> Activity | None:
    """Return the energy of a row's part on real operands; None for a block whose operands are not recorded.

    Every result of the gates is held against the sums that it should be. Raises `FablessError` for the first that differs.
    """
    drive = _DRIVES.get(synthesis.block)
    if drive is None:
        return None
    simulator = Simulator(synthesis.netlist, STREAMS // 64, synthesis.timing)
    n_results = 0
    for ports, output, expected in drive(row_operands(STREAMS, n_steps, seed)):
        simulator.step(ports)
        if expected is not None:
            got = integers(simulator.output(output))
            if not np.array_equal(got, expected):
                wrong = int(np.flatnonzero(got != expected)[0])
                raise FablessError(
                    f"{synthesis.block} for {synthesis.kit}: gates give {got[wrong]:#x} where the arithmetic gives {expected[wrong]:#x} (stream {wrong}); "
                    "the netlist is wrong: report it with the Yosys version"
                )
            n_results += len(got)
    activity = simulator.activity()
    rates = activity_rates(activity, glitches=True)
    return Activity(
        cycle_energy(synthesis.netlist, synthesis.timing, rates),
        cycle_energy(synthesis.netlist, synthesis.timing, activity_rates(activity, glitches=False)),
        sum(rates) / len(rates), activity.glitch_ratio, n_results, SOURCE,
    )  # fmt: skip


def _drive_dot(o: Operands) -> Driven:
    """Yield ports of each cycle, and the sum that stands at `y` after it: that of four cycles before."""
    for t in range(len(o.isum)):
        ports = {"w": _words(o.weights[t], 8), "a": _words(o.activations[t], 8)}
        yield ports, "y", o.isum[t - 4] & (1 << 21) - 1 if t >= 4 else None


def _drive_accumulate(o: Operands) -> Driven:
    """Yield ports of each cycle: scales of step t, the sum of step t - 3, the accumulator of step t - 7, whose result stands two cycles later."""
    weight_scales = (o.weight_scales.view(np.uint32) >> 13).astype(np.int64)
    activation_scales = (o.activation_scales.view(np.uint32) >> 16).astype(np.int64)
    before, after = (x.view(np.uint32).astype(np.int64) for x in (o.before, o.after))
    n = len(o.isum)
    nothing = words(np.zeros((o.isum.shape[1], 1), bool))
    for t in range(n):
        ports = {
            "weight_scale": _words(weight_scales[t], 19), "activation_scale": _words(activation_scales[t], 16), "unit": nothing, "clear": nothing,
            "isum": _words(o.isum[max(0, t - _SUM)], 21), "acc": _words(before[max(0, t - _ACC)], 32),
        }  # fmt: skip
        yield ports, "y", after[t - _RESULT] if t >= _RESULT else None


#: Cycles behind the scales at which the sum, the accumulator and the result of a step stand at the ports.
_SUM, _ACC, _RESULT = 4, 8, 10


def _words(values: NDArray[np.int64] | NDArray[np.int8], width: int) -> NDArray[np.uint64]:
    return words(number_bits(values.astype(np.int64), width))


_DRIVES: dict[str, Callable[[Operands], Driven]] = {"dot": _drive_dot, "accumulate": _drive_accumulate}
