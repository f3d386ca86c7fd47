"""The native loop of the fast machine (numba). One function an instruction; the readable meaning of each is in `sim.machine`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN201, ANN202, PLR0912, PLR0915, PLR0917, SIM109, PLR1714  numba kernels: types are inferred, each mirrors one of sim.machine
from __future__ import annotations

import numpy as np
from numba import njit

from fabless.number.kernels import accumulate
from fabless.number.quantise import C127_BITS
from fabless.program.isa import BY_MNEMONIC, LOOP_DEPTH, LOWEST, SEMAPHORE_MAX

HALTED, WAITING = 0, 1
(BAD_PC, BAD_LOOP, BAD_PARAMETER, BAD_WAIT, BAD_SIGNAL, BAD_MEMORY, BAD_WEIGHTS, BAD_ACTIVATIONS, BAD_ACCUMULATORS, BAD_VECTOR, BAD_MESSAGE,
 BAD_PAIR, BAD_FORMAT) = range(-1, -14, -1)  # fmt: skip


#: Inner functions need no way in from Python: leaving the wrappers out halves the time to compile.
_native = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")


def _column(mnemonic: str, field: str) -> int:
    return 1 + [f.name for f in BY_MNEMONIC[mnemonic].fields].index(field)


(HALT, LOOP, END, MADD, PARAM, READ, SYNC, LOAD, STORE, GEMM, VEC, QUANT, MASK, ROTATE, SEND, RECV) = (
    BY_MNEMONIC[m].code
    for m in (
        "halt", "loop", "end", "madd", "param", "read", "sync", "load", "store", "gemm", "vec", "quant", "mask", "rotate", "send", "recv",
    )
)  # fmt: skip
_C127 = np.uint32(C127_BITS).view(np.float32)
_TINY = np.float32(2.0**-126)
_LOWEST = np.float32(LOWEST)
_ZERO = np.float32(0)
_NAN = 0x7FC00000
_INF = 0x7F800000
_HALF_RANGE = 1 << 39
_RANGE = 1 << 40
_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def _e4m3_values() -> np.ndarray:
    from fabless.number.formats import E4M3
    from fabless.number.round import decode

    return np.array([decode(code, E4M3) for code in range(256)], np.float32)


_E4M3 = _e4m3_values()
_W, _WS, _A, _AS, _AB, _V = range(6)
_FP32, _BF16, _FP16, _INT8, _INT4, _E2M1_FORMAT, _SPLIT, _E8M0, _E8M0_HALF, _E4M3_FORMAT, _E4M3_HALF = range(11)

# Columns of fields, known to the compiler as constants.
_ROWS, _LEN, _SPACE, _DST, _DST_R, _DST_S, _A0, _A0_R, _A_S = (
    _column("vec", f) for f in ("rows", "len", "a_space", "dst", "dst_reg", "dst_stride", "a", "a_reg", "a_stride")
)
_PRE, _FN, _B0, _B0_R, _B_S, _B_K, _RED = (_column("vec", f) for f in ("pre", "fn", "b", "b_reg", "b_stride", "b_kind", "reduce"))
_R_B, _R_BR, _R_BS = (_column("rotate", f) for f in ("b", "b_reg", "b_stride"))
_M_START, _M_LOW, _M_HIGH, _M_STEP, _M_FILL = (_column("mask", f) for f in ("start_reg", "low_reg", "high_reg", "step", "fill"))
_G_M, _G_N, _G_K, _G_W, _G_WR, _G_A, _G_AR, _G_AS, _G_C, _G_CR, _G_CS, _G_CLEAR, _G_SPLIT, _G_UNIT = (
    _column("gemm", f)
    for f in ("m", "n", "k", "w", "w_reg", "a", "a_reg", "a_stride", "c", "c_reg", "c_stride", "clear", "split", "unit")
)  # fmt: skip
_L_T, _L_F, _L_N, _L_ROWS, _L_D, _L_DR, _L_AD, _L_ADR, _L_S = (
    _column("load", f) for f in ("target", "format", "count", "rows", "dst", "dst_reg", "address", "address_reg", "stride")
)


@_native
def _wrap(value):
    return (value + _HALF_RANGE) % _RANGE - _HALF_RANGE


@_native
def _kept(x):
    """Flush: magnitudes below 2^-126 become +0; NaN passes."""
    return _ZERO if abs(x) < _TINY else x


@_native
def _canonical(codes, first, count):
    part = codes[first : first + count]  # a slice from 0: the compiler sees that no index is negative, and vectorises
    for e in range(count):
        c = part[e]
        magnitude = c & np.int32(0x7FFFFFFF)
        c = np.int32(0) if magnitude < np.int32(0x00800000) else c
        part[e] = np.int32(_NAN) if magnitude > np.int32(0x7F800000) else c


@njit(cache=True)
def settle(memory, weights, where, word_bytes, first, last):
    """Copy weight words that refer to memory bytes in [first, last) into the weight buffer."""
    for word in range(len(where)):
        at = where[word]
        if at >= 0 and at < last and at + word_bytes > first:
            for e in range(word_bytes):
                weights[word * word_bytes + e] = np.int8(memory[at + e])
            where[word] = -1


@_native
def _half_values(halves, part, part_codes, count):
    """Decode binary16: magnitude bits moved to binary32's place mean 2^-112 of the value, subnormals included; scaling by 2^112 is exact."""
    for e in range(count):
        part_codes[e] = np.int32(np.uint32(halves[e] & np.uint16(0x7FFF)) << np.uint32(13))
    for e in range(count):
        part[e] = part[e] * np.float32(2.0**112)
    for e in range(count):
        magnitude = np.int32(halves[e] & np.uint16(0x7FFF))
        code = part_codes[e]
        code = np.int32(_INF) if magnitude == np.int32(0x7C00) else code
        code = np.int32(_NAN) if magnitude > np.int32(0x7C00) else code
        part_codes[e] = code | np.int32(np.uint32(halves[e] & np.uint16(0x8000)) << np.uint32(16))


@_native
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
        halves = memory[at : at + 2 * count].view(np.uint16)
        _half_values(halves, out[first : first + count], out_codes[first : first + count], count)
    elif format == _INT8:
        for e in range(count):
            out[first + e] = np.float32(np.int8(memory[at + e]))
    elif format in (_E8M0, _E8M0_HALF):
        for e in range(count):
            code = np.int64(memory[at + e])
            exponent = code - (1 if format == _E8M0_HALF else 0)
            out_codes[first + e] = np.int32(_NAN if code == 255 else (exponent << 23 if exponent > 0 else 0))
    else:
        factor = np.float32(0.5) if format == _E4M3_HALF else np.float32(1)
        for e in range(count):
            out[first + e] = _E4M3[memory[at + e]] * factor
    _canonical(out_codes, first, count)


@_native
def _load(row, x, memory, weights, scales, where, a, sa, v):
    target, format, count, rows = row[_L_T], row[_L_F], row[_L_N], row[_L_ROWS]
    dst, address, stride = _wrap(row[_L_D] + x[row[_L_DR]]), _wrap(row[_L_AD] + x[row[_L_ADR]]), row[_L_S]
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


@_native
def _store(row, x, memory, weights, where, word_bytes, a, sa, v):
    target, format, count, rows = row[_L_T], row[_L_F], row[_L_N], row[_L_ROWS]
    src, address, stride = _wrap(row[_L_D] + x[row[_L_DR]]), _wrap(row[_L_AD] + x[row[_L_ADR]]), row[_L_S]
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


@_native
def _gemm(row, x, memory, weights, scales, where, a, sa, c, ones, bias):
    m, n, k = row[_G_M], row[_G_N], row[_G_K]
    w, a0, c0 = _wrap(row[_G_W] + x[row[_G_WR]]), _wrap(row[_G_A] + x[row[_G_AR]]), _wrap(row[_G_C] + x[row[_G_CR]])
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
    for kb in range(k):
        ka = kb // 2 if split else kb
        for i in range(m):
            total = np.int32(0)
            for j in range(32):
                total += np.int32(a[a0 + i * a_stride + ka, j])
            bias[i] = total * np.int32(128)
        nt = 0
        while nt < n:
            word = w + kb * n + nt
            at = where[word]
            run = 1
            if at < 0:
                while nt + run < n and where[word + run] < 0:
                    run += 1
                source = weights.ctypes.data + word * word_bytes
            else:
                while nt + run < n and where[word + run] == at + run * word_bytes:
                    run += 1
                source = memory.ctypes.data + at
            scale = ones.ctypes.data if row[_G_UNIT] else scales.ctypes.data + word * r * 4
            for i in range(m):
                activation = a0 + i * a_stride + ka
                accumulate(
                    source, scale, a.ctypes.data + activation * 32, sa[activation], bias[i],
                    c.ctypes.data + ((c0 + i * c_stride + nt) * r) * 4, run * r,
                )  # fmt: skip
            nt += run
    codes = c.view(np.int32)
    for i in range(m):
        _canonical(codes, (c0 + i * c_stride) * r, n * r)
    return 0


@_native
def _quadratic(c0, c1, c2, row, d, bits):
    return c0[row] + ((c1[row] + (c2[row] * d >> bits)) * d >> bits)


@_native
def _function(fn, t, codes, n, e0, e1, e2, r0, r1, r2, q0, q1, q2):
    for e in range(n):
        code = np.int64(codes[e]) & 0xFFFFFFFF
        exponent, fraction = code >> 23 & 255, code & 0x7FFFFF
        if exponent == 255 and fraction:
            out = np.int64(_NAN)
        elif fn == 1:
            x = np.float64(t[e])
            if x >= 128.0:
                out = np.int64(_INF)
            elif x < -126.0:
                out = np.int64(0)
            else:
                fixed = np.int64(np.floor(x * 67108864.0))
                f = fixed & 0x3FFFFFF
                y = _quadratic(e0, e1, e2, f >> 19, f & 0x7FFFF, 19)
                out = ((fixed >> 26) + 126 << 23) + (y + 16 >> 5)
        elif fn == 2:
            if exponent == 0:
                out = np.int64(_INF)
            elif exponent == 255:
                out = np.int64(0)
            else:
                y = _quadratic(r0, r1, r2, fraction >> 16, fraction & 0xFFFF, 16)
                out = (252 - exponent << 23) + (y + 8 >> 4)
                out = out | code & 0x80000000 if out >= 0x800000 else np.int64(0)
        elif exponent == 0:
            out = np.int64(_INF)
        elif code >> 31:
            out = np.int64(_NAN)
        elif exponent == 255:
            out = np.int64(0)
        else:
            odd = exponent + 1 & 1
            y = _quadratic(q0, q1, q2, odd << 7 | fraction >> 16, fraction & 0xFFFF, 16)
            out = (125 - (exponent - 127 - odd >> 1) << 23) + (y + 8 >> 4)
        codes[e] = np.int32(out)


@_native
def _pre(pre, t, b, scalar, step, n):
    """Apply the two-operand step in place; b advances by `step` (0: one scalar)."""
    if pre == 1:
        for e in range(n):
            t[e] = _kept(t[e] + (b[e] if step else scalar))
    elif pre == 2:
        for e in range(n):
            t[e] = _kept(t[e] - (b[e] if step else scalar))
    elif pre == 3:
        for e in range(n):
            t[e] = _kept(t[e] * (b[e] if step else scalar))
    elif pre in (4, 5):
        for e in range(n):
            p, q = t[e], b[e] if step else scalar
            if p != p or q != q:  # noqa: PLR0124  NaN
                t[e] = np.float32(np.nan)
            elif pre == 4:
                t[e] = max(p, q)
            else:
                t[e] = min(p, q)
    elif pre == 6:
        for e in range(n):
            if np.float32(e) == (b[e] if step else scalar):
                t[e] = _LOWEST


@_native
def _tree_sum(t, n):
    padded = (n + 127) // 128 * 128
    t[n:padded] = 0
    half = padded
    for _ in range(5):
        half //= 2
        for e in range(half):
            t[e] = _kept(t[2 * e] + t[2 * e + 1])
    s0 = s1 = s2 = s3 = _ZERO
    for j in range(0, half, 4):
        s0, s1, s2, s3 = _kept(s0 + t[j]), _kept(s1 + t[j + 1]), _kept(s2 + t[j + 2]), _kept(s3 + t[j + 3])
    return _kept(_kept(s0 + s1) + _kept(s2 + s3))


@_native
def _best(t, n, argmax):
    best, index = t[0], 0
    for e in range(1, n):
        if best != best:  # noqa: PLR0124  the first NaN is greatest and stays
            break
        if t[e] > best or t[e] != t[e]:
            best, index = t[e], e
    return np.float32(index) if argmax else best


@_native
def _quantise_row(t, codes, n, scope, q, sa, first, r0):
    blocks = (n + 31) // 32
    t[n : blocks * 32] = 0
    row_max = _ZERO
    if scope:
        for e in range(n):
            p = abs(t[e])
            if p > row_max or p != p:  # noqa: PLR0124  NaN
                row_max = p
                if p != p:  # noqa: PLR0124  NaN
                    break
    scale_codes = sa.view(np.int32)
    for block in range(blocks):
        amax = row_max
        if not scope:
            amax = _ZERO
            for e in range(32 * block, 32 * block + 32):
                p = abs(t[e])
                if p > amax or p != p:  # noqa: PLR0124  NaN
                    amax = p
                    if p != p:  # noqa: PLR0124  NaN
                        break
        word = first + block
        sa[word] = _kept(amax * _C127)
        code = np.int64(scale_codes[word]) & 0x7FFFFFFF
        if code > 0x7F800000:
            code = np.int64(_NAN)
            inverse = np.int64(_NAN)
        else:
            code = code + 0xFFFF & 0xFFFF0000
            exponent = code >> 23
            inverse = (252 - exponent << 23) + (r0[code >> 16 & 127] + 8 >> 4)
            if exponent in (0, 255) or inverse < 0x800000:
                inverse = np.int64(0)
        scale_codes[word] = np.int32(inverse)
        factor = sa[word]
        scale_codes[word] = np.int32(code)
        for j in range(32):
            p = _kept(t[32 * block + j] * factor)
            rounded = np.rint(p)
            q[word, j] = np.int8(0) if p != p else np.int8(max(np.float32(-127), min(np.float32(127), rounded)))  # noqa: PLR0124  NaN


@_native
def _vector(code, row, x, a_words, sa, c, v, scratch, e0, e1, e2, r0, r1, r2, q0, q1, q2):
    """Execute vec, quant, mask or rotate."""
    rows, n = row[_ROWS], row[_LEN]
    dst, a0 = _wrap(row[_DST] + x[row[_DST_R]]), _wrap(row[_A0] + x[row[_A0_R]])
    source = c if row[_SPACE] else v
    a_stride, dst_stride = 32 * row[_A_S], row[_DST_S]
    if a0 < 0 or a0 + (rows - 1) * a_stride + n > len(source):
        return BAD_ACCUMULATORS if row[_SPACE] else BAD_VECTOR
    reduce = row[_RED] if code == VEC else 0
    if code == QUANT:
        if dst < 0 or dst + (rows - 1) * dst_stride + (n + 31) // 32 > len(sa):
            return BAD_ACTIVATIONS
    elif dst < 0 or dst + ((rows - 1) * dst_stride + 1 if reduce else (rows - 1) * dst_stride * 32 + n) > len(v):
        return BAD_VECTOR
    t, b = scratch[0], scratch[1]
    t_codes, v_codes = t.view(np.int32), v.view(np.int32)
    pre, fn, kind, b0, b_stride = np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    scalar = _ZERO
    if code == ROTATE:
        b0, b_stride, kind = _wrap(row[_R_B] + x[row[_R_BR]]), row[_R_BS], np.int64(0)
        if n % 2:
            return BAD_PAIR
    elif code in (VEC, QUANT):
        pre, fn, kind, b0, b_stride = row[_PRE], row[_FN], row[_B_K], _wrap(row[_B0] + x[row[_B0_R]]), row[_B_S]
    if code == ROTATE or pre:
        if kind == 0 and (b0 < 0 or b0 + (rows - 1) * b_stride * 32 + n > len(v)):
            return BAD_VECTOR
        if kind == 1 and (b0 < 0 or b0 + (rows - 1) * b_stride + 1 > len(v)):
            return BAD_VECTOR
        if kind == 2:
            b.view(np.int32)[0] = np.int32(np.uint32(x[row[_B0_R]] & 0xFFFFFFFF))
            _canonical(b.view(np.int32), 0, 1)
            scalar = b[0]
    for i in range(rows):
        first = a0 + i * a_stride
        part = source[first : first + n]
        for e in range(n):
            t[e] = part[e]
        if code == MASK:
            shift = i * row[_M_STEP]
            low, high, start = x[row[_M_LOW]] + shift, x[row[_M_HIGH]] + shift, x[row[_M_START]]
            fill = _LOWEST if row[_M_FILL] else _ZERO
            for e in range(n):
                if start + e < low or start + e >= high:
                    t[e] = fill
        elif code == ROTATE:
            base = b0 + i * b_stride * 32
            for e in range(0, n, 2):
                p, q, cosine, sine = t[e], t[e + 1], v[base + e], v[base + e + 1]
                t[e] = _kept(_kept(p * cosine) - _kept(q * sine))
                t[e + 1] = _kept(_kept(q * cosine) + _kept(p * sine))
        else:
            if pre:
                step = 0
                if kind == 0:
                    step = 1
                    part = v[b0 + i * b_stride * 32 : b0 + i * b_stride * 32 + n]
                    for e in range(n):
                        b[e] = part[e]
                elif kind == 1:
                    scalar = v[b0 + i * b_stride]
                elif kind == 3:
                    step = 1
                    for e in range(n):
                        b[e] = t[e]
                _pre(pre, t, b, scalar, step, n)
            if fn:
                _function(fn, t, t_codes, n, e0, e1, e2, r0, r1, r2, q0, q1, q2)
        if code == QUANT:
            _quantise_row(t, t_codes, n, row[_RED], a_words, sa, dst + i * dst_stride, r0)
        elif reduce:
            at = dst + i * dst_stride
            v[at] = _tree_sum(t, n) if reduce == 1 else _best(t, n, reduce == 3)
            _canonical(v_codes, at, 1)
        else:
            at = dst + i * dst_stride * 32
            part = v[at : at + n]
            for e in range(n):
                part[e] = t[e]
            _canonical(v_codes, at, n)
    return 0


@_native
def _net(code, row, x, a, sa, v, words, ends):
    """Send or receive; returns WAITING when the link is too full or too empty."""
    space, first, count = row[1], _wrap(row[2] + x[row[3]]), row[4]
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
                v[first + e] = _kept(v[first + e] + here)
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
        _canonical(codes, first, count)
    return 0


@_native
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


@_native
def _integer(value):
    if value != value:  # noqa: PLR0124  NaN
        return 0
    return np.int64(np.rint(max(np.float64(-2147483648.0), min(np.float64(2147483647.0), np.float64(value)))))


@njit(cache=True, nogil=True, error_model="numpy")
def run(
    control, loops, x, table, parameters, memory, weights, scales, where, a, sa, c, v, semaphores, scratch, ones,
    in_words, in_ends, out_words, out_ends, e0, e1, e2, r0, r1, r2, q0, q1, q2,
):  # fmt: skip
    """Execute until halt, wait or error; `control` is [pc, loop depth, retired, -] and keeps its place."""
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
                status = _vector(code, row, x, a, sa, c, v, scratch, e0, e1, e2, r0, r1, r2, q0, q1, q2)
            elif code == GEMM:
                status = _gemm(row, x, memory, weights, scales, where, a, sa, c, ones, bias)
            elif code == SYNC:
                status = _sync(row[2], row[3], semaphores)
            elif code == LOAD:
                status = _load(row, x, memory, weights, scales, where, a, sa, v)
            elif code == STORE:
                status = _store(row, x, memory, weights, where, 32 * scales.shape[1], a, sa, v)
            elif code == SEND:
                status = _net(code, row, x, a, sa, v, out_words, out_ends)
            else:
                status = _net(code, row, x, a, sa, v, in_words, in_ends)
            if status != 0:
                break
            retired += 1
        elif code == MADD:
            if row[1]:
                x[row[1]] = _wrap(x[row[2]] * row[3] + x[row[4]] + row[5])
        elif code == LOOP:
            trips = _wrap(row[1] + x[row[2]])
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
            at = _wrap(row[2] + x[row[3]])
            if at < 0 or at >= len(parameters):
                status = BAD_PARAMETER
                break
            if row[1]:
                x[row[1]] = parameters[at]
        elif code == READ:
            at = _wrap(row[2] + x[row[3]])
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
    control[0], control[1], control[2] = pc, depth, retired
    return status
