"""What the search proposes can be programmed: every chip of the example studies' spaces that multiplies int8 has a tile that a real model compiles for."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import pytest

from fabless.chip.chip import Mxu
from fabless.compiler.driver import compile as compile_model
from fabless.core.errors import InputError, UnsupportedError
from fabless.explore.search import check
from fabless.explore.space import chip_of
from fabless.explore.study import AXES, read_study
from fabless.model.weights import open_weights
from fabless.program.tile import Tile

EXAMPLES = Path(__file__).parents[2] / "examples"


def designs(name, n=60):
    space = read_study(EXAMPLES / f"{name}.toml").space
    size = prod(len(getattr(space, axis)) for axis in AXES)
    rng = np.random.default_rng(7)
    return [chip_of(space, int(i)) for i in {0, size - 1, *rng.integers(0, size, n)}]


@pytest.mark.parametrize("name", ["chat", "edge"])
def test_every_design_has_a_tile_and_a_program(name):
    decoder = open_weights("tinyshakes").decoder
    tiles = {Tile.of(chip) for chip in designs(name)}
    assert len(tiles) > 8
    for tile in tiles:
        program = compile_model(decoder, tile, context_tokens=128).program()
        assert program.instructions[-1].mnemonic == "halt"


def test_the_port_carries_the_share_of_memory_that_a_core_has():
    for chip in designs("chat"):
        tile = Tile.of(chip)
        share = chip.dram.bandwidth_bytes_per_s / chip.clock_hz / chip.n_cores
        assert tile.memory_bytes_per_cycle >= 0.9 * share
        assert tile.memory_bytes_per_cycle in {16, 32} or tile.memory_bytes_per_cycle / 2 < share


def test_designs_without_int8_are_refused_by_name():
    chip = designs("frontier", 1)[0]
    assert isinstance(chip.core.matrix, Mxu)
    with pytest.raises(UnsupportedError, match="its rows multiply fp8_e4m3, fp4_e2m1, bf16; programs compute int8 blocks"):
        Tile.of(chip)


@pytest.mark.parametrize(("axis", "value", "near"), [("rows", 256, 128), ("vector_lanes", 128, 64), ("lanes", 64, 32)])
def test_cores_that_no_generator_builds_are_refused_before_the_search(axis, value, near, tmp_path):
    text = (EXAMPLES / "chat.toml").read_text("utf-8")
    lines = [f"{axis} = [{value}]" if line.startswith(f"{axis} =") else line for line in text.splitlines()]
    path = tmp_path / "study.toml"
    path.write_text("\n".join(lines), "utf-8")
    with pytest.raises(InputError, match=f"space.{axis} = {value}: the generator builds .*; use {near}, and more cores"):
        check(read_study(path))
