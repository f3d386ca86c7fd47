"""The bit-exact machine: architectural state, and a slow interpreter that reads like the ISA table.

`execute` runs a program and returns the state that it leaves; `sim.machine_fast` is the compiled twin that must leave the same state digest.
Instructions are executed in program order. Every schedule of the queues gives the same state: `program.verify` proves that accesses of two
queues which conflict are ordered by semaphores, and program order is one legal schedule.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.errors import IllegalProgramError, InputError
from fabless.number import arrays, functions
from fabless.number.quantise import quantise
from fabless.program.isa import (
    FORMAT_BITS,
    FUNCTIONS,
    LOWEST,
    MEMORY_FORMATS,
    N_SEMAPHORES,
    OPERAND_B,
    PRE,
    REDUCE,
    SEMAPHORE_MAX,
    SPACES,
    TARGETS,
)
from fabless.program.sequence import Issued, issue, parameter_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from fabless.program.program import Program
    from fabless.program.tile import Tile
    from fabless.sim.machine_fast import Runner

_LINE_BYTES = 64
_UNARY = {"exp2": functions.exp2_array, "rcp": functions.rcp_array, "rsqrt": functions.rsqrt_array}


def cleared(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
    """Return zeros that start at a multiple of 64 bytes, a line of the host's caches: vectors that straddle lines halve the compiled machine's speed."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(n_bytes + _LINE_BYTES, np.uint8)
    first = -raw.ctypes.data % _LINE_BYTES
    lines: np.ndarray = raw[first : first + n_bytes].view(dtype)
    return lines.reshape(shape)


@dataclass
class State:
    """Hold everything that instructions can see of one tile.

    `memory [bytes]` uint8; `weights [words, R, 32]` int8, `weight_scales [words, R]` float32 (tf32 values); `activations [words, 32]` int8,
    `activation_scales [words]` float32 (bf16 values); `accumulators [words * R]` and `vector [elements]` float32; `semaphores [32]`;
    `parameters` int32; `retired` counts instructions that units executed.
    """

    tile: Tile
    memory: NDArray[np.uint8]
    parameters: NDArray[np.int32]
    weights: NDArray[np.int8] = field(init=False)
    weight_scales: NDArray[np.float32] = field(init=False)
    activations: NDArray[np.int8] = field(init=False)
    activation_scales: NDArray[np.float32] = field(init=False)
    accumulators: NDArray[np.float32] = field(init=False)
    vector: NDArray[np.float32] = field(init=False)
    semaphores: NDArray[np.int64] = field(init=False)
    retired: int = 0

    def __post_init__(self) -> None:
        t = self.tile
        self.weights = cleared((t.weight_words, t.rows, 32), np.int8)
        self.weight_scales = cleared((t.weight_words, t.rows), np.float32)
        self.activations = cleared((t.activation_words, 32), np.int8)
        self.activation_scales = cleared((t.activation_words,), np.float32)
        self.accumulators = cleared((t.accumulator_elements,), np.float32)
        self.vector = cleared((t.vector_elements,), np.float32)
        self.semaphores = np.zeros(N_SEMAPHORES, np.int64)

    def parts(self) -> dict[str, np.ndarray]:
        """Return every array of the state by name."""
        return {
            "memory": self.memory, "weights": self.weights, "weight_scales": self.weight_scales, "activations": self.activations,
            "activation_scales": self.activation_scales, "accumulators": self.accumulators, "vector": self.vector, "semaphores": self.semaphores,
        }  # fmt: skip

    def digest(self) -> str:
        """Return 16 hex digits that name the state."""
        h = hashlib.sha256()
        for name, part in self.parts().items():
            h.update(name.encode())
            h.update(np.ascontiguousarray(part).tobytes())
        h.update(str(self.retired).encode())
        return h.hexdigest()[:16]

    def read(self, program: Program, name: str) -> np.ndarray:
        """Return a named buffer's content, in its format and shape where it states them, else bytes."""
        b = program.buffer(name)
        raw = self.memory[b.address : b.end]
        dtype = {"fp32": np.float32, "int8": np.int8, "int32": np.int32, "fp16": np.float16, "bf16": np.uint16}.get(b.format)
        if dtype is None:
            return raw.copy()
        typed = raw.view(dtype)
        return typed[: int(np.prod(b.shape))].reshape(b.shape).copy() if b.shape else typed.copy()


def memory_of(program: Program) -> NDArray[np.uint8]:
    """Return memory up to the end of the last buffer, zero but for the program's constants."""
    size = max((b.end for b in program.buffers), default=0)
    if size > program.tile.memory_bytes:
        raise IllegalProgramError(
            f"program '{program.name}' needs {size} bytes of memory, the tile has {program.tile.memory_bytes}; use more tiles or a smaller model"
        )
    memory = cleared((size,))
    for name, content in program.constants.items():
        write(program, memory, name, content)
    return memory


def write(program: Program, memory: NDArray[np.uint8], name: str, content: bytes | np.ndarray) -> None:
    """Put bytes or an array into a named buffer; raises `InputError` when it is too long."""
    b = program.buffer(name)
    raw = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else np.ascontiguousarray(content).reshape(-1).view(np.uint8)
    if len(raw) > b.bytes:
        raise InputError(f"buffer '{name}' has {b.bytes} bytes, {len(raw)} were given; shorten the input or compile for a larger bound")
    memory[b.address : b.address + len(raw)] = raw


def launch(
    program: Program,
    memory: NDArray[np.uint8] | None = None,
    inputs: Mapping[str, bytes | np.ndarray] | None = None,
    parameters: Mapping[str, object] | None = None,
) -> State:
    """Return the state at the start of a launch: memory (kept in place when given), inputs and parameters written, everything else zero."""
    memory = memory_of(program) if memory is None else memory
    for name, content in (inputs or {}).items():
        write(program, memory, name, content)
    return State(program.tile, memory, parameter_words(program, parameters))


def execute(
    program: Program,
    memory: NDArray[np.uint8] | None = None,
    inputs: Mapping[str, bytes | np.ndarray] | None = None,
    parameters: Mapping[str, object] | None = None,
    *,
    fast: bool | None = None,
) -> State:
    """Run a program to its halt and return the state that it leaves; `memory` is changed in place when given.

    `fast` chooses the compiled machine (default: for programs whose tile has more than four rows, since compiling takes seconds where nothing is
    cached). Both leave the same digest. Raises `IllegalProgramError` naming instruction, rule, value and remedy.
    """
    state = launch(program, memory, inputs, parameters)
    run_ring([(program, state)], fast=fast)
    return state


class Machine:
    """Run one tile's program launch after launch on the same memory, as a host does: caches stay, inputs and parameters change.

    On the compiled machine (`fast`) the program is decoded once. Buffers on the tile keep what the last launch left there; a program that verifies
    never reads it.
    """

    def __init__(self, program: Program, memory: NDArray[np.uint8] | None = None, *, fast: bool = True) -> None:
        self.program = program
        self.state = launch(program, memory)
        self._runner: Runner | None = None
        if fast:
            from fabless.sim.machine_fast import Link, Runner

            self._runner = Runner(program, self.state, Link(), Link())

    def run(self, inputs: Mapping[str, bytes | np.ndarray] | None = None, parameters: Mapping[str, object] | None = None) -> State:
        """Write inputs and parameters, execute to the halt, return the state (the same object every time)."""
        for name, content in (inputs or {}).items():
            write(self.program, self.state.memory, name, content)
        self.state.parameters[:] = parameter_words(self.program, parameters)
        self.state.semaphores[:] = 0
        if self._runner is None:
            run_ring([(self.program, self.state)], fast=False)
        else:
            self._runner.restart()
            if self._runner.advance():
                raise IllegalProgramError(
                    f"program '{self.program.name}' waits for a neighbour, and there is none; run its ring with run_ring"
                )
        return self.state


def run_ring(tiles: Sequence[tuple[Program, State]], *, fast: bool | None = None) -> None:
    """Run one program per tile, connected in a ring in the order given, until all have halted; states are changed in place."""
    if fast if fast is not None else tiles[0][0].tile.rows > 4:
        from fabless.sim.machine_fast import run_ring_fast

        run_ring_fast(tiles)
        return
    links: list[list[Message]] = [[] for _ in tiles]
    runs = [interpret(program, state, links[i - 1], links[i]) for i, (program, state) in enumerate(tiles)]
    waiting = dict(enumerate(runs))
    while waiting:
        before = sum(state.retired for _, state in tiles)
        for i, run in list(waiting.items()):
            if next(run, "halted") == "halted":
                del waiting[i]
        if waiting and sum(state.retired for _, state in tiles) == before and len(waiting) == len(runs):
            raise IllegalProgramError(f"tiles {sorted(waiting)} all wait for their neighbours; let one send before it receives")
        if waiting and not any(links) and len(waiting) < len(runs) and sum(state.retired for _, state in tiles) == before:
            raise IllegalProgramError(
                f"tiles {sorted(waiting)} wait for data that halted neighbours never send; match every recv with a send"
            )


Message = tuple[int, np.ndarray, np.ndarray | None]


def interpret(
    program: Program,
    state: State,
    incoming: list[Message],
    outgoing: list[Message],
    observe: Callable[[Issued, State], None] | None = None,
    watch: Callable[[int, list[int], list[list[int]]], None] | None = None,
    *,
    pause: bool = False,
) -> Iterator[str]:
    """Execute a program on a state, one instruction after the other; yields "waiting" while `recv` finds nothing.

    `observe(item, state)` sees every executed instruction and the state behind it: a debugger's and a lock-step test bench's window.
    `watch` sees what the sequencer takes (see `issue`). `pause`: yield "done" behind every executed instruction.
    """

    def read(at: int) -> int:
        value = float(state.vector[_inside(at, 1, len(state.vector), "read", "vector buffer")])
        return 0 if np.isnan(value) else max(-(2**31), min(2**31 - 1, int(np.rint(max(-3e9, min(3e9, value))))))

    for item in issue(program, state.parameters, read, watch=watch):
        if item.mnemonic == "recv":
            while not incoming:
                yield "waiting"
        try:
            perform(item, state, incoming, outgoing)
        except IllegalProgramError as error:
            raise IllegalProgramError(f"instruction {item.pc} ({item.mnemonic}): {error}") from None
        state.retired += 1
        if observe is not None:
            observe(item, state)
        if pause:
            yield "done"


def perform(item: Issued, state: State, incoming: list[Message], outgoing: list[Message]) -> None:
    """Execute one issued instruction on the state."""
    match item.mnemonic:
        case "sync":
            _sync(item, state)
        case "load":
            _load(item, state)
        case "store":
            _store(item, state)
        case "gemm":
            _gemm(item, state)
        case "vec":
            _vec(item, state)
        case "quant":
            _quant(item, state)
        case "mask":
            _mask(item, state)
        case "rotate":
            _rotate(item, state)
        case "send":
            outgoing.append(_message(item, state))
        case "recv":
            _receive(item, state, incoming.pop(0))


def _inside(first: int, count: int, size: int, what: str, where: str) -> int:
    if first < 0 or count < 0 or first + count > size:
        raise IllegalProgramError(f"{what} covers {first} to {first + count} of the {where}, which has {size}; move or shorten it")
    return first


def _sync(item: Issued, state: State) -> None:
    for s in range(N_SEMAPHORES):
        if item["wait"] >> s & 1:
            if state.semaphores[s] == 0:
                raise IllegalProgramError(f"waits for semaphore {s}, which nothing before it in program order signals; signal it earlier")
            state.semaphores[s] -= 1
    for s in range(N_SEMAPHORES):
        if item["signal"] >> s & 1:
            if state.semaphores[s] == SEMAPHORE_MAX:
                raise IllegalProgramError(f"signals semaphore {s} beyond {SEMAPHORE_MAX}; let its consumer wait more often")
            state.semaphores[s] += 1


def _rows_of(item: Issued, state: State, elements: int, bits: int) -> NDArray[np.int64]:
    """Return the byte indices of a 2-D transfer, `[rows, bytes]`."""
    n_bytes = -(-elements * bits // 8)
    starts = item["address"] + np.arange(item["rows"], dtype=np.int64) * item["stride"]
    _inside(item["address"], int(starts[-1]) - item["address"] + n_bytes, len(state.memory), "the transfer", "memory")
    indices: NDArray[np.int64] = starts[:, None] + np.arange(n_bytes)
    return indices


def decode_elements(raw: NDArray[np.uint8], format: str) -> np.ndarray:
    """Return the elements that bytes `[rows, bytes]` hold: int8 for 8- and 4-bit integers and e2m1 (as twice the value), else float32."""
    if format == "int8":
        return raw.view(np.int8)
    if format in {"int4", "e2m1", "e2m1_split"}:
        nibbles = np.stack([raw & 15, raw >> 4], axis=-1).reshape(raw.shape[0], -1)
        if format == "int4":
            return ((nibbles ^ 8).astype(np.int8) - 8).astype(np.int8)
        return np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)[nibbles]
    return arrays.canonical(_float_elements(raw, format))


def _float_elements(raw: NDArray[np.uint8], format: str) -> NDArray[np.float32]:
    if format == "fp32":
        return np.ascontiguousarray(raw).view(np.float32)
    if format == "bf16":
        return (np.ascontiguousarray(raw).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if format == "fp16":
        return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)
    from fabless.number.formats import E4M3, E8M0
    from fabless.number.round import decode

    base = E8M0 if format.startswith("e8m0") else E4M3
    factor = 0.5 if format.endswith("_half") else 1.0
    table = np.array([decode(code, base) * factor for code in range(256)], np.float64)
    with np.errstate(all="ignore"):
        return table.astype(np.float32)[raw]


def _load(item: Issued, state: State) -> None:
    target, format = TARGETS[item["target"]], MEMORY_FORMATS[item["format"]]
    rows, words, tile = item["rows"], item["rows"] * item["count"], state.tile
    per_word = {"w": 32 * tile.rows, "ws": tile.rows, "a": 32}.get(target, 1)
    raw = state.memory[_rows_of(item, state, item["count"] * per_word, FORMAT_BITS[format])]
    values, dst = decode_elements(raw, format), item["dst"]
    if target == "w":
        _inside(dst, words, tile.weight_words, "the load", "weight buffer")
        if format == "e2m1_split":
            full = np.zeros((rows, item["count"], tile.rows, 32), np.int8)
            halves = values.reshape(rows, item["count"], tile.rows, 16)
            full[0::2, ..., :16], full[1::2, ..., 16:] = halves[0::2], halves[1::2]
            values = full
        state.weights[dst : dst + words] = values.reshape(words, tile.rows, 32)
    elif target == "ws":
        _inside(dst, words, tile.weight_words, "the load", "weight buffer")
        state.weight_scales[dst : dst + words] = values.reshape(words, tile.rows)
    elif target == "a":
        _inside(dst, words, tile.activation_words, "the load", "activation buffer")
        state.activations[dst : dst + words] = values.reshape(words, 32)
    elif target == "as":
        _inside(dst, words, tile.activation_words, "the load", "activation buffer")
        state.activation_scales[dst : dst + words] = values.reshape(words)
    else:
        _inside(dst, words, tile.vector_elements, "the load", "vector buffer")
        state.vector[dst : dst + words] = values.reshape(words).astype(np.float32)


def _store(item: Issued, state: State) -> None:
    target, format = TARGETS[item["target"]], MEMORY_FORMATS[item["format"]]
    rows, units, tile, src = item["rows"], item["rows"] * item["count"], state.tile, item["src"]
    indices = _rows_of(item, state, item["count"] * (32 if target == "a" else 1), FORMAT_BITS[format])
    if target == "a":
        _inside(src, units, tile.activation_words, "the store", "activation buffer")
        raw = state.activations[src : src + units].view(np.uint8)
    elif target == "ab":
        _inside(src, -(-units // 32), tile.activation_words, "the store", "activation buffer")
        raw = state.activations[src : src + -(-units // 32)].view(np.uint8).reshape(-1)[:units]
    elif target == "as":
        _inside(src, units, tile.activation_words, "the store", "activation buffer")
        raw = (state.activation_scales[src : src + units].view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        _inside(src, units, tile.vector_elements, "the store", "vector buffer")
        values = state.vector[src : src + units]
        raw = (arrays.bf16_codes(values) if format == "bf16" else values).view(np.uint8)
    content = raw.reshape(rows, -1)
    for i in range(rows):  # ascending: where rows overlap, the last one stays
        state.memory[indices[i]] = content[i]


def _gemm(item: Issued, state: State) -> None:
    m, n, k, tile, split = item["m"], item["n"], item["k"], state.tile, item["split"]
    w = _inside(item["w"], k * n, tile.weight_words, "gemm's w", "weight buffer")
    a_words = -(-k // 2) if split else k
    _inside(item["a"], (m - 1) * item["a_stride"] + a_words, tile.activation_words, "gemm's a", "activation buffer")
    _inside(item["c"], (m - 1) * item["c_stride"] + n, tile.accumulator_words, "gemm's c", "accumulators")
    if m > 1 and item["c_stride"] < n:
        raise IllegalProgramError(f"accumulator rows of {n} words overlap at c_stride {item['c_stride']}; use at least {n}")
    weights = state.weights[w : w + k * n].reshape(k, n * tile.rows, 32)
    scales = state.weight_scales[w : w + k * n].reshape(k, n * tile.rows)
    if item["unit"]:
        scales = np.ones_like(scales)
    word = item["a"] + np.arange(m)[:, None] * item["a_stride"] + np.arange(k)[None] // (1 + split)
    c = item["c"] * tile.rows + np.arange(m)[:, None] * (item["c_stride"] * tile.rows) + np.arange(n * tile.rows)[None]
    from fabless.number.dot import gemm

    start = np.zeros(c.shape, np.float32) if item["clear"] else state.accumulators[c]
    state.accumulators[c] = gemm(weights, scales, state.activations[word], state.activation_scales[word], start)


def _vector_indices(item: Issued, name: str, size: int, where: str) -> NDArray[np.int64]:
    first, stride = item[name], 32 * item[f"{name}_stride"]
    _inside(first, (item["rows"] - 1) * stride + item["len"], size, name, where)
    indices: NDArray[np.int64] = first + np.arange(item["rows"], dtype=np.int64)[:, None] * stride + np.arange(item["len"])[None]
    return indices


def _operand_a(item: Issued, state: State) -> NDArray[np.float32]:
    source, where = (state.accumulators, "accumulators") if SPACES[item["a_space"]] == "c" else (state.vector, "vector buffer")
    return source[_vector_indices(item, "a", len(source), where)]


def _operand_b(item: Issued, state: State, a: NDArray[np.float32]) -> NDArray[np.float32]:
    match OPERAND_B[item["b_kind"]]:
        case "vector":
            return state.vector[_vector_indices(item, "b", len(state.vector), "vector buffer")]
        case "scalar":
            _inside(item["b"], (item["rows"] - 1) * item["b_stride"] + 1, len(state.vector), "b", "vector buffer")
            return state.vector[item["b"] + np.arange(item["rows"]) * item["b_stride"]][:, None]
        case "register":
            return arrays.canonical(np.array([[item["b"]]], np.uint32).view(np.float32))
    return a


def stream(item: Issued, state: State) -> NDArray[np.float32]:
    """Return t = fn(pre(a, b)), `[rows, len]`: what `vec` and `quant` share."""
    a = _operand_a(item, state)
    pre = PRE[item["pre"]]
    if pre == "copy":
        t = a
    elif pre == "exclude":
        t = np.where(np.arange(item["len"], dtype=np.float32)[None] == _operand_b(item, state, a), np.float32(LOWEST), a)
    else:
        operation = {"add": arrays.add, "sub": arrays.sub, "mul": arrays.mul, "max": arrays.maximum, "min": arrays.minimum}[pre]
        t = operation(a, _operand_b(item, state, a))
    fn = FUNCTIONS[item["fn"]]
    return t if fn == "none" else _UNARY[fn](t)


def _vec(item: Issued, state: State) -> None:
    t = stream(item, state)
    reduce = REDUCE[item["reduce"]]
    if reduce == "none":
        state.vector[_vector_indices(item, "dst", len(state.vector), "vector buffer")] = t
        return
    _inside(item["dst"], (item["rows"] - 1) * item["dst_stride"] + 1, len(state.vector), "dst", "vector buffer")
    values = {"sum": arrays.row_sum, "max": arrays.row_max, "argmax": arrays.row_argmax}[reduce](t)
    state.vector[item["dst"] + np.arange(item["rows"]) * item["dst_stride"]] = values


def _quant(item: Issued, state: State) -> None:
    q, scale = quantise(stream(item, state), scope=("block", "row")[item["scope"]])
    blocks = q.shape[1]
    size = state.tile.activation_words
    _inside(item["dst"], (item["rows"] - 1) * item["dst_stride"] + blocks, size, "dst", "activation buffer")
    word = item["dst"] + np.arange(item["rows"])[:, None] * item["dst_stride"] + np.arange(blocks)[None]
    state.activations[word], state.activation_scales[word] = q, scale


def _mask(item: Issued, state: State) -> None:
    a = _operand_a(item, state)
    index = item["start"] + np.arange(item["len"], dtype=np.int64)[None]
    shift = np.arange(item["rows"], dtype=np.int64)[:, None] * item["step"]
    valid = (item["low"] + shift <= index) & (index < item["high"] + shift)
    fill = np.float32(LOWEST) if item["fill"] else np.float32(0)
    state.vector[_vector_indices(item, "dst", len(state.vector), "vector buffer")] = np.where(valid, a, fill)


def _rotate(item: Issued, state: State) -> None:
    if item["len"] % 2:
        raise IllegalProgramError(f"rotates pairs, len {item['len']} is odd; make it even")
    a = _operand_a(item, state)
    b = state.vector[_vector_indices(item, "b", len(state.vector), "vector buffer")]
    x, y, c, s = a[:, 0::2], a[:, 1::2], b[:, 0::2], b[:, 1::2]
    out = np.empty_like(a)
    out[:, 0::2] = arrays.sub(arrays.mul(x, c), arrays.mul(y, s))
    out[:, 1::2] = arrays.add(arrays.mul(y, c), arrays.mul(x, s))
    state.vector[_vector_indices(item, "dst", len(state.vector), "vector buffer")] = out


def _message(item: Issued, state: State) -> Message:
    src, count = item["src"], item["count"]
    if item["space"] == 0:
        _inside(src, count, len(state.vector), "send", "vector buffer")
        return 0, state.vector[src : src + count].copy(), None
    _inside(src, count, len(state.activations), "send", "activation buffer")
    return 1, state.activations[src : src + count].copy(), state.activation_scales[src : src + count].copy()


def _receive(item: Issued, state: State, message: Message) -> None:
    space, content, scales = message
    dst, count = item["dst"], item["count"]
    if space != item["space"] or len(content) != count:
        raise IllegalProgramError(
            f"expects {count} of space {'va'[item['space']]}, the neighbour sent {len(content)} of space {'va'[space]}; pair send and recv alike"
        )
    if scales is None:
        _inside(dst, count, len(state.vector), "recv", "vector buffer")
        state.vector[dst : dst + count] = arrays.add(content, state.vector[dst : dst + count]) if item["add"] else content
    else:
        _inside(dst, count, len(state.activations), "recv", "activation buffer")
        state.activations[dst : dst + count], state.activation_scales[dst : dst + count] = content, scales
