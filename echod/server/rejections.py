"""Rejected clients: counted by reason, and logged so that a flood of them is not a flood of lines."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, NamedTuple

from echod import clock

if TYPE_CHECKING:
    import asyncio

    from echod.log import Logger
    from echod.server.endpoint import Peer

RECENT = 20


class Rejection(NamedTuple):
    """One rejected client."""

    client: Peer
    listener: str
    reason: str
    error: str | None
    """What was wrong, where the reason does not say all."""

    def fields(self) -> dict[str, Any]:
        """Return it as log lines and answers have it."""
        error = {"error": self.error} if self.error else {}
        return {**self.client.as_client(), "listener": self.listener, "reason": self.reason, **error}


class Rejections:
    """Logs at most `LINES` rejections a second. The next line counts, by reason, those that were not logged.

    `count` has all of them, by reason; `recent` the last ones, each with its moment (`clock.now`).
    """

    LINES = 10
    SECOND = 1.05  # one second, plus the most by which the loop's cached clock may lag

    def __init__(self, loop: asyncio.AbstractEventLoop, log: Logger) -> None:
        self.count: Counter[str] = Counter()
        self.recent: deque[tuple[float, Rejection]] = deque(maxlen=RECENT)
        self._loop = loop
        self._log = log
        self._times: deque[float] = deque([-math.inf] * self.LINES, maxlen=self.LINES)  # of the last lines
        self._suppressed: Counter[str] = Counter()  # since the last line, by reason
        self._last: Rejection  # of those suppressed
        self._timer: asyncio.TimerHandle | None = None

    def log(self, client: Peer, listener: str, reason: str, error: str | None = None) -> None:
        """Count one rejection, and log it if there is room for a line. The check of a proxy is only counted."""
        rejection = Rejection(client, listener, reason, error)
        self.count[reason] += 1
        if not client.source:
            return
        self.recent.append((clock.now(), rejection))
        wait = self._times[0] + self.SECOND - self._loop.time()
        if wait <= 0:
            self._line(rejection)
            return
        self._suppressed[reason] += 1
        self._last = rejection
        if self._timer is None:
            self._timer = self._loop.call_later(wait, self.flush)

    def flush(self) -> None:
        """Log the last suppressed rejection, so that no count waits for a next one that never comes."""
        if self._suppressed:
            self._suppressed[self._last.reason] -= 1
            self._line(self._last)

    def _line(self, rejection: Rejection) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        suppressed = +self._suppressed  # without those at 0
        fields = {"suppressed": dict(suppressed)} if suppressed else {}
        self._times.append(self._loop.time())
        self._suppressed.clear()
        self._log.warning("connection.rejected", **rejection.fields(), **fields)
