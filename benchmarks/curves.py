"""Draws curves over time as SVG, one chart below the other.

Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.plot import WIDTH, page

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEIGHT, LEFT, RIGHT, HEAD, FOOT = 130, 60, 96, 34, 34
POINTS = 700
"""More than there are places on the screen are left out."""


class Curve(NamedTuple):
    """Points in the order of time, which is in seconds."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]


class Chart(NamedTuple):
    """Curves on one scale: from zero, or with `logarithmic` in powers of ten."""

    title: str
    curves: list[Curve]
    logarithmic: bool = False


def draw(title: str, charts: list[Chart]) -> str:
    """Return the drawing; all charts have the same time below them."""
    longest = max(point[0] for chart in charts for curve in chart.curves for point in curve.points) or 1.0
    parts = [_chart(chart, longest) for chart in charts]
    return page(title, [(part, HEAD + HEIGHT + FOOT) for part in parts])


def _chart(chart: Chart, longest: float) -> str:
    values = [value for curve in chart.curves for _, value in curve.points]
    marks, place = (_powers if chart.logarithmic else _steps)(values)
    right = WIDTH - RIGHT
    parts = [f'<text x="12" y="18" class="title">{escape(chart.title)}</text>']
    for mark in marks:
        y = HEAD + HEIGHT * (1 - place(mark))
        parts += [
            f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" style="stroke: #d8dee4"/>',
            f'<text class="small" x="{LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{mark:,.10g}</text>',
        ]
    for number, curve in enumerate(chart.curves):
        some = curve.points[:: len(curve.points) // POINTS + 1]
        line = " ".join(
            f"{LEFT + (right - LEFT) * at / longest:.1f},{HEAD + HEIGHT * (1 - place(value)):.1f}" for at, value in some
        )
        parts += [
            f'<polyline points="{line}" fill="none" stroke="{curve.color}"/>',
            f'<text class="small" x="{right + 8}" y="{HEAD + 10 + 14 * number}" style="fill: {curve.color}">{escape(curve.name)}</text>',
        ]
    for part in range(6):
        x = LEFT + (right - LEFT) * part / 5
        minutes = longest * part / 5 / 60
        parts.append(
            f'<text class="small" x="{x:.1f}" y="{HEAD + HEIGHT + 14}" text-anchor="middle">{minutes:.3g} min</text>'
        )
    return "\n".join(parts)


def _steps(values: Sequence[float]) -> tuple[list[float], Callable[[float], float]]:
    """Return the marks of a scale from zero, and where on it a value is, from 0 to 1."""
    most = max(values) or 1.0
    power = 10 ** math.floor(math.log10(most))
    step = next(step for part in (0.2, 0.25, 0.5, 1, 2, 2.5) if most <= 5 * (step := part * power))
    top = step * math.ceil(most / step)
    return [step * number for number in range(round(top / step) + 1)], lambda value: value / top


def _powers(values: Sequence[float]) -> tuple[list[float], Callable[[float], float]]:
    """Do the same with the powers of ten around the values, of which none is below a millionth."""
    low = math.floor(math.log10(max(min(values), 1e-6)))
    high = max(low + 1, math.ceil(math.log10(max(*values, 1e-6))))
    marks = [10.0**power for power in range(low, high + 1)]
    return marks, lambda value: (math.log10(max(value, 1e-6)) - low) / (high - low)
