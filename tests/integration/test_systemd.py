"""The real process under a manager that is not systemd, but speaks like it: notifications, watchdog, inherited sockets."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.certificates import pem_file
from tests.support.fakes import has_mptcp
from tests.support.harness import DEADLINE, LOCAL, Echod, command, read_all, read_exactly, reserved_port, send_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Daemon = Callable[..., Echod]

_HAND_OVER = """\
import fcntl, os, sys
fds = [int(fd) for fd in sys.argv[1].split(",")]
copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]  # out of the way
for number, fd in enumerate(copies):
    os.dup2(fd, 3 + number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds))}
os.execv(sys.argv[2], sys.argv[2:])
"""


_LEFT_OVER = """\
import os, sys
os.environ |= {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
os.execv(sys.argv[1], sys.argv[1:])
"""


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.settimeout(DEADLINE)
        self.messages: list[str] = []

    def wait_for(self, beginning: str) -> str:
        """Wait for a message that begins like this; those before are forgotten."""
        while True:
            message = self.sock.recv(4096).decode()
            self.messages.append(message)
            if message.startswith(beginning):
                return message


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    with manager.sock:
        yield manager


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket as systemd would hold it."""
    with socket.create_server((LOCAL, 0)) as sock:
        yield sock


@pytest.fixture
def activated(echod: Daemon) -> Callable[..., Echod]:
    """Return what starts a daemon to which sockets are handed over."""

    def start(*sockets: socket.socket, config: str = "", **arguments: object) -> Echod:
        fds = [sock.fileno() for sock in sockets]
        return echod(config, prefix=handed_over(*sockets), pass_fds=fds, **arguments)

    return start


def handed_over(*sockets: socket.socket) -> list[str]:
    """Return the words before a command to which these sockets go, as systemd does it."""
    return [sys.executable, "-c", _HAND_OVER, ",".join(str(sock.fileno()) for sock in sockets)]


def notified(tmp_path: Path, **variables: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(tmp_path / "notify"), **variables}


# Notifications


def test_the_manager_is_told_of_each_turn_in_its_life(echod: Daemon, manager: Manager, tmp_path: Path) -> None:
    """Ready when it serves, the pool as it is, reloads with their end, and the stop with all the time it takes."""
    with echod("[pool]\nsize = 7", env=notified(tmp_path)) as daemon:
        listening = f"listening on tcp://127.0.0.1:{daemon.port}"
        assert manager.wait_for("READY=1") == f"READY=1\nSTATUS=0 of 7 workers in use, {listening}"
        with daemon.connect() as client:
            client.sendall(b"x")
            assert read_exactly(client, 1) == b"x"
            assert manager.wait_for("STATUS=") == f"STATUS=1 of 7 workers in use, {listening}"
            daemon.reload("[pool]\nsize = 9")
            assert manager.wait_for("RELOADING=1").startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert manager.wait_for("READY=1") == f"READY=1\nSTATUS=1 of 9 workers in use, {listening}"
            daemon.reload("[pool]\nsize = 0")
            assert manager.wait_for("READY=1") == (
                f"READY=1\nSTATUS=1 of 9 workers in use, {listening};"
                " the last reload was refused: run `echod reload` for the reasons"
            )
            daemon.signal(signal.SIGTERM)
            stopping = manager.wait_for("STOPPING=1")
            assert stopping == "STOPPING=1\nEXTEND_TIMEOUT_USEC=15000000\nSTATUS=draining, 1 connections open"
            assert manager.wait_for("EXTEND_TIMEOUT_USEC=")
        assert daemon.wait() == 0


@pytest.mark.slow
def test_the_manager_is_told_of_a_lame_duck(echod: Daemon, manager: Manager, tmp_path: Path) -> None:
    """Its stop begins at once, and takes all the time that it needs: for the lame duck, then for the drain."""
    config = "[timeouts]\nlame_duck = '1h'\n[pool]\nsize = 7\n[admin]\nsocket = '{}'".format(tmp_path / "admin.sock")
    with echod(config, env=notified(tmp_path)) as daemon, daemon.connect():
        daemon.wait_for("connection.opened")
        serving = f"1 of 7 workers in use, listening on tcp://127.0.0.1:{daemon.port}"
        assert command("lame-duck", "-c", str(daemon.file)).returncode == 0
        assert manager.wait_for("STATUS=lame duck") == f"STATUS=lame duck, not ready: {serving}"
        daemon.signal(signal.SIGTERM)
        stopping = manager.wait_for("STOPPING=1")
        extended = "STOPPING=1\nEXTEND_TIMEOUT_USEC=15000000\nSTATUS="
        assert stopping == f"{extended}lame duck before the drain: {serving}"
        assert manager.wait_for("EXTEND_TIMEOUT_USEC=")
        daemon.signal(signal.SIGTERM)
        assert manager.wait_for("STOPPING=1") == f"{extended}draining, 1 connections open"


@pytest.mark.slow
def test_the_manager_is_told_that_the_log_is_held_up(echod: Daemon, manager: Manager, tmp_path: Path) -> None:
    """`systemctl status` says so: the journal can't."""
    with (
        Path("/dev/full").open("wb") as full,
        reserved_port() as port,
        echod("[pool]\nsize = 7", stdout=full.fileno(), port=port, env=notified(tmp_path)) as daemon,
    ):
        serves = f"STATUS=0 of 7 workers in use, listening on tcp://127.0.0.1:{port}"
        assert manager.wait_for("READY=1") == f"READY=1\n{serves}"
        assert manager.wait_for("STATUS=") == f"{serves}, the log is held up: ENOSPC"
        daemon.signal(signal.SIGTERM)
        assert manager.wait_for("STOPPING=1").endswith("draining, 0 connections open, the log is held up: ENOSPC")
        assert daemon.wait() == 0
        assert daemon.errors() == "echod: 5 lines of the log could not be written: ENOSPC\n"


@pytest.mark.slow
def test_the_watchdog_is_pinged_while_it_serves_and_while_it_drains(
    echod: Daemon, manager: Manager, tmp_path: Path
) -> None:
    """And not while it is stopped, of course: then the manager ends it."""
    with echod(env=notified(tmp_path, WATCHDOG_USEC="150000")) as daemon, daemon.connect() as client:
        client.sendall(b"x")
        assert read_exactly(client, 1) == b"x"
        for _ in range(3):
            manager.wait_for("WATCHDOG=1")
        daemon.signal(signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        for _ in range(3):
            manager.wait_for("WATCHDOG=1")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


# Inherited sockets


def test_it_serves_on_what_it_is_handed_and_binds_nothing(
    activated: Callable[..., Echod], listener: socket.socket
) -> None:
    """Whatever `[listen]` says, and says later; a line tells."""
    port = listener.getsockname()[1]
    with activated(listener, config="[listen]\nport = 1\n") as daemon:
        (line,) = daemon.events("listener.inherited")
        assert (line["names"], line["message"].split(":")[0]) == (["unknown"], "[listen] is not bound")
        assert daemon.wait_for("listener.started")["listener"] == f"tcp://127.0.0.1:{port}"
        assert daemon.echo(b"hi") == b"hi"
        answer = daemon.reload("[listen]\nport = 2\n")
        assert (answer["event"], answer["changed"]) == ("config.reloaded", ["listen.port"])
        assert daemon.wait_for("config.warning")["message"].startswith("[listen] is not bound")
        assert daemon.echo(b"hi") == b"hi"
        assert daemon.reload("[listen]\nport = 2\n[pool]\nsize = 3\n")["changed"] == ["pool.size"]
        assert len(daemon.events("config.warning")) == 1


@pytest.mark.slow
def test_urgent_bytes_to_an_inherited_socket_come_back(
    activated: Callable[..., Echod], listener: socket.socket
) -> None:
    """Also those of the client that waited before the process started: its connection is older than our options."""
    with socket.create_connection(listener.getsockname(), DEADLINE) as early:
        early.send(b"ABC", 0)
        early.send(b"!", socket.MSG_OOB)
        early.send(b"DEF", 0)
        with activated(listener), socket.create_connection(listener.getsockname(), DEADLINE) as late:
            late.send(b"!", socket.MSG_OOB)
            assert read_exactly(early, 7) == b"ABC!DEF"
            assert read_exactly(late, 1) == b"!"


@pytest.mark.slow
def test_a_reload_answers_that_what_it_has_changed_has_no_effect(
    activated: Callable[..., Echod], listener: socket.socket, tmp_path: Path
) -> None:
    """The one that types `echod reload` sees it; the change is confirmed all the same."""
    path = str(tmp_path / "admin.sock")
    with activated(listener, config="[listen]\nport = 1\n", flags=["--admin.socket", path]) as daemon:
        daemon.file.write_text("[listen]\nport = 2\n")
        done = command("reload", "--admin.socket", path)
        assert (done.returncode, done.stdout) == (0, "listen.port: 1 -> 2\n")
        assert done.stderr == "warning: [listen] is not bound: the sockets come from systemd (LISTEN_FDS)\n"


@pytest.mark.slow
def test_a_client_that_comes_between_two_processes_is_refused_by_none(
    activated: Callable[..., Echod], listener: socket.socket
) -> None:
    """The backlog outlives the one, and the next one serves it; whoever was connected has got all of its echo."""
    with activated(listener) as first, first.connect() as old:
        old.sendall(b"a")
        assert read_exactly(old, 1) == b"a"
        first.signal(signal.SIGTERM)
        first.wait_for("listener.stopped")
        between = first.connect()
        send_all(old, b"b")
        assert read_all(old) == b"b"
        assert first.wait() == 0
    with between, first.connect() as late, activated(listener) as second:
        for client in (between, late):
            send_all(client, b"hi")
            assert read_all(client) == b"hi"
        assert second.wait_for("connection.closed", count=2)["reason"] == "eof"


@pytest.mark.slow
def test_what_it_can_not_serve_on_is_refused() -> None:
    """In a line, with 78: to start it again changes nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE) as wrong:
        wrong.bind((LOCAL, 0))
        done = command("run", prefix=handed_over(wrong), pass_fds=[wrong.fileno()])
        where = f"udplite://{LOCAL}:{wrong.getsockname()[1]}"
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == (
        f"echod: unknown (descriptor 3): {where} is not served: the socket unit needs"
        " ListenStream=, or ListenDatagram= with a port\n"
    )


def test_tls_for_which_there_is_no_socket_is_warned_about(
    activated: Callable[..., Echod], listener: socket.socket
) -> None:
    """At the start, and at each reload: the socket of systemd is served without TLS."""
    text = f"[tls]\nport = 7443\ncertificate = '{pem_file()}'\n"
    with activated(listener, config=text) as daemon:
        assert daemon.reload(f"{text}[pool]\nsize = 3\n")["event"] == "config.reloaded"
        assert daemon.reload("[pool]\nsize = 3\n")["event"] == "config.reloaded"
        warnings = [line["message"] for line in daemon.events("config.warning")]
        no_effect = "tls.port: has no effect: none of the sockets from systemd (LISTEN_FDS) is served as tls"
        assert warnings == [no_effect, no_effect]


@pytest.mark.slow
def test_what_it_can_not_serve_on_is_named_and_the_rest_is_served(
    activated: Callable[..., Echod], listener: socket.socket, tmp_path: Path
) -> None:
    """Other datagrams and packets beside TCP: a warning for each."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE) as lite,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as unix,
    ):
        lite.bind((LOCAL, 0))
        unix.bind(str(tmp_path / "echo"))
        unix.listen()
        with activated(lite, listener, unix) as daemon:
            assert daemon.echo(b"hi") == b"hi"
            warnings = [line["message"] for line in daemon.events("config.warning")]
            assert [warning.partition(": ")[2].partition(" is not")[0] for warning in warnings] == [
                f"udplite://{LOCAL}:{lite.getsockname()[1]}",
                f"unix:{tmp_path}/echo",
            ]
            (line,) = daemon.events("listener.inherited")
            assert line["names"] == ["unknown"]


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_it_answers_udp(
    activated: Callable[..., Echod], listener: socket.socket, tmp_path: Path, *, alone: bool
) -> None:
    """ListenDatagram=, beside a port of TCP or alone; also the datagram that has come before the process."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        udp.bind(("", 0))
        port = udp.getsockname()[1]
        client.settimeout(DEADLINE)
        client.sendto(b"early", ("127.0.0.2", port))
        admin = str(tmp_path / "admin.sock")
        with activated(*([] if alone else [listener]), udp, flags=["--admin.socket", admin]) as daemon:
            assert client.recvfrom(9) == (b"early", ("127.0.0.2", port))
            client.sendto(b"late", ("127.0.0.3", port))
            assert client.recvfrom(9) == (b"late", ("127.0.0.3", port))
            urls = [line["listener"] for line in daemon.events("listener.started")]
            assert f"udp://0.0.0.0:{port}" in urls
            assert command("ready", "--admin.socket", admin).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("abstract", [False, True])
def test_it_serves_on_a_unix_socket(
    activated: Callable[..., Echod], listener: socket.socket, tmp_path: Path, *, abstract: bool
) -> None:
    """ListenStream= with a path or a name, beside a port. The file stays the manager's."""
    with socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_UNIX) as client:
        unix.bind(f"\0{tmp_path}/echo" if abstract else f"{tmp_path}/echo")
        unix.listen()
        client.settimeout(DEADLINE)
        with activated(listener, unix) as daemon:
            assert daemon.echo(b"hi") == b"hi"
            line = daemon.wait_for("listener.started", count=2)
            assert (line["listener"], line["backlog"]) == (f"unix:{'@' * abstract}{tmp_path}/echo", None)
            client.connect(unix.getsockname())
            send_all(client, b"hi")
            assert read_all(client) == b"hi"
        assert abstract or (tmp_path / "echo").is_socket()


@pytest.mark.slow
@pytest.mark.skipif(not has_mptcp(), reason="no MPTCP here")
@pytest.mark.parametrize("protocol", [socket.IPPROTO_TCP, socket.IPPROTO_MPTCP])
def test_it_serves_on_mptcp(activated: Callable[..., Echod], protocol: int) -> None:
    """SocketProtocol=mptcp: clients with it and without, through a half-close and a stop."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as theirs:
        theirs.bind((LOCAL, 0))
        theirs.listen()
        data = os.urandom(1 << 20)
        with activated(theirs) as daemon, socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as client:
            client.settimeout(DEADLINE)
            client.connect(theirs.getsockname())
            sender = threading.Thread(target=send_all, args=(client, data))
            sender.start()
            assert read_all(client) == data
            sender.join()
            line = daemon.wait_for("connection.closed")
            assert (line["reason"], line["bytes_sent"]) == ("eof", len(data))
            assert (line["tcp"] is None) == (protocol == socket.IPPROTO_MPTCP)
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as other:
                other.connect(theirs.getsockname())
                other.sendall(b"x")
                assert read_exactly(other, 1) == b"x"
                daemon.signal(signal.SIGTERM)
                send_all(other, b"y")
                assert read_all(other) == b"y"
            assert daemon.wait() == 0


@pytest.mark.slow
@pytest.mark.skipif(not has_mptcp(), reason="no MPTCP here")
def test_an_urgent_byte_comes_back_from_a_socket_of_mptcp(activated: Callable[..., Echod]) -> None:
    """MPTCP has no SO_OOBINLINE, but a client without MPTCP has a connection of plain TCP, with urgent bytes."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as theirs:
        theirs.bind((LOCAL, 0))
        theirs.listen()
        with activated(theirs), socket.create_connection(theirs.getsockname(), DEADLINE) as client:
            client.sendall(b"ABC")
            client.send(b"!", socket.MSG_OOB)
            send_all(client, b"DEF")
            assert read_all(client) == b"ABC!DEF"


_WRAPPER = ["/bin/sh", "-c", '"$@"; exit', "sh"]
"""It does not replace itself by echod, which so has another process id."""


@pytest.mark.slow
def test_sockets_meant_for_a_wrapper_are_a_hint_when_the_address_is_in_use(listener: socket.socket) -> None:
    """By systemd itself, through the very sockets."""
    port = str(listener.getsockname()[1])
    prefix = [*handed_over(listener), *_WRAPPER]
    done = command("run", "-p", port, "--listen.host", LOCAL, prefix=prefix, pass_fds=[listener.fileno()])
    assert done.returncode == os.EX_UNAVAILABLE
    in_use, hint = done.stderr.splitlines()
    assert in_use.startswith(f"echod: tcp://{LOCAL}:{port}: address in use")
    assert hint.startswith("echod: LISTEN_FDS: the sockets are meant for process ")
    assert hint.endswith(": a wrapper has to start echod with exec")


@pytest.mark.slow
def test_sockets_meant_for_a_wrapper_are_a_warning_when_it_serves_elsewhere(echod: Daemon) -> None:
    """Clients of the sockets would wait without an end."""
    with echod(prefix=[sys.executable, "-c", _LEFT_OVER]) as daemon:
        assert daemon.echo(b"hi") == b"hi"
        (line,) = daemon.events("config.warning")
        assert line["message"].startswith("LISTEN_FDS: the sockets are meant for process 1 (LISTEN_PID), not for ")
