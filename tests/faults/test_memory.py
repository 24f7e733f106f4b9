"""Memory runs out: a connection ends, or the process does. No byte is wrong, and no worker is lost."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support.bystander import in_use
from tests.support.harness import DEADLINE, Echod, read_all, read_exactly, send_all, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.inject import Injection

    Daemon = Callable[..., Echod]

pytestmark = pytest.mark.slow

WORKERS = 4
CONFIG = f"[pool]\nsize = {WORKERS}"
SAID = os.urandom(5000)
WITHOUT_COVERAGE = {"COVERAGE_PROCESS_CONFIG": ""}
"""Coverage takes memory of its own with each new line of code, and can't do without."""
PATIENCE = DEADLINE / 20
"""Seconds in which an echo arrives, or never: CPython has forgotten the connection, see below."""


def heard(daemon: Echod) -> bytes:
    """Return what comes back on a new connection, however it ends."""
    data = bytearray()
    with contextlib.suppress(OSError), daemon.connect() as sock:
        sock.settimeout(PATIENCE)
        send_all(sock, SAID)
        while chunk := sock.recv(1 << 16):
            data += chunk
    return bytes(data)


def serves_all(daemon: Echod) -> bool:
    """Say whether every worker serves a connection and comes back."""
    with contextlib.ExitStack() as stack, contextlib.suppress(ConnectionError):
        socks = [stack.enter_context(daemon.connect()) for _ in range(WORKERS)]
        for sock in socks:
            sock.sendall(b"y")
        echoes = [read_exactly(sock, 1) for sock in socks]
        for sock in socks:
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""  # with FIN, the worker is back
        return echoes == [b"y"] * WORKERS
    return False


def died(daemon: Echod, patience: float = 0.02) -> bool:
    """Say whether the process has ended, or ends within `patience` seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        daemon.process.wait(patience)
    return daemon.process.returncode is not None


@contextlib.contextmanager
def started(daemon: Echod) -> Iterator[Echod]:
    """Kill it in the end, without a look at its log: it has many memory errors."""
    daemon.__enter__()
    try:
        yield daemon
    finally:
        daemon.kill()


def torment(daemon: Echod, injection: Injection, numbers: Iterator[int]) -> bool:
    """Let one allocation after the other fail, each on a connection of its own. Say whether the process survives them all."""
    assert daemon.echo(b"first") == b"first"
    for number in numbers:
        injection.arm("allocate", errno.ENOMEM, skip=number, times=1)
        echo = heard(daemon)
        assert SAID.startswith(echo)
        hit = injection.hits("allocate")
        injection.disarm("allocate")
        if died(daemon) or not serves_all(daemon):
            assert died(daemon, DEADLINE / 4), (
                f"it lives, without all its workers, after allocation {number} has failed"
            )
            return False
        if echo == SAID and not hit:
            break
    # If there is no memory for the address of an accepted client, CPython forgets the descriptor.
    assert daemon.descriptors() <= 20
    assert daemon.stop() == 0
    return True


def test_an_allocation_that_fails_costs_a_connection_or_the_process(echod: Daemon, injection: Injection) -> None:
    """Each allocation in a connection's life fails once. What is echoed is right, and no worker is lost.

    The process may die by a signal, and systemd starts it again: in a few places, uvloop doesn't check whether an
    allocation succeeded.
    """
    env = injection.environment | WITHOUT_COVERAGE | {"PYTHONMALLOC": "malloc"}  # its own pools would hide most
    numbers = itertools.count()
    codes = []
    while True:
        with started(echod(CONFIG, env=env)) as daemon:
            if torment(daemon, injection, numbers):
                break
            codes.append(daemon.process.returncode)
    assert all(code < 0 for code in codes), codes
    assert next(numbers) > 50
    assert len(codes) < next(numbers) / 8, codes


@pytest.mark.parametrize("room", [64 << 10, 1 << 20, 4 << 20])
def test_without_memory_no_byte_is_wrong(echod: Daemon, room: int) -> None:
    """There are `room` bytes for 50 stalled clients. Each gets its echo or the beginning of it; the process may die."""
    said = os.urandom(6 << 20)

    def client(daemon: Echod) -> bytes:
        data = bytearray()
        with contextlib.suppress(OSError), daemon.connect() as sock:
            sock.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                sock.sendall(said)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            sock.settimeout(DEADLINE)
            while chunk := sock.recv(1 << 18):
                data += chunk
        return bytes(data)

    with started(echod("[timeouts]\nidle = '2s'\nwrite = '2s'", env=WITHOUT_COVERAGE)) as daemon:
        assert daemon.echo(b"first") == b"first"
        size = daemon.memory("VmSize") + room
        resource.prlimit(daemon.process.pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
        with ThreadPoolExecutor(50) as threads:
            for echo in threads.map(client, [daemon] * 50):
                assert said.startswith(echo)
        unlimited = resource.RLIM_INFINITY, resource.RLIM_INFINITY
        resource.prlimit(daemon.process.pid, resource.RLIMIT_AS, unlimited)
        until(lambda: died(daemon) or not in_use(daemon), what="workers back")
        with contextlib.suppress(ConnectionError):
            assert daemon.echo(b"after") == b"after"
            assert daemon.stop() == 0
            return
        assert died(daemon, DEADLINE)
        assert daemon.process.returncode != 0
