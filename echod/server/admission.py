"""Admission: which accepted connections get a worker, and what becomes of those that can't have one yet.

A client may connect again before the end of its last connection has reached its worker: both arrive in one turn of the loop.
So a connection that would be refused for want of a worker, or by `per_source`, is held for a few turns. By then each end that
had arrived before it has given its worker back. Held connections are judged in the order in which they came, and a
connection that comes meanwhile waits behind them. One that gets a worker may have ended already, too: so those behind it are
held for some more turns.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
from collections import deque
from typing import TYPE_CHECKING

from echod.server import kernel

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from echod.server.access import Access
    from echod.server.endpoint import Peer
    from echod.server.pool import Pool
    from echod.server.rejections import Rejections
    from echod.server.worker import Worker

    Opening = Callable[[Worker, _socket.socket], None]
    Entrance = Callable[[_socket.socket, Peer, str, Opening], None]

TURNS = 6
"""Turns of the loop for which a connection is held, counted from the last one ahead of it that got a worker.

That one is opened in the next turn, its data is read in the poll of that turn and its FIN in the poll after that, and
`connection_lost` comes in the turn after that: four, and two are to spare.
"""
MOST = 64
"""Connections held at one time, over all listeners. `limits.RESERVE` has their descriptors."""
_PASSING = frozenset({"per_source", "pool_full"})
"""Reasons that the end of another connection may remove."""


class _Held:
    """A connection on hold."""

    __slots__ = ("accepted", "client", "listener", "opening", "sock", "turns")

    def __init__(
        self, sock: _socket.socket, client: Peer, listener: str, opening: Opening, *, turns: int, accepted: float | None
    ) -> None:
        self.sock = sock
        self.client = client
        self.listener = listener
        self.opening = opening
        self.turns = turns
        self.accepted = accepted


class Admission:
    """Gives accepted connections a worker, or refuses them. Each worker that it gives is handed to `watch`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pool: Pool,
        access: Access,
        rejections: Rejections,
        watch: Callable[[Worker], None],
    ) -> None:
        self._loop = loop
        self._watch = watch
        self._pool = pool
        self._access = access
        self._rejections = rejections
        self._held: deque[_Held] = deque()
        self._next: asyncio.Handle | None = None  # judgement of those
        self.entrance: Entrance = self.admit
        """Gets each accepted connection, and calls `admit` for it now or later. If it raises, the socket is the caller's."""
        self.expected = 0
        """Connections for which it has not called `admit` yet."""
        self.late: Callable[[str | None], int] = lambda _: 0
        """Returns the turns of the loop until each end that a source has sent by now is read, as far as those are more than usual.

        `None` stands for all sources.
        """

    @property
    def held(self) -> int:
        """The number of connections on hold."""
        return len(self._held)

    @property
    def room(self) -> int:
        """The number of connections that could be held besides."""
        return MOST - len(self._held)

    def admit(
        self, sock: _socket.socket, client: Peer, listener: str, opening: Opening, accepted: float | None = None
    ) -> None:
        """Give a connection a worker, refuse it, or hold it. If this raises, the socket is still the caller's.

        `accepted` is when it was accepted (`time.monotonic`), if not just now.
        """
        if not self._held:
            reason = self._refusal(client)
            if reason is None:
                self._open(sock, client, listener, opening, accepted)
                return
            if reason not in _PASSING:
                self.reject(sock, client, listener, reason)
                return
        self._judge_soon()
        # If there is a worker for each, only the ends of its own source make room: to wait for others would keep `room` from all.
        turns = TURNS + self.late(client.source if self._pool.free > len(self._held) else None)
        self._held.append(_Held(sock, client, listener, opening, turns=turns, accepted=accepted))

    def settle(self) -> None:
        """Judge all connections on hold now: none stays."""
        self._judge(last=True)

    def _judge_soon(self) -> None:
        if self._next is None:
            self._next = self._loop.call_soon(self._judge_in_turn)

    def _judge_in_turn(self) -> None:
        self._next = None
        try:
            self._judge()
        finally:
            if self._held:
                self._judge_soon()

    def _judge(self, *, last: bool = False) -> None:
        """Judge each connection on hold, in order."""
        renewed = False
        for _ in range(len(self._held)):
            each = self._held.popleft()
            try:
                reason = self._refusal(each.client)
                if reason is None:
                    renewed = True
                    self._open(each.sock, each.client, each.listener, each.opening, each.accepted)
                    continue
                each.turns = max(each.turns - 1, TURNS if renewed else 0)
                if reason in _PASSING and each.turns and not last:
                    self._held.append(each)
                else:
                    self.reject(each.sock, each.client, each.listener, reason)
            except BaseException:
                close(each.sock)
                raise

    def _refusal(self, client: Peer) -> str | None:
        return self._access.refusal(client, full=not self._pool.free)

    def _open(
        self, sock: _socket.socket, client: Peer, listener: str, opening: Opening, accepted: float | None
    ) -> None:
        worker = self._pool.take(sock, client, listener)
        if accepted is not None:
            worker.opened = accepted
        try:
            self._watch(worker)
        except BaseException as error:  # no timeout would ever end it
            self._pool.release(worker, error)
            raise
        opening(worker, sock)

    def reject(self, sock: _socket.socket, client: Peer, listener: str, reason: str, error: str | None = None) -> None:
        """Close a connection, with FIN, and count and log that."""
        with contextlib.suppress(OSError):  # the client may have gone already
            # With FIN first, a client that has sent already reads EOF and not the reset that close(2) sends then.
            if sock.family == socket.AF_UNIX:
                kernel.end_unread(sock)
            else:
                sock.shutdown(socket.SHUT_WR)
        close(sock)
        self._rejections.log(client, listener, reason, error)


class Accepted(_socket.socket):
    """An accepted socket. uvloop closes its descriptor by itself and then calls `close`, which here only forgets it.

    That saves a system call for each connection. To close it for real, use `close(sock)` of this module.
    """

    __slots__ = ()

    close = _socket.socket.detach  # type: ignore[assignment]


def close(sock: _socket.socket) -> None:
    """Close an accepted socket whose descriptor may be closed already."""
    fd = sock.detach()
    if fd >= 0:
        try:  # noqa: SIM105 - contextlib.suppress takes memory, and there may be none
            os.close(fd)
        except OSError:  # uvloop has closed the descriptor, if it failed late
            pass
