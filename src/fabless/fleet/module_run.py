"""A module on the machine: what a host does around one call, and where the cycles of that call go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import InputError
from fabless.model.module_reference import checked
from fabless.sim.cycles import time
from fabless.sim.dram import IDEAL, MemoryModel
from fabless.sim.machine import execute

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fabless.compiler.modules.driver import CompiledModule


@dataclass(frozen=True, slots=True)
class OperationCycles:
    """Hold the cycles of one operation of a module, copies that it needs apart under their own names."""

    name: str
    cycles: int


def call(compiled: CompiledModule, *inputs: NDArray[np.float32], fast: bool | None = None) -> dict[str, NDArray[np.float32]]:
    """Run one call on the bit-exact machine and return every tensor by name; raises `InputError` for inputs of another number or shape, or not finite."""
    memory, module = compiled.image.copy(), compiled.module
    if len(inputs) != len(module.inputs):
        raise InputError(f"{module.name}: {len(inputs)} inputs were given, it takes {len(module.inputs)}: {', '.join(module.inputs)}")
    for name, value in zip(module.inputs, inputs, strict=True):
        compiled.write(memory, name, checked(module.by_name[name], value))
    execute(compiled.program, memory, fast=fast)
    return {node.name: compiled.read(memory, node.name) for node in module.nodes}


def cycles_by_operation(compiled: CompiledModule, memory_model: MemoryModel = IDEAL) -> tuple[int, tuple[OperationCycles, ...]]:
    """Return the cycles of a call and of its operations, in order: one begins when everything before it is over."""
    program = compiled.program
    timing = time(program, None, None, memory_model, keep=1 << 22)
    names = sorted(((n, at) for n, at in program.labels.items() if n != "end"), key=lambda item: item[1])
    firsts = np.array([at for _, at in names])
    owner = np.searchsorted(firsts, timing.pcs, side="right") - 1
    began = [0] + [int(timing.starts[owner == i].min(initial=timing.cycles)) for i in range(1, len(names))] + [timing.cycles]
    return timing.cycles, tuple(OperationCycles(name, began[i + 1] - began[i]) for i, (name, _) in enumerate(names))
