"""The matrix unit: addresses and order of the steps of `gemm`, and R rows that follow them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from amaranth.hdl import Cat, Elaboratable, Module, Mux, Signal

from fabless.program.isa import LATENCY, WORD_BITS, Queue
from fabless.rtl.clock import gated
from fabless.rtl.decoder import bits, value
from fabless.rtl.floating import state
from fabless.rtl.load import weight_period_bytes
from fabless.rtl.row import WEIGHT_SCALE_BITS, Row
from fabless.rtl.sequencer import ADDRESS_BITS, extra_bits, extra_layout

if TYPE_CHECKING:
    from fabless.rtl.block import Shared


class Mxu(Elaboratable):
    """Execute `gemm`: one step (kb, nt, i) a cycle, i inner; at least ACC cycles a kb; then GEMM_FILL.

    Queue: `go`, `word`, `extra` in, `idle` out (see `queue.Queue`). Activations: `activation_read`, `activation_address` out; `activation`,
    `activation_scale` one cycle later. Loader: `load_*` (see `load.Load`), one enable for each half row of weights, one for each row's
    scale. Vector unit: `vector_read`, `vector_address` (an accumulator word) in, `vector_data` one cycle later.
    """

    def __init__(self, shared: Shared) -> None:
        self.tile, self.shared = shared.tile, shared
        tile = shared.tile
        r = tile.rows
        self.go, self.word, self.extra, self.idle = Signal(), Signal(WORD_BITS), Signal(extra_bits(Queue.MXU)), Signal()
        self.activation_read, self.activation_address = Signal(), Signal(ADDRESS_BITS)
        self.activation, self.activation_scale = Signal(256), Signal(16)
        self.load_address, self.load_enable = Signal(ADDRESS_BITS), Signal(2 * r)
        self.load_data = Signal(8 * weight_period_bytes(tile))
        self.load_scale_enable, self.load_scale = Signal(r), Signal(WEIGHT_SCALE_BITS * r)
        self.vector_read, self.vector_address, self.vector_data = Signal(), Signal(ADDRESS_BITS), Signal(32 * r)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        step, first_k, w, a, c = self._steps(m)
        unit = self.unit
        # What the rows need later: the accumulator's address at READ_AT and WRITE_AT, `clear` a cycle after READ_AT.
        steps = Signal(Row.WRITE_AT)
        m.d.sync += steps.eq(Cat(step, steps[:-1]))
        addresses = [state(len(c), f"c{i}") for i in range(Row.WRITE_AT)]
        m.d.sync += [addresses[0].eq(c), *(y.eq(x) for x, y in pairwise(addresses))]
        clears = state(Row.READ_AT + 1, "clears")
        m.d.sync += clears.eq(Cat(self.clear & first_k, clears[:-1]))
        m.d.comb += [self.activation_read.eq(step), self.activation_address.eq(a)]
        # A row's clock runs while a step is in it or one of its memories is used.
        period = len(self.load_data) // 256
        working = step | steps.any() | self.vector_read
        for i in range(self.tile.rows):
            gated(m, f"row{i}", working | self.load_enable[2 * i : 2 * i + 2].any() | self.load_scale_enable[i])
            row = self.shared.place(
                m, Row, f"row{i}", domain=f"row{i}",
                step=step, weight_address=w, activation=self.activation, activation_scale=self.activation_scale, unit=unit,
                clear=clears[Row.READ_AT], acc_read=steps[Row.READ_AT - 1], acc_address=addresses[Row.READ_AT - 1],
                acc_write=steps[Row.WRITE_AT - 1], acc_write_address=addresses[Row.WRITE_AT - 1],
                load_enable=self.load_enable[2 * i : 2 * i + 2], load_address=self.load_address,
                load_data=self.load_data.word_select(i % period, 256),
                load_scale_enable=self.load_scale_enable[i], load_scale=self.load_scale[WEIGHT_SCALE_BITS * i : WEIGHT_SCALE_BITS * (i + 1)],
                vector_read=self.vector_read, vector_address=self.vector_address,
            )  # fmt: skip
            m.d.comb += self.vector_data[32 * i : 32 * i + 32].eq(row["vector_data"])
        return m

    def _steps(self, m: Module) -> tuple[Signal, ...]:
        """Count i within nt within kb; addresses advance by additions only."""
        word, layout = self.word, extra_layout(Queue.MXU)
        size = {n: state(w, f"{n}_size") for n, w in (("m", 9), ("n", 9), ("k", 11), ("a_stride", 11), ("c_stride", 12))}
        self.clear, self.unit, split = state(1, "clear"), state(1, "unit"), state(1, "split")
        a_start, c_start = state(ADDRESS_BITS, "a_start"), state(ADDRESS_BITS, "c_start")
        w, a, c, c_column = (state(ADDRESS_BITS, n) for n in ("w", "a", "c", "c_column"))
        i, nt, kb, cycle = Signal(9), Signal(9), Signal(11), Signal(range(LATENCY["ACC"]))
        busy, active, waiting, drain = Signal(), Signal(), Signal(), Signal(5)
        step, first_k = Signal(), Signal()
        m.d.comb += [self.idle.eq(~busy), step.eq(active & ~waiting), first_k.eq(kb == 0)]
        last_i, last_nt, last_kb = i + 1 == size["m"], nt + 1 == size["n"], kb + 1 == size["k"]
        at = {n: self.extra[first : first + width] for n, (first, width) in layout.items()}
        with m.If(self.go):
            m.d.sync += [size[n].eq(value(word, "gemm", n)) for n in size]
            m.d.sync += [
                self.clear.eq(bits(word, "gemm", "clear")),
                self.unit.eq(bits(word, "gemm", "unit")),
                split.eq(bits(word, "gemm", "split")),
            ]
            m.d.sync += [w.eq(at["w"]), a.eq(at["a"]), a_start.eq(at["a"]), c.eq(at["c"]), c_start.eq(at["c"]), c_column.eq(at["c"])]
            m.d.sync += [i.eq(0), nt.eq(0), kb.eq(0), cycle.eq(0), busy.eq(1), active.eq(1), waiting.eq(0), drain.eq(0)]
        ends_k = Signal()  # the last cycle of a kb
        enough = cycle == LATENCY["ACC"] - 1
        m.d.comb += ends_k.eq(active & enough & (waiting | (last_i & last_nt)))
        a_next = Signal(ADDRESS_BITS)
        m.d.comb += a_next.eq(a_start + (~split | kb[0]))
        with m.If(active):
            m.d.sync += cycle.eq(Mux(ends_k, 0, Mux(enough, cycle, cycle + 1)))
            with m.If(step):
                m.d.sync += [i.eq(i + 1), a.eq(a + size["a_stride"]), c.eq(c + size["c_stride"])]
                with m.If(last_i):
                    m.d.sync += [i.eq(0), nt.eq(nt + 1), w.eq(w + 1), a.eq(a_start), c.eq(c_column + 1), c_column.eq(c_column + 1)]
                    with m.If(last_nt):
                        m.d.sync += waiting.eq(~enough)
            with m.If(ends_k):
                m.d.sync += [nt.eq(0), kb.eq(kb + 1), a.eq(a_next), a_start.eq(a_next), c.eq(c_start), c_column.eq(c_start), waiting.eq(0)]
                with m.If(last_kb):
                    m.d.sync += active.eq(0)
        with m.If(busy & ~active):
            m.d.sync += drain.eq(drain + 1)
            with m.If(drain == LATENCY["GEMM_FILL"] - 2):
                m.d.sync += busy.eq(0)
        return step, first_k, w, a, c
