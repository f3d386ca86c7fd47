"""Cycles per instruction: the timing column of the ISA table, evaluated for resolved operands and a tile."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from fabless.program.isa import BY_MNEMONIC, FORMAT_BITS, LATENCY, Instruction

if TYPE_CHECKING:
    from collections.abc import Callable

    from fabless.program.tile import Tile


#: Beats of a link that are sent and not yet received, at most: the queue at its receiver, for which the sender holds credits.
LINK_QUEUE_BEATS = 32


def ceil(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


def beats(address: int, n_bytes: int, width: int) -> int:
    """Return how many aligned pieces of `width` bytes the range [address, address + n_bytes) touches."""
    return (address + n_bytes - 1) // width - address // width + 1


def row_cycles(address: int, n_bytes: int, units: int, width: int) -> int:
    """Return the cycles of one row of a `load` or `store`: one a beat or buffer cycle, one more where several beats do not start at a boundary."""
    return max(ceil(n_bytes, width), units) + (address % width != 0 and beats(address, n_bytes, width) > 1)


def row_bytes(item: Instruction, tile: Tile) -> int:
    """Return the bytes of memory that one row of a `load` or `store` takes."""
    target = item.choice("target")
    elements = item["count"] * {"w": 32 * tile.rows, "ws": tile.rows, "a": 32}.get(target, 1)
    return ceil(elements * FORMAT_BITS[item.choice("format")], 8)


def row_units(item: Instruction, tile: Tile) -> int:
    """Return the buffer cycles of one row of a `load` or `store`: words one a cycle, vector elements `vector_lanes` a cycle."""
    return ceil(item["count"], tile.vector_lanes) if item.choice("target") == "v" else item["count"]


def cycles(item: Instruction, tile: Tile, address: int = 0) -> int:
    """Return how long the instruction keeps its unit busy; `address` is the resolved memory address of a `load` or `store`.

    Memory is taken as always ready: the cycle simulator adds what it makes a unit wait.
    """
    values: dict[str, Any] = dict(zip((f.name for f in item.spec.fields), item.values, strict=True))
    values |= {"R": tile.rows, "L": tile.vector_lanes, "B": tile.memory_bytes_per_cycle, "N": tile.link_bytes_per_cycle}
    if item.mnemonic in {"load", "store"}:
        values |= {"address": address, "row_bytes": row_bytes(item, tile), "units": row_units(item, tile)}
    return int(_formula(item.mnemonic)(values))


@cache
def _formula(mnemonic: str) -> Callable[[dict[str, Any]], int]:
    code = compile(BY_MNEMONIC[mnemonic].cycles, f"<cycles of {mnemonic}>", "eval")

    def evaluate(values: dict[str, Any]) -> int:
        def transfer(address: int, row: int, stride: int, rows: int, units: int) -> int:
            return sum(row_cycles(address + i * stride, row, units, values["B"]) for i in range(rows))

        names = {"__builtins__": {}, "max": max, "min": min, "ceil": ceil, "transfer": transfer, **LATENCY}
        return int(eval(code, names, values))  # the text is the ISA table's own column

    return evaluate
