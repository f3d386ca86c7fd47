"""Area of each kind of block by process, from rows of synthesis, published die shares and annotated die photographs.

Pre-layout cell areas become die area by one global `layout_ratio`; bit cells become memory by one global `sram_efficiency`; nothing is set
per chip. Sources are the rows of `data/process_blocks.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from fabless.chip.chip import MatrixUnit, Mesh, Mxu, Sram, TensorCore
from fabless.core.errors import UnsupportedError
from fabless.core.sources import table
from fabless.number.formats import FORMATS, element_of
from fabless.silicon.process import process_named

_UM2 = 1e-6  # mm2 in a square micrometre

#: Element format -> multiplier and adder rows of a systolic processing element.
_ELEMENT = {
    "fp32": ("mul_fp32", "add_fp32"),
    "tf32": ("mul_fp16", "add_fp32"),
    "fp16": ("mul_fp16", "add_fp32"),
    "bf16": ("mul_bf16", "add_fp32"),
    "fp8_e4m3": ("mul_fp8", "add_fp32"),
    "fp8_e5m2": ("mul_fp8", "add_fp32"),
    "fp6_e2m3": ("mul_fp8", "add_fp32"),
    "fp4_e2m1": ("mul_fp4", "add_fp32"),
    "int8": ("mul_int8", "add_int32"),
    "int4": ("mul_int4", "add_int32"),
}


@dataclass(frozen=True, slots=True)
class BlockAreas:
    """Hold areas on the die of one of each block in a process, in mm2."""

    row_mac: tuple[tuple[str, float], ...]  # per multiply-accumulate of a dot-product row with its block accumulator, by element format
    tensor_mac: tuple[tuple[str, float], ...]  # the same of a tensor core: a plain binary32 accumulator, no block scales
    vector_lane: float
    own_vector_lane: float  # of a core of dot-product rows: our own netlist
    own_control: float
    own_transfer: float  # load and store, per row
    sram_byte: float
    sram_port_cycles: float
    cache_ratio: float
    register_byte: float
    nvidia_register_bytes: float
    amd_register_bytes: float
    lane_register_bytes: float
    gpu_control: float
    cu_control: float
    core_control: float
    small_core_ratio: float
    noc_byte_per_cycle: float
    hbm_1024_bits: float
    gddr_device: float
    lpddr_package: float
    ddr_channel: float
    link_byte_per_s: float
    host_interface: float
    die_to_die_byte_per_s: float
    top_level_ratio: float


def _row(id: str) -> float:
    return table("process_blocks").fact(id).known


@cache
def block_areas(process: str) -> BlockAreas:
    """Return block areas in a process."""
    p = process_named(process)
    logic = p.logic_ratio
    placed = _row("layout_ratio") * logic * _UM2
    sram_byte = p.sram_mm2_per_byte / _row("sram_efficiency")
    tensor = _row("row_int8") * _row("accumulator_ratio") * placed
    netlists = table("netlists")
    dot, accumulate = (netlists.fact(f"asap7_{part}_um2").known * placed for part in ("dot", "accumulate"))
    ratios = {f: 1.0 if f == "int8" else _row(f"row_{f}_ratio") for f in _ELEMENT}
    multiply_add = (_row("mul_fp32_45nm") + _row("add_fp32_45nm")) * _row("row_int8") / _row("row_int8_45nm")
    return BlockAreas(
        row_mac=tuple((f, dot * ratio + accumulate) for f, ratio in ratios.items()),
        tensor_mac=tuple((f, tensor * ratio) for f, ratio in ratios.items()),
        vector_lane=multiply_add * _row("lane_ratio") * placed,
        own_vector_lane=netlists.fact("asap7_vector_lane_um2").known * placed,
        own_control=netlists.fact("asap7_control_um2").known * placed,
        own_transfer=netlists.fact("asap7_transfer_um2").known * placed,
        sram_byte=sram_byte,
        sram_port_cycles=_row("sram_port_cycles"),
        cache_ratio=_row("cache_ratio"),
        register_byte=sram_byte * _row("register_file_ratio"),
        nvidia_register_bytes=_row("nvidia_register_bytes"),
        amd_register_bytes=_row("amd_register_bytes"),
        lane_register_bytes=_row("lane_register_bytes"),
        gpu_control=_row("gpu_control") * logic,
        cu_control=_row("cu_control") * logic,
        core_control=_row("core_control") * logic,
        small_core_ratio=_row("small_core_control_ratio"),
        noc_byte_per_cycle=_row("noc") * logic,
        hbm_1024_bits=_row("hbm_phy") * p.phy_ratio + _row("hbm_controller") * logic,
        gddr_device=_row("gddr_phy") * p.phy_ratio,
        lpddr_package=_row("lpddr_phy") * p.phy_ratio,
        ddr_channel=_row("ddr_phy") * p.phy_ratio,
        link_byte_per_s=(_row("link_phy") * p.phy_ratio + _row("link_controller") * logic) * 1e-9,
        host_interface=_row("host_interface") * logic,
        die_to_die_byte_per_s=1.0 / _row("die_to_die"),
        top_level_ratio=_row("top_level_ratio"),
    )


@cache
def matrix_area_mm2(matrix: MatrixUnit, process: str) -> float:
    """Return the area of one matrix unit: what its most demanding format needs, the others share its multipliers.

    Dot-product rows: multiply-accumulates x the row's own netlist on ASAP7, its block accumulator apart (`data/netlists.toml`); the format's ratio is
    that of the dot product. Tensor cores: the prototype row of `data/process_blocks.toml` with a binary32 accumulator.
    Systolic arrays: one processing element per cell.
    Raises `UnsupportedError` for a format without an area row.
    """
    if isinstance(matrix, Mesh):
        return matrix.rows * matrix.columns * max(element_area_mm2(f, rate, process) for f, rate in matrix.rates)
    areas = block_areas(process)
    per_mac = dict(areas.tensor_mac if isinstance(matrix, TensorCore) else areas.row_mac)
    rates = matrix.macs_per_cycle if isinstance(matrix, TensorCore) else _row_rates(matrix)
    for name, _ in rates:
        if name not in per_mac:
            raise UnsupportedError(f"no area is known for multipliers of {name}; known: {', '.join(per_mac)}")
    return max(n * per_mac[name] for name, n in rates)


def _row_rates(matrix: Mxu) -> tuple[tuple[str, float], ...]:
    return tuple((name, matrix.rows * matrix.lanes * rate) for name, rate in matrix.rates)


@cache
def element_area_mm2(format: str, rate: float, process: str) -> float:
    """Return the area of a systolic processing element that does `rate` products of a format a cycle.

    Registers: the measured int8 element less its arithmetic, by bits held (a 32-bit sum; weight twice and activation once per product).
    Further products of a cycle form a dot-product row before the accumulator. Source: Horowitz ISSCC 2014, Jouppi 2021 (four-input adders).
    """
    if format not in _ELEMENT:
        raise UnsupportedError(f"no area is known for multipliers of {format}; known: {', '.join(_ELEMENT)}")
    multiplier, adder = _ELEMENT[format]
    registers = _row("mesh_int8_45nm") - _row("mul_int8_45nm") - _row("add_int32_45nm")
    first = min(1.0, rate)
    held_bits = 32.0 + 3.0 * first * element_of(FORMATS[format]).bits_per_value
    int8_bits = 32.0 + 3.0 * 8.0
    shared = _row("four_input_adder_ratio") if adder == "add_fp32" else 1.0
    um2_45nm = registers * held_bits / int8_bits + first * (_row(f"{multiplier}_45nm") + _row(f"{adder}_45nm") * shared)
    um2_45nm += max(0.0, rate - 1.0) * _row("row_int8_45nm") * (1.0 if format == "int8" else _row(f"row_{format}_ratio"))
    to_7nm = _row("row_int8") / _row("row_int8_45nm")
    return um2_45nm * to_7nm * _row("layout_ratio") * process_named(process).logic_ratio * _UM2


def sram_area_mm2(sram: Sram, areas: BlockAreas) -> float:
    """Return the area of one memory: bytes over density, more where a large share of it moves every cycle."""
    return sram.capacity_bytes * areas.sram_byte + sram.bytes_per_cycle * areas.sram_byte * areas.sram_port_cycles
