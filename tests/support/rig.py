"""The parts of the server on a fake loop, wired as `Server` wires them, with what a test says in the place of the kernel."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echod.config import load as config
from echod.server import kernel
from echod.server.acceptor import Parts
from echod.server.access import Access
from echod.server.admission import Admission
from echod.server.datagrams import Datagrams
from echod.server.endpoint import Endpoint, Peer
from echod.server.listeners import Listeners
from echod.server.pool import Pool
from echod.server.proxies import Proxies
from echod.server.rejections import Rejections
from echod.server.tls import Handshakes
from tests.support.fakes import FakeLoop, FakeTransport, Lines, sockets
from tests.support.harness import DEADLINE, LOCAL, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    import pytest

    from echod.config.settings import Lifecycle, Settings, WhenFull
    from echod.server.worker import Worker

LISTENER = "tcp://192.0.2.1:7"
"""The listener of connections that come without one."""


class Rig:
    """A pool with everything around it. `take` gives it a connection that no listener has accepted."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.lines = Lines()
        self.log = self.lines.log
        self.pool = self.make_pool(3)
        self.access = Access(self.loop.asyncio, self.pool.sources)
        self.rejections = Rejections(self.loop.asyncio, self.log)
        self.watch: Callable[[Worker], None] = lambda _: None  # gets each worker that has got a connection
        self.admission = Admission(
            self.loop.asyncio,
            self.pool,
            self.access,
            self.rejections,
            lambda each: self.watch(each),  # noqa: PLW0108 - a test may set it later
        )
        self.proxies = Proxies(self.loop.asyncio, self.log, self.pool, self.access, self.admission)
        self.datagrams = Datagrams(self.loop.asyncio, self.log, self.access)
        self.handshakes = Handshakes(self.loop.asyncio, self.log, self.pool, self.rejections)
        self.parts = Parts(
            self.loop.asyncio, self.log, self.pool, self.admission, lambda: self.datagrams, self.handshakes, line={}
        )
        self.listeners = Listeners(self.parts)
        self.sockets: list[socket.socket] = []
        # What the kernel says, see `fake_kernel`:
        self.unacknowledged: int | None = 0
        self.info: kernel.Info | None = tcp_info()
        self.has_own_clock = False  # connections begin by the loop's clock, and not by the real one
        self._moved: dict[int, FakeTransport] = {}  # by descriptor
        self.asked = 0  # for the bytes that are not acknowledged
        self.resets = 0

    def make_pool(self, size: int, lifecycle: Lifecycle = "all") -> Pool:
        """Return a further pool with the same log."""
        pool = Pool(self.log)
        pool.lifecycle = lifecycle
        resize(pool, size)
        return pool

    def fake_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the rig answer for the kernel, whose clock is the loop's."""

        def info(sock: socket.socket) -> kernel.Info | None:
            if self.info is None or sock.fileno() < 0:
                return None
            transport = self._moved.get(sock.fileno())
            quiet = self.loop.now - transport.moved if transport else 0.0
            return self.info._replace(**_quiet_for(quiet), unacked=self.unacknowledged or 0)

        def unacknowledged(sock: socket.socket) -> int | None:
            assert sock.fileno() >= 0
            self.asked += 1
            return self.unacknowledged

        def reset(sock: socket.socket) -> None:
            assert sock.fileno() >= 0
            self.resets += 1

        self.has_own_clock = True
        monkeypatch.setattr(kernel, "info", info)
        monkeypatch.setattr(kernel, "unacknowledged", unacknowledged)
        monkeypatch.setattr(kernel, "reset_on_close", reset)

    # Connections that no listener has accepted

    def take(
        self, address: str = "192.0.2.9", *, pool: Pool | None = None, made: bool = True
    ) -> tuple[Worker, FakeTransport]:
        """Give a worker a connection; unless `made`, its transport is not made before the loop runs."""
        ours, theirs = sockets()
        self.sockets += [ours, theirs]
        worker = (pool or self.pool).take(ours, Peer(address, 4711), LISTENER)
        if self.has_own_clock:
            worker.opened = worker.seen = self.loop.now
        self.watch(worker)
        transport = self._moved[ours.fileno()] = FakeTransport(self.loop, worker, ours)
        if made:
            transport.made()
        else:
            self.loop.call_soon(transport.made)
        return worker, transport

    def end(self, transport: FakeTransport) -> None:
        """Let the client of this connection finish."""
        transport.receive_eof()
        self.loop.run()

    def reasons(self) -> dict[str, int]:
        """Return why connections have ended."""
        return dict(self.pool.closed)

    # Connections through real listening sockets

    def serve(self, hosts: str | Sequence[str] = LOCAL, port: int = 0, when_full: WhenFull = "reject") -> int:
        """Bind and serve, as a start and a reload do; return the TCP port that is not retired."""
        wanted = listening(hosts, port, when_full)
        self.listeners.serve(wanted, self.listeners.bind(wanted))
        self.datagrams.set(wanted.udp)
        return self.port()

    def port(self, kind: str = "tcp") -> int:
        """Return the port of the listeners of this kind that are not retired."""
        there = [each.listener.endpoint for each in self.listeners.acceptors if each.state != "retired"]
        return next(endpoint.port for endpoint in there if endpoint.kind == kind)

    def reserve(self, *hosts: str) -> int:
        """Return a port that is free on these hosts, and that no other program gets: it is bound, and does not listen."""
        port = free_port()
        for host in hosts or (LOCAL,):
            sock = socket.socket()
            self.sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
        return port

    def connect(self, port: int, host: str = LOCAL) -> socket.socket:
        """Return a client whose handshake is done."""
        client = socket.create_connection((host, port), timeout=5)
        self.sockets.append(client)
        return client

    def fill(self, port: int, host: str = LOCAL) -> None:
        """Connect a client for each free worker, and let it be accepted."""
        for _ in range(self.pool.free):
            self.connect(port, host)
        self.readable()

    def turn(self) -> None:
        """Let the loop find every listener readable once, and do what follows."""
        self.accept()
        self.loop.run()

    def accept(self) -> None:
        """Let the loop find every listener readable once, and nothing else happen."""
        for callback in list(self.loop.readers.values()):
            callback()

    def readable(self) -> None:
        """Let the loop find listeners readable until none is, and do what follows."""
        while self.poll():
            pass

    def poll(self) -> bool:
        """Let the loop ask once which listeners are readable, and do what follows. Return whether one was."""
        ready = [sock for sock in self.loop.readers if select.select([sock], [], [], 0)[0]]
        for sock in ready:
            if callback := self.loop.readers.get(sock):
                callback()
        self.loop.run()
        return bool(ready)

    def finish(self) -> None:
        """Let the client of the oldest accepted connection finish."""
        self.end(self.loop.transports.pop(0))

    def run(self, test: Coroutine[Any, Any, None]) -> None:
        """Run a test on a real loop, which ends also if the test fails: no connection is left to wait for."""

        async def bounded() -> None:
            try:
                async with asyncio.timeout(DEADLINE):
                    await test
            finally:
                for worker in list(self.pool.in_use.values()):
                    worker.abort("killed")
                self.loop.run()

        asyncio.run(bounded())

    def close(self) -> None:
        self.listeners.close()
        self.admission.settle()
        self.pool.when_free = None
        for transport in self.loop.transports:
            transport.abort()
        self.loop.run()
        for sock in self.sockets:
            sock.close()


def tcp_info(
    *,
    peer_finished: bool = False,
    rtt: float = 0.0,
    retrans: int = 0,
    written: int = 1 << 40,
    quiet: float = 0.0,
) -> kernel.Info:
    """Return what a kernel says of a connection on which nothing is under way, but for these. Times are in seconds."""
    told: dict[str, Any] = dict.fromkeys(kernel.Info._fields, 0)
    told["state"] = 8 if peer_finished else 1  # TCP_CLOSE_WAIT, TCP_ESTABLISHED
    told |= {"rtt_us": round(rtt * 1e6), "retrans": retrans, "bytes_sent": written, **_quiet_for(quiet)}
    return kernel.Info(**told)


def _quiet_for(seconds: float) -> dict[str, Any]:
    """Return the fields in milliseconds that `Info.quiet` is computed from; they may be 10 ms too long."""
    return dict.fromkeys(("last_data_sent", "last_data_recv"), (seconds + 0.01) * 1000)


SYN = bytes.fromhex(
    "4500003ccf92400040066d277f0000017f000001d4a0b5f9c105bb0600000000a002ffd7fe3000000204ffd70402080aa3cc2427"
    "000000000103030a"
)
"""As Linux has kept it of a connection over loopback."""


def moved(pool: Pool) -> tuple[int, int]:
    """Return the bytes received and sent, also of open connections."""
    asyncio.run(pool.count_open())
    return pool.bytes_received, pool.bytes_sent


def resize(pool: Pool, size: int) -> list[Worker]:
    """Change the size of a pool, as a start and a reload do; return the workers that it drops."""
    return pool.resize(size, pool.make(size - pool.size))


def endpoints(*hosts: str, port: int = 0) -> list[Endpoint]:
    """Return TCP endpoints at one port."""
    return [Endpoint("tcp", host, port) for host in hosts]


def settings(**values: Any) -> Settings:
    """Return the default settings but for these values, by name, with "__" for the dot."""
    flags = {
        name.replace("__", "."): json.dumps(value) if isinstance(value, list) else str(value)
        for name, value in values.items()
    }
    return config.load(Path(os.devnull), flags, {}).settings  # not the file of this machine


def listening(hosts: str | Sequence[str], port: int = 0, when_full: WhenFull = "reject") -> Settings:
    """Return settings that listen on these hosts."""
    wanted = [hosts] if isinstance(hosts, str) else list(hosts)
    return settings(listen__host=wanted, listen__port=port, listen__backlog=16, pool__when_full=when_full)
