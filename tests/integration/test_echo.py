"""Every byte comes back, whatever the sizes and timing, and each connection ends once, with the right reason."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support.harness import (
    DEADLINE,
    LOCAL,
    Echod,
    environment,
    listens,
    read_all,
    read_exactly,
    reserved_port,
    reset,
    send_all,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Daemon = Callable[..., Echod]

GIGABYTE = 1 << 30


@pytest.mark.slow
def test_a_gigabyte_in_chunks_of_random_size_comes_back(echod: Daemon) -> None:
    """A client sends 1 GiB in chunks of up to 1 MiB and half-closes: it gets the same GiB, then FIN."""
    block = memoryview(os.urandom(16 << 20))
    rng = random.Random(862)
    sent, received = hashlib.sha1(usedforsecurity=False), hashlib.sha1(usedforsecurity=False)

    def send(sock: socket.socket) -> None:
        left = GIGABYTE
        while left:
            start, size = rng.randrange(len(block) - (1 << 20)), min(left, rng.randrange(1, 1 << 20))
            chunk = block[start : start + size]
            sock.sendall(chunk)
            sent.update(chunk)
            left -= size
        sock.shutdown(socket.SHUT_WR)

    with echod() as daemon, daemon.connect() as sock, ThreadPoolExecutor(1) as threads:
        sending = threads.submit(send, sock)
        buffer = memoryview(bytearray(1 << 20))
        total = 0
        while size := sock.recv_into(buffer):
            received.update(buffer[:size])
            total += size
        sending.result()
        assert total == GIGABYTE
        assert received.digest() == sent.digest()
        closed = daemon.closed(sock)
    assert (closed["bytes_received"], closed["bytes_sent"], closed["reason"]) == (GIGABYTE, GIGABYTE, "eof")


def test_500_connections_at_once_do_not_mix_and_do_not_mind_who_aborts(echod: Daemon) -> None:
    """Of 500 connections some end at random, by RST or unread; the others get every byte, and nobody stays in use."""
    rng = random.Random(500)

    async def talk(client: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = rng.randbytes(rng.randrange(1, 200_000))
        end = rng.choices(("survive", "reset", "leave"), (6, 2, 2))[0]
        last = len(data) if end == "survive" else rng.randrange(len(data))

        async def send() -> None:
            position = 0
            while position < last:
                size = min(last - position, rng.choice((1, 100, 4096, 70_000)))
                writer.write(data[position : position + size])
                position += size
                await writer.drain()
            if end == "survive":
                writer.write_eof()

        if end == "survive":
            _, back = await asyncio.gather(send(), reader.read(-1))
            assert back == data, f"client {client}"
        else:
            await send()
            assert data.startswith(await reader.read(1000) if last else b"")
            if end == "reset":
                reset(
                    writer.get_extra_info("socket").dup()
                )  # SO_LINGER belongs to the connection: the close below resets
        writer.transport.abort()

    async def everyone(port: int) -> None:
        streams = await asyncio.gather(*(asyncio.open_connection(LOCAL, port) for _ in range(500)))
        async with asyncio.timeout(3 * DEADLINE), asyncio.TaskGroup() as clients:
            for client, (reader, writer) in enumerate(streams):
                clients.create_task(talk(client, reader, writer))

    with echod() as daemon:
        uvloop.run(everyone(daemon.port))
        last = daemon.wait_for("connection.closed", count=500)
        assert last["in_use"] == 0
        assert max(line["in_use"] for line in daemon.events("connection.opened")) == 500
        once = Counter(line["connection"] for line in daemon.events("connection.closed"))
        assert once == Counter(range(1, 501))


@pytest.fixture
def tutorial() -> Iterator[int]:
    """`echod run -p PORT -n 10`, as it is typed, until the test is over; gives the port."""
    with (
        reserved_port() as port,
        subprocess.Popen(
            [Path(sys.executable).with_name("echod"), "run", "-p", str(port), "-n", "10"],
            stdout=subprocess.DEVNULL,
            env=environment(ECHOD_LISTEN__HOST=LOCAL),
        ) as process,
    ):
        try:
            until(lambda: listens(port), what="listening")
            yield port
            process.terminate()
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()


def test_the_tutorials_session_with_sockets(tutorial: int) -> None:
    """Hello is answered with Hello, World with World, on one connection."""
    with socket.create_connection((LOCAL, tutorial), DEADLINE) as sock:
        for word in (b"Hello\n", b"World\n"):
            sock.sendall(word)
            assert read_exactly(sock, len(word)) == word
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""


@pytest.mark.skipif(shutil.which("nc") is None, reason="netcat is not installed")
def test_the_tutorials_session_with_netcat(tutorial: int) -> None:
    """What a person types into netcat comes back line by line."""
    with subprocess.Popen(["nc", LOCAL, str(tutorial)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as netcat:  # noqa: S607
        assert netcat.stdin
        assert netcat.stdout
        deadline = threading.Timer(DEADLINE, netcat.kill)
        deadline.start()
        try:
            for word in (b"Hello\n", b"World\n"):
                netcat.stdin.write(word)
                netcat.stdin.flush()
                assert netcat.stdout.readline() == word
        finally:
            deadline.cancel()
            netcat.kill()


def test_a_half_closed_connection_gets_all_of_its_echo(echod: Daemon) -> None:
    """A client that sends all, half-closes, and only then begins to read misses nothing."""
    data = os.urandom(4 << 20)
    with echod() as daemon, daemon.connect(receive_buffer=1 << 14) as sock, ThreadPoolExecutor(1) as threads:
        sock.sendall(data[: 1 << 20])
        sending = threads.submit(send_all, sock, data[1 << 20 :])
        assert read_all(sock) == data
        sending.result()
        assert daemon.closed(sock)["reason"] == "eof"


def test_urgent_bytes_stay_in_the_stream(echod: Daemon) -> None:
    """TCP's urgent bytes (MSG_OOB) come back at their places: first, in the middle, last, and many."""
    with echod("[timeouts]\nidle = 'off'") as daemon, daemon.connect() as sock:
        said = bytearray()
        for part, flags in [(b"!", socket.MSG_OOB), (b"ABC", 0), (b"!", socket.MSG_OOB), (b"DEF", 0)]:
            sock.send(part, flags)
            said += part
        for number in range(256):
            sock.send(b"-", 0)
            sock.send(bytes([number]), socket.MSG_OOB)
            said += bytes([ord("-"), number])
        assert read_exactly(sock, len(said)) == said
        daemon.reload("[timeouts]\nidle = '200ms'")
        assert sock.recv(1) == b""  # the idle timeout: with the last byte unread, close(2) would send RST
        closed = daemon.closed(sock)
        assert (closed["reason"], closed["bytes_received"]) == ("idle_timeout", len(said))


def test_an_urgent_byte_before_a_half_close_comes_back(echod: Daemon) -> None:
    with echod() as daemon, daemon.connect() as sock:
        sock.send(b"ABC", 0)
        sock.send(b"!", socket.MSG_OOB)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"ABC!"
        assert daemon.closed(sock)["reason"] == "eof"


def _leave(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    assert read_all(sock) == b""


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        pytest.param(_leave, "eof", id="half-close"),
        pytest.param(socket.socket.close, "eof", id="close"),
        pytest.param(reset, "reset", id="RST"),
    ],
)
def test_each_end_is_one_line_with_its_reason(echod: Daemon, end: Callable[[socket.socket], None], reason: str) -> None:
    """However the client ends, there is one line, with its bytes, and the only worker serves the next client."""
    with echod("[pool]\nsize = 1") as daemon:
        for count in range(1, 4):
            with daemon.connect() as sock:
                address = dict(zip(("address", "port"), sock.getsockname(), strict=True))
                sock.sendall(b"some bytes")
                assert read_exactly(sock, 10) == b"some bytes"
                end(sock)
                closed = daemon.wait_for("connection.closed", count=count)
            assert closed["client"] == address
            assert (closed["reason"], closed["connection"], closed["in_use"]) == (reason, count, 0)
            assert (closed["bytes_received"], closed["bytes_sent"]) == (10, 10)
            assert closed["duration"] > 0
        assert daemon.stop() == 0
        assert len(daemon.events("connection.closed")) == 3
        assert daemon.events("connection.rejected") == []


def test_a_reset_before_the_connection_is_accepted_costs_nothing(echod: Daemon) -> None:
    """A client that has reset while it was in the backlog ends as `reset`, and the next one is served."""
    with echod("[pool]\nsize = 1") as daemon:
        with daemon.suspended():
            reset(daemon.connect())
        assert daemon.wait_for("connection.closed")["reason"] == "reset"
        assert daemon.echo(b"next") == b"next"
