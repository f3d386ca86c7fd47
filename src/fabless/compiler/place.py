"""Place: where everything lies in memory and in the tile's buffers.

Memory holds, in this order: small constants; the token table where the head's own copy cannot serve; per layer its vectors, then its matrices in
the order of use; the head; rotary tables; logits; a workspace; the paged cache. A page of one layer holds 128 keys:

    K  [kv head][block of head][key][32] int8      a `load w` of one head is contiguous: words of R keys
    V  [kv head][block of 32 keys][element][32]     int8, keys along k: as contiguous
    KS, VS  [kv head][block of head][key] bf16      scales; those of V are equal over the blocks of a head
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fabless.compiler.partition import BLOCK, PAGE_KEYS, Part, Shape, Share, ceil, share, up
from fabless.compiler.tiles import STORED, Matrix, choose
from fabless.core.errors import InfeasibleError, UnsupportedError
from fabless.core.units import si
from fabless.program.program import Buffer

if TYPE_CHECKING:
    from fabless.model.decoder import Decoder, Rope
    from fabless.program.tile import Tile

_PAGE_ALIGN = 256
_REACH = 1 << 16  # addresses of 16 bits
_STAGE = 4
_MAX_STRIDE = 511  # blocks from row to row of a vector operand
#: The tensors whose scales a layer's (an expert's) vector of scales holds, in its order; only NVFP4 has them.
SCALED = ("q", "k", "v", "o", "gate", "up", "down", "router")


class Space:
    """Hand out consecutive aligned pieces of one memory; `end` is what was taken."""

    def __init__(self, name: str, capacity: int, align: int) -> None:
        self.name, self.capacity, self.align, self.end = name, capacity, align, 0

    def take(self, what: str, size: int) -> int:
        """Return the start of `size` more; raises `InfeasibleError` naming what did not fit and what would."""
        start = self.end
        self.end = start + up(max(1, size), self.align)
        if self.end > self.capacity:
            raise InfeasibleError(
                f"{self.name}: '{what}' needs {size:,} behind {start:,}, the tile has {self.capacity:,}; "
                f"compile for fewer rows at a time or a shorter context, use more tiles, or enlarge the buffer"
            )
        return start


@dataclass(frozen=True, slots=True)
class Pages:
    """Give the offsets inside a page of one layer, and its size in bytes."""

    keys: int
    values: int
    key_scales: int
    value_scales: int
    bytes: int
    value: int
    n_kv_heads: int
    head_blocks: int

    @classmethod
    def of(cls, s: Share) -> Pages:
        """Lay out a page for a tile's share of heads."""
        k_bytes = s.n_kv_heads * s.head_blocks * PAGE_KEYS * 32
        v_bytes = PAGE_KEYS * s.n_kv_heads * s.value
        scale_bytes = s.n_kv_heads * s.head_blocks * PAGE_KEYS * 2
        total = up(k_bytes + v_bytes + 2 * scale_bytes, _PAGE_ALIGN)
        return cls(0, k_bytes, k_bytes + v_bytes, k_bytes + v_bytes + scale_bytes, total, s.value, s.n_kv_heads, s.head_blocks)

    def value_offset(self, key: int) -> int:
        """Return the byte of a key inside the V part, from the part's start."""
        return key // BLOCK * self.value * BLOCK + key % BLOCK


@dataclass(frozen=True)
class Layout:
    """Hold the matrices, the vectors and the addresses in memory of one tile's share of a model; the same for every shape of launch."""

    decoder: Decoder
    tile: Tile
    part: Part
    share: Share
    format: str
    head_format: str  # of the head and of the token table
    context_tokens: int
    n_pages: int  # without the scratch page, which is page n_pages
    shapes: tuple[Shape, ...]
    slot_words: int
    slots: int
    page_words: int  # of a place of the ring of pages
    heads: dict[Shape, int]  # KV heads that attention takes at once
    matrices: dict[str, Matrix] = field(repr=False)
    vectors: dict[str, tuple[int, int]] = field(repr=False)  # name -> (bytes behind the layer's start, elements)
    expert_vectors: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    vector_bytes: int = 0
    expert_vector_bytes: int = 0
    addresses: dict[str, int] = field(default_factory=dict, repr=False)
    buffers: tuple[Buffer, ...] = field(default=(), repr=False)
    kinds: tuple[tuple[int, Rope], ...] = ()
    kind_of_layer: tuple[int, ...] = ()
    pages: Pages = field(default=None)  # type: ignore[assignment]

    @property
    def pages_at(self) -> int:
        """Return the first weight word of the ring of pages, behind the places for pieces of weights."""
        return self.slots * self.slot_words

    @property
    def zeros_at(self) -> int:
        """Return the first of the weight words that are zero."""
        return self.pages_at + self.slots * self.page_words

    @property
    def layer_matrices(self) -> tuple[str, ...]:
        """Return the matrices that a layer has once, in the order of use."""
        return ("qkv", "o", "router") if self.decoder.routing else ("qkv", "o", "gate_up", "down")

    @property
    def experts_at(self) -> int:
        """Return the bytes of a layer before its experts: all of it where there are none."""
        return self.vector_bytes + sum(self.matrices[m].bytes for m in self.layer_matrices)

    @property
    def expert_bytes(self) -> int:
        """Return the bytes of one expert: its vectors, then its matrices."""
        return self.expert_vector_bytes + self.matrices["gate_up"].bytes + self.matrices["down"].bytes

    @property
    def layer_bytes(self) -> int:
        """Return the bytes of one layer."""
        return self.experts_at + len(self.part.experts) * self.expert_bytes

    @property
    def whole_experts(self) -> bool:
        """Tell whether experts are spread over the tiles, each of them whole."""
        return self.part.partition == "expert" and self.part.n_tiles > 1

    @property
    def has_head(self) -> bool:
        """Tell whether this tile computes logits."""
        return self.part.has_head(self.decoder)

    @property
    def spans(self) -> int:
        """Return the most spans of 128 keys that a context has."""
        return ceil(self.context_tokens, PAGE_KEYS)

    @property
    def image_bytes(self) -> int:
        """Return the bytes that the host writes once: constants and weights."""
        return self.addresses["logits" if self.has_head else "workspace"]

    @property
    def memory_bytes(self) -> int:
        """Return the bytes of memory in all."""
        return max(b.end for b in self.buffers)

    @property
    def table(self) -> str:
        """Return where token rows are read: "head" (its matrix), or a table of their own: "int8", "bf16" (NVFP4's elements times the scales of their
        blocks, exact in 8 significant bits), "fp32" (dequantised, for vectors wider than a block).
        """
        if self.tile.vector_align > BLOCK:
            return "fp32"
        if self.matrices["head"].split:
            return "bf16"
        head = self.matrices["head"]
        aligned = all(k % BLOCK == 0 for k in head.parts[:-1])  # each part's scales are loaded behind those of the last
        shared = self.decoder.tied_embeddings and self.part.n_tiles == 1 and head.elements == "int8" and aligned
        return "head" if shared else "int8"

    @property
    def table_row_bytes(self) -> int:
        """Return the bytes of a token's row in its own table: int8 blocks then scales, or whole numbers, padded to 32."""
        blocks = ceil(self.decoder.d_model, BLOCK)
        whole = {"fp32": 4 * self.share.width, "bf16": 2 * self.share.width}
        return whole.get(self.table, blocks * BLOCK + up(2 * blocks, 32))

    @property
    def table_scales(self) -> str:
        """Return the format of the scales of an int8 token row: the head's own where it is read, else 16 bits that hold every scale exactly."""
        scales = self.matrices["head"].scales
        return "fp16" if scales == "fp16" else "e8m0" if self.table == "head" else "bf16"


def lay_out(
    decoder: Decoder,
    tile: Tile,
    shapes: tuple[Shape, ...],
    *,
    part: Part,
    context_tokens: int,
    n_pages: int,
    format: str,
    head_format: str,
    slots: int,
) -> Layout:
    """Choose tiles and addresses; raises `InfeasibleError` when a buffer or the memory is too small, `UnsupportedError` by name."""
    for name in (format, head_format):
        _supported(name)
    s = share(decoder, tile, part)
    keys = up(context_tokens, PAGE_KEYS)
    heads = {shape: 1 if decoder.sinks else heads_at_once(tile, s, shape, keys) for shape in shapes}  # sinks lie apart, head by head
    page_words = head_page_words(tile, s) * max(heads.values())
    slot_words = (tile.weight_words - s.value // tile.rows - slots * page_words) // slots
    if slot_words < 1:
        raise InfeasibleError(
            f"{decoder.name}: a page of one head's keys or values takes {page_words:,} weight words, {slots} of them and {s.value // tile.rows:,} of "
            f"zeros leave no room for weights; give the tile a weight buffer of more than {slots * page_words + s.value // tile.rows:,} words"
        )
    kinds = tuple(dict.fromkeys(zip(decoder.windows, decoder.ropes, strict=True)))
    of_layer = tuple(kinds.index(k) for k in zip(decoder.windows, decoder.ropes, strict=True))
    matrices = _matrices(decoder, tile, s, part=part, heads=heads, slot=slot_words, formats=STORED[format], head=STORED[head_format])
    down = s.width if part.partition == "expert" else s.model
    mlp = {"gate_up_bias": matrices["gate_up"].n_tiles * matrices["gate_up"].outputs, "down_bias": down} if decoder.mlp_bias else {}
    expert_scales = {"expert_scales": len(SCALED)} if matrices["gate_up"].split else {}
    vectors, vector_bytes = _vectors(_lengths(decoder, tile, s, matrices, shapes) | ({} if decoder.routing else mlp))
    expert_vectors, expert_vector_bytes = _vectors(mlp | expert_scales if decoder.routing else {})
    layout = Layout(
        decoder, tile, part, s, format, head_format, context_tokens, n_pages, shapes, slot_words, slots, page_words, heads, matrices, vectors,
        expert_vectors, vector_bytes, expert_vector_bytes, kinds=kinds, kind_of_layer=of_layer, pages=Pages.of(s),
    )  # fmt: skip
    _place(layout)
    return layout


def _supported(format: str) -> None:
    if format not in STORED:
        raise UnsupportedError(f"weights in {format} are not compiled; known: {', '.join(STORED)}")


def _matrices(
    decoder: Decoder,
    tile: Tile,
    s: Share,
    *,
    part: Part,
    heads: dict[Shape, int],
    slot: int,
    formats: tuple[str, str],
    head: tuple[str, str],
) -> dict[str, Matrix]:
    rows = tile.rows
    granule = max(1, tile.vector_align // rows)
    left = {shape: tile.accumulator_words - attention_accumulators(tile, s, shape, n) for shape, n in heads.items()}
    rest = min(left.values())
    column = min(words // 2 // shape.rows for shape, words in left.items())
    head_column = min(words // 2 // shape.segments for shape, words in left.items())
    most, segments = max(shape.rows for shape in heads), max(shape.segments for shape in heads)
    stage = min(tile.vector_elements, _REACH) // _STAGE  # what a column may take of the vector buffer
    column, head_column = min(column, 2 * stage // (most * rows)), min(head_column, stage // (2 * segments * rows))
    qkv_words = up(ceil((s.n_heads + s.n_kv_heads) * s.head + s.n_kv_heads * s.value, rows), granule)
    if qkv_words * most > rest:
        fits = f"compile for {rest // qkv_words}" if rest >= qkv_words else "compile for fewer"
        raise InfeasibleError(
            f"{decoder.name}: q, k and v of {most} rows need {qkv_words * most:,} accumulator words, {max(0, rest):,} are left beside the scores; "
            f"{fits if most > 1 else 'use more tiles for fewer heads'} {'rows at a time' if most > 1 else 'each'}, or give the tile more accumulators"
        )

    def chosen(name: str, words: int, blocks: int, *, limit: int = column, grain: int = granule, exact: bool = False) -> Matrix:
        stored = head if name == "head" else formats
        return choose(name, words, blocks, tile, slot_words=slot, column_words=limit, granule=grain, exact=exact, formats=stored)

    d_blocks, mixed_blocks = ceil(decoder.d_model, BLOCK), s.n_tiles * s.n_heads * decoder.d_head // BLOCK
    mixed_blocks = ceil(s.n_heads * decoder.d_head, BLOCK) if s.n_tiles == 1 else mixed_blocks
    out = {"qkv": chosen("qkv", qkv_words, d_blocks, limit=qkv_words, exact=True)}
    out["o"] = chosen("o", s.model // rows, mixed_blocks, exact=True)
    out["gate_up"] = chosen("gate_up", ceil(2 * s.hidden, rows), d_blocks, grain=2 * granule)
    hidden = out["gate_up"].n_tiles * out["gate_up"].outputs // 2
    whole = part.partition == "expert"
    out["down"] = chosen("down", (s.width if whole else s.model) // rows, (1 if whole else s.n_tiles) * hidden // BLOCK, exact=True)
    if decoder.routing:
        out["router"] = chosen("router", up(ceil(decoder.routing.n_experts, rows), granule), d_blocks, exact=True)
    out["head"] = chosen("head", ceil(s.vocabulary, rows), d_blocks, limit=head_column)
    return out


def head_page_words(tile: Tile, s: Share) -> int:
    """Return the weight words that a page of one head's keys or values takes."""
    return max(s.head_blocks * PAGE_KEYS // tile.rows, PAGE_KEYS // BLOCK * s.value // tile.rows)


def heads_at_once(tile: Tile, s: Share, shape: Shape, keys: int) -> int:
    """Return how many KV heads attention takes in one instruction: as many as make up to 32 rows, for fewer fills and transfers.

    Pages of more take at most a quarter of the weight buffer, scores a quarter of the accumulators, those of all `keys` half of the vector buffer.
    """
    for n in range(s.n_kv_heads, 1, -1):
        rows = n * s.group * shape.tokens
        small = 8 * n * head_page_words(tile, s) <= tile.weight_words and 8 * rows * (PAGE_KEYS + s.value) <= tile.accumulator_elements
        if s.n_kv_heads % n == 0 and rows <= BLOCK and small and 2 * rows * keys <= min(tile.vector_elements, _REACH):
            return n
    return 1


def attention_accumulators(tile: Tile, s: Share, shape: Shape, heads: int) -> int:
    """Return the accumulator words of two score tiles and two outputs of the queries of so many KV heads."""
    return 2 * heads * s.group * shape.tokens * (PAGE_KEYS + s.value) // tile.rows


def _lengths(decoder: Decoder, tile: Tile, s: Share, matrices: dict[str, Matrix], shapes: tuple[Shape, ...]) -> dict[str, int]:
    """Return the elements of each vector of a layer but those of the MLP's biases."""
    lengths = {"attention_norm": s.width, "mlp_norm": s.width}
    if decoder.post_norms:
        lengths |= {"attention_post_norm": s.width, "mlp_post_norm": s.width}
    if decoder.qk_norm:
        lengths |= {"q_norm": s.head, "k_norm": s.head}
    if decoder.qkv_bias:
        lengths["qkv_bias"] = matrices["qkv"].n_tiles * matrices["qkv"].outputs
    if decoder.o_bias:
        lengths["o_bias"] = s.model
    if decoder.sinks:  # one a query, for every number of tokens that a launch has
        lengths |= {f"sinks{shape.tokens}": s.n_kv_heads * sink_slot(tile, s, shape) for shape in shapes}
    if decoder.routing and decoder.mlp_bias:
        lengths["router_bias"] = matrices["router"].n_tiles * matrices["router"].outputs
    if matrices["qkv"].split:
        lengths["post_scales"] = len(SCALED)
    return lengths


def sink_slot(tile: Tile, s: Share, shape: Shape) -> int:
    """Return the elements that the sinks of one KV head's queries take."""
    return up(s.group * shape.tokens, tile.vector_align)


def _vectors(lengths: dict[str, int]) -> tuple[dict[str, tuple[int, int]], int]:
    at, out = 0, {}
    for name, length in lengths.items():
        out[name] = (at, length)
        at += 4 * up(length, 8)
    return out, at


def _place(layout: Layout) -> None:
    d, s, space = layout.decoder, layout.share, Space("memory", 1 << 62, 64)
    part, n_layers = layout.part, len(layout.part.layers)
    addresses: dict[str, int] = layout.addresses
    sizes = {"constants": 4 * 32, "zeros": max(64, (s.value // layout.tile.rows) * layout.tile.rows * 32)}
    if layout.table != "head" and part.has_table:
        sizes["table"] = d.n_vocab * layout.table_row_bytes
    sizes["layers"] = n_layers * layout.layer_bytes
    if layout.has_head:
        sizes["head"] = 4 * up(s.width, 8) + layout.matrices["head"].bytes
    positions = layout.context_tokens + max(shape.tokens for shape in layout.shapes)
    sizes["rotary"] = len(layout.kinds) * positions * s.head * 4
    kinds = dict.fromkeys(sizes, "weights")
    vocabulary = layout.matrices["head"].n_tiles * layout.matrices["head"].outputs
    segments = max(shape.segments for shape in layout.shapes)
    if layout.has_head:
        sizes["logits"] = segments * vocabulary * 4
    sizes["workspace"] = max(64, max(shape.rows for shape in layout.shapes) * up(s.n_heads * d.d_head, layout.tile.vector_align) * 4)
    sizes["cache"] = n_layers * (layout.n_pages + 1) * layout.pages.bytes
    kinds |= {"logits": "output", "workspace": "workspace", "cache": "cache"}
    buffers = []
    for name, size in sizes.items():
        addresses[name] = space.take(name, size)
        shape = (segments, vocabulary) if name == "logits" else ()
        buffers.append(Buffer(name, addresses[name], size, kinds[name], "fp32" if name == "logits" else "", shape))
    object.__setattr__(layout, "buffers", tuple(buffers))
    if space.end > layout.tile.memory_bytes:
        weights, cache = layout.image_bytes, sizes["cache"]
        raise InfeasibleError(
            f"{d.name}: {part} needs {si(space.end, 'B')} of memory ({si(weights, 'B')} weights, {si(cache, 'B')} cache), "
            f"it has {si(layout.tile.memory_bytes, 'B')}; use more tiles, a shorter context, or a chip with more DRAM"
        )


@dataclass(frozen=True)
class Scratch:
    """Hold the starts of everything in the tile's buffers for one shape of launch: V elements, A words, C words.

    Scores of up to `kept_spans` spans of 128 keys stay in V; those of a longer context are computed twice.
    """

    v: dict[str, int]
    a: dict[str, int]
    c: dict[str, int]
    kept_spans: int


def scratch(layout: Layout, shape: Shape, *, most_spans: int) -> Scratch:
    """Allocate the buffers for one shape; scores of as many spans as fit are kept, `most_spans` at most."""
    tile, s = layout.tile, layout.share
    kept = min(layout.spans, most_spans, _MAX_STRIDE * BLOCK // PAGE_KEYS)
    v = _vector_places(layout, shape, max(1, kept), fits=kept <= 1)
    while v is None:
        kept -= 1
        v = _vector_places(layout, shape, kept, fits=kept == 1)
    c_space = Space("accumulators", tile.accumulator_words, max(1, tile.vector_align // tile.rows))
    m = layout.matrices
    projection = max(
        *(shape.rows * m[n].n * m[n].n_tiles for n in ("qkv", "router") if n in m),
        *(2 * shape.rows * m[n].n for n in ("o", "gate_up", "down")),
        2 * shape.segments * m["head"].n,
    )
    rows = layout.heads[shape] * s.group * shape.tokens
    c = {n: c_space.take(n, size) for n, size in (
        ("projection", projection), ("first", rows * PAGE_KEYS // tile.rows), ("scores", rows * PAGE_KEYS // tile.rows),
        ("mixed", 2 * rows * s.value // tile.rows),
    )}  # fmt: skip
    return Scratch(v, _activation_places(layout, shape, rows), c, kept)


def _vector_places(layout: Layout, shape: Shape, spans: int, *, fits: bool) -> dict[str, int] | None:
    """Return starts by name with scores of so many spans. The phases of a layer share one place: what one leaves there, none that follows reads.

    Where they do not fit: None, or `InfeasibleError` when they are said to (`fits`).
    """
    d, s, m, tile = layout.decoder, layout.share, layout.matrices, layout.tile
    heads = layout.heads[shape]
    rows, queries = shape.rows, heads * s.group * shape.tokens
    blocks = ceil(d.d_model, BLOCK)
    lasting = {
        "constants": BLOCK, "x": rows * s.width, "norm": 2 * norm_slot(layout), "rotary": len(layout.kinds) * rows * s.head,
        "value_scales": 2 * heads * PAGE_KEYS, "token": 2 * blocks * BLOCK, "token_scales": 2 * up(blocks, BLOCK),
        **dict.fromkeys(("m", "l", "t", "r", *(["sinks"] if d.sinks else [])), max(queries, (s.n_heads + s.n_kv_heads) * rows)),
    }  # fmt: skip
    phases: list[dict[str, int]] = [
        {"y": rows * s.width, "biased": max(m[n].outputs for n in ("o", "down")) * rows if d.mlp_bias or d.o_bias or m["o"].split else 0},
        {"heads": (s.n_heads + s.n_kv_heads) * rows * s.head, "qkv": m["qkv"].n_tiles * m["qkv"].outputs * rows if d.qkv_bias or m["qkv"].split else 0},
        {
            "scores": queries * PAGE_KEYS * spans, "mixed": rows * s.n_heads * s.head,
            "dense": rows * up(s.n_heads * d.d_head, tile.vector_align) if s.head != d.d_head else 0,
        },
        _mlp_places(layout, rows),
        {"logits": 2 * shape.segments * m["head"].outputs},
    ]  # fmt: skip
    space = Space("vector buffer", min(tile.vector_elements, _REACH), tile.vector_align)
    out = {name: space.take(name, size) for name, size in lasting.items()}
    start = space.end
    for phase in phases:
        space.end = start
        try:
            out |= {name: space.take(name, size) for name, size in phase.items() if size}
        except InfeasibleError:
            if fits:
                raise
            return None
    return out


def _mlp_places(layout: Layout, rows: int) -> dict[str, int]:
    d, m = layout.decoder, layout.matrices
    each = 1 if d.routing else rows  # experts take one row at a time
    whole = layout.whole_experts
    sizes = {"hidden": each * m["gate_up"].outputs // 2, "gates": each * m["gate_up"].outputs if d.mlp_bias or m["gate_up"].split else 0}
    if not d.routing:
        return sizes
    routed = dict.fromkeys(("picked", "values", "gate", "divisor"), d.routing.n_routed)
    router = m["router"].n_tiles * m["router"].outputs
    spread = (
        {"local": d.routing.n_routed, "foreign": d.routing.n_routed, "chosen": d.routing.n_routed * layout.share.width} if whole else {}
    )
    part = layout.share.width if whole else m["down"].outputs
    return sizes | routed | spread | {"router": rows * router, "left": router, "part": part, "routed": layout.share.width}


def norm_slot(layout: Layout) -> int:
    """Return the elements of one slot of the ring that layer vectors are loaded into."""
    pieces = {"gate_up_bias": layout.matrices["gate_up"].outputs, "down_bias": layout.matrices["down"].outputs}  # loaded column by column
    lengths = [pieces.get(name, length) for name, (_, length) in (layout.vectors | layout.expert_vectors).items()]
    return up(max(lengths, default=0), layout.tile.vector_align)


def _activation_places(layout: Layout, shape: Shape, queries: int) -> dict[str, int]:
    """Return starts by name. Attention and MLP share one place: semaphores order whoever still reads before whoever writes."""
    s, m, rows = layout.share, layout.matrices, shape.rows
    lasting = {"zero": 1, "normed": rows * m["qkv"].blocks}
    phases = [
        {
            "q": s.n_heads * rows * s.head_blocks, "k": rows * s.n_kv_heads * s.head_blocks, "v": rows * s.n_kv_heads * s.head_blocks,
            "weights": 2 * queries * PAGE_KEYS // BLOCK, "mixed": rows * m["o"].blocks,
        },
        {"hidden": rows * m["down"].blocks},
    ]  # fmt: skip
    space = Space("activation buffer", layout.tile.activation_words, 1)
    out = {name: space.take(name, size) for name, size in lasting.items()}
    start = space.end
    for phase in phases:
        space.end = start
        out |= {name: space.take(name, size) for name, size in phase.items()}
    return out
