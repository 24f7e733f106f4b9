"""The timeouts, on a clock that goes only when told to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from echod.server import kernel
from echod.server.timeouts import SHORTEST_TICK, Timeouts
from tests.support.fakes import Clock

if TYPE_CHECKING:
    from tests.support.rig import Rig


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
        self.set = self.timeouts.set

    def _note(self, late: float) -> None:
        self.times.append(round(self._loop.now - self._began, 6))
        self.late.append(late)


@pytest.fixture
def checked(rig: Rig) -> Checked:
    return Checked(rig)


def test_nothing_is_checked_before_the_timeouts_are_set(rig: Rig, checked: Checked) -> None:
    """There is no timer either, and closing them then does nothing."""
    rig.loop.advance(10)
    assert (checked.times, rig.loop.timers) == ([], 0)
    checked.timeouts.close()


def test_an_idle_connection_is_ended_by_fin(rig: Rig, checked: Checked) -> None:
    """It is not ended early: the time begins with the second check, as the first one has nothing to compare with."""
    checked.set(idle=60.0, write=None)
    rig.take()
    rig.loop.advance(61)
    assert rig.reasons() == {}
    rig.loop.advance(1)
    assert rig.reasons() == {"idle_timeout": 1}
    assert rig.resets == 0


def test_a_byte_now_and_then_keeps_a_connection(rig: Rig, checked: Checked) -> None:
    """A connection is idle if no byte moves for the whole time."""
    checked.set(idle=60.0, write=None)
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
    rig.loop.advance(31)
    assert rig.reasons() == {}
    rig.loop.advance(1)
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
    checked.set(idle=None, write=30.0)
    rig.take()
    rig.loop.advance(1000)
    assert rig.reasons() == {}


def test_without_a_write_timeout_the_idle_one_ends_a_stalled_connection(rig: Rig, checked: Checked) -> None:
    """No byte moves either way, so it is idle, also with pending output. It is reset then."""
    checked.set(idle=60.0, write=None)
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


def test_a_check_logs_that_the_pool_is_available_again(rig: Rig, checked: Checked) -> None:
    """So that line comes at most once a check."""
    checked.set(idle=None, write=None)
    transports = [rig.take()[1] for _ in range(3)]
    rig.end(transports[0])
    assert rig.lines.events("pool.available") == []
    rig.loop.advance(1)
    assert len(rig.lines.events("pool.available")) == 1


def test_after_close_there_are_no_checks(rig: Rig, checked: Checked) -> None:
    """No timer is left."""
    checked.set(idle=1.0, write=None)
    rig.take()
    checked.timeouts.close()
    rig.loop.advance(10)
    assert rig.reasons() == {}
    assert (checked.times, rig.loop.timers) == ([], 0)


def test_a_connection_whose_check_fails_does_not_keep_others_from_being_checked(
    rig: Rig, checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failure is logged, the timer goes on, and the check counts as one."""
    checked.set(idle=60.0, write=None)
    broken, _ = rig.take()
    rig.take()

    def unacknowledged(sock: object) -> int:
        if sock is broken.sock:
            raise ZeroDivisionError("a bug")
        return 0

    monkeypatch.setattr(kernel, "unacknowledged", unacknowledged)
    rig.loop.advance(63)
    assert rig.reasons() == {"idle_timeout": 1}
    assert rig.lines.events("internal.error")[0]["message"] == "checking connection 1 failed"
    assert len(checked.times) == 63


def test_a_shorter_timeout_counts_soon(rig: Rig, checked: Checked) -> None:
    """The quiet before the change counts, and the next check comes as early as the new timeout needs it."""
    checked.set(idle=300.0, write=None)
    rig.take()
    rig.loop.advance(10)
    checked.times.clear()
    checked.set(idle=0.4, write=None)
    rig.loop.advance(0.35)
    assert checked.times == [10.1, 10.2, 10.3]
    assert rig.reasons() == {"idle_timeout": 1}


def test_a_longer_timeout_does_not_put_off_the_next_check(rig: Rig, checked: Checked) -> None:
    """That one comes when it was due; the ones after it follow the new timeout."""
    checked.set(idle=0.8, write=None)
    rig.loop.advance(0.1)
    checked.set(idle=300.0, write=30.0)
    rig.loop.advance(2.5)
    assert checked.times == [0.2, 1.2, 2.2]


def test_a_longer_timeout_counts_at_once(rig: Rig, checked: Checked) -> None:
    """No connection is ended by the old one any more."""
    checked.set(idle=60.0, write=None)
    rig.take()
    rig.loop.advance(59)
    checked.set(idle=120.0, write=None)
    rig.loop.advance(60)
    assert rig.reasons() == {}
    rig.loop.advance(6)
    assert rig.reasons() == {"idle_timeout": 1}


def test_a_write_timeout_can_be_switched_on(rig: Rig, checked: Checked) -> None:
    """It counts for connections that have stalled before, too."""
    checked.set(idle=None, write=None)
    _, transport = rig.take()
    transport.window = 0
    transport.receive(b"never read")
    rig.loop.advance(100)
    assert rig.reasons() == {}
    checked.set(idle=None, write=30.0)
    rig.loop.advance(1)
    assert rig.reasons() == {"write_timeout": 1}


@pytest.mark.parametrize("seconds", [0.001, 0.3, 0.9])
def test_frequent_changes_do_not_put_off_the_checks(rig: Rig, checked: Checked, seconds: float) -> None:
    """If each change put off the next check, no connection would be ended any more."""
    checked.set(idle=300.0, write=None)
    while rig.loop.now < 1003.5:
        rig.loop.advance(seconds)
        checked.set(idle=300.0, write=30.0)
    assert checked.times == [1.0, 2.0, 3.0]
    assert rig.loop.timers == 1


def test_a_check_that_is_late_comes_soon(rig: Rig, checked: Checked) -> None:
    """This holds also if the timeouts are changed before the late check."""
    checked.set(idle=None, write=None)
    rig.loop.now += 1.5
    checked.set(idle=300.0, write=30.0)
    rig.loop.advance(0.1)
    assert checked.times == [1.5 + SHORTEST_TICK]


def test_each_check_says_how_late_it_was(rig: Rig, checked: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured by the clock and not by the loop's, which is read once a turn. It is never negative."""
    clock = Clock(monkeypatch)
    checked.set(idle=None, write=None)
    for ahead in (0.0, 0.25, -0.5):
        clock.now = rig.loop.now + 1.0 + ahead
        rig.loop.advance(1.0)
    assert checked.late == pytest.approx([0.0, 0.25, 0.0])


@pytest.mark.parametrize("data", [b"", b"meanwhile"])
def test_after_a_delay_no_connection_is_judged_before_its_input_is_read(
    rig: Rig, checked: Checked, data: bytes
) -> None:
    """If the process was stopped for longer than the timeout, the loop runs its timers before it reads."""
    checked.set(idle=60.0, write=None)
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
    checked.set(idle=60.0, write=None)
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
    checked.set(idle=None, write=None)
    rig.loop.now += 5
    clock.now = rig.loop.now
    rig.loop.advance(SHORTEST_TICK)
    assert checked.late == pytest.approx([4.0])


def test_a_loop_that_is_always_late_still_ends_idle_connections(rig: Rig, checked: Checked) -> None:
    """Each check is put off only once."""
    checked.set(idle=60.0, write=None)
    rig.take()
    for _ in range(100):
        rig.loop.now += 1.5
        rig.loop.advance(0)
    assert rig.reasons() == {"idle_timeout": 1}


def test_a_worker_whose_socket_was_closed_without_notice_comes_back(rig: Rig, checked: Checked) -> None:
    """For lack of memory, uvloop may close a connection and not call `connection_lost`."""
    checked.set(idle=None, write=None)
    worker, _ = rig.take()
    worker.sock.close()
    rig.loop.advance(1)
    assert rig.pool.free == 3
    assert rig.lines.events("connection.closed")[0]["error"] == "MemoryError"
