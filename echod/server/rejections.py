"""Refused connections: counted by reason, and logged such that a flood of them is no flood of lines.

Knows nothing of why a connection is refused.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from typing import TYPE_CHECKING

from echod.server.pool import peer

if TYPE_CHECKING:
    import asyncio

    from echod.log import Logger


RECENT = 20


class Rejections:
    """Logs refused connections, at most `LINES` within a second; the next line then says how many had none.

    `count` has all of them, by reason; `recent` the last ones, with when that was (Unix time).
    """

    LINES = 10
    SECOND = 1.05  # and what the loop's clock, read once in its round, may be behind

    def __init__(self, loop: asyncio.AbstractEventLoop, log: Logger) -> None:
        self.count: Counter[str] = Counter()
        self.recent: deque[tuple[float, tuple[str, int], str, str]] = deque(maxlen=RECENT)
        self._loop = loop
        self._log = log
        self._times: deque[float] = deque([-math.inf] * self.LINES, maxlen=self.LINES)  # of the last lines
        self._suppressed = 0  # since the last line
        self._last: tuple[tuple[str, int], str, str]  # of those suppressed
        self._timer: asyncio.TimerHandle | None = None

    def log(self, client: tuple[str, int], listener: str, reason: str) -> None:
        """Count one refusal, and log it if there is room for a line."""
        self.count[reason] += 1
        self.recent.append((time.time(), client, listener, reason))
        wait = self._times[0] + self.SECOND - self._loop.time()
        if wait <= 0:
            self._line(client, listener, reason)
            return
        self._suppressed += 1
        self._last = client, listener, reason
        if self._timer is None:
            self._timer = self._loop.call_later(wait, self.flush)

    def flush(self) -> None:
        """Give the last one that was suppressed its line, so that no count waits for a refusal that never comes."""
        if self._suppressed:
            self._suppressed -= 1
            self._line(*self._last)

    def _line(self, client: tuple[str, int], listener: str, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        fields = {"suppressed": self._suppressed} if self._suppressed else {}
        self._times.append(self._loop.time())
        self._suppressed = 0
        self._log.warning("connection.rejected", client=peer(client), listener=listener, reason=reason, **fields)
