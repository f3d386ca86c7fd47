"""What a module computes on the chip, in NumPy: block products of int8 and machine arithmetic in the order that `docs/modules.md` states.

The compiled program must leave the same bits, whatever the tile. Tensors here are whole and in their own shapes: where they lie in memory, how rows are
cut and what is copied is none of its concern.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.errors import InputError
from fabless.model.block_weights import block_matrix
from fabless.number.arrays import add, canonical, maximum, minimum, mul, row_max, row_sum, sub
from fabless.number.dot import gemm
from fabless.number.functions import exp2_array, rcp_array, rsqrt_array
from fabless.number.quantise import quantise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from fabless.model.module import Module, Node

    Floats = npt.NDArray[np.float32]

LOWEST = np.float32(-(2.0**100))
_LOG2E = math.log2(math.e)
_GELU = 2 * math.sqrt(2 / math.pi)  # Source: Hendrycks and Gimpel, arXiv 1606.08415
ONE = np.float32(1)


def f32(value: float) -> Any:
    """Return the binary32 nearest to a number."""
    return np.float32(value)


def run(module: Module, *inputs: npt.ArrayLike) -> dict[str, Floats]:
    """Return every tensor of a call by name. Raises `InputError` for inputs of other number, shape or with values that are not finite."""
    if len(inputs) != len(module.inputs):
        raise InputError(f"{module.name}: {len(inputs)} inputs given, it takes {len(module.inputs)}: {', '.join(module.inputs)}")
    values: dict[str, Floats] = {}
    given = dict(zip(module.inputs, inputs, strict=True))
    for node in module.nodes:
        if node.kind == "input":
            values[node.name] = checked(node, given[node.name])
        elif node.kind == "constant":
            values[node.name] = canonical(module.constants[node.name])
        else:
            values[node.name] = perform(module, node, [values[name] for name in node.inputs])
    return values


def checked(node: Node, given: npt.ArrayLike) -> Floats:
    """Return an input as the chip reads it; raises `InputError` where it is of another shape or not finite."""
    array = np.asarray(given, np.float32)
    if array.shape != node.shape:
        raise InputError(
            f"input '{node.name}' has shape {list(array.shape)}, the module was captured for {list(node.shape)}; capture it again"
        )
    if not np.isfinite(array).all():
        raise InputError(f"input '{node.name}': {int((~np.isfinite(array)).sum())} values are NaN or infinite; give finite numbers")
    return canonical(array)


def perform(module: Module, node: Node, x: list[Floats]) -> Floats:
    """Return what one operation computes of its inputs."""
    y: Floats = _KINDS[node.kind](module, node, x)
    return y


def _product(rows: Floats, codes: Any, scales: Any) -> Floats:
    """Return `[M, n]`: rows `[M, k]` quantised, times blocks `[B, n, 32]` with scales `[B, n]`."""
    own, own_scales = quantise(rows)
    return gemm(codes, scales, own, own_scales)


def _by_constant(module: Module, node: Node, rows: Floats, weight: Floats) -> Floats:
    matrix = block_matrix(weight)
    y = _product(rows, matrix.codes, matrix.scales)
    return y if node.get("bias") is None else add(y, canonical(module.constants[node["bias"]]))


def _linear(module: Module, node: Node, x: list[Floats]) -> Floats:
    weight = module.constants[node["weight"]]
    return _by_constant(module, node, x[0].reshape(-1, weight.shape[1]), weight).reshape(node.shape)


def patch_order(node: Node, x_shape: tuple[int, ...], kernel: tuple[int, int]) -> str:
    """Return in which order a patch's elements stand: "rows" (channel, kh, kw), else "channels" (kh, kw, channel, zeros up to a multiple of 8)."""
    whole = kernel[1] % 8 == 0 and node["stride"][1] % 8 == 0 and x_shape[3] % 8 == 0 and node["padding"] == (0, 0)
    return "rows" if whole else "channels"


def _conv2d(module: Module, node: Node, x: list[Floats]) -> Floats:
    weight = module.constants[node["weight"]]
    n, channels, kh, kw = weight.shape
    patches = windows(node, x[0], (kh, kw), np.float32(0))  # [B, Ho, Wo, C, kh, kw]
    if patch_order(node, x[0].shape, (kh, kw)) == "rows":
        rows, flat = patches.reshape(-1, channels * kh * kw), weight.reshape(n, -1)
    else:
        pad = (0, -channels % 8)
        patches = np.pad(patches.transpose(0, 1, 2, 4, 5, 3), ((0, 0),) * 5 + (pad,))
        flat = np.pad(weight.transpose(0, 2, 3, 1), ((0, 0),) * 3 + (pad,)).reshape(n, -1)
        rows = patches.reshape(-1, flat.shape[1])
    y = _by_constant(module, node, rows, flat)
    batch, _, height, width = node.shape
    return y.reshape(batch, height, width, n).transpose(0, 3, 1, 2)


def windows(node: Node, x: Floats, kernel: tuple[int, int], border: np.float32) -> Floats:
    """Return `[B, Ho, Wo, C, kh, kw]`: every window of x `[B, C, H, W]`, padded with `border`."""
    (ph, pw), (sh, sw) = node["padding"], node["stride"]
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=border)
    seen = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))[:, :, ::sh, ::sw]
    return np.ascontiguousarray(seen.transpose(0, 2, 3, 1, 4, 5))


def _matmul(module: Module, node: Node, x: list[Floats]) -> Floats:
    a, b = (t.reshape(-1, *t.shape[-2:]) for t in x)
    out = []
    for left, right in zip(a, b, strict=True):
        codes, scales = quantise(np.ascontiguousarray(right.T))  # [n, B, 32], [n, B]
        out.append(_product(left, codes.swapaxes(0, 1), scales.T))
    return np.stack(out).reshape(node.shape)


def _softmax(module: Module, node: Node, x: list[Floats]) -> Floats:
    t = mul(x[0], f32(node["scale"] * _LOG2E))
    if node["causal"]:
        rows, columns = t.shape[-2:]
        t = np.where(np.arange(columns) <= np.arange(rows)[:, None], t, LOWEST)
    p = exp2_array(sub(t, row_max(t)[..., None]))
    return mul(p, rcp_array(row_sum(p))[..., None])


def _layer_norm(module: Module, node: Node, x: list[Floats]) -> Floats:
    share = f32(1 / x[0].shape[-1])
    d = sub(x[0], mul(row_sum(x[0]), share)[..., None])
    variance = mul(row_sum(mul(d, d)), share)
    return _scaled(module, node, mul(d, rsqrt_array(add(variance, f32(node["epsilon"])))[..., None]))


def _rms_norm(module: Module, node: Node, x: list[Floats]) -> Floats:
    mean_square = mul(row_sum(mul(x[0], x[0])), f32(1 / x[0].shape[-1]))
    return _scaled(module, node, mul(x[0], rsqrt_array(add(mean_square, f32(node["epsilon"])))[..., None]))


def _scaled(module: Module, node: Node, y: Floats) -> Floats:
    if node.get("weight") is not None:
        y = mul(y, canonical(module.constants[node["weight"]]))
    return y if node.get("bias") is None else add(y, canonical(module.constants[node["bias"]]))


def _affine(module: Module, node: Node, x: list[Floats]) -> Floats:
    side = [1] * len(node.shape)
    side[node["dim"]] = -1
    scale, shift = (canonical(module.constants[node[n]]).reshape(side) for n in ("scale", "shift"))
    return add(mul(x[0], scale), shift)


def _sigmoid(x: Floats, factor: float = 1.0) -> Floats:
    return rcp_array(add(exp2_array(mul(x, f32(-factor * _LOG2E))), ONE))


def _gelu(x: Floats) -> Floats:
    z = mul(x, add(mul(mul(x, x), f32(_GELU * 0.044715)), f32(_GELU)))
    return mul(x, _sigmoid(z))


def _clamp(node: Node, x: Floats) -> Floats:
    x = x if node.get("low") is None else maximum(x, f32(node["low"]))
    return x if node.get("high") is None else minimum(x, f32(node["high"]))


_FUNCTIONS: Mapping[str, Callable[[Node, Floats], Floats]] = {
    "relu": lambda n, x: maximum(x, f32(0)),
    "silu": lambda n, x: mul(x, _sigmoid(x)),
    "sigmoid": lambda n, x: _sigmoid(x),
    "gelu": lambda n, x: _gelu(x),
    "tanh": lambda n, x: sub(mul(_sigmoid(x, 2.0), f32(2)), ONE),
    "exp": lambda n, x: exp2_array(mul(x, f32(_LOG2E))),
    "reciprocal": lambda n, x: rcp_array(x),
    "rsqrt": lambda n, x: rsqrt_array(x),
    "square": lambda n, x: mul(x, x),
    "neg": lambda n, x: mul(x, f32(-1)),
    "abs": lambda n, x: maximum(mul(x, f32(-1)), x),
    "scale": lambda n, x: mul(x, f32(n["low"])),
    "clamp": _clamp,
}


def _binary(module: Module, node: Node, x: list[Floats]) -> Floats:
    a, b = np.broadcast_arrays(*x)
    operations: Mapping[str, Callable[[Any, Any], Floats]] = {
        "add": add, "sub": sub, "mul": mul, "max": maximum, "min": minimum, "div": lambda p, q: mul(p, rcp_array(np.ascontiguousarray(q))),
    }  # fmt: skip
    return operations[node["function"]](a, b)


def _reduced(function: str, x: Floats) -> Floats:
    if function == "max":
        return row_max(x)
    total = row_sum(x)
    return total if function == "sum" else mul(total, f32(1 / x.shape[-1]))


def _pool(module: Module, node: Node, x: list[Floats]) -> Floats:
    seen = windows(node, x[0], node["kernel"], LOWEST)
    return _reduced(node["function"], seen.reshape(*seen.shape[:4], -1)).transpose(0, 3, 1, 2)


_KINDS: Mapping[str, Callable[[Any, Any, list[Any]], Any]] = {
    "reshape": lambda m, n, x: x[0].reshape(n.shape),
    "permute": lambda m, n, x: np.ascontiguousarray(x[0].transpose(n["dims"])),
    "expand": lambda m, n, x: np.ascontiguousarray(np.broadcast_to(x[0], n.shape)),
    "slice": lambda m, n, x: np.ascontiguousarray(x[0].swapaxes(0, n["dim"])[n["start"] : n["stop"] : n["step"]].swapaxes(0, n["dim"])),
    "cat": lambda m, n, x: np.concatenate(x, axis=n["dim"]),
    "linear": _linear, "conv2d": _conv2d, "matmul": _matmul, "softmax": _softmax, "layer_norm": _layer_norm, "rms_norm": _rms_norm, "affine": _affine,
    "unary": lambda m, n, x: _FUNCTIONS[n["function"]](n, x[0]), "binary": _binary, "reduce": lambda m, n, x: _reduced(n["function"], x[0]),
    "pool": _pool,
}  # fmt: skip
