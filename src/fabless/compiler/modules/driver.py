"""Compile a module: one program of one tile, the image of its constants, and where the host writes inputs and finds results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.compiler.emitter import Emitter
from fabless.compiler.modules import kernels
from fabless.compiler.modules.copies import copy, gathered
from fabless.compiler.modules.flow import Flow
from fabless.compiler.modules.places import GRANULE, Places, Rows, addresses, as_rows, natural_order, up
from fabless.compiler.modules.products import matmul, packed, product
from fabless.compiler.modules.rows import row_operation
from fabless.core.errors import InfeasibleError
from fabless.number.arrays import canonical
from fabless.program.program import Program

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from fabless.compiler.modules.places import Addresses
    from fabless.model.module import Module, Node
    from fabless.program.tile import Tile

_LOWEST = np.float32(-(2.0**100))


@dataclass(frozen=True)
class CompiledModule:
    """Hold a module's program; `image [bytes]`: memory before the first call; `at`: addresses (elements) of every tensor that lies in memory.

    A call: the host writes each input at its addresses, launches, reads outputs at theirs.
    """

    module: Module
    program: Program
    image: NDArray[np.uint8] = field(repr=False)
    at: Mapping[str, Addresses] = field(repr=False)

    def write(self, memory: NDArray[np.uint8], name: str, value: Any) -> None:
        """Put a tensor into memory."""
        memory.view(np.float32)[self.at[name]] = value

    def read(self, memory: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
        """Return a tensor from memory."""
        return memory.view(np.float32)[self.at[name]].copy()


def compile_module(module: Module, tile: Tile) -> CompiledModule:
    """Compile a module for one tile.

    Raises `UnsupportedError` or `InfeasibleError` naming the operation, what it lacks and the remedy.
    """
    c = _Compiler(module, Flow(tile, Places(tile), Emitter(tile)))
    for node in module.nodes:
        c.emit(node)
    c.flow.e.label("end")
    c.flow.e("halt")
    items = c.flow.e.items
    if len(items) > tile.instruction_words:
        raise InfeasibleError(
            f"{module.name}: {len(items):,} instructions, program memory holds {tile.instruction_words:,}; use a tile with more, or fewer operations"
        )
    program = Program.of(items, tile, buffers=tuple(c.flow.places.buffers), labels=c.flow.e.labels, name=module.name)
    return CompiledModule(module, program, c.image(), c.at)


@dataclass
class _Compiler:
    module: Module
    flow: Flow
    at: dict[str, Addresses] = field(default_factory=dict)
    content: list[tuple[int, NDArray[np.uint8]]] = field(default_factory=list)
    vectors: dict[tuple[str, int], Rows] = field(default_factory=dict)

    def emit(self, node: Node) -> None:
        """Emit one operation, or note where a view of what is there lies."""
        self.at[node.name] = _KINDS[node.kind](self, node).reshape(node.shape)

    def image(self) -> NDArray[np.uint8]:
        """Return memory as the host leaves it before the first call."""
        image = np.zeros(up(self.flow.places.end_bytes, 64), np.uint8)
        for address, raw in self.content:
            image[address : address + len(raw)] = raw
        return image

    # ------------------------------------------------------------ operands

    def put(self, name: str, array: NDArray[np.float32], pitch: int = 0) -> Rows:
        """Place a known tensor in memory, its last axis in rows."""
        array = canonical(array)  # no -0, no subnormals: as the machine's own values are
        flat = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
        rows = self.flow.places.rows(name, *flat.shape, "constants", pitch=max(pitch, up(flat.shape[1], self.flow.places.unit)))
        padded = np.zeros((rows.m, rows.stride), np.float32)
        padded[:, : rows.n] = flat
        self.content.append((4 * rows.base, padded.reshape(-1).view(np.uint8)))
        return rows

    def vector(self, name: str, length: int = 0) -> Rows:
        """Return a known vector as one row of at least `length` elements of memory."""
        if (name, length) not in self.vectors:
            self.vectors[name, length] = self.put(f"{name}.row", self.module.constants[name].reshape(1, -1), pitch=length)
        return self.vectors[name, length]

    def rows(self, node: Node, at: Addresses, what: str = "rows") -> Rows:
        """Return rows that hold a tensor's last axis: where it lies, or a copy."""
        rows = as_rows(at)
        if rows is not None and self.flow.places.loadable(rows):
            return rows
        n = at.shape[-1] if at.ndim else 1
        return gathered(self.flow, f"{node.name}.{what}", at, at.size // n, n)

    def x(self, node: Node, i: int = 0) -> Addresses:
        """Return where an input lies."""
        return self.at[node.inputs[i]]


# ---------------------------------------------------------------- operations


def _input(c: _Compiler, node: Node) -> Addresses:
    n = node.shape[-1] if node.shape else 1
    m = int(np.prod(node.shape)) // n
    return addresses(c.flow.places.rows(node.name, m, n, "input"), node.shape)


def _constant(c: _Compiler, node: Node) -> Addresses:
    return addresses(c.put(node.name, c.module.constants[node.name]), node.shape)


def _cat(c: _Compiler, node: Node) -> Addresses:
    n = node.shape[-1]
    rows = c.flow.places.rows(node.name, int(np.prod(node.shape)) // n, n, "cache")
    whole, first = addresses(rows, node.shape), 0
    for i, name in enumerate(node.inputs):
        source = c.at[name]
        taken = source.shape[node["dim"]]
        target = whole.swapaxes(0, node["dim"])[first : first + taken].swapaxes(0, node["dim"])
        copy(c.flow, f"{node.name}.{i}", source, target)
        first += taken
    return whole


def _linear(c: _Compiler, node: Node) -> Addresses:
    weight = c.module.constants[node["weight"]]
    return addresses(_by_constant(c, node, c.rows(node, c.x(node)), weight), node.shape)


def _by_constant(c: _Compiler, node: Node, x: Rows, weight: NDArray[np.float32]) -> Rows:
    factors, image, at_once = packed(c.flow, node.name, weight, x.m)
    c.content.append((factors.address, image))
    bias = None if node.get("bias") is None else c.vector(node["bias"], factors.width)
    return product(c.flow, node.name, x, factors, at_once, bias, weight.shape[0])


def _conv2d(c: _Compiler, node: Node) -> Addresses:
    from fabless.model.module_reference import patch_order

    weight = c.module.constants[node["weight"]]
    n, channels, kh, kw = weight.shape
    x = c.x(node)
    by_rows = patch_order(node, x.shape, (kh, kw)) == "rows"
    if by_rows:
        patches, flat = _windows(node, x, (kh, kw)), weight.reshape(n, -1)  # [B, Ho, Wo, C, kh, kw]
    else:
        x = _channels_last(c, node, x, channels + -channels % GRANULE)  # [B, C8, H, W]
        patches = _windows(node, x, (kh, kw)).transpose(0, 1, 2, 4, 5, 3)
        flat = np.pad(weight.transpose(0, 2, 3, 1), ((0, 0),) * 3 + ((0, -channels % GRANULE),)).reshape(n, -1)
    matrix = patches.reshape(*patches.shape[:3], -1)
    rows = c.rows(node, matrix, "patches")
    batch, _, height, width = node.shape
    out = _by_constant(c, node, rows, flat)
    return addresses(out, (batch, height, width, n)).transpose(0, 3, 1, 2)


def _channels_last(c: _Compiler, node: Node, x: Addresses, channels: int) -> Addresses:
    """Return x `[B, channels, H + 2 ph, W + 2 pw]` with channels side by side and zeros where x has none: as it lies, or a copy."""
    batch, present, height, width = x.shape
    ph, pw = node["padding"]
    last = x.transpose(0, 2, 3, 1)
    rows = as_rows(last)
    if (ph, pw) == (0, 0) and present == channels and rows is not None:
        return x
    where = c.flow.places.rows(f"{node.name}.padded", batch * (height + 2 * ph) * (width + 2 * pw), channels, "cache", pitch=channels)
    whole = addresses(where, (batch, height + 2 * ph, width + 2 * pw, channels))
    copy(c.flow, f"{node.name}.padded", last, whole[:, ph : ph + height, pw : pw + width, :present])
    return whole.transpose(0, 3, 1, 2)


def _windows(node: Node, padded: Addresses, kernel: tuple[int, int]) -> Addresses:
    """Return `[B, Ho, Wo, C, kh, kw]`: the addresses of every window of a tensor whose border is there already."""
    sh, sw = node["stride"]
    seen = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))[:, :, ::sh, ::sw]
    return np.ascontiguousarray(seen.transpose(0, 2, 3, 1, 4, 5))


def _matmul(c: _Compiler, node: Node) -> Addresses:
    return matmul(c.flow, node.name, c.x(node), c.x(node, 1))


def _ordered(c: _Compiler, node: Node, x: Addresses) -> tuple[tuple[int, ...], Rows]:
    """Return the axes of a tensor as it lies, and its rows in that order."""
    order = natural_order(x)
    if as_rows(x.transpose(order)) is None:
        order = tuple(range(x.ndim))
    return order, c.rows(node, x.transpose(order))


def _back(rows: Rows, shape: tuple[int, ...], order: tuple[int, ...]) -> Addresses:
    return addresses(rows, [shape[i] for i in order]).transpose(np.argsort(order))


def _unary(c: _Compiler, node: Node) -> Addresses:
    order, rows = _ordered(c, node, c.x(node))
    return _back(row_operation(c.flow, node, kernels.UNARY[node["function"]], [rows], []), node.shape, order)


def _binary(c: _Compiler, node: Node) -> Addresses:
    a, b = (np.broadcast_to(c.x(node, i), node.shape) for i in (0, 1))
    order, rows = _ordered(c, node, a)
    second = c.module.by_name[node.inputs[1]]
    along = node.shape[order[-1]] if node.shape else 1
    if second.kind == "constant" and node["function"] != "div" and _is_row(second.shape, len(node.shape), order[-1], along):
        vector = c.vector(node.inputs[1])
        return _back(row_operation(c.flow, node, kernels.binary(node["function"], "vector"), [rows], [vector]), node.shape, order)
    other = c.rows(node, b.transpose(order), "other")
    return _back(row_operation(c.flow, node, kernels.binary(node["function"], "rows"), [rows, other], []), node.shape, order)


def _is_row(shape: tuple[int, ...], rank: int, axis: int, length: int) -> bool:
    """Tell whether a constant is one row along an axis of a tensor of some rank, the same for all others."""
    full = (1,) * (rank - len(shape)) + tuple(shape)
    return full[axis] == length and all(n == 1 for i, n in enumerate(full) if i != axis)


def _affine(c: _Compiler, node: Node) -> Addresses:
    x, dim = c.x(node), node["dim"]
    order = (*(i for i in range(x.ndim) if i != dim), dim)
    rows = c.rows(node, x.transpose(order))
    out = row_operation(c.flow, node, kernels.affine, [rows], [c.vector(node["scale"]), c.vector(node["shift"])])
    return _back(out, node.shape, order)


def _softmax(c: _Compiler, node: Node) -> Addresses:
    causal = node.shape[-2] if node["causal"] else 0
    return addresses(row_operation(c.flow, node, kernels.softmax, [c.rows(node, c.x(node))], [], causal_rows=causal), node.shape)


def _norm(c: _Compiler, node: Node) -> Addresses:
    vectors = [c.vector(node[n]) for n in ("weight", "bias") if node.get(n) is not None]
    kernel = kernels.layer_norm if node.kind == "layer_norm" else kernels.rms_norm
    return addresses(row_operation(c.flow, node, kernel, [c.rows(node, c.x(node))], vectors), node.shape)


def _reduce(c: _Compiler, node: Node) -> Addresses:
    rows = c.rows(node, c.x(node))
    out = row_operation(c.flow, node, kernels.reduced(node["function"]), [rows], [], narrow=True)
    return addresses(out, node.shape)


def _pool(c: _Compiler, node: Node) -> Addresses:
    if _taps_fit(c, node):
        return _pool_of_taps(c, node)
    x = _bordered(c, node, c.x(node))
    seen = _windows(node, x, node["kernel"])  # [B, Ho, Wo, C, kh, kw]
    rows = c.rows(node, seen.reshape(*seen.shape[:4], -1), "windows")
    out = row_operation(c.flow, node, kernels.reduced(node["function"]), [rows], [], narrow=True)
    return addresses(out, seen.shape[:4]).transpose(0, 3, 1, 2)


#: Positions of a window that are read as inputs of their own: each takes a register of the sequencer.
_MOST_TAPS = 9


def _taps_fit(c: _Compiler, node: Node) -> bool:
    """Tell whether a maximum can be taken position by position, channels side by side: in any order it is the same bits."""
    x, n = c.x(node), int(np.prod(node["kernel"]))
    channels = x.shape[1]
    pitch = up(channels, c.flow.places.unit)
    side_by_side = channels % GRANULE == 0 and as_rows(x.transpose(0, 2, 3, 1)[:1, :1, :1]) is not None
    return node["function"] == "max" and n <= _MOST_TAPS and side_by_side and 2 * pitch * (n + 4) <= c.flow.vector_elements


def _pool_of_taps(c: _Compiler, node: Node) -> Addresses:
    x = _bordered(c, node, c.x(node), channels_last=True)
    seen = _windows(node, x, node["kernel"]).transpose(0, 1, 2, 4, 5, 3)  # [B, Ho, Wo, kh, kw, C]
    batch, height, width, kh, kw, channels = seen.shape
    taps = gathered(c.flow, f"{node.name}.windows", seen, seen.size // channels, channels)
    n, positions = kh * kw, batch * height * width
    inputs = [Rows(taps.base + tap * taps.stride, n * taps.stride, positions, channels) for tap in range(n)]
    out = row_operation(c.flow, node, kernels.greatest, inputs, [])
    return addresses(out, (batch, height, width, channels)).transpose(0, 3, 1, 2)


def _bordered(c: _Compiler, node: Node, x: Addresses, *, channels_last: bool = False) -> Addresses:
    """Return x with the lowest value around it where the pool pads: as it lies, or a copy in rows of the width or of the channels."""
    ph, pw = node["padding"]
    if (ph, pw) == (0, 0):
        return x
    batch, channels, height, width = x.shape
    shape = (batch, channels, height + 2 * ph, width + 2 * pw)
    order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
    *lead, n = (shape[i] for i in order)
    whole = addresses(c.flow.places.rows(f"{node.name}.padded", int(np.prod(lead)), n, "cache"), (*lead, n))
    lowest = c.put(f"{node.name}.lowest", np.full((1, n), _LOWEST, np.float32))
    copy(c.flow, f"{node.name}.border", np.broadcast_to(addresses(lowest, (n,)), whole.shape), whole)
    whole = whole.transpose(np.argsort(order))
    copy(c.flow, f"{node.name}.padded", x.transpose(order), whole[:, :, ph : ph + height, pw : pw + width].transpose(order))
    return whole


_KINDS: Mapping[str, Callable[[Any, Any], Any]] = {
    "input": _input, "constant": _constant,
    "reshape": lambda c, n: c.x(n).reshape(n.shape), "permute": lambda c, n: c.x(n).transpose(n["dims"]),
    "expand": lambda c, n: np.broadcast_to(c.x(n), n.shape),
    "slice": lambda c, n: c.x(n).swapaxes(0, n["dim"])[n["start"] : n["stop"] : n["step"]].swapaxes(0, n["dim"]),
    "cat": _cat, "linear": _linear, "conv2d": _conv2d, "matmul": _matmul, "softmax": _softmax, "layer_norm": _norm, "rms_norm": _norm,
    "affine": _affine, "unary": _unary, "binary": _binary, "reduce": _reduce, "pool": _pool,
}  # fmt: skip
