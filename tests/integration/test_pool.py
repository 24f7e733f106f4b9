"""More clients than workers: refused or kept waiting, and no worker is ever lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support.harness import DEADLINE, LOCAL, Echod, read_all, read_exactly, reset, until

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]

REJECT = '[pool]\nsize = 3\nwhen_full = "reject"'
WAIT = '[listen]\nhost = "127.0.0.1"\nport = 0\nbacklog = 4096\n[pool]\nsize = 3\nwhen_full = "wait"'


def occupy(daemon: Echod, stack: contextlib.ExitStack, count: int = 3) -> list[socket.socket]:
    """Open connections and leave them open, each being served."""
    clients = [stack.enter_context(daemon.connect()) for _ in range(count)]
    for client in clients:
        client.sendall(b"here")
        assert read_exactly(client, 4) == b"here"
    return clients


def rejected(daemon: Echod) -> int:
    """Connect and be turned away with EOF and not a byte; return the client's port."""
    with daemon.connect() as client:
        assert read_all(client) == b""
        return int(client.getsockname()[1])


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 100_000])
def test_one_too_many_gets_eof_without_a_byte_and_a_line(echod: Daemon, data: bytes) -> None:
    """The fourth of three is turned away, and the three do not notice."""
    with echod(REJECT) as daemon, contextlib.ExitStack() as stack:
        clients = occupy(daemon, stack)
        with daemon.connect() as fourth:
            if data:
                with contextlib.suppress(ConnectionError):
                    fourth.sendall(data)
            assert read_all(fourth) == b""
            line = daemon.wait_for("connection.rejected")
            assert line["client"] == {"address": LOCAL, "port": fourth.getsockname()[1]}
        assert line["reason"] == "pool_full"
        assert line["listener"] == f"tcp://{LOCAL}:{daemon.port}"
        for client in clients:
            client.sendall(b"still")
            assert read_exactly(client, 5) == b"still"
        assert len(daemon.events("connection.opened")) == 3


def test_data_in_the_socket_before_the_rejection_does_not_turn_eof_into_a_reset(echod: Daemon) -> None:
    """A client whose data is there before it is accepted reads EOF, although close(2) with unread data sends RST."""
    with echod(REJECT) as daemon, contextlib.ExitStack() as stack:
        occupy(daemon, stack)
        with daemon.suspended():
            early = stack.enter_context(daemon.connect())
            early.sendall(b"early")
        assert read_all(early) == b""


@pytest.mark.slow
def test_rejections_are_logged_ten_times_a_second_and_the_rest_counted(echod: Daemon) -> None:
    """Of a burst, ten get a line; the first line after that second says how many had none."""
    with echod(REJECT) as daemon, contextlib.ExitStack() as stack:
        occupy(daemon, stack)
        with daemon.suspended():  # so that all of the burst come within that second
            burst = [stack.enter_context(daemon.connect()) for _ in range(20)]
        assert [read_all(client) for client in burst] == [b""] * 20
        ports = [int(client.getsockname()[1]) for client in burst]

        def counted() -> bool:
            ports.append(rejected(daemon))
            return any("suppressed" in line for line in daemon.events("connection.rejected"))

        until(counted, what="a count", interval=0)
        lines = daemon.events("connection.rejected")
        assert ["suppressed" in line for line in lines[:11]] == [False] * 10 + [True]
        # Each line is that of the client before which so many had none.
        client = -1
        for line in lines:
            client += 1 + sum(line.get("suppressed", {}).values())
            assert ports[client] == line["client"]["port"]
        eleventh = lines[10]
        seconds = [datetime.fromisoformat(line["timestamp"]).timestamp() for line in (lines[0], eleventh)]
        assert seconds[1] - seconds[0] > 0.9


def test_with_wait_a_client_is_served_when_a_worker_becomes_free(echod: Daemon) -> None:
    """The fourth of three is connected by the kernel and served as soon as one of the three leaves."""
    with echod(WAIT) as daemon, contextlib.ExitStack() as stack:
        clients = occupy(daemon, stack)
        fourth = stack.enter_context(daemon.connect())
        fourth.sendall(b"patience")
        clients[1].sendall(b"before")
        assert read_exactly(clients[1], 6) == b"before"
        clients[0].close()
        assert read_exactly(fourth, 8) == b"patience"
        daemon.wait_for("connection.opened", count=4)
        events = [line["event"] for line in daemon.lines if line["event"].startswith("connection.")]
        assert events == ["connection.opened"] * 3 + ["connection.closed", "connection.opened"]


@pytest.mark.slow
def test_with_wait_2000_clients_that_arrive_together_are_all_served(echod: Daemon) -> None:
    """The kernel's backlog queues what three workers cannot serve at once; nobody is turned away or forgotten."""
    # What the kernel's queue does not hold (listen(2)) tries again, and arrives when the queue gets shorter.
    queue = min(4096, int(Path("/proc/sys/net/core/somaxconn").read_text()))

    async def client(port: int, number: int, arrived: asyncio.Semaphore) -> None:
        reader, writer = await asyncio.open_connection(LOCAL, port)
        arrived.release()
        data = b"%d" % number
        writer.write(data)
        writer.write_eof()
        assert await reader.read(-1) == data
        writer.close()
        await writer.wait_closed()

    async def arrive(port: int, blockers: list[socket.socket]) -> None:
        arrived = asyncio.Semaphore(0)
        async with asyncio.timeout(3 * DEADLINE), asyncio.TaskGroup() as group:
            for number in range(2000):
                group.create_task(client(port, number, arrived))
            for _ in range(min(2000, queue)):
                await arrived.acquire()
            for blocker in blockers:
                blocker.close()

    with echod(WAIT) as daemon, contextlib.ExitStack() as stack:
        uvloop.run(arrive(daemon.port, occupy(daemon, stack)))
        assert daemon.wait_for("connection.closed", count=2003)["in_use"] == 0
        assert max(line["in_use"] for line in daemon.events("connection.opened")) == 3
        assert daemon.events("connection.rejected") == []


def test_no_listener_starves_another(echod: Daemon) -> None:
    """One worker, and a queue at each of two addresses that never ends: both get their turns."""
    listen = '[listen]\nhost = ["127.0.0.1", "127.0.0.2"]\nport = 0\n[pool]\nsize = 1\nwhen_full = "wait"'
    enough = 1000

    async def crowd(host: str, port: int, served: Counter[str]) -> None:
        while served.total() < enough:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"x")
            writer.write_eof()
            assert await reader.read(-1) == b"x"
            served[host] += 1
            writer.close()
            await writer.wait_closed()

    async def crowds(port: int) -> Counter[str]:
        served: Counter[str] = Counter()
        async with asyncio.timeout(3 * DEADLINE), asyncio.TaskGroup() as group:
            for host in ("127.0.0.1", "127.0.0.2"):
                for _ in range(20):
                    group.create_task(crowd(host, port, served))
        return served

    with echod(listen) as daemon:
        served = uvloop.run(crowds(daemon.port))
        assert min(served.values()) > enough / 4


ALONE = {"per_source": "[access]\nper_source = 1", "pool": "[pool]\nsize = 1"}
"""Each serves a client that comes again and again, and no second one beside it."""
CHURNERS = 40
MILLION = 1_000_000
MINUTE = 60.0 * float(os.environ.get("ECHOD_TEST_EXAMPLES", "1"))


def _churn(port: int, connections: int, seconds: float = DEADLINE) -> int:
    """Connect, echo, leave and connect again, one after the other; return how often that went well before it did not."""
    ends = time.monotonic() + seconds
    for number in range(connections):
        if time.monotonic() > ends:
            return number
        with socket.socket() as sock:
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0)
            )  # no TIME-WAIT, no port is used up
            sock.settimeout(DEADLINE)
            try:
                sock.connect((LOCAL, port))
                sock.sendall(b"x")
                if sock.recv(1) != b"x":
                    return number
                if number % 2:  # by FIN; else by RST
                    sock.shutdown(socket.SHUT_WR)
                    if number % 4 == 1:
                        sock.recv(1)
            except ConnectionError:
                return number
    return connections


async def _churn_together(port: int, connections: int, seconds: float = DEADLINE) -> int:
    """The same from many clients at one time, with `connections` in all; return how many were served."""
    served, ends = 0, time.monotonic() + seconds

    async def client() -> None:
        nonlocal served
        while served < connections and time.monotonic() < ends:
            reader, writer = await asyncio.open_connection(LOCAL, port)
            writer.write(b"x")
            with contextlib.suppress(ConnectionError):
                echo = await reader.read(1)
                served += len(echo)  # not with `await` in it: others count meanwhile
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()  # the descriptor is closed only now

    async with asyncio.timeout(seconds + DEADLINE), asyncio.TaskGroup() as group:
        for _ in range(CHURNERS):
            group.create_task(client())
    return served


@pytest.mark.parametrize("config", ALONE.values(), ids=ALONE)
def test_a_client_that_comes_again_and_again_is_never_refused(echod: Daemon, config: str) -> None:
    """The end of its last connection is still on its way to the worker when it connects again."""
    with echod(config) as daemon:
        assert _churn(daemon.port, 500) == 500
        assert daemon.events("connection.rejected") == []


@pytest.mark.slow
def test_as_many_clients_as_workers_come_and_go_without_a_refusal(echod: Daemon) -> None:
    """There is a worker for each, and one to spare."""
    with echod(f"[pool]\nsize = {CHURNERS + 1}") as daemon:
        assert uvloop.run(_churn_together(daemon.port, 400))
        assert daemon.events("connection.rejected") == []


@pytest.mark.slow
@pytest.mark.parametrize("config", ALONE.values(), ids=ALONE)
def test_a_million_connections_one_after_the_other_are_never_refused(echod: Daemon, config: str) -> None:
    """Or as many as come in a minute. ECHOD_TEST_EXAMPLES=60 gives them the time for all."""
    with echod(config, flags=["--log.connections", "none"]) as daemon:
        came = _churn(daemon.port, MILLION, MINUTE)
        print(f"{came} connections")  # noqa: T201 - for those who run it with -s
        assert daemon.events("connection.rejected") == []


@pytest.mark.slow
def test_a_million_connections_of_forty_clients_are_never_refused(echod: Daemon) -> None:
    """Or as many as come in a minute, as above."""
    with echod(f"[pool]\nsize = {CHURNERS + 1}", flags=["--log.connections", "none"]) as daemon:
        print(f"{uvloop.run(_churn_together(daemon.port, MILLION, MINUTE))} connections")  # noqa: T201 - likewise
        assert daemon.events("connection.rejected") == []


def test_a_client_too_many_is_refused_at_once(echod: Daemon) -> None:
    """Not even a moment passes in which its end might come."""
    with echod(REJECT) as daemon, contextlib.ExitStack() as stack:
        occupy(daemon, stack)

        def took() -> float:
            began = time.monotonic()
            rejected(daemon)
            return time.monotonic() - began

        assert any(took() < 0.01 for _ in range(200))  # a machine that has much to do delays some of them


def test_with_wait_a_client_that_comes_again_and_again_is_served(echod: Daemon) -> None:
    """Nobody has to wake the listener for that."""
    with echod('[pool]\nsize = 1\nwhen_full = "wait"') as daemon:
        assert _churn(daemon.port, 200) == 200


async def _come_and_go(port: int, connections: int) -> None:
    """Connect five at a time and end in every way: without a word, by RST, by close, by half-close."""
    rng = random.Random(3)

    async def client() -> None:
        for _ in range(connections // 5):
            reader, writer = await asyncio.open_connection(LOCAL, port)
            end = rng.choice(("silent", "reset", "close", "half-close"))
            if end != "silent":
                writer.write(b"bytes")
            if end == "reset":
                reset(writer.get_extra_info("socket").dup())
            if end == "half-close":
                with contextlib.suppress(OSError):  # turned away: the kernel answers what comes later with RST
                    writer.write_eof()
                    await reader.read(-1)
            writer.transport.abort()

    async with asyncio.timeout(3 * DEADLINE), asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(client())


@pytest.mark.slow
@pytest.mark.parametrize("config", [REJECT, WAIT], ids=["reject", "wait"])
def test_10000_connections_later_no_worker_is_missing(echod: Daemon, config: str) -> None:
    """After thousands of connections that ended in every way, three are served at one time, and not more."""
    with echod(config) as daemon, contextlib.ExitStack() as stack:
        uvloop.run(_come_and_go(daemon.port, 10_000))
        until(lambda: _ends_the_queue(daemon), what="a client that comes after all others being served")
        opened = daemon.events("connection.opened")
        if config == WAIT:
            assert len(opened) == 10_001
        daemon.wait_for("connection.closed", count=len(opened))
        occupy(daemon, stack)
        if config == REJECT:
            rejected(daemon)
        assert daemon.wait_for("connection.opened", count=len(opened) + 3)["in_use"] == 3


def _ends_the_queue(daemon: Echod) -> bool:
    """Try to be served; if so, the lines of all who came before have been written when this returns."""
    with contextlib.suppress(ConnectionError), daemon.connect(source="127.0.0.2") as last:
        last.sendall(b"last")
        if read_exactly(last, 4) == b"last":
            last.shutdown(socket.SHUT_WR)
            return bool(daemon.closed(last))
    return False


def test_pool_full_and_available_are_said_when_that_changes(echod: Daemon) -> None:
    """Full when the last worker is taken, available when one is back; a pool that stays full says nothing."""
    with echod(REJECT, flags=["--timeouts.write", "200ms"]) as daemon:  # the janitor then looks every 50 ms
        for count in (1, 2):
            with contextlib.ExitStack() as stack:
                occupy(daemon, stack)
                assert daemon.wait_for("pool.full", count=count)["size"] == 3
                rejected(daemon)
                assert len(daemon.events("pool.available")) == count - 1
            assert daemon.wait_for("pool.available", count=count)["size"] == 3
        assert len(daemon.events("pool.full")) == 2
