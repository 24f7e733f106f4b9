"""Addresses that the machine gets late, or loses: those of a standby, or of a network that comes up after the daemon."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import DEADLINE, Echod, command, read_all, send_all, until
from tests.support.link import SERVER, Network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

LATE = {"192.0.2.9": "192.0.2.9/32", "fd00::9": "fd00::9/128"}
"""Addresses, and their networks for ip(8)."""
PORT = 7007


@pytest.fixture
def network() -> Iterator[Network]:
    """A network of its own, for what this thread makes."""
    try:
        network = Network()
    except OSError as error:
        pytest.skip(f"needs root and ip (iproute2): {error}")
    with contextlib.closing(network), network.entered():
        network.run("ip", "address", "add", f"{SERVER}/32", "dev", "lo")
        yield network


def ip(*words: str) -> None:
    subprocess.run(["ip", *words, "dev", "lo"], check=True)  # noqa: S607 - root's PATH has it


def add(host: str) -> None:
    """Give this network the address, and wait until it can be used: with IPv6, the route takes a moment."""
    ip("address", "add", LATE[host], *(["nodad"] if ":" in host else []))
    until(lambda: has_route(host), what="a route")


def has_route(host: str) -> bool:
    try:
        socket.create_connection((host, PORT + 1), DEADLINE).close()  # on which nobody listens
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    raise AssertionError("somebody listens")


def config(*hosts: str, free_bind: bool = False) -> str:
    listed = ", ".join(f'"{host}"' for host in hosts)
    return f"[listen]\nhost = [{listed}]\nport = {PORT}\nfree_bind = {str(free_bind).lower()}\n"


def url(host: str) -> str:
    return f"tcp://[{host}]:{PORT}" if ":" in host else f"tcp://{host}:{PORT}"


def echo(host: str) -> bytes:
    with socket.create_connection((host, PORT), DEADLINE) as sock:
        send_all(sock, b"hello")
        return read_all(sock)


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("late", LATE)
def test_an_address_that_comes_late_is_served_when_it_comes(echod: Daemon, late: str) -> None:
    """What is there is served from the start. A listener outlives its address."""
    with echod(config(SERVER, late)) as daemon:
        assert daemon.wait_for("listener.missing")["listener"] == url(late)
        assert echo(SERVER) == b"hello"
        add(late)
        assert daemon.wait_for("listener.started", count=2)["listener"] == url(late)
        assert echo(late) == b"hello"
        ip("address", "delete", LATE[late])
        with pytest.raises(OSError, match=r"."):
            echo(late)
        assert daemon.reload(config(SERVER, late) + "backlog = 1024")["changed"] == []
        add(late)
        assert echo(late) == b"hello"
        assert len(daemon.events("listener.missing")) == 1
        assert daemon.events("listener.stopped") == []


@pytest.mark.usefixtures("network")
def test_an_interface_that_comes_late_is_served_when_it_comes(echod: Daemon) -> None:
    """Such as that of a VPN, with a link-local address; also each time that it is made anew. A name that is mistyped shows."""
    late = "fe80::9%late0"
    with echod(config(SERVER, late)) as daemon:
        assert 'this machine has no interface "late0"' in daemon.wait_for("config.warning")["message"]
        assert daemon.wait_for("listener.missing")["listener"] == url(late)
        assert echo(SERVER) == b"hello"
        pair = ["add", "late0", "type", "veth", "peer", "name", "other"]
        for count in (2, 3):
            for words in (pair, ["set", "dev", "other", "up"], ["set", "dev", "late0", "up"]):
                subprocess.run(["ip", "link", *words], check=True)  # noqa: S607
            subprocess.run(["ip", "address", "add", "fe80::9/64", "dev", "late0", "nodad"], check=True)  # noqa: S607
            assert daemon.wait_for("listener.started", count=count)["listener"] == url(late)
            assert echo(late) == b"hello"
            subprocess.run(["ip", "link", "delete", "late0"], check=True)  # noqa: S607
            assert daemon.wait_for("listener.missing", count=count)["listener"] == url(late)


@pytest.mark.usefixtures("network")
def test_without_any_address_it_starts_and_is_not_ready(echod: Daemon, tmp_path: Path) -> None:
    """Until one comes: one process, not one a second."""
    socket_of = ("--admin.socket", str(tmp_path / "admin.sock"))
    with echod(config(*LATE), flags=socket_of):
        assert command("ready", *socket_of).stderr == "echod: not ready: not listening\n"
        shown = command("status", *socket_of).stdout
        for late in LATE:
            assert f" {url(late)} missing: can't listen: Cannot assign requested address\n" in shown
        add("192.0.2.9")
        until(lambda: command("ready", *socket_of).returncode == 0, what="ready", interval=0.2)
        assert echo("192.0.2.9") == b"hello"


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("late", LATE)
def test_with_free_bind_an_address_is_served_at_the_moment_it_comes(echod: Daemon, late: str) -> None:
    """It is listened on from the start."""
    with echod(config(late, free_bind=True)) as daemon:
        assert daemon.wait_for("listener.started")["listener"] == url(late)
        add(late)
        assert echo(late) == b"hello"
        assert daemon.events("listener.missing") == []


@pytest.mark.usefixtures("network")
def test_an_address_that_comes_late_serves_metrics_too(echod: Daemon) -> None:
    """A daemon that was to answer there serves its clients meanwhile, and says so."""
    with echod(config(SERVER), flags=["--admin.http", "192.0.2.9:9107", "--admin.socket", "off"]) as daemon:
        message = "admin.http: http://192.0.2.9:9107: can't listen: Cannot assign requested address; it is tried again"
        assert daemon.wait_for("config.warning")["message"].startswith(message)
        assert echo(SERVER) == b"hello"
        add("192.0.2.9")
        assert daemon.wait_for("admin.started")["listener"] == "http://192.0.2.9:9107"
