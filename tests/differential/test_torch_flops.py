"""Modules of PyTorch against PyTorch's own counter of floating-point operations, which hooks every operator while the module really runs."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is an optional extra: pip install 'fabless[torch]'")

from torch import nn  # noqa: E402  only where torch is
from torch.nn import functional as F  # noqa: E402, N812  the field's name for it
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from fabless.model.graph import Attention, Gemm  # noqa: E402
from fabless.model.torch_export import from_torch  # noqa: E402


def counted_flops(module, *inputs):
    # Fused kernels for CPUs (attention, whole encoder layers) are unknown to the counter; the plain ones are products of the same size.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            module(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def masked_macs(graph):
    """Multiply-accumulates that a causal mask saves: PyTorch's counter knows no mask."""
    return sum(
        op.count * op.n_heads * (op.d_qk + op.d_v) * sum(s.count * (s.queries * s.keys - s.pairs) for s in op.spans)
        for op in graph.ops
        if isinstance(op, Attention)
    )


class VitBlock(nn.Module):
    def __init__(self, width=48, heads=4):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2)
        y = self.before(x)
        x = x + self.mix(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.after(x))


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 7, stride=2, padding=3), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(24, 24, 5, padding=4, dilation=2, groups=24)
        self.same = nn.Conv2d(24, 8, (1, 3), padding="same")
        self.head = nn.Linear(8, 10)

    def forward(self, image):
        x = self.same(F.hardswish(self.depthwise(F.silu(self.grouped(self.stem(image))))))
        return F.log_softmax(self.head(F.adaptive_avg_pool2d(x, 1).flatten(1)), -1)


class LlamaBlock(nn.Module):
    def __init__(self, width=64, heads=8, kv_heads=2, d_ff=160):
        super().__init__()
        self.heads, self.kv_heads, self.d_head = heads, kv_heads, width // heads
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * kv_heads * self.d_head, bias=False)
        self.norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.gate_up, self.down = nn.Linear(width, 2 * d_ff, bias=False), nn.Linear(d_ff, width, bias=False)
        self.register_buffer("frequency", 10000.0 ** (-torch.arange(0, self.d_head, 2) / self.d_head))

    def turned(self, x):
        angle = torch.outer(torch.arange(x.shape[-2], device=x.device), torch.cat((self.frequency, self.frequency)))
        left, right = x.chunk(2, -1)
        return x * angle.cos() + torch.cat((-right, left), -1) * angle.sin()

    def forward(self, x):
        batch, tokens, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(batch, tokens, self.heads, self.d_head).transpose(1, 2)
        k, v = (t.view(batch, tokens, self.kv_heads, self.d_head).transpose(1, 2) for t in self.kv(y).chunk(2, -1))
        mixed = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True, enable_gqa=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(x.shape))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Products(nn.Module):
    """Every way to write a matrix product."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(5, 12)), nn.Parameter(torch.randn(12, 7))
        self.experts, self.bias = nn.Parameter(torch.randn(3, 12, 6)), nn.Parameter(torch.randn(7))

    def forward(self, a, b):
        flat = a.reshape(-1, 12)
        return (
            flat @ self.right,
            torch.mm(flat, self.right),
            torch.addmm(self.bias, flat, self.right),
            a @ self.right,
            self.left @ b,
            torch.bmm(a, b),
            torch.baddbmm(torch.matmul(a, b), a, b),
            a @ self.experts,
            torch.einsum("bij,bjk->bik", a, b),
            torch.einsum("bij,ejk->beik", a, self.experts),
            torch.matmul(a[:, None], b[None]),
        )


CASES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(24, 96), nn.ReLU(), nn.Linear(96, 96, bias=False), nn.Tanh(), nn.Linear(96, 5)), ((7, 24),)),
    "vit": (VitBlock, ((2, 3, 32, 32),)),
    "cnn": (Cnn, ((2, 3, 61, 47),)),
    "llama": (LlamaBlock, ((3, 17, 64),)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 8, 5, stride=2), nn.LeakyReLU(), nn.Conv1d(8, 8, 3, groups=8)), ((2, 4, 50),)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (1, 3, 2), stride=(1, 2, 1)), ((1, 2, 5, 9, 8),)),
    "one_row": (lambda: nn.Linear(9, 1), ((9,),)),
    "products": (Products, ((3, 4, 12), (3, 12, 5))),
    "encoder": (lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), ((2, 9, 32),)),
}


@pytest.mark.parametrize("case", CASES)
def test_matrix_work_equals_what_pytorch_counts(case):
    torch.manual_seed(0)
    make, shapes = CASES[case]
    module = make().eval()
    inputs = tuple(torch.randn(shape) for shape in shapes)
    graph = from_torch(module, inputs)
    assert graph.macs > 0
    assert 2 * (graph.macs + masked_macs(graph)) == counted_flops(module, *inputs)


@pytest.mark.parametrize("case", ["mlp", "vit", "conv1d", "llama", "encoder"])
def test_every_parameter_is_stored_once(case):
    make, shapes = CASES[case]
    module = make().eval()
    graph = from_torch(module, tuple(torch.randn(shape) for shape in shapes))
    # Cosines and sines of the 17 positions, written out for queries and again for keys, are computed before the first input.
    tables = 2 * 2 * 17 * 8 if case == "llama" else 0
    assert graph.weight_bytes == 2 * (sum(p.numel() for p in module.parameters()) + tables)


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (3, 8), (8, 3), (1, 5)])
def test_causal_pairs_are_those_of_pytorchs_own_mask(queries, keys):
    class Mixer(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    q, k, v = torch.zeros(1, 1, queries, 4), torch.zeros(1, 1, keys, 4), torch.eye(keys)[None, None]
    weights = Mixer()(q, k, v)[0, 0]  # of equal scores over one-hot values: nonzero exactly where a query sees a key
    (op,) = from_torch(Mixer().eval(), (q, k, v)).ops
    assert op.pairs == int((weights > 0).sum())


@pytest.mark.parametrize("tokens", [1, 33])
def test_a_llama_of_transformers_is_the_graph_that_its_config_lowers_to(tokens, tmp_path):
    transformers = pytest.importorskip("transformers", reason="an oracle of the extra 'oracles'")
    from fabless.model.load import load
    from fabless.model.lower import lower
    from fabless.model.step import Recipe, Step

    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=96,
        use_cache=False,
    )
    config.save_pretrained(tmp_path)
    module = transformers.LlamaForCausalLM(config).eval()
    ours = lower(load(tmp_path), Recipe(), Step(Step.prefill(2, tokens).groups, logits="all"))
    theirs = from_torch(module, (torch.zeros(2, tokens, dtype=torch.int64),))

    def stored_macs(graph):
        return sum(op.macs for op in graph.ops if isinstance(op, Gemm) and op.stored)

    assert stored_macs(theirs) == stored_macs(ours)
    assert theirs.n_layers == ours.n_layers
    # Cosines and sines, which `lower` computes in the rotary op, and the causal mask, which it knows, are tables here.
    assert theirs.weight_bytes == ours.weight_bytes + 2 * 2 * tokens * 8 + 2 * tokens**2
