"""Endpoints and peers as values."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from echod.server.endpoint import Endpoint, Listener, Peer, UnixPeer

LOOPBACK = socket.if_nametoindex("lo")


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        (Endpoint("tcp", "127.0.0.1", 7), "tcp://127.0.0.1:7"),
        (Endpoint("tcp", "::1", 7), "tcp://[::1]:7"),
        (Endpoint("tcp", "::", 0), "tcp://[::]:0"),
        (Endpoint("tcp", "fe80::1%eth0", 7), "tcp://[fe80::1%eth0]:7"),
        (Endpoint("tls", "*", 7007), "tls://*:7007"),
        (Endpoint("unix", path="/run/echo.sock"), "unix:/run/echo.sock"),
        (Endpoint("unix", path="@echo"), "unix:@echo"),
        (Endpoint("unix", path="/a\nb\udcff"), "unix:/a\\u000ab\\udcff"),
    ],
)
def test_an_endpoint_prints_as_a_url(endpoint: Endpoint, url: str) -> None:
    """An IPv6 address is in brackets (RFC 3986, 3.2.2)."""
    assert (str(endpoint), f"{endpoint}") == (url, url)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:0:c000:201", "::ffff:0:c000:201"),
        ("::ffff:c000:201:0", "::ffff:c000:201:0"),
        ("::192.0.2.1", "::192.0.2.1"),
        ("2001:db8::ffff:192.0.2.1", "2001:db8::ffff:192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_an_ipv4_mapped_address_is_an_ipv4_address(given: str, address: str) -> None:
    """A dual-stack socket reports IPv4 clients in this form (RFC 4291, 2.5.5.2). Addresses that only resemble it stay."""
    peer = Peer(given, 4711)
    assert (peer.address, peer.port) == (address, 4711)
    assert peer.fields() == {"address": address, "port": 4711}


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("2a02:1:2:3:4:5:6:7", "2a02:1:2:3::/64"),
        ("2003:1::1", "2003:1::/64"),
        ("2000:1:2:3::1", "2000:1:2:3::/64"),
        ("fd00:1:2:3::1", "fd00:1:2:3::/64"),  # unique local (RFC 4193, 3.1): subnets of 64 bits, as elsewhere
        ("fec0:1:2:3::1", "fec0:1:2:3::/64"),
        ("64:ff9b:0:1::1", "64:ff9b:0:1::/64"),
    ],
)
def test_the_source_of_a_peer_is_an_ipv4_address_or_an_ipv6_network(address: str, source: str) -> None:
    """A host may use any number of addresses in its /64 network, so all of them count as one."""
    peer = Peer(address, 1)
    assert (peer.source, peer.address) == (source, address.removeprefix("::ffff:"))


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("6to4, RFC 3056: whatever the subnet and the host", ["2002:c000:201::1", "2002:c000:201:ffff:1:2:3:4"]),
        (
            "Teredo, RFC 4380: whatever the server, the flags and the port",
            ["2001:0:4136:e378:8000:63bf:3fff:fdfe", "2001::1:0:3fff:fdfe"],
        ),
        ("NAT64 and SIIT, RFC 6052", ["64:ff9b::c000:201"]),
        ("NAT64 with a local prefix, RFC 8215", ["64:ff9b:1::c000:201", "64:ff9b:1:2:0:3:c000:201"]),
        ("IPv4-translated, RFC 2765", ["::ffff:0:c000:201"]),
        ("IPv4-compatible, RFC 4291", ["::192.0.2.1"]),
        ("IPv4-mapped, RFC 4291", ["::ffff:192.0.2.1"]),
    ],
)
def test_an_ipv6_address_that_is_made_of_an_ipv4_address_counts_as_that(kind: str, given: list[str]) -> None:
    """All of IPv4 would otherwise share one /64, or one person would have a share for each form. The address stays."""
    for address in given:
        assert Peer(address, 1).source == "192.0.2.1", kind
        assert Peer(address, 1).address in (address, "192.0.2.1")


def test_the_address_of_an_example_of_teredo() -> None:
    """It is that of RFC 4380, 4: a client behind 192.0.2.45."""
    assert Peer("2001:0:4136:e378:8000:63bf:3fff:fdd2", 1).source == "192.0.2.45"


@pytest.mark.parametrize(
    ("prefix", "one", "other"),
    [
        (48, "64:ff9b:1:c000:2:100::", "64:ff9b:1:c000:2:200::"),
        (56, "64:ff9b:1:1c0:0:201::", "64:ff9b:1:1c0:0:202::"),
        (64, "64:ff9b:1:1:c0:2:100:0", "64:ff9b:1:1:c0:2:200:0"),
    ],
)
def test_behind_a_local_translator_each_ipv4_address_counts_alone(prefix: int, one: str, other: str) -> None:
    """Also with the prefixes that put it elsewhere than at the end (RFC 6052, 2.2): these are 192.0.2.1 and 192.0.2.2."""
    assert [Peer(address, 1).source for address in (one, other)] == [one, other], prefix


def test_behind_a_local_translator_an_address_with_zeros_at_its_end_counts_as_that() -> None:
    """Only the last 24 bits say that the IPv4 address is elsewhere."""
    assert Peer("64:ff9b:1::a05:0", 1).source == "10.5.0.0"


@pytest.mark.parametrize("address", ["::1", "fe80::1", "fe80::200:5efe:c000:201", "febf::1"])
def test_loopback_and_link_local_addresses_count_one_by_one(address: str) -> None:
    """All hosts of a link share fe80::/64, and ::/64 holds all kinds of addresses."""
    assert Peer(address, 1).source == address


def test_an_isatap_address_counts_as_its_network() -> None:
    """RFC 5214, 6.1: any host of an ordinary /64 could take such an address, with any IPv4 address in it."""
    for address in ("2001:db8::5efe:c000:201", "2001:db8::200:5efe:c000:202"):
        assert Peer(address, 1).source == "2001:db8::/64"


def test_the_zone_is_part_of_a_link_local_address_and_of_no_other() -> None:
    """The same address on another link is another host (RFC 4007). accept(2) tells the number of the interface."""
    number = socket.if_nametoindex("lo")
    peer = Peer("fe80::1", 7, 0, number)
    assert (peer.address, peer.source) == ("fe80::1%lo", "fe80::1%lo")
    unknown = Peer("fe80::1", 7, 0, 1 << 30)
    assert (unknown.address, unknown.source) == (f"fe80::1%{1 << 30}", f"fe80::1%{1 << 30}")
    plain = Peer("2001:db8::1", 7, 0, number)
    assert (plain.address, plain.source) == ("2001:db8::1", "2001:db8::/64")


def test_a_client_of_a_unix_socket_is_a_process_and_counts_for_its_user() -> None:
    """It has no address."""
    peer = UnixPeer(4711, 1000)
    assert (peer.fields(), peer.source, peer.address) == ({"pid": 4711, "uid": 1000}, "uid:1000", None)
    unknown = UnixPeer(None, None)
    assert (unknown.fields(), unknown.source) == ({"pid": None, "uid": None}, "uid:unknown")


@pytest.mark.parametrize(
    ("zone", "bound", "is_reachable"),
    [
        ("lo", LOOPBACK, True),
        (str(LOOPBACK), LOOPBACK, True),
        ("lo", 999_999, False),  # it was removed, and perhaps made anew
        ("999999", 999_999, False),
        ("other", LOOPBACK, False),  # it has another name now
    ],
)
def test_a_listener_is_reached_as_long_as_its_interface_is_there(zone: str, bound: int, *, is_reachable: bool) -> None:
    """One that was handed over may be of another network, with interfaces that we do not see."""

    class Bound:
        """A socket that is bound to an interface."""

        def getsockname(self) -> tuple[str, int, int, int]:
            return "fe80::1", 7, 0, bound

    sock: Any = Bound()
    listener = Listener(Endpoint("tcp", f"fe80::1%{zone}", 7), sock, "", None)
    assert listener.is_reachable is is_reachable
    assert listener._replace(inherited=True).is_reachable
