"""Unix sockets at real paths."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from echod import unix
from echod.errors import Refusal
from echod.unix import UnixSocket
from tests.support.harness import DEADLINE
from tests.support.in_process import descriptors, without_privileges

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


@contextlib.contextmanager
def opened(path: Path, *, make_directory: bool = False) -> Iterator[UnixSocket]:
    made = UnixSocket(path, "admin.socket", make_directory=make_directory)
    with made.sock:
        yield made
    made.close()


def refused(path: Path, *, make_directory: bool = False) -> tuple[str, int]:
    """Return the line and the exit code with which the path is refused."""
    with pytest.raises(Refusal) as caught:
        UnixSocket(path, "admin.socket", make_directory=make_directory)
    (line,) = caught.value.lines
    return line, caught.value.exit_code


def leave_stale(path: Path) -> None:
    """Leave the file of a socket on which nobody listens, as a killed process does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_its_url_is_one_printable_line() -> None:
    """For logs and terminals."""
    assert unix.url(Path("/a/b\n\x1b")) == "unix:/a/b\\u000a\\u001b"


# Listening


def test_a_client_can_connect(path: Path) -> None:
    """As soon as the object exists."""
    with opened(path) as made, unix.connect(path, DEADLINE) as client:
        assert made.url == f"unix:{path}"
        theirs, _ = made.sock.accept()
        with theirs:
            client.sendall(b"x")
            assert theirs.recv(1) == b"x"


def test_owner_and_group_may_connect(path: Path) -> None:
    """Nobody else, whatever the umask, which is restored."""
    before = os.umask(0)
    try:
        with opened(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_accept_does_not_block(path: Path) -> None:
    """A client may have gone since the loop was notified."""
    with opened(path) as made, pytest.raises(BlockingIOError):
        made.sock.accept()


def test_its_directory_is_made_on_request(tmp_path: Path) -> None:
    """For its owner alone; an existing one is left as it is."""
    path = tmp_path / "echod" / "admin.sock"
    for _ in range(2):
        with opened(path, make_directory=True):
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.parent.chmod(0o755)
    with opened(path, make_directory=True):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_a_stale_socket_is_replaced(path: Path) -> None:
    """A restart after a crash needs no help."""
    leave_stale(path)
    with opened(path):
        unix.connect(path, DEADLINE).close()


def test_a_live_socket_is_left_alone(path: Path) -> None:
    """Clients still reach it."""
    with opened(path) as made:
        line = f"echod: admin.socket: unix:{path}: address in use: another process listens there"
        assert refused(path) == (line, os.EX_UNAVAILABLE)
        while True:  # the attempt to connect is in the backlog
            try:
                made.sock.accept()[0].close()
            except BlockingIOError:
                break
        unix.connect(path, DEADLINE).close()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_live_socket_of_another_type_is_left_alone(path: Path, kind: int) -> None:
    """Such as /dev/log. The same message as for a stream socket."""
    with socket.socket(socket.AF_UNIX, kind) as theirs:
        theirs.bind(str(path))
        if kind == socket.SOCK_SEQPACKET:
            theirs.listen()
        line = f"echod: admin.socket: unix:{path}: address in use: another process listens there"
        assert refused(path) == (line, os.EX_UNAVAILABLE)
        assert path.is_socket()


def test_a_live_socket_with_a_full_backlog_is_left_alone(path: Path) -> None:
    """Its process is busy, not dead."""
    with opened(path) as made, contextlib.ExitStack() as clients:
        made.sock.listen(0)
        clients.enter_context(unix.connect(path, 0.0))
        with pytest.raises(TimeoutError):
            unix.connect(path, 0.0)
        assert refused(path)[1] == os.EX_UNAVAILABLE
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_a_file_that_is_not_a_socket_is_left_alone(path: Path, kind: str) -> None:
    """It may be somebody's data; also a symbolic link to a socket."""
    target = path.with_name("target")
    if kind == "file":
        path.write_text("data")
    elif kind == "directory":
        path.mkdir()
    else:
        leave_stale(target)
        path.symlink_to(target)
    line, code = refused(path)
    assert line == f"echod: admin.socket: unix:{path}: exists and is not a socket: remove it, or set another path"
    assert code == os.EX_CONFIG
    assert path.lstat()


def test_a_lack_of_permission_is_reported_with_the_remedy(path: Path) -> None:
    """With its own exit code."""
    path.parent.chmod(0)
    try:
        with without_privileges():
            line, code = refused(path)
    finally:
        path.parent.chmod(0o700)
    assert line == (
        f"echod: admin.socket: unix:{path}: no permission:"
        " set a path in a directory that echod may write to (RuntimeDirectory=, ReadWritePaths=)"
    )
    assert code == os.EX_NOPERM


@pytest.mark.parametrize("make_directory", [False, True])
def test_a_path_below_a_file_is_refused(path: Path, *, make_directory: bool) -> None:
    """With the system's error."""
    path.write_text("")
    below = path / "below" if make_directory else path
    line = f"echod: admin.socket: unix:{below / 'admin.sock'}: can't listen: Not a directory"
    assert refused(below / "admin.sock", make_directory=make_directory) == (line, os.EX_CONFIG)


def test_a_path_that_is_too_long_is_refused(path: Path) -> None:
    """$XDG_RUNTIME_DIR may have any length; the error is Python's."""
    long = path.with_name("x" * 200)
    assert refused(long)[0] == f"echod: admin.socket: unix:{long}: can't listen: AF_UNIX path too long"


def test_two_processes_do_not_remove_each_others_sockets(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that find a stale one, the second waits for the first; but not for long for a foreign lock."""
    monkeypatch.setattr(unix, "_ATTEMPTS", 2)
    leave_stale(path)
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with opened(path):
            assert path.is_socket()
        held = threading.Timer(0.05, fcntl.flock, (fd, fcntl.LOCK_UN))
        monkeypatch.setattr(unix, "_ATTEMPTS", 10_000)
        held.start()
        with opened(path):
            assert not held.is_alive() or held.finished.is_set()
        held.join(DEADLINE)
    finally:
        os.close(fd)


def test_a_file_system_without_locks_is_served(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock only decides between two daemons that start at the same moment."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with opened(path):
        unix.connect(path, 1).close()


def test_a_refusal_leaves_no_descriptor(path: Path) -> None:
    """However far it got."""
    before = descriptors()
    refused(path.with_name("x" * 200))
    with opened(path):
        refused(path)
    assert descriptors() == before


# Closing


def test_close_removes_the_path(path: Path) -> None:
    """Also if it was removed before, with its directory."""
    with opened(path):
        assert path.is_socket()
    assert not path.exists()
    with opened(path):
        path.unlink()
    made = path.with_name("echod") / "admin.sock"
    with opened(made, make_directory=True):
        made.unlink()
        made.parent.rmdir()


def test_close_leaves_the_socket_of_another_process(path: Path) -> None:
    """It has been put there after the first one was removed."""
    with opened(path):
        path.unlink()
        other = UnixSocket(path, "admin.socket", make_directory=False)
    with other.sock:
        unix.connect(path, DEADLINE).close()
    other.close()


# Connecting


def test_connect_raises_the_systems_error(path: Path) -> None:
    """The path is missing, or nobody listens."""
    with pytest.raises(FileNotFoundError):
        unix.connect(path, DEADLINE)
    leave_stale(path)
    with pytest.raises(ConnectionRefusedError):
        unix.connect(path, DEADLINE)


@pytest.mark.parametrize("timeout", [0.0, 0.05])
def test_connect_waits_for_room_in_a_full_backlog(path: Path, timeout: float) -> None:
    """Up to the timeout."""

    def accept() -> None:
        made.sock.accept()[0].close()

    with opened(path) as made:
        made.sock.listen(0)
        with unix.connect(path, DEADLINE):
            with pytest.raises(TimeoutError):
                unix.connect(path, timeout)
            accepting = threading.Timer(0.02, accept)
            accepting.start()
            unix.connect(path, DEADLINE).close()
            accepting.join()


def test_a_connection_has_the_timeout_of_connect(path: Path) -> None:
    """For what is sent and received on it."""
    with opened(path), unix.connect(path, 1.5) as client:
        assert client.gettimeout() == 1.5
