"""A reload by HUP: what it changes, what it refuses, and that no connection notices."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.harness import LOCAL, Echod, command, listens, read_all, read_exactly, reserved_port, send_all, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Daemon = Callable[..., Echod]


@contextlib.contextmanager
def unhurt(daemon: Echod, count: int = 1) -> Iterator[list[socket.socket]]:
    """Hold connections that have to echo before and after."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(daemon.connect()) for _ in range(count)]
        for when in (b"before", b"after"):
            for sock in socks:
                sock.sendall(when)
            for sock in socks:
                assert read_exactly(sock, len(when)) == when
            if when == b"before":
                yield socks


def changed(line: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what a reload has changed, from what to what."""
    assert line["event"] == "config.reloaded", line
    assert list(line["old"]) == list(line["new"]) == line["changed"]
    return {name: (line["old"][name], line["new"][name]) for name in line["changed"]}


def errors(line: dict[str, Any]) -> list[str]:
    assert line["event"] == "config.rejected", line
    lines: list[str] = line["errors"]
    return lines


def served(sock: socket.socket) -> bool:
    """Say whether the connection is echoed; otherwise it has to have been closed without a byte."""
    with contextlib.suppress(ConnectionError):
        sock.sendall(b"x")
        if read_exactly(sock, 1):
            return True
    return False


# The pool


def test_a_pool_that_grows_admits_more(echod: Daemon) -> None:
    """The new workers serve at once, and the line says what has changed from what to what."""
    with echod("[pool]\nsize = 1") as daemon, unhurt(daemon):
        with daemon.connect() as sock:
            assert not served(sock)
        assert changed(daemon.reload("[pool]\nsize = 3")) == {"pool.size": (1, 3)}
        with daemon.connect() as first, daemon.connect() as second, daemon.connect() as third:
            assert [served(sock) for sock in (first, second, third)] == [True, True, False]


@pytest.mark.slow
def test_a_pool_that_shrinks_cuts_nobody(echod: Daemon) -> None:
    """From 100 to 10 with 50 in use: all 50 go on; somebody else comes in as soon as fewer than 10 are left."""
    with echod("[pool]\nsize = 100") as daemon, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(daemon.connect()) for _ in range(50)]
        assert all(map(served, socks))
        assert changed(daemon.reload("[pool]\nsize = 10")) == {"pool.size": (100, 10)}
        assert daemon.wait_for("pool.full")["size"] == 10
        assert all(map(served, socks))
        for left in range(49, 8, -1):
            with daemon.connect() as other:
                assert not served(other)
            socks.pop().close()
            assert daemon.wait_for("connection.closed", count=50 - left)["in_use"] == left
        assert all(map(served, socks))
        with daemon.connect() as tenth, daemon.connect() as eleventh:
            assert [served(tenth), served(eleventh)] == [True, False]


def test_a_limit_on_descriptors_follows_the_pool(echod: Daemon) -> None:
    """The soft limit is raised before there are more workers than descriptors."""
    limited = ["/bin/sh", "-c", 'ulimit -Sn 100; exec "$@"', "sh"]
    with echod("[pool]\nsize = 10", prefix=limited) as daemon:
        daemon.reload("[pool]\nsize = 200")
        with unhurt(daemon, 150):
            pass


def test_when_full_changes_both_ways(echod: Daemon) -> None:
    """Who waits is served once a reload makes room or lets nobody wait any more; who comes then is rejected."""
    wait, reject = "[pool]\nsize = 1\nwhen_full = 'wait'", "[pool]\nsize = 1\nwhen_full = 'reject'"
    with echod(reject) as daemon, daemon.connect() as seated:
        assert served(seated)
        assert changed(daemon.reload(wait)) == {"pool.when_full": ("reject", "wait")}
        with daemon.connect() as waiting:
            waiting.sendall(b"x")
            seated.close()
            assert read_exactly(waiting, 1) == b"x"
            with daemon.connect() as another:
                daemon.reload(reject)
                assert read_all(another) == b""
        daemon.wait_for("connection.closed", count=2)
        assert daemon.echo(b"there") == b"there"


# Listeners


def listen(port: int, host: str = f'"{LOCAL}"', rest: str = "") -> str:
    return f"[listen]\nhost = {host}\nport = {port}\n{rest}"


def test_a_port_moves_under_open_connections(echod: Daemon) -> None:
    """The new one is there before the old one goes, and connections through the old one stay."""
    with reserved_port() as old, reserved_port() as new, echod(listen(old)) as daemon, unhurt(daemon):
        assert changed(daemon.reload(listen(new))) == {"listen.port": (old, new)}
        assert not listens(old)
        assert [(line["event"], line.get("listener")) for line in daemon.lines[-3:]] == [
            ("listener.started", f"tcp://{LOCAL}:{new}"),
            ("listener.stopped", f"tcp://{LOCAL}:{old}"),
            ("config.reloaded", None),
        ]
        with socket.create_connection((LOCAL, new)) as sock:
            send_all(sock, b"there")
            assert read_all(sock) == b"there"


@pytest.mark.parametrize("other", ['"0.0.0.0"', '"*"', '["127.0.0.1", "127.0.0.2"]', '"127.0.0.2"'])
def test_an_address_changes_on_the_same_port(echod: Daemon, other: str) -> None:
    """Also if the old one and the new one overlap; and there is never more than one socket for an address."""
    with reserved_port() as port, echod(listen(port)) as daemon, unhurt(daemon):
        for host in (other, f'"{LOCAL}"', other):
            daemon.reload(listen(port, host))
            assert daemon.answers[-1]["event"] == "config.reloaded", daemon.answers[-1]
            if host != '"127.0.0.2"':
                assert daemon.echo(b"there") == b"there"
        taken = "127.0.0.2" if other == '"127.0.0.2"' else LOCAL
        with pytest.raises(OSError, match="in use"):
            socket.create_server((taken, port))


def test_a_port_that_can_not_be_bound_refuses_all(echod: Daemon) -> None:
    """Nothing of the file is applied, and the old port goes on."""
    with socket.create_server((LOCAL, 0)) as taken, reserved_port() as port:
        theirs = taken.getsockname()[1]
        with echod(listen(port, rest="[pool]\nsize = 1")) as daemon, unhurt(daemon):
            assert errors(daemon.reload(listen(theirs, rest="[pool]\nsize = 9"))) == [
                f"echod: tcp://{LOCAL}:{theirs}: address in use: choose another port (listen.port, -p)"
            ]
            with daemon.connect() as sock:
                assert not served(sock)


def test_a_port_that_the_kernel_chose_stays(echod: Daemon) -> None:
    """0 is "any": a reload of something else, or of an address more, does not move it."""
    with echod(listen(0)) as daemon, unhurt(daemon):
        daemon.reload(listen(0, rest="[pool]\nsize = 9"))
        assert changed(daemon.reload(listen(0, f'["{LOCAL}", "127.0.0.2"]', "[pool]\nsize = 9"))) == {
            "listen.host": (LOCAL, [LOCAL, "127.0.0.2"])
        }
        assert daemon.events("listener.stopped") == []
        for host in (LOCAL, "127.0.0.2"):
            with socket.create_connection((host, daemon.port)) as sock:
                send_all(sock, b"there")
                assert read_all(sock) == b"there"


def test_clients_in_the_backlog_of_the_old_port_are_served(echod: Daemon) -> None:
    """With `wait` and all workers busy, an old port stays until nobody waits there any more."""
    rest = "[pool]\nsize = 1\nwhen_full = 'wait'"
    with reserved_port() as old, reserved_port() as new, echod(listen(old, rest=rest)) as daemon:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(daemon.connect()) for _ in range(4)]
            for client in clients:
                client.sendall(b"x")
            assert read_exactly(clients[0], 1) == b"x"
            daemon.reload(listen(new, rest=rest))
            assert listens(old)
            assert listens(new)
            clients[0].close()
            for client in clients[1:]:
                assert read_exactly(client, 1) == b"x"
                client.close()
            daemon.wait_for("listener.stopped")
            assert not listens(old)
        until(lambda: len(daemon.events("connection.closed")) == 4, what="four connections closed")


# Timeouts, access, log


def test_timeouts_hold_for_open_connections(echod: Daemon) -> None:
    """The idle timeout at once, the drain timeout at the stop."""
    with echod("[timeouts]\nidle = 'off'\ndrain = '1h'") as daemon, daemon.connect() as sock:
        assert served(sock)
        assert changed(daemon.reload("[timeouts]\nidle = '200ms'\ndrain = '1h30m'")) == {
            "timeouts.idle": ("off", "200ms"),
            "timeouts.drain": ("1h", "1h30m"),
        }
        assert daemon.closed(sock)["reason"] == "idle_timeout"
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_for("daemon.draining")["timeout"] == 5400


def test_access_holds_for_who_comes(echod: Daemon) -> None:
    """Who is denied now and has come in before stays."""
    with echod("[pool]\nsize = 9") as daemon, unhurt(daemon):
        daemon.reload(f"[pool]\nsize = 9\n[access]\ndeny = ['{LOCAL}']")
        with daemon.connect() as sock:
            assert not served(sock)
        assert daemon.wait_for("connection.rejected")["reason"] == "denied"
        daemon.reload("[pool]\nsize = 9\n[access]\nper_source = 1")
        with daemon.connect() as sock:  # the first connection counts, although there was no limit when it came
            assert not served(sock)
        assert daemon.wait_for("connection.rejected", count=2)["reason"] == "per_source"


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("info", "warning"), ("error", "info")])
def test_a_change_of_the_level_is_logged(echod: Daemon, before: str, after: str) -> None:
    """Whichever of the two levels lets it pass; what comes after is logged by the new one."""
    with reserved_port() as port, echod(f"[log]\nlevel = '{before}'", port=port) as daemon:
        assert changed(daemon.reload(f"[log]\nlevel = '{after}'")) == {"log.level": (before, after)}
        daemon.echo(b"there")
        assert len(errors(daemon.reload("[pool]\nsize = 0"))) == 1
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        ours = [line["event"] for line in daemon.lines[daemon.lines.index(daemon.answers[0]) + 1 :]]
        assert ("connection.closed" in ours) == (after == "info")


def test_the_form_of_the_log_changes(echod: Daemon) -> None:
    """From the line that says so on."""
    read, write = os.pipe()
    with reserved_port() as port, echod("[log]\nformat = 'json'", stdout=write, port=port) as daemon:
        os.close(write)
        with os.fdopen(read) as log, daemon.deadline():
            while '"daemon.started"' not in log.readline():
                pass
            for form, beginning in (("console", "2"), ("json", "{")):
                daemon.file.write_text(f"[log]\nformat = '{form}'")
                daemon.signal(signal.SIGHUP)
                line = log.readline()
                assert "config.reloaded" in line
                assert line[0] == beginning
            assert daemon.stop() == 0  # while its log has a reader


def test_lifecycle_lines_can_be_turned_off_and_on(echod: Daemon) -> None:
    """For connections that are open, too: with their end."""
    with echod() as daemon, daemon.connect() as sock:
        assert served(sock)
        daemon.reload("[log]\nconnections = 'none'")
        daemon.echo(b"unheard")
        daemon.reload("[log]\nconnections = 'closed'")
        sock.close()
        daemon.wait_for("connection.closed")
        assert [line["connection"] for line in daemon.events("connection.opened")] == [1]
        assert [line["connection"] for line in daemon.events("connection.closed")] == [1]


# Refused


def test_a_bad_file_changes_nothing(echod: Daemon) -> None:
    """All that is wrong is said with its line, and the daemon goes on as it was."""
    with echod("[pool]\nsize = 1") as daemon, unhurt(daemon):
        assert errors(daemon.reload("[pool]\nsize = 9\nsise = 1\n[timeouts]\nidle = 3")) == [
            f"{daemon.file}:3: pool.sise: unknown key; did you mean pool.size?",
            (
                f"{daemon.file}:5: timeouts.idle: must be a duration with its unit,"
                ' e.g. "500ms", "30s", "1h30m", or "off"; got 3'
            ),
        ]
        with daemon.connect() as sock:
            assert not served(sock)
        assert changed(daemon.reload("[pool]\nsize = 1")) == {}


@pytest.mark.parametrize(
    ("setting", "old", "new"),
    [
        ("listen.backlog", "1024", "7"),
        ("listen.reuse_port", "false", "true"),
        ("admin.socket", '"auto"', '"off"'),
        ("admin.http", '"off"', '"127.0.0.1:9107"'),
    ],
)
def test_what_needs_a_restart_is_refused_with_all_the_rest(echod: Daemon, setting: str, old: str, new: str) -> None:
    """The line says so, and from what to what."""
    env = {
        "ECHOD_LISTEN__PORT": "0",
        "ECHOD_LISTEN__HOST": LOCAL,
        "RUNTIME_DIRECTORY": "",
    }  # so that the harness sets none
    with echod(port=0, env=env) as daemon, unhurt(daemon):
        assert errors(daemon.reload(f"{setting} = {new}\npool.size = 1")) == [
            f"{daemon.file}:1: {setting}: needs a restart to change from {old} to {new}"
        ]
        daemon.reload("")
        assert daemon.echo(b"there") == b"there"


def test_a_file_that_has_gone_changes_nothing(echod: Daemon) -> None:
    """Nor one that could be read but once: the daemon does not wait for it."""
    with echod("[pool]\nsize = 7") as daemon, unhurt(daemon):
        daemon.file.unlink()
        daemon.signal(signal.SIGHUP)
        assert errors(daemon.wait_for("config.rejected")) == [
            f"{daemon.file}: can't be read: No such file or directory"
        ]
        os.mkfifo(daemon.file)
        daemon.signal(signal.SIGHUP)
        assert errors(daemon.wait_for("config.rejected", count=2)) == [
            f"{daemon.file}: a reload needs a regular file, not a pipe or a device"
        ]
        daemon.file.unlink()
        assert changed(daemon.reload("[pool]\nsize = 8")) == {"pool.size": (7, 8)}


def test_a_flag_wins_after_a_reload_too(echod: Daemon) -> None:
    """The file's value is in force only where it was before."""
    with echod("[pool]\nsize = 7", flags=["-n", "2"]) as daemon:
        assert changed(daemon.reload("[pool]\nsize = 8\nwhen_full = 'wait'")) == {"pool.when_full": ("reject", "wait")}


# Signals


def test_reloads_in_quick_succession_end_with_the_last_file(echod: Daemon) -> None:
    """Signals may fall together, but none after the last change is lost."""
    with echod("[pool]\nsize = 1") as daemon, unhurt(daemon):
        for size in range(2, 30):
            daemon.file.write_text(f"[pool]\nsize = {size}")
            daemon.signal(signal.SIGHUP)

        def sizes() -> list[int]:
            return [line["new"]["pool.size"] for line in daemon.answers if line.get("new")]

        until(lambda: sizes()[-1:] == [29], what="the last size")


def test_a_stop_during_a_reload_stops(echod: Daemon) -> None:
    """Whichever comes first, the last line is that of the end."""
    with echod() as daemon:
        with daemon.suspended():
            daemon.signal(signal.SIGHUP)
            daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert daemon.lines[-1]["event"] == "daemon.stopped"


@pytest.mark.parametrize("delay", [0.4, 0.8])
def test_a_stop_while_a_large_file_is_read_ends_well(echod: Daemon, delay: float) -> None:
    """The thread that reads is in the middle of it when the interpreter ends."""
    networks = ", ".join(f"'10.{n >> 8}.{n & 255}.0/25'" for n in range(50_000))
    with echod("[pool]\nsize = 3") as daemon:
        daemon.file.write_text(f"[access]\nallow = [{networks}]")
        daemon.signal(signal.SIGHUP)
        time.sleep(delay)  # there is no event between: it is the moment that counts
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert daemon.lines[-1]["event"] == "daemon.stopped"


# Warnings


def test_values_that_are_surely_a_mistake_are_warnings_in_the_log(echod: Daemon) -> None:
    """At the start and at a reload; on standard output, with the rest of the log."""
    text = "[timeouts]\nidle = '1m'\nwrite = '2m'"
    with echod(text, env={"ECHOD_POOL_SIZE": "7"}) as daemon:
        messages = [line["message"] for line in daemon.events("config.warning")]
        assert messages == [
            "ECHOD_POOL_SIZE: unknown variable, ignored; did you mean ECHOD_POOL__SIZE?",
            f"{daemon.file}:3: timeouts.write: 2m has no effect, timeouts.idle (1m) comes first",
        ]
        daemon.reload(text)
        assert [line["message"] for line in daemon.events("config.warning")] == messages * 2


def test_an_emptied_file_is_refused(echod: Daemon) -> None:
    """`: > echod.toml`, as a full disk or an editor does it, would let everyone in."""
    with echod("[access]\nallow = ['127.0.0.0/8']") as daemon, unhurt(daemon):
        (line,) = errors(daemon.reload(""))
        assert line.startswith(f"{daemon.file}: has no key, but the settings in force came from a file that had some")
        assert changed(daemon.reload("[access]\nallow = ['127.0.0.0/8', '192.0.2.1']")) != {}


@pytest.mark.slow
def test_a_reload_that_lets_in_more_clients_says_so(echod: Daemon, tmp_path: Path) -> None:
    """In the log, in the answer, and in the status from then on."""
    admin = ("--admin.socket", str(tmp_path / "admin.sock"))
    with echod("[access]\nallow = ['127.0.0.0/8']\nper_source = 9", flags=admin) as daemon:
        daemon.file.write_text("[access]\nper_source = 9")
        answer = command("reload", *admin)
        warning = 'default: access.allow: lets in more clients than before: everyone, not only "127.0.0.0/8"'
        assert answer.returncode == 0
        assert (answer.stdout, answer.stderr) == ('access.allow: ["127.0.0.0/8"] -> []\n', f"warning: {warning}\n")
        assert daemon.wait_for("config.warning")["message"] == warning
        assert f"!            warning: {warning}" in command("status", *admin).stdout.splitlines()
