"""From the description of a chip to silicon: area by block, die, power and energy per event."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil, sqrt
from typing import TYPE_CHECKING

from fabless.chip.chip import Chip, Mxu, TensorCore, matrix_rates
from fabless.core.errors import InfeasibleError
from fabless.core.sources import table
from fabless.core.units import si
from fabless.silicon.area import BlockAreas, block_areas, matrix_area_mm2, sram_area_mm2
from fabless.silicon.energy import EventEnergies, event_energies, idle_memory_w, mac_j, sram_byte_j
from fabless.silicon.process import Process, process_named
from fabless.silicon.silicon import Block, EnergyTable, Silicon

if TYPE_CHECKING:
    from fabless.core.ranges import Range
    from fabless.sim.trace import Counters

#: Multiply-accumulates a cycle of the core whose control the `core_control` row describes: TPU v1.
_CONTROL_MACS = 256 * 256


def harden(chip: Chip) -> Silicon:
    """Return the silicon of a chip: blocks with area and leakage, die, power, energy per event.

    Area and power are derived from the description alone (a published `chip.die_area_mm2` only says that the die exists); `tdp_w` is the published figure where
    there is one. Raises `InfeasibleError` for a die beyond the reticle or a clock beyond the process, naming the smallest change.

    Limits: one process for all dies of a package; IO dies below stacked compute dies are not described; blocks that no description names
    (video, graphics) are in `gpu_control` and the top level. Sources: `data/process.toml`, `process_blocks.toml`, `energy.toml`.
    """
    process = process_named(chip.process)
    check_clock(chip, process)
    areas = block_areas(process.name)
    placed = _blocks(chip, areas)
    named_mm2 = sum(mm2 for _, _, mm2, _, _ in placed)
    total_mm2 = named_mm2 / (1.0 - areas.top_level_ratio)
    placed.append(("top level", 1, total_mm2 - named_mm2, "other", "top_level_ratio of the die"))
    die_mm2 = total_mm2 / chip.n_dies
    width_mm, height_mm = _die_size(chip, die_mm2, placed, areas)
    leakage = process.leakage_w_per_mm2
    fixed = _fixed()
    leakage_w = total_mm2 * leakage
    idle_w = leakage_w + total_mm2 * fixed.idle_clock_w_per_mm2_hz * chip.clock_hz * process.energy_ratio.mid
    idle_w += chip.dram.stacks * _idle_memory_w(chip.dram.standard)
    energy = _energy_table(chip, process, event_energies(process.name, chip.dram.standard), (width_mm + height_mm) / 3.0)
    peak_w = idle_w + _peak_dynamic_w(chip, energy)
    return Silicon(
        chip_name=chip.name,
        process=process.name,
        clock_hz=chip.clock_hz,
        blocks=tuple(Block(name, count, mm2, mm2 * leakage, kind, basis) for name, count, mm2, kind, basis in placed),
        die_area_mm2=die_mm2,
        die_width_mm=width_mm,
        die_height_mm=height_mm,
        n_dies=chip.n_dies,
        area_error_ratio=fixed.area_error_ratio,
        leakage_w=leakage_w,
        idle_w=idle_w,
        peak_w=peak_w,
        tdp_w=chip.tdp_w if chip.tdp_w is not None else max(idle_w, peak_w * fixed.tdp_ratio),
        energy=energy,
        notes=_notes(chip, die_mm2),
    )


def _notes(chip: Chip, die_mm2: float) -> tuple[str, ...]:
    area = "areas are from pre-layout cell areas times a global layout ratio, not from a layout"
    tdp = "tdp_w is the published figure" if chip.tdp_w is not None else "tdp_w is estimated from peak power"
    if die_mm2 <= _fixed().reticle_width_mm * _fixed().reticle_height_mm:
        return area, tdp
    return area, tdp, f"the derived die of {die_mm2:,.0f} mm2 is beyond the reticle that the real one was made with: the derivation is high"


def average_power_w(silicon: Silicon, counters: Counters, seconds: float) -> Range:
    """Return mean power over `seconds` in which the events of `counters` happened: idle power plus dynamic energy over time."""
    return silicon.energy.dynamic_j(counters) * (1.0 / seconds) + silicon.idle_w


def check_clock(chip: Chip, process: Process) -> None:
    """Raise `InfeasibleError` when a chip's clock is beyond what its process has ever run at."""
    style = "gpu" if isinstance(chip.core.matrix, TensorCore) else "asic"
    sold_hz, limit_hz = next((mid, high) for name, mid, high in process.clocks_hz if name == style)
    if chip.clock_hz > limit_hz:
        raise InfeasibleError(
            f"chip '{chip.name}': clock_hz is {si(chip.clock_hz, 'Hz')}, but nothing on {process.name} runs above {si(limit_hz, 'Hz')}; "
            f"lower it to {si(sold_hz, 'Hz')}, the highest clock sold"
        )


@dataclass(frozen=True, slots=True)
class _Fixed:
    """Hold the rows that depend neither on chip nor process."""

    idle_clock_w_per_mm2_hz: float
    tdp_ratio: float
    area_error_ratio: float
    reticle_width_mm: float
    reticle_height_mm: float


@cache
def _fixed() -> _Fixed:
    blocks, energy = table("process_blocks"), table("energy")
    return _Fixed(
        idle_clock_w_per_mm2_hz=energy.fact("idle_clock").known * 1e-9,
        tdp_ratio=energy.fact("tdp_ratio").known,
        area_error_ratio=blocks.fact("area_error_ratio").known,
        reticle_width_mm=blocks.fact("reticle_width").known,
        reticle_height_mm=blocks.fact("reticle_height").known,
    )


_idle_memory_w = cache(idle_memory_w)

_Placed = tuple[str, int, float, str, str]  # name, count, area of all in mm2, kind, basis


def _blocks(chip: Chip, a: BlockAreas) -> list[_Placed]:
    core, n_cores = chip.core, chip.n_cores + chip.spare_cores
    own = isinstance(core.matrix, Mxu)
    n_matrix = n_cores * core.n_matrix
    placed: list[_Placed] = [
        (
            "matrix units",
            n_matrix,
            n_matrix * matrix_area_mm2(core.matrix, chip.process),
            "matrix",
            _MATRIX_BASIS[type(core.matrix).__name__],
        ),
        (
            "vector lanes",
            n_cores,
            n_cores * core.vector_lanes * (a.own_vector_lane if own else a.vector_lane),
            "vector",
            "asap7_vector_lane_um2 x layout_ratio, by logic density" if own else "fp32 multiply-add (Horowitz) x lane_ratio x layout_ratio",
        ),
        ("registers", n_cores, n_cores * _register_bytes(chip, a) * a.register_byte, "sram", "bytes x sram density x register_file_ratio"),
        (
            "scratchpads",
            n_cores,
            n_cores * sram_area_mm2(core.scratchpad, a),
            "sram",
            "bit cell / sram_efficiency, more by sram_port_cycles",
        ),
        (
            "control",
            n_cores,
            n_cores * _control_mm2(chip, a),
            "control",
            _OWN_CONTROL if own else "gpu_control, cu_control or core_control by logic density",
        ),
    ]
    if core.accumulator is not None:
        placed.append(("accumulators", n_cores, n_cores * sram_area_mm2(core.accumulator, a), "sram", "as scratchpads"))
    # sites without a stack keep their interface and their slice of the shared memory: both are on the die
    sites = chip.dram.stacks + chip.spare_dram_sites
    if chip.shared is not None:
        slices = sites / chip.dram.stacks if chip.dram.stacks else 1.0
        mm2 = sram_area_mm2(chip.shared, a) * slices * (a.cache_ratio if isinstance(core.matrix, TensorCore) else 1.0)
        placed.append(("shared memory", 1, mm2, "sram", "bit cell / sram_efficiency; x cache_ratio where it is a GPU's cache"))
    off_chip_bytes_per_s = chip.dram.bandwidth_bytes_per_s + chip.link.bandwidth_bytes_per_s
    noc_bytes = max(chip.shared.bytes_per_cycle if chip.shared else 0.0, off_chip_bytes_per_s / chip.clock_hz)
    placed.append(("network on chip", 1, noc_bytes * a.noc_byte_per_cycle, "noc", "bytes per cycle x noc"))
    if sites:
        placed.append(("memory interfaces", sites, sites * _site_mm2(chip.dram.standard, a), "dram_phy", "PHY and controller per site"))
    if chip.link.bandwidth_bytes_per_s > 0:
        mm2 = chip.link.bandwidth_bytes_per_s * a.link_byte_per_s
        placed.append(("links", max(1, chip.link.ports), mm2, "link_phy", "one-way bytes per second x (link_phy + link_controller)"))
    placed.append(("host interface", 1, a.host_interface, "link_phy", "host_interface"))
    if chip.n_dies > 1:
        mm2 = chip.n_dies * chip.dram.bandwidth_bytes_per_s * a.die_to_die_byte_per_s
        placed.append(("die to die", chip.n_dies, mm2, "link_phy", "memory bandwidth over the UCIe advanced density, on each die"))
    return placed


_MATRIX_BASIS = {
    "Mxu": "(asap7_dot_um2 x format ratio + asap7_accumulate_um2) x layout_ratio, by logic density",
    "TensorCore": "row_int8 x format ratio x accumulator_ratio x layout_ratio, by logic density",
    "Mesh": "processing element (mesh_int8, Horowitz areas) x layout_ratio, by logic density",
}


_OWN_CONTROL = "(asap7_control_um2 + rows x asap7_transfer_um2) x layout_ratio, by logic density"


def _register_bytes(chip: Chip, a: BlockAreas) -> float:
    if isinstance(chip.core.matrix, Mxu):
        return 0.0  # lanes read and write the scratchpad; their operand registers are part of the netlist
    if isinstance(chip.core.matrix, TensorCore):
        if chip.family.startswith("nvidia"):
            return a.nvidia_register_bytes
        if chip.family.startswith("amd"):
            return a.amd_register_bytes
    return chip.core.vector_lanes * a.lane_register_bytes


def _control_mm2(chip: Chip, a: BlockAreas) -> float:
    if isinstance(chip.core.matrix, TensorCore):
        if chip.family.startswith("nvidia"):
            return a.gpu_control
        if chip.family.startswith("amd"):
            return a.cu_control
    if isinstance(chip.core.matrix, Mxu):
        return a.own_control + chip.core.n_matrix * chip.core.matrix.rows * a.own_transfer
    macs = chip.core.n_matrix * max(n for _, n in matrix_rates(chip.core.matrix))
    return a.core_control * min(1.0, max(a.small_core_ratio, macs / _CONTROL_MACS))


@cache
def _hbm_width_ratio(standard: str) -> float:
    return table("memory_standards").fact(f"{standard}_width_bits").known / 1024.0


def _site_mm2(standard: str, a: BlockAreas) -> float:
    if standard.startswith("hbm"):
        return a.hbm_1024_bits * _hbm_width_ratio(standard)
    if standard.startswith("gddr"):
        return a.gddr_device
    return a.lpddr_package if standard.startswith("lpddr") else a.ddr_channel


def _die_size(chip: Chip, die_mm2: float, placed: list[_Placed], areas: BlockAreas) -> tuple[float, float]:
    """Return width and height: square while that fits the reticle's short side, then as tall as needed."""
    fixed = _fixed()
    side = sqrt(die_mm2)
    if side <= fixed.reticle_width_mm:
        return side, side
    height = die_mm2 / fixed.reticle_width_mm
    if height <= fixed.reticle_height_mm:
        return fixed.reticle_width_mm, height
    limit = fixed.reticle_width_mm * fixed.reticle_height_mm
    if chip.die_area_mm2 is not None or (chip.vendor and die_mm2 <= limit * (1.0 + fixed.area_error_ratio)):
        # a die that exists fits its reticle: the derivation is off, not the die
        return fixed.reticle_width_mm, fixed.reticle_height_mm
    in_cores = sum(mm2 for name, _, mm2, _, _ in placed if name in _CORE_BLOCKS) / (1.0 - areas.top_level_ratio)
    n_cores = chip.n_cores + chip.spare_cores
    too_many = ceil((die_mm2 - limit) * chip.n_dies / (in_cores / n_cores))
    fewer = f"lower n_cores from {chip.n_cores} to {chip.n_cores - too_many}, or " if too_many < chip.n_cores else ""
    raise InfeasibleError(
        f"chip '{chip.name}': a die of {die_mm2:,.0f} mm2 exceeds the reticle of {fixed.reticle_width_mm:g} x {fixed.reticle_height_mm:g} mm "
        f"({limit:,.0f} mm2); {fewer}raise n_dies from {chip.n_dies} to {ceil(die_mm2 * chip.n_dies / limit)}"
    )


_CORE_BLOCKS = ("matrix units", "vector lanes", "registers", "scratchpads", "control", "accumulators")


@cache
def _macs_j(formats: tuple[str, ...], process: str, is_row: bool) -> tuple[tuple[str, Range], ...]:
    return tuple((name, mac_j(name, process, "row" if is_row else "array")) for name in formats)


def _energy_table(chip: Chip, process: Process, events: EventEnergies, mean_distance_mm: float) -> EnergyTable:
    """Return joules per event; `mean_distance_mm` is the mean Manhattan distance of two points of the die, (width + height) / 3."""
    scratchpad, shared = chip.core.scratchpad, chip.shared
    far = events.wire_byte_mm_j * mean_distance_mm
    return EnergyTable(
        mac_j=_macs_j(tuple(name for name, _ in matrix_rates(chip.core.matrix)), process.name, isinstance(chip.core.matrix, Mxu)),
        vector_op_j=events.vector_op_j,
        dram_byte_j=events.dram_byte_j + far,
        shared_byte_j=sram_byte_j(shared.capacity_bytes / shared.banks, process.name) + far if shared else far,
        scratchpad_byte_j=sram_byte_j(scratchpad.capacity_bytes / scratchpad.banks, process.name),
        link_byte_j=events.link_byte_j + far,
    )


def _peak_dynamic_w(chip: Chip, energy: EnergyTable) -> float:
    """Return dynamic power with every unit, memory port and link busy at once, in the format that costs most."""
    per_cycle_j = energy.mac_j
    macs = dict(matrix_rates(chip.core.matrix))
    matrix_j = chip.core.n_matrix * max(macs[name] * joules.mid for name, joules in per_cycle_j)
    vector_j = chip.core.vector_lanes * energy.vector_op_j.mid
    scratchpad_j = chip.core.scratchpad.bytes_per_cycle * energy.scratchpad_byte_j.mid
    shared_j = chip.shared.bytes_per_cycle * energy.shared_byte_j.mid if chip.shared else 0.0
    on_chip_w = (chip.n_cores * (matrix_j + vector_j + scratchpad_j) + shared_j) * chip.clock_hz
    off_chip_w = chip.dram.bandwidth_bytes_per_s * energy.dram_byte_j.mid + chip.link.bandwidth_bytes_per_s * energy.link_byte_j.mid
    return on_chip_w + off_chip_w
