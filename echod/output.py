"""Where the lines of the log go: standard output, which may be a pipe, a file, a stream to the journal, or anything else.

A pipe gets lines in pieces that the kernel writes as a whole, so that processes that share the pipe do not tear each
other's lines. A file is appended to, also after it was emptied; if another file has its name by now, that one is opened:
these are the two ways of logrotate(8). A stream that the journal has closed is replaced by a new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_STDERR = 2
_AGAIN = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
"""How a file is opened anew. It may be a FIFO by now: without O_NONBLOCK, opening that waits for a reader (fifo(7))."""


class Output:
    """A descriptor that lines are written to. `journal` opens a new stream, if the descriptor is one to the journal."""

    def __init__(self, fd: int, journal: Callable[[], int] | None = None) -> None:
        self.fd = fd
        self._journal = journal
        self.error: str | None = None
        """Why the file that has our file's name by now can't be opened: the name of an errno."""
        mode = os.fstat(fd).st_mode
        self._is_pipe = stat.S_ISFIFO(mode)
        self._name: str | None = None
        if stat.S_ISREG(mode):
            self._name = _name(fd)
            # Without it, the next line after `logrotate` with copytruncate leaves a hole as long as the file was. The flag is
            # shared with every process that has this open file, such as the shell; there, too, appending is what is meant.
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)

    def write(self, data: bytes, start: int) -> int:
        """Write lines from `start` on, or a part of them, and return the number of bytes. Raises `OSError`."""
        end = len(data)
        if self._is_pipe:
            # At most PIPE_BUF bytes are written as a whole (pipe(7)). For a longer line, nothing promises that.
            end = data.rfind(b"\n", start, start + select.PIPE_BUF) + 1 or data.find(b"\n", start) + 1 or end
        return os.write(self.fd, memoryview(data)[start:end])

    def follow(self) -> None:
        """Go over to the file that has our file's name by now. If there is none, or it can't be opened, keep ours."""
        if self._name is None:
            return
        try:
            if not os.path.samestat(os.lstat(self._name), os.fstat(self.fd)):
                self._replace(os.open(self._name, _AGAIN))
            self.error = None
        except OSError as error:
            self.error = name_of(error)

    def mend(self, error: OSError) -> bool:
        """After a failed write, open what can be opened anew. Return whether that was done: nothing is written there yet."""
        # systemd keeps the streams while the journal restarts. If the journal is stopped and started, they are gone for good
        # (systemd-journald.service(8)): a write that waits for room fails with ECONNRESET, and every later one with EPIPE.
        if self._journal is None or not isinstance(error, ConnectionError):
            return False
        try:
            self._replace(self._journal())
        except OSError:  # the journal is still stopped, or there is no descriptor
            return False
        return True

    def _replace(self, new: int) -> None:
        """Put another open file in the place of ours, on standard error too if that is the same one."""
        ours = os.fstat(self.fd)
        for fd in (self.fd, _STDERR):
            if os.path.samestat(os.fstat(fd), ours):
                os.dup2(new, fd)
        os.close(new)


def _name(fd: int) -> str | None:
    """Return the path of an open file; `None` if it has none, or another file has it."""
    with contextlib.suppress(OSError):
        name = str(Path(f"/proc/self/fd/{fd}").readlink())
        if os.path.samestat(os.lstat(name), os.fstat(fd)):
            return name
    return None


def name_of(error: OSError) -> str:
    """Return the name of the error's number, such as EPIPE."""
    return errno.errorcode.get(error.errno or 0, str(error.errno))
