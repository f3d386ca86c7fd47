"""What a chip is in silicon: blocks with area and leakage, energy per event, power."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.core.ranges import Range

if TYPE_CHECKING:
    from fabless.sim.trace import Counters


@dataclass(frozen=True, slots=True)
class Block:
    """Describe one kind of block on the die: `area_mm2` and `leakage_w` are for all `count` copies."""

    name: str
    count: int
    area_mm2: float
    leakage_w: float
    kind: str  # matrix | vector | sram | noc | dram_phy | link_phy | control | other
    basis: str = ""  # how the area was derived, in a few words with the row ids used


@dataclass(frozen=True, slots=True)
class EnergyTable:
    """Hold joules per event: per multiply-accumulate by element format, per vector operation, per byte at each level."""

    mac_j: tuple[tuple[str, Range], ...]
    vector_op_j: Range
    dram_byte_j: Range
    shared_byte_j: Range
    scratchpad_byte_j: Range
    link_byte_j: Range

    def dynamic_j(self, counters: Counters) -> Range:
        """Return the dynamic energy of counted events."""
        mac = dict(self.mac_j)
        total = Range.exact(0.0)
        for name, n in counters.macs:
            total = total + mac[name] * n
        return (
            total
            + self.vector_op_j * counters.vector_ops
            + self.dram_byte_j * counters.dram_bytes
            + self.shared_byte_j * counters.shared_bytes
            + self.scratchpad_byte_j * counters.scratchpad_bytes
            + self.link_byte_j * counters.link_bytes
        )


@dataclass(frozen=True, slots=True)
class Silicon:
    """Hold the hardened chip: area by block, die size, power by part and energy per event.

    `die_area_mm2` is one die of `n_dies`; `area_error_ratio` the half-width of its band. `peak_w` is everything switching at once,
    `tdp_w` what the package must be cooled for, `leakage_w` at operating temperature, `idle_w` leakage plus clock and interfaces.
    """

    chip_name: str
    process: str
    clock_hz: float
    blocks: tuple[Block, ...]
    die_area_mm2: float
    die_width_mm: float
    die_height_mm: float
    n_dies: int
    area_error_ratio: float
    leakage_w: float
    idle_w: float
    peak_w: float
    tdp_w: float
    energy: EnergyTable
    notes: tuple[str, ...] = ()
