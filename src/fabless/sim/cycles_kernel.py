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
CTRL, NET, N_QUEUES = int(Queue.CTRL), int(Queue.NET), len(Queue)
SEND, RECV, SEND_FILL, RECV_FILL = net.SEND, net.RECV, net.SEND_FILL, net.RECV_FILL
LATENCY_MADD, LATENCY_PARAM, LATENCY_READ = LATENCY["MADD"], LATENCY["PARAM"], LATENCY["READ"]
LOAD_FILL, STORE_FILL = LATENCY["LOAD_FILL"], LATENCY["STORE_FILL"]
LOOP_COUNT, LOOP_COUNT_REG, LOOP_LENGTH = (column("loop", n) for n in ("count", "count_reg", "length"))
MADD_X, MADD_P, MADD_MUL, MADD_Q, MADD_IMM = (column("madd", n) for n in ("x", "p", "mul", "q", "imm"))
PARAM_X, PARAM_AT, PARAM_AT_REG = (column("param", n) for n in ("x", "at", "at_reg"))
SYNC_WAIT, SYNC_SIGNAL = column("sync", "wait"), column("sync", "signal")
ADDRESS, ADDRESS_REG, STRIDE, ROWS = (column("load", n) for n in ("address", "address_reg", "stride", "rows"))
#: Columns of the table that `sim.cycles` makes for each instruction: queue, cycles of the unit, and of a transfer the bytes of a row and of a step.
S_QUEUE, S_CYCLES, S_ROW_BYTES, S_CHUNK = range(4)
#: Why a queue's unit did not work: columns of the account, by queue.
BUSY, SEMAPHORE, MEMORY, FULL, LINK = range(5)
BAD_PC, BAD_LOOP, BAD_PARAMETER, BAD_WAIT, TOO_MANY, WAITING = range(-1, -7, -1)
#: Where a pass stands: nesting, pc, cycle, instructions, reads.
CONTROL_WORDS = 5


def fresh(depth: int, room: int) -> tuple[NDArray[np.int64], ...]:
    """Return what the pass over a launch keeps, at its beginning: control, registers, loops, queues, semaphores, read queue, net unit."""
    words, ring = np.int64, (N_SEMAPHORES, SEMAPHORE_MAX + 1)
    return (
        np.zeros(CONTROL_WORDS, words), np.zeros(N_REGISTERS, words), np.zeros((2, LOOP_DEPTH), words), np.zeros((2, N_QUEUES), words),
        np.zeros((N_QUEUES, depth), words), np.zeros((2, *ring), words), np.zeros((2, N_SEMAPHORES), words), np.zeros(room, words),
        np.full(net.NET_WORDS, -1, words),
    )  # fmt: skip


@native
def ready_from(t, model):
    """Return the first cycle from t on in which memory takes a beat."""
    beats, cycles, period, busy = model[1], model[2], model[3], model[4]
    if beats == cycles and period == 0:
        return t
    while True:
        if period != 0 and t % period < busy:
            t += busy - t % period
        if (t + 1) * beats // cycles != t * beats // cycles:
            return t
        t += 1


@native
def load_end(start, address, stride, rows, row_bytes, chunk, width, model, popped):
    """Return when a `load` that starts at `start` frees its unit, and its cycles on memory that is always ready.

    `popped`: a ring, as long as the read queue (a power of two), of the cycles in which beats left it.
    """
    latency, room = model[0], len(popped)
    emissions, per_beat = (row_bytes + chunk - 1) // chunk, width // chunk
    asked, taken_all, step, steps = start, 0, start, 0
    for row in range(rows):
        first = address + row * stride
        offset = first % width
        beats = (offset + row_bytes + width - 1) // width
        bubbles = 1 if offset != 0 and beats != 1 else 0
        taken = 0
        steps += emissions + bubbles
        for n in range(emissions + bubbles):
            emitted = n - bubbles
            step += 1
            if emitted < 0 or (emitted % per_beat == 0 and taken != beats):
                at = asked + 1
                if taken_all >= room:
                    at = max(at, popped[taken_all & room - 1] + 1)
                asked = ready_from(at, model)
                step = max(step, asked + latency + 1)
                popped[taken_all & room - 1] = step
                taken += 1
                taken_all += 1
    return step + LOAD_FILL - 2, steps + LOAD_FILL


@native
def store_end(start, address, stride, rows, row_bytes, chunk, width, model):
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
                step += ready_from(at, model) - at
                written += 1
    return step + STORE_FILL, steps + STORE_FILL


@native
def keep(control, nesting, pc, t, n, n_reads):
    """Keep where a pass stands."""
    control[0], control[1], control[2], control[3], control[4] = nesting, pc, t, n, n_reads


@njit(cache=True, error_model="numpy")
def simulate(table, static, parameters, reads, depth, width, model, limit, account, pcs, starts, ends, kept, link_in, link_out, latency):
    """Return (cycles, instructions), (error, pc), or (WAITING, pc) where another tile must be looked at first: then call again.

    Fills `account [queue, cause]` and, as far as they reach, `pcs`, `starts`, `ends`. `kept`: see `fresh`. Links: see `sim.cycles_link`.
    Dependencies of an instruction stand before it in program order (every signal before its wait), so that one pass knows every time it needs.
    """
    control, registers, loops, queues, left_at, tokens, counts, popped, unit = kept
    loop_first, loop_left, free, pushed, given, taken = loops[0], loops[1], queues[0], queues[1], tokens[0], tokens[1]
    n_given, n_taken, ring, link_account = counts[0], counts[1], SEMAPHORE_MAX + 1, account[NET, BUSY :: LINK - BUSY]
    nesting, pc, t, n, n_reads = control[0], control[1], control[2], control[3], control[4]
    while True:
        if pc < 0 or pc >= len(table):
            return BAD_PC, pc
        if n >= limit:
            return TOO_MANY, pc
        word = table[pc]
        op, queue = word[0], static[pc, S_QUEUE]
        following = pc + 1
        start, end = t, t + 1
        if op == HALT:
            if unit[net.SEND_LEFT] >= 0 and not net.advance_send(unit, link_out, latency, link_account, ends):
                keep(control, nesting, pc, t, n, n_reads)
                return WAITING, pc
            free[NET] = max(free[NET], unit[net.SEND_END], unit[net.RECV_END])
            for q in range(N_QUEUES):
                end = max(end, free[q] + 1)
            if n < len(pcs):
                pcs[n], starts[n], ends[n] = pc, start, end
            account[CTRL, BUSY] += 1
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
                account[CTRL, FULL] += push - t
                t = push
                start = max(push + 1, free[queue])
            if queue == NET:
                # All but a `recv` that writes elsewhere waits until the running `send` is over.
                alone = op != RECV or (unit[net.RECV_LEFT] < 0 and net.waits_for_send(unit, word, registers))
                if alone and unit[net.SEND_LEFT] >= 0 and not net.advance_send(unit, link_out, latency, link_account, ends):
                    keep(control, nesting, pc, t, n, n_reads)
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
                    if word[SYNC_SIGNAL] >> s & 1 and n_given[s] >= SEMAPHORE_MAX:
                        at = max(at, taken[s, (n_given[s] - SEMAPHORE_MAX) % ring] + 1)
                for s in range(N_SEMAPHORES):
                    if word[SYNC_WAIT] >> s & 1:
                        taken[s, n_taken[s] % ring] = at
                        n_taken[s] += 1
                    if word[SYNC_SIGNAL] >> s & 1:
                        given[s, n_given[s] % ring] = at
                        n_given[s] += 1
                account[queue, SEMAPHORE] += at - start
                start = at
                end = at + 1
            elif op in (LOAD, STORE):
                address = wrap(word[ADDRESS] + registers[word[ADDRESS_REG]])
                row_bytes, chunk = static[pc, S_ROW_BYTES], static[pc, S_CHUNK]
                if op == LOAD:
                    end, ideal = load_end(start, address, word[STRIDE], word[ROWS], row_bytes, chunk, width, model, popped)
                else:
                    end, ideal = store_end(start, address, word[STRIDE], word[ROWS], row_bytes, chunk, width, model)
                account[queue, MEMORY] += end - start - ideal
                account[queue, BUSY] -= end - start - ideal
            elif op == SEND:
                start = net.send(unit, word, registers, start, static[pc, S_CYCLES] - SEND_FILL, n)
                end = start + 1  # of the next instruction; its own follows from the link
                account[queue, BUSY] -= 1
            elif op == RECV:
                if unit[net.RECV_LEFT] < 0:
                    net.recv(unit, start, static[pc, S_CYCLES] - RECV_FILL, link_account)
                if not net.both(unit, link_in, link_out, latency, link_account, ends):
                    keep(control, nesting, pc, t, n, n_reads)
                    return WAITING, pc
                start, end = unit[net.RECV_START], net.end_recv(unit, link_account)
                account[queue, BUSY] -= end - start
            else:
                end = start + static[pc, S_CYCLES]
            if queue != CTRL:
                left_at[queue, pushed[queue] % depth] = start
                pushed[queue] += 1
                free[queue] = end
        if n < len(pcs):
            pcs[n], starts[n], ends[n] = pc, start, end
        n += 1
        account[queue, BUSY] += end - start
        t = end if queue == CTRL else t + 1
        pc = following
