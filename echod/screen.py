"""The daemon's answers as text for people: one screen about its state, and a table of connections.

Plain text for any terminal or pipe. A line that needs attention begins with an exclamation mark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from echod.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Line = tuple[bool, str, str]

BAR = 30
"""Characters in the bar that shows how full the pool is."""
RECENT = 5
"""Rejected clients shown, of those in the answer."""
NEARLY_FULL = 0.9
"""The part of the pool in use from which its line needs attention."""
EXPIRES_SOON = 14 * 86400.0
"""Seconds before its end from which the certificate needs attention."""
LATE = 1.0
"""Seconds for which lines of the log may be held until that needs attention."""
_WHEN_FULL = {"reject": "the next client is closed at once", "wait": "the next client waits in the backlog"}
_COLUMNS = ("ID", "CLIENT", "AGE", "IDLE", "BYTES", "PENDING", "STATE", "RTT", "RETRANS")
_LEFT_ALIGNED = ("INSTANCE", "CLIENT", "STATE")
_INSTANCE_COLUMNS = (
    *("INSTANCE", "STATE", "PID", "UP", "IN USE", "SIZE"),
    *("ACCEPTED/S", "REJECTED/S", "RECEIVED/S", "SENT/S", "LOOP LAG"),
)
_BRIEF = ("echod", "instances", "pool", "rates", "rejected")
"""The lines that a screen begins with if there is not much room."""
_UNKNOWN = "?"
"""What the kernel doesn't tell."""


def status(answer: Mapping[str, Any]) -> str:
    """Return the screen for an answer to `GET /status`."""
    return _text(_lines(answer))


def instances(answers: Mapping[str, Mapping[str, Any]], total: Mapping[str, Any], missing: int) -> str:
    """Return the screen for several instances: totals, a row for each, and the lines of each that need attention.

    `missing` is how many have not answered.
    """
    return _text([*_total_lines(len(answers), missing, total), *_recent(total)]) + _instances(answers)


def brief(answer: Mapping[str, Any]) -> str:
    """Return the first lines of a screen about one daemon, and those that need attention."""
    return _text(line for line in _lines(answer) if line[0] or line[1] in _BRIEF)


def brief_instances(answers: Mapping[str, Mapping[str, Any]], total: Mapping[str, Any], missing: int) -> str:
    """Return the first lines of a screen about several instances, a row for each, and the lines that need attention."""
    lines = _total_lines(len(answers), missing, total)
    return _text(line for line in lines if line[0] or line[1] in _BRIEF) + _instances(answers)


def _text(lines: Iterable[Line]) -> str:
    return "".join(f"{'!' if attention else ' '} {name:<10} {text}\n" for attention, name, text in lines)


def _total_lines(number: int, missing: int, total: Mapping[str, Any]) -> Iterator[Line]:
    yield missing > 0, "instances", f"{number} of {number + missing} answer" if missing else str(number)
    yield next(_pool(total["pool"]))
    yield from _listeners(total["listeners"], total["missing"])
    yield from _counts(total)


def _instances(answers: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [_instance_cells(name, answer) for name, answer in answers.items()]
    lines = [
        (True, name, f"{topic:<10} {text}")
        for name, answer in answers.items()
        for attention, topic, text in _lines(answer)
        if attention
    ]
    table = "".join(f"  {line}\n" for line in _table(_INSTANCE_COLUMNS, rows).splitlines())
    return f"\n{table}{_text(lines)}"


def _instance_cells(name: str, answer: Mapping[str, Any]) -> tuple[str, ...]:
    pool, rates = answer["pool"], answer["rates"]
    return (
        name,
        answer["state"],
        str(answer["pid"]),
        span(answer["uptime"]),
        f"{pool['in_use']:,}",
        f"{pool['size']:,}",
        f"{rates['accepted']:,.0f}",
        f"{rates['rejected']:,.0f}",
        size(rates["bytes_received"]),
        size(rates["bytes_sent"]),
        fine(answer["loop_lag"]["last"]),
    )


def _lines(answer: Mapping[str, Any]) -> Iterator[Line]:
    """Yield for each line whether it needs attention, its name, and its text."""
    uptime = span(answer["uptime"])
    text = f"{answer['version']}, {answer['state']}, pid {answer['pid']}, up {uptime}"
    yield answer["state"] != "running", "echod", text
    if duck := answer["lame_duck"]:
        yield True, "lame duck", _lame_duck(duck)
    yield from _configuration(answer["config"] or "defaults", answer["reload"])
    yield from _pool(answer["pool"])
    yield from _listeners(answer["listeners"], answer["missing"])
    yield from _counts(answer)
    yield from _recent(answer)
    yield from _health(answer)


def _lame_duck(duck: Mapping[str, Any]) -> str:
    left = duck["remaining"]
    end = "`echod lame-duck --off` takes it back" if left is None else f"the drain begins in {span(left)}"
    return f"accepting, but not ready for {span(duck['age'])}; {end}"


def _configuration(file: str, last: Mapping[str, Any]) -> Iterator[Line]:
    ago = f"{span(last['age'])} ago"
    if last["success"]:
        yield False, "config", f"{file}, loaded {ago}"
    else:
        yield True, "config", f"{file}, a reload was refused {ago}:"
    for line in [*last["errors"], *(f"warning: {warning}" for warning in last["warnings"])]:
        yield True, "", printable(line)


def _pool(pool: Mapping[str, Any]) -> Iterator[Line]:
    part = pool["in_use"] / pool["size"]
    filled = round(BAR * min(1.0, part))
    bar = f"[{'#' * filled}{'.' * (BAR - filled)}]"
    yield part >= NEARLY_FULL, "pool", f"{bar} {pool['in_use']:,} of {pool['size']:,} in use, {part * 100:.0f} %"
    yield False, "when full", _WHEN_FULL[pool["when_full"]]


def _listeners(listeners: Sequence[Mapping[str, Any]], missing: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    if not listeners and not missing:
        yield True, "listeners", "none"
    name = "listeners"
    lacking = {each["listener"] for each in missing}  # these have a line with the reason, below
    for each in listeners:
        if each["state"] == "missing" and each["listener"] in lacking:
            continue
        text = f"{each['listener']} {each['state']}"
        if not each["listener"].startswith("udp:"):
            text += f", {_count(each['queued'])} of {_count(each['backlog'])} in the backlog"
        yield each["state"] in ("paused", "missing"), name, text
        name = ""
    for each in missing:
        yield True, name, f"{each['listener']} missing: {each['reason']}"
        name = ""


def _count(number: int | None) -> str:
    return _UNKNOWN if number is None else f"{number:,}"


def _counts(answer: Mapping[str, Any]) -> Iterator[Line]:
    rates, counts = answer["rates"], answer["connections"]
    clients = f"{rates['accepted']:,.0f}/s accepted, {rates['rejected']:,.0f}/s rejected"
    moving = f"{size(rates['bytes_received'])}/s received, {size(rates['bytes_sent'])}/s sent"
    yield False, "rates", f"{clients}, {moving}"
    yield False, "bytes", f"{size(answer['bytes_received'])} received, {size(answer['bytes_sent'])} sent"
    yield False, "accepted", f"{counts['accepted']:,}"
    yield False, "closed", _by_reason(counts["closed"])
    yield False, "rejected", _by_reason(counts["rejected"])
    if answer["udp"]:
        yield from _udp(answer["udp"])


def _recent(answer: Mapping[str, Any]) -> Iterator[Line]:
    for each in answer["rejections"][:RECENT]:
        yield False, "", f"{client(each['client'])} {each['reason']}, {span(each['age'])} ago"
    sources = ", ".join(f"{each['source']} {each['connections']:,}" for each in answer["sources"])
    yield False, "sources", sources or "none"


def _udp(udp: Mapping[str, Any]) -> Iterator[Line]:
    moved = f"{size(udp['bytes_received'])} received, {size(udp['bytes_sent'])} sent"
    yield False, "udp", f"{_by_reason(udp['datagrams'])}; {moved}"
    if udp["kernel_drops"]:
        yield True, "", f"{udp['kernel_drops']:,} datagrams found the queue of their socket full"


def _health(answer: Mapping[str, Any]) -> Iterator[Line]:
    paused, lag = answer["accept_paused_seconds"], answer["loop_lag"]
    if paused:
        yield True, "paused", f"{fine(paused)} without accepting, for lack of descriptors or memory"
    if tls := answer["tls"]:
        if tls["valid_in"]:
            when = f"not valid for another {span(tls['valid_in'])} ({tls['not_before']})"
        elif tls["expires_in"] <= 0:
            when = f"expired ({tls['not_after']})"
        else:
            when = f"expires in {span(tls['expires_in'])} ({tls['not_after']})"
        name = tls["subject"] or tls["certificate"]  # some authorities leave the subject empty
        yield tls["valid_in"] > 0 or tls["expires_in"] < EXPIRES_SOON, "tls", f"{name}, {when}"
    yield False, "rtt", _round_trips(answer["tcp"])
    yield False, "loop lag", f"{fine(lag['last'])} now; since the start p99 {fine(lag['p99'])}, max {fine(lag['max'])}"
    yield _log(answer["log"])


def _round_trips(tcp: Mapping[str, Any]) -> str:
    rtt = tcp["rtt"]
    if rtt["max"] is None:
        return "not measured yet"
    figures = ", ".join(f"{name} {fine(seconds)}" for name, seconds in rtt.items())
    return f"of closed connections {figures}; {tcp['retrans']:,} segments sent again"


def _log(log: Mapping[str, Any]) -> Line:
    held_since, error = log["held_since"] or 0.0, log["error"]
    text = f"{log['dropped']:,} lines dropped" if log["dropped"] else "no lines dropped"
    if held_since >= LATE or (log["held"] and error):
        text += f", {log['held']:,} held for {span(held_since)}: {error or 'standard output takes nothing'}"
    elif error:
        text += f"; its file was moved or removed, and can't be opened again: {error}"
    return text != "no lines dropped", "log", text


def _by_reason(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
    return f"{total:,}: {reasons}" if total else "0"


def connections(rows: Sequence[Mapping[str, Any]], *, several: bool = False) -> str:
    """Return the table for the rows of `GET /connections`; those of several instances have their `instance`."""
    if not several:
        return _table(_COLUMNS, [_cells(str(row["connection"]), row) for row in rows])
    cells = []
    for row in rows:
        name = row["instance"]
        cells.append((name, *_cells(f"{name}/{row['connection']}", row)))
    return _table(("INSTANCE", *_COLUMNS), cells)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        aligned = [
            cell.ljust(width) if name in _LEFT_ALIGNED else cell.rjust(width)
            for name, cell, width in zip(columns, cells, widths, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip() + "\n")
    return "".join(lines)


def _cells(number: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    pending, tcp = row["pending"], row["tcp"]
    return (
        number,
        client(row["client"]),
        span(row["age"]),
        span(row["idle"]),
        size(row["bytes_received"]),
        _UNKNOWN if pending is None else size(pending),
        row["state"],
        fine(tcp["rtt"]) if tcp else _UNKNOWN,
        str(tcp["retrans"]) if tcp else _UNKNOWN,
    )


def client(fields: Mapping[str, Any]) -> str:
    """Return the client's address with its port, or its user and its process."""
    if "uid" in fields:
        return ",".join(f"{name}:{_UNKNOWN if fields[name] is None else fields[name]}" for name in ("uid", "pid"))
    address, port = fields["address"], fields["port"]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def size(number: float) -> str:
    """Return a number of bytes in the largest unit that gives at least 1 (SI: 1 kB is 1,000 bytes)."""
    if number < 1000:  # noqa: PLR2004 - SI
        return f"{number:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        number /= 1000
        if number < 999.95:  # noqa: PLR2004 - above, it would be rounded to 1000.0
            return f"{number:.1f} {unit}"
    return f"{number / 1000:,.1f} PB"


def span(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{int(seconds)}s"
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {left}s"


def fine(seconds: float) -> str:
    """Return a short duration in µs, ms or s."""
    if seconds < 1e-3:  # noqa: PLR2004 - a millisecond
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
