"""A slow, full, broken or missing log sink: the echo goes on, and what was lost is counted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Echod, check_line, read_all, read_exactly, reserved_port, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Daemon = Callable[..., Echod]

CONNECTIONS = 1000


@contextlib.contextmanager
def _small_pipe() -> Iterator[tuple[int, int]]:
    """Open a pipe that holds one page; close what is still open of it."""
    with contextlib.ExitStack() as stack:
        ends = os.pipe()
        for end in ends:
            stack.callback(_close, end)
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
        yield ends


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def test_a_pipe_that_nobody_reads_costs_lines_and_no_echo(echod: Daemon) -> None:
    """All are served meanwhile; read again, the lines that came through and those counted are all there were."""
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
        while not lines or lines[-1]["event"] != "log.dropped":
            lines.append(json.loads(pipe.readline()))
        assert lines[-1]["lines"] > CONNECTIONS
        assert daemon.echo(b"logged again") == b"logged again"
        daemon.signal(signal.SIGTERM)
        lines += [json.loads(raw) for raw in pipe]
        assert daemon.wait() == 0
    for line in lines:
        check_line(line)
    assert [line["event"] for line in lines[-5:]] == [
        "connection.opened",
        "connection.closed",
        "daemon.draining",
        "listener.stopped",
        "daemon.stopped",
    ]
    dropped = sum(line["lines"] for line in lines if line["event"] == "log.dropped")
    written = sum(line["event"] != "log.dropped" for line in lines)
    assert written + dropped == 5 + 2 * (CONNECTIONS + 1)


def test_it_stops_although_nobody_reads(echod: Daemon) -> None:
    """A full pipe at the end does not keep the process, whatever it still has to say, and signals do not hurt."""
    with _small_pipe() as (_, writer), reserved_port() as port, echod(stdout=writer, port=port) as daemon:
        for _ in range(100):
            assert daemon.echo(b"goes on") == b"goes on"

        def ended() -> bool:
            daemon.signal(signal.SIGTERM)
            return daemon.process.poll() is not None

        until(ended, what="the end")
        assert daemon.process.returncode == 0


def test_a_full_disk_costs_no_echo_and_no_exit(echod: Daemon) -> None:
    """On /dev/full (ENOSPC) all are served, and TERM ends it with 0."""
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
    """EPIPE is no end: `echod run | head -1` serves on, and stops well."""
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
    """Closed at start, their numbers are not given to sockets: clients get their echo and nothing else."""
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
    """O_NONBLOCK would change the open file for every process that has it, such as the shell."""
    with _small_pipe() as (_, writer), reserved_port() as port, echod(stdout=writer, port=port) as daemon:
        assert daemon.echo(b"there") == b"there"
        assert os.get_blocking(writer)


def test_a_sink_that_is_non_blocking_loses_nothing(echod: Daemon) -> None:
    """Somebody else made the pipe non-blocking: a full one is waited for, and each line arrives whole."""
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
