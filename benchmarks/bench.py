"""Runs the workloads: rounds, in each of them every server in turn.

Knows nothing of what is made of the numbers.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks import measure
from benchmarks.load import Load, LoadError
from benchmarks.servers import KINDS, Server, missing

if TYPE_CHECKING:
    from benchmarks.cores import Cores
    from benchmarks.progress import Progress
    from benchmarks.summary import Rounds, Sample
    from benchmarks.workloads import Workload


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each run."""
    cycles: int
    """Of connect, echo, close; a tenth of it for servers that fork."""
    idle: float
    """Seconds of doing nothing."""


FULL = Extent(rounds=9, seconds=1.0, cycles=10_000, idle=10.0)
QUICK = Extent(rounds=3, seconds=0.3, cycles=3_000, idle=2.0)


@dataclass
class Outcome:
    """What came of one workload."""

    workload: Workload
    rounds: dict[str, Rounds] = field(default_factory=dict)
    """By server."""
    skipped: dict[str, str] = field(default_factory=dict)
    """By server, the reason."""
    failed: dict[str, list[str]] = field(default_factory=dict)
    """By server, what went wrong in single rounds."""
    rate: float = 0.0
    """Messages a second, where the rate is fixed."""


class Bench:
    """All runs of one call."""

    def __init__(self, extent: Extent, places: Cores, progress: Progress) -> None:
        self._extent = extent
        self._places = places
        self._progress = progress

    def run(self, workload: Workload, kinds: tuple[str, ...]) -> Outcome:
        """Ask the workload of these servers."""
        outcome = Outcome(workload)
        for name in kinds:
            reason = missing(KINDS[name]) or _too_many(workload)
            if reason:
                outcome.skipped[name] = reason
        asked = [name for name in kinds if name not in outcome.skipped]
        if workload.mode == "rate" and asked:
            outcome.rate = self._half_capacity(outcome)
        rounds = self._rounds(workload)
        for number in range(rounds):
            # Each comes first once: what a neighbour leaves behind in caches and clocks hits all alike.
            first = number % max(1, len(asked))
            for name in asked[first:] + asked[:first]:
                self._progress.step(f"{workload.title}: {name}, round {number + 1} of {rounds}")
                try:
                    sample = self._sample(workload, name, outcome.rate)
                except (LoadError, RuntimeError) as error:
                    outcome.failed.setdefault(name, []).append(str(error))
                else:
                    outcome.rounds.setdefault(name, {})[number] = sample
        return outcome

    def steps(self, workload: Workload, kinds: tuple[str, ...]) -> int:
        """Return how many steps that is."""
        there = sum(not (missing(KINDS[name]) or _too_many(workload)) for name in kinds)
        return there * self._rounds(workload)

    def _rounds(self, workload: Workload) -> int:
        return min(3, self._extent.rounds) if workload.mode == "idle" else self._extent.rounds

    def _half_capacity(self, outcome: Outcome) -> float:
        """Return half of the rate at which the slower of the floor and echod would take all of a core."""
        fastest = []
        for name in ("floor", "echod"):
            runs = [self._sample(outcome.workload, name, 0.0)["cpu"] for _ in range(3)]
            fastest.append(1e6 / sorted(runs)[1])
        return float(round(min(fastest) / 2, -2))

    def _sample(self, workload: Workload, name: str, rate: float) -> Sample:
        kind = KINDS[name]
        with Server(kind, self._places, connections=workload.connections, processes=workload.processes) as server:
            if workload.mode == "idle":
                return self._idle(workload, server)
            mode: tuple[str | float, ...] = ("loop", self._extent.seconds)
            if workload.mode == "churn":
                mode = "churn", self._extent.cycles // (10 if kind.forks else 1)
            elif rate:
                mode = "rate", rate, self._extent.seconds
            with Load(self._places, server.port, workload.connections, workload.size, *mode) as load:
                before = measure.settled(server.sessions)
                result = load.go()
                resident = measure.usage(server.sessions).resident
                after = measure.settled(server.sessions)
        messages, seconds = result.pop("messages"), result.pop("seconds")
        processor = after.processor - before.processor
        sample = {
            "cpu": processor / messages / 1e3,
            "rate": messages / seconds,
            **result,
            "resident": resident / 1e6,
            "busy": processor / 1e9 / seconds,
            "ready": server.ready_after,
        }
        if not kind.forks:  # of those, each waits for the others
            sample["waited"] = (after.waited - before.waited) / 1e9 / seconds
        return sample

    def _idle(self, workload: Workload, server: Server) -> Sample:
        empty = measure.settled(server.sessions)
        if workload.connections:
            with Load(self._places, server.port, workload.connections, workload.size, "loop", 1) as _:
                return self._doing_nothing(server, empty, workload.connections)
        return self._doing_nothing(server, empty, 0)

    def _doing_nothing(self, server: Server, empty: measure.Usage, connections: int) -> Sample:
        before = measure.settled(server.sessions)
        time.sleep(self._extent.idle)
        after = measure.usage(server.sessions)
        sample = {
            "cpu_share": (after.processor - before.processor) / 1e9 / self._extent.idle * 100,
            "wakeups": (after.wakeups - before.wakeups) / self._extent.idle,
            "resident": after.resident / 1e6,
            "ready": server.ready_after,
        }
        if connections:
            sample["each"] = (after.resident - empty.resident) / connections / 1024
        return sample


def _too_many(workload: Workload) -> str | None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < workload.descriptors:
        return f"needs {workload.descriptors} descriptors, and the hard limit of RLIMIT_NOFILE is {hard}"
    return None
