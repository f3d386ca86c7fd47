"""The compiled loop of the cycle simulator: one pass over the issued instructions in program order (numba)."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN201, PLR0912, PLR0915  numba kernels: types are inferred; one branch an instruction
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from fabless.program.isa import BY_MNEMONIC, LATENCY, LOOP_DEPTH, N_REGISTERS, N_SEMAPHORES, SEMAPHORE_MAX, Queue
from fabless.sim import cycles_link as net
from fabless.sim.machine_words import column, native, wrap

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALT, LOOP, END, MADD, PARAM, READ, SYNC, LOAD, STORE = (
    BY_MNEMONIC[n].code for n in ("halt", "loop", "end", "madd", "param", "read", "sync", "load", "store")
)
CTRL, LOAD_QUEUE, NET, N_QUEUES = int(Queue.CTRL), int(Queue.LOAD), int(Queue.NET), len(Queue)
SEND, RECV, SEND_FILL, RECV_FILL = net.SEND, net.RECV, net.SEND_FILL, net.RECV_FILL
LATENCY_MADD, LATENCY_PARAM, LATENCY_READ = LATENCY["MADD"], LATENCY["PARAM"], LATENCY["READ"]
LOAD_FILL, STORE_FILL = LATENCY["LOAD_FILL"], LATENCY["STORE_FILL"]
LOOP_COUNT, LOOP_COUNT_REG, LOOP_LENGTH = (column("loop", n) for n in ("count", "count_reg", "length"))
MADD_X, MADD_P, MADD_MUL, MADD_Q, MADD_IMM = (column("madd", n) for n in ("x", "p", "mul", "q", "imm"))
PARAM_X, PARAM_AT, PARAM_AT_REG = (column("param", n) for n in ("x", "at", "at_reg"))
SYNC_WAIT, SYNC_SIGNAL = column("sync", "wait"), column("sync", "signal")
ADDRESS, ADDRESS_REG, STRIDE, ROWS = (column("load", n) for n in ("address", "address_reg", "stride", "rows"))
#: Columns of the table that `sim.cycles` makes for each instruction: queue, cycles of the unit, of a transfer the bytes of a row and of a step, its op.
S_QUEUE, S_CYCLES, S_ROW_BYTES, S_CHUNK, S_OP = range(5)
#: Fields of a memory model, as `sim.dram.MemoryModel.numbers` gives them.
M_LATENCY, M_BEATS, M_CYCLES, M_PERIOD, M_REFRESH, M_BANKS, M_ROW_BYTES, M_ACTIVATE, M_PRECHARGE, M_ROW_CYCLES = range(10)
#: What is kept of a bank: the row that was opened last plus 1 (0: none yet), when; hits and misses. One more row holds a channel's last answer.
B_ROW, B_AT, B_HITS, B_MISSES = range(4)
#: Why a queue's unit did not work: columns of the account, by queue.
BUSY, SEMAPHORE, MEMORY, FULL, LINK = range(5)
BAD_PC, BAD_LOOP, BAD_PARAMETER, BAD_WAIT, TOO_MANY, WAITING = range(-1, -7, -1)
#: The load unit: when its asking half is free, when its writing half can take the next, its last step, beats and takes so far, up to which cycle
#: its work is counted. Behind them the cycles of the last takes.
L_ASKER, L_WRITER, L_STEP, L_BEATS, L_TAKES, L_COUNTED = range(6)
#: Where a pass stands: nesting, pc, cycle, instructions, reads, the end of all so far.
CONTROL_WORDS = 6


def fresh(depth: int, room: int) -> tuple[NDArray[np.int64], ...]:
    """Return what the pass over a launch keeps, at its beginning.

    Control, registers, loops, queues, semaphores, read queue, net unit, load unit and what its halves pass on.
    """
    words, ring = np.int64, (N_SEMAPHORES, SEMAPHORE_MAX + 1)
    return (
        np.zeros(CONTROL_WORDS, words), np.zeros(N_REGISTERS, words), np.zeros((2, LOOP_DEPTH), words), np.zeros((2, N_QUEUES), words),
        np.zeros((N_QUEUES, depth), words), np.zeros((2, *ring), words), np.zeros((2, N_SEMAPHORES), words), np.zeros(room, words),
        np.full(net.NET_WORDS, -1, words), np.array([0, 0, -LOAD_FILL, 0, 0, 0], words), np.zeros(depth, words),
    )  # fmt: skip


@native
def ready_from(t, model):
    """Return the first cycle from t on in which memory takes a beat."""
    beats, cycles, period, busy = model[M_BEATS], model[M_CYCLES], model[M_PERIOD], model[M_REFRESH]
    if beats == cycles and period == 0:
        return t
    while True:
        if period != 0 and t % period < busy:
            t += busy - t % period
        if (t + 1) * beats // cycles != t * beats // cycles:
            return t
        t += 1


@native
def outside_refresh(t, model):
    """Return the first cycle from t on outside refresh."""
    if model[M_PERIOD] != 0 and t % model[M_PERIOD] < model[M_REFRESH]:
        return t + model[M_REFRESH] - t % model[M_PERIOD]
    return t


@native
def row_usable(t, address, model, banks):
    """Return when the row of a beat offered in cycle t may be used; opens it: see `sim.dram.Banks`."""
    row = address // model[M_ROW_BYTES]
    bank = banks[row % model[M_BANKS]]
    c = outside_refresh(t, model)
    period = model[M_PERIOD]
    is_open = bank[B_ROW] != 0 and (period == 0 or c // period == bank[B_AT] // period)
    if is_open and bank[B_ROW] == row + 1:
        bank[B_HITS] += 1
        return max(c, bank[B_AT] + model[M_ACTIVATE])
    bank[B_MISSES] += 1
    if is_open:
        c += model[M_PRECHARGE]
    if bank[B_ROW] != 0:
        c = max(c, bank[B_AT] + model[M_ROW_CYCLES])
    c = outside_refresh(c, model)
    bank[B_ROW], bank[B_AT] = row + 1, c
    return c + model[M_ACTIVATE]


@native
def read_answer(t, address, model, banks):
    """Return when a read that is taken in cycle t is answered; those before it come first."""
    last = banks[model[M_BANKS]]
    beats, cycles = model[M_BEATS], model[M_CYCLES]
    at = max(row_usable(t, address, model, banks) + model[M_LATENCY], last[B_AT] + 1)
    while (at + 1) * beats // cycles == at * beats // cycles:
        at += 1
    last[B_AT] = at
    return at


@native
def load(unit, takes, start, address, stride, rows, row_bytes, chunk, width, model, popped, banks):
    """Go through a `load` that the asking half takes in cycle `start`: return when its last word is written, and for how many cycles memory kept it.

    `popped`: a ring, as long as the read queue (a power of two), of the cycles in which beats left it. `takes`: see `take`.
    """
    latency, room, banked = model[M_LATENCY], len(popped), model[M_BANKS] != 0
    emissions, per_beat = (row_bytes + chunk - 1) // chunk, width // chunk
    # A beat can be there three cycles after `start`: asked for, answered, in the queue.
    taken_at = max(start + 1, unit[L_WRITER])
    take(unit, takes, taken_at)
    asked, step, n_beats, waited = start, max(taken_at, start + 2), unit[L_BEATS], 0
    for row in range(rows):
        first = address + row * stride
        offset = first % width
        beats = (offset + row_bytes + width - 1) // width
        bubbles = 1 if offset != 0 and beats != 1 else 0
        taken = 0
        for n in range(emissions + bubbles):
            emitted = n - bubbles
            step += 1
            if emitted < 0 or (emitted % per_beat == 0 and taken != beats):
                at = asked + 1
                if n_beats >= room:
                    at = max(at, popped[n_beats & room - 1] + 1)
                if banked:
                    asked = at
                    there = read_answer(at, (first // width + taken) * width, model, banks) + 1
                else:
                    asked = ready_from(at, model)
                    there = asked + latency + 1
                if there > step:
                    waited += there - step
                    step = there
                popped[n_beats & room - 1] = step
                taken += 1
                n_beats += 1
    unit[L_BEATS] = n_beats
    unit[L_ASKER] = asked + 1
    unit[L_WRITER] = step + 1
    unit[L_STEP] = step
    return step + LOAD_FILL - 2, waited


@native
def take(unit, takes, at):
    """Note that the writing half takes the next that was passed on, in cycle `at`; as many as `takes` is long can be on their way."""
    takes[unit[L_TAKES] % len(takes)] = at
    unit[L_TAKES] += 1


@native
def counted(unit, start, end):
    """Return how many cycles of a load unit at work from `start` until `end` are not counted yet, and count them."""
    new = max(0, end - max(start, unit[L_COUNTED]))
    unit[L_COUNTED] = max(unit[L_COUNTED], end)
    return new


@native
def store_end(start, address, stride, rows, row_bytes, chunk, width, model, banks):
    """Return when a `store` that starts at `start` frees its unit, and as `load_end`: a beat that memory does not take holds up what is behind it."""
    emissions, per_beat = (row_bytes + chunk - 1) // chunk, width // chunk
    step, steps = start, 0
    for row in range(rows):
        first = address + row * stride
        offset = first % width
        beats = (offset + row_bytes + width - 1) // width
        bubbles = 1 if offset != 0 and beats != 1 else 0
        written = 0
        steps += emissions + bubbles
        for n in range(emissions + bubbles):
            step += 1
            if (n + 1 >= emissions or (n + 1) % per_beat == 0) and written != beats:
                at = step + STORE_FILL - 1
                usable = row_usable(at, (first // width + written) * width, model, banks) if model[M_BANKS] != 0 else at
                step += ready_from(usable, model) - at
                written += 1
    return step + STORE_FILL, steps + STORE_FILL


@native
def keep(control, counts, nesting, pc, t, n, n_reads, last):
    """Keep where a pass stands, at an instruction that is looked at again."""
    control[0], control[1], control[2], control[3], control[4], control[5] = nesting, pc, t, n, n_reads, last
    counts[pc] -= 1


@njit(cache=True, error_model="numpy")
def simulate(
    table, static, parameters, reads, depth, room, width, model, limit, account, own, counts, banks, pcs, starts, ends, kept, link_in, link_out, latency
):  # fmt: skip
    """Return (cycles, instructions), (error, pc), or (WAITING, pc) where another tile must be looked at first: then call again.

    Fills `account [op, queue, cause]`; `own [op]`: by how many cycles an op's stores, products and vector work move the end of all that precedes it in
    program order; `counts [pc]`; `banks [reads or writes, bank, B_*]`; and, as far as they reach, `pcs`, `starts`, `ends`. `kept`: see `fresh`.
    Links: see `sim.cycles_link`.

    Dependencies of an instruction stand before it in program order (every signal before its wait), so that one pass knows every time it needs.
    """
    control, registers, loops, queues, left_at, tokens, n_tokens, popped, unit, loader, takes = kept
    loop_first, loop_left, free, pushed, given, taken = loops[0], loops[1], queues[0], queues[1], tokens[0], tokens[1]
    n_given, n_taken, ring = n_tokens[0], n_tokens[1], SEMAPHORE_MAX + 1
    nesting, pc, t, n, n_reads, last = control[0], control[1], control[2], control[3], control[4], control[5]
    while True:
        if pc < 0 or pc >= len(table):
            return BAD_PC, pc
        if n >= limit:
            return TOO_MANY, pc
        word = table[pc]
        op, queue, owner = word[0], static[pc, S_QUEUE], static[pc, S_OP]
        counts[pc] += 1
        following = pc + 1
        start, end = t, t + 1
        if op == HALT:
            if unit[net.SEND_LEFT] >= 0 and not net.advance_send(unit, link_out, latency, account, ends):
                keep(control, counts, nesting, pc, t, n, n_reads, last)
                return WAITING, pc
            free[NET] = max(free[NET], unit[net.SEND_END], unit[net.RECV_END])
            for q in range(N_QUEUES):
                end = max(end, free[q] + 1)
            if n < len(pcs):
                pcs[n], starts[n], ends[n] = pc, start, end
            account[owner, CTRL, BUSY] += 1
            own[owner] += end - last
            return end, n + 1
        if op == LOOP:
            count = wrap(word[LOOP_COUNT] + registers[word[LOOP_COUNT_REG]])
            if count > 0:
                if nesting == LOOP_DEPTH:
                    return BAD_LOOP, pc
                loop_first[nesting], loop_left[nesting] = pc + 1, count
                nesting += 1
            else:
                following = pc + word[LOOP_LENGTH] + 2
        elif op == END:
            if nesting == 0:
                return BAD_LOOP, pc
            loop_left[nesting - 1] -= 1
            if loop_left[nesting - 1] != 0:
                following = loop_first[nesting - 1]
            else:
                nesting -= 1
        elif op == MADD:
            if word[MADD_P] != 0:
                end = t + LATENCY_MADD
            if word[MADD_X] != 0:
                registers[word[MADD_X]] = wrap(registers[word[MADD_P]] * word[MADD_MUL] + registers[word[MADD_Q]] + word[MADD_IMM])
        elif op == PARAM:
            end = t + LATENCY_PARAM
            at = wrap(word[PARAM_AT] + registers[word[PARAM_AT_REG]])
            if at < 0 or at >= len(parameters):
                return BAD_PARAMETER, pc
            if word[PARAM_X] != 0:
                registers[word[PARAM_X]] = parameters[at]
        elif op == READ:
            end = t + LATENCY_READ
            if word[PARAM_X] != 0:
                registers[word[PARAM_X]] = reads[n_reads] if n_reads < len(reads) else 0
            n_reads += 1
        else:
            if queue != CTRL:
                push = t
                if pushed[queue] >= depth:
                    push = max(push, left_at[queue, pushed[queue] % depth] + 1)
                account[owner, CTRL, FULL] += push - t
                t = push
                start = max(push + 1, free[queue])
                if queue == LOAD_QUEUE:
                    start = max(push + 1, loader[L_ASKER])
                    if loader[L_TAKES] >= depth:
                        start = max(start, takes[loader[L_TAKES] % depth] + 1)
            if op == RECV:  # at the head of its queue for two cycles before
                start = max(start, push + 3)
                if pushed[NET] > 0:
                    start = max(start, left_at[NET, (pushed[NET] - 1) % depth] + 3)
            if queue == NET:
                # All but a `recv` that writes elsewhere waits until the running `send` is over.
                alone = op != RECV or (unit[net.RECV_LEFT] < 0 and net.waits_for_send(unit, word, registers))
                if alone and unit[net.SEND_LEFT] >= 0 and not net.advance_send(unit, link_out, latency, account, ends):
                    keep(control, counts, nesting, pc, t, n, n_reads, last)
                    return WAITING, pc
                if alone:
                    start = max(start, unit[net.SEND_END])
                if op == SYNC:
                    start = max(start, unit[net.RECV_END])
            if op == SYNC:
                at = start
                for s in range(N_SEMAPHORES):
                    if word[SYNC_WAIT] >> s & 1:
                        if n_taken[s] >= n_given[s]:
                            return BAD_WAIT, pc
                        at = max(at, given[s, n_taken[s] % ring] + 1)
                gives = at
                passed_on = queue == LOAD_QUEUE and word[SYNC_SIGNAL] != 0  # to the writing half, which gives when all before is written
                if passed_on:
                    gives = max(at + 1, loader[L_WRITER], loader[L_STEP] + LOAD_FILL - 2)
                for s in range(N_SEMAPHORES):
                    if word[SYNC_SIGNAL] >> s & 1 and n_given[s] >= SEMAPHORE_MAX:
                        gives = max(gives, taken[s, (n_given[s] - SEMAPHORE_MAX) % ring] + 1)
                if queue != LOAD_QUEUE:
                    at = gives
                for s in range(N_SEMAPHORES):
                    if word[SYNC_WAIT] >> s & 1:
                        taken[s, n_taken[s] % ring] = at
                        n_taken[s] += 1
                    if word[SYNC_SIGNAL] >> s & 1:
                        given[s, n_given[s] % ring] = gives
                        n_given[s] += 1
                end = gives + 1
                if queue == LOAD_QUEUE:
                    start = max(start, min(at, loader[L_COUNTED]))  # while it writes it does not count as waiting
                account[owner, queue, SEMAPHORE] += at - start
                start = at
                if queue == LOAD_QUEUE:
                    loader[L_ASKER] = at + 1
                    if passed_on:
                        take(loader, takes, gives)
                        loader[L_WRITER] = end
                    account[owner, queue, BUSY] += counted(loader, at, end) - (end - start)
            elif op in (LOAD, STORE):
                address = wrap(word[ADDRESS] + registers[word[ADDRESS_REG]])
                row_bytes, chunk = static[pc, S_ROW_BYTES], static[pc, S_CHUNK]
                if op == LOAD:
                    end, waited = load(
                        loader, takes, start, address, word[STRIDE], word[ROWS], row_bytes, chunk, width, model, popped, banks[0]
                    )
                    new = counted(loader, start, end)
                    waited = min(waited, new)
                    account[owner, queue, BUSY] += new - (end - start)
                else:
                    end, ideal = store_end(start, address, word[STRIDE], word[ROWS], row_bytes, chunk, width, model, banks[1])
                    waited = end - start - ideal
                account[owner, queue, MEMORY] += waited
                account[owner, queue, BUSY] -= waited
            elif op == SEND:
                start = net.send(unit, word, registers, start, static[pc, S_CYCLES] - SEND_FILL, n, owner)
                end = start + 1  # of the next instruction; its own follows from the link
                account[owner, queue, BUSY] -= 1
            elif op == RECV:
                if unit[net.RECV_LEFT] < 0:
                    net.recv(unit, start, static[pc, S_CYCLES] - RECV_FILL, account)
                if not net.both(unit, link_in, link_out, latency, account, ends):
                    keep(control, counts, nesting, pc, t, n, n_reads, last)
                    return WAITING, pc
                start, end = unit[net.RECV_START], net.end_recv(unit, owner, account)
                account[owner, queue, BUSY] -= end - start
            else:
                end = start + static[pc, S_CYCLES]
            if queue != CTRL:
                left_at[queue, pushed[queue] % depth] = start
                pushed[queue] += 1
                free[queue] = max(free[queue], end)
        if n < len(pcs):
            pcs[n], starts[n], ends[n] = pc, start, end
        n += 1
        account[owner, queue, BUSY] += end - start
        if queue not in (CTRL, LOAD_QUEUE) and end > last:
            own[owner] += end - last
            last = end
        t = end if queue == CTRL else t + 1
        pc = following
