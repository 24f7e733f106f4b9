"""The manual pages and the completions: that they are up to date, well-formed, and say all there is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from generate import completion, grammar, manual
from generate.grammar import Argument, Command, Option

from echod.config.settings import declared
from tests.support.harness import DEADLINE

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / path for path in manual.FILES if path.parts[0] == "man"]
SETTINGS = list(declared())
LEAVES = [command for command in grammar.read().all if not command.commands]


def tool(*words: str | Path, text: str = "") -> str:
    """Run a program that may not be here, and return what it writes."""
    if not shutil.which(str(words[0])):
        pytest.skip(f"there is no {words[0]} here")
    done = subprocess.run(
        [str(word) for word in words], input=text, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def rendered(page: str) -> str:
    """Return a page as it is read, in one line, without what makes it bold on paper."""
    text = tool("man", "--warnings", "-Tascii", "-l", ROOT / "man" / page)
    return " ".join(re.sub(r".\x08", "", text).split())


# The files


@pytest.mark.parametrize("path", manual.FILES, ids=str)
def test_the_files_are_up_to_date(path: Path) -> None:
    """Who changes a setting or a command runs `make reference`."""
    assert (ROOT / path).read_text() == manual.FILES[path]()


def test_what_is_out_of_date_is_written_anew(tmp_path: Path) -> None:
    """And so are the folders."""
    (tmp_path / "man").mkdir()
    (tmp_path / "man/echod.8").write_text("old")
    done = subprocess.run(
        [sys.executable, "-m", "generate.manual"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'packaging'}"},
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0
    assert {path: (tmp_path / path).read_text() for path in manual.FILES} == {
        path: text() for path, text in manual.FILES.items()
    }


# The grammar


def test_the_grammar_has_commands_options_and_arguments() -> None:
    """As argparse has been told."""
    root = grammar.read()
    assert root.words == ()
    assert [option.flags for option in root.options] == [("-h", "--help"), ("--version",)]
    found = {command.words: command for command in root.all}
    assert {("run",), ("config",), ("config", "show"), ("kill",)} <= set(found)
    run, show = found["run",], found["config", "show"]
    assert run.text == "serve in the foreground until told to stop"
    assert [option.flags[-1] for option in run.options if option.setting] == [f"--{it.name}" for it in SETTINGS]
    assert run.takes_settings
    assert [option.flags for option in show.own] == [("-c", "--config"), ("--sources",)]
    assert not found["kill",].takes_settings
    assert [argument.value for argument in found["kill",].arguments] == ["ID"]


@pytest.mark.parametrize(
    ("value", "choices", "is_file"),
    [
        ("reject|wait", ["reject", "wait"], False),
        ("BOOL", ["true", "false"], False),
        ("FILE", [], True),
        (None, [], False),
    ],
)
def test_what_a_value_may_be_is_read_from_its_word(value: str | None, choices: list[str], is_file: bool) -> None:  # noqa: FBT001
    """So that a new setting is completed without a word about it."""
    option = Option(("--a",), value, "", setting=True)
    assert (option.choices, option.is_file) == (choices, is_file)


# The pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_are_without_fault(page: Path) -> None:
    """By mandoc's rules, down to matters of style."""
    assert tool("mandoc", "-T", "lint", page) == ""


def test_the_page_of_the_program_names_all_commands_and_flags() -> None:
    """With what they do."""
    text = rendered("echod.8")
    for command in LEAVES:
        assert " ".join(("echod", *command.words)) in text
        assert f"{command.text[0].upper()}{command.text[1:]}."[:30] in text
    for setting in SETTINGS:
        assert f"--{setting.name} " in text


def test_the_page_of_the_file_names_all_settings_with_their_defaults() -> None:
    """By section, in the order of the file."""
    text = rendered("echod.toml.5")
    position = 0
    for setting in SETTINGS:
        position = text.index(f"{setting.key} = {setting.default}", position)


def test_no_line_of_a_page_is_taken_for_a_command_of_roff() -> None:
    """What begins with a dot or a quote, or has a backslash, is printed as it is."""
    assert manual._escaped(".x 'y' \\z a-b") == "\\&.x \\(aqy\\(aq \\ez a\\-b"


# The completions

BASH = """
. {script}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ :; }}
cd {directory}
_echod
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(*words: str, directory: Path = ROOT) -> list[str]:
    """Return what bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in words)
    text = BASH.format(script=ROOT / "completions/echod.bash", words=quoted, directory=directory)
    return [line for line in tool("bash", text=text).splitlines() if line]


def test_bash_completes_commands_flags_and_values(tmp_path: Path) -> None:
    """Of the command that stands before, whatever is between."""
    (tmp_path / "some.toml").touch()
    (tmp_path / "my own.toml").touch()
    assert {"run", "check", "config", "--version"} <= set(completed("echod", ""))
    assert completed("echod", "config", "s") == ["show", "schema"]
    assert completed("echod", "-x", "conf") == ["config"]
    assert completed("echod", "config", "show", "--so") == ["--sources"]
    assert completed("echod", "run", "--log.lev") == ["--log.level"]
    assert completed("echod", "run", "--log.level", "") == ["debug", "info", "warning", "error"]
    assert completed("echod", "run", "--log.level", "error", "--pool.w") == ["--pool.when_full"]
    assert completed("echod", "run", "--listen.reuse_port", "t") == ["true"]
    assert completed("echod", "run", "-c", "so", directory=tmp_path) == ["some.toml"]
    assert completed("echod", "run", "-c", "my", directory=tmp_path) == ["my own.toml"]
    assert completed("echod", "run", "-c", "my\\ o", directory=tmp_path) == ["my own.toml"]
    assert completed("echod", "run", "-p", "") == []
    assert completed("echod", "run", "--listen.host", "::", "1", "--log.lev") == ["--log.level"]  # as bash splits it
    assert completed("echod", "run", "--log.level", "=", "deb") == ["debug"]
    assert completed("echod", "run", "--log.level", "=") == ["debug", "info", "warning", "error"]
    assert completed("echod", "run", "--log.level", "=", "debug", "--log.for") == ["--log.format"]
    assert completed("echod", "kill", "4711", "--he") == ["--help"]
    assert completed("echod", "run", "-c", "run", "--log.for") == ["--log.format"]
    assert completed("echod", "nonsense", "") == []


def test_zsh_and_fish_can_read_their_scripts() -> None:
    """Where they are; what they offer is written from the same data."""
    tool("zsh", "-n", ROOT / "completions/_echod")
    tool("fish", "-n", ROOT / "completions/echod.fish")


def test_fish_completes_commands_and_values() -> None:
    """With what they are for."""
    script = ROOT / "completions/echod.fish"
    complete = "source {}; complete -C '{}'".format
    assert "show\twrite the settings in force, as TOML" in tool("fish", "-c", complete(script, "echod config "))
    values = tool("fish", "-c", complete(script, "echod run --log.level "))
    assert [line.split("\t")[0] for line in values.splitlines()] == ["debug", "error", "info", "warning"]


@pytest.mark.parametrize("command", list(grammar.read().all), ids=lambda command: " ".join(command.words) or "echod")
def test_each_shell_knows_each_command_and_flag(command: Command) -> None:
    """So that one that is added is there by itself."""
    bash, zsh, fish = completion.bash(), completion.zsh(), completion.fish()
    assert f'"{" ".join(command.words)}")' in bash
    assert f"{'_'.join(('_echod', *command.words))}() {{" in zsh
    for word in command.words[-1:]:
        assert f" -a {word} " in fish
    for flag in (flag for option in command.options for flag in option.flags if flag.startswith("--")):
        assert flag in bash
        assert flag in zsh
        assert f"-l {flag[2:]}" in fish


def test_texts_are_quoted_as_each_shell_wants_it() -> None:
    """Quotes, brackets, colons and what a shell would put a value for."""
    option = Option(("-x", "--xy"), "A:B", "It's [a]: $b. More.", setting=False)
    assert completion._zsh_option(option) == "'(-x --xy)'{-x,--xy}'[It'\\''s \\[a\\]\\: $b]:A\\:B:'"
    assert completion._fish_option(option) == "-s x -l xy -x -d 'It\\'s [a]: $b'"
    command = Command((), "", [option], [Argument("ID", "")], [Command(("y",), 'a "b" $c:', [option], [], [])])
    body = "\n".join(completion._zsh_body(command))
    assert """'1:command:((y\\:"a \\"b\\" \\$c\\:"))'""" in body


def test_the_first_sentence_is_what_stands_beside_a_flag() -> None:
    """But "e.g." ends none."""
    assert completion._brief("Networks, e.g. 10.0.0.0/8. Else none. [X]") == "Networks, e.g. 10.0.0.0/8"
    assert completion._brief('Up to 16, e.g. ["::1"] [X]') == 'Up to 16, e.g. ["::1"]'
