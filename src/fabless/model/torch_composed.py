"""ATen operators that are a few operations of `module.KINDS`: their handlers for `torch_capture`, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from fabless.core.errors import UnsupportedError

#: As `torch_capture` calls it: the capture, an operator's arguments by name, the shape of its result.
Handler = Callable[[Any, Mapping[str, Any], tuple[int, ...]], Any]

#: Groups of a convolution that are written out, each with a slice, a product and its share of the join.
MOST_GROUPS = 32


def _unary(c: Any, x: Any, function: str, **limits: float | None) -> Any:
    return c.node("unary", (x,), x.shape, function=function, **limits)


def _binary(c: Any, function: str, a: Any, b: Any) -> Any:
    return c.node("binary", (a, b), a.shape, function=function)


def leaky_relu(c: Any, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """Return the greater of slope * x and x."""
    x, slope = a["self"], float(a["negative_slope"])
    if not 0 <= slope <= 1:
        raise UnsupportedError(f"with slope {slope:g}; use one from 0 to 1")
    return _binary(c, "max", _unary(c, x, "scale", low=slope), x)


def hardsigmoid(c: Any, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """Return x / 6 + 1 / 2, within 0 and 1."""
    x = a["self"]
    return _unary(c, _binary(c, "add", _unary(c, x, "scale", low=1 / 6), 0.5), "clamp", low=0.0, high=1.0)


def hardswish(c: Any, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """Return x * hardsigmoid(x)."""
    return _binary(c, "mul", hardsigmoid(c, a, shape), a["self"])


def elu(c: Any, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """Return max(x, 0) + alpha * (exp(min(x, 0)) - 1)."""
    if (float(a["scale"]), float(a["input_scale"])) != (1.0, 1.0):
        raise UnsupportedError("with scales other than 1; use elu without, and multiply")
    x = a["self"]
    below = _binary(c, "sub", _unary(c, _unary(c, x, "clamp", low=None, high=0.0), "exp"), 1.0)
    return _binary(c, "add", _unary(c, x, "relu"), _unary(c, below, "scale", low=float(a["alpha"])))


def sqrt(c: Any, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """Return 1 / rsqrt(x)."""
    return _unary(c, _unary(c, a["self"], "rsqrt"), "reciprocal")


def power(c: Any, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """Return x to the power of 1/2, 2 or 3."""
    x, exponent = a["self"], a.get("exponent")
    if exponent == 0.5:
        return sqrt(c, a, shape)
    if exponent not in (2, 3):
        raise UnsupportedError(f"with exponent {exponent}; multiply instead")
    squared = _unary(c, x, "square")
    return squared if exponent == 2 else _binary(c, "mul", squared, x)


def group_norm(c: Any, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """Norm each group of channels as one row, then scale and shift channels."""
    x, groups = a["input"], int(a["num_groups"])
    flat = c.node("reshape", (x,), (shape[0], groups, prod(shape[1:]) // groups))
    normed = c.node("layer_norm", (flat,), flat.shape, epsilon=float(a["eps"]))
    y = c.node("reshape", (normed,), shape)
    one = a["weight"] if a.get("weight") is not None else a.get("bias")
    if one is None:
        return y
    scale, shift = (a[n] if a.get(n) is not None else one.new_full(one.shape, v) for n, v in (("weight", 1.0), ("bias", 0.0)))
    return c.node("affine", (y,), shape, dim=1, scale=c.constant(scale), shift=c.constant(shift))


def heads_repeated(c: Any, x: Any, each: int) -> Any:
    """Return x `[..., heads, s, d]` with every head `each` times, one behind the other."""
    *lead, heads, s, d = x.shape
    apart = c.node("reshape", (x,), (*lead, heads, 1, s, d))
    repeated = c.node("expand", (apart,), (*lead, heads, each, s, d))
    return c.node("reshape", (repeated,), (*lead, heads * each, s, d))


def conv1d(convolve: Handler) -> Handler:
    """Return the handler of a convolution along one axis: along the second of two, the first of length 1."""

    def handler(c: Any, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
        x, weight, padding = a["input"], a["weight"], a["padding"]
        if len(shape) != 3:
            raise UnsupportedError("without a batch axis; add one")
        if not hasattr(weight, "unsqueeze"):
            raise UnsupportedError("the weight is computed from an input; give a parameter")
        wide = c.node("reshape", (x,), (*x.shape[:2], 1, x.shape[2]))
        sides = {n: [1, *a[n]] for n in ("stride", "dilation")} | {"padding": padding if isinstance(padding, str) else [0, *padding]}
        out = convolve(c, {**a, **sides, "input": wide, "weight": weight.unsqueeze(2)}, (*shape[:2], 1, shape[2]))
        return c.node("reshape", (out,), shape)

    return handler


def grouped(convolve: Handler, cut: Callable[..., Any]) -> Handler:
    """Return the handler of a convolution of any number of groups: one after the other, joined along the channels."""

    def handler(c: Any, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
        groups = int(a.get("groups", 1))
        if groups == 1:
            return convolve(c, a, shape)
        if groups > MOST_GROUPS:
            raise UnsupportedError(f"in {groups} groups; use at most {MOST_GROUPS}")
        x, weight, bias = a["input"], a["weight"], a.get("bias")
        each, share = x.shape[1] // groups, shape[1] // groups
        parts = []
        for g in range(groups):
            own = slice(g * share, (g + 1) * share)
            arguments = {**a, "groups": 1, "input": cut(c, x, 1, g * each, (g + 1) * each), "weight": weight[own]}
            parts.append(convolve(c, arguments | {"bias": None if bias is None else bias[own]}, (shape[0], share, *shape[2:])))
        return c.node("cat", parts, shape, dim=1)

    return handler


COMPOSED: Mapping[str, Handler] = {
    "leaky_relu": leaky_relu, "hardsigmoid": hardsigmoid, "hardswish": hardswish, "elu": elu, "sqrt": sqrt, "pow": power, "group_norm": group_norm,
}  # fmt: skip
