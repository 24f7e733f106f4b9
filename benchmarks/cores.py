"""Which cores the server and the load run on: apart, if there are two.

Knows nothing of what runs there.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Cores(NamedTuple):
    """Of this machine, as far as this process may use them."""

    server: list[int]
    """One core per process of a server: the second on the second, if the load does not need it."""
    load: int

    @property
    def apart(self) -> bool:
        """Whether the load has a core of its own."""
        return self.load not in self.server


def available() -> Cores:
    """Share out the cores: the last is the load's."""
    cores = sorted(os.sched_getaffinity(0))
    return Cores(cores[:-1] or cores, cores[-1])


@contextlib.contextmanager
def on(core: int) -> Iterator[None]:
    """Start processes on this core: they inherit it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def first() -> Iterator[None]:
    """Run this thread before all others on its core, if that is allowed: else it is told of an answer some milliseconds late.

    See sched(7), SCHED_FIFO.
    """
    before = os.sched_getscheduler(0)
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, os.sched_param(0))
