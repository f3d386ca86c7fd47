"""What a row means: its plan, formats, software and experiment, from the words of its source."""

from dataclasses import replace

import pytest

from fabless.core.sources import table
from fabless.fleet.experiment import ClosedLoop, Lengths, OpenLoop, Saturated, StaticBatch
from fabless.mapping.plan import Plan
from fabless.validate.meaning import (
    SkipError,
    benchmark,
    case_of,
    chip_of,
    experiment_of,
    generation_of,
    model_of,
    outcome_of,
    plan_of,
    recipe_of,
)
from fabless.validate.rows import Row

#: How far apart answers of one stated length are taken to be.
APART = table("benchmarks").fact("client.fixed_output_cv").known

ROW = Row(
    id="x", line=2, chip="NVIDIA H200 SXM", chips=8, model="deepseek-ai/DeepSeek-R1", precision="fp8", phase="serving", input_tokens=1024.0,
    output_tokens=1024.0, concurrency=16, load="", metric="tpot", value=0.01, unit="s", software="vllm 0.18.0",
)  # fmt: skip


@pytest.mark.parametrize(
    ("notes", "model", "chips", "plan"),
    [
        ("tp=8 pp=1 attn_dp=1 moe_tp=8 moe_ep=1; x", "deepseek-r1", 8, Plan(8)),
        ("tp=4 pp=1 attn_dp=1 moe_tp=1 moe_ep=4", "deepseek-r1", 4, Plan(4, expert=4)),
        ("tp=1 pp=1 attn_dp=8 moe_tp=1 moe_ep=8", "deepseek-r1", 8, Plan(1, data=8, expert=8)),
        ("tp=2 pp=1 attn_dp=0 moe_tp=0 moe_ep=0", "qwen3-32b", None, Plan(2)),
        ("tp=4 pp=1 attn_dp=1 moe_tp=1 moe_ep=1", "llama-3.1-8b", 4, Plan(4)),
        ("tp=36 pp=1 attn_dp=1 moe_tp=36 moe_ep=1", "deepseek-r1", 36, Plan(1, data=36, expert=36)),
        ("parallelism=TP2,PP2; bench", "llama-3.1-70b", 4, Plan(2, 2)),
        ("parallelism=DEP4; bench", "deepseek-r1", 4, Plan(1, data=4, expert=4)),
        ("parallelism=DEP2,PP2; bench", "qwen3-235b-a22b", 4, Plan(1, 2, 2, 2)),
        ("8xH200 TEP8 vLLM", "deepseek-r1", 8, Plan(8, expert=8)),
        ("median of 5 repeats; tensor parallel 4; key", "llama-2-70b", 4, Plan(4)),
        ("instance=Inf2.48xlarge; TP=24 NeuronCores; Batch", "llama-2-70b", 12, Plan(12)),
        ("submitter NVIDIA; system H200x8", "llama-2-70b", 8, None),
    ],
)
def test_parallelism_is_read_from_the_notes(notes, model, chips, plan):
    assert plan_of(replace(ROW, notes=notes, model=model), model_of(model), chips) == plan


@pytest.mark.parametrize(
    ("software", "family", "phase", "generation"),
    [
        ("Splitwise measurement set (vLLM 2023)", "nvidia_ampere", "decode", "vllm_2023"),
        ("vllm 0.19.0", "nvidia_hopper", "serving", "vllm_2026"),
        ("vllm 0.12.0", "nvidia_hopper", "serving", "vllm_2025"),
        ("vllm", "nvidia_hopper", "serving", "vllm_2025"),
        ("vLLM", "nvidia_hopper", "serving", "vllm_default"),
        ("vLLM 0.4.3+rocm614, PyTorch 2.3.0, ROCm 6.1.2", "amd_cdna3", "mlperf_offline", "vllm_rocm"),
        ("vllm/vllm-tpu:v0.12.0", "google_tpu", "serving", "vllm_tpu"),
        ("trtllm 1.0.0rc3", "nvidia_hopper", "serving", "trtllm_1"),
        ("TensorRT-LLM v1.0", "nvidia_hopper", "offline_max_throughput", "trtllm_1"),
        ("trtllm 1.2.0rc6.post3", "nvidia_blackwell", "serving", "trtllm_2026"),
        ("TensorRT-LLM (PyTorch backend, post-v1.0 doc)", "nvidia_blackwell", "offline_max_throughput", "trtllm_2026"),
        ("TensorRT 10.2.0, CUDA 12.4", "nvidia_hopper", "mlperf_offline", "trtllm_mlperf"),
        ("sglang 0.5.9", "nvidia_blackwell", "serving", "sglang_2025"),
        ("Transformers NeuronX / Neuron 2.18.0", "aws_neuron", "prefill+decode", "neuron_2"),
        ("TT-Metalium v0.62.0-rc25", "tenstorrent", "prefill", "tt_metal"),
        ("", "amd_cdna3", "mlperf_server", "vllm_rocm"),
        ("", "nvidia_blackwell", "mlperf_server", "trtllm_mlperf"),
        ("SomethingNew 1.0", "maia", "serving", "transfer"),
    ],
)
def test_software_is_a_generation_of_the_table(software, family, phase, generation):
    assert generation_of(software, family, phase) == generation


def test_each_kind_of_row_is_its_own_experiment():
    model = model_of("llama-2-70b")
    assert experiment_of(replace(ROW, notes="x", phase="serving"), model) == ClosedLoop(16, Lengths(1024.0, 1024.0, 0.0, APART), 10.0)
    assert isinstance(experiment_of(replace(ROW, phase="prefill"), model), StaticBatch)
    assert isinstance(experiment_of(replace(ROW, phase="offline_max_throughput", concurrency=None, load="max"), model), Saturated)
    server = replace(ROW, phase="mlperf_server", concurrency=None, load="poisson", model="llama2-70b-99")
    assert experiment_of(server, model) == OpenLoop(benchmark("llama2-70b").lengths, None, 2.0, 0.2)


def test_inferencemax_lengths_are_drawn_below_the_nominal():
    found = experiment_of(replace(ROW, notes="tp=8; source_file=2026-03-25.csv; model=x"), model_of("deepseek-r1"))
    assert found.lengths.input_tokens == pytest.approx(0.9 * 1024)
    assert found.lengths.input_cv == pytest.approx(0.2 / 12**0.5 / 0.9)


def test_a_row_without_what_its_experiment_needs_says_so():
    with pytest.raises(SkipError, match="no input length stated"):
        experiment_of(replace(ROW, input_tokens=None), model_of("deepseek-r1"))
    with pytest.raises(SkipError, match="no data set lengths known for benchmark 'other'"):
        experiment_of(replace(ROW, phase="mlperf_offline", model="other-99"), model_of("deepseek-r1"))
    with pytest.raises(SkipError, match="value 0: not measured"):
        case_of(replace(ROW, metric="average_power_fraction_of_tdp", value=0.0, unit="ratio"))


def test_formats_follow_the_checkpoints_that_were_served():
    h200, b200 = chip_of("NVIDIA H200 SXM"), chip_of("NVIDIA B200 SXM")
    gpt_oss, r1, llama = model_of("gpt-oss-120b"), model_of("deepseek-r1"), model_of("llama-2-70b")
    assert recipe_of(replace(ROW, precision="fp4"), gpt_oss, h200, 16).weights.name == "bf16"
    assert recipe_of(replace(ROW, precision="fp4"), gpt_oss, h200, 16).expert_weights.name == "mxfp4"
    assert recipe_of(replace(ROW, precision="fp4"), r1, b200, 8).weights.name == "bf16"
    assert recipe_of(replace(ROW, precision="FP8"), llama, h200, 8).kv_cache.name == "fp8_e4m3"
    assert recipe_of(replace(ROW, precision="Matmult-BF16; weights int8"), llama, h200, 16).weights.name == "int8"
    mlperf = replace(ROW, precision="fp16", phase="mlperf_offline")
    assert recipe_of(mlperf, llama, h200, 8).weights.name == "fp8_e4m3"
    assert recipe_of(mlperf, llama, b200, 8).weights.name == "nvfp4"


def test_metrics_name_outcomes():
    assert outcome_of(replace(ROW, metric="ttft_p99")) == "ttft_p99_s"
    assert outcome_of(replace(ROW, metric="itl_p50")) == "tpot_p50_s"
    assert outcome_of(replace(ROW, metric="output_throughput_per_chip")) == "output_tokens_per_s"
