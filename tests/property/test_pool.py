"""Workers and pool under any order of events: nothing lost, nobody served twice."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from echod.drain import finish
from echod.janitor import Janitor
from echod.pool import Pool
from tests.fakes import FakeListener, FakeLoop, FakeTransport, Lines

if TYPE_CHECKING:
    from echod.worker import Worker

SIZE = 6
SIZES = st.integers(1, SIZE)
SOURCES = {
    "192.0.2.1": "192.0.2.1",
    "192.0.2.2": "192.0.2.2",
    "2001:db8::1": "2001:db8::/64",
    "2001:db8::2": "2001:db8::/64",
}
"""Addresses of clients, and what they count for."""
IDLE = 60.0
WRITE = 30.0


class Connection:
    """A client's own books."""

    def __init__(self, worker: Worker, transport: FakeTransport) -> None:
        self.worker = worker
        self.number = worker.connection
        self.source = SOURCES[worker.client[0]]
        self.transport = transport
        self.sent = bytearray()
        self.finished = False  # we have sent, or asked for, FIN


class PoolMachine(RuleBasedStateMachine):
    """Connect, data, stall, resume, eof, reset, timeout, drain, abort and resize, in any order."""

    connections: Bundle[Connection] = Bundle("connections")

    def __init__(self) -> None:
        super().__init__()
        self.loop = FakeLoop()
        self.lines = Lines()
        self.pool = Pool(self.lines.log, size=SIZE, lifecycle="all")
        self.janitor = Janitor(
            self.loop.asyncio, self.lines.log, self.pool, idle=IDLE, write=WRITE, looked=lambda _: None
        )
        self.size = SIZE
        self.open: list[Connection] = []
        self.received = 0

    def teardown(self) -> None:
        for connection in self.open:
            connection.transport.abort()
        self.loop.run()
        assert self.pool.free == self.size
        assert self.pool.sources == {}
        assert self.pool.accepted == sum(self.pool.closed.values()) == len(self.lines.events("connection.closed"))
        assert self.pool.bytes_received == self.received

    @precondition(lambda self: self.pool.free)
    @rule(target=connections, window=st.integers(0, 20), address=st.sampled_from(sorted(SOURCES)))
    def connect(self, window: int, address: str) -> Connection:
        return self._connect(window, address)

    @rule(target=connections)
    def connect_until_full(self) -> Any:
        return multiple(*[self._connect(20, "192.0.2.1") for _ in range(self.pool.free)])

    def _connect(self, window: int, address: str) -> Connection:
        ours, theirs = socket.socketpair()
        theirs.close()
        worker = self.pool.take(ours, (address, 1), FakeListener())
        transport = FakeTransport(self.loop, worker, ours)
        transport.made()
        transport.window = window
        connection = Connection(worker, transport)
        self.open.append(connection)
        return connection

    @rule(connection=connections, data=st.binary(min_size=1, max_size=12))
    def data(self, connection: Connection, data: bytes) -> None:
        if connection.transport.reading:
            connection.transport.receive(data)
            self.received += len(data)
            if not connection.finished:
                connection.sent += data

    @rule(connection=connections, size=st.integers(1, 12))
    def read(self, connection: Connection, size: int) -> None:
        if connection in self.open:
            connection.transport.take(size)
            self.loop.run()

    @rule(connection=connections)
    def eof(self, connection: Connection) -> None:
        if connection.transport.reading:
            connection.transport.receive_eof()
            self.loop.run()

    @rule(connection=consumes(connections))
    def reset(self, connection: Connection) -> None:
        if connection in self.open:
            connection.transport.fail(ConnectionResetError(errno.ECONNRESET, "reset"))
            self.loop.run()

    @rule(connection=connections)
    def finish(self, connection: Connection) -> None:
        if connection in self.open and not connection.finished:
            finish(connection.worker)
            connection.finished = True

    @rule(connection=consumes(connections))
    def kill(self, connection: Connection) -> None:
        if connection in self.open:
            connection.worker.abort("killed")
            self.loop.run()

    @rule(seconds=st.floats(0.1, 40.0))
    def wait(self, seconds: float) -> None:
        self.loop.advance(seconds)

    @rule(size=SIZES)
    def resize(self, size: int) -> None:
        before = dict(self.pool.in_use)
        self.pool.resize(size, self.pool.make(size - self.size))
        self.size = size
        self.loop.run()
        assert self.pool.in_use == before

    @rule(size=SIZES, connection=connections)
    def resize_while_one_ends(self, size: int, connection: Connection) -> None:
        more = self.pool.make(size - self.size)
        if connection in self.open:
            connection.worker.abort("killed")
            self.loop.run()
        self.pool.resize(size, more)
        self.size = size

    @invariant()
    def every_worker_is_free_or_in_use(self) -> None:
        free = {id(worker) for worker in self.pool._free}
        used = {id(worker) for worker in self.pool.in_use.values()}
        assert len(free) == self.pool.free
        assert len(used) == len(self.pool.in_use)
        assert not free & used
        assert len(free) == max(0, self.size - len(used))

    @invariant()
    def sources_are_those_of_who_is_in_use(self) -> None:
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
    def whoever_is_not_in_use_has_ended(self) -> None:
        ended = [connection for connection in self.open if connection.number not in self.pool.in_use]
        for connection in ended:
            assert connection.transport.is_closing()
            self.open.remove(connection)


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPool: Any = PoolMachine.TestCase
