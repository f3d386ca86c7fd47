"""A real model writes its text on the RTL: memory equal to the machine's and cycles to the simulator's after every launch."""

import pytest

pytest.importorskip("amaranth", reason="the RTL needs the extra 'rtl'")

from fabless.fleet.on_rtl import open_rtl_session
from fabless.fleet.session import open_session
from fabless.model.tokenizer import open_tokenizer
from fabless.model.weights import open_weights
from fabless.program.tile import TINY
from fabless.rtl.bench.build import tools
from fabless.sim.dram import MemoryModel

pytestmark = pytest.mark.skipif(
    not all(t.found for t in tools()), reason=f"not installed: {', '.join(t.name for t in tools() if not t.found)}; see 'fabless doctor'"
)


@pytest.mark.parametrize("format", ["int8_block32", "nvfp4"])
def test_the_embedded_model_writes_on_the_tiny_tile_what_the_machine_writes(format):
    weights = open_weights("tinyshakes")
    tokenizer = open_tokenizer(weights)
    ids = tokenizer.encode("ROMEO:\n")
    options = {"context_tokens": 64, "format": format}
    with open_rtl_session(weights, TINY, memory_model=MemoryModel(20, 3, 4), check=True, **options) as session:
        written = list(session.generate(ids, 3))
    assert written == list(open_session(weights, TINY, **options).generate(ids, 3))
    assert len(session.cycles) >= 3


@pytest.mark.parametrize(("n_tiles", "partition"), [(2, "tensor"), (3, "tensor"), (2, "pipeline")])
def test_a_ring_writes_the_same_text_with_every_tile_in_the_simulators_cycles(n_tiles, partition):
    weights = open_weights("tinyshakes")
    ids = open_tokenizer(weights).encode("ROMEO:\n")
    options = {"n_tiles": n_tiles, "partition": partition, "context_tokens": 64}
    with open_rtl_session(weights, TINY, memory_model=MemoryModel(20, 3, 4), link_latency_cycles=3, check=True, **options) as session:
        written = list(session.generate(ids, 3))
    assert written == list(open_session(weights, TINY, context_tokens=64).generate(ids, 3))
