"""Reloads without end, under load: no connection is hurt, nothing is lost and nothing leaks."""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.bystander import unharmed
from tests.support.harness import DEADLINE, LOCAL, Echod, listens, read_all, read_exactly, reserved_port, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

RELOADS = 500
CLIENTS = 200
SIZES = (10, 2000, 300, 1, 1024)


class Conversation:
    """A client that sends a block, reads it back, and so on, and takes nothing else for an answer."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.rounds = 0
        self._say()

    def _say(self) -> None:
        self._said = os.urandom(1 + self.rounds * 97 % 3000)
        self._heard = b""
        assert self.sock.send(self._said) == len(self._said)

    def hear(self) -> None:
        chunk = self.sock.recv(1 << 16)
        assert chunk, "closed by the daemon"
        self._heard += chunk
        if len(self._heard) >= len(self._said):
            assert self._heard == self._said
            self.rounds += 1
            self._say()


class Crowd(threading.Thread):
    """Many conversations at one time, until told to stop."""

    def __init__(self, socks: list[socket.socket]) -> None:
        super().__init__()
        self.conversations = [Conversation(sock) for sock in socks]
        self.over = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for each in self.conversations:
                selector.register(each.sock, selectors.EVENT_READ, each)
            try:
                while not self.over.is_set():
                    for key, _ in selector.select(1):
                        key.data.hear()
            except (AssertionError, OSError) as error:
                self.failure = error

    def rounds(self) -> list[int]:
        return [each.rounds for each in self.conversations]


@contextlib.contextmanager
def crowded(daemon: Echod) -> Iterator[Crowd]:
    with contextlib.ExitStack() as stack:
        crowd = Crowd([stack.enter_context(daemon.connect()) for _ in range(CLIENTS)])
        crowd.start()
        try:
            # One that is still in the backlog when a reload shrinks the pool is rejected, and rightly so.
            until(lambda: crowd.failure or all(crowd.rounds()), what="an echo for each")
            yield crowd
        finally:
            crowd.over.set()
            crowd.join()
        assert not crowd.failure


def test_500_reloads_under_200_busy_connections(echod: Daemon) -> None:
    """Good and bad files in turn, ports that move, pools of 1 to 2,000, networks that come and go."""

    def config(number: int, port: int, size: int) -> str:
        return (
            f"[listen]\nhost = '{LOCAL}'\nport = {port}\n[pool]\nsize = {size}\n"
            f"when_full = '{('reject', 'wait')[number % 2]}'\n[timeouts]\nidle = '{60 + number % 7}s'\n"
            f"[access]\ndeny = ['10.{number % 256}.0.0/16']\nper_source = {number % 3 * 5000}\n"
        )

    with (
        reserved_port() as one,
        reserved_port() as other,
        socket.create_server((LOCAL, 0)) as taken,
        echod(config(0, one, 2000)) as daemon,
    ):
        ports, sizes = itertools.cycle((one, one, other)), itertools.cycle(SIZES)
        bad = itertools.cycle(
            (
                "[pool]\nsize = 0",
                config(0, taken.getsockname()[1], 5),
                f"{config(0, one, 5)}[listen]",
                config(0, one, 5) + "[log]\nlevel = 'x'",
                config(0, one, 5).replace("[pool]", "backlog = 3\n[pool]"),
            )
        )
        with unharmed(daemon), crowded(daemon) as crowd:
            for number in range(RELOADS // 2):
                before = crowd.rounds()
                assert daemon.reload(config(number, next(ports), next(sizes)))["event"] == "config.reloaded"
                assert daemon.reload(next(bad))["event"] == "config.rejected"
                if number % 50 == 0:  # everybody is still being answered
                    until(lambda: crowd.failure or all(map(int.__lt__, before, crowd.rounds())), what="a round of all")  # noqa: B023
                assert not crowd.failure
        assert len(daemon.answers) == RELOADS
        until(lambda: len(daemon.events("connection.closed")) == CLIENTS + 1, what="all conversations closed")
        assert {line["reason"] for line in daemon.events("connection.closed")} <= {"eof", "reset"}
        # Every worker is there, and no more of them.
        daemon.reload(config(0, one, 10))
        assert not listens(other)
        with contextlib.ExitStack() as seats:
            for _ in range(10):
                sock = seats.enter_context(socket.create_connection((LOCAL, one), DEADLINE))
                sock.sendall(b"x")
                assert read_exactly(sock, 1) == b"x"
            with socket.create_connection((LOCAL, one), DEADLINE) as sock:
                assert read_all(sock) == b""
