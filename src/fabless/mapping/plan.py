"""How a model is spread over chips."""

from __future__ import annotations

from dataclasses import dataclass

from fabless.core.errors import InputError


@dataclass(frozen=True, slots=True, order=True)
class Plan:
    """Spread one replica over `tensor * pipeline * data_attention` chips, `expert` of which share the routed experts.

    `expert` divides the replica's chips: routed experts are spread over `expert` chips, each expert's matrices over the rest.
    `data` is the number of attention replicas inside one expert-parallel group (DP attention); 1 means every chip takes part in all attention.
    Chips of a replica = tensor * pipeline * data, and expert divides tensor * data.
    """

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    data: int = 1

    def __post_init__(self) -> None:
        if min(self.tensor, self.pipeline, self.expert, self.data) < 1:
            raise InputError(f"plan {self}: every degree of parallelism must be at least 1")
        if (self.tensor * self.data) % self.expert:
            raise InputError(f"plan {self}: expert={self.expert} must divide tensor x data = {self.tensor * self.data}")

    @property
    def n_chips(self) -> int:
        """Return the chips of one replica."""
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        parts = [("tp", self.tensor), ("pp", self.pipeline), ("ep", self.expert), ("dp", self.data)]
        return "-".join(f"{k}{v}" for k, v in parts if v > 1) or "tp1"
