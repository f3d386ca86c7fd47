"""Training steps: what the description says is what is priced, and the laws that any chip obeys."""

from dataclasses import replace

import pytest

from fabless.chip.catalogue import find_chip
from fabless.core.errors import InfeasibleError, InputError
from fabless.model.load import find_model
from fabless.model.step import Recipe
from fabless.sim.training import Training, memory_bytes, training_step
from fabless.sim.training_file import read_training

LLAMA, BF16 = find_model("llama-3.1-8b"), Recipe.named("bf16")
RUN = Training(global_batch=32, micro_batch=1, sequence_tokens=2048, tensor=4, pipeline=2, data=2)
A100 = find_chip("A100 SXM 80GB")


def step(training=RUN, chip=A100):
    return training_step(LLAMA, BF16, chip, training)


def test_the_parts_sum_to_the_step():
    s = step()
    parts = s.forward_s + s.backward_s + s.recompute_s + s.bubble_s + s.send_s + s.gradient_exchange_s + s.optimizer_s
    assert s.seconds == pytest.approx(parts)
    assert 0 < s.mfu_ratio < 1


def test_model_flops_are_three_forwards():
    # 6 FLOPs a parameter and token, and causal attention on top: 12 x layers x d_model x (tokens / 2) a token
    tokens = 32 * 2048
    dense = 6 * (LLAMA.n_params - LLAMA.embedding_params) * tokens
    attention = 12 * 32 * 4096 * (2048 / 2) * tokens
    assert step().flops == pytest.approx(dense + attention, rel=0.01)


def test_recomputation_costs_time_and_saves_memory():
    none, full = step(), step(replace(RUN, recompute="full"))
    assert full.seconds > none.seconds
    assert full.memory_bytes < none.memory_bytes
    assert full.recompute_s == pytest.approx(full.forward_s, rel=0.1)
    assert step(replace(RUN, recompute="selective")).seconds < full.seconds


def test_zero_stages_divide_state_over_data_replicas():
    sizes = [memory_bytes(LLAMA, BF16, replace(RUN, zero_stage=z)) for z in range(4)]
    assert sizes == sorted(sizes, reverse=True)
    per_chip = LLAMA.n_params / 8
    assert sizes[0] - sizes[1] == pytest.approx(per_chip * 12 / 2)
    assert sizes[1] - sizes[2] == pytest.approx(per_chip * 4 / 2)
    assert sizes[2] - sizes[3] == pytest.approx(per_chip * 2 / 2)


def test_interleaving_divides_the_bubble():
    assert step(replace(RUN, interleave=4)).bubble_s == pytest.approx(step().bubble_s / 4)
    assert step(replace(RUN, pipeline=1, tensor=8)).bubble_s == 0


def test_a_single_replica_exchanges_no_gradients():
    assert step(replace(RUN, data=1, global_batch=16)).gradient_exchange_s == 0
    assert step().gradient_exchange_s > 0


@pytest.mark.parametrize("field", ["bandwidth_bytes_per_s", "capacity_bytes"])
def test_more_memory_is_never_slower(field):
    better = replace(A100, dram=replace(A100.dram, **{field: getattr(A100.dram, field) * 2}))
    assert step(chip=better).seconds <= step().seconds


def test_a_faster_link_is_never_slower():
    better = replace(A100, link=replace(A100.link, bandwidth_bytes_per_s=2 * A100.link.bandwidth_bytes_per_s))
    assert step(chip=better).seconds <= step().seconds


@pytest.mark.parametrize("chip", ["H100 SXM", "TPU v5p", "AWS Trainium2", "MI300X"])
def test_other_chips_train_too(chip):
    s = training_step(LLAMA, BF16, find_chip(chip), RUN)
    assert 0 < s.mfu_ratio < 1


def test_a_model_that_does_not_fit_says_what_is_missing():
    with pytest.raises(
        InfeasibleError, match=r"training llama-3.1-70b on 1 x .*A100.*: a chip needs .* raise tensor, pipeline or zero_stage"
    ):
        training_step(find_model("llama-3.1-70b"), BF16, A100, Training(1, 1, 2048))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"micro_batch": 3}, "global_batch=32 is not a multiple of micro_batch x data = 6"),
        ({"recompute": "some"}, "recompute must be none, selective or full, not 'some'"),
        ({"zero_stage": 4}, "zero_stage must be 0 to 3, not 4"),
    ],
)
def test_a_wrong_description_is_refused(change, says):
    with pytest.raises(InputError, match=says):
        replace(RUN, **change)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("chip = 'A100'", "lacks 'model'"),
        ("model='llama-3.1-8b'\nchip='A100 SXM 80GB'\n[training]\nglobal_batch=1\nmicro_batch=1", "lacks training.sequence_tokens"),
        (
            "model='llama-3.1-8b'\nchip='A100 SXM 80GB'\n[training]\nglobal_batsh=1",
            r"unknown key 'training.global_batsh'; did you mean 'global_batch'\?",
        ),
        ("modell='x'", r"unknown key 'modell'; did you mean 'model'\?"),
        (
            "model='llama-3.1-8b'\nchip='A100 SXM 80GB'\n[training]\nglobal_batch='1'\nmicro_batch=1\nsequence_tokens=8",
            "training.global_batch must be a count of at least 1, not '1'",
        ),
        ("model = ", "not valid TOML"),
    ],
)
def test_a_wrong_file_names_the_key(tmp_path, text, says):
    path = tmp_path / "train.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_training(path)
