"""How fast do chips run a PyTorch module that is no language model? A vision transformer (ViT-B/16), 32 images at a time.

Needs PyTorch: pip install 'fabless[torch]'. On the meta device a module has shapes and no weights: nothing is downloaded.
"""

import torch
from torch import Tensor, nn

from fabless import Recipe, estimate, load_chip
from fabless.model.torch_export import from_torch


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.patches, self.position = nn.Conv2d(3, width, 16, stride=16), nn.Parameter(torch.zeros(196, width))
        block = nn.TransformerEncoderLayer(width, 12, 4 * width, activation="gelu", batch_first=True, norm_first=True)
        self.blocks, self.head = nn.TransformerEncoder(block, 12, enable_nested_tensor=False), nn.Linear(width, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(images).flatten(2).mT + self.position).mean(1))


with torch.device("meta"):
    graph = from_torch(VisionTransformer().eval(), (torch.zeros(32, 3, 224, 224),), Recipe.named("bf16"))
print(f"{graph.flops / 32e9:.1f} GFLOP an image, {graph.weight_bytes / 1e6:.0f} MB of weights")
for trace, chip in ((estimate(graph, chip), chip) for chip in map(load_chip, ("l4", "h100", "mi300x", "tpu v6e"))):
    longest = max(trace.events, key=lambda e: e.cycles)
    print(f"{trace.tokens_per_s:9,.0f} images/s on {chip.name}; longest: {longest.name}, bound by {longest.bound}")
