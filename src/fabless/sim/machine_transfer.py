"""Transfers between memory and buffers, compiled (numba); the readable meaning is `_load` and `_store` of `sim.machine`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN201, ANN202, PLR0912, PLR0915  numba kernels: types are inferred, each mirrors one of sim.machine
from __future__ import annotations

import numpy as np
from numba import njit

from fabless.number.kernels import has_f16c, make_widen, place
from fabless.sim.machine_words import (
    BAD_ACTIVATIONS,
    BAD_FORMAT,
    BAD_MEMORY,
    BAD_VECTOR,
    BAD_WEIGHTS,
    INF,
    NAN,
    canonical,
    column,
    native,
    wrap,
)  # fmt: skip

_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def _e4m3_values() -> np.ndarray:
    from fabless.number.formats import E4M3
    from fabless.number.round import decode

    return np.array([decode(code, E4M3) for code in range(256)], np.float32)


_E4M3 = _e4m3_values()
_W, _WS, _A, _AS, _AB, _V = range(6)
_FP32, _BF16, _FP16, _INT8, _INT4, _E2M1_FORMAT, _SPLIT, _E8M0, _E8M0_HALF, _E4M3_FORMAT, _E4M3_HALF = range(11)
_L_T, _L_F, _L_N, _L_ROWS, _L_D, _L_DR, _L_AD, _L_ADR, _L_S = (
    column("load", f) for f in ("target", "format", "count", "rows", "dst", "dst_reg", "address", "address_reg", "stride")
)


@njit(cache=True)
def settle(memory, weights, where, word_bytes, first, last):
    """Copy weight words that refer to memory bytes in [first, last) into the weight buffer."""
    touched = np.int64(0)
    for word in range(len(where)):  # counted first: without branches the scan vectorises, and a store seldom meets a word
        touched += np.int64(where[word] >= 0) & np.int64(where[word] < last) & np.int64(where[word] + word_bytes > first)
    if touched == 0:
        return
    for word in range(len(where)):
        at = where[word]
        if at >= 0 and at < last and at + word_bytes > first:
            for e in range(word_bytes):
                weights[word * word_bytes + e] = np.int8(memory[at + e])
            where[word] = -1


if has_f16c():
    _widen = make_widen()

    @native
    def _widen_all(source, target, count):
        """Decode as many binary16 as fill vectors of 16; returns how many."""
        whole = count // 16 * 16
        for e in range(0, whole, 16):
            _widen(source + 2 * e, target + 4 * e)
        return whole

else:

    @native
    def _widen_all(source, target, count):
        return 0


@native
def _half_values(halves, part, part_codes, count):
    """Decode binary16: magnitude bits moved to binary32's place mean 2^-112 of the value, subnormals included; scaling by 2^112 is exact."""
    for e in range(count):
        part_codes[e] = np.int32(np.uint32(halves[e] & np.uint16(0x7FFF)) << np.uint32(13))
    for e in range(count):
        part[e] = part[e] * np.float32(2.0**112)
    for e in range(count):
        magnitude = np.int32(halves[e] & np.uint16(0x7FFF))
        code = part_codes[e]
        code = np.int32(INF) if magnitude == np.int32(0x7C00) else code
        code = np.int32(NAN) if magnitude > np.int32(0x7C00) else code
        part_codes[e] = code | np.int32(np.uint32(halves[e] & np.uint16(0x8000)) << np.uint32(16))


@native
def _values(memory, at, count, format, out, out_codes, first):
    """Decode `count` numbers at byte `at` into float32 `out[first...]`."""
    if format == _FP32:
        words = memory[at : at + 4 * count].view(np.int32)
        part = out_codes[first : first + count]
        for e in range(count):
            part[e] = words[e]
    elif format == _BF16:
        halves = memory[at : at + 2 * count].view(np.uint16)
        part = out_codes[first : first + count]
        for e in range(count):
            part[e] = np.int32(np.uint32(halves[e]) << np.uint32(16))
    elif format == _FP16:
        done = _widen_all(place(memory) + at, place(out) + 4 * first, count)
        halves = memory[at + 2 * done : at + 2 * count].view(np.uint16)
        _half_values(halves, out[first + done : first + count], out_codes[first + done : first + count], count - done)
        first, count = first + done, count - done  # what is widened is canonical
    elif format == _INT8:
        for e in range(count):
            out[first + e] = np.float32(np.int8(memory[at + e]))
    elif format in (_E8M0, _E8M0_HALF):
        for e in range(count):
            code = np.int64(memory[at + e])
            exponent = code - (1 if format == _E8M0_HALF else 0)
            out_codes[first + e] = np.int32(NAN if code == 255 else (exponent << 23 if exponent > 0 else 0))
    else:
        factor = np.float32(0.5) if format == _E4M3_HALF else np.float32(1)
        for e in range(count):
            out[first + e] = _E4M3[memory[at + e]] * factor
    canonical(out_codes, first, count)


@native
def load(row, x, memory, weights, scales, where, a, sa, v):
    """Execute a load: returns 0 or an error code; int8 weights are noted in `where`, not copied."""
    target, format, count, rows = row[_L_T], row[_L_F], row[_L_N], row[_L_ROWS]
    dst, address, stride = wrap(row[_L_D] + x[row[_L_DR]]), wrap(row[_L_AD] + x[row[_L_ADR]]), row[_L_S]
    r = scales.shape[1]
    elements = count * (32 * r if target == _W else r if target == _WS else 32 if target == _A else 1)
    if format == _FP32:
        n_bytes = 4 * elements
    elif format in (_BF16, _FP16):
        n_bytes = 2 * elements
    elif format in (_INT4, _E2M1_FORMAT):
        n_bytes = (elements + 1) // 2
    elif format == _SPLIT:
        n_bytes = (elements + 3) // 4
    else:
        n_bytes = elements
    if address < 0 or address + (rows - 1) * stride + n_bytes > len(memory):
        return BAD_MEMORY
    if target in (_W, _WS):
        if dst < 0 or dst + rows * count > len(where):
            return BAD_WEIGHTS
    elif target in (_A, _AS):
        if dst < 0 or dst + rows * count > len(sa):
            return BAD_ACTIVATIONS
    elif dst < 0 or dst + rows * count > len(v):
        return BAD_VECTOR
    word_bytes = 32 * r
    for i in range(rows):
        at = address + i * stride
        if target == _W:
            if format == _INT8:
                for c in range(count):
                    where[dst + i * count + c] = at + c * word_bytes
            elif format in (_INT4, _E2M1_FORMAT):
                first = (dst + i * count) * word_bytes
                for e in range(n_bytes):
                    b = np.int64(memory[at + e])
                    if format == _INT4:
                        weights[first + 2 * e] = np.int8(((b & 15) ^ 8) - 8)
                        weights[first + 2 * e + 1] = np.int8((b >> 4 ^ 8) - 8)
                    else:
                        weights[first + 2 * e] = _E2M1[b & 15]
                        weights[first + 2 * e + 1] = _E2M1[b >> 4]
                where[dst + i * count : dst + (i + 1) * count] = -1
            elif format == _SPLIT:
                for block in range(count * r):
                    first = (dst + i * count) * word_bytes + block * 32
                    weights[first : first + 32] = 0
                    first += 16 * (i & 1)
                    for e in range(8):
                        b = np.int64(memory[at + block * 8 + e])
                        weights[first + 2 * e] = _E2M1[b & 15]
                        weights[first + 2 * e + 1] = _E2M1[b >> 4]
                where[dst + i * count : dst + (i + 1) * count] = -1
            else:
                return BAD_FORMAT
        elif target == _WS:
            flat = scales.reshape(-1)
            _values(memory, at, elements, format, flat, flat.view(np.int32), (dst + i * count) * r)
        elif target == _A:
            flat_a = a.reshape(-1)
            first = (dst + i * count) * 32
            for e in range(elements):
                flat_a[first + e] = np.int8(memory[at + e])
        elif target == _AS:
            _values(memory, at, elements, format, sa, sa.view(np.int32), dst + i * count)
        else:
            _values(memory, at, elements, format, v, v.view(np.int32), dst + i * count)
    return 0


@native
def store(row, x, memory, weights, where, word_bytes, a, sa, v):
    """Execute a store: returns 0 or an error code."""
    target, format, count, rows = row[_L_T], row[_L_F], row[_L_N], row[_L_ROWS]
    src, address, stride = wrap(row[_L_D] + x[row[_L_DR]]), wrap(row[_L_AD] + x[row[_L_ADR]]), row[_L_S]
    n_bytes = count * (32 if target == _A else 1 if target == _AB else 4 if format == _FP32 else 2)
    end = address + (rows - 1) * stride + n_bytes
    if address < 0 or end > len(memory):
        return BAD_MEMORY
    units = rows * count
    if target == _V:
        if src < 0 or src + units > len(v):
            return BAD_VECTOR
    elif src < 0 or src + ((units + 31) // 32 if target == _AB else units) > len(sa):
        return BAD_ACTIVATIONS
    settle(memory, weights, where, word_bytes, address, end)
    flat, sa_codes, v_codes = a.reshape(-1), sa.view(np.uint32), v.view(np.uint32)
    for i in range(rows):
        at = address + i * stride
        if target in (_A, _AB):
            first = src * 32 + i * n_bytes
            for e in range(n_bytes):
                memory[at + e] = np.uint8(flat[first + e])
        elif target == _AS or format == _BF16:
            for e in range(count):
                if target == _AS:
                    code = sa_codes[src + i * count + e] >> 16
                else:
                    full = np.uint64(v_codes[src + i * count + e])
                    code = np.uint32(full >> 16) if full & 0x7FFFFFFF > 0x7F800000 else np.uint32((full + 0x7FFF + (full >> 16 & 1)) >> 16)
                memory[at + 2 * e] = code & 255
                memory[at + 2 * e + 1] = code >> 8 & 255
        else:
            for e in range(count):
                code = v_codes[src + i * count + e]
                for b in range(4):
                    memory[at + 4 * e + b] = code >> 8 * b & 255
    return 0
