"""How long the steps of one deployment take, as a few lines and curves through estimates: what a serving run looks up thousands of times."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fabless.chip.chip import matrix_rates, runs_as
from fabless.core.errors import InfeasibleError, UnsupportedError
from fabless.core.sources import table
from fabless.core.units import binary
from fabless.mapping.parallel import partition
from fabless.model.graph import Attention, Collective, Gemm, Scan, Shard
from fabless.model.lower import lower
from fabless.model.step import Sequences, Step
from fabless.number.formats import element_of
from fabless.sim.calibration import calibration_for
from fabless.sim.columns import columns, one_repeat, operand_format
from fabless.sim.many import op_times

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fabless.chip.chip import Chip
    from fabless.fleet.experiment import Deployment
    from fabless.mapping.plan import Plan
    from fabless.model.graph import Graph, Op
    from fabless.model.model import Model
    from fabless.model.step import Recipe, Speculation
    from fabless.number.formats import NumberFormat

    Floats = NDArray[np.float64]

_CONTEXTS = (64, 1024, 4096, 16384, 65536)
_PROMPTS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_TOKENS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_SEQUENCE = 256  # tokens per sequence of the attention-free prefill curve: sets how many rows go through the head


class Curve:
    """Interpolate linearly between points of rising x, along the first and last slopes outside."""

    __slots__ = ("_x", "_y")

    def __init__(self, x: Sequence[float], y: Sequence[float]) -> None:
        self._x, self._y = [float(v) for v in x], [float(v) for v in y]

    def __call__(self, at: float) -> float:
        """Return the value at a point."""
        x, y = self._x, self._y
        i = min(max(bisect_left(x, at), 1), len(x) - 1)
        return y[i - 1] + (y[i] - y[i - 1]) * (at - x[i - 1]) / (x[i] - x[i - 1])


@dataclass(frozen=True, slots=True)
class Parts:
    """Hold seconds of steps by kind of op: routed experts, exchanges between chips, attention (recurrent scans included), all others.

    None of them includes launches, which are summed over all kinds. `products` are the routed experts' multiply-accumulates at peak rate,
    `kernels` the number of launches, `routed` one pass over the routed tokens' values at the memory's bandwidth.
    """

    other: Floats
    experts: Floats
    exchanges: Floats
    attention: Floats
    launches: Floats
    products: Floats
    kernels: Floats
    routed: Floats


def _kind(op: Op) -> int:
    if isinstance(op, (Attention, Scan)):
        return 3
    if isinstance(op, Collective):
        return 2
    return 1 if isinstance(op, Gemm) and op.shard is Shard.EXPERT else 0


class Surface:
    """Time steps of one replica by estimates alone, kept per kind of op: what all software on the same hardware shares.

    Limits: kernels run one after another, pipeline stages in sequence; attention is linear in context between grid points; the rest of a step
    depends on its tokens alone (a prompt's positions and a decode's cost the same rows), and attention of prompts and of decodes add.
    """

    def __init__(self, model: Model, recipe: Recipe, chip: Chip, plan: Plan, speculation: Speculation | None) -> None:
        self.model, self.recipe, self.chip, self.plan, self.speculation = model, recipe, chip, plan, speculation
        self._decode: tuple[Floats, Parts, Floats] | None = None
        self._prefill: tuple[Parts, Floats] | None = None

    def decode(self, most: float) -> tuple[Floats, Parts, Floats]:
        """Return (batches, parts `[n_batches]`, attention seconds `[n_batches, n_contexts]`) covering up to `most` sequences."""
        if self._decode is None or self._decode[0][-1] < most:
            batches = [1, 2, 4, 8, 16]
            while batches[-1] < max(most, 64):
                last = batches[-1]
                batches += [last * 2] if last < 64 else [last * 3 // 2, last * 2]
            rest = self._parts([self._decode_step(b, _CONTEXTS[0]) for b in batches])
            attention = self._parts([self._decode_step(b, c) for b in batches for c in _CONTEXTS], attention_only=True).attention
            self._decode = np.array(batches, float), rest, attention.reshape(len(batches), len(_CONTEXTS))
        return self._decode

    def prefill(self) -> tuple[Parts, Floats]:
        """Return (parts at `_TOKENS` tokens, attention seconds at `_PROMPTS` tokens of one prompt)."""
        if self._prefill is None:
            data = self.plan.data
            steps = [Step((Sequences(max(data, t // _SEQUENCE), max(t // max(data, t // _SEQUENCE), 1), 0),)) for t in _TOKENS]
            prompts = [Step((Sequences(data, t, 0),)) for t in _PROMPTS]
            self._prefill = self._parts(steps), self._parts(prompts, attention_only=True).attention / data
        return self._prefill

    def lower(self, step: Step) -> Graph:
        """Return the step's graph."""
        return lower(self.model, self.recipe, step)

    def _decode_step(self, batch: int, context_tokens: int) -> Step:
        return Step.decode(batch, context_tokens, self.speculation)

    def _parts(self, steps: Sequence[Step], *, attention_only: bool = False) -> Parts:
        """Return the seconds of each step by kind of op: every distinct op is priced once and counted per step."""
        index: dict[Op, int] = {}
        counts: list[dict[int, int]] = []
        for step in steps:
            graph = self.lower(step)
            if attention_only:
                graph = replace(graph, ops=tuple(op for op in graph.ops if _kind(op) == 3))
            of_step: dict[int, int] = defaultdict(int)
            for op in partition(graph, self.plan).ops:
                of_step[index.setdefault(one_repeat(op), len(index))] += op.count
            counts.append(of_step)
        if not index:
            zero = np.zeros(len(steps))
            return Parts(*(zero,) * 8)
        times = op_times(columns(list(index)), [self.chip], [calibration_for(self.chip.family)])
        launch = times.overhead_s[:, 0]
        busy = times.busy_s[:, 0] - launch
        if not np.isfinite(busy).all():
            raise UnsupportedError(f"{self.chip.name} cannot multiply a format of {self.model.name} in this recipe")
        kinds = [_kind(op) for op in index]
        rates = [self._product_s(op) if _kind(op) == 1 else 0.0 for op in index]
        passes = [self._pass_s(op) if _kind(op) == 1 else 0.0 for op in index]
        seconds = np.zeros((8, len(steps)))
        for j, of_step in enumerate(counts):
            for i, n in of_step.items():
                seconds[kinds[i], j] += n * busy[i]
                seconds[4, j] += n * launch[i]
                seconds[5, j] += n * rates[i]
                seconds[6, j] += n
                seconds[7, j] += n * passes[i]
        return Parts(*seconds)

    def _pass_s(self, op: Op) -> float:
        """Return the seconds of one pass over the routed tokens of one repeat, at the width of the residual stream."""
        if not isinstance(op, Gemm) or op.n != self.model.d_model:
            return 0.0
        return op.batch * op.m * op.n * op.outputs.bytes_per_value / self.chip.dram.bandwidth_bytes_per_s

    def _product_s(self, op: Op) -> float:
        """Return the seconds of one repeat of a product at the chip's peak rate for its operands."""
        if not isinstance(op, Gemm):
            return 0.0
        return op.macs / op.count / self.chip.peak_macs_per_s(operand_format(op.activations, op.weights))


class SteppedDeployment:
    """Time the steps of one replica of a deployment: a surface, and the overheads of the software that runs on it."""

    def __init__(self, deployment: Deployment, surface: Surface) -> None:
        self.deployment, self.surface = deployment, surface
        self._curves: tuple[Curve, Curve] | None = None
        self._native_experts = multiplies(deployment.chip, deployment.recipe.expert_weights)
        host, layers = deployment.software, deployment.model.n_layers
        self._fixed_s = host.step_overhead_s + host.layer_overhead_s * layers
        self._floor_s = host.step_overhead_s + host.host_layer_s * layers * host_ratio(deployment.chip.family)
        self._prompt_floor_s: float | None = None
        if host.host_layer_s:
            self._fixed_s, self._floor_s = (
                self._fixed_s * host_ratio(deployment.chip.family),
                self._floor_s * host_ratio(deployment.chip.family),
            )

    def cache_tokens(self, context_tokens: float) -> float:
        """Return the tokens of KV cache that the replica holds beside weights and activations, for sequences of about `context_tokens`.

        Raises `InfeasibleError` when weights alone exceed the usable memory.
        """
        d = self.deployment
        if d.software.cache_tokens is not None:
            return float(d.software.cache_tokens)
        context, sequences = max(int(context_tokens), 1), d.plan.data * 16
        decode = partition(self.surface.lower(Step.decode(sequences, context)), d.plan)
        prefill = partition(self.surface.lower(Step.prefill(d.plan.data, d.software.step_tokens)), d.plan)
        usable = d.chip.memory_capacity_bytes * d.software.memory_ratio
        room = usable - decode.weight_bytes - max(decode.activation_bytes, prefill.activation_bytes)
        if room <= 0:
            raise InfeasibleError(
                f"{d.model.name} on {d.plan.n_chips} x {d.chip.name} ({d.plan}): weights of {binary(decode.weight_bytes)} a chip leave no room "
                f"for a cache in {binary(usable)}; use more chips or narrower weights"
            )
        per_token = decode.kv_bytes / (sequences * (context + 1))
        return room / per_token if per_token > 0 else float("inf")

    def decode_s(self, batch: float, context_tokens: float) -> float:
        """Return the seconds of one decode step of `batch` sequences of `context_tokens` each."""
        batches, parts, attention = self.surface.decode(batch)
        at_context = (
            np.array([np.interp(context_tokens, _CONTEXTS, row) for row in attention]) * self.deployment.software.attention_time_ratio
        )
        device = np.interp(batch, batches, self._rest(parts)) + np.interp(batch, batches, at_context)
        return self._with_host(float(device), batch)

    def decode_lines(self, most: int, low_tokens: float, high_tokens: float) -> tuple[list[float], list[float]]:
        """Return (base, slope) for 0..most sequences, exact at the two contexts given (see `fleet.steady.StepTimes`)."""
        batches, parts, attention = self.surface.decode(most)
        bs = np.arange(most + 1, dtype=float)
        slower = attention * self.deployment.software.attention_time_ratio
        low, high = (np.interp(bs, batches, [np.interp(c, _CONTEXTS, row) for row in slower]) for c in (low_tokens, high_tokens))
        slope = (high - low) / (np.maximum(bs, 1) * max(high_tokens - low_tokens, 1.0))
        base = np.interp(bs, batches, self._rest(parts)) + low - slope * bs * low_tokens
        base = np.maximum(base + self._fixed_s + self.deployment.software.sequence_overhead_s * bs, self._floor_s)
        return base.tolist(), slope.tolist()

    def prefill_s(self, tokens: float, decodes: int) -> float:
        """Return the seconds of a step that takes in prompt tokens beside decodes, attention excluded."""
        dense = self._prefill_curves()[0]
        alone = dense(tokens)
        device = self._with_host(self._capped(alone) + (dense(tokens + decodes) - alone if decodes else 0.0), decodes)
        if self._prompt_floor_s is None:
            host = self.deployment.software
            self._prompt_floor_s = host.step_overhead_s + host.prompt_kernel_s * float(self.surface.prefill()[0].kernels[0])
        return max(device, self._prompt_floor_s)

    def prompt_attention_s(self, tokens: float) -> float:
        """Return the seconds of attention of one whole prompt."""
        return self._capped(max(self._prefill_curves()[1](tokens), 0.0))

    def prompt_s(self, batch: int, tokens: float) -> float:
        """Return the seconds of a pass over `batch` whole prompts of `tokens` each, taken in `step_tokens` at a time."""
        total, most = batch * tokens, self.deployment.software.step_tokens * self.deployment.plan.data
        full, rest = divmod(total, most)
        return full * self.prefill_s(most, 0) + (self.prefill_s(rest, 0) if rest else 0.0) + batch * self.prompt_attention_s(tokens)

    def _rest(self, parts: Parts) -> Floats:
        host = self.deployment.software
        at_rate = parts.products * (host.expert_product_ratio if self._native_experts else host.dequantised_product_ratio)
        return (
            parts.other * host.dense_time_ratio
            + np.maximum(parts.experts * host.expert_time_ratio, at_rate)
            + parts.routed * host.routed_passes
            + parts.exchanges * host.exchange_time_ratio
            + parts.launches * host.launch_time_ratio
        )

    def _prefill_curves(self) -> tuple[Curve, Curve]:
        if self._curves is None:
            parts, attention = self.surface.prefill()
            ratio = self.deployment.software.prefill_time_ratio
            slower = ratio * self.deployment.software.attention_time_ratio
            self._curves = Curve(_TOKENS, (self._rest(parts) * ratio).tolist()), Curve((0.0, *_PROMPTS), (0.0, *(attention * slower)))
        return self._curves

    def _with_host(self, device_s: float, batch: float) -> float:
        return max(device_s + self._fixed_s + self.deployment.software.sequence_overhead_s * batch, self._floor_s)

    def _capped(self, seconds: float) -> float:
        return seconds * _power_cap_slowdown() if self.deployment.power_capped else seconds


def multiplies(chip: Chip, format: NumberFormat) -> bool:
    """Return whether a chip's matrix units take operands of a format as stored, without widening them first."""
    element = element_of(format)
    return runs_as(dict(matrix_rates(chip.core.matrix)), element) == element.name or element.bits >= 16


def host_ratio(family: str) -> float:
    """Return how much slower than today's the hosts of a family's servers launch work (their processors are of the same years)."""
    rows = table("software").select(host=family)
    return rows[0].known if rows else 1.0


def _power_cap_slowdown() -> float:
    """Return how much longer compute-bound phases take under the power cap of the Splitwise measurements."""
    return table("software").fact("power_cap.prefill_slowdown").known
