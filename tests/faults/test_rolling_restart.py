"""Two daemons behind HAProxy are restarted one after the other, under load: with a lame duck, no client notices."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from pathlib import Path
from signal import SIGTERM
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support import haproxy
from tests.support.harness import DEADLINE, LOCAL, Echod, free_port, listens, until

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

SHIPPED = Path(__file__).parents[2] / "config/haproxy/haproxy.cfg"
RATE = 1000
"""New connections a second, as far as the machine can."""
LONG = 100
"""Connections that last."""
AT_ONE_TIME = 40
"""New connections that may be open at one time, if the machine is slow: the long ones must see soon that they have been ended."""
MESSAGE = bytes(range(64))

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not haproxy.PROGRAM, reason="there is no haproxy")]


class Backend:
    """A daemon that can be started again on the same ports."""

    def __init__(self, name: str, directory: Path, lame_duck: str) -> None:
        self.name = name
        self.port, self.admin = free_port(), free_port()
        self._directory = directory / name
        self._directory.mkdir()
        self._config = f"""
            [timeouts]
            lame_duck = "{lame_duck}"
            drain = "1500ms"
            [access]
            proxies = ["{LOCAL}"]
            [log]
            connections = "none"
            [admin]
            socket = "off"
            http = "{LOCAL}:{self.admin}"
        """
        self._running = contextlib.ExitStack()
        self.daemon = self.start()

    def start(self) -> Echod:
        self.daemon = self._running.enter_context(
            Echod(self._config, directory=self._directory, port=self.port, flags=["--listen.host", LOCAL])
        )
        return self.daemon

    def close(self) -> None:
        self.daemon.signal(SIGTERM)  # once more than the context does, which ends the lame duck
        until(lambda: any(map(self.daemon.events, ("daemon.lame_duck", "daemon.draining"))), what="an end of it")
        self._running.close()


class Balancer:
    """HAProxy with the file that is shipped, but for addresses, faster checks, and no further attempts.

    A further attempt would serve most of those whom a daemon refuses, each of them a second late.
    """

    def __init__(self, directory: Path, backends: list[Backend]) -> None:
        self.port = free_port()
        self._stats = directory / "haproxy.sock"
        text = SHIPPED.read_text()
        for old, new in (
            ("global\n", f"global\n    stats socket {self._stats}\n"),
            ("bind :::7 v4v6", f"bind {LOCAL}:{self.port}"),
            ("check port 9107 inter 1s", "check inter 200ms"),
            # Without it, a check must be answered within 200 ms, which a busy machine takes for a failure of both.
            ("    timeout connect 2s\n", "    timeout connect 2s\n    timeout check 5s\n"),
            ("    retries 2\n    option redispatch\n", "    retries 0\n"),
            ("server one 192.0.2.11:7007", _server(backends[0])),
            ("server two 192.0.2.12:7007", _server(backends[1])),
        ):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        file = directory / "haproxy.cfg"
        file.write_text(text)
        assert haproxy.PROGRAM
        self._process = subprocess.Popen([haproxy.PROGRAM, "-q", "-db", "-f", file])
        until(lambda: listens(self.port) and all(map(self.uses, backends)), what="HAProxy")

    def uses(self, backend: Backend) -> bool:
        """Whether it would send a client to this one."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._stats))
            sock.sendall(b"show stat\n")
            rows = [line.split(",") for line in sock.makefile().read().splitlines() if line]
        (row,) = (row for row in rows[1:] if row[:2] == ["echods", backend.name])
        return row[rows[0].index("status")] == "UP"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _server(backend: Backend) -> str:
    return f"server {backend.name} {LOCAL}:{backend.port} port {backend.admin}"


class Clients:
    """New ones, `RATE` a second, and `LONG` that last and connect again when they are ended."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.served = self.lost = 0
        self.ended = 0
        """Long ones that got FIN after all of their echo."""
        self.cut: list[str] = []
        """How long ones ended otherwise."""
        self._connected = 0
        self.quiet = False
        """Whether the long ones send nothing, so that all of their echo is there when a drain ends them."""

    async def run_during(self, work: Coroutine[None, None, None]) -> None:
        """Come and go until the work is done, which begins when all long ones are there."""
        done = asyncio.create_task(self._then(work))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(LONG):
                tasks.create_task(self._long(done))
            await self._short_ones(done)
        await done

    async def _then(self, work: Coroutine[None, None, None]) -> None:
        async with asyncio.timeout(DEADLINE):
            while self._connected < LONG:  # noqa: ASYNC110 - counted, for no event
                await asyncio.sleep(0.01)
        await work

    async def _short_ones(self, done: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        began, made = loop.time(), 0
        running: set[asyncio.Task[None]] = set()
        while not done.done():
            due = (loop.time() - began) * RATE
            while made < due and len(running) < AT_ONE_TIME:
                task = loop.create_task(self._short())
                running.add(task)
                task.add_done_callback(running.discard)
                made += 1
            await asyncio.sleep(0.002)
        await asyncio.gather(*running)

    async def _short(self) -> None:
        echo = b""
        with contextlib.suppress(OSError):  # also a timeout
            async with asyncio.timeout(DEADLINE):
                reader, writer = await asyncio.open_connection(LOCAL, self._port)
                try:
                    writer.write(MESSAGE)
                    writer.write_eof()
                    echo = await reader.read()
                finally:
                    writer.close()
        if echo == MESSAGE:
            self.served += 1
        else:
            self.lost += 1

    async def _long(self, done: asyncio.Task[None]) -> None:
        while not done.done():
            try:
                reader, writer = await asyncio.open_connection(LOCAL, self._port)
                self._connected += 1
                try:
                    await self._talk(reader, writer, done)
                finally:
                    writer.close()
            except (OSError, asyncio.IncompleteReadError) as error:
                self.cut.append(repr(error))
                await asyncio.sleep(0.1)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, done: asyncio.Task[None]) -> None:
        while not done.done():
            if not self.quiet:
                writer.write(MESSAGE)
                assert await reader.readexactly(len(MESSAGE)) == MESSAGE
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    assert await reader.read(1) == b""
                    self.ended += 1
                    return


@pytest.fixture
def behind_haproxy(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Balancer, list[Backend]]]:
    with contextlib.ExitStack() as running:
        backends = []
        for name in ("one", "two"):
            backends.append(Backend(name, tmp_path, request.param))
            running.callback(backends[-1].close)
        balancer = Balancer(tmp_path, backends)
        running.callback(balancer.close)
        yield balancer, backends


async def restart(balancer: Balancer, backend: Backend, clients: Clients) -> None:
    """Restart one daemon, and wait until HAProxy uses it again."""
    daemon = backend.daemon
    daemon.signal(SIGTERM)
    await asyncio.to_thread(daemon.wait_for, "daemon.draining")
    clients.quiet = True
    assert await asyncio.to_thread(daemon.wait) == 0
    assert daemon.events("daemon.stopped")[0]["aborted"] == 0
    assert not balancer.uses(backend)
    await asyncio.to_thread(backend.start)
    await asyncio.to_thread(until, lambda: balancer.uses(backend), what="HAProxy using it")
    clients.quiet = False


@pytest.mark.parametrize("behind_haproxy", ["5s"], indirect=True)
def test_a_rolling_restart_with_a_lame_duck_loses_nobody(behind_haproxy: tuple[Balancer, list[Backend]]) -> None:
    """No new client is refused, and each long one is ended by FIN, after all of its echo."""
    balancer, backends = behind_haproxy
    clients = Clients(balancer.port)

    async def one_by_one() -> None:
        for backend in backends:
            await restart(balancer, backend, clients)

    uvloop.run(clients.run_during(one_by_one()))
    print(f"with a lame duck: {clients.served} served, {clients.lost} lost, {clients.ended} long ones ended")  # noqa: T201
    assert (clients.lost, clients.cut) == (0, [])
    assert clients.served > RATE
    assert clients.ended > LONG  # some by the first restart, all by the second


@pytest.mark.parametrize("behind_haproxy", ["off"], indirect=True)
def test_a_restart_without_a_lame_duck_loses_those_whom_haproxy_still_sends(
    behind_haproxy: tuple[Balancer, list[Backend]],
) -> None:
    """This is how many: until two checks have failed, every other client is sent to a port that refuses it."""
    balancer, backends = behind_haproxy
    clients = Clients(balancer.port)
    uvloop.run(clients.run_during(restart(balancer, backends[0], clients)))
    print(f"without a lame duck: {clients.served} served, {clients.lost} lost, {len(clients.cut)} long ones too")  # noqa: T201
    assert clients.lost > 0
