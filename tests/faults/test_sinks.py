"""A slow, full, broken or missing log sink: the echo goes on, and what was lost is counted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.harness import Echod, read_all, read_exactly, reserved_port, until
from tests.support.log_document import check_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Daemon = Callable[..., Echod]

CONNECTIONS = 1000


@contextlib.contextmanager
def _small_pipe() -> Iterator[tuple[int, int]]:
    """Open a pipe that holds one page, and close the ends that are still open later."""
    with contextlib.ExitStack() as stack:
        ends = os.pipe()
        for end in ends:
            stack.callback(_close, end)
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
        yield ends


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def _all_there(lines: list[dict[str, Any]], due: int) -> None:
    """Assert that each line is a good one, and that the missing ones have been counted."""
    for line in lines:
        check_line(line)
    assert any(line["event"] == "log.dropped" for line in lines)
    assert _accounted_for(lines) == due


def _accounted_for(lines: list[dict[str, Any]]) -> int:
    """Return the number of these lines and of those that they report as dropped."""
    return sum(line.get("lines", 1) for line in lines)


def test_a_pipe_that_nobody_reads_costs_lines_and_no_echo(echod: Daemon) -> None:
    """All clients are served. When the pipe is read again, the lines and the reported drops add up."""
    lines: list[dict[str, Any]] = []
    with (
        _small_pipe() as (reader, writer),
        reserved_port() as port,
        echod("[log]\nqueue = 100", stdout=writer, port=port) as daemon,
        os.fdopen(os.dup(reader), "rb") as pipe,
        daemon.deadline(),
    ):
        os.close(writer)
        for _ in range(CONNECTIONS):
            assert daemon.echo(b"goes on") == b"goes on"
        while _accounted_for(lines) < 2 + 2 * CONNECTIONS:
            lines.append(json.loads(pipe.readline()))
        assert max(line.get("lines", 0) for line in lines) > CONNECTIONS
        assert daemon.echo(b"logged again") == b"logged again"
        daemon.signal(signal.SIGTERM)
        lines += [json.loads(raw) for raw in pipe]
        assert daemon.wait() == 0
    assert [line["event"] for line in lines[-5:]] == [
        "connection.opened",
        "connection.closed",
        "daemon.draining",
        "listener.stopped",
        "daemon.stopped",
    ]
    _all_there(lines, 5 + 2 * (CONNECTIONS + 1))


def test_it_stops_although_nobody_reads(echod: Daemon) -> None:
    """A full pipe does not keep the process from ending, whatever it holds, and further signals change nothing."""
    with _small_pipe() as (_, writer), reserved_port() as port, echod(stdout=writer, port=port) as daemon:
        for _ in range(100):
            assert daemon.echo(b"goes on") == b"goes on"

        def ended() -> bool:
            daemon.signal(signal.SIGTERM)
            return daemon.process.poll() is not None

        until(ended, what="the end")
        assert daemon.process.returncode == 0


def test_a_full_disk_costs_no_echo_and_no_exit(echod: Daemon) -> None:
    """With /dev/full (ENOSPC) all clients are served, and the exit code after TERM is 0."""
    with (
        Path("/dev/full").open("wb") as full,
        reserved_port() as port,
        echod(stdout=full.fileno(), port=port) as daemon,
    ):
        for _ in range(CONNECTIONS):
            assert daemon.echo(b"goes on") == b"goes on"
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


def test_a_reader_that_goes_away_costs_no_echo_and_no_exit(echod: Daemon) -> None:
    """`echod run | head -1` serves on after EPIPE, and its exit code is 0."""
    with _small_pipe() as (reader, writer), reserved_port() as port, echod(stdout=writer, port=port) as daemon:
        os.close(writer)
        with daemon.deadline(), os.fdopen(os.dup(reader), "rb") as pipe:
            assert json.loads(pipe.readline())["event"] == "listener.started"
        os.close(reader)
        for _ in range(100):
            assert daemon.echo(b"goes on") == b"goes on"
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_without_standard_streams_no_client_reads_the_log(echod: Daemon, closed: str) -> None:
    """The numbers of descriptors that are closed at start are not given to sockets."""
    prefix = ("sh", "-c", f'exec "$@" {closed}', "sh")
    with reserved_port() as port, echod(stdout=subprocess.DEVNULL, port=port, prefix=prefix) as daemon:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(daemon.connect()) for _ in range(20)]
            for sock in socks:
                sock.sendall(b"only this")
            for sock in socks:
                assert read_exactly(sock, 9) == b"only this"
            for sock in socks:
                sock.shutdown(socket.SHUT_WR)
                assert read_all(sock) == b""
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


def test_a_sink_shared_with_others_is_not_made_non_blocking(echod: Daemon) -> None:
    """O_NONBLOCK changes the open file for every process that has it, such as the shell."""
    with _small_pipe() as (_, writer), reserved_port() as port, echod(stdout=writer, port=port) as daemon:
        assert daemon.echo(b"there") == b"there"
        assert os.get_blocking(writer)


def test_a_sink_that_is_non_blocking_loses_nothing(echod: Daemon) -> None:
    """The sink waits while the pipe is full, and each line arrives whole."""
    with _small_pipe() as (reader, writer), reserved_port() as port:
        os.set_blocking(writer, False)
        with echod(stdout=writer, port=port) as daemon:
            os.close(writer)
            for _ in range(100):
                assert daemon.echo(b"goes on") == b"goes on"
            with daemon.deadline(), os.fdopen(os.dup(reader), "rb") as pipe:
                daemon.signal(signal.SIGTERM)
                lines = [json.loads(raw) for raw in pipe]
            assert daemon.wait() == 0
    assert len(lines) == 5 + 2 * 100


@contextlib.contextmanager
def _small_disk(directory: Path) -> Iterator[tuple[str, ...]]:
    """Yield a prefix that runs a command with a private disk of 64 kB, and writes its output to a file on it."""
    mount = ("unshare", "--map-root-user", "--mount", "sh", "-c")
    script = f'mount -t tmpfs -o size=64k none {directory} && exec "$@" > {directory}/log'
    if subprocess.run([*mount, script, "sh", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespace: unshare --map-root-user --mount")
    yield (*mount, script, "sh")


@pytest.mark.slow
def test_a_full_disk_that_has_room_again_gets_every_line_or_its_number(echod: Daemon, tmp_path: Path) -> None:
    """A line of which a part did fit is completed. The lines and the reported drops add up."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with (
        _small_disk(disk) as prefix,
        reserved_port() as port,
        echod("[log]\nqueue = 100", stdout=subprocess.DEVNULL, port=port, prefix=prefix) as daemon,
    ):
        there = Path(f"/proc/{daemon.process.pid}/root{disk}")
        until(lambda: b"daemon.started" in (there / "log").read_bytes(), what="the first lines")
        (there / "others").write_bytes(bytes(40 << 10))
        for _ in range(CONNECTIONS // 2):
            assert daemon.echo(b"goes on") == b"goes on"
        assert os.statvfs(there).f_bavail == 0
        (there / "others").unlink()
        until(lambda: b"log.dropped" in (there / "log").read_bytes(), what="the number")
        log = (there / "log").open("rb")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
    with log:
        _all_there([json.loads(raw) for raw in log], 5 + 2 * (CONNECTIONS // 2))


@pytest.mark.slow
def test_a_sink_that_blocks_now_and_then_under_load_gets_every_line_or_its_number(echod: Daemon) -> None:
    """The pipe is read a page at a time, while four threads connect."""
    raw = bytearray()

    def clients() -> None:
        for _ in range(CONNECTIONS // 4):
            assert daemon.echo(b"goes on") == b"goes on"

    with (
        _small_pipe() as (reader, writer),
        reserved_port() as port,
        echod("[log]\nqueue = 50", stdout=writer, port=port) as daemon,
        ThreadPoolExecutor(4) as threads,
        daemon.deadline(),
    ):
        os.close(writer)
        coming = [threads.submit(clients) for _ in range(4)]
        while not all(each.done() for each in coming):
            raw += os.read(reader, 4096)
            time.sleep(0.02)  # a slow reader
        for each in coming:
            each.result()
        daemon.signal(signal.SIGTERM)
        while chunk := os.read(reader, 1 << 16):
            raw += chunk
        assert daemon.wait() == 0
    _all_there([json.loads(line) for line in raw.splitlines()], 5 + 2 * CONNECTIONS)
