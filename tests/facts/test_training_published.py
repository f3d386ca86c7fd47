"""Megatron's published step times on A100 (Korthikanti et al., arXiv 2205.05198, tables 3 and 5)."""

import csv
from pathlib import Path

import pytest

from fabless.chip.catalogue import find_chip
from fabless.model.huggingface import from_config
from fabless.model.step import Recipe
from fabless.sim.training import Training, training_step
from fabless.sim.training_file import read_training

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "../shared/data/silicon/selene_a100_seqsel_tab5_train_step_s.csv"

#: name -> layers, d_model, heads, tensor, pipeline, batch, micro-batch, interleave
CONFIGURATIONS = {
    "megatron-22B": (48, 6144, 64, 8, 1, 4, 4, 1),
    "gpt3-175B": (96, 12288, 96, 8, 8, 64, 1, 3),
    "turing-530B": (105, 20480, 128, 8, 35, 280, 1, 3),
    "megatron-1T": (128, 25600, 160, 8, 64, 512, 1, 1),
}


def predicted(name, recompute, sequence_parallel):
    layers, d_model, heads, tensor, pipeline, batch, micro, interleave = CONFIGURATIONS[name]
    config = {
        "model_type": "gpt2", "n_layer": layers, "n_embd": d_model, "n_head": heads, "vocab_size": 51200, "n_positions": 2048,
        "activation_function": "gelu",
    }  # fmt: skip
    training = Training(batch, micro, 2048, tensor, pipeline, 1, interleave, recompute, sequence_parallel, 0, fused_attention=False)
    return training_step(from_config(config, name), Recipe.named("fp16"), find_chip("A100 SXM 80GB"), training).seconds


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published step times are not beside this checkout")
def test_published_steps_within_five_percent_mean():
    errors = []
    for row in csv.DictReader(PUBLISHED.open()):
        errors.append(abs(predicted(row["model"], "full", False) / float(row["full_recompute"]) - 1))
        errors.append(abs(predicted(row["model"], "selective", True) / float(row["seqsel"]) - 1))
    assert len(errors) == 8
    assert sum(errors) / len(errors) <= 0.05


def test_the_example_is_the_published_run():
    assert read_training(ROOT / "examples/train.toml").step().seconds == pytest.approx(predicted("gpt3-175B", "selective", True))
