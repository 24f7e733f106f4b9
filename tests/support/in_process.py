"""The admin server in the test's own process: what it tells of, its event loop, and clients that may misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Self, cast
from unittest import mock

import h11
import orjson
import uvloop

from echod.admin.http import HttpServer
from echod.admin.routes import Routes
from echod.admin.status import Meter, Running
from echod.config import load as config
from echod.config.settings import Listen
from echod.log import Held, Log
from echod.reload import Reloaded
from echod.server.server import Server as EchoServer
from tests.support.fakes import Lines
from tests.support.harness import DEADLINE
from tests.support.rig import Rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator

    from echod.admin.http import Request, Response
    from echod.config.settings import Log as LogSettings
    from echod.config.settings import WhenFull
    from echod.reload import Reloads

    Answer = Callable[[Request], Awaitable[Response]]

P = ParamSpec("P")

_CAPABILITY_VERSION_3 = 0x20080522


def on_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on a loop as the daemon has it. What nobody has caught there fails the test."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        uncaught: list[dict[str, Any]] = []

        async def bounded() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: uncaught.append(context))
            async with asyncio.timeout(DEADLINE):
                await test(*args, **kwargs)

        uvloop.run(bounded())
        assert uncaught == []

    return run


def descriptors() -> int:
    """Return how many are open in this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def becomes(condition: Callable[[], object]) -> None:
    """Let the loop go on until the condition is met."""
    while not condition():  # noqa: ASYNC110 - what is waited for gives no event
        await asyncio.sleep(0)


def _family(address: Any) -> socket.AddressFamily:
    if isinstance(address, tuple):
        return socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return socket.AF_UNIX


class Answered(NamedTuple):
    """An answer, as a client has it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Client:
    """A client that sends whatever it likes. It reads only when told to."""

    def __init__(self, address: Any) -> None:
        self.sock = socket.socket(_family(address))
        self.sock.settimeout(DEADLINE if isinstance(address, tuple) else 0)  # a full backlog must not stop the loop
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        self.sock.setblocking(False)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read(self) -> bytes:
        """Return some bytes, or none at the end."""
        return await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)

    async def ends(self) -> bool:
        """Say whether the server ends the connection without another byte."""
        return not self._unread and not await self.read()

    async def read_all(self) -> bytes:
        """Read to the end of the stream, whether that is a good one or a reset."""
        data = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while chunk := await self.read():
                data += chunk
        return bytes(data)

    async def answer(self, method: str = "GET") -> Answered:
        """Return the next answer, which is one to this method. A bad one raises `h11.RemoteProtocolError`."""
        http = h11.Connection(h11.CLIENT)
        http.send(h11.Request(method=method, target="/", headers=[("host", "localhost")]))
        http.send(h11.EndOfMessage())
        if self._unread:
            http.receive_data(self._unread)
        head: h11.Response | None = None
        body = bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await self.read())
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                assert isinstance(event, h11.EndOfMessage), event
                break
        assert head
        self._unread = http.trailing_data[0]
        return Answered(head.status_code, {name.decode(): value.decode() for name, value in head.headers}, bytes(body))

    async def ask(self, target: str = "/", method: str = "GET", **headers: str) -> Answered:
        """Send a good request, and return its answer."""
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        if "host" not in headers:
            lines.append("host: localhost")
        await self.send("".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1"))
        return await self.answer(method)


class Server:
    """An HTTP server on a Unix socket without a path, whose log is kept."""

    def __init__(self, answer: Answer, sock: socket.socket | None = None) -> None:
        self.lines = Lines()
        self.sock = sock or listening()
        self.address = self.sock.getsockname()
        self.http = HttpServer(asyncio.get_running_loop(), self.lines.log, self.sock, answer)

    def connect(self) -> Client:
        return Client(self.address)

    async def ask(self, target: str = "/", method: str = "GET", **headers: str) -> Answered:
        """Send a good request on a connection of its own, and return its answer, which ends the connection."""
        with self.connect() as client:
            answered = await client.ask(target, method, **headers)
            assert await client.ends()
            return answered

    @property
    def connections(self) -> int:
        return len(self.http._clients)


def listening() -> socket.socket:
    """Return a listening Unix socket by a name that the kernel chooses (unix(7), autobind)."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")
    sock.listen(2048)
    sock.setblocking(False)
    return sock


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Server]:
    """Serve meanwhile."""
    server = Server(answer)
    try:
        yield server
    finally:
        await server.http.close()


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Have file permissions apply, also to root. The user stays the same: another one may not read this checkout or Python."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)  # capset(2): of this thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable: the lower halves, then the upper ones
    _libc("capget", header, before)
    fewer = (ctypes.c_uint32 * 6)(*before)
    fewer[0] = fewer[3] = 0
    _libc("capset", header, fewer)
    try:
        yield
    finally:
        _libc("capset", header, before)


def _libc(function: str, *arguments: object) -> None:
    if ctypes.CDLL(None, use_errno=True)[function](*arguments) != 0:
        raise OSError(ctypes.get_errno(), function)


class KeptLog(Log):
    """A log whose lines a test looks at; no thread, no file."""

    def __init__(self, lines: Lines) -> None:
        self.debug, self.info, self.warning = lines.log.debug, lines.log.info, lines.log.warning
        self.error, self.exception = lines.log.error, lines.log.exception
        self.lost = 0
        self.late = Held(0, None, None)

    @property
    def dropped(self) -> int:
        return self.lost

    @property
    def held(self) -> Held:
        return self.late

    def configure(self, settings: LogSettings) -> None:
        """Keep all lines, whatever is wanted."""


class FakeReloads:
    """How reloads have ended, as a test says."""

    def __init__(self, loaded: config.Loaded) -> None:
        self.file = loaded.file
        self.document = loaded.document()
        self.last = Reloaded(50.25, 40.5)
        self.ends: Reloaded | None = None  # the next one

    async def requested(self) -> Reloaded | None:
        return self.ends


class Inside:
    """A server that serves nothing but what a test gives it, and what the admin service reads from."""

    def __init__(self, file: Path | None = None) -> None:
        self.rig = Rig()
        self.lines = self.rig.lines
        self.log = KeptLog(self.lines)
        self.loop = self.rig.loop
        self.server = EchoServer(self.loop.asyncio, self.log, checked=lambda: None)
        with mock.patch.object(config, "DEFAULT_FILE", Path("/nonexistent")):  # this machine may have one
            loaded = config.load(file, {}, {"ECHOD_POOL__SIZE": "3"})
        self.server.settings = loaded.settings
        self.server.state = "running"
        self.server.began = time.monotonic() - 60
        self.pool = self.rig.pool = self.server.pool
        self.pool.lifecycle = "all"
        self.pool.resize(3, self.pool.make(3))
        self.reloads = FakeReloads(loaded)
        self.running = Running(self.server, cast("Reloads", self.reloads), self.log)
        self.meter = Meter(self.server)
        self.routes = Routes(self.running, self.meter)

    def listen(self, *hosts: str, when_full: WhenFull = "reject") -> list[int]:
        """Listen on these hosts, at free ports; return the ports."""
        listen = Listen.model_validate({"host": list(hosts), "port": 0, "backlog": 16})
        pool = self.server.settings.pool.model_copy(update={"when_full": when_full})
        settings = self.server.settings.model_copy(update={"listen": listen, "pool": pool})
        self.server.listeners.serve(settings, self.server.listeners.bind(settings))
        return [acceptor.listener.endpoint.port for acceptor in self.server.listeners.acceptors]

    def close(self) -> None:
        self.server.listeners.close()
        self.rig.close()
