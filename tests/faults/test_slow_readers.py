"""Clients that send and never read: bounded memory, no harm to others, and an end."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import selectors
import socket
import struct
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tests.harness import DEADLINE, LOCAL, Echod, read_all, read_exactly, send_all, until

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]

CLIENTS = 200
CHUNK = (256 + 4) << 10
"""Bytes that a worker may need: one read, and a fixed overhead."""
JUMBO = 8960
"""A segment size (RFC 9293, 3.7.1) of a real network: with loopback's 64 KiB the kernel would buffer gigabytes."""


def _deaf(daemon: Echod) -> socket.socket:
    """Connect with little room for the echo, from an address whose ports nobody else takes when this one is reset."""
    sock = socket.socket()
    sock.bind(("127.0.0.2", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 13)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, JUMBO)
    sock.connect((LOCAL, daemon.port))
    sock.setblocking(False)
    return sock


def _flood(socks: list[socket.socket]) -> None:
    """Send on all as fast as they take it, until each has been reset."""
    data = bytes(1 << 18)
    end = time.monotonic() + DEADLINE
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            selector.register(sock, selectors.EVENT_WRITE, sock)
        while selector.get_map():
            assert time.monotonic() < end, f"{len(selector.get_map())} clients not ended after {DEADLINE} s"
            for key, _ in selector.select(1):
                try:
                    key.data.send(data)
                except BlockingIOError:
                    pass
                except ConnectionError:
                    selector.unregister(key.data)


def test_200_clients_that_never_read_cost_little_and_end(echod: Daemon) -> None:
    """Resident memory grows by less than a read per worker, others are served as before, all end by the timeout."""
    with echod(f'[timeouts]\nwrite = "2s"\n[pool]\nsize = {CLIENTS + 2}') as daemon, daemon.connect() as other:
        assert daemon.echo(bytes(1 << 20)) == bytes(1 << 20)  # what the first connection costs once
        before = peak = daemon.memory()
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as threads:
            socks = [stack.enter_context(_deaf(daemon)) for _ in range(CLIENTS)]
            daemon.wait_for("connection.opened", count=CLIENTS + 2)
            flooding = threads.submit(_flood, socks)
            for turn in itertools.count():
                if flooding.done():
                    break
                data = os.urandom(10_000)
                other.sendall(data)
                assert read_exactly(other, len(data)) == data
                if turn % 100 == 0:
                    assert daemon.echo(data) == data
                peak = max(peak, daemon.memory())
            flooding.result()
            ended = [daemon.closed(sock) for sock in socks]
        assert peak - before < CLIENTS * CHUNK
        assert {line["reason"] for line in ended} == {"write_timeout"}
        assert all(line["bytes_received"] > line["bytes_sent"] > 0 for line in ended)
        with contextlib.ExitStack() as stack:  # the workers are back
            for sock in [stack.enter_context(daemon.connect()) for _ in range(CLIENTS + 1)]:
                sock.sendall(b"here")
                assert read_exactly(sock, 4) == b"here"
        assert daemon.events("connection.rejected") == []


def test_a_reader_that_wakes_up_in_time_gets_everything(echod: Daemon) -> None:
    """Output that was stuck for less than the timeout comes out whole once the client reads."""
    data = os.urandom(8 << 20)
    with (
        echod('[timeouts]\nwrite = "10s"') as daemon,
        daemon.connect(receive_buffer=1 << 13) as sock,
        ThreadPoolExecutor(1) as threads,
    ):
        sending = threads.submit(send_all, sock, data)
        _wait_until_stuck(sock)
        assert read_all(sock) == data
        sending.result()
        assert daemon.closed(sock)["reason"] == "eof"


def _wait_until_stuck(sock: socket.socket) -> None:
    """Wait until the sender's queue is not empty and has not changed for a while."""
    queued: int = -1

    def unchanged() -> bool:
        nonlocal queued
        before: int = queued
        queued = struct.unpack("=i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
        return queued > 0 and queued == before

    until(unchanged, what="a full queue", interval=0.2)
