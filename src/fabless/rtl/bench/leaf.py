"""Blocks on their own: vectors in, results out, at millions a second."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import InputError
from fabless.program.tile import TINY
from fabless.rtl.bench.build import QUICK, compile_verilog, require_tools

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from fabless.program.tile import Tile
    from fabless.rtl.block import Block


def n_words(width: int) -> int:
    """Return the 32-bit words of a port of so many bits."""
    return -(-width // 32)


def place(port: str, width: int, text: str) -> str:
    """Return C++ for every 32-bit word of a port of a simulated block; `{}` in `text` is the word. Words of ports of 33 to 64 bits are not apart."""
    if 32 < width <= 64:
        raise InputError(f"port '{port}' of {width} bits: words of ports of 33 to 64 bits are not apart; make it wider or narrower")
    return "".join(text.format(f"top.{port}[{i}]" if width > 64 else f"top.{port}") for i in range(n_words(width)))


def run_leaf(kind: type[Block], inputs: Mapping[str, NDArray[np.uint32]], *, tile: Tile = TINY) -> dict[str, NDArray[np.uint32]]:
    """Return what a block shows on its outputs in each cycle, before the clock rises: `[cycles, words]` by port.

    `inputs`: by port `[cycles]` or `[cycles, words]`, low words first; an input that is not given is 0.
    """
    require_tools()
    from fabless.rtl.block import Shared
    from fabless.rtl.emit import verilog_of

    block = kind(Shared(tile))
    given = {name: np.asarray(v, np.uint32).reshape(len(v), -1) for name, v in inputs.items()}
    for name, values in given.items():
        if values.shape[1] != n_words(len(block.inputs[name])):
            raise InputError(f"port '{name}' has {n_words(len(block.inputs[name]))} words, {values.shape[1]} were given")
    widths = {name: len(s) for name, s in block.outputs.items()}
    harness = Path(__file__).with_name("leaf.cpp").read_text()
    for word, text in {
        "WORDS_IN": str(sum(v.shape[1] for v in given.values())),
        "WORDS_OUT": str(sum(map(n_words, widths.values()))),
        "SETS": " ".join(place(name, len(block.inputs[name]), "{} = *i++; ") for name in given),
        "GETS": " ".join(place(name, width, "*o++ = {}; ") for name, width in widths.items()),
        "VTOP": f"V{block.module}",
    }.items():
        harness = harness.replace(word, text)
    program = compile_verilog(verilog_of(block), harness, top=block.module, defines={}, optimise=QUICK)
    with tempfile.TemporaryDirectory(prefix="fabless-leaf-") as directory:
        vectors, results = Path(directory) / "vectors", Path(directory) / "results"
        np.concatenate(list(given.values()), axis=1).tofile(vectors)
        subprocess.run([program, vectors, results], check=True)
        rows = np.fromfile(results, np.uint32).reshape(-1, sum(map(n_words, widths.values())))
    ends = np.cumsum([n_words(width) for width in widths.values()])
    return {name: rows[:, end - n_words(width) : end] for (name, width), end in zip(widths.items(), ends, strict=True)}


def computed(kind: type[Block], latency: int, inputs: Mapping[str, NDArray[np.uint32]], output: str = "y") -> NDArray[np.uint32]:
    """Return what a pipeline computes of each cycle's inputs, `latency` cycles after they entered: `[cycles]`, or `[cycles, words]` where wider."""
    padded = {name: np.concatenate([v, np.zeros((latency, *v.shape[1:]), np.uint32)]) for name, v in inputs.items()}
    values = run_leaf(kind, padded)[output][latency:]
    return values[:, 0] if values.shape[1] == 1 else values
