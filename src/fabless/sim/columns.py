"""Ops as arrays: the columns from which every op of many graphs is priced at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fabless.mapping.gemm import Products
from fabless.model.graph import Attention, Collective, Gather, Gemm, Scan, Vector
from fabless.number.formats import element_of
from fabless.sim.kernels import Attentions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fabless.model.graph import Op
    from fabless.number.formats import NumberFormat

    Floats = NDArray[np.float64]
    Ints = NDArray[np.intp]

#: Lane operations per score of a streaming softmax: scale, running maximum, subtract, exponential, sum.
#: Source: Milakov and Gimelshein, arXiv 1805.02867, algorithm 3.
SOFTMAX_OPS_PER_SCORE = 5.0
#: Vector work that serving libraries run inside a neighbouring kernel: residual adds inside the norm, rotary inside attention.
#: Source: vLLM csrc/layernorm_kernels.cu (fused_add_rms_norm); TensorRT-LLM fused QKV preprocessing.
FUSED_FUNCTIONS = ("residual", "rotary")


def operand_format(activations: NumberFormat, weights: NumberFormat) -> NumberFormat:
    """Return the format that the multiplier sees: the wider operand, to which the narrower is converted on the way in."""
    return activations if element_of(activations).bits >= element_of(weights).bits else weights


@dataclass(frozen=True, slots=True)
class Columns:
    """Hold unique ops (one repeat each) as arrays over ops, and their matrix products as arrays over products.

    `owner[i]` is the op of product i; `gemm[i]` says that it is a Gemm (else half of an attention or scan); `kernels` counts the launches of one
    repeat. `activation_bytes` are operands that a chip which keeps activations on chip need not move; `stored_bytes` move in any case.
    `attentions` holds each attention's spans for kernels that price them whole.
    """

    ops: tuple[Op, ...]
    products: Products
    owner: Ints
    gemm: NDArray[np.bool_]
    formats: tuple[NumberFormat, ...]
    format_index: Ints
    stored_bytes: Floats
    activation_bytes: Floats
    vector_ops: Floats
    kernels: Floats
    collectives: tuple[tuple[int, Collective], ...]
    attentions: Attentions
    attention_owner: Ints
    attention_formats: tuple[NumberFormat, ...]

    def sum_products(self, values: Floats) -> Floats:
        """Return per-op sums of a per-product array."""
        return np.bincount(self.owner, weights=values, minlength=len(self.ops)).astype(np.float64)


#: Rows and columns of one head's recurrent state: those of gated delta nets and of Mamba-2 (its state is 128 wide), in whose chunked forms
#: a state is multiplied by many tokens at once. Arithmetic of a scan is bound by reading states, not by this shape.
_STATE_SIDE = 128


class _Builder:
    """Collect rows op by op; becomes `Columns`."""

    def __init__(self, n_ops: int) -> None:
        self.rows: list[tuple[float, float, float, float, float, float, float]] = []
        self.owner: list[int] = []
        self.gemm: list[bool] = []
        self.formats: dict[NumberFormat, int] = {}
        self.format_index: list[int] = []
        self.stored = np.zeros(n_ops)
        self.activation = np.zeros(n_ops)
        self.vector = np.zeros(n_ops)
        self.kernels = np.ones(n_ops)
        self.spans: list[tuple[float, ...]] = []
        self.span_owner: list[int] = []
        self.span_formats: list[NumberFormat] = []

    def product(self, op: int, row: tuple[float, float, float, float, float, float, float], format: NumberFormat, *, gemm: bool) -> None:
        self.rows.append(row)
        self.owner.append(op)
        self.gemm.append(gemm)
        self.format_index.append(self.formats.setdefault(format, len(self.formats)))


def columns(ops: Sequence[Op]) -> Columns:
    """Return the columns of a list of ops; `count` is ignored, each op stands for one repeat."""
    b = _Builder(len(ops))
    collectives = []
    for i, op in enumerate(ops):
        if isinstance(op, Gemm):
            _gemm(b, i, op)
        elif isinstance(op, Attention):
            _attention(b, i, op)
        elif isinstance(op, Vector):
            b.vector[i] = op.elements * op.ops_per_element
            b.activation[i] = op.read_bytes + op.write_bytes
            b.kernels[i] = 0.0 if op.function in FUSED_FUNCTIONS else 1.0
        elif isinstance(op, Gather):
            b.stored[i] = op.rows * op.row_bytes
        elif isinstance(op, Scan):
            _scan(b, i, op)
        else:
            b.kernels[i] = 0.0
            collectives.append((i, op))
    table = np.array(b.rows, dtype=np.float64).reshape(-1, 7).T
    return Columns(
        tuple(ops),
        Products(*table),
        np.array(b.owner, dtype=np.intp),
        np.array(b.gemm, dtype=np.bool_),
        tuple(b.formats),
        np.array(b.format_index, dtype=np.intp),
        b.stored,
        b.activation,
        b.vector,
        b.kernels,
        tuple(collectives),
        Attentions(*np.array(b.spans, dtype=np.float64).reshape(-1, len(Attentions._fields)).T),
        np.array(b.span_owner, dtype=np.intp),
        tuple(b.span_formats),
    )


def _gemm(b: _Builder, i: int, op: Gemm) -> None:
    sizes = (op.activations.bytes_per_value, op.weights.bytes_per_value, op.outputs.bytes_per_value)
    b.product(i, (op.m, float(op.n), float(op.k), op.batch, *sizes), operand_format(op.activations, op.weights), gemm=True)


def _attention(b: _Builder, i: int, op: Attention) -> None:
    """Price Q.K and P.V of each span as products over the mean number of keys that a query sees; scores stay on chip (flash attention).

    Source: Dao et al., FlashAttention, arXiv 2205.14135.
    """
    group = op.n_heads / op.n_kv_heads
    store = op.n_kv_heads * (op.d_key_store + op.d_value_store) * op.kv_cache.bytes_per_value
    for span in op.spans:
        seen = span.pairs / span.queries
        matrices = float(span.count * op.n_kv_heads)
        rows = group * span.queries
        b.product(i, (rows, seen, float(op.d_qk), matrices, 0.0, 0.0, 0.0), op.operands, gemm=False)
        b.product(i, (rows, float(op.d_v), seen, matrices, 0.0, 0.0, 0.0), op.operands, gemm=False)
        b.stored[i] += span.count * (span.keys + min(span.queries, span.keys)) * store
        b.activation[i] += span.count * span.queries * op.n_heads * (op.d_qk + op.d_v) * op.outputs.bytes_per_value
        b.vector[i] += span.count * op.n_heads * span.pairs * SOFTMAX_OPS_PER_SCORE
        b.spans.append((
            span.count, span.queries, span.keys, span.pairs, op.n_heads, op.n_kv_heads, op.d_qk, op.d_v,
            op.d_key_store + op.d_value_store, op.kv_cache.bytes_per_value, op.outputs.bytes_per_value,
        ))  # fmt: skip
        b.span_owner.append(i)
        b.span_formats.append(op.operands)


def _scan(b: _Builder, i: int, op: Scan) -> None:
    """Price the recurrence as products with square states, one after the other: its macs at close to the rate of its format on any matrix unit."""
    b.product(i, (op.macs_per_repeat / _STATE_SIDE**2, float(_STATE_SIDE), float(_STATE_SIDE), 1.0, 0.0, 0.0, 0.0), op.operands, gemm=False)
    b.stored[i] = op.state_read_bytes + op.state_write_bytes
    b.vector[i] = op.vector_ops_per_repeat


def one_repeat(op: Op) -> Op:
    """Return an op with its name and count taken away: what two ops must share to cost the same."""
    return replace(op, name="", count=1)
