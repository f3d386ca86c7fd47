"""The blocks whose mutants are drawn: Verilog, vectors, and what their inputs may be."""

from __future__ import annotations

import numpy as np
import row_vectors
from equivalence import Contract, canonical
from mutation import Subject, Vectors, columns


def _row_verilog() -> str:
    from fabless.rtl.block import Shared
    from fabless.rtl.emit import verilog_of
    from fabless.rtl.row import Row

    return verilog_of(Row(Shared(row_vectors.SMALL)))


def _row(cycles: int, seed: int) -> Vectors:
    drawn = row_vectors.Vectors(cycles, seed)
    shown = drawn.expected()
    known = np.array([code is not None for code in shown])
    return Vectors(
        {name: columns(drawn.rows[name], width) for name, width in drawn.inputs.items()},
        {"vector_data": (known, columns([code or 0 for code in shown], 32))},
    )


ROW = Subject(
    "row",
    _row_verilog,
    "fl_row",
    _row,
    Contract(
        assumed={"load_scale": (19, canonical), "activation_scale": (16, canonical)},
        kept={
            "weight_scales.mem.RD0": ("weight_scales.mem.WR0", 19, canonical),
            "accumulators.mem.RD0": ("accumulators.mem.WR0", 32, canonical),
        },
        when={"weights.mem.RD0": "step", "weight_scales.mem.RD0": "step", "accumulators.mem.RD0": "acc_read"},
    ),
)
