"""Connections from load balancers, from accept to admission; the bytes are those of real sockets."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from echod.networks import Ranges
from echod.server.access import Rules
from echod.server.admission import MOST, TURNS, Accepted, close
from echod.server.endpoint import Peer
from echod.server.proxies import BATCH, REMEMBERED
from echod.server.tcp import Plain
from tests.support.fakes import Clock, sockets
from tests.support.proxy_headers import LOCAL_CHECK, binary, v1, v2
from tests.support.rig import LISTENER, Rig, resize

if TYPE_CHECKING:
    from collections.abc import Iterator

PROXY, CLIENT, DIRECT = "10.0.0.2", "203.0.113.7", "192.0.2.9"
LIMIT = 5.0
NAMED = {
    "client": {"address": CLIENT, "port": 4711},
    "proxy": {"address": PROXY, "port": 9},
}
CHECK = {"level": "debug", "event": "connection.probed", "client": {"address": PROXY, "port": 9}, "listener": LISTENER}


class Gate:
    """The proxies of a rig, with their connections."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.proxies = self.rig.proxies
        self.rules(Rules(None, None, 0, None))
        self.set()
        self.open = Plain(self.rig.parts).open

    def set(self, network: str = "10.0.0.0/8", limit: float | None = LIMIT) -> None:
        self.proxies.set(Ranges([IPv4Network(network)]), limit)

    def rules(self, rules: Rules) -> None:
        self.rig.access.replace(rules)

    def come(self, data: bytes = b"", address: str = PROXY) -> socket.socket:
        """Let a connection be accepted on which this has arrived; return the other end."""
        ours, theirs = sockets()
        self.rig.sockets.append(theirs)
        theirs.sendall(data)
        theirs.settimeout(5)
        sock = Accepted(socket.AF_UNIX, socket.SOCK_STREAM, 0, ours.detach())
        try:
            self.proxies.admit(sock, Peer(address, 9), LISTENER, self.open)
        except BaseException:  # as the acceptor does
            close(sock)
            raise
        return theirs

    def send(self, client: socket.socket, data: bytes) -> None:
        client.sendall(data)
        self.rig.readable()

    def finish(self, client: socket.socket) -> None:
        client.shutdown(socket.SHUT_WR)
        self.rig.readable()

    @property
    def unread(self) -> list[bytes]:
        """What the open connections have for their workers, oldest first."""
        found = []
        for worker in self.rig.pool.in_use.values():
            worker.sock.setblocking(False)
            found.append(worker.sock.recv(1 << 16))
        return found

    def lines(self, event: str) -> list[dict[str, Any]]:
        return self.rig.lines.events(event)

    @property
    def rejected(self) -> list[str]:
        """The reasons, with the error where there is one."""
        return [f"{line['reason']}: {line.get('error')}" for line in self.lines("connection.rejected")]

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits."""
        return (self.proxies.waiting, self.rig.admission.expected, self.rig.loop.timers) == (0, 0, 0)

    def close(self) -> None:
        self.proxies.close()
        self.rig.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    with closing(Gate()) as gate:
        yield gate


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:  # it had sent what nobody read
        return True


@pytest.mark.parametrize("header", [v1(CLIENT, 4711), v2(CLIENT, 4711), v2(CLIENT, 4711, bytes(4000))])
def test_the_client_is_the_one_that_the_header_names(gate: Gate, header: bytes) -> None:
    """All lines have both ends, and the worker reads the first byte after the header."""
    gate.come(header + b"hello")
    gate.rig.loop.run()
    assert gate.unread == [b"hello"]
    assert gate.rig.pool.sources == {CLIENT: 1}
    gate.rig.finish()
    for event in ("connection.opened", "connection.closed"):
        (line,) = gate.lines(event)
        assert {**NAMED, "listener": LISTENER}.items() <= line.items()
    assert gate.at_rest


@pytest.mark.parametrize("header", [v1(CLIENT, 4711), v2(CLIENT, 4711, b"\xee\0\1x"), b"PROXY UNKNOWN\r\n"])
def test_a_header_may_be_split_anywhere(gate: Gate, header: bytes) -> None:
    """What has come of it is read at once: the loop does not find the socket readable until more comes."""
    resize(gate.rig.pool, len(header) + 1)
    for length in range(1, len(header)):
        client = gate.come(header[:length])
        gate.rig.readable()  # comes to an end
        assert len(gate.rig.pool.in_use) == length - 1
        gate.send(client, header[length:] + b"hello")
    client = gate.come()
    for byte in header + b"hello":
        gate.send(client, bytes([byte]))
    assert gate.unread == [b"hello"] * len(header)
    assert gate.at_rest


@pytest.mark.parametrize("before", [0, 1, MOST])
def test_a_connection_lasts_since_it_was_accepted(gate: Gate, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    """And not since its header has come: `timeouts.handshake` and `timeouts.lifetime` count from there. Some are on hold before it."""
    clock = Clock(monkeypatch)
    client = gate.come()
    began, clock.now = clock.now, clock.now + 3.0
    gate.rig.pool.sources[CLIENT] = 1
    gate.rules(Rules(None, None, 1, None))
    for _ in range(before):
        gate.rig.admission.admit(*held(gate))
    client.sendall(v1("203.0.113.8", 4711))
    gate.rig.readable()
    (worker,) = gate.rig.pool.in_use.values()
    assert (worker.opened, worker.seen) == (began, clock.now)
    assert (gate.rig.rejections.count["per_source"], gate.proxies.waiting) == (before, 0)
    del gate.rig.pool.sources[CLIENT]


def test_a_client_that_is_no_proxy_sends_data(gate: Gate) -> None:
    """Also if it looks like a header. One without an address is no proxy, either."""
    gate.come(v2(CLIENT, 4711), address=DIRECT)
    peer = Peer(DIRECT, 1)
    peer.address = None
    ours, theirs = sockets()
    gate.rig.sockets.append(theirs)
    gate.proxies.admit(ours, peer, LISTENER, gate.open)
    theirs.sendall(b"x")
    gate.rig.loop.run()
    assert gate.unread == [v2(CLIENT, 4711), b"x"]
    assert [line["client"]["address"] for line in gate.lines("connection.opened")] == [DIRECT, None]
    assert "proxy" not in gate.lines("connection.opened")[0]
    assert {line["listener"] for line in gate.lines("connection.opened")} == {LISTENER}


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"hello", "no header"), (b"PROXY TCP4\r\n", "its line is"), (binary(0x21, 0x11), "it is too short")],
)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_a_connection_with_a_wrong_header_is_rejected(gate: Gate, data: bytes, error: str, *, late: bool) -> None:
    """With the proxy as its client."""
    client = gate.come(b"" if late else data)
    if late:
        gate.send(client, data)
    assert is_closed(client)
    (line,) = gate.lines("connection.rejected")
    assert (line["client"], line["reason"]) == ({"address": PROXY, "port": 9}, "proxy_header")
    assert line["listener"] == LISTENER
    assert line["error"].startswith(error)
    assert gate.rig.rejections.count == {"proxy_header": 1}
    assert gate.at_rest


def test_a_connection_whose_header_does_not_come_is_rejected(gate: Gate) -> None:
    """After `timeouts.handshake`, also if a part of it has come, and without a worker."""
    clients = [gate.come(), gate.come(b"PROXY TCP4")]
    gate.rig.loop.advance(LIMIT - 0.1)
    assert (gate.rejected, gate.rig.pool.free) == ([], 3)
    gate.rig.loop.advance(0.2)
    assert gate.rejected == ["proxy_header: too late"] * 2
    assert all(map(is_closed, clients))
    assert gate.at_rest


def test_a_header_that_came_while_the_process_was_stopped_is_in_time(gate: Gate) -> None:
    """The loop runs its timers before it reads."""
    gate.come().sendall(v1(CLIENT, 4711))
    gate.rig.loop.advance(LIMIT)
    assert NAMED.items() <= gate.lines("connection.opened")[0].items()
    assert gate.rejected == []
    assert gate.at_rest


def test_without_a_limit_it_waits_for_the_header(gate: Gate) -> None:
    """`timeouts.handshake = "off"`. A reload that changes it affects new connections only."""
    gate.set(limit=None)
    client = gate.come()
    gate.set(network="192.0.2.0/24")
    gate.rig.loop.advance(10 * LIMIT)
    gate.send(client, v1(CLIENT, 4711))
    assert NAMED.items() <= gate.lines("connection.opened")[0].items()


def test_a_header_that_ends_early_is_wrong(gate: Gate) -> None:
    """It is not a probe: that sends no byte, or a whole header."""
    client = gate.come(b"PROXY TCP4")
    gate.finish(client)
    assert gate.rejected == ["proxy_header: incomplete"]
    assert gate.proxies.probes == 0


def test_at_most_as_many_wait_as_there_are_workers(gate: Gate) -> None:
    """One more is rejected; one whose header is there does not wait."""
    clients = [gate.come() for _ in range(3)]
    assert is_closed(gate.come())
    gate.come(v1(CLIENT, 1))
    assert gate.rejected == ["proxy_header: too many connections wait for their header"]
    assert (gate.proxies.waiting, len(gate.rig.pool.in_use)) == (3, 1)
    gate.finish(clients[0])
    gate.come()
    assert len(gate.rejected) == 1


def test_a_bounded_number_of_addresses_is_remembered(gate: Gate) -> None:
    """Clients choose from which address they connect."""
    with mock.patch.object(Ranges, "__contains__", return_value=False) as lookup:
        gate.set()
        for number in [*range(REMEMBERED + 1), 0, REMEMBERED]:
            gate.proxies._is_proxy(str(number))
    assert lookup.call_count == REMEMBERED + 2


# Probes


def test_a_proxy_that_says_nothing_checks(gate: Gate) -> None:
    """A probe: no line above debug, and no worker."""
    gate.finish(gate.come())
    assert gate.rig.lines.lines == [{**CHECK, "command": None}]
    assert (gate.proxies.probes, gate.rig.pool.accepted, gate.proxies.headers) == (1, 0, {})
    assert gate.at_rest


def test_a_reset_is_a_probe_too(gate: Gate) -> None:
    """Also if it comes before the connection is accepted."""
    ours, theirs = sockets()
    gate.rig.sockets.append(ours)
    ours.sendall(b"unread")
    theirs.close()  # a Unix socket resets if its peer closes with something unread
    gate.proxies.admit(ours, Peer(PROXY, 9), LISTENER, gate.open)
    assert (gate.proxies.probes, gate.rejected) == (1, [])
    assert ours.fileno() < 0


@pytest.mark.parametrize("header", [LOCAL_CHECK, binary(0x21, 0), b"PROXY UNKNOWN\r\n", binary(0x20, 0, b"\4\0\0")])
def test_a_check_is_echoed_and_counts_for_nobody(gate: Gate, header: bytes) -> None:
    """It needs a worker for its data only, and has no line above debug, whatever the limits are."""
    gate.rules(Rules(None, Ranges([IPv4Network(f"{CLIENT}/32")]), 1, 0.001))
    client = gate.come(header)
    gate.rig.readable()
    assert gate.rig.pool.accepted == 0
    ((_, command),) = gate.proxies.headers
    assert gate.rig.lines.lines == [{**CHECK, "command": command}]
    gate.send(client, b"ping")
    assert (gate.unread, gate.rig.pool.sources) == ([b"ping"], {"": 1})
    gate.rig.finish()
    assert [line["event"] for line in gate.rig.lines.lines if line["level"] != "debug"] == []
    assert (gate.proxies.probes, gate.rig.pool.unused, gate.rig.pool.closed) == (1, 0, {"eof": 1})
    assert sum(gate.proxies.headers.values()) == 1
    assert gate.at_rest


WITHOUT_THE_PROXY = [
    pytest.param(Rules(Ranges([IPv4Network("203.0.113.0/24")]), None, 0, None), id="not allowed"),
    pytest.param(Rules(None, Ranges([IPv4Network("10.0.0.0/8")]), 0, None), id="denied"),
]


@pytest.mark.parametrize("header", [binary(0x21, 0), b"PROXY UNKNOWN\r\n"])
@pytest.mark.parametrize("rules", WITHOUT_THE_PROXY)
def test_whom_a_proxy_can_not_name_needs_the_permission_of_the_proxy(gate: Gate, header: bytes, rules: Rules) -> None:
    """To send data. Without data, it is a check like any other."""
    gate.rules(rules)
    client, other = gate.come(header), gate.come(header)
    gate.finish(other)
    assert gate.rig.rejections.count == {}
    gate.send(client, b"ping")
    assert is_closed(client)
    assert (gate.rig.rejections.count, gate.rejected, gate.rig.pool.accepted) == ({"denied": 1}, [], 0)
    assert gate.proxies.probes == 2
    assert gate.at_rest


@pytest.mark.parametrize("rules", WITHOUT_THE_PROXY)
def test_a_check_by_local_needs_no_permission(gate: Gate, rules: Rules) -> None:
    """It is the proxy's own, also if it sends data, such as a TLS handshake."""
    gate.rules(rules)
    gate.come(LOCAL_CHECK + b"ping")
    assert gate.unread == [b"ping"]
    assert gate.rig.rejections.count == {}


def test_a_check_without_data_ends_without_a_word(gate: Gate) -> None:
    """With its end, or after `timeouts.handshake`."""
    client, other = gate.come(LOCAL_CHECK), gate.come(LOCAL_CHECK)
    gate.finish(client)
    gate.rig.loop.advance(LIMIT)
    assert is_closed(client)
    assert is_closed(other)
    assert (gate.rejected, gate.proxies.probes, gate.rig.pool.accepted) == ([], 2, 0)
    assert gate.proxies.headers == {("v2", "LOCAL"): 2}
    assert gate.at_rest


@pytest.mark.parametrize("says", [True, False], ids=["and speaks", "and is silent"])
def test_a_proxy_that_names_itself_is_a_client(gate: Gate, *, says: bool) -> None:
    """As `echod ping --proxy` is. At the latest after `timeouts.handshake`, it has a worker."""
    client = gate.come(v1(PROXY, 9))
    assert gate.rig.pool.accepted == 0
    if says:
        gate.send(client, b"ping")
    else:
        gate.rig.loop.advance(LIMIT)
    assert gate.rig.pool.sources == {PROXY: 1}
    assert not says or gate.unread == [b"ping"]
    (line,) = gate.lines("connection.opened")
    assert (line["client"], line["proxy"]) == ({"address": PROXY, "port": 9},) * 2
    assert gate.proxies.probes == 0


@pytest.mark.parametrize("name", [PROXY, f"::ffff:{PROXY}"])
def test_a_proxy_that_names_itself_and_leaves_has_checked(gate: Gate, name: str) -> None:
    """HAProxy's checks of version 1 do so. It may know its IPv4 address as one of IPv6."""
    client = gate.come(v1(name, 9))
    gate.finish(client)
    (line,) = gate.rig.lines.lines
    assert (line["level"], line["event"], line["command"]) == ("debug", "connection.probed", "PROXY")
    assert (gate.proxies.probes, gate.rig.pool.accepted) == (1, 0)
    assert gate.at_rest


def test_a_check_finds_out_that_the_pool_is_full(gate: Gate) -> None:
    """It is counted as rejected, without a line of its own."""
    for _ in range(3):
        gate.come(b"x", DIRECT)
    assert not is_open_after(gate, gate.come(LOCAL_CHECK + b"ping"))
    assert gate.rig.rejections.count == {"pool_full": 1}
    assert (gate.rejected, len(gate.rig.rejections.recent)) == ([], 0)


def is_open_after(gate: Gate, client: socket.socket) -> bool:
    gate.rig.readable()
    gate.rig.loop.run()
    return not is_closed(client)


# Admission


def test_the_rules_apply_to_the_named_client(gate: Gate) -> None:
    """And not to the proxy."""
    gate.rules(Rules(None, Ranges([IPv4Network("203.0.113.0/24"), IPv4Network("10.0.0.0/8")]), 1, None))
    gate.come(v1(CLIENT, 4711))
    gate.come(v1("198.51.100.1", 1))
    gate.come(v1("198.51.100.1", 2))
    gate.come(v1("198.51.100.2", 3))
    gate.rig.loop.run()
    assert gate.rejected == ["denied: None", "per_source: None"]
    assert NAMED.items() <= gate.lines("connection.rejected")[0].items()
    assert gate.rig.pool.sources == {"198.51.100.1": 1, "198.51.100.2": 1}


def test_headers_that_come_together_are_admitted_as_there_is_room(gate: Gate) -> None:
    """Admission holds some for a few turns. The others wait for their turn, in order, and nobody is forgotten."""
    gate.rules(Rules(None, None, 1, None))
    resize(gate.rig.pool, 3 * MOST)
    for number in range(2 * MOST + 1):
        gate.come(v1(CLIENT, number))
        assert gate.rig.admission.held <= MOST
    gate.come(v1("198.51.100.1", 1))
    assert (gate.proxies.waiting, gate.rig.admission.held) == (MOST + 1, MOST)
    while gate.proxies.waiting:
        assert gate.rig.admission.held == MOST
        gate.rig.loop.turn()
        assert gate.rig.admission.held <= MOST
    gate.rig.loop.run()
    assert [line["client"]["port"] for line in gate.lines("connection.opened")] == [0, 1]
    assert {line["listener"] for line in gate.lines("connection.opened")} == {LISTENER}
    assert gate.rig.rejections.count == {"per_source": 2 * MOST}
    assert gate.at_rest or gate.rig.loop.timers == 1  # of the rejections' log


def test_a_single_header_waits_for_room_too(gate: Gate) -> None:
    """It is admitted as soon as there is some, without another one that comes."""
    gate.rules(Rules(None, None, 1, None))
    resize(gate.rig.pool, 3 * MOST)
    for number in range(MOST + 1):
        gate.come(v1(CLIENT, number))
    gate.come(v1("198.51.100.1", 1))
    assert gate.proxies.waiting == 1
    gate.rig.loop.run()
    assert gate.rig.pool.sources == {CLIENT: 1, "198.51.100.1": 1}


def test_a_turn_of_the_loop_reads_a_bounded_number_of_headers(gate: Gate) -> None:
    """The open connections go on in between."""
    resize(gate.rig.pool, BATCH + 1)
    for number, client in enumerate([gate.come() for _ in range(BATCH + 1)]):
        client.sendall(v1(CLIENT, number))
    (read,) = gate.rig.loop.readers.values()
    read()
    assert (gate.proxies.waiting, len(gate.rig.pool.in_use)) == (1, BATCH)


def test_a_fault_of_admission_costs_one_connection(gate: Gate) -> None:
    """Its socket is closed: at once, later, or after a wait for room. The others go on."""
    resize(gate.rig.pool, 200)
    admit, calls = gate.rig.admission.admit, []

    def failing(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) <= 3:
            raise MemoryError
        admit(*arguments)

    gate.rig.admission.admit = failing  # type: ignore[method-assign,assignment]
    with pytest.raises(MemoryError):
        gate.come(v1(CLIENT, 1))
    client = gate.come()
    with pytest.raises(MemoryError):
        gate.send(client, v1(CLIENT, 2))
    assert is_closed(client)
    gate.rules(Rules(None, None, 1, None))
    gate.rig.pool.sources[CLIENT] = 1
    for _ in range(MOST):
        admit(*held(gate))
    clients = [gate.come(v1(CLIENT, 3)), gate.come(v1("198.51.100.1", 4))]
    for _ in range(TURNS + 1):
        try:
            gate.rig.loop.turn()
        except MemoryError:
            assert is_closed(clients[0])
    gate.rig.loop.run()
    assert len(calls) == 4
    assert [line["client"]["port"] for line in gate.lines("connection.opened")] == [4]
    del gate.rig.pool.sources[CLIENT]


def held(gate: Gate) -> tuple[Any, ...]:
    """Return a connection of a source that has its share."""
    ours, theirs = sockets()
    gate.rig.sockets += [ours, theirs]
    return ours, Peer(CLIENT, 0), LISTENER, gate.open


def test_a_connection_that_can_not_be_watched_is_the_acceptors(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """It closes the socket then, which nothing watches any more."""

    def failing(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(gate.rig.loop, "call_later", failing)
    with pytest.raises(MemoryError):
        gate.come()
    assert gate.at_rest


# The end


def test_a_stop_closes_those_that_wait(gate: Gate) -> None:
    """With and without a header, without a line."""
    gate.rig.pool.sources[CLIENT] = 1
    gate.rules(Rules(None, None, 1, None))
    resize(gate.rig.pool, 200)
    for _ in range(MOST):
        gate.rig.admission.admit(*held(gate))
    clients = [gate.come(), gate.come(LOCAL_CHECK), gate.come(v1(CLIENT, 1)), gate.come(v1(CLIENT, 2))]
    assert gate.proxies.waiting == 4
    gate.proxies.close()
    assert all(map(is_closed, clients))
    assert gate.at_rest
    del gate.rig.pool.sources[CLIENT]


def test_a_stop_gives_headers_under_way_a_moment(gate: Gate) -> None:
    """Or none if all is to end at once; and nobody waits if there is nothing to wait for."""

    async def stop() -> None:
        loop = asyncio.get_running_loop()
        at_once = loop.create_future()
        await gate.proxies.finish(60.0, at_once)
        client = gate.come()
        loop.call_soon(gate.send, client, v1(CLIENT, 4711))
        loop.call_soon(at_once.set_result, None)
        gate.come()
        await gate.proxies.finish(60.0, at_once)

    asyncio.run(stop())
    assert NAMED.items() <= gate.lines("connection.opened")[0].items()
    assert gate.at_rest


def test_when_full_is_wait_a_worker_is_kept_free_for_each_that_waits(gate: Gate) -> None:
    """Else some of them would be accepted, and then rejected. The acceptor goes on as soon as one of them needs none."""
    rig = gate.rig
    gate.set("127.0.0.0/8")
    rig.admission.entrance = gate.proxies.admit
    port = rig.serve(when_full="wait")
    clients = [rig.connect(port) for _ in range(5)]
    (listener,) = (each.listener.sock for each in rig.listeners.acceptors)
    for _ in range(2 * TURNS):
        if listener in rig.loop.readers:
            rig.loop.readers[listener]()
            rig.loop.run()
    assert (gate.proxies.waiting, rig.pool.free, listener in rig.loop.readers) == (3, 3, False)
    gate.rules(Rules(None, Ranges([IPv4Network(f"{CLIENT}/32")]), 0, None))
    clients[0].sendall(v1(CLIENT, 4711))  # which is denied
    rig.readable()
    assert gate.rejected == ["denied: None"]
    assert gate.proxies.waiting == 3
    for number, client in enumerate(clients[1:]):
        client.sendall(v1("198.51.100.1", number))
    for _ in range(4):
        rig.turn()
    assert len(rig.pool.in_use) == 3
    assert len(gate.rejected) == 1
