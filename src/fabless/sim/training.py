"""What a training step takes: forward, backward, recomputation, exchanges, pipeline bubble and optimizer, from the same priced ops as inference."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from fabless.core.errors import InfeasibleError, InputError, UnsupportedError
from fabless.core.units import binary
from fabless.mapping.parallel import partition
from fabless.mapping.plan import Plan
from fabless.model.graph import Attention, Collective, Gemm, Op, Shard, Vector
from fabless.model.lower import lower
from fabless.model.step import Sequences, Step
from fabless.sim.calibration import calibration_for
from fabless.sim.collectives import collective_s
from fabless.sim.columns import columns, one_repeat
from fabless.sim.many import op_times

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fabless.chip.chip import Chip
    from fabless.model.model import Model
    from fabless.model.step import Recipe

Recompute = Literal["none", "selective", "full"]

#: Bytes that Adam moves per parameter: 32-bit gradient read, 32-bit master weight and two moments read and written, 16-bit weight written.
#: Source: Rajbhandari et al., ZeRO, arXiv 1910.02054, section 3.1.
OPTIMIZER_TRAFFIC_BYTES = 4 + 3 * 8 + 2
#: Bytes resident per parameter: 16-bit weight, 32-bit gradient (Megatron accumulates in 32 bits), 32-bit master weight and two moments.
WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2.0, 4.0, 12.0
#: Passes over the score matrix of unfused attention, in bytes per score: softmax reads and writes 16 bits, dropout reads and writes 16 and
#: writes an 8-bit mask; backward reads the gradient and one saved operand for each and writes its gradient.
#: Source: Korthikanti et al., arXiv 2205.05198, section 4.1 (2as^2b for softmax, as^2b for the mask, 2as^2b for its output).
SCORE_BYTES_FORWARD, SCORE_BYTES_BACKWARD = 9.0, 11.0
#: Elementwise backward over forward traffic: gradient and saved input read, gradient written, against one read and one write.
ELEMENTWISE_BACKWARD = 1.5


@dataclass(frozen=True, slots=True)
class Training:
    """Say how a step is trained: batch, its division over chips, and what is recomputed.

    Chips = tensor x pipeline x data. `global_batch` sequences of `sequence_tokens` in micro-batches of `micro_batch`; `interleave` virtual stages
    per chip (1: plain 1F1B); `sequence_parallel` divides norms and residuals over the tensor group; `zero_stage` 0 to 3 divides optimizer state,
    gradients and weights over the data group; `fused_attention` False keeps the score matrix in memory (Megatron-LM of 2022).
    """

    global_batch: int
    micro_batch: int
    sequence_tokens: int
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    interleave: int = 1
    recompute: Recompute = "none"
    sequence_parallel: bool = True
    zero_stage: int = 0
    fused_attention: bool = True

    def __post_init__(self) -> None:
        if self.global_batch % (self.micro_batch * self.data):
            raise InputError(
                f"training: global_batch={self.global_batch} is not a multiple of micro_batch x data = {self.micro_batch * self.data}; "
                "choose sizes that divide"
            )
        if self.recompute not in ("none", "selective", "full"):
            raise InputError(f"training: recompute must be none, selective or full, not '{self.recompute}'")
        if self.zero_stage not in (0, 1, 2, 3):
            raise InputError(f"training: zero_stage must be 0 to 3, not {self.zero_stage}")

    @property
    def n_chips(self) -> int:
        """Return the chips that train."""
        return self.tensor * self.pipeline * self.data

    @property
    def n_micro_batches(self) -> int:
        """Return the micro-batches of one data replica."""
        return self.global_batch // (self.micro_batch * self.data)


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """Hold what one step takes on every chip, in seconds, and what must be resident on the fullest chip.

    `forward_s`, `backward_s`, `recompute_s` are of all micro-batches of one chip; `bubble_s` waits for the pipeline to fill and drain;
    `flops` counts 2 per multiply-accumulate of forward and backward without recomputation (the model's own work).
    """

    forward_s: float
    backward_s: float
    recompute_s: float
    bubble_s: float
    send_s: float
    gradient_exchange_s: float
    optimizer_s: float
    memory_bytes: float
    flops: float
    peak_flops_per_s: float

    @property
    def seconds(self) -> float:
        """Return the time of the step."""
        parts = self.forward_s, self.backward_s, self.recompute_s, self.bubble_s, self.send_s, self.gradient_exchange_s, self.optimizer_s
        return sum(parts)

    @property
    def mfu_ratio(self) -> float:
        """Return model FLOPs over what all chips could do at peak."""
        return self.flops / self.seconds / self.peak_flops_per_s


def training_step(model: Model, recipe: Recipe, chip: Chip, training: Training) -> TrainingStep:
    """Return what one training step of a model takes on a chip.

    A stage's micro-batch is priced op by op: each product has two more in backward (gradients of its input and of its weights), attention two
    and a half times its forward when fused, exchanges as many as in forward. 1F1B: the slowest stage sets the pace of all micro-batches, and
    filling costs `(pipeline - 1) / interleave` more. Source: Narayanan et al., arXiv 2104.04473; Korthikanti et al., arXiv 2205.05198.

    Raises `InfeasibleError` when weights, gradients, optimizer state and kept activations exceed a chip's memory, and `UnsupportedError` for an
    encoder or a format without a rate.
    """
    if model.encoder:
        raise UnsupportedError(f"{model.name}: training is modelled for decoders")
    t = training
    ops = _forward_ops(model, recipe, t)
    layer_ops = [op for op in ops if op.count > 1 or model.n_layers == 1]
    edge_ops = [op for op in ops if not (op.count > 1 or model.n_layers == 1)]
    per_layer = _times(layer_ops, chip, model.n_layers, t)
    edge = _times(edge_ops, chip, 1, t)
    layers = -(-model.n_layers // t.pipeline)
    forward, backward, again = (x * layers for x in per_layer)
    stage = forward + backward + again
    n = t.n_micro_batches
    params = _params_per_chip(model, t)
    memory = memory_bytes(model, recipe, t)
    if memory > chip.memory_capacity_bytes:
        raise InfeasibleError(
            f"training {model.name} on {t.n_chips} x {chip.name}: a chip needs {binary(memory)}, its memory holds "
            f"{binary(chip.memory_capacity_bytes)}; raise tensor, pipeline or zero_stage, or recompute more"
        )
    fill = (t.pipeline - 1) / t.interleave
    operand = recipe.activations
    return TrainingStep(
        forward_s=n * (forward + edge[0]),
        backward_s=n * (backward + edge[1]),
        recompute_s=n * again,
        bubble_s=fill * stage,
        send_s=_send_s(model, recipe, chip, t),
        gradient_exchange_s=_gradient_s(params, chip, t),
        optimizer_s=_optimizer_s(params, chip, t),
        memory_bytes=memory,
        flops=3 * t.global_batch / t.micro_batch * lower(model, recipe, _step(t)).flops,
        peak_flops_per_s=2 * chip.peak_macs_per_s(operand) * t.n_chips,
    )


def memory_bytes(model: Model, recipe: Recipe, training: Training) -> float:
    """Return the bytes resident on the first pipeline stage's chips: parameters' state and the activations kept for backward.

    Activations per layer: `s b h (10 + 24/t + 5 a s / (h t))` bytes without sequence parallelism, all of it over t with it, `s b h` x 2 with full
    recomputation (over t with sequence parallelism), no score term when recomputed selectively or fused. The first stage of 1F1B keeps
    `pipeline` micro-batches of its layers, `1 + (p - 1) / (p v)` times that when interleaved.
    Source: Korthikanti et al., arXiv 2205.05198, table 2 and section 4.2.3.
    """
    t = training
    params = model.n_params / (t.tensor * t.pipeline)
    z = t.data
    state = params * (
        WEIGHT_BYTES / (z if t.zero_stage >= 3 else 1)
        + GRADIENT_BYTES / (z if t.zero_stage >= 2 else 1)
        + OPTIMIZER_BYTES / (z if t.zero_stage >= 1 else 1)
    )
    wide = t.sequence_tokens * t.micro_batch * model.d_model * recipe.residual.bytes_per_value / 2
    heads = max((getattr(m, "n_heads", 0) for _, layer in model.kinds for m in layer.mixers), default=0)
    scores = 0.0 if t.fused_attention or t.recompute != "none" else 5 * heads * t.sequence_tokens / model.d_model
    if t.recompute == "full":
        per_layer = 2 * wide / (t.tensor if t.sequence_parallel else 1)
    elif t.sequence_parallel:
        per_layer = wide * (34 + scores) / t.tensor
    else:
        per_layer = wide * (10 + (24 + scores) / t.tensor)
    in_flight = min(t.n_micro_batches, t.pipeline) / t.pipeline
    interleaved = 1 + (t.pipeline - 1) / (t.pipeline * t.interleave) if t.interleave > 1 else 1.0
    return state + per_layer * model.n_layers * in_flight * interleaved


def _step(t: Training) -> Step:
    return Step((Sequences(t.micro_batch, t.sequence_tokens, 0),), logits="all")


def _forward_ops(model: Model, recipe: Recipe, t: Training) -> list[Op]:
    """Return one chip's ops of a micro-batch through all layers, attention unfused and elementwise work divided as the training says."""
    share = partition(lower(model, recipe, _step(t)), Plan(tensor=t.tensor))
    ops: list[Op] = []
    for op in share.ops:
        if isinstance(op, Attention) and not t.fused_attention:
            ops += _unfused(op)
        elif isinstance(op, Vector) and op.shard is Shard.REPLICATED and t.sequence_parallel and t.tensor > 1:
            ops.append(
                replace(op, elements=op.elements / t.tensor, read_bytes=op.read_bytes / t.tensor, write_bytes=op.write_bytes / t.tensor)
            )
        else:
            ops.append(op)
    return ops


def _unfused(op: Attention) -> list[Op]:
    """Return attention as two batched products over the whole square of scores (masked pairs too), and the passes of softmax and dropout."""
    ops: list[Op] = []
    for span in op.spans:
        heads, q, k = float(span.count * op.n_heads), span.queries, span.keys
        scores = heads * q * k
        passes = scores * SCORE_BYTES_FORWARD / 2
        ops += [
            Gemm(f"{op.name}.scores", op.count, q, k, op.d_qk, heads, False, op.operands, op.operands, op.outputs),
            Vector(f"{op.name}.softmax", op.count, scores, 6, passes, passes, function="softmax"),
            Gemm(f"{op.name}.values", op.count, q, op.d_v, k, heads, False, op.operands, op.operands, op.outputs),
        ]
    return ops


def _backward(op: Op) -> list[Op]:
    """Return the ops that one forward op needs in backward."""
    if isinstance(op, Gemm):
        inputs = replace(op, n=op.k, k=op.n)
        weights = replace(op, m=float(op.n), n=op.k, k=max(round(op.m), 1), stored=False)
        return [inputs, weights]
    if isinstance(op, Vector):
        ratio = SCORE_BYTES_BACKWARD / SCORE_BYTES_FORWARD if op.function == "softmax" else ELEMENTWISE_BACKWARD
        return [
            replace(op, ops_per_element=op.ops_per_element * ratio, read_bytes=op.read_bytes * ratio, write_bytes=op.write_bytes * ratio)
        ]
    return [op]


def _is_attention(op: Op) -> bool:
    return isinstance(op, Attention) or ".scores" in op.name or ".softmax" in op.name or op.name.endswith(".values")


def _times(ops: list[Op], chip: Chip, layers: int, t: Training) -> tuple[float, float, float]:
    """Return (forward, backward, recomputed) seconds of one layer's share of some ops."""
    forward = _seconds(ops, chip)
    backward = _seconds([b for op in ops for b in _backward(op) if not isinstance(op, Attention)], chip)
    backward += 2.5 * _seconds([op for op in ops if isinstance(op, Attention)], chip)  # five products against two (Dao, arXiv 2205.14135)
    if t.recompute == "full" and layers > 1:
        again = forward
    elif t.recompute == "selective":
        again = _seconds([op for op in ops if _is_attention(op) and not isinstance(op, Collective)], chip)
    else:
        again = 0.0
    return forward / layers, backward / layers, again / layers


def _seconds(ops: Iterable[Op], chip: Chip) -> float:
    counts: dict[Op, int] = defaultdict(int)
    for op in ops:
        counts[one_repeat(op)] += op.count
    if not counts:
        return 0.0
    busy = op_times(columns(list(counts)), [chip], [calibration_for(chip.family)]).busy_s[:, 0]
    if not np.isfinite(busy).all():
        raise UnsupportedError(f"{chip.name} cannot multiply a format of this recipe")
    return float(busy @ np.array(list(counts.values()), float))


def _params_per_chip(model: Model, t: Training) -> float:
    return model.n_params / (t.tensor * t.pipeline)


def _gradient_s(params: float, chip: Chip, t: Training) -> float:
    """Return the seconds of the gradients' all-reduce over data replicas, which sit in different domains when tensor x pipeline fills one.

    Limits: nothing of it is hidden behind backward.
    """
    if t.data == 1:
        return 0.0
    calibration = calibration_for(chip.family)
    inside = max(1, chip.link.domain_chips // t.tensor)
    link = replace(chip.link, domain_chips=min(inside, t.data)) if inside > 1 else replace(chip.link, domain_chips=1)
    weights = params * WEIGHT_BYTES * (2 if t.zero_stage == 3 else 0)  # gathered for forward and again for backward
    kind = "all_reduce" if t.zero_stage < 2 else "reduce_scatter"
    gather = collective_s("all_gather", params * WEIGHT_BYTES, t.data, link, calibration) if t.zero_stage in (1, 2) else 0.0
    spread = collective_s("all_gather", weights, t.data, link, calibration) if weights else 0.0
    return float(collective_s(kind, params * GRADIENT_BYTES, t.data, link, calibration) + gather + spread)


def _optimizer_s(params: float, chip: Chip, t: Training) -> float:
    own = params / (t.data if t.zero_stage >= 1 else 1)
    return own * OPTIMIZER_TRAFFIC_BYTES / (chip.dram.bandwidth_bytes_per_s * calibration_for(chip.family).memory_efficiency)


def _send_s(model: Model, recipe: Recipe, chip: Chip, t: Training) -> float:
    """Return what a chip waits for activations and their gradients between stages: one each way per micro-batch and virtual stage."""
    if t.pipeline == 1:
        return 0.0
    payload = t.micro_batch * t.sequence_tokens * model.d_model * recipe.residual.bytes_per_value / t.tensor
    link = replace(chip.link, domain_chips=max(1, chip.link.domain_chips // t.tensor))
    one = float(collective_s("send", payload, 2, link, calibration_for(chip.family)))
    return 2 * one * t.interleave * t.n_micro_batches
