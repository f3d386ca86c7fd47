"""How fast the compiled machine streams a 135-million-parameter model's weights: `python bench/machine_speed.py`.

A loop loads 520 chunks of 504 weight words (134 M int8 weights, bf16 scales) and multiplies each by m activation rows, on the DEMO tile, one thread.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from fabless.program.assembler import assemble
from fabless.program.tile import DEMO
from fabless.sim.machine import Machine, memory_of

CHUNKS, WORDS, K = 520, 504, 18
ELEMENT_BYTES, SCALE_BYTES = 16 * 32 * WORDS, 16 * 2 * WORDS
TEXT = f"""
.buffer w address=0 bytes={CHUNKS * ELEMENT_BYTES} kind=weights
.buffer s address={CHUNKS * ELEMENT_BYTES} bytes={CHUNKS * SCALE_BYTES} kind=weights
  madd x=2 imm={CHUNKS * ELEMENT_BYTES}
  loop count={CHUNKS} length=5
    load target=w format=int8 count={WORDS} address=0+x1
    load target=ws format=bf16 count={WORDS} address=0+x2
    gemm m={{m}} n={WORDS // K} k={K} a_stride={K} c_stride={WORDS // K} clear=1
    madd x=1 p=1 mul=1 imm={ELEMENT_BYTES}
    madd x=2 p=2 mul=1 imm={SCALE_BYTES}
  end
  halt
"""


def main() -> None:
    rng = np.random.default_rng(0)
    memory = None
    for m in (1, 8, 128):
        program = assemble(TEXT.format(m=m), tile=replace(DEMO, memory_bytes=1 << 28))
        if memory is None:
            memory = memory_of(program)
            memory[: CHUNKS * ELEMENT_BYTES] = rng.integers(0, 256, CHUNKS * ELEMENT_BYTES, dtype=np.uint8)
            scales = rng.random(CHUNKS * SCALE_BYTES // 2).astype(np.float32).view(np.uint32) >> 16
            memory[CHUNKS * ELEMENT_BYTES :] = scales.astype(np.uint16).view(np.uint8)
        machine = Machine(program, memory)
        machine.state.activations[:] = rng.integers(-127, 128, machine.state.activations.shape)
        machine.state.activation_scales[:] = 1
        machine.run()
        start = time.thread_time()
        runs = 10 if m < 100 else 2
        for _ in range(runs):
            machine.run()
        seconds = (time.thread_time() - start) / runs
        gops = 2 * m * CHUNKS * WORDS * 16 * 32 / seconds / 1e9
        print(f"m={m:4d}: {seconds * 1e3:7.1f} ms a pass, {m / seconds:6.0f} rows/s, {gops:5.0f} GOPS")


if __name__ == "__main__":
    main()
