"""Listening sockets that systemd hands over: taking them, serving on them, and leaving them to the next process."""

from __future__ import annotations

import os
import socket
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from echod.errors import Refusal
from echod.server.tcp import adopt
from tests.support.fakes import has_ipv6
from tests.unit.server.test_listeners import ONE, OTHER, House, url

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


# Taking them


@pytest.mark.parametrize(
    ("family", "address", "named"),
    [
        (socket.AF_INET, "127.0.0.1", "tcp://127.0.0.1:{}"),
        pytest.param(socket.AF_INET6, "::1", "tcp://[::1]:{}", marks=needs_ipv6),
    ],
)
def test_a_listening_socket_is_adopted(family: int, address: str, named: str) -> None:
    """With its own address and backlog; it does not block, and finds out about peers that vanish."""
    with socket.socket(family) as sock:
        sock.bind((address, 0))
        sock.listen(7)
        listener = adopt(os.dup(sock.fileno()), "echod.socket")
        with closing(listener.sock):
            port = sock.getsockname()[1]
            assert listener[1:] == (address, port, 7, named.format(port), True)
            assert not listener.sock.getblocking()
            assert listener.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            with pytest.raises(BlockingIOError):
                listener.sock.accept()


@pytest.mark.parametrize(
    ("family", "kind", "problem"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "does not listen: the socket unit needs Accept=no"),
        (socket.AF_INET, socket.SOCK_DGRAM, "no TCP socket: the socket unit needs ListenStream= with a port"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "no TCP socket"),
        (None, None, "no TCP socket"),
    ],
)
def test_what_is_no_listening_tcp_socket_is_refused(family: int | None, kind: int | None, problem: str) -> None:
    """In one line, which names it, and says what the unit should have."""
    fd = os.open(os.devnull, os.O_RDONLY) if family is None else socket.socket(family, kind or 0).detach()
    with pytest.raises(Refusal) as caught:
        adopt(fd, "echod.socket")
    with suppress(OSError):  # a socket is closed by then
        os.close(fd)
    (line,) = caught.value.lines
    assert line.startswith(f"echod: echod.socket (descriptor {fd}): {problem}")
    assert caught.value.exit_code == os.EX_CONFIG


# Serving on them


@pytest.fixture
def inherited() -> Iterator[socket.socket]:
    """A listening socket as systemd holds it."""
    with socket.create_server((ONE, 0)) as sock:
        yield sock


def house_with(*sockets: socket.socket) -> closing[House]:
    """Return a house to which these were handed over."""
    house = House()
    house.frontend._inherited = [adopt(os.dup(sock.fileno()), "echod.socket") for sock in sockets]
    return closing(house)


def test_inherited_listeners_stand_in_for_what_is_wanted(inherited: socket.socket) -> None:
    """At start and after each reload, whatever that wants: nothing is bound, nothing closed, and one serves on."""
    port = inherited.getsockname()[1]
    with house_with(inherited) as house:
        for number, (hosts, wanted) in enumerate([(OTHER, 0), ([ONE, OTHER], 1), (ONE, port)], 1):
            house.serve(hosts, wanted)
            assert house.frontend.urls == [url(ONE, port)]
            house.connect(port)
            house.readable()
            assert house.pool.accepted == number
            house.finish()
        assert house.said()[0] == ("listener.started", url(ONE, port))


def test_who_waits_on_an_inherited_listener_waits_for_the_next_process(inherited: socket.socket) -> None:
    """At the end nobody more is taken who might have to be cut, and nobody is refused: the socket is systemd's too."""
    port = inherited.getsockname()[1]
    with house_with(inherited) as house, house_with(inherited) as next_house:
        house.serve()
        house.connect(port)
        house.frontend.close()
        house.connect(port)
        assert house.pool.accepted == 0
        next_house.serve()
        next_house.readable()
        assert next_house.pool.accepted == 2
