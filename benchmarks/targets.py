"""What echod has to reach, and whether it does.

Knows nothing of how numbers were measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from benchmarks.summary import absolute, relative

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.bench import Outcome


class Target(NamedTuple):
    """A number that is not to be exceeded: a ratio to the floor, to another server, or the value itself."""

    title: str
    workload: str
    metric: str
    limit: float
    of: str | None = "floor"
    kind: str = "echod"
    unit: str = "x"


TARGETS = (
    Target("64 B x 50: CPU per message, to the floor", "64B-50", "cpu", 1.20),
    Target("64 B x 50: CPU per message, to Go", "64B-50", "cpu", 1.0, "go"),
    Target("64 B x 50: CPU per message, to uvloop's example", "64B-50", "cpu", 1.0, "uvloop"),
    Target("16 KiB x 50: CPU per message, to the floor", "16KiB-50", "cpu", 1.15),
    Target("256 KiB x 10: CPU per message, to the floor", "256KiB-10", "cpu", 1.25),
    Target("churn, lifecycle logs off: CPU, to the floor", "churn", "cpu", 1.15, kind="echod-quiet"),
    Target("churn, lifecycle logs on: CPU, to the floor", "churn", "cpu", 1.4),
    Target("half capacity: p99, to the floor", "half", "p99", 1.3),
    Target("start to ready", "64B-50", "ready", 0.5, None, unit="s"),
    Target("resident, idle, pool of 1,024", "idle", "resident", 60, None, unit="MB"),
    Target("resident per idle connection of 10,000", "idle-10000", "each", 4, None, unit="KiB"),
)
AT_SCALE = "64 B x 10,000: CPU per message, to that at 50"
SCALE_LIMIT = 1.3


def judge(outcomes: Mapping[str, Outcome]) -> list[list[str]]:
    """Return a row for each target that was measured: title, limit, result with spread, verdict."""
    rows = []
    for target in TARGETS:
        outcome = outcomes.get(target.workload)
        rounds = outcome.rounds if outcome else {}
        if target.kind not in rounds or (target.of and target.of not in rounds):
            continue
        found = relative(rounds[target.kind], rounds[target.of]) if target.of else absolute(rounds[target.kind])
        if target.metric not in found:
            continue
        median, low, high, _ = found[target.metric]
        rows.append(_row(target.title, target.limit, target.unit, median, f"{low:.2f} to {high:.2f}"))
    few, many = (outcomes[name].rounds.get("echod") if name in outcomes else None for name in ("64B-50", "64B-10000"))
    if few and many:
        ratio = absolute(many)["cpu"].median / absolute(few)["cpu"].median
        rows.append(_row(AT_SCALE, SCALE_LIMIT, "x", ratio, "of two medians"))
    return rows


def _row(title: str, limit: float, unit: str, value: float, among: str) -> list[str]:
    return [title, f"{limit:g} {unit}", f"{value:.2f} ({among})", "met" if value <= limit else "missed"]
