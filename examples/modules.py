"""Modules that are no language model, run on the chip bit for bit: fabless run examples/modules.py:vision_transformer

Each function returns a module in eval mode and example inputs. Needs PyTorch: pip install 'fabless[torch]'.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Pair = tuple[nn.Module, tuple[Tensor, ...]]


def mlp() -> Pair:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 10)).eval(), (torch.randn(16, 64),)


def cnn() -> Pair:
    torch.manual_seed(2)
    layers = (
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    return nn.Sequential(*layers).eval(), (torch.randn(2, 1, 16, 16),)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, d))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, width, 8, stride=8), nn.Parameter(torch.randn(1, 1, width))
        self.position, self.block = nn.Parameter(torch.randn(1, 17, width)), Block(width, 2)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.block(x))[:, 0])


def vit_block() -> Pair:
    torch.manual_seed(3)
    return Block(64, 2).eval(), (torch.randn(1, 17, 64),)


def vision_transformer() -> Pair:
    torch.manual_seed(4)
    return VisionTransformer().eval(), (torch.randn(1, 3, 32, 32),)


if __name__ == "__main__":
    from fabless.compiler.modules.driver import compile_module
    from fabless.model.torch_capture import capture
    from fabless.program.tile import DEMO
    from fabless.sim.cycles import time
    from fabless.sim.machine import execute

    module, inputs = vit_block()
    captured = capture(module, inputs)
    compiled = compile_module(captured, DEMO)
    memory = compiled.image.copy()
    for name, value in zip(captured.inputs, inputs, strict=True):
        compiled.write(memory, name, value.numpy())
    execute(compiled.program, memory, fast=False)
    result, exact = compiled.read(memory, captured.outputs[0]), module(*inputs).detach().numpy()
    print(
        f"{len(compiled.program)} instructions, {time(compiled.program).cycles:,} cycles, at most {abs(result - exact).max():.4f} from PyTorch"
    )
