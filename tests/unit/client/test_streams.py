"""A stream, its opening and its poller, at moments that `ping` meets by chance only."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from echod.client import exchange as exchange_module
from echod.client import opening
from echod.client.exchange import Exchange
from echod.client.opening import Opening
from echod.client.paths import Address, Route, Target
from echod.client.poller import Poller
from echod.client.streams import Failure, Message, Stream
from tests.support.echo_servers import right, serving, silent
from tests.support.harness import DEADLINE, LOCAL, free_port, reset, until

if TYPE_CHECKING:
    from collections.abc import Iterator


class Told:
    """Notes what an observer is told: the event, and what came with it."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def __getattr__(self, event: str) -> Any:
        return lambda *rest: self.events.append((event, *rest[1:]))  # without the stream


@pytest.fixture
def poller() -> Iterator[Poller]:
    made = Poller()
    yield made
    made.close()


def route(port: int, *hosts: str, proxy: str | None = None) -> Route:
    return Route(
        Target("tcp", "h", port), [Address(socket.AF_INET, (host, port)) for host in hosts or [LOCAL]], None, proxy
    )


def poll(poller: Poller, condition: Any) -> None:
    def met() -> bool:
        poller.wait(time.monotonic())
        return bool(condition())

    until(met, what="what the stream tells", interval=0.001)


@pytest.mark.parametrize("echoes", [True, False])
def test_an_echo_that_came_before_the_end_counts_although_the_next_message_finds_the_end(
    poller: Poller, *, echoes: bool
) -> None:
    """A write fails first, and what is there to read is read all the same."""
    told = Told()
    with socket.create_server((LOCAL, 0)) as listener:
        where = route(listener.getsockname()[1])
        stream = Stream(poller, told, where, where.addresses, os.urandom)
        server, _ = listener.accept()
        poll(poller, lambda: stream.opened)
        first, second = Message(1, 8, 0.0), Message(2, 8, 0.0)
        stream.put(first)
        data = server.recv(100)
        if echoes:
            server.sendall(data)
        reset(server)
        until(lambda: select.select([stream.opened.sock], [], [], 0)[0] if stream.opened else [], what="the end")
        stream.put(second)
    assert [event[0] for event in told.events] == ["opened", "echoed" if echoes else "lost", "lost", "ended"]
    assert told.events[2][1:] == (second, Failure("reset", "the server reset the connection"))
    stream.close()


def test_a_callback_may_remove_another_descriptor_that_is_ready(poller: Poller) -> None:
    """It is not called then, in the same turn."""
    called: list[int] = []
    pairs = [socket.socketpair() for _ in range(2)]
    numbers = [ours.fileno() for ours, _ in pairs]

    def remove(other: int) -> None:
        called.append(other)
        poller.remove(other)

    for (ours, theirs), other in zip(pairs, reversed(numbers), strict=True):
        poller.add(ours.fileno(), select.EPOLLIN, functools.partial(lambda other, _: remove(other), other))
        theirs.send(b"x")
    poller.wait(time.monotonic())
    assert len(called) == 1
    for each in (each for pair in pairs for each in pair):
        each.close()


def test_an_address_that_hangs_is_raced_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8305, 5: after some time, beside it. The first to answer wins, and the other attempt is closed."""
    monkeypatch.setattr(opening, "ATTEMPT_DELAY", 0.02)
    port = free_port()
    with socket.socket() as hanging, socket.create_server((LOCAL, port)), socket.socket() as client:
        hanging.bind(("127.0.0.2", port))
        hanging.listen(0)
        client.connect(("127.0.0.2", port))  # its backlog is full: the kernel drops SYNs
        where = route(port, "127.0.0.2", LOCAL)
        race = Opening(where, where.addresses)
        end = time.monotonic() + DEADLINE
        while not (opened := race.step()):
            assert time.monotonic() < end
            time.sleep(0.001)
        assert opened.address.sockaddr[0] == LOCAL
        assert race._attempts == {}
        opened.sock.close()


def test_an_address_of_a_family_that_the_kernel_lacks_is_passed_over() -> None:
    """X.25 stands for IPv6 where that is off."""
    with socket.create_server((LOCAL, 0)) as listener:
        where = route(listener.getsockname()[1])
        lacking: Any = 9  # <bits/socket.h>
        race = Opening(where, [Address(lacking, (LOCAL, 7)), *where.addresses])
        end = time.monotonic() + DEADLINE
        while not (opened := race.step()):
            assert time.monotonic() < end
        opened.sock.close()


def test_a_connection_that_ends_before_its_header_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is that of the opening."""

    def gone(*_: object) -> bytes:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(opening, "proxy_header", gone)
    with socket.create_server((LOCAL, 0)) as listener:
        where = route(listener.getsockname()[1], proxy="v1")
        race = Opening(where, where.addresses)
        with pytest.raises(ConnectionResetError):
            until(race.step, what="connection", interval=0.001)
        server, _ = listener.accept()
        assert server.recv(10) == b""
        server.close()


def test_a_message_that_waits_for_room_goes_on_when_there_is_room(poller: Poller) -> None:
    """Nothing needs to come back for that."""
    told = Told()
    with socket.create_server((LOCAL, 0)) as listener:
        where = route(listener.getsockname()[1])
        stream = Stream(poller, told, where, where.addresses, os.urandom)
        stream.put(Message(1, 16_000_000, 0.0))
        server, _ = listener.accept()
        poll(poller, lambda: stream._events & select.EPOLLOUT)
        server.setblocking(False)
        got = 0

        def sent() -> bool:
            nonlocal got
            with contextlib.suppress(BlockingIOError):
                got += len(server.recv(1 << 20))
            return got == 16_000_000

        poll(poller, sent)
        assert stream._events == select.EPOLLIN
        stream.close()
        server.close()


def test_bytes_that_come_before_any_message_end_the_connection(poller: Poller) -> None:
    """It is no echo service."""
    told = Told()
    with socket.create_server((LOCAL, 0)) as listener:
        where = route(listener.getsockname()[1])
        stream = Stream(poller, told, where, where.addresses, os.urandom)
        server, _ = listener.accept()
        server.sendall(b"x")
        poll(poller, lambda: stream.end)
        server.close()
    assert told.events == [("opened",), ("ended", Failure("out_of_step", "1 byte more than was sent"))]


def test_an_echo_that_is_there_counts_although_its_time_is_over() -> None:
    """This process may not have run for a while: what has come is handled first."""
    told = Told()
    with serving(right) as port:
        where = route(port)
        exchange = Exchange(where, 0.05, told, os.urandom)
        stream = exchange.open(where.addresses)
        poll(exchange.poller, lambda: stream.opened)
        message = Message(1, 8, 0.0)
        exchange.send(stream, message)
        over = time.monotonic() + 0.05
        until(lambda: stream.opened and select.select([stream.opened.sock], [], [], 0)[0], what="the echo")
        until(lambda: time.monotonic() > over, what="the end of its time")
        exchange.turn(time.monotonic())
        stream.close()
        exchange.close()
    assert [event[0] for event in told.events] == ["opened", "echoed"]


def test_only_some_connections_are_kept_for_late_echoes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that never answers would otherwise get any number of them."""
    monkeypatch.setattr(exchange_module, "_RETIRED", 2)
    with serving(silent) as port:
        where = route(port)
        exchange = Exchange(where, 0.001, Told(), os.urandom)
        streams = []
        for number in range(5):
            stream = exchange.open(where.addresses)
            poll(exchange.poller, lambda stream=stream: stream.opened)
            exchange.send(stream, Message(number, 8, 0.0))
            while exchange.is_busy():
                exchange.turn(time.monotonic() + 1)
            streams.append(stream)
        assert [bool(stream.end) for stream in streams] == [True] * 3 + [False] * 2
        exchange.close()
        assert all(stream.end for stream in streams)
