"""Emit attention: rotate, quantise, write the cache, then scores, softmax and mixing, one span of 128 keys after the other.

Two passes over the spans, in the order of docs/decisions/integer-forward-pass.md: the first finds the maximum of every row, the second computes
powers of two, their sum and the mixed values. Scores of the first pass are kept in the vector buffer where a whole context fits, else computed again.
Rows of one KV head's queries are (query head of the group, token).
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from fabless.compiler.partition import BLOCK, PAGE_KEYS, ceil, up
from fabless.compiler.place import sink_slot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fabless.compiler.step import Step

_MAX_ROWS = 256
Operands = dict[str, "int | str"]


def attention(step: Step) -> int:
    """Emit everything between the product with qkv and the product with o: A "mixed" holds the quantised result, a_ready is signalled.

    Keys and values go first, so that they are stored while queries are multiplied; the first column of o is asked for before pages are. Returns the
    columns of o that are.
    """
    from fabless.compiler.step import ahead

    e = step.e
    loaded = ahead(step, "o", "rotary", most=1) if not step.layout.decoder.qk_norm else 0  # else the norms of q and k come first
    e.label("rotary")
    e.wait("vpu", "c_ready")
    source = _source(step)
    _kind(step)
    _rotated(step, source, "k")
    _quantised_kv(step, source)
    several = len(step.layout.kinds) > 1
    e.set("ks", of="kind" if several else None, times=step.shape.segments)
    if source[0] == "c":  # the mesh still multiplies q
        e.label("kv_store")
        _store(step)
        e.label("attention.ahead")
        e.wait("load", "kv_stored")
        _first_page(step, 0)
        e.label("rotary.q")
    for h, (before, needed) in zip(_query_sets(step), pairwise(columns_needed(step)), strict=True):
        if needed > before:
            e.wait("vpu", "c_ready")
        _rotated(step, source, "q", sets=(h, len(_query_sets(step))))
        _quantised_q(step, h)
    if step.layout.decoder.qk_norm:
        loaded = ahead(step, "o", "rotary", most=1)
    if source[0] == "v":
        e.label("kv_store")
        _store(step)
        e.wait("load", "kv_stored")
        _first_page(step, 0)
    e.label("attention")
    e.wait("mxu", "a_ready")
    _segments(step)
    _gathered(step)
    return loaded


def columns_needed(step: Step) -> list[int]:
    """Return after how many columns of the product with qkv keys and values are there, then each set of queries; the last takes all."""
    s, m = step.layout.share, step.layout.matrices["qkv"]
    sets = _query_sets(step)
    if m.split or step.layout.decoder.qkv_bias:  # the whole product is scaled, or the bias added, at once
        return [m.n_tiles] * (1 + len(sets))
    kv = s.n_kv_heads * (s.head + s.value)
    needed = [ceil(kv, m.outputs), *(ceil(kv + (h + sets.step) * s.group * s.head, m.outputs) for h in sets)]
    return [*needed[:-1], m.n_tiles]


def _source(step: Step) -> tuple[str, int, int]:
    """Return (space, first element, elements from row to row) of k, v, q, their tensors' scales multiplied and their bias added."""
    from fabless.compiler.step import fed, feed, tensor_scale, used

    e, layout, m = step.e, step.layout, step.layout.matrices["qkv"]
    total = m.n * m.n_tiles * m.rows
    space, first = "c", step.places.c["projection"] * m.rows
    if m.split:
        s, v, begin = layout.share, step.places.v["qkv"], 0
        feed(step, "post_scales")
        for tensor, n in (("k", s.n_kv_heads * s.head), ("v", s.n_kv_heads * s.value), ("q", total)):
            end = min(total, begin + n)  # q: with the padding
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


def _query_sets(step: Step) -> range:
    """Return the first KV head of each set of queries that is given to the mesh by itself: many rows of one sequence start set by set."""
    n = step.layout.share.n_kv_heads
    apart = step.shape.segments == 1 and step.shape.rows > 1 and not step.layout.decoder.qk_norm
    return range(0, n, step.heads if apart else n)


def _rotated(step: Step, source: tuple[str, int, int], name: str, sets: tuple[int, int] = (0, 1)) -> None:
    """Write the rotated heads of q or k to V "heads" `[head][row][H]`; of q the set from KV head sets[0] on, one of sets[1]."""
    e, s, d, v = step.e, step.layout.share, step.layout.decoder, step.places.v
    space, first, row = source
    rows, head = step.shape.rows, s.head
    before, count = (0, s.n_heads) if name == "q" else (s.n_heads, s.n_kv_heads)
    first += s.n_kv_heads * (head + s.value) if name == "q" else 0
    before, first, count = before + sets[0] * s.group, first + sets[0] * s.group * head, count // sets[1]
    if d.qk_norm:
        _head_norm(step, (space, first, row), name, before, count)
    for h, at, n, stride in _columns(step, first, count, head, row):
        out = v["heads"] + (before + h) * rows * head
        place: Operands = {"a": out, "a_stride": head // BLOCK} if d.qk_norm else {"a_space": space, "a": at, "a_stride": stride}
        turn: Operands = {"b": v["rotary"], "b_stride": head // BLOCK if rows > 1 else 0}
        if len(step.layout.kinds) > 1:
            turn["b_reg"] = e.x("rot")
        e("rotate", rows=n, len=d.d_head, dst=out, dst_stride=head // BLOCK, **place, **turn)


def _quantised_q(step: Step, h: int) -> None:
    """Write the queries of the set from KV head h on in int8 to A "q"."""
    from fabless.compiler.step import quantised

    e, s, v = step.e, step.layout.share, step.places.v
    rows, head = step.shape.rows, s.head
    begin, end = h * s.group * rows, (h + _query_sets(step).step) * s.group * rows
    for at in range(begin, end, _MAX_ROWS):
        n = min(_MAX_ROWS, end - at)
        source: Operands = {"a": v["heads"] + at * head, "a_stride": head // BLOCK, "pre": "mul", **step.constant("query_scale")}
        quantised(step, "q", source, rows=n, length=step.layout.decoder.d_head, offset=at * s.head_blocks, dst_stride=s.head_blocks)
    e.signal("vpu", "a_ready")


def _head_norm(step: Step, source: tuple[str, int, int], name: str, before: int, count: int) -> None:
    from fabless.compiler.step import fed, feed, inverse_root, used

    e, s, d, v = step.e, step.layout.share, step.layout.decoder, step.places.v
    space, first, row = source
    feed(step, f"{name}_norm")
    for h, at, n, stride in _columns(step, first, count, s.head, row):
        out = v["heads"] + (before + h) * step.shape.rows * s.head
        there: Operands = {"a_space": space, "a": at, "a_stride": stride}
        to: Operands = {"rows": n, "len": d.d_head, "dst": out, "dst_stride": s.head // BLOCK}
        inverse_root(step, there, rows=n, length=d.d_head, inverse="inverse_head")
        e("vec", pre="mul", b_kind="scalar", b=v["t"], b_stride=1, **there, **to)
        e("vec", pre="mul", a=out, a_stride=s.head // BLOCK, **to, **fed(step))
    used(step)


def _quantised_kv(step: Step, source: tuple[str, int, int]) -> None:
    """Quantise k (blocks) and v (one scale a head) into A; the store queue may take them."""
    e, s, d, a = step.e, step.layout.share, step.layout.decoder, step.places.a
    space, first, row = source
    rows, head, words = step.shape.rows, s.head, s.n_kv_heads * s.head_blocks
    e.wait("vpu", "kv_free")
    apart = s.head_blocks if rows == 1 else words
    for h, at, n, _ in _columns(step, step.places.v["heads"] + s.n_heads * rows * head, s.n_kv_heads, rows * head, 0):
        e("quant", rows=n, len=d.d_head, a=at, a_stride=head // BLOCK, dst=a["k"] + h * s.head_blocks, dst_stride=apart)
    values = first + s.n_kv_heads * head
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


def _store(step: Step) -> None:
    """Write the keys and values of every row to its page."""
    e, s, d, a, pages = step.e, step.layout.share, step.layout.decoder, step.places.a, step.layout.pages
    rows, words = step.shape.rows, s.n_kv_heads * s.head_blocks
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
        for h in range(s.n_kv_heads):
            e("store", target="ab", format="int8", count=1, rows=d.d_head, src=a["v"] + h * s.head_blocks, src_reg=e.x("ki"),
              address=pages.values + h * s.value * PAGE_KEYS, address_reg=e.x("t1"), stride=BLOCK)  # fmt: skip
        e.add("i", 1)
        e.add("ki", words)
    e.signal("store", "kv_free", "kv_stored")
    e.release("i", "ki")


def _segments(step: Step) -> None:
    """Take the segments one after the other; the first scores of each are asked for while the one before is mixed."""
    e, s, shape = step.e, step.layout.share, step.shape
    e.set("sq")
    e.set("sm")
    _first(step, 0)
    if shape.segments > 1:
        with e.loop(shape.segments - 1):
            _segment(step, last=False)
            e.add("ks", 1)
            e.add("sq", shape.tokens * s.head_blocks)
            e.add("sm", shape.tokens * s.n_heads * s.head)
    _segment(step, last=True)
    e.release("ks", "sq", "sm", "low", "high", "ptr", "start", "keep", "page", "count")


def _segment(step: Step, *, last: bool) -> None:
    e = step.e
    e.param("low", step.at("low"), plus="ks")
    e.param("high", step.at("high"), plus="ks")
    sets = range(0, step.layout.share.n_kv_heads, step.heads)
    _begin(step, 0)
    _first_pass(step, 0)
    for h in sets:
        following = h + step.heads
        more = following < step.layout.share.n_kv_heads
        if more or not last:
            _first_page(step, following if more else 0, later=int(not more))
            _first(step, following if more else 0, later=int(not more))
        _second_pass(step, h)
        if more:  # while the mesh mixes the last span
            _begin(step, following)
            _first_pass(step, following)
        _finish(step, h)
        if _mixed_by_set(step):
            _quantised_mixed(step, h)


def _mixed_by_set(step: Step) -> bool:
    """Tell whether mixed values are quantised set by set: those of one sequence, on one tile, in whole blocks of unpadded heads."""
    s, d = step.layout.share, step.layout.decoder
    return step.shape.segments == 1 and s.n_tiles == 1 and s.head == d.d_head and step.heads * s.group * d.d_head % BLOCK == 0


def _quantised_mixed(step: Step, h: int) -> None:
    from fabless.compiler.step import quantised

    s, blocks = step.layout.share, step.layout.matrices["o"].blocks
    own: Operands = {"a": step.places.v["mixed"] + h * s.group * s.head, "a_stride": s.n_heads * s.head // BLOCK}
    length, offset = step.heads * s.group * s.head, h * s.group * s.head // BLOCK
    quantised(step, "mixed", own, rows=step.shape.rows, length=length, offset=offset, dst_stride=blocks)


def _first_pass(step: Step, h: int) -> None:
    """Find the maxima of `step.heads` KV heads from h on for the queries of one segment.

    The first span's scores were asked for before the second pass of the heads before these, so that the vector unit finds them ready. Scores of
    `kept_count` spans are kept, those of `again_count` computed again; the host says which.
    """
    e = step.e
    _pointers(step)
    _maximum(step, _first_scores(step), "f_free")
    for counter in _counters(step):
        _pointers(step, spans=1)
        e.param("count", step.at(counter), plus="ks")
        e.add("count", -1)
        with _spans(step):
            _maximum(step, _scores(step, h), "s_free")


def _second_pass(step: Step, h: int) -> None:
    """Mix the values of those heads, and take the reciprocals of the sums to V "r"."""
    e, v, queries = step.e, step.places.v, step.queries
    _clear(step)
    for counter in _counters(step):
        _pointers(step)
        e.param("count", step.at(counter), plus="ks")
        with _spans(step):
            _mix(step, h, kept=counter == "kept_count")
    e.signal("mxu", "o_ready")
    if step.layout.decoder.sinks:
        e("vec", pre="sub", fn="exp2", len=queries, a=v["sinks"], b=v["m"], dst=v["sinks"])
        e("vec", pre="add", len=queries, a=v["l"], b=v["sinks"], dst=v["l"])
    e("vec", pre="copy", fn="rcp", len=queries, a=v["l"], dst=v["r"])


def _finish(step: Step, h: int) -> None:
    """Multiply the mixed values of those heads with the reciprocals."""
    e, s, v, shape, tile = step.e, step.layout.share, step.places.v, step.shape, step.layout.tile
    e.wait("vpu", "o_ready")
    e.set("t2", step.places.c["mixed"] * tile.rows, of="so", times=tile.rows)
    for g in range(1 if shape.tokens == 1 else step.heads * s.group):
        rows = step.queries if shape.tokens == 1 else shape.tokens
        apart = s.head if shape.tokens == 1 else s.n_heads * s.head
        e("vec", pre="mul", rows=rows, len=step.layout.decoder.d_head, a_space="c", a=g * shape.tokens * s.value, a_reg=e.x("t2"),
          a_stride=s.value // BLOCK, b_kind="scalar", b=v["r"] + g * shape.tokens, b_stride=1, dst=v["mixed"] + (h * s.group + g) * s.head,
          dst_reg=e.x("sm"), dst_stride=apart // BLOCK)  # fmt: skip
    e.signal("vpu", "o_free")
    e.toggle("so", _mixed_slot(step))


def _counters(step: Step) -> list[str]:
    """Return the parameters that say how many spans are kept, and computed again; one where all are."""
    names = ["kept_count"] if step.places.kept_spans else []
    return names + ["again_count"] * (step.places.kept_spans < step.layout.spans)


def _pointers(step: Step, spans: int = 0) -> None:
    """Set the registers of a pass to its first span, or to one behind: page table, index of the first key, place of kept scores."""
    e = step.e
    e.set("ptr", spans, of="ks", times=step.layout.spans)
    e.param("start", step.at("span_start"), plus="ks")
    if spans:
        e.add("start", spans * PAGE_KEYS)
    e.set("keep", spans * PAGE_KEYS if step.places.kept_spans else 0)


@contextmanager
def _spans(step: Step) -> Iterator[None]:
    """Repeat for `count` spans from the registers' on; the page's address is in `page`."""
    e = step.e
    with e.loop(counter="count"):
        e.param("page", step.at("pages"), plus="ptr")
        e.set("page", of="page", times=step.layout.pages.bytes, plus="kv")
        yield
        e.add("ptr", 1)
        e.add("start", PAGE_KEYS)
        if step.places.kept_spans:
            e.add("keep", PAGE_KEYS)


def _begin(step: Step, h: int) -> None:
    """Set the sums to +0 and the maxima to LOWEST, or to the sinks, which are kept in V "sinks"."""
    from fabless.compiler.step import feed, used

    e, s, v, queries = step.e, step.layout.share, step.places.v, step.queries
    e("mask", len=queries, a=v["x"], dst=v["l"], fill="zero")
    if not step.layout.decoder.sinks:
        e("mask", len=queries, a=v["x"], dst=v["m"], fill="lowest")
        return
    feed(step, f"sinks{step.shape.tokens}")
    at = h * sink_slot(step.layout.tile, s, step.shape)
    e("vec", pre="mul", len=queries, a=v["norm"] + at, a_reg=e.x("ns"), dst=v["sinks"], **step.constant("log2e"))
    used(step)
    e("vec", pre="copy", len=queries, a=v["sinks"], dst=v["m"])


def _mixed_slot(step: Step) -> int:
    return step.queries * step.layout.share.value // step.layout.tile.rows


def _clear(step: Step) -> None:
    """Set the accumulators of the mixed values to +0: a product of zeros."""
    e, s, tile = step.e, step.layout.share, step.layout.tile
    e.wait("mxu", "o_free")
    n = s.value // tile.rows
    e("gemm", m=step.queries, n=n, k=1, w=step.layout.zeros_at, a=step.places.a["zero"], a_stride=0,
      c=step.places.c["mixed"], c_reg=e.x("so"), c_stride=n, clear=1, unit=1)  # fmt: skip


def _page(step: Step, elements: Operands, scales: Operands) -> None:
    """Load a page of keys, or of values whose scales go to V "value_scales", into the ring's next place."""
    e = step.e
    values = scales["target"] == "v"
    e.wait("load", "page_free", *(["vs_free"] if values else []))
    e("load", target="w", format="int8", dst=step.layout.pages_at, dst_reg=e.x("pw"), **elements)
    e("load", format="bf16", **scales)
    e.signal("load", "page_ready", *(["vs_ready"] if values else []))


def _page_taken(step: Step) -> None:
    step.e.signal("mxu", "page_free")
    if step.layout.slots > 1:
        step.e.toggle("pw", step.layout.page_words)


def _first(step: Step, h: int, later: int = 0) -> None:
    """Multiply the queries of the heads from h on with the first page of keys, into a place of its own; of this segment or one `later`."""
    if h and len(_query_sets(step)) > 1:
        step.e.wait("mxu", "a_ready")
    _products(step, h, place="first", free="f_free", later=later)
    step.e.signal("mxu", "f_ready")


def _first_page(step: Step, h: int, later: int = 0) -> None:
    """Load the first page of keys of the heads from h on; of this segment or one `later`."""
    e = step.e
    e.set("t1", later * step.layout.spans, of="ks", times=step.layout.spans)
    e.param("t1", step.at("pages"), plus="t1")
    e.set("t1", of="t1", times=step.layout.pages.bytes, plus="kv")
    _key_page(step, h, "t1")


def _first_scores(step: Step) -> Operands:
    step.e.wait("vpu", "f_ready")
    return _read(step, "first")


def _read(step: Step, place: str) -> Operands:
    """Return the operand of a place of scores in C; its elements may be more than an address field holds, a register has them."""
    step.e.set("t2", step.places.c[place] * step.layout.tile.rows)
    return {"a_space": "c", "a_reg": step.e.x("t2"), "a_stride": PAGE_KEYS // BLOCK}


def _scores(step: Step, h: int) -> Operands:
    """Load one page of keys and multiply; returns the operand of the scores `[queries][128]` in C, whose s_ready the vector unit has waited for."""
    _key_page(step, h, "page")
    _products(step, h, place="scores", free="s_free")
    step.e.signal("mxu", "s_ready")
    step.e.wait("vpu", "s_ready")
    return _read(step, "scores")


def _key_page(step: Step, h: int, page: str) -> None:
    """Load the keys of the heads from h on of the page at register `page`."""
    e, s, pages = step.e, step.layout.share, step.layout.pages
    count = step.heads * s.head_blocks * PAGE_KEYS // step.layout.tile.rows
    elements: Operands = {"count": count, "address": pages.keys + h * s.head_blocks * PAGE_KEYS * 32, "address_reg": e.x(page)}
    scales: Operands = {"target": "ws", "count": count, "dst": step.layout.pages_at, "dst_reg": e.x("pw"),
                        "address": pages.key_scales + h * s.head_blocks * PAGE_KEYS * 2, "address_reg": e.x(page)}  # fmt: skip
    _page(step, elements, scales)


def _products(step: Step, h: int, *, place: str, free: str, later: int = 0) -> None:
    """Multiply the page of keys that was loaded with the queries of the heads from h on, into a place of C."""
    e, s, n = step.e, step.layout.share, PAGE_KEYS // step.layout.tile.rows
    queries = step.places.a["q"] + later * step.shape.tokens * s.head_blocks
    e.wait("mxu", "page_ready", free)
    for i in range(step.heads):
        for at, m, offset, stride in _query_groups(step, h + i):
            e("gemm", m=m, n=n, k=s.head_blocks, w=step.layout.pages_at + i * s.head_blocks * n, w_reg=e.x("pw"), a=queries + offset,
              a_reg=e.x("sq"), a_stride=stride, c=step.places.c[place] + (i * s.group * step.shape.tokens + at) * n, c_stride=n, clear=1)  # fmt: skip
    _page_taken(step)


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
    e, t = step.e, step.shape.tokens
    limits: Operands = {"start_reg": e.x("start"), "low_reg": e.x("low"), "high_reg": e.x("high"), "fill": fill, "len": PAGE_KEYS}
    if t == 1:
        e("mask", rows=step.queries, **limits, **a, **dst)
        return
    for g in range(step.queries // t):
        here = a | {"a": int(a.get("a", 0)) + g * t * int(a["a_stride"]) * BLOCK}
        there = dst | {"dst": int(dst["dst"]) + g * t * int(dst["dst_stride"]) * BLOCK}
        e("mask", rows=t, step=1, **limits, **here, **there)


def _score_place(step: Step) -> int:
    """Return the blocks from row to row of the scores in V."""
    return max(1, step.places.kept_spans) * PAGE_KEYS // BLOCK


def _maximum(step: Step, scores: Operands, free: str) -> None:
    """Move one span's scores to V, LOWEST where a row may not see, and take their maxima into V "m"."""
    e, v, queries, stride = step.e, step.places.v, step.queries, _score_place(step)
    place: Operands = {"dst": v["scores"], "dst_reg": e.x("keep"), "dst_stride": stride}
    _mask(step, "lowest", scores, place)
    e.signal("vpu", free)
    e("vec", reduce="max", rows=queries, len=PAGE_KEYS, a=v["scores"], a_reg=e.x("keep"), a_stride=stride, dst=v["t"], dst_stride=1)
    e("vec", pre="max", len=queries, a=v["m"], b=v["t"], dst=v["m"])


def _mix(step: Step, h: int, *, kept: bool) -> None:
    """Turn one span's scores into powers of two, add up their sum, and mix the page's values with them."""
    e, s, v, tile, pages = step.e, step.layout.share, step.places.v, step.layout.tile, step.layout.pages
    queries, own, blocks = step.queries, s.group * step.shape.tokens, PAGE_KEYS // BLOCK
    stride = _score_place(step)
    keep: Operands = {"a_reg": e.x("keep")} if kept else {}
    p: Operands = {"a": v["scores"], "a_stride": stride, **keep}
    to: Operands = {"dst": v["scores"], "dst_stride": stride, "dst_reg": e.x("keep") if kept else 0}
    scores = p if kept else _scores(step, h)
    e("vec", pre="sub", fn="exp2", rows=queries, len=PAGE_KEYS, b_kind="scalar", b=v["m"], b_stride=1, **scores, **to)
    if not kept:  # kept scores are LOWEST where a row may not see: their power is +0 already
        e.signal("vpu", "s_free")
        _mask(step, "zero", p, to)
    e("vec", reduce="sum", rows=queries, len=PAGE_KEYS, dst=v["t"], dst_stride=1, **p)
    e("vec", pre="add", len=queries, a=v["l"], b=v["t"], dst=v["l"])
    n = s.value // tile.rows
    elements: Operands = {"count": step.heads * blocks * n, "address": pages.values + h * s.value * PAGE_KEYS, "address_reg": e.x("page")}
    scales: Operands = {
        "target": "v", "count": PAGE_KEYS, "rows": step.heads, "dst": v["value_scales"], "dst_reg": e.x("vs"),
        "address": pages.value_scales + h * s.head_blocks * PAGE_KEYS * 2, "address_reg": e.x("page"), "stride": s.head_blocks * PAGE_KEYS * 2,
    }  # fmt: skip
    _page(step, elements, scales)
    e.wait("vpu", "vs_ready", "aw_free")
    for i in range(step.heads):
        e("quant", pre="mul", rows=own, len=PAGE_KEYS, a=v["scores"] + i * own * stride * BLOCK, a_stride=stride, **keep,
          b=v["value_scales"] + i * PAGE_KEYS, b_reg=e.x("vs"), b_stride=0, dst=step.places.a["weights"] + i * own * blocks, dst_reg=e.x("aw"),
          dst_stride=blocks)  # fmt: skip
    e.signal("vpu", "vs_free", "aw_ready")
    e.wait("mxu", "page_ready", "aw_ready")
    for i in range(step.heads):
        e("gemm", m=own, n=n, k=blocks, w=step.layout.pages_at + i * blocks * n, w_reg=e.x("pw"), a=step.places.a["weights"] + i * own * blocks,
          a_reg=e.x("aw"), a_stride=blocks, c=step.places.c["mixed"] + i * own * n, c_reg=e.x("so"), c_stride=n, clear=0, unit=1)  # fmt: skip
    _page_taken(step)
    e.signal("mxu", "aw_free")
    e.toggle("vs", step.heads * PAGE_KEYS)
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
    if not _mixed_by_set(step):
        quantised(step, "mixed", {"a": start, "a_stride": stride // BLOCK}, rows=rows, length=length, offset=own, dst_stride=blocks)
    if s.n_tiles == 1:
        e.signal("vpu", "a_ready")
    else:
        gather_activations(step, "mixed", blocks)


def _packed(step: Step, length: int, stride: int) -> None:
    e, s, d, v = step.e, step.layout.share, step.layout.decoder, step.places.v
    e.signal("vpu", "kv_ready")
    e.wait("store", "kv_ready")
    e.set("t0")
    e.set("t1", step.layout.addresses["workspace"])
    with e.loop(step.shape.rows):
        for h in range(s.n_heads):
            e("store", target="v", format="fp32", count=d.d_head, src=v["mixed"] + h * s.head, src_reg=e.x("t0"), address=h * d.d_head * 4,
              address_reg=e.x("t1"))  # fmt: skip
        e.add("t0", s.n_heads * s.head)
        e.add("t1", stride * 4)
    e.signal("store", "kv_stored")
    e.wait("load", "kv_stored")
    e.set("t0")
    e.set("t1", step.layout.addresses["workspace"])
    with e.loop(step.shape.rows):
        e("load", target="v", format="fp32", count=length, dst=v["dense"], dst_reg=e.x("t0"), address_reg=e.x("t1"))
        e.add("t0", stride)
        e.add("t1", stride * 4)
    e.signal("load", "vs_ready")
    e.wait("vpu", "vs_ready")
