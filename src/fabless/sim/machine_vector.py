"""The vector unit compiled (numba); the readable meaning is `stream` and its users in `sim.machine`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN201, ANN202, PLR0912, PLR0915  numba kernels: types are inferred, each mirrors one of sim.machine
from __future__ import annotations

import numpy as np

from fabless.number.quantise import C127_BITS
from fabless.program.isa import BY_MNEMONIC
from fabless.sim.machine_words import (
    BAD_ACCUMULATORS,
    BAD_ACTIVATIONS,
    BAD_PAIR,
    BAD_VECTOR,
    INF,
    LOWEST,
    NAN,
    ZERO,
    canonical,
    column,
    kept,
    native,
    wrap,
)

VEC, QUANT, MASK, ROTATE = (BY_MNEMONIC[m].code for m in ("vec", "quant", "mask", "rotate"))
_C127 = np.uint32(C127_BITS).view(np.float32)
_ROWS, _LEN, _SPACE, _DST, _DST_R, _DST_S, _A0, _A0_R, _A_S = (
    column("vec", f) for f in ("rows", "len", "a_space", "dst", "dst_reg", "dst_stride", "a", "a_reg", "a_stride")
)
_PRE, _FN, _B0, _B0_R, _B_S, _B_K, _RED = (column("vec", f) for f in ("pre", "fn", "b", "b_reg", "b_stride", "b_kind", "reduce"))
_R_B, _R_BR, _R_BS = (column("rotate", f) for f in ("b", "b_reg", "b_stride"))
_M_START, _M_LOW, _M_HIGH, _M_STEP, _M_FILL = (column("mask", f) for f in ("start_reg", "low_reg", "high_reg", "step", "fill"))


@native
def _quadratic(c0, c1, c2, row, d, bits):
    r = np.uint64(row)  # unsigned: no code for negative indices, so that the loops vectorise
    return c0[r] + ((c1[r] + (c2[r] * d >> bits)) * d >> bits)


@native
def _exp2(t, out, n, c0, c1, c2):
    for e in range(n):
        x = t[e]
        inside = ZERO if x != x else min(max(x, np.float32(-127)), np.float32(128))  # noqa: PLR0124  NaN
        fixed = np.int64(np.floor(np.float64(inside) * 67108864.0))
        f = fixed & 0x3FFFFFF
        y = _quadratic(c0, c1, c2, f >> 19, f & 0x7FFFF, 19)
        code = ((fixed >> 26) + 126 << 23) + (y + 16 >> 5)
        code = np.int64(INF) if x >= np.float32(128) else code
        code = np.int64(0) if x < np.float32(-126) else code
        out[e] = np.int32(np.int64(NAN) if x != x else code)  # noqa: PLR0124  NaN


@native
def _rcp(codes, out, n, c0, c1, c2):
    for e in range(n):
        code = np.int64(codes[e])
        exponent, fraction = code >> 23 & 255, code & 0x7FFFFF
        y = _quadratic(c0, c1, c2, fraction >> 16, fraction & 0xFFFF, 16)
        value = (252 - exponent << 23) + (y + 8 >> 4)
        value = value | code & 0x80000000 if value >= 0x800000 else np.int64(0)
        value = np.int64(INF) if exponent == 0 else value
        value = (np.int64(NAN) if fraction else np.int64(0)) if exponent == 255 else value
        out[e] = np.int32(value)


@native
def _rsqrt(codes, out, n, c0, c1, c2):
    for e in range(n):
        code = np.int64(codes[e])
        exponent, fraction = code >> 23 & 255, code & 0x7FFFFF
        odd = exponent + 1 & 1
        y = _quadratic(c0, c1, c2, odd << 7 | fraction >> 16, fraction & 0xFFFF, 16)
        value = (125 - (exponent - 127 - odd >> 1) << 23) + (y + 8 >> 4)
        value = np.int64(0) if exponent == 255 else value
        value = np.int64(NAN) if code < 0 or (exponent == 255 and fraction) else value
        out[e] = np.int32(np.int64(INF) if exponent == 0 else value)


@native
def _function(fn, t, codes, spare, n, e0, e1, e2, r0, r1, r2, q0, q1, q2):
    """Apply a function in place by way of `spare`: apart, the compiler sees that reads and writes do not meet."""
    if fn == 1:
        _exp2(t, spare, n, e0, e1, e2)
    elif fn == 2:
        _rcp(codes, spare, n, r0, r1, r2)
    else:
        _rsqrt(codes, spare, n, q0, q1, q2)
    for e in range(n):
        codes[e] = spare[e]


@native
def _pre(pre, t, b, scalar, step, n):
    """Apply the two-operand step in place; b advances by `step` (0: one scalar)."""
    if pre == 1:
        for e in range(n):
            t[e] = kept(t[e] + (b[e] if step else scalar))
    elif pre == 2:
        for e in range(n):
            t[e] = kept(t[e] - (b[e] if step else scalar))
    elif pre == 3:
        for e in range(n):
            t[e] = kept(t[e] * (b[e] if step else scalar))
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
                t[e] = LOWEST


@native
def _tree_sum(t, n):
    padded = (n + 127) // 128 * 128
    t[n:padded] = 0
    half = padded
    for _ in range(5):
        half //= 2
        for e in range(half):
            t[e] = kept(t[2 * e] + t[2 * e + 1])
    s0 = s1 = s2 = s3 = ZERO
    for j in range(0, half, 4):
        s0, s1, s2, s3 = kept(s0 + t[j]), kept(s1 + t[j + 1]), kept(s2 + t[j + 2]), kept(s3 + t[j + 3])
    return kept(kept(s0 + s1) + kept(s2 + s3))


@native
def _best(codes, n):
    """Return the index of the first greatest number: codes are compared as integers that rise with the number, NaN above infinity."""
    canonical(codes, 0, n)
    best = np.int32(-2147483648)
    for e in range(n):
        code = codes[e]
        best = max(best, code ^ (code >> np.int32(31) & np.int32(0x7FFFFFFF)))
    for e in range(n):
        code = codes[e]
        if code ^ (code >> np.int32(31) & np.int32(0x7FFFFFFF)) == best:
            return e
    return 0


@native
def _quantise_row(t, codes, n, scope, q, sa, first, r0):
    blocks = (n + 31) // 32
    t[n : blocks * 32] = 0
    row_max = ZERO
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
            amax = ZERO
            for e in range(32 * block, 32 * block + 32):
                p = abs(t[e])
                if p > amax or p != p:  # noqa: PLR0124  NaN
                    amax = p
                    if p != p:  # noqa: PLR0124  NaN
                        break
        word = first + block
        sa[word] = kept(amax * _C127)
        code = np.int64(scale_codes[word]) & 0x7FFFFFFF
        if code > 0x7F800000:
            code = np.int64(NAN)
            inverse = np.int64(NAN)
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
            p = kept(t[32 * block + j] * factor)
            rounded = np.rint(p)
            q[word, j] = np.int8(0) if p != p else np.int8(max(np.float32(-127), min(np.float32(127), rounded)))  # noqa: PLR0124  NaN


@native
def vector(code, row, x, a_words, sa, c, v, scratch, e0, e1, e2, r0, r1, r2, q0, q1, q2):
    """Execute vec, quant, mask or rotate."""
    rows, n = row[_ROWS], row[_LEN]
    dst, a0 = wrap(row[_DST] + x[row[_DST_R]]), wrap(row[_A0] + x[row[_A0_R]])
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
    scalar = ZERO
    if code == ROTATE:
        b0, b_stride, kind = wrap(row[_R_B] + x[row[_R_BR]]), row[_R_BS], np.int64(0)
        if n % 2:
            return BAD_PAIR
    elif code in (VEC, QUANT):
        pre, fn, kind, b0, b_stride = row[_PRE], row[_FN], row[_B_K], wrap(row[_B0] + x[row[_B0_R]]), row[_B_S]
    if code == ROTATE or pre:
        if kind == 0 and (b0 < 0 or b0 + (rows - 1) * b_stride * 32 + n > len(v)):
            return BAD_VECTOR
        if kind == 1 and (b0 < 0 or b0 + (rows - 1) * b_stride + 1 > len(v)):
            return BAD_VECTOR
        if kind == 2:
            b.view(np.int32)[0] = np.int32(np.uint32(x[row[_B0_R]] & 0xFFFFFFFF))
            canonical(b.view(np.int32), 0, 1)
            scalar = b[0]
    for i in range(rows):
        first = a0 + i * a_stride
        part = source[first : first + n]
        for e in range(n):
            t[e] = part[e]
        if code == MASK:
            shift = i * row[_M_STEP]
            low, high, start = x[row[_M_LOW]] + shift, x[row[_M_HIGH]] + shift, x[row[_M_START]]
            fill = LOWEST if row[_M_FILL] else ZERO
            first_valid = min(max(low - start, 0), n)
            end_valid = max(min(high - start, n), first_valid)
            for e in range(first_valid):
                t[e] = fill
            for e in range(end_valid, n):
                t[e] = fill
        elif code == ROTATE:
            base = b0 + i * b_stride * 32
            for e in range(0, n, 2):
                p, q, cosine, sine = t[e], t[e + 1], v[base + e], v[base + e + 1]
                t[e] = kept(kept(p * cosine) - kept(q * sine))
                t[e + 1] = kept(kept(q * cosine) + kept(p * sine))
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
                _function(fn, t, t_codes, b.view(np.int32), n, e0, e1, e2, r0, r1, r2, q0, q1, q2)
        if code == QUANT:
            _quantise_row(t, t_codes, n, row[_RED], a_words, sa, dst + i * dst_stride, r0)
        elif reduce:
            at = dst + i * dst_stride
            if reduce == 1:
                v[at] = _tree_sum(t, n)
            else:
                index = _best(t_codes, n)
                v[at] = np.float32(index) if reduce == 3 else t[index]
            canonical(v_codes, at, 1)
        else:
            at = dst + i * dst_stride * 32
            part = v[at : at + n]
            for e in range(n):
                part[e] = t[e]
            canonical(v_codes, at, n)
    return 0
