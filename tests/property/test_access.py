"""Networks and the rate, against their definitions."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from echod.networks import Ranges
from echod.server.access import Bucket

if TYPE_CHECKING:
    from echod.networks import Network

ROUNDING = 1e-6
ADDRESSES = 32


class World(NamedTuple):
    """A few neighbouring addresses, so that networks and addresses often overlap."""

    first: int
    bits: int

    def address(self, offset: int) -> str:
        kind = IPv4Address if self.bits == 32 else IPv6Address
        return str(kind(self.first + offset))

    def network(self, offset: int, length: int) -> Network:
        kind = IPv4Network if self.bits == 32 else IPv6Network
        return kind((self.first + offset, length), strict=False)


WORLDS = st.sampled_from(
    [
        World(0, 32),
        World(2**32 - ADDRESSES, 32),
        World(int(IPv4Address("10.0.127.240")), 32),
        World(0, 128),
        World(2**128 - ADDRESSES, 128),
        World(int(IPv6Address("2001:db8::fff0")), 128),
    ]
)
OFFSETS = st.integers(0, ADDRESSES - 1)
SIZES = st.one_of(st.integers(0, 3), st.integers(0, 6), st.integers(0, 32))  # of networks, in bits; most of them small
NETWORKS = st.lists(st.tuples(OFFSETS, SIZES), max_size=12)


@given(WORLDS, NETWORKS)
@example(World(0, 32), [(0, 0), (2, 0)])
def test_an_address_is_in_the_ranges_if_it_is_in_one_of_the_networks(
    world: World, drawn: list[tuple[int, int]]
) -> None:
    """This holds for IPv4 and for IPv6."""
    networks = [world.network(offset, world.bits - size) for offset, size in drawn]
    ranges = Ranges(networks)
    for address in map(world.address, range(ADDRESSES)):
        assert (address in ranges) == any(ipaddress.ip_address(address) in network for network in networks)


@given(NETWORKS, NETWORKS, OFFSETS)
def test_ipv4_and_ipv6_networks_are_kept_apart(
    drawn4: list[tuple[int, int]], drawn6: list[tuple[int, int]], offset: int
) -> None:
    """An IPv4 address and an IPv6 address with the same number are different addresses."""
    four, six = World(0, 32), World(0, 128)
    networks4 = [four.network(offset, 32 - size) for offset, size in drawn4]
    networks6 = [six.network(offset, 128 - size) for offset, size in drawn6]
    both = Ranges([*networks6, *networks4])
    assert (four.address(offset) in both) == (four.address(offset) in Ranges(networks4))
    assert (six.address(offset) in both) == (six.address(offset) in Ranges(networks6))


@given(WORLDS, NETWORKS, OFFSETS, SIZES)
@example(World(0, 32), [(2, 1), (0, 1)], 0, 2)
@example(World(0, 128), [(0, 1), (2, 0), (3, 0)], 0, 2)
def test_a_network_is_covered_if_the_union_holds_it(
    world: World, drawn: list[tuple[int, int]], offset: int, size: int
) -> None:
    """Two networks overlap only if one holds the other, so the collapsed union holds it in one network or not at all."""
    networks = [world.network(offset, world.bits - size) for offset, size in drawn]
    asked = world.network(offset, world.bits - size)
    union = ipaddress.collapse_addresses(networks)  # type: ignore[type-var] # all of them are of one version
    assert Ranges(networks).covers(asked) == any(asked.subnet_of(network) for network in union)  # type: ignore[arg-type]


RATES = st.one_of(st.sampled_from([0.5, 1.0, 10.0]), st.floats(1 / 3600, 1e4))
GAPS = st.one_of(st.just(0.0), st.floats(0.0, 3.0))


@given(RATES, st.lists(GAPS, min_size=1, max_size=60))
def test_no_window_of_time_lets_in_more_than_the_burst_and_the_rate(rate: float, gaps: list[float]) -> None:
    """The window may begin and end at any time."""
    bucket = Bucket(rate, 1000.0)
    let_in = [now for now in accumulate(gaps, initial=1000.0) if bucket.take(now)]
    burst = max(1.0, rate)
    for first, begin in enumerate(let_in):
        for last, end in enumerate(let_in[first:], first):
            assert last - first + 1 <= burst + rate * (end - begin) + ROUNDING


@given(st.floats(1 / 3600, 20.0), st.lists(st.integers(1, 40), min_size=1, max_size=10), st.floats(0.0, 3.0))
def test_crowds_are_let_in_up_to_the_burst_and_the_rate(rate: float, crowds: list[int], gap: float) -> None:
    """The first crowd gets as many as the burst allows."""
    bucket = Bucket(rate, 1000.0)
    let_in = [sum(bucket.take(1000.0 + gap * number) for _ in range(size)) for number, size in enumerate(crowds)]
    burst = max(1.0, rate)
    assert let_in[0] == min(crowds[0], int(burst))
    for first in range(len(crowds)):
        for last in range(first, len(crowds)):
            assert sum(let_in[first : last + 1]) <= burst + rate * gap * (last - first) + ROUNDING


@given(RATES, st.lists(st.floats(1.0, 3.0), min_size=1, max_size=40))
def test_clients_no_faster_than_the_rate_are_all_let_in(rate: float, gaps: list[float]) -> None:
    """None of them is refused."""
    bucket = Bucket(rate, 1000.0)
    times = accumulate((gap / rate * (1 + ROUNDING) for gap in gaps), initial=1000.0)
    assert all(bucket.take(now) for now in times)
