"""What the daemon says of itself, for people: one screen, and a table of connections.

Knows nothing of where it comes from. It is text that any terminal shows and any pipe takes; a line that wants attention
begins with an exclamation mark.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BAR = 30
"""Characters."""
RECENT = 5
"""Refused clients."""
NEARLY = 0.9
"""Of the pool in use, so much wants attention."""
_WHEN_FULL = {"reject": "the next client is closed at once", "wait": "the next client waits in the backlog"}
_COLUMNS = ("ID", "CLIENT", "AGE", "IDLE", "BYTES", "PENDING", "STATE", "RTT", "RETRANSMITS")
_LEFT = ("CLIENT", "STATE")


def status(answer: Mapping[str, Any]) -> str:
    """Return the screen for an answer to /status."""
    return "".join(f"{'!' if attention else ' '} {name:<10} {text}\n" for attention, name, text in _lines(answer))


def _lines(answer: Mapping[str, Any]) -> Iterator[tuple[bool, str, str]]:
    """Yield whether a line wants attention, what it is about, and what it says."""
    uptime = span(answer["uptime"])
    text = f"{answer['version']}, {answer['state']}, pid {answer['pid']}, up {uptime}"
    yield answer["state"] != "running", "echod", text
    yield from _configuration(answer["config"] or "defaults", answer["reload"])
    yield from _pool(answer["pool"])
    yield from _listeners(answer["listeners"])
    yield from _traffic(answer)
    yield from _health(answer)


def _configuration(file: str, last: Mapping[str, Any]) -> Iterator[tuple[bool, str, str]]:
    ago = _ago(last["timestamp"])
    if last["success"]:
        yield False, "config", f"{file}, loaded {ago}"
        return
    yield True, "config", f"{file}, a reload was refused {ago}:"
    for line in last["errors"]:
        yield True, "", printable(line)


def _pool(pool: Mapping[str, Any]) -> Iterator[tuple[bool, str, str]]:
    part = pool["in_use"] / pool["size"]
    filled = round(BAR * min(1.0, part))
    bar = f"[{'#' * filled}{'.' * (BAR - filled)}]"
    yield part >= NEARLY, "pool", f"{bar} {pool['in_use']:,} of {pool['size']:,} in use, {part * 100:.0f} %"
    yield False, "when full", _WHEN_FULL[pool["when_full"]]


def _listeners(listeners: Sequence[Mapping[str, Any]]) -> Iterator[tuple[bool, str, str]]:
    if not listeners:
        yield True, "listeners", "none"
    name = "listeners"
    for each in listeners:
        text = f"{each['listener']} {each['state']}, {each['queued']:,} of {each['backlog']:,} in the backlog"
        yield each["state"] == "paused", name, text
        name = ""


def _traffic(answer: Mapping[str, Any]) -> Iterator[tuple[bool, str, str]]:
    rates, moved, counts = answer["rates"], answer["bytes"], answer["connections"]
    clients = f"{rates['accepted']:,.0f}/s accepted, {rates['rejected']:,.0f}/s rejected"
    moving = f"{size(rates['bytes_received'])}/s received, {size(rates['bytes_sent'])}/s sent"
    yield False, "rates", f"{clients}, {moving}"
    yield False, "bytes", f"{size(moved['received'])} received, {size(moved['sent'])} sent"
    yield False, "accepted", f"{counts['accepted']:,}"
    yield False, "closed", _by_reason(counts["closed"])
    yield False, "rejected", _by_reason(counts["rejected"])
    for each in answer["rejections"][:RECENT]:
        yield False, "", f"{client(each['client'])} {each['reason']}, {_ago(each['timestamp'])}"
    sources = ", ".join(f"{each['source']} {each['connections']:,}" for each in answer["sources"])
    yield False, "sources", sources or "none"


def _health(answer: Mapping[str, Any]) -> Iterator[tuple[bool, str, str]]:
    paused, lag, dropped = answer["accept_paused_seconds"], answer["loop_lag"], answer["log"]["dropped"]
    if paused:
        yield True, "paused", f"{fine(paused)} without accepting, for lack of descriptors or memory"
    text = f"{fine(lag['last'])} late a moment ago, 99 % within {fine(lag['p99'])}, at most {fine(lag['max'])}"
    yield False, "loop", text
    yield dropped > 0, "log", f"{dropped:,} lines dropped" if dropped else "no line dropped"


def _by_reason(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
    return f"{total:,}: {reasons}" if total else "0"


def connections(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table for rows of /connections."""
    table = [_COLUMNS, *map(_cells, rows)]
    widths = [max(len(cells[number]) for cells in table) for number in range(len(_COLUMNS))]
    lines = []
    for cells in table:
        aligned = [
            cell.ljust(width) if name in _LEFT else cell.rjust(width)
            for name, cell, width in zip(_COLUMNS, cells, widths, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip() + "\n")
    return "".join(lines)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    rtt, retransmits = row["rtt"], row["retransmits"]
    return (
        str(row["id"]),
        client(row["client"]),
        span(row["age"]),
        span(row["idle"]),
        size(row["bytes"]),
        size(row["pending"]),
        row["state"],
        "-" if rtt is None else fine(rtt),
        "-" if retransmits is None else str(retransmits),
    )


def client(of: Mapping[str, Any]) -> str:
    """Return an address with its port."""
    address = of["address"]
    return f"[{address}]:{of['port']}" if ":" in address else f"{address}:{of['port']}"


def size(number: float) -> str:
    """Return bytes in the largest unit that gives at least 1 (SI: a kB is 1,000 bytes)."""
    if number < 1000:  # noqa: PLR2004 - SI
        return f"{number:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        number /= 1000
        if number < 999.95:  # noqa: PLR2004 - what is written as 1000.0 belongs to the next
            return f"{number:.1f} {unit}"
    return f"{number / 1000:,.1f} PB"


def span(seconds: float) -> str:
    """Return a time in its two largest units."""
    if seconds < 60:  # noqa: PLR2004 - of the clock, like those below
        return f"{int(seconds)}s"
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {left}s"


def fine(seconds: float) -> str:
    """Return a time that is usually short: in µs, ms or s."""
    if seconds < 1e-3:  # noqa: PLR2004 - a millisecond
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _ago(timestamp: str) -> str:
    return f"{span(max(0.0, time.time() - datetime.fromisoformat(timestamp).timestamp()))} ago"
