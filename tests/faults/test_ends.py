"""Clients that leave at the worst moment, hundreds at a time: one line each, and nothing is left of them."""

from __future__ import annotations

import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from echod.server.drain import LINGER
from tests.support.bystander import unharmed
from tests.support.clients import CHUNK, deaf, fill, finish, run, streams
from tests.support.harness import DEADLINE, Echod, reset, until
from tests.support.running_time import running_time

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

CLIENTS = 300
ROUNDS = 2
ROUNDS_EACH = 100
"""Connections that each client makes which comes and goes, one after the other."""


def before_accept(daemon: Echod) -> None:
    """They are in the backlog; half of them have sent something."""
    with daemon.suspended(), streams(CLIENTS, daemon.connect) as clients:
        for client in clients[::2]:
            client.send(100)
        for client in clients:
            reset(client.sock)


def right_after_accept(daemon: Echod) -> None:
    """As soon as they are connected, whatever the daemon is at."""
    for _ in range(CLIENTS):
        reset(daemon.connect())


def with_echo_pending(daemon: Echod) -> None:
    """The daemon has bytes for them that its kernel does not take."""
    with streams(CLIENTS, lambda: deaf(daemon)) as clients:
        fill(clients)
        for client in clients:
            reset(client.sock)


def with_input_unread(daemon: Echod) -> None:
    """All of their echo has come; they close without a look at it, which is a reset (RFC 2525, 2.17)."""
    with streams(CLIENTS, daemon.connect) as clients:
        for client in clients:
            client.send(1)
        for client in clients:
            client.sock.settimeout(DEADLINE)
            assert client.sock.recv(1, socket.MSG_PEEK)


@pytest.mark.parametrize(
    "stage",
    [
        before_accept,
        right_after_accept,
        pytest.param(with_echo_pending, marks=pytest.mark.slow),
        with_input_unread,
    ],
)
def test_a_storm_of_resets_is_one_line_each(echod: Daemon, stage: Callable[[Echod], None]) -> None:
    """At whatever stage, each ends as `reset`, and every worker serves again."""
    one_each = f"[pool]\nsize = {CLIENTS + 1}"  # and one for the bystander: who is lost is missed in the next round
    with echod(one_each) as daemon:
        with unharmed(daemon, memory=CLIENTS * CHUNK):
            for number in range(1, ROUNDS + 1):
                stage(daemon)
                daemon.wait_for("connection.closed", count=number * CLIENTS)
        assert daemon.events("connection.rejected") == []
        lines = daemon.events("connection.closed")[: ROUNDS * CLIENTS]
        assert Counter(line["reason"] for line in lines) == {"reset": ROUNDS * CLIENTS}
        pending = [line["bytes_received"] - line["bytes_sent"] for line in lines]
        assert all(pending) == (stage is with_echo_pending)


def test_clients_that_finish_first_get_all_of_their_echo(echod: Daemon) -> None:
    """Their FIN comes while both kernels are full of bytes, and before they have read one."""
    with (
        echod() as daemon,
        unharmed(daemon, memory=CLIENTS * CHUNK),
        streams(CLIENTS, lambda: deaf(daemon)) as clients,
    ):
        fill(clients)
        finish(daemon, clients)


def test_clients_that_never_stop_sending_are_ended_in_time(echod: Daemon) -> None:
    """After the drain deadline each gets the beginning of its echo, then FIN, whatever it goes on to send, and then is cut.

    Who does not read fast enough is cut before all that was echoed has come, by a reset.
    """
    with (
        echod('[timeouts]\ndrain = "500ms"') as daemon,
        streams(50, daemon.connect) as clients,
        ThreadPoolExecutor(1) as threads,
    ):
        running = threads.submit(run, clients, writing=True)
        until(lambda: all(client.heard for client in clients) or running.done(), what="echo for all")
        began, behind = running_time(), time.monotonic() - running_time()
        daemon.signal(signal.SIGTERM)
        running.result()
        stood_still = time.monotonic() - running_time() - behind
        assert "eof" in {client.ended for client in clients} or stood_still > LINGER / 2

        def cut() -> bool:
            for client in clients:
                client.send()
            return daemon.process.poll() is not None

        until(cut, what="the end", interval=0)
        assert running_time() - began < 0.5 + 6
        assert daemon.wait() == 0
        assert daemon.lines[-1]["aborted"] == len(clients)
        lines = [daemon.closed(client.sock) for client in clients]
        assert {line["reason"] for line in lines} == {"drained"}
        for client, line in zip(clients, lines, strict=True):
            assert client.heard == line["bytes_sent"] or (client.ended == "reset" and client.heard < line["bytes_sent"])
            assert line["bytes_sent"] < line["bytes_received"]


@pytest.mark.parametrize("size", [2, 1024], ids=["full", "enough"])
def test_100_clients_that_come_and_go_as_fast_as_they_can(echod: Daemon, size: int) -> None:
    """Again and again; every one of them is in the books, served or rejected, and all workers are back."""

    def come_and_go(number: int) -> None:
        """Connect and close, again and again."""
        for _ in range(ROUNDS_EACH):
            daemon.connect(source=f"127.0.1.{number}").close()  # each has ports enough

    # Bytes: lines of the log that wait for this test, which reads them slowly while its clients run.
    held = 65_536 * 500
    with echod(f"[pool]\nsize = {size}") as daemon:
        with unharmed(daemon, memory=(32 << 20) + held), ThreadPoolExecutor(100) as threads:
            list(threads.map(come_and_go, range(1, 101)))  # and raise what went wrong
        assert daemon.stop() == 0
        lines = daemon.events("connection.closed")
        rejected = sum(1 + sum(line.get("suppressed", {}).values()) for line in daemon.events("connection.rejected"))
        assert len(lines) + rejected == 100 * ROUNDS_EACH + 1
        assert bool(rejected) == (size < 100)
        assert {line["reason"] for line in lines} == {"eof"}
        assert daemon.lines[-1]["connections"] == len(lines)
