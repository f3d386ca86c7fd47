"""What a design costs once, before the first good chip."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fabless.cost.inputs import Inputs

    Values = float | NDArray[np.float64]

#: IBS headline figures include software and are held to be inflated for regular arrays; the range reaches down to Gartner's low end.
NOTE = (
    "NRE: published design costs (IBS) are headline figures for the hardest chips of a process, include software, and are held to be "
    "inflated for regular arrays; the low end follows Gartner's"
)


def nre_lines(x: Inputs[Values]) -> tuple[tuple[str, Values, tuple[str, ...]], ...]:
    """Return (label, USD, names of the inputs) of each one-time cost: hardware design with verification, software, masks, licences."""
    return (
        ("hardware design and verification", x.design_usd, ("design_usd",)),
        ("software", x.software_usd, ("software_usd",)),
        ("mask sets", x.masks_usd * x.mask_sets, ("masks_usd", "mask_sets")),
        ("licensed blocks", x.ip_usd, ("ip_usd",)),
    )


def nre_usd(x: Inputs[Values]) -> Values:
    """Return the sum of the one-time costs."""
    total: Values = 0.0
    for _, usd, _ in nre_lines(x):
        total = total + usd
    return total
