"""Waits for sockets and for moments, as exactly as Python can."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Callback = Callable[[int], None]

_AWAKE = 0.001
_NEARLY = 0.0002
"""Seconds for which it looks again and again instead of sleeping: after `stay_awake`, and before a moment. A sleep ends some
tens of microseconds late, which would be in every figure; for so short a time, the processor may as well be busy."""
_LONGEST = 3600.0
_EVENTS = 256


class Poller:
    """Calls back for descriptors that are ready (epoll(7))."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._awake_until = 0.0

    def add(self, fd: int, events: int, callback: Callback) -> None:
        """Call back with the events of this descriptor."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget a descriptor that is still open."""
        self._epoll.unregister(fd)
        del self._callbacks[fd]

    def forget(self, fd: int) -> None:
        """Forget a descriptor that was closed."""
        del self._callbacks[fd]

    def close(self) -> None:
        """Release the poller's own descriptor."""
        self._epoll.close()

    def stay_awake(self, now: float) -> None:
        """Expect an answer soon."""
        self._awake_until = now + _AWAKE

    def wait(self, until: float) -> None:
        """Call back for what is ready. Return after that, or at this moment (`time.monotonic`), or a little before it."""
        now = time.monotonic()
        if now >= self._awake_until and until - now > _NEARLY:
            # Not by epoll_wait(2), which counts in milliseconds.
            select.select([self._epoll], [], [], min(until - now - _NEARLY, _LONGEST))
        events = self._epoll.poll(0, _EVENTS)
        for fd, mask in events:
            callback = self._callbacks.get(fd)
            if callback:  # not removed by one of those before
                callback(mask)
        if not events and time.monotonic() < until:
            os.sched_yield()  # the service may need this processor
