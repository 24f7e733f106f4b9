"""Clients that send and do not read, or late, or little: bounded memory, no harm to others, and an end."""

from __future__ import annotations

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from echod.config import checks
from tests.support.bystander import unharmed
from tests.support.certificates import client_context, pem_file
from tests.support.clients import CHUNK, deaf, fill, finish, run, streams
from tests.support.harness import DEADLINE, LOCAL, Echod, read_exactly, until

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    Daemon = Callable[..., Echod]

CLIENTS = 200
OVERHEAD = 8 << 10
"""Bytes that a connection takes besides what it has read."""
TLS_CLIENTS = 30
IDLE_TLS, USED_TLS = 20_000, 36_000
"""Bytes that a connection with TLS takes before its first message, and between large ones."""
JUMBO = 8960
"""A segment size of a real network with which each worker comes to hold a large chunk."""


@pytest.mark.slow
@pytest.mark.parametrize(("buffer", "most"), [("auto", CHUNK), ("32Ki", 2 * 32768 + OVERHEAD)])
def test_200_clients_that_never_read_cost_little_and_end(echod: Daemon, buffer: str, most: int) -> None:
    """Resident memory grows by less than a read per worker, others are served as before, all end by the timeout.

    A read is at most twice the receive buffer.
    """
    most *= CLIENTS
    config = f'[timeouts]\nwrite = "2s"\n[pool]\nsize = {CLIENTS + 2}'
    with echod(config, flags=["--listen.receive_buffer", buffer]) as daemon:
        assert daemon.echo(bytes(1 << 20)) == bytes(1 << 20)  # what the first connection costs once
        before = peak = daemon.memory()

        def over() -> bool:
            nonlocal peak
            peak = max(peak, daemon.memory())
            return flooding.done()

        with (
            unharmed(daemon, memory=most),
            streams(CLIENTS, lambda: deaf(daemon, JUMBO)) as clients,
            ThreadPoolExecutor(1) as threads,
        ):
            flooding = threads.submit(run, clients, reading=False, writing=True)
            until(over, what="the end of all")
            flooding.result()
            ended = [daemon.closed(client.sock) for client in clients]
        assert peak - before < most
        assert {line["reason"] for line in ended} == {"write_timeout"}
        assert all(line["bytes_received"] > line["bytes_sent"] > 0 for line in ended)
        with contextlib.ExitStack() as stack:  # the workers are back
            for sock in [stack.enter_context(daemon.connect()) for _ in range(CLIENTS + 2)]:
                sock.sendall(b"here")
                assert read_exactly(sock, 4) == b"here"
        assert daemon.events("connection.rejected") == []


def use(client: ssl.SSLSocket) -> None:
    """Send and read large messages."""
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(client.sendall, bytes(200_000))
        left = 200_000
        while left:
            left -= len(client.recv(1 << 16))
        sending.result()


def stall(client: ssl.SSLSocket) -> None:
    """Send as much as goes, and read nothing."""
    client.settimeout(0.05)
    with contextlib.suppress(TimeoutError):
        while True:
            client.sendall(bytes(1 << 14))


@pytest.mark.slow
def test_tls_connections_cost_little_idle_used_and_stalled(echod: Daemon) -> None:
    """Nothing of what a connection has carried stays but the buffers of OpenSSL; a stalled one has a read besides."""
    listen = f"[listen]\nhost = '{LOCAL}'\nport = 0\nreceive_buffer = '32Ki'\n"
    with (
        echod(f"{listen}[tls]\nport = 0\ncertificate = '{pem_file()}'\n") as daemon,
        contextlib.ExitStack() as stack,
    ):
        context = client_context()
        port = int(daemon.wait_for("listener.started", count=2)["listener"].rpartition(":")[2])

        def connect() -> ssl.SSLSocket:
            raw = stack.enter_context(socket.create_connection((LOCAL, port), DEADLINE))
            return stack.enter_context(context.wrap_socket(raw, server_hostname="localhost"))

        for _ in range(10):  # what the first connections cost once
            use(connect())
        daemon.wait_for("connection.opened", count=10)  # lines that wait take memory too
        before = daemon.memory()
        clients = [connect() for _ in range(TLS_CLIENTS)]
        daemon.wait_for("connection.opened", count=10 + TLS_CLIENTS)

        def cost() -> float:
            return (daemon.memory() - before) / TLS_CLIENTS

        assert cost() < IDLE_TLS
        for client in clients:
            use(client)
        until(lambda: cost() < USED_TLS, what="little memory after use")
        for client in clients:
            stall(client)
        assert cost() < 2 * 32768 + checks.OVERHEAD + checks.TLS_OVERHEAD


@pytest.mark.slow
def test_readers_that_wake_up_in_time_get_everything(echod: Daemon) -> None:
    """Echo that was stuck for 10 seconds, with a longer timeout, comes whole once they read."""
    with echod('[timeouts]\nwrite = "1m"\nidle = "1m"') as daemon:
        with unharmed(daemon), streams(50, lambda: deaf(daemon)) as clients:
            fill(clients)
            time.sleep(10)  # how long they sleep is what is tested
            lines = finish(daemon, clients)
        assert all(line["duration"] > 10 for line in lines)


@pytest.mark.slow
def test_readers_of_a_byte_a_second_are_too_slow(echod: Daemon) -> None:
    """Their kernels don't ask for more (RFC 9293, 3.8.6.2.2), so no byte moves: they end; what they got is exact."""
    with echod('[timeouts]\nwrite = "off"') as daemon:
        with unharmed(daemon), streams(50, lambda: deaf(daemon)) as clients:
            fill(clients)
            daemon.reload('[timeouts]\nwrite = "4s"')

            def over() -> bool:
                for client in clients:
                    client.hear(1)
                return len(daemon.events("connection.closed")) == len(clients)

            until(over, what="the end of all", interval=1)
            assert all(client.heard > 1 for client in clients)
            run(clients)  # what their kernels still had for them
            assert {client.ended for client in clients} == {"reset"}
            lines = [daemon.closed(client.sock) for client in clients]
        assert {line["reason"] for line in lines} == {"write_timeout"}
        assert all(
            line["bytes_received"] > line["bytes_sent"] >= client.heard
            for line, client in zip(lines, clients, strict=True)
        )
