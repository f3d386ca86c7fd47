"""The command line: what each command says to people and to programs, and how it refuses."""

import json
import re
import struct
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from fabless.cli import run

ROOT = Path(__file__).parents[2]
COMMANDS = ("design", "compare", "estimate", "models", "chips", "show", "schema")
# A space of a few chips: the same path as a full study in a second.
SMALL = """
[study]
name = "small"
title = "A small study"

[[models]]
name = "qwen3-8b"
recipes = ["int8"]

[traffic]
requests_per_s = 500_000
peak_ratio = 2.0
input = { p50 = 400, p90 = 1500, p99 = 4000 }
output = { p50 = 120, p90 = 350, p99 = 800 }

[slo]
ttft_s = "3 s"
tpot_s = "60 ms"

[space]
process = ["7nm", "5nm"]
clock_hz = "1 GHz"
cores = [8, 16]
rows = 64
formats = [["int8", "bf16/8"]]
scratchpad_bytes = "1 MiB"
vector_lanes = 32
memory = { standard = "lpddr5x", stacks = [2, 4] }

[plans]
batch = [1, 4, 8]

[compare]
chips = ["nvidia_l4", "nvidia_h100_sxm"]
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def told(capsys):
    """Run a command and return what it printed."""

    def tell(*arguments):
        assert run([str(a) for a in arguments]) == 0
        return capsys.readouterr().out

    return tell


@pytest.fixture
def refused(capsys):
    """Run a command that must fail with exit code 2 and one message on standard error; return the message."""

    def refuse(*arguments):
        assert run([str(a) for a in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("fabless: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return err.removeprefix("fabless: ").rstrip()

    return refuse


# What commands say


def test_help_names_every_command(told):
    text = told("--help")
    for command in COMMANDS:
        assert re.search(rf"│ {command} +\w", text), "a command without a line that says what it does"
        assert told(command, "--help").startswith("Usage: fabless " + command)


def test_help_describes_every_option(told):
    for command in COMMANDS[:-1]:
        options = [line for line in told(command, "--help").splitlines() if re.match(r"│[* ]+([A-Z]+ )?--", line)]
        assert len(options) >= 1
        for line in options:
            assert re.match(r"│[* ]+([A-Z]+ )?--[a-z-]+( [A-Z]+)? +[a-z]", line), f"{command} does not describe {line}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell):
    from fabless.cli import app

    script = app.generate_completion(shell=shell)
    assert all(command in script for command in COMMANDS)


def test_version(told):
    assert told("--version").strip() == "0.1.0"


def test_estimate_says_speed_memory_and_where_time_goes(told):
    text = told("estimate", "llama-3.1-8b", "--chip", "h100", "--batch", 32, "--context", 1024, "--tp", 1)
    first, decode, prefill, memory, goes = text.splitlines()[:5]
    assert first == "llama-3.1-8b in bf16 on 1 × NVIDIA H100 SXM (tp1), roofline fidelity"
    assert decode.startswith("decode ")
    assert "tokens/s for each of 32" in decode
    assert prefill.startswith("prefill ")
    assert "for 1024 tokens" in prefill
    assert memory.startswith("memory ")
    assert goes.startswith("decode time goes to  memory ")


def test_estimate_as_json_agrees_with_the_library(told):
    from fabless.chip.catalogue import load_chip
    from fabless.mapping.plan import Plan
    from fabless.model.load import load
    from fabless.model.lower import lower
    from fabless.model.step import Recipe, Step
    from fabless.sim.roofline import estimate

    found = json.loads(
        told("estimate", "qwen3-8b", "--chip", "a100", "--batch", 8, "--context", 500, "--tp", 2, "--recipe", "fp16", "--json")
    )
    trace = estimate(lower(load("qwen3-8b"), Recipe.named("fp16"), Step.decode(8, 500)), load_chip("a100"), Plan(2))
    assert found["decode"]["latency_s"] == trace.latency_s
    assert found["decode"]["dram_bytes"] == trace.counters.dram_bytes
    assert found["plan"] == "tp2"
    assert "ops" not in found["decode"]


def test_estimate_lists_ops_that_add_up(told):
    found = json.loads(told("estimate", "smollm2-135m", "--chip", "l4", "--ops", "--json"))
    for step in ("decode", "prefill"):
        assert len(found[step]["ops"]) > 5
    text = told("estimate", "smollm2-135m", "--chip", "l4", "--ops")
    shares = [line for line in text.splitlines() if "%" in line and "memory" in line]
    assert len(shares) > 5


def test_assumptions_of_a_chip_are_listed_when_it_is_used(told):
    text = told("estimate", "llama-3.1-8b", "--chip", "jalapeno", "--recipe", "fp8")
    assert text.count("\nassumed: ") >= 3
    assert len(json.loads(told("estimate", "llama-3.1-8b", "--chip", "jalapeno", "--recipe", "fp8", "--json"))["assumptions"]) >= 3


def test_models_are_listed(told):
    names = [line.split()[0] for line in told("models").splitlines()[2:]]
    rows = json.loads(told("models", "--json"))
    assert [row["name"] for row in rows] == names
    assert len(names) >= 25
    assert all(0 < row["active_params"] <= row["n_params"] for row in rows)


def test_chips_are_listed(told):
    rows = json.loads(told("chips", "--json"))
    lines = told("chips").splitlines()[2:]
    assert len(rows) == len(lines) >= 20
    for row, line in zip(rows, lines, strict=True):
        assert line.startswith(row["name"])


def test_show_gives_every_figure_its_source_and_grade(told):
    text = told("show", "h100")
    assert "dram_bytes_per_s" in text
    assert "vendor document" in text
    found = json.loads(told("show", "h100", "--json"))
    assert set(found) == {"chip", "facts", "silicon"}
    assert all(fact["source"]["title"] and fact["grade"] for fact in found["facts"])
    assert f"{sum(b['area_mm2'] for b in found['silicon']['blocks']):.0f} mm²" in text


def test_show_reads_models_and_files(told, tmp_path):
    assert "8,030,261,248" in told("show", "llama-3.1-8b")
    found = json.loads(told("show", "llama-3.1-8b", "--json"))
    assert found["n_params"] == 8_030_261_248
    assert found["n_layers"] == 32
    assert found["model"]["d_model"] == 4096
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    assert json.loads(told("show", config, "--json"))["n_layers"] == 2
    assert json.loads(told("show", tmp_path, "--json"))["n_layers"] == 2


def test_schema_accepts_the_examples_keys(told):
    schema = json.loads(told("schema"))
    assert schema["$schema"].startswith("https://json-schema.org/")
    for example in ("chat", "edge", "frontier"):
        content = tomllib.loads((ROOT / f"examples/{example}.toml").read_text("utf-8"))
        assert set(content) <= set(schema["properties"])


def test_design_answers_and_writes_everything(told, study, tmp_path):
    out = tmp_path / "answer"
    text = told("design", study, "--out", out, "--quiet")
    assert text.startswith("The best chip to build is ")
    for term in ("process", "die", "yield", "power", "packaged chip", "NRE", "this design"):
        assert f"\n{term}" in text
    written = {p.name for p in out.iterdir() if p.is_file()}
    assert {"report.html", "frontier.parquet", "chip.toml", "bill.csv", "study.lock"} <= written
    assert f"fabless design {study}" in (out / "report.html").read_text("utf-8")
    assert told("show", out / "chip.toml").splitlines()[1].startswith("process")
    assert told("estimate", "qwen3-8b", "--chip", out / "chip.toml", "--recipe", "int8", "--batch", 4).count("\n") >= 4
    again = json.loads(told("design", study, "--out", out, "--json"))
    assert again["headline"] == text.splitlines()[0]
    assert again["own"]["how"] == "build"
    assert again["counts"]["points"] == 2 * 2 * 2 * 3
    assert {o["how"] for o in again["comparison"]} <= {"rent", "buy", "maker"}


def test_design_on_two_processes_writes_the_same_bytes(told, study, tmp_path):
    told("design", study, "--out", tmp_path / "a", "--quiet")
    told("design", study, "--out", tmp_path / "b", "--processes", 2, "--quiet")
    for name in ("frontier.parquet", "chip.toml", "bill.csv", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_compare_orders_by_cost(told, study, tmp_path):
    text = told("compare", study, "--out", tmp_path / "o", "--quiet")
    assert "this design" in text
    rows = json.loads(told("compare", study, "--out", tmp_path / "o", "--json"))
    assert rows[0]["how"] == "build"
    serving = sorted((r for r in rows if not r["reason"] and r["usd_per_mtok"]), key=lambda r: r["usd_per_mtok"]["mid"])
    lines = text.splitlines()[2 : 2 + len(serving)]
    for row, line in zip(serving, lines, strict=True):
        assert line.startswith("this design" if row["how"] == "build" else row["chip"])


def test_progress_goes_to_standard_error(capsys, study, tmp_path):
    assert run(["design", str(study), "--out", str(tmp_path / "o"), "--json"]) == 0
    out, err = capsys.readouterr()
    json.loads(out)
    assert err == ""


# How commands refuse


def test_unknown_options_and_commands_name_the_nearest(refused):
    assert refused("estimate", "llama-3.1-8b", "--batchs", 3).startswith("Unknown option: --batchs. Did you mean --batch?")
    assert refused("estimat", "x").startswith('Unknown command "estimat". Did you mean "estimate"?')
    assert 'unable to convert "x" into int' in refused("estimate", "llama-3.1-8b", "--batch", "x")


def test_unknown_names_are_answered_with_the_nearest(refused):
    assert refused("estimate", "llama-3.1-9b").startswith("no model 'llama-3.1-9b'; did you mean 'llama-3.1-8b'?")
    assert refused("estimate", "llama-3.1-8b", "--chip", "h1000").startswith("unknown chip 'h1000'; did you mean 'H100'?")
    assert refused("estimate", "llama-3.1-8b", "--recipe", "fp9").startswith("unknown number format 'fp9'; did you mean 'fp8'?")
    assert (
        refused("show", "h10") == "no model, chip or file is called 'h10'; did you mean 'H100'?; see 'fabless models' and 'fabless chips'"
    )


@pytest.mark.parametrize("option", ["--batch", "--context", "--prompt", "--tp", "--pp", "--ep", "--dp"])
def test_counts_are_at_least_one(refused, option):
    assert refused("estimate", "llama-3.1-8b", option, 0) == f"{option} must be at least 1, not 0"


def test_a_model_that_fits_no_plan_says_what_is_missing_and_what_fits(refused):
    message = refused("estimate", "deepseek-r1", "--chip", "h100")
    assert "are missing" in message
    assert "bytes" in message
    assert message.endswith("tensor parallelism 16 fits")


def test_a_typo_in_a_key_names_the_nearest(refused, study):
    study.write_text(SMALL.replace("requests_per_s", "requets_per_s"))
    assert f"{study}: [traffic] has no key 'requets_per_s'; did you mean 'requests_per_s'?" in refused("design", study)


def test_a_unit_of_the_wrong_dimension_is_named(refused, study):
    study.write_text(SMALL.replace('"3 s"', '"3 W"'))
    assert refused("design", study).startswith(f"{study}: slo.ttft_s: '3 W' has dimension")


def test_an_unknown_model_or_chip_in_a_study_is_named(refused, study, tmp_path):
    study.write_text(SMALL.replace("qwen3-8b", "qwen3-8bb"))
    assert "qwen3-8b'" in refused("design", study, "--out", tmp_path / "o", "--quiet")
    study.write_text(SMALL.replace("nvidia_l4", "nvidia_l5"))
    assert "nvidia_l" in refused("design", study, "--out", tmp_path / "o", "--quiet")


def test_a_model_too_large_for_every_plan_of_a_study(refused, study, tmp_path):
    study.write_text(SMALL.replace("qwen3-8b", "llama-3.1-405b"))
    message = refused("design", study, "--out", tmp_path / "o", "--quiet")
    assert "study 'small': none of 24 points meets every limit" in message
    assert "memory" in message


def test_targets_that_nothing_meets_show_the_nearest_miss(refused, study, tmp_path):
    study.write_text(SMALL.replace('"60 ms"', '"1 us"'))
    message = refused("design", study, "--out", tmp_path / "o", "--quiet")
    assert "none of 24 points meets every limit. Nearest miss: " in message
    assert "times the limit of 1 µs" in message
    assert not (tmp_path / "o" / "report.html").exists()


def test_studies_that_are_not_there_or_not_toml(refused, tmp_path):
    assert refused("design", tmp_path / "none.toml") == f"{tmp_path / 'none.toml'}: cannot read the study (No such file or directory)"
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    assert refused("design", tmp_path / "bad.toml").startswith(f"{tmp_path / 'bad.toml'}: not a TOML file (")
    assert "cannot read the study (Is a directory)" in refused("design", tmp_path)


def test_a_place_that_takes_no_files_is_refused_before_the_search(refused, study, tmp_path, monkeypatch):
    from fabless.explore import search

    monkeypatch.setattr(search, "design", lambda *_, **__: pytest.fail("searched although the answer has no place"))
    (tmp_path / "file").write_text("x")
    message = refused("design", study, "--out", tmp_path / "file" / "below", "--quiet")
    assert message == f"{tmp_path / 'file' / 'below'}: cannot write there (Not a directory); choose another place with --out"
    assert "cannot write there (File exists)" in refused("design", study, "--out", tmp_path / "file", "--quiet")
    if sys.platform == "linux":
        assert "cannot write there" in refused("design", study, "--out", "/proc/fabless", "--quiet")


def test_a_full_disk_leaves_no_half_written_file(refused, study, tmp_path, monkeypatch):
    import os

    real = os.fsync

    def full(handle):
        if Path(f"/proc/self/fd/{handle}").readlink().name.startswith(".report.html."):
            raise OSError(28, "No space left on device")
        real(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("finds a file by its handle in /proc")
    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "o"
    message = refused("design", study, "--out", out, "--quiet")
    assert message == f"{out / 'report.html'}: cannot write (No space left on device); free space, or choose another place with --out"
    assert not (out / "report.html").exists()
    assert [p.name for p in out.iterdir() if p.name.endswith(".part")] == []


def test_numbers_of_processes_and_addresses_of_schedulers(refused, study, tmp_path):
    place = ("--out", tmp_path / "o", "--quiet")
    assert refused("design", study, "--processes", 0, *place) == "--processes must be at least 1, not 0"
    assert refused("design", study, "--processes", -2, *place) == "--processes must be at least 1, not -2"
    assert 'unable to convert "many" into int' in refused("design", study, "--processes", "many", *place)
    pytest.importorskip("distributed", reason="the cluster library is an extra")
    message = refused("design", study, "--dask", "nowhere", *place)
    assert message.startswith("--dask nowhere: no scheduler answers there (")
    assert message.endswith("start one with 'dask scheduler' and give its tcp:// address")


LLAMA = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 40, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip


def test_an_unknown_architecture_is_named_with_the_known_ones(refused, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"model_type": "frobnicator"}))
    message = refused("estimate", tmp_path)
    assert "frobnicator" in message
    assert "llama" in message
    assert "qwen3" in message


def test_a_config_that_is_not_json_or_lacks_a_field(refused, tmp_path):
    config = tmp_path / "config.json"
    config.write_text("{")
    assert str(config) in refused("estimate", config)
    config.write_text(json.dumps({k: v for k, v in LLAMA.items() if k != "hidden_size"}))
    assert "hidden_size" in refused("estimate", config)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x01\x02", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 1000) + b'{"a": ', struct.pack("<Q", 2) + b"[]"],
    ids=["empty", "half a length", "lying length", "cut header", "not a table"],
)
def test_damaged_safetensors_are_refused_without_reading_what_they_promise(refused, tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert "model.safetensors" in refused("show", path)


def test_a_truncated_gguf_is_refused(refused, tmp_path):
    import gguf

    whole = tmp_path / "whole.gguf"
    writer = gguf.GGUFWriter(whole, "llama")
    writer.add_block_count(2)
    writer.add_tensor("token_embd.weight", np.zeros((40, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in (0, 3, 10, 30, len(content) // 2):
        path.write_bytes(content[:length])
        assert "cut.gguf" in refused("show", path), length


def test_an_interrupt_leaves_with_its_own_code(capsys, study, monkeypatch):
    from fabless.cli import work

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "answered", interrupted)
    assert run(["design", str(study)]) == 130
    assert capsys.readouterr().err == "fabless: interrupted; finished work is kept and will not be computed again\n"
