"""The sequencer: fetch, registers, loops, parameters, and issue of resolved instructions to the queues."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from amaranth.hdl import Array, C, Cat, Elaboratable, Module, Mux, Signal, Value, signed

from fabless.program.isa import ISA, LATENCY, LOOP_DEPTH, N_REGISTERS, N_SEMAPHORES, REGISTER_BITS, WORD_BITS, Queue
from fabless.rtl.decoder import addends, bits, choice, is_a, value
from fabless.rtl.floating import state
from fabless.rtl.memory import Ram, index_bits

if TYPE_CHECKING:
    from fabless.program.tile import Tile

#: Operands of a unit instruction that the sequencer adds up, at most.
SLOTS = 5
#: Bits of a buffer address as units receive it: more than any buffer of a tile has words.
ADDRESS_BITS = 20


def extra_layout(queue: Queue) -> dict[str, tuple[int, int]]:
    """Return (first bit, bits) in a queue entry of each operand that the sequencer adds up, by name; instructions of a queue share places."""
    layout: dict[str, tuple[int, int]] = {}
    first = 0
    for spec in ISA:
        if spec.queue != queue:
            continue
        for name, _, _ in addends(spec.mnemonic):
            if name not in layout:
                wide = {"address": REGISTER_BITS, "start": REGISTER_BITS, "low": REGISTER_BITS, "high": REGISTER_BITS, "b": 32}
                layout[name] = (first, wide.get(name, ADDRESS_BITS))
                first += layout[name][1]
    return layout


def extra_bits(queue: Queue) -> int:
    """Return the bits of a queue entry behind the word."""
    return sum(width for _, width in extra_layout(queue).values())


class Sequencer(Elaboratable):
    """Execute the ctrl queue's instructions and hand the others out.

    `start` for one cycle begins at instruction 0; `done` rises when halt is over. One instruction a cycle, but for `madd` with a multiplicand, `param`
    and `read` (see LATENCY), and where a queue is full or a semaphore not ready. Ports: `push[q]`, `word`, `extra[q]` to the queues, `full[q]` and
    `all_idle` from them; `wait`, `signal`, `fired`, `allowed` as in `Queue`; `vector_read`, `vector_address`, `vector_data` (one cycle later);
    `host_*`: writes of program and parameter words while halted. `frugal`: see `block.Shared`.
    `waits`: in a cycle in which its own sync is held back; `finds_full`: likewise by a full
    queue.
    """

    def __init__(self, tile: Tile, *, frugal: bool = False) -> None:
        self.tile, self.frugal = tile, frugal
        self.start, self.done, self.all_idle = Signal(), Signal(), Signal()
        self.push, self.full = Signal(len(Queue)), Signal(len(Queue))
        self.word = Signal(WORD_BITS)
        self.extra: dict[Queue, Signal] = {q: Signal(extra_bits(q), name=f"extra_{q.name.lower()}") for q in Queue if q != Queue.CTRL}
        self.wait, self.signal, self.allowed, self.fired = Signal(N_SEMAPHORES), Signal(N_SEMAPHORES), Signal(), Signal()
        self.vector_read, self.vector_address, self.vector_data = Signal(), Signal(ADDRESS_BITS), Signal(32)
        self.host_program, self.host_parameter = Signal(), Signal()
        self.host_address, self.host_data = Signal(32), Signal(WORD_BITS)
        self.retired = Signal()
        self.waits, self.finds_full = Signal(), Signal()

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        program = Ram(width=WORD_BITS, depth=self.tile.instruction_words, name="program")
        parameters = Ram(width=32, depth=self.tile.parameter_words, name="parameters")
        for ram, enable in ((program, self.host_program), (parameters, self.host_parameter)):
            ram.place(m)
            m.d.comb += [
                ram.write[0].enable.eq(enable), ram.write[0].address.eq(self.host_address), ram.write[0].data.eq(self.host_data),
            ]  # fmt: skip

        pc, running, advance = Signal(index_bits(self.tile.instruction_words)), Signal(), Signal()
        following, word = Signal.like(pc), self.word
        m.d.comb += [
            word.eq(program.read[0].data), program.read[0].enable.eq(self.start | advance),
            program.read[0].address.eq(Mux(self.start, 0, following)), following.eq(pc + 1),
        ]  # fmt: skip
        with m.If(self.start):
            m.d.sync += [pc.eq(0), running.eq(1), self.done.eq(0)]
        with m.Elif(advance):
            m.d.sync += pc.eq(following)
        m.d.comb += self.retired.eq(advance)

        self.registers = [Signal(signed(REGISTER_BITS), name=f"x{i}") for i in range(N_REGISTERS)]
        x_write, x_index, x_value = Signal(), Signal(5), Signal(signed(REGISTER_BITS))
        with m.If(self.start):
            m.d.sync += [x.eq(0) for x in self.registers[1:]]
        with m.Elif(x_write), m.Switch(x_index):
            for i in range(1, N_REGISTERS):
                with m.Case(i):
                    m.d.sync += self.registers[i].eq(x_value)
        self._operands(m)

        step = Signal(3)
        m.d.sync += step.eq(Mux(running & ~advance & ~self.start, step + 1, 0))
        with m.If(running):
            self._loops(m, pc=pc, following=following, advance=advance)
            self._madd(m, step=step, advance=advance, x_write=x_write, x_value=x_value)
            with m.If(is_a(word, "halt")):
                m.d.comb += advance.eq(self.all_idle)
                with m.If(self.all_idle):
                    m.d.sync += [running.eq(0), self.done.eq(1)]
            with m.If(is_a(word, "param")):
                m.d.comb += [
                    parameters.read[0].enable.eq(1), parameters.read[0].address.eq(self.sums["param", "at"]),
                    advance.eq(step == LATENCY["PARAM"] - 1), x_write.eq(advance), x_value.eq(parameters.read[0].data.as_signed()),
                ]  # fmt: skip
            with m.If(is_a(word, "read")):
                m.d.comb += [advance.eq(step == LATENCY["READ"] - 1), x_write.eq(advance), x_value.eq(self._integer(m))]
        m.d.comb += [
            self.vector_read.eq(running & is_a(word, "read")), self.vector_address.eq(self.sums["read", "at"]),
            x_index.eq(bits(word, "madd", "x")),
        ]  # fmt: skip
        self._issue(m, running=running, advance=advance)
        return m

    def _register(self, m: Module, index: Value, name: str) -> Signal:
        """Return the register that a field selects."""
        chosen = Signal(signed(REGISTER_BITS), name=name)
        m.d.comb += chosen.eq(Array(self.registers)[index])
        return chosen

    def _operands(self, m: Module) -> None:
        """Add up every `name + X[name_reg]`. A register is read for each place in the word where some instruction has such a field, at once.

        Frugal: for each operand of an instruction, whose opcode says first where its field stands: 5 reads in place of 18, and a longer path.
        """
        reads: dict[int, Signal] = {}
        self.sums: dict[tuple[str, str], Value] = {}
        places = [Signal(5, name=f"place{i}") for i in range(SLOTS)] if self.frugal else []
        slots = [self._register(m, place, f"slot{i}") for i, place in enumerate(places)]
        for spec in ISA:
            for i, (name, immediate, register) in enumerate(addends(spec.mnemonic)):
                at = self.word[register.lsb : register.lsb + 5]
                if self.frugal:
                    with m.If(is_a(self.word, spec.mnemonic)):
                        m.d.comb += places[i].eq(at)
                elif register.lsb not in reads:
                    reads[register.lsb] = self._register(m, at, f"read{register.lsb}")
                x = slots[i] if self.frugal else reads[register.lsb]
                total: Value = x
                if immediate is not None:
                    total = Signal(signed(REGISTER_BITS), name=f"{spec.mnemonic}_{name}")
                    m.d.comb += total.eq(x + self.word[immediate.lsb : immediate.lsb + immediate.bits])
                if spec.mnemonic in {"vec", "quant"} and name == "b":
                    total = Mux(choice(self.word, spec.mnemonic, "b_kind", "register"), x, total)
                self.sums[spec.mnemonic, name] = total
        factors = [bits(self.word, "madd", name) for name in ("p", "q")]
        if self.frugal:
            with m.If(is_a(self.word, "madd")):
                m.d.comb += [place.eq(factor) for place, factor in zip(places, factors, strict=False)]
        self.p, self.q = slots[:2] if self.frugal else (self._register(m, f, n) for f, n in zip(factors, ("p_read", "q"), strict=True))

    def _loops(self, m: Module, *, pc: Signal, following: Signal, advance: Signal) -> None:
        """Keep four (first instruction, trips left) pairs, the innermost at the bottom of a shift register."""
        firsts = [state(len(pc), f"loop_first{i}") for i in range(LOOP_DEPTH)]
        trips = [state(REGISTER_BITS, f"loop_trips{i}") for i in range(LOOP_DEPTH)]
        word, count = self.word, self.sums["loop", "count"]
        with m.If(is_a(word, "loop")):
            m.d.comb += advance.eq(1)
            with m.If(count > 0):
                m.d.sync += [firsts[0].eq(pc + 1), trips[0].eq(count)]
                for regs in (firsts, trips):
                    m.d.sync += [b.eq(a) for a, b in pairwise(regs)]
            with m.Else():
                m.d.comb += following.eq(pc + bits(word, "loop", "length") + 2)
        with m.If(is_a(word, "end")):
            m.d.comb += advance.eq(1)
            with m.If(trips[0] != 1):
                m.d.sync += trips[0].eq(trips[0] - 1)
                m.d.comb += following.eq(firsts[0])
            with m.Else():
                for regs in (firsts, trips):
                    m.d.sync += [a.eq(b) for a, b in pairwise(regs)]

    def _madd(self, m: Module, *, step: Signal, advance: Signal, x_write: Signal, x_value: Signal) -> None:
        """Take one cycle without a multiplicand, else three: read, multiply, add."""
        word = self.word
        p, mul = Signal(signed(REGISTER_BITS), name="p", reset_less=True), Signal(signed(32), name="mul", reset_less=True)
        product = Signal(signed(REGISTER_BITS), name="product", reset_less=True)
        m.d.sync += [p.eq(self.p), mul.eq(value(word, "madd", "mul")), product.eq(p * mul)]
        constant = bits(word, "madd", "p") == 0
        with m.If(is_a(word, "madd")):
            m.d.comb += [
                advance.eq(constant | (step == LATENCY["MADD"] - 1)), x_write.eq(advance),
                x_value.eq(Mux(constant, 0, product) + self.q + value(word, "madd", "imm")),
            ]  # fmt: skip

    def _integer(self, m: Module) -> Signal:
        """Return V[at] as an integer, in the last cycle of `read`: round to nearest, ties to even, saturate to 32 bits, NaN gives 0."""
        code, integer = state(32, "read_code"), Signal(signed(32), name="read_integer", reset_less=True)
        m.d.sync += code.eq(self.vector_data)
        exponent, fraction, sign = code[23:31], code[0:23], code[31]
        # In units of 2^-24: an exponent of 157, [2^30, 2^31), stands where it is, lesser ones move right.
        distance, amount = Signal(9), Signal(6)
        m.d.comb += [distance.eq(157 - exponent), amount.eq(Mux(distance > 63, 63, distance[0:6]))]
        wide, moved, lost = Signal(64), Signal(64), Signal()
        m.d.comb += [wide.eq(Mux(exponent == 0, 0, Cat(C(0, 31), fraction, C(1, 1)))), moved.eq(wide >> amount)]
        m.d.comb += lost.eq((moved << amount)[0:64] != wide)
        rounded = Signal(33)
        m.d.comb += rounded.eq(moved[24:56] + (moved[23] & (moved[24] | (moved[0:23] != 0) | lost)))
        large, nan = exponent >= 158, (exponent == 255) & (fraction != 0)
        limit = Mux(sign, -(1 << 31), (1 << 31) - 1)
        magnitude_too_large = large | (rounded > (1 << 31) - 1)
        m.d.sync += integer.eq(Mux(nan, 0, Mux(magnitude_too_large, limit, Mux(sign, -rounded, rounded))))
        return integer

    def _issue(self, m: Module, *, running: Signal, advance: Signal) -> None:
        """Push unit instructions and other queues' syncs; execute our own syncs in place."""
        word = self.word
        target = Signal(len(Queue))
        for spec in ISA:
            if spec.queue != Queue.CTRL:
                with m.If(is_a(word, spec.mnemonic)):
                    m.d.comb += target[spec.queue].eq(1)
        with m.If(is_a(word, "sync")):
            for q in Queue:
                m.d.comb += target[q].eq(bits(word, "sync", "queue") == q)
        units = target & ~(1 << Queue.CTRL)
        with m.If(running & (units != 0) & ((units & self.full) == 0)):
            m.d.comb += [self.push.eq(units), advance.eq(1)]
        m.d.comb += [
            self.wait.eq(bits(word, "sync", "wait")), self.signal.eq(bits(word, "sync", "signal")),
            self.fired.eq(running & target[Queue.CTRL] & self.allowed), self.waits.eq(running & target[Queue.CTRL] & ~self.allowed),
            self.finds_full.eq(running & ((units & self.full) != 0)),
        ]  # fmt: skip
        with m.If(self.fired):
            m.d.comb += advance.eq(1)
        for queue, extra in self.extra.items():
            for name, (first, width) in extra_layout(queue).items():
                for spec in ISA:
                    if (spec.mnemonic, name) in self.sums and spec.queue == queue:
                        with m.If(is_a(word, spec.mnemonic)):
                            m.d.comb += extra[first : first + width].eq(self.sums[spec.mnemonic, name])
