"""Messages under way on any number of connections, and the time that each may take."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from echod.client.datagrams import Datagrams
from echod.client.poller import Poller
from echod.client.streams import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from echod.client.paths import Address, Route
    from echod.client.streams import Link, Message, Observer

_TICK = 0.01
"""Seconds between two steps of openings that wait for a moment, such as that of the next address."""
_PATIENCE = 1.0
"""Seconds for which an echo may be under way at the end, and is not lost."""
_RETIRED = 16
"""Connections kept open for late echoes. The kernel would answer those with RST, and nobody would know that they came."""


class Exchange:
    """Sends messages, and gives up those without an echo after `timeout` seconds."""

    def __init__(self, route: Route, timeout: float, observer: Observer, payload: Callable[[int], bytes]) -> None:
        self.poller = Poller()
        self._route = route
        self._timeout = timeout
        self._observer = observer
        self._payload = payload
        self._pending: deque[tuple[float, Message, Link]] = deque()  # by the moment at which each is given up
        self._openings: set[Link] = set()
        self._retired: deque[Link] = deque()

    def open(self, addresses: Sequence[Address]) -> Link:
        """Return a new connection, which may still be on its way."""
        if self._route.target.kind == "udp":
            return Datagrams(self.poller, self._observer, addresses, self._payload)
        stream = Stream(self.poller, self._observer, self._route, addresses, self._payload)
        if stream.is_opening:
            self._openings.add(stream)
        return stream

    def send(self, stream: Link, message: Message) -> None:
        """Send a message on this connection as soon as it is open."""
        self._pending.append((time.monotonic() + self._timeout, message, stream))
        stream.put(message)

    def is_busy(self) -> bool:
        """Return whether a message is unfinished."""
        while self._pending and self._pending[0][1].outcome:
            self._pending.popleft()
        return bool(self._pending)

    def turn(self, until: float) -> None:
        """Handle what has happened; wait for more until this moment (`time.monotonic`), or less long."""
        now = time.monotonic()
        self._openings = {stream for stream in self._openings if stream.is_opening}
        for stream in self._openings:
            stream.step()
        if self._openings:
            until = min(until, now + _TICK)
        if self.is_busy():
            until = min(until, self._pending[0][0])
        self.poller.wait(until)
        # Only after a look at what has come: this process itself may not have run for a while.
        while self.is_busy() and self._pending[0][0] <= now:
            _, message, stream = self._pending.popleft()
            stream.give_up(message, self._timeout)
            self._retire(stream)

    def finish(self, slowest: float) -> None:
        """Make an end: lose the messages whose echo should be here by now, given the slowest one so far (seconds; 0: none).

        Others are forgotten: that the user ends it a moment too early is no loss.
        """
        longest = max(_PATIENCE, 2 * slowest) if slowest else 0.0
        now = time.monotonic()
        for deadline, message, stream in self._pending:
            waited = now - (deadline - self._timeout)
            if not message.outcome and waited > longest:
                stream.give_up(message, round(waited, 3))

    def close(self) -> None:
        """Close what is left open."""
        for stream in [*self._retired, *self._openings]:
            stream.close()
        self.poller.close()

    def _retire(self, stream: Link) -> None:
        if stream.is_opening and stream.is_idle:
            stream.close()
        elif stream.is_retired and stream not in self._retired:
            self._retired.append(stream)
            if self._route.target.kind == "udp":  # new sockets try the other addresses first
                self._route.addresses.remove(stream.address)
                self._route.addresses.append(stream.address)
        if len(self._retired) > _RETIRED:
            self._retired.popleft().close()
