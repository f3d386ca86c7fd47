"""The links between tiles in the cycle simulator: when each beat of a `send` leaves and each beat of a `recv` is taken (numba).

A beat that the sender steps in cycle s can be taken from s + latency + 3 on (read, link register, wires, queue); its credit is back for a step
`latency` + 2 cycles after it was taken (register, wires, counter). Both follow from what was known before, whichever tile is looked at first.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN201  numba kernels: types are inferred
from __future__ import annotations

from fabless.program.isa import BY_MNEMONIC, LATENCY, Queue
from fabless.program.timing import LINK_QUEUE_BEATS
from fabless.sim.machine_words import column, native, wrap

SEND, RECV = BY_MNEMONIC["send"].code, BY_MNEMONIC["recv"].code
SPACE, COUNT = column("send", "space"), column("send", "count")
SRC, SRC_REG, DST, DST_REG = column("send", "src"), column("send", "src_reg"), column("recv", "dst"), column("recv", "dst_reg")
SEND_FILL, RECV_FILL = LATENCY["SEND_FILL"], LATENCY["RECV_FILL"]
#: A link: cycles of the last LINK_QUEUE_BEATS steps and takings, behind each how many there were.
STEPPED, TAKEN, BEATS = 0, 1, LINK_QUEUE_BEATS
LINK_SHAPE = (2, BEATS + 1)
#: Where the account of an op keeps cycles of queue net, and those that waited for a neighbour.
NET, BUSY, WAITED = int(Queue.NET), 0, 4
#: A tile's net unit. Of either half: beats left (-1: none), beats in all, when it started, its last beat's cycle, when it is over, its place in
#: the record of instructions and its op; of the send besides: space and range; then the cycle up to which time is accounted for.
(SEND_LEFT, SEND_BEATS, SEND_START, SEND_LAST, SEND_END, SEND_RECORD, SEND_OP, SEND_SPACE, SEND_FIRST, SEND_BEHIND,
 RECV_LEFT, RECV_BEATS, RECV_START, RECV_LAST, RECV_END, COUNTED) = range(16)  # fmt: skip
NET_WORDS = 16


@native
def advance_send(net, link, latency, account, ends):
    """Step the beats of the running `send` for which there is room, as far as is known; return whether it is over."""
    while net[SEND_LEFT] > 0:
        n = link[STEPPED, BEATS]
        at = net[SEND_LAST] + 1
        if n >= BEATS:
            if link[TAKEN, BEATS] <= n - BEATS:
                return False
            at = max(at, link[TAKEN, n % BEATS] + latency + 2)
        link[STEPPED, n % BEATS] = at
        link[STEPPED, BEATS] = n + 1
        net[SEND_LAST] = at
        net[SEND_LEFT] -= 1
    if net[SEND_LEFT] == 0:
        net[SEND_LEFT] = -1
        net[SEND_END] = end = net[SEND_LAST] + SEND_FILL
        if net[SEND_RECORD] < len(ends):
            ends[net[SEND_RECORD]] = end
        account_for(net, net[SEND_OP], net[SEND_START], end, net[SEND_BEATS] + SEND_FILL, account)
    return True


@native
def advance_recv(net, link, latency):
    """Take the beats of the running `recv` that have arrived, as far as is known; return whether it is over."""
    while net[RECV_LEFT] > 0:
        n = link[TAKEN, BEATS]
        if link[STEPPED, BEATS] <= n:
            return False
        at = max(net[RECV_LAST] + 1, link[STEPPED, n % BEATS] + latency + 3)
        link[TAKEN, n % BEATS] = at
        link[TAKEN, BEATS] = n + 1
        net[RECV_LAST] = at
        net[RECV_LEFT] -= 1
    return True


@native
def account_for(net, op, start, end, ideal, account):
    """Add to an op the cycles of [start, end) that are not accounted for yet: busy, and what is above `ideal` waits for the link."""
    new = max(0, end - max(start, net[COUNTED]))
    waits = min(new, max(0, end - start - ideal))
    account[op, NET, BUSY] += new - waits
    account[op, NET, WAITED] += waits
    net[COUNTED] = max(net[COUNTED], end)


@native
def send(net, word, registers, start, beats, record, op):
    """Start a `send` when both halves are free; return when that is. The running one, if any, must be over."""
    start = max(start, net[SEND_END], net[RECV_END])
    first = wrap(word[SRC] + registers[word[SRC_REG]])
    net[SEND_LEFT], net[SEND_BEATS], net[SEND_START], net[SEND_LAST], net[SEND_RECORD], net[SEND_OP] = (
        beats,
        beats,
        start,
        start,
        record,
        op,
    )
    net[SEND_SPACE], net[SEND_FIRST], net[SEND_BEHIND] = word[SPACE], first, first + word[COUNT]
    return start


@native
def waits_for_send(net, word, registers):
    """Return whether a `recv` writes where the last `send` reads."""
    first = wrap(word[DST] + registers[word[DST_REG]])
    return word[SPACE] == net[SEND_SPACE] and first < net[SEND_BEHIND] and net[SEND_FIRST] < first + word[COUNT]


@native
def recv(net, start, beats, account):
    """Start a `recv` when its half is free."""
    start = max(start, net[RECV_END])
    if net[SEND_LEFT] >= 0:
        account_for(net, net[SEND_OP], net[SEND_START], start, start, account)
    net[RECV_LEFT], net[RECV_BEATS], net[RECV_START], net[RECV_LAST] = beats, beats, start, start


@native
def both(net, link_in, link_out, latency, account, ends):
    """Advance both halves while either gets on; return whether the `recv` is over."""
    while True:
        before = link_out[STEPPED, BEATS] + link_in[TAKEN, BEATS]
        advance_send(net, link_out, latency, account, ends)
        over = advance_recv(net, link_in, latency)
        if over or link_out[STEPPED, BEATS] + link_in[TAKEN, BEATS] == before:
            return over


@native
def end_recv(net, op, account):
    """Return when the `recv` that took its last beat frees its half."""
    net[RECV_LEFT] = -1
    net[RECV_END] = end = net[RECV_LAST] + RECV_FILL
    account_for(net, op, net[RECV_START], end, net[RECV_BEATS] + RECV_FILL, account)
    return end
