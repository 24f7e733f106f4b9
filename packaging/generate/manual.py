"""The manual pages echod(8) and echod.toml(5), written from the declared settings and the grammar of the command line.

Knows nothing of how they are read. `python -m echod.manual` (`make reference`) writes them, and the shells' completion.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from echod import __version__
from echod.config import render
from echod.config.settings import Settings, declared
from generate import completion, grammar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from generate.grammar import Command, Option

_DATE = "2026-11-25"
"""Of the last change to what is written here by hand."""

_WIDTH = 70
"""Of a line of text; the marks come on top."""

_DESCRIPTION = """\
echod is a daemon for the echo service of RFC 862 over TCP: whatever a client sends comes back, every byte, in order, once.

A fixed number of workers is made at start; each serves one connection at a time. A peer that does not read is not read from,
so memory is bounded by the pool. One process uses one core; for more, run several on one port (listen.reuse_port),
each with an admin.socket of its own: with "auto", only the first one would have it."""

_SETTINGS = """\
Each setting of echod.toml(5) is also a flag under its dotted name, and an environment variable. A flag wins over a variable, a
variable over the file, the file over the default."""

_ENVIRONMENT = [
    ("ECHOD_CONFIG", "The configuration file, where no -c names one."),
    ("ECHOD_SECTION__KEY", "A setting, e.g. ECHOD_POOL__SIZE=10; lists are separated by commas, or in JSON."),
    ("NO_COLOR", "If set, and not empty, the log on a terminal has no colors."),
    ("RUNTIME_DIRECTORY, XDG_RUNTIME_DIR", "Where the admin socket is, see admin.socket in echod.toml(5)."),
    ("NOTIFY_SOCKET, WATCHDOG_USEC", "Set by systemd: whom to tell that it is ready, and that it is alive."),
    (
        "LISTEN_FDS",
        "Set by systemd for a socket unit: listening sockets to serve on. Then [listen] is not bound, as the log says.",
    ),
    ("JOURNAL_STREAM", "Set by systemd: if standard output is the journal, each line has its priority there."),
]
_FILES = [
    ("/etc/echod/echod.toml", "The configuration file, if it is there and no other is named. See echod.toml(5)."),
    ("/run/echod/", "The runtime directory of the service, with the admin socket; of echod@N, /run/echod/N/."),
]
_SIGNALS = [
    (
        "TERM, INT",
        "Drain: accept nobody else, let connections finish for timeouts.drain, then end them. The second one cuts at once.",
    ),
    ("HUP", "Reload the configuration file, as a whole or not at all. Open connections stay."),
    ("USR1, USR2", "Nothing: they mean something to other daemons only."),
]
_EXIT = [
    ("0", "Fine; also after a drain."),
    ("64", "Wrong usage."),
    ("65", "No such connection (kill)."),
    ("66", "The configuration file is missing or unreadable."),
    ("69", "The address is in use or not of this machine, or no daemon answers."),
    ("70", "Internal error, or standard output takes no answer."),
    ("77", "No permission; the message says how to get it."),
    ("78", "Invalid configuration: a line for each problem, with file and line."),
    ("141", "Standard output was closed before all was written, as by head(1)."),
]
_EXAMPLES = [
    ("echod run -p 8080 -n 10", "Serve on port 8080, 10 connections at one time."),
    ("echod check -c echod.toml", "Say all that is wrong with a file."),
    (
        "systemctl reload echod",
        "Change over to the edited file; fails, with the reasons in the journal, if it is not right.",
    ),
    ("journalctl -u echod -o cat -f | jq .", "Follow the log, a line of JSON for each event."),
    ("journalctl -u echod -p warning", "What of it is a warning or worse."),
]

_SYNTAX = """\
A TOML file of sections with keys. All of them are optional, and none other is allowed: echod check -c FILE says what is wrong,
with file and line. The values in force, and where each comes from, are shown by echod config show --sources.

Durations are written "500ms", "30s", "5m" or "1h30m", and "off" for never; rates "500/s" or "30/m"; counts 1024, 10_000 or "64Ki".
A list of one item may be written without brackets.

A reload (HUP, or systemctl reload echod) changes all settings but those that say that they need a restart."""


def echod() -> str:
    """Return the page of the program."""
    root = grammar.read()
    leaves = [command for command in root.all if not command.commands]
    return _page(
        "echod",
        8,
        "System Administration",
        "an echo daemon (RFC 862)",
        [
            ("SYNOPSIS", "\n.br\n".join(_synopsis(command) for command in leaves)),
            ("DESCRIPTION", _paragraphs(_DESCRIPTION)),
            ("COMMANDS", "\n".join(_items(_entry(command), _own(command)) for command in leaves)),
            ("OPTIONS", _list([_option(option) for option in root.options])),
            ("SETTINGS", _paragraphs(_SETTINGS) + "\n" + _list(list(_flags(root)))),
            ("ENVIRONMENT", _list(_ENVIRONMENT)),
            ("FILES", _list(_FILES)),
            ("SIGNALS", _list(_SIGNALS)),
            ("EXIT STATUS", _list(_EXIT)),
            ("EXAMPLES", _list(_EXAMPLES)),
            ("SEE ALSO", _references(("echod.toml", 5), ("systemctl", 1), ("journalctl", 1), ("systemd.service", 5))),
        ],
    )


def echod_toml() -> str:
    """Return the page of the file."""
    sections = []
    for section, field in Settings.model_fields.items():
        items = [
            (
                f"{setting.key} = {setting.default}",
                f"{render.described(setting)} Flag --{setting.name} {setting.form.word}, variable {setting.variable}.",
            )
            for setting in declared()
            if setting.section == section
        ]
        text = _paragraphs(field.annotation.__doc__ or "")
        sections.append((f"[{section}]", f"{text}\n{_list(items)}"))
    return _page(
        "echod.toml",
        5,
        "File Formats",
        "the configuration of echod",
        [
            ("SYNOPSIS", _escaped("/etc/echod/echod.toml")),
            ("DESCRIPTION", _paragraphs(_SYNTAX)),
            *sections,
            ("SEE ALSO", _references(("echod", 8))),
        ],
    )


def _page(name: str, section: int, volume: str, text: str, sections: list[tuple[str, str]]) -> str:
    head = f'.\\" Written by `make reference`.\n.TH {name.upper()} {section} {_DATE} "echod {__version__}" "{volume}"\n'
    sections = [("NAME", f"{name} \\- {_escaped(text)}"), *sections]
    return head + "".join(f".SH {title}\n{body}\n" for title, body in sections)


def _synopsis(command: Command) -> str:
    parts = [f"[{_syntax(option)}]" for option in command.own]
    parts += [_italic(argument.value) for argument in command.arguments]
    if command.takes_settings:
        parts.append("[" + _italic("settings") + "]")
    return " ".join([_bold(" ".join(("echod", *command.words))), *parts])


def _entry(command: Command) -> tuple[str, str]:
    return " ".join(command.words), f"{command.text[:1].upper()}{command.text[1:]}."


def _own(command: Command) -> list[tuple[str, str]]:
    """Return what a command has that others do not."""
    options = [_option(option) for option in command.own]
    return options + [(_italic(argument.value), argument.text) for argument in command.arguments]


def _items(head: tuple[str, str], below: list[tuple[str, str]]) -> str:
    """Return an entry with a list of its own."""
    text = _list([head])
    return f"{text}\n.RS\n{_list(below, bold=str)}\n.RE" if below else text


def _flags(root: Command) -> Iterator[tuple[str, str]]:
    """Yield the settings' flags. All commands have the same."""
    for option in dict.fromkeys(option for command in root.all for option in command.options if option.setting):
        yield _option(option)


def _option(option: Option) -> tuple[str, str]:
    return _syntax(option), option.text


def _syntax(option: Option) -> str:
    flags = ", ".join(_bold(flag) for flag in option.flags)
    return f"{flags} {_italic(option.value)}" if option.value else flags


def _list(items: list[tuple[str, str]], bold: Callable[[str], str] | None = None) -> str:
    """Return a list of terms, which are in bold unless they have marks already, and what is said of each."""
    lines = []
    for term, text in items:
        marked = term if bold or term.startswith("\\f") else _bold(term)
        lines.append(f".TP\n{marked}\n{_sentence(text)}")
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return _wrapped(f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', ']')) else '.'}")


def _references(*pages: tuple[str, int]) -> str:
    return ",\n".join(f".BR {name} ({section})" for name, section in pages).replace("),", ") ,")


def _paragraphs(text: str) -> str:
    return "\n.PP\n".join(_wrapped(paragraph) for paragraph in text.split("\n\n"))


def _wrapped(text: str) -> str:
    """Return text in lines that mandoc does not find too long."""
    return "\n".join(_escaped(line) for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False))


def _bold(text: str) -> str:
    return f"\\fB{_escaped(text)}\\fR"


def _italic(text: str) -> str:
    return f"\\fI{_escaped(text)}\\fR"


def _escaped(text: str) -> str:
    """Return text that roff prints as it is; a line must not begin with its control characters."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{text}" if text.startswith(".") else text


FILES: dict[Path, Callable[[], str]] = {
    Path("man/echod.8"): echod,
    Path("man/echod.toml.5"): echod_toml,
    Path("completions/echod.bash"): completion.bash,
    Path("completions/_echod"): completion.zsh,
    Path("completions/echod.fish"): completion.fish,
}
"""What is written where."""


def write(root: Path) -> None:
    """Bring the files up to date."""
    for path, text in FILES.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text())


if __name__ == "__main__":
    write(Path())
