"""fabless: should we have our own inference chip, and which one?

Nouns and verbs of one description at four levels of truth, and its price; everything else is reached through its module.
Names are loaded when first used, so that `import fabless` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabless.chip.catalogue import load_chip as load_chip
    from fabless.chip.chip import Chip as Chip
    from fabless.cost.bill import Bill as Bill
    from fabless.cost.price import price as price
    from fabless.explore.answer import Answer as Answer
    from fabless.explore.conclusion import conclude as conclude
    from fabless.explore.frontier import Frontier as Frontier
    from fabless.explore.search import design as design
    from fabless.explore.study import read_study as read_study
    from fabless.mapping.plan import Plan as Plan
    from fabless.model.graph import Graph as Graph
    from fabless.model.load import load as load_model
    from fabless.model.lower import lower as lower
    from fabless.model.model import Model as Model
    from fabless.model.step import Recipe as Recipe
    from fabless.model.step import Step as Step
    from fabless.silicon.harden import harden as harden
    from fabless.silicon.silicon import Silicon as Silicon
    from fabless.sim.roofline import estimate as estimate
    from fabless.sim.trace import Trace as Trace

__version__ = "0.1.0"

_HOME = {
    "Answer": ("fabless.explore.answer", "Answer"),
    "Bill": ("fabless.cost.bill", "Bill"),
    "Chip": ("fabless.chip.chip", "Chip"),
    "Frontier": ("fabless.explore.frontier", "Frontier"),
    "Graph": ("fabless.model.graph", "Graph"),
    "Model": ("fabless.model.model", "Model"),
    "Plan": ("fabless.mapping.plan", "Plan"),
    "Recipe": ("fabless.model.step", "Recipe"),
    "Silicon": ("fabless.silicon.silicon", "Silicon"),
    "Step": ("fabless.model.step", "Step"),
    "Trace": ("fabless.sim.trace", "Trace"),
    "conclude": ("fabless.explore.conclusion", "conclude"),
    "design": ("fabless.explore.search", "design"),
    "estimate": ("fabless.sim.roofline", "estimate"),
    "harden": ("fabless.silicon.harden", "harden"),
    "load_chip": ("fabless.chip.catalogue", "load_chip"),
    "load_model": ("fabless.model.load", "load"),
    "lower": ("fabless.model.lower", "lower"),
    "price": ("fabless.cost.price", "price"),
    "read_study": ("fabless.explore.study", "read_study"),
}

__all__ = [
    "Answer", "Bill", "Chip", "Frontier", "Graph", "Model", "Plan", "Recipe", "Silicon", "Step", "Trace",
    "conclude", "design", "estimate", "harden", "load_chip", "load_model", "lower", "price", "read_study",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fabless' has no attribute '{name}'")
    module, attribute = _HOME[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
