"""Rings in the cycle simulator, against cycles counted by hand from the description of the links."""

from dataclasses import replace

import pytest

from fabless.core.errors import IllegalProgramError, InputError, UnsupportedError
from fabless.program.assembler import assemble
from fabless.program.isa import Queue
from fabless.program.tile import TINY
from fabless.program.timing import LINK_QUEUE_BEATS
from fabless.sim.cycles import simulate, time, time_ring


def ring(*texts, latency=1, keep=9):
    programs = [assemble(text, tile=TINY) for text in texts]
    return time_ring(programs, [None] * len(programs), link_latency_cycles=latency, keep=keep)


@pytest.mark.parametrize("latency", [1, 2, 9])
def test_one_message_from_one_tile_to_the_next(latency):
    sender, receiver = ring("send count=8\nhalt", "recv count=8\nhalt", latency=latency)
    # pushed in cycle 0, started in 1; steps in 2 and 3, on the link two cycles later, over the cycle after
    assert (sender.starts[0], sender.ends[0]) == (1, 6)
    # at the head of its queue in 1, decided two cycles later; the first beat is on the link in 4, arrives `latency` later, is taken a cycle later, the
    # second behind it; four cycles to the end
    assert (receiver.starts[0], receiver.ends[0]) == (3, 4 + latency + 1 + 1 + 4)
    assert receiver.account[0, Queue.NET, 4] == receiver.ends[0] - 3 - (2 + 4)  # all above two beats and their fill


def test_all_tiles_send_before_they_receive_however_long_the_message():
    text = "send count=4096\nrecv count=4096 dst=4096\nhalt"
    for timing in ring(text, text, text):
        assert timing.ends[1] == 2 + 2 + 1 + 1 + 1023 + 4  # a beat a cycle: step in 2, link in 4, arrival in 5, taken in 6; 1,024 of them


def test_a_link_longer_than_half_its_queue_costs_throughput():
    text = "send count=4096\nrecv count=4096 dst=4096\nhalt"
    slow = ring(text, text, latency=60)[0].cycles
    # a beat's room is back 2 * 60 + 5 cycles after its step: so many cycles for a queue of beats
    assert slow == pytest.approx(1024 / LINK_QUEUE_BEATS * (2 * 60 + 5), rel=0.03)


def test_a_receive_over_what_is_being_sent_waits_for_the_send():
    apart, over = ("send count=64\nrecv count=64 dst=64\nhalt", "send count=64\nrecv count=64 dst=0\nhalt")
    assert [t.starts[1] for t in ring(apart, apart)] == [2 + 2] * 2  # at the head in 2, decided two cycles later
    assert [t.starts[1] for t in ring(over, over)] == [1 + 16 + 3] * 2


def test_a_ring_that_stands_still_is_refused_with_the_remedy():
    n = 4 * (LINK_QUEUE_BEATS + 1)
    both = f"send count={n}\nsend count=4\nrecv count={n} dst=4096\nrecv count=4 dst=4096\nhalt"
    with pytest.raises(
        IllegalProgramError, match=r"ring stands still: tile 0 at instruction 1, tile 1 at instruction 1 wait .*holds 32 beats; send less"
    ):
        ring(both, both)
    with pytest.raises(
        IllegalProgramError, match=r"tile 0 at instruction 0 wait for each other; match every recv with a send of the tile before"
    ):
        ring("recv count=4\nhalt", "halt")


def test_what_is_no_ring_is_refused():
    with pytest.raises(InputError, match="link latency of 0 cycles: a link is a register at least; give 1 or more"):
        ring("halt", latency=0)
    with pytest.raises(UnsupportedError, match="link_bytes_per_cycle = 17 cannot be built; use one of 0, 4, 8, 16"):
        replace(TINY, link_bytes_per_cycle=17)


def test_one_tile_is_its_own_neighbour_and_the_slowest_tile_is_the_rings_trace():
    text = "send count=8\nrecv count=8 dst=64\nhalt"
    program = assemble(text, tile=TINY)
    assert time(program).cycles == ring(text, text)[1].cycles
    later = assemble("madd x=1 p=1 mul=3\nmadd x=1 p=1 mul=3\n" + text, tile=TINY)
    trace = simulate([program, later])
    assert trace.cycles == max(t.cycles for t in time_ring([program, later], [None, None]))
    assert dict(trace.stalls)["net.link"] > 0
    assert trace.counters.link_bytes == 2 * simulate(program).counters.link_bytes == 2 * 32
    assert sum(e.cycles for e in trace.events) == trace.cycles
