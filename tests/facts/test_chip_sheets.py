"""The catalogue against the collected specifications and measurements, and against itself: printed peaks follow from cores and clock."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from fabless.chip.catalogue import chip_names, find_chip, find_name, load_chip, sheet
from fabless.number.formats import FORMATS

SHARED = Path(__file__).parents[2] / "../shared/data/silicon"

#: Column of specs.csv -> cell of a sheet and factor to SI.
COLUMNS = {
    "bf16_fp16_tflops": ("peak_bf16_flop_per_s", 1e12),
    "fp8_tflops": ("peak_fp8_e4m3_flop_per_s", 1e12),
    "fp4_tflops": ("peak_fp4_e2m1_flop_per_s", 1e12),
    "int8_tops": ("peak_int8_flop_per_s", 1e12),
    "die_area_mm2": ("die_area_mm2", 1.0),
    "memory_gb": ("dram_bytes", 1e9),
    "memory_bw_gbps": ("dram_bytes_per_s", 1e9),
    "tdp_w": ("tdp_w", 1.0),
}
#: Cells where our sheet holds another figure than specs.csv, and why.
DIFFERENT = {
    ("TPU v1", "memory_gb"): "8 GiB: binary gigabytes",
    ("TPU v2", "memory_gb"): "binary gigabytes",
    ("TPU v2", "bf16_fp16_tflops"): "ISCA 2021 prints 46; specs.csv computes 45.9",
    ("TPU v2", "memory_bw_gbps"): "ISCA 2021 prints 700; specs.csv follows NeuSim's 600",
    ("TPU v3", "memory_gb"): "binary gigabytes",
    ("TPU v4", "memory_gb"): "binary gigabytes",
    ("TPU v4i", "memory_gb"): "binary gigabytes",
    ("TPU v5e", "memory_gb"): "binary gigabytes",
    ("H100 SXM", "fp8_tflops"): "specs.csv doubles the rounded bf16 figure",
    ("H100 SXM", "int8_tops"): "specs.csv doubles the rounded bf16 figure",
    ("H200 SXM", "fp8_tflops"): "specs.csv doubles the rounded bf16 figure",
    ("H200 SXM", "int8_tops"): "specs.csv doubles the rounded bf16 figure",
    ("Groq LPU v1 (TSP)", "bf16_fp16_tflops"): "fp16 only: bf16 stays unknown",
    ("Groq LPU v1 (TSP)", "memory_gb"): "SRAM only: held as scratchpad",
    ("Groq LPU v1 (TSP)", "memory_bw_gbps"): "SRAM only: held as scratchpad",
    ("Maia 100", "memory_gb"): "binary gigabytes",
}


def rows(name: str):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not beside this checkout; the collected facts are needed only to check the sheets")
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def half_digit(text: str) -> float:
    """Return half of the last digit that a figure was printed with, and what binary fractions add to it."""
    return 0.5 * 10.0 ** -len(text.partition(".")[2]) + 1e-9


def test_every_chip_of_the_specifications_has_a_sheet():
    missing = [row["chip"] for row in rows("specs.csv") if find_name(row["chip"]) is None]
    assert not missing


def test_sheets_hold_the_collected_figures_or_say_why_not():
    wrong, compared = [], 0
    for row in rows("specs.csv"):
        s = sheet(find_name(row["chip"]))
        for column, (cell_id, factor) in COLUMNS.items():
            printed = number(row[column])
            if printed is None or (row["chip"], column) in DIFFERENT:
                continue
            cell = s.cells.get(cell_id)
            compared += 1
            if cell is None or not isinstance(cell.value, float) or abs(cell.value / factor - printed) > half_digit(row[column]):
                wrong.append((row["chip"], column, printed, cell and cell.value))
    assert not wrong
    assert compared > 140


def test_figures_said_to_differ_do_differ():
    by_chip = {row["chip"]: row for row in rows("specs.csv")}
    for chip, column in DIFFERENT:
        cell_id, factor = COLUMNS[column]
        cell = sheet(find_name(chip)).cells.get(cell_id)
        printed = by_chip[chip][column]
        assert cell is None or abs((cell.value or 0.0) / factor - float(printed)) > half_digit(printed) / 5


def test_every_measured_chip_is_found_or_is_a_system_of_several():
    lost = {row["chip"] for row in rows("measured.csv") if find_chip(row["chip"]) is None}
    assert lost == {"AMD Instinct MI300X 192GB HBM3 (x32), AMD Instinct MI325X 256GB HBM3e (x16)", "Taalas HC1"}


@pytest.mark.parametrize("id", chip_names())
def test_peak_follows_from_cores_and_clock(id):
    chip, s = load_chip(id), sheet(id)
    peaks = {k.removeprefix("peak_").removesuffix("_flop_per_s"): c for k, c in s.cells.items() if k.startswith("peak_")}
    assert peaks
    for name, cell in peaks.items():
        if cell.value is None:
            continue
        # 0.3%: what rounding to three digits does to a printed peak
        assert 2.0 * chip.peak_macs_per_s(FORMATS[name]) == pytest.approx(cell.value, rel=3e-3)


@pytest.mark.parametrize("id", chip_names())
def test_every_assumed_cell_is_said_in_words(id):
    chip, s = load_chip(id), sheet(id)
    assumed = [cell.id for cell in s.cells.values() if cell.kind == "assumption"]
    assert [text.split(" = ")[0] for text in chip.assumptions] == assumed


def test_the_preset_of_jalapeno_lists_everything_that_is_not_known():
    chip = load_chip("jalapeño")
    said = " ".join(chip.assumptions)
    for cell in (
        "process",
        "clock_hz",
        "n_cores",
        "peak_bf16_flop_per_s",
        "dram_standard",
        "dram_bytes",
        "dram_bytes_per_s",
        "link_bytes_per_s",
    ):
        assert f"{cell} = " in said
    assert chip.die_area_mm2 is None
    assert chip.tdp_w is None
    assert chip.dram.stacks == 8


def test_traps_of_the_collected_figures():
    fp8 = FORMATS["fp8_e4m3"]
    assert 2 * load_chip("MI300X").peak_macs_per_s(fp8) == pytest.approx(2614.9e12, rel=1e-4)  # dense, not 661 and not 5,229 sparse
    assert load_chip("H100").dram.capacity_bytes == 80 * 2**30  # "80 GB" is binary
    assert 2 * load_chip("L40S").peak_macs_per_s(FORMATS["bf16"]) == pytest.approx(362.05e12)  # dense, not 733 sparse
    assert 2 * load_chip("B300").peak_macs_per_s(FORMATS["int8"]) < 2 * load_chip("B200").peak_macs_per_s(FORMATS["int8"]) / 20
    assert 2 * load_chip("H100 SXM").peak_macs_per_s(FORMATS["bf16"]) == pytest.approx(989.4e12, rel=1e-4)
