"""The completion scripts: complete, and doing what they should in their shells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from generate import completion, grammar
from generate.grammar import Argument, Command, Option

from tests.support.tools import tool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BASH = """
. {script}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ :; }}
cd {directory}
_echod
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def bash(built: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Return what asks bash for the completions of the last word, in `tmp_path`."""

    def completed(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        text = BASH.format(script=built / "completions/echod.bash", words=quoted, directory=tmp_path)
        return [line for line in tool("bash", text=text).splitlines() if line]

    return completed


def test_bash_completes_commands_flags_and_values(bash: Callable[..., list[str]]) -> None:
    """Those of the command that is named before, whatever is in between."""
    assert {"run", "check", "config", "--version"} <= set(bash("echod", ""))
    assert bash("echod", "config", "s") == ["show", "schema"]
    assert bash("echod", "-x", "conf") == ["config"]
    assert bash("echod", "config", "show", "--so") == ["--sources"]
    assert bash("echod", "run", "--log.lev") == ["--log.level"]
    assert bash("echod", "run", "--log.level", "") == ["debug", "info", "warning", "error"]
    assert bash("echod", "run", "--log.level", "error", "--pool.w") == ["--pool.when_full"]
    assert bash("echod", "run", "--listen.reuse_port", "t") == ["true"]
    assert bash("echod", "run", "-p", "") == []
    assert bash("echod", "kill", "4711", "--he") == ["--help"]
    assert bash("echod", "run", "-c", "run", "--log.for") == ["--log.format"]
    assert bash("echod", "nonsense", "") == []


def test_bash_completes_values_after_an_equals_sign(bash: Callable[..., list[str]]) -> None:
    """Bash passes `--log.level=debug` as three words, and splits a value at its colons."""
    assert bash("echod", "run", "--log.level", "=", "deb") == ["debug"]
    assert bash("echod", "run", "--log.level", "=") == ["debug", "info", "warning", "error"]
    assert bash("echod", "run", "--log.level", "=", "debug", "--log.for") == ["--log.format"]
    assert bash("echod", "run", "--listen.host", "::", "1", "--log.lev") == ["--log.level"]


def test_bash_completes_files(bash: Callable[..., list[str]], tmp_path: Path) -> None:
    """Also a name with a space, whether it is quoted yet or not."""
    (tmp_path / "some.toml").touch()
    (tmp_path / "my own.toml").touch()
    assert bash("echod", "run", "-c", "so") == ["some.toml"]
    assert bash("echod", "run", "-c", "my") == ["my own.toml"]
    assert bash("echod", "run", "-c", "my\\ o") == ["my own.toml"]


def test_zsh_and_fish_accept_their_scripts(built: Path) -> None:
    """Where the shells are installed."""
    tool("zsh", "-n", built / "completions/_echod")
    tool("fish", "-n", built / "completions/echod.fish")


def test_fish_completes_commands_and_values(built: Path) -> None:
    """Each command with its help text; a value after a space or an equals sign."""
    complete = f"source {built}/completions/echod.fish; complete -C '{{}}'".format
    commands = dict(line.split("\t") for line in tool("fish", "-c", complete("echod config ")).splitlines())
    assert commands == {it.words[-1]: it.text for it in grammar.read().all if it.words[:-1] == ("config",)}
    values = tool("fish", "-c", complete("echod run --log.level ")).splitlines()
    assert {line.split("\t")[0] for line in values} == {"debug", "error", "info", "warning"}
    values = tool("fish", "-c", complete("echod run --log.level=d")).splitlines()
    assert [line.split("\t")[0] for line in values] == ["--log.level=debug"]


@pytest.mark.parametrize("command", list(grammar.read().all), ids=lambda command: " ".join(command.words) or "echod")
def test_each_shell_knows_each_command_and_flag(command: Command) -> None:
    """A new one is added by itself."""
    bash, zsh, fish = completion.bash(), completion.zsh(), completion.fish()
    assert f'"{" ".join(command.words)}")' in bash
    assert f"{'_'.join(('_echod', *command.words))}() {{" in zsh
    for word in command.words[-1:]:
        assert f" -a {word} " in fish
    for flag in (flag for option in command.options for flag in option.flags if flag.startswith("--")):
        assert flag in bash
        assert flag in zsh
        assert f"-l {flag[2:]}" in fish


def test_bash_tells_the_values_of_a_flag_once() -> None:
    """Also of one that commands describe differently, as `connections` and `top` do their order."""
    assert completion.bash().count("            --sort) ") == 1


def test_texts_are_quoted_for_each_shell() -> None:
    """Quotes, brackets, colons and variables mean nothing in a help text."""
    option = Option(("-x", "--xy"), "A:B", "It's [a]: $b. More.", setting=False)
    assert completion._zsh_option(option) == "'(-x --xy)'{-x,--xy=}'[It'\\''s \\[a\\]\\: $b]:A\\:B:'"
    assert completion._fish_option(option) == "-s x -l xy -x -d 'It\\'s [a]: $b'"
    command = Command(
        (), "", [option], [Argument("ID", "", any_number=True)], [Command(("y",), 'a "b" $c:', [option], [], [])]
    )
    body = "\n".join(completion._zsh_body(command))
    assert """'1:command:((y\\:"a \\"b\\" \\$c\\:"))'""" in body


def test_a_flag_is_described_by_the_first_sentence() -> None:
    """The dots of "e.g." do not end it."""
    assert completion._brief("Networks, e.g. 10.0.0.0/8. Else none. [X]") == "Networks, e.g. 10.0.0.0/8"
    assert completion._brief('Up to 16, e.g. ["::1"] [X]') == 'Up to 16, e.g. ["::1"]'
