"""A bill: lines with a label, dollars as a range, when they are due and where the figures come from."""

from __future__ import annotations

from dataclasses import dataclass

from fabless.core.ranges import Range

_NOTHING = Range.exact(0.0)


@dataclass(frozen=True, slots=True)
class Line:
    """State one cost: `when` is "once" (NRE), "capex" (per `life_years`) or "yearly"; `usd` for the whole fleet.

    `usd_per_year` is what the line adds to a year: the sum itself if yearly, else its capital recovery with interest.
    """

    label: str
    group: (
        str  # silicon | memory | package | test | margin | nre | server | network | facility | energy | operations | spares | upkeep | rent
    )
    usd: Range
    when: str
    sources: tuple[str, ...] = ()
    life_years: float = 1.0
    usd_per_year: Range = _NOTHING


@dataclass(frozen=True, slots=True)
class Bill:
    """Hold the lines of a service's cost and what they come to per year, per million tokens and per joule."""

    lines: tuple[Line, ...]
    tokens_per_year: float
    usd_per_year: Range
    usd_per_mtok: Range
    prefill_usd_per_mtok: Range
    decode_usd_per_mtok: Range
    j_per_token: Range
    tokens_per_s_per_mw: Range
    nre_usd: Range
    capex_usd: Range
    notes: tuple[str, ...] = ()

    def group_usd_per_year(self) -> dict[str, Range]:
        """Return what each group adds to a year, in the order of the lines."""
        groups: dict[str, Range] = {}
        for line in self.lines:
            groups[line.group] = groups.get(line.group, Range.exact(0.0)) + line.usd_per_year
        return groups
