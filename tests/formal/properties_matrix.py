"""What the matrix unit promises beside arithmetic: when its rows read and write accumulators, and which."""

from __future__ import annotations

from amaranth.hdl import Assume, Cat, Cover
from proof import Mutant, Proof, begun, earlier, opened, stub

from fabless.program.tile import TINY
from fabless.rtl.block import Shared
from fabless.rtl.row import Row


def matrix(rtl):
    """Any sequence of gemm instructions; the rows themselves are free."""
    m = begun()
    unit = rtl.mxu.Mxu(rtl.block.Shared(TINY))
    m.submodules.unit, inside = opened(unit)
    s = inside.elaborate
    row = s.row.wires
    m.d.comb += [Assume(~unit.go | unit.idle), Cover(row["acc_write"] & row["acc_read"])]
    return (
        m,
        [unit.go, unit.word, unit.extra],
        {
            "rows read accumulators when the term is there": row["acc_read"] == earlier(m, s.step, Row.READ_AT),
            "rows write accumulators when the addition is done": row["acc_write"] == earlier(m, s.step, Row.WRITE_AT),
            "a row's clock ticks while a step is in it": s.working
            | ~Cat(s.step, *(earlier(m, s.step, n) for n in range(1, Row.WRITE_AT + 1))).any(),
            "rows write where they read": ~row["acc_write"]
            | (row["acc_write_address"] == earlier(m, row["acc_address"], Row.WRITE_AT - Row.READ_AT)),
        },
    )


def rows() -> str:
    """Return a stub of the row."""
    return stub(Row(Shared(TINY)))


PROOFS = (
    Proof(
        "matrix unit", matrix, depth=16, k=13, stubs=rows(),
        mutants=(
            Mutant("mxu", "acc_read=steps[Row.READ_AT - 1]", "acc_read=steps[Row.READ_AT - 2]", "rows read accumulators when the term is there"),
            Mutant("mxu", "acc_write=steps[Row.WRITE_AT - 1]", "acc_write=steps[Row.WRITE_AT - 2]", "rows write accumulators when the addition is done"),
            Mutant("mxu", "step | steps.any()", "step | steps[:-1].any()", "a row's clock ticks while a step is in it"),
            Mutant("mxu", "acc_write_address=addresses[Row.WRITE_AT - 1]", "acc_write_address=addresses[Row.WRITE_AT - 2]", "rows write where they read"),
        ),
    ),
)  # fmt: skip
