# ruff: noqa: E501, N817 (a mutant reads best on one line; Q is the enumeration of queues)
"""What instruction queues, semaphores and the wiring between them promise."""

from __future__ import annotations

from types import SimpleNamespace

from amaranth.hdl import Array, Assume, Cat, Const, Cover, Elaboratable, Module, Mux, Signal
from proof import Mutant, Proof, begun, earlier, opened, steady

from fabless.program.isa import BY_MNEMONIC, N_SEMAPHORES, WORD_BITS
from fabless.program.isa import Queue as Q

SYNC = BY_MNEMONIC["sync"].code


def queue(depth: int):
    """A watched entry, chosen freely among all that are pushed, leaves in its turn with its content; nothing leaves out of turn."""

    def build(rtl):
        m = begun()
        q = rtl.queue.Queue(depth=depth, extra_bits=4)
        m.submodules.q, inside = opened(q)
        s = inside.elaborate
        watch = Signal()
        m.d.comb += Assume(~(q.push & q.full))
        held, watching, ahead, kept = Signal(8), Signal(), Signal(8), Signal(len(q.word) + len(q.extra))
        m.d.sync += held.eq(held + q.push - q.popped)
        with m.If(~watching & watch & q.push):
            m.d.sync += [watching.eq(1), ahead.eq(held - q.popped), kept.eq(Cat(q.push_word, q.push_extra))]
        with m.Elif(watching & q.popped):
            m.d.sync += [ahead.eq(ahead - 1), watching.eq(ahead != 0)]
            sync = q.word[:5] == SYNC
        place = Mux(s.read + ahead >= depth, s.read + ahead - depth, s.read + ahead)
        m.d.comb += [
            Cover(q.full & q.go),
            Cover(q.fired & (q.wait != 0)),
            Cover(watching & q.popped & (ahead == 0) & (s.read == depth - 1)),
        ]
        return (
            m,
            [q.push, q.push_word, q.push_extra, q.idle, q.allowed, watch],
            {
                "full when it holds depth entries": q.full == (held == depth),
                "empty when it holds none": q.empty == (held == 0),
                "never holds more than depth": held <= depth,
                "nothing leaves an empty queue": ~(q.popped & q.empty),
                "entries leave in order and unchanged": ~(watching & (ahead == 0)) | (Cat(q.word, q.extra) == kept),
                "what leaves is either handed on or executed here": q.popped == (q.go ^ q.fired),
                "the unit takes only when idle, and no sync": ~q.go | (q.idle & ~sync),
                "a sync leaves only when the unit is idle and it is allowed": ~q.fired | (q.idle & sync & q.allowed),
                "a head that stays is what it was": ~q.stays | (Cat(q.word, q.extra) == earlier(m, Cat(q.word, q.extra), 2)),
                "an idle unit takes at once": (held == 0) | ~q.idle | (sync & ~q.allowed) | q.popped,
                # What holds in every reachable state, for the inductive step.
                "invariant: a head that stayed is what it was": ~s.stayed | (Cat(q.word, q.extra) == earlier(m, Cat(q.word, q.extra))),
                "invariant: level": s.level == held,
                "invariant: pointers are in range": (s.read < depth) & (s.write < depth),
                "invariant: write is level behind read": s.write == Mux(s.read + held >= depth, s.read + held - depth, s.read + held),
                "invariant: the watched entry is inside": ~watching | (ahead < held),
                "invariant: the watched entry stands in its slot": ~watching | (Array(s.slots)[place] == kept),
            },
        )

    return build


def semaphores(rtl):
    """Any one of the 32 semaphores, chosen freely, counts."""
    m = begun()
    sem = rtl.queue.Semaphores()
    m.submodules.sem, inside = opened(sem)
    which, count = Signal(range(N_SEMAPHORES)), Signal(6)
    steady(m, which)
    take, give, below, above = (mask.bit_select(which, 1) for mask in (sem.take, sem.give, sem.below, sem.above))
    m.d.comb += [Assume(~(take & below)), Assume(~(give & above))]
    m.d.sync += count.eq(count + give - take)
    m.d.comb += [Cover(above & (which == 31)), Cover(take & give), Cover((count == 2) & take & ~give)]
    return (
        m,
        [sem.take, sem.give, which],
        {
            "below at 0 alone": below == (count == 0),
            "above at 15 alone": above == (count == 15),
            "never more than 15 nor less than 0": count <= 15,
            "invariant: planes hold the count": Cat(p.bit_select(which, 1) for p in inside.elaborate.planes) == count,
        },
    )


class _Control(Elaboratable):
    """The wiring of `TileTop`, between a free sequencer and free units; one semaphore is counted, the others are free."""

    def __init__(self, rtl) -> None:
        self.rtl = rtl
        self.queue_depth, self.tile = 2, self
        self.popped, self.cycles, self.start, self.done = Signal(6), Signal(48), Signal(), Signal()
        self.host_program, self.host_parameter, self.host_address, self.host_data = Signal(), Signal(), Signal(32), Signal(WORD_BITS)
        self.sequencer = SimpleNamespace(
            push=Signal(6), full=Signal(6), word=Signal(WORD_BITS), all_idle=Signal(), start=Signal(), done=Signal(), retired=Signal(),
            extra={q: Signal(rtl.sequencer.extra_bits(q)) for q in Q if q != Q.CTRL},
            wait=Signal(N_SEMAPHORES), signal=Signal(N_SEMAPHORES), allowed=Signal(), fired=Signal(),
            host_program=Signal(), host_parameter=Signal(), host_address=Signal(32), host_data=Signal(WORD_BITS),
        )  # fmt: skip
        self.units = {
            q: SimpleNamespace(
                idle=Signal(name=f"idle_{q.name}"), go=Signal(), word=Signal(WORD_BITS), extra=Signal(rtl.sequencer.extra_bits(q))
            )
            for q in Q
            if q != Q.CTRL
        }
        self.units[Q.NET].quiet, self.units[Q.LOAD].quiet, self.units[Q.NET].stays = Signal(), Signal(), Signal()
        vars(self.units[Q.LOAD]).update(
            synced=Signal(), wait=Const(0, N_SEMAPHORES), signal=Signal(N_SEMAPHORES), allowed=Signal(), fired=Signal()
        )
        self.below, self.above = Signal(N_SEMAPHORES), Signal(N_SEMAPHORES)

    def elaborate(self, platform):
        m = Module()
        outer = self

        class Counted(Elaboratable):
            take, give, below, above = Signal(N_SEMAPHORES), Signal(N_SEMAPHORES), outer.below, outer.above

            def elaborate(self, platform):
                return Module()

        self.rtl.tile.Semaphores = Counted
        self.rtl.tile.TileTop._control(self, m, self.sequencer, self.units)
        return m


def control(rtl):
    """Tokens are conserved: with one queue that signals and one that waits, each signal lets exactly one wait pass, and never more than 15 stand."""
    rtl.fresh("tile")  # its semaphores are replaced
    m = begun()
    top = _Control(rtl)
    m.submodules.top, inside = opened(top)
    s, loader = inside._control, top.units[Q.LOAD]
    which, count = Signal(range(N_SEMAPHORES)), Signal(6)
    steady(m, which)
    waits = [w.fired & w.wait.bit_select(which, 1) for w in s.waiters]
    signals = [w.fired & w.signal.bit_select(which, 1) for w in s.waiters]
    # The ISA's rule, which `verify` holds programs to: one queue waits and one signals.
    waiter, signaller = Signal(3), Signal(3)
    for owner, uses in ((waiter, waits), (signaller, signals)):
        steady(m, owner)
        m.d.comb += [Assume(~use | (owner == i)) for i, use in enumerate(uses)]
    any_wait, any_signal = Cat(waits).any(), Cat(signals).any()
    m.d.sync += count.eq(count + any_signal - any_wait)
    m.d.comb += [
        Assume(top.below.bit_select(which, 1) == (count == 0)), Assume(top.above.bit_select(which, 1) == (count == 15)),
        Assume(top.sequencer.push & top.sequencer.full == 0),
        *(Assume(~giver.fired | giver.allowed) for giver in (top.sequencer, loader)), Cover(loader.fired & signals[-1]),
        Cover(any_wait & any_signal), Cover(top.sequencer.all_idle & (count == 2)), Cover(waits[1] & (count == 1)),
    ]  # fmt: skip
    claims = {
        "tokens stay between 0 and 15": count <= 15,
        "no wait passes without a token": ~any_wait | (count != 0),
        "no signal passes a full semaphore": ~any_signal | (count != 15),
        "a wait that passes takes one token": s.semaphores.take.bit_select(which, 1) == any_wait,
        "a signal that passes gives one token": s.semaphores.give.bit_select(which, 1) == any_signal,
    }
    for q, queue in s.queues.items():
        name, unit = q.name.lower(), top.units[q]
        busy = ~queue.empty | ~(unit.quiet if q in rtl.tile.QUIET else unit.idle)
        claims[f"all idle means that {name} is empty and idle"] = ~(top.sequencer.all_idle & busy)
        claims[f"popped tells of {name}"] = top.popped[q] == queue.popped
        claims[f"{name} starts only when idle"] = ~unit.go | unit.idle
    claims["what load signals is not given before its unit says so"] = ~s.queues[Q.LOAD].signal.any()
    claims["load learns of every sync that leaves"] = loader.synced == (s.queues[Q.LOAD].fired)
    seq = top.sequencer
    free = [
        loader.signal,
        loader.fired,
        loader.quiet,
        seq.push,
        seq.word,
        *seq.extra.values(),
        seq.wait,
        seq.signal,
        seq.fired,
        top.below,
        top.above,
        which,
        waiter,
        signaller,
    ]
    return m, [*free, *(u.idle for u in top.units.values()), top.units[Q.NET].quiet], claims


PROOFS = (
    *(
        Proof(
            f"queue of {depth}", queue(depth), depth=2 * depth + 3,
            mutants=() if depth != 3 else (
                Mutant("queue", "self.full.eq(level == self.depth)", "self.full.eq(level == self.depth - 1)", "full when it holds depth entries"),
                Mutant("queue", "self.empty.eq(level == 0)", "self.empty.eq(level <= 1)", "empty when it holds none"),
                Mutant("queue", "self.full.eq(level == self.depth)", "self.full.eq(0)", "never holds more than depth"),
                Mutant("queue", "self.go.eq(~self.empty & self.idle & ~waiting)", "self.go.eq(self.idle & ~waiting)", "nothing leaves an empty queue"),
                Mutant("queue", "write.eq(Mux(write == self.depth - 1, 0, write + 1))", "write.eq(write + 1)", "entries leave in order and unchanged"),
                Mutant("queue", "Mux(read == self.depth - 1, 0, read + 1)", "Mux(read == self.depth - 1, 1, read + 1)", "entries leave in order and unchanged"),
                Mutant("queue", "self.popped.eq(self.fired | self.go)", "self.popped.eq(self.go)", "what leaves is either handed on or executed here"),
                Mutant("queue", "self.go.eq(~self.empty & self.idle & ~waiting)", "self.go.eq(~self.empty & ~waiting)", "the unit takes only when idle, and no sync"),
                Mutant("queue", "self.idle & waiting & self.allowed)", "self.idle & waiting)", "a sync leaves only when the unit is idle and it is allowed"),
                Mutant("queue", "self.stays.eq(stayed & ~self.empty & ~self.popped)", "self.stays.eq(~self.empty & ~self.popped)", "a head that stays is what it was"),
                Mutant("queue", "self.go.eq(~self.empty & self.idle & ~waiting)", "self.go.eq(~self.empty & self.idle & ~waiting & ~self.push)", "an idle unit takes at once"),
            ),
        )
        for depth in (1, 2, 3, 8)
    ),
    Proof(
        "semaphores", semaphores, depth=18,
        mutants=(
            Mutant("queue", "self.below.eq(~(p[0] | p[1] | p[2] | p[3]))", "self.below.eq(~(p[0] | p[1] | p[2]))", "below at 0 alone"),
            Mutant("queue", "self.above.eq(p[0] & p[1] & p[2] & p[3])", "self.above.eq(p[1] & p[2] & p[3])", "above at 15 alone"),
            Mutant("queue", "self.below.eq(~(p[0] | p[1] | p[2] | p[3]))", "self.below.eq(0)", "never more than 15 nor less than 0"),
            Mutant("queue", "carry, borrow = self.give & ~self.take, self.take & ~self.give", "carry, borrow = self.give, self.take & ~self.give", "below at 0 alone"),
            Mutant("queue", "carry & plane, borrow & ~plane", "carry & plane, borrow & plane", "below at 0 alone"),
        ),
    ),
    Proof(
        "tokens between queues", control, depth=20,
        mutants=(
            Mutant("tile", "((waiter.wait & semaphores.below) == 0) &", "", "no wait passes without a token"),
            Mutant("tile", "((waiter.wait & semaphores.below) == 0) &", "", "tokens stay between 0 and 15"),
            Mutant("tile", " & ((waiter.signal & semaphores.above) == 0)", "", "no signal passes a full semaphore"),
            Mutant("tile", "take | Mux(waiter.fired, waiter.wait, 0)", "take | waiter.wait", "a wait that passes takes one token"),
            Mutant("tile", "give | Mux(waiter.fired, waiter.signal, 0)", "Mux(waiter.fired, waiter.signal, give & 1)", "a signal that passes gives one token"),
            Mutant("tile", "idle = idle & queue.empty & (unit.quiet if q in QUIET else queue.idle)", "idle = idle & queue.empty", "all idle means that load is empty and idle"),
            Mutant("tile", "idle & queue.empty & (unit.quiet if q in QUIET else queue.idle)", "(unit.quiet if q in QUIET else queue.idle) & idle", "all idle means that net is empty and idle"),
            Mutant("tile", "(unit.quiet if q in QUIET else queue.idle)", "queue.idle", "all idle means that net is empty and idle"),
            Mutant("tile", "queues[Name.LOAD].signals = False", "", "what load signals is not given before its unit says so"),
            Mutant("tile", "synced.eq(queues[Name.LOAD].fired)", "synced.eq(queues[Name.LOAD].popped)", "load learns of every sync that leaves"),
            Mutant("tile", "unit.go.eq(queue.go)", "unit.go.eq(~queue.empty)", "mxu starts only when idle"),
            Mutant("tile", "self.popped[q].eq(queue.popped)", "self.popped[q].eq(queue.go)", "popped tells of store"),
        ),
    ),
)  # fmt: skip
