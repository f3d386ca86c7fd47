"""How far a prediction may be off on a chip that nobody has measured: residuals of chips left out, by family and kind of number."""

from __future__ import annotations

from fabless.core.errors import InputError
from fabless.core.sources import table

#: Kinds of numbers that have bands, as in `validate.checked.Checked.kind`.
KINDS = ("tpot", "ttft", "ttft_queued", "offline", "throughput", "server", "power")


def error_band(family: str, kind: str = "tpot") -> float:
    """Return the half-width of the 80% band around a prediction, as a ratio: 0.2 means within 20% for four rows of five.

    From rows of data/transfer.toml, the 80th percentile of |predicted / measured - 1| when the software's parameters are fitted without the
    chip. A family without measurements of that kind gets the band over all families left out in turn, the widest that was found.
    """
    if kind not in KINDS:
        raise InputError(f"no error band for '{kind}'; known: {', '.join(KINDS)}")
    facts = table("transfer")
    own = facts.select(family=family, metric=kind)
    return (own or facts.select(family="transfer", metric=kind))[0].known
