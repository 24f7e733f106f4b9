"""Things that go away while the daemon runs: its admin socket, its working directory, its program files."""

from __future__ import annotations

import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.bystander import unharmed
from tests.support.harness import Echod, command, read_exactly, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow


def reached(**env: str) -> bool:
    return command("status", env=env).returncode == 0


def test_a_user_who_logs_in_again_reaches_the_daemon(echod: Daemon, tmp_path: Path) -> None:
    """The end of a session removes $XDG_RUNTIME_DIR, which is all that led there; the next one makes it anew."""
    runtime = tmp_path / "user"
    runtime.mkdir()
    env = {"XDG_RUNTIME_DIR": str(runtime)}
    with echod(env=env) as daemon, unharmed(daemon):
        assert reached(**env)
        shutil.rmtree(runtime)
        until(lambda: daemon.events("config.warning"), what="a warning")
        runtime.mkdir()
        until(lambda: reached(**env), what="the socket")
        assert len(daemon.events("config.warning")) == 1
        assert len(daemon.events("admin.started")) == 2


def test_a_reload_makes_a_lost_socket_anew_at_once(echod: Daemon, tmp_path: Path) -> None:
    admin = ("--admin.socket", str(tmp_path / "admin.sock"))
    with echod("[pool]\nsize = 2", flags=admin) as daemon:
        (tmp_path / "admin.sock").unlink()
        daemon.reload("[pool]\nsize = 3")
        assert command("status", *admin).returncode == 0


def test_without_its_working_directory_it_goes_on(echod: Daemon, tmp_path: Path) -> None:
    """It was started in one that somebody has removed since."""
    directory = tmp_path / "here"
    directory.mkdir()
    with echod("[pool]\nsize = 2", prefix=("sh", "-c", f'cd {directory} && exec "$@"', "sh")) as daemon:
        directory.rmdir()
        assert daemon.echo(b"there") == b"there"
        assert daemon.reload("[pool]\nsize = 3")["changed"] == ["pool.size"]


def test_nothing_is_imported_once_it_serves(echod: Daemon, tmp_path: Path) -> None:
    """An upgrade replaces its files while it runs: a module of the next version must not get into this process."""
    imports = tmp_path / "imports"
    admin = ("--admin.socket", str(tmp_path / "admin.sock"))
    prefix = ("sh", "-c", f'exec "$@" 2>{imports}', "sh")
    with echod("[pool]\nsize = 2", flags=admin, prefix=prefix, env={"PYTHONPROFILEIMPORTTIME": "1"}) as daemon:
        until(lambda: command("status", *admin).returncode == 0, what="the admin socket")
        before = imports.read_text()
        assert "echod.admin.metrics" in before
        with daemon.connect() as sock:
            sock.sendall(b"x")
            assert read_exactly(sock, 1) == b"x"
            assert command("connections", *admin).returncode == 0
            assert command("kill", "1", *admin).returncode == 0
        for accept in ("application/openmetrics-text", "text/plain"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "admin.sock"))
                client.sendall(f"GET /metrics HTTP/1.0\r\nAccept: {accept}\r\n\r\n".encode())
                assert client.recv(1 << 16)
        for config in (
            "[pool]\nsize = 3",
            "[pool]\nsize = 'x'\nsizee = 1",
            "[pool",
            "[access]\nallow = ['10.0.0.0/8']",
        ):
            daemon.reload(config)
        daemon.stop()
        assert imports.read_text()[len(before) :] == ""
