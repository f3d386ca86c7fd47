"""Quality: schemes round as their formats say, and int8 blocks of 32 cost less than the bar on real models and text."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabless.core.errors import InputError
from fabless.model.quality import RECIPES, QualityRecipe, Scheme, log_softmax, quality, recipe_named, reference_of, round_elements, score
from fabless.model.random_weights import random_weights
from fabless.model.weights import open_weights
from fabless.number.formats import BF16, E2M1, E4M3, INT4, INT8
from fabless.number.round import decode, encode

SHARED = Path(__file__).parents[2] / "../shared/data/models"
CHARACTERS = "\n !$&',-.3:;?" + "".join(map(chr, [*range(65, 91), *range(97, 123)]))


def shakespeare():
    path = SHARED / "ref_text_shakespeare.txt"
    if not path.is_file():
        pytest.skip("reference text is not beside this checkout")
    return path.read_text()


@pytest.fixture(scope="module")
def smollm2():
    try:
        return open_weights("smollm2-135m")
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("format", [E4M3, E2M1, BF16], ids=lambda f: f.name)
def test_elements_round_as_the_scalar_definition(format):
    x = np.concatenate([np.linspace(-500, 500, 401), np.geomspace(1e-4, 1e3, 200)]).astype(np.float32)
    expected = [decode(encode(float(v), format), format) for v in x]
    np.testing.assert_array_equal(round_elements(x, format), np.float32(expected))


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=70), st.sampled_from([0, 16, 32]))
@settings(max_examples=60, deadline=None)
def test_int8_error_is_at_most_half_a_step(values, group):
    x = np.float32(values)[None]
    rounded = Scheme(INT8, group).round(x)
    size = group or x.shape[1]
    for start in range(0, x.shape[1], size):
        part = x[:, start : start + size]
        # half of a step; scale, quotient and product round once each in binary32, on codes of at most 127; scales may be subnormal
        limit = np.abs(part).max() / 127 * (0.5 + 127 * 3 * 2.0**-24)
        assert np.abs(rounded[:, start : start + size] - part).max() <= limit * (1 + 2.0**-20) + 127 * 2.0**-149


@pytest.mark.parametrize("rule", ["e8m0_floor", "e8m0_up"])
def test_power_of_two_scales_are_powers_of_two(rule):
    x = np.random.default_rng(1).standard_normal((50, 32)).astype(np.float32) * np.float32(3)
    scheme = Scheme(E4M3, 32, rule)
    scale = scheme._scales(x[:, None, :])
    mantissa, _ = np.frexp(scale)
    assert (mantissa == 0.5).all()
    clipped = np.abs(x).max(-1) / scale[:, 0] > 448
    assert clipped.any() == (rule == "e8m0_floor")  # the OCP rule clips what lies above 448 / 512 of a binade


def test_searched_scale_is_never_worse_than_absmax():
    x = np.random.default_rng(2).standard_normal((40, 64)).astype(np.float32)
    plain, searched = Scheme(INT4, 32).round(x), Scheme(INT4, 32, "searched").round(x)
    assert np.square(searched - x).sum() < np.square(plain - x).sum()


def test_zero_blocks_stay_zero():
    for rule in ("fp32", "fp16", "bf16_up", "e8m0_floor", "e8m0_up", "e4m3", "searched"):
        element = E2M1 if rule == "e4m3" else INT8 if rule in ("fp16", "bf16_up") else E4M3 if rule.startswith("e8m0") else INT4
        assert not Scheme(element, 16, rule).round(np.zeros((2, 32), np.float32)).any()


def test_float_against_itself_is_nothing():
    report = score(random_weights("qwen3"), RECIPES["fp32"], [list(range(3, 60))])
    assert report.perplexity == report.float_perplexity
    assert report.kl_nats == 0
    assert report.top1_ratio == 1
    assert report.perplexity_change_ratio == 0


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_on_the_embedded_model(name):
    text = "".join(c for c in shakespeare()[:1200] if c in CHARACTERS)
    report = quality("tinyshakes", name, text)
    assert report.recipe == name
    assert report.n_tokens > 900
    assert math.isfinite(report.perplexity)
    assert report.kl_nats >= 0
    # kl is the mean over tokens of a divergence: Pinsker bounds the mean total variation, which bounds how far probabilities move
    assert report.top1_ratio > 0.4
    if name in ("exact", "int8_block32", "int8_block32_attention"):
        assert report.perplexity_change_ratio < 0.02


def test_recipes_rank_as_their_bits_do():
    text = "".join(c for c in shakespeare()[:2500] if c in CHARACTERS)
    kl = {
        name: quality("tinyshakes", name, text).kl_nats
        for name in ("bf16", "int8_block32", "int8", "mxfp8", "nvfp4_fp8", "mxfp4_fp8", "mxfp4")
    }
    assert kl["bf16"] < kl["int8_block32"] < kl["int8"] < kl["mxfp8"] < kl["nvfp4_fp8"] < kl["mxfp4_fp8"] < kl["mxfp4"]


def test_log_probabilities_equal_the_stored_reference(smollm2):
    path = SHARED / "ref_smollm2_ppl_shakespeare.json"
    if not path.is_file():
        pytest.skip("reference log-probabilities are not beside this checkout")
    chunk = json.loads(path.read_text())["chunks"][0]
    logits = reference_of(smollm2, RECIPES["fp32"]).forward(chunk["ids"])
    ours = log_softmax(logits[:-1])[np.arange(511), chunk["ids"][1:]]
    # stored to 4 decimals; both sides are float32 sums of at most 1,536 products in 30 layers, in different orders: eps * sqrt(1536 * 60) of logits below 50
    assert np.abs(ours - chunk["fp32_logprob_next"]).max() < 0.5e-4 + 2.0**-24 * math.sqrt(1536 * 60) * 50
    assert (logits.argmax(-1) == chunk["fp32_argmax"]).all()


def test_logits_equal_the_stored_greedy_run(smollm2):
    path = SHARED / "ref_smollm2_greedy.json"
    if not path.is_file():
        pytest.skip("reference logits are not beside this checkout")
    reference = reference_of(smollm2, RECIPES["fp32"])
    for case in json.loads(path.read_text())["cases"]:
        ids = case["prompt_ids"] + case["fp32_greedy_ids"][:-1]
        logits = reference.forward(ids)[len(case["prompt_ids"]) - 1 :]
        for ours, stored in zip(logits, case["fp32_top5_per_step"], strict=True):
            assert ours.argmax() == stored["ids"][0]
            assert np.abs(ours[stored["ids"]] - stored["logits"]).max() < 0.5e-4 + 2.0**-24 * math.sqrt(1536 * 60) * 50


BARS = {"int8_block32": 0.01, "exact": 0.02}  # weights and activations alone; everything as executed


@pytest.mark.parametrize("recipe", BARS)
def test_int8_blocks_on_a_short_text_are_as_near_as_their_bars_ask(recipe, smollm2):
    """Of 191 tokens perplexity scatters: log-ratios of probabilities have twice the divergence as their variance, so the bar is held at 2.5 deviations."""
    q = quality(smollm2, recipe, shakespeare(), chunk_tokens=192, max_chunks=1)
    assert q.kl_nats < 0.01  # one scale a row instead of a block: 0.04
    assert q.perplexity_change_ratio - 2.5 * math.sqrt(2 * q.kl_nats / q.n_tokens) <= BARS[recipe]
    assert q.top1_ratio > 0.85


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("recipe", BARS)
def test_bars_of_int8_blocks(recipe, smollm2):
    assert quality(smollm2, recipe, shakespeare(), chunk_tokens=512, max_chunks=4).perplexity_change_ratio <= BARS[recipe]


def test_unknown_recipe_and_short_text_are_named():
    with pytest.raises(InputError, match="no quality recipe 'int8_blok32'; did you mean 'int8_block32'"):
        recipe_named("int8_blok32")
    with pytest.raises(InputError, match="a text of 5 tokens is too short to score; give at least 129"):
        quality("tinyshakes", QualityRecipe("x", "x"), "ROMEO")
