"""An instruction queue with its `sync`, and the semaphores between queues."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Elaboratable, Module, Mux, Signal

from fabless.program.isa import N_SEMAPHORES, WORD_BITS
from fabless.rtl.decoder import bits, is_a
from fabless.rtl.memory import index_bits


class Queue(Elaboratable):
    """Hold up to `depth` issued instructions; execute `sync`, hand all others to the unit in order.

    Entry: the word, then the operands that the sequencer added up (`extra_bits`). Handshake: `push` in a cycle in which `full` is low; `go` for one
    cycle when the unit is `idle` and takes `word` and `extra`. An entry can leave in the cycle after it came; its room is free a cycle after it left.
    A sync leaves when the unit is idle and `allowed`; in that cycle `wait` and `signal` are its masks and `fired` is high;
    `held` is high in a cycle in which it is not allowed. `stays`: the head is what it was two cycles
    before. `waits`, `signals`: whether the queue executes that half of a sync; the other mask is 0.
    """

    def __init__(self, *, depth: int, extra_bits: int, waits: bool = True, signals: bool = True) -> None:
        self.depth, self.extra_bits, self.waits, self.signals = depth, extra_bits, waits, signals
        self.push, self.full, self.empty = Signal(), Signal(), Signal(init=1)
        self.push_word, self.push_extra = Signal(WORD_BITS), Signal(extra_bits)
        self.idle, self.go, self.popped = Signal(), Signal(), Signal()
        self.word, self.extra = Signal(WORD_BITS), Signal(extra_bits)
        self.wait, self.signal = Signal(N_SEMAPHORES), Signal(N_SEMAPHORES)
        self.allowed, self.fired, self.held = Signal(), Signal(), Signal()
        self.stays = Signal()

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        width = WORD_BITS + self.extra_bits
        slots = [Signal(width, name=f"slot{i}", reset_less=True) for i in range(self.depth)]
        level, read, write = Signal(range(self.depth + 1)), Signal(index_bits(self.depth)), Signal(index_bits(self.depth))
        head = Signal(width)
        with m.Switch(read):
            for i, slot in enumerate(slots):
                with m.Case(i):
                    m.d.comb += head.eq(slot)
        waiting = is_a(self.word, "sync")
        m.d.comb += [
            self.full.eq(level == self.depth), self.empty.eq(level == 0), Cat(self.word, self.extra).eq(head),
            self.wait.eq(bits(self.word, "sync", "wait") if self.waits else 0),
            self.signal.eq(bits(self.word, "sync", "signal") if self.signals else 0),
            self.fired.eq(~self.empty & self.idle & waiting & self.allowed),
            self.held.eq(~self.empty & self.idle & waiting & ~self.allowed), self.go.eq(~self.empty & self.idle & ~waiting),
            self.popped.eq(self.fired | self.go),
        ]  # fmt: skip
        with m.If(self.push):
            m.d.sync += write.eq(Mux(write == self.depth - 1, 0, write + 1))
            with m.Switch(write):
                for i, slot in enumerate(slots):
                    with m.Case(i):
                        m.d.sync += slot.eq(Cat(self.push_word, self.push_extra))
        with m.If(self.popped):
            m.d.sync += read.eq(Mux(read == self.depth - 1, 0, read + 1))
        stayed = Signal()
        m.d.sync += [
            level.eq(level + self.push - self.popped), stayed.eq(~self.empty & ~self.popped), self.stays.eq(stayed & ~self.empty & ~self.popped),
        ]  # fmt: skip
        return m


class Semaphores(Elaboratable):
    """Count 32 semaphores of 4 bits, as four planes of 32 bits.

    `below`: those at 0; `above`: those at 15. `take` and `give` are masks of one cycle; the counts change in the next. Both at once change nothing.
    """

    def __init__(self) -> None:
        self.take, self.give = Signal(N_SEMAPHORES), Signal(N_SEMAPHORES)
        self.below, self.above = Signal(N_SEMAPHORES), Signal(N_SEMAPHORES)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        planes = [Signal(N_SEMAPHORES, name=f"plane{i}") for i in range(4)]
        carry, borrow = self.give & ~self.take, self.take & ~self.give
        for plane in planes:
            m.d.sync += plane.eq(plane ^ (carry | borrow))
            carry, borrow = carry & plane, borrow & ~plane
        p = planes
        m.d.comb += [self.below.eq(~(p[0] | p[1] | p[2] | p[3])), self.above.eq(p[0] & p[1] & p[2] & p[3])]
        return m
