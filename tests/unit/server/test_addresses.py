"""What the address of a client is, and what it counts for."""

from __future__ import annotations

import pytest

from echod.server.addresses import source, unmapped


@pytest.mark.parametrize(
    ("address", "meant"),
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
def test_an_ipv4_mapped_address_is_an_ipv4_one(address: str, meant: str) -> None:
    """As a dual-stack socket has it for a client of IPv4; what only looks like it stays."""
    assert unmapped(address) == meant


@pytest.mark.parametrize(
    ("address", "counts_for"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
    ],
)
def test_a_source_is_an_address_or_an_ipv6_network(address: str, counts_for: str) -> None:
    """A host has as many addresses of its /64 as it likes."""
    assert source(address) == counts_for
