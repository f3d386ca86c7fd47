"""Kernels of GPU libraries: the seconds of a matrix product or an attention from tiles, waves, bytes in flight and launches.

A kernel path is what a library does for a number format: how fast its inner loop refills a core's scratchpad, what a tile costs before and
after its loop, whether it splits k, whether it quantises its inputs. Paths are rows of data/calibration.toml, fitted over all chips
together by bench/fit_kernels.py; a chip contributes its description and its family's `Calibration`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from fabless.chip.chip import TensorCore, runs_as
from fabless.core.errors import InputError, nearest
from fabless.core.sources import table
from fabless.mapping.gemm import Products
from fabless.number.formats import element_of, format_named

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fabless.chip.chip import Chip
    from fabless.number.formats import NumberFormat
    from fabless.sim.calibration import Calibration

    Floats = NDArray[np.float64]

#: Order of the norm that joins overlapping times: 1 adds them, infinity takes the largest. Three keeps a sum above both and near the larger.
OVERLAP_NORM = 3
#: Queries and keys of one attention tile, in FlashAttention-2 and TensorRT-LLM alike. Source: Dao, arXiv 2307.08691, section 3.3.
ATTENTION_TILE = 128
#: Exponentials a GPU core issues per cycle: one special-function lane for each eight binary32 lanes.
#: Source: NVIDIA CUDA C++ Programming Guide 12, table of arithmetic throughput (16 of 128, compute capability 8.0 to 12.0).
EXPONENTIALS_PER_LANE = 1 / 8
#: Ways in which a library may divide k, or keys, over cores.
SPLITS = (1, 2, 4, 8, 16)
KEY_SPLITS = (1, 2, 4, 8, 16, 32, 64)
#: Attention kernel sets by the bf16 multiply-accumulates a core issues per cycle, widest first.
KERNEL_SETS = ((4096, "tcgen05"), (2048, "wgmma"), (1024, "mma_1024"))
#: Shortest k, and fewest keys, that one split still gets.
SPLIT_K, SPLIT_KEYS = 256, 64


@dataclass(frozen=True, slots=True)
class GemmPath:
    """State how a library multiplies matrices in one format.

    `extra_launch_s`: further kernels of one call (quantisation of inputs); `refill_s`: seconds to stream one scratchpad of operands through a
    core; `matrix_ratio`: share of the family's sustained matrix rate; `tile_overhead_s`: prologue and epilogue of a tile;
    `quantise_bytes`: bytes moved per input value to quantise it; `splits`: whether k is divided over cores.
    """

    extra_launch_s: float
    refill_s: float
    matrix_ratio: float
    tile_overhead_s: float
    quantise_bytes: float
    splits: float


@dataclass(frozen=True, slots=True)
class PrefillPath:
    """State how a library attends over prompts: `extra_launch_s` with its rotary and cache kernels, `exponential_ratio` of the softmax that
    does not hide behind products, `matrix_ratio`, `tile_overhead_s`, and `io_passes` over queries, keys, values and outputs."""  # fmt: skip

    extra_launch_s: float
    exponential_ratio: float
    matrix_ratio: float
    tile_overhead_s: float
    io_passes: float


@dataclass(frozen=True, slots=True)
class DecodePath:
    """State how a library attends over caches: `refill_s` to stream one scratchpad of keys and values through a core, `wave_overhead_s`,
    `split_overhead_s` to merge split keys, `memory_ratio` of the family's sustained bandwidth, `cache_gain` where a cache stays in the L2."""  # fmt: skip

    extra_launch_s: float
    refill_s: float
    wave_overhead_s: float
    split_overhead_s: float
    memory_ratio: float
    cache_gain: float


P = TypeVar("P", GemmPath, PrefillPath, DecodePath)


def _path(kind: type[P], name: str) -> P:
    rows = {fact.attributes["parameter"]: fact.known for fact in table("calibration").select(path=name)}
    values: dict[str, Any] = {field.name: rows[field.name] for field in fields(kind)}
    return kind(**values)


@cache
def gemm_path(name: str) -> GemmPath:
    """Return a GEMM path by name: wide (16 bits and more), fp8, fp8_block, nvfp4."""
    return _path(GemmPath, f"gemm_{name}")


@cache
def prefill_path(kernels: str) -> PrefillPath:
    """Return how a kernel set attends over prompts."""
    return _path(PrefillPath, f"prefill_{kernels}")


@cache
def decode_path(kernels: str) -> DecodePath:
    """Return how a kernel set attends over caches."""
    return _path(DecodePath, f"decode_{kernels}")


def kernel_set(chip: Chip) -> str:
    """Return the attention kernels that libraries ship for a chip, by the matrix instruction that its core's width tells.

    mma_512 and mma_1024 (synchronous, by bf16 multiply-accumulates a cycle: Ada and RTX Blackwell, Ampere), wgmma (2,048: Hopper), tcgen05
    (4,096: B200). Source: NVIDIA PTX ISA 8.7, sections 9.7.14 to 9.7.16.
    """
    assert isinstance(chip.core.matrix, TensorCore)
    rates = dict(chip.core.matrix.macs_per_cycle)
    width = rates.get("bf16", rates.get("fp16", 0.0)) * chip.core.n_matrix
    return next((name for least, name in KERNEL_SETS if width >= least), "mma_512")


def path_name(format: NumberFormat) -> str:
    """Return the GEMM path that serves operands of a format: by the bits of its element."""
    bits = element_of(format).bits
    return "wide" if bits >= 16 else "fp8" if bits >= 6 else "nvfp4"


class CoreRates(NamedTuple):
    """What one chip gives its kernels: cores, bytes/s, a core's scratchpad, launch seconds, exponentials/s of a core, L2 bytes, peak bytes/s."""

    n_cores: int
    bandwidth_bytes_per_s: float
    scratchpad_bytes: float
    launch_s: float
    exponentials_per_s: float
    cache_bytes: float
    peak_bytes_per_s: float

    @classmethod
    def of(cls, chip: Chip, calibration: Calibration) -> CoreRates:
        """Return the sustained rates of a chip."""
        launch = calibration.launch_overhead_s if chip.launch_overhead_s is None else chip.launch_overhead_s
        return cls(
            chip.n_cores,
            chip.dram.bandwidth_bytes_per_s * calibration.memory_efficiency,
            chip.core.scratchpad.capacity_bytes,
            launch,
            max(1.0, chip.core.vector_lanes * EXPONENTIALS_PER_LANE) * chip.clock_hz,
            chip.shared.capacity_bytes if chip.shared else 0.0,
            chip.dram.bandwidth_bytes_per_s,
        )


def core_macs_per_s(chip: Chip, calibration: Calibration, format: NumberFormat) -> float:
    """Return a core's sustained multiply-accumulates per second for a format, not a number where it has none."""
    matrix = chip.core.matrix
    assert isinstance(matrix, TensorCore)
    rates = dict(matrix.macs_per_cycle)
    name = runs_as(rates, format)
    return float("nan") if name is None else rates[name] * chip.core.n_matrix * chip.clock_hz * calibration.matrix_efficiency


def _joined(a: Floats, b: Floats) -> Floats:
    return np.asarray((a**OVERLAP_NORM + b**OVERLAP_NORM) ** (1 / OVERLAP_NORM))


class KernelTimes(NamedTuple):
    """Seconds of kernels: `busy` in all without the launch, of which `compute` by itself and `memory` by itself."""

    busy_s: Floats
    compute_s: Floats
    memory_s: Floats


def gemm_times(
    p: Products, macs_per_s: Floats | float, path: GemmPath, rates: CoreRates, tiles: tuple[tuple[int, int], ...]
) -> KernelTimes:
    """Return the seconds of each product with the best tile and split of k, without launch.

    A tile's loop is bound by the matrix unit or by bytes in flight: a core refills its scratchpad in `refill_s`, so that a byte of k costs
    refill x 256 / scratchpad whatever the tile (operands of 128 + 128 rows are staged). Tiles run in waves over the cores; a split of k adds
    the traffic of partial sums and a launch.
    """
    rate = np.asarray(macs_per_s) * path.matrix_ratio
    memory = p.batch * (p.m * p.k * p.a_bytes + p.n * p.k * p.b_bytes + p.m * p.n * p.c_bytes) / rates.bandwidth_bytes_per_s
    step = path.refill_s / rates.scratchpad_bytes * 256 * np.maximum(p.a_bytes, p.b_bytes)
    best = np.full(np.broadcast_shapes(p.m.shape, rate.shape), np.inf)
    for tile_m, tile_n in tiles:
        loop = p.k * np.maximum(tile_m * tile_n / rate, step)
        grid = np.ceil(p.m / tile_m) * np.ceil(p.n / tile_n) * p.batch
        for split in SPLITS if path.splits else SPLITS[:1]:
            time = np.ceil(grid * split / rates.n_cores) * (loop / split + path.tile_overhead_s)
            if split > 1:
                sums = 4.0 * split * p.batch * p.m * p.n / rates.bandwidth_bytes_per_s
                time = np.where(p.k < split * SPLIT_K, np.inf, time + sums + rates.launch_s)
            best = np.minimum(best, time)
    return KernelTimes(_joined(best, memory), best, memory)


class Attentions(NamedTuple):
    """Hold attention spans as arrays: sequences, new and visible tokens, pairs per head, heads, widths, bytes per cached value."""

    sequences: Floats
    queries: Floats
    keys: Floats
    pairs: Floats
    n_heads: Floats
    n_kv_heads: Floats
    d_qk: Floats
    d_v: Floats
    d_store: Floats
    cache_bytes: Floats
    io_bytes: Floats


def decodes(a: Attentions) -> NDArray[np.bool_]:
    """Return which spans run the decode path: those whose grouped queries fit one tile, so that keys are what there is to divide."""
    return np.asarray((a.queries * a.n_heads / a.n_kv_heads <= ATTENTION_TILE) & (a.keys > a.queries))


def prefill_times(a: Attentions, macs_per_s: Floats | float, path: PrefillPath, rates: CoreRates) -> KernelTimes:
    """Return the seconds of attention over prompts, without launch: products and exponentials tile by tile in waves, then its operands' bytes."""
    blocks = np.ceil(a.queries / ATTENTION_TILE)
    pairs = np.maximum(a.pairs + ATTENTION_TILE / 2 * a.queries, blocks * ATTENTION_TILE**2 / 2 * (1 + 1 / blocks))
    per_pair = (a.d_qk + a.d_v) / (np.asarray(macs_per_s) * path.matrix_ratio) + path.exponential_ratio / rates.exponentials_per_s
    rows = a.sequences * a.n_heads
    longest = ATTENTION_TILE * np.ceil(a.keys / ATTENTION_TILE) * ATTENTION_TILE * per_pair
    work = rows * pairs * per_pair / rates.n_cores
    compute = np.maximum(work, longest) + np.ceil(rows * blocks / rates.n_cores) * path.tile_overhead_s
    cached = a.sequences * (a.keys - a.queries) * a.n_kv_heads * a.d_store * a.cache_bytes
    tokens = a.sequences * a.queries * (a.n_heads * (a.d_qk + a.d_v) / 2 + a.n_kv_heads * (a.d_qk + a.d_v) / 2) * a.io_bytes
    memory = (path.io_passes * tokens + cached) / rates.bandwidth_bytes_per_s
    return KernelTimes(compute + memory, compute, memory)


def decode_times(a: Attentions, macs_per_s: Floats | float, path: DecodePath, rates: CoreRates, *, resident: bool = False) -> KernelTimes:
    """Return the seconds of attention over caches, without launch: the best split of keys over cores against bytes over bandwidth.

    `resident` says that small caches are found in the L2, as in a benchmark that repeats one kernel; between a model's other ops they are not.
    """
    token_bytes = a.d_store * a.cache_bytes
    total = a.sequences * a.n_kv_heads * a.keys * token_bytes
    bandwidth = min(rates.bandwidth_bytes_per_s * path.memory_ratio, rates.peak_bytes_per_s)
    memory = total / bandwidth
    if resident:
        memory = np.where(total < 0.8 * rates.cache_bytes, memory / path.cache_gain, memory)
    grouped = np.ceil(a.queries * a.n_heads / a.n_kv_heads / 16) * 16
    per_key = np.maximum(path.refill_s * token_bytes / rates.scratchpad_bytes, grouped * (a.d_qk + a.d_v) / np.asarray(macs_per_s))
    best = np.full(np.broadcast_shapes(a.keys.shape, per_key.shape), np.inf)
    for split in KEY_SPLITS:
        waves = np.ceil(a.sequences * a.n_kv_heads * split / rates.n_cores)
        time = waves * (np.ceil(a.keys / split) * per_key + path.wave_overhead_s) + (path.split_overhead_s if split > 1 else 0.0)
        best = np.minimum(best, np.where((split > 1) & (a.keys < split * SPLIT_KEYS), np.inf, time))
    return KernelTimes(_joined(best, memory), best, memory)


#: Operand formats of the GEMM tables by their dtype column: (path, activations and weights, outputs in bytes).
_DTYPES = {
    "bfloat16": "wide", "float16": "wide", "bf16": "wide", "fp16": "wide", "fp8": "fp8", "fp8_block": "fp8_block", "int8": "fp8",
    "int8_wo": "wide", "int4_wo": "wide", "nvfp4": "nvfp4", "mxfp4": "nvfp4",
}  # fmt: skip


def predict_gemm(chip: Chip, dtype: str, m: ArrayLike, n: ArrayLike, k: ArrayLike, *, calibration: Calibration | None = None) -> Floats:
    """Return the seconds of library calls `[m, k] x [k, n]` as kernel benchmarks time them: bf16 inputs, quantised inside the call.

    `dtype`: bfloat16, fp8, fp8_block, int8, nvfp4, or weight-only int8_wo and int4_wo. Arrays broadcast.
    """
    from fabless.sim.calibration import calibration_for

    if dtype not in _DTYPES:
        raise InputError(f"unknown GEMM dtype '{dtype}'{nearest(dtype, _DTYPES)}; known: {', '.join(_DTYPES)}")
    calibration = calibration or calibration_for(chip.family)
    path = gemm_path(_DTYPES[dtype])
    weights = format_named(dtype.removesuffix("_wo") if dtype != "fp8_block" else "fp8")
    operand = format_named("bf16") if dtype.endswith("_wo") else weights
    m, n, k = (np.asarray(x, dtype=np.float64) for x in np.broadcast_arrays(m, n, k))
    one = np.ones_like(m)
    p = Products(m, n, k, one, operand.bytes_per_value * one, weights.bytes_per_value * one, 2.0 * one)
    return gemm_call_s(chip, p, operand, path, calibration)


def gemm_call_s(chip: Chip, p: Products, operand: NumberFormat, path: GemmPath, calibration: Calibration) -> Floats:
    """Return launch, quantisation and product of library calls."""
    matrix = chip.core.matrix
    assert isinstance(matrix, TensorCore)
    rates = CoreRates.of(chip, calibration)
    times = gemm_times(p, core_macs_per_s(chip, calibration, operand), path, rates, matrix.tiles)
    quantise = path.quantise_bytes * p.m * p.k / rates.bandwidth_bytes_per_s
    return np.asarray(rates.launch_s + path.extra_launch_s + quantise + times.busy_s)


def predict_attention(
    chip: Chip, batch: ArrayLike, queries: ArrayLike, context: ArrayLike, *, n_heads: ArrayLike, n_kv_heads: ArrayLike,
    d_head: int = 128, dtype: str = "bfloat16", kv_dtype: str = "bfloat16", calibration: Calibration | None = None,
) -> Floats:  # fmt: skip
    """Return the seconds of attention calls over `context` cached tokens, causal, as kernel benchmarks time them (caches may stay in the L2).

    `queries` of 1 over a context is decode; several without context are a prompt. Arrays broadcast.
    """
    from fabless.sim.calibration import calibration_for

    calibration = calibration or calibration_for(chip.family)
    operand, cached = format_named(dtype), format_named(kv_dtype)
    b, q, c, h, kv = (np.asarray(x, dtype=np.float64) for x in np.broadcast_arrays(batch, queries, context, n_heads, n_kv_heads))
    one = np.ones_like(b)
    pairs = q * c + q * (q + 1) / 2
    a = Attentions(b, q, q + c, pairs, h, kv, d_head * one, d_head * one, 2.0 * d_head * one, cached.bytes_per_value * one, 2.0 * one)
    return attention_call_s(chip, a, operand, calibration, prefill=prefill_path(kernel_set(chip)), decode=decode_path(kernel_set(chip)))


def attention_call_s(
    chip: Chip, a: Attentions, operand: NumberFormat, calibration: Calibration, *, prefill: PrefillPath, decode: DecodePath
) -> Floats:
    """Return launch and attention of library calls."""
    rates = CoreRates.of(chip, calibration)
    rate = core_macs_per_s(chip, calibration, operand)
    prompt = prefill_times(a, rate, prefill, rates).busy_s + prefill.extra_launch_s
    cache = decode_times(a, rate, decode, rates, resident=True).busy_s + decode.extra_launch_s
    return np.asarray(rates.launch_s + np.where(decodes(a), cache, prompt))


def predict_collective(chip: Chip, kind: str, payload_bytes: ArrayLike, n_chips: int, *, calibration: Calibration | None = None) -> Floats:
    """Return the seconds of collectives of `payload_bytes` per chip among `n_chips`, as collective benchmarks time them."""
    from fabless.sim.calibration import calibration_for
    from fabless.sim.collectives import collective_s

    return collective_s(kind, np.asarray(payload_bytes, dtype=np.float64), n_chips, chip.link, calibration or calibration_for(chip.family))


__all__ = ["predict_attention", "predict_collective", "predict_gemm"]
