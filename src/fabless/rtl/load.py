"""The load unit: a 2-D strided read of memory into a buffer, decoding formats."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from amaranth.hdl import C, Cat, Elaboratable, Module, Mux, Signal, Value

from fabless.program.isa import FORMAT_BITS, LATENCY, LOAD_FORMATS, MEMORY_FORMATS, N_SEMAPHORES, TARGETS, WORD_BITS
from fabless.program.isa import Queue as Name
from fabless.rtl.block import named
from fabless.rtl.clock import gated
from fabless.rtl.convert import bf16_flushed, e4m3, e8m0, fp16, from_int8, nibble
from fabless.rtl.decoder import bits, is_a, value
from fabless.rtl.floating import flushed, state
from fabless.rtl.memory import Ram, index_bits
from fabless.rtl.queue import Queue
from fabless.rtl.sequencer import ADDRESS_BITS, extra_bits, extra_layout

if TYPE_CHECKING:
    from fabless.program.tile import Tile


def unit_bytes(target: str, format: str, tile: Tile) -> int:
    """Return the bytes in memory of what one buffer cycle takes: a word, or `vector_lanes` elements."""
    elements = {"w": 32 * tile.rows, "ws": tile.rows, "a": 32, "as": 1, "ab": 1, "v": tile.vector_lanes}[target]
    return elements * FORMAT_BITS[format] // 8


#: What a decoder takes: formats by target. Each ticks only while a `load` of its kind writes.
KINDS = {
    "bytes": {"w": ("int8",), "a": LOAD_FORMATS["a"]},
    "nibbles": {"w": LOAD_FORMATS["w"][1:]},
    "scales": {t: LOAD_FORMATS[t] for t in ("ws", "as")},
    "vectors": {"v": LOAD_FORMATS["v"]},
}

#: The format that a decoder takes where it is none of the others.
UNASKED = {"bytes": {"int8"}, "scales": {"e4m3"}, "vectors": {"e4m3"}}


def weight_period_bytes(tile: Tile) -> int:
    """Return after how many bytes `Load.weight_data` repeats over the rows of a word."""
    b = tile.memory_bytes_per_cycle
    sizes = {f: min(unit_bytes("w", f, tile), b) for f in LOAD_FORMATS["w"]}
    return min(32 * tile.rows, max(sizes["int8"], 2 * sizes["int4"], 4 * sizes["e2m1_split"]))


def log2(n: int) -> int:
    """Return the logarithm of a power of two."""
    assert n == 1 << n.bit_length() - 1, n
    return n.bit_length() - 1


class Load(Elaboratable):
    """Execute `load`, in two halves: one asks memory for beats, instruction after instruction, the other writes what comes, behind it.

    Queue: `go`, `word`, `extra` in, `idle` out (see `queue.Queue`), which tells of the asking half; `synced` is high when a sync has left the queue: what
    it signals waits here until all before it is written, `signal`, `allowed` and `fired` as in `Queue`. As many instructions as the queue holds
    can be on their way from half to half. `quiet`: nothing is left to do.
    Memory read channel: `read_valid`, `read_ready`, `read_address` (of a beat of B
    bytes); answers `answer_valid`, `answer_data` come in order, at least one cycle later, and are always taken: at most `tile.read_queue_beats`
    are outstanding or queued. Buffers: one write a cycle, registered: `weight_*` (enables of half rows; the
    data of the first rows, repeated for the others), `scale_*`, `activation_*`, `vector_*` (one
    bank a lane). Per row of memory max(ceil(row_bytes, B), units) steps, one more where a row of several beats does not start at a beat; a cycle
    between instructions; from the last step to the end LOAD_FILL - 2.
    """

    def __init__(self, tile: Tile) -> None:
        self.tile = tile
        b, r, lanes = tile.memory_bytes_per_cycle, tile.rows, tile.vector_lanes
        self.go, self.word, self.extra, self.idle = Signal(), Signal(WORD_BITS), Signal(extra_bits(Name.LOAD)), Signal()
        self.synced, self.quiet = Signal(), Signal()
        self.wait, self.signal, self.allowed, self.fired = C(0, N_SEMAPHORES), Signal(N_SEMAPHORES), Signal(), Signal()
        self.read_valid, self.read_ready, self.read_address = Signal(), Signal(), Signal(40)
        self.answer_valid, self.answer_data = Signal(), Signal(8 * b)
        self.weight_enable, self.weight_data = Signal(2 * r), Signal(8 * weight_period_bytes(tile))
        self.scale_enable, self.scale_data = Signal(r), Signal(19 * r)
        self.activation_enable, self.activation_data = Signal(2), Signal(256)
        self.activation_scale_enable, self.activation_scale_data = Signal(), Signal(16)
        self.vector_enable, self.vector_data = Signal(lanes), Signal(32 * lanes)
        self.word_address, self.vector_address = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        self.vector_carry = Signal(lanes)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        passed = named(Queue(depth=self.tile.queue_depth, extra_bits=len(self.extra), waits=False))
        m.submodules.passed = passed
        signals = bits(self.word, "sync", "signal") != 0
        m.d.comb += [
            passed.push.eq(self.go | (self.synced & signals)), passed.push_word.eq(self.word), passed.push_extra.eq(self.extra),
            self.signal.eq(passed.signal), passed.allowed.eq(self.allowed), self.fired.eq(passed.fired),
        ]  # fmt: skip
        self._decode(m, passed)
        popped, step = Signal(), Signal()
        self._request(m, popped=popped)
        # a step's words are written LOAD_FILL - 3 cycles behind it; the request, its answer and the queue came before the first
        recent = Signal(LATENCY["LOAD_FILL"] - 3)
        m.d.sync += recent.eq(Cat(step, recent))
        wrote = (self.rows == 0) & (recent == 0)
        m.d.comb += [
            self.idle.eq((self.request_rows == 0) & ~passed.full), self.quiet.eq(wrote & passed.empty),
            passed.idle.eq(Mux(is_a(passed.word, "sync"), wrote, self.rows == 0)),
        ]  # fmt: skip
        self._consume(m, step=step, popped=popped)
        return m

    def _decode(self, m: Module, passed: Queue) -> None:
        """Take the operands, and what follows from target and format, into registers of either half; the stages behind have their own."""
        tile, b = self.tile, self.tile.memory_bytes_per_cycle
        self.begin = passed.go
        self.target, self.format = state(3, "target"), state(4, "format")
        self.count, self.dst = state(17, "count"), state(ADDRESS_BITS, "dst")
        self.emissions, self.log_chunk, self.parts = state(24, "emissions"), state(4, "log_chunk"), state(8, "parts")
        self.takes = {kind: state(1, f"takes_{kind}") for kind in KINDS}
        self.chunk_elements = state(7, "chunk_elements")
        self.rows, self.request_rows = Signal(11), Signal(11)
        self.row_address, self.request_address = state(40, "row_address"), state(40, "request_address")
        self.stride, self.request_stride = state(32, "stride"), state(32, "request_stride")
        self.bytes_row, self.request_bytes_row = state(36, "bytes_row"), state(36, "request_bytes_row")
        address = slice(*_range(Name.LOAD, "address"))
        for taken, word, extra, registers in (
            (self.go, self.word, self.extra, (self.request_rows, self.request_stride, self.request_address)),
            (self.begin, passed.word, passed.extra, (self.rows, self.stride, self.row_address)),
        ):
            values = (value(word, "load", "rows"), bits(word, "load", "stride"), extra[address])
            with m.If(taken):
                m.d.sync += [register.eq(now) for register, now in zip(registers, values, strict=True)]
        with m.If(self.begin):
            m.d.sync += [
                self.target.eq(bits(passed.word, "load", "target")), self.format.eq(bits(passed.word, "load", "format")),
                self.count.eq(value(passed.word, "load", "count")), self.dst.eq(passed.extra[slice(*_range(Name.LOAD, "dst"))]),
            ]  # fmt: skip
        for begins, word in ((self.go, self.word), (self.begin, passed.word)):
            count = value(word, "load", "count")
            with m.If(begins), m.Switch(Cat(bits(word, "load", "format"), bits(word, "load", "target"))):
                for i, t in enumerate(TARGETS):
                    for f in LOAD_FORMATS.get(t, ()):
                        unit = unit_bytes(t, f, tile)
                        chunk = min(unit, b)
                        row_bytes = count * (FORMAT_BITS[f] // 8) if t == "v" else count << log2(unit)
                        with m.Case(i << 4 | MEMORY_FORMATS.index(f)):
                            if begins is self.go:
                                m.d.sync += self.request_bytes_row.eq(row_bytes)
                                continue
                            m.d.sync += [
                                self.bytes_row.eq(row_bytes), self.log_chunk.eq(log2(chunk)), self.parts.eq(unit // chunk - 1),
                                self.emissions.eq((row_bytes + (chunk - 1)) >> log2(chunk)),
                                self.chunk_elements.eq(chunk * 8 // FORMAT_BITS[f] if t == "v" else 0),
                                *(takes.eq(f in KINDS[kind].get(t, ())) for kind, takes in self.takes.items()),
                            ]  # fmt: skip
        # What the stages behind see: a stage's registers are those of the instruction whose step is in it.
        self.stage1 = self._later(m, 1, self.begin, self)
        self.stage2 = self._later(m, 2, self.stage1.begin, self.stage1)

    def _later(self, m: Module, stage: int, begin: Value, before: Any) -> SimpleNamespace:
        """Return what a stage knows of its instruction, a cycle behind the stage before; `begin`: in the cycle before its first step can come."""
        names = ("target", "format", "parts", *(("log_chunk", "count", "chunk_elements", "dst") if stage == 1 else ()))
        now = {name: state(len(getattr(before, name)), f"{name}_{stage}") for name in names}
        takes = {kind: state(1, f"takes_{kind}_{stage}") for kind in KINDS}
        begins = Signal(name=f"begins_{stage}")
        m.d.sync += [
            *(signal.eq(getattr(before, name)) for name, signal in now.items()), *(takes[k].eq(before.takes[k]) for k in KINDS), begins.eq(begin),
        ]  # fmt: skip
        return SimpleNamespace(**now, takes=takes, begin=begins)

    def beats(self, address: Value, row_bytes: Value) -> Value:
        """Return how many beats a row of so many bytes at `address` touches."""
        b = self.tile.memory_bytes_per_cycle
        return (address[: log2(b)] + row_bytes + (b - 1)) >> log2(b)

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
            with m.If(index + 1 == self.beats(self.request_address, self.request_bytes_row)):
                m.d.sync += [
                    index.eq(0), self.request_address.eq(self.request_address + self.request_stride), self.request_rows.eq(self.request_rows - 1),
                ]  # fmt: skip

    def _consume(self, m: Module, *, step: Signal, popped: Signal) -> None:
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
        beats = self.beats(self.row_address, self.bytes_row)
        emitted, taken, sub = Signal(24), Signal(32), Signal(log2(b) + 1)
        split_row, bubble, wants, last = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            split_row.eq((offset != 0) & (beats != 1)), bubble.eq(split_row & (taken == 0)),
            wants.eq(bubble | ((sub == 0) & (taken != beats))), step.eq((self.rows != 0) & (~wants | (level != 0))),
            popped.eq(step & wants), last.eq(~bubble & (emitted + 1 == self.emissions)),
        ]  # fmt: skip
        steps_in_beat = Signal(log2(b) + 1)
        m.d.comb += steps_in_beat.eq(C(b, log2(b) + 1) >> self.log_chunk)
        row_parity = Signal()
        with m.If(self.begin):
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
        emit1, emit2 = Signal(), Signal()
        m.d.sync += [
            emit1.eq(step & ~bubble), s1["split"].eq(split_row), s1["popped"].eq(popped), s1["offset"].eq(offset), s1["sub"].eq(sub),
            s1["first"].eq(emitted == 0), s1["parity"].eq(row_parity), emit2.eq(emit1),
        ]  # fmt: skip
        previous, moved = state(8 * b, "previous"), Signal(8 * b)
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
        self._pieces(m, s1, emit1, emit2, Cat(Mux(fine == 0, moved[:32], few), moved[32:]))
        self._write_words(m, emit=emit2)
        self._write_vector(m, emit=emit2)

    def _pieces(self, m: Module, s1: dict[str, Signal], emit1: Signal, emit2: Signal, row_beat: Value) -> None:
        """Stage 2: hand the bytes to the decoder of the format's kind; only that one ticks, and sees its inputs change."""
        b, lanes = self.tile.memory_bytes_per_cycle, self.tile.vector_lanes
        one, two = self.stage1, self.stage2
        for kind in KINDS:
            gated(m, f"load_{kind}", (one.takes[kind] & emit1) | (two.takes[kind] & emit2))
        w = TARGETS.index("w")
        gated(m, "load_weights", ((one.target == w) & emit1) | ((two.target == w) & emit2))
        self.chunk: dict[str, Signal] = {}
        self.formats: dict[str, dict[str, Signal]] = {}
        for kind, taken in KINDS.items():
            domain = m.d[f"load_{kind}"]
            sizes = {min(unit_bytes(t, f, self.tile), b) for t, formats in taken.items() for f in formats}
            least = log2(min(sizes))
            held, place = state(8 * b, f"{kind}_beat"), state(max(1, log2(b) - least), f"{kind}_place")
            with m.If(emit1 & (s1["sub"] == 0)):
                domain += held.eq(row_beat)
            if least < log2(b):
                domain += place.eq((s1["sub"] << one.log_chunk) >> least)
            chunk = self.chunk[kind] = Signal(8 * max(sizes), name=f"{kind}_chunk")
            moved: Value = held
            for level in range(least, log2(b)):
                moved = Mux(place[level - least], moved[8 << level :], moved)
            m.d.comb += chunk.eq(moved)
            names = sorted({f for formats in taken.values() for f in formats} - UNASKED.get(kind, set()))
            self.formats[kind] = {f: state(1, f"{kind}_is_{f}") for f in names}
            domain += [is_f.eq(one.format == MEMORY_FORMATS.index(f)) for f, is_f in self.formats[kind].items()]
        self.parity, self.is_bytes = state(1, "parity2"), state(1, "is_bytes2")
        m.d.load_nibbles += self.parity.eq(s1["parity"])
        m.d.load_weights += self.is_bytes.eq(one.takes["bytes"])

        # Elements of a vector are counted a stage ahead: what the stage behind uses stands in its own registers.
        left, at, before, valid = state(17, "left"), state(ADDRESS_BITS, "at"), Signal(17), Signal(7)
        m.d.comb += [
            before.eq(Mux(s1["first"], one.count, left)), valid.eq(Mux(before < one.chunk_elements, before, one.chunk_elements)),
        ]  # fmt: skip
        with m.If(one.begin):
            m.d.sync += at.eq(self.dst)
        with m.If(emit1):
            m.d.sync += [left.eq(before - valid), at.eq(at + valid)]
        self.at, self.valid = state(ADDRESS_BITS, "at2"), state(7, "valid2")
        m.d.load_vectors += [self.at.eq(at), self.valid.eq(valid)]
        assert lanes <= 64, "valid counts to 64"

    def _write_words(self, m: Module, *, emit: Signal) -> None:
        """Decode a chunk for weights, scales or activations, repeat it over the word, and enable the part that it fills."""
        b, r = self.tile.memory_bytes_per_cycle, self.tile.rows
        part, word_address, two = Signal(8), Signal(ADDRESS_BITS), self.stage2
        with m.If(two.begin):
            m.d.sync += [part.eq(0), word_address.eq(self.stage1.dst)]
        with m.If(emit):
            m.d.sync += part.eq(Mux(part == two.parts, 0, part + 1))
        with m.If(emit & (part == two.parts)):
            m.d.sync += word_address.eq(word_address + 1)
        m.d.sync += self.word_address.eq(word_address)
        is_target = {t: two.target == i for i, t in enumerate(TARGETS)}
        self._weights(m, grains=part, enable=emit & is_target["w"])

        # Weight scales: 16-bit and 8-bit codes.
        chunk, is_format = self.chunk["scales"], self.formats["scales"]
        wide = [Mux(is_format["bf16"], Cat(C(0, 3), bf16_flushed(c)), fp16(m, c, f"fp16_{i}")) for i in range(min(r, b // 2))
                for c in (chunk[16 * i : 16 * i + 16],)]  # fmt: skip
        halved = is_format["e8m0_half"] | is_format["e4m3_half"]
        is_e8m0 = is_format["e8m0"] | is_format["e8m0_half"]
        narrow = [
            Mux(is_e8m0, e8m0(c, halved=halved), e4m3(c, halved=halved)) for i in range(min(r, b)) for c in (chunk[8 * i : 8 * i + 8],)
        ]
        is_wide = is_format["bf16"] | is_format["fp16"]
        wides, narrows = Signal(19 * len(wide)), Signal(19 * len(narrow))
        m.d.comb += [wides.eq(Cat(wide)), narrows.eq(Cat(narrow))]
        wide_now, is_ws = state(1, "wide_now"), emit & is_target["ws"]
        m.d.sync += wide_now.eq((self.stage1.format == MEMORY_FORMATS.index("bf16")) | (self.stage1.format == MEMORY_FORMATS.index("fp16")))
        for i in range(r):
            m.d.sync += self.scale_enable[i].eq(is_ws & Mux(wide_now, part == i // len(wide), part == i // len(narrow)))
            m.d.load_scales += self.scale_data[19 * i : 19 * i + 19].eq(
                Mux(is_wide, wides.word_select(i % len(wide), 19), narrows.word_select(i % len(narrow), 19))
            )

        # Activations.
        n = min(32, b)
        m.d.load_bytes += self.activation_data.eq(self.chunk["bytes"][: 8 * n].replicate(32 // n))
        m.d.load_scales += self.activation_scale_data.eq(bf16_flushed(chunk[:16]))
        m.d.sync += [
            self.activation_enable.eq(Mux(emit & is_target["a"], 3 if n == 32 else Mux(part == 0, 1, 2), 0)),
            self.activation_scale_enable.eq(emit & is_target["as"]),
        ]  # fmt: skip

    def _weights(self, m: Module, *, grains: Value, enable: Value) -> None:
        """Weights: the chunk's elements as bytes, at most 2 B of them, repeated; the halves of rows that part `grains` of a word fills."""
        tile, b, r = self.tile, self.tile.memory_bytes_per_cycle, self.tile.rows
        source, is_format = self.chunk["nibbles"], self.formats["nibbles"]
        nibbles = Signal(8 * 2 * (len(source) // 8))
        m.d.comb += nibbles.eq(Cat(nibble(source[4 * i : 4 * i + 4], is_e2m1=~is_format["int4"]) for i in range(len(source) // 4)))
        halves = [nibbles[128 * i : 128 * i + 128] for i in range(len(nibbles) // 128)]
        none = C(0, 128)
        split = Cat(Cat(Mux(self.parity, none, half), Mux(self.parity, half, none)) for half in halves)
        width, data = len(self.weight_data), Signal(len(self.weight_data))
        with m.If(self.is_bytes):
            n = min(unit_bytes("w", "int8", tile), b)
            m.d.comb += data.eq(self.chunk["bytes"][: 8 * n].replicate(width // (8 * n)))
        for format in LOAD_FORMATS["w"][1:]:
            with m.Elif(is_format[format]):
                decoded = (split if format == "e2m1_split" else nibbles)[:width]
                m.d.comb += data.eq(decoded.replicate(width // len(decoded)))
        m.d.load_weights += self.weight_data.eq(data)
        filled = Signal(2 * r)
        for format in LOAD_FORMATS["w"]:
            n = min(unit_bytes("w", format, tile), b)
            per_part = {"int8": n, "e2m1_split": 4 * n}.get(format, 2 * n) // 16
            with m.If(self.stage2.format == MEMORY_FORMATS.index(format)):
                m.d.comb += [filled[g].eq(grains == g // per_part) for g in range(2 * r)]
        m.d.sync += self.weight_enable.eq(Mux(enable, filled, 0))

    def _write_vector(self, m: Module, *, emit: Signal) -> None:
        """Decode up to `vector_lanes` elements and rotate them to their banks; rows follow each other without gaps, hence at any lane."""
        lanes = self.tile.vector_lanes
        chunk, is_format = self.chunk["vectors"], self.formats["vectors"]
        elements = []
        no = C(0, 1)
        for i in range(lanes):
            c8, c16, c32 = (chunk[w * i : w * i + w] if w * (i + 1) <= len(chunk) else C(0, w) for w in (8, 16, 32))
            element = Mux(is_format["fp32"], flushed(c32), Mux(is_format["bf16"], Cat(C(0, 16), bf16_flushed(c16)), Mux(
                is_format["fp16"], Cat(C(0, 13), fp16(m, c16, f"v_fp16_{i}")), Mux(is_format["int8"], from_int8(m, c8, f"v_int8_{i}"), Cat(
                    C(0, 13), Mux(is_format["e8m0"], e8m0(c8, halved=no), e4m3(c8, halved=no)))))))  # fmt: skip
            elements.append(element[0:32])
        decoded = Signal(32 * lanes)
        m.d.comb += decoded.eq(Cat(elements))
        offset, present = self.at[: log2(lanes)], Signal(lanes)
        m.d.load_vectors += [self.vector_data.eq(rotated_left(m, decoded, offset, 32)), self.vector_address.eq(self.at >> log2(lanes))]
        for lane in range(lanes):
            place = Signal(log2(lanes), name=f"place{lane}")
            m.d.comb += [place.eq(lane - offset), present[lane].eq(place < self.valid)]
            m.d.load_vectors += self.vector_carry[lane].eq(lane < offset)
        m.d.sync += self.vector_enable.eq(Mux(emit & (self.stage2.target == TARGETS.index("v")), present, 0))


def rotated_left(m: Module, value: Signal, places: Value, unit: int) -> Signal:
    """Return units of `unit` bits moved up by `places`, those that fall out coming in below."""
    for level in range(len(places)):
        step, moved = unit << level, Signal(len(value), name=f"{value.name}_rotated{level}")
        m.d.comb += moved.eq(Mux(places[level], Cat(value[len(value) - step :], value[: len(value) - step]), value))
        value = moved
    return value


def _range(queue: Name, name: str) -> tuple[int, int]:
    first, width = extra_layout(queue)[name]
    return first, first + width
