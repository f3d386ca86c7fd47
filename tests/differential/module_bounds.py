"""What an operation of a module should yield of the machine's own inputs, in binary64, and how far the machine may be from it.

Bounds are derived from formats, roundings and lengths (`fabless.number.bounds`). Vector work is followed step by step: `Real` holds a value with a bound
of its error, and every operation of docs/modules.md adds its own rounding (a running error analysis).
"""

from __future__ import annotations

import math

import numpy as np

from fabless.number.bounds import FUNCTION, LEAST, U, activation_error, product_error, sum_error, weight_error

VIEWS = frozenset({"input", "constant", "reshape", "permute", "expand", "slice", "cat"})


class Real:
    """Hold exact values and how far the machine's may be off."""

    def __init__(self, value, error=0.0):
        self.value = np.asarray(value, np.float64)
        self.error = np.broadcast_to(np.asarray(error, np.float64), self.value.shape)

    def _rounded(self, value, error):
        return Real(value, error + U * (np.abs(value) + error) + LEAST)

    def add(self, other):
        other = real(other)
        return self._rounded(self.value + other.value, self.error + other.error)

    def mul(self, other):
        other = real(other)
        error = np.abs(self.value) * other.error + np.abs(other.value) * self.error + self.error * other.error
        return self._rounded(self.value * other.value, error)

    def function(self, f, low, high):
        """Apply a monotone function whose bounds at value - error and value + error are `low` and `high`."""
        value = f(self.value)
        ends = [np.abs(f(end(self.value, self.error)) - value) for end in (low, high)]
        error = np.maximum(*ends)
        return Real(value, error + FUNCTION * (np.abs(value) + error) + LEAST)

    def exp2(self):
        # the argument is cut (floor) to 26 fraction bits
        return self.function(np.exp2, lambda v, e: v - e - 2.0**-26, lambda v, e: v + e)

    def rcp(self):
        return self.function(lambda v: 1 / v, _towards_zero, _away_from_zero)

    def rsqrt(self):
        return self.function(lambda v: v**-0.5, _towards_zero, _away_from_zero)

    def extreme(self, other, f):
        other = real(other)
        return Real(f(self.value, other.value), np.maximum(self.error, other.error))

    def row_sum(self):
        n = self.value.shape[-1]
        size = (np.abs(self.value) + self.error).sum(-1, keepdims=True)
        return Real(
            self.value.sum(-1, keepdims=True), self.error.sum(-1, keepdims=True) + sum_error(n) * size * (1 + sum_error(n)) + LEAST * n
        )

    def row_max(self):
        return Real(self.value.max(-1, keepdims=True), self.error.max(-1, keepdims=True))


def _towards_zero(v, e):
    assert (np.abs(v) > e).all(), "the argument may be zero: no bound"
    return np.sign(v) * (np.abs(v) - e)


def _away_from_zero(v, e):
    return np.sign(v) * (np.abs(v) + e)


def real(x):
    """Return x as a Real; a number is a constant of the program, rounded to binary32."""
    return x if isinstance(x, Real) else Real(x, np.abs(np.asarray(x, np.float64)) * U)


def known(module, name):
    """Return a stored tensor: exact, since it is binary32."""
    return Real(module.constants[name])


def product_bound(x, w, w_error):
    """Return the exact product of rows `[M, k]` and `[n, k]`, and its bound."""
    return x @ w.T, product_error(x, activation_error(x), w, w_error)


def biased(module, node, y, bound):
    if node.get("bias") is None:
        return Real(y, bound)
    return Real(y, bound).add(known(module, node["bias"]))


def linear(module, node, x):
    w = module.constants[node["weight"]].astype(np.float64)
    y, bound = product_bound(x[0].reshape(-1, w.shape[1]), w, weight_error(w))
    return biased(module, node, y.reshape(node.shape), bound.reshape(node.shape))


def conv2d(module, node, x):
    """The product of PyTorch's patches (`unfold`: channel, kh, kw) by rows; blocks of 32 run in the order of docs/modules.md."""
    import torch

    weight = module.constants[node["weight"]].astype(np.float64)
    n, channels, kh, kw = weight.shape
    batch, _, height, width = node.shape
    unfolded = torch.nn.functional.unfold(torch.from_numpy(x[0]), (kh, kw), padding=node["padding"], stride=node["stride"]).numpy()
    patches = unfolded.transpose(0, 2, 1).reshape(-1, channels, kh, kw)
    by_rows = kw % 8 == 0 and node["stride"][1] % 8 == 0 and x[0].shape[3] % 8 == 0 and node["padding"] == (0, 0)
    if not by_rows:
        pad = ((0, 0), (0, 0), (0, 0), (0, -channels % 8))
        patches, weight = (np.pad(t.transpose(0, 2, 3, 1), pad) for t in (patches, weight))
    flat = weight.reshape(n, -1)
    y, bound = product_bound(patches.reshape(len(patches), -1), flat, weight_error(flat))
    y, bound = (t.reshape(batch, height * width, n) for t in (y, bound))
    found = biased(module, node, y, bound)
    value, error = (t.transpose(0, 2, 1).reshape(node.shape) for t in (found.value, found.error))
    exact = torch.nn.functional.conv2d(
        torch.from_numpy(x[0]), torch.from_numpy(module.constants[node["weight"]].astype(np.float64)),
        None if node.get("bias") is None else torch.from_numpy(module.constants[node["bias"]].astype(np.float64)),
        stride=node["stride"], padding=node["padding"],
    ).numpy()  # fmt: skip
    assert np.allclose(value, exact, rtol=0, atol=1e-9)  # the patches are PyTorch's
    return Real(exact, error + np.abs(value - exact))


def matmul(module, node, x):
    y, bound = np.zeros(node.shape), np.zeros(node.shape)
    for at in np.ndindex(node.shape[:-2]):
        right = np.ascontiguousarray(x[1][at].T)
        y[at], bound[at] = product_bound(x[0][at], right, activation_error(right))
    return Real(y, bound)


def softmax(module, node, x):
    t = Real(x[0]).mul(node["scale"] * math.log2(math.e))
    hidden = x[0] <= -(2.0**99)
    if node["causal"]:
        hidden = hidden | ~np.tri(*x[0].shape[-2:], dtype=bool)
    seen = Real(np.where(hidden, -(2.0**60), t.value), np.where(hidden, 0, t.error))
    top = seen.row_max()
    p = seen.add(Real(-top.value, top.error)).exp2()
    p = Real(np.where(hidden, 0, p.value), np.where(hidden, 0, p.error))
    return p.mul(p.row_sum().rcp())


def layer_norm(module, node, x):
    n = x[0].shape[-1]
    mean = Real(x[0]).row_sum().mul(1 / n)
    return _normed(module, node, Real(x[0]).add(Real(-mean.value, mean.error)))


def rms_norm(module, node, x):
    return _normed(module, node, Real(x[0]))


def _normed(module, node, d):
    variance = d.mul(d).row_sum().mul(1 / d.value.shape[-1])
    y = d.mul(variance.add(node["epsilon"]).rsqrt())
    if node.get("weight") is not None:
        y = y.mul(known(module, node["weight"]))
    return y if node.get("bias") is None else y.add(known(module, node["bias"]))


def affine(module, node, x):
    side = [1] * x[0].ndim
    side[node["dim"]] = -1
    scale, shift = (Real(module.constants[node[n]].reshape(side)) for n in ("scale", "shift"))
    return Real(x[0]).mul(scale).add(shift)


def sigmoid(x, factor=1.0):
    return x.mul(-factor * math.log2(math.e)).exp2().add(1.0).rcp()


#: The tanh form of GELU is off by this from the erf form: the greatest difference on a grid, and what slopes below 1 can add between its points.
def _gelu_form():
    x = np.linspace(-8, 8, 400_001)
    erf = np.vectorize(math.erf)(x / math.sqrt(2))
    tanh = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return float(np.abs(x / 2 * (erf - tanh)).max()) + 4e-5 / 2


GELU_FORM = _gelu_form()


def gelu(x):
    c = 2 * math.sqrt(2 / math.pi)
    z = x.mul(x).mul(c * 0.044715).add(c).mul(x)
    y = x.mul(sigmoid(z))
    erf = x.value / 2 * (1 + np.vectorize(math.erf)(x.value / math.sqrt(2)))
    assert (np.abs(y.value - erf) <= GELU_FORM).all()
    return Real(erf, y.error + GELU_FORM)


def clamp(node, a):
    a = a if node.get("low") is None else a.extreme(node["low"], np.maximum)
    return a if node.get("high") is None else a.extreme(node["high"], np.minimum)


UNARY = {
    "relu": lambda n, a: a.extreme(0.0, np.maximum), "clamp": clamp, "abs": lambda n, a: Real(np.abs(a.value), a.error),
    "neg": lambda n, a: Real(-a.value, a.error), "scale": lambda n, a: a.mul(n["low"]), "square": lambda n, a: a.mul(a),
    "sigmoid": lambda n, a: sigmoid(a), "silu": lambda n, a: a.mul(sigmoid(a)), "tanh": lambda n, a: sigmoid(a, 2.0).mul(2.0).add(-1.0),
    "gelu": lambda n, a: gelu(a), "exp": lambda n, a: a.mul(math.log2(math.e)).exp2(), "reciprocal": lambda n, a: a.rcp(),
    "rsqrt": lambda n, a: a.rsqrt(),
}  # fmt: skip
BINARY = {
    "add": lambda a, b: a.add(b), "sub": lambda a, b: a.add(Real(-b.value)), "mul": lambda a, b: a.mul(b), "div": lambda a, b: a.mul(b.rcp()),
    "max": lambda a, b: a.extreme(b, np.maximum), "min": lambda a, b: a.extreme(b, np.minimum),
}  # fmt: skip


def unary(module, node, x):
    return UNARY[node["function"]](node, Real(x[0]))


def binary(module, node, x):
    return BINARY[node["function"]](*(Real(t) for t in np.broadcast_arrays(*x)))


def _reduced(function, a):
    if function == "max":
        return a.row_max()
    total = a.row_sum()
    return total if function == "sum" else total.mul(1 / a.value.shape[-1])


def reduce(module, node, x):
    found = _reduced(node["function"], Real(x[0]))
    return Real(found.value[..., 0], found.error[..., 0])


def pool(module, node, x):
    """The reduction of windows; exact values by PyTorch's own pool in binary64."""
    import torch

    given = torch.from_numpy(x[0])
    if node["function"] == "max":
        return Real(torch.nn.functional.max_pool2d(given, node["kernel"], node["stride"], node["padding"]).numpy())
    exact = torch.nn.functional.avg_pool2d(given, node["kernel"], node["stride"]).numpy()
    n = int(np.prod(node["kernel"]))
    size = torch.nn.functional.avg_pool2d(given.abs(), node["kernel"], node["stride"]).numpy()
    return Real(exact, size * (sum_error(n) + 3 * U) + LEAST)  # the sum, its product by a rounded 1 / n


KINDS = {
    "linear": linear, "conv2d": conv2d, "matmul": matmul, "softmax": softmax, "layer_norm": layer_norm, "rms_norm": rms_norm, "affine": affine,
    "unary": unary, "binary": binary, "reduce": reduce, "pool": pool,
}  # fmt: skip


def exact_and_bound(module, node, x):
    """Return (exact, bound) of one operation on the machine's own inputs."""
    found = KINDS[node.kind](module, node, [v.astype(np.float64) for v in x])
    return found.value, found.error
