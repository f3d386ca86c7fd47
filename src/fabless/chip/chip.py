"""The description of a chip: one type for systolic chips, dot-product rows, GPUs and SRAM-only parts.

A `Chip` is what software sees of one accelerator package: cores with a matrix unit, vector lanes and a scratchpad, an optional shared
SRAM, off-chip memory and links. Plain SI numbers; None where the vendor has not published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fabless.core.errors import InputError, UnsupportedError
from fabless.number.formats import Format, NumberFormat, Scaled


@dataclass(frozen=True, slots=True)
class Mxu:
    """Dot-product rows: each cycle, `rows` rows multiply a `lanes`-long activation slice with `lanes` weights each.

    Weights stream past, activations are held per row pass, sums live in block accumulators (fabless' own core).
    `rates`: multiply-accumulates per lane and cycle by element format, relative to 1.0; a format not listed cannot be multiplied.
    """

    rows: int
    lanes: int
    rates: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Mesh:
    """Systolic array of `rows` x `columns` PEs; weights (or outputs) stay, fill and drain cost cycles."""

    rows: int
    columns: int
    rates: tuple[tuple[str, float], ...]
    dataflow: Literal["weight_stationary", "output_stationary"] = "weight_stationary"


@dataclass(frozen=True, slots=True)
class TensorCore:
    """Matrix units of a GPU core (SM, CU): published rate per format, and the threadblock tiles that libraries launch.

    `macs_per_cycle`: multiply-accumulates per core and cycle by element format. `tiles`: (m, n) output tiles that kernels come in.
    """

    macs_per_cycle: tuple[tuple[str, float], ...]
    tiles: tuple[tuple[int, int], ...] = tuple((m, n) for m in (16, 32, 64, 128, 256) for n in (32, 64, 128, 256) if m * n <= 32768)


MatrixUnit = Mxu | Mesh | TensorCore


@dataclass(frozen=True, slots=True)
class Sram:
    """On-chip memory: `capacity_bytes` in `banks`, each `width_bytes` wide per cycle."""

    capacity_bytes: float
    banks: int = 1
    width_bytes: int = 64

    @property
    def bytes_per_cycle(self) -> float:
        """Return what all banks deliver in a cycle."""
        return float(self.banks * self.width_bytes)


@dataclass(frozen=True, slots=True)
class Dram:
    """Off-chip memory of one package. An SRAM-only chip has standard "none" and its shared SRAM's figures here do not apply."""

    standard: str  # hbm2 | hbm2e | hbm3 | hbm3e | hbm4 | gddr6 | gddr7 | lpddr4x | lpddr5x | ddr3 | ddr4 | ddr5 | none
    stacks: int
    capacity_bytes: float
    bandwidth_bytes_per_s: float
    latency_s: float = 500e-9


@dataclass(frozen=True, slots=True)
class Link:
    """Chip-to-chip network: `bandwidth_bytes_per_s` one way out of a chip, over all its ports; `domain_chips` reach each other at that rate."""

    topology: Literal["none", "ring", "switch", "mesh", "torus2d", "torus3d"]
    ports: int
    bandwidth_bytes_per_s: float
    latency_s: float
    domain_chips: int
    network_bandwidth_bytes_per_s: float = 0.0  # one way per chip, beyond the domain (scale-out)
    network_latency_s: float = 5e-6


@dataclass(frozen=True, slots=True)
class Core:
    """One core: `n_matrix` equal matrix units, vector lanes (binary32 operations a cycle), a scratchpad and accumulators."""

    matrix: MatrixUnit
    vector_lanes: int
    scratchpad: Sram
    accumulator: Sram | None = None
    n_matrix: int = 1


@dataclass(frozen=True, slots=True)
class Chip:
    """Describe one accelerator package; everything that a level of truth needs and nothing that can be derived.

    `family` names the architecture family whose calibration applies ("nvidia_hopper", "google_tpu", "fabless", ...).
    `tdp_w`, `die_area_mm2`, `transistors` are published figures (None: unknown, or to be derived by `harden`).
    `assumptions` lists, in words, each cell that nobody published and that a preset had to assume.
    """

    name: str
    family: str
    process: str
    clock_hz: float
    n_cores: int
    core: Core
    dram: Dram
    link: Link
    shared: Sram | None = None
    n_dies: int = 1
    vendor: str = ""
    year: int | None = None
    tdp_w: float | None = None
    die_area_mm2: float | None = None
    transistors: float | None = None
    package: str = "organic"  # organic | interposer | fanout
    launch_overhead_s: float | None = None  # None: the family's calibrated figure
    spare_cores: int = 0  # cores beyond n_cores on the die, to be harvested
    assumptions: tuple[str, ...] = field(default_factory=tuple)
    spare_dram_sites: int = 0  # memory interfaces on the die without a stack beside them (A100 uses five of six)

    def __post_init__(self) -> None:
        for name, value in (("clock_hz", self.clock_hz), ("n_cores", self.n_cores), ("core.n_matrix", self.core.n_matrix)):
            if not value > 0:
                raise InputError(f"chip '{self.name}': {name} must be above 0, not {value}")

    def macs_per_cycle(self, operand: NumberFormat) -> float:
        """Return multiply-accumulates per cycle of the whole chip for operands of a format.

        A format without its own rate runs at that of the narrowest wider format that has one (weights are converted on the way in).
        Raises `UnsupportedError` when none can serve.
        """
        rates = dict(matrix_rates(self.core.matrix))
        name = runs_as(rates, operand)
        if name is None:
            raise UnsupportedError(f"chip '{self.name}' multiplies {', '.join(rates)}, and none of these holds {operand.name}")
        return rates[name] * self.core.n_matrix * self.n_cores

    def peak_macs_per_s(self, operand: NumberFormat) -> float:
        """Return peak multiply-accumulates per second for a format."""
        return self.macs_per_cycle(operand) * self.clock_hz

    @property
    def sram_bytes(self) -> float:
        """Return all scratchpads and the shared SRAM."""
        return self.n_cores * self.core.scratchpad.capacity_bytes + (self.shared.capacity_bytes if self.shared else 0.0)

    @property
    def memory_capacity_bytes(self) -> float:
        """Return where weights and caches may live: DRAM, or the SRAM of a chip without DRAM."""
        return self.dram.capacity_bytes if self.dram.standard != "none" else self.sram_bytes


def matrix_rates(matrix: MatrixUnit) -> tuple[tuple[str, float], ...]:
    """Return (element format name, multiply-accumulates per cycle) of one matrix unit."""
    if isinstance(matrix, TensorCore):
        return matrix.macs_per_cycle
    base = matrix.rows * (matrix.lanes if isinstance(matrix, Mxu) else matrix.columns)
    return tuple((name, base * rate) for name, rate in matrix.rates)


#: For each element format, the formats that hold its values exactly or by the usual conversion, best first.
_WIDER = {
    "fp4_e2m1": ("fp6_e2m3", "fp8_e4m3", "int8", "bf16", "fp16", "tf32", "fp32"),
    "fp6_e2m3": ("fp8_e4m3", "bf16", "fp16", "tf32", "fp32"),
    "fp8_e4m3": ("bf16", "fp16", "tf32", "fp32"),
    "fp8_e5m2": ("fp8_e4m3", "bf16", "fp16", "tf32", "fp32"),
    "int4": ("int8", "fp8_e4m3", "bf16", "fp16", "fp32"),
    "int8": ("bf16", "fp16", "tf32", "fp32"),
    "bf16": ("fp16", "tf32", "fp32"),
    "fp16": ("bf16", "tf32", "fp32"),
    "tf32": ("fp32",),
    "fp32": ("tf32",),
}


def runs_as(rates: dict[str, float], operand: NumberFormat) -> str | None:
    """Return the element format in `rates` that serves operands of a format, or None."""
    element: Format = operand.element if isinstance(operand, Scaled) else operand
    return next((name for name in (element.name, *_WIDER.get(element.name, ())) if name in rates), None)
