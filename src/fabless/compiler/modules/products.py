"""Matrix products of a module: rows quantised in blocks of 32 times packed weights, or times rows of another tensor that are packed on the way.

A product is cut into columns of n weight words and, where a column does not fit a place of the weight buffer, into parts along k, in ascending order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.compiler.modules.copies import gathered
from fabless.compiler.modules.places import GRANULE, Rows, addresses, as_rows, nest
from fabless.compiler.pack import write_matrix
from fabless.compiler.partition import BLOCK, ceil, up
from fabless.compiler.tiles import Matrix, choose
from fabless.core.errors import InfeasibleError
from fabless.model.block_weights import block_matrix

if TYPE_CHECKING:
    from fabless.compiler.modules.flow import Flow
    from fabless.compiler.modules.places import Addresses

_MOST = 256
_FORMATS = ("int8", "fp16")


@dataclass(frozen=True, slots=True)
class Factors:
    """Hold where the tiled second operand lies: its matrix and its address in bytes."""

    matrix: Matrix
    address: int

    @property
    def width(self) -> int:
        """Return the outputs of all columns: the elements of a result's row."""
        return self.matrix.n_tiles * self.matrix.outputs


def tiling(flow: Flow, name: str, n: int, k: int, at_once: int, *, whole: bool, formats: tuple[str, str] = _FORMATS) -> Matrix:
    """Return how a matrix of n outputs and k inputs is cut for pieces of `at_once` rows; `whole`: columns are not cut along k."""
    tile = flow.tile
    granule = max(1, tile.vector_align // tile.rows)
    slot, blocks = tile.weight_words // 2, ceil(k, BLOCK)
    if whole and granule * blocks > slot:
        raise InfeasibleError(
            f"{name}: {k:,} products a sum take {granule * blocks:,} weight words, a place of the weight buffer has {slot:,}; use a tile with a larger one"
        )
    words = up(ceil(n, tile.rows), granule)
    column = min(tile.accumulator_words // 2 // at_once, slot // blocks if whole else slot)
    return choose(name, words, blocks, tile, slot_words=slot, column_words=column, granule=granule, exact=False, formats=formats)


def rows_at_once(flow: Flow, name: str, m: int, n: int, k: int) -> int:
    """Return how many rows a piece has: what vector, activation and accumulator buffers hold of them; raises `InfeasibleError` for rows too long."""
    tile, places = flow.tile, flow.places
    pitch, blocks = up(k, places.unit), ceil(k, BLOCK)
    granule = max(1, tile.vector_align // tile.rows)
    width = granule * tile.rows
    bias = up(up(n, places.unit) + _MOST, places.unit)
    free = flow.vector_elements - min(bias, flow.vector_elements // 4)
    most = min(_MOST, m, free // (pitch + 2 * width), tile.activation_words // blocks, tile.accumulator_words // (2 * granule))
    if most < 1:
        raise InfeasibleError(
            f"{name}: rows of {k:,} elements do not fit the tile ({flow.vector_elements:,} vector elements, {tile.activation_words:,} activation words); "
            "use a tile with larger buffers"
        )
    return most


def packed(flow: Flow, name: str, weight: np.ndarray, m: int) -> tuple[Factors, np.ndarray, int]:
    """Return a constant's factors, its bytes, and the rows of a piece that it is tiled for."""
    n, k = weight.shape
    at_once = rows_at_once(flow, name, m, n, k)
    matrix = tiling(flow, name, n, k, at_once, whole=False)
    at_once = min(at_once, _fitting(flow, matrix, k))
    image = np.zeros(matrix.bytes, np.uint8)
    rows = np.concatenate([np.arange(n), np.full(matrix.n_tiles * matrix.outputs - n, -1)])
    write_matrix(matrix, [block_matrix(weight)], rows, None, out=image, format="int8_block32")
    return Factors(matrix, flow.places.take(f"{name}.weight", matrix.bytes, "weights")), image, at_once


def _fitting(flow: Flow, matrix: Matrix, k: int) -> int:
    """Return the rows whose inputs, two columns of outputs and one column of bias fit the vector buffer."""
    pitch = up(k, flow.places.unit)
    free = flow.vector_elements - matrix.outputs
    rows = free // (pitch + 2 * matrix.outputs)
    if rows < 1:
        raise InfeasibleError(
            f"{matrix.name}: a row of {k:,} elements does not fit {flow.vector_elements:,} vector elements; use a larger tile"
        )
    return rows


def product(flow: Flow, name: str, x: Rows, factors: Factors, at_once: int, bias: Rows | None, n: int) -> Rows:
    """Emit x times a packed constant, plus the bias; returns the result's rows of n elements."""
    out = flow.places.rows(name, x.m, n, "workspace", pitch=factors.width)
    with flow.operation(name, "in", "act", "w", "c", "out", *(["bias"] if bias is not None else [])):
        for register in ("x", "xo"):
            flow.e.set(register)
        _pieces(flow, x, factors, out, bias, at_once)
        flow.e.release("x", "xo")
    return out


def _pieces(flow: Flow, x: Rows, factors: Factors, out: Rows, bias: Rows | None, at_once: int) -> None:
    """Emit all rows, piece by piece; registers x and xo hold how far the piece lies behind the first row and result."""
    whole, rest = divmod(x.m, at_once)
    for times, rows in ((whole, at_once), (1, rest)):
        if times and rows:
            with flow.e.loop(times):
                _piece(flow, x, rows, factors, out, bias, at_once)
                flow.e.add("x", 4 * x.stride * rows)
                flow.e.add("xo", 4 * out.stride * rows)


def _piece(flow: Flow, x: Rows, rows: int, factors: Factors, out: Rows, bias: Rows | None, at_once: int) -> None:
    """Emit one piece of rows times all columns."""
    k = x.n
    e, m = flow.e, factors.matrix
    pitch, blocks = up(k, flow.places.unit), ceil(k, BLOCK)
    with flow.fill("in"):
        e("load", target="v", format="fp32", count=pitch, rows=rows, stride=4 * x.stride, dst=0, address=4 * x.base, address_reg=e.x("x"))
    with flow.empty("in"), flow.fill("act"):
        e("quant", rows=rows, len=k, a=0, a_stride=pitch // BLOCK, dst=0, dst_stride=blocks)
    e.wait("mxu", "act_ready")
    e.set("wp", factors.address)
    e.set("xc", plus="xo")
    if bias is not None:
        e.set("xb", 4 * bias.base)
    with e.loop(m.n_tiles):
        _column(flow, rows, factors, out, bias, first=pitch * at_once, place=at_once * m.outputs)
        e.add("xc", 4 * m.outputs)
        if bias is not None:
            e.add("xb", 4 * m.outputs)
    e.signal("mxu", "act_free")
    e.release("wp", "xc", *(["xb"] if bias is not None else []))


def _column(flow: Flow, rows: int, factors: Factors, out: Rows, bias: Rows | None, *, first: int, place: int) -> None:
    """Emit one column: its parts of weights, the product, the bias, the store.

    `first`: the vector buffer's first element behind the inputs; `place`: elements from one result to the next.
    """
    e, m, tile = flow.e, factors.matrix, flow.tile
    slot, blocks = tile.weight_words // 2, m.blocks
    align = tile.vector_align
    bias_at = up(first, align)
    result = bias_at + (up(m.outputs, align) if bias is not None else 0)
    done = 0
    for part, k in enumerate(m.parts):
        with flow.fill("w"):
            last = part == len(m.parts) - 1
            if bias is not None and part == 0:
                e.wait("load", "bias_free")
                e("load", target="v", format="fp32", count=m.outputs, dst=bias_at, address=0, address_reg=e.x("xb"))
            e("load", target="w", format=m.elements, count=k * m.n, dst=0, dst_reg=e.x("w_at"), address=0, address_reg=e.x("wp"))
            e.add("wp", m.element_bytes(part))
            e("load", target="ws", format=m.scales, count=k * m.n, dst=0, dst_reg=e.x("w_at"), address=0, address_reg=e.x("wp"))
            e.add("wp", m.part_bytes(part) - m.element_bytes(part))
        if bias is not None and part == 0:
            e.signal("load", "bias_ready")
        if part == 0:
            e.wait("mxu", "c_free")
        with flow.empty("w"):
            e(
                "gemm",
                m=rows,
                n=m.n,
                k=k,
                w=0,
                w_reg=e.x("w_at"),
                a=done,
                a_stride=blocks,
                c=0,
                c_reg=e.x("c_at"),
                c_stride=m.n,
                clear=int(part == 0),
            )
        if last:
            e.signal("mxu", "c_ready")
        flow.turn("w", slot)
        done += k
    source: dict[str, Any] = {"a_space": "c", "a": 0, "a_reg": e.x("ca"), "a_stride": m.outputs // BLOCK}
    to: dict[str, Any] = {"rows": rows, "len": m.outputs, "dst": result, "dst_reg": e.x("out_at"), "dst_stride": m.outputs // BLOCK}
    with flow.empty("c"), flow.fill("out"):
        e.set("ca", of="c_at", times=tile.rows)
        source["a_reg"] = e.x("ca")
        if bias is None:
            e("vec", pre="copy", **source, **to)
        else:
            e.wait("vpu", "bias_ready")
            e("vec", pre="add", **source, **to, b_kind="vector", b=bias_at, b_stride=0)
            e.signal("vpu", "bias_free")
    with flow.empty("out"):
        e("store", target="v", format="fp32", count=m.outputs, rows=rows, stride=4 * out.stride, src=result, src_reg=e.x("out_at"),
          address=4 * out.base, address_reg=e.x("xc"))  # fmt: skip
    flow.turn("c", tile.accumulator_words // 2)
    flow.turn("out", place)


# ---------------------------------------------------------------- two computed tensors


def matmul(flow: Flow, name: str, a: Addresses, b: Addresses) -> Addresses:
    """Emit a `[..., m, k]` times b `[..., k, n]`, both computed; returns where the result `[..., m, n]` lies.

    Rows of b's transpose are quantised and packed in memory as weights are, one matrix of the batch after the other.
    """
    shape = (*a.shape[:-1], b.shape[-1])
    left, right = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]).swapaxes(1, 2)
    (n_batch, m, k), n = left.shape, right.shape[1]
    at_once = rows_at_once(flow, name, m, n, k)
    matrix = tiling(flow, name, n, k, at_once, whole=True, formats=("int8", "bf16"))
    at_once = min(at_once, _fitting(flow, matrix, k))
    factors = Factors(matrix, flow.places.take(f"{name}.packed", matrix.bytes, "cache"))
    out = flow.places.rows(name, n_batch * m, n, "workspace", pitch=factors.width)
    results = addresses(out, (n_batch, m, n))
    left, right = (_walkable(flow, f"{name}.{what}", t) for what, t in (("left", left), ("right", right)))
    levels = nest(left[:, 0, 0], right[:, 0, 0], results[:, 0, 0])
    if levels is None or len(levels) > _DEEPEST_BATCH:
        left, right = (_gathered(flow, f"{name}.{what}", t) for what, t in (("left", left), ("right", right)))
        levels = nest(left[:, 0, 0], right[:, 0, 0], results[:, 0, 0])
    assert levels is not None
    first_left, first_right = as_rows(left[0]), as_rows(right[0])
    assert first_left is not None
    assert first_right is not None
    with flow.operation(name, "in", "act", "w", "c", "out", "pack"):
        for register in ("ba", "bb", "bo"):
            flow.e.set(register)
        with flow.walk(levels, "ba", "bb", "bo"):
            _pack(flow, first_right, factors)
            flow.barrier()
            flow.e.set("x", plus="ba")
            flow.e.set("xo", plus="bo")
            _pieces(flow, first_left, factors, out, None, at_once)
            flow.barrier()
        flow.e.release("x", "xo", "ba", "bb", "bo")
    return results.reshape(shape)


_DEEPEST_BATCH = 2


def _walkable(flow: Flow, name: str, t: Addresses) -> Addresses:
    """Return the matrices as they lie where each one's rows can be loaded and all are alike, else copies."""
    rows = as_rows(t[0])
    offsets = t[:, 0, 0] - t[0, 0, 0]
    alike = not (offsets % GRANULE).any() and (t == t[0] + offsets[:, None, None]).all()
    if rows is not None and alike and all(flow.places.loadable(Rows(rows.base + int(o), rows.stride, rows.m, rows.n)) for o in offsets):
        return t
    return _gathered(flow, name, t)


def _gathered(flow: Flow, name: str, t: Addresses) -> Addresses:
    return addresses(gathered(flow, name, t, t.shape[0] * t.shape[1], t.shape[2]), t.shape)


def _pack(flow: Flow, right: Rows, factors: Factors) -> None:
    """Emit the quantisation of rows and their way to where a product loads them as weights; register bb holds how far the batch has come."""
    e, tile, m = flow.e, flow.tile, factors.matrix
    pitch, blocks = up(right.n, flow.places.unit), m.blocks
    most = min(_MOST, flow.vector_elements // pitch, tile.activation_words // blocks)
    for column in range(ceil(right.m, m.outputs)):
        at = factors.address + column * m.column_bytes
        for first in range(0, min(m.outputs, right.m - column * m.outputs), most):
            rows = min(most, m.outputs - first, right.m - column * m.outputs - first)
            source = right.base + (column * m.outputs + first) * right.stride
            with flow.fill("in"):
                e(
                    "load",
                    target="v",
                    format="fp32",
                    count=pitch,
                    rows=rows,
                    stride=4 * right.stride,
                    dst=0,
                    address=4 * source,
                    address_reg=e.x("bb"),
                )
            with flow.empty("in"), flow.fill("pack"):
                _pack_quantise(flow, right.n, pitch, rows, blocks)
            with flow.empty("pack"):
                _pack_store(flow, m, rows, at + BLOCK * first, at + m.element_bytes(0) + 2 * first)


def _pack_quantise(flow: Flow, n: int, pitch: int, rows: int, blocks: int) -> None:
    """Quantise rows: a block of all rows after the other, or, where operands start at more than a block's length, a row after the other."""
    if flow.tile.vector_align > BLOCK:
        flow.e("quant", rows=rows, len=n, a=0, a_stride=pitch // BLOCK, dst=0, dst_stride=blocks)
        return
    for block in range(blocks):
        at = {"a": BLOCK * block, "dst": block * rows}
        flow.e("quant", rows=rows, len=min(BLOCK, n - BLOCK * block), a_stride=pitch // BLOCK, dst_stride=1, **at)


def _pack_store(flow: Flow, m: Matrix, rows: int, elements: int, scales: int) -> None:
    """Store what `_pack_quantise` left where a matrix has a block of all its outputs after the other."""
    e, blocks = flow.e, m.blocks
    by_row = flow.tile.vector_align > BLOCK
    if not by_row or blocks == 1:
        for block in range(blocks):
            row = block * m.outputs
            e("store", target="a", format="int8", count=rows, src=block * rows, address=elements + BLOCK * row)
            e("store", target="as", format="bf16", count=1, rows=rows, stride=2, src=block * rows, address=scales + 2 * row)
        return
    for register in ("pw", "pe", "ps"):
        e.set(register)
    with e.loop(rows):
        e("store", target="a", format="int8", count=1, rows=blocks, stride=BLOCK * m.outputs, src=0, src_reg=e.x("pw"), address=elements,
          address_reg=e.x("pe"))  # fmt: skip
        e("store", target="as", format="bf16", count=1, rows=blocks, stride=2 * m.outputs, src=0, src_reg=e.x("pw"), address=scales,
          address_reg=e.x("ps"))  # fmt: skip
        e.add("pw", blocks)
        e.add("pe", BLOCK)
        e.add("ps", 2)
    e.release("pw", "pe", "ps")
