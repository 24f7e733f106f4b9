"""The Unix kind of listener: a stream socket at a path or with an abstract name ("@name"), for clients on this machine.

The mode of the file decides which users may connect; an abstract name has no file, and lets in everybody. A client is known by
its process and its user, which it can't forge (SO_PEERCRED).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echod.errors import Refusal
from echod.server import kernel
from echod.server.acceptor import Acceptor
from echod.server.endpoint import Endpoint, Listener, UnixPeer
from echod.server.tcp import Plain
from echod.unix import UnixSocket

if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence

    from echod.config.settings import Settings
    from echod.server.acceptor import Parts
    from echod.server.worker import Worker

KIND = "unix"

_PRIVATE = 0o600
"""Of a file from bind(2) to the first `tune`: there is no moment at which a user can connect who may not."""


def endpoints(settings: Settings) -> list[Endpoint]:
    """Return what the settings want of this kind."""
    return [] if settings.listen.unix == "off" else [Endpoint(KIND, path=settings.listen.unix)]


def bind(
    endpoints: Sequence[Endpoint],
    *,
    backlog: int,
    reuse_port: bool,  # noqa: ARG001 - the kernel has none for Unix sockets
    receive_buffer: int | None,  # noqa: ARG001 - the buffer of the sender counts (unix(7))
    free_bind: bool,  # noqa: ARG001 - a path or a name can always be bound
    beside: Sequence[Listener],  # noqa: ARG001 - two paths or names never overlap
) -> list[Listener]:
    """Listen on every endpoint; there is one at the most. Raises `Refusal` with exit code 69, 77 or 78."""
    return [_bind(endpoint, backlog) for endpoint in endpoints]


def _bind(endpoint: Endpoint, backlog: int) -> Listener:
    if endpoint.path.startswith("@"):
        return Listener(endpoint, _abstract(endpoint, backlog), str(endpoint), backlog)
    # A reload must not wait for the lock of the directory, so it is prompt.
    file = UnixSocket(Path(endpoint.path), "listen.unix", prompt=True, mode=_PRIVATE, backlog=backlog)
    return Listener(endpoint, file.sock, str(endpoint), backlog, file=file)


def _abstract(endpoint: Endpoint, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(b"\0" + os.fsencode(endpoint.path[1:]))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        where = f"echod: listen.unix: {endpoint}"
        if error.errno == errno.EADDRINUSE:
            line = f"{where}: address in use: another process listens there"
            raise Refusal(line, exit_code=os.EX_UNAVAILABLE) from None
        raise Refusal(f"{where}: can't listen: {error.strerror}") from None
    return sock


def adopt(sock: socket.socket) -> Listener | None:
    """Take a socket that was handed over, or return `None` if it is of another kind. Raises `ValueError` if it is unfit.

    Its file belongs to the service manager.
    """
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        return None
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError("does not listen: the socket unit needs Accept=no")
    sock.setblocking(False)  # noqa: FBT003 - it has no other form
    endpoint = Endpoint(KIND, path=os.fsdecode(sock.getsockname()).replace("\0", "@", 1))
    return Listener(endpoint, sock, str(endpoint), None, inherited=True)


def tune(listener: Listener, settings: Settings) -> None:
    """Apply the settings that may change while it listens."""
    if listener.file:
        listener.file.set_mode(settings.listen.unix_mode)


def acceptor(parts: Parts, listener: Listener, *, waits: bool) -> Acceptor:
    """Return what accepts on this listener."""
    plain = Plain(parts).open

    def opening(worker: Worker, sock: _socket.socket) -> None:
        # An urgent byte stays in the stream; a Unix socket does not inherit the option from its listener.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        plain(worker, sock)

    return Acceptor(parts, listener, peer=_peer, opening=opening, waits=waits)


def _peer(sock: _socket.socket, _: Any) -> UnixPeer:  # noqa: ANN401 - the address: most clients have none
    return UnixPeer(*(kernel.peer_credentials(sock) or (None, None)))
