"""Where a launch's cycles go, counted in hardware: what `sim.cycles` accounts for, readable by the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amaranth.hdl import Elaboratable, Module, Mux, Signal

if TYPE_CHECKING:
    from amaranth.hdl import Value

    from fabless.program.isa import Queue

#: What is counted, in the order of the addresses: a queue's unit works (waits for memory included), the head of a queue waits for a semaphore,
#: the sequencer finds a queue full. Address = event * 8 + queue; `full` is the sequencer's alone.
EVENTS = ("busy", "semaphore", "full")
WIDTH = 48
N_COUNTERS = 8 * len(EVENTS)


class Counters(Elaboratable):
    """Count cycles in which an event is high, one counter each of WIDTH bits.

    `clear` for a cycle sets all to 0; what nobody watches reads as 0. Host: `data` is the counter at `address`, one cycle later. Cost: an incrementer a
    counter, nothing on any other path.
    """

    def __init__(self) -> None:
        self.clear, self.address, self.data = Signal(), Signal(range(N_COUNTERS)), Signal(WIDTH)
        self.watched: dict[int, Value] = {}

    def watch(self, event: str, queue: Queue, high: Any) -> None:
        """Count the cycles in which `high` is 1."""
        self.watched[address(event, queue)] = high

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        counts = {at: Signal(WIDTH, name=f"count{at}") for at in self.watched}
        for at, high in self.watched.items():
            seen = Signal(name=f"seen{at}")  # a cycle later: what is watched comes late in its cycle
            m.d.sync += [seen.eq(high), counts[at].eq(Mux(self.clear, 0, counts[at] + seen))]
        with m.Switch(self.address):
            for at, count in counts.items():
                with m.Case(at):
                    m.d.sync += self.data.eq(count)
            with m.Default():
                m.d.sync += self.data.eq(0)
        return m


def address(event: str, queue: Queue) -> int:
    """Return where the host reads a counter."""
    return 8 * EVENTS.index(event) + int(queue)
