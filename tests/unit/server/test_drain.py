"""The end of the connections: `linger` on a clock that goes only when told to, `run` on a real loop."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from echod.server import drain
from echod.server.drain import Drain
from tests.support.fakes import Once
from tests.support.rig import resize, tcp_info

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.support.rig import Rig


TICK = 1 / 16  # floats hold every multiple of it exactly
ENDED = drain.LINGER + TICK  # from our FIN on: the connection is cut, and the next check finds it gone


@pytest.fixture(autouse=True)
def _kernel(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.fake_kernel(monkeypatch)


class Schedule:
    """Lets `linger` sleep on the fake loop's clock. `at` says what happens when, `every` what happens at each check."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.began = rig.loop.now
        self.at: list[tuple[float, Callable[[], Any]]] = []
        self.every: Callable[[], Any] = lambda: None

    def time(self) -> float:
        return self.rig.loop.now - self.began

    async def sleep(self, seconds: float) -> None:
        self.rig.loop.advance(seconds)
        while self.at and self.at[0][0] <= self.time():
            self.at.pop(0)[1]()
        self.every()
        self.rig.loop.run()
        assert self.time() < 60, "linger does not end"
        await Once()


@pytest.fixture
def schedule(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Schedule:
    schedule = Schedule(rig)
    monkeypatch.setattr(drain, "TICK", TICK)
    monkeypatch.setattr(drain.asyncio, "sleep", schedule.sleep)  # type: ignore[attr-defined]
    monkeypatch.setattr(drain.asyncio, "get_running_loop", lambda: rig.loop)  # type: ignore[attr-defined]
    return schedule


def complete(coroutine: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(StopIteration):
        while True:
            coroutine.send(None)


def linger(rig: Rig) -> int:
    """Return how many connections were cut."""
    ending = Drain(rig.pool)
    complete(ending.linger())
    return len(ending._cut)


def test_a_quiet_client_gets_fin_and_may_close(rig: Rig, schedule: Schedule) -> None:
    """This is the usual end, and no connection is cut."""
    _, transport = rig.take()
    schedule.at.append((0.5, transport.receive_eof))
    assert linger(rig) == 0
    assert transport.fin_sent
    assert rig.reasons() == {"drained": 1}
    assert schedule.time() < 0.6


def test_a_client_that_does_not_close_after_our_fin_is_cut(rig: Rig, schedule: Schedule) -> None:
    """It had our FIN, and time to close."""
    _, transport = rig.take()
    assert linger(rig) == 1
    assert transport.fin_sent
    assert schedule.time() == drain.QUIET + ENDED
    assert rig.resets == 0


def test_bytes_under_way_at_the_deadline_are_still_echoed(rig: Rig, schedule: Schedule) -> None:
    """FIN comes only after a moment of quiet."""
    _, transport = rig.take()
    schedule.at += [(0.2, lambda: transport.receive(b"last ")), (0.4, lambda: transport.receive(b"words"))]
    linger(rig)
    assert transport.taken == b"last words"
    assert rig.lines.events("connection.closed")[0]["bytes_sent"] == 10


def test_bytes_that_came_while_the_process_was_stopped_are_still_echoed(rig: Rig, schedule: Schedule) -> None:
    """The loop runs its timers before it reads, so a client may look quiet although its bytes are here."""
    _, transport = rig.take()

    def stop() -> None:
        rig.loop.now += 1
        schedule.at.append((schedule.time() + drain.TICK / 2, lambda: transport.receive(b"meanwhile")))

    schedule.at.append((0.2, stop))
    linger(rig)
    assert transport.taken == b"meanwhile"
    assert rig.lines.events("connection.closed")[0]["bytes_sent"] == 9


def test_a_long_quiet_before_the_deadline_does_not_count_after_it(rig: Rig, schedule: Schedule) -> None:
    """After a minute of quiet, bytes may be under way all the same."""
    worker, transport = rig.take()
    worker.seen = worker.opened = transport.moved = rig.loop.now - 60
    schedule.at.append((0.2, lambda: transport.receive(b"last words")))
    linger(rig)
    assert transport.taken == b"last words"


def test_a_client_that_never_stops_sending_is_ended(rig: Rig, schedule: Schedule) -> None:
    """It gets FIN, then its bytes are read and dropped, then it is cut."""
    _, transport = rig.take()
    schedule.every = lambda: transport.receive(b"more") if transport.reading else None
    assert linger(rig) == 1
    assert transport.fin_sent
    assert schedule.time() == drain.LAST_ECHO + ENDED
    closed = rig.lines.events("connection.closed")[0]
    assert closed["bytes_sent"] < closed["bytes_received"]


@pytest.mark.parametrize(("finished", "patience"), [(False, drain.LAST_ECHO), (True, drain.LAST_READ)])
def test_a_client_that_reads_slowly_has_more_time_if_it_has_sent_everything(
    rig: Rig, schedule: Schedule, *, finished: bool, patience: float
) -> None:
    """It has sent its FIN, so the daemon waits only for it to read; but not for ever."""
    rig.info = tcp_info(peer_finished=finished)
    _, transport = rig.take()
    transport.window = 0
    transport.receive(bytes(1 << 20))
    schedule.every = lambda: transport.take(1)
    assert linger(rig) == 1
    assert schedule.time() == patience + ENDED
    assert schedule.time() < 5.7  # of the 6 s promised, the rest is for the end of the process
    assert rig.resets == 1


def test_a_client_that_reads_everything_in_time_is_not_cut(rig: Rig, schedule: Schedule) -> None:
    """It gets all of its echo, and the usual end."""
    rig.info = tcp_info(peer_finished=True)
    _, transport = rig.take()
    transport.window = 0
    transport.receive(bytes(1000))
    schedule.every = lambda: transport.take(20) if len(transport.taken) < 1000 else transport.receive_eof()
    assert linger(rig) == 0
    assert len(transport.taken) == 1000
    assert rig.reasons() == {"eof": 1}


def test_a_client_that_pauses_reading_gets_no_fin(rig: Rig, schedule: Schedule) -> None:
    """While output is pending, a quiet connection is not over."""
    _, transport = rig.take()
    transport.window = 0
    transport.receive(bytes(1000))
    schedule.at += [(1.0, lambda: transport.take(2000)), (1.1, lambda: transport.receive(b"and more"))]
    linger(rig)
    assert len(transport.taken) == 1008


def test_without_connections_there_is_nothing_to_wait_for(rig: Rig, schedule: Schedule) -> None:
    """`linger` returns at once."""
    assert linger(rig) == 0
    assert schedule.time() == 0


def test_bytes_of_a_distant_client_are_waited_for(rig: Rig, schedule: Schedule) -> None:
    """What it sent before the deadline may take longer than the usual quiet, so four round trips must be quiet too."""
    rig.info = tcp_info(rtt=0.125)
    _, transport = rig.take()
    schedule.at.append((0.5, lambda: transport.receive(b"from afar")))
    linger(rig)
    assert transport.taken == b"from afar"
    assert schedule.time() == 0.5 + 4 * 0.125 + ENDED


def test_a_connection_on_which_the_kernel_still_sends_is_not_quiet(rig: Rig, schedule: Schedule) -> None:
    """A client that slowly reads what the kernel holds gets no FIN as long as bytes move."""
    left = rig.unacknowledged = 1000
    _, transport = rig.take()
    transport.receive(b"x" * 1000)

    def read() -> None:
        nonlocal left
        left -= 10
        rig.unacknowledged = left

    schedule.every = read
    schedule.at.append((1.5, lambda: transport.receive(b"more")))
    linger(rig)
    assert transport.taken.endswith(b"more")


def test_a_quiet_client_gets_fin_also_where_the_kernel_says_nothing(rig: Rig, schedule: Schedule) -> None:
    """It is as patient then as with a peer nearby."""
    rig.info = rig.unacknowledged = None
    _, transport = rig.take()
    schedule.at.append((0.2, lambda: transport.receive(b"last words")))
    assert linger(rig) == 1
    assert transport.fin_sent
    assert transport.taken == b"last words"
    assert schedule.time() < drain.LAST_ECHO


def test_a_slow_reader_is_ended_where_the_kernel_says_nothing(rig: Rig, schedule: Schedule) -> None:
    """It counts as one that has not sent its FIN."""
    rig.info = rig.unacknowledged = None
    _, transport = rig.take()
    transport.window = 0
    transport.receive(bytes(1 << 20))
    schedule.every = lambda: transport.take(1)
    assert linger(rig) == 1
    assert schedule.time() == drain.LAST_ECHO + ENDED


@pytest.mark.parametrize("made", [True, False])
def test_all_connections_can_be_cut_at_once(rig: Rig, schedule: Schedule, *, made: bool) -> None:
    """Each counts once, also one that is accepted and has no transport yet."""
    for _ in range(2):
        rig.take(made=made)
    ending = Drain(rig.pool)
    complete(ending.cut_all())
    assert len(ending._cut) == 2
    assert rig.reasons() == {"drained": 2}
    assert schedule.time() == 0


# From the beginning to the end


QUICK = 0.001


class Run:
    """A drain on a real loop, which runs the rig's loop too."""

    def __init__(self, rig: Rig, patience: float | None) -> None:
        self._rig = rig
        self.at_once: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(Drain(rig.pool).run(patience, self.at_once))

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(QUICK)
            self._rig.loop.run()

    async def cut(self) -> int:
        """Return how many connections were cut, when it has ended. Nothing else is left on the loop then."""
        await self.until(self.task.done)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return self.task.result()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it give FIN and cut soon."""
    monkeypatch.setattr(drain, "TICK", QUICK)
    monkeypatch.setattr(drain, "QUIET", QUICK)
    monkeypatch.setattr(drain, "LINGER", QUICK)


@pytest.mark.parametrize("patience", [None, 0.0, 60.0])
def test_a_drain_without_connections_ends_at_once(rig: Rig, patience: float | None) -> None:
    """There is nothing to wait for."""

    async def test() -> None:
        assert await Run(rig, patience).cut() == 0

    rig.run(test())


@pytest.mark.parametrize("patience", [None, 60.0])
def test_a_drain_ends_with_the_last_connection(rig: Rig, patience: float | None) -> None:
    """Connections may finish by themselves; then none of them is cut."""
    transports = [rig.take()[1] for _ in range(2)]

    async def test() -> None:
        run = Run(rig, patience)
        for transport in transports:
            await asyncio.sleep(QUICK)
            assert not run.task.done()
            transport.receive(b"still served")
            rig.end(transport)
        assert await run.cut() == 0

    rig.run(test())
    assert rig.reasons() == {"eof": 2}
    assert not any(transport.fin_sent for transport in transports)


@pytest.mark.usefixtures("quick")
def test_after_the_deadline_connections_get_fin_and_are_cut(rig: Rig) -> None:
    """The drain returns how many were cut."""
    _, finishing = rig.take()
    transports = [rig.take()[1] for _ in range(2)]

    async def test() -> None:
        run = Run(rig, QUICK)
        rig.end(finishing)
        assert await run.cut() == 2

    rig.run(test())
    assert rig.reasons() == {"eof": 1, "drained": 2}
    assert all(transport.fin_sent for transport in transports)


@pytest.mark.parametrize("patience", [None, 60.0])
@pytest.mark.parametrize("before", [False, True])
def test_a_second_signal_cuts_all_connections(rig: Rig, patience: float | None, *, before: bool) -> None:
    """It may come while they finish, or before the drain has begun."""
    transports = [rig.take()[1] for _ in range(2)]

    async def test() -> None:
        run = Run(rig, patience)
        if not before:
            await asyncio.sleep(QUICK)
        run.at_once.set_result(None)
        assert await run.cut() == 2

    rig.run(test())
    assert rig.reasons() == {"drained": 2}
    assert not any(transport.fin_sent for transport in transports)


@pytest.mark.usefixtures("quick")
def test_connections_that_were_cut_before_the_second_signal_count_too(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is the number of connections that were cut, at whatever time."""
    monkeypatch.setattr(drain, "LAST_ECHO", 60.0)  # the second signal comes before
    rig.info = rig.unacknowledged = None  # its clock is not that of this test
    _, quiet = rig.take()
    _, busy = rig.take()
    busy.window = 0
    busy.receive(b"pending, and so not over")

    async def test() -> None:
        run = Run(rig, 0.0)
        await run.until(lambda: len(rig.pool.in_use) == 1)
        assert (quiet.fin_sent, busy.fin_sent) == (True, False)
        run.at_once.set_result(None)
        assert await run.cut() == 2

    rig.run(test())
    assert rig.reasons() == {"drained": 2}


def test_a_turn_of_the_loop_ends_a_bounded_number(rig: Rig) -> None:
    """To end a connection, with its line in the log, takes far longer than to check it."""
    resize(rig.pool, 45)
    transports = [rig.take()[1] for _ in range(45)]
    cutting = Drain(rig.pool).cut_all()
    cut = [0]
    with contextlib.suppress(StopIteration):
        while True:
            cutting.send(None)
            cut.append(sum(each.is_closing() for each in transports))
            if len(cut) > 6:
                rig.loop.run()
    most = drain.BATCH // drain.END
    assert max(after - before for before, after in pairwise(cut)) <= most
    assert rig.reasons() == {"drained": 45}


def test_a_turn_of_the_loop_checks_a_bounded_number(rig: Rig, schedule: Schedule) -> None:
    """The others are checked in the next turns, and all come to their end."""
    resize(rig.pool, 2 * drain.BATCH)
    transports = [rig.take()[1] for _ in range(2 * drain.BATCH)]
    lingering = Drain(rig.pool).linger()
    last = transports[-1]  # it ends some turns before it would be checked
    schedule.every = lambda: last.receive_eof() if transports[0].fin_sent and last.reading else None
    finished, before = [], 0
    with contextlib.suppress(StopIteration):
        while True:
            lingering.send(None)
            after = sum(each.fin_sent + each.is_closing() for each in transports if each is not last)
            finished.append(after - before)
            before = after
    assert 0 < max(finished) <= drain.BATCH // drain.END
    assert schedule.time() < 10
    assert rig.reasons() == {"eof": 1, "drained": 2 * drain.BATCH - 1}


def test_a_connection_that_ends_does_not_keep_those_behind_it_waiting(rig: Rig, schedule: Schedule) -> None:
    """All get their FIN by the same check, although it takes many turns of the loop."""
    resize(rig.pool, drain.BATCH)
    transports = [rig.take()[1] for _ in range(drain.BATCH)]
    gone = transports[drain.BATCH // 2]
    fins: dict[int, float] = {}

    def note() -> None:
        for number, each in enumerate(transports):
            if each.fin_sent:
                fins.setdefault(number, schedule.time())
        if fins and gone.reading:
            gone.receive_eof()

    schedule.every = note
    linger(rig)
    assert len(fins) == drain.BATCH - 1
    assert max(fins.values()) - min(fins.values()) == TICK  # the last ones are seen a tick later


def test_a_turn_of_the_loop_checks_a_bounded_number_that_go_on(rig: Rig, schedule: Schedule) -> None:
    """Also if no connection is over yet."""
    number = 2 * drain.BATCH + 1
    resize(rig.pool, number)
    transports = [rig.take()[1] for _ in range(number)]

    def send() -> None:
        for each in transports:
            each.receive(b"x")

    schedule.every = send
    lingering = Drain(rig.pool).linger()
    times = []
    for _ in range(4):
        lingering.send(None)
        times.append(schedule.time())
    lingering.close()
    assert times == [TICK, TICK, TICK, 2 * TICK]


def test_a_connection_that_its_lifetime_has_ended_is_cut_in_time(rig: Rig, schedule: Schedule) -> None:
    """It has had its FIN already, and gets no second one."""
    worker, _ = rig.take()
    drain.finish(worker, "lifetime", rig.loop.now)
    assert linger(rig) == 1
    assert schedule.time() <= drain.LINGER + TICK
    assert rig.reasons() == {"lifetime": 1}


def test_a_second_signal_after_the_end_changes_nothing(rig: Rig) -> None:
    """The drain has ended by then."""

    async def test() -> None:
        run = Run(rig, None)
        assert await run.cut() == 0
        run.at_once.set_result(None)
        await asyncio.sleep(QUICK)
        assert run.task.result() == 0

    rig.run(test())


# The FIN


def test_finish_sends_fin_and_drops_what_is_received_after_it(rig: Rig) -> None:
    """After FIN nothing may be written, and received bytes must not end in a reset."""
    worker, transport = rig.take()
    transport.receive(b"echoed")
    drain.finish(worker, "drained", rig.loop.now)
    assert transport.fin_sent
    transport.receive(b"too")
    transport.receive(b" late")
    assert transport.taken == b"echoed"
    assert (worker.received, worker.dropped) == (14, 8)
    rig.end(transport)
    assert rig.reasons() == {"drained": 1}


def test_finish_sends_what_is_pending_before_fin(rig: Rig) -> None:
    """A stalled connection is read again, and the bytes dropped; its FIN waits for its echo."""
    worker, transport = rig.take()
    transport.window = 2
    transport.receive(b"1234")
    drain.finish(worker, "drained", rig.loop.now)
    assert transport.reading
    assert not transport.fin_sent
    transport.take(2)
    assert transport.taken == b"1234"
    assert transport.fin_sent


def test_a_connection_without_pending_output_is_not_stalled_any_more(rig: Rig) -> None:
    """It is then closed with FIN, as a reset would take the last echo away."""
    worker, transport = rig.take()
    transport.window = 0
    transport.receive(b"1234")
    drain.finish(worker, "drained", rig.loop.now)
    assert worker.paused
    transport.take(4)
    assert not worker.paused


def test_finish_leaves_a_closing_connection_alone(rig: Rig) -> None:
    """It ends by itself, and keeps its reason."""
    worker, transport = rig.take()
    transport.receive_eof()
    drain.finish(worker, "drained", rig.loop.now)
    rig.loop.run()
    assert rig.reasons() == {"eof": 1}
    assert not transport.fin_sent


def test_finish_leaves_a_connection_without_a_transport_alone(rig: Rig) -> None:
    """Between accept and `connection_made` there is nothing to finish."""
    worker, transport = rig.take(made=False)
    drain.finish(worker, "drained", rig.loop.now)
    rig.loop.run()
    assert worker.reason is None
    assert transport.reading
