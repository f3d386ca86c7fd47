"""A real Dask cluster, a worker killed half-way: the same bytes as on one machine."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fabless.explore import dispatch
from fabless.explore.outputs import frontier_bytes
from fabless.explore.search import design
from fabless.explore.study import read_study

distributed = pytest.importorskip("distributed", reason="the dask extra is not installed")
ROOT = Path(__file__).parents[2]


def test_a_cluster_that_loses_a_worker_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "_POINTS_PER_CHUNK", 60)
    study = read_study(ROOT / "examples/edge.toml")
    study = replace(
        study, space=replace(study.space, process=("7nm",), clock_hz=(6e8, 8e8), scratchpad_bytes=(2.0**20,)), batches=(1, 2, 4)
    )
    with ThreadPoolExecutor(1) as executor:
        expected = frontier_bytes(design(study, executor=executor))
    killed = []
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=tmp_path
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        workers = client.run(os.getpid)

        def kill_one_half_way(done, total):
            if not killed and done > 0:
                killed.append(next(iter(workers.values())))
                os.kill(killed[0], signal.SIGKILL)

        found = design(study, executor=client.get_executor(), progress=kill_one_half_way, out=tmp_path / "out")
        assert killed
        assert killed[0] not in client.run(os.getpid).values()
    assert frontier_bytes(found) == expected
    assert len(list((tmp_path / "out/chunks").glob("*.npz"))) == len(dispatch.chunks_of(study))
