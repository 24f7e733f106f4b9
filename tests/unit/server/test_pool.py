"""The pool: workers taken and given back, and the books."""

from __future__ import annotations

import contextlib
import errno
import ssl
from typing import TYPE_CHECKING

import pytest

from echod.server import kernel
from echod.server import pool as pool_module
from echod.server.endpoint import NamedPeer, Peer
from echod.server.pool import CLOSE_REASONS, Pool, _reason
from tests.support.fakes import Clock, sockets
from tests.support.log_document import check_line
from tests.support.rig import LISTENER, moved, resize, tcp_info

if TYPE_CHECKING:
    from echod.config.settings import Lifecycle
    from echod.server.worker import Worker
    from tests.support.rig import Rig

CLIENT = Peer("192.0.2.9", 4711)


def test_a_worker_is_free_or_in_use(rig: Rig) -> None:
    """Workers are taken up to the size of the pool, and come back when their connection ends."""
    assert (rig.pool.free, len(rig.pool.in_use)) == (3, 0)
    _, first = rig.take()
    rig.take()
    rig.take()
    assert (rig.pool.free, len(rig.pool.in_use)) == (0, 3)
    ours, theirs = sockets()
    with ours, theirs, pytest.raises(IndexError):
        rig.pool.take(ours, CLIENT, LISTENER)
    assert rig.pool.accepted == 3
    rig.end(first)
    assert (rig.pool.free, list(rig.pool.in_use)) == (1, [2, 3])


class Full(dict[int, "Worker"]):
    """A dictionary for which there is no memory to grow."""

    def __setitem__(self, *_: object) -> None:
        raise MemoryError


@pytest.mark.parametrize("books", ["in_use", "opening"])
def test_a_connection_for_which_there_is_no_memory_changes_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, books: str
) -> None:
    """It gets no worker and no number, and does not count for its source. Nor does one with a handshake."""
    rig.pool.unopened[LISTENER] = lambda *_: None
    monkeypatch.setattr(rig.pool, books, Full())
    with pytest.raises(MemoryError):
        rig.take()
    assert (rig.pool.free, rig.pool.accepted, rig.pool.sources, rig.pool.in_use) == (3, 0, {}, {})


def test_a_connection_that_cannot_be_logged_is_closed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker comes back, and the connection is booked."""
    info = rig.log.info

    def fail(event: str, **fields: object) -> None:
        if event == "connection.opened":
            raise MemoryError
        info(event, **fields)

    monkeypatch.setattr(rig.log, "info", fail)
    with pytest.raises(MemoryError):
        rig.take()
    assert (rig.pool.free, rig.pool.in_use, rig.pool.sources) == (3, {}, {})
    assert rig.lines.names() == ["connection.closed"]
    assert rig.reasons() == {"error": 1}


def test_no_worker_is_made_after_the_start(rig: Rig) -> None:
    """The same objects serve all connections."""
    resize(rig.pool, 1)
    seen = set()
    for _ in range(3):
        worker, transport = rig.take()
        seen.add(id(worker))
        rig.end(transport)
    assert len(seen) == 1


def test_when_free_is_called_for_each_worker_that_comes_back(rig: Rig) -> None:
    """The worker is free by then. The acceptors resume by this call, and the drain ends by it."""
    free: list[int] = []
    rig.pool.when_free = lambda: free.append(rig.pool.free)
    for _ in range(2):
        _, transport = rig.take()
        rig.end(transport)
    assert free == [3, 3]


def test_a_connection_is_two_lines(rig: Rig) -> None:
    """One line when it is opened and one when it is closed, with the fields that docs/logs.md lists and these values."""
    _, transport = rig.take()
    transport.receive(b"12345")
    rig.end(transport)
    opened, closed = rig.lines.lines
    common = {"connection": 1, "client": {"address": "192.0.2.9", "port": 4711}, "listener": LISTENER}
    for line in (opened, closed):
        head = {"timestamp": "2026-11-26T20:31:59.521983Z", "level": line["level"], "event": line["event"]}
        check_line(head | line)
    assert opened == opened | {"event": "connection.opened", "in_use": 1, **common}
    assert closed["duration"] >= 0
    assert closed == closed | {
        "event": "connection.closed",
        "bytes_received": 5,
        "bytes_sent": 5,
        "reason": "eof",
        "in_use": 0,
        "tcp": None,  # the pair is no TCP connection
        "syn": None,
        **common,
    }


@pytest.mark.parametrize("tls", [None, {"version": "TLSv1.3", "cipher": "TLS_AES_256_GCM_SHA384", "client": None}])
@pytest.mark.parametrize("proxy", [None, Peer("10.0.0.2", 9)])
def test_the_lines_of_a_connection_have_its_proxy_and_its_tls(
    rig: Rig, tls: dict[str, object] | None, proxy: Peer | None
) -> None:
    """If it has any; the other fields are the same."""
    client = NamedPeer("192.0.2.9", 4711, proxy) if proxy else CLIENT
    more = ({"proxy": {"address": "10.0.0.2", "port": 9}} if proxy else {}) | ({"tls": tls} if tls else {})
    ours, theirs = sockets()
    if tls:
        rig.pool.unopened[LISTENER] = lambda *_: None
    with ours, theirs:
        worker = rig.pool.take(ours, client, LISTENER)
        if tls:
            rig.pool.open(worker, tls)
        rig.pool.release(worker, None)
    opened, closed = rig.lines.lines
    common = {"connection": 1, "client": {"address": "192.0.2.9", "port": 4711}, "listener": LISTENER, **more}
    assert opened == {"level": "info", "event": "connection.opened", "in_use": 1, **common}
    assert common.items() <= closed.items()
    assert ("tls" in closed, "proxy" in closed) == (bool(tls), bool(proxy))


@pytest.mark.parametrize(
    ("lifecycle", "names"),
    [("all", ["connection.opened", "connection.closed"]), ("closed", ["connection.closed"]), ("none", [])],
)
def test_lifecycle_lines_can_be_left_out(rig: Rig, lifecycle: Lifecycle, names: list[str]) -> None:
    """log.connections says which lines there are. The books are kept in any case."""
    rig.pool.lifecycle = lifecycle
    _, transport = rig.take()
    rig.end(transport)
    assert rig.lines.names() == names
    assert rig.reasons() == {"eof": 1}


@pytest.mark.parametrize(("lifecycle", "lines"), [("used", 1), ("closed", 2)])
def test_connections_without_a_byte_are_counted_and_can_be_left_out(rig: Rig, lifecycle: Lifecycle, lines: int) -> None:
    """Most of them are probes; `log.connections = "used"` logs the others, when they end."""
    rig.pool.lifecycle = lifecycle
    for data in (b"", b"x"):
        _, transport = rig.take()
        transport.receive(data)
        rig.end(transport)
    assert rig.lines.names() == ["connection.closed"] * lines
    assert rig.lines.lines[-1]["bytes_received"] == 1
    assert (rig.pool.unused, rig.reasons()) == (1, {"eof": 2})


@pytest.mark.parametrize(
    ("reason", "error", "probes"),
    [
        (None, None, 1),
        (None, ConnectionResetError(), 1),
        ("truncated", None, 1),
        (None, OSError(), 0),
        *((reason, None, 0) for reason in ("idle_timeout", "lifetime", "drained", "killed")),
    ],
)
def test_only_a_client_makes_a_probe(rig: Rig, reason: str | None, error: Exception | None, probes: int) -> None:
    """A connection that echod itself ends may not have got to its first byte yet."""
    for number in (1, 2):
        worker, _ = rig.take()
        worker.reason = reason
        rig.pool.release(worker, error)
        assert rig.pool.unused == number * probes


def test_a_new_pool_logs_no_connections_until_it_is_told_to(rig: Rig) -> None:
    """It has no workers either: both come with the settings."""
    pool = Pool(rig.log)
    assert (pool.lifecycle, pool.size, pool.free) == ("none", 0, 0)


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
def test_the_reason_is_what_ended_the_connection(
    rig: Rig, exc: Exception | None, reason: str, fields: dict[str, str]
) -> None:
    """The client finished, or broke off, or something else happened, which the line names."""
    worker, _ = rig.take()
    worker.connection_lost(exc)
    closed = rig.lines.events("connection.closed")[0]
    assert closed["reason"] == reason
    assert {key: closed[key] for key in closed if key == "error"} == fields


def test_the_reason_is_the_daemons_if_the_daemon_ended_the_connection(rig: Rig) -> None:
    """What the transport says then does not matter."""
    worker, _ = rig.take()
    worker.abort("idle_timeout")
    rig.loop.run()
    assert rig.reasons() == {"idle_timeout": 1}


def test_bytes_that_were_not_sent_are_not_counted_as_sent(rig: Rig) -> None:
    """These are the bytes still pending, and the bytes dropped."""
    worker, transport = rig.take()
    transport.window = 2
    transport.receive(b"12345")
    worker.dropped = 1
    worker.abort("write_timeout")
    rig.loop.run()
    assert (rig.pool.bytes_received, rig.pool.bytes_sent) == (5, 1)


def test_round_trips_and_retransmits_are_counted_at_close(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the kernel tells them; a round trip of 0 was not measured."""
    rig.fake_kernel(monkeypatch)
    for told in (tcp_info(rtt=0.005, retrans=2), tcp_info(rtt=0.25, retrans=1), tcp_info(), None):
        rig.info = told
        rig.end(rig.take()[1])
    assert rig.pool.round_trips.cumulative()[-1] == 2
    assert (rig.pool.round_trips.sum, rig.pool.round_trips.most) == (0.255, 0.25)
    assert rig.pool.retransmits == 3


def test_after_an_error_the_kernel_says_what_was_sent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By then the transport has forgotten what it could not write."""
    rig.fake_kernel(monkeypatch)
    rig.info = tcp_info(rtt=0.005, retrans=1, written=2)
    _, transport = rig.take()
    transport.receive(b"12345")
    transport.fail(ConnectionResetError())
    rig.loop.run()
    closed = rig.lines.events("connection.closed")[0]
    assert (closed["bytes_received"], closed["bytes_sent"]) == (5, 2)
    assert closed["tcp"] == tcp_info(rtt=0.005, retrans=1).fields()


@pytest.mark.parametrize(("exc", "echoed", "resets"), [(OSError(), 2, 1), (OSError(), 5, 0), (None, 2, 0)])
def test_an_echo_that_an_error_has_cut_ends_with_a_reset(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, exc: OSError | None, echoed: int, resets: int
) -> None:
    """FIN would say that this was all of the echo."""
    rig.fake_kernel(monkeypatch)
    rig.info = tcp_info(written=echoed)
    worker, transport = rig.take()
    transport.receive(b"12345")
    if exc:
        transport.fail(exc)
    else:
        worker.abort("killed")
    rig.loop.run()
    assert rig.resets == resets


def test_a_connection_whose_socket_is_closed_already_is_booked(rig: Rig) -> None:
    """The kernel then says nothing about it, and can't reset it."""
    worker, transport = rig.take()
    transport.window = 2
    transport.receive(b"12345")
    worker.sock.close()
    worker.connection_lost(OSError())
    (closed,) = rig.lines.events("connection.closed")
    assert (closed["bytes_sent"], closed["tcp"]) == (2, None)


def test_full_is_logged_once_and_available_at_the_next_check(rig: Rig) -> None:
    """A busy pool is full and not full thousands of times a second; the log must not repeat that."""
    resize(rig.pool, 2)
    rig.take()
    _, transport = rig.take()
    for _ in range(3):
        rig.end(transport)
        _, transport = rig.take()
    rig.pool.log_available()
    assert rig.lines.events("pool.full") == [{"level": "warning", "event": "pool.full", "size": 2}]
    assert rig.lines.events("pool.available") == []
    rig.end(transport)
    for _ in range(2):
        rig.pool.log_available()
    assert rig.lines.events("pool.available") == [{"level": "info", "event": "pool.available", "size": 2}]
    rig.take()
    assert len(rig.lines.events("pool.full")) == 2


def test_a_failure_in_the_books_costs_no_worker(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker comes back, `when_free` is called, and everything up to the failure is counted."""
    free: list[int] = []
    rig.pool.when_free = lambda: free.append(rig.pool.free)

    def fail(_: object) -> None:
        raise MemoryError

    worker, _ = rig.take()
    monkeypatch.setattr(kernel, "info", fail)
    with pytest.raises(MemoryError):
        worker.connection_lost(None)
    assert (rig.pool.free, rig.pool.in_use, rig.pool.sources) == (3, {}, {})
    assert free == [3]
    assert rig.pool.accepted == rig.pool.closed["eof"] == rig.pool.durations.cumulative()[-1] == 1


def test_a_free_worker_refers_to_no_connection(rig: Rig) -> None:
    """A pool of free workers keeps no sockets, transports and peers alive."""
    worker, transport = rig.take()
    rig.end(transport)
    assert worker.transport is None
    assert not hasattr(worker, "sock")
    assert not hasattr(worker, "client")


def test_a_worker_can_be_given_back_only_once(rig: Rig) -> None:
    """Twice in the free list, it would serve two connections at one time."""
    worker, _ = rig.take()
    worker.connection_lost(None)
    with pytest.raises(AttributeError):
        worker.connection_lost(None)
    assert rig.pool.free == 3
    assert rig.reasons() == {"eof": 1}


def test_a_connection_that_got_no_transport_is_booked_as_an_error(rig: Rig) -> None:
    """So the numbers of opened and of closed connections stay equal."""
    ours, theirs = sockets()
    with ours, theirs:
        worker = rig.pool.take(ours, CLIENT, LISTENER)
        rig.pool.release(worker, OSError(errno.ENOMEM, "no memory"))
    assert rig.pool.free == 3
    closed = rig.lines.events("connection.closed")[0]
    assert (closed["reason"], closed["error"]) == ("error", "ENOMEM")


def test_an_error_of_tls_has_the_words_of_openssl(rig: Rig) -> None:
    """Its number is none of the system: 1 would be EPERM."""
    ours, theirs = sockets()
    with ours, theirs:
        worker = rig.pool.take(ours, CLIENT, LISTENER)
        rig.pool.release(worker, ssl.SSLError(1, "record layer failure"))
    assert rig.lines.events("connection.closed")[0]["error"] == "record layer failure"


def test_lifecycle_lines_can_be_changed_while_connections_are_open(rig: Rig) -> None:
    """Whether an end is logged depends on the setting at the end, not at the beginning."""
    _, first = rig.take()
    rig.pool.lifecycle = "none"
    rig.end(first)
    _, second = rig.take()
    rig.pool.lifecycle = "closed"
    rig.end(second)
    assert rig.lines.names() == ["connection.opened", "connection.closed"]
    assert [line["connection"] for line in rig.lines.lines] == [1, 2]


def test_connections_are_counted_by_their_source(rig: Rig) -> None:
    """A source is an IPv4 address or an IPv6 network. A source without connections is not listed."""
    resize(rig.pool, 5)
    hosts = ["192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::ffff:2"]
    transports = [rig.take(host)[1] for host in hosts]
    assert rig.pool.sources == {"192.0.2.1": 2, "192.0.2.2": 1, "2001:db8::/64": 2}
    for transport in transports[1:4]:
        rig.end(transport)
    assert rig.pool.sources == {"192.0.2.1": 1, "2001:db8::/64": 1}
    for transport in (transports[0], transports[4]):
        rig.end(transport)
    assert rig.pool.sources == {}


def test_a_pool_that_grows_has_more_free_workers_at_once(rig: Rig) -> None:
    """Workers in use stay in use."""
    rig.take()
    resize(rig.pool, 5)
    assert (rig.pool.size, rig.pool.free) == (5, 4)
    for _ in range(4):
        rig.take()
    assert len(rig.pool.in_use) == 5


def test_a_pool_that_shrinks_drops_free_workers(rig: Rig) -> None:
    """Afterwards it is like a pool that was made with this size."""
    pool = rig.make_pool(5)
    _, transport = rig.take(pool=pool)
    resize(pool, 2)
    assert (pool.size, pool.free) == (2, 1)
    rig.end(transport)
    assert pool.free == 2


def test_a_pool_that_shrinks_returns_the_workers_that_it_drops(rig: Rig) -> None:
    """To free many at once takes time, which the caller has."""
    pool = rig.make_pool(5)
    free = list(pool._free)
    assert resize(pool, 2) == free[2:]
    assert resize(pool, 4) == []


def test_open_connections_are_counted_some_in_each_turn(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that ends meanwhile is counted once."""
    monkeypatch.setattr(pool_module, "COUNTED", 2)
    resize(rig.pool, 5)
    transports = [rig.take()[1] for _ in range(5)]
    for each in transports:
        each.receive(b"x")
    counting = rig.pool.count_open()
    for counted in (2, 4):
        counting.send(None)
        assert rig.pool.bytes_received == counted
    transports[0].receive(b"yz")
    for each in (transports[0], transports[4]):
        rig.end(each)
    with contextlib.suppress(StopIteration):
        while True:
            counting.send(None)
    assert (rig.pool.bytes_received, rig.pool.bytes_sent) == (7, 7)


def test_a_pool_that_shrinks_cuts_no_connection(rig: Rig) -> None:
    """It reaches its size as connections end; only after that are workers free, and is `when_free` called."""
    pool = rig.make_pool(4)
    free: list[int] = []
    pool.when_free = lambda: free.append(pool.free)
    transports = [rig.take(pool=pool)[1] for _ in range(4)]
    resize(pool, 2)
    for transport, expected in zip(transports, (0, 0, 1, 2), strict=True):
        assert not transport.is_closing()
        rig.end(transport)
        assert pool.free == expected
    assert free == [1, 2]
    assert pool.closed == {"eof": 4}


def test_a_pool_can_grow_again_while_more_workers_than_its_size_are_in_use(rig: Rig) -> None:
    """Workers in use count towards the size."""
    pool = rig.make_pool(4)
    transports = [rig.take(pool=pool)[1] for _ in range(4)]
    resize(pool, 1)
    resize(pool, 3)
    assert pool.free == 0
    rig.end(transports.pop())
    assert pool.free == 0
    rig.end(transports.pop())
    assert pool.free == 1
    resize(pool, 5)
    assert pool.free == 3
    while transports:
        rig.end(transports.pop())
    assert pool.free == 5


def test_a_pool_that_becomes_full_by_shrinking_logs_that(rig: Rig) -> None:
    """It logs it once, with its new size; `pool.available` has the size at that time."""
    _, transport = rig.take()
    resize(rig.pool, 1)
    assert rig.lines.events("pool.full") == [{"level": "warning", "event": "pool.full", "size": 1}]
    rig.end(transport)
    rig.pool.log_available()
    assert rig.lines.events("pool.available") == [{"level": "info", "event": "pool.available", "size": 1}]
    rig.take()
    resize(rig.pool, 3)
    rig.pool.log_available()
    assert rig.lines.events("pool.available")[1:] == [{"level": "info", "event": "pool.available", "size": 3}]
    assert len(rig.lines.events("pool.full")) == 2


def test_a_resize_that_leaves_workers_free_logs_nothing(rig: Rig) -> None:
    """Neither a growth nor a shrink is an event of its own."""
    resize(rig.pool, 5)
    resize(rig.pool, 1)
    assert rig.lines.lines == []


def test_bytes_count_as_they_move(rig: Rig) -> None:
    """They are those of open connections and closed ones. What the peer has not taken is not sent."""
    assert moved(rig.pool) == (0, 0)
    _, first = rig.take()
    _, second = rig.take()
    first.receive(b"12345")
    second.window = 2
    second.receive(b"1234567")
    assert moved(rig.pool) == (12, 7)
    second.take(1)
    assert moved(rig.pool) == (12, 8)
    rig.end(first)
    assert moved(rig.pool) == (12, 8)
    second.take(4)
    rig.end(second)
    assert moved(rig.pool) == (12, 12) == (rig.pool.bytes_received, rig.pool.bytes_sent)


def test_bytes_that_came_after_our_fin_are_not_sent(rig: Rig) -> None:
    """They were dropped, also if nothing is pending."""
    worker, transport = rig.take()
    transport.receive(b"12345")
    worker.dropped = 2
    assert moved(rig.pool) == (5, 3)


@pytest.mark.parametrize("read_meanwhile", [False, True])
def test_the_bytes_sent_never_go_back(rig: Rig, monkeypatch: pytest.MonkeyPatch, *, read_meanwhile: bool) -> None:
    """A counter that goes back looks like a restart. When a transport ends, it forgets what it could not write."""
    rig.fake_kernel(monkeypatch)
    rig.info = tcp_info(rtt=0.005, retrans=1, written=2)
    _, transport = rig.take()
    transport.window = 2
    transport.receive(b"12345")
    assert moved(rig.pool) == (5, 2)
    transport.fail(ConnectionResetError())
    sent = moved(rig.pool)[1] if read_meanwhile else 2
    rig.loop.run()
    assert moved(rig.pool) == (5, sent)
    _, transport = rig.take()
    transport.receive(b"1234567890")
    assert moved(rig.pool) == (15, max(sent, 12))


def test_durations_are_those_of_closed_connections(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each counts once, with or without a line. The line has the same duration in whole microseconds."""
    clock = Clock(monkeypatch)
    durations: list[tuple[Lifecycle, float]] = [("all", 2.5000004), ("none", 400.0)]
    for lifecycle, seconds in durations:
        rig.pool.lifecycle = lifecycle
        _, transport = rig.take()
        assert rig.pool.durations.cumulative()[-1] == (lifecycle == "none")
        clock.now += seconds
        rig.end(transport)
    assert (rig.pool.durations.sum, rig.pool.durations.most) == pytest.approx((402.5000004, 400.0), rel=1e-12)
    assert rig.lines.events("connection.closed")[0]["duration"] == 2.5


def test_every_reason_is_listed() -> None:
    """The metrics have a series for each listed reason from the start, and for no other."""
    assert {_reason(exc) for exc in (None, ConnectionError(), ValueError())} < set(CLOSE_REASONS)
    assert len(set(CLOSE_REASONS)) == len(CLOSE_REASONS)
