"""The standard streams of a command: opened where they are closed, and written so that a failure is noticed.

In the systemd journal, each line gets its priority.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys

from echod import systemd
from echod.errors import Refusal

_CLOSED_PIPE = 128 + signal.SIGPIPE  # the exit code by which a shell reports a command that SIGPIPE ended


def guard() -> None:
    """Open descriptors 0, 1 and 2 if they are closed: otherwise a socket gets the number, and a client reads the log."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # Python found the descriptor closed
            setattr(sys, name, os.fdopen(fd, "w", closefd=False))
        getattr(sys, name).reconfigure(errors="backslashreplace")


def answer(text: str) -> None:
    """Write a command's answer to standard output. Raises `Refusal` if it can't be written."""
    try:
        if systemd.is_journal(1, os.environ):
            text = systemd.prefixed("answer", text.removesuffix("\n")) + "\n"
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _discard(1)
        if error.errno == errno.EPIPE:  # `echod status | head -1`: the reader has what it wants
            raise Refusal(exit_code=_CLOSED_PIPE) from None
        raise Refusal(f"echod: standard output: {error.strerror}", exit_code=os.EX_SOFTWARE) from None


def report(*lines: str, level: str = "error", wait: bool = True) -> None:
    """Write lines to standard error; without `wait`, only if there is room for them.

    A failure is ignored: the exit code tells the outcome.
    """
    if not wait and not select.select([], [2], [], 0)[1]:
        return
    try:
        journal = systemd.is_journal(2, os.environ)
        for line in lines:
            text = systemd.prefixed(level, line) if journal else line
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is the program's standard error
    except OSError:
        _discard(2)


def _discard(fd: int) -> None:
    """Point the descriptor to /dev/null: Python flushes at exit, and a second failure would change the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
