"""How values are written on one line."""

from __future__ import annotations

import datetime as dt

import pytest

from echod.text import shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", '"x"'),
        ('"\n\\', r'"\"\n\\"'),
        ("é", '"é"'),
        ("\x9b\U000e0001", r'"\u009b\U000e0001"'),
        (True, "true"),
        (0, "0"),
        (0.5, "0.5"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (float("nan"), "nan"),
        ([], "[]"),
        ((), "[]"),
        ([1], "a list"),
        (("x",), "a list"),
        ({}, "a table"),
        (dt.date(1979, 5, 27), "1979-05-27"),
        (dt.datetime(1979, 5, 27, 7, 32, tzinfo=dt.UTC), "1979-05-27 07:32:00+00:00"),
    ],
)
def test_a_value_is_shown_as_in_the_file(value: object, text: str) -> None:
    """So that it can be found there."""
    assert shown(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [("x" * 58, f'"{"x" * 58}"'), ("x" * 59, f'"{"x" * 56}...'), ("x" * 10**6, f'"{"x" * 56}...')]
)
def test_a_long_value_is_cut_to_60_characters(value: str, text: str) -> None:
    """So that a message fits on a line."""
    assert shown(value) == text
    assert len(text) == 60


def test_an_integer_of_any_size_is_shown() -> None:
    """TOML can write it in hexadecimal; Python converts no more than 4,300 decimal digits."""
    assert len(shown(16**5000)) <= 60


@pytest.mark.parametrize("char", ["\udcff", "\x7f", "\x9b"], ids=["a byte that is no UTF-8", "DEL", "CSI"])
def test_control_characters_are_escaped(char: str) -> None:
    """Messages with values from anywhere go to a terminal or the journal."""
    text = shown(f"a{char}b")
    assert char not in text
    assert text.encode()
    assert text.startswith('"a\\')
