"""The worker against a transport that fails on any misuse."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, cast

import pytest

from echod.server.worker import Worker
from tests.support.rig import resize

if TYPE_CHECKING:
    import asyncio

    from tests.support.rig import Rig


@pytest.fixture(autouse=True)
def _kernel(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.fake_kernel(monkeypatch)


def test_everything_is_written_back(rig: Rig) -> None:
    """The echo is what was received, in the same order, and the bytes are counted."""
    worker, transport = rig.take()
    chunks = [random.randbytes(size) for size in (1, 2, 4096, 262144)]
    for chunk in chunks:
        transport.receive(chunk)
    assert transport.taken == b"".join(chunks)
    assert worker.received == sum(map(len, chunks))
    assert worker.pending() == 0


def test_every_write_is_tried_at_once(rig: Rig) -> None:
    """The high-water mark is 0; the flow control depends on it."""
    _, transport = rig.take()
    assert transport.high_water == 0


def test_reading_pauses_while_output_is_pending(rig: Rig) -> None:
    """The worker reads nothing from a peer that does not read, until the peer has all of its echo."""
    worker, transport = rig.take()
    transport.window = 3
    transport.receive(b"12345")
    assert not transport.reading
    assert worker.paused
    assert worker.pending() == 2
    transport.take(1)
    assert not transport.reading
    transport.take(1)
    assert transport.reading
    assert not worker.paused
    assert transport.taken == b"12345"


def test_eof_closes_the_connection_without_an_error(rig: Rig) -> None:
    """EOF is the normal end."""
    _, transport = rig.take()
    transport.receive(b"last words")
    rig.end(transport)
    assert rig.reasons() == {"eof": 1}


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
def test_the_end_of_a_connection_is_passed_on(error: Exception | None) -> None:
    """The pool learns which worker it was, and what ended the connection."""
    lost: list[tuple[Worker, Exception | None]] = []
    worker = Worker(lambda *end: lost.append(end), set())
    worker.connection_lost(error)
    assert lost == [(worker, error)]


def test_a_worker_serves_one_connection_after_another(rig: Rig) -> None:
    """Nothing of one connection is left for the next one."""
    resize(rig.pool, 1)
    first, transport = rig.take()
    transport.window = 0
    transport.receive(b"never read")
    first.dropped = 1
    first.abort("killed")
    rig.loop.run()
    worker, transport = rig.take()
    assert worker is first
    assert (worker.received, worker.dropped, worker.pending()) == (0, 0, 0)
    assert not worker.paused
    assert worker.reason is None
    transport.receive(b"again")
    assert transport.taken == b"again"


def test_abort_ends_at_once_and_keeps_the_first_reason(rig: Rig) -> None:
    """The first decision is the one that is logged."""
    worker, transport = rig.take()
    transport.window = 0
    transport.receive(b"never read")
    worker.abort("idle_timeout")
    worker.abort("drained")
    rig.loop.run()
    assert rig.reasons() == {"idle_timeout": 1}


@pytest.mark.parametrize(("how", "resets"), [({}, 0), ({"reset": False}, 0), ({"reset": True}, 1)])
def test_abort_resets_only_when_asked(rig: Rig, how: dict[str, bool], resets: int) -> None:
    """A reset is for peers that would keep the kernel's memory."""
    worker, _ = rig.take()
    worker.abort("write_timeout", **how)
    assert rig.resets == resets
    rig.loop.run()
    assert rig.reasons() == {"write_timeout": 1}


def test_a_connection_ended_before_it_is_made_is_closed_when_it_is_made(rig: Rig) -> None:
    """Between accept and `connection_made` there is no transport to close."""
    worker, transport = rig.take(made=False)
    worker.abort("drained", reset=True)
    assert worker.pending() == 0
    assert rig.reasons() == {}
    rig.loop.run()
    assert rig.reasons() == {"drained": 1}
    assert not transport.reading


def test_a_failure_in_connection_made_loses_no_descriptor(rig: Rig) -> None:
    """Without the abort, uvloop would keep the connection open for ever."""
    worker, transport = rig.take(made=False)
    transport.fail_limits = RuntimeError("no")
    with pytest.raises(RuntimeError):
        worker.connection_made(cast("asyncio.Transport", transport))
    transport.fail_limits = None
    rig.loop.run()
    assert rig.reasons() == {"error": 1}


def test_a_worker_has_no_dictionary(rig: Rig) -> None:
    """A dictionary each would be slower on the hot path, and memory times the size of the pool."""
    worker, _ = rig.take()
    assert not hasattr(worker, "__dict__")


# How long a connection has been quiet


class Checks:
    """A connection that is checked once a second."""

    def __init__(self, rig: Rig) -> None:
        self._loop = rig.loop
        self.worker, self.transport = rig.take()

    def quiet(self) -> float:
        self._loop.now += 1
        return self.worker.quiet_for(self._loop.now)[0]

    @property
    def is_exact(self) -> bool:
        return self.worker.quiet_for(self._loop.now)[1]


@pytest.fixture
def checks(rig: Rig) -> Checks:
    return Checks(rig)


@pytest.mark.parametrize("known", [True, False])
def test_a_connection_is_quiet_from_its_beginning_on(rig: Rig, checks: Checks, *, known: bool) -> None:
    """Whether or not the kernel tells anything."""
    if not known:
        rig.info = rig.unacknowledged = None
    assert [checks.quiet() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert checks.is_exact == known


def test_the_kernel_knows_when_a_byte_was_received(checks: Checks) -> None:
    """However long ago the last check was."""
    checks.quiet()
    checks.transport.receive(b"x")
    assert [checks.quiet() for _ in range(3)] == [1, 2, 3]
    assert checks.is_exact


def test_a_byte_that_is_received_ends_the_quiet_where_the_kernel_does_not_tell(rig: Rig, checks: Checks) -> None:
    """The time begins anew with the check that finds it: nothing ends too early."""
    rig.info = rig.unacknowledged = None
    assert checks.quiet() == 1
    checks.transport.receive(b"x")
    assert [checks.quiet() for _ in range(3)] == [0, 1, 2]
    assert not checks.is_exact


def test_the_time_never_goes_back(checks: Checks) -> None:
    """The kernel counts in ticks, and says a little less than it could: what a check has found before may be later."""
    checks.quiet()
    checks.transport.receive(b"x")
    checks.worker.seen = checks.transport.moved + 0.01
    assert checks.quiet() == pytest.approx(0.99)


def test_a_byte_that_the_peer_takes_ends_the_quiet(rig: Rig, checks: Checks) -> None:
    """This holds also when the transport has written everything: the kernel holds megabytes for a slow reader."""
    rig.unacknowledged = 1000
    checks.transport.receive(b"x" * 1000)
    assert [checks.quiet() for _ in range(3)] == [0, 1, 2]
    assert not checks.is_exact
    rig.unacknowledged = 999
    assert [checks.quiet() for _ in range(3)] == [0, 1, 2]


def test_a_byte_that_the_kernel_takes_ends_the_quiet(checks: Checks) -> None:
    """One byte is enough."""
    checks.transport.window = 0
    checks.transport.receive(b"1234")
    assert [checks.quiet() for _ in range(3)] == [0, 1, 2]
    assert not checks.is_exact
    checks.transport.take(1)
    assert [checks.quiet() for _ in range(2)] == [0, 1]


def test_a_stall_after_a_long_quiet_begins_anew(rig: Rig, checks: Checks) -> None:
    """A client that sends more than the kernel takes has the whole write timeout from then on."""
    assert [checks.quiet() for _ in range(3)] == [1, 2, 3]
    checks.transport.window = 0
    rig.unacknowledged = 4
    checks.transport.receive(b"1234")
    assert [checks.quiet() for _ in range(3)] == [0, 1, 2]


def test_bytes_that_go_from_the_transport_to_the_kernel_are_still_held(rig: Rig, checks: Checks) -> None:
    """Only the sum counts: it gets smaller when the peer takes something."""
    checks.transport.window = 0
    checks.transport.receive(b"1234")
    rig.unacknowledged = 4
    assert [checks.quiet() for _ in range(3)] == [0, 1, 2]
    checks.transport.take(1)
    rig.unacknowledged = 5
    assert checks.quiet() == 3
    rig.unacknowledged = 4
    assert checks.quiet() == 0


def test_what_moves_between_two_checks_is_not_quiet(rig: Rig, checks: Checks) -> None:
    """A timeout never ends a connection too early: what the first check did not see counts from the second one."""
    checks.transport.receive(b"1234")
    rig.unacknowledged = 4
    assert checks.quiet() == 0
    rig.unacknowledged = 2
    assert [checks.quiet() for _ in range(2)] == [0, 1]


def test_a_kernel_that_says_nothing_holds_nothing(rig: Rig, checks: Checks) -> None:
    """What the transport holds still counts."""
    rig.info = rig.unacknowledged = None
    checks.transport.window = 0
    checks.transport.receive(b"1234")
    assert [checks.quiet() for _ in range(3)] == [0, 1, 2]
    checks.transport.take(1)
    assert [checks.quiet() for _ in range(2)] == [0, 1]
    checks.transport.take(3)
    assert [checks.quiet() for _ in range(3)] == [0, 1, 2]
