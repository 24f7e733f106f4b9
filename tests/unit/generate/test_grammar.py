"""The grammar of the command line, as data."""

from __future__ import annotations

import pytest
from generate import grammar
from generate.grammar import Option

from echod.config.settings import declared


def test_the_grammar_has_commands_options_and_arguments() -> None:
    """All that the parser has."""
    root = grammar.read()
    assert root.words == ()
    assert [option.flags for option in root.options] == [("-h", "--help"), ("--version",)]
    found = {command.words: command for command in root.all}
    assert {("run",), ("config",), ("config", "show"), ("kill",)} <= set(found)
    run, show = found["run",], found["config", "show"]
    assert run.text.startswith("serve ")
    assert [option.flags[-1] for option in run.options if option.setting] == [f"--{it.name}" for it in declared()]
    assert run.takes_settings
    assert [option.flags for option in show.own] == [
        ("-c", "--config"),
        ("--sources",),
        ("--running",),
        ("--instance",),
    ]
    assert not found["kill",].takes_settings
    (argument,) = found["kill",].arguments
    assert (argument.value, argument.any_number) == ("ID", True)


@pytest.mark.parametrize(
    ("value", "choices", "is_file"),
    [
        ("reject|wait", ["reject", "wait"], False),
        ("BOOL", ["true", "false"], False),
        ("FILE", [], True),
        (None, [], False),
    ],
)
def test_the_possible_values_follow_from_the_word_for_the_value(
    value: str | None,
    choices: list[str],
    is_file: bool,  # noqa: FBT001
) -> None:
    """A new setting is completed without being mentioned here."""
    option = Option(("--a",), value, "", setting=True)
    assert (option.choices, option.is_file) == (choices, is_file)
