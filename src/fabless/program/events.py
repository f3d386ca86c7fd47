"""What an instruction moves and computes: counted once from its fields, for every consumer that asks for energy or traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabless.program.access import transfer_bytes
from fabless.program.isa import FUNCTIONS

if TYPE_CHECKING:
    from fabless.program.isa import Instruction
    from fabless.program.tile import Tile

#: What `events` counts, in order: multiply-accumulates, lane operations, then bytes at each level (buffers: read and written together).
KINDS = ("macs", "vector_ops", "dram_read", "dram_written", "weights", "activations", "accumulators", "vectors", "link")
MACS, VECTOR_OPS, DRAM_READ, DRAM_WRITTEN, WEIGHTS, ACTIVATIONS, ACCUMULATORS, VECTORS, LINK = range(len(KINDS))
#: Bytes of a block of 32 int8 with its scale, and of a binary32.
_BLOCK_BYTES, _WORD_BYTES = 34, 4
_BUFFER = {"w": WEIGHTS, "ws": WEIGHTS, "a": ACTIVATIONS, "as": ACTIVATIONS, "ab": ACTIVATIONS, "v": VECTORS}


def events(item: Instruction, tile: Tile) -> tuple[int, ...]:
    """Return the events of one execution of an instruction, by `KINDS`.

    A gemm reads each weight word once for its m rows, an activation word for every (row, kb, nt), and reads and writes an accumulator for each of
    its R results. Transfers count the bytes that they ask for, not the whole beats of the port. A vector instruction reads two operands and writes one.
    """
    out = [0] * len(KINDS)
    match item.mnemonic:
        case "gemm":
            m, n, k, r = item["m"], item["n"], item["k"], tile.rows
            out[MACS] = m * n * k * r * (16 if item["split"] else 32)
            out[WEIGHTS], out[ACTIVATIONS], out[ACCUMULATORS] = (
                k * n * r * _BLOCK_BYTES,
                m * n * k * _BLOCK_BYTES,
                2 * _WORD_BYTES * m * n * k * r,
            )
        case "load" | "store":
            moved = item["rows"] * transfer_bytes(item, tile)  # type: ignore[arg-type]  # reads the same fields of an instruction as of an issued one
            out[DRAM_READ if item.mnemonic == "load" else DRAM_WRITTEN] = out[_BUFFER[item.choice("target")]] = moved
        case "vec" | "quant" | "mask" | "rotate":
            elements = item["rows"] * item["len"]
            steps = 1 + (item.mnemonic in {"quant", "rotate"}) + (item.mnemonic == "vec" and item["reduce"] > 0)
            if item.mnemonic in {"vec", "quant"} and item.choice("fn") != FUNCTIONS[0]:
                steps += 4  # two table products and sums of the quadratic
            out[VECTOR_OPS], out[VECTORS] = steps * elements, 3 * _WORD_BYTES * elements
        case "send" | "recv":
            moved = item["count"] * (_BLOCK_BYTES if item["space"] else _WORD_BYTES)
            out[ACTIVATIONS if item["space"] else VECTORS] = moved
            out[LINK] = moved if item.mnemonic == "send" else 0
    return tuple(out)
