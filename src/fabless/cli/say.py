"""How commands speak: tables for people, JSON for programs, both on standard output; progress on standard error."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, is_dataclass
from enum import Enum
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fabless.sim.trace import Trace


def say(text: str = "") -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")


def say_json(value: Any) -> None:
    """Print a value as JSON: dataclasses become objects, arrays lists, unknown numbers null."""
    say(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def say_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print rows in aligned columns, those in `right` flush right; the last column is not padded."""
    lines = [tuple(head), *(tuple(r) for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for n, line in enumerate(lines):
        cells = [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        say("  ".join(cells).rstrip())
        if n == 0:
            say("  ".join("─" * w for w in widths))


def say_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print (term, value) lines with the values aligned."""
    pairs = list(pairs)
    width = max((len(term) for term, _ in pairs), default=0)
    for term, value in pairs:
        say(f"{term.ljust(width)}  {value}")


def say_ops(trace: Trace) -> None:
    """Print the ops of a simulated launch: the cycles that each adds, what each resource works, the bytes of DRAM, and the stalls."""
    rows = [
        (
            e.name, f"{e.count:,}", f"{e.cycles:,.0f}", f"{e.cycles / trace.cycles:.1%}", f"{e.compute_cycles:,.0f}", f"{e.vector_cycles:,.0f}",
            f"{e.memory_cycles:,.0f}", f"{e.counters.total_macs:,.0f}", f"{e.counters.dram_bytes:,.0f}",
            ", ".join(f"{name} {n:,.0f}" for name, n in sorted(e.stalls, key=lambda stall: -stall[1])[:2]),
        )
        for e in trace.events
    ]  # fmt: skip
    head = ("op", "times", "cycles", "of all", "matrix", "vector", "memory", "MACs", "DRAM bytes", "longest waits")
    say_table(head, rows, right=tuple(range(1, 9)))


def plain(value: Any) -> Any:
    """Return a value as JSON types."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if hasattr(value, "items"):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)
