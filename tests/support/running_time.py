"""A clock that stops while this machine stands still: what a virtual machine or a busy host takes from us is nobody's delay.

Bounds on how long echod may take are measured by it. That echod stands still alone doesn't stop it.
"""

from __future__ import annotations

import functools
import threading
import time

_PAUSE = 0.02
_STANDSTILL = 0.25
"""Seconds by which a thread that has nothing to do wakes up late only if nothing in this process runs."""


class _Clock(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._books = time.monotonic(), 0.0  # when this thread woke up last, and all standstills before that

    def run(self) -> None:
        while True:
            time.sleep(_PAUSE)
            now = time.monotonic()
            self._books = now, now - self.at(now)

    def at(self, now: float) -> float:
        woke, lost = self._books
        late = now - woke - _PAUSE
        return now - lost - (late if late > _STANDSTILL else 0.0)


@functools.cache
def _clock() -> _Clock:
    clock = _Clock()
    clock.start()
    return clock


def running_time() -> float:
    """Return seconds as `time.monotonic`, without those in which this machine stood still."""
    clock = _clock()
    return clock.at(time.monotonic())
