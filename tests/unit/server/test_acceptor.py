"""The accept loop: real listening sockets, and a loop that does what it is told."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any, cast

import pytest

from echod.networks import Ranges
from echod.server import acceptor, kernel, tcp
from echod.server.access import Rules
from echod.server.admission import MOST, TURNS
from tests.support.fakes import has_ipv6
from tests.support.rig import endpoints, resize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from echod.server.acceptor import Acceptor
    from echod.server.endpoint import Listener
    from tests.support.rig import Rig

NO_RULES = Rules(None, None, 0, None)
LOCAL = Ranges([IPv4Network("127.0.0.0/8")])


OF_ONE_CONNECTION = (
    *(errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN),  # accept(2), "Error handling": try again
    *(errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
    *(errno.ECONNABORTED, errno.EPERM, errno.ETIMEDOUT),  # "Errors"; EPERM is a firewall's
)


class OddSocket:
    """A listening socket whose accept fails with these errors first, and whose kernel refuses these calls."""

    def __init__(self, sock: socket.socket, errors: list[int], refused: Sequence[str]) -> None:
        self._sock = sock
        self._errors = errors
        self._refused = refused

    def _accept(self) -> Any:
        if self._errors:
            number = self._errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self._sock._accept()  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return self._refuse if name in self._refused else getattr(self._sock, name)

    def _refuse(self, *_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")


def bind(rig: Rig, host: str = "127.0.0.1", *, backlog: int = 256) -> Listener:
    (listener,) = tcp.bind(endpoints(host), backlog=backlog, reuse_port=False)
    rig.sockets.append(listener.sock)
    return listener


@pytest.fixture
def listener(rig: Rig) -> Listener:
    return bind(rig)


def accept(
    rig: Rig,
    listener: Listener,
    *,
    waits: bool = False,
    errors: list[int] | None = None,
    refused: Sequence[str] = (),
    rules: Rules = NO_RULES,
) -> Acceptor:
    """Return an acceptor that accepts on this listener by these rules."""
    if errors or refused:
        odd = OddSocket(listener.sock, [] if errors is None else errors, refused)
        listener = listener._replace(sock=cast("socket.socket", odd))
    rig.access.replace(rules)
    made = tcp.acceptor(rig.parts, listener, waits=waits)
    rig.pool.when_free = made.resume
    made.resume()
    return made


def connect(rig: Rig, listener: Listener, number: int = 1) -> list[socket.socket]:
    """Return clients whose handshake is done."""
    return [rig.connect(listener.endpoint.port) for _ in range(number)]


def is_reading(rig: Rig) -> bool:
    return bool(rig.loop.readers)


def is_listening(listener: Listener) -> bool:
    return listener.sock.fileno() >= 0


def state(of: Acceptor) -> str:
    """Return its state, which type checkers would otherwise take for unchanged."""
    return of.state


# Accepting


def test_connections_get_workers(rig: Rig, listener: Listener) -> None:
    """Each gets its own worker, and a transport."""
    accept(rig, listener)
    clients = connect(rig, listener, 2)
    rig.turn()
    peers = [(worker.client.address, worker.client.port) for worker in rig.pool.in_use.values()]
    assert peers == [client.getsockname() for client in clients]
    assert [worker.listener for worker in rig.pool.in_use.values()] == [listener.url] * 2
    assert all(transport.was_made for transport in rig.loop.transports)
    assert is_reading(rig)


def test_an_accepted_socket_is_like_its_listener(rig: Rig, listener: Listener) -> None:
    """Family, type and protocol are the listener's; none of them is looked up for each connection."""
    accept(rig, listener)
    connect(rig, listener)
    rig.turn()
    sock = rig.pool.in_use[1].sock
    assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)


def test_a_batch_is_bounded(rig: Rig, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop serves open connections between two batches."""
    monkeypatch.setattr(acceptor, "BATCH", 2)
    accept(rig, listener)
    connect(rig, listener, 3)
    rig.turn()
    assert len(rig.pool.in_use) == 2
    rig.turn()
    assert len(rig.pool.in_use) == 3


def test_a_listener_leaves_room_for_connections_on_hold_to_others(rig: Rig) -> None:
    """A flood at one address, of a source that has its share already, does not keep out those of another address."""
    rules = Rules(None, None, 1, None)
    first, second = bind(rig), bind(rig)
    accept(rig, first, rules=rules)
    accept(rig, second, rules=rules)
    connect(rig, first)
    rig.turn()
    connect(rig, first, 3 * MOST)
    for _ in range(10):
        rig.accept()
    queued = kernel.queued(first.sock) or 0
    assert MOST - 1 <= rig.admission.held <= MOST
    assert queued == 3 * MOST - rig.admission.held
    rig.loop.run()
    connect(rig, second)
    for _ in range(3):
        rig.loop.readers[first.sock]()
    assert rig.admission.room >= 1
    rig.loop.readers[second.sock]()
    assert kernel.queued(second.sock) == 0


def test_a_listener_that_waits_accepts_no_more_than_can_be_served(rig: Rig, listener: Listener) -> None:
    """Each connection on hold may need one of the workers that are free."""
    accept(rig, listener, waits=True, rules=Rules(None, None, 1, None))
    connect(rig, listener, 6)
    (callback,) = rig.loop.readers.values()
    callback()
    assert (rig.pool.free, rig.admission.held) == (2, 2)
    assert kernel.queued(listener.sock) == 3


def test_close_judges_more_clients_than_can_be_on_hold(rig: Rig, listener: Listener) -> None:
    """Those that may come in are served, however many of a source that has its share are ahead of them."""
    made = accept(rig, listener, rules=Rules(None, None, 1, None))
    connect(rig, listener, MOST + 10)
    other = socket.create_connection(("127.0.0.1", listener.endpoint.port), 5, ("127.0.0.2", 0))
    rig.sockets.append(other)
    made.close()
    rig.loop.run()
    assert rig.pool.sources == {"127.0.0.1": 1, "127.0.0.2": 1}
    assert rig.rejections.count == {"per_source": MOST + 9}


def test_a_refused_client_is_closed_without_a_byte(rig: Rig, listener: Listener) -> None:
    """It reads EOF and not a reset, also if it has sent already."""
    accept(rig, listener)
    clients = connect(rig, listener, 5)
    clients[4].sendall(b"too early")
    rig.turn()
    assert [client.recv(1) for client in clients[3:]] == [b"", b""]
    assert is_reading(rig)
    assert len(rig.lines.events("connection.rejected")) == 2
    address, port = clients[3].getsockname()
    assert rig.lines.events("connection.rejected")[0] == {
        "level": "warning",
        "event": "connection.rejected",
        "client": {"address": address, "port": port},
        "listener": listener.url,
        "reason": "pool_full",
    }


def test_a_refused_client_that_has_gone_is_not_an_error(
    rig: Rig, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket can't be shut down any more."""

    def gone(*_: object) -> None:
        raise OSError(errno.ENOTCONN, "not connected")

    accept(rig, listener)
    connect(rig, listener, 4)
    monkeypatch.setattr(socket.socket, "shutdown", gone)
    rig.turn()
    assert len(rig.lines.events("connection.rejected")) == 1


def test_with_wait_nothing_is_accepted_while_no_worker_is_free(rig: Rig, listener: Listener) -> None:
    """Clients queue in the kernel's backlog, and a worker that comes back serves the next one.

    The listener is not looked at any more after some turns, in which a worker often comes back.
    """
    accept(rig, listener, waits=True)
    connect(rig, listener, 4)
    for _ in range(TURNS):
        rig.turn()
        assert len(rig.pool.in_use) == 3
        assert is_reading(rig)
    rig.turn()
    assert not is_reading(rig)
    rig.finish()
    assert is_reading(rig)
    rig.turn()
    assert sorted(rig.pool.in_use) == [2, 3, 4]
    assert rig.lines.events("connection.rejected") == []


# Errors of the system


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_accepting_pauses_and_resumes(rig: Rig, listener: Listener, number: int) -> None:
    """There is one line at the beginning and one at the end, and between them the loop does not spin."""
    accept(rig, listener, errors=[number] * 3)
    connect(rig, listener)
    for _ in range(3):
        assert is_reading(rig)
        rig.turn()
        assert not is_reading(rig)
        rig.loop.advance(acceptor.PAUSE)
    rig.loop.now += 4e-7  # too little for the log
    rig.turn()
    assert len(rig.pool.in_use) == 1
    common = {"listener": listener.url, "reason": errno.errorcode[number]}
    assert rig.lines.lines[0] == {"level": "warning", "event": "accept.paused", "seconds": 0.1, **common}
    assert rig.lines.lines[1] == {"level": "info", "event": "accept.resumed", "seconds": 0.3, **common}
    assert len(rig.lines.lines) == 3


def test_each_lack_of_descriptors_has_its_own_lines(rig: Rig, listener: Listener) -> None:
    """It is a new one if a client was accepted in between."""
    errors = [errno.EMFILE]
    accept(rig, listener, errors=errors)
    for reason in (errno.ENFILE, errno.EMFILE):
        connect(rig, listener)
        rig.turn()
        rig.loop.advance(acceptor.PAUSE)
        rig.turn()
        errors.append(reason)
    assert [line["reason"] for line in rig.lines.events("accept.paused")] == ["EMFILE", "ENFILE"]
    assert [line["reason"] for line in rig.lines.events("accept.resumed")] == ["EMFILE", "ENFILE"]


def test_a_worker_that_comes_back_does_not_end_the_pause(rig: Rig, listener: Listener) -> None:
    """Otherwise a busy pool would spin on the error."""
    made = accept(rig, listener, errors=[errno.EMFILE])
    connect(rig, listener)
    rig.turn()
    made.resume()
    assert not is_reading(rig)


@pytest.mark.parametrize("number", OF_ONE_CONNECTION)
def test_a_connection_that_failed_before_accept_is_skipped(rig: Rig, listener: Listener, number: int) -> None:
    """Its error says nothing about the next connection."""
    accept(rig, listener, errors=[number])
    connect(rig, listener)
    rig.turn()
    assert len(rig.pool.in_use) == 1
    assert rig.lines.names() == ["connection.opened"]


def test_one_error_less_than_a_batch_is_skipped(rig: Rig, listener: Listener) -> None:
    """The count begins anew with each client that is accepted."""
    errors = [errno.EPERM] * (acceptor.BATCH - 1)
    accept(rig, listener, errors=errors)
    for left in (errors.copy(), errors.copy(), []):
        connect(rig, listener)
        rig.turn()
        errors += left
    assert len(rig.pool.in_use) == 3
    assert rig.lines.events("accept.paused") == []


def test_an_interrupted_accept_is_tried_again(rig: Rig, listener: Listener) -> None:
    """The loop finds the listener still readable, and nothing is logged."""
    accept(rig, listener, errors=[errno.EINTR])
    connect(rig, listener)
    rig.turn()
    assert (is_reading(rig), rig.lines.lines) == (True, [])
    rig.turn()
    assert len(rig.pool.in_use) == 1


def test_an_error_without_a_name_is_logged_by_its_text(rig: Rig, listener: Listener) -> None:
    """The kernel may have errors that Python does not know."""
    accept(rig, listener, errors=[4711])
    rig.turn()
    assert rig.lines.events("accept.paused")[0]["reason"] == str(OSError(4711, os.strerror(4711)))


def test_an_error_that_does_not_end_pauses_whatever_it_is(rig: Rig, listener: Listener) -> None:
    """If it were skipped for ever, the loop would do nothing else."""
    accept(rig, listener, errors=[errno.EPERM] * (2 * acceptor.BATCH - 1))
    connect(rig, listener)
    rig.turn()
    assert not is_reading(rig)
    rig.loop.advance(acceptor.PAUSE)
    rig.turn()
    assert rig.lines.names() == ["accept.paused", "accept.resumed", "connection.opened"]


def test_pauses_add_up(rig: Rig, listener: Listener) -> None:
    """A pause counts when it has ended."""
    made = accept(rig, listener, errors=[errno.EMFILE] * 3)
    connect(rig, listener)
    for number in range(3):
        assert made.paused_seconds == pytest.approx(number * acceptor.PAUSE)
        rig.turn()
        rig.loop.advance(acceptor.PAUSE)
    rig.turn()
    assert made.paused_seconds == pytest.approx(3 * acceptor.PAUSE)


# Failures after accept


@pytest.mark.parametrize("failure", [OSError(errno.ENOMEM, "no memory"), RuntimeError("a bug"), MemoryError()])
@pytest.mark.parametrize("step", ["fail_to_attach", "fail_to_open"])
def test_a_connection_that_gets_no_transport_costs_nothing(
    rig: Rig, listener: Listener, step: str, failure: Exception
) -> None:
    """Worker and descriptor are free again, and the listener goes on."""
    accept(rig, listener)
    (client,) = connect(rig, listener)
    setattr(rig.loop, step, failure)
    rig.turn()
    assert client.recv(1) == b""
    assert (rig.pool.free, rig.pool.in_use) == (3, {})
    assert is_reading(rig)
    assert rig.lines.names() == ["connection.opened", "connection.closed"]
    assert rig.lines.lines[1]["reason"] == "error"


def test_a_connection_that_gets_no_transport_is_closed_also_if_it_cannot_be_logged(
    rig: Rig, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory the line may fail too; the client must not wait for nothing."""

    def fail(*_: object) -> None:
        raise MemoryError

    accept(rig, listener)
    (client,) = connect(rig, listener)
    rig.loop.fail_to_attach = MemoryError()
    monkeypatch.setattr(kernel, "info", fail)
    with pytest.raises(MemoryError):
        rig.turn()
    assert client.recv(1) == b""
    assert (rig.pool.free, rig.pool.in_use) == (3, {})


@pytest.mark.parametrize("step", ["_family", "_peer", "_open"])
def test_an_accepted_client_whose_admission_fails_is_closed_at_once(rig: Rig, listener: Listener, step: str) -> None:
    """Whichever step fails, its descriptor is closed, and the next client is served."""
    made = accept(rig, listener)
    before = getattr(made, step)
    (client,) = connect(rig, listener)
    setattr(made, step, None)
    with pytest.raises((TypeError, AttributeError)):
        rig.turn()
    assert client.recv(1) == b""
    setattr(made, step, before)
    connect(rig, listener)
    rig.turn()
    assert rig.lines.names()[-1] == "connection.opened"


# Rules


@pytest.mark.parametrize(
    ("rules", "comes_in", "reason"),
    [
        (Rules(None, LOCAL, 0, None), 0, "denied"),
        (Rules(Ranges([IPv4Network("192.0.2.0/24")]), None, 0, None), 0, "denied"),
        (Rules(LOCAL, None, 2, None), 2, "per_source"),
        (Rules(LOCAL, None, 0, 1.0), 1, "accept_rate"),
    ],
)
def test_a_client_that_the_rules_refuse_gets_no_worker(
    rig: Rig, listener: Listener, rules: Rules, comes_in: int, reason: str
) -> None:
    """It is closed without a byte, and the log says why."""
    accept(rig, listener, rules=rules)
    clients = connect(rig, listener, 3)
    clients[2].sendall(b"too early")
    rig.turn()
    assert [client.recv(1) for client in clients[comes_in:]] == [b""] * (3 - comes_in)
    assert (len(rig.pool.in_use), rig.pool.accepted) == (comes_in, comes_in)
    rejected = rig.lines.events("connection.rejected")
    assert [line["reason"] for line in rejected] == [reason] * (3 - comes_in)
    assert [line["client"]["port"] for line in rejected] == [client.getsockname()[1] for client in clients[comes_in:]]
    assert is_reading(rig)


def test_with_wait_the_rules_are_applied_when_a_worker_is_free(rig: Rig, listener: Listener) -> None:
    """A client in the backlog has not come in yet."""
    accept(rig, listener, waits=True, rules=Rules(None, None, 3, None))
    connect(rig, listener, 4)
    rig.turn()
    assert rig.rejections.count == {}
    rig.finish()
    rig.turn()
    assert sorted(rig.pool.in_use) == [2, 3, 4]
    assert rig.rejections.count == {}


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_an_ipv4_client_of_a_dual_stack_socket_has_its_ipv4_address(rig: Rig) -> None:
    """This holds for the rules, for the log, and for the connections of its source."""
    listener = bind(rig, "*")
    accept(rig, listener, rules=Rules(LOCAL, None, 1, None))
    client, _ = connect(rig, listener, 2)
    rig.turn()
    assert rig.pool.in_use[1].client.fields() == {"address": "127.0.0.1", "port": client.getsockname()[1]}
    assert rig.pool.sources == {"127.0.0.1": 1}
    assert rig.lines.events("connection.opened")[0]["client"]["address"] == "127.0.0.1"
    (rejected,) = rig.lines.events("connection.rejected")
    assert (rejected["client"]["address"], rejected["reason"]) == ("127.0.0.1", "per_source")


# Closing


def test_close_accepts_what_is_in_the_backlog(rig: Rig, listener: Listener) -> None:
    """These clients are connected, and may have sent. The listener is closed only after that."""
    made = accept(rig, listener)
    connect(rig, listener, 2)
    made.close()
    rig.loop.run()
    assert len(rig.pool.in_use) == 2
    assert not is_reading(rig)
    with pytest.raises(ConnectionRefusedError):
        connect(rig, listener)


def test_close_accepts_a_whole_backlog(rig: Rig) -> None:
    """The kernel holds one connection more than it was asked to."""
    listener = bind(rig, backlog=1)
    made = accept(rig, listener)
    connect(rig, listener, 2)
    made.close()
    rig.loop.run()
    assert len(rig.pool.in_use) == 2


def test_close_accepts_no_more_than_there_are_workers(rig: Rig, listener: Listener) -> None:
    """No client is accepted only to be refused."""
    made = accept(rig, listener, waits=True)
    connect(rig, listener, 5)
    made.close()
    rig.loop.run()
    assert len(rig.pool.in_use) == 3
    assert rig.rejections.count == {}


def test_close_skips_clients_that_may_not_come_in(rig: Rig, listener: Listener) -> None:
    """They take no worker from those behind them."""
    made = accept(rig, listener, rules=Rules(None, Ranges([IPv4Network("127.0.0.2/32")]), 0, None))
    for _ in range(3):
        denied = socket.create_connection(("127.0.0.1", listener.endpoint.port), 5, ("127.0.0.2", 0))
        rig.sockets.append(denied)
    connect(rig, listener)
    made.close()
    rig.loop.run()
    assert len(rig.pool.in_use) == 1


def connect_late(rig: Rig, listener: Listener) -> None:
    """Send a SYN, and do not wait for an answer."""
    late = socket.socket()
    rig.sockets.append(late)
    late.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        late.connect(("127.0.0.1", listener.endpoint.port))


def test_close_does_not_accept_a_client_that_connects_during_it(
    rig: Rig, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not join the queue, which is to come to its end."""
    take = rig.pool.take

    def take_while_one_connects(*arguments: Any) -> Any:
        if rig.pool.accepted == 0:
            connect_late(rig, listener)
        return take(*arguments)

    made = accept(rig, listener)
    connect(rig, listener, 2)
    monkeypatch.setattr(rig.pool, "take", take_while_one_connects)
    made.close()
    rig.loop.run()
    assert rig.pool.accepted == 2


def test_close_tries_no_more_often_than_the_backlog_is_long(rig: Rig) -> None:
    """It ends even where the kernel refuses to shorten the queue."""
    listener = bind(rig, backlog=1)
    errors = [errno.EPERM] * 10
    accept(rig, listener, errors=errors, refused=["listen"]).close()
    assert len(errors) == 8
    assert not is_listening(listener)


@pytest.mark.parametrize("errors", [[errno.EMFILE], [errno.EMFILE, errno.EMFILE]])
def test_close_during_a_pause_leaves_no_timer(rig: Rig, listener: Listener, errors: list[int]) -> None:
    """A timer would resume on a closed socket."""
    made = accept(rig, listener, errors=errors)
    connect(rig, listener)
    rig.turn()
    made.close()
    assert rig.loop.timers == 0


# Retiring


@pytest.fixture
def done() -> list[Acceptor]:
    """The retired acceptors that have ended."""
    return []


def test_a_retired_listener_without_waiting_clients_ends_at_once(
    rig: Rig, listener: Listener, done: list[Acceptor]
) -> None:
    """The port is free for others, and `done` is called."""
    made = accept(rig, listener)
    assert state(made) != "retired"
    made.retire(done.append)
    assert done == [made]
    assert not is_listening(listener)
    assert not is_reading(rig)


def test_a_retired_listener_serves_the_waiting_clients_and_then_ends(
    rig: Rig, listener: Listener, done: list[Acceptor]
) -> None:
    """These clients are connected, and would get a reset."""
    made = accept(rig, listener)
    connect(rig, listener, 2)
    made.retire(done.append)
    assert state(made) == "retired"
    assert (done, is_reading(rig)) == ([], True)
    rig.turn()
    assert len(rig.pool.in_use) == 2
    assert done == [made]
    assert not is_listening(listener)
    assert not is_reading(rig)


def test_a_retired_listener_ends_although_its_last_client_failed(
    rig: Rig, listener: Listener, done: list[Acceptor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else would wake it, and the old port would stay open."""
    made = accept(rig, listener)
    connect(rig, listener)
    made.retire(done.append)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(rig.pool, "take", fail)
    with pytest.raises(MemoryError):
        rig.turn()
    assert done == [made]


@pytest.mark.parametrize(("clients", "batches"), [(2, 1), (3, 2), (5, 3)])
def test_a_retired_listener_accepts_as_many_batches_as_it_takes(
    rig: Rig, listener: Listener, monkeypatch: pytest.MonkeyPatch, clients: int, batches: int
) -> None:
    """It ends with the last one, and needs no further turn of the loop."""
    done: list[Acceptor] = []
    monkeypatch.setattr(acceptor, "BATCH", 2)
    resize(rig.pool, 5)
    made = accept(rig, listener)
    connect(rig, listener, clients)
    made.retire(done.append)
    for _ in range(batches):
        assert done == []
        rig.turn()
    assert done == [made]
    assert len(rig.pool.in_use) == clients


def test_a_retired_listener_of_a_full_pool_stays_until_workers_are_free(
    rig: Rig, listener: Listener, done: list[Acceptor]
) -> None:
    """Clients that waited in its backlog before are served, not reset."""
    made = accept(rig, listener, waits=True)
    connect(rig, listener, 5)
    for _ in range(TURNS + 1):
        rig.turn()
    assert not is_reading(rig)
    made.retire(done.append)
    for _ in range(TURNS + 1):
        rig.turn()
    assert (done, is_reading(rig), len(rig.pool.in_use)) == ([], False, 3)
    rig.finish()
    for _ in range(TURNS + 1):
        rig.turn()
    assert (done, is_reading(rig), sorted(rig.pool.in_use)) == ([], False, [2, 3, 4])
    rig.finish()
    rig.turn()
    assert done == [made]
    assert sorted(rig.pool.in_use) == [3, 4, 5]
    assert not is_listening(listener)


def test_a_retired_listener_that_had_left_its_backlog_alone_looks_at_it_again(
    rig: Rig, listener: Listener, done: list[Acceptor]
) -> None:
    """The reload that retires it may have ended the wait, and then no free worker wakes it."""
    made = accept(rig, listener, waits=True)
    connect(rig, listener, 4)
    for _ in range(TURNS + 1):
        rig.turn()
    assert not is_reading(rig)
    made.waits = False
    made.retire(done.append)
    rig.turn()
    assert done == [made]
    assert rig.rejections.count == {"pool_full": 1}


def test_no_client_joins_the_queue_of_a_retired_listener(rig: Rig, listener: Listener) -> None:
    """Otherwise it would never end on a busy port. Revived, it takes clients again."""
    made = accept(rig, listener, waits=True)
    connect(rig, listener, 3)
    rig.turn()
    connect(rig, listener)
    made.retire(lambda _: None)
    connect_late(rig, listener)
    assert kernel.queued(listener.sock) == 1
    rig.sockets.pop().close()
    made.revive()
    connect(rig, listener)
    assert kernel.queued(listener.sock) == 2


def test_a_full_pool_does_not_keep_a_retired_listener_without_waiting_clients(
    rig: Rig, listener: Listener, done: list[Acceptor]
) -> None:
    """It has nothing to wait for."""
    made = accept(rig, listener, waits=True)
    connect(rig, listener, 3)
    rig.turn()
    made.retire(done.append)
    assert done == [made]
    assert not is_listening(listener)


def test_a_retired_listener_goes_on_after_a_pause(rig: Rig, listener: Listener, done: list[Acceptor]) -> None:
    """Clients that wait while there are no descriptors are served after that."""
    made = accept(rig, listener, errors=[errno.EMFILE, errno.EMFILE])
    connect(rig, listener)
    rig.turn()
    made.retire(done.append)
    assert not is_reading(rig)
    rig.loop.advance(acceptor.PAUSE)
    rig.turn()
    assert (done, is_reading(rig)) == ([], False)
    rig.loop.advance(acceptor.PAUSE)
    rig.turn()
    assert done == [made]
    assert len(rig.pool.in_use) == 1
    assert rig.loop.timers == 0


def test_a_pause_does_not_keep_a_retired_listener_without_waiting_clients(
    rig: Rig, listener: Listener, done: list[Acceptor]
) -> None:
    """No timer resumes on its closed socket."""
    made = accept(rig, listener, errors=[errno.EMFILE])
    rig.turn()
    assert rig.loop.timers == 1
    made.retire(done.append)
    assert done == [made]
    assert rig.loop.timers == 0


def test_a_revived_listener_is_as_before(rig: Rig, listener: Listener, done: list[Acceptor]) -> None:
    """It serves the clients that waited, and goes on."""
    made = accept(rig, listener)
    connect(rig, listener)
    made.retire(done.append)
    made.revive()
    assert state(made) != "retired"
    rig.turn()
    assert done == []
    connect(rig, listener)
    rig.turn()
    assert len(rig.pool.in_use) == 2
    assert (is_listening(listener), is_reading(rig)) == (True, True)


def test_reviving_a_listener_that_is_not_retired_changes_nothing(rig: Rig, listener: Listener) -> None:
    """Its backlog is not set again."""
    made = accept(rig, listener)
    listener.sock.listen(7)
    made.revive()
    assert kernel.backlog(listener.sock) == 7


def test_a_retired_listener_can_be_closed(rig: Rig, listener: Listener, done: list[Acceptor]) -> None:
    """As any other, it serves waiting clients as far as there are workers, and does not wait for more."""
    made = accept(rig, listener, waits=True)
    connect(rig, listener, 5)
    rig.turn()
    made.retire(done.append)
    rig.pool.when_free = None
    rig.finish()
    made.close()
    rig.loop.run()
    assert sorted(rig.pool.in_use) == [2, 3, 4]
    assert not is_listening(listener)
    assert not is_reading(rig)
    assert done == []


# A kernel that refuses what it may refuse


@pytest.mark.parametrize("refused", ["getsockopt", "listen"])
def test_retiring_serves_waiting_clients_on_any_kernel(
    rig: Rig, listener: Listener, done: list[Acceptor], refused: str
) -> None:
    """A refused TCP_INFO or listen(2) raises nothing: the reload that retires it has been accepted by then."""
    made = accept(rig, listener, refused=[refused])
    connect(rig, listener)
    made.retire(done.append)
    assert (state(made), done) == ("retired", [])
    rig.turn()
    assert (done, len(rig.pool.in_use)) == ([made], 1)
    assert not is_listening(listener)


@pytest.mark.parametrize("refused", ["getsockopt", "listen"])
def test_reviving_works_on_any_kernel(rig: Rig, listener: Listener, done: list[Acceptor], refused: str) -> None:
    """The listener goes on, whatever its backlog is then."""
    made = accept(rig, listener, refused=[refused])
    connect(rig, listener)
    made.retire(done.append)
    made.revive()
    rig.turn()
    assert (state(made), done, len(rig.pool.in_use)) == ("accepting", [], 1)
    assert (is_listening(listener), is_reading(rig)) == (True, True)


@pytest.mark.parametrize("refused", ["getsockopt", "listen"])
def test_closing_serves_waiting_clients_on_any_kernel(rig: Rig, listener: Listener, refused: str) -> None:
    """A refused TCP_INFO or listen(2) does not keep the daemon from its drain."""
    made = accept(rig, listener, refused=[refused])
    connect(rig, listener, 2)
    made.close()
    rig.loop.run()
    assert len(rig.pool.in_use) == 2
    assert not is_listening(listener)


# The state


def test_the_state_says_what_would_happen_to_a_client_that_connects_now(rig: Rig, listener: Listener) -> None:
    """It is accepted, or it waits for a worker, or for the end of a pause."""
    made = accept(rig, listener, waits=True, errors=[errno.EMFILE])
    assert state(made) == "accepting"
    connect(rig, listener, 3)
    rig.turn()
    assert state(made) == "paused"
    rig.loop.advance(acceptor.PAUSE)
    assert state(made) == "accepting"
    rig.turn()
    assert state(made) == "waiting"
    made.waits = False
    assert state(made) == "accepting"  # and closed at once
    made.waits = True
    rig.finish()
    assert state(made) == "accepting"


def test_a_retired_listener_is_retired_in_any_case(rig: Rig, listener: Listener) -> None:
    """It accepts no new client, whether or not it is paused or waits for a worker."""
    made = accept(rig, listener, waits=True, errors=[errno.EMFILE])
    connect(rig, listener, 4)
    rig.turn()
    made.retire(lambda _: None)
    assert state(made) == "retired"
    rig.loop.advance(acceptor.PAUSE)
    rig.turn()
    assert state(made) == "retired"
    made.revive()
    assert state(made) == "waiting"
