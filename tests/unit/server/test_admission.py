"""Admission, with the turns of the loop one by one."""

from __future__ import annotations

import os
import select
import socket
from contextlib import closing
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import pytest

from echod import limits
from echod.networks import Ranges
from echod.server.access import Rules
from echod.server.admission import MOST, TURNS, Accepted, close
from echod.server.endpoint import Peer
from echod.server.tcp import Plain
from tests.support.fakes import sockets
from tests.support.rig import LISTENER, Rig, resize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.fakes import FakeTransport

ONE_EACH = Rules(None, None, 1, None)


class Door:
    """Admission of a rig with one worker."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.rules(Rules(None, None, 0, None))
        resize(self.rig.pool, 1)
        self.admission = self.rig.admission
        self._open = Plain(self.rig.parts).open
        self.clients: list[socket.socket] = []

    def rules(self, rules: Rules) -> None:
        self.rig.access.replace(rules)

    def come(self, address: str = "192.0.2.9") -> None:
        """Let a client be accepted; its port is its number."""
        ours, theirs = sockets()
        self.rig.sockets.append(theirs)
        self.clients.append(theirs)
        sock = Accepted(socket.AF_UNIX, socket.SOCK_STREAM, 0, ours.detach())
        try:
            self.admission.admit(sock, Peer(address, len(self.clients)), LISTENER, self._open)
        except BaseException:  # as the acceptor does
            close(sock)
            raise

    def turn(self, number: int = 1) -> None:
        for _ in range(number):
            self.rig.loop.turn()

    @property
    def transport(self) -> FakeTransport:
        """The transport that was made last."""
        return self.rig.loop.transports[-1]

    @property
    def served(self) -> list[int]:
        """Clients that have got a worker, in their order."""
        return [line["client"]["port"] for line in self.rig.lines.events("connection.opened")]

    @property
    def refused(self) -> list[int]:
        lines = self.rig.lines.events("connection.rejected")
        gone = [number for number, client in enumerate(self.clients, 1) if is_closed(client)]
        assert {line["client"]["port"] for line in lines} <= set(gone)
        return [line["client"]["port"] for line in lines]

    def close(self) -> None:
        self.admission.settle()
        self.rig.close()


def is_closed(client: socket.socket) -> bool:
    """Say whether the daemon's end of it is closed, and not only shut down."""
    poll = select.poll()
    poll.register(client, 0)
    return bool(poll.poll(0))


@pytest.fixture
def door() -> Iterator[Door]:
    with closing(Door()) as door:
        yield door


@pytest.mark.parametrize("rules", [Rules(None, None, 0, None), ONE_EACH], ids=["pool_full", "per_source"])
@pytest.mark.parametrize("turns", range(TURNS - 1))
def test_a_client_is_not_refused_if_the_end_of_another_makes_room(door: Door, rules: Rules, turns: int) -> None:
    """That end has arrived before it, and reaches its worker some turns of the loop later."""
    door.rules(rules)
    if rules.per_source:
        resize(door.rig.pool, 2)
    door.come()
    door.turn()
    door.come()
    door.turn(turns)
    assert door.served == [1]
    door.transport.receive_eof()
    door.turn(2)
    assert (door.served, door.refused) == ([1, 2], [])


@pytest.mark.parametrize("rules", [Rules(None, None, 0, None), ONE_EACH], ids=["pool_full", "per_source"])
def test_a_client_too_many_is_refused_after_some_turns(door: Door, rules: Rules) -> None:
    """No time has to pass for that; and the loop then comes to rest."""
    door.rules(rules)
    door.come()
    door.come()
    door.turn(TURNS - 1)
    assert (door.refused, is_closed(door.clients[1])) == ([], False)
    door.turn()
    assert door.refused == [2]
    assert door.rig.rejections.count == {"per_source" if rules.per_source else "pool_full": 1}
    assert not door.rig.loop._ready


def test_ends_that_are_read_late_are_waited_for(door: Door) -> None:
    """Such as those behind a queue of handshakes: they have arrived, and are not read yet."""
    door.admission.late = lambda _: 20
    door.come()
    door.turn()
    door.come()
    door.turn(TURNS + 18)
    door.transport.receive_eof()
    door.turn(2)
    assert (door.served, door.refused) == ([1, 2], [])


def test_with_workers_for_all_only_the_ends_of_its_own_source_are_waited_for(door: Door) -> None:
    """Otherwise a source over its limit would keep the room for connections on hold from all others, as long as handshakes are queued."""
    door.admission.late = lambda source: 0 if source == "192.0.2.1" else 20
    door.rules(ONE_EACH)
    resize(door.rig.pool, 9)
    for address in ("192.0.2.1", "192.0.2.2"):
        door.come(address)
        door.come(address)
    door.turn(TURNS)
    assert door.refused == [2]
    door.turn(20)
    assert door.refused == [2, 4]


def test_a_worker_that_is_free_for_another_client_does_not_count(door: Door) -> None:
    """The one behind it waits for the end of any connection."""
    door.admission.late = lambda source: 0 if source else 20
    door.come()
    door.turn()
    door.come()
    resize(door.rig.pool, 2)
    door.come()
    door.turn(TURNS + 18)
    assert (door.served, door.refused) == ([1, 2], [])
    door.rig.loop.transports[0].receive_eof()
    door.turn(2)
    assert (door.served, door.refused) == ([1, 2, 3], [])


def test_clients_that_have_ended_already_get_the_only_worker_one_after_the_other(door: Door) -> None:
    """Each that gets it makes room for the next one, which is held for as long as that takes."""
    for _ in range(20):
        door.come()
    while door.rig.loop._ready:
        transport = door.transport
        door.turn()
        if transport.was_made and transport.reading:
            door.turn(2)  # its data first, then its FIN
            transport.receive_eof()
    assert (door.served, door.refused) == (list(range(1, 21)), [])


def test_clients_are_judged_in_their_order(door: Door) -> None:
    """A client does not overtake one that is on hold, also if a worker is free."""
    door.rules(ONE_EACH)
    door.come()
    door.come()
    door.come("192.0.2.1")
    door.turn()
    door.transport.receive_eof()
    door.come("192.0.2.2")
    door.turn(2 * TURNS)
    assert (door.served, door.refused) == ([1, 2], [3, 4])
    assert {line["listener"] for line in door.rig.lines.events("connection.opened")} == {LISTENER}


def test_a_source_with_too_many_does_not_keep_others_waiting(door: Door) -> None:
    """Those behind it come in with the next turn."""
    resize(door.rig.pool, 3)
    door.rules(ONE_EACH)
    door.come()
    door.come()
    door.come("192.0.2.1")
    door.turn()
    assert (door.served, door.refused) == ([1, 3], [])
    door.turn(TURNS)
    assert door.refused == [2]


def test_a_client_whose_turn_is_renewed_is_still_refused(door: Door) -> None:
    """The turns are counted from the last one ahead of it that came in, and not from one behind it."""
    resize(door.rig.pool, 10)
    door.rules(ONE_EACH)
    door.come()
    door.come()
    for number in range(TURNS - 1):
        door.come(f"192.0.2.{number + 20}")
        door.turn()
    assert door.refused == []
    door.turn()
    assert door.refused == [2]


@pytest.mark.parametrize("reason", ["denied", "accept_rate"])
def test_a_client_that_no_end_would_let_in_is_refused_at_once(door: Door, reason: str) -> None:
    """Only workers and shares of a source come back."""
    resize(door.rig.pool, 3)
    denied = Ranges([IPv4Network("192.0.2.9")]) if reason == "denied" else None
    door.rules(Rules(None, denied, 0, 1.0))
    door.come()
    door.come()
    assert door.rig.rejections.count == {reason: 2 if denied else 1}
    assert door.rig.lines.events("connection.rejected")[0]["listener"] == LISTENER
    assert door.admission.held == 0


def test_a_client_on_hold_is_judged_by_the_rules_in_force(door: Door) -> None:
    """A reload may come between."""
    door.come()
    door.come()
    door.rules(Rules(None, Ranges([IPv4Network("192.0.2.9")]), 0, None))
    door.turn()
    assert door.rig.rejections.count == {"denied": 1}


def test_settle_judges_all_at_once(door: Door) -> None:
    """None stays; what is scheduled then finds nothing, and the next one on hold is judged as often as ever."""
    door.come()
    door.turn()
    door.come()
    door.come()
    resize(door.rig.pool, 2)
    door.admission.settle()
    assert (door.served, door.refused, door.admission.held) == ([1, 2], [3], 0)
    door.come()
    door.turn(TURNS - 1)
    assert door.refused == [3]
    door.turn()
    assert door.refused == [3, 4]


def test_there_is_room_for_a_number_of_clients(door: Door) -> None:
    """Their descriptors are in `limits.RESERVE`."""
    door.come()
    assert door.admission.room == MOST
    door.come()
    assert (door.admission.room, door.admission.held) == (MOST - 1, 1)


@pytest.mark.parametrize("step", ["_access", "_rejections"])
def test_a_client_on_hold_that_cannot_be_judged_is_closed(door: Door, step: str) -> None:
    """Those behind it are judged in the next turn."""
    door.come()
    door.come()
    door.turn(TURNS - 1)
    door.come()
    before = getattr(door.admission, step)
    setattr(door.admission, step, None)
    with pytest.raises(AttributeError):
        door.turn()
    setattr(door.admission, step, before)
    assert is_closed(door.clients[1])
    assert not is_closed(door.clients[2])
    door.turn(TURNS)
    assert door.refused == [3]


@pytest.mark.parametrize("holds", [False, True])
def test_a_client_that_cannot_be_watched_gets_no_worker(door: Door, *, holds: bool) -> None:
    """No timeout would ever end it."""

    def fail(_: object) -> None:
        raise MemoryError

    if holds:
        door.come()
        door.turn()
        door.come()
        door.transport.receive_eof()
        door.rig.watch = fail
        door.turn()
        with pytest.raises(MemoryError):
            door.turn()
        assert is_closed(door.clients[1])
    else:
        door.rig.watch = fail
        with pytest.raises(MemoryError):
            door.come()
    assert (door.rig.pool.free, door.rig.pool.in_use) == (1, {})
    (line,) = (line for line in door.rig.lines.events("connection.closed") if line["reason"] == "error")
    assert line["error"] == "MemoryError"


def test_judging_goes_on_although_it_could_not_be_scheduled(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """For lack of memory; the next client that comes brings it about."""
    door.come()
    door.turn(2)
    door.come()

    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(door.rig.loop, "call_soon", fail)
        with pytest.raises(MemoryError):
            door.turn()
    door.turn(TURNS)
    assert door.refused == []
    door.come()
    door.turn(TURNS)
    assert door.refused == [2, 3]


def test_a_client_that_has_gone_is_refused_all_the_same(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket can't be shut down any more."""

    def gone(*_: object) -> None:
        raise OSError("not connected")

    door.come()
    door.come()
    monkeypatch.setattr(Accepted, "shutdown", gone, raising=False)
    door.turn(TURNS)
    assert door.refused == [2]


def test_a_client_of_a_unix_socket_that_has_sent_and_is_refused_reads_eof(door: Door) -> None:
    """And not the reset that close(2) with unread input gives it."""
    door.come()
    door.come()
    door.clients[1].sendall(b"unread")
    door.turn(TURNS)
    assert door.refused == [2]
    assert door.clients[1].recv(1) == b""


def test_closing_an_accepted_socket_only_forgets_it() -> None:
    """uvloop has closed its descriptor by then, or does so later."""
    ours, theirs = sockets()
    with theirs:
        fd = ours.detach()
        sock = Accepted(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        sock.close()
        assert sock.fileno() == -1
        os.fstat(fd)
        os.close(fd)


def test_an_accepted_socket_is_closed_for_real_once() -> None:
    """Whether or not uvloop has closed its descriptor."""
    for closed_before in (False, True):
        ours, theirs = sockets()
        with theirs:
            sock = Accepted(socket.AF_UNIX, socket.SOCK_STREAM, 0, ours.detach())
            if closed_before:
                os.close(sock.fileno())
            close(sock)
            close(sock)
            assert (sock.fileno(), theirs.recv(1)) == (-1, b"")


def test_the_descriptors_of_clients_on_hold_are_reserved() -> None:
    """A process that may open as many as its pool needs can hold these besides."""
    assert limits.RESERVE >= MOST + 96
