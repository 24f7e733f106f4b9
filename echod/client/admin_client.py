"""Requests to one daemon: HTTP on its admin socket.

An unreachable daemon, an error that it reports, and an answer that echod would not give end in a `Refusal`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, Protocol

import h11
import orjson

from echod import unix
from echod.errors import Refusal

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TIMEOUT = 10.0
"""Seconds to wait for an answer."""


class AdminClient:
    """Sends requests to the first of these paths at which a daemon accepts.

    `trouble` explains why the right path may be missing from the list; it is raised if no path has a daemon. `patience` is
    how many seconds an answer may take.
    """

    def __init__(self, paths: Sequence[Path], trouble: Refusal | None = None, patience: float = TIMEOUT) -> None:
        self._paths = paths
        self._trouble = trouble
        self._patience = patience
        self.url = ""
        """The socket of the last request."""

    def request(self, method: str, target: str, *, timeout: float | None = None) -> tuple[int, Any]:
        """Return the status code and the decoded JSON. Raises `Refusal` with exit code 69 or 77."""
        timeout = self._patience if timeout is None else timeout
        self.url, sock = self._connect(timeout)
        with sock:
            try:
                return _exchange(sock, method, target)
            except TimeoutError:
                raise unavailable(f"{self.url}: no answer within {timeout:.0f} s") from None
            except (OSError, h11.RemoteProtocolError, ValueError):
                raise unavailable(f"{self.url}: no valid answer; is it the admin socket of echod?") from None

    def _connect(self, timeout: float) -> tuple[str, socket.socket]:
        forbidden = ""
        for path in self._paths:
            try:
                return unix.url(path), unix.connect(path, timeout)
            except PermissionError:
                forbidden = forbidden or unix.url(path)
            except TimeoutError:
                raise unavailable(f"{unix.url(path)}: no answer within {timeout:.0f} s") from None
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED):
                    raise unavailable(f"{unix.url(path)}: {error.strerror or error}") from None
        if self._trouble:
            raise self._trouble
        if forbidden:
            line = f"echod: {forbidden}: no permission: be root, the daemon's user, or a member of its group"
            raise Refusal(line, exit_code=os.EX_NOPERM)
        if not self._paths:
            raise unavailable('admin.socket is "off": no daemon can be reached')
        raise unavailable(f"no daemon answers at {' or '.join(map(unix.url, self._paths))}")


def _exchange(sock: socket.socket, method: str, target: str) -> tuple[int, Any]:
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method=method, target=target, headers=[("host", "echod"), ("connection", "close")])
    sock.sendall((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    code, body = 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(sock.recv(65536))
        elif isinstance(event, h11.Response):
            code = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return code, orjson.loads(body)


def unavailable(line: str) -> Refusal:
    """Return the refusal of a command that no daemon answers."""
    return Refusal(f"echod: {line}", exit_code=os.EX_UNAVAILABLE)


class _Asked(Protocol):
    @property
    def url(self) -> str: ...


@contextlib.contextmanager
def as_expected(asked: _Asked) -> Iterator[None]:
    """Refuse an answer of another form: any program that speaks HTTP may listen there, or another version of echod."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        raise unavailable(f"{asked.url}: unexpected answer; is it another version of echod?") from None


def content(answer: tuple[int, Any]) -> Any:  # noqa: ANN401 - as the daemon answers
    """Return the content of a successful answer; raise `Refusal` with what the daemon says otherwise."""
    code, body = answer
    match code:
        case 200:
            return body
        case 422:
            raise Refusal(*map(str, body["errors"]), exit_code=int(body["exit_code"]))
        case 409 | 503:
            raise unavailable(body["error"])
    raise Refusal(f"echod: the daemon answers {code}: {orjson.dumps(body).decode()}", exit_code=os.EX_SOFTWARE)
