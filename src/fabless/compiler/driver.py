"""Compile: a decoder, a tile and the shapes of its launches to one program per tile and shape."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fabless.compiler import launch
from fabless.compiler.emitter import Emitter
from fabless.compiler.partition import PAGE_KEYS, Shape, ceil, part_of
from fabless.compiler.place import Layout, Scratch, lay_out, scratch
from fabless.compiler.step import Step, emit
from fabless.core.errors import InfeasibleError, InputError, UnsupportedError, nearest
from fabless.program.program import Program

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fabless.model.decoder import Decoder
    from fabless.program.tile import Tile

#: What each pass does; any may be skipped, and the results keep their bits.
PASSES: dict[str, str] = {
    "fuse": "quantise inside the vector instruction that computes the last operation before it",
    "double_buffer": "load the next piece of weights while the mesh multiplies this one",
    "prefetch": "ask for the first pieces of a matrix before the vector work that its product waits for",
    "keep_scores": "keep scores of as many keys as the vector buffer holds instead of computing them twice",
    "merge_syncs": "merge neighbouring waits and signals of one queue",
}


@dataclass(frozen=True)
class Compiled:
    """Hold one model compiled for a ring of tiles: layouts and, per shape of launch, one program per tile."""

    decoder: Decoder
    tile: Tile
    layouts: tuple[Layout, ...]
    programs: dict[Shape, tuple[Program, ...]] = field(repr=False)
    kept_spans: dict[Shape, int] = field(repr=False)
    skipped: frozenset[str] = frozenset()

    @property
    def n_tiles(self) -> int:
        """Return the tiles of the ring."""
        return len(self.layouts)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Return the shapes of launch, smallest first."""
        return tuple(sorted(self.programs, key=lambda s: (s.rows, s.segments)))

    def program(self, shape: Shape | None = None, index: int = 0) -> Program:
        """Return the program of one shape (default: the smallest) and tile."""
        chosen = self.shapes[0] if shape is None else shape
        if chosen not in self.programs:
            raise InputError(f"no program of shape {chosen}; compiled are {', '.join(map(str, self.shapes))}")
        return self.programs[chosen][index]

    def parameters(self, shape: Shape, segments: Sequence[launch.Segment], *, logits: bool = True) -> dict[str, object]:
        """Return the parameters of a launch, the same for every tile; see `launch.values`."""
        return launch.values(self.layouts[0], shape, segments, logits=logits, kept_spans=self.kept_spans.get(shape, 0))


def compile(
    decoder: Decoder,
    tile: Tile,
    shapes: Iterable[Shape] = (Shape(1, 1),),
    *,
    context_tokens: int | None = None,
    n_pages: int | None = None,
    n_tiles: int = 1,
    partition: str = "tensor",
    format: str = "int8_block32",
    head_format: str | None = None,
    skip: Iterable[str] = (),
) -> Compiled:
    """Compile a decoder for a ring of `n_tiles` tiles; weights are not needed (`pack.pack` writes them into memory).

    `partition`: how the ring shares the model, one of `partition.PARTITIONS`.
    `shapes`: how many sequences and tokens a launch computes at once. `context_tokens`: the longest sequence (default: the model's).
    `format`: of the weights, one of `tiles.STORED`; `head_format`: of the head and the token table (default: the same).
    `n_pages`: pages of 128 keys of the cache (default: one context). `skip`: names of `PASSES` to leave out.
    Raises `UnsupportedError` naming what is not compiled, `InfeasibleError` naming the buffer that is too small.
    """
    chosen, skipped = tuple(dict.fromkeys(shapes)), frozenset(skip)
    unknown = sorted(skipped - set(PASSES))
    if unknown:
        raise InputError(f"no pass '{unknown[0]}'{nearest(unknown[0], PASSES)}; known: {', '.join(PASSES)}")
    context = decoder.context_tokens if context_tokens is None else context_tokens
    if not 0 < context <= decoder.context_tokens:
        raise InputError(f"{decoder.name}: a context of {context} tokens; the model has 1 to {decoder.context_tokens}")
    pages = ceil(context, PAGE_KEYS) if n_pages is None else n_pages
    slots = 1 if "double_buffer" in skipped else 2
    layouts = tuple(
        lay_out(
            decoder,
            tile,
            chosen,
            part=part_of(decoder, partition, i, n_tiles),
            context_tokens=context,
            n_pages=pages,
            format=format,
            head_format=head_format or format,
            slots=slots,
        )
        for i in range(n_tiles)
    )
    most = 0 if "keep_scores" in skipped else ceil(context, PAGE_KEYS)
    kept = {shape: min(scratch(layout, shape, most_spans=most).kept_spans for layout in layouts) for shape in chosen}
    places = {shape: tuple(scratch(layout, shape, most_spans=n) for layout in layouts) for shape, n in kept.items()}
    programs = {
        shape: tuple(_program(layout, shape, skipped, p) for layout, p in zip(layouts, places[shape], strict=True)) for shape in chosen
    }
    return Compiled(decoder, tile, layouts, programs, kept, skipped)


def _program(layout: Layout, shape: Shape, skipped: frozenset[str], places: Scratch) -> Program:
    declared = launch.parameters(layout, shape, places.kept_spans)
    words = max(p.index + p.count for p in declared)
    if words > layout.tile.parameter_words:
        raise InfeasibleError(
            f"{layout.decoder.name}: {words:,} parameter words for {shape} and {layout.spans} pages, the tile has {layout.tile.parameter_words:,}; "
            f"compile for a shorter context or fewer sequences"
        )
    e = Emitter(layout.tile, merge="merge_syncs" not in skipped)
    emit(Step(layout, shape, places, {p.name: p for p in declared}, e, "fuse" not in skipped, "prefetch" not in skipped))
    if len(e.items) > layout.tile.instruction_words:
        raise InfeasibleError(
            f"{layout.decoder.name}: {len(e.items):,} instructions, program memory holds {layout.tile.instruction_words:,}; "
            f"enlarge it, or use more tiles (fewer heads each)"
        )
    suffix = f" tile {layout.part.index}" * (layout.part.n_tiles > 1)
    name = f"{layout.decoder.name} {shape}{suffix}"
    read_high = max(len(layout.part.experts) - 1, int(layout.whole_experts), 0)
    return Program.of(e.items, layout.tile, buffers=layout.buffers, parameters=declared, labels=e.labels, name=name, read_high=read_high)


__all__ = ["PASSES", "Compiled", "Shape", "UnsupportedError", "compile"]
