"""Copies: elements from where they lie to where an operation can walk them, by `load` and `store` through the vector buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabless.compiler.modules.places import GRANULE, Level, Rows, addresses, nest, split_levels
from fabless.core.errors import InfeasibleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabless.compiler.modules.flow import Flow
    from fabless.compiler.modules.places import Addresses

_MOST_ROWS = 1024
_DEEPEST = 4


def copy(flow: Flow, name: str, source: Addresses, to: Addresses) -> None:
    """Emit the copy of every element of `source` to the address at the same place of `to`."""
    with flow.operation(name, "copy"):
        for register in ("cs", "cd"):
            flow.e.set(register)
        _copy(flow, name, source, to)
        flow.e.release("cs", "cd")


def gathered(flow: Flow, name: str, at: Addresses, m: int, n: int) -> Rows:
    """Return new rows `[m, n]` with the elements of `at` (m * n in row-major order), whatever their places."""
    rows = flow.places.rows(name, m, n, "cache")
    copy(flow, name, at.reshape(m, n), addresses(rows, (m, n)))
    return rows


def _copy(flow: Flow, name: str, source: Addresses, to: Addresses) -> None:
    levels = nest(source, to)
    if levels is None:
        if source.ndim == 1 or len(source) == 1:
            if source.ndim == 1:
                raise InfeasibleError(
                    f"{name}: elements at {source[:4].tolist()}... follow no nest of loops; make the tensor contiguous before"
                )
            _copy(flow, name, source[0], to[0])
            return
        for part, target in zip(source, to, strict=True):
            _copy(flow, name, part, target)
        return
    _walked(flow, name, levels or (Level(1, (1, 1)),), int(source.flat[0]), int(to.flat[0]))


def _walked(flow: Flow, name: str, levels: Sequence[Level], source: int, to: int) -> None:
    """Emit one nest: the contiguous level as a row's count or single elements, the longest other level as rows, the rest as loops."""
    first = levels[0]
    aligned = [source, to, first.n, *(s for level in levels[1:] for s in level.steps)]
    whole = first.steps == (1, 1) and not any(x % GRANULE for x in aligned)
    others = list(levels[1:] if whole else levels)
    rows = max(range(len(others)), key=lambda i: others[i].n, default=-1)
    count = first.n if whole else 1
    room = min(_MOST_ROWS, _staging(flow) // count)
    if room < 1:  # one row does not fit the staging place: cut it
        most = _staging(flow) // GRANULE * GRANULE
        _pieces(flow, name, levels, 0, most, source, to)
        return
    if rows >= 0 and others[rows].n > room:
        _pieces(flow, name, levels, rows + whole, room, source, to)
        return
    row = others.pop(rows) if rows >= 0 else Level(1, (0, 0))
    while len(others) > _DEEPEST:  # deeper than the sequencer's loops: written out
        outer = others.pop(min(range(len(others)), key=lambda i: others[i].n))
        kept = [first] * whole + [row] * (rows >= 0) + others
        for i in range(outer.n):
            _walked(flow, name, kept, source + i * outer.steps[0], to + i * outer.steps[1])
        return
    _move(flow, count, row, tuple(others), source, to)


def _pieces(flow: Flow, name: str, levels: Sequence[Level], position: int, most: int, source: int, to: int) -> None:
    cut, rest = split_levels(levels, position, most)
    _walked(flow, name, cut, source, to)
    if rest is not None:
        done = levels[position].n - rest.n
        moved = [s + done * step for s, step in zip((source, to), levels[position].steps, strict=True)]
        _walked(flow, name, [*levels[:position], rest, *levels[position + 1 :]], *moved)


def _staging(flow: Flow) -> int:
    return min(flow.vector_elements // 2, 4096) // flow.tile.vector_align * flow.tile.vector_align


def _move(flow: Flow, count: int, row: Level, loops: tuple[Level, ...], source: int, to: int) -> None:
    e, place = flow.e, _staging(flow)
    common: dict[str, Any] = {"target": "v", "format": "fp32"}
    # single elements that land side by side on whole granules are stored as one row
    joined = count == 1 and row.steps[1] == 1 and row.n % GRANULE == 0 and to % GRANULE == 0
    joined = joined and not any(level.steps[1] % GRANULE for level in loops)
    into = {"count": row.n, "rows": 1} if joined else {"count": count, "rows": row.n, "stride": 4 * row.steps[1]}
    assert row.n * count <= place
    assert min(row.steps) >= 0
    with flow.walk(loops, "cs", "cd"):
        with flow.fill("copy"):
            e("load", **common, count=count, rows=row.n, stride=4 * row.steps[0], dst=0, dst_reg=e.x("copy_at"), address=4 * source,
              address_reg=e.x("cs"))  # fmt: skip
        with flow.empty("copy"):
            e("store", **common, **into, src=0, src_reg=e.x("copy_at"), address=4 * to, address_reg=e.x("cd"))
        flow.turn("copy", place)


__all__ = ["copy", "gathered"]
