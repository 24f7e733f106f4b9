"""Seeing inside a running daemon: what it answers on both sides, and the commands that ask it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pty
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import termios
import tomllib
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from echod import __version__
from echod.config import admin_socket
from tests.support.harness import (
    DEADLINE,
    ECHOD,
    LOCAL,
    Echod,
    command,
    environment,
    read_all,
    read_exactly,
    send_all,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Daemon = Callable[..., Echod]

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def admin(echod: Daemon, tmp_path: Path) -> Daemon:
    """Return what starts a daemon with both sides of the admin server."""

    def start(config: str = "", **more: Any) -> Echod:
        flags = ["--admin.socket", str(path_of(tmp_path)), "--admin.http", f"{LOCAL}:0", *more.pop("flags", ())]
        return echod(config, flags=flags, **more)

    return start


def path_of(directory: Path) -> Path:
    return directory / "echod.sock"


class Side(HTTPConnection):
    """A client of one of the two."""

    def __init__(self, at: Path | int) -> None:
        super().__init__("localhost", timeout=DEADLINE)
        self.at = at

    def connect(self) -> None:
        if isinstance(self.at, int):
            self.sock = socket.create_connection((LOCAL, self.at), DEADLINE)
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(self.at))

    def ask(self, target: str, method: str = "GET", **headers: str) -> Answer:
        self.request(method, target, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = self.getresponse()
        return Answer(response.status, dict(response.headers), response.read())

    def ready(self) -> tuple[int, str]:
        answer = self.ask("/readyz")
        return answer.status, answer.json["status"]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def port(daemon: Echod) -> int:
    """Return the port of `admin.http`."""
    return int(daemon.wait_for("admin.started", count=2)["listener"].rpartition(":")[2])


@contextlib.contextmanager
def sides(daemon: Echod) -> Iterator[tuple[Side, Side]]:
    """Return a client on the Unix socket and one on TCP. They connect anew for each question."""
    local, remote = Side(path_of(daemon.file.parent)), Side(port(daemon))
    with contextlib.closing(local), contextlib.closing(remote):
        yield local, remote


def ask(words: str, daemon: Echod) -> subprocess.CompletedProcess[str]:
    return command(*words.split(), "--admin.socket", str(path_of(daemon.file.parent)))


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return standard output of a command that went well."""
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def failed(done: subprocess.CompletedProcess[str], code: int) -> list[str]:
    """Return the lines of a command that failed with this code."""
    assert (done.returncode, done.stdout) == (code, "")
    return done.stderr.splitlines()


def line_of(done: subprocess.CompletedProcess[str], code: int) -> str:
    (line,) = failed(done, code)
    return line


def seat(daemon: Echod, stack: contextlib.ExitStack, source: str = LOCAL, data: bytes = b"here") -> socket.socket:
    """Open a connection that is being served."""
    sock = stack.enter_context(daemon.connect(source=source))
    sock.sendall(data)
    assert read_exactly(sock, len(data)) == data
    return sock


# Both sides


def test_the_log_says_where_it_answers(admin: Daemon, tmp_path: Path) -> None:
    """The socket is for its owner and group, whatever the umask, and goes with the daemon."""
    for umask in ("000", "077"):
        with admin(prefix=["sh", "-c", f'umask {umask}; exec "$@"', "sh"]) as daemon:
            lines = daemon.events("admin.started")
            assert [line["listener"] for line in lines] == [
                f"unix:{path_of(tmp_path)}",
                f"http://{LOCAL}:{port(daemon)}",
            ]
            mode = path_of(tmp_path).stat().st_mode
            assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o660)
        assert not path_of(tmp_path).exists()


@pytest.mark.parametrize("side", [0, 1], ids=["unix", "tcp"])
def test_both_sides_answer_what_changes_nothing(admin: Daemon, side: int) -> None:
    """With GET, and HEAD without the body; another method is 405, with what there is; another path is 404."""
    with admin() as daemon, sides(daemon) as both:
        client = both[side]
        assert client.ask("/livez").json == {"status": "alive"}
        assert client.ask("/readyz").json == {"status": "ready"}
        assert client.ask("/status?verbose=1").json["state"] == "running"
        for path in ("/", "/livez", "/readyz", "/status", "/metrics"):
            head = client.ask(path, "HEAD")
            assert (head.status, head.body) == (200, b"")
            assert int(head.headers["content-length"]) > 0
            assert head.headers["cache-control"] == "no-store"
            for method in ("POST", "DELETE", "PUT", "OPTIONS"):
                refused = client.ask(path, method)
                assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
        for path in ("/index.html", "/metrics/", "//livez", "/../livez", "/%00", "/stat%FFus"):
            refused = client.ask(path)
            assert (refused.status, list(refused.json)) == (404, ["error"])


def test_only_the_socket_tells_who_is_connected_and_changes_things(admin: Daemon) -> None:
    """On TCP these paths are not there."""
    with admin() as daemon, sides(daemon) as (local, remote), contextlib.ExitStack() as stack:
        sock = seat(daemon, stack)
        for method, path in (("GET", "/connections"), ("DELETE", "/connections/1"), ("POST", "/reload")):
            assert remote.ask(path, method).status == 404
        for method, path in (("DELETE", "/connections"), ("GET", "/connections/1"), ("GET", "/reload")):
            assert local.ask(path, method).status == 405
        assert local.ask("/connections", "HEAD").body == b""
        (row,) = local.ask("/connections").json
        assert row["client"] == dict(zip(("address", "port"), sock.getsockname(), strict=True))
        assert (row["connection"], row["bytes_received"], row["bytes_sent"], row["state"]) == (1, 4, 4, "open")
        assert row["listener"] == f"tcp://{LOCAL}:{daemon.port}"
        assert row["tcp"]["rtt"] > 0
        for number in ("2", "x", "", "-1", "1/1", "%D9%A1", "1" * 30):
            assert local.ask(f"/connections/{number}", "DELETE").status == 404
        assert local.ask("/connections/1", "DELETE").json == {"connection": 1, "client": row["client"]}
        assert daemon.closed(sock)["reason"] == "killed"
        assert local.ask("/connections").json == []
        assert local.ask("/reload", "POST").json == {"changed": [], "old": {}, "new": {}, "warnings": []}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST.:1", 200),
        ("127.0.0.1:9107", 200),
        ("192.0.2.7", 200),
        ("[::1]:80", 200),
        (socket.gethostname(), 200),
        (f"{socket.gethostname().partition('.')[0]}.Example.net.:9107", 200),
        (f"{socket.gethostname().partition('.')[0]}x.example.net", 421),
        (f"www.{socket.gethostname().partition('.')[0]}.example.net", 421),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:9107", 421),
        ("localhost.evil.example", 421),
        ("localhost@evil.example", 421),
        ("", 421),
        ("2130706433", 421),
    ],
)
def test_a_name_that_somebody_else_decides_on_is_refused_on_tcp(admin: Daemon, host: str, status: int) -> None:
    """A page that lets its own name point here learns nothing. The socket can't be reached from a page."""
    with admin() as daemon, sides(daemon) as (local, remote):
        assert remote.ask("/status", host=host).status == status
        assert local.ask("/status", host=host).status == 200


def test_metrics_come_as_the_client_likes_them(admin: Daemon) -> None:
    """OpenMetrics if it is asked for; there, a counter's family is named without `_total`, and it ends with EOF."""
    with admin() as daemon, sides(daemon) as both:
        for client in both:
            plain, other = client.ask("/metrics"), client.ask("/metrics", accept=OPENMETRICS)
            assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert b"# TYPE echod_received_bytes_total counter\nechod_received_bytes_total 0.0\n" in plain.body
            assert other.headers["content-type"].startswith(OPENMETRICS)
            assert b"# TYPE echod_received_bytes counter\n" in other.body
            assert other.body.endswith(b"# EOF\n")
            assert b'uvloop="' in plain.body
            assert client.ask("/metrics", accept="application/openmetrics-text; version=x").status == 200


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_curl_asks_both(admin: Daemon, tmp_path: Path) -> None:
    """As the documentation says."""

    def curl(*words: str) -> str:
        done = subprocess.run(
            [shutil.which("curl") or "", "--silent", "--show-error", "--fail", "--noproxy", "*", *words],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
        return done.stdout

    with admin() as daemon:
        assert json.loads(curl("--unix-socket", str(path_of(tmp_path)), "http://echod/status"))["state"] == "running"
        assert json.loads(curl("--unix-socket", str(path_of(tmp_path)), "-X", "POST", "http://echod/reload"))
        words = ("-H", "Expect: 100-continue", "--expect100-timeout", str(DEADLINE), "-d", "body")
        assert json.loads(curl("--unix-socket", str(path_of(tmp_path)), *words, "http://echod/reload"))
        assert json.loads(curl(f"http://{LOCAL}:{port(daemon)}/readyz")) == {"status": "ready"}
        assert "200 OK" in curl("--head", f"http://localhost:{port(daemon)}/metrics")


# Ready or not


def test_it_is_not_ready_from_the_first_moment_of_a_drain(admin: Daemon) -> None:
    """Alive it is, and goes on telling, until the last connection has ended; a reload that is asked for then is refused."""
    with admin('[timeouts]\ndrain = "1h"') as daemon, sides(daemon) as (local, remote), contextlib.ExitStack() as stack:
        sock = seat(daemon, stack)
        assert local.ready() == remote.ready() == (200, "ready")
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("daemon.draining")
        for client in (local, remote):
            assert client.ready() == (503, "draining")
            assert client.ask("/livez").status == 200
            status = client.ask("/status").json
            assert (status["state"], status["accepting"], status["listeners"]) == ("draining", False, [])
            assert status["pool"]["in_use"] == 1
        assert local.ask("/reload", "POST").status == 503
        assert line_of(ask("reload", daemon), os.EX_UNAVAILABLE) == "echod: the daemon stops"
        assert "! echod" in said(ask("status", daemon))
        sock.sendall(b"still")
        assert read_exactly(sock, 5) == b"still"
        assert said(ask("kill 1", daemon)) == f"killed 1, {LOCAL}:{sock.getsockname()[1]}\n"
        assert daemon.wait() == 0
        assert daemon.lines[-1]["event"] == "daemon.stopped"


def test_it_is_not_ready_while_all_workers_are_busy(admin: Daemon) -> None:
    """With `wait` nobody is accepted then; with `reject`, who comes is turned away."""
    wait, reject = "[pool]\nsize = 1\nwhen_full = 'wait'", "[pool]\nsize = 1"
    with admin(wait) as daemon, sides(daemon) as (local, remote), contextlib.ExitStack() as stack:
        seat(daemon, stack)
        assert local.ready() == remote.ready() == (503, "pool full")
        assert local.ask("/livez").status == 200
        waiting = stack.enter_context(daemon.connect())
        (listener,) = local.ask("/status").json["listeners"]
        assert (listener["state"], listener["queued"]) == ("waiting", 1)
        daemon.reload(reject)
        assert local.ready() == (503, "pool full")
        assert read_all(waiting) == b""
        daemon.reload(wait)
        assert local.ready() == (503, "pool full")
        stack.close()
        until(lambda: remote.ready() == (200, "ready"), what="ready again")


@pytest.mark.slow
def test_a_lame_duck_is_made_and_taken_back(admin: Daemon) -> None:
    """By its commands; `ready` says what it is, with its exit code and a line."""
    with admin('[timeouts]\nlame_duck = "1h"\ndrain = "1h"') as daemon, sides(daemon) as (local, remote):
        assert said(ask("ready", daemon)) == "ready\n"
        assert said(ask("lame-duck", daemon)) == "lame duck: accepting, but not ready\n"
        assert daemon.wait_for("daemon.lame_duck")["timeout"] is None
        assert local.ready() == remote.ready() == (503, "lame duck")
        assert line_of(ask("ready", daemon), os.EX_UNAVAILABLE) == "echod: not ready: lame duck"
        assert b"\nechod_lame_duck 1.0\n" in remote.ask("/metrics").body
        assert re.search(r"(?m)^! lame duck  accepting, but not ready for \d+s; `echod ", said(ask("status", daemon)))
        assert daemon.echo(b"served") == b"served"
        assert said(ask("lame-duck --off", daemon)) == "no lame duck\n"
        assert daemon.wait_for("daemon.lame_duck_ended")["seconds"] > 0
        assert said(ask("ready", daemon)) == "ready\n"
        with daemon.connect():
            daemon.wait_for("connection.opened", count=2)
            daemon.signal(signal.SIGTERM)
            daemon.wait_for("daemon.lame_duck", count=2)
            assert line_of(ask("lame-duck --off", daemon), os.EX_UNAVAILABLE) == "echod: the daemon stops"
            assert said(ask("reload", daemon)) == "reloaded, nothing has changed\n"
            daemon.signal(signal.SIGTERM)
            daemon.wait_for("daemon.draining")
            assert line_of(ask("ready", daemon), os.EX_UNAVAILABLE) == "echod: not ready: draining"
        assert daemon.wait() == 0
    assert line_of(ask("ready", daemon), os.EX_UNAVAILABLE).startswith("echod: no daemon answers at ")


def test_it_is_not_ready_without_descriptors_and_says_so(admin: Daemon) -> None:
    """A client that is connected gets every answer, because none needs a descriptor; others are answered later."""
    targets = ["/readyz", "/livez", "/metrics", "/status"]
    with admin() as daemon, sides(daemon) as (local, remote), contextlib.ExitStack() as stack:
        before = daemon.descriptors()
        early = [Side(side.at) for side in (local, remote) for _ in targets]
        for client in early:
            stack.enter_context(contextlib.closing(client)).connect()
        until(lambda: daemon.descriptors() >= before + len(early), what="accepted")
        soft = daemon.limit_descriptors(3)
        with daemon.connect() as waiting:
            daemon.wait_for("accept.paused")
            answers = [client.ask(target) for client, target in zip(early, targets * 2, strict=True)]
            assert [answer.status for answer in answers] == [503, 200, 200, 200] * 2
            for answer in (answers[3], answers[7]):
                assert answer.json["accepting"] is False
                (listener,) = answer.json["listeners"]
                assert (listener["state"], listener["queued"]) == ("paused", 1)
            daemon.limit_descriptors(soft)
            until(lambda: local.ready() == remote.ready() == (200, "ready"), what="ready again")
            send_all(waiting, b"served")
            assert read_all(waiting) == b"served"
        assert local.ask("/status").json["accept_paused_seconds"] > 0


# Commands


def test_status_is_a_screen_for_people_and_json_for_programs(admin: Daemon) -> None:
    """Both tell the same."""
    with admin("[pool]\nsize = 4") as daemon, contextlib.ExitStack() as stack:
        socks = [seat(daemon, stack, source) for source in (LOCAL, "127.0.0.2", "127.0.0.2", LOCAL)]
        with daemon.connect() as fifth:
            assert read_all(fifth) == b""
        socks.pop().close()
        daemon.wait_for("connection.closed")
        status = json.loads(said(ask("status --json", daemon)))
        assert (status["version"], status["pid"]) == (__version__, daemon.process.pid)
        assert status["pool"] == {"size": 4, "in_use": 3, "when_full": "reject"}
        assert status["connections"]["accepted"] == 4
        assert status["connections"]["closed"]["eof"] == sum(status["connections"]["closed"].values()) == 1
        assert status["connections"]["rejected"]["pool_full"] == 1
        assert (status["bytes_received"], status["bytes_sent"]) == (16, 16)
        assert status["sources"] == [{"source": "127.0.0.2", "connections": 2}, {"source": LOCAL, "connections": 1}]
        assert [line["reason"] for line in status["rejections"]] == ["pool_full"]
        screen = said(ask("status", daemon))
        for text in (f"{__version__}, running, pid {daemon.process.pid}", "3 of 4", "127.0.0.2 2, 127.0.0.1 1"):
            assert text in screen
        assert "\x1b" not in screen


@pytest.mark.slow
def test_connections_are_sorted_and_filtered(admin: Daemon) -> None:
    """A row for each, with a heading for people."""
    with admin() as daemon, contextlib.ExitStack() as stack:
        for source, size in (("127.0.0.3", 10), ("127.0.0.2", 300), (LOCAL, 20)):
            seat(daemon, stack, source, bytes(size))

        def rows(words: str) -> list[int]:
            return [row["connection"] for row in json.loads(said(ask(f"connections --json {words}", daemon)))]

        assert rows("") == [1, 2, 3]
        assert rows("--sort client") == [3, 2, 1]
        assert rows("--source 10.0.0.0/8") == []
        heading, *lines = said(ask("connections --sort bytes --source 127.0.0.2/31", daemon)).splitlines()
        assert heading.split()[:3] == ["ID", "CLIENT", "AGE"]
        assert [line.split()[0] for line in lines] == ["2", "1"]


@pytest.mark.slow
def test_kill_ends_one_and_no_other(admin: Daemon) -> None:
    """Its line says why; of one that is not there, the command says so."""
    with admin() as daemon, contextlib.ExitStack() as stack:
        first, second = seat(daemon, stack), seat(daemon, stack)
        assert said(ask("kill 1", daemon)) == f"killed 1, {LOCAL}:{first.getsockname()[1]}\n"
        assert read_all(first) == b""
        line = daemon.closed(first)
        assert (line["connection"], line["reason"], line["bytes_sent"]) == (1, "killed", 4)
        second.sendall(b"still")
        assert read_exactly(second, 5) == b"still"
        assert line_of(ask("kill 1", daemon), os.EX_DATAERR) == "echod: there is no connection 1"
        assert ask("kill x", daemon).returncode == os.EX_USAGE


@pytest.mark.slow
def test_kill_ends_several_connections(admin: Daemon) -> None:
    """By their ids, of which one is wrong, or by the network of their clients."""
    with admin() as daemon, contextlib.ExitStack() as stack:
        socks = [seat(daemon, stack) for _ in range(3)]
        done = ask("kill 3 99 1", daemon)
        assert (done.returncode, done.stderr) == (os.EX_DATAERR, "echod: there is no connection 99\n")
        assert [line.split(",")[0] for line in done.stdout.splitlines()] == ["killed 3", "killed 1"]
        assert [read_all(sock) for sock in (socks[0], socks[2])] == [b"", b""]
        assert said(ask(f"kill --source {LOCAL}/32", daemon)).startswith("killed 2, ")
        assert read_all(socks[1]) == b""
        line = f"echod: there is no connection from {LOCAL}/32"
        assert line_of(ask(f"kill --source {LOCAL}/32", daemon), os.EX_DATAERR) == line


@pytest.mark.slow
def test_config_show_running_is_what_the_daemon_has(echod: Daemon, tmp_path: Path) -> None:
    """Which is neither what the file says now, nor what a shell without the unit's variables has."""
    where = f"--admin.socket {path_of(tmp_path)}"

    def shown() -> list[str]:
        return said(command(*f"config show --running --sources {where}".split())).splitlines()

    with echod("[pool]\nsize = 5\n", flags=where.split(), env={"ECHOD_LOG__QUEUE": "9"}) as daemon:
        lines = {f"size = 5  # {daemon.file}:2", "queue = 9  # ECHOD_LOG__QUEUE", 'idle = "5m"  # default'}
        assert lines < set(shown())
        daemon.reload("[pool]\nsize = 0\n")
        assert lines < set(shown())
        daemon.reload("[pool]\n\nsize = 6\n")
        assert f"size = 6  # {daemon.file}:3" in shown()
        assert tomllib.loads("\n".join(shown()))["pool"]["size"] == 6
    assert line_of(command(*f"config show --running {where}".split()), os.EX_UNAVAILABLE).startswith("echod: no daemon")


@pytest.mark.slow
def test_a_reload_without_the_file_gives_the_exit_code_of_a_start_without_it(admin: Daemon) -> None:
    with admin() as daemon:
        daemon.file.unlink()
        line = f"{daemon.file}: can't be read: No such file or directory"
        assert line_of(ask("reload", daemon), os.EX_NOINPUT) == line


@pytest.mark.slow
def test_reload_waits_for_the_answer(admin: Daemon) -> None:
    """What has changed, or what is wrong and where; then the daemon goes on as it was."""
    with admin("[pool]\nsize = 5") as daemon, contextlib.ExitStack() as stack:
        sock = seat(daemon, stack)
        assert said(ask("reload", daemon)) == "reloaded, nothing has changed\n"
        daemon.file.write_text("[pool]\nsize = 6\nwhen_full = 'wait'\n")
        assert said(ask("reload", daemon)) == 'pool.size: 5 -> 6\npool.when_full: "reject" -> "wait"\n'
        daemon.file.write_text("[pool]\nsize = 0\nsise = 3\n")
        assert failed(ask("reload", daemon), os.EX_CONFIG) == [
            f"{daemon.file}:2: pool.size: must be at least 1, got 0",
            f"{daemon.file}:3: pool.sise: unknown key; did you mean pool.size?",
        ]
        status = json.loads(said(ask("status --json", daemon)))
        assert (status["pool"]["size"], status["reload"]["success"]) == (6, False)
        assert "a reload was refused" in said(ask("status", daemon))
        sock.sendall(b"still")
        assert read_exactly(sock, 5) == b"still"
        assert [line["event"] for line in daemon.answers] == ["config.reloaded", "config.reloaded", "config.rejected"]


@pytest.mark.slow
def test_commands_find_the_socket_by_the_file_even_if_it_is_bad_by_now(echod: Daemon, tmp_path: Path) -> None:
    """What else is wrong in it is the answer of the reload; TOML that can't be parsed is what the command says."""
    good = f"[admin]\nsocket = '{path_of(tmp_path)}'\n"
    with echod(good) as daemon:
        assert "running" in said(command("status", "-c", str(daemon.file)))
        daemon.file.write_text(f"{good}[pool]\nsize = 0")
        assert "running" in said(command("status", "-c", str(daemon.file)))
        assert line_of(command("reload", "-c", str(daemon.file)), os.EX_CONFIG).startswith(
            f"{daemon.file}:4: pool.size"
        )
        daemon.file.write_text(f"{good}[pool")
        assert line_of(command("status", "-c", str(daemon.file)), os.EX_CONFIG).startswith(f"{daemon.file}:3:")
        assert line_of(ask("reload", daemon), os.EX_CONFIG).startswith(f"{daemon.file}:3:")
        daemon.file.write_text("[admin]\nsocket = '/elsewhere'\n")
        assert "needs a restart" in line_of(ask("reload", daemon), os.EX_CONFIG)


def test_reloads_asked_for_at_the_same_time_are_all_answered(admin: Daemon, tmp_path: Path) -> None:
    """By HUP and ten by POST: one after another, and the last file is in force for each of them."""
    with (
        admin("[pool]\nsize = 1") as daemon,
        ThreadPoolExecutor(10) as threads,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(sides(daemon))[0] for _ in range(10)]
        for client in clients:
            client.ready()
        for size in range(2, 12):
            fresh = tmp_path / "fresh.toml"
            fresh.write_text(f"[pool]\nsize = {size}")
            fresh.replace(daemon.file)  # whole: a reload may be under way
            asked = [threads.submit(client.ask, "/reload", "POST") for client in clients]
            daemon.signal(signal.SIGHUP)
            for answer in (each.result() for each in asked):
                assert answer.status == 200
                assert answer.json["new"] in ({}, {"pool.size": size})
            assert clients[0].ask("/status").json["pool"]["size"] == size

        def changes() -> list[int]:
            return [line["new"]["pool.size"] for line in daemon.answers if line["new"]]

        until(lambda: changes() == list(range(2, 12)), what="a line for each change, in their order")
        assert 10 <= len(daemon.answers) <= 10 * 11


# Where the socket is


@pytest.mark.slow
def test_no_daemon_is_one_line(tmp_path: Path) -> None:
    """Whether there is nothing, or what a dead one has left, or nobody to ask."""
    path = path_of(tmp_path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
        dead.listen()
    nowhere = tmp_path / "none" / "sock"
    for words, where in (("status", path), ("connections", tmp_path / "dead"), ("kill 1", nowhere), ("reload", path)):
        done = command(*words.split(), "--admin.socket", str(where))
        assert line_of(done, os.EX_UNAVAILABLE) == f"echod: no daemon answers at unix:{where}"
    done = command("status", "--admin.socket", "off")
    assert line_of(done, os.EX_UNAVAILABLE) == 'echod: admin.socket is "off": no daemon can be reached'
    done = command("status", env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert line_of(done, os.EX_UNAVAILABLE).startswith(f"echod: no daemon answers at unix:{tmp_path}/echod/admin.sock")


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can become somebody else")
def test_others_have_no_permission(echod: Daemon) -> None:
    """The line says who has it. The daemon's group does."""
    with tempfile.TemporaryDirectory() as name, echod(flags=["--admin.socket", f"{name}/sock"]):
        Path(name).chmod(0o755)
        # Who may not write here can't tell what was covered either, and would complain.
        somebody = ["env", "-u", "COVERAGE_PROCESS_CONFIG", "setpriv", "--reuid=65534", "--clear-groups"]
        words = ["status", "--admin.socket", f"{name}/sock"]
        python = subprocess.run([*somebody, "--regid=65534", *ECHOD, "--version"], capture_output=True, check=False)
        if python.returncode:
            pytest.skip("nobody may not run this Python")
        line = line_of(command(*words, prefix=[*somebody, "--regid=65534"]), os.EX_NOPERM)
        assert line.startswith(f"echod: unix:{name}/sock: no permission: be root, ")
        assert "running" in said(command(*words, prefix=[*somebody, "--regid=0"]))


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY"])
def test_auto_is_where_the_session_or_the_service_has_its_files(echod: Daemon, tmp_path: Path, variable: str) -> None:
    """A daemon makes its directory there; a second one goes on without, says so, and leaves the socket to the first."""
    env = {variable: str(tmp_path / "run")}
    Path(env[variable]).mkdir(mode=0o700)
    path = tmp_path / "run" / ("admin.sock" if variable == "RUNTIME_DIRECTORY" else "echod/admin.sock")
    with echod(env=env) as daemon:
        assert daemon.wait_for("admin.started")["listener"] == f"unix:{path}"
        with echod(env=env) as second:
            (warning,) = second.events("config.warning")
            assert warning["message"].startswith(f"admin.socket: unix:{path}: address in use")
            assert second.echo(b"there") == b"there"
            assert second.events("admin.started") == []
        assert json.loads(said(command("status", "--json", env=env)))["pid"] == daemon.process.pid
    assert not path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "a file", "a long path"])
def test_auto_without_a_place_goes_on_without(echod: Daemon, tmp_path: Path, kind: str) -> None:
    """The daemon serves, and a line says why nobody can ask it."""
    where = tmp_path / ("x" * 200 if kind == "a long path" else "run")
    if kind == "a file":
        where.touch()
    elif kind == "a long path":
        where.mkdir()
    with echod(env={"XDG_RUNTIME_DIR": str(where)}) as daemon:
        assert daemon.wait_for("config.warning")["message"].startswith(f"admin.socket: unix:{where}/echod/")
        assert daemon.echo(b"there") == b"there"
    done = command("status", env={"XDG_RUNTIME_DIR": str(where)})
    assert line_of(done, os.EX_UNAVAILABLE).startswith("echod: ")


def test_a_file_named_by_a_relative_path_is_shown_by_its_absolute_one(tmp_path: Path) -> None:
    """A command that asks may run in another folder."""
    flags = ["--admin.socket", str(path_of(tmp_path))]
    with contextlib.chdir(tmp_path), Echod("[pool]\nsize = 7", directory=Path(), flags=flags):
        assert json.loads(said(command("status", "--json", *flags)))["config"] == str(tmp_path / "echod.toml")


def test_auto_without_a_variable_is_a_warning(echod: Daemon) -> None:
    """As in a container: the commands find no daemon, and the log says why."""
    with echod("[admin]\nsocket = 'auto'") as daemon:
        (line,) = daemon.events("config.warning")
        assert line["message"] == admin_socket.NOWHERE


def test_off_answers_nobody(echod: Daemon, tmp_path: Path) -> None:
    """Also where `auto` would."""
    with echod("[admin]\nsocket = 'off'", env={"XDG_RUNTIME_DIR": str(tmp_path)}) as daemon:
        assert daemon.echo(b"there") == b"there"
        assert daemon.events("admin.started") == daemon.events("config.warning") == []
        assert not (tmp_path / "echod").exists()


@pytest.mark.slow
def test_a_named_path_that_is_taken_is_refused(admin: Daemon, tmp_path: Path) -> None:
    """By a daemon that lives: it goes on; by something else: it is left alone."""
    words = ("run", "-p", "0", "--listen.host", LOCAL, "--admin.socket")
    with admin() as daemon:
        line = line_of(command(*words, str(path_of(tmp_path))), os.EX_UNAVAILABLE)
        assert line.startswith(f"echod: admin.socket: unix:{path_of(tmp_path)}: address in use")
        assert json.loads(said(ask("status --json", daemon)))["pid"] == daemon.process.pid
    (tmp_path / "file").write_text("mine")
    assert failed(command(*words, str(tmp_path / "file")), os.EX_CONFIG)
    assert (tmp_path / "file").read_text() == "mine"
    assert failed(command(*words, str(tmp_path / "none" / "sock")), os.EX_CONFIG)
    with socket.create_server((LOCAL, 0)) as server:
        taken = f"{LOCAL}:{server.getsockname()[1]}"
        done = command(*words, str(tmp_path / "other"), "--admin.http", taken)
        assert (
            line_of(done, os.EX_UNAVAILABLE)
            == f"echod: admin.http: http://{taken}: address in use: choose another port (admin.http)"
        )
        assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_what_a_killed_daemon_has_left_is_replaced(admin: Daemon, tmp_path: Path) -> None:
    """The next one listens there at once."""
    first = admin()
    with contextlib.suppress(AssertionError), first:
        first.process.kill()
        first.wait()
    assert path_of(tmp_path).is_socket()
    with admin() as daemon:
        assert json.loads(said(ask("status --json", daemon)))["pid"] == daemon.process.pid
        path_of(tmp_path).unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path_of(tmp_path)))
            assert daemon.stop() == 0
            assert path_of(tmp_path).is_socket()  # it is somebody else's


# --watch


@pytest.mark.slow
def test_watch_draws_again_each_second_until_ctrl_c(admin: Daemon, tmp_path: Path) -> None:
    """On a terminal, from its first line on, and no more lines than it has; the end is quiet."""
    with admin() as daemon, daemon.deadline():
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("=HHHH", 6, 80, 0, 0))
        watching = subprocess.Popen(
            [*ECHOD, "status", "--watch", "--admin.socket", str(path_of(tmp_path))],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(LINES="", COLUMNS="", TERM="xterm"),  # pytest may have set them
            start_new_session=True,
        )
        os.close(theirs)
        try:
            screen = b""
            while screen.count(b"\x1b[H") < 3:
                screen += os.read(ours, 1 << 16)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(DEADLINE) in (-signal.SIGINT, 130, 0)
            with contextlib.suppress(OSError):  # EIO: nobody has the other side open
                while rest := os.read(ours, 1 << 16):
                    screen += rest
        finally:
            watching.kill()
            watching.wait()
            os.close(ours)
        assert b"Traceback" not in screen
        drawn = screen.split(b"\x1b[H\x1b[2J")[1:]
        assert all(b"running" in each and each.count(b"\n") <= 5 for each in drawn[:2])


@pytest.mark.slow
def test_watch_for_programs_is_a_line_each_second(admin: Daemon, tmp_path: Path) -> None:
    """It survives a restart: meanwhile there is no line, and one on standard error says why."""
    with admin() as daemon:
        watching = subprocess.Popen(
            [*ECHOD, "status", "--watch", "--json", "--admin.socket", str(path_of(tmp_path))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        with daemon.deadline():
            assert watching.stdout
            assert watching.stderr
            uptimes = [json.loads(watching.stdout.readline())["uptime"] for _ in range(3)]
            assert all(after - before > 0.9 for before, after in itertools.pairwise(uptimes))
            assert daemon.stop() == 0
            assert watching.stderr.readline() == f"echod: no daemon answers at unix:{path_of(tmp_path)}\n"
    with watching, admin() as daemon, daemon.deadline():
        pids = {json.loads(watching.stdout.readline())["pid"] for _ in range(2)}
        assert daemon.process.pid in pids
        watching.send_signal(signal.SIGINT)
        assert watching.stderr.read() == ""
        assert watching.wait(DEADLINE) == -signal.SIGINT
