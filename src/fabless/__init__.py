"""fabless: should we have our own inference chip, and which one?

Ten nouns, ten verbs; everything else is reached through its module. Names are loaded when first used, so that `import fabless` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabless.chip.chip import Chip as Chip
    from fabless.cost.bill import Bill as Bill
    from fabless.model.graph import Graph as Graph
    from fabless.silicon.silicon import Silicon as Silicon
    from fabless.sim.trace import Trace as Trace

__version__ = "0.1.0"

_HOME = {
    "Chip": "fabless.chip.chip",
    "Graph": "fabless.model.graph",
    "Trace": "fabless.sim.trace",
    "Silicon": "fabless.silicon.silicon",
    "Bill": "fabless.cost.bill",
}

__all__ = ["Bill", "Chip", "Graph", "Silicon", "Trace"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fabless' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
