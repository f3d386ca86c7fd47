"""The modules of a tile as Amaranth elaborates them: text, ports, what each instantiates, and how many of each a tile has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MODULE = re.compile(r"^module \\(\S+)\n(.*?)^end\n", re.MULTILINE | re.DOTALL)
_PORT = re.compile(r"^  wire(?: width (\d+))? (input|output) \d+\s+(?:signed\s+)?\\(\S+)$", re.MULTILINE)
_CELL = re.compile(r"^  cell \\([^\s$]\S*) \\(\S+)\n(.*?)^  end$", re.MULTILINE | re.DOTALL)
_PARAMETER = re.compile(r"^    parameter \\(WIDTH|DEPTH) (\d+)$", re.MULTILINE)
_RAM = re.compile(r"fl_ram_(\d+)w(\d+)r")


@dataclass(frozen=True, slots=True)
class Memory:
    """Hold one memory of a block as it stands in the netlist: width, depth and read ports."""

    name: str
    width: int
    depth: int
    reads: int

    @property
    def bits(self) -> int:
        """Return the bits of all copies: one for each read port."""
        return self.width * self.depth * self.reads


@dataclass(frozen=True, slots=True)
class Hardware:
    """Hold one module: its RTLIL, ports by name with their widths, instances by name with the module of each, and memories."""

    name: str
    text: str
    inputs: dict[str, int]
    outputs: dict[str, int]
    instances: dict[str, str]
    memories: tuple[Memory, ...]


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Hold every module of a design by name."""

    top: str
    modules: dict[str, Hardware]

    def below(self, module: str) -> Iterator[tuple[str, str]]:
        """Yield (instance, module) of the modules of this design that a module instantiates; memories are none of them."""
        yield from ((i, m) for i, m in self.modules[module].instances.items() if m in self.modules)

    def paths(self, *, whole: frozenset[str]) -> Mapping[str, tuple[str, ...]]:
        """Return the places of each module, `a.b.c` below the top; what lies below a module of `whole` belongs to that module."""
        places: dict[str, list[str]] = {}
        pending = [("", self.top)]
        for path, module in pending:  # grows while it is walked
            places.setdefault(module, []).append(path)
            if module not in whole:
                pending += [(f"{path}.{i}".lstrip("."), m) for i, m in self.below(module)]
        return {m: tuple(p) for m, p in places.items()}

    def closure(self, module: str) -> dict[str, str]:
        """Return the RTLIL of a module and of all below it, the module first."""
        texts = {module: self.modules[module].text}
        for _, child in self.below(module):
            texts |= {m: t for m, t in self.closure(child).items() if m not in texts}
        return texts


def read_hierarchy(texts: Mapping[str, str], top: str) -> Hierarchy:
    """Return the hierarchy of RTLIL texts as Amaranth writes them."""
    modules = {}
    for text in texts.values():
        for found in _MODULE.finditer(text):
            name, body = found[1], found[2]
            ports: dict[str, dict[str, int]] = {"input": {}, "output": {}}
            for width, direction, port in _PORT.findall(body):
                ports[direction][port] = int(width or 1)
            cells = _CELL.findall(body)
            memories = tuple(_memory(i, m, inner) for m, i, inner in cells if _RAM.fullmatch(m))
            modules[name] = Hardware(name, found[0], ports["input"], ports["output"], {i: m for m, i, _ in cells}, memories)
    return Hierarchy(top, modules)


def _memory(instance: str, module: str, body: str) -> Memory:
    sizes = {k: int(v) for k, v in _PARAMETER.findall(body)}
    reads = _RAM.fullmatch(module)
    assert reads is not None  # the caller looked
    return Memory(instance, sizes["WIDTH"], sizes["DEPTH"], int(reads[2]))
