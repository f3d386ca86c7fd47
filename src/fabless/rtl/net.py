"""The net unit: sends to the next tile of the ring, receives from the one before, adds what is received in order."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from amaranth.hdl import C, Cat, Elaboratable, Module, Mux, Signal, Value

from fabless.program.isa import LATENCY, WORD_BITS, Queue
from fabless.program.timing import LINK_QUEUE_BEATS, ceil
from fabless.rtl.decoder import bits, is_a, value
from fabless.rtl.floating import FloatAdd, state
from fabless.rtl.load import log2
from fabless.rtl.memory import Ram, index_bits
from fabless.rtl.sequencer import ADDRESS_BITS, extra_bits, extra_layout

if TYPE_CHECKING:
    from fabless.rtl.block import Shared

#: Bytes of an activation word with its scale.
WORD_BYTES = 34


class Net(Elaboratable):
    """Execute `send` and `recv`, a beat of N bytes a cycle each, one of both beside the other.

    Queue: `go`, `word`, `extra` in; `idle` out tells that the instruction at the queue's head may start: a `recv` when the last one is over and the
    running `send`, if any, reads elsewhere (`stays`: the head is what it was two cycles before); all else when both halves are `quiet`.
    Link out: `link_valid` with `link_data`, never refused: one credit a beat, LINK_QUEUE_BEATS at reset, each back by a cycle of `credit`. Link in:
    `arrive_valid` with `arrive_data` are always taken, `credit_out` is high in the cycle after a beat left the queue. A beat is LINK bytes: min(L, N / 4)
    elements, or the next N bytes of a word of 32 int8 and their scale.
    Buffers: `vector_read`, `vector_address`, `word_read`, `word_address`, data one cycle later; `add_read`, `add_address` as a beat leaves the queue,
    `add_data` one cycle later; writes `write` (one bit a lane), `write_address`, `write_data` and `block_write`, `block_address`, `block`, `block_scale`.
    A beat is on the link two cycles after its step, and written three (a word: two) after it left the queue; SEND_FILL and RECV_FILL cover these.
    """

    def __init__(self, shared: Shared) -> None:
        self.tile, self.shared = shared.tile, shared
        n, lanes = shared.tile.link_bytes_per_cycle, shared.tile.vector_lanes
        #: Elements of a beat, beats of a group of lanes, beats of a word.
        self.elements = min(lanes, n // 4)
        self.group_beats, self.word_beats = lanes // self.elements, ceil(WORD_BYTES, n)
        self.go, self.word, self.extra = Signal(), Signal(WORD_BITS), Signal(extra_bits(Queue.NET))
        self.idle, self.quiet, self.stays = Signal(), Signal(), Signal()
        self.link_valid, self.link_data, self.credit = Signal(), Signal(8 * n, reset_less=True), Signal()
        self.arrive_valid, self.arrive_data, self.credit_out = Signal(), Signal(8 * n), Signal()
        self.vector_read, self.vector_address, self.vector_data = Signal(), Signal(ADDRESS_BITS), Signal(32 * lanes)
        self.word_read, self.word_address, self.word_data = Signal(), Signal(ADDRESS_BITS), Signal(8 * WORD_BYTES)
        self.add_read, self.add_address, self.add_data = Signal(), Signal(ADDRESS_BITS), Signal(32 * lanes)
        self.write, self.write_address, self.write_data = Signal(lanes), Signal(ADDRESS_BITS), Signal(32 * lanes)
        self.block_write, self.block_address = Signal(), Signal(ADDRESS_BITS)
        self.block, self.block_scale = Signal(8 * 32), Signal(16)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        layout = extra_layout(Queue.NET)
        source, target = (self.extra[first : first + width] for first, width in (layout["src"], layout["dst"]))
        count, in_words = value(self.word, "send", "count"), bits(self.word, "send", "space")
        receives = is_a(self.word, "recv")
        sending, receiving = Signal(), Signal()
        self._send(m, go=self.go & ~receives, source=source, count=count, in_words=in_words, sending=sending)
        self._receive(m, go=self.go & receives, target=target, count=count, in_words=in_words, receiving=receiving)

        first, behind, words = state(ADDRESS_BITS, "first"), state(ADDRESS_BITS + 1, "behind"), state(1, "words")
        with m.If(self.go & ~receives):
            m.d.sync += [first.eq(source), behind.eq(source + count), words.eq(in_words)]
        # Whether a `recv` writes apart from what is being sent is known two cycles after it has come to the head of its queue, and waited for.
        apart = Signal()
        head, ends = state(ADDRESS_BITS, "head"), state(ADDRESS_BITS + 1, "head_ends")
        m.d.sync += [
            head.eq(target), ends.eq(target + count), apart.eq((words != in_words) | (head >= behind) | (ends <= first)),
        ]  # fmt: skip
        m.d.comb += [
            self.quiet.eq(~sending & ~receiving),
            self.idle.eq(Mux(receives, ~receiving & self.stays & (~sending | apart), self.quiet)),
        ]  # fmt: skip
        return m

    def _walk(self, m: Module, name: str, *, go: Value, step: Value, at: Value, count: Value, in_words: Value) -> dict[str, Signal]:
        """Return the state of a walk over a message, a beat a step: what is left, where it stands, and whether the beat is its word's last."""
        is_words, left = state(1, f"{name}_words"), state(17, f"{name}_left")
        address, sub = state(ADDRESS_BITS, f"{name}_address"), state(max(self.group_beats, self.word_beats).bit_length(), f"{name}_sub")
        active, last_sub, last = Signal(name=f"{name}_active"), Signal(name=f"{name}_last_sub"), Signal(name=f"{name}_last")
        m.d.comb += [
            last_sub.eq(sub == Mux(is_words, self.word_beats - 1, self.group_beats - 1)),
            last.eq(Mux(is_words, last_sub & (left == 1), left <= self.elements)),
        ]  # fmt: skip
        with m.If(go):
            m.d.sync += [
                active.eq(1), is_words.eq(in_words), left.eq(count), sub.eq(0), address.eq(Mux(in_words, at, at >> log2(self.tile.vector_lanes))),
            ]  # fmt: skip
        with m.Elif(step):
            m.d.sync += [
                sub.eq(Mux(last_sub, 0, sub + 1)), address.eq(address + last_sub), left.eq(left - Mux(is_words, last_sub, self.elements)),
                active.eq(~last),
            ]  # fmt: skip
        return {"active": active, "words": is_words, "left": left, "address": address, "sub": sub, "last_sub": last_sub, "last": last}

    def _send(self, m: Module, *, go: Value, source: Value, count: Value, in_words: Value, sending: Signal) -> None:
        """Read, choose the beat, put it on the link: a step takes a credit, so that nothing behind it ever waits."""
        n = self.tile.link_bytes_per_cycle
        credits, step = Signal(range(LINK_QUEUE_BEATS + 1), init=LINK_QUEUE_BEATS), Signal(name="send_step")
        walk = self._walk(m, "send", go=go, step=step, at=source, count=count, in_words=in_words)
        m.d.comb += step.eq(walk["active"] & (credits != 0))
        m.d.sync += credits.eq(credits + self.credit - step)
        m.d.comb += [
            self.vector_read.eq(step & ~walk["words"] & (walk["sub"] == 0)), self.vector_address.eq(walk["address"]),
            self.word_read.eq(step & walk["words"] & (walk["sub"] == 0)), self.word_address.eq(walk["address"]),
        ]  # fmt: skip
        valid1, words1, sub1 = Signal(name="send_valid1"), state(1, "send_words1"), state(len(walk["sub"]), "send_sub1")
        m.d.sync += [valid1.eq(step), words1.eq(walk["words"]), sub1.eq(walk["sub"])]
        beat = Signal(8 * n)
        padded = Cat(self.word_data, C(0, 8 * (n * self.word_beats - WORD_BYTES)))
        elements = (
            self.vector_data.word_select(sub1[: log2(self.group_beats)], 32 * self.elements) if self.group_beats > 1 else self.vector_data
        )
        with m.If(words1), m.Switch(sub1):
            for i in range(self.word_beats):
                with m.Case(i):
                    m.d.comb += beat.eq(padded[8 * n * i : 8 * n * i + 8 * n])
        with m.Else():
            m.d.comb += beat.eq(elements)
        with m.If(valid1):
            m.d.sync += self.link_data.eq(beat)
        m.d.sync += self.link_valid.eq(valid1)
        m.d.comb += sending.eq(walk["active"] | valid1 | self.link_valid)
        assert LATENCY["SEND_FILL"] == 3

    def _receive(self, m: Module, *, go: Value, target: Value, count: Value, in_words: Value, receiving: Signal) -> None:
        """Take beats from the queue; add elements to what is here or hold them as long, gather words; write."""
        n, lanes = self.tile.link_bytes_per_cycle, self.tile.vector_lanes
        queue = Ram(width=8 * n, depth=LINK_QUEUE_BEATS, name="arrivals")
        queue.place(m)
        level, write, read = (
            Signal(range(LINK_QUEUE_BEATS + 1)),
            *(Signal(index_bits(LINK_QUEUE_BEATS), name=f"{w}_at") for w in ("in", "out")),
        )
        take, adds = Signal(), state(1, "adds")
        walk = self._walk(m, "recv", go=go, step=take, at=target, count=count, in_words=in_words)
        with m.If(go):
            m.d.sync += adds.eq(bits(self.word, "recv", "add"))
        m.d.comb += [
            take.eq(walk["active"] & (level != 0)), queue.write[0].enable.eq(self.arrive_valid), queue.write[0].address.eq(write),
            queue.write[0].data.eq(self.arrive_data), queue.read[0].enable.eq(take), queue.read[0].address.eq(read),
            self.add_read.eq(take & adds & ~walk["words"]), self.add_address.eq(walk["address"]),
        ]  # fmt: skip
        m.d.sync += [
            level.eq(level + self.arrive_valid - take), write.eq(write + self.arrive_valid), read.eq(read + take), self.credit_out.eq(take),
        ]  # fmt: skip

        # One beat, one, two and three cycles behind the queue: which lanes it fills, where, and whether it ends a word.
        enables = Signal(lanes)
        for lane in range(lanes):
            part, place = divmod(lane, self.elements)
            m.d.comb += enables[lane].eq(take & ~walk["words"] & (walk["sub"] == part) & (walk["left"] > place))
        sub1, adds1 = state(len(walk["sub"]), "recv_sub1"), state(1, "adds1")
        valid = Signal(3, name="recv_valid")
        m.d.sync += [sub1.eq(walk["sub"]), adds1.eq(adds), valid.eq(Cat(take, valid[:-1]))]
        lanes_at = [Signal(lanes, name=f"lanes{i}") for i in (1, 2, 3)]
        address_at = [state(ADDRESS_BITS, f"address{i}") for i in (1, 2, 3)]
        ends_word = [Signal(name=f"ends_word{i}") for i in (1, 2)]
        for chain, start in ((lanes_at, enables), (address_at, walk["address"]), (ends_word, take & walk["words"] & walk["last_sub"])):
            m.d.sync += [b.eq(a) for a, b in pairwise((start, *chain))]

        beat, here = queue.read[0].data, Signal(32 * self.elements)
        m.d.comb += here.eq(
            self.add_data.word_select(sub1[: log2(self.group_beats)], 32 * self.elements) if self.group_beats > 1 else self.add_data
        )
        held = [state(32 * self.elements, f"held{i}") for i in (2, 3)]
        adds_at = [state(1, f"adds{i}") for i in (2, 3)]
        m.d.sync += [held[0].eq(beat), held[1].eq(held[0]), adds_at[0].eq(adds1), adds_at[1].eq(adds_at[0])]
        results = []
        for i in range(self.elements):
            code = slice(32 * i, 32 * i + 32)
            adder = self.shared.place(m, FloatAdd, f"adder{i}", a=beat[code], b=here[code])
            results.append(Mux(adds_at[1], adder["y"], held[1][code]))
        m.d.comb += [
            self.write.eq(lanes_at[2]),
            self.write_address.eq(address_at[2]),
            self.write_data.eq(Cat(results).replicate(self.group_beats)),
        ]

        gathered = state(8 * n * self.word_beats, "gathered")
        with m.If(valid[0]):
            m.d.sync += gathered.eq(Cat(gathered[8 * n :], beat))
        m.d.comb += [
            self.block_write.eq(ends_word[1]), self.block_address.eq(address_at[1]), self.block.eq(gathered[:256]),
            self.block_scale.eq(gathered[256 : 256 + 16]), receiving.eq(walk["active"] | valid.any()),
        ]  # fmt: skip
        assert LATENCY["RECV_FILL"] == 4
