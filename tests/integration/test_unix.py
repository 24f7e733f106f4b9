"""Echo over a Unix socket, by the real process."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import stat
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import DEADLINE, Echod, command, read_all, read_exactly, send_all, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

ME = {"pid": os.getpid(), "uid": os.getuid()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "echo.sock"


def connect(where: object) -> socket.socket:
    """Return a connected client with a deadline."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE)
    try:
        client.connect(str(where).replace("@", "\0"))
    except BaseException:
        client.close()
        raise
    return client


def echo(where: object, data: bytes) -> bytes:
    """Send and half-close while reading; return all that came back."""
    with connect(where) as client:
        sending = threading.Thread(target=send_all, args=(client, data))
        sending.start()
        try:
            return read_all(client)
        finally:
            sending.join()


def stalled(daemon: Echod, where: object) -> socket.socket:
    """Return a client that has sent until the daemon stopped reading: it takes nothing more, although it has run meanwhile."""
    client = connect(where)
    client.setblocking(False)
    quiet = 0
    while quiet < 5:
        try:
            client.send(bytes(1 << 16))
            quiet = 0
        except BlockingIOError:
            quiet += 1
            daemon.reload(daemon.file.read_text())
    client.settimeout(DEADLINE)
    return client


LONG = 3
"""Seconds of a timeout that must not end a client which is active a few times a second: a machine may stand still for a while."""


@pytest.mark.parametrize("abstract", [False, True])
def test_every_byte_comes_back(echod: Daemon, path: Path, *, abstract: bool) -> None:
    """From a path or an abstract name: much more than the buffers hold, and all of it after a half-close."""
    where = f"@{path}" if abstract else str(path)
    data = random.Random(862).randbytes(5_000_000)
    with echod(flags=["--listen.unix", where]) as daemon:
        assert daemon.wait_for("listener.started", count=2)["listener"] == f"unix:{where}"
        assert echo(where, data) == data
        line = daemon.wait_for("connection.closed")
        assert (line["client"], line["listener"], line["reason"], line["tcp"]) == (ME, f"unix:{where}", "eof", None)
        assert line["bytes_received"] == line["bytes_sent"] == len(data)
        assert daemon.echo(b"over TCP") == b"over TCP"


def test_urgent_bytes_over_a_unix_socket_come_back(echod: Daemon, path: Path) -> None:
    """At their places, as over TCP."""
    with echod(flags=["--listen.unix", str(path)]), connect(path) as client:
        try:
            client.send(b"!", socket.MSG_OOB)
        except OSError:
            pytest.skip("this kernel has no urgent data on Unix sockets")
        for number in range(10):
            client.send(b"%d" % number)
            client.send(b"!", socket.MSG_OOB)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"!0!1!2!3!4!5!6!7!8!9!"


def test_a_client_too_many_gets_eof_although_it_has_sent(echod: Daemon, path: Path) -> None:
    """close(2) alone would be a reset for it."""
    with echod("[pool]\nsize = 1", flags=["--listen.unix", str(path)]) as daemon, connect(path) as first:
        first.send(b"x")
        assert first.recv(1) == b"x"
        with daemon.suspended():
            second = connect(path)
            second.send(b"too many")
        line = daemon.wait_for("connection.rejected")
        with second:
            assert read_all(second) == b""
        assert (line["client"], line["listener"], line["reason"]) == (ME, f"unix:{path}", "pool_full")


def test_clients_are_listed_and_ended_by_their_user(echod: Daemon, path: Path, tmp_path: Path) -> None:
    """By the commands, also beside clients with addresses."""
    admin = {"ECHOD_ADMIN__SOCKET": str(tmp_path / "admin.sock")}
    with (
        echod(flags=["--listen.unix", str(path)], env=admin) as daemon,
        connect(path) as client,
        daemon.connect() as other,
    ):
        for each in (client, other):
            each.send(b"x")
            assert each.recv(1) == b"x"
        shown = command("connections", "--sort", "client", env=admin).stdout.splitlines()
        assert [line.split()[1].partition(":")[0] for line in shown[1:]] == ["uid", "127.0.0.1"]
        assert f"uid:{os.getuid()} 1" in command("status", env=admin).stdout
        killed = command("kill", "--source", f"uid:{os.getuid()}", env=admin)
        assert killed.stdout.endswith(f", uid:{os.getuid()},pid:{os.getpid()}\n")
        assert read_all(client) == b""
        other.send(b"y")
        assert other.recv(1) == b"y"


def test_the_file_lasts_as_long_as_the_process(echod: Daemon, path: Path) -> None:
    """A killed one leaves it, and the next one replaces it."""
    flags = ["--listen.unix", str(path), "--listen.unix_mode", "0600"]
    first = echod(flags=flags)
    first.read_log()
    first.wait_for("daemon.started")
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    second = command(
        "run", "--listen.host", "127.0.0.1", "--listen.port", "0", *flags, env={"ECHOD_ADMIN__SOCKET": "off"}
    )
    assert (second.returncode, second.stderr) == (
        os.EX_UNAVAILABLE,
        f"echod: listen.unix: unix:{path}: address in use: another process listens there\n",
    )
    first.kill()
    assert path.is_socket()
    with echod(flags=flags):
        assert echo(path, b"x") == b"x"
    assert not path.exists()


def test_reloads_move_it_and_change_its_mode(echod: Daemon, path: Path) -> None:
    """Open connections stay; a move says that other clients may connect."""
    other = path.with_name("other.sock")
    listen = "[listen]\nhost = '127.0.0.1'\nport = 0\n"
    with echod(f"{listen}unix = '{path}'") as daemon, connect(path) as client:
        answer = daemon.reload(f"{listen}unix = '{path}'\nunix_mode = '0666'")
        assert answer["new"] == {"listen.unix_mode": "0666"}
        assert stat.S_IMODE(path.lstat().st_mode) == 0o666
        assert daemon.reload(f"{listen}unix = '{other}'\nunix_mode = '0666'")["event"] == "config.reloaded"
        assert not path.exists()
        assert echo(other, b"x") == b"x"
        daemon.reload(listen)
        assert not other.exists()
        client.send(b"y")
        assert client.recv(1) == b"y"
        warnings = [line["message"].partition(": listen.")[2] for line in daemon.events("config.warning")]
        more = "lets in more clients than before"
        assert warnings == [
            f"unix_mode: {more}: mode 0666, it was 0660",
            f'unix: {more}: also listens on "unix:{other}"',
        ]


def test_a_socket_that_somebody_removes_is_there_again(echod: Daemon, path: Path) -> None:
    """Within a second or so, also while clients come and go; connections of before stay."""
    with echod(flags=["--listen.unix", str(path), "--timeouts.write", "400ms"]) as daemon, connect(path) as before:
        path.unlink()
        until(path.exists, what="the socket")
        assert echo(path, b"x") == b"x"
        path.unlink()
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("config.reloaded")
        assert echo(path, b"y") == b"y"
        before.send(b"z")
        assert before.recv(1) == b"z"


def test_who_reads_slowly_gets_everything_and_who_does_not_is_cut(echod: Daemon, path: Path) -> None:
    """The kernel only tells that a whole piece of the output was read, of at most 36 KiB."""
    config = "[timeouts]\nidle = '30s'\nwrite = '{}'"
    with (
        echod(config.format("off"), flags=["--listen.unix", str(path)]) as daemon,
        stalled(daemon, path) as slow,
        stalled(daemon, path) as deaf,
    ):
        slow.shutdown(socket.SHUT_WR)
        heard = 0
        daemon.reload(config.format(f"{LONG}s"))
        end = time.monotonic() + 2 * LONG
        while time.monotonic() < end:
            heard += len(read_exactly(slow, 20_000))
            time.sleep(0.5)
        heard += len(read_all(slow))
        lines = [daemon.wait_for("connection.closed", count=number) for number in (1, 2)]
        assert sorted(line["reason"] for line in lines) == ["eof", "write_timeout"]
        whole = next(line for line in lines if line["reason"] == "eof")
        assert heard == whole["bytes_received"] == whole["bytes_sent"]
        with contextlib.suppress(ConnectionResetError):
            read_all(deaf)


def test_who_says_nothing_is_idle_and_who_still_reads_is_not(echod: Daemon, path: Path) -> None:
    """Without TCP_INFO, only what the checks see counts."""
    config = "[timeouts]\nwrite = 'off'\nidle = '{}'"
    with (
        echod(config.format("off"), flags=["--listen.unix", str(path)]) as daemon,
        connect(path) as silent,
        stalled(daemon, path) as reading,
        connect(path) as busy,
    ):
        daemon.reload(config.format(f"{LONG}s"))
        end = time.monotonic() + 1.5 * LONG
        while time.monotonic() < end:
            read_exactly(reading, 20_000)
            busy.send(b"x")
            assert busy.recv(1) == b"x"
            time.sleep(0.3)
        assert silent.recv(1) == b""
        daemon.wait_for("connection.closed")
        assert [line["reason"] for line in daemon.events("connection.closed")] == ["idle_timeout"]


def test_a_drain_lets_clients_of_a_unix_socket_finish(echod: Daemon, path: Path) -> None:
    """The file is gone at once; who is connected gets the rest of its echo."""
    with echod(flags=["--listen.unix", str(path)]) as daemon, stalled(daemon, path) as client:
        client.shutdown(socket.SHUT_WR)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("daemon.draining")
        until(lambda: not path.exists(), what="the end of the socket")
        heard = len(read_all(client))
        assert daemon.wait() == 0
        (line,) = daemon.events("connection.closed")
        assert (line["reason"], line["bytes_received"], line["bytes_sent"]) == ("eof", heard, heard)
