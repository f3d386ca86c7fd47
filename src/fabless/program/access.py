"""What each issued instruction reads and writes: ranges of words in the seven spaces, and the ISA's rules about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.program.isa import BY_MNEMONIC, FORMAT_BITS, MEMORY_FORMATS, OPERAND_B, PRE, REDUCE, SPACES, TARGETS

if TYPE_CHECKING:
    from fabless.program.sequence import Issued
    from fabless.program.tile import Tile

#: Space -> what it is called in messages. Units: words of w, ws, a, as; elements of c, v; bytes of m.
SPACE_NAMES = {
    "w": "weight elements", "ws": "weight scales", "a": "activation elements", "as": "activation scales",
    "c": "accumulators", "v": "vector buffer", "m": "memory",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Access:
    """Hold `rows` ranges of `count` words, `stride` words apart, starting at `first` of a space."""

    space: str
    first: int
    count: int
    rows: int
    stride: int
    is_write: bool
    field: str

    @property
    def end(self) -> int:
        """Return the first word behind the last row."""
        return self.first + (self.rows - 1) * self.stride + self.count

    @property
    def contiguous(self) -> bool:
        """Tell whether the rows leave no gaps."""
        return self.rows == 1 or self.stride <= self.count


def sizes(tile: Tile, memory_bytes: int | None = None) -> dict[str, int]:
    """Return the words of each space."""
    return {
        "w": tile.weight_words, "ws": tile.weight_words, "a": tile.activation_words, "as": tile.activation_words,
        "c": tile.accumulator_elements, "v": tile.vector_elements, "m": tile.memory_bytes if memory_bytes is None else memory_bytes,
    }  # fmt: skip


def transfer_bytes(item: Issued, tile: Tile) -> int:
    """Return the bytes of memory of one row of a `load` or `store`."""
    per_word = {"w": 32 * tile.rows, "ws": tile.rows, "a": 32}.get(TARGETS[item["target"]], 1)
    return -(-item["count"] * per_word * FORMAT_BITS[MEMORY_FORMATS[item["format"]]] // 8)


def accesses(item: Issued, tile: Tile) -> tuple[Access, ...]:
    """Return the ranges that an issued instruction reads and writes."""
    match item.mnemonic:
        case "load":
            memory = Access("m", item["address"], transfer_bytes(item, tile), item["rows"], item["stride"], False, "address")
            return memory, Access(TARGETS[item["target"]], item["dst"], item["rows"] * item["count"], 1, 0, True, "dst")
        case "store":
            target = TARGETS[item["target"]]
            units = item["rows"] * item["count"]
            source = ("a", -(-units // 32)) if target == "ab" else (target, units)
            memory = Access("m", item["address"], transfer_bytes(item, tile), item["rows"], item["stride"], True, "address")
            return Access(source[0], item["src"], source[1], 1, 0, False, "src"), memory
        case "gemm":
            return _gemm(item, tile)
        case "vec" | "quant" | "mask" | "rotate":
            return _vector(item)
        case "send" | "recv":
            return _net(item)
        case "read":
            return (Access("v", item["at"], 1, 1, 0, False, "at"),)
    return ()


def _gemm(item: Issued, tile: Tile) -> tuple[Access, ...]:
    m, n, k, r = item["m"], item["n"], item["k"], tile.rows
    a_words = -(-k // 2) if item["split"] else k
    out = [
        Access("w", item["w"], k * n, 1, 0, False, "w"),
        Access("a", item["a"], a_words, m, item["a_stride"], False, "a"),
        Access("as", item["a"], a_words, m, item["a_stride"], False, "a"),
    ]
    if not item["unit"]:
        out.append(Access("ws", item["w"], k * n, 1, 0, False, "w"))
    if not item["clear"]:
        out.append(Access("c", item["c"] * r, n * r, m, item["c_stride"] * r, False, "c"))
    return (*out, Access("c", item["c"] * r, n * r, m, item["c_stride"] * r, True, "c"))


def _vector(item: Issued) -> tuple[Access, ...]:
    rows, n = item["rows"], item["len"]
    out = [Access(SPACES[item["a_space"]], item["a"], n, rows, 32 * item["a_stride"], False, "a")]
    kind = "vector"
    if item.mnemonic in {"vec", "quant"}:
        kind = "none" if PRE[item["pre"]] == "copy" else OPERAND_B[item["b_kind"]]
    if kind == "vector" and item.mnemonic != "mask":
        out.append(Access("v", item["b"], n, rows, 32 * item["b_stride"], False, "b"))
    elif kind == "scalar":
        out.append(Access("v", item["b"], 1, rows, item["b_stride"], False, "b"))
    if item.mnemonic == "quant":
        blocks = -(-n // 32)
        return (*out, *(Access(s, item["dst"], blocks, rows, item["dst_stride"], True, "dst") for s in ("a", "as")))
    if item.mnemonic == "vec" and REDUCE[item["reduce"]] != "none":
        return (*out, Access("v", item["dst"], 1, rows, item["dst_stride"], True, "dst"))
    return (*out, Access("v", item["dst"], n, rows, 32 * item["dst_stride"], True, "dst"))


def _net(item: Issued) -> tuple[Access, ...]:
    field = "src" if item.mnemonic == "send" else "dst"
    spaces = ("v",) if item["space"] == 0 else ("a", "as")
    out = [Access(s, item[field], item["count"], 1, 0, item.mnemonic == "recv", field) for s in spaces]
    if item.mnemonic == "recv" and item["add"]:
        out.append(Access("v", item["dst"], item["count"], 1, 0, False, "dst"))
    return tuple(out)


def scalar_fields(item: Issued) -> frozenset[str]:
    """Return the operands of a vector instruction that are single elements and need no alignment."""
    names = set()
    if item.mnemonic == "vec" and REDUCE[item["reduce"]] != "none":
        names.add("dst")
    if item.mnemonic in {"vec", "quant"} and OPERAND_B[item["b_kind"]] == "scalar":
        names.add("b")
    return frozenset(names | ({"at"} if "at" in BY_MNEMONIC[item.mnemonic].by_name else set()))
