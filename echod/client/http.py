"""Asks the running daemon on its admin socket.

Knows nothing of what people want to know. Whatever goes wrong is a `Refusal`: that no daemon answers is no error of ours.
"""

from __future__ import annotations

import errno
import http.client
import os
from typing import TYPE_CHECKING, Any

import orjson

from echod import unix
from echod.errors import Refusal

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from pathlib import Path

PATIENCE = 10.0
"""Seconds for an answer."""


class _Connection(http.client.HTTPConnection):
    """HTTP on a socket that is connected already."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__("echod")
        self.sock = sock


class Client:
    """Asks the first daemon that answers at one of these paths.

    If none does, `trouble` is raised, if there is some: what kept us from knowing the path.
    """

    def __init__(self, paths: Sequence[Path], trouble: Refusal | None = None) -> None:
        self._paths = paths
        self._trouble = trouble
        self.where = ""
        """Who was asked last."""

    def ask(self, method: str, target: str, *, patience: float = PATIENCE) -> tuple[int, Any]:
        """Return the status and the JSON of the answer. Raises `Refusal` with exit code 69 or 77."""
        self.where, sock = self._connect(patience)
        connection = _Connection(sock)
        try:
            connection.request(method, target)
            response = connection.getresponse()
            return response.status, orjson.loads(response.read())
        except TimeoutError:
            raise _no_answer(f"{self.where}: no answer within {patience:.0f} s") from None
        # OverflowError, MemoryError: it announces more than there can be.
        except (OSError, http.client.HTTPException, ValueError, OverflowError, MemoryError):
            raise _no_answer(f"{self.where}: what is there gives no answer, or is no echod") from None
        finally:
            connection.close()

    def _connect(self, patience: float) -> tuple[str, socket.socket]:
        forbidden = ""
        for path in self._paths:
            try:
                return unix.url(path), unix.connect(path, patience)
            except PermissionError:
                forbidden = forbidden or unix.url(path)
            except TimeoutError:
                raise _no_answer(f"{unix.url(path)}: no answer within {patience:.0f} s") from None
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED):
                    raise _no_answer(f"{unix.url(path)}: {error.strerror or error}") from None
        if self._trouble:
            raise self._trouble
        if forbidden:
            line = f"echod: {forbidden}: no permission: be root, or the daemon's user, or of its group"
            raise Refusal(line, exit_code=os.EX_NOPERM)
        if not self._paths:
            raise _no_answer('admin.socket is "off": there is nobody to ask')
        raise _no_answer(f"no daemon answers at {' or '.join(map(unix.url, self._paths))}")


def _no_answer(line: str) -> Refusal:
    return Refusal(f"echod: {line}", exit_code=os.EX_UNAVAILABLE)
