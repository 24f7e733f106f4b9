"""The UDP kind of listener, with real sockets on a loop that does what it is told."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from echod.errors import Refusal
from echod.server import kernel, udp
from echod.server.endpoint import Endpoint
from echod.server.listeners import Listeners, adopt
from tests.support.fakes import has_ipv6
from tests.support.rig import Rig, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from echod.server.udp import Answerer

LOCAL, OTHER = "127.0.0.1", "127.0.0.2"

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


class Service:
    """A server that answers UDP, and a client."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.host, self.port = LOCAL, 0

    def serve(self, hosts: str = LOCAL, port: int | str = 0, **values: Any) -> None:
        """Start, or reload."""
        wanted = settings(listen__host=hosts, listen__port=0, udp__port=port, **values)
        self.rig.listeners.serve(wanted, self.rig.listeners.bind(wanted))
        self.rig.datagrams.set(wanted.udp)
        if port != "off":
            self.host, self.port = hosts.split(",", maxsplit=1)[0], self.rig.port("udp")

    @property
    def answerers(self) -> list[Answerer]:
        return [each for each in self.rig.listeners.acceptors if isinstance(each, udp.Answerer)]

    def client(self, address: str = LOCAL) -> socket.socket:
        """Return a socket that has asked nobody yet."""
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        self.rig.sockets.append(sock)
        sock.bind((address, 0))
        sock.settimeout(5)
        return sock

    def answers(self, client: socket.socket, *data: bytes, to: str = "") -> list[tuple[bytes, str]]:
        """Send these; return what comes back, and from where."""
        for each in data:
            client.sendto(each, (to or self.host, self.port))
        self.rig.readable()
        found = []
        while select.select([client], [], [], 0)[0]:
            answer, address = client.recvfrom(1 << 16)
            assert address[1] == self.port
            found.append((answer, address[0]))
        return found

    @property
    def results(self) -> dict[str, int]:
        return {result: number for result, number in self.rig.datagrams.results.items() if number}


@pytest.fixture
def service(rig: Rig) -> Service:
    return Service(rig)


# Answers


@pytest.mark.parametrize("data", [b"", b"x", bytes(1472)])
def test_a_datagram_comes_back(service: Service, data: bytes) -> None:
    """Also one without a byte."""
    service.serve()
    assert service.answers(service.client(), data) == [(data, LOCAL)]
    assert service.results == {"echoed": 1}
    assert service.rig.datagrams.bytes_received == service.rig.datagrams.bytes_sent == len(data)


@pytest.mark.parametrize("hosts", ["*", "0.0.0.0", f"{LOCAL},{OTHER}"])  # noqa: S104
@pytest.mark.parametrize("asked", [LOCAL, OTHER])
def test_an_answer_comes_from_the_address_that_was_asked(service: Service, hosts: str, asked: str) -> None:
    """Whatever the kernel would choose."""
    service.serve(hosts)
    assert service.answers(service.client("127.0.0.3"), b"x", to=asked) == [(b"x", asked)]


@needs_ipv6
@pytest.mark.parametrize("hosts", ["*", "::", "::1"])
def test_ipv6_is_answered(service: Service, hosts: str) -> None:
    """On a socket of its own, or on that of both."""
    service.serve(hosts)
    assert service.answers(service.client("::1"), b"x", b"", to="::1") == [(b"x", "::1"), (b"", "::1")]


def test_where_the_kernel_does_not_tell_the_destination_it_chooses(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emulator refuses the options."""
    with monkeypatch.context() as patched:
        patched.setattr(udp, "_IP_PKTINFO", 255)  # there is no such option
        service.serve()
    assert service.answers(service.client(), b"x") == [(b"x", LOCAL)]


def test_a_datagram_that_is_too_large_is_dropped(service: Service) -> None:
    """By one byte."""
    service.serve(udp__max_size=100)
    assert service.answers(service.client(), bytes(101), bytes(100), bytes(60000)) == [(bytes(100), LOCAL)]
    assert service.results == {"echoed": 1, "too_large": 2}


def test_a_broadcast_is_not_answered(service: Service) -> None:
    """Nor a multicast, which the kernel marks in the same way."""
    service.serve("*")
    client = service.client()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    assert service.answers(client, b"x", to="127.255.255.255") == []
    assert service.results == {"destination": 1}


def test_an_answer_that_the_system_does_not_take_is_dropped(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no other one in its place."""
    service.serve()
    (answerer,) = service.answerers
    client = service.client()

    class Full:
        """A socket that sends nothing."""

        def __init__(self, sock: socket.socket) -> None:
            self.recvmsg, self.fileno = sock.recvmsg, sock.fileno

        def sendmsg(self, *_: object) -> None:
            raise BlockingIOError

    sock = answerer.listener.sock
    monkeypatch.setattr(answerer, "listener", answerer.listener._replace(sock=Full(sock)))  # type: ignore[arg-type]
    client.sendto(b"x", (LOCAL, service.port))
    service.rig.loop.readers[sock]()
    assert service.results == {"failed": 1}
    assert service.rig.datagrams.bytes_sent == 0
    monkeypatch.undo()


def info4(local: str, destination: str, interface: int = 3) -> tuple[int, int, bytes]:
    packed = struct.pack("=I4s4s", interface, socket.inet_aton(local), socket.inet_aton(destination))
    return socket.IPPROTO_IP, 8, packed


def info6(destination: str, interface: int = 3) -> tuple[int, int, bytes]:
    packed = socket.inet_pton(socket.AF_INET6, destination) + struct.pack("=I", interface)
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed


@pytest.mark.parametrize(
    ("ancillary", "answer_from"),
    [
        ([], []),
        ([(1, 2, b"else")], []),
        ([info4("192.0.2.1", "192.0.2.1")], [(0, 8, bytes(4) + socket.inet_aton("192.0.2.1") + bytes(4))]),
        ([info4("0.0.0.0", "192.0.2.1")], [(0, 8, bytes(4) + socket.inet_aton("192.0.2.1") + bytes(4))]),  # noqa: S104
        ([info6("2001:db8::1")], [info6("2001:db8::1", 0)]),
        ([info6("fe80::1")], [info6("fe80::1", 3)]),
        ([info6("febf::1")], [info6("febf::1", 3)]),
        ([info6("fec0::1")], [info6("fec0::1", 0)]),
        ([info6("::ffff:192.0.2.1")], [info6("::ffff:192.0.2.1", 0)]),
        (
            [info6("::ffff:192.0.2.1"), info4("192.0.2.1", "192.0.2.1")],
            [(0, 8, bytes(4) + socket.inet_aton("192.0.2.1") + bytes(4))],
        ),
    ],
)
def test_an_answer_names_the_address_and_not_the_interface(
    ancillary: list[Any],
    answer_from: list[Any],
) -> None:
    """But for a link-local one, which is none without it."""
    assert udp._asked(ancillary) == (True, answer_from)


@pytest.mark.parametrize(
    "ancillary",
    [
        [info4("192.0.2.1", "255.255.255.255")],
        [info4("192.0.2.1", "192.0.2.255")],
        [info4("192.0.2.1", "224.0.0.1")],
        [info6("::ffff:192.0.2.255"), info4("192.0.2.1", "192.0.2.255")],
        [info4("0.0.0.0", "224.0.0.1")],  # noqa: S104
        [info4("0.0.0.0", "255.255.255.255")],  # noqa: S104
        [info6("ff02::1")],
    ],
)
def test_a_destination_of_many_is_known(ancillary: list[Any]) -> None:
    """The kernel has chosen another address to answer from; IPv6 has multicast only."""
    assert udp._asked(ancillary)[0] is False


# Turns of the loop


def test_a_turn_answers_a_bounded_number(service: Service) -> None:
    """The rest in the next ones. A turn that drops takes no longer, so it drops more."""
    service.serve(udp__rate="5/s")
    client = service.client()
    for _ in range(5 + udp.BATCH + 1):
        client.sendto(b"x", (LOCAL, service.port))
    at_once = udp.BATCH // udp.ANSWER
    for answered, dropped in ((at_once, 0), (2 * at_once, 0), (5, udp.BATCH - udp.ANSWER), (5, udp.BATCH + 1)):
        service.rig.turn()
        assert (service.results["echoed"], service.results.get("rate", 0)) == (answered, dropped)


def test_a_flood_beyond_the_rates_leaves_the_loop_to_others(service: Service) -> None:
    """After some that were dropped there is a pause, in which it still counts as answering."""
    service.serve(udp__rate="1/s")
    client = service.client()
    for _ in range(5 * udp.DROPPED):
        client.sendto(b"x", (LOCAL, service.port))
    service.rig.readable()
    assert udp.DROPPED <= service.results["rate"] < udp.DROPPED + udp.BATCH
    assert [each.state for each in service.answerers] == ["answering"]
    service.rig.loop.advance(udp.PAUSE)
    service.rig.readable()
    assert service.results["rate"] >= 2 * udp.DROPPED
    assert service.answerers[0].paused_seconds == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "no memory"), MemoryError()])
def test_an_error_of_the_system_is_a_pause(service: Service, error: Exception) -> None:
    """The socket stays readable, and the loop would spin."""
    service.serve()
    (answerer,) = service.answerers
    sock = answerer.listener.sock

    class Failing:
        """A socket of a system without memory."""

        fileno = sock.fileno

        def recvmsg(self, *_: object) -> None:
            raise error

    listener = answerer.listener
    service.client().sendto(b"x", (LOCAL, service.port))
    reader = service.rig.loop.readers.pop(sock)
    failing: Any = Failing()
    service.rig.loop.readers[failing] = reader
    answerer.listener = listener._replace(sock=failing)
    reader()
    assert (answerer.state, service.rig.loop.readers.get(sock)) == ("paused", None)
    answerer.listener = listener
    service.rig.loop.advance(udp.ERROR_PAUSE)
    service.rig.readable()
    assert (answerer.state, answerer.paused_seconds) == ("answering", udp.ERROR_PAUSE)
    assert service.results == {"echoed": 1}


@needs_ipv6
def test_a_socket_whose_interface_is_gone_is_missing(service: Service) -> None:
    """It is not taken for one that answers."""
    service.serve("::1")
    (answerer,) = service.answerers
    listener = answerer.listener
    gone = listener._replace(endpoint=listener.endpoint._replace(host="fe80::1%gone"))
    assert [each.state for each in service.answerers] == ["answering"]
    answerer.listener = gone
    assert [each.state for each in service.answerers] == ["missing"]


def test_a_full_queue_is_noticed(service: Service) -> None:
    """What the kernel dropped is counted, and logged with the next full batch."""
    service.serve(udp__rate="off")
    (answerer,) = service.answerers
    answerer.listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    client = service.client()
    for _ in range(200):
        client.sendto(b"x", (LOCAL, service.port))
    drops = service.rig.datagrams.kernel_drops
    assert drops
    assert drops > 100
    service.rig.datagrams.log_drops()
    service.rig.loop.advance(0)
    (line,) = service.rig.lines.events("udp.dropped")
    assert line["reasons"] == {"kernel": drops}


# Its life


def test_a_listener_of_udp_is_logged_like_others(service: Service) -> None:
    """It has no backlog."""
    service.serve()
    assert service.rig.lines.lines[-1] == {
        "level": "info",
        "event": "listener.started",
        "listener": f"udp://{LOCAL}:{service.port}",
        "backlog": None,
    }


def test_it_may_have_the_port_of_tcp(service: Service) -> None:
    """As the services of RFC 862 have."""
    port = service.rig.reserve()
    wanted = settings(listen__host=LOCAL, listen__port=port, udp__port=port)
    service.rig.listeners.serve(wanted, service.rig.listeners.bind(wanted))
    assert service.rig.listeners.urls == [f"tcp://{LOCAL}:{port}", f"udp://{LOCAL}:{port}"]


def test_a_port_in_use_is_refused(service: Service) -> None:
    """Also where the other process would share it: that could take datagrams away."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((LOCAL, 0))
        port = other.getsockname()[1]
        with pytest.raises(Refusal) as caught:
            service.serve(port=port)
    line = f"echod: udp://{LOCAL}:{port}: address in use: choose another port (udp.port)"
    assert caught.value.lines == (line,)
    assert caught.value.exit_code == os.EX_UNAVAILABLE


def test_all_hosts_have_one_port(service: Service) -> None:
    """Also if the kernel chooses it."""
    service.serve(f"{LOCAL},{OTHER}")
    assert {each.listener.endpoint.port for each in service.answerers} == {service.port}


def test_with_reuse_port_processes_share_it(service: Service) -> None:
    """As for TCP."""
    service.serve(listen__reuse_port="true")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((LOCAL, service.port))


def test_a_reload_moves_it(service: Service) -> None:
    """Datagrams that wait at the old port are answered, then nobody answers there."""
    service.serve(port=service.rig.reserve())
    old, client = service.port, service.client()
    client.sendto(b"waits", (LOCAL, old))
    service.serve(port=service.rig.reserve())
    assert [each.state for each in service.answerers] == ["retired", "answering"]
    assert service.answers(service.client(), b"new") == [(b"new", LOCAL)]
    assert client.recvfrom(9) == (b"waits", (LOCAL, old))
    assert service.results == {"echoed": 2}
    assert [each.listener.endpoint.port for each in service.answerers] == [service.port]
    with pytest.raises(ConnectionRefusedError):
        connected(service, old).recv(1)


def connected(service: Service, port: int) -> socket.socket:
    """Return a client that hears of errors, and has asked."""
    client = service.client()
    client.connect((LOCAL, port))
    client.send(b"x")
    return client


def test_a_reload_turns_it_off_and_on(service: Service) -> None:
    """The books stay."""
    service.serve()
    service.answers(service.client(), b"x")
    service.serve(port="off")
    assert service.answerers == []
    service.serve()
    service.answers(service.client(), b"x")
    assert service.results == {"echoed": 2}


def test_a_host_may_be_replaced_by_one_that_overlaps(service: Service) -> None:
    """On the same port."""
    port = service.rig.reserve("0.0.0.0")  # noqa: S104
    service.serve("*", port)
    service.serve(LOCAL, port)
    assert service.answers(service.client(), b"x") == [(b"x", LOCAL)]
    service.serve("*", port)
    service.host = LOCAL
    assert service.answers(service.client(), b"x") == [(b"x", LOCAL)]


def test_a_change_back_revives_a_socket_that_still_has_waiting_datagrams(service: Service) -> None:
    """It goes on as if nothing had been."""
    port = service.rig.reserve()
    service.serve(port=port)
    service.client().sendto(b"x", (LOCAL, port))
    service.serve(port="off")
    assert [each.state for each in service.answerers] == ["retired"]
    service.serve(port="off")
    service.serve(port=port)
    assert [each.state for each in service.answerers] == ["answering"]
    assert service.answers(service.client(), b"y") == [(b"y", LOCAL)]
    assert service.results == {"echoed": 2}


def test_a_retired_socket_ends_although_datagrams_go_on_coming(service: Service) -> None:
    """After a number of batches."""
    service.serve(udp__rate="off", udp__total_rate="off")
    client, port = service.client(), service.port
    client.sendto(b"x", (LOCAL, port))
    service.serve(port="off", udp__rate="off", udp__total_rate="off")
    turns = 0
    while service.answerers:
        for _ in range(udp.BATCH):
            client.sendto(b"x", (LOCAL, port))
        service.rig.turn()
        turns += 1
        assert turns <= udp.LAST_TURNS
    assert turns == udp.LAST_TURNS


def test_a_stop_answers_what_waits_and_logs_what_was_dropped(service: Service) -> None:
    """Up to a few more than in a turn."""
    service.serve(udp__rate="5/s")
    client = service.client()
    for _ in range(7):
        client.sendto(b"x", (LOCAL, service.port))
    service.rig.listeners.close()
    assert service.results == {"echoed": 5, "rate": 2}
    (line,) = service.rig.lines.events("udp.dropped")
    assert line["reasons"] == {"rate": 2}
    assert not service.rig.loop.readers
    service.rig.loop.advance(10)


def test_a_stop_within_a_pause_ends_it(service: Service) -> None:
    """No timer touches a socket that is closed."""
    service.serve(udp__rate="1/s")
    client = service.client()
    for _ in range(2 * udp.DROPPED):
        client.sendto(b"x", (LOCAL, service.port))
    service.rig.readable()
    before = service.results
    service.rig.listeners.close()
    service.rig.loop.advance(10)
    assert service.results == before


# Sockets that systemd hands over


@pytest.fixture
def theirs() -> Iterator[socket.socket]:
    """A socket as systemd holds it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        yield sock


def test_a_socket_of_systemd_is_served(service: Service, theirs: socket.socket) -> None:
    """Whatever the settings say. What has found its queue full before this process was there does not count."""
    service.port = theirs.getsockname()[1]
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    client = service.client()
    for _ in range(100):
        client.sendto(b"x", (LOCAL, service.port))
    (listener,) = adopt([(theirs.dup().detach(), "echo.socket")]).listeners
    assert (listener.url, listener.inherited) == (f"udp://0.0.0.0:{service.port}", True)
    service.rig.listeners = Listeners(service.rig.parts, inherited=[listener])
    service.serve(port="off")
    assert service.rig.datagrams.kernel_drops == 0
    assert set(service.answers(client, b"y", to=OTHER)) <= {(b"x", LOCAL), (b"y", OTHER)}
    assert service.results["echoed"] > 1
    before = dict(service.results)
    client.sendto(b"z", (LOCAL, service.port))
    service.rig.listeners.close()
    assert service.results == before
    assert theirs.recv(9) == b"z"


def test_where_the_kernel_does_not_tell_its_drops_they_are_unknown(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else changes."""
    monkeypatch.setattr(kernel, "drops", lambda _: None)
    service.serve()
    assert service.rig.datagrams.kernel_drops is None
    assert service.answers(service.client(), b"x") == [(b"x", LOCAL)]
    service.rig.datagrams.log_drops()
    service.rig.loop.advance(1)


# What it costs if it is off


def test_without_udp_nothing_of_it_is_imported() -> None:
    """Nor after a server was made and bound."""
    code = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from echod.config import load\n"
        "from echod.server.server import Server\n"
        "settings = load.load(Path(os.devnull), {'listen.host': '127.0.0.1', 'listen.port': '0'}, {}).settings\n"
        "loop = asyncio.new_event_loop()\n"
        "class Log:\n"
        "    info = warning = configure = lambda *_, **__: None\n"
        "server = Server(loop, Log(), checked=lambda: None)\n"
        "server.apply(settings)\n"
        "print([name for name in sys.modules if 'udp' in name or 'datagrams' in name])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_a_program_that_is_gone_refuses_a_reload_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade has replaced it."""
    from echod.server.kinds import Deferred  # noqa: PLC0415
    from echod.server.listeners import KINDS, prepare_kinds  # noqa: PLC0415

    gone = Deferred("echod.server.gone", wanted=lambda _: True, takes=lambda _: True)
    monkeypatch.setitem(KINDS, "gone", gone)
    with pytest.raises(Refusal, match="the program has changed since the start, restart it: No module named"):
        prepare_kinds(settings())


def test_the_settings_want_an_endpoint_for_each_host() -> None:
    """Or none."""
    from echod.server.listeners import KINDS  # noqa: PLC0415

    assert KINDS["udp"].endpoints(settings()) == []
    found = KINDS["udp"].endpoints(settings(listen__host=f"{LOCAL},{OTHER}", udp__port=7))
    assert found == [Endpoint("udp", LOCAL, 7), Endpoint("udp", OTHER, 7)]
