"""Stand-ins for the loop, its transports, the clock and the log, with the rules that the workers rely on. Nothing waits."""

from __future__ import annotations

import functools
import heapq
import itertools
import os
import socket
import time
from typing import TYPE_CHECKING, Any, cast

import structlog

from echod import clock

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator

    import pytest

    from echod.log import Logger
    from echod.server.worker import Worker


class Clock:
    """A monotonic clock that goes only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def stop_clock(monkeypatch: pytest.MonkeyPatch, *, now: float, booted: float) -> None:
    """Let it be this moment since the machine has booted, which it has at this Unix time."""
    monkeypatch.setattr(clock, "now", lambda: now)
    monkeypatch.setattr(clock, "unix_time", lambda moment: booted + moment)


class FakeHandle:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """A loop whose clock goes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.readers: dict[Any, Callable[[], None]] = {}
        self.transports: list[FakeTransport] = []
        self.fail_to_attach: BaseException | None = None
        self.fail_to_open: Exception | None = None
        self._ready: list[tuple[FakeHandle, Callable[..., None], tuple[Any, ...]]] = []
        self._timers: list[tuple[float, int, FakeHandle, Callable[[], None]]] = []
        self._order = itertools.count()

    @property
    def asyncio(self) -> asyncio.AbstractEventLoop:
        """This loop, for type checkers."""
        return cast("asyncio.AbstractEventLoop", self)

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> FakeHandle:
        handle = FakeHandle()
        self._ready.append((handle, callback, arguments))
        return handle

    def call_later(self, delay: float, callback: Callable[..., None], *arguments: Any) -> FakeHandle:
        handle = FakeHandle()
        call: Callable[[], None] = functools.partial(callback, *arguments)
        heapq.heappush(self._timers, (self.now + max(0.0, delay), next(self._order), handle, call))
        return handle

    def add_reader(self, sock: Any, callback: Callable[..., None], *arguments: Any) -> None:
        assert sock.fileno() >= 0, "add_reader on a closed socket"
        assert sock not in self.readers, "add_reader twice: a system call for each worker that comes back"
        self.readers[sock] = functools.partial(callback, *arguments) if arguments else callback

    def remove_reader(self, sock: Any) -> None:
        assert sock.fileno() >= 0, "remove_reader after the socket was closed"
        del self.readers[sock]

    async def connect_accepted_socket(self, factory: Callable[[], Worker], sock: socket.socket) -> tuple[Any, Any]:
        """Like uvloop's: waits once, for what `call_soon` will do."""
        if self.fail_to_attach:
            raise self.fail_to_attach
        worker = factory()
        transport = FakeTransport(self, worker, sock)
        self.transports.append(transport)
        self.call_soon(transport.made)
        await Once()
        if self.fail_to_open:
            transport.close_handle()
            raise self.fail_to_open
        assert transport.was_made, "the coroutine was resumed too early"
        return transport, worker

    # What a test does:

    def turn(self) -> None:
        """Run what is ready now, as one turn of the loop does."""
        for _ in range(len(self._ready)):
            handle, callback, arguments = self._ready.pop(0)
            if not handle.cancelled:
                callback(*arguments)

    def run(self) -> None:
        """Run what is ready, and what gets ready by that."""
        while self._ready:
            self.turn()

    def advance(self, seconds: float) -> None:
        """Let the time go on, with every timer at its moment."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, handle, callback = heapq.heappop(self._timers)
            self.now = max(self.now, due)
            if not handle.cancelled:
                callback()
                self.run()
        self.now = end

    @property
    def timers(self) -> int:
        return sum(not handle.cancelled for _, _, handle, _ in self._timers)


class Once:
    """Suspends a coroutine, once."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class FakeTransport:
    """A stream transport with a high-water mark of 0, as uvloop has it.

    `window` is how many bytes the kernel still takes; what it doesn't, the transport holds.
    """

    def __init__(self, loop: FakeLoop, protocol: Any, sock: socket.socket) -> None:
        self._loop = loop
        self._protocol = protocol
        self._sock = sock
        self._closing = False
        self._lost = False
        self._eof = False
        self._paused_protocol = False
        self.fail_limits: Exception | None = None
        self.was_made = False
        self.high_water = 65536
        self.window = 1 << 40
        self.taken = bytearray()
        self.held = bytearray()
        self.fin_sent = False
        self.reading = False
        self.moved = loop.time()  # when a byte last did, as the kernel has it

    def made(self) -> None:
        self.was_made = True
        self._protocol.connection_made(self)
        self.reading = not self._closing

    def set_write_buffer_limits(self, high: int) -> None:
        if self.fail_limits:
            raise self.fail_limits
        self.high_water = high

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def write(self, data: bytes) -> None:
        if self._lost:
            raise RuntimeError("unable to perform operation; the handler is closed")
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        self.held += data
        self._flush()
        if self.held and not self._paused_protocol:
            self._paused_protocol = True
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        self._eof = True
        self._flush()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = not self._closing

    def get_write_buffer_size(self) -> int:
        return len(self.held)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.reading = False
            if not self.held:
                self._lose(None)

    def abort(self) -> None:
        self._closing = True
        self.reading = False
        self._lose(None)

    def close_handle(self) -> None:
        """Close as uvloop does when its coroutine fails: the protocol is not told."""
        self._closing = self._lost = True
        self.reading = False
        self._close()

    def _flush(self) -> None:
        size = min(self.window, len(self.held))
        self.taken += self.held[:size]
        del self.held[:size]
        self.window -= size
        if not self.held and self._paused_protocol:
            self._paused_protocol = False
            self._protocol.resume_writing()
        if not self.held:
            self.fin_sent = self._eof

    def _lose(self, exc: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self._connection_lost, exc)

    def _connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)
        self._close()

    def _close(self) -> None:
        """Close the descriptor and then the socket, as uvloop does."""
        fd = self._sock.detach()
        if fd >= 0:
            os.close(fd)
        self._sock.close()

    # What the peer does:

    def receive(self, data: bytes) -> None:
        assert self.reading, "data for who does not read"
        if data:
            self.moved = self._loop.time()
        self._protocol.data_received(data)

    def receive_eof(self) -> None:
        assert self.reading, "EOF for who does not read"
        self.reading = False
        if not self._protocol.eof_received():
            self.close()

    def take(self, size: int) -> None:
        """Let the kernel take that many more bytes."""
        self.window += size
        self.moved = self._loop.time()
        self._flush()
        if self._closing and not self.held:
            self._lose(None)

    def fail(self, exc: Exception) -> None:
        self._closing = True
        self.reading = False
        self.held.clear()
        self._lose(exc)


class Lines:
    """A log that keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.log: Logger = structlog.wrap_logger(
            None,
            processors=[self._keep],
            wrapper_class=structlog.make_filtering_bound_logger("debug"),
        ).bind()

    def _keep(self, _: object, level: str, event: Any) -> Any:
        self.lines.append({"level": level, **event})
        raise structlog.DropEvent

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == name]

    def names(self) -> list[str]:
        return [line["event"] for line in self.lines]


def sockets() -> tuple[socket.socket, socket.socket]:
    """Return a connected pair: real descriptors, but no TCP."""
    return socket.socketpair()


def has_mptcp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP).close()
    except OSError:
        return False
    return True


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True
