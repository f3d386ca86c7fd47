"""What one step of a model computes: a flat list of ops, each with its shape, its formats and how it may be sharded.

A graph is the meeting point of everything above it: the roofline prices its ops, the compiler turns them into instructions.
Identical layers are one op with a `count`, so that a 126-layer model is a dozen or two of ops, not thousands.
Dimensions may be fractional where they are expectations (tokens per touched expert).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from fabless.number.formats import BF16, NumberFormat

if TYPE_CHECKING:
    from fabless.model.step import Recipe, Step


class Shard(Enum):
    """Say which dimension tensor (or expert) parallelism divides."""

    REPLICATED = "replicated"  # every chip computes it whole
    COLUMN = "column"  # n is divided: outputs stay apart
    ROW = "row"  # k is divided: partial sums are all-reduced after the op
    HEADS = "heads"  # attention heads (and KV heads, replicated when fewer than chips)
    EXPERT = "expert"  # routed experts: divided by expert parallelism, inside an expert by tensor parallelism


@dataclass(frozen=True, slots=True)
class Gemm:
    """Multiply `[batch, m, k]` by `[batch, k, n]`; macs = batch * m * n * k.

    `batch` counts independent matrices (routed experts touched); `stored` says whether the second operand is a weight that lives in DRAM
    (else both are activations). `combine` marks the last product of routed experts: its rows go back to their tokens (the first's came from them).
    """

    name: str
    count: int
    m: float
    n: int
    k: int
    batch: float = 1.0
    stored: bool = True
    activations: NumberFormat = BF16
    weights: NumberFormat = BF16
    outputs: NumberFormat = BF16
    shard: Shard = Shard.REPLICATED
    n_experts: int = 0  # routed experts of the layer, when shard is EXPERT
    n_routed: int = 0  # experts that one token visits
    combine: bool = False

    @property
    def macs(self) -> float:
        """Return the multiply-accumulates of all `count` repeats."""
        return self.count * self.batch * self.m * self.n * self.k

    @property
    def weight_bytes(self) -> float:
        """Return the bytes of stored weights that all repeats stream (zero for activation products)."""
        return self.count * self.batch * self.n * self.k * self.weights.bytes_per_value if self.stored else 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """Group `count` sequences with `queries` new tokens over `keys` cached-and-new tokens, after windowing.

    `pairs` is the exact number of (query, key) pairs that the mask leaves, per sequence and head.
    """

    count: int
    queries: int
    keys: int
    pairs: float


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax(Q.K)V with grouped queries over cached keys and values.

    `d_qk` and `d_v` per head; `d_key_store` and `d_value_store` are the stored widths per KV head (MLA absorbed: one KV head of 576, its first
    512 serve as values, so d_value_store = 0). macs = count * n_heads * pairs * (d_qk + d_v).
    """

    name: str
    count: int
    n_heads: int
    n_kv_heads: int
    d_qk: int
    d_v: int
    spans: tuple[Span, ...]
    d_key_store: int
    d_value_store: int
    kv_cache: NumberFormat = BF16
    operands: NumberFormat = BF16
    outputs: NumberFormat = BF16
    shard: Shard = Shard.HEADS

    @property
    def pairs(self) -> float:
        """Return the (query, key) pairs of one head of one layer."""
        return sum(s.count * s.pairs for s in self.spans)

    @property
    def macs(self) -> float:
        """Return the multiply-accumulates of all repeats, masked pairs excluded."""
        return self.count * self.n_heads * self.pairs * (self.d_qk + self.d_v)

    @property
    def kv_read_bytes(self) -> float:
        """Return the bytes of keys and values that all repeats read, each sequence's cache once."""
        tokens = sum(s.count * s.keys for s in self.spans)
        return self.count * self.n_kv_heads * tokens * (self.d_key_store + self.d_value_store) * self.kv_cache.bytes_per_value

    @property
    def kv_write_bytes(self) -> float:
        """Return the bytes of new keys and values that all repeats append."""
        tokens = sum(s.count * min(s.queries, s.keys) for s in self.spans)
        return self.count * self.n_kv_heads * tokens * (self.d_key_store + self.d_value_store) * self.kv_cache.bytes_per_value


@dataclass(frozen=True, slots=True)
class Vector:
    """Elementwise and reduction work: norms, rotary, activations, residual adds, routing, short convolutions.

    `elements` per repeat, `ops_per_element` vector-lane operations on each; `read_bytes` and `write_bytes` per repeat where the operands
    come from and go to memory (zero when fused into a neighbour, as fabless' own compiler does).
    """

    name: str
    count: int
    elements: float
    ops_per_element: float
    read_bytes: float = 0.0
    write_bytes: float = 0.0
    shard: Shard = Shard.REPLICATED
    function: str = "norm"  # norm | activation | residual | rotary | router | convolution | softmax | quantise

    @property
    def ops(self) -> float:
        """Return the vector-lane operations of all repeats."""
        return self.count * self.elements * self.ops_per_element


@dataclass(frozen=True, slots=True)
class Gather:
    """Look rows up in a stored table (token embedding): bytes, no arithmetic. `rows` of `row_bytes` per repeat."""

    name: str
    count: int
    rows: float
    row_bytes: float
    shard: Shard = Shard.REPLICATED


@dataclass(frozen=True, slots=True)
class Scan:
    """Advance a recurrent state (linear attention, state space): macs and state traffic per repeat, counted for the whole batch."""

    name: str
    count: int
    macs_per_repeat: float
    vector_ops_per_repeat: float
    state_read_bytes: float
    state_write_bytes: float
    operands: NumberFormat = BF16
    shard: Shard = Shard.HEADS

    @property
    def macs(self) -> float:
        """Return the multiply-accumulates of all repeats."""
        return self.count * self.macs_per_repeat


@dataclass(frozen=True, slots=True)
class Collective:
    """Exchange `payload_bytes` per chip among `n_chips` (added by a parallel plan, never by `lower`)."""

    name: str
    count: int
    kind: str  # all_reduce | all_gather | reduce_scatter | all_to_all | send
    payload_bytes: float
    n_chips: int


Op = Gemm | Attention | Vector | Gather | Scan | Collective


@dataclass(frozen=True, slots=True)
class Graph:
    """Hold what one step computes and what must be resident to compute it.

    `weight_bytes` is every stored parameter in its recipe's format (all experts, touched or not); `kv_bytes` the caches and recurrent states of
    the step's sequences after the step; `activation_bytes` the largest live working set between ops.
    """

    model_name: str
    recipe: Recipe
    step: Step
    ops: tuple[Op, ...]
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float
    n_layers: int
    d_model: int
    expert_weight_bytes: float = 0.0  # the part of weight_bytes that expert parallelism divides
    n_kv_heads: int = 0  # KV caches divide by at most this many tensor-parallel chips (0: by any number)

    @property
    def macs(self) -> float:
        """Return the multiply-accumulates of the whole step."""
        return sum(op.macs for op in self.ops if isinstance(op, (Gemm, Attention, Scan)))

    @property
    def flops(self) -> float:
        """Return the floating-point operations of matrix work: 2 per multiply-accumulate."""
        return 2 * self.macs
