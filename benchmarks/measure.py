"""What processes have used so far, from the kernel's books.

Knows nothing of servers and loads.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SETTLED = 200_000
"""Nanoseconds of processor time within `_LOOK` that count as nothing."""
_LOOK = 0.02  # seconds
_LISTENS = "0A"  # in /proc/net/tcp


class Usage(NamedTuple):
    """Of all processes of one or more sessions, together."""

    processor: int
    """Nanoseconds, user and system, also those of children that have ended."""
    waited: int
    """Nanoseconds in which a thread was ready to run and its core was busy with something else."""
    wakeups: int
    """How often a thread has slept and was woken (voluntary context switches)."""
    resident: int
    """Bytes; what processes share counts in each of them."""


def usage(sessions: list[int]) -> Usage:
    """Return what the processes of these sessions have used; a session has the number of the process that began it."""
    processor = waited = wakeups = resident = 0
    for process in _processes(sessions):
        with contextlib.suppress(OSError, ValueError):  # it may have ended meanwhile
            fields = _stat(process)
            processor += time.clock_gettime_ns(_clock(process)) + TICK * (int(fields[13]) + int(fields[14]))
            resident += PAGE * int(fields[21])
            for task in (PROC / str(process) / "task").iterdir():
                waited += _waited(task)
                wakeups += _wakeups(task)
    return Usage(processor, waited, wakeups, resident)


def settled(sessions: list[int], patience: float = 3.0) -> Usage:
    """Return what they have used as soon as they have nothing more to do, such as lines of a log to write."""
    end = time.monotonic() + patience
    now = usage(sessions)
    while time.monotonic() < end:
        time.sleep(_LOOK)
        before, now = now, usage(sessions)
        if now.processor - before.processor < SETTLED:
            break
    return now


def listeners(port: int) -> int:
    """Return how many IPv4 sockets listen on this port."""
    lines = (line.split() for line in (PROC / "net/tcp").read_text().splitlines()[1:])
    return sum(line[3] == _LISTENS and line[1].endswith(f":{port:04X}") for line in lines)


def _processes(sessions: list[int]) -> list[int]:
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if int(_stat(int(entry.name))[3]) in sessions:
                    found.append(int(entry.name))
    return found


def _stat(process: int) -> list[str]:
    """Return the fields of proc_pid_stat(5) from the third on: names may hold anything, also spaces."""
    return (PROC / str(process) / "stat").read_text().rpartition(")")[2].split()


def _clock(process: int) -> int:
    """Return the clock of a process's processor time, as clock_getcpuclockid(3) makes it: nanoseconds, not ticks."""
    return (~process << 3) | 2


def _waited(task: Path) -> int:
    try:
        return int((task / "schedstat").read_text().split()[1])
    except FileNotFoundError:  # a kernel without CONFIG_SCHED_INFO
        return 0


def _wakeups(task: Path) -> int:
    for line in (task / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "voluntary_ctxt_switches":
            return int(value)
    return 0
