"""Moments of a clock that nobody sets, and their Unix time.

A machine may boot in 1970 and learn the time later, and an operator may correct it. An age that is computed from two readings
of the wall clock is then wrong by years. So a moment is kept as seconds since the machine has booted, and its Unix time is
computed when somebody asks, by the wall clock as it is set then.
"""

from __future__ import annotations

import time

STEP = 1.0
"""Seconds by which the wall clock must move before a moment gets another Unix time. A start time that changes, by however
little, looks like a restart."""


def now() -> float:
    """Return the seconds since the machine has booted, with those in which it was suspended (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class WallClock:
    """The wall clock. A moment keeps its Unix time until the clock is set."""

    def __init__(self) -> None:
        self._booted = time.time() - now()

    def of(self, moment: float) -> float:
        """Return the Unix time of a moment of `now`."""
        booted = time.time() - now()
        if abs(booted - self._booted) > STEP:
            self._booted = booted
        return self._booted + moment


unix_time = WallClock().of
