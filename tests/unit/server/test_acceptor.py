"""The accept loop: real listening sockets, a loop that does what it is told."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from contextlib import closing
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any, cast

import pytest

from echod.server import acceptor, kernel
from echod.server.acceptor import Acceptor
from echod.server.access import Access, Ranges, Rules
from echod.server.pool import Pool
from echod.server.rejections import Rejections
from echod.server.tcp import bind
from tests.support.fakes import FakeLoop, Lines

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_RULES = Rules(None, None, 0, None)
LOCAL = Ranges([IPv4Network("127.0.0.0/8")])


ONE_CLIENTS_OWN = (
    *(errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN),  # accept(2), "Error handling": try again
    *(errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
    *(errno.ECONNABORTED, errno.EPERM, errno.ETIMEDOUT),  # "Errors"; EPERM is a firewall's
)


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

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.loop = FakeLoop()
        self.lines = Lines()
        self.listener = bind([host], 0, backlog=256, reuse_port=False)[0]
        self.pool = Pool(self.lines.log, size=3, lifecycle="all")
        self.rejections = Rejections(self.loop.asyncio, self.lines.log)
        self.clients: list[socket.socket] = []
        self.sock: Any = self.listener.sock
        self.done: list[Acceptor] = []

    def acceptor(self, *, waits: bool = False, errors: list[int] | None = None, rules: Rules = NO_RULES) -> Acceptor:
        if errors:
            self.sock = FailingSocket(self.listener.sock, errors)
        made = Acceptor(
            self.loop.asyncio,
            self.lines.log,
            self.listener._replace(sock=cast("socket.socket", self.sock)),
            self.pool,
            access=Access(self.loop.asyncio, self.pool.sources, rules),
            rejections=self.rejections,
            waits=waits,
        )
        self.pool.when_free = made.resume
        made.resume()
        return made

    def connect(self) -> socket.socket:
        """Return a client whose handshake is done."""
        client = socket.create_connection(("127.0.0.1", self.listener.port), timeout=5)
        self.clients.append(client)
        return client

    def readable(self) -> None:
        """Let the loop find the listener readable, and do what follows."""
        self.loop.readers[self.sock]()
        self.loop.run()

    def finish(self) -> None:
        """Let the oldest connection end."""
        self.loop.transports.pop(0).receive_eof()
        self.loop.run()

    @property
    def reading(self) -> bool:
        return self.sock in self.loop.readers

    @property
    def listening(self) -> bool:
        return self.listener.sock.fileno() >= 0

    def close(self) -> None:
        self.pool.when_free = None
        for transport in self.loop.transports:
            transport.abort()
        self.loop.run()
        for sock in (*self.clients, self.listener.sock):
            sock.close()


@pytest.fixture
def house() -> Iterator[House]:
    with closing(House()) as house:
        yield house


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
    house.acceptor()
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

    house.acceptor()
    for _ in range(4):
        house.connect()
    monkeypatch.setattr(socket.socket, "shutdown", gone)
    house.readable()
    assert len(house.lines.events("connection.rejected")) == 1


def test_wait_accepts_nothing_while_no_worker_is_free(house: House) -> None:
    """The kernel's backlog queues, and a worker that comes back is used."""
    house.acceptor(waits=True)
    for _ in range(4):
        house.connect()
    house.readable()
    assert len(house.pool.in_use) == 3
    assert not house.reading
    house.finish()
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
    house.loop.now += 4e-7  # too little for the log
    house.readable()
    assert len(house.pool.in_use) == 1
    common = {"listener": house.listener.url, "reason": errno.errorcode[number]}
    assert house.lines.lines[0] == {"level": "warning", "event": "accept.paused", "seconds": 0.1, **common}
    assert house.lines.lines[1] == {"level": "info", "event": "accept.resumed", "seconds": 0.3, **common}
    assert len(house.lines.lines) == 3


def test_each_lack_of_descriptors_has_its_lines(house: House) -> None:
    """It is another one when somebody has come in between."""
    errors = [errno.EMFILE]
    house.acceptor(errors=errors)
    for reason in (errno.ENFILE, errno.EMFILE):
        house.connect()
        house.readable()
        house.loop.advance(acceptor.PAUSE)
        house.readable()
        errors.append(reason)
    lines = house.lines.events("accept.paused")
    assert [line["reason"] for line in lines] == ["EMFILE", "ENFILE"]
    assert [line["reason"] for line in house.lines.events("accept.resumed")] == ["EMFILE", "ENFILE"]


def test_a_worker_that_comes_back_does_not_end_the_pause(house: House) -> None:
    """Else a busy pool would spin on the error."""
    made = house.acceptor(errors=[errno.EMFILE])
    house.connect()
    house.readable()
    made.resume()
    assert not house.reading


@pytest.mark.parametrize("number", ONE_CLIENTS_OWN)
def test_a_connection_that_failed_before_accept_is_passed_over(house: House, number: int) -> None:
    """It was one client's, and says nothing about the next."""
    house.acceptor(errors=[number])
    house.connect()
    house.readable()
    assert len(house.pool.in_use) == 1
    assert house.lines.names() == ["connection.opened"]


def test_errors_of_a_whole_batch_but_one_are_passed_over(house: House) -> None:
    """Each time anew: whoever comes in between shows that it does not go on for ever."""
    errors = [errno.EPERM] * (acceptor.BATCH - 1)
    house.acceptor(errors=errors)
    for left in (errors.copy(), errors.copy(), []):
        house.connect()
        house.readable()
        errors += left
    assert len(house.pool.in_use) == 3
    assert house.lines.events("accept.paused") == []


def test_an_interrupted_accept_is_tried_again(house: House) -> None:
    """When the loop comes back to it: the listener is readable still, and nothing is wrong."""
    house.acceptor(errors=[errno.EINTR])
    house.connect()
    house.readable()
    assert (house.reading, house.lines.lines) == (True, [])
    house.readable()
    assert len(house.pool.in_use) == 1


def test_an_error_without_a_name_is_told_by_its_text(house: House) -> None:
    """The kernel may have some that Python does not know."""
    house.acceptor(errors=[4711])
    house.readable()
    assert house.lines.events("accept.paused")[0]["reason"] == str(OSError(4711, os.strerror(4711)))


def test_an_error_that_never_ends_pauses_whatever_it_is(house: House) -> None:
    """Passed over without end, it would keep the loop busy with nothing else."""
    house.acceptor(errors=[errno.EPERM] * (2 * acceptor.BATCH - 1))
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


@pytest.mark.parametrize("step", ["_family", "_access"])
def test_who_is_accepted_and_then_nothing_goes_on_does_not_wait(house: House, step: str) -> None:
    """No socket made of the descriptor, or no word on who it is: it is closed at once, and the next is served."""
    made = house.acceptor()
    before = getattr(made, step)
    client = house.connect()
    setattr(made, step, None)
    with pytest.raises((TypeError, AttributeError)):
        house.readable()
    assert client.recv(1) == b""
    setattr(made, step, before)
    house.connect()
    house.readable()
    assert house.lines.names() == ["connection.opened"]


def test_a_descriptor_that_uvloop_has_closed_is_no_error() -> None:
    """As it does when it fails late in making a transport."""
    sock = socket.socket()
    os.close(sock.fileno())
    acceptor._close(sock)
    assert sock.fileno() == -1


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
        house.connect()


def test_close_takes_no_more_than_there_are_workers(house: House) -> None:
    """The pool is the bound, also at the end; nobody is accepted to be turned away."""
    made = house.acceptor(waits=True)
    for _ in range(5):
        house.connect()
    made.close()
    house.loop.run()
    assert len(house.pool.in_use) == 3
    assert house.rejections.count == {}


def test_close_passes_over_who_may_not_come_in(house: House) -> None:
    """They take no worker from those behind them."""
    made = house.acceptor(rules=Rules(None, Ranges([IPv4Network("127.0.0.2/32")]), 0, None))
    for _ in range(3):
        house.clients.append(socket.create_connection(("127.0.0.1", house.listener.port), 5, ("127.0.0.2", 0)))
    house.connect()
    made.close()
    house.loop.run()
    assert len(house.pool.in_use) == 1


@pytest.mark.parametrize("errors", [[errno.EMFILE], [errno.EMFILE, errno.EMFILE]])
def test_close_during_a_pause_leaves_no_timer(house: House, errors: list[int]) -> None:
    """It would wake up on a closed socket."""
    made = house.acceptor(errors=errors)
    house.connect()
    house.readable()
    made.close()
    assert house.loop.timers == 0


@pytest.mark.parametrize(
    ("rules", "comes_in", "reason"),
    [
        (Rules(None, LOCAL, 0, None), 0, "denied"),
        (Rules(Ranges([IPv4Network("192.0.2.0/24")]), None, 0, None), 0, "denied"),
        (Rules(LOCAL, None, 2, None), 2, "per_source"),
        (Rules(LOCAL, None, 0, 1.0), 1, "accept_rate"),
    ],
)
def test_who_may_not_come_in_is_closed_without_a_byte(house: House, rules: Rules, comes_in: int, reason: str) -> None:
    """It costs no worker and no descriptor, and the log says why."""
    house.acceptor(rules=rules)
    clients = [house.connect() for _ in range(3)]
    clients[2].sendall(b"too early")
    house.readable()
    assert [client.recv(1) for client in clients[comes_in:]] == [b""] * (3 - comes_in)
    assert (len(house.pool.in_use), house.pool.accepted) == (comes_in, comes_in)
    rejected = house.lines.events("connection.rejected")
    assert [line["reason"] for line in rejected] == [reason] * (3 - comes_in)
    assert [line["client"]["port"] for line in rejected] == [client.getsockname()[1] for client in clients[comes_in:]]
    assert house.reading


def test_with_waits_the_rules_are_asked_when_a_worker_is_free(house: House) -> None:
    """Who waits in the backlog has not come in yet."""
    house.acceptor(waits=True, rules=Rules(None, None, 3, None))
    for _ in range(4):
        house.connect()
    house.readable()
    assert house.rejections.count == {}
    house.finish()
    house.readable()
    assert sorted(house.pool.in_use) == [2, 3, 4]
    assert house.rejections.count == {}


def test_an_ipv4_client_of_a_dual_stack_socket_is_one_of_ipv4() -> None:
    """For the rules, for the log, and for what is counted by source."""
    with closing(House("*")) as house:
        house.acceptor(rules=Rules(LOCAL, None, 1, None))
        client = house.connect()
        house.connect()
        house.readable()
        assert [worker.client for worker in house.pool.in_use.values()] == [client.getsockname()]
        assert house.pool.sources == {"127.0.0.1": 1}
        assert house.lines.events("connection.opened")[0]["client"]["address"] == "127.0.0.1"
        (rejected,) = house.lines.events("connection.rejected")
        assert (rejected["client"]["address"], rejected["reason"]) == ("127.0.0.1", "per_source")


def test_a_retired_one_that_nobody_waits_for_ends_at_once(house: House) -> None:
    """The port is free for others, and whoever retired it is told."""
    made = house.acceptor()
    assert not made.is_retired
    made.retire(house.done.append)
    assert house.done == [made]
    assert not house.listening
    assert not house.loop.readers


def test_a_retired_one_serves_who_waits_and_then_ends(house: House) -> None:
    """These clients are connected, and would get a reset."""
    made = house.acceptor()
    for _ in range(2):
        house.connect()
    made.retire(house.done.append)
    assert made.is_retired
    assert (house.done, house.reading) == ([], True)
    house.readable()
    assert len(house.pool.in_use) == 2
    assert house.done == [made]
    assert not house.listening
    assert not house.loop.readers


def test_a_retired_one_ends_although_the_last_client_failed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else would wake it, and the old port would stay."""
    made = house.acceptor()
    house.connect()
    made.retire(house.done.append)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(house.pool, "take", fail)
    with pytest.raises(MemoryError):
        house.readable()
    assert house.done == [made]


@pytest.mark.parametrize(("clients", "batches"), [(2, 1), (3, 2), (5, 3)])
def test_a_retired_one_goes_on_for_as_many_batches_as_it_takes(
    house: House, monkeypatch: pytest.MonkeyPatch, clients: int, batches: int
) -> None:
    """And not for one more."""
    monkeypatch.setattr(acceptor, "BATCH", 2)
    house.pool.resize(5, house.pool.make(2))
    made = house.acceptor()
    for _ in range(clients):
        house.connect()
    made.retire(house.done.append)
    for _ in range(batches):
        assert house.done == []
        house.readable()
    assert house.done == [made]
    assert len(house.pool.in_use) == clients


def test_a_retired_one_that_waits_stays_until_workers_are_free(house: House) -> None:
    """Whoever waited in its backlog before is served, not reset."""
    made = house.acceptor(waits=True)
    for _ in range(5):
        house.connect()
    house.readable()
    assert not house.reading
    made.retire(house.done.append)
    house.readable()
    assert (house.done, house.reading, len(house.pool.in_use)) == ([], False, 3)
    house.finish()
    house.readable()
    assert (house.done, house.reading, sorted(house.pool.in_use)) == ([], False, [2, 3, 4])
    house.finish()
    house.readable()
    assert house.done == [made]
    assert sorted(house.pool.in_use) == [3, 4, 5]
    assert not house.listening


def test_nobody_joins_the_queue_of_a_retired_one(house: House) -> None:
    """Else it would never end on a busy port; revived, it is open again."""
    made = house.acceptor(waits=True)
    for _ in range(house.pool.size):
        house.connect()
    house.readable()
    house.connect()
    made.retire(lambda _: None)
    with socket.socket() as late:
        late.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            late.connect(("127.0.0.1", house.listener.port))
        assert kernel.queued(house.listener.sock) == 1
    made.revive()
    house.connect()
    assert kernel.queued(house.listener.sock) == 2


def test_a_full_pool_does_not_keep_a_retired_one_that_nobody_waits_for(house: House) -> None:
    """There is nothing to wait for."""
    made = house.acceptor(waits=True)
    for _ in range(3):
        house.connect()
    house.readable()
    made.retire(house.done.append)
    assert house.done == [made]
    assert not house.listening


def test_a_retired_one_goes_on_after_a_pause(house: House) -> None:
    """Without descriptors for a moment, it keeps who waits for the moment after."""
    made = house.acceptor(errors=[errno.EMFILE, errno.EMFILE])
    house.connect()
    house.readable()
    made.retire(house.done.append)
    assert not house.reading
    house.loop.advance(acceptor.PAUSE)
    house.readable()
    assert (house.done, house.reading) == ([], False)
    house.loop.advance(acceptor.PAUSE)
    house.readable()
    assert house.done == [made]
    assert len(house.pool.in_use) == 1
    assert house.loop.timers == 0


def test_a_pause_does_not_keep_a_retired_one_that_nobody_waits_for(house: House) -> None:
    """And no timer wakes up on its closed socket."""
    made = house.acceptor(errors=[errno.EMFILE])
    house.readable()
    assert house.loop.timers == 1
    made.retire(house.done.append)
    assert house.done == [made]
    assert house.loop.timers == 0


def test_a_revived_one_is_as_before(house: House) -> None:
    """It serves who waited, and goes on."""
    made = house.acceptor()
    house.connect()
    made.retire(house.done.append)
    made.revive()
    assert not made.is_retired
    house.readable()
    assert house.done == []
    house.connect()
    house.readable()
    assert len(house.pool.in_use) == 2
    assert (house.listening, house.reading) == (True, True)


def test_a_retired_one_can_be_closed(house: House) -> None:
    """As any other: who waits is served as far as there are workers, the rest is not waited for."""
    made = house.acceptor(waits=True)
    for _ in range(5):
        house.connect()
    house.readable()
    made.retire(house.done.append)
    house.pool.when_free = None
    house.finish()
    made.close()
    house.loop.run()
    assert sorted(house.pool.in_use) == [2, 3, 4]
    assert not house.listening
    assert not house.loop.readers
    assert house.done == []


def test_pauses_add_up(house: House) -> None:
    """One that has not ended does not count yet."""
    made = house.acceptor(errors=[errno.EMFILE] * 3)
    house.connect()
    for number in range(3):
        assert made.paused_seconds == pytest.approx(number * acceptor.PAUSE)
        house.readable()
        house.loop.advance(acceptor.PAUSE)
    house.readable()
    assert made.paused_seconds == pytest.approx(3 * acceptor.PAUSE)


def state(of: Acceptor) -> str:
    """Return its state, of which type checkers remember nothing."""
    return of.state


def test_the_state_is_what_becomes_of_who_comes_now(house: House) -> None:
    """Accepted, or not before a worker is free, or not before the system has what it takes."""
    made = house.acceptor(waits=True, errors=[errno.EMFILE])
    assert state(made) == "accepting"
    for _ in range(3):
        house.connect()
    house.readable()
    assert state(made) == "paused"
    house.loop.advance(acceptor.PAUSE)
    assert state(made) == "accepting"
    house.readable()
    assert state(made) == "waiting"
    made.waits = False
    assert state(made) == "accepting"  # and closed at once
    made.waits = True
    house.finish()
    assert state(made) == "accepting"


def test_a_retired_one_is_no_other_whatever_it_does(house: House) -> None:
    """Nobody comes in there who has not come yet."""
    made = house.acceptor(waits=True, errors=[errno.EMFILE])
    for _ in range(4):
        house.connect()
    house.readable()
    made.retire(house.done.append)
    assert state(made) == "retired"
    house.loop.advance(acceptor.PAUSE)
    house.readable()
    assert state(made) == "retired"
    made.revive()
    assert state(made) == "waiting"
