"""The parameters of software generations: stated settings by hand, overheads written by fit_serving.py. Writes data/software.toml."""

from __future__ import annotations

from pathlib import Path

OUT = Path(__file__).parents[1] / "src/fabless/data/software.toml"

SOURCES = {
    "measured": (
        "Serving measurements of this software, thinned; parameter fitted by bench/fit_serving.py over all rows of the generation",
        "aiconfigurator, InferenceX, Splitwise, AWS Neuron, TensorRT-LLM, MLPerf, tt-metal and tpu-recipes (Apache-2.0, MIT, CC-BY-SA)",
        "2026-11",
        "https://github.com/ai-dynamo/aiconfigurator",
    ),
    "vllm": (
        "vLLM engine arguments and their defaults",
        "vLLM project, Apache-2.0",
        "2025-10",
        "https://docs.vllm.ai/en/latest/configuration/engine_args.html",
    ),
    "inferencemax": (
        "InferenceMAX server configurations",
        "SemiAnalysis, Apache-2.0",
        "2025-10",
        "https://github.com/SemiAnalysisAI/InferenceMAX",
    ),
    "sglang": (
        "SGLang server arguments",
        "SGLang project, Apache-2.0",
        "2025-12",
        "https://docs.sglang.ai/advanced_features/server_arguments.html",
    ),
    "trtllm": (
        "TensorRT-LLM performance overview and LLM arguments",
        "NVIDIA, Apache-2.0",
        "2025-11",
        "https://nvidia.github.io/TensorRT-LLM/",
    ),
    "splitwise": (
        "Splitwise: efficient generative LLM inference using phase splitting",
        "ISCA 2024",
        "2024-06",
        "https://arxiv.org/abs/2311.18677",
    ),
    "tt": (
        "tt-metal models/README: TTFT of one user's prompt",
        "Tenstorrent, Apache-2.0",
        "2025-10",
        "https://github.com/tenstorrent/tt-metal/blob/main/models/README.md",
    ),
    "neuron": ("Transformers NeuronX developer guide", "AWS", "2024-04", "https://awsdocs-neuron.readthedocs-hosted.com/"),
}

#: generation -> parameter -> (value, unit, kind, source, low, high)
Row = tuple[float, str, str, str, float | None, float | None]


def e(value: float, unit: str, low: float, high: float, source: str = "measured") -> Row:
    return (value, unit, "estimate", source, low, high)


def s(value: float, unit: str, source: str) -> Row:
    return (value, unit, "datasheet", source, None, None)


GENERATIONS: dict[str, dict[str, Row]] = {
    "transfer": {
        "step_overhead_s": e(1.0e-3, "s", 1e-4, 5e-3),
        "layer_overhead_s": e(1e-5, "s", 0.0, 1.5e-4),
        "host_layer_s": e(0.0, "s", 0.0, 5e-4),
        "sequence_overhead_s": e(5e-6, "s", 0.0, 5e-5),
        "request_overhead_s": e(4e-2, "s", 1e-3, 1e-1),
        "memory_ratio": e(0.9, "ratio", 0.8, 0.95),
        "step_tokens": e(8192, "tokens", 1024, 32768),
        "max_sequences": e(1024, "sequences", 128, 4096),
        "mixes": e(1, "boolean", 0, 1),
        "reserves_output": e(0, "boolean", 0, 1),
        "launch_time_ratio": e(0.1, "ratio", 0, 1),
        "expert_product_ratio": e(1.3, "ratio", 1, 8),
        "dequantised_product_ratio": e(4.0, "ratio", 1, 12),
        "expert_time_ratio": e(1.0, "ratio", 0.5, 4),
        "prefill_time_ratio": e(1.4, "ratio", 0.8, 3),
        "routed_passes": e(1.5, "passes", 0, 20),
        "dense_time_ratio": e(0.95, "ratio", 0.8, 1.6),
        "exchange_time_ratio": e(0.6, "ratio", 0.2, 2),
        "attention_time_ratio": e(0.95, "ratio", 0.8, 4),
        "prompt_kernel_s": e(2e-5, "s", 0, 4e-4),
    },
    "vllm_2023": {
        "step_overhead_s": e(0.00938206, "s", 1e-3, 2e-2),
        "host_layer_s": e(0.000206527, "s", 1e-4, 6e-4),
        "layer_overhead_s": e(2.04139e-05, "s", 0, 1e-4),
        "request_overhead_s": e(0.00110271, "s", 0, 2e-2),
        "max_sequences": s(256, "sequences", "vllm"),
        "step_tokens": s(16384, "tokens", "splitwise"),
        "mixes": s(0, "boolean", "vllm"),
        "expert_time_ratio": e(0.85, "ratio", 0.5, 4),
        "prefill_time_ratio": e(1.2, "ratio", 1, 6),
        "sequence_overhead_s": e(0.0001, "s", 0, 0.00021),
        "exchange_time_ratio": e(1.46717, "ratio", 0.2, 4),
        "attention_time_ratio": e(3.61514, "ratio", 0.2, 6),
    },
    "vllm_2025": {
        "step_overhead_s": e(5.87251e-05, "s", 1e-4, 5e-3),
        "layer_overhead_s": e(3.52467e-05, "s", 0, 1e-4),
        "sequence_overhead_s": e(6.87654e-07, "s", 0.0, 5e-5),
        "request_overhead_s": e(0.0485962, "s", 1e-3, 1e-1),
        "step_tokens": s(8192, "tokens", "inferencemax"),
        "max_sequences": s(1024, "sequences", "vllm"),
        "cache_bits": s(16, "bits", "vllm"),
        "launch_time_ratio": e(0.0696549, "ratio", 0, 1),
        "expert_time_ratio": e(1.46094, "ratio", 0.5, 4),
        "prefill_time_ratio": e(0.85, "ratio", 0.7, 6),
        "expert_product_ratio": e(1, "ratio", 1, 8),
        "dequantised_product_ratio": e(7.34483, "ratio", 1, 12),
        "dense_time_ratio": e(0.802311, "ratio", 0.0, 3.03805),
        "exchange_time_ratio": e(0.690545, "ratio", 0.0, 4),
        "attention_time_ratio": e(0.8, "ratio", 0.0, 6),
        "prompt_kernel_s": e(6.06147e-05, "s", 0, 4e-4),
        "routed_passes": e(1.57219, "passes", 0, 20),
    },
    "vllm_2026": {
        "step_overhead_s": e(8.36988e-05, "s", 1e-4, 5e-3),
        "layer_overhead_s": e(3.42471e-05, "s", 0, 1e-4),
        "sequence_overhead_s": e(1.18661e-06, "s", 0.0, 5e-5),
        "request_overhead_s": e(0.0284072, "s", 1e-3, 1e-1),
        "step_tokens": s(8192, "tokens", "inferencemax"),
        "max_sequences": s(1024, "sequences", "vllm"),
        "cache_bits": s(16, "bits", "vllm"),
        "launch_time_ratio": e(0.212082, "ratio", 0, 1),
        "expert_time_ratio": e(0.97362, "ratio", 0.5, 4),
        "prefill_time_ratio": e(1.61852, "ratio", 0.7, 6),
        "expert_product_ratio": e(1.43438, "ratio", 1, 8),
        "dequantised_product_ratio": e(3.00685, "ratio", 1, 12),
        "dense_time_ratio": e(0.8, "ratio", 0.0, 3.03805),
        "exchange_time_ratio": e(1.29635, "ratio", 0.0, 4),
        "attention_time_ratio": e(0.8, "ratio", 0.0, 6),
        "prompt_kernel_s": e(1.03056e-05, "s", 0, 4e-4),
        "routed_passes": e(2.17113, "passes", 0, 20),
    },
    "vllm_default": {
        "step_overhead_s": e(0.00386363, "s", 1e-4, 5e-3),
        "layer_overhead_s": e(3.85443e-05, "s", 0, 1e-4),
        "sequence_overhead_s": e(9.25979e-06, "s", 0.0, 5e-5),
        "request_overhead_s": e(0.1225, "s", 1e-3, 1.0),
        "expert_time_ratio": e(0.755, "ratio", 0.5, 4),
        "prefill_time_ratio": e(2.491, "ratio", 1, 6),
        "step_tokens": s(8192, "tokens", "vllm"),
        "max_sequences": s(1024, "sequences", "vllm"),
        "cache_bits": s(16, "bits", "vllm"),
        "launch_time_ratio": e(0.147969, "ratio", 0, 1),
        "expert_product_ratio": e(1.0, "ratio", 1, 8),
        "dequantised_product_ratio": e(1.29041, "ratio", 1, 12),
        "dense_time_ratio": e(0.8, "ratio", 0.0, 2.1),
        "exchange_time_ratio": e(0.4907, "ratio", 0.0, 4),
        "attention_time_ratio": e(0.8, "ratio", 0.0, 6),
        "prompt_kernel_s": e(0.0002731, "s", 0, 4e-4),
        "routed_passes": e(1.75, "passes", 0, 20),
        "memory_ratio": e(0.845, "ratio", 0.8, 0.9),
    },
    "sglang_2025": {
        "step_overhead_s": e(0.000995752, "s", 1e-4, 5e-3),
        "layer_overhead_s": e(1.69276e-06, "s", 0, 1e-4),
        "sequence_overhead_s": e(1.62993e-05, "s", 0.0, 5e-5),
        "request_overhead_s": e(0.0505408, "s", 1e-3, 1e-1),
        "mixes": s(0, "boolean", "sglang"),
        "step_tokens": s(8192, "tokens", "sglang"),
        "cache_bits": s(16, "bits", "sglang"),
        "launch_time_ratio": e(0.098275, "ratio", 0, 1),
        "expert_time_ratio": e(1.14912, "ratio", 0.5, 4),
        "prefill_time_ratio": e(2.08679, "ratio", 0.7, 6),
        "expert_product_ratio": e(6.45414, "ratio", 1, 8),
        "dequantised_product_ratio": e(2.82721, "ratio", 1, 12),
        "dense_time_ratio": e(0.848895, "ratio", 0.0, 2.56845),
        "exchange_time_ratio": e(0.400323, "ratio", 0.0, 4),
        "attention_time_ratio": e(0.859536, "ratio", 0.0, 6),
        "prompt_kernel_s": e(5.57961e-05, "s", 0, 4e-4),
        "routed_passes": e(2.0, "passes", 0, 20),
    },
    "trtllm_1": {
        "step_overhead_s": e(0.00297599, "s", 1e-4, 5e-3),
        "layer_overhead_s": e(2.12343e-06, "s", 0, 1e-4),
        "sequence_overhead_s": e(2.61208e-06, "s", 0.0, 5e-5),
        "request_overhead_s": e(0.0881924, "s", 1e-3, 1e-1),
        "step_tokens": s(8192, "tokens", "trtllm"),
        "max_sequences": s(4096, "sequences", "trtllm"),
        "reserves_output": s(1, "boolean", "trtllm"),
        "cache_bits": s(8, "bits", "trtllm"),
        "launch_time_ratio": e(0.391297, "ratio", 0, 1),
        "expert_time_ratio": e(0.979159, "ratio", 0.5, 4),
        "prefill_time_ratio": e(1.42, "ratio", 0.7, 6),
        "expert_product_ratio": e(1.0445, "ratio", 1, 8),
        "dequantised_product_ratio": e(1.29884, "ratio", 1, 12),
        "dense_time_ratio": e(0.922021, "ratio", 0.0, 3),
        "exchange_time_ratio": e(0.41687, "ratio", 0.0, 4),
        "attention_time_ratio": e(0.8, "ratio", 0.0, 6),
        "prompt_kernel_s": e(2.28521e-05, "s", 0, 4e-4),
        "routed_passes": e(0.499354, "passes", 0, 20),
    },
    "trtllm_2026": {
        "step_overhead_s": e(0.00110861, "s", 1e-4, 5e-3),
        "layer_overhead_s": e(3.58635e-06, "s", 0, 1e-4),
        "sequence_overhead_s": e(6.70662e-06, "s", 0.0, 5e-5),
        "request_overhead_s": e(0.052272, "s", 1e-3, 1e-1),
        "step_tokens": s(8192, "tokens", "trtllm"),
        "max_sequences": s(4096, "sequences", "trtllm"),
        "reserves_output": s(1, "boolean", "trtllm"),
        "cache_bits": s(8, "bits", "trtllm"),
        "launch_time_ratio": e(0.0644869, "ratio", 0, 1),
        "expert_time_ratio": e(0.69673, "ratio", 0.5, 4),
        "prefill_time_ratio": e(1.27727, "ratio", 0.7, 6),
        "expert_product_ratio": e(1, "ratio", 1, 8),
        "dequantised_product_ratio": e(6.34956, "ratio", 1, 12),
        "dense_time_ratio": e(0.9631, "ratio", 0.0, 3),
        "exchange_time_ratio": e(0.391566, "ratio", 0.0, 4),
        "attention_time_ratio": e(0.993044, "ratio", 0.0, 6),
        "prompt_kernel_s": e(1.13101e-05, "s", 0, 4e-4),
        "routed_passes": e(2.93731, "passes", 0, 20),
    },
    "trtllm_mlperf": {
        "step_overhead_s": e(3.1875e-05, "s", 1e-4, 5e-3),
        "layer_overhead_s": e(6.78445e-07, "s", 0, 1e-4),
        "step_tokens": s(8192, "tokens", "trtllm"),
        "max_sequences": s(4096, "sequences", "trtllm"),
        "memory_ratio": s(0.95, "ratio", "trtllm"),
        "cache_bits": s(8, "bits", "trtllm"),
        "launch_time_ratio": e(0.0305589, "ratio", 0, 1),
        "expert_time_ratio": e(0.5, "ratio", 0.5, 4),
        "prefill_time_ratio": e(1.11849, "ratio", 0.7, 6),
        "expert_product_ratio": e(2.36055, "ratio", 1, 8),
        "dequantised_product_ratio": e(4.33847, "ratio", 1, 12),
        "dense_time_ratio": e(1, "ratio", 0.0, 3),
        "exchange_time_ratio": e(1.29224, "ratio", 0.0, 4),
        "attention_time_ratio": e(0.7, "ratio", 0.0, 6),
        "sequence_overhead_s": e(1.42394e-05, "s", 0, 0.0001),
        "request_overhead_s": e(0.0266008, "s", 0, 0.128168),
        "routed_passes": e(0.525216, "passes", 0, 20),
        "prompt_kernel_s": e(0, "s", 0, 0.0001),
    },
    "vllm_rocm": {
        "step_overhead_s": e(0.00386363, "s", 1e-4, 1e-2),
        "layer_overhead_s": e(5.73693e-06, "s", 0, 1e-4),
        "max_sequences": s(2048, "sequences", "vllm"),
        "memory_ratio": s(0.95, "ratio", "vllm"),
        "cache_bits": s(8, "bits", "vllm"),
        "step_tokens": s(16384, "tokens", "vllm"),
        "launch_time_ratio": e(0.116881, "ratio", 0, 1),
        "expert_time_ratio": e(1.19391, "ratio", 0.5, 4),
        "prefill_time_ratio": e(1.62654, "ratio", 0.7, 6),
        "expert_product_ratio": e(1.27019, "ratio", 1, 8),
        "dequantised_product_ratio": e(2.72789, "ratio", 1, 12),
        "dense_time_ratio": e(0.972401, "ratio", 0.0, 2.78428),
        "exchange_time_ratio": e(1.2545, "ratio", 0.0, 4),
        "attention_time_ratio": e(2.91086, "ratio", 0.0, 6),
        "sequence_overhead_s": e(3.32244e-06, "s", 0, 0.0001),
        "request_overhead_s": e(0.0192393, "s", 0, 0.0580215),
        "routed_passes": e(2.0, "passes", 0, 20),
    },
    "vllm_tpu": {
        "step_overhead_s": e(0, "s", 1e-4, 1e-2),
        "layer_overhead_s": e(0, "s", 0, 1e-4),
        "step_tokens": s(8192, "tokens", "vllm"),
        "cache_bits": s(16, "bits", "vllm"),
        "expert_time_ratio": e(0.85, "ratio", 0.5, 4),
        "exchange_time_ratio": e(0.85, "ratio", 0.2, 4),
        "attention_time_ratio": e(1, "ratio", 0.2, 6),
        "prefill_time_ratio": e(1, "ratio", 1, 6),
        "sequence_overhead_s": e(1e-05, "s", 0, 0.0001),
        "request_overhead_s": e(0, "s", 0, 0.0001),
    },
    "neuron_2": {
        "step_overhead_s": e(0.000709837, "s", 1e-4, 5e-3),
        "layer_overhead_s": e(9.24287e-05, "s", 0, 3e-4),
        "request_overhead_s": e(0.00919889, "s", 0, 2e-2),
        "mixes": s(0, "boolean", "neuron"),
        "step_tokens": s(65536, "tokens", "neuron"),
        "cache_bits": s(16, "bits", "neuron"),
        "expert_time_ratio": e(0.85, "ratio", 0.5, 4),
        "prefill_time_ratio": e(1.90117, "ratio", 1, 6),
        "sequence_overhead_s": e(0.0001, "s", 0, 0.00021),
        "exchange_time_ratio": e(1.09005, "ratio", 0.2, 4),
        "attention_time_ratio": e(2.74301, "ratio", 0.2, 6),
        "dense_time_ratio": e(1.02425, "ratio", 0.2, 3.07275),
    },
    "neuron_encoder": {
        "step_overhead_s": e(2e-4, "s", 0, 5e-3),
        "layer_overhead_s": e(2e-5, "s", 0, 3e-4),
        "request_overhead_s": e(0.0, "s", 0, 2e-2),
        "prefill_time_ratio": e(1.0, "ratio", 0.8, 3),
    },
    "tt_metal": {
        "step_overhead_s": e(0.0021917, "s", 1e-4, 5e-3),
        "layer_overhead_s": e(0.0001693, "s", 0, 5e-4),
        "mixes": s(0, "boolean", "tt"),
        "prefills_together": s(0, "boolean", "tt"),
        "request_overhead_s": e(0.00152659, "s", 0, 2e-2),
        "cache_bits": s(8, "bits", "neuron"),
        "expert_time_ratio": e(1.3079, "ratio", 0.5, 4),
        "exchange_time_ratio": e(0.214202, "ratio", 0.2, 4),
        "attention_time_ratio": e(0.8, "ratio", 0.2, 6),
        "prefill_time_ratio": e(1.4185, "ratio", 1, 6),
        "sequence_overhead_s": e(5.9285e-05, "s", 0, 0.00021),
        "dense_time_ratio": e(1.58397, "ratio", 0.2, 3.90501),
    },
    "jetstream": {
        "step_overhead_s": e(1e-3, "s", 1e-4, 5e-3),
        "layer_overhead_s": e(1e-5, "s", 0, 1e-4),
        "mixes": s(0, "boolean", "neuron"),
        "max_sequences": e(96, "sequences", 32, 512),
        "cache_bits": s(16, "bits", "neuron"),
    },
}  # fmt: skip


def write(generations: dict[str, dict[str, Row]], path: Path = OUT) -> None:
    used = {row[3] for rows in generations.values() for row in rows.values()} | {"splitwise"}
    lines = [
        "# Software generations: physically named parameters (fleet.experiment.Software); overheads are fitted by bench/fit_serving.py.",
        "",
    ]
    for id, (title, publisher, date, url) in SOURCES.items():
        if id in used:
            lines += [f"[sources.{id}]", f'title = "{title}"', f'publisher = "{publisher}"', f'date = "{date}"', f'url = "{url}"', ""]
    for generation, rows in generations.items():
        for parameter, (value, unit, kind, source, low, high) in rows.items():
            lines += [
                "[[rows]]",
                f'id = "{generation}.{parameter}"',
                f"value = {value:.6g}",
                f'unit = "{unit}"',
                f'kind = "{kind}"',
                f'source = "{source}"',
            ]
            if low is not None:
                lines += [f"low = {min(low, value):.6g}", f"high = {max(high or 0.0, value):.6g}"]
            lines += [f'generation = "{generation}"', f'parameter = "{parameter}"', ""]
    lines += [
        "[[rows]]", 'id = "host.nvidia_ampere"', "value = 1.4", 'unit = "ratio"', 'kind = "estimate"', 'source = "measured"', "low = 1.2", "high = 1.6",
        'note = "DGX A100 hosts (2020 processors) against DGX H100 hosts (2023)"', 'host = "nvidia_ampere"', "",
        "[[rows]]", 'id = "power_cap.prefill_slowdown"', "value = 1.3", 'unit = "ratio"', 'kind = "measured"', 'source = "splitwise"',
        'note = "prompt phase of h100-80gb-pcap over h100-80gb, equal in all rows; the token phase does not slow"', "",
    ]  # fmt: skip
    path.write_text("\n".join(lines))


if __name__ == "__main__":
    write(GENERATIONS)
