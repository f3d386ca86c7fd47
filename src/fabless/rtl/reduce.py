"""Sum, maximum and first maximum of a row, in the machine's one order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amaranth.hdl import C, Cat, Elaboratable, Module, Mux, Signal, Value

from fabless.number.dot import BLOCK
from fabless.program.isa import REDUCE
from fabless.rtl.convert import from_index
from fabless.rtl.floating import FloatAdd, state
from fabless.rtl.lane import INDEX_BITS, order_key
from fabless.rtl.load import log2

if TYPE_CHECKING:
    from fabless.rtl.block import Shared

ADD_CYCLES = FloatAdd.LATENCY + 1
SUM, MAX, ARGMAX = (REDUCE.index(n) for n in ("sum", "max", "argmax"))


class Reduce(Elaboratable):
    """Reduce rows that come in groups of `lanes` codes, at most one group a cycle.

    Ports: `valid`, `data`, `present` (one bit a lane), `group` (its index in the row), `last` (of the row), `kind` in; `addends`: `data` of a sum, +0 in
    lanes that are not present and in cycles without a group; all from registers. `done` for one cycle with `code`. The next row may begin
    BLOCK / lanes + 1 cycles after the last group of one. A sum is done 28 + BLOCK / lanes - 1 cycles after the last group.
    """

    def __init__(self, *, lanes: int, shared: Shared) -> None:
        self.lanes, self.shared = lanes, shared
        self.valid, self.last, self.kind = Signal(), Signal(), Signal(2)
        self.data, self.present, self.group = Signal(32 * lanes), Signal(lanes), Signal(INDEX_BITS)
        self.addends = Signal(32 * lanes)
        self.done, self.code = Signal(), Signal(32)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        sum_done, total = self._sum(m)
        max_done, greatest = self._max(m)
        m.d.comb += [self.done.eq(sum_done | max_done), self.code.eq(Mux(sum_done, total, greatest))]
        return m

    def _add(self, m: Module, a: Value, b: Value, name: str) -> Signal:
        """Return the register of a + b, ADD_CYCLES later."""
        adder = self.shared.place(m, FloatAdd, name, a=a, b=b)
        result = state(32, f"{name}_sum")
        m.d.sync += result.eq(adder["y"])
        return result

    @staticmethod
    def _later(m: Module, value: Value, cycles: int, name: str) -> Value:
        for i in range(cycles):
            register = Signal(len(value), name=f"{name}_later{i}")
            m.d.sync += register.eq(value)
            value = register
        return value

    def _sum(self, m: Module) -> tuple[Value, Signal]:
        lanes, groups = self.lanes, BLOCK // self.lanes
        is_sum = self.valid & (self.kind == SUM)
        # A block that ends early is filled up with groups of +0.
        fill, place = Signal(), Signal(max(1, log2(groups)))
        valid, ends = is_sum | fill, Signal()
        at_end = place == groups - 1 if groups > 1 else C(1, 1)
        m.d.comb += ends.eq(((is_sum & self.last) | fill) & at_end)
        with m.If(valid):
            m.d.sync += [place.eq(place + 1), fill.eq(((is_sum & self.last) | fill) & ~at_end)]
        values: list[Value] = [self.addends[32 * i : 32 * i + 32] for i in range(lanes)]
        level = 0
        while len(values) > 1:
            values = [self._add(m, values[2 * i], values[2 * i + 1], f"tree{level}_{i}") for i in range(len(values) // 2)]
            level += 1
        flags = self._later(m, Cat(valid, ends), ADD_CYCLES * level, "tree")
        value: Value = values[0]
        for stage in range(log2(groups)):
            flags, value = self._pair(m, flags, value, f"pair{stage}")
        return self._partials(m, flags[0], flags[1], value)

    def _pair(self, m: Module, flags: Value, value: Value, name: str) -> tuple[Value, Value]:
        """Add every second value to the one before it."""
        held, has = state(32, f"{name}_held"), Signal(name=f"{name}_has")
        with m.If(flags[0]):
            m.d.sync += has.eq(~has)
            with m.If(~has):
                m.d.sync += held.eq(value)
        total = self._add(m, held, value, name)
        return self._later(m, Cat(flags[0] & has, flags[1] & has), ADD_CYCLES, name), total

    def _partials(self, m: Module, valid: Value, ends: Value, value: Value) -> tuple[Value, Signal]:
        """Add block j to sum j modulo 4, then (s0 + s1) + (s2 + s3)."""
        sums = [state(32, f"partial{i}") for i in range(4)]
        at = Signal(2)
        chosen = Signal(32)
        with m.Switch(at):
            for i in range(4):
                with m.Case(i):
                    m.d.comb += chosen.eq(sums[i])
        before, block = state(32, "before"), state(32, "block")
        m.d.sync += [before.eq(chosen), block.eq(value)]
        adder = self.shared.place(m, FloatAdd, "partial", a=before, b=block)
        with m.If(valid):
            m.d.sync += at.eq(Mux(ends, 0, at + 1))
        back = self._later(m, Cat(valid, at, ends), ADD_CYCLES, "partial")
        final = Signal(2 * ADD_CYCLES + 4)  # one bit a cycle behind the last partial sum
        m.d.sync += final.eq(Cat(back[0] & back[3], final[:-1]))
        with m.If(final[2]):
            m.d.sync += [s.eq(0) for s in sums]
        with m.If(back[0]):
            for i in range(4):
                with m.If(back[1:3] == i):
                    m.d.sync += sums[i].eq(adder["y"])
        first, second, held = final[0], final[1], state(32, "held")
        a = Mux(first, sums[0], Mux(second, sums[2], held))
        result = state(32, "result")
        b = Mux(first, sums[1], Mux(second, sums[3], result))
        left, right = state(32, "left"), state(32, "right")
        last = self.shared.place(m, FloatAdd, "final", a=left, b=right)
        m.d.sync += [left.eq(a), right.eq(b), result.eq(last["y"]), held.eq(result)]
        return final[-1], result

    def _max(self, m: Module) -> tuple[Value, Value]:
        keys: list[tuple[Value, Value]] = [
            (Mux(self.present[i], order_key(self.data[32 * i : 32 * i + 32]), 0), C(i, max(1, log2(self.lanes)))) for i in range(self.lanes)
        ]
        level = 0
        while len(keys) > 1:
            keys = [self._greater(m, keys[2 * i], keys[2 * i + 1], f"max{level}_{i}") for i in range(len(keys) // 2)]
            level += 1
            if level == (log2(self.lanes) + 1) // 2:  # half of the tree a cycle
                kept = [
                    (state(32, f"half_key{i}"), Signal(len(at), name=f"half_index{i}", reset_less=True)) for i, (_, at) in enumerate(keys)
                ]
                m.d.sync += [r.eq(v) for registers, pair in zip(kept, keys, strict=True) for r, v in zip(registers, pair, strict=True)]
                keys = [(a, b) for a, b in kept]
        key, index = state(32, "group_key"), state(INDEX_BITS, "group_index")
        best, best_index = state(32, "best"), state(INDEX_BITS, "best_index")
        valid, first, last = Signal(), state(1, "first"), Signal()
        is_max = self.valid & ((self.kind == MAX) | (self.kind == ARGMAX))
        half = self._later(m, Cat(is_max, self.group == 0, is_max & self.last, self.group), 1, "half")
        m.d.sync += [
            valid.eq(half[0]), first.eq(half[1]), last.eq(half[2]), key.eq(keys[0][0]),
            index.eq((half[3:] << log2(self.lanes)) + keys[0][1]),
        ]  # fmt: skip
        with m.If(valid & (first | (key > best))):
            m.d.sync += [best.eq(key), best_index.eq(index)]
        done, code = Signal(), state(32, "greatest")
        done_next = Signal()
        m.d.sync += [done_next.eq(last), done.eq(done_next)]
        value = Cat(Mux(best[31], best[:31], ~best[:31]), ~best[31])
        m.d.sync += code.eq(Mux(self.kind == ARGMAX, from_index(m, best_index, "best_code"), value))
        return done, code

    @staticmethod
    def _greater(m: Module, a: tuple[Value, Value], b: tuple[Value, Value], name: str) -> tuple[Value, Value]:
        key, index, wins = Signal(32, name=f"{name}_key"), Signal(len(a[1]), name=f"{name}_index"), Signal(name=f"{name}_wins")
        m.d.comb += [wins.eq(b[0] > a[0]), key.eq(Mux(wins, b[0], a[0])), index.eq(Mux(wins, b[1], a[1]))]
        return key, index
