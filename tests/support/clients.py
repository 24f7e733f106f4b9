"""Clients that do a daemon no good. They block nowhere, know what they have said, and compare what comes back."""

from __future__ import annotations

import contextlib
import fcntl
import random
import selectors
import socket
import struct
import termios
import time
from typing import TYPE_CHECKING, Any

from tests.support.harness import DEADLINE, LOCAL, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.support.harness import Echod

SIZE = 1 << 16
CHUNK = (256 + 4) << 10
"""Bytes that a worker may need: one read, and a fixed overhead. The allocator need not give them back."""
STUCK = 3
"""Times in a row that nothing has moved."""
_TWICE = random.Random(862).randbytes(SIZE) * 2


class Stream:
    """A client that goes on saying the same 64 KiB."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.sent = self.heard = 0  # bytes
        self.ended: str | None = None  # "eof" or "reset"

    def send(self, most: int = SIZE) -> None:
        """Say as much as the kernel takes, if anything."""
        at = self.sent % SIZE
        self._try(lambda: self._said(self.sock.send(_TWICE[at : at + most])))

    def hear(self, most: int = SIZE) -> None:
        """Hear what is there, if anything. Raises `AssertionError` if it is not what was said."""
        self._try(lambda: self._heard(self.sock.recv(most)))

    def _try(self, act: Callable[[], None]) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                act()
            except ConnectionError:
                self.ended = "reset"

    def _said(self, size: int) -> None:
        self.sent += size

    def _heard(self, data: bytes) -> None:
        at = self.heard % SIZE
        assert data == _TWICE[at : at + len(data)], f"not what was said, after {self.heard} bytes"
        self.heard += len(data)
        assert self.heard <= self.sent
        if not data:
            self.ended = "eof"

    def unacknowledged(self) -> int:
        """Return how many bytes the daemon's kernel has no room for, or has not seen (SIOCOUTQ)."""
        return int(struct.unpack("=i", fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4)))[0])


def run(clients: Sequence[Stream], *, reading: bool = True, writing: bool = False, deadline: float = DEADLINE) -> None:
    """Let them hear, send, or both as fast as they can until each has ended."""
    end = time.monotonic() + deadline
    wants = (selectors.EVENT_READ if reading else 0) | (selectors.EVENT_WRITE if writing else 0)
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.sock, wants, client)
        while selector.get_map():
            assert time.monotonic() < end, f"{len(selector.get_map())} clients not ended after {deadline} s"
            for key, events in selector.select(1):
                if events & selectors.EVENT_READ:
                    key.data.hear()
                if events & selectors.EVENT_WRITE and not key.data.ended:
                    key.data.send()
                if key.data.ended:
                    selector.unregister(key.data.sock)


@contextlib.contextmanager
def streams(number: int, connect: Callable[[], socket.socket]) -> Iterator[list[Stream]]:
    """Connect so many; close what is still open of them."""
    with contextlib.ExitStack() as stack:
        yield [Stream(stack.enter_context(connect())) for _ in range(number)]


def finish(daemon: Echod, clients: Sequence[Stream]) -> list[dict[str, Any]]:
    """Let them half-close, and hear all that they have said, and nothing else; return their lines, which agree."""
    for client in clients:
        client.sock.shutdown(socket.SHUT_WR)
    run(clients)
    assert {client.ended for client in clients} == {"eof"}
    lines = [daemon.closed(client.sock) for client in clients]
    for client, line in zip(clients, lines, strict=True):
        assert client.heard == client.sent == line["bytes_sent"] == line["bytes_received"]
        assert line["reason"] == "eof"
    return lines


def make_small(sock: socket.socket, segment: int = 1400) -> socket.socket:
    """Give it little room, and segments of a real network (RFC 9293, 3.7.1): with loopback's, kernels buffer megabytes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
    return sock


def deaf(daemon: Echod, segment: int = 1400) -> socket.socket:
    """Connect with little room, from an address whose ports nobody else takes when this one has been reset."""
    sock = make_small(socket.socket(), segment)
    sock.bind(("127.0.0.2", 0))
    sock.connect((LOCAL, daemon.port))
    return sock


def fill(clients: Sequence[Stream]) -> None:
    """Send on all until nothing moves any more: the daemon has echo pending for each, and reads no further.

    That takes seconds: no timeout may end them meanwhile. A reload can set a short one afterwards.
    """
    queues: list[tuple[int, int]] = []
    quiet = 0

    def stuck() -> bool:
        nonlocal queues, quiet
        before, queues = queues, []
        for client in clients:
            sent = -1
            while client.sent != sent:
                sent = client.sent
                client.send()
            assert not client.ended
            queues.append((client.sent, client.unacknowledged()))
        # More than once, as the daemon may not have run since the last time.
        quiet = quiet + 1 if queues == before and all(queued for _, queued in queues) else 0
        return quiet == STUCK

    until(stuck, what="full queues", interval=0.15)
