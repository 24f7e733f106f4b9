"""`echod ping` and `echod bench` as processes: against the daemon, other echo services, and what comes between."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.echo_servers import right, serving
from tests.support.harness import DEADLINE, ECHOD, LOCAL, command, environment, free_port, listens, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.support.harness import Echod

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def summary(*words: str) -> dict[str, Any]:
    """Return the last line of a command with `--json` that has to end well."""
    done = command(*words, "--json")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_daemon_answers_ping_and_bench(echod: Callable[..., Echod]) -> None:
    """And its log has what they say of the connection."""
    with echod() as daemon:
        pinged = summary("ping", "-c", "3", "-i", "0.01", "-s", "100", f"{LOCAL}:{daemon.port}")
        line = daemon.wait_for("connection.closed")
        assert (line["bytes_received"], line["bytes_sent"], line["reason"]) == (300, 300, "eof")
        done = command("bench", "--duration", "0.2", "--connections", "5", "--json", f"{LOCAL}:{daemon.port}")
        lines = [daemon.wait_for("connection.closed", count=count) for count in range(2, 7)]
    loaded = json.loads(done.stdout)
    assert pinged["echoed"] == 3
    assert (done.returncode, loaded["lost"], loaded["wrong"]) == (0, 0, 0)
    assert sum(each["bytes_sent"] for each in lines) == (loaded["messages"] + 5) * 64


def test_ctrl_c_ends_ping_with_its_summary(echod: Callable[..., Echod]) -> None:
    """The daemon's connection ends well, too."""
    with echod() as daemon:
        words = [*ECHOD, "ping", "-i", "0.05", f"{LOCAL}:{daemon.port}"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
            assert process.stdout
            lines = [process.stdout.readline() for _ in range(3)]
            process.send_signal(signal.SIGINT)
            lines += process.stdout.readlines()
        assert process.returncode == 0
        assert lines[0].startswith(f"PING tcp://{LOCAL}")
        assert any(line.startswith("OK - ") for line in lines)
        assert daemon.wait_for("connection.closed")["reason"] == "eof"


@contextlib.contextmanager
def service(port: int, *words: str | Path) -> Iterator[None]:
    """Run a server on this port. Skip the test if it is not installed."""
    program = shutil.which(str(words[0]), path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip(f"{words[0]} is not installed")
    silent = subprocess.DEVNULL
    with subprocess.Popen([program, *words[1:]], stdin=silent, stdout=silent, stderr=silent) as process:
        try:
            until(lambda: listens(port) or process.poll() is not None, what=f"{words[0]} on {port}")
            yield
        finally:
            process.terminate()
            process.wait(DEADLINE)


def check(port: int) -> None:
    """Ping with small and large messages, on one connection and on several."""
    for more in ([], ["--reconnect"]):
        found = summary("ping", "-c", "6", "-i", "0.02", "-s", "1,1400,100000", *more, f"{LOCAL}:{port}")
        assert (found["echoed"], found["connections"]) == (6, 6 if more else 3)


def test_socat_answers() -> None:
    port = free_port()
    with service(port, "socat", f"TCP-LISTEN:{port},bind={LOCAL},fork,reuseaddr", "EXEC:cat"):
        check(port)


def test_ncat_answers() -> None:
    port = free_port()
    with service(port, "ncat", "--listen", "--keep-open", "--exec", "/bin/cat", LOCAL, str(port)):
        check(port)


def test_xinetd_answers(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "xinetd.conf"
    config.write_text(
        f"service echo\n{{\ntype = INTERNAL UNLISTED\nid = echo\nsocket_type = stream\nprotocol = tcp\nuser = root\n"
        f"wait = no\nport = {port}\nbind = {LOCAL}\ninstances = UNLIMITED\ncps = 1000 1\n}}\n"
    )
    with service(port, "xinetd", "-dontfork", "-f", config, "-pidfile", tmp_path / "pid"):
        check(port)


def test_haproxy_in_front_is_passed_and_its_dead_backends_show(tmp_path: Path) -> None:
    """With one of two backends dead, each second message on a new connection is lost."""
    port, dead = free_port(), free_port()
    with serving(right) as alive:
        config = tmp_path / "haproxy.cfg"
        config.write_text(
            f"defaults\n mode tcp\n timeout connect 1s\n timeout client 5s\n timeout server 5s\n retries 0\n"
            f"listen echo\n bind {LOCAL}:{port}\n server a {LOCAL}:{alive}\n"
            f"listen half\n bind {LOCAL}:{port + 1} accept-proxy\n balance roundrobin\n"
            f" server a {LOCAL}:{alive}\n server b {LOCAL}:{dead}\n"
        )
        with service(port, "haproxy", "-f", config):
            check(port)
            done = command(
                *("ping", "-c", "6", "-i", "0.05", "--reconnect", "--proxy", "v2", "--json", f"{LOCAL}:{port + 1}")
            )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["echoed"], found["lost"], done.returncode) == (3, 3, 1)


def test_a_server_that_stops_for_a_moment_delays_all_that_were_due_meanwhile(
    echod: Callable[..., Echod], tmp_path: Path
) -> None:
    """About 100 messages in 100 ms at 1,000 a second; a client that waits for its echo would show one."""
    where = ["--admin.socket", str(tmp_path / "admin.sock")]
    with echod(flags=where) as daemon:
        words = [*ECHOD, "bench", "--rate", "1000", "--duration", "1h", "--json", f"{LOCAL}:{daemon.port}"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
            until(lambda: received(where) > 100 * 64, what="a load")
            with daemon.suspended():
                time.sleep(0.1)
            before = received(where)
            until(lambda: received(where) > before + 100 * 64, what="what was due meanwhile")
            process.send_signal(signal.SIGINT)
            assert process.stdout
            found = json.loads(process.stdout.read())
    slow = sum(row["messages"] for row in found["histogram"] if row["up_to"] > 0.01)
    assert (found["lost"], found["wrong"]) == (0, 0)
    assert slow >= 50
    assert found["latency"]["max"] >= 0.09


@pytest.mark.parametrize(("name", "messages"), [("ping", 10_000), ("bench", 20_000)])
def test_memory_does_not_grow_with_the_messages(
    echod: Callable[..., Echod], tmp_path: Path, name: str, messages: int
) -> None:
    """At a rate at which not too many of them are under way when the machine stands still for a moment."""
    where = ["--admin.socket", str(tmp_path / "admin.sock")]
    interval = "0.001" if os.geteuid() == 0 else "0.002"
    words: dict[str, Sequence[str]] = {"ping": ["-q", "-i", interval], "bench": ["--duration", "1h"]}
    with (
        echod(flags=where) as daemon,
        subprocess.Popen(
            [*ECHOD, name, *words[name], "--json", f"{LOCAL}:{daemon.port}"], stdout=subprocess.PIPE, env=environment()
        ) as process,
    ):
        until(lambda: received(where) > 1_000 * 64, what="some messages")
        before = resident(process.pid)
        until(lambda: received(where) > (messages + 1_000) * 64, what="many messages", deadline=3 * DEADLINE)
        after = resident(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.stdout
        found = json.loads(process.stdout.read())
    assert found.get("messages", found.get("echoed")) > messages
    assert after - before < 1 << 20


def received(where: list[str]) -> int:
    """Return how many bytes the daemon has received from all clients."""
    number: int = json.loads(command("status", "--json", *where).stdout)["bytes_received"]
    return number


def resident(pid: int) -> int:
    """Return the resident memory in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
