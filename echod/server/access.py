"""Decides which clients to admit: by network, by connections per source, and by the overall rate.

Asked before a worker is taken. Its memory depends on its rules alone, whatever clients do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from echod.networks import Ranges

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from echod.config import settings
    from echod.server.endpoint import Peer

REJECT_REASONS = ("denied", "per_source", "pool_full", "accept_rate", "proxy_header", "handshake")
"""Why a client is rejected: the first four in the order in which they are checked; then by `Proxies`, before these, and by
`Handshakes`, after them."""


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
    """Decides by rules and by `sources`: how many connections each source has open (see `Peer`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sources: Mapping[str, int]) -> None:
        self._loop = loop
        self._sources = sources
        self._rules = Rules(None, None, 0, None)
        self._bucket: Bucket | None = None

    def replace(self, rules: Rules) -> None:
        """Decide by other rules from now on; a rate that stays the same keeps its tokens."""
        if rules.accept_rate != self._rules.accept_rate:
            self._bucket = Bucket(rules.accept_rate, self._loop.time()) if rules.accept_rate else None
        self._rules = rules

    def denies(self, address: str) -> bool:
        """Say whether the networks keep this address out."""
        return _is_denied(address, self._rules.allow, self._rules.deny)

    def refusal(self, client: Peer, *, full: bool) -> str | None:
        """Return why this client is rejected, or `None`; `full` says that no worker is free.

        A client that is rejected for another reason takes no token: the rate counts admitted clients only.
        """
        allow, deny, per_source, _ = self._rules
        if not client.source:  # the check of a proxy
            return "pool_full" if full else None
        if (deny or allow) and client.address is not None and _is_denied(client.address, allow, deny):
            return "denied"
        if per_source and self._sources.get(client.source, 0) >= per_source:
            return "per_source"
        if full:
            return "pool_full"
        if self._bucket and not self._bucket.take(self._loop.time()):
            return "accept_rate"
        return None


def _is_denied(address: str, allow: Ranges | None, deny: Ranges | None) -> bool:
    return bool((deny and address in deny) or (allow and address not in allow))


class Bucket:
    """A token bucket: holds one second's worth of tokens, at least one. `rate` is per second."""

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
