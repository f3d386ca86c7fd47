"""The command that counts cycles: one launch of a model on a tile, op by op, as the RTL takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fabless.cli.hardware import described, ring_of
from fabless.cli.say import say, say_json, say_ops, say_table
from fabless.core.errors import InputError
from fabless.core.units import si

if TYPE_CHECKING:
    from fabless.model.decoder import Decoder
    from fabless.program.program import Program
    from fabless.program.tile import Tile
    from fabless.sim.dram import MemoryModel
    from fabless.sim.trace import Trace

_FORMAT = "int8_block32"
Json = Annotated[bool, Parameter(name="--json", negative="")]


def simulate(
    model: str = "tinyshakes",
    *,
    chip: str = "demo",
    batch: int = 1,
    tokens: int = 1,
    position: int = 0,
    chunk: int | None = None,
    tiles: int = 1,
    latency_cycles: int | None = None,
    link_latency_cycles: int = 1,
    memory: str = "latency",
    ops: Annotated[bool, Parameter(negative="")] = False,
    perfetto: Path | None = None,
    json: Json = False,
) -> None:
    """Count the cycles of one launch (or of a prompt in chunks), exactly as the RTL takes them, and where they go; no RTL tools needed.

    Args:
        model: tinyshakes, smollm2-135m, gemma-3-270m, a GGUF file, or a Hugging Face directory.
        chip: a chip.toml, demo, or tiny.
        batch: sequences in the launch.
        tokens: new tokens of each.
        position: tokens already in each sequence's cache.
        chunk: new tokens of each that one launch takes; all of them when not given.
        tiles: tiles of a ring that share the model; what is printed and traced is of the tile that takes longest, its counters of all.
        latency_cycles: cycles until memory answers; the chip's DRAM latency when not given.
        link_latency_cycles: cycles from a tile to the next.
        memory: ideal, latency (and share of bandwidth), or banks (as well rows, banks and refresh of the chip's standard).
        ops: list every op of the model with the cycles it adds, what it computes and moves, and what it waits for.
        perfetto: write every instruction of the launch as a trace that ui.perfetto.dev opens.
        json: print JSON instead of text.
    """
    from fabless.model.counted import counted as counted_model
    from fabless.model.weights import open_weights
    from fabless.sim.bound import bound

    each = tokens if chunk is None else chunk
    for option, value, lowest in (("--batch", batch, 1), ("--tokens", tokens, 1), ("--position", position, 0), ("--chunk", each, 1)):
        if value < lowest:
            raise InputError(f"{option} must be at least {lowest}, not {value}")
    name, tile, answers = described(chip, latency_cycles, memory, tiles)
    decoder = open_weights(model).decoder
    context = min(decoder.context_tokens, 2048)
    if position + tokens > context:
        raise InputError(f"--position {position} and --tokens {tokens} exceed the context of {context} tokens; lower one")
    if perfetto is not None and each < tokens:
        raise InputError(f"--perfetto shows one launch, {tokens} tokens in chunks of {each} are several; give --tokens {each}")
    programs, parameters, trace, host_s = _simulated(
        decoder, tile, answers, batch=batch, tokens=tokens, position=position, chunk=each, context=context, tiles=tiles, link_latency_cycles=link_latency_cycles
    )  # fmt: skip
    least = None
    if tiles == 1:
        least = bound(counted_model(decoder), tile, answers, batch=batch, tokens=tokens, position=position, weights=_FORMAT, head=_FORMAT)
    if perfetto is not None:
        from fabless.core.files import write_text
        from fabless.sim.timeline import perfetto_text, timeline

        shown = programs[trace.slowest_tile]
        timed = timeline(shown, parameters, answers, ring=programs, link_latency_cycles=link_latency_cycles)
        write_text(perfetto, perfetto_text(shown, timed))
    if json:
        roofline = None if least is None else roofline_cycles(least, tile)
        say_json({"model": decoder.name, "chip": name, "batch": batch, "tokens": tokens, "position": position, "chunk": each, "tiles": tiles, "memory": answers,
                  "cycles": int(trace.cycles), "units": dict(trace.units), "stalls": dict(trace.stalls), "counters": counted(trace), "banks": trace.banks,
                  "estimated_cycles": least and least.cycles, "estimate_below_ratio": least and 1 - least.cycles / trace.cycles,
                  "roofline_cycles": roofline, "utilisation_ratio": roofline and roofline / trace.cycles,
                  "ops": [_op(trace, i) for i in range(len(trace.events))], "host_s": host_s})  # fmt: skip
        return
    launches = f" in launches of {each}" if each < tokens else ""
    say(
        f"{decoder.name} on {ring_of(tiles)} of '{name}': {batch} x {tokens} tokens{launches} at position {position}: {int(trace.cycles):,} cycles, cycle fidelity"
    )
    _say_trace(trace, tiles)
    if least is not None:
        roofline = roofline_cycles(least, tile) / trace.cycles
        say(
            f"estimate {least.cycles:,.0f} cycles, {1 - least.cycles / trace.cycles:.1%} below; {roofline:.1%} of the bound by compute or memory"
        )
    if ops:
        say()
        say_ops(trace)
        if least is not None:
            _say_estimate(least)
    if perfetto is not None:
        say(f"{perfetto}: open it at ui.perfetto.dev")


def _simulated(
    decoder: Decoder, tile: Tile, memory: MemoryModel, *, batch: int, tokens: int, position: int, chunk: int, context: int, tiles: int,
    link_latency_cycles: int,
) -> tuple[tuple[Program, ...], dict[str, object], Trace, float]:  # fmt: skip
    """Return programs, parameters of the last launch, the trace of all launches in turn and the seconds that simulating took.

    Logits are asked of the last launch.
    """
    from time import monotonic

    from fabless.compiler.driver import compile as compile_model
    from fabless.compiler.launch import Segment
    from fabless.compiler.partition import PAGE_KEYS, Shape
    from fabless.sim.cycles import simulate as run
    from fabless.sim.trace import one_after_the_other

    shape, pages = Shape(batch, chunk), -(-context // PAGE_KEYS)
    compiled = compile_model(decoder, tile, [shape], context_tokens=context, n_pages=pages * batch, n_tiles=tiles)
    programs, traces, host_s = compiled.programs[shape], [], 0.0
    parameters: dict[str, object] = {}
    for done in range(0, tokens, chunk):
        new = [0] * min(chunk, tokens - done)
        segments = [Segment(new, position + done, range(i * pages, (i + 1) * pages)) for i in range(batch)]
        parameters = compiled.parameters(shape, segments, logits=done + chunk >= tokens)
        began = monotonic()
        traces.append(run(programs, tile, parameters, memory, link_latency_cycles=link_latency_cycles))
        host_s += monotonic() - began
    return programs, parameters, one_after_the_other(traces), host_s


def _say_trace(trace: Trace, tiles: int) -> None:
    """Print queues with what they wait for, what was counted, and banks."""
    stalls = dict(trace.stalls)
    says = {
        "semaphore": "waits for a semaphore",
        "memory": "waits for memory",
        "link": "waits for a neighbour",
        "full": "finds a queue full",
    }
    causes = [c for c in says if tiles > 1 or c != "link"]
    say_table(("queue", "busy", "of all", *(says[c] for c in causes)), [
        (queue, f"{busy:,.0f}", f"{busy / trace.cycles:.1%}", *(f"{stalls.get(f'{queue}.{cause}', 0.0):,.0f}" for cause in causes))
        for queue, busy in trace.units if busy
    ], right=range(1, 3 + len(causes)))  # fmt: skip
    moved = ", ".join(f"{level} {si(n, 'B')}" for level, n in trace.counters.levels)
    say(f"{trace.counters.total_macs:,.0f} multiply-accumulates, {trace.counters.vector_ops:,.0f} vector operations; {moved}")
    if trace.banks:
        (hits, misses), busiest = map(sum, zip(*trace.banks, strict=True)), max(trace.banks)
        say(f"{len(trace.banks)} banks: {hits:,} beats found their row open, {misses:,} did not; the busiest bank served {sum(busiest):,}")


def _say_estimate(least: Trace) -> None:
    say()
    say("the estimate, op by op (its total overlaps what may overlap):")
    say_table(("op", "times", "matrix", "vector", "memory", "alone", "bound"), [
        (e.name, f"{e.count:,}", *(f"{n:,.0f}" for n in (e.compute_cycles, e.vector_cycles, e.memory_cycles, e.cycles)), e.bound) for e in least.events
    ], right=(1, 2, 3, 4, 5))  # fmt: skip


def roofline_cycles(least: Trace, tile: Tile) -> float:
    """Return the bound by compute or memory: all multiply-accumulates at the full rate, or all bytes over the port, whichever takes longer."""
    return max(least.counters.total_macs / (32 * tile.rows), least.counters.dram_bytes / tile.memory_bytes_per_cycle)


def counted(trace: Trace) -> dict[str, float]:
    """Return the events of a trace by name."""
    c = trace.counters
    return {"macs": c.total_macs, "vector_ops": c.vector_ops, "link_bytes": c.link_bytes} | {f"{level}_bytes": n for level, n in c.levels}


def _op(trace: Trace, index: int) -> dict[str, object]:
    e = trace.events[index]
    return {
        "name": e.name, "times": e.count, "cycles": e.cycles, "compute_cycles": e.compute_cycles, "vector_cycles": e.vector_cycles,
        "memory_cycles": e.memory_cycles, "link_cycles": e.link_cycles, "ctrl_cycles": e.overhead_cycles, "bound": e.bound,
        "macs": e.counters.total_macs, "vector_ops": e.counters.vector_ops, **{f"{level}_bytes": n for level, n in e.counters.levels},
        "stalls": dict(e.stalls),
    }  # fmt: skip
