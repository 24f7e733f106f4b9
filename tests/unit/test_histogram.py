"""Counts of values by size."""

from __future__ import annotations

import pytest

from echod.histogram import Histogram


def observed(*values: float) -> Histogram:
    histogram = Histogram(1.0, 2.0, 5.0)
    for value in values:
        histogram.observe(value)
    return histogram


def test_each_bound_has_the_number_of_values_up_to_it() -> None:
    """The bound itself included, as Prometheus' `le`; the last number is that of all."""
    assert observed(0.0, 1.0, 1.1, 2.0, 5.0, 5.1, 1e9).cumulative() == [2, 4, 5, 7]


def test_without_values_all_is_nothing() -> None:
    """Also a quantile, which is asked for from the first moment on."""
    histogram = observed()
    assert histogram.cumulative() == [0, 0, 0, 0]
    assert (histogram.sum, histogram.most, histogram.last) == (0.0, 0.0, 0.0)
    assert histogram.quantile(0.99) == 0.0


def test_sum_largest_and_last_are_exact() -> None:
    """Whatever the buckets are."""
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
def test_a_quantile_is_the_least_bound_that_is_enough(values: list[float], part: float, quantile: float) -> None:
    """But it is never above the largest value: a bound that nobody came near would be an alarm for nothing."""
    assert observed(*values).quantile(part) == quantile
