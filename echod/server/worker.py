"""HOT PATH. A worker serves one connection after another: it writes back what it reads.

Knows nothing of settings, logs and timers. What it holds beside the connection is for those who look at it: the pool
for its books, the janitor to see what has moved.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

from echod.server import kernel

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    class Listener(Protocol):
        """Where a connection came in."""

        @property
        def url(self) -> str:
            """Its name in logs."""


class Worker(asyncio.Protocol):
    """One seat in the pool.

    asyncio calls the methods from `connection_made` to `connection_lost` in that order, then `lost(worker, exc)`
    gives the seat back. Invariant while a connection is open: its reading is paused exactly while output is pending,
    so that it holds at most the one chunk that the kernel did not take.
    """

    __slots__ = (
        "_lost",
        "client",
        "connection",
        "dropped",
        "held",
        "listener",
        "mark",
        "opened",
        "paused",
        "reason",
        "received",
        "seen",
        "sock",
        "source",
        "transport",
    )

    connection: int
    client: tuple[str, int]
    listener: Listener
    sock: socket.socket
    opened: float
    source: str  # what the client counts for, see addresses.source
    # What the last look found, see quiet_for():
    mark: int  # `received`
    held: int | None  # bytes that were not acknowledged; None when nobody has asked yet
    seen: float  # when it had last changed

    def __init__(self, lost: Callable[[Worker, Exception | None], None]) -> None:
        self._lost = lost
        self.transport: asyncio.Transport | None = None

    def take(
        self, sock: socket.socket, client: tuple[str, int], listener: Listener, connection: int, opened: float
    ) -> None:
        """Begin with a new connection: its number, and when it came in (`time.monotonic()`)."""
        self.sock = sock
        self.client = client
        self.listener = listener
        self.connection = connection
        self.opened = opened
        self.received = 0  # bytes
        self.dropped = 0  # of these, the bytes not echoed, because they came after our FIN
        self.mark = -1  # nobody has looked yet
        self.paused = False
        self.reason: str | None = None  # why we end it; None while we don't

    def leave(self) -> None:
        """Let go of the connection that has ended."""
        self.transport = None
        del self.sock, self.listener

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # it serves streams only
        """Set up flow control.

        With a high-water mark of 0, uvloop tries every write at once and calls `pause_writing` within it exactly when
        bytes remain (its stream.pyx, `_initiate_write`).
        """
        self.transport = transport
        try:
            transport.set_write_buffer_limits(high=0)
        except BaseException:  # uvloop would keep the descriptor open and say nothing more
            self.abort("error")
            raise
        if self.reason:  # ended between accept and now
            transport.abort()

    def data_received(self, data: bytes) -> None:  # noqa: D102 - asyncio.Protocol documents it
        self.received += len(data)
        self.transport.write(data)  # type: ignore[union-attr] # these three run only while it is there: no check

    def pause_writing(self) -> None:  # noqa: D102
        self.paused = True
        self.transport.pause_reading()  # type: ignore[union-attr]

    def resume_writing(self) -> None:  # noqa: D102
        self.paused = False
        self.transport.resume_reading()  # type: ignore[union-attr]

    # No eof_received: asyncio's own returns None, and the transport closes when all output is out.

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._lost(self, exc)

    # What others ask of a worker in use:

    def pending(self) -> int:
        """Return the bytes that the kernel has not taken yet."""
        return self.transport.get_write_buffer_size() if self.transport else 0

    def quiet_for(self, now: float) -> float:
        """Return for how many seconds at least no byte has moved; `now` is the loop's clock.

        Bytes come in, or what transport and kernel hold for the peer gets less. If nothing has come in since nothing
        was held, nothing can have moved, and the kernel is not asked.
        """
        if self.received != self.mark:
            self.mark = self.received
            self.held = None
            self.seen = now
        elif self.held != 0:
            held = self.pending() + kernel.unacknowledged(self.sock)
            if held != self.held:
                self.held = held
                self.seen = now
        return now - self.seen

    def abort(self, reason: str, *, reset: bool = False) -> None:
        """End the connection now, with RST if `reset`: then the kernel forgets what the peer has not read."""
        self.reason = self.reason or reason
        if self.transport:
            if reset:
                with contextlib.suppress(OSError):  # then without
                    kernel.reset_on_close(self.sock)
            self.transport.abort()
