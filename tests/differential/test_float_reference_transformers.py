"""The float reference equals `transformers` on a small random model of every family, within what float32 rounding allows."""

import numpy as np
import pytest

from fabless.model.float_reference import FloatReference
from fabless.model.random_weights import RANDOM_CONFIGS, write_random
from fabless.model.weights import open_weights

torch = pytest.importorskip("torch", reason="torch is in the extra `oracles`, not needed to run fabless")
transformers = pytest.importorskip("transformers", reason="transformers is in the extra `oracles`, not needed to run fabless")

TOKENS = np.random.default_rng(7).integers(3, 160, (2, 24))


def _theirs(directory, tokens, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.double().numpy()


@pytest.mark.parametrize("kind", RANDOM_CONFIGS)
def test_logits_equal_those_of_transformers(kind, tmp_path):
    directory = write_random(tmp_path, kind, seed=3)
    reference = FloatReference.load(open_weights(directory))
    ours = np.stack([reference.forward(row) for row in TOKENS]).astype(np.float64)
    exact = _theirs(directory, TOKENS, torch.float64)
    # Every value passes through at most 4 * n_layers + 2 sums of at most max(d_model, d_ff) = 128 products, each with relative error below
    # n * eps of the sum of magnitudes; the same order bounds transformers' own float32 run. eps = 2^-24.
    bound = (4 * 2 + 2) * 128 * 2.0**-24 * np.abs(exact).max()
    assert np.abs(ours - exact).max() < bound
    assert np.abs(exact).max() > 1  # logits that mean something: a zero model would pass any bound


@pytest.mark.parametrize("kind", RANDOM_CONFIGS)
def test_bound_notices_a_changed_weight(kind, tmp_path):
    directory = write_random(tmp_path, kind, seed=3)
    weights = open_weights(directory)
    tensors = {name: weights[name] for name in weights}
    reference = FloatReference.load(weights)
    before = reference.forward(TOKENS[0])
    for name, tensor in tensors.items():
        if name.startswith("layers.1") and "experts" not in name:
            changed = FloatReference(weights.decoder, type(reference.arithmetic)(tensors | {name: np.roll(tensor, 1, 0)}))
            assert np.abs(changed.forward(TOKENS[0]) - before).max() > 10 * 128 * 2.0**-24 * np.abs(before).max(), name
