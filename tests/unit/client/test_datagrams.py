"""`echod ping` over UDP: loss, reordering, duplicates, and datagrams that are too large."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from echod.client import datagrams as module
from echod.client.datagrams import Datagrams
from echod.client.exchange import Exchange
from echod.client.paths import Address, Route, Target
from echod.client.poller import Poller
from echod.client.streams import Failure, Message
from tests.support.echo_servers import datagrams
from tests.support.harness import LOCAL, free_port, until
from tests.support.idle_clock import CROWD
from tests.unit.client.test_ping import IMPATIENT, QUICK, counts, ping, told
from tests.unit.client.test_streams import Told, poll

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("clock")
X25: Any = 9  # <bits/socket.h>


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, LOCAL), (socket.AF_INET6, "[::1]")])
def test_right_echoes_are_a_line_each(capsys: Capture, family: socket.AddressFamily, host: str) -> None:
    """The sizes take turns on one socket."""
    with datagrams(lambda data: [data], family) as port:
        code, out, _ = ping(capsys, "-i", "0.01", "-c", "3", "-s", "8,1400", f"udp://{host}:{port}")
    lines = out.splitlines()
    assert code == 0
    assert [line.partition(" time=")[0] for line in lines[1:4]] == [
        f"{size} bytes from {host}:{port}: seq={number}" for number, size in ((1, 8), (2, 1400), (3, 8))
    ]
    assert lines[4].startswith("OK - 3 of 3 echoed, 0 % lost, rtt ")
    assert any(line.startswith("jitter ") for line in lines)


def test_what_is_lost_or_comes_twice_is_told(capsys: Capture) -> None:
    """By the number within the message."""
    seen = 0

    def answers(data: bytes) -> Iterable[bytes]:
        nonlocal seen
        seen += 1
        return {1: [data, data], 2: [], 3: [data]}[seen]

    with datagrams(answers) as port:
        code, events, summary = told(capsys, "-W", "0.3", "-c", "3", "-i", "0.05", f"udp://{LOCAL}:{port}")
    assert [(each["event"], each["seq"]) for each in events] == [
        ("ping.echo", 1),
        ("ping.duplicate", 1),
        ("ping.echo", 3),
        ("ping.lost", 2),
    ]
    assert (summary["duplicates"], summary["reordered"], counts(summary), code) == (1, 0, (2, 1, 0), 1)


def test_what_comes_after_a_later_one_is_reordered(capsys: Capture) -> None:
    held: list[bytes] = []

    def answers(data: bytes) -> Iterable[bytes]:
        if not held:
            held.append(data)
            return []
        return [data, held[0]]

    with datagrams(answers) as port:
        code, events, summary = told(capsys, "-c", "2", f"udp://{LOCAL}:{port}")
    assert [each["seq"] for each in events] == [2, 1]
    assert (summary["reordered"], counts(summary), code) == (1, (2, 0, 0), 0)


def test_late_echoes_are_told_and_stay_lost(capsys: Capture) -> None:
    """The socket stays the same."""

    def answers(data: bytes) -> Iterable[bytes]:
        CROWD.sleep(0.25)
        return [data]

    with datagrams(answers) as port:
        code, events, summary = told(capsys, *IMPATIENT, "-c", "2", "-i", "0.4", f"udp://{LOCAL}:{port}")
    assert [each["event"] for each in events] == ["ping.lost", "ping.late", "ping.lost"]
    assert (summary["late"], code) == (1, 2)


@pytest.mark.parametrize(
    ("answer", "offset", "error"),
    [
        (lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:], 20, "1 byte wrong, the first at offset 20: "),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], 0, "1 byte wrong, the first at offset 0: "),
        (lambda data: data[:30], 30, "30 bytes came back, not 56"),
        (lambda data: data[:4], 4, "4 bytes came back, not 56"),
        (lambda data: data + b"x", 56, "57 bytes came back, not 56"),
    ],
    ids=["flip", "flip in the number", "truncated", "truncated in the number", "longer"],
)
def test_what_is_wrong_is_told(capsys: Capture, answer: object, offset: int, error: str) -> None:
    """Also if its number is what is wrong."""
    with datagrams(lambda data: [answer(data)]) as port:  # type: ignore[operator]
        code, (event,), summary = told(capsys, "-c", "1", f"udp://{LOCAL}:{port}")
    assert (event["event"], event["offset"]) == ("ping.wrong", offset)
    assert event["error"].startswith(error)
    assert (counts(summary), code) == ((0, 0, 1), 2)


def test_a_second_echo_that_is_wrong_is_wrong(capsys: Capture) -> None:
    """The message is wrong then, although it was echoed before."""
    with datagrams(lambda data: [data, data[:-1]]) as port:
        code, events, summary = told(capsys, "-c", "2", "-i", "0.05", f"udp://{LOCAL}:{port}")
    assert [each["event"] for each in events][:2] == ["ping.echo", "ping.wrong"]
    assert summary["wrong"] >= 1
    assert code == 2


def test_a_port_where_nobody_listens_is_told(capsys: Capture) -> None:
    """The other kernel says so (ICMP)."""
    code, events, _ = told(capsys, "-c", "2", f"udp://{LOCAL}:{free_port()}")
    assert [each["error"] for each in events] == ["nobody listens at this port (ICMP)"] * 2
    assert code == 2


def test_a_datagram_that_is_too_large_is_told(capsys: Capture) -> None:
    """By this kernel: nothing is fragmented."""
    with datagrams(lambda data: [data]) as port:
        code, events, summary = told(capsys, "-c", "2", "-s", "56,66000", f"udp://{LOCAL}:{port}")
    assert {each["seq"]: each.get("error") for each in events} == {1: None, 2: "message too long"}
    assert (summary["black_hole"], code) == (66000, 1)


def test_the_server_may_be_why_large_ones_are_lost(capsys: Capture) -> None:
    """The path is not the only one that has a largest size."""
    with datagrams(lambda data: [data] if len(data) < 100 else []) as port:
        _, out, _ = ping(capsys, *QUICK, *IMPATIENT, "-q", "-c", "2", "-s", "56,100", f"udp://{LOCAL}:{port}")
    why = "larger packets are lost on the way (MTU), or the server drops such datagrams (echod: above udp.max_size)"
    assert out.splitlines()[-1] == f"nothing came back of 100 bytes or more, but of less: {why}"


@pytest.mark.parametrize(("size", "is_told"), [(1472, False), (1473, True)])
def test_of_large_ones_alone_it_is_told_what_to_try(capsys: Capture, size: int, *, is_told: bool) -> None:
    with datagrams(lambda _: []) as port:
        _, out, _ = ping(capsys, *QUICK, *IMPATIENT, "-q", "-c", "1", "-s", str(size), f"udp://{LOCAL}:{port}")
    hint = "try at most 1472 bytes: the path or the server may drop larger datagrams (echod: above udp.max_size)"
    assert (out.splitlines()[-1] == hint) == is_told


def test_messages_without_room_for_a_number_have_their_sockets(capsys: Capture) -> None:
    """Several may be under way, and their echoes may come in any order; also those of empty ones."""
    held: list[bytes] = []
    sources = set[Any]()

    def answers(data: bytes) -> Iterable[bytes]:
        held.append(data)
        return [data] if len(held) != 2 else []

    with datagrams(answers, sources=sources) as port:
        words = ["-c", "5", "-s", "0,3,7,56", f"udp://{LOCAL}:{port}"]
        code, events, summary = told(capsys, *words, *IMPATIENT, "-i", "0.02")
    assert [len(data) for data in held] == [0, 3, 7, 56, 0]
    assert len(sources) == 5
    assert [(each["event"], each["seq"]) for each in events] == [
        *(("ping.echo", number) for number in (1, 3, 4, 5)),
        ("ping.lost", 2),
    ]
    assert (counts(summary), code) == ((4, 1, 0), 1)


def test_the_next_address_is_tried_until_one_has_answered(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once if nobody listens at this one, and nothing is lost by that; the line says which one has answered."""
    with datagrams(lambda data: [data]) as port:
        resolve_to(monkeypatch, port, "127.0.0.9", "127.0.0.8", LOCAL)
        code, events, summary = told(capsys, "-c", "3", "-s", "56,3,56", f"udp://several.example:{port}")
    assert [(each["event"], each["seq"], each["server"]["address"]) for each in events] == [
        ("ping.echo", number, LOCAL) for number in (1, 2, 3)
    ]
    assert ([row["server"]["address"] for row in summary["servers"]], code) == ([LOCAL], 0)


def test_if_nobody_listens_at_any_address_each_message_tries_them_all(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is lost once, at the last one."""
    port = free_port()
    resolve_to(monkeypatch, port, LOCAL, "127.0.0.9")
    code, events, summary = told(capsys, "-c", "3", f"udp://several.example:{port}")
    assert [(each["reason"], each["server"]["address"]) for each in events] == [
        ("refused", host) for host in ("127.0.0.9", LOCAL, "127.0.0.9")
    ]
    assert (counts(summary), code) == ((0, 3, 0), 2)


def resolve_to(monkeypatch: pytest.MonkeyPatch, port: int, *hosts: str) -> None:
    """Let a name have these addresses."""
    found = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (host, port)) for host in hosts]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)


def test_reconnect_uses_a_new_port_for_each_message(capsys: Capture) -> None:
    """A balancer may send each to another backend."""
    with datagrams(lambda data: [data]) as port:
        code, _, summary = told(capsys, "-c", "3", "--reconnect", f"udp://{LOCAL}:{port}")
    assert (summary["echoed"], code) == (3, 0)


@pytest.fixture
def poller() -> Iterator[Poller]:
    made = Poller()
    yield made
    made.close()


def test_an_error_of_the_message_before_is_not_of_the_next(poller: Poller) -> None:
    """A send reports what the kernel has heard of the last one; without one, it is nobody's."""
    told_ = Told()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as later:
        port = free_port()
        link = Datagrams(poller, told_, [Address(socket.AF_INET, (LOCAL, port))], os.urandom)
        first, second, third = (Message(number, 8, 0.0) for number in (1, 2, 3))
        link.put(first)  # the error is there at once, and nobody reads it
        later.bind((LOCAL, port))
        link.put(second)
        assert [(event[0], event[1].number) for event in told_.events] == [("lost", 1)]
        data, address = later.recvfrom(100)
        later.sendto(b"12345678", address)  # of another run: taken for the oldest one's
        poll(poller, lambda: second.outcome)
        later.sendto(data[:4] + b"\0\0\0\x09", address)  # of nobody's
        later.sendto(data, address)
        poll(poller, lambda: len(told_.events) == 3)
    link.put(third)
    poll(poller, lambda: third.outcome)
    link.close()
    link.close()
    assert [event[0] for event in told_.events] == ["lost", "wrong", "late", "lost"]


def test_a_refusal_of_a_message_that_is_finished_is_of_nobody(poller: Poller) -> None:
    told_ = Told()
    link = Datagrams(poller, told_, [Address(socket.AF_INET, (LOCAL, free_port()))], os.urandom)
    message = Message(1, 8, 0.0)
    link.put(message)
    link.give_up(message, 1.0)
    for _ in range(3):
        poller.wait(time.monotonic())
    assert [event[0] for event in told_.events] == ["lost"]
    assert link.is_idle
    link.step()
    link.close()


def test_without_a_route_each_message_is_lost(poller: Poller) -> None:
    """With the error of the kernel."""
    told_ = Told()
    link = Datagrams(poller, told_, [Address(socket.AF_INET, ("255.255.255.255", 7))], os.urandom)
    link.put(Message(1, 8, 0.0))
    assert told_.events[0][2].text in ("permission denied", "network is unreachable")


def test_an_address_of_a_family_that_the_kernel_lacks_is_passed_over(poller: Poller) -> None:
    """X.25 stands for IPv6 where that is off."""
    lacking = Address(X25, (LOCAL, 7))
    with datagrams(lambda data: [data]) as port:
        link = Datagrams(poller, Told(), [lacking, Address(socket.AF_INET, (LOCAL, port))], os.urandom)
        assert (link.address.family, link.end) == (socket.AF_INET, None)
        link.close()


def test_an_address_that_is_silent_is_left_after_a_lost_message() -> None:
    """Its echo may still come. Once an address has answered, no loss changes it."""
    told_ = Told()
    left = [True, False]

    def turn_until(count: int) -> None:
        def met() -> bool:
            exchange.turn(time.monotonic() + 0.01)
            return len(told_.events) == count

        until(met, what="what the exchange tells", interval=0)

    with (
        datagrams(lambda data: [data] if left.pop(0) else []) as port,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent,
    ):
        silent.bind(("127.0.0.9", port))
        addresses = [Address(socket.AF_INET, (host, port)) for host in ("127.0.0.9", LOCAL)]
        exchange = Exchange(Route(Target("udp", "h", port), addresses), 0.1, told_, os.urandom)
        first = exchange.open(addresses)
        exchange.send(first, Message(1, 8, 0.0))
        turn_until(1)
        assert first.is_retired
        second = exchange.open(addresses)
        exchange.send(second, Message(2, 8, 0.0))
        turn_until(2)
        exchange.send(second, Message(3, 8, 0.0))
        turn_until(3)
        silent.sendto(*silent.recvfrom(100))
        turn_until(4)
        second.close()
        exchange.close()
    assert [(event[0], event[1].number) for event in told_.events] == [
        ("lost", 1),
        ("echoed", 2),
        ("lost", 3),
        ("late", 1),
    ]
    assert (second.address.sockaddr[0], second.is_retired) == (LOCAL, False)


def test_an_address_that_has_answered_is_kept_when_it_refuses(poller: Poller) -> None:
    """A server that restarts loses messages, and another one must not hide it."""
    told_ = Told()
    with datagrams(lambda data: [data]) as port:
        addresses = [Address(socket.AF_INET, (host, port)) for host in (LOCAL, "127.0.0.9")]
        link = Datagrams(poller, told_, addresses, os.urandom)
        link.put(Message(1, 8, 0.0))
        poll(poller, lambda: told_.events)
    link.put(Message(2, 8, 0.0))
    poll(poller, lambda: len(told_.events) == 2)
    assert [(event[0], event[1].number) for event in told_.events] == [("echoed", 1), ("lost", 2)]
    assert link.address == addresses[0]
    link.close()


def test_without_another_address_that_can_be_opened_a_refused_message_is_lost(poller: Poller) -> None:
    """At the one that refuses it."""
    lacking = Address(X25, (LOCAL, 7))
    told_ = Told()
    link = Datagrams(poller, told_, [Address(socket.AF_INET, (LOCAL, free_port())), lacking], os.urandom)
    link.put(Message(1, 8, 0.0))
    poll(poller, lambda: told_.events)
    assert (told_.events[0][0], told_.events[0][2].reason, link.address.family) == ("lost", "refused", socket.AF_INET)
    link.close()


def test_a_router_that_has_no_room_for_a_datagram_is_told_apart(poller: Poller) -> None:
    """The kernel hears of it by ICMP, and does not tell of which message. It is the largest one."""
    told_ = Told()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((LOCAL, 0))
        link = Datagrams(poller, told_, [Address(socket.AF_INET, silent.getsockname())], os.urandom)
        small, large = Message(1, 8, 0.0), Message(2, 1400, 0.0)
        link.put(small)
        link.put(large)
        link._fail(errno.EMSGSIZE)
        link._fail(errno.EHOSTUNREACH)
        link.close()
    assert told_.events == [
        ("lost", large, Failure("error", "message too long (ICMP)")),
        ("lost", small, Failure("error", "no route to host (ICMP)")),
    ]


def test_datagrams_are_not_fragmented(poller: Poller) -> None:
    """So the largest one that comes back tells the MTU of the path (ip(7), IP_MTU_DISCOVER)."""
    link = Datagrams(poller, Told(), [Address(socket.AF_INET, (LOCAL, free_port()))], os.urandom)
    assert link._sock.getsockopt(socket.IPPROTO_IP, module._MTU_DISCOVER[socket.AF_INET][1]) == module._ALWAYS
    link.close()


def test_only_some_finished_messages_are_remembered(poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the messages, whatever their size."""
    monkeypatch.setattr(module, "_REMEMBERED", 16)
    link = Datagrams(poller, Told(), [Address(socket.AF_INET, (LOCAL, free_port()))], os.urandom)
    for number in range(5):
        message = Message(number, 8, 0.0)
        link.put(message)
        link.give_up(message, 1.0)
    assert len(link._finished) == 2
    link.close()


def test_an_echo_of_a_message_that_is_forgotten_is_of_nobody(capsys: Capture) -> None:
    """It comes so late that nothing is left to compare it with. No other message is wrong by that."""
    held: list[bytes] = []

    def answers(data: bytes) -> Iterable[bytes]:
        held.append(data)
        return held[-8:-7]

    size = module._REMEMBERED // 4
    with datagrams(answers) as port:
        words = ("-W", "0.05", "-i", "0.02", "-c", "12", "-s", str(size - 100))
        code, _, summary = told(capsys, *words, f"udp://{LOCAL}:{port}")
    assert (counts(summary), code) == ((0, 12, 0), 2)
