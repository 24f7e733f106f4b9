"""The life of the process: start and what may prevent it, signals, drain, exit codes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import DEADLINE, LOCAL, Echod, command, opened, read_all, read_exactly, send_all, until

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]

STOP_SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="the machine has no IPv6")


def echo(host: str, port: int, data: bytes) -> bytes:
    with socket.create_connection((host, port), DEADLINE) as sock:
        send_all(sock, data)
        return read_all(sock)


# Start


def test_it_says_what_it_is_when_it_serves(echod: Daemon) -> None:
    """`daemon.started` comes after the listeners, and with it the daemon serves, on the port that the kernel chose."""
    with echod("[pool]\nsize = 7") as daemon:
        started = daemon.wait_for("daemon.started")
        assert [line["event"] for line in daemon.lines] == ["listener.started", "daemon.started"]
        assert daemon.port > 0
        assert daemon.echo(b"there") == b"there"
    assert started["pid"] == daemon.process.pid
    assert started["config"] == str(daemon.file)
    assert started["pool"] == {"size": 7, "when_full": "reject"}


@needs_ipv6
def test_star_is_every_address_and_ipv4_clients_appear_as_ipv4(echod: Daemon) -> None:
    """One dual-stack listener; a client by IPv4 is logged with its IPv4 address, one by IPv6 with that."""
    with echod('[listen]\nhost = "*"\nport = 0') as daemon:
        assert daemon.wait_for("listener.started")["listener"] == f"tcp://[::]:{daemon.port}"
        for count, host in enumerate((LOCAL, "::1"), 1):
            assert echo(host, daemon.port, b"hello") == b"hello"
            assert daemon.wait_for("connection.closed", count=count)["client"]["address"] == host
    assert len(daemon.events("listener.started")) == 1


@needs_ipv6
def test_one_ipv6_address_is_that_alone(echod: Daemon) -> None:
    """On "::1" a client by IPv4 is refused by the kernel."""
    with echod('[listen]\nhost = "::1"\nport = 0') as daemon:
        assert daemon.wait_for("listener.started")["listener"] == f"tcp://[::1]:{daemon.port}"
        assert echo("::1", daemon.port, b"hello") == b"hello"
        with pytest.raises(ConnectionRefusedError):
            daemon.connect()


@needs_ipv6
def test_a_list_of_addresses_is_a_listener_each(echod: Daemon) -> None:
    """Two addresses, one port (also when the kernel chooses it), one pool; at the end both are stopped."""
    with echod('[listen]\nhost = ["127.0.0.1", "::1"]\nport = 0') as daemon:
        urls = [f"tcp://127.0.0.1:{daemon.port}", f"tcp://[::1]:{daemon.port}"]
        for count, (host, url) in enumerate(zip((LOCAL, "::1"), urls, strict=True), 1):
            assert echo(host, daemon.port, b"hello") == b"hello"
            line = daemon.wait_for("connection.closed", count=count)
            assert (line["connection"], line["listener"]) == (count, url)
    assert [line["listener"] for line in daemon.events("listener.started")] == urls
    assert [line["listener"] for line in daemon.events("listener.stopped")] == urls


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_during_start_up_ends_it_quietly(tmp_path: Path, number: signal.Signals) -> None:
    """A Ctrl-C while the configuration is being read leaves no traceback. It ends as later, with 0."""
    os.mkfifo(tmp_path / "echod.toml")
    daemon = Echod(directory=tmp_path)
    try:
        with opened(tmp_path / "echod.toml"):  # it reads now, and waits for our first byte

            def ended() -> bool:
                # Again: Python runs handlers between two instructions, so a signal just before read(2) waits for another.
                daemon.signal(number)
                return daemon.process.poll() is not None

            until(ended, what="the end", interval=0.2)
            assert daemon.process.returncode == 0
        assert daemon.errors() == ""
    finally:
        daemon.kill()


def test_sighup_during_start_up_reloads_once_it_serves(tmp_path: Path) -> None:
    """A reload that comes too early is neither its end nor forgotten: the file may have changed after it was read."""
    os.mkfifo(tmp_path / "echod.toml")
    daemon = Echod(directory=tmp_path)
    with opened(tmp_path / "echod.toml") as fifo:
        daemon.signal(signal.SIGHUP)
        os.write(fifo, b"[pool]\nsize = 3\n")
        (tmp_path / "echod.toml").unlink()
        (tmp_path / "echod.toml").write_text("[pool]\nsize = 4\n")
    with daemon:
        assert daemon.wait_for("daemon.started")["pool"]["size"] == 3
        assert daemon.wait_for("config.reloaded")["new"] == {"pool.size": 4}
        assert daemon.echo(b"there") == b"there"


# Exit codes: one line each, never a traceback


def _refusal(code: int, *words: str, prefix: tuple[str, ...] = ()) -> str:
    """Run, which is to be refused with this exit code; return the one line on stderr."""
    done = command(*words, prefix=prefix)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_port_in_use_is_69() -> None:
    """The line names the address."""
    with socket.create_server((LOCAL, 0)) as taken:
        port = taken.getsockname()[1]
        line = _refusal(os.EX_UNAVAILABLE, "run", "--listen.host", LOCAL, "-p", str(port))
    assert f"{LOCAL}:{port}" in line
    assert "in use" in line


def test_a_port_in_use_by_echod_is_69(echod: Daemon) -> None:
    """A second daemon refuses, and the first goes on."""
    with echod() as daemon:
        _refusal(os.EX_UNAVAILABLE, "run", "--listen.host", LOCAL, "-p", str(daemon.port))
        assert daemon.echo(b"there") == b"there"


def test_no_permission_for_a_low_port_is_77() -> None:
    """The line says what is needed."""
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 7:
        pytest.skip("anybody may take port 7 here")
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("root, and no setpriv to drop the capability")
        prefix = (setpriv, "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service")
    line = _refusal(os.EX_NOPERM, "run", "--listen.host", LOCAL, "-p", "7", prefix=prefix)
    assert "port 7 needs CAP_NET_BIND_SERVICE" in line


def test_a_bad_configuration_is_78(tmp_path: Path) -> None:
    """The line says where, what, and what was found."""
    file = tmp_path / "echod.toml"
    file.write_text("[pool]\nsize = 0\n")
    assert _refusal(os.EX_CONFIG, "run", "-c", str(file)) == f"{file}:2: pool.size: must be at least 1, got 0\n"


def test_a_missing_configuration_is_66(tmp_path: Path) -> None:
    """The line names the file."""
    file = tmp_path / "none.toml"
    assert str(file) in _refusal(os.EX_NOINPUT, "run", "-c", str(file))


@pytest.mark.parametrize("words", [(), ("walk",), ("run", "--pool.seize", "3"), ("run", "-p")])
def test_wrong_usage_is_64(words: tuple[str, ...]) -> None:
    """The line says where help is."""
    assert "--help" in _refusal(os.EX_USAGE, *words)


def test_check_binds_nothing(echod: Daemon) -> None:
    """It says that a file is good although its port is in use."""
    with echod("[pool]\nsize = 5") as daemon:
        done = command("check", "-c", str(daemon.file), "-p", str(daemon.port))
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{daemon.file}: ok\n", "")


def test_version_names_what_it_runs_on() -> None:
    """`echod --version` is what a bug report needs."""
    done = command("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"echod \d+\.\d+\.\d+ \(uvloop [\d.]+, Python [\d.]+\S*\)\n", done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("subcommand", ["check", "run"])
def test_a_pool_above_the_hard_limit_is_exit_78(tmp_path: Path, subcommand: str) -> None:
    """Descriptors that can't be had are missed at the start and not under load."""
    file = tmp_path / "echod.toml"
    file.write_text("[pool]\nsize = 1000")
    done = command(subcommand, "-c", str(file), prefix=["/bin/sh", "-c", 'ulimit -n 1000; exec "$@"', "sh"])
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith(
        f"{file}:2: pool.size: 1000 workers need 1160 file descriptors, the hard limit is 1000:"
    )


def test_the_soft_limit_is_raised_to_fit_the_pool(echod: Daemon) -> None:
    """The usual one of 1,024 is for programs that use select(2)."""
    limited = ["/bin/sh", "-c", 'ulimit -Sn 100; exec "$@"', "sh"]
    with echod("[pool]\nsize = 200", prefix=limited) as daemon, contextlib.ExitStack() as stack:
        for _ in range(150):
            sock = stack.enter_context(daemon.connect())
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"


# Signals


@STOP_SIGNALS
def test_without_connections_it_stops_at_once(echod: Daemon, number: signal.Signals) -> None:
    """It says so in order, and exits with 0 long before the drain timeout."""
    with echod('[timeouts]\ndrain = "1h"') as daemon:
        assert daemon.echo(b"12345") == b"12345"
        daemon.signal(number)
        assert daemon.wait() == 0
        assert [line["event"] for line in daemon.lines[-3:]] == [
            "daemon.draining",
            "listener.stopped",
            "daemon.stopped",
        ]
        assert daemon.lines[-3]["timeout"] == 3600
        assert daemon.lines[-3]["message"].startswith("another TERM or INT (Ctrl-C) cuts all ")
        stopped = daemon.lines[-1]
        assert (stopped["connections"], stopped["bytes_received"], stopped["aborted"]) == (1, 5, 0)


@STOP_SIGNALS
@pytest.mark.slow
def test_a_transfer_of_100_mb_completes(echod: Daemon, number: signal.Signals) -> None:
    """The signal comes in the middle: nobody new is let in, the transfer goes on to its end, the exit code is 0."""
    size = 100_000_000
    block = os.urandom(1_000_000)
    half = threading.Event()
    draining = threading.Event()

    def send(sock: socket.socket) -> None:
        for count in range(100):
            if count == 50:
                half.set()
                assert draining.wait(DEADLINE)
            sock.sendall(block)
        sock.shutdown(socket.SHUT_WR)

    def read(sock: socket.socket) -> None:
        for _ in range(100):
            assert read_exactly(sock, len(block)) == block
        assert read_all(sock) == b""

    with echod() as daemon, daemon.connect() as sock, ThreadPoolExecutor(2) as threads:
        both = [threads.submit(send, sock), threads.submit(read, sock)]
        assert half.wait(DEADLINE)
        daemon.signal(number)
        assert daemon.wait_for("listener.stopped")
        with pytest.raises(ConnectionRefusedError):
            daemon.connect()
        draining.set()
        for each in both:
            each.result()
        assert daemon.wait() == 0
        assert daemon.wait_for("daemon.draining")["in_use"] == 1
        closed = daemon.wait_for("connection.closed")
        assert (closed["bytes_sent"], closed["reason"]) == (size, "eof")
        assert daemon.lines[-1]["event"] == "daemon.stopped"
        assert (daemon.lines[-1]["bytes_received"], daemon.lines[-1]["aborted"]) == (size, 0)


def test_clients_in_the_backlog_are_served_when_it_stops(echod: Daemon) -> None:
    """Whom the kernel had connected before the signal gets an echo, if there are workers."""
    several_batches = 300
    with echod() as daemon, contextlib.ExitStack() as stack:
        with daemon.suspended():
            clients = [stack.enter_context(daemon.connect()) for _ in range(several_batches)]
            for client in clients:
                client.sendall(b"in time")
            daemon.signal(signal.SIGTERM)
        for client in clients:
            assert read_exactly(client, 7) == b"in time"
        daemon.wait_for("listener.stopped")
        for client in clients:
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
        assert daemon.wait() == 0
        assert daemon.lines[-1]["aborted"] == 0


@STOP_SIGNALS
def test_a_second_signal_stops_at_once(echod: Daemon, number: signal.Signals) -> None:
    """Open connections end as `drained`, long before the drain timeout; the exit code is 0 all the same."""
    with echod('[timeouts]\ndrain = "1h"') as daemon, daemon.connect() as silent, daemon.connect() as stalled:
        stalled.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                stalled.send(bytes(1 << 16))
        daemon.wait_for("connection.opened", count=2)
        daemon.signal(number)
        daemon.wait_for("daemon.draining")
        daemon.signal(number)
        assert daemon.wait() == 0
        assert read_all(silent) == b""
        assert [line["reason"] for line in daemon.events("connection.closed")] == ["drained", "drained"]
        assert daemon.lines[-1]["event"] == "daemon.stopped"
        assert daemon.lines[-1]["aborted"] == 2


def test_a_second_signal_during_the_linger_stops_at_once(echod: Daemon) -> None:
    """Also after the drain deadline, while clients get their last bytes."""
    with echod('[timeouts]\ndrain = "0s"') as daemon, daemon.connect() as sock:
        sock.sendall(b"x")
        assert read_exactly(sock, 1) == b"x"
        daemon.signal(signal.SIGTERM)
        assert read_all(sock) == b""  # its FIN, which begins the linger
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert daemon.events("connection.closed")[0]["reason"] == "drained"


LAME_DUCK = '[timeouts]\nlame_duck = "{}"\ndrain = "1h"'


@STOP_SIGNALS
def test_a_lame_duck_serves_everyone_until_the_drain(echod: Daemon, number: signal.Signals) -> None:
    """Those who are there, and those who come; a reload goes on to work, too."""
    with echod(LAME_DUCK.format("1h")) as daemon, daemon.connect() as before:
        daemon.wait_for("connection.opened")
        daemon.signal(number)
        duck = daemon.wait_for("daemon.lame_duck")
        assert (duck["in_use"], duck["timeout"]) == (1, 3600)
        assert duck["message"] == "another TERM or INT (Ctrl-C) begins the drain"
        assert daemon.echo(b"who comes") == b"who comes"
        assert daemon.reload(LAME_DUCK.format("2h"))["changed"] == ["timeouts.lame_duck"]
        assert daemon.echo(b"after") == b"after"
        daemon.signal(number)
        daemon.wait_for("listener.stopped")
        with pytest.raises(ConnectionRefusedError):
            daemon.connect()
        send_all(before, b"who was there")
        assert read_all(before) == b"who was there"
        assert daemon.wait() == 0
        assert [line["event"] for line in daemon.lines[-4:]] == [
            "daemon.draining",
            "listener.stopped",
            "connection.closed",
            "daemon.stopped",
        ]


def test_a_lame_duck_drains_when_its_time_is_over(echod: Daemon) -> None:
    """Without another signal."""
    with echod('[timeouts]\nlame_duck = "200ms"') as daemon:
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        duck, draining = (
            datetime.fromisoformat(daemon.wait_for(event)["timestamp"])
            for event in ("daemon.lame_duck", "daemon.draining")
        )
        assert draining - duck >= timedelta(seconds=0.199)  # the loop's clock tells milliseconds


def test_a_third_signal_ends_a_lame_duck_at_once(echod: Daemon) -> None:
    """The second one begins the drain."""
    with echod(LAME_DUCK.format("1h")) as daemon, daemon.connect() as sock:
        daemon.wait_for("connection.opened")
        for event in ("daemon.lame_duck", "daemon.draining", "daemon.stopped"):
            daemon.signal(signal.SIGTERM)
            daemon.wait_for(event)
        assert daemon.wait() == 0
        assert read_all(sock) == b""
        assert daemon.lines[-1]["aborted"] == 1


def test_signals_without_end_do_not_spoil_the_exit(echod: Daemon) -> None:
    """Whoever goes on sending TERM, INT and HUP until the process has gone still gets its last line and exit code 0."""
    with echod() as daemon, daemon.connect():
        daemon.wait_for("connection.opened")

        def ended() -> bool:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                daemon.signal(number)
            return daemon.process.poll() is not None

        until(ended, what="the end", interval=0)
        assert daemon.wait() == 0
        assert daemon.lines[-1]["event"] == "daemon.stopped"


# The drain deadline


@pytest.mark.slow
@pytest.mark.parametrize("half_close", [True, False], ids=["half-close", "open"])
def test_who_has_sent_everything_gets_all_of_its_echo_after_the_deadline(echod: Daemon, *, half_close: bool) -> None:
    """The deadline strikes with megabytes under way to a client that reads slowly: it gets them all, then FIN."""
    data = os.urandom(6 << 20)
    with (
        echod('[timeouts]\ndrain = "200ms"') as daemon,
        daemon.connect(receive_buffer=1 << 16) as sock,
        ThreadPoolExecutor(1) as threads,
    ):

        def send() -> None:
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)

        sending = threads.submit(send)
        back = read_exactly(sock, 1 << 19)
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("daemon.draining")
        for _ in range(10):  # the pace is what is tested: half of it takes half a second, of two that there are
            back += read_exactly(sock, len(data) // 20)
            time.sleep(0.05)
        back += read_all(sock)
        sending.result()
        assert len(back) == len(data)
        assert back == data
        sock.close()
        assert daemon.wait() == 0
        closed = daemon.wait_for("connection.closed")
        assert (closed["bytes_received"], closed["bytes_sent"]) == (len(data), len(data))
        assert closed["reason"] == ("eof" if half_close else "drained")
        assert daemon.lines[-1]["aborted"] == 0


@pytest.mark.slow
def test_a_client_that_never_stops_sending_is_ended_after_the_deadline(echod: Daemon) -> None:
    """Shortly after the drain deadline it gets FIN, then is cut; what it got is the beginning of what it sent."""
    block = os.urandom(1 << 20)

    def send(sock: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                sock.sendall(block)

    with echod('[timeouts]\ndrain = "100ms"') as daemon, daemon.connect() as sock, ThreadPoolExecutor(1) as threads:
        sending = threads.submit(send, sock)
        assert read_exactly(sock, len(block)) == block
        daemon.signal(signal.SIGTERM)

        def ended() -> bool:
            back = read_exactly(sock, len(block))
            assert block.startswith(back)
            return len(back) < len(block)

        with daemon.deadline():
            until(ended, what="FIN", interval=0)
        assert daemon.wait() == 0
        sending.result()
        (closed,) = daemon.events("connection.closed")
        assert closed["reason"] == "drained"
        assert closed["bytes_sent"] < closed["bytes_received"]
        assert daemon.lines[-1]["aborted"] == 1


@pytest.mark.slow
def test_a_silent_connection_gets_fin_at_the_deadline(echod: Daemon) -> None:
    """It ends as `drained`, and a client that closes then was not aborted."""
    with echod('[timeouts]\ndrain = "100ms"') as daemon, daemon.connect() as sock:
        daemon.wait_for("connection.opened")
        daemon.signal(signal.SIGTERM)
        assert read_all(sock) == b""
        sock.close()
        assert daemon.wait() == 0
        assert daemon.events("connection.closed")[0]["reason"] == "drained"
        assert daemon.lines[-1]["aborted"] == 0
