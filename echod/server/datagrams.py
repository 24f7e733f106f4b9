"""What all sockets of UDP share: which datagrams get an answer, and the books.

The source of a datagram can be forged. So a service that answers everything can be made to send to others, and two of them to
answer each other for ever (CVE-2024-2169). The memory of this does not depend on the number of sources.
"""

from __future__ import annotations

import ipaddress
import secrets
import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from echod.networks import Ranges
from echod.server.access import Bucket
from echod.server.endpoint import Peer

if TYPE_CHECKING:
    import asyncio

    from echod.config import settings
    from echod.log import Logger
    from echod.server.access import Access
    from echod.server.udp import Answerer

SLOTS = 1 << 14
"""Of the table of sources: 128 kB."""
SECOND = 1.0
"""Seconds between two lines about dropped datagrams, at least."""
ECHOED = "echoed"
DROPS = ("source_port", "source_address", "destination", "denied", "too_large", "rate", "total_rate", "failed")
"""Why a datagram is dropped, in the order in which it is checked; "failed": the system did not take the answer."""
KERNEL = "kernel"
"""In the log, what the kernel has dropped because the queue of the socket was full."""

_PRIVILEGED = 1024
"""Ports below belong to services (RFC 6335, 6), such as echo, chargen, daytime and DNS; no client has one of them."""
_NO_CLIENTS = Ranges(map(ipaddress.ip_network, ("0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::/128", "ff00::/8")))
"""Unspecified, multicast and broadcast addresses. To the broadcast address of a network, the kernel sends no answer."""


class Sources:
    """Bounds the rate of each source, in a table of fixed size.

    A slot holds the moment up to which the tokens of its sources are spent (the generic cell rate algorithm). Sources that share
    one share its tokens, which only makes it stricter. Which ones do depends on a secret, so nobody can choose to.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_hex(16)
        self._spent = array("d", bytes(8 * SLOTS))
        self._each = self._burst = 0.0

    def set(self, rate: float) -> None:
        """Let each have so many datagrams a second, with bursts of one second."""
        self._each = 1 / rate
        self._burst = (max(1.0, rate) - 0.999) / rate  # not 1: floating-point numbers are rounded

    def take(self, source: str, now: float) -> bool:
        """Take a token of this source; say whether there was one."""
        slot = hash(self._secret + source) % SLOTS
        spent = max(self._spent[slot], now)
        if spent - now > self._burst:
            return False
        self._spent[slot] = spent + self._each
        return True


class Datagrams:
    """What all sockets of UDP share: the rules by which a datagram gets an answer, and the books."""

    def __init__(self, loop: asyncio.AbstractEventLoop, log: Logger, access: Access) -> None:
        self._loop = loop
        self._log = log
        self._access = access
        self._sources = Sources()
        self._total: Bucket | None = None
        self._rate: float | None = None
        self._total_rate: float | None = None
        self.max_size = 0
        self.results: Counter[str] = Counter()  # datagrams, by what became of them
        self.bytes_received = 0
        self.bytes_sent = 0
        self._answerers: list[Answerer] = []
        self._ports: set[int] = set()  # of these
        self._lost = 0  # in the kernel's queues, of sockets that are closed
        self._logged: Counter[str] = Counter()  # of the drops, those that the log has
        self._next_line = 0.0  # when the log may have one
        self._timer: asyncio.TimerHandle | None = None

    def set(self, udp: settings.Udp) -> None:
        """Answer by these settings from now on; a rate that stays the same keeps its tokens."""
        self.max_size = udp.max_size
        self._rate = udp.rate
        if udp.rate:
            self._sources.set(udp.rate)
        if udp.total_rate != self._total_rate:
            self._total_rate = udp.total_rate
            self._total = Bucket(udp.total_rate, time.monotonic()) if udp.total_rate else None

    def refusal(self, address: tuple[Any, ...], now: float, *, fits: bool, is_unicast: bool) -> str | None:
        """Return why a datagram from this socket address gets no answer, or `None`.

        One that is dropped for another reason takes no token.
        """
        port = address[1]
        if port < _PRIVILEGED or port in self._ports:
            return "source_port"
        peer = Peer(*address)
        return self._not_admitted(peer, is_unicast=is_unicast) or self._exceeded(peer, now, fits=fits)

    def _not_admitted(self, peer: Peer, *, is_unicast: bool) -> str | None:
        address = cast("str", peer.address)
        if address in _NO_CLIENTS:
            return "source_address"
        if not is_unicast:
            return "destination"
        return "denied" if self._access.denies(address) else None

    def _exceeded(self, peer: Peer, now: float, *, fits: bool) -> str | None:
        if not fits:
            return "too_large"
        if self._rate and not self._sources.take(peer.source, now):
            return "rate"
        return "total_rate" if self._total and not self._total.take(now) else None

    @property
    def kernel_drops(self) -> int | None:
        """How many datagrams found the queue of their socket full; `None` if the kernel does not tell."""
        drops = [each.kernel_drops for each in self._answerers]
        return None if None in drops else self._lost + sum(each or 0 for each in drops)

    def add(self, answerer: Answerer) -> None:
        """Answer on this socket, too."""
        self._answerers.append(answerer)
        self._ports.add(answerer.listener.endpoint.port)

    def forget(self, answerer: Answerer) -> None:
        """Keep what this socket has lost, before it is closed."""
        self._lost += answerer.kernel_drops or 0
        self._answerers.remove(answerer)
        self._ports = {each.listener.endpoint.port for each in self._answerers}

    def log_drops(self) -> None:
        """Log what has been dropped since the last line, now or when a second has passed since that one."""
        if self._timer is None:
            wait = max(0.0, self._next_line - self._loop.time())
            self._timer = self._loop.call_later(wait, self._line)

    def flush(self) -> None:
        """Log what has been dropped and is not in the log yet."""
        if self._timer:
            self._timer.cancel()
            self._line()

    def _line(self) -> None:
        self._timer = None
        self._next_line = self._loop.time() + SECOND
        drops = Counter({reason: self.results[reason] for reason in DROPS})
        drops[KERNEL] = self.kernel_drops or 0
        reasons = dict(drops - self._logged)
        self._logged = drops
        if reasons:
            self._log.warning("udp.dropped", reasons=reasons)
