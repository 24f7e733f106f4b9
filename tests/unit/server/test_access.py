"""Which clients may come in: networks, sources, and the rate, on a clock that goes only when told to."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network
from typing import TYPE_CHECKING

import pytest

from echod.config.settings import Access as Settings
from echod.networks import Ranges
from echod.server.access import REJECT_REASONS, Bucket, Rules
from echod.server.endpoint import Peer, UnixPeer

if TYPE_CHECKING:
    from tests.support.rig import Rig

INSIDE = "10.0.0.1"
OUTSIDE = "192.0.2.1"
TEN = Ranges([IPv4Network("10.0.0.0/8")])


def ranges(*networks: str) -> Ranges:
    return Ranges(map(ip_network, networks))


def rule(
    rig: Rig,
    allow: Ranges | None = None,
    deny: Ranges | None = None,
    per_source: int = 0,
    accept_rate: float | None = None,
) -> Rules:
    """Decide by these rules from now on, and return them."""
    rules = Rules(allow, deny, per_source, accept_rate)
    rig.access.replace(rules)
    return rules


def refusal(rig: Rig, address: str = INSIDE, *, full: bool = False) -> str | None:
    return rig.access.refusal(Peer(address, 4711), full=full)


def refusals(rig: Rig, *addresses: str) -> list[str | None]:
    return [refusal(rig, address) for address in addresses]


def burst(rig: Rig) -> int:
    """Return how many clients may come in now, at one moment."""
    number = 0
    while refusal(rig) is None:
        number += 1
    return number


def test_rules_are_what_the_settings_say() -> None:
    """The networks are made ready for look-ups."""
    rules = Rules.of(
        Settings.model_validate({"allow": ["10.0.0.0/8"], "deny": "::1", "per_source": 3, "accept_rate": "2/s"})
    )
    assert rules.allow is not None
    assert rules.deny is not None
    assert (INSIDE in rules.allow, OUTSIDE in rules.allow) == (True, False)
    assert ("::1" in rules.deny, "::2" in rules.deny) == (True, False)
    assert (rules.per_source, rules.accept_rate) == (3, 2.0)


def test_without_rules_every_client_may_come_in(rig: Rig) -> None:
    """No rule is set by default. An empty list of networks allows all of them, and denies none."""
    assert Rules.of(Settings()) == (None, None, 0, None)
    assert refusals(rig, INSIDE, OUTSIDE, "2001:db8::1") == [None, None, None]
    rig.access.replace(Rules.of(Settings()))
    rig.pool.sources[INSIDE] = 1_000_000
    assert refusals(rig, INSIDE, OUTSIDE, "2001:db8::1") == [None, None, None]


def test_a_client_that_is_denied_or_not_allowed_stays_out(rig: Rig) -> None:
    """An address on both lists is denied."""
    rule(rig, allow=TEN)
    assert refusals(rig, INSIDE, OUTSIDE, "::1") == [None, "denied", "denied"]
    rule(rig, deny=TEN)
    assert refusals(rig, INSIDE, OUTSIDE, "::1") == ["denied", None, None]
    rule(rig, allow=TEN, deny=ranges("10.0.0.0/16"))
    assert refusals(rig, INSIDE, "10.1.0.1", OUTSIDE) == ["denied", None, "denied"]


def test_an_ipv4_mapped_client_is_looked_up_as_ipv4(rig: Rig) -> None:
    """Rules for IPv4 hold for clients of a dual-stack socket too."""
    rule(rig, allow=TEN, per_source=1)
    assert refusals(rig, "::ffff:10.0.0.1", "::ffff:192.0.2.1") == [None, "denied"]
    rig.pool.sources[INSIDE] = 1
    assert refusals(rig, "::ffff:10.0.0.1") == ["per_source"]


def test_a_source_has_at_most_this_many_connections(rig: Rig) -> None:
    """It may open another one as soon as one of them has ended. Other sources don't count."""
    rule(rig, per_source=2)
    rig.pool.sources |= {INSIDE: 1, "2001:db8::/64": 2, "192.0.2.2": 9}
    assert refusals(rig, INSIDE, OUTSIDE, "2001:db8::7") == [None, None, "per_source"]
    rig.pool.sources |= {INSIDE: 2, "2001:db8::/64": 1}
    assert refusals(rig, INSIDE, OUTSIDE, "2001:db8::7") == ["per_source", None, None]
    rig.pool.sources[INSIDE] = 3  # a reload has lowered the limit
    assert refusal(rig, INSIDE) == "per_source"


def test_the_first_reason_is_returned(rig: Rig) -> None:
    """The reasons that concern this client alone come before those that concern all clients."""
    rule(rig, deny=TEN, per_source=1, accept_rate=1.0)
    assert refusal(rig, OUTSIDE) is None
    rig.pool.sources |= {INSIDE: 1, OUTSIDE: 1}
    reasons = [refusal(rig, INSIDE, full=True), refusal(rig, OUTSIDE, full=True)]
    del rig.pool.sources[OUTSIDE]
    reasons += [refusal(rig, OUTSIDE, full=True), refusal(rig, OUTSIDE)]
    assert (*reasons, "proxy_header", "handshake") == REJECT_REASONS
    rig.loop.advance(1)
    assert refusal(rig, OUTSIDE) is None


def test_a_client_that_is_refused_for_another_reason_takes_no_token(rig: Rig) -> None:
    """Otherwise clients that are kept out anyway would keep out the others."""
    rule(rig, deny=ranges(OUTSIDE), per_source=1, accept_rate=3.0)
    rig.pool.sources["10.0.0.2"] = 1
    for _ in range(10):
        assert refusal(rig, OUTSIDE) == "denied"
        assert refusal(rig, "10.0.0.2") == "per_source"
        assert refusal(rig, full=True) == "pool_full"
    assert burst(rig) == 3


def test_new_rules_replace_all_old_ones(rig: Rig) -> None:
    """They count from the next client on."""
    rule(rig, deny=TEN)
    rule(rig, per_source=1)
    assert refusal(rig) is None
    rig.pool.sources[INSIDE] = 1
    assert refusal(rig) == "per_source"
    rule(rig, allow=ranges(OUTSIDE))
    assert refusal(rig) == "denied"


def test_a_rate_that_stays_keeps_its_tokens(rig: Rig) -> None:
    """Otherwise each reload would allow another burst."""
    rules = rule(rig, accept_rate=10.0)
    assert burst(rig) == 10
    rig.access.replace(rules._replace(per_source=5))
    assert burst(rig) == 0
    rig.loop.advance(0.5)
    assert burst(rig) == 5


def test_a_new_rate_begins_with_its_own_burst(rig: Rig) -> None:
    """Afterwards tokens come at the new rate."""
    rule(rig, accept_rate=10.0)
    assert burst(rig) == 10
    rule(rig, accept_rate=4.0)
    assert burst(rig) == 4
    rig.loop.advance(0.5)
    assert burst(rig) == 2


def test_a_rate_can_be_switched_off_and_on(rig: Rig) -> None:
    """Switched on again, it begins with its burst."""
    rule(rig, accept_rate=1.0)
    assert burst(rig) == 1
    rule(rig, accept_rate=None)
    assert refusals(rig, *[INSIDE] * 100) == [None] * 100
    rule(rig, accept_rate=1.0)
    assert burst(rig) == 1


def taken(bucket: Bucket, now: float) -> int:
    """Take all tokens that there are at this moment, and return their number."""
    number = 0
    while bucket.take(now):
        number += 1
    return number


@pytest.mark.parametrize(("rate", "burst"), [(0.5, 1), (1.0, 1), (1.5, 1), (2.5, 2), (500.0, 500)])
def test_a_burst_is_one_second_of_tokens_but_at_least_one(rate: float, burst: int) -> None:
    """After a burst there is no token, and a long quiet saves no more than one burst."""
    bucket = Bucket(rate, 100.0)
    assert taken(bucket, 100.0) == burst
    assert taken(bucket, 100.0) == 0
    assert taken(bucket, 10_000.0) == burst


@pytest.mark.parametrize(("rate", "seconds"), [(0.5, 2.0), (1.0, 1.0), (4.0, 0.25), (0.125, 8.0)])
def test_a_token_comes_when_it_is_due(rate: float, seconds: float) -> None:
    """It does not come earlier, and failed attempts in between don't delay it."""
    bucket = Bucket(rate, 0.0)
    taken(bucket, 0.0)
    assert not bucket.take(seconds / 2)
    assert not bucket.take(seconds * 3 / 4)
    assert bucket.take(seconds)
    assert not bucket.take(seconds)


def test_a_fraction_of_a_token_is_kept() -> None:
    """At 1.5 tokens a second, each two seconds bring three tokens."""
    bucket = Bucket(1.5, 0.0)
    taken(bucket, 0.0)
    assert [taken(bucket, now / 2) for now in range(1, 9)] == [1, 1, 0, 1, 1, 1, 0, 1]


def test_networks_do_not_apply_to_clients_of_a_unix_socket(rig: Rig) -> None:
    """They have no address; the mode of the file decides. All else holds."""
    client = UnixPeer(4711, 1000)
    for allow, deny in ((TEN, None), (None, ranges("0.0.0.0/0", "::/0"))):
        rule(rig, allow, deny)
        assert rig.access.refusal(client, full=False) is None
        assert rig.access.refusal(client, full=True) == "pool_full"
    rule(rig, per_source=1, accept_rate=1.0)
    rig.pool.sources["uid:1000"] = 1
    assert rig.access.refusal(client, full=False) == "per_source"
    assert rig.access.refusal(UnixPeer(4712, 1001), full=False) is None
    assert rig.access.refusal(UnixPeer(4713, 1002), full=False) == "accept_rate"
