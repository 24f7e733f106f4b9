"""A bad network between the daemon and its clients: peers that vanish, and packets that are lost, late and out of order."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support.bystander import unharmed
from tests.support.clients import Stream, fill, make_small, run, streams
from tests.support.harness import DEADLINE, Echod, until
from tests.support.link import SERVER, Link
from tests.support.running_time import running_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

ANYWHERE = '[listen]\nhost = "*"\nport = 0\n'
EACH = 5
"""Peers of each kind that vanish."""
DELAY = 0.01
SIZES = (1, 535, 536, 537, 5_000, 50_000, 200_000) * 6
"""Bytes of the conversations on a bad network; a full segment has 524 or 536."""


@pytest.fixture(scope="module", autouse=True)
def _needs_a_link() -> None:
    try:
        with Link():
            pass
    except OSError as error:
        pytest.skip(f"needs root, /dev/net/tun and ip (iproute2): {error}")


class Peers:
    """Clients at the other end of a link, of each kind that can be left over when it breaks."""

    def __init__(self, link: Link, clients: list[Stream]) -> None:
        self._link = link
        self.all = clients
        self.silent, self.pending, self.finished = (self.all[kind::3] for kind in range(3))
        until(lambda: all(_said(client, 10) for client in self.silent), what="a word from the silent")
        until(lambda: all(_heard_all(client) for client in self.silent), what="echo")
        # The daemon's kernel has the FIN of these, behind bytes that it has not given to the daemon.
        until(lambda: all(_said(client, 100_000) for client in self.finished), what="all said", interval=0.001)
        for client in self.finished:
            client.sock.shutdown(socket.SHUT_WR)
        until(lambda: not any(client.unacknowledged() for client in self.finished), what="FIN acknowledged")
        fill(self.pending)

    def vanish(self) -> None:
        """Drop every packet from now on. They don't know: they read, and go on sending."""
        self._link.loss = 1
        for client in self.all:
            client.hear()
        for client in self.silent + self.pending:
            client.send()


@contextlib.contextmanager
def peers(link: Link, daemon: Echod) -> Iterator[Peers]:
    with streams(3 * EACH, lambda: connected(link, daemon)) as clients:
        yield Peers(link, clients)


def connected(link: Link, daemon: Echod) -> socket.socket:
    sock = make_small(link.socket())
    sock.settimeout(DEADLINE)
    sock.connect((SERVER, daemon.port))
    return sock


def _said(client: Stream, size: int) -> bool:
    client.send(size - client.sent)
    return client.sent == size


def _heard_all(client: Stream) -> bool:
    client.hear()
    return client.heard == client.sent


def reasons(daemon: Echod, clients: Sequence[Stream]) -> set[str]:
    return {daemon.closed(client.sock)["reason"] for client in clients}


def set_tcp(name: str, value: int) -> None:
    """Set what holds in the network that this thread is in (tcp(7))."""
    Path(f"/proc/sys/net/ipv4/tcp_{name}").write_text(str(value))


def test_peers_that_vanish_are_ended_by_the_timeouts(echod: Daemon) -> None:
    """The silent as idle, those with echo pending because it does not move; who is on another way does not notice."""
    with Link() as link, link.server.entered(), echod(f'{ANYWHERE}[timeouts]\nidle = "off"\nwrite = "off"') as daemon:
        with unharmed(daemon), peers(link, daemon) as they:
            they.vanish()
            daemon.reload(f'{ANYWHERE}[timeouts]\nidle = "5s"\nwrite = "4s"')
            assert reasons(daemon, they.pending + they.finished) == {"write_timeout"}
            assert reasons(daemon, they.silent) == {"idle_timeout"}
        assert link.lost > 0


def test_peers_that_vanish_are_found_without_timeouts_too(echod: Daemon) -> None:
    """The kernel gives up on them: on the silent by keepalive, here after seconds instead of hours."""
    with Link() as link, link.server.entered():
        # Meanwhile, a link that is slow to hand over an answer is no reason to give up.
        for name, value in (("keepalive_time", 1), ("keepalive_intvl", 1), ("keepalive_probes", 100)):
            set_tcp(name, value)
        with echod(f'{ANYWHERE}[timeouts]\nidle = "off"\nwrite = "off"') as daemon:
            with unharmed(daemon), peers(link, daemon) as they:
                they.vanish()
                for name in ("keepalive_probes", "retries2"):
                    set_tcp(name, 2)
                lines = [daemon.closed(client.sock) for client in they.all]
            assert {(line["reason"], line["error"]) for line in lines} == {("error", "ETIMEDOUT")}


def test_peers_that_have_vanished_do_not_hold_up_a_stop(echod: Daemon) -> None:
    """They are cut after the drain deadline, within the time that a stop may take."""
    with Link() as link, link.server.entered(), echod(f'{ANYWHERE}[timeouts]\ndrain = "1s"') as daemon:
        with peers(link, daemon) as they:
            they.vanish()
            began = running_time()
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
            assert running_time() - began < 1 + 6
            assert reasons(daemon, they.all) == {"drained"}
        assert daemon.lines[-1]["aborted"] == 3 * EACH


# Packets lost, late, out of order


class Crowd:
    """Clients with conversations of different sizes, all at one time."""

    def __init__(self, link: Link, daemon: Echod) -> None:
        self._link = link
        self._port = daemon.port
        self.go_on = threading.Event()

    async def converse(self) -> None:
        """Let each send half, wait for `go_on`, send the other half and finish, and get all of it back."""
        some = random.Random(862)
        async with asyncio.timeout(3 * DEADLINE), asyncio.TaskGroup() as group:
            for size in SIZES:
                group.create_task(self._client(some.randbytes(size)))

    async def _client(self, data: bytes) -> None:
        with self._link.socket() as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (SERVER, self._port))
            reader, writer = await asyncio.open_connection(sock=sock)
            try:
                writer.write(data[: len(data) // 2])
                await asyncio.to_thread(self.go_on.wait)
                writer.write(data[len(data) // 2 :])
                writer.write_eof()
                same = (
                    await reader.read(-1) == data
                )  # beside `assert`, pytest would look for the difference for minutes
                assert same, f"not what was said, of {len(data)} bytes"
            finally:
                writer.transport.abort()


def bad_link() -> Link:
    return Link(mtu=576, loss=0.05, delay=DELAY, jitter=DELAY)


def assert_it_was_bad(link: Link) -> None:
    """Assert that there was what the daemon is to cope with: by the link's own books, and by TCP's."""
    assert link.largest == 576
    assert link.lost > 0.02 * link.delivered
    assert link.overtaken > 0.1 * link.delivered
    assert link.server.count("RetransSegs") > 0
    assert link.server.count("TCPOFOQueue") > 0


def assert_all_is_in_the_log(daemon: Echod) -> None:
    lines = [line for line in daemon.events("connection.closed") if line["client"]["address"] != "127.0.0.1"]
    assert (
        sorted(line["bytes_sent"] for line in lines)
        == sorted(line["bytes_received"] for line in lines)
        == sorted(SIZES)
    )
    assert {line["reason"] for line in lines} == {"eof"}
    assert sum(line["tcp"]["retrans"] for line in lines) > 0
    assert min(line["tcp"]["rtt"] for line in lines) > DELAY


def test_on_a_bad_network_every_byte_comes_back_in_order(echod: Daemon) -> None:
    """42 conversations at one time, 5 % of the packets lost each way, the others late and out of order, none above 576 bytes."""
    with bad_link() as link, link.server.entered(), echod(ANYWHERE) as daemon:
        with unharmed(daemon):
            crowd = Crowd(link, daemon)
            crowd.go_on.set()
            uvloop.run(crowd.converse())
            daemon.wait_for("connection.closed", count=len(SIZES))
        assert_it_was_bad(link)
        assert_all_is_in_the_log(daemon)


def test_a_drain_on_a_bad_network_loses_nothing(echod: Daemon) -> None:
    """It begins in the middle of 42 conversations; all of them come to their end, and no byte is missing."""
    with (
        bad_link() as link,
        link.server.entered(),
        echod(f'{ANYWHERE}[timeouts]\ndrain = "5m"') as daemon,
        ThreadPoolExecutor(1) as threads,
    ):
        crowd = Crowd(link, daemon)
        conversing = threads.submit(uvloop.run, crowd.converse())
        try:
            daemon.wait_for("connection.opened", count=len(SIZES))
            daemon.signal(signal.SIGTERM)
            daemon.wait_for("listener.stopped")
        finally:
            crowd.go_on.set()
        conversing.result()
        assert daemon.wait() == 0
        assert daemon.lines[-1]["aborted"] == 0
        assert_it_was_bad(link)
        assert_all_is_in_the_log(daemon)


def test_at_the_drain_deadline_on_a_bad_network_clients_have_a_part_of_their_echo(echod: Daemon) -> None:
    """Who goes on sending gets the exact beginning of its echo, then FIN or a reset, within the time that a stop may take."""
    with (
        bad_link() as link,
        link.server.entered(),
        echod(f'{ANYWHERE}[timeouts]\ndrain = "500ms"') as daemon,
        streams(20, lambda: connected(link, daemon)) as clients,
        ThreadPoolExecutor(1) as threads,
    ):
        running = threads.submit(run, clients, writing=True)
        until(lambda: all(client.heard for client in clients) or running.done(), what="echo for all")
        began = running_time()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert running_time() - began < 0.5 + 6
        running.result()
        lines = [daemon.closed(client.sock) for client in clients]
        assert {line["reason"] for line in lines} == {"drained"}
        assert all(line["bytes_sent"] >= client.heard for line, client in zip(lines, clients, strict=True))
