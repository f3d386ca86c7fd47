"""The block dot product compiled: the fast twin of `number.dot.gemm`, bit for bit.

Why it is exact. Integers: int8 products summed over 32 in int32 never overflow (|isum| <= 2^19), and integer addition is associative, so that any
vector order gives the same isum. Floats: every output has its own accumulator; its multiplications and additions are separate binary32
instructions without fast-math flags, which LLVM may neither reorder nor contract, in ascending k. Flushing follows each of them. NaN codes are made
canonical by the caller at the end: a NaN never turns back into a number.

The inner step computes 16 (or 4) outputs at once as portable vector IR; on CPUs with AVX-512 VNNI the products use `vpdpbusd`, whose unsigned operand
is the weight plus 128, corrected by 128 times the exact sum of the activation block.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic

_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_TINY = 2.0**-126


@cache
def has_vnni() -> bool:
    """Tell whether the host multiplies bytes into 32-bit sums in one instruction (AVX-512 VNNI)."""
    features = binding.get_host_cpu_features()
    return bool(features.get("avx512vnni")) and bool(features.get("avx512bw"))


def _indices(values: Any) -> ir.Constant:
    values = list(values)
    return ir.Constant(ir.VectorType(_I32, len(values)), values)


def _splat(type: ir.Type, n: int, value: Any) -> ir.Constant:
    return ir.Constant(ir.VectorType(type, n), [value] * n)


def _declared(builder: ir.IRBuilder, name: str, type: ir.FunctionType) -> ir.Function:
    return builder.module.globals.get(name) or ir.Function(builder.module, type, name)


def _broadcast(builder: ir.IRBuilder, value: ir.Value, n: int) -> ir.Value:
    undefined = ir.Constant(ir.VectorType(value.type, n), ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(undefined, value, ir.Constant(_I32, 0)), undefined, _indices([0] * n))


def _loaded(builder: ir.IRBuilder, address: ir.Value, type: ir.Type, offset: int = 0) -> ir.Value:
    moved = builder.add(address, ir.Constant(address.type, offset)) if offset else address
    return builder.load(builder.inttoptr(moved, type.as_pointer()), align=1)


def _pair_sums(builder: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Add neighbours of x followed by y: half as many lanes as both have."""
    n = x.type.count
    even = builder.shuffle_vector(x, y, _indices(range(0, 2 * n, 2)))
    return builder.add(even, builder.shuffle_vector(x, y, _indices(range(1, 2 * n, 2))))


def _halved(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Add neighbours of x: half the lanes."""
    n = x.type.count
    even = builder.shuffle_vector(x, x, _indices(range(0, n, 2)))
    return builder.add(even, builder.shuffle_vector(x, x, _indices(range(1, n, 2))))


def _sums_vnni(builder: ir.IRBuilder, w: ir.Value, a: ir.Value, width: int, bias: ir.Value) -> ir.Value:
    block = _loaded(builder, a, ir.VectorType(_I8, 32))
    twice = builder.bitcast(builder.shuffle_vector(block, block, _indices([i % 32 for i in range(64)])), ir.VectorType(_I32, 16))
    lanes = ir.VectorType(_I32, 16)
    dot = _declared(builder, "llvm.x86.avx512.vpdpbusd.512", ir.FunctionType(lanes, [lanes] * 3))
    parts = []
    for pair in range(width // 2):
        raised = builder.xor(_loaded(builder, w, ir.VectorType(_I8, 64), 64 * pair), _splat(_I8, 64, -128))
        parts.append(builder.call(dot, [_splat(_I32, 16, 0), builder.bitcast(raised, lanes), twice]))
    return builder.sub(_folded(builder, parts, width), _broadcast(builder, bias, width))


def _sums_portable(builder: ir.IRBuilder, w: ir.Value, a: ir.Value, width: int, bias: ir.Value) -> ir.Value:
    del bias

    def halves(address: ir.Value, offset: int = 0) -> tuple[ir.Value, ir.Value]:
        wide = builder.sext(_loaded(builder, address, ir.VectorType(_I8, 32), offset), ir.VectorType(_I16, 32))
        even, odd = (builder.shuffle_vector(wide, wide, _indices(range(first, 32, 2))) for first in (0, 1))
        return builder.sext(even, ir.VectorType(_I32, 16)), builder.sext(odd, ir.VectorType(_I32, 16))

    a_even, a_odd = halves(a)
    parts = []
    for row in range(width):
        w_even, w_odd = halves(w, 32 * row)
        parts.append(builder.add(builder.mul(w_even, a_even), builder.mul(w_odd, a_odd)))
    return _folded(builder, parts, width)


def _folded(builder: ir.IRBuilder, parts: list[ir.Value], width: int) -> ir.Value:
    while len(parts) > 1:
        parts = [_pair_sums(builder, x, y) for x, y in zip(parts[0::2], parts[1::2], strict=True)]
    folded = parts[0]
    while folded.type.count > width:
        folded = _halved(builder, folded)
    return folded


def make_step(width: int, *, vnni: bool) -> Any:
    """Return the compiled inner step for `width` outputs (4 or 16).

    `step(w, a, sw, s, acc, bias)`: addresses of `width` weight blocks, of one activation block, of `width` float32 weight scales, the activation
    scale, the address of `width` accumulators (updated), and 128 times the sum of the activation block.
    """
    sums = _sums_vnni if vnni else _sums_portable

    @intrinsic
    def step(typing: Any, w: Any, a: Any, sw: Any, s: Any, acc: Any, bias: Any) -> Any:
        signature = types.void(types.intp, types.intp, types.intp, types.float32, types.intp, types.int32)

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            w, a, sw, s, acc, bias = arguments
            floats = ir.VectorType(_F32, width)
            fabs = _declared(builder, f"llvm.fabs.v{width}f32", ir.FunctionType(floats, [floats]))

            def flushed(x: ir.Value) -> ir.Value:
                small = builder.fcmp_ordered("<", builder.call(fabs, [x]), _splat(_F32, width, _TINY))
                return builder.select(small, _splat(_F32, width, 0.0), x)

            isum = builder.sitofp(sums(builder, w, a, width, bias), floats)
            scale = flushed(builder.fmul(_loaded(builder, sw, floats), _broadcast(builder, s, width)))
            total = builder.fadd(_loaded(builder, acc, floats), flushed(builder.fmul(isum, scale)))
            builder.store(flushed(total), builder.inttoptr(acc, floats.as_pointer()), align=1)
            return context.get_dummy_value()

        return signature, generate

    return step


def make_accumulate(*, vnni: bool) -> Any:
    """Return `accumulate(w, sw, a, s, acc, n)`: add one block of k to n outputs (a multiple of 4), all by address but the scale s and n."""
    wide, narrow = make_step(16, vnni=vnni), make_step(4, vnni=vnni)

    @njit(nogil=True)
    def accumulate(w: int, sw: int, a: int, s: float, bias: int, acc: int, n: int) -> None:
        o = 0
        while o + 16 <= n:
            wide(w + 32 * o, a, sw + 4 * o, s, acc + 4 * o, bias)
            o += 16
        while o < n:
            narrow(w + 32 * o, a, sw + 4 * o, s, acc + 4 * o, bias)
            o += 4

    return accumulate


accumulate = make_accumulate(vnni=has_vnni())


@njit(nogil=True)
def accumulate_blocks(w: Any, sw: Any, a: Any, sa: Any, acc: Any, accumulate: Any) -> None:
    """Add all blocks of k, ascending, to `acc [M, N]`; `w [K, N, 32]`, `sw [K, N]`, `a [M, K, 32]`, `sa [M, K]`, all contiguous, N % 4 == 0."""
    n = acc.shape[1]
    for k in range(w.shape[0]):
        for i in range(acc.shape[0]):
            total = np.int32(0)
            for j in range(32):
                total += np.int32(a[i, k, j])
            accumulate(
                w.ctypes.data + k * n * 32, sw.ctypes.data + k * n * 4, a.ctypes.data + (i * a.shape[1] + k) * 32, sa[i, k],
                np.int32(128) * total, acc.ctypes.data + i * n * 4, n,
            )  # fmt: skip
