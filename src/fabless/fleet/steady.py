"""Continuous batching on one replica, small enough to run thousands of times: requests in, first and last token times out.

Between two events (an arrival, an admission, an end) every decode step does the same work but for the growing context, so that the run
jumps from event to event: its cost is a few microseconds a request, whatever the length of the answers. A step takes in waiting prompts up
to `step_tokens`, in chunks where needed; where the software mixes, decodes share the step, else they wait for the prefill.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fabless.core.errors import InfeasibleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]


class StepTimes(Protocol):
    """Time the steps of one replica; all times in seconds, host and launch overheads included."""

    def decode_lines(self, most: int, low_tokens: float, high_tokens: float) -> tuple[list[float], list[float]]:
        """Return (base, slope) by number of sequences 0..most: a decode step takes `base[b] + slope[b] * total context`."""

    def prefill_s(self, tokens: float, decodes: int) -> float:
        """Return the time of a step that takes in `tokens` prompt tokens beside `decodes` decoding sequences, attention excluded."""

    def prompt_attention_s(self, tokens: float) -> float:
        """Return the attention time of one whole prompt."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Hold what limits a replica's batch: tokens a step, sequences, and tokens of KV cache; `mixes` and `reserves_output` as in `Software`."""

    step_tokens: int
    max_sequences: int
    cache_tokens: float
    mixes: bool = True
    reserves_output: bool = False


@dataclass(frozen=True, slots=True)
class Requests:
    """Hold requests in the order in which they are sent: tokens in and out, and arrival times (None: closed loop)."""

    input_tokens: Array
    output_tokens: Array
    arrival_s: Array | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """Hold when each request arrived, emitted its first token and ended, in seconds; `order` tells in which order they arrived."""

    arrival_s: Array
    first_s: Array
    end_s: Array
    mean_batch: float

    @property
    def ttft_s(self) -> Array:
        """Return times to first token."""
        return self.first_s - self.arrival_s

    def tpot_s(self, output_tokens: Array) -> Array:
        """Return times per output token after the first."""
        return (self.end_s - self.first_s) / np.maximum(output_tokens - 1, 1)


def serve(requests: Requests, concurrency: int, times: StepTimes, policy: Policy, *, think_s: float = 0.0) -> Served:
    """Run requests through one replica and return when each got its tokens.

    With `arrival_s` None, `concurrency` requests are in flight at all times: each end sends the next after `think_s`. A request that cannot fit
    the cache alone raises `InfeasibleError`.
    """
    return _Run(requests, concurrency, times, policy, think_s).finish()


class _Run:
    """Hold the state of one run: a clock, waiting prompts, and the decoding sequences by the step at which they end."""

    def __init__(self, requests: Requests, concurrency: int, times: StepTimes, policy: Policy, think_s: float) -> None:
        self.inputs: list[float] = requests.input_tokens.tolist()
        self.outputs: list[float] = requests.output_tokens.tolist()
        n = len(self.inputs)
        need = max(i + o for i, o in zip(self.inputs, self.outputs, strict=True))
        if need > policy.cache_tokens:
            raise InfeasibleError(
                f"a request of {need:,.0f} tokens does not fit the KV cache of {max(policy.cache_tokens, 0):,.0f} tokens; "
                "use more chips, a narrower KV cache or shorter requests"
            )
        self.times, self.policy, self.think_s = times, policy, think_s
        self.most = max(1, min(policy.max_sequences, concurrency, n))
        low = min(self.inputs)
        self.base, self.slope = times.decode_lines(self.most, low, max(need, low + 1))
        per_length = {length: times.prompt_attention_s(length) / length for length in set(self.inputs)}
        self.attention = [per_length[length] for length in self.inputs]  # seconds per prompt token, by request
        self.arrival = [0.0] * n
        self.first, self.end = [0.0] * n, [0.0] * n
        self.waiting: deque[int] = deque()
        self.future: deque[int] = deque()
        self.next = 0
        if requests.arrival_s is None:
            self.closed = True
            self._send(min(concurrency, n), 0.0)
        else:
            self.closed = False
            self.arrival = requests.arrival_s.tolist()
            self.future.extend(range(n))
        self.clock = 0.0
        self.step = 0  # decode steps done: a sequence ends at the step that emits its last token
        self.ending: list[tuple[int, int]] = []  # (step of the last token, request)
        self.context = 0.0  # tokens cached by decoding sequences
        self.cached = 0.0  # tokens that admitted requests hold or have reserved
        self.partial = -1  # request whose prompt is part read
        self.left = 0.0  # tokens of it still to read
        self.busy_s = self.batch_s = 0.0

    def finish(self) -> Served:
        while self.waiting or self.future or self.ending or self.partial >= 0:
            self._arrive()
            chunks = self._admit()
            if chunks:
                self._prefill(chunks)
            elif self.ending:
                self._decode()
            else:
                self.clock = max(self.clock, self.arrival[self.future[0]])
        return Served(np.array(self.arrival), np.array(self.first), np.array(self.end), self.batch_s / max(self.busy_s, 1e-30))

    def _send(self, count: int, at_s: float) -> None:
        for _ in range(count):
            if self.next < len(self.inputs):
                self.arrival[self.next] = at_s
                (self.future if at_s > 0 else self.waiting).append(self.next)
                self.next += 1

    def _arrive(self) -> None:
        while self.future and self.arrival[self.future[0]] <= self.clock:
            self.waiting.append(self.future.popleft())

    def _admit(self) -> list[tuple[int, float, bool]]:
        """Return this step's prompt chunks as (request, tokens, whether the prompt is then read)."""
        policy = self.policy
        budget = float(policy.step_tokens) - (len(self.ending) if policy.mixes else 0)
        chunks: list[tuple[int, float, bool]] = []
        if self.partial >= 0:
            tokens = min(self.left, max(budget, 1.0))
            chunks.append((self.partial, tokens, tokens >= self.left))
            budget -= tokens
            self.left -= tokens
            if self.left <= 0:
                self.partial = -1
        running = len(self.ending) + len(chunks)
        while self.waiting and self.partial < 0 and budget >= 1 and running < policy.max_sequences:
            request = self.waiting[0]
            tokens_in = self.inputs[request]
            held = tokens_in + (self.outputs[request] if policy.reserves_output else 0.0)
            if self.cached + held > policy.cache_tokens:
                break
            self.waiting.popleft()
            self.cached += held
            tokens = min(tokens_in, budget)
            whole = tokens >= tokens_in
            if not whole:
                self.partial, self.left = request, tokens_in - tokens
            chunks.append((request, tokens, whole))
            budget -= tokens
            running += 1
        return chunks

    def _prefill(self, chunks: Sequence[tuple[int, float, bool]]) -> None:
        tokens = attention_s = 0.0
        for request, taken, _ in chunks:
            tokens += taken
            attention_s += self.attention[request] * taken
        decodes = len(self.ending) if self.policy.mixes else 0
        length_s = self.times.prefill_s(tokens, decodes) + attention_s
        if decodes:
            length_s += self.slope[min(decodes, self.most)] * self.context
        self._pass(length_s, len(self.ending))
        if decodes:
            self._advance(1)
        for request, _, whole in chunks:
            if whole:
                self.first[request] = self.clock
                self.context += self.inputs[request]
                heappush(self.ending, (self.step + max(round(self.outputs[request]) - 1, 0), request))
        self._retire()

    def _decode(self) -> None:
        """Run equal decode steps up to the next end, or to the first step after the next arrival."""
        b = len(self.ending)
        steps = self.ending[0][0] - self.step
        base, slope = self.base[min(b, self.most)], self.slope[min(b, self.most)]
        if self.future:
            first_s = base + slope * self.context
            steps = min(steps, max(1, int((self.arrival[self.future[0]] - self.clock) / first_s) + 1))
        self._pass(steps * (base + slope * (self.context + b * (steps - 1) / 2)), b)
        self._advance(steps)
        self._retire()

    def _pass(self, length_s: float, batch: int) -> None:
        self.clock += length_s
        self.busy_s += length_s
        self.batch_s += length_s * batch

    def _advance(self, steps: int) -> None:
        grown = steps * len(self.ending)
        self.step += steps
        self.context += grown
        if not self.policy.reserves_output:
            self.cached += grown

    def _retire(self) -> None:
        while self.ending and self.ending[0][0] <= self.step:
            _, request = heappop(self.ending)
            self.end[request] = self.clock
            total = self.inputs[request] + max(round(self.outputs[request]) - 1, 0)
            self.context -= total
            self.cached -= self.inputs[request] + self.outputs[request] if self.policy.reserves_output else total
            if self.closed:
                self._send(1, self.clock + self.think_s)
