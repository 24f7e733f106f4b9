"""Opens a connection without blocking: addresses raced as RFC 8305 has it, then the PROXY header, then TLS.

Its own epoll(7) descriptor watches all sockets of the race. That descriptor can itself be watched, so a loop with many
connections needs only one for each.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from echod.client.paths import Address, Route, proxy_header

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from echod.client.tls import Channel

ATTEMPT_DELAY = 0.25
"""Seconds until the next address is tried beside the ones before (RFC 8305, 5)."""
_RETRY = 0.01
"""Seconds until a Unix socket whose backlog is full is tried again: the kernel doesn't tell when there is room."""


class Opened(NamedTuple):
    """A connection that is ready for messages."""

    sock: socket.socket
    address: Address
    connect: float
    """Seconds from connect(2) to the established connection: for TCP, one round trip of the network."""
    tls: float | None = None
    """Seconds that the TLS handshake took."""
    secure: Channel | None = None
    """TLS over the socket."""

    @property
    def channel(self) -> socket.socket | Channel:
        """Where to write and read."""
        return self.secure or self.sock


class Opening:
    """A connection on its way. `step` goes on with it, when `fileno` is readable and each few milliseconds."""

    def __init__(self, route: Route, addresses: Sequence[Address]) -> None:
        self._route = route
        self._left = deque(addresses)
        self._epoll = select.epoll()
        self._attempts: dict[int, tuple[socket.socket, Address, float]] = {}
        self._next = 0.0
        self._error = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        self._opened: Opened | None = None
        self._channel: Channel | None = None
        self._handshake_began = 0.0

    @property
    def phase(self) -> str:
        """What it waits for."""
        return "TLS handshake" if self._opened else "connection"

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Give up."""
        self._epoll.close()
        for sock, _, _ in self._attempts.values():
            sock.close()
        if self._channel:
            self._channel.close()
        elif self._opened:
            self._opened.sock.close()

    def step(self) -> Opened | None:
        """Go on; return the connection once it is open. Raises `OSError` when no address is left. Then it is closed."""
        try:
            opened = self._go_on()
        except OSError:
            self.close()
            raise
        if opened:
            self._epoll.close()
        return opened

    def _go_on(self) -> Opened | None:
        if self._opened is None:
            self._opened = self._race()
            if self._opened is None:
                return None
            if self._route.proxy:
                self._opened.sock.send(proxy_header(self._route.proxy, self._opened.sock))
            if self._route.tls is None:
                return self._opened
            self._channel = self._begin_handshake(self._opened.sock, self._route.tls)
        assert self._channel  # noqa: S101 - for mypy
        return self._shake_hands(self._opened, self._channel)

    def _race(self) -> Opened | None:
        for fd, _ in self._epoll.poll(0):
            sock, address, began = self._attempts.pop(fd)
            self._epoll.unregister(fd)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not number:
                return self._won(sock, address, began)
            sock.close()
            self._failed(OSError(number, os.strerror(number)))
        while self._left and time.monotonic() >= self._next:
            if opened := self._attempt(self._left.popleft()):
                return opened
        if not self._attempts and not self._left:
            raise self._error
        return None

    def _attempt(self, address: Address) -> Opened | None:
        began = time.monotonic()
        self._next = began + ATTEMPT_DELAY
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:  # such as a kernel without IPv6
            self._failed(error)
            return None
        try:
            sock.connect(address.sockaddr)
        except BlockingIOError as error:
            if error.errno == errno.EAGAIN:  # a Unix socket
                sock.close()
                self._left.appendleft(address)
                self._next = began + _RETRY
                return None
            self._epoll.register(sock, select.EPOLLOUT)
            self._attempts[sock.fileno()] = (sock, address, began)
            return None
        except OSError as error:
            sock.close()
            self._failed(error)
            return None
        return self._won(sock, address, began)

    def _failed(self, error: OSError) -> None:
        self._error = error
        self._next = 0.0  # RFC 8305, 5: the next one need not wait

    def _won(self, sock: socket.socket, address: Address, began: float) -> Opened:
        connect = time.monotonic() - began
        for other, _, _ in self._attempts.values():
            other.close()
        self._attempts.clear()
        if address.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Opened(sock, address, connect)

    def _begin_handshake(self, sock: socket.socket, tls: ssl.SSLContext) -> Channel:
        from echod.client.tls import Channel  # noqa: PLC0415 - takes as long as all else at the start

        self._handshake_began = time.monotonic()
        channel = Channel(sock, tls, self._route.target.host)
        self._epoll.register(channel.fileno(), select.EPOLLOUT)
        return channel

    def _shake_hands(self, opened: Opened, channel: Channel) -> Opened | None:
        try:
            channel.handshake()
        except BlockingIOError:
            self._epoll.modify(channel.fileno(), channel.wants)
            return None
        tls = time.monotonic() - self._handshake_began
        return opened._replace(sock=channel.sock, secure=channel, tls=tls)
