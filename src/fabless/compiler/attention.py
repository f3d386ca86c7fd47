"""Emit attention: rotate, quantise, write the cache, then scores, softmax and mixing, one span of 128 keys after the other.

Two passes over the spans, in the order of docs/decisions/integer-forward-pass.md: the first finds the maximum of every row, the second computes
powers of two, their sum and the mixed values. Scores of the first pass are kept in the vector buffer where a whole context fits, else computed again.
Rows of one KV head's queries are (query head of the group, token).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabless.compiler.partition import BLOCK, PAGE_KEYS, ceil, up
from fabless.compiler.place import sink_slot

if TYPE_CHECKING:
    from fabless.compiler.step import Step

_MAX_ROWS = 256
_MAX_STORE_ROWS = 1024
Operands = dict[str, "int | str"]


def attention(step: Step) -> None:
    """Emit everything between the product with qkv and the product with o: A "mixed" holds the quantised result, a_ready is signalled."""
    source = _source(step)
    _kind(step)
    _rotated(step, source)
    _store(step, source)
    step.e.wait("load", "kv_stored")
    step.e.wait("mxu", "a_ready")
    _segments(step)
    _gathered(step)


def _source(step: Step) -> tuple[str, int, int]:
    """Return (space, first element, elements from row to row) of q, k, v, their tensors' scales multiplied and their bias added."""
    from fabless.compiler.step import fed, feed, tensor_scale, used

    e, layout, m = step.e, step.layout, step.layout.matrices["qkv"]
    total = m.n * m.n_tiles * m.rows
    space, first = "c", step.places.c["projection"] * m.rows
    if m.split:
        s, v, begin = layout.share, step.places.v["qkv"], 0
        feed(step, "post_scales")
        for tensor, n in (("q", s.n_heads * s.head), ("k", s.n_kv_heads * s.head), ("v", total)):
            end = min(total, begin + n)  # v: with the padding
            e("vec", pre="mul", rows=step.shape.rows, len=end - begin, a_space=space, a=first + begin, a_stride=total // BLOCK, dst=v + begin,
              dst_stride=total // BLOCK, **tensor_scale(step, tensor))  # fmt: skip
            begin = end
        used(step)
        space, first = "v", v
    if layout.decoder.qkv_bias:
        v = step.places.v["qkv"]
        feed(step, "qkv_bias")
        e("vec", pre="add", rows=step.shape.rows, len=total, a_space=space, a=first, a_stride=total // BLOCK, dst=v, dst_stride=total // BLOCK,
          **fed(step))  # fmt: skip
        used(step)
        space, first = "v", v
    return space, first, total


def _kind(step: Step) -> None:
    """Look up which window and rotary table this layer has."""
    if len(step.layout.kinds) > 1:
        e = step.e
        e.param("kind", step.at("kind"), plus="index")
        e.set("rot", of="kind", times=step.shape.rows * step.layout.share.head)


def _columns(step: Step, first: int, count: int, width: int, row: int) -> list[tuple[int, int, int, int]]:
    """Return (head, first element, rows, stride in blocks) of the instructions that cover heads: all heads of one row, or all rows of one head."""
    if step.shape.rows == 1:
        return [(0, first, count, width // BLOCK)]
    return [(h, first + h * width, step.shape.rows, row // BLOCK) for h in range(count)]


def _rotated(step: Step, source: tuple[str, int, int]) -> None:
    """Write rotated q and k heads to V "heads" `[head][row][H]`, and q in int8 to A "q"."""
    from fabless.compiler.step import quantised

    e, s, d, v = step.e, step.layout.share, step.layout.decoder, step.places.v
    space, first, row = source
    rows, head = step.shape.rows, s.head
    for name, before, count in (("q", 0, s.n_heads), ("k", s.n_heads, s.n_kv_heads)):
        if d.qk_norm:
            _head_norm(step, source, name, before, count)
        for h, at, n, stride in _columns(step, first + before * head, count, head, row):
            out = v["heads"] + (before + h) * rows * head
            place: Operands = {"a": out, "a_stride": head // BLOCK} if d.qk_norm else {"a_space": space, "a": at, "a_stride": stride}
            turn: Operands = {"b": v["rotary"], "b_stride": head // BLOCK if rows > 1 else 0}
            if len(step.layout.kinds) > 1:
                turn["b_reg"] = e.x("rot")
            e("rotate", rows=n, len=d.d_head, dst=out, dst_stride=head // BLOCK, **place, **turn)
    for at in range(0, s.n_heads * rows, _MAX_ROWS):
        n = min(_MAX_ROWS, s.n_heads * rows - at)
        source_q: Operands = {"a": v["heads"] + at * head, "a_stride": head // BLOCK, "pre": "mul", **step.constant("query_scale")}
        quantised(step, "q", source_q, rows=n, length=d.d_head, offset=at * s.head_blocks, dst_stride=s.head_blocks)
    e.signal("vpu", "a_ready")


def _head_norm(step: Step, source: tuple[str, int, int], name: str, before: int, count: int) -> None:
    from fabless.compiler.step import fed, feed, inverse_root, used

    e, s, d, v = step.e, step.layout.share, step.layout.decoder, step.places.v
    space, first, row = source
    feed(step, f"{name}_norm")
    for h, at, n, stride in _columns(step, first + before * s.head, count, s.head, row):
        out = v["heads"] + (before + h) * step.shape.rows * s.head
        there: Operands = {"a_space": space, "a": at, "a_stride": stride}
        to: Operands = {"rows": n, "len": d.d_head, "dst": out, "dst_stride": s.head // BLOCK}
        inverse_root(step, there, rows=n, length=d.d_head, inverse="inverse_head")
        e("vec", pre="mul", b_kind="scalar", b=v["t"], b_stride=1, **there, **to)
        e("vec", pre="mul", a=out, a_stride=s.head // BLOCK, **to, **fed(step))
    used(step)


def _store(step: Step, source: tuple[str, int, int]) -> None:
    """Quantise k (blocks) and v (one scale a head) and write every row to its page."""
    e, s, d, a, pages = step.e, step.layout.share, step.layout.decoder, step.places.a, step.layout.pages
    space, first, row = source
    rows, head, words = step.shape.rows, s.head, s.n_kv_heads * s.head_blocks
    e.wait("vpu", "kv_free")
    apart = s.head_blocks if rows == 1 else words
    for h, at, n, _ in _columns(step, step.places.v["heads"] + s.n_heads * rows * head, s.n_kv_heads, rows * head, 0):
        e("quant", rows=n, len=d.d_head, a=at, a_stride=head // BLOCK, dst=a["k"] + h * s.head_blocks, dst_stride=apart)
    values = first + (s.n_heads + s.n_kv_heads) * head
    for h, at, n, stride in _columns(step, values, s.n_kv_heads, s.value, row):
        e(
            "quant",
            scope="row",
            rows=n,
            len=d.d_head,
            a_space=space,
            a=at,
            a_stride=stride,
            dst=a["v"] + h * s.head_blocks,
            dst_stride=apart,
        )
    e.signal("vpu", "kv_ready")
    e.wait("store", "kv_ready")
    e.set("i")
    e.set("ki")
    with e.loop(rows):
        e.param("t0", step.at("slot_page"), plus="i")
        e.set("t0", of="t0", times=pages.bytes, plus="kv")
        e.param("t1", step.at("slot_key"), plus="i")
        e.set("t2", of="t1", times=32, plus="t0")
        e.set("t1", of="t1", times=2, plus="t0")
        key: Operands = {"count": 1, "rows": words, "src_reg": e.x("ki")}
        e("store", target="a", format="int8", src=a["k"], address=pages.keys, address_reg=e.x("t2"), stride=PAGE_KEYS * 32, **key)
        e("store", target="as", format="bf16", src=a["k"], address=pages.key_scales, address_reg=e.x("t1"), stride=PAGE_KEYS * 2, **key)
        e("store", target="as", format="bf16", src=a["v"], address=pages.value_scales, address_reg=e.x("t1"), stride=PAGE_KEYS * 2, **key)
        e.param("t1", step.at("slot_value"), plus="i")
        e.set("t1", of="t1", times=1, plus="t0")
        per = _MAX_STORE_ROWS // d.d_head if d.d_head == s.value == s.head_blocks * BLOCK else 1
        for h in range(0, s.n_kv_heads, per):
            e("store", target="ab", format="int8", count=1, rows=d.d_head * min(per, s.n_kv_heads - h), src=a["v"] + h * s.head_blocks,
              src_reg=e.x("ki"), address=pages.values + h * s.value * BLOCK, address_reg=e.x("t1"), stride=BLOCK)  # fmt: skip
        e.add("i", 1)
        e.add("ki", words)
    e.signal("store", "kv_free", "kv_stored")
    e.release("i", "ki")


def _segments(step: Step) -> None:
    e, s, shape = step.e, step.layout.share, step.shape
    several = len(step.layout.kinds) > 1
    e.set("ks", of="kind" if several else None, times=shape.segments)
    e.set("sq")
    e.set("sm")
    with e.loop(shape.segments):
        e.param("low", step.at("low"), plus="ks")
        e.param("high", step.at("high"), plus="ks")
        e.param("count", step.at("span_count"), plus="ks")
        for h in range(s.n_kv_heads):
            _head(step, h)
        e.add("ks", 1)
        e.add("sq", shape.tokens * s.head_blocks)
        e.add("sm", shape.tokens * s.n_heads * s.head)
    e.release("ks", "sq", "sm", "low", "high", "count")


def _head(step: Step, h: int) -> None:
    """Emit both passes of one KV head for the queries of one segment."""
    e, s, v, shape, tile = step.e, step.layout.share, step.places.v, step.shape, step.layout.tile
    queries = s.group * shape.tokens
    _begin(step, h)
    for first in (True, False):
        e.set("ptr", of="ks", times=step.layout.spans)
        e.param("start", step.at("span_start"), plus="ks")
        e.set("keep")
        if not first:
            _clear(step)
        with e.loop(counter="count"):
            e.param("page", step.at("pages"), plus="ptr")
            e.set("page", of="page", times=step.layout.pages.bytes, plus="kv")
            if first:
                _maximum(step, h)
            else:
                _mix(step, h)
            e.add("ptr", 1)
            e.add("start", PAGE_KEYS)
            if step.places.keep_scores:
                e.add("keep", PAGE_KEYS)
    if step.layout.decoder.sinks:
        e("vec", pre="sub", fn="exp2", len=queries, a=v["r"], b=v["m"], dst=v["r"])
        e("vec", pre="add", len=queries, a=v["l"], b=v["r"], dst=v["l"])
    e.signal("mxu", "o_ready")
    e.wait("vpu", "o_ready")
    e("vec", pre="copy", fn="rcp", len=queries, a=v["l"], dst=v["r"])
    e.set("t2", step.places.c["mixed"] * tile.rows, of="so", times=tile.rows)
    for g in range(1 if shape.tokens == 1 else s.group):
        rows = s.group if shape.tokens == 1 else shape.tokens
        apart = s.head if shape.tokens == 1 else s.n_heads * s.head
        e("vec", pre="mul", rows=rows, len=step.layout.decoder.d_head, a_space="c", a=g * shape.tokens * s.value, a_reg=e.x("t2"),
          a_stride=s.value // BLOCK, b_kind="scalar", b=v["r"] + g * shape.tokens, b_stride=1, dst=v["mixed"] + (h * s.group + g) * s.head,
          dst_reg=e.x("sm"), dst_stride=apart // BLOCK)  # fmt: skip
    e.signal("vpu", "o_free")
    e.toggle("so", _mixed_slot(step))
    e.release("ptr", "start", "keep", "page")


def _begin(step: Step, h: int) -> None:
    """Set the sums to +0 and the maxima to LOWEST, or to the sinks, which are kept in V "r"."""
    from fabless.compiler.step import feed, used

    e, s, v = step.e, step.layout.share, step.places.v
    queries = s.group * step.shape.tokens
    e("mask", len=queries, a=v["x"], dst=v["l"], fill="zero")
    if not step.layout.decoder.sinks:
        e("mask", len=queries, a=v["x"], dst=v["m"], fill="lowest")
        return
    feed(step, f"sinks{step.shape.tokens}")
    at = h * sink_slot(step.layout.tile, s, step.shape)
    e("vec", pre="mul", len=queries, a=v["norm"] + at, a_reg=e.x("ns"), dst=v["r"], **step.constant("log2e"))
    used(step)
    e("vec", pre="copy", len=queries, a=v["r"], dst=v["m"])


def _mixed_slot(step: Step) -> int:
    s = step.layout.share
    return s.group * step.shape.tokens * s.value // step.layout.tile.rows


def _clear(step: Step) -> None:
    """Set the accumulators of the mixed values to +0: a product of zeros."""
    e, s, tile = step.e, step.layout.share, step.layout.tile
    e.wait("mxu", "o_free")
    n = s.value // tile.rows
    e("gemm", m=s.group * step.shape.tokens, n=n, k=1, w=step.layout.slots * step.layout.slot_words, a=step.places.a["zero"], a_stride=0,
      c=step.places.c["mixed"], c_reg=e.x("so"), c_stride=n, clear=1, unit=1)  # fmt: skip


def _scores(step: Step, h: int) -> Operands:
    """Load one page of keys and multiply; returns the operand of the scores `[queries][128]` in C, whose s_ready the vector unit has waited for."""
    from fabless.compiler.step import piece, taken

    e, s, tile, pages = step.e, step.layout.share, step.layout.tile, step.layout.pages
    n = PAGE_KEYS // tile.rows
    e.set("t1", pages.keys + h * s.head_blocks * PAGE_KEYS * 32, of="page", times=1)
    behind = pages.key_scales - pages.keys + h * s.head_blocks * PAGE_KEYS * (2 - 32)
    piece(step, "int8", "bf16", s.head_blocks * n, behind, register="t1")
    e.wait("mxu", "w_ready", "s_free")
    for at, m, offset, stride in _query_groups(step, h):
        e("gemm", m=m, n=n, k=s.head_blocks, w_reg=e.x("w"), a=step.places.a["q"] + offset, a_reg=e.x("sq"), a_stride=stride,
          c=step.places.c["scores"] + at * n, c_reg=e.x("ss"), c_stride=n, clear=1)  # fmt: skip
    taken(step)
    e.signal("mxu", "s_ready")
    e.set("t2", step.places.c["scores"] * tile.rows, of="ss", times=tile.rows)
    e.wait("vpu", "s_ready")
    return {"a_space": "c", "a_reg": e.x("t2"), "a_stride": PAGE_KEYS // BLOCK}


def _scores_taken(step: Step) -> None:
    step.e.signal("vpu", "s_free")
    step.e.toggle("ss", step.layout.share.group * step.shape.tokens * PAGE_KEYS // step.layout.tile.rows)


def _query_groups(step: Step, h: int) -> list[tuple[int, int, int, int]]:
    """Return (first row, rows, A offset, A stride) of the products that cover the queries of one KV head."""
    s, shape = step.layout.share, step.shape
    base = h * s.group * shape.rows * s.head_blocks
    if shape.segments == 1:
        return [(0, s.group * shape.tokens, base, s.head_blocks)]
    if shape.tokens == 1:
        return [(0, s.group, base, shape.rows * s.head_blocks)]
    return [(g * shape.tokens, shape.tokens, base + g * shape.rows * s.head_blocks, s.head_blocks) for g in range(s.group)]


def _mask(step: Step, fill: str, a: Operands, dst: Operands) -> None:
    """Keep what each row may see: one instruction for all heads of one token, or one a head for all its tokens."""
    e, s, t = step.e, step.layout.share, step.shape.tokens
    limits: Operands = {"start_reg": e.x("start"), "low_reg": e.x("low"), "high_reg": e.x("high"), "fill": fill, "len": PAGE_KEYS}
    if t == 1:
        e("mask", rows=s.group, **limits, **a, **dst)
        return
    for g in range(s.group):
        here = a | {"a": int(a.get("a", 0)) + g * t * int(a["a_stride"]) * BLOCK}
        there = dst | {"dst": int(dst["dst"]) + g * t * int(dst["dst_stride"]) * BLOCK}
        e("mask", rows=t, step=1, **limits, **here, **there)


def _maximum(step: Step, h: int) -> None:
    e, v = step.e, step.places.v
    queries = step.layout.share.group * step.shape.tokens
    scores = _scores(step, h)
    stride = step.layout.spans * PAGE_KEYS // BLOCK if step.places.keep_scores else PAGE_KEYS // BLOCK
    place: Operands = {"dst": v["scores"], "dst_reg": e.x("keep"), "dst_stride": stride}
    _mask(step, "lowest", scores, place)
    _scores_taken(step)
    e("vec", reduce="max", rows=queries, len=PAGE_KEYS, a=v["scores"], a_reg=e.x("keep"), a_stride=stride, dst=v["t"], dst_stride=1)
    e("vec", pre="max", len=queries, a=v["m"], b=v["t"], dst=v["m"])


def _mix(step: Step, h: int) -> None:
    from fabless.compiler.step import taken

    e, s, v, tile, pages = step.e, step.layout.share, step.places.v, step.layout.tile, step.layout.pages
    queries, blocks = s.group * step.shape.tokens, PAGE_KEYS // BLOCK
    p: Operands = {"a": v["p"], "a_stride": blocks}
    to: Operands = {"dst": v["p"], "dst_stride": blocks}
    if step.places.keep_scores:
        scores: Operands = {"a": v["scores"], "a_reg": e.x("keep"), "a_stride": step.layout.spans * blocks}
    else:
        scores = _scores(step, h)
    e("vec", pre="sub", fn="exp2", rows=queries, len=PAGE_KEYS, b_kind="scalar", b=v["m"], b_stride=1, **scores, **to)
    if not step.places.keep_scores:
        _scores_taken(step)
    _mask(step, "zero", p, to)
    e("vec", reduce="sum", rows=queries, len=PAGE_KEYS, dst=v["t"], dst_stride=1, **p)
    e("vec", pre="add", len=queries, a=v["l"], b=v["t"], dst=v["l"])
    n = s.value // tile.rows
    e.wait("load", "w_free", "vs_free")
    e("load", target="w", format="int8", count=n, rows=blocks, dst_reg=e.x("w"), address=pages.values + h * s.value * BLOCK,
      address_reg=e.x("page"), stride=s.n_kv_heads * s.value * BLOCK)  # fmt: skip
    e("load", target="v", format="bf16", count=PAGE_KEYS, dst=v["value_scales"], dst_reg=e.x("vs"),
      address=pages.value_scales + h * s.head_blocks * PAGE_KEYS * 2, address_reg=e.x("page"))  # fmt: skip
    e.signal("load", "w_ready", "vs_ready")
    e.wait("vpu", "vs_ready", "aw_free")
    e("quant", pre="mul", rows=queries, len=PAGE_KEYS, b=v["value_scales"], b_reg=e.x("vs"), b_stride=0, dst=step.places.a["weights"],
      dst_reg=e.x("aw"), dst_stride=blocks, **p)  # fmt: skip
    e.signal("vpu", "vs_free", "aw_ready")
    e.wait("mxu", "w_ready", "aw_ready")
    e("gemm", m=queries, n=n, k=blocks, w_reg=e.x("w"), a=step.places.a["weights"], a_reg=e.x("aw"), a_stride=blocks, c=step.places.c["mixed"],
      c_reg=e.x("so"), c_stride=n, clear=0, unit=1)  # fmt: skip
    taken(step)
    e.signal("mxu", "aw_free")
    e.toggle("vs", PAGE_KEYS)
    e.toggle("aw", queries * blocks)


def _gathered(step: Step) -> None:
    """Quantise the mixed values of all heads into A "mixed"; heads that are stored padded are packed through memory first."""
    from fabless.compiler.step import gather_activations, quantised

    e, s, d, v, rows = step.e, step.layout.share, step.layout.decoder, step.places.v, step.shape.rows
    length, blocks = s.n_heads * d.d_head, step.layout.matrices["o"].blocks
    start, stride = v["mixed"], s.n_heads * s.head
    if s.head != d.d_head:
        start, stride = v["dense"], up(length, step.layout.tile.vector_align)
        _packed(step, length, stride)
    own = s.index * ceil(length, BLOCK) if s.n_tiles > 1 else 0
    quantised(step, "mixed", {"a": start, "a_stride": stride // BLOCK}, rows=rows, length=length, offset=own, dst_stride=blocks)
    if s.n_tiles == 1:
        e.signal("vpu", "a_ready")
    else:
        gather_activations(step, "mixed", blocks)


def _packed(step: Step, length: int, stride: int) -> None:
    e, s, d, v = step.e, step.layout.share, step.layout.decoder, step.places.v
    e.signal("vpu", "pack_ready")
    e.wait("store", "pack_ready")
    e.set("t0")
    e.set("t1", step.layout.addresses["workspace"])
    with e.loop(step.shape.rows):
        for h in range(s.n_heads):
            e("store", target="v", format="fp32", count=d.d_head, src=v["mixed"] + h * s.head, src_reg=e.x("t0"), address=h * d.d_head * 4,
              address_reg=e.x("t1"))  # fmt: skip
        e.add("t0", s.n_heads * s.head)
        e.add("t1", stride * 4)
    e.signal("store", "pack_stored")
    e.wait("load", "pack_stored")
    e.set("t0")
    e.set("t1", step.layout.addresses["workspace"])
    with e.loop(step.shape.rows):
        e("load", target="v", format="fp32", count=length, dst=v["dense"], dst_reg=e.x("t0"), address_reg=e.x("t1"))
        e.add("t0", stride)
        e.add("t1", stride * 4)
    e.signal("load", "pack_loaded")
    e.wait("vpu", "pack_loaded")
