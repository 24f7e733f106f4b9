"""The worker against a transport that fails on any misuse."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, cast

import pytest

from echod.server import kernel
from echod.server.worker import Worker
from tests.support.fakes import FakeListener, FakeLoop, FakeTransport, sockets

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Iterator


class Seat:
    """A worker with a connection, and what became of it."""

    def __init__(self, sock: socket.socket) -> None:
        self.loop = FakeLoop()
        self.lost: list[Exception | None] = []
        self.worker = Worker(lambda _, exc: self.lost.append(exc))
        self.worker.take(sock, ("192.0.2.9", 4711), FakeListener(), 1, self.loop.time())
        self.transport = FakeTransport(self.loop, self.worker, sock)


@pytest.fixture
def unmade() -> Iterator[Seat]:
    """A connection that is accepted and not yet made."""
    ours, theirs = sockets()
    with ours, theirs:
        yield Seat(ours)


@pytest.fixture
def seat(unmade: Seat) -> Seat:
    """A connection that is open."""
    unmade.transport.made()
    return unmade


def test_everything_is_written_back(seat: Seat) -> None:
    """The echo is what came in, in order, and is counted."""
    chunks = [random.randbytes(size) for size in (1, 2, 4096, 262144)]
    for chunk in chunks:
        seat.transport.receive(chunk)
    assert seat.transport.taken == b"".join(chunks)
    assert seat.worker.received == sum(map(len, chunks))
    assert seat.worker.pending() == 0


def test_every_write_is_tried_at_once(seat: Seat) -> None:
    """The high-water mark is 0, on which the flow control rests."""
    assert seat.transport.high_water == 0


def test_reading_pauses_while_output_is_pending(seat: Seat) -> None:
    """A peer that does not read stops being read from, until all of its echo is out."""
    seat.transport.window = 3
    seat.transport.receive(b"12345")
    assert not seat.transport.reading
    assert seat.worker.paused
    assert seat.worker.pending() == 2
    seat.transport.take(1)
    assert not seat.transport.reading
    seat.transport.take(1)
    assert seat.transport.reading
    assert not seat.worker.paused
    assert seat.transport.taken == b"12345"


def test_eof_closes_the_connection_without_an_error(seat: Seat) -> None:
    """EOF is the normal end."""
    seat.transport.receive(b"last words")
    seat.transport.receive_eof()
    seat.loop.run()
    assert seat.lost == [None]


def test_a_reset_is_passed_on(seat: Seat) -> None:
    """Who releases the worker learns what ended the connection."""
    error = ConnectionResetError()
    seat.transport.fail(error)
    seat.loop.run()
    assert seat.lost == [error]


def test_a_worker_serves_one_connection_after_another(seat: Seat) -> None:
    """Nothing of a connection is left for the next one."""
    seat.transport.window = 0
    seat.transport.receive(b"never read")
    seat.worker.abort("killed")
    seat.loop.run()
    seat.worker.leave()
    ours, theirs = sockets()
    with ours, theirs:
        seat.worker.take(ours, ("192.0.2.10", 1), FakeListener(), 2, 0.0)
        assert (seat.worker.received, seat.worker.pending()) == (0, 0)
        assert not seat.worker.paused
        assert seat.worker.reason is None
        transport = FakeTransport(seat.loop, seat.worker, ours)
        transport.made()
        transport.receive(b"again")
        assert transport.taken == b"again"


def test_abort_ends_at_once_and_keeps_the_first_reason(seat: Seat) -> None:
    """What is decided first is what is logged."""
    seat.worker.abort("idle_timeout")
    seat.worker.abort("drained")
    seat.loop.run()
    assert seat.lost == [None]
    assert seat.worker.reason == "idle_timeout"


@pytest.mark.parametrize(("how", "resets"), [({}, 0), ({"reset": False}, 0), ({"reset": True}, 1)])
def test_abort_resets_only_when_asked(
    seat: Seat, monkeypatch: pytest.MonkeyPatch, how: dict[str, bool], resets: int
) -> None:
    """RST is for peers that would keep the kernel's memory."""
    asked: list[socket.socket] = []
    monkeypatch.setattr(kernel, "reset_on_close", asked.append)
    seat.worker.abort("write_timeout", **how)
    assert asked == [seat.worker.sock] * resets


def test_a_connection_ended_before_it_is_made_is_closed_then(unmade: Seat) -> None:
    """Between accept and connection_made there is no transport to close."""
    unmade.worker.abort("drained")
    assert unmade.worker.pending() == 0
    unmade.transport.made()
    unmade.loop.run()
    assert unmade.lost == [None]
    assert not unmade.transport.reading


def test_a_failure_in_connection_made_loses_no_descriptor(unmade: Seat) -> None:
    """Left alone, uvloop would keep the connection open for ever."""
    unmade.transport.fail_limits = RuntimeError("no")
    with pytest.raises(RuntimeError):
        unmade.worker.connection_made(cast("asyncio.Transport", unmade.transport))
    unmade.loop.run()
    assert unmade.lost == [None]
    assert unmade.worker.reason == "error"


def test_a_worker_has_room_for_what_it_knows_and_nothing_else(seat: Seat) -> None:
    """A dictionary each would be slower on the hot path, and memory times the size of the pool."""
    assert not hasattr(seat.worker, "__dict__")


class Looks:
    """Looks at a worker once a second, with a kernel whose queue is a number."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worker = worker
        self.now = 0.0
        self.unacknowledged = 0
        self.asked = 0
        monkeypatch.setattr(kernel, "unacknowledged", self._ask)

    def _ask(self, _: object) -> int:
        self.asked += 1
        return self.unacknowledged

    def quiet(self) -> float:
        self.now += 1
        return self.worker.quiet_for(self.now)


@pytest.fixture
def looks(seat: Seat, monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(seat.worker, monkeypatch)


def test_a_connection_is_quiet_from_the_first_look_on(looks: Looks) -> None:
    """And the kernel is asked once whether anything is under way, not at each look."""
    assert [looks.quiet() for _ in range(5)] == [0, 0, 1, 2, 3]
    assert looks.asked == 1


def test_a_byte_that_comes_in_ends_the_quiet(seat: Seat, looks: Looks) -> None:
    """However long it was."""
    assert [looks.quiet() for _ in range(3)] == [0, 0, 1]
    seat.transport.receive(b"x")
    assert [looks.quiet() for _ in range(3)] == [0, 0, 1]


def test_a_byte_that_the_peer_takes_ends_the_quiet(seat: Seat, looks: Looks) -> None:
    """Also when all that came in has gone out: the kernel holds megabytes for a slow reader."""
    looks.unacknowledged = 1000
    seat.transport.receive(b"x" * 1000)
    assert [looks.quiet() for _ in range(3)] == [0, 0, 1]
    looks.unacknowledged = 999
    assert [looks.quiet() for _ in range(3)] == [0, 1, 2]


def test_a_byte_that_the_kernel_takes_ends_the_quiet(seat: Seat, looks: Looks) -> None:
    """A stalled connection moves on with the least of them."""
    seat.transport.window = 0
    seat.transport.receive(b"1234")
    assert [looks.quiet() for _ in range(3)] == [0, 0, 1]
    seat.transport.take(1)
    assert [looks.quiet() for _ in range(2)] == [0, 1]


def test_a_stall_after_a_long_quiet_begins_anew(seat: Seat, looks: Looks) -> None:
    """Who comes back with more than the kernel takes has the whole write timeout."""
    assert [looks.quiet() for _ in range(3)] == [0, 0, 1]
    seat.transport.window = 0
    looks.unacknowledged = 4
    seat.transport.receive(b"1234")
    assert [looks.quiet() for _ in range(3)] == [0, 0, 1]


def test_what_the_transport_hands_to_the_kernel_is_still_held(seat: Seat, looks: Looks) -> None:
    """Both together are what the peer has not taken: only that it gets less is a move."""
    seat.transport.window = 0
    seat.transport.receive(b"1234")
    looks.unacknowledged = 4
    assert [looks.quiet() for _ in range(3)] == [0, 0, 1]
    seat.transport.take(1)
    looks.unacknowledged = 5
    assert looks.quiet() == 2
    looks.unacknowledged = 4
    assert looks.quiet() == 0


def test_what_moves_between_two_looks_is_not_quiet(seat: Seat, looks: Looks) -> None:
    """A timeout never strikes before its time: what the first look did not see counts from the second."""
    seat.transport.receive(b"1234")
    looks.unacknowledged = 4
    assert looks.quiet() == 0
    looks.unacknowledged = 2
    assert [looks.quiet() for _ in range(2)] == [0, 1]


def test_a_reset_that_can_not_be_set_is_a_plain_end(seat: Seat, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ends all the same."""

    def fail(_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(kernel, "reset_on_close", fail)
    seat.worker.abort("write_timeout", reset=True)
    seat.loop.run()
    assert seat.lost == [None]
