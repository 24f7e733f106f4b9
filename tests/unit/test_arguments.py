"""The forms of arguments. Flags of settings are tested with the commands that take them, in test_cli.py."""

from __future__ import annotations

import argparse

import pytest

from echod import arguments


@pytest.mark.parametrize(
    ("text", "expected"), [("7", ("", 7)), ("1/7", ("1", 7)), ("blue-2/0", ("blue-2", 0)), ("0/007", ("0", 7))]
)
def test_a_connection_may_be_named_with_its_instance(text: str, expected: tuple[str, int]) -> None:
    """As `connections` shows it."""
    assert arguments.connection(text) == expected


def test_a_connection_is_shown_as_it_is_given() -> None:
    """With its instance, if it has one."""
    assert [str(arguments.connection(text)) for text in ("7", "1/7")] == ["7", "1/7"]


@pytest.mark.parametrize("text", ["", "x", "1/", "/7", "1/2/3", "-7", "²", "9" * 20])
def test_what_is_no_connection_is_refused(text: str) -> None:
    """With what it was."""
    with pytest.raises(argparse.ArgumentTypeError, match="must be the number of a connection, got "):
        arguments.connection(text)


@pytest.mark.parametrize("text", ["", ".", "..", "1/..", "/run"])
def test_the_name_of_an_instance_is_no_path(text: str) -> None:
    """It is the name of a directory."""
    assert arguments.instance("blue-2") == "blue-2"
    with pytest.raises(argparse.ArgumentTypeError, match="must be the name of an instance"):
        arguments.instance(text)
