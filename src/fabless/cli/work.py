"""The long run behind `design` and `compare`: search, conclude, write, with a progress bar on standard error."""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from fabless.core.errors import FablessError, InputError
from fabless.core.files import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from fabless.explore.answer import Answer
    from fabless.explore.study import Study


def answered(path: Path, *, out: Path | None, processes: int | None, dask: str | None, quiet: bool) -> tuple[Answer, Path]:
    """Answer the study of a file and write its results; return the answer and the directory that holds them."""
    from fabless.explore.conclusion import conclude
    from fabless.explore.outputs import write_outputs
    from fabless.explore.search import design
    from fabless.explore.study import read_study
    from fabless.report.page import page

    study = read_study(path)
    directory = out or Path("out") / study.name
    _require_writable(directory)
    with _executor(processes, dask) as executor, _progress(study, quiet=quiet) as progress:
        frontier = design(study, executor=executor, progress=progress, out=directory)
    answer = conclude(frontier)
    html = page(answer, f"fabless design {path}")
    write_outputs(answer, directory)
    write_text(directory / "report.html", html)
    return answer, directory


def _require_writable(directory: Path) -> None:
    """Make the directory and refuse one that takes no files, before minutes of work rather than after."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(f"{directory}: cannot write there ({error.strerror}); choose another place with --out") from None


@contextmanager
def _executor(processes: int | None, dask: str | None) -> Iterator[Executor | None]:
    if dask is not None:
        with _dask(dask) as executor:
            yield executor
    elif processes is not None:
        if processes < 1:
            raise InputError(f"--processes must be at least 1, not {processes}")
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(processes) as pool:
            yield pool
    else:
        yield None


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError:
        raise FablessError("--dask needs the cluster library; install it with: pip install 'fabless[dask]'") from None
    try:
        client = Client(address, timeout=10)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise InputError(
            f"--dask {address}: no scheduler answers there ({error}); start one with 'dask scheduler' and give its tcp:// address"
        ) from None
    with client:
        executor: Executor = client.get_executor()  # type: ignore[no-untyped-call]
        yield executor


@contextmanager
def _progress(study: Study, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    if quiet:
        with nullcontext():
            yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("points"), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(f"searching {study.name}", total=study.n_points)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance
