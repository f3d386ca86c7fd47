"""What load and store promise on the ports of memory."""

from __future__ import annotations

from amaranth.hdl import Assume, Cat, Cover, Signal
from proof import FREE_RAM, Mutant, Proof, begun, earlier, opened

from fabless.program.isa import MEMORY_FORMATS, TARGETS
from fabless.program.tile import Tile
from fabless.rtl.decoder import bits, value

BEATS = 4
WIDE = Tile(4, 4, 64, 64, 64, 256, 64, 64, 1 << 26, 64)  # beats of 64 bytes: a row of 96 bytes may start in the middle of one


def small(m, unit, mnemonic) -> tuple:
    """Assume a short transfer of binary32, as the ISA allows it: rows of 32 elements start at 32 bytes, single ones at 4; return its operands."""
    address = unit.extra[slice(*_range(mnemonic, "address"))]
    count, rows, stride = value(unit.word, mnemonic, "count"), value(unit.word, mnemonic, "rows"), bits(unit.word, mnemonic, "stride")
    aligned = ((address[:5] == 0) & (stride[:5] == 0)) | ((count == 1) & (address[:2] == 0) & (stride[:2] == 0))
    m.d.comb += Assume(
        ~unit.go | (unit.idle & (bits(unit.word, mnemonic, "target") == TARGETS.index("v")) & (rows <= 2) & ((count == 1) | (count == 8) | (count == 24)) & aligned
        & (bits(unit.word, mnemonic, "format") == MEMORY_FORMATS.index("fp32")) & (address < 128) & (stride < 128))
    )  # fmt: skip
    return address, count, rows, stride


def _range(mnemonic, name):
    from fabless.program.isa import BY_MNEMONIC
    from fabless.rtl.sequencer import extra_layout

    first, width = extra_layout(BY_MNEMONIC[mnemonic].queue)[name]
    return first, first + width


def expected_beats(m, unit, mnemonic, operands):
    """Return a register with the beats that the rows of the current transfer touch."""
    address, count, rows, stride = operands
    total = Signal(8)
    first = (address[:6] + 4 * count + 63) >> 6
    second = ((address + stride)[:6] + 4 * count + 63) >> 6
    with m.If(unit.go):
        m.d.sync += total.eq(first + second * (rows == 2))
    return total


def load(bounded: bool):
    """Beats asked for and not yet used, counted by a memory that answers in order, whenever it likes."""

    def build(rtl):
        m = begun()
        unit = rtl.load.Load(WIDE)
        m.submodules.unit, inside = opened(unit)
        level, popped = inside._consume.level, inside._consume.popped
        outstanding, asked, answered = Signal(8), Signal(8), Signal(8)
        accepted = unit.read_valid & unit.read_ready
        m.d.comb += [Assume(~unit.answer_valid | (outstanding != 0)), Assume(~unit.go | unit.idle)]
        m.d.sync += outstanding.eq(outstanding + accepted - unit.answer_valid)
        waited = earlier(m, unit.read_valid & ~unit.read_ready)
        claims = {
            "asks for no more than there is room for": outstanding + level <= BEATS,
            "an answer always finds room": ~unit.answer_valid | (level != BEATS),
            "uses no beat that has not come": ~popped | (level != 0),
            "invariant: what is used up": unit.used == outstanding + level,
        }
        covers = [Cover(level == BEATS), Cover(popped & unit.answer_valid), Cover(waited & unit.read_valid)]
        if bounded:
            operands = small(m, unit, "load")
            total = expected_beats(m, unit, "load", operands)
            m.d.sync += [asked.eq(asked + accepted), answered.eq(answered + unit.answer_valid)]
            with m.If(unit.go):
                m.d.sync += [asked.eq(0), answered.eq(0)]
            claims |= {
                "what is used was asked for before": (unit.rows != 0) | (unit.request_rows == 0),
                "idle means that nothing is asked for, on its way or left": ~unit.idle | (~unit.read_valid & (outstanding == 0) & (level == 0)),
                "asks for every beat of every row, once": ~unit.idle | ((asked == total) & (answered == total)),
            }
            covers = [Cover(unit.idle & (total == 4)), Cover(unit.idle & (total == 2) & (asked == 2)), Cover(earlier(m, ~unit.idle) & unit.idle)]
        else:
            claims["a request waits unchanged until it is taken"] = ~waited | (unit.read_valid & (unit.read_address == earlier(m, unit.read_address)))
            claims["invariant: rows to ask for only while busy"] = (unit.request_rows == 0) | ~unit.idle
            claims["invariant: busy until no row is left"] = (unit.rows == 0) | ~unit.idle
            m.d.comb += Assume((unit.rows == 0) <= (unit.request_rows == 0))  # proven, bounded, by the other proof of load
        m.d.comb += covers
        return m, [unit.go, unit.word, unit.extra, unit.read_ready, unit.answer_valid, unit.answer_data], claims

    return build


def store(bounded: bool):
    """Beats that memory takes whenever it likes."""

    def build(rtl):
        m = begun()
        unit = rtl.store.Store(WIDE)
        m.submodules.unit, inside = opened(unit)
        s, steps, strobes = inside.elaborate, inside._steps, inside._strobes
        waits, taken = unit.write_valid & ~unit.write_ready, Signal(8)
        offer = Cat(unit.write_address, unit.write_data, unit.write_strobe)
        m.d.comb += Assume(~unit.go | unit.idle)
        waited = earlier(m, waits)
        claims = {
            "a beat waits unchanged until it is taken": ~waited | (unit.write_valid & (offer == earlier(m, offer))),
            "nothing is read while a beat waits": ~waits | ~unit.read_enable,
            "idle means that every beat is taken": ~unit.idle | ~unit.write_valid,
            "invariant: idle means that no row is left": ~unit.idle | (unit.rows == 0),
            "invariant: the pipeline drains": ~((unit.rows == 0) & ((s.drain >= 1) | unit.idle)) | ~steps.valid1,
            "invariant: the pipeline drains 2": ~((unit.rows == 0) & ((s.drain >= 2) | unit.idle)) | ~steps.valid2,
            "invariant: no draining before the last row": (unit.rows == 0) | (s.drain == 0),
            "invariant: drain": unit.idle | (s.drain <= 2),
            "invariant: pending": strobes.pending == unit.write_valid,
        }
        covers = [Cover(waited & unit.write_valid), Cover(earlier(m, unit.write_valid) & unit.idle)]
        if bounded:
            operands = small(m, unit, "store")
            total = expected_beats(m, unit, "store", operands)
            m.d.sync += taken.eq(taken + (unit.write_valid & unit.write_ready))
            with m.If(unit.go):
                m.d.sync += taken.eq(0)
            count = operands[1]
            n_bytes, written = Signal(10), Signal(10)
            with m.If(unit.write_valid & unit.write_ready):
                m.d.sync += written.eq(written + sum(unit.write_strobe[i] for i in range(64)))
            with m.If(unit.go):
                m.d.sync += [n_bytes.eq(4 * count * operands[2]), written.eq(0)]
            claims = {
                "writes every beat of every row, once": ~unit.idle | (taken == total),
                "writes as many bytes as the rows have": ~unit.idle | (written == n_bytes),
            }
            covers = [Cover(unit.idle & (total == 4)), Cover(unit.idle & (total == 2) & (n_bytes == 8))]
        m.d.comb += covers
        free = [unit.go, unit.word, unit.extra, unit.write_ready, unit.activation_data, unit.activation_scale_data, unit.vector_data]
        return m, free, claims

    return build


SHORT = (("load", "from fabless.program.timing import READ_QUEUE_BEATS", f"READ_QUEUE_BEATS = {BEATS}"),)
PROOFS = (
    Proof(
        "load port", load(bounded=False), depth=9, stubs=FREE_RAM, edits=SHORT,
        mutants=(
            Mutant("load", "(self.request_rows != 0) & (used != READ_QUEUE_BEATS)", "self.request_rows != 0", "asks for no more than there is room for"),
            Mutant("load", "used.eq(used + accepted - popped)", "used.eq(used + accepted - self.answer_valid)", "an answer always finds room"),
            Mutant("load", "(~wants | (level != 0))", "1", "uses no beat that has not come"),
            Mutant("load", "with m.If(accepted):", "with m.If(self.read_valid):", "a request waits unchanged until it is taken"),
        ),
    ),
    Proof(
        "load of up to two rows", load(bounded=True), depth=22, k=None, stubs=FREE_RAM, edits=SHORT,
        mutants=(
            Mutant("load", "index + 1 == self.beats(self.request_address)", "index == self.beats(self.request_address)", "idle means that nothing is asked for, on its way or left"),
            Mutant("load", "finished.eq(busy & (self.rows == 0))", "finished.eq(busy & (self.request_rows == 0))", "asks for every beat of every row, once"),
        ),
    ),
    Proof(
        "store port", store(bounded=False), depth=9,
        mutants=(
            Mutant("store", "        with m.If(go_on):\n            m.d.sync += pending", "        with m.If(1):\n            m.d.sync += pending", "a beat waits unchanged until it is taken"),
            Mutant("store", "step.eq((self.rows != 0) & go_on)", "step.eq(self.rows != 0)", "nothing is read while a beat waits"),
            Mutant("store", 'drain == LATENCY["STORE_FILL"] - 2', 'drain == LATENCY["STORE_FILL"] - 4', "idle means that every beat is taken"),
            Mutant("store", "with m.Elif(busy & (self.rows == 0) & go_on):", "with m.Elif(busy & (self.rows == 0)):", "idle means that every beat is taken"),
        ),
    ),
    Proof(
        "store of up to two rows", store(bounded=True), depth=26, k=None,
        mutants=(
            Mutant("store", "several.eq((offset != 0) & (n_beats != 1))", "several.eq(0)", "writes every beat of every row, once"),
            Mutant("store", "behind.eq(Mux(end > b, b, end))", "behind.eq(b)", "writes as many bytes as the rows have"),
        ),
    ),
)  # fmt: skip
