"""The accept loop: from a listening socket to a worker.

It accepts by hand, because asyncio's servers take whatever the kernel has: here a batch is bounded, and with "wait" nothing is
accepted while no worker is free. A connection goes through three steps: it is accepted, it is admitted (which gives it a
worker), and it is opened (which gives it a transport).
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from echod.server import admission, kernel
from echod.server.admission import Accepted

if TYPE_CHECKING:
    import _socket
    import asyncio
    from collections.abc import Callable

    from echod.log import Logger
    from echod.server.admission import Admission, Opening
    from echod.server.datagrams import Datagrams
    from echod.server.endpoint import Listener, Peer
    from echod.server.pool import Pool
    from echod.server.tls import Handshakes

BATCH = 32
"""Connections accepted before the loop goes on with those that are open."""

PAUSE = 0.1
"""Seconds without accepting after an error of the system."""

State = Literal["accepting", "waiting", "paused", "missing", "retired", "answering"]
"""Of an acceptor: "waiting" for a worker, "paused" after an error, "missing" if its file or its interface was
removed or replaced, "retired" but for the connections in its backlog.

"answering" is what a socket of UDP does.
"""

_GONE = frozenset(
    {
        # The connection failed before it was accepted (accept(2), "Error handling"): the next one may be good.
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)


class Parts(NamedTuple):
    """What all acceptors share."""

    loop: asyncio.AbstractEventLoop
    log: Logger
    pool: Pool
    admission: Admission
    datagrams: Callable[[], Datagrams]
    """Returns what all sockets of UDP share."""
    handshakes: Handshakes
    line: dict[Acceptor, None]
    """Those that wait for a worker, or for room on hold, or did a moment ago, in the order in which they have found none."""


class Acceptor:
    """Gives the connections of one listener to the pool.

    `peer` makes a peer of what accept(2) returns, the socket and the address, and `opening` opens an admitted socket for its worker. With `waits`, the
    acceptor accepts only while a worker is free, and `resume` tells it that one is free again.
    """

    def __init__(
        self,
        parts: Parts,
        listener: Listener,
        *,
        peer: Callable[[_socket.socket, Any], Peer],
        opening: Opening,
        waits: bool,
    ) -> None:
        self._loop, self._log, self._pool, self._admission, _, _, self._line = parts
        self.listener = listener
        self._family, self._type, self._proto = listener.sock.family, listener.sock.type, listener.sock.proto
        self._peer = peer
        self._open = opening
        self.waits = waits
        self._reading = False
        self._full_turns = 0  # in a row, in which no worker was free
        self._retired: Callable[[Acceptor], None] | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._failures = 0  # of accept, in a row
        self._paused: tuple[float, str] | None = None  # since when, and the error's name
        self.paused_seconds = 0.0  # in all

    # Its life

    def resume(self) -> None:
        """Accept from now on; does nothing if it already does, or during a pause after an error."""
        if not self._reading and self._pause is None:
            self._loop.add_reader(self.listener.sock, self._accept_batch)
            self._reading = True

    def retire(self, done: Callable[[Acceptor], None]) -> None:
        """Accept the connections in the backlog, then stop listening and call `done`: none of them gets a reset."""
        self._retired = done
        self.listener.hide()
        self._listen(0)  # a connection joins the queue only when it is empty, so the backlog drains
        if not self._end_if_retired():
            self.resume()

    def revive(self) -> None:
        """Undo `retire`: a later reload wants this endpoint again."""
        if self._retired:
            self._retired = None
            self._listen(self.listener.backlog or 0)

    def _listen(self, backlog: int) -> None:
        # The reload can't be refused any more, and a backlog that stays as it is does no harm.
        with contextlib.suppress(OSError):
            self.listener.sock.listen(backlog)

    @property
    def state(self) -> State:
        """What would happen to a client that connects now."""
        if self._retired:
            return "retired"
        if not self.listener.is_reachable:
            return "missing"
        if self._pause:
            return "paused"
        if self.waits and not self._pool.free:
            return "waiting"
        return "accepting"

    @property
    def has_clients(self) -> bool:
        """Whether it would accept a client now, if it got a worker."""
        return self._pause is None and kernel.has_waiting(self.listener.sock)

    def _end_if_retired(self) -> bool:
        """Stop listening if retired and no connection waits; say whether it did."""
        if not self._retired or kernel.has_waiting(self.listener.sock):
            return False
        self._end()
        self._retired(self)
        return True

    def close(self) -> None:
        """Accept the connections that the kernel has completed, as far as there are workers, and stop listening.

        The kernel resets whatever is left in the backlog. An inherited listener is closed without accepting: the
        next process serves its backlog.
        """
        self._cancel_pause()
        self._suspend()  # before the last look into the backlog: what comes between that and the close is reset
        if not self.listener.inherited:
            self.listener.hide()  # first: as long as this process listens, no other one takes the path
            self._listen(0)
            for _ in range((self.listener.backlog or 0) + 1):  # the kernel holds one more than it was asked for
                if not self._admission.room:
                    self._admission.settle()
                if not self._pool.free or not self._accept():
                    break
        self._end()

    def _end(self) -> None:
        self._suspend()
        self._cancel_pause()
        self._line.pop(self, None)
        self.listener.sock.close()

    def _suspend(self) -> None:
        if self._reading:
            self._loop.remove_reader(self.listener.sock)
            self._reading = False

    # A connection

    def _accept_batch(self) -> None:
        try:
            # Half of the room for connections on hold is left to other listeners.
            for _ in range(min(BATCH, (self._admission.room + 1) // 2) or 1):
                if not self._gets_place():
                    self._wait_for_place()
                    break
                self._full_turns = 0
                if not self._accept():
                    break
        finally:  # also if the last one failed: nothing else would wake a retired listener
            self._end_if_retired()

    def _gets_place(self) -> bool:
        """Say whether there is room, or with "wait" a worker, for this listener: others that have waited for longer go first.

        The loop asks the listeners in the same order in each of its turns: the first of them would get each place.
        """
        spare = self._admission.room
        if self.waits:
            spare = min(spare, self._pool.free - self._admission.held - self._admission.expected)
        if 0 < spare <= len(self._line):
            for each in list(self._line):
                if each is self:
                    break
                if each.has_clients:
                    spare -= 1
                else:
                    del self._line[each]
        if spare > 0:
            self._line.pop(self, None)
        else:
            self._line.setdefault(self)
        return spare > 0

    def _wait_for_place(self) -> None:
        """Leave the backlog alone in this turn; with "wait", after some turns without a worker to spare, until `resume`.

        To suspend at once would take two system calls for each worker that comes back a moment later.
        """
        self._full_turns += 1
        if self.waits and self._full_turns > admission.TURNS and self._pool.free <= self._admission.expected:
            self._full_turns = 0
            self._suspend()

    def _accept(self) -> bool:
        """Accept one connection; say whether there may be more."""
        try:
            # Without the wrapper of `accept()`, which looks up enums; the descriptor becomes a socket below.
            fd, address = self.listener.sock._accept()  # type: ignore[attr-defined] # noqa: SLF001
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._failures += 1
            if error.errno in _GONE and self._failures < BATCH:
                return True
            self._pause_after(error)
            return False
        self._failures = 0
        if self._paused:
            self._recovered(*self._paused)
        sock = None
        try:
            sock = Accepted(self._family, self._type, self._proto, fd)
            self._admission.entrance(sock, self._peer(sock, address), self.listener.url, self._open)
        except BaseException:  # such as no memory, anywhere: the client must not wait for nothing
            if sock:
                admission.close(sock)
            else:
                os.close(fd)
            raise
        return True

    # Errors of the system

    def _pause_after(self, error: OSError) -> None:
        """Stop accepting for a moment: the listener stays readable, and the loop would spin."""
        self._suspend()
        self._failures = 0
        self._pause = self._loop.call_later(PAUSE, self._end_pause)
        if self._paused is None:
            reason = errno.errorcode.get(error.errno or 0, str(error))
            self._paused = self._loop.time(), reason
            self._log.warning("accept.paused", listener=self.listener.url, reason=reason, seconds=PAUSE)

    def _end_pause(self) -> None:
        self._pause = None
        self.paused_seconds += PAUSE
        self.resume()

    def _cancel_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()

    def _recovered(self, since: float, reason: str) -> None:
        self._paused = None
        seconds = round(self._loop.time() - since, 6)
        self._log.info("accept.resumed", listener=self.listener.url, reason=reason, seconds=seconds)
