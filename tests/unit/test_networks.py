"""Sets of addresses that are given as networks."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest

from echod.networks import EVERYONE, Ranges


def ranges(*networks: str) -> Ranges:
    return Ranges(map(ip_network, networks))


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
    """Networks may be apart, side by side or nested, in any order. IPv4 and IPv6 addresses are never equal."""
    there = ranges(*networks)
    assert [address for address in inside if address not in there] == []
    assert [address for address in outside if address in there] == []


def test_the_zone_of_an_address_does_not_count() -> None:
    """A network has none: fe80::/10 are all neighbours, on whatever link."""
    assert "fe80::1%eth0" in ranges("fe80::/10")
    assert "fe80::1%eth0" not in ranges("fe80::2/128")


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
    """Several networks together may cover it."""
    there = ranges(*networks)
    assert [network for network in covered if not there.covers(ip_network(network))] == []
    assert [network for network in not_covered if there.covers(ip_network(network))] == []


def test_several_networks_are_covered_if_each_of_them_is() -> None:
    """To cover everyone takes all of IPv4 and all of IPv6."""
    assert ranges("0.0.0.0/1", "128.0.0.0/1", "::/0").covers_all(EVERYONE)
    assert not ranges("0.0.0.0/0").covers_all(EVERYONE)
    assert not ranges("::/0").covers_all(EVERYONE)
    assert ranges().covers_all([])


def test_everyone_is_all_of_ipv4_and_all_of_ipv6() -> None:
    """This is what an empty `allow` means, as networks."""
    assert list(EVERYONE) == [IPv4Network("0.0.0.0/0"), IPv6Network("::/0")]
