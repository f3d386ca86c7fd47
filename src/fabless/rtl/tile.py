"""The top: one tile, its buffers, queues and units, and the ports to host and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amaranth.hdl import Cat, DomainRenamer, Module, Mux, Signal

from fabless.core.errors import UnsupportedError
from fabless.program.isa import N_SEMAPHORES, WORD_BITS
from fabless.program.isa import Queue as Name
from fabless.rtl.block import Block, named
from fabless.rtl.clock import gated, lingering
from fabless.rtl.counters import N_COUNTERS, WIDTH, Counters
from fabless.rtl.load import Load, log2
from fabless.rtl.memory import Ram, index_bits
from fabless.rtl.mxu import Mxu
from fabless.rtl.net import Net
from fabless.rtl.queue import Queue, Semaphores
from fabless.rtl.sequencer import Sequencer, extra_bits
from fabless.rtl.store import Store
from fabless.rtl.vector import Vector

if TYPE_CHECKING:
    from fabless.rtl.block import Shared

UNITS: tuple[Name, ...] = (Name.LOAD, Name.STORE, Name.MXU, Name.VPU, Name.NET)
#: Units that take the next instruction while they still work on others.
QUIET = (Name.LOAD, Name.NET)
MAX_LANES = 32


class TileTop(Block):
    """Run programs.

    Host: while `done`, write words by `host_program` or `host_parameter` with `host_address`, `host_data`; raise `start` for a cycle; wait for `done`.
    `cycles` counts from the first instruction to halt; `counter_data` is the counter that
    `counter_address` chose a cycle before (see `counters`). Memory: a read channel `read_valid`, `read_ready`, `read_address` with answers `answer_valid`,
    `answer_data` in order, never refused; a write channel `write_valid`, `write_ready`, `write_address`, `write_data`, `write_strobe`. Addresses are
    bytes, multiples of the width. Links of the ring: `link_valid`, `link_data` and `credit_out` to be carried, in as many cycles as the wires take but at
    least one, to `arrive_valid`, `arrive_data` of the next tile and `credit` of the one before (see `net.Net`). `popped`: one bit a queue, high when an
    instruction starts (ctrl: when it ends).
    """

    module = "fl_tile"

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        tile = shared.tile
        if tile.vector_lanes > MAX_LANES:
            raise UnsupportedError(
                f"tile: {tile.vector_lanes} vector lanes cannot be built in RTL: a sum adds one block of 32 a cycle; use at most {MAX_LANES}"
            )
        self.tile = tile
        b = tile.memory_bytes_per_cycle
        self.start, self.done, self.cycles, self.popped = (
            self.input("start", 1),
            self.output("done", 1),
            self.output("cycles", 48),
            self.output("popped", 6),
        )
        self.counter_address, self.counter_data = self.input("counter_address", index_bits(N_COUNTERS)), self.output("counter_data", WIDTH)
        self.host_program, self.host_parameter = self.input("host_program", 1), self.input("host_parameter", 1)
        self.host_address, self.host_data = self.input("host_address", 32), self.input("host_data", WORD_BITS)
        self.read_valid, self.read_ready, self.read_address = (
            self.output("read_valid", 1),
            self.input("read_ready", 1),
            self.output("read_address", 40),
        )
        self.answer_valid, self.answer_data = self.input("answer_valid", 1), self.input("answer_data", 8 * b)
        self.write_valid, self.write_ready = self.output("write_valid", 1), self.input("write_ready", 1)
        self.write_address, self.write_data = self.output("write_address", 40), self.output("write_data", 8 * b)
        self.write_strobe = self.output("write_strobe", b)
        n = tile.link_port_bytes
        self.link_valid, self.link_data, self.credit = (
            self.output("link_valid", 1),
            self.output("link_data", 8 * n),
            self.input("credit", 1),
        )
        self.arrive_valid, self.arrive_data = self.input("arrive_valid", 1), self.input("arrive_data", 8 * n)
        self.credit_out = self.output("credit_out", 1)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        m.submodules.sequencer = sequencer = named(Sequencer(self.tile, frugal=self.shared.frugal))
        m.submodules.load = load = named(Load(self.tile))
        m.submodules.mxu = mxu = named(Mxu(self.shared))
        store, vector = named(Store(self.tile)), named(Vector(self.shared))
        units: dict[Name, Any] = {Name.LOAD: load, Name.STORE: store, Name.MXU: mxu, Name.VPU: vector}
        works = {"store": store.go | ~store.idle, "vector": vector.go | ~vector.idle}
        net: Net | None = None
        if self.tile.has_link:
            units[Name.NET] = net = named(Net(self.shared))
            works["net"] = net.go | ~net.quiet | net.arrive_valid | net.credit
            m.d.comb += [
                self.link_valid.eq(net.link_valid), self.link_data.eq(net.link_data), net.credit.eq(self.credit),
                net.arrive_valid.eq(self.arrive_valid), net.arrive_data.eq(self.arrive_data), self.credit_out.eq(net.credit_out),
            ]  # fmt: skip
        for name, unit in (("store", store), ("vector", vector), ("net", net)):
            if unit is not None:
                gated(m, name, lingering(m, works[name], 4, name))
                m.submodules[name] = DomainRenamer(name)(unit)
        queues = self._control(m, sequencer, units)
        self._counters(m, sequencer, queues, units)
        self._vector_buffer(m, sequencer, load, store, vector, net)
        self._activations(m, load, store, mxu, vector, net)
        m.d.comb += [
            mxu.load_address.eq(load.word_address), mxu.load_enable.eq(load.weight_enable), mxu.load_data.eq(load.weight_data),
            mxu.load_scale_enable.eq(load.scale_enable), mxu.load_scale.eq(load.scale_data), mxu.vector_read.eq(vector.c_read),
            mxu.vector_address.eq(vector.c_address), vector.c_data.eq(mxu.vector_data),
            self.read_valid.eq(load.read_valid), load.read_ready.eq(self.read_ready), self.read_address.eq(load.read_address),
            load.answer_valid.eq(self.answer_valid), load.answer_data.eq(self.answer_data),
            self.write_valid.eq(store.write_valid), store.write_ready.eq(self.write_ready), self.write_address.eq(store.write_address),
            self.write_data.eq(store.write_data), self.write_strobe.eq(store.write_strobe),
        ]  # fmt: skip
        return m

    def _control(self, m: Module, sequencer: Sequencer, units: dict[Name, Any]) -> dict[Name, Queue]:
        """Join sequencer, queues and semaphores; count cycles."""
        m.submodules.semaphores = semaphores = named(Semaphores())
        queues: dict[Name, Queue] = {q: named(Queue(depth=self.tile.queue_depth, extra_bits=extra_bits(q))) for q in UNITS if q in units}
        queues[Name.LOAD].signals = False  # what its syncs signal the unit gives, when all before is written
        waiters: list[Any] = [sequencer, *queues.values(), units[Name.LOAD]]
        for waiter in waiters:
            m.d.comb += waiter.allowed.eq(((waiter.wait & semaphores.below) == 0) & ((waiter.signal & semaphores.above) == 0))
        takes, gives = (Signal(N_SEMAPHORES, name=n) for n in ("takes", "gives"))
        take: Any = 0
        give: Any = 0
        for waiter in waiters:
            take, give = take | Mux(waiter.fired, waiter.wait, 0), give | Mux(waiter.fired, waiter.signal, 0)
        m.d.comb += [takes.eq(take), gives.eq(give), semaphores.take.eq(takes), semaphores.give.eq(gives)]
        idle: Any = 1
        for q, queue in queues.items():
            m.submodules[f"queue_{q.name.lower()}"] = queue
            unit = units[q]
            m.d.comb += [
                queue.push.eq(sequencer.push[q]), queue.push_word.eq(sequencer.word), queue.push_extra.eq(sequencer.extra[q]),
                sequencer.full[q].eq(queue.full), queue.idle.eq(unit.idle), self.popped[q].eq(queue.popped),
                unit.go.eq(queue.go), unit.word.eq(queue.word), unit.extra.eq(queue.extra),
            ]  # fmt: skip
            idle = idle & queue.empty & (unit.quiet if q in QUIET else queue.idle)
        m.d.comb += units[Name.LOAD].synced.eq(queues[Name.LOAD].fired)
        if Name.NET in units:
            m.d.comb += units[Name.NET].stays.eq(queues[Name.NET].stays)
        running = Signal()
        with m.If(self.start):
            m.d.sync += [running.eq(1), self.cycles.eq(0)]
        with m.Elif(running & ~self.done):
            m.d.sync += self.cycles.eq(self.cycles + 1)
        m.d.comb += [
            sequencer.all_idle.eq(idle), sequencer.start.eq(self.start), self.done.eq(sequencer.done), self.popped[Name.CTRL].eq(sequencer.retired),
            sequencer.host_program.eq(self.host_program), sequencer.host_parameter.eq(self.host_parameter),
            sequencer.host_address.eq(self.host_address), sequencer.host_data.eq(self.host_data),
        ]  # fmt: skip
        return queues

    def _counters(self, m: Module, sequencer: Sequencer, queues: dict[Name, Queue], units: dict[Name, Any]) -> None:
        """Count where cycles go."""
        m.submodules.counters = counters = named(Counters())
        for q, queue in queues.items():
            quiet = units[q].quiet if q in QUIET else units[q].idle
            counters.watch("busy", q, queue.go | queue.fired | ~quiet)
            counters.watch("semaphore", q, queue.held & quiet)
        counters.watch("semaphore", Name.CTRL, sequencer.waits)
        counters.watch("full", Name.CTRL, sequencer.finds_full)
        m.d.comb += [
            counters.clear.eq(self.start), counters.address.eq(self.counter_address), self.counter_data.eq(counters.data),
        ]  # fmt: skip

    def _vector_buffer(self, m: Module, sequencer: Sequencer, load: Load, store: Store, vector: Vector, net: Net | None) -> None:
        """Place one bank a lane: writes from the vector unit, `load` and `recv`; reads of a, b, `store`, `read`, `send` and what `recv` adds to."""
        lanes = self.tile.vector_lanes
        words = self.tile.vector_elements // lanes
        lane_bits = log2(lanes)
        chosen = Signal(lane_bits)
        codes = []
        m.d.sync += chosen.eq(sequencer.vector_address[:lane_bits])
        # Memories tick when they are used; whether `store` reads in a cycle depends on memory's ready, which may come late: while it works.
        used = load.vector_enable.any() | vector.write.any() | vector.a_read | vector.b_read | ~store.idle | sequencer.vector_read
        gated(m, "vectors", used if net is None else used | net.write.any() | net.vector_read | net.add_read)
        for i in range(lanes):
            bank = Ram(width=32, depth=words, writes=2 if net is None else 3, reads=4 if net is None else 6, name=f"vectors{i}")
            bank.place(m, "vectors")
            part = slice(32 * i, 32 * i + 32)
            m.d.comb += [
                bank.write[0].enable.eq(load.vector_enable[i]), bank.write[0].address.eq(load.vector_address + load.vector_carry[i]),
                bank.write[0].data.eq(load.vector_data[part]), bank.write[1].enable.eq(vector.write[i]),
                bank.write[1].address.eq(vector.write_address), bank.write[1].data.eq(vector.write_data[part]),
                bank.read[0].enable.eq(vector.a_read), bank.read[0].address.eq(vector.a_address), vector.a_data[part].eq(bank.read[0].data),
                bank.read[1].enable.eq(vector.b_read), bank.read[1].address.eq(vector.b_address), vector.b_data[part].eq(bank.read[1].data),
                bank.read[2].enable.eq(store.read_enable), bank.read[2].address.eq(store.vector_address + store.vector_carry[i]),
                store.vector_data[part].eq(bank.read[2].data),
                bank.read[3].enable.eq(sequencer.vector_read), bank.read[3].address.eq(sequencer.vector_address >> lane_bits),
            ]  # fmt: skip
            if net is not None:
                m.d.comb += [
                    bank.write[2].enable.eq(net.write[i]), bank.write[2].address.eq(net.write_address), bank.write[2].data.eq(net.write_data[part]),
                    bank.read[4].enable.eq(net.vector_read), bank.read[4].address.eq(net.vector_address), net.vector_data[part].eq(bank.read[4].data),
                    bank.read[5].enable.eq(net.add_read), bank.read[5].address.eq(net.add_address), net.add_data[part].eq(bank.read[5].data),
                ]  # fmt: skip
            codes.append(bank.read[3].data)
        m.d.comb += sequencer.vector_data.eq(Cat(codes).word_select(chosen, 32))

    def _activations(self, m: Module, load: Load, store: Store, mxu: Mxu, vector: Vector, net: Net | None) -> None:
        """Place blocks and scales: writes from `load`, quant and `recv`, reads of `gemm`, `store` and `send`."""
        depth, ports = self.tile.activation_words, 2 if net is None else 3
        used = load.activation_enable.any() | load.activation_scale_enable | vector.block_write | mxu.activation_read | ~store.idle
        gated(m, "activations", used if net is None else used | net.block_write | net.word_read)
        blocks = Ram(width=256, depth=depth, grain=128, writes=ports, reads=ports, name="activations")
        scales = Ram(width=16, depth=depth, writes=ports, reads=ports, name="activation_scales")
        for ram, enable, data, block in (
            (blocks, load.activation_enable, load.activation_data, vector.block),
            (scales, load.activation_scale_enable, load.activation_scale_data, vector.block_scale),
        ):
            ram.place(m, "activations")
            m.d.comb += [
                ram.write[0].enable.eq(enable), ram.write[0].address.eq(load.word_address), ram.write[0].data.eq(data),
                ram.write[1].enable.eq(vector.block_write.replicate(len(ram.write[1].enable))), ram.write[1].address.eq(vector.block_address),
                ram.write[1].data.eq(block), ram.read[0].enable.eq(mxu.activation_read), ram.read[0].address.eq(mxu.activation_address),
                ram.read[1].enable.eq(store.read_enable), ram.read[1].address.eq(store.word_address),
            ]  # fmt: skip
        m.d.comb += [
            mxu.activation.eq(blocks.read[0].data), mxu.activation_scale.eq(scales.read[0].data), store.activation_data.eq(blocks.read[1].data),
            store.activation_scale_data.eq(scales.read[1].data),
        ]  # fmt: skip
        if net is not None:
            for ram, received in ((blocks, net.block), (scales, net.block_scale)):
                m.d.comb += [
                    ram.write[2].enable.eq(net.block_write.replicate(len(ram.write[2].enable))), ram.write[2].address.eq(net.block_address),
                    ram.write[2].data.eq(received), ram.read[2].enable.eq(net.word_read), ram.read[2].address.eq(net.word_address),
                ]  # fmt: skip
            m.d.comb += net.word_data.eq(Cat(blocks.read[2].data, scales.read[2].data))
