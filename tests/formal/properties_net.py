# ruff: noqa: E501 (a mutant reads best on one line)
"""What the net unit promises on its link: credits on the way out, room and order on the way in."""

from __future__ import annotations

from types import SimpleNamespace

from amaranth.hdl import Assume, Cover, Signal
from proof import FREE_RAM, Mutant, Proof, begun, earlier, opened

from fabless.program.tile import Tile

BEATS = 4  # of 32: a proof of the full queue takes minutes and says the same
EDITS = (
    (
        "net",
        "from fabless.program.timing import LINK_QUEUE_BEATS, ceil",
        f"from fabless.program.timing import ceil\n\nLINK_QUEUE_BEATS = {BEATS}",
    ),
)
SMALL = Tile(4, 4, 64, 64, 64, 256, 64, 64, 1 << 26, 16, link_bytes_per_cycle=8)


def unit_of(rtl):
    """Return the unit, its adders left free: what they yield is data."""
    return rtl.net.Net(SimpleNamespace(tile=SMALL, place=lambda m, kind, name, **wires: {"y": Signal(32, name=f"{name}_y")}))


def inputs(unit):
    return [
        unit.go,
        unit.stays,
        unit.word,
        unit.extra,
        unit.credit,
        unit.arrive_valid,
        unit.arrive_data,
        unit.vector_data,
        unit.word_data,
        unit.add_data,
    ]


def send(rtl):
    """Beats on their way, counted by a neighbour that gives room back for what it got, whenever it likes."""
    m = begun()
    unit = unit_of(rtl)
    m.submodules.unit, inside = opened(unit)
    s, away = inside._send, Signal(8)
    m.d.comb += [Assume(~unit.credit | (away != 0)), Assume(~unit.go | unit.idle)]
    m.d.sync += away.eq(away + unit.link_valid - unit.credit)
    m.d.comb += [Cover(away == BEATS), Cover(unit.link_valid & unit.credit), Cover(s.walk["active"] & (s.credits == 0))]
    return (
        m,
        inputs(unit),
        {
            "never more beats on their way than the neighbour has room for": away + unit.link_valid <= BEATS,
            "quiet means that every beat is on the link": ~unit.quiet | ~(s.valid1 | unit.link_valid),
            "what is read has its credit": ~s.step | (s.credits != 0),
            "invariant: a credit is held, on its way or with the neighbour": s.credits + s.valid1 + unit.link_valid + away == BEATS,
        },
    )


def receive(rtl):
    """Beats that come whenever the neighbour has a credit."""
    m = begun()
    unit = unit_of(rtl)
    m.submodules.unit, inside = opened(unit)
    r, held = inside._receive, Signal(8)
    m.d.comb += [Assume(~unit.arrive_valid | (held < BEATS)), Assume(~unit.go | unit.idle)]
    m.d.sync += held.eq(held + unit.arrive_valid - unit.credit_out)
    m.d.comb += [Cover(r.level == BEATS), Cover(r.take & unit.arrive_valid)]
    return (
        m,
        inputs(unit),
        {
            "a beat that comes finds room": ~unit.arrive_valid | (r.level != BEATS),
            "no beat is taken that has not come": ~r.take | (r.level != 0),
            "each beat taken gives one credit back, none else": unit.credit_out == earlier(m, r.take),
            "beats leave in the order in which they came, each once": (r.write - r.read)[: len(r.write)] == r.level[: len(r.write)],
            "quiet means that what was taken is written": ~unit.quiet | (~r.valid.any() & ~unit.block_write & ~unit.write.any()),
            "invariant: the queue holds what is not credited": r.level + unit.credit_out == held,
            "invariant: never more than its depth": r.level <= BEATS,
            "invariant: lanes follow what was taken": ~(r.lanes_at[0].any() & ~r.valid[0])
            & ~(r.lanes_at[1].any() & ~r.valid[1])
            & ~(r.lanes_at[2].any() & ~r.valid[2]),
            "invariant: ends of words follow what was taken": ~(r.ends_word[0] & ~r.valid[0]) & ~(r.ends_word[1] & ~r.valid[1]),
        },
    )


PROOFS = (
    Proof(
        "net send", send, depth=BEATS + 8, stubs=FREE_RAM, edits=EDITS,
        mutants=(
            Mutant("net", 'step.eq(walk["active"] & (credits != 0))', 'step.eq(walk["active"])', "what is read has its credit"),
            Mutant("net", "credits.eq(credits + self.credit - step)", "credits.eq(Mux(self.credit, credits + 1, credits - step))", "never more beats on their way than the neighbour has room for"),
            Mutant("net", 'sending.eq(walk["active"] | valid1 | self.link_valid)', 'sending.eq(walk["active"] | self.link_valid)', "quiet means that every beat is on the link"),
        ),
    ),
    Proof(
        "net receive", receive, depth=BEATS + 8, stubs=FREE_RAM, edits=EDITS,
        mutants=(
            Mutant("net", 'take.eq(walk["active"] & (level != 0))', 'take.eq(walk["active"])', "no beat is taken that has not come"),
            Mutant("net", "level.eq(level + self.arrive_valid - take)", "level.eq(Mux(self.arrive_valid, level + 1, level - take))", "a beat that comes finds room"),
            Mutant("net", "self.credit_out.eq(take)", "self.credit_out.eq(take & ~self.arrive_valid)", "each beat taken gives one credit back, none else"),
            Mutant("net", "read.eq(read + take)", "read.eq(read + (take & ~self.arrive_valid))", "beats leave in the order in which they came, each once"),
            Mutant("net", 'receiving.eq(walk["active"] | valid.any())', 'receiving.eq(walk["active"] | valid[0])', "quiet means that what was taken is written"),
        ),
    ),
)  # fmt: skip
