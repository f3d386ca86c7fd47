"""The memory behind a tile: rows, banks and refresh in whole cycles, stated readably and compiled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numba import njit

from fabless.chip.catalogue import load_chip
from fabless.cli.execute import demo_chip
from fabless.core.errors import InputError, UnsupportedError
from fabless.core.sources import table
from fabless.program.assembler import assemble
from fabless.program.tile import DEMO, TINY, Tile
from fabless.sim.cycles import time
from fabless.sim.cycles_kernel import read_answer, ready_from, row_usable
from fabless.sim.dram import IDEAL, Banks, MemoryModel, memory_model_of

BANKED = MemoryModel(11, 2, 3, 400, 30, banks=4, row_bytes=512, activate_cycles=9, precharge_cycles=7, row_cycles=40)


@njit
def compiled_read(t, address, model, banks):
    return read_answer(t, address, model, banks)


@njit
def compiled_write(t, address, model, banks):
    return ready_from(row_usable(t, address, model, banks), model)


def test_rows_open_close_and_are_refreshed():
    """Worked by hand: an empty bank, a hit, a conflict, a bank behind its row cycle time, and a row that refresh closed."""
    m = MemoryModel(5, 1, 1, 1000, 100, banks=2, row_bytes=256, activate_cycles=10, precharge_cycles=20, row_cycles=50)
    banks = Banks(m)
    assert banks.usable(150, 0) == 160  # opened at 150
    assert banks.usable(170, 64) == 170  # hit
    assert banks.usable(155, 256) == 165  # the other bank, meanwhile
    assert banks.usable(180, 512) == 210  # conflict: precharge 180 to 200, activate 200 to 210; 50 after 150 is met
    assert banks.usable(201, 1024) == 260  # conflict: row cycle from 200 on: activate at 250
    assert banks.usable(990, 1024) == 990  # still open just before refresh
    assert banks.usable(1005, 1024) == 1110  # refresh closed it: opened again at 1100
    assert (banks.hits, banks.misses) == (2, 5)
    assert Banks(m).read(150, 0) == 165


@pytest.mark.parametrize(
    "model", [BANKED, replace(BANKED, refresh_period_cycles=0, refresh_cycles=0), replace(BANKED, beats=1, cycles=1, banks=1)]
)
def test_the_compiled_rules_are_the_stated_ones(model):
    rng = np.random.default_rng(0)
    numbers = np.array(model.numbers, np.int64)
    for kind in ("read", "write"):
        banks, compiled = Banks(model), np.zeros((model.banks + 1, 4), np.int64)
        compiled[-1, 1] = -1
        t = 0
        for _ in range(2000):
            t += int(rng.choice([1, 1, 1, 2, 90]))
            address = int(rng.integers(0, 16)) * 256 + int(rng.integers(0, 4)) * 64
            if kind == "read":
                assert compiled_read(t, address, numbers, compiled) == banks.read(t, address)
            else:
                got = compiled_write(t, address, numbers, compiled)
                assert got == banks.write(t, address)
                t = got
        assert compiled[:-1, 2:].sum(axis=0).tolist() == [banks.hits, banks.misses]


def loads(addresses):
    text = "\n".join(f"load target=v format=fp32 count=64 dst=0 address={a}" for a in addresses)
    return assemble(f"{text}\nhalt", tile=TINY)


def test_streaming_hits_open_rows_and_strides_miss_them():
    model = replace(BANKED, refresh_period_cycles=0, refresh_cycles=0)
    near = time(loads(range(0, 4096, 256)), None, None, model)
    far = time(loads([2048 * i for i in range(16)]), None, None, model)
    hits, misses = near.banks[0].sum(axis=0)
    assert (hits, misses) == (16 * 16 - 8, 8)
    assert far.banks[0].sum(axis=0)[1] >= 16
    assert far.cycles > near.cycles
    assert time(loads([0]), None, None, IDEAL).banks.size == 0


def test_the_demo_chips_banks_come_from_the_table():
    chip = demo_chip()
    model = memory_model_of(chip, DEMO, "banks")
    assert (model.banks, model.row_bytes) == (16, 4 * 2048)  # four x16 channels of LPDDR5 side by side
    rcd = table("memory_timing").fact("lpddr5x_trcd_s").known
    assert model.activate_cycles == round(rcd * chip.clock_hz)
    assert model.latency_cycles + model.activate_cycles == memory_model_of(chip, DEMO).latency_cycles
    assert memory_model_of(chip, DEMO, "ideal") == IDEAL


def test_what_is_not_known_or_wrong_is_refused():
    hbm3 = next(
        c for n in ("nvidia_h100_sxm", "nvidia_h100_sxm5", "nvidia_gh200", "amd_mi300x") if (c := _chip(n)) and c.dram.standard == "hbm3"
    )
    with pytest.raises(
        UnsupportedError, match=r"row timing of hbm3 is not known \(known: ddr4, ddr5, gddr6, hbm2, lpddr5x\); use --memory latency"
    ):
        memory_model_of(hbm3, Tile(16, 16, 1024, 4096, 8192, 65536, 16384, 8192, 1 << 30, 64), "banks")
    with pytest.raises(InputError, match="--memory fast: not one of ideal, latency, banks"):
        memory_model_of(demo_chip(), DEMO, "fast")
    with pytest.raises(InputError, match="rows of 100 bytes whole multiples of 256"):
        MemoryModel(banks=4, row_bytes=100)


def _chip(name):
    try:
        return load_chip(name)
    except InputError:
        return None
