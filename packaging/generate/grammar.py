"""The grammar of the command line, as data: commands with their options and arguments, read from the parser."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

from echod import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHOICES = {"BOOL": ["true", "false"]}
_FILES = frozenset({"FILE", "PATH"})


class Option(NamedTuple):
    """An option: its flags, the word for its value if it takes one, and its help text."""

    flags: tuple[str, ...]
    value: str | None
    text: str
    setting: bool
    """Whether it is the flag of a setting, which many commands share."""

    @property
    def choices(self) -> list[str]:
        """The possible values, if they can be listed."""
        value = self.value or ""
        return value.split("|") if "|" in value else _CHOICES.get(value, [])

    @property
    def is_file(self) -> bool:
        """Whether the value is the path of a file."""
        return self.value in _FILES


class Argument(NamedTuple):
    """A positional argument."""

    value: str
    text: str
    any_number: bool
    """Whether there may be none, one or several."""


class Command(NamedTuple):
    """A command with the words that call it (none for the program itself), and what may follow them."""

    words: tuple[str, ...]
    text: str
    options: list[Option]
    arguments: list[Argument]
    commands: list[Command]

    @property
    def all(self) -> Iterator[Command]:
        """This command and all commands below it."""
        yield self
        for command in self.commands:
            yield from command.all

    @property
    def takes_settings(self) -> bool:
        """Whether the command takes the flags of all settings, not only of one that it needs."""
        return sum(option.setting for option in self.options) > 1

    @property
    def own(self) -> list[Option]:
        """The options without those of all settings and without --help."""
        return [
            option
            for option in self.options
            if not (option.setting and self.takes_settings) and "--help" not in option.flags
        ]


def read() -> Command:
    """Return the grammar of the whole command line."""
    return _command((), "", cli.parser())


def _command(words: tuple[str, ...], text: str, parser: argparse.ArgumentParser) -> Command:
    command = Command(words, text, [], [], [])
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to list its actions
        text = (action.help or "").replace("%%", "%")
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
            command.commands.extend(
                _command((*words, name), texts[name], below) for name, below in action.choices.items()
            )
        elif action.option_strings:
            value = (
                None if action.nargs == 0 else str(action.metavar or "|".join(action.choices or [action.dest.upper()]))
            )
            command.options.append(Option(tuple(action.option_strings), value, text, "." in action.dest))
        else:
            command.arguments.append(Argument(str(action.metavar or action.dest.upper()), text, action.nargs == "*"))
    return command
