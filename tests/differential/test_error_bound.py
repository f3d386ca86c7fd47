"""The machine's logits stay within a bound that is derived, not measured, of the model in binary64; and a wrong operation does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fabless.core.errors import UnsupportedError
from fabless.model import error_bound as module
from fabless.model.error_bound import error_bound
from fabless.model.float_reference import FloatReference
from fabless.model.integer_reference import IntegerReference, IntegerWeights
from fabless.model.random_weights import RANDOM_CONFIGS, random_weights
from fabless.model.weights import open_weights

DENSE = ("tinyshakes", *(k for k in RANDOM_CONFIGS if random_weights(k).decoder.routing is None))


def weights_and_tokens(kind, n=24):
    weights = open_weights(kind) if kind == "tinyshakes" else random_weights(kind)
    return weights, np.random.default_rng(3).integers(0, weights.decoder.n_vocab, n)


@pytest.mark.parametrize("kind", DENSE)
def test_logits_and_every_operation_stay_within_their_bounds(kind):
    weights, tokens = weights_and_tokens(kind)
    found = error_bound(weights, tokens)
    assert np.array_equal(found.logits.machine, IntegerReference.load(weights).forward(tokens))
    # the exact track is the model: float32 differs from it by roundings of angles and sums, far less than by any wrong operation
    assert np.abs(FloatReference.load(weights).forward(tokens) - found.logits.exact).max() < 1e-4 * np.abs(found.logits.exact).max()
    assert found.whole.ratio <= 1
    assert np.isfinite(found.logits.bound).all()
    assert len(found.operations) >= 11 * weights.decoder.n_layers + 3
    for operation in found.operations:
        assert operation.ratio <= 1, operation
        assert operation.ratio > 0.03, operation  # a bound that nothing comes near would say little


def test_experts_have_no_bound():
    weights, tokens = weights_and_tokens("mixtral", 2)
    with pytest.raises(UnsupportedError, match="it routes tokens to experts, and a choice that flips has no bound; bound a dense model"):
        error_bound(weights, tokens)


def wrong_weights(change):
    """Return a loader of integer weights with one change to one matrix."""
    load = IntegerWeights.load

    def changed(weights, *args):
        integers = load(weights, *args)
        name = "layers.0.gate"
        return replace(integers, matrices={**integers.matrices, name: change(integers.matrices[name])})

    return changed


WRONG = {
    "blocks in another order": lambda m: replace(m, codes=np.roll(m.codes, 1, axis=0)),
    "scales of the next row": lambda m: replace(m, scales=np.roll(m.scales, 1, axis=1)),
    "codes of four bits": lambda m: replace(m, codes=(m.codes // 16 * 16).astype(np.int8)),
    "a block left out": lambda m: replace(m, codes=np.where(np.arange(len(m.codes))[:, None, None] == 1, 0, m.codes).astype(np.int8)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_weights_are_beyond_the_bound(wrong, monkeypatch):
    weights, tokens = weights_and_tokens("tinyshakes")
    monkeypatch.setattr(module.IntegerWeights, "load", wrong_weights(WRONG[wrong]))
    beyond = {o.name for o in error_bound(weights, tokens).operations if o.ratio > 1}
    assert beyond == {"layers.0.gate"}


WRONG_FUNCTIONS = {
    "exp2_array": (lambda exact, x: exact(x * np.float32(0.7)), "mixed"),
    "rsqrt_array": (lambda exact, x: exact(x) * np.float32(1 + 2.0**-20), "norm"),
    "sigmoid_array": (lambda exact, x: exact(x) * np.float32(1 + 2.0**-18), "hidden"),
}


@pytest.mark.parametrize("name", WRONG_FUNCTIONS)
def test_a_wrong_function_is_beyond_the_bound(name, monkeypatch):
    from fabless.model import integer_reference

    exact, (wrong, operation) = getattr(integer_reference, name), WRONG_FUNCTIONS[name]
    monkeypatch.setattr(integer_reference, name, lambda x: wrong(exact, x).astype(np.float32))
    weights, tokens = weights_and_tokens("tinyshakes")
    beyond = [o.name for o in error_bound(weights, tokens).operations if o.ratio > 1]
    assert beyond
    assert all(operation in n for n in beyond)
