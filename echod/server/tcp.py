"""From the addresses of `[listen]`, or from what systemd hands over, to listening sockets.

Knows nothing of accepting. "*" is one dual-stack socket, or IPv4 alone where the machine has no IPv6.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from echod.errors import Refusal
from echod.server import kernel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
_ANY_PORT_ATTEMPTS = 8
_NO_TCP = "no TCP socket: the socket unit needs ListenStream= with a port"
_FIRST_UNPRIVILEGED = 1024  # ip(7), ip_unprivileged_port_start


class Listener(NamedTuple):
    """A bound and listening socket, what it was asked for, and its name in logs ("tcp://[::]:7007")."""

    sock: socket.socket
    host: str
    port: int
    backlog: int
    url: str
    inherited: bool = False
    """Whether the service manager has it too: who waits there is served by the next process, when this one has ended."""


def adopt(fd: int, name: str) -> Listener:
    """Take a socket that was handed over under this name. Raises `Refusal` if it is no listening TCP socket.

    Its options and its flags are the manager's too, who does not mind: it only waits for connections on it.
    """
    where = f"echod: {name} (descriptor {fd})"
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise Refusal(f"{where}: {_NO_TCP}")
    sock = socket.socket(fileno=fd)
    problem = _why_not(sock)
    if problem:
        sock.close()
        raise Refusal(f"{where}: {problem}")
    sock.setblocking(False)  # noqa: FBT003 - it has no other form
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # as in `_socket`
    address, port = sock.getsockname()[:2]
    return Listener(sock, address, port, kernel.backlog(sock), url(address, port), inherited=True)


def _why_not(sock: socket.socket) -> str:
    """Return why nobody can be accepted on it, or an empty text."""
    if (sock.type, sock.proto) != (socket.SOCK_STREAM, socket.IPPROTO_TCP):
        return _NO_TCP
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen: the socket unit needs Accept=no"
    return ""


def bind(
    hosts: Sequence[str], port: int, *, backlog: int, reuse_port: bool, beside: Sequence[Listener] = ()
) -> list[Listener]:
    """Listen on every host, or on none: if one can't be bound, the others are closed again.

    With port 0 the kernel chooses one port, the same for all. An address may overlap with those of the listeners `beside`,
    which are to be closed afterwards. Raises `Refusal` with exit code 69 or 77.
    """
    if not hosts:
        return []
    beside = [listener for listener in beside if listener.port == port]
    with _shared(beside, reuse_port=reuse_port):
        listeners = _bind_all(hosts, port, backlog=backlog, reuse_port=reuse_port or bool(beside))
    for listener in listeners:
        _set_reuse_port(listener.sock, value=reuse_port)
    return listeners


@contextlib.contextmanager
def _shared(listeners: Sequence[Listener], *, reuse_port: bool) -> Iterator[None]:
    """Let other sockets of this user bind what these have: SO_REUSEPORT counts when the other one binds (socket(7)).

    Linux remembers it of the port, so that a later one with SO_REUSEPORT may still bind there, and none without it.
    """
    for listener in listeners:
        _set_reuse_port(listener.sock, value=True)
    try:
        yield
    finally:
        for listener in listeners:
            _set_reuse_port(listener.sock, value=reuse_port)


def _set_reuse_port(sock: socket.socket, *, value: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, value)


def _bind_all(hosts: Sequence[str], port: int, *, backlog: int, reuse_port: bool) -> list[Listener]:
    attempts = _ANY_PORT_ATTEMPTS if port == 0 and len(hosts) > 1 else 1
    while True:
        attempts -= 1
        with contextlib.ExitStack() as undo:
            try:
                listeners: list[Listener] = []
                for host in hosts:
                    chosen = listeners[0].port if listeners else port
                    listener = _bind(host, chosen, backlog=backlog, reuse_port=reuse_port)
                    undo.callback(listener.sock.close)
                    listeners.append(listener)
            except Refusal:
                if attempts:  # the port that the first host got may be taken on another
                    continue
                raise
            undo.pop_all()
            return listeners


def _bind(host: str, port: int, *, backlog: int, reuse_port: bool) -> Listener:
    try:
        sock = _open(host, port, reuse_port=reuse_port)
    except OSError as error:
        raise _refusal(error, host, port) from None
    try:
        sock.listen(backlog)  # with SO_REUSEADDR alone, two binds can succeed, and then the second listen fails
    except OSError as error:
        sock.close()
        raise _refusal(error, host, port) from None
    address, bound = sock.getsockname()[:2]
    return Listener(sock, host, bound, backlog, url(address, bound))


def _open(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    if host != "*":
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
        )[0]
        return _socket(family, address, v6only=True, reuse_port=reuse_port)
    try:
        return _socket(socket.AF_INET6, ("::", port), v6only=False, reuse_port=reuse_port)
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
    return _socket(socket.AF_INET, ("0.0.0.0", port), v6only=False, reuse_port=reuse_port)  # noqa: S104 - "*" was asked for


def _socket(
    family: socket.AddressFamily | int, address: tuple[Any, ...], *, v6only: bool, reuse_port: bool
) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it: a peer that vanished is found even with the idle timeout off.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        _set_reuse_port(sock, value=reuse_port)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _refusal(error: OSError, host: str, port: int) -> Refusal:
    where = url(host, port)
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = f"port {port} needs CAP_NET_BIND_SERVICE (AmbientCapabilities= in the unit), or take one from 1024 up"
        why = hint if port < _FIRST_UNPRIVILEGED else "a security policy of this machine forbids it"
        return Refusal(f"echod: {where}: no permission: {why}", exit_code=os.EX_NOPERM)
    if error.errno == errno.EADDRINUSE:
        return Refusal(f"echod: {where}: address in use", exit_code=os.EX_UNAVAILABLE)
    return Refusal(f"echod: {where}: can't listen: {error.strerror}", exit_code=os.EX_UNAVAILABLE)


def url(host: str, port: int) -> str:
    """Return "tcp://127.0.0.1:7007", with an IPv6 address in brackets (RFC 3986, 3.2.2)."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
