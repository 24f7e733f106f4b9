"""Whatever is sent by UDP: what comes back is exactly what was sent, from where it was sent to, or nothing."""

from __future__ import annotations

import os
import select
import socket
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from hypothesis import example, given, settings
from hypothesis import strategies as st

from echod.server import udp
from tests.support.fakes import has_ipv6
from tests.support.rig import Rig
from tests.support.rig import settings as configured

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES = int(os.environ.get("ECHOD_TEST_EXAMPLES", "1"))
MOST = 1472
ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.1.2.3", "127.255.255.255", *(["::1"] if has_ipv6() else [])]
BROADCAST = "127.255.255.255"

sizes = st.one_of(st.sampled_from([0, 1, MOST - 1, MOST, MOST + 1, 60_000]), st.integers(0, 4000))
datagrams = st.lists(st.tuples(st.sampled_from(ADDRESSES), sizes, st.booleans()), max_size=2 * udp.BATCH)
levels = st.sampled_from([socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.SOL_SOCKET])
kinds = st.sampled_from([udp._IP_PKTINFO, socket.IPV6_PKTINFO, 29])
messages = st.lists(st.tuples(levels, kinds, st.binary(max_size=24) | st.binary(min_size=12, max_size=12)), max_size=4)


@settings(max_examples=25 * EXAMPLES)
@given(st.sampled_from(["*", "127.0.0.2", "::1", "127.0.0.1,127.0.0.2,::1"] if has_ipv6() else ["0.0.0.0"]), datagrams)  # noqa: S104
@example("*" if has_ipv6() else "0.0.0.0", [(each, 5, False) for each in ADDRESSES])  # noqa: S104
def test_a_datagram_makes_one_of_the_same_bytes_or_none(hosts: str, sent: Sequence[tuple[str, int, bool]]) -> None:
    """From a client's port, to an address on which it listens and which is one, and not too large: else none."""
    wanted = configured(
        listen__host=hosts, listen__port=0, udp__port=0, udp__rate="off", udp__total_rate="off", udp__max_size=MOST
    )
    with closing(Rig()) as rig, ExitStack() as stack:
        rig.listeners.serve(wanted, rig.listeners.bind(wanted))
        rig.datagrams.set(wanted.udp)
        port = rig.port("udp")
        clients = {address: stack.enter_context(client(address)) for address in ADDRESSES}
        for number, (address, size, _) in enumerate(sent):
            data = (b"%d " % number).ljust(size, b"x")[:size]
            clients[address].sendto(data, (address, port))
            rig.readable()
            answered = hosts in ("*", "0.0.0.0") and address != BROADCAST  # noqa: S104
            expected = [(data, address, port)] if size <= MOST and (answered or address in hosts.split(",")) else []
            assert received(clients[address]) == expected


def client(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.bind(("::1" if ":" in address else "127.0.0.9", 0))
    return sock


def received(sock: socket.socket) -> list[tuple[bytes, str, int]]:
    """Return what has come back, and from where."""
    found = []
    while select.select([sock], [], [], 0)[0]:
        data, address = sock.recvfrom(1 << 16)
        found.append((data, address[0], address[1]))
    return found


@settings(max_examples=200 * EXAMPLES)
@given(messages)
def test_whatever_the_kernel_tells_of_a_datagram_is_taken(ancillary: list[tuple[int, int, bytes]]) -> None:
    """Also messages of other kinds, several ones, or such that were cut; at most one goes with the answer."""
    _, answer_from = udp._asked(ancillary)
    assert len(answer_from) <= 1
    for level, kind, value in answer_from:
        assert len(value) in [len(each) for *which, each in ancillary if which == [level, kind]]
