"""The compiled program against the integer reference: exact bits, for every family, tile, shape of launch, ring and pass left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fabless.compiler.driver import PASSES, Compiled, Shape
from fabless.compiler.driver import compile as compile_model
from fabless.compiler.launch import Segment
from fabless.compiler.pack import pack
from fabless.core.errors import IllegalProgramError, InfeasibleError, InputError
from fabless.fleet.session import Session
from fabless.model.integer_reference import IntegerReference, IntegerWeights
from fabless.model.random_weights import random_arrays, random_decoder, random_weights, weights_of
from fabless.model.weights import open_weights
from fabless.number.formats import INT4_BLOCK32, INT8_BLOCK32, MXFP4, MXINT8, NVFP4, format_named
from fabless.program.isa import BY_MNEMONIC, OPCODE_BITS
from fabless.program.tile import DEMO, DIE, TINY, Tile
from fabless.program.verify import verify
from fabless.sim.machine import execute

R32 = Tile(32, 8, 256, 1024, 512, 16384, 8192, 4096, 1 << 28, 32)
WIDE = Tile(64, 64, 1024, 2048, 2048, 65536, 16384, 8192, 1 << 30, 64)
LEAST = replace(TINY, weight_words=256, memory_bytes=1 << 22)  # pieces of k, several columns of every matrix


def session(weights: IntegerWeights, tile: Tile, shapes: list[Shape], **options) -> Session:
    d = weights.decoder
    compiled = compile_model(d, tile, shapes, context_tokens=min(256, d.context_tokens), n_pages=10, **options)
    memories = []
    for layout in compiled.layouts:
        memory = np.zeros(layout.memory_bytes, np.uint8)
        pack(layout, weights, memory[: layout.image_bytes])
        memories.append(memory)
    return Session(compiled, memories)


def bits(x: np.ndarray) -> bytes:
    return np.ascontiguousarray(x, np.float32).tobytes()


def held_to_reference(s: Session, weights: IntegerWeights, shape: Shape, n_more: int = 2) -> None:
    """Prefill every segment of a shape with its own random prompt, then decode some tokens of each: all logits equal the reference's bits."""
    d, rng = weights.decoder, np.random.default_rng(7)
    reference = IntegerReference(weights)
    texts = [rng.integers(0, d.n_vocab, shape.tokens + n_more).tolist() for _ in range(shape.segments)]
    pages = [[2 * i, 2 * i + 1] for i in range(shape.segments)]
    logits = s.step(shape, [Segment(t[: shape.tokens], 0, p) for t, p in zip(texts, pages, strict=True)]).copy()
    for text, own, first in zip(texts, pages, logits, strict=True):
        want = reference.forward(text)
        assert bits(first) == bits(want[shape.tokens - 1])
        for at in range(shape.tokens, len(text)):
            assert bits(s.step(Shape(1, 1), [Segment([text[at]], at, own)])[0]) == bits(want[at])


@pytest.fixture(scope="module")
def tinyshakes() -> IntegerWeights:
    return IntegerWeights.load(open_weights("tinyshakes"))


@pytest.mark.parametrize("family", ["llama", "llama31", "mistral", "qwen2", "qwen3", "gemma3", "mixtral", "qwen3_moe", "gpt_oss"])
def test_every_family_equals_the_integer_reference(family):
    weights = IntegerWeights.load(random_weights(family, seed=1))
    shape = Shape(2, 11)  # longer than the windows of 8
    held_to_reference(session(weights, DEMO, [Shape(1, 1), shape]), weights, shape)


@pytest.mark.parametrize(("tile", "shape"), [
    (TINY, Shape(1, 2)), (LEAST, Shape(1, 1)), (R32, Shape(2, 3)), (DEMO, Shape(1, 16)), (DEMO, Shape(5, 1)), (WIDE, Shape(2, 3)), (DIE, Shape(3, 1)),
])  # fmt: skip
def test_every_tile_and_shape_equals_the_integer_reference(tinyshakes, tile, shape):
    held_to_reference(session(tinyshakes, tile, [Shape(1, 1), shape]), tinyshakes, shape)


@pytest.mark.parametrize("family", ["tinyshakes", "gemma3"])
def test_layer_by_layer_equals_the_integer_reference(tinyshakes, family):
    """Cut the model off behind every layer: final norm and head read out the residual stream there."""
    weights = tinyshakes if family == "tinyshakes" else IntegerWeights.load(random_weights(family, seed=4))
    d = weights.decoder
    for n in range(1, d.n_layers + 1):
        cut = replace(d, n_layers=n, windows=d.windows[:n], ropes=d.ropes[:n])
        held_to_reference(
            session(replace(weights, decoder=cut), DEMO, [Shape(1, 1), Shape(1, 9)]), replace(weights, decoder=cut), Shape(1, 9)
        )


@pytest.mark.parametrize("n_tiles", [2, 4])
@pytest.mark.parametrize("family", ["tinyshakes", "gemma3", "llama31", "gpt_oss"])
def test_rings_equal_the_integer_reference(tinyshakes, family, n_tiles):
    weights = tinyshakes if family == "tinyshakes" else IntegerWeights.load(random_weights(family, seed=1))
    held_to_reference(session(weights, DEMO, [Shape(1, 1), Shape(1, 9)], n_tiles=n_tiles), weights, Shape(1, 9))


@pytest.mark.parametrize("format", ["int8_block32", "nvfp4"])
@pytest.mark.parametrize(("family", "partition", "n_tiles"), [
    ("tinyshakes", "pipeline", 4), ("gemma3", "pipeline", 2), ("gpt_oss", "pipeline", 2), ("qwen3_moe", "pipeline", 2),
    ("gpt_oss", "expert", 1), ("gpt_oss", "expert", 3), ("gpt_oss", "expert", 4), ("mixtral", "expert", 2), ("qwen3_moe", "expert", 4),
])  # fmt: skip
def test_pipelines_and_spread_experts_equal_the_integer_reference(family, partition, n_tiles, format):
    """All programs of the ring are legal, too."""
    loaded = open_weights("tinyshakes") if family == "tinyshakes" else random_weights(family, seed=6)
    weights = IntegerWeights.load(loaded, format_named(format))
    s = session(weights, DEMO, [Shape(1, 1), Shape(2, 5)], n_tiles=n_tiles, partition=partition, format=format)
    held_to_reference(s, weights, Shape(2, 5))
    for program in s.compiled.programs[Shape(1, 1)]:
        verify(program)


def test_a_model_beyond_one_tiles_memory_runs_on_a_pipeline_of_four(tinyshakes):
    whole = session(tinyshakes, DEMO, [Shape(1, 1)]).compiled.layouts[0].memory_bytes
    small = replace(DEMO, memory_bytes=whole * 9 // 20 // 256 * 256)
    with pytest.raises(InfeasibleError, match=r"tinyshakes: tile 0 of 1 needs .* of memory .* use more tiles"):
        session(tinyshakes, small, [Shape(1, 1)])
    with pytest.raises(InfeasibleError, match=r"tinyshakes: tile 0 of 2 \(layers 0 to 1\) needs"):
        session(tinyshakes, small, [Shape(1, 1)], n_tiles=2, partition="pipeline")
    s = session(tinyshakes, small, [Shape(1, 1), Shape(1, 8)], n_tiles=4, partition="pipeline")
    assert max(x.memory_bytes for x in s.compiled.layouts) <= small.memory_bytes
    held_to_reference(s, tinyshakes, Shape(1, 8))


def test_spreading_experts_divides_their_memory():
    decoder = random_weights("qwen3_moe", seed=1).decoder
    one, two = (compile_model(decoder, DEMO, n_tiles=n, partition="expert").layouts for n in (1, 2))
    sizes = [x.layer_bytes - x.experts_at for x in (*one, *two)]
    assert sizes == [sizes[0], sizes[0] // 2, sizes[0] // 2]
    assert [tuple(x.part.experts) for x in two] == [(0, 1, 2), (3, 4, 5)]


#: Untied and tied token tables, biases and experts, norms behind the residual's product, sinks.
FORMAT_FAMILIES = ("llama", "gemma3", "qwen2", "qwen3_moe", "gpt_oss")


@pytest.mark.parametrize("head", [None, INT8_BLOCK32], ids=["whole", "head8"])
@pytest.mark.parametrize("format", [INT4_BLOCK32, MXINT8, MXFP4, NVFP4], ids=lambda f: f.name)
@pytest.mark.parametrize("family", FORMAT_FAMILIES)
def test_block_formats_equal_the_integer_reference(family, format, head):
    weights = IntegerWeights.load(random_weights(family, seed=3), format, head)
    options = {"format": format.name, "head_format": head and head.name}
    held_to_reference(session(weights, DEMO, [Shape(1, 1), Shape(2, 4)], **options), weights, Shape(2, 4))


@pytest.mark.parametrize("tile", [LEAST, WIDE], ids=["4 rows", "64 lanes"])
@pytest.mark.parametrize("format", [MXINT8, MXFP4, NVFP4], ids=lambda f: f.name)
def test_block_formats_of_shared_and_wide_token_tables(format, tile):
    """The embedded model's head is its token table; 64 lanes read rows whole, in binary32."""
    weights = IntegerWeights.load(open_weights("tinyshakes"), format)
    held_to_reference(session(weights, tile, [Shape(1, 1)], format=format.name), weights, Shape(1, 1))


def test_scales_too_small_for_fp16_reach_the_token_table():
    """MX scales are powers of two down to 2^-126: a token row may have one that no fp16 holds."""
    decoder = random_decoder("llama")
    arrays = random_arrays(decoder, seed=3)
    arrays["embedding"] *= np.float32(2.0**-30)
    weights = IntegerWeights.load(weights_of(decoder, arrays), MXFP4)
    assert 0 < weights.matrices["embedding"].scales.max() < 2.0**-25
    held_to_reference(session(weights, DEMO, [Shape(1, 1)], format="mxfp4"), weights, Shape(1, 1))


def test_weights_of_another_format_are_refused():
    weights = IntegerWeights.load(random_weights("llama", seed=3), NVFP4, INT8_BLOCK32)
    with pytest.raises(
        InputError, match="token table: weights are int8_block32, the program expects nvfp4; load the weights in that format"
    ):
        session(weights, DEMO, [Shape(1, 1)], format="nvfp4")


@pytest.mark.parametrize("skipped", [*((name,) for name in PASSES), tuple(PASSES)], ids=",".join)
@pytest.mark.parametrize("family", ["gemma3", "gpt_oss"])
def test_a_pass_left_out_changes_no_bit(family, skipped):
    weights = IntegerWeights.load(random_weights(family, seed=2))
    held_to_reference(session(weights, DEMO, [Shape(1, 1), Shape(1, 9)], skip=skipped), weights, Shape(1, 9))


@pytest.mark.parametrize("format", ["int8_block32", "nvfp4"])
@pytest.mark.parametrize("family", ["tinyshakes", "llama31", "gemma3", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize(("shape", "n_tiles"), [(Shape(1, 1), 1), (Shape(2, 3), 1), (Shape(1, 2), 2)], ids=str)
def test_programs_are_legal_for_all_parameters(family, shape, n_tiles, format):
    decoder = open_weights("tinyshakes").decoder if family == "tinyshakes" else random_weights(family, seed=1).decoder
    compiled = compile_model(decoder, DEMO, [shape], context_tokens=128, n_pages=2, n_tiles=n_tiles, format=format)
    for program in compiled.programs[shape]:
        verify(program)


def test_the_readable_machine_leaves_the_same_state(tinyshakes):
    s = session(tinyshakes, TINY, [Shape(1, 1)])
    program, other = s.compiled.program(), s.memories[0].copy()
    parameters = s.compiled.parameters(Shape(1, 1), [Segment([5], 0, [0, 1])])
    slow, fast = (execute(program, m, parameters=parameters, fast=f) for m, f in ((s.memories[0], False), (other, True)))
    assert slow.digest() == fast.digest()


def test_a_context_beyond_one_page_is_exact(tinyshakes):
    s = session(tinyshakes, DEMO, [Shape(1, 1), Shape(1, 32)])
    text = np.random.default_rng(3).integers(0, 128, 161).tolist()
    want = IntegerReference(tinyshakes).forward(text)
    for at in range(0, 160, 32):
        logits = s.step(Shape(1, 32), [Segment(text[at : at + 32], at, [3, 6])])
        assert bits(logits[0]) == bits(want[at + 31])
    assert bits(s.step(Shape(1, 1), [Segment([text[160]], 160, [3, 6])])[0]) == bits(want[160])


def test_a_flipped_bit_is_refused_or_changes_the_state(tinyshakes):
    """Flip every bit of a product's opcode, sizes, addresses and flags: the decoder or `verify` objects, or the state differs.

    Strides mean nothing for one row, and two registers may hold the same number: those fields are left out.
    """
    s = session(tinyshakes, TINY, [Shape(1, 1)])
    program = s.compiled.program()
    parameters = s.compiled.parameters(Shape(1, 1), [Segment([5], 3, [0, 1])])
    clean = execute(program, s.memories[0].copy(), parameters=parameters, fast=True).digest()
    index = next(i for i, item in enumerate(program) if item.mnemonic == "gemm" and item["k"] > 1)
    fields = [f for f in BY_MNEMONIC["gemm"].fields if not f.name.endswith(("_stride", "_reg"))]
    for bit in [*range(OPCODE_BITS), *(f.lsb + i for f in fields for i in range(f.bits))]:
        words = program.words.copy()
        words[index, bit // 64] ^= np.uint64(1 << bit % 64)
        broken = replace(program, words=words)
        try:
            verify(broken)
            assert execute(broken, s.memories[0].copy(), parameters=parameters, fast=True).digest() != clean, bit
        except IllegalProgramError:
            continue


def test_the_decoder_of_compiled_and_weights_must_agree(tinyshakes):
    compiled: Compiled = compile_model(random_weights("llama", seed=1).decoder, DEMO)
    with pytest.raises(InputError, match="weights of tinyshakes cannot be packed for a program of"):
        pack(compiled.layouts[0], tinyshakes)


@pytest.mark.parametrize("family", ["tinyshakes", "qwen3_moe"])
def test_addresses_beyond_their_field_go_through_a_register(tinyshakes, family, monkeypatch):
    """Memories above 4 GiB, in small: the field's limit is lowered, and nearly every address is beyond it."""
    from fabless.compiler import emitter

    weights = tinyshakes if family == "tinyshakes" else IntegerWeights.load(random_weights(family, seed=5))
    monkeypatch.setattr(emitter, "_ADDRESS_LIMIT", 100)
    s = session(weights, DEMO, [Shape(1, 1), Shape(2, 3)])
    assert all(i["address"] <= 100 for i in s.compiled.program() if i.mnemonic in {"load", "store"})
    verify(s.compiled.program())
    held_to_reference(s, weights, Shape(2, 3))
