"""All listeners together: real listening sockets that come and go, a loop that does what it is told."""

from __future__ import annotations

import os
import select
import socket
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from echod.config.settings import Listen
from echod.errors import Refusal
from echod.server.access import Access, Rules
from echod.server.listeners import Frontend
from echod.server.pool import Pool
from echod.server.rejections import Rejections
from tests.support.fakes import FakeLoop, Lines, has_ipv6
from tests.support.harness import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from echod.config.settings import WhenFull
    from echod.server.acceptor import Acceptor

ONE, OTHER, THIRD = "127.0.0.1", "127.0.0.2", "127.0.0.3"

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


class House:
    """A frontend, a pool of two, and clients."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.lines = Lines()
        self.pool = Pool(self.lines.log, size=2, lifecycle="all")
        access = Access(self.loop.asyncio, self.pool.sources, Rules(None, None, 0, None))
        self.rejections = Rejections(self.loop.asyncio, self.lines.log)
        self.frontend = Frontend(self.loop.asyncio, self.lines.log, self.pool, access, self.rejections)
        self.sockets: list[socket.socket] = []

    def serve(self, host: str | Sequence[str] = ONE, port: int = 0, when_full: WhenFull = "reject") -> int:
        """Bind and serve, as a start and a reload do it; return the port of the first that is not retired."""
        listen = settings(host, port)
        bound = self.frontend.bind(listen)
        self.frontend.serve(listen, bound, when_full)
        return next(acceptor.listener.port for acceptor in self.acceptors if not acceptor.is_retired)

    @property
    def acceptors(self) -> list[Acceptor]:
        return list(self.frontend._acceptors)

    @property
    def urls(self) -> set[str]:
        """The names of all listeners, also of those that are retired."""
        return {acceptor.listener.url for acceptor in self.acceptors}

    @property
    def listening(self) -> set[Any]:
        return {acceptor.listener.sock for acceptor in self.acceptors}

    @property
    def reading(self) -> set[Any]:
        return set(self.loop.readers)

    def said(self) -> list[tuple[str, str]]:
        """Return what has been said of listeners since the last time."""
        said = [(line["event"], line["listener"]) for line in self.lines.lines if line["event"].startswith("listener.")]
        self.lines.lines.clear()
        return said

    def connect(self, port: int, host: str = ONE) -> socket.socket:
        """Return a client whose handshake is done."""
        client = socket.create_connection((host, port), timeout=5)
        self.sockets.append(client)
        return client

    def fill(self, port: int, host: str = ONE) -> None:
        for _ in range(self.pool.free):
            self.connect(port, host)
        self.readable()

    def readable(self) -> None:
        """Let the loop find listeners readable until none is, and do what follows."""
        while ready := [sock for sock in self.loop.readers if select.select([sock], [], [], 0)[0]]:
            self.loop.readers[ready[0]]()
            self.loop.run()

    def finish(self) -> None:
        """Let the oldest connection end."""
        self.loop.transports.pop(0).receive_eof()
        self.loop.run()

    def served(self) -> list[str]:
        """Return the listeners of the connections in use, oldest first."""
        return [worker.listener.url for worker in self.pool.in_use.values()]

    def reserve(self, hosts: Sequence[str] = (ONE,)) -> int:
        """Return a port that is free on these hosts, and that nobody else gets: bound, not listening."""
        port = free_port()
        for host in hosts:
            sock = socket.socket()
            self.sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
        return port

    def close(self) -> None:
        self.frontend.close()
        for transport in self.loop.transports:
            transport.abort()
        self.loop.run()
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def house() -> Iterator[House]:
    with closing(House()) as house:
        yield house


def settings(host: str | Sequence[str], port: int) -> Listen:
    return Listen.model_validate({"host": host, "port": port, "backlog": 16})


def url(host: str, port: int) -> str:
    return f"tcp://{host}:{port}"


def answers(port: int, host: str = ONE) -> bool:
    """Say whether somebody listens there; whoever does finds one more in its backlog."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


def shared(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def test_at_start_all_hosts_are_listened_on(house: House) -> None:
    """And their connections go to one pool."""
    port = house.serve([ONE, OTHER])
    assert house.lines.lines == [
        {"level": "info", "event": "listener.started", "listener": url(host, port), "backlog": 16}
        for host in (ONE, OTHER)
    ]
    house.connect(port, ONE)
    house.connect(port, OTHER)
    house.readable()
    assert sorted(house.served()) == [url(ONE, port), url(OTHER, port)]
    assert house.reading == house.listening


def test_nothing_is_accepted_or_said_before_it_serves(house: House) -> None:
    """Between the two, the rest of a reload takes place."""
    bound = house.frontend.bind(settings(ONE, 0))
    assert (house.reading, house.lines.lines) == (set(), [])
    assert answers(bound[0].port)
    house.frontend.serve(settings(ONE, 0), bound, "reject")
    house.readable()
    assert house.pool.accepted == 1


@pytest.mark.parametrize("named", [False, True])
def test_what_stays_is_left_alone(house: House, *, named: bool) -> None:
    """Whether its port is chosen by the kernel or named."""
    port = house.serve([ONE, OTHER])
    before = house.listening
    house.said()
    house.serve([OTHER, ONE], port if named else 0)
    assert house.listening == house.reading == before
    assert house.said() == []


@pytest.mark.parametrize("named", [False, True])
def test_a_host_that_is_added_gets_the_same_port(house: House, *, named: bool) -> None:
    """And the sockets of the others stay."""
    port = house.serve(ONE)
    before = house.listening
    house.said()
    assert house.serve([OTHER, ONE], port if named else 0) == port
    assert house.said() == [("listener.started", url(OTHER, port))]
    assert before < house.listening == house.reading
    house.connect(port, OTHER)
    house.readable()
    assert house.served() == [url(OTHER, port)]


def test_a_host_that_is_taken_out_is_closed(house: House) -> None:
    """The other one serves on."""
    port = house.serve([ONE, OTHER])
    house.said()
    house.serve(OTHER)
    assert house.said() == [("listener.stopped", url(ONE, port))]
    assert not answers(port, ONE)
    assert answers(port, OTHER)


def test_a_port_is_moved_without_a_moment_without_one(house: House) -> None:
    """The new one is bound before the old one is closed."""
    old = house.serve(ONE)
    new = house.reserve()
    house.said()
    bound = house.frontend.bind(settings(ONE, new))
    assert answers(old)
    assert answers(new)
    house.readable()
    house.frontend.serve(settings(ONE, new), bound, "reject")
    assert house.said() == [("listener.started", url(ONE, new)), ("listener.stopped", url(ONE, old))]
    assert not answers(old)
    assert house.reading == house.listening == {bound[0].sock}


def test_open_connections_survive_a_move(house: House) -> None:
    """They have come in; where, does not matter any more."""
    old = house.serve(ONE)
    client = house.connect(old)
    house.readable()
    house.serve(ONE, house.reserve())
    house.loop.transports[0].receive(b"still here")
    assert house.loop.transports[0].taken == b"still here"
    assert client.fileno() >= 0
    assert house.served() == [url(ONE, old)]


def test_who_is_in_the_backlog_of_a_port_that_moves_is_served(house: House) -> None:
    """It is connected, and would get a reset."""
    old = house.serve(ONE)
    house.connect(old)
    new = house.serve(ONE, house.reserve())
    assert house.urls == {url(ONE, old), url(ONE, new)}
    house.said()
    house.readable()
    assert house.said() == [("listener.stopped", url(ONE, old))]
    assert house.served() == [url(ONE, old)]
    assert house.urls == {url(ONE, new)}


def test_a_port_that_the_kernel_chose_stays_when_every_host_changes(house: House) -> None:
    """It is the daemon's port, and not that of an address."""
    port = house.serve()
    for hosts in (OTHER, (ONE, THIRD), OTHER):
        assert house.serve(hosts) == port


def test_from_a_named_port_to_any_the_kernel_chooses(house: House) -> None:
    """A named port is not one that it chose."""
    port = house.reserve()
    house.serve(ONE, port)
    chosen = house.serve(ONE, 0)
    assert chosen != port
    assert house.urls == {url(ONE, chosen)}
    assert house.serve(ONE, 0) == chosen


def test_a_refusal_changes_nothing(house: House) -> None:
    """Neither what is listened on nor what is open, and nothing is said."""
    port = house.serve([ONE, OTHER])
    house.connect(port)
    taken = house.reserve([ONE, OTHER])
    house.sockets[-1].listen()
    house.said()
    before = house.listening, house.reading, descriptors()
    with pytest.raises(Refusal) as caught:
        house.frontend.bind(settings([ONE, OTHER], taken))
    assert caught.value.lines == (f"echod: {url(OTHER, taken)}: address in use",)
    assert caught.value.exit_code == os.EX_UNAVAILABLE
    assert (house.listening, house.reading, descriptors()) == before
    assert house.said() == []
    assert not any(map(shared, house.listening))
    house.readable()
    assert house.served() == [url(ONE, port)]


def test_a_refused_overlap_changes_nothing(house: House) -> None:
    """Nobody else may bind what is there, neither then nor later."""
    port = house.serve(ONE, house.reserve([ONE, OTHER]))
    house.sockets[-1].listen()
    before = house.listening, house.reading, descriptors()
    with pytest.raises(Refusal):
        house.frontend.bind(settings("0.0.0.0", port))  # noqa: S104 - for a moment
    assert (house.listening, house.reading, descriptors()) == before
    assert not any(map(shared, house.listening))
    assert answers(port)


@pytest.mark.parametrize(
    ("before", "after", "url_after"),
    [
        (ONE, "0.0.0.0", "tcp://0.0.0.0:{}"),  # noqa: S104 - for a moment
        ("0.0.0.0", ONE, "tcp://127.0.0.1:{}"),  # noqa: S104
        pytest.param(ONE, "*", "tcp://[::]:{}", marks=needs_ipv6),
        pytest.param("*", ONE, "tcp://127.0.0.1:{}", marks=needs_ipv6),
        pytest.param([ONE, "::1"], "*", "tcp://[::]:{}", marks=needs_ipv6),
    ],
)
def test_a_host_may_be_changed_for_one_that_overlaps(
    house: House, before: str | list[str], after: str, url_after: str
) -> None:
    """On the same port, without a moment without one; and after that, nobody else may share it."""
    port = house.serve(before, house.reserve([ONE]))
    bound = house.frontend.bind(settings(after, port))
    assert answers(port)
    house.readable()
    house.frontend.serve(settings(after, port), bound, "reject")
    house.readable()
    assert house.urls == {url_after.format(port)}
    assert not any(map(shared, house.listening))
    served = house.pool.accepted
    house.connect(port)
    house.readable()
    assert house.pool.accepted == served + 1


def test_a_move_back_revives_who_has_not_gone_yet(house: House) -> None:
    """Its socket and those who wait there stay; the port between is closed."""
    first = house.serve(ONE, house.reserve(), "wait")
    sock = house.acceptors[0].listener.sock
    house.fill(first)
    house.connect(first)
    second = house.serve(ONE, house.reserve(), "wait")
    assert [acceptor.listener.port for acceptor in house.acceptors if acceptor.is_retired] == [first]
    house.said()
    house.serve(ONE, first, "wait")
    assert house.said() == [("listener.stopped", url(ONE, second))]
    assert house.listening == {sock}
    assert not house.acceptors[0].is_retired
    house.finish()
    house.readable()
    assert sorted(house.pool.in_use) == [2, 3]
    house.finish()
    assert house.listening == {sock}
    house.connect(first)
    house.readable()
    assert sorted(house.pool.in_use) == [3, 4]


def test_a_host_that_comes_back_serves_who_waits_there(house: House) -> None:
    """Also if the kernel has chosen the port."""
    port = house.serve([ONE, OTHER], 0, "wait")
    house.fill(port, ONE)
    house.connect(port, OTHER)
    house.serve(ONE, 0, "wait")
    assert house.serve([ONE, OTHER], 0, "wait") == port
    house.connect(port, OTHER)
    for _ in range(2):
        house.finish()
        house.readable()
    assert house.served() == [url(OTHER, port)] * 2


def test_a_port_that_the_kernel_chose_is_not_left_for_a_retired_one(house: House) -> None:
    """Whichever of the two has had its turn last."""
    named = house.serve(ONE, house.reserve(), "wait")
    house.fill(named)
    for _ in range(4):
        house.connect(named)
    chosen = house.serve(ONE, 0, "wait")
    for _ in range(3):
        assert house.serve(ONE, 0, "wait") == chosen
        assert house.urls == {url(ONE, named), url(ONE, chosen)}
        house.finish()
        house.readable()


def test_a_retired_one_ends_when_all_who_waited_are_served(house: House) -> None:
    """Until then it has its turns, beside those that stay."""
    old = house.serve(ONE, house.reserve(), "wait")
    house.fill(old)
    for _ in range(2):
        house.connect(old)
    new = house.serve(ONE, house.reserve(), "wait")
    house.said()
    for _ in range(2):
        assert house.urls == {url(ONE, old), url(ONE, new)}
        house.finish()
        house.readable()
    assert house.said() == [("listener.stopped", url(ONE, old))]
    assert house.served() == [url(ONE, old)] * 2
    assert house.urls == {url(ONE, new)}


def test_a_retired_one_that_nobody_wants_stays_retired(house: House) -> None:
    """Through as many reloads as it takes, and it is stopped once."""
    old = house.serve(ONE, house.reserve(), "wait")
    house.fill(old)
    house.connect(old)
    new = house.serve(ONE, house.reserve(), "wait")
    house.said()
    for _ in range(3):
        assert house.serve(ONE, new, "wait") == new
        assert house.urls == {url(ONE, old), url(ONE, new)}
    assert house.said() == []
    house.finish()
    house.readable()
    assert house.said() == [("listener.stopped", url(ONE, old))]


def test_from_wait_to_reject_who_waits_is_refused(house: House) -> None:
    """The pool tells nobody any more when a worker is free."""
    port = house.serve(ONE, 0, "wait")
    house.fill(port)
    client = house.connect(port)
    house.readable()
    assert house.reading == set()
    assert house.pool.when_free
    house.serve(ONE, 0, "reject")
    assert house.pool.when_free is None
    house.readable()
    assert client.recv(1) == b""
    assert house.rejections.count == {"pool_full": 1}
    assert house.reading == house.listening


def test_from_reject_to_wait_who_comes_waits(house: House) -> None:
    """And is served as soon as a worker is free."""
    port = house.serve([ONE, OTHER])
    house.fill(port)
    assert house.pool.when_free is None
    house.serve([ONE, OTHER], 0, "wait")
    house.connect(port)
    house.connect(port, OTHER)
    house.readable()
    assert house.reading == set()
    assert house.rejections.count == {}
    for _ in range(2):
        house.finish()
        house.readable()
    assert sorted(house.pool.in_use) == [3, 4]
    assert sorted(house.served()) == [url(ONE, port), url(OTHER, port)]


def test_a_retired_one_of_wait_refuses_with_reject(house: House) -> None:
    """Nobody waits any more, also not there."""
    old = house.serve(ONE, house.reserve(), "wait")
    house.fill(old)
    client = house.connect(old)
    new = house.reserve()
    house.serve(ONE, new, "reject")
    house.readable()
    assert client.recv(1) == b""
    assert house.urls == {url(ONE, new)}


def test_a_pool_that_has_grown_is_used_at_once(house: House) -> None:
    """Those who wait need no connection to end first."""
    port = house.serve(ONE, 0, "wait")
    house.fill(port)
    house.connect(port)
    house.readable()
    house.pool.resize(3, house.pool.make(1))
    house.serve(ONE, 0, "wait")
    house.readable()
    assert sorted(house.pool.in_use) == [1, 2, 3]


def test_waiting_clients_are_served_by_turns(house: House) -> None:
    """Were it always the same listener that is told first, it would starve the rest."""
    hosts = [ONE, OTHER, THIRD]
    port = house.serve(hosts, 0, "wait")
    house.fill(port)
    for host in hosts:
        for _ in range(3):
            house.connect(port, host)
    house.readable()
    assert house.reading == set()
    order = []
    for _ in range(9):
        house.finish()
        house.readable()
        order.append(house.served()[-1])
    turns = [set(order[begin : begin + 3]) for begin in (0, 3, 6)]
    assert turns == [{url(host, port) for host in hosts}] * 3


def test_close_stops_all(house: House) -> None:
    """Who is in a backlog is served as far as there are workers; nobody is told of free ones any more."""
    port = house.serve([ONE, OTHER], 0, "wait")
    house.connect(port, OTHER)
    house.said()
    before = list(house.listening)
    house.frontend.close()
    house.loop.run()
    assert house.lines.events("listener.stopped") == [
        {"level": "info", "event": "listener.stopped", "listener": url(host, port), "backlog": 16}
        for host in (ONE, OTHER)
    ]
    assert house.served() == [url(OTHER, port)]
    assert [sock.fileno() for sock in before] == [-1, -1]
    assert (house.listening, house.reading, house.pool.when_free) == (set(), set(), None)
    house.said()
    house.frontend.close()
    assert house.said() == []


def test_close_stops_those_that_are_retired_too(house: House) -> None:
    """Each is said to have stopped, once."""
    old = house.serve(ONE, house.reserve(), "wait")
    house.fill(old)
    house.connect(old)
    new = house.serve(ONE, house.reserve(), "wait")
    house.said()
    house.frontend.close()
    assert sorted(house.said()) == sorted(("listener.stopped", url(ONE, port)) for port in (old, new))
    assert (house.acceptors, house.reading, house.loop.timers) == ([], set(), 0)
    assert not answers(old)


def test_close_before_it_has_served_does_nothing(house: House) -> None:
    """As when the start is refused."""
    house.frontend.close()
    assert house.lines.lines == []


def test_pauses_of_all_add_up_also_when_they_are_gone(house: House) -> None:
    """A counter never goes back."""
    house.serve([ONE, OTHER])
    for number, each in enumerate(house.frontend.acceptors, 1):
        each.paused_seconds = float(number)
    assert house.frontend.paused_seconds == 3.0
    house.serve(OTHER)
    assert house.frontend.paused_seconds == 3.0
    house.acceptors[0].paused_seconds += 0.5
    assert house.frontend.paused_seconds == 3.5
    house.frontend.close()
    assert house.frontend.paused_seconds == 3.5


def test_acceptors_are_all_there_are(house: House) -> None:
    """Also those that are retired and have not gone yet."""
    old = house.serve(ONE, house.reserve(), "wait")
    house.fill(old)
    house.connect(old)
    new = house.serve(ONE, house.reserve(), "wait")
    states = {acceptor.listener.port: acceptor.state for acceptor in house.frontend.acceptors}
    assert states == {old: "retired", new: "waiting"}
