"""A clock that goes on only while nobody has anything to do, for clients of services that run in threads of the test.

A client whose patience is a tenth of a second would otherwise give up a service that is right but slow, because the machine is.
On this clock, time passes only if the client waits, each service waits for bytes, and none are there. Then it jumps to the moment
that comes next, so no test sleeps. What the kernel does with the bytes is real.
"""

from __future__ import annotations

import contextlib
import heapq
import select
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

from tests.support.harness import DEADLINE

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from types import ModuleType

    import pytest

STEP = 0.00002
"""Seconds that pass between two looks at the clock."""
_CALM = 0.001
"""Seconds between two looks at the sockets, of which several have to find nothing: a packet may be under way."""
_LOOKS = 3


class Crowd:
    """The threads of all services: which of them are busy, what the others wait for, and when those that sleep wake up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = 0
        self._waiting: set[int] = set()
        self._sleeping: list[tuple[float, int, threading.Event]] = []
        self.clock: IdleClock | None = None
        """The clock of those who sleep, if it is not the real one."""

    def join(self) -> None:
        """Count one more busy thread, before it starts."""
        with self._lock:
            self._busy += 1

    def leave(self) -> None:
        """Count one less: it has ended."""
        with self._lock:
            self._busy -= 1

    def wait_for(self, sock: socket.socket) -> None:
        """Wait until the socket is readable. Whoever waits is busy from the moment at which something is there to read."""
        number = sock.fileno()
        with self._lock:
            self._busy -= 1
            self._waiting.add(number)
        _poll(number, -1)
        with self._lock:
            self._busy += 1
            self._waiting.discard(number)

    def sleep(self, seconds: float) -> None:
        """Sleep as a service that takes its time."""
        if self.clock is None:
            time.sleep(seconds)
            return
        over = threading.Event()
        with self._lock:
            self._busy -= 1
            heapq.heappush(self._sleeping, (self.clock.now + seconds, id(over), over))
        assert over.wait(DEADLINE)

    def is_idle(self) -> bool:
        """Return whether none is busy, or has something to read."""
        with self._lock:
            return not self._busy and not any(_poll(number, 0) for number in self._waiting)

    def wake(self, until: float) -> float | None:
        """Wake the one whose sleep ends first, and return that moment, if it is before `until`."""
        with self._lock:
            if not self._sleeping or self._sleeping[0][0] > until:
                return None
            moment, _, over = heapq.heappop(self._sleeping)
            self._busy += 1
        over.set()
        return moment

    def end_sleep(self) -> None:
        """Wake all, so that they can end."""
        while self.wake(float("inf")) is not None:
            pass


CROWD = Crowd()


class IdleClock:
    """Stands for the module `time` in a client, and for `select.select` in its poller."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        self.now += STEP
        return self.now

    def select(self, readable: list[select.epoll], _: object, __: object, timeout: float) -> None:
        """Wait until the poller has something to do, or until this much time has passed."""
        end, patience, looks = self.now + timeout, time.monotonic() + DEADLINE, 0
        while not select.select(readable, [], [], _CALM)[0]:
            assert time.monotonic() < patience, f"a service is busy for {DEADLINE} s"
            looks = looks + 1 if CROWD.is_idle() else 0
            if looks == _LOOKS:
                looks, moment = 0, CROWD.wake(end)
                self.now = max(self.now, end if moment is None else moment)
                if moment is None:
                    return


@contextlib.contextmanager
def ruling(monkeypatch: pytest.MonkeyPatch, poller: ModuleType, *modules: ModuleType) -> Iterator[IdleClock]:
    """Let these modules of a client, its poller, and services that sleep have this clock."""
    clock = IdleClock()
    for module in (poller, *modules):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(poller, "select", SimpleNamespace(select=clock.select, epoll=select.epoll))
    monkeypatch.setattr(CROWD, "clock", clock)
    yield clock
    CROWD.end_sleep()


def _poll(number: int, timeout: int) -> bool:
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(timeout))
