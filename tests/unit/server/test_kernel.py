"""What the kernel says of real TCP sockets, and what is left when it says nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from echod.server import kernel
from tests.support.fakes import has_mptcp
from tests.support.harness import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection over loopback: the server's and the client's."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        yield server, client


class Refusing(socket.socket):
    """A socket of a kernel that refuses all options."""

    def getsockopt(self, *_: object) -> NoReturn:
        raise OSError(errno.ENOPROTOOPT, "no such option")

    def setsockopt(self, *_: object) -> NoReturn:
        raise OSError(errno.ENOPROTOOPT, "no such option")


class Old(socket.socket):
    """A socket of a kernel before Linux 4.19, whose struct tcp_info ends earlier."""

    def getsockopt(self, *_: object) -> bytes:  # type: ignore[override]
        return bytes(16)


def info(sock: socket.socket) -> kernel.Info:
    """Return what the kernel says, which is something."""
    told = kernel.info(sock)
    assert told is not None
    return told


def fill(sock: socket.socket) -> int:
    """Send until the kernel takes no more; return how many bytes it took."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(bytes(65536))
    return sent


def test_the_kernel_counts_what_was_written(pair: tuple[socket.socket, socket.socket]) -> None:
    """Bytes count whether they were sent or wait because the peer does not read."""
    server, client = pair
    assert info(server).written == 0
    server.sendall(b"12345")
    assert client.recv(5) == b"12345"
    assert info(server).written == 5
    written = fill(server)
    assert info(server).written == 5 + written


def test_the_kernel_measures_the_round_trip(pair: tuple[socket.socket, socket.socket]) -> None:
    """It is in seconds; on loopback it takes microseconds, and no segment is sent again."""
    server, client = pair
    server.sendall(b"x")
    client.recv(1)
    until(lambda: kernel.unacknowledged(server) == 0)
    told = info(server)
    assert 0 < told.rtt < 1
    assert told.retrans == 0


FIELDS = "rtt rttvar minrtt retrans mss pmtu cwnd reordering delivery_rate busy rwnd_limited sndbuf_limited"
"""Of `tcp`, as ss(8) calls them."""


def test_the_kernel_tells_what_ss_shows(pair: tuple[socket.socket, socket.socket]) -> None:
    """On loopback the path takes 65,535 bytes, and a new connection begins with a window of 10 segments (RFC 6928)."""
    server, client = pair
    fresh = info(server).fields()
    assert " ".join(fresh) == FIELDS
    assert (fresh["pmtu"], fresh["cwnd"], fresh["retrans"]) == (65535, 10, 0)
    assert 0 < fresh["reordering"] <= 300, "net.ipv4.tcp_max_reordering; Linux remembers it of a peer"
    assert fresh["mss"] == server.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    assert (fresh["delivery_rate"], fresh["busy"], fresh["rwnd_limited"], fresh["sndbuf_limited"]) == (0, 0, 0, 0)
    server.sendall(b"x")
    client.recv(1)
    until(lambda: kernel.unacknowledged(server) == 0)
    used = info(server).fields()
    assert 0 < used["minrtt"] <= used["rtt"] + used["rttvar"]
    assert used["rttvar"] > 0
    assert used["delivery_rate"] > 0


def test_the_kernel_knows_how_long_a_peer_took_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    """Its receive window is full: not the network is slow, and not the daemon."""
    server, _ = pair
    fill(server)
    until(lambda: info(server).fields()["rwnd_limited"] > 0)
    stalled = info(server).fields()
    assert stalled["busy"] >= stalled["rwnd_limited"]


def test_times_are_in_seconds() -> None:
    """The kernel has them in microseconds."""
    each = kernel.Info(*range(len(kernel.Info._fields)))
    assert each.fields() == {
        "rtt": 6e-6,
        "rttvar": 7e-6,
        "minrtt": 12e-6,
        "retrans": 10,
        "mss": 1,
        "pmtu": 5,
        "cwnd": 8,
        "reordering": 9,
        "delivery_rate": 13,
        "busy": 14e-6,
        "rwnd_limited": 15e-6,
        "sndbuf_limited": 16e-6,
    }
    assert each.rtt == 6e-6


def test_a_round_trip_that_nobody_measured_is_null() -> None:
    """A socket that is not connected has no round trip."""
    with socket.socket() as unconnected:
        assert info(unconnected).fields()["minrtt"] is None


def test_the_kernel_knows_that_the_peer_has_finished(pair: tuple[socket.socket, socket.socket]) -> None:
    """It knows before the program has read that far."""
    server, client = pair
    client.sendall(b"unread")
    assert not info(server).peer_finished
    client.shutdown(socket.SHUT_WR)
    until(lambda: info(server).peer_finished)


def test_bytes_that_are_not_acknowledged_are_in_the_queue(pair: tuple[socket.socket, socket.socket]) -> None:
    """The queue shrinks when the peer reads."""
    server, client = pair
    assert kernel.unacknowledged(server) == 0
    fill(server)
    full = kernel.unacknowledged(server)
    assert full

    def shrinks() -> bool:
        left = kernel.unacknowledged(server)
        return bool(client.recv(65536)) and left is not None and left < full

    until(shrinks)


def test_the_kernel_counts_the_connections_that_wait_to_be_accepted() -> None:
    """They are counted, and stay where they are."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        for waiting in range(3):
            assert kernel.queued(listener) == waiting
            assert kernel.has_waiting(listener) == bool(waiting)
            stack.enter_context(socket.create_connection(listener.getsockname()))
        listener.accept()[0].close()
        assert kernel.queued(listener) == 2


def test_a_waiting_connection_is_found_without_tcp_info() -> None:
    """Whether a listener may be closed must not depend on a question that the kernel may refuse."""
    with Refusing() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not kernel.has_waiting(listener)
        with socket.create_connection(listener.getsockname()):
            assert kernel.has_waiting(listener)


def test_the_backlog_is_what_listen_was_asked_for() -> None:
    """The kernel is the only one to ask when another program has called listen(2)."""
    with socket.create_server(("127.0.0.1", 0), backlog=7) as listener:
        assert kernel.backlog(listener) == 7
        listener.listen(9)
        assert kernel.backlog(listener) == 9


def test_a_connection_can_be_closed_by_a_reset(pair: tuple[socket.socket, socket.socket]) -> None:
    """The peer reads an error instead of the end of the stream."""
    server, client = pair
    kernel.reset_on_close(server)
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_where_a_reset_is_refused_the_connection_is_closed_by_fin(pair: tuple[socket.socket, socket.socket]) -> None:
    """Asking for it raises nothing."""
    with Refusing(fileno=pair[0].detach()) as server:
        kernel.reset_on_close(server)
    assert pair[1].recv(1) == b""


def test_a_closed_socket_needs_no_reset(pair: tuple[socket.socket, socket.socket]) -> None:
    """Asking for it raises nothing."""
    server, _ = pair
    server.close()
    kernel.reset_on_close(server)


QUESTIONS = [kernel.info, kernel.queued, kernel.backlog]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("kind", [Refusing, Old])
def test_a_question_that_is_refused_or_answered_in_part_has_no_answer(
    pair: tuple[socket.socket, socket.socket], kind: type[socket.socket], question: Callable[[socket.socket], object]
) -> None:
    """The answer is `None`, and nothing is raised."""
    with kind(fileno=pair[0].detach()) as sock:
        assert question(sock) is None


@pytest.mark.parametrize("question", [*QUESTIONS, kernel.unacknowledged])
def test_of_a_closed_socket_the_kernel_says_nothing(
    pair: tuple[socket.socket, socket.socket], question: Callable[[socket.socket], object]
) -> None:
    """The answer is `None`, and nothing is raised."""
    server, _ = pair
    server.close()
    assert question(server) is None


def test_a_socket_without_a_send_queue_has_no_unacknowledged_bytes() -> None:
    """Linux refuses SIOCOUTQ for a listening socket; the answer is `None`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert kernel.unacknowledged(listener) is None


# MPTCP


@pytest.fixture
def mptcp() -> Iterator[socket.socket]:
    """A listener of MPTCP."""
    if not has_mptcp():
        pytest.skip("no MPTCP here")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@pytest.mark.parametrize(("protocol", "told"), [(socket.IPPROTO_TCP, True), (socket.IPPROTO_MPTCP, False)])
def test_of_an_mptcp_connection_nothing_is_known(mptcp: socket.socket, protocol: int, *, told: bool) -> None:
    """TCP_INFO tells of the first of its paths, not of its bytes. A client without MPTCP has a connection of plain TCP."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as client:
        client.connect(mptcp.getsockname())
        with mptcp.accept()[0] as server:
            server.sendall(b"12345")
            assert client.recv(5) == b"12345"
            assert (kernel.info(server) is not None) == told
            assert kernel.unacknowledged(server) is not None


def test_of_an_mptcp_socket_nothing_is_known_where_the_kernel_does_not_tell_its_protocol() -> None:
    """It may be of either kind."""
    with type("RefusingMptcp", (Refusing,), {"proto": socket.IPPROTO_MPTCP})() as sock:
        assert kernel.info(sock) is None


def test_of_what_may_be_mptcp_nothing_is_known_although_the_kernel_has_tcp_info(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """It would be that of one path."""

    class Silent(socket.socket):
        proto = socket.IPPROTO_MPTCP

        def getsockopt(self, level: int, option: int, *rest: int) -> Any:
            if (level, option) == (socket.SOL_SOCKET, kernel._SO_PROTOCOL):
                raise OSError(errno.ENOPROTOOPT, "no such option")
            return super().getsockopt(level, option, *rest)

    with Silent(fileno=pair[0].detach()) as sock:
        assert kernel._tcp_info(sock, kernel._INFO)
        assert kernel.info(sock) is None


def test_the_kernel_knows_for_how_long_a_connection_has_been_quiet(pair: tuple[socket.socket, socket.socket]) -> None:
    """Both what was received and what was sent count; it says rather too little than too much."""
    server, client = pair
    for sender, receiver in ((client, server), (server, client)):
        time.sleep(0.1)
        began = time.monotonic()
        sender.sendall(b"x")
        receiver.recv(1)
        assert info(server).quiet <= time.monotonic() - began
        time.sleep(0.1)
        assert 0.08 < info(server).quiet <= time.monotonic() - began


def test_a_connection_is_empty_if_its_peer_has_acknowledged_everything(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A peer that does not read leaves something."""
    server, client = pair
    assert info(server).is_empty
    sent = fill(server)
    assert not info(server).is_empty
    client.settimeout(5)
    while sent:
        sent -= len(client.recv(1 << 20))
    until(lambda: info(server).is_empty, what="the last acknowledgement")


def test_a_receive_buffer_is_inherited_until_it_is_taken_back() -> None:
    """The kernel doubles the size. Without one, it begins with its default and lets it grow."""
    sizes = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for size in (None, 8192, None):
            kernel.set_receive_buffer(listener, size)
            with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
                client.sendall(bytes(1 << 16))
                sizes.append(server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
                locked = server.getsockopt(socket.SOL_SOCKET, kernel._SO_BUF_LOCK)
                assert locked == (0 if size is None else 2)  # SOCK_RCVBUF_LOCK
    assert sizes[1] == 2 * 8192 < sizes[0]


@pytest.mark.parametrize("size", [None, 8192])
def test_a_receive_buffer_that_is_refused_stays_as_it_is(size: int | None) -> None:
    """A reload has been accepted by then."""
    with Refusing() as sock:
        kernel.set_receive_buffer(sock, size)


# SYNs


@contextlib.contextmanager
def accepted(listener: socket.socket) -> Iterator[socket.socket]:
    with socket.create_connection(listener.getsockname()), listener.accept()[0] as sock:
        yield sock


def test_a_syn_is_kept_until_it_is_asked_for() -> None:
    """It is that of this connection, and it is told once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kernel.save_syns(listener)
        with accepted(listener) as sock:
            packet = kernel.saved_syn(sock)
            assert packet[12:20] == bytes([127, 0, 0, 1] * 2)
            assert packet[20:24] == struct.pack("!HH", sock.getpeername()[1], sock.getsockname()[1])
            assert kernel.saved_syn(sock) == b""


def test_a_syn_that_was_not_kept_is_empty() -> None:
    """Its client connected before a listener was adopted."""
    with socket.create_server(("127.0.0.1", 0)) as listener, accepted(listener) as sock:
        assert kernel.saved_syn(sock) == b""


def test_where_syns_are_refused_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator, and MPTCP. A Unix socket has none, and is not asked."""
    with Refusing() as sock:
        kernel.save_syns(sock)
        assert kernel.saved_syn(sock) == b""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(kernel, "_LONGEST_SYN", None)  # what a question needs
        assert kernel.saved_syn(ours) == b""


# Unix sockets


def test_a_unix_socket_is_not_asked_for_tcp_info(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has none, and the kernel says the bytes that its peer has not read yet."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(kernel, "_INFO", None)  # what a question needs
        assert kernel.info(ours) is None
        assert kernel.unacknowledged(ours) == 0
        ours.send(b"x")
        assert kernel.unacknowledged(ours)
        theirs.recv(9)
        assert kernel.unacknowledged(ours) == 0


def test_the_client_of_a_unix_socket_is_named_by_the_kernel() -> None:
    """By its process and its user."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert kernel.peer_credentials(ours) == (os.getpid(), os.getuid())


@pytest.mark.parametrize("kind", [Refusing, Old])
def test_where_the_kernel_does_not_name_it_a_client_is_unknown(kind: type[socket.socket]) -> None:
    """An emulator."""
    ours, theirs = socket.socketpair()
    with theirs, kind(fileno=ours.detach()) as sock:
        if kind is Old:
            sock.getsockopt = lambda *_: b""  # type: ignore[method-assign,assignment]
        assert kernel.peer_credentials(sock) is None


@pytest.mark.parametrize("sent", [b"", b"x", bytes(1 << 20)])
def test_an_end_without_reading_is_eof_for_the_client_of_a_unix_socket(sent: bytes) -> None:
    """close(2) alone is a reset if the client has sent already."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        if sent:
            theirs.send(sent)
        kernel.end_unread(ours)
        ours.close()
        assert theirs.recv(9) == b""
        with pytest.raises(BrokenPipeError):
            theirs.send(b"x")


# UDP


def test_the_kernel_counts_datagrams_that_found_the_queue_full() -> None:
    """Since the socket was made."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.bind(("127.0.0.1", 0))
        assert kernel.drops(sock) == 0
        for _ in range(100):
            client.sendto(b"x", sock.getsockname())
        waiting = 0
        while kernel.has_waiting(sock):
            sock.recv(9)
            waiting += 1
        assert kernel.drops(sock) == 100 - waiting
        assert waiting < 100


@pytest.mark.parametrize("kind", [Refusing, Old])
def test_where_the_kernel_does_not_count_drops_they_are_unknown(kind: type[socket.socket]) -> None:
    """Before Linux 4.12."""
    with kind(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert kernel.drops(sock) is None
