"""The partners of a tile on its ports, as a user's chip would have them, each with a will of its own and a check of what the tile owes it."""

from __future__ import annotations

from collections import deque

import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

from fabless.program.timing import LINK_QUEUE_BEATS


class ProtocolError(AssertionError):
    """The tile, or its partner, broke a rule of a port."""


def must(truth, rule: str) -> None:
    if not truth:
        raise ProtocolError(rule)


class Reads:
    """Memory's read port: takes a request in a share of the cycles, answers in order some cycles later. `swaps`: a partner that answers out of order."""

    def __init__(self, dut, memory, rng, tile, *, ready=0.5, latency=40, swaps=False):
        self.dut, self.memory, self.rng, self.tile, self.ready, self.latency, self.swaps = dut, memory, rng, tile, ready, latency, swaps
        self.asked: deque[tuple[int, int]] = deque()
        self.waiting: int | None = None
        self.taken = 0

    def cycle(self, t: int) -> None:
        dut, width = self.dut, self.tile.memory_bytes_per_cycle
        valid = int(dut.read_valid.value)
        address = int(dut.read_address.value) if valid else None
        if self.waiting is not None:
            must(address == self.waiting, "a read request changed before it was taken")
        ready = self.rng.random() < (self.ready(t) if callable(self.ready) else self.ready)
        self.waiting = address if valid and not ready else None
        dut.read_ready.value = int(ready)
        answers = bool(self.asked) and self.asked[0][0] <= t
        dut.answer_valid.value = int(answers)
        if answers:
            if self.swaps and len(self.asked) > 1:
                self.asked[0], self.asked[1] = self.asked[1], self.asked[0]
            at = self.asked.popleft()[1]
            data = bytes(self.memory[at : at + width]).ljust(width, b"\0")
            dut.answer_data.value = int.from_bytes(data, "little")
        if valid and ready:
            must(address % width == 0, "a read's address is not a multiple of the width")
            self.taken += 1
            self.asked.append((t + 1 + int(self.rng.integers(self.latency)), address))
            must(len(self.asked) <= self.tile.read_queue_beats, "more beats outstanding than the tile has room for")


class Writes:
    """Memory's write port: takes a beat in a share of the cycles. `whole`: a partner that ignores the strobe."""

    def __init__(self, dut, memory, rng, tile, *, ready=0.5, whole=False):
        self.dut, self.memory, self.rng, self.tile, self.ready, self.whole = dut, memory, rng, tile, ready, whole
        self.waiting, self.taken = None, 0

    def cycle(self, t: int) -> None:
        dut, width = self.dut, self.tile.memory_bytes_per_cycle
        offer = None
        if int(dut.write_valid.value):
            offer = tuple(int(s.value) for s in (dut.write_address, dut.write_data, dut.write_strobe))
        if self.waiting is not None:
            must(offer == self.waiting, "a write changed before it was taken")
        ready = self.rng.random() < self.ready
        self.waiting = None if ready else offer
        dut.write_ready.value = int(ready)
        if offer and ready:
            address, data, strobe = offer
            must(address % width == 0, "a write's address is not a multiple of the width")
            self.taken += 1
            for i in range(width):
                if (strobe >> i & 1 or self.whole) and address + i < len(self.memory):
                    self.memory[address + i] = data >> 8 * i & 255


class Link:
    """The wires of a ring of one tile: beats and credits arrive some cycles after they left, in order. `loses`: wires that lose every 50th beat."""

    def __init__(self, dut, rng, *, latency=30, loses=False):
        self.dut, self.rng, self.latency, self.loses = dut, rng, latency, loses
        self.beats: deque[tuple[int, int]] = deque()
        self.credits: deque[int] = deque()
        self.sent = self.arrived = self.returned = self.owed = 0

    def later(self, t: int, queue: deque) -> int:
        last = queue[-1] if queue else 0
        return max(t + 1 + int(self.rng.integers(self.latency)), last[0] if isinstance(last, tuple) else last)

    def cycle(self, t: int) -> None:
        dut = self.dut
        if int(dut.link_valid.value):
            self.sent += 1
            self.owed += 1
            must(self.owed <= LINK_QUEUE_BEATS, "a beat left without a credit")
            if not self.loses or self.sent % 50:
                self.beats.append((self.later(t, self.beats), int(dut.link_data.value)))
        if int(dut.credit_out.value):
            self.returned += 1
            must(self.returned <= self.arrived, "more credits came back than beats arrived")
            self.credits.append(self.later(t, self.credits))
        arrives = bool(self.beats) and self.beats[0][0] <= t
        dut.arrive_valid.value = int(arrives)
        if arrives:
            dut.arrive_data.value = self.beats.popleft()[1]
            self.arrived += 1
        credit = bool(self.credits) and self.credits[0] <= t
        dut.credit.value = int(credit)
        if credit:
            self.credits.popleft()
            self.owed -= 1


class Host:
    """Resets the tile, writes program and parameters, starts it, and runs its partners until it is done. `forgets`: never writes the last parameter.

    All look and drive as the clock falls: outputs of the cycle stand, no output depends on an input, and the rising edge takes what was driven.
    """

    def __init__(self, dut, *, forgets=False):
        self.dut, self.forgets = dut, forgets
        self.pops: list[tuple[int, int]] = []

    async def reset(self) -> None:
        dut = self.dut
        for name in (
            "start",
            "host_program",
            "host_parameter",
            "read_ready",
            "write_ready",
            "answer_valid",
            "arrive_valid",
            "credit",
            "cut",
        ):
            getattr(dut, name).value = 0
        for name in ("host_address", "host_data", "counter_address", "answer_data", "arrive_data"):
            getattr(dut, name).value = 0
        Clock(dut.clk, 10, "ns").start()
        dut.rst.value = 1
        for _ in range(4):
            await FallingEdge(dut.clk)
        dut.rst.value = 0
        await FallingEdge(dut.clk)

    async def write(self, program, parameters) -> None:
        dut = self.dut
        for at, (low, high) in enumerate(program.words.tolist()):
            dut.host_program.value, dut.host_address.value, dut.host_data.value = 1, at, low | high << 64
            await FallingEdge(dut.clk)
        dut.host_program.value = 0
        for at, value in enumerate(parameters.astype(np.uint32).tolist()[: -1 if self.forgets else None]):
            dut.host_parameter.value, dut.host_address.value, dut.host_data.value = 1, at, value
            await FallingEdge(dut.clk)
        dut.host_parameter.value = 0

    async def run(self, *partners, limit=60_000) -> int:
        """Start, and drive the partners in each cycle until the tile is done; return its count of cycles."""
        dut = self.dut
        dut.start.value = 1
        await FallingEdge(dut.clk)
        dut.start.value = 0
        for t in range(limit):
            must(t or not int(dut.done.value), "done in the cycle after start")
            if int(dut.done.value):
                break
            for partner in partners:
                partner.cycle(t)
            if popped := int(dut.popped.value):
                self.pops.append((t, popped))
            await FallingEdge(dut.clk)
        else:
            raise ProtocolError(f"not done after {limit} cycles")
        return int(dut.cycles.value)
