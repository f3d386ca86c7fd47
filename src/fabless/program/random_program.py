"""Random legal programs, drawn from the ISA table: for the machines' agreement, and for RTL in lock step."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fabless.program.isa import BY_MNEMONIC, FORMAT_BITS, LOAD_FORMATS, STORE_FORMATS, Instruction, Queue, instruction
from fabless.program.program import Buffer, Parameter, Program

if TYPE_CHECKING:
    from fabless.program.tile import Tile

_UNITS = (Queue.LOAD, Queue.STORE, Queue.MXU, Queue.VPU, Queue.NET)
_PAIRS = {(p, c): i for i, (p, c) in enumerate((p, c) for p in _UNITS for c in (*_UNITS, Queue.CTRL) if p != c)}
_DATA_BYTES, _OUT_BYTES = 1 << 15, 1 << 14
_PARAMETERS = 8


class _Draw:
    """Draw operands so that every access stays inside the part of each memory that the prologue has filled."""

    def __init__(self, tile: Tile, rng: np.random.Generator) -> None:
        self.tile, self.rng = tile, rng
        self.vector = min(2048, tile.vector_elements)
        self.words = min(max(32 * 16 // tile.rows, 8), tile.weight_words)
        self.activations = min(64, tile.activation_words)
        self.accumulators = min(max(1024 // tile.rows, 8), tile.accumulator_words)

    def pick(self, *options: str) -> str:
        return str(self.rng.choice(np.array(options)))

    def upto(self, high: int) -> int:
        return int(self.rng.integers(0, max(1, high + 1)))

    def size(self, low: int, high: int) -> int:
        """Return a size in [low, high], small ones more often."""
        return int(min(high, low + self.rng.geometric(min(1.0, 4 / (high - low + 4))) - 1))

    def aligned(self, high: int, unit: int) -> int:
        return self.upto(max(0, high) // unit) * unit


def _load(d: _Draw) -> Instruction:
    target = d.pick(*LOAD_FORMATS)
    format = d.pick(*LOAD_FORMATS[target])
    limit = {"w": d.words, "ws": d.words, "a": d.activations, "as": d.activations, "v": d.vector}[target]
    if target in {"v", "as"} and d.rng.random() < 0.3:
        rows, count = d.size(1, min(16, limit)), 1
        unit = max(1, FORMAT_BITS[format] // 8)
        stride = d.upto(8) * unit
    else:
        rows = d.size(1, 4)
        count = d.size(1, min(64 if target == "v" else 4, limit // rows))
        unit = 32
        elements = count * {"w": 32 * d.tile.rows, "ws": d.tile.rows, "a": 32}.get(target, 1)
        stride = -(-(elements * FORMAT_BITS[format] // 8) // 32) * 32 + 32 * d.upto(1)
    span = (rows - 1) * stride + count * 32 * d.tile.rows * 4
    dst = d.upto(limit - rows * count)
    dst = dst // d.tile.vector_align * d.tile.vector_align if target == "v" else dst
    return instruction(
        "load", target=target, format=format, count=count, rows=rows, dst=dst, stride=stride, address=d.aligned(_DATA_BYTES - span, unit)
    )


def _store(d: _Draw) -> Instruction:
    target = d.pick(*STORE_FORMATS)
    format = d.pick(*STORE_FORMATS[target])
    limit = {"a": d.activations, "as": d.activations, "ab": d.activations, "v": d.vector}[target]
    element = {"a": 32}.get(target, FORMAT_BITS[format] // 8)
    if target == "ab" or d.rng.random() < 0.3:
        rows, count, unit, stride = d.size(1, 16), 1, element, (1 + d.upto(24)) * element
    else:
        rows, count, unit = d.size(1, 4), d.size(1, 8), 32
        stride = -(-(count * element) // 32) * 32
    span = (rows - 1) * stride + count * element
    src = d.upto(limit - rows * count)
    src = src // d.tile.vector_align * d.tile.vector_align if target == "v" else src
    address = _DATA_BYTES + d.aligned(_OUT_BYTES - span, unit)
    return instruction("store", target=target, format=format, count=count, rows=rows, src=src, stride=stride, address=address)


def _gemm(d: _Draw) -> Instruction:
    n = d.size(1, 4)
    k = d.size(1, min(d.activations, d.words // n))
    m = d.size(1, min(8, d.accumulators // n))
    a_stride = d.upto(max(0, (d.activations - k) // max(1, m - 1)) if m > 1 else 3)
    c_stride = n + d.upto(max(0, (d.accumulators - m * n) // m))
    return instruction(
        "gemm", m=m, n=n, k=k, w=d.upto(d.words - n * k), a=d.upto(d.activations - k - (m - 1) * a_stride), a_stride=a_stride,
        c=d.upto(d.accumulators - n - (m - 1) * c_stride), c_stride=c_stride,
        clear=int(d.rng.random() < 0.5), split=int(d.rng.random() < 0.2), unit=int(d.rng.random() < 0.2),
    )  # fmt: skip


def _vector_shape(d: _Draw, *, from_c: bool) -> dict[str, int | str]:
    """Draw rows, len and operand a; a quarter of each memory apart, so that a, b and dst never overlap but by intent."""
    align, quarter = d.tile.vector_align, d.vector // 4
    rows, length = d.size(1, 4), d.size(1, quarter // 4)
    stride = -(-length // align) * align
    rows = max(1, min(rows, quarter // stride))
    source = d.accumulators * d.tile.rows if from_c else quarter
    rows = max(1, min(rows, source // stride))
    length = min(length, source // rows)
    a = d.aligned(source - (rows - 1) * stride - length, align)
    return {"rows": rows, "len": length, "a_space": "c" if from_c else "v", "a": a, "a_stride": stride // 32}


def _operand_b(d: _Draw, shape: dict[str, int | str]) -> dict[str, int | str]:
    rows, length, quarter, align = int(shape["rows"]), int(shape["len"]), d.vector // 4, d.tile.vector_align
    kind = d.pick("vector", "scalar", "register", "self")
    stride = -(-length // align) * align * int(d.rng.random() < 0.7)
    if kind == "vector":
        return {"b_kind": kind, "b": quarter + d.aligned(quarter - rows * stride - length, align), "b_stride": stride // 32}
    if kind == "scalar":
        return {"b_kind": kind, "b": quarter + d.upto(quarter - rows - 1), "b_stride": d.upto(1)}
    return {"b_kind": kind, "b_reg": 1 + d.upto(3)} if kind == "register" else {"b_kind": kind}


def _destination(d: _Draw, shape: dict[str, int | str], *, scalars: bool) -> dict[str, int]:
    rows, length, half, align = int(shape["rows"]), int(shape["len"]), d.vector // 2, d.tile.vector_align
    if scalars:
        return {"dst": half + d.upto(half - 2 * rows), "dst_stride": 1 + d.upto(1)}
    stride = -(-length // align) * align
    if shape["a_space"] == "v" and d.rng.random() < 0.2:
        return {"dst": int(shape["a"]), "dst_stride": int(shape["a_stride"])}
    return {"dst": half + d.aligned(half - rows * stride, align), "dst_stride": stride // 32}


def _chain(d: _Draw, shape: dict[str, int | str]) -> dict[str, int | str]:
    """Draw what vec and quant share: the two-operand step with its operand b, and the function."""
    pre = d.pick("copy", "add", "sub", "mul", "max", "min", "exclude")
    b = _operand_b(d, shape) if pre != "copy" else {}
    if b.get("b_kind") == "self" and pre == "exclude":
        b = {"b_kind": "register", "b_reg": 1}
    return {"pre": pre, "fn": d.pick("none", "none", "exp2", "rcp", "rsqrt"), **b}


def _vec(d: _Draw) -> Instruction:
    shape, reduce = _vector_shape(d, from_c=d.rng.random() < 0.3), d.pick("none", "none", "sum", "max", "argmax")
    return instruction("vec", reduce=reduce, **shape, **_chain(d, shape), **_destination(d, shape, scalars=reduce != "none"))


def _quant(d: _Draw) -> Instruction:
    shape = _vector_shape(d, from_c=d.rng.random() < 0.3)
    blocks = -(-int(shape["len"]) // 32)
    shape["rows"] = rows = min(int(shape["rows"]), d.activations // blocks)
    stride = blocks + d.upto(max(0, (d.activations - rows * blocks) // rows))
    dst = d.upto(d.activations - blocks - (rows - 1) * stride)
    return instruction("quant", scope=d.pick("block", "row"), dst=dst, dst_stride=stride, **shape, **_chain(d, shape))


def _mask(d: _Draw) -> Instruction:
    shape = _vector_shape(d, from_c=d.rng.random() < 0.3)
    return instruction(
        "mask", **shape, **_destination(d, shape, scalars=False), start_reg=d.upto(7), low_reg=d.upto(7), high_reg=d.upto(7), step=d.upto(3),
        fill=d.pick("zero", "lowest"),
    )  # fmt: skip


def _rotate(d: _Draw) -> Instruction:
    shape = _vector_shape(d, from_c=d.rng.random() < 0.3)
    shape["len"] = max(2, int(shape["len"]) // 2 * 2)
    b = _operand_b(d, shape)
    while b["b_kind"] != "vector":
        b = _operand_b(d, shape)
    return instruction("rotate", **shape, b=b["b"], b_stride=b["b_stride"], **_destination(d, shape, scalars=False))


_MAKERS = {"load": _load, "store": _store, "gemm": _gemm, "vec": _vec, "quant": _quant, "mask": _mask, "rotate": _rotate}


def _net(d: _Draw) -> list[Instruction]:
    """Send and receive what was sent: on a ring of one tile a link leads back; on a longer ring every tile runs the same program."""
    message = _message(d)
    return [_sent(d, message), _received(d, message)]


def _message(d: _Draw, *, short: bool = False) -> tuple[str, int]:
    """Draw space and count of a message: a few beats, or (not `short`) now and then more than a link holds."""
    if d.rng.random() < 0.5:
        return "a", d.size(1, 2 if short else 8)
    return "v", d.upto(d.vector // 4 - 1) + 1 if d.rng.random() < 0.2 and not short else d.size(1, 16 if short else 64)


def _sent(d: _Draw, message: tuple[str, int]) -> Instruction:
    space, count = message
    src = d.upto(d.activations - count) if space == "a" else d.aligned(d.vector // 2 - count, d.tile.vector_align)
    return instruction("send", space=space, count=count, src=src)


def _received(d: _Draw, message: tuple[str, int]) -> Instruction:
    """Receive elements into the upper half: what is sent beside stands in the lower one. Words may overlap those that are sent."""
    space, count = message
    half = d.vector // 2
    dst = d.upto(d.activations - count) if space == "a" else half + d.aligned(half - count, d.tile.vector_align)
    return instruction("recv", space=space, count=count, dst=dst, add=d.upto(1) if space == "v" else 0)


def random_program(tile: Tile, rng: np.random.Generator, length: int = 40, *, net: bool = True) -> Program:
    """Draw a program of about `length` unit instructions for a tile: it verifies, halts, and reaches every field of the table in time.

    Memory holds random bytes (among them NaN and infinite scales); every two queues are ordered by a semaphore wherever the queue changes.
    Some instructions stand in loops, some of them with addresses from registers. Without `net`, or on a tile without a link, nothing is sent or received.
    """
    d = _Draw(tile, rng)
    return _program(d, _body(d, length, net=net and tile.has_link))


def random_ring(tile: Tile, rng: np.random.Generator, n_tiles: int, length: int = 40, *, rounds: int = 6) -> tuple[Program, ...]:
    """Draw a program for each tile of a ring, about `length` unit instructions each: every recv finds its send, and no order of events stops the ring.

    Between `rounds` of exchange each tile does what it likes. In a round all links carry messages of their own; at least one tile sends before it
    receives; a round may be repeated in a loop, or be of two messages a link that fit it together.
    """
    draws = [_Draw(tile, rng) for _ in range(n_tiles)]
    bodies: list[list[Instruction]] = [[] for _ in draws]
    for _ in range(rounds):
        n_messages = 1 + int(rng.random() < 0.2)
        links = [[_message(d, short=n_messages > 1) for _ in range(n_messages)] for d in draws]
        trips, leader = int(rng.integers(0, 4)) if rng.random() < 0.3 else None, int(rng.integers(n_tiles))
        for i, d in enumerate(draws):
            sends, receives = [_sent(d, m) for m in links[i]], [_received(d, m) for m in links[i - 1]]
            exchange = [*sends, *receives] if i == leader or rng.random() < 0.6 else [*receives, *sends]
            if trips is not None:
                exchange = [instruction("loop", count=trips), *exchange, instruction("end")]
            bodies[i] += _body(d, int(rng.integers(0, 2 * length // rounds + 1)), net=False) + exchange
    return tuple(_program(d, body) for d, body in zip(draws, bodies, strict=True))


def _body(d: _Draw, length: int, *, net: bool) -> list[Instruction]:
    """Draw about `length` unit instructions, some in loops."""
    body: list[Instruction] = []
    depth = 0
    rng = d.rng
    for name in rng.choice(np.array(sorted([*_MAKERS, *(["net"] if net else [])])), length):
        if rng.random() < 0.12 and depth < 3:
            body.append(instruction("loop", count=d.upto(2), count_reg=d.pick("0", "0", "4") == "4" and 4))
            depth += 1
        body += _net(d) if name == "net" else [_through_register(_MAKERS[str(name)](d), d)]
        if rng.random() < 0.1:
            body.append(instruction("read", x=8 + d.upto(7), at=d.upto(d.vector - 1)))
        if depth and rng.random() < 0.3:
            body.append(instruction("end"))
            depth -= 1
    return [*body, *[instruction("end")] * depth]


def _program(d: _Draw, body: list[Instruction]) -> Program:
    """Fill the memories before a body, put it in order, and end it."""
    return Program.of(
        _with_lengths([*_ordered(_prologue(d) + body), instruction("halt")]),
        d.tile,
        buffers=(Buffer("data", 0, _DATA_BYTES, "input"), Buffer("out", _DATA_BYTES, _OUT_BYTES, "output")),
        parameters=(Parameter("anything", 0, _PARAMETERS, -100, 300), Parameter("trips", _PARAMETERS, 1, 0, 2)),
        name="random",
    )


def random_memory(rng: np.random.Generator) -> bytes:
    """Draw the content of buffer `data`: bytes of every kind, half of them of binary32 and bf16 numbers of moderate size."""
    raw = rng.integers(0, 256, _DATA_BYTES, dtype=np.uint8)
    for first in range(0, _DATA_BYTES, 2048):
        if rng.random() < 0.5:
            raw[first : first + 2048] = (rng.standard_normal(512) * 2.0 ** rng.integers(-3, 3)).astype(np.float32).view(np.uint8)
        elif rng.random() < 0.5:
            codes = (rng.standard_normal(1024).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            raw[first : first + 2048] = codes.view(np.uint8)
    return raw.tobytes()


def _prologue(d: _Draw) -> list[Instruction]:
    """Fill every word that the program may read."""
    rows = d.tile.rows
    words = min(d.words, _DATA_BYTES // (32 * rows))
    loads = [instruction("load", target="w", format="int8", count=words, dst=first) for first in range(0, d.words - words + 1, words)]
    d.words = words * len(loads)
    loads += [
        instruction("load", target="ws", format="bf16", count=d.words, address=2048),
        instruction("load", target="a", format="int8", count=d.activations, address=4096),
        instruction("load", target="as", format="bf16", count=d.activations, address=2048),
        instruction("load", target="v", format="fp32", count=d.vector, address=8192),
    ]
    registers = [
        instruction("madd", x=1, imm=0x3F000000),
        instruction("madd", x=2, imm=-int(d.rng.integers(1, 1 << 31))),
        instruction("param", x=3, at=0),
        instruction("param", x=4, at=_PARAMETERS),
        instruction("param", x=5, at=1),
        instruction("madd", x=6, p=5, mul=-3, q=3, imm=17),
        instruction("madd", x=7, imm=64),
    ]
    gemms = [instruction("gemm", n=1, m=min(256, d.accumulators - c), c=c, c_stride=1, clear=1) for c in range(0, d.accumulators, 256)]
    return [*loads, *registers, *gemms]


def _through_register(item: Instruction, d: _Draw) -> Instruction:
    """Move part of an address into X7 = 64 now and then: immediate less 64, plus the register."""
    names = [f.name for f in item.spec.fields if f"{f.name}_reg" in item.spec.by_name and item[f.name] >= 64]
    if not names or d.rng.random() < 0.6:
        return item
    name = d.pick(*names)
    if name == "b" and item.mnemonic in {"vec", "quant"} and item.choice("b_kind") == "register":
        return item
    values = dict(zip((f.name for f in item.spec.fields), item.values, strict=True))
    values |= {name: values[name] - 64, f"{name}_reg": 7}
    return replace(item, values=tuple(values[f.name] for f in item.spec.fields))


def _ordered(items: list[Instruction]) -> list[Instruction]:
    """Put a signal and a wait wherever two queues follow each other; at loop edges the ctrl queue's own loops run everything in one order."""
    out: list[Instruction] = []
    last: Queue | None = None
    for item in items:
        queue = Queue.CTRL if item.mnemonic == "read" else BY_MNEMONIC[item.mnemonic].queue
        if item.mnemonic in {"loop", "end"}:
            if last not in {None, Queue.VPU}:
                out += _sync(last, Queue.VPU)
            last = Queue.VPU if last is not None else None
        elif item.mnemonic == "read":
            if last is not None:
                out += _sync(last, Queue.VPU) if last != Queue.VPU else []
                out += _sync(Queue.VPU, Queue.CTRL)
                last = Queue.VPU
        elif queue != Queue.CTRL:
            if last is not None and last != queue:
                out += _sync(last, queue)
            last = queue
        out.append(item)
    return out


def _sync(producer: Queue | None, consumer: Queue) -> list[Instruction]:
    if producer is None or producer == consumer:
        return []
    mask = 1 << _PAIRS[producer, consumer]
    return [instruction("sync", queue=int(producer), signal=mask), instruction("sync", queue=int(consumer), wait=mask)]


def _with_lengths(items: list[Instruction]) -> list[Instruction]:
    """Fill in how many instructions each loop spans."""
    open_loops: list[int] = []
    out = list(items)
    for index, item in enumerate(items):
        if item.mnemonic == "loop":
            open_loops.append(index)
        elif item.mnemonic == "end":
            first = open_loops.pop()
            loop = items[first]
            out[first] = instruction("loop", count=loop["count"], count_reg=loop["count_reg"], length=index - first - 1)
    return out
