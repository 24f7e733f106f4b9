"""Endpoints and peers as values."""

from __future__ import annotations

import pytest

from echod.server.endpoint import Endpoint, Peer


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        (Endpoint("tcp", "127.0.0.1", 7), "tcp://127.0.0.1:7"),
        (Endpoint("tcp", "::1", 7), "tcp://[::1]:7"),
        (Endpoint("tcp", "::", 0), "tcp://[::]:0"),
        (Endpoint("tcp", "fe80::1%eth0", 7), "tcp://[fe80::1%eth0]:7"),
        (Endpoint("tls", "*", 7007), "tls://*:7007"),
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
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_the_source_of_a_peer_is_an_ipv4_address_or_an_ipv6_network(address: str, source: str) -> None:
    """A host may use any number of addresses in its /64 network, so all of them count as one. A zone does not count."""
    assert Peer(address, 1).source == source
