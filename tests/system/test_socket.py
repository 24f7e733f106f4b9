"""echod.socket: systemd listens, and no restart refuses anybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.harness import read_all, read_exactly, send_all

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
