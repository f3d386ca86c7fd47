# ruff: noqa: E501 (a mutant reads best on one line; Q is the enumeration of queues)
"""What the sequencer promises: loops as a stack, instructions handed out once and where there is room, cycles as the table says."""

from __future__ import annotations

from amaranth.hdl import Array, Assume, Cover, Mux, Signal, signed
from proof import FREE_RAM, Mutant, Proof, begun, earlier, opened

from fabless.program.isa import BY_MNEMONIC, LATENCY, LOOP_DEPTH, REGISTER_BITS, Queue
from fabless.program.tile import TINY
from fabless.rtl.decoder import bits

UNITS = [m for m, spec in BY_MNEMONIC.items() if spec.queue != Queue.CTRL]


def sequencer(rtl):
    """Against a stack of (first instruction, trips left) that programs of the ISA neither overflow nor underflow."""
    m = begun()
    seq = rtl.sequencer.Sequencer(TINY)
    m.submodules.seq, inside = opened(seq)
    s, loops = inside.elaborate, inside._loops
    word, pc, running, advance = seq.word, s.pc, s.running, s.advance

    def is_a(mnemonic):
        return word[:5] == BY_MNEMONIC[mnemonic].code

    count, level, expected = loops.count, Signal(range(LOOP_DEPTH + 1)), Signal(len(pc))
    firsts = Array(Signal(len(pc), name=f"first{i}") for i in range(LOOP_DEPTH))
    trips = Array(Signal(REGISTER_BITS, name=f"trips{i}") for i in range(LOOP_DEPTH))
    enters = is_a("loop") & (count > 0)
    top = Mux(level == 0, 0, level - 1)
    again = trips[top] != 1
    m.d.comb += [
        Assume(~(seq.start & running)),
        Assume(~running | ~enters | (level != LOOP_DEPTH)),
        Assume(~running | ~is_a("end") | (level != 0)),
    ]
    with m.If(seq.start):
        m.d.sync += [expected.eq(0), level.eq(0)]
    with m.Elif(running & advance):
        m.d.sync += expected.eq(pc + 1)
        with m.If(enters):
            m.d.sync += [firsts[level].eq(pc + 1), trips[level].eq(count), level.eq(level + 1)]
        with m.Elif(is_a("loop")):
            m.d.sync += expected.eq(pc + bits(word, "loop", "length") + 2)
        with m.Elif(is_a("end") & again):
            m.d.sync += [trips[top].eq(trips[top] - 1), expected.eq(firsts[top])]
        with m.Elif(is_a("end")):
            m.d.sync += level.eq(level - 1)
    waited = Signal(16)
    m.d.sync += waited.eq(Mux(running & ~advance & ~seq.start, waited + 1, 0))

    to_unit = Signal()
    for mnemonic in UNITS:
        with m.If(is_a(mnemonic)):
            m.d.comb += to_unit.eq(1)
    queue = bits(word, "sync", "queue")
    own_sync = is_a("sync") & (queue == Queue.CTRL)
    others_sync = is_a("sync") & (queue != Queue.CTRL) & (queue < len(Queue))
    handed_out = to_unit | others_sync
    multiplies = bits(word, "madd", "p") != 0
    m.d.comb += [
        Cover(level == LOOP_DEPTH), Cover((pc == 3) & earlier(m, is_a("end") & again & (level == 2))), Cover((seq.push & ~earlier(m, seq.push)).any()),
        Cover(seq.done), Cover(seq.fired & (seq.wait != 0)), Cover(advance & is_a("read")), Cover(running & is_a("loop") & (count < 0)),
    ]  # fmt: skip
    one_hot = seq.push & (seq.push - 1).as_unsigned()[: len(seq.push)]
    claims = {
        "loops nest as a stack": ~running | (pc == expected),
        "instructions go only where there is room": (seq.push & seq.full) == 0,
        "what a unit executes goes to one queue, once": (seq.push.any() == (running & handed_out & advance)) & (one_hot == 0),
        "a sync of ctrl passes when allowed, not before": ~(running & own_sync) | ((advance == seq.allowed) & (seq.fired == seq.allowed)),
        "nothing fires but a sync of ctrl": ~seq.fired | (running & own_sync),
        "halt waits until all is idle": ~(running & is_a("halt")) | (advance == seq.all_idle),
        "param takes its cycles": ~(running & is_a("param")) | (advance == (waited == LATENCY["PARAM"] - 1)),
        "read takes its cycles": ~(running & is_a("read")) | (advance == (waited == LATENCY["READ"] - 1)),
        "madd takes one cycle or its cycles": ~(running & is_a("madd")) | (advance == (waited == Mux(multiplies, LATENCY["MADD"] - 1, 0))),
        "registers change only as an instruction ends": ~s.x_write | advance,
        "loop and end take one cycle": ~(running & (is_a("loop") | is_a("end"))) | advance,
        "invariant: the count of steps": ~running | (s.step == waited[:3]),
        "invariant: not running, no step": running | (waited == 0),
    }
    for name, cycles in (("param", LATENCY["PARAM"]), ("read", LATENCY["READ"]), ("madd", LATENCY["MADD"])):
        claims[f"invariant: {name} waits no longer"] = ~(running & is_a(name)) | (waited < cycles)
    for i in range(LOOP_DEPTH):
        at = (level - 1 - i).as_unsigned()[:2]
        claims[f"invariant: loop {i}"] = (level <= i) | ((loops.firsts[i] == firsts[at]) & (loops.trips[i] == trips[at]) & (trips[at] != 0))
    claims["invariant: nesting"] = level <= LOOP_DEPTH
    assert count.shape() == signed(len(count))
    return m, [seq.start, seq.full, seq.all_idle, seq.allowed, seq.vector_data], claims


PROOFS = (
    Proof(
        "sequencer", sequencer, depth=9, stubs=FREE_RAM,
        mutants=(
            Mutant("sequencer", "with m.If(trips[0] != 1):", "with m.If(trips[0] != 2):", "loops nest as a stack"),
            Mutant("sequencer", "[b.eq(a) for a, b in pairwise(regs)]", "[b.eq(b) for a, b in pairwise(regs)]", "loops nest as a stack"),
            Mutant("sequencer", "[a.eq(b) for a, b in pairwise(regs)]", "[a.eq(a) for a, b in pairwise(regs)]", "loops nest as a stack"),
            Mutant("sequencer", 'bits(word, "loop", "length") + 2', 'bits(word, "loop", "length") + 1', "loops nest as a stack"),
            Mutant("sequencer", "with m.If(count > 0):", "with m.If(count >= 0):", "loops nest as a stack"),
            Mutant("sequencer", "m.d.comb += advance.eq(1)\n            with m.If(count", "m.d.comb += advance.eq(~self.full[5])\n            with m.If(count", "loop and end take one cycle"),
            Mutant("sequencer", " & ((units & self.full) == 0)", "", "instructions go only where there is room"),
            Mutant("sequencer", "[self.push.eq(units), advance.eq(1)]", "[self.push.eq(units), advance.eq(~self.full[5])]", "what a unit executes goes to one queue, once"),
            Mutant("sequencer", "m.d.comb += target[q].eq(bits(word, \"sync\", \"queue\") == q)", "m.d.comb += target[q].eq(bits(word, \"sync\", \"queue\") >= q)", "what a unit executes goes to one queue, once"),
            Mutant("sequencer", "running & target[Queue.CTRL] & self.allowed", "running & target[Queue.CTRL]", "a sync of ctrl passes when allowed, not before"),
            Mutant("sequencer", "running & target[Queue.CTRL] & self.allowed", "target[Queue.CTRL] & self.allowed", "nothing fires but a sync of ctrl"),
            Mutant("sequencer", "advance.eq(self.all_idle)", "advance.eq(1)", "halt waits until all is idle"),
            Mutant("sequencer", 'step == LATENCY["PARAM"] - 1', 'step == LATENCY["PARAM"]', "param takes its cycles"),
            Mutant("sequencer", 'step == LATENCY["READ"] - 1', 'step == LATENCY["READ"] - 2', "read takes its cycles"),
            Mutant("sequencer", "advance.eq(constant |", "advance.eq(", "madd takes one cycle or its cycles"),
            Mutant("sequencer", "x_write.eq(advance), x_value.eq(self._integer(m))", "x_write.eq(1), x_value.eq(self._integer(m))", "registers change only as an instruction ends"),
        ),
    ),
)  # fmt: skip
