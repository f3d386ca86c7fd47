"""Tokens and logits are the same bits whatever the tile sizes, the ring and what its tiles share, the batch and the chunks, in every kind of format."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fabless.compiler.driver import Shape
from fabless.compiler.driver import compile as compile_model
from fabless.compiler.launch import Segment
from fabless.compiler.pack import pack
from fabless.fleet.session import Session
from fabless.model.integer_reference import IntegerReference, IntegerWeights
from fabless.model.random_weights import random_weights
from fabless.model.weights import open_weights
from fabless.number.formats import INT8_BLOCK32, format_named
from fabless.program.tile import DEMO, TINY, Tile

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak."
TILES = {
    "4 rows": TINY,
    "16 rows": DEMO,
    "16 rows, least buffers": Tile(16, 8, 80, 512, 512, 16384, 4096, 4096, 1 << 24, 32),
    "32 rows": Tile(32, 16, 256, 1024, 512, 16384, 8192, 4096, 1 << 26, 64),
    "128 rows": Tile(128, 64, 256, 2048, 512, 32768, 8192, 4096, 1 << 26, 256),
}


@pytest.fixture(scope="module", params=["int8_block32", "nvfp4", "mxfp4 with an int8 head"])
def weights(request) -> IntegerWeights:
    format, _, head = request.param.partition(" with ")
    return IntegerWeights.load(open_weights("tinyshakes"), format_named(format), INT8_BLOCK32 if head else None)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    from fabless.model.tokenizer import open_tokenizer

    return open_tokenizer(open_weights("tinyshakes")).encode(TEXT)


@pytest.fixture(scope="module")
def truth(weights, ids) -> np.ndarray:
    return IntegerReference(weights).forward(ids)


def opened(weights: IntegerWeights, tile: Tile, shapes: list[Shape], n_tiles: int = 1, partition: str = "tensor") -> Session:
    formats = {"format": weights.matrices["layers.0.q"].format.name, "head_format": weights.matrices["embedding"].format.name}
    compiled = compile_model(weights.decoder, tile, shapes, context_tokens=128, n_pages=16, n_tiles=n_tiles, partition=partition, **formats)
    memories = []
    for layout in compiled.layouts:
        memory = np.zeros(layout.memory_bytes, np.uint8)
        pack(layout, weights, memory[: layout.image_bytes])
        memories.append(memory)
    return Session(compiled, memories)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


@pytest.mark.parametrize(("tile", "n_tiles"), [
    (tile, n) for tile, n in itertools.product(TILES, (1, 2, 4)) if tile != "128 rows" or n == 1
], ids=str)  # fmt: skip
def test_tile_sizes_and_rings_change_no_bit(weights, ids, truth, tile, n_tiles):
    s = opened(weights, TILES[tile], [Shape(1, 1)], n_tiles)
    for at, token in enumerate(ids[:24]):
        assert same(s.step(Shape(1, 1), [Segment([token], at, [5])])[0], truth[at])


@pytest.mark.parametrize("n_tiles", [2, 3, 4])
@pytest.mark.parametrize("tile", TILES)
def test_pipelines_change_no_bit(weights, ids, truth, tile, n_tiles):
    s = opened(weights, TILES[tile], [Shape(1, 1)], n_tiles, "pipeline")
    for at, token in enumerate(ids[:16]):
        assert same(s.step(Shape(1, 1), [Segment([token], at, [5])])[0], truth[at])


@pytest.mark.parametrize(
    ("partition", "n_tiles"), [("tensor", 1), ("tensor", 2), ("pipeline", 2), ("expert", 2), ("expert", 3), ("expert", 4)]
)
@pytest.mark.parametrize("tile", ["16 rows", "32 rows"])
def test_mixtures_of_experts_however_they_are_shared(tile, partition, n_tiles):
    """Chunks, then a batch of two on one ring: all the bits of one tile alone, whatever is spread."""
    mixture = IntegerWeights.load(random_weights("mixtral", seed=2))
    rng = np.random.default_rng(5)
    a, b = (rng.integers(0, mixture.decoder.n_vocab, 14).tolist() for _ in range(2))
    want = [IntegerReference(mixture).forward(x) for x in (a, b)]
    s = opened(mixture, TILES[tile], [Shape(1, 5), Shape(2, 4)], n_tiles, partition)
    for text, logits, page in ((a, want[0], 1), (b, want[1], 2)):
        for at in (0, 5):
            assert same(s.step(Shape(1, 5), [Segment(text[at : at + 5], at, [page])])[0], logits[at + 4])
    together = s.step(Shape(2, 4), [Segment(a[10:], 10, [1]), Segment(b[10:], 10, [2])])
    assert all(same(together[i], want[i][13]) for i in range(2))


@pytest.mark.parametrize("cut", [(32, 29), (7, 16, 1, 3), (16, 16, 16, 13), (1, 32, 28)], ids=str)
def test_chunks_change_no_bit(weights, ids, truth, cut):
    s = opened(weights, DEMO, [Shape(1, 1), Shape(1, 4), Shape(1, 16), Shape(1, 32)])
    at = 0
    for n in cut:
        chunk = ids[at : at + n]
        if not chunk:
            break
        shape = min((x for x in s.compiled.shapes if x.tokens >= len(chunk)), key=lambda x: x.tokens)
        logits = s.step(shape, [Segment(chunk, at, [0])])
        at += len(chunk)
        assert same(logits[0], truth[at - 1])


def test_company_in_a_batch_changes_no_bit(weights, ids, truth):
    """The same sequence alone, beside others of other lengths, in another segment, on other pages, with its chunk mixed among decodes."""
    s = opened(weights, DEMO, [Shape(1, 1), Shape(4, 8)])
    rng = np.random.default_rng(0)
    for place, others in ((0, 0), (2, 3), (3, 3), (1, 2)):
        page = 4 + place
        for at in range(0, 48, 8):
            segments = [Segment(rng.integers(0, 128, 1 + (at + i) % 8).tolist(), (3 * i) % 20, [i]) for i in range(others + 1)]
            segments[min(place, others)] = Segment(ids[at : at + 8], at, [page])
            logits = s.step(Shape(4, 8), segments)
            assert same(logits[min(place, others)], truth[at + 7])


def test_a_page_used_before_changes_no_bit(weights, ids, truth):
    s = opened(weights, DEMO, [Shape(1, 16)])
    rng = np.random.default_rng(1)
    for at in range(0, 128, 16):
        s.step(Shape(1, 16), [Segment(rng.integers(0, 128, 16).tolist(), at, [2])])
    assert same(s.step(Shape(1, 16), [Segment(ids[:16], 0, [2])])[0], truth[15])


def test_greedy_tokens_are_the_references_own(weights, ids):
    s = opened(weights, DEMO, [Shape(1, n) for n in (1, 2, 4, 8, 16, 32)])
    written = list(s.generate(ids, 24))
    reference = IntegerReference(weights)
    cache = reference.start()
    logits, want = reference.forward(ids, cache)[-1], []
    for _ in range(24):
        want.append(int(logits.argmax()))
        logits = reference.forward(want[-1:], cache)[-1]
    assert written == want
