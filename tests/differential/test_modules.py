"""PyTorch modules on the machine: bit for bit what the reference says on any tile, each operation within a derived bound of float, and the same in RTL."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import module_bounds
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from module_bounds import VIEWS, exact_and_bound

from fabless.compiler.modules.driver import compile_module
from fabless.fleet.module_run import call, cycles_by_operation
from fabless.model import module_reference as reference
from fabless.model.module import BINARY, KINDS, UNARY
from fabless.number.bounds import FUNCTION, U
from fabless.program.tile import DEMO, DIE, TINY, Tile
from fabless.program.verify import verify
from fabless.sim.cycles import time
from fabless.sim.machine import execute

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'fabless[torch]'")
from torch import nn  # noqa: E402  behind the skip

from fabless.model.torch_capture import capture  # noqa: E402  behind the skip

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("examples_modules", ROOT / "examples/modules.py")
examples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(examples)

ODD = Tile(8, 4, 96, 200, 640, 6144, 4096, 8192, 1 << 26, 32)
WIDE = Tile(64, 32, 256, 2048, 512, 32768, 4096, 8192, 1 << 26, 128)
TILES = {"tiny": replace(TINY, instruction_words=8192), "odd": ODD, "demo": DEMO, "wide": WIDE, "die": DIE}


class Everything(nn.Module):
    """One of each operation that the examples leave out."""

    def __init__(self):
        super().__init__()
        self.norm, self.down = nn.RMSNorm(40), nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), bias=False)
        self.row, self.batch = nn.Parameter(torch.randn(40)), nn.BatchNorm2d(2)
        self.batch.running_mean.uniform_(-0.5, 0.5)
        self.batch.running_var.uniform_(0.5, 2.0)

    def forward(self, x):  # [2, 6, 40]
        y = self.norm(x).tanh() * self.row - torch.sigmoid(x)
        y = torch.maximum(y, -x).clamp(-0.75, 2.0) + (x.abs() + 1).reciprocal() + torch.rsqrt(x * x + 0.5)
        a, b, c = y.chunk(3, 1)
        mixed = nn.functional.scaled_dot_product_attention(y, torch.cat([a, b, c.exp()], 1), y, is_causal=True)
        mask = torch.tensor([[True] * 6, *[[True] * i + [False] * (6 - i) for i in range(1, 6)]])
        mixed = mixed + nn.functional.scaled_dot_product_attention(y, x, x, attn_mask=mask)
        images = self.batch(mixed.view(2, 2, 3, 40))
        pooled = nn.functional.max_pool2d(images, 3, stride=2, padding=1)
        seen = nn.functional.avg_pool2d(self.down(images), (1, 2))
        return pooled.flatten(1), (seen / (mixed.mean(-1)[:, :3, None, None] + 5)).softmax(1), mixed.amax((1, 2)), x.sum(1).square().neg()


def everything():
    torch.manual_seed(5)
    return Everything().eval(), (torch.randn(2, 6, 40),)


class Forms(nn.Module):
    """Forms that are several operations each."""

    def __init__(self):
        super().__init__()
        self.line, self.deep = nn.Conv1d(4, 6, 3, padding="same", groups=2), nn.Conv2d(6, 6, 3, padding=1, stride=(2, 1), groups=6)
        self.groups, self.both = nn.GroupNorm(3, 6), nn.LayerNorm((6, 16))
        nn.init.normal_(self.groups.weight)

    def forward(self, x):  # [2, 4, 16]
        y = nn.functional.hardswish(self.groups(self.line(x))) + nn.functional.leaky_relu(self.both(self.line(x)), 0.2)
        y = torch.add(nn.functional.elu(y, 0.5), torch.sqrt(y.abs()), alpha=0.5) + torch.tanh(y) ** 3
        z = self.deep(y.view(2, 6, 2, 8)).view(2, 6, 8)
        return nn.functional.scaled_dot_product_attention(
            z.view(2, 3, 2, 8), z[:, :1].view(2, 1, 1, 8), z[:, 1:2].view(2, 1, 1, 8), enable_gqa=True
        )


def forms():
    torch.manual_seed(8)
    return Forms().eval(), (torch.randn(2, 4, 16),)


def encoder_layer():
    torch.manual_seed(6)
    layer = nn.TransformerEncoderLayer(48, 3, 80, batch_first=True, norm_first=True, activation="relu")
    return layer.eval(), (torch.randn(2, 5, 48),)


MODULES = {
    "mlp": examples.mlp, "cnn": examples.cnn, "vit_block": examples.vit_block, "vision_transformer": examples.vision_transformer,
    "everything": everything, "forms": forms, "encoder_layer": encoder_layer,
}  # fmt: skip


def captured(name):
    module, inputs = MODULES[name]()
    return module, capture(module, inputs, name), [t.numpy() for t in inputs]


def differences(module, tensors, expected):
    return [n.name for n in module.nodes if not np.array_equal(tensors[n.name].view(np.uint32), expected[n.name].view(np.uint32))]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", MODULES)
def test_every_tensor_has_the_reference_s_bits_on_every_tile(name, tile):
    _, module, inputs = captured(name)
    compiled = compile_module(module, TILES[tile])
    verify(compiled.program)
    assert differences(module, call(compiled, *inputs, fast=False), reference.run(module, *inputs)) == []


def test_the_compiled_machine_leaves_the_same_bits_and_a_second_call_too():
    _, module, inputs = captured("vision_transformer")
    compiled = compile_module(module, DEMO)
    memory = compiled.image.copy()
    for value in (inputs[0] * 3 - 1, inputs[0]):  # what the first call left in memory changes nothing
        compiled.write(memory, module.inputs[0], value)
        execute(compiled.program, memory, fast=True)
    expected = reference.run(module, *inputs)
    assert differences(module, {n.name: compiled.read(memory, n.name) for n in module.nodes}, expected) == []


def test_a_wrong_bit_is_noticed():
    _, module, inputs = captured("mlp")
    compiled = compile_module(module, DEMO)
    weights = compiled.program.buffer("0.linear.weight")
    compiled.image[weights.address + 5] ^= 1
    assert differences(module, call(compiled, *inputs, fast=False), reference.run(module, *inputs)) != []


# ---------------------------------------------------------------- against float, within a derived bound


@pytest.mark.parametrize("name", MODULES)
def test_every_operation_stays_within_its_derived_bound_of_float(name):
    _, module, inputs = captured(name)
    tensors = call(compile_module(module, DEMO), *inputs, fast=False)
    for node in module.nodes:
        if node.kind in VIEWS:
            continue
        exact, bound = exact_and_bound(module, node, [tensors[i] for i in node.inputs])
        over = np.abs(tensors[node.name] - exact) - bound
        assert (over <= 0).all(), (node.name, node.kind, float(over.max()))


@pytest.mark.parametrize("name", MODULES)
def test_the_bounds_notice_values_that_stand_one_place_off(name):
    _, module, inputs = captured(name)
    tensors = call(compile_module(module, DEMO), *inputs, fast=False)
    for node in module.nodes:
        if node.kind in VIEWS or node.shape[-1] == 1:
            continue
        exact, bound = exact_and_bound(module, node, [tensors[i] for i in node.inputs])
        assert (np.abs(np.roll(tensors[node.name], 1, -1) - exact) > bound).any(), node.name


def test_every_kind_of_operation_has_a_bound_and_is_in_some_module():
    seen = {(n.kind, n.get("function")) for name in MODULES for n in captured(name)[1].nodes}
    assert {kind for kind, _ in seen} == set(KINDS)
    assert {f for kind, f in seen if kind == "unary"} == set(UNARY)
    assert {f for kind, f in seen if kind == "binary"} >= set(BINARY) - {"min"}
    assert set(module_bounds.KINDS) | VIEWS == set(KINDS)


def test_the_bound_notices_a_weight_scale_that_is_one_block_off():
    _, module, inputs = captured("mlp")
    compiled = compile_module(module, DEMO)
    weights = compiled.program.buffer("2.linear.weight")
    raw = compiled.image[weights.address : weights.end]
    half = raw.view(np.float16)
    scales = half[-(256 * 8) :].copy()
    half[-(256 * 8) :] = np.roll(scales, 256) * np.float16(1.25)
    tensors = call(compiled, *inputs, fast=False)
    node = module.by_name["2.linear"]
    exact, bound = exact_and_bound(module, node, [tensors[i] for i in node.inputs])
    assert (np.abs(tensors[node.name] - exact) > bound).any()


@pytest.mark.parametrize("name", [n for n in MODULES if n != "everything"])
def test_the_reference_is_the_module_up_to_quantisation(name):
    module, graph, inputs = captured(name)
    with torch.no_grad():
        exact = module(*(torch.from_numpy(x) for x in inputs)).numpy()
    ours = reference.run(graph, *inputs)[graph.outputs[0]]
    assert np.abs(ours - exact).max() < 0.01 * np.abs(exact).max()  # not a bound: what this asks is wiring, bits are held above
    with torch.no_grad():
        other = module(*(torch.from_numpy(x[..., ::-1].copy()) for x in inputs)).numpy()
    assert np.abs(other - exact).max() > 0.03 * np.abs(exact).max()  # another input is seen


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        (lambda x: nn.functional.leaky_relu(x, 0.1), (3, 5)), (nn.functional.hardswish, (3, 5)), (nn.functional.hardsigmoid, (3, 5)),
        (lambda x: nn.functional.elu(x, 1.5), (3, 5)), (lambda x: torch.sqrt(x.abs()), (3, 5)), (lambda x: x**3, (3, 5)), (lambda x: x**0.5, (3, 5)),
        (lambda x: torch.add(x, x, alpha=-0.75), (3, 5)), (lambda x: torch.rsub(x, 2.0, alpha=0.5), (3, 5)),
        (lambda x: nn.functional.group_norm(x, 2, torch.arange(1.0, 5), torch.arange(4.0)), (2, 4, 5)),
        (lambda x: nn.functional.layer_norm(x, (4, 5), torch.arange(20.0).view(4, 5)), (2, 4, 5)),
    ],
)  # fmt: skip
def test_each_form_is_pytorch_s_up_to_rounding(form, shape):
    class Form(nn.Module):
        def forward(self, x):
            return form(x)

    x = torch.rand(shape, generator=torch.Generator().manual_seed(9)) * 6 - 3  # -3 to 3
    x = x.abs() if form(x).isnan().any() else x
    module = capture(Form().eval(), (x,))
    ours, exact = reference.run(module, x.numpy())[module.outputs[0]], form(x).numpy()
    # at most 12 operations of values up to 60 (norms: weights up to 19 times values up to 3), each rounded or a table's, seen through products by up to 3;
    # PyTorch rounds as often
    assert np.abs(ours - exact).max() <= 2 * 12 * (U + FUNCTION) * 60 * 3
    assert np.abs(ours).max() > 0.5


def test_each_of_everything_s_results_is_the_module_s():
    module, graph, inputs = captured("everything")
    with torch.no_grad():
        exact = [t.numpy() for t in module(*(torch.from_numpy(x) for x in inputs))]
    ours = reference.run(graph, *inputs)
    for name, e in zip(graph.outputs, exact, strict=True):
        assert np.abs(ours[name] - e).max() < 0.05 * np.abs(e).max(), name


# ---------------------------------------------------------------- any shape


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 90), st.integers(1, 40), st.integers(1, 9), st.booleans(), st.sampled_from(sorted(TILES)))
def test_any_mlp(k, hidden, n, rows, bias, tile):
    torch.manual_seed(k + 100 * hidden)
    net = nn.Sequential(nn.Linear(k, hidden, bias=bias), nn.GELU(), nn.Linear(hidden, n, bias=not bias)).eval()
    x = torch.randn(rows, k)
    module = capture(net, (x,))
    compiled = compile_module(module, TILES[tile])
    verify(compiled.program)
    assert differences(module, call(compiled, x.numpy(), fast=False), reference.run(module, x.numpy())) == []


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_convolution(data):
    draw = data.draw
    channels, n, batch = draw(st.integers(1, 10)), draw(st.integers(1, 12)), draw(st.integers(1, 2))
    kernel = draw(st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 8])))
    stride, padding = draw(st.tuples(st.integers(1, 2), st.sampled_from([1, 2, 8]))), draw(st.tuples(st.integers(0, 1), st.integers(0, 1)))
    sides = draw(st.tuples(st.integers(kernel[0], 8), st.sampled_from([kernel[1], 8, 11, 16])))
    sides = (sides[0], max(sides[1], kernel[1]))
    net = nn.Conv2d(channels, n, kernel, stride=stride, padding=padding, bias=draw(st.booleans())).eval()
    x = torch.randn(batch, channels, *sides)
    module = capture(net, (x,))
    compiled = compile_module(module, TILES[draw(st.sampled_from(sorted(TILES)))])
    verify(compiled.program)
    assert differences(module, call(compiled, x.numpy(), fast=False), reference.run(module, x.numpy())) == []


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([3, 8, 16, 40]), st.tuples(st.integers(1, 3), st.integers(1, 4)), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.booleans(),
    st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]), st.sampled_from(sorted(TILES)),
)  # fmt: skip
def test_any_pool_behind_a_convolution_and_before_one(channels, kernel, stride, padded, pool, tile):
    padding = tuple(k // 2 for k in kernel) if padded and pool is nn.MaxPool2d else 0
    net = nn.Sequential(nn.Conv2d(2, channels, 1), pool(kernel, stride, padding), nn.Conv2d(channels, 4, 1)).eval()
    x = torch.randn(2, 2, 5, 7)
    module = capture(net, (x,))
    compiled = compile_module(module, TILES[tile])
    verify(compiled.program)
    assert differences(module, call(compiled, x.numpy(), fast=False), reference.run(module, x.numpy())) == []


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 40), st.integers(1, 45), st.sampled_from(sorted(TILES)))
def test_any_product_of_two_computed_tensors(batch, m, k, n, tile):
    class Product(nn.Module):
        def forward(self, a, b):
            return a @ b

    a, b = torch.randn(batch, m, k), torch.randn(batch, k, n)
    module = capture(Product().eval(), (a, b))
    compiled = compile_module(module, TILES[tile])
    verify(compiled.program)
    assert differences(module, call(compiled, a.numpy(), b.numpy(), fast=False), reference.run(module, a.numpy(), b.numpy())) == []


# ---------------------------------------------------------------- cycles and RTL


def test_cycles_of_operations_add_up_to_the_call_s():
    _, module, _ = captured("vision_transformer")
    compiled = compile_module(module, DEMO)
    total, operations = cycles_by_operation(compiled)
    assert total == time(compiled.program).cycles
    assert sum(o.cycles for o in operations) == total
    assert all(o.cycles > 0 for o in operations)


def test_a_vision_transformer_s_block_runs_in_rtl():
    pytest.importorskip("amaranth", reason="Amaranth is not installed: pip install 'fabless[rtl]'")
    from fabless.rtl.bench.build import tools
    from fabless.rtl.bench.run import run_rtl

    if not all(t.found for t in tools()):
        pytest.skip("a tool of the RTL flow is missing: fabless doctor")
    torch.manual_seed(7)
    net, inputs = examples.Block(32, 1).eval(), (torch.randn(1, 5, 32),)
    module = capture(net, inputs)
    compiled = compile_module(module, TINY)
    memory = compiled.image.copy()
    compiled.write(memory, module.inputs[0], inputs[0].numpy())
    left, cycles = run_rtl(compiled.program, memory, np.zeros(TINY.parameter_words, np.int32))
    tensors = {n.name: compiled.read(left.memory, n.name) for n in module.nodes}
    assert differences(module, tensors, reference.run(module, inputs[0].numpy())) == []
    assert cycles == time(compiled.program).cycles
