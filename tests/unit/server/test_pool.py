"""The pool: seats taken and given back, and the books."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from echod.server import addresses, kernel
from echod.server import pool as pool_module
from echod.server.pool import REASONS, Pool, _reason, peer
from tests.support.fakes import FakeListener, FakeLoop, FakeTransport, Lines, sockets

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from echod.config.settings import Lifecycle
    from echod.server.worker import Worker


class House:
    """A pool, its log, and connections to it."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.lines = Lines()
        self.pool = self.make()
        self.open: list[socket.socket] = []

    def make(self, size: int = 2, lifecycle: Lifecycle = "all") -> Pool:
        return Pool(self.lines.log, size=size, lifecycle=lifecycle)

    def resize(self, size: int, pool: Pool | None = None) -> None:
        pool = pool or self.pool
        pool.resize(size, pool.make(size - pool.size))

    def connect(self, pool: Pool | None = None, address: str = "192.0.2.9") -> tuple[Worker, FakeTransport]:
        ours, theirs = sockets()
        self.open += [ours, theirs]
        worker = (pool or self.pool).take(ours, (address, 4711), FakeListener())
        transport = FakeTransport(self.loop, worker, ours)
        transport.made()
        return worker, transport

    def end(self, transport: FakeTransport) -> None:
        transport.receive_eof()
        self.loop.run()


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    for sock in house.open:
        sock.close()


def test_a_worker_is_free_or_in_use(house: House) -> None:
    """Seats are taken up to the size and come back with the end of their connection."""
    assert (house.pool.free, len(house.pool.in_use)) == (2, 0)
    _, first = house.connect()
    house.connect()
    assert (house.pool.free, len(house.pool.in_use)) == (0, 2)
    ours, theirs = sockets()
    with ours, theirs, pytest.raises(IndexError):
        house.pool.take(ours, ("192.0.2.9", 1), FakeListener())
    assert house.pool.accepted == 2
    first.receive_eof()
    house.loop.run()
    assert (house.pool.free, list(house.pool.in_use)) == (1, [2])


class Full(dict[int, "Worker"]):
    """A dictionary for which there is no memory to grow."""

    def __setitem__(self, *_: object) -> None:
        raise MemoryError


def test_a_connection_for_which_there_is_no_memory_changes_nothing(house: House) -> None:
    """It has no worker then, no number and no source."""
    house.pool.in_use = Full()
    with pytest.raises(MemoryError):
        house.connect()
    assert (house.pool.free, house.pool.accepted, house.pool.sources) == (2, 0, {})


def test_a_connection_that_cannot_be_told_is_closed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker comes back, and it is booked."""
    tell = house.lines.log.info

    def fail(event: str, **fields: object) -> None:
        if event == "connection.opened":
            raise MemoryError
        tell(event, **fields)

    monkeypatch.setattr(house.lines.log, "info", fail)
    with pytest.raises(MemoryError):
        house.connect()
    assert (house.pool.free, house.pool.in_use, house.pool.sources) == (2, {}, {})
    assert house.lines.names() == ["connection.closed"]
    assert house.pool.closed == {"error": 1}


def test_no_worker_is_made_after_the_start(house: House) -> None:
    """The same objects serve all connections."""
    pool = house.make(size=1)
    seen = set()
    for _ in range(3):
        worker, transport = house.connect(pool)
        seen.add(id(worker))
        transport.receive_eof()
        house.loop.run()
    assert len(seen) == 1


def test_who_waits_is_told_of_each_worker_that_comes_back(house: House) -> None:
    """The acceptors resume by this, and the drain ends by it."""
    told: list[int] = []
    house.pool.when_free = lambda: told.append(house.pool.free)
    for _ in range(2):
        _, transport = house.connect()
        transport.receive_eof()
        house.loop.run()
    assert told == [2, 2]


def test_a_connection_is_two_lines(house: House) -> None:
    """Opened and closed, with the fields of the contract."""
    _, transport = house.connect()
    transport.receive(b"12345")
    transport.receive_eof()
    house.loop.run()
    opened, closed = house.lines.lines
    common = {"connection": 1, "client": {"address": "192.0.2.9", "port": 4711}, "listener": FakeListener.url}
    assert opened == {"level": "info", "event": "connection.opened", "in_use": 1, **common}
    assert closed.pop("duration") >= 0
    assert closed == {
        "level": "info",
        "event": "connection.closed",
        "bytes_received": 5,
        "bytes_sent": 5,
        "reason": "eof",
        "in_use": 0,
        "tcp": None,  # the pair is no TCP connection
        **common,
    }


@pytest.mark.parametrize(
    ("lifecycle", "names"),
    [("all", ["connection.opened", "connection.closed"]), ("closed", ["connection.closed"]), ("none", [])],
)
def test_lifecycle_lines_can_be_left_out(house: House, lifecycle: Lifecycle, names: list[str]) -> None:
    """log.connections says which there are; the books are kept in any case."""
    pool = house.make(lifecycle=lifecycle)
    _, transport = house.connect(pool)
    transport.receive_eof()
    house.loop.run()
    assert house.lines.names() == names
    assert pool.closed == {"eof": 1}


@pytest.mark.parametrize(
    ("exc", "reason", "fields"),
    [
        (None, "eof", {}),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "reset", {}),
        (BrokenPipeError(errno.EPIPE, "broken pipe"), "reset", {}),
        (TimeoutError(errno.ETIMEDOUT, "keepalive"), "error", {"error": "ETIMEDOUT"}),
        (ValueError("a bug"), "error", {"error": "ValueError"}),
    ],
)
def test_the_reason_is_what_ended_it(house: House, exc: Exception | None, reason: str, fields: dict[str, str]) -> None:
    """A client that finished, one that broke off, and everything else."""
    worker, _ = house.connect()
    worker.connection_lost(exc)
    closed = house.lines.events("connection.closed")[0]
    assert closed["reason"] == reason
    assert {key: closed[key] for key in closed if key == "error"} == fields


def test_the_reason_is_ours_if_we_ended_it(house: House) -> None:
    """Whatever the transport says then."""
    worker, _ = house.connect()
    worker.abort("idle_timeout")
    house.loop.run()
    assert house.pool.closed == {"idle_timeout": 1}


def test_what_was_not_sent_is_not_counted_as_sent(house: House) -> None:
    """Neither what was still pending nor what was dropped."""
    worker, transport = house.connect()
    transport.window = 2
    transport.receive(b"12345")
    worker.dropped = 1
    worker.abort("write_timeout")
    house.loop.run()
    assert (house.pool.bytes_received, house.pool.bytes_sent) == (5, 1)


def test_after_an_error_the_kernel_says_what_it_was_given(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport has forgotten by then what it could not write."""
    monkeypatch.setattr(kernel, "info", lambda _: kernel.Info(peer_finished=False, rtt_us=5, retransmits=1, written=2))
    _, transport = house.connect()
    transport.receive(b"12345")
    transport.fail(ConnectionResetError())
    house.loop.run()
    closed = house.lines.events("connection.closed")[0]
    assert (closed["bytes_received"], closed["bytes_sent"]) == (5, 2)
    assert closed["tcp"] == {"rtt_us": 5, "retransmits": 1}


@pytest.mark.parametrize(("exc", "echoed", "resets"), [(OSError(), 2, 1), (OSError(), 5, 0), (None, 2, 0)])
def test_whose_echo_an_error_has_cut_gets_no_good_end(
    house: House, monkeypatch: pytest.MonkeyPatch, exc: OSError | None, echoed: int, resets: int
) -> None:
    """A FIN would say that this was all."""
    reset: list[socket.socket] = []
    monkeypatch.setattr(kernel, "info", lambda _: kernel.Info(False, 5, 0, echoed))
    monkeypatch.setattr(kernel, "reset_on_close", reset.append)
    worker, transport = house.connect()
    transport.receive(b"12345")
    if exc:
        transport.fail(exc)
    else:
        worker.abort("killed")
    house.loop.run()
    assert len(reset) == resets


def test_a_reset_that_can_not_be_had_spoils_no_books(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket may be closed already."""

    def fail(_: socket.socket) -> None:
        raise OSError(errno.EBADF, "closed")

    monkeypatch.setattr(kernel, "info", lambda _: kernel.Info(False, 5, 0, 2))
    monkeypatch.setattr(kernel, "reset_on_close", fail)
    _, transport = house.connect()
    transport.receive(b"12345")
    transport.fail(OSError())
    house.loop.run()
    assert len(house.lines.events("connection.closed")) == 1


def test_full_is_said_once_and_available_when_the_janitor_asks(house: House) -> None:
    """A busy pool is full and not full thousands of times a second: the log is not."""
    house.connect()
    _, transport = house.connect()
    for _ in range(3):
        transport.receive_eof()
        house.loop.run()
        _, transport = house.connect()
    house.pool.tell_available()
    assert house.lines.events("pool.full") == [{"level": "warning", "event": "pool.full", "size": 2}]
    assert house.lines.events("pool.available") == []
    transport.receive_eof()
    house.loop.run()
    for _ in range(2):
        house.pool.tell_available()
    assert house.lines.events("pool.available") == [{"level": "info", "event": "pool.available", "size": 2}]
    house.connect()
    assert len(house.lines.events("pool.full")) == 2


def test_a_failure_in_the_books_costs_no_worker(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seat comes back whatever happens, who waits for it is told, and what can be counted is."""
    told: list[int] = []
    house.pool.when_free = lambda: told.append(house.pool.free)

    def fail(_: object) -> None:
        raise MemoryError

    worker, _ = house.connect()
    monkeypatch.setattr(kernel, "info", fail)
    monkeypatch.setattr(addresses, "source", fail)
    with pytest.raises(MemoryError):
        worker.connection_lost(None)
    assert (house.pool.free, house.pool.in_use, house.pool.sources) == (2, {}, {})
    assert told == [2]
    assert house.pool.accepted == house.pool.closed["eof"] == house.pool.durations.cumulative()[-1] == 1


def test_a_free_worker_holds_on_to_nothing(house: House) -> None:
    """A pool of idle workers keeps no sockets and transports alive."""
    worker, transport = house.connect()
    transport.receive_eof()
    house.loop.run()
    assert worker.transport is None
    assert not hasattr(worker, "sock")


def test_a_worker_can_be_given_back_only_once(house: House) -> None:
    """Twice in the free list, it would serve two connections at one time."""
    worker, _ = house.connect()
    worker.connection_lost(None)
    with pytest.raises(KeyError):
        worker.connection_lost(None)
    assert house.pool.free == 2


def test_a_connection_that_never_was_is_booked_as_an_error(house: House) -> None:
    """Opened and closed stay equal."""
    ours, theirs = sockets()
    with ours, theirs:
        worker = house.pool.take(ours, ("192.0.2.9", 1), FakeListener())
        house.pool.release(worker, OSError(errno.ENOMEM, "no memory"))
    assert house.pool.free == 2
    closed = house.lines.events("connection.closed")[0]
    assert (closed["reason"], closed["error"]) == ("error", "ENOMEM")


def test_an_address_in_the_log_is_two_fields() -> None:
    """Whichever family it is of."""
    assert peer(("2001:db8::1", 7)) == {"address": "2001:db8::1", "port": 7}


def test_lifecycle_lines_can_be_changed_while_connections_are_open(house: House) -> None:
    """What is logged of an end depends on when it ends, not on when it began."""
    _, first = house.connect()
    house.pool.lifecycle = "none"
    house.end(first)
    _, second = house.connect()
    house.pool.lifecycle = "closed"
    house.end(second)
    assert house.lines.names() == ["connection.opened", "connection.closed"]
    assert [line["connection"] for line in house.lines.lines] == [1, 2]


def test_connections_are_counted_by_their_source(house: House) -> None:
    """An IPv4 address, or an IPv6 network; who has none is not there."""
    pool = house.make(size=5)
    hosts = ["192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::ffff:2"]
    transports = [house.connect(pool, host)[1] for host in hosts]
    assert pool.sources == {"192.0.2.1": 2, "192.0.2.2": 1, "2001:db8::/64": 2}
    for transport in transports[1:4]:
        house.end(transport)
    assert pool.sources == {"192.0.2.1": 1, "2001:db8::/64": 1}
    for transport in (transports[0], transports[4]):
        house.end(transport)
    assert pool.sources == {}


def test_a_pool_that_grows_has_room_for_more(house: House) -> None:
    """At once, whoever is in use."""
    house.connect()
    house.resize(4)
    assert (house.pool.size, house.pool.free) == (4, 3)
    for _ in range(3):
        house.connect()
    assert len(house.pool.in_use) == 4


def test_a_pool_that_shrinks_lets_go_of_free_workers(house: House) -> None:
    """And is as it would be had it been made so."""
    pool = house.make(size=5)
    _, transport = house.connect(pool)
    pool.resize(2, pool.make(2 - 5))
    assert (pool.size, pool.free) == (2, 1)
    house.end(transport)
    assert pool.free == 2


def test_a_pool_that_shrinks_under_use_cuts_nobody(house: House) -> None:
    """Its size is reached as connections end; only then a worker is free, and those who wait are told."""
    pool = house.make(size=4)
    told: list[int] = []
    pool.when_free = lambda: told.append(pool.free)
    transports = [house.connect(pool)[1] for _ in range(4)]
    house.resize(2, pool)
    for transport, free in zip(transports, (0, 0, 1, 2), strict=True):
        assert not transport.is_closing()
        house.end(transport)
        assert pool.free == free
    assert told == [1, 2]
    assert pool.closed == {"eof": 4}


def test_a_pool_can_grow_again_while_more_than_its_size_are_in_use(house: House) -> None:
    """Those in use count: it never has more workers than seats and connections."""
    pool = house.make(size=4)
    transports = [house.connect(pool)[1] for _ in range(4)]
    house.resize(1, pool)
    house.resize(3, pool)
    assert pool.free == 0
    house.end(transports.pop())
    assert pool.free == 0
    house.end(transports.pop())
    assert pool.free == 1
    house.resize(5, pool)
    assert pool.free == 3
    while transports:
        house.end(transports.pop())
    assert pool.free == 5


def test_a_pool_that_becomes_full_by_shrinking_says_so(house: House) -> None:
    """Once, and with its new size; and it says with which size it is available again."""
    _, transport = house.connect()
    house.resize(1)
    assert house.lines.events("pool.full") == [{"level": "warning", "event": "pool.full", "size": 1}]
    house.end(transport)
    house.pool.tell_available()
    assert house.lines.events("pool.available") == [{"level": "info", "event": "pool.available", "size": 1}]
    house.connect()
    house.resize(3)
    house.pool.tell_available()
    assert house.lines.events("pool.available")[1:] == [{"level": "info", "event": "pool.available", "size": 3}]
    assert len(house.lines.events("pool.full")) == 2


def test_a_resize_that_leaves_room_says_nothing(house: House) -> None:
    """Neither a larger one nor a smaller one."""
    house.resize(5)
    house.resize(1)
    assert house.lines.lines == []


def test_what_moves_counts_while_it_moves(house: House) -> None:
    """Of open connections and of those that have ended; what the peer has not taken is not sent."""
    assert house.pool.moved() == (0, 0)
    _, first = house.connect()
    _, second = house.connect()
    first.receive(b"12345")
    second.window = 2
    second.receive(b"1234567")
    assert house.pool.moved() == (12, 7)
    second.take(1)
    assert house.pool.moved() == (12, 8)
    house.end(first)
    assert house.pool.moved() == (12, 8)
    second.take(4)
    house.end(second)
    assert house.pool.moved() == (12, 12) == (house.pool.bytes_received, house.pool.bytes_sent)


def test_what_came_after_our_end_is_not_sent(house: House) -> None:
    """It was dropped, also if nothing is pending."""
    worker, transport = house.connect()
    transport.receive(b"12345")
    worker.dropped = 2
    assert house.pool.moved() == (5, 3)


@pytest.mark.parametrize("read_meanwhile", [False, True])
def test_what_was_told_as_sent_is_never_taken_back(
    house: House, monkeypatch: pytest.MonkeyPatch, *, read_meanwhile: bool
) -> None:
    """A counter that goes back looks like a restart. A transport forgets at its end what it could not write."""
    monkeypatch.setattr(kernel, "info", lambda _: kernel.Info(peer_finished=False, rtt_us=5, retransmits=1, written=2))
    _, transport = house.connect()
    transport.window = 2
    transport.receive(b"12345")
    assert house.pool.moved() == (5, 2)
    transport.fail(ConnectionResetError())
    told = house.pool.moved()[1] if read_meanwhile else 2
    house.loop.run()
    assert house.pool.bytes_sent == 2
    assert house.pool.moved() == (5, told)
    _, transport = house.connect()
    transport.receive(b"1234567890")
    assert house.pool.moved() == (15, max(told, 12))


def test_durations_are_those_of_connections_that_have_ended(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, whether or not it has a line; the same as there, in whole microseconds."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(pool_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    for lifecycle, seconds in (("all", 2.5000004), ("none", 400.0)):
        house.pool.lifecycle = lifecycle  # type: ignore[assignment]
        _, transport = house.connect()
        assert house.pool.durations.cumulative()[-1] == (lifecycle == "none")
        clock.now += seconds
        house.end(transport)
    assert (house.pool.durations.sum, house.pool.durations.most) == pytest.approx((402.5000004, 400.0), rel=1e-12)
    assert house.lines.events("connection.closed")[0]["duration"] == 2.5


def test_every_reason_that_there_is_has_its_name() -> None:
    """The metrics have a series for each from the start, and for no other."""
    assert {_reason(exc) for exc in (None, ConnectionError(), ValueError())} < set(REASONS)
    assert len(set(REASONS)) == len(REASONS)
