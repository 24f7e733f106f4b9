"""The servers that are compared: how each is started, and how it is stopped whatever happens.

Knows nothing of what is asked of them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from benchmarks import build, cores, measure

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

HOST = "127.0.0.1"
ROOT = Path(__file__).parent.parent
FIRST_PORT, LAST_PORT = 20_000, 30_000  # below those that the kernel gives to clients (ip_local_port_range)
PATIENCE = 20  # seconds until it has to serve
POOL = 1024
"""Of the shipped configuration: who needs more connections gets a larger one."""


Command = list[str | Path]


@dataclass(frozen=True)
class Order:
    """How one process is to be started."""

    port: int
    directory: Path
    """For its files."""
    connections: int
    shared: bool
    """Whether several processes have the port."""


@dataclass(frozen=True)
class Kind:
    """A server that may be there."""

    name: str
    about: str
    command: Callable[[Order], Command | None]
    """`None` if it can't be had here."""
    needs: str
    """What is missing then."""
    forks: bool = False
    """Whether it has a process for each connection."""
    shares: bool = False
    """Whether several can share a port."""


def _echod(*flags: str) -> Callable[[Order], Command]:
    def command(order: Order) -> Command:
        place = ["--listen.host", HOST, "--listen.port", str(order.port)]
        size = ["--pool.size", str(order.connections + 100)] if order.connections > POOL else []
        share = ["--listen.reuse_port", "true"] if order.shared else []
        config = ROOT / "config" / "echod.toml"
        return [sys.executable, "-m", "echod", "run", "-c", config, *place, *size, *share, *flags]

    return command


def _floor(order: Order) -> Command:
    program = build.built("floor.c")
    command: Command = [program, str(order.port)] if program else _peer("floor")(order)
    return [*command, *(["reuse_port"] if order.shared else [])]


def _peer(name: str) -> Callable[[Order], Command]:
    return lambda order: [sys.executable, "-m", "benchmarks.peers", name, str(order.port)]


def _go(order: Order) -> Command | None:
    program = build.built("echo.go")
    return [program, str(order.port)] if program else None


def _node(order: Order) -> Command | None:
    program = shutil.which("node")
    return [program, Path(__file__).with_name("echo.js"), str(order.port)] if program else None


def _xinetd(order: Order) -> Command | None:
    program = shutil.which("xinetd") or shutil.which("xinetd", path="/usr/sbin")
    file = order.directory / "xinetd.conf"
    user = pwd.getpwuid(os.getuid()).pw_name
    file.write_text(
        f"defaults\n{{\n instances = UNLIMITED\n per_source = UNLIMITED\n cps = 1000000 1\n}}\n"
        f"service echo\n{{\n type = INTERNAL UNLISTED\n id = echo-stream\n socket_type = stream\n protocol = tcp\n"
        f" wait = no\n user = {user}\n port = {order.port}\n bind = {HOST}\n disable = no\n}}\n"
    )
    return [program, "-dontfork", "-f", file, "-pidfile", order.directory / "xinetd.pid"] if program else None


def _socat(order: Order) -> Command | None:
    program = shutil.which("socat")
    return (
        [program, f"TCP-LISTEN:{order.port},bind={HOST},fork,reuseaddr,nodelay,backlog=1024", "PIPE"]
        if program
        else None
    )


KINDS = {
    kind.name: kind
    for kind in (
        Kind("floor", "one read and one write on epoll: what the kernel takes", _floor, "", shares=True),
        Kind("echod", "this daemon as shipped, logs at info to a file", _echod(), "", shares=True),
        Kind("echod-quiet", "the same with log.connections = none", _echod("--log.connections", "none"), ""),
        Kind("uvloop", "uvloop's own example: the least Protocol", _peer("uvloop"), ""),
        Kind("go", "a goroutine for each connection", _go, "go"),
        Kind("asyncio", "the least Protocol on asyncio's own loop", _peer("protocol"), ""),
        Kind("node", "Node's net, a pipe from socket to socket", _node, "node"),
        Kind("xinetd", "its internal echo: a process for each connection", _xinetd, "xinetd", forks=True),
        Kind("streams", "asyncio's streams on uvloop: a coroutine for each connection", _peer("streams"), ""),
        Kind("socat", "a process for each connection, through a pipe", _socat, "socat", forks=True),
    )
}


def missing(kind: Kind) -> str | None:
    """Say why this one can't be had here."""
    with tempfile.TemporaryDirectory() as directory:
        there = kind.command(Order(1, Path(directory), 1, shared=False))
    return None if there else f"{kind.needs} is not installed"


class Server:
    """One that runs, in its own session, until the context is left."""

    def __init__(
        self,
        kind: Kind,
        places: cores.Cores,
        *,
        connections: int = 1,
        processes: int = 1,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """With a context, it is to speak TLS."""
        self.kind = kind
        self._context = context
        self.places = places
        self.connections = connections
        self.number = processes
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ready_after = 0.0
        """Seconds from its start to its first echo."""
        self._directory = tempfile.TemporaryDirectory()

    def __enter__(self) -> Self:
        try:
            began = time.perf_counter()
            for index in range(self.number):
                self._start(index)
            self._await_echo()
            self.ready_after = time.perf_counter() - began
            while measure.listeners(self.port) < self.number:
                self._check(began)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill all of its processes."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._directory.cleanup()

    @property
    def sessions(self) -> list[int]:
        """The sessions of its processes."""
        return [process.pid for process in self.processes]

    def _start(self, index: int) -> None:
        directory = Path(self._directory.name) / str(index)
        directory.mkdir()
        command = self.kind.command(Order(self.port, directory, self.connections, self.number > 1))
        if command is None:
            raise RuntimeError(f"{self.kind.needs} is not installed")
        ours = {"RUNTIME_DIRECTORY": str(directory)}  # as systemd has it: the admin socket is there
        env = {name: value for name, value in os.environ.items() if not name.startswith("ECHOD_")} | ours
        with (
            cores.on(self.places.server[index % len(self.places.server)]),
            (directory / "out").open("wb") as out,
            (directory / "err").open("wb") as err,
        ):
            started = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True, cwd=ROOT, env=env
            )
        self.processes.append(started)

    def _await_echo(self) -> None:
        began = time.perf_counter()
        while True:
            with contextlib.suppress(OSError), self._connect() as sock:
                sock.sendall(b"?")
                if sock.recv(1) == b"?":
                    return
            self._check(began)

    def _connect(self) -> socket.socket:
        sock = socket.create_connection((HOST, self.port), timeout=PATIENCE)
        return self._context.wrap_socket(sock, server_hostname=HOST) if self._context else sock

    def _check(self, began: float) -> None:
        """Wait a little, but not for one that has ended or takes too long."""
        errors = Path(self._directory.name, "0", "err").read_text(errors="replace").strip()[-300:]
        if any(process.poll() is not None for process in self.processes):
            raise RuntimeError(f"{self.kind.name} has ended: {errors}")
        if time.perf_counter() - began > PATIENCE:
            raise RuntimeError(f"{self.kind.name} does not serve after {PATIENCE} s: {errors}")
        time.sleep(0.001)


_ports: Iterator[int] = itertools.cycle(range(FIRST_PORT, LAST_PORT))


def free_port() -> int:
    """Return a port that nobody has, another one each time: none of a load's connections in TIME_WAIT is in the way."""
    for port in _ports:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((HOST, port))
            return port
    raise AssertionError
