"""The block dot product compiled: the fast twin of `number.dot.gemm`, bit for bit.

Why it is exact. Integers: int8 products summed over 32 in int32 never overflow (|isum| <= 2^19), and integer addition is associative, so that any
vector order gives the same isum. Floats: every output has its own accumulator; its multiplications and additions are separate binary32
instructions without fast-math flags, which LLVM may neither reorder nor contract, in ascending k. Flushing follows each of them. NaN codes are made
canonical by the caller at the end: a NaN never turns back into a number.

The inner step computes 8 (or 4) outputs at once as portable vector IR; on CPUs with AVX-512 VNNI the products use `vpdpbusd`, whose unsigned operand
is the weight plus 128, corrected by 128 times the exact sum of the activation block: 32 products of at most 255 * 128 stay inside int32, so the
correction is exact too. From `_ROWS_TRANSPOSED` rows on, the weights of 16 outputs are transposed once; then every lane sums one output's products
and nothing is folded across lanes: the same integers in another order.

Weights are read once a launch, hence from memory: each step asks for the bytes `_AHEAD_BYTES` behind its own, where a program's next piece lies.
A prefetch changes no state and cannot fault.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Iterable

_I8, _I16, _I32, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_TINY = 2.0**-126
#: How far ahead of the products weights are fetched. Measured on Sapphire Rapids: 2 to 3 kB do well wherever blocks begin inside their lines;
#: 8 kB are faster for half of the places and slower for the others.
_AHEAD_BYTES = 2560
#: Rows from which transposing 16 weight blocks costs less than folding lanes row by row: 24 shuffles once against 14 a row.
_ROWS_TRANSPOSED = 3


@cache
def has_vnni() -> bool:
    """Tell whether the host multiplies bytes into 32-bit sums in one instruction (AVX-512 VNNI)."""
    features = binding.get_host_cpu_features()
    return all(features.get(name) for name in ("avx512vnni", "avx512bw", "avx512vl"))


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


def _raised(builder: ir.IRBuilder, w: ir.Value, n: int, words: int) -> list[ir.Value]:
    """Load n vectors of weights, each plus 128: unsigned bytes, as `words` words of four."""
    loaded = [_loaded(builder, w, ir.VectorType(_I8, 4 * words), 4 * words * i) for i in range(n)]
    return [builder.bitcast(builder.xor(x, _splat(_I8, 4 * words, -128)), ir.VectorType(_I32, words)) for x in loaded]


def _sums_vnni(builder: ir.IRBuilder, w: ir.Value, a: ir.Value, width: int, bias: ir.Value) -> ir.Value:
    lanes = ir.VectorType(_I32, 8)
    dot = _declared(builder, "llvm.x86.avx512.vpdpbusd.256", ir.FunctionType(lanes, [lanes] * 3))
    block = _loaded(builder, a, lanes)
    parts = [builder.call(dot, [_splat(_I32, 8, 0), x, block]) for x in _raised(builder, w, width, 8)]
    return builder.sub(_folded(builder, parts), _broadcast(builder, bias, width))


def _sums_transposed(builder: ir.IRBuilder, words: list[ir.Value], a: ir.Value, bias: ir.Value) -> ir.Value:
    """Return 16 sums from `words[j]`, word j (four weights plus 128) of 16 outputs."""
    lanes = ir.VectorType(_I32, 16)
    dot = _declared(builder, "llvm.x86.avx512.vpdpbusd.512", ir.FunctionType(lanes, [lanes] * 3))
    total = builder.neg(_broadcast(builder, bias, 16))
    for j, word in enumerate(words):
        total = builder.call(dot, [total, word, _broadcast(builder, _loaded(builder, a, _I32, 4 * j), 16)])
    return total


def _transposed(builder: ir.IRBuilder, vectors: list[ir.Value]) -> list[ir.Value]:
    """Turn 8 vectors, each two blocks of 8 words, into 8 vectors whose j-th holds word j of all 16 blocks, by 24 shuffles."""
    groups = [vectors]
    for blocks, words in ((2, 8), (4, 4), (8, 2)):  # what a vector holds before a pass; afterwards twice the blocks, half of the words

        def place(block: int, word: int, blocks: int = blocks) -> int:
            return block * 8 + word if blocks == 2 else word * blocks + block

        def merged(x: ir.Value, y: ir.Value, first: int, blocks: int = blocks, words: int = words) -> ir.Value:
            lanes = [
                place(b, j, blocks) if b < blocks else 16 + place(b - blocks, j, blocks)
                for j in range(first, first + words // 2)
                for b in range(2 * blocks)
            ]
            return builder.shuffle_vector(x, y, _indices(lanes))

        groups = [[merged(x, y, first) for x, y in zip(g[0::2], g[1::2], strict=True)] for g in groups for first in (0, words // 2)]
    return [group[0] for group in groups]


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
        pairs = builder.add(builder.mul(w_even, a_even), builder.mul(w_odd, a_odd))
        parts.append(_both(builder, pairs, pairs, range(8), range(8, 16)))
    return _folded(builder, parts)


def _both(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, first: Iterable[int], second: Iterable[int]) -> ir.Value:
    """Add two choices of lanes from x followed by y."""
    return builder.add(builder.shuffle_vector(x, y, _indices(first)), builder.shuffle_vector(x, y, _indices(second)))


def _folded(builder: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Sum the 8 lanes of each of 8 (or 4) vectors: lane i of the result is the sum of vector i.

    Neighbours are added inside the halves of 128 bits, where shuffles are cheapest; the halves at the end.
    """
    for _ in range(2):
        parts = [
            _both(builder, x, y, (0, 2, 8, 10, 4, 6, 12, 14), (1, 3, 9, 11, 5, 7, 13, 15))
            for x, y in zip(parts[0::2], parts[1::2], strict=True)
        ]
    if len(parts) == 1:
        return _both(builder, parts[0], parts[0], range(4), range(4, 8))
    return _both(builder, parts[0], parts[1], (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))


def _prefetch(builder: ir.IRBuilder, address: ir.Value, n_bytes: int) -> None:
    pointer = _I8.as_pointer()
    fetch = _declared(builder, "llvm.prefetch", ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32]))
    for offset in range(0, n_bytes, 64):
        ahead = builder.inttoptr(builder.add(address, ir.Constant(address.type, _AHEAD_BYTES + offset)), pointer)
        to_read, outer_levels, data = (ir.Constant(_I32, x) for x in (0, 1, 1))
        builder.call(fetch, [ahead, to_read, outer_levels, data])


def _add_block(builder: ir.IRBuilder, isum: ir.Value, weight_scale: ir.Value, scale: ir.Value, acc: ir.Value) -> None:
    """Emit acc = fp32(acc + fp32(isum * fp32(weight scale * scale))) for the accumulators at an address, each result flushed."""
    width = isum.type.count
    floats = ir.VectorType(_F32, width)
    fabs = _declared(builder, f"llvm.fabs.v{width}f32", ir.FunctionType(floats, [floats]))

    def flushed(x: ir.Value) -> ir.Value:
        small = builder.fcmp_ordered("<", builder.call(fabs, [x]), _splat(_F32, width, _TINY))
        return builder.select(small, _splat(_F32, width, 0.0), x)

    both = flushed(builder.fmul(weight_scale, _broadcast(builder, scale, width)))
    total = builder.fadd(_loaded(builder, acc, floats), flushed(builder.fmul(builder.sitofp(isum, floats), both)))
    builder.store(flushed(total), builder.inttoptr(acc, floats.as_pointer()), align=1)


def _moved(builder: ir.IRBuilder, first: ir.Value, index: ir.Value, step: ir.Value | int) -> ir.Value:
    return builder.add(first, builder.mul(index, ir.Constant(index.type, step) if isinstance(step, int) else step))


def make_step(width: int, *, vnni: bool) -> Any:
    """Return the compiled inner step for one row of `width` outputs (4 or 8).

    `step(w, sw, a, s, bias, acc)`, all addresses: `width` weight blocks and their float32 scales, one activation block and its float32 scale,
    128 times the sum of that block as int32, `width` accumulators (updated).
    """
    sums = _sums_vnni if vnni else _sums_portable

    @intrinsic
    def step(typing: Any, w: Any, sw: Any, a: Any, s: Any, bias: Any, acc: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            w, sw, a, s, bias, acc = arguments
            _prefetch(builder, w, 32 * width)
            isum = sums(builder, w, a, width, _loaded(builder, bias, _I32))
            _add_block(builder, isum, _loaded(builder, sw, ir.VectorType(_F32, width)), _loaded(builder, s, _F32), acc)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), generate

    return step


def make_rows_step() -> Any:
    """Return the compiled inner step for `m` rows of 16 outputs on VNNI.

    `step(w, sw, a, a_step, s, s_step, bias, acc, acc_step, m)`: as `make_step`; each `_step` is bytes from row to row (`bias`: 4).
    """

    @intrinsic
    def step(typing: Any, w: Any, sw: Any, a: Any, a_step: Any, s: Any, s_step: Any, bias: Any, acc: Any, acc_step: Any, m: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            w, sw, a, a_step, s, s_step, bias, acc, acc_step, m = arguments
            _prefetch(builder, w, 512)
            words = _transposed(builder, _raised(builder, w, 8, 16))
            weight_scale = _loaded(builder, sw, ir.VectorType(_F32, 16))
            with cgutils.for_range(builder, m) as loop:
                row_bias = _loaded(builder, _moved(builder, bias, loop.index, 4), _I32)
                isum = _sums_transposed(builder, words, _moved(builder, a, loop.index, a_step), row_bias)
                scale = _loaded(builder, _moved(builder, s, loop.index, s_step), _F32)
                _add_block(builder, isum, weight_scale, scale, _moved(builder, acc, loop.index, acc_step))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10), generate

    return step


@intrinsic
def fill_bias(typing: Any, a: Any, bias: Any) -> Any:
    """Write 128 times the sum of the 32 int8 at address `a`, exact, to the int32 at address `bias`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        a, bias = arguments
        wide = ir.VectorType(_I32, 32)
        total = _declared(builder, "llvm.vector.reduce.add.v32i32", ir.FunctionType(_I32, [wide]))
        block = builder.sext(_loaded(builder, a, ir.VectorType(_I8, 32)), wide)
        raised = builder.mul(builder.call(total, [block]), ir.Constant(_I32, 128))
        builder.store(raised, builder.inttoptr(bias, _I32.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@cache
def has_f16c() -> bool:
    """Tell whether the host widens binary16 in one instruction."""
    return bool(binding.get_host_cpu_features().get("f16c"))


def _widened(builder: ir.IRBuilder, source: ir.Value, target: ir.Value) -> None:
    floats, words = ir.VectorType(_F32, 16), ir.VectorType(_I32, 16)
    x = builder.fpext(_loaded(builder, source, ir.VectorType(ir.HalfType(), 16)), floats)
    codes = builder.select(builder.fcmp_ordered("==", x, _splat(_F32, 16, 0.0)), _splat(_I32, 16, 0), builder.bitcast(x, words))
    codes = builder.select(builder.fcmp_unordered("uno", x, x), _splat(_I32, 16, 0x7FC00000), codes)
    builder.store(codes, builder.inttoptr(target, words.as_pointer()), align=1)


def make_widen() -> Any:
    """Return `widen(source, target)`: 16 binary16 at an address become canonical binary32 at another.

    Exact: every binary16 is a normal binary32 or a zero; -0 becomes +0, every NaN the one NaN.
    """

    @intrinsic
    def widen(typing: Any, source: Any, target: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            _widened(builder, *arguments)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return widen


def make_accumulate(*, vnni: bool) -> Any:
    """Return `accumulate(w, sw, a, a_step, s, s_step, bias, acc, acc_step, m, n)`, which adds one block of k to m rows of n outputs.

    `w`, `sw`, `a`, `s`, `bias`, `acc`: addresses of n weight blocks and their float32 scales, of the first row's activation block, its float32
    scale, scratch of m int32, and of the first row's accumulators; each `_step` is bytes from row to row. n is a multiple of 4.
    """
    eight, four = make_step(8, vnni=vnni), make_step(4, vnni=vnni)

    @njit(nogil=True)
    def row_by_row(w: int, sw: int, a: int, a_step: int, s: int, s_step: int, bias: int, acc: int, acc_step: int, m: int, n: int) -> None:
        o = 0
        while o < n:
            width = 8 if o + 8 <= n else 4
            for i in range(m):
                if width == 8:
                    eight(w + 32 * o, sw + 4 * o, a + i * a_step, s + i * s_step, bias + 4 * i, acc + i * acc_step + 4 * o)
                else:
                    four(w + 32 * o, sw + 4 * o, a + i * a_step, s + i * s_step, bias + 4 * i, acc + i * acc_step + 4 * o)
            o += width

    if not vnni:
        return row_by_row
    sixteen = make_rows_step()

    @njit(nogil=True)
    def accumulate(w: int, sw: int, a: int, a_step: int, s: int, s_step: int, bias: int, acc: int, acc_step: int, m: int, n: int) -> None:
        for i in range(m):
            fill_bias(a + i * a_step, bias + 4 * i)  # type: ignore[call-arg]  # numba passes the typing context
        o = 0
        if m == 1:  # two steps a turn: half of the loop's own work while the memory is waited for
            while o + 16 <= n:
                eight(w + 32 * o, sw + 4 * o, a, s, bias, acc + 4 * o)
                eight(w + 32 * o + 256, sw + 4 * o + 32, a, s, bias, acc + 4 * o + 32)
                o += 16
        elif m >= _ROWS_TRANSPOSED:
            while o + 16 <= n:
                sixteen(w + 32 * o, sw + 4 * o, a, a_step, s, s_step, bias, acc + 4 * o, acc_step, m)
                o += 16
        row_by_row(w + 32 * o, sw + 4 * o, a, a_step, s, s_step, bias, acc + 4 * o, acc_step, m, n - o)

    return accumulate


accumulate = make_accumulate(vnni=has_vnni())


@njit(nogil=True)
def place(array: Any) -> int:
    """Return the address of an array as a signed integer: unsigned plus signed would become a float in numba."""
    return np.intp(array.ctypes.data)  # type: ignore[return-value]  # an integer in compiled code


@njit(nogil=True)
def accumulate_blocks(w: Any, sw: Any, a: Any, sa: Any, acc: Any, accumulate: Any) -> None:
    """Add all blocks of k, ascending, to `acc [M, N]`; `w [K, N, 32]`, `sw [K, N]`, `a [M, K, 32]`, `sa [M, K]`, all contiguous, N % 4 == 0."""
    m, n = acc.shape
    blocks = w.shape[0]
    bias = np.empty(m, np.int32)
    for k in range(blocks):
        accumulate(
            place(w) + k * n * 32, place(sw) + k * n * 4, place(a) + k * 32, blocks * 32, place(sa) + k * 4, blocks * 4, place(bias),
            place(acc), n * 4, m, n,
        )  # fmt: skip
