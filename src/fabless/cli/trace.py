"""The command that looks inside a launch: where cycles go, the whole machine at one instruction, and where two programs part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fabless.cli.execute import _EMBEDDED, _EMBEDDED_PROMPT, _FORMAT, Json, prompt_ids, tile_of
from fabless.cli.say import say, say_json, say_ops, say_pairs, say_table
from fabless.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from fabless.chip.chip import Chip
    from fabless.program.isa import Instruction
    from fabless.program.program import Program
    from fabless.program.tile import Tile
    from fabless.sim.debugger import Moment, Value
    from fabless.sim.dram import MemoryModel
    from fabless.sim.machine import State

_QUEUE_SHOWN = 6


@dataclass(frozen=True)
class _Source:
    """Hold one launch: the ring's programs, the states that it starts from (none where nothing runs), parameters, memory model, what is launched."""

    programs: Sequence[Program]
    states: list[State]
    parameters: dict[str, object]
    memory: MemoryModel
    what: str


def trace(
    source: str = _EMBEDDED,
    *,
    at: int | None = None,
    visit: int = 1,
    launch: int = 1,
    prompt: Annotated[str | None, Parameter(name=["--prompt", "-p"])] = None,
    values: int = 8,
    around: int = 4,
    chip: str = "demo",
    tiles: int = 1,
    chips: int = 1,
    tile: int = 0,
    partition: str = "tensor",
    weights: str = _FORMAT,
    head: str | None = None,
    memory: Path | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    diff: Path | None = None,
    perfetto: Path | None = None,
    json: Json = False,
) -> None:
    """Look inside one launch: where a program's cycles go, or the whole machine at one instruction.

    With --at: registers, loops, semaphores, what every queue holds, the instruction with its operands resolved, the values that it read, the result
    that it wrote, and a digest of every buffer before and behind it. With --diff: the first instruction behind which two programs' states differ.

    Args:
        source: a program that 'fabless compile --out' wrote or assembly (.s), or a model, whose decode of one token is traced.
        at: index of an instruction.
        visit: the k-th time that the launch reaches it.
        launch: the n-th launch: of a model, the n-th token of the prompt and what it writes behind it; of a program, the n-th run on its memory.
        prompt: what the model reads.
        values: numbers shown of each operand.
        around: instructions listed before and after.
        chip: a chip.toml, or demo, when the source is a model.
        tiles: tiles that share the model, in one ring.
        chips: chips that the ring spans.
        tile: the tile of the ring that is looked at.
        partition: how tiles share the model: tensor, pipeline or expert.
        weights: number format of a model's weights.
        head: number format of its head and token table, when it differs.
        memory: bytes that a program's memory starts with; zeros and its constants when not given.
        settings: parameters of a program, as name=value or name=value,value,...; their least values when not given.
        diff: another program for the same tile and memory.
        perfetto: write a trace of all queues that ui.perfetto.dev opens.
        json: print JSON instead of text.
    """
    is_file = Path(source).is_file() and Path(source).suffix != ".gguf"
    _consistent(source, at, (visit, launch), memory is not None or bool(settings) or diff is not None, is_file)
    if diff is not None:
        _diff(Path(source), diff, memory, settings or [], json=json)
        return
    if is_file:
        found = _program_source(Path(source), memory, settings or [], launch)
    else:
        options = {"n_tiles": tiles, "partition": partition, "format": weights, "head_format": head}
        place = tile_of(chip, tiles, chips)
        found = _model(source, place, options) if at is None else _running_model(source, place, options, launch=launch, prompt=prompt)
    if not 0 <= tile < len(found.programs):
        raise InputError(f"--tile {tile}: the ring has tiles 0 to {len(found.programs) - 1}")
    program = found.programs[tile]
    if at is not None and not 0 <= at < len(program):
        raise InputError(f"--at {at}: the program has instructions 0 to {len(program) - 1}")
    if at is None:
        _overview(program, found, json=json)
    else:
        _moment(found, at, visit, tile, around=around, shown=values, json=json)
    if perfetto is not None:
        _perfetto(program, found, perfetto, json=json)


def _consistent(source: str, at: int | None, times: tuple[int, int], for_programs: bool, is_file: bool) -> None:
    """Refuse options that do not belong together."""
    for option, given in zip(("--visit", "--launch"), times, strict=True):
        if given < 1:
            raise InputError(f"{option} must be at least 1, not {given}")
    if for_programs and not is_file:
        raise InputError(
            f"{source}: --memory, --set and --diff are for programs; write the model's with 'fabless compile {source} --out p.words'"
        )
    if at is None and times != (1, 1):
        raise InputError("--visit and --launch choose the moment of an instruction; name it with --at")


def _perfetto(program: Program, source: _Source, path: Path, *, json: bool) -> None:
    from fabless.core.files import write_text
    from fabless.sim.timeline import perfetto_text, timeline

    write_text(path, perfetto_text(program, timeline(program, source.parameters, source.memory, ring=source.programs)))
    if not json:
        say(f"{path}: open it at ui.perfetto.dev")


def _overview(program: Program, source: _Source, *, json: bool) -> None:
    from fabless.sim.cycles import simulate
    from fabless.sim.timeline import timeline

    ring = source.programs
    if json:
        say_json([
            {
                "pc": e.item.pc, "queue": e.item.queue.name.lower(), "mnemonic": e.item.mnemonic, "op": e.op, "begin": e.begin, "cycles": e.cycles,
                "operands": dict(e.item.operands),
            }
            for e in timeline(program, source.parameters, source.memory, ring=ring)
        ])  # fmt: skip
        return
    say_ops(simulate(ring, None, source.parameters, source.memory, shown=next(i for i, p in enumerate(ring) if p is program)))


def _moment(source: _Source, at: int, visit: int, tile: int, *, around: int, shown: int, json: bool) -> None:
    from fabless.program.assembler import line, listing
    from fabless.sim.debugger import look, queues

    m = look(list(zip(source.programs, source.states, strict=True)), at, visit=visit, index=tile)
    begin, end, held = queues(m, source.parameters, source.memory, source.programs)
    item = m.program.instructions[at]
    if json:
        say_json({
            "program": m.program.name, "digest": m.program.digest, "launch": source.what, "tile": tile, "pc": at, "visit": visit,
            "instruction": line(item), "mnemonic": item.mnemonic, "queue": item.queue.name.lower(), "operands": dict(m.operands),
            "start_cycle": begin, "end_cycle": end, "registers": m.registers, "registers_written": {f"x{i}": x for i, x in m.changed.items()},
            "loops": [{"pc": pc, "trips_left": left} for pc, left in m.loops], "semaphores": m.semaphores, "semaphores_after": m.semaphores_after,
            "queues": [{"queue": q.queue.name.lower(), "executes": q.executes, "waits": q.waits} for q in held],
            "reads": [_shown(v, shown) for v in m.reads], "overwritten": [_shown(v, shown) for v in m.overwritten],
            "written": [_shown(v, shown) for v in m.written], "digests_before": dict(m.before), "digests_after": dict(m.after),
        })  # fmt: skip
        return
    say(listing(m.program, first=max(0, at - around), last=at + around + 1).rstrip())
    say()
    say_pairs([
        ("at", f"instruction {at}, visit {visit}, {source.what}"),
        ("runs", f"in queue {item.queue.name.lower()}, cycle {begin:,} to {end:,} (fidelity: cycle)"),
        ("operands", _operands(item, m.operands) or "none"),
        ("loops", ", ".join(f"{pc} ({left} trip{'s' * (left != 1)} left)" for pc, left in m.loops) or "none open"),
        ("registers", " ".join(f"x{i}={x}" for i, x in enumerate(m.registers) if x) or "all 0"),
        ("written", " ".join(f"x{i}={x}" for i, x in m.changed.items()) or "no register"),
        ("semaphores", _semaphores(m)),
        *((q.queue.name.lower(), _held(m, q.executes, q.waits)) for q in held),
    ])  # fmt: skip
    say()
    rows = [("reads", v) for v in m.reads] + [("had", v) for v in m.overwritten] + [("writes", v) for v in m.written]
    if rows:
        say_table(
            ("what", "operand", "place", "digest", "values"),
            [(what, v.operand, _place(v), v.digest, _numbers(v, shown)) for what, v in rows],
        )
        say()
    say_table(("buffer", "before", "behind"), [(n, d, "the same" if m.after[n] == d else m.after[n]) for n, d in m.before.items()])


def _operands(item: Instruction, resolved: Mapping[str, int]) -> str:
    """Return resolved operands, choices as words."""
    fields = item.spec.by_name
    return " ".join(f"{name}={fields[name].choices[x] if name in fields and fields[name].choices else x}" for name, x in resolved.items())


def _semaphores(m: Moment) -> str:
    pairs = [(s, a, b) for s, (a, b) in enumerate(zip(m.semaphores, m.semaphores_after, strict=True)) if a or b]
    return " ".join(f"{s}:{a}" + (f"->{b}" if a != b else "") for s, a, b in pairs) or "all 0"


def _held(m: Moment, executes: int | None, waits: tuple[int, ...]) -> str:
    names = [f"{pc} {m.program.instructions[pc].mnemonic}" for pc in waits[:_QUEUE_SHOWN]]
    more = f", {len(waits) - _QUEUE_SHOWN} more" if len(waits) > _QUEUE_SHOWN else ""
    now = "idle" if executes is None else f"{executes} {m.program.instructions[executes].mnemonic}"
    return now + (f"; waiting: {', '.join(names)}{more}" if names else "")


def _place(v: Value) -> str:
    return f"{v.space}[{v.first}..{v.first + v.count - 1}]" + (f" x {v.rows} rows, {v.stride} apart" if v.rows > 1 else "")


def _first(v: Value, shown: int) -> list[Any]:
    return list(v.content.reshape(-1)[:shown].tolist())


def _numbers(v: Value, shown: int) -> str:
    whole = v.content.size > shown
    return " ".join(f"{x:.6g}" if isinstance(x, float) else str(x) for x in _first(v, shown)) + (
        f" ... of {v.content.size:,}" if whole else ""
    )


def _shown(v: Value, shown: int) -> dict[str, Any]:
    return {
        "operand": v.operand, "space": v.space, "first": v.first, "count": v.count, "rows": v.rows, "stride": v.stride, "digest": v.digest,
        "values": _first(v, shown),
    }  # fmt: skip


def _model(source: str, place: tuple[Chip, Tile], options: dict[str, Any]) -> _Source:
    """Compile a model's decode; no weights are read."""
    from fabless.compiler.driver import Shape
    from fabless.compiler.driver import compile as compiled_of
    from fabless.compiler.launch import Segment
    from fabless.model.weights import open_weights
    from fabless.sim.dram import IDEAL

    decoder = open_weights(source).decoder
    compiled = compiled_of(decoder, place[1], context_tokens=min(decoder.context_tokens, 2048), **options)
    parameters = compiled.parameters(Shape(1, 1), [Segment([0], 0, range(compiled.layouts[0].n_pages))])
    return _Source(compiled.programs[Shape(1, 1)], [], parameters, IDEAL, "launch 1")


def _running_model(source: str, place: tuple[Chip, Tile], options: dict[str, Any], *, launch: int, prompt: str | None) -> _Source:
    """Open a model, run the launches before the one asked for, and return the states that it starts from."""
    from fabless.compiler.launch import Segment
    from fabless.compiler.partition import PAGE_KEYS, Shape, ceil
    from fabless.fleet.session import open_session
    from fabless.model.tokenizer import open_tokenizer
    from fabless.model.weights import open_weights
    from fabless.sim.dram import memory_model_of
    from fabless.sim.machine import launch as launched

    opened = open_weights(source)
    ids = prompt_ids(open_tokenizer(opened), prompt if prompt is not None else _EMBEDDED_PROMPT, raw=prompt is None)
    session = open_session(opened, place[1], chunk=1, **options)
    session.require_room(launch)
    shape, pages, token = Shape(1, 1), range(ceil(session.context_tokens, PAGE_KEYS)), ids[0]
    for position in range(launch - 1):
        logits = session.step(shape, [Segment([token], position, pages)])[0]
        token = ids[position + 1] if position + 1 < len(ids) else int(logits.argmax())
    parameters = session.compiled.parameters(shape, [Segment([token], launch - 1, pages)])
    programs = session.compiled.programs[shape]
    states = [launched(p, m, None, parameters) for p, m in zip(programs, session.memories, strict=True)]
    what = f"launch {launch}: token {token} at position {launch - 1}"
    return _Source(programs, states, parameters, memory_model_of(*place), what)


def _program_source(path: Path, memory: Path | None, given: list[str], launch: int) -> _Source:
    from fabless.compiler.files import read_program
    from fabless.sim.dram import IDEAL
    from fabless.sim.machine import execute
    from fabless.sim.machine import launch as launched

    program = read_program(path)
    parameters, held = _parameters(program, given), _memory(program, memory)
    for _ in range(launch - 1):
        held = execute(program, held, None, parameters).memory
    return _Source([program], [launched(program, held, None, parameters)], parameters, IDEAL, f"launch {launch}")


def _memory(program: Program, path: Path | None) -> NDArray[np.uint8]:
    """Return a program's memory: zeros and constants, then the bytes of a file from the start."""
    import numpy as np

    from fabless.sim.machine import memory_of

    held = memory_of(program)
    if path is not None:
        try:
            raw = np.fromfile(path, np.uint8)
        except OSError as error:
            raise InputError(f"--memory {path}: cannot read it ({error.strerror or error}); give a file of raw bytes") from None
        if len(raw) > len(held):
            raise InputError(f"--memory {path}: {len(raw):,} bytes, the program's buffers end at {len(held):,}; give at most that many")
        held[: len(raw)] = raw
    return held


def _parameters(program: Program, given: list[str]) -> dict[str, object]:
    out: dict[str, object] = {}
    for text in given:
        name, equals, numbers = text.partition("=")
        try:
            out[name] = [int(n) for n in numbers.split(",")] if equals else []
        except ValueError:
            out[name] = []
        if not out[name]:
            raise InputError(f"--set {text}: write name=value or name=value,value with whole numbers")
        program.parameter(name)
    return out


def _diff(first: Path, second: Path, memory: Path | None, given: list[str], *, json: bool) -> None:
    from fabless.compiler.files import read_program
    from fabless.program.assembler import line
    from fabless.sim.debugger import part

    programs = read_program(first), read_program(second)
    held = _memory(programs[0], memory) if memory is not None else None
    found = part(*programs, held, [_parameters(p, given) for p in programs])
    items = (found.first, found.second) if found else (None, None)
    if json:
        rows = [None if i is None else {"pc": i.pc, "instruction": line(p.instructions[i.pc]), "operands": dict(i.operands)}
                for i, p in zip(items, programs, strict=True)]  # fmt: skip
        say_json(
            {
                "same": found is None,
                "agreed": found.agreed if found else None,
                "instructions": rows,
                "differ": found.spaces if found else [],
            }
        )
        return
    if found is None:
        say("the same: every executed instruction leaves the same state in both")
        return
    say(
        f"{found.agreed:,} executed instructions leave the same state (sync left out), then {', '.join(found.spaces) or 'one program has ended'}:"
    )
    for path, i, p in zip((first, second), items, programs, strict=True):
        at = "at its end" if i is None else f"{i.pc}: {line(p.instructions[i.pc])}  [{_operands(p.instructions[i.pc], i.operands)}]"
        say(f"  {path}: {at}")
