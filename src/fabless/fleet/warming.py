"""Prepare the compiled machine once per installation, in a process of its own, while the main process reads weights.

numba compiles the machine in some ten seconds and caches the result. A marker named by the machine's source, numba and the processor tells that
this has been done; where it is missing, `start` begins it. Until it is over a small model runs on the readable machine, to the same bits.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_WORK = "from fabless.fleet.warming import prepare; prepare()"
_AFTERWARDS = "from fabless.fleet.warming import prepare_cycles; prepare_cycles()"


def marker() -> Path:
    """Return the file whose presence says that the machine has been compiled here."""
    import platform
    from importlib.metadata import version

    from fabless.core.digest import digest
    from fabless.number import kernels, quantise
    from fabless.sim import machine

    sources = [*sorted(Path(machine.__file__).parent.glob("machine*.py")), Path(kernels.__file__), Path(quantise.__file__)]
    facts = [[p.name, p.stat().st_mtime_ns, p.stat().st_size] for p in sources]
    name = digest(
        {"sources": facts, "numba": version("numba"), "host": platform.node(), "processor": platform.processor(), "python": sys.version}
    )
    return Path.home() / ".cache" / "fabless" / f"machine-{name}"


def prepare() -> None:
    """Compile the machine, or load it from numba's cache, and leave the marker."""
    from fabless.core.errors import InputError
    from fabless.core.files import write_text
    from fabless.sim.machine_fast import warm

    warm()
    try:
        write_text(marker(), "compiled\n")
    except InputError:
        return  # a read-only home: the next run prepares again
    _begin(_AFTERWARDS)  # while the text streams: only the closing line needs it


def prepare_cycles() -> None:
    """Compile the cycle simulator, or load it from numba's cache."""
    from dataclasses import replace

    from fabless.program.assembler import assemble
    from fabless.program.tile import TINY
    from fabless.sim.cycles import time

    time(assemble("halt", tile=replace(TINY, memory_bytes=256)))


def start() -> subprocess.Popen[bytes] | None:
    """Begin to prepare in another process; None when it was done before."""
    try:
        if marker().exists():
            return None
    except OSError:
        return None
    return _begin(_WORK)


def _begin(work: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
