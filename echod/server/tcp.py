"""The TCP kind of listener: binds or adopts a listening socket, and opens what is accepted on it as a plain connection.

"*" is one dual-stack socket, or IPv4 alone where the machine has no IPv6. `admin.http` and UDP bind their ports here too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from echod.errors import Refusal
from echod.server import kernel
from echod.server.acceptor import Acceptor
from echod.server.admission import close
from echod.server.endpoint import AddressMissing, Endpoint, Listener, Peer

if TYPE_CHECKING:
    import _socket
    import asyncio
    from collections.abc import Coroutine, Iterator, Sequence

    from echod.config.settings import Settings
    from echod.server.acceptor import Parts
    from echod.server.pool import Pool
    from echod.server.worker import Worker

KIND = "tcp"

_STREAMS = (socket.IPPROTO_TCP, socket.IPPROTO_MPTCP)
"""MPTCP (RFC 8684) is a stream on the same addresses and ports; a client without it gets TCP from the same listener."""

_FREE_BIND: dict[int, tuple[int, int]] = {
    socket.AF_INET: (socket.IPPROTO_IP, 15),  # IP_FREEBIND of <linux/in.h>: Python has no names for these two
    socket.AF_INET6: (socket.IPPROTO_IPV6, 78),  # IPV6_FREEBIND of <linux/in6.h>
}

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
_MISSING = (errno.EADDRNOTAVAIL, errno.ENODEV, socket.EAI_NONAME)
"""The machine does not have the address, or its interface, which getaddrinfo(3) has looked up."""
_ANY_PORT_ATTEMPTS = 8
_FIRST_UNPRIVILEGED = 1024  # ip(7), ip_unprivileged_port_start


def endpoints(settings: Settings) -> list[Endpoint]:
    """Return what the settings want of this kind."""
    return [Endpoint(KIND, host, settings.listen.port) for host in settings.listen.host]


def acceptor(parts: Parts, listener: Listener, *, waits: bool) -> Acceptor:
    """Return what accepts on this listener."""
    opening = Plain(parts).open

    def opening_of_inherited(worker: Worker, sock: _socket.socket) -> None:
        _set_options(sock)  # it may have waited in the backlog since before `adopt`, as the first one has
        opening(worker, sock)

    chosen = opening_of_inherited if listener.inherited else opening
    return Acceptor(parts, listener, peer=peer, opening=chosen, waits=waits)


def peer(_: _socket.socket, address: tuple[Any, ...]) -> Peer:
    """Return the peer of a socket that was accepted from this address."""
    return Peer(*address)


class Plain:
    """Opens an accepted socket as a connection without any layer between it and its worker."""

    def __init__(self, parts: Parts) -> None:
        self._loop = parts.loop
        self._pool = parts.pool

    def open(self, worker: Worker, sock: _socket.socket, layer: asyncio.Protocol | None = None) -> None:
        """Give the socket to uvloop, with the worker, or a layer, as its protocol. If that fails, the worker is free again.

        A task per connection would cost more than the rest of an accept. The coroutine needs none: it waits once, for
        `connection_made`, which uvloop puts into the loop's queue before it waits.
        """
        try:
            # A default instead of a closure: a closure's cell is made before the `try`, and without memory that fails.
            opening = self._loop.connect_accepted_socket(lambda protocol=layer or worker: protocol, sock)  # type: ignore[misc, arg-type]
            opening.send(None)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the worker and the descriptor
            discard(self._pool, worker, sock, error)
            return
        self._loop.call_soon(self._opened, opening, worker)

    def _opened(self, opening: Coroutine[Any, Any, Any], worker: Worker) -> None:
        """Let the coroutine run to its end, which it has reached by now."""
        try:
            opening.send(None)
        except StopIteration:
            pass
        except Exception as error:  # noqa: BLE001 - likewise; the coroutine has closed the transport
            self._pool.release(worker, error)


def discard(pool: Pool, worker: Worker, sock: _socket.socket, error: Exception) -> None:
    """Give up a connection that can't be opened."""
    try:
        pool.release(worker, error)
    finally:
        close(sock)


def adopt(sock: socket.socket) -> Listener | None:
    """Take a socket that was handed over, or return `None` if it is of another kind. Raises `ValueError` if it is unfit.

    Its options and flags are shared with the service manager, which only waits for connections on it.
    """
    if sock.type != socket.SOCK_STREAM or sock.proto not in _STREAMS:
        return None
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError("does not listen: the socket unit needs Accept=no")
    sock.setblocking(False)  # noqa: FBT003 - it has no other form
    _set_options(sock)
    kernel.save_syns(sock)
    endpoint = Endpoint(KIND, *sock.getsockname()[:2])
    return Listener(endpoint, sock, str(endpoint), kernel.backlog(sock), inherited=True)


def tune(listener: Listener, settings: Settings) -> None:
    """Apply the settings that may change while it listens, to the connections that it accepts from now on."""
    kernel.set_receive_buffer(listener.sock, settings.listen.receive_buffer)


def bind(
    endpoints: Sequence[Endpoint],
    *,
    backlog: int,
    reuse_port: bool,
    receive_buffer: int | None = None,
    free_bind: bool = False,
    beside: Sequence[Listener] = (),
    datagrams: bool = False,
) -> list[Listener]:
    """Listen on every endpoint, or on none: if one can't be bound, the others are closed again.

    All have the same port; with port 0 the kernel chooses one for all. An address may overlap with those of the listeners
    `beside`, which are to be closed afterwards. With `datagrams`, the sockets are of UDP. Raises `AddressMissing`, or another `Refusal` with exit code 69 or 77.
    """
    beside = [each for each in beside if any(each.endpoint.port == endpoint.port for endpoint in endpoints)]
    with _shared(beside, reuse_port=reuse_port):
        options = _Options(backlog, reuse_port or bool(beside), receive_buffer, free_bind, datagrams)
        listeners = _bind_all(endpoints, options)
    if beside:
        for listener in listeners:
            _set_reuse_port(listener.sock, value=reuse_port)
    return listeners


@contextlib.contextmanager
def _shared(listeners: Sequence[Listener], *, reuse_port: bool) -> Iterator[None]:
    """Let other sockets of this user bind what these have: SO_REUSEPORT counts when the other one binds (socket(7)).

    Linux remembers the option for the port: later sockets can bind to it only with SO_REUSEPORT.
    """
    for listener in listeners:
        _set_reuse_port(listener.sock, value=True)
    try:
        yield
    finally:
        for listener in listeners:
            _set_reuse_port(listener.sock, value=reuse_port)


def _set_reuse_port(sock: socket.socket, *, value: bool) -> None:
    with contextlib.suppress(OSError):  # where that is refused, no port can be shared, and the bind says so
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, value)


class _Options(NamedTuple):
    backlog: int
    reuse_port: bool
    receive_buffer: int | None
    free_bind: bool
    datagrams: bool


def _bind_all(endpoints: Sequence[Endpoint], options: _Options) -> list[Listener]:
    attempts = _ANY_PORT_ATTEMPTS if len(endpoints) > 1 and endpoints[0].port == 0 else 1
    while True:
        attempts -= 1
        with contextlib.ExitStack() as undo:
            try:
                listeners: list[Listener] = []
                for endpoint in endpoints:
                    port = listeners[0].endpoint.port if listeners else endpoint.port
                    listener = _bind(endpoint._replace(port=port), options)
                    undo.callback(listener.sock.close)
                    listeners.append(listener)
            except Refusal:
                if attempts:  # the port that the first host got may be taken on another
                    continue
                raise
            undo.pop_all()
            return listeners


def _bind(endpoint: Endpoint, options: _Options) -> Listener:
    try:
        sock = _open(endpoint, options)
    except OSError as error:
        raise _refusal(error, endpoint) from None
    try:
        if not options.datagrams:
            kernel.set_receive_buffer(sock, options.receive_buffer)
            kernel.save_syns(sock)
            sock.listen(
                options.backlog
            )  # with SO_REUSEADDR alone, two binds can succeed, and then the second listen fails
    except OSError as error:
        sock.close()
        raise _refusal(error, endpoint) from None
    address, port = sock.getsockname()[:2]
    bound = endpoint._replace(port=port)
    backlog = None if options.datagrams else options.backlog
    url = str(bound if "%" in endpoint.host else bound._replace(host=address))  # an address does not tell its interface
    return Listener(bound, sock, url, backlog)


def _open(endpoint: Endpoint, options: _Options) -> socket.socket:
    host, port = endpoint.host, endpoint.port
    if host != "*":
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
        )[0]
        return _bound(family, address, options, v6only=True)
    try:
        return _bound(socket.AF_INET6, ("::", port), options, v6only=False)
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
    return _bound(socket.AF_INET, ("0.0.0.0", port), options, v6only=False)  # noqa: S104 - "*" was asked for


def _bound(
    family: socket.AddressFamily | int, address: tuple[Any, ...], options: _Options, *, v6only: bool
) -> socket.socket:
    kind, protocol = (
        (socket.SOCK_DGRAM, socket.IPPROTO_UDP) if options.datagrams else (socket.SOCK_STREAM, socket.IPPROTO_TCP)
    )
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        if not options.datagrams:  # with SO_REUSEADDR, another process could take over a port of UDP
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _set_options(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        if options.reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if options.free_bind:
            with contextlib.suppress(OSError):  # then a missing address is tried again and again
                sock.setsockopt(*_FREE_BIND[family], 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_options(sock: _socket.socket) -> None:
    """Set the options that an accepted socket inherits from its listener. A system that refuses one is served without it."""
    for option in (
        socket.SO_KEEPALIVE,  # a peer that vanished is found even with the idle timeout off
        socket.SO_OOBINLINE,  # an urgent byte stays in the stream (tcp(7)); otherwise it would be missing from the echo
    ):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, 1)


def _refusal(error: OSError, endpoint: Endpoint) -> Refusal:
    if error.errno in (errno.EACCES, errno.EPERM):
        port = endpoint.port
        hint = f"port {port} needs CAP_NET_BIND_SERVICE (AmbientCapabilities= in the unit), or take one from 1024 up"
        why = hint if port < _FIRST_UNPRIVILEGED else "a security policy of this machine forbids it"
        return Refusal(f"echod: {endpoint}: no permission: {why}", exit_code=os.EX_NOPERM)
    if error.errno == errno.EAFNOSUPPORT:  # no retry would help
        why = "no such sockets here: the kernel has none, or RestrictAddressFamilies= in the unit forbids them"
        return Refusal(f"echod: {endpoint}: can't listen: {why}")
    if error.errno in _MISSING:
        return AddressMissing(endpoint)
    if error.errno == errno.EADDRINUSE:
        setting = {KIND: "listen.port, -p", "http": "admin.http"}.get(endpoint.kind, f"{endpoint.kind}.port")
        return Refusal(
            f"echod: {endpoint}: address in use: choose another port ({setting})", exit_code=os.EX_UNAVAILABLE
        )
    return Refusal(f"echod: {endpoint}: can't listen: {error.strerror}", exit_code=os.EX_UNAVAILABLE)
