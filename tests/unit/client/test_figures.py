"""The distribution of durations."""

from __future__ import annotations

import random

import pytest

from echod.client.figures import QUANTILES, Distribution


def distribution(values: list[float]) -> Distribution:
    made = Distribution()
    for value in values:
        made.add(value)
    return made


def test_quantiles_are_right_within_one_percent() -> None:
    """From nanoseconds to hours, whatever the order of the values."""
    source = random.Random(862)
    values = [10 ** source.uniform(-9, 4) for _ in range(5000)]
    made = distribution(values)
    values.sort()
    for part in (0.001, 0.1, *QUANTILES.values(), 1.0):
        exact = values[max(0, -int(-part * len(values) // 1) - 1)]
        assert made.quantile(part) == pytest.approx(exact, rel=0.01, abs=1e-9)


def test_least_most_and_average_are_exact() -> None:
    made = distribution([0.25, 0.5, 0.125])
    assert (made.count, made.least, made.most, made.average) == (3, 0.125, 0.5, 0.875 / 3)
    assert made.quantile(0.0) == pytest.approx(0.125, rel=0.01)
    assert made.quantile(1.0) == pytest.approx(0.5, rel=0.01)


def test_without_a_value_there_are_no_figures() -> None:
    """A program that reads the JSON finds the same names."""
    made = Distribution()
    assert (made.average, made.quantile(0.5), made.rows()) == (0, 0, [])
    assert made.fields() == {"count": 0, "min": None, "avg": None, "max": None} | dict.fromkeys(QUANTILES)
    assert distribution([0.5]).fields() == {"count": 1, "min": 0.5, "avg": 0.5, "max": 0.5} | dict.fromkeys(
        QUANTILES, 0.5
    )


def test_memory_does_not_grow_with_the_values() -> None:
    """There are so many buckets and no more, up to a day."""
    source = random.Random(862)
    made = distribution([10 ** source.uniform(-9, 5) for _ in range(20_000)])
    assert len(made._counts) < 128 * 48


def test_rows_are_1_2_and_5_of_each_power_of_ten() -> None:
    """Each value is in the first row whose end is not less."""
    made = distribution([0.000_000_5, 0.000_011, 0.000_019, 0.000_021, 0.004, 0.6])
    assert made.rows() == [(0.000_001, 1), (0.000_02, 2), (0.000_05, 1), (0.005, 1), (1.0, 1)]
