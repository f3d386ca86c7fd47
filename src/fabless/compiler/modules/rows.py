"""Row operations: pieces of rows through the vector buffer, in by `load`, out by `store`, with a kernel of `kernels` between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabless.compiler.modules.kernels import Kernel, Piece
from fabless.compiler.modules.places import GRANULE, Rows
from fabless.compiler.partition import up
from fabless.core.errors import InfeasibleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabless.compiler.modules.flow import Flow
    from fabless.model.module import Node

_MOST = 256
_LONGEST = 16_352  # elements of a row that a stride field reaches


def row_operation(
    flow: Flow, node: Node, kernel: Kernel, inputs: Sequence[Rows], vectors: Sequence[Rows], *, narrow: bool = False, causal_rows: int = 0
) -> Rows:
    """Emit a kernel over all rows of the inputs; returns the rows of the result: as the inputs, or (`narrow`) one row of an element for each.

    `causal_rows`: rows after which a causal mask begins anew, 0 where there is none. Raises `InfeasibleError` for rows longer than the vector buffer.
    """
    m, n = inputs[0].m, inputs[0].n
    pitch = up(n, flow.places.unit)
    most = _rows_at_once(flow, node, n, pitch, len(inputs), len(vectors), narrow=narrow)
    if causal_rows:
        most = max(d for d in range(1, min(most, causal_rows) + 1) if causal_rows % d == 0)
    at_once = min(m, most)
    if narrow:
        at_once = m if m <= at_once else max(GRANULE, at_once // GRANULE * GRANULE)
    out = flow.places.rows(node.name, 1 if narrow else m, m if narrow else n, "cache" if narrow else "workspace")
    with flow.operation(node.name, "in", "out"):
        _emit(flow, node, kernel, inputs, vectors, out, at_once=at_once, narrow=narrow, causal_rows=causal_rows)
    return out


def _rows_at_once(flow: Flow, node: Node, n: int, pitch: int, n_inputs: int, n_vectors: int, *, narrow: bool) -> int:
    align = flow.tile.vector_align
    free = flow.vector_elements - n_vectors * pitch - 5 * up(_MOST, align)
    most = min(_MOST, free // (pitch * (n_inputs + 2 + (0 if narrow else 2)))) if pitch <= _LONGEST else 0
    if most < 1:
        raise InfeasibleError(
            f"{node.name}: rows of {n:,} elements do not fit the vector buffer of {flow.tile.vector_elements:,}; use a tile with a larger one, or shorter rows"
        )
    return most


def _emit(
    flow: Flow, node: Node, kernel: Kernel, inputs: Sequence[Rows], vectors: Sequence[Rows], out: Rows, *, at_once: int, narrow: bool,
    causal_rows: int,
) -> None:  # fmt: skip
    e, align = flow.e, flow.tile.vector_align
    m, n = inputs[0].m, inputs[0].n
    pitch = up(n, flow.places.unit)
    place = at_once * pitch
    at = 0

    def take(elements: int) -> int:
        nonlocal at
        start, at = at, at + up(elements, align)
        return start

    starts = [take(pitch) for _ in vectors]
    areas = [take(place) for _ in inputs]
    temporaries = (0, 0) if narrow else (take(place), take(place))
    columns = (take(_MOST), take(_MOST), take(_MOST))
    result_place = up(at_once, align) if narrow else place
    result = take(2 * result_place)
    if vectors:  # the first thing that is loaded: the vectors, then the first rows share one hand-over
        for start, vector in zip(starts, vectors, strict=True):
            e("load", target="v", format="fp32", count=pitch, dst=start, address=4 * vector.base)
    registers = [f"x{i}" for i in range(len(inputs))] + ["xo"]
    for register in registers:
        e.set(register)
    if causal_rows:
        e.set("low", -(1 << 30))
    whole, rest = divmod(m, at_once)
    blocks = causal_rows // at_once if causal_rows else whole
    if causal_rows:
        assert rest == 0

    def piece(rows: int) -> None:
        with flow.fill("in"):
            for area, source, register in zip(areas, inputs, registers, strict=False):
                e("load", target="v", format="fp32", count=pitch, rows=rows, stride=4 * source.stride, dst=area, address=4 * source.base,
                  address_reg=e.x(register))  # fmt: skip
        with flow.empty("in"), flow.fill("out"):
            kernel(Piece(e, rows, n, pitch, tuple(areas), tuple(starts), temporaries, columns, result), node)
        common: dict[str, Any] = {"target": "v", "format": "fp32", "src": result, "src_reg": e.x("out_at"), "address": 4 * out.base}
        with flow.empty("out"):
            shape = {"count": rows} if narrow else {"count": pitch, "rows": rows, "stride": 4 * out.stride}
            e("store", **common, **shape, address_reg=e.x("xo"))
        flow.turn("out", result_place)
        for register, source in zip(registers, inputs, strict=False):
            e.add(register, 4 * source.stride * rows)
        e.add("xo", 4 * (rows if narrow else out.stride * rows))
        if causal_rows:
            e.add("high", rows)

    if causal_rows:
        with e.loop(m // causal_rows):
            e.set("high", 1)
            with e.loop(blocks):
                piece(at_once)
        e.release("low", "high")
    else:
        with e.loop(whole):
            piece(at_once)
        if rest:
            piece(rest)
    e.release(*registers)
