"""How a module's operations share the tile: rings of places between queues inside an operation, and everything over between two operations."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fabless.compiler.emitter import Emitter
    from fabless.compiler.modules.places import Level, Places
    from fabless.program.tile import Tile

UNITS = ("load", "vpu", "mxu", "store")
#: Ring -> who fills a place, who empties it, how many places it has.
RINGS: dict[str, tuple[str, str, int]] = {
    "in": ("load", "vpu", 1),  # rows in the vector buffer
    "act": ("vpu", "mxu", 1),  # quantised rows
    "w": ("load", "mxu", 2),  # pieces of weights
    "c": ("mxu", "vpu", 2),  # outputs in the accumulators
    "bias": ("load", "vpu", 1),  # one column's bias
    "out": ("vpu", "store", 2),  # results in the vector buffer
    "copy": ("load", "store", 2),  # elements on their way
    "pack": ("vpu", "store", 1),  # quantised rows on their way to memory
}


@dataclass
class Flow:
    """Hold what the emission of one program needs: tile, memory, the emitter."""

    tile: Tile
    places: Places
    e: Emitter

    @property
    def vector_elements(self) -> int:
        """Return the elements of the vector buffer that an instruction's field reaches."""
        return min(self.tile.vector_elements, 1 << 16)

    @contextmanager
    def operation(self, name: str, *rings: str) -> Iterator[None]:
        """Emit one operation: its rings are empty at first and at last, and nothing of the next begins before all of it is over."""
        e = self.e
        e.label(name)
        for ring in rings:
            _, consumer, n = RINGS[ring]
            for _ in range(n):
                e.signal(consumer, f"{ring}_free")
            if n > 1:
                e.set(f"{ring}_at")
        yield
        for ring in rings:
            producer, _, n = RINGS[ring]
            for _ in range(n):
                e.wait(producer, f"{ring}_free")
            if n > 1:
                e.release(f"{ring}_at")
        self.barrier()

    def barrier(self) -> None:
        """Hold back all that follows until every unit is done with all that came before."""
        for unit in UNITS:
            self.e.signal(unit, f"{unit}_done")
        self.e.wait("ctrl", *(f"{unit}_done" for unit in UNITS))

    @contextmanager
    def fill(self, ring: str) -> Iterator[None]:
        """Emit what fills a place of a ring."""
        producer, _, _ = RINGS[ring]
        self.e.wait(producer, f"{ring}_free")
        yield
        self.e.signal(producer, f"{ring}_ready")

    @contextmanager
    def empty(self, ring: str) -> Iterator[None]:
        """Emit what empties a place of a ring."""
        _, consumer, _ = RINGS[ring]
        self.e.wait(consumer, f"{ring}_ready")
        yield
        self.e.signal(consumer, f"{ring}_free")

    def turn(self, ring: str, place: int) -> None:
        """Go to the ring's other place, `place` words or elements behind the first."""
        self.e.toggle(f"{ring}_at", place)

    @contextmanager
    def walk(self, levels: tuple[Level, ...], *registers: str) -> Iterator[None]:
        """Repeat what is emitted inside over a nest, outermost last; each register moves in bytes by its sequence's steps of elements."""
        if not levels:
            yield
            return
        level, e = levels[-1], self.e
        with e.loop(level.n):
            with self.walk(levels[:-1], *registers):
                yield
            if level.n > 1:
                for register, step in zip(registers, level.steps, strict=True):
                    e.add(register, 4 * step)
        if level.n > 1:
            for register, step in zip(registers, level.steps, strict=True):
                e.add(register, -4 * step * level.n)
