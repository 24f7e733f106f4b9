"""A slow, full, broken or missing log sink: the echo goes on, and what was lost is counted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.harness import DEADLINE, Echod, command, read_all, read_exactly, reserved_port, until
from tests.support.log_document import check_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

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


def _lost(daemon: Echod) -> tuple[int, str]:
    """Return how many lines a daemon that has ended could not write, and why, by its standard error."""
    found = re.fullmatch(r"echod: (\d+) lines of the log could not be written: (.+)\n", daemon.errors())
    assert found
    return int(found[1]), found[2]


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
    """A full pipe does not keep the process from ending, and further signals change nothing. The lines are counted."""
    with _small_pipe() as (reader, writer), reserved_port() as port, echod(stdout=writer, port=port) as daemon:
        for _ in range(100):
            assert daemon.echo(b"goes on") == b"goes on"

        def ended() -> bool:
            daemon.signal(signal.SIGTERM)
            return daemon.process.poll() is not None

        until(ended, what="the end")
        assert daemon.process.returncode == 0
        lost, why = _lost(daemon)
        written = os.read(reader, 4096).splitlines()
    for line in written:
        check_line(json.loads(line))
    assert len(written) + lost == 5 + 2 * 100
    assert why == "standard output takes nothing"


def test_a_stop_waits_for_no_room_on_standard_error(echod: Daemon) -> None:
    """It is the same pipe as standard output, as in `echod run 2>&1 | …`."""
    prefix = ("sh", "-c", 'exec "$@" 2>&1', "sh")
    with (
        _small_pipe() as (_, writer),
        reserved_port() as port,
        echod(stdout=writer, port=port, prefix=prefix) as daemon,
    ):
        for _ in range(20):
            assert daemon.echo(b"goes on") == b"goes on"
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


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
        assert _lost(daemon) == (5 + 2 * CONNECTIONS, "ENOSPC")


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
        lost, why = _lost(daemon)
    assert 2 * 100 <= lost <= 2 * 100 + 3  # the reader may have had the first two
    assert why == "EPIPE"


@pytest.mark.parametrize(
    "sink", ["a full disk", "a pipe that nobody reads", "a pipe without a reader", "a terminal that has gone"]
)
def test_a_status_says_that_lines_are_held_since_when_and_why(echod: Daemon, tmp_path: Path, sink: str) -> None:
    """The number includes all that the sink has not taken. The screen says so too, and needs attention."""
    asked = ("--admin.socket", str(tmp_path / "a"))
    errors = {"a full disk": "ENOSPC", "a pipe without a reader": "EPIPE", "a terminal that has gone": "EIO"}
    error = errors.get(sink)
    with contextlib.ExitStack() as stack:
        reader, output = stack.enter_context(_small_pipe())
        if sink == "a full disk":
            output = stack.enter_context(Path("/dev/full").open("wb")).fileno()
        if sink == "a terminal that has gone":
            terminal, output = os.openpty()
            stack.callback(_close, output)
            os.close(terminal)
        if error:
            os.close(reader)
        daemon = stack.enter_context(echod(stdout=output, port=stack.enter_context(reserved_port()), flags=asked))
        for _ in range(50):
            assert daemon.echo(b"goes on") == b"goes on"

        def log() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(command("status", "--json", *asked).stdout)["log"]
            return found

        until(lambda: (log()["held_since"] or 0) > 1, what="the time", interval=0.1)
        found = log()
        taken = 0 if error else len(os.read(reader, 4096).splitlines())
        assert found["held"] + taken == 3 + 2 * 50
        assert (found["error"], found["dropped"]) == (error, 0)
        screen = command("status", *asked).stdout
        assert re.search(r"^! log +no lines dropped, \d+ held for \d+s: ", screen, re.MULTILINE)
        if not error:
            os.close(reader)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert _lost(daemon)[0] > 0


def test_two_daemons_that_share_a_pipe_tear_no_line(echod: Daemon, tmp_path: Path) -> None:
    """Each line arrives whole, though the pipe is full all the time."""
    raw = bytearray()
    with contextlib.ExitStack() as stack:
        reader, writer = stack.enter_context(_small_pipe())
        daemons = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            port = stack.enter_context(reserved_port())
            daemons.append(stack.enter_context(echod(stdout=writer, port=port, directory=tmp_path / name)))
        os.close(writer)

        def clients(daemon: Echod) -> None:
            for _ in range(200):
                assert daemon.echo(b"goes on") == b"goes on"

        with ThreadPoolExecutor(len(daemons)) as threads:
            coming = [threads.submit(clients, daemon) for daemon in daemons]
            while not all(each.done() for each in coming):
                raw += os.read(reader, 4096)
                time.sleep(0.005)  # a slow reader
            for each in coming:
                each.result()
        for daemon in daemons:
            daemon.signal(signal.SIGTERM)
        while chunk := os.read(reader, 1 << 16):
            raw += chunk
        for daemon in daemons:
            assert daemon.wait() == 0
    lines = raw.splitlines()
    for line in lines:
        check_line(json.loads(line))
    assert len(lines) == len(daemons) * (5 + 2 * 200)


# Files, and what logrotate does to them


@pytest.mark.skipif(not shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin"), reason="no logrotate")
@pytest.mark.parametrize("mode", ["wb", "ab"])
@pytest.mark.parametrize("way", ["copytruncate", "create 0600"])
def test_a_log_file_is_rotated_by_logrotate_without_a_signal(
    echod: Daemon, tmp_path: Path, way: str, mode: str
) -> None:
    """Each line is in one of the files, and the file of that name goes on, without a hole; `>` and `>>` do."""
    log, conf = tmp_path / "echod.log", tmp_path / "logrotate.conf"
    conf.write_text(f"{log} {{\n rotate 9\n {way}\n}}\n")
    conf.chmod(0o600)  # logrotate does not trust a file that others can write
    rotate = ["logrotate", "--force", "--state", str(tmp_path / "state"), str(conf)]
    path = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}

    def lines(file: Path) -> list[bytes]:
        return file.read_bytes().splitlines() if file.exists() else []

    rotations, echoes = 3, 10
    with (
        log.open(mode) as output,
        reserved_port() as port,
        echod(stdout=output.fileno(), port=port) as daemon,
    ):
        until(lambda: len(lines(log)) == 2, what="the first lines")
        for turn in range(rotations):
            subprocess.run(rotate, check=True, env=path)
            assert lines(log) == []
            for _ in range(echoes):
                assert daemon.echo(b"goes on") == b"goes on"
            until(lambda: len(lines(log)) == 2 * echoes, what=f"the lines after rotation {turn}")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
    files = [log, *(tmp_path / f"echod.log.{number}" for number in range(1, rotations + 1))]
    assert [len(lines(file)) for file in files] == [2 * echoes + 3, 2 * echoes, 2 * echoes, 2]
    for file in files:
        assert b"\0" not in file.read_bytes()
        for line in lines(file):
            check_line(json.loads(line))


def test_a_log_file_that_is_removed_needs_attention_until_there_is_one(echod: Daemon, tmp_path: Path) -> None:
    """Lines still go to the file that nobody can find any more; the status says so. A new file of that name gets the next ones."""
    asked = ("--admin.socket", str(tmp_path / "a"))
    log = tmp_path / "echod.log"
    with (
        log.open("wb") as output,
        reserved_port() as port,
        echod(stdout=output.fileno(), port=port, flags=asked) as daemon,
    ):
        log.unlink()

        def trouble() -> str:
            assert daemon.echo(b"goes on") == b"goes on"
            (line,) = re.findall(r"^(. log .*)$", command("status", *asked).stdout, re.MULTILINE)
            return str(line)

        until(lambda: trouble().startswith("! ") and trouble().endswith(": ENOENT"), what="the trouble", interval=0.1)
        log.touch()
        until(lambda: trouble().startswith("  "), what="no trouble", interval=0.1)
        assert b"connection.closed" in log.read_bytes()
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
    assert b"daemon.stopped" in log.read_bytes()


# The journal


def test_the_stream_to_the_journal_is_opened_again(
    echod: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it was stopped and started, no line that was held is missing, and standard error goes there too."""
    monkeypatch.chdir(tmp_path)  # the address of a Unix socket is short
    (tmp_path / "journal").mkdir()
    script = f"mount -t tmpfs none /run && mkdir /run/systemd && ln -s {tmp_path}/journal /run/systemd && "
    mount = ("unshare", "--map-root-user", "--mount", "sh", "-c")
    if subprocess.run([*mount, f"{script} true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespace: unshare --map-root-user --mount")
    first = b""
    journal, stdout = socket.socketpair()
    status = os.fstat(stdout.fileno())
    with (
        journal,
        stdout,
        socket.socket(socket.AF_UNIX) as again,
        reserved_port() as port,
        echod(
            stdout=stdout.fileno(),
            port=port,
            env={"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
            prefix=(*mount, f'{script} exec "$@" 2>&1', "sh"),
        ) as daemon,
        daemon.deadline(),
    ):
        stdout.close()
        while b"daemon.started" not in first:
            first += journal.recv(1 << 16)
        journal.close()
        assert daemon.echo(b"goes on") == b"goes on"
        again.bind("journal/stdout")
        again.listen()
        again.settimeout(DEADLINE)
        stream, _ = again.accept()
        with stream, stream.makefile("rb") as lines:
            header = [next(lines) for _ in range(7)]
            assert header == [b"echod\n", b"\n", b"3\n", b"1\n", b"0\n", b"0\n", b"0\n"]
            daemon.signal(signal.SIGTERM)
            rest = lines.read().splitlines()  # to the end, which comes only if standard error goes there too
        assert daemon.wait() == 0
    events = [json.loads(line[3:])["event"] for line in [*first.splitlines(), *rest]]
    assert events == [
        "listener.started",
        "daemon.started",
        "connection.opened",
        "connection.closed",
        "daemon.draining",
        "listener.stopped",
        "daemon.stopped",
    ]


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
