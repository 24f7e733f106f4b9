"""`[access]`: who comes in, who does not, and what both see of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import DEADLINE, LOCAL, Echod, command, read_all, read_exactly, until

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]

OTHER = "127.0.0.2"


def is_served(sock: socket.socket) -> bool:
    """Say whether the connection is echoed; otherwise it has to have been closed without a byte."""
    with contextlib.suppress(ConnectionError):
        sock.sendall(b"x")
        return read_exactly(sock, 1) == b"x"
    return False


def comes_in(daemon: Echod, source: str) -> bool:
    with daemon.connect(source=source) as sock:
        return is_served(sock)


@pytest.mark.parametrize(
    ("access", "here", "there"),
    [
        ("", True, True),
        ("allow = ['127.0.0.1']", True, False),
        ("allow = '127.0.0.0/8'", True, True),
        ("allow = ['10.0.0.0/8', '::1']", False, False),
        ("deny = ['127.0.0.2/31']", True, False),
        ("allow = ['127.0.0.0/8']\ndeny = ['127.0.0.1']", False, True),
        ("deny = ['::ffff:127.0.0.0/127', '::1']", False, True),
        ("deny = ['::/0']", True, True),
    ],
)
@pytest.mark.parametrize("host", [LOCAL, "*"])
def test_networks_say_who_comes_in(echod: Daemon, access: str, host: str, *, here: bool, there: bool) -> None:
    """Deny wins over allow; on a socket for both, an IPv4 client is one of IPv4."""
    with echod(f"[listen]\nhost = '{host}'\nport = 0\n[access]\n{access}") as daemon:
        assert [comes_in(daemon, LOCAL), comes_in(daemon, OTHER)] == [here, there]
        refused = [address for address, good in ((LOCAL, here), (OTHER, there)) if not good]
        for count, address in enumerate(refused, 1):
            line = daemon.wait_for("connection.rejected", count=count)
            assert (line["client"]["address"], line["reason"]) == (address, "denied")
        until(lambda: len(daemon.events("connection.closed")) == 2 - len(refused), what="the rest served")


def test_one_source_gets_its_share_and_no_more(echod: Daemon) -> None:
    """Others come in meanwhile, and it may come again when one of its connections has ended."""
    with echod("[access]\nper_source = 2") as daemon, daemon.connect() as first, daemon.connect() as second:
        assert is_served(first)
        assert is_served(second)
        assert not comes_in(daemon, LOCAL)
        assert daemon.wait_for("connection.rejected")["reason"] == "per_source"
        assert comes_in(daemon, OTHER)
        first.close()
        daemon.wait_for("connection.closed", count=2)
        assert comes_in(daemon, LOCAL)


_ADDRESSES = """\
ip link set dev lo up || exit
for address in $ADDRESSES; do ip -6 address add "$address/128" dev lo nodad || exit; done
exec "$@"
"""


def in_network_of(daemon: Echod, function: Callable[[], list[bool]]) -> list[bool]:
    """Call in a thread that has entered the daemon's network."""

    def enter() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/proc/{daemon.process.pid}/ns/net").open() as network:
            assert libc.setns(network.fileno(), 0) == 0, os.strerror(ctypes.get_errno())

    with ThreadPoolExecutor(1, initializer=enter) as thread:
        return thread.submit(function).result(DEADLINE)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and ip(8) for a network of its own")
@pytest.mark.parametrize(
    ("addresses", "served"),
    [
        (["fe80::1", "fe80::2"], [True, True]),
        (["64:ff9b::c000:201", "64:ff9b::c000:202"], [True, True]),
        (["64:ff9b::c000:201", "2002:c000:201:1::1", "2001:0:1:2:3:4:3fff:fdfe"], [True, False, False]),
        (["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"], [True, False, True]),
        (["::1", "127.0.0.1"], [True, True]),
    ],
)
def test_clients_of_one_link_or_translator_have_shares_of_their_own(
    echod: Daemon, addresses: list[str], served: list[bool]
) -> None:
    """And a client with several addresses that tell of one IPv4 address has one share."""
    more = [address for address in addresses if address not in ("::1", LOCAL)]
    prefix = ["unshare", "--net", "sh", "-c", _ADDRESSES, "sh"]
    config = "[listen]\nhost = '*'\nport = 7\n[access]\nper_source = 1"
    with echod(config, prefix=prefix, env={"ADDRESSES": " ".join(more)}) as daemon, contextlib.ExitStack() as stack:

        def connect_all() -> list[bool]:
            zone = {address: "%lo" if address.startswith("fe80") else "" for address in addresses}
            socks = [socket.create_connection((address + zone[address], 7), DEADLINE) for address in addresses]
            return [is_served(stack.enter_context(sock)) for sock in socks]

        assert in_network_of(daemon, connect_all) == served
        zoned = [f"{address}%lo" if address.startswith("fe80") else address for address in addresses]
        daemon.wait_for("connection.opened", count=sum(served))
        opened = [line["client"]["address"] for line in daemon.events("connection.opened")]
        assert opened == [address for address, good in zip(zoned, served, strict=True) if good]


@pytest.mark.slow
def test_a_burst_of_a_second_comes_in_and_the_rest_does_not(echod: Daemon) -> None:
    """With room for far more in the pool; later, the next one comes in."""
    with echod("[access]\naccept_rate = '10/m'") as daemon:  # a token takes 6 seconds: the burst is over before
        with daemon.connect() as one, daemon.connect() as another:
            assert [is_served(one), is_served(another)] == [True, False]
        assert daemon.wait_for("connection.rejected")["reason"] == "accept_rate"
        until(lambda: comes_in(daemon, OTHER), what="a token", interval=0.2)


def test_a_rate_is_kept_under_a_flood(echod: Daemon) -> None:
    """Of 1,000 connections as fast as they come, there are the burst and what the time allows."""
    with echod("[access]\naccept_rate = '50/s'") as daemon:
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(daemon.connect(source=f"127.0.1.{n % 250 + 1}")) for n in range(1000)]
            served = sum(map(is_served, socks))
        assert 50 <= served <= 50 + 50 * (time.monotonic() - began) + 1
        until(lambda: len(daemon.events("connection.closed")) == served, what="the served ones closed")


def test_a_denied_source_can_not_use_up_the_rate(echod: Daemon) -> None:
    """What it is refused costs nobody else anything."""
    with echod(f"[access]\naccept_rate = '1/h'\ndeny = ['{OTHER}']") as daemon:
        for _ in range(30):
            assert not comes_in(daemon, OTHER)
        assert comes_in(daemon, LOCAL)


def test_who_waits_for_a_worker_is_asked_when_one_is_free(echod: Daemon) -> None:
    """With `wait`, a source over its share is not served when its turn has come, and the next one is."""
    with (
        echod("[pool]\nsize = 1\nwhen_full = 'wait'\n[access]\nallow = ['127.0.0.1']") as daemon,
        daemon.connect() as seated,
        daemon.connect(source=OTHER) as denied,
        daemon.connect() as waiting,
    ):
        assert is_served(seated)
        seated.close()
        assert read_all(denied) == b""
        assert is_served(waiting)


@pytest.mark.slow
def test_a_rule_that_lets_nobody_in_is_refused(echod: Daemon) -> None:
    """Before it hurts, by `check`, and by a reload."""
    text = "[access]\nallow = ['10.0.0.0/8', '192.0.2.1']\ndeny = ['10.0.0.0/9', '10.128.0.0/9', '192.0.2.0/24']"
    with echod("[access]\nallow = ['127.0.0.0/8']") as daemon:
        line = f"{daemon.file}:3: access.deny: covers all of access.allow: nobody could connect"
        assert daemon.reload(text)["errors"] == [line]
        done = command("check", "-c", str(daemon.file))
        assert (done.returncode, done.stdout, done.stderr) == (78, "", f"{line}\n")
        assert comes_in(daemon, LOCAL)


@pytest.mark.slow
def test_10_000_networks_are_no_burden(echod: Daemon) -> None:
    """They load, are looked up, and a reload takes them while connections are served."""
    networks = ", ".join(f"'10.{n >> 8}.{n & 255}.0/25'" for n in range(10_000))
    with echod("[pool]\nsize = 9") as daemon, daemon.connect() as sock:
        assert is_served(sock)
        answer = daemon.reload(f"[pool]\nsize = 9\n[access]\ndeny = [{networks}]")
        assert answer["new"]["access.deny"][-1] == "and 9980 more"
        assert is_served(sock)
        assert comes_in(daemon, LOCAL)
