"""Arithmetic leaves on their own: vectors in, results out, at millions a second."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fabless.program.tile import TINY
from fabless.rtl.bench.build import FAST, compile_verilog, require_tools

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.rtl.block import Block


def run_leaf(kind: type[Block], latency: int, first: NDArray[np.uint32], second: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return what a block with two inputs and the output `y` computes for each pair, `latency` cycles after it entered."""
    require_tools()
    from fabless.rtl.block import Shared
    from fabless.rtl.emit import verilog_of

    block = kind(Shared(TINY))
    names = list(block.inputs)
    defines: dict[str, int | str] = {
        "FL_LATENCY": latency, "FL_FIRST": names[0], "FL_SECOND": names[1], "FL_CLASS": f"V{block.module}",
        "FL_HEADER": f'\\"V{block.module}.h\\"',
    }  # fmt: skip
    harness = Path(__file__).with_name("leaf.cpp").read_text()
    program = compile_verilog(verilog_of(block), harness, top=block.module, defines=defines, optimise=FAST)
    with tempfile.TemporaryDirectory(prefix="fabless-leaf-") as directory:
        vectors, results = Path(directory) / "vectors", Path(directory) / "results"
        np.stack([first, second], axis=1).astype(np.uint32).tofile(vectors)
        subprocess.run([program, vectors, results], check=True)
        return np.fromfile(results, np.uint32)
