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
import time
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
from echod.server.endpoint import AddressMissing, Endpoint, Listener
from echod.server.timeouts import LONGEST_TICK
from echod.systemd import Service
from tests.support.fakes import FakeHandle, FakeLoop, FakeTransport, Lines, Once
from tests.support.in_process import KeptLog
from tests.support.rig import tcp_info

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from pathlib import Path

    from echod.admin.http import Response
    from echod.config.settings import Settings
    from echod.server.endpoint import Peer
    from echod.server.worker import Worker

SPINS = 10_000
"""Rounds of the loop at one moment: more are a loop that does not come to rest."""
PLENTY = 1 << 20
"""Bytes: the window of who reads."""
LATE = 3 * LONGEST_TICK
"""Seconds by which the timeouts may be late: up to three checks may be needed to see that nothing has moved for this long."""


class Loop(FakeLoop):
    """A loop that also runs tasks, and finds out by itself which listeners are readable and who has sent something."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.signals: dict[int, Callable[[], None]] = {}
        self.uncaught: list[dict[str, Any]] = []

    # As asyncio's own, and what of it tasks, futures and timeouts ask for.

    def call_soon(self, callback: Callable[..., None], *arguments: Any, context: Any = None) -> FakeHandle:
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
                self.turn()
                polled = self._poll()
                if not polled and not self._ready:
                    return
        raise AssertionError("it spins")

    def _poll(self) -> bool:
        """Let all that is readable be read once, listeners first: their clients come before ends that arrived before."""
        there = list(self.network.clients)
        readable = [callback for sock, callback in self.readers.items() if sock.queue]
        for callback in readable:
            callback()
        return self.network.deliver(there) or bool(readable)

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
        self.settings: Settings | None = None  # in force when it was accepted
        self.refused = ""  # why; "reset" by the kernel
        self.sent = bytearray()
        self.under_way = bytearray()  # of this, what the daemon has not read
        self.came = self.moved = 0.0  # when it was accepted, and when a byte last moved
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

    @property
    def is_over(self) -> bool:
        """Whether its end has arrived, so that its worker comes back in some turns without anything else."""
        transport = self.transport
        if transport is None:
            return self.trouble is not None or self.gone or (self.finished and len(self.under_way) <= self.window)
        if transport._lost or self.trouble is not None:
            return True
        if not transport.reading and transport.was_made:  # stalled, or closing
            return False
        return self.gone or (self.finished and len(self.under_way) <= transport.window)

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

    def setsockopt(self, *_: object) -> None:
        pass

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
    """Listening sockets and clients, and whether what becomes of each client is right by the settings in force."""

    def __init__(self, settings: Callable[[], Settings], now: Callable[[], float]) -> None:
        self._settings = settings
        self._now = now
        self._ports = iter(range(40000, 60000))
        self.listeners: list[ListeningSocket] = []
        self.taken: set[int] = set()  # ports of others
        self.has_address = True  # the machine; a listener outlives it
        self.exhausted: int | None = None  # the error of accept
        self.failed = float("-inf")  # when that was met last
        self.clients: list[Client] = []  # all that have got a worker
        self.held: list[Client] = []  # accepted, and neither refused nor given a worker
        self.tells = True  # whether the kernel answers questions
        self.accepted: dict[int, Client] = {}  # by descriptor
        self.refused: Counter[str] = Counter()
        self._theirs: list[socket.socket] = []
        self._rate: float | None = None
        self._tokens = 0.0
        self._seen = 0.0

    def bind(
        self,
        endpoints: Sequence[Endpoint],
        *,
        backlog: int,
        reuse_port: bool,
        receive_buffer: int | None,
        free_bind: bool,
        beside: Sequence[Listener],
    ) -> list[Listener]:
        """Take the place of `tcp.bind`."""
        del receive_buffer, free_bind
        if not endpoints:
            return []
        (endpoint,) = endpoints
        if not self.has_address:
            raise AddressMissing(endpoint)
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
        """Do as accept(2)."""
        if self.exhausted is not None:
            self.failed = self._now()
            raise OSError(self.exhausted, "accept")
        client = queue.popleft()
        if client.trouble == "gone":
            client.refused = "gone"
            raise OSError(errno.ECONNABORTED, "accept")
        ours, client.sock = socket.socketpair()
        self._theirs.append(client.sock)
        client.came = client.moved = self._now()
        client.settings = self._settings()
        self.held.append(client)
        fd = ours.detach()
        self.accepted[fd] = client
        return fd, (client.address if ":" in client.address else f"::ffff:{client.address}", client.port)

    def _judged(self, peer: Peer) -> Client:
        client = next(each for each in self.held if each.port == peer.port)
        self.held.remove(client)
        return client

    def _is_denied(self, client: Client) -> bool:
        return any(client.address == str(network.network_address) for network in self._settings().access.deny)

    def admitted(self, peer: Peer) -> None:
        """Note that it gets a worker, which has to be right."""
        client, settings = self._judged(peer), self._settings()
        per_source = settings.access.per_source
        there = self.open()
        assert not self._is_denied(client)
        assert not per_source or sum(each.source == client.source for each in there) < per_source
        assert len(there) < settings.pool.size
        assert self._take_token()
        self.clients.append(client)

    def rejected(self, peer: Peer, reason: str) -> None:
        """Note that it is refused, which has to be right: ends that have arrived would not make room for it."""
        client, settings = self._judged(peer), self._settings()
        stay = [each for each in self.open() if not each.is_over]
        match reason:
            case "denied":
                assert self._is_denied(client)
            case "per_source":
                assert 0 < settings.access.per_source <= sum(each.source == client.source for each in stay)
            case "pool_full":
                assert len(stay) >= settings.pool.size
                assert settings.pool.when_full == "reject" or client.settings is not settings, "it has to wait"
            case "accept_rate":
                assert not self._take_token()
            case _:
                raise AssertionError(reason)
        client.refused = reason
        self.refused[reason] += 1

    def _take_token(self) -> bool:
        rate = self._settings().access.accept_rate
        self.rate_is(rate)
        if not rate:
            return True
        now = self._now()
        self._tokens = min(max(1.0, rate), self._tokens + (now - self._seen) * rate)
        self._seen = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def rate_is(self, rate: float | None) -> None:
        """Begin with a full bucket if this is another rate."""
        if rate != self._rate:
            self._rate = rate
            self._tokens = max(1.0, rate or 0.0)
            self._seen = self._now()

    def deliver(self, clients: Sequence[Client]) -> bool:
        """Let happen one thing that each of these has sent; say whether there was anything."""
        return sum(client.deliver(self._now()) for client in clients) > 0

    def info(self, sock: socket.socket) -> kernel.Info | None:
        """Take the place of `kernel.info`."""
        if sock.fileno() < 0 or not self.tells:
            return None
        client = self.accepted[sock.fileno()]
        written = len(client.transport.taken) if client.transport else 0
        quiet = self._now() - client.moved
        return tcp_info(peer_finished=client.finished and not client.under_way, written=written, quiet=quiet)

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
            (time, "monotonic", lambda: self.loop.now),
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
        pool, rejections = self.daemon.server.pool, self.daemon.server.rejections
        take, log = pool.take, rejections.log

        def noted_take(sock: socket.socket, client: Peer, listener: str) -> Worker:
            self.network.admitted(client)
            return take(sock, client, listener)

        def noted_log(client: Peer, listener: str, reason: str, error: str | None = None) -> None:
            self.network.rejected(client, reason)
            log(client, listener, reason, error)

        self._undo.enter_context(mock.patch.object(pool, "take", noted_take))
        self._undo.enter_context(mock.patch.object(rejections, "log", noted_log))
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
