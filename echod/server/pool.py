"""The pool: the workers, which of them are free, which are in use, and the books of what they did.

A worker is either in the free list or in `in_use`, never in both. There are `size` of them, or more after a shrink, until
enough connections have ended.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from echod import x509
from echod.histogram import Histogram
from echod.server import kernel
from echod.server.worker import Worker

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from echod.config.settings import Lifecycle
    from echod.log import Logger
    from echod.server.endpoint import Peer


CLOSE_REASONS = ("eof", "reset", "truncated", "idle_timeout", "write_timeout", "lifetime", "drained", "killed", "error")
"""Why a connection has ended."""
BY_CLIENT = frozenset({"eof", "reset", "truncated"})
"""Those of them that the client causes."""
DURATIONS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)
"""Seconds: from the probe of a load balancer to connections that last for days."""
ROUND_TRIPS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds: from loopback to a satellite link whose buffers are full."""
COUNTED = 1000
"""Connections counted before the loop goes on: 0.1 ms."""


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
        self.stalled: set[Worker] = set()  # those whose peer does not read, and some that were among them a moment ago
        self.sources: dict[str, int] = {}  # how many of these each source has, see `Peer`; "" are checks of proxies
        self.when_free: Callable[[], None] | None = None
        self._numbered = 0  # the last connection
        self._not_opened = 0  # of these, those that are not opened yet, or never were
        self.opening: dict[str, int] = {}  # by source: its connections that have a worker and are not opened yet
        self.unopened: dict[str, Callable[[Worker, BaseException | None], None]] = {}
        """By listener, where a connection is not open once it has a worker: what to call if it ends before `open`."""
        self.closed: Counter[str] = Counter()  # by reason
        self.unused = 0  # of these, those that the client has ended without a byte
        self.durations = Histogram(*DURATIONS)  # seconds, of closed connections
        self.round_trips = Histogram(*ROUND_TRIPS)  # seconds, of those among them of which the kernel has measured it
        self.retransmits = 0  # segments of theirs that were sent again
        self.bytes_received = 0  # of closed connections, and of open ones as of the last `count_open`
        self._sent = 0  # likewise
        self._most_sent = 0  # as `bytes_sent` has returned it

    def make(self, number: int) -> list[Worker]:
        """Return new workers, for `resize`. Safe in any thread."""
        return [Worker(self.release, self.stalled) for _ in range(number)]

    def resize(self, size: int, more: list[Worker]) -> list[Worker]:
        """Set the number of workers. To grow, add `more`. To shrink, drop free ones now, busy ones when their connections end.

        Returns those that it drops: the caller has the time to free them.
        """
        self.size = size
        self._free += more
        kept = max(0, size - len(self.in_use))
        dropped = self._free[kept:]
        del self._free[kept:]
        self._log_full()
        return dropped

    @property
    def free(self) -> int:
        """The number of free workers."""
        return len(self._free)

    def take(self, sock: _socket.socket, client: Peer, listener: str) -> Worker:
        """Give the connection a worker; if that fails, nothing has changed. Raises `IndexError` if none is free."""
        # Whatever may fail comes before the worker leaves the free list: it would be lost.
        worker = self._free[-1]
        number = self._numbered + 1
        source = client.source
        worker.take(sock, client, listener, number, time.monotonic())
        self.sources[source] = self.sources.get(source, 0) + 1
        try:
            self.in_use[number] = worker
            if listener in self.unopened:
                self.opening[source] = self.opening.get(source, 0) + 1
                self._not_opened += 1
                worker.is_open = False
        except BaseException:
            self.in_use.pop(number, None)
            _uncount(self.sources, source)
            raise
        self._free.pop()
        self._numbered = number
        try:
            self._log_opened(worker)
        except BaseException as error:
            self.release(worker, error)
            raise
        return worker

    @property
    def accepted(self) -> int:
        """The number of connections that were opened."""
        return self._numbered - self._not_opened

    def open(self, worker: Worker, tls: dict[str, Any]) -> None:
        """Log and count that the connection of a worker is opened now, with this in its lines."""
        worker.is_open = True
        worker.tls = tls
        self._not_opened -= 1
        _uncount(self.opening, worker.client.source)
        self._log_opened(worker)

    def _log_opened(self, worker: Worker) -> None:
        client = worker.client
        if self.lifecycle == "all" and client.source and worker.is_open:
            # Not `**client.as_client()` for all: 0.2 µs for each connection.
            if client.proxy or worker.tls:
                self._log.info(
                    "connection.opened",
                    connection=worker.connection,
                    **client.as_client(),
                    listener=worker.listener,
                    **({"tls": worker.tls} if worker.tls else {}),
                    in_use=len(self.in_use),
                )
            else:
                self._log.info(
                    "connection.opened",
                    connection=worker.connection,
                    client=client.fields(),
                    listener=worker.listener,
                    in_use=len(self.in_use),
                )
        self._log_full()

    @property
    def bytes_sent(self) -> int:
        """Bytes written back, counted like `bytes_received`. It never goes back."""
        # When a transport ends it forgets what it could not write, a moment before the worker is booked: what was counted in
        # this moment is too much.
        self._most_sent = max(self._most_sent, self._sent)
        return self._most_sent

    async def count_open(self) -> None:
        """Bring the bytes of open connections into the books, with turns of the loop for others in between."""
        workers = list(self.in_use.values())
        for begin in range(0, len(workers), COUNTED):
            for worker in workers[begin : begin + COUNTED]:
                if worker.transport:  # else it has come back meanwhile
                    self._count(worker, worker.sent())
            await asyncio.sleep(0)

    def _count(self, worker: Worker, sent: int) -> None:
        self.bytes_received += worker.received - worker.counted_received
        self._sent += sent - worker.counted_sent
        worker.counted_received = worker.received
        worker.counted_sent = sent

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
            if worker.is_open:
                self._book(worker, exc)
            else:
                _uncount(self.opening, source)
                self.unopened[worker.listener](worker, exc)
        finally:  # whatever went wrong, the worker comes back
            del self.in_use[worker.connection]
            _uncount(self.sources, source)
            worker.leave()
            if len(self.in_use) < self.size:
                self._free.append(worker)
                if self.when_free:
                    self.when_free()

    def _book(self, worker: Worker, exc: BaseException | None) -> None:
        reason = worker.reason or _reason(exc)
        duration = time.monotonic() - worker.opened
        self.closed[reason] += 1
        self.durations.observe(duration)
        info = kernel.info(worker.sock)
        sent = worker.received - worker.dropped - worker.pending()
        if info:
            # After an error the transport forgets what it could not write; the kernel remembers what it was given.
            sent = min(sent, info.written)
            if info.rtt_us:  # without an acknowledgement, none is measured
                self.round_trips.observe(info.rtt_us / 1e6)
            self.retransmits += info.retrans
        if exc and sent < worker.received:  # FIN would say that this was all of the echo
            kernel.reset_on_close(worker.sock)
        self._count(worker, sent)
        client = worker.client
        if not worker.received and client.source and reason in BY_CLIENT:
            self.unused += 1
        if self.lifecycle != "none" and client.source and (worker.received or self.lifecycle != "used"):
            fields: dict[str, Any] = {"error": _name(exc)} if reason == "error" else {}
            if client.proxy:
                fields["proxy"] = client.proxy.fields()
            if worker.tls:
                fields["tls"] = worker.tls
            self._log.info(
                "connection.closed",
                connection=worker.connection,
                client=client.fields(),
                listener=worker.listener,
                bytes_received=worker.received,
                bytes_sent=sent,
                duration=round(duration, 6),
                reason=reason,
                in_use=len(self.in_use) - 1,
                tcp=info and info.fields(),
                syn=worker.syn(),
                **fields,
            )


def _uncount(sources: dict[str, int], source: str) -> None:
    left = sources[source] - 1
    if left:
        sources[source] = left
    else:
        del sources[source]


def _reason(exc: BaseException | None) -> str:
    if exc is None:
        return "eof"
    return "reset" if isinstance(exc, ConnectionError) else "error"


def _name(exc: BaseException | None) -> str:
    if exc and type(exc).__module__ == "ssl":  # its errno is one of OpenSSL
        return x509.reason(exc)
    return errno.errorcode.get(getattr(exc, "errno", 0), type(exc).__name__)
