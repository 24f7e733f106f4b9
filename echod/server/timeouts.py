"""The timeouts: end connections that have become idle or stalled.

A timer checks the workers every now and then, so that no read or write sets a timer or asks the clock: a connection that has
not changed between two checks has not moved.
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

LONGEST_TICK = 1.0  # seconds between two checks
SHORTEST_TICK = 0.05


class Timeouts:
    """Checks a pool, from the first `set` on. It has the only timer of an idle daemon.

    After each check, `checked` gets how many seconds late the timer was.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, log: Logger, pool: Pool, checked: Callable[[float], None]
    ) -> None:
        self._loop = loop
        self._log = log
        self._pool = pool
        self._checked = checked
        self._due = math.inf  # the next check, by the loop's clock
        self._timer: asyncio.TimerHandle | None = None

    def set(self, *, idle: float | None, write: float | None) -> None:
        """Judge by these timeouts (in seconds; `None`: never) from the next check on, which is never put off by this."""
        self._idle = idle or math.inf
        self._write = write or math.inf
        self._tick = max(SHORTEST_TICK, min(LONGEST_TICK, self._idle / 4, self._write / 4))
        self.close()
        self._check_at(min(self._due, self._loop.time() + self._tick))

    def close(self) -> None:
        """Check no more."""
        if self._timer:
            self._timer.cancel()

    def _check_at(self, due: float) -> None:
        self._due = due
        self._timer = self._loop.call_later(due - self._loop.time(), self._check)

    def _check(self) -> None:
        now = self._loop.time()
        # Both clocks are CLOCK_MONOTONIC, the loop's in whole milliseconds and read once in its turn.
        late = max(0.0, time.monotonic() - self._due)
        if now - self._due <= SHORTEST_TICK:
            self._judge_all(late)
        else:  # the loop was held up, or the process stopped (SIGSTOP): first read what has come meanwhile
            self._due = now + SHORTEST_TICK
            self._timer = self._loop.call_later(SHORTEST_TICK, self._judge_all, late)

    def _judge_all(self, late: float) -> None:
        now = self._loop.time()
        self._check_at(now + self._tick)
        for worker in list(self._pool.in_use.values()):
            try:
                self._judge(worker, now)
            except Exception:  # noqa: BLE001 - whatever it is, one connection must not keep the others from being checked
                self._log.exception("internal.error", message=f"checking connection {worker.connection} failed")
        self._pool.log_available()
        self._checked(late)

    def _judge(self, worker: Worker, now: float) -> None:
        if (
            worker.sock.fileno() < 0
        ):  # the socket was closed, but `connection_lost` never ran: there was no memory for it
            self._pool.release(worker, MemoryError())
            return
        quiet = worker.quiet_for(now)
        if worker.paused and quiet >= self._write:
            worker.abort("write_timeout", reset=True)
        elif quiet >= self._idle:
            worker.abort("idle_timeout", reset=worker.paused)
