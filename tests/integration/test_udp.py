"""Echo over UDP, by the real process."""

from __future__ import annotations

import json
import select
from typing import TYPE_CHECKING

import pytest

from tests.support.datagrams import client
from tests.support.harness import LOCAL, Echod, command

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow


def port(daemon: Echod, count: int = 2) -> int:
    """Return the port of UDP, which is in this line about a listener."""
    url = daemon.wait_for("listener.started", count=count)["listener"]
    assert url.startswith("udp://")
    return int(url.rpartition(":")[2])


def asked(sock: socket.socket, data: bytes, to: tuple[str, int]) -> tuple[bytes, tuple[str, int]]:
    """Send; return the answer, and where it comes from."""
    sock.sendto(data, to)
    answer, source = sock.recvfrom(1 << 16)
    return answer, source[:2]


def test_a_datagram_comes_back_from_where_it_was_sent_to(echod: Daemon, tmp_path: Path) -> None:
    """Beside TCP, on every address; a reload moves the port and changes the rates."""
    listen = "[listen]\nhost = '*'\nport = 0\n"
    where = ["--admin.socket", str(tmp_path / "admin.sock")]
    with echod(f"{listen}[udp]\nport = 0", flags=where) as daemon, client() as sock:
        first = port(daemon)
        for address in (LOCAL, "127.0.0.5"):
            for data in (b"", b"hi", bytes(1472)):
                assert asked(sock, data, (address, first)) == (data, (address, first))
        assert daemon.echo(b"over TCP") == b"over TCP"
        assert daemon.reload(f"{listen}[udp]\nport = 0\nrate = '3/s'\nmax_size = 5")["changed"] == [
            "udp.rate",
            "udp.max_size",
        ]
        sock.sendto(b"larger", (LOCAL, first))
        for number in range(30):
            sock.sendto(b"%d" % number, (LOCAL, first))
        line = daemon.wait_for("udp.dropped")
        assert set(line["reasons"]) <= {"too_large", "rate"}
        answer = json.loads(command("status", "--json", *where).stdout)["udp"]
        assert answer["datagrams"]["too_large"] == 1
        assert answer["datagrams"]["rate"] >= 20
        assert answer["bytes_sent"] < answer["bytes_received"]
        daemon.reload(f"{listen}[udp]\nport = 'off'")
        assert daemon.wait_for("listener.stopped")["listener"] == f"udp://[::]:{first}"
        daemon.reload(f"{listen}[udp]\nport = 0")
        second = port(daemon, 3)
        with client("127.0.0.7") as other:
            assert asked(other, b"moved", (LOCAL, second)) == (b"moved", (LOCAL, second))
        (warning,) = daemon.events("config.warning")
        assert warning["message"].endswith(": udp.port: lets in more clients than before: also answers UDP")


def test_the_rules_of_access_hold_for_datagrams(echod: Daemon) -> None:
    """Who may not connect gets no answer."""
    with echod("[access]\ndeny = ['127.0.0.9']", flags=["--udp.port", "0"]) as daemon:
        with client("127.0.0.9") as denied, client() as sock:
            denied.sendto(b"x", (LOCAL, port(daemon)))
            assert asked(sock, b"y", (LOCAL, port(daemon)))[0] == b"y"
            assert not select.select([denied], [], [], 0)[0]
        assert daemon.wait_for("udp.dropped")["reasons"] == {"denied": 1}


@pytest.mark.parametrize("flags", [[], ["--listen.host", "127.0.0.1,127.0.0.2"]])
def test_a_port_of_udp_that_is_taken_is_69(flags: list[str]) -> None:
    """One line says how to choose another."""
    with client() as taken:
        number = taken.getsockname()[1]
        words = ["--listen.host", LOCAL, "--listen.port", "0", "--udp.port", str(number), *flags]
        done = command("run", *words, env={"ECHOD_ADMIN__SOCKET": "off"})
    line = f"echod: udp://{LOCAL}:{number}: address in use: choose another port (udp.port)\n"
    assert (done.returncode, done.stderr) == (69, line)
