"""How fast something grows, and how sure that is.

Knows nothing of what grows.
"""

from __future__ import annotations

import itertools
import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCKS = 10
_T = 2.306  # Student's t, 97.5 %, for BLOCKS - 2 degrees of freedom


class Trend(NamedTuple):
    """The slope of a line of least squares, with its confidence interval (95 %)."""

    slope: float
    low: float
    high: float

    @property
    def is_none(self) -> bool:
        """Whether the slope cannot be told from zero."""
        return self.low <= 0 <= self.high


def trend(points: Sequence[tuple[float, float]]) -> Trend:
    """Fit a line through the means of ten parts. Raises `ValueError` if there are fewer points than that.

    Memory of one second is much like that of the second before: points of their own would make the interval far too
    narrow. The means of long parts have little to do with each other.
    """
    if len(points) < BLOCKS:
        raise ValueError(f"a trend needs {BLOCKS} points, here are {len(points)}")
    edges = [len(points) * index // BLOCKS for index in range(BLOCKS + 1)]
    parts = [points[begin:end] for begin, end in itertools.pairwise(edges)]
    x = [statistics.fmean(each[0] for each in part) for part in parts]
    y = [statistics.fmean(each[1] for each in part) for part in parts]
    slope, intercept = statistics.linear_regression(x, y)
    unexplained = math.fsum((yi - intercept - slope * xi) ** 2 for xi, yi in zip(x, y, strict=True))
    spread = math.fsum((xi - statistics.fmean(x)) ** 2 for xi in x)
    error = _T * math.sqrt(unexplained / (BLOCKS - 2) / spread)
    return Trend(slope, slope - error, slope + error)
