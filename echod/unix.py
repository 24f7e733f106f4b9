"""Unix stream sockets at a path: listening, and connecting.

The mode of the socket's file decides who may connect: its owner and its group (unix(7)).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import socket
import stat
import time
from typing import TYPE_CHECKING

from echod.errors import Refusal
from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKLOG = 128
MODE = 0o660
_PAUSE = 0.01
"""Seconds between two attempts to connect or to lock."""
_ATTEMPTS = 100
"""To lock a directory. Another daemon holds the lock for microseconds."""


def url(path: Path) -> str:
    """Return the path as logs and messages show it."""
    return printable(f"unix:{path}")


def connect(path: Path, timeout: float) -> socket.socket:
    """Return a socket that is connected to this path and has this timeout (seconds).

    Waits as long for room in a full backlog. Raises `OSError`; `TimeoutError` if there was no room.
    """
    deadline = time.monotonic() + timeout
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(0)  # a blocking connect(2) has no timeout, and Python takes an interrupted one for a success
        while True:
            try:
                sock.connect(str(path))
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError from None
            time.sleep(_PAUSE)
        sock.settimeout(timeout)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _one_at_a_time(directory: Path, attempts: int) -> Iterator[None]:
    """Lock the directory while a socket is made: of two daemons that find a stale one, the second could remove the new one.

    Anyone who may read the directory can lock it, so the wait for the lock is short, and then it is ignored. So is a file
    system without locks.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(attempts):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_PAUSE)
            except OSError:
                break
            else:
                break
        yield
    finally:
        os.close(fd)


def _identity(path: Path) -> tuple[int, int]:
    """Return what no other file has as long as a process has this one, also if it was removed."""
    status = path.lstat()
    return status.st_dev, status.st_ino


class UnixSocket:
    """A socket that listens at a path. `setting` is the name that messages give.

    A stale socket of a dead process is replaced; a live one, or a file that is not a socket, is left alone. The file has its
    `mode` from the moment at which it is there. Raises `Refusal` with exit code 69, 77 or 78. May take a second to get hold
    of the directory, unless it has to be `prompt`.
    """

    def __init__(
        self,
        path: Path,
        setting: str,
        *,
        make_directory: bool = False,
        prompt: bool = False,
        mode: int = MODE,
        backlog: int = BACKLOG,
    ) -> None:
        self._path = path
        self._mode = mode
        self._backlog = backlog
        self._make_again = functools.partial(UnixSocket, path, setting, make_directory=make_directory, prompt=True)
        self.url = url(path)
        self._where = f"echod: {setting}: {self.url}"
        try:
            if make_directory:
                path.parent.mkdir(mode=0o700, exist_ok=True)
            with _one_at_a_time(path.parent, 1 if prompt else _ATTEMPTS):
                self._make_room()
                self.sock = self._bind()
            self._identity = _identity(path)
        except OSError as error:
            raise self._refusal(error) from None

    def _make_room(self) -> None:
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise Refusal(f"{self._where}: exists and is not a socket: remove it, or set another path")
        try:
            connect(self._path, timeout=0).close()
        except ConnectionRefusedError:  # stale
            self._path.unlink()
        except TimeoutError:  # the backlog is full: somebody listens
            raise OSError(errno.EADDRINUSE, "") from None
        else:
            raise OSError(errno.EADDRINUSE, "")

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o777 & ~self._mode)
        try:
            sock.bind(str(self._path))
            sock.listen(self._backlog)
        except BaseException:
            sock.close()
            raise
        finally:
            os.umask(before)
        return sock

    def _refusal(self, error: OSError) -> Refusal:
        if error.errno in (errno.EADDRINUSE, errno.EPROTOTYPE):  # the latter: on a socket of another type
            return Refusal(f"{self._where}: address in use: another process listens there", exit_code=os.EX_UNAVAILABLE)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            directory = "a directory that echod may write to (RuntimeDirectory=, ReadWritePaths=)"
            line = f"{self._where}: no permission: set a path in {directory}"
            return Refusal(line, exit_code=os.EX_NOPERM)
        if error.errno == errno.ENOENT:
            return Refusal(f"{self._where}: can't listen: its directory does not exist")
        return Refusal(f"{self._where}: can't listen: {error.strerror or error}")

    @property
    def is_there(self) -> bool:
        """Whether this socket is at the path, by which clients connect: not something else, or nothing."""
        try:
            return _identity(self._path) == self._identity
        except OSError:
            return False

    def again(self) -> UnixSocket:
        """Return a new socket at the same path, for when this one is not there any more. Raises `Refusal`."""
        return self._make_again()

    def set_mode(self, mode: int) -> None:
        """Let others connect by this mode of the file."""
        if self.is_there:
            with contextlib.suppress(OSError):  # the file system may have none
                self._path.chmod(mode)

    def close(self) -> None:
        """Remove the path, unless another process has put its own socket there."""
        if self.is_there:
            with contextlib.suppress(OSError):  # the directory may not be ours any more
                self._path.unlink()
