"""Quantiles, medians with their spread, and ratios to the floor of the same round.

Knows nothing of servers and of how numbers were measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Sample = dict[str, float]
"""What one run has measured, by metric."""
Rounds = dict[int, Sample]
"""The samples of one server on one workload, by round; a round in which it failed is missing."""


class Spread(NamedTuple):
    """The median, and the quartiles: half of the values lie between them."""

    median: float
    low: float
    high: float
    values: int


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the value below which this part of the ascending values lies: one of them, none in between."""
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


def spread(values: Sequence[float]) -> Spread:
    """Summarise values, of which there is at least one. The median of an even number is the mean of the middle two."""
    ordered = sorted(values)
    return Spread(_between(ordered, 0.5), _between(ordered, 0.25), _between(ordered, 0.75), len(ordered))


def _between(ordered: Sequence[float], part: float) -> float:
    """Interpolate, as statistics.quantiles does with method="inclusive"."""
    place = part * (len(ordered) - 1)
    index = min(int(place), len(ordered) - 2) if len(ordered) > 1 else 0
    after = ordered[min(index + 1, len(ordered) - 1)]
    return ordered[index] + (after - ordered[index]) * (place - index)


def absolute(rounds: Rounds) -> dict[str, Spread]:
    """Summarise each metric over the rounds."""
    return {metric: spread(values) for metric, values in _columns(rounds.values()).items()}


def relative(rounds: Rounds, floor: Mapping[int, Sample]) -> dict[str, Spread]:
    """Summarise each metric's ratio to the floor's of the same round; rounds that either has missed don't count."""
    ratios = [
        {metric: value / floor[number][metric] for metric, value in sample.items() if floor[number].get(metric)}
        for number, sample in rounds.items()
        if number in floor
    ]
    return {metric: spread(values) for metric, values in _columns(ratios).items()}


def _columns(samples: Iterable[Sample]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for sample in samples:
        for metric, value in sample.items():
            columns.setdefault(metric, []).append(value)
    return columns
