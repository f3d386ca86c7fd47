"""The compiler's own contracts: tilings, sizes, files, and every refusal with its message."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabless.compiler.driver import PASSES, Shape
from fabless.compiler.driver import compile as compile_model
from fabless.compiler.files import read_program, write_program
from fabless.compiler.launch import Segment
from fabless.compiler.tiles import choose, cycles
from fabless.core.errors import InfeasibleError, InputError, UnsupportedError
from fabless.model.random_weights import random_weights
from fabless.model.weights import open_weights
from fabless.program.tile import DEMO, TINY
from fabless.sim.cycles import simulate, time

INT8 = ("int8", "fp16")


@pytest.fixture(scope="module")
def decoder():
    return open_weights("tinyshakes").decoder


@pytest.mark.parametrize("words", [1, 2, 9, 36, 60, 61])
@pytest.mark.parametrize("blocks", [1, 18, 48])
@pytest.mark.parametrize("slot", [16, 100, 512])
@pytest.mark.parametrize(("formats", "per_block"), [(INT8, 1), (("e2m1_split", "e4m3_half"), 2)], ids=["blocks of 32", "blocks of 16"])
def test_the_chosen_tiling_is_the_fastest_of_all(words, blocks, slot, formats, per_block):
    """Brute force over n and every number of equal parts."""
    m = choose("m", words, blocks, DEMO, slot_words=slot, column_words=256, granule=1, exact=False, formats=formats)
    assert m.n * m.n_tiles >= words
    assert m.blocks == blocks
    assert max(m.depths) * m.n <= slot
    best = min(  # two passes of the vector unit over the last column overlap nothing, a piece costs two loads and their sync
        cycles(n, -(-words // n), (k * per_block,) * (blocks // k) + ((blocks % k * per_block,) if blocks % k else ()), 1)
        + 2 * n
        + 8 * -(-words // n) * -(-blocks // k)
        for n in range(1, min(256, slot // per_block, words) + 1)
        for k in range(1, min(blocks, slot // n // per_block) + 1)
    )
    assert cycles(m.n, m.n_tiles, m.depths, 1) + 2 * m.n + 8 * m.n_tiles * len(m.parts) == best
    bits = m.blocks * 32 * m.n_tiles * m.outputs * 8 // per_block + m.blocks * per_block * m.n_tiles * m.outputs * 16 // per_block
    assert bits / 8 <= m.bytes <= bits / 8 + 64 * m.n_tiles * len(m.parts)


@pytest.mark.parametrize("suffix", [".s", ".words"])
def test_program_files_round_trip(decoder, tmp_path, suffix):
    program = compile_model(decoder, TINY).program()
    write_program(tmp_path / f"p{suffix}", program)
    again = read_program(tmp_path / f"p{suffix}")
    assert again.digest == program.digest
    assert dict(again.labels) == dict(program.labels)


def test_a_damaged_program_file_is_refused(tmp_path):
    (tmp_path / "p.words").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(InputError, match=r"p\.words: not a program"):
        read_program(tmp_path / "p.words")


def test_compiling_is_deterministic(decoder):
    assert compile_model(decoder, DEMO).program().digest == compile_model(decoder, DEMO).program().digest


def test_one_program_serves_every_context(decoder):
    program = compile_model(decoder, TINY).program()
    assert program.parameter("kept_count").high == 2
    assert len(program) < TINY.instruction_words / 8


@pytest.mark.parametrize("skipped", PASSES)
def test_every_pass_earns_its_place(decoder, skipped):
    """Each pass saves cycles or instructions of a launch at the end of a context, and costs none of either."""
    tile = replace(DEMO, accumulator_words=2048)
    segment = Segment([0], 255, [0, 1])
    costs = []
    for skip in ((), (skipped,)):
        compiled = compile_model(decoder, tile, skip=skip)
        parameters = compiled.parameters(Shape(1, 1), [segment])
        trace = simulate(compiled.program(), None, parameters)
        costs.append((trace.cycles, time(compiled.program(), None, parameters).instructions, trace.counters.dram_bytes))
    (cycles, instructions, dram_bytes), without = costs
    assert cycles <= without[0]
    assert (cycles, instructions) < without[:2] or dram_bytes < without[2]


REFUSALS = [
    ("llama", {"format": "fp8_e4m3"}, UnsupportedError, "weights in fp8_e4m3 are not compiled; known: int8_block32"),
    ("llama", {"head_format": "bf16"}, UnsupportedError, "weights in bf16 are not compiled; known: int8_block32"),
    ("llama", {"partition": "pipline"}, InputError, "no partition 'pipline'; did you mean 'pipeline'"),
    (
        "llama",
        {"partition": "expert", "n_tiles": 2},
        UnsupportedError,
        "llama: has no experts to spread over tiles; use the partition tensor",
    ),
    (
        "llama",
        {"partition": "pipeline", "n_tiles": 3},
        InfeasibleError,
        "2 layers for 3 tiles leave tile 2 without any; use at most 2 tiles",
    ),
    (
        "mixtral",
        {"partition": "expert", "n_tiles": 5},
        InfeasibleError,
        "4 experts for 5 tiles leave tile 4 without any; use at most 4 tiles",
    ),
    ("llama", {"skip": ("fuze",)}, InputError, "no pass 'fuze'; did you mean 'fuse'"),
    ("llama", {"context_tokens": 10**6}, InputError, "a context of 1000000 tokens; the model has 1 to 128"),
    ("llama", {"tile": replace(DEMO, memory_bytes=1 << 16)}, InfeasibleError, "of memory .* it has .*; use more tiles, a shorter context"),
    (
        "llama",
        {"tile": replace(DEMO, accumulator_words=32)},
        InfeasibleError,
        "q, k and v of 1 rows need .* use more tiles for fewer heads each, or",
    ),
    ("llama", {"tile": replace(DEMO, vector_elements=1024)}, InfeasibleError, "vector buffer: '.*' needs .* the tile has 1,024"),
    ("llama", {"tile": replace(DEMO, activation_words=8)}, InfeasibleError, "activation buffer: '.*' needs .* the tile has 8"),
    ("llama", {"tile": replace(DEMO, instruction_words=64)}, InfeasibleError, "instructions, program memory holds 64"),
    ("llama", {"tile": replace(DEMO, parameter_words=8)}, InfeasibleError, "parameter words .* the tile has 8"),
    (
        "llama",
        {"tile": replace(DEMO, weight_words=17)},
        InfeasibleError,
        "takes 8 weight words, 2 of them and 2 of zeros leave no room for weights; .* of more than 18 words",
    ),
]


@pytest.mark.parametrize(("family", "options", "error", "message"), REFUSALS, ids=[r[3][:40] for r in REFUSALS])
def test_refusals_name_what_is_wrong(family, options, error, message):
    options = dict(options)
    with pytest.raises(error, match=message):
        compile_model(random_weights(family, seed=1).decoder, options.pop("tile", DEMO), **options)


def test_heads_that_straddle_tiles_are_refused(decoder):
    narrow = replace(decoder, n_heads=2, n_kv_heads=2, d_head=16)
    with pytest.raises(UnsupportedError, match=r"1 heads of 16 a tile do not fill blocks of 32; use 1 tile$"):
        compile_model(narrow, DEMO, n_tiles=2)


@pytest.mark.parametrize(("segments", "message"), [
    ([], "0 sequences for a program of 1"),
    ([Segment([1, 2], 0, [0])], "2 tokens of a sequence for a program of 1 at a time"),
    ([Segment([1], 256, [0, 1])], "tokens 256 to 257 of a sequence exceed the context of 256"),
    ([Segment([128], 0, [0])], "token ids must be 0 to 127, not 128 to 128"),
    ([Segment([1], 130, [0])], "131 tokens need 2 pages from 0 to 1, 1 were given"),
    ([Segment([1], 0, [2])], "1 tokens need 1 pages from 0 to 1"),
])  # fmt: skip
def test_launches_are_checked(decoder, segments, message):
    with pytest.raises(InputError, match=message):
        compile_model(decoder, DEMO).parameters(Shape(1, 1), segments)


def test_a_smollm_program_is_small_and_quick_to_compile():
    """SmolLM2's shapes, without its weights: 30 layers are one loop."""
    shape = {
        "n_layers": 30,
        "d_model": 576,
        "d_ff": 1536,
        "n_heads": 9,
        "n_kv_heads": 3,
        "d_head": 64,
        "n_vocab": 49152,
        "context_tokens": 8192,
    }
    base = open_weights("tinyshakes").decoder
    d = replace(base, **shape, windows=(0,) * 30, ropes=base.ropes[:1] * 30, attention_scale=0.125)
    compiled = compile_model(d, DEMO, context_tokens=2048)
    assert compiled.program().words.nbytes < 10_000
    launch = time(compiled.program(), None, compiled.parameters(Shape(1, 1), [Segment([0], 0, range(16))]))
    assert dict(launch.busy())["load"] > 0.95 * launch.cycles  # the memory port is the bound, and it is kept busy
