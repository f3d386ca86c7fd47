"""`fabless run FILE.py:NAME`: a PyTorch module on the bit-exact machine."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from inspect import isfunction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.cli.say import say, say_json, say_table
from fabless.core.errors import InputError, nearest
from fabless.core.units import si

if TYPE_CHECKING:
    from fabless.chip.chip import Chip
    from fabless.program.tile import Tile

_SOURCE = re.compile(r"^(?P<path>.+\.py)(?::(?P<name>\w+))?$")


def names_module(model: str) -> bool:
    """Tell whether a model is given as a function in a Python file."""
    return _SOURCE.match(model) is not None


def run_module(source: str, chip: Chip, tile: Tile, *, json: bool) -> None:
    """Capture, compile and run a module; print how far its outputs are from PyTorch's, its cycles, and where they go."""
    from fabless.compiler.modules.driver import compile_module
    from fabless.fleet.module_run import call, cycles_by_operation
    from fabless.model.torch_capture import capture
    from fabless.program.verify import verify
    from fabless.sim.dram import memory_model_of

    module, inputs, name = _opened(source)
    began = time.monotonic()
    captured = capture(module, inputs, name)
    compiled = compile_module(captured, tile)
    compiled_s = time.monotonic() - began
    verify(compiled.program)
    tensors = call(compiled, *(t.detach().numpy() for t in inputs))
    exact = _outputs(module, inputs)
    cycles, operations = cycles_by_operation(compiled, memory_model_of(chip, tile))
    busy = captured.macs / (cycles * tile.rows * 32)
    errors = [
        {
            "output": n,
            "shape": list(e.shape),
            "greatest_error": float(np.abs(tensors[n] - e).max(initial=0)),
            "greatest": float(np.abs(e).max(initial=0)),
        }
        for n, e in zip(captured.outputs, exact, strict=True)
    ]
    if json:
        say_json({
            "module": name, "chip": chip.name, "instructions": len(compiled.program), "digest": compiled.program.digest, "macs": captured.macs, "cycles": cycles,
            "seconds": cycles / chip.clock_hz, "mesh_utilisation": busy, "fidelity": "cycle", "errors": errors, "operations": operations,
            "outputs": {n: tensors[n] for n in captured.outputs}, "compile_s": compiled_s,
        })  # fmt: skip
        return
    say_table(("operation", "cycles", "share"), [(o.name, f"{o.cycles:,}", f"{o.cycles / cycles:.1%}") for o in operations], right=(1, 2))
    say()
    for e in errors:
        say(f"output {e['output']} {e['shape']}: at most {e['greatest_error']:.3g} from PyTorch, whose greatest is {e['greatest']:.3g}")
    say(
        f"{name} on 1 tile of '{chip.name}' ({chip.process}, {si(chip.clock_hz, 'Hz')}): {len(compiled.program):,} instructions, {cycles:,} cycles = "
        f"{si(cycles / chip.clock_hz, 's')}, mesh {busy:.1%} busy (fidelity: cycle; bits exact, program proven legal)"
    )


def _outputs(module: Any, inputs: tuple[Any, ...]) -> list[np.ndarray]:
    import torch

    with torch.no_grad():
        result = module(*inputs)
    return [t.numpy() for t in (result if isinstance(result, (list, tuple)) else (result,))]


def _opened(source: str) -> tuple[Any, tuple[Any, ...], str]:
    """Return (module, example inputs, name) of a function in a file."""
    match = _SOURCE.match(source)
    assert match is not None
    path, name = Path(match["path"]), match["name"]
    if not path.is_file():
        raise InputError(f"{path}: no such file; give FILE.py:NAME, where NAME is a function that returns (module, example inputs)")
    spec = importlib.util.spec_from_file_location(f"fabless_module_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:  # the reader's own file: whatever it raises is told with its place
        raise InputError(f"{path}: {type(error).__name__}: {error}") from error
    functions = [n for n, v in vars(loaded).items() if isfunction(v) and not n.startswith("_") and v.__module__ == spec.name]
    if name not in functions:
        asked = f"no function '{name}'{nearest(name, functions)}" if name else "no function is named"
        raise InputError(f"{path}: {asked}; give {path}:NAME with one of {', '.join(functions)}")
    made = getattr(loaded, name)()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], (tuple, list))):
        raise InputError(f"{path}:{name}: returns {type(made).__name__}; return (module, example inputs as a tuple of tensors)")
    return made[0], tuple(made[1]), name
