"""The TOML form of a chip as pydantic models: unknown keys refused, every rule with its own message, JSON Schema for editors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from fabless.chip import chip as types
from fabless.core.errors import InputError
from fabless.number.formats import Format, format_named


def _quantity(example: str, bound: str) -> WithJsonSchema:
    return WithJsonSchema(
        {"anyOf": [{"type": "number", bound: 0}, {"type": "string", "description": "a quantity with its unit", "examples": [example]}]}
    )


_NOT_NEGATIVE = Field(ge=0, allow_inf_nan=False)
_POSITIVE = Field(gt=0, allow_inf_nan=False)
Bytes = Annotated[float, _NOT_NEGATIVE, _quantity("192 MiB", "minimum")]
BytesPerSecond = Annotated[float, _NOT_NEGATIVE, _quantity("8 TB/s", "minimum")]
Seconds = Annotated[float, _NOT_NEGATIVE, _quantity("500 ns", "minimum")]
Hertz = Annotated[float, _POSITIVE, _quantity("1.5 GHz", "exclusiveMinimum")]
Watts = Annotated[float, _POSITIVE, _quantity("700 W", "exclusiveMinimum")]
SquareMillimetres = Annotated[float, _POSITIVE, _quantity("814 mm^2", "exclusiveMinimum")]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Rates = Annotated[dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)]


class _Rated(_Strict):
    @model_validator(mode="after")
    def _formats_exist(self) -> _Rated:
        rates: dict[str, float] = getattr(self, "rates", None) or getattr(self, "macs_per_cycle", {})
        for name in rates:
            try:
                known = format_named(name)
            except InputError as error:
                raise ValueError(str(error)) from None
            if not isinstance(known, Format) or known.name != name:
                element = known.name if isinstance(known, Format) else known.element.name
                raise ValueError(f"'{name}' is not an element format; write '{element}'")
        return self


class MxuDescription(_Rated):
    """Dot-product rows."""

    kind: Literal["mxu"]
    rows: Count
    lanes: Count
    rates: Rates


class MeshDescription(_Rated):
    """Systolic array."""

    kind: Literal["mesh"]
    rows: Count
    columns: Count
    rates: Rates
    dataflow: Literal["weight_stationary", "output_stationary"] = "weight_stationary"


class TensorCoreDescription(_Rated):
    """Matrix units of a GPU core."""

    kind: Literal["tensor_core"]
    macs_per_cycle: Rates
    tiles: Annotated[list[tuple[Count, Count]], Field(min_length=1)] = list(types.TensorCore(()).tiles)


MatrixDescription = Annotated[MxuDescription | MeshDescription | TensorCoreDescription, Field(discriminator="kind")]


class SramDescription(_Strict):
    """On-chip memory."""

    capacity_bytes: Bytes
    banks: Count = 1
    width_bytes: Count = 64


class DramDescription(_Strict):
    """Off-chip memory of one package."""

    standard: Literal[
        "hbm2", "hbm2e", "hbm3", "hbm3e", "hbm4", "gddr6", "gddr6x", "gddr7", "lpddr4x", "lpddr5", "lpddr5x", "ddr3", "ddr4", "ddr5", "none"
    ]  # fmt: skip
    stacks: Annotated[int, Field(ge=0)] = 0
    capacity_bytes: Bytes = 0.0
    bandwidth_bytes_per_s: BytesPerSecond = 0.0
    latency_s: Seconds = 500e-9

    @model_validator(mode="after")
    def _complete(self) -> DramDescription:
        if self.standard != "none" and not (self.stacks and self.capacity_bytes and self.bandwidth_bytes_per_s):
            raise ValueError(f"{self.standard} needs stacks, capacity_bytes and bandwidth_bytes_per_s above 0, or standard = 'none'")
        return self


class LinkDescription(_Strict):
    """Chip-to-chip network."""

    topology: Literal["none", "ring", "switch", "mesh", "torus2d", "torus3d"] = "none"
    ports: Annotated[int, Field(ge=0)] = 0
    bandwidth_bytes_per_s: BytesPerSecond = 0.0
    latency_s: Seconds = 1e-6
    domain_chips: Count = 1
    network_bandwidth_bytes_per_s: BytesPerSecond = 0.0
    network_latency_s: Seconds = 5e-6


class CoreDescription(_Strict):
    """One core."""

    matrix: MatrixDescription
    vector_lanes: Count
    scratchpad: SramDescription
    accumulator: SramDescription | None = None
    n_matrix: Count = 1


class ChipDescription(_Strict):
    """A chip, as written in chip.toml."""

    name: Annotated[str, Field(min_length=1)]
    family: str = "fabless"
    process: Annotated[str, Field(min_length=1)]
    clock_hz: Hertz
    n_cores: Count
    n_dies: Count = 1
    vendor: str = ""
    year: int | None = None
    tdp_w: Watts | None = None
    die_area_mm2: SquareMillimetres | None = None
    transistors: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    package: Literal["organic", "interposer", "fanout"] = "organic"
    launch_overhead_s: Seconds | None = None
    spare_cores: Annotated[int, Field(ge=0)] = 0
    spare_dram_sites: Annotated[int, Field(ge=0)] = 0
    assumptions: list[str] = []
    core: CoreDescription
    shared: SramDescription | None = None
    dram: DramDescription
    link: LinkDescription = LinkDescription()

    def chip(self) -> types.Chip:
        """Return the frozen description that every other part of fabless takes."""
        plain = {k: getattr(self, k) for k in type(self).model_fields if k not in ("core", "shared", "dram", "link", "assumptions")}
        return types.Chip(
            **plain,
            core=types.Core(
                matrix=_matrix(self.core.matrix),
                vector_lanes=self.core.vector_lanes,
                scratchpad=types.Sram(**self.core.scratchpad.model_dump()),
                accumulator=types.Sram(**self.core.accumulator.model_dump()) if self.core.accumulator else None,
                n_matrix=self.core.n_matrix,
            ),
            shared=types.Sram(**self.shared.model_dump()) if self.shared else None,
            dram=types.Dram(**self.dram.model_dump()),
            link=types.Link(**self.link.model_dump()),
            assumptions=tuple(self.assumptions),
        )


def _matrix(matrix: MxuDescription | MeshDescription | TensorCoreDescription) -> types.MatrixUnit:
    if isinstance(matrix, MxuDescription):
        return types.Mxu(matrix.rows, matrix.lanes, tuple(matrix.rates.items()))
    if isinstance(matrix, MeshDescription):
        return types.Mesh(matrix.rows, matrix.columns, tuple(matrix.rates.items()), matrix.dataflow)
    return types.TensorCore(tuple(matrix.macs_per_cycle.items()), tuple(matrix.tiles))
