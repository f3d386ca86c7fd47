"""The cycle simulator's account of a launch: counters against independent counts, ops and stalls that sum to the whole."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest

from fabless.compiler.driver import Shape
from fabless.compiler.driver import compile as compile_model
from fabless.compiler.launch import Segment
from fabless.compiler.place import scratch
from fabless.model.random_weights import random_weights
from fabless.model.weights import open_weights
from fabless.program.assembler import assemble
from fabless.program.isa import FORMAT_BITS
from fabless.program.tile import DEMO, TINY
from fabless.sim.cycles import simulate, time
from fabless.sim.dram import MemoryModel
from fabless.sim.timeline import perfetto_text, timeline

PAGE = 128


def launched(decoder, tile=DEMO, batch=1, tokens=1, position=0, **options):
    shape = Shape(batch, tokens)
    compiled = compile_model(decoder, tile, [shape], context_tokens=min(256, decoder.context_tokens), n_pages=2 * batch, **options)
    segments = [Segment([0] * tokens, position, (2 * i, 2 * i + 1)) for i in range(batch)]
    return compiled, compiled.program(shape), compiled.parameters(shape, segments)


@pytest.fixture(scope="module")
def decoder():
    return open_weights("tinyshakes").decoder


@pytest.mark.parametrize(("batch", "tokens", "position"), [(1, 1, 0), (1, 1, 200), (3, 1, 7), (1, 2, 127)])
@pytest.mark.parametrize("tile", [TINY, DEMO], ids=["tiny", "demo"])
def test_products_and_weight_bytes_are_those_of_the_layout(decoder, tile, batch, tokens, position):
    """Counted from the model's own sizes: every weight once a row, every page of keys and values once a query head, each padded as it is laid out."""
    compiled, program, parameters = launched(decoder, tile, batch, tokens, position)
    trace = simulate(program, None, parameters)
    d, layout, rows = decoder, compiled.layouts[0], batch * tokens
    spans = -(-(position + tokens) // PAGE)
    ops = {e.name: e.counters for e in trace.events}
    for name in ("qkv", "o", "gate_up", "down", "head"):
        m = layout.matrices[name]
        weights = m.n_tiles * m.outputs * m.blocks * 32
        times, m_rows = (1, batch) if name == "head" else (d.n_layers, rows)
        assert ops[name].total_macs == times * m_rows * weights, name
        stored = weights * FORMAT_BITS[m.elements] // 8 + weights // 32 * FORMAT_BITS[m.scales] // 8
        assert abs(dict(ops[name].levels)["dram_read"] - times * stored) <= times * m.n_tiles * len(m.parts) * 64 + 4 * d.d_model
        words = m.n_tiles * m.n * m.blocks
        assert dict(ops[name].levels)["weights"] == times * (
            words * tile.rows * 34 + stored
        )  # read by the matrix unit, written by the loader
    clear = d.n_layers * batch * d.n_heads * tokens * layout.share.value * 32
    kept = scratch(layout, Shape(batch, tokens), most_spans=2).kept_spans
    products = 2 if spans <= kept else 3  # else scores are computed again, but those of the first span once
    attended = products * d.n_layers * batch * d.n_heads * tokens * spans * PAGE * layout.share.value
    assert ops["attention"].total_macs == attended + clear


def test_ops_sum_to_the_launch(decoder):
    _, program, parameters = launched(decoder, tokens=8)
    model = MemoryModel(30, 2, 3)
    trace, timing = simulate(program, None, parameters, model), time(program, None, parameters, model)
    assert sum(e.cycles for e in trace.events) == trace.cycles == timing.cycles
    assert timing.counts.sum() == timing.instructions
    assert sum(e.counters.total_macs for e in trace.events) == trace.counters.total_macs
    sums: dict[str, float] = {}
    for event in trace.events:
        for name, n in event.stalls:
            sums[name] = sums.get(name, 0.0) + n
    assert sums == dict(trace.stalls)
    assert [e.name for e in trace.events if e.count == decoder.n_layers] == [
        "attention_norm", "qkv", "rotary", "kv_store", "attention", "o", "mlp_norm", "gate_up", "down"
    ]  # fmt: skip
    for queue, busy in trace.units:  # an in-order queue is at any cycle busy or waits for one cause
        assert busy + sum(n for name, n in trace.stalls if name.startswith(queue) and not name.endswith("full")) <= trace.cycles


def test_events_are_counted_once_and_bytes_by_direction():
    text = """
load target=v format=fp32 count=64 dst=0
sync queue=load signal=1
sync queue=vpu wait=1
vec pre=add rows=2 len=32 a=0 a_stride=1 b=0 b_stride=1 dst=64 dst_stride=1
sync queue=vpu signal=2
sync queue=store wait=2
store target=v format=bf16 count=32 rows=2 src=64 address=512 stride=64
halt
"""
    counters = simulate(assemble(text, tile=TINY)).counters
    assert dict(counters.levels) == {"dram_read": 256.0, "dram_written": 128.0, "vectors": 256.0 + 128.0 + 3 * 4 * 64}
    assert (counters.vector_ops, counters.dram_bytes, counters.total_macs) == (64.0, 384.0, 0.0)


@pytest.mark.parametrize("family", ["qwen3_moe", "gemma3"])
def test_the_timeline_keeps_every_queue_in_order_and_nothing_beats_its_port(family):
    _, program, parameters = launched(random_weights(family, seed=1).decoder, TINY)
    events, trace = timeline(program, parameters), simulate(program, None, parameters)
    ends: dict[int, int] = {}
    for e in events:
        assert e.begin >= ends.get(int(e.item.queue), 0)
        ends[int(e.item.queue)] = e.begin + e.cycles
    assert max(ends.values()) == trace.cycles
    assert len([e for e in events if e.item.mnemonic == "gemm"]) == sum(
        n for n, i in zip(time(program, None, parameters).counts, program, strict=True) if i.mnemonic == "gemm"
    )
    levels = dict(trace.counters.levels)
    assert max(levels["dram_read"], levels["dram_written"]) <= trace.cycles * TINY.memory_bytes_per_cycle
    assert trace.counters.total_macs <= trace.cycles * TINY.rows * 32
    slices = [e for e in json.loads(perfetto_text(program, events))["traceEvents"] if e["ph"] == "X"]
    assert {s["args"]["op"] for s in slices} >= {e.name for e in trace.events} - {"layers", "end"}
    assert len(slices) == len(events)


def test_energy_of_a_run_comes_from_the_simulators_counters(decoder):
    from fabless.cli.execute import demo_chip
    from fabless.cli.run_cost import run_cost
    from fabless.compiler.pack import pack
    from fabless.fleet.session import Session
    from fabless.model.integer_reference import IntegerWeights
    from fabless.silicon.harden import harden
    from fabless.sim.dram import memory_model_of

    compiled, program, parameters = launched(decoder)
    memory = np.zeros(compiled.layouts[0].memory_bytes, np.uint8)
    pack(compiled.layouts[0], IntegerWeights.load(open_weights("tinyshakes")), memory[: compiled.layouts[0].image_bytes])
    session = Session(compiled, [memory])
    for _ in range(2):
        session.step(Shape(1, 1), [Segment([0], 0, (0, 1))])
    cost, chip = run_cost(session, demo_chip()), demo_chip()
    trace, silicon = simulate(program, None, parameters, memory_model_of(chip, DEMO)), harden(chip)
    assert cost.cycles == 2 * trace.cycles
    assert cost.energy_j == pytest.approx(
        2 * (silicon.energy.dynamic_j(trace.counters).mid + silicon.idle_w * trace.cycles / 1e9), rel=1e-12
    )


def test_a_prompt_in_chunks_is_the_sum_of_its_launches(decoder, capsys):
    from fabless.cli import run

    def said(*words):
        assert run(["simulate", "tinyshakes", "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    whole = said("--tokens", "64", "--chunk", "16")
    launches = [said("--tokens", "16", "--position", str(at)) for at in range(0, 64, 16)]
    assert whole["cycles"] <= sum(x["cycles"] for x in launches)  # logits are asked of the last alone
    assert whole["cycles"] == sum(op["cycles"] for op in whole["ops"])
    attention = [sum(op["macs"] for op in x["ops"] if op["name"] == "attention") for x in (whole, *launches)]
    assert attention[0] == sum(attention[1:])
    assert whole["estimated_cycles"] <= whole["cycles"]
    assert run(["simulate", "--tokens", "64", "--chunk", "16", "--perfetto", "t.json"]) == 2
    assert "shows one launch, 64 tokens in chunks of 16 are several; give --tokens 16" in capsys.readouterr().err


@pytest.mark.skipif(not find_spec("llama_cpp"), reason="a real checkpoint needs the extra 'models'")
@pytest.mark.parametrize("words", [("--tokens", "128", "--chunk", "32"), ("--batch", "8", "--position", "127")], ids=["prefill", "decode"])
def test_the_demo_tile_is_busy_at_85_percent_of_the_bound(words, capsys):
    """SmolLM2-135M behind the chip's own DRAM, 400 cycles away."""
    from fabless.cli import run

    assert run(["simulate", "smollm2-135m", "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["utilisation_ratio"] >= 0.85
