"""The whole daemon in one process, on a loop with a clock of its own and a network that is a few queues.

What runs is the daemon's own life, from `daemon._live` on, with all of its parts. Stand-ins are what it gets from the
kernel (listening sockets, transports, TCP_INFO, time), the thread that prepares a reload, and the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import signal
import socket
from collections import Counter, deque
from typing import TYPE_CHECKING, Any
from unittest import mock

from echod import daemon, reload
from echod.admin.http import Request
from echod.admin.routes import Routes
from echod.admin.status import Meter, Running
from echod.config.load import Loaded
from echod.errors import Refusal
from echod.server import kernel, tcp
from echod.server.endpoint import Endpoint, Listener
from echod.server.timeouts import LONGEST_TICK
from echod.systemd import Service
from tests.support.fakes import FakeHandle, FakeLoop, FakeTransport, Lines, Once
from tests.support.inside import KeptLog

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from pathlib import Path

    from echod.admin.http import Response
    from echod.config.settings import Settings
    from echod.server.worker import Worker

SPINS = 10_000
"""Rounds of the loop at one moment: more are a loop that does not come to rest."""
PLENTY = 1 << 20
"""Bytes: the window of who reads."""
LATE = 3 * LONGEST_TICK
"""Seconds by which the janitor may be late: it needs up to three looks to see that nothing has moved for so long."""


class Loop(FakeLoop):
    """A loop that also runs tasks, and finds out by itself which listeners are readable and who has sent something."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.signals: dict[int, Callable[[], None]] = {}
        self.uncaught: list[dict[str, Any]] = []

    # As asyncio's own, and what of it tasks, futures and timeouts ask for.

    def call_soon(self, callback: Callable[..., None], *arguments: Any, context: Any = None) -> FakeHandle:  # type: ignore[override]
        handle = FakeHandle()
        super().call_soon(_call, handle, context, callback, arguments)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., None], *arguments: Any, context: Any = None
    ) -> FakeHandle:
        del context  # of timers, none here needs it
        return super().call_later(delay, functools.partial(callback, *arguments))

    def call_at(self, when: float, callback: Callable[..., None], *arguments: Any, context: Any = None) -> FakeHandle:
        return self.call_later(when - self.now, callback, *arguments, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self.asyncio)

    def create_task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.Task(coroutine, loop=self.asyncio)

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.uncaught.append(context)

    def add_signal_handler(self, number: int, callback: Callable[[], None]) -> None:
        self.signals[number] = callback

    async def connect_accepted_socket(self, factory: Callable[[], Worker], sock: socket.socket) -> tuple[Any, Any]:
        client = self.network.accepted[sock.fileno()]
        self.fail_to_attach = OSError(errno.ENOBUFS, "attach") if client.trouble == "attach" else None
        opening = super().connect_accepted_socket(factory, sock)
        opening.send(None)  # up to where it waits
        client.transport = self.transports[-1]
        client.transport.window = client.window
        try:
            await Once()
            # uvloop lets it fail only if the transport is no more; one that is aborted goes the usual way.
            fails = client.trouble == "open" and not client.transport.is_closing()
            self.fail_to_open = OSError(errno.EINVAL, "open") if fails else None
            opening.send(None)
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]
        raise AssertionError("it waits once")

    # What a test does:

    def run(self) -> None:
        """Go on until nothing is left to do at this moment."""
        for _ in range(SPINS):
            with self._running():
                super().run()
                if not self.accept() and not self.network.deliver():
                    return
        raise AssertionError("it spins")

    def accept(self) -> bool:
        """Let one listener that is readable be read, if there is one, and do nothing of what follows."""
        for sock, callback in self.readers.items():
            if sock.queue:
                with self._running():
                    callback()
                return True
        return False

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self.asyncio)
        try:
            yield
        finally:
            asyncio._set_running_loop(before)


def _call(handle: FakeHandle, context: Any, callback: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    if not handle.cancelled:
        if context is None:
            callback(*arguments)
        else:
            context.run(callback, *arguments)


class Client:
    """Who connects, and its own books."""

    def __init__(self, address: str, source: str, port: int, *, window: int, trouble: str | None) -> None:
        self.address = address
        self.source = source
        self.port = port
        self.window = window
        self.trouble = trouble  # what goes wrong when it is accepted: "gone", "attach", "open"
        self.sock: socket.socket | None = None
        self.transport: FakeTransport | None = None
        self.number = 0  # of the connection, once it is opened
        self.refused = ""  # why, by our own books; "reset" by the kernel
        self.sent = bytearray()
        self.under_way = bytearray()  # of this, what the daemon has not read
        self.moved = 0.0  # when a byte last did
        self.finished = False  # it has sent FIN
        self.gone = False  # it has sent RST
        self._hung_up = False

    @property
    def delivered(self) -> int:
        return len(self.sent) - len(self.under_way)

    @property
    def echo(self) -> bytes:
        """What the daemon has written, whether or not the client has read it."""
        return bytes(self.transport.taken + self.transport.held) if self.transport else b""

    @property
    def pending(self) -> int:
        return len(self.transport.held) if self.transport else 0

    @property
    def reads(self) -> bool:
        """Whether the daemon reads what it sends."""
        return bool(self.transport and self.transport.reading)

    @property
    def hung_up(self) -> bool:
        """Whether the daemon's end is closed; the descriptor, not just a flag."""
        if not self._hung_up and self.sock:
            with contextlib.suppress(BlockingIOError):
                self._hung_up = self.sock.recv(1, socket.MSG_DONTWAIT) == b""
        return self._hung_up

    def deliver(self, now: float) -> bool:
        """Let happen what it has sent; say whether there was anything."""
        transport = self.transport
        if transport is None or not transport.reading:
            return False
        if self.gone:
            transport.fail(ConnectionResetError(errno.ECONNRESET, "reset"))
        elif self.under_way:
            data = bytes(self.under_way)
            self.under_way.clear()
            self.moved = now
            transport.receive(data)
        elif self.finished:
            transport.receive_eof()
        else:
            return False
        return True

    def read(self, size: int, now: float) -> None:
        """Make room for so much more of the echo."""
        if self.transport:
            if self.transport.held:
                self.moved = now
            self.transport.take(size)


class ListeningSocket:
    """A queue of clients whose handshakes are done."""

    family, type, proto = socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP

    def __init__(self, network: Network, port: int, backlog: int) -> None:
        self.queue: deque[Client] = deque()
        self.port = port
        self._network = network
        self._backlog = backlog
        self.is_open = True

    def _accept(self) -> tuple[int, tuple[str, int]]:
        assert self.is_open
        if not self.queue:
            raise BlockingIOError
        return self._network.accept(self.queue)

    def listen(self, backlog: int) -> None:
        self._backlog = backlog

    def connect(self, client: Client) -> bool:
        """Complete a handshake if there is room (tcp(7): one more than the backlog)."""
        if len(self.queue) > self._backlog:
            return False
        self.queue.append(client)
        return True

    def fileno(self) -> int:
        return id(self) if self.is_open else -1

    def close(self) -> None:
        self.is_open = False
        for client in self.queue:
            client.refused = "reset"
        self.queue.clear()


class Network:
    """Listening sockets and clients, and what has to become of each client by the settings in force."""

    def __init__(self, settings: Callable[[], Settings], now: Callable[[], float]) -> None:
        self._settings = settings
        self._now = now
        self._ports = iter(range(40000, 60000))
        self.listeners: list[ListeningSocket] = []
        self.taken: set[int] = set()  # ports of others
        self.exhausted: int | None = None  # the error of accept
        self.failed = float("-inf")  # when that was met last
        self.clients: list[Client] = []  # all that have been accepted and not refused
        self.accepted: dict[int, Client] = {}  # by descriptor
        self.refused: Counter[str] = Counter()
        self._theirs: list[socket.socket] = []
        self._rate: float | None = None
        self._tokens = 0.0
        self._seen = 0.0

    def bind(
        self, endpoints: Sequence[Endpoint], *, backlog: int, reuse_port: bool, beside: Sequence[Listener] = ()
    ) -> list[Listener]:
        """Take the place of `tcp.bind`."""
        if not endpoints:
            return []
        (endpoint,) = endpoints
        used = {each.port for each in self.listeners if each.is_open} - {each.endpoint.port for each in beside}
        if endpoint.port in self.taken | used or reuse_port:
            raise Refusal(f"echod: {endpoint}: address in use")
        sock: Any = ListeningSocket(self, endpoint.port, backlog)
        self.listeners.append(sock)
        return [Listener(endpoint, sock, str(endpoint), backlog)]

    def connect(self, port: int, address: str, source: str, *, window: int, trouble: str | None) -> Client | None:
        """Return a client whose handshake is done, or `None` if there is nobody, or no room."""
        client = Client(address, source, next(self._ports), window=window, trouble=trouble)
        for each in self.listeners:
            if each.is_open and each.port == port and each.connect(client):
                return client
        return None

    def open(self) -> list[Client]:
        """Return those who have a worker."""
        return [client for client in self.clients if not client.hung_up]

    def accept(self, queue: deque[Client]) -> tuple[int, tuple[str, int]]:
        """Do as accept(2), and note what has to become of this one."""
        if self.exhausted is not None:
            self.failed = self._now()
            raise OSError(self.exhausted, "accept")
        client = queue.popleft()
        if client.trouble == "gone":
            client.refused = "gone"
            raise OSError(errno.ECONNABORTED, "accept")
        ours, client.sock = socket.socketpair()
        self._theirs.append(client.sock)
        client.moved = self._now()
        client.refused = self._judge(client)
        if client.refused:
            self.refused[client.refused] += 1
        else:
            self.clients.append(client)
        fd = ours.detach()
        self.accepted[fd] = client
        return fd, (client.address if ":" in client.address else f"::ffff:{client.address}", client.port)

    def _judge(self, client: Client) -> str:
        settings = self._settings()
        access = settings.access
        open_now = self.open()
        if any(client.address == str(network.network_address) for network in access.deny):
            return "denied"
        if access.per_source and sum(each.source == client.source for each in open_now) >= access.per_source:
            return "per_source"
        if len(open_now) >= settings.pool.size:
            assert settings.pool.when_full == "reject", "accepted without a worker, although it has to wait"
            return "pool_full"
        self.rate_is(access.accept_rate)
        if access.accept_rate:
            now = self._now()
            self._tokens = min(max(1.0, access.accept_rate), self._tokens + (now - self._seen) * access.accept_rate)
            self._seen = now
            if self._tokens < 1:
                return "accept_rate"
            self._tokens -= 1
        return ""

    def rate_is(self, rate: float | None) -> None:
        """Begin with a full bucket if this is another rate."""
        if rate != self._rate:
            self._rate = rate
            self._tokens = max(1.0, rate or 0.0)
            self._seen = self._now()

    def deliver(self) -> bool:
        """Let happen what clients have sent; say whether there was anything."""
        return any(client.deliver(self._now()) for client in self.clients)

    def info(self, sock: socket.socket) -> kernel.Info | None:
        """Take the place of `kernel.info`."""
        if sock.fileno() < 0:
            return None
        client = self.accepted[sock.fileno()]
        written = len(client.transport.taken) if client.transport else 0
        return kernel.Info(client.finished and not client.under_way, 0.0, 0, written)

    @staticmethod
    def queued(listener: Any) -> int:
        """Take the place of `kernel.queued`."""
        return len(listener.queue)

    @staticmethod
    def has_waiting(listener: Any) -> bool:
        """Take the place of `kernel.has_waiting`."""
        return bool(listener.queue)

    def close(self) -> None:
        for sock in self._theirs:
            sock.close()


async def at_once(function: Callable[[], Any]) -> Any:
    """Take the place of `reload.in_thread`."""
    await asyncio.sleep(0)
    result = function()
    await asyncio.sleep(0)
    return result


class TimedLines(Lines):
    """A log that also keeps when each line came."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now

    def _keep(self, logger: object, level: str, event: Any) -> Any:
        return super()._keep(logger, level, {**event, "at": self._now()})


class Simulation:
    """A daemon that has started on these settings."""

    def __init__(self, settings: Settings) -> None:
        self.network = Network(lambda: self.settings, lambda: self.loop.now)
        self.loop = Loop(self.network)
        self.lines = TimedLines(self.loop.time)
        self.next: Settings | Refusal = settings  # what the file says
        self._undo = contextlib.ExitStack()
        self._undo.callback(signal.pthread_sigmask, signal.SIG_SETMASK, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        for where, name, instead in (
            (tcp, "bind", self.network.bind),
            (kernel, "info", self.network.info),
            (kernel, "queued", self.network.queued),
            (kernel, "has_waiting", self.network.has_waiting),
            (reload, "in_thread", at_once),
            (gc, "freeze", lambda: None),
            (daemon, "Daemon", self._made),
        ):
            self._undo.enter_context(mock.patch.object(where, name, instead))
        self.daemon: daemon.Daemon
        log = KeptLog(self.lines)
        self.life = self.loop.create_task(
            daemon._live(Loaded(settings, None, (), [], has_keys=False), log, self._load, Service({}))
        )
        self.loop.run()
        running = Running(self.daemon.server, self.daemon.reloads, log)
        self._routes = Routes(running, Meter(self.daemon.server))

    def _made(self, *arguments: Any) -> daemon.Daemon:
        self.daemon = _DAEMON(*arguments)
        return self.daemon

    def _load(self, _: Path | None) -> Loaded:
        if isinstance(self.next, Refusal):
            raise self.next
        return Loaded(self.next, None, (), [], has_keys=False)

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self.daemon.server.settings

    def signal(self, number: signal.Signals) -> None:
        self.loop.call_soon(self.loop.signals[number])

    def ask(self, method: str, path: str) -> asyncio.Task[Response]:
        """Ask as on the admin socket."""
        return self.loop.create_task(self._routes.local(Request(method, path, {})))

    def close(self) -> None:
        self.network.close()
        self._undo.close()


_DAEMON = daemon.Daemon
