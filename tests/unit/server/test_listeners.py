"""All listeners together: real listening sockets that come and go, and a loop that does what it is told."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from echod.errors import Refusal
from echod.server import admission, kernel, listeners, tcp
from echod.server.acceptor import Acceptor
from echod.server.access import Rules
from echod.server.endpoint import Endpoint, Listener
from echod.server.listeners import Listeners, adopt
from tests.support.certificates import pem_file
from tests.support.fakes import has_ipv6
from tests.support.rig import Rig, listening, resize, settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from echod.config.settings import Settings
    from echod.server.acceptor import Parts

# Nobody is a client from the last two, so that a port of ONE is free there.
ONE, OTHER, THIRD = "127.0.0.1", "127.0.10.2", "127.0.10.3"

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


@pytest.fixture
def rig(rig: Rig) -> Rig:
    """A server of two workers."""
    resize(rig.pool, 2)
    return rig


def acceptors(rig: Rig) -> list[Acceptor]:
    return [each for each in rig.listeners.acceptors if isinstance(each, Acceptor)]


def urls(rig: Rig) -> set[str]:
    """Return the URLs of all listeners, also of those that are retired."""
    return {each.listener.url for each in acceptors(rig)}


def socks(rig: Rig) -> set[Any]:
    """Return the sockets of all listeners."""
    return {each.listener.sock for each in acceptors(rig)}


def reading(rig: Rig) -> set[Any]:
    """Return the sockets on which the loop waits for clients."""
    return set(rig.loop.readers)


def logged(rig: Rig) -> list[tuple[str, str]]:
    """Return what has been logged of listeners since the last time."""
    logged = [(line["event"], line["listener"]) for line in rig.lines.lines if line["event"].startswith("listener.")]
    rig.lines.lines.clear()
    return logged


def served(rig: Rig) -> list[str]:
    """Return the listeners of the connections in use, oldest first."""
    return [worker.listener for worker in rig.pool.in_use.values()]


def url(host: str, port: int) -> str:
    return f"tcp://{host}:{port}"


def answers(port: int, host: str = ONE) -> bool:
    """Connect, and return whether that succeeds; the listener has one more connection in its backlog then."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


def shared(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


# A start, and reloads


def test_at_start_all_hosts_are_listened_on(rig: Rig) -> None:
    """Their connections go to one pool."""
    port = rig.serve([ONE, OTHER])
    assert rig.lines.lines == [
        {"level": "info", "event": "listener.started", "listener": url(host, port), "backlog": 16}
        for host in (ONE, OTHER)
    ]
    rig.connect(port, ONE)
    rig.connect(port, OTHER)
    rig.readable()
    assert sorted(served(rig)) == [url(ONE, port), url(OTHER, port)]
    assert reading(rig) == socks(rig)


def test_nothing_is_accepted_or_logged_between_bind_and_serve(rig: Rig) -> None:
    """Clients that connect in between are accepted afterwards."""
    bound = rig.listeners.bind(listening(ONE))
    assert (reading(rig), rig.lines.lines) == (set(), [])
    assert answers(bound[0].endpoint.port)
    rig.listeners.serve(listening(ONE), bound)
    rig.readable()
    assert rig.pool.accepted == 1


def test_the_receive_buffer_is_set_before_anyone_connects(rig: Rig) -> None:
    """A client that connects between bind and serve has it, too."""
    (bound,) = rig.listeners.bind(settings(listen__host=ONE, listen__port=0, listen__receive_buffer="8Ki"))
    assert bound.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 8192
    bound.close()


@pytest.mark.parametrize("named", [False, True])
def test_a_listener_that_stays_is_left_alone(rig: Rig, *, named: bool) -> None:
    """It does not matter whether its port is named or was chosen by the kernel."""
    port = rig.serve([ONE, OTHER])
    before = socks(rig)
    logged(rig)
    rig.serve([OTHER, ONE], port if named else 0)
    assert socks(rig) == reading(rig) == before
    assert logged(rig) == []


@pytest.mark.parametrize("named", [False, True])
def test_a_host_that_is_added_gets_the_same_port(rig: Rig, *, named: bool) -> None:
    """The sockets of the others stay."""
    port = rig.serve(ONE)
    before = socks(rig)
    logged(rig)
    assert rig.serve([OTHER, ONE], port if named else 0) == port
    assert logged(rig) == [("listener.started", url(OTHER, port))]
    assert before < socks(rig) == reading(rig)
    rig.connect(port, OTHER)
    rig.readable()
    assert served(rig) == [url(OTHER, port)]


def test_a_host_that_is_removed_is_closed(rig: Rig) -> None:
    """The other one goes on."""
    port = rig.serve([ONE, OTHER])
    logged(rig)
    rig.serve(OTHER)
    assert logged(rig) == [("listener.stopped", url(ONE, port))]
    assert not answers(port, ONE)
    assert answers(port, OTHER)


def test_a_port_changes_without_a_moment_without_a_listener(rig: Rig) -> None:
    """The new one is bound before the old one is closed."""
    old = rig.serve(ONE)
    new = rig.reserve()
    logged(rig)
    bound = rig.listeners.bind(listening(ONE, new))
    assert answers(old)
    assert answers(new)
    rig.readable()
    rig.listeners.serve(listening(ONE, new), bound)
    assert logged(rig) == [("listener.started", url(ONE, new)), ("listener.stopped", url(ONE, old))]
    assert not answers(old)
    assert reading(rig) == socks(rig) == {bound[0].sock}


def test_open_connections_survive_a_change_of_the_port(rig: Rig) -> None:
    """They keep the URL of the listener by which they came in."""
    old = rig.serve(ONE)
    client = rig.connect(old)
    rig.readable()
    rig.serve(ONE, rig.reserve())
    rig.loop.transports[0].receive(b"still here")
    assert rig.loop.transports[0].taken == b"still here"
    assert client.fileno() >= 0
    assert served(rig) == [url(ONE, old)]


def test_clients_in_the_backlog_of_the_old_port_are_served(rig: Rig) -> None:
    """They are connected, and would get a reset."""
    old = rig.serve(ONE)
    rig.connect(old)
    new = rig.serve(ONE, rig.reserve())
    assert urls(rig) == {url(ONE, old), url(ONE, new)}
    assert rig.listeners.urls == [url(ONE, new)]
    logged(rig)
    rig.readable()
    assert logged(rig) == [("listener.stopped", url(ONE, old))]
    assert served(rig) == [url(ONE, old)]
    assert urls(rig) == {url(ONE, new)}


def test_a_port_that_the_kernel_chose_stays_when_every_host_changes(rig: Rig) -> None:
    """It is the port of the daemon, not of an address."""
    port = rig.serve()
    for hosts in (OTHER, (ONE, THIRD), OTHER):
        assert rig.serve(hosts) == port


def test_from_a_named_port_to_any_port_the_kernel_chooses_one(rig: Rig) -> None:
    """It chooses once; the named port is not its choice."""
    port = rig.reserve()
    rig.serve(ONE, port)
    chosen = rig.serve(ONE, 0)
    assert chosen != port
    assert urls(rig) == {url(ONE, chosen)}
    assert rig.serve(ONE, 0) == chosen


def test_a_named_port_replaces_the_one_that_the_kernel_chose(rig: Rig) -> None:
    """With port 0 again, the kernel chooses anew."""
    chosen = rig.serve(ONE, 0)
    named = rig.serve(ONE, rig.reserve())
    with socket.create_server((ONE, chosen)):  # free for other programs
        assert rig.serve(ONE, 0) not in (chosen, named)


# Refused


def test_a_refusal_changes_nothing(rig: Rig) -> None:
    """The same sockets listen, no descriptor is left open, and nothing is logged."""
    port = rig.serve([ONE, OTHER])
    rig.connect(port)
    taken = rig.reserve(ONE, OTHER)
    rig.sockets[-1].listen()
    logged(rig)
    before = socks(rig), reading(rig), descriptors()
    with pytest.raises(Refusal) as caught:
        rig.listeners.bind(listening([ONE, OTHER], taken))
    assert caught.value.lines == (f"echod: {url(OTHER, taken)}: address in use: choose another port (listen.port, -p)",)
    assert caught.value.exit_code == os.EX_UNAVAILABLE
    assert (socks(rig), reading(rig), descriptors()) == before
    assert logged(rig) == []
    assert not any(map(shared, socks(rig)))
    rig.readable()
    assert served(rig) == [url(ONE, port)]


def test_a_refusal_does_not_change_the_port_that_the_kernel_chose(rig: Rig) -> None:
    """The next reload with port 0 keeps it."""
    port = rig.serve(ONE)
    taken = rig.reserve()
    rig.sockets[-1].listen()
    with pytest.raises(Refusal):
        rig.serve(ONE, taken)
    assert rig.serve(OTHER) == port


def test_a_refused_overlap_changes_nothing(rig: Rig) -> None:
    """No other program may bind the listener's address, neither at that time nor later."""
    port = rig.serve(ONE, rig.reserve(ONE, OTHER))
    rig.sockets[-1].listen()
    before = socks(rig), reading(rig), descriptors()
    with pytest.raises(Refusal):
        rig.listeners.bind(listening("0.0.0.0", port))  # noqa: S104 - for a moment
    assert (socks(rig), reading(rig), descriptors()) == before
    assert not any(map(shared, socks(rig)))
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
def test_a_host_may_be_replaced_by_one_that_overlaps(
    rig: Rig, before: str | list[str], after: str, url_after: str
) -> None:
    """The port has a listener at each moment, and afterwards no other program may bind it."""
    port = rig.serve(before, rig.reserve(ONE))
    bound = rig.listeners.bind(listening(after, port))
    assert answers(port)
    rig.readable()
    rig.listeners.serve(listening(after, port), bound)
    rig.readable()
    assert urls(rig) == {url_after.format(port)}
    assert not any(map(shared, socks(rig)))
    accepted = rig.pool.accepted
    rig.connect(port)
    rig.readable()
    assert rig.pool.accepted == accepted + 1


# Addresses that are missing


class Machine:
    """A machine without some addresses, and how often one was asked for."""

    def __init__(self) -> None:
        self.missing = {OTHER, THIRD}
        self.binds = 0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine without the addresses OTHER and THIRD."""
    machine = Machine()

    def bind(self: Any, address: tuple[Any, ...]) -> None:
        machine.binds += 1
        if address[0] in machine.missing:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        super(type(self), self).bind(address)

    monkeypatch.setattr(socket, "socket", type("OtherSocket", (socket.socket,), {"bind": bind}))
    return machine


ABSENT = "can't listen: Cannot assign requested address"


def try_again(rig: Rig, wanted: Settings, seconds: float = 1.0) -> None:
    rig.loop.now += seconds
    rig.listeners.retry(wanted)


@pytest.mark.parametrize("named", [False, True])
def test_what_is_there_is_served_and_what_is_missing_is_said(rig: Rig, machine: Machine, *, named: bool) -> None:
    """Once, however often it is tried again; it is bound when it comes, and its clients are served."""
    port = rig.reserve(ONE) if named else 0
    wanted = listening([OTHER, ONE], port)
    port = rig.serve([OTHER, ONE], port)
    assert logged(rig) == [("listener.started", url(ONE, port)), ("listener.missing", url(OTHER, port))]
    assert rig.listeners.missing == {url(OTHER, port): ABSENT}
    for _ in range(3):
        try_again(rig, wanted)
    assert (logged(rig), rig.listeners.urls) == ([], [url(ONE, port)])
    machine.missing.clear()
    try_again(rig, wanted)
    assert logged(rig) == [("listener.started", url(OTHER, port))]
    assert (rig.listeners.missing, rig.listeners.urls) == ({}, [url(ONE, port), url(OTHER, port)])
    rig.connect(port, OTHER)
    rig.readable()
    assert served(rig) == [url(OTHER, port)]


def test_the_line_about_a_missing_address_is_a_warning_with_the_reason(rig: Rig, machine: Machine) -> None:
    """With the system's own words."""
    assert OTHER in machine.missing
    wanted = listening([OTHER], rig.reserve(ONE))
    rig.listeners.serve(wanted, rig.listeners.bind(wanted))
    (line,) = rig.lines.lines
    where = url(OTHER, wanted.listen.port)
    assert line == {"level": "warning", "event": "listener.missing", "listener": where, "reason": ABSENT}


def test_if_all_are_missing_it_serves_nowhere_until_one_comes(rig: Rig, machine: Machine) -> None:
    """With port 0, all that come get one port."""
    wanted = listening([OTHER, THIRD])
    rig.listeners.serve(wanted, rig.listeners.bind(wanted))
    assert rig.listeners.missing == {url(OTHER, 0): ABSENT, url(THIRD, 0): ABSENT}
    assert rig.listeners.urls == []
    machine.missing.clear()
    try_again(rig, wanted)
    port = rig.port()
    assert rig.listeners.urls == [url(OTHER, port), url(THIRD, port)]
    assert rig.listeners.missing == {}


def test_a_missing_address_is_tried_once_a_second(rig: Rig, machine: Machine) -> None:
    """However often that is asked for; and not at all if nothing is missing."""
    wanted = listening([OTHER, ONE], rig.reserve(ONE))
    rig.listeners.serve(wanted, rig.listeners.bind(wanted))
    machine.binds = 0
    for _ in range(20):
        try_again(rig, wanted, 0.1)
    assert machine.binds == 2
    rig.serve(ONE, wanted.listen.port)
    machine.binds = 0
    try_again(rig, wanted, 60)
    assert machine.binds == 0


def test_an_address_that_comes_with_its_port_taken_stays_missing(rig: Rig, machine: Machine) -> None:
    """That is said, and it is tried again all the same. At a start and in a reload, it is refused."""
    machine.missing.clear()
    port = rig.reserve(ONE, OTHER)
    rig.sockets[-1].listen()
    machine.missing.add(OTHER)
    wanted = listening([ONE, OTHER], port)
    rig.listeners.serve(wanted, rig.listeners.bind(wanted))
    logged(rig)
    machine.missing.clear()
    for _ in range(3):
        try_again(rig, wanted)
    taken = "address in use: choose another port (listen.port, -p)"
    (line,) = rig.lines.events("listener.missing")
    assert (line["reason"], rig.listeners.missing) == (taken, {url(OTHER, port): taken})
    with pytest.raises(Refusal, match="address in use"):
        rig.listeners.bind(wanted)
    machine.missing.add(OTHER)
    try_again(rig, wanted)
    assert rig.listeners.missing == {url(OTHER, port): ABSENT}
    machine.missing.clear()
    rig.sockets[-1].close()
    try_again(rig, wanted)
    assert rig.listeners.missing == {}


def test_a_reload_is_not_refused_for_a_missing_address(rig: Rig, machine: Machine) -> None:
    """It says what is newly missing, forgets what is not wanted any more, and binds what has come."""
    port = rig.serve([ONE, OTHER], rig.reserve(ONE))
    logged(rig)
    rig.serve([ONE, OTHER, THIRD], port)
    assert logged(rig) == [("listener.missing", url(THIRD, port))]
    rig.serve([ONE, THIRD], port)
    assert (logged(rig), rig.listeners.missing) == ([], {url(THIRD, port): ABSENT})
    machine.missing.clear()
    rig.serve([ONE, THIRD], port)
    assert (logged(rig), rig.listeners.missing) == ([("listener.started", url(THIRD, port))], {})


def test_free_bind_listens_on_what_is_missing(rig: Rig) -> None:
    """Also by a reload; without it, a reload leaves the listener as it is."""
    nowhere, port = "192.0.2.1", rig.reserve(ONE)
    free = settings(listen__host=[ONE, nowhere], listen__port=port, listen__free_bind="true")
    rig.serve([ONE, nowhere], port)
    assert list(rig.listeners.missing) == [url(nowhere, port)]
    rig.listeners.serve(free, rig.listeners.bind(free))
    assert (rig.listeners.missing, rig.listeners.urls) == ({}, [url(ONE, port), url(nowhere, port)])
    logged(rig)
    rig.serve([ONE, nowhere], port)
    assert (logged(rig), rig.listeners.missing) == ([], {})


def test_what_is_missing_is_not_looked_for_after_the_end(rig: Rig, machine: Machine) -> None:
    """Nothing listens then."""
    wanted = listening([ONE, OTHER])
    rig.listeners.serve(wanted, rig.listeners.bind(wanted))
    rig.listeners.close()
    machine.missing.clear()
    try_again(rig, wanted)
    assert (rig.listeners.missing, rig.listeners.urls) == ({}, [])


# Retired, and revived


def test_a_change_back_revives_a_listener_that_still_has_waiting_clients(rig: Rig) -> None:
    """Its socket stays, with the clients in its backlog. The port used in between is closed."""
    first = rig.serve(ONE, rig.reserve(), "wait")
    sock = acceptors(rig)[0].listener.sock
    rig.fill(first)
    rig.connect(first)
    second = rig.serve(ONE, rig.reserve(), "wait")
    assert [each.listener.endpoint.port for each in acceptors(rig) if each.state == "retired"] == [first]
    logged(rig)
    rig.serve(ONE, first, "wait")
    assert logged(rig) == [("listener.stopped", url(ONE, second))]
    assert socks(rig) == {sock}
    assert acceptors(rig)[0].state != "retired"
    rig.finish()
    rig.readable()
    assert sorted(rig.pool.in_use) == [2, 3]
    rig.finish()
    assert socks(rig) == {sock}
    rig.connect(first)
    rig.readable()
    assert sorted(rig.pool.in_use) == [3, 4]


@pytest.mark.parametrize("refused", ["listen", "getsockopt"])
def test_a_kernel_that_refuses_a_call_does_not_break_a_reload(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Once all is bound, nothing fails: a listener is retired, revived and closed without listen(2) and TCP_INFO."""

    def refuse(*_: object) -> None:
        raise OSError("not here")

    first = rig.serve(ONE, rig.reserve(), "wait")
    rig.fill(first)
    rig.connect(first)
    second = rig.reserve()
    bound = rig.listeners.bind(listening(ONE, second, "wait"))
    monkeypatch.setattr(socket.socket, refused, refuse)
    rig.listeners.serve(listening(ONE, second, "wait"), bound)
    assert rig.listeners.urls == [url(ONE, second)]
    rig.listeners.serve(listening(ONE, first, "wait"), [])
    assert rig.listeners.urls == [url(ONE, first)]
    rig.finish()
    rig.readable()
    assert sorted(rig.pool.in_use) == [2, 3]
    rig.listeners.close()
    assert urls(rig) == set()


def test_a_host_that_comes_back_serves_the_clients_that_wait_there(rig: Rig) -> None:
    """This holds also if the kernel has chosen the port."""
    port = rig.serve([ONE, OTHER], 0, "wait")
    rig.fill(port, ONE)
    rig.connect(port, OTHER)
    rig.serve(ONE, 0, "wait")
    assert rig.serve([ONE, OTHER], 0, "wait") == port
    rig.connect(port, OTHER)
    for _ in range(2):
        rig.finish()
        rig.readable()
    assert served(rig) == [url(OTHER, port)] * 2


def test_a_port_that_the_kernel_chose_is_kept_beside_a_retired_listener(rig: Rig) -> None:
    """It does not matter which of the two has accepted last."""
    named = rig.serve(ONE, rig.reserve(), "wait")
    rig.fill(named)
    for _ in range(4):
        rig.connect(named)
    chosen = rig.serve(ONE, 0, "wait")
    for _ in range(3):
        assert rig.serve(ONE, 0, "wait") == chosen
        assert urls(rig) == {url(ONE, named), url(ONE, chosen)}
        rig.finish()
        rig.readable()


def test_a_retired_listener_ends_when_all_its_waiting_clients_are_served(rig: Rig) -> None:
    """Until then it takes turns with the others."""
    old = rig.serve(ONE, rig.reserve(), "wait")
    rig.fill(old)
    for _ in range(2):
        rig.connect(old)
    new = rig.serve(ONE, rig.reserve(), "wait")
    logged(rig)
    for _ in range(2):
        assert urls(rig) == {url(ONE, old), url(ONE, new)}
        rig.finish()
        rig.readable()
    assert logged(rig) == [("listener.stopped", url(ONE, old))]
    assert served(rig) == [url(ONE, old)] * 2
    assert urls(rig) == {url(ONE, new)}


def test_a_retired_listener_stays_retired_through_further_reloads(rig: Rig) -> None:
    """It is logged as stopped once, when it has ended."""
    old = rig.serve(ONE, rig.reserve(), "wait")
    rig.fill(old)
    rig.connect(old)
    new = rig.serve(ONE, rig.reserve(), "wait")
    logged(rig)
    for _ in range(3):
        assert rig.serve(ONE, new, "wait") == new
        assert urls(rig) == {url(ONE, old), url(ONE, new)}
    assert logged(rig) == []
    rig.finish()
    rig.readable()
    assert logged(rig) == [("listener.stopped", url(ONE, old))]


def test_acceptors_include_those_that_are_retired(rig: Rig) -> None:
    """They are gone when they have ended."""
    old = rig.serve(ONE, rig.reserve(), "wait")
    rig.fill(old)
    rig.connect(old)
    new = rig.serve(ONE, rig.reserve(), "wait")
    states = {each.listener.endpoint.port: each.state for each in acceptors(rig)}
    assert states == {old: "retired", new: "waiting"}


# A full pool


def test_from_wait_to_reject_waiting_clients_are_refused(rig: Rig) -> None:
    """The pool does not resume the acceptors any more."""
    port = rig.serve(ONE, 0, "wait")
    rig.fill(port)
    client = rig.connect(port)
    rig.readable()
    assert reading(rig) == set()
    assert rig.pool.when_free
    rig.serve(ONE, 0, "reject")
    assert rig.pool.when_free is None
    rig.readable()
    assert client.recv(1) == b""
    assert rig.rejections.count == {"pool_full": 1}
    assert reading(rig) == socks(rig)


def test_from_reject_to_wait_clients_wait(rig: Rig) -> None:
    """They are served as soon as a worker is free."""
    port = rig.serve([ONE, OTHER])
    rig.fill(port)
    assert rig.pool.when_free is None
    rig.serve([ONE, OTHER], 0, "wait")
    rig.connect(port)
    rig.connect(port, OTHER)
    rig.readable()
    assert reading(rig) == set()
    assert rig.rejections.count == {}
    for _ in range(2):
        rig.finish()
        rig.readable()
    assert sorted(rig.pool.in_use) == [3, 4]
    assert sorted(served(rig)) == [url(ONE, port), url(OTHER, port)]


def test_from_wait_to_reject_a_retired_listener_refuses_too(rig: Rig) -> None:
    """No client waits any more."""
    old = rig.serve(ONE, rig.reserve(), "wait")
    rig.fill(old)
    client = rig.connect(old)
    new = rig.reserve()
    rig.serve(ONE, new, "reject")
    rig.readable()
    assert client.recv(1) == b""
    assert urls(rig) == {url(ONE, new)}


def test_a_pool_that_has_grown_serves_waiting_clients_at_once(rig: Rig) -> None:
    """No connection has to end first."""
    port = rig.serve(ONE, 0, "wait")
    rig.fill(port)
    rig.connect(port)
    rig.readable()
    resize(rig.pool, 3)
    rig.serve(ONE, 0, "wait")
    rig.readable()
    assert sorted(rig.pool.in_use) == [1, 2, 3]


def test_listeners_with_waiting_clients_take_turns(rig: Rig) -> None:
    """If the same listener always resumed first, the others would starve."""
    hosts = [ONE, OTHER, THIRD]
    port = rig.serve(hosts, 0, "wait")
    rig.fill(port)
    for host in hosts:
        for _ in range(3):
            rig.connect(port, host)
    rig.readable()
    assert reading(rig) == set()
    order = []
    for _ in range(9):
        rig.finish()
        rig.readable()
        order.append(served(rig)[-1])
    assert order == [url(host, port) for host in hosts] * 3


def test_listeners_take_turns_also_if_a_worker_is_soon_free_again(rig: Rig) -> None:
    """Then they go on reading, and the loop asks the same one first in each turn."""
    hosts = [ONE, OTHER]
    port = rig.serve([*hosts, THIRD], 0, "wait")
    rig.fill(port)
    rig.connect(port, THIRD)
    for host in hosts:
        for _ in range(4):
            rig.connect(port, host)
    rig.poll()
    order = []
    for _ in range(9):
        rig.finish()
        rig.poll()
        assert len(reading(rig)) == 3
        order.append(served(rig)[-1])
    assert order == [url(ONE, port), url(OTHER, port), url(THIRD, port), *[url(host, port) for host in hosts] * 3]


def test_with_reject_listeners_take_turns_if_there_is_room_on_hold_for_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the one that the loop asks first took all of it, the clients of the others would wait for as long as it has clients."""
    monkeypatch.setattr(admission, "MOST", 1)
    hosts = [ONE, OTHER]
    port = rig.serve(hosts)
    rig.fill(port)
    for host in hosts:
        for _ in range(2):
            rig.connect(port, host)
    order = []
    for _ in range(4):
        rig.accept()
        rig.finish()
        order.append(served(rig)[-1])
    assert order == [url(host, port) for host in hosts] * 2
    assert rig.rejections.count == {}


def test_with_reject_a_listener_without_room_on_hold_goes_on_reading(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that comes back would not resume it."""
    monkeypatch.setattr(admission, "MOST", 1)
    port = rig.serve(ONE)
    rig.fill(port)
    for _ in range(2):
        rig.connect(port)
    for _ in range(admission.TURNS + 2):
        rig.accept()
    assert (rig.admission.held, reading(rig)) == (1, socks(rig))


def test_with_wait_too_no_more_are_accepted_than_there_is_room_on_hold_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of a source that has too many."""
    monkeypatch.setattr(admission, "MOST", 1)
    rig.access.replace(Rules(None, None, 1, None))
    resize(rig.pool, 9)
    port = rig.serve(ONE, 0, "wait")
    rig.connect(port)
    rig.readable()
    for _ in range(2):
        rig.connect(port)
    for _ in range(2):
        rig.accept()
    assert (len(rig.pool.in_use), rig.admission.held) == (1, 1)


def test_a_listener_whose_client_is_gone_holds_up_nobody(rig: Rig) -> None:
    """Another process that has the socket too has served it."""
    port = rig.serve([ONE, OTHER], 0, "wait")
    rig.fill(port)
    rig.connect(port)
    rig.poll()
    rig.connect(port, OTHER)
    rig.poll()
    (first,) = (sock for sock in reading(rig) if sock.getsockname()[0] == ONE)
    first.accept()[0].close()
    rig.finish()
    rig.poll()
    assert served(rig)[-1] == url(OTHER, port)


# The end


def test_close_stops_all_listeners(rig: Rig) -> None:
    """Clients in a backlog are served as far as there are workers. Closing again does nothing."""
    port = rig.serve([ONE, OTHER], 0, "wait")
    rig.connect(port, OTHER)
    logged(rig)
    before = list(socks(rig))
    rig.listeners.close()
    rig.loop.run()
    assert rig.lines.events("listener.stopped") == [
        {"level": "info", "event": "listener.stopped", "listener": url(host, port), "backlog": 16}
        for host in (ONE, OTHER)
    ]
    assert served(rig) == [url(OTHER, port)]
    assert [sock.fileno() for sock in before] == [-1, -1]
    assert (socks(rig), reading(rig), rig.pool.when_free) == (set(), set(), None)
    logged(rig)
    rig.listeners.close()
    assert logged(rig) == []


def test_close_stops_retired_listeners_too(rig: Rig) -> None:
    """Each is logged as stopped once."""
    old = rig.serve(ONE, rig.reserve(), "wait")
    rig.fill(old)
    rig.connect(old)
    new = rig.serve(ONE, rig.reserve(), "wait")
    logged(rig)
    rig.listeners.close()
    assert sorted(logged(rig)) == sorted(("listener.stopped", url(ONE, port)) for port in (old, new))
    assert (acceptors(rig), reading(rig), rig.loop.timers) == ([], set(), 0)
    assert not answers(old)


def test_close_before_a_start_does_nothing(rig: Rig) -> None:
    """A start may be refused."""
    rig.listeners.close()
    assert rig.lines.lines == []


def test_pauses_of_closed_listeners_still_count(rig: Rig) -> None:
    """A counter never goes back."""
    rig.serve([ONE, OTHER])
    for number, each in enumerate(acceptors(rig), 1):
        each.paused_seconds = float(number)
    assert rig.listeners.paused_seconds == 3.0
    rig.serve(OTHER)
    assert rig.listeners.paused_seconds == 3.0
    acceptors(rig)[0].paused_seconds += 0.5
    assert rig.listeners.paused_seconds == 3.5
    rig.listeners.close()
    assert rig.listeners.paused_seconds == 3.5


# A further kind of listener


class Fake:
    """A kind that listens on one port of its own, and adopts packet sockets."""

    def __init__(self) -> None:
        self.wanted: list[Endpoint] = [Endpoint("fake", THIRD, 0)]
        self.refused = False
        self.asked = 0

    def endpoints(self, _: Settings) -> list[Endpoint]:
        return self.wanted

    def bind(
        self,
        endpoints: Sequence[Endpoint],
        *,
        backlog: int,
        reuse_port: bool,
        receive_buffer: int | None,
        free_bind: bool,
        beside: Sequence[Listener],
    ) -> list[Listener]:
        self.asked += 1
        if self.refused:
            raise Refusal("echod: fake://here: address in use", exit_code=os.EX_UNAVAILABLE)
        return tcp.bind(
            endpoints,
            backlog=backlog,
            reuse_port=reuse_port,
            receive_buffer=receive_buffer,
            free_bind=free_bind,
            beside=beside,
        )

    def tune(self, listener: Listener, settings: Settings) -> None:
        tcp.tune(listener, settings)

    def adopt(self, sock: socket.socket) -> Listener | None:
        if sock.type != socket.SOCK_SEQPACKET:
            return None
        return Listener(Endpoint("fake", "packets", 0), sock, "fake://packets", None, inherited=True)

    def acceptor(self, parts: Parts, listener: Listener, *, waits: bool) -> Acceptor:
        return tcp.acceptor(parts, listener, waits=waits)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A further kind, after the others."""
    fake = Fake()
    monkeypatch.setitem(listeners.KINDS, "fake", fake)
    return fake


@pytest.mark.usefixtures("fake")
def test_a_further_kind_of_listener_is_one_object_in_the_list_of_kinds(rig: Rig) -> None:
    """It is bound, logged and accepted on like TCP, and its connections go to the same pool."""
    port = rig.serve(ONE)
    other = rig.port("fake")
    assert logged(rig) == [("listener.started", url(ONE, port)), ("listener.started", f"fake://{THIRD}:{other}")]
    assert rig.listeners.urls == [f"fake://{THIRD}:{other}", url(ONE, port)]
    rig.connect(port)
    rig.connect(other, THIRD)
    rig.readable()
    assert sorted(served(rig)) == [f"fake://{THIRD}:{other}", url(ONE, port)]
    rig.listeners.close()
    assert sorted(logged(rig)) == sorted(
        [("listener.stopped", url(ONE, port)), ("listener.stopped", f"fake://{THIRD}:{other}")]
    )


@pytest.mark.usefixtures("fake")
def test_each_kind_keeps_the_port_that_the_kernel_chose_for_it(rig: Rig) -> None:
    """A reload that names the port of one kind leaves the other's as it is."""
    port = rig.serve(ONE)
    other = rig.port("fake")
    assert (rig.serve(OTHER), rig.port("fake")) == (port, other)
    named = rig.reserve()
    assert (rig.serve(ONE, named), rig.port("fake")) == (named, other)


def test_the_same_host_and_port_of_another_kind_is_another_endpoint(rig: Rig, fake: Fake) -> None:
    """A reload that moves an address from one kind to the other closes the one and opens the other."""
    fake.wanted = []
    port = rig.serve([ONE, OTHER], rig.reserve(ONE, OTHER))
    fake.wanted = [Endpoint("fake", OTHER, port)]
    logged(rig)
    rig.serve(ONE, port)
    assert logged(rig) == [("listener.started", f"fake://{OTHER}:{port}"), ("listener.stopped", url(OTHER, port))]
    assert rig.listeners.urls == [f"fake://{OTHER}:{port}", url(ONE, port)]


def test_a_kind_that_is_not_wanted_any_more_is_retired(rig: Rig, fake: Fake) -> None:
    """The others go on."""
    port = rig.serve(ONE)
    other = rig.port("fake")
    logged(rig)
    fake.wanted = []
    rig.serve(ONE)
    assert logged(rig) == [("listener.stopped", f"fake://{THIRD}:{other}")]
    assert rig.listeners.urls == [url(ONE, port)]


def test_if_a_later_kind_is_refused_those_before_it_are_closed_again(rig: Rig, fake: Fake) -> None:
    """All kinds are bound or none, and a later reload finds everything as it was."""
    port = rig.serve(ONE)
    other = rig.port("fake")
    new = rig.reserve(ONE, OTHER)
    logged(rig)
    before = socks(rig), reading(rig), descriptors()
    fake.refused = True
    with pytest.raises(Refusal, match="fake://here"):
        rig.listeners.bind(listening([ONE, OTHER], new))
    assert (socks(rig), reading(rig), descriptors()) == before
    assert (logged(rig), rig.listeners.urls) == ([], [f"fake://{THIRD}:{other}", url(ONE, port)])
    assert not answers(new)
    fake.refused = False
    assert (rig.serve(ONE), rig.port("fake")) == (port, other)


def test_if_an_earlier_kind_is_refused_later_ones_are_not_bound(rig: Rig, fake: Fake) -> None:
    """The first refusal is enough."""
    taken = rig.reserve()
    rig.sockets[-1].listen()
    with pytest.raises(Refusal, match="address in use"):
        rig.listeners.bind(listening(ONE, taken))
    assert fake.asked == 0


# Sockets that systemd hands over


def handed(*descriptors: socket.socket | int) -> list[tuple[int, str]]:
    """Hand these over, as systemd does: as descriptors with the names that they have in their units."""
    fds = [each if isinstance(each, int) else each.detach() for each in descriptors]
    return [(fd, f"{number}.socket") for number, fd in enumerate(fds)]


def bound(family: int, kind: int, address: object, protocol: int = 0) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    sock.bind(address)  # type: ignore[arg-type] # of several families
    return sock


def closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def unserved(tmp_path: Path) -> dict[str, socket.socket | int]:
    """Return what a socket unit can hand over besides, by what the line says of it."""
    needs = "the socket unit needs ListenStream=, or ListenDatagram= with a port"
    lite = bound(socket.AF_INET, socket.SOCK_DGRAM, (ONE, 0), socket.IPPROTO_UDPLITE)
    return {
        f"udplite://{ONE}:{lite.getsockname()[1]} is not served: {needs}": lite,
        f"unix:{tmp_path}/seq is not served: {needs}": bound(socket.AF_UNIX, socket.SOCK_SEQPACKET, f"{tmp_path}/seq"),
        f"unix:@{tmp_path.name} is not served: {needs}": bound(socket.AF_UNIX, socket.SOCK_DGRAM, f"\0{tmp_path.name}"),
        f"a socket of AF_NETLINK is not served: {needs}": socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        f"it is no socket and is not served: {needs}": os.open(os.devnull, os.O_RDONLY),
        "does not listen: the socket unit needs Accept=no": socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    }


def lines(handed: Iterable[tuple[int, str]], said: Iterable[str]) -> list[str]:
    return [f"{name} (descriptor {fd}): {what}" for (fd, name), what in zip(handed, said, strict=True)]


def test_if_no_kind_can_serve_on_any_descriptor_that_is_refused(tmp_path: Path) -> None:
    """With a line for each, and 78: systemd does not try again. All are closed."""
    wrong = unserved(tmp_path)
    there = handed(*wrong.values())
    with pytest.raises(Refusal) as caught:
        adopt(there)
    assert list(caught.value.lines) == [f"echod: {line}" for line in lines(there, wrong)]
    assert caught.value.exit_code == os.EX_CONFIG
    assert all(closed(fd) for fd, _ in there)


def test_what_no_kind_can_serve_on_is_named_and_the_rest_is_served(tmp_path: Path) -> None:
    """Whatever its place among the others."""
    tcps = [socket.create_server((ONE, 0)) for _ in range(2)]
    ports = [sock.getsockname()[1] for sock in tcps]
    wrong = unserved(tmp_path)
    there = handed(tcps[0], *wrong.values(), tcps[1])
    adopted = adopt(there)
    assert [each.url for each in adopted.listeners] == [url(ONE, port) for port in ports]
    assert adopted.names == ["0.socket", f"{len(there) - 1}.socket"]
    assert adopted.problems == lines(there[1:-1], wrong)
    assert all(closed(fd) for fd, _ in there[1:-1])
    for listener in adopted.listeners:
        listener.sock.close()


@needs_ipv6
def test_a_socket_of_ipv6_that_is_not_served_is_named_without_its_zone() -> None:
    """The kernel says more of such an address than its host and port."""
    lite = bound(socket.AF_INET6, socket.SOCK_DGRAM, ("::1", 0), socket.IPPROTO_UDPLITE)
    with pytest.raises(Refusal, match=rf"udplite://\[::1\]:{lite.getsockname()[1]} is not served"):
        adopt(handed(lite))


def test_nothing_handed_over_is_nothing_adopted() -> None:
    """As without a socket unit."""
    assert adopt([]) == ([], [], [])


@pytest.mark.usefixtures("fake")
def test_a_descriptor_is_adopted_by_the_first_kind_that_knows_it() -> None:
    """A socket that TCP leaves alone is offered to the next kinds."""
    packets = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    adopted = adopt(handed(packets, socket.create_server((ONE, 0))))
    fake, tcp = adopted.listeners
    assert (fake.url, fake.inherited) == ("fake://packets", True)
    assert tcp.url == url(*tcp.sock.getsockname())
    assert (adopted.names, adopted.problems) == (["0.socket", "1.socket"], [])
    for listener in adopted.listeners:
        listener.sock.close()


@pytest.fixture
def theirs() -> Iterator[socket.socket]:
    """A listening socket as systemd holds it."""
    with socket.create_server((ONE, 0)) as sock:
        yield sock


def inherit(rig: Rig, *theirs: socket.socket) -> None:
    """Hand these over, as systemd does at start."""
    rig.listeners = Listeners(rig.parts, inherited=adopt(handed(*(sock.dup() for sock in theirs))).listeners)


@pytest.mark.parametrize(
    ("kinds", "named"),
    [
        ([], []),
        (["tcp"], ["tls.port", "listen.unix", "udp.port"]),
        (["tcp", "unix", "udp"], ["tls.port"]),
    ],
)
def test_what_no_inherited_listener_is_for_is_named(
    rig: Rig, theirs: socket.socket, kinds: list[str], named: list[str]
) -> None:
    """TCP is always wanted, so nothing is said of it."""
    rig.listeners.inherited = [Listener(Endpoint(kind), theirs, kind, None, inherited=True) for kind in kinds]
    wanted = settings(tls__port=7443, tls__certificate=pem_file(), udp__port=7, listen__unix="@x")
    assert [warning.partition(":")[0] for warning in rig.listeners.unserved(wanted)] == named
    assert rig.listeners.unserved(settings()) == []


def test_inherited_listeners_replace_those_of_the_settings(rig: Rig, theirs: socket.socket) -> None:
    """At start and at each reload, nothing is bound and nothing closed, whatever the settings want."""
    port = theirs.getsockname()[1]
    inherit(rig, theirs)
    for number, (hosts, wanted) in enumerate([(OTHER, 0), ([ONE, OTHER], 1), (ONE, port)], 1):
        rig.serve(hosts, wanted)
        assert rig.listeners.urls == [url(ONE, port)]
        rig.connect(port)
        rig.readable()
        assert rig.pool.accepted == number
        rig.finish()
    assert logged(rig) == [("listener.started", url(ONE, port))]


def test_clients_of_an_inherited_listener_wait_for_the_next_process(rig: Rig, theirs: socket.socket) -> None:
    """A daemon that stops accepts none that it might have to cut, and refuses none: systemd holds the socket too."""
    port = theirs.getsockname()[1]
    inherit(rig, theirs)
    rig.serve()
    rig.connect(port)
    rig.listeners.close()
    rig.connect(port)
    assert rig.pool.accepted == 0
    with closing(Rig()) as following:
        inherit(following, theirs)
        following.serve()
        following.readable()
        assert following.pool.accepted == 2


def test_a_client_from_before_the_start_has_the_options_of_others(rig: Rig, theirs: socket.socket) -> None:
    """The kernel had completed its connection before the listener had them."""
    rig.connect(theirs.getsockname()[1])
    inherit(rig, theirs)
    rig.serve()
    rig.readable()
    (worker,) = rig.pool.in_use.values()
    assert worker.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_an_inherited_listener_is_served_where_the_kernel_does_not_tell_its_backlog(
    rig: Rig, theirs: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log has no backlog then."""
    monkeypatch.setattr(kernel, "_tcp_info", lambda *_: None)
    inherit(rig, theirs)
    for _ in range(2):
        rig.serve()
    rig.connect(theirs.getsockname()[1])
    rig.readable()
    assert rig.pool.accepted == 1
    assert [line["backlog"] for line in rig.lines.events("listener.started")] == [None]
