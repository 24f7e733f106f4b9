"""What is asked of the servers, and of which.

Knows nothing of how it is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.servers import KINDS

Mode = Literal["loop", "rate", "churn", "idle"]

EVERYONE = tuple(name for name in KINDS if name != "echod-quiet")
THREADED = tuple(name for name in EVERYONE if not KINDS[name].forks)
FEW = ("floor", "echod", "uvloop", "go")


@dataclass(frozen=True)
class Workload:
    """One question to several servers."""

    name: str
    title: str
    kinds: tuple[str, ...]
    connections: int
    size: int = 64
    mode: Mode = "loop"
    processes: int = 1
    quick: bool = False
    """Whether a quick run has it, with the first four of these servers; all are asked once."""

    @property
    def descriptors(self) -> int:
        """How many a process needs for it."""
        return self.connections + 200


WORKLOADS = (
    Workload("64B-50", "64 B x 50 connections", EVERYONE, 50, quick=True),
    Workload("16KiB-50", "16 KiB x 50 connections", THREADED, 50, 16 << 10, quick=True),
    Workload("256KiB-10", "256 KiB x 10 connections", THREADED, 10, 256 << 10, quick=True),
    Workload(
        "churn",
        "connect, 64 B, close; 50 at a time",
        ("floor", "echod", "echod-quiet", *EVERYONE[2:]),
        50,
        mode="churn",
        quick=True,
    ),
    Workload("half", "64 B x 50 at half capacity", THREADED, 50, mode="rate", quick=True),
    Workload("1KiB-50", "1 KiB x 50 connections", THREADED, 50, 1 << 10),
    Workload("64B-1", "64 B x 1 connection", THREADED, 1),
    Workload("64B-1000", "64 B x 1,000 connections", THREADED, 1_000),
    Workload("64B-10000", "64 B x 10,000 connections", THREADED, 10_000),
    Workload("two", "64 B x 50, 2 processes on one port", ("floor", "echod"), 50, processes=2),
    Workload("idle", "idle, no connection", THREADED, 0, mode="idle", quick=True),
    Workload("idle-10000", "idle, 10,000 connections", FEW, 10_000, mode="idle"),
)
