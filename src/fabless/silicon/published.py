"""Hardened dies against published ones, block by block, with the reason for each difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.chip.catalogue import find_name, load_chip
from fabless.core.sources import table
from fabless.silicon.harden import harden

if TYPE_CHECKING:
    from fabless.core.sources import Source


@dataclass(frozen=True, slots=True)
class Difference:
    """Compare one block (or the whole die) as hardened with what was published, and say why they differ."""

    chip: str
    block: str
    hardened_mm2: float
    published_mm2: float
    reason: str
    source: Source

    @property
    def ratio(self) -> float:
        """Return by how much the hardened block is larger: 0.05 is 5%."""
        return self.hardened_mm2 / self.published_mm2 - 1.0


def published_chips() -> tuple[str, ...]:
    """Return the ids of the chips with published block areas."""
    return tuple(dict.fromkeys(str(f.attributes["chip"]) for f in table("process_dies")))


def differences(chip: str) -> tuple[Difference, ...]:
    """Return the die and each published block of a chip against `harden`; empty for a chip without published blocks."""
    id = find_name(chip)
    rows = table("process_dies").select(chip=id)
    if not rows:
        return ()
    silicon = harden(load_chip(chip))
    hardened = {block.name: block.area_mm2 for block in silicon.blocks} | {"die": silicon.die_area_mm2}
    return tuple(
        Difference(str(id), name, sum(hardened[part] for part in name.split(" + ")), row.known, row.note, row.source)
        for row in rows
        for name in (str(row.attributes["blocks"]),)
    )
