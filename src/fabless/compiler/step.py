"""Emit one step of a decoder: token rows in, layers in a hardware loop, logits out.

Every queue runs ahead as far as its semaphores allow. A ring (two places used in turn) has a pair: `x_ready` from the producer, `x_free` from the
consumer, whose credits are given at the start and taken back before `halt` (f and s have one place each):

    w      pieces of weights                          load -> mxu
    page   pages of K and V                           load -> mxu
    norm   vectors of a layer                          load -> vpu
    token  rows of the token table                     load -> vpu
    vs     scales of V                                 load -> vpu
    c      output tiles of projections                 mxu -> vpu
    f, s   scores of the first span; of others         mxu -> vpu
    o      mixed values                                mxu -> vpu
    aw     softmax weights in int8                     vpu -> mxu
    out    logits                                      vpu -> store
    kv     new keys and values, then `kv_stored`       vpu -> store -> load
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from fabless.compiler.attention import attention, columns_needed
from fabless.compiler.mlp import dense, experts
from fabless.compiler.partition import BLOCK, ceil, up
from fabless.compiler.place import SCALED, Layout, Scratch, norm_slot
from fabless.program.isa import FORMAT_BITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fabless.compiler.emitter import Emitter
    from fabless.compiler.partition import Shape
    from fabless.program.program import Parameter

#: Binary32 constants that the vector unit takes as scalars, in the order in which they lie in memory and in V.
CONSTANTS = ("inverse_width", "epsilon", "query_scale", "minus_log2e", "one", "gelu_cubic", "gelu_linear", "inverse_head", "embedding_scale",
             "log2e", "limit", "minus_limit", "alpha", "table_scale", "head_scale")  # fmt: skip
#: Rows from which a norm is taken in two parts.
_ROWS_TO_PART = 16
_CREDITS = (
    ("mxu", "w_free", 0), ("mxu", "page_free", 0), ("vpu", "c_free", 2), ("vpu", "s_free", 1), ("vpu", "o_free", 2), ("vpu", "norm_free", 2),
    ("vpu", "vs_free", 2), ("vpu", "f_free", 1),
    ("vpu", "token_free", 2), ("store", "kv_free", 1), ("store", "out_free", 2), ("mxu", "aw_free", 2),
)  # fmt: skip
_TAKERS = {
    "w_free": "load", "page_free": "load", "c_free": "mxu", "s_free": "mxu", "f_free": "mxu", "o_free": "mxu", "norm_free": "load", "vs_free": "load",
    "token_free": "load",
    "kv_free": "vpu", "out_free": "vpu", "aw_free": "vpu",
}  # fmt: skip


def constant_values(layout: Layout, *, table_scale: float = 1.0, head_scale: float = 1.0) -> np.ndarray:
    """Return the constants as float32 `[32]`; the scales are those of the whole token table and head (NVFP4)."""
    d = layout.decoder
    linear = 2 * math.sqrt(2 / math.pi)
    values = (
        1 / d.d_model, d.norm_epsilon, np.float64(d.attention_scale) * math.log2(math.e), -math.log2(math.e), 1.0, linear * 0.044715, linear,
        1 / d.d_head, d.embedding_scale, math.log2(math.e), d.swiglu_limit, -d.swiglu_limit, d.swiglu_alpha, table_scale, head_scale,
    )  # fmt: skip
    out = np.zeros(BLOCK, np.float32)
    out[: len(values)] = np.array(values, np.float64).astype(np.float32)
    return out


@dataclass
class Step:
    """Hold what the emission of one program needs: layout, shape, places, parameters, the emitter, and the passes that are on."""

    layout: Layout
    shape: Shape
    places: Scratch
    parameters: dict[str, Parameter]
    e: Emitter
    fused: bool
    prefetch: bool = True

    def constant(self, name: str) -> dict[str, int | str]:
        """Return the operands that read a constant as one scalar for all rows."""
        return {"b_kind": "scalar", "b": self.places.v["constants"] + CONSTANTS.index(name), "b_stride": 0}

    @property
    def heads(self) -> int:
        """Return the KV heads that attention takes at once."""
        return self.layout.heads[self.shape]

    @property
    def queries(self) -> int:
        """Return the rows of scores of those heads: (KV head, query head of its group, token)."""
        return self.heads * self.layout.share.group * self.shape.tokens

    def at(self, name: str) -> int:
        """Return the first word of a parameter."""
        return self.parameters[name].index


def emit(step: Step) -> None:
    """Emit the whole program of one shape of launch."""
    e, layout = step.e, step.layout
    e.label("start")
    _begin(step)
    e.label("tokens")
    if layout.part.has_table:
        _tokens(step)
    else:
        _received(step)
    e.label("layers")
    e.set("layer", layout.addresses["layers"])
    e.set("kv", layout.addresses["cache"])
    if len(layout.kinds) > 1:
        e.set("index", layout.part.layers.start)
    with e.loop(len(layout.part.layers)):
        _layer(step)
        e.add("layer", layout.layer_bytes)
        e.add("kv", (layout.n_pages + 1) * layout.pages.bytes)
        if len(layout.kinds) > 1:
            e.add("index", 1)
    if layout.has_head:
        e.label("final_norm")
        _head(step)
    else:
        e.label("sent")
        _sent(step)
    e.label("end")
    for _, name, count in _CREDITS:
        for _ in range(count or layout.slots):
            e.wait(_TAKERS[name], name)
    e("halt")


def _begin(step: Step) -> None:
    e, layout, v = step.e, step.layout, step.places.v
    for giver, name, count in _CREDITS:
        for _ in range(count or layout.slots):
            e.signal(giver, name)
    for register in ("w", "wl", "pw", "ct", "so", "ns", "vs", "aw"):
        e.set(register)
    zeros = layout.addresses["zeros"]
    e("load", target="v", format="fp32", count=BLOCK, dst=v["constants"], address=layout.addresses["constants"])
    e("load", target="w", format="int8", count=layout.share.value // layout.tile.rows, dst=layout.zeros_at, address=zeros)
    e("load", target="a", format="int8", count=1, dst=step.places.a["zero"], address=zeros)
    e("load", target="as", format="bf16", count=1, dst=step.places.a["zero"], address=zeros)
    head, t = layout.share.head, step.shape.tokens
    positions = layout.context_tokens + max(s.tokens for s in layout.shapes)
    for kind in range(len(layout.kinds)):
        for s in range(step.shape.segments):
            e.param("t0", step.at("position") + s)
            e.set("t0", layout.addresses["rotary"] + kind * positions * head * 4, of="t0", times=head * 4)
            at = v["rotary"] + (kind * step.shape.rows + s * t) * head
            e("load", target="v", format="fp32", count=head, rows=t, dst=at, address_reg=e.x("t0"), stride=head * 4)


def _received(step: Step) -> None:
    """Take the residual stream from the stage of the pipeline before this one."""
    e, count = step.e, step.shape.rows * step.layout.share.width
    e.signal("load", "token_ready")  # constants and rotary tables are there
    e("recv", space="v", dst=step.places.v["x"], count=count)
    e.signal("net", "net_v")
    e.wait("vpu", "token_ready", "net_v")


def _sent(step: Step) -> None:
    """Give the residual stream to the next stage of the pipeline."""
    e, count = step.e, step.shape.rows * step.layout.share.width
    e.signal("vpu", "net_go")
    e.wait("net", "net_go")
    e("send", space="v", src=step.places.v["x"], count=count)


def _tokens(step: Step) -> None:
    """Write one row of the token table per token into x, dequantised."""
    e, layout, v = step.e, step.layout, step.places.v
    blocks, width = ceil(layout.decoder.d_model, BLOCK), layout.share.width
    x: dict[str, int | str] = {"dst": v["x"], "dst_reg": e.x("xo")}
    for register in ("i", "xo", "em", "es"):
        e.set(register)
    with e.loop(step.shape.rows):
        e.wait("load", "token_free")
        if layout.table in ("fp32", "bf16"):
            e.param("t0", step.at("token"), plus="i")
            e.set("t0", layout.addresses["table"], of="t0", times=layout.table_row_bytes)
            e("load", target="v", format=layout.table, count=width, address_reg=e.x("t0"), **x)
        else:
            (_shared_row if layout.table == "head" else _table_row)(step, blocks)
            if width > blocks * BLOCK:
                pad = x | {"dst": v["x"] + blocks * BLOCK}
                e("load", target="v", format="fp32", count=width - blocks * BLOCK, address=layout.addresses["zeros"], **pad)
        e.signal("load", "token_ready")
        e.wait("vpu", "token_ready")
        if layout.table == "bf16":
            e("vec", pre="mul", len=width, a=v["x"], a_reg=e.x("xo"), **x, **step.constant("table_scale"))
        elif layout.table != "fp32":
            e("vec", pre="mul", rows=blocks, len=BLOCK, a=v["token"], a_reg=e.x("em"), a_stride=1, b_kind="scalar", b=v["token_scales"],
              b_reg=e.x("es"), b_stride=1, dst_stride=1, **x)  # fmt: skip
        e.signal("vpu", "token_free")
        if layout.decoder.embedding_scale != 1:
            e("vec", pre="mul", len=blocks * BLOCK, a=v["x"], a_reg=e.x("xo"), **x, **step.constant("embedding_scale"))
        e.toggle("em", blocks * BLOCK)
        e.toggle("es", up(blocks, BLOCK))
        e.add("i", 1)
        e.add("xo", width)
    e.release("i", "xo", "em", "es")


def _token_loads(step: Step, first: int, blocks: int, *, elements: int, scales: int, apart: tuple[int, int]) -> None:
    """Load one row's blocks: elements at t0 + elements, scales at t1 + scales, `apart` bytes from block to block."""
    e, v = step.e, step.places.v
    e("load", target="v", format="int8", count=BLOCK, rows=blocks, dst=v["token"] + first * BLOCK, dst_reg=e.x("em"), address=elements,
      address_reg=e.x("t0"), stride=apart[0])  # fmt: skip
    e("load", target="v", format=step.layout.table_scales, count=1, rows=blocks, dst=v["token_scales"] + first, dst_reg=e.x("es"), address=scales,
      address_reg=e.x("t1"), stride=apart[1])  # fmt: skip


def _shared_row(step: Step, blocks: int) -> None:
    """Read a row of the head: column by column, blocks lie a tile's outputs apart."""
    e, head = step.e, step.layout.matrices["head"]
    e.param("t2", step.at("token_column"), plus="i")
    e.set("t2", step.layout.addresses["head"] + 4 * _padded(step.layout.share.width), of="t2", times=head.column_bytes)
    e.param("t1", step.at("token_row"), plus="i")
    e.set("t0", of="t1", times=32, plus="t2")
    scale_bytes = FORMAT_BITS[head.scales] // 8
    e.set("t1", of="t1", times=scale_bytes, plus="t2")
    first = at = 0
    for part, k in enumerate(head.parts):
        _token_loads(
            step, first, k, elements=at, scales=at + head.element_bytes(part), apart=(head.outputs * 32, head.outputs * scale_bytes)
        )
        first, at = first + k, at + head.part_bytes(part)
    assert first == blocks


def _table_row(step: Step, blocks: int) -> None:
    e = step.e
    e.param("t0", step.at("token"), plus="i")
    e.set("t0", step.layout.addresses["table"], of="t0", times=step.layout.table_row_bytes)
    e.set("t1", of="t0", times=1)
    _token_loads(step, 0, blocks, elements=0, scales=blocks * 32, apart=(32, 2))


def _padded(elements: int) -> int:
    return up(elements, 8)


def feed(step: Step, name: str, *, length: int = 0, register: str = "layer", offset: int | None = None) -> None:
    """Load a vector of the layer (or of `register` + `offset`) into the ring `norm`, and wait for it; `used` frees it."""
    fetch(step, name, length=length, register=register, offset=offset)
    step.e.wait("vpu", "norm_ready")


def fetch(step: Step, name: str, *, length: int = 0, register: str = "layer", offset: int | None = None) -> None:
    """Load a vector as `feed` does; nobody waits for it yet."""
    e = step.e
    at, elements = (step.layout.vectors | step.layout.expert_vectors).get(name, (0, 0))
    e.wait("load", "norm_free")
    e("load", target="v", format="fp32", count=length or elements, dst=step.places.v["norm"], dst_reg=e.x("ns"),
      address=at if offset is None else offset, address_reg=e.x(register) if register else 0)  # fmt: skip
    e.signal("load", "norm_ready")


def used(step: Step) -> None:
    """Free the ring's vector."""
    step.e.signal("vpu", "norm_free")
    step.e.toggle("ns", norm_slot(step.layout))


def fed(step: Step) -> dict[str, int | str]:
    """Return the operands that read the vector last fed, the same for all rows."""
    return {"b_kind": "vector", "b": step.places.v["norm"], "b_reg": step.e.x("ns"), "b_stride": 0}


def tensor_scale(step: Step, tensor: str) -> dict[str, int | str]:
    """Return the operands that read, of the vector of scales last fed, the scale of a whole tensor (NVFP4)."""
    return {"b_kind": "scalar", "b": step.places.v["norm"] + SCALED.index(tensor), "b_reg": step.e.x("ns"), "b_stride": 0}


def inverse_root(step: Step, source: dict[str, int | str], *, rows: int, length: int, inverse: str) -> None:
    """Write rsqrt(mean of squares + epsilon) of each row of `source` to `t`."""
    e, t = step.e, step.places.v["t"]
    e("vec", pre="mul", b_kind="self", reduce="sum", rows=rows, len=length, dst=t, dst_stride=1, **source)
    e("vec", pre="mul", len=rows, a=t, dst=t, **step.constant(inverse))
    e("vec", pre="add", fn="rsqrt", len=rows, a=t, dst=t, **step.constant("epsilon"))


def _normed(step: Step, name: str, source: int, rows: int, *, then: str = "") -> int:
    """Norm `rows` of width D at `source`, and quantise them into A "normed"; the mesh may start, with matrix `then` part by part of the rows.

    The norm's weights, then the first pieces of matrix `then`, are asked for before the vector work; returns the columns of `then` that are.
    """
    e, v, d, width = step.e, step.places.v, step.layout.decoder.d_model, step.layout.share.width
    if then:
        fetch(step, name)
    else:
        fetch(step, name, length=width, register="", offset=step.layout.addresses["head"])
    loaded = ahead(step, then, name) if then else 0
    for i, (first, n) in enumerate(row_parts(rows) if then else [(0, rows)]):
        operand: dict[str, int | str] = {"a": source + first * width, "a_stride": width // BLOCK}
        y = v["y"] + first * width
        inverse_root(step, operand, rows=n, length=d, inverse="inverse_width")
        e("vec", pre="mul", b_kind="scalar", b=v["t"], b_stride=1, rows=n, len=d, dst=y, dst_stride=width // BLOCK, **operand)
        if i == 0:
            e.wait("vpu", "norm_ready")
        normed: dict[str, int | str] = {"a": y, "a_stride": width // BLOCK, "pre": "mul", **fed(step)}
        quantised(step, "normed", normed, rows=n, length=d, offset=first * ceil(d, BLOCK), dst_stride=ceil(d, BLOCK))
        e.signal("vpu", "a_ready")
    used(step)
    return loaded


def row_parts(rows: int) -> list[tuple[int, int]]:
    """Return (first, count) of the parts in which many rows are normed, so that the mesh starts with one while the other is normed."""
    half = ceil(rows, 2)
    return [(0, half), (half, rows - half)] if rows >= _ROWS_TO_PART else [(0, rows)]


def quantised(step: Step, target: str, operands: dict[str, int | str], *, rows: int, length: int, dst_stride: int, offset: int = 0) -> None:
    """Quantise; where fusion is off, the operation before it becomes an instruction of its own (in place: a is V and read no more)."""
    e = step.e
    if not step.fused and operands.get("pre", "copy") != "copy":
        place: dict[str, int | str] = {k: operands[k] for k in ("a", "a_reg", "a_stride") if k in operands}
        e("vec", rows=rows, len=length, **operands, **{k.replace("a", "dst", 1): x for k, x in place.items()})
        operands = place
    e("quant", rows=rows, len=length, dst=step.places.a[target] + offset, dst_stride=dst_stride, **operands)


def project(
    step: Step, name: str, source: str, rows: int, *, whole: bool = False, counter: str | None = None, ready: str | None = "a_ready",
    offset: str | None = None, loaded: int = 0, early: Sequence[int] = (),
    epilogue: Callable[[dict[str, int | str], int], None] | None = None,
) -> None:  # fmt: skip
    """Stream a matrix past `rows` of A `source` (+ register `offset`), once semaphore `ready` is given.

    `whole`: all columns stay in C; else `epilogue(operand of one column, outputs)` takes each. `loaded`: the columns that `ahead` has asked for.
    `early`: give `c_ready` after each of these numbers of columns, the last of which is all; who needs them waits for each.
    """
    e, m, c0 = step.e, step.layout.matrices[name], step.places.c["projection"]
    c_stride = m.n * m.n_tiles if whole else m.n
    parts = row_parts(rows) if source == "normed" and ready is not None and counter is None else [(0, rows)]
    if ready is not None and len(parts) == 1:
        e.wait("mxu", ready)
    if whole:
        e.set("cq")

    def multiply(part: int, first: int, n: int, k0: int) -> None:
        e("gemm", m=n, n=m.n, k=m.depths[part], split=int(m.split), w_reg=e.x("w"), a=step.places.a[source] + first * m.blocks + k0,
          a_reg=e.x(offset) if offset else 0, a_stride=m.blocks, c=c0 + first * c_stride, c_reg=e.x("cq" if whole else "ct"), c_stride=c_stride,
          clear=int(part == 0))  # fmt: skip

    def column(*, load: bool, following: bool, begins: bool = False) -> None:
        if not whole:
            e.wait("mxu", "c_free")
        k0 = 0
        for part, k in enumerate(m.parts):
            if load:
                _piece(step, name, part)
            e.wait("mxu", "w_ready")
            for first, n in parts if begins and part == 0 else [(0, rows)]:
                if begins and part == 0:
                    e.wait("mxu", "a_ready")
                multiply(part, first, n, k0)
            taken(step)
            if following:
                _piece(step, name, part)
            k0 += k
        if whole:
            e.add("cq", m.n)
        elif epilogue is not None:
            e.signal("mxu", "c_ready")
            e.set("t2", c0 * m.rows, of="ct", times=m.rows)
            e.wait("vpu", "c_ready")
            epilogue({"a_space": "c", "a_reg": e.x("t2"), "a_stride": m.outputs // BLOCK}, m.outputs)
            e.signal("vpu", "c_free")
            e.toggle("ct", _column_slot(step))

    if counter:
        with e.loop(counter=counter):
            column(load=True, following=False)
    else:
        left = m.n_tiles - loaded  # behind each of these columns, the one `loaded` further on is asked for
        parted = int(len(parts) > 1)  # the first column takes the rows as they are normed
        for first, last in pairwise(sorted({0, parted, left, *early, m.n_tiles})):
            with e.loop(last - first):
                column(load=not loaded, following=bool(loaded) and first < left, begins=bool(parted) and first == 0)
            if last in early:
                e.signal("mxu", "c_ready")
    if whole and not early:
        e.signal("mxu", "c_ready")
        e.wait("vpu", "c_ready")


def ahead(step: Step, name: str, op: str, most: int = 1 << 10) -> int:
    """Ask for the first columns of a matrix before the vector work of `op` that its product waits for.

    Returns how many columns: `most`, or what the places of the ring take.
    """
    m = step.layout.matrices[name]
    columns = min(most, m.n_tiles, step.layout.slots // len(m.parts)) if step.prefetch else 0
    if columns:
        step.e.label(f"{name}.ahead")
        with step.e.loop(columns):
            for part in range(len(m.parts)):
                _piece(step, name, part)
        step.e.label(f"{op}.work")
    return columns


def _column_slot(step: Step) -> int:
    """Return the accumulator words of one place of the ring of output tiles."""
    m, granule = step.layout.matrices, max(1, step.layout.tile.vector_align // step.layout.tile.rows)
    words = max(*(step.shape.rows * m[n].n for n in ("o", "gate_up", "down")), step.shape.segments * m["head"].n)
    return -(-words // granule) * granule


def _piece(step: Step, name: str, part: int) -> None:
    """Load the next piece of a matrix and its scales into the ring's next place; half blocks load row by row."""
    e, m = step.e, step.layout.matrices[name]
    words = m.depths[part] * m.n
    count, apart = (m.n, m.outputs * 32 * FORMAT_BITS[m.elements] // 8) if m.split else (words, 0)
    e.wait("load", "w_free")
    e("load", target="w", format=m.elements, count=count, rows=words // count, dst_reg=e.x("wl"), address_reg=e.x("wp"), stride=apart)
    e("load", target="ws", format=m.scales, count=words, dst_reg=e.x("wl"), address=m.element_bytes(part), address_reg=e.x("wp"))
    e.signal("load", "w_ready")
    if step.layout.slots > 1:
        e.toggle("wl", step.layout.slot_words)
    e.add("wp", m.part_bytes(part))


def taken(step: Step) -> None:
    """Free the ring's piece once the mesh has multiplied it."""
    step.e.signal("mxu", "w_free")
    if step.layout.slots > 1:
        step.e.toggle("w", step.layout.slot_words)


def _layer(step: Step) -> None:
    e, layout, v = step.e, step.layout, step.places.v
    d, rows = layout.decoder, step.shape.rows
    e.set("wp", layout.vector_bytes, of="layer", times=1)
    e.label("attention_norm")
    loaded = _normed(step, "attention_norm", v["x"], rows, then="qkv")
    e.label("qkv")
    project(step, "qkv", "normed", rows, whole=True, loaded=loaded, early=sorted(set(columns_needed(step))))
    loaded = attention(step)
    e.label("o")
    residual(step, "o", "mixed", bias="o_bias" if d.o_bias else "", post_norm="attention_post_norm" if d.post_norms else "", loaded=loaded)
    e.label("mlp_norm")
    loaded = _normed(step, "mlp_norm", v["x"], rows, then="router" if d.routing else "gate_up")
    (experts if d.routing else dense)(step, loaded)


def residual(step: Step, name: str, source: str, *, bias: str, post_norm: str, ready: str | None = None, loaded: int = 0) -> None:
    """Multiply and add to x: directly, or after a norm of the whole product. `loaded`: as `project` takes it."""
    e, layout, v = step.e, step.layout, step.places.v
    rows, width, s = step.shape.rows, layout.share.width, layout.share
    if ready is None:
        ready = "a_ready" if s.n_tiles == 1 else "net_a"
    target = v["y"] if post_norm else v["x"]
    e.set("col")

    def add(c: dict[str, int | str], n: int) -> None:
        out: dict[str, int | str] = {
            "rows": rows,
            "len": n,
            "dst": target + s.index * s.model,
            "dst_reg": e.x("col"),
            "dst_stride": width // BLOCK,
        }
        x: dict[str, int | str] = {"b_kind": "vector", "b": v["x"] + s.index * s.model, "b_reg": e.x("col"), "b_stride": width // BLOCK}
        there = out | {"dst": v["biased"], "dst_stride": n // BLOCK, "dst_reg": 0} if "biased" in v else out
        if layout.matrices[name].split:
            feed(step, "post_scales")
            e("vec", pre="mul", **c, **tensor_scale(step, name), **there)
            used(step)
            c = {"a": v["biased"], "a_stride": n // BLOCK}
        if bias:
            e.set("t1", layout.vectors[bias][0], of="col", times=4, plus="layer")
            feed(step, bias, length=n, register="t1", offset=0)
            e("vec", pre="add", **c, **fed(step), **there)
            used(step)
            c = {"a": v["biased"], "a_stride": n // BLOCK}
        if post_norm:
            e("vec", pre="copy", **c, **out)
        else:
            e("vec", pre="add", **c, **out, **x)
        e.add("col", n)

    project(step, name, source, rows, ready=ready, loaded=loaded, epilogue=add)
    e.release("col")
    if s.n_tiles > 1:
        gather_vectors(step, target)
    if post_norm:
        operand: dict[str, int | str] = {"a": v["y"], "a_stride": width // BLOCK}
        y: dict[str, int | str] = {"dst": v["y"], "dst_stride": width // BLOCK, "rows": rows, "len": layout.decoder.d_model}
        inverse_root(step, operand, rows=rows, length=layout.decoder.d_model, inverse="inverse_width")
        e("vec", pre="mul", b_kind="scalar", b=v["t"], b_stride=1, **operand, **y)
        feed(step, post_norm)
        e("vec", pre="mul", **operand, **y, **fed(step))
        used(step)
        e("vec", pre="add", b_kind="vector", b=v["x"], b_stride=width // BLOCK, **operand, **(y | {"dst": v["x"]}))


def gather_activations(step: Step, name: str, blocks: int, *, rows: int | None = None) -> str:
    """Pass every tile's share of quantised rows round the ring; returns the semaphore that the mesh waits for."""
    s = step.layout.share
    _ring(step, "a", step.places.a[name], (blocks, blocks // s.n_tiles), step.shape.rows if rows is None else rows)
    step.e.signal("net", "net_a")
    return "net_a"


def gather_vectors(step: Step, start: int) -> None:
    """Pass every tile's share of the residual stream round the ring."""
    s = step.layout.share
    _ring(step, "v", start, (s.width, s.model), step.shape.rows)
    step.e.signal("net", "net_v")
    step.e.wait("vpu", "net_v")


def sum_vectors(step: Step, start: int, count: int) -> None:
    """Sum `count` elements of all tiles round the ring, tile 0 first, and give every tile the sum; exact where all but one tile hold +0."""
    e, part = step.e, step.layout.part
    there: dict[str, int | str] = {"space": "v", "count": count}
    e.signal("vpu", "net_go")
    e.wait("net", "net_go")
    if part.index:
        e("recv", dst=start, add=1, **there)
    e("send", src=start, **there)
    if part.index < part.n_tiles - 1:
        e("recv", dst=start, **there)
    if part.index < part.n_tiles - 2:
        e("send", src=start, **there)
    e.signal("net", "net_v")
    e.wait("vpu", "net_v")


def _ring(step: Step, space: str, start: int, sizes: tuple[int, int], rows: int) -> None:
    e, s, (row, count) = step.e, step.layout.share, sizes
    e.signal("vpu", "net_go")
    e.wait("net", "net_go")
    e.set("t0", start)
    with e.loop(rows):
        for hop in range(s.n_tiles - 1):
            sent, received = (s.index - hop) % s.n_tiles, (s.index - hop - 1) % s.n_tiles
            e("send", space=space, src=sent * count, src_reg=e.x("t0"), count=count)
            e("recv", space=space, dst=received * count, dst_reg=e.x("t0"), count=count)
        e.add("t0", row)


def _head(step: Step) -> None:
    """Norm the last row of every segment and stream the head past it: logits to memory, as many columns as the host asks for."""
    e, layout, v = step.e, step.layout, step.places.v
    n, width, head = step.shape.segments, layout.share.width, layout.matrices["head"]
    rows = v["x"]
    if step.shape.tokens > 1:
        rows = v["y"]
        for s in range(n):
            e.param("t0", step.at("last") + s)
            e.set("t0", s * step.shape.tokens * width, of="t0", times=width)
            e("vec", pre="copy", len=width, a=v["x"], a_reg=e.x("t0"), dst=rows + s * width)
    _normed(step, "final_norm", rows, n)
    e.set("wp", layout.addresses["head"] + 4 * _padded(width))
    e.param("columns", step.at("head_columns"))
    e.set("lo")
    e.set("os")
    e.label("head")

    def out(c: dict[str, int | str], outputs: int) -> None:
        e.wait("vpu", "out_free")
        scale: dict[str, int | str] = {"pre": "mul", **step.constant("head_scale")} if head.split else {"pre": "copy"}
        e("vec", rows=n, len=outputs, dst=v["logits"], dst_reg=e.x("os"), dst_stride=outputs // BLOCK, **c, **scale)
        e.signal("vpu", "out_ready")
        e.wait("store", "out_ready")
        e("store", target="v", format="fp32", count=outputs, rows=n, src=v["logits"], src_reg=e.x("os"), address=layout.addresses["logits"],
          address_reg=e.x("lo"), stride=head.n_tiles * head.outputs * 4)  # fmt: skip
        e.signal("store", "out_free")
        e.toggle("os", n * outputs)
        e.add("lo", outputs * 4)

    project(step, "head", "normed", n, counter="columns", epilogue=out)
