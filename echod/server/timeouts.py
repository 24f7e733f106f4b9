"""The janitor ends connections that have become idle or stalled.

Knows nothing of listeners and signals. It looks at the workers from time to time, so that no read or write sets a timer
or asks the clock: what has not changed between two looks has not moved.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from echod.log import Logger
    from echod.server.pool import Pool
    from echod.server.worker import Worker

LONGEST_TICK = 1.0  # seconds between two looks
SHORTEST_TICK = 0.05


class Janitor:
    """Watches a pool. Timeouts are in seconds; `None` is never.

    It has the one timer of an idle daemon. After each look, `looked` gets how many seconds late that timer was.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log: Logger,
        pool: Pool,
        *,
        idle: float | None,
        write: float | None,
        looked: Callable[[float], None],
    ) -> None:
        self._loop = loop
        self._log = log
        self._pool = pool
        self._looked = looked
        self._due = math.inf  # when it looks next, by the loop's clock
        self._timer: asyncio.TimerHandle | None = None
        self.set_timeouts(idle=idle, write=write)

    def set_timeouts(self, *, idle: float | None, write: float | None) -> None:
        """Judge by these from the next look on, which comes as soon as they want it, and never later than it would have."""
        self._idle = idle or math.inf
        self._write = write or math.inf
        self._tick = max(SHORTEST_TICK, min(LONGEST_TICK, self._idle / 4, self._write / 4))
        self.close()
        self._look_at(min(self._due, self._loop.time() + self._tick))

    def close(self) -> None:
        """Look no more."""
        if self._timer:
            self._timer.cancel()

    def _look_at(self, due: float) -> None:
        self._due = due
        self._timer = self._loop.call_later(due - self._loop.time(), self._look)

    def _look(self) -> None:
        now = self._loop.time()
        # Both clocks are CLOCK_MONOTONIC, the loop's in whole milliseconds and read once in its round.
        late = max(0.0, time.monotonic() - self._due)
        if now - self._due <= SHORTEST_TICK:
            self._judge_all(late)
        else:  # the loop was held up, or the process stopped (SIGSTOP): what has come meanwhile is to be read first
            self._due = now + SHORTEST_TICK
            self._timer = self._loop.call_later(SHORTEST_TICK, self._judge_all, late)

    def _judge_all(self, late: float) -> None:
        now = self._loop.time()
        self._look_at(now + self._tick)
        for worker in list(self._pool.in_use.values()):
            try:
                self._judge(worker, now)
            except Exception:  # noqa: BLE001 - whatever it is, one connection must not keep the others from being looked at
                self._log.exception("internal.error", message=f"looking at connection {worker.connection} failed")
        self._pool.tell_available()
        self._looked(late)

    def _judge(self, worker: Worker, now: float) -> None:
        if worker.sock.fileno() < 0:  # closed, but nobody could say so: for that, there was no memory
            self._pool.release(worker, MemoryError())
            return
        quiet = worker.quiet_for(now)
        if worker.paused and quiet >= self._write:
            worker.abort("write_timeout", reset=True)
        elif quiet >= self._idle:
            worker.abort("idle_timeout", reset=worker.paused)
