"""Time is not what it seems: the wall clock jumps, or the process was stopped for a while."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import threading
import time
import urllib.request
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.support.bystander import unharmed
from tests.support.certificates import client_context, pem_file
from tests.support.harness import DEADLINE, LOCAL, Echod, command, free_port, read_all, read_exactly, send_all, until
from tests.support.inject import STOP
from tests.support.proxy_headers import v1

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from tests.support.inject import Injection

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

IDLE = 4
"""Seconds of the timeouts here: a client that never rests for so long may be late, also if its machine stands still."""
TICK = 1
"""Seconds from one look of the daemon at its connections to the next."""
HOUR = 3600
PROXY = "127.0.0.77"


def exchange(sock: socket.socket, said: bytes) -> None:
    sock.sendall(said)
    assert read_exactly(sock, len(said)) == said


def ahead(line: dict[str, Any]) -> float:
    """Return by how many hours a line's timestamp is ahead of now, rounded."""
    return round((datetime.fromisoformat(line["timestamp"]) - datetime.now(UTC)).total_seconds() / HOUR)


@pytest.mark.parametrize("hours", [5, -5])
def test_no_timeout_knows_the_wall_clock(echod: Daemon, injection: Injection, hours: int) -> None:
    """It jumps by hours: who is idle ends when due, who is not stays; the log goes on, with the new time."""
    config = f'[timeouts]\nidle = "{IDLE}s"\nwrite = "{IDLE}s"\n[access]\naccept_rate = "1000/s"'
    with echod(config, env=injection.environment) as daemon, daemon.connect() as busy, daemon.connect() as idle:
        began = time.monotonic()
        exchange(idle, b"the last word")
        time.sleep(1.5 * TICK)  # the daemon takes note of that
        injection.turn_clock(hours * HOUR)
        idle.setblocking(False)
        while not daemon.events("connection.closed"):
            exchange(busy, b"x")
            assert time.monotonic() < began + 2 * IDLE
        idle.settimeout(1)
        assert idle.recv(1) == b""
        assert time.monotonic() - began >= IDLE
        closed = daemon.closed(idle)
        assert closed["reason"] == "idle_timeout"
        assert IDLE <= closed["duration"] < 2 * IDLE
        assert ahead(closed) == hours
        injection.turn_clock(0)
        assert daemon.echo(b"on it goes") == b"on it goes"
        assert ahead(daemon.wait_for("connection.closed", count=2)) == 0
        daemon.stop()
        assert daemon.lines[-1]["uptime"] < HOUR


def test_a_clock_that_was_wrong_at_the_start_gives_no_wrong_age(
    echod: Daemon, injection: Injection, tmp_path: Path
) -> None:
    """A machine boots in 1970 and learns the time later: no age and no start is off by 50 years, before or after that."""
    port = free_port()
    admin = ("--admin.socket", str(tmp_path / "admin.sock"), "--admin.http", f"{LOCAL}:{port}")
    injection.turn_clock(-int(time.time()) + 100)
    with echod("[pool]\nsize = 1", env=injection.environment, flags=admin) as daemon:
        with daemon.connect() as sock, daemon.connect() as rejected:
            exchange(sock, b"x")
            assert rejected.recv(1) == b""
        for hours in (None, 0, -1):
            if hours is not None:
                injection.turn_clock(hours * HOUR)
            screen = command("status", *admin[:2]).stdout
            assert re.search(r"up \d+s\n", screen)
            assert re.search(r"loaded \d+s ago", screen)
            assert re.search(r"pool_full, \d+s ago", screen)
        injection.turn_clock(0)
        answer = json.loads(got(port, "/status"))
        for each in (answer["reload"], *answer["rejections"]):
            assert 0 <= each["age"] < 60
            assert ahead(each) == 0
        metrics = got(port, "/metrics")
        for name in ("process_start_time_seconds", "echod_config_reload_timestamp_seconds"):
            (value,) = re.findall(rf"^{name} (\S+)$", metrics, re.MULTILINE)
            assert abs(float(value) - time.time()) < 60


def got(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://{LOCAL}:{port}{path}", timeout=DEADLINE) as answer:
        return str(answer.read(), "utf-8")


def test_a_process_that_was_stopped_loses_nothing(echod: Daemon) -> None:
    """SIGSTOP and SIGCONT in the middle of transfers, and who has connected meanwhile is served."""
    said = os.urandom(8 << 20)
    with echod() as daemon, unharmed(daemon), daemon.connect() as sock:
        sending = threading.Thread(target=send_all, args=(sock, said))
        sending.start()
        echo = bytearray()
        for _ in range(5):
            with daemon.suspended(), daemon.connect() as late:
                late.sendall(b"late")
                time.sleep(0.05)  # what is measured is what becomes of the time in which it was stopped
            echo += read_exactly(sock, 1 << 20)
        echo += read_all(sock)
        sending.join()
        assert echo == said


def at_work(sock: socket.socket, injection: Injection) -> Callable[[], None]:
    """Return what has the daemon stop in the midst of an echo to this client, and not while it waits for something to do."""

    def stop() -> None:
        injection.arm("write", at_most=STOP, client=sock, times=1)
        sock.sendall(b"stop")

    return stop


def test_no_timeout_strikes_before_what_came_meanwhile_is_read(echod: Daemon, injection: Injection) -> None:
    """Stopped for longer than the timeout: who has said something is not idle, who has not is."""
    with (
        echod(f'[timeouts]\nidle = "{IDLE}s"\nwrite = "{IDLE}s"', env=injection.environment) as daemon,
        daemon.connect() as sock,
        daemon.connect() as quiet,
        daemon.connect() as other,
    ):
        for each in (sock, quiet, other):
            exchange(each, b"before")
        time.sleep(1.5 * TICK)  # the daemon takes note of when they were last active
        with daemon.suspended(stop=at_work(other, injection)):
            sock.sendall(b"meanwhile")
            time.sleep(1.1 * IDLE)  # the time in which it was stopped
        assert read_exactly(sock, 9) == b"meanwhile"
        assert daemon.closed(quiet)["reason"] == "idle_timeout"


def test_no_handshake_is_late_that_came_meanwhile(echod: Daemon) -> None:
    """Stopped for longer than the timeout: the rest of a PROXY header and the last message of a TLS handshake are read first."""
    config = f"[tls]\nport = 0\ncertificate = '{pem_file()}'\n[access]\nproxies = '{PROXY}'\n"
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with echod(f"{config}[timeouts]\nhandshake = '{IDLE}s'") as daemon, contextlib.ExitStack() as stack:
        port = int(daemon.wait_for("listener.started", count=2)["listener"].rpartition(":")[2])
        before = daemon.descriptors()
        named = stack.enter_context(daemon.connect(source=PROXY))
        named.sendall(b"PROXY ")
        until(lambda: daemon.descriptors() > before, what="accepted")
        client = stack.enter_context(socket.create_connection((LOCAL, port), DEADLINE))
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        client.sendall(outgoing.read())
        incoming.write(client.recv(1 << 16))
        tls.do_handshake()
        with daemon.suspended():
            named.sendall(v1("203.0.113.7", 4711)[6:] + b"meanwhile")
            tls.write(b"meanwhile")
            client.sendall(outgoing.read())
            time.sleep(1.1 * IDLE)  # the time in which it was stopped
        assert read_exactly(named, 9) == b"meanwhile"
        incoming.write(client.recv(1 << 16))
        assert tls.read(9) == b"meanwhile"
        assert daemon.events("connection.rejected") == []
