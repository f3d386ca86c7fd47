"""An answer as rows of text: the chip's sheet, its services, the sheets of other points on the front."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabless.chip.chip import MatrixUnit, Mesh, Mxu, matrix_rates
from fabless.core.units import binary, si
from fabless.report.figures import count, percent, seconds, usd, usd_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabless.chip.chip import Chip
    from fabless.explore.answer import Answer, Option
    from fabless.explore.frontier import Frontier

Rows = list[tuple[str, str]]


def chip_rows(chip: Chip) -> Rows:
    """Return what a chip is, term by term."""
    matrix, core = chip.core.matrix, chip.core
    shape = _shape(matrix)
    scale = 2 * core.n_matrix * chip.n_cores * chip.clock_hz
    peaks = ", ".join(f"{name} {si(rate * scale, 'op/s')}" for name, rate in matrix_rates(matrix))
    d, link = chip.dram, chip.link
    rows: Rows = [
        ("process", chip.process),
        ("clock", si(chip.clock_hz, "Hz")),
        ("cores", f"{chip.n_cores}" + (f" + {chip.spare_cores} spare for yield" if chip.spare_cores else "")),
        ("matrix unit", shape + (f", {core.n_matrix} a core" if core.n_matrix > 1 else "")),
        ("peak", peaks),
        ("vector lanes", f"{core.vector_lanes} a core"),
        ("scratchpad", f"{binary(core.scratchpad.capacity_bytes)} a core"),
    ]
    if chip.shared:
        rows.append(("shared SRAM", binary(chip.shared.capacity_bytes)))
    memory = (
        "none: weights and caches live in SRAM"
        if d.standard == "none"
        else f"{d.standard.upper()}, {d.stacks} × {si(d.capacity_bytes / max(1, d.stacks), 'B')}, {si(d.bandwidth_bytes_per_s, 'B/s')}"
    )
    rows.append(("memory", memory))
    if link.topology != "none":
        rows.append(("links", f"{link.topology}, {si(link.bandwidth_bytes_per_s, 'B/s')} one way, {link.domain_chips} chips in a domain"))
    return rows


def _shape(matrix: MatrixUnit) -> str:
    match matrix:
        case Mxu():
            return f"{matrix.rows} rows × {matrix.lanes} lanes"
        case Mesh():
            return f"{matrix.rows} × {matrix.columns} systolic, {matrix.dataflow.replace('_', ' ')}"
        case _:
            return "tensor cores"


def chip_sheet(answer: Answer) -> Rows:
    """Return the sheet of the chip to build: description, silicon and cost."""
    s = answer.silicon
    dies = f"{s.n_dies} × " if s.n_dies > 1 else ""
    return [
        *chip_rows(answer.chip),
        ("die", f"{dies}{s.die_area_mm2:.0f} mm², {s.die_width_mm:.1f} × {s.die_height_mm:.1f} mm"),
        ("yield", percent(answer.yield_ratio, 1)),
        ("power", f"{s.tdp_w:.0f} W to cool for, {s.idle_w:.0f} W idle"),
        ("packaged chip", usd_range(answer.package_usd)),
        ("NRE", usd_range(answer.nre_usd)),
    ]


def service_rows(option: Option) -> list[tuple[str, ...]]:
    """Return one row a model: how it is served and what a user feels."""
    return [
        (
            s.model, s.recipe, str(s.plan), str(s.batch), count(s.n_replicas), f"{s.tokens_per_s_per_user:.3g}", seconds(s.ttft_s), seconds(s.tpot_s),
            percent(s.prefill_share), si(s.memory_bytes, "B"),
        )
        for s in option.services
    ]  # fmt: skip


def front_sheets(frontier: Frontier, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return, for each row of the front, a title and its sheet as (term, value) pairs."""
    c = frontier.columns
    sheets = []
    for row in rows:
        chip = frontier.chip(row)
        speed, cost = float(c["tokens_per_s_per_user"][row]), float(c["usd_per_mtok"][row])
        plans = [
            f"{c[f'recipe_{k}'][row]}, {c[f'plan_{k}'][row]}, batch {c[f'batch_{k}'][row]}" for k in range(len(frontier.study.workloads))
        ]
        sheets.append({
            "title": f"{usd(cost)}/Mtok, {speed:.3g} tok/s/user, {si(float(c['power_w'][row]), 'W')}, NRE {usd(float(c['nre_usd'][row]))}",
            "rows": [
                *chip_rows(chip),
                ("die", f"{float(c['die_area_mm2'][row]):.0f} mm²"),
                ("chip power", f"{float(c['chip_tdp_w'][row]):.0f} W"),
                ("packaged chip", usd(float(c["package_usd"][row]))),
                ("chips", count(float(c["n_chips"][row]))),
                ("first token", seconds(float(c["ttft_s"][row]))),
                ("per token", seconds(float(c["tpot_s"][row]))),
                *((f"serving {w.model}", plan) for w, plan in zip(frontier.study.workloads, plans, strict=True)),
            ],
        })  # fmt: skip
    return sheets
