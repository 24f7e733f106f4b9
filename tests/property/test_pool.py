"""Workers and pool under any order of events: no byte is lost, and no worker serves two connections."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from echod.server import drain
from echod.server.timeouts import Timeouts
from tests.support.rig import Rig, resize

if TYPE_CHECKING:
    from echod.server.worker import Worker
    from tests.support.fakes import FakeTransport

SIZE = 6
SIZES = st.integers(1, SIZE)
SOURCES = {
    "192.0.2.1": "192.0.2.1",
    "192.0.2.2": "192.0.2.2",
    "2001:db8::1": "2001:db8::/64",
    "2001:db8::2": "2001:db8::/64",
}
"""Addresses of clients, and their sources."""
WHICH = st.integers(0, SIZE - 1)
"""One of the connections that are open: rules that could choose closed ones too would mostly do nothing."""
IDLE = 60.0
WRITE = 30.0


class Connection:
    """What the client knows of its connection."""

    def __init__(self, worker: Worker, transport: FakeTransport) -> None:
        self.worker = worker
        self.number = worker.connection
        self.source = SOURCES[worker.client.fields()["address"]]
        self.transport = transport
        self.sent = bytearray()
        self.finished = False  # we have sent, or asked for, FIN


def eof(connection: Connection) -> None:
    if connection.transport.reading:
        connection.transport.receive_eof()


def reset(connection: Connection) -> None:
    connection.transport.fail(ConnectionResetError(errno.ECONNRESET, "reset"))


def finish(connection: Connection) -> None:
    if not connection.finished:
        drain.finish(connection.worker, "drained", 0.0)
        connection.finished = True


def kill(connection: Connection) -> None:
    connection.worker.abort("killed")


End = Callable[[Connection], None]
ENDS: list[End] = [eof, reset, finish, kill]
any_is_open = precondition(lambda self: self.open)


class PoolMachine(RuleBasedStateMachine):
    """Connect, data, stall, resume, eof, reset, timeout, drain, abort and resize, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.loop = self.rig.loop
        self.lines = self.rig.lines
        self.pool = self.rig.pool
        resize(self.pool, SIZE)
        timeouts = Timeouts(self.loop.asyncio, self.rig.log, self.pool, lambda _: None)
        timeouts.set(idle=IDLE, write=WRITE, lifetime=None)
        self.rig.has_own_clock = True
        self.rig.watch = timeouts.watch
        self.size = SIZE
        self.open: list[Connection] = []
        self.received = 0

    def teardown(self) -> None:
        for connection in self.open:
            connection.transport.abort()
        self.loop.run()
        self.rig.close()
        assert self.pool.free == self.size
        assert self.pool.sources == {}
        assert self.pool.accepted == sum(self.pool.closed.values()) == len(self.lines.events("connection.closed"))
        assert self.pool.bytes_received == self.received

    def _chosen(self, which: int) -> Connection:
        return self.open[which % len(self.open)]

    @precondition(lambda self: self.pool.free)
    @rule(window=st.integers(0, 10), address=st.sampled_from(sorted(SOURCES)))
    def connect(self, window: int, address: str) -> None:
        worker, transport = self.rig.take(address)
        transport.window = window
        self.open.append(Connection(worker, transport))

    @precondition(lambda self: self.pool.free)
    @rule()
    def connect_until_full(self) -> None:
        while self.pool.free:
            self.connect(10, "192.0.2.1")

    @any_is_open
    @rule(which=WHICH, chunks=st.lists(st.binary(min_size=1, max_size=12), min_size=1, max_size=4))
    def data(self, which: int, chunks: list[bytes]) -> None:
        connection = self._chosen(which)
        for chunk in chunks:
            if connection.transport.reading:
                connection.transport.receive(chunk)
                self.received += len(chunk)
                if not connection.finished:
                    connection.sent += chunk

    @any_is_open
    @rule(which=WHICH, size=st.integers(1, 30))
    def read(self, which: int, size: int) -> None:
        self._chosen(which).transport.take(size)
        self.loop.run()

    @any_is_open
    @rule(which=WHICH, how=st.sampled_from(ENDS))
    def end(self, which: int, how: End) -> None:
        how(self._chosen(which))
        self.loop.run()

    @rule(seconds=st.one_of(st.floats(0.1, 2.0), st.floats(0.1, 40.0)))
    def wait(self, seconds: float) -> None:
        self.loop.advance(seconds)

    @rule(size=SIZES, meanwhile=st.none() | WHICH)
    def resize(self, size: int, meanwhile: int | None) -> None:
        more = self.pool.make(size - self.size)  # as a reload does, in a thread
        if meanwhile is not None and self.open:
            kill(self._chosen(meanwhile))
            self.loop.run()
        before = dict(self.pool.in_use)
        self.pool.resize(size, more)
        self.size = size
        self.loop.run()
        assert self.pool.in_use == before

    @invariant()
    def every_worker_is_free_or_in_use(self) -> None:
        free = {id(worker) for worker in self.pool._free}
        used = {id(worker) for worker in self.pool.in_use.values()}
        assert len(free) == self.pool.free
        assert len(used) == len(self.pool.in_use)
        assert not free & used
        assert len(free) == max(0, self.size - len(used))

    @invariant()
    def sources_are_those_of_connections_in_use(self) -> None:
        in_use = [connection for connection in self.open if connection.number in self.pool.in_use]
        assert len(in_use) == len(self.pool.in_use)
        assert self.pool.sources == Counter(connection.source for connection in in_use)

    @invariant()
    def the_echo_is_what_was_sent(self) -> None:
        for connection in self.open:
            taken, held = connection.transport.taken, connection.transport.held
            if connection.number in self.pool.in_use:
                assert taken + held == connection.sent
            else:
                assert connection.sent.startswith(taken)

    @invariant()
    def reading_pauses_exactly_while_output_is_pending(self) -> None:
        for connection in self.open:
            if connection.number in self.pool.in_use and not connection.finished:
                assert connection.worker.paused == bool(connection.transport.held)
                assert connection.transport.reading != bool(connection.transport.held)

    @invariant()
    def a_connection_that_is_not_in_use_has_ended(self) -> None:
        ended = [connection for connection in self.open if connection.number not in self.pool.in_use]
        for connection in ended:
            assert connection.transport.is_closing()
            self.open.remove(connection)


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestPool: Any = PoolMachine.TestCase
