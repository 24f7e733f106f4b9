"""The manual pages echod(8) and echod.toml(5), in man(7).

Commands, flags and settings come from their declarations; the rest of the text is here.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

from echod import __version__
from echod.config import render
from echod.config.settings import Settings, declared
from generate import grammar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from generate.grammar import Command, Option

_WIDTH = 70
"""The longest line of text, without the marks for bold and italic."""

_DESCRIPTION = """\
echod is a daemon for the echo service of RFC 862 over TCP, and over TLS, UDP and Unix sockets if they are set: it returns
every byte that a client sends, in order, once.

echod makes a fixed number of workers when it starts. Each worker serves one connection at a time. echod does not read from
a client that does not read its echo, so the size of the pool bounds the memory.

One process uses one core. To use more, run several processes on one port (listen.reuse_port), such as the instances of
echod@.service. The commands about the running daemon then speak of all of them; --instance picks one."""

_SETTINGS = """\
Each setting of echod.toml(5) is also a flag under its dotted name, and an environment variable. A flag overrides a variable, a
variable overrides the file, and the file overrides the default."""

_ENVIRONMENT = [
    ("ECHOD_CONFIG", "The configuration file, if no -c names one."),
    ("ECHOD_SECTION__KEY", "A setting, e.g. ECHOD_POOL__SIZE=10. A list is separated by commas, or written as JSON."),
    ("ECHOD_INSTANCE", "The name of this process among several. Each line of the log has it, as instance."),
    ("NO_COLOR", "If it is set and not empty, the log on a terminal has no colors."),
    ("RUNTIME_DIRECTORY, XDG_RUNTIME_DIR", "The directory of the admin socket; see admin.socket in echod.toml(5)."),
    ("NOTIFY_SOCKET, WATCHDOG_USEC", "Set by systemd. echod reports there that it is ready and that it is alive."),
    (
        "LISTEN_FDS",
        "Set by systemd for a socket unit: echod serves on the sockets that it inherits. It then ignores [listen], and logs this.",
    ),
    ("JOURNAL_STREAM", "Set by systemd. If standard output is the journal, each line begins with its priority."),
]
_FILES = [
    ("/etc/echod/echod.toml", "The configuration file, if it exists and no other is named. See echod.toml(5)."),
    (
        "echod-restart",
        "Restarts the running instances of echod@.service one after the other, so that no client is refused meanwhile.",
    ),
    ("/run/echod/", "The runtime directory of the service, with the admin socket. For echod@N it is /run/echod/N/."),
]
_SIGNALS = [
    (
        "TERM, INT",
        (
            "Go on accepting for timeouts.lame_duck, but be not ready. Then drain: stop accepting, and wait up to timeouts.drain for"
            " connections to finish. Then exit. Another one skips to the next of these."
        ),
    ),
    ("HUP", "Reload the configuration file, all or nothing. Open connections stay."),
    ("USR1, USR2", "Ignored, because other daemons use them."),
]
_EXIT = [
    ("0", "Success; also after a drain."),
    ("64", "Wrong usage."),
    ("65", "One of the connections was not there (kill). The others are ended all the same."),
    ("66", "The configuration file is missing or unreadable; also that of the daemon (reload)."),
    ("69", "The address is in use, no daemon answers, or it is not ready (ready)."),
    ("70", "Internal error, or standard output cannot be written."),
    ("77", "Permission denied. The message says how to get it."),
    ("78", "Invalid configuration, or a refused reload. There is a line for each problem, with file and line."),
    ("141", "The reader of standard output closed it early, as head(1) does."),
]
_PROBES = "ping and bench have the exit status of monitoring plugins instead:"
_EXIT_PROBES = [
    ("0", "All echoes came back, right and within --warn."),
    ("1", "Some were lost, or --warn was exceeded; bench: it could not keep its own schedule."),
    ("2", "None came back, a byte was wrong, --crit was exceeded, or there was no connection."),
    ("3", "Wrong usage."),
]
_EXAMPLES = [
    ("echod ping -c 5 --size 64,1400,9000 192.0.2.1", "Five messages of three sizes in turn: shows an MTU black hole."),
    (
        "echod ping -q -c 5 --warn 0.1,1% --crit 1,50% tls://echo.example.com:7443",
        "Check a service, as a plugin of a monitoring system.",
    ),
    (
        "echod bench --rate 1000 --duration 30s localhost:7007",
        "Load a service, and report how long its users would wait.",
    ),
    ("echod run -p 8080 -n 10", "Serve on port 8080, at most 10 connections at a time."),
    ("echod check -c echod.toml", "Report all errors of a file."),
    (
        "echod reload",
        "Apply the edited file. If it is invalid, this fails with the errors, and the daemon goes on as before.",
    ),
    ("echod ready", "For health checks: exit with 0 if a client that connects now is served."),
    ("echod lame-duck", "Take the daemon out of a load balancer: it still accepts, but is not ready."),
    ("echod kill --source 192.0.2.0/24", "End all connections from a network."),
    (
        "journalctl -u echod -o cat -f | jq -R 'fromjson? // .'",
        "Follow the log: one JSON object for each event, and lines of plain text when something fails.",
    ),
    ("journalctl -u echod -p warning", "Show warnings and errors only."),
]

_SYNTAX = """\
A TOML file of sections with keys. Every key is optional, and an unknown key is an error. echod check -c FILE reports all errors,
with file and line. echod config show --sources shows the resulting values and where each comes from.

A duration is written "500ms", "30s", "5m" or "1h30m", and "off" for never; a rate "500/s" or "30/m"; a count 1024, 10_000 or
"64Ki". A list of one item may be written without brackets.

A reload (HUP, or systemctl reload echod) changes every setting except those that say that they need a restart."""


def released(changelog: str) -> str:
    """Return the date of the newest release, for the foot of the pages: the same source always gives the same pages."""
    dates = re.findall(r"^## \[[^]]+\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    if not dates:
        raise ValueError('CHANGELOG.md has no line like "## [0.1.0] - 2026-01-31"')
    return str(dates[0])


def echod(date: str) -> str:
    """Return the page of the program, of section 8."""
    root = grammar.read()
    leaves = [command for command in root.all if not command.commands]
    return _page(
        "echod",
        "an echo daemon (RFC 862)",
        f'8 {date} "echod {__version__}" "System Administration"',
        [
            ("SYNOPSIS", "\n.br\n".join(_synopsis(command) for command in leaves)),
            ("DESCRIPTION", _paragraphs(_DESCRIPTION)),
            ("COMMANDS", "\n".join(_items(_entry(command), _own(command)) for command in leaves)),
            ("OPTIONS", _list([_option(option) for option in root.options])),
            ("SETTINGS", _paragraphs(_SETTINGS) + "\n" + _list(list(_flags(root)))),
            ("ENVIRONMENT", _list(_ENVIRONMENT)),
            ("FILES", _list(_FILES)),
            ("SIGNALS", _list(_SIGNALS)),
            ("EXIT STATUS", f"{_list(_EXIT)}\n.PP\n{_wrapped(_PROBES)}\n{_list(_EXIT_PROBES)}"),
            ("EXAMPLES", _list(_EXAMPLES)),
            ("SEE ALSO", _references(("echod.toml", 5), ("systemctl", 1), ("journalctl", 1), ("systemd.service", 5))),
        ],
    )


def echod_toml(date: str) -> str:
    """Return the page of the configuration file, of section 5."""
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
        "the configuration of echod",
        f'5 {date} "echod {__version__}" "File Formats"',
        [
            ("SYNOPSIS", _escaped("/etc/echod/echod.toml")),
            ("DESCRIPTION", _paragraphs(_SYNTAX)),
            *sections,
            ("SEE ALSO", _references(("echod", 8))),
        ],
    )


def _page(name: str, text: str, title: str, sections: list[tuple[str, str]]) -> str:
    """Return a page. `title` is its section of the manual, date, source and volume, as .TH of man(7) wants them."""
    head = f'.\\" Generated: do not edit.\n.TH {name.upper()} {title}\n'
    sections = [("NAME", f"{name} \\- {_escaped(text)}"), *sections]
    return head + "".join(f".SH {heading}\n{body}\n" for heading, body in sections)


def _synopsis(command: Command) -> str:
    parts = [f"[{_syntax(option)}]" for option in command.own]
    parts += [
        f"[{_italic(argument.value)}...]" if argument.any_number else _italic(argument.value)
        for argument in command.arguments
    ]
    if command.takes_settings:
        parts.append("[" + _italic("settings") + "]")
    return " ".join([_bold(" ".join(("echod", *command.words))), *parts])


def _entry(command: Command) -> tuple[str, str]:
    return " ".join(command.words), f"{command.text[:1].upper()}{command.text[1:]}."


def _own(command: Command) -> list[tuple[str, str]]:
    """Return the options and arguments that only this command has."""
    options = [_option(option) for option in command.own]
    return options + [(_italic(argument.value), argument.text) for argument in command.arguments]


def _items(head: tuple[str, str], below: list[tuple[str, str]]) -> str:
    """Return an entry with an indented list below it."""
    text = _list([head])
    return f"{text}\n.RS\n{_list(below)}\n.RE" if below else text


def _flags(root: Command) -> Iterator[tuple[str, str]]:
    """Yield the settings' flags, each once: all commands that take them take the same ones."""
    for option in dict.fromkeys(option for command in root.all for option in command.options if option.setting):
        yield _option(option)


def _option(option: Option) -> tuple[str, str]:
    return _syntax(option), option.text


def _syntax(option: Option) -> str:
    flags = ", ".join(_bold(flag) for flag in option.flags)
    return f"{flags} {_italic(option.value)}" if option.value else flags


def _list(items: list[tuple[str, str]]) -> str:
    """Return a list of terms with a text for each. Terms are set in bold, except those that have marks already."""
    lines = []
    for term, text in items:
        marked = term if term.startswith("\\f") else _bold(term)
        lines.append(f".TP\n{marked}\n{_sentence(text)}")
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return _wrapped(f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', ']')) else '.'}")


def _references(*pages: tuple[str, int]) -> str:
    return ",\n".join(f".BR {name} ({section})" for name, section in pages).replace("),", ") ,")


def _paragraphs(text: str) -> str:
    return "\n.PP\n".join(_wrapped(paragraph) for paragraph in text.split("\n\n"))


def _wrapped(text: str) -> str:
    """Return text in lines that are short enough for mandoc's rules of style."""
    return "\n".join(_escaped(line) for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False))


def _bold(text: str) -> str:
    return f"\\fB{_escaped(text)}\\fR"


def _italic(text: str) -> str:
    return f"\\fI{_escaped(text)}\\fR"


def _escaped(text: str) -> str:
    """Return text that roff prints unchanged. A line that begins with a dot would be a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{text}" if text.startswith(".") else text
