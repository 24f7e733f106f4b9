"""What the daemon says of itself when asked: its status, and its connections.

Knows nothing of who asks and how. Nothing is kept for that but the two counts a second ago, from which rates are.
"""

from __future__ import annotations

import heapq
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from echod import __version__
from echod.config.types import printable
from echod.server import kernel
from echod.server.access import REASONS as REJECTED
from echod.server.pool import REASONS as CLOSED
from echod.server.pool import peer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from echod.config.load import Loaded
    from echod.histogram import Histogram
    from echod.log import Log
    from echod.reload import Change
    from echod.server.listeners import Frontend
    from echod.server.pool import Pool
    from echod.server.rejections import Rejections
    from echod.server.worker import Worker

State = Literal["starting", "running", "draining"]

SOURCES = 10
"""Sources in a status, those with the most connections."""


class Reloaded(NamedTuple):
    """How the last reload ended, or the start. Times are Unix time."""

    at: float
    in_force_since: float
    change: Change | None = None
    errors: Sequence[str] = ()


class Daemon(Protocol):
    """Whose report it is."""

    @property
    def state(self) -> State: ...  # noqa: D102 - all of these are what their names say
    @property
    def loaded(self) -> Loaded: ...  # noqa: D102
    @property
    def log(self) -> Log: ...  # noqa: D102
    @property
    def pool(self) -> Pool: ...  # noqa: D102
    @property
    def frontend(self) -> Frontend: ...  # noqa: D102
    @property
    def rejections(self) -> Rejections: ...  # noqa: D102
    @property
    def lag(self) -> Histogram: ...  # noqa: D102
    @property
    def meter(self) -> Meter: ...  # noqa: D102
    @property
    def reloaded(self) -> Reloaded: ...  # noqa: D102
    @property
    def began(self) -> float: ...  # noqa: D102

    async def reload_now(self) -> Reloaded | None:
        """Reload, and say how that ended; `None` if the daemon stops instead."""


class Meter:
    """Rates, from what was counted a second ago and two seconds ago.

    Whoever has a timer calls `look`, at most so often that a second counts.
    """

    SECOND = 0.95  # timers are a little early at times

    def __init__(self, pool: Pool, rejections: Rejections) -> None:
        self._pool = pool
        self._rejections = rejections
        self._seen = time.monotonic()
        self._counts = self._count()
        self.interval = 0.0
        self.rates: dict[str, float] = dict.fromkeys(self._counts, 0.0)

    def _count(self) -> dict[str, int]:
        received, sent = self._pool.moved()
        return {
            "accepted": self._pool.accepted,
            "rejected": self._rejections.count.total(),
            "bytes_received": received,
            "bytes_sent": sent,
        }

    def look(self) -> None:
        """Count, if a second has passed."""
        now = time.monotonic()
        interval = now - self._seen
        if interval < self.SECOND:
            return
        before, self._counts = self._counts, self._count()
        self._seen, self.interval = now, interval
        self.rates = {name: round((count - before[name]) / interval, 3) for name, count in self._counts.items()}


def status(daemon: Daemon) -> dict[str, Any]:
    """Return what one screen shows, with bytes and seconds as numbers."""
    pool, rejections, lag, reloaded = daemon.pool, daemon.rejections, daemon.lag, daemon.reloaded
    settings, file = daemon.loaded.settings, daemon.loaded.file
    received, sent = pool.moved()
    return {
        "version": __version__,
        "pid": os.getpid(),
        "state": daemon.state,
        "accepting": accepting(daemon),
        "uptime": round(time.monotonic() - daemon.began, 3),
        "config": None if file is None else printable(str(file)),
        "pool": {"size": pool.size, "in_use": len(pool.in_use), "when_full": settings.pool.when_full},
        "connections": {
            "accepted": pool.accepted,
            "closed": {reason: pool.closed[reason] for reason in CLOSED},
            "rejected": {reason: rejections.count[reason] for reason in REJECTED},
        },
        "bytes": {"received": received, "sent": sent},
        "rates": {"interval": round(daemon.meter.interval, 3), **daemon.meter.rates},
        "listeners": [
            {
                "listener": acceptor.listener.url,
                "state": acceptor.state,
                "backlog": acceptor.listener.backlog,
                "queued": kernel.queued(acceptor.listener.sock),
            }
            for acceptor in daemon.frontend.acceptors
        ],
        "accept_paused_seconds": round(daemon.frontend.paused_seconds, 3),
        "sources": [
            {"source": source, "connections": count}
            for source, count in heapq.nlargest(SOURCES, pool.sources.items(), key=lambda item: item[1])
        ],
        "rejections": [
            {"timestamp": _stamp(at), "client": peer(client), "listener": listener, "reason": reason}
            for at, client, listener, reason in reversed(rejections.recent)
        ],
        "loop_lag": {
            "last": round(lag.last, 6),
            "p50": round(lag.quantile(0.5), 6),
            "p99": round(lag.quantile(0.99), 6),
            "max": round(lag.most, 6),
        },
        "reload": {
            "timestamp": _stamp(reloaded.at),
            "success": not reloaded.errors,
            "changed": reloaded.change.names if reloaded.change else [],
            "errors": list(reloaded.errors),
        },
        "log": {"dropped": daemon.log.dropped},
    }


def accepting(daemon: Daemon) -> bool:
    """Say whether a client that comes now is accepted by some listener."""
    return daemon.state == "running" and any(acceptor.state == "accepting" for acceptor in daemon.frontend.acceptors)


def connection(worker: Worker) -> dict[str, Any]:
    """Return what is known of an open connection. `idle` is as exact as the janitor looks: to a second."""
    now = time.monotonic()
    try:
        info = kernel.info(worker.sock)
    except OSError:
        info = None
    return {
        "id": worker.connection,
        "client": peer(worker.client),
        "listener": worker.listener.url,
        "age": round(now - worker.opened, 3),
        "idle": round(_idle(worker, now), 3),
        "bytes": worker.received,
        "pending": worker.pending(),
        "state": _state(worker),
        "rtt": info and info.rtt_us / 1e6,
        "retransmits": info and info.retransmits,
    }


def _idle(worker: Worker, now: float) -> float:
    if worker.received != worker.mark:  # since the last look, or there was none
        return 0.0
    return max(0.0, now - worker.seen)


def _state(worker: Worker) -> str:
    if worker.reason or not worker.transport or worker.transport.is_closing():
        return "closing"
    return "stalled" if worker.paused else "open"


def _stamp(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
