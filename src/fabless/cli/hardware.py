"""Commands of the hardware: the chip as Verilog, text that the RTL writes, cycles without RTL, what tools are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fabless.cli.say import say, say_json, say_pairs, say_table
from fabless.core.errors import InputError
from fabless.core.units import si

if TYPE_CHECKING:
    from fabless.program.tile import Tile
    from fabless.sim.dram import MemoryModel

_TINY_TILES = 4
Json = Annotated[bool, Parameter(name="--json", negative="")]


def rtl(
    chip: str = "tiny",
    *,
    out: Path | None = None,
    run: str | None = None,
    prompt: Annotated[str, Parameter(name=["--prompt", "-p"])] = "ROMEO:\n",
    raw: bool = False,
    max_tokens: int = 16,
    weights: str = "int8_block32",
    head: str | None = None,
    tiles: int = 1,
    latency_cycles: int | None = None,
    link_latency_cycles: int = 1,
    memory: str = "latency",
    check: bool = False,
    json: Json = False,
) -> None:
    """Emit a chip's tile as Verilog with C header, register map and block diagram, or let it write text in simulation.

    Args:
        chip: a chip.toml of dot-product rows, demo, or tiny (four rows).
        out: directory for tile.v, tile.h, registers.md and tile.svg; rtl-<chip> when neither this nor --run is given.
        run: a model that the RTL runs in Verilator: tinyshakes, smollm2-135m, a GGUF file, a Hugging Face directory. Cycles of every tile are held
            against the cycle simulator at every launch.
        prompt: what the model continues.
        raw: give the prompt as it is, not as a turn of a conversation.
        max_tokens: tokens to write at most.
        weights: number format of the weights, as of 'fabless run'.
        head: number format of the head and the token table, when it differs.
        tiles: tiles of a ring that share the model, each with a memory of its own.
        latency_cycles: cycles until memory answers; the chip's DRAM latency when not given.
        link_latency_cycles: cycles from a tile to the next.
        memory: ideal, latency (and share of bandwidth), or banks (as well rows, banks and refresh of the chip's standard).
        check: hold every byte of memory against the bit-exact machine after every launch.
        json: print JSON instead of text.
    """
    name, tile, answers = described(chip, latency_cycles, memory, tiles)
    if run is not None:
        options = {"n_tiles": tiles, "link_latency_cycles": link_latency_cycles, "format": weights, "head_format": head}
        _run(name, tile, answers, options, model=run, prompt=prompt, raw=raw, max_tokens=max_tokens, check=check, json=json)
    if out is None and run is not None:
        return
    from fabless.rtl.documents import write_documents

    written = write_documents(tile, out or Path(f"rtl-{name}"), name)
    if json and run is None:
        say_json({"chip": name, "tile": tile, "files": {p.name: p.stat().st_size for p in written}})
    elif not json:
        say_pairs([(str(p), si(p.stat().st_size, "B")) for p in written])


def described(chip: str, latency_cycles: int | None, kind: str = "latency", tiles: int = 1) -> tuple[str, Tile, MemoryModel]:
    """Return a chip's name, its tile, and how its memory answers: its own latency or the one given; `tiny` has the demo chip's DRAM, 20 cycles away.

    Raises `InputError` for more tiles than the chip has; `tiny` has four, each with such a DRAM.
    """
    from dataclasses import replace

    from fabless.cli.execute import demo_chip, tile_of
    from fabless.program.tile import TINY
    from fabless.sim.dram import memory_model_of

    if latency_cycles is not None and latency_cycles < 1:
        raise InputError(f"--latency-cycles must be at least 1, not {latency_cycles}")
    if chip == "tiny" and not 1 <= tiles <= _TINY_TILES:
        raise InputError(f"--tiles {tiles}: chip 'tiny' has {_TINY_TILES} tiles; give 1 to {_TINY_TILES}")
    description, tile = (demo_chip(), TINY) if chip == "tiny" else tile_of(chip, tiles)
    cycles = latency_cycles or (20 if chip == "tiny" else None)
    model = memory_model_of(description, tile, kind)
    if cycles is not None and kind != "ideal":
        model = replace(model, latency_cycles=max(1, cycles - model.activate_cycles))
    return "tiny" if chip == "tiny" else description.name, tile, model


def ring_of(n: int) -> str:
    """Return what so many tiles are called."""
    return "one tile" if n == 1 else f"a ring of {n} tiles"


def _run(
    name: str, tile: Tile, memory: MemoryModel, options: dict[str, Any], *, model: str, prompt: str, raw: bool, max_tokens: int, check: bool, json: bool
) -> None:  # fmt: skip
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
        weights, tile, memory_model=memory, check=check, prompt_tokens=len(ids), say=None if json else note, progress=progress, **options
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
            "machine_checked": check, "chip": name, "tiles": options["n_tiles"], "link_latency_cycles": options["link_latency_cycles"], "model": weights.decoder.name,
            "host_s": seconds, "host_cycles_per_s": cycles / seconds,
        })  # fmt: skip
        return
    say()
    say()
    say(
        f"written by the RTL of {ring_of(options['n_tiles'])} of '{name}' in Verilator: {len(tokens)} tokens, {cycles:,} cycles, equal to the cycle simulator's"
        + (", memory equal to the machine's" if check else "")
        + f" ({si(seconds, 's')} of processor time, {si(cycles / seconds, 'cycles/s')})"
    )


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
