"""What of PyTorch runs on the chip, and in which words the rest is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fabless.cli import run
from fabless.compiler.modules.driver import compile_module
from fabless.core.errors import InfeasibleError, InputError, UnsupportedError
from fabless.program.tile import TINY

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'fabless[torch]'")
from torch import nn  # noqa: E402  behind the skip

from fabless.fleet.module_run import call  # noqa: E402  behind the skip
from fabless.model.module import BINARY, KINDS, UNARY  # noqa: E402  behind the skip
from fabless.model.torch_capture import SUPPORTED, capture  # noqa: E402  behind the skip

EXAMPLES = Path(__file__).parents[2] / "examples/modules.py"


class Of(nn.Module):
    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *x):
        return self.function(self, *x)


def of(function, *shapes, **modules):
    return capture(Of(function, **modules).eval(), tuple(torch.randn(s) for s in shapes))


@pytest.mark.parametrize(
    ("function", "shape", "words"),
    [
        (lambda m, x: torch.cumsum(x, 0), (3, 4), "no operation of the chip for cumsum in the module itself; supported operators: _softmax"),
        (lambda m, x: m.inner(x), (1, 2, 3, 8, 8), "conv3d in inner"),
        (lambda m, x: nn.functional.conv2d(x, torch.ones(64, 1, 1, 1), groups=64), (1, 64, 3, 3), r"\(in 64 groups; use at most 32"),
        (lambda m, x: nn.functional.conv2d(x, torch.ones(1, 1, 2, 2), padding="same"), (1, 1, 3, 3), r"\(with padding 'same' of an even kernel; give numbers"),
        (lambda m, x: nn.functional.conv2d(x, torch.ones(1, 1, 2, 2), dilation=2), (1, 1, 5, 5), r"\(dilated or transposed; use a plain convolution"),
        (lambda m, x: nn.functional.conv1d(x, torch.ones(1, 2, 2)), (2, 5), r"conv1d in the module itself \(without a batch axis; add one"),
        (lambda m, x: nn.functional.leaky_relu(x, 1.5), (2, 2), r"leaky_relu in the module itself \(with slope 1.5; use one from 0 to 1"),
        (lambda m, x: nn.functional.celu(x, 2.0), (2, 2), "no operation of the chip for celu in the module itself"),
        (lambda m, x: torch.div(x, 3, rounding_mode="floor"), (2, 2), r"\(with rounding mode 'floor'; divide without"),
        (lambda m, x: nn.functional.linear(x, x), (3, 3), r"linear in the module itself \(the weight is computed from an input; give a parameter\)"),
        (lambda m, x: x**4, (2, 2), r"\(with exponent 4; multiply instead\)"),
        (lambda m, x: nn.functional.avg_pool2d(x, 2, padding=1), (1, 1, 4, 4), r"other than of \[B, C, H, W\] with whole, undilated windows"),
        (lambda m, x: nn.functional.adaptive_avg_pool2d(x, 3), (1, 1, 4, 4), r"from \(4, 4\) to \(3, 3\); the sides must divide"),
    ],
)  # fmt: skip
def test_what_has_no_operation_is_refused_with_its_place(function, shape, words):
    with pytest.raises(UnsupportedError, match=words):
        of(function, shape, inner=nn.Conv3d(2, 2, 1))


def test_inputs_and_weights_are_checked():
    net = nn.Linear(4, 2).eval()
    with pytest.raises(UnsupportedError, match=r"input 'input' holds torch.int64; modules take floating-point tensors"):
        capture(nn.Embedding(4, 2).eval(), (torch.tensor([1]),))
    module = capture(net, (torch.ones(3, 4),))
    compiled = compile_module(module, TINY)
    with pytest.raises(InputError, match=r"input 'input' has shape \[2, 4\], the module was captured for \[3, 4\]; capture it again"):
        call(compiled, np.ones((2, 4), np.float32))
    with pytest.raises(InputError, match="Linear: 2 inputs were given, it takes 1: input"):
        call(compiled, *[np.ones((3, 4), np.float32)] * 2)
    with pytest.raises(InputError, match="input 'input': 1 values are NaN or infinite; give finite numbers"):
        call(compiled, np.array([[np.nan, 0, 0, 0]] * 1 + [[0] * 4] * 2, np.float32))
    with torch.no_grad():
        net.weight[0, 1] = float("inf")
    with pytest.raises(InputError, match="Linear: 1 values of 'constant_0' are NaN or infinite; repair the weights"):
        capture(net, (torch.ones(3, 4),))
    with pytest.raises(InputError, match=r"is in training mode.*call its eval\(\) first"):
        capture(net.train(), (torch.ones(3, 4),))


def test_a_tile_that_is_too_small_is_named_with_the_operation():
    module = capture(nn.Sequential(nn.Linear(600, 4)).eval(), (torch.ones(1, 600),))
    with pytest.raises(
        InfeasibleError, match=r"0.linear: rows of 600 elements do not fit the tile \(512 vector elements, 512 activation words\)"
    ):
        compile_module(module, replace(TINY, vector_elements=512))
    with pytest.raises(InfeasibleError, match=r"memory is full at .* of 4.1 kB; use a tile with more memory, or smaller inputs"):
        compile_module(module, replace(TINY, memory_bytes=4096))
    with pytest.raises(InfeasibleError, match=r"Sequential: \d+ instructions, program memory holds 32"):
        compile_module(module, replace(TINY, instruction_words=32))


def test_constants_are_held_once_and_what_depends_on_parameters_alone_is_computed_before():
    module = of(lambda m, x: x + m.w.weight.exp().sum() + m.w.weight.exp().sum(), (2, 2), w=nn.Linear(2, 2))
    assert [n.kind for n in module.nodes] == ["input", "constant", "binary", "binary"]
    assert len(module.constants) == 1


def normed(layer, norm):
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.normal_()
    return layer.eval(), norm.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "norm", "shape"), [(nn.Conv2d, nn.BatchNorm2d, (1, 2, 3, 3)), (nn.Linear, nn.BatchNorm1d, (4, 2))], ids=["conv", "linear"]
)
def test_a_batch_norm_is_folded_into_the_layer_that_it_alone_reads(layer, norm, shape, bias):
    sizes = (2, 3, 1) if layer is nn.Conv2d else (2, 3)
    layer, norm = normed(layer(*sizes, bias=bias), norm(3))
    module = capture(nn.Sequential(layer, norm).eval(), (torch.randn(shape),))
    (node,) = (n for n in module.nodes if n.kind != "input")
    scale = (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).detach()
    before = layer.bias.double() if bias else torch.zeros(3, dtype=torch.float64)
    shift = norm.bias.double() + (before - norm.running_mean.double()) * scale
    weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    assert set(module.constants) == {node["weight"], node["bias"]}  # what was folded is not kept
    assert np.array_equal(module.constants[node["weight"]], weight.detach().float().numpy())
    assert np.allclose(module.constants[node["bias"]], shift.detach().numpy(), rtol=2.0**-23, atol=0)  # rounded once to binary32


def test_a_batch_norm_whose_layer_is_read_twice_stays():
    layer, norm = normed(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))

    def twice(m, x):
        y = m.layer(x)
        return m.norm(y) + y

    module = of(twice, (1, 2, 3, 3), layer=layer, norm=norm)
    assert [n.kind for n in module.nodes] == ["input", "conv2d", "affine", "binary"]


def test_every_kind_has_a_meaning_everywhere():
    from fabless.compiler.modules import driver, kernels
    from fabless.model import module_reference

    computed = set(KINDS) - {"input", "constant"}
    assert set(driver._KINDS) == set(KINDS)
    assert set(module_reference._KINDS) == computed
    assert set(kernels.UNARY) == set(module_reference._FUNCTIONS) == set(UNARY)
    assert len(BINARY) == 6
    assert "linear" in SUPPORTED


def test_the_command_runs_a_module(capsys):
    assert run(["run", f"{EXAMPLES}:vit_block", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["module"] == "vit_block"
    assert said["fidelity"] == "cycle"
    assert sum(o["cycles"] for o in said["operations"]) == said["cycles"]
    assert np.array(said["outputs"]["binary_1"]).shape == (1, 17, 64)
    assert 0 < said["errors"][0]["greatest_error"] < 0.02 * said["errors"][0]["greatest"]
    assert run(["run", f"{EXAMPLES}:mlp"]) == 0
    assert "bits exact" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "source", "words"),
    [
        (None, "missing.py:net", "missing.py: no such file; give FILE.py:NAME"),
        ("def net(): return 1", "net.py", "net.py: no function is named; give"),
        ("def net(): return 1", "net.py:nets", "no function 'nets'; did you mean 'net'?; give"),
        ("def net(): return 1", "net.py:net", "net.py:net: returns int; return (module, example inputs as a tuple of tensors)"),
        ("import nothing_of_that_name", "net.py:net", "net.py: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ],
)  # fmt: skip
def test_a_file_that_gives_no_module_is_refused(text, source, words, tmp_path, capsys):
    if text is not None:
        (tmp_path / "net.py").write_text(text, "utf-8")
    assert run(["run", str(tmp_path / source)]) == 2
    assert words in capsys.readouterr().err
