"""The estimate of one launch, made for the tile that a program runs on: what its simulated cycles may approach and never pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabless.chip.chip import Chip, Core, Dram, Link, Mxu, Sram
from fabless.model.lower import lower
from fabless.model.step import Recipe, Step
from fabless.number.formats import BF16, INT8, Scaled, format_named
from fabless.program.tile import BLOCK
from fabless.sim.calibration import CONTRACT
from fabless.sim.roofline import estimate
from fabless.sim.tile_times import WORD_BYTES

if TYPE_CHECKING:
    from fabless.model.model import Model
    from fabless.program.tile import Tile
    from fabless.sim.dram import MemoryModel
    from fabless.sim.trace import Trace


#: Element formats that rows multiply at full rate; bf16 stands for routers, which graphs keep in it and programs quantise to int8 blocks.
_MULTIPLIED = ("int8", "int4", "fp4_e2m1", "bf16")


def chip_of(tile: Tile, memory: MemoryModel, clock_hz: float = 1e9) -> Chip:
    """Return the one-core chip that a tile and the memory behind it are."""
    rate = memory.beats / memory.cycles
    return Chip(
        name="tile", family="fabless", process="", clock_hz=clock_hz, n_cores=1,
        core=Core(
            Mxu(tile.rows, BLOCK, tuple((name, 1.0) for name in _MULTIPLIED)), tile.vector_lanes,
            Sram(2.0 * tile.weight_words * tile.rows * WORD_BYTES), Sram(4.0 * tile.accumulator_elements),
        ),
        dram=Dram("lpddr5x", 1, float(tile.memory_bytes), tile.memory_bytes_per_cycle * rate * clock_hz,
                  (memory.latency_cycles + memory.activate_cycles - 1) / clock_hz),
        link=Link("none", 0, 0.0, 0.0, 1),
    )  # fmt: skip


def bound(model: Model, tile: Tile, memory: MemoryModel, *, batch: int, tokens: int, position: int, weights: str, head: str) -> Trace:
    """Return the estimate of one launch: `tokens` new tokens of each of `batch` sequences behind `position` cached ones.

    Formats are those that programs compute in: weights as named, activations, queries, keys and powers in int8 blocks, one scale a value of the cache.
    """
    activations = Scaled("int8_bf16", INT8, BF16, BLOCK)
    recipe = Recipe(
        weights=format_named(weights), activations=activations, kv_cache=activations, attention=activations, residual=BF16,
        head=format_named(head), embedding=format_named(head),
    )  # fmt: skip
    step = Step.mixed((batch, tokens, position))
    return estimate(lower(model, recipe, step), chip_of(tile, memory), calibration=CONTRACT)
