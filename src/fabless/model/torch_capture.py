"""A PyTorch module, with its values, as operations that the chip executes: by `torch.export`, one table from ATen operators to `module.KINDS`.

What depends on parameters alone is computed by PyTorch before the first call and becomes a constant. Views, transposes and joins stay operations of
their own: where tensors lie is the compiler's concern.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from fabless.core.errors import InputError, UnsupportedError
from fabless.model.module import Module, Node
from fabless.model.torch_composed import COMPOSED, conv1d, grouped, heads_repeated
from fabless.model.torch_export import exported, module_path, operator_name

__all__ = ["SUPPORTED", "capture"]


@dataclass(frozen=True)
class Symbol:
    """Stand for a tensor that depends on an input: the name of the node that computes it, and its shape."""

    name: str
    shape: tuple[int, ...]


def capture(module: Any, example_inputs: tuple[Any, ...], name: str | None = None) -> Module:
    """Return what one call of a `torch.nn.Module` computes on inputs shaped like `example_inputs`, ready for `compiler.module_driver.compile_module`.

    Raises `InputError` for a module in training mode or with values that are not finite, `UnsupportedError` naming every operator without a meaning here
    and its module path, `FablessError` when torch is not installed.
    """
    program = exported(module, example_inputs)
    return _Capture(program).module(name or type(module).__name__)


@dataclass
class _Capture:
    program: Any
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[Any, Any] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    path: str = ""
    current: Any = None
    refused: dict[str, None] = field(default_factory=dict)

    def module(self, name: str) -> Module:
        import torch

        stored = _stored_values(self.program)
        inputs: list[str] = []
        outputs: tuple[str, ...] = ()
        with torch.no_grad():
            for node in self.program.graph.nodes:
                self.path, self.current = module_path(node), node
                if node.op == "placeholder":
                    if node.name in stored:
                        self.values[node] = stored[node.name]
                    elif hasattr(node.meta.get("val"), "shape"):
                        shape = tuple(node.meta["val"].shape)
                        if not node.meta["val"].dtype.is_floating_point:
                            raise UnsupportedError(
                                f"input '{node.name}' holds {node.meta['val'].dtype}; modules take floating-point tensors"
                            )
                        self.values[node] = self.node("input", (), shape, name=node.name)
                        inputs.append(node.name)
                elif node.op == "call_function":
                    self.values[node] = self._call(node)
                elif node.op == "output":
                    outputs = tuple(self._operand(self._of(x)).name for x in _flat(node.args[0]))
        if self.refused:
            raise UnsupportedError(f"no operation of the chip for {', '.join(self.refused)}; supported operators: {', '.join(SUPPORTED)}")
        constants = self._read_constants()
        bad = next((n for n, c in constants.items() if not np.isfinite(c).all()), None)
        if bad is not None:
            raise InputError(
                f"{name}: {int((~np.isfinite(constants[bad])).sum())} values of '{bad}' are NaN or infinite; repair the weights"
            )
        return Module(name, tuple(self.nodes), constants, tuple(inputs), outputs)

    def _read_constants(self) -> dict[str, np.ndarray]:
        """Return the constants that some operation reads: folding leaves others behind."""
        read = {v for node in self.nodes for v in (node.name, *node.attributes.values()) if isinstance(v, str)}
        return {name: array for name, array in self.constants.items() if name in read}

    # ------------------------------------------------------------ values and names

    def node(self, kind: str, inputs: Sequence[Any], shape: Sequence[int], name: str = "", **attributes: Any) -> Symbol:
        """Append a node; inputs may be tensors that are known, which become constants."""
        operands = tuple(self._operand(x).name for x in inputs)
        given = name or self._unique(f"{self.path}.{kind}" if self.path != "the module itself" else kind)
        self.names.add(given)
        self.nodes.append(Node(given, kind, operands, tuple(int(n) for n in shape), attributes))
        return Symbol(given, tuple(int(n) for n in shape))

    def _unique(self, name: str) -> str:
        found, i = name, 1
        while found in self.names:
            found, i = f"{name}_{i}", i + 1
        return found

    def _operand(self, value: Any) -> Symbol:
        """Return the symbol of a value; a known tensor or number becomes a constant's node."""
        if isinstance(value, Symbol):
            return value
        name = self.constant(value)
        if name not in self.names:
            self.names.add(name)
            self.nodes.append(Node(name, "constant", (), self.constants[name].shape))
        return Symbol(name, self.constants[name].shape)

    def constant(self, value: Any) -> str:
        """Return the name under which a known tensor or number is held; equal values are held once."""
        array = np.asarray(value.detach().float().numpy() if hasattr(value, "detach") else value, np.float32)
        array = np.ascontiguousarray(array)
        for name, held in self.constants.items():
            if held.shape == array.shape and held.tobytes() == array.tobytes():
                return name
        name = self._unique(f"constant_{len(self.constants)}")
        self.constants[name] = array
        return name

    def _of(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._of(v) for v in value)
        return self.values.get(value, value) if hasattr(value, "meta") else value

    def _call(self, node: Any) -> Any:
        args, kwargs = self._of(tuple(node.args)), {k: self._of(v) for k, v in node.kwargs.items()}
        if not any(isinstance(x, Symbol) for x in _flat([args, list(kwargs.values())])):
            return node.target(*args, **kwargs)
        op = operator_name(node.target)
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            bound: dict[str, Any] = {str(i): a for i, a in enumerate(args)}
        else:
            bound = {a.name: a.default_value if a.has_default_value() else None for a in schema.arguments}
            bound |= dict(zip(bound, args, strict=False)) | kwargs
        meta = node.meta.get("val")
        shape = tuple(meta.shape) if hasattr(meta, "shape") else ()
        try:
            if op not in _HANDLERS:
                raise UnsupportedError("")
            return _HANDLERS[op](self, bound, shape)
        except UnsupportedError as error:
            why = f" ({error})" if str(error) else ""
            self.refused[f"{op} in {self.path}{why}"] = None
            parts = meta if isinstance(meta, (list, tuple)) else None
            return [Symbol("", tuple(p.shape)) for p in parts] if parts is not None else Symbol("", shape)


def _stored_values(program: Any) -> dict[str, Any]:
    """Return the tensors behind the placeholders that no caller gives: parameters, buffers, constants."""
    signature, state, constants = program.graph_signature, program.state_dict, program.constants
    found: dict[str, Any] = {}
    for table in (signature.inputs_to_parameters, signature.inputs_to_buffers, signature.inputs_to_lifted_tensor_constants):
        for placeholder, name in table.items():
            found[placeholder] = state[name] if name in state else constants[name]
    return found


def _flat(value: Any) -> list[Any]:
    return [x for v in value for x in _flat(v)] if isinstance(value, (list, tuple)) else [value]


# ---------------------------------------------------------------- operators

Handler = Callable[[_Capture, Mapping[str, Any], tuple[int, ...]], Any]


def _known(value: Any, what: str) -> Any:
    if isinstance(value, Symbol):
        raise UnsupportedError(f"{what} is computed from an input; give a parameter")
    return value


def _view(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    x = a.get("self", a.get("input"))
    return x if x.shape == shape else c.node("reshape", (x,), shape)


def _same(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    return a.get("self", a.get("input"))


def _permute(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    x = a["self"]
    dims = tuple(d % len(x.shape) for d in a["dims"])
    return x if dims == tuple(range(len(dims))) else c.node("permute", (x,), shape, dims=dims)


def _transpose(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    x = a["self"]
    rank = len(x.shape)
    first, second = (a.get(n, -2 + i) % rank for i, n in enumerate(("dim0", "dim1"))) if rank > 1 else (0, 0)
    dims = list(range(rank))
    dims[first], dims[second] = dims[second], dims[first]
    return c.node("permute", (x,), shape, dims=tuple(dims))


def _expand(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    x = a["self"]
    lead = (1,) * (len(shape) - len(x.shape))
    x = c.node("reshape", (x,), lead + x.shape) if lead else x
    return x if x.shape == shape else c.node("expand", (x,), shape)


def _cut(c: _Capture, x: Any, dim: int, start: int, stop: int, step: int = 1) -> Any:
    dim %= len(x.shape)
    if (start, stop, step) == (0, x.shape[dim], 1):
        return x
    shape = list(x.shape)
    shape[dim] = len(range(start, stop, step))
    return c.node("slice", (x,), shape, dim=dim, start=start, stop=stop, step=step)


def _slice(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    x, dim = a["self"], a["dim"] % len(a["self"].shape)
    n = x.shape[dim]
    start, stop = ((min(max(v + n if v < 0 else v, 0), n)) for v in (a["start"] or 0, n if a["end"] is None else a["end"]))
    return _cut(c, x, dim, start, stop, a.get("step") or 1)


def _select(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    x, dim = a["self"], a["dim"] % len(a["self"].shape)
    index = a["index"] % x.shape[dim]
    return c.node("reshape", (_cut(c, x, dim, index, index + 1),), shape)


def _pieces(c: _Capture, x: Any, dim: int, sizes: Sequence[int]) -> list[Any]:
    out, at = [], 0
    for n in sizes:
        out.append(_cut(c, x, dim, at, at + n))
        at += n
    return out


def _chunk(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    n = a["self"].shape[a["dim"]]
    each = -(-n // a["chunks"])
    return _pieces(c, a["self"], a["dim"], [min(each, n - i) for i in range(0, n, each)])


def _split(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    size, n = a.get("split_size", a.get("split_sizes")), a["self"].shape[a["dim"]]
    sizes = size if isinstance(size, (list, tuple)) else [min(size, n - i) for i in range(0, n, size)]
    return _pieces(c, a["self"], a["dim"], sizes)


def _unbind(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    x, dim = a["self"], a["dim"] % len(a["self"].shape)
    rest = x.shape[:dim] + x.shape[dim + 1 :]
    return [c.node("reshape", (part,), rest) for part in _pieces(c, x, dim, [1] * x.shape[dim])]


def _cat(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    return c.node("cat", a["tensors"], shape, dim=a["dim"] % len(shape))


def _stack(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    dim = a["dim"] % len(shape)
    parts = [c.node("reshape", (t,), (*c._operand(t).shape[:dim], 1, *c._operand(t).shape[dim:])) for t in a["tensors"]]
    return c.node("cat", parts, shape, dim=dim)


def _linear(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    weight, bias = _known(a["weight"], "the weight"), a.get("bias")
    named = {"weight": c.constant(weight)} | ({} if bias is None else {"bias": c.constant(_known(bias, "the bias"))})
    return c.node("linear", (a["input"],), shape, **named)


def _addmm(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    if (a.get("alpha", 1), a.get("beta", 1)) != (1, 1):
        raise UnsupportedError("with factors other than 1")
    weight = _known(a["mat2"], "the matrix")
    return c.node(
        "linear", (a["mat1"],), shape, weight=c.constant(weight.T), bias=c.constant(_known(a["self"], "the bias").expand(shape[-1]))
    )


def _matmul(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    left, right = a["self"], a.get("mat2", a.get("other"))
    if not isinstance(right, Symbol) and len(right.shape) == 2:
        return c.node("linear", (left,), shape, weight=c.constant(right.T))
    left, right = c._operand(left), c._operand(right)
    if len(left.shape) < 2 or len(right.shape) < 2:
        raise UnsupportedError("of a vector; add an axis")
    lead = shape[:-2]
    left, right = (_broadcast(c, t, lead + t.shape[-2:]) for t in (left, right))
    return c.node("matmul", (left, right), shape)


def _broadcast(c: _Capture, x: Any, shape: tuple[int, ...]) -> Any:
    return _expand(c, {"self": x}, shape)


def _attention(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    q, k, v = (c._operand(a[n]) for n in ("query", "key", "value"))
    if a.get("enable_gqa") and q.shape[-3] != k.shape[-3]:
        k, v = (heads_repeated(c, t, q.shape[-3] // k.shape[-3]) for t in (k, v))
    mask, scale = a.get("attn_mask"), a.get("scale")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    last = tuple(range(len(k.shape) - 2))
    turned = c.node("permute", (k,), (*k.shape[:-2], k.shape[-1], k.shape[-2]), dims=(*last, len(last) + 1, len(last)))
    scores = c.node("matmul", (q, turned), (*q.shape[:-1], k.shape[-2]))
    if mask is not None:
        scores = c.node("unary", (scores,), scores.shape, function="scale", low=scale)
        given = _known(mask, "the mask")
        if not given.dtype.is_floating_point:
            given = given.logical_not().float() * -(2.0**100)
        scores, scale = c.node("binary", (scores, given.clamp(min=-(2.0**100))), scores.shape, function="add"), 1.0
    p = c.node("softmax", (scores,), scores.shape, scale=scale, causal=bool(a.get("is_causal")))
    return c.node("matmul", (p, v), shape)


def _conv(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    x, weight = a["input"], _known(a["weight"], "the weight")
    rank = len(weight.shape) - 2
    if rank != 2:
        raise UnsupportedError(f"in {rank} dimensions; reshape to two")
    pair = {n: tuple(int(v) for v in (a[n] if len(a[n]) == 2 else [*a[n]] * 2)) for n in ("stride", "dilation") if a.get(n)}
    padding = a.get("padding", [0, 0])
    if padding == "valid":
        padding = [0, 0]
    elif padding == "same":
        if not all(k % 2 for k in weight.shape[2:]):
            raise UnsupportedError("with padding 'same' of an even kernel; give numbers")
        padding = [k // 2 for k in weight.shape[2:]]
    padding = tuple(int(v) for v in (padding if len(padding) == 2 else [*padding] * 2))
    if pair.get("dilation", (1, 1)) != (1, 1) or a.get("transposed"):
        raise UnsupportedError("dilated or transposed; use a plain convolution")
    named = {"weight": c.constant(weight)} | ({} if a.get("bias") is None else {"bias": c.constant(_known(a["bias"], "the bias"))})
    return c.node("conv2d", (x,), shape, stride=pair.get("stride", (1, 1)), padding=padding, **named)


def _layer_norm(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    named = {n: c.constant(_known(a[n], f"the {n}").flatten()) for n in ("weight", "bias") if a.get(n) is not None}
    return _over_rows(c, a, shape, lambda x: c.node("layer_norm", (x,), x.shape, epsilon=float(a["eps"]), **named))


def _over_rows(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...], norm: Callable[[Any], Any]) -> Any:
    """Norm the last axes, several of them as one."""
    x, n = a["input"], len(a["normalized_shape"])
    if n == 1:
        return norm(x)
    flat = c.node("reshape", (x,), (*shape[:-n], prod(shape[-n:])))
    return c.node("reshape", (norm(flat),), shape)


def _rms_norm(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    epsilon = float(np.finfo(np.float32).eps if a.get("eps") is None else a["eps"])
    named = {"weight": c.constant(_known(a["weight"], "the weight").flatten())} if a.get("weight") is not None else {}
    return _over_rows(c, a, shape, lambda x: c.node("rms_norm", (x,), x.shape, epsilon=epsilon, **named))


def _batch_norm(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    mean, variance = (a[n].double() for n in ("running_mean", "running_var"))
    weight = mean.new_ones(mean.shape) if a.get("weight") is None else a["weight"].double()
    bias = mean.new_zeros(mean.shape) if a.get("bias") is None else a["bias"].double()
    scale = weight / (variance + a["eps"]).sqrt()
    shift = bias - mean * scale
    at = _folds_into(c, a["input"])
    if at is None:
        return c.node("affine", (a["input"],), shape, dim=1, scale=c.constant(scale), shift=c.constant(shift))
    before, factor, offset = c.nodes[at], scale.numpy(), shift.numpy()
    weight = c.constants[before["weight"]].astype(np.float64)
    weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    if before.get("bias") is not None:
        offset = offset + factor * c.constants[before["bias"]].astype(np.float64)
    c.nodes[at] = replace(before, attributes={**before.attributes, "weight": c.constant(weight), "bias": c.constant(offset)})
    return a["input"]


def _folds_into(c: _Capture, x: Any) -> int | None:
    """Return which node is the convolution or linear layer whose outputs, along axis 1, nothing but this batch norm reads."""
    source = c.current.args[0]
    if len(source.users) != 1 or operator_name(source.target) not in {"conv2d", "convolution", "linear", "addmm"}:
        return None
    at = next(i for i, node in enumerate(c.nodes) if node.name == x.name)
    return at if c.nodes[at].kind == "conv2d" or (c.nodes[at].kind == "linear" and len(x.shape) == 2) else None


def _softmax(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    x, rank = a["self"], len(shape)
    dim = a["dim"] % rank
    if dim == rank - 1:
        return c.node("softmax", (x,), shape, scale=1.0, causal=False)
    dims = (*(i for i in range(rank) if i != dim), dim)
    turned = c.node("permute", (x,), [shape[i] for i in dims], dims=dims)
    done = c.node("softmax", (turned,), turned.shape, scale=1.0, causal=False)
    return c.node("permute", (done,), shape, dims=tuple(int(i) for i in np.argsort(dims)))


def _unary(function: str) -> Handler:
    def handler(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
        return c.node("unary", (a.get("self", a.get("input")),), shape, function=function)

    return handler


def _clamp(low: float | str, high: float | str) -> Handler:
    def handler(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
        ends = [a.get(v) if isinstance(v, str) else v for v in (low, high)]
        known: dict[str, Any] = {n: float(_known(v, "a limit")) for n, v in zip(("low", "high"), ends, strict=True) if v is not None}
        return c.node("unary", (a["self"],), shape, function="clamp", **known)

    return handler


def _binary(function: str, *, turned: bool = False) -> Handler:
    def handler(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
        if a.get("rounding_mode") is not None:
            raise UnsupportedError(f"with rounding mode '{a['rounding_mode']}'; divide without")
        left, right, alpha = a["self"], a["other"], float(a.get("alpha", 1))
        left, right = (right, left) if turned else (left, right)
        if alpha != 1:
            right = c.node("unary", (right,), right.shape, function="scale", low=alpha) if isinstance(right, Symbol) else right * alpha
        if function == "div" and not isinstance(right, Symbol):
            inverse = 1.0 / (right.double() if hasattr(right, "double") else float(right))
            return c.node("binary", (left, inverse), shape, function="mul")
        return c.node("binary", (left, right), shape, function=function)

    return handler


def _reduce(function: str) -> Handler:
    def handler(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
        x = a["self"]
        rank = len(x.shape)
        dims = a.get("dim")
        dims = tuple(range(rank)) if dims in (None, []) else tuple(d % rank for d in (dims if isinstance(dims, (list, tuple)) else [dims]))
        order = tuple(i for i in range(rank) if i not in dims) + dims
        turned = x if order == tuple(range(rank)) else c.node("permute", (x,), [x.shape[i] for i in order], dims=order)
        kept = tuple(x.shape[i] for i in order[: rank - len(dims)])
        rows = turned if len(dims) == 1 else c.node("reshape", (turned,), (*kept, prod(x.shape[i] for i in dims)))
        done = c.node("reduce", (rows,), kept, function=function)
        return done if done.shape == shape else c.node("reshape", (done,), shape)

    return handler


def _pool(function: str) -> Handler:
    def handler(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
        def pair(name: str, default: Any) -> tuple[int, int]:
            value = a.get(name) or default
            return tuple(value) if len(value) == 2 else (value[0], value[0])

        kernel = pair("kernel_size", None)
        stride, padding, dilation = pair("stride", kernel), pair("padding", [0, 0]), pair("dilation", [1, 1])
        if (
            len(shape) != 4
            or dilation != (1, 1)
            or a.get("ceil_mode")
            or a.get("divisor_override")
            or (function == "mean" and padding != (0, 0))
        ):
            raise UnsupportedError("other than of [B, C, H, W] with whole, undilated windows (mean: unpadded)")
        return c.node("pool", (a["self"],), shape, function=function, kernel=kernel, stride=stride, padding=padding)

    return handler


def _adaptive(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    x = a["self"]
    out = a["output_size"]
    if len(x.shape) != 4 or any(n % o for n, o in zip(x.shape[-2:], out, strict=True)):
        raise UnsupportedError(f"from {tuple(x.shape[-2:])} to {tuple(out)}; the sides must divide")
    kernel = tuple(n // o for n, o in zip(x.shape[-2:], out, strict=True))
    return c.node("pool", (x,), shape, function="mean", kernel=kernel, stride=kernel, padding=(0, 0))


def _getitem(c: _Capture, a: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    return a["0"][a["1"]]


_HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"), _view),
    **dict.fromkeys(("contiguous", "clone", "alias", "detach", "dropout", "feature_dropout", "identity", "to", "_to_copy", "lift_fresh_copy"), _same),
    "permute": _permute, **dict.fromkeys(("transpose", "t", "numpy_T", "mT", "swapaxes", "swapdims"), _transpose),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expand), "slice": _slice, "select": _select, "chunk": _chunk, "split": _split,
    "split_with_sizes": _split, "unbind": _unbind, "getitem": _getitem, "cat": _cat, "concat": _cat, "stack": _stack,
    "linear": _linear, "addmm": _addmm, "mm": _matmul, "bmm": _matmul, "matmul": _matmul, "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("conv2d", "convolution"), grouped(_conv, _cut)), "conv1d": grouped(conv1d(_conv), _cut),
    "layer_norm": _layer_norm, "rms_norm": _rms_norm, "batch_norm": _batch_norm,
    "softmax": _softmax, "_softmax": _softmax,
    **{n: _unary(n) for n in ("relu", "silu", "sigmoid", "gelu", "tanh", "exp", "reciprocal", "rsqrt", "square", "neg", "abs")},
    "clamp": _clamp("min", "max"), "relu6": _clamp(0.0, 6.0), "hardtanh": _clamp("min_val", "max_val"),
    **COMPOSED,
    "add": _binary("add"), "sub": _binary("sub"), "rsub": _binary("sub", turned=True), "mul": _binary("mul"), "div": _binary("div"),
    "maximum": _binary("max"), "minimum": _binary("min"),
    "mean": _reduce("mean"), "sum": _reduce("sum"), "amax": _reduce("max"),
    "max_pool2d": _pool("max"), "avg_pool2d": _pool("mean"), "adaptive_avg_pool2d": _adaptive,
}  # fmt: skip

#: ATen operators that run, in the words of `torch.ops.aten`.
SUPPORTED = tuple(sorted(_HANDLERS))
