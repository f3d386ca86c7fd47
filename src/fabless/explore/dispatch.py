"""Send chunks to an executor and keep what comes back: a finished chunk is a file named by its content and is never computed again."""

from __future__ import annotations

import os
import sys
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.resources import files
from multiprocessing import get_context
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import fabless
from fabless.core.digest import digest
from fabless.core.errors import FablessError
from fabless.core.files import write_bytes
from fabless.explore.chunk import evaluate_packed, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from importlib.resources.abc import Traversable
    from pathlib import Path

    from fabless.explore.chunk import Columns
    from fabless.explore.study import Study

    #: Told (points done, points in all) after each chunk.
    Progress = Callable[[int, int], None]

_POINTS_PER_CHUNK = 120_000  # some seconds of work, some tens of MB at most
_LOST_WORKERS = 3  # a pool that loses workers more often has a defect, not bad luck


def chunks_of(study: Study) -> list[tuple[int, int]]:
    """Return the ranges of designs that are computed together: they follow from the study alone, not from who computes them."""
    per_design = max(1, study.n_points // study.space.n_designs)
    size = max(1, _POINTS_PER_CHUNK // per_design)
    n = study.space.n_designs
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def run_chunks(study: Study, executor: Executor | None, progress: Progress | None, store: Path | None) -> list[Columns]:
    """Evaluate all chunks and return their columns in order; finished ones are read from `store`, new ones written there as they end.

    `executor` None uses this machine's cores, and this process alone for a single chunk. An interrupt or a lost worker loses only the chunks under way;
    lost workers of the local pool are replaced, `distributed` replaces its own.
    """
    ranges = chunks_of(study)
    paths = [store / f"{chunk_name(study, *r)}.npz" if store else None for r in ranges]
    done: dict[int, Columns] = {}
    for i, path in enumerate(paths):
        columns = _read(path)
        if columns is not None:
            done[i] = columns
    weight = study.n_points / study.space.n_designs

    def report() -> None:
        if progress:
            progress(round(sum(ranges[i][1] - ranges[i][0] for i in done) * weight), study.n_points)

    report()
    missing = [i for i in range(len(ranges)) if i not in done]
    for i, content in _contents(study, ranges, missing, executor):
        path = paths[i]
        if path is not None:
            write_bytes(path, content)
        done[i] = unpack(content)
        report()
    return [done[i] for i in range(len(ranges))]


def chunk_name(study: Study, start: int, stop: int) -> str:
    """Return the name of a chunk's file: a digest of what its content depends on, fabless' own code and tables included."""
    relevant = replace(study, name="", title="", compare=())
    return digest({"study": relevant, "designs": [start, stop], "code": code_digest()})


@cache
def code_digest() -> str:
    """Return the digest of every module and table of the installed package: a changed formula or price makes old chunks stale."""
    content: dict[str, bytes] = {}

    def walk(directory: Traversable, prefix: str) -> None:
        for entry in directory.iterdir():
            name = f"{prefix}/{entry.name}"
            if entry.is_dir() and entry.name != "__pycache__":
                walk(entry, name)
            elif entry.name.endswith((".py", ".toml")):
                content[name] = entry.read_bytes()

    for part in ("chip", "core", "cost", "data", "explore", "fleet", "mapping", "model", "number", "silicon", "sim"):
        walk(files(fabless).joinpath(part), part)
    return digest(content)


def _read(path: Path | None) -> Columns | None:
    """Return a finished chunk, or None where there is none or it was damaged by something else than us."""
    if path is None or not path.is_file():
        return None
    try:
        return unpack(path.read_bytes())
    except (ValueError, OSError, EOFError, KeyError, BadZipFile):
        return None


def _contents(study: Study, ranges: list[tuple[int, int]], missing: list[int], executor: Executor | None) -> Iterator[tuple[int, bytes]]:
    if executor is not None:
        yield from _submitted(study, ranges, missing, executor)
    elif len(missing) <= 1:
        for i in missing:
            yield i, evaluate_packed(study, *ranges[i])
    else:
        yield from _local(study, ranges, missing)


def _local(study: Study, ranges: list[tuple[int, int]], missing: list[int]) -> Iterator[tuple[int, bytes]]:
    """Use a pool of this machine's processes, a new one when a worker is lost."""
    left = list(missing)
    for attempt in range(_LOST_WORKERS + 1):
        try:
            with _pool(len(left)) as pool:
                for i, content in _submitted(study, ranges, tuple(left), pool):
                    left.remove(i)
                    yield i, content
            return
        except BrokenProcessPool:
            if attempt == _LOST_WORKERS:
                raise FablessError(
                    f"worker processes were killed {_LOST_WORKERS + 1} times (out of memory?); {len(left)} of {len(missing)} chunks are left: "
                    f"free memory or lower the number of designs, then run again: finished chunks are kept"
                ) from None


@contextmanager
def _pool(n_chunks: int) -> Iterator[Executor]:
    # Forked workers start at once with everything imported, and need no guard around the caller's main module.
    method = "fork" if sys.platform == "linux" else "spawn"
    pool = ProcessPoolExecutor(min(n_cores(), n_chunks), mp_context=get_context(method))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):  # an interrupted search must not wait for chunks nobody will read
            process.terminate()
        raise
    else:
        pool.shutdown()


def n_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _submitted(
    study: Study, ranges: list[tuple[int, int]], missing: list[int] | tuple[int, ...], executor: Executor
) -> Iterator[tuple[int, bytes]]:
    waiting: dict[Future[bytes], int] = {executor.submit(evaluate_packed, study, *ranges[i]): i for i in missing}
    try:
        while waiting:
            ended = wait(waiting, return_when=FIRST_COMPLETED).done
            for future in sorted(ended, key=_failed):  # what succeeded is kept before what failed is raised
                i = waiting.pop(future)
                yield i, future.result()
    finally:
        for future in waiting:
            future.cancel()


def _failed(future: Future[bytes]) -> bool:
    return future.cancelled() or future.exception() is not None
