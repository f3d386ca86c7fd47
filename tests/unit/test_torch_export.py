"""What a PyTorch module becomes: names, counts, formats, memory, and how it is refused."""

import sys

import pytest

from fabless.chip.catalogue import load_chip
from fabless.core.errors import FablessError, InputError, UnsupportedError
from fabless.mapping.plan import Plan
from fabless.model.graph import Attention, Gather, Gemm, Vector
from fabless.model.step import Recipe
from fabless.model.torch_export import from_torch
from fabless.model.torch_ops import FREE, LOWERINGS, SUPPORTED
from fabless.number.formats import BF16, FP32
from fabless.sim.roofline import estimate


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(FablessError, match=r"pip install 'fabless\[torch\]'"):
        from_torch(object(), ())


def test_an_operator_is_either_free_or_lowered():
    assert not FREE & set(LOWERINGS)
    assert set(SUPPORTED) == FREE | set(LOWERINGS)


torch = pytest.importorskip("torch", reason="PyTorch is an optional extra: pip install 'fabless[torch]'")
nn = torch.nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(3)])
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.table(ids)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def tied():
    return from_torch(Tied().eval(), (torch.zeros(2, 5, dtype=torch.int64),), Recipe.named("int4/bf16"), "tied")


def test_equal_ops_of_numbered_siblings_are_one_with_a_count(tied):
    assert [(op.name, op.count) for op in tied.ops] == [
        ("table", 1),
        ("blocks.0-2.0", 3), ("blocks.0-2.0.bias", 3), ("blocks.0-2.1", 3), ("blocks.0-2.2", 3), ("blocks.0-2.2.bias", 3),
        ("add", 1), ("add_1", 1), ("add_2", 1),
        ("head", 1),
    ]  # fmt: skip
    assert tied.n_layers == 3
    assert tied.model_name == "tied"


def test_ops_of_a_module_that_does_several_things_say_which():
    class Gate(nn.Module):
        def forward(self, x):
            return torch.sigmoid(x + 1) * x + x

    graph = from_torch(nn.Sequential(Gate()).eval(), (torch.zeros(4),))
    assert [op.name for op in graph.ops] == ["0.add", "0.sigmoid", "0.mul", "0.add_1"]


def test_an_embedding_is_a_lookup_and_a_tied_matrix_keeps_its_format(tied):
    table, head = tied.ops[0], tied.ops[-1]
    assert table == Gather("table", 1, 10.0, 32.0)
    assert isinstance(head, Gemm)
    assert (head.m, head.n, head.k, head.weights) == (10, 50, 16, BF16)
    matrices, biases = 3 * 2 * 16 * 24, 3 * (16 + 24)
    assert tied.weight_bytes == matrices / 2 + biases * 2 + 50 * 16 * 2


def test_ids_give_the_step_its_tokens(tied):
    assert (tied.step.n_sequences, tied.step.new_tokens) == (2, 10)
    image = from_torch(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(6, 3, 8, 8),))
    assert (image.step.n_sequences, image.step.new_tokens) == (6, 6)


def test_shapes_alone_suffice():
    with torch.device("meta"):
        shapes_only = from_torch(Tied().eval(), (torch.zeros(2, 5, dtype=torch.int64),), Recipe.named("int4/bf16"), "tied")
    assert shapes_only == from_torch(Tied().eval(), (torch.zeros(2, 5, dtype=torch.int64),), Recipe.named("int4/bf16"), "tied")


def test_a_module_called_twice_is_streamed_twice_and_stored_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(8, 8, bias=False)

        def forward(self, x):
            return self.mix(self.mix(x))

    graph = from_torch(Twice().eval(), (torch.zeros(4, 8),))
    (op,) = graph.ops
    assert (op.name, op.count) == ("mix", 2)
    assert op.weight_bytes == 2 * graph.weight_bytes == 2 * 8 * 8 * 2


def test_what_depends_on_parameters_alone_is_computed_beforehand():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.direction, self.length = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6, 1))

        def forward(self, x):
            return x @ (self.length * self.direction / torch.linalg.vector_norm(self.direction, dim=1, keepdim=True)).T

    graph = from_torch(Normalised().eval(), (torch.zeros(4, 8),))
    assert graph.ops == (Gemm("matmul", 1, 4.0, 6, 8, shard=graph.ops[0].shard),)
    assert graph.weight_bytes == 6 * 8 * 2


def test_activations_live_from_their_op_to_their_last_reader():
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    graph = from_torch(module, (torch.zeros(4, 8),), Recipe.named("fp32"))
    assert graph.activation_bytes == 4 * (4 * 16 + 4 * 16)  # into and out of the ReLU; the input is gone by then


def test_vector_work_reads_its_tensors_and_writes_its_result():
    class Add(nn.Module):
        def forward(self, x, row):
            return torch.softmax(x + row, -1)

    add, softmax = from_torch(Add().eval(), (torch.zeros(4, 8), torch.zeros(8))).ops
    assert add == Vector("add", 1, 32.0, 1.0, (32 + 8) * 2.0, 64.0, function="residual")
    assert softmax == Vector("softmax", 1, 32.0, 4.0, 64.0, 64.0, function="softmax")


def test_explicit_attention_and_fused_attention_multiply_the_same():
    class Explicit(nn.Module):
        def forward(self, q, k, v):
            return torch.softmax(q @ k.transpose(-1, -2) / 4, -1) @ v

    class Fused(nn.Module):
        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v)

    qkv = tuple(torch.zeros(2, 3, 5, 16) for _ in range(3))
    explicit, fused = (from_torch(m().eval(), qkv) for m in (Explicit, Fused))
    assert explicit.macs == fused.macs == 2 * 3 * 5 * 5 * 32
    assert [type(op) for op in fused.ops] == [Attention]
    assert not any(op.stored for op in explicit.ops if isinstance(op, Gemm))


def test_a_matrix_meets_a_vector_and_a_weight_on_the_left_is_still_the_weight():
    class Left(nn.Module):
        def __init__(self):
            super().__init__()
            self.row, self.mixing = nn.Parameter(torch.zeros(12)), nn.Parameter(torch.zeros(5, 4))

        def forward(self, x):
            return x @ self.row, self.mixing @ x

    row, left = from_torch(Left().eval(), (torch.zeros(3, 4, 12),)).ops
    assert (row.m, row.n, row.k, row.batch, row.stored) == (12, 1, 12, 1, True)
    assert (left.m, left.n, left.k, left.batch, left.stored) == (36, 5, 4, 1, True)


def test_parameters_that_nothing_reads_are_not_kept():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(8, 4, bias=False), nn.Linear(8, 4)

        def forward(self, x):
            return self.used(x)

    assert from_torch(Spare().eval(), (torch.zeros(2, 8),)).weight_bytes == 8 * 4 * 2


def test_formats_follow_the_recipe():
    graph = from_torch(nn.Linear(8, 4).eval(), (torch.zeros(2, 8),), Recipe.named("fp32"))
    assert (graph.ops[0].activations, graph.ops[0].weights, graph.ops[0].outputs) == (FP32, FP32, FP32)


@pytest.mark.parametrize("chip", ["h100", "tpu v5e", "groq_lpu_v1"])
def test_it_is_estimated_on_any_chip_never_above_its_peak(chip):
    chip = load_chip(chip)
    graph = from_torch(
        Tied().eval(), (torch.zeros(64, 32, dtype=torch.int64),), Recipe.named("bf16" if chip.name != "Groq LPU v1" else "fp16")
    )
    trace = estimate(graph, chip)
    assert trace.counters.total_macs == graph.macs
    assert trace.latency_s * chip.macs_per_cycle(graph.recipe.weights) * chip.clock_hz >= graph.macs
    assert trace.memory_bytes == graph.weight_bytes + graph.activation_bytes


def test_tensor_parallelism_divides_stored_products_and_adds_them_up():
    graph = from_torch(nn.Linear(4096, 4096, bias=False).eval(), (torch.zeros(8, 4096),))
    trace = estimate(graph, load_chip("h100"), Plan(tensor=4))
    assert [e.kind for e in trace.events] == ["gemm", "collective"]
    assert trace.counters.total_macs == graph.macs / 4


class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Mish())

    def forward(self, x):
        return torch.linalg.inv(self.inner(x))


def test_unsupported_operators_are_all_named_with_their_module_path():
    with pytest.raises(UnsupportedError) as caught:
        from_torch(Strange().eval(), (torch.zeros(8, 8),))
    assert str(caught.value).startswith("no lowering for mish in inner.1, linalg_inv in the module itself; supported operators: ")
    assert str(caught.value).endswith(", ".join(SUPPORTED))


def test_random_numbers_are_no_constant():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn(8)

    with pytest.raises(UnsupportedError, match="no lowering for randn in the module itself"):
        from_torch(Noise().eval(), (torch.zeros(8),))


def test_shapes_that_depend_on_values_are_refused():
    class Chosen(nn.Module):
        def forward(self, x):
            return x[x > 0]

    with pytest.raises(UnsupportedError, match="yields a shape that depends on values"):
        from_torch(Chosen().eval(), (torch.zeros(8),))


def test_control_flow_on_values_is_refused():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedError, match=r"Branch: torch.export cannot follow it .* make its control flow independent of values"):
        from_torch(Branch().eval(), (torch.zeros(8),))


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (lambda: nn.ConvTranspose2d(4, 4, 3), "conv_transpose2d in"),
        (lambda: nn.Conv2d(4, 4, 3).train(), "Conv2d is in training mode"),
        (lambda: "conv", "takes a torch.nn.Module, not str"),
    ],
)
def test_other_refusals_say_why(module, why):
    module = module()
    if "training" not in why and isinstance(module, nn.Module):
        module.eval()
    with pytest.raises((InputError, UnsupportedError), match=why):
        from_torch(module, (torch.zeros(1, 4, 8, 8),))


def test_a_sum_hidden_in_an_einsum_is_refused_by_name():
    class Hidden(nn.Module):
        def forward(self, a, b):
            return torch.einsum("ij,kl->ik", a, b)

    with pytest.raises(UnsupportedError, match="einsum: einsum 'ij,kl->ik' sums 'j' over one tensor alone; sum it before"):
        from_torch(Hidden().eval(), (torch.zeros(2, 3), torch.zeros(4, 5)))
