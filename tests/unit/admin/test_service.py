"""The sockets on which the admin service answers."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from echod.admin.service import Admin
from echod.admin.status import Meter
from echod.config.settings import Admin as Settings
from echod.errors import Refusal
from echod.server.endpoint import Endpoint, Listener
from tests.support.fakes import has_ipv6
from tests.support.in_process import Client, Inside, descriptors, on_loop

if TYPE_CHECKING:
    from pathlib import Path

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


def settings(socket_path: Path | str = "off", http: str = "off", names: tuple[str, ...] = ()) -> Settings:
    return Settings(socket=str(socket_path), http=http, names=names)


def started(daemon: Inside) -> list[str]:
    """Return where it says that it answers."""
    return [line["listener"] for line in daemon.lines.events("admin.started")]


@on_loop
async def test_the_unix_socket_answers_everything(daemon: Inside, tmp_path: Path) -> None:
    """To owner and group, until it is closed; then it is gone."""
    path = tmp_path / "admin.sock"
    made = Admin(asyncio.get_running_loop(), daemon.running, settings(path))
    assert started(daemon) == [f"unix:{path}"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with Client(str(path)) as client:
        assert (await client.ask("/connections", host="evil.example")).json == []
        await made.close()
        assert await client.read() == b""
    assert not path.exists()


@on_loop
async def test_a_socket_that_it_has_closed_is_not_made_anew(daemon: Inside, tmp_path: Path) -> None:
    """The check of each second may come while clients are ended."""
    path = tmp_path / "admin.sock"
    made = Admin(asyncio.get_running_loop(), daemon.running, settings(path))
    closing = asyncio.create_task(made.close())
    await asyncio.sleep(0)
    made.check()
    await closing
    assert not path.exists()
    assert len(started(daemon)) == 1


@needs_ipv6
@on_loop
async def test_the_port_may_be_on_every_address_and_have_names(daemon: Inside) -> None:
    """IPv4 and IPv6; by these names alone, besides its own."""
    made = Admin(asyncio.get_running_loop(), daemon.running, settings(http="*:0", names=("Echod.example.net",)))
    (url,) = started(daemon)
    port = int(url.rpartition(":")[2])
    assert url == f"http://[::]:{port}"
    for address in ("127.0.0.1", "::1"):
        for name, status_ in (("echod.Example.net.:9107", 200), ("example.net", 421), ("x.echod.example.net", 421)):
            with Client((address, port)) as client:
                assert (await client.ask("/livez", host=name)).status == status_
    await made.close()


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=needs_ipv6)])
@on_loop
async def test_the_port_answers_what_may_be_read(daemon: Inside, host: str) -> None:
    """Under its address; the line says which port the kernel has chosen."""
    made = Admin(asyncio.get_running_loop(), daemon.running, settings(http=f"{host}:0"))
    (url,) = started(daemon)
    port = int(url.rpartition(":")[2])
    assert url == f"http://{host}:{port}"
    address = (host.strip("[]"), port)
    ours = f"{host}:{port}"
    for path, named, status_ in (("/livez", ours, 200), ("/connections", ours, 404), ("/livez", "evil.example", 421)):
        with Client(address) as client:
            assert (await client.ask(path, host=named)).status == status_
    with Client(address) as client:
        await made.close()
        assert await client.read_all() == b""


@on_loop
async def test_off_is_no_server(daemon: Inside) -> None:
    """Which can be closed too."""
    made = Admin(asyncio.get_running_loop(), daemon.running, settings())
    assert (made._servers, started(daemon)) == ([], [])
    await made.close()


@on_loop
async def test_if_one_can_not_listen_there_is_none(daemon: Inside, tmp_path: Path) -> None:
    """Neither a path nor a descriptor is left."""
    path = tmp_path / "admin.sock"
    before = descriptors()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Refusal) as caught:
            Admin(asyncio.get_running_loop(), daemon.running, settings(path, f"127.0.0.1:{port}"))
        assert caught.value.exit_code == os.EX_UNAVAILABLE
        with pytest.raises(Refusal):
            Admin(asyncio.get_running_loop(), daemon.running, settings("off", f"127.0.0.1:{port}"))
    assert not path.exists()
    assert descriptors() == before
    assert started(daemon) == []


@on_loop
async def test_an_address_that_is_missing_is_served_when_it_comes(
    daemon: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket answers meanwhile. Each reason that it is not there is one warning."""
    path = tmp_path / "admin.sock"
    with monkeypatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        def bind(self: socket.socket, address: object) -> None:
            if isinstance(address, tuple):
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
            super(other, self).bind(address)  # type: ignore[arg-type]

        other = type("OtherSocket", (socket.socket,), {"bind": bind})
        patch.setattr(socket, "socket", other)
        made = Admin(asyncio.get_running_loop(), daemon.running, settings(path, f"127.0.0.1:{port}"))
        for _ in range(3):
            made.check()
        patch.undo()
        for _ in range(3):
            made.check()
    url = f"http://127.0.0.1:{port}"
    again = "it is tried again each second"
    assert [line["message"] for line in daemon.lines.events("config.warning")] == [
        f"admin.http: {url}: can't listen: Cannot assign requested address; {again}",
        f"admin.http: {url}: address in use: choose another port (admin.http); {again}",
    ]
    assert started(daemon) == [f"unix:{path}"]
    for _ in range(2):
        made.check()
    assert started(daemon) == [f"unix:{path}", url]
    with Client(("127.0.0.1", port)) as client:
        assert (await client.ask("/livez", host="127.0.0.1")).status == 200
    await made.close()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox in which only Unix sockets can be made."""

    def create(self: socket.socket, family: int = -1, *arguments: int, **named: int) -> None:
        if family in (socket.AF_INET, socket.AF_INET6):
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        super(type(self), self).__init__(family, *arguments, **named)

    monkeypatch.setattr(socket, "socket", type("OtherSocket", (socket.socket,), {"__init__": create}))


@pytest.mark.usefixtures("no_network")
@on_loop
async def test_without_a_network_it_serves_on_inherited_sockets_and_says_what_it_does_not_serve(
    daemon: Inside, tmp_path: Path
) -> None:
    """Clients in the socket would hang, or be refused, for the sake of a page about them."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        listener = Listener(Endpoint("tcp", "127.0.0.1", 7), sock, "tcp://127.0.0.1:7", 7, inherited=True)
        daemon.running.server.listeners.inherited = [listener]
        made = Admin(asyncio.get_running_loop(), daemon.running, settings(path, "127.0.0.1:9107"))
    assert started(daemon) == [f"unix:{path}"]
    (line,) = daemon.lines.events("config.warning")
    assert line["message"].startswith("admin.http: http://127.0.0.1:9107: can't listen: no such sockets here")
    assert line["message"].endswith("in the unit forbids them: it is not served")
    await made.close()


@on_loop
async def test_with_inherited_sockets_a_port_that_is_taken_keeps_no_client_waiting(daemon: Inside) -> None:
    """It may be the very port of the socket unit, which would never become free."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        url = f"tcp://127.0.0.1:{port}"
        listener = Listener(Endpoint("tcp", "127.0.0.1", port), sock, url, 7, inherited=True)
        daemon.running.server.listeners.inherited = [listener]
        made = Admin(asyncio.get_running_loop(), daemon.running, settings(http=f"127.0.0.1:{port}"))
    (line,) = daemon.lines.events("config.warning")
    assert line["message"].startswith(f"admin.http: http://127.0.0.1:{port}: address in use")
    assert line["message"].endswith(": it is not served")
    await made.close()


@pytest.mark.usefixtures("no_network")
@on_loop
async def test_without_a_network_and_inherited_sockets_it_is_refused(daemon: Inside) -> None:
    """As a fault of the configuration, with 78."""
    with pytest.raises(Refusal) as caught:
        Admin(asyncio.get_running_loop(), daemon.running, settings(http="127.0.0.1:9107"))
    assert caught.value.exit_code == os.EX_CONFIG
    assert daemon.lines.events("config.warning") == []


@on_loop
async def test_a_socket_that_was_named_and_can_not_be_is_refused(daemon: Inside, tmp_path: Path) -> None:
    """Who wrote it down waits for it."""
    path = tmp_path / "admin.sock"
    path.write_text("data")
    with pytest.raises(Refusal):
        Admin(asyncio.get_running_loop(), daemon.running, settings(path))
    assert path.read_text() == "data"


@on_loop
async def test_a_socket_that_nobody_named_and_can_not_be_is_a_warning(
    daemon: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second daemon on a desk goes on without, and leaves the first one's where it is."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    first = Admin(asyncio.get_running_loop(), daemon.running, settings("auto"))
    path = tmp_path / "echod" / "admin.sock"
    assert started(daemon) == [f"unix:{path}"]
    second = Admin(asyncio.get_running_loop(), daemon.running, settings("auto"))
    (line,) = daemon.lines.events("config.warning")
    reason = "address in use: another process listens there; the daemon goes on without an admin socket"
    assert line["message"] == f"admin.socket: unix:{path}: {reason}"
    await second.close()
    assert path.is_socket()
    await first.close()
    assert not path.exists()


# A socket that goes away


async def answers(path: Path) -> bool:
    with Client(str(path)) as client:
        return (await client.ask("/livez")).status == 200


@pytest.mark.parametrize("what", ["check", "reopen"])
@on_loop
async def test_a_socket_that_was_removed_is_made_anew(
    daemon: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """With its directory, if the path is ours to choose. No descriptor is lost."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = tmp_path / "echod" / "admin.sock"
    before = descriptors()
    made = Admin(asyncio.get_running_loop(), daemon.running, settings("auto"))
    assert await answers(path)
    getattr(made, what)()
    shutil.rmtree(path.parent)
    getattr(made, what)()
    assert await answers(path)
    assert started(daemon) == [f"unix:{path}"] * 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await made.close()
    assert not path.exists()
    assert descriptors() == before


@on_loop
async def test_a_socket_that_can_not_be_made_anew_is_one_warning(
    daemon: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last session of its user has ended; when the next one begins, the daemon can be reached again."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    path = tmp_path / "user" / "echod" / "admin.sock"
    made = Admin(asyncio.get_running_loop(), daemon.running, settings("auto"))
    shutil.rmtree(tmp_path / "user")
    for _ in range(3):
        made.check()
    message = f"admin.socket: unix:{path}: can't listen: its directory does not exist; the daemon's own socket is gone"
    assert [line["message"] for line in daemon.lines.events("config.warning")] == [message]
    made.reopen()  # somebody has asked for it
    assert len(daemon.lines.events("config.warning")) == 2
    (tmp_path / "user").mkdir()
    made.check()
    assert await answers(path)
    await made.close()


@on_loop
async def test_the_socket_of_somebody_else_in_its_place_is_left_alone(daemon: Inside, tmp_path: Path) -> None:
    """One warning says so, and another one at a reload. If it is stale, it is replaced."""
    path = tmp_path / "admin.sock"
    made = Admin(asyncio.get_running_loop(), daemon.running, settings(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        for look in (made.check, made.check, made.reopen):
            look()
        message = (
            f"admin.socket: unix:{path}: address in use: another process listens there; the daemon's own socket is gone"
        )
        assert [line["message"] for line in daemon.lines.events("config.warning")] == [message] * 2
        assert len(started(daemon)) == 1
    made.check()
    assert await answers(path)
    await made.close()


@on_loop
async def test_counts_are_taken_when_it_is_time(
    daemon: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that rates are known to the first who asks. A stop does not wait for it."""
    measured: list[str] = []

    async def measure(_: Meter) -> None:
        measured.append("begun")
        await asyncio.sleep(0)
        measured.append("done")

    monkeypatch.setattr(Meter, "measure", measure)
    made = Admin(asyncio.get_running_loop(), daemon.running, settings(tmp_path / "admin.sock"))
    made.check()
    await asyncio.sleep(0)
    assert measured == []
    monkeypatch.setattr(Meter, "UNWATCHED", 0.0)
    made.check()
    await asyncio.sleep(0)
    assert measured == ["begun"]
    await made.close()
    await asyncio.sleep(0.01)
    assert measured == ["begun"]
