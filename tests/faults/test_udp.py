"""Datagrams whose source is forged, and machines with several addresses."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.bystander import unharmed
from tests.support.datagrams import client, forged, forger
from tests.support.harness import DEADLINE, LOCAL, Echod, command, until
from tests.support.link import Link
from tests.support.running_time import running_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.slow

FORGED = 50_000 * int(os.environ.get("ECHOD_TEST_EXAMPLES", "1"))
"""Sources that are forged; ECHOD_TEST_EXAMPLES=20 makes them a million."""
OTHER = "127.0.0.2"


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    try:
        with forger():
            pass
    except PermissionError as error:
        pytest.skip(f"needs root: {error}")


class Udp:
    """A daemon that answers UDP."""

    def __init__(self, daemon: Echod, admin: Path) -> None:
        self.daemon = daemon
        self._admin = str(admin)
        urls = [line["listener"] for line in daemon.events("listener.started")]
        url = next(url for url in urls if url.startswith("udp:"))
        self.port = int(url.rpartition(":")[2])

    def books(self) -> dict[str, Any]:
        books: dict[str, Any] = json.loads(command("status", "--json", "--admin.socket", self._admin).stdout)["udp"]
        return books

    def results(self) -> dict[str, int]:
        """Return how many datagrams have had which result."""
        return {result: number for result, number in self.books()["datagrams"].items() if number}


@contextlib.contextmanager
def answering(tmp_path: Path, *flags: str, name: str = "one") -> Iterator[Udp]:
    """Start a daemon that answers UDP, on any port."""
    directory = tmp_path / name
    directory.mkdir()
    admin = directory / "admin.sock"
    words = ["--udp.port", "0", *flags, "--admin.socket", str(admin)]
    with Echod(directory=directory, flags=words) as daemon:
        yield Udp(daemon, admin)


@pytest.fixture
def link() -> Iterator[Link]:
    try:
        with Link() as link:
            yield link
    except OSError as error:
        pytest.skip(f"needs /dev/net/tun and ip (iproute2): {error}")


# Loops


def test_two_daemons_that_a_forged_datagram_points_at_each_other_fall_silent(tmp_path: Path) -> None:
    """With the first datagram that the rate drops; within two seconds."""
    with answering(tmp_path) as one, answering(tmp_path, name="other") as other, forger() as sock:
        began = running_time()
        sock.sendto(forged((LOCAL, one.port), (LOCAL, other.port)), (LOCAL, 0))
        until(lambda: one.daemon.events("udp.dropped") or other.daemon.events("udp.dropped"), what="the end")
        assert running_time() - began < 2
        results = one.results(), other.results()
        assert sum(each.get("rate", 0) for each in results) == 1
        assert 100 <= sum(each["echoed"] for each in results) <= 1000
        assert (one.results(), other.results()) == results


def test_daemons_on_one_port_do_not_answer_each_other_at_all(tmp_path: Path) -> None:
    """It is a port of their own."""
    with answering(tmp_path, "--listen.host", LOCAL) as one, forger() as sock:
        flags = ["--listen.host", OTHER, "--udp.port", str(one.port)]
        with answering(tmp_path, *flags, name="other") as other:
            sock.sendto(forged((LOCAL, one.port), (OTHER, one.port)), (OTHER, 0))
            assert other.daemon.wait_for("udp.dropped")["reasons"] == {"source_port": 1}
            assert one.results() == {}


@pytest.mark.parametrize("port", [7, 13, 19, 53, 123, 1023])
def test_a_service_that_would_answer_gets_no_datagram(tmp_path: Path, port: int) -> None:
    """Echo, daytime, chargen, DNS, NTP."""
    with (
        answering(tmp_path) as one,
        forger() as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service,
    ):
        service.bind((OTHER, port))
        sock.sendto(forged((OTHER, port), (LOCAL, one.port)), (LOCAL, 0))
        assert one.daemon.wait_for("udp.dropped")["reasons"] == {"source_port": 1}
        assert not select.select([service], [], [], 0)[0]


def test_sources_that_are_no_client_get_no_answer(tmp_path: Path) -> None:
    """The kernel drops most of these by itself."""
    with answering(tmp_path, "--listen.host", "*") as one, forger() as sock, client() as honest:
        for source in ("0.0.0.1", "255.255.255.255", "224.0.0.1", "127.255.255.255", "240.0.0.1"):
            sock.sendto(forged((source, 40000), (LOCAL, one.port)), (LOCAL, 0))
        honest.sendto(b"x", (LOCAL, one.port))
        assert honest.recv(9) == b"x"
        assert one.results().keys() <= {"echoed", "source_address", "failed"}
        assert one.results()["echoed"] == 1


# Floods


def test_a_flood_of_forged_sources_costs_no_memory_and_no_connection(link: Link, tmp_path: Path) -> None:
    """However many there are; and no more is answered than the rates let through.

    In a network of its own: the machine's may have a table of connections (conntrack), and this would fill it.
    """
    with link.server.entered(), answering(tmp_path) as one, forger() as sock:
        with unharmed(one.daemon):
            sock.sendto(forged(("127.1.0.1", 4711), (LOCAL, one.port)), (LOCAL, 0))
            before, began = one.daemon.memory(), time.monotonic()
            for number in range(FORGED):
                source = f"127.{number >> 16 & 127 | 1}.{number >> 8 & 255}.{number & 255}"
                sock.sendto(forged((source, 1024 + number % 60000), (LOCAL, one.port)), (LOCAL, 0))
            seconds = time.monotonic() - began
            grown = one.daemon.memory() - before
        assert grown < 512 << 10, grown
        books = one.books()
        assert books["datagrams"]["echoed"] <= 10_000 * (seconds + 1.5)
        assert sum(books["datagrams"].values()) + books["kernel_drops"] == FORGED + 1


def test_the_rates_hold(tmp_path: Path) -> None:
    """Of one source, and of all of them, once the burst of a second is over."""
    flags = ["--udp.rate", "100/s", "--udp.total_rate", "300/s"]
    with answering(tmp_path, *flags) as one, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(f"127.0.1.{number}")) for number in range(1, 21)]
        for some, rate in ((clients[:1], 100), (clients, 300)):
            answers, seconds = flooded(some, one.port, 2)
            assert abs(answers / seconds - rate) <= rate * 0.05


def flooded(clients: Sequence[socket.socket], port: int, seconds: float) -> tuple[int, float]:
    """Send more than the rates for so long; return how many answers there were, and the seconds of the rates that they had.

    The answers of a second are saved for clients that were held up. They are spent at the beginning and at the end.
    """
    answers, lost = 0, 0.0
    began, last = math.inf, time.monotonic()
    spent = last + 0.5
    while last < max(began + seconds, spent):
        if began == math.inf and last >= spent:
            began, answers, lost = last, 0, 0.0
        for sock in clients:
            for _ in range(20 // len(clients)):
                sock.sendto(b"x", (LOCAL, port))
        time.sleep(0.002)
        for sock in select.select(clients, [], [], 0)[0]:
            while select.select([sock], [], [], 0)[0]:
                sock.recv(9)
                answers += 1
        now = time.monotonic()
        if now - last > 0.1:
            spent, lost = now + 0.5, lost + max(0.0, now - last - 1)
        last = now
    return answers, last - began - lost


# Several addresses


THEIRS = ["10.0.0.1", "10.0.0.11", "fd00::1", "fd00::11"]
OURS = ["10.0.0.2", "10.0.0.12", "10.9.9.9", "fd00::2", "fd00::12", "fd09::9"]


def add(link: Link) -> None:
    """Give each side more addresses, of which one of each family is on no link: as that of a VIP."""
    for network, addresses in ((link.client, THEIRS[1:]), (link.server, OURS[1:])):
        with network.entered():
            for address in addresses:
                device = "lo" if "9" in address else "link"
                width = ("128" if ":" in address else "32") if device == "lo" else ("64" if ":" in address else "24")
                words = ["address", "add", f"{address}/{width}", "dev", device]
                subprocess.run(["ip", *words, *(["nodad"] if ":" in address else [])], check=True)  # noqa: S607
    with link.client.entered():
        for network_of in ("10.9.9.0/24", "fd09::/64"):
            subprocess.run(["ip", "route", "add", network_of, "dev", "link"], check=True)  # noqa: S607


@pytest.mark.parametrize("hosts", ["*", ",".join(OURS)])
def test_an_answer_comes_from_the_address_that_was_asked(link: Link, tmp_path: Path, hosts: str) -> None:
    """Of several ones, IPv4 and IPv6, on the link and elsewhere, to each of several addresses of a client."""
    add(link)
    with link.server.entered(), answering(tmp_path, "--listen.host", hosts, "--udp.rate", "1000/s") as one:
        for theirs in THEIRS:
            with contextlib.ExitStack() as stack:
                with link.client.entered():
                    sock = stack.enter_context(client(theirs))
                for ours in OURS:
                    if (":" in ours) == (":" in theirs):
                        sock.sendto(b"x", (ours, one.port))
                        data, source = sock.recvfrom(9)
                        assert (data, source[:2]) == (b"x", (ours, one.port))


def test_neighbours_on_a_link_get_their_answers(link: Link, tmp_path: Path) -> None:
    """A link-local address is one of its interface."""
    for network, address in ((link.client, "fe80::1"), (link.server, "fe80::2")):
        with network.entered():
            subprocess.run(["ip", "address", "add", f"{address}/64", "dev", "link", "nodad"], check=True)  # noqa: S607
    with (
        link.server.entered(),
        answering(tmp_path, "--listen.host", "*") as one,
        link.client.entered(),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(DEADLINE)
        scope = socket.if_nametoindex("link")
        sock.bind(("fe80::1", 0, 0, scope))
        sock.sendto(b"x", ("fe80::2", one.port, 0, scope))
        assert sock.recvfrom(9) == (b"x", ("fe80::2", one.port, 0, scope))


def test_a_broadcast_of_the_link_gets_no_answer(link: Link, tmp_path: Path) -> None:
    """With one forged datagram, all of a network would answer."""
    with link.server.entered(), answering(tmp_path, "--listen.host", "*") as one:
        with link.client.entered(), client("10.0.0.1") as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for address in ("10.0.0.255", "255.255.255.255", "224.0.0.1"):
                with contextlib.suppress(OSError):  # no route
                    sock.sendto(b"x", (address, one.port))
            sock.sendto(b"y", ("10.0.0.2", one.port))
            assert sock.recv(9) == b"y"
        results = one.results()
        assert results.keys() == {"echoed", "destination"}
        assert results["echoed"] == 1
