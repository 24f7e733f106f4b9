"""Who may come in now: networks, connections of one source, and the rate of all.

Knows nothing of sockets and workers. Asked before a worker is taken; its memory depends on its rules alone, whatever the
sources do.
"""

from __future__ import annotations

import ipaddress
import socket
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from echod.server.addresses import source

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Mapping

    from echod.config import settings
    from echod.config.types import Network

REASONS = ("denied", "per_source", "pool_full", "accept_rate")
"""Why somebody may not come in, in the order in which it is asked."""
EVERYONE: tuple[Network, ...] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))


class Ranges:
    """A set of addresses, given as networks. Looking one up takes O(log n)."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._by_version: dict[int, tuple[list[int], list[int]]] = {4: ([], []), 6: ([], [])}
        for each in sorted(networks, key=lambda network: int(network.network_address)):
            starts, ends = self._by_version[each.version]
            start, end = int(each.network_address), int(each.broadcast_address)
            if ends and start <= ends[-1] + 1:  # within, beside or across the one before
                ends[-1] = max(ends[-1], end)
            else:
                starts.append(start)
                ends.append(end)

    def __contains__(self, address: str) -> bool:
        """Say whether this numeric address is in the set."""
        version, family = (6, socket.AF_INET6) if ":" in address else (4, socket.AF_INET)
        number = int.from_bytes(socket.inet_pton(family, address))
        return self._holds(version, number, number)

    def covers(self, network: Network) -> bool:
        """Say whether the whole network is in the set."""
        return self._holds(network.version, int(network.network_address), int(network.broadcast_address))

    def covers_all(self, networks: Iterable[Network]) -> bool:
        """Say whether all of them are in the set."""
        return all(map(self.covers, networks))

    def _holds(self, version: int, start: int, end: int) -> bool:
        starts, ends = self._by_version[version]
        index = bisect_right(starts, start) - 1
        return index >= 0 and end <= ends[index]


class Rules(NamedTuple):
    """`[access]`, made ready for look-ups: with many networks that takes time, and is done off the loop."""

    allow: Ranges | None
    deny: Ranges | None
    per_source: int
    accept_rate: float | None

    @classmethod
    def of(cls, access: settings.Access) -> Rules:
        """Make them from the settings."""
        return cls(
            Ranges(access.allow) if access.allow else None,
            Ranges(access.deny) if access.deny else None,
            access.per_source,
            access.accept_rate,
        )


class Access:
    """Decides by rules and by `sources`: how many connections each source has open (see `addresses.source`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sources: Mapping[str, int], rules: Rules) -> None:
        self._loop = loop
        self._sources = sources
        self._rules = rules
        self._bucket = self._filled(rules)

    def replace(self, rules: Rules) -> None:
        """Decide by other rules from now on; a rate that stays goes on where it is."""
        if rules.accept_rate != self._rules.accept_rate:
            self._bucket = self._filled(rules)
        self._rules = rules

    def _filled(self, rules: Rules) -> Bucket | None:
        return Bucket(rules.accept_rate, self._loop.time()) if rules.accept_rate else None

    def refusal(self, address: str, *, full: bool) -> str | None:
        """Return why this address may not come in, or `None`; `full` says that there is no worker for it.

        Who is refused for another reason takes nothing from the rate: it is for those who come in.
        """
        allow, deny, per_source, _ = self._rules
        if (deny and address in deny) or (allow and address not in allow):
            return "denied"
        if per_source and self._sources.get(source(address), 0) >= per_source:
            return "per_source"
        if full:
            return "pool_full"
        if self._bucket and not self._bucket.take(self._loop.time()):
            return "accept_rate"
        return None


class Bucket:
    """A token bucket: holds what comes in within a second, but room for one at least."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate)
        self._tokens = self._most
        self._seen = now

    def take(self, now: float) -> bool:
        """Take a token; say whether there was one."""
        self._tokens = min(self._most, self._tokens + (now - self._seen) * self._rate)
        self._seen = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
