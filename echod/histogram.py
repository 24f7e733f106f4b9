"""Counts of values by size, in cumulative buckets like those of Prometheus, without its library."""

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
        if value > self.most:  # noqa: PLR1730 - a call of `max` takes 0.1 µs longer, for each connection
            self.most = value

    def cumulative(self) -> list[int]:
        """Return the number of values up to each bound, and finally of all values."""
        return list(accumulate(self._counts))

    def quantile(self, part: float) -> float:
        """Return the least bound that this part of the values does not exceed, or the largest value if that is less."""
        counts = self.cumulative()
        index = bisect_left(counts, part * counts[-1])
        return min(self.most, self.bounds[index]) if index < len(self.bounds) else self.most
