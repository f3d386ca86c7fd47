"""Explain: how a compiled model is cut, in bytes and in cycles of mesh and memory port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabless.compiler.driver import Compiled


def explain(compiled: Compiled) -> list[dict[str, Any]]:
    """Return per matrix of a layer, and the head: tiling, bytes, and cycles of mesh and memory port for one row."""
    layout, tile = compiled.layouts[0], compiled.tile
    from fabless.compiler.tiles import cycles as mesh_cycles

    out = []
    for name, m in layout.matrices.items():
        pieces = " + ".join(map(str, m.parts))
        mesh, port = mesh_cycles(m.n, m.n_tiles, m.depths, 1), -(-m.bytes // tile.memory_bytes_per_cycle)
        out.append({
            "op": name, "times": 1 if name == "head" else layout.decoder.n_layers, "tiles": f"{m.n_tiles} x ({m.outputs} outputs, k {pieces} blocks)",
            "bytes": m.bytes, "mesh_cycles": mesh, "memory_cycles": port, "bound": "mesh" if mesh > port else "memory",
        })  # fmt: skip
    return out
