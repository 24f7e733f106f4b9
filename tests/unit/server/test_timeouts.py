"""The janitor on a clock that goes when told to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from echod.server import kernel
from echod.server import timeouts as janitor_module
from echod.server.timeouts import Janitor

if TYPE_CHECKING:
    from tests.support.fakes import House


def watch(house: House, *, idle: float | None = None, write: float | None = None) -> Janitor:
    return Janitor(house.loop.asyncio, house.lines.log, house.pool, idle=idle, write=write, looked=house.looks.append)


def test_an_idle_connection_is_ended_by_fin(house: House) -> None:
    """Not before its time, which begins with the second look: the first one had nothing to compare with."""
    watch(house, idle=60.0)
    house.connect()
    house.loop.advance(61)
    assert house.reasons() == {}
    house.loop.advance(1)
    assert house.reasons() == {"idle_timeout": 1}
    assert house.resets == 0


def test_a_byte_now_and_then_keeps_a_connection(house: House) -> None:
    """Idle is no byte for the whole time."""
    watch(house, idle=60.0)
    _, transport = house.connect()
    for _ in range(5):
        house.loop.advance(58)
        transport.receive(b"x")
    assert house.reasons() == {}


def test_a_peer_that_does_not_read_is_reset(house: House) -> None:
    """The kernel forgets its echo at once."""
    watch(house, idle=300.0, write=30.0)
    _, transport = house.connect()
    transport.window = 0
    transport.receive(b"never read")
    house.loop.advance(31)
    assert house.reasons() == {}
    house.loop.advance(1)
    assert house.reasons() == {"write_timeout": 1}
    assert house.resets == 1


def test_a_peer_that_reads_slowly_is_left_alone(house: House) -> None:
    """Each byte that the transport or the kernel gets rid of begins the time anew."""
    watch(house, idle=300.0, write=30.0)
    _, transport = house.connect()
    transport.window = 0
    house.unacknowledged = 100
    transport.receive(b"slowly read")
    for _ in range(5):
        house.loop.advance(28)
        transport.take(1)
        house.loop.advance(28)
        house.unacknowledged -= 1
    assert house.reasons() == {}


def test_a_quiet_connection_is_not_stalled(house: House) -> None:
    """The write timeout is for those that have output pending."""
    watch(house, write=30.0)
    house.connect()
    house.loop.advance(1000)
    assert house.reasons() == {}


def test_without_a_write_timeout_the_idle_one_frees_a_stalled_worker(house: House) -> None:
    """No byte either way is idle, whatever is pending."""
    watch(house, idle=60.0)
    _, transport = house.connect()
    transport.window = 0
    transport.receive(b"never read")
    house.loop.advance(63)
    assert house.reasons() == {"idle_timeout": 1}
    assert house.resets == 1


@pytest.mark.parametrize(
    ("idle", "write", "tick"),
    [(None, None, 1.0), (300.0, 30.0, 1.0), (2.0, 30.0, 0.5), (60.0, 2.0, 0.5), (60.0, 0.001, 0.05)],
)
def test_it_looks_often_enough_for_the_shortest_timeout(
    house: House, idle: float | None, write: float | None, tick: float
) -> None:
    """Once a second, more often for short timeouts, within reason."""
    looks = 0
    watch(house, idle=idle, write=write)

    def count() -> None:
        nonlocal looks
        looks += 1

    house.pool.tell_available = count  # type: ignore[method-assign]
    house.loop.advance(10.001)
    assert looks == round(10 / tick)


def test_it_says_that_the_pool_is_available_again(house: House) -> None:
    """That line comes from here, at most once a look."""
    watch(house)
    transports = [house.connect()[1] for _ in range(3)]
    transports[0].receive_eof()
    house.loop.run()
    assert house.lines.events("pool.available") == []
    house.loop.advance(1)
    assert len(house.lines.events("pool.available")) == 1


def test_after_close_it_looks_no_more(house: House) -> None:
    """No timer stays behind."""
    janitor = watch(house, idle=1.0)
    house.connect()
    janitor.close()
    house.loop.advance(10)
    assert house.reasons() == {}
    assert house.loop.timers == 0


def test_a_connection_that_cannot_be_looked_at_does_not_hide_the_others(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failure is a line, and the timer goes on."""
    watch(house, idle=60.0)
    broken, _ = house.connect()
    house.connect()

    def ask(sock: object) -> int:
        if sock is broken.sock:
            raise OSError("no such descriptor")
        return 0

    monkeypatch.setattr(kernel, "unacknowledged", ask)
    house.loop.advance(63)
    assert house.reasons() == {"idle_timeout": 1}
    assert house.lines.events("internal.error")[0]["message"] == "looking at connection 1 failed"


def looks(house: House) -> list[float]:
    """Return a list that gets the time of each look, from now on counted."""
    times: list[float] = []
    began = house.loop.now
    house.pool.tell_available = lambda: times.append(round(house.loop.now - began, 6))  # type: ignore[method-assign]
    return times


def test_a_shorter_timeout_counts_soon(house: House) -> None:
    """Quiet before the change is quiet, and the next look comes as early as the new timeout wants it."""
    janitor = watch(house, idle=300.0)
    house.connect()
    house.loop.advance(10)
    times = looks(house)
    janitor.set_timeouts(idle=0.4, write=None)
    house.loop.advance(0.35)
    assert times == [0.1, 0.2, 0.3]
    assert house.reasons() == {"idle_timeout": 1}


def test_a_longer_timeout_does_not_put_off_the_next_look(house: House) -> None:
    """That one comes when it was due; those after it, at the new pace."""
    janitor = watch(house, idle=0.8)
    times = looks(house)
    house.loop.advance(0.1)
    janitor.set_timeouts(idle=300.0, write=30.0)
    house.loop.advance(2.5)
    assert times == [0.2, 1.2, 2.2]


def test_a_longer_timeout_counts_at_once(house: House) -> None:
    """Nobody is ended by what does not hold any more."""
    janitor = watch(house, idle=60.0)
    house.connect()
    house.loop.advance(59)
    janitor.set_timeouts(idle=120.0, write=None)
    house.loop.advance(60)
    assert house.reasons() == {}
    house.loop.advance(6)
    assert house.reasons() == {"idle_timeout": 1}


def test_a_write_timeout_can_be_changed(house: House) -> None:
    """Also from none to one, for those who have stalled long ago."""
    janitor = watch(house)
    _, transport = house.connect()
    transport.window = 0
    transport.receive(b"never read")
    house.loop.advance(100)
    assert house.reasons() == {}
    janitor.set_timeouts(idle=None, write=30.0)
    house.loop.advance(1)
    assert house.reasons() == {"write_timeout": 1}


@pytest.mark.parametrize("seconds", [0.001, 0.3, 0.9])
def test_a_storm_of_changes_does_not_keep_it_from_looking(house: House, seconds: float) -> None:
    """Were each one to put off the next look, nobody would be ended any more."""
    janitor = watch(house, idle=300.0)
    times = looks(house)
    while house.loop.now < 1003.5:
        house.loop.advance(seconds)
        janitor.set_timeouts(idle=300.0, write=30.0)
    assert times == [1.0, 2.0, 3.0]
    assert house.loop.timers == 1


def test_a_look_that_is_late_comes_soon(house: House) -> None:
    """The loop was busy, and then the timeouts are changed before it looks."""
    janitor = watch(house)
    times = looks(house)
    house.loop.now += 1.5
    janitor.set_timeouts(idle=300.0, write=30.0)
    house.loop.advance(0.1)
    assert times == [1.5 + janitor_module.SHORTEST_TICK]


def test_after_each_look_it_says_how_late_it_was(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock and not by the loop, which reads that once in its round; never less than nothing."""
    clock = SimpleNamespace(ahead=0.0)
    monkeypatch.setattr(janitor_module, "time", SimpleNamespace(monotonic=lambda: house.loop.now + clock.ahead))
    watch(house)
    for clock.ahead in (0.0, 0.25, -0.5):
        house.loop.advance(1.0)
    assert house.looks == pytest.approx([0.0, 0.25, 0.0])


def test_a_look_that_fails_for_one_is_a_look(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who counts on it is told in any case."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(kernel, "unacknowledged", fail)
    watch(house)
    house.connect()
    house.loop.advance(2.0)
    assert len(house.looks) == 2


@pytest.mark.parametrize("said", [b"", b"meanwhile"])
def test_after_a_delay_nobody_is_judged_before_its_input_is_read(house: House, said: bytes) -> None:
    """The process was stopped for longer than the timeout: the loop runs its timers first."""
    watch(house, idle=60.0)
    _, transport = house.connect()
    house.loop.advance(30)
    house.loop.now += 60
    house.loop.advance(0)
    assert house.reasons() == {}
    transport.receive(said)
    house.loop.advance(1)
    assert house.reasons() == ({} if said else {"idle_timeout": 1})


def test_a_look_that_was_put_off_is_not_brought_forward_by_a_reload(house: House) -> None:
    """What has come meanwhile is read first in any case."""
    janitor = watch(house, idle=60.0)
    house.connect()
    house.loop.advance(30)
    house.loop.now += 60
    house.loop.advance(0)
    janitor.set_timeouts(idle=60.0, write=30.0)
    house.loop.advance(0)
    assert house.reasons() == {}
    house.loop.advance(janitor_module.SHORTEST_TICK)
    assert house.reasons() == {"idle_timeout": 1}


def test_a_look_that_was_put_off_says_how_late_it_was_at_first(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment of grace is not the loop's delay."""
    monkeypatch.setattr(janitor_module, "time", SimpleNamespace(monotonic=lambda: house.loop.now))
    watch(house)
    house.loop.now += 5
    house.loop.advance(janitor_module.SHORTEST_TICK)
    assert house.looks == pytest.approx([4.0])


def test_a_loop_that_is_always_late_still_has_its_timeouts(house: House) -> None:
    """Each look is put off once only."""
    watch(house, idle=60.0)
    house.connect()
    for _ in range(100):
        house.loop.now += 1.5
        house.loop.advance(0)
    assert house.reasons() == {"idle_timeout": 1}


def test_a_worker_whose_end_nobody_told_comes_back(house: House) -> None:
    """For lack of memory, a connection can be closed and its worker not be given back then."""
    watch(house)
    worker, _ = house.connect()
    worker.sock.close()
    house.loop.advance(1)
    assert house.pool.free == 3
    assert house.lines.events("connection.closed")[0]["error"] == "MemoryError"
