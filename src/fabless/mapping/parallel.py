"""Divide one step's graph over the chips of a plan: what each chip computes, keeps and exchanges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

from fabless.core.errors import InputError
from fabless.model.graph import Attention, Collective, Gather, Gemm, Scan, Shard, Vector

if TYPE_CHECKING:
    from fabless.mapping.plan import Plan
    from fabless.model.graph import Graph, Op


@dataclass(frozen=True, slots=True)
class Share:
    """Hold one chip's part of a step: `ops` of all pipeline stages in order, and the bytes resident on the fullest chip."""

    ops: tuple[Op, ...]
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float

    @property
    def memory_bytes(self) -> float:
        """Return everything that must be resident on the chip."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes


def partition(graph: Graph, plan: Plan) -> Share:
    """Return what the busiest chip of a plan computes and keeps, with the collectives that the division needs.

    Tensor parallelism follows Megatron-LM (Shoeybi et al., arXiv 1909.08053): COLUMN divides n, ROW divides k and all-reduces its partial sums,
    HEADS divides heads. `plan.data` divides sequences for all but routed experts; routed experts are spread over `plan.expert` chips and each
    expert's matrices over the rest, with all-to-all dispatch and combine between data replicas (GShard, Lepikhin et al., arXiv 2006.16668) and
    one all-reduce inside a tensor-parallel group. Dimensions that do not divide are rounded up: the busiest chip sets the time.
    """
    if plan.pipeline > graph.n_layers:
        raise InputError(f"plan {plan}: {plan.pipeline} pipeline stages, but {graph.model_name} has {graph.n_layers} layers")
    ops: list[Op] = []
    joins_experts = False  # a shared expert's partial sums join those of the routed experts: one all-reduce for both
    for op in graph.ops:
        local = _local(op, graph, plan)
        ops.append(local)
        if not (joins_experts and isinstance(op, Gemm) and op.shard is Shard.ROW):
            ops.extend(_exchanges(local, graph, plan))
        if isinstance(op, (Attention, Scan)) or (isinstance(op, Gemm) and op.shard is Shard.ROW):
            joins_experts = False
        elif isinstance(op, Gemm) and op.combine and plan.data == 1:
            joins_experts = True
    if plan.pipeline > 1:
        ops.append(Collective("pipeline_send", plan.pipeline - 1, "send", _stream_bytes(graph, plan) / plan.tensor, 2))
    return Share(tuple(ops), *_resident(graph, plan))


def _resident(graph: Graph, plan: Plan) -> tuple[float, float, float]:
    dense = graph.weight_bytes - graph.expert_weight_bytes
    weights = dense / (plan.tensor * plan.pipeline) + graph.expert_weight_bytes / plan.n_chips
    kv_shards = min(plan.tensor, graph.n_kv_heads) if graph.n_kv_heads else plan.tensor
    return weights, graph.kv_bytes / (plan.pipeline * plan.data * kv_shards), graph.activation_bytes / plan.data


def _stream_bytes(graph: Graph, plan: Plan) -> float:
    """Return the bytes of the residual stream of one data replica."""
    return graph.step.new_tokens / plan.data * graph.d_model * graph.recipe.residual.bytes_per_value


def _divide(n: int, by: int) -> int:
    return -(-n // by)


def _local(op: Op, graph: Graph, plan: Plan) -> Op:
    if isinstance(op, Gemm):
        return _local_gemm(op, graph, plan)
    if isinstance(op, Attention):
        spans = tuple(replace(s, count=_divide(s.count, plan.data)) for s in op.spans)
        heads = plan.tensor if op.shard is Shard.HEADS else 1
        return replace(op, spans=spans, n_heads=_divide(op.n_heads, heads), n_kv_heads=_divide(op.n_kv_heads, heads))
    if isinstance(op, Vector):
        parts = plan.data * (1 if op.shard is Shard.REPLICATED else plan.tensor)
        return replace(op, elements=op.elements / parts, read_bytes=op.read_bytes / parts, write_bytes=op.write_bytes / parts)
    if isinstance(op, Gather):
        return replace(op, rows=op.rows / (plan.data * (1 if op.shard is Shard.REPLICATED else plan.tensor)))
    if isinstance(op, Scan):
        parts = plan.data * (1 if op.shard is Shard.REPLICATED else plan.tensor)
        return replace(
            op,
            macs_per_repeat=op.macs_per_repeat / parts,
            vector_ops_per_repeat=op.vector_ops_per_repeat / parts,
            state_read_bytes=op.state_read_bytes / parts,
            state_write_bytes=op.state_write_bytes / parts,
        )
    return op


def _local_gemm(op: Gemm, graph: Graph, plan: Plan) -> Gemm:
    if op.shard is Shard.EXPERT:
        inside = plan.tensor * plan.data // plan.expert
        batch = max(op.batch / plan.expert, min(1.0, op.batch))  # a chip that has work at all reads at least one expert
        if op.combine:
            return replace(op, batch=batch, k=_divide(op.k, inside))
        return replace(op, batch=batch, n=_divide(op.n, inside))
    m = op.m / plan.data
    if op.shard is Shard.COLUMN:
        return replace(op, m=m, n=_divide(op.n, plan.tensor))
    if op.shard is Shard.ROW:
        return replace(op, m=m, k=_divide(op.k, plan.tensor))
    if op.shard is Shard.HEADS:  # one small matrix per head
        return replace(op, m=m, batch=ceil(op.batch / plan.tensor))
    return replace(op, m=m)


def _exchanges(op: Op, graph: Graph, plan: Plan) -> list[Op]:
    if not isinstance(op, Gemm):
        return []
    if op.shard is Shard.ROW and plan.tensor > 1:
        payload = op.batch * op.m * op.n * op.outputs.bytes_per_value
        return [Collective(f"{op.name}.all_reduce", op.count, "all_reduce", payload, plan.tensor)]
    if op.combine:
        return _expert_exchanges(op, graph, plan)
    return []


def _expert_exchanges(op: Gemm, graph: Graph, plan: Plan) -> list[Op]:
    chips = plan.tensor * plan.data
    if chips == 1:
        return []
    stream = _stream_bytes(graph, plan)
    if plan.data == 1:
        return [Collective(f"{op.name}.all_reduce", op.count, "all_reduce", stream, plan.tensor)]
    values = graph.step.new_tokens / chips * max(1, op.n_routed) * op.n
    dispatch = values * op.activations.bytes_per_value
    combine = values * op.outputs.bytes_per_value
    exchanges: list[Op] = [
        Collective(f"{op.name}.dispatch", op.count, "all_to_all", dispatch, chips),
        Collective(f"{op.name}.combine", op.count, "all_to_all", combine, chips),
    ]
    if plan.tensor > 1:  # each chip of the tensor group dispatched its slice of the tokens; the group gathers the result
        exchanges.append(Collective(f"{op.name}.all_gather", op.count, "all_gather", stream, plan.tensor))
    return exchanges
