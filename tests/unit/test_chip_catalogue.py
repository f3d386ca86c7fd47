"""Names find chips, sheets say what is known, and what is not known is refused or said."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fabless.chip.catalogue import chip_facts, chip_names, find_chip, find_name, load_chip, parse_sheet, sheet, sheet_names
from fabless.chip.chip import Mesh, TensorCore
from fabless.core.errors import InputError, SourceError, UnsupportedError


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("h100", "nvidia_h100_sxm"),
        ("NVIDIA H100 SXM", "nvidia_h100_sxm"),
        ("h100_sxm", "nvidia_h100_sxm"),
        ("nvidia_h100_sxm", "nvidia_h100_sxm"),
        ("NVIDIA h100-80gb-pcap", "nvidia_h100_sxm"),
        ("NVIDIA H100-PCIe-80GB", "nvidia_h100_pcie"),
        ("NVIDIA H200-SXM-141GB-CTS", "nvidia_h200_sxm"),
        ("AMD Instinct MI300X 192GB HBM3", "amd_mi300x"),
        ("A100", "nvidia_a100_sxm_80gb"),
        ("A100 SXM 40GB", "nvidia_a100_sxm_40gb"),
        ("NVIDIA A100 PCIe 40GB", "nvidia_a100_pcie_40gb"),
        ("Google TPU v6e", "google_tpu_v6e"),
        ("tpu-v5e", "google_tpu_v5e"),
        ("Trillium", "google_tpu_v6e"),
        ("AWS Inferentia2", "aws_inferentia2"),
        ("Tenstorrent Wormhole (n150)", "tenstorrent_wormhole_n150"),
        ("Jalapeño", "openai_jalapeno"),
        ("jalapeno", "openai_jalapeno"),
        ("NVIDIA Jetson AGX Orin 64G", "nvidia_jetson_agx_orin"),
        ("MI300X (x32), MI325X (x16)", None),
        ("MI400", None),
        ("", None),
        ("nvidia", None),
    ],
)
def test_a_name_finds_its_chip(name, id):
    assert find_name(name) == id


def test_every_id_and_title_finds_itself():
    for id in sheet_names():
        assert find_name(id) == id
        assert find_name(sheet(id).name) == id


def test_loading_twice_gives_equal_chips():
    assert load_chip("h100") == load_chip("NVIDIA H100 SXM")


def test_an_unknown_chip_is_refused_with_the_nearest():
    with pytest.raises(InputError) as error:
        load_chip("h1000")
    assert str(error.value).startswith("unknown chip 'h1000'; did you mean 'H100'?; see `fabless chips`")


def test_a_chip_without_description_is_refused_by_name_but_shown():
    with pytest.raises(UnsupportedError, match=r"Taalas HC1 has no description to run: Llama 3\.1 8B hardwired in mask ROM"):
        load_chip("Taalas HC1")
    assert find_chip("Taalas HC1") is None
    assert "taalas_hc1" not in chip_names()
    assert {cell.id: cell.grade for cell in chip_facts("Taalas HC1")}["clock_hz"] == "unknown"


def test_facts_have_value_source_and_grade():
    cells = {cell.id: cell for cell in chip_facts("h100")}
    assert cells["die_area_mm2"].value == 814.0
    assert cells["die_area_mm2"].unit == "mm2"
    assert cells["die_area_mm2"].grade == "vendor document"
    assert "H100" in cells["die_area_mm2"].source.title
    assert {cell.id: cell.value for cell in chip_facts("jalapeno")}["tdp_w"] is None


def test_gpus_and_systolic_chips_have_their_own_matrix():
    h100, tpu = load_chip("h100"), load_chip("tpu v4i")
    assert isinstance(h100.core.matrix, TensorCore)
    assert dict(h100.core.matrix.macs_per_cycle)["bf16"] == 2048
    assert (h100.n_cores, h100.core.vector_lanes, h100.shared.capacity_bytes) == (132, 128, 50 * 2**20)
    assert tpu.core.matrix == Mesh(128, 128, (("bf16", 1.0), ("int8", 1.0)))
    assert tpu.core.n_matrix == 4


def test_a_chip_without_memory_keeps_weights_in_its_scratchpads():
    assert load_chip("groq lpu").memory_capacity_bytes == 220 * 2**20


def test_vector_lanes_count_in_cycles_of_the_matrix_clock():
    # 3 engines x 128 lanes at 1.12 GHz beside a tensor engine of 2.8 GHz
    assert load_chip("inferentia2").core.vector_lanes == round(384 * 1.12 / 2.8)


SHEET = {
    "name": "X",
    "family": "f",
    "matrix": "mesh",
    "sources": {"s": {"title": "T", "publisher": "P", "date": "2020", "url": "u"}},
}


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"value": 1, "kind": "rumour", "source": "s"}, "chips/x: cell 'year' has kind 'rumour'; use one of standard, "),
        ({"value": 1, "kind": "paper", "source": "t"}, "chips/x: cell 'year' names source 't', which the file does not list"),
        ({"value": 1, "kind": "press", "source": "s"}, "chips/x: cell 'year' is of kind 'press' and needs low and high"),
        ({"value": 5, "kind": "press", "source": "s", "low": 1, "high": 4}, "chips/x: cell 'year' has 5 outside its range 1 to 4"),
    ],
)
def test_a_bad_cell_is_refused(cell, message):
    with pytest.raises(SourceError) as error:
        parse_sheet("x", SHEET | {"cells": {"year": cell}})
    assert str(error.value).startswith(message)


def test_looking_up_a_chip_imports_nothing_heavy():
    code = "import sys; from fabless.chip.catalogue import load_chip; load_chip('h100'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "numpy", "pint", "scipy", "pyarrow"} & set(loaded)


def test_cells_are_written_for_people():
    cells = {cell.id: cell.text for cell in chip_facts("h100")}
    assert cells["clock_hz"] == "1.83 GHz"
    assert cells["dram_bytes_per_s"] == "3.35 TB/s"
    assert cells["scratchpad_bytes"] == "256 KiB"
    assert cells["peak_bf16_flop_per_s"] == "989.4 TFLOP/s"
    assert cells["year"] == "2022"
    assert cells["process"] == "4nm"
    assert {cell.id: cell.text for cell in chip_facts("jalapeno")}["tdp_w"] == "unknown"
    assert "clock_hz = 1.8 GHz (between 1.2 GHz and 2.4 GHz): not disclosed" in " ".join(load_chip("jalapeno").assumptions)
