"""What comes out on standard output: whole lines, the contract's fields, sums that agree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support.harness import (
    DEADLINE,
    LOCAL,
    Echod,
    read_all,
    read_exactly,
    reserved_port,
    reset,
)
from tests.support.log_document import TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]


@pytest.mark.slow
def test_every_line_of_a_storm_is_whole_and_the_sums_agree(echod: Daemon) -> None:
    """5,000 connections, 200 at a time: opened = closed, and each line has the bytes that its client sent."""
    rng = random.Random(5000)
    sent: dict[int, int] = {}
    seats = asyncio.Semaphore(200)
    sample = rng.randbytes(50_000)

    async def client(port: int, connection: int) -> None:
        async with seats:
            reader, writer = await asyncio.open_connection(LOCAL, port)
            data = sample[: rng.randrange(1, rng.choice((10, 1000, 50_000)))]
            writer.write(data)
            if rng.random() < 0.1:
                assert await reader.readexactly(len(data)) == data
                reset(writer.get_extra_info("socket").dup())
            else:
                writer.write_eof()
                assert await reader.read(-1) == data
            writer.transport.abort()
            sent[connection] = len(data)

    async def storm(port: int) -> None:
        async with asyncio.timeout(3 * DEADLINE), asyncio.TaskGroup() as group:
            for connection in range(5000):
                group.create_task(client(port, connection))

    began = datetime.now(UTC)
    with echod() as daemon:
        uvloop.run(storm(daemon.port))
        daemon.wait_for("connection.closed", count=5000)
        assert daemon.stop() == 0  # the harness has parsed every line, and checks the fields of each at the end
        opened, closed = daemon.events("connection.opened"), daemon.events("connection.closed")
        assert len(daemon.lines) == len(opened) + len(closed) + 5
        assert [line["connection"] for line in opened] == list(range(1, 5001))
        assert Counter(line["connection"] for line in closed) == Counter(range(1, 5001))
        assert Counter(line["bytes_received"] for line in closed) == Counter(sent.values())
        assert all(line["bytes_sent"] == line["bytes_received"] for line in closed)
        assert daemon.lines[-1]["bytes_received"] == sum(sent.values())
        assert daemon.lines[-1]["connections"] == 5000
        assert Counter(line["reason"] for line in closed).keys() == {"eof", "reset"}
        assert closed[-1]["in_use"] == 0
        times = [datetime.fromisoformat(line["timestamp"]) for line in daemon.lines]
        assert times == sorted(times)
        assert began - timedelta(seconds=1) < times[0] < times[-1] < datetime.now(UTC) + timedelta(seconds=1)


@pytest.mark.parametrize("traffic_class", [0, 46 << 2])
def test_a_line_tells_what_arrived_of_the_syn(echod: Daemon, traffic_class: int) -> None:
    """The client has marked its packets, and has limited its segments."""
    with echod() as daemon, socket.socket() as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, traffic_class)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1200)
        sock.connect((LOCAL, daemon.port))
        sock.shutdown(socket.SHUT_WR)
        said = daemon.closed(sock)["syn"]
    assert (said["dscp"], said["mss"]) == (traffic_class >> 2, 1200)
    assert said["ttl"] > 0
    assert said["window"] > 0


def test_times_are_in_seconds(echod: Daemon) -> None:
    """Also those that the kernel counts in microseconds."""
    with echod() as daemon, daemon.connect() as sock:
        sock.sendall(b"12345")
        assert read_exactly(sock, 5) == b"12345"
        sock.shutdown(socket.SHUT_WR)
        line = daemon.closed(sock)
    assert 0 < line["tcp"]["rtt"] < 1
    assert 0 < line["duration"] < DEADLINE


@pytest.mark.parametrize(
    ("flags", "events"),
    [
        (["--log.connections", "all"], {"connection.opened", "connection.closed"}),
        (["--log.connections", "closed"], {"connection.closed"}),
        (["--log.connections", "none"], set()),
    ],
)
def test_which_lifecycle_lines_there_are(echod: Daemon, flags: list[str], events: set[str]) -> None:
    """`log.connections` chooses; the daemon's own lines and its sums stay."""
    with echod(flags=flags) as daemon:
        assert daemon.echo(b"hello") == b"hello"
        assert daemon.stop() == 0
        assert {line["event"] for line in daemon.lines if line["event"].startswith("connection.")} == events
        assert daemon.lines[-1]["connections"] == 1
        assert daemon.lines[-1]["bytes_received"] == 5


def test_the_level_cuts_off_what_is_below(echod: Daemon) -> None:
    """With `warning`, a rejection is logged and nothing else is."""
    with (
        reserved_port() as port,
        echod("[pool]\nsize = 1", flags=["--log.level", "warning"], port=port) as daemon,
        daemon.connect() as first,
    ):
        first.sendall(b"x")
        assert read_exactly(first, 1) == b"x"
        with daemon.connect() as second:
            assert read_all(second) == b""
        daemon.signal(signal.SIGTERM)
        first.close()
        assert daemon.wait() == 0
        assert [line["event"] for line in daemon.lines] == ["pool.full", "connection.rejected"]


@pytest.mark.slow
def test_on_a_terminal_it_is_for_people(echod: Daemon) -> None:
    """With format `auto` and a terminal, lines are rendered in colour, with the same facts, and are no JSON."""
    master, slave = os.openpty()
    try:
        with reserved_port() as port, echod(stdout=slave, port=port, env={"TERM": "xterm"}) as daemon:
            os.close(slave)
            assert daemon.echo(b"hello") == b"hello"
            assert daemon.stop() == 0
        shown = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other side open any more
            while chunk := os.read(master, 1 << 16):
                shown += chunk
    finally:
        os.close(master)
    assert b"\x1b[" in shown
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown.decode()).splitlines()
    events = ["listener.started", "daemon.started", "connection.opened", "connection.closed"]
    events += ["daemon.draining", "listener.stopped", "daemon.stopped"]
    assert [next(event for event in events if event in line) for line in lines] == events
    for line in lines:
        assert TIMESTAMP.match(line)
        assert not line.startswith("{")
    assert "reason=eof" in lines[3]
    assert "bytes_received=5" in lines[3]


def test_the_format_can_be_chosen(echod: Daemon) -> None:
    """`console` also where there is no terminal, and then without colours."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        with reserved_port() as port, echod(flags=["--log.format", "console"], stdout=writer, port=port) as daemon:
            os.close(writer)
            assert daemon.echo(b"hello") == b"hello"
        shown = pipe.read()
    assert b"\x1b" not in shown
    assert b"daemon.started" in shown
    assert not shown.startswith(b"{")


@pytest.mark.parametrize(("variable", "instance"), [("1", "1"), ("", None)])
def test_each_line_names_the_instance(echod: Daemon, variable: str, instance: str | None) -> None:
    """That the unit of one of several processes has set; without a name there is no field. It is no unknown variable."""
    with echod(env={"ECHOD_INSTANCE": variable}) as daemon:
        assert daemon.echo(b"hi") == b"hi"
        daemon.wait_for("connection.closed")
        daemon.reload("[pool]\nsize = 3")
        assert {line.get("instance") for line in daemon.lines} == {instance}
        assert daemon.events("config.warning") == []
