"""echod.socket: systemd listens, and no restart refuses anybody."""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support import guides
from tests.support.harness import DEADLINE, read_all, read_exactly, send_all, until

if TYPE_CHECKING:
    from tests.system.machine import Machine


def narrow(machine: Machine) -> None:
    """Take away from the service what it does not need with the socket."""
    machine.run("install -D -m 644 /usr/share/echod/socket-activated.conf -t /etc/systemd/system/echod.service.d/")
    machine.run("systemctl daemon-reload")


def test_the_first_client_starts_it(machine: Machine) -> None:
    """And is served; a line says that `[listen]` is not bound."""
    machine.run("systemctl start echod.socket")
    assert machine.state("echod") == "inactive"
    assert machine.echo(7) == b"hi\n"
    assert machine.state("echod") == "active"
    (line,) = machine.wait_for("echod", "listener.inherited")
    assert line["names"] == ["echod.socket"]
    (line,) = machine.wait_for("echod", "listener.started")
    assert (line["listener"], line["backlog"]) == ("tcp://[::]:7", 4096)


def test_it_serves_without_any_capability_and_without_a_network(machine: Machine) -> None:
    """With the drop-in: what it was handed is all it has. It can be asked and reloaded as ever."""
    narrow(machine)
    machine.run("systemctl start echod.socket")
    assert machine.echo(7) == b"hi\n"
    lines = machine.read(f"/proc/{machine.pid('echod')}/status").splitlines()
    capabilities = {line.split()[0]: int(line.split()[1], 16) for line in lines if line.startswith("Cap")}
    assert set(capabilities.values()) == {0}
    assert machine.run("echod status --json | jq -r .pool.size") == "1024\n"
    machine.run("systemctl reload echod")


def test_narrow_it_has_its_socket_however_it_is_started(machine: Machine) -> None:
    """Also by its own name: it comes with the socket, without which it could bind nothing."""
    narrow(machine)
    machine.run("systemctl start echod")
    assert machine.state("echod.socket") == "active"
    assert machine.echo(7) == b"hi\n"


def test_a_restart_refuses_nobody(machine: Machine) -> None:
    """Who is connected finishes; who comes meanwhile waits, and is served by the next process."""
    machine.run("systemctl start echod.socket")
    with machine.connect(7) as old:
        old.sendall(b"a")
        assert read_exactly(old, 1) == b"a"
        pid = machine.pid("echod")
        machine.run("systemctl restart --no-block echod")
        machine.wait_for("echod", "listener.stopped")
        with machine.connect(7) as between:
            send_all(old, b"b")
            assert read_all(old) == b"b"
            send_all(between, b"c")
            assert read_all(between) == b"c"
    assert machine.pid("echod") not in (0, pid)


def test_the_port_of_the_file_does_not_count(machine: Machine) -> None:
    """Nor when it changes with a reload: a line says so."""
    machine.run("systemctl start echod.socket")
    assert machine.echo(7) == b"hi\n"
    machine.run("sed -i 's/^port = 7$/port = 77/' /etc/echod/echod.toml && systemctl reload echod")
    assert not machine.answers(77)
    assert machine.echo(7) == b"hi\n"
    assert machine.wait_for("echod", "config.warning")


GUIDE = guides.ROOT / "docs/operations.md"


def test_another_port_as_the_guide_has_it(machine: Machine) -> None:
    """What it says to add, and to type; and the old port is free."""
    machine.run("systemctl start echod.socket")
    assert machine.echo(7) == b"hi\n"
    (addition,) = [block for block in guides.blocks(GUIDE, "ini") if "ListenStream=" in block]
    typed = [command.text for command in guides.commands(GUIDE)]
    first = typed.index("systemctl stop echod.socket echod.service")
    machine.edit("echod.socket", addition)
    for command in typed[first : first + 2]:
        machine.run(command)
    assert machine.echo(7007) == b"hi\n"
    assert not machine.answers(7)
    assert [line["listener"] for line in machine.events("echod", "listener.started")][-1] == "tcp://[::]:7007"


@pytest.mark.parametrize(
    ("settings", "listeners"),
    [
        ("ListenStream=127.0.0.1:7", ["tcp://127.0.0.1:7"]),
        ("ListenStream=127.0.0.1:7\nListenStream=127.0.0.1:77", ["tcp://127.0.0.1:7", "tcp://127.0.0.1:77"]),
        (
            "ListenStream=0.0.0.0:7\nListenStream=[::]:7\nBindIPv6Only=ipv6-only",
            ["tcp://0.0.0.0:7", "tcp://[::]:7"],
        ),
        (
            "ListenStream=127.0.0.1:7\nListenStream=192.0.2.1:7\nFreeBind=yes",
            ["tcp://127.0.0.1:7", "tcp://192.0.2.1:7"],
        ),
    ],
)
def test_other_addresses_as_the_guide_has_them(machine: Machine, settings: str, listeners: list[str]) -> None:
    machine.edit("echod.socket", f"[Socket]\nListenStream=\n{settings}\n")
    machine.run("systemctl start echod.socket")
    assert machine.echo(7) == b"hi\n"
    assert [line["listener"] for line in machine.wait_for("echod", "listener.started", len(listeners))] == listeners


def test_a_unit_with_unix_sockets_is_served_on_them(machine: Machine) -> None:
    """At a path and by an abstract name, also by a service that has no network. The file is systemd's, and outlives a stop."""
    narrow(machine)
    machine.edit(
        "echod.socket", "[Socket]\nListenStream=\nListenStream=/run/echo.sock\nListenStream=@echo\nSocketMode=0600\n"
    )
    machine.run("systemctl start echod.socket")
    for address in (f"/proc/{machine.init}/root/run/echo.sock", "\0echo"):
        assert machine.inside(functools.partial(echo_by, address)) == b"hi\n"
    lines = machine.wait_for("echod", "listener.started", 2)
    assert [line["listener"] for line in lines] == ["unix:/run/echo.sock", "unix:@echo"]
    assert machine.run("stat --format %a /run/echo.sock") == "600\n"
    machine.run("systemctl stop echod")
    assert machine.run("stat --format %a /run/echo.sock") == "600\n"


def echo_by(address: str) -> bytes:
    """Send and half-close at a Unix socket; return all that came back."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(address)
        send_all(sock, b"hi\n")
        return read_all(sock)


def test_a_unit_with_udp_is_answered(machine: Machine) -> None:
    """With the line that the unit shows, by a service that has no network; also the datagram that starts it."""
    narrow(machine)
    (line,) = [line[1:] for line in machine.read("/lib/systemd/system/echod.socket").splitlines() if "#Listen" in line]
    machine.edit("echod.socket", f"[Socket]\n{line}\n")
    machine.run("systemctl start echod.socket")
    assert machine.inside(ask_by_udp) == (b"hi\n", ("127.0.0.2", 7))
    assert machine.echo(7) == b"hi\n"
    lines = machine.wait_for("echod", "listener.started", 2)
    assert sorted(line["listener"] for line in lines) == ["tcp://[::]:7", "udp://[::]:7"]


def ask_by_udp() -> tuple[bytes, tuple[str, int]]:
    """Return the answer to a datagram, and where it comes from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.sendto(b"hi\n", ("127.0.0.2", 7))
        return sock.recvfrom(9)


def test_a_unit_with_other_sockets_is_served_over_tcp(machine: Machine) -> None:
    """Each of the others is named; nothing is started again."""
    machine.edit(
        "echod.socket",
        "[Socket]\nListenDatagram=/run/echod-test.datagram\nListenSequentialPacket=/run/echod-test.sock\nListenFIFO=/run/fifo\n",
    )
    machine.run("systemctl start echod.socket")
    assert machine.echo(7) == b"hi\n"
    messages = [line["message"] for line in machine.wait_for("echod", "config.warning", 3)]
    for what in (
        "unix:/run/echod-test.datagram is not served",
        "unix:/run/echod-test.sock is not served",
        "it is no socket",
    ):
        assert [message for message in messages if what in message]
    assert machine.show("echod", "ActiveState", "NRestarts") == ["active", "0"]


def test_a_unit_without_a_socket_for_it_fails_for_good(machine: Machine) -> None:
    """With one line for the socket. What keeps on coming starts it again, until systemd has enough of that."""
    machine.edit("echod.socket", "[Socket]\nListenStream=\nListenDatagram=/run/echo.datagram\n")
    machine.run("systemctl start echod.socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", f"/proc/{machine.init}/root/run/echo.datagram")
    until(lambda: machine.state("echod.socket") == "failed", what="the end", deadline=5 * DEADLINE, interval=0.5)
    assert machine.show("echod", "ActiveState", "NRestarts") == ["failed", "0"]
    said = [line for line in machine.journal("echod", "-p err") if "unix:/run/echo.datagram is not served" in line]
    assert said
    print(f"a socket unit with another socket alone: {len(said)} starts")  # noqa: T201 - a figure


def test_a_wrapper_without_exec_leads_to_a_hint(machine: Machine) -> None:
    """systemd has handed the socket to the wrapper; with exec, it serves."""
    wrapped = "[Service]\nExecStart=\nExecStart=/bin/sh -c '{}'\n"
    machine.edit("echod.service", wrapped.format("/usr/bin/echod run; exit $?"))
    machine.run("systemctl start echod.socket; systemctl start --no-block echod")
    until(
        lambda: any("a wrapper has to start echod with exec" in line for line in machine.journal("echod", "-p err")),
        what="the hint",
        interval=0.2,
    )
    machine.run("systemctl stop echod.socket echod")
    machine.edit("echod.service", wrapped.format("exec /usr/bin/echod run"))
    machine.run("systemctl start echod.socket")
    assert machine.echo(7) == b"hi\n"


def test_narrow_it_serves_without_http_and_says_so(machine: Machine) -> None:
    """`admin.http` needs a network, which the drop-in takes away. Clients are served at once, and by the first start."""
    narrow(machine)
    machine.run('sed -i \'s/^http = "off"$/http = "127.0.0.1:9107"/\' /etc/echod/echod.toml')
    machine.run("systemctl start echod.socket")
    assert machine.echo(7) == b"hi\n"
    (line,) = machine.wait_for("echod", "config.warning")
    assert line["message"].startswith("admin.http: http://127.0.0.1:9107: can't listen: no such sockets here")
    assert machine.show("echod", "ActiveState", "NRestarts") == ["active", "0"]
    assert machine.run("echod status --json | jq -r .pool.size") == "1024\n"


def test_a_reload_answers_that_the_port_of_the_file_does_not_count(machine: Machine) -> None:
    """The one that types it sees it, without looking into the log."""
    machine.run("systemctl start echod.socket")
    assert machine.echo(7) == b"hi\n"
    machine.run("sed -i 's/^port = 7$/port = 77/' /etc/echod/echod.toml")
    answer = machine.shell("echod reload")
    assert answer.returncode == 0
    assert "[listen] is not bound: the sockets come from systemd" in answer.stdout + answer.stderr
