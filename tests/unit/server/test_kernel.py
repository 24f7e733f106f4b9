"""What the kernel says of real TCP connections."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from echod.server import kernel
from tests.support.harness import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection over loopback."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        yield server, client


def test_the_kernel_counts_what_was_written(pair: tuple[socket.socket, socket.socket]) -> None:
    """Whether it was sent, or waits because the peer does not read."""
    server, client = pair
    assert kernel.info(server).written == 0
    server.sendall(b"12345")
    assert client.recv(5) == b"12345"
    assert kernel.info(server).written == 5
    server.setblocking(False)
    written = 5
    with contextlib.suppress(BlockingIOError):
        while True:
            written += server.send(bytes(65536))
    assert kernel.info(server).written == written


def test_it_measures_the_round_trip(pair: tuple[socket.socket, socket.socket]) -> None:
    """On loopback, some microseconds and nothing sent twice."""
    server, client = pair
    server.sendall(b"x")
    client.recv(1)
    until(lambda: kernel.unacknowledged(server) == 0)
    info = kernel.info(server)
    assert 0 < info.rtt_us < 1_000_000
    assert info.retransmits == 0


def test_it_knows_that_the_peer_has_finished(pair: tuple[socket.socket, socket.socket]) -> None:
    """Before anybody has read that far."""
    server, client = pair
    client.sendall(b"unread")
    assert not kernel.info(server).peer_finished
    client.shutdown(socket.SHUT_WR)
    until(lambda: kernel.info(server).peer_finished)


def test_what_is_not_acknowledged_is_in_the_queue(pair: tuple[socket.socket, socket.socket]) -> None:
    """All that a peer with a full buffer has not taken."""
    server, client = pair
    server.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            server.send(bytes(65536))
    full = kernel.unacknowledged(server)
    assert full > 0
    until(lambda: bool(client.recv(65536)) and kernel.unacknowledged(server) < full)


def test_it_knows_who_waits_to_be_accepted() -> None:
    """On a listening socket, without accepting."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        for waiting in range(3):
            assert kernel.queued(listener) == waiting
            stack.enter_context(socket.create_connection(listener.getsockname()))
        listener.accept()[0].close()
        assert kernel.queued(listener) == 2


def test_a_reset_can_be_asked_for(pair: tuple[socket.socket, socket.socket]) -> None:
    """The peer reads an error and not the end of the stream."""
    server, client = pair
    kernel.reset_on_close(server)
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_closed_socket_has_no_books(pair: tuple[socket.socket, socket.socket]) -> None:
    """The caller has to expect it."""
    server, _ = pair
    server.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.info(server)


def test_an_old_kernel_has_no_books_either(pair: tuple[socket.socket, socket.socket]) -> None:
    """Before Linux 4.19 the structure ended earlier; then a line goes without, and is not lost."""

    class Old(socket.socket):
        def getsockopt(self, *_: object) -> bytes:  # type: ignore[override]
            return bytes(192)

    with Old(fileno=pair[0].detach()) as old, pytest.raises(OSError, match="too short"):
        kernel.info(old)


def test_the_backlog_is_what_listen_was_asked_for() -> None:
    """Of a socket that somebody else has set up, nothing else tells."""
    with socket.create_server(("127.0.0.1", 0), backlog=7) as listener:
        assert kernel.backlog(listener) == 7
        listener.listen(9)
        assert kernel.backlog(listener) == 9
