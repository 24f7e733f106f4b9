"""Counts of values by size, as Prometheus has them.

Knows nothing of what is measured, and nothing of Prometheus' library: that is imported only where somebody may ask.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate


class Histogram:
    """Counts how many values are at most as large as each bound. The bounds ascend."""

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.sum = 0.0
        self.most = 0.0
        self.last = 0.0
        self._counts = [0] * (len(bounds) + 1)  # of each bucket alone; the last one has no bound

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        self.last = value
        self.most = max(self.most, value)

    def cumulative(self) -> list[int]:
        """Return the number of values up to each bound, and last that of all."""
        return list(accumulate(self._counts))

    def quantile(self, part: float) -> float:
        """Return a bound that this part of the values does not exceed: the least there is, but at most the largest value."""
        counts = self.cumulative()
        index = bisect_left(counts, part * counts[-1])
        return min(self.most, self.bounds[index]) if index < len(self.bounds) else self.most
