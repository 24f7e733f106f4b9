"""The admin server under clients that are broken or hostile: echo goes on, nothing leaks, and the operator gets in."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from echod.admin import http
from tests.support.bystander import unharmed
from tests.support.harness import (
    DEADLINE,
    ECHOD,
    LOCAL,
    Echod,
    command,
    environment,
    read_all,
    read_exactly,
    reset,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Daemon = Callable[..., Echod]
    Connect = Callable[[], socket.socket]

pytestmark = pytest.mark.slow

CROWD = 1000
"""Open connections, where a long list is wanted."""
FIRST = 2
"""The number of a test's first connection, after the bystander's."""


def request(target: str = "/status", method: str = "GET", more: str = "") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()


LAST = "Connection: close\r\n"


class Target:
    """The daemon, and both ways to its admin server."""

    def __init__(self, daemon: Echod, path: Path) -> None:
        self.daemon = daemon
        self.path = path
        self.port = int(daemon.wait_for("admin.started", count=2)["listener"].rpartition(":")[2])

    def local(self) -> socket.socket:
        """Connect as soon as there is room in the backlog: a socket that blocks waits for that, with Python's timeout not."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(DEADLINE), 0))
        sock.connect(str(self.path))
        sock.settimeout(DEADLINE)
        return sock

    def remote(self) -> socket.socket:
        return socket.create_connection((LOCAL, self.port), DEADLINE)

    def both(self, abuse: Callable[[Connect], None]) -> None:
        """Do it on both sides at the same time."""
        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(abuse, connect) for connect in (self.local, self.remote)]:
                done.result()

    def status(self) -> None:
        """Ask as an operator does."""
        done = command("status", "--json", "--admin.socket", str(self.path))
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["state"] == "running"


def answer(sock: socket.socket) -> bytes:
    """Return all that comes, until either side has had enough."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(1 << 18):
            data += chunk
    return bytes(data)


def send(sock: socket.socket, data: bytes) -> bool:
    """Send as long as the daemon takes it; say whether it took all."""
    try:
        sock.sendall(data)
    except ConnectionError:
        return False
    return True


@pytest.fixture
def target(echod: Daemon, tmp_path: Path) -> Iterator[Target]:
    """Yield a daemon that echoes all the while, and afterwards is as it was before."""
    path = tmp_path / "sock"
    flags = ["--admin.socket", str(path), "--admin.http", f"{LOCAL}:0", "-n", "1100"]
    with echod(flags=flags) as daemon:
        target = Target(daemon, path)
        for connect in (target.local, target.remote):
            with connect() as sock:
                sock.sendall(request("/metrics", more=LAST))
                assert read_all(sock).startswith(b"HTTP/1.1 200 ")
        with unharmed(daemon):
            yield target
        target.status()
        assert [line for line in daemon.lines if line["event"].startswith("internal")] == []


@contextlib.contextmanager
def crowded(target: Target) -> Iterator[None]:
    """Let the list of connections be long."""
    with contextlib.ExitStack() as stack:
        for _ in range(CROWD):
            stack.enter_context(target.daemon.connect())
        target.daemon.wait_for("connection.opened", count=CROWD)
        yield


# Abuse


def test_garbage_is_refused(target: Target) -> None:
    """With 400 or without a word."""
    junk = [
        os.urandom(3000),
        b"\r\n" * 2000,
        b"\0" * 9000,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"HEAD //[ HTTP/1.1\r\nHost: a\r\n\r\n",
    ]

    def abuse(connect: Connect) -> None:
        for data in junk * 20:
            with connect() as sock:
                send(sock, data)
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                assert answer(sock)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")

    target.both(abuse)


def test_1000_clients_that_say_nothing_keep_nobody_out(target: Target) -> None:
    """On each side; half of them have begun a request."""

    def abuse(connect: Connect) -> None:
        with contextlib.ExitStack() as stack:
            for number in range(1000):
                sock = stack.enter_context(connect())
                if number % 2:
                    send(sock, b"GET /sta")
                if number == 500:
                    target.status()
            with connect() as sock:
                sock.sendall(request(more=LAST))
                assert answer(sock).startswith(b"HTTP/1.1 200 ")

    target.both(abuse)


def test_huge_requests_are_refused(target: Target) -> None:
    """Heads, and bodies of each form, also for HEAD, which is refused without a body."""
    large = [
        (b"GET /" + b"a" * 100_000, b"431"),
        (request(more=f"X: {'a' * 1_000_000}\r\n"), b"431"),
        (request(more="X: y\r\n" * 100_000), b"431"),
        (request("/reload", "POST", "Content-Length: 1000000\r\n") + bytes(1_000_000), b"413"),
        (request("/livez", "HEAD", "Content-Length: 1000000\r\n") + bytes(1_000_000), b"413"),
        (request("/livez", more="Transfer-Encoding: chunked\r\n") + b"10\r\n0123456789abcdef\r\n" * 5000, b"413"),
        (request("/livez", more="Transfer-Encoding: chunked\r\n") + b"f" * 100_000, b"431"),
    ]

    def abuse(connect: Connect) -> None:
        for data, status in large * 3:
            with connect() as sock:
                if send(sock, data):
                    with contextlib.suppress(OSError):  # else the daemon waits for more, lest its answer gets lost
                        sock.shutdown(socket.SHUT_WR)
                got = answer(sock)
                assert got[:12] in (b"HTTP/1.1 " + status, b""), got[:100]  # none if the reset overtakes it
        target.status()

    target.both(abuse)


def test_a_byte_a_second_is_no_request(target: Target) -> None:
    """It has to arrive within some seconds; until then, others are answered."""

    def abuse(connect: Connect) -> None:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(connect()) for _ in range(8)]
            for byte in request():
                if not all([send(sock, bytes([byte])) for sock in socks]):  # noqa: C419 - to each of them
                    break
                time.sleep(1)
            for sock in socks:
                assert answer(sock)[:12] in (b"HTTP/1.1 408", b"")

    with ThreadPoolExecutor(1) as threads:
        abusing = threads.submit(target.both, abuse)
        target.status()
        abusing.result()


def test_who_never_reads_a_long_answer_keeps_nobody_out(target: Target) -> None:
    """All that may connect, on the side that has the list of connections; it comes whole to who reads it."""
    with crowded(target), contextlib.ExitStack() as stack:
        for _ in range(40):
            sock = stack.enter_context(target.local())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            send(sock, request("/connections") * 100)
        target.status()
        with target.local() as sock:
            sock.sendall(request("/connections", more=LAST))
            assert answer(sock).count(b'"connection":') >= CROWD


def test_floods_of_requests_take_turns_with_everybody_else(target: Target) -> None:
    """Thousands in a packet, on as many connections as there may be; all are answered, in order."""
    many = 500

    def flood(connect: Connect) -> None:
        with connect() as sock, ThreadPoolExecutor(1) as threads:
            sending = threads.submit(send, sock, request("/livez") * many + request("/readyz", more=LAST))
            got = answer(sock)
            if sending.result() and got.endswith(b'{"status":"ready"}\n'):
                assert got.count(b'{"status":"alive"}\n') == many

    with ThreadPoolExecutor(12) as threads:
        floods = [threads.submit(flood, connect) for connect in (target.local, target.remote) * 6]
        target.status()
        for each in floods:
            each.result()


def test_who_leaves_in_the_middle_of_its_answer_leaves_nothing(target: Target) -> None:
    """With FIN or RST, before the answer or within it; a reload goes on without who has asked for it."""

    def abuse(connect: Connect) -> None:
        paths = itertools.cycle([request("/connections"), request("/metrics") * 10, request("/reload", "POST")])
        for number, data in zip(range(150), paths, strict=False):
            with connect() as sock:
                send(sock, data)
                if number % 4 < 2:
                    with contextlib.suppress(ConnectionError):
                        sock.recv(10)
                if number % 2:
                    reset(sock)

    with crowded(target):
        target.both(abuse)
        target.status()


# Races


def test_of_100_that_kill_one_connection_none_is_told_nonsense(target: Target) -> None:
    """It was there, or is no more; it ends once, and its neighbour lives."""
    with target.daemon.connect() as sock, target.daemon.connect() as neighbour, contextlib.ExitStack() as stack:
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        killers = [stack.enter_context(target.local()) for _ in range(10)]
        for killer in killers:
            killer.sendall(request(f"/connections/{FIRST}", "DELETE") * 9)
        for killer in killers:
            killer.sendall(request(f"/connections/{FIRST}", "DELETE", LAST))
        counts = Counter(word for killer in killers for word in answer(killer).split() if word in (b"200", b"404"))
        assert counts.total() == 100
        assert counts[b"200"] >= 1
        assert target.daemon.closed(sock)["reason"] == "killed"
        neighbour.sendall(b"y")
        assert read_exactly(neighbour, 1) == b"y"


def test_connections_killed_as_they_open_are_all_booked(target: Target) -> None:
    """Whoever guesses the next numbers hits some of them at once."""
    with target.local() as killer, ThreadPoolExecutor(1) as threads:
        numbers = range(FIRST, FIRST + 200)
        reading = threads.submit(answer, killer)
        for number in numbers:
            with target.daemon.connect():
                killer.sendall(request(f"/connections/{number}", "DELETE"))
        killer.sendall(request("/livez", more=LAST))
        assert reading.result().endswith(b'{"status":"alive"}\n')

        def ended() -> list[str]:
            lines = target.daemon.events("connection.closed")
            return [line["reason"] for line in lines if line["connection"] in numbers]

        until(lambda: len(ended()) == len(numbers), what="all ended")
        assert set(ended()) <= {"killed", "eof", "reset"}


def test_a_stop_waits_for_no_client_of_the_admin_server(echod: Daemon, tmp_path: Path) -> None:
    """Not for those that stall in an answer, nor for those in the middle of a request."""
    path = tmp_path / "sock"
    flags = ["--admin.socket", str(path), "--admin.http", f"{LOCAL}:0", "-n", "1100"]
    with echod(flags=flags) as daemon, contextlib.ExitStack() as stack:
        target = Target(daemon, path)
        crowd = stack.enter_context(contextlib.ExitStack())
        for _ in range(CROWD):
            crowd.enter_context(daemon.connect())
        daemon.wait_for("connection.opened", count=CROWD)
        for _ in range(16):
            send(stack.enter_context(target.local()), request("/connections") * 100)
            send(stack.enter_context(target.remote()), request("/livez")[:-1])
        target.status()
        crowd.close()
        daemon.wait_for("connection.closed", count=CROWD)
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert time.monotonic() - began < http.STALL  # after which who reads nothing of an answer is cut
        assert not path.exists()


def test_of_daemons_that_start_at_once_on_one_path_one_gets_it(tmp_path: Path) -> None:
    """Where a dead one has left its socket; the others say that it is taken."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    words = [*ECHOD, "run", "-p", "0", "--listen.host", LOCAL, "--admin.socket", str(path)]
    daemons = [
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment())
        for _ in range(3)
    ]
    try:
        until(lambda: sum(each.poll() is None for each in daemons) == 1, what="one left")
        until(lambda: not command("status", "--admin.socket", str(path)).returncode, what="an answer")
        (one,) = [each for each in daemons if each.poll() is None]
        one.send_signal(signal.SIGTERM)
        assert one.wait(DEADLINE) == 0
        assert sorted(each.wait() for each in daemons) == [0, os.EX_UNAVAILABLE, os.EX_UNAVAILABLE]
    finally:
        for each in daemons:
            each.kill()
            each.communicate()
    assert not path.exists()
