"""The janitor ends connections that have become idle or stalled.

Knows nothing of listeners and signals. It looks at the workers from time to time, so that no read or write sets a timer
or asks the clock: what has not changed between two looks has not moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from structlog.typing import FilteringBoundLogger

    from echod.pool import Pool
    from echod.worker import Worker

LONGEST_TICK = 1.0  # seconds between two looks
SHORTEST_TICK = 0.05


class Janitor:
    """Watches a pool. Timeouts are in seconds; `None` is never."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: FilteringBoundLogger,
        pool: Pool,
        *,
        idle: float | None,
        write: float | None,
    ) -> None:
        self._loop = loop
        self._log = log
        self._pool = pool
        self._idle = idle or float("inf")
        self._write = write or float("inf")
        self._tick = max(SHORTEST_TICK, min(LONGEST_TICK, self._idle / 4, self._write / 4))
        self._timer = loop.call_later(self._tick, self._look)

    def close(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._tick, self._look)
        now = self._loop.time()
        for worker in list(self._pool.in_use.values()):
            try:
                self._judge(worker, now)
            except Exception:  # noqa: BLE001 - whatever it is, one connection must not keep the others from being looked at
                self._log.exception("internal.error", message=f"looking at connection {worker.connection} failed")
        self._pool.tell_available()

    def _judge(self, worker: Worker, now: float) -> None:
        quiet = worker.quiet_for(now)
        if worker.paused and quiet >= self._write:
            worker.abort("write_timeout", reset=True)
        elif quiet >= self._idle:
            worker.abort("idle_timeout", reset=worker.paused)
