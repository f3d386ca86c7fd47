"""A module as the chip executes it: a list of operations on named tensors of known shape, and the constants that they read.

Whoever runs one (`module_reference`, `compiler.module_driver`) gives each kind the meaning that this table states; `docs/modules.md` has the order of
every operation. `torch_capture` makes modules from PyTorch; nothing here knows of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.digest import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

#: Kind of operation -> what it means. `x`, `a`, `b` are inputs; everything else is an attribute.
KINDS: Mapping[str, str] = {
    "input": "a tensor that the caller gives",
    "constant": "a tensor that is known before the first call",
    "reshape": "x in another shape, row-major order kept",
    "permute": "x with its axes in the order `dims`",
    "expand": "x repeated along axes of length 1 up to `shape`",
    "slice": "x[start:stop:step] along axis `dim`",
    "cat": "inputs one behind the other along axis `dim`",
    "linear": "x [..., k] by the constant `weight` [n, k], then `bias` [n] where given",
    "conv2d": "x [B, C, H, W] by the constant `weight` [n, C, kh, kw], `stride`, `padding` with zeros, then `bias` [n] where given",
    "matmul": "a [..., m, k] by b [..., k, n], both computed",
    "softmax": "softmax of `scale` * x along the last axis; `causal`: of row i, the first i + 1 elements alone",
    "layer_norm": "(x - mean) * rsqrt(variance + `epsilon`) along the last axis, times `weight`, plus `bias` where given",
    "rms_norm": "x * rsqrt(mean of squares + `epsilon`) along the last axis, times `weight` where given",
    "affine": "x * `scale` + `shift`, vectors along axis `dim` (a normalisation whose statistics are constants)",
    "unary": "a function of each element: `function`, `low`, `high`",
    "binary": "a function of two tensors that broadcast: `function`",
    "reduce": "`function` (mean, sum or max) over the last axis, which goes away",
    "pool": "`function` (mean or max) over windows of x [B, C, H, W]: `kernel`, `stride`, `padding` (max alone)",
}
UNARY = ("relu", "silu", "sigmoid", "gelu", "tanh", "exp", "reciprocal", "rsqrt", "square", "neg", "clamp", "abs", "scale")
BINARY = ("add", "sub", "mul", "max", "min", "div")


@dataclass(frozen=True)
class Node:
    """Hold one operation: its unique `name` (from the module path), kind, inputs by name, attributes, and the shape of its result."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, attribute: str) -> Any:
        return self.attributes[attribute]

    def get(self, attribute: str, default: Any = None) -> Any:
        """Return an attribute, or the default where it has none."""
        return self.attributes.get(attribute, default)


@dataclass(frozen=True)
class Module:
    """Hold operations in order of computation, constants by name (binary32), and the names of inputs and outputs."""

    name: str
    nodes: tuple[Node, ...]
    constants: Mapping[str, NDArray[np.float32]] = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def by_name(self) -> dict[str, Node]:
        """Return the nodes by name."""
        return {node.name: node for node in self.nodes}

    @property
    def digest(self) -> str:
        """Return 16 hex digits that name operations and constants."""
        return digest(
            {"nodes": [(n.name, n.kind, n.inputs, n.shape, dict(n.attributes)) for n in self.nodes], "constants": dict(self.constants)}
        )

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates of one call, zeros of padding included."""
        shapes = {node.name: node.shape for node in self.nodes}
        total = 0
        for node in self.nodes:
            if node.kind in {"linear", "conv2d"}:
                weight = self.constants[node["weight"]]
                total += int(np.prod(node.shape)) * int(np.prod(weight.shape[1:]))
            elif node.kind == "matmul":
                total += int(np.prod(node.shape)) * shapes[node.inputs[0]][-1]
        return total
