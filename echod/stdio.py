"""The standard streams of the command: never closed, written to the end, and with priorities in the journal."""

from __future__ import annotations

import errno
import os
import signal
import sys

from echod import systemd
from echod.errors import Refusal

_PIPE = 128 + signal.SIGPIPE  # what a shell says of a command that ended so


def guard() -> None:
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


def say(text: str) -> None:
    """Answer on standard output, and make sure that it got there."""
    try:
        if systemd.is_journal(1, os.environ):
            text = systemd.prefixed("answer", text.removesuffix("\n")) + "\n"
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _discard(1)
        if error.errno == errno.EPIPE:  # as for `head -1`: who reads has had enough
            raise Refusal(exit_code=_PIPE) from None
        raise Refusal(f"echod: standard output: {error.strerror}", exit_code=os.EX_SOFTWARE) from None


def complain(*lines: str, level: str = "error") -> None:
    """Write lines on standard error, as far as it takes them: the exit code stands in any case."""
    try:
        journal = systemd.is_journal(2, os.environ)
        for line in lines:
            text = systemd.prefixed(level, line) if journal else line
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is where people are told
    except OSError:
        _discard(2)


def _discard(fd: int) -> None:
    """Let go of a stream that takes nothing: Python would try once more at exit, and change the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
