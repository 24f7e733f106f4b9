"""The key of TLS as a credential of systemd, as docs/tls.md has it."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import guides
from tests.support.certificates import choose_group, client_context, pem_file
from tests.support.harness import DEADLINE, LOCAL

if TYPE_CHECKING:
    from tests.system.machine import Machine

GUIDE = guides.ROOT / "docs/tls.md"
LIVE = "/etc/letsencrypt/live/echo.example"
NAMES = ("fullchain.pem", "privkey.pem")


def renew(machine: Machine) -> None:
    """Write a certificate and its key, which only root can read."""
    text = Path(pem_file.__wrapped__()).read_text()
    machine.run(f"mkdir -p {LIVE} && chmod 700 {LIVE} /etc/letsencrypt /etc/letsencrypt/live")
    key = text.index("-----BEGIN EC PRIVATE KEY" if "EC PRIVATE" in text else "-----BEGIN PRIVATE KEY")
    for name, part in zip(NAMES, (text[:key], text[key:]), strict=True):
        machine.run(f"install -m 600 /dev/null {LIVE}/{name}")
        machine.write(f"{LIVE}/{name}", part)


def serial(machine: Machine) -> str:
    """Return the number of the certificate that a client sees, whose bytes come back."""

    def connect() -> str:
        raw = socket.create_connection((LOCAL, 7443), DEADLINE)
        with raw, client_context().wrap_socket(raw, server_hostname="localhost") as client:
            client.sendall(b"hi")
            assert client.recv(2) == b"hi"
            certificate: Any = client.getpeercert()
            return str(certificate["serialNumber"])

    return machine.inside(connect)


def chosen_group_is_refused(machine: Machine, group: str) -> bool:
    """Return whether a client that insists on this key exchange is refused."""

    def connect() -> bool:
        context = client_context()
        choose_group(context, group)
        try:
            with context.wrap_socket(socket.create_connection((LOCAL, 7443), DEADLINE), server_hostname="localhost"):
                return False
        except ssl.SSLError as error:
            return "HANDSHAKE_FAILURE" in str(error)

    return machine.inside(connect)


def test_the_key_is_a_credential_that_a_restart_reads_again(machine: Machine) -> None:
    """Nobody but root can read the files, and nobody but the service the copies. A reload finds the copies unchanged."""
    (unit,) = [block for block in guides.blocks(GUIDE, "ini") if "LoadCredential=" in block and "Refresh" not in block]
    (settings,) = [block for block in guides.blocks(GUIDE, "toml") if "/run/credentials" in block]
    renew(machine)
    machine.edit("echod.service", unit)
    machine.configure(settings)
    machine.run("systemctl start echod")
    first = serial(machine)
    # The sandbox of the unit (MemoryDenyWriteExecute=) does not keep echod from calling OpenSSL.
    assert chosen_group_is_refused(machine, "ffdhe8192")
    assert not chosen_group_is_refused(machine, "P-384")
    assert machine.shell("setpriv --reuid=nobody --clear-groups ls /run/credentials/echod.service/").returncode != 0
    renew(machine)
    machine.run("systemctl reload echod")
    assert serial(machine) == first
    machine.run("systemctl restart echod")
    assert serial(machine) != first
    machine.run("systemctl stop echod && rm -r /etc/letsencrypt")
