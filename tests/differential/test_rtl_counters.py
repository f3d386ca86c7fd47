"""The tile's own counters say where a launch's cycles went: what the cycle simulator's account says, queue by queue."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("amaranth", reason="Amaranth is not installed: pip install 'fabless[rtl]'")

from fabless.compiler.driver import compile as compile_model
from fabless.compiler.launch import Segment
from fabless.compiler.partition import Shape
from fabless.model.weights import open_weights
from fabless.program.isa import Queue
from fabless.program.sequence import parameter_words
from fabless.program.tile import DEMO, TINY
from fabless.rtl.bench.build import tools
from fabless.rtl.bench.run import Simulation
from fabless.sim.cycles import CAUSES, time
from fabless.sim.dram import MemoryModel

pytestmark = pytest.mark.skipif(not all(t.found for t in tools()), reason="a tool of the RTL flow is missing: fabless doctor")


@pytest.mark.parametrize("tile", [TINY, DEMO], ids=["tiny", "demo"])
def test_counters_are_the_simulator_s_account(tile):
    decoder = open_weights("tinyshakes").decoder
    compiled = compile_model(decoder, tile, [Shape(1, 2)], context_tokens=128)
    program, layout, model = compiled.program(), compiled.layouts[0], MemoryModel(latency_cycles=30, beats=2, cycles=3)
    words = parameter_words(program, compiled.parameters(Shape(1, 2), [Segment([1, 2], 0, range(1))]))
    with Simulation([program], [layout.memory_bytes], memory_model=model.numbers) as simulation:
        first = simulation.launch([words])
        counted = [simulation.counters()]
        assert simulation.launch([words]) == first
        counted.append(simulation.counters())  # cleared at start
    account = time(program, None, words, model).account.sum(axis=0)
    assert counted[0] == counted[1]
    busy, semaphore, memory, full = (CAUSES.index(c) for c in ("busy", "semaphore", "memory", "full"))
    for queue in Queue:
        name = queue.name.lower()
        assert counted[0]["semaphore", name] == account[queue, semaphore], name
        if queue != Queue.CTRL:
            assert counted[0]["busy", name] == account[queue, busy] + account[queue, memory], name
    assert counted[0]["full", "ctrl"] == account[Queue.CTRL, full]
    assert np.count_nonzero(list(counted[0].values())) > 8
