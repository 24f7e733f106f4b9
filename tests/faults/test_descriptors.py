"""Descriptors run out: accepting pauses, nothing spins, nobody else notices, and nothing leaks."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from echod import limits
from tests.support.bystander import rests
from tests.support.harness import Echod, command, read_all, read_exactly, reset, until

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

NONE_LEFT = 3
"""A soft limit below what is open already: no new descriptor, and none of the old ones is touched (getrlimit(2))."""


def test_without_descriptors_accepting_pauses_and_resumes(echod: Daemon) -> None:
    """One line says so; open connections still echo, the processor rests; afterwards who has waited is served."""
    with echod() as daemon, contextlib.ExitStack() as stack:
        old = stack.enter_context(daemon.connect())
        old.sendall(b"before")
        assert read_exactly(old, 6) == b"before"
        soft = daemon.limit_descriptors(NONE_LEFT)
        waiting = [stack.enter_context(daemon.connect()) for _ in range(3)]
        for sock in waiting:
            sock.sendall(b"patience")
        paused = daemon.wait_for("accept.paused")
        assert (paused["reason"], paused["listener"]) == ("EMFILE", f"tcp://127.0.0.1:{daemon.port}")

        until(lambda: rests(daemon), what="rest")
        old.sendall(b"during")
        assert read_exactly(old, 6) == b"during"
        assert len(daemon.events("connection.opened")) == 1

        daemon.limit_descriptors(soft)
        for sock in waiting:
            assert read_exactly(sock, 8) == b"patience"
        resumed = daemon.wait_for("accept.resumed")
        assert resumed["reason"] == "EMFILE"
        assert resumed["seconds"] > 0.5  # it has rested for so long
        assert daemon.echo(b"after") == b"after"
        assert len(daemon.events("accept.paused")) == len(daemon.events("accept.resumed")) == 1
        old.sendall(b"still")
        assert read_exactly(old, 5) == b"still"


def test_it_stops_in_good_order_when_connections_hold_all_descriptors(echod: Daemon) -> None:
    """TERM while accepting is paused drains, and the exit code is 0; the kernel refuses who is in the backlog."""
    with echod() as daemon, daemon.connect() as served:
        served.sendall(b"x")
        assert read_exactly(served, 1) == b"x"
        daemon.limit_descriptors(daemon.descriptors())
        with daemon.connect(), daemon.connect() as waiting:
            daemon.wait_for("accept.paused")
            daemon.signal(signal.SIGTERM)
            daemon.wait_for("listener.stopped")
            with contextlib.suppress(ConnectionResetError):
                assert waiting.recv(1) == b""
            served.sendall(b"still")
            assert read_exactly(served, 5) == b"still"
        served.close()
        assert daemon.stop() == 0
        assert daemon.lines[-1]["event"] == "daemon.stopped"


def test_it_stops_in_good_order_when_the_system_has_no_descriptor_left(echod: Daemon) -> None:
    """ENFILE, for which EMFILE stands in here, is not cured by closing connections; the exit code is 0 all the same."""
    without_coverage = {"COVERAGE_PROCESS_CONFIG": ""}  # it would need a descriptor for its data, and complain
    with echod(env=without_coverage) as daemon:
        daemon.limit_descriptors(NONE_LEFT)
        with daemon.connect():
            daemon.wait_for("accept.paused")
            assert daemon.stop() == 0, daemon.raw[-1]
        assert daemon.lines[-1]["event"] == "daemon.stopped"


def test_a_full_pool_that_waits_pauses_and_resumes_too(echod: Daemon) -> None:
    """A worker that comes back during the pause does not end it early, and does not get lost either."""
    with echod('[pool]\nsize = 2\nwhen_full = "wait"') as daemon, contextlib.ExitStack() as stack:
        first = stack.enter_context(daemon.connect())
        first.sendall(b"1")
        assert read_exactly(first, 1) == b"1"
        soft = daemon.limit_descriptors(NONE_LEFT)
        waiting = [stack.enter_context(daemon.connect()) for _ in range(2)]
        daemon.wait_for("accept.paused")
        first.shutdown(socket.SHUT_WR)
        assert daemon.closed(first)["reason"] == "eof"
        daemon.limit_descriptors(soft)
        for sock in waiting:
            sock.sendall(b"2")
            assert read_exactly(sock, 1) == b"2"
        daemon.wait_for("accept.resumed")


def test_no_descriptor_leaks(echod: Daemon) -> None:
    """After connections that were served, reset and refused, as many descriptors are open as before."""
    with echod("[pool]\nsize = 1") as daemon:
        assert daemon.echo(b"first") == b"first"  # libuv opens a spare one with the first connection
        before = daemon.descriptors()
        for _ in range(100):
            with daemon.connect() as sock:
                sock.sendall(b"x")
                assert read_exactly(sock, 1) == b"x"
                with daemon.connect() as refused:
                    assert read_all(refused) == b""
                served = len(daemon.events("connection.closed"))
                reset(sock)
                daemon.wait_for("connection.closed", count=served + 1)
        until(lambda: daemon.descriptors() == before, what=f"{before} open descriptors")


def test_the_soft_limit_is_raised_to_fit_the_pool(echod: Daemon) -> None:
    """A pool larger than the soft limit is no reason to refuse, if the hard limit is high enough."""
    low = ("sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh")
    with echod("[pool]\nsize = 700", prefix=low) as daemon:
        soft, _ = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        assert 700 < soft < 1024


def test_a_hard_limit_too_low_for_the_pool_is_a_configuration_error() -> None:
    """The line names both numbers."""
    done = command("run", "-n", "700", prefix=("sh", "-c", 'ulimit -n 300; exec "$@"', "sh"))
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.count("\n") == 1
    assert "--pool.size" in done.stderr
    assert f"700 workers need {700 + limits.RESERVE} file descriptors" in done.stderr
    assert "300" in done.stderr
