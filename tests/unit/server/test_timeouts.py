"""The timeouts, on a clock that goes only when told to."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

import pytest

from echod.server import kernel
from echod.server.drain import BATCH, END, LINGER, finish
from echod.server.timeouts import SHORTEST_TICK, Timeouts
from tests.support.fakes import Clock, FakeTransport
from tests.support.rig import resize

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from echod.server.worker import Worker
    from tests.support.rig import Rig

PLENTY = 1 << 20
LATE = 2.1
"""Seconds by which a connection may end late: two checks."""


@pytest.fixture(autouse=True)
def _kernel(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.fake_kernel(monkeypatch)


class Checked:
    """Timeouts of a rig, and when they checked: seconds from the making of this, and seconds late."""

    def __init__(self, rig: Rig) -> None:
        self.times: list[float] = []
        self.late: list[float] = []
        self._loop = rig.loop
        self._began = rig.loop.now
        self.timeouts = Timeouts(rig.loop.asyncio, rig.log, rig.pool, self._note)
        rig.watch = self.timeouts.watch

    def set(self, *, idle: float | None = None, write: float | None = None, lifetime: float | None = None) -> None:
        """Judge by these; what is left out is off."""
        self.timeouts.set(idle=idle, write=write, lifetime=lifetime)

    def _note(self, late: float) -> None:
        self.times.append(round(self._loop.now - self._began, 6))
        self.late.append(late)

    def watched(self) -> list[Worker]:
        """Return the workers of all buckets, but for entries that don't count."""
        buckets = [*self.timeouts._buckets.values(), *self.timeouts._due]
        return [worker for bucket in buckets for worker in bucket if worker.bucket is bucket]


@pytest.fixture
def checked(rig: Rig) -> Checked:
    return Checked(rig)


def test_nothing_is_checked_before_the_timeouts_are_set(rig: Rig, checked: Checked) -> None:
    """There is no timer either, and closing them then does nothing."""
    rig.loop.advance(10)
    assert (checked.times, rig.loop.timers) == ([], 0)
    checked.timeouts.close()


def test_a_worker_that_comes_back_to_a_bucket_is_in_it_once(rig: Rig, checked: Checked) -> None:
    """It gets a new connection, which is checked soon, and is as quiet as the one before."""
    checked.set(idle=60.0)
    worker, _ = rig.take()
    for at in (20.0, 1.0, 20.0):
        checked.timeouts._put(worker, at)
    assert checked.watched() == [worker]


def test_an_idle_connection_is_ended_by_fin(rig: Rig, checked: Checked) -> None:
    """It is not ended early, and at most two checks late: the kernel knows when the last byte has moved."""
    checked.set(idle=60.0)
    rig.loop.advance(0.5)
    _, transport = rig.take()
    rig.loop.advance(20)
    transport.receive(b"x")
    rig.loop.advance(59.9)
    assert rig.reasons() == {}
    rig.loop.advance(2.1)
    assert rig.reasons() == {"idle_timeout": 1}
    assert rig.resets == 0


def test_a_byte_now_and_then_keeps_a_connection(rig: Rig, checked: Checked) -> None:
    """A connection is idle if no byte moves for the whole time."""
    checked.set(idle=60.0)
    _, transport = rig.take()
    for _ in range(5):
        rig.loop.advance(58)
        transport.receive(b"x")
    assert rig.reasons() == {}


def test_a_peer_that_does_not_read_is_reset(rig: Rig, checked: Checked) -> None:
    """After a reset the kernel keeps none of its echo."""
    checked.set(idle=300.0, write=30.0)
    _, transport = rig.take()
    transport.window = 0
    transport.receive(b"never read")
    rig.loop.advance(29.9)
    assert rig.reasons() == {}
    rig.loop.advance(2.1)
    assert rig.reasons() == {"write_timeout": 1}
    assert rig.resets == 1


def test_a_peer_that_reads_slowly_is_left_alone(rig: Rig, checked: Checked) -> None:
    """The time begins anew with each byte that the transport or the kernel gets rid of."""
    checked.set(idle=300.0, write=30.0)
    _, transport = rig.take()
    transport.window = 0
    left = rig.unacknowledged = 100
    transport.receive(b"slowly read")
    for _ in range(5):
        rig.loop.advance(28)
        transport.take(1)
        rig.loop.advance(28)
        left -= 1
        rig.unacknowledged = left
    assert rig.reasons() == {}


def test_a_quiet_connection_is_not_stalled(rig: Rig, checked: Checked) -> None:
    """The write timeout is for connections with pending output."""
    checked.set(write=30.0)
    rig.take()
    rig.loop.advance(1000)
    assert rig.reasons() == {}


def test_a_connection_that_has_stalled_once_may_be_quiet(rig: Rig, checked: Checked) -> None:
    """Its peer has taken everything, and then the write timeout is not for it. It is checked like any other again."""
    checked.set(write=30.0)
    _, transport = rig.take()
    transport.window = 0
    transport.receive(b"1234")
    rig.loop.advance(20)
    transport.take(4)
    rig.loop.advance(1000)
    assert rig.reasons() == {}
    assert rig.pool.stalled == set()


def test_without_a_write_timeout_the_idle_one_ends_a_stalled_connection(rig: Rig, checked: Checked) -> None:
    """No byte moves either way, so it is idle, also with pending output. It is reset then."""
    checked.set(idle=60.0)
    _, transport = rig.take()
    transport.window = 0
    transport.receive(b"never read")
    rig.loop.advance(63)
    assert rig.reasons() == {"idle_timeout": 1}
    assert rig.resets == 1


def test_a_stalled_connection_is_ended_where_the_kernel_says_nothing(rig: Rig, checked: Checked) -> None:
    """What the transport holds is enough to tell."""
    rig.unacknowledged = rig.info = None
    checked.set(idle=300.0, write=30.0)
    _, transport = rig.take()
    transport.window = 0
    transport.receive(b"never read")
    rig.loop.advance(32)
    assert rig.reasons() == {"write_timeout": 1}


@pytest.mark.parametrize(
    ("idle", "write", "tick"),
    [(None, None, 1.0), (300.0, 30.0, 1.0), (2.0, 30.0, 0.5), (60.0, 2.0, 0.5), (60.0, 0.001, 0.05)],
)
def test_checks_are_frequent_enough_for_the_shortest_timeout(
    rig: Rig, checked: Checked, idle: float | None, write: float | None, tick: float
) -> None:
    """They come once a second, or four times within the timeout, but not more than 20 times a second."""
    checked.set(idle=idle, write=write)
    rig.loop.advance(10.001)
    assert len(checked.times) == round(10 / tick)


def test_checks_are_frequent_enough_for_a_short_lifetime(rig: Rig, checked: Checked) -> None:
    """Four times within it, too."""
    checked.set(lifetime=2.0)
    rig.loop.advance(10.001)
    assert len(checked.times) == 20


def test_a_check_logs_that_the_pool_is_available_again(rig: Rig, checked: Checked) -> None:
    """So that line comes at most once a check."""
    checked.set()
    transports = [rig.take()[1] for _ in range(3)]
    rig.end(transports[0])
    assert rig.lines.events("pool.available") == []
    rig.loop.advance(1)
    assert len(rig.lines.events("pool.available")) == 1


def test_after_close_there_are_no_checks(rig: Rig, checked: Checked) -> None:
    """No timer is left."""
    checked.set(idle=1.0)
    rig.take()
    checked.timeouts.close()
    rig.loop.advance(10)
    assert rig.reasons() == {}
    assert (checked.times, rig.loop.timers) == ([], 0)


def test_a_connection_whose_check_fails_does_not_keep_others_from_being_checked(
    rig: Rig, checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failure is logged, the timer goes on, and the connection is checked again."""
    checked.set(idle=60.0)
    broken, _ = rig.take()
    rig.take()

    info = kernel.info

    def fail(sock: socket.socket) -> kernel.Info | None:
        if sock is broken.sock:
            raise ZeroDivisionError("a bug")
        return info(sock)

    monkeypatch.setattr(kernel, "info", fail)
    rig.loop.advance(63)
    assert rig.reasons() == {"idle_timeout": 1}
    assert {line["message"] for line in rig.lines.events("internal.error")} == {"checking connection 1 failed"}
    assert len(checked.times) == 63
    monkeypatch.setattr(kernel, "info", info)
    rig.loop.advance(1)
    assert rig.reasons() == {"idle_timeout": 2}


def test_a_shorter_timeout_counts_soon(rig: Rig, checked: Checked) -> None:
    """The quiet before the change counts, and the next check comes as early as the new timeout needs it."""
    checked.set(idle=300.0)
    rig.take()
    rig.loop.advance(10)
    checked.times.clear()
    checked.set(idle=0.4)
    rig.loop.advance(0.35)
    assert checked.times == [10.1, 10.2, 10.3]
    assert rig.reasons() == {"idle_timeout": 1}


def test_a_longer_timeout_does_not_put_off_the_next_check(rig: Rig, checked: Checked) -> None:
    """That one comes when it was due; the ones after it follow the new timeout."""
    checked.set(idle=0.8)
    rig.loop.advance(0.1)
    checked.set(idle=300.0, write=30.0)
    rig.loop.advance(2.5)
    assert checked.times == [0.2, 1.2, 2.2]


def test_a_longer_timeout_counts_at_once(rig: Rig, checked: Checked) -> None:
    """No connection is ended by the old one any more."""
    checked.set(idle=60.0)
    rig.take()
    rig.loop.advance(59)
    checked.set(idle=120.0)
    rig.loop.advance(60)
    assert rig.reasons() == {}
    rig.loop.advance(6)
    assert rig.reasons() == {"idle_timeout": 1}


def test_a_write_timeout_can_be_switched_on(rig: Rig, checked: Checked) -> None:
    """It counts for connections that have stalled before, too."""
    checked.set()
    _, transport = rig.take()
    transport.window = 0
    transport.receive(b"never read")
    rig.loop.advance(100)
    assert rig.reasons() == {}
    checked.set(write=30.0)
    rig.loop.advance(1)
    assert rig.reasons() == {"write_timeout": 1}


@pytest.mark.parametrize("seconds", [0.001, 0.3, 0.9])
def test_frequent_changes_do_not_put_off_the_checks(rig: Rig, checked: Checked, seconds: float) -> None:
    """If each change put off the next check, no connection would be ended any more."""
    checked.set(idle=300.0)
    while rig.loop.now < 1003.5:
        rig.loop.advance(seconds)
        checked.set(idle=300.0, write=30.0)
    assert checked.times == [1.0, 2.0, 3.0]
    assert rig.loop.timers == 1


def test_a_check_that_is_late_comes_soon(rig: Rig, checked: Checked) -> None:
    """This holds also if the timeouts are changed before the late check."""
    checked.set()
    rig.loop.now += 1.5
    checked.set(idle=300.0, write=30.0)
    rig.loop.advance(0.1)
    assert checked.times == [1.5]


def test_each_check_says_how_late_it_was(rig: Rig, checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured by the clock and not by the loop's, which is read once a turn. It is never negative."""
    clock = Clock(monkeypatch)
    checked.set()
    for ahead in (0.0, 0.25, -0.5):
        clock.now = rig.loop.now + 1.0 + ahead
        rig.loop.advance(1.0)
    assert checked.late == pytest.approx([0.0, 0.25, 0.0])


@pytest.mark.parametrize("data", [b"", b"meanwhile"])
def test_after_a_delay_no_connection_is_judged_before_its_input_is_read(
    rig: Rig, checked: Checked, data: bytes
) -> None:
    """If the process was stopped for longer than the timeout, the loop runs its timers before it reads."""
    checked.set(idle=60.0)
    _, transport = rig.take()
    rig.loop.advance(30)
    rig.loop.now += 60
    rig.loop.advance(0)
    assert rig.reasons() == {}
    transport.receive(data)
    rig.loop.advance(1)
    assert rig.reasons() == ({} if data else {"idle_timeout": 1})


def test_a_check_that_was_put_off_is_not_brought_forward_by_a_reload(rig: Rig, checked: Checked) -> None:
    """What has come meanwhile is read first in any case."""
    checked.set(idle=60.0)
    rig.take()
    rig.loop.advance(30)
    rig.loop.now += 60
    rig.loop.advance(0)
    checked.set(idle=60.0, write=30.0)
    rig.loop.advance(0)
    assert rig.reasons() == {}
    rig.loop.advance(SHORTEST_TICK)
    assert rig.reasons() == {"idle_timeout": 1}


def test_a_check_that_was_put_off_says_how_late_it_was_at_first(
    rig: Rig, checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time by which it was put off is not the loop's delay."""
    clock = Clock(monkeypatch)
    checked.set()
    rig.loop.now += 5
    clock.now = rig.loop.now
    rig.loop.advance(SHORTEST_TICK)
    assert checked.late == pytest.approx([4.0])


def test_a_loop_that_is_always_late_still_ends_idle_connections(rig: Rig, checked: Checked) -> None:
    """Each check is put off only once."""
    checked.set(idle=60.0)
    rig.take()
    for _ in range(100):
        rig.loop.now += 1.5
        rig.loop.advance(0)
    assert rig.reasons() == {"idle_timeout": 1}


def test_a_worker_whose_socket_was_closed_without_notice_comes_back(rig: Rig, checked: Checked) -> None:
    """For lack of memory, uvloop may close a connection and not call `connection_lost`."""
    checked.set()
    worker, _ = rig.take()
    worker.sock.close()
    rig.loop.advance(1)
    assert rig.pool.free == 3
    assert rig.lines.events("connection.closed")[0]["error"] == "MemoryError"


# Where the kernel tells nothing


@pytest.mark.parametrize("known", [True, False])
def test_an_idle_connection_ends_in_time_whatever_the_kernel_tells(rig: Rig, checked: Checked, *, known: bool) -> None:
    """Without the kernel's clock, a byte has moved when a check finds that, a second late at most."""
    if not known:
        rig.unacknowledged = rig.info = None
    checked.set(idle=30.0)
    for _ in range(2):  # the second connection has a worker that waits for a check of the first one
        _, transport = rig.take()
        transport.receive(b"a")
        rig.loop.advance(20)
        transport.receive(b"b")
        rig.loop.advance(29.9)
        assert rig.pool.in_use
        rig.loop.advance(LATE)
        assert not rig.pool.in_use
    assert rig.reasons() == {"idle_timeout": 2}


def test_a_worker_that_comes_from_a_kernel_that_tells_is_checked_soon(rig: Rig, checked: Checked) -> None:
    """The kernel may tell of a TCP connection, and nothing of the next one, which has another kind of socket."""
    resize(rig.pool, 1)
    checked.set(idle=30.0)
    _, transport = rig.take()
    rig.loop.advance(2)  # it is checked again in half a minute
    rig.end(transport)
    rig.info = None
    _, transport = rig.take()
    rig.loop.advance(5)
    transport.receive(b"x")
    rig.loop.advance(30 + LATE)
    assert rig.reasons() == {"eof": 1, "idle_timeout": 1}


def test_bytes_that_the_peer_has_not_acknowledged_are_waited_for(rig: Rig, checked: Checked) -> None:
    """They are under way, or the peer does not read: only whether they change tells that a byte has moved."""
    checked.set(idle=30.0)
    _, transport = rig.take()
    transport.receive(b"x")
    for left in (3, 2, 1):
        rig.unacknowledged = left
        rig.loop.advance(29)
    assert rig.reasons() == {}
    rig.loop.advance(1 + LATE)
    assert rig.reasons() == {"idle_timeout": 1}


# The lifetime


def test_at_the_end_of_its_lifetime_a_connection_gets_its_echo_and_fin(rig: Rig, checked: Checked) -> None:
    """The client may then close first."""
    checked.set(lifetime=60.0)
    _, transport = rig.take()
    for _ in range(6):
        rig.loop.advance(9.9)
        transport.receive(b"x")
    assert not transport.fin_sent
    rig.loop.advance(1)
    assert (bytes(transport.taken), transport.fin_sent) == (b"xxxxxx", True)
    assert rig.reasons() == {}
    rig.end(transport)
    assert rig.reasons() == {"lifetime": 1}
    assert rig.resets == 0


def test_a_client_that_does_not_close_at_the_end_of_its_lifetime_is_cut(rig: Rig, checked: Checked) -> None:
    """With FIN, as it has read everything."""
    checked.set(lifetime=60.0)
    _, transport = rig.take()
    rig.loop.advance(60)
    assert transport.fin_sent
    rig.loop.advance(LINGER - 0.1)
    assert rig.reasons() == {}
    rig.loop.advance(2)
    assert rig.reasons() == {"lifetime": 1}
    assert rig.resets == 0


@pytest.mark.parametrize("finished", [False, True])
def test_a_stalled_client_is_reset_at_the_end_of_its_lifetime(rig: Rig, checked: Checked, *, finished: bool) -> None:
    """It would keep its worker, also if it has sent its FIN."""
    checked.set(lifetime=60.0)
    worker, transport = rig.take()
    transport.window = 3
    transport.receive(b"never read")
    if finished:
        transport.resume_reading()
        transport.receive_eof()
    rig.loop.advance(60 + LINGER + LATE)
    assert rig.reasons() == {"lifetime": 1}
    assert rig.resets
    assert worker not in rig.pool.in_use.values()


def test_a_connection_without_a_transport_ends_with_its_lifetime(rig: Rig, checked: Checked) -> None:
    """It is ended as soon as it has one."""
    checked.set(lifetime=1.0)
    _, transport = rig.take(made=False)
    rig.loop._ready, ready = [], rig.loop._ready
    rig.loop.advance(5)
    assert rig.reasons() == {}
    rig.loop._ready += ready
    rig.loop.run()
    assert transport.is_closing()
    assert rig.reasons() == {"lifetime": 1}


def test_a_lifetime_counts_for_connections_that_are_open_already(rig: Rig, checked: Checked) -> None:
    """A reload may switch it on; one that lasts for longer ends with the next check."""
    checked.set()
    _, transport = rig.take()
    rig.loop.advance(100)
    checked.set(lifetime=60.0)
    rig.loop.advance(1)
    assert transport.fin_sent


def test_a_reload_does_not_shorten_the_time_to_close(rig: Rig, checked: Checked) -> None:
    """What is left of the echo may still be on its way to the client."""
    checked.set(lifetime=2.0)
    rig.take()
    rig.loop.advance(2.1)
    checked.set(lifetime=1.0)
    rig.loop.advance(0.5)
    assert rig.reasons() == {}
    rig.loop.advance(2)
    assert rig.reasons() == {"lifetime": 1}


def test_what_a_drain_has_finished_is_left_to_it(rig: Rig, checked: Checked) -> None:
    """It knows how long a client may take, and counts those that it cuts."""
    checked.set(lifetime=60.0)
    worker, _ = rig.take()
    finish(worker, "drained", rig.loop.now)
    rig.loop.advance(100)
    assert rig.reasons() == {}


# What a turn of the loop does


def crowd(rig: Rig, number: int) -> list[FakeTransport]:
    resize(rig.pool, number)
    return [rig.take()[1] for _ in range(number)]


def most_in_a_turn(rig: Rig, count: Callable[[], int], seconds: float) -> int:
    """Return how much a count grows at most in one turn of the loop, while time goes on."""
    grown = []

    def turn(original: Callable[[], None] = rig.loop.turn) -> None:
        before = count()
        original()
        grown.append(count() - before)

    rig.loop.turn = turn  # type: ignore[method-assign]
    rig.loop.advance(seconds)
    return max(grown)


@pytest.mark.parametrize("stalls", [False, True])
def test_a_turn_checks_a_bounded_number(
    rig: Rig, checked: Checked, monkeypatch: pytest.MonkeyPatch, *, stalls: bool
) -> None:
    """All are checked, in some turns."""
    asked: list[object] = []
    info = kernel.info

    def counted(sock: socket.socket) -> kernel.Info | None:
        asked.append(sock)
        return info(sock)

    monkeypatch.setattr(kernel, "info", counted)
    checked.set(idle=300.0, write=100.0)
    transports = crowd(rig, 5 * BATCH)
    for each in transports:
        each.window = 0 if stalls else PLENTY
        each.receive(b"x")
    assert most_in_a_turn(rig, lambda: len(asked), 1) == BATCH
    assert len(asked) == len(transports) * (1 + stalls)


@pytest.mark.parametrize("timeouts", [{"idle": 10.0}, {"write": 10.0}, {"lifetime": 10.0}], ids=str)
def test_a_turn_ends_a_bounded_number(rig: Rig, checked: Checked, timeouts: dict[str, float]) -> None:
    """To end a connection, with its line in the log, takes far longer than to check it."""
    checked.set(**timeouts)
    transports = crowd(rig, 100)
    for each in transports:
        each.window = 0 if "write" in timeouts else PLENTY
        each.receive(b"x")
    ended = most_in_a_turn(rig, lambda: sum(each.fin_sent or each.is_closing() for each in transports), 12)
    assert ended == BATCH // END
    assert all(each.fin_sent or each.is_closing() for each in transports)


def test_a_slow_loop_reaches_every_stalled_connection(rig: Rig, checked: Checked) -> None:
    """A batch per second is enough: what was not reached comes first, and not those of the last time again."""
    checked.set(write=1.0)
    for each in crowd(rig, 3 * BATCH):
        each.window = 0
        each.receive(b"x")
    for _ in range(500):
        rig.loop.now += 0.24
        while rig.loop._timers and rig.loop._timers[0][0] <= rig.loop.now:
            _, _, handle, callback = heapq.heappop(rig.loop._timers)
            if not handle.cancelled:
                callback()
        rig.loop.turn()
    assert rig.reasons() == {"write_timeout": 3 * BATCH}


def test_a_quiet_connection_is_checked_seldom(rig: Rig, checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with each turn of the timer: with 100,000 connections that would take all of the time."""
    checked.set(idle=300.0, write=2.0)
    rig.take()
    asked: list[object] = []
    info = kernel.info

    def count(sock: socket.socket) -> kernel.Info | None:
        asked.append(sock)
        return info(sock)

    monkeypatch.setattr(kernel, "info", count)
    rig.loop.advance(200)
    assert 3 <= len(asked) <= 5


# Who is watched


def test_a_worker_is_watched_once_whatever_happens(rig: Rig, checked: Checked) -> None:
    """A worker that is used again and again does not make buckets longer."""
    checked.set(idle=300.0)
    resize(rig.pool, 1)
    for seconds in itertools.islice(itertools.cycle([0.0, 0.0, 0.3, 1.7]), 100):
        worker, transport = rig.take()
        rig.loop.advance(seconds)
        assert checked.watched() == [worker]
        rig.end(transport)
    rig.loop.advance(100)
    assert checked.watched() == []
    assert not checked.timeouts._due


def test_a_reload_keeps_all_watched(rig: Rig, checked: Checked) -> None:
    """Also in the middle of a round of checks."""
    checked.set(idle=300.0)
    crowd(rig, 3 * BATCH)
    rig.loop.advance(2)
    checked.set(idle=200.0)
    rig.loop.now += 1
    _, _, _, callback = heapq.heappop(rig.loop._timers)
    callback()
    rig.loop.turn()
    checked.set(idle=0.5)
    assert len(checked.watched()) == 3 * BATCH
    rig.loop.advance(2)
    assert rig.reasons() == {"idle_timeout": 3 * BATCH}


def test_a_worker_stays_watched_if_there_is_no_memory(
    rig: Rig, checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in its bucket, and is checked with the next turn of the timer."""
    checked.set(idle=30.0)
    worker, _ = rig.take()

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "info", fail)
        patch.setattr(checked.timeouts, "_put", fail)
        with pytest.raises(MemoryError):
            rig.loop.advance(1)
    assert checked.watched() == [worker]
    rig.loop.advance(40)
    assert rig.reasons() == {"idle_timeout": 1}
