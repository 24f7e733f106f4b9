"""Who is silent or does not read is ended; who is slow is not."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import DEADLINE, Echod, read_all, read_exactly, send_all, until

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

LONG = 3
"""Seconds of a timeout that must not end a client which is active a few times a second: a machine may stand still for a while."""


def test_an_idle_connection_ends_with_eof_and_an_active_one_stays(echod: Daemon) -> None:
    """Without a byte for the idle timeout, a client gets EOF (not a reset); another that goes on sending is kept."""
    with echod('[timeouts]\nidle = "off"') as daemon, daemon.connect() as idle, daemon.connect() as active:
        idle.sendall(b"last words")
        assert read_exactly(idle, 10) == b"last words"
        daemon.reload(f'[timeouts]\nidle = "{LONG}s"')
        idle.settimeout(0.05)

        def ended() -> bool:
            active.sendall(b"ping")
            assert read_exactly(active, 4) == b"ping"
            try:
                return idle.recv(1) == b""
            except TimeoutError:
                return False

        until(ended, what="the end of the idle connection")
        line = daemon.closed(idle)
        assert line["reason"] == "idle_timeout"
        assert line["duration"] > LONG
        assert len(daemon.events("connection.closed")) == 1
        active.sendall(b"here")
        assert read_exactly(active, 4) == b"here"


def test_a_client_that_still_reads_is_not_idle(echod: Daemon) -> None:
    """The kernel has taken all of its echo and goes on sending: bytes move, and what the client says next is echoed."""
    data = os.urandom(400_000)
    with echod(f'[timeouts]\nidle = "{LONG}s"') as daemon, daemon.connect(receive_buffer=4096) as reader:
        reader.sendall(data)
        begun, received = time.monotonic(), bytearray()
        while time.monotonic() < begun + 1.5 * LONG:
            received += read_exactly(reader, 2000)
            time.sleep(0.025)  # the reader's pace: 80 kB a second
        assert len(received) < len(data)
        reader.sendall(b"more")
        received += read_exactly(reader, len(data) + 4 - len(received))
        assert received == data + b"more"


def test_a_client_that_never_says_anything_is_idle(echod: Daemon) -> None:
    """The idle timeout counts from the beginning of the connection, and its worker serves the next client."""
    with echod('[timeouts]\nidle = "200ms"\n[pool]\nsize = 1') as daemon:
        with daemon.connect() as silent:
            assert read_all(silent) == b""
            line = daemon.closed(silent)
        assert (line["reason"], line["bytes_received"], line["in_use"]) == ("idle_timeout", 0, 0)
        assert daemon.echo(b"next") == b"next"


def test_idle_off_keeps_the_silent(echod: Daemon) -> None:
    """With the idle timeout off, what ends others leaves a silent connection alone."""
    config = '[timeouts]\nidle = "off"\nwrite = "{}"'
    with echod(config.format("off")) as daemon, daemon.connect() as silent, daemon.connect() as stalled:
        _stall(daemon, stalled)
        daemon.reload(config.format("200ms"))
        assert daemon.closed(stalled)["reason"] == "write_timeout"
        silent.sendall(b"here")
        assert read_exactly(silent, 4) == b"here"


def _stall(daemon: Echod, sock: socket.socket) -> None:
    """Send without reading until the daemon reads no more: nothing goes out, although it has run meanwhile."""
    sock.settimeout(0.2)
    rounds = 0
    while rounds < 2:
        with contextlib.suppress(TimeoutError):
            while sock.send(bytes(1 << 16)):
                rounds = 0
        daemon.reload(daemon.file.read_text())
        rounds += 1


def test_a_client_that_does_not_read_ends_with_write_timeout(echod: Daemon) -> None:
    """Its echo does not move for the write timeout: it is reset, and its worker serves the next client."""
    config = '[pool]\nsize = 1\n[timeouts]\nwrite = "{}"'
    with echod(config.format("off")) as daemon:
        with daemon.connect(receive_buffer=1 << 14) as sock:
            _stall(daemon, sock)
            daemon.reload(config.format("300ms"))
            line = daemon.closed(sock)
            assert line["reason"] == "write_timeout"
            assert 0 < line["bytes_sent"] < line["bytes_received"]
            with pytest.raises(ConnectionError):
                read_all(sock)
        assert daemon.echo(b"next") == b"next"


def test_at_the_end_of_its_lifetime_a_client_gets_all_of_its_echo_and_eof(echod: Daemon) -> None:
    """However busy it is. Its line says why."""
    with echod('[timeouts]\nlifetime = "400ms"\n[pool]\nsize = 1') as daemon:
        with daemon.connect() as sock:
            sent = came_back = 0
            while True:
                with contextlib.suppress(ConnectionError):  # it may be cut already
                    sock.sendall(b"ping")
                sent += 4
                answer = sock.recv(4)
                if not answer:
                    break
                assert answer == b"ping"
                came_back += 4
                time.sleep(0.01)  # else it is in the middle of a word at the end
            assert sent - came_back <= 4
            with contextlib.suppress(OSError):  # it may be cut already
                sock.shutdown(socket.SHUT_WR)
            line = daemon.closed(sock)
        assert (line["reason"], line["bytes_sent"]) == ("lifetime", came_back)
        assert 0.4 <= line["duration"] < 0.4 + 0.3 + DEADLINE / 4
        assert daemon.echo(b"next") == b"next"


def test_a_client_that_does_not_close_after_its_lifetime_is_cut(echod: Daemon) -> None:
    """After a moment; what it sends meanwhile is dropped."""
    with echod('[timeouts]\nlifetime = "off"') as daemon, daemon.connect() as sock:
        sock.sendall(b"hello")
        assert read_exactly(sock, 5) == b"hello"
        daemon.reload('[timeouts]\nlifetime = "200ms"')
        assert read_all(sock) == b""
        sock.sendall(b"too late")
        line = daemon.closed(sock)
        assert (line["reason"], line["bytes_received"], line["bytes_sent"]) == ("lifetime", 13, 5)


def test_a_client_that_does_not_read_is_reset_at_the_end_of_its_lifetime(echod: Daemon) -> None:
    """The write timeout may be far longer."""
    with echod('[timeouts]\nlifetime = "off"') as daemon, daemon.connect(receive_buffer=1 << 14) as sock:
        _stall(daemon, sock)
        daemon.reload('[timeouts]\nlifetime = "300ms"')
        assert daemon.closed(sock)["reason"] == "lifetime"
        with pytest.raises(ConnectionError):
            read_all(sock)


def test_a_slow_reader_that_makes_progress_is_no_stalled_one(echod: Daemon) -> None:
    """A client that takes some of its echo now and then gets all of it, though it takes many times the timeout."""
    data = os.urandom(12 << 20)
    with (
        echod(f'[timeouts]\nwrite = "{LONG}s"\nidle = "{LONG}s"') as daemon,
        daemon.connect(receive_buffer=1 << 16) as sock,
        ThreadPoolExecutor(1) as threads,
    ):
        sending = threads.submit(send_all, sock, data)
        back = b""
        for _ in range(15 * LONG):  # the pace is what is tested
            back += read_exactly(sock, 1 << 17)
            time.sleep(0.1)
        back += read_all(sock)
        sending.result()
        assert back == data
        line = daemon.closed(sock)
        assert (line["reason"], line["bytes_sent"]) == ("eof", len(data))
        assert line["duration"] > 1.5 * LONG
