"""Two daemons want one port. That of the admin socket, and the plain case, are among the integration tests."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import LOCAL, Echod, command, opened, reserved_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow


def config(port: int, *, shared: bool) -> str:
    return f"[listen]\nhost = '{LOCAL}'\nport = {port}\nreuse_port = {str(shared).lower()}"


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_is_shared_by_two_who_want_to_share_it(echod: Daemon, tmp_path: Path, *, shared: bool) -> None:
    """If only one of them does, the second is refused with 69 and one line; the first goes on."""
    with reserved_port() as port, echod(config(port, shared=shared)) as daemon:
        second = tmp_path / "second.toml"
        second.write_text(config(port, shared=not shared))
        done = command("run", "-c", str(second))
        assert done.returncode == os.EX_UNAVAILABLE
        assert done.stderr == f"echod: tcp://{LOCAL}:{port}: address in use: choose another port (listen.port, -p)\n"
        assert done.stdout == ""
        assert daemon.echo(b"there") == b"there"


def test_of_two_who_share_a_port_each_gets_clients(tmp_path: Path) -> None:
    """The kernel spreads them; when one stops, the other serves on."""
    with contextlib.ExitStack() as stack:
        daemons = []
        port = stack.enter_context(reserved_port())
        for name in ("one", "two"):
            directory = tmp_path / name
            directory.mkdir()
            daemons.append(stack.enter_context(Echod(config(port, shared=True), directory=directory)))
        for _ in range(200):
            assert daemons[0].echo(b"to whom?") == b"to whom?"
            if all(daemon.events("connection.opened") for daemon in daemons):
                break
        else:
            pytest.fail("all 200 went to one of them")
        assert daemons[0].stop() == 0
        for _ in range(20):
            assert daemons[1].echo(b"left") == b"left"


def test_a_port_that_becomes_free_during_the_start_is_taken(tmp_path: Path) -> None:
    """Whoever had it is gone before the daemon has read its configuration: it asks for the port but once, and gets it."""
    os.mkfifo(tmp_path / "echod.toml")
    with socket.create_server((LOCAL, 0)) as other:
        port = other.getsockname()[1]
        daemon = Echod(directory=tmp_path, env={"ECHOD_LISTEN__PORT": str(port)})
        with opened(tmp_path / "echod.toml"):
            other.close()
    with daemon:
        assert daemon.port == port
        assert daemon.echo(b"there") == b"there"
