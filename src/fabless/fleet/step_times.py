"""How long the steps of one deployment take, as a few lines and curves through estimates: what a serving run looks up thousands of times."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import FablessError, InfeasibleError
from fabless.core.sources import table
from fabless.core.units import binary
from fabless.model.graph import Attention, Scan
from fabless.model.lower import lower
from fabless.model.step import Sequences, Step
from fabless.sim.roofline import estimate_many

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.fleet.experiment import Deployment
    from fabless.model.graph import Graph

    Floats = NDArray[np.float64]

_CONTEXTS = (64, 1024, 4096, 16384, 65536)
_PROMPTS = (128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_CHUNK = 256  # tokens per sequence of the attention-free prefill curve; its attention is taken out


@dataclass(frozen=True, slots=True)
class Curve:
    """Interpolate linearly between points of rising x, through the origin below the first and along the last slope beyond the last."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, at: float) -> float:
        """Return the value at a point."""
        x, y = self.x, self.y
        i = min(max(bisect_left(x, at), 1), len(x) - 1)
        return y[i - 1] + (y[i] - y[i - 1]) * (at - x[i - 1]) / (x[i] - x[i - 1])


class SteppedDeployment:
    """Time the steps of one replica of a deployment: estimates at a grid of batches, contexts and prompts, overheads of the software added.

    Limits: a decode step's time is linear in context between grid points, a step's dense part depends on its tokens alone (a prompt's
    positions and a decode's cost the same GEMM rows), and attention of prompts and of decodes add.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self._decode: tuple[tuple[int, ...], tuple[float, ...], Floats, Floats] | None = None
        self._prefill: tuple[Curve, Curve] | None = None

    # -- memory -------------------------------------------------------------------------------------------------------------------

    def cache_tokens(self, context_tokens: float) -> float:
        """Return the tokens of KV cache that the replica holds beside weights and activations, for sequences of about `context_tokens`.

        Raises `InfeasibleError` when weights alone exceed the usable memory.
        """
        d = self.deployment
        context = max(int(context_tokens), 1)
        graphs = [self._lower(Step.decode(d.plan.data * 16, context)), self._lower(Step.prefill(1, min(d.software.step_tokens, context)))]
        from fabless.mapping.parallel import partition

        decode, prefill = (partition(g, d.plan) for g in graphs)
        usable = d.chip.memory_capacity_bytes * d.software.memory_ratio
        room = usable - decode.weight_bytes - max(decode.activation_bytes, prefill.activation_bytes)
        if room <= 0:
            raise InfeasibleError(
                f"{d.model.name} on {d.plan.n_chips} x {d.chip.name} ({d.plan}): weights of {binary(decode.weight_bytes)} a chip leave no room "
                f"for a cache in {binary(usable)}; use more chips or narrower weights"
            )
        per_token = decode.kv_bytes / (d.plan.data * 16 * (context + 1))
        return room / per_token if per_token > 0 else float("inf")

    # -- decode -------------------------------------------------------------------------------------------------------------------

    def decode_s(self, batch: float, context_tokens: float) -> float:
        """Return the seconds of one decode step of `batch` sequences of `context_tokens` each."""
        batches, _, dense, attention = self._decode_grid(batch)
        bs = np.array(batches, float)
        d = float(np.interp(batch, bs, dense))
        a = np.array([np.interp(context_tokens, _CONTEXTS, row) for row in attention])
        return self._with_host(d + float(np.interp(batch, bs, a)), batch)

    def decode_lines(self, most: int, low_tokens: float, high_tokens: float) -> tuple[list[float], list[float]]:
        """Return (base, slope) for 0..most sequences, exact at the two contexts given (see `fleet.steady.StepTimes`)."""
        batches, _, dense, attention = self._decode_grid(most)
        bs = np.arange(most + 1, dtype=float)
        at = [np.array([np.interp(c, _CONTEXTS, row) for row in attention]) for c in (low_tokens, high_tokens)]
        low, high = (np.interp(bs, batches, a) for a in at)
        slope = (high - low) / (np.maximum(bs, 1) * max(high_tokens - low_tokens, 1.0))
        base = np.interp(bs, batches, dense) + low - slope * bs * low_tokens
        host = self.deployment.software
        floor = host.host_layer_s * self.deployment.model.n_layers
        fixed = host.step_overhead_s + host.layer_overhead_s * self.deployment.model.n_layers + host.sequence_overhead_s * bs
        base = np.maximum(base + fixed, floor + host.step_overhead_s)
        return base.tolist(), slope.tolist()

    def _with_host(self, device_s: float, batch: float) -> float:
        host = self.deployment.software
        fixed = host.step_overhead_s + host.sequence_overhead_s * batch + host.layer_overhead_s * self.deployment.model.n_layers
        return max(device_s + fixed, host.host_layer_s * self.deployment.model.n_layers + host.step_overhead_s)

    def _decode_grid(self, most: float) -> tuple[tuple[int, ...], tuple[float, ...], Floats, Floats]:
        """Return (batches, contexts, dense seconds `[n_batches]`, attention seconds `[n_batches, n_contexts]`) covering up to `most`."""
        if self._decode is not None and self._decode[0][-1] >= most:
            return self._decode
        batches = [1, 2, 4, 8]
        while batches[-1] < most:
            batches.append(batches[-1] * 2)
            if len(batches) > 6:
                batches.insert(-1, batches[-1] * 3 // 4)
        graphs = [self._lower(self._decode_step(b, c)) for b in batches for c in _CONTEXTS]
        total, dense = self._times(graphs)
        shape = (len(batches), len(_CONTEXTS))
        dense = dense.reshape(shape)[:, 0]
        attention = total.reshape(shape) - dense[:, None]
        self._decode = tuple(batches), _CONTEXTS, dense, attention
        return self._decode

    def _decode_step(self, batch: int, context_tokens: int) -> Step:
        return Step.decode(batch, context_tokens, self.deployment.speculation)

    # -- prefill ------------------------------------------------------------------------------------------------------------------

    def prefill_s(self, tokens: float, decodes: int) -> float:
        """Return the seconds of a step that takes in prompt tokens beside decodes, attention excluded."""
        dense, _ = self._prefill_curves()
        return self._with_host(self._capped(dense(tokens)) + dense(tokens + decodes) - dense(tokens), decodes)

    def prompt_attention_s(self, tokens: float) -> float:
        """Return the seconds of attention of one whole prompt."""
        return self._capped(max(self._prefill_curves()[1](tokens), 0.0))

    def prompt_s(self, batch: int, tokens: float) -> float:
        """Return the seconds of a pass over `batch` whole prompts of `tokens` each, taken in `step_tokens` at a time."""
        total, most = batch * tokens, self.deployment.software.step_tokens
        full, rest = divmod(total, most)
        return full * self.prefill_s(most, 0) + (self.prefill_s(rest, 0) if rest else 0.0) + batch * self.prompt_attention_s(tokens)

    def _capped(self, seconds: float) -> float:
        return seconds * power_cap_slowdown() if self.deployment.power_capped else seconds

    def _prefill_curves(self) -> tuple[Curve, Curve]:
        if self._prefill is None:
            data = self.deployment.plan.data
            dense_steps = [Step((Sequences(data, max(t // data, 1), 0),)) if t < _CHUNK * data else Step((Sequences(t // _CHUNK, _CHUNK, 0),)) for t in _TOKENS]
            graphs = [self._lower(s) for s in dense_steps]
            whole = [self._lower(Step((Sequences(data, t, 0),))) for t in _PROMPTS]
            total, dense = self._times(graphs + whole)
            n = len(_TOKENS)
            attention = (total - dense)[n:] / data
            self._prefill = Curve(tuple(float(t) for t in _TOKENS), tuple(dense[:n].tolist())), Curve((0.0, *map(float, _PROMPTS)), (0.0, *attention.tolist()))
        return self._prefill

    # -- estimates ----------------------------------------------------------------------------------------------------------------

    def _lower(self, step: Step) -> Graph:
        return lower(self.deployment.model, self.deployment.recipe, step)

    def _times(self, graphs: list[Graph]) -> tuple[Floats, Floats]:
        """Return (whole step, step without attention and scans) in seconds; pipeline stages in sequence."""
        dense = [replace(g, ops=tuple(op for op in g.ops if not isinstance(op, (Attention, Scan)))) for g in graphs]
        times = estimate_many([*graphs, *dense], [self.deployment.chip], self.deployment.plan).latency_s[:, 0]
        if not np.isfinite(times).all():
            raise FablessError(f"{self.deployment.chip.name} cannot run {self.deployment.model.name} in this recipe")
        return times[: len(graphs)], times[len(graphs) :]


_TOKENS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def power_cap_slowdown() -> float:
    """Return how much longer compute-bound phases take under the power cap of the Splitwise measurements."""
    return table("software").fact("power_cap.prefill_slowdown").known
