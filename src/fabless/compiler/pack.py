"""Pack: a model's weights as bytes in the order in which the program streams them, plus constants, rotary tables and the token table."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.compiler.partition import BLOCK, ceil
from fabless.compiler.place import SCALED
from fabless.compiler.step import constant_values
from fabless.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from fabless.compiler.place import Layout
    from fabless.compiler.tiles import Matrix
    from fabless.model.integer_reference import IntegerWeights

    Bytes = NDArray[np.uint8]
    Indices = NDArray[np.int64]


_TABLE_ROWS = 4096


def pack(layout: Layout, weights: IntegerWeights, out: Bytes | None = None) -> Bytes:
    """Return the first `image_bytes` of a tile's memory (written into `out` when given): everything that the host writes once.

    Raises `InputError` for weights of another model or format.
    """
    d = layout.decoder
    if weights.decoder != d:
        raise InputError(
            f"weights of {weights.decoder.name} cannot be packed for a program of {d.name}; compile for the model that is loaded"
        )
    image = np.zeros(layout.image_bytes, np.uint8) if out is None else out
    head = "embedding" if d.tied_embeddings else "head"
    scales = weights.matrices["embedding"].post_scale, weights.matrices[head].post_scale
    _put(image, layout.addresses["constants"], constant_values(layout, table_scale=scales[0], head_scale=scales[1]))
    _rotary(layout, image)
    if "table" in layout.addresses:
        _table(layout, weights, image)
    for i in layout.part.layers:
        _layer(layout, weights, image, i)
    if layout.has_head:
        _head(layout, weights.vectors["final_norm"], weights.matrices[head], image)
    return image


def _head(layout: Layout, final_norm: Any, matrix: Any, image: Bytes) -> None:
    """Write the final norm, then this tile's rows of the head."""
    at, d = layout.addresses["head"], layout.decoder
    norm = np.zeros(-(-layout.share.width // 8) * 8, np.float32)
    norm[: d.d_model] = final_norm
    _put(image, at, norm)
    first = layout.share.index * layout.share.vocabulary
    rows = _pad(np.arange(first, min(first + layout.share.vocabulary, d.n_vocab)), _outputs(layout.matrices["head"]))
    write_matrix(layout.matrices["head"], [matrix], rows, None, out=image[at + norm.nbytes :], format=layout.head_format)


def _put(image: Bytes, at: int, array: Any) -> None:
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    image[at : at + len(raw)] = raw


def _outputs(m: Matrix) -> int:
    return m.n_tiles * m.outputs


def _pad(indices: Indices, length: int) -> Indices:
    """Return indices followed by -1 (zeros) up to a length."""
    return np.concatenate([indices, np.full(length - len(indices), -1, np.int64)])


def _rotary(layout: Layout, image: Bytes) -> None:
    from fabless.model.integer_reference import rotary_table

    positions = layout.context_tokens + max(s.tokens for s in layout.shapes)
    for kind, (_, rope) in enumerate(layout.kinds):
        table = np.zeros((positions, layout.share.head), np.float32)
        table[:, : layout.decoder.d_head] = rotary_table(rope, layout.decoder.d_head, np.arange(positions))
        _put(image, layout.addresses["rotary"] + kind * table.nbytes, table)


def _table(layout: Layout, weights: IntegerWeights, image: Bytes) -> None:
    """Lay the token table out by rows: blocks of int8 then their scales, or whole numbers (bf16: without the scale of the tensor)."""
    matrix = weights.matrices["embedding"]
    _of_format("token table", matrix, layout.head_format)
    blocks, n = matrix.scales.shape
    size = layout.table_row_bytes
    rows = image[layout.addresses["table"] :][: n * size].reshape(n, size)
    for first in range(0, n, _TABLE_ROWS):
        at = np.arange(first, min(n, first + _TABLE_ROWS))
        if layout.table == "fp32":
            values = np.zeros((len(at), layout.share.width), np.float32)
            values[:, : matrix.n_columns] = matrix.rows(at)
            rows[at] = values.view(np.uint8)
        elif layout.table == "bf16":
            values = np.zeros((len(at), layout.share.width), np.float32)
            values[:, : matrix.n_columns] = replace(matrix, post_scale=1.0).rows(at)
            rows[at] = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)  # exact: the low halves are zero
        else:
            rows[at, : blocks * BLOCK] = matrix.codes[:, at].swapaxes(0, 1).reshape(len(at), -1).view(np.uint8)
            scales = np.ascontiguousarray(matrix.scales[:, at].T)
            scales = scales.astype(np.float16) if layout.table_scales == "fp16" else (scales.view(np.uint32) >> 16).astype(np.uint16)
            rows[at, blocks * BLOCK : blocks * (BLOCK + 2)] = scales.view(np.uint8).reshape(len(at), -1)


def _heads(first: int, n: int, real: int, d_head: int, width: int) -> Indices:
    """Return source rows of n heads from `first` of `real`, each padded to `width` rows; -1 stands for zeros."""
    rows = np.full((n, width), -1, np.int64)
    for h in range(n):
        if first + h < real:
            rows[h, :d_head] = (first + h) * d_head + np.arange(d_head)
    return rows.reshape(-1)


def _layer(layout: Layout, weights: IntegerWeights, image: Bytes, i: int) -> None:
    at = layout.addresses["layers"] + (i - layout.part.layers.start) * layout.layer_bytes
    sources = _sources(layout)
    _block(layout, weights, image[at:], f"layers.{i}.", vectors=layout.vectors, matrices={n: sources[n] for n in layout.layer_matrices})
    for e in layout.part.experts:
        first = at + layout.experts_at + (e - layout.part.experts.start) * layout.expert_bytes
        own = {n: sources[n] for n in ("gate_up", "down")}
        _block(layout, weights, image[first:], f"layers.{i}.experts.{e}.", vectors=layout.expert_vectors, matrices=own)


def _block(
    layout: Layout,
    weights: IntegerWeights,
    image: Bytes,
    prefix: str,
    *,
    vectors: Mapping[str, tuple[int, int]],
    matrices: Mapping[str, Any],
) -> None:
    """Write vectors, then matrices, of a layer or an expert from the start of `image`."""
    at = 0
    for name, (offset, length) in vectors.items():
        _put(image, offset, _vector(layout, weights, prefix, name, length))
        at = offset + 4 * (-(-length // 8) * 8)
    for name, (parts, rows, blocks) in matrices.items():
        m = layout.matrices[name]
        write_matrix(m, [weights.matrices[prefix + p] for p in parts], rows, blocks, out=image[at : at + m.bytes], format=layout.format)
        at += m.bytes


def _sources(layout: Layout) -> dict[str, tuple[tuple[str, ...], Indices, Indices | None]]:
    """Return per matrix the tensors stacked, the stacked rows in output order, and the blocks along k; -1 stands for zeros."""
    d, s, m = layout.decoder, layout.share, layout.matrices
    n_q, n_kv = d.n_heads * d.d_head, d.n_kv_heads * d.d_head
    q = _heads(s.first_kv_head * s.group, s.n_heads, d.n_heads, d.d_head, s.head)
    k = _heads(s.first_kv_head, s.n_kv_heads, d.n_kv_heads, d.d_head, s.head)
    v = _heads(s.first_kv_head, s.n_kv_heads, d.n_kv_heads, d.d_head, s.value)
    qkv = np.concatenate([np.where(k < 0, -1, k + n_q), np.where(v < 0, -1, v + n_q + n_kv), q])  # k and v are stored while q is multiplied
    model = np.arange(s.index * s.model, (s.index + 1) * s.model)
    model = np.where(model < d.d_model, model, -1)
    half = m["gate_up"].outputs // 2
    index, n_tiles = (0, 1) if layout.whole_experts else (s.index, s.n_tiles)
    hidden = index * s.hidden + np.arange(m["gate_up"].n_tiles * half)
    gates: Any = np.where((hidden < (index + 1) * s.hidden) & (hidden < d.d_ff), hidden, -1).reshape(-1, 1, half)
    gate_up = np.concatenate([gates, np.where(gates < 0, -1, gates + d.d_ff)], axis=1).reshape(-1)
    mixed = _real(np.arange(m["o"].blocks), ceil(n_q, BLOCK))
    router: dict[str, Any] = (
        {"router": (("router",), _pad(np.arange(d.routing.n_experts), _outputs(m["router"])), None)} if d.routing else {}
    )
    own = m["down"].blocks // n_tiles
    whole = np.where(np.arange(s.width) < d.d_model, np.arange(s.width), -1)
    tile, block = np.divmod(np.arange(m["down"].blocks), own)
    down = np.where(block < s.hidden // BLOCK, _real(tile * (s.hidden // BLOCK) + block, ceil(d.d_ff, BLOCK)), -1)
    return {
        "qkv": (("q", "k", "v"), _pad(qkv, _outputs(m["qkv"])), None), "o": (("o",), model, mixed),
        "gate_up": (("gate", "up"), gate_up, None), "down": (("down",), whole if layout.whole_experts else model, down), **router,
    }  # fmt: skip


def _real(blocks: Indices, n: int) -> Indices:
    return np.where(blocks < n, blocks, -1)


def _vector(layout: Layout, weights: IntegerWeights, prefix: str, name: str, length: int) -> np.ndarray:
    out, vectors = np.zeros(length, np.float32), weights.vectors
    if name in ("post_scales", "expert_scales"):
        names = [prefix + tensor for tensor in SCALED]
        out[:] = [weights.matrices[n].post_scale if n in weights.matrices else 0.0 for n in names]
    elif name.endswith("_bias"):
        parts, rows, _ = _sources(layout)[name.removesuffix("_bias")]
        stacked = np.concatenate([vectors[f"{prefix}{p}_bias"] for p in parts])
        out[: len(rows)] = np.where(rows < 0, np.float32(0), stacked[rows])
    elif name.startswith("sinks"):
        s, tokens = layout.share, int(name.removeprefix("sinks"))
        sinks = np.zeros(s.n_kv_heads * s.group, np.float32)
        held = vectors[f"{prefix}sinks"][s.first_kv_head * s.group :][: len(sinks)]
        sinks[: len(held)] = held
        repeated = np.repeat(sinks.reshape(s.n_kv_heads, s.group), tokens, axis=1)  # [K, G * T]
        out.reshape(s.n_kv_heads, -1)[:, : repeated.shape[1]] = repeated
    else:
        value = vectors[prefix + name]
        out[: len(value)] = value
    return out


def write_matrix(m: Matrix, parts: list[Any], rows: Indices, blocks: Indices | None, *, out: Bytes, format: str) -> None:
    """Write a tiled matrix: per column, per part of k, elements `[k][n][R][32]` then scales `[k][n][R]`."""
    for p in parts:
        _of_format(m.name, p, format)
    n_blocks = parts[0].codes.shape[0]
    blocks = np.arange(n_blocks) if blocks is None else _halves(blocks) if m.split else blocks
    codes: Any = parts[0].codes if len(parts) == 1 else np.concatenate([p.codes for p in parts], axis=1)
    scales: Any = parts[0].scales if len(parts) == 1 else np.concatenate([p.scales for p in parts], axis=1)
    if (blocks >= 0).all() and len(blocks) == n_blocks:
        zero_blocks = np.zeros(0, np.int64)
    else:
        zero_blocks = np.nonzero(blocks < 0)[0]
        codes, scales = codes[blocks], scales[blocks]
    at = 0
    for column in range(m.n_tiles):
        chosen = rows[column * m.outputs : (column + 1) * m.outputs]
        piece: Any = codes[:, chosen]
        piece_scales: Any = scales[:, chosen]
        absent = np.nonzero(chosen < 0)[0]
        piece[:, absent], piece_scales[:, absent] = 0, 0
        piece[zero_blocks], piece_scales[zero_blocks] = 0, 0
        first = 0
        for part, k in enumerate(m.depths):
            _put(out, at, _element_bytes(piece[first : first + k], m.elements))
            _put(out, at + m.element_bytes(part), _scale_bytes(piece_scales[first : first + k], m.scales))
            first, at = first + k, at + m.part_bytes(part)


def _of_format(name: str, matrix: Any, format: str) -> None:
    if matrix.format.name != format:
        raise InputError(f"{name}: weights are {matrix.format.name}, the program expects {format}; load the weights in that format")


def _halves(blocks: Indices) -> Indices:
    """Return the indices of blocks of 16 of blocks of 32; -1 stands for zeros."""
    return np.where(blocks[:, None] < 0, -1, 2 * blocks[:, None] + np.arange(2)).reshape(-1)


def _element_bytes(codes: Any, format: str) -> Bytes:
    if format == "e2m1_split":  # `[2k][outputs][32]`: blocks of 16 in the lower lanes, then in the upper ones
        codes = np.stack([codes[0::2, :, :16], codes[1::2, :, 16:]], axis=1)
    flat: Bytes = codes.reshape(-1).view(np.uint8)
    if format == "int8":
        return flat
    if format == "int4":
        nibbles = flat & np.uint8(15)
    else:  # e2m1, held doubled
        magnitude = np.array([0, 1, 2, 3, 4, 0, 5, 0, 6, 0, 0, 0, 7], np.uint8)[np.abs(flat.view(np.int8))]
        nibbles = magnitude | np.where(flat.view(np.int8) < 0, np.uint8(8), np.uint8(0))
    packed: Bytes = nibbles[0::2] | nibbles[1::2] << np.uint8(4)
    return packed


def _scale_bytes(scales: np.ndarray, format: str) -> Bytes:
    flat = np.ascontiguousarray(scales).reshape(-1)
    if format == "fp16":
        return flat.astype(np.float16).view(np.uint8)
    if format == "e4m3_half":  # the code is of twice the scale
        import ml_dtypes

        return (flat * np.float32(2)).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    exponent = flat.view(np.uint32) >> 23  # powers of two; e8m0_half: the code is of twice the scale
    return np.where(flat == 0, 0, exponent + (format == "e8m0_half")).astype(np.uint8)
