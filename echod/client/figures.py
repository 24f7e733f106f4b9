"""Durations, counted so that any number of them takes the same memory: what `ping` and `bench` report."""

from __future__ import annotations

_STEPS_BITS = 7
_STEPS = 1 << _STEPS_BITS
"""Buckets within one power of two: a bucket is narrower than 1 % of the values in it."""

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999}


class Distribution:
    """Counts durations (seconds) in buckets whose width grows with the duration, by nanoseconds.

    A quantile is off by at most half of a bucket, 0.4 %. Minimum, maximum and average are exact.
    """

    def __init__(self) -> None:
        self.count = 0
        self.least = 0.0
        self.most = 0.0
        self._sum = 0.0
        self._counts: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        """Count a duration."""
        if not self.count or seconds < self.least:
            self.least = seconds
        self.most = max(self.most, seconds)
        self.count += 1
        self._sum += seconds
        bucket = _bucket(int(seconds * 1e9))
        self._counts[bucket] = self._counts.get(bucket, 0) + 1

    @property
    def average(self) -> float:
        """The mean; 0 without a value."""
        return self._sum / self.count if self.count else 0.0

    def quantile(self, part: float) -> float:
        """Return the duration that this part of the values does not exceed; 0 without a value."""
        left = part * self.count
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 0:
                return min(max(self.least, _middle(bucket)), self.most)
        return self.most

    def fields(self) -> dict[str, float | None]:
        """Return the count, and in seconds what people ask for; `None` without a value."""
        known = self.count > 0
        figures = {"min": self.least, "avg": self.average}
        figures |= {name: self.quantile(part) for name, part in QUANTILES.items()} | {"max": self.most}
        return {"count": self.count} | {name: round(value, 9) if known else None for name, value in figures.items()}

    def rows(self) -> list[tuple[float, int]]:
        """Return how many values there are up to 1, 2, 5, 10, 20, 50 … microseconds and above the end before."""
        counts: dict[int, int] = {}
        for bucket, count in self._counts.items():
            end = _round_end(_middle(bucket) * 1e9)
            counts[end] = counts.get(end, 0) + count
        return [(end / 1e9, count) for end, count in sorted(counts.items())]


def _bucket(nanoseconds: int) -> int:
    shift = max(0, nanoseconds.bit_length() - _STEPS_BITS - 1)
    return (shift << _STEPS_BITS) + (nanoseconds >> shift)


def _middle(bucket: int) -> float:
    shift = max(0, (bucket >> _STEPS_BITS) - 1)
    start = bucket - (shift << _STEPS_BITS)
    return ((start << shift) + ((1 << shift) - 1) / 2) / 1e9


def _round_end(nanoseconds: float) -> int:
    end = 1000
    while True:
        for step in (1, 2, 5):
            if nanoseconds <= end * step:
                return end * step
        end *= 10
