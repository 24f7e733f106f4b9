"""Three books of one run: the clients', the log's, and those of /metrics. They have to agree.

Knows nothing of where they come from.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from tests.support.log_document import check_line
from tests.support.scraping import Series, by_reason, total

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from multiprocessing.connection import Connection

    from tests.soak.clients import Books, Outcome

CLOSED: tuple[Outcome, ...] = ("eof", "reset", "idle_timeout", "write_timeout")
_EXACT = 64
"""Of so many lines about connections, one is looked at in every detail."""
_SHOWN = 10


class Check(NamedTuple):
    """A promise, whether it was kept, and what was found."""

    name: str
    kept: bool
    found: str


class LogBooks:
    """What the lines of the log add up to."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()  # by reason
        self.received: Counter[str] = Counter()  # bytes, by reason
        self.sent: Counter[str] = Counter()
        self.rejected = 0
        self.open: set[int] = set()  # connections that were opened and not closed
        self.stopped: dict[str, Any] = {}
        self.wrong: list[str] = []

    def take(self, raw: bytes) -> None:
        """Enter one line."""
        try:
            line = orjson.loads(raw)
            event = line["event"]
            self.events[event] += 1
            assert event != "internal.error", "a bug"
            if event == "connection.opened":
                self.open.add(line["connection"])
            elif event == "connection.closed":
                self._close(line)
            elif event == "connection.rejected":
                self.rejected += 1 + sum(line.get("suppressed", {}).values())
            elif event == "daemon.stopped":
                self.stopped = line
            if not event.startswith("connection.") or self.events[event] % _EXACT == 1:
                check_line(line)
        except (ValueError, KeyError, AssertionError) as error:
            if len(self.wrong) < _SHOWN:
                self.wrong.append(f"{error!r}: {raw.decode(errors='replace').strip()}")

    def _close(self, line: dict[str, Any]) -> None:
        reason = line["reason"]
        self.closed[reason] += 1
        self.received[reason] += line["bytes_received"]
        self.sent[reason] += line["bytes_sent"]
        self.open.remove(line["connection"])  # else it was not opened, or closed twice


def read_log(_: Connection, log: Connection) -> LogBooks:
    """Read the log to its end, in a process of its own: nobody else keeps up with it."""
    books = LogBooks()
    with open(log.fileno(), "rb", closefd=False) as lines:
        for line in lines:
            books.take(line)
    return books


def compare(clients: Books, log: LogBooks, metrics: Mapping[Series, float], reloads: tuple[int, int]) -> list[Check]:
    """Return what has to hold between the books; `reloads` are the good and the bad ones."""
    problems = {
        "books: connections": _connections(clients, log, metrics),
        "books: bytes": _bytes(clients, log, metrics),
        "books: log": _log(log, metrics, reloads),
        "clients": clients.failures,
    }
    found = {
        "books: connections": f"{log.closed.total():,} served, {log.rejected:,} refused: clients, log and metrics say the same",
        "books: bytes": f"{log.sent.total():,} echoed, all of them right",
        "books: log": f"{log.events.total():,} lines, none lost, none out of place",
        "clients": f"{clients.ended.total():,}, nobody got what was not theirs or was cut without a reason",
    }
    return [
        Check(name, not each, "; ".join(each[:_SHOWN]) if each else found[name])
        for name, each in ((name, list(each)) for name, each in problems.items())
    ]


def _connections(clients: Books, log: LogBooks, metrics: Mapping[Series, float]) -> Iterator[str]:
    closed = by_reason(dict(metrics), "echod_connections_closed_total")
    rejected = by_reason(dict(metrics), "echod_connections_rejected_total")
    accepted = int(total(dict(metrics), "echod_connections_accepted_total"))
    unknown = clients.count("unknown")
    numbers = {
        "accepted and opened": (accepted, log.events["connection.opened"]),
        "accepted, at the end": (accepted, log.stopped.get("connections")),
        "accepted and closed": (accepted, closed.total()),
        "closed and the histogram": (accepted, metrics.get(("echod_connection_duration_seconds_count", ()))),
        "closed, by reason": (+closed, +log.closed),
        "rejected": (rejected.total(), log.rejected),
        "came, and were accepted or rejected": (clients.ended.total(), accepted + rejected.total()),
        "denied": (sum(n for (kind, _), n in clients.ended.items() if kind == "denied"), rejected["denied"]),
        "ended by no reason that was given": (0, sum((closed - Counter(dict.fromkeys(CLOSED, accepted))).values())),
    }
    yield from (f"{name}: {one}, {other}" for name, (one, other) in numbers.items() if one != other)
    if log.open:
        yield f"never closed: {sorted(log.open)[:_SHOWN]}"
    for reason in (*CLOSED, "refused"):
        seen, found = clients.count(reason), rejected.total() if reason == "refused" else closed[reason]
        if not seen <= found <= seen + unknown:
            yield f"{reason}: {seen} seen by clients and {unknown} that cannot know, {found} counted"


def _bytes(clients: Books, log: LogBooks, metrics: Mapping[Series, float]) -> Iterator[str]:
    for name, counted in (("received", log.received), ("sent", log.sent)):
        metric = total(dict(metrics), f"echod_{name}_bytes_total")
        if metric != counted.total():
            yield f"{name}: {metric:.0f} in the metrics, {counted.total()} in the log"
    whole = {clients.sent["eof"], clients.got["eof"], log.received["eof"], log.sent["eof"]}
    if len(whole) > 1:
        yield f"of connections that ended well: {sorted(whole)}"
    for reason in CLOSED:
        way = [
            clients.got[reason],
            log.sent[reason],
            log.received[reason],
            clients.sent[reason] + clients.sent["unknown"],
        ]
        if way != sorted(way):
            yield f"{reason}: heard, sent, received and said, each at most the next: {way}"


def _log(log: LogBooks, metrics: Mapping[Series, float], reloads: tuple[int, int]) -> Iterator[str]:
    yield from log.wrong
    told = log.events["config.reloaded"], log.events["config.rejected"]
    if told != reloads:
        yield f"reloads, good and bad: {told} in the log, {reloads} asked for"
    if dropped := metrics.get(("echod_log_dropped_lines_total", ())):
        yield f"{dropped:.0f} lines dropped"
    if log.stopped.get("aborted"):
        yield f"{log.stopped['aborted']} connections cut at the end"
