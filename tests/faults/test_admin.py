"""Clients of the admin server that are broken or hostile: echo goes on, nothing leaks, and the operator is answered."""

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
    read_exactly,
    reset,
    until,
)
from tests.support.running_time import running_time

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


class Target:
    """The daemon, and the Unix socket and the TCP port of its admin server."""

    def __init__(self, daemon: Echod, path: Path) -> None:
        self.daemon = daemon
        self.path = path
        self.port = int(daemon.wait_for("admin.started", count=2)["listener"].rpartition(":")[2])

    def local(self) -> socket.socket:
        """Connect, waiting for room in the backlog. With Python's own timeout, a socket does not wait for that."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(DEADLINE), 0))
        connected = False
        while not connected:
            sock.connect(str(self.path))
            with contextlib.suppress(OSError):  # it was interrupted, as by SIGCONT, and Python takes it for done
                connected = bool(sock.getpeername())
        sock.settimeout(DEADLINE)
        return sock

    def remote(self) -> socket.socket:
        return socket.create_connection((LOCAL, self.port), DEADLINE)

    def both(self, abuse: Callable[[Connect], None]) -> None:
        """Abuse the socket and the port at the same time."""
        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(abuse, connect) for connect in (self.local, self.remote)]:
                done.result()

    def status(self) -> None:
        """Ask as an operator does."""
        done = command("status", "--json", "--admin.socket", str(self.path))
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["state"] == "running"


def answer(sock: socket.socket) -> bytes:
    """Return all that comes until the connection ends."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(1 << 18):
            data += chunk
    return bytes(data)


def send(sock: socket.socket, data: bytes) -> bool:
    """Say whether all of it could be sent."""
    try:
        sock.sendall(data)
    except ConnectionError:
        return False
    return True


@pytest.fixture
def target(echod: Daemon, tmp_path: Path) -> Iterator[Target]:
    """Yield a daemon that must echo meanwhile, and be as it was before when the test ends."""
    path = tmp_path / "sock"
    flags = ["--admin.socket", str(path), "--admin.http", f"{LOCAL}:0", "-n", "1100"]
    with echod(flags=flags) as daemon:
        target = Target(daemon, path)
        for connect in (target.local, target.remote):
            with connect() as sock:
                sock.sendall(request("/metrics"))
                assert answer(sock).startswith(b"HTTP/1.1 200 ")
        with unharmed(daemon):
            yield target
        target.status()
        assert [line for line in daemon.lines if line["event"].startswith("internal")] == []


@contextlib.contextmanager
def crowded(target: Target) -> Iterator[None]:
    """Hold many connections open, so that the list of them is long."""
    with contextlib.ExitStack() as stack:
        for _ in range(CROWD):
            stack.enter_context(target.daemon.connect())
        target.daemon.wait_for("connection.opened", count=CROWD)
        yield


# Abuse


def test_garbage_is_refused(target: Target) -> None:
    """The answer is 400 or 431, or none."""
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
    """Half of them have begun a request."""

    def abuse(connect: Connect) -> None:
        with contextlib.ExitStack() as stack:
            for number in range(1000):
                sock = stack.enter_context(connect())
                if number % 2:
                    send(sock, b"GET /sta")
                if number == 500:
                    target.status()
            with connect() as sock:
                sock.sendall(request())
                assert answer(sock).startswith(b"HTTP/1.1 200 ")

    target.both(abuse)


def test_huge_requests_are_refused(target: Target) -> None:
    """These are heads and bodies of each form. HEAD is refused without a body."""
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
                    with contextlib.suppress(OSError):  # otherwise the daemon waits a second for more
                        sock.shutdown(socket.SHUT_WR)
                got = answer(sock)
                assert got[:12] in (b"HTTP/1.1 " + status, b""), got[:100]  # none if a reset overtakes it
        target.status()

    target.both(abuse)


def test_a_byte_a_second_is_no_request(target: Target) -> None:
    """A request has to arrive within some seconds; others are answered meanwhile."""

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
    """There are more of them than the server has connections. A client that reads gets the whole list."""
    with crowded(target), contextlib.ExitStack() as stack:
        for _ in range(40):
            sock = stack.enter_context(target.local())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            send(sock, request("/connections"))
        target.status()
        with target.local() as sock:
            sock.sendall(request("/connections"))
            assert answer(sock).count(b'"connection":') >= CROWD


def test_floods_of_requests_take_turns_with_everybody_else(target: Target) -> None:
    """Twelve clients connect again and again, and send thousands of requests at once, of which the first is answered."""

    def flood(connect: Connect) -> None:
        for _ in range(50):
            with connect() as sock:
                send(sock, request("/livez") * 2000)
                assert answer(sock).endswith(b'\r\n\r\n{"status":"alive"}\n')

    with ThreadPoolExecutor(12) as threads:
        floods = [threads.submit(flood, connect) for connect in (target.local, target.remote) * 6]
        target.status()
        for each in floods:
            each.result()


def test_who_leaves_in_the_middle_of_its_answer_leaves_nothing(target: Target) -> None:
    """It leaves by FIN or RST, before or during its answer; a reload goes on without the client that asked for it."""

    def abuse(connect: Connect) -> None:
        paths = itertools.cycle([request("/connections"), request("/metrics"), request("/reload", "POST")])
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
    """The answer is that it is killed, or that it does not exist. It ends once, and its neighbour lives."""
    with target.daemon.connect() as sock, target.daemon.connect() as neighbour, ThreadPoolExecutor(10) as threads:
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        counts = Counter(threads.map(lambda _: kill(target, FIRST), range(100)))
        assert counts.keys() <= {b"HTTP/1.1 200", b"HTTP/1.1 404"}
        assert counts[b"HTTP/1.1 200"] >= 1
        assert target.daemon.closed(sock)["reason"] == "killed"
        neighbour.sendall(b"y")
        assert read_exactly(neighbour, 1) == b"y"


def kill(target: Target, number: int) -> bytes:
    """Return the status line's begin."""
    with target.local() as killer:
        killer.sendall(request(f"/connections/{number}", "DELETE"))
        return answer(killer)[:12]


def test_connections_killed_as_they_open_are_all_booked(target: Target) -> None:
    """A client that guesses the next number hits some of them at once."""
    numbers = range(FIRST, FIRST + 200)
    for number in numbers:
        with target.local() as killer, ThreadPoolExecutor(1) as threads:
            killer.sendall(request(f"/connections/{number}", "DELETE")[:-1])
            connecting = threads.submit(target.daemon.connect)
            killer.sendall(b"\n")
            with connecting.result():
                assert answer(killer)[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 404")

    def ended() -> list[str]:
        lines = target.daemon.events("connection.closed")
        return [line["reason"] for line in lines if line["connection"] in numbers]

    until(lambda: len(ended()) == len(numbers), what="all ended")
    assert set(ended()) <= {"killed", "eof", "reset"}


def test_a_stop_waits_for_no_client_of_the_admin_server(echod: Daemon, tmp_path: Path) -> None:
    """Some do not read their answers, others have sent half of a request."""
    path = tmp_path / "sock"
    flags = ["--admin.socket", str(path), "--admin.http", f"{LOCAL}:0", "-n", "1100"]
    with echod(flags=flags) as daemon, contextlib.ExitStack() as stack:
        target = Target(daemon, path)
        crowd = stack.enter_context(contextlib.ExitStack())
        for _ in range(CROWD):
            crowd.enter_context(daemon.connect())
        daemon.wait_for("connection.opened", count=CROWD)
        for _ in range(16):
            send(stack.enter_context(target.local()), request("/connections"))
            send(stack.enter_context(target.remote()), request("/livez")[:-1])
        target.status()
        crowd.close()
        daemon.wait_for("connection.closed", count=CROWD)
        began = running_time()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert running_time() - began < http.STALL  # the longest that a client may hold up its answer
        assert not path.exists()


def test_of_daemons_that_start_at_once_on_one_path_one_gets_it(tmp_path: Path) -> None:
    """A dead one has left its socket there. The others say that the address is in use."""
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
