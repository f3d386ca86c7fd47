"""What a run would have cost in silicon: cycles of every launch, then energy and money at the chip's clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from fabless.compiler.expect import NOTHING, Expected, expect

if TYPE_CHECKING:
    from fabless.chip.chip import Chip
    from fabless.fleet.session import Launched, Session
    from fabless.program.tile import Tile
    from fabless.sim.dram import MemoryModel

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


def memory_model(chip: Chip, tile: Tile) -> MemoryModel:
    """Return how a chip's DRAM answers one tile: its latency, and the share of the port's beats that the tile's share of bandwidth fills."""
    from fabless.sim.dram import MemoryModel

    share = chip.dram.bandwidth_bytes_per_s / chip.clock_hz / chip.n_cores / tile.memory_bytes_per_cycle
    rate = Fraction(min(1.0, share)).limit_denominator(1000) if chip.dram.standard != "none" else Fraction(1)
    latency = min(4000, max(1, round(chip.dram.latency_s * chip.clock_hz)))
    return MemoryModel(latency_cycles=latency, beats=max(1, rate.numerator), cycles=max(1, rate.denominator))


def _launch(session: Session, launched: Launched, memory: MemoryModel) -> Expected:
    """Return cycles of a launch and the events of all tiles: stages of a pipeline one after the other, else all tiles alike and at once."""
    from fabless.sim.cycles import time

    compiled, parameters = session.compiled, session.examples[launched]
    programs = compiled.programs[launched.shape]
    if compiled.layouts[0].part.partition != "pipeline":
        one = replace(expect(programs[0], parameters), cycles=time(programs[0], None, parameters, memory).cycles)
        rest = replace(one, cycles=0)
        return sum((rest for _ in programs[1:]), one)
    stages = (replace(expect(p, parameters), cycles=time(p, None, parameters, memory).cycles) for p in programs)
    return sum(stages, NOTHING)


def run_cost(session: Session, chip: Chip, *, n_chips: int = 1) -> RunCost:
    """Return the cost of everything that a session has run on a ring over `n_chips`; the tiles that it leaves out idle."""
    from fabless.cost.price import FleetDemand, chip_cost, inputs_for, price
    from fabless.silicon.harden import average_power_w, harden
    from fabless.sim.trace import Counters

    total, decode, tokens = NOTHING, NOTHING, 0
    memory = memory_model(chip, session.compiled.tile)
    for launched, count in session.launches.items():
        one = _launch(session, launched, memory)
        for _ in range(count):
            total = total + one
        if launched.shape.rows == 1 and launched.logits:
            tokens += count
            for _ in range(count):
                decode = decode + one
    counted = decode if tokens else total
    n, tile = session.compiled.n_tiles, session.compiled.tile
    silicon = harden(chip)

    def counters(e: Expected) -> Counters:
        """Return one chip's share of the events."""
        macs, *rest = (x / n_chips for x in (e.macs, e.vector_ops, e.dram_bytes, e.scratchpad_bytes, e.link_bytes))
        return Counters((("int8", macs),), rest[0], rest[1], 0.0, rest[2], rest[3])

    seconds, decode_s = total.cycles / chip.clock_hz, counted.cycles / chip.clock_hz
    power_w = average_power_w(silicon, counters(counted), decode_s).mid
    rate = max(1, tokens) / decode_s
    fleet = FleetDemand(
        n_chips=n_chips, average_w=power_w, provisioned_w=silicon.tdp_w, prefill_tokens_per_year=0.0, decode_tokens_per_year=rate * _YEAR_S,
        prefill_time_ratio=0.0,
    )  # fmt: skip
    inputs = inputs_for(chip)
    bill = price(fleet, chip_cost(silicon, chip, inputs), inputs)
    yearly = sum(line.usd_per_year.mid for line in bill.lines if line.group != "nre")
    return RunCost(
        total.cycles, decode.cycles, tokens, seconds, total.macs / (total.cycles * tile.rows * 32 * n),
        average_power_w(silicon, counters(total), seconds).mid * seconds * n_chips, rate, yearly / fleet.tokens_per_year * 1e6,
    )  # fmt: skip
