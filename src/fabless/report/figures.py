"""Numbers for people: the same wording of money, ranges and rates in tables, cards and charts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabless.core.ranges import Range


def usd(value: float) -> str:
    """Write dollars with the digits that matter: `$0.0523`, `$12.40`, `$563`, `$3,320`, `$1.2 M`, `$38 B`."""
    size = abs(value)
    if size >= 1e9:
        return f"${value / 1e9:.3g} B"
    if size >= 1e6:
        return f"${value / 1e6:.3g} M"
    if size >= 100:
        return f"${value:,.0f}"
    if size >= 10:
        return f"${value:.2f}"
    return f"${value:.3g}" if size else "$0"


def usd_range(value: Range) -> str:
    """Write a range of dollars: `$0.12 (0.09 to 0.17)`, one figure when it has no width."""
    if value.low == value.high:
        return usd(value.mid)
    return f"{usd(value.mid)} ({usd(value.low)} to {usd(value.high)})"


def count(value: float) -> str:
    """Write a count: `8`, `12,340`, `1.3 M`, `1,290 T`."""
    for scale, suffix in ((1e12, " T"), (1e9, " B"), (1e6, " M")):
        if abs(value) >= scale:
            return f"{float(f'{value / scale:.3g}'):,g}{suffix}"
    return f"{value:,.0f}"


def percent(ratio: float, digits: int = 0) -> str:
    """Write a ratio as per cent."""
    return f"{100 * ratio:.{digits}f}%"


def seconds(value: float) -> str:
    """Write a duration: `31.2 ms`, `1.4 s`."""
    return f"{value * 1e6:.3g} µs" if value < 1e-3 else f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def years(value: float) -> str:
    """Write a span in years or months."""
    return f"{value:.3g} years" if value >= 1 else f"{value * 12:.2g} months"
