"""`echod ping`: a message at each beat of a schedule, and a line for what became of it.

The schedule has no drift: message n is due n intervals after the first one, whatever happened to those before. Several may be
under way. Each size has its own connection: in a stream, a message that doesn't get through stops all that follow it.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from echod.client import kernel
from echod.client.datagrams import HEAD
from echod.client.exchange import Exchange
from echod.client.signals import Signals
from echod.client.streams import Message
from echod.client.tally import STATES, Limit, Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from echod.client.difference import Difference
    from echod.client.paths import Address, Route
    from echod.client.streams import Failure, Link

    Say = Callable[[str, dict[str, Any]], None]

_SUSPENDED = 1.0
"""Seconds. If the process itself did not run for so long, the messages that were due meanwhile are left out."""


class Options(NamedTuple):
    """What to send, and for how long. Times are seconds."""

    sizes: tuple[int, ...]
    interval: float
    timeout: float
    messages: int | None
    deadline: float | None
    reconnect: bool
    warn: Limit | None
    crit: Limit | None


class Ping:
    """Sends the messages and keeps the books. `say` gets each event, with its fields as `--json` has them."""

    def __init__(self, route: Route, options: Options, say: Say) -> None:
        self._route = route
        self._is_udp = route.target.kind == "udp"
        self._options = options
        self._say = say
        self._tally = Tally()
        self._exchange = Exchange(route, options.timeout, self, os.urandom)
        self._streams: dict[int, Link] = {}
        self._blamed: Link | None = None
        self._number = self._newest = 0

    def run(self) -> int:
        """Ping until the end, and return the exit code: that of monitoring plugins."""
        options = self._options
        with Signals(self._exchange.poller) as signals:
            began = time.monotonic()
            end = began + (options.deadline or math.inf)
            beat = 0
            while not signals.stopped and (now := time.monotonic()) < end:
                if signals.asked():
                    self._say("ping.interim", self._tally.fields())
                due = began + beat * options.interval if self._number != options.messages else math.inf
                if due <= now:
                    beat = _following(beat, now - began, options.interval)
                    self._send(due)
                elif due == math.inf and not self._exchange.is_busy():
                    break
                else:
                    self._exchange.turn(min(end, due))
        self._exchange.finish(self._tally.echo.most)
        for stream in self._streams.values():
            stream.close()
        self._exchange.close()
        return self.summarize(time.monotonic() - began)

    def summarize(self, duration: float = 0.0, error: str | None = None) -> int:
        """Report the summary, and return the exit code. `duration` is in seconds; `error` says why nothing could be sent."""
        options = self._options
        code, limit = self._tally.judge(options.warn, options.crit)
        self._say(
            "ping.summary",
            {
                "target": str(self._route.target),
                "state": STATES[code],
                "limit": limit or None,
                "error": error,
                **self._tally.fields(),
                "duration": round(duration, 6),
                "warn": options.warn and options.warn.fields(),
                "crit": options.crit and options.crit.fields(),
            },
        )
        return code

    def _send(self, due: float) -> None:
        self._number += 1
        size = self._options.sizes[(self._number - 1) % len(self._options.sizes)]
        key = 0 if self._is_udp else size  # datagrams stop no others
        stream = self._streams.get(key)
        if self._options.reconnect:
            stream = self._exchange.open([self._turn()])
        elif self._is_udp and size < HEAD:  # it has no number, so its echo is known by its socket
            stream = self._exchange.open(self._route.addresses)
        elif stream is None or stream.end or stream.is_retired:
            stream = self._streams[key] = self._exchange.open(self._route.addresses)
        self._exchange.send(stream, Message(self._number, size, due))

    def _turn(self) -> Address:
        """Return the address whose turn it is: with a connection for each message, each address is tried by itself."""
        return self._route.addresses[(self._number - 1) % len(self._route.addresses)]

    # What the streams tell

    def opened(self, stream: Link) -> None:
        """Take note of an established connection."""
        assert stream.opened  # noqa: S101 - for mypy
        self._tally.connections += 1
        self._tally.connect.add(stream.opened.connect)
        if stream.opened.tls is not None:
            self._tally.tls.add(stream.opened.tls)

    def echoed(self, stream: Link, message: Message, now: float) -> None:
        """Take note of a right echo."""
        took = now - message.sent
        for count in self._tally.parts(message.size, stream.address):
            count.move("", "echoed")
            count.echo.add(took)
        self._tally.took(took)
        self._tally.reordered += self._is_udp and message.number < self._newest
        self._newest = max(self._newest, message.number)
        fields: dict[str, Any] = {"time": round(took, 9)}
        if stream.echoes == 1 and stream.opened:
            fields["connect"] = round(stream.opened.connect, 9)
            if stream.opened.tls is not None:
                fields["tls"] = round(stream.opened.tls, 9)
        self._tell("ping.echo", stream, message, **fields, **self._kernel(stream))
        self._done(stream)

    def late(self, stream: Link, message: Message, now: float) -> None:
        """Take note of a right echo whose message was finished before: given up, or over UDP echoed already."""
        event = "late" if message.outcome == "lost" else "duplicates"
        setattr(self._tally, event, getattr(self._tally, event) + 1)
        name = "ping.late" if event == "late" else "ping.duplicate"
        self._tell(name, stream, message, time=round(now - message.sent, 9))

    def lost(self, stream: Link, message: Message, failure: Failure) -> None:
        """Take note of a message without an echo."""
        for count in self._tally.parts(message.size, stream.address):
            count.move("", "lost")
        fields: dict[str, Any] = self._kernel(stream)
        if failure.reason == "timeout" and self._tally.tcp and fields:
            fields["acknowledged"] = self._tally.tcp.is_acknowledged
        self._tally.first_lost = self._tally.first_lost or failure.text
        self._tell("ping.lost", stream, message, reason=failure.reason, error=failure.text, **fields)
        self._blamed = stream
        self._done(stream)

    def wrong(self, stream: Link, message: Message, difference: Difference, before: str) -> None:
        """Take note of an echo that is not what was sent, whatever was said of it before."""
        for count in self._tally.parts(message.size, stream.address):
            count.move(before, "wrong")
        self._tally.first_wrong = self._tally.first_wrong or difference.text
        self._tell("ping.wrong", stream, message, offset=difference.offset, error=difference.text)
        self._blamed = stream
        self._done(stream)

    def ended(self, stream: Link, failure: Failure) -> None:
        """Take note of the end of an established connection that we did not close."""
        if failure.reason != "out_of_step":  # that is our own end of it
            self._tally.ended += 1
        if stream is not self._blamed:  # else the line of a lost message has said it
            age = round(time.monotonic() - stream.began, 6)
            self._tell("ping.disconnected", stream, None, reason=failure.reason, error=failure.text, age=age)

    def _tell(self, event: str, stream: Link, message: Message | None, **fields: Any) -> None:  # noqa: ANN401 - as JSON has them
        named = {"seq": message.number, "size": message.size} if message else {"seq": None}
        self._say(event, {**named, "server": stream.address.fields(), **fields})

    def _kernel(self, stream: Link) -> dict[str, Any]:
        """Return what the kernel knows, and the segments sent again since the last time."""
        tcp = kernel.tcp(stream.opened.sock) if stream.opened else None
        if tcp is None:
            return {}
        again = tcp.retrans - stream.retrans
        stream.retrans = tcp.retrans
        self._tally.retrans += again
        self._tally.tcp = tcp
        return {"tcp": tcp.fields(), "retrans": again}

    def _done(self, stream: Link) -> None:
        if not stream.is_retired and stream not in self._streams.values():
            stream.close()


def _following(beat: int, elapsed: float, interval: float) -> int:
    """Return the number of the next beat: usually the next, but not one of those in which this process did not run."""
    if elapsed - beat * interval > max(_SUSPENDED, interval):
        return int(elapsed / interval) + 1
    return beat + 1
