"""The instruction set, as one table: fields, meaning, what is read and written, and how long each instruction keeps its unit busy.

Encoder, decoder, assembler, verifier, machine, cycle simulator, RTL decoder, documentation and random programs are all generated from `ISA`.

**Words** have 128 bits; bits 4..0 are the opcode, other fields follow in the order listed, unused bits are zero. A field of kind `minus_one`
holds value - 1, so that 2^bits is reachable and 0 is not.

**Sequencer (queue ctrl).** Fetches in order, one instruction a cycle. It holds 32 registers X0..X31 of 40 bits, two's complement, X0 = 0.
A field `name` that is followed by `name_reg` means `name + X[name_reg]`, resolved when the instruction is issued: units receive plain numbers.
Loops nest four deep and repeat a count that is immediate or comes from a register. Registers come from immediates, from parameters that the
host writes before a launch, and from `read` (an integer that the vector unit computed: the only way from data to an address; there is no way
from data to a branch). So one program serves any token ids, positions, page tables and context lengths up to its bound.

**Queues** load, store, mxu, vpu, net execute their instructions one after the other; nothing orders two queues but semaphores.
`sync` waits (each semaphore in its mask is above 0, then is decremented) and then signals (increments each in its mask), in its queue's order:
everything before it in the queue has taken effect before the signal, nothing after it starts before the wait is over.
Queue load works in two halves: beats of the next loads are asked for while those before are still written; a wait holds back the asking.
In queue ctrl, `sync` and `read` hold back the sequencer itself: nothing behind them is issued before they are over.
Each semaphore has one queue that signals and one that waits, counts to 15 at most, starts at 0, and is 0 again at halt.
In program order every signal stands before its wait: program order itself is then a legal schedule, hence no program that verifies deadlocks,
and any two accesses that conflict are ordered, hence every schedule gives the same bits.

**Links.** A message goes in beats of N bytes: min(L, N / 4) vector elements each, or an activation word in ceil(34, N) of them. (A beat holds no parts of
two words: words packed without gaps would save an eighth at N = 16 and need shifters by two bytes at both ends.) A link holds LINK_QUEUE_BEATS beats that
are sent and not yet received: `send` waits for room, `recv` for beats. Queue net executes a `recv` beside the `send` in front of it where their ranges
are apart, so that all tiles of a ring may send before they receive, however long the messages; everything else takes turns. What a tile sends before a
`recv`, other than by the one `send` beside it, must fit the link: a ring in which every tile waits for room stands still.

A result may overlap an operand of its own instruction only exactly in place (same start, length and rows); rows of a result never overlap.

**Alignment.** Vector operands (a, b, dst of the vector instructions, buffers of load, store, send, recv, also when a is in the accumulators) start at
multiples of max(32, L) elements, and so do their rows; single elements (scalar b, reduced dst, `read`) stand anywhere.

**Numbers.** Binary32 is rounded to nearest even after every operation; any result of magnitude below 2^-126 becomes +0 (there is no -0 and no
subnormal); every NaN is 0x7FC00000. See `fabless.number.round.fp32_add`, `number.dot`, `number.functions`, `number.quantise`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

from fabless.core.errors import IllegalProgramError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

WORD_BITS = 128
OPCODE_BITS = 5
N_REGISTERS = 32
REGISTER_BITS = 40
N_SEMAPHORES = 32
SEMAPHORE_MAX = 15
LOOP_DEPTH = 4


class Queue(IntEnum):
    """Number the six in-order queues, as `sync` encodes them."""

    CTRL = 0
    LOAD = 1
    STORE = 2
    MXU = 3
    VPU = 4
    NET = 5


Kind = Literal["unsigned", "signed", "minus_one", "register", "choice", "mask"]


@dataclass(frozen=True, slots=True)
class Field:
    """Declare one bit field: its width, how its bits mean a value, and what the value means; `lsb` is filled in by the table."""

    name: str
    bits: int
    kind: Kind = "unsigned"
    text: str = ""
    choices: tuple[str, ...] = ()
    lsb: int = 0

    @property
    def low(self) -> int:
        """Return the least value that the field can hold."""
        return {"signed": -(1 << (self.bits - 1)), "minus_one": 1}.get(self.kind, 0)

    @property
    def high(self) -> int:
        """Return the greatest value that the field can hold."""
        if self.kind == "choice":
            return len(self.choices) - 1
        return (1 << (self.bits - 1)) - 1 if self.kind == "signed" else (1 << self.bits) - 1 + (self.kind == "minus_one")

    def bits_of(self, value: int) -> int:
        """Return the field's bits for a value in range."""
        return (value - (self.kind == "minus_one")) & ((1 << self.bits) - 1)

    def value_of(self, bits: int) -> int:
        """Return the value that the field's bits mean."""
        if self.kind == "signed" and bits >> (self.bits - 1):
            return bits - (1 << self.bits)
        return bits + (self.kind == "minus_one")


@dataclass(frozen=True, slots=True)
class Spec:
    """Declare one instruction: opcode, queue, fields, meaning, accesses and timing.

    `cycles`: how long the unit is busy, a formula over the operands and R (rows), L (vector lanes), B (memory port bytes a cycle), N (link bytes a
    cycle), `ceil(a, b)` and the constants of `LATENCY`; memory and links are taken as always ready. The unit starts its next instruction in the cycle after.
    """

    mnemonic: str
    code: int
    queue: Queue
    fields: tuple[Field, ...]
    semantics: str
    reads: str
    writes: str
    cycles: str
    by_name: Mapping[str, Field] = field(default_factory=dict)


#: Pipeline depths in cycles, from the first operand read to the last write; the RTL is built to these, the cycle simulator counts them.
LATENCY: dict[str, int] = {
    "ACC": 4,  # an accumulator can be added to again this many cycles after the last time
    "GEMM_FILL": 12,  # operand read, 8 x 8 multiply, adder tree of 32, scale, add, write
    "VEC_FILL": 10,  # operand read, multiply (3), add (3), count, write
    "FUNCTION_FILL": 8,  # exp2, rcp, rsqrt behind that (7), and gathering the group
    "FUNCTION_CYCLES": 4,  # one function unit serves four lanes
    "REDUCE_DRAIN": 8,  # from a row's last group to the next row's first: a block of 32 that ends early is filled up
    "REDUCE_FILL": 27,  # the tree of 32, the four interleaved sums and the write, once
    "QUANT_FILL": 29,  # operand read, lane, count, maximum of the block, scale, multiply, round, write
    "LOAD_FILL": 6,  # request, answer in the next cycle, queue, decode, write
    "STORE_FILL": 4,  # read, gather, write
    "SEND_FILL": 3,  # read, choose, link
    "RECV_FILL": 4,  # queue, add (2), write
    "MADD": 3,  # registers, multiply, add; 1 without a multiplicand
    "PARAM": 2,
    "READ": 4,
}

#: Formats as `load` and `store` encode them. `_half`: the value is half of the code's, for e2m1 elements that are held as twice their value.
MEMORY_FORMATS = ("fp32", "bf16", "fp16", "int8", "int4", "e2m1", "e2m1_split", "e8m0", "e8m0_half", "e4m3", "e4m3_half")
#: What `load` fills and `store` reads: weight elements, weight scales, activation elements, activation scales, single bytes of activation
#: elements, vector elements.
TARGETS = ("w", "ws", "a", "as", "ab", "v")
LOAD_FORMATS: dict[str, tuple[str, ...]] = {
    "w": ("int8", "int4", "e2m1", "e2m1_split"),
    "ws": ("bf16", "fp16", "e8m0", "e8m0_half", "e4m3", "e4m3_half"),
    "a": ("int8",),
    "as": ("bf16",),
    "v": ("fp32", "bf16", "fp16", "int8", "e8m0", "e4m3"),
}
STORE_FORMATS: dict[str, tuple[str, ...]] = {"a": ("int8",), "as": ("bf16",), "ab": ("int8",), "v": ("fp32", "bf16")}
#: Bits in memory of one element of each format; a split word has 16 codes of 4 bits for its 32 lanes.
FORMAT_BITS = {
    "fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4, "e2m1": 4, "e2m1_split": 2,
    "e8m0": 8, "e8m0_half": 8, "e4m3": 8, "e4m3_half": 8,
}  # fmt: skip

PRE = ("copy", "add", "sub", "mul", "max", "min", "exclude")
FUNCTIONS = ("none", "exp2", "rcp", "rsqrt")
REDUCE = ("none", "sum", "max", "argmax")
OPERAND_B = ("vector", "scalar", "register", "self")
SPACES = ("v", "c")

#: The value that `mask` and `exclude` write where the condition fails: -2^100, below any score, with an exact binary32 code.
LOWEST = -(2.0**100)
LOWEST_BITS = 0xF1800000


def _address(name: str, bits: int, text: str) -> tuple[Field, Field]:
    return Field(name, bits, "unsigned", text), Field(f"{name}_reg", 5, "register", f"added to {name}")


def _stream(last: tuple[Field, ...]) -> tuple[Field, ...]:
    """Lay out what the vector instructions share, so that one decoder serves them."""
    return (
        Field("rows", 8, "minus_one", "rows, each an independent vector"),
        Field("len", 14, "minus_one", "elements of a row"),
        Field("a_space", 1, "choice", "where a lives: vector buffer, or accumulators by element (word * R + row)", SPACES),
        *_address("dst", 16, "first element of the result (quant: activation word)"),
        Field("dst_stride", 10, "unsigned", "from row to row: blocks of 32 elements; elements when reducing; words for quant"),
        *_address("a", 16, "first element of operand a"),
        Field("a_stride", 9, "unsigned", "blocks of 32 elements from row to row of a"),
        *last,
    )


_PRE = Field("pre", 3, "choice", "copy: a; add, sub, mul, max, min: of a and b; exclude: LOWEST where element index == b, else a", PRE)
_FN = Field("fn", 2, "choice", "function applied next", FUNCTIONS)
_B = (
    *_address("b", 16, "first element of operand b"),
    Field("b_stride", 9, "unsigned", "from row to row of b: blocks of 32 elements (vector), elements (scalar)"),
    Field(
        "b_kind",
        2,
        "choice",
        "vector: element by element; scalar: one V element a row; register: fp32 bits in X[b_reg]; self: b is a",
        OPERAND_B,
    ),
)
_X = Field("x", 5, "register", "register written; X0 stays 0")

_TABLE = (
    Spec("halt", 1, Queue.CTRL, (), "Wait until all queues are empty, then end the program.", "", "", "1"),
    Spec(
        "loop", 2, Queue.CTRL,
        (*_address("count", 24, "trips"), Field("length", 14, "unsigned", "instructions between this and its `end`")),
        "Repeat the next `length` instructions count times; with count <= 0 continue after the `end`. Nests LOOP_DEPTH deep.",
        "X", "", "1",
    ),
    Spec("end", 3, Queue.CTRL, (), "Close the innermost loop: jump behind its `loop` while trips remain.", "", "", "1"),
    Spec(
        "madd", 4, Queue.CTRL,
        (_X, Field("p", 5, "register", "multiplicand"), Field("mul", 32, "signed", "factor"), Field("q", 5, "register", "addend"),
         Field("imm", 40, "signed", "constant")),
        "X[x] = X[p] * mul + X[q] + imm, modulo 2^40, two's complement.",
        "X", "X", "MADD if p else 1",
    ),
    Spec(
        "param", 5, Queue.CTRL, (_X, *_address("at", 24, "parameter index")),
        "X[x] = parameter[at], a signed 32-bit word that the host wrote before the launch.",
        "parameters", "X", "PARAM",
    ),
    Spec(
        "read", 6, Queue.CTRL, (_X, *_address("at", 16, "vector element")),
        "X[x] = V[at] rounded to the nearest integer, ties to even, saturated to 32 bits signed, NaN to 0. A `sync ctrl` must order it behind the writer.",
        "V[at]", "X", "READ",
    ),
    Spec(
        "sync", 7, Queue.CTRL,
        (Field("queue", 3, "choice", "queue that executes it", tuple(q.name.lower() for q in Queue)),
         Field("wait", 32, "mask", "semaphores to wait for and decrement"), Field("signal", 32, "mask", "semaphores to increment")),
        "In the given queue: wait for all of `wait` and take one from each, then give one to each of `signal`.",
        "", "", "1",
    ),
    Spec(
        "load", 8, Queue.LOAD,
        (Field("target", 3, "choice", "what is filled", TARGETS), Field("format", 4, "choice", "format in memory", MEMORY_FORMATS),
         Field("count", 16, "minus_one", "words (w, ws, a, as) or elements (v) of a row"), Field("rows", 10, "minus_one", "rows"),
         *_address("dst", 16, "first word or element filled; rows follow each other without gaps"),
         *_address("address", 32, "byte in memory of the first row"), Field("stride", 32, "unsigned", "bytes from row to row in memory")),
        "Copy rows of memory into a buffer, decoding the format exactly. w: word = R blocks of 32 elements, row 0 first; ws: word = R scales; "
        "4-bit codes are packed low nibble first; e2m1 is held as twice its value; e2m1_split: a word holds R half blocks of 16, row i of the "
        "load fills lanes 16*(i%2)..16*(i%2)+15 and clears the others. Values of v and ws below 2^-126 become +0. "
        "Row starts are multiples of 32 bytes, or count is 1 and the target v or as, and the start a multiple of the element.",
        "M", "W, A or V", "transfer(address, row_bytes, stride, rows, units) + LOAD_FILL",
    ),
    Spec(
        "store", 9, Queue.STORE,
        (Field("target", 3, "choice", "what is read", TARGETS), Field("format", 4, "choice", "format in memory", MEMORY_FORMATS),
         Field("count", 16, "minus_one", "words (a, as), bytes (ab) or elements (v) of a row"), Field("rows", 10, "minus_one", "rows"),
         *_address("src", 16, "first word or element read (ab: first word, whose bytes are taken in order); rows follow without gaps"),
         *_address("address", 32, "byte in memory of the first row"), Field("stride", 32, "unsigned", "bytes from row to row in memory")),
        "Copy rows of a buffer into memory, encoding the format (bf16: round to nearest even, overflow to infinity). "
        "Row starts are multiples of 32 bytes, or count is 1 and the start a multiple of the element (a: 32 bytes). ab has count 1: a scatter of bytes.",
        "A or V", "M", "transfer(address, row_bytes, stride, rows, units) + STORE_FILL",
    ),
    Spec(
        "gemm", 10, Queue.MXU,
        (Field("m", 8, "minus_one", "activation rows"), Field("n", 8, "minus_one", "weight words side by side: n * R outputs a row"),
         Field("k", 10, "minus_one", "weight words along k, 32 values each (split: 16)"),
         *_address("w", 16, "first weight word; word of (kb, nt) is w + kb * n + nt"),
         *_address("a", 16, "first activation word; word of (i, kb) is a + i * a_stride + kb (split: kb // 2)"),
         Field("a_stride", 11, "unsigned", "activation words from row to row"),
         *_address("c", 16, "first accumulator word; word of (i, nt) is c + i * c_stride + nt"),
         Field("c_stride", 12, "unsigned", "accumulator words from row to row"),
         Field("clear", 1, "unsigned", "1: accumulators start from +0; 0: they continue"),
         Field("split", 1, "unsigned", "1: two weight words an activation block (blocks of 16, NVFP4)"),
         Field("unit", 1, "unsigned", "1: weight scales are taken as 1.0 and not read")),
        "For kb ascending, each (i, nt, row r): C = fp32(C + fp32(isum * scale)), isum the exact sum of 32 products, "
        "scale = fp32(weight scale * activation scale), exact but for overflow and underflow. Hardware order: kb outer, nt, then i inner.",
        "W, A, C", "C", "k * max(n * m, ACC) + GEMM_FILL",
    ),
    Spec(
        "vec", 11, Queue.VPU, _stream((_PRE, _FN, *_B, Field("reduce", 2, "choice", "none: write vectors; else one element a row", REDUCE))),
        "t = fn(pre(a, b)) element by element; write t, or per row its sum (tree of 32 by element index, block partials into four sums by block "
        "index modulo 4, ascending, then (s0 + s1) + (s2 + s3)), its max, or the index of its first maximum as a number.",
        "a, b", "dst",
        "rows * (ceil(len, L) * (FUNCTION_CYCLES if fn else 1) + (REDUCE_DRAIN if reduce else 0))"
        " + VEC_FILL + (FUNCTION_FILL if fn else 0) + (REDUCE_FILL if reduce else 0)",
    ),
    Spec(
        "quant", 12, Queue.VPU, _stream((_PRE, _FN, *_B, Field("scope", 2, "choice", "one scale a block of 32, or one a row", ("block", "row")))),
        "t = fn(pre(a, b)), then int8 blocks of 32 with bf16 scale into the activation buffer; the last block is padded with 0.",
        "a, b", "A",
        "rows * ceil(len, 32) * ceil(32, min(L, 32)) * (FUNCTION_CYCLES if fn else 1) * (1 + scope) + QUANT_FILL + (FUNCTION_FILL if fn else 0)",
    ),
    Spec(
        "mask", 13, Queue.VPU,
        _stream((Field("start_reg", 5, "register", "index of element 0"), Field("low_reg", 5, "register", "first valid index of row 0"),
                 Field("high_reg", 5, "register", "first index behind the valid ones of row 0"),
                 Field("step", 8, "unsigned", "added to low and high from row to row"),
                 Field("fill", 1, "choice", "what stands elsewhere", ("zero", "lowest")))),
        "dst[i, e] = a[i, e] if X[low] + i * step <= X[start] + e < X[high] + i * step, else +0 or LOWEST.",
        "a", "dst", "rows * ceil(len, L) + VEC_FILL",
    ),
    Spec(
        "rotate", 14, Queue.VPU, _stream(_B[:3]),
        "Rotary pairs: with c = b[2j], s = b[2j + 1]: dst[2j] = fp32(a[2j] * c) - fp32(a[2j + 1] * s), dst[2j + 1] = fp32(a[2j + 1] * c) + fp32(a[2j] * s).",
        "a, b", "dst", "2 * rows * ceil(len, L) + VEC_FILL",
    ),
    Spec(
        "send", 15, Queue.NET,
        (Field("space", 1, "choice", "vector elements, or activation words with their scales", ("v", "a")), *_address("src", 16, "first"),
         Field("count", 16, "minus_one", "elements or words")),
        "Send to the next tile of the ring (tile + 1 modulo n_tiles), in order; its `recv` takes exactly the same space and count.",
        "V or A", "", "(count * ceil(34, N) if space else ceil(count, min(L, N // 4))) + SEND_FILL",
    ),
    Spec(
        "recv", 16, Queue.NET,
        (Field("space", 1, "choice", "vector elements, or activation words with their scales", ("v", "a")), *_address("dst", 16, "first"),
         Field("count", 16, "minus_one", "elements or words"), Field("add", 1, "unsigned", "1 (v only): V = fp32(received + V)")),
        "Receive from the previous tile of the ring what it sent, in order; write it, or add what is here to what comes.",
        "V", "V or A", "(count * ceil(34, N) if space else ceil(count, min(L, N // 4))) + RECV_FILL",
    ),
)  # fmt: skip


def _laid_out(spec: Spec) -> Spec:
    """Give each field its lsb, opcode first, and check that the word has room."""
    lsb, fields = OPCODE_BITS, []
    for f in spec.fields:
        fields.append(Field(f.name, f.bits, f.kind, f.text, f.choices, lsb))
        lsb += f.bits
    if lsb > WORD_BITS:
        raise IllegalProgramError(f"{spec.mnemonic}: fields take {lsb} bits of {WORD_BITS}; shorten one")
    return Spec(
        spec.mnemonic,
        spec.code,
        spec.queue,
        tuple(fields),
        spec.semantics,
        spec.reads,
        spec.writes,
        spec.cycles,
        {f.name: f for f in fields},
    )


ISA: tuple[Spec, ...] = tuple(_laid_out(spec) for spec in _TABLE)
BY_MNEMONIC: dict[str, Spec] = {spec.mnemonic: spec for spec in ISA}
BY_CODE: dict[int, Spec] = {spec.code: spec for spec in ISA}


@dataclass(frozen=True, slots=True)
class Instruction:
    """Hold one instruction: its mnemonic and a value for every field, in table order."""

    mnemonic: str
    values: tuple[int, ...]

    @property
    def spec(self) -> Spec:
        """Return the row of the table that declares this instruction."""
        return BY_MNEMONIC[self.mnemonic]

    @property
    def queue(self) -> Queue:
        """Return the queue that executes it (for `sync`, the queue that it names)."""
        return Queue(self["queue"]) if self.mnemonic == "sync" else self.spec.queue

    def __getitem__(self, name: str) -> int:
        for f, value in zip(self.spec.fields, self.values, strict=True):
            if f.name == name:
                return value
        raise KeyError(name)

    def choice(self, name: str) -> str:
        """Return the word that a choice field stands for."""
        return self.spec.by_name[name].choices[self[name]]

    def __str__(self) -> str:
        from fabless.program.assembler import line

        return line(self)


def instruction(mnemonic: str, **operands: int | str) -> Instruction:
    """Build an instruction from named operands; those not given take the least value of their field, choices may be words.

    Raises `IllegalProgramError` for an unknown mnemonic or operand and for a value that does not fit its field.
    """
    spec = BY_MNEMONIC.get(mnemonic)
    if spec is None:
        raise IllegalProgramError(f"unknown instruction '{mnemonic}'{nearest(mnemonic, BY_MNEMONIC)}; known: {', '.join(BY_MNEMONIC)}")
    unknown = [name for name in operands if name not in spec.by_name]
    if unknown:
        raise IllegalProgramError(
            f"{mnemonic}: unknown operand '{unknown[0]}'{nearest(unknown[0], spec.by_name)}; known: {', '.join(spec.by_name) or 'none'}"
        )
    return Instruction(mnemonic, tuple(_value(mnemonic, f, operands.get(f.name, f.low)) for f in spec.fields))


def _value(mnemonic: str, f: Field, given: int | str) -> int:
    if isinstance(given, str):
        if given not in f.choices:
            raise IllegalProgramError(f"{mnemonic}.{f.name}: '{given}' is not one of {', '.join(f.choices) or 'the integers'}")
        return f.choices.index(given)
    value = int(given)
    if not f.low <= value <= f.high:
        raise IllegalProgramError(f"{mnemonic}.{f.name}: {value} does not fit, the field holds {f.low} to {f.high}")
    return value


def encode(item: Instruction) -> int:
    """Return the 128-bit word of an instruction."""
    word = item.spec.code
    for f, value in zip(item.spec.fields, item.values, strict=True):
        word |= f.bits_of(value) << f.lsb
    return word


def decode(word: int) -> Instruction:
    """Return the instruction of a 128-bit word; raises `IllegalProgramError` for unknown opcodes, choices and for unused bits that are set."""
    spec = BY_CODE.get(word & ((1 << OPCODE_BITS) - 1))
    if spec is None:
        raise IllegalProgramError(f"word {word:#034x}: opcode {word & 31} is not assigned; assigned are 1 to {max(BY_CODE)}")
    values = []
    for f in spec.fields:
        value = f.value_of(word >> f.lsb & ((1 << f.bits) - 1))
        if not f.low <= value <= f.high:
            raise IllegalProgramError(f"{spec.mnemonic}.{f.name}: code {value} is not assigned, the field holds {f.low} to {f.high}")
        values.append(value)
    item = Instruction(spec.mnemonic, tuple(values))
    if encode(item) != word:
        raise IllegalProgramError(f"{spec.mnemonic}: unused bits {word & ~encode(item):#x} are set; clear them")
    return item
