"""What the vector unit does to rows: each operation as vector instructions on a piece of m rows, all of them in the order of `docs/modules.md`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.compiler.partition import BLOCK

if TYPE_CHECKING:
    from fabless.compiler.emitter import Emitter
    from fabless.model.module import Node

_LOG2E = math.log2(math.e)
_GELU = 2 * math.sqrt(2 / math.pi)


@dataclass
class Piece:
    """Hold where one piece of rows lies in the vector buffer while a kernel is emitted.

    `rows` of `n` elements, `pitch` apart; starts of `inputs`, of `vectors` (one row for all), of two temporaries, of three columns of one element a row,
    and of the result, which moves with register `out_at`.
    """

    e: Emitter
    rows: int
    n: int
    pitch: int
    inputs: tuple[int, ...]
    vectors: tuple[int, ...]
    temporaries: tuple[int, int]
    columns: tuple[int, int, int]
    result: int

    def vec(self, pre: str, a: int, b: Any, to: int | None, fn: str = "none", *, n: int = 0) -> None:
        """Emit to = fn(pre(a, b)); `to` None is the result; b: a number, ("rows", start), ("vector", start), ("column", start) or "self"."""
        target: dict[str, Any] = {"dst": self.result, "dst_reg": self.e.x("out_at")} if to is None else {"dst": to}
        self.e(
            "vec", pre=pre, fn=fn, rows=self.rows, len=n or self.pitch, a=a, a_stride=self.pitch // BLOCK, dst_stride=self.pitch // BLOCK, **target,
            **self._b(b),
        )  # fmt: skip

    def _b(self, b: Any) -> dict[str, Any]:
        if isinstance(b, (int, float, np.floating)):
            return {"b_kind": "register", "b_reg": self.number(float(b))}
        if b == "self":
            return {"b_kind": "self"}
        kind, start = b
        stride = {"rows": self.pitch // BLOCK, "vector": 0, "column": 1}[kind]
        return {"b_kind": "scalar" if kind == "column" else "vector", "b": start, "b_stride": stride}

    def number(self, value: float) -> int:
        """Return the register that holds a number's binary32 code."""
        self.e.set("number", int(np.float32(value).view(np.uint32)))
        return self.e.x("number")

    def reduce(self, function: str, a: int, to: int, *, square: bool = False) -> None:
        """Emit one element a row: the sum or maximum of the row (of its squares)."""
        b: dict[str, Any] = {"pre": "mul", "b_kind": "self"} if square else {"pre": "copy"}
        self.e("vec", **b, rows=self.rows, len=self.n, a=a, a_stride=self.pitch // BLOCK, dst=to, dst_stride=1, reduce=function)

    def column(self, pre: str, a: int, b: float, to: int, fn: str = "none") -> None:
        """Emit to = fn(pre(a, b)) on a column, as one row of as many elements as there are rows."""
        self.e("vec", pre=pre, fn=fn, rows=1, len=self.rows, a=a, dst=to, b_kind="register", b_reg=self.number(b))


Kernel = Callable[[Piece, Any], None]


def _sigmoid(p: Piece, a: int, to: int | None, factor: float = 1.0) -> None:
    t = p.temporaries[0]
    p.vec("mul", a, -factor * _LOG2E, t, "exp2")
    p.vec("add", t, 1.0, to, "rcp")


def _silu(p: Piece, node: Node) -> None:
    t = p.temporaries[0]
    _sigmoid(p, p.inputs[0], t)
    p.vec("mul", p.inputs[0], ("rows", t), None)


def _gelu(p: Piece, node: Node) -> None:
    x, (t, z) = p.inputs[0], p.temporaries
    p.vec("mul", x, "self", z)
    p.vec("mul", z, _GELU * 0.044715, z)
    p.vec("add", z, _GELU, z)
    p.vec("mul", z, ("rows", x), z)
    _sigmoid(p, z, t)
    p.vec("mul", x, ("rows", t), None)


def _tanh(p: Piece, node: Node) -> None:
    t = p.temporaries[0]
    _sigmoid(p, p.inputs[0], t, 2.0)
    p.vec("mul", t, 2.0, t)
    p.vec("sub", t, 1.0, None)


def _clamp(p: Piece, node: Node) -> None:
    low, high = node.get("low"), node.get("high")
    x, t = p.inputs[0], p.temporaries[0]
    if high is None:
        p.vec("max", x, low, None)
        return
    if low is not None:
        p.vec("max", x, low, t)
        x = t
    p.vec("min", x, high, None)


def _abs(p: Piece, node: Node) -> None:
    p.vec("mul", p.inputs[0], -1.0, p.temporaries[0])
    p.vec("max", p.temporaries[0], ("rows", p.inputs[0]), None)


def _one(pre: str, b: float | str, fn: str = "none") -> Kernel:
    def kernel(p: Piece, node: Node) -> None:
        p.vec(pre, p.inputs[0], b, None, fn)

    return kernel


UNARY: Mapping[str, Kernel] = {
    "relu": _one("max", 0.0), "silu": _silu, "sigmoid": lambda p, n: _sigmoid(p, p.inputs[0], None), "gelu": _gelu, "tanh": _tanh,
    "exp": _one("mul", _LOG2E, "exp2"), "reciprocal": _one("mul", 1.0, "rcp"), "rsqrt": _one("mul", 1.0, "rsqrt"), "square": _one("mul", "self"),
    "neg": _one("mul", -1.0), "abs": _abs, "clamp": _clamp, "scale": lambda p, n: p.vec("mul", p.inputs[0], n["low"], None),
}  # fmt: skip


def binary(function: str, other: str) -> Kernel:
    """Return the kernel of a function of two: the other is "rows" (a second input) or "vector" (one row for all)."""

    def kernel(p: Piece, node: Node) -> None:
        if function == "div":  # by rows: what is known is inverted before
            p.vec("mul", p.inputs[1], 1.0, p.temporaries[0], "rcp")
            p.vec("mul", p.inputs[0], ("rows", p.temporaries[0]), None)
            return
        p.vec(function, p.inputs[0], ("rows", p.inputs[1]) if other == "rows" else ("vector", p.vectors[0]), None)

    return kernel


def affine(p: Piece, node: Node) -> None:
    """Emit x * vector + vector."""
    p.vec("mul", p.inputs[0], ("vector", p.vectors[0]), p.temporaries[0])
    p.vec("add", p.temporaries[0], ("vector", p.vectors[1]), None)


def softmax(p: Piece, node: Node) -> None:
    """Emit softmax of rows; a causal one masks with registers `low` (never reached) and `high` (index behind the first row's last element)."""
    (t, _), (m, _, total) = p.temporaries, p.columns
    p.vec("mul", p.inputs[0], node["scale"] * _LOG2E, t)
    if node["causal"]:
        p.e("mask", rows=p.rows, len=p.n, a=t, a_stride=p.pitch // BLOCK, dst=t, dst_stride=p.pitch // BLOCK,
            start_reg=0, low_reg=p.e.x("low"), high_reg=p.e.x("high"), step=1, fill="lowest")  # fmt: skip
    p.reduce("max", t, m)
    p.vec("sub", t, ("column", m), t, "exp2")
    p.reduce("sum", t, total)
    p.column("mul", total, 1.0, total, "rcp")
    p.vec("mul", t, ("column", total), None)


def layer_norm(p: Piece, node: Node) -> None:
    """Emit (x - mean) * rsqrt(variance + epsilon), then weight and bias."""
    (t, _), (mean, variance, _) = p.temporaries, p.columns
    p.reduce("sum", p.inputs[0], mean)
    p.column("mul", mean, 1 / p.n, mean)
    p.vec("sub", p.inputs[0], ("column", mean), t)
    _normed(p, node, t, variance)


def rms_norm(p: Piece, node: Node) -> None:
    """Emit x * rsqrt(mean of squares + epsilon), then the weight."""
    _normed(p, node, p.inputs[0], p.columns[1])


def _normed(p: Piece, node: Node, x: int, variance: int) -> None:
    p.reduce("sum", x, variance, square=True)
    p.column("mul", variance, 1 / p.n, variance)
    p.column("add", variance, node["epsilon"], variance, "rsqrt")
    steps = [("mul", ("column", variance))]
    steps += [
        (pre, ("vector", start)) for pre, start in zip([x for x in _SCALED if node.get(_SCALED[x]) is not None], p.vectors, strict=True)
    ]
    for i, (pre, b) in enumerate(steps):
        p.vec(pre, x, b, None if i == len(steps) - 1 else p.temporaries[0])
        x = p.temporaries[0]


_SCALED = {"mul": "weight", "add": "bias"}


def reduced(function: str) -> Kernel:
    """Return the kernel that writes one element a row to the result, which is one row of them."""

    def kernel(p: Piece, node: Node) -> None:
        column = p.columns[0]
        p.reduce("max" if function == "max" else "sum", p.inputs[0], column)
        factor = 1 / p.n if function == "mean" else 1.0
        p.e("vec", pre="mul" if function == "mean" else "copy", rows=1, len=p.rows, a=column, dst=p.result, dst_reg=p.e.x("out_at"),
            b_kind="register", b_reg=p.number(factor))  # fmt: skip

    return kernel


def greatest(p: Piece, node: Node) -> None:
    """Emit the greatest of all inputs, element by element."""
    first, *others = p.inputs
    for i, other in enumerate(others or [first]):
        p.vec("max", first, ("rows", other), None if i + 1 >= len(others) else p.temporaries[0])
        first = p.temporaries[0]
