"""Attackers with one address and with thousands: what they get is bounded, and others are served."""

from __future__ import annotations

import contextlib
import json
import time
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest

from tests.support.bystander import unharmed
from tests.support.clients import Stream, fill
from tests.support.harness import DEADLINE, LOCAL, Echod, read_all, read_exactly, until
from tests.support.running_time import running_time

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

ATTACKER = "127.0.0.66"
ADDRESSES = 10_000
IDLE = 4
"""Seconds: more than a client that takes no longer than it has to may be late, also if its machine stands still for a moment."""
LATE = 3.0
"""Seconds that the janitor may take to see that somebody has been idle, on a machine that has other things to do."""
ENDLESS = 64 << 20
"""Bytes: more than all buffers on the way."""
LINES = 11
"""Of refusals a second, with the one that says how many had none."""


def addresses(number: int, first: int = 0) -> Iterator[str]:
    """Yield so many addresses of this machine, none of them one that a test uses otherwise."""
    for each in range(first, first + number):
        yield f"127.1.{each >> 8}.{each & 255}"


def attack(daemon: Echod, sources: Iterator[str]) -> int:
    """Connect from each, say something, and go; return how many were answered."""
    answered = 0
    for source in sources:
        with contextlib.suppress(ConnectionError), daemon.connect(source=source) as sock:
            sock.sendall(b"x")
            answered += read_exactly(sock, 1) == b"x"
    return answered


def refused(daemon: Echod, reason: str) -> int:
    """Return how many were refused for this reason, by the log."""
    lines = daemon.events("connection.rejected")
    assert {line["reason"] for line in lines} <= {reason}
    return sum(1 + sum(line.get("suppressed", {}).values()) for line in lines)


def hoard(daemon: Echod, stack: contextlib.ExitStack, number: int, source: str = ATTACKER) -> list[socket.socket]:
    """Connect so often, and do nothing."""
    return [stack.enter_context(daemon.connect(source=source)) for _ in range(number)]


def test_one_address_gets_its_share_and_the_log_stays_short(echod: Daemon) -> None:
    """Of 3,000 connections from one address that are held, so many as `per_source` says get a worker."""
    with (
        echod("[pool]\nsize = 100\n[access]\nper_source = 20") as daemon,
        contextlib.ExitStack() as stack,
        unharmed(daemon),
    ):
        began = time.monotonic()
        with contextlib.ExitStack() as attackers:
            hoard(daemon, attackers, 3000)
            until(lambda: refused(daemon, "per_source") == 2980, what="all others refused")
            assert len(daemon.events("connection.opened")) == 21
            assert len(daemon.events("connection.rejected")) <= LINES * (time.monotonic() - began + 1)
            others = [hoard(daemon, stack, 1, source)[0] for source in addresses(50)]
            for sock in others:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
        stack.close()


def test_a_rate_holds_against_10_000_addresses(echod: Daemon) -> None:
    """No source has more than one connection, and all of them together no more than the rate; no memory is left of them."""
    with echod("[access]\naccept_rate = '50/s'\nper_source = 1") as daemon, unharmed(daemon, memory=16 << 20):
        began = time.monotonic()
        answered = attack(daemon, addresses(ADDRESSES))
        seconds = time.monotonic() - began
        assert 50 - 1 <= answered <= 50 + 50 * seconds
        until(lambda: refused(daemon, "accept_rate") == ADDRESSES - answered, what="all others refused")
        assert len(daemon.events("connection.rejected")) <= LINES * (seconds + 1)


def test_nothing_is_remembered_of_10_000_addresses(echod: Daemon) -> None:
    """Each is served once, and its count goes with its connection: 10,000 others find as much room as the first."""
    config = "[access]\nper_source = 1\n[log]\nconnections = 'closed'"
    with echod(config, flags=["--admin.http", f"{LOCAL}:0"]) as daemon:
        assert attack(daemon, addresses(ADDRESSES)) == ADDRESSES
        until(lambda: len(daemon.events("connection.closed")) == ADDRESSES, what="all gone")
        before = daemon.memory()
        assert attack(daemon, addresses(ADDRESSES, ADDRESSES)) == ADDRESSES
        until(lambda: len(daemon.events("connection.closed")) == 2 * ADDRESSES, what="all gone again")
        assert daemon.memory() - before < 1 << 20
        assert sources(daemon) == []


def sources(daemon: Echod) -> list[dict[str, object]]:
    """Return those that the daemon counts."""
    port = daemon.wait_for("admin.started")["listener"].rpartition(":")[2]
    with contextlib.closing(HTTPConnection(LOCAL, int(port), timeout=DEADLINE)) as client:
        client.request("GET", "/status")
        found: list[dict[str, object]] = json.load(client.getresponse())["sources"]
    return found


@pytest.mark.parametrize("when_full", ["reject", "wait"])
def test_an_idle_hoard_keeps_others_out_no_longer_than_the_idle_timeout(echod: Daemon, when_full: str) -> None:
    """It has all workers, and comes again and again as long as it is not asked to take turns."""
    config = f"[pool]\nsize = 50\nwhen_full = '{when_full}'\n[timeouts]\nidle = "
    with echod(f"{config}'off'") as daemon, contextlib.ExitStack() as stack:
        hoarders = hoard(daemon, stack, 50)
        daemon.wait_for("pool.full")
        daemon.reload(f"{config}'2s'")
        began = running_time()
        until(lambda: is_served(daemon), what="served", interval=0.1)
        assert running_time() - began < 2 + LATE
        for sock in hoarders:
            assert read_all(sock) == b""
        daemon.wait_for("connection.closed", count=51)
        assert {line["reason"] for line in daemon.events("connection.closed")} == {"idle_timeout", "eof"}


def is_served(daemon: Echod) -> bool:
    with contextlib.suppress(ConnectionError), daemon.connect() as sock:
        sock.sendall(b"x")
        return read_exactly(sock, 1) == b"x"
    return False


def test_a_slow_drip_holds_its_share_of_workers_and_no_more(echod: Daemon) -> None:
    """A byte before each idle timeout is use as good as any: what bounds it is `per_source`, and others are served."""
    config = f"[pool]\nsize = 20\n[timeouts]\nidle = '{IDLE}s'\n[access]\nper_source = 10"
    with echod(config) as daemon, contextlib.ExitStack() as stack:
        drips = hoard(daemon, stack, 10)
        end = time.monotonic() + 1.5 * IDLE
        while time.monotonic() < end:
            for sock in drips:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
            with daemon.connect(source=ATTACKER) as eleventh:
                assert read_exactly(eleventh, 1) == b""
            assert is_served(daemon)
            time.sleep(IDLE / 8)  # the drip
        assert not [line for line in daemon.events("connection.closed") if line["client"]["address"] == ATTACKER]


def test_stalled_connections_hold_one_chunk_each_until_the_write_timeout(echod: Daemon) -> None:
    """Memory of the process stays within a read of 256 kB for each worker, whatever they send; then they are cut."""
    number = 40
    config = f"[pool]\nsize = {number + 1}\n[timeouts]\nwrite = "
    with (
        echod(f"{config}'off'") as daemon,
        contextlib.ExitStack() as stack,
        unharmed(daemon, memory=number * (256 << 10) + (8 << 20)),
    ):
        clients = [Stream(sock) for sock in hoard(daemon, stack, number)]
        fill(clients)
        assert max(client.sent for client in clients) < ENDLESS, "it reads on, although it can't write"
        daemon.reload(f"{config}'2s'")
        daemon.wait_for("connection.closed", count=number)
        assert {line["reason"] for line in daemon.events("connection.closed")} == {"write_timeout"}
