"""What is said of a run: on the screen, as JSON, and as a drawing of memory and latency over time.

Knows nothing of how it was run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks import curves
from tests.soak.books import Check
from tests.soak.clients import Books
from tests.soak.trend import BLOCKS, trend

if TYPE_CHECKING:
    from tests.soak.crowd import Echoes

LEAK = 1.0
"""Bytes per connection: the smallest thing that Python could leave behind takes 16."""
NOISE = 1 << 20
"""Bytes: what comes and goes with a burst, and counts where connections are few."""
_MB = 1e6


class Sample(NamedTuple):
    """What the daemon was like at one moment."""

    at: float
    """Seconds since the begin."""
    memory: int
    """Resident bytes."""
    descriptors: int
    in_use: int
    served: int
    """Connections, by the clients' books."""


@dataclass
class Run:
    """All that is known of a run."""

    about: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    echoes: list[Echoes] = field(default_factory=list)
    clients: Books = field(default_factory=Books)
    checks: list[Check] = field(default_factory=list)

    @property
    def last_half(self) -> list[Sample]:
        """The samples after the warm-up."""
        return self.samples[len(self.samples) // 2 :]


def growth(samples: list[Sample]) -> Check:
    """Judge whether memory grows with time: it does if even the lower edge of the interval is more than noise."""
    if len(samples) < BLOCKS:
        return Check("memory", kept=True, found=f"too short a run to say anything: {len(samples)} samples")
    slope, low, high = line = trend([(each.at, each.memory) for each in samples])
    first, last = samples[0], samples[-1]
    seconds, served = last.at - first.at, last.served - first.served
    kept = low * seconds <= max(NOISE, LEAK * served)
    sure = "indistinguishable from zero" if line.is_none else "no leak: below the bound" if kept else "IT GROWS"
    found = (
        f"{slope * 60:+,.0f} bytes a minute over the last {seconds / 60:.1f} min (95 %: {low * 60:+,.0f} to {high * 60:+,.0f}), "
        f"{slope * seconds / max(1, served):+.2f} bytes per connection, {sure}"
    )
    return Check("memory", kept, found)


def text(run: Run) -> str:
    """Return the report."""
    width = max(len(check.name) for check in run.checks)
    lines = [*run.about, ""]
    lines += [f"{'ok  ' if check.kept else 'FAIL'}  {check.name:{width}}  {check.found}" for check in run.checks]
    lines += ["", *_kinds(run.clients), ""]
    for name, (begin, end) in {"the first tenth": (0, 0.1), "half": (0.45, 0.55), "the last tenth": (0.9, 1)}.items():
        some = run.echoes[int(len(run.echoes) * begin) : int(len(run.echoes) * end) + 1]
        if some:
            p50, p99, most = (sorted(each[part] for each in some)[len(some) // 2] for part in (1, 2, 3))
            lines.append(
                f"an echo at {name}: p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f}, longest in a second {most * 1e3:.2f}"
            )
    return "\n".join(lines)


def _kinds(clients: Books) -> list[str]:
    kinds = dict.fromkeys(kind for kind, _ in clients.ended)
    return [
        f"{kind:15} " + ", ".join(f"{number:,} {how}" for (name, how), number in clients.ended.items() if name == kind)
        for kind in kinds
    ]


def as_json(run: Run) -> dict[str, Any]:
    """Return everything for programs."""
    return {
        "about": run.about,
        "checks": [check._asdict() for check in run.checks],
        "clients": [{"kind": kind, "ended": how, "count": number} for (kind, how), number in run.clients.ended.items()],
        "samples": [sample._asdict() for sample in run.samples],
        "echoes": [echoes._asdict() for echoes in run.echoes],
    }


def drawing(run: Run) -> str:
    """Return memory, latency and connections over time as SVG."""
    charts = [
        curves.Chart(
            "Resident memory, MB",
            [
                curves.Curve("resident", "#1f77b4", [(each.at, each.memory / _MB) for each in run.samples]),
                *_fit(run.last_half),
            ],
        )
    ]
    if run.echoes:
        parts = {"p50": "#6baed6", "p99": "#1f77b4", "longest": "#d6a15f"}
        lines = [
            curves.Curve(name, color, [(each.at, getattr(each, name) * 1e3) for each in run.echoes])
            for name, color in parts.items()
        ]
        charts.append(curves.Chart("Time for an echo of 64 bytes beside all that, ms", lines, logarithmic=True))
    pairs = list(zip(run.samples, run.samples[1:], strict=False))
    rate = [(now.at, (now.served - before.served) / (now.at - before.at)) for before, now in pairs]
    seats = [(each.at, each.in_use) for each in run.samples]
    if rate:
        charts.append(curves.Chart("Connections served in a second", [curves.Curve("served", "#1f77b4", rate)]))
    charts.append(curves.Chart("Workers in use", [curves.Curve("in use", "#1f77b4", seats)]))
    return curves.draw(run.about[0], charts)


def _fit(samples: list[Sample]) -> list[curves.Curve]:
    if len(samples) < BLOCKS:
        return []
    slope = trend([(each.at, each.memory) for each in samples]).slope
    middle, mean = (sum(each[part] for each in samples) / len(samples) for part in (0, 1))
    ends = [(at, (mean + slope * (at - middle)) / _MB) for at in (samples[0].at, samples[-1].at)]
    return [curves.Curve("trend", "#c0392b", ends)]
