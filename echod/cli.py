"""The command line: its grammar, and what each command does with the settings.

What only `run` needs is imported in `_run`, so that `check` and `--help` start without uvloop.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import sys
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, NoReturn

from echod import __version__, probes, stdio, systemd
from echod.arguments import add_settings, connection, flags_of, instance, source
from echod.client import control, instances, terminal, top, watch
from echod.client.admin_client import TIMEOUT
from echod.command import Parser, exit_code
from echod.config import admin_socket, checks, render
from echod.config import load as config
from echod.config.settings import ENV_INSTANCE, declared
from echod.errors import Refusal
from echod.text import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

    from echod.client.control import Reply
    from echod.client.instances import Instances
    from echod.config.settings import Setting


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
    if words and words[0] in probes.COMMANDS:
        return probes.run(words)
    return exit_code(functools.partial(_run_command, words))


def _run_command(words: Sequence[str]) -> int:
    arguments = parser().parse_args(words)
    arguments.command(arguments)
    return os.EX_OK


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line. The manual pages and the completions are made from it too."""
    parser = Parser(prog="echod", description="An echo daemon (RFC 862).", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=_version())
    commands = _commands(parser)
    _command(commands, "run", _run, "serve in the foreground until told to stop")
    check = _command(commands, "check", _check, "validate the configuration without binding anything")
    check.add_argument("-q", "--quiet", action="store_true", help="print only errors")
    configs = _commands(_add(commands, "config", "show the configuration"))
    show = _command(configs, "show", _show, "print the settings as TOML, as the file, variables and flags give them")
    show.add_argument("--sources", action="store_true", help="add a comment that says where each value comes from")
    show.add_argument("--running", action="store_true", help="print the settings that the running daemon has instead")
    _add_instance(show)
    _command(configs, "schema", _schema, "print the JSON Schema of the configuration file, for editors", settings=())
    status = _admin_command(commands, "status", _status, "show the state of the running daemon on one screen")
    connections = _admin_command(commands, "connections", _connections, "show the open connections of the daemon")
    for command in (status, connections):
        command.add_argument("--json", action="store_true", help="print one line of JSON")
        command.add_argument(
            "--watch",
            action="store_true",
            help="repeat every second, until Ctrl-C; a restart of the daemon does not end it",
        )
    both = _admin_command(
        commands, "top", _top, "show the state and the connections on one screen, every second, until q"
    )
    for command, order in ((connections, "id"), (both, "bytes")):
        command.add_argument(
            "--sort",
            choices=control.ORDERS,
            default=order,
            help=f"sort by this column (default: {order}); quantities come largest first",
        )
    kill = _admin_command(commands, "kill", _kill, "end connections of the running daemon")
    kill.add_argument(
        "id",
        metavar="ID",
        nargs="*",
        type=connection,
        help="number of a connection, as `connections` shows it; with several instances, INSTANCE/NUMBER",
    )
    for command in (connections, both, kill):
        command.add_argument(
            "--source",
            metavar="NETWORK",
            type=source,
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
    for name, (text, add_arguments, _) in probes.COMMANDS.items():
        add_arguments(_add(commands, name, text))
    return parser


def _commands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[Parser]:
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)


def _add(commands: argparse._SubParsersAction[Parser], name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)


def _command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    function: Callable[[argparse.Namespace], None],
    text: str,
    *,
    settings: Iterable[Setting] | None = None,
) -> argparse.ArgumentParser:
    """Add a command that takes these settings as flags; by default, all."""
    parser = _add(commands, name, text)
    parser.set_defaults(command=function)
    add_settings(parser, list(declared() if settings is None else settings))
    return parser


def _admin_command(
    commands: argparse._SubParsersAction[Parser], name: str, function: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    """Add a command about the running daemon, which needs only the path of the admin socket."""
    settings = [setting for setting in declared() if setting.name == "admin.socket"]
    parser = _command(commands, name, function, text, settings=settings)
    _add_instance(parser)
    return parser


def _add_instance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--instance",
        metavar="N",
        type=instance,
        help="ask only this one of several instances, which listens at /run/echod/N/admin.sock",
    )


def _load(arguments: argparse.Namespace) -> config.Loaded:
    try:
        return config.load(arguments.config, flags_of(arguments), os.environ)
    except Refusal:
        _warn(checks.unknown_variables(os.environ))  # a misspelled one may be the cause
        raise


def _warn(warnings: Iterable[str], level: str = "warning") -> None:
    stdio.report(*(printable(f"warning: {line}") for line in warnings), level=level)


def _run(arguments: argparse.Namespace) -> None:
    from echod import daemon  # noqa: PLC0415 - needs uvloop
    from echod.log import Log  # noqa: PLC0415 - needs uvloop

    if file := config.choose_file(arguments.config, os.environ):
        with contextlib.suppress(OSError):  # the working directory is gone: reading the file gives the message
            arguments.config = file.absolute()  # a command that shows it may run in another folder
    loaded = _load(arguments)
    service = systemd.Service(os.environ)
    flags, environ = flags_of(arguments), dict(os.environ)
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
    obstacles = list(checks.obstacles(loaded.settings, loaded.layers))
    if certain := [line for is_certain, line in obstacles if is_certain]:
        raise Refusal(*certain)
    if not arguments.quiet:
        if loaded.file and not loaded.has_keys:
            text = "has no key: a start takes the defaults, a reload is refused if there were keys before"
            _warn([f"{loaded.file}: {text}"])
        _warn([*loaded.warnings, *(line for _, line in obstacles)])
        stdio.answer(printable(f"{loaded.file or 'defaults'}: ok") + "\n")


def _show(arguments: argparse.Namespace) -> None:
    if arguments.running:
        stdio.answer(control.config(_instances(arguments).only, sources=arguments.sources))
        return
    if arguments.instance:
        raise Refusal("echod config show: --instance needs --running", exit_code=os.EX_USAGE)
    loaded = _load(arguments)
    _warn(loaded.warnings)
    document = loaded.document()
    stdio.answer(render.toml(document["settings"], document["origins"] if arguments.sources else None))


def _schema(_: argparse.Namespace) -> None:
    stdio.answer(render.schema())


def _instances(arguments: argparse.Namespace, patience: float = TIMEOUT) -> Instances:
    """Return the running daemons that these settings lead to."""
    flags = flags_of(arguments)
    if arguments.instance is None:
        return instances.find(admin_socket.candidates(arguments.config, flags, os.environ), patience)
    if flags.get("admin.socket"):
        raise Refusal("echod: give either --instance or --admin.socket", exit_code=os.EX_USAGE)
    return instances.choose(arguments.instance, admin_socket.directories(os.environ), patience)


def _status(arguments: argparse.Namespace) -> None:
    _show_reply(arguments, functools.partial(control.status, as_json=arguments.json))


def _connections(arguments: argparse.Namespace) -> None:
    command = functools.partial(
        control.connections, as_json=arguments.json, order=arguments.sort, source=arguments.source
    )
    _show_reply(arguments, command)


def _show_reply(arguments: argparse.Namespace, command: Callable[[Instances], Reply]) -> None:
    if not arguments.watch:
        _finish(command(_instances(arguments)))
        return

    def ask(patience: float) -> Reply:
        return command(_instances(arguments, patience))

    if arguments.json:
        watch.watch_json(ask, stdio.answer, stdio.report)
    else:
        watch.watch(ask, stdio.answer)


def _finish(reply: Reply, level: str = "warning") -> None:
    """Write the reply; fail if some of the instances have."""
    stdio.answer(reply.text)
    _warn(reply.warnings, level)
    if reply.failure:
        raise reply.failure


def _top(arguments: argparse.Namespace) -> None:
    screen = top.Top(functools.partial(_instances, arguments), arguments.sort, arguments.source)
    if terminal.is_capable():
        top.on_terminal(screen, stdio.answer)
    else:
        height = shutil.get_terminal_size().lines - 1 if sys.stdout.isatty() else None
        top.as_text(screen, stdio.answer, height)


def _kill(arguments: argparse.Namespace) -> None:
    if bool(arguments.id) == (arguments.source is not None):
        raise Refusal("echod kill: give either IDs or --source (see echod kill --help)", exit_code=os.EX_USAGE)
    for each in arguments.id:
        if arguments.instance and each.instance not in ("", arguments.instance):
            line = f"echod kill: {each} is of another instance than {arguments.instance}: leave out --instance"
            raise Refusal(line, exit_code=os.EX_USAGE)
    found = _instances(arguments)
    killed = control.kill_source(found, arguments.source) if arguments.source else control.kill(found, arguments.id)
    for line in killed:
        stdio.answer(line)


def _reload(arguments: argparse.Namespace) -> None:
    _finish(control.reload(_instances(arguments)), level="answer")  # under ExecReload=, the journal has the warnings


def _ready(arguments: argparse.Namespace) -> None:
    _finish(control.ready(_instances(arguments, control.READY_TIMEOUT)))


def _lame_duck(arguments: argparse.Namespace) -> None:
    _finish(control.lame_duck(_instances(arguments), on=not arguments.off))


def _version() -> str:
    return f"echod {__version__} (uvloop {version('uvloop')}, Python {platform.python_version()})"
