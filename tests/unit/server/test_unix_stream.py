"""The Unix kind of listener, with real sockets and files, on a loop that does what it is told."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest

from echod.errors import Refusal
from echod.server import kernel, listeners, unix_stream
from echod.server.admission import Accepted
from echod.server.endpoint import Endpoint
from echod.server.listeners import Listeners, adopt
from tests.support.in_process import descriptors, without_privileges
from tests.support.rig import Rig, settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "echo.sock"


class Door:
    """A server that listens on Unix sockets, and on TCP at any port."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    def serve(self, where: object, mode: str = "0660", **values: Any) -> None:
        """Start, or reload."""
        wanted = settings(
            listen__host="127.0.0.1",
            listen__port=0,
            listen__backlog=4,
            listen__unix=where,
            listen__unix_mode=mode,
            **values,
        )
        self.rig.listeners.serve(wanted, self.rig.listeners.bind(wanted))
        self.settings = wanted

    def retry(self) -> None:
        """Let a second pass, in which the timeouts check."""
        self.rig.loop.advance(1)
        self.rig.listeners.retry(self.settings)

    def states(self) -> list[str]:
        """Return the state of each listener."""
        return [
            acceptor.state for acceptor in self.rig.listeners.acceptors if acceptor.listener.endpoint.kind == "unix"
        ]

    def connect(self, where: object) -> socket.socket:
        """Return a connected client."""
        client = socket.socket(socket.AF_UNIX)
        self.rig.sockets.append(client)
        client.settimeout(5)
        client.connect(str(where).replace("@", "\0"))
        return client

    def served(self) -> list[str]:
        """Accept who waits; return the listeners of all connections."""
        self.rig.readable()
        return [worker.listener for worker in self.rig.pool.in_use.values()]

    def logged(self) -> list[str]:
        """Return what has been logged of Unix listeners since the last time."""
        lines = [line for line in self.rig.lines.lines if "unix:" in line.get("listener", "")]
        self.rig.lines.lines.clear()
        return [f"{line['event']} {line['listener']}" for line in lines]


@pytest.fixture
def door(rig: Rig) -> Door:
    return Door(rig)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def refused(where: object) -> tuple[str, int]:
    """Return the line and the exit code with which a start is refused; nothing is left of it."""
    before = descriptors()
    with contextlib.closing(Rig()) as rig:
        with pytest.raises(Refusal) as caught:
            Door(rig).serve(where)
        assert not rig.listeners.urls
    assert descriptors() == before
    (line,) = caught.value.lines
    return line, caught.value.exit_code


# Where it listens, and who may connect


def test_off_is_no_endpoint() -> None:
    """As by default."""
    assert unix_stream.endpoints(settings()) == []


@pytest.mark.parametrize("where", ["/run/echo.sock", "@echo"])
def test_the_endpoint_is_the_path(where: str) -> None:
    """There is one, and it has no port."""
    assert unix_stream.endpoints(settings(listen__unix=where)) == [Endpoint("unix", path=where)]


@pytest.mark.parametrize("abstract", [False, True])
def test_clients_of_a_unix_socket_get_workers_of_the_same_pool(door: Door, path: Path, *, abstract: bool) -> None:
    """They are logged as processes and users, and nothing is known of their connection."""
    where = f"@{path}" if abstract else str(path)
    door.serve(where)
    assert door.rig.lines.lines[-1] == {
        "level": "info",
        "event": "listener.started",
        "listener": f"unix:{where}",
        "backlog": 4,
    }
    door.connect(where)
    assert door.served() == [f"unix:{where}"]
    me = {"pid": os.getpid(), "uid": os.getuid()}
    assert door.rig.lines.events("connection.opened")[0]["client"] == me
    assert door.rig.pool.sources == {f"uid:{os.getuid()}": 1}
    door.rig.finish()
    (closed,) = door.rig.lines.events("connection.closed")
    assert (closed["client"], closed["tcp"]) == (me, None)


def test_where_the_kernel_does_not_name_the_client_it_is_unknown(
    door: Door, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All such clients are one source."""
    monkeypatch.setattr(kernel, "peer_credentials", lambda _: None)
    door.serve(path)
    door.connect(path)
    door.served()
    assert door.rig.lines.events("connection.opened")[0]["client"] == {"pid": None, "uid": None}
    assert door.rig.pool.sources == {"uid:unknown": 1}


def test_urgent_bytes_stay_in_the_stream(door: Door, path: Path) -> None:
    """Accepted sockets don't inherit the option from their listener, and without it the kernel drops such a byte."""
    door.serve(path)
    door.connect(path)
    door.served()
    (worker,) = door.rig.pool.in_use.values()
    assert worker.sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)


def test_a_system_that_refuses_the_option_is_served_without_it(
    door: Door, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emulator."""

    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(Accepted, "setsockopt", refuse)
    door.serve(path)
    door.connect(path)
    assert door.served() == [f"unix:{path}"]


@pytest.mark.parametrize("mode", ["0600", "0660", "0666", "0622"])
def test_the_file_has_the_mode_that_was_asked_for(door: Door, path: Path, mode: str) -> None:
    """Whatever the umask."""
    before = os.umask(0o077)
    try:
        door.serve(path, mode)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert permissions(path) == int(mode, 8)


def test_between_bind_and_serve_only_the_owner_may_connect(rig: Rig, path: Path) -> None:
    """There is no moment at which somebody can connect whom the mode keeps out."""
    wanted = settings(listen__host="127.0.0.1", listen__port=0, listen__unix=path, listen__unix_mode="0666")
    bound = rig.listeners.bind(wanted)
    assert permissions(path) == 0o600
    rig.listeners.serve(wanted, bound)
    assert permissions(path) == 0o666


def test_a_reload_changes_the_mode(door: Door, path: Path) -> None:
    """Of the same socket."""
    door.serve(path)
    identity = path.stat().st_ino
    door.logged()
    door.serve(path, "0600")
    assert (permissions(path), path.stat().st_ino, door.logged()) == (0o600, identity, [])


def test_a_mode_that_the_file_system_refuses_stays(door: Door, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload has to go on."""
    door.serve(path)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(type(path), "chmod", refuse)
    door.serve(path, "0600")
    assert permissions(path) == 0o660


# What is refused


def test_a_path_at_which_somebody_listens_is_refused(path: Path) -> None:
    """It is left alone."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert refused(path) == (
            f"echod: listen.unix: unix:{path}: address in use: another process listens there",
            os.EX_UNAVAILABLE,
        )
        assert path.is_socket()


def test_an_abstract_name_in_use_is_refused(path: Path) -> None:
    """The same."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"\0{path}")
        assert refused(f"@{path}") == (
            f"echod: listen.unix: unix:@{path}: address in use: another process listens there",
            os.EX_UNAVAILABLE,
        )


def test_an_abstract_name_that_can_not_be_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason of the system."""

    class Full(socket.socket):
        def listen(self, _: int = 0) -> None:
            raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(socket, "socket", Full)
    with pytest.raises(Refusal) as caught:
        unix_stream.bind(
            [Endpoint("unix", path="@echod-full")],
            backlog=1,
            reuse_port=False,
            receive_buffer=None,
            free_bind=False,
            beside=(),
        )
    assert caught.value.lines == ("echod: listen.unix: unix:@echod-full: can't listen: Cannot allocate memory",)


def test_a_file_that_is_not_a_socket_is_refused(path: Path) -> None:
    """It is left alone."""
    path.write_text("precious")
    assert refused(path) == (
        f"echod: listen.unix: unix:{path}: exists and is not a socket: remove it, or set another path",
        os.EX_CONFIG,
    )
    assert path.read_text() == "precious"


def test_a_missing_directory_is_refused(path: Path) -> None:
    """It is not made: who may connect depends on it too."""
    assert refused(path / "x") == (
        f"echod: listen.unix: unix:{path}/x: can't listen: its directory does not exist",
        os.EX_CONFIG,
    )


def test_a_lack_of_permission_is_refused_with_the_remedy(path: Path) -> None:
    """And with 77."""
    path.parent.chmod(0o500)
    try:
        with without_privileges():
            line, code = refused(path)
    finally:
        path.parent.chmod(0o700)
    assert line == (
        f"echod: listen.unix: unix:{path}: no permission: set a path in a directory that echod may write to"
        " (RuntimeDirectory=, ReadWritePaths=)"
    )
    assert code == os.EX_NOPERM


# Its life


def test_a_stale_socket_is_replaced(door: Door, path: Path) -> None:
    """As a process leaves it that was killed."""
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    door.serve(path)
    door.connect(path)
    assert door.served() == [f"unix:{path}"]


def test_at_a_stop_the_file_is_removed(door: Door, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While this process still listens, so that no other one takes the file for a stale one. Who has connected is served."""
    door.serve(path)
    door.connect(path)
    there: list[bool] = []
    (acceptor,) = [each for each in door.rig.listeners.acceptors if each.listener.file]
    monkeypatch.setattr(acceptor, "_listen", lambda _: there.append(path.exists()))
    door.rig.listeners.close()
    assert there == [False]
    assert door.served() == [f"unix:{path}"]
    assert door.logged()[-1] == f"listener.stopped unix:{path}"


def test_a_socket_that_has_taken_its_place_is_left_alone(door: Door, path: Path) -> None:
    """It is another process's."""
    door.serve(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        path.chmod(0o606)
        door.serve("off")
        door.rig.listeners.close()
        assert path.is_socket()
        assert permissions(path) == 0o606


def test_a_reload_moves_it(door: Door, path: Path) -> None:
    """Who waits at the old path is served, and nobody can come there any more."""
    door.serve(path)
    other = path.with_name("other.sock")
    door.connect(path)
    door.logged()
    door.serve(other)
    assert not path.exists()
    door.connect(other)
    assert sorted(door.served()) == sorted([f"unix:{path}", f"unix:{other}"])
    events = [line for line in door.logged() if line.startswith("listener.")]
    assert events == [f"listener.started unix:{other}", f"listener.stopped unix:{path}"]


def test_a_reload_turns_it_on_and_off(door: Door, path: Path) -> None:
    """The other listeners stay."""
    door.serve("off")
    door.serve(path)
    assert len(door.rig.listeners.urls) == 2
    door.serve("off")
    assert len(door.rig.listeners.urls) == 1
    assert not path.exists()


def test_a_change_back_listens_anew_beside_the_socket_that_still_has_waiting_clients(door: Door, path: Path) -> None:
    """Its file is gone; both serve their clients."""
    door.serve(path, pool__when_full="wait")
    for _ in range(3):
        door.connect(path)
    door.served()
    door.connect(path)
    door.serve(path.with_name("other.sock"), pool__when_full="wait")
    door.serve(path, pool__when_full="wait")
    door.connect(path)
    for _ in range(3):
        door.rig.finish()
        door.served()
    assert door.rig.pool.accepted == 5
    assert [url for url in door.rig.listeners.urls if "unix" in url] == [f"unix:{path}"]
    assert path.is_socket()


def test_a_refused_reload_leaves_no_file(door: Door, path: Path) -> None:
    """Nothing has changed."""
    door.serve("off")
    occupied = door.rig.reserve()
    door.rig.sockets[-1].listen()
    wanted = settings(listen__host="127.0.0.1", listen__port=occupied, listen__unix=path)
    with pytest.raises(Refusal):
        door.rig.listeners.bind(wanted)
    assert not path.exists()


def test_what_was_bound_before_a_refusal_is_removed_again(
    door: Door, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kind after it may be refused."""

    class Refused:
        """A kind that can't listen."""

        def endpoints(self, _: object) -> list[Endpoint]:
            return []

        def bind(self, *_: object, **__: object) -> None:
            raise Refusal("no")

    monkeypatch.setitem(listeners.KINDS, "later", Refused())
    with pytest.raises(Refusal, match="no"):
        door.serve(path)
    assert not path.exists()


# A file that somebody has removed


def test_a_reload_listens_anew_where_the_file_was_removed(door: Door, path: Path) -> None:
    """Clients of before are served."""
    door.serve(path)
    door.connect(path)
    path.unlink()
    door.logged()
    door.serve(path)
    door.connect(path)
    assert door.served() == [f"unix:{path}"] * 2
    events = [line for line in door.logged() if line.startswith("listener.")]
    assert events == [f"listener.started unix:{path}", f"listener.stopped unix:{path}"]
    assert path.is_socket()


def test_it_listens_anew_by_itself(door: Door, path: Path) -> None:
    """With the next check of the timeouts."""
    door.serve(path, "0600")
    door.rig.listeners.retry(door.settings)
    path.unlink()
    door.logged()
    door.rig.listeners.retry(door.settings)
    assert permissions(path) == 0o600
    assert door.logged() == [f"listener.started unix:{path}", f"listener.stopped unix:{path}"]


def test_a_directory_that_was_removed_is_one_warning(door: Door, path: Path) -> None:
    """Until it is there again."""
    folder = path.parent / "folder"
    folder.mkdir()
    for _ in range(2):
        door.serve(folder / "e.sock")
        (folder / "e.sock").unlink()
        folder.rmdir()
        door.rig.lines.lines.clear()
        for _ in range(3):
            door.retry()
        (warning,) = door.rig.lines.lines
        assert warning == {
            "level": "warning",
            "event": "listener.missing",
            "listener": f"unix:{folder}/e.sock",
            "reason": "can't listen: its directory does not exist",
        }
        assert list(door.rig.listeners.missing) == [warning["listener"]]
        folder.mkdir()
        door.retry()
        assert (folder / "e.sock").is_socket()
        assert not door.rig.listeners.missing


def test_what_has_taken_its_place_is_not_replaced_but_named(door: Door, path: Path) -> None:
    """It is listened on again when the other process has ended."""
    door.serve(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        for _ in range(2):
            door.retry()
            door.rig.listeners.serve(door.settings, [])  # such as for an address that has come
        with pytest.raises(Refusal, match="another process listens there"):
            door.serve(path)
        assert (door.states(), door.rig.listeners.urls[1:]) == (["missing"], [])
    (warning,) = door.rig.lines.events("listener.missing")
    assert warning["reason"] == "address in use: another process listens there"
    door.retry()
    door.connect(path)
    assert not door.rig.listeners.missing


def test_it_is_one_warning_also_beside_an_old_socket_that_still_has_clients(door: Door, path: Path) -> None:
    """One that is retired is not taken for one that can be reached."""
    door.serve(path)
    door.connect(path)
    path.unlink()
    door.retry()
    assert door.states() == ["retired", "accepting"]
    path.unlink()
    path.write_text("")
    for _ in range(3):
        door.retry()
    assert door.states() == ["retired", "missing"]
    assert len(door.rig.lines.events("listener.missing")) == 1


def test_a_file_that_was_put_back_is_not_missing(door: Door, path: Path) -> None:
    door.serve(path)
    path.rename(path.with_suffix(".away"))
    path.write_text("")
    door.retry()
    (warning,) = door.rig.lines.events("listener.missing")
    assert warning["reason"] == "exists and is not a socket: remove it, or set another path"
    path.with_suffix(".away").rename(path)
    door.retry()
    assert not door.rig.listeners.missing
    assert door.states() == ["accepting"]
    door.connect(path)


# Sockets that systemd hands over


@pytest.fixture
def theirs(path: Path) -> Iterator[socket.socket]:
    """A listening socket as systemd holds it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(3)
        yield sock


def test_a_socket_of_systemd_is_served_and_its_file_stays(door: Door, theirs: socket.socket, path: Path) -> None:
    """The next process gets it too."""
    adopted = adopt([(theirs.dup().detach(), "echo.socket")])
    assert adopted.problems == []
    (listener,) = adopted.listeners
    assert (listener.url, listener.backlog, listener.file) == (f"unix:{path}", None, None)
    door.rig.listeners = Listeners(door.rig.parts, inherited=adopted.listeners)
    mode = permissions(path)
    door.serve("off", "0600")
    assert permissions(path) == mode
    door.connect(path)
    assert door.served() == [f"unix:{path}"]
    door.rig.listeners.close()
    assert path.is_socket()
    door.connect(path)


def test_an_abstract_socket_of_systemd_is_served(path: Path) -> None:
    """ListenStream=@name."""
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(f"\0{path}")
        theirs.listen()
        (listener,) = adopt([(theirs.dup().detach(), "echo.socket")]).listeners
        with listener.sock:
            assert listener.endpoint == Endpoint("unix", path=f"@{path}")
            assert not listener.sock.getblocking()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_another_kind_of_unix_socket_is_left_alone(kind: int) -> None:
    """ListenDatagram= and ListenSequentialPacket= with a path."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        assert unix_stream.adopt(sock) is None
    with socket.socket(socket.AF_INET) as sock:
        assert unix_stream.adopt(sock) is None


def test_a_unix_socket_that_does_not_listen_is_not_adopted() -> None:
    """With Accept=yes, systemd would hand over connections."""
    with (
        socket.socket(socket.AF_UNIX) as sock,
        pytest.raises(ValueError, match="does not listen: the socket unit needs Accept=no"),
    ):
        unix_stream.adopt(sock)
