"""Chunks: the same bytes whoever computes them, and none computed twice."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fabless.core.errors import FablessError, InfeasibleError
from fabless.explore import dispatch
from fabless.explore.chunk import evaluate, pack, unpack
from fabless.explore.outputs import frontier_bytes
from fabless.explore.search import design
from fabless.explore.study import MemoryChoice, read_study

ROOT = Path(__file__).parents[2]


def small(**changes):
    study = read_study(ROOT / "examples/edge.toml")
    space = replace(study.space, process=("7nm",), clock_hz=(6e8, 8e8), rows=(32, 64), scratchpad_bytes=(2.0**19, 2.0**20))
    return replace(study, space=space, batches=(1, 2, 4), compare=("nvidia_l4",), **changes)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(dispatch, "_POINTS_PER_CHUNK", 60)


@pytest.fixture(scope="module")
def expected():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_POINTS_PER_CHUNK", 60)
        with ThreadPoolExecutor(1) as executor:
            return frontier_bytes(design(small(), executor=executor))


def test_a_chunk_packs_to_the_same_bytes_and_back():
    study = small()
    columns = evaluate(study, 0, 6)
    content = pack(columns)
    assert content == pack(evaluate(study, 0, 6))
    back = unpack(content)
    assert sorted(back) == sorted(columns)
    for name, column in columns.items():
        np.testing.assert_array_equal(back[name], column)


def test_chunks_cover_the_space_once():
    study = small()
    ranges = dispatch.chunks_of(study)
    assert len(ranges) > 4
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(study.space.n_designs))


def test_threads_and_processes_give_the_same_bytes(expected):
    assert frontier_bytes(design(small())) == expected  # the local pool of processes


def test_finished_chunks_are_read_and_damaged_ones_computed_again(tmp_path, expected, monkeypatch):
    assert frontier_bytes(design(small(), out=tmp_path)) == expected
    chunks = sorted((tmp_path / "chunks").iterdir())
    assert len(chunks) == len(dispatch.chunks_of(small()))
    chunks[0].unlink()
    chunks[1].write_bytes(chunks[1].read_bytes()[:100])
    computed = []

    class Counting(ThreadPoolExecutor):
        def submit(self, function, /, *arguments):
            computed.append(arguments[1:])
            return super().submit(function, *arguments)

    with Counting(1) as executor:
        assert frontier_bytes(design(small(), executor=executor, out=tmp_path)) == expected
    assert len(computed) == 2
    assert sorted((tmp_path / "chunks").iterdir()) == chunks


def test_an_interrupt_keeps_what_was_finished(tmp_path, expected):
    class Interrupted(ThreadPoolExecutor):
        left = 3

        def submit(self, function, /, *arguments):
            self.left -= 1
            if self.left < 0:
                stopped: Future = Future()
                stopped.set_exception(KeyboardInterrupt())
                return stopped
            result: Future = Future()
            result.set_result(function(*arguments))
            return result

    seen = []
    with pytest.raises(KeyboardInterrupt):
        design(small(), executor=Interrupted(1), out=tmp_path, progress=lambda done, total: seen.append((done, total)))
    kept = list((tmp_path / "chunks").glob("*.npz"))
    assert 0 < len(kept) <= 3
    assert not list((tmp_path / "chunks").glob(".*"))  # nothing half-written
    assert frontier_bytes(design(small(), out=tmp_path)) == expected


def test_progress_rises_to_all_points(tmp_path):
    seen = []
    with ThreadPoolExecutor(1) as executor:
        design(small(), executor=executor, progress=lambda done, total: seen.append((done, total)), out=tmp_path)
    assert seen == sorted(seen)
    assert seen[0] == (0, small().n_points)
    assert seen[-1] == (small().n_points, small().n_points)


def test_a_chunk_is_named_by_what_it_depends_on():
    study = small()
    name = dispatch.chunk_name(study, 0, 6)
    assert name == dispatch.chunk_name(replace(study, title="another", compare=()), 0, 6)
    assert name != dispatch.chunk_name(study, 6, 12)
    assert name != dispatch.chunk_name(replace(study, demand=replace(study.demand, requests_per_s=1.0)), 0, 6)


_KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_explore_dispatch as t
t.dispatch._POINTS_PER_CHUNK = 60
t.design(t.small(), out=Path({out!r}))
"""


def test_kill_nine_loses_no_finished_chunk(tmp_path, expected):
    script = _KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    chunks = tmp_path / "chunks"
    while process.poll() is None and len(list(chunks.glob("*.npz"))) < 2:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in chunks.glob("*.npz")}
    assert before
    assert frontier_bytes(design(small(), out=tmp_path)) == expected
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_a_lost_local_worker_is_replaced(tmp_path, expected, monkeypatch):
    flag = tmp_path / "killed"
    whole = dispatch.evaluate_packed

    def dies_once(study, start, stop):
        if start > 0 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(study, start, stop)

    monkeypatch.setattr(dispatch, "evaluate_packed", dies_once)  # forked workers inherit it
    monkeypatch.setattr(sys.modules[__name__], "dies_once", dies_once, raising=False)
    dies_once.__module__, dies_once.__qualname__ = __name__, "dies_once"
    assert frontier_bytes(design(small(), out=tmp_path / "out")) == expected
    assert flag.exists()


def test_workers_that_always_die_are_an_error_that_says_what_is_kept(monkeypatch):
    def dies(study, start, stop):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(dispatch, "evaluate_packed", dies)
    monkeypatch.setattr(sys.modules[__name__], "dies", dies, raising=False)
    dies.__module__, dies.__qualname__ = __name__, "dies"
    with pytest.raises(FablessError, match=r"worker processes were killed 4 times.*finished chunks are kept"):
        design(small())


def test_unknown_names_are_answered_before_the_search():
    study = small()
    (workload,) = study.workloads
    for wrong, message in (
        (replace(study, workloads=(replace(workload, model="qwen3-8bb"),)), "no model 'qwen3-8bb'; did you mean 'qwen3-8b'"),
        (replace(study, compare=("nvidia_l44",)), "nvidia_l44"),
        (replace(study, space=replace(study.space, memory=(MemoryChoice("lpdr5x", 1),))), "no standard 'lpdr5x'; did you mean 'lpddr5x'"),
        (replace(study, space=replace(study.space, process=("6.5nm",))), "unknown process '6.5nm'; did you mean '6nm'?"),
        (replace(study, region="untied_states"), "untied_states"),
    ):
        with pytest.raises(FablessError) as caught:
            design(wrong)
        assert message in str(caught.value)


def test_a_study_that_nothing_meets_shows_the_nearest_miss():
    study = small()
    tight = replace(study, slo=replace(study.slo, tpot_s=1e-4))
    with ThreadPoolExecutor(1) as executor, pytest.raises(InfeasibleError) as caught:
        design(tight, executor=executor)
    message = str(caught.value)
    assert "study 'edge': none of 2,304 points meets every limit. Nearest miss: 7nm, " in message
    assert "qwen3-8b as w" in message
    assert "times the limit of 100 µs" in message
