"""Energy of a tile's blocks on a recorded launch: the mapped gates run through all of its cycles, and 64 stretches of it again with delays.

The run without delays says how often every net toggles, settled, over the whole launch; the stretches, begun in the state that the run had there,
say by how much glitches add. In both every output that comes out is held against what the RTL put out in that cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import FablessError
from fabless.program.isa import BY_MNEMONIC, LATENCY, OPCODE_BITS, REDUCE
from fabless.rtl.synthesis.power import activity_rates, cycle_energy
from fabless.rtl.synthesis.recording import RESET_CYCLES, Ports, Recording
from fabless.rtl.synthesis.settled import settled_run
from fabless.rtl.synthesis.simulation import Simulator, words

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fabless.rtl.synthesis.blocks import Subject
    from fabless.rtl.synthesis.netlist import Netlist
    from fabless.rtl.synthesis.synthesise import Synthesis

#: Stretches that are simulated side by side with delays, and cycles of each that count.
STREAMS, STRETCH = 64, 16
#: See bench/harness.cpp.
HOST_RESET_CYCLES = 4
#: More than any pipeline behind one gate is long.
_PIPELINE_CYCLES = 32
#: Ports of the tile by which operations are counted, as paths below the top.
COUNTED = (
    "queue_vpu.go", "queue_vpu.head", "vector.a_read", "vector.c_read", "vector.reducer.valid", "vector.reducer.kind", "vector.reducer.present",
    "vector.quantiser.valid", "vector.quantiser.emits", "sequencer.advance", "semaphores.give", "load.answer_valid", "store.write_valid",
    "store.write_ready", "store.strobe", "mxu.activation_read",
)  # fmt: skip
_COUNTS = "counted"


@dataclass(frozen=True, slots=True)
class LaunchEnergy:
    """Hold the energy of one block in one launch: joules of data an operation with and without glitches, of its clock a cycle, and what was seen."""

    operation_j: float | None
    settled_j: float | None
    clock_j: float
    n_operations: int
    busy_ratio: float
    glitch_ratio: float
    toggles_per_net: float
    n_results: int


def place_of(subject: Subject) -> str:
    """Return the path of the instance that is recorded: the first, but of adders one of the sum's, of multipliers one of a quantised lane's."""
    return next((p for p in subject.places if p.endswith((".tree0_0", "quantiser.multiplier0"))), subject.places[0])


def recorded_ports(subject: Subject, netlist: Netlist) -> list[tuple[str, int]]:
    """Return (path, bits) of the ports of a block in its place."""
    place = place_of(subject)
    ports = [*netlist.data(netlist.inputs).items(), *netlist.data(netlist.outputs).items()]
    gate = [] if subject.gate is None else [(subject.gate, 1)]
    return [*((f"{place}.{name}".lstrip("."), len(nets)) for name, nets in ports), *gate]


def counted_ports(widths: dict[str, int]) -> dict[str, list[tuple[str, int]]]:
    """Return what is recorded to count operations, of the ports that the tile has: `widths` by path."""
    return {_COUNTS: [(path, widths[path]) for path in COUNTED if path in widths]}


def launch_energy(synthesis: Synthesis, subject: Subject, recording: Recording, seed: int = 0) -> LaunchEnergy:
    """Return the energy of a block on a recorded launch. Raises `FablessError` where the gates differ from the RTL."""
    netlist, ports = synthesis.netlist, recording.blocks[subject.name]
    done = operations(subject, recording)
    nets, bits = _driven(netlist, ports, place_of(subject))
    expected = _expected(netlist, ports, place_of(subject))
    rng = np.random.default_rng(seed)
    candidates = np.flatnonzero(done[1:-STRETCH] > 0) + 1
    if not len(candidates):
        candidates = np.arange(1, len(done) - STRETCH)
    begins = np.sort(rng.choice(candidates, STREAMS)) + RESET_CYCLES
    opened = None
    if subject.gate is not None:
        # a gate is open in the host's four cycles of reset, then closed until there is work
        opened = np.concatenate([np.arange(RESET_CYCLES) < HOST_RESET_CYCLES, ports.bits(subject.gate)[:, 0]]).astype(np.uint8)
    run = settled_run(netlist, (nets, bits), expected, begins - 1, skip=RESET_CYCLES, open_bits=opened, compare_from=_flushed(opened))
    if run.wrong is not None:
        raise FablessError(_differs(synthesis, run.wrong, netlist))
    cycle = cycle_energy(netlist, synthesis.timing, [float(t) / run.n_cycles for t in run.toggles])
    glitches = _glitches(synthesis, run.states, (nets, bits), begins, opened)
    data_j = (cycle.switching_j + cycle.internal_j) * run.n_cycles
    n = int(done.sum())
    settled = data_j / n + cycle.clock_j / subject.per_cycle if n else None
    noisy = data_j * glitches / n + cycle.clock_j / subject.per_cycle if n else None
    return LaunchEnergy(
        noisy, settled, cycle.clock_j, n, n / (subject.per_cycle * run.n_cycles), glitches, float(run.toggles.sum() / run.n_cycles / netlist.n_nets),
        (len(bits) - max(RESET_CYCLES, _flushed(opened))) * len(expected[0]),
    )  # fmt: skip


def _flushed(opened: NDArray[np.uint8] | None) -> int:
    """Return the cycle from which a gated pipeline holds no value of power-up any more, which a table's output register does not define."""
    return 0 if opened is None else int(np.searchsorted(np.cumsum(opened), HOST_RESET_CYCLES + _PIPELINE_CYCLES))


def _differs(synthesis: Synthesis, wrong: tuple[int, int], netlist: Netlist) -> str:
    bits = [f"{name}[{i}]" for name, nets in netlist.data(netlist.outputs).items() for i in range(len(nets))]
    return (
        f"{synthesis.block} for {synthesis.kit}: gates and RTL differ in cycle {wrong[0] - RESET_CYCLES} at {bits[wrong[1]]}; "
        "the netlist is wrong: report it with the Yosys version"
    )


def _driven(netlist: Netlist, ports: Ports, place: str) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
    """Return the nets that are driven from outside and their bits `[cycles, nets]`, cycles of reset first."""
    nets: list[int] = []
    columns = []
    for name, own in netlist.data(netlist.inputs).items():
        nets += own
        columns.append(ports.bits(f"{place}.{name}".lstrip(".")))
    reset = netlist.resets
    columns.append(np.zeros((len(ports.packed), len(reset)), np.uint8))
    bits = np.concatenate(columns, axis=1)
    before = np.repeat(bits[:1], RESET_CYCLES, axis=0)  # what stands still while the host writes the program has run through every pipeline
    before[:, bits.shape[1] - len(reset) :] = 1
    return np.array([*nets, *reset], np.intp), np.concatenate([before, bits])


def _expected(netlist: Netlist, ports: Ports, place: str) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
    """Return the nets of all outputs and the bits that the RTL shows there."""
    nets: list[int] = []
    columns = [np.zeros((len(ports.packed), 0), np.uint8)]
    for name, own in netlist.data(netlist.outputs).items():
        nets += own
        columns.append(ports.bits(f"{place}.{name}".lstrip(".")))
    bits = np.concatenate(columns, axis=1)
    return np.array(nets, np.intp), np.concatenate([np.zeros((RESET_CYCLES, bits.shape[1]), np.uint8), bits])


def _glitches(
    synthesis: Synthesis,
    states: NDArray[np.uint8],
    driven: tuple[NDArray[np.intp], NDArray[np.uint8]],
    begins: NDArray[np.int64],
    opened: NDArray[np.uint8] | None,
) -> float:
    """Return data energy with glitches over that of settled values, on stretches that begin in cycles `begins` from `states` before them."""
    simulator = Simulator(synthesis.netlist, STREAMS // 64, synthesis.timing)
    simulator.resume(words(states.astype(bool)))
    for step in range(STRETCH):
        is_open = None if opened is None else words(opened[begins + step - 1][:, None].astype(bool))[0]
        simulator.drive(driven[0], words(driven[1][begins + step].astype(bool)), is_open)
    activity = simulator.activity()
    noisy, settled = (
        cycle_energy(synthesis.netlist, synthesis.timing, activity_rates(activity, glitches=glitches)) for glitches in (True, False)
    )
    base = settled.switching_j + settled.internal_j
    return (noisy.switching_j + noisy.internal_j) / base if base > 0.0 else 1.0


def operations(subject: Subject, recording: Recording) -> NDArray[np.int64]:
    """Return the operations of the recorded instance by cycle."""
    seen = recording.blocks[_COUNTS]
    count = _OPERATIONS.get(subject.name)
    if subject.name.startswith("queue_"):
        return recording.blocks[subject.name].is_set(f"{subject.name}.popped").astype(np.int64)
    if count is None:
        return np.ones(len(seen.packed), np.int64)
    done: NDArray[np.int64] = np.asarray(count(seen, subject), np.int64)
    return done


def _groups(seen: Ports) -> NDArray[np.bool_]:
    """Return whether a group of elements enters the vector unit."""
    return seen.is_set("vector.a_read") | seen.is_set("vector.c_read")


def _with_function(seen: Ports) -> NDArray[np.bool_]:
    """Return whether the group that enters has a function applied to it: known from the instruction that was taken last."""
    head, go = seen.bits("queue_vpu.head"), seen.is_set("queue_vpu.go")
    applies, now = np.zeros(len(go), bool), False
    opcode = (head[:, :OPCODE_BITS].astype(np.int64) << np.arange(OPCODE_BITS)).sum(axis=1)
    field = BY_MNEMONIC["vec"].by_name["fn"]
    fn = head[:, field.lsb : field.lsb + field.bits].max(axis=1)
    streams = np.isin(opcode, [BY_MNEMONIC[n].code for n in ("vec", "quant")])
    for t in range(len(go)):
        applies[t] = now
        if go[t]:
            now = bool(streams[t] and fn[t])
    return _groups(seen) & applies


def _ones(seen: Ports, port: str) -> NDArray[np.int64]:
    ones: NDArray[np.int64] = seen.bits(port).sum(axis=1, dtype=np.int64)
    return ones


def _is_sum(seen: Ports) -> NDArray[np.bool_]:
    kind: NDArray[np.bool_] = (seen.bits("vector.reducer.kind") << np.arange(2, dtype=np.uint8)).sum(axis=1) == REDUCE.index("sum")
    return kind & seen.is_set("vector.reducer.valid")


_OPERATIONS: dict[str, Callable[[Ports, Subject], NDArray[np.int64] | NDArray[np.bool_]]] = {
    "lane": lambda seen, s: _groups(seen),
    "vector": lambda seen, s: _groups(seen) * np.int64(s.per_cycle),
    "function": lambda seen, s: _with_function(seen) * np.int64(LATENCY["FUNCTION_CYCLES"]),
    "add": lambda seen, s: _is_sum(seen),
    "multiply": lambda seen, s: seen.is_set("vector.quantiser.valid") & seen.is_set("vector.quantiser.emits"),
    "reduce": lambda seen, s: _ones(seen, "vector.reducer.present") * seen.is_set("vector.reducer.valid"),
    "quantise": lambda seen, s: seen.is_set("vector.quantiser.valid") * np.int64(s.per_cycle),
    "sequencer": lambda seen, s: seen.is_set("sequencer.advance"),
    "semaphores": lambda seen, s: _ones(seen, "semaphores.give"),
    "load": lambda seen, s: seen.is_set("load.answer_valid") * np.int64(s.per_cycle),
    "store": lambda seen, s: _ones(seen, "store.strobe") * (seen.is_set("store.write_valid") & seen.is_set("store.write_ready")),
    "mxu": lambda seen, s: seen.is_set("mxu.activation_read"),
}
