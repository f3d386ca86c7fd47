"""From a tile to Verilog: every shared block once, the memories it needs, then the top."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabless.program.tile import Tile
    from fabless.rtl.block import Block


def verilog_of(top: Block, *, gate: str = "") -> str:
    """Return the Verilog of a block and of everything that it places, leaves first; the same text for the same block. `gate`: another clock gate."""
    from amaranth.back import verilog

    os.environ.setdefault("AMARANTH_USE_YOSYS", "builtin")
    texts: dict[str, str] = {}
    pending: list[Block] = [top]
    while pending:
        block = pending.pop()
        texts[block.module] = verilog.convert(block, name=block.module, ports=block.ports, strip_internal_attrs=True, emit_src=False)
        pending = sorted((b for b in top.shared.blocks.values() if b.module not in texts), key=lambda b: b.module)
    return "\n".join([_cells("".join(texts.values()), gate), *reversed(texts.values())])


def _cells(text: str, gate: str) -> str:
    """Return the models of the memories and clock gates that a text instantiates."""
    from fabless.rtl.clock import GATE, GATE_VERILOG
    from fabless.rtl.memory import ram_verilog

    gates = [gate or GATE_VERILOG] if GATE in text else []
    return "\n".join([*gates, *(ram_verilog(int(w), int(r)) for w, r in sorted(set(re.findall(r"\bfl_ram_(\d+)w(\d+)r\b", text))))])


@cache
def tile_verilog(tile: Tile) -> str:
    """Return the Verilog of a tile: module `fl_tile` and what is below it.

    Raises `MissingToolError` without Amaranth, `UnsupportedError` for a tile that cannot be built.
    """
    from fabless.rtl.block import Shared
    from fabless.rtl.tile import TileTop

    return verilog_of(TileTop(Shared(tile)))
