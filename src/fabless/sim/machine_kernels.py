"""The native loop of the fast machine (numba): sequencer, matrix unit, semaphores and links; the readable meaning is in `sim.machine`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN202, PLR0912, PLR0915, SIM109, PLR1714  numba kernels: types are inferred, each mirrors one of sim.machine
from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numba import njit

from fabless.number import kernels, quantise
from fabless.number.kernels import accumulate, place
from fabless.program import isa
from fabless.program.isa import BY_MNEMONIC, LOOP_DEPTH, SEMAPHORE_MAX
from fabless.sim import machine_transfer, machine_vector, machine_words
from fabless.sim.machine_transfer import load, store
from fabless.sim.machine_vector import MASK, QUANT, ROTATE, VEC, vector
from fabless.sim.machine_words import (
    BAD_ACCUMULATORS,
    BAD_ACTIVATIONS,
    BAD_LOOP,
    BAD_MESSAGE,
    BAD_PARAMETER,
    BAD_PC,
    BAD_SIGNAL,
    BAD_VECTOR,
    BAD_WAIT,
    BAD_WEIGHTS,
    WAITING,
    canonical,
    column,
    kept,
    native,
    wrap,
)  # fmt: skip

LOOP, END, MADD, PARAM, READ, SYNC, LOAD, STORE, GEMM, SEND = (
    BY_MNEMONIC[m].code for m in ("loop", "end", "madd", "param", "read", "sync", "load", "store", "gemm", "send")
)
_G_M, _G_N, _G_K, _G_W, _G_WR, _G_A, _G_AR, _G_AS, _G_C, _G_CR, _G_CS, _G_CLEAR, _G_SPLIT, _G_UNIT = (
    column("gemm", f)
    for f in ("m", "n", "k", "w", "w_reg", "a", "a_reg", "a_stride", "c", "c_reg", "c_stride", "clear", "split", "unit")
)  # fmt: skip


@native
def _contiguous(where, word, count, word_bytes):
    """Return the address in memory that `word` refers to, if the `count` words from there on follow it, else -1."""
    part = where[word : word + count]  # a slice from 0 and no branches: the scan vectorises
    at = part[0]
    apart = np.int64(0)
    for j in range(count):
        apart |= part[j] - (at + j * word_bytes)
    return at if apart == 0 else np.int64(-1)


@native
def _gemm(row, x, memory, weights, scales, where, a, sa, c, ones, bias):
    m, n, k = row[_G_M], row[_G_N], row[_G_K]
    w, a0, c0 = wrap(row[_G_W] + x[row[_G_WR]]), wrap(row[_G_A] + x[row[_G_AR]]), wrap(row[_G_C] + x[row[_G_CR]])
    a_stride, c_stride, split = row[_G_AS], row[_G_CS], row[_G_SPLIT]
    r = scales.shape[1]
    if w < 0 or w + k * n > len(where):
        return BAD_WEIGHTS
    if a0 < 0 or a0 + (m - 1) * a_stride + ((k + 1) // 2 if split else k) > len(sa):
        return BAD_ACTIVATIONS
    if c0 < 0 or (c0 + (m - 1) * c_stride + n) * r > len(c) or (m > 1 and c_stride < n):
        return BAD_ACCUMULATORS
    if row[_G_CLEAR]:
        for i in range(m):
            first = (c0 + i * c_stride) * r
            c[first : first + n * r] = 0
    word_bytes = 32 * r
    first = _contiguous(where, w, k * n, word_bytes)
    unit = row[_G_UNIT]
    memory_at, weights_at, scales_at, ones_at = place(memory), place(weights), place(scales), place(ones)
    a_at, sa_at, c_at, bias_at = place(a) + a0 * 32, place(sa) + a0 * 4, place(c) + c0 * r * 4, place(bias)
    for kb in range(k):
        ka = kb // 2 if split else kb
        nt = 0
        while nt < n:
            word = w + kb * n + nt
            run = n
            at = first + kb * n * word_bytes
            if first < 0:
                at = where[word]
                run = 1
                while nt + run < n and where[word + run] == (at + run * word_bytes if at >= 0 else at):
                    run += 1
            accumulate(
                memory_at + at if at >= 0 else weights_at + word * word_bytes, ones_at if unit else scales_at + word * r * 4,
                a_at + ka * 32, a_stride * 32, sa_at + ka * 4, a_stride * 4, bias_at, c_at + nt * r * 4, c_stride * r * 4, m, run * r,
            )  # fmt: skip
            nt += run
    codes = c.view(np.int32)
    for i in range(m):
        canonical(codes, (c0 + i * c_stride) * r, n * r)
    return 0


@native
def _net(code, row, x, a, sa, v, words, ends):
    """Send or receive; returns WAITING when the link is too full or too empty."""
    space, first, count = row[1], wrap(row[2] + x[row[3]]), row[4]
    size = len(words)
    if space == 0 and (first < 0 or first + count > len(v)):
        return BAD_VECTOR
    if space == 1 and (first < 0 or first + count > len(sa)):
        return BAD_ACTIVATIONS
    need = 1 + count * (9 if space else 1)
    codes, sa_codes, a_codes = v.view(np.int32), sa.view(np.int32), a.reshape(-1).view(np.int32)
    head, tail = ends[0], ends[1]
    if code == SEND:
        if size - (tail - head) < need:
            return WAITING
        words[tail % size] = np.int32(space << 24 | count)
        tail += 1
        for e in range(count):
            if space == 0:
                words[tail % size] = codes[first + e]
                tail += 1
            else:
                for j in range(8):
                    words[(tail + j) % size] = a_codes[(first + e) * 8 + j]
                words[(tail + 8) % size] = sa_codes[first + e]
                tail += 9
        ends[1] = tail
        return 0
    if tail == head:
        return WAITING
    if words[head % size] != np.int32(space << 24 | count):
        return BAD_MESSAGE
    head += 1
    for e in range(count):
        if space == 0:
            if row[5]:
                here = v[first + e]
                codes[first + e] = words[head % size]
                v[first + e] = kept(v[first + e] + here)
            else:
                codes[first + e] = words[head % size]
            head += 1
        else:
            for j in range(8):
                a_codes[(first + e) * 8 + j] = words[(head + j) % size]
            sa_codes[first + e] = words[(head + 8) % size]
            head += 9
    ends[0] = head
    if space == 0:
        canonical(codes, first, count)
    return 0


@native
def _sync(wait, signal, semaphores):
    for s in range(32):
        if wait >> s & 1:
            if semaphores[s] == 0:
                return BAD_WAIT
            semaphores[s] -= 1
    for s in range(32):
        if signal >> s & 1:
            if semaphores[s] == SEMAPHORE_MAX:
                return BAD_SIGNAL
            semaphores[s] += 1
    return 0


@native
def _integer(value):
    if value != value:  # noqa: PLR0124  NaN
        return 0
    return np.int64(np.rint(max(np.float64(-2147483648.0), min(np.float64(2147483647.0), np.float64(value)))))


def _stamp() -> int:
    """Return a number that changes with any source that the loop is compiled from."""
    h = hashlib.sha256()
    for module in (isa, kernels, quantise, machine_words, machine_transfer, machine_vector):
        h.update(Path(module.__file__ or "").read_bytes())
    return int.from_bytes(h.digest()[:7], "little")


def _make_run(stamp: int):
    """Compile the loop. numba's cache looks at this file and at what `run` closes over: the stamp makes it notice every other source too."""

    @njit(cache=True, nogil=True, error_model="numpy")
    def run(
        control, loops, x, table, parameters, memory, weights, scales, where, a, sa, c, v, semaphores, scratch, ones,
        in_words, in_ends, out_words, out_ends, e0, e1, e2, r0, r1, r2, q0, q1, q2,
    ):  # fmt: skip
        """Execute until halt, wait or error; `control` is [pc, loop depth, retired, stamp] and keeps its place."""
        pc, depth, retired = control[0], control[1], control[2]
        bias = np.zeros(256, np.int32)
        status = 0
        while True:
            if pc < 0 or pc >= len(table):
                status = BAD_PC
                break
            row = table[pc]
            code = row[0]
            if code >= SYNC:
                if code == VEC or code == QUANT or code == MASK or code == ROTATE:
                    status = vector(code, row, x, a, sa, c, v, scratch, e0, e1, e2, r0, r1, r2, q0, q1, q2)
                elif code == GEMM:
                    status = _gemm(row, x, memory, weights, scales, where, a, sa, c, ones, bias)
                elif code == SYNC:
                    status = _sync(row[2], row[3], semaphores)
                elif code == LOAD:
                    status = load(row, x, memory, weights, scales, where, a, sa, v)
                elif code == STORE:
                    status = store(row, x, memory, weights, where, 32 * scales.shape[1], a, sa, v)
                elif code == SEND:
                    status = _net(code, row, x, a, sa, v, out_words, out_ends)
                else:
                    status = _net(code, row, x, a, sa, v, in_words, in_ends)
                if status != 0:
                    break
                retired += 1
            elif code == MADD:
                if row[1]:
                    x[row[1]] = wrap(x[row[2]] * row[3] + x[row[4]] + row[5])
            elif code == LOOP:
                trips = wrap(row[1] + x[row[2]])
                if depth == LOOP_DEPTH:
                    status = BAD_LOOP
                    break
                if trips > 0:
                    loops[depth, 0], loops[depth, 1] = pc, trips
                    depth += 1
                else:
                    pc += row[3] + 1
            elif code == END:
                if depth == 0:
                    status = BAD_LOOP
                    break
                loops[depth - 1, 1] -= 1
                if loops[depth - 1, 1]:
                    pc = loops[depth - 1, 0]
                else:
                    depth -= 1
            elif code == PARAM:
                at = wrap(row[2] + x[row[3]])
                if at < 0 or at >= len(parameters):
                    status = BAD_PARAMETER
                    break
                if row[1]:
                    x[row[1]] = parameters[at]
            elif code == READ:
                at = wrap(row[2] + x[row[3]])
                if at < 0 or at >= len(v):
                    status = BAD_VECTOR
                    break
                if row[1]:
                    x[row[1]] = _integer(v[at])
                retired += 1
            else:
                retired += 1
                break
            pc += 1
        control[0], control[1], control[2], control[3] = pc, depth, retired, stamp
        return status

    return run


run = _make_run(_stamp())
