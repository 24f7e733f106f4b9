"""Clients that say little, or nothing, and stay: they are served while they speak, and cannot keep others out for long."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.bystander import PATIENCE, unharmed
from tests.support.clients import finish, run, streams
from tests.support.harness import Echod, read_all, read_exactly, until
from tests.support.running_time import running_time

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

CLIENTS = 50
IDLE = 4
"""Seconds: a client that never rests for so long may be late, also if its machine stands still for a moment."""


def prompt(daemon: Echod) -> socket.socket:
    """Connect; each byte is a segment of its own."""
    sock = daemon.connect()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def test_a_byte_at_a_time_comes_back_byte_by_byte(echod: Daemon) -> None:
    """50 clients send 500 segments of one byte each, without waiting for their echo."""
    with echod() as daemon, unharmed(daemon), streams(CLIENTS, lambda: prompt(daemon)) as clients:
        for _ in range(500):
            for client in clients:
                client.send(1)
        assert {client.sent for client in clients} == {500}
        finish(daemon, clients)


def test_a_byte_a_second_is_not_idle(echod: Daemon) -> None:
    """Who says one byte now and then stays many times the idle timeout, if "now and then" is shorter than that."""
    with (
        echod(f'[timeouts]\nidle = "{IDLE}s"') as daemon,
        unharmed(daemon),
        streams(CLIENTS, lambda: prompt(daemon)) as clients,
    ):
        for _ in range(10):
            for client in clients:
                client.send(1)
            time.sleep(1)  # the pace is what is tested
        finish(daemon, clients)


@pytest.mark.parametrize("when_full", ["reject", "wait"])
def test_a_hoard_that_holds_every_worker_is_gone_after_the_idle_timeout(echod: Daemon, when_full: str) -> None:
    """Others are refused or wait meanwhile, and get in then; who has a worker and speaks keeps it."""
    config = f'[pool]\nsize = {CLIENTS + 1}\nwhen_full = "{when_full}"\n[timeouts]\nidle = '
    with echod(f'{config}"off"') as daemon:
        with unharmed(daemon), streams(CLIENTS, daemon.connect) as hoard, other(daemon) as waiting:
            for client in hoard[::2]:
                client.send(1000)
            daemon.wait_for("pool.full")
            if when_full == "reject":
                assert read_all(waiting) == b""
            daemon.reload(f'{config}"{IDLE}s"')
            began = running_time()
            if when_full == "wait":
                waiting.sendall(b"let me in")
                assert read_exactly(waiting, 9) == b"let me in"
            until(lambda: _is_served(daemon), what="somebody else served")
            run(hoard)
            assert running_time() - began < IDLE + PATIENCE
            assert {client.ended for client in hoard} == {"eof"}
            assert all(client.heard == client.sent for client in hoard)
            lines = [daemon.closed(client.sock) for client in hoard]
        assert Counter(line["reason"] for line in lines) == {"idle_timeout": CLIENTS}
        rejected = daemon.events("connection.rejected")
        assert bool(rejected) == (when_full == "reject")
        assert {line["reason"] for line in rejected} <= {"pool_full"}
        daemon.wait_for("pool.available")
        assert len(daemon.events("pool.full")) == len(daemon.events("pool.available")) == 1


def other(daemon: Echod) -> socket.socket:
    return daemon.connect(source="127.0.0.2")


def _is_served(daemon: Echod) -> bool:
    with other(daemon) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(b"let me in")
        return read_exactly(sock, 9) == b"let me in"
    return False
