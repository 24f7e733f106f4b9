"""The command line: its grammar, and what each command does with the settings.

What only `run` needs is imported in `_run`, so that `check` and `--help` start without uvloop.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
import threading
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from echod import __version__, stdio, systemd
from echod.client import control
from echod.config import admin_socket, checks, render
from echod.config import load as config
from echod.config.settings import ENV_FILE, ENV_INSTANCE, declared
from echod.config.types import network
from echod.errors import Refusal
from echod.text import printable, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from echod.config.settings import Setting
    from echod.networks import Network

_CLEAR = "\x1b[H\x1b[2J"  # ECMA-48: CUP and ED: go to the first line, and erase the screen
_CONNECTION = re.compile(r"[0-9]{1,19}")
_USER = re.compile(r"uid:([0-9]{1,10})")
_SHORT_FLAGS = {"listen.port": ("-p", "--port"), "pool.size": ("-n", "--pool-size")}


def main() -> NoReturn:
    """Run the command of `sys.argv` and exit."""
    stdio.guard()
    code = run(sys.argv[1:])
    if threading.active_count() > 1:
        # A thread hangs in writing the log or in reading the configuration. Python's finalization would crash with it.
        os._exit(code)
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Run a command; return the exit code: 0, or one of sysexits.h. `--help` and `--version` raise `SystemExit`."""
    try:
        arguments = parser().parse_args(words)
        arguments.command(arguments)
    except Refusal as refusal:
        stdio.report(*map(printable, refusal.lines))
        return refusal.exit_code
    except Exception:  # noqa: BLE001 - a bug: no input of a user leads here
        stdio.report("echod: internal error, please report it:", traceback.format_exc())
        return os.EX_SOFTWARE
    return os.EX_OK


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002 - argparse always passes standard output
        stdio.answer(message)

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{self.prog}: {message} (see {self.prog} --help)", exit_code=os.EX_USAGE)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line. The manual pages and the completions are made from it too."""
    parser = _Parser(prog="echod", description="An echo daemon (RFC 862).", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=_version())
    commands = _commands(parser)
    _command(commands, "run", _run, "serve in the foreground until told to stop")
    check = _command(commands, "check", _check, "validate the configuration without binding anything")
    check.add_argument("-q", "--quiet", action="store_true", help="print only errors")
    configs = _commands(_add(commands, "config", "show the configuration"))
    show = _command(configs, "show", _show, "print the settings as TOML, as the file, variables and flags give them")
    show.add_argument("--sources", action="store_true", help="add a comment that says where each value comes from")
    show.add_argument("--running", action="store_true", help="print the settings that the running daemon has instead")
    _command(configs, "schema", _schema, "print the JSON Schema of the configuration file, for editors", settings=())
    status = _admin_command(commands, "status", _status, "show the state of the running daemon on one screen")
    connections = _admin_command(commands, "connections", _connections, "show the open connections of the daemon")
    for command in (status, connections):
        command.add_argument("--json", action="store_true", help="print one line of JSON")
        command.add_argument("--watch", action="store_true", help="repeat every second, until Ctrl-C")
    connections.add_argument(
        "--sort",
        choices=control.ORDERS,
        default="id",
        help="sort by this column (default: id); quantities come largest first",
    )
    kill = _admin_command(commands, "kill", _kill, "end connections of the running daemon")
    kill.add_argument(
        "id", metavar="ID", nargs="*", type=_connection, help="number of a connection, as `connections` shows it"
    )
    for command in (connections, kill):
        command.add_argument(
            "--source",
            metavar="NETWORK",
            type=_source,
            help="only clients of this network or address, e.g. 10.0.0.0/8, or of this user of a Unix socket: uid:1000",
        )
    _admin_command(commands, "reload", _reload, "reload the configuration of the running daemon")
    _admin_command(commands, "ready", _ready, "exit with 0 if a client that connects now is served, else with 69")
    duck = _admin_command(
        commands,
        "lame-duck",
        _lame_duck,
        "let the running daemon be not ready, but go on accepting: for load balancers",
    )
    duck.add_argument("--off", action="store_true", help="take it back")
    return parser


def _commands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[_Parser]:
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)


def _add(commands: argparse._SubParsersAction[_Parser], name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)


def _command(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    function: Callable[[argparse.Namespace], None],
    text: str,
    *,
    settings: Iterable[Setting] | None = None,
) -> argparse.ArgumentParser:
    """Add a command that takes these settings as flags; by default, all."""
    parser = _add(commands, name, text)
    parser.set_defaults(command=function)
    _add_settings(parser, list(declared() if settings is None else settings))
    return parser


def _admin_command(
    commands: argparse._SubParsersAction[_Parser], name: str, function: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    """Add a command about the running daemon, which needs only the path of the admin socket."""
    settings = [setting for setting in declared() if setting.name == "admin.socket"]
    return _command(commands, name, function, text, settings=settings)


def _add_settings(parser: argparse.ArgumentParser, declared: Sequence[Setting]) -> None:
    if not declared:
        return
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=Path,
        help=f"TOML file (default: ${ENV_FILE}, else {config.DEFAULT_FILE})",
    )
    settings = parser.add_argument_group(
        "settings",
        "Each setting is also an environment variable and a key of the file, shown in brackets with the default. A flag"
        " takes precedence over a variable, a variable over the file. Separate the items of a list by commas:"
        " --listen.host 127.0.0.1,::1.",
    )
    for setting in declared:
        described = f"{render.described(setting)} [{setting.variable}] [{setting.key} = {setting.default}]"
        settings.add_argument(
            *_SHORT_FLAGS.get(setting.name, ()),
            f"--{setting.name}",
            dest=setting.name,
            metavar=setting.form.word,
            help=described.replace("%", "%%"),
        )


def _load(arguments: argparse.Namespace) -> config.Loaded:
    try:
        return config.load(arguments.config, _flags(arguments), os.environ)
    except Refusal:
        _warn(checks.unknown_variables(os.environ))  # a misspelled one may be the cause
        raise


def _flags(arguments: argparse.Namespace) -> dict[str, str]:
    values = vars(arguments)
    return {setting.name: values[setting.name] for setting in declared() if values.get(setting.name) is not None}


def _warn(warnings: Iterable[str], level: str = "warning") -> None:
    stdio.report(*(printable(f"warning: {line}") for line in warnings), level=level)


def _run(arguments: argparse.Namespace) -> None:
    from echod import daemon  # noqa: PLC0415 - needs uvloop
    from echod.log import Log  # noqa: PLC0415 - needs uvloop

    if arguments.config:
        arguments.config = arguments.config.absolute()  # a command that shows it may run in another folder
    loaded = _load(arguments)
    service = systemd.Service(os.environ)
    flags, environ = _flags(arguments), dict(os.environ)
    try:
        instance = os.environ.get(ENV_INSTANCE, "")
        log = Log(sys.stdout, loaded.settings.log, journal=systemd.is_journal(1, os.environ), instance=instance)
    except RuntimeError as error:
        line = f"echod: the log's thread: {error}: allow more tasks (TasksMax=, ulimit -u)"
        raise Refusal(line, exit_code=os.EX_SOFTWARE) from None
    try:
        daemon.run(loaded, log, lambda file: config.load(file, flags, environ, again=True), service)
    except Refusal:
        raise
    except Exception:
        log.exception("internal.error", message="the daemon failed")
        raise Refusal(exit_code=os.EX_SOFTWARE) from None
    finally:
        if lost := log.close():
            lines = "1 line" if lost == 1 else f"{lost} lines"
            # Without waiting: standard error may be the same pipe, which nobody reads.
            stdio.report(f"echod: {lines} of the log could not be written: {log.held.why}", wait=False)


def _check(arguments: argparse.Namespace) -> None:
    loaded = _load(arguments)
    if not arguments.quiet:
        if loaded.file and not loaded.has_keys:
            text = "has no key: a start takes the defaults, a reload is refused if there were keys before"
            _warn([f"{loaded.file}: {text}"])
        _warn(loaded.warnings)
        stdio.answer(printable(f"{loaded.file or 'defaults'}: ok") + "\n")


def _show(arguments: argparse.Namespace) -> None:
    if arguments.running:
        stdio.answer(control.config(_daemon(arguments), sources=arguments.sources))
        return
    loaded = _load(arguments)
    _warn(loaded.warnings)
    document = loaded.document()
    stdio.answer(render.toml(document["settings"], document["origins"] if arguments.sources else None))


def _schema(_: argparse.Namespace) -> None:
    stdio.answer(render.schema())


def _daemon(arguments: argparse.Namespace) -> control.AdminClient:
    """Return a client for the daemon that these settings lead to."""
    found = admin_socket.candidates(arguments.config, _flags(arguments), os.environ)
    return control.AdminClient(found.paths, found.trouble)


def _status(arguments: argparse.Namespace) -> None:
    daemon = _daemon(arguments)
    _show_answer(arguments, lambda: control.status(daemon, as_json=arguments.json))


def _connections(arguments: argparse.Namespace) -> None:
    daemon = _daemon(arguments)
    _show_answer(
        arguments,
        lambda: control.connections(daemon, as_json=arguments.json, order=arguments.sort, source=arguments.source),
    )


def _show_answer(arguments: argparse.Namespace, answer: Callable[[], str]) -> None:
    # A dumb terminal, as in Emacs or a CI job, shows escape sequences as text.
    redraws = arguments.watch and not arguments.json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    while True:
        text = answer()
        if redraws:
            fitting = text.splitlines(keepends=True)[: shutil.get_terminal_size().lines - 1]
            text = f"{_CLEAR}{''.join(fitting)}"
        stdio.answer(text)
        if not arguments.watch:
            return
        time.sleep(1)


def _kill(arguments: argparse.Namespace) -> None:
    if bool(arguments.id) == (arguments.source is not None):
        raise Refusal("echod kill: give either IDs or --source (see echod kill --help)", exit_code=os.EX_USAGE)
    daemon = _daemon(arguments)
    killed = control.kill_source(daemon, arguments.source) if arguments.source else control.kill(daemon, arguments.id)
    for line in killed:
        stdio.answer(line)


def _reload(arguments: argparse.Namespace) -> None:
    text, warnings = control.reload(_daemon(arguments))
    stdio.answer(text)
    _warn(warnings, level="answer")  # under ExecReload=, the journal has them from the daemon


def _ready(arguments: argparse.Namespace) -> None:
    stdio.answer(control.ready(_daemon(arguments)))


def _lame_duck(arguments: argparse.Namespace) -> None:
    stdio.answer(control.lame_duck(_daemon(arguments), on=not arguments.off))


def _source(text: str) -> Network | control.User:
    try:
        found = _USER.fullmatch(text)
        return control.User(int(found[1])) if found else network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _connection(text: str) -> int:
    if not _CONNECTION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be the number of a connection, got {shown(text)}")
    return int(text)


def _version() -> str:
    return f"echod {__version__} (uvloop {version('uvloop')}, Python {platform.python_version()})"
