"""What a run would have cost in silicon: cycles of every launch, then energy and money at the chip's clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabless.chip.chip import Chip
    from fabless.fleet.session import Launched, Session
    from fabless.sim.dram import MemoryModel
    from fabless.sim.trace import Counters

_YEAR_S = 365.25 * 24 * 3600


@dataclass(frozen=True, slots=True)
class RunCost:
    """Hold cycles of the run and of its decode steps, mesh utilisation, energy, and US dollars a million tokens of this decode at full use.

    `usd_per_mtok` is of chip, server, building, energy and operations without NRE, one sequence at a time.
    """

    cycles: int
    decode_cycles: int
    decode_tokens: int
    seconds: float
    mesh_ratio: float
    energy_j: float
    decode_tokens_per_s: float
    usd_per_mtok: float
    fidelity: str = "cycle"


def _launch(session: Session, launched: Launched, memory: MemoryModel) -> tuple[int, Counters]:
    """Return cycles of a launch, of the tile of the ring that takes longest, and the events of all tiles."""
    from fabless.sim.cycles import simulate

    trace = simulate(session.compiled.programs[launched.shape], None, session.examples[launched], memory)
    return int(trace.cycles), trace.counters


def run_cost(session: Session, chip: Chip, *, n_chips: int = 1) -> RunCost:
    """Return the cost of everything that a session has run on a ring over `n_chips`; the tiles that it leaves out idle."""
    from fabless.cost.price import FleetDemand, chip_cost, inputs_for, price
    from fabless.silicon.harden import average_power_w, harden
    from fabless.sim.dram import memory_model_of
    from fabless.sim.trace import Counters

    n, tile = session.compiled.n_tiles, session.compiled.tile
    memory = memory_model_of(chip, tile)
    cycles, decode_cycles, tokens, total, decode = 0, 0, 0, Counters(), Counters()
    for launched, count in session.launches.items():
        spent, counters = _launch(session, launched, memory)
        cycles, total = cycles + count * spent, total + counters.scaled(count)
        if launched.shape.rows == 1 and launched.logits:
            tokens, decode_cycles, decode = tokens + count, decode_cycles + count * spent, decode + counters.scaled(count)
    counted, counted_cycles = (decode, decode_cycles) if tokens else (total, cycles)
    silicon = harden(chip)
    seconds, decode_s = cycles / chip.clock_hz, counted_cycles / chip.clock_hz
    power_w = average_power_w(silicon, counted.scaled(1 / n_chips), decode_s).mid
    rate = max(1, tokens) / decode_s
    fleet = FleetDemand(
        n_chips=n_chips, average_w=power_w, provisioned_w=silicon.tdp_w, prefill_tokens_per_year=0.0, decode_tokens_per_year=rate * _YEAR_S,
        prefill_time_ratio=0.0,
    )  # fmt: skip
    inputs = inputs_for(chip)
    bill = price(fleet, chip_cost(silicon, chip, inputs), inputs)
    yearly = sum(line.usd_per_year.mid for line in bill.lines if line.group != "nre")
    energy_j = average_power_w(silicon, total.scaled(1 / n_chips), seconds).mid * seconds * n_chips
    return RunCost(
        cycles, decode_cycles, tokens, seconds, total.total_macs / (cycles * tile.rows * 32 * n), energy_j, rate,
        yearly / fleet.tokens_per_year * 1e6,
    )  # fmt: skip
