"""The pool: the workers, which of them are free, which are in use, and the books of what they did.

A worker is either in the free list or in `in_use`, never in both. There are `size` of them, or more after a shrink, until
enough connections have ended.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from echod.histogram import Histogram
from echod.server import kernel
from echod.server.worker import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from echod.config.settings import Lifecycle
    from echod.log import Logger
    from echod.server.endpoint import Peer


CLOSE_REASONS = ("eof", "reset", "idle_timeout", "write_timeout", "drained", "killed", "error")
"""Why a connection has ended."""
DURATIONS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)
"""Seconds: from the probe of a load balancer to connections that last for days."""


class Pool:
    """A fixed number of workers, made ahead by `make` and put in place by `resize`.

    `when_free`, if set, is called each time a worker comes back and is free.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._free: list[Worker] = []
        self._is_full = False  # as the log has it
        self.size = 0
        self.lifecycle: Lifecycle = "none"
        self.in_use: dict[int, Worker] = {}  # by connection number, oldest first
        self.sources: dict[str, int] = {}  # how many of these each source has, see `Peer`
        self.when_free: Callable[[], None] | None = None
        self.accepted = 0
        self.closed: Counter[str] = Counter()  # by reason
        self.durations = Histogram(*DURATIONS)  # seconds, of closed connections
        self.bytes_received = 0  # of closed connections
        self.bytes_sent = 0
        self._most_sent = 0  # as `moved` has returned it

    def make(self, number: int) -> list[Worker]:
        """Return new workers, for `resize`. Safe in any thread."""
        return [Worker(self.release) for _ in range(number)]

    def resize(self, size: int, more: list[Worker]) -> None:
        """Have `size` workers from now on: growing takes `more`; shrinking drops free ones, then others as they come back."""
        self.size = size
        self._free += more
        del self._free[max(0, size - len(self.in_use)) :]
        self._log_full()

    @property
    def free(self) -> int:
        """The number of connections that could come in now."""
        return len(self._free)

    def take(self, sock: socket.socket, client: Peer, listener: str) -> Worker:
        """Give the connection a worker; if that fails, nothing has changed. Raises `IndexError` if none is free."""
        # Whatever may fail comes before the worker leaves the free list: it would be lost.
        worker = self._free[-1]
        number = self.accepted + 1
        source = client.source
        worker.take(sock, client, listener, number, time.monotonic())
        self.sources[source] = self.sources.get(source, 0) + 1
        try:
            self.in_use[number] = worker
        except BaseException:
            self._uncount(source)
            raise
        self._free.pop()
        self.accepted = number
        try:
            self._log_opened(worker)
        except BaseException as error:
            self.release(worker, error)
            raise
        return worker

    def _log_opened(self, worker: Worker) -> None:
        if self.lifecycle == "all":
            self._log.info(
                "connection.opened",
                connection=worker.connection,
                client=worker.client.fields(),
                listener=worker.listener,
                in_use=len(self.in_use),
            )
        self._log_full()

    def moved(self) -> tuple[int, int]:
        """Return the bytes received and sent so far, with those of open connections. Takes 50 ns for each of these."""
        received, sent = self.bytes_received, self.bytes_sent
        for worker in self.in_use.values():
            received += worker.received
            sent += worker.received
            if worker.paused or worker.dropped:
                sent -= worker.dropped + worker.pending()
        # When a transport ends it forgets what it could not write, a moment before the worker is booked: `sent` is then too
        # large for that moment, and must not go back afterwards.
        self._most_sent = max(self._most_sent, sent)
        return received, self._most_sent

    def _log_full(self) -> None:
        if not self._free and not self._is_full:
            self._is_full = True
            self._log.warning("pool.full", size=self.size)

    def log_available(self) -> None:
        """Log the end of `pool.full`.

        Called with each check of the timeouts, not with each worker that comes back: a busy pool is full and not full
        thousands of times a second.
        """
        if self._is_full and self._free:
            self._is_full = False
            self._log.info("pool.available", size=self.size)

    def release(self, worker: Worker, exc: BaseException | None) -> None:
        """Take back a worker whose connection has ended, by `exc` if it is not None, and book the connection."""
        source = worker.client.source
        try:
            self._book(worker, exc)
        finally:  # whatever went wrong, the worker comes back
            del self.in_use[worker.connection]
            self._uncount(source)
            worker.leave()
            if len(self.in_use) < self.size:
                self._free.append(worker)
                if self.when_free:
                    self.when_free()

    def _uncount(self, source: str) -> None:
        left = self.sources[source] - 1
        if left:
            self.sources[source] = left
        else:
            del self.sources[source]

    def _book(self, worker: Worker, exc: BaseException | None) -> None:
        reason = worker.reason or _reason(exc)
        duration = time.monotonic() - worker.opened
        self.closed[reason] += 1
        self.durations.observe(duration)
        self.bytes_received += worker.received
        info = kernel.info(worker.sock)
        sent = worker.received - worker.dropped - worker.pending()
        if info:
            # After an error the transport forgets what it could not write; the kernel remembers what it was given.
            sent = min(sent, info.written)
        if exc and sent < worker.received:  # FIN would say that this was all of the echo
            kernel.reset_on_close(worker.sock)
        self.bytes_sent += sent
        if self.lifecycle != "none":
            fields: dict[str, Any] = {"error": _name(exc)} if reason == "error" else {}
            self._log.info(
                "connection.closed",
                connection=worker.connection,
                client=worker.client.fields(),
                listener=worker.listener,
                bytes_received=worker.received,
                bytes_sent=sent,
                duration=round(duration, 6),
                reason=reason,
                in_use=len(self.in_use) - 1,
                tcp=info and info.fields(),
                **fields,
            )


def _reason(exc: BaseException | None) -> str:
    if exc is None:
        return "eof"
    return "reset" if isinstance(exc, ConnectionError) else "error"


def _name(exc: BaseException | None) -> str:
    return errno.errorcode.get(getattr(exc, "errno", 0), type(exc).__name__)
