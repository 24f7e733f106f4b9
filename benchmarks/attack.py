"""What an attacker gets with each connection: memory of the daemon and of the kernel, processor time, bytes of the log.

    .venv/bin/python -m benchmarks.attack

Both ends are on this machine; what the kernel holds for the attacker's end (SO_MEMINFO) is taken off its total.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import resource
import socket
import struct
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.support.harness import DEADLINE, LOCAL, Echod, read_all, until

IDLE, STALLED, REFUSED = 5000, 200, 10_000
CONFIG = """
[pool]
size = 6000
[timeouts]
idle = "off"
write = "off"
"""
_SO_MEMINFO = 55  # <asm-generic/socket.h>
_MEMINFO = struct.Struct(
    "=9I"
)  # <linux/sock_diag.h>: rmem_alloc, rcvbuf, wmem_alloc, sndbuf, fwd_alloc, wmem_queued, ...


class Held(NamedTuple):
    """What a daemon holds, in bytes, and seconds of processor time."""

    resident: int
    kernel: int
    processor: float
    log: int


def held(daemon: Echod, clients: list[socket.socket]) -> Held:
    """Look, after all has come to rest."""
    time.sleep(1)
    (pages,) = re.findall(r"TCP: .* mem (\d+)", Path("/proc/net/sockstat").read_text())
    theirs = 0
    for client in clients:
        info = _MEMINFO.unpack(client.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
        theirs += info[0] + info[4] + info[5]
    kernel = int(pages) * resource.getpagesize() - theirs
    return Held(daemon.memory(), kernel, daemon.processor_time(), sum(map(len, daemon.raw)))


def connect(daemon: Echod, stack: contextlib.ExitStack, number: int) -> list[socket.socket]:
    """Connect so often, from 250 addresses."""
    return [stack.enter_context(daemon.connect(source=f"127.1.0.{each % 250}")) for each in range(number)]


def stall(clients: list[socket.socket]) -> None:
    """Send until nobody takes any more, and read nothing."""
    data = bytes(1 << 18)
    for client in clients:
        client.settimeout(0)
    for _ in range(40):
        for client in clients:
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(data)
        time.sleep(0.05)


def measure(name: str, number: int, *, stalled: bool, directory: Path) -> None:
    """Print a line about so many connections."""
    with Echod(CONFIG, directory=directory) as daemon, contextlib.ExitStack() as stack:
        daemon.echo(b"warm")
        before = held(daemon, [])
        clients = connect(daemon, stack, number)
        if stalled:
            stall(clients)
        until(lambda: len(daemon.events("connection.opened")) > number, what="all served")
        after = held(daemon, clients)
        stack.close()
        until(lambda: len(daemon.events("connection.closed")) > number, what="all gone", deadline=5 * DEADLINE)
        ended = held(daemon, [])
    print(
        f"{name:8} {(after.resident - before.resident) / number:10,.0f} B resident"
        f" {max(0, after.kernel - before.kernel) / number:12,.0f} B in kernel buffers"
        f" {(ended.processor - before.processor) / number * 1e6:8,.0f} us"
        f" {(ended.log - before.log) / number:6,.0f} B of log"
    )


def measure_refused(directory: Path) -> None:
    """Print a line about who is refused, as fast as they come."""
    with Echod(f'[access]\ndeny = ["{LOCAL}"]', directory=directory) as daemon:
        before, began = held(daemon, []), time.monotonic()
        for _ in range(REFUSED):
            with daemon.connect() as client:
                read_all(client)
        seconds = time.monotonic() - began
        after = held(daemon, [])
    print(
        f"refused  {(after.processor - before.processor) / REFUSED * 1e6:8,.0f} us each;"
        f" {(after.log - before.log) / seconds:,.0f} B of log a second at {REFUSED / seconds:,.0f} a second"
    )


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.attack", description=(__doc__ or "").partition("\n")[0]
    ).parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as directory:
        measure("idle", IDLE, stalled=False, directory=Path(directory))
        measure("stalled", STALLED, stalled=True, directory=Path(directory))
        measure_refused(Path(directory))


if __name__ == "__main__":
    main()
