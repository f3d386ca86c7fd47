"""chip.toml: units read, mistakes named, and every chip comes back as it went."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabless.chip.catalogue import chip_names, load_chip
from fabless.chip.check import chip_schema, parse_chip, read_chip, write_chip
from fabless.chip.chip import Chip, Core, Dram, Link, Mesh, Mxu, Sram
from fabless.core.errors import InputError, UnitError

OWN = """
name = "mine"
process = "5nm"
clock_hz = "1.4 GHz"
n_cores = 64

[core]
vector_lanes = 64
[core.matrix]
kind = "mxu"
rows = 128
lanes = 32
rates = { int8 = 1.0, fp8_e4m3 = 1.0 }
[core.scratchpad]
capacity_bytes = "2 MiB"
banks = 16

[dram]
standard = "hbm3e"
stacks = 6
capacity_bytes = "216 GB"
bandwidth_bytes_per_s = "7.2 TB/s"
"""


@pytest.mark.parametrize("id", chip_names())
def test_every_chip_of_the_catalogue_comes_back_exactly(id):
    chip = load_chip(id)
    assert parse_chip(write_chip(chip)) == chip


def test_units_are_read():
    chip = parse_chip(OWN)
    assert chip == Chip(
        name="mine",
        family="fabless",
        process="5nm",
        clock_hz=1.4e9,
        n_cores=64,
        core=Core(Mxu(128, 32, (("int8", 1.0), ("fp8_e4m3", 1.0))), 64, Sram(2 * 2**20, 16)),
        dram=Dram("hbm3e", 6, 216e9, 7.2e12),
        link=Link("none", 0, 0.0, 1e-6, 1),
    )


def test_names_with_any_character_come_back():
    chip = replace(parse_chip(OWN), name='a "b" \\ ñ \x7f \n', assumptions=("c\td", "[e] = {f}"))
    assert parse_chip(write_chip(chip)) == chip


def test_a_file_is_read_and_a_missing_one_named(tmp_path):
    path = tmp_path / "chip.toml"
    path.write_text(OWN, encoding="utf-8")
    assert load_chip(str(path)) == load_chip(path) == read_chip(path)
    with pytest.raises(InputError) as error:
        read_chip(tmp_path / "none.toml")
    assert (
        str(error.value)
        == f"{tmp_path}/none.toml: cannot read the chip description (No such file or directory); give the path of a chip.toml"
    )
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(InputError, match=r"not UTF-8 text \(byte 8\)"):
        read_chip(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "banks = 16",
            "bank = 16",
            "chip.toml: unknown key 'core.scratchpad.bank'; did you mean 'banks'?; known here: capacity_bytes, banks, width_bytes",
        ),
        ("n_cores = 64", "n_cores = 0", "chip.toml: n_cores is 0, but must be greater than or equal to 1; change it"),
        ("n_cores = 64", "", "chip.toml: 'n_cores' is missing; add it"),
        (
            "n_cores = 64",
            "n_cores = 1.5",
            "chip.toml: n_cores is 1.5, but must be a valid integer, got a number with a fractional part; change it",
        ),
        ('"1.4 GHz"', "-1", "chip.toml: clock_hz is -1, but must be greater than 0; change it"),
        ('"1.4 GHz"', "inf", "chip.toml: clock_hz is inf, but must be a finite number; change it"),
        ('"1.4 GHz"', '"8 TB/s"', "chip.toml: clock_hz: '8 TB/s' is in TB / s, but hertz is needed; give a value in hertz"),
        ('"2 MiB"', '"2 MHz"', "chip.toml: core.scratchpad.capacity_bytes: '2 MHz' is in MHz, but byte is needed; give a value in byte"),
        ('"2 MiB"', '"2 MQ"', "chip.toml: core.scratchpad.capacity_bytes: cannot read '2 MQ' as a quantity"),
        ('kind = "mxu"', 'kind = "mxv"', "chip.toml: core.matrix.kind is 'mxv'; did you mean 'mxu'?; use mxu, mesh or tensor_core"),
        ('kind = "mxu"', "", "chip.toml: 'core.matrix.kind' is missing; set it to mxu, mesh or tensor_core"),
        ("lanes = 32", "lanes = 32\ncolumns = 4", "chip.toml: unknown key 'core.matrix.columns'"),
        ("int8 = 1.0", "int9 = 1.0", "chip.toml: core.matrix: unknown number format 'int9'; did you mean 'int8'?"),
        ("int8 = 1.0", "mxfp4 = 1.0", "chip.toml: core.matrix: 'mxfp4' is not an element format; write 'fp4_e2m1'"),
        ("int8 = 1.0", "int8 = 0.0", "chip.toml: core.matrix.rates.int8 is 0.0, but must be greater than 0; change it"),
        ('"hbm3e"', '"hbm9"', "chip.toml: dram.standard is 'hbm9', but must be 'hbm2', 'hbm2e',"),
        (
            "stacks = 6",
            "stacks = 0",
            "chip.toml: dram: hbm3e needs stacks, capacity_bytes and bandwidth_bytes_per_s above 0, or standard = 'none'",
        ),
        ("n_cores = 64", "n_cores = ", "chip.toml: not TOML: Invalid value (at line 5, column 11)"),
        ("n_cores = 64", "n_cores = 64\nn_cores = 65", "chip.toml: not TOML: Cannot overwrite a value"),
    ],
)
def test_a_mistake_is_named_with_its_place_rule_and_remedy(old, new, message):
    assert old in OWN
    with pytest.raises(InputError) as error:
        parse_chip(OWN.replace(old, new, 1))
    assert str(error.value).startswith(message)


def test_a_wrong_dimension_is_a_unit_error():
    with pytest.raises(UnitError):
        parse_chip(OWN.replace('"1.4 GHz"', '"8 TB/s"'))


def test_several_mistakes_are_all_told():
    with pytest.raises(InputError) as error:
        parse_chip(OWN.replace("n_cores", "cores").replace("rows = 128", "rows = 0"))
    lines = str(error.value).splitlines()
    assert lines[0] == "chip.toml: 3 problems"
    assert len(lines) == 4


def test_a_mesh_keeps_its_dataflow():
    chip = parse_chip(OWN)
    mesh = replace(chip, core=replace(chip.core, matrix=Mesh(8, 8, (("int8", 1.0),), "output_stationary")))
    assert parse_chip(write_chip(mesh)) == mesh


def test_the_schema_tells_editors_about_units_and_refuses_unknown_keys():
    schema = chip_schema()
    assert schema["additionalProperties"] is False
    assert {kind["type"] for kind in schema["properties"]["clock_hz"]["anyOf"]} == {"number", "string"}
    assert set(schema["required"]) == {"name", "process", "clock_hz", "n_cores", "core", "dram"}
