"""Clients that send and do not read, or late, or little: bounded memory, no harm to others, and an end."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support.bystander import unharmed
from tests.support.clients import CHUNK, deaf, fill, finish, run, streams
from tests.support.harness import Echod, read_exactly, until

if TYPE_CHECKING:
    from collections.abc import Callable

    Daemon = Callable[..., Echod]

CLIENTS = 200
OVERHEAD = 8 << 10
"""Bytes that a connection takes besides what it has read."""
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
    with echod('[timeouts]\nwrite = "4s"') as daemon:
        with unharmed(daemon), streams(50, lambda: deaf(daemon)) as clients:
            fill(clients)

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
