"""What the timing contract of our own tiles adds to the roofline: still a bound, but one that a compiled program comes close to.

A roofline counts work over rates. On a tile of dot-product rows more is known beforehand, all of it from the ISA's timing column: vector instructions make
whole passes over their rows, the loader moves a weight word's elements and scales in whole cycles and leaves some between pieces (memory's latency it can
hide, because it asks ahead), scores are computed in spans of 128 keys, and every instruction fills its pipeline. And some work has nothing to run beside: a
norm needs the whole residual stream and every product of the layer needs the norm, so that norms, the rotation of queries and attention add up, while
activations and residual sums overlap the columns of their products. The estimate and the compiler stand on the same contract, not on each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fabless.chip.chip import Mxu
from fabless.model.graph import Attention, Gemm, Vector
from fabless.number.formats import Scaled
from fabless.program.isa import LATENCY
from fabless.program.tile import BLOCK, SPAN_KEYS, memory_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fabless.chip.chip import Chip
    from fabless.number.formats import NumberFormat
    from fabless.sim.columns import Columns

    Floats = NDArray[np.float64]

#: Cycles that a lane works on an element, by the function of a vector op. Norm: square and sum, multiply, quantise. Activation: exp2, reciprocal (a
#: function unit serves FUNCTION_CYCLES lanes), multiply, multiply and quantise. Rotary: two products, quantise. The rest: one pass.
PASSES = {"norm": 3.0, "activation": 2.0 + 2.0 * LATENCY["FUNCTION_CYCLES"], "rotary": 3.0}
#: Passes over a score: mask, maximum, power of two, sum, quantise; two of them drain the reduction tree once a row and span.
SCORE_PASSES = 4.0 + LATENCY["FUNCTION_CYCLES"]
_VEC, _REDUCE, _FUNCTION, _QUANT = (LATENCY[name] for name in ("VEC_FILL", "REDUCE_FILL", "FUNCTION_FILL", "QUANT_FILL"))
#: What fills pipelines whatever the rows, where nothing runs beside: a norm's five instructions; the last column's activation and residual sum; a rotation
#: and its quantisation. Attention: seven instructions a span; per sequence two that start, two that end, and the quantisation of the mixed values.
_FILL = {
    "norm": 4 * _VEC + _REDUCE + _FUNCTION + _QUANT,
    "activation": 3 * _VEC + 2 * _FUNCTION + _QUANT,
    "residual": _VEC,
    "rotary": _VEC + _QUANT,
}
_SPAN_FILL = 5 * _VEC + 2 * _REDUCE + _FUNCTION + _VEC + _QUANT
_SEQUENCE_FILL = 4 * _VEC + _FUNCTION
#: The share of a vector op that runs beside nothing. A norm of many rows is taken in halves, of which the mesh starts with one; of the rotation it is
#: what a set of queries takes at least.
_SERIAL = {"norm": 0.5, "rotary": 0.0}
_ROWS_IN_HALVES = 16
#: A lane operation count from which an activation has a sigmoid in it.
_SIGMOID_OPS = 5
#: What a load costs that memory does not wait for: two and their sync leave a cycle between each, and the sync waits until the last word is written.
_LOAD_CYCLES = LATENCY["LOAD_FILL"] / 2
#: Pieces of weights that the weight buffer holds: one multiplies, one loads.
_PIECES = 2
#: Bytes of a weight word a row in the buffer: 32 elements, 16-bit scale and its exponent (program.tile).
WORD_BYTES = 36


class TileTimes(NamedTuple):
    """Hold seconds `[n_ops, n_chips]` of one repeat of each op, and per chip what the weight buffer lets memory run ahead.

    `serial_s`: what of an op has nothing to run beside. Of an op that is wholly serial, matrix and vector time are not counted again.
    """

    compute_s: Floats
    vector_s: Floats
    memory_s: Floats
    serial_s: Floats
    ahead_s: Floats


def has_tiles(chip: Chip) -> bool:
    """Tell whether a chip is made of our own tiles."""
    return isinstance(chip.core.matrix, Mxu) and chip.core.matrix.lanes == BLOCK and chip.dram.standard != "none"


def tile_times(cols: Columns, chips: Sequence[Chip], compute_s: Floats, dram_bytes: Floats, bandwidth: Floats) -> TileTimes:
    """Return the times of ops on chips of tiles, from the roofline's matrix seconds and DRAM bytes `[n_ops, n_chips]` and bandwidths `[n_chips]`."""
    clock, cores, rows, lanes, words, width = (np.array(x, dtype=np.float64) for x in zip(*(_sizes(c) for c in chips), strict=True))
    units = cores * np.array([c.core.n_matrix for c in chips])
    shape = compute_s.shape
    vector, serial = np.zeros(shape), np.zeros(shape)
    compute, port, loads = compute_s.copy(), dram_bytes / (width * cores), np.zeros(shape)
    ahead = words * np.maximum(1.0, np.ceil(BLOCK * rows / width))  # cycles of a full weight buffer, int8
    many = any(isinstance(op, Gemm) and op.m >= _ROWS_IN_HALVES for op in cols.ops)
    for i, op in enumerate(cols.ops):
        if isinstance(op, Vector):
            passes = PASSES.get(op.function, 1.0)
            if op.function == "activation" and op.ops_per_element < _SIGMOID_OPS:
                passes = 1.0
            vector[i] = op.elements * passes / (lanes * cores)
            share = 1.0 if op.function == "norm" and not many else _SERIAL.get(op.function, 0.0)
            serial[i] = vector[i] * share + _FILL.get(op.function, 0.0)
            loads[i] = 1.0 if op.function == "norm" else 0.0
        elif isinstance(op, Attention):
            products, ends, vector[i], loads[i] = _attention(op, rows, lanes * cores, units, cores)
            compute[i] = np.maximum(compute[i], products / clock)
            serial[i] = np.maximum(compute[i] * clock, vector[i] + ends)
        elif isinstance(op, Gemm):
            n_words = np.ceil(op.n / rows) * np.ceil(op.k / BLOCK)
            compute[i] = (
                np.maximum(compute[i], op.batch * np.ceil(op.k / BLOCK) * LATENCY["ACC"] / (clock * units)) + LATENCY["GEMM_FILL"] / clock
            )
            if op.stored:
                steps = _word_cycles(op.weights, rows, width)
                port[i] = np.maximum(port[i], op.batch * n_words * steps / cores)
                loads[i] = 2.0 * np.ceil(op.batch * n_words * _PIECES / (words * cores))
    memory = np.maximum(dram_bytes / bandwidth, port / clock) + loads * _LOAD_CYCLES / clock
    return TileTimes(compute, vector / clock, memory, serial / clock, ahead / clock)


def _sizes(chip: Chip) -> tuple[float, ...]:
    """Return clock, cores, rows, vector lanes, weight words and port bytes a cycle of a chip's tiles: an upper bound of `Tile.of`'s words."""
    matrix = chip.core.matrix
    assert isinstance(matrix, Mxu)
    share = chip.dram.bandwidth_bytes_per_s / chip.clock_hz / chip.n_cores
    words = max(1.0, chip.core.scratchpad.capacity_bytes / 2 / (matrix.rows * WORD_BYTES))
    return (
        chip.clock_hz,
        chip.n_cores,
        matrix.rows,
        min(chip.core.vector_lanes, matrix.rows),
        words,
        memory_width(share),
    )


def _word_cycles(weights: NumberFormat, rows: Floats, width: Floats) -> Floats:
    """Return the loader's cycles for one weight word: elements of R blocks, then R scales, each in whole cycles."""
    element = weights.element if isinstance(weights, Scaled) else weights
    cycles = np.maximum(1.0, np.ceil(BLOCK * rows * element.bits / 8 / width))
    if isinstance(weights, Scaled):
        cycles = cycles + np.maximum(1.0, rows * weights.scale.bits / 8 / width)
    return np.asarray(cycles)


def _attention(op: Attention, rows: Floats, lanes: Floats, units: Floats, cores: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return cycles of the matrix unit, those of them that overlap no vector work, cycles of the vector unit, and loads a core.

    Spans of keys are whole, hidden by the mask or not. The vector unit has nothing to do before the first head's first scores and behind the last
    span's mixed values.
    """
    products, vector, loads = np.zeros_like(rows), np.zeros_like(rows), np.zeros_like(rows)
    n_spans = 0.0
    for span in op.spans:
        spans = np.ceil(span.keys / SPAN_KEYS)
        queries = span.count * op.n_heads * span.queries
        products += queries * spans * np.ceil(SPAN_KEYS / rows) * np.ceil(op.d_qk / BLOCK) / units
        products += queries * np.ceil(op.d_v / rows) * spans * (SPAN_KEYS // BLOCK) / units
        vector += queries * (spans * SPAN_KEYS * SCORE_PASSES + op.d_v) / lanes + queries * spans * 2 * LATENCY["REDUCE_DRAIN"] / cores
        vector += np.ceil(span.count / cores) * (spans * _SPAN_FILL + _SEQUENCE_FILL)
        loads += 4.0 * np.ceil(span.count * spans / cores)
        n_spans += span.count * spans
    return products, products / max(1.0, op.n_kv_heads * n_spans), vector, loads
