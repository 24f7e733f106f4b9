"""Connections from load balancers, between accept and admission: each must begin with a PROXY header, which names the client.

The header is read from the raw socket, before uvloop or TLS reads anything. A look at what has come (MSG_PEEK) shows where
the header ends, and then exactly that is read: what follows is the client's. What has come of an incomplete header is read too,
or the loop would find the socket readable again and again.

A connection that ends without a byte is the check of a balancer, a probe. So is one whose header names no client. If that one
sends data it is echoed, but it is nobody's: it has no line in the log above debug, and `[access]` does not count it. With UNKNOWN, the
data may be that of a client whom the balancer can't name. Then it is echoed only if `[access]` lets the balancer itself in. HAProxy's
checks of version 1 name the balancer itself, and send nothing else. So such a connection is a client once it sends a byte.

No connection has a worker before its header is there, or its first byte if it may be a probe. With `when_full = "wait"`, a worker is
kept free for each (`Admission.expected`): otherwise some would be accepted and then rejected.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections import Counter, deque
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from echod.server import proxy_header
from echod.server.admission import close
from echod.server.endpoint import NamedPeer

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from echod.log import Logger
    from echod.networks import Ranges
    from echod.server.access import Access
    from echod.server.admission import Admission, Opening
    from echod.server.endpoint import Peer
    from echod.server.pool import Pool

BATCH = 32
"""Connections whose header is read before the loop goes on with those that are open."""
REMEMBERED = 1024
"""Addresses of which it is remembered whether they are proxies."""
_LOOK = socket.MSG_PEEK | socket.MSG_DONTWAIT


class _Arrival:
    """A connection whose client is not known yet."""

    __slots__ = ("accepted", "client", "command", "data", "listener", "opening", "peer", "sock", "timer")

    def __init__(self, sock: _socket.socket, peer: Peer, listener: str, opening: Opening) -> None:
        self.sock = sock
        self.peer = peer
        self.listener = listener
        self.opening = opening
        self.accepted = time.monotonic()
        self.data = b""  # of its header
        self.command: str | None = None  # of its header, once that is there
        self.client: Peer | None = None  # what it is if a byte follows its header; `peer` if that names no client
        self.timer: asyncio.TimerHandle | None = None


class Proxies:
    """Reads the headers of connections from `networks`, and gives each connection to admission with its client.

    Once `set`, `admit` can take the place of `Admission.admit`. `headers` counts by version and command.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, log: Logger, pool: Pool, access: Access, admission: Admission
    ) -> None:
        self._loop = loop
        self._log = log
        self._pool = pool
        self._access = access
        self._admission = admission
        self._is_proxy: Callable[[str], bool]
        self._patience: float | None
        self._arrivals: dict[int, _Arrival] = {}  # by descriptor: those that `_poll` watches
        # One that the loop watches, for all: a reader of the loop for each costs three system calls more.
        self._poll: select.epoll | None = None
        self._ready: deque[tuple[_Arrival, Peer]] = deque()  # those that admission has no room for
        self.headers: Counter[tuple[str, str]] = Counter()
        self.probes = 0

    def set(self, networks: Ranges, patience: float | None) -> None:
        """Have a header from these networks within `patience` seconds. Connections that wait already are not affected."""
        self._is_proxy = lru_cache(REMEMBERED)(networks.__contains__)
        self._patience = patience

    @property
    def waiting(self) -> int:
        """The number of connections that are not admitted yet. There are at most as many as workers."""
        return len(self._arrivals) + len(self._ready)

    def admit(self, sock: _socket.socket, peer: Peer, listener: str, opening: Opening) -> None:
        """Admit a connection, after its header if it is a proxy's. If this raises, the socket is still the caller's."""
        if peer.address is None or not self._is_proxy(peer.address):
            self._admission.admit(sock, peer, listener, opening)
            return
        arrival = _Arrival(sock, peer, listener, opening)
        if self._read(arrival):
            return
        if self.waiting >= self._pool.size:
            self._reject(arrival, "too many connections wait for their header")
            return
        if self._poll is None:
            self._poll = select.epoll()
            self._loop.add_reader(self._poll, self._on_readable, self._poll)
        fd = sock.fileno()
        self._poll.register(fd, select.EPOLLIN)
        self._arrivals[fd] = arrival
        self._admission.expected += 1
        if self._patience is not None:
            try:
                arrival.timer = self._loop.call_later(self._patience, self._on_late, arrival)
            except BaseException:
                self._forget(arrival)
                raise

    async def finish(self, patience: float, at_once: asyncio.Future[None]) -> None:
        """Let those that wait go on for `patience` seconds, or until `at_once` is done, and then `close`."""
        if self.waiting:
            await asyncio.wait([at_once], timeout=patience)
        self.close()

    def close(self) -> None:
        """Close all connections that wait, without a line: nobody knows whose they are."""
        for arrival in list(self._arrivals.values()):
            self._forget(arrival)
            close(arrival.sock)
        if self._poll:
            self._loop.remove_reader(self._poll)
            self._poll.close()
            self._poll = None
        while self._ready:
            close(self._next_ready()[0].sock)

    # One connection

    def _on_readable(self, poll: select.epoll) -> None:
        for fd, _ in poll.poll(0, BATCH):
            self._try(self._arrivals[fd])

    def _try(self, arrival: _Arrival) -> bool:
        try:
            return self._read(arrival)
        except BaseException:  # such as no memory: the client must not wait for nothing
            self._forget(arrival)
            close(arrival.sock)
            raise

    def _on_late(self, arrival: _Arrival) -> None:
        if self._try(arrival):  # it has come in time, if this process has not run for a while
            return
        self._forget(arrival)
        if arrival.client is None:
            self._reject(arrival, "too late")
        elif arrival.client is arrival.peer:
            close(arrival.sock)
        else:
            self._pass_on(arrival, arrival.client)

    def _read(self, arrival: _Arrival) -> bool:
        """Read what has come, and pass the connection on or close it; say whether nothing more had to come for that."""
        try:
            client = self._client(arrival)
        except (BlockingIOError, InterruptedError):
            return False
        except ValueError as error:
            self._forget(arrival)
            self._reject(arrival, str(error))
            return True
        self._forget(arrival)
        if client is None:
            close(arrival.sock)
        elif arrival.command == "UNKNOWN" and self._access.denies(cast("str", client.address)):
            self._admission.reject(arrival.sock, client, arrival.listener, "denied")
        else:
            self._pass_on(arrival, client)
        return True

    def _client(self, arrival: _Arrival) -> Peer | None:
        """Read the header and return the client, or `None` if the connection was a probe and has ended.

        Raises `BlockingIOError` if more has to come, and `ValueError` if the header is wrong.
        """
        while True:
            seen = _receive(arrival.sock, proxy_header.LONGEST, _LOOK)
            if arrival.client:
                if not seen and arrival.client is not arrival.peer:
                    self._count_probe(arrival, "PROXY")
                return arrival.client if seen else None
            if not seen:
                if arrival.data:
                    raise ValueError("incomplete")
                self._count_probe(arrival, None)
                return None
            before = len(arrival.data)
            size = proxy_header.size(arrival.data + seen)
            wanted = len(seen) if size is None else min(len(seen), size - before)
            arrival.data += _receive(arrival.sock, wanted, socket.MSG_DONTWAIT)
            if len(arrival.data) != size:
                continue
            header = proxy_header.parse(arrival.data)
            self.headers[header.version, header.command] += 1
            arrival.command = header.command
            if header.client is None:
                self._count_probe(arrival, header.command)
                arrival.client = arrival.peer
                arrival.peer.source = ""
                continue
            client = NamedPeer(*header.client, arrival.peer)
            if (client.address, client.port) != (arrival.peer.address, arrival.peer.port):
                return client
            arrival.client = client

    def _count_probe(self, arrival: _Arrival, command: str | None) -> None:
        self.probes += 1
        self._log.debug("connection.probed", client=arrival.peer.fields(), listener=arrival.listener, command=command)

    def _forget(self, arrival: _Arrival) -> None:
        """Watch it no more: before its socket is closed, or anything else reads from it."""
        fd = arrival.sock.fileno()
        if self._poll and self._arrivals.pop(fd, None):
            self._poll.unregister(fd)
            if arrival.timer:
                arrival.timer.cancel()
            self._expect_one_less()

    def _expect_one_less(self) -> None:
        self._admission.expected -= 1
        if self._pool.when_free:  # the worker that was kept free for it may not be needed
            self._pool.when_free()

    def _reject(self, arrival: _Arrival, error: str) -> None:
        self._admission.reject(arrival.sock, arrival.peer, arrival.listener, "proxy_header", error)

    # To admission, which has room for a number of connections on hold

    def _pass_on(self, arrival: _Arrival, client: Peer) -> None:
        if not self._ready and self._admission.room > 0:
            self._admission.admit(arrival.sock, client, arrival.listener, arrival.opening, arrival.accepted)
            return
        if not self._ready:
            self._loop.call_soon(self._admit_ready)
        self._ready.append((arrival, client))
        self._admission.expected += 1

    def _admit_ready(self) -> None:
        try:
            while self._ready and self._admission.room > 0:
                arrival, client = self._next_ready()
                try:
                    self._admission.admit(arrival.sock, client, arrival.listener, arrival.opening, arrival.accepted)
                except BaseException:
                    close(arrival.sock)
                    raise
        finally:
            if self._ready:
                self._loop.call_soon(self._admit_ready)

    def _next_ready(self) -> tuple[_Arrival, Peer]:
        self._expect_one_less()
        return self._ready.popleft()


def _receive(sock: _socket.socket, size: int, flags: int) -> bytes:
    """Return what has come, or nothing at the end of the stream or after a reset. Raises `BlockingIOError`."""
    try:
        return sock.recv(size, flags)
    except (BlockingIOError, InterruptedError):
        raise
    except OSError:
        return b""
