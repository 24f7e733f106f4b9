"""The histogram."""

from __future__ import annotations

import pytest

from echod.histogram import Histogram


def observed(*values: float) -> Histogram:
    histogram = Histogram(1.0, 2.0, 5.0)
    for value in values:
        histogram.observe(value)
    return histogram


def test_each_bound_has_the_number_of_values_up_to_it() -> None:
    """The bound itself is included, like `le` of Prometheus. The last number counts all values."""
    assert observed(0.0, 1.0, 1.1, 2.0, 5.0, 5.1, 1e9).cumulative() == [2, 4, 5, 7]


def test_without_values_everything_is_zero() -> None:
    """A quantile may be asked for before the first value."""
    histogram = observed()
    assert histogram.cumulative() == [0, 0, 0, 0]
    assert (histogram.sum, histogram.most, histogram.last) == (0.0, 0.0, 0.0)
    assert histogram.quantile(0.99) == 0.0


def test_sum_largest_and_last_are_exact() -> None:
    """They do not depend on the buckets."""
    histogram = observed(0.25, 7.5, 3.0)
    assert (histogram.sum, histogram.most, histogram.last) == (10.75, 7.5, 3.0)


@pytest.mark.parametrize(
    ("values", "part", "quantile"),
    [
        ([0.5, 0.5, 0.5, 4.0], 0.5, 1.0),
        ([0.5, 0.5, 0.5, 4.0], 0.75, 1.0),
        ([0.5, 0.5, 0.5, 4.0], 0.76, 4.0),
        ([1.5] * 10, 0.99, 1.5),
        ([0.5, 7.0], 0.99, 7.0),
        ([0.5, 4.5, 7.0], 0.5, 5.0),
    ],
)
def test_a_quantile_is_the_lowest_bound_that_is_enough(values: list[float], part: float, quantile: float) -> None:
    """It is never above the largest value: a bound that no value comes near would be a false alarm."""
    assert observed(*values).quantile(part) == quantile
