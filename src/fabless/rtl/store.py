"""The store unit: a 2-D strided write of a buffer into memory, encoding formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amaranth.hdl import C, Cat, Elaboratable, Module, Mux, Signal, Value

from fabless.program.isa import FORMAT_BITS, LATENCY, MEMORY_FORMATS, STORE_FORMATS, TARGETS, WORD_BITS, Queue
from fabless.rtl.convert import to_bf16
from fabless.rtl.decoder import bits, value
from fabless.rtl.floating import state
from fabless.rtl.load import log2, rotated_left, unit_bytes
from fabless.rtl.sequencer import ADDRESS_BITS, extra_bits, extra_layout

if TYPE_CHECKING:
    from fabless.program.tile import Tile


class Store(Elaboratable):
    """Execute `store`.

    Queue: `go`, `word`, `extra` in, `idle` out (see `queue.Queue`). Memory write channel: `write_valid`, `write_ready`, `write_address` (of a beat of B
    bytes), `write_data`, `write_strobe` (one bit a byte); a beat is in memory when it is taken. While a beat waits, the whole unit stands still.
    Buffers: `read_enable`, `word_address` and `vector_address` (a word of lanes, and the lanes that read the next one) out; `activation_data`,
    `activation_scale_data`, `vector_data` one cycle later. Per row of memory max(ceil(row_bytes, B), units) steps, one more where a row of several
    beats does not start at a beat; then STORE_FILL.
    """

    def __init__(self, tile: Tile) -> None:
        self.tile = tile
        b, lanes = tile.memory_bytes_per_cycle, tile.vector_lanes
        self.go, self.word, self.extra, self.idle = Signal(), Signal(WORD_BITS), Signal(extra_bits(Queue.STORE)), Signal()
        self.write_valid, self.write_ready, self.write_address = Signal(), Signal(), Signal(40)
        self.write_data, self.write_strobe = Signal(8 * b), Signal(b)
        self.read_enable, self.word_address, self.vector_address = Signal(), Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        self.vector_carry = Signal(lanes)
        self.activation_data, self.activation_scale_data, self.vector_data = Signal(256), Signal(16), Signal(32 * lanes)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        self._decode(m)
        busy, drain = Signal(), Signal(4)
        go_on = Signal()  # nothing waits for memory
        m.d.comb += [self.idle.eq(~busy), go_on.eq(~(self.write_valid & ~self.write_ready))]
        with m.If(self.go):
            m.d.sync += [busy.eq(1), drain.eq(0)]
        with m.Elif(busy & (self.rows == 0) & go_on):
            m.d.sync += drain.eq(drain + 1)
            with m.If(drain == LATENCY["STORE_FILL"] - 2):
                m.d.sync += busy.eq(0)
        self._steps(m, go_on=go_on)
        return m

    def _decode(self, m: Module) -> None:
        """Take the operands, and what follows from target and format, into registers."""
        tile, b = self.tile, self.tile.memory_bytes_per_cycle
        target, format = bits(self.word, "store", "target"), bits(self.word, "store", "format")
        self.target, self.format, self.stride = state(3, "target"), state(4, "format"), state(32, "stride")
        self.count = state(17, "count")
        self.bytes_row, self.emissions = state(36, "bytes_row"), state(24, "emissions")
        self.log_chunk, self.parts = state(4, "log_chunk"), state(8, "parts")
        self.log_element = state(2, "log_element")
        self.row_address, self.rows = state(40, "row_address"), Signal(11)
        self.source, self.byte = state(ADDRESS_BITS, "source"), state(5, "byte")
        layout = extra_layout(Queue.STORE)
        count = value(self.word, "store", "count")
        with m.If(self.go):
            m.d.sync += [
                self.target.eq(target), self.format.eq(format), self.stride.eq(bits(self.word, "store", "stride")), self.count.eq(count),
                self.rows.eq(value(self.word, "store", "rows")), self.row_address.eq(_taken(self.extra, layout["address"])), self.byte.eq(0),
            ]  # fmt: skip
            with m.Switch(Cat(format, target)):
                for i, t in enumerate(TARGETS):
                    for f in STORE_FORMATS.get(t, ()):
                        unit = unit_bytes(t, f, tile)
                        chunk = min(unit, b)
                        element = unit_bytes(t, f, tile) if t != "v" else FORMAT_BITS[f] // 8
                        row_bytes = count << log2(element)
                        with m.Case(i << 4 | MEMORY_FORMATS.index(f)):
                            m.d.sync += [
                                self.bytes_row.eq(row_bytes), self.log_chunk.eq(log2(chunk)), self.parts.eq(unit // chunk - 1),
                                self.emissions.eq((row_bytes + (chunk - 1)) >> log2(chunk)), self.log_element.eq(log2(min(element, 8))),
                            ]  # fmt: skip

    def _steps(self, m: Module, *, go_on: Signal) -> None:  # noqa: PLR0915  one pipeline, its stages in order
        """Read chunks, gather them into B bytes of the row, move these to where the row starts in a beat, write."""
        tile, b = self.tile, self.tile.memory_bytes_per_cycle
        lanes, log_b, log_lanes = tile.vector_lanes, log2(b), log2(tile.vector_lanes)
        is_v, is_ab = self.target == TARGETS.index("v"), self.target == TARGETS.index("ab")
        offset = self.row_address[:log_b]
        n_beats = (offset + self.bytes_row + (b - 1)) >> log_b

        # Stage 0: read.
        emitted, sub, part, beat, left = Signal(24), Signal(log_b + 1), Signal(8), Signal(32), state(36, "left")
        several, flush, step, last, row_ends = Signal(), Signal(), Signal(), Signal(), Signal()
        steps_in_beat, before = Signal(log_b + 1), Signal(36)
        m.d.comb += [
            several.eq((offset != 0) & (n_beats != 1)), flush.eq(emitted == self.emissions), step.eq((self.rows != 0) & go_on),
            last.eq(emitted + 1 == self.emissions), row_ends.eq(Mux(several, flush, last)),
            steps_in_beat.eq(C(b, log_b + 1) >> self.log_chunk), before.eq(Mux(emitted == 0, self.bytes_row, left)),
        ]  # fmt: skip
        full = Signal()
        m.d.comb += full.eq(last | (sub + 1 == steps_in_beat))
        with m.If(self.go):
            m.d.sync += [
                emitted.eq(0),
                sub.eq(0),
                part.eq(0),
                beat.eq(0),
                self.source.eq(_taken(self.extra, extra_layout(Queue.STORE)["src"])),
            ]
        per_beat, elements = Signal(9), Signal(7)
        m.d.comb += [per_beat.eq(C(b, 9) >> self.log_element), elements.eq(Mux(per_beat > lanes, lanes, per_beat))]
        remaining = before >> self.log_element
        with m.If(step):
            with m.If(~flush):
                m.d.sync += [emitted.eq(emitted + 1), sub.eq(Mux(full, 0, sub + 1)), left.eq(before - (C(1, 10) << self.log_chunk))]
                with m.If(is_v):
                    m.d.sync += self.source.eq(self.source + Mux(remaining < elements, remaining, elements))
                with m.Elif(is_ab):
                    m.d.sync += [self.byte.eq(self.byte + 1), self.source.eq(self.source + (self.byte == 31))]
                with m.Else():
                    m.d.sync += [part.eq(Mux(part == self.parts, 0, part + 1)), self.source.eq(self.source + (part == self.parts))]
            with m.If(full | flush):
                m.d.sync += beat.eq(beat + 1)
            with m.If(row_ends):
                m.d.sync += [
                    emitted.eq(0), sub.eq(0), part.eq(0), beat.eq(0), self.rows.eq(self.rows - 1), self.row_address.eq(self.row_address + self.stride),
                ]  # fmt: skip
        m.d.comb += [
            self.read_enable.eq(step & ~flush),
            self.word_address.eq(self.source),
            self.vector_address.eq(self.source >> log_lanes),
        ]
        lane_offset = self.source[:log_lanes]
        m.d.comb += [self.vector_carry[i].eq(i < lane_offset) for i in range(lanes)]

        # Stage 1: the data are here; a chunk in the low bytes.
        tags = {"write": full | flush, "flush": flush, "several": several, "offset": offset, "sub": sub, "part": part, "byte": self.byte,
                "lane": lane_offset, "first": beat == 0, "address": (self.row_address[log_b:] + beat)[:40],
                "end": (offset + self.bytes_row - (beat << log_b))}  # fmt: skip
        one = {n: state(len(Value.cast(v)), f"{n}1") for n, v in tags.items()}
        valid1 = Signal()
        with m.If(go_on):
            m.d.sync += [valid1.eq(step), *(one[n].eq(v) for n, v in tags.items())]
        chunk = self._chunk(m, one)

        # Stage 2: gathered; stage 3: at its place in the beat, on the write channel.
        gathered, valid2 = state(8 * b, "gathered"), Signal()
        two = {n: state(len(one[n]), f"{n}2") for n in ("write", "flush", "several", "offset", "first", "address", "end")}
        previous = state(8 * b, "previous")
        with m.If(go_on):
            m.d.sync += [valid2.eq(valid1), *(two[n].eq(one[n]) for n in two)]
            with m.If(valid1):
                m.d.sync += gathered.eq(self._gathered(m, gathered, chunk, one["sub"]))
            with m.If(valid2 & two["write"]):
                m.d.sync += previous.eq(gathered)
        granule = min(32, b)
        moved, fine = Signal(8 * b), two["offset"][: log2(granule)]
        low, high = Mux(two["first"], 0, previous), gathered
        m.d.comb += moved.eq(high)
        for i in range(1, b // granule):
            with m.If(two["offset"][log2(granule) :] == i):
                m.d.comb += moved.eq(Cat(low[8 * (b - granule * i) :], high[: 8 * (b - granule * i)]))
        with m.If(fine != 0):
            # one element of at most four bytes: everywhere, for the strobes to choose
            m.d.comb += moved.eq((gathered[:32] << (fine[:2] << 3))[:32].replicate(b // 4))
        self._strobes(m, go_on=go_on, valid=valid2, two=two, moved=moved)

    def _chunk(self, m: Module, one: dict[str, Signal]) -> Signal:
        """Return the bytes that a step read, in the low bytes of B."""
        tile, b = self.tile, self.tile.memory_bytes_per_cycle
        lanes, log_lanes = tile.vector_lanes, log2(tile.vector_lanes)
        down = Signal(log_lanes)
        m.d.comb += down.eq(-one["lane"])
        vector = rotated_left(m, self.vector_data, down, 32)
        codes = [vector[32 * i : 32 * i + 32] for i in range(lanes)]
        chunk = Signal(8 * b)
        with m.Switch(self.target):
            with m.Case(TARGETS.index("a")):
                n = min(32, b)
                m.d.comb += chunk.eq(
                    Mux(one["part"][0], self.activation_data[8 * n :], self.activation_data) if n < 32 else self.activation_data
                )
            with m.Case(TARGETS.index("as")):
                m.d.comb += chunk.eq(self.activation_scale_data)
            with m.Case(TARGETS.index("ab")):
                m.d.comb += chunk.eq(self.activation_data.word_select(one["byte"], 8))
            with m.Default():
                m.d.comb += chunk.eq(Mux(self.format == MEMORY_FORMATS.index("bf16"), Cat(to_bf16(c) for c in codes), vector))
        return chunk

    def _gathered(self, m: Module, gathered: Signal, chunk: Signal, sub: Signal) -> Value:
        """Return the B bytes of the row so far: `chunk` at place `sub`, what came before below it."""
        b = self.tile.memory_bytes_per_cycle
        result: Value = chunk
        units = {unit_bytes(t, f, self.tile) for t, formats in STORE_FORMATS.items() for f in formats if t != "ab"}  # ab has one byte a row
        for n in sorted(units):
            if n < b:
                pieces = [Mux(sub == i, chunk[: 8 * n], gathered[8 * n * i : 8 * n * i + 8 * n]) for i in range(b // n)]
                result = Mux(self.log_chunk == log2(n), Cat(pieces), result)
        return result

    def _strobes(self, m: Module, *, go_on: Signal, valid: Signal, two: dict[str, Signal], moved: Signal) -> None:
        """Register a beat with the bytes that belong to the row."""
        b = self.tile.memory_bytes_per_cycle
        log_b = log2(b)
        first = Signal(log_b)
        behind = Signal(log_b + 1)
        end = two["end"]
        m.d.comb += [first.eq(Mux(two["first"], two["offset"], 0)), behind.eq(Mux(end > b, b, end))]
        address, data, strobe, pending = state(40, "address"), state(8 * b, "data"), state(b, "strobe"), Signal()
        nothing = two["end"].as_signed() <= 0
        with m.If(go_on):
            m.d.sync += pending.eq(valid & two["write"] & ~nothing)
            with m.If(valid & two["write"]):
                m.d.sync += [
                    address.eq(two["address"] << log_b), data.eq(moved), strobe.eq(((C(1, b + 1) << behind) - 1) & ~((C(1, b + 1) << first) - 1)),
                ]  # fmt: skip
        m.d.comb += [self.write_valid.eq(pending), self.write_address.eq(address), self.write_data.eq(data), self.write_strobe.eq(strobe)]


def _taken(extra: Signal, place: tuple[int, int]) -> Value:
    return extra[place[0] : place[0] + place[1]]
