"""Any decoder in any format on any tile or ring: what compiles is legal and gives the reference's bits; what does not is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from fabless.compiler.driver import PASSES, Shape
from fabless.compiler.driver import compile as compile_model
from fabless.compiler.launch import Segment
from fabless.compiler.pack import pack
from fabless.compiler.tiles import STORED
from fabless.core.errors import InfeasibleError, UnsupportedError
from fabless.fleet.session import Session
from fabless.model.decoder import Decoder, Rope, Routing
from fabless.model.integer_reference import IntegerReference, IntegerWeights
from fabless.model.weights import weights_of
from fabless.number.formats import format_named
from fabless.program.tile import VECTOR_LANES, Tile
from fabless.program.verify import verify

SEEDS = range(48)


def any_decoder(rng: np.random.Generator) -> Decoder:
    """Draw sizes that divide nothing, and any mixture of the features that families have."""

    def likely(share: float) -> bool:
        return bool(rng.random() < share)

    n, n_kv, group, head = (
        int(rng.integers(1, 4)),
        int(rng.integers(1, 5)),
        int(rng.integers(1, 4)),
        int(rng.choice([8, 16, 24, 32, 48, 64, 80])),
    )
    activation = str(rng.choice(["silu", "gelu_tanh", "swiglu_clamped"]))
    routing = Routing(int(rng.integers(2, 9)), 2, likely(0.4)) if likely(0.3) else None
    return Decoder(
        family="llama", name="any", n_layers=n, d_model=int(rng.integers(5, 200)), d_ff=int(rng.integers(5, 300)), n_heads=n_kv * group,
        n_kv_heads=n_kv, d_head=head, n_vocab=int(rng.integers(7, 400)), context_tokens=int(rng.integers(40, 400)), norm_epsilon=1e-5,
        windows=tuple(int(w) for w in rng.choice([0, 5, 150], n)), ropes=tuple(Rope(float(t)) for t in rng.choice([1e4, 1e6], n)),
        attention_scale=head**-0.5, activation=activation, tied_embeddings=likely(0.4), embedding_scale=float(rng.choice([1.0, 5.5])),  # type: ignore[arg-type]
        qk_norm=likely(0.4), post_norms=likely(0.3) and routing is None, sinks=likely(0.3), qkv_bias=likely(0.3), o_bias=likely(0.3),
        mlp_bias=activation == "swiglu_clamped" or likely(0.2), routing=routing,
    )  # fmt: skip


def any_tile(rng: np.random.Generator) -> Tile:
    rows = int(rng.choice([4, 8, 16, 32, 64, 128]))
    lanes = int(rng.choice([n for n in VECTOR_LANES if n <= rows]))
    accumulators = max((1 << int(rng.integers(10, 14))) * 16 // rows, 64)
    port = int(rng.choice([16, 32, 64, 128, 256]))
    return Tile(rows, lanes, int(rng.integers(64, 2000)), 8192, accumulators, 65536, 16384, 16384, 1 << 27, port)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_decoder_on_any_tile_gives_the_references_bits(seed):
    rng = np.random.default_rng(seed)
    d, tile = any_decoder(rng), any_tile(rng)
    arrays = {k: (rng.standard_normal(s) * (0.3 if len(s) > 1 else 1)).astype(np.float32) for k, s in d.tensors().items()}
    shape, n_tiles = Shape(int(rng.integers(1, 4)), int(rng.integers(1, 8))), int(rng.choice([1, 1, 1, 2, 3, 4]))
    skip = [name for name in PASSES if rng.random() < 0.2]
    partition, format, head = (str(rng.choice(names)) for names in (["tensor", "pipeline", "expert"], [*STORED], ["int8_block32", *STORED]))
    weights = IntegerWeights.load(weights_of(d, arrays), format_named(format), format_named(head))
    options = {"n_tiles": n_tiles, "partition": partition if n_tiles > 1 else "tensor", "format": format, "head_format": head, "skip": skip}
    try:
        compiled = compile_model(d, tile, [Shape(1, 1), shape], n_pages=16, **options)
    except (InfeasibleError, UnsupportedError) as refusal:
        reasons = ("accumulator words", "fill blocks of 32", "buffer", "weight words", "layers for", "experts for", "has no experts")
        assert any(reason in str(refusal) for reason in reasons)  # noqa: PT017  the message is what is tested
        return
    memories = []
    for layout, *programs in zip(compiled.layouts, *compiled.programs.values(), strict=True):
        for program in programs:
            verify(program)
        memory = np.zeros(layout.memory_bytes, np.uint8)
        pack(layout, weights, memory[: layout.image_bytes])
        memories.append(memory)
    session, reference = Session(compiled, memories), IntegerReference(weights)
    texts = [rng.integers(0, d.n_vocab, shape.tokens + 1).tolist() for _ in range(shape.segments)]
    pages = [[4 * i + j for j in range(4)] for i in range(shape.segments)]
    first = session.step(shape, [Segment(t[:-1], 0, p) for t, p in zip(texts, pages, strict=True)]).copy()
    for text, own, logits in zip(texts, pages, first, strict=True):
        want = reference.forward(text)
        assert np.array_equal(logits.view(np.uint32), want[-2].view(np.uint32))
        decoded = session.step(Shape(1, 1), [Segment(text[-1:], shape.tokens, own)])[0]
        assert np.array_equal(decoded.view(np.uint32), want[-1].view(np.uint32))


def test_most_of_these_decoders_compile():
    """The property above is not passed by refusing."""
    compiled = 0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        d, tile = any_decoder(rng), any_tile(rng)
        try:
            compile_model(d, tile, n_pages=4)
        except (InfeasibleError, UnsupportedError):
            continue
        compiled += 1
    assert compiled > len(SEEDS) / 2
