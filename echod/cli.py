"""Words on the command line → settings → a command → an exit code.

Knows nothing of sockets and workers. What only `run` needs is imported there: `check` and `--help` do without uvloop.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from echod import __version__, config
from echod.errors import Refusal
from echod.settings import declared
from echod.values import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

SHORT = {"listen.port": ("-p", "--port"), "pool.size": ("-n", "--pool-size")}


def main() -> NoReturn:
    """Run the command of `sys.argv` and exit."""
    _guard_standard_streams()
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Do what the words say; return the exit code (0, or one of sysexits.h). `--help` and `--version` raise SystemExit."""
    try:
        arguments = _parser().parse_args(words)
        return int(arguments.command(arguments))
    except Refusal as refusal:
        _complain(*map(printable, refusal.lines))
        return refusal.exit_code
    except Exception:  # noqa: BLE001 - a bug: nothing that a user did ends here
        _complain("echod: internal error, please report it:", traceback.format_exc())
        return os.EX_SOFTWARE


def _guard_standard_streams() -> None:
    """Open what is closed of 0, 1 and 2: otherwise a socket takes the number, and a client reads the log."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _say(text: str) -> None:
    """Answer on standard output, and make sure that it got there."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _discard(1)
        raise Refusal(f"echod: standard output: {error.strerror}", exit_code=os.EX_SOFTWARE) from None


def _complain(*lines: str) -> None:
    """Write lines on standard error, as far as it takes them: the exit code stands in any case."""
    try:
        for line in lines:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is where people are told
    except OSError:
        _discard(2)


def _discard(fd: int) -> None:
    """Let go of a stream that takes nothing: Python would try once more at exit, and change the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002 - it is always standard output
        _say(message)

    def error(self, message: str) -> NoReturn:
        raise Refusal(f"{self.prog}: {message} (see {self.prog} --help)", exit_code=os.EX_USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="echod", description="An echo daemon (RFC 862).", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command, help_text in (
        ("run", _run, "serve in the foreground until told to stop"),
        ("check", _check, "validate the configuration"),
    ):
        sub = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        sub.set_defaults(command=command)
        _add_settings(sub)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=Path,
        help=f"TOML file (default: ${config.ENV_FILE}, else {config.DEFAULT_FILE})",
    )
    settings = parser.add_argument_group("settings", "Each is also a key of the file and a variable; the flag wins.")
    for setting in declared():
        settings.add_argument(
            *SHORT.get(setting.name, ()),
            f"--{setting.name}",
            dest=setting.name,
            metavar=setting.key.upper(),
            help=f"{setting.field.description} [{setting.variable}]".replace("%", "%%"),
        )


def _load(arguments: argparse.Namespace) -> config.Loaded:
    values = vars(arguments)
    flags = {setting.name: values[setting.name] for setting in declared() if values[setting.name] is not None}
    _complain(*(printable(f"warning: {line}") for line in config.unknown_variables(os.environ)))
    loaded = config.load(arguments.config, flags, os.environ)
    _complain(*(printable(f"warning: {line}") for line in loaded.warnings))
    return loaded


def _run(arguments: argparse.Namespace) -> int:
    from echod import daemon  # noqa: PLC0415 - see above
    from echod.log import Log  # noqa: PLC0415 - see above

    loaded = _load(arguments)
    settings = loaded.settings
    try:
        log = Log(sys.stdout, level=settings.log.level, form=settings.log.format, queue=settings.log.queue)
    except RuntimeError as error:
        line = f"echod: the log's thread: {error}: allow more tasks (TasksMax=, ulimit -u)"
        raise Refusal(line, exit_code=os.EX_SOFTWARE) from None
    try:
        daemon.run(settings, loaded.file, log.log)
    except Refusal:
        raise
    except Exception:
        log.log.exception("internal.error", message="the daemon failed")
        return os.EX_SOFTWARE
    finally:
        log.close()
    return os.EX_OK


def _check(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments)
    _say(printable(f"{loaded.file or 'defaults'}: ok") + "\n")
    return os.EX_OK


def _version() -> str:
    return f"echod {__version__} (uvloop {version('uvloop')}, Python {platform.python_version()})"
