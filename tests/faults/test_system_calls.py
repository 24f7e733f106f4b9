"""The system refuses what a server needs: accept, read, write and io_uring fail with each errno that they may have."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.bystander import unharmed
from tests.support.clients import Stream, fill, run
from tests.support.harness import Echod, read_all, read_exactly, send_all, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from tests.support.inject import Call, Injection

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow


def exchange(sock: socket, said: bytes) -> None:
    sock.sendall(said)
    assert read_exactly(sock, len(said)) == said


def internal(daemon: Echod) -> list[str]:
    """Return the events that only a bug makes."""
    return [line["event"] for line in daemon.lines if line["event"].startswith("internal")]


def test_accepting_pauses_while_the_system_has_no_room(echod: Daemon, injection: Injection) -> None:
    """Of EMFILE, ENFILE, ENOBUFS and ENOMEM each has one line and is asked again ten times a second; who waits is served."""
    reasons = ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]
    with echod(env=injection.environment) as daemon, unharmed(daemon):
        for number, reason in enumerate(reasons, 1):
            began = time.monotonic()
            injection.arm("accept", getattr(errno, reason))
            with daemon.connect() as waiting:
                waiting.sendall(b"patience")
                assert daemon.wait_for("accept.paused", count=number)["reason"] == reason
                until(lambda: injection.hits("accept") >= 3, what="three attempts")
                assert injection.hits("accept") <= 1 + (time.monotonic() - began) / 0.1
                injection.disarm("accept")
                assert read_exactly(waiting, 8) == b"patience"
            assert daemon.wait_for("accept.resumed", count=number)["reason"] == reason
        assert len(daemon.events("accept.paused")) == len(reasons)


def test_a_connection_that_fails_before_it_is_accepted_delays_nobody(echod: Daemon, injection: Injection) -> None:
    """accept(2) reports it, or is interrupted: the next one is accepted at once, without a line."""
    failures = [errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EINTR]
    with echod(env=injection.environment) as daemon:
        for error in failures:
            injection.arm("accept", error, times=5)
            assert daemon.echo(b"next") == b"next"
            assert injection.hits("accept") == 5
        assert daemon.events("accept.paused") == []
        daemon.wait_for("connection.closed", count=len(failures))


def test_connections_that_fail_without_end_are_no_reason_to_spin(echod: Daemon, injection: Injection) -> None:
    """After 64 failures in a row it pauses, and says so."""
    with echod(env=injection.environment) as daemon, unharmed(daemon):
        injection.arm("accept", errno.ECONNABORTED)
        with daemon.connect() as waiting:
            assert daemon.wait_for("accept.paused")["reason"] == "ECONNABORTED"
            until(lambda: injection.hits("accept") == 2 * 64, what="a second attempt")
            injection.disarm("accept")
            exchange(waiting, b"at last")
        daemon.wait_for("accept.resumed")


@pytest.mark.parametrize("call", ["read", "write"])
def test_a_connection_whose_call_fails_is_closed_and_named(echod: Daemon, injection: Injection, call: Call) -> None:
    """With its errno, or as reset; and gets RST, as its echo is not all there; its neighbours notice nothing."""
    ends = {"ENOBUFS": "error", "ENOMEM": "error", "EIO": "error", "ECONNRESET": "reset", "EPIPE": "reset"}
    with echod(env=injection.environment) as daemon, unharmed(daemon):
        for name, reason in ends.items():
            with daemon.connect() as sock:
                exchange(sock, b"before")
                injection.arm(call, getattr(errno, name), client=sock)
                sock.sendall(b"lost")
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
                closed = daemon.closed(sock)
            assert injection.hits(call) == 1
            assert (closed["reason"], closed.get("error")) == (reason, name if reason == "error" else None)
            assert (closed["bytes_received"], closed["bytes_sent"]) == (6 if call == "read" else 10, 6)
        assert internal(daemon) == []


def test_a_write_that_fails_later_closes_the_connection(echod: Daemon, injection: Injection) -> None:
    """When the peer reads on after a stall: what it got is the beginning of what it sent."""
    with echod(env=injection.environment) as daemon, unharmed(daemon):
        with daemon.connect() as sock:
            client = Stream(sock)
            fill([client])
            injection.arm("write", errno.ENOMEM, client=sock)
            run([client])  # which compares what it hears
            closed = daemon.closed(sock)
        assert (closed["reason"], closed["error"], client.ended) == ("error", "ENOMEM", "reset")
        assert client.sent > closed["bytes_sent"] >= client.heard > 0


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR])
def test_a_call_that_has_to_be_repeated_costs_no_byte(echod: Daemon, injection: Injection, error: int) -> None:
    """EAGAIN although the loop said that it was ready, and EINTR: many times, in reads and writes."""
    said = os.urandom(100_000)
    with echod(env=injection.environment) as daemon, daemon.connect() as sock:
        for _ in range(10):
            injection.arm("read", error, client=sock, times=7)
            injection.arm("write", error, client=sock, times=7)
            exchange(sock, said)
            assert (injection.hits("read"), injection.hits("write")) == (7, 7)


@pytest.mark.parametrize(("read", "write"), [(1, 1), (4096, 1000)])
def test_short_counts_cost_no_byte(echod: Daemon, injection: Injection, read: int, write: int) -> None:
    """Reads and writes do less than they were asked to, each time, with a half-close at the end."""
    said = os.urandom(500 * write)
    with echod(env=injection.environment) as daemon, daemon.connect() as sock:
        injection.arm("read", at_most=read, client=sock)
        injection.arm("write", at_most=write, client=sock)
        send_all(sock, said)
        assert read_all(sock) == said
        closed = daemon.closed(sock)
        assert (closed["reason"], closed["bytes_sent"]) == ("eof", len(said))
        assert injection.hits("write") >= 500


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_without_io_uring_it_serves(echod: Daemon, injection: Injection, error: int) -> None:
    """Old kernels, sandboxes and those who run out of locked memory refuse it."""
    injection.arm("io_uring", error)
    with echod(env=injection.environment) as daemon:
        assert injection.hits("io_uring")
        assert daemon.echo(b"all the same") == b"all the same"
