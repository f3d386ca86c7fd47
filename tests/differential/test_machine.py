"""The two machines agree on every state digest; the slow one agrees with scalar definitions; results do not depend on how work is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fabless.core.errors import IllegalProgramError, InputError
from fabless.number import functions
from fabless.number.arrays import canonical
from fabless.number.dot import block_dot
from fabless.number.quantise import quantise_block
from fabless.number.round import fp32_add, fp32_mul, fp32_sub, fp32_sum
from fabless.program.assembler import assemble
from fabless.program.random_program import random_memory, random_program
from fabless.program.tile import DEMO, DIE, TINY
from fabless.sim.machine import Machine, execute, interpret, launch, memory_of, run_ring

SMALL = {name: replace(tile, memory_bytes=1 << 20) for name, tile in (("tiny", TINY), ("demo", DEMO), ("die", DIE))}


def bits(x):
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(25))
def test_random_programs_leave_the_same_state(name, seed):
    rng = np.random.default_rng([seed, SMALL[name].rows])
    program = random_program(SMALL[name], rng, 60)
    inputs = {"data": random_memory(rng)}
    parameters = {"anything": rng.integers(-100, 300, 8), "trips": int(rng.integers(0, 3))}
    slow = execute(program, None, inputs, parameters, fast=False)
    fast = execute(program, None, inputs, parameters, fast=True)
    for part, content in slow.parts().items():
        assert np.array_equal(content.reshape(-1).view(np.uint8), fast.parts()[part].reshape(-1).view(np.uint8)), part
    assert slow.digest() == fast.digest()


def test_results_do_not_depend_on_the_number_of_vector_lanes():
    rng = np.random.default_rng(3)
    program, memory = random_program(SMALL["demo"], rng, 80), random_memory(rng)
    narrow = replace(program, tile=replace(program.tile, vector_lanes=4))
    assert execute(program, None, {"data": memory}, fast=False).digest() == execute(narrow, None, {"data": memory}, fast=False).digest()


WORST = """
.buffer w address=0 bytes=16384 kind=weights
.buffer ws address=16384 bytes=2048 kind=weights
  load target=w format=int8 count=32 dst=0 address=0
  load target=ws format=bf16 count=32 dst=0 address=16384
  gemm m=4 n=2 k=16 a_stride=16 c_stride=2 clear=1
  gemm m=4 n=2 k=8 w=3 a=1 a_stride=16 c_stride=2 clear=0
  halt
"""


@pytest.mark.parametrize("kind", ["extreme", "cancel", "underflow", "overflow", "special"])
@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_gemm_with_worst_case_operands_equals_the_scalar_contract(kind, name):
    """-128 x -128 everywhere, sums that cancel to subnormals, scales that overflow or are NaN, infinite, negative."""
    rng = np.random.default_rng(5)
    program = assemble(WORST, tile=SMALL[name])
    rows = program.tile.rows
    w = rng.choice(np.array([-128, 127], np.int8), (32, rows, 32))
    a = rng.choice(np.array([-127, 127], np.int8), (64, 32))
    if kind == "extreme":
        w[:], a[:] = -128, -127
    exponents = {"extreme": (0, 1), "cancel": (-70, -60), "underflow": (-90, -60), "overflow": (40, 63), "special": (-20, 20)}[kind]
    scales = rng.standard_normal((32, rows)) * 2.0 ** rng.integers(*exponents, (32, rows))
    if kind == "cancel":
        scales[1::2], w[1::2] = -scales[0::2], w[0::2]
        a[:] = a[0]
    if kind == "special":
        scales[rng.random(scales.shape) < 0.05] = np.inf
        scales[rng.random(scales.shape) < 0.02] = np.nan
        scales[rng.random(scales.shape) < 0.3] = 0
    ws = (bits(scales) >> 16).astype(np.uint16)
    sa = canonical(((bits(np.abs(rng.standard_normal(64)) * 2.0 ** rng.integers(*exponents, 64)) >> 16) << 16).view(np.float32))
    digests = []
    for fast in (False, True):
        state = launch(program, None, {"w": w.tobytes(), "ws": ws.tobytes()})
        state.activations[:64], state.activation_scales[:64] = a, sa
        run_ring([(program, state)], fast=fast)
        digests.append(state.digest())
    assert digests[0] == digests[1]
    scale_codes = bits(canonical((ws.astype(np.uint32) << 16).view(np.float32)))
    for i, nt, r in [(0, 0, 0), (3, 1, rows - 1), (2, 0, 1), (1, 1, 2)]:
        acc = 0
        for first_w, first_a, k in ((0, 0, 16), (3, 1, 8)):
            words = [first_w + kb * 2 + nt for kb in range(k)]
            acts = [first_a + i * 16 + kb for kb in range(k)]
            acc = block_dot(
                w[words, r].tolist(), [int(scale_codes[x, r]) for x in words], a[acts].tolist(), [int(c) for c in bits(sa[acts])], acc=acc
            )
        assert int(bits(state.accumulators)[(i * 2 + nt) * rows + r]) == acc


def test_vector_instructions_equal_the_scalar_definitions():
    text = """
.buffer x address=0 bytes=1024 kind=input
  load target=v format=fp32 count=128 address=0
  load target=v format=fp32 count=128 dst=128 address=512
  vec pre=add len=100 a=0 b=128 dst=256
  vec pre=mul len=100 a=0 b=128 dst=384
  vec pre=sub fn=exp2 len=100 a=0 b=128 dst=512
  vec reduce=sum len=100 a=0 dst=1000
  rotate len=100 a=0 b=128 dst=640
  quant len=32 a=0 dst=0
  vec pre=mul fn=rsqrt len=100 a=0 b_kind=self dst=768
  halt
"""
    rng = np.random.default_rng(8)
    x = canonical((rng.standard_normal(256) * 2.0 ** rng.integers(-6, 6, 256)).astype(np.float32))
    state = execute(assemble(text, tile=SMALL["tiny"]), None, {"x": x}, fast=False)
    v, a, b = bits(state.vector).tolist(), bits(x[:100]).tolist(), bits(x[128:228]).tolist()
    assert v[256:356] == [fp32_add(p, q) for p, q in zip(a, b, strict=True)]
    assert v[384:484] == [fp32_mul(p, q) for p, q in zip(a, b, strict=True)]
    assert v[512:612] == [functions.exp2(fp32_sub(p, q)) for p, q in zip(a, b, strict=True)]
    assert v[1000] == fp32_sum(a)
    assert v[640] == fp32_sub(fp32_mul(a[0], b[0]), fp32_mul(a[1], b[1]))
    assert v[641] == fp32_add(fp32_mul(a[1], b[0]), fp32_mul(a[0], b[1]))
    assert (state.activations[0].tolist(), int(bits(state.activation_scales)[0])) == quantise_block(a[:32])
    assert v[768:868] == [functions.rsqrt(fp32_mul(p, p)) for p in a]


def test_a_store_over_weights_that_were_loaded_leaves_the_buffer_as_it_was():
    text = """
.buffer kv address=0 bytes=4096 kind=cache
  load target=w format=int8 count=4 address=0
  vec pre=add len=32 a=0 b_kind=register dst=0
  store target=v format=fp32 count=32 address=64
  gemm n=4 k=1 unit=1 clear=1
  halt
"""
    program = assemble(text, tile=SMALL["tiny"])
    content = np.arange(4096, dtype=np.uint8)
    states = [execute(program, None, {"kv": content}, fast=fast) for fast in (False, True)]
    assert states[0].digest() == states[1].digest()
    assert np.array_equal(states[1].weights[:4].reshape(-1).view(np.uint8), content[:512])
    assert not np.array_equal(states[1].memory[:512], content[:512])


RING = """
.buffer x address=0 bytes=512 kind=input
  load target=v format=fp32 count=64 address=0
  quant len=64 a=0 dst=0
  loop count=3 length=4
    send space=v src=0 count=64
    send space=a src=0 count=2
    recv space=v dst=0 count=64 add={add}
    recv space=a dst=0 count=2
  end
  halt
"""


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("add", [0, 1])
def test_a_ring_of_four_tiles_passes_data_around(fast, add):
    program = assemble(RING.format(add=add), tile=replace(SMALL["tiny"], n_tiles=4))
    rng = np.random.default_rng(2)
    x = canonical(rng.standard_normal((4, 64)).astype(np.float32))
    tiles = [(program, launch(program, None, {"x": x[i]})) for i in range(4)]
    run_ring(tiles, fast=fast)
    expected = x.copy()
    for _ in range(3):
        expected = canonical(np.roll(expected, 1, axis=0) + (expected if add else 0))
    for i in range(4):
        assert np.array_equal(tiles[i][1].vector[:64], expected[i])


@pytest.mark.parametrize("fast", [False, True])
def test_a_recv_without_send_is_named(fast):
    program = assemble("recv count=4\nhalt", tile=SMALL["tiny"])
    with pytest.raises(IllegalProgramError, match=r"tiles \[0\]"):
        run_ring([(program, launch(program))], fast=fast)
    mismatch = assemble("send count=4\nrecv count=5\nhalt", tile=SMALL["tiny"])
    with pytest.raises(IllegalProgramError, match=r"instruction 1 \(recv\): .*pair send and recv alike"):
        run_ring([(mismatch, launch(mismatch))], fast=fast)


BAD = {
    "halt-less": ("madd x=1", r"end it with halt"),
    "memory": ("load target=w format=int8 address=999999\nhalt", r"instruction 0 \(load\)"),
    "vector": ("vec len=64 dst=65535\nhalt", r"instruction 0 \(vec\)"),
    "vector source": ("vec len=64 a=65535\nhalt", r"instruction 0 \(vec\)"),
    "weights": ("gemm n=256 k=1024\nhalt", r"instruction 0 \(gemm\)"),
    "activations": ("quant dst=65535\nhalt", r"instruction 0 \(quant\)"),
    "accumulators": ("gemm c=65535\nhalt", r"instruction 0 \(gemm\)"),
    "rows that overlap": ("gemm m=2 n=2 c_stride=1\nhalt", r"instruction 0 \(gemm\): .*overlap"),
    "wait": ("sync queue=mxu wait=3\nhalt", r"instruction 0 \(sync\): waits for .*signal it earlier"),
    "signal": ("loop count=16 length=1\nsync signal=3\nend\nhalt", r"instruction 1 \(sync\): signals .*wait more often"),
    "depth": ("loop count=1\n" * 5 + "halt", r"loop"),
    "end": ("end\nhalt", r"loop"),
    "parameter": ("param x=1 at=70000\nhalt", r"parameter memory"),
    "pair": ("rotate len=3 b=64 dst=128\nhalt", r"instruction 0 \(rotate\): rotates pairs"),
}  # fmt: skip


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_illegal_accesses_are_named_by_both_machines(name, fast):
    text, message = BAD[name]
    with pytest.raises(IllegalProgramError, match=message):
        execute(assemble(".buffer m address=0 bytes=4096 kind=cache\n" + text, tile=SMALL["tiny"]), fast=fast)


def test_programs_that_need_more_memory_than_the_tile_has_are_refused():
    with pytest.raises(IllegalProgramError, match="needs 2097152 bytes of memory, the tile has 1048576"):
        memory_of(assemble(".buffer m address=0 bytes=2097152 kind=cache\nhalt", tile=SMALL["tiny"]))


COUNTER = """
.buffer x address=0 bytes=128 kind=input
.buffer sum address=128 bytes=128 kind=cache format=fp32 shape=32
.parameter times index=0 count=1 low=0 high=9
  param x=1 at=0
  load target=v format=fp32 count=32 address=0
  load target=v format=fp32 count=32 dst=32 address=128
  loop count=0+x1 length=1
    vec pre=add len=32 a=0 b=32 dst=32
  end
  store target=v format=fp32 count=32 src=32 address=128
  halt
"""


@pytest.mark.parametrize("fast", [False, True])
def test_a_machine_keeps_its_caches_from_launch_to_launch(fast):
    program = assemble(COUNTER, tile=SMALL["tiny"])
    machine = Machine(program, fast=fast)
    for times in (3, 0, 2):
        state = machine.run({"x": np.ones(32, np.float32)}, {"times": times})
    assert state.read(program, "sum").tolist() == [5.0] * 32
    with pytest.raises(IllegalProgramError, match=r"parameter 'times': values 10 to 10 are outside its range 0 to 9; keep within it"):
        machine.run({}, {"times": 10})
    with pytest.raises(InputError, match=r"buffer 'x' has 128 bytes, 132 were given"):
        machine.run({"x": np.ones(33, np.float32)})


def test_an_observer_sees_every_instruction_in_order():
    program = assemble(COUNTER, tile=SMALL["tiny"])
    seen = []
    state = launch(program, None, None, {"times": 2})
    assert list(interpret(program, state, [], [], lambda item, _: seen.append(str(item.pc) + item.mnemonic))) == []
    assert seen == ["1load", "2load", "4vec", "4vec", "6store", "7halt"]
    assert state.retired == 6


def test_warming_compiles_what_execute_uses():
    from fabless.sim.machine_fast import warm
    from fabless.sim.machine_kernels import run

    warm()
    assert len(run.signatures) == 1
    program = random_program(SMALL["demo"], np.random.default_rng(1))
    execute(program, fast=True)
    assert len(run.signatures) == 1


@pytest.mark.parametrize("fast", [False, True])
def test_cutting_a_product_along_k_or_m_changes_no_bit(fast):
    whole = "gemm m=6 n=2 k=16 a_stride=16 c_stride=2 clear=1\nhalt"
    along_k = "gemm m=6 n=2 k=5 a_stride=16 c_stride=2 clear=1\ngemm m=6 n=2 k=11 w=10 a=5 a_stride=16 c_stride=2\nhalt"
    along_m = "gemm m=1 n=2 k=16 clear=1\ngemm m=5 n=2 k=16 a=16 a_stride=16 c=2 c_stride=2 clear=1\nhalt"
    rng = np.random.default_rng(12)
    results = []
    start = launch(assemble(whole, tile=SMALL["demo"]))
    start.weights[:32] = rng.integers(-128, 128, (32, 16, 32))
    start.weight_scales[:32] = rng.standard_normal((32, 16)).astype(np.float16)
    start.activations[:96] = rng.integers(-127, 128, (96, 32))
    start.activation_scales[:96] = (bits(rng.random(96)) & 0xFFFF0000).view(np.float32)
    for text in (whole, along_k, along_m):
        program = assemble(text, tile=SMALL["demo"])
        state = launch(program)
        for part in ("weights", "weight_scales", "activations", "activation_scales"):
            getattr(state, part)[:] = getattr(start, part)
        run_ring([(program, state)], fast=fast)
        results.append(bits(state.accumulators).tobytes())
    assert results[0] == results[1] == results[2]
    assert any(results[0])
