"""Average power of a chip while it serves: what it burns idle, and what arithmetic and memory traffic add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabless.core.sources import table

if TYPE_CHECKING:
    from fabless.fleet.experiment import StaticBatch
    from fabless.fleet.step_times import SteppedDeployment


def average_power_ratio(steps: SteppedDeployment, experiment: StaticBatch) -> float:
    """Return the mean power of a chip over a static batch's prefill and decode, as a share of its TDP."""
    return table("software").fact("transfer.memory_ratio").known
