"""`echod bench`: load at a fixed rate, and how long the echoes take.

The loop is open: message n is due n/rate seconds after the first one and goes out then, whatever the ones before it do. Its
latency counts from that moment. So a service that stops for 100 ms delays each message that was due meanwhile, as it would delay
that many users. A client that waited for an echo before it sent again would see one slow message.

Without a rate, each connection sends when it has its echo. Such a closed loop measures how much the service can do, not how long
its users wait.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from echod.client.exchange import Exchange
from echod.client.figures import Distribution
from echod.client.paths import NO_SERVICE
from echod.client.signals import Signals
from echod.client.streams import Message
from echod.client.tally import CRITICAL, OK, WARNING
from echod.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from echod.client.difference import Difference
    from echod.client.paths import Route
    from echod.client.streams import Failure, Link

TIMEOUT = 10.0
"""Seconds from the sending of a message until it is lost."""
DATAGRAM_TIMEOUT = 1.0
"""The same over UDP. It is shorter, because in a closed loop a socket sends nothing while it waits for a lost message."""
LATE = 0.01
"""Seconds by which the client may send 1 % of its messages late, and still have kept its schedule."""
_AT_ONCE = 64
"""Connections that are opened at one time: fewer than a usual backlog."""
_GRACE = 0.1
"""Seconds after the end in which messages are still sent that were due before."""
_BURST = 64
"""Messages that are due at the same time and sent before the next look at what has come back."""
_PAUSE = 0.1
"""Seconds between two attempts to open a connection that has failed."""
_TOLD = 1.0
"""Seconds between two calls of `progress`."""
_STARTS = 4096
"""Places in the random bytes at which a message may begin, so that one is not like the next."""


class Options(NamedTuple):
    """The load."""

    rate: float | None
    """Messages a second; `None`: a closed loop."""
    connections: int
    duration: float
    """Seconds."""
    size: int
    """Bytes."""


class Bench:
    """Sends the messages and keeps the books. `progress` gets the number of echoes, and the figures so far, each second."""

    def __init__(self, route: Route, options: Options, progress: Callable[[int, float, Distribution], None]) -> None:
        self._route = route
        self._options = options
        self._progress = progress
        self._pattern = os.urandom(options.size + _STARTS)
        self._start = 0
        timeout = DATAGRAM_TIMEOUT if route.target.kind == "udp" else TIMEOUT
        self._exchange = Exchange(route, timeout, self, self._payload)
        self._slots: list[Link] = []
        self._until = -math.inf
        self._opened_at: dict[int, float] = {}
        self._idle: list[int] = []  # slots of a closed loop whose message has found an end, but no echo
        self._greetings = 0
        self._is_measuring = False
        self._latency = Distribution()
        self._lateness = Distribution()
        self._errors: dict[str, int] = {}
        self._first_wrong: str | None = None
        self._lost = self._wrong = self._late = self._duplicates = self._unsent = 0

    def run(self) -> tuple[int, dict[str, Any]]:
        """Return the exit code and the report. Raises `Refusal` if not every connection echoes one message before."""
        try:
            with Signals(self._exchange.poller) as signals:
                self._greet(signals)
                took = self._measure(signals)
            self._exchange.finish(self._latency.most)
        finally:
            for stream in self._slots:
                stream.close()
            self._exchange.close()
        return self.report(took)

    def _measure(self, signals: Signals) -> float:
        """Return how long messages were sent, in seconds."""
        self._is_measuring = True
        began = time.monotonic()
        self._until = began + self._options.duration
        if self._options.rate:
            self._open_loop(signals, began, self._options.rate)
        else:
            self._closed_loop(signals)
        took = time.monotonic() - began if signals.stopped else self._options.duration
        while self._exchange.is_busy() and not signals.stopped:
            self._exchange.turn(math.inf)
        return took

    def _payload(self, size: int) -> bytes:
        self._start = (self._start + 131) % _STARTS
        return self._pattern[self._start : self._start + size]

    def _greet(self, signals: Signals) -> None:
        """Open all connections. Each must echo one message first: a server that does not echo gets no load."""
        number = self._options.connections
        while self._greetings < number and not signals.stopped:
            while len(self._slots) < min(number, self._greetings + _AT_ONCE):
                stream = self._exchange.open(self._route.addresses)
                self._slots.append(stream)
                self._exchange.send(stream, Message(len(self._slots), self._options.size, time.monotonic()))
            self._exchange.turn(math.inf)

    def _open_loop(self, signals: Signals, began: float, rate: float) -> None:
        number, total = 0, math.ceil(rate * self._options.duration)
        told = began
        while number < total and time.monotonic() < self._until + _GRACE and not signals.stopped:
            for _ in range(_BURST):
                due, now = began + number / rate, time.monotonic()
                if now < due or number == total:
                    break
                self._lateness.add(now - due)
                self._send(number, due, now)
                number += 1
            self._exchange.turn(min(began + number / rate, told + _TOLD))
            told = self._tell(began, told)
        self._unsent = 0 if signals.stopped else total - number

    def _closed_loop(self, signals: Signals) -> None:
        began = told = time.monotonic()
        self._idle = list(range(self._options.connections))
        while time.monotonic() < self._until and not signals.stopped:
            idle, self._idle = self._idle, []
            for number in idle:
                now = time.monotonic()
                self._send(number, now, now)
            self._exchange.turn(min(self._until, told + _TOLD))
            told = self._tell(began, told)

    def _send(self, number: int, due: float, now: float) -> None:
        slot = number % len(self._slots)
        message = Message(number, self._options.size, due)
        stream = self._slots[slot]
        if (stream.end or stream.is_retired) and now >= self._opened_at.get(slot, 0) + _PAUSE:
            self._opened_at[slot] = now
            stream = self._slots[slot] = self._exchange.open(self._route.addresses)
        self._exchange.send(stream, message)

    def _tell(self, began: float, told: float) -> float:
        """Show the progress each second; return when it was shown last."""
        now = time.monotonic()
        if now < told + _TOLD:
            return told
        self._progress(self._latency.count, now - began, self._latency)
        return now

    def report(self, took: float = 0.0, error: str | None = None) -> tuple[int, dict[str, Any]]:
        """Return the exit code, and what was measured in `took` seconds. `error` says why nothing was measured."""
        options, latency = self._options, self._latency
        late = self._lateness.quantile(0.99) > LATE or self._unsent > 0
        code = CRITICAL if self._wrong or not latency.count else WARNING if self._lost or late else OK
        rate = latency.count / took if took else 0.0
        return code, {
            "target": str(self._route.target),
            "error": error,
            "loop": "open" if options.rate else "closed",
            "rate": options.rate,
            "connections": options.connections,
            "size": options.size,
            "duration": round(took, 6),
            "messages": latency.count,
            "bytes": latency.count * options.size,
            "messages_per_second": round(rate, 3),
            "bytes_per_second": round(rate * options.size, 3),
            "latency": latency.fields(),
            "lost": self._lost,
            "wrong": self._wrong,
            "late": self._late,
            "duplicates": self._duplicates,
            "errors": self._errors,
            "first_wrong": self._first_wrong,
            "client": {"kept_schedule": not late, "unsent": self._unsent, "lateness": self._lateness.fields()},
            "histogram": [{"up_to": end, "messages": count} for end, count in latency.rows()],
        }

    # What the streams tell

    def opened(self, stream: Link) -> None:
        """Take no note of an established connection."""

    def echoed(self, stream: Link, message: Message, now: float) -> None:  # noqa: ARG002 - as for `ping`
        """Take note of a right echo; in a closed loop, send the next message."""
        if not self._is_measuring:
            self._greetings += 1
            return
        self._latency.add(now - message.due)
        if not self._options.rate:
            self._next(message, now)

    def late(self, stream: Link, message: Message, now: float) -> None:  # noqa: ARG002 - as for `ping`
        """Take note of a right echo of a message that was given up, or (UDP) that was echoed before."""
        if message.outcome == "lost":
            self._late += 1
        else:
            self._duplicates += 1

    def lost(self, stream: Link, message: Message, failure: Failure) -> None:  # noqa: ARG002 - as for `ping`
        """Take note of a message without an echo."""
        if not self._is_measuring:
            raise Refusal(f"echod: {self._route.target}: {failure.text}", exit_code=NO_SERVICE)
        self._lost += 1
        self._errors[failure.reason] = self._errors.get(failure.reason, 0) + 1
        self._idle.append(message.number + self._options.connections)

    def wrong(self, stream: Link, message: Message, difference: Difference, before: str) -> None:  # noqa: ARG002 - as for `ping`
        """Take note of an echo that is not what was sent, whatever was said of it before."""
        if not self._is_measuring:
            text = f"echod: {self._route.target}: not an echo service: {difference.text}"
            raise Refusal(text, exit_code=NO_SERVICE)
        self._lost -= before == "lost"
        self._wrong += before != "wrong"
        self._first_wrong = self._first_wrong or difference.text
        if not before:
            self._idle.append(message.number + self._options.connections)

    def ended(self, stream: Link, failure: Failure) -> None:
        """Take no note of the end of a connection: its messages are lost, and the next one opens another."""

    def _next(self, message: Message, now: float) -> None:
        if now < self._until:
            self._send(message.number + self._options.connections, now, now)
