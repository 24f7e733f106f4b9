"""What the kernel does not tell: emulators, sandboxes and odd containers refuse what is only to look at. Nothing depends on it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import Stream, fill
from tests.support.harness import DEADLINE, LOCAL, Echod, command, free_port, read_all, read_exactly, send_all, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.inject import Injection

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

NO_PROC = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$0" "$@"')
"""Runs a command where /proc is empty."""


def tells_nothing(injection: Injection, error: int, at_most: int) -> dict[str, str]:
    """Let the kernel refuse TCP_INFO, or fill only so many bytes of it; and refuse SIOCOUTQ, SO_LINGER and TCP_SAVE_SYN."""
    injection.arm("tcp_info", error, at_most=at_most)
    injection.arm("send_queue", errno.ENOTTY)
    injection.arm("reset_on_close", errno.ENOPROTOOPT)
    injection.arm("save_syn", errno.ENOPROTOOPT)
    return injection.environment


def ask(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://{LOCAL}:{port}{path}", timeout=DEADLINE) as answer:
        assert answer.status == 200
        return str(answer.read(), "utf-8")


def live(daemon: Echod, http: int, admin: tuple[str, ...]) -> None:
    """Do everything that a daemon does, and end it in the midst of an echo."""
    said = os.urandom(1 << 20)
    assert daemon.echo(said) == said
    with daemon.connect(receive_buffer=1 << 14) as stalled, daemon.connect() as open_one, daemon.connect() as killed:
        open_one.sendall(b"x")
        assert read_exactly(open_one, 1) == b"x"
        killed.sendall(b"x")
        assert read_exactly(killed, 1) == b"x"
        fill([Stream(stalled)])
        rows = json.loads(command("connections", "--json", *admin).stdout)
        assert [(row["state"], row["tcp"]) for row in rows] == [("stalled", None), ("open", None), ("open", None)]
        assert [row["syn"] for row in rows] == [None, None, None]
        assert command("connections", *admin).returncode == 0
        status = json.loads(ask(http, "/status"))
        assert [(each["state"], each["queued"]) for each in status["listeners"]] == [("accepting", None)]
        assert command("kill", str(rows[2]["connection"]), *admin).returncode == 0
        assert killed.recv(1) == b""
        assert (daemon.closed(killed)["tcp"], daemon.closed(killed)["syn"]) == (None, None)
        port = free_port()
        answer = daemon.reload(f"[listen]\nhost = '{LOCAL}'\nport = {port}\n[pool]\nsize = 9\n{CUT}")
        changed = ["listen.port", "pool.size", "timeouts.write"]
        assert (answer["event"], answer["changed"]) == ("config.reloaded", changed)
        with socket.create_connection((LOCAL, port), DEADLINE) as sock:
            send_all(sock, b"moved")
            assert read_all(sock) == b"moved"
        assert "echod_connections_in_use" in ask(http, "/metrics")
        until(lambda: len(daemon.events("connection.closed")) >= 3, what="the write timeout")
        assert daemon.closed(stalled)["reason"] == "write_timeout"
        daemon.signal(signal.SIGTERM)
        assert open_one.recv(1) == b""
        assert daemon.wait() == 0
        assert daemon.closed(open_one)["reason"] == "drained"
    assert [line for line in daemon.lines if line["event"].startswith("internal")] == []


TIMEOUTS = "[timeouts]\nwrite = 'off'\ndrain = '200ms'\n"
CUT = TIMEOUTS.replace("off", "2s")


@pytest.mark.parametrize(("error", "at_most"), [(errno.ENOPROTOOPT, 0), (errno.EOPNOTSUPP, 0), (0, 0), (0, 1), (0, 24)])
def test_a_kernel_that_tells_nothing_changes_nothing_else(
    echod: Daemon, injection: Injection, tmp_path: Path, error: int, at_most: int
) -> None:
    """Start, echo, books, kill, a reload that moves the port, a timeout, and a drain that ends with 0."""
    http = free_port()
    admin = ("--admin.socket", str(tmp_path / "admin.sock"))
    environment = tells_nothing(injection, error, at_most)
    config = f"[listen]\nhost = '{LOCAL}'\nport = {free_port()}\n{TIMEOUTS}"
    flags = (*admin, "--admin.http", f"{LOCAL}:{http}")
    with echod(config, env=environment, flags=flags) as daemon:
        live(daemon, http, admin)
        for call in ("tcp_info", "send_queue", "reset_on_close", "save_syn"):
            assert injection.hits(call) > 0, call


def test_it_drains_by_the_clock_alone(echod: Daemon, injection: Injection) -> None:
    """Without TCP_INFO nobody knows whether a client has sent all: whoever does not stop is ended in time all the same."""
    environment = tells_nothing(injection, errno.ENOPROTOOPT, 0)
    with echod(TIMEOUTS, env=environment) as daemon, daemon.connect() as sock:
        daemon.signal(signal.SIGTERM)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while read_echo(sock):
                assert time.monotonic() < began + DEADLINE
        assert daemon.wait() == 0


def read_echo(sock: socket.socket) -> bytes:
    sock.sendall(b"x")
    return sock.recv(1)


def test_in_an_emulator_it_lives_as_ever(echod: Daemon, tmp_path: Path) -> None:
    """As when an image for another processor is run: user-mode QEMU passes no TCP_INFO on."""
    emulator = shutil.which(f"qemu-{platform.machine()}-static")
    if not emulator:
        pytest.skip("no emulator of this machine (qemu-user-static)")
    http = free_port()
    admin = ("--admin.socket", str(tmp_path / "admin.sock"))
    config = f"[listen]\nhost = '{LOCAL}'\nport = {free_port()}\n{TIMEOUTS}"
    flags = (*admin, "--admin.http", f"{LOCAL}:{http}")
    with echod(config, prefix=[emulator], flags=flags, patience=5 * DEADLINE) as daemon:
        live(daemon, http, admin)


ACTIVATED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_of_systemd_is_served_where_the_kernel_tells_nothing(echod: Daemon, injection: Injection) -> None:
    environment = tells_nothing(injection, errno.ENOPROTOOPT, 0)
    with socket.create_server((LOCAL, 0)) as listener:
        fd = listener.fileno()
        prefix = (sys.executable, "-c", ACTIVATED, str(fd))
        with echod(env=environment, prefix=prefix, pass_fds=[fd]) as daemon:
            assert daemon.wait_for("listener.started")["backlog"] is None
            assert daemon.echo(b"hi") == b"hi"


def test_without_proc_it_lives_as_ever(echod: Daemon, tmp_path: Path) -> None:
    """The metrics leave out what only /proc knows."""
    if not shutil.which("unshare") or subprocess.run([*NO_PROC, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount in a namespace (unshare --mount)")
    http = free_port()
    admin = ("--admin.socket", str(tmp_path / "admin.sock"))
    flags = (*admin, "--admin.http", f"{LOCAL}:{http}")
    config = f"[listen]\nhost = '{LOCAL}'\nport = {free_port()}\n{TIMEOUTS}"
    with echod(config, flags=flags, prefix=NO_PROC) as daemon:
        assert daemon.echo(b"hi") == b"hi"
        answer = daemon.reload(config.replace("off", "3s"))
        assert (answer["event"], answer["changed"]) == ("config.reloaded", ["timeouts.write"])
        assert json.loads(ask(http, "/status"))["state"] == "running"
        found = re.findall(r"^(process_\w+) ", ask(http, "/metrics"), re.MULTILINE)
        assert found == ["process_cpu_seconds_total", "process_max_fds"]
