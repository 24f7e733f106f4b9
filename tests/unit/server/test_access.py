"""Who may come in: networks, sources, and the rate, on a clock that goes when told to."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest

from echod.config.settings import Access as Settings
from echod.server.access import EVERYONE, Access, Bucket, Ranges, Rules
from tests.support.fakes import FakeLoop

INSIDE = "10.0.0.1"
OUTSIDE = "192.0.2.1"
TEN = Ranges([IPv4Network("10.0.0.0/8")])


def ranges(*networks: str) -> Ranges:
    return Ranges(map(ip_network, networks))


class House:
    """Access for addresses, of which some have connections."""

    def __init__(
        self,
        allow: Ranges | None = None,
        deny: Ranges | None = None,
        per_source: int = 0,
        accept_rate: float | None = None,
    ) -> None:
        self.loop = FakeLoop()
        self.sources: dict[str, int] = {}
        self.rules = Rules(allow, deny, per_source, accept_rate)
        self.access = Access(self.loop.asyncio, self.sources, self.rules)

    def refusal(self, address: str = INSIDE, *, full: bool = False) -> str | None:
        return self.access.refusal(address, full=full)

    def burst(self) -> int:
        """Return how many come in now, at one moment."""
        number = 0
        while self.refusal() is None:
            number += 1
        return number


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        ((), [], ["0.0.0.1", "255.255.255.255", "::", "::1"]),
        (("10.0.0.0/8",), ["10.0.0.0", "10.255.255.255"], ["9.255.255.255", "11.0.0.0", "::a00:0"]),
        (("192.0.2.7/32",), ["192.0.2.7"], ["192.0.2.6", "192.0.2.8"]),
        (("192.0.2.7/32", "192.0.2.9/32"), ["192.0.2.7", "192.0.2.9"], ["192.0.2.8"]),
        (("10.1.0.0/16", "10.0.0.0/16"), ["10.0.0.0", "10.0.255.255", "10.1.0.0"], ["10.2.0.0"]),
        (("10.0.0.0/8", "10.1.0.0/16"), ["10.0.0.1", "10.1.0.1", "10.2.0.1"], ["11.0.0.0"]),
        (("10.0.0.0/9", "10.0.0.0/8"), ["10.0.0.1", "10.200.0.1"], ["11.0.0.0"]),
        (("10.0.0.0/24", "10.0.2.0/24"), ["10.0.0.255", "10.0.2.0"], ["10.0.1.0", "10.0.1.255"]),
        (("0.0.0.0/0",), ["0.0.0.1", "255.255.255.255"], ["::", "::1"]),
        (("2001:db8::/32",), ["2001:db8::", "2001:db8:ffff::1"], ["2001:db9::", "2001:db7:ffff::", "32.1.13.184"]),
        (("::1/128", "127.0.0.0/8"), ["::1", "127.0.0.1"], ["::2", "126.0.0.1", "128.0.0.1"]),
    ],
)
def test_an_address_is_in_a_network_or_not(networks: tuple[str, ...], inside: list[str], outside: list[str]) -> None:
    """Whether networks are apart, side by side or one in the other, and in whatever order; IPv4 and IPv6 are two worlds."""
    there = ranges(*networks)
    assert [address for address in inside if address not in there] == []
    assert [address for address in outside if address in there] == []


@pytest.mark.parametrize(
    ("networks", "covered", "not_covered"),
    [
        ((), [], ["0.0.0.0/0", "::/0", "192.0.2.1/32"]),
        (("10.0.0.0/8",), ["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/32"], ["10.0.0.0/7", "0.0.0.0/0", "11.0.0.0/32"]),
        (("10.0.0.0/9", "10.128.0.0/9"), ["10.0.0.0/8"], ["10.0.0.0/7"]),
        (("10.0.0.0/24", "10.0.2.0/24"), ["10.0.2.0/25"], ["10.0.0.0/22", "10.0.1.0/24", "10.0.0.0/23"]),
        (("0.0.0.0/1", "128.0.0.0/1"), ["0.0.0.0/0"], ["::/0", "::/96"]),
        (("2001:db8::/33", "2001:db8:8000::/33"), ["2001:db8::/32", "2001:db8::1/128"], ["2001:d00::/24"]),
    ],
)
def test_a_network_is_covered_if_each_of_its_addresses_is_there(
    networks: tuple[str, ...], covered: list[str], not_covered: list[str]
) -> None:
    """Also if it takes several networks to do so."""
    there = ranges(*networks)
    assert [network for network in covered if not there.covers(ip_network(network))] == []
    assert [network for network in not_covered if there.covers(ip_network(network))] == []


def test_all_networks_are_covered_or_not() -> None:
    """Everyone is IPv4 and IPv6."""
    assert ranges("0.0.0.0/1", "128.0.0.0/1", "::/0").covers_all(EVERYONE)
    assert not ranges("0.0.0.0/0").covers_all(EVERYONE)
    assert not ranges("::/0").covers_all(EVERYONE)
    assert ranges().covers_all([])


def test_rules_are_what_the_settings_say() -> None:
    """Made ready for look-ups."""
    rules = Rules.of(
        Settings.model_validate({"allow": ["10.0.0.0/8"], "deny": "::1", "per_source": 3, "accept_rate": "2/s"})
    )
    assert rules.allow is not None
    assert rules.deny is not None
    assert (INSIDE in rules.allow, OUTSIDE in rules.allow) == (True, False)
    assert ("::1" in rules.deny, "::2" in rules.deny) == (True, False)
    assert (rules.per_source, rules.accept_rate) == (3, 2.0)


def test_without_rules_everyone_may_come_in() -> None:
    """Nothing is set by default; an empty list of networks allows all of them, and denies none."""
    assert Rules.of(Settings()) == (None, None, 0, None)
    house = House(*Rules.of(Settings()))
    house.sources[INSIDE] = 1_000_000
    assert [house.refusal(address) for address in (INSIDE, OUTSIDE, "2001:db8::1")] == [None, None, None]


def test_who_is_denied_or_not_allowed_stays_out() -> None:
    """If both lists name an address, it is denied."""
    assert [House(allow=TEN).refusal(address) for address in (INSIDE, OUTSIDE, "::1")] == [None, "denied", "denied"]
    assert [House(deny=TEN).refusal(address) for address in (INSIDE, OUTSIDE, "::1")] == ["denied", None, None]
    both = House(allow=TEN, deny=ranges("10.0.0.0/16"))
    assert [both.refusal(address) for address in (INSIDE, "10.1.0.1", OUTSIDE)] == ["denied", None, "denied"]


def test_a_source_has_so_many_connections() -> None:
    """And may open another one as soon as one of them has ended; other sources don't count."""
    house = House(per_source=2)
    house.sources |= {INSIDE: 1, "2001:db8::/64": 2, "192.0.2.2": 9}
    assert [house.refusal(address) for address in (INSIDE, OUTSIDE, "2001:db8::7")] == [None, None, "per_source"]
    house.sources |= {INSIDE: 2, "2001:db8::/64": 1}
    assert [house.refusal(address) for address in (INSIDE, OUTSIDE, "2001:db8::7")] == ["per_source", None, None]
    house.sources[INSIDE] = 3  # as when a reload has taken the limit down
    assert house.refusal(INSIDE) == "per_source"


def test_the_first_reason_is_told() -> None:
    """From what is the client's own to what is nobody's fault."""
    house = House(deny=TEN, per_source=1, accept_rate=1.0)
    assert house.refusal(OUTSIDE) is None
    house.sources |= {INSIDE: 1, OUTSIDE: 1}
    assert house.refusal(INSIDE, full=True) == "denied"
    assert house.refusal(OUTSIDE, full=True) == "per_source"
    del house.sources[OUTSIDE]
    assert house.refusal(OUTSIDE, full=True) == "pool_full"
    assert house.refusal(OUTSIDE) == "accept_rate"
    house.loop.advance(1)
    assert house.refusal(OUTSIDE) is None


def test_who_is_refused_for_another_reason_takes_nothing_from_the_rate() -> None:
    """Else those who are kept out would keep out the others."""
    house = House(deny=ranges(OUTSIDE), per_source=1, accept_rate=3.0)
    house.sources["10.0.0.2"] = 1
    for _ in range(10):
        assert house.refusal(OUTSIDE) == "denied"
        assert house.refusal("10.0.0.2") == "per_source"
        assert house.refusal(full=True) == "pool_full"
    assert house.burst() == 3


def test_other_rules_count_from_now_on() -> None:
    """All of them."""
    house = House(deny=TEN)
    house.access.replace(Rules(None, None, 1, None))
    assert house.refusal() is None
    house.sources[INSIDE] = 1
    assert house.refusal() == "per_source"
    house.access.replace(Rules(ranges(OUTSIDE), None, 0, None))
    assert house.refusal() == "denied"


def test_a_rate_that_stays_goes_on_where_it_is() -> None:
    """Else each reload would be worth a burst."""
    house = House(accept_rate=10.0)
    assert house.burst() == 10
    house.access.replace(house.rules._replace(per_source=5))
    assert house.burst() == 0
    house.loop.advance(0.5)
    assert house.burst() == 5


def test_another_rate_begins_anew() -> None:
    """With its own burst, and at its own pace."""
    house = House(accept_rate=10.0)
    assert house.burst() == 10
    house.access.replace(house.rules._replace(accept_rate=4.0))
    assert house.burst() == 4
    house.loop.advance(0.5)
    assert house.burst() == 2


def test_a_rate_can_be_switched_off_and_on() -> None:
    """A rate that comes after a while without one begins full."""
    house = House(accept_rate=1.0)
    assert house.burst() == 1
    house.access.replace(house.rules._replace(accept_rate=None))
    assert [house.refusal() for _ in range(100)] == [None] * 100
    house.access.replace(house.rules)
    assert house.burst() == 1


def taken(bucket: Bucket, now: float) -> int:
    """Return how many tokens there are at this moment."""
    number = 0
    while bucket.take(now):
        number += 1
    return number


@pytest.mark.parametrize(("rate", "burst"), [(0.5, 1), (1.0, 1), (1.5, 1), (2.5, 2), (500.0, 500)])
def test_a_burst_is_what_comes_in_within_a_second(rate: float, burst: int) -> None:
    """But one at least; it takes its time to be there again, and does not grow in a long quiet."""
    bucket = Bucket(rate, 100.0)
    assert taken(bucket, 100.0) == burst
    assert taken(bucket, 100.0) == 0
    assert taken(bucket, 10_000.0) == burst


@pytest.mark.parametrize(("rate", "seconds"), [(0.5, 2.0), (1.0, 1.0), (4.0, 0.25), (0.125, 8.0)])
def test_a_token_comes_when_it_is_due(rate: float, seconds: float) -> None:
    """Not before, whatever is asked in between; and asking costs nothing."""
    bucket = Bucket(rate, 0.0)
    taken(bucket, 0.0)
    assert not bucket.take(seconds / 2)
    assert not bucket.take(seconds * 3 / 4)
    assert bucket.take(seconds)
    assert not bucket.take(seconds)


def test_a_fraction_of_a_token_is_kept() -> None:
    """Three in two seconds are three in two seconds."""
    bucket = Bucket(1.5, 0.0)
    taken(bucket, 0.0)
    assert [taken(bucket, now / 2) for now in range(1, 9)] == [1, 1, 0, 1, 1, 1, 0, 1]


def test_everyone_is_every_address() -> None:
    """What an empty `allow` means, as networks."""
    assert list(EVERYONE) == [IPv4Network("0.0.0.0/0"), IPv6Network("::/0")]
