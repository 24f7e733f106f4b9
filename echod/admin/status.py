"""What the daemon says of itself when asked: its status, and its connections.

Nothing is kept for that but the counts of a second ago, from which rates are computed.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from echod import __version__, clock, x509
from echod.server import kernel
from echod.server.access import REJECT_REASONS
from echod.server.pool import CLOSE_REASONS
from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from echod.histogram import Histogram
    from echod.log import Log
    from echod.reload import Reloads
    from echod.server.server import LameDuck, Server
    from echod.server.worker import Worker

RESULTS = (
    "echoed",
    "source_port",
    "source_address",
    "destination",
    "denied",
    "too_large",
    "rate",
    "total_rate",
    "failed",
)
"""What becomes of a datagram, as in `echod.server.datagrams`, which is imported only if UDP is served."""
SOURCES = 10
"""Sources in a status, those with the most connections."""
BATCH = 1000
"""Sources compared before the loop goes on."""


class Running(NamedTuple):
    """The parts of the running daemon that answers are read from."""

    server: Server
    reloads: Reloads
    log: Log


class Meter:
    """Rates, from two counts. Counting visits each open connection, so it happens once a second only while someone asks."""

    SECOND = 0.95  # timers are a little early at times
    UNWATCHED = 10.0
    """Seconds between two counts when nobody has asked for as long."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._asked = -math.inf
        self._seen = time.monotonic()
        self._counts = self._count()
        self.interval = 0.0
        self.rates: dict[str, float] = dict.fromkeys(self._counts, 0.0)

    def _count(self) -> dict[str, int]:
        pool = self._server.pool
        return {
            "accepted": pool.accepted,
            "rejected": self._server.rejections.count.total(),
            "bytes_received": pool.bytes_received,
            "bytes_sent": pool.bytes_sent,
        }

    def ask(self) -> dict[str, float]:
        """Return the rates, and the seconds over which they are taken as `interval`."""
        self._asked = time.monotonic()
        return {"interval": round(self.interval, 3), **self.rates}

    @property
    def is_due(self) -> bool:
        """Whether it is time to `measure`."""
        now = time.monotonic()
        return now - self._seen >= (self.SECOND if now - self._asked < self.UNWATCHED else self.UNWATCHED)

    async def measure(self) -> None:
        """Count."""
        before, seen = self._counts, self._seen
        self._seen = time.monotonic()
        await self._server.pool.count_open()
        self._counts, self.interval = self._count(), self._seen - seen
        self.rates = {name: round((count - before[name]) / self.interval, 3) for name, count in self._counts.items()}


async def status(running: Running, meter: Meter) -> dict[str, Any]:
    """Return what one screen shows, with bytes and seconds as numbers."""
    server, reloads, log = running
    pool, rejections, lag = server.pool, server.rejections, server.lag
    await pool.count_open()
    sources = await _largest(pool.sources)
    held = log.held
    return {
        "version": __version__,
        "pid": os.getpid(),
        "state": "lame duck" if server.lame_duck else server.state,
        "readiness": server.readiness,
        "accepting": server.is_accepting,
        "lame_duck": server.lame_duck and _lame_duck(server.lame_duck),
        "uptime": round(time.monotonic() - server.began, 3),
        "config": None if reloads.file is None else printable(str(reloads.file)),
        "pool": {"size": pool.size, "in_use": len(pool.in_use), "when_full": server.settings.pool.when_full},
        "connections": {
            "accepted": pool.accepted,
            "closed": {reason: pool.closed[reason] for reason in CLOSE_REASONS},
            "rejected": {reason: rejections.count[reason] for reason in REJECT_REASONS},
            "probes": server.probes,
        },
        "bytes_received": pool.bytes_received,
        "bytes_sent": pool.bytes_sent,
        "rates": meter.ask(),
        "listeners": [
            {
                "listener": acceptor.listener.url,
                "state": acceptor.state,
                "backlog": acceptor.listener.backlog,
                "queued": kernel.queued(acceptor.listener.sock),
            }
            for acceptor in server.listeners.acceptors
        ],
        "missing": [{"listener": url, "reason": why} for url, why in server.listeners.missing.items()],
        "udp": server.udp
        and {
            "datagrams": {result: server.udp.results[result] for result in RESULTS},
            "bytes_received": server.udp.bytes_received,
            "bytes_sent": server.udp.bytes_sent,
            "kernel_drops": server.udp.kernel_drops,
        },
        "accept_paused_seconds": round(server.listeners.paused_seconds, 3),
        "sources": [{"source": source, "connections": count} for source, count in sources],
        "rejections": [{**_when(at), **rejection.fields()} for at, rejection in reversed(rejections.recent)],
        "tcp": {"rtt": _round_trips(pool.round_trips), "retrans": pool.retransmits},
        "loop_lag": {
            "last": round(lag.last, 6),
            "p50": round(lag.quantile(0.5), 6),
            "p99": round(lag.quantile(0.99), 6),
            "max": round(lag.most, 6),
        },
        "tls": _certificate(server),
        "reload": {
            **_when(reloads.last.at),
            "success": not reloads.last.errors,
            "changed": reloads.last.change.names if reloads.last.change else [],
            **({"files": reloads.last.files} if reloads.last.files else {}),
            "warnings": reloads.last.change.warnings if reloads.last.change else [],
            "errors": list(reloads.last.errors),
        },
        "log": {
            "dropped": log.dropped,
            "held": held.lines,
            "held_since": held.since and round(held.since, 3),
            "error": held.error,
        },
    }


def _round_trips(seconds: Histogram) -> dict[str, float | None]:
    figures = {"p50": seconds.quantile(0.5), "p99": seconds.quantile(0.99), "max": seconds.most}
    return {name: round(value, 6) if seconds.most else None for name, value in figures.items()}


def _lame_duck(duck: LameDuck) -> dict[str, Any]:
    now = time.monotonic()
    left = None if duck.until is None else round(max(0.0, duck.until - now), 3)
    return {"age": round(now - duck.since, 3), "remaining": left}


async def _largest(sources: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the sources with the most connections, with turns of the loop for others in between."""
    largest: list[tuple[str, int]] = []
    names = [source for source in sources if source]  # without the checks of proxies
    for begin in range(0, len(names), BATCH):
        some = [(name, sources[name]) for name in names[begin : begin + BATCH] if name in sources]
        largest = heapq.nlargest(SOURCES, largest + some, key=lambda source: source[1])
        await asyncio.sleep(0)
    return largest


def connection(worker: Worker) -> dict[str, Any]:
    """Return what is known of an open connection. Where the kernel does not tell, `idle` is exact to a second."""
    now = time.monotonic()
    info = kernel.info(worker.sock)
    pending = worker.pending()
    if info and info.is_empty and not pending:
        idle = info.quiet
    else:
        idle = max(0.0, now - worker.seen) if worker.received == worker.mark else 0.0
    return {
        "connection": worker.connection,
        **worker.client.as_client(),
        "listener": worker.listener,
        **({"tls": worker.tls} if worker.tls else {}),
        "age": round(now - worker.opened, 3),
        "idle": round(idle, 3),
        "bytes_received": worker.received,
        "bytes_sent": worker.received - worker.dropped - pending,
        "pending": pending,
        "state": _state(worker),
        "tcp": info and info.fields(),
        "syn": worker.syn(),
    }


def _certificate(server: Server) -> dict[str, Any] | None:
    loaded = server.handshakes.loaded
    if loaded is None:
        return None
    certificate, now = loaded.certificate, time.time()
    return {
        "certificate": printable(server.settings.tls.certificate),
        "subject": certificate.subject,
        "not_before": x509.timestamp(certificate.not_before),
        "not_after": x509.timestamp(certificate.not_after),
        "valid_in": max(0.0, round(certificate.not_before.timestamp() - now, 3)),
        "expires_in": round(certificate.not_after.timestamp() - now, 3),
    }


def _state(worker: Worker) -> str:
    if worker.reason or not worker.transport or worker.transport.is_closing():
        return "closing"
    if not worker.is_open:
        return "handshake"
    return "stalled" if worker.paused else "open"


def _when(at: float) -> dict[str, Any]:
    """Return when something happened, and its age in seconds. Timestamps can't be subtracted for that: the clock may be set in between."""
    timestamp = datetime.fromtimestamp(clock.unix_time(at), UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    return {"timestamp": f"{timestamp}Z", "age": round(clock.now() - at, 3)}
