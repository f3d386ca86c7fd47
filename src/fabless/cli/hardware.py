"""Commands of the hardware: the chip as Verilog, text that the RTL writes, cycles without RTL, what tools are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fabless.cli.say import say, say_json, say_pairs, say_table
from fabless.core.errors import InputError
from fabless.core.units import si

if TYPE_CHECKING:
    from fabless.program.tile import Tile
    from fabless.sim.dram import MemoryModel

Json = Annotated[bool, Parameter(name="--json", negative="")]


def rtl(
    chip: str = "tiny",
    *,
    out: Path | None = None,
    run: str | None = None,
    prompt: Annotated[str, Parameter(name=["--prompt", "-p"])] = "ROMEO:\n",
    raw: bool = False,
    max_tokens: int = 16,
    latency_cycles: int | None = None,
    check: bool = False,
    json: Json = False,
) -> None:
    """Emit a chip's tile as Verilog with C header, register map and block diagram, or let it write text in simulation.

    Args:
        chip: a chip.toml of dot-product rows, demo, or tiny (four rows).
        out: directory for tile.v, tile.h, registers.md and tile.svg; rtl-<chip> when neither this nor --run is given.
        run: a model that the RTL runs in Verilator: tinyshakes, smollm2-135m, a GGUF file, a Hugging Face directory. Cycles are held against the
            cycle simulator at every launch.
        prompt: what the model continues.
        raw: give the prompt as it is, not as a turn of a conversation.
        max_tokens: tokens to write at most.
        latency_cycles: cycles until memory answers; the chip's DRAM latency when not given.
        check: hold every byte of memory against the bit-exact machine after every launch.
        json: print JSON instead of text.
    """
    name, tile, memory = described(chip, latency_cycles)
    if run is not None:
        _run(name, tile, memory, model=run, prompt=prompt, raw=raw, max_tokens=max_tokens, check=check, json=json)
    if out is None and run is not None:
        return
    from fabless.rtl.documents import write_documents

    written = write_documents(tile, out or Path(f"rtl-{name}"), name)
    if json and run is None:
        say_json({"chip": name, "tile": tile, "files": {p.name: p.stat().st_size for p in written}})
    elif not json:
        say_pairs([(str(p), si(p.stat().st_size, "B")) for p in written])


def described(chip: str, latency_cycles: int | None) -> tuple[str, Tile, MemoryModel]:
    """Return a chip's name, its tile, and how its memory answers."""
    from fabless.cli.execute import tile_of
    from fabless.fleet.on_rtl import memory_model_of
    from fabless.program.tile import TINY
    from fabless.sim.dram import MemoryModel

    if latency_cycles is not None and latency_cycles < 1:
        raise InputError(f"--latency-cycles must be at least 1, not {latency_cycles}")
    if chip == "tiny":
        return "tiny", TINY, MemoryModel(latency_cycles or 20)
    description, tile = tile_of(chip, 1)
    model = memory_model_of(description, tile)
    return description.name, tile, MemoryModel(latency_cycles or model.latency_cycles, model.beats, model.cycles)


def _run(
    name: str, tile: Tile, memory: MemoryModel, *, model: str, prompt: str, raw: bool, max_tokens: int, check: bool, json: bool
) -> None:
    from fabless.cli.execute import clear, note, prompt_ids
    from fabless.fleet.on_rtl import open_rtl_session
    from fabless.model.tokenizer import open_tokenizer
    from fabless.model.weights import open_weights

    weights = open_weights(model)
    tokenizer = open_tokenizer(weights)
    ids = prompt_ids(tokenizer, prompt, raw=raw)
    stream, text, tokens = tokenizer.stream(), [], []

    def show(piece: str) -> None:
        text.append(piece)
        if not json:
            clear()
            sys.stdout.write(piece)
            sys.stdout.flush()

    def progress(launch: int, at: int, cycles: int) -> None:
        note(f"launch {launch}: {si(at, 'cycles')} of {si(cycles, 'cycles')}")

    with open_rtl_session(
        weights, tile, memory_model=memory, check=check, prompt_tokens=len(ids), say=None if json else note, progress=progress
    ) as session:
        clear()
        for token in session.generate(ids, max_tokens, end_ids=tokenizer.end_ids):
            tokens.append(token)
            show(stream.push(token))
        show(stream.end())
        cycles, seconds, launches = sum(session.cycles), session.seconds, list(session.cycles)
    if json:
        say_json({
            "text": "".join(text), "tokens": tokens, "cycles": cycles, "cycles_by_launch": launches, "simulated_cycles": cycles, "fidelity": "rtl",
            "machine_checked": check, "chip": name, "model": weights.decoder.name, "host_s": seconds, "host_cycles_per_s": cycles / seconds,
        })  # fmt: skip
        return
    say()
    say()
    say(
        f"written by the RTL of one tile of '{name}' in Verilator: {len(tokens)} tokens, {cycles:,} cycles, equal to the cycle simulator's"
        + (", memory equal to the machine's" if check else "")
        + f" ({si(seconds, 's')} of processor time, {si(cycles / seconds, 'cycles/s')})"
    )


def simulate(
    model: str = "tinyshakes",
    *,
    chip: str = "demo",
    batch: int = 1,
    tokens: int = 1,
    position: int = 0,
    latency_cycles: int | None = None,
    json: Json = False,
) -> None:
    """Count the cycles of one launch, exactly as the RTL takes them, and where they go; no RTL tools needed.

    Args:
        model: tinyshakes, smollm2-135m, gemma-3-270m, a GGUF file, or a Hugging Face directory.
        chip: a chip.toml, demo, or tiny.
        batch: sequences in the launch.
        tokens: new tokens of each.
        position: tokens already in each sequence's cache.
        latency_cycles: cycles until memory answers; the chip's DRAM latency when not given.
        json: print JSON instead of text.
    """
    from time import monotonic

    from fabless.compiler.driver import compile as compile_model
    from fabless.compiler.launch import Segment
    from fabless.compiler.partition import PAGE_KEYS, Shape
    from fabless.model.weights import open_weights
    from fabless.sim.cycles import simulate as run

    for option, value, least in (("--batch", batch, 1), ("--tokens", tokens, 1), ("--position", position, 0)):
        if value < least:
            raise InputError(f"{option} must be at least {least}, not {value}")
    name, tile, memory = described(chip, latency_cycles)
    decoder = open_weights(model).decoder
    context = min(decoder.context_tokens, 2048)
    if position + tokens > context:
        raise InputError(f"--position {position} and --tokens {tokens} exceed the context of {context} tokens; lower one")
    shape, pages = Shape(batch, tokens), -(-context // PAGE_KEYS)
    compiled = compile_model(decoder, tile, [shape], context_tokens=context, n_pages=pages * batch)
    segments = [Segment([0] * tokens, position, range(i * pages, (i + 1) * pages)) for i in range(batch)]
    parameters = compiled.parameters(shape, segments)
    began = monotonic()
    trace = run(compiled.program(shape), tile, parameters, memory)
    host_s = monotonic() - began
    if json:
        say_json({"model": decoder.name, "chip": name, "batch": batch, "tokens": tokens, "position": position, "memory": memory,
                  "cycles": int(trace.cycles), "units": {e.name: e.cycles for e in trace.events}, "stalls": dict(trace.stalls), "host_s": host_s})  # fmt: skip
        return
    say(
        f"{decoder.name} on one tile of '{name}': {batch} x {tokens} tokens at position {position}: {int(trace.cycles):,} cycles, cycle fidelity"
    )
    rows = [
        (e.name, f"{e.cycles:,.0f}", f"{e.cycles / trace.cycles:.1%}", f"{e.overhead_cycles:,.0f}", f"{e.memory_cycles:,.0f}")
        for e in trace.events
    ]
    say_table(("queue", "busy", "of all", "waits for a semaphore", "waits for memory"), rows, right=(1, 2, 3, 4))


def doctor(*, json: Json = False) -> None:
    """Say which tools of the RTL flow are there, and how to install those that are not.

    Args:
        json: print JSON instead of text.
    """
    from fabless.rtl.bench.build import tools

    found = tools()
    if json:
        say_json(list(found))
        return
    say_table(
        ("tool", "what for", "found", "install"), [(t.name, t.purpose, t.found or "missing", "" if t.found else t.install) for t in found]
    )
    missing = [t.name for t in found if not t.found]
    say()
    say(f"missing: {', '.join(missing)}" if missing else "everything is there")
