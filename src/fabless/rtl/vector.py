"""The vector unit: L lanes, their function units, reductions and quantisation, and the order in which a row's groups pass through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amaranth.hdl import C, Cat, Elaboratable, Module, Mux, Signal, Value, signed

from fabless.number.dot import BLOCK
from fabless.program.isa import BY_MNEMONIC, LATENCY, OPCODE_BITS, OPERAND_B, REGISTER_BITS, WORD_BITS, Queue
from fabless.program.isa import REDUCE as OPERATIONS
from fabless.rtl.block import named
from fabless.rtl.decoder import bits, value
from fabless.rtl.floating import flushed, state
from fabless.rtl.functions import FunctionUnit
from fabless.rtl.lane import INDEX_BITS, Lane
from fabless.rtl.load import log2
from fabless.rtl.quantise import Quantise
from fabless.rtl.reduce import Reduce
from fabless.rtl.sequencer import ADDRESS_BITS, extra_bits, extra_layout

if TYPE_CHECKING:
    from fabless.rtl.block import Shared

MNEMONICS = ("vec", "quant", "mask", "rotate")


class Vector(Elaboratable):
    """Execute `vec`, `quant`, `mask` and `rotate`, a group of L elements a cycle (four cycles with a function, two for rotate).

    Queue: `go`, `word`, `extra` in, `idle` out (see `queue.Queue`). Operands: `a_read`, `a_address` (a group of the vector buffer), `c_read`, `c_address`
    (an accumulator word), `b_read`, `b_address`; `a_data`, `c_data`, `b_data` one cycle later. Results: `write` (one bit a lane), `write_address`,
    `write_data`; `block_write`, `block_address`, `block`, `block_scale` for the activation buffer.
    """

    def __init__(self, shared: Shared) -> None:
        self.tile, self.shared = shared.tile, shared
        tile = shared.tile
        lanes = tile.vector_lanes
        self.go, self.word, self.extra, self.idle = Signal(), Signal(WORD_BITS), Signal(extra_bits(Queue.VPU)), Signal()
        self.a_read, self.a_address, self.a_data = Signal(), Signal(ADDRESS_BITS), Signal(32 * lanes)
        self.b_read, self.b_address, self.b_data = Signal(), Signal(ADDRESS_BITS), Signal(32 * lanes)
        self.c_read, self.c_address, self.c_data = Signal(), Signal(ADDRESS_BITS), Signal(32 * tile.rows)
        self.write, self.write_address, self.write_data = Signal(lanes), Signal(ADDRESS_BITS), Signal(32 * lanes)
        self.block_write, self.block_address = Signal(), Signal(ADDRESS_BITS)
        self.block, self.block_scale = Signal(8 * BLOCK), Signal(16)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        self._decode(m)
        self._front(m)
        x, y = self._operands(m)
        valid, data = self._compute(m, x, y)
        self._back(m, valid, data)
        return m

    def _decode(self, m: Module) -> None:
        """Take the operands into registers; the fields that instructions share stand at the same bits."""
        lanes, log_l = self.tile.vector_lanes, log2(self.tile.vector_lanes)
        word = self.word
        at = {n: self.extra[first : first + width] for n, (first, width) in extra_layout(Queue.VPU).items()}
        kind = {n: word[:OPCODE_BITS] == BY_MNEMONIC[n].code for n in MNEMONICS}
        streams = kind["vec"] | kind["quant"]
        self.kind = {n: state(1, f"is_{n}") for n in MNEMONICS}
        self.pre, self.fn, self.reduce, self.scope = state(3, "pre"), state(2, "fn"), state(2, "reduce"), state(1, "scope")
        self.from_c, self.b_kind, self.lowest = state(1, "from_c"), state(2, "b_kind"), state(1, "lowest")
        self.rows, self.groups, self.full_groups, self.tail = (
            state(9, "rows"),
            state(15, "groups"),
            state(15, "full_groups"),
            state(log_l, "tail"),
        )
        self.a_row, self.a_stride = state(ADDRESS_BITS, "a_row"), state(ADDRESS_BITS, "a_stride")
        self.b_row, self.b_stride = state(ADDRESS_BITS, "b_row"), state(ADDRESS_BITS, "b_stride")
        self.dst, self.dst_stride = state(ADDRESS_BITS, "dst"), state(ADDRESS_BITS, "dst_stride")
        self.b_code, self.fill = state(32, "b_code"), state(7, "fill")
        self.low, self.high, self.start = (Signal(signed(REGISTER_BITS + 2), name=n, reset_less=True) for n in ("low", "high", "start"))
        self.step_size = state(8, "step_size")
        length = value(word, "vec", "len")
        quant_groups = ((length + 31) >> 5) << (5 - log_l)
        rotates = kind["rotate"]
        b_kind = Mux(streams, bits(word, "vec", "b_kind"), OPERAND_B.index("vector"))
        scalar_b = b_kind == OPERAND_B.index("scalar")
        reduce = Mux(kind["vec"], bits(word, "vec", "reduce"), 0)
        fn = Mux(streams, bits(word, "vec", "fn"), 0)
        element_dst = reduce != 0
        fill = (
            Mux(kind["quant"], LATENCY["QUANT_FILL"], LATENCY["VEC_FILL"]) + Mux(fn != 0, LATENCY["FUNCTION_FILL"], 0)
            + Mux(reduce != 0, LATENCY["REDUCE_FILL"], 0)
        )  # fmt: skip
        b_stride_field = Mux(rotates, bits(word, "rotate", "b_stride"), bits(word, "vec", "b_stride"))
        with m.If(self.go):
            m.d.sync += [self.kind[n].eq(v) for n, v in kind.items()]
            m.d.sync += [
                self.pre.eq(Mux(streams, bits(word, "vec", "pre"), 0)), self.fn.eq(fn), self.reduce.eq(reduce),
                self.scope.eq(kind["quant"] & bits(word, "quant", "scope")), self.from_c.eq(bits(word, "vec", "a_space")), self.b_kind.eq(b_kind),
                self.lowest.eq(bits(word, "mask", "fill")), self.rows.eq(value(word, "vec", "rows")), self.step_size.eq(bits(word, "mask", "step")),
                self.groups.eq(Mux(kind["quant"], quant_groups, (length + lanes - 1) >> log_l)),
                self.full_groups.eq(length >> log_l), self.tail.eq(length[:log_l]),
                self.a_row.eq(at["a"] >> log_l), self.a_stride.eq(bits(word, "vec", "a_stride") << (5 - log_l)),
                self.b_row.eq(Mux(scalar_b, at["b"], at["b"] >> log_l)),
                self.b_stride.eq(Mux(scalar_b, b_stride_field, b_stride_field << (5 - log_l))),
                self.dst.eq(Mux(element_dst | kind["quant"], at["dst"], at["dst"] >> log_l)),
                self.dst_stride.eq(Mux(element_dst | kind["quant"], bits(word, "vec", "dst_stride"), bits(word, "vec", "dst_stride") << (5 - log_l))),
                self.b_code.eq(flushed(at["b"])), self.fill.eq(fill), self.start.eq(at["start"].as_signed()), self.low.eq(at["low"].as_signed()),
                self.high.eq(at["high"].as_signed()),
            ]  # fmt: skip

    def _front(self, m: Module) -> None:
        """Walk rows, passes, groups and the cycles of a group; read operands in the first cycle of each."""
        busy, active, drain = Signal(), Signal(), Signal(7)
        row, second, group, sub, rest = Signal(9), Signal(), Signal(15), Signal(2), Signal(4)
        subs = Mux(self.fn != 0, LATENCY["FUNCTION_CYCLES"] - 1, self.kind["rotate"])
        last_sub, last_group, resting = sub == subs, group + 1 == self.groups, Signal()
        last_pass = second | ~self.scope
        ends_row = Signal()
        m.d.comb += [
            self.idle.eq(~busy),
            ends_row.eq(active & Mux(resting, rest == LATENCY["REDUCE_DRAIN"] - 1, last_sub & last_group & last_pass & (self.reduce == 0))),
        ]  # fmt: skip
        with m.If(self.go):
            m.d.sync += [
                busy.eq(1), active.eq(1), drain.eq(0), row.eq(0), second.eq(0), group.eq(0), sub.eq(0), rest.eq(0), resting.eq(0),
            ]  # fmt: skip
        with m.Elif(active):
            with m.If(~resting):
                m.d.sync += sub.eq(Mux(last_sub, 0, sub + 1))
                with m.If(last_sub):
                    m.d.sync += group.eq(Mux(last_group, 0, group + 1))
                    with m.If(last_group):
                        m.d.sync += [second.eq(~last_pass), resting.eq(self.reduce != 0)]
            with m.Else():
                m.d.sync += rest.eq(rest + 1)
            with m.If(ends_row):
                m.d.sync += [
                    row.eq(row + 1), rest.eq(0), resting.eq(0), self.a_row.eq(self.a_row + self.a_stride), self.b_row.eq(self.b_row + self.b_stride),
                    self.low.eq(self.low + self.step_size), self.high.eq(self.high + self.step_size),
                ]  # fmt: skip
                with m.If(row + 1 == self.rows):
                    m.d.sync += active.eq(0)
        with m.If(busy & ~active):
            m.d.sync += drain.eq(drain + 1)
            with m.If(drain == self.fill - 2):
                m.d.sync += busy.eq(0)

        lanes, log_l, log_r = self.tile.vector_lanes, log2(self.tile.vector_lanes), log2(self.tile.rows)
        reads = active & ~resting & (sub == 0)
        a_group, b_scalar = Signal(ADDRESS_BITS), self.b_kind == OPERAND_B.index("scalar")
        m.d.comb += [
            a_group.eq(self.a_row + group), self.a_read.eq(reads & ~self.from_c), self.a_address.eq(a_group),
            self.c_read.eq(reads & self.from_c), self.c_address.eq(a_group >> (log_r - log_l)), self.b_read.eq(reads),
            self.b_address.eq(Mux(b_scalar, self.b_row >> log_l, self.b_row + group)),
        ]  # fmt: skip
        # Beside the data: which group of the accumulator word, which lane is the scalar, the cycle of rotate, the element's index.
        self.valid1, self.second_cycle1 = Signal(), state(1, "second_cycle1")
        self.c_part1, self.b_lane1 = state(max(1, log_r - log_l), "c_part1"), state(log_l, "b_lane1")
        group1, self.group2 = state(INDEX_BITS - log_l, "group1"), state(INDEX_BITS - log_l, "group2")
        begins = Mux(self.kind["rotate"], last_sub, sub == 0)
        m.d.sync += [
            self.valid1.eq(active & ~resting & begins), self.second_cycle1.eq(sub[0]), self.b_lane1.eq(self.b_row[:log_l]), group1.eq(group),
            self.group2.eq(group1),
        ]  # fmt: skip
        if lanes < self.tile.rows:
            m.d.sync += self.c_part1.eq(a_group[: log_r - log_l])
        self.bounds: list[Signal] = []
        for name, bound in (("low", self.low), ("high", self.high)):
            relative = Signal(signed(REGISTER_BITS + 3), name=f"{name}_relative", reset_less=True)
            clamped = state(INDEX_BITS + 1, f"{name}_clamped")
            limit = 1 << INDEX_BITS
            m.d.sync += [relative.eq(bound - self.start), clamped.eq(Mux(relative < 0, 0, Mux(relative > limit, limit, relative)))]
            self.bounds.append(clamped)

    def _operands(self, m: Module) -> tuple[Signal, Signal]:
        """Return the registers of both operands, two cycles behind the read."""
        lanes, rows = self.tile.vector_lanes, self.tile.rows
        x, y = state(32 * lanes, "x"), state(32 * lanes, "y")
        c_group: Value = self.c_data
        if lanes < rows:
            c_group = self.c_data.word_select(self.c_part1, 32 * lanes)
        a = Mux(self.from_c, c_group, self.a_data)
        codes = [a[32 * i : 32 * i + 32] for i in range(lanes)]
        b = [self.b_data[32 * i : 32 * i + 32] for i in range(lanes)]
        rotates, second = self.kind["rotate"], self.second_cycle1
        swapped = Cat(codes[i ^ 1] for i in range(lanes))
        # c of a pair, then s of it, for both of its lanes
        pairs = Cat(Mux(second, b[i | 1], b[i & ~1]) for i in range(lanes))
        scalar = self.b_data.word_select(self.b_lane1, 32)
        m.d.sync += x.eq(Mux(rotates & second, swapped, a))
        with m.If(rotates):
            m.d.sync += y.eq(pairs)
        with m.Else(), m.Switch(self.b_kind):
            for i, name in enumerate(OPERAND_B):
                with m.Case(i):
                    choices = {
                        "vector": self.b_data,
                        "scalar": scalar.replicate(lanes),
                        "register": self.b_code.replicate(lanes),
                        "self": a,
                    }
                    m.d.sync += y.eq(choices[name])
        return x, y

    def _compute(self, m: Module, x: Signal, y: Signal) -> tuple[Value, Signal]:
        """Return the stream of results behind lanes and function units: valid and L codes."""
        lanes, per = self.tile.vector_lanes, LATENCY["FUNCTION_CYCLES"]
        valid = Signal(Lane.LATENCY + 1)
        m.d.sync += valid.eq(Cat(self.valid1, valid[:-1]))
        results = Signal(32 * lanes)
        for i in range(lanes):
            lane = self.shared.place(
                m, Lane, f"lane{i}", x=x[32 * i : 32 * i + 32], y=y[32 * i : 32 * i + 32], index=Cat(C(i, log2(lanes)), self.group2),
                pre=self.pre, mask=self.kind["mask"], rotate=self.kind["rotate"], minus=C(1 - i % 2, 1), low=self.bounds[0], high=self.bounds[1],
                lowest=self.lowest,
            )  # fmt: skip
            m.d.comb += results[32 * i : 32 * i + 32].eq(lane["result"])
        plain = valid[Lane.LATENCY]

        applies = self.fn != 0
        phases = Signal(per + FunctionUnit.LATENCY)
        m.d.sync += phases.eq(Cat(plain & applies, phases[:-1]))
        phase = Cat(plain, phases[: per - 1])
        values = state(32 * lanes, "values")
        for u in range(lanes // per):
            mine = [results[32 * (per * u + i) : 32 * (per * u + i) + 32] for i in range(per)]
            chosen = Mux(phase[0], mine[0], Mux(phase[1], mine[1], Mux(phase[2], mine[2], mine[3])))
            unit = self.shared.place(m, FunctionUnit, f"function{u}", x=chosen, fn=self.fn)
            for i in range(per):
                at = 32 * (per * u + i)
                with m.If(phases[FunctionUnit.LATENCY - 1 + i]):
                    m.d.sync += values[at : at + 32].eq(unit["y"])
        return Mux(applies, phases[FunctionUnit.LATENCY + per - 1], plain), Mux(applies, values, results)

    def _back(self, m: Module, valid: Value, data: Value) -> None:
        """Count the results as they come, and write them, reduce them or quantise them."""
        lanes, log_l = self.tile.vector_lanes, log2(self.tile.vector_lanes)
        # What comes is counted a cycle ahead: the last group and its lanes stand in registers when it is there.
        coming, comes, last_comes = Signal(15), Signal(15), Signal()
        m.d.comb += coming.eq(Mux(valid, Mux(last_comes, 0, comes + 1), comes))
        m.d.sync += [comes.eq(Mux(self.go, 0, coming)), last_comes.eq(coming + 1 == self.groups)]
        with_lanes = Signal(lanes)
        for i in range(lanes):
            m.d.sync += with_lanes[i].eq((coming < self.full_groups) | ((coming == self.full_groups) & (i < self.tail)))
        is_quant, reduces = self.kind["quant"], self.reduce != 0
        adds = self.reduce == OPERATIONS.index("sum")
        stream, masked, present = state(32 * lanes, "stream"), state(32 * lanes, "masked"), Signal(lanes)
        arrives, last, group, second, dst = Signal(), Signal(), Signal(15), Signal(), state(ADDRESS_BITS, "dst_row")
        m.d.sync += [
            arrives.eq(valid), last.eq(last_comes), group.eq(comes), present.eq(with_lanes), stream.eq(data),
            masked.eq(Cat(Mux(with_lanes[i] & valid & (is_quant | adds), data[32 * i : 32 * i + 32], 0) for i in range(lanes))),
        ]  # fmt: skip
        row_done = Signal()
        m.d.comb += row_done.eq(arrives & last & (second | ~self.scope))
        with m.If(arrives):
            m.d.sync += second.eq(Mux(last, ~second & self.scope, second))

        m.submodules.reducer = reducer = named(Reduce(lanes=lanes, shared=self.shared))
        m.d.comb += [
            reducer.valid.eq(arrives & reduces), reducer.last.eq(last), reducer.kind.eq(self.reduce), reducer.data.eq(stream),
            reducer.present.eq(present), reducer.group.eq(group), reducer.addends.eq(masked),
        ]  # fmt: skip
        groups = BLOCK // lanes
        first_of_block = (group[: log2(groups)] == 0) if groups > 1 else C(1, 1)
        last_of_block = (group[: log2(groups)] == groups - 1) if groups > 1 else C(1, 1)
        m.submodules.quantiser = quantiser = named(Quantise(lanes=lanes, shared=self.shared))
        m.d.comb += [
            quantiser.valid.eq(arrives & is_quant), quantiser.data.eq(masked), quantiser.measures.eq(~second),
            quantiser.opens.eq(Mux(self.scope, group == 0, first_of_block)), quantiser.closes.eq(~second & Mux(self.scope, last, last_of_block)),
            quantiser.emits.eq(second | ~self.scope), quantiser.ends.eq(last_of_block),
        ]  # fmt: skip

        # Where it goes. A vector's row advances with the stream, a scalar's or block's with what comes out.
        word, block, blocks = Signal(ADDRESS_BITS), Signal(10), Signal(10)
        m.d.comb += blocks.eq(self.groups >> log2(groups))
        advances = Mux(is_quant, quantiser.write & (block + 1 == blocks), Mux(reduces, reducer.done, row_done))
        with m.If(self.go):
            m.d.sync += [second.eq(0), block.eq(0)]
        with m.If(quantiser.write):
            m.d.sync += block.eq(Mux(block + 1 == blocks, 0, block + 1))
        fresh = Signal()
        current = Mux(fresh, self.dst, dst)
        with m.If(self.go):
            m.d.sync += fresh.eq(1)
        with m.Elif(advances):
            m.d.sync += [dst.eq(current + self.dst_stride), fresh.eq(0)]
        m.d.comb += [
            word.eq(current), self.block_write.eq(quantiser.write), self.block_address.eq(current + block), self.block.eq(quantiser.block),
            self.block_scale.eq(quantiser.scale),
        ]  # fmt: skip
        with m.If(reducer.done):
            m.d.comb += [self.write_address.eq(word >> log_l), self.write_data.eq(reducer.code.replicate(lanes))]
            m.d.comb += [self.write[i].eq(word[:log_l] == i) for i in range(lanes)]
        with m.Else():
            m.d.comb += [
                self.write_address.eq(word + group), self.write_data.eq(stream), self.write.eq(Mux(arrives & ~reduces & ~is_quant, present, 0)),
            ]  # fmt: skip
