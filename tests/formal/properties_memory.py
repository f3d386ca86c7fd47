# ruff: noqa: E501 (a mutant reads best on one line; Q is the enumeration of queues)
"""What load and store promise on the ports of memory."""

from __future__ import annotations

from amaranth.hdl import Assume, Cat, Cover, Signal
from proof import FREE_RAM, Mutant, Proof, begun, earlier, opened

from fabless.program.isa import BY_MNEMONIC
from fabless.program.tile import Tile

SYNC = BY_MNEMONIC["sync"].code
BEATS = 4
SMALL = Tile(4, 4, 64, 64, 64, 256, 64, 64, 1 << 26, 16, queue_depth=2, read_queue_beats=BEATS)


def load(rtl):
    """Beats asked for and not yet used, counted by a memory that answers in order, whenever it likes."""
    m = begun()
    unit = rtl.load.Load(SMALL)
    m.submodules.unit, inside = opened(unit)
    level, popped = inside._consume.level, inside._consume.popped
    outstanding, accepted = Signal(8), unit.read_valid & unit.read_ready
    sync = unit.word[:5] == SYNC
    m.d.comb += [
        Assume(~unit.answer_valid | (outstanding != 0)), Assume(~unit.go | (unit.idle & ~sync)), Assume(~unit.synced | (unit.idle & sync)),
        Assume(~(unit.go & unit.synced)),
    ]  # fmt: skip
    step, passed = inside.elaborate.step, inside.elaborate.passed
    stepped = earlier(m, step) | earlier(m, step, 2) | earlier(m, step, 3)
    m.d.sync += outstanding.eq(outstanding + accepted - unit.answer_valid)
    waited = earlier(m, unit.read_valid & ~unit.read_ready)
    m.d.comb += [Cover(level == BEATS), Cover(popped & unit.answer_valid), Cover(waited & unit.read_valid)]
    m.d.comb += [Cover(unit.fired & earlier(m, step, 4)), Cover(unit.go & (unit.rows != 0)), Cover(unit.quiet & earlier(m, step, 4))]
    return (
        m,
        [unit.go, unit.synced, unit.allowed, unit.word, unit.extra, unit.read_ready, unit.answer_valid, unit.answer_data],
        {
            "asks for no more than there is room for": outstanding + level <= BEATS,
            "an answer always finds room": ~unit.answer_valid | (level != BEATS),
            "uses no beat that has not come": ~popped | (level != 0),
            "a request waits unchanged until it is taken": ~waited
            | (unit.read_valid & (unit.read_address == earlier(m, unit.read_address))),
            "a sync signals when all before it is written": ~unit.fired | ~((unit.rows != 0) | stepped),
            "quiet means that all is written, and no instruction is on its way": ~unit.quiet | (passed.empty & (unit.rows == 0) & ~stepped),
            "both halves hold no more than they can": ~(passed.push & passed.full),
            "a signal waits until it is allowed": ~unit.fired | unit.allowed,
            "the asking half takes the next when it has asked for all": ~unit.idle | (unit.request_rows == 0),
            "invariant: what is used up": unit.used == outstanding + level,
            "invariant: recent steps": inside.elaborate.recent == Cat(earlier(m, step), earlier(m, step, 2), earlier(m, step, 3)),
            "invariant: allowed": passed.allowed == unit.allowed,
        },
    )


def store(rtl):
    """Beats that memory takes whenever it likes."""
    m = begun()
    unit = rtl.store.Store(SMALL)
    m.submodules.unit, inside = opened(unit)
    s, steps, strobes = inside.elaborate, inside._steps, inside._strobes
    waits, offer = unit.write_valid & ~unit.write_ready, Cat(unit.write_address, unit.write_data, unit.write_strobe)
    m.d.comb += Assume(~unit.go | unit.idle)
    waited = earlier(m, waits)
    m.d.comb += [Cover(waited & unit.write_valid), Cover(earlier(m, unit.write_valid) & unit.idle)]
    free = [unit.go, unit.word, unit.extra, unit.write_ready, unit.activation_data, unit.activation_scale_data, unit.vector_data]
    return (
        m,
        free,
        {
            "a beat waits unchanged until it is taken": ~waited | (unit.write_valid & (offer == earlier(m, offer))),
            "nothing is read while a beat waits": ~waits | ~unit.read_enable,
            "idle means that every beat is taken": ~unit.idle | ~unit.write_valid,
            "invariant: idle means that no row is left": ~unit.idle | (unit.rows == 0),
            "invariant: the first stage drains": ~((unit.rows == 0) & ((s.drain >= 1) | unit.idle)) | ~steps.valid1,
            "invariant: the second stage drains": ~((unit.rows == 0) & ((s.drain >= 2) | unit.idle)) | ~steps.valid2,
            "invariant: no draining before the last row": (unit.rows == 0) | (s.drain == 0),
            "invariant: drain": unit.idle | (s.drain <= 2),
            "invariant: pending": strobes.pending == unit.write_valid,
        },
    )


PROOFS = (
    Proof(
        "load port", load, depth=9, stubs=FREE_RAM,
        mutants=(
            Mutant("load", "(self.request_rows != 0) & (used != room)", "self.request_rows != 0", "asks for no more than there is room for"),
            Mutant("load", "used.eq(used + accepted - popped)", "used.eq(used + accepted - self.answer_valid)", "an answer always finds room"),
            Mutant("load", "(~wants | (level != 0))", "1", "uses no beat that has not come"),
            Mutant("load", 'LATENCY["LOAD_FILL"] - 3)', 'LATENCY["LOAD_FILL"] - 4)', "a sync signals when all before it is written"),
            Mutant("load", 'Mux(is_a(passed.word, "sync"), wrote, self.rows == 0)', "self.rows == 0", "a sync signals when all before it is written"),
            Mutant("load", "self.quiet.eq(wrote & passed.empty)", "self.quiet.eq(wrote)", "quiet means that all is written, and no instruction is on its way"),
            Mutant("load", "(self.request_rows == 0) & ~passed.full", "self.request_rows == 0", "both halves hold no more than they can"),
            Mutant("load", "passed.allowed.eq(self.allowed)", "passed.allowed.eq(1)", "a signal waits until it is allowed"),
            Mutant("load", "(self.request_rows == 0) & ~passed.full", "~passed.full", "the asking half takes the next when it has asked for all"),
            Mutant("load", "with m.If(accepted):", "with m.If(self.read_valid):", "a request waits unchanged until it is taken"),
        ),
    ),
    Proof(
        "store port", store, depth=9,
        mutants=(
            Mutant("store", "        with m.If(go_on):\n            m.d.sync += pending", "        with m.If(1):\n            m.d.sync += pending", "a beat waits unchanged until it is taken"),
            Mutant("store", "step.eq((self.rows != 0) & go_on)", "step.eq(self.rows != 0)", "nothing is read while a beat waits"),
            Mutant("store", 'drain == LATENCY["STORE_FILL"] - 2', 'drain == LATENCY["STORE_FILL"] - 4', "idle means that every beat is taken"),
            Mutant("store", "with m.Elif(busy & (self.rows == 0) & go_on):", "with m.Elif(busy & (self.rows == 0)):", "idle means that every beat is taken"),
        ),
    ),
)  # fmt: skip
