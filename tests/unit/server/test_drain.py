"""The end of a drain, on a clock that goes when told to."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from echod.server import drain, kernel
from tests.support.fakes import Once

if TYPE_CHECKING:
    from tests.support.fakes import House


TICK = 1 / 16  # of which floats have every multiple, so that times are exact
ENDED = drain.LINGER + TICK  # from our FIN on: it is cut, and the next look finds nobody any more


class Clock:
    """Lets `linger` sleep on the fake loop's clock; `at` is what happens when."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.began = house.loop.now
        self.at: list[tuple[float, Any]] = []
        self.every: Any = lambda: None

    def time(self) -> float:
        return self.house.loop.now - self.began

    async def sleep(self, seconds: float) -> None:
        self.house.loop.advance(seconds)
        while self.at and self.at[0][0] <= self.time():
            self.at.pop(0)[1]()
        self.every()
        self.house.loop.run()
        assert self.time() < 60, "linger does not end"
        await Once()


@pytest.fixture
def clock(house: House, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(house)
    monkeypatch.setattr(drain, "TICK", TICK)
    monkeypatch.setattr(drain.asyncio, "sleep", clock.sleep)  # type: ignore[attr-defined]
    monkeypatch.setattr(drain.asyncio, "get_running_loop", lambda: house.loop)  # type: ignore[attr-defined]
    return clock


def run_linger(house: House) -> int:
    """Return how many had to be cut."""
    ending = drain.Drain(house.pool)
    coroutine = ending.linger()
    try:
        while True:
            coroutine.send(None)
    except StopIteration:
        return ending.aborted


def test_a_quiet_client_gets_fin_and_may_close(house: House, clock: Clock) -> None:
    """That is the usual end: nothing is cut."""
    _, transport = house.connect()
    clock.at.append((0.5, transport.receive_eof))
    assert run_linger(house) == 0
    assert transport.fin_sent
    assert house.reasons() == {"drained": 1}
    assert clock.time() < 0.6


def test_a_client_that_stays_is_cut_after_a_moment(house: House, clock: Clock) -> None:
    """It had its FIN, and time to close."""
    _, transport = house.connect()
    assert run_linger(house) == 1
    assert transport.fin_sent
    assert clock.time() == 2 * TICK + drain.QUIET + ENDED  # the second look is the first that knows of no move
    assert house.resets == 0


def test_what_is_under_way_at_the_deadline_is_still_echoed(house: House, clock: Clock) -> None:
    """FIN comes only when it has been quiet for a moment."""
    _, transport = house.connect()
    clock.at += [(0.2, lambda: transport.receive(b"last ")), (0.4, lambda: transport.receive(b"words"))]
    run_linger(house)
    assert transport.taken == b"last words"
    assert house.lines.events("connection.closed")[0]["bytes_sent"] == 10


def test_what_came_while_the_process_was_stopped_is_still_echoed(house: House, clock: Clock) -> None:
    """The loop runs its timers before it reads, and then a client may look quiet that is not."""
    _, transport = house.connect()

    def stop() -> None:
        house.loop.now += 1
        clock.at.append((clock.time() + drain.TICK / 2, lambda: transport.receive(b"meanwhile")))

    clock.at.append((0.2, stop))
    run_linger(house)
    assert transport.taken == b"meanwhile"
    assert house.lines.events("connection.closed")[0]["bytes_sent"] == 9


def test_a_long_quiet_before_the_deadline_is_none_after_it(house: House, clock: Clock) -> None:
    """The janitor has seen nothing move for a minute; what comes just now may be under way all the same."""
    worker, transport = house.connect()
    for seconds in (62, 61, 60):
        worker.quiet_for(house.loop.now - seconds)
    clock.at.append((0.2, lambda: transport.receive(b"last words")))
    run_linger(house)
    assert transport.taken == b"last words"


def test_a_client_that_never_stops_is_ended(house: House, clock: Clock) -> None:
    """It gets FIN, then is read and dropped, then cut."""
    _, transport = house.connect()
    clock.every = lambda: transport.receive(b"more") if transport.reading else None
    assert run_linger(house) == 1
    assert transport.fin_sent
    assert clock.time() == drain.LAST_ECHO + ENDED
    closed = house.lines.events("connection.closed")[0]
    assert closed["bytes_sent"] < closed["bytes_received"]


@pytest.mark.parametrize(("finished", "patience"), [(False, drain.LAST_ECHO), (True, drain.LAST_READ)])
def test_a_client_that_reads_slowly_has_longer_if_it_has_sent_everything(
    house: House, clock: Clock, *, finished: bool, patience: float
) -> None:
    """Whoever has sent FIN can't keep us for ever."""
    house.peer_finished = finished
    _, transport = house.connect()
    transport.window = 0
    transport.receive(bytes(1 << 20))
    clock.every = lambda: transport.take(1)
    assert run_linger(house) == 1
    assert clock.time() == patience + ENDED
    assert clock.time() < 5.7  # of the 6 s promised, the rest is for the end of the process
    assert house.resets == 1


def test_a_client_that_gets_through_is_not_cut(house: House, clock: Clock) -> None:
    """All of its echo, then the ordinary end."""
    house.peer_finished = True
    _, transport = house.connect()
    transport.window = 0
    transport.receive(bytes(1000))
    clock.every = lambda: transport.take(20) if len(transport.taken) < 1000 else transport.receive_eof()
    assert run_linger(house) == 0
    assert len(transport.taken) == 1000
    assert house.reasons() == {"eof": 1}


def test_a_client_that_takes_a_break_from_reading_is_not_cut_off(house: House, clock: Clock) -> None:
    """Quiet is not the same as done while output is pending."""
    _, transport = house.connect()
    transport.window = 0
    transport.receive(bytes(1000))
    clock.at += [(1.0, lambda: transport.take(2000)), (1.1, lambda: transport.receive(b"and more"))]
    run_linger(house)
    assert len(transport.taken) == 1008


def test_without_connections_there_is_nothing_to_wait_for(house: House, clock: Clock) -> None:
    """It returns at once."""
    assert run_linger(house) == 0
    assert clock.time() == 0


def test_a_long_way_to_the_client_is_waited_for(house: House, clock: Clock) -> None:
    """What it sent before the deadline may take longer than the usual quiet: four round trips."""
    house.rtt_us = 125_000
    _, transport = house.connect()
    clock.at.append((0.5, lambda: transport.receive(b"from afar")))
    run_linger(house)
    assert transport.taken == b"from afar"
    assert clock.time() == 0.5 + TICK + 4 * 0.125 + ENDED


def test_what_the_kernel_still_sends_is_not_quiet(house: House, clock: Clock) -> None:
    """A client that reads slowly what the kernel holds is not done while bytes move."""
    house.unacknowledged = 1000
    _, transport = house.connect()
    transport.receive(b"x" * 1000)

    def read() -> None:
        house.unacknowledged -= 10

    clock.every = read
    clock.at.append((1.5, lambda: transport.receive(b"more")))
    run_linger(house)
    assert transport.taken.endswith(b"more")


@pytest.mark.parametrize("made", [True, False])
def test_all_can_be_cut_at_once(house: House, clock: Clock, *, made: bool) -> None:
    """Each counts once, also one that is accepted and not yet made."""
    for _ in range(2):
        house.connect(made=made)
    ending = drain.Drain(house.pool)
    coroutine = ending.cut_all()
    with contextlib.suppress(StopIteration):
        while True:
            coroutine.send(None)
    assert ending.aborted == 2
    assert house.reasons() == {"drained": 2}
    assert clock.time() == 0


def test_those_cut_before_the_second_signal_count_too(house: House, clock: Clock) -> None:
    """`aborted` is the number of connections, whenever they were cut."""
    ending = drain.Drain(house.pool)
    house.connect()
    _, busy = house.connect()
    clock.every = lambda: busy.receive(b"more") if busy.reading else None
    lingering = ending.linger()
    while not ending.aborted:
        lingering.send(None)
    lingering.close()
    cutting = ending.cut_all()
    with contextlib.suppress(StopIteration):
        while True:
            cutting.send(None)
    assert ending.aborted == 2
    assert clock.time() > 0


# The FIN


def test_finish_sends_fin_and_drops_what_still_comes(house: House) -> None:
    """After FIN nothing may be written, and nothing that comes in may end in a reset."""
    worker, transport = house.connect()
    transport.receive(b"echoed")
    drain.finish(worker)
    assert transport.fin_sent
    transport.receive(b"too")
    transport.receive(b" late")
    assert transport.taken == b"echoed"
    assert (worker.received, worker.dropped) == (14, 8)
    transport.receive_eof()
    house.loop.run()
    assert house.reasons() == {"drained": 1}


def test_finish_sends_what_is_pending_before_fin(house: House) -> None:
    """A stalled connection reads again, to drop, and its FIN waits for its echo."""
    worker, transport = house.connect()
    transport.window = 2
    transport.receive(b"1234")
    drain.finish(worker)
    assert transport.reading
    assert not transport.fin_sent
    transport.take(2)
    assert transport.taken == b"1234"
    assert transport.fin_sent


def test_a_connection_that_has_got_rid_of_its_output_is_not_stalled_any_more(house: House) -> None:
    """Then it is closed with FIN and not with a reset, which would take the last echo away."""
    worker, transport = house.connect()
    transport.window = 0
    transport.receive(b"1234")
    drain.finish(worker)
    assert worker.paused
    transport.take(4)
    assert not worker.paused


def test_finish_leaves_a_closing_connection_alone(house: House) -> None:
    """It is on its way out already."""
    worker, transport = house.connect()
    transport.receive_eof()
    drain.finish(worker)
    house.loop.run()
    assert house.reasons() == {"eof": 1}
    assert not transport.fin_sent


@pytest.mark.parametrize(
    ("ask", "error"), [("info", OSError("no")), ("unacknowledged", ValueError("a closed socket has no descriptor"))]
)
def test_a_connection_the_kernel_says_nothing_of_is_ended_like_the_others(
    house: House, clock: Clock, monkeypatch: pytest.MonkeyPatch, ask: str, error: Exception
) -> None:
    """It must not end the drain."""
    _, transport = house.connect()

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(kernel, ask, fail)
    assert run_linger(house) == 1
    assert transport.fin_sent
    assert clock.time() < 10
