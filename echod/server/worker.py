"""HOT PATH. A worker serves one connection after another: it writes back what it reads.

It sets no timer and writes no log. Besides the connection it holds what others read: the pool for its books, the timeouts
to see whether a byte has moved.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from echod.server import kernel, syn

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from echod.server.endpoint import Peer


class Worker(asyncio.Protocol):
    """One place in the pool.

    asyncio calls the methods from `connection_made` to `connection_lost` in that order; then `lost(worker, exc)` returns the
    worker to its pool. Invariant while a connection is open: its reading is paused exactly while output is pending, so it
    holds at most the one chunk that the kernel did not take.
    """

    __slots__ = (
        "_lost",
        "_stalled",
        "_syn",
        "bucket",
        "client",
        "connection",
        "counted_received",
        "counted_sent",
        "dropped",
        "finished",
        "held",
        "is_open",
        "listener",
        "mark",
        "opened",
        "paused",
        "reason",
        "received",
        "seen",
        "sock",
        "tls",
        "transport",
    )

    connection: int
    client: Peer
    listener: str  # the URL of the one that it came in by
    sock: _socket.socket
    opened: float
    is_open: bool  # or in a handshake
    tls: dict[str, Any] | None  # what it has negotiated, as log lines have it
    # What the last check has found, see quiet_for():
    mark: int  # `received`
    held: int  # bytes that the peer had not acknowledged
    seen: float  # when a byte had last moved

    def __init__(self, lost: Callable[[Worker, Exception | None], None], stalled: set[Worker]) -> None:
        self._lost = lost
        self._stalled = stalled
        self._syn: bytes | None = None  # what the kernel had kept of it; it is asked once
        self.bucket: dict[Worker, None] | None = None  # of `Timeouts`: the one that it is in
        self.received = 0  # bytes
        self.counted_received = 0  # of these, what the pool's books have already
        self.counted_sent = 0
        self.transport: asyncio.Transport | None = None

    def take(self, sock: _socket.socket, client: Peer, listener: str, connection: int, opened: float) -> None:
        """Begin with a new connection: its number, and when it was accepted (`time.monotonic()`)."""
        self.sock = sock
        self.client = client
        self.listener = listener
        self.connection = connection
        self.opened = opened
        self.seen = opened
        self.received = self.counted_received = self.counted_sent = 0
        self.dropped = 0  # of `received`, the bytes not echoed because they came after our FIN
        self.mark = self.held = 0
        self.paused = False
        self.is_open = True
        self.tls = None
        self.finished: float | None = None  # when our FIN was sent, before the peer's
        self.reason: str | None = None  # why the daemon ends the connection; None while it doesn't

    def leave(self) -> None:
        """Forget the connection, which has ended."""
        self.transport = self._syn = None
        del self.sock, self.client

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # it serves streams only
        """Set up flow control.

        With a high-water mark of 0, uvloop tries every write at once and calls `pause_writing` within it exactly when
        bytes remain (its stream.pyx, `_initiate_write`).
        """
        self.transport = transport
        try:
            transport.set_write_buffer_limits(high=0)
        except BaseException:  # otherwise uvloop keeps the descriptor open and calls nothing more
            self.abort("error")
            raise
        if self.reason:  # ended between accept and now
            transport.abort()

    def data_received(self, data: bytes) -> None:  # noqa: D102 - asyncio.Protocol documents it
        self.received += len(data)
        self.transport.write(data)  # type: ignore[union-attr] # it is there as long as these three are called: no check

    def pause_writing(self) -> None:  # noqa: D102
        self.paused = True
        self._stalled.add(self)
        self.transport.pause_reading()  # type: ignore[union-attr]

    def resume_writing(self) -> None:  # noqa: D102
        self.paused = False
        self.transport.resume_reading()  # type: ignore[union-attr]

    # No eof_received: asyncio's own returns None, and the transport then closes after pending output.

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._lost(self, exc)

    # Called by other parts while a connection is open:

    def pending(self) -> int:
        """Return the bytes that the kernel has not taken yet."""
        return self.transport.get_write_buffer_size() if self.transport else 0

    def sent(self) -> int:
        """Return the bytes that the kernel has taken."""
        return self.received - self.dropped - (self.pending() if self.paused or self.dropped else 0)

    def syn(self) -> dict[str, Any] | None:
        """Return what arrived of the client's SYN, as log lines and answers have it."""
        if self._syn is None:
            self._syn = kernel.saved_syn(self.sock)
        return syn.fields(self._syn)

    def quiet_for(self, now: float) -> tuple[float, bool]:
        """Return the seconds for which no byte has moved, and whether that is exact; `now` is the loop's clock.

        A byte has moved if one was received, or if the unacknowledged output shrank. If they hold nothing, the kernel
        knows when it was. If they hold something, or if the kernel does not tell, only a change since the last check shows
        that a byte has moved.
        """
        info = kernel.info(self.sock)
        pending = self.pending()
        exact = info is not None and info.is_empty and not pending
        if info and exact:
            self.held = 0
            self.seen = max(self.seen, now - info.quiet)
        else:
            held = pending + (kernel.unacknowledged(self.sock) or 0)
            if self.received != self.mark or held != self.held:
                self.seen = now
            self.held = held
        self.mark = self.received
        return now - self.seen, exact

    def abort(self, reason: str, *, reset: bool = False) -> None:
        """End the connection now, with RST if `reset`: the kernel then forgets what the peer has not read."""
        self.reason = self.reason or reason
        if self.transport:
            if reset:
                kernel.reset_on_close(self.sock)
            self.transport.abort()
