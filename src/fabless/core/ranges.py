"""A figure that is not known exactly: low, mid and high carried through every sum and product."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Hold low <= mid <= high of a non-negative quantity; arithmetic keeps the order, ends with ends.

    Limits: products of the extremes assume that inputs move together, so that a range is an envelope, not a confidence interval;
    `cost.uncertainty` samples inputs independently where a probability is asked for.
    """

    low: float
    mid: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Range:
        """Return a range without width."""
        return cls(value, value, value)

    def __add__(self, other: Range | float) -> Range:
        o = _range(other)
        return Range(self.low + o.low, self.mid + o.mid, self.high + o.high)

    __radd__ = __add__

    def __sub__(self, other: Range | float) -> Range:
        o = _range(other)
        return Range(self.low - o.high, self.mid - o.mid, self.high - o.low)

    def __mul__(self, other: Range | float) -> Range:
        o = _range(other)
        return Range(self.low * o.low, self.mid * o.mid, self.high * o.high)

    __rmul__ = __mul__

    def __truediv__(self, other: Range | float) -> Range:
        o = _range(other)
        return Range(self.low / o.high, self.mid / o.mid, self.high / o.low)


def _range(value: Range | float) -> Range:
    return value if isinstance(value, Range) else Range.exact(value)
