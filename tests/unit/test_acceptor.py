"""The accept loop: real listening sockets, a loop that does what it is told."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest

from echod import acceptor
from echod.acceptor import Acceptor, Rejections
from echod.listener import Listener, bind
from echod.pool import Pool
from tests.fakes import FakeLoop, Lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from echod.settings import WhenFull


class FailingSocket:
    """A listening socket whose accept fails as told, and then works."""

    def __init__(self, sock: socket.socket, errors: list[int]) -> None:
        self._sock = sock
        self.errors = errors

    def _accept(self) -> Any:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self._sock._accept()  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class House:
    """One listener and its pool."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.lines = Lines()
        self.listener = bind(["127.0.0.1"], 0, backlog=256, reuse_port=False)[0]
        self.pool = Pool(self.lines.log, size=3, lifecycle="all")
        self.clients: list[socket.socket] = []
        self.sock: Any = self.listener.sock

    def acceptor(self, when_full: WhenFull = "reject", errors: list[int] | None = None) -> Acceptor:
        if errors:
            self.sock = FailingSocket(self.listener.sock, errors)
        made = Acceptor(
            self.loop.asyncio,
            self.lines.log,
            Listener(cast("socket.socket", self.sock), self.listener.url),
            self.pool,
            Rejections(self.loop.asyncio, self.lines.log),
            when_full=when_full,
        )
        self.pool.when_free = made.resume
        made.resume()
        return made

    def connect(self) -> socket.socket:
        """Return a client whose handshake is done."""
        client = socket.create_connection(self.listener.sock.getsockname(), timeout=5)
        self.clients.append(client)
        return client

    def readable(self) -> None:
        """Let the loop find the listener readable, and do what follows."""
        self.loop.readers[self.sock]()
        self.loop.run()

    @property
    def reading(self) -> bool:
        return self.sock in self.loop.readers


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.pool.when_free = None
    for transport in house.loop.transports:
        transport.abort()
    house.loop.run()
    for sock in (*house.clients, house.listener.sock):
        sock.close()


def test_connections_get_workers(house: House) -> None:
    """Each its own, and the transport is made."""
    house.acceptor()
    clients = [house.connect(), house.connect()]
    house.readable()
    assert len(house.pool.in_use) == 2
    assert [worker.client for worker in house.pool.in_use.values()] == [sock.getsockname() for sock in clients]
    assert all(transport.was_made for transport in house.loop.transports)
    assert house.reading


def test_a_batch_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on with open connections between two batches."""
    monkeypatch.setattr(acceptor, "BATCH", 2)
    house.acceptor()
    for _ in range(3):
        house.connect()
    house.readable()
    assert len(house.pool.in_use) == 2
    house.readable()
    assert len(house.pool.in_use) == 3


def test_reject_closes_without_a_byte(house: House) -> None:
    """EOF, no reset, also for a client that has sent already."""
    house.acceptor("reject")
    clients = [house.connect() for _ in range(5)]
    clients[4].sendall(b"too early")
    house.readable()
    assert [client.recv(1) for client in clients[3:]] == [b"", b""]
    assert house.reading
    assert len(house.lines.events("connection.rejected")) == 2
    rejected = house.lines.events("connection.rejected")[0]
    address, port = clients[3].getsockname()
    assert rejected == {
        "level": "warning",
        "event": "connection.rejected",
        "client": {"address": address, "port": port},
        "listener": house.listener.url,
        "reason": "pool_full",
    }


def test_a_rejected_client_that_has_gone_is_no_error(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket can't be shut down any more."""

    def gone(*_: object) -> None:
        raise OSError(errno.ENOTCONN, "not connected")

    house.acceptor("reject")
    for _ in range(4):
        house.connect()
    monkeypatch.setattr(socket.socket, "shutdown", gone)
    house.readable()
    assert len(house.lines.events("connection.rejected")) == 1


def test_wait_accepts_nothing_while_no_worker_is_free(house: House) -> None:
    """The kernel's backlog queues, and a worker that comes back is used."""
    house.acceptor("wait")
    for _ in range(4):
        house.connect()
    house.readable()
    assert len(house.pool.in_use) == 3
    assert not house.reading
    house.loop.transports[0].receive_eof()
    house.loop.run()
    assert house.reading
    house.readable()
    assert sorted(house.pool.in_use) == [2, 3, 4]
    assert house.lines.events("connection.rejected") == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_accepting_pauses_and_resumes(house: House, number: int) -> None:
    """One line at the beginning and one at the end, and no spinning between."""
    house.acceptor(errors=[number] * 3)
    house.connect()
    for _ in range(3):
        assert house.reading
        house.readable()
        assert not house.reading
        house.loop.advance(acceptor.PAUSE)
    house.readable()
    assert len(house.pool.in_use) == 1
    common = {"listener": house.listener.url, "reason": errno.errorcode[number]}
    assert house.lines.lines[0] == {"level": "warning", "event": "accept.paused", "seconds": 0.1, **common}
    assert house.lines.lines[1] == {"level": "info", "event": "accept.resumed", "seconds": 0.3, **common}
    assert len(house.lines.lines) == 3


def test_a_worker_that_comes_back_does_not_end_the_pause(house: House) -> None:
    """Else a busy pool would spin on the error."""
    made = house.acceptor(errors=[errno.EMFILE])
    house.connect()
    house.readable()
    made.resume()
    assert not house.reading


@pytest.mark.parametrize("number", sorted(acceptor._GONE))
def test_a_connection_that_failed_before_accept_is_passed_over(house: House, number: int) -> None:
    """It was one client's, and says nothing about the next."""
    house.acceptor(errors=[number])
    house.connect()
    house.readable()
    assert len(house.pool.in_use) == 1
    assert house.lines.names() == ["connection.opened"]


def test_an_error_that_never_ends_pauses_whatever_it_is(house: House) -> None:
    """Passed over without end, it would keep the loop busy with nothing else."""
    house.acceptor(errors=[errno.EPERM] * acceptor.BATCH)
    house.connect()
    house.readable()
    assert not house.reading
    house.loop.advance(acceptor.PAUSE)
    house.readable()
    assert house.lines.names() == ["accept.paused", "accept.resumed", "connection.opened"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOMEM, "no memory"), RuntimeError("a bug"), MemoryError()])
@pytest.mark.parametrize("step", ["fail_to_attach", "fail_to_open"])
def test_a_connection_that_gets_no_transport_costs_nothing(house: House, step: str, failure: Exception) -> None:
    """Not the worker, not the descriptor, not the listener."""
    house.acceptor()
    client = house.connect()
    setattr(house.loop, step, failure)
    house.readable()
    assert client.recv(1) == b""
    assert (house.pool.free, house.pool.in_use) == (3, {})
    assert house.reading
    assert house.lines.names() == ["connection.opened", "connection.closed"]
    assert house.lines.lines[1]["reason"] == "error"


def test_close_takes_what_is_in_the_backlog(house: House) -> None:
    """These clients are connected, and may have sent; only then the listener goes."""
    made = house.acceptor()
    for _ in range(2):
        house.connect()
    made.close()
    house.loop.run()
    assert len(house.pool.in_use) == 2
    assert not house.loop.readers
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(house.listener.url.rpartition(":")[2])), timeout=5)


def test_close_takes_no_more_than_there_are_workers(house: House) -> None:
    """The pool is the bound, also at the end."""
    made = house.acceptor("wait")
    for _ in range(5):
        house.connect()
    made.close()
    house.loop.run()
    assert len(house.pool.in_use) == 3


@pytest.mark.parametrize("errors", [[errno.EMFILE], [errno.EMFILE, errno.EMFILE]])
def test_close_during_a_pause_leaves_no_timer(house: House, errors: list[int]) -> None:
    """It would wake up on a closed socket."""
    made = house.acceptor(errors=errors)
    house.connect()
    house.readable()
    made.close()
    assert house.loop.timers == 0


class Refused:
    """Rejections with a log and a clock."""

    def __init__(self) -> None:
        self.loop, self.lines = FakeLoop(), Lines()
        self.rejections = Rejections(self.loop.asyncio, self.lines.log)

    def refuse(self, number: int) -> None:
        for _ in range(number):
            self.rejections.log(("192.0.2.1", 1), "tcp://192.0.2.2:7", "pool_full")

    @property
    def suppressed(self) -> list[int]:
        """What each line says of those before it that had none."""
        return [line.get("suppressed", 0) for line in self.lines.events("connection.rejected")]


def test_rejections_are_limited_to_ten_a_second() -> None:
    """In any second; lines and suppressed ones add up, also when nobody is refused after that."""
    refused = Refused()
    refused.refuse(9)
    refused.loop.advance(0.5)
    refused.refuse(16)
    refused.loop.advance(0.5)
    assert refused.suppressed == [0] * 10
    refused.loop.advance(0.1)
    assert refused.suppressed == [0] * 10 + [14]
    refused.refuse(10)
    assert len(refused.suppressed) == 19
    refused.loop.advance(10)
    assert refused.suppressed == [0] * 10 + [14] + [0] * 8 + [1]


def test_the_next_line_says_how_many_had_none() -> None:
    """Also if it comes before the timer, and then the timer says nothing."""
    refused = Refused()
    refused.refuse(12)
    refused.loop.now += 1.1  # as a busy loop sees it: the time is over, the timer not yet run
    refused.refuse(1)
    refused.loop.advance(10)
    assert refused.suppressed == [0] * 10 + [2]


def test_a_flush_says_what_is_left_to_say() -> None:
    """At the end of the daemon's life, or for nothing."""
    refused = Refused()
    refused.rejections.flush()
    assert refused.suppressed == []
    refused.refuse(13)
    refused.rejections.flush()
    assert refused.suppressed == [0] * 10 + [2]
    assert refused.loop.timers == 0
