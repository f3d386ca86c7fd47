"""What each ATen operator means to a chip: matrix products, attention, vector work, lookups, or nothing at all.

One table, `LOWERINGS`, from operator to the ops of the graph; `FREE` are those that only rename or place values. Nothing here imports torch: an
operator arrives as a `Call` with its arguments bound by name, so that the arithmetic below is shapes and integers only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from fabless.core.errors import UnsupportedError
from fabless.model.graph import Attention, Gather, Gemm, Op, Shard, Span, Vector
from fabless.model.lower_mixers import LAYER_NORM, RMS_NORM, SIGMOID, SOFTMAX
from fabless.model.pairs import causal

if TYPE_CHECKING:
    from fabless.model.step import Recipe
    from fabless.number.formats import NumberFormat


@dataclass(frozen=True, slots=True)
class Tensor:
    """Describe a value between operators.

    `root`: the tensor whose memory it is (itself, unless it is a view), of `root_values` values. `stored`: known before the first input arrives
    (a parameter, a buffer, or computed from those alone). `table`: rows are looked up in it, so it is kept in the embedding's format.
    `item_bytes`: of one value that is no floating-point number (ids, masks); 0 for one that is: those take the recipe's formats.
    """

    shape: tuple[int, ...]
    root: str
    root_values: int
    stored: bool = False
    table: bool = False
    item_bytes: int = 0

    @property
    def values(self) -> int:
        """Return the number of values."""
        return prod(self.shape)

    def n_bytes(self, recipe: Recipe) -> float:
        """Return the bytes as an activation."""
        return self.values * (self.item_bytes or recipe.residual.bytes_per_value)


@dataclass(frozen=True, slots=True)
class Call:
    """Hold one operator of an exported program: `name` from the module path, `arguments` by the names of its ATen schema."""

    name: str
    op: str
    output: Tensor
    recipe: Recipe
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors among the arguments, those inside lists too, in order."""
        found: list[Tensor] = []
        for value in self.arguments.values():
            found += [v for v in (value if isinstance(value, (list, tuple)) else (value,)) if isinstance(v, Tensor)]
        return tuple(found)

    def refuse(self, why: str) -> UnsupportedError:
        """Return the error that this form of a supported operator cannot be lowered."""
        return UnsupportedError(f"{self.name}: {self.op} {why}")


Lowering = Callable[[Call], Sequence[Op]]

# Vector-lane operations per element, counted from each formula as in lower_mixers: exp, log, rsqrt and reciprocal count as one.
TANH = 4  # double, exp, add one, reciprocal (the final subtraction rides on a multiply-add)
GELU = TANH + 4  # x, x^3, scale, add before it, product after: the tanh form that engines use, taken for the erf form too
POWER = 3  # log, product, exp


def weight_format(weight: Tensor, recipe: Recipe) -> NumberFormat:
    """Return the format of a stored matrix: the embedding's when rows are looked up in it too, else that of weights."""
    return recipe.embedding_weights if weight.table else recipe.weights


def matrix_operands(call: Call) -> tuple[Tensor, ...]:
    """Return the stored tensors that a call multiplies by or looks rows up in, biases excluded: those that take a weight's format."""
    names = _MATRIX_ARGUMENTS.get(call.op, ())
    found: list[Tensor] = []
    for name in names:
        value = call.arguments.get(name)
        found += [v for v in (value if isinstance(value, (list, tuple)) else (value,)) if isinstance(v, Tensor) and v.stored]
    return tuple(found)


_MATRIX_ARGUMENTS = {
    "linear": ("weight",), "addmm": ("mat1", "mat2"), "mm": ("self", "mat2"), "bmm": ("self", "mat2"), "baddbmm": ("batch1", "batch2"),
    "matmul": ("self", "other"), "einsum": ("tensors",), "embedding": ("weight",),
    "conv1d": ("weight",), "conv2d": ("weight",), "conv3d": ("weight",), "convolution": ("weight",),
}  # fmt: skip


# ---------------------------------------------------------------- matrix products


def _product(call: Call, a: Tensor, b: Tensor, *, m: int, n: int, k: int, batch: int = 1) -> list[Op]:
    """Return `[batch, m, k] x [batch, k, n]`; a stored first operand is the weight of the transposed product, one matrix for the whole batch is one."""
    if a.stored and not b.stored:
        a, b, m, n = b, a, n, m
    if b.stored and batch > 1 and min(b.values, b.root_values) == n * k:
        m, batch = m * batch, 1
    r = call.recipe
    if b.stored:
        formats = (r.activations, weight_format(b, r), r.residual)
        # Without knowing which products pair up, tensor parallelism divides k and adds the partial sums up: right for any module.
        return [Gemm(call.name, 1, float(m), n, k, float(batch), True, *formats, Shard.ROW if batch == 1 else Shard.REPLICATED)]
    return [Gemm(call.name, 1, float(m), n, k, float(batch), False, r.attention, r.attention, r.residual)]


def _bias(call: Call, bias: object) -> list[Op]:
    """Return the addition that rides on the product before it: lane operations, no traffic."""
    if not isinstance(bias, Tensor):
        return []
    return [Vector(f"{call.name}.bias", 1, float(call.output.values), 1, function="residual")]


def _linear(c: Call) -> list[Op]:
    x, w = c.arguments["input"], c.arguments["weight"]
    n, k = (w.shape[0], w.shape[1]) if len(w.shape) == 2 else (1, w.shape[0])
    return _product(c, x, w, m=x.values // k, n=n, k=k) + _bias(c, c.arguments["bias"])


def _addmm(c: Call) -> list[Op]:
    a, b = c.arguments["mat1"], c.arguments["mat2"]
    return _product(c, a, b, m=a.shape[0], n=b.shape[1], k=a.shape[1]) + _bias(c, c.arguments["self"])


def _mm(c: Call) -> list[Op]:
    a, b = c.arguments["self"], c.arguments["mat2"]
    return _product(c, a, b, m=a.shape[0], n=b.shape[1], k=a.shape[1])


def _bmm(c: Call) -> list[Op]:
    a, b = c.arguments["self"], c.arguments["mat2"]
    return _product(c, a, b, m=a.shape[1], n=b.shape[2], k=a.shape[2], batch=a.shape[0])


def _baddbmm(c: Call) -> list[Op]:
    a, b = c.arguments["batch1"], c.arguments["batch2"]
    return _product(c, a, b, m=a.shape[1], n=b.shape[2], k=a.shape[2], batch=a.shape[0]) + _bias(c, c.arguments["self"])


def _matmul(c: Call) -> list[Op]:
    a, b = c.arguments["self"], c.arguments["other"]
    k = a.shape[-1]
    m = a.shape[-2] if len(a.shape) > 1 else 1
    n = b.shape[-1] if len(b.shape) > 1 else 1
    batch = c.output.values // (m * n)
    if len(b.shape) <= 2 and not a.stored:  # every leading row of `a` meets the same matrix
        m, batch = m * batch, 1
    return _product(c, a, b, m=m, n=n, k=k, batch=batch)


def _einsum(c: Call) -> list[Op]:
    """Lower a contraction of two tensors: letters of both and the result are the batch, of both alone k, of one m or n."""
    tensors = c.arguments["tensors"]
    inputs, _, result = c.arguments["equation"].replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or not result or "." in inputs or any(len(set(t)) != len(t) for t in (*terms, result)):
        raise c.refuse(f"'{c.arguments['equation']}' is not a contraction of two tensors with named dimensions and a result; use matmul")
    (left, right), (a, b) = terms, tensors
    size = dict(zip(left, a.shape, strict=True)) | dict(zip(right, b.shape, strict=True))
    alone = [x for x in size if x not in result and not (x in left and x in right)]
    if alone:
        raise c.refuse(f"'{c.arguments['equation']}' sums '{alone[0]}' over one tensor alone; sum it before")

    def extent(chosen: Callable[[str], bool]) -> int:
        return prod(size[x] for x in size if chosen(x))

    return _product(
        c,
        a,
        b,
        m=extent(lambda x: x in left and x not in right),
        n=extent(lambda x: x in right and x not in left),
        k=extent(lambda x: x not in result),
        batch=extent(lambda x: x in left and x in right and x in result),
    )


def _convolution(c: Call) -> list[Op]:
    """Lower a convolution as im2col: every output position is a row of its patch, every group one matrix."""
    if c.arguments.get("transposed"):
        raise c.refuse("is transposed; upsample and convolve instead")
    x, w, groups = c.arguments["input"], c.arguments["weight"], c.arguments["groups"]
    n_out, k = w.shape[0], prod(w.shape[1:])
    rows = c.output.values // n_out
    return _product(c, x, w, m=rows, n=n_out // groups, k=k, batch=groups) + _bias(c, c.arguments["bias"])


# ---------------------------------------------------------------- attention and lookups


def _attention(c: Call) -> list[Op]:
    """Lower fused attention. A causal mask starts at the first key, as PyTorch defines; any other mask is data: all its pairs are computed."""
    q, k, v = c.arguments["query"], c.arguments["key"], c.arguments["value"]
    queries, keys = q.shape[-2], k.shape[-2]
    n_heads, n_kv_heads = (t.shape[-3] if len(t.shape) > 2 else 1 for t in (q, k))
    batch = q.values // (n_heads * queries * q.shape[-1])
    pairs = float(queries * keys)
    if c.arguments["is_causal"]:
        square = min(queries, keys)
        pairs = float(causal(square, 0) + (queries - square) * keys)
    span = Span(batch, queries, keys, pairs)
    r, d_qk, d_v = c.recipe, q.shape[-1], v.shape[-1]
    formats = (r.kv_cache, r.attention, r.residual)
    ops: list[Op] = [Attention(c.name, 1, n_heads, n_kv_heads, d_qk, d_v, (span,), d_qk, d_v, *formats, Shard.REPLICATED)]
    mask = c.arguments.get("attn_mask")
    if isinstance(mask, Tensor):
        ops.append(Vector(f"{c.name}.mask", 1, batch * n_heads * pairs, 1, mask.n_bytes(r), function="residual"))
    return ops


def _lookup(c: Call) -> list[Op]:
    table = c.arguments["weight"] if c.op == "embedding" else c.arguments["self"]
    width = table.shape[-1] if len(table.shape) > 1 else 1
    format = c.recipe.embedding_weights if c.op == "embedding" else c.recipe.residual
    return [Gather(c.name, 1, float(c.output.values // width), width * format.bytes_per_value)]


# ---------------------------------------------------------------- vector work


def _vector(c: Call, elements: int, per_element: float, function: str) -> list[Op]:
    """Return elementwise or reducing work that reads each of its tensors and writes its result."""
    r = c.recipe
    reads = sum(t.n_bytes(r) for t in c.tensors)
    return [Vector(c.name, 1, float(elements), float(per_element), reads, c.output.n_bytes(r), function=function)]


def _each(per_element: float, function: str = "activation") -> Lowering:
    """Lower work counted per element of the result."""
    return lambda c: _vector(c, c.output.values, per_element, function)


def _reduce(per_element: float, function: str = "norm") -> Lowering:
    """Lower work counted per element of the first tensor."""
    return lambda c: _vector(c, c.tensors[0].values, per_element, function)


def _power(c: Call) -> list[Op]:
    exponent = c.arguments.get("exponent")
    whole = isinstance(exponent, (int, float)) and float(exponent).is_integer() and 1 <= exponent <= 4
    squarings = {1: 1, 2: 1, 3: 2, 4: 2}
    return _vector(c, c.output.values, squarings[int(exponent)] if whole and exponent is not None else POWER, "activation")


def _pool(c: Call) -> list[Op]:
    sides = c.arguments["kernel_size"]
    rank = 1 if c.op.endswith("1d") else 2
    window = prod(sides) if len(sides) == rank else sides[0] ** rank
    return _vector(c, c.output.values * window, 1, "activation")


_TOGETHER: Lowering = _each(1, "residual")  # one operation that engines run inside its neighbour's kernel

LOWERINGS: Mapping[str, Lowering] = {
    "linear": _linear, "addmm": _addmm, "mm": _mm, "bmm": _bmm, "baddbmm": _baddbmm, "matmul": _matmul, "einsum": _einsum,
    "conv1d": _convolution, "conv2d": _convolution, "conv3d": _convolution, "convolution": _convolution,
    "scaled_dot_product_attention": _attention,
    "embedding": _lookup, "index_select": _lookup, "index": _lookup,
    "layer_norm": _reduce(LAYER_NORM), "group_norm": _reduce(LAYER_NORM), "rms_norm": _reduce(RMS_NORM),
    "batch_norm": _each(2, "norm"),  # statistics are stored: one product and one sum
    "softmax": _each(SOFTMAX, "softmax"), "_softmax": _each(SOFTMAX, "softmax"), "log_softmax": _each(SOFTMAX + 1, "softmax"),
    "gelu": _each(GELU), "silu": _each(SIGMOID + 1), "sigmoid": _each(SIGMOID), "tanh": _each(TANH), "softplus": _each(3),
    "relu": _each(1), "relu6": _each(2), "hardtanh": _each(2), "leaky_relu": _each(2), "elu": _each(4), "hardsigmoid": _each(4), "hardswish": _each(5),
    "add": _TOGETHER, "sub": _TOGETHER, "rsub": _TOGETHER, "mul": _TOGETHER, "div": _each(2, "residual"), "neg": _TOGETHER, "abs": _TOGETHER,
    "maximum": _TOGETHER, "minimum": _TOGETHER, "clamp": _each(2, "residual"), "where": _TOGETHER, "masked_fill": _TOGETHER,
    "eq": _TOGETHER, "ne": _TOGETHER, "lt": _TOGETHER, "le": _TOGETHER, "gt": _TOGETHER, "ge": _TOGETHER,
    "logical_and": _TOGETHER, "logical_not": _TOGETHER, "bitwise_and": _TOGETHER, "bitwise_not": _TOGETHER,
    "addcmul": _each(3, "residual"), "lerp": _each(3, "residual"),
    "exp": _each(1), "log": _each(1), "sqrt": _each(1), "rsqrt": _each(1), "reciprocal": _each(1), "cos": _each(1), "sin": _each(1),
    "pow": _power, "square": _each(1),
    "mean": _reduce(1), "sum": _reduce(1), "amax": _reduce(1), "amin": _reduce(1), "var": _reduce(4), "argmax": _reduce(1), "cumsum": _reduce(1),
    "max_pool1d": _pool, "max_pool2d": _pool, "avg_pool1d": _pool, "avg_pool2d": _pool,
    "adaptive_avg_pool1d": _reduce(1), "adaptive_avg_pool2d": _reduce(1),
    "constant_pad_nd": _TOGETHER, "pad": _TOGETHER, "repeat": _TOGETHER, "repeat_interleave": _TOGETHER, "roll": _TOGETHER, "flip": _TOGETHER,
    "upsample_nearest2d": _TOGETHER,
}  # fmt: skip

#: Operators that name the same values differently: the result lies in the memory of the first tensor.
VIEWS = frozenset({
    "view", "_unsafe_view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute",
    "t", "numpy_T", "mT", "swapaxes", "swapdims", "movedim", "moveaxis", "adjoint", "expand", "expand_as", "broadcast_to", "select",
    "slice", "narrow", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "getitem", "contiguous", "clone", "alias",
    "detach", "lift_fresh_copy", "dropout", "feature_dropout", "to", "_to_copy", "type_as", "float", "identity", "pixel_shuffle",
    "pixel_unshuffle",
})  # fmt: skip
#: Operators whose result is written in place by the producers of its parts.
JOINS = frozenset({"cat", "concat", "stack", "hstack", "vstack"})
#: Operators that take a shape from their input and no values.
SHAPES = frozenset({"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"})
FREE = VIEWS | JOINS | SHAPES
#: Operators that only state something about their input.
CLAIMS = frozenset({"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size"})
SUPPORTED = tuple(sorted(set(LOWERINGS) | FREE))
