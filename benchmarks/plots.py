"""Chooses what is drawn of the outcomes.

Knows nothing of SVG.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import plot
from benchmarks.report import title
from benchmarks.summary import Spread, absolute, relative
from benchmarks.targets import TARGETS

if TYPE_CHECKING:
    from benchmarks.bench import Outcome

LATENCIES = ("p50", "p99", "p99.9")


def drawings(outcomes: list[Outcome]) -> dict[str, str]:
    """Return SVG by file name, of what was measured."""
    busy = [outcome for outcome in outcomes if outcome.workload.mode != "idle" and "floor" in outcome.rounds]
    cpu = [_relative(outcome, "cpu") for outcome in busy if outcome.workload.mode != "rate"]
    latency = [
        plot.Panel(f"{metric}: {title(outcome)}", _bars(outcome, metric), None)
        for outcome in busy
        if outcome.workload.mode == "rate"
        for metric in LATENCIES
    ]
    memory = [
        plot.Panel(outcome.workload.title, _bars(outcome, "resident"), None) for outcome in outcomes if outcome.rounds
    ]
    drawn = {
        "cpu.svg": ("Server CPU per message or connection, as a ratio to the floor of the same round", cpu, ".2f"),
        "latency.svg": ("Latency at half capacity, from the time a message was due, in microseconds", latency, ".0f"),
        "memory.svg": ("Resident memory, MB", memory, ".1f"),
    }
    return {
        name: plot.draw(head, panels, form, alike=name == "cpu.svg")
        for name, (head, panels, form) in drawn.items()
        if panels
    }


def _relative(outcome: Outcome, metric: str) -> plot.Panel:
    name = outcome.workload.name
    goals = [
        target.limit for target in TARGETS if (target.workload, target.metric, target.of) == (name, metric, "floor")
    ]
    bars = [
        _bar(kind, relative(rounds, outcome.rounds["floor"])[metric])
        for kind, rounds in outcome.rounds.items()
        if set(rounds) & set(outcome.rounds["floor"])
    ]
    return plot.Panel(outcome.workload.title, sorted(bars, key=lambda bar: bar.value), max(goals, default=None))


def _bars(outcome: Outcome, metric: str) -> list[plot.Bar]:
    bars = [_bar(kind, absolute(rounds)[metric]) for kind, rounds in outcome.rounds.items()]
    return sorted(bars, key=lambda bar: bar.value)


def _bar(name: str, value: Spread) -> plot.Bar:
    return plot.Bar(name, value.median, value.low, value.high)
