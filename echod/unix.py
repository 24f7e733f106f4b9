"""Unix sockets at a path: listening there, and connecting to who does.

The mode of the socket's file says who may connect: its owner and its group (unix(7)).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from typing import TYPE_CHECKING

from echod.errors import Refusal
from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKLOG = 128
_ATTEMPTS, _BETWEEN = 100, 0.01  # seconds; what the lock is held for takes microseconds
_UMASK = 0o117  # leaves 0660
_TIMEVAL = struct.Struct("@ll")  # struct timeval


def url(path: Path) -> str:
    """Return its name in logs and messages."""
    return printable(f"unix:{path}")


def connect(path: Path, timeout: float | None = None) -> socket.socket:
    """Return a socket that is connected to the daemon. Raises `OSError`; with a timeout of 0, if the backlog is full."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        if timeout:
            # Not Python's timeout, with which the socket does not block: then connect(2) does not wait for room.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(timeout), int(timeout % 1 * 1e6)))
        else:
            sock.settimeout(timeout)
        while not _is_connected(sock):
            sock.connect(str(path))
        sock.settimeout(timeout)
    except BlockingIOError:
        sock.close()
        if timeout:
            raise TimeoutError from None
        raise
    except BaseException:
        sock.close()
        raise
    return sock


def _is_connected(sock: socket.socket) -> bool:
    """Ask the kernel: an interrupted connect(2) looks done to Python, which waits then until the socket is writable."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Keep out other daemons that start: of two that find a stale socket, one could remove what the other has made.

    Only for a moment: anyone who may read the directory can lock it.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(_ATTEMPTS):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_BETWEEN)
            else:
                break
        yield
    finally:
        os.close(fd)


class UnixSocket:
    """Listens at a path, and removes it at the end.

    What a daemon has left there that is gone is replaced; one that lives is respected, as is any file that is no socket.
    Raises `Refusal` with exit code 69, 77 or 78.
    """

    def __init__(self, path: Path, setting: str, *, make_directory: bool) -> None:
        self._path = path
        self.url = url(path)
        self._where = f"echod: {setting}: {self.url}"
        try:
            if make_directory:
                path.parent.mkdir(mode=0o700, exist_ok=True)
            with _one_at_a_time(path.parent):
                self._make_room()
                self.sock = self._bind()
            self._inode = path.stat().st_ino
        except OSError as error:
            raise self._refusal(error) from None

    def _make_room(self) -> None:
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise Refusal(f"{self._where}: is there and no socket: remove it, or name another path")
        try:
            connect(self._path, timeout=0).close()
        except ConnectionRefusedError:  # nobody listens any more
            self._path.unlink()
        except BlockingIOError:  # its backlog is full: it lives
            raise OSError(errno.EADDRINUSE, "") from None
        else:
            raise OSError(errno.EADDRINUSE, "")

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(_UMASK)
        try:
            sock.bind(str(self._path))
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
        finally:
            os.umask(before)
        return sock

    def _refusal(self, error: OSError) -> Refusal:
        if error.errno == errno.EADDRINUSE:
            return Refusal(f"{self._where}: address in use: another daemon answers there", exit_code=os.EX_UNAVAILABLE)
        if error.errno in (errno.EACCES, errno.EPERM):
            line = f"{self._where}: no permission: name a path in a directory that echod may write (RuntimeDirectory=)"
            return Refusal(line, exit_code=os.EX_NOPERM)
        return Refusal(f"{self._where}: can't listen: {error.strerror or error}")

    def close(self) -> None:
        """Remove the path, unless somebody else has put another socket there."""
        try:
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        except OSError:
            pass  # it is gone, or not ours any more
