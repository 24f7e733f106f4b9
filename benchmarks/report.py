"""Writes what was measured: tables for a terminal and for docs/performance.md, and a JSON file with every sample.

Knows nothing of how numbers were measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.servers import KINDS
from benchmarks.summary import Spread, absolute, relative

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.bench import Outcome

Row = list[str]
Table = list[Row]
BEGIN = "<!-- results: written by make bench -->\n"
END = "<!-- end of results -->\n"


class Column(NamedTuple):
    """One metric."""

    metric: str
    title: str
    form: str = ".0f"
    scale: float = 1.0
    ratio: bool = True
    spread: bool = False
    """Whether the ratio is shown with its spread."""


COLUMNS = (
    Column("cpu", "CPU us", ".2f", spread=True),
    Column("rate", "per s"),
    Column("p50", "p50 us"),
    Column("p99", "p99 us"),
    Column("p99.9", "p99.9 us"),
    Column("resident", "MB", ".1f"),
    Column("busy", "busy %", scale=100, ratio=False),
    Column("waited", "waited %", ".1f", scale=100, ratio=False),
)
IDLE = (
    Column("cpu_share", "CPU %", ".3f", ratio=False),
    Column("wakeups", "wake-ups per s", ".1f", ratio=False),
    Column("resident", "MB", ".1f"),
    Column("each", "KiB per connection", ".2f", ratio=False),
    Column("ready", "ready after ms", scale=1000),
)


def table(outcome: Outcome) -> Table:
    """Return a heading and a row for each server."""
    idle = outcome.workload.mode == "idle"
    floor = outcome.rounds.get("floor", {})
    columns = [column for column in (IDLE if idle else COLUMNS) if _has(outcome, column.metric)]
    rows = [["", *(column.title for column in columns)]]
    for name, rounds in outcome.rounds.items():
        values, ratios = absolute(rounds), relative(rounds, floor)
        rows.append([name, *(_cell(column, values, ratios, own=name == "floor") for column in columns)])
    return rows


def _has(outcome: Outcome, metric: str) -> bool:
    return any(metric in sample for rounds in outcome.rounds.values() for sample in rounds.values())


def _cell(column: Column, values: Mapping[str, Spread], ratios: Mapping[str, Spread], *, own: bool) -> str:
    if column.metric not in values:
        return ""
    text = f"{values[column.metric].median * column.scale:,{column.form}}"
    if own or not column.ratio or column.metric not in ratios:
        return text
    ratio = ratios[column.metric]
    among = f" ({ratio.low:.2f}-{ratio.high:.2f})" if column.spread else ""
    return f"{text} x{ratio.median:.2f}{among}"


def title(outcome: Outcome) -> str:
    """Return the heading of its table."""
    rate = f", {outcome.rate:,.0f} messages a second" if outcome.rate else ""
    return f"{outcome.workload.title}{rate}"


def remarks(outcome: Outcome) -> list[str]:
    """Return what is not in the table, and why."""
    lines = [f"{name}: skipped, {reason}" for name, reason in outcome.skipped.items()]
    for name, errors in outcome.failed.items():
        lines.append(f"{name}: {len(errors)} runs failed, the first with: {errors[0]}")
    return lines


class _Style(NamedTuple):
    """How a report is written for one kind of reader."""

    table: Callable[[Table], list[str]]
    heading: Callable[[str], str]
    item: Callable[[str], str]


def text(heads: list[str], judged: Table, outcomes: list[Outcome], beside: Mapping[str, list[str]]) -> str:
    """Return the report as a terminal shows it."""
    return "\n".join(_report(heads, judged, outcomes, beside, _Style(_aligned, "\n{}".format, "  {}".format)))


def markdown(heads: list[str], judged: Table, outcomes: list[Outcome], beside: Mapping[str, list[str]]) -> str:
    """Return the report as docs/performance.md has it."""
    return "\n".join(_report(heads, judged, outcomes, beside, _Style(piped, "\n### {}\n".format, "- {}".format))) + "\n"


def _report(
    heads: list[str], judged: Table, outcomes: list[Outcome], beside: Mapping[str, list[str]], style: _Style
) -> list[str]:
    lines = [style.item(head) for head in heads]
    if judged:
        lines += [style.heading("Targets"), *style.table([["", "at most", "measured", ""], *judged])]
    for outcome in outcomes:
        lines.append(style.heading(title(outcome)))
        if outcome.rounds:
            lines += style.table(table(outcome))
        if noted := remarks(outcome):
            lines += ["", *map(style.item, noted)]
    for name, said in beside.items():
        lines += [style.heading(name), *(f"    {line}" for line in said)]
    return lines


def _aligned(rows: Table) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def piped(rows: Table) -> list[str]:
    """Return the lines of the table in Markdown."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [head, f"|---|{'---:|' * (len(rows[0]) - 1)}", *body]


def as_json(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Return everything: all samples, their summary, and their ratios to the floor of the same round."""
    whole = []
    for outcome in outcomes:
        floor = outcome.rounds.get("floor", {})
        servers: dict[str, Any] = {
            name: {
                "samples": rounds,
                "summary": {metric: value._asdict() for metric, value in absolute(rounds).items()},
                "ratio_to_floor": {metric: value._asdict() for metric, value in relative(rounds, floor).items()},
            }
            for name, rounds in outcome.rounds.items()
        }
        work = outcome.workload
        whole.append(
            {
                "name": work.name,
                "title": work.title,
                "connections": work.connections,
                "size": work.size,
                "mode": work.mode,
                "processes": work.processes,
                "rate": outcome.rate,
                "servers": servers,
                "skipped": outcome.skipped,
                "failed": outcome.failed,
            }
        )
    return whole


def legend() -> list[str]:
    """Return who is who."""
    return [f"{kind.name}: {kind.about}" for kind in KINDS.values()]


def replaced(document: str, results: str) -> str:
    """Return the document with these results in the place marked for them. Raises `ValueError` if there is none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no lines {BEGIN.strip()} and {END.strip()}")
    return f"{before}{begin}\n{results}\n{end}{after}"
