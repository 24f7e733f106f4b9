"""The timeouts: end connections that have become idle or stalled, or that have lasted for too long.

No read or write sets a timer or asks the clock. A worker with a connection is in one bucket, by the time at which it is to be
checked. A timer takes out the buckets whose time has come. The kernel knows when the last byte has moved, so most workers go
into a later bucket at once. A worker whose peer does not read is in `Pool.stalled`, and is checked with each turn of the
timer. What one turn of the loop does is bounded.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from typing import TYPE_CHECKING

from echod.server.drain import BATCH, CHECK, END, LINGER, finish

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from echod.log import Logger
    from echod.server.pool import Pool
    from echod.server.worker import Worker

LONGEST_TICK = 1.0  # seconds between two turns of the timer
SHORTEST_TICK = 0.05
LONGEST_WAIT = 60.0
"""Seconds after which a worker is looked at in any case, whether its socket is still open."""


class Timeouts:
    """Checks a pool, from the first `set` on. It has the only timer of an idle daemon.

    With each turn of the timer, `checked` gets how many seconds late it was. Idle and lifetime end a connection with FIN after
    its echo; a peer that does not read gets a reset.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, log: Logger, pool: Pool, checked: Callable[[float], None]
    ) -> None:
        self._loop = loop
        self._log = log
        self._pool = pool
        self._checked = checked
        self._idle = self._write = self._lifetime = math.inf
        self._tick = LONGEST_TICK
        # A worker is in the bucket that it names. It may be in others too, which don't count. Each is in one of them once, also
        # if it comes back to a bucket that it has left.
        self._buckets: dict[int, dict[Worker, None]] = {}  # by the tick at which they are due
        self._ticks: list[int] = []  # the keys of it, as a heap
        self._due: deque[dict[Worker, None]] = deque()  # buckets to be checked now
        self._stalled: deque[Worker] = deque()  # workers likewise
        self._next = math.inf  # turn of the timer, by the loop's clock
        self._timer: asyncio.TimerHandle | None = None
        self._batch: asyncio.Handle | None = None

    def set(self, *, idle: float | None, write: float | None, lifetime: float | None) -> None:
        """Judge by these timeouts (in seconds; `None`: never) from the next turn on, which is never put off by this."""
        self._idle = idle or math.inf
        self._write = write or math.inf
        self._lifetime = lifetime or math.inf
        self._tick = max(SHORTEST_TICK, min(LONGEST_TICK, self._idle / 4, self._write / 4, self._lifetime / 4))
        self._due.extend(self._buckets.values())  # all are checked with the next turn
        self._buckets.clear()
        self._ticks.clear()
        self._schedule(min(self._next, self._loop.time() + self._tick))

    def watch(self, worker: Worker) -> None:
        """Check this worker, which has got a connection, from now on: soon, in case the kernel does not tell of it."""
        self._put(worker, self._loop.time() + self._tick)

    def close(self) -> None:
        """Check no more."""
        for each in (self._timer, self._batch):
            if each:
                each.cancel()

    def _put(self, worker: Worker, at: float) -> None:
        tick = math.ceil(at / self._tick)
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = {}
            heapq.heappush(self._ticks, tick)
        if worker.bucket is not bucket:
            bucket[worker] = None
            worker.bucket = bucket

    def _schedule(self, at: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._next = at
        self._timer = self._loop.call_later(at - self._loop.time(), self._turn)

    def _turn(self) -> None:
        now = self._loop.time()
        # Both clocks are CLOCK_MONOTONIC, the loop's in whole milliseconds and read once in its turn.
        late = max(0.0, time.monotonic() - self._next)
        delay = 0.0 if now - self._next <= SHORTEST_TICK else SHORTEST_TICK
        self._schedule(now + self._tick + delay)
        while self._ticks and self._ticks[0] * self._tick <= now:
            self._due.append(self._buckets.pop(heapq.heappop(self._ticks)))
        if not self._stalled:  # else the last ones would never be reached in a loop that is slow
            self._stalled.extend(self._pool.stalled)
        if self._batch:
            self._batch.cancel()
        # If the loop was held up, or the process stopped (SIGSTOP), what has come meanwhile is read first.
        self._batch = (
            self._loop.call_later(delay, self._check_some) if delay else self._loop.call_soon(self._check_some)
        )
        self._pool.log_available()
        self._checked(late)

    def _check_some(self) -> None:
        now = self._loop.time()
        left = BATCH
        while left > 0:
            if self._stalled:
                left -= self._try(self._check_stalled, self._stalled.popleft(), now)
            elif self._due:
                bucket = self._due[0]
                if not bucket:
                    self._due.popleft()
                    continue
                worker = next(reversed(bucket))
                left -= self._try(self._check, worker, now) if worker.bucket is bucket else CHECK
                del bucket[worker]  # only now: whatever has failed, the worker is in some bucket
            else:
                self._batch = None
                return
        self._batch = self._loop.call_soon(self._check_some)

    def _try(self, check: Callable[[Worker, float], int], worker: Worker, now: float) -> int:
        try:
            return check(worker, now)
        except Exception:  # noqa: BLE001 - whatever it is, one connection must not keep the others from being checked
            self._log.exception("internal.error", message=f"checking connection {worker.connection} failed")
            self._put(worker, now + self._tick)
            return END

    def _check(self, worker: Worker, now: float) -> int:
        """Check a worker whose bucket is due, and put it into the next one; return what that has cost."""
        if self._pool.in_use.get(worker.connection) is not worker:
            worker.bucket = None
            return CHECK
        if worker.sock.fileno() < 0:
            # The socket was closed, but `connection_lost` never ran: there was no memory for it.
            worker.bucket = None
            self._pool.release(worker, MemoryError())
            return END
        quiet, exact = worker.quiet_for(now)
        if quiet >= self._idle and not worker.paused:  # else it is checked as a stalled one
            worker.abort("idle_timeout")
        elif worker.finished is not None:
            if worker.reason == "lifetime" and now - worker.finished >= LINGER:
                worker.abort("lifetime", reset=worker.paused)
        elif now - worker.opened >= self._lifetime:
            finish(worker, "lifetime", now)
            worker.reason = worker.reason or "lifetime"  # also if it was closing already, or has no transport yet
        else:
            over = min(worker.seen + self._idle, worker.opened + self._lifetime)
            # Of a connection whose echo is still under way, only the next check tells whether some of it has arrived.
            self._put(worker, min(over, now + (LONGEST_WAIT if exact else self._tick)))
            return CHECK
        self._put(worker, now + self._tick)
        return END

    def _check_stalled(self, worker: Worker, now: float) -> int:
        if self._pool.in_use.get(worker.connection) is not worker or not worker.paused:
            self._pool.stalled.discard(worker)
            return CHECK
        quiet, _ = worker.quiet_for(now)
        if quiet < min(self._write, self._idle):
            return CHECK
        worker.abort("write_timeout" if quiet >= self._write else "idle_timeout", reset=True)
        return END
