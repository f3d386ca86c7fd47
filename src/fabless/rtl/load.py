"""The load unit: a 2-D strided read of memory into a buffer, decoding formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amaranth.hdl import C, Cat, Elaboratable, Module, Mux, Signal, Value

from fabless.program.isa import FORMAT_BITS, LATENCY, LOAD_FORMATS, MEMORY_FORMATS, TARGETS, WORD_BITS, Queue
from fabless.rtl.convert import bf16_flushed, e4m3, e8m0, fp16, from_int8, nibble
from fabless.rtl.decoder import bits, value
from fabless.rtl.floating import flushed, state
from fabless.rtl.memory import Ram, index_bits
from fabless.rtl.sequencer import ADDRESS_BITS, extra_bits, extra_layout

if TYPE_CHECKING:
    from fabless.program.tile import Tile


def unit_bytes(target: str, format: str, tile: Tile) -> int:
    """Return the bytes in memory of what one buffer cycle takes: a word, or `vector_lanes` elements."""
    elements = {"w": 32 * tile.rows, "ws": tile.rows, "a": 32, "as": 1, "ab": 1, "v": tile.vector_lanes}[target]
    return elements * FORMAT_BITS[format] // 8


def log2(n: int) -> int:
    """Return the logarithm of a power of two."""
    assert n == 1 << n.bit_length() - 1, n
    return n.bit_length() - 1


class Load(Elaboratable):
    """Execute `load`.

    Queue: `go`, `word`, `extra` in, `idle` out (see `queue.Queue`). Memory read channel: `read_valid`, `read_ready`, `read_address` (of a beat of B
    bytes); answers `answer_valid`, `answer_data` come in order, at least one cycle later, and are always taken: at most `tile.read_queue_beats`
    are outstanding or queued. Buffers: one write a cycle, registered: `weight_*` (enables of half rows), `scale_*`, `activation_*`, `vector_*` (one
    bank a lane). Per row of memory max(ceil(row_bytes, B), units) steps, one more where a row of several beats does not start at a beat; then
    LOAD_FILL.
    """

    def __init__(self, tile: Tile) -> None:
        self.tile = tile
        b, r, lanes = tile.memory_bytes_per_cycle, tile.rows, tile.vector_lanes
        self.go, self.word, self.extra, self.idle = Signal(), Signal(WORD_BITS), Signal(extra_bits(Queue.LOAD)), Signal()
        self.read_valid, self.read_ready, self.read_address = Signal(), Signal(), Signal(40)
        self.answer_valid, self.answer_data = Signal(), Signal(8 * b)
        self.weight_enable, self.weight_data = Signal(2 * r), Signal(256 * r)
        self.scale_enable, self.scale_data = Signal(r), Signal(19 * r)
        self.activation_enable, self.activation_data = Signal(2), Signal(256)
        self.activation_scale_enable, self.activation_scale_data = Signal(), Signal(16)
        self.vector_enable, self.vector_data = Signal(lanes), Signal(32 * lanes)
        self.word_address, self.vector_address = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        self.vector_carry = Signal(lanes)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        self._decode(m)
        busy, drain = Signal(), Signal(4)
        m.d.comb += self.idle.eq(~busy)
        finished = Signal()
        with m.If(self.go):
            m.d.sync += [busy.eq(1), drain.eq(0)]
        with m.Elif(finished):
            m.d.sync += drain.eq(drain + 1)
            # the steps end LOAD_FILL - 3 cycles before the unit is free: the request, its answer and the queue came before them
            with m.If(drain == LATENCY["LOAD_FILL"] - 4):
                m.d.sync += busy.eq(0)
        popped = Signal()
        self._request(m, popped=popped)
        self._consume(m, busy=busy, finished=finished, popped=popped)
        return m

    def _decode(self, m: Module) -> None:
        """Take the operands, and what follows from target and format, into registers."""
        tile, b = self.tile, self.tile.memory_bytes_per_cycle
        layout = extra_layout(Queue.LOAD)
        target, format = bits(self.word, "load", "target"), bits(self.word, "load", "format")
        self.target, self.format = state(3, "target"), state(4, "format")
        self.count, self.stride = state(17, "count"), state(32, "stride")
        self.bytes_row, self.emissions = state(36, "bytes_row"), state(24, "emissions")
        self.log_chunk, self.parts = state(4, "log_chunk"), state(8, "parts")
        self.chunk_elements = state(7, "chunk_elements")
        self.row_address, self.rows = state(40, "row_address"), Signal(11)
        self.request_address, self.request_rows = state(40, "request_address"), Signal(11)
        count = value(self.word, "load", "count")
        address_first, address_width = layout["address"]
        address = self.extra[address_first : address_first + address_width]
        with m.If(self.go):
            m.d.sync += [
                self.target.eq(target), self.format.eq(format), self.count.eq(count), self.stride.eq(bits(self.word, "load", "stride")),
                self.rows.eq(value(self.word, "load", "rows")), self.request_rows.eq(value(self.word, "load", "rows")),
                self.row_address.eq(address), self.request_address.eq(address),
            ]  # fmt: skip
            with m.Switch(Cat(format, target)):
                for i, t in enumerate(TARGETS):
                    for f in LOAD_FORMATS.get(t, ()):
                        unit = unit_bytes(t, f, tile)
                        chunk = min(unit, b)
                        row_bytes = count * (FORMAT_BITS[f] // 8) if t == "v" else count << log2(unit)
                        with m.Case(i << 4 | MEMORY_FORMATS.index(f)):
                            m.d.sync += [
                                self.bytes_row.eq(row_bytes), self.log_chunk.eq(log2(chunk)), self.parts.eq(unit // chunk - 1),
                                self.emissions.eq((row_bytes + (chunk - 1)) >> log2(chunk)),
                                self.chunk_elements.eq(chunk * 8 // FORMAT_BITS[f] if t == "v" else 0),
                            ]  # fmt: skip

    def beats(self, address: Value) -> Value:
        """Return how many beats the row at `address` touches."""
        b = self.tile.memory_bytes_per_cycle
        return (address[: log2(b)] + self.bytes_row + (b - 1)) >> log2(b)

    def _request(self, m: Module, *, popped: Signal) -> None:
        """Ask for every beat, one a cycle, while the answer queue has room for the answer."""
        b, room = self.tile.memory_bytes_per_cycle, self.tile.read_queue_beats
        used, index, accepted = Signal(range(room + 1)), Signal(32), Signal()
        self.used = used
        m.d.comb += [
            self.read_valid.eq((self.request_rows != 0) & (used != room)),
            self.read_address.eq((self.request_address[log2(b) :] + index) << log2(b)), accepted.eq(self.read_valid & self.read_ready),
        ]  # fmt: skip
        m.d.sync += used.eq(used + accepted - popped)
        with m.If(accepted):
            m.d.sync += index.eq(index + 1)
            with m.If(index + 1 == self.beats(self.request_address)):
                m.d.sync += [
                    index.eq(0), self.request_address.eq(self.request_address + self.stride), self.request_rows.eq(self.request_rows - 1),
                ]  # fmt: skip

    def _consume(self, m: Module, *, busy: Signal, finished: Signal, popped: Signal) -> None:
        """Take beats from the queue and write chunks, one step a cycle."""
        b, room = self.tile.memory_bytes_per_cycle, self.tile.read_queue_beats
        queue = Ram(width=8 * b, depth=room, name="answers")
        queue.place(m)
        level, write, read = Signal(range(room + 1)), Signal(index_bits(room)), Signal(index_bits(room))
        m.d.comb += [
            queue.write[0].enable.eq(self.answer_valid), queue.write[0].address.eq(write), queue.write[0].data.eq(self.answer_data),
            queue.read[0].enable.eq(popped), queue.read[0].address.eq(read),
        ]  # fmt: skip
        m.d.sync += [write.eq(write + self.answer_valid), read.eq(read + popped), level.eq(level + self.answer_valid - popped)]

        # Stage 0: what this step does.
        offset = self.row_address[: log2(b)]
        beats = self.beats(self.row_address)
        emitted, taken, sub = Signal(24), Signal(32), Signal(log2(b) + 1)
        split_row, bubble, wants, step, last = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            split_row.eq((offset != 0) & (beats != 1)), bubble.eq(split_row & (taken == 0)),
            wants.eq(bubble | ((sub == 0) & (taken != beats))), step.eq((self.rows != 0) & (~wants | (level != 0))),
            popped.eq(step & wants), last.eq(~bubble & (emitted + 1 == self.emissions)), finished.eq(busy & (self.rows == 0)),
        ]  # fmt: skip
        steps_in_beat = Signal(log2(b) + 1)
        m.d.comb += steps_in_beat.eq(C(b, log2(b) + 1) >> self.log_chunk)
        row_parity = Signal()
        with m.If(self.go):
            m.d.sync += [emitted.eq(0), taken.eq(0), sub.eq(0), row_parity.eq(0)]
        with m.If(step):
            m.d.sync += taken.eq(taken + popped)
            with m.If(~bubble):
                m.d.sync += [emitted.eq(emitted + 1), sub.eq(Mux(sub + 1 == steps_in_beat, 0, sub + 1))]
            with m.If(last):
                m.d.sync += [
                    emitted.eq(0), taken.eq(0), sub.eq(0), self.rows.eq(self.rows - 1), self.row_address.eq(self.row_address + self.stride),
                    row_parity.eq(~row_parity),
                ]  # fmt: skip

        # Stage 1: the beat is here; form B bytes of the row.
        s1 = {
            n: state(w, f"{n}1")
            for n, w in (("split", 1), ("popped", 1), ("offset", log2(b)), ("sub", log2(b) + 1), ("first", 1), ("parity", 1))
        }
        emit1 = Signal()
        m.d.sync += [
            emit1.eq(step & ~bubble), s1["split"].eq(split_row), s1["popped"].eq(popped), s1["offset"].eq(offset), s1["sub"].eq(sub),
            s1["first"].eq(emitted == 0), s1["parity"].eq(row_parity),
        ]  # fmt: skip
        previous, row_beat, moved = state(8 * b, "previous"), state(8 * b, "row_beat"), Signal(8 * b)
        beat = queue.read[0].data
        with m.If(s1["popped"]):
            m.d.sync += previous.eq(beat)
        granule = min(32, b)
        low, high = Mux(s1["split"], previous, beat), Mux(s1["split"], beat, 0)
        m.d.comb += moved.eq(low)
        for i in range(1, b // granule):
            with m.If(s1["offset"][log2(granule) :] == i):
                m.d.comb += moved.eq(Cat(low[8 * granule * i :], high[: 8 * granule * i]))
        fine = s1["offset"][: log2(granule)]
        few = Signal(32)
        m.d.comb += few.eq(moved[: 8 * granule] >> (fine << 3))
        emit2, sub2, first2, parity2 = Signal(), state(log2(b) + 1, "sub2"), state(1, "first2"), state(1, "parity2")
        m.d.sync += [emit2.eq(emit1), sub2.eq(s1["sub"]), first2.eq(s1["first"]), parity2.eq(s1["parity"])]
        with m.If(emit1 & (s1["sub"] == 0)):
            m.d.sync += row_beat.eq(Cat(Mux(fine == 0, moved[:32], few), moved[32:]))

        # Stage 2: choose the chunk, decode, register.
        chunk = Signal(8 * b)
        shift = Signal(log2(b) + 1)
        m.d.comb += [shift.eq(sub2 << self.log_chunk), chunk.eq(row_beat >> (shift[: log2(b)] << 3))]
        self._write_words(m, emit=emit2, chunk=chunk, parity=parity2)
        self._write_vector(m, emit=emit2, chunk=chunk, is_first=first2)

    def _formats(self, m: Module, name: str) -> dict[str, Signal]:
        """Return one wire a format, high while it is the one being loaded."""
        wires = {f: Signal(name=f"{name}_{f}") for f in MEMORY_FORMATS}
        m.d.comb += [wire.eq(self.format == i) for i, wire in enumerate(wires.values())]
        return wires

    def _write_words(self, m: Module, *, emit: Signal, chunk: Signal, parity: Signal) -> None:
        """Decode a chunk for weights, scales or activations, repeat it over the word, and enable the part that it fills."""
        tile, b, r = self.tile, self.tile.memory_bytes_per_cycle, self.tile.rows
        part = Signal(8)
        with m.If(self.go):
            m.d.sync += part.eq(0)
        with m.If(emit):
            m.d.sync += part.eq(Mux(part == self.parts, 0, part + 1))
        word_address = Signal(ADDRESS_BITS)
        with m.If(self.go):
            m.d.sync += word_address.eq(self.extra[slice(*_range(Queue.LOAD, "dst"))])
        with m.If(emit & (part == self.parts)):
            m.d.sync += word_address.eq(word_address + 1)
        m.d.sync += self.word_address.eq(word_address)

        is_target = {t: self.target == i for i, t in enumerate(TARGETS)}
        is_format = self._formats(m, "word_is")

        # Weights: elements of the chunk as bytes, at most 2 B of them.
        nibbles = Signal(16 * b)
        m.d.comb += nibbles.eq(Cat(nibble(chunk[4 * i : 4 * i + 4], is_e2m1=~is_format["int4"]) for i in range(2 * b)))
        codes = [nibbles[8 * i : 8 * i + 8] for i in range(2 * b)]
        grains = Signal(2 * r)
        is_w = is_target["w"]
        data = self.weight_data
        for format in LOAD_FORMATS["w"]:
            n = min(unit_bytes("w", format, tile), b)
            with m.If(is_format[format]):
                if format == "int8":
                    m.d.sync += data.eq(chunk[: 8 * n].replicate(32 * r // n))
                    per_part = n // 16
                elif format == "e2m1_split":
                    rows = []
                    for i in range(2 * n // 16):
                        half, none = Cat(codes[16 * i : 16 * i + 16]), C(0, 128)
                        rows.append(Cat(Mux(parity, none, half), Mux(parity, half, none)))
                    m.d.sync += data.eq(Cat(rows).replicate(r // len(rows)))
                    per_part = 2 * len(rows)
                else:
                    m.d.sync += data.eq(Cat(codes[: 2 * n]).replicate(32 * r // (2 * n)))
                    per_part = 2 * n // 16
                m.d.comb += [grains[g].eq(part == g // per_part) for g in range(2 * r)]
        m.d.sync += self.weight_enable.eq(Mux(emit & is_w, grains, 0))

        # Weight scales: 16-bit and 8-bit codes.
        wide = [Mux(is_format["bf16"], Cat(C(0, 3), bf16_flushed(c)), fp16(m, c, f"fp16_{i}")) for i in range(min(r, b // 2))
                for c in (chunk[16 * i : 16 * i + 16],)]  # fmt: skip
        halved = is_format["e8m0_half"] | is_format["e4m3_half"]
        is_e8m0 = is_format["e8m0"] | is_format["e8m0_half"]
        narrow = [
            Mux(is_e8m0, e8m0(c, halved=halved), e4m3(c, halved=halved)) for i in range(min(r, b)) for c in (chunk[8 * i : 8 * i + 8],)
        ]
        is_wide = is_format["bf16"] | is_format["fp16"]
        is_ws = emit & is_target["ws"]
        wides, narrows = Signal(19 * len(wide)), Signal(19 * len(narrow))
        m.d.comb += [wides.eq(Cat(wide)), narrows.eq(Cat(narrow))]
        for i in range(r):
            enabled = Mux(is_wide, part == i // len(wide), part == i // len(narrow))
            m.d.sync += [
                self.scale_enable[i].eq(is_ws & enabled),
                self.scale_data[19 * i : 19 * i + 19].eq(Mux(is_wide, wides.word_select(i % len(wide), 19), narrows.word_select(i % len(narrow), 19))),
            ]  # fmt: skip

        # Activations.
        n = min(32, b)
        m.d.sync += [
            self.activation_data.eq(chunk[: 8 * n].replicate(32 // n)),
            self.activation_enable.eq(Mux(emit & is_target["a"], 3 if n == 32 else Mux(part == 0, 1, 2), 0)),
            self.activation_scale_data.eq(bf16_flushed(chunk[:16])), self.activation_scale_enable.eq(emit & is_target["as"]),
        ]  # fmt: skip

    def _write_vector(self, m: Module, *, emit: Signal, chunk: Signal, is_first: Signal) -> None:
        """Decode up to `vector_lanes` elements and rotate them to their banks; rows follow each other without gaps, hence at any lane."""
        b, lanes = self.tile.memory_bytes_per_cycle, self.tile.vector_lanes
        is_v = self.target == TARGETS.index("v")
        is_format = self._formats(m, "vector_is")
        elements = []
        no = C(0, 1)
        for i in range(lanes):
            c8, c16 = chunk[8 * i : 8 * i + 8], chunk[16 * i : 16 * i + 16]
            c32 = chunk[32 * i : 32 * i + 32] if 4 * i + 4 <= b else C(0, 32)
            c16 = c16 if 2 * i + 2 <= b else C(0, 16)
            c8 = c8 if i + 1 <= b else C(0, 8)
            element = Mux(is_format["fp32"], flushed(c32), Mux(is_format["bf16"], Cat(C(0, 16), bf16_flushed(c16)), Mux(
                is_format["fp16"], Cat(C(0, 13), fp16(m, c16, f"v_fp16_{i}")), Mux(is_format["int8"], from_int8(m, c8, f"v_int8_{i}"), Cat(
                    C(0, 13), Mux(is_format["e8m0"], e8m0(c8, halved=no), e4m3(c8, halved=no)))))))  # fmt: skip
            elements.append(element[0:32])
        decoded = Signal(32 * lanes)
        m.d.comb += decoded.eq(Cat(elements))
        left, at = state(17, "left"), state(ADDRESS_BITS, "at")
        before = Mux(is_first, self.count, left)
        valid = Signal(7)
        m.d.comb += valid.eq(Mux(before < self.chunk_elements, before, self.chunk_elements))
        with m.If(self.go):
            m.d.sync += at.eq(self.extra[slice(*_range(Queue.LOAD, "dst"))])
        with m.If(emit):
            m.d.sync += [left.eq(before - valid), at.eq(at + valid)]
        offset = at[: log2(lanes)]
        banked = rotated_left(m, decoded, offset, 32)
        m.d.sync += [self.vector_data.eq(banked), self.vector_address.eq(at >> log2(lanes))]
        for lane in range(lanes):
            place = Signal(log2(lanes), name=f"place{lane}")
            m.d.comb += place.eq(lane - offset)
            m.d.sync += [self.vector_enable[lane].eq(emit & is_v & (place < valid)), self.vector_carry[lane].eq(lane < offset)]


def rotated_left(m: Module, value: Signal, places: Value, unit: int) -> Signal:
    """Return units of `unit` bits moved up by `places`, those that fall out coming in below."""
    for level in range(len(places)):
        step, moved = unit << level, Signal(len(value), name=f"{value.name}_rotated{level}")
        m.d.comb += moved.eq(Mux(places[level], Cat(value[len(value) - step :], value[: len(value) - step]), value))
        value = moved
    return value


def _range(queue: Queue, name: str) -> tuple[int, int]:
    first, width = extra_layout(queue)[name]
    return first, first + width
