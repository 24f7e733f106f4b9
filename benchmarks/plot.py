"""Draws bars as SVG: a panel for each workload, a bar for each server, with the spread as a line across its end.

Knows nothing of what the numbers mean.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

WIDTH, LABELS, BAR, GAP, HEAD, FOOT = 760, 130, 16, 6, 34, 26
VALUE = 92  # room for the number behind the longest bar
COLORS = {"floor": "#8a8f98", "echod": "#1f77b4", "echod-quiet": "#6baed6"}
OTHERS = "#d6a15f"
STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #24292f } .title { font-size: 14px; font-weight: 600 }
.small { font-size: 10px } line { stroke: #24292f } .goal { stroke: #c0392b; stroke-dasharray: 4 3 }
svg { background: #fff }
</style>"""


class Bar(NamedTuple):
    """A value and the range it came from."""

    name: str
    value: float
    low: float
    high: float


class Panel(NamedTuple):
    """Bars on one scale, and a line that they should not cross."""

    title: str
    bars: list[Bar]
    goal: float | None = None


def draw(title: str, panels: list[Panel], form: str = ".2f", *, alike: bool = False) -> str:
    """Return the drawing; `alike` says that all panels have one scale.

    A bar that is several times as long as most of those on its scale is cut off; its number is not.
    """
    return page(
        title,
        [
            (_panel(panel, form, _longest(panels if alike else [panel])), HEAD + len(panel.bars) * (BAR + GAP) + FOOT)
            for panel in panels
        ],
    )


def page(title: str, panels: Iterable[tuple[str, int]]) -> str:
    """Return a drawing of parts, each with its height, one below the other."""
    height = 30
    parts = []
    for panel, needs in panels:
        parts.append(f'<g transform="translate(0 {height})">{panel}</g>')
        height += needs
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    shown = f'<text x="12" y="22" class="title">{escape(title)}</text>'
    return "\n".join([head, STYLE, '<rect width="100%" height="100%" fill="#fff"/>', shown, *parts, "</svg>\n"])


def _longest(panels: list[Panel]) -> float:
    """Return the value that takes all of the width."""
    bars = [bar for panel in panels for bar in panel.bars]
    middle = sorted(bar.value for bar in bars)[len(bars) // 2]
    goal = max(panel.goal or 0.0 for panel in panels)
    return max(min(max(bar.high for bar in bars), 4 * middle), goal) or 1.0


def _panel(panel: Panel, form: str, longest: float) -> str:
    most = WIDTH - LABELS - VALUE
    scale = most / longest
    parts = [f'<text x="12" y="18" class="title">{escape(panel.title)}</text>']
    for index, bar in enumerate(panel.bars):
        y = HEAD + index * (BAR + GAP)
        end = min(most, bar.value * scale)
        low, high = (LABELS + min(most, edge * scale) for edge in (bar.low, bar.high))
        color = COLORS.get(bar.name, OTHERS)
        number = max(LABELS + end, high) + 6
        parts += [
            f'<text x="{LABELS - 8}" y="{y + 12}" text-anchor="end">{escape(bar.name)}</text>',
            f'<rect x="{LABELS}" y="{y}" width="{end:.1f}" height="{BAR}" fill="{color}"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + BAR / 2}" y2="{y + BAR / 2}"/>',
            f'<text x="{number:.1f}" y="{y + 12}">{bar.value:,{form}}</text>',
        ]
    if panel.goal is not None:
        x = LABELS + panel.goal * scale
        bottom = HEAD + len(panel.bars) * (BAR + GAP)
        parts += [
            f'<line class="goal" x1="{x:.1f}" x2="{x:.1f}" y1="{HEAD - 4}" y2="{bottom}"/>',
            f'<text class="small" x="{x:.1f}" y="{bottom + 10}" text-anchor="middle">at most {panel.goal:g}</text>',
        ]
    return "\n".join(parts)
